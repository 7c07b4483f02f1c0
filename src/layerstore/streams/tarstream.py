"""TarStream: a layer's tar on its way out; and tar-split on its own, assemble() and disassemble()."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from layerstore._core import _apply, _files, _tarstream
from layerstore.disk.locks import Mutex
from layerstore.disk.textfile import descriptor_of, naming, naming_file
from layerstore.errors import CorruptLayerError
from layerstore.ids import DiffID, diff_id_of
from layerstore.streams.progress import Teller
from layerstore.streams.sources import Input
from layerstore.values import Progress, StrPath

COPY_BLOCK = 4 << 20


if TYPE_CHECKING:
    # What the typing of io.FileIO does: a type checker takes it wherever a BinaryIO is wanted.
    class _BinaryFile(io.RawIOBase, BinaryIO):
        pass
else:
    _BinaryFile = io.RawIOBase


class _Named:
    """Names what is read in an error of its stream: the layer, or the place of a file."""

    __slots__ = ("chain_id", "directory")

    def __init__(self, directory: str) -> None:
        self.chain_id, self.directory = "", directory

    def __call__(self, err: BaseException) -> None:
        """Name the layer, or the directory, in an error."""
        if isinstance(err, CorruptLayerError) and self.chain_id:
            err.about(chain_id=self.chain_id)
        if isinstance(err, OSError) and self.directory and isinstance(err.filename, str):
            err.filename = os.path.join(self.directory, err.filename)       # which an absolute name stays


class TarStream(_BinaryFile):
    """A layer's tar, byte for byte. It is a context manager, with read(), readinto() and, if seekable(), seek().

    Read from its first byte to its end it checks the DiffID, and every file's CRC as it passes:
    CorruptLayerError instead of the end.
    """

    def __init__(
        self, source: _tarstream.Source, *, seekable: bool, on_close: Callable[[], None] | None = None,
        directory: str = "",
    ) -> None:  # fmt: skip
        """Take over source; on_close is called once. directory: files are named below it in errors."""
        # Before all else: close() is called also for an object whose making failed.
        self._named = _Named(directory)
        self._lock = Mutex(self._named)       # threads take turns
        self._source = source
        self._seekable = seekable
        self._on_close = on_close

    def _then(self, on_close: Callable[[], None]) -> TarStream:
        """Call on_close too when the stream is closed; return the stream."""
        before = self._on_close

        def both() -> None:
            try:
                if before:
                    before()
            finally:
                on_close()

        self._on_close = both
        return self

    def about(self, chain_id: str) -> TarStream:
        """Name the layer that errors are about; return the stream."""
        self._named.chain_id = chain_id
        return self

    def __repr__(self) -> str:
        of = f" of {self._named.chain_id}" if self._named.chain_id else ""
        return f"<TarStream{of}{', closed' if self.closed else ''}>"

    def _open(self) -> _tarstream.Source:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        return self._source

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True if seek() works: for the recorded tar of a read-only layer."""
        return self._seekable

    def read(self, size: int | None = -1, /) -> bytes:
        """Return size bytes, fewer only at the end; all that is left for -1 or None."""
        with self._lock:
            return self._open().read(-1 if size is None else size)

    def read_block(self, size: int) -> bytes:
        """Return as read() does, and read no further: for a thread that reads large blocks and does little else."""
        with self._lock:
            return self._open().read_block(size)

    def readall(self) -> bytes:
        """Return all that is left."""
        return self.read(-1)

    def readinto(self, buffer: Any, /) -> int:
        """Fill buffer; fewer bytes only at the end."""
        with self._lock:
            return self._open().readinto(buffer)

    @property
    def size(self) -> int:
        """The whole length in bytes, known before reading."""
        with self._lock:
            return self._open().size()

    def left_out(self) -> list[tuple[str, int, list[str]]]:
        """Return what a new tar leaves out, as streams.leftout.LeftOut has it; [] for a recorded one."""
        with self._lock:
            return self._open().left_out()

    def tell(self) -> int:
        """Return the position of the next byte."""
        with self._lock:
            return self._open().tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a position; after it only files read whole are checked."""
        with self._lock:
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

    def copy_to(self, dst: int | BinaryIO, *, progress: Progress | None = None) -> int:
        """Write what is left to a descriptor or a binary file, the fastest way out.

        progress   called with the bytes written (.total: of how many, of a seekable stream), at most ten times a
                   second; what it raises ends the copy
        Returns  bytes written
        Raises   CorruptLayerError   a file or the whole is not what was recorded
        """
        total = 0
        whole = self.size - self.tell() if progress is not None and self._seekable else None
        teller = Teller(progress, whole)
        _check_file(dst, "write")
        fd = flushed_descriptor(dst)
        end = False
        while not end:
            if fd >= 0:
                end, written = self.copy_some(fd, 100 if progress is not None else 250)
            else:
                block = self.read(COPY_BLOCK)
                write_whole(dst, block)
                end, written = not block, len(block)
            total += written
            teller.tell(total, end=end)
        return total

    def __del__(self) -> None:
        if self.closed:
            return
        if not self._named.directory:     # one of a directory is given away: register(pack_directory(...))
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        self.close()

    def copy_some(self, fd: int, max_ms: int = 250) -> tuple[bool, int]:
        """Write to a descriptor for so long: (that was all, bytes written)."""
        with self._lock:
            return self._open().copy_to_fd(fd, 1 << 40, max_ms)

    def write(self, _data: Any, /) -> int:
        """Raise io.UnsupportedOperation."""
        raise io.UnsupportedOperation("not writable")

    @contextlib.contextmanager
    def lying(self) -> Iterator[tuple[int, int, int, bytes | None] | None]:
        """Say for the block where the next byte lies, as the core's Source.lies() does; no thread reads meanwhile."""
        with self._lock:
            yield self._open().lies()

    def pass_over(self) -> None:
        """Stand at the end, as if all had been read."""
        with self._lock:
            source = self._open()
            source.seek(source.size())

    def pump_into(self, apply: _apply.Apply, progress: Progress | None = None) -> None:
        """Push what is left into apply, block by block in the core."""
        end = False
        teller = Teller(progress, None)
        while not end:
            end = self.pump_once(apply)
            teller.tell(apply.taken, end=end)

    def pump_once(self, apply: _apply.Apply) -> bool:
        """Push what is left into apply, for about a tenth of a second. True: that was all."""
        with self._lock:
            source = self._open()
            if ahead := source.read_ahead():
                apply.push(ahead)
            return apply.pump_source(source, 1 << 40, 100)

    def close(self) -> None:
        """Stop, once a running read is over, and release what the stream holds. Twice is harmless."""
        with self._lock:
            if self.closed:
                return
            super().close()
            try:
                self._source.close()
            finally:
                if self._on_close:
                    self._on_close()


