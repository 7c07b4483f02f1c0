"""What the contract calls Source, and how it is fed to the core.

In: a descriptor, a path, a buffer, a real file, or anything with read(n). Out: every byte of it, in the
core's own reads where that can be, so that no Python runs per block. gzip and zstd go in as they are;
bzip2, xz and lz4 are opened by libarchive on the way.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

from layerstore._apply import Apply, guess_format
from layerstore.decompress import plain_blocks

BLOCK = 1 << 20
LEND = 64 << 20   # of a buffer at once: between the parts, signals and progress have their turn
HEAD = 512
Progress = Callable[[int], None]
FOREIGN = ("bzip2", "xz", "lz4")


class Input:
    """One opened source: exactly one of fd, buffer and read is set."""

    def __init__(self, source: Any) -> None:
        """Look at source. Raises TypeError or OSError, before anything is made."""
        self.fd = self.offset = -1
        self.buffer: Any = None
        self.read: Callable[[int], Any] | None = None
        self.owned = False
        self.file: Any = None
        if isinstance(source, bool) or source is None:
            raise TypeError(f"a source is a descriptor, a path, a buffer or has read(), not {source!r}")
        if isinstance(source, int):
            os.fstat(source)
            self.fd = source
        elif isinstance(source, (str, os.PathLike)):
            self.fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            self.owned = True
        elif isinstance(source, (io.FileIO, io.BufferedReader)) and self._is_regular(source):
            self.fd, self.offset, self.file = source.fileno(), source.tell(), source
        elif hasattr(source, "read"):
            if isinstance(source, io.TextIOBase):
                raise TypeError("a source gives bytes, not text: open the file in binary mode")
            if getattr(source, "closed", False):
                raise ValueError("I/O operation on closed file.")
            self.read = source.read
        else:
            try:
                self.buffer = memoryview(source)
            except TypeError:
                kind = type(source).__name__
                raise TypeError(f"a source is a descriptor, a path, a buffer or has read(), not {kind}") from None
        if self.fd >= 0 and stat.S_ISDIR(os.fstat(self.fd).st_mode):
            self.close()
            raise IsADirectoryError(21, "Is a directory", source if not isinstance(source, int) else None)

    @staticmethod
    def _is_regular(source: Any) -> bool:
        if source.closed:
            raise ValueError("I/O operation on closed file.")
        return source.readable() and stat.S_ISREG(os.fstat(source.fileno()).st_mode)

    def reread(self) -> tuple[int, int]:
        """Where a plain tar can be read again: (descriptor, offset), or (-1, 0)."""
        if self.fd >= 0 and stat.S_ISREG(os.fstat(self.fd).st_mode):
            return self.fd, self.offset if self.offset >= 0 else os.lseek(self.fd, 0, os.SEEK_CUR)
        return -1, 0

    def blocks(self) -> Iterator[bytes]:
        """All of it, as bytes objects."""
        if self.buffer is not None:
            view = self.buffer.cast("B") if self.buffer.nbytes else memoryview(b"")
            for at in range(0, len(view), BLOCK):
                yield bytes(view[at : at + BLOCK])
            return
        while True:
            if self.read is not None:
                block = self.read(BLOCK)
                if not isinstance(block, (bytes, bytearray, memoryview)):
                    raise TypeError(f"read() of a source must give bytes, not {type(block).__name__}")
                block = bytes(block)
            elif self.offset >= 0:
                block = os.pread(self.fd, BLOCK, self.offset)
                self.offset += len(block)
            else:
                block = self._read_descriptor()
            if not block:
                return
            yield block

    def _read_descriptor(self) -> bytes:
        while True:
            try:
                return os.read(self.fd, BLOCK)
            except BlockingIOError:
                select.select([self.fd], [], [])

    def close(self) -> None:
        """Close what was opened here; leave a file where reading stopped."""
        if self.file is not None and self.offset >= 0:
            with contextlib.suppress(ValueError, OSError):
                self.file.seek(self.offset)
        if self.owned and self.fd >= 0:
            os.close(self.fd)
        self.fd, self.owned, self.buffer = -1, False, None


class _Teller:
    """Calls progress at most ten times a second, and once at the end."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.last = progress, 0.0

    def tell(self, taken: int, *, end: bool = False) -> None:
        now = time.monotonic()
        if self.progress and (end or now - self.last >= 0.1):
            self.last = now
            self.progress(taken)


def feed(source: Input, apply: Apply, progress: Progress | None = None) -> None:
    """Push all of source into apply. What read() and progress raise passes through."""
    teller = _Teller(progress)
    if source.buffer is not None:
        data = source.buffer
        format = guess_format(bytes(data.cast("B")[:HEAD]) if data.nbytes else b"")
        if format not in FOREIGN:
            view = data.cast("B") if data.nbytes and data.contiguous else memoryview(bytes(data))
            for at in range(0, len(view), LEND):
                if apply.lend(view[at : at + LEND]):
                    break
                teller.tell(apply.taken)
            teller.tell(apply.taken, end=True)
            return
    blocks = source.blocks()
    head = b""
    while len(head) < HEAD and (block := next(blocks, b"")):
        head += block
    format = guess_format(head[:HEAD])

    def all_blocks() -> Iterator[bytes]:
        if head:
            yield head
        yield from blocks

    if format in FOREIGN:
        packed, taken = all_blocks(), 0

        def read() -> bytes:
            nonlocal taken
            block = next(packed, b"")
            taken += len(block)
            return block

        for block in plain_blocks(format, read):
            done = apply.push(block)
            teller.tell(taken)
            if done:
                break
        teller.tell(taken, end=True)
        return
    done = bool(head) and apply.push(head)
    if source.fd >= 0:
        while not done:
            done, offset = apply.pump(source.fd, source.offset, 1 << 40, 100 if progress else 250)
            source.offset = offset if source.offset >= 0 else -1
            teller.tell(apply.taken)
    else:
        while not done and (block := next(blocks, b"")):
            done = apply.push(block)
            teller.tell(apply.taken)
    teller.tell(apply.taken, end=True)
