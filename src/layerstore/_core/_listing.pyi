from collections.abc import Sequence
from typing import Any

from typing_extensions import disjoint_base

from layerstore._core._erofs import Image

@disjoint_base
class Listing:
    """An iterator of batches over the record of a descriptor, which it duplicates."""
    def __init__(self, record_fd: int) -> None: ...
    def next(self, entry_type: Any, kinds: Sequence[Any], layer: Any) -> list[Any]:
        """The next entries, [] at the end: entry_type (a tuple subclass) of path, kinds[kind], size, mode, uid, gid,
        mtime_ns, atime_ns or None, link, device or None, xattrs, crc or None, offset or None, name, layer."""
    def close(self) -> None: ...

def list_tar(fd: int, offset: int, size: int) -> Listing:
    """List the tar of size bytes at an offset of a file, which is duplicated: by its headers, so no entry has a CRC."""

def list_stack(fds: Sequence[int | Image], lower_fds: Sequence[int | Image] | None = None, flags: int = 0) -> Listing:
    """List what _tarstream.export_stack() packs, with EXPORT_SKIP_MARKS; no entry has a CRC or an offset."""

def open_stacked(fds: Sequence[int], path: str, userxattr: bool = False) -> int:
    """A descriptor of the regular file that directories show at path when they are stacked, the nearest first.

    No link is followed. FileNotFoundError; OSError(EINVAL): it is no regular file.
    """

def open_file(root_fd: int, path: str, size: int) -> int:
    """A descriptor of a file beneath root_fd, reached through no link. CorruptLayerError: it is not as listed."""

def add_crc(crc: int, data: Any) -> int: ...
