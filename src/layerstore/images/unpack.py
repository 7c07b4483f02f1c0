"""The file system of an image as a plain directory: its layers applied one over the other, whiteouts and all.

Nothing is mounted, and every layer is checked against its DiffID on the way. The result is what a mount shows.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from layerstore import _files
from layerstore._apply import MERGED, OWN_LINKS, Apply
from layerstore._changes import remove_tree
from layerstore.errors import ImageError, readable
from layerstore.images.gather import Teller
from layerstore.layer import Layer
from layerstore.limits import Limits
from layerstore.values import Progress

# A layer that is stored was held to the limits of who stored it.
_NONE = Limits(*[0] * len(Limits._fields))


def unpack(layers: Sequence[Layer], directory: str, progress: Progress | None) -> None:
    """Unpack layers, base first, into a directory that is made, or is empty.

    Raises  ImageError           something is in it
            CorruptLayerError    a layer is not what was registered
            OSError              with filename; then nothing is left
    """
    made = False
    try:
        os.mkdir(directory, 0o755)
        os.chmod(directory, 0o755)
        made = True
    except FileExistsError:
        if not os.path.isdir(directory):
            raise
        if os.listdir(directory):
            raise ImageError(f"{readable(directory)} is not empty") from None
    try:
        _apply(layers, directory, progress)
    except BaseException:
        root = _files.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in os.listdir(root):
                remove_tree(root, name)
        finally:
            _files.close(root)
        if made:
            os.rmdir(directory)
        raise


def _apply(layers: Sequence[Layer], directory: str, progress: Progress | None) -> None:
    sizes = []
    for layer in layers:
        with layer.tar_stream() as stream:
            sizes.append(stream.size)
    teller, before = Teller(progress, sum(sizes)), 0
    root = _files.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for layer, size in zip(layers, sizes, strict=True):
            made = Apply(root, flags=MERGED | OWN_LINKS, limits=_NONE)
            with contextlib.closing(made) as apply, layer.tar_stream() as stream:
                while not stream.pump_once(apply):
                    teller.tell(before + stream.tell())
                apply.finish()
            before += size
        teller.tell(before, end=True)
    finally:
        _files.close(root)

