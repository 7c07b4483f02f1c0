"""A box is frozen, turned and switched while it is mounted: by the driver alone, on four file systems.

Whatever happens, the path shows the right tree at every moment, and so do the directories by themselves.
"""

import contextlib
import errno
import json
import logging
import os
import subprocess
import sys
import threading
import time

import disk
import pytest
from disk import mount_line, mounts_below, sized_file_system
from uses import ALL, using

from layerstore import ActiveMountError, NotSupportedError
from layerstore._core import _files
from layerstore.disk import mounts
from layerstore.disk.holds import Holds
from layerstore.disk.textfile import replace_small
from layerstore.drivers import StoreView, registry
from layerstore.drivers.overlay.directories import Directories
from layerstore.ids import random_id
from layerstore.layerdb.detached import Detached
from layerstore.layerdb.store import FileMetadataStore
from layerstore.limits import Limits

FILE_SYSTEMS = {"tmpfs": 64, "ext4": 64, "xfs": 320, "btrfs": 128}
READS = {"path of a file", "read", "deleted", "private map", "line"}
pytestmark = pytest.mark.skipif(not mounts.can_switch(), reason="NOT TESTED: this kernel cannot mount beneath (6.8 can)")


class Box:
    """One box on a base of two files, of a driver without a store."""

    def __init__(self, root):
        self.layerdb = root / "layerdb"
        self.layerdb.mkdir()
        self.record = root / "rollback"
        self.root, self.home, self.open_stores = root, root / "overlay2", []
        self.driver, self.w = self.open()
        self.base, self.id = random_id(), random_id()
        self.w.create(self.base, [], None)
        self.w.publish(self.base)
        (self.home / self.base / "diff/etc").mkdir()
        (self.home / self.base / "diff/etc/hosts").write_bytes(b"127.0.0.1" * 600)
        (self.home / self.base / "diff/top").write_bytes(b"top")
        self.w.create(self.id, [self.base], None)
        self.w.settle(self.id, [self.base])
        self.w.publish(self.id)
        self.path = str(self.home / self.id / "merged")
        self.owned = [self.base, self.id]

    def open(self, durability="full"):
        """Open the home once more, as another store does."""
        holds = Holds(str(self.layerdb))
        holds.open()
        metadata = FileMetadataStore(str(self.layerdb), make=False)
        view = StoreView(False, Limits(), 10, holds, Detached(metadata), metadata.layer_in, durability)
        driver = registry.open_driver("overlay2", str(self.root), {}, view)
        self.open_stores.append((driver, holds))
        return driver, driver.writables

    def close(self):
        self.driver.host.cleanup()
        for driver, holds in self.open_stores:
            driver.host.close()
            holds.close()

    def freeze(self, sync=lambda id: None, w=None):
        into = random_id()
        w = w or self.w
        with w.hold(self.id):
            w.freeze(self.id, into, w.stack_of(self.id), sync)
        self.owned.append(into)
        w.publish(into)
        return into

    def turn(self, stack=None, *, force=False):
        """Roll back to a stack, as an engine does it; return the id of what was dropped."""
        fresh, stack = random_id(), self.w.stack_of(self.id) if stack is None else stack
        with self.w.hold(self.id):
            self.w.require_idle(self.id, force=force)
            before = self.w.stack_of(self.id)
            upper = self.w.make_fresh(self.id, fresh)
            # As mounts/<name>/rollback.
            replace_small(str(self.record), json.dumps([self.id, fresh, upper, stack]).encode(), 0o644, sync=False)
            self.w.turn(self.id, fresh, upper, stack)
            try:
                self.w.switch(self.id, force=force)
            except BaseException:
                self.w.turn(self.id, fresh, os.stat(self.home / self.id / "diff").st_ino, before)
                self.record.unlink()
                self.w.remove(fresh)
                raise
            self.record.unlink()
            self.w.discard(fresh)
        return fresh

    def alone(self):
        """What the directories show without the driver's mount."""
        place = self.root / "look"
        place.mkdir()
        lowers = [str(self.home / item) for item in (self.home / self.id / "lower").read_text().split(":")]
        disk.mount("overlay", place, "overlay", 0, "lowerdir=" + ":".join([str(self.home / self.id / "diff"), *lowers]))
        try:
            return tree(place)
        finally:
            disk.unmount(place)
            place.rmdir()

    def dropped(self):
        return json.loads(self.record.read_text())[1:2] if self.record.exists() else []

    def leftover(self):
        """The driver's directories that nothing owns."""
        return self.driver.host.orphans(lambda: [self.base, self.id])


