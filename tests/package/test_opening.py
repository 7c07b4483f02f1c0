"""A root opened again: everything is found, what is damaged hides nothing else, and cleanup() takes what is unowned."""

import logging
import os

import pytest
import tarkit
from disk import changed, disk_state
from driven import DRIVER, FILES, LAYERDB
from stored import driver_directories, tar_of
from tarkit import end, file

from layerstore import (
    CreateRWLayerOpts,
    LayerDoesNotExistError,
    MountDoesNotExistError,
    MountNameConflictError,
)


def test_a_restart_finds_everything(store, open_store, root):
    one = store.register(tarkit.T1)
    two = store.register(tarkit.T2, one.chain_id)
    rw = store.create_rw_layer("c", two.chain_id)
    path = rw.mount()
    rw.unmount()
    facts = [(x.chain_id, x.diff_id, x.size, x.diff_size, x.cache_id) for x in (one, two)]
    store.close()
    again = open_store()
    back = [again.get(x[0]) for x in facts]
    assert [(x.chain_id, x.diff_id, x.size, x.diff_size, x.cache_id) for x in back] == facts
    assert back[1].parent.chain_id == one.chain_id
    assert back[0].parent is None
    assert again.mounts() == ["c"]
    with pytest.raises(MountNameConflictError, match="mount already exists with name"):
        again.create_rw_layer("c", two.chain_id)
    rw = again.get_rw_layer("c")
    assert rw.mount() == path
    rw.unmount()
    assert back[0].release() == []
    assert back[1].release() == []
    assert [m.chain_id for m in again.release_rw_layer(rw)] == [two.chain_id, one.chain_id]
    assert driver_directories(root) == []
    assert again.map() == {}


def test_opening_touches_nothing(store, open_store, root):
    one = store.register(tarkit.T1)
    store.create_rw_layer("c", one.chain_id)
    store.close()
    before = disk_state(root, times=True)
    open_store()
    assert changed(before, disk_state(root, times=True)) == []


def test_a_restored_layer_stays_until_it_is_taken_and_released(store, open_store):
    chain = store.register(tarkit.T1).chain_id
    store.close()
    again = open_store()
    assert chain in again.map()
    assert [m.chain_id for m in again.get(chain).release()] == [chain]


def test_a_corrupt_layer_hides_its_children_and_nothing_else(store, open_store, root, layerdb):
    one = store.register(tarkit.T1)
    two = store.register(tarkit.T2, one.chain_id)
    three = store.register(file("x", b"x") + end(), two.chain_id)
    other = store.register(file("y", b"y") + end())
    store.create_rw_layer("on three", three.chain_id)
    store.create_rw_layer("on other", other.chain_id)
    store.close()
    (layerdb / "sha256" / two.chain_id.encoded / "size").write_text("x")
    before = disk_state(root)
    again = open_store()
    assert set(again.map()) == {one.chain_id, other.chain_id}
    assert again.mounts() == ["on other"]
    for hidden in (two, three):
        with pytest.raises(LayerDoesNotExistError):
            again.get(hidden.chain_id)
    with pytest.raises(MountDoesNotExistError):
        again.get_rw_layer("on three")
    assert changed(before, disk_state(root)) == []


def test_cleanup_finishes_an_interrupted_removal(store, open_store, root, layerdb):
    layer = store.register(tarkit.T1)
    keep = store.register(tarkit.T2)
    store.close()
    place = layerdb / "sha256" / layer.chain_id.encoded
    place.rename(place.with_name(place.name + "-0123-removing"))
    again = open_store()
    assert set(again.map()) == {keep.chain_id}
    again.cleanup()
    assert os.listdir(layerdb / "sha256") == [keep.chain_id.encoded]
    assert driver_directories(root) == [keep.cache_id]
    assert len(os.listdir(root / DRIVER / "l")) == 1


