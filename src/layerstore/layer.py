"""Layer: a reference to a read-only layer, or the bare layer; and the empty layer."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from layerstore._core import _tarstream
from layerstore.contents.merged import MergedTree, StrPath
from layerstore.errors import CorruptLayerError, LayerStoreError
from layerstore.ids import EMPTY_LAYER_DIFF_ID, OS, ChainID, DiffID, chain_on
from layerstore.streams.tarstream import TarStream
from layerstore.values import Descriptor, FileEntry, Metadata

if TYPE_CHECKING:
    from layerstore.store import Store


class Record:
    """One read-only layer in memory: what all its handles share. The lock of Records guards what changes.

    handles    the references to it
    used       calls that work on it and must not lose it
    durable    this store saw it, and all below it, put on the disk; otherwise nobody knows
    """

    def __init__(
        self, store: Store, chain_id: ChainID, diff_id: DiffID, parent: Record | None, cache_id: str, size: int,
        descriptor: Descriptor,
    ) -> None:  # fmt: skip
        """Hold what the metadata says."""
        self.store, self.chain_id, self.diff_id, self.parent = store, chain_id, diff_id, parent
        self.cache_id, self.diff_size, self.descriptor = cache_id, size, descriptor
        self.used = 0
        self.durable = False
        self.handles: set[Layer] = set()
        self.depth: int = parent.depth + 1 if parent else 1
        self.size: int = size + (parent.size if parent else 0)

    @property
    def directories(self) -> list[str]:
        """The driver ids of the layer and of all it stands on, nearest first, as they were last seen."""
        found: list[str] = []
        record: Record | None = self
        while record:
            found.append(record.cache_id)
            record = record.parent
        return found

    def stand_on(self, parent: Record | None) -> None:
        """Take over what it stands on, which its metadata had lost."""
        self.parent = parent
        self.depth = parent.depth + 1 if parent else 1
        self.size = self.diff_size + (parent.size if parent else 0)

    def check_chain(self) -> None:
        """Make sure that it stands on what its ChainID says, all the way down: a lost parent would be another tree.

        Raises  CorruptLayerError
        """
        record: Record | None = self
        while record:
            if chain_on(record.parent.chain_id if record.parent else "", record.diff_id) != record.chain_id:
                why = f"the ChainID {record.chain_id} does not follow from its parent and its DiffID: repair it first"
                raise CorruptLayerError(why, chain_id=record.chain_id)
            record = record.parent

    @property
    def in_use(self) -> bool:
        """Whether this store has references to it, or works on it."""
        return self.held or self.used > 0

    @property
    def held(self) -> bool:
        """Whether it has references that keep it: in a forked child, of what its parent held, those used since."""
        return bool(self.handles) and self.store._holds.holds(self.chain_id)


class Top:
    """What ends in a layer, and so can be what another one stands on: an Image."""

    @property
    def top(self) -> ChainID | str:
        """The ChainID of its uppermost layer; "" where it has none."""
        raise NotImplementedError


def parent_id(parent: object) -> str:
    """Give the ChainID that a `parent` argument means; "" for nothing. Raises TypeError."""
    if parent is None:
        return ""                         # what a base layer's `parent` is
    if isinstance(parent, str):
        return parent
    if isinstance(parent, Layer):
        return parent.chain_id
    if isinstance(parent, Top):
        return parent.top
    raise TypeError(f"a parent is a ChainID, a Layer or an Image, not {type(parent).__name__}")


class Layer:
    """A reference to a read-only layer. `with layer:` releases it at the end."""

    os: OS = "linux"
    chain_id: ChainID
    diff_id: DiffID
    size: int
    diff_size: int

    def __init__(self, record: Record) -> None:
        """Refer to a record; the store counts it."""
        self._record = record
        self._alone: MergedTree | None = None
        self._is_new = False              # the call that gave this reference made the layer
        self._took_mark = False           # it was released before, and something needed it
        self._taken_of = record.cache_id  # a layer of this ChainID that is made anew is another one to a reference
        self.chain_id, self.diff_id = record.chain_id, record.diff_id
        self.size, self.diff_size = record.size, record.diff_size

    def __repr__(self) -> str:
        return f"<Layer {self.chain_id}>"

    @property
    def cache_id(self) -> str:
        """The driver's id of the layer, as it was at the last look."""
        return self._record.cache_id

    @property
    def parent(self) -> Layer | None:
        """The bare layer below: no reference, cannot be released. None for a base layer."""
        below = self._record.store._contents.below(self._record)
        return Layer(below) if below else None

    @property
    def descriptor(self) -> Descriptor | None:
        """The descriptor it was registered with, or None."""
        return self._record.descriptor if self._record.descriptor.digest else None

    def tar_stream(self) -> TarStream:
        """Give the layer's tar, byte for byte, seekable and verified.

        Raises  OSError, CorruptLayerError   the record is gone or cannot be read
        """
        return self._record.store._contents.tar_stream(self._record)

    def tar_stream_from(self, parent: str | Layer) -> TarStream:
        """Make a fresh tar of the difference to an ancestor ("" = everything); not verified.

        Raises  LayerStoreError   parent is no proper ancestor
        """
        return self._record.store._contents.tar_stream_from(self._record, parent_id(parent))

    def files(self) -> Iterator[FileEntry]:
        """Give every entry of the layer in the order of its tar: links, whiteouts and replaced ones too.

        From the record alone: no file of the layer is looked at, and memory does not grow with it.
        Raises  OSError, CorruptLayerError   the record is gone or cannot be read: now, or behind what can be
        """
        return self._record.store._contents.files(self._record)

    def open(self, path: StrPath) -> BinaryIO:
        """Open a regular file of this layer alone for reading: a seekable binary file. Nothing is mounted.

        path    from the layer's root; links are followed, below that root
        Raises  FileNotFoundError   it is not in this layer: hidden, or a lower one's (see merged())
                IsADirectoryError, NotADirectoryError
                OSError             ELOOP: too many links; EINVAL: a device or a fifo
                CorruptLayerError   the file is not what was registered: now, or when the last byte is read of one that
                                    is read from its first
        The first call reads the record and keeps what it says, as merged() does, as long as this object lives.
        """
        if self._alone is None:
            self._alone = self._record.store._contents.alone(self._record)
        return self._alone.open(path)

    def merged(self) -> MergedTree:
        """Lay this layer over all below it, as an overlay mount would; nothing is mounted.

        Raises  OSError, CorruptLayerError   a record is gone or cannot be read
        """
        return self._record.store._contents.merged(self._record)

    def metadata(self) -> dict[str, str]:
        """Name the driver's directories: UpperDir, WorkDir, MergedDir, and LowerDir where there is a parent.

        Raises  OSError   they are gone
        """
        return self._record.store._contents.directories(self._record)

    def release(self) -> list[Metadata]:
        """Give the reference back: the store's release(self)."""
        return self._record.store.release(self)

    def __enter__(self) -> Layer:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class EmptyLayer(Layer):
    """The layer of 1024 zero bytes, which belongs to no store: EMPTY_LAYER.

    Source   moby, layer/empty.go
    """

    def __init__(self) -> None:
        """Be what every empty layer is."""
        self.chain_id = ChainID(EMPTY_LAYER_DIFF_ID)
        self.diff_id = EMPTY_LAYER_DIFF_ID
        self.size = self.diff_size = 0

    @property
    def cache_id(self) -> str:
        """Nothing: no driver has it."""
        return ""

    @property
    def parent(self) -> Layer | None:
        """None."""
        return None

    @property
    def descriptor(self) -> Descriptor | None:
        """None."""
        return None

    def tar_stream(self) -> TarStream:
        """Give 1024 zero bytes, as any layer gives its tar."""
        record = json.dumps({"type": 2, "payload": base64.b64encode(bytes(1024)).decode(), "position": 0})
        with os.fdopen(os.memfd_create("empty-layer"), "wb") as file:
            file.write(record.encode() + b"\n")
            file.flush()
            return TarStream(_tarstream.assemble(file.fileno(), -1, self.diff_id.raw), seekable=True)

    def tar_stream_from(self, parent: str | Layer) -> TarStream:
        """Give 1024 zero bytes for "". Raises LayerStoreError for anything else."""
        if parent:
            raise LayerStoreError("can't get parent tar stream of an empty layer")
        return self.tar_stream()

    def files(self) -> Iterator[FileEntry]:
        """Give nothing."""
        return iter(())

    def open(self, path: StrPath) -> BinaryIO:
        """Raise FileNotFoundError, or IsADirectoryError for the root."""
        return self.merged().open(path)

    def merged(self) -> MergedTree:
        """Give a tree with nothing in it."""
        return MergedTree([], lambda entry: io.BytesIO())

    def metadata(self) -> dict[str, str]:
        """Give nothing: no driver holds it."""
        return {}

    def release(self) -> list[Metadata]:
        """Give []: nobody counts it."""
        return []


EMPTY_LAYER = EmptyLayer()