def tree(path):
    """Names, kinds and contents below a path."""
    found = {}
    for at, dirs, files in os.walk(path):
        place = at[len(str(path)) :].lstrip("/") or "."       # the path of where one is may be no more
        found[place] = oct(os.stat(at).st_mode)
        for name in files:
            with open(os.path.join(at, name), "rb") as file:
                found[os.path.join(place, name)] = file.read()
        dirs.sort()
    return found


@pytest.fixture(params=FILE_SYSTEMS)
def file_system(request, room):
    with sized_file_system(room, request.param, size=FILE_SYSTEMS[request.param] << 20) as place:
        yield place


@pytest.fixture
def box(room):
    yield from opened(room)


@pytest.fixture
def box_there(file_system):
    yield from opened(file_system)


def opened(root):
    box = Box(root)
    yield box
    box.close()


# ---- the path goes on ----------------------------------------------------------------------------


@pytest.mark.time_limit(120)
def test_a_reader_and_a_writer_notice_no_freeze(box_there):
    box = box_there
    box.w.mount(box.id)
    stop, errors, written = threading.Event(), [], [0]

    def read():
        while not stop.is_set():
            with open(box.path + "/etc/hosts", "rb") as file:
                assert len(file.read()) == 5400
            os.stat(box.path + "/top")
            time.sleep(0.0003)

    def write():
        while not stop.is_set():
            name = f"{box.path}/etc/{written[0]}"
            with open(name, "w") as file:
                file.write("new")
            with open(name, "a") as file:
                file.write(" and more")
            written[0] += 1
            time.sleep(0.0005)

    def guarded(call):
        try:
            call()
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in (read, write)]
    for thread in threads:
        thread.start()
    frozen = 0
    try:
        while frozen < 40 and not errors:
            with contextlib.suppress(ActiveMountError):
                box.freeze()
                frozen += 1
            time.sleep(0.001)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    names = {f"{i}": b"new and more" for i in range(written[0])}
    shown = {name.removeprefix("etc/"): data for name, data in tree(box.path).items() if name.startswith("etc/")}
    assert shown == {**names, "hosts": b"127.0.0.1" * 600}
    before = tree(box.path)
    box.w.unmount(box.id)
    assert mount_line(box.path) is None and not os.path.exists(box.path)
    assert box.alone() == before


def test_freezing_keeps_what_is_shown(box_there):
    box = box_there
    box.w.mount(box.id)
    for count in range(4):
        with open(box.path + "/top", "a") as file:
            file.write(f"{count}")
        os.chmod(box.path, 0o1777 if count % 2 else 0o711)
        os.utime(box.path, ns=(5, 7_000_000_123 + count))
        before, status = tree(box.path), os.stat(box.path)
        into = box.freeze()
        assert tree(box.path) == before == box.alone()
        after = os.stat(box.path)
        assert (after.st_mode, after.st_mtime_ns, after.st_uid) == (status.st_mode, status.st_mtime_ns, status.st_uid)
        assert os.listdir(box.home / box.id / "diff") == []
        assert os.listdir(box.home / into / "diff") == ["top"]
        assert box.w.stack_of(box.id)[0] == into and box.w.stack_of(into) == box.w.stack_of(box.id)[1:]
        assert not mounts_below(box.home / into)
    box.driver.host.close()
    assert all(os.listdir(box.home / id / "work") == [] for id in box.w.stack_of(box.id)[:-1])
    box.w.unmount(box.id)
    assert box.freeze() and box.alone() == before        # not mounted
    assert box.leftover() == []


