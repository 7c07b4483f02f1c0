"""The plain values that cross the public interface: records without behaviour of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Literal, NamedTuple

from layerstore.ids import ChainID, DiffID

# How much of what is written is made to survive a crash of the machine.
Durability = Literal["full", "ordered", "none"]


class Done(int):
    """How far a long call has come: the bytes done so far, as a number; .total: of how many, or None."""

    total: int | None

    def __new__(cls, done: int, total: int | None = None) -> Done:
        """Make the number, and note the total."""
        self = super().__new__(cls, done)
        self.total = total
        return self


# What a `progress` argument is: called with a Done at most ten times a second, from the calling thread.
Progress = Callable[[Done], None]


class Metadata(NamedTuple):
    """A layer that a release removed."""

    chain_id: ChainID
    diff_id: DiffID
    size: int
    """Bytes, with all its parents."""
    diff_size: int
    """Bytes of this layer alone."""


class ChangeKind(IntEnum):
    """What happened to a path; str() gives the letter `docker diff` prints."""

    MODIFY = 0
    ADD = 1
    DELETE = 2

    def __str__(self) -> str:
        return "CAD"[self.value]


class Change(NamedTuple):
    """One path that differs; str() gives for instance "A /etc/hosts"."""

    path: str
    """Absolute inside the layer."""
    kind: ChangeKind

    def __str__(self) -> str:
        return f"{self.kind!s} {self.path}"


class Descriptor(NamedTuple):
    """The compressed blob of a layer, as a registry names it."""

    media_type: str = ""
    digest: str = ""
    size: int = 0
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] | None = None


class CreateRWLayerOpts(NamedTuple):
    """How to make a writable layer.

    mount_label   SELinux label; of no effect at creation on overlay2 (give it to mount())
    init_func     called with the mounted root of the init layer; may raise
    storage_opt   the driver's options, for instance {"size": "10G"}
    """

    mount_label: str = ""
    init_func: Callable[[str], None] | None = None
    storage_opt: Mapping[str, str] | None = None


class Problem(NamedTuple):
    """One thing that verify() found wrong.

    kind      "content": a file's bytes or the whole tar differ from the record;
              "missing": a file, directory, link or record is gone;
              "metadata": a layerdb or driver file is wrong or unreadable;
              "orphan": on disk and owned by nobody
    subject   the ChainID, mount name or driver directory concerned
    path      the file's name as in the layer's tar, or ""
    detail    one sentence
    """

    kind: str
    subject: str
    path: str
    detail: str


class Orphan(NamedTuple):
    """One thing on disk that no layer and no writable layer owns.

    kind   "directory" or "link" of the driver; "removal" or "transaction": layerdb's, interrupted
    path   below the store's root
    size   bytes of its files
    """

    kind: str
    path: str
    size: int
