"""Names for containerd: links to layers by their DiffID, which cost nothing, go with the last layer, and stay for a lease."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import tarkit
from tarkit import T1, T2, end, file

import layerstore
from layerstore import InvalidOptionError

ON = {"durability": "none", "erofs.containerd_cache": "on"}
OFF = {"durability": "none"}


@pytest.fixture
def open_images(open_store):
    return lambda where=None, **options: open_store(where, driver="erofs", options={**ON, **options})


def name_of(root: Path, diff_id: str) -> Path:
    digits = diff_id.removeprefix("sha256:")
    return root / "erofs/sha256" / digits[:2] / f"{digits}.erofs"


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root / "erofs/sha256")) for path in (root / "erofs/sha256").rglob("*") if not path.is_dir())


def blocks(root: Path) -> int:
    """Bytes on the disk, each inode once."""
    return int(subprocess.run(["du", "-s", "--block-size=1", root / "erofs"], capture_output=True, check=True, text=True).stdout.split()[0])


def test_each_layer_has_a_name_that_takes_no_room(open_images, root):
    store = open_images()
    base = store.register(T1)
    on = store.register(T2, base)
    for layer in (base, on):
        name = name_of(root, layer.diff_id)
        assert name.samefile(layer.metadata()["Layer"]) and name.stat().st_mode & 0o777 == 0o600
    assert len(names(root)) == 2 and store.orphans() == [] == store.verify()
    before = blocks(root)
    shutil.rmtree(root / "erofs/sha256")
    assert before - blocks(root) <= 6 * 4096, "the directories of the names"
    assert store.verify() == []
    assert [gone.chain_id for gone in on.release()] == [on.chain_id]


def test_the_name_goes_with_the_last_layer_of_its_tar(open_images, root):
    store = open_images()
    layers = [store.register(T1), store.register(T2)]
    layers.append(store.register(T1, layers[1]))           # the same tar on something else
    assert len(names(root)) == 2 and name_of(root, layers[0].diff_id).stat().st_nlink == 3
    layers[2].release()
    assert name_of(root, layers[0].diff_id).stat().st_nlink == 2
    layers[0].release()
    assert names(root) == [str(name_of(root, layers[1].diff_id).relative_to(root / "erofs/sha256"))]
    layers[1].release()
    assert names(root) == [] == store.orphans()


def test_a_lease_keeps_the_name_and_the_bytes(open_images, root):
    store = open_images()
    layer = store.register(T1)
    name = name_of(root, layer.diff_id)
    lease = name.with_suffix(".lease")
    lease.touch()
    data = name.read_bytes()
    layer.release()
    store.cleanup()
    store.reclaim(dry_run=False)
    assert name.read_bytes() == data and store.orphans() == []
    lease.unlink()
    (orphan,) = store.orphans()
    assert (orphan.kind, orphan.path) == ("file", str(name.relative_to(root)))
    assert store.reclaim(dry_run=False) == [orphan]
    assert names(root) == [] == store.orphans()


def test_cleanup_ends_what_a_kill_left(open_images, root):
    store = open_images()
    layer = store.register(T1)
    name = name_of(root, layer.diff_id)
    Path(f"{name}.new").write_bytes(b"half")
    store.cleanup()
    assert names(root) == [str(name.relative_to(root / "erofs/sha256"))]
    os.unlink(name)
    layer.release()
    assert store.orphans() == []


def test_a_registered_layer_again_comes_to_its_name(open_images, open_store, root):
    plain = open_store(driver="erofs", options=OFF)
    chain = plain.register(T1).chain_id
    plain.close()
    assert not (root / "erofs/sha256").exists()
    store = open_images()
    store.register(T1, store.register(T2)).release()
    assert name_of(root, chain).samefile(store.get(chain).metadata()["Layer"])


def test_what_has_names_is_looked_after_without_the_option(open_images, open_store, root):
    layer = open_images().register(T1)
    plain = open_store(driver="erofs", options=OFF)
    layer.release()
    assert names(root) == []
    again = open_images().register(T1)
    with plain.get(again.chain_id):
        again.release()
    assert names(root) == [] and plain.map() == {}
    plain.register(T2)
    assert names(root) == []


def test_a_repaired_layer_has_the_name_of_the_new_file(open_images, root):
    store = open_images()
    layer = store.register(file("f", b"hello") + end())
    image, name = Path(layer.metadata()["Layer"]), name_of(root, layer.diff_id)
    image.write_bytes(image.read_bytes().replace(b"hello", b"HELLO"))
    assert [problem.kind for problem in store.verify()] == ["content"]
    store.repair(layer.chain_id, file("f", b"hello") + end())
    assert name.samefile(image) and b"HELLO" not in name.read_bytes()
    assert store.verify() == [] == store.orphans()


def test_converted_layers_have_names(open_store, open_images, root):
    old = open_store(driver="overlay2", options=OFF)
    chain = old.register(T1).chain_id
    old.convert(chain, "erofs")
    assert not (root / "erofs/sha256").exists(), "the option was not given to the other half"
    with pytest.raises(InvalidOptionError):
        layerstore.Store(root, driver="overlay2", options=ON)


def test_what_containerd_would_find_is_the_layer(open_images, root):
    """The directory of its configuration, then the algorithm, two digits, and the digest."""
    store = open_images()
    tar = tarkit.dir("etc/") + file("etc/motd", b"hello\n") + end()
    layer = store.register(tar)
    caches, algorithm, digest = root / "erofs", *layer.diff_id.split(":")
    assert (caches / algorithm / digest[:2] / f"{digest}.erofs").read_bytes() == Path(layer.metadata()["Layer"]).read_bytes()
