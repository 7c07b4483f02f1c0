"""Names for containerd: hard links to layers, where its erofs snapshotter looks for what it need not fetch.

    <home>/sha256/<2 digits>/<hex of DiffID>.erofs    the file of a layer
    <home>/sha256/<2 digits>/<hex of DiffID>.lease    made by others: the name stays although no layer has the file
A name goes with the last layer that has its file. The names are no record: whatever becomes of them, no layer changes.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from layerstore._core import _files
from layerstore.disk.textfile import make_directories
from layerstore.ids import DiffID

log = logging.getLogger("layerstore")

DIRECTORY = "sha256"
_NAME, _LEASE, _NEW = ".erofs", ".lease", ".new"
_UUID_AT, _UUID_SIZE = 1024 + 48, 16


class Names:
    """The names of one home."""

    def __init__(self, home: str, *, on: bool) -> None:
        """on   layers get names; names that are there are looked after in any case"""
        self._home, self._on = home, on

    def add(self, diff_id: DiffID, image: str) -> None:
        """Make the name of a layer. Never raises: a layer without one is fetched by containerd again."""
        if not self._on:
            return
        name = os.path.join(self._home, DIRECTORY, diff_id.encoded[:2], diff_id.encoded + _NAME)
        try:
            make_directories(os.path.dirname(name), 0o755)
            with contextlib.suppress(FileExistsError):
                os.link(image, name, follow_symlinks=False)
        except OSError as err:
            about = {"path": image, "error": err}
            log.warning("The layer %s has no name for containerd: %s", diff_id, err, extra=about)

    def renew(self, image: str) -> None:
        """Let the name of a layer whose file was replaced be the new file's."""
        for name in self._of(image):
            if not os.path.samefile(name, image):
                with contextlib.suppress(FileNotFoundError):
                    _files.unlink(name + _NEW)
                os.link(image, name + _NEW, follow_symlinks=False)
                _files.rename(name + _NEW, name)

    def going(self, image: str) -> None:
        """Remove the name of a layer that is about to be removed, unless another layer or a lease keeps it."""
        with contextlib.suppress(OSError):
            there = os.lstat(image)
            for name in self._of(image):
                if os.path.samestat(os.lstat(name), there) and there.st_nlink == 2 and not _is_leased(name):
                    _files.unlink(name)

    def unneeded(self) -> list[str]:
        """Name what is left over, by its path below the home: of layers that are gone, and without a lease."""
        found = []
        for name in self._all():
            with contextlib.suppress(FileNotFoundError):
                lone = os.lstat(name).st_nlink == 1 and not _is_leased(name)
                if name.endswith(_NEW) or (name.endswith(_NAME) and lone):
                    found.append(os.path.relpath(name, self._home))
        return sorted(found)

    def cleanup(self) -> None:
        """Remove what unneeded() names. Raises OSError."""
        for name in self.unneeded():
            with contextlib.suppress(FileNotFoundError):
                _files.unlink(os.path.join(self._home, name))

    def _of(self, image: str) -> Iterator[str]:
        """Find the name of a layer: it begins with the uuid of its image."""
        fd = _files.open(image, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            uuid = _files.read(fd, _UUID_SIZE, _UUID_AT).hex()
        finally:
            _files.close(fd, image)
        directory = os.path.join(self._home, DIRECTORY, uuid[:2])
        for name in _listed(directory):
            if name.startswith(uuid) and name.endswith(_NAME):
                yield os.path.join(directory, name)

    def _all(self) -> Iterator[str]:
        top = os.path.join(self._home, DIRECTORY)
        for part in _listed(top):
            for name in _listed(os.path.join(top, part)):
                yield os.path.join(top, part, name)


def _is_leased(name: str) -> bool:
    return os.path.lexists(name.removesuffix(_NAME) + _LEASE)


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
