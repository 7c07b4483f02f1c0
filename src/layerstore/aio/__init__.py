"""layerstore.aio: the same for asyncio. Every call that may wait is a coroutine; its work is done in a thread.

Cancelling what awaits a call stops the work; CancelledError goes out when all is undone. What releases something
(release, unmount, close) is always carried through. Progress is told in the event loop's thread, which is never kept
waiting. Use a store and its objects from one event loop.

Values are those of layerstore: Image, Change, Problem and all others. mirror.py says how a class is made from its
blocking one; __init__.pyi spells it out for a type checker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import layerstore
from layerstore.aio.calls import Slots, in_thread
from layerstore.aio.mirror import NAMES, Managed, Mirror, awaits, mirrors
from layerstore.aio.streams import File
from layerstore.values import StrPath

__all__ = [
    "File", "Images", "Layer", "RWLayer", "Registry", "Snapshot", "Store", "TarStream", "assemble", "changes_between",
    "disassemble", "overlay_changes", "pack_directory", "release_and_log",
]  # fmt: skip


@mirrors(
    layerstore.TarStream,
    left=(
        "about", "copy_some", "left_out", "lying", "pass_over", "pump_into", "pump_once", "read_block", "readable",
        "readall", "write",
    ),
)
class TarStream(File):
    """A layer's tar, byte for byte: what layerstore.TarStream is."""

    def seekable(self) -> bool:
        """Return True if seek() works: for the recorded tar of a read-only layer."""
        return bool(self.blocking.seekable())

    async def size(self) -> int:
        """Return the whole length in bytes, known before reading."""
        return await self._do(lambda _: int(self.blocking.size))


@mirrors(layerstore.Layer)
class Layer(Managed[Any]):
    """A reference to a read-only layer: what layerstore.Layer is. `async with layer:` releases it at the end.

    merged() returns the blocking MergedTree: it is in memory, of its methods only open() touches the disk.
    """


@mirrors(layerstore.RWLayer)
class RWLayer(Managed[Any]):
    """A reference to a writable layer: what layerstore.RWLayer is. `async with rw:` releases it at the end."""


@mirrors(layerstore.Snapshot)
class Snapshot(Managed[Any]):
    """The frozen state of a writable layer: what layerstore.Snapshot is. `async with snapshot:` releases it."""


@mirrors(layerstore.Store, left=("check_open", "check_writable", "durability", "images"))
class Store(Managed[Any]):
    """Layers and writable layers below a Docker data root. `async with Store(root) as store:` opens and closes it."""

    def __init__(
        self, root: StrPath, *, driver: str | None = None, options: Mapping[str, str] | None = None,
        workers: int | None = None,
    ) -> None:  # fmt: skip
        """Take the arguments of layerstore.Store; open() or `async with` opens it.

        workers   how many long calls (register, commit, verify, load ...) run at a time, the others wait; None: one for
                  each processor, 4 at most
        """
        super().__init__(None, Slots(workers))
        self._open = lambda: layerstore.Store(root, driver=driver, options=options)

    async def open(self) -> Self:
        """Open, or make, the store. Raise as layerstore.Store does."""
        if self._blocking is None:
            opened = await in_thread(lambda _: self._open(), self._slots.short, lambda store: store.close())
            self._blocking, self._slots.take_back = opened, opened.take_back
        return self

    @property
    def blocking(self) -> layerstore.Store:
        """The same store for blocking calls. Raise StoreClosedError before open()."""
        if self._blocking is None:
            raise layerstore.StoreClosedError("the store is not open yet: await open()")
        return self._blocking

    def driver_name(self) -> str:
        """Return the driver's name."""
        return self.blocking.driver_name()

    async def close(self) -> None:
        """End the use of this object; what is mounted stays mounted. Twice is harmless."""
        if self._blocking is not None:
            await in_thread(lambda _: self._blocking.close(), None)

    async def __aenter__(self) -> Self:
        return await self.open()


@mirrors(layerstore.Images, left=("store",))
class Images(Mirror[Any]):
    """The images of a store: what layerstore.Images is. A cancelled load() leaves nothing, or all at its end."""

    store: Store

    def __init__(self, store: Store) -> None:
        """store   open for as long as this is used; it is not closed here"""
        if not isinstance(store, Store):
            raise TypeError(f"Images() takes a Store of layerstore.aio, not {type(store).__name__}")
        super().__init__(layerstore.Images(store.blocking), store._slots)
        self.store = store


@mirrors(layerstore.Registry)
class Registry(Managed[Any]):
    """One registry host, with its connections: what layerstore.Registry is. `async with` closes it.

    A cancelled call shuts its connections, and ends within a second of that.
    """

    def __init__(
        self, host: str, *, auth: tuple[str, str] | str | None = None, insecure: bool = False,
        ca: StrPath | None = None, mirrors: Sequence[str] = (), timeout: float = 30.0, retries: int = 5,
        connections: int = 3, chunk: int | None = None,
    ) -> None:  # fmt: skip
        """Take the arguments of layerstore.Registry, and raise as it does."""
        blocking = layerstore.Registry(
            host, auth=auth, insecure=insecure, ca=ca, mirrors=mirrors, timeout=timeout, retries=retries,
            connections=connections, chunk=chunk,
        )  # fmt: skip
        super().__init__(blocking, Slots())


assemble = awaits(layerstore.assemble)
disassemble = awaits(layerstore.disassemble)
pack_directory = awaits(layerstore.pack_directory)
changes_between = awaits(layerstore.changes_between)
overlay_changes = awaits(layerstore.overlay_changes)
release_and_log = awaits(layerstore.release_and_log)

# What a layer can stand on, and what the other names in annotations mean here.
Parent = _Excluded = str | Layer | layerstore.Layer | layerstore.Image
NAMES.update((name, globals()[name]) for name in (*__all__, "Parent", "_Excluded"))