def assemble(tar_split: BinaryIO | int, root: StrPath, *, diff_id: DiffID | None = None) -> TarStream:
    """Return the tar again that a record describes, payloads read beneath root.

    tar_split   the record, JSON lines or gzip of them: a descriptor or a binary file. A regular file that
                stands at its beginning is read as the tar is, so leave it alone until then.
    Raises      CorruptLayerError   while reading: a file is gone or not what was recorded
    Source      tar-split, tar/asm
    """
    _check_file(tar_split, "read")
    expected = diff_id.raw if diff_id else None
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = _regular(tar_split)
        if fd >= 0 and _position(tar_split) == 0:
            return TarStream(_tarstream.assemble(fd, root_fd, expected), seekable=True)
        with _nameless_file() as kept:
            _copy(_unbuffered(tar_split, "rb"), kept)
            return TarStream(_tarstream.assemble(kept.fileno(), root_fd, expected), seekable=True)
    finally:
        _files.close(root_fd, root)


def disassemble(source: Any, tar_split: BinaryIO | int, *, progress: Progress | None = None) -> DiffID:
    """Record a tar's framing as JSON lines (not compressed) into tar_split.

    source, progress   as Store.register takes them
    Returns     the DiffID of the tar
    Raises      TarFormatError   .offset; then nothing has been written
    Source      tar-split, tar/asm
    """
    _check_file(tar_split, "write")
    with contextlib.closing(Input(source, progress)) as given:
        own = _empty_file(tar_split)
        if own >= 0:
            try:
                diff_id = _record(given, own)
                with naming_file(tar_split):
                    os.lseek(_regular(tar_split), 0, os.SEEK_END)
                return diff_id
            except BaseException:
                with naming_file(own):
                    os.ftruncate(own, 0)
                raise
            finally:
                _files.close(own)
        with _nameless_file() as record:
            diff_id = _record(given, record.fileno())
            with naming_file(record):
                record.seek(0)
            _copy(record, _unbuffered(tar_split, "wb"))
            return diff_id


