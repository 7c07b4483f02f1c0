"""Boxes on images: what they write, their changes, commits, snapshots, forks, squashes and rollbacks."""

import os
from pathlib import Path

import disk
import erofsreader
import kit
import pytest
import tarkit

import layerstore

BASE = (
    tarkit.dir("etc/", mtime=5) + tarkit.file("etc/hosts", b"localhost", mtime=7) + tarkit.file("etc/passwd", b"root", mode=0o600, uid=3, mtime=8) + tarkit.dir("var/", mode=0o1777) + tarkit.dir("var/log/")
    + tarkit.file("var/log/one", b"1" * 5000) + tarkit.hardlink("var/log/two", "var/log/one") + tarkit.symlink("link", "etc/hosts") + tarkit.fifo("pipe") + tarkit.node("null", "c", 1, 3) + tarkit.end()
)  # fmt: skip


@pytest.fixture
def base(store):
    return store.register(BASE)


def changes(box, since=None):
    return [str(change) for change in (box.changes() if since is None else box.changes(since))]


def edit(place):
    place = Path(place)
    (place / "new").write_text("new")
    (place / "etc/hosts").write_text("changed")
    (place / "etc/passwd").unlink()
    for name in ("one", "two"):
        (place / "var/log" / name).unlink()
    (place / "var/log").rmdir()
    (place / "var/log").mkdir()
    (place / "var/log/three").write_text("3")
    os.chmod(place / "var", 0o755)
    os.rename(place / "link", place / "moved")


EDITED = ["C /etc", "C /etc/hosts", "D /etc/passwd", "D /link", "A /moved", "A /new", "C /var", "C /var/log", "D /var/log/one", "A /var/log/three", "D /var/log/two"]


def test_changes(store, base):
    box = store.create_rw_layer("box", base.chain_id)
    assert changes(box) == []
    with box.mounted() as place:
        edit(place)
        during = changes(box)
    assert sorted(changes(box)) == sorted(during) == sorted(EDITED)
    assert box.size() == 3 + 7 + 1 + len("etc/hosts")


def test_changes_by_touching(store, base):
    box = store.create_rw_layer("box", base.chain_id)
    with box.mounted() as place:
        os.utime(f"{place}/etc/hosts", ns=(7 * 10**9, 7 * 10**9))      # copied up and as it was
        os.chmod(f"{place}/etc/passwd", 0o600)
        os.utime(f"{place}/etc", (1, 1))
    assert changes(box) == []
    with box.mounted() as place:
        os.utime(f"{place}/etc/hosts", (9, 9))
        os.chown(f"{place}/etc/passwd", 4, 0)
        os.chmod(f"{place}/null", 0o600)
    assert sorted(changes(box)) == ["C /etc", "C /etc/hosts", "C /etc/passwd", "C /null"]


def test_commit_is_the_upper_as_a_layer(store, base, open_store, room):
    box = store.create_rw_layer("box", base.chain_id)
    with box.mounted() as place:
        edit(place)
        shown = disk.disk_state(place)
    with box.tar_stream() as stream:
        tar = stream.read()
    layer = box.commit()
    assert layer.tar_stream().read() == tar and layer.parent.chain_id == base.chain_id
    assert kit.read(layer).tar == tar and store.verify() == []
    with store.create_rw_layer("again", layer.chain_id) as again, again.mounted() as place:
        assert disk.changed(shown, disk.disk_state(place)) == []
    assert changes(box, layer.parent.chain_id) == changes(box)
    other = open_store(room / "other", driver="overlay2")
    parent = other.register(BASE)
    with other.register(tar, parent.chain_id) as copied, other.create_rw_layer("again", copied.chain_id) as again, again.mounted() as place:
        assert disk.changed(shown, disk.disk_state(place)) == []


def test_commit_while_mounted(store, base):
    box = store.create_rw_layer("box", base.chain_id)
    with box.mounted() as place:
        Path(place, "f").write_text("x")
        layer = box.commit()
        Path(place, "g").write_text("y")
    assert [entry.name for entry in layer.files()] == ["f"]
    assert layer.diff_size == 1


def test_snapshots_and_rollback(store, base):
    box = store.create_rw_layer("box", base.chain_id)
    with box.mounted() as place:
        place = Path(place)
        (place / "a").write_text("1")
        one = box.snapshot()
        (place / "a").write_text("2")
        (place / "etc/hosts").unlink()
        two = box.snapshot()
        (place / "b").write_text("3")
        fork = one.fork("fork")
        with fork.mounted() as other:
            assert Path(other, "a").read_text() == "1" and Path(other, "etc/hosts").read_text() == "localhost"
        box.rollback(one)
        assert (place / "a").read_text() == "1" and not (place / "b").exists() and (place / "etc/hosts").read_text() == "localhost"
        box.rollback(two)
        assert (place / "a").read_text() == "2" and not (place / "etc/hosts").exists()
        box.rollback(base.chain_id)
        assert not (place / "a").exists()
    assert sorted(map(str, one.changes())) == ["A /a"]
    assert sorted(map(str, two.changes())) == ["C /a", "C /etc", "D /etc/hosts"]
    assert sorted(map(str, store.diff(one.id, two.id))) == ["C /a", "C /etc", "D /etc/hosts"]
    with one.tar_stream() as stream:
        tar = stream.read()
    layer = one.commit()
    assert layer.tar_stream().read() == tar and kit.read(layer).tar == tar
    with fork.mounted() as other:
        assert Path(other, "a").read_text() == "1"
    squashed = two.commit(squash=True)
    assert squashed.parent is not None
    with store.create_rw_layer("s", squashed.chain_id) as s, s.mounted() as other:
        assert Path(other, "a").read_text() == "2" and not Path(other, "etc/hosts").exists()
    assert store.verify() == []
    fork.release(), box.release()
    for snapshot in store.snapshots():
        snapshot.release()
    store.cleanup()
    assert store.orphans() == [] and store.verify() == []


