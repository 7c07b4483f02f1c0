"""The bytes of one stored file, from an open descriptor."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

from layerstore._core import _files, _listing
from layerstore.disk.textfile import naming_file
from layerstore.errors import CorruptLayerError, readable
from layerstore.values import FileEntry

BUFFER = 64 << 10


class _Bytes(io.RawIOBase):
    """The bytes of one stored file. Reading them from the first to the last finds out if they changed."""

    def __init__(self, fd: int, entry: FileEntry) -> None:
        """Take over fd, a file of entry.size bytes."""
        # Before all else: close() is called also for an object whose making failed.
        self._fd = fd
        self.name = entry.path
        self.mode = "rb"
        self._size, self._crc, self._chain_id = entry.size, entry.crc, entry.chain_id
        self._at = 0
        self._summed, self._sum = 0, 0    # the CRC of so many bytes from the first on

    def _open(self) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        return self._fd

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._open()
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._open()
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        offset += (0, self._at, self._size)[whence]
        if offset < 0:
            raise ValueError(f"negative seek position {offset}")
        self._at = offset
        return offset

    def readinto(self, buffer: Any, /) -> int:
        fd = self._open()
        with memoryview(buffer).cast("B") as view:
            with naming_file(fd):
                n = os.preadv(fd, [view], self._at)
            if n:
                self._look(view[:n])
            elif len(view) and self._at < self._size:
                raise self._differs()
        self._at += n
        return n

    def readall(self) -> bytes:
        fd = self._open()
        with naming_file(fd):
            data = os.pread(fd, max(self._size - self._at, 0) + 1, self._at)
            if len(data) != max(self._size - self._at, 0):
                rest = bytearray(data)        # a read gives 2 GiB at most
                while more := os.pread(fd, 1 << 30, self._at + len(rest)):
                    rest += more
                data = bytes(rest)
        if len(data) < self._size - self._at:
            raise self._differs()
        self._look(data)
        self._at += len(data)
        return data

    def _look(self, data: Any) -> None:
        """These bytes are read at the present position."""
        if self._at == 0:
            self._summed = self._sum = 0
        if self._crc is None or self._at != self._summed:
            return
        self._sum = _listing.add_crc(self._sum, data)
        self._summed += len(data)
        if self._summed > self._size or (self._summed == self._size and self._sum != self._crc):
            raise self._differs()

    def _differs(self) -> CorruptLayerError:
        text = f'file integrity checksum failed for "{readable(self.name)}"'
        return CorruptLayerError(text, chain_id=self._chain_id, path=self.name)

    def close(self) -> None:
        if not self.closed:
            super().close()
            _files.close(self._fd)


def open_bytes(open_fd: Callable[[], int], entry: FileEntry) -> io.BufferedReader:
    """Return a regular file's bytes: a readable, seekable binary file. Read whole, it checks the CRC."""
    try:
        fd = open_fd()
    except CorruptLayerError as err:
        raise err.about(chain_id=entry.chain_id) from None
    try:
        return io.BufferedReader(_Bytes(fd, entry), BUFFER)
    except BaseException:
        _files.close(fd)
        raise