def _record(given: Input, record_fd: int) -> DiffID:
    """Do the work of disassemble(); record_fd is an empty file that can be read too."""
    with contextlib.ExitStack() as stack:
        fd, offset = given.reread()
        if fd < 0 or _apply.guess_format(_files.read(fd, 512, offset)) != "plain":
            # A tar with names that come again is read twice: keep what cannot be.
            fd, offset = stack.enter_context(_nameless_file()).fileno(), -1
        apply = _apply.disassemble(record_fd, fd, offset)
        stack.callback(apply.close)
        given.pump_into(apply)
        return diff_id_of(apply.finish().diff_id)


# ---- files given to both ----


def _check_file(file: Any, verb: str) -> None:
    if isinstance(file, bool) or not (isinstance(file, int) or hasattr(file, verb)):
        raise TypeError(f"a descriptor or a binary file with {verb}() is wanted, not {type(file).__name__}")
    if isinstance(file, io.TextIOBase):
        raise TypeError("a binary file is wanted, not one of text")


def _regular(file: Any) -> int:
    """Return the descriptor of a regular file, or -1."""
    fd = descriptor_of(file)
    return fd if fd is not None and stat.S_ISREG(_files.mode_of(fd)) else -1


def _position(file: Any) -> int:
    with naming_file(file):
        return os.lseek(file, 0, os.SEEK_CUR) if isinstance(file, int) else int(file.tell())


def _empty_file(file: Any) -> int:
    """Return another descriptor of an empty regular file, for reading and writing; else -1."""
    fd = _regular(file)
    if fd < 0:
        return -1
    with naming_file(file):
        if not isinstance(file, int):
            file.flush()
        if os.fstat(fd).st_size or os.lseek(fd, 0, os.SEEK_CUR):
            return -1
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1


def flushed_descriptor(file: Any) -> int:
    """Return the descriptor to write to, after a flush; -1: the file has none of its own."""
    if isinstance(file, int):
        return file
    if not isinstance(file, (io.FileIO, io.BufferedWriter)):
        return -1
    with naming_file(file):
        file.flush()
    return file.fileno()


def write_whole(file: Any, data: bytes) -> None:
    """Write all of data, however little a raw file takes at once.

    Raises  BlockingIOError   it takes nothing now
            OSError           it says that it took none, or more than there was
    """
    view = memoryview(data)
    while view:
        with naming_file(file):
            taken = file.write(view)
        if taken is None:
            raise BlockingIOError(errno.EAGAIN, "the file takes no bytes without blocking")
        if not 0 < taken <= len(view):
            raise OSError(errno.EIO, f"write() of {len(view)} bytes says it took {taken}")
        view = view[taken:]


def _copy(source: Any, to: Any) -> None:
    while True:
        with naming_file(source):
            block = source.read(COPY_BLOCK)
        if block is None:
            raise BlockingIOError(errno.EAGAIN, "the file gives no bytes without blocking")
        if not block:
            return
        write_whole(to, block)


@contextlib.contextmanager
def _nameless_file() -> Iterator[io.FileIO]:
    """Open a file without a name, for what can be read only once; its errors name its directory."""
    with naming(tempfile.gettempdir()):
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    try:
        yield file
    finally:
        with naming(tempfile.gettempdir()):
            file.close()


def _unbuffered(file: Any, mode: str) -> Any:
    """Return a file for a descriptor, which the caller keeps; a file as it is."""
    with naming_file(file):
        return io.FileIO(file, mode, closefd=False) if isinstance(file, int) else file
