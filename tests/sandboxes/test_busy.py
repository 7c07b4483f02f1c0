"""Boxes in use: who is inside, what they notice of a snapshot (nothing), what is refused, and what a clone has of the upper.

Enters: a use of a mounted box by another process, by each way that the kernel has. Leaves: a snapshot. Who can still write
makes it a clone; who only reads does not, and goes on reading what was there.
"""

import contextlib
import os
import shutil
import subprocess
import threading
import time

import disk
import inside
import pytest
from another import at_work
from boxes import answer, child, is_clone, shown, write
from driven import FILES
from inside import INSIDE, READING, using
from machine import needs
from soak import budget
from stored import at_once

import layerstore
from layerstore import ActiveMountError, Holder

PLACES = ("process", "thread", "namespace", "bind")        # a mapping is of all threads
HOSTS = "127.0.0.1\n" * 500


# ---- who is inside -------------------------------------------------------------------------------
@pytest.mark.parametrize("use, place", [(use, place) for use in INSIDE for place in PLACES if place != "thread" or "map" not in use])
def test_who_can_write_notices_nothing(store, box, base, use, place, home):
    write(box, "before", "1")
    path = box.mount()
    upper = box.metadata()
    with using(path, use, place) as process:
        word, told, made = INSIDE[use]
        found = [one for one in box.holders() if one.pid == process.pid]
        assert [(one.uses, one.paths) for one in found] == [((word,), (told,))]
        with pytest.raises(ActiveMountError) as error:
            box.snapshot(busy="error")
        assert process.pid in [one.pid for one in error.value.holders] and store.snapshots() == []
        snap = box.snapshot()
        assert is_clone(box, snap) and box.base.chain_id == base.chain_id and box.metadata() == upper
        frozen = disk.disk_state(home(snap) / FILES, times=True)
        assert inside.write(process) == "None"
        if made:
            with open(f"{path}/{made}") as content:
                assert "by the child" in content.read(), "written by its use, read at the path"
        write(box, "after", "2")
        assert disk.disk_state(home(snap) / FILES, times=True) == frozen, "nothing changes what is frozen"
        with pytest.raises(ActiveMountError):
            box.rollback(snap)
        assert [str(line) for line in box.changes(since=snap)][-1:] != []
    second = box.snapshot()
    assert not is_clone(box, second), "nobody is inside any more"
    with snap.fork("fork") as fork:
        assert shown(fork)["before"] == "1" and "after" not in shown(fork)
    box.unmount()
    assert disk.mount_line(path) is None


@pytest.mark.parametrize("use, place", [(use, place) for use in READING for place in ("process", "thread") if place != "thread" or "map" not in use])
def test_who_only_reads_goes_on_reading_and_the_upper_itself_is_frozen(store, box, use, place, home):
    path = box.mount()
    write(box, "etc/hosts", HOSTS)
    inode = os.stat(box.metadata()["UpperDir"]).st_ino
    with using(path, use, place) as process:
        before = inside.read(process)
        snap = box.snapshot()
        assert not is_clone(box, snap) and os.stat(snap.metadata()["UpperDir"]).st_ino == inode
        frozen = disk.disk_state(home(snap) / FILES, times=True)
        write(box, "etc/hosts", "changed")
        assert inside.read(process) == before, "what it has open stays what it was"
        with open(f"{path}/etc/hosts") as content:
            assert content.read() == "changed"
        assert disk.disk_state(home(snap) / FILES, times=True) == frozen
    box.unmount()
    assert disk.mounts_below(os.path.dirname(path)) == []


@pytest.mark.parametrize("use", READING)
def test_a_copy_of_the_mount_is_inside_whoever_uses_it(box, use):
    path = box.mount()
    write(box, "one")
    with using(path, use, "namespace"):
        assert is_clone(box, box.snapshot())
    box.unmount()


def test_a_program_that_was_started_from_the_box_keeps_its_text(box):
    path = box.mount()
    shutil.copy("/bin/sleep", f"{path}/sleep")
    with subprocess.Popen([f"{path}/sleep", "100"]) as process:
        time.sleep(0.05)
        [found] = box.holders()
        assert (found.pid, found.command, found.uses, found.paths) == (process.pid, "sleep", ("map",), ("/sleep",))
        snap = box.snapshot()
        assert not is_clone(box, snap) and process.poll() is None
        with pytest.raises(ActiveMountError) if box.holders() else contextlib.nullcontext():
            box.unmount()
        process.kill()
    if disk.mount_line(path):
        box.unmount()


