"""Trees of erofs: layers are looked at in their files, and go into fresh tars from there, without a mount.

A layer is mounted, for the length of a call, where one of its own files is opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import cast

from layerstore._core import _erofs
from layerstore.drivers import Stack
from layerstore.drivers.erofs.ground import ErofsGround
from layerstore.drivers.overlay.trees import Trees
from layerstore.streams.progress import Teller
from layerstore.values import Progress


class ErofsTrees(Trees):
    """The drivers.Trees of erofs; the methods are the protocol's."""

    def __init__(self, ground: ErofsGround) -> None:
        super().__init__(ground)
        self._images, self._mounted = ground.at, ground.below

    def is_bare(self, id: str) -> bool:
        return not self._images.is_image(id) and super().is_bare(id)

    def write_image(self, stack: Stack, fd: int, progress: Progress | None = None) -> None:
        if not all(map(self._images.is_image, stack)):
            super().write_image(stack, fd, progress)
            return
        teller, done = Teller(progress, None), 0

        def report(n: int) -> None:
            nonlocal done
            done += n
            teller.tell(done)

        with contextlib.ExitStack() as opened:
            shown = [opened.enter_context(self._mounted.opened(id)) for id in stack]
            _erofs.export(cast(list[_erofs.Image], shown), fd, report)
        teller.tell(done, end=True)

    def is_native(self, ids: Sequence[str]) -> bool:
        """Return True if these say what overlays show: layers do, whatever the kernel does with uppers."""
        return all(map(self._images.is_image, ids)) or super().is_native(ids)
