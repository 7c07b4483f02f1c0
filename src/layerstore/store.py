"""Store: the public face, and what its parts share.

What happens is in the rooms around it: records.py (what there is), references.py (who keeps it), registration.py (how a
layer is made), writable.py (writable layers), durability.py (what is on the disk), verify.py, repair.py, reclaim.py.
Locks, in this order: the name of a writable layer; the lock of both maps; the layerdb's, against other
processes. None is held during tar work, the latter two not while files are deleted or a disk is waited for. A layer
becomes visible by one rename; a removal renames first and cleanup() finishes it.
Other processes may work on the same root: what they registered is found when it is asked for, what they hold
(holds.py) is not deleted, and a lock on the layerdb is held for the moment in which a layer becomes visible or goes.
Source: moby, layer/layer_store.go
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from layerstore import drivers
from layerstore.disk import dockerd
from layerstore.disk.holds import STORE, Holds
from layerstore.disk.locks import LOCK_TIMEOUT, parse_lock_timeout
from layerstore.engine import reclaim
from layerstore.engine.contents import Contents
from layerstore.engine.durability import Syncing, parse_durability
from layerstore.engine.intake import Registration
from layerstore.engine.mending import Mending
from layerstore.engine.records import Records
from layerstore.engine.references import References
from layerstore.engine.verify import Verifier
from layerstore.engine.writable import WritableLayers
from layerstore.errors import (
    InvalidOptionError,
    LayerDoesNotExistError,
    LayerStoreError,
    NotSupportedError,
    ReadOnlyStoreError,
    StoreClosedError,
    StoreInUseError,
)
from layerstore.ids import OS, ChainID, is_digest
from layerstore.layer import Layer, Top, parent_id
from layerstore.layerdb.imagedb import ImageDB
from layerstore.layerdb.keeping import Keeping
from layerstore.layerdb.store import FileMetadataStore
from layerstore.layerdb.transaction import check_mount_name
from layerstore.limits import Limits
from layerstore.rwlayer import Mount, RWLayer
from layerstore.streams.sources import Input, feed
from layerstore.values import (
    CreateRWLayerOpts,
    Descriptor,
    Durability,
    Metadata,
    Orphan,
    Problem,
    Progress,
)

log = logging.getLogger("layerstore")

StrPath = str | bytes | os.PathLike[Any]
# What a layer can stand on: a ChainID, a Layer, an Image.
Parent = str | Layer | Top


class Store:
    """Layers and writable layers below a Docker data root. `with Store(root) as store:` closes it.

    A layer lives as long as somebody holds a reference, a child, a writable layer or an image stands on it, or
    nobody has asked for it since the root was opened; the last release() deletes it from disk. close() gives back
    what was held, deletes nothing and unmounts nothing.
    """

    root: str

    def __init__(
        self, root: StrPath, *, driver: str | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        """Open, or make, the store below root (image/<driver>/layerdb, <driver>/).

        driver    None: the one found there, else the best this host can run
        options   the driver's ("<driver>.size": the size of every writable layer, on xfs with quotas), and
                  "durability": "full" (default; what a call has returned survives a crash of the machine),
                  "ordered" (the store's own small files are synced, as moby does) or "none";
                  "lock_timeout": "60" (seconds that a call waits for the layerdb or the images while another process
                  has them locked, then StoreInUseError names it; "0": for ever);
                  "read_only": "true" or "false"; true by itself while a dockerd uses the root;
                  limits for tars one cannot trust ("max_size": "10G"; all are fields of layerstore.limits.Limits)
        Raises    NotSupportedError    this host cannot mount overlays there, or has no quotas
                  InvalidOptionError   an option nobody knows
                  LayerStoreError, OSError
        Several Stores, of this process and of others, may have one root open: what any of them holds none deletes.
        """
        if not os.fspath(root):
            raise ValueError("the root of a store is a directory's path, not an empty text")
        self.root = os.path.abspath(os.fsdecode(root))
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"options is a mapping of texts, not {type(options).__name__}")
        given = dict(options or {})
        durability = parse_durability(given.pop("durability", "full"))
        self._read_only = self._why_read_only(given.pop("read_only", "false"))
        lock_timeout = parse_lock_timeout(given.pop("lock_timeout", str(LOCK_TIMEOUT)))
        limits = Limits.take(given)
        self._max_window = limits.max_window
        fresh = not os.path.lexists(self.root)
        try:
            name = drivers.choose(self.root, driver)
            layerdb = os.path.join(self.root, "image", name, "layerdb")
            self._holds = Holds(layerdb)
            if self._read_only and not os.path.isdir(os.path.join(self.root, name)):
                raise LayerStoreError(f"there is no store below {self.root} to read", path=self.root)
            if not self._read_only:
                os.makedirs(self.root, 0o711, exist_ok=True)
                if os.statvfs(self.root).f_flag & os.ST_RDONLY:
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), self.root)
            self._driver = drivers.open_driver(
                name, self.root, given, self._holds, read_only=bool(self._read_only), limits=limits,
                lock_timeout=lock_timeout,
            )
        except (LayerStoreError, OSError) as err:
            if fresh:
                with contextlib.suppress(OSError):
                    os.rmdir(self.root)
            if isinstance(err, OSError):
                if err.errno == errno.EROFS:
                    why = f"the file system of {self.root} is read-only, mount it for writing, or use read_only"
                    raise ReadOnlyStoreError(f"{ReadOnlyStoreError.text}: {why}", path=self.root) from err
                raise
            named = f": {driver}" if driver else ""
            raise type(err)(f"error initializing graphdriver: {err}{named}", path=err.path) from err
        # What outlives no crash is not synced, by the layerdb alone either.
        level: Durability = "none" if self._driver.in_memory else durability
        m = self._metadata = FileMetadataStore(
            layerdb, durability=level, make=not self._read_only, lock_timeout=lock_timeout
        )
        if not self._read_only:
            self._holds.open()
        self._images = ImageDB(os.path.dirname(layerdb), level, lock_timeout)
        self._records = records = Records(self, m)
        self._lock = records.lock
        self._syncing = Syncing(m, self._driver, os.path.join(self.root, name), level)
        keeping = Keeping(m, level)
        self._references = References(
            self.root, m, self._driver, records, self._holds, self._images, keeping, read_only=bool(self._read_only)
        )
        parts = (m, self._driver, records, self._holds, self._references)
        self._registration = Registration(*parts, keeping, self._syncing, self._check_writable)
        self._contents = Contents(m, self._driver, records, self._check_open)
        self._writable = WritableLayers(*parts, self._syncing, self._registration, self._check_writable)
        self._mending = Mending(
            m, self._driver, records, self._references, self._syncing, self._registration, self._writable, self.verify
        )
        self._closed = False

    def __repr__(self) -> str:
        read_only = ", read-only" if self._read_only else ""
        return f"<Store {self.root} ({self._driver.name}{read_only}){', closed' if self._closed else ''}>"

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

    def _check_open(self, used: str = "") -> None:
        """used   a ChainID that this store holds: a forked child holds it for itself from now on"""
        if self._closed:
            raise StoreClosedError(path=self.root)
        self._holds.take_over(used)

    def _check_writable(self) -> None:
        self._check_open()
        if self._read_only:
            raise ReadOnlyStoreError(f"{ReadOnlyStoreError.text}: {self._read_only}", path=self.root)
        database = dockerd.locked_database(self.root)
        if database:
            why = f"{ReadOnlyStoreError.text}: a dockerd was started on {self.root} meanwhile, {database} is locked"
            raise ReadOnlyStoreError(why, path=self.root)

    def _driver_of(self) -> drivers.Driver:
        self._check_open()
        return self._driver

    # ---- layers ----

    def register(
        self, source: Any, parent: Parent = "", os: OS | None = None, *, progress: Progress | None = None,
        durability: str | None = None,
    ) -> Layer:  # fmt: skip
        """Store one layer tar and return a reference to the layer.

        source     a path, a descriptor, a buffer, an object with read(n) (a TarStream), or an iterable of bytes-like
                   blocks, which are pulled one by one; plain, gzip, zstd, bzip2, xz or lz4. One that has no bytes at
                   all raises TarFormatError: the empty layer is 1,024 zero bytes
        parent     what it stands on: a ChainID, a Layer (of any store), an Image; "" for a base layer
        os         None or "linux"
        progress   called with the bytes taken from the source (a Done: .total is of how many, where that is
                   known), at most ten times a second; what it raises ends the call
        durability as the store's option of that name; None: the store's

        Raises  LayerDoesNotExistError, MaxDepthExceededError, TarFormatError (.offset), LimitExceededError
                (.option), BreakoutError (.path), NotSupportedError, OSError; then nothing is left on disk
        """
        return self.register_with_descriptor(source, parent, os, None, progress=progress, durability=durability)

    def register_with_descriptor(
        self, source: Any, parent: Parent = "", os: OS | None = None, descriptor: Descriptor | None = None, *,
        progress: Progress | None = None, durability: str | None = None,
    ) -> Layer:  # fmt: skip
        """Do what register() does, and remember the blob's descriptor."""
        self._check_writable()
        if os not in (None, "", "linux"):
            raise NotSupportedError(f"layers of {os} cannot be stored on this host")
        if descriptor is not None and not isinstance(descriptor, Descriptor):
            raise TypeError(f"a descriptor is a Descriptor, not {type(descriptor).__name__}")
        level = self._syncing.level(durability)
        on = parent_id(parent)
        above = self._references.use(on) if on else None

        def fill(apply: Any) -> None:
            with contextlib.closing(Input(source)) as given:
                feed(given, apply, progress)

        return self._registration.register(fill, above, descriptor or Descriptor(), level)

    def get(self, chain_id: str) -> Layer:
        """Give a new reference to a layer, to be released. Raises LayerDoesNotExistError."""
        self._check_open()
        return self._references.get(chain_id)

    def _size_of(self, chain_id: str) -> int:
        """Bytes of a layer and all below it; 0 where it cannot be read."""
        with self._lock:
            record = self._records.load_current(chain_id)
            return record.size if record else 0

    def _mounts_on(self, chain_id: str) -> list[str]:
        """Name the writable layers that stand right on a layer."""
        with self._lock:
            self._records.load_mounts()
            mounts = self._records.mounts.values()
            return sorted(mount.name for mount in mounts if mount.parent and mount.parent.chain_id == chain_id)

    def map(self) -> dict[ChainID, Layer]:
        """Give all layers, bare: no references. The way to look at layers without owning them."""
        self._check_open()
        with self._lock:
            self._records.load_all()
            return {chain: Layer(record) for chain, record in self._records.layers.items()}

    def release(self, layer: Layer) -> list[Metadata]:
        """Give a reference back. The last one of all stores and processes releases the layer: it is deleted.

        If something needs the layer (a layer, a writable layer or an image on it), it stays until nothing does.

        Returns  what was deleted, top first: the layer, and what lay below it, was released before and is not needed
        Raises   LayerNotRetainedError   this handle holds no reference
                 OSError                 something could not be removed; cleanup() tries again
        """
        self._check_open()
        if not isinstance(layer, Layer):
            raise TypeError(f"release() takes a Layer, not {type(layer).__name__}")
        return self._references.release(layer)

    def remove(self, layer: str | Layer) -> list[Metadata]:
        """Release a stored layer that nobody holds: get() and release() in one.

        layer    a ChainID, or a Layer of any store

        Returns  what was deleted, as release() does
        Raises   LayerDoesNotExistError
                 StoreInUseError          something needs it: the text names what. Nothing was done
                 ReadOnlyStoreError, OSError
        """
        self._check_writable()
        if not isinstance(layer, (str, Layer)):
            raise TypeError(f"remove() takes a ChainID or a Layer, not {type(layer).__name__}")
        return self._references.remove(layer if isinstance(layer, str) else layer.chain_id)

    @contextlib.contextmanager
    def _using(self, chain_id: str) -> Iterator[Layer]:
        """Keep a layer for the length of a `with` block, which gets it bare. Raises LayerDoesNotExistError."""
        self._check_open()
        with self._references.using(chain_id) as record:
            yield Layer(record)

    def _release_image(self, chains: Sequence[str]) -> list[Metadata]:
        """The last name of an image went: release its layers (base first) that no reference is held to and that
        nothing else needs, whoever made them. Returns what went, top first.
        """
        self._check_writable()
        return self._references.release_image(chains)

    def take_back(self, layer: Layer | RWLayer) -> None:
        """Undo the call that returned this reference: what was there before stays, what the call made is deleted.

        layer   of get(), register(), commit() and so on, for a caller that gives up in the moment in which it has come
        Raises  as release() and release_rw_layer() do
        """
        if layer._is_new:
            layer.release()
        elif isinstance(layer, RWLayer):
            self._writable.let_go(layer)
        else:
            self._references.let_go(layer)

    # ---- writable layers ----

    def create_rw_layer(
        self, name: str, parent: Parent = "", opts: CreateRWLayerOpts | None = None, *, durability: str | None = None
    ) -> RWLayer:
        """Make a writable layer and return a reference to it.

        name     a name for a directory: no "/", at most 255 bytes
        parent   what it stands on: a ChainID, a Layer (of any store), an Image; "" for an empty tree
        opts     an init layer and the driver's options
        durability   as the store's option of that name; None: the store's

        Raises  MountNameConflictError, LayerDoesNotExistError, NotSupportedError, ValueError (name), OSError,
                and whatever init_func raises
        """
        self._check_writable()
        check_mount_name(name)
        if opts is not None and not isinstance(opts, CreateRWLayerOpts):
            raise TypeError(f"opts is a CreateRWLayerOpts, not {type(opts).__name__}")
        level = self._syncing.level(durability)
        return self._writable.create(name, parent_id(parent), opts or CreateRWLayerOpts(), level)

    def get_rw_layer(self, name: str) -> RWLayer:
        """Give a new reference to a writable layer. Raises MountDoesNotExistError."""
        self._check_open()
        return self._writable.get(name)

    def get_mount_id(self, name: str) -> str:
        """Give the driver's id of a writable layer. Raises MountDoesNotExistError."""
        self._check_open()
        return self._writable.mount_id(name)

    def release_rw_layer(self, layer: RWLayer) -> list[Metadata]:
        """Give a reference back; with the last one the writable layer is unmounted and deleted.

        Returns  the read-only layers that went with it
        Raises   LayerNotRetainedError   this handle holds no reference
        """
        self._check_open()
        if not isinstance(layer, RWLayer):
            raise TypeError(f"release_rw_layer() takes an RWLayer, not {type(layer).__name__}")
        return self._writable.release(layer)

    def _stand_right(self, mount: Mount) -> None:
        self._check_open()
        self._writable.stand_right(mount, mend=not self._read_only)

    def _apply_diff(self, mount: Mount, source: Any, progress: Progress | None = None) -> int:
        self._check_writable()
        return self._writable.apply_diff(mount, source, progress)

    def _commit(
        self, mount: Mount, flags: int, durability: str | None, progress: Progress | None = None
    ) -> Layer:
        self._check_writable()
        return self._writable.commit(mount, flags, self._syncing.level(durability), progress)

    def mounts(self) -> list[str]:
        """Name the writable layers."""
        self._check_open()
        with self._lock:
            self._records.load_mounts()
            return sorted(self._records.mounts)

    # ---- the store itself ----

    def cleanup(self) -> None:
        """Finish what was interrupted, and reclaim what no layer and no mount of this root owns.

        As in moby it also unmounts whatever is mounted below the driver's directory: call it when no
        writable layer is in use.
        Raises  OSError   something is still mounted below the driver's home
        """
        self._check_writable()
        with self._images.exclusive(self._check_writable):
            self._images.sweep()
        reclaim.finish(self._metadata, self._driver, self._records.owned)
        self._references.sweep_all()
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
        self, chain_id: str | None = None, *, metadata: bool = True, progress: Progress | None = None,
        workers: int | None = None,
    ) -> list[Problem]:  # fmt: skip
        """Compare what is stored with what was registered; [] when all is well. Nothing is written.

        chain_id   one layer; None: all of them, the images, the writable layers' own small files, and what nobody owns
        metadata   also modes, owners, times, extended attributes, kinds, link targets and added names; False: only
                   that everything is there, and every byte
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
                raise LayerDoesNotExistError(chain_id=chain_id)
            chosen = [r for c, r in records.layers.items() if chain_id in (None, c)]
            found = [Problem("metadata", str(c), "", str(e)) for c, e in records.bad.items() if chain_id in (None, c)]
            bad_mounts, mounts = list(records.bad_mounts.items()), list(records.mounts.values())
            for record in chosen:            # none goes while it is looked at; other processes do as they like
                record.used += 1
        try:
            verifier = Verifier(self._metadata, self._driver, attributes=metadata)
            found += verifier.layers(chosen, progress, workers)
            gone = {r.chain_id for r in chosen if not r.held and not self._metadata.has(r.chain_id)}
            found = [problem for problem in found if problem.subject not in gone]
        finally:
            for record in chosen:
                with self._lock:
                    record.used -= 1
                self._references.sweep(record.chain_id)
        live = dockerd.locked_database(self.root) is not None
        if chain_id is None:
            found += [Problem("metadata", name, "", str(err)) for name, err in bad_mounts]
            for mount in mounts:
                found += verifier.mount(mount)
            found += verifier.images(self._images)
            if not live:
                found += verifier.orphans(records.owned)
        return found

    def repair(self, chain_id: str, source: Any = None, *, progress: Progress | None = None) -> list[Problem]:
        """Make a damaged layer what it was; only what is damaged is replaced, each file in one step.

        chain_id   the layer; or the name of a writable layer, of which the small files are mended, not what is in it
        source     the layer's tar, as register() takes it; or another Store, or a Layer, that has it; None: damaged
                   files are taken from other layers of this store that hold the same
        progress   called with the bytes taken of the tar

        Returns  the problems there were, all of them mended; [] for a sound layer
        Raises   CorruptLayerError        the source is another layer or damaged itself, a file is nowhere to be had,
                                          or a problem is left
                 LayerDoesNotExistError, ReadOnlyStoreError, and what register() raises; the layer is then as it was
        """
        self._check_writable()
        if not is_digest(chain_id) and self._metadata.has_mount(chain_id):
            return self._mending.writable(chain_id)
        return self._mending.layer(chain_id, source, progress)

    def orphans(self) -> list[Orphan]:
        """List what no layer and no writable layer owns, largest first, and layers whose release was interrupted.

        Nothing is written.
        Raises  StoreInUseError            a dockerd is running on the root: what it is making is nobody's, too
                LayerStoreError, OSError   somebody owns something, and what it is cannot be read
        """
        self._check_open()
        self._check_no_dockerd()
        released = [self._metadata.layer_directory(chain_id) for chain_id in self._references.unneeded()]
        return reclaim.find(self.root, self._metadata, self._driver, self._records.owned, released)

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
            why = f"{StoreInUseError.text}: another store, of this or another process, has it open"
            raise StoreInUseError(why, path=self.root)
        found = self.orphans()
        if dry_run:
            return found
        self._check_writable()
        reclaim.finish(self._metadata, self._driver, self._records.owned)
        swept = self._references.sweep_all()
        return [orphan for orphan in found if self._is_gone(orphan, swept)]

    def _is_gone(self, orphan: Orphan, swept: Container[str]) -> bool:
        """Say whether it was removed, and not only renamed."""
        if orphan.kind == "layer":
            return f"sha256:{os.path.basename(orphan.path)}" in swept
        return not os.path.lexists(os.path.join(self.root, orphan.path))

    def _check_no_dockerd(self) -> None:
        database = dockerd.locked_database(self.root)
        if database:
            raise StoreInUseError(f"{StoreInUseError.text} by a dockerd: {database} is locked", path=self.root)

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