def test_our_own_descriptors_count_and_the_stores_do_not(box):
    path = box.mount()
    before = disk.open_files()
    for _ in range(3):
        assert box.holders() == [] and not is_clone(box, box.snapshot())
        list(box.files()), box.changes(), box.size(), box.squash()
    until = time.monotonic() + 5              # what ended is closed by a thread of the store
    while disk.open_files() != before and time.monotonic() < until:
        time.sleep(0.01)
    assert disk.open_files() == before, "no descriptor is kept"
    with open(f"{path}/mine", "w"):
        assert [(one.pid, one.uses, one.paths) for one in box.holders()] == [(os.getpid(), ("write",), ("/mine",))]
        assert is_clone(box, box.snapshot())
    with open(f"{path}/mine"):
        assert not is_clone(box, box.snapshot())
    box.unmount()


def test_a_mount_in_the_box_and_a_bind_of_it_are_inside(room, box):
    path = box.mount()
    os.mkdir(f"{path}/below")
    disk.mount("tmpfs", f"{path}/below", "tmpfs")
    try:
        assert is_clone(box, box.snapshot())
        with pytest.raises(ActiveMountError):
            box.rollback(box.parent)
    finally:
        disk.unmount(f"{path}/below", 0)
    assert not is_clone(box, box.snapshot())
    os.mkdir(room / "bind")
    disk.mount(path, room / "bind", "", inside.MS_BIND)
    try:
        assert [one.pid for one in box.holders()] == [0]
        with pytest.raises(ActiveMountError) as error:
            box.snapshot(busy="error")
        assert [(one.pid, one.command) for one in error.value.holders] == [(0, "kernel")]
        snap = box.snapshot()
        assert is_clone(box, snap)
        (room / "bind/through").write_text("the bind")
        with open(f"{path}/through") as content:
            assert content.read() == "the bind"
        with pytest.raises(ActiveMountError) as error:
            box.unmount()
        assert [one.pid for one in error.value.holders] == [0]
    finally:
        disk.unmount(room / "bind", 0)
    assert not is_clone(box, box.snapshot())
    box.unmount()


def test_a_loop_device_is_a_use_of_the_kernel(box):
    path = box.mount()
    with open(f"{path}/image", "wb") as out:
        out.truncate(1 << 20)
    made = subprocess.run(["losetup", "--find", "--show", f"{path}/image"], capture_output=True, text=True, check=False)
    needs("free loop device", there=made.returncode == 0)
    try:
        assert [(one.pid, one.command) for one in box.holders()] == [(0, "kernel")]
        assert is_clone(box, box.snapshot())
        with pytest.raises(ActiveMountError):
            box.unmount()
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)
        for _ in range(500):
            if not box.holders():
                break
            time.sleep(0.01)
    assert not is_clone(box, box.snapshot())
    box.unmount()


def test_holders_of_many(box):
    path = box.mount()
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(using(path, use)) for use in ("cwd", "write", "read", "shared map")]
        fds = [os.open(f"{path}/{n:02}", os.O_CREAT | os.O_WRONLY) for n in range(20)]
        try:
            found = box.holders()
        finally:
            for fd in fds:
                os.close(fd)
        assert [one.pid for one in found] == sorted([os.getpid(), *(each.pid for each in processes)])
        mine = next(one for one in found if one.pid == os.getpid())
        assert mine.paths == tuple(f"/{n:02}" for n in range(16)) and mine.uses == ("write",)
        assert all(isinstance(one, Holder) for one in found)
        with pytest.raises(ActiveMountError) as error:
            box.unmount()
        assert str(error.value).startswith("box is in use by ") and "and 3 more" in str(error.value)
    box.unmount()
    assert box.holders() == []


# ---- the switch ----------------------------------------------------------------------------------
WORKER = """
import os, sys, time
os.chdir("/")
path = sys.argv[1]
print("ready", flush=True)
n = 0
while True:
    with open(path + "/log", "a") as out:
        out.write(f"{n}\\n")
    assert os.stat(path + "/etc/hosts").st_size == 5000
    with open(path + "/log") as content:
        assert content.read().split()[-1] == str(n)
    with open(path + "/beat", "w") as out:
        out.write(str(n))
    n += 1
"""


