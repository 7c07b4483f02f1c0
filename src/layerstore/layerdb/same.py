"""Layers of the same tar: which layers have a DiffID, whatever they stand on."""

from __future__ import annotations

import contextlib

from layerstore.disk.locks import Mutex
from layerstore.errors import LayerStoreError
from layerstore.ids import ChainID, DiffID
from layerstore.layerdb.store import FileMetadataStore


class Same:
    """The DiffIDs that one store has read of a layerdb. That of a ChainID never changes, so what was read stays."""

    def __init__(self, metadata: FileMetadataStore) -> None:
        self._metadata, self._lock = metadata, Mutex()
        self._known: dict[DiffID, set[ChainID]] = {}
        self._read: set[ChainID] = set()

    def __call__(self, diff_id: DiffID) -> list[str]:
        """Name the driver's ids of the layers that have a DiffID, as the disk has them now."""
        with self._lock:
            there = set(self._metadata.list()[0])
            for chain in there - self._read:
                with contextlib.suppress(OSError, LayerStoreError):      # damaged, which verify() tells
                    self._known.setdefault(self._metadata.get_diff_id(chain), set()).add(chain)
                    self._read.add(chain)
            chains = sorted(self._known.get(diff_id, set()) & there)
        ids = []
        for chain in chains:
            with contextlib.suppress(OSError, LayerStoreError):
                ids.append(self._metadata.get_cache_id(chain))
        return ids
