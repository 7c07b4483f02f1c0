from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import disjoint_base

from layerstore._core._erofs import Image

EXPORT_OVERLAY: int
EXPORT_USERXATTR: int
EXPORT_KEEP: int
EXPORT_SKIP_MARKS: int
EXPORT_WHOLE: int

@disjoint_base
class Source:
    """A tar on its way out. Made by the functions below; one user at a time."""
    def read(self, n: int) -> bytes:
        """n bytes (all for -1); fewer only at the end; b"" after the end, when all checks have passed."""
    def read_block(self, n: int) -> bytes:
        """The same of n bytes, 16 MiB at most, without reading further than that."""
    def readinto(self, buffer: Any) -> int: ...
    def read_ahead(self) -> bytes:
        """The bytes that were read further than given, which are given so; Apply.pump_source goes on behind them."""
    def copy_to_fd(self, fd: int, max_bytes: int = ..., max_ms: int = ...) -> tuple[bool, int]:
        """Write to fd for a while: (at the end, bytes written)."""
    def size(self) -> int: ...
    def files_size(self) -> int:
        """Bytes of the files that a fresh tar was made of so far, each inode once (moby's size of a layer)."""
    def left_out(self) -> list[tuple[str, int, list[str]]]:
        """What a fresh tar leaves out: ("xattr" | "acl" | "socket" | "mark", how many, the first few paths).

        Of what was read, once that is all; before, of what the last size() saw.
        """
    def lies(self) -> tuple[int, int, int, bytes | None] | None:
        """Where the next byte lies, if in a file: descriptor, offset, bytes that follow; the DiffID of a whole tar."""
    def seek(self, offset: int) -> None: ...
    def tell(self) -> int: ...
    def close(self) -> None: ...

def assemble(record_fd: int, root_fd: int, diff_id: bytes | None = None) -> Source:
    """The tar a record describes; diff_id (32 bytes) is checked over a whole sequential read."""
def of_range(fd: int, offset: int, size: int, diff_id: bytes | None = None) -> Source:
    """The tar of size bytes at an offset of a regular file, which is duplicated; diff_id as assemble() has it."""
def export_tree(root_fd: int, flags: int = 0) -> Source: ...
def export_directory(root_fd: int, prefix: bytes, newest: int, uid: int, gid: int, exclude: list[bytes]) -> Source:
    """Reproducible tar of what is below root_fd, whose names are listed by this call.

    prefix    where in the tar: b"" or b"a/b"
    newest    no entry is of a later second
    uid, gid  of all entries; -1: their own
    exclude   patterns as MergedTree.find() takes them, without NUL
    """
def export_stack(fds: Sequence[int | Image], flags: int = 0, lower_fds: Sequence[int | Image] | None = None) -> Source:
    """Tar of layers stacked, the nearest first: the one of the directory that merging them would make.

    lower_fds   what that directory stands on: a whiteout of nothing is left out. None: none is left out
    """
def export_changes(root_fd: int, changes: Any, flags: int = 0) -> Source:
    """Tar of a _changes.Changes over the tree at root_fd."""

CHECK_METADATA: int     # modes, owners, times, extended attributes, kinds, link targets, added names too
CHECK_USERNS: int       # in a user namespace: trusted.* cannot be seen
CHECK_USERXATTR: int    # overlay's marks are user.*
CHECK_FIRST: int        # the tar was made of the directory, which may have what such a tar leaves out

def check(
    record_fd: int, root_fd: int, diff_id: bytes | None, report: Callable[[int], None] | None = None,
    lower_fds: Sequence[int | Image] = (), flags: int = 0,
) -> list[tuple[str, str, str]]:
    """Every difference between a record and its tree: (kind as a Problem's, path, sentence).

    report      called at least every 100 ms with the bytes of files looked at since the last call; may raise
    lower_fds   what the layer stands on, nearest first: a whiteout of nothing may be missing
    flags       CHECK_
    """
