"""References to layers and writable layers whose calls are awaited."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, Self, TypeVar

import layerstore
from layerstore.aio.calls import Slots, T, in_thread
from layerstore.aio.sources import source_for
from layerstore.aio.streams import File, TarStream
from layerstore.contents.merged import MergedTree
from layerstore.ids import OS, ChainID, DiffID
from layerstore.streams.leftout import Keep, Marks
from layerstore.values import Change, Descriptor, FileEntry, Holder, Metadata, Progress

StrPath = str | bytes | os.PathLike[Any]
BATCH = 512
B = TypeVar("B", layerstore.Layer, layerstore.RWLayer)


class _Reference(Generic[B]):
    """A blocking reference, whose calls are done in threads. `async with` releases it at the end."""

    def __init__(self, blocking: B, slots: Slots) -> None:
        """Take over a blocking reference."""
        self._blocking: B = blocking
        self._slots = slots

    @property
    def blocking(self) -> B:
        """The same reference for blocking calls."""
        return self._blocking

    async def _do(self, work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        return await in_thread(lambda _: work(), self._slots.short, undo)

    async def _stream(self, make: Callable[[], layerstore.TarStream]) -> TarStream:
        return TarStream(await self._do(make, lambda stream: stream.close()), self._slots)

    async def release(self) -> list[Metadata]:
        """Give the reference back: the blocking one's release()."""
        return await in_thread(lambda _: self._blocking.release(), None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()


class Layer(_Reference[layerstore.Layer]):
    """A reference to a read-only layer: what layerstore.Layer is. `async with layer:` releases it at the end."""

    chain_id: ChainID
    diff_id: DiffID
    size: int
    diff_size: int
    cache_id: str
    os: OS = "linux"

    def __init__(self, blocking: layerstore.Layer, slots: Slots) -> None:
        """Take over a blocking reference."""
        super().__init__(blocking, slots)
        self.chain_id, self.diff_id, self.cache_id = blocking.chain_id, blocking.diff_id, blocking.cache_id
        self.size, self.diff_size = blocking.size, blocking.diff_size

    def __repr__(self) -> str:
        return f"<aio.Layer {self.chain_id}>"

    @property
    def parent(self) -> Layer | None:
        """The bare layer below: no reference, cannot be released. None for a base layer."""
        below = self._blocking.parent
        return Layer(below, self._slots) if below else None

    @property
    def descriptor(self) -> Descriptor | None:
        """The descriptor it was registered with, or None."""
        return self._blocking.descriptor

    async def tar_stream(self) -> TarStream:
        """Give the layer's tar, byte for byte, seekable and verified."""
        return await self._stream(self._blocking.tar_stream)

    async def tar_stream_from(self, parent: str | Layer | layerstore.Layer) -> TarStream:
        """Make a fresh tar of the difference to an ancestor ("" = everything); not verified."""
        below = parent.blocking if isinstance(parent, Layer) else parent
        return await self._stream(lambda: self._blocking.tar_stream_from(below))

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


class RWLayer(_Reference[layerstore.RWLayer]):
    """A reference to a writable layer: what layerstore.RWLayer is. `async with rw:` releases it at the end."""

    def __init__(self, blocking: layerstore.RWLayer, slots: Slots) -> None:
        """Take over a blocking reference."""
        super().__init__(blocking, slots)
        self.name: str = blocking.name

    def __repr__(self) -> str:
        return f"<aio.RWLayer {self.name}>"

    @property
    def parent(self) -> Layer | None:
        """The bare layer below, or None."""
        below = self._blocking.parent
        return Layer(below, self._slots) if below else None

    async def mount(self, mount_label: str = "") -> str:
        """Mount it, or count one user more; gives the path."""
        return await self._do(lambda: self._blocking.mount(mount_label), lambda _: self._blocking.unmount())

    async def unmount(self, *, lazy: bool = False) -> None:
        """Count one user less; unmount at zero. One too many is harmless. Raises ActiveMountError.

        lazy     detach it, whoever is inside: until they end it cannot be mounted again
        """
        await in_thread(lambda _: self._blocking.unmount(lazy=lazy), None)

    async def holders(self) -> list[Holder]:
        """List the processes that use it, by pid: while it is mounted, or was detached and is still in use."""
        return await self._do(self._blocking.holders)

    @contextlib.asynccontextmanager
    async def mounted(self, mount_label: str = "") -> AsyncIterator[str]:
        """Mount for the length of an `async with` block, which gets the path; its end is an unmount()."""
        path = await self.mount(mount_label)
        try:
            yield path
        except BaseException:
            with contextlib.suppress(layerstore.ActiveMountError):
                await self.unmount()
            raise
        await self.unmount()

    async def size(self) -> int:
        """Count the bytes of its own files."""
        return await self._do(self._blocking.size)

    async def changes(self) -> list[Change]:
        """List what differs from its parent."""
        return await self._do(self._blocking.changes)

    async def tar_stream(self, *, keep: Keep = "docker", marks: Marks = "refuse") -> TarStream:
        """Make a tar of what differs from its parent. keep, marks: as layerstore.RWLayer.tar_stream takes them."""
        return await self._stream(lambda: self._blocking.tar_stream(keep=keep, marks=marks))

    async def apply_diff(self, source: Any, *, progress: Progress | None = None) -> int:
        """Unpack a tar over it; gives the bytes of all its own files then.

        source, progress   as Store.register takes them; a failure, or a cancellation, leaves what had come
        """
        return await in_thread(
            lambda call: self._blocking.apply_diff(source_for(call, source), progress=call.hook(progress)),
            self._slots.long,
        )

    async def metadata(self) -> dict[str, str]:
        """Name the driver's directories, and its own name as ID."""
        return await self._do(self._blocking.metadata)

    async def commit(
        self, *, keep: Keep = "docker", marks: Marks = "refuse", durability: str | None = None,
        progress: Progress | None = None,
    ) -> Layer:  # fmt: skip
        """Register what it holds now as a new read-only layer on the same parent; gives the reference."""
        store = self._blocking._mount.store
        made = await in_thread(
            lambda call: self._blocking.commit(
                keep=keep, marks=marks, progress=call.hook(progress), durability=durability
            ),
            self._slots.long, store._undo,
        )  # fmt: skip
        return Layer(made, self._slots)
