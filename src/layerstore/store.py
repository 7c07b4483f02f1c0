"""Store: the life of a layer and of a mount.

Locks, in this order: the name of a writable layer; the lock of both maps; the layerdb's, against other
processes. None is held during tar work, the latter two not while files are deleted. A layer becomes visible
by one rename; a removal renames first and cleanup() finishes it.
Opening lists names only: a layer's files are read when it is first asked for, and who stands on it when it
might be deleted. Other processes may work on the same root: what they registered is found when it is asked
for, and a lock on the layerdb is held for the moment in which a layer becomes visible or goes.
Source: moby, layer/layer_store.go
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from layerstore import _files, drivers
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
from layerstore.metadata import FileMetadataStore, check_mount_name
from layerstore.rwlayer import Mount, RWLayer
from layerstore.sources import Input, feed
from layerstore.tarstream import TarStream
from layerstore.textfile import remove_directory
from layerstore.values import CreateRWLayerOpts, Descriptor, Durability, Metadata, Problem

log = logging.getLogger("layerstore")

MAX_DEPTH = 125
StrPath = str | bytes | os.PathLike[Any]
Progress = Callable[[int], None]


def _noted(err: LayerStoreError, subject: str) -> LayerStoreError:
    """Say whom it is about, beside moby's text."""
    err.add_note(str(subject))
    return err


