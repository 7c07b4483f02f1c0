"""Squash: released snapshots below a box that nothing else stands on become one directory.

Enters: a box that is held. Leaves: where it stands then, and the directories that were merged. The merged directory is
made beside; then each `lower` is replaced in one step, the lowest first: a mix of old and new shows the same tree. A
mount that lives keeps the old directories, so these go only after its next switch, or when it has ended.
Source: sandbox.md 11
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Sequence

from layerstore.disk.locks import surely
from layerstore.engine.durability import Syncing
from layerstore.engine.ground import Ground
from layerstore.engine.loose import Loose
from layerstore.engine.record import Mount
from layerstore.engine.stacks import MAX_LAYERS, MAX_LOWERS, Place, Stacks, is_init
from layerstore.engine.writable import WritableLayers
from layerstore.errors import ActiveMountError, LayerStoreError, MaxDepthExceededError
from layerstore.ids import random_id
from layerstore.values import Durability

log = logging.getLogger("layerstore")

MOST_FROZEN = 48
"""Snapshots in a stack; where there are more, those are merged that may be."""


class Squash:
    """Merges directories of one store's boxes."""

    def __init__(
        self, ground: Ground, stacks: Stacks, loose: Loose, syncing: Syncing, writable: WritableLayers
    ) -> None:
        self._ground, self._metadata, self._lock = ground, ground.metadata, ground.records.lock
        self._writables, self._snapshots = ground.driver.writables, stacks.snapshots
        self._stacks, self._loose, self._syncing, self._writable = stacks, loose, syncing, writable
        self._left: dict[str, list[str]] = {}             # by mount id: merged while its mount stood on them

    def squash(self, mount: Mount) -> None:
        """Merge all that may be merged below a box, and what it wrote if it is mounted and idle."""
        self._ground.check_writable()
        level = self._syncing.level(None)
        with self._writable.entered(mount) as place:
            if not self._mergeable(mount, place):
                return
            mounted = self._writables.is_mounted(mount.mount_id)
            idle = mounted and self._freezes(mount, place, level)
            place, merged = self._merge(mount, self._stacks.of_box(mount), level)
            # Once more, so that the mount lets go of what was merged.
            if not mounted or (idle and self._freezes(mount, place, level)):
                self._loose.drop(merged)
            else:
                self.leave(mount, merged)

    def grown(self, mount: Mount, place: Place, level: Durability) -> tuple[Place, list[str]]:
        """Merge below a held box if its stack has grown long.

        Returns  where it stands then, and what was merged: loose.drop() it behind the next switch of its mount
        """
        if len(place.frozen) < MOST_FROZEN and len(place.stack) < MAX_LAYERS:
            return place, []
        try:
            return self._merge(mount, place, level)
        except (OSError, LayerStoreError) as err:
            text = "The snapshots below %s could not be merged: %s"
            log.warning(text, mount.name, err, extra={"mount": mount.name, "error": err})
            return self._stacks.of_box(mount), []

    def leave(self, mount: Mount, merged: Sequence[str]) -> None:
        """Leave merged directories to the end of the mount that stands on them."""
        if merged:
            self._left.setdefault(mount.mount_id, []).extend(merged)

    def unmounted(self, mount: Mount) -> None:
        """Remove what was left to the end of a mount, if it has ended."""
        if mount.mount_id in self._left and not self._writables.is_mounted(mount.mount_id):
            self._loose.drop(self._left.pop(mount.mount_id, []))

    def _freezes(self, mount: Mount, place: Place, level: Durability) -> bool:
        """Freeze what a mounted box wrote, without a record. False: it is not idle, or stands on too much already."""
        if len(place.stack) >= MAX_LOWERS:
            return False
        id = random_id()
        try:
            self._writables.freeze(
                mount.mount_id, id, place.stack,
                lambda into: self._sync([mount.mount_id, into], level), durable=level != "none",
            )  # fmt: skip
            self._note([mount.key])
        except (ActiveMountError, MaxDepthExceededError):
            return False
        finally:
            self._writables.publish(id)   # of one that was undone there is no longer a claim
        return True

    def _sync(self, ids: Sequence[str], level: Durability) -> None:
        self._ground.driver.host.sync(ids, level)

    def _note(self, entries: Sequence[str]) -> None:
        with self._lock, self._metadata.exclusive(), self._loose.changing(*entries):
            pass

    def _mergeable(self, mount: Mount, place: Place) -> set[str]:
        """Return the loose directories of a stack on which nothing else stands."""
        with self._lock, self._metadata.exclusive():
            return self._mergeable_now(mount, place)

    def _mergeable_now(self, mount: Mount, place: Place) -> set[str]:
        """Do what _mergeable() does, under both locks.

        To all that stands on it such a directory must lie above the nearest layer: else it shows a layer there, or a
        part of one, and there is one directory for each.
        """
        own = {mount.key, *(id for id in place.stack if self._snapshots.has(id))}
        frozen = functools.cache(functools.partial(self._frozen_below, mount))
        found = set()
        for id in place.stack[: place.at]:
            if is_init(id) or id in own or self._loose.is_layer(id):
                continue
            standing = self._loose.standing_on(id)
            if own.issuperset(standing) and all(id in frozen(entry) for entry in standing):
                found.add(id)
        return found

    def _frozen_below(self, mount: Mount, entry: str) -> frozenset[str]:
        """Return what lies between a box or a snapshot and its nearest layer; nothing where that is not sure."""
        try:
            if entry == mount.key:
                return frozenset(self._stacks.of_box(mount).frozen)
            if self._snapshots.lower(entry) is not None:  # it is a layer, or about to be: its record names the rest
                return frozenset()
            return frozenset(self._stacks.of_snapshot(entry).frozen)
        except (OSError, LayerStoreError):
            return frozenset()

    def _merge(self, mount: Mount, place: Place, level: Durability) -> tuple[Place, list[str]]:
        """Merge each run of neighbours below a held box into one directory."""
        may, stack = self._mergeable(mount, place), list(reversed(place.stack))
        done: list[str] = []              # the new stack, nearest first
        made: list[str] = []
        merged: list[str] = []
        entries = [mount.key]
        changes: list[tuple[str, list[str]]] = []
        try:
            for is_free, group in itertools.groupby(stack, may.__contains__):
                run = list(group)
                if is_free and len(run) > 1:
                    made.append(into := random_id())
                    self._writables.merge(list(reversed(run)), into, done)
                    merged += reversed(run)
                    done = [into, *done]
                    continue
                for id in run:
                    if made:
                        changes.append((id, done))
                        entries += [id] if self._snapshots.has(id) else []
                    done = [id, *done]
            if not made:
                return place, []
            self._sync(made, level)
            with self._lock, self._metadata.exclusive():
                now = self._stacks.of_box(mount)      # other processes made layers of that meanwhile, or forks
                stays = now.stack == place.stack and self._mergeable_now(mount, now).issuperset(merged)
                if stays:
                    with self._loose.changing(*entries):
                        for id, below in changes:
                            if not self._loose.is_layer(id):      # that stands on what its record says
                                self._writables.restand(id, below)
                        self._writables.restand(mount.mount_id, done)
        finally:
            # Those that are named by a `lower` already stay; what an error left besides is cleanup()'s.
            for id in made:
                surely(self._writables.publish, id)
        if not stays:
            self._loose.drop(made)
            return self._stacks.of_box(mount), []
        return self._stacks.place(done, place.layer), merged
