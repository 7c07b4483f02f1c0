"""Graft: single files of one tree take the place of damaged ones in another.

Enters: descriptors of a sound tree and of a damaged one, and names. Leaves: the damaged tree with those names as in
the sound one, which keeps what was there. Each name changes in one step, so that a reader sees the old file or the
new one. No link is followed, whatever was planted: a parent that is none is replaced as a whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator

from layerstore._core import _changes, _files

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


def _open_directory(name: str, dir_fd: int) -> int:
    return _files.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)


@contextlib.contextmanager
def _below(root: int, directory: str) -> Iterator[int]:
    """Open a directory below root, at any depth, for the length of a `with` block; through no link."""
    fd = root
    try:
        for part in directory.split("/") if directory else []:
            above, fd = fd, _open_directory(part, fd)
            if above != root:
                _files.close(above)
        yield fd
    finally:
        if fd != root:
            _files.close(fd)


def _status(name: str, dir_fd: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _depth(root: int, parts: Iterable[str]) -> int:
    """Count how many of these, each in the one before, are directories; no link is followed."""
    fd, depth = root, 0
    try:
        for part in parts:
            found = _status(part, fd)
            if found is None or not stat.S_ISDIR(found.st_mode):
                break
            above, fd = fd, _open_directory(part, fd)
            depth += 1
            if above != root:
                _files.close(above)
    finally:
        if fd != root:
            _files.close(fd)
    return depth


# What overlay itself notes of a layer's directory, and hides nothing.
_OVERLAYS_OWN = tuple(
    f"{kind}.overlay.{name}" for kind in ("trusted", "user") for name in ("origin", "impure", "uuid", "nlink", "upper")
)
_LINKS = 255


class Graft:
    """One run of it: what is to be done is found out first, as each thing done takes something from the sound tree."""

    def __init__(self, sound_fd: int, damaged_fd: int) -> None:
        self._sound, self._damaged = sound_fd, damaged_fd
        self._links: dict[tuple[int, int], list[str]] | None = None
        self._swaps: set[str] = set()         # these change places, with all that is in them
        self._removals: set[str] = set()      # the sound tree has none of these
        self._copies: set[str] = set()        # directories in both: owner, mode, xattrs, times
        self._times: dict[str, tuple[int, int]] = {}

    def names(self, names: Iterable[str]) -> None:
        """Replace these, named as in the layer's tar or as they lie; what the sound tree lacks is removed."""
        todo = []
        for name in names:
            path = posixpath.normpath("/" + name).lstrip("/")
            directory, base = posixpath.split(path)
            if base == _OPAQUE:
                path = directory
            elif base.startswith(_WHITEOUT):
                path = posixpath.join(directory, base.removeprefix(_WHITEOUT))
            todo.append(self._resolved(path))
        while todo:
            todo += self._plan(todo.pop())
        for path in sorted(self._swaps | self._removals):
            self._note_times(posixpath.dirname(path))
        for path in sorted(self._copies):
            self._note_times(path)
        for path in sorted(self._swaps):
            directory, name = posixpath.split(path)
            with _below(self._sound, directory) as sound, _below(self._damaged, directory) as damaged:
                self._swap(name, sound, damaged)
        for path in sorted(self._removals):
            directory, name = posixpath.split(path)
            with _below(self._damaged, directory) as damaged:
                _changes.remove_tree(damaged, name)
        for path in sorted(self._copies):
            with _below(self._sound, path) as sound, _below(self._damaged, path) as damaged:
                self._copy_attributes(sound, damaged)
        for path, times in self._times.items():
            with _below(self._damaged, path) as damaged:
                os.utime(damaged, ns=times)

    def _plan(self, path: str) -> list[str]:
        """Decide what makes one name what it is in the sound tree. Returns the names that must go with it."""
        parts = path.split("/") if path else []
        depth = min(_depth(self._sound, parts), _depth(self._damaged, parts))
        top = "/".join(parts[: depth + 1])
        if depth == len(parts):
            self._copies.add(path)
        elif top not in self._swaps:
            directory, name = posixpath.split(top)
            with _below(self._sound, directory) as sound, _below(self._damaged, directory) as damaged:
                wanted, there = _status(name, sound), _status(name, damaged)
            if wanted is not None:
                self._swaps.add(top)
                return self._linked(top, wanted)
            if there is not None:
                self._removals.add(top)
        return []

    def _linked(self, path: str, found: os.stat_result) -> list[str]:
        """Return all names, in the sound tree, of the files that are at path or below it and have several."""
        nodes = set()
        if not stat.S_ISDIR(found.st_mode):
            nodes = {(found.st_dev, found.st_ino)} if found.st_nlink > 1 else set()
        else:
            nodes = {node for node, _ in self._several(path)}
        if nodes and self._links is None:
            self._links = {}
            for node, name in self._several(""):
                self._links.setdefault(node, []).append(name)
        return [name for node in nodes for name in (self._links or {}).get(node, [])]

    def _several(self, top: str) -> Iterator[tuple[tuple[int, int], str]]:
        """Walk the sound tree at any depth: ((device, inode), path) of each name of a file that has several."""
        todo = [top]
        while todo:
            at = todo.pop()
            with _below(self._sound, at) as fd:
                for name in os.listdir(fd):
                    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if stat.S_ISDIR(st.st_mode):
                        todo.append(posixpath.join(at, name))
                    elif st.st_nlink > 1:
                        yield (st.st_dev, st.st_ino), posixpath.join(at, name)

    def _resolved(self, path: str) -> str:
        """Return where a name lies that may lead through links of the sound tree."""
        todo, real, links = path.split("/"), list[str](), 0
        while len(todo) > 1:
            part = todo.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                del real[-1:]
                continue
            real.append(part)
            try:
                with _below(self._sound, "/".join(real[:-1])) as parent:
                    target = os.readlink(part, dir_fd=parent)
            except OSError:                   # no link, or not there
                continue
            links += 1
            if links > _LINKS:
                break
            del real[-1:]
            if target.startswith("/"):
                real.clear()
            todo[:0] = target.split("/")
        return "/".join([*real, *todo])

    @staticmethod
    def _swap(name: str, sound: int, damaged: int) -> None:
        if _status(name, damaged) is not None:
            try:
                _files.exchange(sound, name, damaged, name)
                return
            except OSError as err:
                if err.errno not in (errno.EINVAL, errno.ENOSYS):
                    raise
        os.rename(name, name, src_dir_fd=sound, dst_dir_fd=damaged)

    @staticmethod
    def _copy_attributes(sound: int, damaged: int) -> None:
        """Owner, mode and xattrs of a directory. What overlay itself notes there (origin, impure) stays."""
        st = os.fstat(sound)
        os.fchown(damaged, st.st_uid, st.st_gid)
        os.fchmod(damaged, stat.S_IMODE(st.st_mode))
        wanted = os.listxattr(sound)
        for name in os.listxattr(damaged):
            if name not in wanted and name not in _OVERLAYS_OWN:
                os.removexattr(damaged, name)
        for name in wanted:
            os.setxattr(damaged, name, os.getxattr(sound, name))

    def _note_times(self, directory: str) -> None:
        if directory not in self._times:
            with _below(self._sound, directory) as sound:
                st = os.fstat(sound)
            self._times[directory] = (st.st_atime_ns, st.st_mtime_ns)
