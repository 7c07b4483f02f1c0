"""Registration: a layer is unpacked, described, put on the disk, and made visible by one rename.

Enters: a tar, and what the layer stands on. Leaves: a reference to the layer, and whether it
was not there before; or an error, and nothing on the disk. No lock is held while the tar is worked on.
Source: moby, layer/layer_store.go (registerWithDescriptor)
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from layerstore.disk.locks import Scope, surely
from layerstore.drivers import Draft, Received, Stack
from layerstore.engine.durability import Syncing
from layerstore.engine.ground import Ground
from layerstore.engine.record import Record, Reference
from layerstore.engine.references import References
from layerstore.errors import LayerDoesNotExistError, LayerStoreError, MaxDepthExceededError
from layerstore.ids import ChainID, DiffID, Digest, chain_on, random_id
from layerstore.layerdb.keeping import Keeping
from layerstore.layerdb.transaction import FileMetadataTransaction
from layerstore.streams.sources import SourceInput, TarInput, refuse_nothing
from layerstore.values import Descriptor, Durability, Progress

log = logging.getLogger("layerstore")

MAX_DEPTH = 125


class Unpacked(NamedTuple):
    """A layer tar that was unpacked and stands on nothing yet."""

    draft: Draft
    transaction: FileMetadataTransaction
    received: Received

    @property
    def diff_id(self) -> DiffID:
        """The DiffID of the tar."""
        return self.received.diff_id

    @property
    def source_digest(self) -> Digest | None:
        """The digest of the source as it came, compressed if it was; None if it was not asked for."""
        return self.received.source_digest

    @property
    def source_size(self) -> int:
        """Bytes of the source as it came."""
        return self.received.source_size


class Registration:
    """Makes layers of one store."""

    def __init__(self, ground: Ground, references: References, keeping: Keeping, syncing: Syncing) -> None:
        self._ground, self._metadata, self._driver = ground, ground.metadata, ground.driver
        self._records, self._holds, self._lock = ground.records, ground.holds, ground.records.lock
        self._references, self._keeping, self._syncing = references, keeping, syncing

    def register(
        self, source: Any, parent: str, descriptor: Descriptor | None, durability: str | None, progress: Progress | None
    ) -> Reference:
        """Store one layer tar. Raises as Store.register() does."""
        level = self._syncing.level(durability)
        above = self._references.use(parent) if parent else None
        return self.register_on(above, SourceInput(source, progress), descriptor or Descriptor(), level)

    def register_on(
        self, above: Record | None, given: TarInput, descriptor: Descriptor, level: Durability
    ) -> Reference:
        """Make a layer of a tar. Ends the use of `above`, whatever happens."""
        try:
            _check_depth(above)
            stack = above.directories if above else []
            with Scope(lambda: self.unpack(given, stack, refuse_empty=True), self._end) as unpacked:
                return self._make_visible(unpacked, above, stack, descriptor, level)
        finally:
            if above:                     # what stands on it keeps it now
                self._references.end_use(above)

    # ---- layers unpacked before it is known what they stand on: what images.load() is made of ----

    def unpack_ahead(self, source: Any, progress: Progress | None = None, digest: str | None = None) -> Unpacked:
        """Unpack a tar, for register_unpacked() or discard(). Raises as Store.unpack_ahead() does.

        source   as Store.unpack_ahead() takes it, or a TarInput
        A tar of no bytes is taken: a caller that knows what it must be compares its DiffID.
        """
        self._ground.check_writable()
        pumps = progress is None and hasattr(source, "pump_into")
        return self.unpack(source if pumps else SourceInput(source, progress), [], digest=digest)

    def register_unpacked(
        self, unpacked: Unpacked, parent: str, descriptor: Descriptor | None, durability: str | None
    ) -> Reference:
        """Make a layer on parent of what was unpacked, which is spent. Raises as Store.register() does."""
        level = self._syncing.level(durability)
        above: Record | None = None
        made: list[Reference] = []
        try:
            try:
                with Scope(lambda: unpacked, self._end):
                    self._ground.check_writable()
                    above = self._references.use(parent) if parent else None
                    _check_depth(above)
                    stack = above.directories if above else []
                    unpacked.draft.place_on(stack)
                    made.append(self._make_visible(unpacked, above, stack, descriptor or Descriptor(), level))
            finally:
                if above:
                    self._references.end_use(above)
        except BaseException:
            for reference in made:        # an interrupt behind the last step
                surely(self._take_back, reference)
            raise
        return made[0]

    def _take_back(self, reference: Reference) -> None:
        if reference.is_new:
            self._references.release(reference, reference.record.chain_id)
        else:
            self._references.let_go(reference)

    def discard(self, unpacked: Unpacked) -> None:
        """Remove what was unpacked. Never raises: what cannot be removed is cleanup()'s."""
        self._discard(unpacked.draft, unpacked.transaction)

    def _discard(self, draft: Draft, transaction: FileMetadataTransaction) -> None:
        if not transaction.is_ours():
            return
        try:
            draft.discard()
        except Exception as err:
            about = {"cache_id": draft.id, "error": err}
            log.error("Error cleaning up cache layer %s: %s", draft.id, err, extra=about)
        try:
            transaction.cancel()
        except OSError as err:
            about = {"directory": str(transaction), "error": err}
            log.error("Error canceling metadata transaction %s: %s", transaction, err, extra=about)

    def _end(self, unpacked: Unpacked) -> None:
        """Release what a layer in the making holds; discard what did not become one. Can be begun again."""
        if unpacked.transaction.kept:
            unpacked.draft.publish()
            unpacked.transaction.release()
        else:
            self.discard(unpacked)

    # ---- the steps ----

    def unpack(
        self, given: TarInput, stack: Stack, *, like: str = "", refuse_empty: bool = False, digest: str | None = None
    ) -> Unpacked:
        """Unpack a tar on a stack, beside all layers; like, digest: as Layers.begin() and Draft.receive() have it."""
        draft = self._driver.layers.begin(random_id(), stack, like=like)
        transaction = self._metadata.start_deferred()
        try:
            received = draft.receive(given, transaction.open_sidecar, digest)
            if refuse_empty:
                refuse_nothing(received)
            return Unpacked(draft, transaction, received)
        except BaseException:
            self._discard(draft, transaction)
            raise

    def _make_visible(
        self, unpacked: Unpacked, above: Record | None, stack: Stack, descriptor: Descriptor, level: Durability
    ) -> Reference:
        """Make a layer of unpacked, which is kept then, or hold the one that was there before. _end() comes after it.

        stack   the driver ids of `above` and of all below it, on which it was placed
        """
        cache_id, transaction = unpacked.draft.id, unpacked.transaction
        made: Record | None = None
        reference: Reference | None = None
        try:
            draft, transaction, received = unpacked
            draft.settle()
            made = self.describe(draft.id, received, transaction, above, descriptor)
            reference = self.existing(made.chain_id)
            if reference is None:
                self._syncing.before([cache_id], transaction, above, level)
                with self._syncing.name("sha256", level):
                    reference = self.commit_or_existing(transaction, made, stack)
            if reference.took_mark:
                self._keeping.settle(made.chain_id)
            if level == "full" and reference.record is made:
                made.durable = True
            self._syncing.ensure(reference.record, level)
        except BaseException:
            if reference and reference.record is not made:
                self._references.let_go(reference)       # of a layer that was there before, and stays
            try:
                if transaction.published:
                    self._withdraw(made)
            except (OSError, LayerStoreError):
                transaction.kept = True           # still visible, perhaps: then it is whole, else cleanup()'s
                if reference and reference.record is made:
                    self._references.let_go(reference)
                raise
            raise
        reference.is_new = transaction.kept = reference.record.cache_id == cache_id
        return reference

    def describe(
        self, id: str, received: Received, transaction: FileMetadataTransaction, above: Record | None,
        descriptor: Descriptor,
    ) -> Record:  # fmt: skip
        """Write what the layerdb says of a layer that lies in the driver's directory id: its record, invisible."""
        transaction.set_diff_id(received.diff_id)
        transaction.set_size(received.size)
        transaction.set_cache_id(id)
        if descriptor.digest:
            transaction.set_descriptor(descriptor)
        if above:
            transaction.set_parent(above.chain_id)
        chain = chain_on(above.chain_id if above else "", received.diff_id)
        return Record(self._holds, chain, received.diff_id, above, id, received.size, descriptor)

    def existing(self, chain_id: ChainID) -> Reference | None:
        """Hold the layer that was there before, if one was, and whole: then no disk need be waited for."""
        with self._lock, self._metadata.exclusive():
            self._ground.check_writable()
            existing = self._records.load_current(chain_id)
            if existing is None or not self._driver.layers.exists(existing.cache_id):
                return None
            return self._references.reference(existing)

    def commit_or_existing(self, transaction: FileMetadataTransaction, made: Record, stack: Stack) -> Reference:
        """Make a layer visible; where it is there already, and whole, that one wins."""
        chain, records = made.chain_id, self._records
        aside = None
        with self._lock, self._metadata.exclusive():
            self._ground.check_writable()
            existing = records.load_current(chain)
            if existing is None or not self._driver.layers.exists(existing.cache_id):
                if made.parent and not records.names_layer(made.parent.chain_id, stack[0]):
                    gone = made.parent.chain_id
                    why = f"{LayerDoesNotExistError.text}: the parent {gone} was removed meanwhile"
                    raise LayerDoesNotExistError(why, chain_id=gone)
                aside = self._metadata.set_aside(chain) if self._metadata.has(chain) else None
                try:
                    transaction.publish(chain)
                except BaseException:
                    if aside:
                        self._metadata.put_back(chain, aside)
                    raise
                before = existing.cache_id if existing else ""
                existing = records.replace(existing, made)
                self._ground.same.note(chain, made.diff_id)
                if before and self._ground.snapshots_db.any():
                    self._references.relead(before, made.cache_id)
            reference = self._references.reference(existing)
            if aside:
                text = "The broken layer %s was replaced by the one registered now"
                log.warning(text, chain, extra={"chain_id": chain, "cache_id": made.cache_id})
                self._stand_on_anew(existing)
        self._metadata.remove_aside(aside)
        return reference

    def _stand_on_anew(self, record: Record) -> None:
        """Lead what stands on a replaced layer to its new directory; under the lock."""
        self._records.forget_bad()

        def told(err: Exception) -> None:
            text, about = "Left as it was when %s was mended: %s", {"chain_id": record.chain_id, "error": err}
            log.warning(text, record.chain_id, err, extra=about)

        for chain_id in self._keeping.layers_on(record.chain_id, told=told):
            layer = self._records.load_current(chain_id)
            if layer:
                try:
                    self._ground.stored(layer).mend()
                except FileNotFoundError as err:      # its files are gone
                    told(err)
                self._stand_on_anew(layer)
        for name in self._keeping.mounts_on(record.chain_id, told=told):
            mount, stack = self._records.find_mount(name), record.directories
            if mount and self._ground.snapshots_db.any():
                continue                  # its `lower` was led by relead()
            for id in filter(None, (mount.init_id, mount.mount_id) if mount else ()):
                try:
                    self._driver.writables.mend(id, stack)
                except FileNotFoundError as err:
                    told(err)
                stack = [id, *stack]

    def _withdraw(self, made: Record | None) -> None:
        """Make a layer invisible again after a failure, or an interrupt, behind the rename."""
        if made is None:
            return
        with self._lock, self._metadata.exclusive():
            if self._records.layers.get(made.chain_id) is made:
                self._records.forget(made)
                self._holds.drop(made.chain_id)
            try:
                visible = self._metadata.get_cache_id(made.chain_id) == made.cache_id
            except (FileNotFoundError, NotADirectoryError, LayerStoreError):
                visible = False
            if visible:
                self._metadata.remove_aside(self._metadata.set_aside(made.chain_id))


def _check_depth(above: Record | None) -> None:
    if above and above.depth >= MAX_DEPTH:
        raise MaxDepthExceededError(chain_id=above.chain_id)
