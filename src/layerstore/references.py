"""References: who keeps a layer alive, and what happens when nobody does any more.

A layer is needed by handles and calls of this store (held), by layers and writable layers on it (standing), by images,
and by what other stores hold. The last of them deletes it, and then perhaps what it stood on.
Source: moby, layer/layer_store.go (releaseLayer)
"""

from __future__ import annotations

import logging
from typing import Any, cast

from layerstore import dockerd
from layerstore.drivers import Driver
from layerstore.errors import LayerDoesNotExistError
from layerstore.holds import Holds
from layerstore.ids import ChainID
from layerstore.imagedb import ImageDB
from layerstore.layer import Layer, Record
from layerstore.metadata import FileMetadataStore
from layerstore.records import Records
from layerstore.textfile import remove_directory
from layerstore.values import Metadata

log = logging.getLogger("layerstore")


class References:
    """The references of one store object."""

    def __init__(
        self, root: str, metadata: FileMetadataStore, driver: Driver, records: Records, holds: Holds,
        images: ImageDB, *, read_only: bool,
    ) -> None:  # fmt: skip
        """Count in records, tell other stores through holds; read_only: nothing is ever deleted."""
        self._root, self._metadata, self._driver = root, metadata, driver
        self._records, self._holds, self._images, self._read_only = records, holds, images, read_only
        self._lock = records.lock

    def hold(self, record: Record) -> None:
        """Under the lock: count a reference of our own; other stores leave the layer alone meanwhile."""
        self._holds.retain(record.chain_id)
        record.held += 1

    def unhold(self, record: Record) -> None:
        """Under the lock: undo hold(). Nothing is deleted."""
        record.held -= 1
        self._holds.release(record.chain_id)

    def retain(self, chain_id: str) -> Record:
        """Find a layer and hold it. Raises LayerDoesNotExistError."""
        with self._lock:
            known = self._records.layers.get(cast(ChainID, chain_id))
            if known and self._holds.holds(chain_id):
                self.hold(known)
                return known
            with self._metadata.exclusive():      # nobody deletes it while it is read, and before it is held
                record = self._records.load_current(chain_id)
                if record is None:
                    raise LayerDoesNotExistError(chain_id=chain_id)
                self.hold(record)
                return record

    def handle(self, record: Record) -> Layer:
        """Under the lock: give the handle of a reference that is held."""
        layer = Layer(record)
        record.handles.add(layer)
        return layer

    def let_go(self, layer: Layer) -> None:
        """Give a reference back and delete nothing: a layer that nobody had asked for stays, as it did before."""
        with self._lock:
            if layer in layer._record.handles:
                layer._record.handles.remove(layer)
                self.unhold(layer._record)

    def release(self, record: Record) -> list[Metadata]:
        """Take one reference of record, and delete what nobody needs then, from it downwards."""
        with self._lock:
            self.unhold(record)
        return self.remove_unneeded(record)

    def remove_unneeded(self, record: Record | None) -> list[Metadata]:
        """Delete record and what it stands on, as far as nobody needs them; gives what went."""
        removed: list[Metadata] = []
        while record:
            with self._lock:
                aside = self._take_away(record)
            if aside is None:
                break
            self._driver.remove(record.cache_id)
            if aside:
                remove_directory(aside)
            removed.append(Metadata(record.chain_id, record.diff_id, record.size, record.diff_size))
            record = record.parent
        return removed

    def _take_away(self, record: Record) -> str | None:
        """Under the lock: make a layer that nobody needs invisible.

        Returns  where its metadata is now, "" where it had vanished, or None: it stays
        """
        if record.held > 0 or record.standing > 0:
            return None
        if self._records.layers.get(record.chain_id) is not record:
            return None                   # another thread was quicker
        if self.may_not_delete("layer", record.chain_id, {"chain_id": record.chain_id}):
            return None
        with self._metadata.exclusive():
            # An interrupt may have lost a count; nothing is deleted from under what stands on it.
            record.standing = self._records.count_standing_on(record)
            record.held = len(record.handles)
            if record.held or record.standing or self._holds.held_elsewhere(record.chain_id):
                return None
            if self._images.stands_on(record.chain_id):
                return None
            aside = self._metadata.set_aside(record.chain_id) if self._records.names_layer(record) else None
            self._records.forget(record)
            return aside or ""

    def may_not_delete(self, what: str, name: str, about: dict[str, Any]) -> bool:
        """Whether nothing may be deleted now: the store only reads, or a dockerd was started meanwhile."""
        if self._read_only:
            return True
        database = dockerd.locked_database(self._root)
        if database:
            text = "The %s %s is left to the dockerd that is running now (%s)"
            log.warning(text, what, name, database, extra={**about, "database": database})
        return database is not None
