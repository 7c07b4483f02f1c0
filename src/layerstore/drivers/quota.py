"""Project quotas: an upper bound on the bytes of one writable layer, on xfs mounted with pquota.

A driver's home comes in; if its file system can, every directory in it may be given a project id of
its own and a limit. The device is reached through a block node of ours, as dockerd's.
Source: moby, quota/projectquota.go
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading

from layerstore._core import _changes
from layerstore.disk import mounts
from layerstore.disk.locks import OpenDirectory
from layerstore.errors import NotSupportedError

NO_QUOTA = "Filesystem does not support, or has not enabled quotas"
DEVICE_NAME = "backingFsBlockDev"


class ProjectQuota:
    """Hands out project ids below one home, and sets their limits."""

    def __init__(self, home: str) -> None:
        """Find out whether home can have quotas.

        Raises  NotSupportedError   it cannot; the message says why
        """
        self._lock = threading.Lock()
        self._device = os.path.join(home, DEVICE_NAME)
        try:
            lowest = mounts.project_of(home)
            self._make_device(home)
            if not mounts.project_quota_on(self._device):
                raise NotSupportedError(NO_QUOTA)
            self._next = lowest + 1
            with os.scandir(home) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        self._next = max(self._next, mounts.project_of(entry.path) + 1)
        except OSError as err:
            raise NotSupportedError(NO_QUOTA) from err

    def _make_device(self, home: str) -> None:
        device = os.stat(home).st_dev
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(self._device, follow_symlinks=False)
            if stat.S_ISBLK(found.st_mode) and found.st_rdev == device:
                return
            os.unlink(self._device)
        os.mknod(self._device, 0o600 | stat.S_IFBLK, device)

    def limit(self, directory: str, size: int) -> None:
        """Let what is made below directory take at most size bytes. Raises OSError."""
        with self._lock:
            project = mounts.project_of(directory)
            # A fresh directory inherits the home's project, which is not its own.
            if project < self._next and project == mounts.project_of(os.path.dirname(directory)):
                project = self._next
                mounts.set_project(directory, project)
                self._next += 1
            mounts.set_project_limit(self._device, project, size)


def leave_project(directory: str) -> None:
    """Let directory and all below it count to no limit, as what was made without one. Raises OSError."""
    project = mounts.project_of(os.path.dirname(directory))
    if mounts.project_of(directory) != project:
        with OpenDirectory(directory) as fd:
            _changes.set_project(fd, project)
