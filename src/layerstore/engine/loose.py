"""Loose directories: frozen uppers without a record, kept as long as something that has one stands on them.

The disk says what stands on what: the `lower` of each writable layer and of each snapshot. They are counted in memory.
The count proves itself fresh by the time of the layerdb's directories, which each change moves on (SnapshotDB.note). It
is asked, and changed, under the lock of the layerdb.
Source: sandbox.md 3, 4
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator

from layerstore.disk.holds import read_key
from layerstore.disk.locks import surely
from layerstore.engine.ground import Ground
from layerstore.engine.references import References
from layerstore.engine.stacks import Stacks
from layerstore.errors import LayerStoreError
from layerstore.ids import is_driver_id
from layerstore.layerdb.keeping import UnreadableError

log = logging.getLogger("layerstore")


class Loose:
    """What is named by the stacks of one store's root, and what may go."""

    def __init__(self, ground: Ground, references: References, stacks: Stacks) -> None:
        self._ground, self._metadata, self._records = ground, ground.metadata, ground.records
        self._references, self._snapshots = references, stacks.snapshots
        self._writables, self._lock, self._holds = ground.driver.writables, ground.records.lock, ground.holds
        self._state: tuple[int, int] | None = None
        self._named: dict[str, tuple[str, ...]] = {}       # by "rw <name>" or the id of a snapshot
        self._count: Counter[str] = Counter()
        self._doubtful: dict[str, Exception] = {}
        self._layers: set[str] = set()                     # the driver's ids of all layers
        self._layers_state = -1

    # ---- what names what ----

    @contextlib.contextmanager
    def changing(self, *entries: str) -> Iterator[None]:
        """Around a change of what stands on what, under the layerdb's lock.

        entries   what the change makes, takes away, or puts on something else: "rw <name>", or the id of a snapshot
        """
        fresh = self._state is not None and self._state == self._snapshots.state()
        try:
            yield
        except BaseException:
            self._state = None            # part of it may have been done
            self._snapshots.note()
            raise
        self._state = None                # an interrupt in between leaves half a count
        self._snapshots.note()
        if fresh:
            for entry in entries:
                self._read(entry)
            self._state = self._snapshots.state()

    def _read(self, entry: str) -> None:
        """Count one entry anew."""
        self._doubtful.pop(entry, None)
        self._count.subtract(self._named.pop(entry, ()))
        try:
            named = tuple(self._names_of(entry))
        except FileNotFoundError:
            named = ()                    # it went meanwhile; or stands on nothing that is there
        except (OSError, LayerStoreError) as err:
            self._doubtful[entry] = err
            return
        if named:
            self._named[entry] = named
            self._count.update(named)

    def _names_of(self, entry: str) -> Iterable[str]:
        if not is_driver_id(entry):
            name = entry.removeprefix("rw ")
            mount_id = self._metadata.get_mount_id(name)
            rollback = self._snapshots.rollback(name)
            then = [rollback.fresh, *self._writables.named_in(rollback.lower)] if rollback else []
            return {*self._writables.stack_of(mount_id), *then}
        if not self._snapshots.has(entry):
            return ()
        lower = self._snapshots.lower(entry)
        return {*self._writables.stack_of(entry), *(self._writables.named_in(lower) if lower else ())}

    def _look(self) -> None:
        """Count all anew, if something changed since the last look."""
        state = self._snapshots.state()
        if state == self._state:
            return
        # Nothing of a count that was stopped half-way is taken over.
        self._state, self._named, self._count, self._doubtful = None, {}, Counter(), {}
        for entry in (*(f"rw {name}" for name in self._metadata.list_mounts()), *self._snapshots.names()):
            self._read(entry)             # the driver remembers each `lower` as long as it is the same file
        self._state = state

    def named(self, id: str, *, but: Iterable[str] = ()) -> bool:
        """Return True if a writable layer or a snapshot stands on a directory, or is about to.

        but      entries that do not count
        Raises   UnreadableError   one of them does not say
        """
        self._look()
        for entry, err in self._doubtful.items():
            raise UnreadableError(f"{entry} does not say what it stands on: {err}")
        return self._count[id] > sum(id in self._named.get(entry, ()) for entry in but)

    def standing_on(self, id: str) -> list[str]:
        """Name the writable layers ("rw <name>") and the snapshots that stand on a directory."""
        self._look()
        return sorted(entry for entry, named in self._named.items() if id in named) if self._count[id] > 0 else []

    def is_there(self, entry: str) -> bool:
        """Return True if a writable layer or a snapshot has a record."""
        is_id = is_driver_id(entry)
        return self._snapshots.has(entry) if is_id else self._metadata.has_mount(entry.removeprefix("rw "))

    def relead(self, old: str, new: str) -> None:
        """Lead what stands on a directory to another one of the same contents, under both locks."""
        entries = self.standing_on(old)
        with self.changing(*entries):
            for entry in entries:
                name = entry.removeprefix("rw ")
                id = entry if is_driver_id(entry) else self._metadata.get_mount_id(name)
                init = "" if is_driver_id(entry) else self._metadata.get_init_id(name)
                for each in filter(None, {id, init, *self._writables.stack_of(id)}):
                    with contextlib.suppress(OSError, LayerStoreError):
                        stack = self._writables.stack_of(each)
                        if old in stack and not self.is_layer(each):
                            self._writables.restand(each, [new if below == old else below for below in stack])

    def owned(self) -> set[str]:
        """Return the ids that records of snapshots, and what they say, own; for Records.owned(). Needs no lock.

        Raises  LayerStoreError, OSError   a record cannot be read
        """
        owned: set[str] = set()
        for id in self._snapshots.names():
            owned.add(id)
            lower = self._snapshots.lower(id)
            owned.update(self._writables.named_in(lower) if lower else ())
        for name in self._metadata.list_mounts() if self._snapshots.any() else ():
            rollback = self._snapshots.rollback(name)
            if rollback:
                owned.update((rollback.fresh, *self._writables.named_in(rollback.lower)))
        return owned

    # ---- what goes ----

    def unneeded(self, candidates: Iterable[str]) -> list[str]:
        """Return those of a stack, nearest first, that no record, layer or stack needs any longer, under both locks."""
        found = []
        try:
            for id in candidates:
                if self._snapshots.has(id):               # what is below it in the stack stays with it
                    break
                if not (self.named(id) or self.is_layer(id)):
                    found.append(id)
        except (OSError, LayerStoreError) as err:
            log.warning("Directories of snapshots stay, as they may be needed: %s", err, extra={"error": err})
            return []
        return found

    def is_layer(self, id: str) -> bool:
        """Return True if a layer lies in a directory; under both locks."""
        state = self._snapshots.layers_state()
        if state != self._layers_state:
            self._layers = {self._cache_id(chain) for chain in self._metadata.list()[0]}
            self._layers_state = state
        return id in self._layers

    def _cache_id(self, chain_id: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self._metadata.get_cache_id(chain_id)
        return ""

    def drop(self, candidates: Iterable[str]) -> None:
        """Remove the directories of these that nothing needs any longer. What cannot be removed is cleanup()'s."""
        candidates = list(candidates)
        if not candidates or self._references.may_not_delete("directory", candidates[0], {"id": candidates[0]}):
            return
        with self._lock, self._metadata.exclusive():
            going = self.unneeded(candidates)
        for id in going:
            try:
                if self._writables.seize(id):             # else a commit works on it, or cleanup() has it
                    self._drop_seized(id)
            except (OSError, LayerStoreError) as err:
                text = "Cannot remove the directory %s, which cleanup() will: %s"
                log.warning(text, id, err, extra={"id": id, "error": err})

    def _drop_seized(self, id: str) -> None:
        """Remove a directory, unless a commit has made a layer of it since it was found unneeded."""
        w = self._writables
        try:
            with w.hold(id):
                with self._lock, self._metadata.exclusive():
                    unneeded = bool(self.unneeded([id]))
                if not unneeded:
                    w.publish(id)
                elif self._holds.held_anywhere(read_key(id)):
                    w.discard(id)         # it goes when it is read no longer
                else:
                    w.remove(id)
        except BaseException:
            surely(w.publish, id)         # else no cleanup() of this process takes it
            raise
