"""The directories of layers and boxes below one home of erofs.

    <home>/<id>/layer.erofs   a layer: its tar, and the image behind it
    <home>/<id>/length        the bytes of its tar, as a decimal number
    <home>/<id>/fs            where a layer is mounted; of a box, what was written in it
The rest is as drivers/overlay/directories.py has it.
"""

from __future__ import annotations

from layerstore.drivers.overlay.directories import Directories, is_there

IMAGE = "layer.erofs"
LENGTH = "length"


class ErofsDirectories(Directories):
    """What lies below one home."""

    def image(self, id: str) -> str:
        """Return the path of a layer's file."""
        return self.path(id, IMAGE)

    def is_image(self, id: str) -> bool:
        """Return True if an id is a layer: what it shows is in its file."""
        return is_there(self.image(id))
