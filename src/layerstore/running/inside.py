"""Paths inside a tree that may be hostile: links are followed as if the tree were "/", one name at a time.

Each name is looked at beneath the open directory above it, so no link leads out, whatever is changed meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

_LINKS: Final = 40               # as the kernel
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Place(NamedTuple):
    """Where a path leads.

    names     of the directories from the tree's root on, and of the last thing there is; no links
    missing   the names behind these that are not there
    mode      st_mode of the last thing there is
    """

    names: list[str]
    missing: list[str]
    mode: int

    @property
    def path(self) -> str:
        """The absolute path inside, without links."""
        return "/" + "/".join([*self.names, *self.missing])


@contextlib.contextmanager
def opened_top(path: str) -> Iterator[int]:
    """Open a tree's root for the length of a `with` block."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def opened(fd: int, names: list[str]) -> Iterator[int]:
    """Open the directory that these names lead to, for the length of a `with` block; no name is a link."""
    with contextlib.ExitStack() as stack:
        for name in names:
            fd = os.open(name, _DIRECTORY, dir_fd=fd)
            stack.callback(os.close, fd)
        yield fd


def find(root_fd: int, path: str) -> Place:
    """Find where a path leads in a tree. Raises OSError: too many links, or a file is on the way."""
    names: list[str] = []
    todo = path.split("/")[::-1]
    links, mode = 0, stat.S_IFDIR
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            names, mode = names[:-1], stat.S_IFDIR
            continue
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        with opened(root_fd, names) as fd:
            try:
                mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            except FileNotFoundError:
                rest = posixpath.normpath("/".join([name, *reversed(todo)])).split("/")
                if rest[0] in ("..", "."):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
                return Place(names, rest, mode)
            target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(mode) else None
        if target is None:
            names = [*names, name]
            continue
        links += 1
        if links > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        mode = stat.S_IFDIR
        if target.startswith("/"):
            names = []
        todo += target.split("/")[::-1]
    return Place(names, [], mode)


def read(root_fd: int, path: str, most: int) -> bytes | None:
    """Return at most so many bytes of a regular file in a tree; None: there is no such file, or it is no file."""
    with contextlib.suppress(OSError):
        place = find(root_fd, path)
        if place.missing or not stat.S_ISREG(place.mode):
            return None
        with opened(root_fd, place.names[:-1]) as fd:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with os.fdopen(os.open(place.names[-1], flags, dir_fd=fd), "rb") as file:
                return file.read(most)
    return None
