"""Below: what an overlay's lowers need before it stands, and what each id shows of itself without a mount.

Of a driver whose layers are directories that is nothing, and their directories: Plain. A driver whose layers are files
mounts them first, and ends those mounts when no overlay stands on them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from layerstore.drivers.overlay.directories import Directories
from layerstore.drivers.shown import Shown

Given = Callable[[Sequence[str]], Sequence[str]]


class Below(Protocol):
    """What stands below the overlays of one home. Ids of other kinds than the driver's layers need nothing."""

    def standing(self, ids: Sequence[str]) -> AbstractContextManager[Given]:
        """Let each of these show its files in its directory until the block ends; an overlay on them keeps that so.

        ids      nearest first
        Returns  what makes of their items those that the overlay is given: some may be shown together, as one
        What it mounted is unmounted again if the block raises. Raises OSError, LayerStoreError.
        """

    def left(self, ids: Sequence[str]) -> None:
        """Unmount those of these that no overlay stands on: an overlay of them has ended. Never raises."""

    def sweep(self) -> None:
        """Do what left() does for all that is mounted below the home. Never raises."""

    def opened(self, id: str) -> AbstractContextManager[Shown]:
        """Open what id shows of itself. Nothing is mounted."""

    def seen(self, id: str) -> AbstractContextManager[int]:
        """Open a directory that shows id's files, to open one of them; mount them for the block if that is needed."""

    def is_apart(self, ids: Sequence[str]) -> bool:
        """Return True if one of these shows its files on a file system of its own."""

    def keeps(self, point: str) -> bool:
        """Return True if a mount point below the home is one that left() ends."""

    def removing(self, id: str) -> None:
        """Unmount id's files, which are about to be removed. Raises OSError."""


class Plain:
    """The Below of layers that are directories."""

    def __init__(self, at: Directories) -> None:
        self.opened, self.seen = at.opened_files, at.opened_files

    def standing(self, ids: Sequence[str]) -> AbstractContextManager[Given]:
        return contextlib.nullcontext(list)

    def left(self, ids: Sequence[str]) -> None: ...

    def sweep(self) -> None: ...

    def is_apart(self, ids: Sequence[str]) -> bool:
        return False

    def keeps(self, point: str) -> bool:
        return False

    def removing(self, id: str) -> None: ...
