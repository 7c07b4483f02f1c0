"""Conversion: a layer and all below it become layers of another driver on the same root.

Enters: the engine that has the layers, a ChainID, and a driver's name. Leaves: the ChainIDs that the other half of the
root did not have; each layer came in as the tar it was registered from, whole, in one step. The other half is opened as
a second engine of the same root, and closed again.
"""

from __future__ import annotations

import contextlib
import gzip
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from layerstore._core._apply import Apply
from layerstore.disk.holds import STORE
from layerstore.drivers import registry
from layerstore.engine.engine import Engine
from layerstore.engine.record import Record
from layerstore.errors import CorruptLayerError, LayerDoesNotExistError, LayerStoreError, NotSupportedError
from layerstore.ids import ChainID
from layerstore.streams.sources import SourceInput
from layerstore.values import Done, Progress


def convert(
    engine: Engine, chain_id: str, driver: str, progress: Progress | None = None, durability: str | None = None
) -> list[ChainID]:
    """Register a layer and all below it under another driver. Raises as Store.convert() does."""
    engine.check_writable()
    engine.syncing.level(durability)
    if driver not in registry.DRIVERS:
        raise NotSupportedError(f"driver not supported: {driver}")
    with contextlib.ExitStack() as stack:
        chain = _chain(engine, stack.enter_context(_using(engine, chain_id)))
        if driver == engine.driver.host.name:
            return []
        places = [os.path.join(engine.root, *names) for names in ((driver,), ("image", driver))]
        fresh = not any(map(os.path.lexists, places))
        other = stack.enter_context(contextlib.closing(Engine(engine.root, driver, engine.shared)))
        try:
            return _take(engine, chain, other, progress, durability)
        except BaseException:
            # A root of one driver stays one, if nothing came.
            if fresh and other.metadata.list() == ([], []) and not other.holds.held_elsewhere(STORE):
                for place in places:
                    _remove_empty(place)
            raise


@contextlib.contextmanager
def _using(engine: Engine, chain_id: str) -> Iterator[Record]:
    """Keep a layer. One whose record cannot be read is damaged, not unknown."""
    with contextlib.ExitStack() as stack:
        try:
            record = stack.enter_context(engine.references.using(chain_id))
        except LayerDoesNotExistError as err:
            with engine.records.lock:
                why = engine.records.bad.get(chain_id)
            if why is None:
                raise
            raise CorruptLayerError(f"repair it first: {why}", chain_id=chain_id) from err
        yield record


def _chain(engine: Engine, top: Record) -> list[Record]:
    """Return a layer and all below it, base first. Raises CorruptLayerError: it stands on something else."""
    engine.contents.directories_of(top)
    chain: list[Record] = []
    at: Record | None = top
    while at:
        chain.insert(0, at)
        at = at.parent
    return chain


def _take(
    engine: Engine, chain: Sequence[Record], other: Engine, progress: Progress | None, durability: str | None
) -> list[ChainID]:
    """Register in the other half what is not there yet, from the base up. What is there stays until the end."""
    references, level = other.references, other.syncing.level(durability)
    sizes = [_tar_size(engine, record) for record in chain] if progress else []
    total = sum(sizes)
    made: list[ChainID] = []
    with contextlib.ExitStack() as stack:
        for at, record in enumerate(chain):
            there = _whole(other, record.chain_id)
            if there:
                stack.callback(references.end_use, there)
                continue
            above = references.use(record.parent.chain_id) if record.parent else None
            tar = _Tar(engine, record, progress, sum(sizes[:at]), total)
            reference = other.intake.register_on(above, tar, record.descriptor, level)
            stack.callback(references.let_go, reference)
            if reference.is_new:
                made.append(record.chain_id)
    return made


def _whole(other: Engine, chain_id: str) -> Record | None:
    """Keep a layer of the other half; None: it is not there, or its files are gone."""
    try:
        record = other.references.use(chain_id)
    except LayerDoesNotExistError:
        return None
    if other.driver.layers.exists(record.cache_id):
        return record
    other.references.end_use(record)
    return None


class _Tar(NamedTuple):
    """The tar of a layer on its way into the other half."""

    engine: Engine
    record: Record
    progress: Progress | None
    before: int
    """Bytes of the tars of the layers below."""
    total: int

    def pump_into(self, apply: Apply) -> None:
        with _readable(self.record), self.engine.contents.tar_stream(self.record) as stream:
            SourceInput(stream, self._tell if self.progress else None).pump_into(apply)

    def _tell(self, done: Done) -> None:
        if self.progress:
            self.progress(Done(self.before + done, self.total))


def _tar_size(engine: Engine, record: Record) -> int:
    """Count the bytes of a layer's tar; 0 if that cannot be read, which _Tar tells when it comes to it."""
    with contextlib.suppress(OSError, LayerStoreError), engine.contents.tar_stream(record) as stream:
        return stream.size
    return 0


@contextlib.contextmanager
def _readable(record: Record) -> Iterator[None]:
    """Around the reading of a layer: what is gone of it raises CorruptLayerError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, gzip.BadGzipFile) as err:
        why = f"the layer cannot be read, repair it first: {err}"
        raise CorruptLayerError(why, chain_id=record.chain_id, path=err.filename or "") from err


def _remove_empty(place: str) -> None:
    for path, _, _ in os.walk(place, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)
