"""Layers on their way out: each once, plain as it leaves the store, or packed, several at a time.

A packed layer's size and digest stand in documents that come before it, so it waits somewhere until all are packed:

    Inside      in the archive's own file, behind where the archive can end; it moves forward in the end, and the blocks
                that it leaves are freed on the way: an archive takes no more room than it has bytes
    Below       in the directory that is made
    Spool       in a file without a name, where the archive is a pipe: it can be read only once
    (nowhere)   a layer that is left out: its size and digest are all that is needed
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import queue
import stat
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import IO, Any, NamedTuple

from layerstore._core import _files
from layerstore._core._pack import Packer
from layerstore.disk.textfile import naming
from layerstore.errors import ImageError
from layerstore.ids import ChainID, DiffID, Digest
from layerstore.images.image import Image
from layerstore.images.targets import DirectoryTarget, Target, write_out
from layerstore.streams.tarstream import COPY_BLOCK, TarStream, flushed_descriptor, write_whole

_WORKERS = min(4, os.cpu_count() or 1)
# A compressed stream of incompressible bytes is a little longer than these.
_LONGEST = (4, 1 << 20)
# Bytes of an entry's headers in a tar, whatever its size; and what files are allocated in.
_HEADERS, _ALIGN = 4096, 1 << 16

OpenLayer = Callable[[ChainID], TarStream]


class Outgoing(NamedTuple):
    """An image on its way out: its config's bytes, and the names that go with it."""

    image: Image
    content: bytes
    references: tuple[str, ...]


class Blob(NamedTuple):
    """A layer as documents name it."""

    digest: Digest
    size: int


# ---- where packed layers wait ------------------------------------------------------------------


class Waiting:
    """One packed layer that waits; of this class itself, one that is left out."""

    def write(self, data: bytes) -> None:
        """Add bytes; in one thread."""

    def put(self, name: str, size: int, target: Target) -> None:
        """Become the file of this name."""


class Spool(Waiting):
    """A file without a name."""

    def __init__(self, directory: str | None, stack: contextlib.ExitStack) -> None:
        """Make one on the file system of directory, None: that for temporary files; the stack closes it."""
        self._directory = directory or tempfile.gettempdir()
        with naming(self._directory):
            self._file = stack.enter_context(tempfile.TemporaryFile(dir=directory, buffering=0))  # noqa: SIM115

    def write(self, data: bytes) -> None:
        """Add bytes."""
        with naming(self._directory):
            write_whole(self._file, data)

    def put(self, name: str, size: int, target: Target) -> None:
        """Copy them."""
        self._file.seek(0)
        target.stream(name, size, lambda out: _copy_file(self._file, out))


class Below(Waiting):
    """A file in the directory that is made."""

    def __init__(self, target: DirectoryTarget, name: str, stack: contextlib.ExitStack) -> None:
        """name   of a file that is none of the layout's"""
        self._name = name
        self._file = stack.enter_context(target.create(name))

    def write(self, data: bytes) -> None:
        """Add bytes."""
        write_whole(self._file, data)

    def put(self, name: str, size: int, target: Target) -> None:
        """Take the name."""
        self._file.close()
        target.take(self._name, name, size)


class Inside(Waiting):
    """A place far behind in the archive's file."""

    def __init__(self, fd: int, start: int, end: int) -> None:
        """start, end   no byte before or behind is written"""
        self._fd, self._start, self._end, self._at = fd, start, end, start

    def write(self, data: bytes) -> None:
        """Add bytes."""
        if self._at + len(data) > self._end:
            raise ImageError("a packed layer is longer than one of its size can be")
        view = memoryview(data)
        while view:
            n = os.pwrite(self._fd, view, self._at)
            self._at, view = self._at + n, view[n:]

    def put(self, name: str, size: int, target: Target) -> None:
        """Move forward."""
        target.stream(name, size, self._move)

    def _move(self, out: Any) -> int:
        total = 0
        for at in range(self._start, self._at, COPY_BLOCK):
            if _stands(out) > at:
                raise ImageError("a packed layer lies where the archive is written")
            block = os.pread(self._fd, min(COPY_BLOCK, self._at - at), at)
            _files.write_all(out, block)
            total += len(block)
            first, last = max(at, _aligned(_stands(out))), _aligned(at + len(block))
            if first < last:
                _files.punch(self._fd, first, last - first)
        return total


@contextlib.contextmanager
def own_file(out: Any) -> Iterator[int | None]:
    """Lend a descriptor of a regular file that can be written to anywhere behind where `out` stands; else None.

    out   a descriptor, or a binary file. It stands behind all that was written when the block ends
    """
    fd, own = flushed_descriptor(out), -1
    with contextlib.suppress(OSError):
        if fd >= 0 and stat.S_ISREG(os.fstat(fd).st_mode) and _stands(fd) == os.fstat(fd).st_size:
            own = _files.open(f"/proc/self/fd/{fd}", os.O_RDWR)
            _files.punch(own, os.fstat(fd).st_size, _ALIGN)
            os.lseek(own, 0, os.SEEK_END)
    if own < 0:
        yield None
        return
    start = os.fstat(own).st_size
    try:
        yield own
        os.ftruncate(own, os.lseek(own, 0, os.SEEK_CUR))
        os.lseek(fd, 0, os.SEEK_END)
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(own, start)
        raise
    finally:
        _files.close(own)


