"""Layers that are EROFS images over their tars: a header of HEADER bytes, the tar, and metadata that points into it.

lowers: what a layer stands on, nearest first: descriptors of directories, or images.
"""
from collections.abc import Callable, Sequence

HEADER: int

def rebuild(
    fd: int, tar_size: int, diff_id: bytes, lowers: Sequence[object] = (), *, limits: object | None = None
) -> None:
    """Write metadata and header of an image anew, from the headers of the tar that lies in it."""
def compare(
    fd: int, tar_size: int, diff_id: bytes, lowers: Sequence[object] = (),
    report: Callable[[int], object] | None = None, *, metadata: bool = True, limits: object | None = None,
) -> list[tuple[str, str, str]]:
    """Compare an image with its DiffID and with what its tar makes: (kind, path, sentence) of each difference.

    kind: "content": the tar has another DiffID, and no more is looked at; "metadata": all else. report(bytes) is
    called at least every 100 ms.
    """