def test_turning_drops_what_was_written(box_there):
    box = box_there
    box.w.mount(box.id)
    fresh = tree(box.path)
    (box.home / box.id / "merged/new").write_bytes(b"new")
    first = box.freeze()
    at_first = tree(box.path)
    os.unlink(box.path + "/top")
    os.mkdir(box.path + "/more")
    dropped = box.turn([first, box.base])
    assert tree(box.path) == at_first == box.alone()
    box.turn([box.base])
    assert tree(box.path) == fresh == box.alone()
    box.driver.host.close()
    assert not (box.home / dropped).exists()
    assert box.leftover() == [first]
    box.w.unmount(box.id)
    (box.home / box.id / "diff/new").write_bytes(b"new")
    box.turn([])                                          # on nothing
    assert sorted(os.listdir(box.home / box.id)) == ["diff", "link"] and os.listdir(box.home / box.id / "diff") == []
    box.turn([first, box.base])
    assert box.alone() == at_first


# ---- who is inside -------------------------------------------------------------------------------


@pytest.mark.parametrize("thread", ["", "IN_THREAD"])
@pytest.mark.parametrize("use", ALL)
def test_each_use_keeps_the_box_or_its_own(box, use, thread):
    path = box.w.mount(box.id)
    with using(path, use, **({thread: "1"} if thread else {})) as child:
        before = tree(path)
        if use in READS:
            into = box.freeze()
            assert tree(path) == before
            assert box.w.holders(box.id) == []            # it is of another overlay now
            with open(path + "/etc/hosts", "ab") as file:
                file.write(b"changed")
            assert (box.home / into / "diff").exists() and child.poll() is None
        else:
            for act in (box.freeze, box.turn):
                with pytest.raises(ActiveMountError) as error:
                    act()
                assert {holder.pid for holder in error.value.holders} == {child.pid}
                assert tree(path) == before and box.w.stack_of(box.id) == [box.base]
                assert box.leftover() == []
    box.w.unmount(box.id)
    assert not mounts_below(box.home)


def test_who_only_reads_keeps_reading_and_cannot_write(box):
    """A program that came in by an open directory meanwhile gets EROFS: what is frozen stays as it is."""
    path = box.w.mount(box.id)
    with open(path + "/etc/hosts", "rb") as file:
        into = box.freeze()
        with open(path + "/etc/hosts", "wb") as new:
            new.write(b"new")
        assert file.read() == b"127.0.0.1" * 600
        assert os.fstat(file.fileno()).st_dev != os.stat(path).st_dev
        with pytest.raises(OSError) as error:
            os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY)
        assert error.value.errno == errno.EROFS
        assert os.listdir(box.home / into / "diff") == []
    box.w.unmount(box.id)


def test_a_shared_map_for_reading_of_a_file_opened_for_writing_is_inside(box):
    path = box.w.mount(box.id)
    use = "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); f.close(); print('', flush=True); sys.stdin.read()"
    libc_map = use.replace("m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)",
                           "import ctypes; c = ctypes.CDLL(None); c.mmap.restype = ctypes.c_void_p; c.mmap(None, ctypes.c_size_t(4096), 1, 1, f.fileno(), ctypes.c_long(0))")  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", libc_map, path + "/etc/hosts"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        with pytest.raises(ActiveMountError) as error:
            box.freeze()
        assert [(holder.pid, holder.uses) for holder in error.value.holders] == [(child.pid, ("map",))]
        child.stdin.close()
    box.freeze()
    box.w.unmount(box.id)


