"""Layer: a reference to a read-only layer, or the bare layer; and the empty layer."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from typing import BinaryIO

from layerstore._core import _tarstream
from layerstore.contents.image import write_image
from layerstore.contents.merged import MergedTree
from layerstore.disk.textfile import new_file
from layerstore.engine.engine import Engine
from layerstore.engine.record import Record, Reference
from layerstore.errors import LayerStoreError
from layerstore.ids import EMPTY_LAYER_DIFF_ID, OS, ChainID, DiffID
from layerstore.streams.tarstream import TarStream
from layerstore.values import Descriptor, FileEntry, Metadata, Progress, StrPath


class Top:
    """What a layer or a writable layer can stand on, beside a Layer: an Image, a Snapshot."""

    @property
    def top(self) -> ChainID | str:
        """The ChainID of its uppermost layer, or the id of the snapshot; "" if it has none."""
        raise NotImplementedError


def parent_id(parent: object) -> str:
    """Return what a `parent` argument names: a ChainID, a snapshot's id, or "" for nothing. Raises TypeError."""
    if parent is None:
        return ""                         # what a base layer's `parent` is
    if isinstance(parent, str):
        return parent
    if isinstance(parent, Layer):
        return parent.chain_id
    if isinstance(parent, Top):
        return parent.top
    raise TypeError(f"a parent is a ChainID, a Layer or an Image (or a Snapshot), not {type(parent).__name__}")


class Layer:
    """A reference to a read-only layer. `with layer:` releases it at the end.

    chain_id    names it together with all layers below
    diff_id     SHA-256 of its tar
    size        bytes of its files and those of all layers below
    diff_size   bytes of its own files
    os          "linux"
    """

    os: OS = "linux"
    chain_id: ChainID
    diff_id: DiffID
    size: int
    diff_size: int

    def __init__(self, engine: Engine, record: Record, reference: Reference | None = None) -> None:
        """Show a record of an engine; reference: None for a bare layer."""
        self._engine, self._record, self._reference = engine, record, reference
        self._alone: MergedTree | None = None
        self.chain_id, self.diff_id = record.chain_id, record.diff_id
        self.size, self.diff_size = record.size, record.diff_size

    def __repr__(self) -> str:
        return f"<Layer {self.chain_id}>"

    @property
    def cache_id(self) -> str:
        """The driver's id of the layer, as it was when it was last read."""
        return self._record.cache_id

    @property
    def is_new(self) -> bool:
        """True if the call that returned this reference made the layer; False if it was stored before."""
        return self._reference is not None and self._reference.is_new

    @property
    def created_at(self) -> float:
        """When it was stored here, in seconds since 1970; 0.0 if its record is gone."""
        return self._engine.metadata.written(self.chain_id)

    @property
    def parent(self) -> Layer | None:
        """The layer below, bare: it is no reference and needs no release. None for a base layer."""
        below = self._engine.contents.below(self._record)
        return Layer(self._engine, below) if below else None

    @property
    def descriptor(self) -> Descriptor | None:
        """The descriptor it was registered with, or None."""
        return self._record.descriptor if self._record.descriptor.digest else None

    def tar_stream(self) -> TarStream:
        """Return the layer's tar, byte for byte, as a stream that seeks and verifies.

        Raises  OSError, CorruptLayerError   the record is gone or cannot be read
        """
        return self._engine.contents.tar_stream(self._record)

    def tar_stream_from(self, parent: str | Layer) -> TarStream:
        """Return a new tar of the difference to an ancestor ("": everything); it is not verified.

        Raises  LayerStoreError   parent is no proper ancestor
        """
        return self._engine.contents.tar_stream_from(self._record, parent_id(parent))

    def files(self) -> Iterator[FileEntry]:
        """Return an iterator over the layer's entries in the order of its tar: links, whiteouts and replaced ones too.

        Only the record is read, not the files, and memory does not grow with the layer.
        Raises  OSError, CorruptLayerError   the record is gone or cannot be read: now, or at a later entry
        """
        return self._engine.contents.files(self._record)

    def open(self, path: StrPath) -> BinaryIO:
        """Open a regular file of this layer alone for reading: a seekable binary file. Nothing is mounted.

        path    from the layer's root; links are followed, below that root
        Raises  FileNotFoundError   it is not in this layer: hidden, or a lower one's (see merged())
                IsADirectoryError, NotADirectoryError
                OSError             ELOOP: too many links; EINVAL: a device or a fifo
                CorruptLayerError   the file is not what was registered: now, or at the last byte, if all bytes are read
        The first call reads the record and keeps it in memory, as merged() does, as long as this object lives.
        """
        if self._alone is None:
            self._alone = self._engine.contents.alone(self._record)
        return self._alone.open(path)

    def merged(self) -> MergedTree:
        """Return the tree of this layer on top of all below it, as an overlay mount would show it; nothing is mounted.

        Raises  OSError, CorruptLayerError   a record is gone or cannot be read
        """
        return self._engine.contents.merged(self._record)

    def export_erofs(self, path: StrPath, *, progress: Progress | None = None) -> int:
        """Write the tree of this layer on top of all below it as one EROFS image, for any kernel from 6.4 on.

        A machine boots from the file, or mounts it, with nothing beside it: all contents are copied into it. Owners,
        modes, times, extended attributes, hard links and devices are kept.
        path       the new file; it appears when it is complete, in place of one that is there
        progress   called with the bytes that were written, at most ten times a second

        Returns  the bytes of the file
        Raises   CorruptLayerError, NotSupportedError, OSError
        """
        return self._engine.contents.write_image(self._record, os.fsdecode(path), progress)

    def metadata(self) -> dict[str, str]:
        """Return the driver's directories: UpperDir, WorkDir, MergedDir, and LowerDir if there is a parent.

        Raises  OSError   they are gone
        """
        return self._engine.contents.stored(self._record).paths()

    def release(self) -> list[Metadata]:
        """Release the reference: the store's release(self)."""
        return self._engine.release(self._reference, self.chain_id)

    def __enter__(self) -> Layer:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


