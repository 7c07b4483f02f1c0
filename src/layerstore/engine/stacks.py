"""Stacks: what a writable layer or a snapshot stands on, as the driver's `lower` says it.

Enters: the ids of a stack, nearest first, and a record. Leaves: a Place: which of the ids are frozen uppers, which show
the nearest layer, which are init layers. There is one id for each layer from the nearest one down, so the depth of the
nearest layer tells where it begins, also where a directory of the same contents stands in a layer's place.
Source: sandbox.md 1, 4, 10
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from layerstore.disk.locks import Scope
from layerstore.drivers import Writables
from layerstore.engine.contents import Contents
from layerstore.engine.ground import Ground
from layerstore.engine.record import Mount, Record
from layerstore.engine.references import References
from layerstore.errors import (
    CorruptLayerError,
    InvalidMetadataError,
    LayerDoesNotExistError,
    LayerStoreError,
    NotSupportedError,
)
from layerstore.ids import is_driver_id
from layerstore.layerdb.snapshots import SnapshotDB

MAX_LAYERS = 128
"""Lowers that a writable layer on a layer may have."""
MAX_LOWERS = 500
"""Lowers that one on a snapshot may have: more are none that the kernel mounts."""


_LOOKS = 3
_TRIES = 20
_T = TypeVar("_T")


def is_init(id: str) -> bool:
    """Return True if an id is that of an init layer."""
    return id.endswith("-init")


class Place(NamedTuple):
    """Where something stands."""

    stack: list[str]
    """All it stands on, nearest first."""
    layer: Record | None
    """The nearest layer."""
    at: int
    """Where in the stack the ids begin that show the nearest layer, with the init layer on it."""

    @property
    def frozen(self) -> list[str]:
        """The frozen uppers above the nearest layer, nearest first."""
        return [id for id in self.stack[: self.at] if not is_init(id)]

    @property
    def below(self) -> list[str]:
        """What shows the nearest layer, and every init layer of the stack."""
        return [*(id for id in self.stack[: self.at] if is_init(id)), *self.stack[self.at :]]

    @property
    def init(self) -> str:
        """The nearest init layer; "" for none."""
        return next((id for id in self.stack if is_init(id)), "")

    @property
    def base(self) -> str:
        """The snapshot that it stands on; "": it stands on the layer."""
        return next(iter(self.frozen), "")

    def is_as(self, other: Place) -> bool:
        """Return True if another place is the same one, on the same layer."""
        chains = [place.layer.chain_id if place.layer else "" for place in (self, other)]
        return (self.stack, self.at, chains[0]) == (other.stack, other.at, chains[1])

    @property
    def loosenable(self) -> list[str]:
        """The ids that no layer owns: they go when nothing else needs them."""
        layers = set(self.layer.directories) if self.layer else set()
        return [id for id in self.stack if id not in layers]


class Target(NamedTuple):
    """What a box can be made to stand on, or go back to."""

    place: Place
    snapshot: str
    """The id of the snapshot that was named, committed or not; "": a layer, or nothing."""

    @property
    def most(self) -> int:
        """How many lowers a box on it may have."""
        return MAX_LOWERS if self.root else MAX_LAYERS

    @property
    def root(self) -> str:
        """The snapshot whose root directory a box on it begins with; "": it begins as a box on a layer does."""
        return self.snapshot or next((id for id in self.place.stack[: self.place.at] if not is_init(id)), "")


class Stacks:
    """The stacks of one store."""

    def __init__(self, ground: Ground, references: References, contents: Contents) -> None:
        self._ground, self._records, self._lock = ground, ground.records, ground.records.lock
        self._references, self._contents = references, contents
        self._loose: set[str] = set()     # ids that have no record, and get none
        self.snapshots: SnapshotDB = ground.snapshots_db
        self._writables: Writables = ground.driver.writables
        self.directories_of = contents.directories_of

    # ---- places ----

    def place(self, stack: Sequence[str], layer: Record | None) -> Place:
        """Find the nearest layer in a stack; layer: the one that the record names, or one below the nearest.

        Raises  CorruptLayerError   the stack has fewer ids than the layer has layers
        """
        at = self._boundary(stack, layer.depth if layer else 0)
        if at is None:
            about = layer.chain_id if layer else ""
            raise CorruptLayerError(f"the directories below do not show the layer {about}", chain_id=about)
        # Snapshots of the stack may have been committed since the record was written, those below first.
        for index in range(at - 1, -1, -1):
            if stack[index] in self._loose or is_init(stack[index]):
                continue
            if not self.snapshots.has(stack[index]):
                if index:                 # it gets no record, as what lies on it was frozen later
                    self._loose.add(stack[index])
                continue
            found = self._committed(stack[index])
            if found is None:
                break
            if self._boundary(stack, found.depth) == self._with_init(stack, index):
                layer, at = found, self._with_init(stack, index)
        return Place(list(stack), layer, at)

    def shows(self, stack: Sequence[str], layer: Record) -> Place:
        """Return the place of a stack as if this layer of it were the nearest one."""
        at = self._boundary(stack, layer.depth)
        return Place(list(stack), layer, len(stack) if at is None else at)

    def check(self, place: Place, name: str) -> None:
        """Compare the directories that show the nearest layer with those of the layers.

        Another directory may stand in a layer's place: a frozen one of the same contents, or the one that lay there
        before the layer was registered anew.
        Raises  CorruptLayerError   another layer's directory is there
        """
        if place.layer is None:
            return
        shown = [id for id in place.stack[place.at :] if not is_init(id)]
        wanted = self._contents.directories_of(place.layer)
        if shown == wanted:
            return
        with self._lock:
            self._records.load_all()
            layers = {record.cache_id for record in self._records.layers.values()}
        for id, layer in zip(shown, wanted, strict=True):
            if id != layer and id in layers:
                why = f"the directories below {name} are not those of its layer {place.layer.chain_id}"
                raise CorruptLayerError(f"{why}: {id} is another's", name=name)

    @staticmethod
    def _with_init(stack: Sequence[str], index: int) -> int:
        while index > 0 and is_init(stack[index - 1]):
            index -= 1
        return index

    @staticmethod
    def _boundary(stack: Sequence[str], depth: int) -> int | None:
        index, found = len(stack), 0
        while index > 0:
            if not is_init(stack[index - 1]):
                if found == depth:
                    break
                found += 1
            index -= 1
        return index if found == depth else None

    def _committed(self, id: str) -> Record | None:
        """Return the layer that a snapshot was committed as."""
        chain_id = ""
        with contextlib.suppress(LayerStoreError, OSError):
            chain_id = self.snapshots.layer(id)
        return self.layer(chain_id) if chain_id else None

    def layer(self, chain_id: str) -> Record | None:
        """Return the record of a layer, as the disk has it now; None for "", or one that is not there."""
        if not chain_id:
            return None
        with self._lock:
            return self._records.load_current(chain_id)

    def of_box(self, mount: Mount) -> Place:
        """Return where a writable layer stands. Raises CorruptLayerError, InvalidMetadataError, OSError."""
        return self.place(self._writables.stack_of(mount.mount_id), mount.parent)

    def of_snapshot(self, id: str) -> Place:
        """Return where a snapshot stands, recorded or loose. Raises as of_box() does, FileNotFoundError."""
        parent = self.snapshots.parent(id)
        stack = self._writables.stack_of(id)
        if not parent and not self.snapshots.has(id):
            return self.place(stack, self.nearest(stack))
        layer = self.layer(parent)
        if parent and layer is None:
            raise CorruptLayerError(f"the layer {parent} that the snapshot {id} stands on is gone", chain_id=parent)
        return self.place(stack, layer)

    def nearest(self, stack: Sequence[str]) -> Record | None:
        """Find the nearest layer of a stack by its directories alone: where no record tells it."""
        with self._lock:
            self._records.load_all()
            by_directory = {record.cache_id: record for record in self._records.layers.values()}
        return next((by_directory[id] for id in stack if id in by_directory), None)

    # ---- targets ----

    def using(self, parent: str) -> Scope[Target]:
        """Find what a `parent` argument means and keep its layer for the length of a `with` block.

        parent   a ChainID, the id of a snapshot, or "" for nothing
        Raises   LayerDoesNotExistError
        """

        def begin() -> Target:
            target = self.find(parent)
            if target.place.layer:
                with self._lock:
                    self._references.use(target.place.layer.chain_id)
            return target

        def end(target: Target) -> None:
            if target.place.layer:
                self._references.end_use(target.place.layer)

        return Scope(begin, end)

    @contextlib.contextmanager
    def releasing(self, snapshot: str) -> Iterator[None]:
        """Around a use of a snapshot: what fails because it was released meanwhile raises LayerDoesNotExistError."""
        try:
            yield
        except (OSError, CorruptLayerError, InvalidMetadataError) as err:
            if not snapshot or self.snapshots.has(snapshot):
                raise
            gone = f"{LayerDoesNotExistError.text}: the snapshot {snapshot} was released meanwhile"
            raise LayerDoesNotExistError(gone, chain_id=snapshot) from err

    def require(self, target: Target, *, led: bool = True) -> None:
        """Make sure that a snapshot stands on what it stood on when it was found; under both locks.

        led      its nearest layer, too, is the one that was found
        Raises   LayerDoesNotExistError   it was released
                 InvalidMetadataError     directories below it were merged, or became layers: find it again
        """
        id = target.snapshot
        if not id:
            return
        if not self.snapshots.has(id):
            gone = f"{LayerDoesNotExistError.text}: the snapshot {id} was released meanwhile"
            raise LayerDoesNotExistError(gone, chain_id=id)
        now = self._find(id).place
        if now.stack != target.place.stack or (led and not now.is_as(target.place)):
            raise InvalidMetadataError(f"the snapshot {id} was led to other directories meanwhile", path=id)

    def again(self, parent: str, act: Callable[[Target], _T]) -> _T:
        """Find what a `parent` argument means and use it; again if what is below it was merged meanwhile."""
        for attempt in range(_TRIES, -1, -1):
            with self.using(parent) as target:
                try:
                    with self.releasing(target.snapshot):
                        return act(target)
                except (OSError, InvalidMetadataError, CorruptLayerError):
                    if not attempt or not target.snapshot:
                        raise
                    with self._lock, self._ground.metadata.exclusive():     # no merge is half written then
                        now = self.find(parent)
                    if now.place.is_as(target.place):
                        raise
        raise AssertionError

    def find(self, parent: str) -> Target:
        """Find what a `parent` argument means. Raises LayerDoesNotExistError."""
        for _ in range(_LOOKS):
            with contextlib.suppress(CorruptLayerError, FileNotFoundError):
                return self._find(parent)
            time.sleep(0.001)             # another process commits or releases it
        with self.releasing(parent if is_driver_id(parent) else ""):
            return self._find(parent)

    def _find(self, parent: str) -> Target:
        if not parent:
            return Target(Place([], None, 0), "")
        if is_driver_id(parent):
            return self._snapshot(parent)
        layer = self.layer(parent)
        if layer is None:
            raise LayerDoesNotExistError(chain_id=parent)
        return Target(Place(self._contents.directories_of(layer), layer, 0), "")

    def _snapshot(self, id: str) -> Target:
        if not self.snapshots.has(id):
            raise LayerDoesNotExistError(f"{LayerDoesNotExistError.text}: there is no snapshot {id}", chain_id=id)
        layer = self._committed(id)
        lower = self.snapshots.lower(id) if layer else None
        if layer is None or lower is None:
            place = self.of_snapshot(id)
            return Target(Place([id, *place.stack], place.layer, place.at + 1), id)
        return Target(self.place([id, *self._writables.named_in(lower)], layer), id)

    def layer_of(self, parent: str, *, get: bool = False) -> str:
        """Return the ChainID that a `parent` argument means for a layer on it; get: or for a layer that is asked for.

        Raises  LayerDoesNotExistError
                NotSupportedError        a snapshot that was not committed
        """
        if not is_driver_id(parent):
            return parent
        target = self._snapshot(parent)
        if not target.place.at and target.place.layer:
            return target.place.layer.chain_id
        if get:
            why = f"{LayerDoesNotExistError.text}: the snapshot {parent} was not committed"
            raise LayerDoesNotExistError(why, chain_id=parent)
        raise NotSupportedError(f"snapshot {parent}: it is no layer yet: commit() it", chain_id=parent)

