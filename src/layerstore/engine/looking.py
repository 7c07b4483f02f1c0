"""Looking: how boxes, snapshots and layers differ, and what they hold; nothing is mounted.

Enters: writable layers, and what `since` and `parent` arguments mean. Leaves: changes, sizes, tars, trees. What is
compared follows from the stacks: the ids that show one side, and those that show the other.
Source: sandbox.md 12
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, TypeVar, cast

from layerstore._core._apply import Apply
from layerstore.contents.files import open_bytes
from layerstore.contents.merged import MergedTree
from layerstore.drivers import Trees
from layerstore.engine.contents import Contents
from layerstore.engine.durability import Syncing
from layerstore.engine.ground import Ground, said
from layerstore.engine.intake import Registration
from layerstore.engine.record import Mount, Record, Reference
from layerstore.engine.references import References
from layerstore.engine.stacks import Place, Stacks, is_init
from layerstore.engine.writable import WritableLayers
from layerstore.errors import CorruptLayerError, LayerDoesNotExistError, LayerStoreError
from layerstore.ids import ChainID, is_driver_id
from layerstore.streams.leftout import told_left_out, warn_left_out
from layerstore.streams.tarstream import TarStream
from layerstore.values import Change, Descriptor, Durability, FileEntry, Progress, StrPath

_T = TypeVar("_T")

_LOOKS = 3
"""How often a box is looked at without keeping other stores from changing what it stands on."""


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

    def look(self, mount: Mount, at: Callable[[Shown], _T]) -> _T:
        """Look at a box, again if another store has changed what it stands on meanwhile."""
        for _ in range(_LOOKS):
            shown = self.box(mount)
            try:
                return at(shown)
            except (FileNotFoundError, CorruptLayerError):
                if said(self._writables.stack_of, mount.mount_id, None) == shown.place.stack:
                    raise
        with self._writable.entered(mount):
            return at(self.box(mount))

    def snapshot(self, id: str) -> Shown:
        """Look at a snapshot, recorded or loose. Raises LayerDoesNotExistError: it is gone."""
        try:
            return Shown(f"snapshot {id}", id, self._stacks.of_snapshot(id))
        except FileNotFoundError as err:
            gone = f"{LayerDoesNotExistError.text}: there is no snapshot {id}"
            raise LayerDoesNotExistError(gone, chain_id=id) from err

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
        with self._stacks.using(a) as old, self._stacks.using(b) as new:
            return self._trees.changes(new.place.stack, old.place.stack, contents=contents)

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
        given = _Difference(self._trees, shown, flags, progress)
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

        return MergedTree(layers(), opener)


    def open(self, shown: Shown, path: StrPath) -> BinaryIO:
        """Open a regular file that a box or a snapshot shows. Raises as MergedTree.open() does."""
        name = os.fsdecode(path).lstrip("/")
        if not {"", ".", ".."}.intersection(name.split("/")):
            with contextlib.suppress(OSError, LayerStoreError):       # it is a layer's, or behind a link, or none
                return os.fdopen(self._trees.open_file(shown.above, name), "rb")
        return self.merged(shown).open(path)


class _Difference(NamedTuple):
    """What a box holds, as a tar on its way in."""

    trees: Trees
    shown: Shown
    flags: int
    progress: Progress | None

    def pump_into(self, apply: Apply) -> None:
        with self.trees.diff(self.shown.above, self.shown.place.below, self.flags) as stream:
            stream.pump_into(apply, self.progress)
            warn_left_out(self.shown.name, stream.left_out())
