"""The tar around images: its entries, one after the other, from a file or from a stream.

The core's reader reads it, as it reads the layers: what it sees is what Go's archive/tar sees. Where other tools are
known to see another entry in the same bytes, the archive is refused. What is kept is bounded, whatever the headers say.
"""

from __future__ import annotations

import posixpath
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from layerstore._core._walk import Walker
from layerstore.errors import ImageError, LimitExceededError, TarFormatError, readable

# An archive of the deepest images Docker allows has some hundred entries an image.
ENTRIES_LIMIT = 200_000
_NAME_LIMIT = 4096
# Bytes that the texts of all names and link targets take in memory.
_NAMES_LIMIT = 32 << 20

FILE, LINK, HARD_LINK, OTHER = "file", "link", "hard link", "other"
_KINDS = {"0": FILE, "7": FILE, "2": LINK, "1": HARD_LINK}
_Found = tuple[bytes, bytes, str, bool, int, int, str | None]


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
    """Return a path inside an archive as its entries are named; "" if it leads outside."""
    if "\0" in path:
        return ""
    found = posixpath.normpath(path.lstrip("/")) if path else ""
    return "" if found == ".." or found.startswith("../") else found


def cut(entry: Entry) -> ImageError:
    """Return the error of an archive that ends in the payload of an entry."""
    return ImageError(f"the archive is cut, in {readable(entry.name)}")


def entries(read: Callable[[int], bytes], skip: Callable[[int], None], tell: Callable[[], int]) -> Iterator[Entry]:
    """Return an iterator over the entries of an archive, in order.

    read   returns exactly n bytes, fewer only at the end
    skip   skips n bytes
    tell   returns the position. The caller may read an entry's payload, or a part of it; the rest is skipped
    Raises  ImageError   it is not a tar, or cut, or other tools read other entries in it
    """
    walker = Walker()
    count = names = 0
    while want := walker.wants():
        at = tell()
        data = read(want)
        try:
            if not data and at:
                walker.end()
                return                        # without its end mark, as some make it
            found = walker.feed(data)
            if len(data) < want:
                walker.end()
        except LimitExceededError as err:
            raise ImageError(f"an extended header of the archive is too long: {err}") from None
        except TarFormatError as err:
            raise ImageError(f"the archive is not a tar, is malformed, or is cut at byte {tell()}: {err}") from None
        if not found:
            if not data:
                raise ImageError("the archive is empty: it is not a tar")
            continue
        count += 1
        if count > ENTRIES_LIMIT:
            raise ImageError(f"the archive has more than {ENTRIES_LIMIT} entries")
        entry, padding, doubt = _entry(found, tell())
        if doubt:
            raise ImageError(f"{readable(entry.name)} in the archive is another entry to other readers: {doubt}")
        names += sum(sys.getsizeof(text) - sys.getsizeof("") for text in (entry.name, entry.target))
        if names > _NAMES_LIMIT:
            raise ImageError(f"the names in the archive take more than {_NAMES_LIMIT} bytes of memory")
        if found[2] != "g":
            yield entry
        skip(entry.offset + entry.size + padding - tell())
        if tell() < entry.offset + entry.size:
            raise cut(entry)


def _entry(found: _Found, offset: int) -> tuple[Entry, int, str | None]:
    """Return the entry, the size of the padding behind its payload, and the doubt about it."""
    raw_name, raw_link, letter, sparse, size, padding, doubt = found
    if max(len(raw_name), len(raw_link)) > _NAME_LIMIT:
        raise ImageError(f"a header of the archive is malformed: a name of more than {_NAME_LIMIT} bytes")
    name, link = raw_name.decode("utf-8", "surrogateescape"), raw_link.decode("utf-8", "surrogateescape")
    kind, plain, target = _KINDS.get(letter, OTHER) if not sparse else OTHER, plain_path(name), ""
    if kind == LINK and not link.startswith("/"):
        target = plain_path(posixpath.join(posixpath.dirname(plain), link))
    elif kind == HARD_LINK:
        target = plain_path(link)
    return Entry(plain, kind, offset, size, target), padding, doubt
