"""Layers of the same tar: which layers have a DiffID, whatever they stand on; and which DiffID an id has."""

from __future__ import annotations

import contextlib
import os

from layerstore.disk.locks import Mutex
from layerstore.disk.textfile import read_text
from layerstore.errors import LayerStoreError
from layerstore.ids import ChainID, DiffID
from layerstore.layerdb.store import FileMetadataStore

_ALGORITHM = "sha256"


class Same:
    """The DiffIDs that one store has read of a layerdb. That of a ChainID never changes, so what was read stays."""

    def __init__(self, metadata: FileMetadataStore) -> None:
        self._metadata, self._lock = metadata, Mutex()
        self._known: dict[str, set[str]] = {}     # of DiffIDs: names of layers
        self._read: set[str] = set()
        self._of: dict[str, str] = {}             # of ids: their layers
        self._directory = os.path.join(metadata.root, _ALGORITHM)
        self._listed: set[str] = set()
        self._state: tuple[int, int] | None = None    # of the directory, while it holds what was listed

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

    def note(self, chain_id: ChainID, diff_id: DiffID) -> None:
        """Take up a layer that this store has just made: if no other is new, the directory is not listed for it."""
        name = chain_id.encoded
        with self._lock:
            self._known.setdefault(diff_id, set()).add(name)
            self._read.add(name)
            self._listed.add(name)
            links, when = self._look()
            # A directory in it is one link more, but on file systems that do not count them.
            self._state = (links, when) if links == len(self._listed) + 2 else None

    def _names(self) -> set[str]:
        """Name what is there of layers, and perhaps is none."""
        if self._state is None or self._look() != self._state:
            self._state = None                    # what comes in the same moment has the same time
            self._listed = set()
            with contextlib.suppress(FileNotFoundError):
                self._listed.update(os.listdir(self._directory))
        return self._listed

    def _look(self) -> tuple[int, int]:
        """Return what changes with each layer that comes or goes: links, and nanoseconds since 1970."""
        with contextlib.suppress(FileNotFoundError):
            st = os.stat(self._directory)
            return st.st_nlink, st.st_mtime_ns
        return 0, 0
