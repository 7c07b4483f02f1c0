"""Promotion: a snapshot becomes a layer: its directory is hashed where it lies, and nothing is copied.

Enters: an id. Leaves: a reference to the layer. The record of the snapshot says first what it is about to become; the
layer's own record follows by one rename; the rest (what stands on it names the layer as its parent) is repeated at the
next look at the snapshot, if it was interrupted.
Source: sandbox.md 10
"""

from __future__ import annotations

import contextlib
import logging
from typing import NamedTuple

from layerstore._core._apply import Apply
from layerstore.disk.locks import Scope, surely
from layerstore.drivers import Stack, Trees
from layerstore.engine.durability import Syncing
from layerstore.engine.ground import Ground
from layerstore.engine.intake import MAX_DEPTH, Registration
from layerstore.engine.loose import Loose
from layerstore.engine.record import Mount, Record, Reference
from layerstore.engine.references import References
from layerstore.engine.stacks import Stacks, Target, is_init
from layerstore.errors import InvalidMetadataError, LayerStoreError, MaxDepthExceededError, StoreInUseError
from layerstore.layerdb.transaction import FileMetadataTransaction
from layerstore.streams.leftout import warn_left_out
from layerstore.values import Descriptor, Durability

log = logging.getLogger("layerstore")


class _Step(NamedTuple):
    """A directory on its way to a layer."""

    id: str
    recorded: bool
    """It is a snapshot with a record."""
    target: Target
    """The snapshot that is committed, which names the directory or is it."""
    below: list[str]
    """What the directory stands on, as the target says."""
    above: Record | None
    """The layer that it will stand on."""


