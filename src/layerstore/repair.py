"""Repair: a damaged layer from its tar, from another store's layer, or from the files of other layers of this one.

Enters: a damaged layer, and where to take it from. Leaves: the layer as it was registered. Whatever the source, a
whole tar is read and unpacked beside the layer, and its DiffID decides; then only what is damaged changes places with
it. A file is known in other layers by size and CRC-64, which just says where to look.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from layerstore import _files
from layerstore.drivers import Driver
from layerstore.errors import CorruptLayerError, LayerDoesNotExistError, LayerStoreError
from layerstore.ids import diff_id_of, random_id
from layerstore.layer import Layer, Record
from layerstore.metadata import FileMetadataStore
from layerstore.sources import Input, feed
from layerstore.tarstream import TarStream
from layerstore.values import Durability, Problem, Progress

log = logging.getLogger("layerstore")

_BLOCK = 1 << 20


def tar_of(chain_id: str, diff_id: str, source: Any, stack: contextlib.ExitStack) -> Any:
    """Give what register() takes of a source that may be a store or a layer, too; stack closes it.

    Raises  LayerDoesNotExistError   a store without such a layer
    """
    if callable(getattr(source, "map", None)):
        layers: dict[str, Layer] = source.map()
        same = [layer for layer in layers.values() if layer.diff_id == diff_id]
        found = layers.get(chain_id) or (same[0] if same else None)
        if found is None:
            raise LayerDoesNotExistError(f"{LayerDoesNotExistError.text} in the other store", chain_id=chain_id)
        source = found
    return stack.enter_context(source.tar_stream()) if isinstance(source, Layer) else source


class Repair:
    """Mends layers of one store."""

    def __init__(
        self, metadata: FileMetadataStore, driver: Driver, verify: Callable[[str], list[Problem]], level: Durability
    ) -> None:
        """verify   gives a layer's problems; level   what is put on the disk"""
        self._metadata, self._driver, self._verify, self._level = metadata, driver, verify, level

    def layer(self, record: Record, source: Any, others: Iterable[Layer], progress: Progress | None) -> None:
        """Mend what can be mended of one layer, which nobody deletes meanwhile.

        source   of its tar; None: others, the layers to take damaged files from
        """
        parent, below = ("", "") if record.parent is None else (record.parent.chain_id, record.parent.cache_id)
        self._metadata.rewrite(
            record.chain_id, record.diff_id, record.diff_size, record.cache_id, parent, record.descriptor
        )
        self._driver.mend(record.cache_id, below)
        # What is left needs the tar: files, or the record of it.
        problems = self._verify(record.chain_id)
        if problems:
            self._from_tar(record, below, problems, source, others, progress)

    def _from_tar(
        self, record: Record, below: str, problems: list[Problem], source: Any, others: Iterable[Layer],
        progress: Progress | None,
    ) -> None:  # fmt: skip
        cache_id = random_id()
        transaction = self._metadata.start_deferred()
        try:
            with contextlib.ExitStack() as stack:
                if source is None:
                    tar: Any = from_other_layers(self._metadata, Layer(record), problems, others, stack)
                else:
                    tar = tar_of(record.chain_id, record.diff_id, source, stack)
                given = stack.enter_context(contextlib.closing(Input(tar)))
                self._driver.create(cache_id, below)
                record_fd = transaction.open_tar_split()
                stack.callback(_files.close, record_fd)
                done = self._driver.register(cache_id, below, record_fd, lambda apply: feed(given, apply, progress))
            got = diff_id_of(done.diff_id)
            if got != record.diff_id:
                why = f"the source is another layer: its DiffID is {got}, not {record.diff_id}"
                raise CorruptLayerError(why, chain_id=record.chain_id)
            self._driver.sync([cache_id], self._level, everything=True)
            self._driver.graft(record.cache_id, cache_id, [problem.path for problem in problems if problem.path])
            if any(not problem.path for problem in problems) or self._verify(record.chain_id):
                self._metadata.take_record(record.chain_id, transaction)
            self._driver.sync([record.cache_id], self._level, everything=True)
        finally:
            try:
                self._driver.remove(cache_id)
            except (OSError, LayerStoreError) as err:
                text, about = "Error cleaning up cache layer %s: %s", {"cache_id": cache_id, "error": err}
                log.error(text, cache_id, err, extra=about)
            transaction.cancel()


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
            why = f"the tar-split record of {chain_id} cannot be read: {err}"
            raise CorruptLayerError(why, chain_id=chain_id) from err


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
            chain_id=layer.chain_id, path=lost[0].name,
        )  # fmt: skip
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
