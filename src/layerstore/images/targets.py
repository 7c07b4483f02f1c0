"""Where an archive of images goes: a tar, written from its first byte to its last, or a directory."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from typing import Any, Protocol

from layerstore import _files
from layerstore.errors import ImageError
from layerstore.tarstream import write_whole


class Target(Protocol):
    """What takes files by name."""

    def directory(self, name: str) -> None:
        """Make a directory."""
        ...

    def file(self, name: str, data: bytes) -> None:
        """Write a small file."""
        ...

    def link(self, name: str, to: str) -> None:
        """Make a symbolic link."""
        ...

    def stream(self, name: str, size: int, write_to: Callable[[Any], int]) -> None:
        """Write a file of size bytes by write_to(a descriptor or binary file)."""
        ...

    def take(self, path: str, name: str, size: int) -> None:
        """Let a file that was written there meanwhile have its name; in a directory only."""
        ...


class TarTarget:
    """A tar that is written to a descriptor or a binary file. Owners, modes and times are always the same."""

    def __init__(self, out: Any) -> None:
        """out   a descriptor, or a file with write(bytes)"""
        self._out = out
        self.written = 0

    def _write(self, data: bytes) -> None:
        if isinstance(self._out, int):
            _files.write_all(self._out, data)
        else:
            write_whole(self._out, data)
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
    """A directory that is made."""

    def __init__(self, path: str) -> None:
        """path   made here, or empty"""
        self._path = path
        self.written = 0

    def directory(self, name: str) -> None:
        """Make one below."""
        os.mkdir(os.path.join(self._path, name), 0o755)

    def file(self, name: str, data: bytes) -> None:
        """Write one below."""
        with open(os.path.join(self._path, name), "xb") as out:
            out.write(data)
        self.written += len(data)

    def link(self, name: str, to: str) -> None:
        """Make one below."""
        os.symlink(to, os.path.join(self._path, name))

    def stream(self, name: str, size: int, write_to: Callable[[Any], int]) -> None:
        """Write one below."""
        with open(os.path.join(self._path, name), "xb", buffering=0) as out:
            self.written += write_to(out)

    def take(self, path: str, name: str, size: int) -> None:
        """Rename one below."""
        os.rename(os.path.join(self._path, path), os.path.join(self._path, name))
        self.written += size
