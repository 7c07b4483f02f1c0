"""Usage: what the store takes of the disk, by who has it, and what could be freed.

Enters: the records, what each writable layer and snapshot stands on, and the driver's directories. Leaves: a Usage. All
is read without a lock, as of no one moment. Each inode counts once, for the first that has it.
Source: sandbox.md 12.7
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from layerstore._core import _changes
from layerstore.disk.locks import OpenDirectory
from layerstore.engine.ground import Ground
from layerstore.engine.reclaim import Reclaim
from layerstore.engine.record import Record
from layerstore.engine.references import References
from layerstore.engine.stacks import is_init
from layerstore.errors import StoreInUseError
from layerstore.values import Usage

_T = TypeVar("_T")
_U = TypeVar("_U")


class _Standing(NamedTuple):
    """A writable layer or a snapshot, and what it needs."""

    snapshot: str
    """The id; "": it is a writable layer."""
    own: list[str]
    """Its directories: the driver's ids."""
    directories: frozenset[str]
    """All that it stands on, by the driver's ids."""
    layers: frozenset[str]
    """ChainIDs."""
    committed: bool = False
    """Its directory is a layer's, or of the same contents: what stands on it stands on the layer."""


class Weighing:
    """Weighs one root."""

    def __init__(self, ground: Ground, references: References, reclaim: Reclaim) -> None:
        self._ground, self._references, self._reclaim = ground, references, reclaim
        self._host, self._writables = ground.driver.host, ground.driver.writables

    def usage(self) -> Usage:
        """Weigh everything. Raises as Store.usage() does."""
        self._ground.check_open()
        records, metadata = self._ground.records, self._ground.metadata
        with records.lock:
            records.load_all()
            for err in records.bad.values():
                if isinstance(err.__cause__, OSError) and not isinstance(err.__cause__, FileNotFoundError):
                    raise err             # it may be whole
            layers = list(records.layers.values())
            boxes = [(mount.mount_id, mount.init_id, mount.parent) for mount in records.mounts.values()]
        standing = [*(self._box(*box) for box in boxes), *map(self._snapshot, self._ground.snapshots_db.names())]
        of_layers = {_there(metadata.get_cache_id, chain, "") for chain in metadata.list()[0]} - {""}
        of_boxes = {id for each in standing if not each.snapshot for id in each.own}
        below = {id for each in standing for id in each.directories} - of_layers - of_boxes       # loose ones, too
        inits = set(filter(is_init, below))
        of_snapshots = {id for each in standing if each.snapshot for id in each.own} - of_layers | below - inits
        orphans = self._orphans()
        seen = _changes.Blocks()
        sizes = [self._blocks(ids, seen) for ids in (of_layers, of_snapshots, of_boxes | inits)]
        of_orphans = sum(_blocks_of(path, seen) for path in orphans)
        freed = _changes.Blocks(freed=True)
        reclaimable = sum(_blocks_of(path, freed) for path in orphans)
        reclaimable += self._blocks(_unneeded(layers, standing, self._references.is_kept), freed)
        return Usage(sizes[0], sizes[2], sizes[1], of_orphans, reclaimable)

    def _blocks(self, ids: Iterable[str], seen: _changes.Blocks) -> int:
        return sum(self._host.blocks(id, seen) for id in sorted(ids))

    # ---- what stands on what ----

    def _box(self, mount_id: str, init_id: str, parent: Record | None) -> _Standing:
        stack = _there(self._writables.stack_of, mount_id, list[str]())
        own = [mount_id, *([init_id] if init_id else [])]
        return _Standing("", own, frozenset(stack) - set(own), frozenset([parent.chain_id] if parent else []))

    def _snapshot(self, id: str) -> _Standing:
        db = self._ground.snapshots_db
        stack, lower = _there(self._writables.stack_of, id, list[str]()), _there(db.lower, id, None)
        named = _there(self._writables.named_in, lower, list[str]()) if lower else []
        layer = _there(db.layer, id, "")
        layers = frozenset([_there(db.parent, id, ""), layer]) - {""}
        return _Standing(id, [id], frozenset([*stack, *named]), layers, bool(layer))

    def _orphans(self) -> list[str]:
        """Return the paths of what is unowned; none while a dockerd runs, whose unfinished layers look like orphans."""
        with contextlib.suppress(StoreInUseError):
            found = [orphan for orphan in self._reclaim.find() if orphan.kind != "mount"]       # a mount takes nothing
            return [os.path.join(self._ground.root, orphan.path) for orphan in found]
        return []


def _unneeded(layers: list[Record], standing: list[_Standing], is_kept: Callable[[Record], bool]) -> list[str]:
    """Return the directories that go if each layer and snapshot is removed that can be, over and over.

    is_kept   Return True if a reference, a call or an image keeps a layer
    """
    directories = Counter(id for each in standing for id in each.directories)
    needed = Counter(chain for each in standing for chain in each.layers)
    needed.update(layer.parent.chain_id for layer in layers if layer.parent)
    # What stands on something comes before it.
    left = sorted((each for each in standing if each.snapshot), key=lambda each: -len(each.directories))
    layers = sorted(layers, key=lambda layer: -layer.depth)
    cache_ids = {layer.cache_id for layer in layers}
    gone = set[str]()
    while True:                           # a snapshot may stand on a layer, and a layer on a committed snapshot
        before = len(gone), len(left)
        kept = []
        for each in left:
            if directories[each.snapshot] and not each.committed:
                kept.append(each)
                continue
            directories.subtract(each.directories)
            needed.subtract(each.layers)
            gone |= {*each.own, *(id for id in each.directories if not directories[id])} - cache_ids
        left = kept
        for layer in layers:
            if needed[layer.chain_id] or directories[layer.cache_id] or layer.cache_id in gone or is_kept(layer):
                continue
            gone.add(layer.cache_id)
            if layer.parent:
                needed[layer.parent.chain_id] -= 1
        if before == (len(gone), len(left)):
            return sorted(id for id in gone if not directories[id])


def _there(read: Callable[[_T], _U], name: _T, otherwise: _U) -> _U:
    """Return what is read of a name; `otherwise` if that has gone meanwhile."""
    try:
        return read(name)
    except FileNotFoundError:
        return otherwise


def _blocks_of(path: str, seen: _changes.Blocks) -> int:
    """Count what a path takes of the disk; a link, or what has gone, nothing."""
    if os.path.islink(path):
        return 0
    with contextlib.suppress(FileNotFoundError), OpenDirectory(path) as fd:
        return seen.add(fd)
    return 0
