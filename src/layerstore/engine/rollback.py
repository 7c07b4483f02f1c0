"""Rollback: a box drops what it holds and goes on from something else, in place.

Enters: a box, and what it goes on from. A note beside the box's record says what is going to happen, before anything
does: the next look at the box goes on from there. What was dropped is removed by a thread of the driver.
Source: sandbox.md 8
"""

from __future__ import annotations

import contextlib
import functools
import logging

from layerstore.disk.locks import surely
from layerstore.engine.durability import Syncing
from layerstore.engine.ground import Ground
from layerstore.engine.loose import Loose
from layerstore.engine.record import Mount
from layerstore.engine.references import References
from layerstore.engine.squash import Squash
from layerstore.engine.stacks import Place, Stacks, Target
from layerstore.engine.writable import WritableLayers
from layerstore.errors import ActiveMountError, LayerDoesNotExistError, LayerStoreError, MaxDepthExceededError
from layerstore.ids import random_id
from layerstore.layerdb.snapshots import Rollback
from layerstore.values import Durability

log = logging.getLogger("layerstore")


class Rollbacks:
    """Rollbacks of one store's boxes."""

    def __init__(
        self, ground: Ground, references: References, stacks: Stacks, loose: Loose, syncing: Syncing,
        writable: WritableLayers, squash: Squash,
    ) -> None:  # fmt: skip
        self._ground, self._metadata, self._records = ground, ground.metadata, ground.records
        self._writables, self._lock, self._db = ground.driver.writables, ground.records.lock, stacks.snapshots
        self._references, self._stacks, self._loose = references, stacks, loose
        self._syncing, self._writable, self._squash = syncing, writable, squash

    def rollback(self, mount: Mount, to: str, level: Durability, *, force: bool) -> None:
        """Let a box go on from a snapshot, a layer or nothing. Raises as RWLayer.rollback() does."""
        self._ground.check_writable()
        self._stacks.again(to, lambda target: self._rollback(mount, to, target, level, force=force))

    def _rollback(self, mount: Mount, to: str, target: Target, level: Durability, *, force: bool) -> None:
        with self._writable.entered(mount) as place:
            mount_id, w = mount.mount_id, self._writables
            is_read = w.require_idle(mount_id, force=force)
            if not to and w.is_mounted(mount_id):
                why = f"{mount.name} is mounted: a mounted box cannot go on from nothing; unmount it first"
                raise ActiveMountError(why, holders=(), name=mount.name)
            stack = self._stack_on(mount, place, target)
            if len(stack) > target.most:
                raise MaxDepthExceededError(name=mount.name, chain_id=to)
            fresh, upper = random_id(), w.upper(mount_id)
            dropped = [id for id in place.loosenable if id not in (mount_id, mount.init_id, *stack)]
            drop = functools.partial(self._drop, dropped, place.layer.chain_id if place.layer else "")
            try:
                w.make_fresh(mount_id, fresh, like=target.root)
                if place.stack:
                    w.restand(fresh, place.stack)         # what it will hold stands on that: a process may be inside
                self._go(mount, place, target, fresh, stack, level, force=force, is_read=is_read)
                w.discard(fresh, drop, was=mount_id)
            except BaseException:
                surely(self._end_failed, mount, fresh, upper)
                raise
            if not w.is_mounted(mount_id):                # else its next snapshot merges what has grown long
                self._loose.drop(self._squash.grown(mount, self._stacks.of_box(mount), level)[1])

    def _end_failed(self, mount: Mount, fresh: str, upper: int) -> None:
        """Remove the fresh directory, unless it has what the box held: the next look, or cleanup(), goes on then."""
        w = self._writables
        try:
            begun = self._db.rollback(mount.name) is not None or w.upper(mount.mount_id) != upper
        except (OSError, LayerStoreError):
            begun = True
        if begun:
            w.publish(fresh)
        else:
            with contextlib.suppress(OSError):
                w.remove(fresh)

    def _stack_on(self, mount: Mount, place: Place, target: Target) -> list[str]:
        """Return what the box will stand on; on a layer its own init layer stands in between, as at its creation."""
        init = place.init or mount.init_id
        if target.snapshot or not target.place.layer or not init:
            return target.place.stack
        return [init, *target.place.stack]

    def _go(
        self, mount: Mount, place: Place, target: Target, fresh: str, stack: list[str], level: Durability, *,
        force: bool, is_read: bool,
    ) -> None:  # fmt: skip
        name, w = mount.name, self._writables
        layer = target.place.layer
        upper, empty = w.upper(mount.mount_id), w.upper(fresh)
        then = Rollback(fresh, upper, w.text_of(stack), layer.chain_id if layer else "")
        back = Rollback(fresh, empty, w.text_of(place.stack), place.layer.chain_id if place.layer else "")
        sync = level != "none"
        with self._lock, self._metadata.exclusive():
            self._ground.check_writable()
            self._require(target)
            with self._loose.changing(mount.key):
                self._db.set_rollback(name, then, sync=sync)
        try:
            self._writable.go_on(mount, then, durable=sync)
            w.switch(mount.mount_id, force=force, is_read=is_read)
            if sync:
                self._ground.driver.host.sync([mount.mount_id, fresh], level)
        except BaseException:
            self._db.set_rollback(name, back, sync=sync)
            self._writable.go_on(mount, back, durable=sync)
            self._writable.end_rollback(mount)
            raise
        self._writable.end_rollback(mount)

    def _require(self, target: Target) -> None:
        """Make sure that the target is still there, under both locks: from now on the box keeps it."""
        place, id = target.place, target.snapshot
        self._stacks.require(target)
        if not id and place.layer and not self._records.names_layer(place.layer.chain_id, place.stack[0]):
            gone = f"{LayerDoesNotExistError.text}: {place.layer.chain_id} was removed meanwhile"
            raise LayerDoesNotExistError(gone, chain_id=place.layer.chain_id)

    def _drop(self, dropped: list[str], parent: str) -> None:
        """Remove what only this box kept, once nothing uses what it held."""
        try:
            self._loose.drop(dropped)
            if parent:
                self._references.sweep(parent)
        except (OSError, LayerStoreError) as err:
            log.warning("Left to cleanup(): %s", err, extra={"error": err})