@contextlib.contextmanager
def namespace(propagation, *, run="exec sleep 100"):
    """Another mount namespace, made now."""
    with subprocess.Popen(["unshare", "-m", "--propagation", propagation, "sh", "-c", f"echo; {run}"], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        try:
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize("works", [False, True])
def test_a_private_copy_in_another_namespace_is_inside(box, works):
    path = box.w.mount(box.id)
    before = tree(path)
    with namespace("private", run=f"cd {path}; exec sleep 100" if works else "exec sleep 100"):
        time.sleep(0.05)
        for act in (box.freeze, box.turn):
            with pytest.raises(ActiveMountError) as error:
                act()
            assert error.value.holders
        assert tree(path) == before
    box.freeze()
    box.w.unmount(box.id)


def test_a_slave_namespace_receives_the_switch(box):
    subprocess.run(["mount", "--bind", box.root, box.root], check=True)
    subprocess.run(["mount", "--make-shared", box.root], check=True)
    path = box.w.mount(box.id)
    try:
        with namespace("slave") as child:
            there = f"/proc/{child.pid}/root{path}"
            (box.home / box.id / "merged/new").write_bytes(b"new")
            into = box.freeze()
            (box.home / box.id / "merged/newer").write_bytes(b"newer")
            assert tree(there) == tree(path) == box.alone()
            assert os.listdir(box.home / into / "diff") == ["new"]
            box.turn()
            assert tree(there) == tree(path)
            with subprocess.Popen(["nsenter", "-t", str(child.pid), "-m", "sh", "-c", f"cd {path}; echo; exec sleep 100"], stdout=subprocess.PIPE) as inside:
                inside.stdout.readline()
                before = tree(path)
                with pytest.raises(ActiveMountError) as error:    # MNT_EXPIRE sees no use, umount does
                    box.freeze()
                assert inside.pid in {holder.pid for holder in error.value.holders}
                assert tree(path) == before and box.w.stack_of(box.id)[0] == into
                assert box.leftover() == []
                inside.kill()
            box.freeze()
            box.w.unmount(box.id)
            assert mount_line(path) is None
    finally:
        box.driver.host.cleanup()
        disk.unmount(box.root)


@pytest.mark.parametrize("where", ["beside", "below"])
def test_a_bind_beside_and_a_mount_below_are_inside(box, where, room):
    path = box.w.mount(box.id)
    place = room / "beside" if where == "beside" else box.home / box.id / "merged/etc"
    place.mkdir(exist_ok=True)
    if where == "beside":
        subprocess.run(["mount", "--bind", path, place], check=True)
    else:
        disk.mount("tmpfs", place, "tmpfs")
    for act in (box.freeze, box.turn):
        with pytest.raises(ActiveMountError) as error:
            act()
        assert error.value.holders[0].pid == 0
    disk.unmount(place)
    box.freeze()
    box.w.unmount(box.id)


def test_a_loop_device_that_writes_is_inside(box):
    path = box.w.mount(box.id)
    with open(path + "/image", "wb") as image:
        image.truncate(1 << 20)
    for options, inside in (["-r"], False), ([], True):
        device = subprocess.run(["losetup", "--show", "-f", *options, path + "/image"], check=True, capture_output=True, text=True).stdout.strip()
        try:
            if inside:
                with pytest.raises(ActiveMountError) as error:
                    box.freeze()
                assert error.value.holders[0].uses == ("write",)
            else:
                box.freeze()
        finally:
            subprocess.run(["losetup", "-d", device], check=True)
            time.sleep(0.05)
    box.w.unmount(box.id)


def test_what_is_mounted_elsewhere_alone_is_in_use(box):
    """Also with force: what it shows there cannot be switched."""
    with subprocess.Popen(["unshare", "-m", "sh", "-c", "read x; exec sleep 100"], stdin=subprocess.PIPE) as child:
        time.sleep(0.05)
        child_view = ["nsenter", "-t", str(child.pid), "-m"]
        path = box.w.mount(box.id)
        subprocess.run([*child_view, "mkdir", "-p", path], check=True)
        items = [box.home / item for item in (box.home / box.id / "lower").read_text().split(":")]
        os.makedirs(path, exist_ok=True)
        box.w.unmount(box.id)
        os.makedirs(path, exist_ok=True)
        options = f"lowerdir={':'.join(map(str, items))},upperdir={box.home / box.id}/diff,workdir={box.home / box.id}/work"
        subprocess.run([*child_view, "mount", "-t", "overlay", "-o", options, "overlay", path], check=True)
        for force in (False, True):
            with pytest.raises(ActiveMountError):
                box.turn(force=force)
        with pytest.raises(ActiveMountError):
            box.freeze()
        assert box.w.is_used(box.id)
        child.kill()
    box.freeze()


# ---- force -------------------------------------------------------------------------------------


def test_by_force_who_is_inside_keeps_all_of_it(box):
    path = box.w.mount(box.id)
    (box.home / box.id / "merged/new").write_bytes(b"new")
    was = os.getcwd()
    os.chdir(path)
    try:
        dropped = box.turn(force=True)
        assert tree(path) == {".": "0o40755", "etc": "0o40755", "etc/hosts": b"127.0.0.1" * 600, "./top": b"top"}
        assert tree(".")["./new"] == b"new"
        with open("newer", "w") as file:
            file.write("written")
        assert (box.home / dropped / "diff/newer").read_text() == "written"
        box.driver.host.cleanup()                         # asks again, and cannot
        assert box.w.is_used(dropped)
        box.driver.host.close()
        other, _ = box.open()                             # another store does not take it for an orphan
        assert other.host.orphans(lambda: [box.base, box.id]) == []
        other.host.reclaim(lambda: [box.base, box.id])
        assert tree(".")["./newer"] == b"written"
    finally:
        os.chdir(was)
    other.host.reclaim(lambda: [box.base, box.id])
    assert not (box.home / dropped).exists()


def test_what_was_dropped_goes_with_its_last_user(box):
    path = box.w.mount(box.id)
    with using(path, "cwd"):
        dropped = box.turn(force=True)
        time.sleep(0.4)
        assert (box.home / dropped).exists()
    until = time.monotonic() + 10
    while (box.home / dropped).exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not (box.home / dropped).exists()
    box.w.unmount(box.id)


def test_a_detached_box_is_in_use_and_turned_by_force(box):
    path = box.w.mount(box.id)
    with using(path, "cwd"):
        box.w.unmount(box.id, lazy=True)
        for act in (box.freeze, box.turn):
            with pytest.raises(ActiveMountError):
                act()
        box.turn(force=True)
        assert box.w.mount(box.id) == path
        box.w.unmount(box.id)


# ---- what fails is undone --------------------------------------------------------------------------


def failing(monkeypatch, owner, name, when=1):
    """Let the nth call of a function raise OSError."""
    real, calls = getattr(owner, name), [0]

    def fail(*args, **more):
        calls[0] += 1
        if calls[0] == when:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "here")
        return real(*args, **more)

    monkeypatch.setattr(owner, name, fail)


