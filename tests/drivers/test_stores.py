"""A store on each driver: what the engine and its faces promise does not depend on how layers lie on disk."""

import io
import os
from pathlib import Path

import damages
import imagekit
import pytest
import tarkit
from stored import Failing, read, shown, tar_of
from tarkit import T1, T2, T2_ON_T1_CHAIN_ID, dir, end, file, opaque, symlink, whiteout

import layerstore
from layerstore import (
    CorruptLayerError,
    CreateRWLayerOpts,
    FileType,
    Images,
    LayerDoesNotExistError,
    StoreInUseError,
    TarFormatError,
)

TOP = dir("d/") + file("d/new", b"new") + opaque("d/") + whiteout("b") + symlink("to", "a/f") + end()


@pytest.fixture
def layers(store):
    """Three layers on one another, the lowest first."""
    base = store.register(T1)
    middle = store.register(T2, base)
    return base, middle, store.register(TOP, middle)


# ---- in and out ----
def test_a_layer_is_registered_found_and_read_again(store, open_store, layers):
    assert layers[1].chain_id == T2_ON_T1_CHAIN_ID
    for at in (store, open_store()):
        for layer, tar in zip(layers, (T1, T2, TOP), strict=True):
            got = at.get(layer.chain_id)
            assert tar_of(got) == tar
            assert (got.diff_id, got.size) == (tarkit.diff_id(tar), layer.size)
            got.release()
    assert store.verify() == []


def test_what_is_in_a_layer_is_told_without_a_mount(layers):
    base, middle, top = layers
    assert [(entry.path, entry.type) for entry in top.files()] == [
        ("d", FileType.DIRECTORY), ("d/new", FileType.FILE), ("d", FileType.OPAQUE), ("b", FileType.WHITEOUT),
        ("to", FileType.SYMLINK),
    ]
    assert {entry.chain_id for entry in base.files()} == {base.chain_id}
    assert read(base.open("a/f")) == b"hello"
    with pytest.raises(FileNotFoundError):
        middle.open("a/f")
    assert tree(top).keys() == {"a", "d", "d/new", "gone", "to"}
    assert read(middle.merged().open("b")) == b"abc"


def test_the_difference_to_an_ancestor_gives_the_same_tree(store, layers):
    base, _, top = layers
    again = store.register(top.tar_stream_from(base.chain_id), base)
    assert tree(again) == tree(top)
    assert tree(store.register(top.tar_stream_from(""))) == tree(top)


def tree(layer):
    entries = (entry for entry in layer.merged() if entry.path != ".")
    return {entry.path: (entry.type, entry.size, entry.mode, entry.link) for entry in entries}


def test_the_same_tar_again_is_the_same_layer(store, layers, unchanged):
    with unchanged():
        again = store.register(T2, layers[0])
    assert again.chain_id == layers[1].chain_id and again.cache_id == layers[1].cache_id
    assert store.register(T2).cache_id != again.cache_id


@pytest.mark.parametrize(
    "tar, error", [(T2[:1100], TarFormatError), (b"", TarFormatError), (Failing(b"", 0, OSError(5, "the cable")), OSError), (7.5, TypeError)],
    ids=["cut", "empty", "failing", "no source"],
)  # fmt: skip
def test_a_failed_register_leaves_nothing(store, layers, unchanged, tar, error):
    with unchanged(), pytest.raises(error):
        store.register(tar, layers[0])
    with unchanged(), pytest.raises(LayerDoesNotExistError):
        store.register(T1, "sha256:" + "0" * 64)


# ---- damage ----
def damage(layer, kind):
    damages.damage(kind, layer.metadata())


@pytest.mark.parametrize("kind", damages.KINDS)
@pytest.mark.parametrize("source", ["tar", "store", "layer"])
def test_damage_is_found_and_repaired(store, open_store, room, layers, kind, source):
    base = layers[0]
    other = open_store(room / "other")
    source = {"tar": T1, "store": other, "layer": other.register(T1)}[source]
    damage(base, kind)
    problems = store.verify(base.chain_id)
    assert problems and {problem.subject for problem in problems} == {base.chain_id}
    assert store.repair(base.chain_id, source) == problems
    assert store.verify() == []
    assert [tar_of(layer) for layer in layers] == [T1, T2, TOP]


def test_a_damaged_file_is_taken_from_another_layer(store, layers):
    store.register(file("elsewhere", b"hello") + end())
    damage(layers[0], "content")
    if "Layer" in layers[0].metadata():           # no CRC of a file says which one it is
        with pytest.raises(CorruptLayerError, match="could not verify layer data"):
            store.repair(layers[0].chain_id)
        return
    with pytest.raises(CorruptLayerError):
        read(layers[0].open("a/f"))
    assert [problem.kind for problem in store.repair(layers[0].chain_id) if problem.kind == "content"]
    assert store.verify() == []


