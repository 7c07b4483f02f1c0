"""A real file system whose power can be cut: ext4 or XFS in an image, on a loop device.

cut() shuts the file system down with its own GOINGDOWN ioctl, without flushing its log: from then on nothing reaches
the device, and what was only in memory is lost. again() unmounts it and mounts it anew, which replays the log, as
after a power cut. The device itself keeps what it was given: a disk's own write cache is not imitated.

Works in the mount namespace it is called in; use it in one of your own (unshare --mount), so that no other process's
namespace holds the file system alive across the unmount.
"""

import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path

GOINGDOWN = 0x8004587D      # _IOR('X', 125, __u32): ext4's and XFS's
NOLOGFLUSH = 2
SIZES = {"ext4": 192 << 20, "xfs": 320 << 20}   # sparse; less than 300 MB is no XFS
KINDS = tuple(SIZES)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


class CutDisk:
    """One image, mounted at `point`."""

    def __init__(self, place: Path, kind: str, options: str = "") -> None:
        self.image, self.point = place / f"{kind}.image", place / kind
        self.kind, self.options = kind, ",".join(filter(None, ("loop", options)))
        self.point.mkdir()
        with open(self.image, "wb") as out:
            out.truncate(SIZES[kind])
        run(f"mkfs.{kind}", *(["-q", "-F", "-E", "lazy_itable_init=1"] if kind == "ext4" else ["-q"]), str(self.image))
        self._mount()

    def _mount(self) -> None:
        run("mount", "-t", self.kind, "-o", self.options, str(self.image), str(self.point))
        self.fd = os.open(self.point, os.O_RDONLY | os.O_DIRECTORY)
        self.device = run("findmnt", "-n", "-o", "SOURCE", str(self.point))

    def cut(self) -> None:
        """The power is gone when this returns."""
        fcntl.ioctl(self.fd, GOINGDOWN, struct.pack("I", NOLOGFLUSH))

    def again(self) -> None:
        """Power is back: mounted again, the log replayed."""
        self.off()
        self._mount()

    def off(self) -> None:
        """Unmount; returns when the file system is really gone, so that no page of it is left in memory."""
        os.close(self.fd)
        deadline = time.monotonic() + 20
        backing = Path("/sys/block", os.path.basename(self.device), "loop/backing_file")
        while True:
            try:
                run("umount", str(self.point))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        while backing.exists() and backing.read_text().strip().endswith(str(self.image)):
            if time.monotonic() > deadline:
                raise OSError(f"{self.device} is still in use: some other mount namespace holds {self.point}")
            time.sleep(0.002)
