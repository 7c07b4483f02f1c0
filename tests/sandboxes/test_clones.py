"""What the clone of a box in use has: all of its upper, each file whole; and with a frozen cgroup, one moment of it."""

import contextlib
import os
import resource
import shutil
import signal
import stat
import time
from pathlib import Path

import disk
import pytest
import tarkit
from another import at_work
from boxes import shown, write
from machine import needs
from soak import budget

import layerstore


# ---- clones --------------------------------------------------------------------------------------
def everything(path):
    """Every kind of thing that an upper directory can have."""
    os.makedirs(f"{path}/d/deep/er")
    for name, data in (("plain", b"plain"), ("empty", b""), ("d/deep/er/f", b"f" * 9000)):
        with open(f"{path}/{name}", "wb") as out:
            out.write(data)
    with open(f"{path}/sparse", "wb") as out:
        out.seek(5 << 20)
        out.write(b"end")
        out.truncate(8 << 20)
    os.link(f"{path}/plain", f"{path}/d/linked")
    os.symlink("../nowhere", f"{path}/d/link")
    os.mkfifo(f"{path}/fifo", 0o600)
    os.mknod(f"{path}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(f"{path}/block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    os.mknod(f"{path}/socket", stat.S_IFSOCK | 0o600)
    os.chown(f"{path}/plain", 1000, 100)
    os.chmod(f"{path}/plain", 0o6755)
    os.lchown(f"{path}/d/link", 3, 4)
    os.chmod(f"{path}/d", 0o1777)
    os.setxattr(f"{path}/plain", "user.note", b"note")
    os.setxattr(f"{path}/plain", "security.capability", tarkit.CAPABILITY)
    os.setxattr(f"{path}/d", "trusted.note", b"")
    os.setxattr(f"{path}/d/link", "trusted.note", b"of a link", follow_symlinks=False)
    os.unlink(f"{path}/top")
    shutil.rmtree(f"{path}/old")
    os.mkdir(f"{path}/old")
    os.rename(f"{path}/etc/hosts", f"{path}/hosts")
    for name, when in (("plain", 5_123_456_789), ("d/link", 7), ("empty", -5 * 10**9), ("d/deep", 6_000_000_001), ("d", 9), ("fifo", 11)):
        os.utime(f"{path}/{name}", ns=(when + 1, when), follow_symlinks=False)
    os.chmod(path, 0o751)
    os.utime(path, ns=(77, 78_000_000_123))


def without_origins(state):
    """What the driver's attributes of origin say is of one place on the disk, and not kept."""
    dropped = ("trusted.overlay.origin", "trusted.overlay.nlink", "trusted.overlay.uuid", "trusted.overlay.upper", "trusted.overlay.index")
    return {
        name: tuple(tuple(pair for pair in fact if pair[0] not in dropped) if isinstance(fact, tuple) and fact and isinstance(fact[0], tuple) else fact
                    for fact in facts)
        for name, facts in state.items()
        if not name.endswith(b"socket")
    }  # fmt: skip


def test_a_clone_has_all_that_the_upper_has(ground):
    with layerstore.Store(ground / "docker") as store:
        base = store.register(tarkit.dir("etc/") + tarkit.file("etc/hosts", b"h" * 5000) + tarkit.file("top", b"t") + tarkit.dir("old/") + tarkit.file("old/one", b"1") + tarkit.end())
        box = store.create_rw_layer("box", base)
        path = box.mount()
        everything(path)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            upper = box.metadata()["UpperDir"]
            atimes = {name: os.lstat(f"{upper}/{name}").st_atime_ns for name in ("plain", "d/link", "empty")}
            snap = box.snapshot()
            place = snap.metadata()["UpperDir"]
            assert snap.id != getattr(box.base, "id", None) and place != upper
            assert {name: os.lstat(f"{place}/{name}").st_atime_ns for name in atimes} == atimes
            wanted, found = disk.disk_state(upper, times=True), disk.disk_state(place, times=True)
            assert disk.changed(without_origins(wanted), without_origins(found)) == []
            assert os.stat(f"{place}/plain").st_ino == os.stat(f"{place}/d/linked").st_ino != os.stat(f"{upper}/plain").st_ino
            assert os.stat(f"{place}/sparse").st_blocks <= os.stat(f"{upper}/sparse").st_blocks < 2000
            assert not os.path.exists(f"{place}/socket")
            with open(f"{path}/plain", "a") as out:
                out.write("more")
            assert box.changes(since=snap) != []
        finally:
            os.close(fd)
        with snap.fork("fork") as fork, fork.mounted() as forked, box.mounted() as mounted:
            os.unlink(f"{mounted}/socket")
            os.truncate(f"{mounted}/plain", 5)
            shutil.copystat(f"{forked}/plain", f"{mounted}/plain")
            assert disk.shape(forked) == disk.shape(mounted)
        box.unmount()
        assert store.verify() == []


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_clone_shares_the_blocks(room, kind):
    with disk.sized_file_system(room, kind, size=512 << 20) as place, layerstore.Store(place / "docker") as store:
        box = store.create_rw_layer("box", store.register(tarkit.T1))
        path = box.mount()
        with open(f"{path}/big", "wb") as out:
            out.write(os.urandom(1 << 20) * 60)
        with open(f"{path}/held", "w") as held:
            held.write("x")
            os.sync()
            before = os.statvfs(place)
            snap = box.snapshot()
            os.sync()
            after = os.statvfs(place)
        assert (before.f_bfree - after.f_bfree) * before.f_frsize < 10 << 20
        assert os.path.getsize(snap.metadata()["UpperDir"] + "/big") == 60 << 20
        box.unmount()


CHURN = """
import os, random, sys
os.chdir(sys.argv[1])
draw = random.Random(int(sys.argv[2]))
print("ready", flush=True)
names = [f"{d}n{n}" for d in ("", "a/", "b/", "a/c/") for n in range(6)] + ["a", "b", "a/c"]
while True:
    try:
        name, other = draw.choice(names), draw.choice(names)
        draw.choice([lambda: open(name, "w").write("x" * draw.randrange(20000)), lambda: os.unlink(name), lambda: os.rename(name, other),
                     lambda: os.mkdir(name), lambda: os.rmdir(name), lambda: os.link(name, other), lambda: os.symlink(other, name)])()
    except OSError:
        pass
"""


def test_a_box_in_which_names_come_and_go_is_cloned_without_an_error(box, store):
    path = box.mount()
    with at_work(CHURN, path, 1), at_work(CHURN, path, 2):
        for number in range(budget(15, 300)):
            snap = box.snapshot()
            if number % 5 == 0:
                with snap.fork("fork") as fork:
                    assert "etc/hosts" in shown(fork)
            snap.release()
    box.unmount()
    assert store.verify() == [] and store.orphans() == []


def test_a_file_that_never_rests_is_taken_as_it_was_read(box, caplog):
    path = box.mount()
    work = "import sys\nwith open(sys.argv[1] + '/big', 'wb', 0) as out:\n    print('ready', flush=True)\n    while True:\n        out.seek(0)\n        for _ in range(480): out.write(bytes(1 << 16))\n"
    with at_work(work, path):
        while os.path.getsize(f"{path}/big") < 30 << 20:
            time.sleep(0.01)
        snap = box.snapshot()
    assert os.path.getsize(snap.metadata()["UpperDir"] + "/big") == 30 << 20
    assert any("big" in one.getMessage() for one in caplog.records if one.levelname == "WARNING"), caplog.text
    box.unmount()


# ---- freeze --------------------------------------------------------------------------------------
@pytest.fixture
def group():
    with open("/proc/self/mounts") as table:
        top = next((line.split()[1] for line in table if line.split()[2] == "cgroup2"), None)
    needs("cgroup v2 that can be written", there=top and os.access(top, os.W_OK))
    place = f"{top}/layerstore-test-{os.getpid()}"
    os.mkdir(place)
    yield place
    for _ in range(200):
        with contextlib.suppress(OSError):
            os.rmdir(place)
            return
        time.sleep(0.01)
    pytest.fail(f"{place} stays")


def put(group, process):
    with open(f"{group}/cgroup.procs", "w") as out:
        out.write(str(process.pid))


def said_by(group, name):
    with open(f"{group}/{name}") as text:
        return text.read().strip()


PAIRS = """
import os, sys
os.chdir(sys.argv[1])
a, b = (os.open(name, os.O_RDWR | os.O_CREAT) for name in ("z-first", "a-second"))
print("ready", flush=True)
n = 0
while True:
    n += 1
    os.pwrite(a, b"%020d" % n, 0)
    os.pwrite(b, b"%020d" % n, 0)
"""


def test_a_frozen_group_is_of_one_moment(box, group):
    path = box.mount()
    write(box, "filler", "x" * 3_000_000)
    with at_work(PAIRS, path) as process:
        put(group, process)
        for _ in range(budget(10, 100)):
            snap = box.snapshot(freeze=group)
            assert said_by(group, "cgroup.freeze") == "0"
            place = snap.metadata()["UpperDir"]
            first, second = (int(Path(place, name).read_text() or 0) for name in ("z-first", "a-second"))
            assert second in (first, first - 1)
            snap.release()
        before = os.stat(f"{path}/z-first").st_mtime_ns
        time.sleep(0.05)
        assert os.stat(f"{path}/z-first").st_mtime_ns > before, "it works on"
        with open(f"{group}/cgroup.freeze", "w") as out:
            out.write("1")
        box.snapshot(freeze=group)
        assert said_by(group, "cgroup.freeze") == "1", "frozen before, frozen after"
        with open(f"{group}/cgroup.freeze", "w") as out:
            out.write("0")
    box.unmount()


def test_what_can_be_wrong_with_a_group(box, group, room, unchanged):
    with open(f"{group}/cgroup.procs", "w") as out:
        out.write(str(os.getpid()))
    try:
        with pytest.raises(ValueError):
            box.snapshot(freeze=group)
        path = box.mount()
        with open(f"{path}/held", "w"), pytest.raises(ValueError):
            box.snapshot(freeze=group)
        box.unmount()
    finally:
        with open(f"{os.path.dirname(group)}/cgroup.procs", "w") as out:
            out.write(str(os.getpid()))
    for wrong in (room, room / "nothing", f"{group}/cgroup.freeze"):
        with unchanged(), pytest.raises(OSError):
            box.snapshot(freeze=wrong)
    assert box.snapshot(freeze=group).box == "box", "of an idle box it is only looked at"


def test_a_group_is_thawed_when_the_clone_fails(box, group):
    write(box, "big", "x" * 100)
    path = box.mount()
    with at_work(PAIRS, path) as process:
        put(group, process)
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
            try:
                box.snapshot(freeze=group)
            except OSError:
                os._exit(5)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
        assert said_by(group, "cgroup.freeze") == "0"
    box.unmount()
