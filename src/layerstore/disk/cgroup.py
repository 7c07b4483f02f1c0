"""Freeze a cgroup v2 for the length of a `with` block, so that its processes change no file meanwhile.

Who froze a group thaws it, however the block ends; only a kill of this very process leaves it frozen. Two blocks of
one group come one after the other: else the first one's end would thaw it under the second one.
Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cgroup.freeze, cgroup.events)
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import time

from layerstore.disk import mounts
from layerstore.disk.locks import LOCK_TIMEOUT, Claim, Scope, claim_directory, in_use, surely
from layerstore.errors import readable

# Seconds that a group may take to stand still.
TIMEOUT = 10.0
_CGROUP2 = 0x63677270
# The kernel tells when cgroup.events changes; looked at all the same so often, in seconds.
_LOOK_AGAIN = 0.05


def check(path: str) -> None:
    """Make sure that frozen() can be asked for this group, and change nothing.

    Raises  OSError      it is no directory of a cgroup v2, is the root of all, or may not be written
            ValueError   a thread of this process is in it, or in a group below it
    """
    _Group(path).close()


def frozen(path: str, *, timeout: float = TIMEOUT) -> Scope[None]:
    """Freeze a group for the length of a `with` block. A group that was frozen before stays frozen behind it.

    timeout   seconds that its processes may take to stand still
    Raises    at the beginning of the block, nothing left frozen:
              OSError           as check(); ETIMEDOUT: a process did not stop in time
              ValueError        as check()
              StoreInUseError   another store kept it frozen for too long
    """
    groups: list[_Group] = []

    def begin() -> None:
        try:
            groups.append(_Group(path))
            groups[0].freeze(timeout)
        except BaseException:
            surely(end, None)
            raise

    def end(_: None) -> None:
        while groups:
            groups[0].thaw()
            groups.pop().close()

    return Scope(begin, end)


class _Group:
    """A group that may be frozen, with its files open, so that thawing it needs nothing that may fail."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._claim: Claim | None = None
        self._thaws = False
        if mounts.fs_magic(path) != _CGROUP2:
            raise OSError(errno.EINVAL, "not a directory of a cgroup v2, so it cannot be frozen", path)
        if not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        with contextlib.ExitStack() as files:
            try:
                self._control = files.enter_context(io.FileIO(os.path.join(path, "cgroup.freeze"), "r+"))
            except FileNotFoundError as err:
                raise OSError(errno.EINVAL, "the root of all cgroups cannot be frozen", path) from err
            self._events = files.enter_context(io.FileIO(os.path.join(path, "cgroup.events"), "r"))
            self._refuse_ourselves()
            self._files = files.pop_all()

    def close(self) -> None:
        self._files.close()
        if self._claim is not None:
            self._claim.release()

    def _refuse_ourselves(self) -> None:
        ours = set(os.listdir("/proc/self/task"))
        for place, _, _ in os.walk(self._path):
            with contextlib.suppress(OSError):         # removed meanwhile
                with open(os.path.join(place, "cgroup.threads"), encoding="ascii") as file:
                    if not ours.isdisjoint(file.read().split()):
                        where = readable(self._path)
                        raise ValueError(f"this process itself is in the cgroup {where}: frozen, it could not thaw it")

    def freeze(self, timeout: float) -> None:
        """Freeze it and wait until it stands still."""
        self._claim = claim_directory(self._path, timeout=LOCK_TIMEOUT, late=in_use)
        if os.pread(self._control.fileno(), 16, 0).strip() != b"1":
            self._thaws = True                # first: an interrupt may come right behind the write
            os.pwrite(self._control.fileno(), b"1", 0)
        until = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._events, select.POLLPRI)
        while not self._stands_still():
            left = until - time.monotonic()
            if left <= 0:
                what = f"the cgroup is not frozen after {timeout:g} s: a process in it does not stop"
                raise TimeoutError(errno.ETIMEDOUT, what, self._path)
            poll.poll(1000 * min(left, _LOOK_AGAIN))

    def _stands_still(self) -> bool:
        return b"frozen 1" in os.pread(self._events.fileno(), 4096, 0).splitlines()

    def thaw(self) -> None:
        """Undo freeze(), if it froze it. Twice is harmless."""
        if self._thaws:
            try:
                os.pwrite(self._control.fileno(), b"0", 0)
            except OSError as err:
                if err.errno != errno.ENODEV:          # the group was removed
                    raise
            self._thaws = False
