"""What the core is shown of a layer that it looks at without a mount."""

from __future__ import annotations

from layerstore._core._erofs import Image

Shown = int | Image
"""A descriptor of a directory, or the image that a file holds."""
