"""A tree as one EROFS image: a file that a machine boots from, or a kernel mounts, with nothing beside it.

Enters: a fresh tar of the whole tree. Leaves: the tar with an index behind it, whose header is written last.
"""

from __future__ import annotations

import os

from layerstore._core import _apply
from layerstore.disk.textfile import new_file
from layerstore.streams.tarstream import TarStream
from layerstore.values import Progress, StrPath


def write_image(tar: TarStream, path: StrPath, progress: Progress | None = None) -> int:
    """Write a tar as an image into a new file, whole or not at all, and return its bytes. Close the tar.

    progress   called with the bytes of the tar that were taken
    """
    with tar, new_file(os.fsdecode(path)) as fd:
        apply = _apply.erofs(fd)
        try:
            tar.pump_into(apply, progress)
            apply.finish()
        finally:
            apply.close()
        return os.fstat(fd).st_size
