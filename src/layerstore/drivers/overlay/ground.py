"""What the parts of an overlay2 driver share: its home, the class of its marks, its mounts, its quotas.

Source: moby, daemon/graphdriver/overlay2
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence

from layerstore._core import _apply
from layerstore.disk.background import Background
from layerstore.drivers import Finding, StoreView, checks
from layerstore.drivers.overlay.directories import Directories, is_there
from layerstore.drivers.overlay.discarding import Discarding
from layerstore.drivers.overlay.mounting import Mounting
from layerstore.drivers.overlay.options import parse_driver_options
from layerstore.drivers.overlay.switching import Switching
from layerstore.drivers.overlay2.classes import Classes
from layerstore.drivers.quota import ProjectQuota
from layerstore.errors import NotSupportedError, readable
from layerstore.streams.sources import TarInput

log = logging.getLogger("layerstore")

_DIRECTORIES = (("WorkDir", "work"), ("MergedDir", "merged"), ("UpperDir", "diff"))


class Ground:
    """One home, and what was found out about its machine."""

    def __init__(self, home: str, options: Mapping[str, str], view: StoreView) -> None:
        """Check the host, make the home. Raises NotSupportedError, InvalidOptionError, OSError."""
        self.home = home
        self.default_size = parse_driver_options(options)
        self.limits, self.read_only = view.limits, view.read_only
        self.at = Directories(home, view.lock_timeout)
        self._native: bool | None = None
        self.quota: ProjectQuota | None = None
        if not self.read_only:
            self._prepare()
        self.userxattr = checks.needs_userxattr(home)
        self.classes = Classes(self.at, view.layer_in, userxattr=self.userxattr)
        file_system = checks.fs_name(home) if os.path.isdir(home) else ""
        self.has_projects = file_system == "xfs"
        self.durable = view.durability != "none" and file_system not in ("tmpfs", "ramfs")
        self.mounting = Mounting(
            self.at, view.holds, self.classes, view.boxes, read_only=self.read_only, userxattr=self.userxattr,
            syncs="never" if not self.durable else "all" if view.durability == "full" else "own",
        )  # fmt: skip
        self.background = Background()
        self.switching = Switching(self.at, self.mounting, self.background)
        self.discarding = Discarding(self.at, self.mounting, self.background, self.remove)
        if not self.read_only:
            self.quota, why = self._find_quota()
            if self.default_size and self.quota is None:
                raise NotSupportedError(why)
            self.discarding.quota = self.quota

    def _prepare(self) -> None:
        """Ask whether overlays can be mounted there, then make the home."""
        where = self.home if os.path.isdir(self.home) else os.path.dirname(self.home)
        if os.environ.get("_DOCKERD_ROOTLESS_SELINUX") == "1":
            raise NotSupportedError("driver not supported: rootless with SELinux")
        checks.probe_overlay(where)
        if checks.has_d_type(where):
            self.at.prepare()
            return
        found = checks.fs_name(where)
        remedy = {
            "xfs": " Reformat the filesystem with ftype=1 to enable d_type support.",
            "extfs": " Reformat the filesystem (or use tune2fs) with -O filetype flag to enable d_type support.",
        }.get(found, "")
        raise NotSupportedError(
            f"overlay2: the backing {found} filesystem is formatted without d_type support, which leads to incorrect "
            f"behavior.{remedy} Backing filesystems without d_type support are not supported."
        )

    def _find_quota(self) -> tuple[ProjectQuota | None, str]:
        """Return the quotas of the home's file system; without them, the reason."""
        found = checks.fs_name(self.home)
        if found != "xfs" or checks.in_user_namespace():
            return None, f"Storage Option overlay2.size only supported for backingFS XFS. Found {found}"
        try:
            return ProjectQuota(self.home), ""
        except NotSupportedError as err:
            return None, f"Storage option overlay2.size not supported. Filesystem does not support Project Quota: {err}"

    # ---- the kernel ----

    def where_to_probe(self) -> str:
        """Choose a directory to mount overlays in: the kernel answers what is asked there, not the file system."""
        return tempfile.gettempdir() if self.read_only else self.home

    def native_works(self) -> bool:
        """Return True if a difference can be read off an upper directory."""
        if self._native is None:
            why = checks.native_diff_problem(self.where_to_probe())
            if why:
                text = "Not using native diff for overlay2, this may cause degraded performance for building images: %s"
                log.warning(text, why, extra={"directory": self.home})
            self._native = not why
        return self._native

    # ---- one id ----

    def marks(self, id: str) -> int:
        """Choose the core's flag for the marks that are written to id."""
        if self.userxattr:
            return _apply.USERNS
        return _apply.USERXATTR if self.classes.is_user(id) else 0

    def problems(self, id: str, stack: Sequence[str], *, marks: bool = True) -> list[Finding]:
        """Compare id's small files with what they must be, and its marks with what a mount would see."""
        found = [Finding(kind, "", text) for kind, text in self.at.problems(id, stack)]
        with contextlib.suppress(OSError):                # what is gone is told
            told = self.classes.problem(id) if marks else None
            found += [Finding("metadata", "", told)] if told else []
        return found

    def paths(self, id: str) -> dict[str, str]:
        """Name id's directories. Raises FileNotFoundError."""
        os.stat(self.at.path(id))
        found = {key: self.at.path(id, name) for key, name in _DIRECTORIES}
        lowers = self.at.lower_dirs(id)
        if lowers:
            found["LowerDir"] = ":".join(lowers)
        return found

    def remove(self, id: str) -> None:
        """Remove a directory and its link, whatever is mounted in it; do nothing if it is gone."""
        if not id:
            raise ValueError("refusing to remove the directories: id is empty")
        directory = self.at.path(id)
        with self.at.locks.hold(id):
            self.at.forget(id)
            try:
                if is_there(directory):
                    if is_there(self.at.path(id, "merged")):      # there only while mounted
                        self.mounting.unmount_all(id)
                    self.at.remove_tree(id)
                self.mounting.end(id)
                self.classes.forget(id)
            finally:
                self.at.recorded(id)                     # what could not be removed is left to cleanup()


def pump(given: TarInput, apply: _apply.Apply) -> _apply.Applied:
    """Pump all of given into apply, and end it. Warn of devices that are left out."""
    try:
        given.pump_into(apply)
        done = apply.finish()
    finally:
        apply.close()
    if done.left_out:
        first = readable(os.fsdecode(done.first_left_out))
        text = "%d devices are left out, as a user namespace cannot make any: the first is %s; verify() tells all"
        log.warning(text, done.left_out, first, extra={"left_out": done.left_out, "path": first})
    return done
