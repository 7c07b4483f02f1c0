"""A layer with all below it as one EROFS image: the kernel shows of it what a mounted box shows, under either driver."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import disk
import erofsreader
import pytest
import recipes
import tarkit
from stored import BoomError

import layerstore
from layerstore import EMPTY_LAYER, CorruptLayerError
from layerstore.disk import erofs

BASE = b"".join([
    tarkit.dir("etc/", mode=0o750, mtime=1_600_000_000), tarkit.file("etc/hostname", b"base\n"), tarkit.file("etc/shadow", b"x", mode=0o600, uid=7, gid=8),
    tarkit.dir("usr/"), tarkit.dir("usr/bin/"), tarkit.file("usr/bin/tool", recipes.noise(70_000), mode=0o4755),
    tarkit.hardlink("usr/bin/other-name", "usr/bin/tool"), tarkit.symlink("usr/bin/link", "../../etc/shadow"),
    tarkit.pax({"mtime": "1700000000.123456789"}) + tarkit.file("usr/nanoseconds", b"n"),
    tarkit.xattrs({"user.note": b"hello\x00world", "security.capability": bytes.fromhex("0100000200200000000000000000000000000000")}) + tarkit.file("usr/noted", b"n"),
    tarkit.dir("dev/"), tarkit.node("dev/null", "c", 1, 3, mode=0o666), tarkit.fifo("dev/fifo"), tarkit.file(b"usr/not-\xff-utf8", b"odd"),
    tarkit.dir("srv/"), tarkit.file("srv/one", b"1"), tarkit.dir("srv/deep/"), tarkit.file("srv/deep/file", b"far down"),
    tarkit.old_gnu_sparse("sparse", [(1 << 20, b"x" * 4096)], 5 << 20), tarkit.end(),
])  # fmt: skip
MIDDLE = b"".join([
    tarkit.dir("srv/"), tarkit.whiteout("srv/one"), tarkit.dir("srv/deep/"), tarkit.opaque("srv/deep/"), tarkit.file("srv/deep/new", b"n"),
    tarkit.dir("etc/", mode=0o755), tarkit.file("etc/hostname", b"middle\n"), tarkit.whiteout("usr/nanoseconds"), tarkit.end(20),
])  # fmt: skip
TOP = tarkit.whiteout("never") + tarkit.dir("opt/") + tarkit.file("opt/last", recipes.noise(5000)) + tarkit.symlink("srv/one", "deep") + tarkit.end()
STACKS = {"one": [BASE], "marks alone": [MIDDLE], "two": [BASE, MIDDLE], "three": [BASE, MIDDLE, TOP], "nothing": [tarkit.end()]}


@pytest.fixture(params=["overlay2", "erofs"])
def store(request, open_store):
    return open_store(driver=request.param)


def registered(store, tars):
    layer = ""
    for tar in tars:
        layer = store.register(tar, layer)
    return layer


def shown(place) -> dict:
    """A tree, with times and all bytes, without its root."""
    state = disk.disk_state(place, times=True, content=False)
    files = {name: hashlib.sha256(Path(place, os.fsdecode(name)).read_bytes()).digest() for name, facts in state.items() if facts[0] == "file"}
    return {name: (*facts, files.get(name)) for name, facts in state.items() if name not in (b"", b".")}


@pytest.mark.parametrize("which", STACKS)
def test_the_kernel_shows_of_an_image_what_a_box_shows(store, room, which):
    layer = registered(store, STACKS[which])
    path, at = room / "whole.erofs", room / "mounted"
    told: list = []
    assert layer.export_erofs(path, progress=told.append) == path.stat().st_size > 0
    assert told == sorted(told)
    at.mkdir()
    with open(path, "rb") as file:
        erofs.mount_file([erofs.File(file.fileno(), str(path))], str(at), "loop")
    try:
        with store.create_rw_layer("box", layer) as box, box.mounted() as merged:
            assert shown(at) == shown(merged)
    finally:
        erofs.unmount(str(at))
    image = erofsreader.read(path, own=False)
    assert {name for name in image.tree if name} == {entry.path for entry in layer.merged() if entry.path != "."}
    assert not [name for name, node in image.tree.items() if node.is_whiteout or "trusted.overlay.opaque" in node.xattrs]


def test_the_same_layer_makes_the_same_image(store, open_store, room):
    again = open_store(room / "again", driver=store.driver_name())
    for number, each in enumerate((store, again)):
        registered(each, STACKS["three"]).export_erofs(room / f"{number}.erofs")
    assert (room / "0.erofs").read_bytes() == (room / "1.erofs").read_bytes()


def test_an_image_of_images_needs_no_mount_and_keeps_holes(open_store, room):
    store = open_store(driver="erofs")
    chain = registered(store, STACKS["three"]).chain_id
    program = "import sys, layerstore\nwith layerstore.Store(sys.argv[1], driver='erofs') as store: store.find(sys.argv[2]).export_erofs(sys.argv[3])"
    command = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(Path(layerstore.__file__).parents[1])}
    subprocess.run([*command, store.root, chain, room / "whole.erofs"], check=True, env=environment)
    store.find(chain).export_erofs(room / "other.erofs")
    assert (room / "whole.erofs").read_bytes() == (room / "other.erofs").read_bytes()
    assert (room / "whole.erofs").stat().st_size < 1 << 20


def test_fsck_finds_nothing(store, room):
    found = shutil.which("fsck.erofs")
    if found is None:
        pytest.skip("NOT TESTED: there is no fsck.erofs here")
    registered(store, STACKS["three"]).export_erofs(room / "whole.erofs")
    done = subprocess.run([found, room / "whole.erofs"], capture_output=True, text=True, check=False)
    if "blksize 512 isn't supported" in done.stderr:
        pytest.skip("NOT TESTED: this fsck.erofs is older than blocks of 512 bytes")
    assert done.returncode == 0, done.stderr


def test_the_empty_layer_is_an_empty_directory(room):
    EMPTY_LAYER.export_erofs(room / "empty.erofs")
    assert list(erofsreader.read(room / "empty.erofs").tree) == [""]


def test_an_image_appears_when_it_is_whole(store, room):
    layer = registered(store, STACKS["two"])
    path = room / "whole.erofs"
    path.write_bytes(b"the old one")

    def stop(_):
        raise BoomError

    with pytest.raises(BoomError):
        layer.export_erofs(path, progress=stop)
    assert [p.name for p in room.iterdir() if p.name != "docker"] == ["whole.erofs"] and path.read_bytes() == b"the old one"
    with pytest.raises(FileNotFoundError) as told:
        layer.export_erofs(room / "no/such/whole.erofs")
    assert told.value.filename == str(room / "no/such/whole.erofs")
    assert layer.export_erofs(str(path)) == path.stat().st_size
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()


def umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_a_layer_that_lost_its_parent_makes_none(open_store, room, root):
    store = open_store(driver="overlay2")
    chain = registered(store, STACKS["two"]).chain_id
    store.close()
    (root / "image/overlay2/layerdb/sha256" / chain.encoded / "parent").unlink()
    layer = open_store(driver="overlay2").map()[chain]
    with pytest.raises(CorruptLayerError):
        layer.export_erofs(room / "whole.erofs")
    assert not (room / "whole.erofs").exists()


def test_a_store_that_only_reads_makes_it_too(store, open_store, room, root):
    driver, chain = store.driver_name(), registered(store, STACKS["three"]).chain_id
    with layerstore.Store(root, driver=driver, options={"read_only": "true"}) as reader:
        before = disk.disk_state(root)
        assert reader.find(chain).export_erofs(room / "whole.erofs") == Path(room / "whole.erofs").stat().st_size
        assert disk.changed(before, disk.disk_state(root)) == []
    assert disk.mounts_below(room) == []
