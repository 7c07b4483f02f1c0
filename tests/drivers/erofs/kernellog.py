"""What the kernel says of EROFS images while a test runs."""

import os


def kernel_log():
    """Read the kernel's log from its end."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(fd, 0, os.SEEK_END)
    return fd


def complaints(fd):
    """What the kernel said of EROFS since, but that it mounted something."""
    found = []
    while True:
        try:
            line = os.read(fd, 8192).decode(errors="replace")
        except BlockingIOError:
            return found
        if line.partition(";")[2].startswith("erofs") and "mounted with root inode" not in line:
            found.append(line)
