"""The plain values that cross the public interface: records without behaviour of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum
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


class FileType(StrEnum):
    """What an entry of a layer is; str() gives the word.

    LINK is a hard link; WHITEOUT and OPAQUE hide what lower layers have.
    """

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    LINK = "link"
    CHARACTER = "character"
    BLOCK = "block"
    FIFO = "fifo"
    WHITEOUT = "whiteout"
    OPAQUE = "opaque"


class FileEntry(NamedTuple):
    """One entry of a layer, as its tar has it."""

    path: str
    """Relative to the root and cleaned; "." is the root. Of a whiteout: what it hides; of an opaque mark: its place."""
    type: FileType
    size: int
    """Bytes of a regular file, else 0."""
    mode: int
    """Permission, setuid, setgid and sticky bits."""
    uid: int
    gid: int
    mtime_ns: int
    """As in the tar; 0 for a directory that has no entry of its own. On disk, times before 1970 are 1970."""
    atime_ns: int | None
    link: str
    """A symbolic link's text; for a hard link the path of its file, in the same layer; else ""."""
    device: tuple[int, int] | None
    """Major and minor number of a device."""
    xattrs: Mapping[str, bytes]
    crc: int | None
    """CRC-64/GO-ISO of a regular file's bytes, or None where the record does not say."""
    offset: int | None
    """Where a regular file's bytes begin in the layer's plain tar; None where they are not there as they are."""
    name: str
    """As the tar spells it: "./etc/passwd", "etc/.wh.shadow"; "" for a directory that has no entry of its own."""
    chain_id: ChainID
    """The layer it is from."""


class Orphan(NamedTuple):
    """One thing on disk that no layer and no writable layer owns.

    kind   "directory" or "link" of the driver; "removal" or "transaction": layerdb's, interrupted;
           "layer": it was released, nothing needs it, and its removal did not come to its end
    path   below the store's root
    size   bytes of its files
    """

    kind: str
    path: str
    size: int
