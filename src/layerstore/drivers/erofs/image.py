"""The file of one layer: opened with suspicion, and how many bytes of it are its tar.

    0        1024          4096             4096 + T                       end
    | zeros  | superblock  | the tar         | metadata, expanded files     |
A path comes in; a descriptor and T come out. Whatever lies there, no link is followed and no fifo is waited on.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import Final

from layerstore._core import _files
from layerstore.disk.locks import Scope
from layerstore.disk.textfile import naming_file, read_text
from layerstore.errors import CorruptLayerError, LayerStoreError, readable

HEADER: Final = 4096
"""Where the tar begins."""
_BLOCK = 512
# Fields of the superblock, in the file: its magic number, where the metadata begins, and a name of 16 bytes.
_MAGIC_AT, _MAGIC = 1024, b"\xe2\xe1\xf5\xe0"
_META_AT = 1024 + 40
_NAME_AT, _NAME_SIZE, _NAME_BEGINS = 1024 + 64, 16, b"tar:"
_DIGITS = 19
_COMPARED = 4 << 20


def opened(path: str) -> Scope[int]:
    """Open a layer's file for reading, for the length of a `with` block.

    Raises  FileNotFoundError, OSError
            CorruptLayerError   what lies there is no regular file
    """
    return Scope(lambda: open_regular(path), _files.close)


def open_regular(path: str) -> int:
    """Do what opened() does; the caller closes the descriptor."""
    try:
        fd = _files.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as err:
        if err.errno not in (errno.ELOOP, errno.ENXIO):      # a link, a socket
            raise
        raise _no_file(path) from None
    try:
        if not stat.S_ISREG(_files.mode_of(fd)):
            raise _no_file(path)
    except BaseException:
        _files.close(fd, path)
        raise
    return fd


def _no_file(path: str) -> CorruptLayerError:
    return CorruptLayerError(f"{readable(path)} is not a regular file", path=path)


# ---- how long the tar is ----


def noted(path: str) -> int | None:
    """Return what a file `length` says; None: no such file, or no number in it."""
    try:
        return _number(read_text(path).encode("utf-8", "surrogateescape"))
    except (OSError, LayerStoreError):
        return None


def named(fd: int) -> int | None:
    """Return what the volume's name says; None: it says nothing."""
    name = _files.read(fd, _NAME_SIZE, _NAME_AT).rstrip(b"\0")
    if not name.startswith(_NAME_BEGINS):
        return None
    return _number(name.removeprefix(_NAME_BEGINS))


def _number(digits: bytes) -> int | None:
    return int(digits) if digits.isdigit() and len(digits) <= _DIGITS else None


def tar_size(fd: int, length: str) -> int:
    """Return how many bytes the tar has, as the file `length` says, else as the volume's name does.

    What leads to the metadata is preferred. Where neither fits, but both say the same, the file was cut.
    Raises CorruptLayerError: neither can be right.
    """
    room = file_size(fd) - HEADER
    told = [size for size in (noted(length), named(fd)) if size is not None]
    fitting = [size for size in told if size <= room]
    for size in fitting:
        if _metadata_behind(size) == _metadata_at(fd):
            return size
    if fitting:
        return fitting[0]
    if len(told) == 2 and told[0] == told[1]:
        return told[0]
    text = f"how long the tar is cannot be told: {readable(length)} is no number that fits, nor the volume's name"
    raise CorruptLayerError(text, path=length)


def file_size(fd: int) -> int:
    """Return how many bytes the whole file has."""
    with naming_file(fd):
        return os.fstat(fd).st_size


def _metadata_behind(size: int) -> int:
    """Return the block where the metadata begins behind a tar of this size."""
    return (HEADER + size + _BLOCK - 1) // _BLOCK


def _metadata_at(fd: int) -> int:
    """Return the block where the superblock says that it begins; -1: that is none."""
    if _files.read(fd, len(_MAGIC), _MAGIC_AT) != _MAGIC:
        return -1
    return int.from_bytes(_files.read(fd, 4, _META_AT), "little")


# ---- two of them ----


def are_equal(fd: int, other: int) -> bool:
    """Return True if two files have the same bytes: header and metadata are compared first."""
    with naming_file(other):
        size = os.fstat(fd).st_size
        if os.fstat(other).st_size != size:
            return False
        ends = ((0, HEADER), (max(size - _COMPARED, 0), size))
        return all(_same(fd, other, at, end) for at, end in (*ends, (HEADER, size)))


def _same(fd: int, other: int, at: int, end: int) -> bool:
    """Compare a part of both, but for holes that both have: a sparse file in an image may be larger than the disk."""
    while (at := min(_next_data(fd, at), _next_data(other, at))) < end:
        n = min(_COMPARED, end - at)
        data = os.pread(fd, n, at)
        if not data or data != os.pread(other, n, at):
            return False
        at += len(data)
    return True


def _next_data(fd: int, at: int) -> int:
    """Return where the next bytes begin that are in no hole."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as err:
        if err.errno != errno.ENXIO:
            raise
        return sys.maxsize                        # a hole up to the end