BOTH = [(mounts, "make_overlay", 1), (Directories, "create", 1), (mounts.Switch, "run", 1)]
FAILURES = {
    "freeze": [*BOTH, *[(_files, "exchange", n) for n in (1, 2, 3)], (Directories, "restand_aside", 1), (Directories, "settle", 1)],
    "turn": BOTH,                                         # what else fails in it an engine undoes
}  # fmt: skip


@pytest.mark.parametrize(
    ("act", "failure"), [(act, one) for act in FAILURES for one in FAILURES[act]], ids=lambda at: f"{at[1]}-{at[2]}" if isinstance(at, tuple) else at
)
def test_what_fails_leaves_all_as_it_was(box, monkeypatch, act, failure):
    path = box.w.mount(box.id)
    (box.home / box.id / "merged/new").write_bytes(b"new")
    before = tree(path)
    with monkeypatch.context() as patched:
        failing(patched, *failure)
        with pytest.raises(OSError, match="No space left"):
            getattr(box, act)()
    assert tree(path) == before == box.alone()
    assert box.w.stack_of(box.id) == [box.base]
    (box.home / box.id / "merged/newer").write_bytes(b"newer")
    assert box.alone() == tree(path)
    assert box.leftover() == []
    box.freeze()
    assert box.alone() == tree(path)
    box.w.unmount(box.id)


def test_what_the_sync_raises_leaves_all_as_it_was(box):
    def sync(id):
        assert box.w.stack_of(id) == [box.base] and os.listdir(box.home / id / "diff") == []
        raise KeyboardInterrupt

    box.w.mount(box.id)
    with pytest.raises(KeyboardInterrupt):
        box.freeze(sync)
    assert box.leftover() == [] and box.w.stack_of(box.id) == [box.base]
    box.w.unmount(box.id)


