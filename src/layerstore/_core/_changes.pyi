from collections.abc import Sequence
from typing import Any

from typing_extensions import disjoint_base

from layerstore._core._erofs import Image

@disjoint_base
class Changes:
    """A finished comparison, in C memory. Made by the functions below."""
    def __len__(self) -> int: ...
    def to_list(self, change_type: Any, kinds: Sequence[Any]) -> list[Any]:
        """[change_type(path, kinds[kind]), ...] built without Python code per entry (change_type: a tuple subclass)."""

def compare_trees(
    new_fd: int, old_fd: int = -1, *, attributes: bool = False, touched: bool = False, contents: bool = False
) -> Changes:
    """How two plain trees differ.

    attributes   also what differs in what EXPORT_KEEP keeps alone; such a Changes is for export_changes only
    touched      of two mounts on the same lowers: also what has another ctime, however alike it is
    contents     times do not count: what has the same type, mode, owner, target, device and bytes is the same
    """
def compare_overlay(
    upper_fds: Sequence[int | Image], lower_fds: Sequence[int | Image], userxattr: bool = False, *,
    contents: bool = False
) -> Changes:
    """How upper directories that lie upon each other change what their lowers show; each nearest first.

    userxattr   the marks are user.overlay.*
    contents    as for compare_trees
    Raises      NotSupportedError   a mark that only a mount follows; its path is in the error
    """
def compare_stacks(
    new_fds: Sequence[int | Image], old_fds: Sequence[int | Image], *,
    userxattr: bool = False, old_userxattr: bool = False, contents: bool = False,
) -> Changes:
    """How two whole overlays differ, each all of its layers, nearest first; the rest as for compare_overlay.

    Where the same directories lie at the end of both they are only looked up.
    """
def tree_size(root_fd: int) -> int: ...
def stack_size(fds: Sequence[int | Image], userxattr: bool = False) -> int:
    """The size of the tree that directories show when they are stacked, the nearest first."""
def set_project(root_fd: int, project: int) -> None:
    """Let a directory and all below it belong to another project of the file system's quotas."""

@disjoint_base
class Blocks:
    """What trees take of the disk, each inode once over all that were added. One user at a time.

    freed   what removing all of them frees: a file that has names elsewhere stays
    """
    def __new__(cls, freed: bool = False) -> Blocks: ...
    def add(self, root_fd: int) -> int:
        """Bytes that root, a file or a directory with all below it, adds to what was counted before, by blocks."""

def remove_tree(parent_fd: int, name: str | bytes) -> None:
    """Remove an entry with all below it; fine if it is gone. OSError(EBUSY, path) at a mount point."""
