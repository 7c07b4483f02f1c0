"""Mounting: a layer's directory as an overlay, counted, and shared with the other stores of its home.

Source: moby, daemon/graphdriver/overlay2, graphdriver/counter.go
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from layerstore.drivers import mounts
from layerstore.drivers.counter import MountCounter
from layerstore.drivers.directories import Directories, make, opened
from layerstore.errors import LayerStoreError, ReadOnlyStoreError
from layerstore.holds import Holds
from layerstore.ids import is_driver_id


def _use(id: str) -> str:
    """The key under which a mount in use is held."""
    return f"use {id}"


class Mounting:
    """The mounts of one store."""

    def __init__(self, at: Directories, holds: Holds, *, read_only: bool, index_off: bool, userxattr: bool) -> None:
        """holds       tells other stores which mounts are in use here
        read_only   mount nothing
        index_off   the kernel knows the mount option index, which is to be off
        userxattr   overlay's attributes are user.*
        """
        self._at, self._holds, self._read_only = at, holds, read_only
        self._index_off, self._userxattr = index_off, userxattr
        self._counter = MountCounter(mounts.is_overlay)

    def get(self, id: str, mount_label: str = "", *, read_only: bool = False) -> str:
        """Mount id, or count one user more; gives the path. Raises OSError."""
        with self._at.locks.hold(id):
            lowers = self._at.lower_items(id)
            self._at.require(id, "diff")
            if not lowers:
                return self._at.path(id, "diff")
            merged = self._at.path(id, "merged")
            if self._read_only:
                raise ReadOnlyStoreError(f"{ReadOnlyStoreError.text}: nothing is mounted in it", path=merged)
            self._holds.retain(_use(id))
            try:
                if self._counter.users(merged):
                    self._counter.increment(merged)
                else:
                    self._mount_or_share(id, lowers, merged, mount_label, read_only)
            except BaseException:
                self._holds.release(_use(id))
                raise
            return merged

    def _mount_or_share(self, id: str, lowers: list[str], merged: str, mount_label: str, read_only: bool) -> None:
        """Count the first user of this store. The lock keeps other stores from mounting or unmounting it meanwhile."""
        with self._at.claimed(id):
            if self._holds.held_elsewhere(_use(id)) and mounts.is_overlay(merged):
                self._counter.begin(merged)      # the last of all its users unmounts it
            else:
                self._mount(id, lowers, merged, mount_label, read_only)

    def _mount(self, id: str, lowers: list[str], merged: str, mount_label: str, read_only: bool) -> None:
        if self._counter.increment(merged) > 1:
            return
        try:
            self._at.lower_ids(lowers)
            make(merged, 0o700)
            writable = not read_only and not os.path.exists(self._at.path(id, "committed"))
            if writable:
                self._at.require(id, "work")
            mounts.mount_overlay(
                self._at.home, f"{id}/merged",
                lowers if writable else [f"{id}/diff", *lowers],
                f"{id}/diff" if writable else None,
                f"{id}/work" if writable else None,
                context=mount_label, index_off=self._index_off, userxattr=self._userxattr,
            )  # fmt: skip
            if writable:
                self._require_writable(merged)
        except BaseException:
            if self._counter.decrement(merged) <= 0:
                with contextlib.suppress(OSError):
                    mounts.unmount(merged, 0)
                with contextlib.suppress(OSError):
                    os.rmdir(merged)
            raise

    def _require_writable(self, merged: str) -> None:
        """Where the kernel cannot make its work directory, on a full disk say, it mounts read-only and is silent."""
        if not os.statvfs(merged).f_flag & os.ST_RDONLY:
            return
        below = os.statvfs(self._at.home)
        full = not below.f_bavail or (below.f_files and not below.f_favail)
        code = errno.ENOSPC if full and not below.f_flag & os.ST_RDONLY else errno.EROFS
        raise OSError(code, f"{os.strerror(code)} (the kernel mounted the overlay for reading only)", merged)

    def put(self, id: str) -> None:
        """Count one user less; unmount at zero. Harmless without a get()."""
        with self._at.locks.hold(id):
            with contextlib.suppress(OSError, LayerStoreError):     # else it may be mounted all the same
                if not self._at.lower_items(id):
                    return
            merged = self._at.path(id, "merged")
            left = self._counter.decrement(merged)
            if left > 0 or self._read_only:
                self._holds.release(_use(id))
                return
            with contextlib.ExitStack() as stack:
                with contextlib.suppress(OSError):       # what cannot be locked is unmounted all the same
                    stack.enter_context(self._at.claimed(id))
                self._holds.release(_use(id))
                if self._holds.held_elsewhere(_use(id)):
                    return                # the last of the other stores unmounts it
                with contextlib.suppress(OSError):
                    mounts.unmount(merged)
                with contextlib.suppress(OSError):
                    os.rmdir(merged)

    @contextlib.contextmanager
    def mounted(self, id: str, *, read_only: bool = False) -> Iterator[int]:
        """A descriptor of the mounted directory for the length of a `with` block."""
        path = self.get(id, read_only=read_only)
        try:
            with opened(path) as fd:
                yield fd
        finally:
            self.put(id)

    def end(self, id: str) -> None:
        """Under id's lock, behind its last file: nobody uses it."""
        self._counter.forget(self._at.path(id, "merged"))
        self._holds.drop(_use(id))

    def cleanup(self) -> None:
        """Unmount everything below home that no other store uses."""
        failed = mounts.unmount_below(self._at.home, self._unused_elsewhere)
        self._counter.forget()
        self._holds.drop_all(_use(""))
        if failed:
            raise failed
        with os.scandir(self._at.home) as entries:           # left where a mount or an unmount was stopped
            names = [entry.name for entry in entries if is_driver_id(entry.name)]
        for name in names:
            if not self._holds.held_elsewhere(_use(name)):   # it may be mounted where this process does not see it
                with contextlib.suppress(OSError):
                    os.rmdir(self._at.path(name, "merged"))

    def _unused_elsewhere(self, point: str) -> bool:
        id = os.path.relpath(point, os.path.realpath(self._at.home)).split("/")[0]
        return not self._holds.held_elsewhere(_use(id))
