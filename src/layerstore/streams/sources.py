"""The sources of a tar, and how they are fed to the core.

In: a descriptor, a path, a buffer, a real file, or anything with read(n). Out: all of its bytes, read by the core if it
can, so that no Python runs per block. gzip and zstd go in as they are; bzip2, xz and lz4 are decompressed on the way.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import stat
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from layerstore._core import _files
from layerstore._core._apply import Apply, guess_format
from layerstore.disk.textfile import descriptor_of, naming_file
from layerstore.errors import NotSupportedError, TarFormatError
from layerstore.streams.decompress import decompress
from layerstore.streams.progress import Teller
from layerstore.values import Progress

BLOCK = 1 << 20
LEND = 64 << 20   # of a buffer at once: between the parts, signals and progress have their turn
HEAD = 512

FOREIGN = ("bzip2", "xz", "lz4")

WANTED = "a source is a descriptor, a path, a buffer, an iterable of blocks, or has read()"


class TarInput(Protocol):
    """A tar on its way in: an opened source, a TarStream, a part of an archive."""

    def pump_into(self, apply: Apply) -> None:
        """Push the bytes of the tar into apply, once. What this raises ends the call that took the tar."""


class SourceInput(NamedTuple):
    """A source that is opened when it is pumped, and closed behind that."""

    source: Any
    progress: Progress | None = None

    def pump_into(self, apply: Apply) -> None:
        """Push all of the source into apply. Raises what Input() and pump_into() of it raise."""
        with contextlib.closing(Input(self.source, self.progress)) as given:
            given.pump_into(apply)


class Section(NamedTuple):
    """Part of a regular file, as a source: read at its own offsets, so that many may share one descriptor."""

    fd: int
    offset: int
    size: int


def _flat(view: memoryview) -> memoryview:
    """Return the bytes of a buffer of any shape."""
    return view.cast("B") if view.nbytes and view.c_contiguous else memoryview(view.tobytes())


class Blocks:
    """What an iterable of bytes-like blocks gives, to be read: pulled one by one, when they are asked for."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._blocks = iter(source)
        self._left = memoryview(b"")

    def read(self, n: int) -> bytes:
        """Return at most n bytes; b"" at the end. Raises TypeError, and what the iterator raises."""
        while not self._left:
            try:
                block = next(self._blocks)
            except StopIteration:
                return b""
            try:
                view = memoryview(block)
            except TypeError:
                kind = type(block).__name__
                raise TypeError(f"an iterable source gives blocks of bytes, not {kind}") from None
            self._left = _flat(view)
        given, self._left = bytes(self._left[:n]), self._left[n:]
        return given

    def close(self) -> None:
        """End the iterator, if it can be ended, as a generator can."""
        close = getattr(self._blocks, "close", None)
        if close is not None:
            close()


