"""Snapshot.commit(): the layer that a snapshot's directory becomes is one as any other: verified, mended, saved."""

import io
import os
import stat
from pathlib import Path

import another
import pytest
import tarkit
from disk import changed, disk_state
from driven import LAYERDB
from stored import comes_back, read, tar_of
from tarkit import dir, end, file

import layerstore
from layerstore import BreakoutError, CorruptLayerError, Images

pytestmark = [
    pytest.mark.filterwarnings("ignore::layerstore.LeftOutWarning"),
    pytest.mark.only("overlay2", "of layers whose directory came before their tar"),
]

BASE = dir("d/") + file("d/kept", b"kept") + file("d/gone", b"gone") + dir("old/") + file("old/x", b"x") + end()


def fill(at):
    """What a tar of it says, and what none says."""
    at = Path(at)
    (at / "big").write_bytes(os.urandom(1 << 20))
    (at / "d/kept").write_bytes(b"other")
    (at / "d/gone").unlink()
    (at / "old/x").unlink()
    (at / "old").rmdir()
    (at / "old").mkdir()
    (at / "old/y").write_bytes(b"y")
    os.link(at / "big", at / "again")
    os.symlink("big", at / "way")
    (at / "early").touch()
    os.utime(at / "early", ns=(0, -5_500_000_000))
    (at / "noted").write_bytes(b"noted")
    os.setxattr(at / "noted", "user.note", b"kept")
    os.utime(at / "noted", ns=(0, 1_700_000_000_123_456_789))
    os.setxattr(at / "d", "user.note", b"of a directory")
    os.mknod(at / "socket", 0o600 | stat.S_IFSOCK)


@pytest.fixture
def base(store):
    return store.register(BASE)


@pytest.fixture
def box(store, base):
    made = store.create_rw_layer("box", base)
    with made.mounted() as path:
        fill(path)
    return made


@pytest.fixture
def snapshot(box):
    return box.snapshot()


def upper(thing):
    return Path(thing.metadata()["UpperDir"])


def test_the_directory_is_the_layers_to_the_last_attribute(store, snapshot):
    tar, before = read(snapshot.tar_stream()), disk_state(upper(snapshot))
    layer = snapshot.commit()
    assert upper(layer) == upper(snapshot)
    assert changed(before, disk_state(upper(layer))) == []
    assert comes_back(layer, tar)
    assert layer.diff_id == tarkit.diff_id(tar)
    assert layer.diff_size == snapshot.size()
    assert store.verify() == []
    assert store.orphans() == []


def test_a_box_on_it_shows_what_no_tar_says(store, snapshot):
    layer = snapshot.commit()
    for parent in (layer, snapshot):
        with store.create_rw_layer(f"on {parent!r}"[:20].replace("<", "").replace(">", ""), parent) as rw, rw.mounted() as path:
            assert os.getxattr(f"{path}/noted", "user.note") == b"kept"
            assert os.stat(f"{path}/noted").st_mtime_ns == 1_700_000_000_123_456_789
            assert stat.S_ISSOCK(os.lstat(f"{path}/socket").st_mode)
            assert os.listdir(f"{path}/old") == ["y"]


def test_it_is_mended_from_its_tar(store, snapshot):
    layer = snapshot.commit()
    tar = tar_of(layer)
    at = upper(layer)
    (at / "early").unlink()
    (at / "noted").write_bytes(b"NOTED")
    (at / "d/kept").chmod(0o600)
    (at / "big").unlink()
    (at / "added").touch()
    os.removexattr(at / "old", "trusted.overlay.opaque")
    told = {(one.kind, one.path) for one in store.verify(layer.chain_id)}
    assert {("missing", "early"), ("content", "noted"), ("metadata", "d/kept"), ("missing", "big"), ("orphan", "added"),
            ("missing", "old/.wh..wh..opq")} <= told  # fmt: skip
    with pytest.raises(CorruptLayerError):
        store.repair(layer.chain_id, file("another", b"tar") + end())
    store.repair(layer.chain_id, io.BytesIO(tar))
    assert store.verify() == []
    assert comes_back(layer, tar)
    assert os.getxattr(at / "d", "user.note") == b"of a directory"


def test_it_is_mended_where_its_record_is_gone(store, root, snapshot):
    """The files are known to have come first by their directory, whatever the record is."""
    layer = snapshot.commit()
    tar = tar_of(layer)
    (root / LAYERDB / "sha256" / layer.chain_id.encoded / "tar-split.json.gz").unlink()
    store.repair(layer.chain_id, io.BytesIO(tar))
    assert store.verify() == []
    assert os.getxattr(upper(layer) / "noted", "user.note") == b"kept"


def test_what_the_tar_leaves_out_is_told(snapshot):
    with pytest.warns(layerstore.LeftOutWarning, match="extended attributes of 2 files .*; 1 socket .*; the layer's own files keep them") as told:
        snapshot.commit()
    assert len(told) == 1


def test_an_image_of_it_is_saved_and_loaded(store, open_store, room, snapshot):
    layer = snapshot.commit()
    images = Images(store)
    images.create(layer, {"architecture": "amd64", "os": "linux"}, tags="box:1")
    images.save("box:1", room / "box.tar")
    other = open_store(room / "other")
    loaded = Images(other).load(room / "box.tar")[0]
    assert loaded.top == layer.chain_id
    assert other.verify() == []
    with other.get(loaded.top) as copy:
        assert comes_back(copy, tar_of(layer))


def test_a_name_that_would_be_a_mark_leaves_the_snapshot(store, box):
    with box.mounted() as path:
        Path(path, "d/.wh.kept").touch()
    snapshot = box.snapshot()
    with pytest.raises(BreakoutError, match=r"begins with \.wh\."):
        snapshot.commit()
    assert store.snapshots() == [snapshot]
    assert snapshot.layer.diff_id == tarkit.diff_id(BASE)
    assert store.verify() == []
    assert store.orphans() == []


def test_another_process_verifies_it(snapshot, root):
    chain = snapshot.commit().chain_id
    said = another.python("import sys, layerstore\nwith layerstore.Store(sys.argv[1]) as s: print(s.verify(), s.get(sys.argv[2]).diff_size > 0)", root, chain)
    assert said == "[] True\n"


def test_the_mark_is_told_nowhere(snapshot):
    """Docker does not look at it, and what metadata() names is the same."""
    layer = snapshot.commit()
    home = upper(layer).parent
    assert sorted(os.listdir(home)) == ["committed", "diff", "link", "lower", "work"]
