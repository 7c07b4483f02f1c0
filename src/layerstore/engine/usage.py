"""Usage: what the store takes of the disk, by who has it, and what could be freed.

Enters: the records, what each writable layer stands on, and the driver's directories. Leaves: a Usage. All is read
without a lock, as of no one moment. Each inode counts once, for the first that has it.
Source: sandbox.md 12.7
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from layerstore._core import _changes
from layerstore.engine.ground import Ground, said
from layerstore.engine.reclaim import Reclaim
from layerstore.engine.record import Record
from layerstore.engine.references import References
from layerstore.errors import StoreInUseError
from layerstore.values import Usage


class _Standing(NamedTuple):
    """A writable layer, and what it needs."""

    own: list[str]
    """Its directories: the driver's ids."""
    directories: frozenset[str]
    """All that it stands on, by the driver's ids."""
    layers: frozenset[str]
    """ChainIDs."""


class Weighing:
    """Weighs one root."""

    def __init__(self, ground: Ground, references: References, reclaim: Reclaim) -> None:
        self._ground, self._references, self._reclaim = ground, references, reclaim
        self._host, self._writables = ground.driver.host, ground.driver.writables

    def usage(self) -> Usage:
        """Weigh everything. Raises as Store.usage() does."""
        self._ground.check_open()
        records = self._ground.records
        with records.lock:
            records.load_all()
            layers = list(records.layers.values())
            boxes = [(mount.mount_id, mount.init_id, mount.parent) for mount in records.mounts.values()]
        standing = [self._box(*box) for box in boxes]
        orphans = self._orphans()
        seen = _changes.Blocks()
        of_layers = self._blocks((layer.cache_id for layer in layers), seen)
        of_boxes = self._blocks((id for box in standing for id in box.own), seen)
        of_orphans = sum(_blocks_of(path, seen) for path in orphans)
        freed = _changes.Blocks(freed=True)
        reclaimable = sum(_blocks_of(path, freed) for path in orphans)
        reclaimable += self._blocks((layer.cache_id for layer in self._unneeded(layers, standing)), freed)
        return Usage(of_layers, of_boxes, 0, of_orphans, reclaimable)

    def _blocks(self, ids: Iterable[str], seen: _changes.Blocks) -> int:
        return sum(self._host.blocks(id, seen) for id in dict.fromkeys(ids))

    # ---- what stands on what ----

    def _box(self, mount_id: str, init_id: str, parent: Record | None) -> _Standing:
        stack = said(self._writables.stack_of, mount_id, list[str]())
        own = [mount_id, *([init_id] if init_id else [])]
        layers = frozenset([parent.chain_id] if parent else [])
        return _Standing(own, frozenset(stack) - set(own), layers)

    def _orphans(self) -> list[str]:
        """Return the paths of what is unowned; none while a dockerd runs, whose unfinished layers look like orphans."""
        with contextlib.suppress(StoreInUseError):
            return [os.path.join(self._ground.root, orphan.path) for orphan in self._reclaim.find()]
        return []

    # ---- what could go ----

    def _unneeded(self, layers: list[Record], standing: list[_Standing]) -> list[Record]:
        """Return the layers that remove() would remove, over and over, until none is left that could go."""
        directories = Counter(id for each in standing for id in each.directories)
        needed = Counter(chain for each in standing for chain in each.layers)
        needed.update(layer.parent.chain_id for layer in layers if layer.parent)
        gone = []
        for layer in sorted(layers, key=lambda layer: -layer.depth):      # what stands on a layer comes before it
            if needed[layer.chain_id] or directories[layer.cache_id] or self._references.is_kept(layer):
                continue
            gone.append(layer)
            if layer.parent:
                needed[layer.parent.chain_id] -= 1
        return gone


def _blocks_of(path: str, seen: _changes.Blocks) -> int:
    """Count what a path takes of the disk; a link, or what has gone, nothing."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return seen.add(fd)
        finally:
            os.close(fd)
    return 0
