"""Mountable: the files of layers, opened to be mounted, or to be looked at without a mount.

What is not as it was written is refused by its name before the kernel sees it. A file that was looked at is looked at
again only when it has changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from layerstore._core import _files
from layerstore._core._erofs import Image
from layerstore.disk import erofs
from layerstore.disk.locks import Scope, surely
from layerstore.drivers.erofs import image
from layerstore.drivers.erofs.directories import LENGTH, ErofsDirectories
from layerstore.errors import CorruptLayerError, InvalidMetadataError, readable
from layerstore.ids import DiffID

_Mark = tuple[int, int, int, int]


class Mountable:
    """The files of the layers below one home."""

    def __init__(self, at: ErofsDirectories, diff_id_of: Callable[[str], DiffID | None]) -> None:
        """diff_id_of   as StoreView has it"""
        self._at, self._diff_id_of = at, diff_id_of
        self._sound: dict[str, tuple[_Mark, _Mark | None]] = {}

    def opened(self, id: str) -> Scope[erofs.File]:
        """Open a layer's file to be mounted, for the length of a `with` block.

        Raises  CorruptLayerError, InvalidMetadataError   it is not the file that was written, and why
                OSError
        """
        path = self._at.image(id)

        def begin() -> erofs.File:
            fd = image.open_regular(path)
            try:
                self._require(id, fd, path)
            except BaseException:
                surely(_files.close, fd, path)
                raise
            return erofs.File(fd, path)

        return Scope(begin, lambda file: _files.close(file.fd, path))

    def image(self, id: str) -> Image:
        """Open what a layer shows, for the length of a `with` block. Nothing is mounted.

        Raises CorruptLayerError, InvalidMetadataError, OSError.
        """
        with image.opened(self._at.image(id)) as fd:
            return _image(fd, self._at.image(id))

    def _require(self, id: str, fd: int, path: str) -> None:
        """Make sure that a file is what was written of a layer with this DiffID."""
        mark = _mark(os.fstat(fd)), _mark_of(self._at.length(id))
        if self._sound.get(id) == mark:
            return
        with _image(fd, path) as found:
            size = image.tar_size(fd, self._at.length(id))
            noted = image.noted(self._at.length(id))
            if noted not in (None, size):
                text = f"{id}/{LENGTH} says that the tar has {noted} bytes, and it has {size}"
                raise CorruptLayerError(f"{readable(path)} is not mounted: {text}", path=path)
            diff_id = self._diff_id_of(id)
            why = found.refusal(diff_id.raw, size) if diff_id else ""
            if why:
                raise InvalidMetadataError(f"{readable(path)} is not mounted: {why}", path=path)
        self._sound[id] = mark


def _image(fd: int, path: str) -> Image:
    try:
        return Image(fd)
    except InvalidMetadataError as err:
        raise InvalidMetadataError(f"{readable(path)} cannot be mounted: {err}", path=path) from None


def _mark(found: os.stat_result) -> _Mark:
    return found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size


def _mark_of(path: str) -> _Mark | None:
    try:
        return _mark(os.lstat(path))
    except FileNotFoundError:
        return None