def test_cleanup_removes_what_nobody_owns_and_nothing_else(store, root, layerdb):
    keep = store.register(tarkit.T1)
    store.create_rw_layer("c", keep.chain_id, CreateRWLayerOpts(init_func=lambda path: None))
    before = disk_state(root)
    stray = "f" * 64
    (root / DRIVER / stray / FILES).mkdir(parents=True)
    (root / DRIVER / stray / "link").write_text("A" * 26)
    (root / DRIVER / "l" / ("A" * 26)).symlink_to(f"../{stray}/{FILES}")
    (root / DRIVER / "l" / ("B" * 26)).symlink_to(f"../gone/{FILES}")
    (layerdb / "tmp/write-set-77").mkdir()
    (layerdb / "tmp/write-set-77/size").write_text("1")
    store.cleanup()
    assert changed(before, disk_state(root)) == []


def test_cleanup_keeps_what_strangers_put_beside_it(store, root):
    """Not ids of ours, so not ours to take."""
    store.register(tarkit.T1)
    for path in (f"{DRIVER}/lost+found", f"image/{DRIVER}/imagedb", "containers"):
        (root / path).mkdir()
    (root / "image" / DRIVER / "repositories.json").write_text("{}")
    before = disk_state(root)
    store.cleanup()
    assert changed(before, disk_state(root)) == []


def test_cleanup_spares_layers_that_did_not_load(store, open_store, root, layerdb):
    layer = store.register(tarkit.T1)
    store.close()
    (layerdb / "sha256" / layer.chain_id.encoded / "size").write_text("x")
    before = disk_state(root)
    open_store().cleanup()
    assert changed(before, disk_state(root)) == []


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_cleanup_skips_a_removal_that_names_no_cache_id(store, layerdb, content):
    keep = store.register(tarkit.T1)
    place = layerdb / "sha256" / ("3" * 64 + "-9-removing")
    place.mkdir()
    if content is not None:
        (place / "cache-id").write_text(content)
    store.cleanup()
    assert keep.chain_id in store.map()
    assert store.verify(keep.chain_id) == []


@pytest.mark.parametrize("escape", ["..", ".", "../victim", "l", "/etc"])
def test_cleanup_never_follows_a_planted_cache_id_out_of_the_driver(store, root, layerdb, victim, escape):
    keep = store.register(tarkit.T1)
    place = layerdb / "sha256" / ("3" * 64 + "-9-removing")
    place.mkdir()
    (place / "cache-id").write_text(escape)
    store.cleanup()
    assert store.verify(keep.chain_id) == []
    assert tar_of(keep) == tarkit.T1


