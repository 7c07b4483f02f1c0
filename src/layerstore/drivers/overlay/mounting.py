"""Mounting: a layer's directory as an overlay, counted, and shared with the other stores of its home.

One upper directory is never in two overlays. A mount is not ended while a process is inside. It is not made while an
overlay of it exists anywhere, detached or in another mount namespace. The kernel is asked, as it alone knows.
Source: moby, daemon/graphdriver/overlay2, graphdriver/counter.go
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence

from layerstore.disk import mounts
from layerstore.disk.holds import Holds, read_key
from layerstore.disk.locks import Scope, surely
from layerstore.disk.textfile import naming
from layerstore.drivers import checks
from layerstore.drivers.counter import MountCounter
from layerstore.drivers.holders import UNKNOWN, holders, in_use
from layerstore.drivers.overlay.below import Below
from layerstore.drivers.overlay.directories import Directories, is_there, make, opened
from layerstore.drivers.overlay.marks import Marks
from layerstore.errors import ActiveMountError, Holder, LayerStoreError, ReadOnlyStoreError
from layerstore.ids import is_driver_id
from layerstore.layerdb.detached import Detached

log = logging.getLogger("layerstore")

# How often, and after what time, an unmount is tried again if no process is seen to use the mount.
_ATTEMPTS, _PAUSE = 5, 0.0005
# How long an overlay may take to end that no process is seen to use.
_ENDING = 1.0


# How the options of a mount name a directory below it.
_SHORT = re.compile(r"\bl/([A-Z0-9]{26})\b")


def _use(id: str) -> str:
    """Return the key under which a mount in use is held."""
    return f"use {id}"


def _mounted_anywhere() -> Iterator[mounts.MountPoint]:
    """Yield the mounts of this mount namespace, then those of the others."""
    yield from mounts.mount_table()
    for table in mounts.other_tables():
        yield from table


class Mounting:
    """The mounts of one store."""

    def __init__(
        self, at: Directories, holds: Holds, classes: Marks, below: Below, boxes: Detached, *,
        read_only: bool, userxattr: bool, syncs: str = "own",
    ) -> None:  # fmt: skip
        """holds       tells other stores which mounts are in use here
        classes     of the marks that a mount must show
        below       what an overlay needs before it stands
        boxes       those that were detached while a process was inside
        read_only   mount nothing
        userxattr   overlay's attributes are user.*
        syncs       what is put on the disk of a box at its unmount: "all", also what another store mounted without
                    syncing; "own": as it was mounted; "never": a mount ends without syncing
        """
        self._at, self._holds, self._classes, self._below, self._read_only = at, holds, classes, below, read_only
        self._userxattr = userxattr
        self._syncs_all = syncs == "all"
        self._is_volatile = syncs == "never" and checks.kernel_version() >= (5, 10)
        self._long = re.compile(rf"\b([0-9a-f]{{64}}(?:-init)?)/{at.files}\b")
        self._off = checks.options_off()
        self._counter = MountCounter(mounts.is_mounted)
        # Descriptors of this store in mounted boxes, for the length of a call.
        self._ours: set[int] = set()
        self._left: set[int] = set()
        self._first: dict[str, int] = {}  # of ids: the mount that this store made
        self._boxes = boxes

    def get(self, id: str, mount_label: str = "", *, read_only: bool = False) -> str:
        """Mount id, or count one user more; return the path. Raises OSError, ActiveMountError."""
        with self._at.locks.hold(id):
            self._at.require(id, self._at.files)
            merged = self._at.path(id, "merged")
            if self._read_only:
                if self._at.is_plain(id):
                    return self._at.files_of(id)
                raise ReadOnlyStoreError(f"{ReadOnlyStoreError.text}: nothing is mounted in it", path=merged)
            # No other store ends what this one holds. A user of a killed process is counted here, but holds nothing.
            held = self._holds.holds(_use(id))
            self._holds.retain(_use(id))
            try:
                if held and self._counter.users(merged) and mounts.is_mounted(merged):
                    self._counter.increment(merged)
                    return merged
                with self._at.claimed(id):    # no other store mounts, unmounts or turns it meanwhile
                    if self._at.is_plain(id):
                        with self._below.standing([id]):
                            self._counter.increment(self._at.files_of(id))
                        return self._at.files_of(id)
                    self._mount_or_share(id, merged, mount_label, read_only)
            except BaseException:
                self._holds.release(_use(id))
                raise
            return merged

    def is_read(self, id: str) -> bool:
        """Return True if a store reads the files of id; of "" it is False."""
        return bool(id) and self._holds.held_anywhere(read_key(id))

    def stood_on(self) -> set[str]:
        """Name the ids that overlays stand on which are mounted anywhere, whatever the disk says."""
        found: set[str] = set()
        for mount in _mounted_anywhere():
            for option in mount.options.split(","):
                if option.startswith("lowerdir"):
                    found.update(self._long.findall(option))
                    found.update(id for link in _SHORT.findall(option) if (id := self._at.led_to(link)))
        return found

    def is_counted(self, id: str) -> bool:
        """Return True if this store or another one uses id, as their counts say."""
        used = self._counter.users(self._at.files_of(id)) or self._counter.users(self._at.path(id, "merged"))
        return bool(used) or self._holds.held_elsewhere(_use(id))

    def is_used_bare(self, id: str) -> bool:
        """Return True if this store or another one uses id without an overlay, as their counts say."""
        used = self._counter.users(self._at.files_of(id))
        return bool(used) or (self._at.is_plain(id) and self._holds.held_elsewhere(_use(id)))

    def _mount_or_share(self, id: str, merged: str, mount_label: str, read_only: bool) -> None:
        """Count the first user of this store, which has claimed id."""
        if not mounts.is_mounted(merged):
            self._counter.forget(merged)                  # what was counted, another one has unmounted
            writable = not read_only and not os.path.exists(self._at.path(id, "committed"))
            self._mount(id, self._at.lower_items(id), merged, mount_label, writable)
            self._counter.begin(merged)
        elif self._holds.held_elsewhere(_use(id)):
            self._counter.begin(merged)                   # the last of all its users unmounts it
        else:
            self._counter.increment(merged)               # beside the user that a mount found here has

    def _mount(self, id: str, lowers: list[str], merged: str, mount_label: str, writable: bool) -> None:
        try:
            if writable:
                self._at.require(id, "work")
                self._require_free(id, merged)
            ids = self._at.lower_ids(lowers)
            overlay = self.overlay(id, lowers, ids, mount_label, writable=writable)
            with self.standing(overlay, id, ids) as ready:
                make(merged, 0o700)
                mounts.mount_overlay(ready, f"{id}/merged")
                if writable:
                    self.require_writable(merged, merged)
                    self.note_first(id, merged)
        except ActiveMountError:
            raise
        except BaseException:
            with contextlib.suppress(OSError):
                mounts.unmount(merged, 0)
            with contextlib.suppress(OSError):
                os.rmdir(merged)
            raise

    def overlay(
        self, id: str, lowers: list[str], ids: list[str], mount_label: str, *, writable: bool
    ) -> mounts.Overlay:
        """Return what a mount of id is made of; what hinders one of a writable id is removed.

        lowers   the items of its `lower`; ids: those that they lead to
        """
        userxattr = self._classes.view(id, ids)
        if not writable:
            lowers = [f"{id}/{self._at.files}", *lowers]
            apart = self._below.is_apart([id, *ids])
            return mounts.Overlay(
                self._at.home, lowers, context=mount_label, off=self._off, userxattr=userxattr, is_apart=apart
            )  # fmt: skip
        self._classes.set(id, userxattr)
        self._forget_volatile(id)
        return mounts.Overlay(
            self._at.home, lowers, f"{id}/{self._at.files}", f"{id}/work",
            context=mount_label, off=self._off, userxattr=userxattr, is_volatile=self._is_volatile,
            is_apart=self._below.is_apart(ids),
        )  # fmt: skip

    @contextlib.contextmanager
    def standing(self, overlay: mounts.Overlay, id: str, ids: Sequence[str]) -> Iterator[mounts.Overlay]:
        """Let what an overlay of id, on ids, stands on be there until the block ends; return it as it is to be made."""
        own = [] if overlay.upper else [id]
        at = len(own)
        with self._below.standing(own), self._below.standing(ids) as given:
            yield overlay._replace(lowers=[*overlay.lowers[:at], *given(overlay.lowers[at:])])

    def _forget_volatile(self, id: str) -> None:
        """Remove the mark of a mount that never synced, as the kernel mounts nothing on it; not while one uses id."""
        if is_there(self._at.path(id, "work", "work", "incompat")):
            self._at.remove_in(id, "work", "work", "incompat")

    def end_work(self, id: str) -> None:
        """Remove what a mount that is gone leaves in its work directory: the next mount need not ask about it then."""
        with contextlib.suppress(OSError):            # mount() asks, and tries again
            if self._syncs_all and is_there(self._at.path(id, "work", "work", "incompat")):
                mounts.sync_filesystem(self._at.home)
            self._at.remove_in(id, "work", "work")

    def require_writable(self, mount: str | int, merged: str) -> None:
        """Raise if the mount is read-only: the kernel could not make its work directory, on a full disk for example."""
        with naming(merged):
            flags = os.statvfs(mount).f_flag
        if not flags & os.ST_RDONLY:
            return
        below = os.statvfs(self._at.home)
        full = not below.f_bavail or (below.f_files and not below.f_favail)
        code = errno.ENOSPC if full and not below.f_flag & os.ST_RDONLY else errno.EROFS
        raise OSError(code, f"{os.strerror(code)} (the kernel mounted the overlay for reading only)", merged)

    # ---- who is inside ----

    def _require_free(self, id: str, merged: str) -> None:
        """Check that no other overlay writes to the upper: two are undefined. Raises ActiveMountError."""
        found = self.inside_elsewhere(id)
        if found is not None:
            raise in_use(self.name(id), found, "; it is unmounted here, and can be mounted when that has ended")
        if is_there(self._at.path(id, "work", "work")):
            self._boxes.clear(id)

    def inside_elsewhere(self, id: str) -> list[Holder] | None:
        """Return who uses id, which is not mounted here; None: there is no overlay of it."""
        if not is_there(self._at.path(id, "work", "work")):
            return None                   # the kernel makes it with the first mount
        merged = self._at.path(id, "merged")
        found = self._still_inside(id, merged)
        until = time.monotonic() + _ENDING
        while found == [] and time.monotonic() < until and self.device_elsewhere(id) is None:
            time.sleep(_PAUSE * 20)       # its last user has ended, and the kernel still writes back what that wrote
            found = self._still_inside(id, merged)
        return found

    def _still_inside(self, id: str, merged: str) -> list[Holder] | None:
        """Return who uses the overlay of an upper that is not mounted here; None: there is no overlay."""
        used = mounts.upper_in_use(self._at.files_of(id), userxattr=self._userxattr)
        if used is False:
            return None
        device = self.device_elsewhere(id)
        if device is None:
            device = self._boxes.device(id)
            if used is None and device is not None and self._is_anothers(device):
                device = None             # the number was given again
        found = holders(device, merged, tuple(self._ours)) if device is not None else []
        # A kernel that does not tell: what a process is seen to use, or another store says that it uses.
        return found if used or found or self._holds.held_elsewhere(_use(id)) else None

    def device_elsewhere(self, id: str) -> int | None:
        """Return the device of an overlay that writes to id, mounted in another namespace or elsewhere in this one."""
        ends = (f"={id}/{self._at.files}", f"/{id}/{self._at.files}")
        for mount in _mounted_anywhere():
            options = mount.options.split(",")
            if any(option.startswith("upperdir=") and option.endswith(ends) for option in options):
                return os.makedev(*mount.device)
        return None

    @staticmethod
    def _is_anothers(device: int) -> bool:
        """Return True if a file system of this number is mounted: so it is not the detached one."""
        return any(os.makedev(*mount.device) == device for mount in _mounted_anywhere())

    def holders(self, id: str) -> list[Holder]:
        """List who is inside id: mounted here, detached, or mounted in another namespace; [] where it is not."""
        merged = self._at.path(id, "merged")
        if self._at.is_plain(id):
            return []
        if mounts.is_mounted(merged):
            return holders(os.stat(merged).st_dev, merged, tuple(self._ours))
        if not is_there(self._at.path(id, "work", "work")):
            return []
        found = self._still_inside(id, merged)
        return [] if found is None else found or [UNKNOWN]

    def name(self, id: str) -> str:
        """Return the name of id for a message; id if its name cannot be looked up, which must not hide the message."""
        with contextlib.suppress(OSError, LayerStoreError):
            return self._boxes.shown_name(id)
        return id

    # ---- unmounting ----

    def put(self, id: str, *, lazy: bool = False) -> None:
        """Count one user less; unmount at zero. Harmless without a get().

        lazy     detach it, even while processes are inside
        Raises   ActiveMountError   a process is inside: it stays mounted, and counted
        """
        self._put(id, functools.partial(self._leave, lazy=lazy))

    def _put(self, id: str, unmount: Callable[[str, str], None]) -> None:
        with self._at.locks.hold(id):
            with contextlib.suppress(OSError, LayerStoreError):     # else it may be mounted all the same
                if self._at.is_plain(id):
                    self._counter.decrement(self._at.files_of(id))
                    self._holds.release(_use(id))
                    self._below.left([id])
                    return
            merged = self._at.path(id, "merged")
            if self._counter.users(merged) > 1 or self._read_only:
                self._counter.decrement(merged)
                self._holds.release(_use(id))
                return
            with self._at.claimed(id, if_possible=True):   # what cannot be locked is unmounted all the same
                unmount(id, merged)
                self._counter.decrement(merged)
                self._holds.release(_use(id))

    def _leave(self, id: str, merged: str, *, lazy: bool) -> None:
        if not self._holds.held_elsewhere(_use(id)):     # else the last of the other stores unmounts it
            self._unmount(id, merged, lazy=lazy)

    def _leave_for_good(self, id: str, merged: str) -> None:
        """Unmount for a call that will not ask again: what stays mounted is logged, and left to cleanup()."""
        try:
            self._leave(id, merged, lazy=True)
        except OSError as err:
            with contextlib.suppress(OSError):           # umount(2) itself tells whether it is in use
                if self._holds.held_elsewhere(_use(id)):
                    return
                if not mounts.is_mounted_surely(merged) or self._goes(merged):
                    with contextlib.suppress(OSError):
                        os.rmdir(merged)
                    return
            log.warning("Cannot unmount %s: %s", self.name(id), err, extra={"mount_id": id, "error": err})

    def _unmount(self, id: str, merged: str, *, lazy: bool) -> None:
        """Unmount id, if it is mounted here. Raises ActiveMountError and OSError, then nothing has changed."""
        if not mounts.is_mounted_surely(merged):
            with contextlib.suppress(OSError):
                os.rmdir(merged)
            return
        device = os.stat(merged).st_dev
        # What only reads does no harm: its next mount is another overlay on the same layers.
        reads_only = bool(os.statvfs(merged).f_flag & os.ST_RDONLY)
        copied = self.is_copied(id, merged, device)
        found = self._try(merged, device, copied=copied)
        if found is not None:
            if not lazy and not reads_only:
                raise in_use(self.name(id), found)
            if not reads_only:
                self._boxes.mark(id, device)
            mounts.unmount(merged)
        self._end_unseen(merged)
        with contextlib.suppress(OSError):
            os.rmdir(merged)              # unused copies go with it
        self._below.left(self._stood_on_by(id))
        if found is not None:
            return
        if copied and mounts.upper_in_use(self._at.files_of(id), userxattr=self._userxattr):
            self._boxes.mark(id, device)        # a process came in since
        elif not reads_only:
            self.end_work(id)

    def _stood_on_by(self, id: str) -> list[str]:
        """Return what a mount of id may have stood on."""
        with contextlib.suppress(OSError, LayerStoreError):
            return [id, *self._at.stack_of(id)]
        return [id]

    @staticmethod
    def _end_unseen(merged: str) -> None:
        """Unmount what lies beneath a mount that is gone: a switch that came too late left it there."""
        with contextlib.suppress(OSError):
            while mounts.is_mounted(merged):
                mounts.unmount(merged)

    def note_first(self, id: str, merged: str) -> None:
        """Note that this store made what is mounted at merged: any other mount of its file system is a later copy."""
        self._first[id] = mounts.mount_id(merged)

    def is_copied(self, id: str, merged: str, device: int) -> bool:
        """Return True if it is mounted once more, here or in another mount namespace, which umount(2) does not see."""
        here, elsewhere = mounts.count_mounts(merged, device, self._first.get(id, 0))
        return here > 1 or elsewhere

    def _try(self, merged: str, device: int, *, copied: bool) -> list[Holder] | None:
        """Unmount it if it is unused; else return its holders."""
        if copied:
            found = holders(device, merged, tuple(self._ours))
            if found:
                return found
        if self._goes(merged):
            return None
        found = holders(device, merged, tuple(self._ours))
        for _ in range(_ATTEMPTS if not found else 0):
            time.sleep(_PAUSE)            # a look-up under way is a use, too
            if self._goes(merged):
                return None
        return found or [UNKNOWN]

    @staticmethod
    def _goes(merged: str) -> bool:
        """Unmount; False: it is in use. Raises OSError."""
        try:
            mounts.unmount(merged, 0)
        except OSError as err:
            if err.errno != errno.EBUSY:
                raise
            return False
        return True

    def mounted(self, id: str, *, read_only: bool = False) -> Scope[int]:
        """Open the mounted directory for the length of a `with` block."""
        left: list[contextlib.AbstractContextManager[int]] = []       # once it is empty all is undone

        def begin() -> int:
            path = self.get(id, read_only=read_only)
            try:
                left.append(opened(path))
                fd = left[0].__enter__()
                self._ours.add(fd)
                return fd
            except BaseException:
                surely(self.done, id)
                raise

        def end(fd: int) -> None:
            self._ours.discard(fd)
            if left:
                left.pop().__exit__(None, None, None)
                self.done(id)

        return Scope(begin, end)

    def done(self, id: str) -> None:
        """Undo a get() that was for one call alone: its result stands, whether or not the mount can go."""
        try:
            self._put(id, self._leave_for_good)
        except OSError as err:
            log.warning("Cannot unmount %s: %s", self.name(id), err, extra={"mount_id": id, "error": err})

    def unmount_all(self, id: str) -> None:
        """Unmount all below id's directory, lazily, under its lock. Processes inside keep what is open."""
        merged = self._at.path(id, "merged")
        found: list[Holder] | None = None
        if not mounts.is_mounted(merged):                 # but perhaps where this process does not see it
            with contextlib.suppress(OSError):
                found = self._still_inside(id, merged)
        for point in mounts.mounts_below(self._at.path(id)):
            try:
                if self._goes(point):
                    continue
                if os.path.realpath(merged) == point:
                    found = holders(os.stat(point).st_dev, merged, tuple(self._ours))
                mounts.unmount(point)
            except OSError as err:
                log.debug("Failed to unmount %s: %s", point, err, extra={"directory": point, "error": err})
        self._below.left(self._stood_on_by(id))
        if found is not None:
            about = {"mount": self.name(id), "mount_id": id, "holders": found}
            log.warning("%s; it is removed all the same", in_use(self.name(id), found), extra=about)

    @property
    def ours(self) -> tuple[int, ...]:
        """Descriptors of this store in mounted boxes, which do not count as uses."""
        return tuple(self._ours)

    def clear_mark(self, id: str) -> None:
        """Note that what was detached of id while a process was inside is no longer id's."""
        self._boxes.clear(id)

    def is_upper_used(self, id: str) -> bool:
        """Return True if some overlay, attached or not, writes to id's files."""
        if not is_there(self._at.files_of(id)):
            return False
        used = mounts.upper_in_use(self._at.files_of(id), userxattr=self._userxattr)
        return self.device_elsewhere(id) is not None or self._is_left_used(id) if used is None else used

    def is_over(self, id: str) -> bool:
        """Return True if no mount of id lives, here or elsewhere, and no store counts one."""
        return not (self.is_counted(id) or mounts.is_mounted(self._at.path(id, "merged")) or self.is_upper_used(id))

    def leave(self, device: int) -> None:
        """Note that an overlay of this device was switched away from while it was used."""
        self._left.add(device)

    def _is_left_used(self, id: str) -> bool:
        """Return True if a process uses one of the overlays left: this kernel does not tell which upper is used."""
        for device in list(self._left):
            if not self._is_anothers(device) and holders(device, self._at.path(id, "merged"), self.ours):
                return True
            self._left.discard(device)
        return False

    def end(self, id: str) -> None:
        """Forget id, whose last file is gone. Called under its lock."""
        self._first.pop(id, None)
        self._counter.forget(self._at.files_of(id))
        self._counter.forget(self._at.path(id, "merged"))
        self._holds.drop(_use(id))

    def cleanup(self) -> None:
        """Unmount everything below home that no other store uses. Boxes in use are detached."""
        failed = mounts.unmount_below(self._at.home, self._unused_elsewhere, self._end_mount)
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

    def _id_of(self, point: str) -> str:
        return os.path.relpath(point, os.path.realpath(self._at.home)).split("/")[0]

    def _unused_elsewhere(self, point: str) -> bool:
        return not self._below.keeps(point) and not self._holds.held_elsewhere(_use(self._id_of(point)))

    def _end_mount(self, point: str) -> None:
        id = self._id_of(point)
        merged = os.path.realpath(self._at.path(id, "merged")) if is_driver_id(id) else ""
        if point == merged and mounts.is_mounted(point):
            self._unmount(id, point, lazy=True)
        else:
            mounts.unmount(point)
