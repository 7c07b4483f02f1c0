"""Contents: what is in a stored layer: its tar, its entries, the tree of it and all below; nothing is mounted.

Enters: records. Leaves: streams, entries and trees. A layer that another process registered anew lies in another
directory, with the same content; so each call looks first where the layer lies now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from layerstore._core import _files
from layerstore.contents.files import entries, open_bytes
from layerstore.contents.merged import MergedTree
from layerstore.drivers import Driver
from layerstore.engine.record import Mount, Record
from layerstore.engine.records import Records
from layerstore.errors import LayerStoreError
from layerstore.layerdb.store import FileMetadataStore
from layerstore.streams.leftout import told_left_out
from layerstore.streams.tarstream import TarStream
from layerstore.values import FileEntry


class Contents:
    """The contents of one store's layers."""

    def __init__(
        self, metadata: FileMetadataStore, driver: Driver, records: Records, check_open: Callable[[str], None]
    ) -> None:
        """check_open   raises once the store is closed; takes the ChainID that is used"""
        self._metadata, self._driver, self._records, self._check_open = metadata, driver, records, check_open

    def current(self, record: Record) -> Record:
        """Return the record, as the disk has it now."""
        with self._records.lock:
            self._records.refresh(record)
            return record

    def below(self, record: Record) -> Record | None:
        """Return what a layer stands on, as the disk has it now."""
        with self._records.lock:
            return self._records.below(record)

    def directories_of(self, record: Record) -> list[str]:
        """Name the driver's directories of a layer and of all below it, nearest first, as the disk has them now.

        Raises  CorruptLayerError   what it stands on is not what its ChainID says
        """
        with self._records.lock:
            at: Record | None = self.current(record)
            while at:
                at = self._records.below(at)
            record.check_chain()
            return record.directories

    def below_of(self, mount: Mount) -> str:
        """Return the driver id a writable layer stands on: its init layer's, its parent's as it is now, or ""."""
        if mount.parent and not mount.init_id:
            self.current(mount.parent)
        return mount.init_id or (mount.parent.cache_id if mount.parent else "")

    def directories_of_mount(self, mount: Mount) -> list[tuple[str, list[str]]]:
        """Name a writable layer's driver ids, the init layer's first, each with all it stands on, nearest first."""
        below = self.directories_of(mount.parent) if mount.parent else []
        if not mount.init_id:
            return [(mount.mount_id, below)]
        return [(mount.init_id, below), (mount.mount_id, [mount.init_id, *below])]

    def directories(self, record: Record) -> dict[str, str]:
        """Name the driver's directories. Raises OSError."""
        self._check_open(record.chain_id)
        return self._driver.metadata(self.current(record).cache_id)

    def tar_stream(self, record: Record) -> TarStream:
        """Return the layer's tar as it was registered. Raises OSError, CorruptLayerError."""
        self._check_open(record.chain_id)
        self.current(record)
        fd = self._metadata.open_tar_split(record.chain_id)
        try:
            return self._driver.stored_tar(record.cache_id, fd, record.diff_id.raw)._of(record.chain_id)
        finally:
            _files.close(fd)

    def tar_stream_from(self, record: Record, parent: str) -> TarStream:
        """Make a tar of the difference to an ancestor; "": of everything. Raises LayerStoreError, OSError."""
        self._check_open(record.chain_id)
        self.current(record)
        above = self.below(record)
        while parent and above and above.chain_id != parent:
            above = self.below(above)
        if parent and above is None:
            raise LayerStoreError(
                f"layer ID '{parent}' is not a parent of the specified layer: cannot provide diff to non-parent"
            )
        stream = self._driver.diff(record.cache_id, above.cache_id if parent and above else "", read_only=True)
        return told_left_out(stream, f"layer {record.chain_id}")

    def files(self, record: Record) -> Iterator[FileEntry]:
        """Return the entries of one layer, in the order of its tar. Raises OSError, CorruptLayerError."""
        self._check_open(record.chain_id)
        fd = self._metadata.open_tar_split(record.chain_id)
        try:
            return entries(fd, record.chain_id)
        finally:
            _files.close(fd)

    def alone(self, record: Record) -> MergedTree:
        """Return the tree of one layer, without what is below."""
        return self._merged([record])

    def merged(self, record: Record) -> MergedTree:
        """Return the tree of a layer and all below it. Raises CorruptLayerError: it stands on something else."""
        chain: list[Record] = []
        at: Record | None = record
        while at:
            chain.insert(0, at)
            at = self.below(at)
        record.check_chain()
        return self._merged(chain)

    def _merged(self, chain: Sequence[Record]) -> MergedTree:
        caches = {record.chain_id: self.current(record).cache_id for record in chain}

        def opener(entry: FileEntry) -> BinaryIO:
            self._check_open(entry.chain_id)
            return open_bytes(lambda: self._driver.open_file(caches[entry.chain_id], entry.path, entry.size), entry)

        return MergedTree(((record.chain_id, self.files(record)) for record in chain), opener)
