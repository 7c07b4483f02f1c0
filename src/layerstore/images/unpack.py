"""The file system of an image as a plain directory: its layers applied one over the other, whiteouts and all.

Nothing is mounted, and every layer is checked against its DiffID on the way. The result is what a mount shows.
All files are read, made and deleted beneath one open directory: a process that exchanges names in it meanwhile cannot
lead a write outside.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence

from layerstore._core import _files
from layerstore._core._apply import USERNS, over_tree
from layerstore.disk.textfile import drop_acls, placing, remove_below
from layerstore.drivers.checks import in_user_namespace
from layerstore.errors import ImageError, readable
from layerstore.layer import Layer
from layerstore.limits import Limits
from layerstore.streams.progress import Teller
from layerstore.values import Progress

# A layer that is stored was held to the limits of who stored it.
_NONE = Limits(*[0] * len(Limits._fields))


def unpack(layers: Sequence[Layer], directory: str, progress: Progress | None) -> None:
    """Unpack layers, base first, into a directory that is made, or is empty.

    Raises  ImageError           something is in it
            CorruptLayerError    a layer is not what was registered
            OSError              with filename; then nothing is left
    """
    with _opened(directory) as root_fd:
        try:
            with placing(os.path.abspath(directory)):
                _apply(layers, root_fd, progress)
        except BaseException as err:
            for name in os.listdir(root_fd):
                try:
                    remove_below(root_fd, directory, name)
                except OSError as left:
                    err.add_note(f"{readable(directory)} is not empty now: {left}")
            raise


@contextlib.contextmanager
def _opened(directory: str) -> Iterator[int]:
    """Open the directory, which is empty. One that is made here goes again if the block fails."""
    above, name = os.path.split(directory.rstrip("/") or "/")
    beside = _files.open(above or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        made, root = _make(beside, name, directory)
        try:
            if not _files.is_empty(root):
                raise ImageError(f"{readable(directory)} is not empty", path=directory)
            yield root
        except BaseException:
            if made:
                with contextlib.suppress(OSError):        # something is left in it, or another has its name now
                    os.rmdir(name, dir_fd=beside)
            raise
        finally:
            _files.close(root)
    finally:
        _files.close(beside)


def _make(beside: int, name: str, directory: str) -> tuple[bool, int]:
    """Make and open a directory, or open the one that is there: (whether it was made, its descriptor)."""
    try:
        os.mkdir(name or ".", 0o700, dir_fd=beside)
    except FileExistsError:
        with contextlib.suppress(NotADirectoryError, FileNotFoundError):
            return False, _files.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), directory) from None
    except OSError as err:
        raise type(err)(err.errno, err.strerror, directory) from None
    root = _files.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=beside)
    try:
        drop_acls(root)
        _files.fchmod(root, 0o755)
    except BaseException:
        _files.close(root)
        raise
    return True, root


def _apply(layers: Sequence[Layer], root_fd: int, progress: Progress | None) -> None:
    sizes = []
    for layer in layers:
        with layer.tar_stream() as stream:
            sizes.append(stream.size)
    teller, before = Teller(progress, sum(sizes)), 0
    flags = USERNS if in_user_namespace() else 0
    for layer, size in zip(layers, sizes, strict=True):
        made = over_tree(root_fd, flags=flags, limits=_NONE)
        with contextlib.closing(made) as apply, layer.tar_stream() as stream:
            while not stream.pump_once(apply):
                teller.tell(before + stream.tell())
            apply.finish()
        before += size
    teller.tell(before, end=True)