def test_what_came_too_late_lies_beneath_and_goes_with_the_box(box, monkeypatch):
    """A process that comes in between the question and the switch keeps the box, and the path shows it."""
    path = box.w.mount(box.id)
    (box.home / box.id / "merged/new").write_bytes(b"new")
    before = tree(path)
    real = mounts.make_overlay

    was = os.getcwd()

    def come_in(*args):
        os.chdir(path)
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(mounts, "make_overlay", come_in)
        for act in (box.freeze, box.turn):
            with pytest.raises(ActiveMountError) as error:
                act()
            assert [(holder.pid, holder.uses) for holder in error.value.holders] == [(os.getpid(), ("cwd",))]
            os.chdir(was)
    assert mounts_below(box.home).count(path) == 3
    assert tree(path) == before == box.alone() and box.leftover() == []
    box.freeze()
    assert tree(path) == before
    box.w.unmount(box.id)
    assert not mounts_below(box.home) and not os.path.exists(path)


def test_without_the_kernels_calls_a_mounted_box_is_in_use(box, monkeypatch):
    monkeypatch.setenv("LAYERSTORE_MOUNT_API", "old")
    box.w.mount(box.id)
    with pytest.raises(ActiveMountError):
        box.freeze()
    with pytest.raises(NotSupportedError, match="is mounted, and Linux"):
        box.turn()
    box.w.unmount(box.id)
    box.freeze()
    box.turn()


def test_a_box_on_nothing(box):
    id, into = random_id(), random_id()
    box.w.create(id, [], None)
    box.w.publish(id)
    assert box.w.mount(id) == box.w.mount(id) == str(box.home / id / "diff")
    (box.home / id / "diff/new").write_bytes(b"new")
    for _ in range(2):
        with pytest.raises(ActiveMountError, match="stands on nothing"):
            box.w.freeze(id, into, [], lambda id: None)
        assert box.w.holders(id) == []
        box.w.unmount(id)
    box.w.unmount(id)                                     # one too many
    box.w.freeze(id, into, [], lambda id: None)
    box.w.publish(into)
    assert sorted(os.listdir(box.home / into)) == ["committed", "diff", "link"]
    assert box.w.stack_of(id) == [into] and box.w.stack_of(into) == []
    path = box.w.mount(id)
    assert tree(path)["./new"] == b"new" and path.endswith("merged")
    box.w.unmount(id)
    for each in (id, into):
        box.w.remove(each)


def test_two_stores_of_one_home(box):
    """Either one may freeze what the other has mounted; both know the stack."""
    _, w = box.open()
    path = box.w.mount(box.id)
    assert w.mount(box.id) == path
    for at in (box.w, w, box.w, w):
        (box.home / box.id / "merged" / random_id()).write_bytes(b"")
        before = tree(path)
        into = box.freeze(w=at)
        assert tree(path) == before
        assert box.w.stack_of(box.id)[0] == w.stack_of(box.id)[0] == into
    w.unmount(box.id)
    assert tree(path) == before
    box.w.unmount(box.id)
    assert not mounts_below(box.home)


def test_many_threads_freeze_one_box(box):
    path = box.w.mount(box.id)
    errors = []

    def work():
        try:
            for _ in range(5):
                box.freeze()
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(set(box.w.stack_of(box.id))) == 21
    assert tree(path)["./top"] == b"top"
    box.w.unmount(box.id)


# ---- volatile ------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["none", "ordered", "full"])
def test_without_durability_the_mount_is_volatile(box, durability, room):
    with sized_file_system(room, "ext4", size=32 << 20) as place:
        one = Box(place)
        driver, w = one.open(durability)
        path = w.mount(one.id)
        assert ("volatile" in mount_line(path)[3]) == (durability == "none")
        incompat = one.home / one.id / "work" / "work" / "incompat"
        assert incompat.exists() == (durability == "none")
        w.unmount(one.id)
        assert not incompat.exists()
        w.mount(one.id)
        into = one.freeze(w=w)
        assert ("volatile" in mount_line(path)[3]) == (durability == "none")
        driver.host.close()
        assert os.listdir(one.home / into / "work") == []
        w.unmount(one.id)
        incompat.mkdir(parents=True)                      # as a kill leaves it
        (incompat / "volatile").mkdir()
        for _ in range(2):
            w.mount(one.id)
            w.unmount(one.id)
        one.close()


