from collections.abc import Sequence
from typing import Any

from typing_extensions import disjoint_base

@disjoint_base
class Listing:
    """An iterator of batches over the record of a descriptor, which it duplicates."""
    def __init__(self, record_fd: int) -> None: ...
    def next(self, entry_type: Any, kinds: Sequence[Any], layer: Any) -> list[Any]:
        """The next entries, [] at the end: entry_type (a tuple subclass) of path, kinds[kind], size, mode, uid, gid,
        mtime_ns, atime_ns or None, link, device or None, xattrs, crc or None, offset or None, name, layer."""
    def close(self) -> None: ...

def open_file(root_fd: int, path: str, size: int) -> int:
    """A descriptor of a file beneath root_fd, reached through no link. CorruptLayerError: it is not as listed."""

def add_crc(crc: int, data: Any) -> int: ...
