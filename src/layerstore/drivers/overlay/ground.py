"""What the parts of a driver share that mounts overlays: its home, the class of its marks, its mounts, its quotas.

Source: moby, daemon/graphdriver/overlay2
"""

from __future__ import annotations

import abc
import contextlib
import logging
import os
import tempfile
from collections.abc import Sequence
from typing import ClassVar

from layerstore._core import _apply
from layerstore.disk.background import Background
from layerstore.drivers import Finding, StoreView, checks
from layerstore.drivers.overlay.below import Below
from layerstore.drivers.overlay.directories import Directories, is_there
from layerstore.drivers.overlay.discarding import Discarding
from layerstore.drivers.overlay.marks import Marks
from layerstore.drivers.overlay.mounting import Mounting
from layerstore.drivers.overlay.switching import Switching
from layerstore.drivers.quota import ProjectQuota
from layerstore.errors import NotSupportedError, readable
from layerstore.streams.sources import TarInput

log = logging.getLogger("layerstore")


class Ground(abc.ABC):
    """One home, and what was found out about its machine."""

    name: ClassVar[str]
    """The driver's."""
    files: ClassVar[str]
    """The name of the directory of an id's files."""
    directories: ClassVar[type[Directories]] = Directories

    def __init__(self, home: str, default_size: str, view: StoreView) -> None:
        """Check the host, make the home. Raises NotSupportedError, OSError.

        default_size   the limit of a writable layer that is given none; "": none
        """
        self.home, self.default_size = home, default_size
        self.limits, self.read_only = view.limits, view.read_only
        self.at = self.directories(home, self.files, view.lock_timeout)
        self._native: bool | None = None
        self._quota: tuple[ProjectQuota | None, str] | None = None
        if not self.read_only:
            self.prepare()
        self.userxattr = checks.needs_userxattr(home)
        self.classes = self.find_marks(view)
        self.below = self.find_below(view)
        file_system = checks.fs_name(home) if os.path.isdir(home) else ""
        self.has_projects = file_system == "xfs"
        self.durable = view.durability != "none" and file_system not in ("tmpfs", "ramfs")
        self.mounting = Mounting(
            self.at, view.holds, self.classes, self.below, view.boxes,
            read_only=self.read_only, userxattr=self.userxattr,
            syncs="never" if not self.durable else "all" if view.durability == "full" else "own",
        )  # fmt: skip
        self.background = Background()
        self.switching = Switching(self.at, self.mounting, self.below, self.background)
        self.discarding = Discarding(
            self.at, self.mounting, self.background, self.remove, has_projects=self.has_projects
        )  # fmt: skip
        if self.default_size and not self.read_only:
            self.quota()

    # ---- what each driver has its own way of ----

    @abc.abstractmethod
    def prepare(self) -> None:
        """Ask of the host what the driver cannot do without, then make the home. Raises NotSupportedError, OSError."""

    @abc.abstractmethod
    def find_marks(self, view: StoreView) -> Marks:
        """Return the classes of the marks below the home."""

    @abc.abstractmethod
    def find_below(self, view: StoreView) -> Below:
        """Return what stands below the overlays."""

    # ---- quotas ----

    def find_quota(self) -> ProjectQuota | None:
        """Return the quotas of the home's file system, looked for at the first call; None: it has none."""
        if self._quota is None:
            self._quota = self._quota_of_home()
        return self._quota[0]

    def quota(self) -> ProjectQuota:
        """Return the quotas of the home's file system. Raises NotSupportedError."""
        found = self.find_quota()
        if found is None:
            assert self._quota
            raise NotSupportedError(self._quota[1])
        return found

    def _quota_of_home(self) -> tuple[ProjectQuota | None, str]:
        """Return the quotas of the home's file system; without them, the reason."""
        found = checks.fs_name(self.home)
        if found != "xfs" or checks.in_user_namespace():
            return None, f"Storage Option {self.name}.size only supported for backingFS XFS. Found {found}"
        try:
            return ProjectQuota(self.home), ""
        except NotSupportedError as err:
            why = f"Storage option {self.name}.size not supported. Filesystem does not support Project Quota: {err}"
            return None, why

    # ---- the kernel ----

    def where_to_probe(self) -> str:
        """Choose a directory to mount overlays in: the kernel answers what is asked there, not the file system."""
        return tempfile.gettempdir() if self.read_only else self.home

    def native_works(self) -> bool:
        """Return True if a difference can be read off an upper directory."""
        if self._native is None:
            why = checks.native_diff_problem(self.where_to_probe())
            if why:
                text = "Not using native diff for %s, this may cause degraded performance for building images: %s"
                log.warning(text, self.name, why, extra={"directory": self.home})
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
        places = (("WorkDir", "work"), ("MergedDir", "merged"), ("UpperDir", self.at.files))
        found = {key: self.at.path(id, name) for key, name in places}
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
                    self.below.removing(id)
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
