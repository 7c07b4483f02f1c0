"""Boxes, snapshots and their layers on images: what a layer's file keeps, and what happens where it is gone."""

import io
import os

import pytest
import tarkit
from disk import shape

import layerstore

BASE = tarkit.dir("etc/") + tarkit.file("etc/hosts", b"127.0.0.1\n") + tarkit.file("top", b"top") + tarkit.end()


@pytest.fixture
def base(store):
    return store.register(io.BytesIO(BASE))


@pytest.fixture
def box(store, base):
    return store.create_rw_layer("box", base)


def write(box, name, text):
    with box.mounted() as path, open(f"{path}/{name}", "w") as out:
        out.write(text)


def shown(box):
    with box.mounted() as path:
        return shape(path)


def test_a_layer_of_a_snapshot_is_made_of_its_tar_and_the_snapshot_keeps_its_files(store, root, base, box):
    write(box, "one", "1" * 10)
    first = box.snapshot()
    write(box, "two", "2" * 20)
    second = box.snapshot()
    tars = [snap.tar_stream().read() for snap in (first, second)]
    before = shown(box)
    layer = second.commit()
    assert layer.parent.parent.chain_id == base.chain_id and (layer.parent.diff_size, layer.diff_size) == (10, 20)
    assert [one.tar_stream().read() for one in (layer.parent, layer)] == tars
    for one in (layer.parent, layer):
        there = root / "erofs" / one.cache_id
        assert (there / "layer.erofs").is_file() and os.listdir(there / "fs") == []
    assert shown(box) == before and box.parent.chain_id == box.base.chain_id == layer.chain_id
    assert os.listdir(root / "erofs" / second.id / "fs") == ["two"]
    assert second.commit().chain_id == layer.chain_id and store.get(second.id).chain_id == layer.chain_id
    with store.create_rw_layer("by id", second.id) as other, store.create_rw_layer("on it", layer) as made:
        assert shown(other) == shown(made) == before
    assert store.verify() == store.orphans() == []


def test_a_snapshot_shows_after_its_commit_what_its_tar_does_not_say(store, box):
    with box.mounted() as path:
        with open(f"{path}/f", "w") as out:
            out.write("f")
        os.setxattr(f"{path}/f", "user.note", b"1")
        os.utime(f"{path}/f", ns=(1, 5_123_456_789))
    snap = box.snapshot()
    with pytest.warns(layerstore.LeftOutWarning, match=r"extended attributes of 1 file \(f\); the snapshot's own files keep them"):
        snap.commit()
    with store.create_rw_layer("by id", snap.id) as made, made.mounted() as path:
        assert os.getxattr(f"{path}/f", "user.note") == b"1" and os.stat(f"{path}/f").st_mtime_ns == 5_123_456_789


def test_a_committed_snapshot_that_goes_takes_its_own_files_along(store, root, box):
    write(box, "one", "1")
    snap = box.snapshot()
    layer = snap.commit()
    box.release()
    assert snap.release() == [] and layer.chain_id in store.map()
    assert sorted(name for name in os.listdir(root / "erofs") if len(name) >= 64) == sorted({layer.cache_id, layer.parent.cache_id})


def test_a_layer_whose_file_is_gone_shows_nothing_in_its_place(store, root, base, box):
    os.unlink(root / "erofs" / base.cache_id / "layer.erofs")
    for show in (box.mount, base.merged, lambda: store.diff("", base), base.tar_stream, lambda: box.changes(since="")):
        with pytest.raises(FileNotFoundError) as error:
            show()
        assert error.value.filename == str(root / "erofs" / base.cache_id / "layer.erofs")
    assert [problem.kind for problem in store.verify()] == ["missing"]
    assert store.repair(base.chain_id, io.BytesIO(BASE)) and store.verify() == []
    assert shown(box)["top"] == "top"


def test_files_of_a_box_on_images_are_found_where_they_are_open(base, box):
    """They have the device of the overlay, though the layer's file is on another one."""
    with box.mounted() as path, open(f"{path}/top", "r+b"):
        assert {os.stat(f"{path}/{name}").st_dev for name in ("top", "etc", "etc/hosts")} == {os.stat(path).st_dev}
        assert [holder.pid for holder in box.holders()] == [os.getpid()]
        with pytest.raises(layerstore.ActiveMountError):
            box.rollback(base.chain_id)


def test_a_new_directory_of_a_box_is_no_opaque_one(box):
    with box.mounted() as path:
        os.makedirs(f"{path}/new/deep")
    assert b".wh..wh..opq" not in box.tar_stream().read()


def test_the_status_says_how_images_are_mounted(store):
    status = dict(store.driver_status())
    assert list(status)[:2] == ["Backing Filesystem", "EROFS mode"] and status["EROFS mode"] in ("file", "loop")
