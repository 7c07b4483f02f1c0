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
from collections.abc import Iterable

from layerstore import _files

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


def _open_directory(name: str, dir_fd: int) -> int:
    return _files.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)


def _status(name: str, dir_fd: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


class Graft:
    """One run of it."""

    def __init__(self, sound_fd: int, damaged_fd: int) -> None:
        """Borrow both descriptors."""
        self._sound, self._damaged = sound_fd, damaged_fd
        self._links: dict[tuple[int, int], list[str]] | None = None
        self._done: set[str] = set()
        self._times: dict[str, tuple[int, int]] = {}

    def names(self, names: Iterable[str]) -> None:
        """Replace these, named as in the layer's tar; what the sound tree lacks is left alone."""
        for name in names:
            path = posixpath.normpath("/" + name).lstrip("/")
            directory, base = posixpath.split(path)
            if base == _OPAQUE:
                path = directory
            elif base.startswith(_WHITEOUT):
                path = posixpath.join(directory, base.removeprefix(_WHITEOUT))
            for link in self._links_of(path):
                self._one(link)
            if not path:
                self._note_times("", self._sound)
                self._copy_attributes(self._sound, self._damaged)
        self._restore_times()

    def _links_of(self, path: str) -> list[str]:
        """All names of the file at path, itself among them."""
        if not path:
            return []
        with contextlib.ExitStack() as stack:
            try:
                parent = self._walk(self._sound, posixpath.dirname(path), stack)
            except OSError:
                return []
            found = _status(posixpath.basename(path), parent)
        if found is None or stat.S_ISDIR(found.st_mode) or found.st_nlink == 1:
            return [path]
        if self._links is None:
            self._links = {}
            for at, _, names, fd in os.fwalk(".", dir_fd=self._sound, follow_symlinks=False):
                for name in names:
                    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if st.st_nlink > 1:
                        self._links.setdefault((st.st_dev, st.st_ino), []).append(posixpath.normpath(f"{at}/{name}"))
        return self._links.get((found.st_dev, found.st_ino), [path])

    @staticmethod
    def _walk(fd: int, directory: str, stack: contextlib.ExitStack) -> int:
        for part in directory.split("/") if directory else []:
            fd = _open_directory(part, fd)
            stack.callback(_files.close, fd)
        return fd

    def _one(self, path: str) -> None:
        parts = path.split("/")
        with contextlib.ExitStack() as stack:
            sound, damaged = self._sound, self._damaged
            for depth, part in enumerate(parts):
                here = "/".join(parts[: depth + 1])
                if here in self._done:
                    return                # replaced with all that is in it
                wanted, there = _status(part, sound), _status(part, damaged)
                if wanted is None:
                    return
                both = stat.S_ISDIR(wanted.st_mode) and there is not None and stat.S_ISDIR(there.st_mode)
                if not both:
                    self._note_times("/".join(parts[:depth]), sound)
                    self._swap(part, sound, damaged, there is not None)
                    self._done.add(here)
                    return
                sound, damaged = _open_directory(part, sound), _open_directory(part, damaged)
                stack.callback(_files.close, sound)
                stack.callback(_files.close, damaged)
            self._copy_attributes(sound, damaged)
            self._note_times(path, sound)

    @staticmethod
    def _swap(name: str, sound: int, damaged: int, exists: bool) -> None:
        if exists:
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
            if name not in wanted and not name.startswith(("trusted.overlay.", "user.overlay.")):
                os.removexattr(damaged, name)
        for name in wanted:
            os.setxattr(damaged, name, os.getxattr(sound, name))

    def _note_times(self, directory: str, sound: int) -> None:
        if directory not in self._times:
            st = os.fstat(sound)
            self._times[directory] = (st.st_atime_ns, st.st_mtime_ns)

    def _restore_times(self) -> None:
        for directory, times in self._times.items():
            with contextlib.ExitStack() as stack:
                fd = self._walk(self._damaged, directory, stack)
                os.utime(fd, ns=times)
