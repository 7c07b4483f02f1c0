"""What the fault tests share: a store under watch, system calls that fail on demand, file systems of a chosen size.

    with faultkit.Census(root) as census:   ...   # descriptors, threads, mounts: the same before and after
    faultkit.in_a_child(work)                     # work() in a fork, its answer by pickle; a crash or a hang is told
    faults = faultkit.Faults()                    # in a child only
    value, raised, met = faults.run(work, "open", errno.EIO, 3)     # work() in a thread whose third open fails
"""

import ctypes
import errno
import faulthandler
import functools
import hashlib
import os
import pickle
import queue
import select
import signal
import subprocess
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import disk
import recipes
import tarkit
from tarkit import dir, end, file

from layerstore import LeftOutWarning, Problem, Store

HERE = Path(__file__).resolve().parent

# Entries of every kind.
EVERY_KIND = (
    dir("d/", mode=0o750, uid=3, gid=4, mtime=1_600_000_000) + file("d/f", b"f" * 5000, mode=0o600, uid=5, gid=6)
    + tarkit.hardlink("d/h", "d/f") + tarkit.symlink("d/s", "f") + tarkit.fifo("d/p") + tarkit.node("d/n", "c", 1, 3)
    + tarkit.xattrs({"user.a": b"1", "security.capability": tarkit.CAPABILITY}) + file("d/x", b"x")
    + tarkit.with_pax_path("long/" * 40 + "f", file, b"long") + tarkit.with_gnu_path("g" * 150, file, b"gnu")
    + tarkit.pax_sparse_1_0("s", [(4096, b"x" * 600)], 9000) + file("again", b"first") + file("again", b"second")
    + tarkit.whiteout("b") + dir("a/") + tarkit.opaque("a/") + file("a/new", b"new") + end()
)
# More than a block, so that threads take part.
LARGE = file("large", recipes.noise(1_300_000, 7)) + b"".join(file(f"m/{i}", recipes.noise(300, i + 1)) for i in range(20)) + EVERY_KIND


# ---- what a process holds ------------------------------------------------------------------------------
def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def settled_threads(most: int, seconds: float = 2.0) -> int:
    """How many threads there are, once those that are joined have left /proc."""
    until = time.monotonic() + seconds
    while (now := threads()) > most and time.monotonic() < until:
        time.sleep(0.002)
    return now


class Held(NamedTuple):
    """What a process holds, to be compared before and after."""

    files: dict[int, str]
    mounts: list[str]
    threads: int

    root: Any

    @classmethod
    def now(cls, root: Any) -> "Held":
        return cls(disk.open_files(), disk.mounts_below(root), threads(), root)

    def differences(self, *, mounts: bool = True) -> list[str]:
        """What is held now and was not; [] when nothing leaked."""
        now = Held.now(self.root)
        found = [f"descriptor {fd} -> {what}" for fd, what in now.files.items() if fd not in self.files]
        # The one that listed /proc/self/fd itself.
        found = [line for line in found if "/proc/" not in line]
        found += [f"descriptor {fd} is closed ({what})" for fd, what in self.files.items() if fd not in now.files and "/proc/" not in what]
        found += [f"mount {point}" for point in now.mounts if mounts and now.mounts.count(point) > self.mounts.count(point)]
        found += [f"no mount at {point} any more" for point in self.mounts if now.mounts.count(point) < self.mounts.count(point)]
        if settled_threads(self.threads) != self.threads:
            found.append(f"{threads()} threads, not {self.threads}")
        return found


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


