"""layerstore.aio: the same for asyncio. Every call that may wait is a coroutine; its work is done in a thread.

Cancelling what awaits a call stops the work, and CancelledError goes out when all is undone. What gives something
back (release, unmount, close) is always carried through. Progress is told in the event loop's thread, which is never
kept waiting. A Store and all it gave belong to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import io
import itertools
import os
import select
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Self, TypeVar

import layerstore
from layerstore import errors
from layerstore.ids import OS, ChainID, DiffID
from layerstore.merged import MergedTree
from layerstore.sources import Teller
from layerstore.values import (
    Change,
    CreateRWLayerOpts,
    Descriptor,
    Done,
    FileEntry,
    Metadata,
    Orphan,
    Problem,
    Progress,
)

__all__ = [
    "File", "Layer", "RWLayer", "Store", "TarStream", "assemble", "changes_between", "disassemble", "overlay_changes",
]  # fmt: skip

StrPath = str | bytes | os.PathLike[Any]
T = TypeVar("T")
BLOCK = 1 << 20
BATCH = 512
SHORT_CALLS = 8


class _StoppedError(Exception):
    """Nobody waits for this work any more."""


class _Call:
    """One blocking call in its thread: how it is told to stop, and how it tells."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.why: BaseException | None = None
        self.on_stop: list[Callable[[], object]] = []

    def stop(self, why: BaseException) -> None:
        """In the loop: end the work at its next check(). The first reason counts."""
        if self.why is None:
            self.why = why
            for callback in self.on_stop:
                callback()

    def check(self) -> None:
        """In the thread: raise what stopped the work."""
        if self.why is not None:
            raise self.why

    def hook(self, progress: Progress | None) -> Progress:
        """A progress argument for the blocking call, by which it is stopped, too."""

        def told(done: Done) -> None:
            self.check()
            if progress is not None:
                self.loop.call_soon_threadsafe(self._tell, progress, done)

        return told

    def _tell(self, progress: Progress, done: Done) -> None:
        try:
            if self.why is None:
                progress(done)
        except BaseException as err:
            self.stop(err)


async def _in_thread(
    work: Callable[[_Call], T], slots: asyncio.Semaphore | None, undo: Callable[[T], object] | None = None
) -> T:
    """Do work in a thread; slots bounds how many run. Cancelled: stop it, wait for its end, undo what it gave."""
    if slots is None:
        return await _carried_through(work, undo)
    async with slots:
        return await _carried_through(work, undo)


async def _carried_through(work: Callable[[_Call], T], undo: Callable[[T], object] | None) -> T:
    call = _Call()
    ended: asyncio.Future[None] = call.loop.create_future()
    result: list[T] = []
    failed: list[BaseException] = []
    context = contextvars.copy_context()

    def body() -> None:
        try:
            result.append(context.run(work, call))
        except BaseException as err:
            failed.append(err)
        call.loop.call_soon_threadsafe(ended.set_result, None)

    thread = threading.Thread(target=body, name="layerstore-aio")
    thread.start()
    cancelled: BaseException | None = None
    while not ended.done():
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError as err:
            cancelled = err
            call.stop(_StoppedError())
    thread.join()
    why = cancelled or call.why
    if result and why is not None and undo is not None:
        given = result[0]
        try:
            await _carried_through(lambda _: undo(given), None)
        except asyncio.CancelledError as err:
            cancelled = why = err
    try:
        if cancelled is not None:
            raise cancelled
        if failed:
            raise failed[0]
        if why is not None:
            raise why
        return result[0]
    finally:
        result, failed, cancelled, why = [], [], None, None     # no cycle through the traceback


class _Slots:
    """How much of one store's work runs at a time. Reads have slots of their own: they feed what runs longer."""

    def __init__(self, workers: int | None) -> None:
        self.long = asyncio.Semaphore(workers or min(4, os.cpu_count() or 1))
        self.short = asyncio.Semaphore(SHORT_CALLS)


# ---- sources --------------------------------------------------------------------------------------


