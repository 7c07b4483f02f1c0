"""The file system of an image as a plain directory: its layers applied one over the other, whiteouts and all.

Nothing is mounted, and every layer is checked against its DiffID on the way. The result is what a mount shows, but that
a directory which a layer has no entry for, only files in it, keeps the mode, the owner and the time it has below.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence

from layerstore import _files
from layerstore._apply import MERGED, Apply
from layerstore.errors import ImageError, readable
from layerstore.images.gather import Teller
from layerstore.layer import Layer
from layerstore.textfile import remove_directory
from layerstore.values import Progress


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
        with os.scandir(directory) as found:
            for entry in list(found):
                if entry.is_dir(follow_symlinks=False):
                    remove_directory(entry.path)
                else:
                    os.unlink(entry.path)
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
            if before:
                _make_way(layer.metadata()["UpperDir"], directory)
            with contextlib.closing(Apply(root, flags=MERGED)) as apply, layer.tar_stream() as stream:
                while not stream.pump_once(apply):
                    teller.tell(before + stream.tell())
                apply.finish()
            before += size
        teller.tell(before, end=True)
    finally:
        _files.close(root)


def _make_way(layer: str, directory: str) -> None:
    """Remove what is no directory where a layer has one: a mount never looks through a link of a layer below."""
    for place, names, _ in os.walk(layer):
        below = os.path.join(directory, os.path.relpath(place, layer))
        for name in names:
            path = os.path.join(below, name)        # of directories only: those above were seen before
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.lstat(path).st_mode) and not os.path.islink(os.path.join(place, name)):
                    os.unlink(path)
