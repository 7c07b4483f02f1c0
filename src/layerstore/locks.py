"""Locks by name: one for each layer name or driver id, there only while somebody wants it.

Also the advisory lock on a directory that tells a live owner from an abandoned one: held through an
open descriptor, it vanishes with its process however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from layerstore import _files


class NamedLocks:
    """One mutex a name.

    Source   moby/locker
    """

    def __init__(self) -> None:
        """Make an empty set of locks."""
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.RLock, list[int]]] = {}

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold the lock of name for the length of a `with` block.

        Reentrant: an interrupt between taking the lock and the block leaves it to the thread that unwinds.
        """
        with self._guard:
            lock, users = self._locks.setdefault(name, (threading.RLock(), [0]))
            users[0] += 1
        try:
            with lock:
                yield
        finally:
            with self._guard:
                users[0] -= 1
                if not users[0]:
                    del self._locks[name]


class Claim:
    """A directory marked as in use by a descriptor that holds an advisory lock on it."""

    def __init__(self, fd: int) -> None:
        """Take over fd, an open directory that is locked."""
        self._fd = fd

    def release(self) -> None:
        """Give the mark back. Twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            # The lock is the open file's, which a child forked meanwhile shares: closing alone would leave it there.
            # Whether either fails is nobody's concern: a layer that is registered by now must not be called failed.
            with contextlib.suppress(OSError):
                _files.unlock(fd)
            with contextlib.suppress(OSError):
                _files.close(fd)

    def __del__(self) -> None:
        self.release()


def claim_directory(path: str, *, wait: bool = True) -> Claim | None:
    """Lock a directory, if it still is the one at path once the lock is there.

    wait   False: None at once where another one holds the lock

    Returns  the claim, or None: the directory is gone, was replaced, or (wait=False) is in use
    """
    try:
        fd = _files.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        if _locked(fd, wait) and _files.status(path)[1:] == _files.status(fd)[1:]:
            return Claim(fd)
    except FileNotFoundError:
        pass
    except BaseException:
        _files.close(fd)
        raise
    _files.close(fd)
    return None


def _locked(fd: int, wait: bool) -> bool:
    try:
        return _files.lock(fd, wait=wait)
    except OSError as err:
        # A file system without locks: nobody can claim there, so nobody is disturbed.
        if err.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return True
        raise
