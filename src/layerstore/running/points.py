"""Mount points of a sandbox: what is missing is made in the tree, and removed, if empty, by the last run that needs it.

Removing a mount point takes away what is mounted there in every mount namespace. So each run locks the points that it
needs, and only what can be locked for itself alone is removed. A point that was made has a mark, an extended attribute:
another run knows by it what it may remove, also after the one that made it was killed. What a point was made in gets
its times back, so that the tree shows no trace of a run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import stat
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from layerstore.disk.locks import OpenDirectory
from layerstore.running import inside
from layerstore.running.command import Bind

# The second is for a user namespace, which may not set the first.
_MARKS: Final = ("trusted.layerstore.point", "user.layerstore.point")
# Seconds that the tree's lock is waited for: a process inside may hold it, too.
_PATIENCE: Final = 1.0


class _Point(NamedTuple):
    """A mount point that was made, by this run or another.

    top            of the tree that it is in
    names          of the directory above it, and its own
    is_directory   True: a directory, else an empty file
    """

    top: str
    names: list[str]
    is_directory: bool


# Those of this process: a forked child closes its copies of their descriptors.
_LIVE: set[Points] = set()


def _leave_to_parent() -> None:
    for points in list(_LIVE):
        points.let_go()


os.register_at_fork(after_in_child=_leave_to_parent)


class Points:
    """The mount points of one run in a tree."""

    def __init__(self, path: str) -> None:
        """path   the tree's root"""
        self.path = path
        self._made: list[_Point] = []
        self._held: list[int] = []        # descriptors of the same, locked
        _LIVE.add(self)

    def need(self, point: str, is_directory: bool, binds: Iterable[Bind] = (), mounted: Iterable[str] = ()) -> str:
        """Make a mount point, if it is missing; return its path without links.

        binds    what is mounted before it: below one of these it is made outside
        mounted  what else is: below one of these bubblewrap makes it
        Raises   NotADirectoryError, IsADirectoryError   it is there, and of another kind
                 OSError                                 it cannot be made
        """
        top, below, read_only = self.path, point, False
        with OpenDirectory(top) as fd:
            place = inside.find(fd, point)
        real = place.path
        if real == "/":
            raise OSError(errno.EBUSY, "the mount point is a link to the root of the layer", point)
        if real.startswith(tuple(f"{each}/" for each in mounted)):
            return real
        for bind in binds:
            if real == bind.inside or real.startswith(bind.inside + "/"):
                top, below, read_only = bind.outside, real[len(bind.inside) :], bind.read_only
        if top != self.path and not below.strip("/"):
            return real                    # the same point once more: the later one covers the earlier
        with OpenDirectory(top) as fd:
            _lock(fd)
            place = inside.find(fd, below)
            if place.missing and read_only:
                raise FileNotFoundError(errno.ENOENT, "the mount point is missing in a read-only bind", point)
            self._take(fd, top, place, is_directory, point)
        return real

    def _take(self, fd: int, top: str, place: inside.Place, is_directory: bool, point: str) -> None:
        """Make what is missing, and hold what was made, also by others; fd is the tree's root, locked."""
        if not place.missing and is_directory != stat.S_ISDIR(place.mode):
            kind = NotADirectoryError if is_directory else IsADirectoryError
            number = errno.ENOTDIR if is_directory else errno.EISDIR
            raise kind(number, os.strerror(number), point)
        names = [*place.names, *place.missing]
        for i in range(1, len(names) + 1):
            made = _Point(top, names[:i], is_directory or i < len(names))
            act = self._make_in if i > len(place.names) else self._share_in
            inside.within(fd, names[: i - 1], functools.partial(act, made))

    def _make_in(self, made: _Point, fd: int) -> None:
        name, above = made.names[-1], os.stat(".", dir_fd=fd)
        os.close(os.dup(fd))               # raises while nothing is made yet: the point itself needs a descriptor
        self._made.append(made)            # named before it is made: however this ends, it is removed
        if made.is_directory:
            os.mkdir(name, 0o755, dir_fd=fd)
        else:
            os.mknod(name, stat.S_IFREG | 0o644, dir_fd=fd)
        self._held.append(os.open(name, _flags(made), dir_fd=fd))
        point_fd = self._held[-1]
        os.fchmod(point_fd, 0o755 if made.is_directory else 0o644)         # whatever the caller's umask is
        after = os.stat(".", dir_fd=fd)
        _set_mark(point_fd, b"%d %d %d" % (above.st_atime_ns, above.st_mtime_ns, after.st_mtime_ns))
        fcntl.flock(point_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _share_in(self, made: _Point, fd: int) -> None:
        with contextlib.suppress(OSError):          # a file that may not be read was not made by a run
            self._held.append(os.open(made.names[-1], _flags(made), dir_fd=fd))
            if not _mark(self._held[-1]):
                os.close(self._held.pop())
                return
            fcntl.flock(self._held[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._made.append(made)

    def held(self) -> list[int]:
        """Return the descriptors that hold the locks; a copy of them holds them, too."""
        return list(self._held)

    def let_go(self) -> None:
        """Close all descriptors: an open one would keep the tree mounted, and its point from being locked."""
        while self._held:
            os.close(self._held.pop())

    def remove(self) -> None:
        """Remove what was made, is still empty, and is needed by no other run. Can be begun again."""
        self.let_go()
        while self._made:
            with contextlib.suppress(OSError):          # it is gone
                self._remove(self._made[-1])
            self._made.pop()
        _LIVE.discard(self)

    @staticmethod
    def _remove(made: _Point) -> None:
        with OpenDirectory(made.top) as fd:
            _lock(fd)
            inside.within(fd, made.names[:-1], functools.partial(_remove_in, made))


def _flags(made: _Point) -> int:
    """Return how a point is opened: neither a link nor a fifo is waited for."""
    kind = os.O_DIRECTORY if made.is_directory else os.O_NONBLOCK
    return os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind


def _lock(fd: int) -> None:
    """Lock a tree's root while points are made or removed; go on without the lock if another one keeps it."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.001)


def _set_mark(point_fd: int, value: bytes) -> None:
    for name in _MARKS:
        with contextlib.suppress(OSError):
            os.setxattr(point_fd, name, value)
            return


def _mark(point_fd: int) -> tuple[str, bytes] | None:
    """Return the mark of a point that a run made, and its value."""
    for name in _MARKS:
        with contextlib.suppress(OSError):
            return name, os.getxattr(point_fd, name)
    return None


def _remove_in(made: _Point, fd: int) -> None:
    name = made.names[-1]
    point_fd = os.open(name, _flags(made), dir_fd=fd)
    try:
        fcntl.flock(point_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)         # BlockingIOError: the last run removes it
        mark = _mark(point_fd)
        above = os.stat(".", dir_fd=fd)
        if not _unlink(made, point_fd, fd):
            if mark:
                os.removexattr(point_fd, mark[0])                    # it is the layer's from now on
            return
        if mark:
            access, before, after = map(int, mark[1].split())
            if above.st_mtime_ns == after:
                os.utime(".", ns=(access, before), dir_fd=fd)
    finally:
        os.close(point_fd)


def _unlink(made: _Point, point_fd: int, fd: int) -> bool:
    """Remove a point. Return False if it is not empty."""
    name = made.names[-1]
    if made.is_directory:
        try:
            os.rmdir(name, dir_fd=fd)
        except OSError as err:
            if err.errno != errno.ENOTEMPTY:
                raise
            return False
        return True
    if os.stat(point_fd).st_size:
        return False
    os.unlink(name, dir_fd=fd)
    return True
