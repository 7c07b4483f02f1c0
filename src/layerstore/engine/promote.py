"""Promotion: a snapshot becomes a layer: its directory is hashed where it lies, and nothing is copied.

Enters: an id. Leaves: a reference to the layer. The record of the snapshot says first what it is about to become; the
layer's own record follows by one rename; the rest (what stands on it names the layer as its parent) is repeated at the
next look at the snapshot, if it was interrupted. Where the driver's layers are no directories, the layer is made beside
the snapshot, which keeps its own: as where the layer is there already.
Source: sandbox.md 10
"""

from __future__ import annotations

import contextlib
import logging
from typing import NamedTuple

from layerstore._core._apply import Apply
from layerstore.disk.locks import Scope, surely
from layerstore.drivers import Received, Stack, Trees
from layerstore.engine.durability import Syncing
from layerstore.engine.ground import Ground
from layerstore.engine.intake import MAX_DEPTH, Registration
from layerstore.engine.loose import Loose
from layerstore.engine.record import Mount, Record, Reference
from layerstore.engine.references import References
from layerstore.engine.stacks import Place, Stacks, is_init
from layerstore.errors import InvalidMetadataError, LayerDoesNotExistError, LayerStoreError, MaxDepthExceededError
from layerstore.layerdb.transaction import FileMetadataTransaction
from layerstore.streams.leftout import warn_left_out
from layerstore.values import Descriptor, Durability

log = logging.getLogger("layerstore")


