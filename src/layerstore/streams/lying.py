"""Where a tar lies: plain, in a regular file, so that its bytes can be shared instead of copied.

A source comes in, before it is read; a place comes out. The caller that has the bytes from there says so, and then the
source stands at its end, as if it had been read.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from layerstore._core import _files
from layerstore._core._apply import guess_format
from layerstore.disk.textfile import naming_file
from layerstore.streams.sources import Input, Section, SourceInput, TarInput
from layerstore.streams.tarstream import TarStream
from layerstore.values import Progress


class Lying(NamedTuple):
    """The rest of a tar, or all of it."""

    section: Section
    diff_id: bytes | None
    """What the bytes must hash to; None: not known."""
    progress: Progress | None
    take: Callable[[], object]
    """Lets the source stand at its end."""


@contextlib.contextmanager
def lying(given: TarInput) -> Iterator[Lying | None]:
    """Find out where a tar lies, and read no more than its first bytes; None: it is to be read. Raises OSError."""
    source, progress = (given.source, given.progress) if isinstance(given, SourceInput) else (given, None)
    if isinstance(source, TarStream):
        with source.lying() as found:
            yield Lying(Section(*found[:3]), found[3], progress, source.pass_over) if found else None
    elif _is_regular(source):
        with contextlib.closing(Input(source)) as opened:
            yield _found(opened, progress)
    else:
        yield None


def _is_regular(source: Any) -> bool:
    """Return True if a source is a regular file, or may be one that can be looked at without being read."""
    if isinstance(source, (str, os.PathLike)):    # a fifo is opened once
        with contextlib.suppress(OSError, ValueError):
            return stat.S_ISREG(_files.mode_of(source, follow=True))
        return False
    return isinstance(source, (Section, io.FileIO, io.BufferedReader)) or type(source) is int


def _found(opened: Input, progress: Progress | None) -> Lying | None:
    size = opened.length() if opened.regular else None
    if not size or guess_format(opened.head()) != "plain":
        return None
    fd, at = opened.reread()
    end = at + size

    def take() -> None:
        if opened.offset >= 0:
            opened.offset = end                   # close() leaves the file there
        else:
            with naming_file(fd):
                os.lseek(fd, end, os.SEEK_SET)

    return Lying(Section(fd, at, size), None, progress, take)