class _Pipe:
    """What an async source gives, for a thread to read."""

    def __init__(self, call: _Call, fetch: Callable[[int], Awaitable[Any]]) -> None:
        self._call, self._fetch = call, fetch
        self._task: asyncio.Task[Any] | None = None
        self._left = memoryview(b"")
        call.on_stop.append(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _start(self, n: int, ready: threading.Event) -> None:
        if self._call.why is not None:
            ready.set()
            return

        async def fetch() -> Any:
            return await self._fetch(n)

        self._task = self._call.loop.create_task(fetch())
        self._task.add_done_callback(lambda _: ready.set())

    def read(self, n: int) -> bytes:
        """In the thread: the next bytes, at most n; b"" at the end."""
        if not self._left:
            ready = threading.Event()
            self._call.loop.call_soon_threadsafe(self._start, n, ready)
            ready.wait()
            if self._task is None or self._task.cancelled():
                self._call.check()
                raise asyncio.CancelledError("the source was cancelled")
            block = self._task.result()
            self._call.check()
            if not isinstance(block, (bytes, bytearray, memoryview)):
                raise TypeError(f"an async source gives bytes, not {type(block).__name__}")
            self._left = memoryview(block).cast("B")
        block, self._left = self._left[:n], self._left[n:]
        return bytes(block)


def _source_for(call: _Call, source: Any) -> Any:
    """In the thread: what the blocking call takes for this source."""
    if isinstance(source, File):
        return source.blocking
    if hasattr(source, "__aiter__") and not inspect.iscoroutinefunction(getattr(source, "read", None)):
        iterator = aiter(source)

        async def fetch(_: int) -> Any:
            while True:
                try:
                    block = await anext(iterator)
                except StopAsyncIteration:
                    return b""
                if len(block):            # an empty one is no end
                    return block

        return _Pipe(call, fetch)
    if inspect.iscoroutinefunction(getattr(source, "read", None)):
        return _Pipe(call, source.read)
    if isinstance(source, io.FileIO) or (isinstance(source, int) and not isinstance(source, bool)):
        fd = source if isinstance(source, int) else source.fileno()
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode):
            return _Line(call, fd)
    return source


class _Line:
    """A pipe, a socket or a terminal, which may give nothing for long: a read of it cannot be interrupted."""

    def __init__(self, call: _Call, fd: int) -> None:
        self._call, self._fd = call, fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def read(self, n: int) -> bytes:
        """In the thread: what has come, at most n bytes; b"" at the end."""
        while True:
            self._call.check()
            if self._poll.poll(50):
                with contextlib.suppress(BlockingIOError):
                    return os.read(self._fd, n)


# ---- streams --------------------------------------------------------------------------------------


class File:
    """A binary file to be read: await read(), or `async for` its blocks. `async with` closes it."""

    def __init__(self, blocking: Any, slots: _Slots) -> None:
        """Take over a blocking file."""
        self._blocking, self._slots = blocking, slots

    @property
    def blocking(self) -> Any:
        """The same as a blocking file."""
        return self._blocking

    async def _do(self, work: Callable[[_Call], T]) -> T:
        return await _in_thread(work, self._slots.short)

    async def read(self, size: int = -1) -> bytes:
        """Give size bytes, fewer only at the end; all that is left for -1. Raises as the blocking file does."""

        def work(call: _Call) -> bytes:
            if 0 <= size <= BLOCK:
                return bytes(self._blocking.read(size))
            parts = []
            left = size
            while left:
                call.check()
                part = self._blocking.read(BLOCK if left < 0 else min(BLOCK, left))
                if not part:
                    break
                parts.append(part)
                left -= len(part) if left > 0 else 0
            return b"".join(parts)

        return await self._do(work)

    async def readinto(self, buffer: Any) -> int:
        """Fill buffer; fewer bytes only at the end."""
        return await self._do(lambda _: int(self._blocking.readinto(buffer)))

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position."""
        return await self._do(lambda _: int(self._blocking.seek(offset, whence)))

    async def tell(self) -> int:
        """Give the position of the next byte."""
        return await self._do(lambda _: int(self._blocking.tell()))

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return bool(self._blocking.closed)

    async def close(self) -> None:
        """Give back what it holds, once a running read is over. Twice is harmless."""
        await _in_thread(lambda _: self._blocking.close(), None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give what is left in blocks of 1 MiB: the next one is read when it is asked for."""
        while block := await self.read(BLOCK):
            yield block


