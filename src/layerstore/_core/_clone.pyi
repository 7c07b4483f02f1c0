from collections.abc import Sequence

from layerstore._core._erofs import Image

CLONE_LINK: int        # directories are made, everything else is linked
CLONE_USERXATTR: int   # overlay's marks are user.*

def clone_tree(from_fd: int, to_fd: int, flags: int = 0, *, workers: int = -1) -> list[str]:
    """Copy everything below from_fd into the empty directory to_fd, which becomes like from_fd.

    workers   threads that copy; 0: none; -1: one more than there are processors, 2 to 5
    Returns   the paths of files that changed each time they were copied: they are taken as they were read
    Raises    OSError: its filename is the path below from_fd; what was made until then stays
    """

MERGE_USERXATTR: int   # overlay's marks are user.*
MERGE_OVER_MARKS: int  # a whiteout also stays if what is below is a whiteout

def merge_stack(fds: Sequence[int], lower_fds: Sequence[int | Image], into_fd: int, flags: int = 0) -> None:
    """Make what directories show when they are stacked, the nearest first, below the empty directory into_fd.

    Files are linked; where the kernel refuses that, copied. A whiteout stays if lower_fds have something of its name.
    Raises  OSError, NotSupportedError: a mark says what only a mount can tell; what was made until then stays
    """
