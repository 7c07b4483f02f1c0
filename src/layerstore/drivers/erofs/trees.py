"""Trees of erofs: layers are looked at in their files, without a mount.

A layer is mounted, for the length of a call, where its own files go into a fresh tar or are opened.
"""

from __future__ import annotations

from collections.abc import Sequence

from layerstore.drivers.erofs.ground import ErofsGround
from layerstore.drivers.overlay.trees import Trees


class ErofsTrees(Trees):
    """The drivers.Trees of erofs; the methods are the protocol's."""

    def __init__(self, ground: ErofsGround) -> None:
        super().__init__(ground)
        self._images = ground.at

    def is_bare(self, id: str) -> bool:
        return not self._images.is_image(id) and super().is_bare(id)

    def is_native(self, ids: Sequence[str]) -> bool:
        """Return True if these say what overlays show: layers do, whatever the kernel does with uppers."""
        return all(map(self._images.is_image, ids)) or super().is_native(ids)