class TarStream(File):
    """A layer's tar, byte for byte: what layerstore.TarStream is."""

    def seekable(self) -> bool:
        """Say whether seek() works."""
        return bool(self._blocking.seekable())

    async def size(self) -> int:
        """Give the whole length in bytes."""
        return await self._do(lambda _: int(self._blocking.size))

    async def copy_to(self, dst: Any, *, progress: Progress | None = None) -> int:
        """Write what is left to a descriptor, a binary file or an asyncio.StreamWriter; gives the bytes written.

        progress   called with the bytes written, at most ten times a second; what it raises ends the copy
        Raises     CorruptLayerError   a file or the whole is not what was recorded
        What is not written yet when it is cancelled is left in the stream.
        """
        if not isinstance(dst, asyncio.StreamWriter):
            return await _in_thread(
                lambda call: int(self._blocking.copy_to(dst, progress=call.hook(progress))), self._slots.long
            )
        total = 0
        teller = Teller(progress, None)
        async for block in self:
            dst.write(block)
            await dst.drain()
            total += len(block)
            teller.tell(total)
        teller.tell(total, end=True)
        return total


# ---- layers ---------------------------------------------------------------------------------------


class Layer:
    """A reference to a read-only layer: what layerstore.Layer is. `async with layer:` releases it at the end."""

    chain_id: ChainID
    diff_id: DiffID
    size: int
    diff_size: int
    cache_id: str
    os: OS = "linux"

    def __init__(self, blocking: layerstore.Layer, slots: _Slots) -> None:
        """Take over a blocking reference."""
        self._blocking, self._slots = blocking, slots
        self.chain_id, self.diff_id, self.cache_id = blocking.chain_id, blocking.diff_id, blocking.cache_id
        self.size, self.diff_size = blocking.size, blocking.diff_size

    def __repr__(self) -> str:
        return f"<aio.Layer {self.chain_id}>"

    @property
    def blocking(self) -> layerstore.Layer:
        """The same reference for blocking calls."""
        return self._blocking

    @property
    def parent(self) -> Layer | None:
        """The bare layer below: no reference, cannot be released. None for a base layer."""
        below = self._blocking.parent
        return Layer(below, self._slots) if below else None

    @property
    def descriptor(self) -> Descriptor | None:
        """The descriptor it was registered with, or None."""
        return self._blocking.descriptor

    async def _do(self, work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        return await _in_thread(lambda _: work(), self._slots.short, undo)

    async def tar_stream(self) -> TarStream:
        """Give the layer's tar, byte for byte, seekable and verified."""
        return TarStream(await self._do(self._blocking.tar_stream, lambda stream: stream.close()), self._slots)

    async def tar_stream_from(self, parent: str) -> TarStream:
        """Make a fresh tar of the difference to an ancestor ("" = everything); not verified."""
        made = await self._do(lambda: self._blocking.tar_stream_from(parent), lambda stream: stream.close())
        return TarStream(made, self._slots)

    async def files(self) -> AsyncIterator[FileEntry]:
        """Give every entry of the layer in the order of its tar; memory does not grow with it."""
        entries: Iterator[FileEntry] = await self._do(self._blocking.files)
        while batch := await self._do(lambda: list(itertools.islice(entries, BATCH))):
            for entry in batch:
                yield entry

    async def open(self, path: StrPath) -> File:
        """Open a regular file of this layer alone for reading. Raises as layerstore.Layer.open does."""
        return File(await self._do(lambda: self._blocking.open(path), lambda file: file.close()), self._slots)

    async def merged(self) -> MergedTree:
        """Lay this layer over all below it. The tree is in memory; of its methods only open() touches the disk."""
        return await self._do(self._blocking.merged)

    async def metadata(self) -> dict[str, str]:
        """Name the driver's directories."""
        return await self._do(self._blocking.metadata)

    async def release(self) -> list[Metadata]:
        """Give the reference back: the store's release(self)."""
        return await _in_thread(lambda _: self._blocking.release(), None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()


class RWLayer:
    """A reference to a writable layer: what layerstore.RWLayer is. `async with rw:` releases it at the end."""

    def __init__(self, blocking: layerstore.RWLayer, slots: _Slots) -> None:
        """Take over a blocking reference."""
        self._blocking, self._slots = blocking, slots
        self.name: str = blocking.name

    def __repr__(self) -> str:
        return f"<aio.RWLayer {self.name}>"

    @property
    def blocking(self) -> layerstore.RWLayer:
        """The same reference for blocking calls."""
        return self._blocking

    @property
    def parent(self) -> Layer | None:
        """The bare layer below, or None."""
        below = self._blocking.parent
        return Layer(below, self._slots) if below else None

    async def _do(self, work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        return await _in_thread(lambda _: work(), self._slots.short, undo)

    async def mount(self, mount_label: str = "") -> str:
        """Mount it, or count one user more; gives the path."""
        return await self._do(lambda: self._blocking.mount(mount_label), lambda _: self._blocking.unmount())

    async def unmount(self) -> None:
        """Count one user less; unmount at zero. One too many is harmless."""
        await _in_thread(lambda _: self._blocking.unmount(), None)

    @contextlib.asynccontextmanager
    async def mounted(self, mount_label: str = "") -> AsyncIterator[str]:
        """Mount for the length of an `async with` block, which gets the path."""
        path = await self.mount(mount_label)
        try:
            yield path
        finally:
            await self.unmount()

    async def size(self) -> int:
        """Count the bytes of its own files."""
        return await self._do(self._blocking.size)

    async def changes(self) -> list[Change]:
        """List what differs from its parent."""
        return await self._do(self._blocking.changes)

    async def tar_stream(self) -> TarStream:
        """Make a tar of what differs from its parent."""
        return TarStream(await self._do(self._blocking.tar_stream, lambda stream: stream.close()), self._slots)

    async def apply_diff(self, source: Any, *, progress: Progress | None = None) -> int:
        """Unpack a tar over it; gives the bytes of all its own files then.

        source, progress   as Store.register takes them; a failure, or a cancellation, leaves what had come
        """
        return await _in_thread(
            lambda call: self._blocking.apply_diff(_source_for(call, source), progress=call.hook(progress)),
            self._slots.long,
        )

    async def metadata(self) -> dict[str, str]:
        """Name the driver's directories, and its own name as ID."""
        return await self._do(self._blocking.metadata)

    async def commit(self, *, durability: str | None = None, progress: Progress | None = None) -> Layer:
        """Register what it holds now as a new read-only layer on the same parent; gives the reference."""
        store = self._blocking._mount.store
        made = await _in_thread(
            lambda call: self._blocking.commit(progress=call.hook(progress), durability=durability),
            self._slots.long, store._undo,
        )  # fmt: skip
        return Layer(made, self._slots)

    async def release(self) -> list[Metadata]:
        """Give the reference back: the store's release_rw_layer(self)."""
        return await _in_thread(lambda _: self._blocking.release(), None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()


# ---- the store ------------------------------------------------------------------------------------


class Store:
    """Layers and writable layers below a Docker data root. `async with Store(root) as store:` opens and closes it."""

    def __init__(
        self, root: StrPath, *, driver: str | None = None, options: Mapping[str, str] | None = None,
        workers: int | None = None,
    ) -> None:  # fmt: skip
        """Take the arguments of layerstore.Store; open() or `async with` opens it.

        workers   how many long calls (register, commit, verify ...) run at a time, the others wait; None: one for
                  each processor, 4 at most
        """
        self._arguments: tuple[StrPath, str | None, Mapping[str, str] | None] = (root, driver, options)
        self._slots = _Slots(workers)
        self._blocking: layerstore.Store | None = None

    async def open(self) -> Self:
        """Open, or make, the store. Raises as layerstore.Store does."""
        if self._blocking is None:
            root, driver, options = self._arguments
            self._blocking = await _in_thread(
                lambda _: layerstore.Store(root, driver=driver, options=options), self._slots.short,
                lambda store: store.close(),
            )  # fmt: skip
        return self

    @property
    def blocking(self) -> layerstore.Store:
        """The same store for blocking calls. Raises StoreClosedError before open()."""
        if self._blocking is None:
            raise errors.StoreClosedError("the store is not open yet: await open()")
        return self._blocking

    @property
    def root(self) -> str:
        """The data root, absolute."""
        return self.blocking.root

    @property
    def read_only(self) -> bool:
        """Whether the store was opened for reading only."""
        return self.blocking.read_only

    async def _short(self, work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        return await _in_thread(lambda _: work(), self._slots.short, undo)

    async def register(
        self, source: Any, parent: str = "", os: OS | None = None, *, progress: Progress | None = None,
        durability: str | None = None,
    ) -> Layer:  # fmt: skip
        """Store one layer tar and return a reference to the layer.

        source     as layerstore.Store.register takes it; or an async iterator of bytes, an asyncio.StreamReader
                   (whatever has a coroutine read(n)), or a File or TarStream of this module
        progress   called in the event loop's thread; what it raises ends the call

        Raises  what layerstore.Store.register raises, and what the source raises; then, and when it is cancelled,
                nothing is left on disk
        A blocking read() of a source, once begun, is waited for.
        """
        return await self.register_with_descriptor(source, parent, os, None, progress=progress, durability=durability)

    async def register_with_descriptor(
        self, source: Any, parent: str = "", os: OS | None = None, descriptor: Descriptor | None = None, *,
        progress: Progress | None = None, durability: str | None = None,
    ) -> Layer:  # fmt: skip
        """Do what register() does, and remember the blob's descriptor."""
        store = self.blocking
        made = await _in_thread(
            lambda call: store.register_with_descriptor(
                _source_for(call, source), parent, os, descriptor, progress=call.hook(progress), durability=durability
            ),
            self._slots.long,
            store._undo,
        )
        return Layer(made, self._slots)

    async def get(self, chain_id: str) -> Layer:
        """Give a new reference to a layer, to be released. Raises LayerDoesNotExistError."""
        store = self.blocking
        return Layer(await self._short(lambda: store.get(chain_id), store._undo), self._slots)

    async def map(self) -> dict[ChainID, Layer]:
        """Give all layers, bare: no references."""
        found = await self._short(self.blocking.map)
        return {chain_id: Layer(layer, self._slots) for chain_id, layer in found.items()}

    async def release(self, layer: Layer) -> list[Metadata]:
        """Give a reference back; what nobody needs any more is deleted. Raises LayerNotRetainedError."""
        store = self.blocking
        if not isinstance(layer, Layer):
            raise TypeError(f"release() takes a Layer of layerstore.aio, not {type(layer).__name__}")
        return await _in_thread(lambda _: store.release(layer.blocking), None)

    async def create_rw_layer(
        self, name: str, parent: str = "", opts: CreateRWLayerOpts | None = None, *, durability: str | None = None
    ) -> RWLayer:
        """Make a writable layer and return a reference to it. An init_func is called in a thread."""
        store = self.blocking
        made = await _in_thread(
            lambda _: store.create_rw_layer(name, parent, opts, durability=durability),
            self._slots.long, store.release_rw_layer,
        )  # fmt: skip
        return RWLayer(made, self._slots)

    async def get_rw_layer(self, name: str) -> RWLayer:
        """Give a new reference to a writable layer. Raises MountDoesNotExistError."""
        store = self.blocking
        return RWLayer(await self._short(lambda: store.get_rw_layer(name), store._undo), self._slots)

    async def get_mount_id(self, name: str) -> str:
        """Give the driver's id of a writable layer. Raises MountDoesNotExistError."""
        store = self.blocking
        return await self._short(lambda: store.get_mount_id(name))

    async def release_rw_layer(self, layer: RWLayer) -> list[Metadata]:
        """Give a reference back; with the last one the writable layer is unmounted and deleted."""
        store = self.blocking
        if not isinstance(layer, RWLayer):
            raise TypeError(f"release_rw_layer() takes an RWLayer of layerstore.aio, not {type(layer).__name__}")
        return await _in_thread(lambda _: store.release_rw_layer(layer.blocking), None)

    async def mounts(self) -> list[str]:
        """Name the writable layers."""
        return await self._short(self.blocking.mounts)

    async def cleanup(self) -> None:
        """Finish what was interrupted, and reclaim what no layer and no mount of this root owns."""
        store = self.blocking
        await _in_thread(lambda _: store.cleanup(), self._slots.long)

    async def driver_status(self) -> list[tuple[str, str]]:
        """Give what the driver says of itself, in order."""
        return await self._short(self.blocking.driver_status)

    def driver_name(self) -> str:
        """Name the driver."""
        return self.blocking.driver_name()

    async def verify(
        self, chain_id: str | None = None, *, progress: Progress | None = None, workers: int | None = None
    ) -> list[Problem]:
        """Compare what is stored with what was registered; [] when all is well. Nothing is written."""
        store = self.blocking
        return await _in_thread(
            lambda call: store.verify(chain_id, progress=call.hook(progress), workers=workers), self._slots.long
        )

    async def repair(self, chain_id: str, source: Any = None, *, progress: Progress | None = None) -> list[Problem]:
        """Make a damaged layer what it was.

        source   as register() takes it; or another Store, or a Layer, that has it; None: other layers of this store
        """
        store = self.blocking
        other = source.blocking if isinstance(source, Store | Layer) else source
        return await _in_thread(
            lambda call: store.repair(chain_id, _repair_source(call, other), progress=call.hook(progress)),
            self._slots.long,
        )

    async def orphans(self) -> list[Orphan]:
        """List what no layer and no writable layer owns, largest first. Nothing is written."""
        store = self.blocking
        return await _in_thread(lambda _: store.orphans(), self._slots.long)

    async def reclaim(self, dry_run: bool = True) -> list[Orphan]:
        """Remove what orphans() lists; dry_run: remove nothing, say what would go."""
        store = self.blocking
        return await _in_thread(lambda _: store.reclaim(dry_run), self._slots.long)

    async def close(self) -> None:
        """End the use of this object; what is mounted stays mounted. Twice is harmless."""
        store = self._blocking
        if store is not None:
            await _in_thread(lambda _: store.close(), None)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _repair_source(call: _Call, source: Any) -> Any:
    if source is None or isinstance(source, layerstore.Store | layerstore.Layer):
        return source
    return _source_for(call, source)


# ---- on its own -----------------------------------------------------------------------------------


async def disassemble(source: Any, tar_split: BinaryIO | int, *, progress: Progress | None = None) -> DiffID:
    """Record a tar's framing as JSON lines (not compressed) into tar_split; source as Store.register takes it."""
    return await _in_thread(
        lambda call: layerstore.disassemble(_source_for(call, source), tar_split, progress=call.hook(progress)), None
    )


async def assemble(tar_split: BinaryIO | int, root: StrPath, *, diff_id: DiffID | None = None) -> TarStream:
    """Give the tar again that a record describes, payloads read beneath root."""
    made = await _in_thread(
        lambda _: layerstore.assemble(tar_split, root, diff_id=diff_id), None, lambda stream: stream.close()
    )
    return TarStream(made, _Slots(None))


async def changes_between(new: StrPath, old: StrPath) -> list[Change]:
    """List how new differs from old, as moby compares two trees."""
    return await _in_thread(lambda _: layerstore.changes_between(new, old), None)


async def overlay_changes(upper: StrPath, lowers: Sequence[StrPath]) -> list[Change]:
    """List how an overlay differs from its lowers (nearest first), by reading upper alone."""
    return await _in_thread(lambda _: layerstore.overlay_changes(upper, lowers), None)
