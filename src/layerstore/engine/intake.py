"""Registration: a layer is unpacked, described, put on the disk, and made visible by one rename.

Enters: a function that pushes a tar, and what the layer stands on. Leaves: a reference to the layer, and whether it
was not there before; or an error, and nothing on the disk. No lock is held while the tar is worked on.
Source: moby, layer/layer_store.go (registerWithDescriptor)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from layerstore._core import _files
from layerstore.disk.holds import Holds
from layerstore.disk.locks import Scope
from layerstore.drivers import Driver
from layerstore.engine.durability import Syncing
from layerstore.engine.record import Record, Reference
from layerstore.engine.records import Records
from layerstore.engine.references import References
from layerstore.errors import LayerDoesNotExistError, LayerStoreError, MaxDepthExceededError
from layerstore.ids import ChainID, DiffID, chain_on, diff_id_of, random_id
from layerstore.layerdb.keeping import Keeping
from layerstore.layerdb.store import FileMetadataStore
from layerstore.layerdb.transaction import FileMetadataTransaction
from layerstore.streams.sources import refuse_nothing
from layerstore.values import Descriptor, Durability

log = logging.getLogger("layerstore")

MAX_DEPTH = 125

Fill = Callable[[Any], None]


class Unpacked(NamedTuple):
    """A layer tar that was unpacked and stands on nothing yet; done: the core's Applied."""

    cache_id: str
    transaction: FileMetadataTransaction
    done: Any

    @property
    def diff_id(self) -> DiffID:
        """The DiffID of the tar."""
        return diff_id_of(self.done.diff_id)


