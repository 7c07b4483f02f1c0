"""Sources of a layer's tar for repairing it: another store's layer, or the files of other layers of this one.

Enters: a damaged layer, its problems, and other layers. Leaves: a reader of its tar, which the store unpacks and whose
DiffID decides. A file is known elsewhere by size and CRC-64, which only says where to look.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from layerstore.errors import CorruptLayerError, LayerStoreError
from layerstore.layer import Layer
from layerstore.metadata import FileMetadataStore
from layerstore.tarstream import TarStream
from layerstore.values import Problem

_BLOCK = 1 << 20


class Payload(NamedTuple):
    """One file of a layer's tar-split record."""

    name: str
    offset: int
    size: int
    crc: str


def payloads(metadata: FileMetadataStore, chain_id: str) -> Iterator[Payload]:
    """Give the files with bytes of a record, in order. Raises OSError, CorruptLayerError."""
    offset = 0
    with contextlib.closing(metadata.tar_split_reader(chain_id)) as lines:
        try:
            for line in lines:
                entry = {key.lower(): value for key, value in json.loads(line).items()} if line.strip() else {}
                payload, size = entry.get("payload") or "", entry.get("size") or 0
                if entry.get("type") == 2:
                    offset += len(base64.b64decode(payload))
                elif entry.get("type") == 1 and size:
                    raw = base64.b64decode(entry.get("name_raw") or "").decode("utf-8", "surrogateescape")
                    yield Payload(entry.get("name") or raw, offset, size, payload)
                    offset += size
        except (ValueError, AttributeError, TypeError, EOFError) as err:
            raise CorruptLayerError(f"the tar-split record of {chain_id} cannot be read: {err}") from err


class Spliced:
    """The tar of a damaged layer, with the payloads of damaged files read from other layers."""

    def __init__(self, own: TarStream, donors: list[tuple[Payload, TarStream, int]]) -> None:
        """own      the damaged layer's, which fails where it is damaged
        donors   (which payload, from where, at which offset), in order of the tar
        """
        self._own, self._position = own, 0
        self._donors = donors

    def read(self, n: int) -> bytes:
        """Give the next bytes, at most n; b"" at the end."""
        n = min(n, _BLOCK)
        while self._donors and self._position >= self._donors[0][0].offset + self._donors[0][0].size:
            self._donors.pop(0)
        source, at = self._own, self._position
        if self._donors:
            payload, donor, offset = self._donors[0]
            if self._position < payload.offset:
                n = min(n, payload.offset - self._position)
            else:
                done = self._position - payload.offset
                source, at, n = donor, offset + done, min(n, payload.size - done)
        source.seek(at)
        data = source.read(n)
        self._position += len(data)
        return data


def from_other_layers(
    metadata: FileMetadataStore, layer: Layer, problems: Iterable[Problem], others: Iterable[Layer],
    stack: contextlib.ExitStack,
) -> Spliced:  # fmt: skip
    """Find every damaged file of layer in others.

    stack    closes what is opened
    Raises   CorruptLayerError   a file is nowhere else, or layer's record cannot be read
    """
    names = {problem.path for problem in problems if problem.path}
    damaged = [payload for payload in payloads(metadata, layer.chain_id) if payload.name in names]
    wanted = {(payload.size, payload.crc) for payload in damaged}
    found: dict[tuple[int, str], tuple[TarStream, int]] = {}
    for other in others:
        if not wanted - found.keys():
            break
        if other.chain_id == layer.chain_id:
            continue
        with contextlib.suppress(OSError, LayerStoreError):
            for payload in payloads(metadata, other.chain_id):
                key = (payload.size, payload.crc)
                if key not in wanted or key in found:
                    continue
                stream = stack.enter_context(other.tar_stream())
                if _is_sound(stream, payload):
                    found[key] = (stream, payload.offset)
    lost = [payload for payload in damaged if (payload.size, payload.crc) not in found]
    if lost:
        raise CorruptLayerError(
            f"{len(lost)} damaged files of {layer.chain_id} are in no other layer, the first is "
            f'"{lost[0].name}": a tar of the layer, or another store, is needed',
            path=lost[0].name,
        )
    own = stack.enter_context(layer.tar_stream())
    return Spliced(own, [(payload, *found[payload.size, payload.crc]) for payload in damaged])


def _is_sound(stream: TarStream, payload: Payload) -> bool:
    """Read a file through: the stream checks its CRC when it is read whole."""
    stream.seek(payload.offset)
    left = payload.size
    try:
        while left and (block := stream.read(min(left, _BLOCK))):
            left -= len(block)
    except CorruptLayerError:
        return False
    return not left
