"""Mount points of a sandbox: what is missing is made in the tree, and removed afterwards if it is still empty.

What a mount point is made in gets its times back, so that the tree shows no trace of a run.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from layerstore.disk.locks import OpenDirectory
from layerstore.running import inside
from layerstore.running.command import Bind


class _Made(NamedTuple):
    """A mount point that was made.

    top            of the tree that it is in
    names          of the directory above it, and its own
    is_directory   True: a directory, else an empty file
    before, after  the modification time of the directory above it, in nanoseconds
    access         its access time
    """

    top: str
    names: list[str]
    is_directory: bool
    before: int
    after: int
    access: int


class Points:
    """The mount points of one run in a tree."""

    def __init__(self, path: str) -> None:
        """path   the tree's root"""
        self.path = path
        self._made: list[_Made] = []

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
        if real.startswith(tuple(f"{each}/" for each in mounted)):
            return real
        for bind in binds:
            if real == bind.inside or real.startswith(bind.inside + "/"):
                top, below, read_only = bind.outside, real[len(bind.inside) :], bind.read_only
        if top != self.path:
            if not below.strip("/"):
                return real                # the same point once more: the later one covers the earlier
            with OpenDirectory(top) as fd:
                place = inside.find(fd, below)
            if place.missing and read_only:
                raise FileNotFoundError(errno.ENOENT, "the mount point is missing in a read-only bind", point)
        self._make(top, place, is_directory, point)
        return real

    def _make(self, top: str, place: inside.Place, is_directory: bool, point: str) -> None:
        if not place.missing:
            if is_directory != stat.S_ISDIR(place.mode):
                kind = NotADirectoryError if is_directory else IsADirectoryError
                number = errno.ENOTDIR if is_directory else errno.EISDIR
                raise kind(number, os.strerror(number), point)
            return
        names = list(place.names)
        for i, name in enumerate(place.missing):
            self._make_one(top, [*names, name], is_directory or i < len(place.missing) - 1)
            names.append(name)

    def _make_one(self, top: str, names: list[str], is_directory: bool) -> None:
        make = functools.partial(self._make_in, top, names, is_directory)
        with OpenDirectory(top) as fd:
            inside.within(fd, names[:-1], make)

    def _make_in(self, top: str, names: list[str], is_directory: bool, fd: int) -> None:
        above = os.stat(".", dir_fd=fd)
        # Named before it is made: however this ends, it is removed.
        self._made.append(_Made(top, names, is_directory, above.st_mtime_ns, 0, above.st_atime_ns))
        flags = os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            if is_directory:
                os.mkdir(names[-1], 0o755, dir_fd=fd)
                flags |= os.O_RDONLY | os.O_DIRECTORY
            else:
                flags |= os.O_WRONLY | os.O_CREAT | os.O_EXCL
            made_fd = os.open(names[-1], flags, 0o644, dir_fd=fd)
        except FileExistsError:             # another process was quicker: then it is its own
            self._made.pop()
            return
        os.fchmod(made_fd, 0o755 if is_directory else 0o644)       # whatever the caller's umask is
        os.close(made_fd)
        self._made[-1] = self._made[-1]._replace(after=os.stat(".", dir_fd=fd).st_mtime_ns)

    def remove(self) -> None:
        """Remove what was made and is still empty. Can be begun again."""
        while self._made:
            with contextlib.suppress(OSError):          # it is not empty, or gone: what is there was put there
                self._remove(self._made[-1])
            self._made.pop()

    @staticmethod
    def _remove(made: _Made) -> None:
        with OpenDirectory(made.top) as fd:
            inside.within(fd, made.names[:-1], functools.partial(_remove_in, made))


def _remove_in(made: _Made, fd: int) -> None:
    name = made.names[-1]
    untouched = os.stat(".", dir_fd=fd).st_mtime_ns == made.after
    if made.is_directory:
        os.rmdir(name, dir_fd=fd)
    else:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode) or found.st_size:
            return
        os.unlink(name, dir_fd=fd)
    if untouched:
        os.utime(".", ns=(made.access, made.before), dir_fd=fd)
