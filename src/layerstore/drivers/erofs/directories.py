"""The directories of layers and boxes below one home of erofs.

    <home>/<id>/layer.erofs   a layer: its tar, and the image behind it
    <home>/<id>/length        the bytes of its tar, as a decimal number
    <home>/<id>/fs            where a layer is mounted; of a box, what was written in it
The rest is as drivers/overlay/directories.py has it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from layerstore.disk.locks import LOCK_TIMEOUT
from layerstore.drivers.erofs.unnamed import Unnamed
from layerstore.drivers.overlay.directories import Directories, is_there
from layerstore.ids import is_driver_id
from layerstore.values import Durability

IMAGE = "layer.erofs"
LENGTH = "length"


class ErofsDirectories(Directories):
    """What lies below one home."""

    def __init__(self, home: str, files: str, lock_timeout: float = LOCK_TIMEOUT) -> None:
        super().__init__(home, files, lock_timeout)
        self._unnamed: dict[str, Unnamed] = {}

    def image(self, id: str) -> str:
        """Return the path of a layer's file."""
        return self.path(id, IMAGE)

    def is_image(self, id: str) -> bool:
        """Return True if an id is a layer: what it shows is in its file, even where that is gone."""
        return is_there(self.image(id)) or is_there(self.length(id))

    def length(self, id: str) -> str:
        """Return the path of the file that says how long the tar is."""
        return self.path(id, LENGTH)

    def sharing(self, id: str) -> list[str]:
        """Name the ids whose layer's file is the same as id's, id itself first."""
        found = [id]
        with contextlib.suppress(FileNotFoundError):
            own = os.lstat(self.image(id))
            if own.st_nlink > 1:
                with os.scandir(self.home) as entries:
                    others = sorted(entry.name for entry in entries if entry.name != id and is_driver_id(entry.name))
                for other in others:
                    with contextlib.suppress(OSError):
                        if os.path.samestat(os.lstat(self.image(other)), own):
                            found.append(other)
        return found

    # ---- images in the making ----

    def begin_image(self, id: str) -> Unnamed:
        """Open the file of a layer in the making, which sync() names. Raises OSError."""
        self.drop_image(id)
        self._unnamed[id] = Unnamed(self.image(id), self.length(id))
        return self._unnamed[id]

    def image_in_making(self, id: str) -> Unnamed:
        """Return the file that begin_image() has opened."""
        return self._unnamed[id]

    def name_image(self, id: str, durability: Durability = "none") -> None:
        """Name a layer's file, on the disk as far as durability says; do nothing where it is named. Raises OSError."""
        unnamed = self._unnamed.get(id)
        if unnamed:
            unnamed.give_name(durability)
            self.drop_image(id)

    def drop_image(self, id: str) -> None:
        """Close a file that sync() has not named; do nothing if there is none."""
        unnamed = self._unnamed.pop(id, None)
        if unnamed:
            unnamed.drop()

    def sync(self, ids: Iterable[str], durability: Durability, *, everything: bool = False) -> bool:
        """Do what Directories.sync() does, but first name the files of layers in the making."""
        ids = list(ids)
        for id in ids:
            self.name_image(id, durability)
        return super().sync(ids, durability, everything=everything)
