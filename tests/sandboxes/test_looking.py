"""Looking without a mount: changes since an ancestor, diff of any two, files and open, usage."""

import os

import pytest
import tarkit
from boxes import write

from layerstore import Images, LayerStoreError


# ---- since ---------------------------------------------------------------------------------------
def test_since_what_is_not_below(store, base, box, snap):
    other = store.register(tarkit.T1)
    fork = snap.fork("fork")
    later = fork.snapshot()
    for since in (other, other.chain_id, later, later.id):
        with pytest.raises(LayerStoreError, match="is not below"):
            box.changes(since=since)
    assert fork.changes(since=later) == [] and later.changes(since=base)[0].path == "/one"
    assert snap.changes(since=snap) == []
    assert later.changes() == []


def test_since_a_layer_further_down(store, base, box):
    write(box, "one")
    top = box.snapshot().commit()
    upper = store.register(tarkit.file("two", b"2") + tarkit.whiteout("top") + tarkit.end(), top)
    with store.create_rw_layer("high", upper) as high:
        write(high, "three")
        assert [str(line) for line in high.changes()] == ["A /three"]
        assert sorted(map(str, high.changes(since=top))) == ["A /three", "A /two", "D /top"]
        assert sorted(map(str, high.changes(since=base))) == ["A /one", "A /three", "A /two", "D /top"]
        assert sorted(map(str, store.diff(high.base, base))) == ["A /top", "D /one", "D /two"]


# ---- looking -------------------------------------------------------------------------------------
def test_files_and_open_show_the_merged_tree_without_a_mount(store, box, snap):
    with box.mounted() as path:
        os.unlink(f"{path}/top")
        os.symlink("etc/hosts", f"{path}/link")
        os.symlink("/../../../../etc/hosts", f"{path}/out")
        os.symlink("loop", f"{path}/loop")
        os.symlink("etc", f"{path}/dir")
    entries = {entry.path: entry for entry in box.files()}
    assert {"one", "etc", "etc/hosts", "link", "old/one"} <= entries.keys() and "top" not in entries
    assert entries["one"].crc is None and entries["one"].offset is None and entries["etc/hosts"].size == 5000
    for name in ("etc/hosts", "/etc/hosts", "link", "/out", "dir/hosts"):
        with box.open(name) as content:
            assert content.read() == b"127.0.0.1\n" * 500
    with box.open("one") as content:
        assert content.read() == b"1" and content.seek(0) == 0
    for name in ("top", "no/such", "one/below"):
        with pytest.raises((FileNotFoundError, NotADirectoryError)) as error:
            box.open(name)
        assert error.value.filename
    for name in ("etc", "/", "dir"):
        with pytest.raises(IsADirectoryError):
            box.open(name)
    with pytest.raises(OSError):
        box.open("loop")


def test_diff_of_any_two(store, base, box, snap):
    write(box, "two")
    second = box.snapshot()
    other = store.register(tarkit.file("else", b"1") + tarkit.end())
    image = Images(store).create(base.chain_id, {}, tags="an:image")
    assert [str(line) for line in store.diff(snap, second)] == ["A /two"]
    assert [str(line) for line in store.diff(second.id, snap)] == ["D /two"]
    assert store.diff(second, second) == [] and store.diff(image, base) == []
    assert {str(line) for line in store.diff(base, other)} == {"A /else", "D /etc", "D /top", "D /old"}
    assert sorted(str(line) for line in store.diff("", snap)) == ["A /etc", "A /etc/hosts", "A /old", "A /old/one", "A /one", "A /top"]
    assert {str(line) for line in store.diff(snap, "")} == {"D /etc", "D /top", "D /old", "D /one"}


def test_diff_by_contents(store, box):
    with box.mounted() as path:
        for name in ("same", "touched", "other"):
            with open(f"{path}/{name}", "w") as out:
                out.write("bytes")
            os.utime(f"{path}/{name}", (5, 5))
    first = box.snapshot()
    with box.mounted() as path:
        os.utime(f"{path}/touched", (6, 6))
        with open(f"{path}/other", "w") as out:
            out.write("BYTES")
        os.utime(f"{path}/other", (5, 5))
    second = box.snapshot()
    assert [str(line) for line in store.diff(first, second)] == ["C /touched"]
    assert [str(line) for line in store.diff(first, second, contents=True)] == ["C /other"]


def test_usage_counts_each_thing_once(store, base, box, snap, directories):
    store.usage()
    empty = store.usage()
    assert empty.snapshots >= 4096 and empty.layers > 0 and empty.orphans == 0
    fork = snap.fork("fork")
    write(fork, "big", "x" * 100_000)
    more = store.usage()
    assert more.snapshots == empty.snapshots and more.writable - empty.writable >= 100_000
    fork.release()
    box.release()
    freed = store.usage()
    assert freed.reclaimable >= freed.snapshots > 0
    before = freed.snapshots + freed.layers + freed.writable
    store.remove(snap)
    after = store.usage()
    assert after.snapshots == 0 and before - (after.layers + after.writable) >= empty.snapshots


def test_a_snapshot_is_counted_as_orphan_never(store, box, snap):
    snap.release()
    assert store.usage().orphans == 0 and store.usage().snapshots > 0
