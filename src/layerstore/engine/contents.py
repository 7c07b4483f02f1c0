"""Contents: what is in a stored layer: its tar, its entries, the tree of it and all below; nothing is mounted.

Enters: records. Leaves: streams, entries and trees. A layer that another process registered anew lies in another
directory, with the same content; so each call looks first where the layer lies now.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from layerstore.contents.files import open_bytes
from layerstore.contents.merged import MergedTree
from layerstore.disk.textfile import new_file
from layerstore.drivers import StoredLayer
from layerstore.engine.ground import Ground
from layerstore.engine.record import Mount, Record
from layerstore.errors import LayerStoreError
from layerstore.ids import ChainID
from layerstore.streams.leftout import told_left_out
from layerstore.streams.tarstream import TarStream
from layerstore.values import FileEntry, Progress


class Contents:
    """The contents of one store's layers."""

    def __init__(self, ground: Ground) -> None:
        self._ground, self._records, self._check_open = ground, ground.records, ground.check_open

    def layers(self) -> list[Record]:
        """Return all layers that can be read, as the disk has them now."""
        self._check_open()
        with self._records.lock:
            self._records.load_all()
            return list(self._records.layers.values())

    def find(self, chain_id: str) -> Record | None:
        """Return a layer as the disk has it now; None if it is not there, or cannot be read."""
        self._check_open()
        with self._records.lock:
            return self._records.load_current(chain_id)

    def stored(self, record: Record) -> StoredLayer:
        """Return the layer of a record, as the driver has it now."""
        self._check_open(record.chain_id)
        with self._records.lock:
            self._records.refresh(record)
            return self._ground.stored(record)

    def below(self, record: Record) -> Record | None:
        """Return what a layer stands on, as the disk has it now."""
        with self._records.lock:
            return self._records.below(record)

    def directories_of(self, record: Record) -> list[str]:
        """Name the driver's directories of a layer and of all below it, nearest first, as the disk has them now.

        Raises  CorruptLayerError   what it stands on is not what its ChainID says
        """
        with self._records.lock:
            self._records.refresh(record)
            at: Record | None = record
            while at:
                at = self._records.below(at)
            record.check_chain()
            return record.directories

    def stacks_of(self, mount: Mount) -> list[tuple[str, list[str]]]:
        """Name a writable layer's driver ids, the init layer's first, each with the stack it stands on."""
        below = self.directories_of(mount.parent) if mount.parent else []
        init = [(mount.init_id, below)] if mount.init_id else []
        return [*init, (mount.mount_id, [*(id for id, _ in init), *below])]

    def tar_stream(self, record: Record) -> TarStream:
        """Return the layer's tar as it was registered. Raises OSError, CorruptLayerError."""
        return self.stored(record).tar(record.diff_id).about(record.chain_id)

    def tar_stream_from(self, record: Record, parent: str) -> TarStream:
        """Make a tar of the difference to an ancestor; "": of everything. Raises LayerStoreError, OSError."""
        layer, above = self.stored(record), self.below(record)
        while parent and above and above.chain_id != parent:
            above = self.below(above)
        if parent and above is None:
            raise LayerStoreError(
                f"layer ID '{parent}' is not a parent of the specified layer: cannot provide diff to non-parent"
            )
        stream = layer.tar_from(above.cache_id if parent and above else "")
        return told_left_out(stream, f"layer {record.chain_id}")

    def write_image(self, record: Record, path: str, progress: Progress | None) -> int:
        """Write a layer with all below it as one image into a new file, whole or not at all. Return its bytes.

        Raises  CorruptLayerError, NotSupportedError, OSError
        """
        self._check_open(record.chain_id)
        with new_file(path) as fd:
            self._ground.driver.trees.write_image(self.directories_of(record), fd, progress)
            return os.fstat(fd).st_size

    def files(self, record: Record) -> Iterator[FileEntry]:
        """Return the entries of one layer, in the order of its tar. Raises OSError, CorruptLayerError."""
        return self.stored(record).entries(record.chain_id)

    def alone(self, record: Record) -> MergedTree:
        """Return the tree of one layer, without what is below."""
        return self._merged({record.chain_id: self.stored(record)})

    def merged(self, record: Record) -> MergedTree:
        """Return the tree of a layer and all below it. Raises CorruptLayerError: it stands on something else."""
        return self._merged(self.chain(record))

    def chain(self, record: Record) -> dict[ChainID, StoredLayer]:
        """Return a layer and all below it, base first. Raises CorruptLayerError: it stands on something else."""
        chain: list[Record] = []
        at: Record | None = record
        while at:
            chain.insert(0, at)
            at = self.below(at)
        record.check_chain()
        return {record.chain_id: self.stored(record) for record in chain}

    def _merged(self, layers: Mapping[ChainID, StoredLayer]) -> MergedTree:

        def opener(entry: FileEntry) -> BinaryIO:
            self._check_open(entry.chain_id)
            return open_bytes(functools.partial(layers[entry.chain_id].open_file, entry), entry)

        entries = ((chain_id, layer.entries(chain_id)) for chain_id, layer in layers.items())
        return MergedTree(entries, opener, implied_ns=self._ground.driver.layers.implied_ns)
