"""What each store and process holds: one locked byte per layer, writable layer or mount.

Enters: a key (a ChainID, "use <id>", ...). Leaves: whether anybody else holds it. The locks are shared ones on bytes of
the layerdb's directory, so that there is no file of ours and nothing to clean up: a lock belongs to the open directory
of one store (two stores of one process see each other) and goes with its process however that ends.
Looking and taking are two steps: a process that deletes what is unheld keeps others from taking it by another lock,
that on the layerdb or on the mount's directory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import weakref

from layerstore._core import _files
from layerstore._core._locks import Mutex, OpenDirectory

STORE = "store"


def read_key(id: str) -> str:
    """Return the key under which a driver's directory is held that is being read."""
    return f"read {id}"


_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def _byte_of(key: str) -> int:
    """Return where the key's byte is. Two keys on one (of 2^62) only keep something longer than needed."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 2


class Holds:
    """What one store holds. Every call is safe from any thread.

    A forked child's copy counts what its parent held, and holds each key for itself from the first use of it.
    """

    def __init__(self, directory: str) -> None:
        """directory   whose bytes are locked; until open() nothing is held against anybody"""
        self._directory = directory
        self._lock = Mutex()
        self._fd = -1
        self._forked = False
        self._counts: dict[str, int] = {}
        self._inherited: set[str] = set()      # counted, and locked by the parent alone
        _all.add(self)

    def open(self) -> None:
        """Begin: tell that a store is open. Raises OSError."""
        self._fd = self._opened()
        self.retain(STORE)

    def _opened(self) -> int:
        return _files.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def _after_fork(self) -> None:
        """Forget the open directory, and so its locks, in a forked child: they are the parent's."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _files.close(fd, self._directory)
            self._forked = True
            self._inherited = set(self._counts)

    def _descriptor(self) -> int:
        if self._forked:
            self._forked = False
            self._fd = self._opened()
            self._inherited.discard(STORE)
            self._change(STORE, _files.SHARED)
        return self._fd

    def _change(self, key: str, kind: int) -> None:
        fd = self._descriptor()
        if fd < 0:
            return
        try:
            _files.lock_byte(fd, kind, _byte_of(key))
        except OSError as err:
            # A file system without locks: no process can hold anything there against another.
            if err.errno not in _NO_LOCKS:
                raise

    def retain(self, key: str) -> None:
        """Hold key once more."""
        with self._lock:
            count = self._counts.get(key, 0)
            if not count or key in self._inherited:
                self._change(key, _files.SHARED)
                self._inherited.discard(key)
            self._counts[key] = count + 1

    def take_over(self, key: str) -> None:
        """Hold in a forked child what the parent held, at its first use. Raises OSError."""
        if key in self._inherited:
            with self._lock:
                if key in self._counts:
                    self._change(key, _files.SHARED)
                self._inherited.discard(key)

    def release(self, key: str) -> None:
        """Hold key once less; harmless when it is not held."""
        with self._lock:
            count = self._counts.get(key, 0)
            if count > 1:
                self._counts[key] = count - 1
            else:
                self.drop(key)

    def drop(self, key: str) -> None:
        """Hold key no more, however often it was held."""
        with self._lock:
            self._inherited.discard(key)
            if self._counts.pop(key, 0):
                self._change(key, _files.NONE)

    def drop_all(self, start: str) -> None:
        """Release all keys that begin with start."""
        with self._lock:
            for key in [key for key in self._counts if key.startswith(start)]:
                self.drop(key)

    def holds(self, key: str) -> bool:
        """Return True if this store holds key."""
        return key in self._counts and key not in self._inherited

    def held_anywhere(self, key: str) -> bool:
        """Return True if a store holds key, this one too."""
        return self.holds(key) or self.held_elsewhere(key)

    def held_elsewhere(self, key: str) -> bool:
        """Return True if another store, of this or of another process, holds key."""
        with self._lock:
            fd = self._descriptor()
            if fd >= 0:
                return self._is_locked(fd, key)
            with contextlib.suppress(FileNotFoundError), OpenDirectory(self._directory) as fd:
                return self._is_locked(fd, key)       # a store that only reads holds nothing, and looks all the same
            return False

    @staticmethod
    def _is_locked(fd: int, key: str) -> bool:
        try:
            return _files.is_byte_locked(fd, _byte_of(key))
        except OSError as err:
            if err.errno not in _NO_LOCKS:
                raise
            return False

    def close(self) -> None:
        """Release everything. Twice is harmless."""
        with self._lock:
            fd, self._fd = self._fd, -1
            self._forked = False
            self._counts.clear()
            self._inherited.clear()
        if fd >= 0:
            _files.close(fd, self._directory)

    def __del__(self) -> None:
        self.close()


_all: weakref.WeakSet[Holds] = weakref.WeakSet()


def _after_fork() -> None:
    for holds in list(_all):
        holds._after_fork()


os.register_at_fork(after_in_child=_after_fork)
