"""Engine: one store at work: its parts, made and tied together.

The parts: ground.py (the opened root), records.py (what there is), references.py (who keeps it), intake.py (how a layer
is made), writable.py (writable layers), contents.py (what is in a layer), durability.py (what is on the disk),
verify.py, mending.py and repair.py, reclaim.py. They know records; store.py makes Layer and RWLayer of them.
Locks, in this order: the name of a writable layer; the lock of both maps; the layerdb's, against other
processes. None is held during tar work, the latter two not while files are deleted or a disk is waited for. A layer
becomes visible by one rename; a removal renames first and cleanup() finishes it.
Other processes may work on the same root: what they registered is found when it is asked for, what they hold
(holds.py) is not deleted, and a lock on the layerdb is held for the moment in which a layer becomes visible or goes.
Source: moby, layer/layer_store.go
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

from layerstore.engine.contents import Contents
from layerstore.engine.durability import Syncing
from layerstore.engine.ground import Ground
from layerstore.engine.intake import Registration, Unpacked
from layerstore.engine.mending import Mending
from layerstore.engine.reclaim import Reclaim
from layerstore.engine.record import MountReference, Record, Reference
from layerstore.engine.references import References
from layerstore.engine.verify import verify
from layerstore.engine.writable import WritableLayers
from layerstore.ids import is_digest
from layerstore.layerdb.keeping import Keeping
from layerstore.streams.sources import SourceInput
from layerstore.values import Descriptor, Metadata, Orphan, Problem, Progress

log = logging.getLogger("layerstore")


class Engine(Ground):
    """What one Store object and all it gave share."""

    def __init__(self, root: str, driver: str | None, options: Mapping[str, str] | None) -> None:
        """Open, or make, the store below root. Raises as Store() does."""
        super().__init__(root, driver, options)
        keeping = Keeping(self.metadata, self.durability)
        self.syncing = Syncing(self)
        self.references = References(self, keeping)
        self.contents = Contents(self)
        self.intake = Registration(self, self.references, keeping, self.syncing)
        self.writable = WritableLayers(self, self.references, self.contents, self.syncing, self.intake)
        self.mending = Mending(self, self.references, self.contents, self.syncing, self.intake, self.writable)
        self.reclaim = Reclaim(self, self.references)

    def describe(self) -> str:
        """Say which store it is, for a repr()."""
        read_only = ", read-only" if self.read_only else ""
        return f"{self.root} ({self.driver.host.name}{read_only}){', closed' if self.closed else ''}"

    # ---- layers ----

    def register(
        self, source: Any, parent: str, descriptor: Descriptor | None, durability: str | None, progress: Progress | None
    ) -> Reference:
        """Store one layer tar. Raises as Store.register() does."""
        level = self.syncing.level(durability)
        above = self.references.use(parent) if parent else None

        return self.intake.register(SourceInput(source, progress), above, descriptor or Descriptor(), level)

    def unpack_ahead(self, source: Any, progress: Progress | None) -> Unpacked:
        """Unpack one layer tar beside all layers. Raises as Store.unpack_ahead() does."""
        self.check_writable()
        pumps = progress is None and hasattr(source, "pump_into")
        return self.intake.unpack_ahead(source if pumps else SourceInput(source, progress))

    def register_unpacked(
        self, unpacked: Unpacked, parent: str, descriptor: Descriptor | None, durability: str | None
    ) -> Reference:
        """Make a layer of what was unpacked ahead. Raises as Store.register_unpacked() does."""
        level = self.syncing.level(durability)
        return self.intake.register_unpacked(unpacked, parent, descriptor or Descriptor(), level)

    def layers(self) -> list[Record]:
        """Return all layers that can be read, as the disk has them now."""
        self.check_open()
        with self.records.lock:
            self.records.load_all()
            return list(self.records.layers.values())

    def find(self, chain_id: str) -> Record | None:
        """Return a layer as the disk has it now; None if it is not there, or cannot be read."""
        self.check_open()
        with self.records.lock:
            return self.records.load_current(chain_id)

    def release(self, reference: Reference | None, chain_id: str) -> list[Metadata]:
        """Give a reference back. Raises as Store.release() does."""
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

    def sync(self, record: Record, durability: str | None) -> None:
        """Make a layer that is stored as durable as is asked for."""
        self.syncing.ensure(record, self.syncing.level(durability))

    # ---- writable layers ----

    def mounts(self, on: str | None = None) -> list[str]:
        """Name the writable layers; on: those that stand right on this layer."""
        self.check_open()
        with self.records.lock:
            self.records.load_mounts()
            return sorted(
                mount.name for mount in self.records.mounts.values()
                if on is None or (mount.parent.chain_id if mount.parent else "") == on
            )  # fmt: skip

    # ---- the store itself ----

    def verify(
        self, chain_id: str | None = None, *, metadata: bool = True, progress: Progress | None = None,
        workers: int | None = None,
    ) -> list[Problem]:  # fmt: skip
        """Compare what is stored with what was registered, as Store.verify() does."""
        self.check_open()
        return verify(self, self.references, self.contents, chain_id, metadata, progress, workers)

    def repair(self, subject: str, source: Any, progress: Progress | None) -> list[Problem]:
        """Mend a layer, or a writable layer, as Store.repair() does."""
        self.check_writable()
        if not is_digest(subject) and self.metadata.has_mount(subject):
            return self.mending.writable(subject)
        return self.mending.layer(subject, source, progress)

    def cleanup(self) -> None:
        """Finish what was interrupted and remove what is unowned, as Store.cleanup() does."""
        self.check_writable()
        with self.images.exclusive(self.check_writable):
            self.images.sweep()
        self.reclaim.finish()
        with self.records.lock:
            self.records.forget_bad()
        self.driver.host.cleanup()

    def orphans(self) -> list[Orphan]:
        """List what is unowned, as Store.orphans() does."""
        self.check_open()
        return self.reclaim.find()

    def remove_orphans(self, *, dry_run: bool) -> list[Orphan]:
        """Remove what is unowned, as Store.reclaim() does."""
        self.check_open()
        found = self.reclaim.find_alone()
        if dry_run:
            return found
        self.check_writable()
        return self.reclaim.remove(found)

    def close(self) -> None:
        """Hold nothing any more. Twice is harmless."""
        self.closed = True
        self.holds.close()

    def __del__(self) -> None:
        # Not if __init__ failed. The warning keeps a reference, which is an unfinished engine's last.
        if getattr(self, "closed", True):
            return
        held = sum(len(record.references) for record in self.records.layers.values())
        held_too = f", which holds {held} layers" if held else ""
        warnings.warn(f"unclosed store {self.root}{held_too}", ResourceWarning, source=self, stacklevel=2)
        self.close()
