"""Paths inside a tree that may be hostile: links are followed as if the tree were "/", one name at a time.

Each name is looked at beneath the open directory above it, so no link leads out, whatever is changed meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import posixpath
import stat
from collections.abc import Callable, Sequence
from io import FileIO
from typing import Final, NamedTuple, TypeVar

from layerstore.disk.locks import OpenDirectory

T = TypeVar("T")

_LINKS: Final = 40               # as the kernel


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


def within(fd: int, names: Sequence[str], act: Callable[[int], T]) -> T:
    """Return what act() returns for the directory that these names lead to; no name is a link.

    Each directory is open for the length of a `with` block alone: one that an interrupt left open would keep the tree
    mounted.
    """
    if not names:
        return act(fd)
    with OpenDirectory(names[0], dir_fd=fd) as below:
        return within(below, names[1:], act)


def _look(name: str, fd: int) -> tuple[int, str] | None:
    """Return the mode of a name in a directory, and where it leads if it is a link; None: it is not there."""
    try:
        mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
        return mode, os.readlink(name, dir_fd=fd) if stat.S_ISLNK(mode) else ""
    except FileNotFoundError:
        return None


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
        found = within(root_fd, names, functools.partial(_look, name))
        if found is None:
            rest = posixpath.normpath("/".join([name, *reversed(todo)])).split("/")
            if rest[0] in ("..", "."):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            return Place(names, rest, mode)
        mode, target = found
        if not stat.S_ISLNK(mode):
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


def read(root_fd: int, path: str, most: int) -> bytes:
    """Return at most so many bytes of a regular file in a tree; b"": there is no such file, or it is no file."""
    with contextlib.suppress(OSError):
        place = find(root_fd, path)
        if not place.missing and stat.S_ISREG(place.mode):
            return within(root_fd, place.names[:-1], functools.partial(_read, place.names[-1], most))
    return b""


def _read(name: str, most: int, fd: int) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    blocks = []
    with FileIO(os.open(name, flags, dir_fd=fd)) as file:
        while most > 0 and (block := file.read(most)):
            blocks.append(block)
            most -= len(block)
    return b"".join(blocks)
