"""Durability: how much of what a call made is on the disk before it becomes visible, and after.

Enters: driver ids, a write set, the record they stand on, and a level. No lock is held here, as disks are waited for.
"""

from __future__ import annotations

import contextlib

from layerstore._core import _files
from layerstore.disk import mounts
from layerstore.engine.ground import Ground, parse_durability
from layerstore.engine.record import Record
from layerstore.layerdb.transaction import FileMetadataTransaction
from layerstore.values import Durability


class Syncing:
    """What one store puts on its disk."""

    def __init__(self, ground: Ground) -> None:
        """Calls that name no level have the store's."""
        self._ground, self._metadata, self._host = ground, ground.metadata, ground.driver.host

    def level(self, durability: str | None) -> Durability:
        """Return the durability of one call. Raises InvalidOptionError."""
        level = self._ground.durability if durability is None else parse_durability(durability)
        return "none" if self._host.in_memory else level

    def before(
        self, ids: list[str], transaction: FileMetadataTransaction, above: Record | None, level: Durability
    ) -> None:
        """Put what was made on the disk, as far as level says, before it becomes visible."""
        # What it stands on may have been stored with less, by anybody; then one sync of everything sees to that, too.
        known = above is None or above.durable
        everywhere = self._host.sync(ids, level, everything=level == "full" and not known)
        if level != "none" and not (everywhere and self._one_device()):
            transaction.sync()
        if level == "full" and above and not known:
            self._note(above)

    def contents(self, id: str) -> None:
        """Put on the disk what a call wrote into a writable layer that is there already."""
        self._host.sync([id], self.level(None))

    def name(self, kind: str, level: Durability) -> contextlib.AbstractContextManager[None]:
        """Around the rename that makes something visible: a power cut must not make it invisible again."""
        return self._metadata.names_synced(kind) if level == "full" else contextlib.nullcontext()

    def ensure(self, record: Record, level: Durability) -> None:
        """Sync a layer that may have been stored with less durability than this call asks for."""
        if level == "full" and not record.durable:
            self._host.sync([record.cache_id], level, everything=True)
            self._note(record)

    def _note(self, record: Record) -> None:
        """Sync the layerdb's file system too, after the driver's, and note it."""
        if not self._one_device():
            mounts.sync_filesystem(self._metadata.root)
        below: Record | None = record
        while below and not below.durable:
            below.durable = True
            below = below.parent

    def _one_device(self) -> bool:
        """Return True if the layerdb and the driver's directories are on one file system."""
        return _files.status(self._ground.home, follow=True)[1] == _files.status(self._metadata.root, follow=True)[1]
