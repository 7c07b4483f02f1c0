"""Layers that are EROFS images over their tars: a header of HEADER bytes, the tar, and metadata that points into it.

lowers: what a layer stands on, nearest first: descriptors of directories, or images.
"""
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from typing_extensions import disjoint_base

HEADER: int

class Found(NamedTuple):
    """What an image has at a path; rdev as os.makedev() has it, ino the image's own."""
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int
    nlink: int
    ino: int

@disjoint_base
class Image:
    """An EROFS image, read where it lies, without a mount. Any threads may use it, and one may close it meanwhile.

    Paths are those of the layer, "" or "." is its root; no link is followed. FileNotFoundError, NotADirectoryError
    and OSError name the path. CorruptLayerError names the byte and the file of the image: what the superblock leads to
    is damaged. RuntimeError: it was closed.
    """
    def __init__(self, fd: int, size: int = -1, devices: Sequence[int] = ()) -> None:
        """Open the image in a file, whose descriptor is duplicated.

        size     how long the file must be; -1: as long as it is
        devices  descriptors of the other files that have its bytes, one for each slot; none: the file itself has them

        Raises InvalidMetadataError: its superblock cannot be so, and the text names the field.
        """
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None, /
    ) -> None: ...
    def close(self) -> None:
        """Close it; again is fine. What was handed in to the core goes on with it."""
    def _lower(self) -> object:
        """Show it to the core as a layer: for every function that takes layers."""
    @property
    def tar_size(self) -> int | None:
        """The bytes of the layer's tar, as the volume's name has them; None: it does not."""
    def find(self, path: str) -> Found: ...
    def extents(self, path: str) -> tuple[int, list[tuple[int, int, int]]]:
        """A file's size, and its pieces in order: offset in the file, length, offset in the image; the rest are holes.

        OSError(EINVAL): it is no regular file. OSError(EXDEV): its bytes are in one of the devices.
        """
    def read(self, path: str, size: int, offset: int = 0) -> bytes:
        """Bytes of a regular file, fewer at its end."""
    def readlink(self, path: str) -> str: ...
    def names(self, path: str) -> list[str]:
        """The names of a directory, sorted by their bytes."""
    def xattrs(self, path: str) -> dict[str, bytes]: ...
    def verify(self) -> list[tuple[str, str, str]]:
        """Look at all that its root leads to: [], or of the first that cannot be so "metadata", the path, and why."""
    def refusal(self, diff_id: bytes, tar_size: int) -> str:
        """Why its superblock is not what we write for the tar of this size and DiffID, by the field; "": it is."""

def rebuild(
    fd: int, tar_size: int, diff_id: bytes, lowers: Sequence[int | Image] = (), *, limits: object | None = None
) -> None:
    """Write metadata and header of an image anew, from the headers of the tar that lies in it."""
def compare(
    fd: int, tar_size: int, diff_id: bytes, lowers: Sequence[int | Image] = (),
    report: Callable[[int], object] | None = None, *, metadata: bool = True, limits: object | None = None,
) -> list[tuple[str, str, str]]:
    """Compare an image with its DiffID and with what its tar makes: (kind, path, sentence) of each difference.

    kind: "content": the tar has another DiffID, and no more is looked at; "metadata": all else. report(bytes) is
    called at least every 100 ms.
    """

def flatten(images: Sequence[Image], fd: int) -> None:
    """Write an index of images of layers, nearest first, to a descriptor: an image of what they show together.

    It has the files of these images as its devices, the lowest first. NotSupportedError: an image is not of this form.
    """
def export(images: Sequence[Image], fd: int, report: Callable[[int], object] | None = None) -> None:
    """Write what images of layers show together, nearest first, as one image without devices; also into a pipe.

    report(bytes) is called at least every 100 ms.
    """
