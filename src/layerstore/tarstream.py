"""TarStream: a layer's tar on its way out; and tar-split on its own, assemble() and disassemble()."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from layerstore import _apply, _tarstream
from layerstore.ids import DiffID, diff_id_of
from layerstore.sources import Input, feed

StrPath = str | bytes | os.PathLike[Any]
COPY_BLOCK = 4 << 20


class TarStream(io.RawIOBase):
    """A layer's tar, byte for byte. Context manager; read, readinto, and where seekable() seek.

    Read from its first byte to its end it checks the DiffID, and every file's CRC as it passes:
    CorruptLayerError instead of the end.
    """

    def __init__(
        self, source: _tarstream.Source, *, seekable: bool, on_close: Callable[[], None] | None = None
    ) -> None:
        """Take over source; on_close is called once."""
        self._source = source
        self._seekable = seekable
        self._on_close = on_close

    def _open(self) -> _tarstream.Source:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        return self._source

    def readable(self) -> bool:
        """Say True."""
        return True

    def seekable(self) -> bool:
        """Say whether seek() works: for the recorded tar of a read-only layer."""
        return self._seekable

    def read(self, size: int | None = -1, /) -> bytes:
        """Give size bytes, fewer only at the end; all that is left for -1 or None."""
        return self._open().read(-1 if size is None else size)

    def readall(self) -> bytes:
        """Give all that is left."""
        return self._open().read(-1)

    def readinto(self, buffer: Any, /) -> int:
        """Fill buffer; fewer bytes only at the end."""
        return self._open().readinto(buffer)

    @property
    def size(self) -> int:
        """The whole length in bytes, known before reading."""
        return self._open().size()

    def tell(self) -> int:
        """Give the position of the next byte."""
        return self._open().tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a position; after it only files read whole are checked."""
        source = self._open()
        if not self._seekable:
            raise io.UnsupportedOperation("this tar is made as it is read: it cannot seek")
        if whence == os.SEEK_CUR:
            offset += source.tell()
        elif whence == os.SEEK_END:
            offset += source.size()
        elif whence != os.SEEK_SET:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        if offset < 0:
            raise ValueError(f"negative seek position {offset}")
        source.seek(offset)
        return offset

    def copy_to(self, dst: int | BinaryIO) -> int:
        """Write what is left to a descriptor or a binary file, the fastest way out.

        Returns  bytes written
        Raises   CorruptLayerError   a file or the whole is not what was recorded
        """
        source = self._open()
        total = 0
        _check_file(dst, "write")
        fd = dst if isinstance(dst, int) else -1
        if isinstance(dst, (io.FileIO, io.BufferedWriter)):
            dst.flush()
            fd = dst.fileno()
        if fd >= 0:
            end = False
            while not end:
                end, written = source.copy_to_fd(fd, 1 << 40, 250)
                total += written
            return total
        while block := source.read(COPY_BLOCK):
            view = memoryview(block)
            while view:
                n = cast(BinaryIO, dst).write(view)
                view = view[n if isinstance(n, int) else len(view) :]
            total += len(block)
        return total

    def write(self, _data: Any, /) -> int:
        """Raise io.UnsupportedOperation."""
        raise io.UnsupportedOperation("not writable")

    def pump_into(self, apply: _apply.Apply) -> None:
        """Push what is left into apply, block by block in the core."""
        source = self._open()
        while not apply.pump_source(source):
            pass

    def close(self) -> None:
        """Stop; give back what the stream holds. Twice is harmless."""
        if self.closed:
            return
        super().close()
        source = getattr(self, "_source", None)
        if source is not None:
            source.close()
            if self._on_close:
                self._on_close()


def assemble(tar_split: BinaryIO | int, root: StrPath, *, diff_id: DiffID | None = None) -> TarStream:
    """Give the tar again that a record describes, payloads read beneath root.

    tar_split   the record, JSON lines or gzip of them: a descriptor or a binary file
    Raises      CorruptLayerError   while reading: a file is gone or not what was recorded
    Source      tar-split, tar/asm
    """
    _check_file(tar_split, "read")
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with tempfile.TemporaryFile() as kept:
            if isinstance(tar_split, int):
                with os.fdopen(os.dup(tar_split), "rb") as file:
                    _copy(file, kept)
            else:
                _copy(tar_split, kept)
            kept.flush()
            expected = diff_id.raw if diff_id else None
            return TarStream(_tarstream.assemble(kept.fileno(), root_fd, expected), seekable=True)
    finally:
        os.close(root_fd)


def _check_file(file: Any, verb: str) -> None:
    if isinstance(file, bool) or not (isinstance(file, int) or hasattr(file, verb)):
        raise TypeError(f"a descriptor or a binary file with {verb}() is wanted, not {type(file).__name__}")
    if isinstance(file, io.TextIOBase):
        raise TypeError("a binary file is wanted, not one of text")


def _copy(source: Any, to: Any) -> None:
    while block := source.read(COPY_BLOCK):
        to.write(block)


def disassemble(source: Any, tar_split: BinaryIO | int) -> DiffID:
    """Record a tar's framing as JSON lines (not compressed) into tar_split.

    source      as Store.register takes it
    Returns     the DiffID of the tar
    Raises      TarFormatError   .offset
    Source      tar-split, tar/asm
    """
    _check_file(tar_split, "write")
    given = Input(source)
    try:
        with tempfile.TemporaryFile() as record, tempfile.TemporaryFile() as spool:
            fd, offset = given.reread()
            head = os.pread(fd, 512, offset) if fd >= 0 else b""
            plain = fd >= 0 and _apply.guess_format(head) == "plain"
            apply = _apply.Apply(
                -1, record.fileno(), reread_fd=fd if plain else -1, reread_offset=offset if plain else 0,
                spool_fd=-1 if plain else spool.fileno(), flags=_apply.PLAIN_RECORD,
            )  # fmt: skip
            try:
                feed(given, apply)
                done = apply.finish()
            finally:
                apply.close()
            record.seek(0)
            if isinstance(tar_split, int):
                with os.fdopen(os.dup(tar_split), "wb") as out:
                    _copy(record, out)
            else:
                _copy(record, tar_split)
            return diff_id_of(done.diff_id)
    finally:
        given.close()
