"""Bytes in: one layer tar becomes files, a DiffID and a tar-split record. Binding of lay_apply.

The GIL is free in every call that does work; an Apply has one user at a time (a second gets RuntimeError).
"""
from collections.abc import Sequence
from typing import NamedTuple

from typing_extensions import disjoint_base

from layerstore._core._erofs import Image

USERNS: int
USERXATTR: int

class Applied(NamedTuple):
    diff_id: bytes   # SHA-256, 32 bytes
    tar_size: int    # bytes of the uncompressed tar
    size: int        # bytes in the tree (moby's size of a layer)
    entries: int
    unsettled: bytes # what stand_on() takes; b"": nothing in the tree depends on what is below
    left_out: int    # devices that a user namespace cannot make
    first_left_out: bytes   # the path of the first of them, or b""
    source_digest: bytes    # of all bytes that came, compressed if they were; b"": not asked for
    source_size: int        # those bytes

@disjoint_base
class Apply:
    """Made by the functions below."""
    @property
    def taken(self) -> int: ...
    @property
    def digest(self) -> str | None:
        """What source_digest will be: "sha256", "sha384", "sha512"; None: empty."""
    @property
    def max_window(self) -> int:
        """The limit of that name, for who decompresses before it comes here."""
    def push(self, data: bytes) -> bool:
        """Copy bytes in. True: nothing more is wanted."""
    def lend(self, buffer: object) -> bool:
        """Take a whole C-contiguous buffer without copying; it is held until close()."""
    def pump(self, fd: int, offset: int = -1, max_bytes: int = ..., max_ms: int = ...) -> tuple[bool, int]:
        """Read fd for a while, from where it stands (offset -1) or from offset on: (at the end, next offset)."""
    def pump_source(self, source: object, max_bytes: int = ..., max_ms: int = ...) -> bool:
        """Take bytes from a _tarstream.Source for a while. True: at the end."""
    def finish(self) -> Applied: ...
    def close(self) -> None:
        """Stop what still runs and free all. Twice is harmless."""

# flags: USERNS, USERXATTR. limits: a Limits; None: the core's own defaults.
# workers: 0: everything in the caller's thread; -1: as there are processors. digest: as Apply.digest.
def register(
    root_fd: int, scratch_fd: int, record_fd: int, *, flags: int = 0, limits: object | None = None, workers: int = -1,
    digest: str | None = None,
) -> Apply:
    """A layer becomes files in an empty root and a record; scratch_fd: a directory beside root, for replaced files."""
def erofs(
    fd: int, lowers: Sequence[object] = (), *, limits: object | None = None, workers: int = -1,
    digest: str | None = None, present: bool = False,
) -> Apply:
    """A layer becomes an image in an empty file, open for reading and writing, and stands on lowers, nearest first.

    present: the plain tar is in the file already, from _erofs.HEADER on, and what comes is read out of it.
    """
def record(record_fd: int, *, limits: object | None = None, workers: int = -1) -> Apply:
    """A record as register() writes it, without files: they lie there already. No name may come twice."""
def disassemble(
    record_fd: int, again_fd: int = -1, again_offset: int = -1, *, limits: object | None = None, workers: int = -1
) -> Apply:
    """A record alone, plain. again_fd: the plain tar, from again_offset on; or (-1) an empty file that keeps it."""
def over_tree(root_fd: int, *, flags: int = 0, limits: object | None = None, workers: int = -1) -> Apply:
    """Files over those of a plain directory: whiteouts delete what was there."""
def over_mount(root_fd: int, *, flags: int = 0, limits: object | None = None, workers: int = -1) -> Apply:
    """Files over what a mounted overlay shows. What follows the end of the archive is not asked for."""

def stand_on(root_fd: int, unsettled: bytes, lowers: Sequence[int | Image], flags: int = 0) -> None:
    """Let a tree, unpacked alone, stand on directories, nearest first: what its tar does not say follows from these."""

def guess_format(head: bytes) -> str:
    """What the first bytes of a stream are: "plain", "gzip", "zstd", "bzip2", "xz" or "lz4"."""
def default_limits() -> dict[str, int]:
    """The core's own limits, by the names that Limits has."""
def build_info() -> dict[str, str]: ...
