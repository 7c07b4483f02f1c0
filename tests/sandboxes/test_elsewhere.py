"""The same in a user namespace, in the child of a fork, with damaged files, and where calls of the kernel fail.

Enters: a root that something is wrong with, or a process that may do less. Leaves: an error that names what is wrong, and all
else as it was.
"""

import os
import subprocess

import disk
import pytest
import tarkit
from another import ENVIRONMENT, command
from boxes import is_clone, shown, tar_of, write
from driven import DRIVER, FILES

from layerstore import LayerDoesNotExistError, LayerStoreError, Store

COURSE = r"""
import os, shutil, sys
from pathlib import Path
import layerstore, tarkit
from driven import DRIVER, FILES
store = layerstore.Store(sys.argv[1])
base = store.register(tarkit.dir("etc/") + tarkit.file("etc/hosts", b"h") + tarkit.dir("old/") + tarkit.file("old/one", b"1") + tarkit.file("top", b"t") + tarkit.end())
box = store.create_rw_layer("box", base)
path = box.mount()
Path(path, "one").write_text("1")
os.unlink(f"{path}/top")
shutil.rmtree(f"{path}/old")
os.mkdir(f"{path}/old")
first = box.snapshot()
assert box.base.id == first.id, "frozen where it is"
lines = ["C /old", "D /old/one", "A /one", "D /top"]
assert sorted(map(str, box.changes())) == sorted(lines), box.changes()
assert os.listdir(f"{path}/old") == [] and not os.path.exists(f"{path}/top")
Path(path, "two").write_text("2")
with open(f"{path}/held", "w"):
    clone = box.snapshot()
    assert box.base.id == first.id
    assert sorted(os.listdir(clone.metadata()["UpperDir"])) == ["held", "two"]
    try:
        box.rollback(first)
        raise SystemExit("rolled back under an open file")
    except layerstore.ActiveMountError as error:
        assert [one.pid for one in error.holders] == [os.getpid()]
box.rollback(first)
assert not os.path.exists(f"{path}/two") and os.path.exists(f"{path}/one")
for n in range(3):
    Path(path, f"n{n}").write_text("n")
    box.snapshot().release()
box.squash()
assert {"one", "n0", "n1", "n2"} <= set(os.listdir(path)) and not os.path.exists(f"{path}/top")
fork = clone.fork("fork")
with fork.mounted() as other:
    assert Path(other, "two").read_text() == "2" and os.listdir(f"{other}/old") == []
tar = box.tar_stream().read()
layer = clone.commit()
assert layer.parent.parent.chain_id == base.chain_id
box.unmount()
assert store.verify() == [] and store.orphans() == []
for thing in (box, fork, first, clone):
    thing.release()
print("well")
"""


@pytest.mark.only("overlay2", "no image is mounted in a user namespace")
def test_in_a_user_namespace(room):
    (room / "docker").mkdir()
    done = subprocess.run(command(COURSE, room / "docker", front=("unshare", "--user", "--map-root-user", "--mount")), capture_output=True,
                          text=True, check=False, env=ENVIRONMENT)  # fmt: skip
    assert done.returncode == 0 and done.stdout == "well\n", done.stderr
    assert disk.mounts_below(room) == []


def test_the_child_of_a_fork_holds_for_itself(store, root, box):
    write(box, "one", "1")
    snap = box.snapshot()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            write(box, "child", "c")
            second = box.snapshot()
            assert box.base.id == second.id and second.fork("of the child").name
            with box.mounted() as path:
                assert box.snapshot().box == "box" and os.path.exists(f"{path}/child")
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert store.snapshots()[0].id == snap.id and len(store.snapshots()) == 3
    assert shown(box)["child"] == "c" and "of the child" in store.mounts()
    assert box.release() == [] and snap.release() == []
    assert store.verify() == [] and store.orphans() == []


def test_a_parent_that_forked_while_threads_of_the_store_work(store, box):
    path = box.mount()
    for number in range(20):
        for n in range(50):
            with open(f"{path}/{n}", "w") as out:
                out.write(str(number))
        box.snapshot().release()
        pid = os.fork()
        if not pid:
            os._exit(0 if box.changes() and box.size() else 1)
        assert os.waitpid(pid, 0)[1] == 0
    box.unmount()
    assert store.orphans() == []


# ---- damage --------------------------------------------------------------------------------------
@pytest.fixture
def stacked(store, box):
    write(box, "one", "1")
    first = box.snapshot()
    write(box, "two", "2")
    second = box.snapshot()
    write(box, "three", "3")
    return first, second