def test_a_deep_box_is_squashed(store, base):
    box = store.create_rw_layer("box", base.chain_id)
    with box.mounted() as place:
        for n in range(60):
            Path(place, f"f{n}").write_text(str(n))
            box.snapshot().release()
        box.squash()
        assert sorted(os.listdir(place)) == sorted([f"f{n}" for n in range(60)] + ["etc", "var", "link", "pipe", "null"])
    assert sorted(changes(box)) == sorted(f"A /f{n}" for n in range(60))


def test_apply_diff(store, base):
    box = store.create_rw_layer("box", base.chain_id)
    box.apply_diff(tarkit.file("etc/new", b"n") + tarkit.whiteout("etc/hosts") + tarkit.dir("var/log/") + tarkit.opaque("var/log") + tarkit.file("var/log/x", b"x") + tarkit.end())
    assert sorted(changes(box)) == sorted(["C /etc", "A /etc/new", "D /etc/hosts", "C /var", "C /var/log", "D /var/log/one", "D /var/log/two", "A /var/log/x"])
    with box.mounted() as place:
        assert sorted(os.listdir(f"{place}/etc")) == ["new", "passwd"] and os.listdir(f"{place}/var/log") == ["x"]


def test_diff_of_layers(store, base):
    top = store.register(tarkit.T2, base.chain_id)
    other = store.register(tarkit.dir("etc/", mtime=5) + tarkit.file("etc/hosts", b"otherhost", mtime=9) + tarkit.whiteout("link") + tarkit.dir("var/") + tarkit.opaque("var") + tarkit.end(), top.chain_id)
    found = [str(change) for change in store.diff(base.chain_id, other.chain_id)]
    assert {"C /etc", "C /etc/hosts", "D /link", "C /var", "D /var/log", "A /b", "A /gone", "A /a", "A /d"} <= set(found)
    assert not any(line.endswith(("passwd", "pipe", "null")) for line in found)
    back = [str(change) for change in store.diff(other.chain_id, base.chain_id)]
    assert {"A /link", "D /b", "A /var/log", "A /var/log/one"} <= set(back)
    assert store.diff(other.chain_id, other.chain_id) == []
    assert disk.mounts_below(store.root) == []
    same = store.register(tarkit.file("etc/hosts", b"localhost", mtime=99) + tarkit.end(), base.chain_id)
    assert [str(c) for c in store.diff(base.chain_id, same.chain_id, contents=True)] == []


def test_files_and_opening(store):
    layer = store.register(BASE)
    entries = list(layer.files())
    assert [entry.name for entry in entries] == ["etc/", "etc/hosts", "etc/passwd", "var/", "var/log/", "var/log/one", "var/log/two", "link", "pipe", "null"]
    for name, expected in (("etc/hosts", b"localhost"), ("link", b"localhost"), ("var/log/two", b"1" * 5000), ("/etc/hosts", b"localhost"), ("var/../etc/hosts", b"localhost")):
        with layer.open(name) as file:
            assert file.read() == expected, name
    for name in ("nothing", "etc", "pipe", "null", "etc/hosts/x"):
        with pytest.raises((OSError, layerstore.LayerStoreError)):
            layer.open(name)


def test_tar_streams_seek(store):
    layer = store.register(BASE)
    with layer.tar_stream() as stream:
        assert stream.seekable() and stream.size == len(BASE)
        stream.seek(700)
        assert stream.read(900) == BASE[700:1600] and stream.tell() == 1600
        stream.seek(-10, os.SEEK_END)
        assert stream.read() == BASE[-10:]
        stream.seek(0)
        assert stream.read() == BASE
        assert stream.read() == b""


def test_export(store, room):
    base = store.register(BASE)
    top = store.register(tarkit.dir("etc/", mtime=5) + tarkit.whiteout("etc/hosts") + tarkit.dir("var/", mode=0o1777) + tarkit.dir("var/log/") + tarkit.opaque("var/log/") + tarkit.file("var/log/n", b"n" * 600) + tarkit.end(), base.chain_id)
    target = room / "out.erofs"
    size = top.export_erofs(target)
    assert target.stat().st_size == size
    with store.create_rw_layer("box", top.chain_id) as box, box.mounted() as place:
        shown = {os.fsdecode(k): v for k, v in disk.disk_state(place, times=True).items()}
    with kit.seen_by_kernel(target, room / "at") as at:
        exported = {os.fsdecode(k): v for k, v in disk.disk_state(at, times=True).items()}
    assert exported[""] == ("dir", "0o755", 0, 0, (), 0)
    shown[""] = exported[""]        # a box's root has the time of the box
    assert disk.changed({k.encode(): v for k, v in shown.items()}, {k.encode(): v for k, v in exported.items()}) == []
    image = erofsreader.read(target, own=False)
    assert set(image.tree) == set(shown) and not any(node.is_whiteout or "trusted.overlay.opaque" in node.xattrs for node in image.tree.values())
    again = room / "again.erofs"
    top.export_erofs(again)
    assert again.read_bytes() == target.read_bytes()