def test_another_tar_repairs_nothing(store, layers, unchanged):
    damage(layers[0], "content")
    with unchanged(), pytest.raises(CorruptLayerError, match="the source is another layer"):
        store.repair(layers[0].chain_id, TOP)


def test_a_layer_whose_files_are_gone_is_registered_anew(store, open_store, layers):
    base, _, top = layers
    damage(base, "all gone")
    store.register(T1)
    store.reclaim(dry_run=False)
    assert store.verify() == []
    assert [tar_of(layer) for layer in layers] == [T1, T2, TOP]
    assert shown(open_store(), top).keys() == {"a", "d", "d/new", "gone", "to"}


def test_what_stands_on_it_and_lost_its_files_too_stops_no_registration(store, layers):
    for layer in layers[:2]:
        damage(layer, "all gone")
    assert store.register(T1).chain_id == layers[0].chain_id
    assert store.register(T2, layers[0]).chain_id == layers[1].chain_id
    store.reclaim(dry_run=False)
    assert store.verify() == []
    assert [tar_of(layer) for layer in layers] == [T1, T2, TOP]


# ---- what goes ----
def test_the_last_release_deletes_from_the_top_down(store, layers, driver_name, root):
    base, middle, top = layers
    base.release(), middle.release()
    assert [gone.chain_id for gone in top.release()] == [layer.chain_id for layer in reversed(layers)]
    assert [name for name in os.listdir(root / driver_name) if len(name) > 60] == []


def test_remove_refuses_what_is_needed(store, layers):
    base, _, top = layers
    with pytest.raises(StoreInUseError):
        store.remove(base)
    top.release()
    with pytest.raises(LayerDoesNotExistError):
        store.remove(top)


def killed_in_register(root, driver_name):
    """A process that ends in the middle of a register()."""
    def blocks():
        yield T1[:1500]
        os._exit(0)

    if not (pid := os.fork()):
        layerstore.Store(root, driver=driver_name).register(blocks())
    os.waitpid(pid, 0)


@pytest.mark.parametrize("way", ["reclaim", "cleanup"])
def test_what_a_killed_process_left_is_an_orphan_and_goes(store, layers, root, unchanged, driver_name, way):
    with unchanged():
        store.close()
        killed_in_register(root, driver_name)
        store = type(store)(root, driver=driver_name)
        assert sorted(orphan.kind for orphan in store.orphans()) == ["directory", "transaction"]
        store.cleanup() if way == "cleanup" else store.reclaim(dry_run=False)
        assert store.orphans() == [] and store.verify() == []
        store.close()


def test_two_stores_on_one_root_see_each_other_s_layers(store, open_store):
    other = open_store()
    mine = store.register(T1)
    theirs = other.get(mine.chain_id)
    assert mine.release() == []                      # the other store holds it
    top = other.register(T2, theirs)
    assert tar_of(store.get(top.chain_id)) == T2
    assert other.register(T1).cache_id == theirs.cache_id
    with pytest.raises(StoreInUseError):
        store.reclaim()


# ---- writable layers, and images ----
def test_a_writable_layer_is_written_committed_and_released(store, layers):
    rw = store.create_rw_layer("box", layers[1], CreateRWLayerOpts(init_func=lambda path: Path(path, "hosts").touch()))
    with rw.mounted() as path:
        Path(path, "b").write_bytes(b"more than before")
        Path(path, "gone").unlink()
    assert sorted(map(str, rw.changes())) == ["C /b", "D /gone"]
    assert rw.size() == 16
    assert rw.apply_diff(file("x", b"123") + end()) == 19
    made = rw.commit()
    assert made.parent.chain_id == layers[1].chain_id
    assert {entry.path: entry.type for entry in made.files()} == {
        "b": FileType.FILE, "gone": FileType.WHITEOUT, "x": FileType.FILE,
    }
    assert store.verify() == []
    rw.release()
    assert store.orphans() == []


def test_an_init_func_that_raises_leaves_nothing(store, layers, unchanged):
    def fail(path):
        Path(path, "half").touch()
        raise LookupError(path)

    with unchanged(), pytest.raises(LookupError):
        store.create_rw_layer("box", layers[1], CreateRWLayerOpts(init_func=fail))


@pytest.mark.parametrize("order", [imagekit.documents_first, imagekit.documents_last, imagekit.layers_upside_down])
def test_images_are_loaded_saved_and_loaded_elsewhere(store, open_store, room, order):
    archive = imagekit.tar_of(order(imagekit.docker([((T1, T2, TOP), ["box:1"])])))
    [image] = Images(store).load(io.BytesIO(archive))
    assert image.layers[1] == T2_ON_T1_CHAIN_ID
    Images(store).save("box:1", room / "saved.tar")
    other = open_store(room / "other")
    [again] = Images(other).load(room / "saved.tar")
    assert again.id == image.id and other.verify() == []
    with other.get(again.top) as top:
        assert tar_of(top) == TOP
    removed = Images(other).remove("box:1")
    assert len(removed.layers) == 3 and other.orphans() == []
