"""Locks: between threads by name, between processes on a directory; and what a wait that takes too long says.

All of them are C objects (_locks), used by `with`: no interrupt loses one, and a forked child has none of another
thread's. The lock on a directory is held through an open descriptor: it vanishes with its process however that ends.
"""

from __future__ import annotations

import contextlib
import math
import os
import re

from layerstore._core._locks import Claim as Claim
from layerstore._core._locks import DirectoryLock
from layerstore._core._locks import Ending as Ending
from layerstore._core._locks import Mutex as Mutex
from layerstore._core._locks import NamedLocks as NamedLocks
from layerstore._core._locks import OpenDirectory as OpenDirectory
from layerstore._core._locks import Scope as Scope
from layerstore._core._locks import claim_directory as claim_directory
from layerstore._core._locks import surely as surely
from layerstore.errors import InvalidOptionError, StoreInUseError, readable

# Seconds that a call waits for the layerdb, by default.
LOCK_TIMEOUT = 60.0
# Of /proc/locks: what kind, whose, and on what.
_LOCK = re.compile(r"\d+: (FLOCK)\s+ADVISORY\s+WRITE (-?\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ")


def parse_lock_timeout(text: str) -> float:
    """Return the seconds that an option means; 0: for ever. Raises InvalidOptionError."""
    try:
        seconds = float(text)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < 1e9:
        raise InvalidOptionError(f"lock_timeout is a number of seconds, or 0 for no limit, not {text!r}")
    return seconds


def directory_lock(path: str, timeout: float) -> DirectoryLock:
    """Return the lock on a directory, unlocked; a longer wait raises StoreInUseError. 0: wait for ever."""
    return DirectoryLock(path, timeout, in_use)


def in_use(path: str) -> StoreInUseError:
    """Make the error of who waited too long for the lock on a directory."""
    pid = holder_of(path)
    if pid == os.getpid():
        who = f"this process ({pid})"
    elif pid:
        who = f"process {pid}{_command(pid)}"
    else:
        who = "another process"
    where = f"{StoreInUseError.text}: {readable(path)} is locked by {who}"
    return StoreInUseError(f"{where}, and was for the whole wait (option lock_timeout)", path=path)


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return f" ({readable(file.read(64).decode('utf-8', 'surrogateescape').strip())})"
    except OSError:
        return ""


def holder_of(path: str) -> int:
    """Return the process that holds the lock on a directory, as far as /proc tells; 0: unknown."""
    try:
        status = os.stat(path, follow_symlinks=False)
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            found = [_LOCK.match(line) for line in file]
    except OSError:
        return 0
    here = (os.major(status.st_dev), os.minor(status.st_dev))
    holders: list[tuple[bool, int]] = []
    for lock in found:
        if lock and int(lock[5]) == status.st_ino and int(lock[2]) > 0:
            # btrfs tells another device here than stat() does.
            holders.append((here != (int(lock[3], 16), int(lock[4], 16)), int(lock[2])))
    for _, pid in sorted(holders):
        with contextlib.suppress(OSError):
            os.stat(f"/proc/{pid}")
            return pid
    return 0