@pytest.mark.parametrize("text", ["", "garbage", "l/AAAAAAAAAAAAAAAAAAAAAAAAAA", "l/..", "l/../../../etc", "\0" * 50, "l/" + "A" * 5000, "l/:" * 40])
def test_a_damaged_lower_is_named_and_hurts_one_box_only(store, open_store, root, box, stacked, home, text):
    other = store.create_rw_layer("other", stacked[0])
    id = store.get_mount_id("box")
    (home(id) / "lower").write_text(text)
    store.close()
    again = open_store(root)
    box, other = again.get_rw_layer("box"), again.get_rw_layer("other")
    for call in (box.mount, box.snapshot, box.changes, lambda: tar_of(box), lambda: list(box.files()), lambda: box.changes(since=stacked[0].id), box.squash):
        with pytest.raises((LayerStoreError, OSError)) as error:
            call()
        assert "lower" in str(error.value) or id in str(error.value) or "box" in str(error.value), error.value
    assert {"one"} <= shown(other).keys()
    assert [one.id for one in again.snapshots()] == [one.id for one in stacked]
    problems = again.verify()
    assert [problem for problem in problems if problem.subject == "box" and id in problem.detail], problems
    second = again.get_snapshot(stacked[1].id)
    assert {"one", "two"} <= shown(second.fork("fork")).keys()
    assert disk.mounts_below(root) == []


@pytest.mark.parametrize("name", ["box", "created", "parent"])
@pytest.mark.parametrize("text", [None, "", "garbage\0"])
def test_a_damaged_record_hurts_no_other(store, open_store, root, box, stacked, record, name, text):
    path = record(stacked[0]) / name
    path.unlink() if text is None else path.write_text(text)
    store.close()
    again = open_store(root)
    assert stacked[1].id in [one.id for one in again.snapshots()]
    assert {"one", "two", "three"} <= shown(again.get_rw_layer("box")).keys()
    again.cleanup()
    assert again.orphans() == [], "what a box stands on is nobody's orphan"
    assert {"one", "two", "three"} <= shown(again.get_rw_layer("box")).keys()


def test_a_record_without_its_directory(store, open_store, root, box, stacked, home):
    third = box.snapshot()
    box.rollback(stacked[0])
    disk.remove_tree(home(third))
    store.close()
    again = open_store(root)
    assert {"one"} <= shown(again.get_rw_layer("box")).keys()
    assert [problem for problem in again.verify() if third.id in str(problem)] != []
    with pytest.raises((LayerStoreError, OSError)):
        again.create_rw_layer("fork", third.id)
    assert again.mounts() == ["box"]
    assert again.get_snapshot(third.id).release() == []
    again.cleanup()         # the link without a directory
    assert again.verify() == []


def test_a_layer_file_that_names_no_layer_is_void(store, open_store, root, box, stacked, record):
    (record(stacked[1]) / "layer").write_text("sha256:" + "1" * 64)
    store.close()
    again = open_store(root)
    snap = again.get_snapshot(stacked[1].id)
    assert again.get_rw_layer("box").base.id == snap.id
    with pytest.raises(LayerDoesNotExistError):
        again.get(snap.id)
    layer = snap.commit()
    assert again.get(snap.id).chain_id == layer.chain_id and again.verify() == []


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_verify_tells_of_a_committed_file_that_was_changed(store, stacked, home):
    layer = stacked[1].commit()
    (home(stacked[1]) / FILES / "two").write_text("X")
    assert [(problem.kind, problem.path) for problem in store.verify(layer.chain_id)] == [("content", "two")]


# ---- no space, no inodes -------------------------------------------------------------------------
@pytest.mark.parametrize("mounted", [False, True])
def test_a_full_disk_leaves_the_box_as_it_was(room, mounted):
    with disk.sized_file_system(room, "tmpfs", size=8 << 20, inodes=300) as place, Store(place / "docker") as store:
        box = store.create_rw_layer("box", store.register(tarkit.T1))
        write(box, "one", "1")
        path = box.mount() if mounted else None
        with open(place / "filler", "wb") as out:
            out.write(b"x")
        names = []
        with pytest.raises(OSError):
            for number in range(400):
                names.append(place / f"i{number}")
                names[-1].touch()
        failed = 0
        for give in (0, 1, 2, 3, 4, 5, 6, 8, 10, 12):
            for name in names[-1 - give :]:
                name.unlink(missing_ok=True)
            names = [name for name in names if name.exists()]
            known = len(store.snapshots())
            try:
                snap = box.snapshot()
            except OSError:
                failed += 1
                assert len(store.snapshots()) == known
                with box.open("one") as content:
                    assert content.read() == b"1"
            else:
                snap.release()
            with pytest.raises(OSError):
                for number in range(400):
                    names.append(place / f"j{give}-{number}")
                    names[-1].touch()
        assert failed
        for name in names:
            name.unlink(missing_ok=True)
        assert box.snapshot().box == "box" and shown(box)["one"] == "1"
        if path:
            box.unmount()
        store.cleanup()
        assert store.verify() == [] and store.orphans() == []


def test_a_clone_that_finds_no_space_leaves_nothing(room):
    with disk.sized_file_system(room, "tmpfs", size=16 << 20) as place, Store(place / "docker") as store:
        box = store.create_rw_layer("box", store.register(tarkit.T1))
        path = box.mount()
        with open(f"{path}/big", "wb") as out:
            out.write(os.urandom(10 << 20))
            before = disk.inventory(place / "docker" / DRIVER)
            with pytest.raises(OSError):
                box.snapshot()
            assert store.snapshots() == [] and box.base.chain_id == box.parent.chain_id
            assert disk.inventory(place / "docker" / DRIVER) == before
            out.write(b"on")
        assert not is_clone(box, box.snapshot())
        box.unmount()
        assert store.orphans() == []