class Store:
    """Layers and writable layers below a Docker data root. `with Store(root) as store:` closes it.

    A layer lives as long as somebody holds a reference, a child or a writable layer stands on it, or nobody
    has asked for it since the root was opened; the last release() deletes it from disk. close() releases
    nothing and unmounts nothing.
    """

    def __init__(
        self, root: StrPath, *, driver: str | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        """Open, or make, the store below root (image/<driver>/layerdb, <driver>/).

        driver    None: the one found there, else the best this host can run
        options   the driver's ("<driver>.size": the size of every writable layer, on xfs with quotas), and
                  "durability": "full" (default; what is registered survives a crash of the machine),
                  "ordered" (files are synced, as moby does) or "none"
        Raises    NotSupportedError    this host cannot mount overlays there, or has no quotas
                  InvalidOptionError   an option nobody knows
                  LayerStoreError, OSError
        References are counted in this object: layers of one root that several Stores hold should be held
        (get()) by each, since the last release() of any of them deletes.
        """
        if not os.fspath(root):
            raise ValueError("the root of a store is a directory's path, not an empty text")
        self.root: str = os.path.abspath(os.fsdecode(root))
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"options is a mapping of texts, not {type(options).__name__}")
        given = dict(options or {})
        durability = given.pop("durability", "full")
        if durability not in ("full", "ordered", "none"):
            raise InvalidOptionError(f"durability is full, ordered or none, not {durability!r}")
        self._durability = cast(Durability, durability)
        fresh = not os.path.lexists(self.root)
        try:
            name = drivers.choose(self.root, driver)
            os.makedirs(self.root, 0o711, exist_ok=True)
            self._driver = drivers.open_driver(name, self.root, given, self._durability)
        except LayerStoreError as err:
            if fresh:
                with contextlib.suppress(OSError):
                    os.rmdir(self.root)
            named = f": {driver}" if driver else ""
            raise type(err)(f"error initializing graphdriver: {err}{named}") from err
        if self._driver.in_memory:
            self._durability = "none"
        layerdb = os.path.join(self.root, "image", name, "layerdb")
        self._metadata = FileMetadataStore(layerdb, durability=self._durability)
        self._layers: dict[ChainID, Record] = {}
        self._bad: dict[str, Exception] = {}
        self._mounts: dict[str, Mount] = {}
        self._bad_mounts: dict[str, Exception] = {}
        self._lock = threading.RLock()
        self._names = NamedLocks()
        self._closed = False
        chains, mounts = self._metadata.list()
        self._unread: set[ChainID] = set(chains)
        self._unread_mounts: set[str] = set(mounts)
        self._parent_of: dict[ChainID, str] = {}  # of layers on disk that were not read whole

    # ---- reading what is on disk ----

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError()

    def _driver_of(self) -> drivers.Driver:
        self._check_open()
        return self._driver

    def _appeared(self, chain_id: str) -> bool:
        """Under the lock: is it on disk, and not read yet? Another process may have registered it."""
        if chain_id in self._unread:
            return True
        if chain_id in self._layers or chain_id in self._bad:
            return False
        with contextlib.suppress(InvalidDigestError):
            return self._metadata.has(chain_id)
        return False

    def _load(self, chain_id: str) -> Record | None:
        """Under the lock: the record of a layer, read with its ancestors; None: not there, or bad."""
        todo: list[ChainID] = []
        at = chain_id
        while at and at not in todo and self._appeared(at):
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

    def _load_current(self, chain_id: str) -> Record | None:
        """Under the lock: what _load() gives, unless another process deleted that one."""
        record = self._load(chain_id)
        if record and not self._names_layer(record):
            self._drop(record)
            record = self._load(chain_id)
        return record

    def _drop(self, record: Record) -> None:
        """Under the lock: forget a layer that another process deleted; its handles refer to nothing now."""
        log.warning("Layer %s was removed by another process", record.chain_id)
        self._layers.pop(record.chain_id, None)
        if record.parent:
            record.parent.count -= 1

    def _read(self, chain: ChainID) -> Record:
        def get(what: str, read: Callable[[str], Any]) -> Any:
            try:
                return read(chain)
            except (OSError, LayerStoreError) as err:
                raise LayerStoreError(f"failed to get {what} for {chain}: {err}") from err

        m = self._metadata
        diff, size = get("diff id", m.get_diff_id), get("size", m.get_size)
        cache = get("cache id", m.get_cache_id)
        parent_id, descriptor = get("parent", m.get_parent), get("descriptor", m.get_descriptor)
        parent = self._layers.get(parent_id) if parent_id else None
        if parent_id and parent is None:
            raise self._bad.get(parent_id) or LayerDoesNotExistError(f"its parent {parent_id} does not exist")
        if parent:
            parent.count += 1
        return Record(self, chain, diff, parent, cache, size, descriptor)

    def _load_all(self) -> None:
        """Under the lock: every layer and mount there is."""
        chains, mounts = self._metadata.list()
        self._unread.update(c for c in chains if c not in self._layers and c not in self._bad)
        self._unread_mounts.update(m for m in mounts if m not in self._mounts and m not in self._bad_mounts)
        while self._unread:
            self._load(next(iter(self._unread)))
        while self._unread_mounts:
            self._load_mount(next(iter(self._unread_mounts)))

    def _load_standing_on(self, record: Record) -> None:
        """Under the lock: read what stands on a layer that might go, also what other processes put there."""
        chains, mounts = self._metadata.list()
        for chain in chains:
            if chain in self._layers or chain in self._bad:
                continue
            if chain not in self._parent_of:
                with contextlib.suppress(OSError, LayerStoreError):
                    self._parent_of[chain] = self._metadata.get_parent(chain)
            if self._parent_of.get(chain) == record.chain_id:
                self._load(chain)
        for name in mounts:
            self._load_mount(name)

    def _load_mount(self, name: str) -> Mount | None:
        """Under the lock: the record of a writable layer; None: not there, or bad."""
        appeared = name in self._unread_mounts
        if not appeared and name not in self._mounts and name not in self._bad_mounts:
            appeared = self._metadata.has_mount(name)
        if appeared:
            self._unread_mounts.discard(name)
            try:
                mount_id, init_id = self._metadata.get_mount_id(name), self._metadata.get_init_id(name)
                parent_id = self._metadata.get_mount_parent(name)
                parent = self._load(parent_id) if parent_id else None
                if parent_id and parent is None:
                    raise self._bad.get(parent_id) or LayerDoesNotExistError(f"its parent {parent_id} does not exist")
                if parent:
                    parent.count += 1
                self._mounts[name] = Mount(self, name, mount_id, init_id, parent)
            except (OSError, LayerStoreError) as err:
                self._bad_mounts[name] = err
                log.warning("Failed to load mount %s: %s", name, err)
        return self._mounts.get(name)

    def _find_mount(self, name: str) -> Mount | None:
        check_mount_name(name)
        with self._lock:
            mount = self._mounts.get(name)
            if mount and not mount.aside and not self._names_mount(mount):
                # Another process released it.
                del self._mounts[name]
                if mount.parent:
                    mount.parent.count -= 1
            return self._load_mount(name)

    def _names_mount(self, mount: Mount) -> bool:
        """Does the record on disk still mean this writable layer, and not a later one of its name?"""
        try:
            return self._metadata.get_mount_id(mount.name) == mount.mount_id
        except FileNotFoundError:
            return False
        except (OSError, LayerStoreError):
            return True                   # damaged, which verify() tells

    def _names_layer(self, record: Record) -> bool:
        """Does the record on disk still mean these files, and not those of a layer registered anew?"""
        try:
            return self._metadata.get_cache_id(record.chain_id) == record.cache_id
        except FileNotFoundError:
            return False
        except (OSError, LayerStoreError):
            return True

    def _retain(self, chain_id: str) -> Record:
        with self._lock:
            record = self._load_current(chain_id)
            if record is None:
                raise _noted(LayerDoesNotExistError(), chain_id)
            record.count += 1
            return record

    def _handle(self, record: Record) -> Layer:
        layer = Layer(record)
        record.handles.add(layer)
        return layer

    # ---- layers ----

    def register(
        self, source: Any, parent: str = "", os: OS | None = None, *, progress: Progress | None = None
    ) -> Layer:
        """Store one layer tar and return a reference to the layer.

        source     read(n), a descriptor, a path, or a buffer; plain, gzip, zstd, bzip2, xz or lz4
        parent     ChainID below, or "" for a base layer
        os         None or "linux"
        progress   called with the bytes taken from the source, at most ten times a second

        Raises  LayerDoesNotExistError, MaxDepthExceededError, TarFormatError (.offset), BreakoutError
                (.path), NotSupportedError, OSError; then nothing is left on disk
        """
        return self.register_with_descriptor(source, parent, os, None, progress=progress)

    def register_with_descriptor(
        self, source: Any, parent: str = "", os: OS | None = None, descriptor: Descriptor | None = None, *,
        progress: Progress | None = None,
    ) -> Layer:  # fmt: skip
        """Do what register() does, and remember the blob's descriptor."""
        self._check_open()
        if os not in (None, "", "linux"):
            raise NotSupportedError(f"layers of {os} cannot be stored on this host")
        if descriptor is not None and not isinstance(descriptor, Descriptor):
            raise TypeError(f"a descriptor is a Descriptor, not {type(descriptor).__name__}")
        above = self._retain(parent) if parent else None

        def fill(apply: Any) -> None:
            with contextlib.closing(Input(source)) as given:
                feed(given, apply, progress)

        return self._register(fill, above, descriptor or Descriptor())

    def _register(self, fill: Callable[[Any], None], above: Record | None, descriptor: Descriptor) -> Layer:
        """Takes over the reference to `above`: it is the new layer's, or given back."""
        try:
            if above and above.depth >= MAX_DEPTH:
                raise MaxDepthExceededError()
            handle, is_new = self._unpack(fill, above, descriptor)
        except BaseException:
            if above:
                self._release_chain(above)
            raise
        if above and not is_new:
            self._release_chain(above)
        return handle

    def _unpack(self, fill: Callable[[Any], None], above: Record | None, descriptor: Descriptor) -> tuple[Layer, bool]:
        """Make a layer of what fill() pushes: a reference to it, and whether it was not there before."""
        cache_id = random_id()
        made: Record | None = None
        transaction = self._metadata.start_transaction()
        try:
            self._driver.create(cache_id, above.cache_id if above else "")
            record_fd = transaction.open_tar_split()
            try:
                done = self._driver.register(cache_id, above.cache_id if above else "", record_fd, fill)
                if self._durability != "none":
                    _files.fsync(record_fd)
            finally:
                _files.close(record_fd)
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
            if self._durability == "full":
                self._driver.sync()
            made = Record(self, chain, diff_id, above, cache_id, done.size, descriptor)
            handle = self._commit_or_existing(transaction, made)
        except BaseException:
            self._withdraw(made)
            self._discard(cache_id, transaction)
            raise
        is_new = handle.cache_id == cache_id
        if is_new:
            self._driver.recorded(cache_id)
        else:
            self._discard(cache_id, transaction)
        return handle, is_new

    def _commit_or_existing(self, transaction: Any, made: Record) -> Layer:
        """Make a layer visible; where it is there already, that one wins."""
        chain = made.chain_id
        with self._lock, self._metadata.exclusive():
            self._check_open()
            existing = self._load_current(chain)
            if existing is None:
                if made.parent and not self._names_layer(made.parent):
                    raise LayerDoesNotExistError(f"{LayerDoesNotExistError.text}: the parent was removed meanwhile")
                transaction.commit(chain)
                self._bad.pop(chain, None)
                existing = self._layers[chain] = made
            existing.count += 1
            return self._handle(existing)

    def _withdraw(self, made: Record | None) -> None:
        """A failure, or an interrupt, behind the rename that made a layer visible: make it invisible again."""
        if made is None:
            return
        with self._lock, self._metadata.exclusive():
            if self._layers.get(made.chain_id) is made:
                del self._layers[made.chain_id]
            try:
                visible = self._metadata.get_cache_id(made.chain_id) == made.cache_id
            except (OSError, LayerStoreError):
                visible = False
            if visible:
                aside = self._metadata.set_aside(made.chain_id)
                if aside:
                    remove_directory(aside)

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
        """Give a new reference to a layer, to be released. Raises LayerDoesNotExistError."""
        self._check_open()
        with self._lock:
            return self._handle(self._retain(chain_id))

    def map(self) -> dict[ChainID, Layer]:
        """Give all layers, bare: no references. The way to look at layers without owning them."""
        self._check_open()
        with self._lock:
            self._load_all()
            return {chain: Layer(record) for chain, record in self._layers.items()}

    def release(self, layer: Layer) -> list[Metadata]:
        """Give a reference back; what nobody needs any more is deleted.

        Returns  what was deleted, top first
        Raises   LayerNotRetainedError   this handle holds no reference
        """
        self._check_open()
        if not isinstance(layer, Layer):
            raise TypeError(f"release() takes a Layer, not {type(layer).__name__}")
        with self._lock:
            record = self._load(layer.chain_id)
            if record is None:
                return []
            if layer not in record.handles:
                raise LayerNotRetainedError()
            record.handles.remove(layer)
        return self._release_chain(record)

    def _release_chain(self, record: Record | None) -> list[Metadata]:
        """Take one reference of record; delete it with the last one, and so on downwards."""
        removed: list[Metadata] = []
        while record:
            with self._lock:
                record.count -= 1
                if record.count > 0:
                    break
                with self._metadata.exclusive():
                    self._load_standing_on(record)
                    # An interrupt may have lost a count; nothing is deleted from under what stands on it.
                    standing = sum(r.parent is record for r in self._layers.values())
                    standing += sum(m.parent is record for m in self._mounts.values())
                    record.count = max(record.count, standing + len(record.handles))
                    if record.count > 0:
                        break
                    if self._layers.get(record.chain_id) is record:
                        del self._layers[record.chain_id]
                    ours = self._names_layer(record)
                    aside = self._metadata.set_aside(record.chain_id) if ours else None
            self._driver.remove(record.cache_id)
            if aside:
                remove_directory(aside)
            removed.append(Metadata(record.chain_id, record.diff_id, record.size, record.diff_size))
            record = record.parent
        return removed

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

    # ---- writable layers ----

    def create_rw_layer(self, name: str, parent: str = "", opts: CreateRWLayerOpts | None = None) -> RWLayer:
        """Make a writable layer and return a reference to it.

        name     a name for a directory: no "/", at most 255 bytes
        parent   ChainID below, or "" for an empty tree
        opts     an init layer and the driver's options

        Raises  MountNameConflictError, LayerDoesNotExistError, NotSupportedError, ValueError (name), OSError,
                and whatever init_func raises
        """
        self._check_open()
        check_mount_name(name)
        if opts is not None and not isinstance(opts, CreateRWLayerOpts):
            raise TypeError(f"opts is a CreateRWLayerOpts, not {type(opts).__name__}")
        opts = opts or CreateRWLayerOpts()
        with self._names.hold(name):
            if self._find_mount(name):
                raise _noted(MountNameConflictError(), name)
            above = self._retain(parent) if parent else None
            try:
                mount = self._create_mount(name, above, opts)
            except BaseException:
                if above:
                    self._release_chain(above)
                raise
            handle = RWLayer(mount)
            mount.handles.add(handle)
            return handle

    def _create_mount(self, name: str, above: Record | None, opts: CreateRWLayerOpts) -> Mount:
        mount_id, init_id = random_id(), ""
        below = above.cache_id if above else ""
        made: list[str] = []
        recording = False
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
            if init_id and self._durability == "full":
                self._driver.sync()           # what init_func wrote
            with self._lock, self._metadata.exclusive():
                if above and not self._names_layer(above):
                    raise LayerDoesNotExistError(f"{LayerDoesNotExistError.text}: it was removed meanwhile")
                if self._metadata.has_mount(name):
                    if self._is_loadable(name):      # another process was quicker
                        raise _noted(MountNameConflictError(), name)
                    self._metadata.remove_mount(name)
                recording = True
                self._metadata.set_mount_id(name, mount_id)
                if init_id:
                    self._metadata.set_init_id(name, init_id)
                if above:
                    self._metadata.set_mount_parent(name, above.chain_id)
                # Under the same lock: nobody may load it from disk as a second record beside this one.
                mount = self._mounts[name] = Mount(self, name, mount_id, init_id, above)
                self._bad_mounts.pop(name, None)
            for id in made:
                self._driver.recorded(id)
            return mount
        except BaseException:
            if recording:
                with self._lock:
                    self._mounts.pop(name, None)
                with contextlib.suppress(OSError):
                    self._metadata.remove_mount(name)
            for id in reversed(made):
                with contextlib.suppress(OSError):
                    self._driver.remove(id)
            raise

    def _is_loadable(self, name: str) -> bool:
        """Under the lock: is there a record of a writable layer that can be read?"""
        try:
            self._metadata.get_mount_id(name)
            self._metadata.get_init_id(name)
            parent = self._metadata.get_mount_parent(name)
        except (OSError, LayerStoreError):
            return False
        return not parent or self._load(parent) is not None

    def get_rw_layer(self, name: str) -> RWLayer:
        """Give a new reference to a writable layer. Raises MountDoesNotExistError."""
        self._check_open()
        with self._names.hold(name):
            mount = self._find_mount(name)
            if mount is None:
                raise _noted(MountDoesNotExistError(), name)
            handle = RWLayer(mount)
            mount.handles.add(handle)
            return handle

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
            if mount.handles:
                return []
            # First the record goes, by one rename: from then on its files are nobody's, however this ends.
            begun = False
            try:
                with self._metadata.exclusive():
                    if not mount.aside and self._names_mount(mount):
                        mount.aside = self._metadata.set_mount_aside(mount.name)
                begun = True
                self._driver.remove(mount.mount_id)
                if mount.init_id:
                    self._driver.remove(mount.init_id)
            except BaseException as err:
                log.error("Error removing mounted layer %s: %s", mount.name, err)
                mount.handles.add(layer)              # so that it can be tried again
                if mount.aside and not begun:
                    self._metadata.put_mount_back(mount.name, mount.aside)
                    mount.aside = None
                raise
            if mount.aside:
                remove_directory(mount.aside)
            with self._lock:
                self._mounts.pop(mount.name, None)
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
            with self._lock:
                above.count += 1

        def fill(apply: Any) -> None:
            with self._driver.diff(mount.mount_id, mount.below) as stream:
                stream.pump_into(apply)

        return self._register(fill, above, Descriptor())

    def mounts(self) -> list[str]:
        """Name the writable layers."""
        self._check_open()
        with self._lock:
            self._load_all()
            return sorted(self._mounts)

    # ---- the store itself ----

    def _owned(self) -> set[str]:
        """Driver ids that a layer or mount on disk names, loaded or not.

        Raises  LayerStoreError, OSError   somebody owns something, and what it is cannot be read
        """
        owned: set[str] = set()
        chains, mounts = self._metadata.list()
        for names, reads in (
            (chains, (self._metadata.get_cache_id,)),
            (mounts, (self._metadata.get_mount_id, self._metadata.get_init_id)),
        ):
            for name in names:
                for read in reads:
                    with contextlib.suppress(FileNotFoundError):
                        owned.add(read(name))
        return owned - {""}

    def cleanup(self) -> None:
        """Finish what was interrupted, and reclaim what no layer and no mount of this root owns.

        As in moby it also unmounts whatever is mounted below the driver's directory: call it when no
        writable layer is in use.
        Raises  OSError   something is still mounted below the driver's home
        """
        self._check_open()
        with self._lock:
            for orphan in self._metadata.get_orphans():
                try:
                    if orphan.cache_id not in self._owned():
                        self._driver.remove(orphan.cache_id)
                    self._metadata.remove_orphan(orphan.chain_id, orphan.cache_id)
                except (OSError, LayerStoreError) as err:
                    log.error("Failed to remove orphaned layer %s: %s", orphan.chain_id, err)
            self._metadata.remove_nameless_orphans()
            self._metadata.abandoned_transactions(remove=True)
        try:
            self._driver.reclaim(self._owned)
        except (OSError, LayerStoreError) as err:
            # Better to leave too much than to take what an unreadable file may name.
            log.error("Not everything was reclaimed: %s", err)
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
        with self._lock:
            self._load_all()
            if chain_id is not None and chain_id not in self._layers and chain_id not in self._bad:
                raise _noted(LayerDoesNotExistError(), chain_id)
            chosen = [r for c, r in self._layers.items() if chain_id in (None, c)]
            found = [Problem("metadata", str(c), "", str(e)) for c, e in self._bad.items() if chain_id in (None, c)]
            bad_mounts, mounts = list(self._bad_mounts.items()), list(self._mounts.values())
            kept = [(record, record.count) for record in chosen]
            for record in chosen:            # none goes while it is looked at
                record.count += 1
        try:
            for record in chosen:
                found += self._verify_layer(record)
        finally:
            for record, count in kept:
                self._let_go(record, count)
        if chain_id is None:
            found += [Problem("metadata", name, "", str(err)) for name, err in bad_mounts]
            for mount in mounts:
                found += self._verify_mount(mount)
            with contextlib.suppress(OSError, LayerStoreError):  # whose file cannot be read is told above
                found += [Problem("orphan", name, "", "nobody owns it") for name in self._driver.orphans(self._owned)]
            found += [Problem("orphan", name, "", "a deletion was interrupted") for name in self._metadata.removing()]
        return found

    def _let_go(self, record: Record, count: int) -> None:
        """Take a reference of our own back. A layer nobody had (count 0) stays, as it did before."""
        with self._lock:
            if count == 0 or record.count > 1:
                record.count -= 1
                return
        self._release_chain(record)

    def _verify_files(self, subject: str, expected: Iterable[tuple[str, Callable[[str], Any], Any]]) -> list[Problem]:
        """Are the small files on disk still what was loaded from them?"""
        found = []
        for what, read, value in expected:
            try:
                now = read(subject)
            except FileNotFoundError as err:
                found.append(Problem("missing", subject, "", f"the {what} is gone: {err}"))
            except (OSError, LayerStoreError) as err:
                found.append(Problem("metadata", subject, "", f"the {what} cannot be read: {err}"))
            else:
                if now != value:
                    found.append(Problem("metadata", subject, "", f"the {what} on disk is {now!r}, not {value!r}"))
        return found

    def _verify_mount(self, mount: Mount) -> list[Problem]:
        parent = mount.parent.chain_id if mount.parent else ""
        m = self._metadata
        found = self._verify_files(mount.name, [
            ("mount id", m.get_mount_id, mount.mount_id), ("init id", m.get_init_id, mount.init_id),
            ("parent", m.get_mount_parent, parent),
        ])  # fmt: skip
        below = mount.parent.cache_id if mount.parent else ""
        for id, on in ((mount.mount_id, mount.below), (mount.init_id, below)):
            if id:
                found += [Problem(kind, mount.name, "", text) for kind, text in self._driver.problems(id, on)]
        return found

    def _verify_layer(self, record: Record) -> list[Problem]:
        subject = str(record.chain_id)
        parent = record.parent.chain_id if record.parent else ""
        m = self._metadata
        found = self._verify_files(subject, [
            ("diff id", m.get_diff_id, record.diff_id), ("size", m.get_size, record.diff_size),
            ("cache id", m.get_cache_id, record.cache_id), ("parent", m.get_parent, parent),
            ("descriptor", m.get_descriptor, record.descriptor),
        ])  # fmt: skip
        if chain_on(parent, record.diff_id) != record.chain_id:
            found.append(Problem("metadata", subject, "", "the ChainID does not follow from the parent and the DiffID"))
        below = record.parent.cache_id if record.parent else ""
        found += [Problem(kind, subject, "", text) for kind, text in self._driver.problems(record.cache_id, below)]
        try:
            fd = self._metadata.open_tar_split(record.chain_id)
        except FileNotFoundError as err:
            return [*found, Problem("missing", subject, "", f"the tar-split record is gone: {err}")]
        except OSError as err:
            return [*found, Problem("metadata", subject, "", f"the tar-split record cannot be opened: {err}")]
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
