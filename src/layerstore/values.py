"""The plain values that cross the public interface: records without behaviour of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum
from typing import Any, Literal, NamedTuple

from layerstore.ids import ChainID, DiffID

# A path, as os takes it.
StrPath = str | bytes | os.PathLike[Any]
# How much of what is written is made to survive a crash of the machine.
Durability = Literal["full", "ordered", "none"]


class Done(int):
    """How far a long call has come: the bytes done so far, as a number.

    total   of how many bytes, or None if that is unknown
    """

    total: int | None

    def __new__(cls, done: int, total: int | None = None) -> Done:
        """Create the number with its total."""
        self = super().__new__(cls, done)
        self.total = total
        return self


# What a `progress` argument is: called with a Done at most ten times a second, from the calling thread.
Progress = Callable[[Done], None]


class Metadata(NamedTuple):
    """A layer that a release removed.

    chain_id    its ChainID
    diff_id     its DiffID
    size        bytes of its files and those of all layers below
    diff_size   bytes of its own files
    """

    chain_id: ChainID
    diff_id: DiffID
    size: int
    diff_size: int


class ChangeKind(IntEnum):
    """What happened to a path; str() returns the letter that `docker diff` prints: C, A or D.

    MODIFY   it is in the lower layers too; as text "C"
    ADD      it is new; as text "A"
    DELETE   it was deleted; as text "D"
    """

    MODIFY = 0
    ADD = 1
    DELETE = 2

    def __str__(self) -> str:
        return "CAD"[self.value]


class Change(NamedTuple):
    """One path that differs; str() returns for example "A /etc/hosts".

    path   absolute inside the layer
    kind   a ChangeKind
    """

    path: str
    kind: ChangeKind

    def __str__(self) -> str:
        return f"{self.kind!s} {self.path}"


class Descriptor(NamedTuple):
    """The compressed blob of a layer, as a registry describes it.

    media_type    for example "application/vnd.oci.image.layer.v1.tar+gzip"
    digest        of the compressed bytes; "" means that there is no descriptor
    size          compressed bytes
    urls          where else the blob is available
    annotations   texts by name, or None
    artifact_type  what it is, of a manifest that Registry.referrers() lists; "". It is not stored
    """

    media_type: str = ""
    digest: str = ""
    size: int = 0
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] | None = None
    artifact_type: str = ""


class CreateRWLayerOpts(NamedTuple):
    """How to create a writable layer.

    mount_label   SELinux label; overlay2 ignores it here (pass it to mount())
    init_func     called with the mounted root of the init layer; may raise
    storage_opt   the driver's options, for example {"size": "10G"}
    """

    mount_label: str = ""
    init_func: Callable[[str], None] | None = None
    storage_opt: Mapping[str, str] | None = None


class Problem(NamedTuple):
    """One thing that verify() finds wrong.

    kind      "content": a file's bytes or the whole tar differ from the record;
              "missing": a file, directory, link or record is gone;
              "metadata": a layerdb or driver file is wrong or unreadable;
              "orphan": on disk and unowned
    subject   the ChainID, mount name or driver directory concerned
    path      the file's name as in the layer's tar, or ""
    detail    one sentence
    """

    kind: str
    subject: str
    path: str
    detail: str


class Usage(NamedTuple):
    """What a store takes of the disk: bytes in blocks of the file system, each inode once.

    What several have counts for the first of them, in this order: layers, snapshots, writable, orphans.

    layers        of the layers' files
    writable      of what writable layers wrote, and of their init layers
    snapshots     of snapshots, also of released ones that something still stands on
    orphans       of what Store.orphans() lists
    reclaimable   of what would go: the orphans, and each layer and snapshot that nothing needs; over and over
    """

    layers: int
    writable: int
    snapshots: int
    orphans: int
    reclaimable: int


class FileType(StrEnum):
    """What an entry of a layer is; str() returns the word.

    FILE        "file": a regular file
    DIRECTORY   "directory"
    SYMLINK     "symlink": a symbolic link
    LINK        "link": a hard link
    CHARACTER   "character": a character device
    BLOCK       "block": a block device
    FIFO        "fifo"
    WHITEOUT    "whiteout": it deletes a name that lower layers have
    OPAQUE      "opaque": it hides what lower layers have in a directory
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
    """One entry of a layer, as its tar has it.

    path       relative to the root and cleaned; "." is the root. Of a whiteout: what it hides; of an opaque mark: its
               directory
    type       a FileType
    size       bytes of a regular file, else 0
    mode       permission, setuid, setgid and sticky bits
    uid        number of the owner
    gid        number of the group
    mtime_ns   nanoseconds since 1970, as in the tar; 0 for a directory without an entry of its own. On disk, times
               before 1970 are 1970
    atime_ns   the time of the last access likewise, or None
    link       text of a symbolic link; for a hard link the path of its file, in the same layer; else ""
    device     major and minor number of a device, else None
    xattrs     extended attributes, bytes by name
    crc        CRC-64/GO-ISO of a regular file's bytes, or None if the record does not say
    offset     where the bytes of a regular file begin in the layer's plain tar; None if they are not there as they are
    name       as the tar spells it: "./etc/passwd", "etc/.wh.shadow"; "" for a directory without an entry of its own
    chain_id   the layer it is from
    """

    path: str
    type: FileType
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int | None
    link: str
    device: tuple[int, int] | None
    xattrs: Mapping[str, bytes]
    crc: int | None
    offset: int | None
    name: str
    chain_id: ChainID


class Orphan(NamedTuple):
    """One thing on disk that no layer and no writable layer owns.

    kind   "directory", "link", "file" or "mount" of the driver; "removal" or "transaction": layerdb's, interrupted;
           "layer": it was released, nothing needs it, and its removal did not come to its end
    path   below the store's root
    size   bytes of its files
    """

    kind: str
    path: str
    size: int
