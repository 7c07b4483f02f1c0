"""The ground of erofs: each layer is one file, which is mounted before an overlay stands on it.

Opening a home probes nothing and needs no privilege: what needs no mount works on any kernel and file system.
"""

from __future__ import annotations

import os

from layerstore.drivers import StoreView, checks
from layerstore.drivers.erofs.containerd import Names
from layerstore.drivers.erofs.directories import ErofsDirectories
from layerstore.drivers.erofs.marks import BoxMarks
from layerstore.drivers.erofs.mounted import Mounted
from layerstore.drivers.erofs.options import Options
from layerstore.drivers.overlay.ground import Ground
from layerstore.errors import NotSupportedError


class ErofsGround(Ground):
    """One home of erofs."""

    name = "erofs"
    files = "fs"
    directories = ErofsDirectories
    at: ErofsDirectories
    below: Mounted

    def __init__(self, home: str, options: Options, view: StoreView) -> None:
        """Make the home. Raises NotSupportedError, OSError."""
        self.options = options
        self.names = Names(home, on=options.containerd_cache)
        super().__init__(home, options.size, view)
        self.shares_blocks = os.path.isdir(home) and checks.fs_name(home) in ("xfs", "btrfs")
        """Files there can have blocks of one another."""

    def prepare(self) -> None:
        self.at.prepare()

    def find_marks(self, view: StoreView) -> BoxMarks:
        return BoxMarks(self.at, self.at.is_image, userxattr=self.userxattr)

    def find_below(self, view: StoreView) -> Mounted:
        return Mounted(self.at, lambda: self.mounting, self.options, view)

    def native_works(self) -> bool:
        """Return True if upper directories say what overlays show, or if nothing can be mounted to be asked."""
        if self._native is None:
            try:
                checks.probe_overlay(self.where_to_probe())
            except (NotSupportedError, OSError):
                self._native = True
        return super().native_works()
