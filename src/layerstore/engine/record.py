"""Records of one store in memory: a layer, a writable layer, and a reference to either.

Enters: what the layerdb says. The lock of Records guards what changes.
Source: moby, layer/ro_layer.go, layer/mounted_layer.go
"""

from __future__ import annotations

from layerstore.disk.holds import Holds
from layerstore.errors import CorruptLayerError
from layerstore.ids import ChainID, DiffID, chain_on
from layerstore.values import Descriptor


class Reference:
    """One reference to a layer. The layer keeps it until it is released."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.is_new = False
        """The call that made this reference made the layer."""
        self.took_mark = False
        """The layer was released before, while something needed it."""
        self.taken_of = record.cache_id
        """A layer of this ChainID that is made anew is another layer to this reference."""


class Record:
    """One read-only layer.

    references  to it, of this store
    used        calls that work on it and must not lose it
    durable     this store put it, and all below it, on the disk; False: unknown
    """

    def __init__(
        self, holds: Holds, chain_id: ChainID, diff_id: DiffID, parent: Record | None, cache_id: str, size: int,
        descriptor: Descriptor,
    ) -> None:  # fmt: skip
        self.holds, self.chain_id, self.diff_id = holds, chain_id, diff_id
        self.cache_id, self.diff_size, self.descriptor = cache_id, size, descriptor
        self.used = 0
        self.durable = False
        self.references: set[Reference] = set()
        self.stand_on(parent)

    @property
    def directories(self) -> list[str]:
        """The driver ids of the layer and of all it stands on, nearest first, as they were last seen."""
        found: list[str] = []
        record: Record | None = self
        while record:
            found.append(record.cache_id)
            record = record.parent
        return found

    def stand_on(self, parent: Record | None) -> None:
        """Take over the parent; also later, if the layerdb had lost it."""
        self.parent = parent
        self.depth: int = parent.depth + 1 if parent else 1
        self.size: int = self.diff_size + (parent.size if parent else 0)

    def check_chain(self) -> None:
        """Compare each layer below with its ChainID: a lost parent would be another tree.

        Raises  CorruptLayerError
        """
        record: Record | None = self
        while record:
            if chain_on(record.parent.chain_id if record.parent else "", record.diff_id) != record.chain_id:
                why = f"the ChainID {record.chain_id} does not follow from its parent and its DiffID: repair it first"
                raise CorruptLayerError(why, chain_id=record.chain_id)
            record = record.parent

    @property
    def in_use(self) -> bool:
        """True if this store has references to it, or works on it."""
        return self.held or self.used > 0

    @property
    def held(self) -> bool:
        """True if references keep it; a forked child counts those of its parent that it used since."""
        return bool(self.references) and self.holds.holds(self.chain_id)


class Mount:
    """One writable layer.

    aside         where its layerdb entry was put when its deletion began; None before
    parent_state  of the file that names its parent, when that was read
    sound         the stack that was right, with this parent_state; None: it was not looked at
    """

    def __init__(self, holds: Holds, name: str, mount_id: str, init_id: str, parent: Record | None) -> None:
        self.holds, self.name, self.mount_id, self.init_id, self.parent = holds, name, mount_id, init_id, parent
        self.references: set[MountReference] = set()
        self.aside: str | None = None
        self.parent_state: tuple[int, ...] = ()
        self.sound: tuple[list[str], tuple[int, ...]] | None = None

    @staticmethod
    def key_of(name: str) -> str:
        """Return the key under which a reference to a writable layer of this name is held."""
        return f"rw {name}"

    @property
    def key(self) -> str:
        """The key under which a reference to it is held."""
        return self.key_of(self.name)

    @property
    def held(self) -> bool:
        """True if references keep it, as Record.held."""
        return bool(self.references) and self.holds.holds(self.key)


class MountReference:
    """One reference to a writable layer."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.is_new = False
        """The call that made this reference made the writable layer."""
