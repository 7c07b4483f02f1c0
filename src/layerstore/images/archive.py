"""The tar around images: its entries, one after the other, from a file or from a stream.

Only what archives of images are made of is understood: names (ustar, GNU, PAX), sizes, links. What is read is bounded,
whatever the headers say; the payloads are left to others.
"""

from __future__ import annotations

import posixpath
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from layerstore.errors import ImageError, readable

BLOCK = 512
# An archive of the deepest images Docker allows has some hundred entries an image.
ENTRIES_LIMIT = 200_000
_EXTENSION_LIMIT = 1 << 20
_NAME_LIMIT = 4096
# Bytes that all names and link targets take in memory.
_NAMES_LIMIT = 32 << 20

FILE, LINK, HARD_LINK, OTHER = "file", "link", "hard link", "other"
_KINDS = {b"0": FILE, b"\0": FILE, b"7": FILE, b"2": LINK, b"1": HARD_LINK}


class Entry(NamedTuple):
    """One entry of an archive.

    name     its path, made plain: no "./", no "/" at an end
    offset   where its payload begins, bytes from the start
    target   of a link: the path in the archive it leads to; "" where that is outside
    """

    name: str
    kind: str
    offset: int
    size: int
    target: str = ""


def plain_path(path: str) -> str:
    """A path inside an archive as its entries are called; "" where it leads out of it."""
    if "\0" in path:
        return ""
    found = posixpath.normpath(path.lstrip("/")) if path else ""
    return "" if found == ".." or found.startswith("../") else found


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    else:
        text = field.strip(b" \0")
        try:
            value = int(text, 8) if text else 0
        except ValueError:
            raise ImageError(f"a size in the archive is no number: {field!r}") from None
    if not 0 <= value < 1 << 62:
        raise ImageError(f"a size in the archive is out of all bounds: {field!r}")
    return value


def is_header(block: bytes) -> bool:
    """Say whether a block is a tar's header: the sum of its bytes is right."""
    if len(block) < BLOCK:
        return False
    text = block[148:156].strip(b" \0")
    try:
        told = int(text, 8)
    except ValueError:
        return False
    return told in (sum(block) - sum(block[148:156]) + 256, _signed_sum(block))


def _signed_sum(block: bytes) -> int:
    return sum(b - 256 if b > 127 else b for b in block[:148] + block[156:]) + 256


def _pax(data: bytes) -> dict[str, str]:
    """The records of an extended header that matter."""
    found: dict[str, str] = {}
    while data.strip(b"\0"):
        length, space, _ = data.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 8 else 0
        key, equals, value = data[len(length) + 1 : max(size - 1, 0)].partition(b"=")
        if not (space and equals and len(length) + 2 < size <= len(data)):
            raise ImageError("an extended header of the archive is malformed")
        if key in (b"path", b"linkpath", b"size"):
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
        elif key.startswith(b"GNU.sparse."):
            found["sparse"] = ""
        data = data[size:]
    return found


def entries(read: Callable[[int], bytes], skip: Callable[[int], None], tell: Callable[[], int]) -> Iterator[Entry]:
    """Give the entries of an archive, in order.

    read   gives exactly n bytes, fewer only at the end
    skip   passes over n bytes
    tell   where the next byte is read. While an entry is looked at, its payload may be read, or a part of it: the rest
           is passed over.
    Raises  ImageError   it is no tar, or cut
    """
    extension: dict[str, str] = {}
    count = names = 0
    while True:
        at = tell()
        block = read(BLOCK)
        if not block and at:
            return                            # without its end mark, as some make it
        if block == bytes(BLOCK):
            return
        if not is_header(block):
            raise ImageError(f"the archive is {'cut' if at and len(block) < BLOCK else 'no tar'}, at byte {at}")
        count += 1
        if count > ENTRIES_LIMIT:
            raise ImageError(f"the archive has more than {ENTRIES_LIMIT} entries")
        kind, size, start = block[156:157], _number(block[124:136]), tell()
        if kind in b"xgLK":
            if size > _EXTENSION_LIMIT:
                raise ImageError(f"an extended header of {size} bytes in the archive, at byte {at}")
            data = read(size)
            skip(-size % BLOCK)
            if len(data) < size:
                raise ImageError(f"the archive is cut, at byte {at}")
            if kind == b"x":
                extension |= _pax(data)
            elif kind != b"g":
                extension["path" if kind == b"L" else "linkpath"] = _text(data)
            continue
        entry = _entry(block, _KINDS.get(kind, OTHER), start, size, extension)
        extension = {}
        names += sys.getsizeof(entry.name) + sys.getsizeof(entry.target)
        if names > _NAMES_LIMIT:
            raise ImageError(f"the names in the archive take more than {_NAMES_LIMIT} bytes of memory")
        yield entry
        skip(entry.offset + entry.size + -entry.size % BLOCK - tell())
        if tell() < entry.offset + entry.size:
            raise ImageError(f"the archive is cut, in {readable(entry.name)}")


def _entry(block: bytes, kind: str, offset: int, size: int, extension: dict[str, str]) -> Entry:
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    name = extension.get("path") or (f"{prefix}/" if prefix else "") + _text(block[:100])
    if "size" in extension:
        size = _number(b"%o" % int(extension["size"])) if extension["size"].isdecimal() else -1
    if kind in (LINK, HARD_LINK):
        size = 0
    if size < 0 or len(name) > _NAME_LIMIT:
        raise ImageError(f"a header of the archive is malformed: {readable(name[:100])!r}")
    plain = plain_path(name)
    target = extension.get("linkpath") or _text(block[157:257])
    if kind == LINK:
        target = plain_path(posixpath.join(posixpath.dirname(plain), target)) if not target.startswith("/") else ""
    elif kind == HARD_LINK:
        target = plain_path(target)
    if "sparse" in extension:
        kind = OTHER
    return Entry(plain, kind, offset, size, target if kind in (LINK, HARD_LINK) else "")
