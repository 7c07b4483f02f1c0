"""What a fresh tar keeps and leaves out: the two choices a caller has, and the one warning.

Enters: the words of a call; what the core counted. Leaves: flags for the core; a warning, and a line in the log.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

from layerstore._core import _tarstream
from layerstore.errors import InvalidOptionError, readable
from layerstore.streams.tarstream import TarStream

log = logging.getLogger("layerstore")

Keep = Literal["docker", "all"]
Marks = Literal["refuse", "skip"]

_WORDS = {
    "xattr": ("extended attributes of {n} file", "extended attributes of {n} files"),
    "acl": ("the ACL of {n} file", "the ACLs of {n} files"),
    "socket": ("{n} socket", "{n} sockets"),
    "mark": ('{n} name that begins with ".wh."', '{n} names that begin with ".wh."'),
}


class LeftOut(NamedTuple):
    """What a fresh tar leaves out, of one kind.

    kind    "xattr", "acl", "socket" or "mark" (a name that begins with ".wh.")
    number  how many files have it
    paths   the first few of them
    """

    kind: str
    number: int
    paths: list[str]


class LeftOutWarning(UserWarning):
    """A tar leaves out something that a writable layer, or a layer, has.

    left   what: one LeftOut a kind
    """

    def __init__(self, text: str, left: Sequence[LeftOut] = ()) -> None:
        super().__init__(text)
        self.left: tuple[LeftOut, ...] = tuple(left)


def export_flags(keep: str, marks: str) -> int:
    """Return the core's flags for the words of a call. Raises InvalidOptionError."""
    if keep not in ("docker", "all"):
        raise InvalidOptionError(f'keep is "docker" or "all", not {keep!r}')
    if marks not in ("refuse", "skip"):
        raise InvalidOptionError(f'marks is "refuse" or "skip", not {marks!r}')
    flags = _tarstream.EXPORT_KEEP if keep == "all" else 0
    return flags | (_tarstream.EXPORT_SKIP_MARKS if marks == "skip" else 0)


def warn_left_out(whose: str, found: Sequence[tuple[str, int, list[str]]], *, stays: str = "") -> None:
    """Warn once of all that a tar leaves out, if it leaves out anything, by a warning and in the log.

    whose   "writable layer web", "layer sha256:..."
    stays   "layer" or "snapshot": whose files have it, as it is left out of the tar alone
    """
    left = [LeftOut(*one) for one in found]
    if not left:
        return
    parts = []
    for kind, number, paths in left:
        words = _WORDS[kind][number != 1].format(n=number)
        more = ", ..." if number > len(paths) else ""
        parts.append(f"{words} ({', '.join(map(readable, paths))}{more})")
    keepable = '; keep="all" keeps them' if any(one.kind in ("xattr", "acl") for one in left) else ""
    hint = f"; the {stays}'s own files keep them" if stays else keepable
    text = f"The tar of {whose} leaves out {'; '.join(parts)}{hint}"
    log.warning("%s", text, extra={"left_out": left})
    warnings.warn(LeftOutWarning(text, left), stacklevel=4)


def told_left_out(stream: TarStream, whose: str) -> TarStream:
    """Return a new tar, after the warning of what it leaves out. If warnings are errors, close it and raise."""
    try:
        warn_left_out(whose, stream.left_out())
    except BaseException:
        stream.close()
        raise
    return stream
