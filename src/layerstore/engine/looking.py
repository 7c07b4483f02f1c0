"""Looking: how boxes, snapshots and layers differ, and what they hold; nothing is mounted.

Enters: writable layers, and what `since` and `parent` arguments mean. Leaves: changes, sizes, tars, trees. What is
compared follows from the stacks: the ids that show one side, and those that show the other.
Source: sandbox.md 12
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, TypeVar, cast

from layerstore._core._apply import Apply
from layerstore.contents.files import open_bytes
from layerstore.contents.merged import MergedTree
from layerstore.disk.holds import read_key
from layerstore.drivers import Trees
from layerstore.engine.contents import Contents
from layerstore.engine.durability import Syncing
from layerstore.engine.ground import Ground, said
from layerstore.engine.intake import Registration
from layerstore.engine.record import Mount, Record, Reference
from layerstore.engine.references import References
from layerstore.engine.stacks import Place, Stacks, is_init
from layerstore.engine.writable import WritableLayers
from layerstore.errors import CorruptLayerError, LayerDoesNotExistError, LayerStoreError, StoreInUseError
from layerstore.ids import ChainID, is_driver_id
from layerstore.streams.leftout import told_left_out, warn_left_out
from layerstore.streams.tarstream import TarStream
from layerstore.values import Change, Descriptor, Durability, FileEntry, Progress, StrPath

_T = TypeVar("_T")

_LOOKS = 20
"""How often a box is looked at again that other stores change meanwhile."""


class Shown(NamedTuple):
    """A box or a snapshot that is looked at."""

    name: str
    """For messages, as "writable layer x"."""
    id: str
    place: Place
    box: str = ""
    """The name of a writable layer."""

    @property
    def whole(self) -> list[str]:
        """All that shows its tree."""
        return [self.id, *self.place.stack]

    @property
    def above(self) -> list[str]:
        """What it holds above the nearest layer."""
        return [self.id, *self.place.frozen]


class _ChangedError(Exception):
    """What a box stands on was changed before it was opened."""


class Looking:
    """Looks into the boxes and snapshots of one store."""

    def __init__(
        self, ground: Ground, references: References, contents: Contents, stacks: Stacks, syncing: Syncing,
        registration: Registration, writable: WritableLayers,
    ) -> None:  # fmt: skip
        self._ground, self._lock, self._db = ground, ground.records.lock, stacks.snapshots
        self._trees: Trees = ground.driver.trees
        self._writables = ground.driver.writables
        self._references, self._contents, self._stacks = references, contents, stacks
        self._syncing, self._registration, self._writable = syncing, registration, writable

    def box(self, mount: Mount) -> Shown:
        """Look at a box. Raises CorruptLayerError."""
        place = self._writable.ready(mount)
        return Shown(f"writable layer {mount.name}", mount.mount_id, place, mount.name)

    def look(self, look: Callable[[], Shown], at: Callable[[Shown], _T]) -> _T:
        """Look at a box or a snapshot, and again if what it stands on has changed meanwhile.

        look   returns it as it is now
        at     what is done with it. A TarStream that it returns is whole: what it reads is not removed before its end
        """
        for attempt in range(_LOOKS, -1, -1):
            shown = look()
            with contextlib.ExitStack() as held:
                self._keep(shown, held)
                result: _T | None = None
                try:
                    if self.is_as(shown):
                        result = at(shown)
                    if result is not None and self.is_as(shown):
                        if isinstance(result, TarStream):
                            result._then(held.pop_all().close)
                        return result
                except (FileNotFoundError, CorruptLayerError, _ChangedError):
                    if self.is_as(shown) or not attempt:
                        raise
                if isinstance(result, TarStream):
                    result.close()
            time.sleep(0.001 * (_LOOKS - attempt))
        why = f"{shown.name} is changed by another process each time that it is looked at"
        raise StoreInUseError(why, path=self._ground.root)

    def _keep(self, shown: Shown, held: contextlib.ExitStack) -> None:
        """Keep what shows a box or a snapshot from being removed while it is read, also by other processes."""
        holds = self._ground.holds
        for id in (shown.id, *shown.place.loosenable):
            holds.retain(read_key(id))
            held.callback(holds.release, read_key(id))
        layer = shown.place.layer
        if layer:
            with self._lock:
                self._references.use_too(layer)
            held.callback(self._references.end_use, layer)

    def is_as(self, shown: Shown) -> bool:
        """Return True if a box or a snapshot stands on what it stood on when it was looked at."""
        return said(self._writables.stack_of, shown.id, None) == shown.place.stack and self._writables.exists(shown.id)

    def snapshot(self, id: str) -> Shown:
        """Look at a snapshot, recorded or loose. Raises LayerDoesNotExistError: it is gone."""
        while True:
            recorded = self._db.has(id)
            try:
                return Shown(f"snapshot {id}", id, self._stacks.of_snapshot(id))
            except FileNotFoundError as err:
                gone = f"{LayerDoesNotExistError.text}: there is no snapshot {id}"
                raise LayerDoesNotExistError(gone, chain_id=id) from err
            except CorruptLayerError:     # it was released while it was read: a loose one is found otherwise
                if not recorded or self._db.has(id):
                    raise

    # ---- what differs ----

    def changes(self, shown: Shown, since: str | None) -> list[Change]:
        """List what differs from an ancestor; None: for a box the nearest layer, for a snapshot what it stands on."""
        if since is None:
            below = shown.place.below if shown.box else shown.place.stack
        elif since == shown.id:
            return []
        else:
            below = self._ancestor(shown, since)
        return self._trees.changes(shown.whole, below)

    def _ancestor(self, shown: Shown, since: str) -> list[str]:
        """Return what shows an ancestor, with every init layer of the stack."""
        stack = shown.place.stack
        if since in stack and not is_init(since):
            return self._from(stack, stack.index(since))
        chain_id = since
        if is_driver_id(since):
            if not self._db.has(since):
                raise LayerDoesNotExistError(
                    f"{LayerDoesNotExistError.text}: there is no snapshot {since}", chain_id=since
                )
            place = self._stacks.of_snapshot(since)
            bare = [id for id in stack if not is_init(id)]
            beside = [id for id in place.stack if not is_init(id)]
            if shown.box and self._db.read(since).box == shown.box and beside == bare:
                return [since, *place.stack]              # a clone of it: it stands beside, not below
            chain_id = self._db.layer(since)
        elif not since:
            return []
        elif self._stacks.layer(since) is None:
            raise LayerDoesNotExistError(chain_id=since)
        below: Record | None = shown.place.layer
        while below and below.chain_id != chain_id:
            below = below.parent
        if below is None:
            raise LayerStoreError(f"{since} is not below {shown.name}", chain_id=since, name=shown.box)
        return self._stacks.shows(stack, below).below

    @staticmethod
    def _from(stack: list[str], index: int) -> list[str]:
        return [*(id for id in stack[:index] if is_init(id)), *stack[index:]]

    def diff(self, a: str, b: str, *, contents: bool) -> list[Change]:
        """List what makes b of a."""
        self._ground.check_open()
        for attempt in range(_LOOKS, -1, -1):
            with self._stacks.using(a) as old, self._stacks.using(b) as new, contextlib.ExitStack() as held:
                stacks = new.place.stack, old.place.stack
                for id in {*new.place.loosenable, *old.place.loosenable}:
                    self._ground.holds.retain(read_key(id))
                    held.callback(self._ground.holds.release, read_key(id))
                try:
                    found = self._trees.changes(*stacks, contents=contents)
                    if (self._stacks.find(b).place.stack, self._stacks.find(a).place.stack) == stacks:
                        return found
                except (FileNotFoundError, CorruptLayerError):
                    if not attempt or (self._stacks.find(b).place.stack, self._stacks.find(a).place.stack) == stacks:
                        raise
        why = "what is compared is changed by another process each time that it is looked at"
        raise StoreInUseError(why, path=self._ground.root)

    def size(self, shown: Shown) -> int:
        """Count the bytes of what a box holds above the nearest layer; of a snapshot, in its own directory."""
        return self._trees.size(shown.above if shown.box else [shown.id])

    # ---- tars ----

    def tar(self, shown: Shown, flags: int = 0, *, whole: bool = True) -> TarStream:
        """Make a tar of what differs from the nearest layer; whole=False: of a snapshot alone, as its layer has it."""
        above, below = (shown.above, shown.place.below) if whole else ([shown.id], shown.place.stack)
        return told_left_out(self._trees.diff(above, below, flags), shown.name)

    def commit(self, shown: Shown, flags: int, level: Durability, progress: Progress | None) -> Reference:
        """Register what differs from the nearest layer, as a new layer on that one."""
        given = _Difference(self, self._trees, shown, flags, progress)
        above = shown.place.layer
        if above:
            with self._lock:
                self._references.use_too(above)
        return self._registration.register_on(above, given, Descriptor(), level)

    # ---- trees ----

    def merged(self, shown: Shown) -> MergedTree:
        """Return the tree of a box or a snapshot with all it stands on. Raises CorruptLayerError, OSError."""
        stack, layer = shown.whole, shown.place.layer
        below: list[str] = []
        while layer:                      # what is not a layer's as it was registered is told by the directories
            below = self._contents.directories_of(layer)
            if stack[-len(below) :] == below:
                break
            layer, below = layer.parent, []
        above = stack[: len(stack) - len(below)]
        stored = self._contents.chain(layer) if layer else {}

        def opener(entry: FileEntry) -> BinaryIO:
            if entry.chain_id:
                return open_bytes(functools.partial(stored[entry.chain_id].open_file, entry), entry)
            return os.fdopen(self._trees.open_file(above, entry.path), "rb")

        def layers() -> Iterator[tuple[ChainID, Iterator[FileEntry]]]:
            for chain_id, each in stored.items():
                yield chain_id, iter(each.entries(chain_id))
            yield cast(ChainID, ""), self._trees.entries(above, below)

        return MergedTree(layers(), opener, implied_ns=self._ground.driver.layers.implied_ns)


    def open(self, shown: Shown, path: StrPath) -> BinaryIO:
        """Open a regular file that a box or a snapshot shows. Raises as MergedTree.open() does."""
        name = os.fsdecode(path).lstrip("/")
        if not {"", ".", ".."}.intersection(name.split("/")):
            with contextlib.suppress(OSError, LayerStoreError):       # it is a layer's, or behind a link, or none
                return os.fdopen(self._trees.open_file(shown.above, name), "rb")
        return self.merged(shown).open(path)


class _Difference(NamedTuple):
    """What a box holds, as a tar on its way in."""

    looking: Looking
    trees: Trees
    shown: Shown
    flags: int
    progress: Progress | None

    def pump_into(self, apply: Apply) -> None:
        with self.trees.diff(self.shown.above, self.shown.place.below, self.flags) as stream:
            if not self.looking.is_as(self.shown):
                raise _ChangedError
            stream.pump_into(apply, self.progress)
            warn_left_out(self.shown.name, stream.left_out())
