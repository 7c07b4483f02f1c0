"""The store whose calls are awaited."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import layerstore
from layerstore import errors
from layerstore.aio.calls import Call, Slots, T, in_thread
from layerstore.aio.layers import Layer, RWLayer, StrPath
from layerstore.aio.sources import source_for
from layerstore.ids import OS, ChainID
from layerstore.values import CreateRWLayerOpts, Descriptor, Metadata, Orphan, Problem, Progress

# What a layer can stand on: a ChainID, a Layer of this module or a blocking one, an Image.
Parent = str | Layer | layerstore.Layer | layerstore.Image


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
        self._slots = Slots(workers)
        self._blocking: layerstore.Store | None = None

    async def open(self) -> Self:
        """Open, or make, the store. Raises as layerstore.Store does."""
        if self._blocking is None:
            root, driver, options = self._arguments
            self._blocking = await in_thread(
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
        return await in_thread(lambda _: work(), self._slots.short, undo)

    async def register(
        self, source: Any, parent: Parent = "", os: OS | None = None, *, progress: Progress | None = None,
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
        self, source: Any, parent: Parent = "", os: OS | None = None, descriptor: Descriptor | None = None, *,
        progress: Progress | None = None, durability: str | None = None,
    ) -> Layer:  # fmt: skip
        """Do what register() does, and remember the blob's descriptor."""
        store = self.blocking
        made = await in_thread(
            lambda call: store.register_with_descriptor(
                source_for(call, source), _parent_of(parent), os, descriptor,
                progress=call.hook(progress), durability=durability,
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
        return await in_thread(lambda _: store.release(layer.blocking), None)

    async def remove(self, layer: str | Layer) -> list[Metadata]:
        """Release a stored layer that nobody holds. Raises as layerstore.Store.remove does."""
        store = self.blocking
        wanted = layer.blocking if isinstance(layer, Layer) else layer
        return await in_thread(lambda _: store.remove(wanted), None)

    async def create_rw_layer(
        self, name: str, parent: Parent = "", opts: CreateRWLayerOpts | None = None, *, durability: str | None = None
    ) -> RWLayer:
        """Make a writable layer and return a reference to it. An init_func is called in a thread."""
        store = self.blocking
        made = await in_thread(
            lambda _: store.create_rw_layer(name, _parent_of(parent), opts, durability=durability),
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
        return await in_thread(lambda _: store.release_rw_layer(layer.blocking), None)

    async def mounts(self) -> list[str]:
        """Name the writable layers."""
        return await self._short(self.blocking.mounts)

    async def cleanup(self) -> None:
        """Finish what was interrupted, and reclaim what no layer and no mount of this root owns."""
        store = self.blocking
        await in_thread(lambda _: store.cleanup(), self._slots.long)

    async def driver_status(self) -> list[tuple[str, str]]:
        """Give what the driver says of itself, in order."""
        return await self._short(self.blocking.driver_status)

    def driver_name(self) -> str:
        """Name the driver."""
        return self.blocking.driver_name()

    async def verify(
        self, chain_id: str | None = None, *, metadata: bool = True, progress: Progress | None = None,
        workers: int | None = None,
    ) -> list[Problem]:  # fmt: skip
        """Compare what is stored with what was registered; [] when all is well. Nothing is written."""
        store = self.blocking
        return await in_thread(
            lambda call: store.verify(chain_id, metadata=metadata, progress=call.hook(progress), workers=workers),
            self._slots.long,
        )

    async def repair(self, chain_id: str, source: Any = None, *, progress: Progress | None = None) -> list[Problem]:
        """Make a damaged layer what it was.

        source   as register() takes it; or another Store, or a Layer, that has it; None: other layers of this store
        """
        store = self.blocking
        other = source.blocking if isinstance(source, Store | Layer) else source
        return await in_thread(
            lambda call: store.repair(chain_id, _repair_source(call, other), progress=call.hook(progress)),
            self._slots.long,
        )

    async def orphans(self) -> list[Orphan]:
        """List what no layer and no writable layer owns, largest first. Nothing is written."""
        store = self.blocking
        return await in_thread(lambda _: store.orphans(), self._slots.long)

    async def reclaim(self, dry_run: bool = True) -> list[Orphan]:
        """Remove what orphans() lists; dry_run: remove nothing, say what would go."""
        store = self.blocking
        return await in_thread(lambda _: store.reclaim(dry_run), self._slots.long)

    async def close(self) -> None:
        """End the use of this object; what is mounted stays mounted. Twice is harmless."""
        store = self._blocking
        if store is not None:
            await in_thread(lambda _: store.close(), None)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _parent_of(parent: Parent) -> layerstore.store.Parent:
    return parent.blocking if isinstance(parent, Layer) else parent


def _repair_source(call: Call, source: Any) -> Any:
    if source is None or isinstance(source, layerstore.Store | layerstore.Layer):
        return source
    return source_for(call, source)