# ---- where something is wrong ----------------------------------------------------------------------------
DAMAGE = {
    "size": ("x", "failed to get size for"),
    "diff": ("nonsense", "failed to get diff id for"),
    "cache-id": ("", "failed to get cache id for"),
    "parent": ("", "failed to get parent for"),
    "descriptor.json": ("{", "failed to get descriptor for"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_layer_that_does_not_load_is_logged_with_its_reason(store, open_store, root, caplog, name):
    chain = store.register(tarkit.T1).chain_id
    store.close()
    text, reason = DAMAGE[name]
    (root / LAYERDB / "sha256" / chain.encoded / name).write_text(text)
    with caplog.at_level(logging.DEBUG):
        assert open_store().map() == {}
    found = [r for r in caplog.records if chain in r.getMessage() or chain.encoded in r.getMessage()]
    assert found, caplog.messages
    assert any("Failed to load layer" in r.getMessage() and reason in r.getMessage() for r in found), caplog.messages
    assert max(r.levelno for r in found) < logging.ERROR


def test_a_mount_that_does_not_load_is_logged_and_its_name_is_free(store, open_store, root, caplog):
    base = store.register(tarkit.T1)
    store.create_rw_layer("c", base.chain_id)
    store.close()
    (root / LAYERDB / "mounts/c/mount-id").write_text("short")
    with caplog.at_level(logging.DEBUG):
        again = open_store()
        assert again.mounts() == []
    assert any("invalid mount id value" in message for message in caplog.messages), caplog.messages
    rw = again.create_rw_layer("c", base.chain_id)
    assert (root / LAYERDB / "mounts/c/mount-id").read_text() == again.get_mount_id("c")
    assert len(again.get_mount_id("c")) == 64
    again.release_rw_layer(rw)
    assert not (root / LAYERDB / "mounts/c").exists()


def test_a_name_freed_by_a_failed_load_takes_no_init_id_of_the_old_mount(store, open_store, root):
    """The old files are overwritten; one that the new mount does not have must not be taken for its own."""
    base = store.register(tarkit.T1)
    store.create_rw_layer("c", base.chain_id, CreateRWLayerOpts(init_func=lambda path: None))
    store.close()
    (root / LAYERDB / "mounts/c/mount-id").write_text("short")
    again = open_store()
    again.create_rw_layer("c")
    again.close()
    last = open_store()
    rw = last.get_rw_layer("c")
    assert rw.parent is None
    assert rw.changes() == []


def test_opening_does_not_ask_for_the_driver_directory(store, open_store, root):
    layer = store.register(tarkit.T1)
    store.close()
    (root / DRIVER / layer.cache_id).rename(root / "moved")
    again = open_store()
    back = again.get(layer.chain_id)
    assert (back.size, back.diff_id) == (5, tarkit.T1_DIFF_ID)
    with pytest.raises(OSError):
        back.metadata()
    (root / "moved").rename(root / DRIVER / layer.cache_id)
    assert tar_of(back) == tarkit.T1


@pytest.mark.only("overlay2", "of the tar-split record")
def test_opening_asks_neither_for_the_record_nor_for_ids_that_fit(store, open_store, root):
    """Chain IDs are names here: that they follow from the parent is verify's business."""
    layer = store.register(tarkit.T1)
    store.close()
    db = root / LAYERDB / "sha256"
    (db / layer.chain_id.encoded).rename(db / ("2" * 64))
    (db / ("2" * 64) / "tar-split.json.gz").unlink()
    again = open_store()
    assert set(again.map()) == {"sha256:" + "2" * 64}
    assert again.verify() != []


def test_references_of_children_and_mounts_are_counted_anew_at_opening(store, open_store):
    one = store.register(tarkit.T1)
    two = store.register(tarkit.T2, one.chain_id)
    three = store.register(file("x") + end(), one.chain_id)
    store.create_rw_layer("c", two.chain_id)
    store.close()
    again = open_store()
    first, left, right = (again.get(layer.chain_id) for layer in (one, two, three))
    assert [again.release(layer) for layer in (first, left)] == [[], []]
    assert [gone.chain_id for gone in again.release(right)] == [three.chain_id]
    gone = again.release_rw_layer(again.get_rw_layer("c"))
    assert [g.chain_id for g in gone] == [two.chain_id, one.chain_id]


def test_cleanup_logs_what_it_skips_and_raises_nothing(store, root, caplog):
    keep = store.register(tarkit.T1)
    db = root / LAYERDB / "sha256"
    for name in ("zz-x-removing", "abc-removing", keep.chain_id.encoded + "-1-removing"):
        (db / name).mkdir()
    (db / (keep.chain_id.encoded + "-1-removing") / "cache-id").mkdir()
    with caplog.at_level(logging.DEBUG):
        store.cleanup()
    assert store.verify(keep.chain_id) == []
    assert tar_of(keep) == tarkit.T1


def test_cleanup_never_removes_a_live_layers_files_by_a_stale_record(store, root):
    """A `-removing` record that names the cache ID of a layer in use must not take it."""
    keep = store.register(tarkit.T1)
    db = root / LAYERDB / "sha256"
    stale = db / ("4" * 64 + "-1-removing")
    stale.mkdir()
    (stale / "cache-id").write_text(keep.cache_id)
    store.cleanup()
    assert tar_of(keep) == tarkit.T1


def test_two_stores_on_one_root_see_the_same_bytes(open_store, root):
    """A second opening in one process neither harms the first nor is harmed by it."""
    one = open_store()
    layer = one.register(tarkit.T1)
    before = disk_state(root)
    two = open_store()
    assert set(two.map()) == {layer.chain_id}
    assert tar_of(two.get(layer.chain_id)) == tarkit.T1
    two.close()
    assert changed(before, disk_state(root)) == []
    assert tar_of(layer) == tarkit.T1
