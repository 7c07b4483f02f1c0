"""Keeping: what the disk says of who needs a layer, and whether the layer was released.

Enters: the layerdb. Leaves: the layers and writable layers that stand on a layer, and the mark `released`. The records
that a store keeps in memory are not asked, as other processes change the disk. What is remembered here proves itself
fresh at each question: the parent of a layer follows from its ChainID, so one reading for each name is enough; the
parent of a writable layer is read again when its file is another one, or may be.
Source: sandbox.md 2 (moby counts references in memory, and keeps no mark)
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterable

from layerstore._core import _files
from layerstore.disk.textfile import sync_directory, sync_file, write_small
from layerstore.errors import InvalidMetadataError, LayerStoreError, readable
from layerstore.ids import ChainID, chain_on
from layerstore.layerdb.snapshots import SnapshotDB
from layerstore.layerdb.store import FileMetadataStore
from layerstore.values import Durability

_MARK = "released"
_HEX = re.compile(r"[0-9a-f]{64}")
# A file may change again without a new time as long as its time is this young: the clocks of file systems tick.
_SETTLED_NS = 2_000_000_000


class UnreadableError(InvalidMetadataError):
    """A record does not say which layer it stands on, so it may need any of them."""


class Keeping:
    """Who needs which layer of one layerdb. Call it under the lock of Records; to decide, under exclusive() too."""

    def __init__(self, metadata: FileMetadataStore, durability: Durability) -> None:
        """durability   of the marks"""
        self._metadata, self._durability = metadata, durability
        self._parent_of: dict[str, str] = {}               # by the hex of a ChainID: that of its parent, or ""
        self._children: dict[str, set[str]] = {}           # the same, turned round
        self._mount_parents: dict[str, tuple[tuple[int, ...], str]] = {}
        self._snapshots = SnapshotDB(metadata)
        self._snapshot_layers: dict[str, tuple[tuple[int, int], tuple[str, str]]] = {}

    # ---- layers on a layer ----

    def layers_on(self, chain_id: str, *, told: Callable[[Exception], None] | None = None) -> list[ChainID]:
        """Name the layers right on one. Raises OSError, UnreadableError: of one layer only if there is no `told`."""
        own = ChainID(chain_id).encoded
        doubtful = self._look() - {own}       # a layer does not stand on itself, even if it does not say on what
        sure = self._children.get(own, set())
        found = sure.union(_fitting(doubtful - sure, lambda name: self._is_on(name, chain_id), told))
        return sorted(ChainID(f"sha256:{name}") for name in found)

    def _look(self) -> set[str]:
        """Read what appeared, and forget what went. Returns the layers whose parent file is wrong, or gone."""
        try:
            names = set(os.listdir(os.path.join(self._metadata.root, "sha256")))
        except FileNotFoundError:
            names = set()
        for name in self._parent_of.keys() - names:
            self._children[self._parent_of.pop(name)].discard(name)
        doubtful = set()
        for name in names - self._parent_of.keys():
            if _HEX.fullmatch(name):
                parent = self._read_parent(name)
                if parent is None:
                    doubtful.add(name)
                else:
                    self._parent_of[name] = parent
                    self._children.setdefault(parent, set()).add(name)
        for parent in [parent for parent, children in self._children.items() if not children]:
            del self._children[parent]
        # The parent of a sound layer is there. Where none is, the file may have been changed.
        for parent in self._children.keys() - names - {""}:
            doubtful |= self._children[parent]
        return doubtful

    def _read_parent(self, name: str) -> str | None:
        """Return the hex of a layer's parent, "" for a base layer; None: the file is lost, or does not say."""
        chain = f"sha256:{name}"
        try:
            parent = self._metadata.get_parent(chain)
            if parent:
                return ChainID(parent).encoded
            return "" if self._metadata.get_diff_id(chain) == chain else None
        except (OSError, LayerStoreError):
            return None

    def _is_on(self, name: str, chain_id: str) -> bool:
        """Say by its ChainID whether a layer stands on another one."""
        chain = f"sha256:{name}"
        try:
            return chain_on(chain_id, self._metadata.get_diff_id(chain)) == chain
        except (FileNotFoundError, NotADirectoryError, LayerStoreError) as err:
            if not self._metadata.has(chain):
                return False              # no layer: a file of such a name
            raise UnreadableError(f"the layer {chain} does not say what it stands on: {err}") from err

    # ---- writable layers on a layer ----

    def mounts_on(self, chain_id: str, *, told: Callable[[Exception], None] | None = None) -> list[str]:
        """Name the writable layers right on a layer. Raises as layers_on() does."""
        names = self._metadata.list_mounts()
        for gone in self._mount_parents.keys() - set(names):
            del self._mount_parents[gone]
        rolling = self._rolled_back_to(names) if self._snapshots.any() else {}
        return _fitting(names, lambda name: chain_id in (self._mount_parent(name), rolling.get(name)), told)

    def _rolled_back_to(self, names: Iterable[str]) -> dict[str, str]:
        """Return the layers that boxes will stand on whose rollback has begun. Raises UnreadableError."""
        found = {}
        for name in names:
            try:
                rollback = self._snapshots.rollback(name)
            except LayerStoreError as err:
                raise UnreadableError(str(err)) from err
            if rollback:
                found[name] = rollback.parent
        return found

    def _mount_parent(self, name: str) -> str:
        path = os.path.join(self._metadata.root, "mounts", name, "parent")
        try:
            st = os.stat(path, follow_symlinks=False)
            identity = (st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns)
            known = self._mount_parents.get(name)
            if known and known[0] == identity:
                return known[1]
            parent = str(self._metadata.get_mount_parent(name))
        except (FileNotFoundError, NotADirectoryError):
            self._mount_parents.pop(name, None)
            return ""
        except LayerStoreError as err:
            text = f"the writable layer {readable(name)} does not say what it stands on: {err}"
            raise UnreadableError(text) from err
        if time.time_ns() - max(st.st_mtime_ns, st.st_ctime_ns) > _SETTLED_NS:
            self._mount_parents[name] = (identity, parent)
        return parent

    # ---- snapshots on a layer ----

    def snapshots_on(self, chain_id: str) -> list[str]:
        """Name the snapshots whose nearest layer it is, or that were committed as it. Raises as layers_on() does."""
        names = self._snapshots.names()
        for gone in self._snapshot_layers.keys() - set(names):
            del self._snapshot_layers[gone]
        return [id for id in names if chain_id in self._layers_of(id)]

    def _layers_of(self, id: str) -> tuple[str, str]:
        try:
            st = os.stat(self._snapshots.directory(id))
            identity = (st.st_ino, st.st_mtime_ns)        # its files are replaced in one step each
            known = self._snapshot_layers.get(id)
            if known and known[0] == identity:
                return known[1]
            layers = self._snapshots.parent(id), self._snapshots.layer(id)
        except FileNotFoundError:
            return "", ""
        except LayerStoreError as err:
            raise UnreadableError(f"the snapshot {id} does not say what it stands on: {err}") from err
        if time.time_ns() - st.st_mtime_ns > _SETTLED_NS:
            self._snapshot_layers[id] = (identity, layers)
        return layers

    # ---- the mark ----

    def _mark(self, chain_id: str) -> str:
        return os.path.join(self._metadata.layer_directory(chain_id), _MARK)

    def is_released(self, chain_id: str) -> bool:
        """Return True if the layer has the mark. Raises OSError."""
        try:
            return stat.S_ISREG(_files.mode_of(self._mark(chain_id)))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def mark(self, chain_id: str) -> None:
        """Note that the layer was released while something needed it; settle() syncs that. Raises OSError."""
        write_small(self._mark(chain_id), b"", 0o644, sync=False)

    def unmark(self, chain_id: str) -> bool:
        """Take the mark away; say whether it was there. Raises OSError."""
        if not self.is_released(chain_id):
            return False
        _files.unlink(self._mark(chain_id))
        return True

    def settle(self, chain_id: str) -> None:
        """Put what mark() or unmark() changed on the disk, as far as the durability says. Raises OSError."""
        if self._durability == "none":
            return
        with contextlib.suppress(FileNotFoundError):      # taken away, or gone with the layer, meanwhile
            sync_file(self._mark(chain_id))
        if self._durability == "full":
            with contextlib.suppress(FileNotFoundError):
                sync_directory(self._metadata.layer_directory(chain_id))


def _fitting(
    names: Iterable[str], fits: Callable[[str], bool], told: Callable[[Exception], None] | None
) -> list[str]:
    """Return the names that fit. What asking about one raises goes to `told`, or is raised if there is none."""
    found = []
    for name in names:
        try:
            if fits(name):
                found.append(name)
        except (OSError, UnreadableError) as err:
            if told is None:
                raise
            told(err)
    return found
