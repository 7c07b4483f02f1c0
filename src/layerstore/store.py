"""Store: the life of a layer and of a mount.

Locks, in this order: the name of a writable layer; the mount map; the layer map. None is held during
tar work. A layer becomes visible by one rename; a removal renames first and cleanup() finishes it.
Opening lists names only: a layer's files are read when it is first asked for, and the number of its
children on disk when it might be deleted.
Source: moby, layer/layer_store.go
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from layerstore import drivers
from layerstore.errors import (
    InvalidDigestError,
    InvalidOptionError,
    LayerDoesNotExistError,
    LayerNotRetainedError,
    LayerStoreError,
    MaxDepthExceededError,
    MountDoesNotExistError,
    MountNameConflictError,
    NotSupportedError,
    StoreClosedError,
)
from layerstore.ids import OS, ChainID, chain_on, diff_id_of, random_id
from layerstore.layer import Layer, Record
from layerstore.locks import NamedLocks
from layerstore.metadata import Durability, FileMetadataStore, check_mount_name
from layerstore.rwlayer import Mount, RWLayer
from layerstore.sources import Input, feed
from layerstore.tarstream import TarStream
from layerstore.values import CreateRWLayerOpts, Descriptor, Metadata, Problem

log = logging.getLogger("layerstore")

MAX_DEPTH = 125
StrPath = str | bytes | os.PathLike[Any]
Progress = Callable[[int], None]


class Store:
    """Layers and writable layers below a Docker data root. `with Store(root) as store:` closes it."""

    def __init__(self, root: StrPath, *, driver: str | None = None, options: Mapping[str, str] | None = None) -> None:
        """Open, or make, the store below root (image/<driver>/layerdb, <driver>/).

        driver    None: the one found there, else the best this host can run
        options   the driver's, and "durability": "full" (default), "ordered" or "none"
        Raises    LayerStoreError, NotSupportedError, OSError
        """
        self.root: str = os.path.abspath(os.fsdecode(root))
        given = dict(options or {})
        durability = given.pop("durability", "full")
        if durability not in ("full", "ordered", "none"):
            raise InvalidOptionError(f"durability is full, ordered or none, not {durability!r}")
        self._durability = cast(Durability, durability)
        name = drivers.choose(self.root, driver)
        os.makedirs(self.root, 0o711, exist_ok=True)
        self._driver = drivers.open_driver(name, self.root, given)
        self._metadata = FileMetadataStore(os.path.join(self.root, "image", name, "layerdb"), durability=self._durability)
        self._layers: dict[ChainID, Record] = {}
        self._bad: dict[str, Exception] = {}
        self._mounts: dict[str, Mount] = {}
        self._bad_mounts: dict[str, Exception] = {}
        self._layer_lock = threading.RLock()
        self._mount_lock = threading.Lock()
        self._names = NamedLocks()
        self._closed = False
        chains, mounts = self._metadata.list()
        self._unread: set[ChainID] = set(chains)
        self._unread_mounts: set[str] = set(mounts)

    # ---- reading what is on disk ----

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError()

    def _driver_of(self) -> drivers.Driver:
        self._check_open()
        return self._driver

    def _load(self, chain_id: str) -> Record | None:
        """Under the layer lock: the record of a layer, read with its ancestors; None: not there, or bad."""
        todo: list[ChainID] = []
        at = chain_id
        while at and at not in self._layers and at in self._unread and at not in todo:
            todo.append(ChainID(at))
            try:
                at = self._metadata.get_parent(at)
            except (OSError, LayerStoreError):
                at = ""
        for chain in reversed(todo):
            self._unread.discard(chain)
            try:
                self._layers[chain] = self._read(chain)
            except (OSError, LayerStoreError) as err:
                self._bad[chain] = err
                log.warning("Failed to load layer %s: %s", chain, err)
        return self._layers.get(cast(ChainID, chain_id))

    def _read(self, chain: ChainID) -> Record:
        def get(what: str, read: Callable[[str], Any]) -> Any:
            try:
                return read(chain)
            except (OSError, LayerStoreError) as err:
                raise LayerStoreError(f"failed to get {what} for {chain}: {err}") from err

        m = self._metadata
        diff, size, cache = get("diff id", m.get_diff_id), get("size", m.get_size), get("cache id", m.get_cache_id)
        parent_id, descriptor = get("parent", m.get_parent), get("descriptor", m.get_descriptor)
        parent = self._layers.get(parent_id) if parent_id else None
        if parent_id and parent is None:
            raise LayerStoreError(f"the parent {parent_id} of {chain} cannot be loaded")
        if parent:
            parent.count += 1
        return Record(self, chain, diff, parent, cache, size, descriptor)

    def _load_all(self) -> None:
        """Under the layer lock: every layer and mount, so that all counts are right."""
        while self._unread:
            self._load(next(iter(self._unread)))
        while self._unread_mounts:
            self._load_mount(next(iter(self._unread_mounts)))

    def _load_mount(self, name: str) -> Mount | None:
        """Under the layer lock."""
        if name in self._unread_mounts:
            self._unread_mounts.discard(name)
            try:
                mount_id, init_id = self._metadata.get_mount_id(name), self._metadata.get_init_id(name)
                parent_id = self._metadata.get_mount_parent(name)
                parent = self._load(parent_id) if parent_id else None
                if parent_id and parent is None:
                    raise LayerStoreError(f"its parent {parent_id} cannot be loaded")
                if parent:
                    parent.count += 1
                self._mounts[name] = Mount(self, name, mount_id, init_id, parent)
            except (OSError, LayerStoreError) as err:
                self._bad_mounts[name] = err
                log.warning("Failed to load mount %s: %s", name, err)
        return self._mounts.get(name)

    def _find_mount(self, name: str) -> Mount | None:
        with self._mount_lock, self._layer_lock:
            return self._load_mount(name)

    def _retain(self, chain_id: str) -> Record:
        with self._layer_lock:
            record = self._load(chain_id)
            if record is None:
                raise LayerDoesNotExistError()
            record.count += 1
            return record

    def _handle(self, record: Record) -> Layer:
        layer = Layer(record)
        record.handles.add(layer)
        return layer

    # ---- layers ----

    def register(self, source: Any, parent: str = "", os: OS | None = None, *, progress: Progress | None = None) -> Layer:
        """Store one layer tar and return a reference to the layer.

        source     read(n), a descriptor, a path, or a buffer; plain, gzip, zstd, bzip2, xz or lz4
        parent     ChainID below, or "" for a base layer
        progress   called with the bytes taken, at most ten times a second

        Raises  LayerDoesNotExistError, MaxDepthExceededError, TarFormatError (.offset), BreakoutError
                (.path), NotSupportedError, OSError; then nothing is left on disk
        """
        return self.register_with_descriptor(source, parent, os, None, progress=progress)

    def register_with_descriptor(self, source: Any, parent: str = "", os: OS | None = None,
                                 descriptor: Descriptor | None = None, *, progress: Progress | None = None) -> Layer:
        """Do what register() does, and remember the blob's descriptor."""
        self._check_open()
        if os not in (None, "", "linux"):
            raise NotSupportedError(f"layers of {os} cannot be stored on this host")
        above = self._retain(parent) if parent else None
        try:
            if above and above.depth >= MAX_DEPTH:
                raise MaxDepthExceededError()
            given = Input(source)
            try:
                return self._register(lambda apply: feed(given, apply, progress), above, descriptor or Descriptor())
            finally:
                given.close()
        except BaseException:
            if above:
                with self._layer_lock:
                    self._release_chain(above)
            raise

    def _register(self, fill: Callable[[Any], None], above: Record | None, descriptor: Descriptor) -> Layer:
        """The reference to `above` is the child's when this succeeds."""
        cache_id = random_id()
        transaction = self._metadata.start_transaction()
        try:
            self._driver.create(cache_id, above.cache_id if above else "")
            record_fd = transaction.open_tar_split()
            try:
                done = self._driver.register(cache_id, above.cache_id if above else "", record_fd, fill)
                if self._durability != "none":
                    os.fsync(record_fd)
            finally:
                os.close(record_fd)
            diff_id = diff_id_of(done.diff_id)
            chain = chain_on(above.chain_id if above else "", diff_id)
            transaction.set_diff_id(diff_id)
            transaction.set_size(done.size)
            transaction.set_cache_id(cache_id)
            if descriptor.digest:
                transaction.set_descriptor(descriptor)
            if above:
                transaction.set_parent(above.chain_id)
            if self._durability == "full":
                self._driver.sync()
            with self._layer_lock:
                self._check_open()
                existing = self._load(chain)
                if existing is None:
                    self._driver.settle(cache_id, above.cache_id if above else "")
                    transaction.commit(chain)
                    self._bad.pop(chain, None)
                    made = Record(self, chain, diff_id, above, cache_id, done.size, descriptor)
                    made.count = 1
                    self._layers[chain] = made
                    return self._handle(made)
                existing.count += 1
                handle = self._handle(existing)
        except BaseException:
            self._discard(cache_id, transaction)
            raise
        self._discard(cache_id, transaction)
        if above:
            with self._layer_lock:
                self._release_chain(above)
        return handle

    def _discard(self, cache_id: str, transaction: Any) -> None:
        try:
            self._driver.remove(cache_id)
        except Exception as err:
            log.error("Error cleaning up cache layer %s: %s", cache_id, err)
        try:
            transaction.cancel()
        except OSError as err:
            log.error("Error canceling metadata transaction %s: %s", transaction, err)

    def get(self, chain_id: str) -> Layer:
        """Give a new reference to a layer. Raises LayerDoesNotExistError."""
        self._check_open()
        with self._layer_lock:
            return self._handle(self._retain(chain_id))

    def map(self) -> dict[ChainID, Layer]:
        """Give all layers, bare: no references."""
        self._check_open()
        with self._layer_lock:
            self._load_all()
            return {chain: Layer(record) for chain, record in self._layers.items()}

    def release(self, layer: Layer) -> list[Metadata]:
        """Give a reference back; what nobody needs any more is deleted.

        Returns  what was deleted, top first
        Raises   LayerNotRetainedError   this handle holds no reference
        """
        self._check_open()
        with self._layer_lock:
            record = self._load(layer.chain_id)
            if record is None:
                return []
            if layer not in record.handles:
                raise LayerNotRetainedError()
            record.handles.remove(layer)
            return self._release_chain(record)

    def _release_chain(self, record: Record | None) -> list[Metadata]:
        removed: list[Metadata] = []
        while record:
            if record.count == 1:
                self._load_all()          # children on disk that nobody has asked for yet
            record.count -= 1
            if record.count > 0:
                break
            del self._layers[record.chain_id]
            aside = self._metadata.set_aside(record.chain_id)
            self._driver.remove(record.cache_id)
            if aside:
                shutil.rmtree(aside)
            removed.append(Metadata(record.chain_id, record.diff_id, record.size, record.diff_size))
            record = record.parent
        return removed

    def _tar_stream(self, record: Record) -> TarStream:
        self._check_open()
        fd = self._metadata.open_tar_split(record.chain_id)
        try:
            return self._driver.stored_tar(record.cache_id, fd, record.diff_id.raw)
        finally:
            os.close(fd)

    def _tar_stream_from(self, record: Record, parent: str) -> TarStream:
        self._check_open()
        above = record.parent
        while parent and above and above.chain_id != parent:
            above = above.parent
        if parent and above is None:
            raise LayerStoreError(f"layer ID '{parent}' is not a parent of the specified layer: cannot provide diff to non-parent")
        return self._driver.diff(record.cache_id, above.cache_id if parent and above else "", read_only=True)

    # ---- writable layers ----

    def create_rw_layer(self, name: str, parent: str = "", opts: CreateRWLayerOpts | None = None) -> RWLayer:
        """Make a writable layer and return a reference to it.

        Raises  MountNameConflictError, LayerDoesNotExistError, NotSupportedError, ValueError (name), OSError,
                and whatever init_func raises
        """
        self._check_open()
        check_mount_name(name)
        opts = opts or CreateRWLayerOpts()
        with self._names.hold(name):
            if self._find_mount(name):
                raise MountNameConflictError()
            above = self._retain(parent) if parent else None
            try:
                mount = self._create_mount(name, above, opts)
            except BaseException:
                if above:
                    with self._layer_lock:
                        self._release_chain(above)
                raise
            handle = RWLayer(mount)
            mount.handles.add(handle)
            with self._mount_lock:
                self._mounts[name] = mount
                self._bad_mounts.pop(name, None)
            return handle

    def _create_mount(self, name: str, above: Record | None, opts: CreateRWLayerOpts) -> Mount:
        mount_id, init_id = random_id(), ""
        below = above.cache_id if above else ""
        made: list[str] = []
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
            self._metadata.set_mount_id(name, mount_id)
            if init_id:
                self._metadata.set_init_id(name, init_id)
            if above:
                self._metadata.set_mount_parent(name, above.chain_id)
            if init_id:
                self._driver.settle(init_id, below)
            self._driver.settle(mount_id, init_id or below)
            if self._durability == "full":
                self._driver.sync()
        except BaseException:
            with contextlib.suppress(OSError):
                self._metadata.remove_mount(name)
            for id in reversed(made):
                with contextlib.suppress(OSError):
                    self._driver.remove(id)
            raise
        return Mount(self, name, mount_id, init_id, above)

    def get_rw_layer(self, name: str) -> RWLayer:
        """Give a new reference to a writable layer. Raises MountDoesNotExistError."""
        self._check_open()
        with self._names.hold(name):
            mount = self._find_mount(name)
            if mount is None:
                raise MountDoesNotExistError()
            handle = RWLayer(mount)
            mount.handles.add(handle)
            return handle

    def get_mount_id(self, name: str) -> str:
        """Give the driver's id of a writable layer. Raises MountDoesNotExistError."""
        self._check_open()
        mount = self._find_mount(name)
        if mount is None:
            raise MountDoesNotExistError()
        return mount.mount_id

    def release_rw_layer(self, layer: RWLayer) -> list[Metadata]:
        """Give a reference back; with the last one the writable layer is deleted.

        Returns  the read-only layers that went with it
        Raises   LayerNotRetainedError   this handle holds no reference
        """
        self._check_open()
        with self._names.hold(layer.name):
            mount = self._find_mount(layer.name)
            if mount is None:
                return []
            if layer not in mount.handles:
                raise LayerNotRetainedError()
            mount.handles.remove(layer)
            if mount.handles:
                return []
            try:
                self._driver.remove(mount.mount_id)
                if mount.init_id:
                    self._driver.remove(mount.init_id)
                self._metadata.remove_mount(mount.name)
            except BaseException as err:
                log.error("Error removing mounted layer %s: %s", mount.name, err)
                mount.handles.add(layer)
                raise
            with self._mount_lock:
                self._mounts.pop(mount.name, None)
            with self._layer_lock:
                return self._release_chain(mount.parent)

    def _apply_diff(self, mount: Mount, source: Any) -> int:
        self._check_open()
        given = Input(source)
        try:
            return self._driver.apply_diff(mount.mount_id, mount.below, lambda apply: feed(given, apply))
        finally:
            given.close()

    def _commit(self, mount: Mount) -> Layer:
        self._check_open()
        above = mount.parent
        if above:
            with self._layer_lock:
                above.count += 1
        try:
            if above and above.depth >= MAX_DEPTH:
                raise MaxDepthExceededError()
            with self._driver.diff(mount.mount_id, mount.below) as stream:

                def fill(apply: Any) -> None:
                    while not apply.pump_source(stream._source):
                        pass

                return self._register(fill, above, Descriptor())
        except BaseException:
            if above:
                with self._layer_lock:
                    self._release_chain(above)
            raise

    def mounts(self) -> list[str]:
        """Name the writable layers."""
        self._check_open()
        with self._mount_lock, self._layer_lock:
            self._load_all()
            return sorted(self._mounts)

    # ---- the store itself ----

    def _owned(self) -> set[str]:
        """Driver ids that a layer or mount on disk names, readable or not."""
        owned: set[str] = set()
        chains, mounts = self._metadata.list()
        for chain in chains:
            with contextlib.suppress(OSError, LayerStoreError):
                owned.add(self._metadata.get_cache_id(chain))
        for name in mounts:
            with contextlib.suppress(OSError, LayerStoreError):
                owned.add(self._metadata.get_mount_id(name))
                owned.add(self._metadata.get_init_id(name))
        return owned - {""}

    def cleanup(self) -> None:
        """Finish what was interrupted, and reclaim what no layer and no mount of this root owns.

        Raises  OSError   something is still mounted below the driver's home
        """
        self._check_open()
        with self._layer_lock:
            for orphan in self._metadata.get_orphans():
                try:
                    self._driver.remove(orphan.cache_id)
                    self._metadata.remove_orphan(orphan.chain_id, orphan.cache_id)
                except (OSError, LayerStoreError) as err:
                    log.error("Failed to remove orphaned layer %s: %s", orphan.chain_id, err)
            self._metadata.remove_nameless_orphans()
            self._metadata.abandoned_transactions(remove=True)
            running = os.listdir(os.path.join(self._metadata.root, "tmp")) if os.path.isdir(os.path.join(self._metadata.root, "tmp")) else []
            if not running:               # a register that runs owns a directory nobody names yet
                self._driver.reclaim(self._owned())
        self._driver.cleanup()

    def driver_status(self) -> list[tuple[str, str]]:
        """Give what the driver says of itself, in order."""
        return self._driver_of().status()

    def driver_name(self) -> str:
        """Name the driver."""
        return self._driver_of().name

    def verify(self, chain_id: str | None = None) -> list[Problem]:
        """Compare what is stored with what was registered; [] when all is well.

        Raises  LayerDoesNotExistError   chain_id is not in the store
        """
        self._check_open()
        with self._mount_lock, self._layer_lock:
            self._load_all()
            if chain_id is not None and chain_id not in self._layers and chain_id not in self._bad:
                raise LayerDoesNotExistError()
            chosen = [r for c, r in self._layers.items() if chain_id in (None, c)]
            found = [Problem("metadata", str(c), "", str(e)) for c, e in self._bad.items() if chain_id in (None, c)]
        for record in chosen:
            found += self._verify_layer(record)
        if chain_id is None:
            found += [Problem("metadata", name, "", str(err)) for name, err in self._bad_mounts.items()]
            for mount in self._mounts.values():
                found += [Problem(kind, mount.name, "", text) for kind, text in self._driver.problems(mount.mount_id, mount.below)]
            found += [Problem("orphan", name, "", "nobody owns it") for name in self._driver.orphans(self._owned())]
            found += [Problem("orphan", name, "", "a deletion was interrupted") for name in self._metadata.removing()]
        return found

    def _verify_layer(self, record: Record) -> list[Problem]:
        subject = str(record.chain_id)
        found = [Problem(kind, subject, "", text) for kind, text in
                 self._driver.problems(record.cache_id, record.parent.cache_id if record.parent else "")]
        try:
            if chain_on(record.parent.chain_id if record.parent else "", record.diff_id) != record.chain_id:
                found.append(Problem("metadata", subject, "", "the ChainID does not follow from the parent and the DiffID"))
            fd = self._metadata.open_tar_split(record.chain_id)
        except (OSError, InvalidDigestError) as err:
            return [*found, Problem("missing", subject, "", f"the tar-split record cannot be opened: {err}")]
        try:
            found += [Problem(kind, subject, path, text) for kind, path, text in
                      self._driver.check(record.cache_id, fd, record.diff_id.raw)]
        except FileNotFoundError:
            pass                          # told above: the whole directory is gone
        except (OSError, LayerStoreError) as err:
            found.append(Problem("metadata", subject, "", str(err)))
        finally:
            os.close(fd)
        return found

    def close(self) -> None:
        """End the use of this object; what is mounted stays mounted. Twice is harmless."""
        self._closed = True

    def __enter__(self) -> Store:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def log_release_metadata(metadata: Iterable[Metadata]) -> None:
    """Log each removed layer: "Layer <chain id> cleaned up"."""
    for item in metadata:
        log.info("Layer %s cleaned up", item.chain_id)


def release_and_log(store: Store, layer: Layer) -> None:
    """Release a layer and log what went, or why it failed; never raises."""
    try:
        log_release_metadata(store.release(layer))
    except Exception as err:
        log.error("Error releasing layer %s: %s", layer.chain_id, err)
