"""The bytes of one stored file, from an open descriptor, or from the pieces of it that lie in an image."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any, Protocol

from layerstore._core import _files, _listing
from layerstore.disk.textfile import naming_file
from layerstore.errors import CorruptLayerError, readable
from layerstore.values import FileEntry

BUFFER = 64 << 10


class Opened(Protocol):
    """An opened file that is no descriptor."""

    def pread(self, view: memoryview, offset: int) -> int:
        """Fill view with the bytes at an offset, and return how many came; 0: it has none there. Raises OSError."""

    def close(self) -> None:
        """Release what is held. Called once."""


class _Descriptor:
    """The Opened of a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pread(self, view: memoryview, offset: int) -> int:
        with naming_file(self._fd):
            return os.preadv(self._fd, [view], offset)

    def close(self) -> None:
        _files.close(self._fd)


class _Bytes(io.RawIOBase):
    """The bytes of one stored file. Reading them from the first to the last finds out if they changed."""

    def __init__(self, file: Opened, entry: FileEntry) -> None:
        """Take over a file of entry.size bytes."""
        # Before all else: close() is called also for an object whose making failed.
        self._file = file
        self.name = entry.path
        self.mode = "rb"
        self._size, self._crc, self._chain_id = entry.size, entry.crc, entry.chain_id
        self._at = 0
        self._summed, self._sum = 0, 0    # the CRC of so many bytes from the first on

    def _open(self) -> Opened:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        return self._file

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
        file = self._open()
        with memoryview(buffer).cast("B") as view:
            n = file.pread(view, self._at)
            if n:
                self._look(view[:n])
            elif len(view) and self._at < self._size:
                raise self._differs()
        self._at += n
        return n

    def readall(self) -> bytes:
        file = self._open()
        data, n, more = bytearray(max(self._size - self._at, 0) + 1), 0, 1
        while more:                       # once at least: it may have grown, and a read gives 2 GiB at most
            if n == len(data):
                data += bytes(BUFFER)
            with memoryview(data) as view:
                more = file.pread(view[n:], self._at + n)
            n += more
        del data[n:]
        if len(data) < self._size - self._at:
            raise self._differs()
        self._look(data)
        self._at += len(data)
        return bytes(data)

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
            self._file.close()


def open_bytes(open_file: Callable[[], int | Opened], entry: FileEntry) -> io.BufferedReader:
    """Return a regular file's bytes: a readable, seekable binary file. Read whole, it checks the CRC.

    open_file   opens the file: a descriptor, or what reads it
    """
    try:
        opened = open_file()
    except CorruptLayerError as err:
        raise err.about(chain_id=entry.chain_id) from None
    file = _Descriptor(opened) if isinstance(opened, int) else opened
    try:
        return io.BufferedReader(_Bytes(file, entry), BUFFER)
    except BaseException:
        file.close()
        raise
