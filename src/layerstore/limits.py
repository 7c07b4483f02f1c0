"""Limits: what a hostile tar may ask for before it is refused. Options of a store, numbers for the core.

On by default is what bounds memory and time beyond the bytes of the tar, far above what any real layer has;
what costs disk and nothing else is off, as Docker stores layers of any size.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import NamedTuple

from layerstore.errors import InvalidOptionError
from layerstore.sizes import parse_size


class Limits(NamedTuple):
    """The most that one tar may have; 0: no limit. As options: texts as "1000", "16K" or "10G", 1024 to the K."""

    max_entries: int = 16 << 20
    """Entries, with the directories made for want of an entry. Each costs up to 40 bytes of memory."""
    max_size: int = 0
    """Bytes of all files when unpacked, holes too."""
    max_file_size: int = 0
    """Bytes of one file when unpacked, holes too."""
    max_tar_size: int = 0
    """Bytes of the tar once decompressed, all that follows its end too."""
    max_record: int = 0
    """Bytes of the tar-split record on disk."""
    max_names: int = 2 << 30
    """Bytes of all names and link targets: of directories they stay in memory."""
    max_path: int = 16 << 10
    """Bytes of one name or link target; a path of the kernel has 4096."""
    max_depth: int = 1 << 10
    """Components of one name, those of the links it leads through too."""
    max_header: int = 1 << 20
    """Bytes of one PAX or GNU long-name record, or of a sparse map. 1 MiB is Go's, and so Docker's."""
    max_headers: int = 8 << 20
    """Bytes of all such records of one entry, and of the blocks that announce them."""
    max_global_headers: int = 16 << 20
    """Bytes of all global PAX headers, likewise."""
    max_extents: int = 1 << 20
    """Pieces of one sparse file. Go's."""
    max_xattrs: int = 1 << 10
    """Extended attributes of one entry."""
    max_xattr_size: int = 1 << 20
    """Bytes of their names and values."""
    max_window: int = 128 << 20
    """Bytes that zstd (down to a power of two) or xz may look back: as much memory. That of zstd --long."""

    @classmethod
    def take(cls, options: MutableMapping[str, str]) -> Limits:
        """Take the limits out of a store's options. Raises InvalidOptionError."""
        return cls(**{name: _number(name, options.pop(name)) for name in cls._fields if name in options})


def _number(name: str, text: str) -> int:
    try:
        number = parse_size(text)
    except InvalidOptionError as err:
        raise InvalidOptionError(f"{name} is a number as 1000, 16K or 10G, or 0 for none: {err}") from None
    if number == 0 and any(digit in "123456789" for digit in str(text)):
        raise InvalidOptionError(f"{name} is a number as 1000, 16K or 10G, or 0 for none, not '{text}'")
    return number
