"""Who is inside a mounted box: the processes that use its file system, and what the kernel itself keeps there.

A device number comes in, Holders come out, or the ActiveMountError that names them. What a process may not look into is
left out and logged.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from layerstore.disk import mounts
from layerstore.errors import ActiveMountError, Holder, readable

# In the order that Holder.uses has; mounts.uses() has the letters.
_USES = {"r": "root", "c": "cwd", "d": "directory", "w": "write", "s": "map", "m": "map", "f": "read"}
_ORDER = ["root", "cwd", "directory", "write", "map", "read"]
# Who uses the box only so cannot change what is in it.
_HARMLESS = {"m", "f"}
_MOST_PATHS = 16
KERNEL = "kernel"
# The box is in use, by what cannot be seen: a look-up under way, an export, another machine's mount namespace.
UNKNOWN = Holder(0, KERNEL, (), ())


class Found(NamedTuple):
    """Who uses the file system of a box."""

    holders: list[Holder]
    """By pid."""
    only_read: bool
    """There are some, and none of them can change what is in the box: it is open for reading, or mapped."""


def holders(device: int, merged: str, ours: Sequence[int] = ()) -> list[Holder]:
    """List who uses the file system of a box, by pid. Arguments as look() has them."""
    return look(device, merged, ours).holders


def look(device: int, merged: str, ours: Sequence[int] = ()) -> Found:
    """Find who uses the file system of a box.

    merged   where the box is, or was, mounted
    ours     descriptors of this process that do not count
    """
    used: dict[int, dict[str, set[str]]] = {}
    uses = mounts.uses(device, ours)
    for pid, use, path in uses:
        used.setdefault(pid, {}).setdefault(_USES[use], set()).add(path)
    box = _Box(device, merged)
    found = [box.holder(pid, of_process) for pid, of_process in sorted(used.items())]
    kernels = box.of_kernel(alone=not found)
    only_read = {use for _, use, _ in uses} <= _HARMLESS and (not kernels or kernels.uses == ("read",))
    all_of_them = [kernels, *found] if kernels else found
    return Found(all_of_them, bool(all_of_them) and only_read)


class _Box:
    """Where a file system is mounted, to name paths inside it."""

    def __init__(self, device: int, merged: str) -> None:
        self._numbers = os.major(device), os.minor(device)
        self._merged = os.path.realpath(merged)
        self._table = list(mounts.mount_table())
        self._here = [*self._points(self._table), (self._merged, "/")]

    def _points(self, table: Iterable[mounts.MountPoint]) -> list[tuple[str, str]]:
        """(mount point, what of the box is there)"""
        return [(mount.point, mount.root) for mount in table if mount.device == self._numbers]

    def holder(self, pid: int, used: dict[str, set[str]]) -> Holder:
        """Make a process's Holder of the paths it uses as /proc shows them."""
        points, command = list(self._here), ""
        with contextlib.suppress(OSError):                # it has ended meanwhile
            points += self._points(mounts.mount_table(str(pid)))
        with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", "rb") as text:
            command = os.fsdecode(text.read().rstrip(b"\n"))
        uses = tuple(use for use in _ORDER if use in used)
        paths = {_inside(path, points) for of_use in used.values() for path in of_use}
        return Holder(pid, command, uses, tuple(sorted(paths)[:_MOST_PATHS]))

    def of_kernel(self, *, alone: bool) -> Holder | None:
        """Return the holders of what is in use although no process uses it.

        alone   no process uses the box, so that a second mount of it keeps it
        """
        uses, paths = set(), set()
        own = [mount for mount in self._table if mount.device == self._numbers]
        for mount in self._table:
            if mount.device != self._numbers and any(_is_below(mount.point, point.point) for point in own):
                uses.add("directory")
                paths.add(_inside(mount.point, self._here))
        if alone:
            for mount in own:
                if mount.point != self._merged:
                    uses.add("directory")
                    paths.add(mount.root)
        for path, writes in _loop_files():
            if any(_is_below(path, mount.point) for mount in own):
                uses.add("write" if writes else "read")
                paths.add(_inside(path, self._here))
        if not uses:
            return None
        return Holder(0, KERNEL, tuple(use for use in _ORDER if use in uses), tuple(sorted(paths)[:_MOST_PATHS]))


def _is_below(path: str, point: str) -> bool:
    return path.startswith(point.rstrip("/") + "/")


def _inside(path: str, points: Sequence[tuple[str, str]]) -> str:
    """Name a path of this machine as the box does. Without a mount point above it, it is of a detached mount."""
    above = [(point, root) for point, root in points if path == point or _is_below(path, point)]
    if not above:
        return path
    point, root = max(above, key=lambda one: len(one[0]))
    return (root.rstrip("/") + path[len(point.rstrip("/")) :]) or "/"


def _loop_files() -> list[tuple[str, bool]]:
    """Files behind loop devices, and whether they are written to."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir("/sys/block"):
            if not name.startswith("loop"):
                continue
            with contextlib.suppress(OSError):            # most have none
                with open(f"/sys/block/{name}/loop/backing_file", "rb") as file:
                    path = os.fsdecode(file.read().rstrip(b"\n"))
                with open(f"/sys/block/{name}/ro", "rb") as file:
                    found.append((path, file.read().strip() == b"0"))
    return found


def in_use(name: str, found: Sequence[Holder], then: str = "") -> ActiveMountError:
    """Make the error that a box is in use.

    name    the box's
    found   by whom; none: nothing tells
    then    what is to be done, or ""
    """
    found = found or [UNKNOWN]
    first = found[0]
    text = f"{readable(name)} is in use by {readable(first.command) or 'a process'} ({first.pid})"
    if first.uses:
        text += f": {first.uses[0]}"
        if first.paths:
            text += f" {readable(first.paths[0])}"
    if len(found) > 1:
        text += f", and {len(found) - 1} more"
    return ActiveMountError(text + then, holders=found, name=name)
