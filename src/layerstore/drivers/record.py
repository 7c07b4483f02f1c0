"""The tar-split record of a layer, for a driver that keeps one: its entries, and what it hides of what lies below."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from layerstore._core import _files, _listing
from layerstore.disk.locks import Scope
from layerstore.drivers import Sidecar
from layerstore.errors import CorruptLayerError, LayerStoreError
from layerstore.ids import ChainID
from layerstore.layerdb.transaction import TAR_SPLIT
from layerstore.values import FileEntry, FileType

# In the order of the core's LAY_LISTED_ numbers.
_KINDS = (
    FileType.FILE, FileType.DIRECTORY, FileType.SYMLINK, FileType.LINK, FileType.CHARACTER, FileType.BLOCK,
    FileType.FIFO, FileType.WHITEOUT, FileType.OPAQUE,
)  # fmt: skip


def opened(sidecar: Sidecar) -> Scope[int]:
    """Open the record for the length of a `with` block. Raises FileNotFoundError, OSError."""
    return Scope(lambda: sidecar(TAR_SPLIT), _files.close)


def entries(record_fd: int, chain_id: ChainID) -> Iterator[FileEntry]:
    """Return the entries of a record, in the tar's order; record_fd may be closed behind the call.

    Raises  CorruptLayerError   now, or behind the last entry that can be read
    """
    return listed(_listing.Listing(record_fd), chain_id)


def listed(listing: _listing.Listing, chain_id: ChainID) -> Iterator[FileEntry]:
    """Return the entries of a listing, and close it behind the last."""
    try:
        while batch := listing.next(FileEntry, _KINDS, chain_id):
            yield from batch
    except CorruptLayerError as err:
        raise err.about(chain_id=chain_id) from None
    finally:
        listing.close()


class Recorded(NamedTuple):
    """What a layer's record says of it."""

    chain_id: ChainID
    opaque: list[str]
    """Directories that are opaque on the disk, if their names lead through no link."""


def recorded(id: str, layer_in: Callable[[str], tuple[ChainID, Sidecar] | None]) -> Recorded | None:
    """Return what the layer of an id hides; None: no layer has it, or its record cannot be read."""
    found = layer_in(id)
    with contextlib.suppress(OSError, LayerStoreError):
        return Recorded(found[0], _opaque(*found)) if found else None
    return None


def _opaque(chain_id: ChainID, sidecar: Sidecar) -> list[str]:
    """Marked by the tar, or in the place of a whiteout or of something else of the same layer."""
    opaque, directories, others = set(), set(), set()
    with opened(sidecar) as fd:
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
    return sorted(opaque | (directories & others))