def test_a_box_of_a_project_of_its_own_is_frozen_and_turned(room):
    """XFS answers EXDEV to a rename between projects, also where it counts none."""
    with sized_file_system(room, "xfs", size=320 << 20) as place:
        box = Box(place)
        directory = str(box.home / box.id)
        for path in directory, directory + "/diff", directory + "/work":
            mounts.set_project(path, 7)
        path = box.w.mount(box.id)
        with open(path + "/new", "w") as file:
            file.write("new")
        into = box.freeze()
        assert tree(path)["./new"] == b"new"
        assert [mounts.project_of(str(box.home / id)) for id in (box.id, into, box.base)] == [7, 7, 0]
        box.turn()
        assert tree(path)["./new"] == b"new"
        box.w.unmount(box.id)
        box.close()


# ---- a kill at any moment ---------------------------------------------------------------------------

STEPS = {
    "freeze": lambda box: box.freeze(), "turn": lambda box: box.turn(), "turn by force": lambda box: box.turn(force=True),
}  # fmt: skip


def killed_at(call, count):
    """Fork a child that is killed at the nth call that it makes of C; return True if it ended before."""
    pid = os.fork()
    if not pid:
        left = [count]

        def at_call(frame, event, arg):
            if event == "c_call":
                left[0] -= 1
                if left[0] <= 0:
                    os.kill(os.getpid(), 9)

        sys.setprofile(at_call)
        with contextlib.suppress(BaseException):
            call()
        sys.setprofile(None)
        os._exit(0)
    return os.WIFEXITED(os.waitpid(pid, 0)[1])


@pytest.mark.time_limit(300)
@pytest.mark.parametrize("mounted", [True, False])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_moment_leaves_a_whole_box(box, step, mounted):
    count, done = 1, False
    while not done:
        if mounted:
            box.w.mount(box.id)
        else:
            box.w.mount(box.id)
            box.w.unmount(box.id)
        upper = box.home / box.id / "diff"
        (upper / "new").write_bytes(b"new") if not mounted else (box.home / box.id / "merged/new").write_bytes(b"new")
        whole = box.alone()
        dropped = {name: data for name, data in whole.items() if name != "./new"}
        done = killed_at(lambda: STEPS[step](box), count)
        shown = box.alone()
        assert shown == whole or (step != "freeze" and shown == dropped), count
        if mounted:
            path = tree(box.path)
            assert path == whole or (step != "freeze" and path == dropped), count
            assert mount_line(box.path)
        # Another store goes on with it.
        driver, w = box.open()
        driver.host.reclaim(lambda: [box.base, box.id, *box.dropped()])
        assert box.alone() == shown
        if box.record.exists():
            id, fresh, upper, stack = json.loads(box.record.read_text())
            w.turn(id, fresh, upper, stack)
            w.switch(id, force=True)
            box.record.unlink()
            w.discard(fresh)
            shown = dropped
            assert box.alone() == shown and (not mounted or tree(box.path) == shown)
        driver.host.cleanup()
        driver.host.reclaim(lambda: [box.base, box.id])
        assert driver.host.orphans(lambda: [box.base, box.id]) == []
        path = w.mount(box.id)
        assert tree(path) == shown
        w.freeze(box.id, into := random_id(), w.stack_of(box.id), lambda id: None)
        w.publish(into)
        assert tree(path) == shown
        w.unmount(box.id)
        w.remove(box.id)
        driver.host.reclaim(lambda: [box.base])
        box.w.unmount(box.id)
        w.create(box.id, [box.base], None)
        w.publish(box.id)
        count += 1 + count // 12
    assert count > 100


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")      # it may come into a __del__, too
@pytest.mark.time_limit(300)
@pytest.mark.parametrize("mounted", [True, False])
def test_an_interrupt_at_any_moment_leaves_a_whole_box(box, mounted):
    """It comes behind a call of C, as a signal does. What was done by then stands, or is undone."""
    count, done = 1, False
    while not done:
        box.w.mount(box.id)
        with open(box.path + f"/{count}", "w") as file:
            file.write("new")
        whole = tree(box.path)
        if not mounted:
            box.w.unmount(box.id)
        left = [count]

        def interrupt(frame, event, arg, left=left):
            if event == "c_return":
                left[0] -= 1
                if not left[0]:
                    raise KeyboardInterrupt

        before = box.w.stack_of(box.id)
        into = random_id()
        try:
            sys.setprofile(interrupt)
            box.w.freeze(box.id, into, before, lambda id: None)
            done = left[0] > 0
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        assert box.w.stack_of(box.id) in (before, [into, *before]), count
        assert box.alone() == whole, count
        box.w.publish(into)
        if mounted:
            assert tree(box.path) == whole, count
            assert mounts_below(box.home) == [box.path], count
            box.w.unmount(box.id)
        assert not [id for id in box.leftover() if id != into], count
        box.driver.host.reclaim(lambda: [box.base, box.id])
        assert box.alone() == whole, count
        if len(before) > 20:
            box.turn([box.base])
            box.driver.host.reclaim(lambda: [box.base, box.id])
        count += 1 + count // 50
    assert count > 100


