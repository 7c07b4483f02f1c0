"""Switching: another overlay under the mounted path of a box, in one step; and whether that may be done.

A box that processes are inside of is left alone: they would go on writing to what the box no longer shows. Who only
reads keeps what is open. The kernel is asked first, for microseconds; /proc is read only where it says that the mount
is in use.
"""

from __future__ import annotations

import errno
import logging
import os
import time

from layerstore.disk import mounts
from layerstore.disk.background import Background
from layerstore.drivers.holders import UNKNOWN, holders, in_use, look
from layerstore.drivers.overlay.below import Below
from layerstore.drivers.overlay.directories import Directories
from layerstore.drivers.overlay.mounting import Mounting
from layerstore.errors import ActiveMountError, Holder, NotSupportedError, readable

log = logging.getLogger("layerstore")

# Seconds for which a mount may be in use although no process is seen to use it.
_UNSEEN = 0.05
_SELINUX = "/sys/fs/selinux/enforce"


class Switching:
    """The boxes of one store, asked and switched. Called with the box held."""

    def __init__(self, at: Directories, mounting: Mounting, below: Below, background: Background) -> None:
        self._at, self._mounting, self._below, self._background = at, mounting, below, background

    # ---- may it be done ----

    def require_idle(self, id: str, *, force: bool = False) -> bool:
        """Make sure that no process is inside a box which a switch would leave behind.

        force    processes inside may be left behind
        Returns  True: there are processes that only read, and keep what they have open
        Raises   ActiveMountError    a process is inside, or it is mounted where this process does not see it
                 NotSupportedError   it is mounted, and this kernel cannot switch
        """
        merged = self._at.path(id, "merged")
        if self._at.is_plain(id):
            self._require_uncounted(id)
            return False
        if not mounts.is_mounted_surely(merged):
            self._require_free(id, force=force)
            return False
        if not mounts.can_switch():
            release = os.uname().release
            name = self._mounting.name(id)
            raise NotSupportedError(
                f"{readable(name)} is mounted, and Linux {release} cannot put another mount under its path (6.8 can): "
                "unmount it first"
            )
        if force:
            return True
        found, only_read = self._inside(id, merged)
        if found is not None:
            raise in_use(self._mounting.name(id), found)
        return only_read

    def require_switchable(self, id: str) -> bool:
        """Do what require_idle() does; on a kernel that cannot switch a mounted box is in use: ActiveMountError."""
        try:
            return self.require_idle(id)
        except NotSupportedError:
            raise in_use(self._mounting.name(id), self._mounting.holders(id)) from None

    def _require_uncounted(self, id: str) -> None:
        if self._mounting.is_counted(id):
            name = self._mounting.name(id)
            text = f"{name} is mounted, and stands on nothing: it is a plain directory until it is unmounted"
            raise ActiveMountError(text, holders=(), name=name)

    def _require_free(self, id: str, *, force: bool) -> None:
        """Make sure that no overlay of a box lives that is not mounted here."""
        if force and self._mounting.device_elsewhere(id) is None:
            return
        found = self._mounting.inside_elsewhere(id)
        if found is not None:
            raise in_use(self._mounting.name(id), found)

    def _inside(self, id: str, merged: str) -> tuple[list[Holder] | None, bool]:
        """Return who is inside (None: no process), and whether all of them only read."""
        device = os.stat(merged).st_dev
        until = 0.0
        while True:
            copied = self._mounting.is_copied(id, merged, device)
            if not copied and not self._is_used(merged):
                return None, False
            found, only_read = look(device, merged, self._mounting.ours)
            if found:
                return (None, True) if only_read and not copied else (found, False)
            # No process is seen to use it: its last user has just ended, or a process looks at all mounts of the
            # machine, or has a copy of them all for the moment in which it enters a sandbox.
            until = until or time.monotonic() + _UNSEEN
            if time.monotonic() > until:
                return holders(device, merged) or [UNKNOWN], False

    @staticmethod
    def _is_used(merged: str) -> bool:
        try:
            return mounts.is_used(merged)
        except OSError as err:
            if err.errno in (errno.EINVAL, errno.EPERM):      # locked: it came with a mount namespace of another owner
                return True
            raise

    # ---- the switch ----

    def switch(self, id: str, made: mounts.Switch, *, lazy: bool, stops: bool) -> None:
        """Put a new overlay, of what is on disk now, under the path of a box. Do nothing where it is not mounted.

        made     tells whether that was done, also where an interrupt came into it
        lazy     switch also while it is used: who uses it keeps the old one
        stops    what was written to is written to no longer: the old one becomes read-only
        Raises   ActiveMountError    a process came in: nothing has changed
                 OSError             nothing has changed
        """
        merged = self._at.path(id, "merged")
        if not mounts.is_mounted_surely(merged):
            self._mounting.clear_mark(id)
            return
        device = os.stat(merged).st_dev
        writable = not os.statvfs(merged).f_flag & os.ST_RDONLY
        lowers = self._at.lower_items(id)
        ids = self._at.lower_ids(lowers)
        overlay = self._mounting.overlay(id, lowers, ids, _label_of(merged), writable=writable)
        try:
            with self._mounting.standing(overlay, id, ids) as ready:
                new = mounts.make_overlay(ready, f"{id}/merged")
                try:
                    if writable:
                        self._mounting.require_writable(new.fileno(), merged)
                    done = made.run(merged, new, lazy=lazy)
                finally:
                    new.close()
            if not done:
                found = holders(device, merged, self._mounting.ours)
                raise in_use(self._mounting.name(id), found)
        finally:
            if made.is_done:
                self._mounting.note_first(id, merged)
                if lazy:
                    self._mounting.leave(device)
                self._end(made.old, id, stops=stops and lazy)
                self._below.sweep()       # the old one may have stood on others

    def _end(self, old: mounts.Detached, id: str, *, stops: bool) -> None:
        """Let the old file system end, by the thread: closing it may take long."""
        if stops:
            try:
                if not mounts.stop_writes(old):
                    text = "A file of %s was opened for writing while it was switched: it is written to where it was"
                    log.warning(text, self._mounting.name(id), extra={"mount_id": id})
            except OSError as err:
                name = self._mounting.name(id)
                log.warning("Cannot stop writing to what %s was: %s", name, err, extra={"mount_id": id, "error": err})
        self._background.submit(lambda: _close(old))


def _close(old: mounts.Detached) -> bool:
    old.close()
    return True


def _label_of(merged: str) -> str:
    """Return the SELinux label that a whole mount was given, or ""."""
    if not os.path.exists(_SELINUX):
        return ""
    point = os.path.realpath(merged)
    options = next((mount.options for mount in mounts.mount_table() if mount.point == point), "")
    _, found, rest = options.partition('context="')
    return rest.partition('"')[0] if found else ""
