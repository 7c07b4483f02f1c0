"""Freezing and turning: what a box wrote becomes another directory's, and the box goes on with an empty one.

Directories change by renames alone, `lower` first: at every moment they show the right tree by themselves. A box that
was stopped in between is a whole box, and what fails is undone.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Sequence

from layerstore._core import _files
from layerstore.disk import mounts
from layerstore.disk.locks import surely
from layerstore.disk.textfile import BESIDE, naming, random_number
from layerstore.drivers.overlay.directories import is_there, make, opened
from layerstore.drivers.overlay.ground import Ground
from layerstore.errors import LayerStoreError

log = logging.getLogger("layerstore")

# The kernel's own attributes of a directory in an overlay: of what was written there, not of the directory.
_OVERLAYS = ("trusted.overlay.", "user.overlay.")


class Freezing:
    """The boxes of one store, frozen and turned. Every method holds the box."""

    def __init__(self, ground: Ground) -> None:
        self._ground, self._at, self._switching = ground, ground.at, ground.switching

    # ---- directories ----

    def make_fresh(self, id: str, fresh: str, like: str = "", *, lower: str = "") -> int:
        """Make fresh, an unowned directory with an empty diff and work beside id, and return the inode of id's diff.

        like     whose root directory's owner, mode, times and attributes the new one gets; "": as a new box has them
        lower    what its `lower` says; "": it has none
        """
        ground, at = self._ground, self._at
        user = ground.classes.is_user(id)
        # XFS renames between projects by no means, whether or not their quotas are counted.
        project = mounts.project_of(at.path(id)) if ground.has_projects else 0

        def prepare(path: str) -> None:
            ground.classes.write(path, user)
            if project:
                mounts.set_project(path, project)

        at.create(fresh, "", prepare, lower=lower, most=lower.count(":") + 1)
        try:
            make(at.path(fresh, "work"), 0o700)
            if like:
                copy_root(at.files_of(like), at.files_of(fresh))
            return self._inode(id, at.files)
        except BaseException:
            ground.remove(fresh)
            raise

    def follow(self, id: str, like: str) -> None:
        """Set the root directory's owner, mode, times and attributes of a box in the making to those of another id."""
        try:
            copy_root(self._at.files_of(like), self._at.files_of(id))
        except BaseException:
            self._ground.remove(id)
            raise

    def _inode(self, id: str, name: str) -> int:
        return _files.status(self._at.path(id, name))[2]

    def _exchange(self, id: str, other: str, name: str, was: int) -> None:
        """Exchange a directory of two ids, if id's has that inode. Both keep their times, which XFS would change."""
        with opened(self._at.path(id)) as mine, opened(self._at.path(other)) as its:
            old, new = os.stat(name, dir_fd=mine), os.stat(name, dir_fd=its)
            if old.st_ino != was:
                return
            _files.exchange(mine, name, its, name)
            for fd, before in (mine, new), (its, old):
                if os.stat(name, dir_fd=fd).st_mtime_ns != before.st_mtime_ns:
                    with naming(name):
                        os.utime(name, ns=(before.st_atime_ns, before.st_mtime_ns), dir_fd=fd)

    # ---- freezing ----

    def freeze(self, id: str, into: str, stack: Sequence[str], sync: Callable[[str], None], *, durable: bool) -> None:
        """Make into of what id wrote, and let id go on, empty, on into and its stack.

        sync      puts an id on the disk, before anything of the box changes
        durable   what is renamed is on the disk before
        """
        at = self._at
        with at.held(id):
            only_read = self._switching.require_switchable(id)
            text, aside = at.lower_text(id), f"{BESIDE}lower{random_number()}"
            below = text if at.stack_of(id) == list(stack) else at.lower_for(stack)
            upper = self.make_fresh(id, into, id, lower=below)
            undo: list[Callable[[], object]] = [lambda: self._ground.remove(into)]
            made = mounts.Switch()
            try:
                at.settle([into])
                if not text:                      # it was a plain directory, and is an overlay from now on
                    make(at.path(id, "work"), 0o700)
                work = self._inode(id, "work")
                sync(into)
                undo.append(lambda: at.undo_restand(id, aside, text, durable=durable))
                lower = ":".join(filter(None, (at.item_of(into), below)))
                at.restand_aside(id, aside, lower, durable=durable)
                fresh, fresh_work = self._inode(into, at.files), self._inode(into, "work")
                undo.append(lambda: self._exchange(id, into, at.files, fresh))
                self._exchange(id, into, at.files, upper)
                undo.append(lambda: self._exchange(id, into, "work", fresh_work))
                self._exchange(id, into, "work", work)
                follow_root(at.files_of(into), at.files_of(id))
                self._switching.switch(id, made, lazy=only_read, stops=True)
            except BaseException as err:
                if not made.is_done:
                    self._undo(id, undo, err)
                raise
            finally:
                if made.is_done:
                    self._ground.background.submit(lambda: self._empty_work(into))
            at.forget_aside(id, aside)
            if not made.is_done:
                at.remove_in(into, "work", "work")    # a kill left it there
            if not text:
                self._drop_plain(into)

    @staticmethod
    def _undo(id: str, steps: Sequence[Callable[[], object]], why: BaseException) -> None:
        """Take steps back, the last one first, until one cannot be: then too, what is there shows the right tree."""
        for step in reversed(steps):
            try:
                surely(step)
            except (OSError, LayerStoreError) as err:
                text = "Cannot undo a part of a snapshot of %s, which failed (%s): %s"
                log.error(text, id, why, err, extra={"mount_id": id, "error": err})
                return

    def _drop_plain(self, into: str) -> None:
        """Let a frozen directory on nothing be as any other: without work."""
        with contextlib.suppress(OSError):
            os.rmdir(self._at.path(into, "work"))

    def _empty_work(self, id: str) -> bool:
        """Empty the work directory of a frozen id, whose overlay has ended."""
        with contextlib.suppress(FileNotFoundError):
            self._at.empty(id, "work")
        return True

    # ---- turning ----

    def turn(self, id: str, fresh: str, upper: int, lower: str, *, durable: bool) -> None:
        """Exchange id's directories with fresh's, if its diff still has the inode upper, and write its `lower`.

        lower   what it says from then on; "": the box stands on nothing
        """
        at = self._at
        with at.held(id):
            if not is_there(at.path(id, "work")):
                make(at.path(id, "work"), 0o700)
            work = self._inode(id, "work")
            if self._inode(id, at.files) == upper:
                self._exchange(id, fresh, at.files, upper)
                self._exchange(id, fresh, "work", work)
            elif self._was_stopped(id, fresh):
                self._exchange(id, fresh, "work", work)
            at.restand(id, lower, durable=durable)
            if not lower:
                at.empty(id, "work")
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(at.path(id, "work"))


    def _was_stopped(self, id: str, fresh: str) -> bool:
        """Return True if a turn was stopped when diff was exchanged, and work was not.

        The work of a box that was never mounted is empty as the fresh one is: then it does not matter.
        """
        if not is_there(self._at.path(fresh, "work")):
            return False
        with opened(self._at.path(fresh, "work")) as its, opened(self._at.path(id, "work")) as mine:
            return _files.is_empty(its) and not _files.is_empty(mine)


def copy_root(source: str, target: str) -> None:
    """Set the owner, mode, times and attributes of a directory to those of another one."""
    found = os.stat(source, follow_symlinks=False)
    made = os.stat(target, follow_symlinks=False)
    if (found.st_uid, found.st_gid) != (made.st_uid, made.st_gid):
        os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    for name in os.listxattr(source, follow_symlinks=False):
        if name.startswith(_OVERLAYS):
            continue
        try:
            os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
        except OSError as err:
            if err.errno != errno.EPERM or not name.startswith("security."):      # as in a user namespace
                raise
    if stat.S_IMODE(found.st_mode) != stat.S_IMODE(os.stat(target, follow_symlinks=False).st_mode):
        _files.chmod(target, stat.S_IMODE(found.st_mode))
    with naming(target):
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


def follow_root(source: str, target: str) -> None:
    """Set the times of a directory to those that another one has got since copy_root()."""
    found, made = os.stat(source, follow_symlinks=False), os.stat(target, follow_symlinks=False)
    if (found.st_mtime_ns, found.st_mode, found.st_uid, found.st_gid) != (
        made.st_mtime_ns, made.st_mode, made.st_uid, made.st_gid,
    ):  # fmt: skip
        copy_root(source, target)
