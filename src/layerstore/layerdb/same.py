"""Layers of the same tar: which layers have a DiffID, whatever they stand on; and which DiffID an id has."""

from __future__ import annotations

import contextlib
import os

from layerstore.disk.locks import Mutex
from layerstore.disk.textfile import read_text
from layerstore.errors import LayerStoreError
from layerstore.ids import DiffID
from layerstore.layerdb.store import FileMetadataStore

_ALGORITHM = "sha256"


class Same:
    """The DiffIDs that one store has read of a layerdb. That of a ChainID never changes, so what was read stays."""

    def __init__(self, metadata: FileMetadataStore) -> None:
        self._metadata, self._lock = metadata, Mutex()
        self._known: dict[str, set[str]] = {}     # of DiffIDs: names of layers
        self._read: set[str] = set()
        self._of: dict[str, str] = {}             # of ids: their layers

    def __call__(self, diff_id: DiffID) -> list[str]:
        """Name the driver's ids of the layers that have a DiffID, as the disk has them now."""
        with self._lock:
            there = self._names()
            for name in there - self._read:
                with contextlib.suppress(OSError, LayerStoreError):      # damaged, or no layer
                    self._known.setdefault(self._metadata.get_diff_id(f"{_ALGORITHM}:{name}"), set()).add(name)
                self._read.add(name)
            names = sorted(self._known.get(diff_id, set()) & there)
        ids = []
        for name in names:
            with contextlib.suppress(OSError, LayerStoreError):
                ids.append(self._metadata.get_cache_id(f"{_ALGORITHM}:{name}"))
        return ids

    def diff_id_of(self, id: str) -> DiffID | None:
        """Return the DiffID of the layer whose driver's id this is; None: no layer has it, as far as can be read."""
        with self._lock, contextlib.suppress(OSError, LayerStoreError):
            if id not in self._of:
                there, known = self._names(), set(self._of.values())
                if not self._learn(there - known, id):
                    self._learn(there & known, id)            # a layer that was repaired may have another id
            if id in self._of:
                return self._metadata.get_diff_id(f"{_ALGORITHM}:{self._of[id]}")
        return None

    def _learn(self, names: set[str], id: str) -> bool:
        """Read which ids these layers have. Return True if one of them has this one."""
        top = os.path.join(self._metadata.root, _ALGORITHM)
        for name in names:
            with contextlib.suppress(OSError, LayerStoreError):          # damaged, or no layer
                self._of[read_text(f"{top}/{name}/cache-id")] = name
        return id in self._of

    def _names(self) -> set[str]:
        """Name what is there of layers, and perhaps is none."""
        with contextlib.suppress(FileNotFoundError):
            return set(os.listdir(os.path.join(self._metadata.root, _ALGORITHM)))
        return set()
