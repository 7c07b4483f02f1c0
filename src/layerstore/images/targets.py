"""Where an archive of images goes: a tar, written from its first byte to its last, or a directory."""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol

from layerstore._core import _files
from layerstore.disk.textfile import naming, random_number, remove_below
from layerstore.errors import ImageError, readable
from layerstore.streams.tarstream import write_whole


class Target(Protocol):
    """What takes files by name."""

    def directory(self, name: str) -> None:
        """Make a directory."""

    def file(self, name: str, data: bytes) -> None:
        """Write a small file."""

    def link(self, name: str, to: str) -> None:
        """Make a symbolic link."""

    def stream(self, name: str, size: int, write_to: Callable[[Any], int]) -> None:
        """Write a file of size bytes by write_to(a descriptor or binary file)."""

    def take(self, path: str, name: str, size: int) -> None:
        """Rename a file that was written there meanwhile; in a directory only."""
        ...


def write_out(out: Any, data: bytes) -> None:
    """Write all of data to a descriptor or a binary file."""
    if isinstance(out, int):
        _files.write_all(out, data)
    else:
        write_whole(out, data)


class TarTarget:
    """A tar that is written to a descriptor or a binary file. Owners, modes and times are always the same."""

    def __init__(self, out: Any) -> None:
        """out   a descriptor, or a file with write(bytes)"""
        self._out = out
        self.written = 0

    def _write(self, data: bytes) -> None:
        write_out(self._out, data)
        self.written += len(data)

    def _header(self, name: str, kind: bytes, size: int, mode: int, to: str = "") -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.size, entry.mode, entry.linkname = kind, size, mode, to
        self._write(entry.tobuf(tarfile.PAX_FORMAT))

    def directory(self, name: str) -> None:
        """Write a directory's entry."""
        self._header(name + "/", tarfile.DIRTYPE, 0, 0o755)

    def file(self, name: str, data: bytes) -> None:
        """Write a file's entry with its bytes."""
        self._header(name, tarfile.REGTYPE, len(data), 0o644)
        self._write(data + bytes(-len(data) % 512))

    def link(self, name: str, to: str) -> None:
        """Write a link's entry."""
        self._header(name, tarfile.SYMTYPE, 0, 0o777, to)

    def stream(self, name: str, size: int, write_to: Callable[[Any], int]) -> None:
        """Write a file's entry, its bytes by write_to."""
        self._header(name, tarfile.REGTYPE, size, 0o644)
        got = write_to(self._out)
        if got != size:
            raise ImageError(f"the layer has {got} bytes, not {size}")
        self.written += got
        self._write(bytes(-size % 512))

    def take(self, path: str, name: str, size: int) -> None:
        """Raise: a tar has no files beside it."""
        raise NotImplementedError

    def end(self) -> None:
        """Write the end mark."""
        self._write(bytes(1024))


class DirectoryTarget:
    """A directory that is made, all beneath its descriptor."""

    def __init__(self, fd: int, path: str) -> None:
        """fd   of an empty directory, lent.  path: what it will be called, for errors"""
        self._fd, self._path = fd, path
        self.written = 0

    def _naming(self, name: str) -> contextlib.AbstractContextManager[None]:
        return naming(os.path.join(self._path, name), instead_of=name)

    def create(self, name: str) -> IO[bytes]:
        """Make a file below, and open it."""
        with self._naming(name):
            fd = _files.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=self._fd)
        return open(fd, "wb", buffering=0)

    def directory(self, name: str) -> None:
        """Make one below."""
        with self._naming(name):
            os.mkdir(name, 0o755, dir_fd=self._fd)

    def file(self, name: str, data: bytes) -> None:
        """Write one below."""
        with self.create(name) as out, self._naming(name):
            write_whole(out, data)
        self.written += len(data)

    def link(self, name: str, to: str) -> None:
        """Make one below."""
        with self._naming(name):
            os.symlink(to, name, dir_fd=self._fd)

    def stream(self, name: str, size: int, write_to: Callable[[Any], int]) -> None:
        """Write one below."""
        with self.create(name) as out, self._naming(name):
            self.written += write_to(out)

    def take(self, path: str, name: str, size: int) -> None:
        """Rename one below."""
        with self._naming(name):
            os.rename(path, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        self.written += size


@contextlib.contextmanager
def new_directory(path: str) -> Iterator[DirectoryTarget]:
    """Make a directory that is at path, and on the disk, once the block ended well. Raises ImageError if not empty."""
    if os.path.isdir(path) and not _is_empty(path):
        raise ImageError(f"{readable(path)} is not empty", path=path)
    path = os.path.realpath(path)
    above, name = os.path.split(path)
    beside = f"{name}.tmp-{random_number()}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(naming(path, instead_of=beside))
        place = _files.open(above, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(_files.close, place)
        os.mkdir(beside, 0o777, dir_fd=place)
        try:
            fd = _files.open(beside, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
            stack.callback(_files.close, fd)
            yield DirectoryTarget(fd, path)
            _sync_below(fd)
            os.rename(beside, name, src_dir_fd=place, dst_dir_fd=place)
            _files.fsync(place)
        except BaseException:
            remove_below(place, above, beside)
            raise


def _is_empty(path: str) -> bool:
    fd = _files.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _files.is_empty(fd)
    finally:
        _files.close(fd)


def _sync_below(fd: int) -> None:
    """Sync the files below a directory, and their names."""
    for _, _, names, place in os.fwalk(".", topdown=False, dir_fd=fd):
        for name in names:
            if stat.S_ISREG(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode):
                file = _files.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=place)
                try:
                    _files.fsync(file)
                finally:
                    _files.close(file)
        _files.fsync(place)
