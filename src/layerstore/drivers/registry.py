"""The table of drivers: which there are, and which one a root has."""

from __future__ import annotations

import os
from collections.abc import Mapping

from layerstore.drivers import Driver, Open, StoreView
from layerstore.drivers.erofs.driver import open_erofs
from layerstore.drivers.overlay2.driver import open_overlay2
from layerstore.errors import LayerStoreError

# In the order in which one is chosen for an empty root.
DRIVERS: dict[str, Open] = {"overlay2": open_overlay2, "erofs": open_erofs}
# Docker's, of which a root may be full.
_OTHERS = ("fuse-overlayfs", "btrfs", "zfs")
_REMOVED = ("aufs", "devicemapper", "overlay")


def choose(root: str, name: str | None) -> str:
    """Name the driver of a root: the one asked for, the first of the table found there, else the table's first.

    Raises  LayerStoreError   there is no such driver, or no longer, or the root is another driver's
    """
    if name in _REMOVED:
        raise LayerStoreError(
            f"[graphdriver] ERROR: the {name} storage-driver has been deprecated and removed; "
            "visit https://docs.docker.com/go/storage-driver/ for more information"
        )
    if name and name not in DRIVERS:
        raise LayerStoreError("driver not supported")
    if name:
        return name
    ours = found(root) or [n for n in DRIVERS if _holds_something(os.path.join(root, n))]
    others = [n for n in _OTHERS if _holds_something(os.path.join(root, n))]
    if len(others) > 1 or (others and ours):
        raise LayerStoreError(
            f"{root} contains several valid graphdrivers: {', '.join([*ours, *others])}; "
            "cleanup or explicitly choose storage driver (-s <DRIVER>)"
        )
    if others:
        raise LayerStoreError(f"driver not supported: {others[0]}")
    return ours[0] if ours else next(iter(DRIVERS))


def found(root: str) -> list[str]:
    """Name the drivers whose layers a root has, each in a half of its own; the one that choose() names comes first."""
    return [name for name in DRIVERS if os.path.isdir(os.path.join(root, "image", name, "layerdb"))]


def _holds_something(path: str) -> bool:
    try:
        return bool(os.listdir(path))
    except OSError:
        return False


def open_driver(name: str, root: str, options: Mapping[str, str], view: StoreView) -> Driver:
    """Open the driver of this name below root, with options of its own. Raises as drivers.Open does."""
    return DRIVERS[name](os.path.join(root, name), options, view)
