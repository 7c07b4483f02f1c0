"""Where the parts of an archive stand: a tar that can be read at any place, or the directory of a layout.

A shelf returns documents whole, as they are small, and lends everything else as a section of a file. Names are paths in
the archive; what leads outside does not exist. All shelves show the same archive alike.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import hashlib
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from layerstore._core import _files
from layerstore.errors import ImageError, readable
from layerstore.ids import Digest
from layerstore.images.archive import ENTRIES_LIMIT, Entry, cut, entries, plain_path
from layerstore.images.catalogue import Catalogue, follow
from layerstore.layerdb.imagedb import DOCUMENT_LIMIT
from layerstore.streams.sources import BLOCK, Section

# All documents of an archive that are needed, together.
DOCUMENTS_LIMIT = 20 << 20


class MissingError(ImageError):
    """A file that the archive's documents name is not in it, or not yet."""


class Shelf(Protocol):
    """What documents are read from."""

    def document(self, name: str) -> bytes | None:
        """Read a small file whole; None: it is not there. Raises ImageError (too large), OSError."""

    def has(self, name: str) -> bool:
        """Return True if there is a file of this name."""
        ...

    def names(self) -> list[str]:
        """Name all there is, as far as the oldest archives need it."""


def missing(name: str) -> MissingError:
    """Return the error that names what is not there."""
    return MissingError(f"the archive has no {readable(name)}")


def too_large(name: str, size: int) -> ImageError:
    """Return the error of a document that is too large to read."""
    return ImageError(f"{readable(name)} in the archive has {size} bytes, a document has at most {DOCUMENT_LIMIT}")


def needed(shelf: Shelf, name: str) -> bytes:
    """Read a document that must be there. Raises MissingError."""
    found = shelf.document(name)
    if found is None:
        raise missing(name)
    return found


def hash_section(section: Section, algorithm: str, stop: Callable[[], None]) -> Digest:
    """Return the digest of a part of a file. stop: called now and then; what it raises ends the work."""
    hashed = hashlib.new(algorithm)
    at, end = section.offset, section.offset + section.size
    while at < end:
        stop()
        block = os.pread(section.fd, min(BLOCK, end - at), at)
        if not block:
            break
        hashed.update(block)
        at += len(block)
    return Digest(f"{algorithm}:{hashed.hexdigest()}")


class OpenShelf(Shelf):
    """A shelf whose files can be read in any order."""

    @abc.abstractmethod
    def find(self, name: str) -> contextlib.AbstractContextManager[Section | None]:
        """Lend a file for the length of a `with` block; None: it is not there."""

    def has(self, name: str) -> bool:
        """Return True if there is such a file."""
        with self.find(name) as found:
            return found is not None

    def document(self, name: str) -> bytes | None:
        """Read a small file whole."""
        with self.find(name) as found:
            if found and found.size > DOCUMENT_LIMIT:
                raise too_large(name, found.size)
            return os.pread(found.fd, found.size, found.offset) if found else None

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Section]:
        """Lend a file for the length of a `with` block. Raises MissingError, OSError."""
        with self.find(name) as found:
            if found is None:
                raise missing(name)
            yield found


class TarShelf(OpenShelf):
    """A tar in a regular file, from where it stands: read at its own offsets, from many threads."""

    def __init__(self, fd: int, start: int) -> None:
        """Read all headers. fd is lent. Raises ImageError, OSError."""
        self.fd = fd
        self._at = start
        self._end = os.fstat(fd).st_size
        self._catalogue = Catalogue(self._same)
        for entry in entries(self._read, self._skip, lambda: self._at - start):
            found = entry._replace(offset=entry.offset + start)
            if found.offset + found.size > self._end:
                raise cut(found)
            self._catalogue.add(found)
        self._catalogue.end()

    def _read(self, n: int) -> bytes:
        data = b""
        while len(data) < n and (more := _files.read(self.fd, n - len(data), self._at)):
            data += more
            self._at += len(more)
        return data

    def _skip(self, n: int) -> None:
        self._at += n

    def _same(self, one: Entry, other: Entry) -> bool:
        if one.size != other.size:
            return False
        first, second = (Section(self.fd, entry.offset, entry.size) for entry in (one, other))
        return hash_section(first, "sha256", lambda: None) == hash_section(second, "sha256", lambda: None)

    def names(self) -> list[str]:
        """Name all entries."""
        return self._catalogue.names()

    @contextlib.contextmanager
    def find(self, name: str) -> Iterator[Section | None]:
        """Lend a file for the length of a `with` block; None: it is not there."""
        entry = self._catalogue.find(name)
        yield Section(self.fd, entry.offset, entry.size) if entry else None


class DirectoryShelf(OpenShelf):
    """A layout in a directory. No link leads out of it, and nothing waits on a fifo."""

    def __init__(self, path: str) -> None:
        self._fd = _files.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def close(self) -> None:
        """Close what was opened here."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _files.close(fd)

    def names(self) -> list[str]:
        """Name what lies two floors deep, as the oldest archives do."""
        found = list(itertools.islice(self._floors(), ENTRIES_LIMIT + 1))
        if len(found) > ENTRIES_LIMIT:
            raise ImageError(f"the archive has more than {ENTRIES_LIMIT} entries")
        return found

    def _floors(self) -> Iterator[str]:
        for top in self._listed(self._fd):
            yield top
            with contextlib.suppress(OSError):
                fd = _files.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._fd)
                try:
                    yield from [f"{top}/{name}" for name in self._listed(fd)]
                finally:
                    _files.close(fd)

    @staticmethod
    def _listed(fd: int) -> list[str]:
        with os.scandir(fd) as found:
            return sorted(entry.name for entry in itertools.islice(found, ENTRIES_LIMIT + 1))

    def _open(self, name: str) -> int | None:
        """Open a regular file; None: it is not there. Links are read, and followed only inside."""
        at = follow(name, self._link_at)
        if not at or at == ".":
            return None
        *above, last = at.split("/")
        try:
            with self._opened(above) as directory:
                fd = _files.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as err:
            if err.errno in (errno.ENXIO, errno.ELOOP):      # a socket; a link since a moment ago
                raise ImageError(f"{readable(at)} in the archive is not a file of it") from None
            raise
        try:
            if not stat.S_ISREG(_files.mode_of(fd)):
                raise ImageError(f"{readable(at)} in the archive is not a file of it")
        except BaseException:
            _files.close(fd)
            raise
        return fd

    @contextlib.contextmanager
    def _opened(self, parts: Sequence[str]) -> Iterator[int]:
        """Open a directory below, through no link, for the length of a `with` block."""
        with contextlib.ExitStack() as stack:
            directory = self._fd
            for part in parts:
                directory = _files.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                stack.callback(_files.close, directory)
            yield directory

    def _link_at(self, path: str) -> str | None:
        """Read a link whose own directory is reached through none: follow() asks from the root on."""
        *above, last = path.split("/")
        try:
            with self._opened(above) as directory:
                target = os.readlink(last, dir_fd=directory)
        except OSError:
            return None
        return "" if target.startswith("/") else plain_path("/".join([*above, target]))

    @contextlib.contextmanager
    def find(self, name: str) -> Iterator[Section | None]:
        """Lend a file for the length of a `with` block; None: it is not there."""
        fd = self._open(name)
        if fd is None:
            yield None
            return
        try:
            yield Section(fd, 0, os.fstat(fd).st_size)
        finally:
            _files.close(fd)