def _below(stack: list[str], id: str) -> list[str]:
    return stack[stack.index(id) + 1 :]


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
        return self._stacks.again(id, lambda target: self._commit_at(target, level))

    def _commit_at(self, target: Target, level: Durability) -> Reference:
        id, place = target.snapshot, target.place
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
                with self._driver.writables.hold(each):
                    made = self._commit_held(each, target, above, level)
                self._give_back(below)
                below, above = made, made.record
        except BaseException:
            self._give_back(below)
            # A squash that merged them meanwhile left these, as they were held.
            self._loose.drop([each for each in todo if not self._db.has(each)])
            raise
        assert below
        return below

    def _give_back(self, below: Reference | None) -> None:
        """End a reference that the caller does not get: what was made on the way goes with what stands on it."""
        if below and below.is_new:
            self._references.release(below, below.record.chain_id)
        elif below:
            self._references.let_go(below)

    def _commit_held(self, id: str, target: Target, above: Record | None, level: Durability) -> Reference:
        """Make a layer of one held directory of a target. While it is held, its record is not taken away."""
        if self._db.layer(id) and (found := self._stacks.layer(self._db.layer(id))):
            return self._references.get(found.chain_id)

        def begin() -> FileMetadataTransaction:
            return self._metadata.start_deferred()

        def end(transaction: FileMetadataTransaction) -> None:
            if transaction.kept:
                transaction.release()
            elif transaction.is_ours():
                with contextlib.suppress(OSError):
                    transaction.cancel()

        step = _Step(id, self._db.has(id), target, _below(target.place.stack, id), above)
        with Scope(begin, end) as transaction:
            received = self._driver.layers.adopt(id, step.below, transaction.open_sidecar)
            if received:
                warn_left_out(f"snapshot {id}", received.left_out, stays="layer")
                made = self._registration.describe(id, received, transaction, above, Descriptor())
                return self._led(step, self._where_it_lies(step, made, transaction, level), level)
        return self._led(step, self._registered(step, level), level)

    def _led(self, step: _Step, reference: Reference, level: Durability) -> Reference:
        """Do what follows, once there is a layer; what was there before is noted as that of the snapshot."""
        record = reference.record
        try:
            if step.recorded and self._db.layer(step.id) != record.chain_id:
                lower = self._text_below(step)
                with self._lock, self._metadata.exclusive(), self._loose.changing(step.id):
                    self._require(step)
                    self._db.set_committed(step.id, lower, record.chain_id, sync=level != "none")
            self._follow(step.id, record)
            if level == "full":
                self._syncing.ensure(record, level)
        except BaseException:
            surely(self._give_back, reference)        # it may be a layer, but the caller does not get it
            raise
        return reference

    def _registered(self, step: _Step, level: Durability) -> Reference:
        """Make a layer of the tar of a snapshot, which goes on having its own directory."""
        if step.above:
            with self._lock:
                self._references.use_too(step.above)
        given = _Frozen(self._driver.trees, step.id, step.below)
        reference = self._registration.register_on(step.above, given, Descriptor(), level)
        try:
            if step.recorded:
                self._driver.writables.disown(step.id)
        except BaseException:
            surely(self._give_back, reference)
            raise
        return reference

    def _where_it_lies(
        self, step: _Step, made: Record, transaction: FileMetadataTransaction, level: Durability
    ) -> Reference:
        """Make a layer of the directory itself, or take the one that is there already."""
        id, lower, sync = step.id, self._text_below(step), level != "none"
        existing = self._registration.existing(made.chain_id)
        if existing:
            return existing
        self._syncing.before([id], transaction, step.above, level)
        if step.recorded:                             # before the lock: the disk is waited for
            self._db.set_committed(id, lower, made.chain_id, sync=sync)
        try:
            with self._syncing.name("sha256", level), self._lock, self._metadata.exclusive():
                self._require(step)
                with self._loose.changing(*([id] if step.recorded else [])):
                    stack = made.directories[1:]
                    if not step.recorded:             # what stands on it names all that it stood on
                        self._driver.writables.restand(id, stack)
                    elif not self._db.is_committed(id, lower, made.chain_id):     # a look took it for void
                        self._db.set_committed(id, lower, made.chain_id, sync=sync)
                    reference = self._registration.commit_or_existing(transaction, made, stack)
                    self._db.note_layer()
        except BaseException:
            if step.recorded and not transaction.published:
                with contextlib.suppress(OSError):
                    self._db.forget_committed(id)
            raise
        reference.is_new = transaction.kept = reference.record.cache_id == id
        return reference

    def _require(self, step: _Step) -> None:
        """Make sure that the snapshot still stands on what was found, under both locks.

        Then what becomes a layer is named by it, so no other call removes it, and no squash has merged below it.
        Raises  LayerDoesNotExistError, InvalidMetadataError
        """
        self._stacks.require(step.target, led=False)
        if sum(not is_init(each) for each in step.below) != (step.above.depth if step.above else 0):
            why = f"below {step.id} a squash was interrupted; squash() what stands on it, or commit(squash=True)"
            raise InvalidMetadataError(why, path=step.id)

    def _text_below(self, step: _Step) -> str:
        w = self._driver.writables
        return w.lower_text(step.id) if w.stack_of(step.id) == step.below else w.text_of(step.below)

    # ---- what follows from the layer's record ----

    def finish(self, id: str) -> None:
        """Repeat what follows the rename, where it was interrupted; take back what was noted without the rename."""
        if self._ground.read_only:
            return
        try:
            chain_id = self._db.layer(id)
            if not chain_id and not self._db.is_unled(id):
                return
            record = self._stacks.layer(chain_id)
            if record is None:
                with self._lock, self._metadata.exclusive():
                    chain_id = self._db.layer(id)         # a commit may go on meanwhile
                    if not chain_id or not self._metadata.has(chain_id):
                        self._db.forget_committed(id)
                return
            if self._db.is_unled(id) or self._is_misplaced(id, record):
                with self._driver.writables.hold(id):
                    if self._db.layer(id) == chain_id:    # else it was released meanwhile
                        self._follow(id, record)
        except (OSError, LayerStoreError) as err:
            self._tell_unfinished(id, err)

    def settle(self, id: str) -> None:
        """Lead the directory of a held snapshot to what its layer stands on: its record, which tells that, goes next.

        Raises  OSError, StoreInUseError   it cannot be now. What is damaged is told, and left to repair()
        """
        self.finish(id)
        try:
            chain_id = self._db.layer(id)
            record = self._stacks.layer(chain_id) if chain_id else None
            if record:
                self._stand(id, record)
        except StoreInUseError:
            raise
        except (FileNotFoundError, LayerStoreError) as err:
            self._tell_unfinished(id, err)

    def _is_misplaced(self, id: str, record: Record) -> bool:
        """Return True if the directory of a layer still stands on what it stood on as a snapshot."""
        if record.cache_id != id:
            return False
        stack = self._driver.writables.stack_of(id)
        return stack != record.directories[1:] and stack != self._stacks.directories_of(record)[1:]

    def _tell_unfinished(self, id: str, err: Exception) -> None:
        text = "The commit of the snapshot %s could not be finished: %s"
        log.warning(text, id, err, extra={"snapshot": id, "error": err})

    def _follow(self, id: str, record: Record) -> None:
        """Do what follows from the record of a layer; what cannot be done is told, and repeated at the next look."""
        try:
            self._lead(id, record)
        except (OSError, LayerStoreError) as err:
            self._tell_unfinished(id, err)

    def _lead(self, id: str, record: Record) -> None:
        """Lead what stands on a directory to the layer that it is now, or has the contents of."""
        led: set[str] = set()
        failed: Exception | None = None
        while True:
            with self._lock, self._metadata.exclusive():
                entries = set(self._loose.standing_on(id)) - led
            if not entries:
                break
            led |= entries                # those of a box that was led late may come yet: its snapshots
            for entry in sorted(entries):
                try:
                    self._lead_held(entry, id, record)
                except (OSError, LayerStoreError) as err:
                    failed = failed or err        # a box is in use for long: the others need not wait for that
        self._stand(id, record)
        if failed:
            raise failed
        self._db.note_led(id)             # what finish() looks at, so it comes last

    def _stand(self, id: str, record: Record) -> None:
        """Let the directory of a layer, which is held, stand on what the record of the layer says."""
        if record.cache_id == id:
            self._driver.writables.disown(id)
        if self._is_misplaced(id, record):
            with self._lock, self._metadata.exclusive(), self._loose.changing(*([id] if self._db.has(id) else [])):
                self._driver.writables.restand(id, record.directories[1:])

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
        if not self._loose.is_there(entry):
            return                        # it was released meanwhile
        try:
            if is_box:
                mount = self._records.find_mount(name)
                if mount is None:
                    return
                self._records.refresh_mount(mount)    # another process may have led it, or rolled it back
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
        except LayerStoreError as err:    # it is damaged
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
            warn_left_out(f"snapshot {self.id}", stream.left_out(), stays="snapshot")