def allocated() -> int:
    """Bytes that malloc has given out, in all threads' arenas, and what it mapped for large ones."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd


# ---- what a store holds ------------------------------------------------------------------------------
def state(root: Any) -> dict[bytes, tuple]:
    """All that lies below the root, but for what may stay by design: the mark that a layer once had a child, and the
    empty place of a mount, where it could not be removed."""
    found = disk.disk_state(root)
    filled = {os.path.dirname(name) for name in found}
    return {
        name: facts
        for name, facts in found.items()
        if not (name.endswith(b"/committed") or (name.endswith(b"/merged") and name not in filled))
    }


def tar_of(made: Callable[[], Any]) -> str:
    hashed = hashlib.sha256()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftOutWarning)      # the box has xattrs, which are no matter here
        opened = made()
    with opened as stream:
        while piece := stream.read(1 << 20):
            hashed.update(piece)
    return hashed.hexdigest()


def contents(store: Store) -> dict[str, str]:
    """Every layer's tar and every writable layer's difference, as digests."""
    found = {str(chain): tar_of(layer.tar_stream) for chain, layer in store.map().items()}
    for name in store.mounts():
        # The reference ends with this object's store, not with a release, which would delete.
        found[name] = tar_of(store.get_rw_layer(name).tar_stream)
    return found


# ---- children ------------------------------------------------------------------------------------------
class ChildError(AssertionError):
    pass


def _awaited(child: int, seconds: float) -> int:
    """The exit code of a child; one that takes too long is made to show its stacks and dies."""
    watched = os.pidfd_open(child)
    try:
        if not select.select([watched], [], [], seconds)[0]:
            os.kill(child, signal.SIGABRT)
            if not select.select([watched], [], [], 5)[0]:
                os.kill(child, signal.SIGKILL)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(watched)
        status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


def in_a_child(work: Callable[[Callable[[str], None]], Any], *, seconds: float = 50) -> Any:
    """What work(say) gives, done in a fork. A crash or a hang is an error that tells what it said last."""
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as trace:
        child = os.fork()
        if not child:
            code = 99
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                faulthandler.enable(trace.fileno())      # its watchdog does not survive a fork: the parent watches

                def say(text: str) -> None:
                    os.pwrite(told.fileno(), text.encode().ljust(200), 0)

                try:
                    outcome = (True, work(say))
                except BaseException:
                    outcome = (False, traceback.format_exc())
                pickle.dump(outcome, answer)
                answer.flush()
                code = 0
            finally:
                os._exit(code)
        status = _awaited(child, seconds)
        told.seek(0), answer.seek(0), trace.seek(0)
        last = told.read().decode().strip()
        if status != 0:
            raise ChildError(f"the child ended with {status} at: {last}\n{trace.read().decode(errors='replace')}")
        good, value = pickle.load(answer)
    if not good:
        raise ChildError(f"at: {last}\n{value}")
    return value


# ---- system calls that fail --------------------------------------------------------------------------------
KINDS = {
    "open": "open openat openat2",
    "create": "mkdir mkdirat mknod mknodat symlink symlinkat link linkat",
    "write": "write pwrite64 writev ftruncate copy_file_range sendfile splice fallocate",
    "read": "read pread64",
    "list": "getdents64",
    "link": "readlink readlinkat",
    "stat": "newfstatat fstat statx stat lstat access statfs fstatfs lseek",
    "remove": "unlink unlinkat rmdir",
    "rename": "rename renameat renameat2",
    "mode": "fchmod fchmodat fchmodat2 chmod",
    "owner": "fchown fchownat chown lchown",
    "time": "utimensat",
    "xattr": "setxattr fsetxattr lsetxattr",
    "xattr read": "getxattr fgetxattr lgetxattr getxattrat listxattr flistxattr llistxattr listxattrat",
    "sync": "fsync fdatasync syncfs",
    "close": "close",
    "lock": "flock",
    "mount": "mount umount2 fsopen fsconfig fsmount move_mount open_tree mount_setattr",
    "memory": "mmap mremap mprotect",   # brk() has no errno of its own
    "thread": "clone clone3",
    "descriptor": "dup dup2 dup3 fcntl pipe2 memfd_create eventfd2",
    "random": "getrandom",
}
# What each kind may say; the first is what a walk over every place uses.
ERRNOS = {kind: [errno.EIO] for kind in KINDS} | {
    "open": [errno.EIO, errno.EMFILE, errno.ENOMEM, errno.EINTR, errno.ENFILE],
    "create": [errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.EDQUOT],
    "write": [errno.ENOSPC, errno.EIO, errno.EINTR, errno.EAGAIN],
    "read": [errno.EIO, errno.EINTR, errno.EAGAIN],
    "list": [errno.EIO, errno.ENOMEM],
    "stat": [errno.EIO, errno.ENOMEM],
    "rename": [errno.EIO, errno.ENOSPC],
    "xattr": [errno.ENOSPC, errno.EIO],
    "sync": [errno.EIO, errno.ENOSPC, errno.EINTR],
    "close": [errno.EIO, errno.EINTR, errno.ENOSPC],
    "lock": [errno.EIO, errno.EINTR, errno.ENOLCK],
    "mount": [errno.EIO, errno.ENOMEM, errno.ENOSPC],
    "memory": [errno.ENOMEM],
    "thread": [errno.EAGAIN],
    "descriptor": [errno.EMFILE],
}
# Until the end of the operation: not for these, where trying again is right and would never end.
PASSING = (errno.EINTR, errno.EAGAIN)


@functools.cache
def compiled(name: str) -> str:
    """name.c of this folder as a shared object, in build/ beside the core's tests' own."""
    source = HERE / f"{name}.c"
    kept = HERE.parents[1] / "build" / "trust"
    kept.mkdir(parents=True, exist_ok=True)
    made = kept / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    if not made.exists():
        part = made.with_suffix(f".{os.getpid()}")
        command = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", str(source), "-o", str(part)]
        subprocess.run(command, check=True, capture_output=True)
        part.rename(made)
    return str(made)


class Met(NamedTuple):
    """How many calls of the kind an operation made, and how many of these failed."""

    met: int
    failed: int
    first_failed: str


class Faults:
    """System calls that fail on demand, in a thread for it and all that it starts; in a child only, for its life."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(compiled("faults"))
        self._lib.faults_arm.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_long, ctypes.c_long]
        self._numbers: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        for kind, calls in KINDS.items():
            found = {self._lib.faults_number(name.encode()): name for name in calls.split()}
            found.pop(-1, None)
            self._names |= found
            self._numbers[kind] = (ctypes.c_int * len(found))(*found)
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()
        code = self._done.get()
        if code:
            raise OSError(-code, f"no seccomp listener: {os.strerror(-code)}")

    def _work(self) -> None:
        self._done.put(self._lib.faults_start())
        while True:
            job = self._jobs.get()
            self._done.put(job())
            del job

    def run(self, work: Callable[[], Any], kind: str, sys_errno: int, first: int, last: int | None = None) -> tuple[Any, BaseException | None, Met]:
        """work() while the first-th (to last-th) call of this kind fails: its value, what it raised, what was met."""
        numbers, met, failed, which = self._numbers[kind], ctypes.c_long(), ctypes.c_long(), ctypes.c_int()

        def job() -> tuple[Any, BaseException | None]:
            value = raised = None
            self._lib.faults_arm(numbers, len(numbers), sys_errno, first, last or first)
            try:
                value = work()
            except BaseException as error:
                raised = error
            self._lib.faults_disarm(ctypes.byref(met), ctypes.byref(failed), ctypes.byref(which))
            return value, raised

        self._jobs.put(job)
        value, raised = self._done.get()
        return value, raised, Met(met.value, failed.value, self._names.get(which.value, ""))


