"""The ground of overlay2: each layer is a directory, which overlays stand on as it is.

Source: moby, daemon/graphdriver/overlay2
"""

from __future__ import annotations

import os

from layerstore.drivers import StoreView, checks
from layerstore.drivers.overlay.below import Below, Plain
from layerstore.drivers.overlay.ground import Ground
from layerstore.drivers.overlay.marks import Marks
from layerstore.drivers.overlay2.classes import Classes
from layerstore.errors import NotSupportedError


class Overlay2Ground(Ground):
    """One home of overlay2."""

    name = "overlay2"
    files = "diff"

    def __init__(self, home: str, default_size: str, view: StoreView) -> None:
        super().__init__(home, default_size, view)
        if not self.read_only:
            self.find_quota()

    def prepare(self) -> None:
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

    def find_marks(self, view: StoreView) -> Marks:
        return Classes(self.at, view.layer_in, userxattr=self.userxattr)

    def find_below(self, view: StoreView) -> Below:
        return Plain(self.at)
