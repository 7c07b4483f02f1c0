CLONE_LINK: int        # directories are made, everything else is linked
CLONE_USERXATTR: int   # overlay's marks are user.*

def clone_tree(from_fd: int, to_fd: int, flags: int = 0, *, workers: int = -1) -> list[str]:
    """Copy everything below from_fd into the empty directory to_fd, which becomes like from_fd.

    workers   threads that copy; 0: none; -1: as many as there are processors, 2 to 4
    Returns   the paths of files that changed each time they were copied: they are taken as they were read
    Raises    OSError: its filename is the path below from_fd; what was made until then stays
    """