def _stands(fd: int) -> int:
    return os.lseek(fd, 0, os.SEEK_CUR)


def _aligned(at: int) -> int:
    """Return the next offset at which no block of a file is shared with what lies before."""
    return -(-at // _ALIGN) * _ALIGN


# ---- layers ------------------------------------------------------------------------------------


class Layers:
    """The layers of the images that leave, each once; by DiffID, whatever they stand on."""

    def __init__(self, images: Sequence[Outgoing], open_layer: OpenLayer, left_out: Collection[ChainID]) -> None:
        """open_layer   returns a layer's tar.  left_out: layers that are named, and not written"""
        self.chains: dict[DiffID, ChainID] = {}
        self.left_out: set[DiffID] = set()
        written: set[DiffID] = set()
        for out in images:
            for diff_id, chain in zip(out.image.diff_ids, out.image.layers, strict=True):
                self.chains.setdefault(diff_id, chain)
                (self.left_out if chain in left_out else written).add(diff_id)
        self.left_out -= written
        self._open = open_layer
        self.sizes: dict[DiffID, int] = {}
        for diff_id, chain in self.chains.items():
            with open_layer(chain) as stream:
                self.sizes[diff_id] = stream.size
        self.blobs: dict[DiffID, Blob] = {d: Blob(Digest(d), size) for d, size in self.sizes.items()}
        self._packed: dict[DiffID, Waiting] = {}

    def to_read(self, *, packed: bool) -> int:
        """Return the bytes of layers that are read: those left out, too, if they are to be packed."""
        return sum(size for diff_id, size in self.sizes.items() if packed or diff_id not in self.left_out)

    def compress(self, how: str, wait: dict[DiffID, Waiting], tell: Callable[[int], None]) -> None:
        """Pack all of them, several at once. The same bytes each time.

        how    "gzip" or "zstd"
        wait   where each waits
        tell   called here, in the calling thread, with the bytes packed since; what it raises ends the packing
        """
        self._packed = wait
        packed: queue.SimpleQueue[int] = queue.SimpleQueue()
        stop = threading.Event()

        def ended(future: concurrent.futures.Future[Blob]) -> None:
            if future.exception():
                stop.set()                # the others work for nothing
            packed.put(0)

        with concurrent.futures.ThreadPoolExecutor(_WORKERS, "layerstore-pack") as pool:
            running = {
                pool.submit(self._pack, how, diff_id, wait[diff_id], packed.put, stop): diff_id
                for diff_id in self.chains
            }
            try:
                for future in running:
                    future.add_done_callback(ended)
                while not all(future.done() for future in running) or not packed.empty():
                    tell(packed.get())
            except BaseException:
                stop.set()
                raise
            for future, diff_id in running.items():
                self.blobs[diff_id] = future.result()

    def _pack(
        self, how: str, diff_id: DiffID, packed: Waiting, count: Callable[[int], None], stop: threading.Event
    ) -> Blob:  # fmt: skip
        """Pack one, in a thread."""
        hashed, size, end = hashlib.sha256(), 0, False
        packer = Packer(how)
        with self._open(self.chains[diff_id]) as stream:
            while not end and not stop.is_set():
                block = stream.read(COPY_BLOCK)
                end = not block
                out = packer.flush() if end else packer.compress(block)
                hashed.update(out)
                packed.write(out)
                size += len(out)
                count(len(block))
        return Blob(Digest(f"sha256:{hashed.hexdigest()}"), size)

    def places_inside(self, fd: int, start: int) -> dict[DiffID, Waiting]:
        """Return a place in the archive's file for each; start: where documents end at the latest."""
        found: dict[DiffID, Waiting] = {}
        for diff_id, size in self.sizes.items():
            start = _aligned(start + _HEADERS)              # behind its headers: none ever moves backward
            end = start + size + size // _LONGEST[0] + _LONGEST[1]
            found[diff_id] = Inside(fd, start, end)
            start = end
        return found | {diff_id: Waiting() for diff_id in self.left_out}

    def places(self, make: Callable[[int], Waiting]) -> dict[DiffID, Waiting]:
        """Return a place for each that is written; make: returns the one of a number."""
        return {d: Waiting() if d in self.left_out else make(number) for number, d in enumerate(self.chains)}

    def write(self, diff_id: DiffID, name: str, target: Target, tell: Callable[[int], None]) -> None:
        """Write one into the archive, unless it is left out."""
        packed = self._packed.get(diff_id)
        if packed:
            packed.put(name, self.blobs[diff_id].size, target)
        elif diff_id not in self.left_out:

            def write_to(out: Any) -> int:
                told = 0

                def tell_more(done: int) -> None:
                    nonlocal told
                    more, told = done - told, done
                    tell(more)

                with self._open(self.chains[diff_id]) as stream:
                    return stream.copy_to(out, progress=tell_more)

            target.stream(name, self.blobs[diff_id].size, write_to)


def _copy_file(packed: IO[bytes], out: Any) -> int:
    total = 0
    while block := packed.read(COPY_BLOCK):
        write_out(out, block)
        total += len(block)
    return total
