"""Records: which layers and writable layers a root has, read from its layerdb when they are first asked for.

Opening lists names only: a layer's files are read when it is first asked for. What other processes put there, took
away or replaced is found at the next look: a layer is known by its ChainID, which names its content, and its record
takes over the directory that the disk names now. Who needs a layer is not asked here, but in keeping.py.
Everything here is called under `lock`, the lock of both maps.
Source: moby, layer/layer_store.go (loadLayer, loadMount)
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, cast

from layerstore.disk.holds import Holds
from layerstore.disk.locks import Mutex
from layerstore.engine.record import Mount, Record
from layerstore.errors import InvalidDigestError, LayerDoesNotExistError, LayerStoreError
from layerstore.ids import ChainID
from layerstore.layerdb.store import FileMetadataStore
from layerstore.layerdb.transaction import check_mount_name

log = logging.getLogger("layerstore")


class Records:
    """The layers and writable layers of one store object."""

    def __init__(self, metadata: FileMetadataStore, holds: Holds) -> None:
        """List the names on disk. Raises OSError."""
        self.lock = Mutex()
        self.more_owned: Callable[[], set[str]] = set
        """Returns the driver ids that snapshots own."""
        self._metadata, self._holds = metadata, holds
        self.layers: dict[ChainID, Record] = {}
        self.bad: dict[str, Exception] = {}
        self.mounts: dict[str, Mount] = {}
        self.bad_mounts: dict[str, Exception] = {}
        chains, mounts = metadata.list()
        self._unread: set[ChainID] = set(chains)
        self._unread_mounts: set[str] = set(mounts)

    # ---- layers ----

    def _appeared(self, chain_id: str) -> bool:
        """Return True if it is on disk but not loaded: another process registered it, or it could not be read."""
        if chain_id in self._unread:
            return True
        if chain_id in self.layers:
            return False
        with contextlib.suppress(InvalidDigestError):
            return self._metadata.has(chain_id)
        return False

    def load(self, chain_id: str) -> Record | None:
        """Return the record of a layer, read with its ancestors; None: not there, or bad."""
        todo: list[ChainID] = []
        at = chain_id
        if chain_id in self.bad and not self._appeared(chain_id):
            del self.bad[chain_id]
        while at and at not in todo and self._appeared(at):
            todo.append(ChainID(at))
            try:
                at = self._metadata.get_parent(at)
            except (OSError, LayerStoreError):
                at = ""
        for chain in reversed(todo):
            self._unread.discard(chain)
            known = self.bad.pop(chain, None)
            try:
                self.layers[chain] = self._read(chain)
            except (OSError, LayerStoreError) as err:
                self.bad[chain] = err
                if str(known) != str(err):
                    log.warning("Failed to load layer %s: %s", chain, err, extra={"chain_id": chain, "error": err})
        return self.layers.get(cast(ChainID, chain_id))

    def load_current(self, chain_id: str) -> Record | None:
        """Return what load() gives, as the disk has it now."""
        record = self.load(chain_id)
        if record and not self.refresh(record):
            if record.in_use:
                return None               # gone by a foreign hand; its references mean nothing
            log.warning("Layer %s was removed by another process", chain_id, extra={"chain_id": chain_id})
            self.forget(record)
            record = self.load(chain_id)
        return record

    def refresh(self, record: Record) -> bool:
        """Take over what another process changed: the same layer in another directory. False: it is gone."""
        try:
            cache_id = self._metadata.get_cache_id(record.chain_id)
        except FileNotFoundError:
            return self._metadata.has(record.chain_id)
        except (OSError, LayerStoreError):
            return True                   # damaged, which verify() tells
        if cache_id != record.cache_id:
            record.cache_id, record.durable = cache_id, False
            with contextlib.suppress(OSError, LayerStoreError):
                record.descriptor = self._metadata.get_descriptor(record.chain_id)
            if record.parent:             # it was made anew, so what it stands on may have been, too
                self.load_current(record.parent.chain_id)
        if record.parent:
            record.parent = self.layers.get(record.parent.chain_id, record.parent)
        return True

    def below(self, record: Record) -> Record | None:
        """Return what a layer stands on, as the disk has it now."""
        if record.parent:
            record.parent = self.layers.get(record.parent.chain_id, record.parent)
            self.refresh(record.parent)
        return record.parent

    def _read(self, chain: ChainID) -> Record:
        def get(what: str, read: Callable[[str], Any]) -> Any:
            try:
                return read(chain)
            except (OSError, LayerStoreError) as err:
                raise LayerStoreError(f"failed to get {what} for {chain}: {err}", chain_id=chain) from err

        m = self._metadata
        diff, size = get("diff id", m.get_diff_id), get("size", m.get_size)
        cache = get("cache id", m.get_cache_id)
        parent_id, descriptor = get("parent", m.get_parent), get("descriptor", m.get_descriptor)
        parent = self._parent(parent_id, self.layers.get(parent_id))
        if parent:
            self.refresh(parent)
        return Record(self._holds, chain, diff, parent, cache, size, descriptor)

    def _parent(self, parent_id: str, parent: Record | None) -> Record | None:
        """Return the record of what something stands on; None for ""."""
        if parent_id and parent is None:
            raise self.bad.get(parent_id) or LayerDoesNotExistError(
                f"{LayerDoesNotExistError.text}: its parent {parent_id}", chain_id=parent_id
            )
        return parent

    def load_all(self) -> None:
        """Read every layer and mount there is, as the disk has them now."""
        chains, mounts = self._metadata.list()
        self._unread = {c for c in chains if c not in self.layers}
        for name in [name for name in self.bad if name not in self._unread]:
            del self.bad[name]
        there = set(chains)
        for record in list(self.layers.values()):
            if (record.chain_id not in there or not self.refresh(record)) and not record.in_use:
                self.forget(record)
        while self._unread:
            self.load(next(iter(self._unread)))
        self._load_mounts(mounts)

    def load_mounts(self) -> None:
        """Read every mount there is, as the disk has them now."""
        self._load_mounts(self._metadata.list_mounts())

    def _load_mounts(self, mounts: list[str]) -> None:
        there = set(mounts)
        for mount in list(self.mounts.values()):
            if (mount.name not in there or not (mount.aside or self.names_mount(mount))) and not mount.held:
                self.forget_mount(mount.name)
        self._unread_mounts = {m for m in mounts if m not in self.mounts}
        for name in [name for name in self.bad_mounts if name not in self._unread_mounts]:
            del self.bad_mounts[name]
        while self._unread_mounts:
            self.load_mount(next(iter(self._unread_mounts)))

    def names_layer(self, chain_id: str, cache_id: str) -> bool:
        """Return True if the record on disk means these files, and not those of a layer registered anew."""
        try:
            return self._metadata.get_cache_id(chain_id) == cache_id
        except FileNotFoundError:
            return self._metadata.has(chain_id)
        except (OSError, LayerStoreError):
            return True                   # damaged, which verify() tells

    def replace(self, existing: Record | None, made: Record) -> Record:
        """Enter a layer that has just become visible; existing: the record whose files were gone."""
        self.bad.pop(made.chain_id, None)
        if existing is None:
            self.layers[made.chain_id] = made
            return made
        existing.cache_id, existing.descriptor, existing.durable = made.cache_id, made.descriptor, made.durable
        for reference in existing.references:
            reference.taken_of = made.cache_id
        return existing

    def forget(self, record: Record) -> None:
        """Undo replace(None, record)."""
        if self.layers.get(record.chain_id) is record:
            del self.layers[record.chain_id]

    def forget_bad(self) -> None:
        """Read what could not be read again when it is asked for: what it stands on may have been mended."""
        self._unread.update(ChainID(chain) for chain in self.bad)
        self._unread_mounts.update(self.bad_mounts)
        self.bad.clear()
        self.bad_mounts.clear()

    # ---- writable layers ----

    def add_mount(self, mount: Mount) -> None:
        """Enter a writable layer that has just been recorded."""
        self.mounts[mount.name] = mount
        self.bad_mounts.pop(mount.name, None)

    def forget_mount(self, name: str) -> None:
        """Undo add_mount(); harmless without it."""
        self.mounts.pop(name, None)

    def load_mount(self, name: str) -> Mount | None:
        """Return the record of a writable layer; None: not there, or bad."""
        appeared = name in self._unread_mounts
        if not appeared and name not in self.mounts:
            appeared = self._metadata.has_mount(name)
        known = None if name in self.mounts else self.bad_mounts.pop(name, None)
        if appeared:
            self._unread_mounts.discard(name)
            try:
                mount_id, init_id = self._metadata.get_mount_id(name), self._metadata.get_init_id(name)
                state = self._metadata.mount_parent_state(name)
                parent_id = self._metadata.get_mount_parent(name)
                parent = self._parent(parent_id, self.load(parent_id) if parent_id else None)
                self.mounts[name] = Mount(self._holds, name, mount_id, init_id, parent)
                self.mounts[name].parent_state = state
            except (OSError, LayerStoreError) as err:
                self.bad_mounts[name] = err
                if str(known) != str(err):
                    log.warning("Failed to load mount %s: %s", name, err, extra={"mount": name, "error": err})
        return self.mounts.get(name)

    def refresh_mount(self, mount: Mount) -> None:
        """Take over what another process changed of a writable layer: the layer that it stands on."""
        state = self._metadata.mount_parent_state(mount.name)
        if mount.parent_state == state or mount.aside:
            return
        try:
            parent_id = self._metadata.get_mount_parent(mount.name)
            mount.parent = self._parent(parent_id, self.load(parent_id) if parent_id else None)
            mount.parent_state = state
        except (OSError, LayerStoreError) as err:
            log.debug("Cannot read what %s stands on: %s", mount.name, err, extra={"mount": mount.name, "error": err})

    def withdrawn(self, chain_id: str) -> list[str]:
        """Name the writable layers on a layer that no longer have a record, and could not be deleted yet."""
        return [m.name for m in self.mounts.values() if m.aside and m.parent and m.parent.chain_id == chain_id]

    def find_mount(self, name: str) -> Mount | None:
        """Return what load_mount() gives, unless another process released that one."""
        check_mount_name(name)
        mount = self.mounts.get(name)
        if mount and not mount.aside and not self.names_mount(mount):
            self.forget_mount(name)
        return self.load_mount(name)

    def names_mount(self, mount: Mount) -> bool:
        """Return True if the record on disk still means this writable layer, and not a later one of its name."""
        try:
            return self._metadata.get_mount_id(mount.name) == mount.mount_id
        except FileNotFoundError:
            return False
        except (OSError, LayerStoreError):
            return True

    def is_loadable(self, name: str) -> bool:
        """Return True if there is a readable record of a writable layer."""
        try:
            self._metadata.get_mount_id(name)
            self._metadata.get_init_id(name)
            parent = self._metadata.get_mount_parent(name)
        except (OSError, LayerStoreError):
            return False
        return not parent or self.load(parent) is not None

    # ---- both ----

    def owned(self) -> set[str]:
        """Driver ids that a layer, a mount or a snapshot on disk names, loaded or not. Needs no lock.

        Raises  LayerStoreError, OSError   metadata cannot be read, so that an owner may be unknown
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
        return (owned | self.more_owned()) - {""}