Parent = str | Layer | Top
"""What a layer or a writable layer can stand on: a ChainID, the id of a snapshot, a Layer, a Snapshot, an Image."""


class EmptyLayer(Layer):
    """The layer of 1024 zero bytes, which belongs to no store: EMPTY_LAYER.

    Source   moby, layer/empty.go
    """

    def __init__(self) -> None:
        self._reference = None
        self.chain_id = ChainID(EMPTY_LAYER_DIFF_ID)
        self.diff_id = EMPTY_LAYER_DIFF_ID
        self.size = self.diff_size = 0

    @property
    def cache_id(self) -> str:
        """Return "": no driver stores it."""
        return ""

    @property
    def created_at(self) -> float:
        """Return 0.0."""
        return 0.0

    @property
    def parent(self) -> Layer | None:
        """Return None."""
        return None

    @property
    def descriptor(self) -> Descriptor | None:
        """Return None."""
        return None

    def tar_stream(self) -> TarStream:
        """Return a stream of its tar, 1,024 zero bytes."""
        record = json.dumps({"type": 2, "payload": base64.b64encode(bytes(1024)).decode(), "position": 0})
        with os.fdopen(os.memfd_create("empty-layer"), "wb") as file:
            file.write(record.encode() + b"\n")
            file.flush()
            return TarStream(_tarstream.assemble(file.fileno(), -1, self.diff_id.raw), seekable=True)

    def tar_stream_from(self, parent: str | Layer) -> TarStream:
        """Return its tar for "". Raises LayerStoreError for anything else."""
        if parent:
            raise LayerStoreError("can't get parent tar stream of an empty layer")
        return self.tar_stream()

    def files(self) -> Iterator[FileEntry]:
        """Return an empty iterator."""
        return iter(())

    def open(self, path: StrPath) -> BinaryIO:
        """Raise FileNotFoundError, or IsADirectoryError for the root."""
        return self.merged().open(path)

    def merged(self) -> MergedTree:
        """Return an empty tree."""
        return MergedTree([], lambda entry: io.BytesIO())

    def export_erofs(self, path: StrPath, *, progress: Progress | None = None) -> int:
        """Write an image of an empty directory."""
        with self.tar_stream() as tar, new_file(os.fsdecode(path)) as fd:
            write_image(tar, fd, progress)
            return os.fstat(fd).st_size

    def metadata(self) -> dict[str, str]:
        """Return {}: no driver stores it."""
        return {}

    def release(self) -> list[Metadata]:
        """Return []: it needs no release."""
        return []


EMPTY_LAYER = EmptyLayer()
