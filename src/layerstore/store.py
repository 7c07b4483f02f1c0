"""Store: the life of a layer and of a mount.

Locks, in this order: the name of a writable layer; the lock of both maps; the layerdb's, against other
processes. None is held during tar work, the latter two not while files are deleted. A layer becomes visible
by one rename; a removal renames first and cleanup() finishes it.
Other processes may work on the same root: what they registered is found when it is asked for, what they hold
(holds.py) is not deleted, and a lock on the layerdb is held for the moment in which a layer becomes visible or goes.
Source: moby, layer/layer_store.go
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from layerstore import _files, dockerd, drivers, reclaim
from layerstore.drivers import mounts
from layerstore.errors import (
    CorruptLayerError,
    InvalidOptionError,
    LayerDoesNotExistError,
    LayerNotRetainedError,
    LayerStoreError,
    MaxDepthExceededError,
    MountDoesNotExistError,
    MountNameConflictError,
    NotSupportedError,
    ReadOnlyStoreError,
    StoreClosedError,
    StoreInUseError,
)
from layerstore.files import entries, open_bytes
from layerstore.holds import STORE, Holds
from layerstore.ids import OS, ChainID, DiffID, chain_on, diff_id_of, random_id
from layerstore.imagedb import ImageDB
from layerstore.layer import Layer, Record
from layerstore.limits import Limits
from layerstore.locks import NamedLocks
from layerstore.merged import MergedTree
from layerstore.metadata import FileMetadataStore, FileMetadataTransaction, check_mount_name
from layerstore.records import Records
from layerstore.repair import Repair, tar_of
from layerstore.rwlayer import Mount, RWLayer
from layerstore.sources import Input, feed
from layerstore.tarstream import TarStream
from layerstore.textfile import remove_directory
from layerstore.values import (
    CreateRWLayerOpts,
    Descriptor,
    Durability,
    FileEntry,
    Metadata,
    Orphan,
    Problem,
    Progress,
)
from layerstore.verify import Verifier

log = logging.getLogger("layerstore")

MAX_DEPTH = 125
StrPath = str | bytes | os.PathLike[Any]


class Unpacked(NamedTuple):
    """A layer tar that was unpacked and stands on nothing yet; done: the core's Applied."""

    cache_id: str
    transaction: FileMetadataTransaction
    done: Any

    @property
    def diff_id(self) -> DiffID:
        """The DiffID of the tar."""
        return diff_id_of(self.done.diff_id)


def _rw(name: str) -> str:
    """The key under which a reference to a writable layer is held."""
    return f"rw {name}"


def _durability(given: str) -> Durability:
    if given not in ("full", "ordered", "none"):
        raise InvalidOptionError(f"durability is full, ordered or none, not {given!r}")
    return cast(Durability, given)


def _noted(err: LayerStoreError, subject: str) -> LayerStoreError:
    """Say whom it is about, beside moby's text."""
    err.add_note(str(subject))
    return err


