"""Which directories of a layer hide all that is below, by its record: the marks on the disk are not always seen."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from layerstore._core import _files
from layerstore.contents.files import entries
from layerstore.errors import LayerStoreError
from layerstore.ids import ChainID
from layerstore.layerdb.store import FileMetadataStore
from layerstore.values import FileType


class Recorded(NamedTuple):
    """What a layer's record says of it."""

    chain_id: ChainID
    opaque: list[str]
    """Directories that are opaque on the disk, if their names lead through no link."""


class Opaque:
    """Looks layers up by the driver's ids. Needs no lock of the store."""

    def __init__(self, metadata: FileMetadataStore) -> None:
        """metadata   the layerdb"""
        self._metadata = metadata

    def __call__(self, id: str) -> Recorded | None:
        """Return what the layer in a driver's directory hides; None: it is no layer's, or has no record."""
        for chain_id in self._metadata.list()[0]:
            with contextlib.suppress(OSError, LayerStoreError):
                if self._metadata.get_cache_id(chain_id) == id:
                    return Recorded(chain_id, self._directories(chain_id))
        return None

    def _directories(self, chain_id: ChainID) -> list[str]:
        """Marked by the tar, or in the place of a whiteout or of something else of the same layer."""
        fd = self._metadata.open_tar_split(chain_id)
        opaque, directories, others = set(), set(), set()
        try:
            for entry in entries(fd, chain_id):
                if entry.type == FileType.OPAQUE:
                    opaque.add(entry.path)
                elif entry.type == FileType.DIRECTORY:
                    directories.add(entry.path)
                else:
                    others.add(entry.path)
                above = os.path.dirname(entry.path)
                while above and above not in directories:
                    directories.add(above)
                    above = os.path.dirname(above)
        finally:
            _files.close(fd)
        return sorted(opaque | (directories & others))
