"""Flat: many layers as one mount, of an index that points into the file of each.

    <home>/<id of the nearest layer>/fsmeta.erofs   the index: made when it is first needed, and may be deleted
    <home>/<id of the nearest layer>/flat           where it is mounted; gone with the mount
Look-ups in it do not grow with the number of layers. Its devices are the layers' files, the lowest first.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

from layerstore._core import _erofs, _files
from layerstore.disk import erofs
from layerstore.disk.locks import Scope
from layerstore.drivers.erofs import image
from layerstore.drivers.erofs.directories import ErofsDirectories
from layerstore.drivers.erofs.mountable import Mountable
from layerstore.drivers.overlay.directories import make
from layerstore.errors import LayerStoreError

INDEX, PLACE = "fsmeta.erofs", "flat"


class Flat:
    """The indexes below one home."""

    def __init__(self, at: ErofsDirectories, files: Mountable, *, durable: bool) -> None:
        """durable   an index is on the disk before it has its name"""
        self._at, self._files, self._durable = at, files, durable

    def place(self, id: str) -> str:
        """Return where the index of a layer with all below it is mounted."""
        return self._at.path(id, PLACE)

    def mount(self, ids: Sequence[str], mount: Callable[[Sequence[erofs.File], str], None]) -> None:
        """Mount the index of these layers, nearest first; the nearest is held.

        mount   mounts images at a place
        Raises  NotSupportedError   they cannot be shown by one index
                OSError, LayerStoreError
        """
        place = self.place(ids[0])
        with contextlib.ExitStack() as opened:
            layers = [opened.enter_context(self._files.opened(id)) for id in reversed(ids)]
            index = opened.enter_context(self._index(self._at.path(ids[0], INDEX), layers))
            make(place, 0o700)
            mount([index, *layers], place)

    def _index(self, path: str, layers: Sequence[erofs.File]) -> Scope[erofs.File]:
        """Open the index of these layers, the lowest first. One that is missing, damaged or older than one is made."""

        def begin() -> erofs.File:
            fd = self._found(path, layers)
            return erofs.File(self._made(path, layers) if fd < 0 else fd, path)

        return Scope(begin, lambda index: _files.close(index.fd, path))

    @staticmethod
    def _found(path: str, layers: Sequence[erofs.File]) -> int:
        """Open an index that is there; -1: there is none that is of use."""
        try:
            fd = image.open_regular(path)
        except (OSError, LayerStoreError):
            return -1
        with contextlib.suppress(OSError, LayerStoreError):
            if os.fstat(fd).st_mtime_ns > max(os.fstat(layer.fd).st_mtime_ns for layer in layers):
                _erofs.Image(fd, devices=[layer.fd for layer in layers]).close()
                return fd
        _files.close(fd, path)
        return -1

    def _made(self, path: str, layers: Sequence[erofs.File]) -> int:
        """Write an index, and name it if that can be done: it is of use without a name, too."""
        fd = _files.open(os.path.dirname(path), os.O_RDWR | os.O_TMPFILE, 0o600)
        try:
            with contextlib.ExitStack() as opened:
                images = [opened.enter_context(_erofs.Image(layer.fd)) for layer in reversed(layers)]
                _erofs.flatten(images, fd)
            if self._durable:
                _files.fsync(fd)
            with contextlib.suppress(FileNotFoundError):
                _files.unlink(path)
            _files.link(fd, path)
        except BaseException:
            _files.close(fd, path)
            raise
        return fd