class Store:
    """Layers and writable layers below a Docker data root. `with Store(root) as store:` closes it.

    A layer lives as long as somebody holds a reference, a child, a writable layer or an image stands on it, or
    nobody has asked for it since the root was opened; the last release() deletes it from disk. close() gives back
    what was held, deletes nothing and unmounts nothing.
    """

    def __init__(
        self, root: StrPath, *, driver: str | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        """Open, or make, the store below root (image/<driver>/layerdb, <driver>/).

        driver    None: the one found there, else the best this host can run
        options   the driver's ("<driver>.size": the size of every writable layer, on xfs with quotas), and
                  "durability": "full" (default; what a call has returned survives a crash of the machine),
                  "ordered" (the store's own small files are synced, as moby does) or "none";
                  "read_only": "true" or "false"; true by itself while a dockerd uses the root;
                  limits for tars one cannot trust ("max_size": "10G"; all are fields of layerstore.limits.Limits)
        Raises    NotSupportedError    this host cannot mount overlays there, or has no quotas
                  InvalidOptionError   an option nobody knows
                  LayerStoreError, OSError
        Several Stores, of this process and of others, may have one root open: what any of them holds none deletes.
        """
        if not os.fspath(root):
            raise ValueError("the root of a store is a directory's path, not an empty text")
        self.root: str = os.path.abspath(os.fsdecode(root))
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"options is a mapping of texts, not {type(options).__name__}")
        given = dict(options or {})
        self._durability: Durability = _durability(given.pop("durability", "full"))
        self._read_only = self._why_read_only(given.pop("read_only", "false"))
        limits = Limits.take(given)
        fresh = not os.path.lexists(self.root)
        try:
            name = drivers.choose(self.root, driver)
            layerdb = os.path.join(self.root, "image", name, "layerdb")
            self._holds = Holds(layerdb)
            if self._read_only and not os.path.isdir(os.path.join(self.root, name)):
                raise LayerStoreError(f"there is no store below {self.root} to read")
            if not self._read_only:
                os.makedirs(self.root, 0o711, exist_ok=True)
            self._driver = drivers.open_driver(
                name, self.root, given, self._holds, read_only=bool(self._read_only), limits=limits
            )
        except LayerStoreError as err:
            if fresh:
                with contextlib.suppress(OSError):
                    os.rmdir(self.root)
            named = f": {driver}" if driver else ""
            raise type(err)(f"error initializing graphdriver: {err}{named}") from err
        if self._driver.in_memory:
            self._durability = "none"
        self._metadata = FileMetadataStore(layerdb, durability=self._durability, make=not self._read_only)
        if not self._read_only:
            self._holds.open()
        self._images = ImageDB(os.path.dirname(layerdb), self._durability)
        self._records = Records(self, self._metadata)
        self._lock = self._records.lock
        self._names = NamedLocks()
        self._closed = False

    def _why_read_only(self, option: str) -> str:
        if option not in ("true", "false"):
            raise InvalidOptionError(f"read_only is true or false, not {option!r}")
        if option == "true":
            return "it was opened with read_only"
        database = dockerd.locked_database(self.root)
        if not database:
            return ""
        why = f"a dockerd is using {self.root} ({database} is locked); stop it, or use a root of your own"
        log.warning("Open for reading only: %s", why, extra={"root": self.root, "database": database})
        return why

    @property
    def read_only(self) -> bool:
        """Whether the store was opened for reading only: it was asked for, or a dockerd was using the root."""
        return bool(self._read_only)

    # ---- references ----

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError()

    def _check_writable(self) -> None:
        self._check_open()
        if self._read_only:
            raise ReadOnlyStoreError(f"{ReadOnlyStoreError.text}: {self._read_only}")
        database = dockerd.locked_database(self.root)
        if database:
            raise ReadOnlyStoreError(f"a dockerd was started on {self.root} meanwhile: {database} is locked")

    def _driver_of(self) -> drivers.Driver:
        self._check_open()
        return self._driver

    def _hold(self, record: Record) -> None:
        """Under the lock: count a reference of our own; other stores leave the layer alone meanwhile."""
        self._holds.retain(record.chain_id)
        record.held += 1

    def _unhold(self, record: Record) -> None:
        record.held -= 1
        self._holds.release(record.chain_id)

    def _retain(self, chain_id: str) -> Record:
        with self._lock:
            known = self._records.layers.get(cast(ChainID, chain_id))
            if known and self._holds.holds(chain_id):
                self._hold(known)
                return known
            with self._metadata.exclusive():      # nobody deletes it while it is read, and before it is held
                record = self._records.load_current(chain_id)
                if record is None:
                    raise _noted(LayerDoesNotExistError(), chain_id)
                self._hold(record)
                return record

    def _handle(self, record: Record) -> Layer:
        layer = Layer(record)
        record.handles.add(layer)
        return layer

    # ---- layers ----

    def register(
        self, source: Any, parent: str = "", os: OS | None = None, *, progress: Progress | None = None,
        durability: str | None = None,
    ) -> Layer:  # fmt: skip
        """Store one layer tar and return a reference to the layer.

        source     read(n), a descriptor, a path, or a buffer; plain, gzip, zstd, bzip2, xz or lz4
        parent     ChainID below, or "" for a base layer
        os         None or "linux"
        progress   called with the bytes taken from the source (a Done: .total is of how many, where that is
                   known), at most ten times a second; what it raises ends the call
        durability as the store's option of that name; None: the store's

        Raises  LayerDoesNotExistError, MaxDepthExceededError, TarFormatError (.offset), LimitExceededError
                (.option), BreakoutError (.path), NotSupportedError, OSError; then nothing is left on disk
        """
        return self.register_with_descriptor(source, parent, os, None, progress=progress, durability=durability)

    def register_with_descriptor(
        self, source: Any, parent: str = "", os: OS | None = None, descriptor: Descriptor | None = None, *,
        progress: Progress | None = None, durability: str | None = None,
    ) -> Layer:  # fmt: skip
        """Do what register() does, and remember the blob's descriptor."""
        self._check_writable()
        if os not in (None, "", "linux"):
            raise NotSupportedError(f"layers of {os} cannot be stored on this host")
        if descriptor is not None and not isinstance(descriptor, Descriptor):
            raise TypeError(f"a descriptor is a Descriptor, not {type(descriptor).__name__}")
        level = self._level(durability)
        above = self._retain(parent) if parent else None

        def fill(apply: Any) -> None:
            with contextlib.closing(Input(source)) as given:
                feed(given, apply, progress)

        return self._register(fill, above, descriptor or Descriptor(), level)

    def _level(self, durability: str | None) -> Durability:
        """The durability of one call."""
        level = self._durability if durability is None else _durability(durability)
        return "none" if self._driver.in_memory else level

    def _sync(
        self, ids: list[str], transaction: FileMetadataTransaction, above: Record | None, level: Durability
    ) -> None:
        """Put what was made on the disk, as far as level says, before it becomes visible."""
        # What it stands on may have been stored with less, by anybody; then one sync of everything sees to that, too.
        known = above is None or above.durable
        everywhere = self._driver.sync(ids, level, everything=level == "full" and not known)
        if level != "none" and not (everywhere and self._one_device()):
            transaction.sync()
        if level == "full" and above and not known:
            self._make_durable(above)

    def _make_durable(self, record: Record) -> None:
        """All of the driver's file system is on the disk: see to the layerdb's, and note it."""
        if not self._one_device():
            mounts.sync_filesystem(self._metadata.root)
        below: Record | None = record
        while below and not below.durable:
            below.durable = True
            below = below.parent

    def _one_device(self) -> bool:
        """Are the layerdb and the driver's directories on one file system?"""
        home = os.path.join(self.root, self._driver.name)
        return _files.status(home, follow=True)[1] == _files.status(self._metadata.root, follow=True)[1]

    def _settle_names(self, level: Durability) -> None:
        """After something became visible: a power cut shall not make it invisible again."""
        if level == "full":
            self._metadata.sync_names()

    def _register(
        self, fill: Callable[[Any], None], above: Record | None, descriptor: Descriptor, level: Durability
    ) -> Layer:
        """Takes over the reference to `above`: it is the new layer's, or given back."""
        try:
            if above and above.depth >= MAX_DEPTH:
                raise MaxDepthExceededError()
            handle, is_new = self._unpack(fill, above, descriptor, level)
        except BaseException:
            if above:
                self._release_chain(above)
            raise
        handle._is_new = is_new
        if above and is_new:
            with self._lock:              # what stands on it keeps it now
                self._unhold(above)
        elif above:
            self._release_chain(above)
        return handle

    def _unpack(
        self, fill: Callable[[Any], None], above: Record | None, descriptor: Descriptor, level: Durability
    ) -> tuple[Layer, bool]:
        """Make a layer of what fill() pushes: a reference to it, and whether it was not there before."""
        cache_id = random_id()
        made: Record | None = None
        transaction = self._metadata.start_deferred()
        try:
            done = self._fill(cache_id, above.cache_id if above else "", transaction, fill)
            made = self._describe(cache_id, transaction, done, above, descriptor)
            handle = self._make_visible(transaction, made, level)
        except BaseException:
            try:
                self._withdraw(made)
            except OSError:
                self._driver.recorded(cache_id)   # still visible, perhaps: then it is whole, else cleanup()'s
                raise
            self._discard(cache_id, transaction)
            raise
        return handle, self._settle(cache_id, transaction, handle)

    def _fill(self, cache_id: str, below: str, transaction: Any, fill: Callable[[Any], None]) -> Any:
        """Unpack and record what fill() pushes, beside all layers: the core's Applied."""
        self._driver.create(cache_id, below)
        record_fd = transaction.open_tar_split()
        try:
            return self._driver.register(cache_id, below, record_fd, fill)
        finally:
            _files.close(record_fd)

    def _describe(
        self, cache_id: str, transaction: Any, done: Any, above: Record | None, descriptor: Descriptor
    ) -> Record:
        """Write what the layerdb says of a layer that was unpacked: its record, which nobody sees yet."""
        diff_id = diff_id_of(done.diff_id)
        chain = chain_on(above.chain_id if above else "", diff_id)
        transaction.set_diff_id(diff_id)
        transaction.set_size(done.size)
        transaction.set_cache_id(cache_id)
        if descriptor.digest:
            transaction.set_descriptor(descriptor)
        if above:
            transaction.set_parent(above.chain_id)
        self._driver.settle(cache_id, above.cache_id if above else "")
        return Record(self, chain, diff_id, above, cache_id, done.size, descriptor)

    def _make_visible(self, transaction: Any, made: Record, level: Durability) -> Layer:
        self._sync([made.cache_id], transaction, made.parent, level)
        handle = self._commit_or_existing(transaction, made)
        self._settle_names(level)
        record = handle._record
        if level == "full" and record is made:
            made.durable = True
        self._ensure_durable(record, level)
        return handle

    def _ensure_durable(self, record: Record, level: Durability) -> None:
        """A layer that was there before may have been stored with less than is asked for now."""
        if level == "full" and not record.durable:
            self._driver.sync([record.cache_id], level, everything=True)
            self._make_durable(record)

    def _settle(self, cache_id: str, transaction: Any, handle: Layer) -> bool:
        """Give up what was only needed meanwhile. Returns whether the layer was not there before."""
        is_new = handle.cache_id == cache_id
        if is_new:
            self._driver.recorded(cache_id)
            transaction.release()
        else:
            self._discard(cache_id, transaction)
        return is_new

    # ---- layers unpacked before it is known what they stand on: what images.load() is made of ----

    def _unpack_ahead(self, fill: Callable[[Any], None]) -> Unpacked:
        """Unpack what fill() pushes, for _register_unpacked() or _discard_unpacked(). Nobody sees it till then.

        Any number of threads at once. cleanup() takes it only when its process is gone.
        """
        self._check_writable()
        cache_id = random_id()
        transaction = self._metadata.start_deferred()
        try:
            return Unpacked(cache_id, transaction, self._fill(cache_id, "", transaction, fill))
        except BaseException:
            self._discard(cache_id, transaction)
            raise

    def _register_unpacked(
        self, unpacked: Unpacked, parent: str, descriptor: Descriptor, level: Durability
    ) -> tuple[Layer, bool]:
        """Make a layer on parent of what was unpacked: a reference to it, and whether it was not there before.

        Whatever happens, unpacked is spent. Raises as register() does.
        """
        made: Record | None = None
        above: Record | None = None
        cache_id, transaction, done = unpacked
        try:
            self._check_writable()
            above = self._retain(parent) if parent else None
            if above and above.depth >= MAX_DEPTH:
                raise MaxDepthExceededError()
            if above:
                self._driver.put_on(cache_id, above.cache_id)
            made = self._describe(cache_id, transaction, done, above, descriptor)
            handle = self._make_visible(transaction, made, level)
        except BaseException:
            self._withdraw(made)
            self._discard(cache_id, transaction)
            if above:
                self._release_chain(above)
            raise
        is_new = self._settle(cache_id, transaction, handle)
        if above:
            with self._lock:              # the new layer keeps it, or the one that was there
                self._unhold(above)
        return handle, is_new

    def _discard_unpacked(self, unpacked: Unpacked) -> None:
        self._discard(unpacked.cache_id, unpacked.transaction)

    def _let_go(self, layer: Layer) -> None:
        """Give a reference back and delete nothing: a layer that nobody had asked for stays, as it did before."""
        with self._lock:
            if layer in layer._record.handles:
                layer._record.handles.remove(layer)
                self._unhold(layer._record)

    def _commit_or_existing(self, transaction: Any, made: Record) -> Layer:
        """Make a layer visible; where it is there already, and whole, that one wins."""
        chain, records = made.chain_id, self._records
        aside = None
        with self._lock, self._metadata.exclusive():
            self._check_open()
            existing = records.load_current(chain)
            if existing is None or not self._driver.exists(existing.cache_id):
                if made.parent and not records.names_layer(made.parent):
                    raise LayerDoesNotExistError(f"{LayerDoesNotExistError.text}: the parent was removed meanwhile")
                aside = self._metadata.set_aside(chain) if self._metadata.has(chain) else None
                try:
                    transaction.publish(chain)
                except BaseException:
                    if aside:
                        self._metadata.put_back(chain, aside)
                    raise
                existing = records.replace(existing, made)
            self._hold(existing)
            handle = self._handle(existing)
            if aside:
                text = "The broken layer %s was replaced by the one registered now"
                log.warning(text, chain, extra={"chain_id": chain, "cache_id": made.cache_id})
                self._stand_on_anew(existing)
        if aside:
            remove_directory(aside)
        return handle

    def _stand_on_anew(self, record: Record) -> None:
        """Under the lock: what stands on a layer that was replaced is told of its new directory."""
        self._records.forget_bad()
        self._records.count_standing_on(record)
        for layer in list(self._records.layers.values()):
            if layer.parent is record:
                self._driver.stand_on(layer.cache_id, record.cache_id)
                self._stand_on_anew(layer)
        for mount in list(self._records.mounts.values()):
            if mount.parent is record:
                for id, below in ((mount.init_id, record.cache_id), (mount.mount_id, mount.below)):
                    if id:
                        self._driver.stand_on(id, below)

    def _withdraw(self, made: Record | None) -> None:
        """A failure, or an interrupt, behind the rename that made a layer visible: make it invisible again."""
        if made is None:
            return
        with self._lock, self._metadata.exclusive():
            if self._records.layers.get(made.chain_id) is made:
                self._records.forget(made)
                self._holds.drop(made.chain_id)
            try:
                visible = self._metadata.get_cache_id(made.chain_id) == made.cache_id
            except (FileNotFoundError, NotADirectoryError, LayerStoreError):
                visible = False
            if visible:
                aside = self._metadata.set_aside(made.chain_id)
                if aside:
                    remove_directory(aside)

    def _discard(self, cache_id: str, transaction: Any) -> None:
        try:
            self._driver.remove(cache_id)
        except Exception as err:
            about = {"cache_id": cache_id, "error": err}
            log.error("Error cleaning up cache layer %s: %s", cache_id, err, extra=about)
        try:
            transaction.cancel()
        except OSError as err:
            about = {"directory": str(transaction), "error": err}
            log.error("Error canceling metadata transaction %s: %s", transaction, err, extra=about)

    def get(self, chain_id: str) -> Layer:
        """Give a new reference to a layer, to be released. Raises LayerDoesNotExistError."""
        self._check_open()
        with self._lock:
            return self._handle(self._retain(chain_id))

    def _size_of(self, chain_id: str) -> int:
        """Bytes of a layer and all below it; 0 where it cannot be read."""
        with self._lock:
            record = self._records.load(chain_id)
            return record.size if record else 0

    def _mounts_on(self, chain_id: str) -> list[str]:
        """Name the writable layers that stand right on a layer."""
        with self._lock:
            self._records.load_all()
            mounts = self._records.mounts.values()
            return sorted(mount.name for mount in mounts if mount.parent and mount.parent.chain_id == chain_id)

    def map(self) -> dict[ChainID, Layer]:
        """Give all layers, bare: no references. The way to look at layers without owning them."""
        self._check_open()
        with self._lock:
            self._records.load_all()
            return {chain: Layer(record) for chain, record in self._records.layers.items()}

    def release(self, layer: Layer) -> list[Metadata]:
        """Give a reference back; what nobody needs any more is deleted.

        Returns  what was deleted, top first
        Raises   LayerNotRetainedError   this handle holds no reference
        """
        self._check_open()
        if not isinstance(layer, Layer):
            raise TypeError(f"release() takes a Layer, not {type(layer).__name__}")
        with self._lock:
            record = self._records.load(layer.chain_id)
            if record is None:
                return []
            if layer not in record.handles:
                raise LayerNotRetainedError()
            record.handles.remove(layer)
        return self._release_chain(record)

    def _undo(self, layer: Layer | RWLayer) -> None:
        """Undo the call that gave this reference, as nobody will get it: what was there before stays."""
        if isinstance(layer, RWLayer):
            with self._names.hold(layer.name):
                layer._mount.handles.discard(layer)
                self._holds.release(_rw(layer.name))
        elif layer._is_new:
            self.release(layer)
        else:
            self._let_go(layer)

    def _release_chain(self, record: Record) -> list[Metadata]:
        """Take one reference of record, and delete what nobody needs then, from it downwards."""
        with self._lock:
            self._unhold(record)
        return self._remove_unneeded(record)

    def _remove_unneeded(self, record: Record | None) -> list[Metadata]:
        removed: list[Metadata] = []
        while record:
            with self._lock:
                aside = self._take_away(record)
            if aside is None:
                break
            self._driver.remove(record.cache_id)
            if aside:
                remove_directory(aside)
            removed.append(Metadata(record.chain_id, record.diff_id, record.size, record.diff_size))
            record = record.parent
        return removed

    def _take_away(self, record: Record) -> str | None:
        """Under the lock: make a layer that nobody needs invisible.

        Returns  where its metadata is now, "" where it had vanished, or None: it stays
        """
        if record.held > 0 or record.standing > 0 or self._read_only:
            return None
        if self._records.layers.get(record.chain_id) is not record:
            return None                   # another thread was quicker
        database = dockerd.locked_database(self.root)
        if database:
            text, about = "Layer %s is left to the dockerd that is running now (%s)", {"chain_id": record.chain_id}
            log.warning(text, record.chain_id, database, extra={**about, "database": database})
            return None
        with self._metadata.exclusive():
            # An interrupt may have lost a count; nothing is deleted from under what stands on it.
            record.standing = self._records.count_standing_on(record)
            record.held = len(record.handles)
            if record.held or record.standing or self._holds.held_elsewhere(record.chain_id):
                return None
            if self._images.stands_on(record.chain_id):
                return None
            aside = self._metadata.set_aside(record.chain_id) if self._records.names_layer(record) else None
            self._records.forget(record)
            return aside or ""

    def _tar_stream(self, record: Record) -> TarStream:
        self._check_open()
        fd = self._metadata.open_tar_split(record.chain_id)
        try:
            return self._driver.stored_tar(record.cache_id, fd, record.diff_id.raw)
        finally:
            _files.close(fd)

    def _tar_stream_from(self, record: Record, parent: str) -> TarStream:
        self._check_open()
        above = record.parent
        while parent and above and above.chain_id != parent:
            above = above.parent
        if parent and above is None:
            raise LayerStoreError(
                f"layer ID '{parent}' is not a parent of the specified layer: cannot provide diff to non-parent"
            )
        return self._driver.diff(record.cache_id, above.cache_id if parent and above else "", read_only=True)

    def _files(self, record: Record) -> Iterator[FileEntry]:
        self._check_open()
        fd = self._metadata.open_tar_split(record.chain_id)
        try:
            return entries(fd, record.chain_id)
        finally:
            _files.close(fd)

    def _merged(self, chain: Sequence[Record]) -> MergedTree:
        """The tree of these layers, base first."""
        caches = {record.chain_id: record.cache_id for record in chain}

        def opener(entry: FileEntry) -> BinaryIO:
            driver = self._driver_of()
            return open_bytes(lambda: driver.open_file(caches[entry.chain_id], entry.path, entry.size), entry)

        return MergedTree(((record.chain_id, self._files(record)) for record in chain), opener)

    # ---- writable layers ----

    def create_rw_layer(
        self, name: str, parent: str = "", opts: CreateRWLayerOpts | None = None, *, durability: str | None = None
    ) -> RWLayer:
        """Make a writable layer and return a reference to it.

        name     a name for a directory: no "/", at most 255 bytes
        parent   ChainID below, or "" for an empty tree
        opts     an init layer and the driver's options
        durability   as the store's option of that name; None: the store's

        Raises  MountNameConflictError, LayerDoesNotExistError, NotSupportedError, ValueError (name), OSError,
                and whatever init_func raises
        """
        self._check_writable()
        check_mount_name(name)
        if opts is not None and not isinstance(opts, CreateRWLayerOpts):
            raise TypeError(f"opts is a CreateRWLayerOpts, not {type(opts).__name__}")
        opts = opts or CreateRWLayerOpts()
        level = self._level(durability)
        with self._names.hold(name):
            if self._find_mount(name):
                raise _noted(MountNameConflictError(), name)
            above = self._retain(parent) if parent else None
            try:
                mount = self._create_mount(name, above, opts, level)
            except BaseException:
                if above:
                    self._release_chain(above)
                raise
            if above:
                with self._lock:          # the writable layer keeps it now
                    self._unhold(above)
            return self._mount_handle(mount)

    def _mount_handle(self, mount: Mount) -> RWLayer:
        handle = RWLayer(mount)
        mount.handles.add(handle)
        return handle

    def _find_mount(self, name: str) -> Mount | None:
        with self._lock:
            return self._records.find_mount(name)

    def _create_mount(self, name: str, above: Record | None, opts: CreateRWLayerOpts, level: Durability) -> Mount:
        mount_id, init_id = random_id(), ""
        below = above.cache_id if above else ""
        made: list[str] = []
        mount: Mount | None = None
        transaction = self._metadata.start_deferred()
        try:
            if opts.init_func:
                init_id = f"{mount_id}-init"
                self._driver.create_read_write(init_id, below, opts.storage_opt)
                made.append(init_id)
                path = self._driver.get(init_id)
                try:
                    opts.init_func(path)
                finally:
                    self._driver.put(init_id)
            self._driver.create_read_write(mount_id, init_id or below, opts.storage_opt)
            made.append(mount_id)
            if init_id:
                self._driver.settle(init_id, below)
            self._driver.settle(mount_id, init_id or below)
            transaction.set_mount(mount_id, init_id, above.chain_id if above else "")
            self._sync(made, transaction, above, level)
            mount = Mount(self, name, mount_id, init_id, above)
            aside = self._commit_mount(transaction, mount)
            self._settle_names(level)
        except BaseException:
            try:
                self._withdraw_mount(mount)
            except OSError:
                for id in made:           # still visible, perhaps: then it is whole, else cleanup()'s
                    self._driver.recorded(id)
                transaction.release()
                raise
            for id in reversed(made):
                with contextlib.suppress(OSError):
                    self._driver.remove(id)
            with contextlib.suppress(OSError):
                transaction.cancel()
            raise
        for id in made:
            self._driver.recorded(id)
        transaction.release()
        if aside:
            remove_directory(aside)
        return mount

    def _commit_mount(self, transaction: FileMetadataTransaction, mount: Mount) -> str | None:
        """Make a writable layer visible. Gives where the record of a broken one of its name is now."""
        name = mount.name
        with self._lock, self._metadata.exclusive():
            self._check_open()
            if mount.parent and not self._records.names_layer(mount.parent):
                raise LayerDoesNotExistError(f"{LayerDoesNotExistError.text}: it was removed meanwhile")
            aside = None
            if self._metadata.has_mount(name):
                if self._records.is_loadable(name):      # another process was quicker
                    raise _noted(MountNameConflictError(), name)
                aside = self._metadata.set_mount_aside(name)
            transaction.publish_mount(name)
            # Under the same lock: nobody may load it from disk as a second record beside this one.
            self._records.add_mount(mount)
            self._holds.retain(_rw(name))
            return aside

    def _withdraw_mount(self, mount: Mount | None) -> None:
        """A failure, or an interrupt, behind the rename that made a writable layer visible."""
        if mount is None:
            return
        with self._lock, self._metadata.exclusive():
            if self._records.mounts.get(mount.name) is mount:
                self._records.forget_mount(mount.name)
                self._holds.drop(_rw(mount.name))
            if self._metadata.has_mount(mount.name) and self._records.names_mount(mount):
                aside = self._metadata.set_mount_aside(mount.name)
                if aside:
                    remove_directory(aside)

    def get_rw_layer(self, name: str) -> RWLayer:
        """Give a new reference to a writable layer. Raises MountDoesNotExistError."""
        self._check_open()
        with self._names.hold(name):
            check_mount_name(name)
            with self._lock, self._metadata.exclusive():
                mount = self._records.find_mount(name)
                if mount is None:
                    raise _noted(MountDoesNotExistError(), name)
                self._holds.retain(_rw(name))
            return self._mount_handle(mount)

    def get_mount_id(self, name: str) -> str:
        """Give the driver's id of a writable layer. Raises MountDoesNotExistError."""
        self._check_open()
        mount = self._find_mount(name)
        if mount is None:
            raise _noted(MountDoesNotExistError(), name)
        return mount.mount_id

    def release_rw_layer(self, layer: RWLayer) -> list[Metadata]:
        """Give a reference back; with the last one the writable layer is unmounted and deleted.

        Returns  the read-only layers that went with it
        Raises   LayerNotRetainedError   this handle holds no reference
        """
        self._check_open()
        if not isinstance(layer, RWLayer):
            raise TypeError(f"release_rw_layer() takes an RWLayer, not {type(layer).__name__}")
        with self._names.hold(layer.name):
            mount = self._find_mount(layer.name)
            if mount is None:
                return []
            if layer not in mount.handles:
                raise LayerNotRetainedError()
            mount.handles.remove(layer)
            self._holds.release(_rw(mount.name))
            if mount.handles:
                return []
            # First the record goes, by one rename: from then on its files are nobody's, however this ends.
            begun = False
            try:
                if not self._set_mount_aside(mount):
                    return []
                begun = True
                self._driver.remove(mount.mount_id)
                if mount.init_id:
                    self._driver.remove(mount.init_id)
            except BaseException as err:
                about = {"mount": mount.name, "mount_id": mount.mount_id, "error": err}
                log.error("Error removing mounted layer %s: %s", mount.name, err, extra=about)
                self._holds.retain(_rw(mount.name))
                mount.handles.add(layer)              # so that it can be tried again
                if mount.aside and not begun:
                    self._metadata.put_mount_back(mount.name, mount.aside)
                    mount.aside = None
                raise
            if mount.aside:
                remove_directory(mount.aside)
            with self._lock:
                self._records.forget_mount(mount.name)
            return self._remove_unneeded(mount.parent)

    def _set_mount_aside(self, mount: Mount) -> bool:
        """Make a writable layer invisible that nobody holds. False: it stays."""
        if self._read_only:
            return False
        database = dockerd.locked_database(self.root)
        if database:
            text = "Writable layer %s is left to the dockerd that is running now (%s)"
            log.warning(text, mount.name, database, extra={"mount": mount.name, "database": database})
            return False
        with self._metadata.exclusive():
            if self._holds.held_elsewhere(_rw(mount.name)):
                return False
            if not mount.aside and self._records.names_mount(mount):
                mount.aside = self._metadata.set_mount_aside(mount.name)
            return True

    def _apply_diff(self, mount: Mount, source: Any, progress: Progress | None = None) -> int:
        self._check_writable()
        given = Input(source)
        try:
            return self._driver.apply_diff(mount.mount_id, mount.below, lambda apply: feed(given, apply, progress))
        finally:
            given.close()

    def _commit(self, mount: Mount, durability: str | None, progress: Progress | None = None) -> Layer:
        self._check_writable()
        level = self._level(durability)
        above = mount.parent
        if above:
            with self._lock:
                self._hold(above)

        def fill(apply: Any) -> None:
            with self._driver.diff(mount.mount_id, mount.below) as stream:
                stream.pump_into(apply, progress)

        return self._register(fill, above, Descriptor(), level)

    def mounts(self) -> list[str]:
        """Name the writable layers."""
        self._check_open()
        with self._lock:
            self._records.load_all()
            return sorted(self._records.mounts)

    # ---- the store itself ----

    def cleanup(self) -> None:
        """Finish what was interrupted, and reclaim what no layer and no mount of this root owns.

        As in moby it also unmounts whatever is mounted below the driver's directory: call it when no
        writable layer is in use.
        Raises  OSError   something is still mounted below the driver's home
        """
        self._check_writable()
        reclaim.finish(self._metadata, self._driver, self._records.owned)
        with self._lock:
            self._records.forget_bad()
        self._driver.cleanup()

    def driver_status(self) -> list[tuple[str, str]]:
        """Give what the driver says of itself, in order."""
        return self._driver_of().status()

    def driver_name(self) -> str:
        """Name the driver."""
        return self._driver_of().name

    def verify(
        self, chain_id: str | None = None, *, progress: Progress | None = None, workers: int | None = None
    ) -> list[Problem]:
        """Compare what is stored with what was registered; [] when all is well. Nothing is written.

        chain_id   one layer; None: all of them, the writable ones' records, and what nobody owns
        progress   called with the bytes of files read (.total: of how many), at most ten times a second
        workers    how many layers are read at once; None: one for each processor
        Raises     LayerDoesNotExistError   chain_id is not in the store
        Beside a running dockerd, what it is just making cannot be told from what nobody owns: of that, nothing is said.
        """
        self._check_open()
        records = self._records
        with self._lock:
            records.load_all()
            if chain_id is not None and chain_id not in records.layers and chain_id not in records.bad:
                raise _noted(LayerDoesNotExistError(), chain_id)
            chosen = [r for c, r in records.layers.items() if chain_id in (None, c)]
            found = [Problem("metadata", str(c), "", str(e)) for c, e in records.bad.items() if chain_id in (None, c)]
            bad_mounts, mounts = list(records.bad_mounts.items()), list(records.mounts.values())
            untouched = {record for record in chosen if not record.held and not record.standing}
            for record in chosen:            # none goes while it is looked at; other processes do as they like
                record.held += 1
        try:
            verifier = Verifier(self._metadata, self._driver)
            found += verifier.layers(chosen, progress, workers)
            gone = {r.chain_id for r in chosen if not r.handles and not self._metadata.has(r.chain_id)}
            found = [problem for problem in found if problem.subject not in gone]
        finally:
            for record in chosen:
                with self._lock:
                    record.held -= 1
                if record not in untouched:
                    self._remove_unneeded(record)
        live = dockerd.locked_database(self.root) is not None
        if chain_id is None:
            found += [Problem("metadata", name, "", str(err)) for name, err in bad_mounts]
            for mount in mounts:
                found += verifier.mount(mount)
            if not live:
                found += verifier.orphans(records.owned)
        return found

    def repair(self, chain_id: str, source: Any = None, *, progress: Progress | None = None) -> list[Problem]:
        """Make a damaged layer what it was; only what is damaged is replaced, each file in one step.

        source     the layer's tar, as register() takes it; or another Store, or a Layer, that has it; None: damaged
                   files are taken from other layers of this store that hold the same
        progress   called with the bytes taken of the tar

        Returns  the problems there were, all of them mended; [] for a sound layer
        Raises   CorruptLayerError        the source is another layer or damaged itself, a file is nowhere to be had,
                                          or a problem is left
                 LayerDoesNotExistError, ReadOnlyStoreError, and what register() raises; the layer is then as it was
        """
        self._check_writable()
        problems = self.verify(chain_id)
        if not problems:
            return []
        with self._lock:
            record = self._records.load(chain_id)
        if record is None:
            self._register_again(chain_id, source, progress)
        else:
            record = self._retain(chain_id)
            try:
                Repair(self._metadata, self._driver, self.verify, self._level("full")).layer(
                    record, source, self.map().values(), progress
                )
            finally:
                with self._lock:          # a layer that nobody had asked for stays, as it did before
                    self._unhold(record)
        left = self.verify(chain_id)
        if left:
            raise CorruptLayerError(f"{chain_id} could not be mended: {left[0].detail}", path=left[0].path)
        return problems

    def _register_again(self, chain_id: str, source: Any, progress: Progress | None) -> None:
        """Replace a layer whose metadata cannot be read."""
        try:
            parent = self._metadata.get_parent(chain_id)
        except (OSError, LayerStoreError) as err:
            raise CorruptLayerError(
                f"nothing says any more what {chain_id} stood on: register its tar on its parent again"
            ) from err
        if source is None:
            raise CorruptLayerError(f"the metadata of {chain_id} cannot be read: its tar, or another store, is needed")
        with contextlib.ExitStack() as stack:
            layer = self.register(tar_of(chain_id, "", source, stack), parent, progress=progress)
        if layer.chain_id != chain_id:
            self._undo(layer)             # which may have been there before
            raise CorruptLayerError(f"the source is another layer, {layer.chain_id}, not {chain_id}")
        self._let_go(layer)

    def orphans(self) -> list[Orphan]:
        """List what no layer and no writable layer owns, largest first. Nothing is written.

        Raises  StoreInUseError            a dockerd is running on the root: what it is making is nobody's, too
                LayerStoreError, OSError   somebody owns something, and what it is cannot be read
        """
        self._check_open()
        self._check_no_dockerd()
        return reclaim.find(self.root, self._metadata, self._driver, self._records.owned)

    def reclaim(self, dry_run: bool = True) -> list[Orphan]:
        """Remove what orphans() lists.

        dry_run   True: remove nothing, say what would go

        Returns  what went, or would
        Raises   StoreInUseError            a dockerd or another store uses the root
                 ReadOnlyStoreError         (dry_run=False)
                 LayerStoreError, OSError   somebody owns something, and what it is cannot be read
        Nothing is unmounted but what is mounted in what goes.
        """
        self._check_open()
        self._check_no_dockerd()
        if self._holds.held_elsewhere(STORE):
            raise StoreInUseError(f"{StoreInUseError.text}: another store, of this or another process, has it open")
        found = self.orphans()
        if dry_run:
            return found
        self._check_writable()
        reclaim.finish(self._metadata, self._driver, self._records.owned)
        return [orphan for orphan in found if not os.path.lexists(os.path.join(self.root, orphan.path))]

    def _check_no_dockerd(self) -> None:
        database = dockerd.locked_database(self.root)
        if database:
            raise StoreInUseError(f"{StoreInUseError.text} by a dockerd: {database} is locked")

    def close(self) -> None:
        """End the use of this object, and hold nothing any more; what is mounted stays mounted. Twice is harmless."""
        self._closed = True
        self._holds.close()

    def __del__(self) -> None:
        # Not where __init__ failed. Who warns keeps a reference, which is an unfinished store's last.
        if getattr(self, "_closed", True):
            return
        held = [handle for record in self._records.layers.values() for handle in record.handles]
        held_too = f", which holds {len(held)} layers" if held else ""
        warnings.warn(f"unclosed store {self.root}{held_too}", ResourceWarning, source=self, stacklevel=2)
        self.close()

    def __enter__(self) -> Store:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def log_release_metadata(metadata: Iterable[Metadata]) -> None:
    """Log each removed layer: "Layer <chain id> cleaned up"."""
    for item in metadata:
        log.info("Layer %s cleaned up", item.chain_id, extra=item._asdict())


def release_and_log(store: Store, layer: Layer) -> None:
    """Release a layer and log what went, or why it failed; never raises."""
    try:
        log_release_metadata(store.release(layer))
    except Exception as err:
        about = {"chain_id": layer.chain_id, "error": err}
        log.error("Error releasing layer %s: %s", layer.chain_id, err, extra=about)
