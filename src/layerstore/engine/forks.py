"""Forks: a writable layer on what another one holds now.

Enters: a box and a name. Leaves: a reference to the new one. What the box held is frozen as a snapshot without a
record, which both stand on.
Source: sandbox.md 9
"""

from __future__ import annotations

import contextlib

from layerstore.engine.ground import Ground
from layerstore.engine.loose import Loose
from layerstore.engine.record import Mount, MountReference
from layerstore.engine.snapshots import Snapshots
from layerstore.engine.squash import MOST_FROZEN, Squash
from layerstore.engine.stacks import Place, Stacks, Target
from layerstore.engine.writable import WritableLayers
from layerstore.layerdb.transaction import check_mount_name
from layerstore.values import CreateRWLayerOpts, Durability


class Forks:
    """Makes forks of one store's boxes."""

    def __init__(
        self, ground: Ground, stacks: Stacks, loose: Loose, writable: WritableLayers, snapshots: Snapshots,
        squash: Squash,
    ) -> None:  # fmt: skip
        self._ground, self._writables, self._lock = ground, ground.driver.writables, ground.records.lock
        self._stacks, self._loose, self._writable = stacks, loose, writable
        self._snapshots, self._squash = snapshots, squash

    def fork(self, mount: Mount, name: str, level: Durability) -> MountReference:
        """Make a fork. Raises as RWLayer.fork() does; the box may then have one more directory below."""
        self._ground.check_writable()
        check_mount_name(name)
        self._writable.check_free(name)
        # Held until both have a record that names what they stand on: else a squash would merge it in between.
        with self._writable.entered(mount) as place:
            id, _ = self._snapshots.take_entered(mount, place, "clone", "", level, record=False)
            try:
                place = self._stacks.place(self._writables.stack_of(id), mount.parent)
                target = Target(Place([id, *place.stack], place.layer, place.at + 1), "")
                made = self._writable.create_on(name, target, CreateRWLayerOpts(), level)
            except BaseException:
                self._snapshots.drop_if_unneeded([id])
                raise
            finally:
                with contextlib.suppress(OSError):
                    self._writables.publish(id)
        return self.grown(made, level)

    def grown(self, made: MountReference, level: Durability) -> MountReference:
        """Merge below a new writable layer if its stack has grown long."""
        mount = made.mount
        if self._ground.snapshots_db.any() and len(self._writable.place(mount).frozen) >= MOST_FROZEN:
            with self._writable.entered(mount) as place:
                self._loose.drop(self._squash.grown(mount, place, level)[1])
        return made
