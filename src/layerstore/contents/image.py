"""A tree as one EROFS image: a file that a machine boots from, or a kernel mounts, with nothing beside it.

Enters: a tar of the whole tree. Leaves: the tar with an index behind it, whose header is written last.
"""

from __future__ import annotations

from layerstore._core import _apply
from layerstore.streams.tarstream import TarStream
from layerstore.values import Progress


def write_image(tar: TarStream, fd: int, progress: Progress | None = None) -> None:
    """Write a tar as an image into an empty file, open for reading and writing.

    progress   called with the bytes of the tar that were taken
    """
    apply = _apply.erofs(fd)
    try:
        tar.pump_into(apply, progress)
        apply.finish()
    finally:
        apply.close()
