"""Repair: the tar of a damaged layer, from another store's layer, or from the files of other layers of this one.

Enters: a damaged layer, and where to take it from. Leaves: a whole tar, which mending.py unpacks beside the layer, and
whose DiffID decides. A file is known in other layers by size and CRC-64, which just says where to look.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from layerstore.engine.contents import Contents
from layerstore.engine.record import Record
from layerstore.errors import CorruptLayerError, LayerDoesNotExistError, LayerStoreError, readable
from layerstore.ids import DiffID
from layerstore.streams.tarstream import TarStream
from layerstore.values import FileEntry, FileType, Problem

_BLOCK = 1 << 20


class _Layer(Protocol):
    """A layer of any store: what a source may be, or have."""

    @property
    def diff_id(self) -> DiffID: ...
    def tar_stream(self) -> TarStream: ...


def tar_of(chain_id: str, diff_id: str, source: Any, stack: contextlib.ExitStack) -> Any:
    """Return what register() takes, of a source that may also be a store or a layer; stack closes it.

    Raises  LayerDoesNotExistError   a store without such a layer
    """
    if callable(getattr(source, "map", None)):
        layers: dict[str, _Layer] = source.map()
        same = [layer for layer in layers.values() if layer.diff_id == diff_id]
        found = layers.get(chain_id) or (same[0] if same else None)
        if found is None:
            raise LayerDoesNotExistError(f"{LayerDoesNotExistError.text} in the other store", chain_id=chain_id)
        source = found
    if callable(getattr(source, "tar_stream", None)):
        return stack.enter_context(source.tar_stream())
    return source


class Spliced:
    """The tar of a damaged layer, with the payloads of damaged files read from other layers."""

    def __init__(self, own: TarStream, donors: list[tuple[FileEntry, TarStream, int]]) -> None:
        """own      the damaged layer's, which fails where it is damaged
        donors   (which file, from where, at which offset), in order of the tar
        """
        self._own, self._position = own, 0
        self._donors = collections.deque(donors)

    def read(self, n: int) -> bytes:
        """Return the next bytes, at most n; b"" at the end."""
        n = min(n, _BLOCK)
        while self._donors and self._position >= _begin(self._donors[0][0]) + self._donors[0][0].size:
            self._donors.popleft()
        source, at = self._own, self._position
        if self._donors:
            file, donor, offset = self._donors[0]
            if self._position < _begin(file):
                n = min(n, _begin(file) - self._position)
            else:
                done = self._position - _begin(file)
                source, at, n = donor, offset + done, min(n, file.size - done)
        source.seek(at)
        data = source.read(n)
        self._position += len(data)
        return data


def _begin(file: FileEntry) -> int:
    return file.offset or 0


def _files_in(contents: Contents, layer: Record) -> Iterator[FileEntry]:
    """Return the files of a layer whose bytes lie in its tar as they are. Raises OSError, CorruptLayerError."""
    files = (entry for entry in contents.files(layer) if entry.type is FileType.FILE and entry.size)
    return (file for file in files if file.crc is not None and file.offset is not None)


def from_other_layers(
    contents: Contents, layer: Record, problems: Iterable[Problem], others: Iterable[Record],
    stack: contextlib.ExitStack,
) -> Spliced:  # fmt: skip
    """Find every damaged file of layer in others.

    A record, layer's or another's, is read entry by entry; what cannot be read of another layer's is passed over.

    stack    closes what is opened
    Raises   CorruptLayerError   a file is nowhere else, or layer's record cannot be read
    """
    names = {problem.path for problem in problems if problem.kind in ("content", "missing")}
    own = stack.enter_context(contents.tar_stream(layer))
    # What the record has itself is sound, whatever lies on the disk.
    damaged = [file for file in _files_in(contents, layer) if file.name in names and not _is_sound(own, file)]
    wanted = {(file.size, file.crc) for file in damaged}
    found: dict[tuple[int, int | None], tuple[TarStream, int]] = {}
    for other in others:
        if not wanted - found.keys():
            break
        if other.chain_id == layer.chain_id:
            continue
        with contextlib.suppress(OSError, LayerStoreError):
            stream: TarStream | None = None
            for file in _files_in(contents, other):
                key = (file.size, file.crc)
                if key not in wanted or key in found:
                    continue
                stream = stream or stack.enter_context(contents.tar_stream(other))
                if _is_sound(stream, file):
                    found[key] = (stream, _begin(file))
    lost = [file for file in damaged if (file.size, file.crc) not in found]
    if lost:
        raise CorruptLayerError(
            f"{len(lost)} damaged files of {layer.chain_id} are in no other layer, the first is "
            f'"{readable(lost[0].name)}": a tar of the layer, or another store, is needed',
            chain_id=layer.chain_id, path=lost[0].name,
        )  # fmt: skip
    return Spliced(own, [(file, *found[file.size, file.crc]) for file in damaged])


def _is_sound(stream: TarStream, file: FileEntry) -> bool:
    """Read a file through: the stream checks its CRC when it is read whole."""
    left = file.size
    try:
        stream.seek(_begin(file))
        while left and (block := stream.read(min(left, _BLOCK))):
            left -= len(block)
    except (OSError, LayerStoreError):
        return False
    return not left
