"""The home of erofs: what it says of itself, what its layers take, and the mounts in it that no overlay stands on."""

from __future__ import annotations

import contextlib
import os

from layerstore._core import _changes, _files
from layerstore.drivers import Owned
from layerstore.drivers.erofs.ground import ErofsGround
from layerstore.drivers.overlay.host import Host
from layerstore.errors import NotSupportedError


class ErofsHost(Host):
    """The drivers.Host of erofs; the methods are the protocol's."""

    def __init__(self, ground: ErofsGround) -> None:
        super().__init__(ground)
        self._images, self._mounted, self._names = ground.at, ground.below, ground.names

    def status(self) -> list[tuple[str, str]]:
        backing, *told = super().status()
        return [backing, ("EROFS mode", self._mode()), *(pair for pair in told if pair[0] != "Supports d_type")]

    def _mode(self) -> str:
        try:
            return self._mounted.mode()
        except (NotSupportedError, OSError):
            return "none"

    def blocks(self, id: str, seen: _changes.Blocks) -> int:
        if not self._images.is_image(id):
            return super().blocks(id, seen)
        with contextlib.suppress(FileNotFoundError):
            fd = _files.open(self._images.image(id), os.O_PATH | os.O_NOFOLLOW)
            try:
                return seen.add(fd)
            finally:
                _files.close(fd)
        return 0

    def orphans(self, owned: Owned) -> list[str]:
        return [*super().orphans(owned), *self._mounted.orphans(), *self._names.unneeded()]

    def usage(self, name: str) -> int:
        path = os.path.join(self._images.home, name)
        with contextlib.suppress(OSError):
            if os.path.isfile(path) and not os.path.islink(path):
                return os.lstat(path).st_size
        return super().usage(name)

    def reclaim(self, owned: Owned) -> None:
        super().reclaim(owned)
        self._mounted.cleanup()
        self._names.cleanup()

    def cleanup(self) -> None:
        super().cleanup()
        self._mounted.cleanup()
        self._names.cleanup()
