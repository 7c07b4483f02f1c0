"""A command runs over a directory, in namespaces of its own, and leaves nothing behind but what it wrote there.

bubblewrap makes the namespaces and mounts. Its child is ext/enter, pid 1 of the namespace: that waits for a word from
here, becomes the user, starts the command and ends with it, and so ends whatever else runs there. Process (_process)
holds both, so an error or an interrupt at any moment kills them. The mount points are removed after that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import math
import os
import select
import struct
import termios
import time
from io import FileIO
from subprocess import CompletedProcess, TimeoutExpired
from typing import Final

from layerstore._core._process import CONTROL, GONE, NONE, Process
from layerstore.disk.locks import Ending, OpenDirectory, Scope
from layerstore.errors import NotSupportedError, readable
from layerstore.running import bubblewrap, inside, user
from layerstore.running.command import Bind, Command, resolver
from layerstore.running.points import Points
from layerstore.running.user import User
from layerstore.streams.stopping import STOP

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TERM: Final = "xterm"

# Of ext/enter/enter.h: flags, messages, the plan ahead of its strings, and where it finds its own program.
_NO_INPUT, _KEEP_GROUPS = 1, 2
_READY, _ENDED, _SETUP, _USER, _DIRECTORY, _EXEC = 1, 2, 3, 4, 5, 6
_PLAN: Final = struct.Struct("=QIIIIII")
_PROGRAM: Final = "/proc/self/fd/8"

_MFD_EXEC: Final = 0x10           # of kernels from 6.3 on
_PIPE_SIZE: Final = 1 << 20
_BLOCK: Final = 1 << 18
_LONGEST: Final = 1 << 20         # seconds of one wait
_LOOK: Final = 0.1                # seconds between two looks whether the caller has given up
_KILLED: Final = 128 + 9


def run_in(path: str, told: Command, program: str) -> CompletedProcess[bytes]:
    """Run a command with the directory at path as its root.

    program   bubblewrap.find()'s

    Raises    OSError                     argv[0] or cwd is not in the tree, or may not be used by the user (.filename);
                                          or a mount point cannot be made
              LookupError                 the tree has no such user
              NotSupportedError           bubblewrap cannot make a sandbox here
              subprocess.TimeoutExpired   with the output so far
    """
    deadline = None if told.timeout is None else time.monotonic() + told.timeout
    points = Points(path)
    with Ending(points.remove):
        with OpenDirectory(path) as root_fd:
            who = user.find(root_fd, told.user)
            binds = _resolved(root_fd, told)
        proc, dev = points.need("/proc", True), points.need("/dev", True)
        placed: list[Bind] = []
        for bind in binds:
            real = points.need(bind.inside, bind.is_directory, placed, (proc, dev))
            placed.append(bind._replace(inside=real))
        argv = bubblewrap.arguments(program, path, proc, dev, placed, network=told.network)
        files = _Files(told, who, (proc, dev))
        with Ending(files.close):
            files.open()
            words = [os.fsencode(word) for word in [*argv, _PROGRAM, told.argv[0]]]      # its name is for ps(1)
            begin = functools.partial(Process, os.fsencode(program), words, [*files.given, *points.held()])
            with Scope(begin, Process.end) as process:
                files.forget_given()
                points.let_go()          # the first process of the sandbox has them now
                seen = _Course(process, files)
                seen.follow(deadline)
                process.end()
                files.read_rest()
            return seen.result(told, who)


def _resolved(root_fd: int, told: Command) -> list[Bind]:
    """Return the binds; with the caller's network also the caller's resolv.conf, if the tree has none."""
    found = resolver() if told.network else None
    if found is None or found.inside in [bind.inside for bind in told.binds]:
        return told.binds
    with contextlib.suppress(OSError):
        if inside.find(root_fd, found.inside).missing:
            return [*told.binds, found]
    return told.binds


# ---- what it is given ----


class _Files:
    """What a sandbox is given as descriptors, and what comes out of it.

    given    for Process, once it is open
    out      the blocks of each output, by its descriptor
    """

    def __init__(self, told: Command, who: User, places: tuple[str, str]) -> None:
        self._told, self._who, self._places = told, who, places
        # Each file is in a list as soon as it is open: however this ends, it is closed.
        self._given: list[FileIO] = []
        self._kept: list[FileIO] = []
        self.given: list[int] = []
        self.out: dict[int, list[bytes]] = {}

    def open(self) -> None:
        """Open all."""
        told, given = self._told, self._given
        given.append(FileIO(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), "r+"))
        given.append(_memory("plan", _plan(told, self._who, self._places)))
        given.append(_memory("enter", _enter(), executable=True))
        null, plan, enter = (file.fileno() for file in given)
        self._kept.append(_memory("bwrap"))
        entry = NONE if not isinstance(told.input, int) else told.input
        if told.input is not None and not isinstance(told.input, int):
            given.append(_memory("input", told.input, read_only=True))
            entry = given[-1].fileno()
        streams = [self._pipe(), self._pipe()] if told.capture else [_ours(1, null), _ours(2, null)]
        self.given = [null, null, self._kept[0].fileno(), CONTROL, plan, entry, *streams, enter]

    def close(self) -> None:
        """Close all. Twice is harmless."""
        for file in [*self._given, *self._kept]:
            file.close()

    def _pipe(self) -> int:
        """Return the end of a pipe that the command writes to, as its own: it may open it again by /dev/stdout."""
        read, write = os.pipe()
        self._kept.append(FileIO(read))
        self._given.append(FileIO(write, "w"))
        self.out[read] = []
        os.set_blocking(read, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        with contextlib.suppress(OSError):
            os.fchown(write, self._who.uid, self._who.gid)
        return write

    def forget_given(self) -> None:
        """Close what the sandbox has now: a pipe ends with the last process that writes to it."""
        for file in self._given:
            file.close()

    def read(self, fd: int) -> bool:
        """Read what is there of an output. Return False at its end."""
        try:
            block = os.read(fd, _BLOCK)
        except BlockingIOError:
            return True
        self.out[fd].append(block)
        return bool(block)

    def read_rest(self) -> None:
        """Read what is there. None of the sandbox writes any longer, but a process outside may have got a pipe."""
        for fd, blocks in self.out.items():
            left = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0]
            while left > 0:
                blocks.append(os.read(fd, left))
                left -= len(blocks[-1])

    def outputs(self) -> tuple[bytes | None, bytes | None]:
        """Return what came out: standard output, standard error."""
        if not self._told.capture:
            return None, None
        out, err = (b"".join(blocks) for blocks in self.out.values())
        return out, err

    def complaint(self) -> str:
        """Return what bubblewrap itself said."""
        said = os.pread(self._kept[0].fileno(), 1 << 16, 0).decode(errors="surrogateescape")
        return readable(said.strip())


def _memory(name: str, data: bytes = b"", *, executable: bool = False, read_only: bool = False) -> FileIO:
    """Return a file in memory with these bytes.

    read_only   True: opened for reading only, at its beginning
    """
    flags = os.MFD_CLOEXEC | (_MFD_EXEC if executable else 0)
    try:
        fd = os.memfd_create(name, flags)
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
    file = FileIO(fd, "r+")
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    if read_only:
        with file:
            return FileIO(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))
    return file


def _ours(fd: int, instead: int) -> int:
    """Return a standard descriptor of this process; instead, if it is closed."""
    try:
        os.fstat(fd)
    except OSError:
        return instead
    return fd


def _enter() -> bytes:
    """Return the program of ext/enter."""
    with open(os.path.join(os.path.dirname(__file__), "enter.elf"), "rb") as file:
        return file.read()


def _plan(told: Command, who: User, places: tuple[str, str]) -> bytes:
    """Return the plan for ext/enter; places: where proc and the devices are."""
    variables = {"PATH": PATH, "HOME": who.home, "TERM": TERM, **told.env}
    flags = (_NO_INPUT if told.input is None else 0) | (_KEEP_GROUPS if _groups_are_fixed() else 0)
    texts = [*places, told.cwd, *told.argv, *(f"{name}={value}" for name, value in variables.items())]
    head = _PLAN.pack(bubblewrap.rights(), who.uid, who.gid, flags, len(told.argv), len(variables), 0)
    return head + b"".join(os.fsencode(text) + b"\0" for text in texts)


def _groups_are_fixed() -> bool:
    """Return True in a user namespace that may not change its supplementary groups."""
    with contextlib.suppress(OSError), open("/proc/thread-self/setgroups", "rb") as file:
        return file.read().strip() == b"deny"
    return False


# ---- its course ----


class _Course:
    """What happened to a sandbox."""

    def __init__(self, process: Process, files: _Files) -> None:
        self._process, self._files = process, files
        self._ready, self._late = False, False
        self._status: int | None = None
        self._failed: tuple[int, int] | None = None

    def follow(self, deadline: float | None) -> None:
        """Read its output until the command has ended, or the time is up."""
        process, poll, stop = self._process, select.poll(), STOP.get()
        for fd in (process.control, process.ended, *self._files.out):
            poll.register(fd, select.POLLIN)
        while True:
            left = _LONGEST if deadline is None else deadline - time.monotonic()
            if left <= 0:
                self._late = True
                return
            left = min(left, _LOOK if stop else _LONGEST)
            for fd, _ in poll.poll(math.ceil(left * 1000)):
                if fd == process.ended:
                    self._hear_rest()
                    return
                if fd == process.control:
                    if self._hear():
                        return
                elif not self._files.read(fd):
                    poll.unregister(fd)
            if stop:
                stop.check()

    def _hear(self) -> bool:
        """Take a message. Return True if it is the last."""
        what, value = self._process.next()
        if what == _READY:
            self._ready = True
            self._process.go()
        elif what == _ENDED:
            self._status = value
        elif what not in (0, GONE):
            self._failed = what, value
        return what in (_ENDED, GONE)

    def _hear_rest(self) -> None:
        """Take what was said before the end."""
        what = _READY
        while what not in (0, GONE):
            what, value = self._process.next()
            if what == _ENDED:
                self._status = value
            elif what not in (0, GONE, _READY):
                self._failed = what, value

    def result(self, told: Command, who: User) -> CompletedProcess[bytes]:
        """Return how it ended, or raise."""
        out, err = self._files.outputs()
        if self._failed:
            raise self._failure(told, who, *self._failed)
        if self._late:
            assert told.timeout is not None
            raise TimeoutExpired(told.argv, told.timeout, out, err)
        if not self._ready:
            said = self._files.complaint() or "it ended without a word"
            raise NotSupportedError(f"bubblewrap cannot make a sandbox here: {said}")
        return CompletedProcess(told.argv, self._returncode(), out, err)

    def _returncode(self) -> int:
        """Return what a shell would: 128 and the signal, of a command that was killed."""
        if self._status is None:
            return _KILLED           # with all the sandbox, by another process
        code = os.waitstatus_to_exitcode(self._status)
        return code if code >= 0 else 128 - code

    @staticmethod
    def _failure(told: Command, who: User, what: int, number: int) -> OSError:
        why = os.strerror(number)
        if what == _EXEC:
            name = told.argv[0]
            where = "" if "/" in name else f" in PATH={told.env.get('PATH', PATH)}"
            return OSError(number, f"{why} in the layer{where}", name)
        if what == _DIRECTORY:
            return OSError(number, f"{why} in the layer, as the working directory", told.cwd)
        if what == _USER:
            return OSError(number, f"{why}: the command cannot become uid {who.uid}, gid {who.gid} here")
        return OSError(number, f"{why}: the sandbox cannot be set up")
