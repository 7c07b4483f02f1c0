"""Engine: one store at work: its parts, made and tied together.

The parts: ground.py (the opened root), records.py (what there is), references.py (who keeps it), intake.py (how a layer
is made), writable.py (writable layers), stacks.py (what they stand on), loose.py (what keeps a frozen directory),
snapshots.py, forks.py, rollback.py, squash.py, promote.py (a snapshot becomes a layer), looking.py (how they differ),
contents.py (what is in a layer), durability.py (what is on the disk), verify.py, mending.py and repair.py, reclaim.py,
usage.py. They know records; store.py makes Layer and RWLayer of them. Above the engine stands convert.py alone.
Locks, in this order: the name of a writable layer; the lock of both maps; the layerdb's, against other
processes. None is held during tar work, the latter two not while files are deleted or a disk is waited for. A layer
becomes visible by one rename; a removal renames first and cleanup() finishes it.
Other processes may work on the same root: what they registered is found when it is asked for, what they hold
(holds.py) is not deleted, and a lock on the layerdb is held for the moment in which a layer becomes visible or goes.
What stands on what: a box's own `lower` changes while the box is held; that of a frozen directory, and every record,
under the layerdb's lock, in one section that asks the disk again first. A snapshot stays as long as its directory is
held, as a commit does. A layer's directory stands on what the layer's record says, or its snapshot's record still
tells that this is to be done. What is merged lies above the nearest layer of all that stands on it.
Source: moby, layer/layer_store.go
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from layerstore.drivers import registry
from layerstore.engine.contents import Contents
from layerstore.engine.durability import Syncing
from layerstore.engine.forks import Forks
from layerstore.engine.ground import Ground
from layerstore.engine.intake import Registration
from layerstore.engine.looking import Looking
from layerstore.engine.loose import Loose
from layerstore.engine.mending import Mending
from layerstore.engine.promote import Promotion
from layerstore.engine.reclaim import Reclaim
from layerstore.engine.record import MountReference, Reference
from layerstore.engine.references import References
from layerstore.engine.rollback import Rollbacks
from layerstore.engine.snapshots import Snapshots
from layerstore.engine.squash import Squash
from layerstore.engine.stacks import Stacks
from layerstore.engine.usage import Weighing
from layerstore.engine.writable import WritableLayers
from layerstore.layerdb.keeping import Keeping
from layerstore.values import CreateRWLayerOpts, Durability, Metadata


class Engine(Ground):
    """What one Store object and all it gave share."""

    def __init__(self, root: str, driver: str | None, options: Mapping[str, str] | None) -> None:
        super().__init__(root, driver, options)
        keeping = Keeping(self.metadata, self.durability)
        self.syncing = Syncing(self)
        self.references = References(self, keeping)
        self.contents = Contents(self)
        self.intake = Registration(self, self.references, keeping, self.syncing)
        self.stacks = Stacks(self, self.references, self.contents)
        self.loose = Loose(self, self.references, self.stacks)
        self.references.standing_on, self.references.relead = self.loose.standing_on, self.loose.relead
        self.records.more_owned = self.loose.owned
        self.writable = WritableLayers(
            self, self.references, self.contents, self.syncing, self.stacks, self.loose
        )
        self.squash = Squash(self, self.stacks, self.loose, self.syncing, self.writable)
        self.promotion = Promotion(self, self.references, self.stacks, self.loose, self.syncing, self.intake)
        self.snapshots = Snapshots(
            self, self.references, self.stacks, self.loose, self.syncing, self.writable, self.squash, self.promotion
        )
        self.forks = Forks(self, self.stacks, self.loose, self.writable, self.snapshots, self.squash)
        self.rollbacks = Rollbacks(
            self, self.references, self.stacks, self.loose, self.syncing, self.writable, self.squash
        )
        self.looking = Looking(
            self, self.references, self.contents, self.stacks, self.syncing, self.intake, self.writable
        )
        self.mending = Mending(self, self.references, self.contents, self.syncing, self.intake, self.writable)
        self.reclaim = Reclaim(self, self.references)
        self.weighing = Weighing(self, self.references, self.reclaim)

    def describe(self) -> str:
        """Say which store it is, for a repr()."""
        read_only = ", read-only" if self.read_only else ""
        return f"{self.root} ({self.driver.host.name}{read_only}){', closed' if self.closed else ''}"

    def status(self) -> list[tuple[str, str]]:
        """Return what the driver says of itself, and which drivers the root has, if there are several."""
        self.check_open()
        names = registry.found(self.root)
        more = [("Drivers of this root", ", ".join(names))] if len(names) > 1 else []
        return [*self.driver.host.status(), *more]

    # ---- references ----

    def release(self, reference: Reference | None, chain_id: str) -> list[Metadata]:
        """Release a reference. Raises as Store.release() does."""
        self.check_open()
        return self.references.release(reference, chain_id)

    def take_back(self, reference: Reference | MountReference) -> None:
        """Undo the call that made this reference: what it made goes, and what was there before stays."""
        if isinstance(reference, Reference):
            if reference.is_new:
                self.release(reference, reference.record.chain_id)
            else:
                self.references.let_go(reference)
        elif reference.is_new:
            self.writable.release(reference)
        else:
            self.writable.let_go(reference)

    # ---- writable layers ----

    def create(self, name: str, parent: str, opts: CreateRWLayerOpts, level: Durability) -> MountReference:
        """Make a writable layer. Raises as Store.create_rw_layer() does."""
        return self.forks.grown(self.writable.create(name, parent, opts, level), level)

    # ---- the store itself ----

    def cleanup(self) -> None:
        """Finish what was interrupted and remove what is unowned, as Store.cleanup() does."""
        self.check_writable()
        with self.images.exclusive(self.check_writable):
            self.images.sweep()
        self.writable.finish_all()
        self.snapshots.finish_all()
        try:
            self.driver.host.cleanup()    # first, as a mount that is left may stand on what a squash has merged
        finally:
            self.reclaim.finish()
            with self.records.lock:
                self.records.forget_bad()

    def close(self) -> None:
        """Release everything. Twice is harmless."""
        self.closed = True
        self.driver.host.close()
        self.holds.close()

    def __del__(self) -> None:
        # Not if __init__ failed. The warning keeps a reference, which is an unfinished engine's last.
        if getattr(self, "closed", True):
            return
        held = sum(len(record.references) for record in self.records.layers.values())
        held_too = f", which holds {held} layers" if held else ""
        warnings.warn(f"unclosed store {self.root}{held_too}", ResourceWarning, source=self, stacklevel=2)
        self.close()