class Input:
    """One opened source: exactly one of fd, buffer and read is set."""

    def __init__(self, source: Any, progress: Progress | None = None) -> None:
        """Look at source. Raises TypeError or OSError, before anything is made.

        progress   told of the bytes that pump_into() takes
        """
        self.progress = progress
        self.fd = self.offset = -1
        self.end = -1                        # of a Section
        self.buffer: memoryview | None = None
        self.lendable = False
        self.read: Callable[[int], Any] | None = None
        self.owned = False
        self.blocks: Blocks | None = None
        self.path: Any = None                # where owned
        self.file: Any = None
        self.given = source
        if isinstance(source, bool) or source is None:
            raise TypeError(f"{WANTED}, not {source!r}")
        if isinstance(source, Section):
            self.fd, self.offset, self.end = source.fd, source.offset, source.offset + source.size
        elif isinstance(source, int):
            with naming_file(source):
                os.fstat(source)
            self.fd = source
        elif isinstance(source, (str, os.PathLike)):
            self.fd, self.path = _files.open(source, os.O_RDONLY), source
            self.owned = True
        elif isinstance(source, (io.FileIO, io.BufferedReader)) and self._is_regular(source):
            with naming_file(source):
                self.fd, self.offset, self.file = source.fileno(), source.tell(), source
        elif hasattr(source, "read"):
            if isinstance(source, io.TextIOBase):
                raise TypeError("a source gives bytes, not text: open the file in binary mode")
            if getattr(source, "closed", False):
                raise ValueError("I/O operation on closed file.")
            self.read = source.read
        else:
            self._take_buffer_or_blocks(source)
        try:
            mode = _files.mode_of(self.fd) if self.fd >= 0 else 0
        except OSError:
            self.close()
            raise
        self.regular = stat.S_ISREG(mode)
        if stat.S_ISDIR(mode):
            self.close()
            raise IsADirectoryError(21, "Is a directory", source if not isinstance(source, int) else None)

    def _take_buffer_or_blocks(self, source: Any) -> None:
        try:
            view = memoryview(source)
        except TypeError:
            if not isinstance(source, Iterable):
                raise TypeError(f"{WANTED}, not {type(source).__name__}") from None
        else:
            self.buffer = _flat(view)
            # Two threads look at lent bytes at different moments: only what cannot change is lent.
            self.lendable = isinstance(view.obj, bytes) or not view.c_contiguous
        self.blocks = Blocks(source if self.buffer is None else [self.buffer])
        self.read = self.blocks.read

    @staticmethod
    def _is_regular(source: Any) -> bool:
        if source.closed:
            raise ValueError("I/O operation on closed file.")
        fd = descriptor_of(source)
        return fd is not None and source.readable() and stat.S_ISREG(_files.mode_of(fd))

    def reread(self) -> tuple[int, int]:
        """Return where a plain tar can be read again: (descriptor, offset), or (-1, 0)."""
        if self.regular:
            return self.fd, self._position()
        return -1, 0

    def left(self) -> int:
        """Return how many bytes may still be there; for a Section, how many there are."""
        return self.end - self.offset if self.end >= 0 else 1 << 40

    def block(self) -> bytes:
        """Return its next bytes; b"" at the end."""
        if self.read is not None:
            with naming_file(self.given):
                block = self.read(BLOCK)
            if not isinstance(block, (bytes, bytearray, memoryview)):
                raise TypeError(f"read() of a source must give bytes, not {type(block).__name__}")
            return bytes(block)
        if self.offset >= 0:
            found = _files.read(self.fd, min(BLOCK, self.left()), self.offset)
            self.offset += len(found)
            return found
        return read_waiting(self.fd, BLOCK)

    def head(self) -> bytes:
        """Return the first bytes, to tell what it is; those of a regular file are not taken."""
        if self.regular:
            return _files.read(self.fd, min(HEAD, self.left()), self._position())
        head = b""
        while len(head) < HEAD and (block := self.block()):
            head += block
        return head

    def length(self) -> int | None:
        """Return how many bytes are still to be taken, or None if that is unknown."""
        if self.end >= 0:
            return self.left()
        if self.buffer is not None:
            return len(self.buffer)
        if not self.regular:
            return None
        with naming_file(self.fd):
            return max(os.fstat(self.fd).st_size - self._position(), 0)

    def _position(self) -> int:
        with naming_file(self.fd):
            return self.offset if self.offset >= 0 else os.lseek(self.fd, 0, os.SEEK_CUR)

    def pump_into(self, apply: Apply) -> None:
        """Push all of it into apply. What read() and progress raise passes through."""
        if hasattr(self.given, "pump_into"):          # a TarStream: no byte of it passes through Python
            self.given.pump_into(apply, self.progress)
            return
        teller = Teller(self.progress, self.length() if self.progress is not None else None)
        head = self.head()
        format = guess_format(head[:HEAD])
        if self.regular:
            head = b""
        if format in FOREIGN:
            _feed_foreign(self, apply, teller, format, head)
            return
        if self.buffer is not None and self.lendable:
            _lend(self.buffer, apply, teller)
            return
        done = bool(head) and apply.push(head)
        if self.fd >= 0:
            while not done:
                ms = 100 if self.progress is not None else 250
                done, offset = apply.pump(self.fd, self.offset, self.left(), ms)
                self.offset = offset if self.offset >= 0 else -1
                done = done or not self.left()
                teller.tell(apply.taken)
        else:
            while not done and (block := self.block()):
                done = apply.push(block)
                teller.tell(apply.taken)
        teller.tell(apply.taken, end=True)

    def close(self) -> None:
        """Close what was opened here, and an iterator; leave a file where reading stopped."""
        if self.file is not None and self.offset >= 0:
            with contextlib.suppress(ValueError, OSError):
                self.file.seek(self.offset)
        if self.owned and self.fd >= 0:
            _files.close(self.fd, self.path)
        self.fd, self.owned, self.buffer = -1, False, None
        if self.blocks is not None:
            self.blocks.close()


def read_waiting(fd: int, n: int) -> bytes:
    """Read up to n bytes of a descriptor, and wait if it has none now."""
    while True:
        try:
            with naming_file(fd):
                return os.read(fd, n)
        except BlockingIOError:
            select.select([fd], [], [])


def refuse_nothing(applied: Any) -> None:
    """Raise TarFormatError for a tar of no bytes: mostly what a pipe gives whose writer failed.

    applied   the core's Applied
    """
    if not applied.tar_size:
        raise TarFormatError("no tar: the source was empty", offset=0)


def _lend(buffer: memoryview, apply: Apply, teller: Teller) -> None:
    for at in range(0, len(buffer), LEND):
        if apply.lend(buffer[at : at + LEND]):
            break
        teller.tell(apply.taken)
    teller.tell(apply.taken, end=True)


def _feed_foreign(source: Input, apply: Apply, teller: Teller, format: str, head: bytes) -> None:
    """Push what bzip2, xz or lz4 unpacks to. Raises NotSupportedError if the core is to take the source's digest."""
    if apply.digest:
        raise NotSupportedError(f"no digest is taken of a source that is compressed with {format}")
    taken, waiting = 0, [head]

    def read() -> bytes:
        nonlocal taken
        block = (waiting.pop() if waiting else b"") or source.block()
        taken += len(block)
        return block

    def give(block: bytes) -> bool:
        done = apply.push(block)
        teller.tell(taken)
        return bool(done)

    decompress(format, read, give, apply.max_window)
    teller.tell(taken, end=True)