class Promotion:
    """Commits the snapshots of one store."""

    def __init__(
        self, ground: Ground, references: References, stacks: Stacks, loose: Loose, syncing: Syncing,
        registration: Registration,
    ) -> None:  # fmt: skip
        self._ground, self._metadata, self._records = ground, ground.metadata, ground.records
        self._driver, self._lock, self._db = ground.driver, ground.records.lock, stacks.snapshots
        self._references, self._stacks, self._loose = references, stacks, loose
        self._syncing, self._registration = syncing, registration

    def commit(self, id: str, level: Durability) -> Reference:
        """Make a layer of a snapshot, and of each below it that is none. Raises as Snapshot.commit() does."""
        self._ground.check_writable()
        return self._stacks.again(id, lambda target: self._commit_at(id, target.place, level))

    def _commit_at(self, id: str, place: Place, level: Durability) -> Reference:
        if place.at == 0 and place.layer:             # committed before
            self.finish(id)
            return self._references.get(place.layer.chain_id)
        todo = place.frozen                           # it is the first
        depth = len(todo) + (place.layer.depth if place.layer else 0)
        if depth > MAX_DEPTH:
            why = f"{MaxDepthExceededError.text}: the snapshot would be layer {depth}, and {MAX_DEPTH} is the most"
            raise MaxDepthExceededError(f"{why}; squash=True makes one layer of it", chain_id=id)
        above: Record | None = place.layer
        below: Reference | None = None
        try:
            for each in reversed(todo):
                made = self._commit(each, above, level, must=each == id)
                self._give_back(below)
                below, above = made, made.record
        except BaseException:
            self._give_back(below)
            raise
        assert below
        return below

    def _give_back(self, below: Reference | None) -> None:
        """End a reference that the caller does not get: what was made on the way goes with what stands on it."""
        if below and below.is_new:
            self._references.release(below, below.record.chain_id)
        elif below:
            self._references.let_go(below)

    def _commit(self, id: str, above: Record | None, level: Durability, *, must: bool) -> Reference:
        """Make a layer of one frozen directory. must: it has a record, or was released meanwhile."""
        w = self._driver.writables
        try:
            with w.hold(id):
                return self._commit_held(id, above, level, must=must)
        except FileNotFoundError as err:
            if w.exists(id):
                raise
            gone = f"{LayerDoesNotExistError.text}: the snapshot {id} was released meanwhile"
            raise LayerDoesNotExistError(gone, chain_id=id) from err

    def _commit_held(self, id: str, above: Record | None, level: Durability, *, must: bool) -> Reference:
        w = self._driver.writables
        self._require(id, must)
        if self._db.layer(id) and (found := self._stacks.layer(self._db.layer(id))):
            return self._references.get(found.chain_id)
        recorded = self._db.has(id)

        def begin() -> FileMetadataTransaction:
            return self._metadata.start_deferred()

        def end(transaction: FileMetadataTransaction) -> None:
            if transaction.kept:
                transaction.release()
            elif transaction.is_ours():
                with contextlib.suppress(OSError):
                    transaction.cancel()

        with Scope(begin, end) as transaction:
            received = self._driver.layers.adopt(id, w.stack_of(id), transaction.open_sidecar)
            if received:
                warn_left_out(f"snapshot {id}", received.left_out, stays=True)
                return self._make_visible(id, recorded, received, transaction, above, level)
        return self._register(id, recorded, above, level)

    def _register(self, id: str, recorded: bool, above: Record | None, level: Durability) -> Reference:
        """Make a layer of the tar of a snapshot, which goes on having its own directory."""
        stack = self._driver.writables.stack_of(id)
        self._require_below(id, above)
        if above:
            with self._lock:
                self._references.use_too(above)
        given = _Frozen(self._driver.trees, id, stack)
        reference = self._registration.register_on(above, given, Descriptor(), level)
        try:
            if recorded:
                self._note_layer(id, reference.record, above, level)
                self._driver.writables.disown(id)
            self._lead(id, reference.record)
        except BaseException:
            surely(self._give_back, reference)
            raise
        return reference

    def _note_layer(self, id: str, record: Record, above: Record | None, level: Durability) -> None:
        """Note the layer that is there of a snapshot, whose own directory stays a loose one."""
        lower = self._driver.writables.lower_text(id)
        with self._lock, self._metadata.exclusive(), self._loose.changing(id):
            self._require(id, recorded=True)
            self._require_below(id, above)
            self._db.set_committed(id, lower, record.chain_id, sync=level != "none")

    def _make_visible(
        self, id: str, recorded: bool, received: Received, transaction: FileMetadataTransaction, above: Record | None,
        level: Durability,
    ) -> Reference:  # fmt: skip
        self._require_below(id, above)
        made = self._registration.describe(id, received, transaction, above, Descriptor())
        reference = self._registration.existing(made.chain_id)
        lower = self._driver.writables.lower_text(id)
        if reference is None:
            self._syncing.before([id], transaction, above, level)
            if recorded:
                self._db.set_committed(id, lower, made.chain_id, sync=level != "none")
            try:
                with self._syncing.name("sha256", level), self._lock, self._metadata.exclusive():
                    self._require(id, recorded)
                    self._require_below(id, above)
                    with self._loose.changing(*([id] if recorded else [])):
                        stack = above.directories if above else []
                        if not recorded:  # what stands on it names all that it stood on
                            self._driver.writables.restand(id, stack)
                        reference = self._registration.commit_or_existing(transaction, made, stack)
                        self._db.note_layer()
            except BaseException:
                if recorded and not transaction.published:
                    with contextlib.suppress(OSError):
                        self._db.forget_committed(id)
                raise
            transaction.kept = reference.record.cache_id == id
            reference.is_new = transaction.kept
        elif recorded:
            self._note_layer(id, reference.record, above, level)
        self._lead(id, reference.record)
        if level == "full":
            self._syncing.ensure(reference.record, level)
        return reference

    def _require_below(self, id: str, above: Record | None) -> None:
        """Make sure that no other process has merged directories below what becomes a layer on this one."""
        below = [each for each in self._driver.writables.stack_of(id) if not is_init(each)]
        if len(below) != (above.depth if above else 0):
            raise InvalidMetadataError(f"directories below the snapshot {id} were merged meanwhile", path=id)

    def _require(self, id: str, recorded: bool) -> None:
        if recorded and not self._db.has(id):
            gone = f"{LayerDoesNotExistError.text}: the snapshot {id} was released meanwhile"
            raise LayerDoesNotExistError(gone, chain_id=id)

    # ---- what follows from the layer's record ----

    def finish(self, id: str) -> None:
        """Repeat what follows the rename, where it was interrupted; take back what was noted without the rename."""
        if self._ground.read_only:
            return
        try:
            chain_id = self._db.layer(id)
            if not chain_id:
                return
            record = self._stacks.layer(chain_id)
            if record is None:
                with self._lock, self._metadata.exclusive():
                    if not self._metadata.has(chain_id):
                        self._db.forget_committed(id)
                return
            below = record.parent.directories if record.parent else []
            if record.cache_id == id and self._driver.writables.stack_of(id) != below:
                with self._driver.writables.hold(id):
                    self._lead(id, record)
        except (OSError, LayerStoreError) as err:
            text = "The commit of the snapshot %s could not be finished: %s"
            log.warning(text, id, err, extra={"snapshot": id, "error": err})

    def _lead(self, id: str, record: Record) -> None:
        """Lead what stands on a directory to the layer that it is now, or has the contents of."""
        w = self._driver.writables
        is_its = record.cache_id == id
        with self._lock, self._metadata.exclusive():
            entries = self._loose.standing_on(id)
        for entry in entries:
            self._lead_held(entry, id, record)
        if is_its:
            w.disown(id)                  # before what finish() looks at
            w.restand(id, record.parent.directories if record.parent else [])

    def _lead_held(self, entry: str, id: str, record: Record) -> None:
        """Do what _lead_entry() does while no other store changes what a box stands on."""
        w, mount_id = self._driver.writables, ""
        try:
            if entry.startswith("rw "):
                mount_id = self._metadata.get_mount_id(entry.removeprefix("rw "))
            # No ExitStack: an interrupt as it notes a lock would leave that held.
            with w.hold(mount_id) if mount_id else contextlib.nullcontext():
                with self._lock, self._metadata.exclusive(), self._loose.changing(id, entry):
                    self._lead_entry(entry, id, record)
        except (FileNotFoundError, LayerStoreError):
            if self._loose.is_there(entry):
                raise                     # else it was released meanwhile

    def _lead_entry(self, entry: str, id: str, record: Record) -> None:
        """Note the layer as the parent of a box or a snapshot, if none is nearer."""
        w, is_box = self._driver.writables, entry.startswith("rw ")
        name = entry.removeprefix("rw ")
        mount: Mount | None = None
        try:
            if is_box:
                mount = self._records.find_mount(name)
                if mount is None:
                    return
            place = self._stacks.of_box(mount) if mount else self._stacks.of_snapshot(entry)
            nearer = place.layer and place.layer.depth > record.depth
            if id not in place.stack or nearer or self._db.lower(entry):
                return
            if sum(not is_init(each) for each in place.stack[place.stack.index(id) :]) != record.depth:
                return                    # directories below were merged meanwhile: they are not those of the layer
            if mount is None:
                self._db.set_parent(entry, record.chain_id)
                return
            self._metadata.replace_mount_parent(name, record.chain_id)
            self._records.refresh_mount(mount)
            if mount.init_id and mount.init_id not in place.stack:
                w.empty(mount.init_id, place.stack[place.stack.index(id) :])
        except (OSError, LayerStoreError) as err:
            text = "%s does not name the layer %s as its parent yet: %s"
            about = {"entry": entry, "chain_id": record.chain_id, "error": err}
            log.warning(text, name, record.chain_id, err, extra=about)


class _Frozen(NamedTuple):
    """What a snapshot holds, as a tar on its way in."""

    trees: Trees
    id: str
    stack: Stack

    def pump_into(self, apply: Apply) -> None:
        with self.trees.diff([self.id], self.stack) as stream:
            stream.pump_into(apply, None)
            warn_left_out(f"snapshot {self.id}", stream.left_out(), stays=True)
