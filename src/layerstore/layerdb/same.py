"""Layers of the same tar: which layers have a DiffID, whatever they stand on."""

from __future__ import annotations

import contextlib
import os

from layerstore.disk.locks import Mutex
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

    def __call__(self, diff_id: DiffID) -> list[str]:
        """Name the driver's ids of the layers that have a DiffID, as the disk has them now."""
        with self._lock:
            there: set[str] = set()
            with contextlib.suppress(FileNotFoundError):
                there.update(os.listdir(os.path.join(self._metadata.root, _ALGORITHM)))
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
