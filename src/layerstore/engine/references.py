"""References: what keeps a layer, and what is deleted when its last reference is released.

A layer is needed by references and running calls of this store, by those of other stores, by layers, writable layers
and images on it. Whether one may go is decided when it would go, under the lock of the layerdb, by the disk and by what
is held (keeping.py, holds.py, imagedb.py). Released is an event: with the last reference the layer goes, or, while
something needs it, gets the mark `released`; then it goes with the last that needed it. Without the mark it stays.
Source: sandbox.md 2; moby, layer/layer_store.go (releaseLayer)
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

from layerstore.disk import dockerd
from layerstore.disk.textfile import remove_directory
from layerstore.engine.ground import Ground, said
from layerstore.engine.record import Record, Reference
from layerstore.errors import LayerDoesNotExistError, LayerNotRetainedError, LayerStoreError, StoreInUseError
from layerstore.ids import ChainID, DiffID
from layerstore.layerdb.keeping import Keeping, UnreadableError
from layerstore.values import Metadata

log = logging.getLogger("layerstore")


def _in_call(chain_id: str) -> str:
    """Return the key under which a running call holds a layer; a reference holds its ChainID."""
    return f"call {chain_id}"


class Need(NamedTuple):
    """What needs a layer: of which kind, and in words (an image: by its id)."""

    kind: Literal["reference", "call", "layer", "writable layer", "snapshot", "image", "unreadable"]
    text: str


class _Going(NamedTuple):
    """A layer that is invisible already, and whose files go next; its record may serve a layer registered anew."""

    metadata: Metadata
    parent: str
    cache_id: str
    aside: str


class References:
    """The references of one store object."""

    def __init__(self, ground: Ground, keeping: Keeping) -> None:
        """Show references to other stores through the holds. A store that only reads deletes and marks nothing."""
        self._root, self._metadata, self._driver = ground.root, ground.metadata, ground.driver
        self._records, self._holds, self._images = ground.records, ground.holds, ground.images
        self._ground_snapshots = ground.snapshots_db
        self._read_only, self._keeping, self._lock = bool(ground.read_only), keeping, ground.records.lock
        self.standing_on: Callable[[str], list[str]] = lambda _: []
        """Names the writable layers and snapshots that stand on a directory."""
        self.relead: Callable[[str, str], None] = lambda old, new: None
        """Leads what stands on a directory to another one of the same contents."""

    # ---- taking ----

    def use(self, chain_id: str) -> Record:
        """Keep a layer for the length of a call, which ends in end_use(). Raises LayerDoesNotExistError."""
        with self._lock, self._metadata.exclusive():      # it stays while it is read, until it is held
            record = self._find(chain_id)
            self.use_too(record)
            return record

    def use_too(self, record: Record) -> None:
        """Do what use() does, for a layer that this store has references to; under the lock."""
        self._holds.retain(_in_call(record.chain_id))
        record.used += 1

    def end_use(self, record: Record) -> list[Metadata]:
        """End what use() began. A layer that was released meanwhile goes now; returns what went.

        Never raises OSError or LayerStoreError, as the call itself may have done all it had to.
        """
        with self._lock:
            record.used -= 1
            self._holds.release(_in_call(record.chain_id))
        try:
            return self.sweep(record.chain_id)
        except (OSError, LayerStoreError) as err:
            text = "Layer %s was released, and cleanup() will remove it: %s"
            log.warning(text, record.chain_id, err, extra={"chain_id": record.chain_id, "error": err})
            return []

    @contextlib.contextmanager
    def using(self, chain_id: str) -> Iterator[Record]:
        """Keep a layer for the length of a `with` block."""
        record = self.use(chain_id)
        try:
            yield record
        finally:
            self.end_use(record)

    def _find(self, chain_id: str) -> Record:
        record = self._records.load_current(chain_id)
        if record is None:
            raise LayerDoesNotExistError(chain_id=chain_id)
        return record

    def get(self, chain_id: str) -> Reference:
        """Return a new reference to a layer. Raises LayerDoesNotExistError."""
        with self._lock:
            known = self._records.layers.get(cast(ChainID, chain_id))
            if known and known.references and self._holds.holds(chain_id) and self._records.refresh(known):
                return self.reference(known)      # what is held here has no mark, and is not deleted
            with self._metadata.exclusive():
                reference = self.reference(self._find(chain_id))
        if reference.took_mark:
            self._keeping.settle(chain_id)
        return reference

    def reference(self, record: Record) -> Reference:
        """Make a new reference, under both locks. The layer is no longer a released one."""
        reference = Reference(record)
        self._holds.retain(record.chain_id)
        try:
            if not record.references and not self._read_only:
                reference.took_mark = self._keeping.unmark(record.chain_id)
        except BaseException:
            self._holds.release(record.chain_id)
            raise
        record.references.add(reference)
        return reference

    # ---- release ----

    def release(self, reference: Reference | None, chain_id: str) -> list[Metadata]:
        """Release a reference. Returns what was deleted, top first.

        reference  None: there is none (a bare layer), as if it was released before
        Raises     LayerNotRetainedError   it was released before, or another store returned it
        """
        going: _Going | None = None
        marked = False
        with self._lock:
            record = reference.record if reference else None
            if record is None or reference not in record.references or record.holds is not self._holds:
                if self._records.load_current(chain_id) is None:
                    return []
                raise LayerNotRetainedError(chain_id=chain_id)
            assert reference
            if len(record.references) > 1 or self._may_not_delete_layer(record.chain_id):
                self._forget(reference)
                return []
            with self._metadata.exclusive():
                if self._is_last(reference):
                    if self._need(record.chain_id, record, but=reference):
                        self._keeping.mark(record.chain_id)
                        marked = True
                    else:
                        going = self._take_away(record.chain_id, record)
                self._forget(reference)
        if marked:
            self._keeping.settle(record.chain_id)
        return self._finish(going)

    def _is_last(self, reference: Reference) -> bool:
        """Return whether no other store has a reference to the layer that this one was made for."""
        chain_id = reference.record.chain_id
        return self._records.names_layer(chain_id, reference.taken_of) and not self._holds.held_elsewhere(chain_id)

    def _forget(self, reference: Reference) -> None:
        reference.record.references.discard(reference)
        self._holds.release(reference.record.chain_id)

    def let_go(self, reference: Reference) -> None:
        """Release a reference that no caller got: the layer is what it was before."""
        if reference.took_mark:
            self.release(reference, reference.record.chain_id)
            return
        with self._lock:
            if reference in reference.record.references:
                self._forget(reference)

    def remove(self, chain_id: str) -> list[Metadata]:
        """Release a layer that no process holds; also one that is damaged.

        Raises  LayerDoesNotExistError
                StoreInUseError   something needs it; nothing was done
        """
        with self._lock, self._metadata.exclusive():
            record = self._records.load_current(chain_id)
            if record is None and chain_id not in self._records.bad:
                raise LayerDoesNotExistError(chain_id=chain_id)
            need = self._need(chain_id, record)
            if need:
                why = self._images.why_standing(need.text) if need.kind == "image" else need.text
                raise StoreInUseError(f"the layer {chain_id} is needed: {why}", chain_id=chain_id)
            going = self._take_away(chain_id, record)
        return self._finish(going)

    def release_image(self, chains: Sequence[str]) -> list[Metadata]:
        """Release each layer of a removed image that no reference is held to and nothing else needs.

        chains   as Image.layers has them, base first
        """
        removed: list[Metadata] = []
        for chain_id in reversed(chains):
            going = None
            with self._lock, self._metadata.exclusive():
                record = self._records.load_current(chain_id)
                if record is None and chain_id not in self._records.bad:
                    continue
                if self._may_not_delete_layer(chain_id):
                    break
                need = self._need(chain_id, record)
                if need and need.kind != "call":
                    break                 # and what needs it needs all below it
                if need:
                    self._keeping.mark(chain_id)          # it goes with the end of the call
                else:
                    going = self._take_away(chain_id, record)
            if going is None:
                self._keeping.settle(chain_id)
                break
            removed.append(self._delete(going))
        return removed

    def sweep(self, chain_id: str) -> list[Metadata]:
        """Something that needed a layer went: the layer goes, if it was released and nothing needs it; so on below.

        Raises  OSError, LayerStoreError   it cannot be read whether it was released; it stays
        """
        removed: list[Metadata] = []
        while chain_id and self._keeping.is_released(chain_id):
            with self._lock, self._metadata.exclusive():
                record = self._records.load_current(chain_id)
                if record is None and chain_id in self._records.bad:
                    raise self._records.bad[chain_id]
                if record is None or not self._keeping.is_released(chain_id) or self._may_not_delete_layer(chain_id):
                    break
                if self._need(chain_id, record):
                    break
                going = self._take_away(chain_id, record)
            removed.append(self._delete(going))
            chain_id = going.parent
        return removed

    def sweep_all(self) -> list[str]:
        """Finish releases that were interrupted; return what went. What cannot be removed is logged and left."""
        removed: list[str] = []
        for chain_id in self.unneeded():
            try:
                removed += (gone.chain_id for gone in self.sweep(chain_id))
            except (OSError, LayerStoreError) as err:
                text = "Failed to remove the released layer %s: %s"
                log.error(text, chain_id, err, extra={"chain_id": chain_id, "error": err})
        return removed

    def unneeded(self) -> list[ChainID]:
        """Name the layers, from the top down, that were released and that nothing else needs.

        Their release was interrupted.
        """
        found: dict[ChainID, None] = {}
        with self._lock, self._metadata.exclusive():
            marked = [chain_id for chain_id in self._metadata.list()[0] if self._may_be_released(chain_id)]
            records = [record for record in map(self._records.load_current, marked) if record]
            for record in sorted(records, key=lambda record: -record.depth):
                if not self._need(record.chain_id, record, above=found):
                    found[record.chain_id] = None
        return list(found)

    def _may_be_released(self, chain_id: str) -> bool:
        try:
            return self._keeping.is_released(chain_id)
        except OSError as err:
            text = "Cannot read whether the layer %s was released: %s"
            log.warning(text, chain_id, err, extra={"chain_id": chain_id, "error": err})
            return False

    def is_kept(self, record: Record) -> bool:
        """Return True if a reference, a running call or an image keeps a layer, whatever stands on it."""
        chain_id = record.chain_id
        held = self._holds.held_elsewhere(chain_id) or self._holds.held_elsewhere(_in_call(chain_id))
        return bool(record.references or record.used or held or self._images.standing_on(chain_id))

    # ---- the decision ----

    def _need(
        self, chain_id: str, record: Record | None, but: Reference | None = None, above: Container[str] = ()
    ) -> Need | None:
        """Find one that needs the layer, under both locks. A running call comes last.

        but     a reference that does not count
        above   layers that do not count
        """
        if record and record.references - {but}:
            return Need("reference", "this store has a reference to it")
        if self._holds.held_elsewhere(chain_id):
            return Need("reference", "another process, or another store of this one, has a reference to it")
        # Two damaged layers that do not say what they stand on would keep each other for ever.
        told = None if record else self._tell_doubtful
        try:
            for child in self._keeping.layers_on(chain_id, told=told):
                if child in above:
                    continue
                return Need("layer", f"the layer {child} stands on it")
            for name in self._keeping.mounts_on(chain_id):
                return Need("writable layer", f"the writable layer {name} stands on it")
            for id in self._keeping.snapshots_on(chain_id):
                return Need("snapshot", f"the snapshot {id} stands on it, or was committed as it")
            if record and self._ground_snapshots.any():
                for entry in self.standing_on(record.cache_id):
                    return Need("writable layer", f"{entry.removeprefix('rw ')} stands on its directory")
        except UnreadableError as err:
            text = "The layer %s stays, as it may be needed: %s"
            log.warning(text, chain_id, err, extra={"chain_id": chain_id, "error": err})
            return Need("unreadable", f"it may be, as {err}")
        for mount in self._records.withdrawn(chain_id):
            return Need("writable layer", f"the writable layer {mount} stands on it, and is going")
        image = self._images.standing_on(chain_id)
        if image:
            return Need("image", image)
        if record and record.used > 0:
            return Need("call", "this store is working on it")
        if self._holds.held_elsewhere(_in_call(chain_id)):
            return Need("call", "another process, or another store of this one, is working on it")
        return None

    @staticmethod
    def _tell_doubtful(err: Exception) -> None:
        log.debug("A damaged layer does not keep another damaged one: %s", err, extra={"error": err})

    def _take_away(self, chain_id: str, record: Record | None) -> _Going:
        """Make an unneeded layer invisible, under both locks."""
        if record is None:
            return self._take_damaged(chain_id)
        metadata = Metadata(record.chain_id, record.diff_id, record.size, record.diff_size)
        parent, cache_id = record.parent.chain_id if record.parent else "", record.cache_id
        try:
            aside = self._metadata.set_aside(record.chain_id)
            self._records.forget(record)
        except BaseException:
            if not self._metadata.has(record.chain_id):      # an interrupt right behind the rename
                self._records.forget(record)
            raise
        return _Going(metadata, parent, cache_id, aside or "")

    def _take_damaged(self, chain_id: str) -> _Going:
        """Do the same for a damaged layer, by what its files still say; cleanup() does what may concern another one."""
        m = self._metadata
        parent, diff, cache = (said(read, chain_id, "") for read in (m.get_parent, m.get_diff_id, m.get_cache_id))
        aside = self._metadata.set_aside(chain_id)
        cache_id = ""
        with contextlib.suppress(OSError, LayerStoreError):
            cache_id = cache if cache not in self._records.owned() else ""
        metadata = Metadata(ChainID(chain_id), cast(DiffID, diff), 0, 0)
        return _Going(metadata, parent, cache_id, aside or "")

    def _delete(self, going: _Going) -> Metadata:
        if going.cache_id:
            self._driver.layers.remove(going.cache_id)
        if going.aside:
            remove_directory(going.aside)
        return going.metadata

    def _finish(self, going: _Going | None) -> list[Metadata]:
        if going is None:
            return []
        return [self._delete(going), *self.sweep(going.parent)]

    def _may_not_delete_layer(self, chain_id: str) -> bool:
        return self.may_not_delete("layer", chain_id, {"chain_id": chain_id})

    def may_not_delete(self, what: str, name: str, about: dict[str, Any]) -> bool:
        """True if nothing may be deleted now: the store only reads, or a dockerd was started meanwhile."""
        if self._read_only:
            return True
        database = dockerd.locked_database(self._root)
        if database:
            text = "The %s %s is left to the dockerd that is running now (%s)"
            log.warning(text, what, name, database, extra={**about, "database": database})
        return database is not None
