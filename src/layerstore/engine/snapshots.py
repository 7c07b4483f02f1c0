"""Snapshots: the frozen states of writable layers: taken, found, released.

Enters: a writable layer, or an id. Leaves: ids. A snapshot is the directory that the box wrote to until then: the
driver gives the box an empty one in its place, under the mounted path. The record, which makes it a snapshot, comes
last, by one rename: so a call that is interrupted leaves the box as it was, or with one more directory below.
Source: sandbox.md 3, 5, 6
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Literal

from layerstore.disk import cgroup
from layerstore.disk.locks import surely
from layerstore.disk.textfile import remove_directory
from layerstore.engine.durability import Syncing
from layerstore.engine.ground import Ground, said
from layerstore.engine.loose import Loose
from layerstore.engine.promote import Promotion
from layerstore.engine.record import Mount
from layerstore.engine.references import References
from layerstore.engine.squash import Squash
from layerstore.engine.stacks import MAX_LOWERS, Place, Stacks
from layerstore.engine.writable import WritableLayers
from layerstore.errors import (
    ActiveMountError,
    LayerDoesNotExistError,
    LayerStoreError,
    MaxDepthExceededError,
    MountDoesNotExistError,
    StoreInUseError,
)
from layerstore.ids import random_id
from layerstore.layerdb.snapshots import Saved
from layerstore.values import Durability, Metadata, StrPath

log = logging.getLogger("layerstore")


class Snapshots:
    """The snapshots of one store."""

    def __init__(
        self, ground: Ground, references: References, stacks: Stacks, loose: Loose, syncing: Syncing,
        writable: WritableLayers, squash: Squash, promotion: Promotion,
    ) -> None:  # fmt: skip
        self._ground, self._metadata, self._records = ground, ground.metadata, ground.records
        self._writables, self._lock, self._db = ground.driver.writables, ground.records.lock, stacks.snapshots
        self._references, self._stacks, self._loose = references, stacks, loose
        self._syncing, self._writable, self._squash, self._promotion = syncing, writable, squash, promotion

    # ---- taking ----

    def take(self, mount: Mount, busy: str, freeze: StrPath | None, level: Durability) -> tuple[str, Saved | None]:
        """Freeze what a box holds, and return the id of the snapshot, and its record.

        Raises   as RWLayer.snapshot() does
        """
        self._ground.check_writable()
        group = os.fsdecode(freeze) if freeze is not None else ""
        if group:
            cgroup.check(group)
        with self._writable.entered(mount) as place:
            return self.take_entered(mount, place, busy, group, level)

    def take_entered(
        self, mount: Mount, place: Place, busy: str, group: str, level: Durability, *, record: bool = True
    ) -> tuple[str, Saved | None]:
        """Do what take() does, of a box that is held and stands there.

        record   False: it gets no record, and is loose; the caller publishes it
        """
        place, merged = self._squash.grown(mount, place, level)
        if len(place.stack) + 1 > MAX_LOWERS:
            why = f"{MaxDepthExceededError.text}: {mount.name} stands on {len(place.stack)} directories"
            what = f"{why}; release snapshots below it, or commit it"
            raise MaxDepthExceededError(what, name=mount.name, chain_id=place.base)
        self._db.make()                   # so that others look for what has no record, too
        id = random_id()
        inits: list[str] = []
        how, saved = "", None
        try:
            stack = self._own_init(mount, id, place.stack, inits)
            how = self._freeze(mount, id, stack, busy, group, level)
            if how == "frozen":
                mount.sound = ([id, *stack], mount.parent_state)
            if record:
                saved = self._record(id, mount, place.layer.chain_id if place.layer else "", level)
            else:
                self._note(mount)
            self._publish([*inits, id] if record else inits)
        except BaseException:
            surely(self._end_failed, mount, id, inits)
            raise
        if how == "frozen" or not self._writables.is_mounted(mount.mount_id):
            self._loose.drop(merged)          # no mount uses them now
        else:
            self._squash.leave(mount, merged)
        return id, saved

    def _end_failed(self, mount: Mount, id: str, inits: list[str]) -> None:
        """Leave a box whole whose snapshot failed: the disk tells how far that came, also after an interrupt."""
        if self._db.has(id):              # it is one, whatever came into it then
            self._publish([*inits, id])
            return
        below = said(self._writables.stack_of, mount.mount_id, None)
        if below is not None and id not in below:
            self._remove([id, *inits])
            return
        try:                              # the box stands on it: it goes on with one more directory below
            self._note(mount)
        finally:
            self._publish([*inits, id])

    def _note(self, mount: Mount) -> None:
        with self._lock, self._metadata.exclusive(), self._loose.changing(mount.key):
            pass                              # its `lower` names more than it did

    def _publish(self, ids: list[str]) -> None:
        for id in ids:
            self._writables.publish(id)

    def _remove(self, ids: list[str]) -> None:
        for id in ids:
            with contextlib.suppress(OSError):
                self._writables.remove(id)

    def _own_init(self, mount: Mount, id: str, stack: list[str], made: list[str]) -> list[str]:
        """Return the stack with a copy of the box's own init layer in its place, which goes with the box."""
        own = f"{mount.mount_id}-init"
        if own not in stack:
            return stack
        at, init = stack.index(own), f"{id}-init"
        made.append(init)
        self._writables.copy(own, init, stack[at + 1 :])
        return [init if each == own else each for each in stack]

    def _freeze(
        self, mount: Mount, id: str, stack: list[str], busy: str, group: str, level: Durability
    ) -> Literal["frozen", "cloned"]:
        """Make the directory of a snapshot, claimed: what the box wrote, or a copy of that."""
        try:
            self._writables.freeze(
                mount.mount_id, id, stack, lambda into: self._sync([mount.mount_id, into], level),
                durable=level != "none",
            )  # fmt: skip
        except ActiveMountError:
            if busy == "error":
                raise
            with cgroup.frozen(group) if group else contextlib.nullcontext():
                self._writables.clone(mount.mount_id, id, stack)
            self._sync([id], level)
            return "cloned"
        self._sync([mount.mount_id, id], level)
        return "frozen"

    def _sync(self, ids: list[str], level: Durability) -> None:
        self._ground.driver.host.sync(ids, level)

    def _record(self, id: str, mount: Mount, parent: str, level: Durability) -> Saved:
        """Make a snapshot of a frozen directory: from here on it has a name."""
        transaction = self._metadata.start_deferred()
        try:
            self._db.start(mount.name, parent, transaction)
            if level != "none":
                transaction.sync()
            with self._syncing.name("snapshots", level), self._lock, self._metadata.exclusive():
                self._ground.check_writable()
                if not self._records.names_mount(mount):
                    raise MountDoesNotExistError(name=mount.name)
                with self._loose.changing(id, mount.key):
                    created = self._db.publish(id, transaction, sync=level != "none")
        except BaseException:
            with contextlib.suppress(OSError):
                if transaction.published and self._db.has(id):
                    aside = self._db.set_aside(id)
                    if aside:
                        remove_directory(aside)
                transaction.cancel()
            raise
        surely(transaction.release)
        return Saved(mount.name, created, parent)

    # ---- finding ----

    def check(self, id: str) -> str:
        """Return the id of a snapshot that has a record. Raises LayerDoesNotExistError."""
        self._ground.check_open()
        if not isinstance(id, str):
            raise TypeError(f"the id of a snapshot is a str, not {type(id).__name__}")
        if not self._db.has(id):
            raise LayerDoesNotExistError(f"{LayerDoesNotExistError.text}: there is no snapshot {id!r}", chain_id=id)
        self._promotion.finish(id)
        return id

    def is_recorded(self, id: str) -> bool:
        """Return True if a snapshot was not released."""
        return self._db.has(id)

    def finish_all(self) -> None:
        """Finish commits that were interrupted. What cannot be finished is logged."""
        for id in self._db.names():
            self._promotion.finish(id)

    def is_committed(self, id: str) -> bool:
        """Return True if a snapshot is a layer, too."""
        return bool(self._db.layer(id))

    def read(self, id: str) -> Saved:
        """Return what a record says; of a loose one what its directory says."""
        if self._db.has(id):
            with contextlib.suppress(FileNotFoundError):
                return self._db.read(id)
        return Saved("", self._writables.changed(id), "")

    def all(self) -> list[str]:
        """List the ids, in the order in which they were taken."""
        self._ground.check_open()
        found = []
        for id in self._db.names():
            try:
                found.append((self._db.read(id).created, id))
            except FileNotFoundError:
                continue                  # released meanwhile
            except (OSError, LayerStoreError) as err:
                log.warning("Failed to load snapshot %s: %s", id, err, extra={"snapshot": id, "error": err})
        return [id for _, id in sorted(found)]

    def beginning_with(self, prefix: str) -> Iterator[str]:
        """Yield the ids that begin so."""
        yield from (id for id in self._db.names() if id.startswith(prefix))

    # ---- release ----

    def drop_if_unneeded(self, ids: list[str]) -> None:
        """Remove loose directories that nothing stands on."""
        self._loose.drop(ids)

    def release(self, id: str) -> list[Metadata]:
        """Release a snapshot. Returns the layers that went with it, top first; [] if it was released before."""
        self._ground.check_writable()
        if not self._db.has(id):
            return []
        w = self._writables
        try:                              # a record that lost its directory goes, too
            with w.hold(id) if w.exists(id) else contextlib.nullcontext():
                candidates, layer, aside = self._take_record(id)
        except FileNotFoundError:
            if self._db.has(id):
                raise
            return []                     # it was released meanwhile
        if aside:
            remove_directory(aside)
        self._loose.drop(candidates)
        return self._references.sweep(layer) if layer else []

    def _take_record(self, id: str) -> tuple[list[str], str, str | None]:
        """Set the record of a held snapshot aside. Returns what it kept, and where the record is now."""
        self._promotion.settle(id)        # without a record nothing tells that a commit was interrupted
        with self._lock, self._metadata.exclusive():
            if not self._db.has(id):
                return [], "", None
            candidates, layer = self._keeps(id)
            with self._loose.changing(id):
                return candidates, layer, self._db.set_aside(id)

    def _keeps(self, id: str) -> tuple[list[str], str]:
        """Name the directories, nearest first, and the layer that a snapshot keeps."""
        try:
            place = self._stacks.find(id).place
            return place.loosenable, place.layer.chain_id if place.layer else ""
        except (OSError, LayerStoreError) as err:
            text = "Cannot read what the snapshot %s stands on; cleanup() will remove what is unowned: %s"
            log.warning(text, id, err, extra={"snapshot": id, "error": err})
            return [id], ""

    def remove(self, id: str) -> list[Metadata]:
        """Release a snapshot that nothing stands on.

        Raises  LayerDoesNotExistError
                StoreInUseError   something stands on it; nothing was done
        """
        self._ground.check_writable()
        self.check(id)
        with self._lock, self._metadata.exclusive():
            standing = [] if self._db.layer(id) else self._loose.standing_on(id)
        for entry in standing:
            is_box = entry.startswith("rw ")
            what = f"the writable layer {entry[3:]}" if is_box else f"the snapshot {entry}"
            raise StoreInUseError(f"the snapshot {id} is needed: {what} stands on it", chain_id=id)
        return self.release(id)