# ---- operations --------------------------------------------------------------------------------------------
class Ground:
    """A root with two layers, a writable one with a difference, a second one that is empty: the same each time."""

    BASE = dir("a/") + file("a/f", b"hello") + file("b", b"b" * 3000) + end()
    ABOVE = file("c", b"c" * 70_000) + dir("e/") + file("e/1", b"1") + tarkit.whiteout("b") + end()
    EDIT = file("c", b"C") + file("new", b"n" * 9000) + dir("sub/") + file("sub/x", b"x") + tarkit.whiteout("a") + end()

    def __init__(self, root: Path, durability: str = "none") -> None:
        self.root, self.options = root, {"durability": durability}
        self.store = Store(root, options=self.options)
        self.base = self.store.register(self.BASE)
        self.above = self.store.register(self.ABOVE, self.base.chain_id)
        self.rw = self.store.create_rw_layer("rw", self.above.chain_id)
        self.rw.apply_diff(self.EDIT)
        self.bare = self.store.create_rw_layer("bare", self.above.chain_id)
        for rw in (self.rw, self.bare):
            with rw.mounted():                 # whose marks stay
                pass

    def again(self) -> Store:
        """The same root as another process opens it."""
        return Store(self.root, options=self.options)

    def contents(self) -> dict[str, str]:
        """What contents() says of a store opened for it alone."""
        with self.again() as store:
            return contents(store)

    def verify(self) -> list[Problem]:
        """What verify() says, of a store opened for it alone."""
        with self.again() as store:
            return store.verify()

    def gone(self) -> None:
        self.store.close()
        disk.unmount_below(self.root)
        disk.remove_tree(self.root)
