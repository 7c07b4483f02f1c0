"""Store: the public face of the engine. It checks arguments, and makes Layer and RWLayer of what the engine returns.

Source: moby, layer/layer_store.go
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from layerstore.disk.locks import surely
from layerstore.engine.convert import convert
from layerstore.engine.engine import Engine
from layerstore.engine.intake import Unpacked as Unpacked
from layerstore.errors import LayerDoesNotExistError, NotSupportedError
from layerstore.ids import OS, ChainID, is_driver_id
from layerstore.layer import Layer, parent_id
from layerstore.layer import Parent as Parent
from layerstore.layerdb.imagedb import ImageDB
from layerstore.layerdb.transaction import check_mount_name
from layerstore.limits import Limits
from layerstore.rwlayer import RWLayer, Snapshot, checked_opts
from layerstore.values import (
    Change,
    CreateRWLayerOpts,
    Descriptor,
    Durability,
    Metadata,
    Orphan,
    Problem,
    Progress,
    StrPath,
    Usage,
)

log = logging.getLogger("layerstore")


class Store:
    """Layers and writable layers below a Docker data root. `with Store(root) as store:` closes it.

    root   the data root, an absolute path

    A layer stays until it was released and no reference, layer, writable layer or image needs it. close() releases
    the locks of the store; it deletes nothing and unmounts nothing.
    """

    root: str

    def __init__(
        self, root: StrPath, *, driver: str | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        """Open or create the store below root (image/<driver>/layerdb, <driver>/).

        driver    None: the one found there, else the best one for this host
        options   the driver's ("<driver>.size": the size of every writable layer, on xfs with quotas), and
                  "durability": "full" (default; what a call has returned survives a crash of the machine),
                  "ordered" (the store's own small files are synced, as moby does) or "none";
                  "lock_timeout": "60" (seconds that a call waits for the layerdb or the images while another process
                  has them locked, then StoreInUseError names it; "0": for ever);
                  "read_only": "true" or "false"; a store is read-only by itself while a dockerd uses the root;
                  limits for untrusted tars ("max_size": "10G"; all are fields of layerstore.limits.Limits)
        Raises    NotSupportedError    this host cannot mount overlays there, or has no quotas
                  InvalidOptionError   unknown option, or a value that it cannot have
                  LayerStoreError, OSError
        Several stores, of this process and of others, may have one root open. None deletes what another one holds.
        """
        if not os.fspath(root):
            raise ValueError("the root of a store is a directory's path, not an empty text")
        self.root = os.path.abspath(os.fsdecode(root))
        self._engine = Engine(self.root, driver, options)

    def __repr__(self) -> str:
        return f"<Store {self._engine.describe()}>"

    @property
    def read_only(self) -> bool:
        """True if the store is read-only: by its option, or because a dockerd was using the root."""
        return bool(self._engine.read_only)

    @property
    def limits(self) -> Limits:
        """The limits for tars that the store was opened with."""
        return self._engine.limits

    @property
    def images(self) -> ImageDB:
        """The image database of the root, which `Images` works on."""
        return self._engine.images

    def check_open(self) -> None:
        """Raise StoreClosedError if the store is closed."""
        self._engine.check_open()

    def check_writable(self) -> None:
        """Raise StoreClosedError or ReadOnlyStoreError if nothing may be added: also if a dockerd was started."""
        self._engine.check_writable()

    def durability(self, wanted: str | None = None) -> Durability:
        """Return the durability of a call that asks for `wanted`; None: the store's. Raises InvalidOptionError."""
        return self._engine.syncing.level(wanted)

    # ---- layers ----

    def register(
        self, source: Any, parent: Parent = "", os: OS | None = None, *, progress: Progress | None = None,
        durability: str | None = None,
    ) -> Layer:  # fmt: skip
        """Store one layer tar and return a reference to the layer.

        source      a path, a descriptor, a buffer, an object with read(n) (a TarStream), or an iterable of bytes-like
                    blocks, which are pulled one by one; plain, gzip, zstd, bzip2, xz or lz4. A source without any
                    bytes raises TarFormatError: the empty layer is 1,024 zero bytes
        parent      the layer below: a ChainID, a Layer (of any store), an Image; "" for a base layer
        os          None or "linux"
        progress    called with the bytes taken from the source (a Done; .total is the number of all, if known), at most
                    ten times a second; if it raises, the call ends
        durability  as the store's option of that name; None: the store's

        Returns  Layer, a reference: release it, or use it in a `with` block
        Raises   LayerDoesNotExistError, MaxDepthExceededError, TarFormatError (.offset), LimitExceededError
                 (.option), BreakoutError (.path), NotSupportedError, OSError; then nothing is left on disk
        """
        return self.register_with_descriptor(source, parent, os, None, progress=progress, durability=durability)

    def register_with_descriptor(
        self, source: Any, parent: Parent = "", os: OS | None = None, descriptor: Descriptor | None = None, *,
        progress: Progress | None = None, durability: str | None = None,
    ) -> Layer:  # fmt: skip
        """Do what register() does, and store the descriptor of the compressed blob."""
        self._engine.check_writable()
        if os not in (None, "", "linux"):
            raise NotSupportedError(f"layers of {os} cannot be stored on this host")
        if descriptor is not None and not isinstance(descriptor, Descriptor):
            raise TypeError(f"a descriptor is a Descriptor, not {type(descriptor).__name__}")
        below = self._engine.stacks.layer_of(parent_id(parent))
        made = self._engine.intake.register(source, below, descriptor, durability, progress)
        return Layer(self._engine, made.record, made)

    # ---- layers unpacked before it is known what they stand on ----

    def unpack_ahead(self, source: Any, *, progress: Progress | None = None, digest: str | None = None) -> Unpacked:
        """Unpack a layer tar before its parent is known. Pass the result to register_unpacked() or discard().

        source, progress   as for register(); a tar without any bytes is allowed, since the DiffID tells it
        digest             "sha256", "sha384" or "sha512": take this digest of the source, as it comes, in the same pass

        Returns  what was unpacked (.diff_id, .source_size, .source_digest). It stays invisible until it is registered;
                 cleanup() removes it only after its process has ended
        Raises   as register() does
        Any number of threads may unpack at the same time.
        """
        return self._engine.intake.unpack_ahead(source, progress, digest)

    def register_unpacked(
        self, unpacked: Unpacked, parent: Parent = "", descriptor: Descriptor | None = None, *,
        durability: str | None = None,
    ) -> Layer:  # fmt: skip
        """Make a layer of what was unpacked, on top of parent. unpacked is used up, also if this raises.

        Returns  a reference to the layer; its is_new is False if it was stored before
        Raises   as register() does
        """
        try:
            below = self._engine.stacks.layer_of(parent_id(parent))
        except BaseException:
            self.discard(unpacked)
            raise
        made = self._engine.intake.register_unpacked(unpacked, below, descriptor, durability)
        try:
            return Layer(self._engine, made.record, made)
        except BaseException:             # an interrupt
            surely(self._engine.take_back, made)
            raise

    def discard(self, unpacked: Unpacked) -> None:
        """Remove what was unpacked ahead. It never raises: cleanup() removes what cannot be removed now."""
        self._engine.intake.discard(unpacked)

    # ---- references ----

    def get(self, chain_id: str) -> Layer:
        """Return a new reference to a layer; release it.

        chain_id   or the id of a snapshot that was committed

        Raises   LayerDoesNotExistError
        """
        self._engine.check_open()
        got = self._engine.references.get(self._engine.stacks.layer_of(chain_id, get=True))
        return Layer(self._engine, got.record, got)

    def names(self) -> tuple[list[ChainID], list[str]]:
        """Return the ChainIDs of all layers and the names of all writable layers, damaged ones too: none is read."""
        self._engine.check_open()
        return self._engine.metadata.list()

    def find(self, chain_id: str) -> Layer | None:
        """Return a layer, bare, or None if it is not stored or its metadata cannot be read."""
        record = self._engine.contents.find(chain_id)
        return Layer(self._engine, record) if record else None

    @contextlib.contextmanager
    def using(self, chain_id: str) -> Iterator[Layer]:
        """Keep a layer for the length of a `with` block, which gets it bare. Raises LayerDoesNotExistError."""
        self._engine.check_open()
        with self._engine.references.using(chain_id) as record:
            yield Layer(self._engine, record)

    def sync(self, layer: Layer, *, durability: str | None = None) -> None:
        """Sync a stored layer and all below it, as durability says; None: as the store's option says."""
        self._engine.syncing.ensure(layer._record, self.durability(durability))

    def map(self) -> dict[ChainID, Layer]:
        """Return all layers by ChainID, bare: they are no references, and need no release."""
        return {record.chain_id: Layer(self._engine, record) for record in self._engine.contents.layers()}

    def release(self, layer: Layer) -> list[Metadata]:
        """Release a reference. The last release of all stores and processes deletes the layer.

        If something needs the layer (a layer, a writable layer or an image on it), it stays until nothing does.

        Returns  what was deleted, top first: the layer, and layers below that were released before and are unneeded
        Raises   LayerNotRetainedError   the object is no reference: released before, or bare
                 OSError                 something could not be removed; cleanup() tries again
        """
        if not isinstance(layer, Layer):
            raise TypeError(f"release() takes a Layer, not {type(layer).__name__}")
        return self._engine.release(layer._reference, layer.chain_id)

    def remove(self, layer: str | Layer | Snapshot) -> list[Metadata]:
        """Release a stored layer that no process holds, or a snapshot: get() and release() in one.

        layer    a ChainID, a Layer of any store, a Snapshot or its id

        Returns  what was deleted, as release() does
        Raises   LayerDoesNotExistError
                 StoreInUseError          something needs it, and the text names what; nothing was done
                 ReadOnlyStoreError, OSError
        """
        self._engine.check_writable()
        if isinstance(layer, Snapshot) or (isinstance(layer, str) and is_driver_id(layer)):
            return self._engine.snapshots.remove(layer if isinstance(layer, str) else layer.id)
        if not isinstance(layer, (str, Layer)):
            raise TypeError(f"remove() takes a ChainID, a Layer or a Snapshot, not {type(layer).__name__}")
        return self._engine.references.remove(layer if isinstance(layer, str) else layer.chain_id)

    def release_unused(self, chain_ids: Sequence[str]) -> list[Metadata]:
        """Release the layers of a removed image that have no reference and that nothing else needs.

        chain_ids  base first

        Returns  what was deleted, top first
        """
        self._engine.check_writable()
        return self._engine.references.release_image(chain_ids)

    def take_back(self, layer: Layer | RWLayer) -> None:
        """Undo the call that returned this reference: what was there before stays, what the call made is deleted.

        layer   from get(), register(), commit() ...; for a caller that was cancelled while the call returned
        Raises  as release() and release_rw_layer() do
        """
        if layer._reference:
            self._engine.take_back(layer._reference)

    def leave(self, layer: Layer) -> None:
        """End a reference, and let the layer stay as if the process had ended without release(): nothing is deleted.

        layer   from get(), register() ...
        """
        if layer._reference:
            self._engine.references.let_go(layer._reference)

    # ---- writable layers ----

    def create_rw_layer(
        self, name: str, parent: Parent = "", opts: CreateRWLayerOpts | None = None, *, durability: str | None = None
    ) -> RWLayer:
        """Create a writable layer and return a reference to it.

        name         a name for a directory: no "/", at most 255 bytes
        parent       what it stands on: a ChainID, a Layer (of any store), a Snapshot or its id, an Image; "" for an
                     empty tree
        opts         an init layer and the driver's options
        durability   as the store's option of that name; None: the store's

        Raises  MountNameConflictError, LayerDoesNotExistError, NotSupportedError, ValueError (name), OSError,
                and what init_func raises
        """
        self._engine.check_writable()
        check_mount_name(name)
        level = self._engine.syncing.level(durability)
        made = self._engine.create(name, parent_id(parent), checked_opts(opts), level)
        return RWLayer(self._engine, made)

    def get_rw_layer(self, name: str) -> RWLayer:
        """Return a new reference to a writable layer. Raises MountDoesNotExistError."""
        self._engine.check_open()
        return RWLayer(self._engine, self._engine.writable.get(name))

    def get_mount_id(self, name: str) -> str:
        """Return the driver's id of a writable layer. Raises MountDoesNotExistError."""
        self._engine.check_open()
        return self._engine.writable.mount_id(name)

    def release_rw_layer(self, layer: RWLayer) -> list[Metadata]:
        """Release a reference; the last release unmounts and deletes the writable layer.

        Returns  the read-only layers that were deleted with it
        Raises   LayerNotRetainedError   the object is no reference any longer
                 ActiveMountError        a process is inside
        """
        self._engine.check_open()
        if not isinstance(layer, RWLayer):
            raise TypeError(f"release_rw_layer() takes an RWLayer, not {type(layer).__name__}")
        return self._engine.writable.release(layer._reference)

    def mounts(self, *, on: Parent | None = None) -> list[str]:
        """Name the writable layers; on: only those that stand right on this layer ("": on nothing)."""
        return self._engine.writable.names(None if on is None else parent_id(on))

    # ---- snapshots ----

    def snapshots(self) -> list[Snapshot]:
        """Return all snapshots, in the order in which they were taken."""
        found = []
        for id in self._engine.snapshots.all():
            with contextlib.suppress(FileNotFoundError):  # released meanwhile
                found.append(Snapshot(self._engine, id))
        return found

    def get_snapshot(self, id: str) -> Snapshot:
        """Return a snapshot by its whole id. Raises LayerDoesNotExistError: it is unknown, or was released."""
        try:
            return Snapshot(self._engine, self._engine.snapshots.check(id))
        except FileNotFoundError as err:
            raise LayerDoesNotExistError(chain_id=id) from err

    def diff(self, a: Parent, b: Parent, *, contents: bool = False) -> list[Change]:
        """List what differs between the trees of two layers, snapshots or images: what makes b of a.

        contents   True: a file that has new times only is no change; where sizes do not decide, bytes are compared

        Raises   LayerDoesNotExistError, OSError
        Nothing is mounted or written.
        """
        return self._engine.looking.diff(parent_id(a), parent_id(b), contents=contents)

    # ---- the store itself ----

    def cleanup(self) -> None:
        """Finish what was interrupted, and delete what no layer and no writable layer owns.

        As in moby it also unmounts everything below the driver's directory: call it when no writable layer is in use.
        Raises  OSError   something is still mounted below the driver's home
        """
        self._engine.cleanup()

    def driver_status(self) -> list[tuple[str, str]]:
        """Return what the driver says of itself, in order; the last pair names the drivers of a root with several."""
        return self._engine.status()

    def driver_name(self) -> str:
        """Return the driver's name."""
        self._engine.check_open()
        return self._engine.driver.host.name

    def verify(
        self, chain_id: str | None = None, *, metadata: bool = True, progress: Progress | None = None,
        workers: int | None = None,
    ) -> list[Problem]:  # fmt: skip
        """Compare what is stored with what was registered; return [] if all is well. Nothing is written.

        chain_id   one layer; None: all layers, images, the small files of writable layers, and unowned files
        metadata   True: modes, owners, times, extended attributes, kinds, link targets and added names too; False: only
                   that everything is there, with the right bytes
        progress   called with the bytes of files read (.total: of how many), at most ten times a second
        workers    how many layers are read at the same time; None: one per processor
        Raises     LayerDoesNotExistError   chain_id is not in the store
        While a dockerd runs on the root, its unfinished layers look like orphans, so unowned files are not reported.
        """
        return self._engine.mending.verify(chain_id, metadata, progress, workers)

    def repair(self, chain_id: str, source: Any = None, *, progress: Progress | None = None) -> list[Problem]:
        """Replace what is damaged in a layer, and nothing else, each file in one step.

        chain_id   the layer; or the name of a writable layer, whose small files are mended, not its contents
        source     the layer's tar, as register() takes it; or another Store, or a Layer, that has it; None: damaged
                   files are taken from other layers of this store that hold the same
        progress   called with the bytes taken of the tar

        Returns  the problems that were found, all mended; [] for an undamaged layer
        Raises   CorruptLayerError        the source is another layer or damaged itself, a file is not available, or a
                                          problem is left
                 LayerDoesNotExistError, ReadOnlyStoreError, and what register() raises; the layer is then as it was
        """
        return self._engine.mending.repair(chain_id, source, progress)

    def orphans(self) -> list[Orphan]:
        """List what no layer and no writable layer owns, largest first, and layers whose release was interrupted.

        Nothing is written.
        Raises  StoreInUseError            a dockerd is running on the root: its unfinished layers look like orphans
                LayerStoreError, OSError   metadata cannot be read, so that an owner may be unknown
        """
        return self._engine.reclaim.find()

    def reclaim(self, dry_run: bool = True) -> list[Orphan]:
        """Remove what orphans() lists.

        dry_run   True: remove nothing, return what would be removed

        Returns  what was removed, or would be
        Raises   StoreInUseError            a dockerd or another store uses the root
                 ReadOnlyStoreError         (dry_run=False)
                 LayerStoreError, OSError   metadata cannot be read, so that an owner may be unknown
        Mounts are ended only inside of what is removed.
        """
        return self._engine.reclaim.remove(dry_run=dry_run)

    def usage(self) -> Usage:
        """Return what the store takes of the disk, in blocks of the file system, and what of it could be freed.

        Directories are read, no files. Under a running dockerd no orphans are counted.
        Raises  LayerStoreError, OSError   metadata cannot be read, so that an owner may be unknown
        """
        return self._engine.weighing.usage()

    def convert(
        self, chain_id: str, driver: str, *, progress: Progress | None = None, durability: str | None = None
    ) -> list[ChainID]:
        """Register a layer and all below it under another driver of the same root: same ChainIDs, same sizes.

        Each layer is registered from its tar, so that both its DiffID and its ChainID are checked. Layers that are
        there already are left as they are. What is made has no reference, and stays until it is released. This store's
        layers stay too. Writable layers are not converted.

        chain_id     or the id of a snapshot that was committed
        driver       the name of the other driver; for the store's own driver there is nothing to do
        progress     called with the bytes of tars read (.total: of how many), at most ten times a second
        durability   as the store's option of that name; None: the store's

        Returns  the ChainIDs that were not there yet, base first
        Raises   LayerDoesNotExistError, NotSupportedError (driver): nothing is made on the disk
                 CorruptLayerError   a layer is damaged: it is not made; layers below it that were made stay
                 ReadOnlyStoreError, and what register() raises
        """
        engine = self._engine
        return convert(engine, engine.stacks.layer_of(parent_id(chain_id), get=True), driver, progress, durability)

    def close(self) -> None:
        """End the use of this object and release its locks; what is mounted stays mounted. Twice is harmless."""
        self._engine.close()

    def __enter__(self) -> Store:
        self._engine.check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def log_release_metadata(metadata: Iterable[Metadata]) -> None:
    """Log each removed layer: "Layer <chain id> cleaned up"."""
    for item in metadata:
        log.info("Layer %s cleaned up", item.chain_id, extra=item._asdict())


def release_and_log(store: Store, layer: Layer) -> None:
    """Release a layer and log what was deleted, or why that failed; never raise."""
    try:
        log_release_metadata(store.release(layer))
    except Exception as err:
        about = {"chain_id": layer.chain_id, "error": err}
        log.error("Error releasing layer %s: %s", layer.chain_id, err, extra=about)