class Registration:
    """Makes layers of one store."""

    def __init__(
        self, metadata: FileMetadataStore, driver: Driver, records: Records, holds: Holds, references: References,
        keeping: Keeping, syncing: Syncing, check_writable: Callable[[], None],
    ) -> None:  # fmt: skip
        """check_writable   raises where nothing may be added (any more): closed, read-only, a dockerd was started"""
        self._metadata, self._driver, self._records, self._holds = metadata, driver, records, holds
        self._references, self._keeping = references, keeping
        self._syncing, self._check_writable = syncing, check_writable
        self._lock = records.lock

    def register(self, fill: Fill, above: Record | None, descriptor: Descriptor, level: Durability) -> Reference:
        """Make a layer of what fill() pushes. Ends the use of `above`, whatever happens."""
        try:
            _check_depth(above)
            below = above.cache_id if above else ""
            with Scope(lambda: self._unpack(fill, below, allow_empty=False), self._end) as unpacked:
                return self._make_visible(unpacked, above, below, descriptor, level)
        finally:
            if above:                     # what stands on it keeps it now
                self._references.end_use(above)

    # ---- layers unpacked before it is known what they stand on: what images.load() is made of ----

    def unpack_ahead(self, fill: Fill) -> Unpacked:
        """Unpack what fill() pushes, for register_unpacked() or discard(). Nobody sees it till then.

        A tar of no bytes is taken: who knows what it must be compares its DiffID.
        Any number of threads at once. cleanup() takes it only when its process is gone.
        """
        self._check_writable()
        return self._unpack(fill, "", allow_empty=True)

    def register_unpacked(
        self, unpacked: Unpacked, parent: str, descriptor: Descriptor, level: Durability
    ) -> Reference:
        """Make a layer on parent of what was unpacked.

        Whatever happens, unpacked is spent. Raises as Store.register() does.
        """
        above: Record | None = None
        try:
            with Scope(lambda: unpacked, self._end):
                self._check_writable()
                above = self._references.use(parent) if parent else None
                _check_depth(above)
                below = above.cache_id if above else ""
                if above:
                    self._driver.put_on(unpacked.cache_id, below, unpacked.done)
                return self._make_visible(unpacked, above, below, descriptor, level)
        finally:
            if above:
                self._references.end_use(above)

    def discard(self, unpacked: Unpacked) -> None:
        """Remove what was unpacked. Never raises: what cannot be removed is cleanup()'s."""
        cache_id, transaction, _ = unpacked
        if not transaction.is_ours():
            return
        try:
            self._driver.remove(cache_id)
        except Exception as err:
            about = {"cache_id": cache_id, "error": err}
            log.error("Error cleaning up cache layer %s: %s", cache_id, err, extra=about)
        try:
            transaction.cancel()
        except OSError as err:
            about = {"directory": str(transaction), "error": err}
            log.error("Error canceling metadata transaction %s: %s", transaction, err, extra=about)

    def _end(self, unpacked: Unpacked) -> None:
        """Give back what a layer in the making holds; discard what did not become one. Can be begun again."""
        cache_id, transaction, _ = unpacked
        if transaction.kept:
            self._driver.recorded(cache_id)
            transaction.release()
        else:
            self.discard(unpacked)

    # ---- the steps ----

    def _unpack(self, fill: Fill, below: str, allow_empty: bool) -> Unpacked:
        """Unpack and record what fill() pushes, beside all layers."""
        cache_id, transaction = random_id(), self._metadata.start_deferred()
        try:
            self._driver.create(cache_id, below)
            record_fd = transaction.open_tar_split()
            try:
                done = self._driver.register(cache_id, below, record_fd, fill)
                if not allow_empty:
                    refuse_nothing(done)
                return Unpacked(cache_id, transaction, done)
            finally:
                _files.close(record_fd, str(transaction))
        except BaseException:
            self.discard(Unpacked(cache_id, transaction, None))
            raise

    def _make_visible(
        self, unpacked: Unpacked, above: Record | None, below: str, descriptor: Descriptor, level: Durability
    ) -> Reference:
        """Make a layer of unpacked, which is kept then, or hold the one that was there before. _end() comes after it.

        below   the driver id of `above` on which it was put
        """
        cache_id, transaction, _ = unpacked
        made: Record | None = None
        reference: Reference | None = None
        try:
            made = self._describe(unpacked, above, below, descriptor)
            reference = self._existing(made.chain_id)
            if reference is None:
                self._syncing.before([cache_id], transaction, above, level)
                with self._syncing.name("sha256", level):
                    reference = self._commit_or_existing(transaction, made, below)
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

    def _describe(self, unpacked: Unpacked, above: Record | None, below: str, descriptor: Descriptor) -> Record:
        """Write what the layerdb says of a layer that was unpacked: its record, which nobody sees yet."""
        cache_id, transaction, done = unpacked
        transaction.set_diff_id(unpacked.diff_id)
        transaction.set_size(done.size)
        transaction.set_cache_id(cache_id)
        if descriptor.digest:
            transaction.set_descriptor(descriptor)
        if above:
            transaction.set_parent(above.chain_id)
        self._driver.settle(cache_id, below)
        chain = chain_on(above.chain_id if above else "", unpacked.diff_id)
        return self._records.new_layer(chain, unpacked.diff_id, above, cache_id, done.size, descriptor)

    def _existing(self, chain_id: ChainID) -> Reference | None:
        """Hold the layer that was there before, if one was, and whole: then no disk need be waited for."""
        with self._lock, self._metadata.exclusive():
            self._check_writable()
            existing = self._records.load_current(chain_id)
            if existing is None or not self._driver.exists(existing.cache_id):
                return None
            return self._references.reference(existing)

    def _commit_or_existing(self, transaction: FileMetadataTransaction, made: Record, below: str) -> Reference:
        """Make a layer visible; where it is there already, and whole, that one wins."""
        chain, records = made.chain_id, self._records
        aside = None
        with self._lock, self._metadata.exclusive():
            self._check_writable()
            existing = records.load_current(chain)
            if existing is None or not self._driver.exists(existing.cache_id):
                if made.parent and not records.names_layer(made.parent.chain_id, below):
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
                existing = records.replace(existing, made)
            reference = self._references.reference(existing)
            if aside:
                text = "The broken layer %s was replaced by the one registered now"
                log.warning(text, chain, extra={"chain_id": chain, "cache_id": made.cache_id})
                self._stand_on_anew(existing)
        self._metadata.remove_aside(aside)
        return reference

    def _stand_on_anew(self, record: Record) -> None:
        """Under the lock: what stands on a layer that was replaced is told of its new directory."""
        self._records.forget_bad()

        def told(err: Exception) -> None:
            text, about = "Left as it was when %s was mended: %s", {"chain_id": record.chain_id, "error": err}
            log.warning(text, record.chain_id, err, extra=about)

        for chain_id in self._keeping.layers_on(record.chain_id, told=told):
            layer = self._records.load_current(chain_id)
            if layer:
                self._driver.stand_on(layer.cache_id, record.cache_id)
                self._stand_on_anew(layer)
        for name in self._keeping.mounts_on(record.chain_id, told=told):
            mount = self._records.find_mount(name)
            if mount:
                for id, below in ((mount.init_id, record.cache_id), (mount.mount_id, mount.init_id or record.cache_id)):
                    if id:
                        self._driver.stand_on(id, below)

    def _withdraw(self, made: Record | None) -> None:
        """A failure, or an interrupt, behind the rename that made a layer visible: make it invisible again."""
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
