"""Where the parts of an archive stand: a tar that can be read at any place, or the directory of a layout.

A shelf gives documents whole, as they are small, and lends everything else as a section of a file. Names are paths in
the archive; what leads out of it is not there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Protocol

from layerstore import _files
from layerstore.errors import ImageError, readable
from layerstore.imagedb import DOCUMENT_LIMIT
from layerstore.images.archive import FILE, HARD_LINK, LINK, Entry, entries, plain_path
from layerstore.sources import Section

# All documents of an archive together.
DOCUMENTS_LIMIT = 8 * DOCUMENT_LIMIT
_LINKS_LIMIT = 10


class MissingError(ImageError):
    """What the archive's documents name is not in it, or not yet."""


class Shelf(Protocol):
    """What documents are read from."""

    def document(self, name: str) -> bytes | None:
        """Read a small file whole; None: it is not there. Raises ImageError (too large), OSError."""
        ...

    def names(self) -> list[str]:
        """Name all there is; [] where nobody looked."""
        ...


def needed(shelf: Shelf, name: str) -> bytes:
    """Read a document that must be there. Raises MissingError."""
    found = shelf.document(name)
    if found is None:
        raise MissingError(f"the archive has no {readable(name)}")
    return found


def _check_size(name: str, size: int) -> None:
    if size > DOCUMENT_LIMIT:
        raise ImageError(f"{readable(name)} in the archive has {size} bytes, a document has at most {DOCUMENT_LIMIT}")


class Catalogue:
    """The entries of a tar by name, links followed within it."""

    def __init__(self) -> None:
        """Begin without any."""
        self._entries: dict[str, Entry] = {}
        self._twice: set[str] = set()

    def add(self, entry: Entry) -> None:
        """Enter one."""
        if entry.name in self._entries and entry.kind in (FILE, LINK, HARD_LINK):
            self._twice.add(entry.name)
        self._entries[entry.name] = entry

    def names(self) -> list[str]:
        """Name all, in their order."""
        return list(self._entries)

    def find(self, name: str) -> Entry | None:
        """Give the file of this name. Raises ImageError: it is no file, or not one alone."""
        at = plain_path(name)
        for _ in range(_LINKS_LIMIT):
            if at in self._twice:
                raise ImageError(f"{readable(at)} is in the archive more than once")
            entry = self._entries.get(at)
            if entry is None or entry.kind == FILE:
                return entry
            if entry.kind not in (LINK, HARD_LINK) or not entry.target:
                raise ImageError(f"{readable(at)} in the archive is no file of it")
            at = entry.target
        raise ImageError(f"links in the archive lead in a circle: {readable(name)}")


class TarShelf:
    """A tar in a regular file, from where it stands: read at its own offsets, from many threads."""

    def __init__(self, fd: int, start: int) -> None:
        """Read all headers. fd is lent. Raises ImageError, OSError."""
        self.fd = fd
        self._at = start
        self._end = os.fstat(fd).st_size
        self._catalogue = Catalogue()
        for entry in entries(self._read, self._skip, lambda: self._at - start):
            found = entry._replace(offset=entry.offset + start)
            if found.offset + found.size > self._end:
                raise ImageError(f"the archive is cut: {readable(entry.name)} ends behind its end")
            self._catalogue.add(found)

    def _read(self, n: int) -> bytes:
        data = b""
        while len(data) < n and (more := _files.read(self.fd, n - len(data), self._at)):
            data += more
            self._at += len(more)
        return data

    def _skip(self, n: int) -> None:
        self._at += n

    def names(self) -> list[str]:
        """Name all entries."""
        return self._catalogue.names()

    def document(self, name: str) -> bytes | None:
        """Read a small file whole."""
        entry = self._catalogue.find(name)
        if entry is None:
            return None
        _check_size(name, entry.size)
        return os.pread(self.fd, entry.size, entry.offset)

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Section]:
        """Lend a file for the length of a `with` block. Raises MissingError."""
        entry = self._catalogue.find(name)
        if entry is None:
            raise MissingError(f"the archive has no {readable(name)}")
        yield Section(self.fd, entry.offset, entry.size)


class DirectoryShelf:
    """A layout in a directory. No link leads out of it, and nothing waits on a fifo."""

    def __init__(self, path: str) -> None:
        """Open it. Raises OSError."""
        self._fd = _files.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def close(self) -> None:
        """Close what was opened here."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _files.close(fd)

    def names(self) -> list[str]:
        """Name what lies two floors deep, as the oldest archives do."""
        found = []
        for top in sorted(os.listdir(self._fd)):
            found.append(top)
            with contextlib.suppress(OSError):
                fd = _files.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._fd)
                try:
                    found += [f"{top}/{name}" for name in sorted(os.listdir(fd))]
                finally:
                    _files.close(fd)
        return found

    def _open(self, name: str) -> int | None:
        """A regular file's descriptor; None: it is not there. Links are read, and followed only inside."""
        for _ in range(_LINKS_LIMIT):
            at = plain_path(name)
            if not at or at == ".":
                return None
            found = self._step(at)
            if isinstance(found, int) or found is None:
                return found
            name = found
        raise ImageError(f"links in the layout lead in a circle: {readable(name)}")

    def _step(self, path: str) -> int | str | None:
        """The file's descriptor, or the path that the first link on the way means."""
        parts = path.split("/")
        directory = os.dup(self._fd)
        try:
            for number, part in enumerate(parts):
                last = number == len(parts) - 1
                flags = os.O_RDONLY | os.O_NOFOLLOW | (os.O_NONBLOCK | os.O_NOCTTY if last else os.O_DIRECTORY)
                try:
                    fd = _files.open(part, flags, dir_fd=directory)
                except FileNotFoundError:
                    return None
                except OSError as err:
                    target = self._link(part, directory) if err.errno in (errno.ELOOP, errno.ENOTDIR) else None
                    if target is None:
                        raise
                    where = plain_path("/".join([*parts[:number], target, *parts[number + 1 :]]))
                    if target.startswith("/") or not where:
                        raise ImageError(f"{readable(path)} leads out of the layout") from None
                    return where
                _files.close(directory)
                directory = fd
            if not stat.S_ISREG(_files.mode_of(directory)):
                raise ImageError(f"{readable(path)} in the layout is no file")
            found, directory = directory, -1
            return found
        finally:
            if directory >= 0:
                _files.close(directory)

    @staticmethod
    def _link(name: str, directory: int) -> str | None:
        try:
            return os.readlink(name, dir_fd=directory)
        except OSError:
            return None

    def document(self, name: str) -> bytes | None:
        """Read a small file whole."""
        fd = self._open(name)
        if fd is None:
            return None
        try:
            _check_size(name, os.fstat(fd).st_size)
            return os.pread(fd, DOCUMENT_LIMIT, 0)
        finally:
            _files.close(fd)

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Section]:
        """Lend a file for the length of a `with` block. Raises MissingError, OSError."""
        fd = self._open(name)
        if fd is None:
            raise MissingError(f"the layout has no {readable(name)}")
        try:
            yield Section(fd, 0, os.fstat(fd).st_size)
        finally:
            _files.close(fd)
