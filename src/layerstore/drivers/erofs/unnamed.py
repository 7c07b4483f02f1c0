"""Unnamed files: images of layers in the making. Each gets its name once it is as far on the disk as is asked for.

After a kill none is left behind, as the kernel drops what has no name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterable

from layerstore._core import _files
from layerstore.disk.textfile import naming, write_small
from layerstore.drivers.erofs import image
from layerstore.errors import LayerStoreError
from layerstore.values import Durability

_BLOCK = 4096
_FICLONERANGE = 0x4020940D


class Unnamed:
    """An image in the making."""

    def __init__(self, path: str, length: str) -> None:
        """Open it. Raises OSError.

        path    what its name will be
        length  of the file that will say how long the tar in it is
        """
        self._path, self._length = path, length
        self._is_named = False
        self.fd = -1
        self.fd = self._made()
        self.tar_size = 0
        self.like: Callable[[], Iterable[str]] = tuple
        """Names files that may be the same as this one, byte for byte."""

    def _made(self) -> int:
        try:
            fd = _files.open(os.path.dirname(self._path), os.O_RDWR | os.O_TMPFILE, 0o600)
        except OSError as err:
            if err.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise
            # This file system has only files with names. Until its header is written, the last of all, it is no image.
            fd = _files.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            self._is_named = True
        _files.fchmod(fd, 0o600)
        return fd

    def share(self, fd: int, offset: int, size: int) -> bool:
        """Let this file, still empty, have the bytes of another one as its tar, without a copy; False: it cannot."""
        whole = size // _BLOCK * _BLOCK
        if not whole or offset % _BLOCK:
            return False
        try:
            fcntl.ioctl(self.fd, _FICLONERANGE, struct.pack("=qQQQ", fd, offset, whole, image.HEADER))
        except OSError:
            return False
        rest = os.pread(fd, size - whole, offset + whole)
        os.pwrite(self.fd, rest, image.HEADER + whole)
        if len(rest) == size - whole:
            return True
        self.empty()
        return False

    def empty(self) -> None:
        """Forget what was written."""
        with naming(self._path):
            os.ftruncate(self.fd, 0)

    def give_name(self, durability: Durability) -> None:
        """Name it, on the disk as far as durability says; once it is named, do nothing. Raises OSError."""
        if self.fd < 0:
            return
        is_own = not self._link_the_same(durability)
        if is_own:
            self._name(self.fd, durability)
        write_small(self._length, b"%d" % self.tar_size, 0o644, sync=durability != "none")
        if is_own and durability == "full":
            with contextlib.suppress(OSError):            # a mount of it caches what is read there once more
                os.posix_fadvise(self.fd, image.HEADER, self.tar_size, os.POSIX_FADV_DONTNEED)
        self.drop()

    def _name(self, fd: int, durability: Durability) -> None:
        if durability != "none":
            _files.fsync(fd)
        if not self._is_named:
            _files.link(fd, self._path)
            self._is_named = True

    def _link_the_same(self, durability: Durability) -> bool:
        """Name, in place of this one, a file that is the same. Return False where there is none."""
        if self._is_named:
            return False
        for path in self.like():
            with contextlib.suppress(OSError, LayerStoreError), image.opened(path) as fd:
                if image.are_equal(self.fd, fd):
                    self._name(fd, durability)
                    return True
        return False

    def __del__(self) -> None:
        self.drop()                               # an interrupt may come before anybody has it

    def drop(self) -> None:
        """Close it; what has no name is gone then. Twice is harmless."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            _files.close(fd, self._path)