def test_a_reader_and_a_writer_at_the_path_lose_nothing(box, store):
    path = box.mount()
    snaps = []
    with at_work(WORKER, path) as process:
        ends = time.monotonic() + 20
        while (len(snaps) < budget(40, 400) or not os.path.exists(f"{path}/log")) and time.monotonic() < ends:
            snaps.append(box.snapshot())
            assert process.poll() is None, "it had an error"
        time.sleep(0.05)
        assert process.poll() is None
    with open(f"{path}/log") as content:
        lines = content.read().split()
    assert lines == [str(n) for n in range(len(lines))] and len(lines) > 10
    counts = []
    for snap in snaps[:: max(1, len(snaps) // 10)]:
        with snap.fork("look") as fork:
            text = shown(fork).get("log", "")
            with fork.mounted() as mounted, contextlib.suppress(FileNotFoundError), open(f"{mounted}/log") as content:
                text = content.read()
        seen = text.split("\n")
        assert seen[:-1] == [str(n) for n in range(len(seen) - 1)], "a state that never was"
        counts.append(len(seen))
    assert counts == sorted(counts)
    box.unmount()
    assert disk.mounts_below(path) == [], "nor what was put beneath it and not switched to"


def test_one_mount_at_the_path_whatever_was_done(box, base):
    path = box.mount()
    for _ in range(5):
        box.snapshot()
        box.squash()
        box.rollback(base)
    assert len(disk.mounts_below(path)) == 1
    box.unmount()
    assert disk.mounts_below(path) == []


def test_the_count_stays(box, base):
    path = box.mount()
    assert box.mount() == path
    box.snapshot()
    box.rollback(base)
    box.unmount()
    assert disk.mount_line(path)
    box.unmount()
    assert disk.mount_line(path) is None


NAMESPACE = """
import os, sys
print("ready", flush=True)
path = sys.argv[1]
for line in sys.stdin:
    word = line.strip()
    if word == "cd":
        os.chdir(path)
    print(",".join(sorted(os.listdir(path))), flush=True)
"""


def test_a_slave_namespace_receives_the_switch(room, box):
    subprocess.run(["mount", "--make-shared", str(room.parent)], check=True)
    path = box.mount()
    write(box, "one")
    with child(NAMESPACE, path, front=("unshare", "--mount", "--propagation", "slave")) as process:
        assert "one" in answer(process, "ls")
        snap = box.snapshot()
        write(box, "two")
        assert "two" in answer(process, "ls"), "it sees what the path shows"
        assert not is_clone(box, snap)
        answer(process, "cd")
        second = box.snapshot()
        assert is_clone(box, second), "a copy in use is inside"
        write(box, "three")
        assert "three" in answer(process, "ls")
    assert not is_clone(box, box.snapshot())
    box.unmount()


# ---- rollback by force ---------------------------------------------------------------------------
@pytest.mark.parametrize("use", [use for use in INSIDE if INSIDE[use][2]])
def test_who_is_inside_a_forced_rollback_keeps_all_of_it(store, box, base, use, directories, root):
    path = box.mount()
    write(box, "mine", "1")
    with using(path, use) as process:
        with pytest.raises(ActiveMountError):
            box.rollback(base)
        before = inside.read(process)
        box.rollback(base, force=True)
        assert "mine" not in os.listdir(path) and box.changes() == []
        assert inside.read(process) == before, "whole and writable"
        assert inside.write(process) == "None"
        assert box.changes() == [], "what it writes is not the box's"
        write(box, "after")
        assert len(directories()) == 3 and store.orphans() == [], "theirs is no orphan"
        store.cleanup()
        assert inside.write(process) == "None"
        with layerstore.Store(root) as other:
            assert other.orphans() == [] and len(directories()) == 3
    assert len(directories(2)) == 2, "removed when the last of them has ended"
    assert store.orphans() == []
    box.unmount()


def test_close_does_not_wait_for_them(store, box, base, root, open_store, directories):
    path = box.mount()
    with using(path, "cwd"):
        box.rollback(base, force=True)
        began = time.monotonic()
        store.close()
        assert time.monotonic() - began < 2
        assert len(directories()) == 3
    with open_store(root) as again:
        again.cleanup()
        assert len(directories(2)) == 2


# ---- unmount -------------------------------------------------------------------------------------
def test_a_detached_box_is_not_mounted_again_until_it_is_free(store, open_store, root, box, layerdb):
    path = box.mount()
    write(box, "one", "1")
    mark = layerdb / "mounts/box/detached"
    with using(path, "cwd") as process:
        box.unmount(lazy=True)
        assert disk.mount_line(path) is None
        assert mark.read_text().count(":") == 1
        for handle in (box, open_store(root).get_rw_layer("box")):
            with pytest.raises(ActiveMountError) as error:
                handle.mount()
            assert [one.pid for one in error.value.holders] == [process.pid]
            assert [one.pid for one in handle.holders()] == [process.pid]
        snap = box.snapshot()
        assert is_clone(box, snap)
        assert inside.write(process) == "None"
        assert "etc/made" not in disk.shape(snap.metadata()["UpperDir"])
        with pytest.raises(ActiveMountError):
            box.rollback(snap)
    box.mount()
    assert not mark.exists() and os.path.exists(f"{path}/etc/made")
    box.unmount()


def test_lazy_without_anybody_is_an_unmount(box, layerdb):
    path = box.mount()
    box.unmount(lazy=True)
    assert disk.mount_line(path) is None and not (layerdb / "mounts/box/detached").exists()
    with box.mounted():
        pass


def test_mounted_ends_as_unmount_does(box):
    with pytest.raises(ActiveMountError), box.mounted() as path:
        held = os.open(path, os.O_RDONLY)
    assert disk.mount_line(path)
    os.close(held)
    box.unmount()
    with pytest.raises(ZeroDivisionError), box.mounted() as path:
        held = os.open(path, os.O_RDONLY)
        1 // 0          # noqa: B018
    os.close(held)
    if disk.mount_line(path):
        box.unmount()
    with pytest.raises(ZeroDivisionError), box.mounted() as path:
        1 // 0          # noqa: B018
    assert disk.mount_line(path) is None


def test_a_box_that_is_mounted_in_another_namespace_only(store, root, box, base):
    write(box, "one", "1")
    snap = box.snapshot()
    code = """
import sys, layerstore
store = layerstore.Store(sys.argv[1])
box = store.get_rw_layer("box")
path = box.mount()
print("ready", flush=True)
for line in sys.stdin:
    open(path + "/" + line.strip(), "w").write("theirs")
    print("done", flush=True)
"""
    with child(code, root, front=("unshare", "--mount", "--propagation", "private")) as process:
        for call in (box.mount, lambda: box.rollback(snap), lambda: box.rollback(snap, force=True)):
            with pytest.raises(ActiveMountError):
                call()
        second = box.snapshot()
        assert is_clone(box, second)
        assert answer(process, "two") == "done"
        assert "two" not in disk.shape(second.metadata()["UpperDir"])
        assert [str(line) for line in box.changes(since=second)] == ["A /two"]
    assert shown(box)["two"] == "theirs"


# ---- a box on nothing ------------------------------------------------------------------------------
def test_a_mounted_box_on_nothing_is_a_directory(store):
    box = store.create_rw_layer("bare")
    path = box.mount()
    write(box, "one", "1")
    assert box.holders() == []
    snap = box.snapshot()
    assert is_clone(box, snap) and box.base is None
    with pytest.raises(ActiveMountError):
        box.rollback(snap)
    write(box, "two", "2")
    assert disk.shape(path) == {"one": "1", "two": "2"} and shown(snap.fork("fork")) == {"one": "1"}
    box.unmount()
    assert not is_clone(box, box.snapshot())


# ---- threads and processes -----------------------------------------------------------------------
def test_two_snapshots_at_once_are_one_after_the_other(store, open_store, root, box):
    other = open_store(root).get_rw_layer("box")
    for mounted in (False, True):
        if mounted:
            box.mount()
        write(box, "one")
        before = len(store.snapshots())
        at_once(*[one.snapshot for one in (box, other)] * 4)
        assert len(store.snapshots()) == before + 8
        assert "one" in shown(box)
    box.unmount()
    assert store.verify() == [] and store.orphans() == []


def test_what_another_process_mounted_is_switched_for_it_too(store, root, box):
    code = """
import sys, layerstore
store = layerstore.Store(sys.argv[1])
box = store.get_rw_layer("box")
path = box.mount()
print("ready", flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "unmount":
        box.unmount()
        print("done", flush=True)
        continue
    open(path + "/" + word, "w").write("theirs")
    print(box.base.id if hasattr(box.base, "id") else "layer", flush=True)
"""
    with child(code, root) as process:
        answer(process, "one")
        snap = box.snapshot()
        assert not is_clone(box, snap)
        assert answer(process, "two") == snap.id
        assert disk.shape(snap.metadata()["UpperDir"]) == {"one": "theirs"}
        assert [str(line) for line in box.changes(since=snap)] == ["A /two"]
        box.rollback(snap)
        assert answer(process, "three") == snap.id
        assert {"one", "three"} <= shown(box).keys() and "two" not in shown(box)
        assert answer(process, "unmount") == "done"
    assert disk.mounts_below(root) == []


def test_snapshots_while_threads_work_at_the_path(box, store):
    path = box.mount()
    ends = threading.Event()
    errors = []

    def work(n):
        try:
            count = 0
            while not ends.is_set():
                with open(f"{path}/{n}", "a") as out:
                    out.write(f"{count}\n")
                count += 1
            with open(f"{path}/{n}") as content:
                assert content.read().split() == [str(i) for i in range(count)]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for number in range(budget(40, 400)):
        snap = box.snapshot()
        if number % 3:
            snap.release()
    ends.set()
    for thread in threads:
        thread.join()
    assert errors == []
    box.unmount()
    assert store.verify() == []
