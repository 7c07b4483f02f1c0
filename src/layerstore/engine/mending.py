"""Mending: what verify() and repair() are for one store: a layer, a layer that cannot even be loaded, a writable layer.

Enters: a ChainID or a name, and where to take a tar from. Leaves: the problems there were, all of them mended. Where
the tar of a damaged layer comes from is in repair.py; what a writable layer stands on in writable.py.
"""

from __future__ import annotations

import contextlib
from typing import Any

from layerstore.disk import dockerd
from layerstore.engine.contents import Contents
from layerstore.engine.durability import Syncing
from layerstore.engine.ground import Ground, said
from layerstore.engine.intake import Registration, Unpacked
from layerstore.engine.record import Record
from layerstore.engine.references import References
from layerstore.engine.repair import from_other_layers, tar_of
from layerstore.engine.verify import Verifier
from layerstore.engine.writable import WritableLayers
from layerstore.errors import CorruptLayerError, LayerDoesNotExistError, LayerStoreError
from layerstore.ids import ChainID, DiffID, chain_on, is_digest
from layerstore.streams.sources import SourceInput
from layerstore.values import Descriptor, Problem, Progress


class Mending:
    """Mends what one store has."""

    def __init__(
        self, ground: Ground, references: References, contents: Contents, syncing: Syncing, registration: Registration,
        writable: WritableLayers,
    ) -> None:  # fmt: skip
        self._ground, self._metadata, self._records = ground, ground.metadata, ground.records
        self._references, self._contents, self._syncing = references, contents, syncing
        self._registration, self._writable = registration, writable

    def verify(
        self, chain_id: str | None, metadata: bool = True, progress: Progress | None = None,
        workers: int | None = None,
    ) -> list[Problem]:  # fmt: skip
        """Compare a layer, or all there is, with what was registered, as Store.verify() does.

        While a dockerd works on the root, unowned things are left out: what it is making looks unowned.
        """
        ground, records = self._ground, self._records
        ground.check_open()
        with records.lock:
            records.load_all()
            if chain_id is not None and chain_id not in records.layers and chain_id not in records.bad:
                raise LayerDoesNotExistError(chain_id=chain_id)
            chosen = [r for c, r in records.layers.items() if chain_id in (None, c)]
            found = [Problem("metadata", str(c), "", str(e)) for c, e in records.bad.items() if chain_id in (None, c)]
            bad_mounts, mounts = list(records.bad_mounts.items()), list(records.mounts.values())
            for mount in mounts:                 # another store may have led it to a layer, or rolled it back
                records.refresh_mount(mount)
            for record in chosen:                # none is deleted by this store while it is read
                record.used += 1
        try:
            verifier = Verifier(ground, attributes=metadata)
            found += verifier.layers(chosen, progress, workers)
            gone = {r.chain_id for r in chosen if not r.held and not ground.metadata.has(r.chain_id)}
            found = [problem for problem in found if problem.subject not in gone]
        finally:
            for record in chosen:
                with records.lock:
                    record.used -= 1
                self._references.sweep(record.chain_id)
        if chain_id is None:
            found += [Problem("metadata", name, "", str(err)) for name, err in bad_mounts]
            for mount in mounts:
                found += verifier.mount(mount, self._writable.stacks_of)
            for id in self._writable.stacks.snapshots.names():
                found += verifier.snapshot(id, self._writable.stacks)
            found += verifier.images(ground.images)
            if dockerd.locked_database(ground.root) is None:
                found += verifier.orphans(records.owned)
        return found

    def repair(self, subject: str, source: Any, progress: Progress | None) -> list[Problem]:
        """Mend a layer, or a writable layer by its name, as Store.repair() does."""
        self._ground.check_writable()
        if not is_digest(subject) and self._metadata.has_mount(subject):
            return self.writable(subject)
        return self.layer(subject, source, progress)

    # ---- layers ----

    def layer(self, chain_id: str, source: Any, progress: Progress | None) -> list[Problem]:
        """Mend a layer. Raises as Store.repair() does."""
        problems = self.verify(chain_id)
        if not problems:
            return []
        with self._records.lock:
            record = self._records.load(chain_id)
        if record is None or not self._stands(record):
            self._register_again(chain_id, record, source, progress)
        else:
            with self._references.using(chain_id) as record:
                self._mend(record, source, progress)
        with self._records.lock:
            self._records.forget_bad()        # what stands on it can be read again
        left = self.verify(chain_id)
        if left:
            why = f"{chain_id} could not be mended: {left[0].detail}"
            raise CorruptLayerError(why, chain_id=chain_id, path=left[0].path)
        return problems

    def _mend(self, record: Record, source: Any, progress: Progress | None) -> None:
        """Mend what can be mended of one layer, which stays meanwhile.

        source   of its tar; None: damaged files are taken from other layers
        """
        parent = record.parent.chain_id if record.parent else ""
        self._metadata.rewrite(
            record.chain_id, record.diff_id, record.diff_size, record.cache_id, parent, record.descriptor
        )
        self._ground.stored(record).mend(emptied=True)
        # What is left needs the tar: files, or what describes them.
        problems = self.verify(record.chain_id)
        if problems:
            self._from_tar(record, problems, source, progress)

    def _from_tar(self, record: Record, problems: list[Problem], source: Any, progress: Progress | None) -> None:
        """Put files of the tar, unpacked beside the layer, in the place of damaged ones. Its DiffID decides."""
        level = self._syncing.level("full")
        with contextlib.ExitStack() as stack:
            if source is None:
                tar: Any = from_other_layers(self._contents, record, problems, self._contents.layers(), stack)
            else:
                tar = tar_of(record.chain_id, record.diff_id, source, stack)
            given, below = SourceInput(tar, progress), record.directories[1:]
            unpacked = self._registration.unpack(given, below, like=record.cache_id)
        draft, host, layer = unpacked.draft, self._ground.driver.host, self._ground.stored(record)
        try:
            if unpacked.diff_id != record.diff_id:
                why = f"the source is another layer: its DiffID is {unpacked.diff_id}, not {record.diff_id}"
                raise CorruptLayerError(why, chain_id=record.chain_id)
            host.sync([draft.id], level, everything=True)
            if not layer.is_described_by_its_sidecars(draft):
                self._metadata.take_sidecars(record.chain_id, unpacked.transaction)
                problems = self.verify(record.chain_id)      # whole sidecars tell more than damaged ones did
            layer.rebuild_from(draft, dict.fromkeys(p.path for p in problems if p.path))
            host.sync([record.cache_id], level, everything=True)
        finally:
            self._registration.discard(unpacked)

    def _stands(self, record: Record) -> bool:
        """Let a layer that lost its parent stand on it again. False: its DiffID is another one, too."""
        below = record.parent.chain_id if record.parent else ""
        if chain_on(below, record.diff_id) == record.chain_id:
            return True
        try:
            below = self._stood_on(record.chain_id, record.diff_id)
        except CorruptLayerError:
            return False
        with self._records.lock:
            record.stand_on(self._records.load(below) if below else None)
        return True

    def _register_again(self, chain_id: str, loaded: Record | None, source: Any, progress: Progress | None) -> None:
        """Replace what is noted of a layer that cannot be right: its tar, and the layers there are, say what it was.

        loaded   its record, where it could be loaded all the same
        """
        damaged = self._records.bad.get(chain_id)
        parent = ""
        with contextlib.suppress(OSError, LayerStoreError):
            named = self._metadata.get_parent(chain_id)
            parent = named if chain_on(named, self._metadata.get_diff_id(chain_id)) == chain_id else ""
        if parent in self._records.bad:
            why = f"{chain_id} stands on {parent}, which is damaged: repair that first"
            raise CorruptLayerError(why, chain_id=chain_id) from damaged
        if source is None:
            why = f"the metadata of {chain_id} cannot be read: its tar, or another store, is needed"
            raise CorruptLayerError(why, chain_id=chain_id) from damaged
        descriptor = said(self._metadata.get_descriptor, chain_id, Descriptor())
        with contextlib.ExitStack() as stack:
            tar = tar_of(chain_id, "", source, stack)
            unpacked = self._registration.unpack_ahead(tar, progress)
        try:
            parent = self._stood_on(chain_id, unpacked.diff_id)
        except BaseException:
            self._registration.discard(unpacked)
            raise
        if loaded is not None:
            self._rewrite(loaded, unpacked, parent)
            return
        self._references.let_go(self._registration.register_unpacked(unpacked, parent, descriptor, "full"))

    def _rewrite(self, record: Record, unpacked: Unpacked, parent: str) -> None:
        """Set the DiffID and the parent of a layer that its ChainID follows from; its files stay."""
        try:
            diff_id, size = unpacked.diff_id, unpacked.received.size
            self._metadata.rewrite(record.chain_id, diff_id, size, record.cache_id, parent, record.descriptor)
            self._metadata.take_sidecars(record.chain_id, unpacked.transaction)
        finally:
            self._registration.discard(unpacked)
        with self._records.lock:
            record.diff_id, record.diff_size = diff_id, size
            record.stand_on(self._records.load(parent) if parent else None)

    def _stood_on(self, chain_id: str, diff_id: DiffID) -> str:
        """Find what a layer with this DiffID must stand on to have this ChainID; "" for nothing."""
        with self._records.lock:
            self._records.load_all()
            bad = [ChainID(chain) for chain in self._records.bad]
            known: list[str] = ["", *self._records.layers]
        for parent in [*known, *bad]:
            if chain_on(parent, diff_id) != chain_id:
                continue
            if parent in bad:
                why = f"{chain_id} stands on {parent}, which is damaged: repair that first"
                raise CorruptLayerError(why, chain_id=chain_id)
            return parent
        noted = said(self._metadata.get_diff_id, chain_id, "")
        if noted and noted != diff_id:
            why = f"the source is another layer: its DiffID is {diff_id}, not {noted}"
            raise CorruptLayerError(why, chain_id=chain_id)
        raise CorruptLayerError(
            f"the source has the DiffID {diff_id}, which gives {chain_id} on no layer of this store: it is not its tar,"
            " or what it stood on is gone and is to be registered first",
            chain_id=chain_id,
        )

    # ---- writable layers ----

    def writable(self, name: str) -> list[Problem]:
        """Mend the record and the small files of a writable layer. Raises as Store.repair() does."""
        problems = self._look(name)
        if problems:
            self._writable.mend(name)
        left = self._look(name)
        if left:
            raise CorruptLayerError(f"{name} could not be mended: {left[0].detail}", name=name)
        return problems

    def _look(self, name: str) -> list[Problem]:
        with self._records.lock:
            self._records.load_mounts()
            bad, mount = self._records.bad_mounts.get(name), self._records.mounts.get(name)
        told = [Problem("metadata", name, "", str(bad))] if bad else []
        return told + (Verifier(self._ground).mount(mount, self._writable.stacks_of) if mount else [])
