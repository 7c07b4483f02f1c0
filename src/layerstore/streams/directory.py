"""A directory becomes a layer's tar: sorted and without chance, so that the same tree always has the same DiffID.

Enters: a path, and what all entries are to have. Leaves: a TarStream, which Store.register() takes.
"""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Iterable
from typing import SupportsIndex

from layerstore._core import _tarstream
from layerstore.streams.tarstream import TarStream
from layerstore.values import StrPath

EPOCH = "SOURCE_DATE_EPOCH"
_ANY_TIME = (1 << 63) - 1
_MAX_ID = (1 << 32) - 2


def pack_directory(
    path: StrPath, *, prefix: str = "", mtime: int | None = None, owner: tuple[int, int] | None = None,
    exclude: Iterable[str] = (),
) -> TarStream:  # fmt: skip
    """Return a reproducible layer tar of a directory: the same tree gives the same bytes, on any file system.

    Entries are sorted by the bytes of their whole paths. The directory itself is no entry. A later name of a file is a
    hard link to its first. Times are whole seconds. PAX records are there only for what USTAR cannot say: long or odd
    names, large numbers, capabilities and user.* attributes. Sockets, ACLs and other attributes are left out.
    All names are listed at the call; files are read with the stream. A file that grows meanwhile gives the bytes that
    it had; one that shrinks, or goes, is an OSError.

    path      the directory
    prefix    where its entries are in the tar, for example "app" or "usr/local"; no entries of its own are made
    mtime     seconds since 1970: no entry is newer. None: SOURCE_DATE_EPOCH of the environment, if it is set
    owner     (uid, gid) of all entries. None: as they are
    exclude   patterns as MergedTree.find() takes them, relative to path; with a directory goes all that is in it

    Returns  a TarStream, to be read once; it is no longer needed after Store.register()
    Raises   FileNotFoundError, NotADirectoryError, OSError   path, or something below it
             BreakoutError   a name begins with ".wh.": rename it, or exclude it
             ValueError      prefix leads outside, an empty pattern, a number out of range, SOURCE_DATE_EPOCH is none
    """
    place = _prefix(prefix)
    newest = _newest(mtime)
    uid, gid = _owner(owner)
    patterns = _patterns(exclude)
    directory = os.fsdecode(path)
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        source = _tarstream.export_directory(root, place, newest, uid, gid, patterns)
    except OSError as err:
        if isinstance(err.filename, str):
            err.filename = os.path.join(directory, err.filename)
        raise
    finally:
        with contextlib.suppress(OSError):    # it was only read
            os.close(root)
    return TarStream(source, seekable=False, directory=directory)


def _prefix(prefix: StrPath) -> bytes:
    parts = [part for part in os.fsencode(prefix).split(b"/") if part not in (b"", b".")]
    for part in parts:
        if part == b".." or b"\0" in part or part.startswith(b".wh."):
            raise ValueError(f"no directory of a layer has this name: {os.fsdecode(part)!r} (prefix {prefix!r})")
    return b"/".join(parts)


def _newest(mtime: SupportsIndex | None) -> int:
    if mtime is not None:
        newest, of = operator.index(mtime), "mtime"
    elif text := os.environ.get(EPOCH):
        of = EPOCH
        try:
            newest = int(text)
        except ValueError:
            raise ValueError(f"{EPOCH} is a number of seconds, not {text!r}") from None
    else:
        return _ANY_TIME
    if not -_ANY_TIME <= newest <= _ANY_TIME:
        raise ValueError(f"{of} has 63 bits at most: {newest}")
    return newest


def _owner(owner: tuple[int, int] | None) -> tuple[int, int]:
    if owner is None:
        return -1, -1
    uid, gid = map(operator.index, owner)
    if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
        raise ValueError(f"owner is (uid, gid), each from 0 to {_MAX_ID}, not {owner!r}")
    return uid, gid


def _patterns(exclude: Iterable[str]) -> list[bytes]:
    if isinstance(exclude, (str, bytes, os.PathLike)):
        raise TypeError(f"exclude is an iterable of patterns, not one: [{exclude!r}]")
    patterns = [os.fsencode(pattern) for pattern in exclude]
    for pattern in patterns:
        if all(part in (b"", b".") for part in pattern.split(b"/")):
            raise ValueError(f"a pattern names something below the directory: {os.fsdecode(pattern)!r}")
        if b"\0" in pattern:
            raise ValueError(f"embedded null byte: {os.fsdecode(pattern)!r}")
    return patterns