def test_freezing_is_logged_nowhere(box, caplog):
    with caplog.at_level(logging.DEBUG, "layerstore"):
        box.w.mount(box.id)
        box.freeze()
        box.w.unmount(box.id)
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


# ---- in a user namespace -----------------------------------------------------------------------------

IN_A_NAMESPACE = r"""
import os, pathlib, sys
sys.path[:0] = sys.argv[2:]
from test_switching import ActiveMountError, Box, tree
box = Box(pathlib.Path(sys.argv[1]))
path = box.w.mount(box.id)
base = tree(path)
with open(path + "/new", "w") as file:
    file.write("new")
os.unlink(path + "/top")
before = tree(path)
for _ in range(3):
    box.freeze()
    assert tree(path) == before
os.chdir(path)
for act in (box.freeze, box.turn):
    try:
        act()
    except ActiveMountError as error:
        assert [holder.pid for holder in error.holders] == [os.getpid()]
    else:
        raise AssertionError(act)
dropped = box.turn([box.base], force=True)
box.driver.host.ground.background.drain()
assert tree(".") == before and tree(path) == base and (box.home / dropped).exists()
os.chdir("/")
box.driver.host.ground.background.drain()
assert not (box.home / dropped).exists() and tree(path) == base
box.w.unmount(box.id)
box.freeze()
box.close()
"""


def test_in_a_user_namespace(room):
    (room / "own").mkdir()
    (room / "own").chmod(0o777)
    here = os.path.dirname(__file__)
    paths = [os.path.join(here, "..", ".."), here]
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", IN_A_NAMESPACE, room / "own", *paths]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_forked_child_keeps_no_mount_and_has_no_thread(box):
    path = box.w.mount(box.id)
    (box.home / box.id / "merged/new").write_bytes(b"new")
    real, ready, child = mounts.Switch.run, os.pipe(), []

    def fork_then_run(self, *args, **more):
        pid = os.fork()
        if not pid:
            assert threading.active_count() == 1
            os.write(ready[1], b"x")
            time.sleep(30)
            os._exit(0)
        child.append(pid)
        os.read(ready[0], 1)
        return real(self, *args, **more)

    mounts.Switch.run = fork_then_run
    try:
        box.freeze()
        mounts.Switch.run = real
        box.freeze()                                      # the child is not inside
        dropped = box.turn()
        box.driver.host.close()
        assert not (box.home / dropped).exists()
    finally:
        mounts.Switch.run = real
        os.kill(child[0], 9)
        os.waitpid(child[0], 0)
        for fd in ready:
            os.close(fd)
    assert tree(path)["./new"] == b"new"
    box.w.unmount(box.id)
