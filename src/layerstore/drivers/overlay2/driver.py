"""overlay2: one directory a layer, chained by short links, mounted as an overlay and counted.

    <home>/l/<26 letters> -> ../<id>/diff
    <home>/<id>/{diff,link,lower,work,merged,committed}
Source: moby, daemon/graphdriver/overlay2
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from layerstore._core import _apply, _changes, _files, _listing, _tarstream
from layerstore.disk import mounts
from layerstore.disk.holds import Holds
from layerstore.disk.locks import LOCK_TIMEOUT, Scope
from layerstore.disk.textfile import placing
from layerstore.drivers import checks
from layerstore.drivers.overlay2.classes import Classes, Recorded
from layerstore.drivers.overlay2.directories import Directories, is_there, opened
from layerstore.drivers.overlay2.graft import Graft
from layerstore.drivers.overlay2.mounting import Marks, Mounting
from layerstore.drivers.overlay2.options import parse_driver_options
from layerstore.drivers.overlay2.unowned import Unowned
from layerstore.drivers.quota import ProjectQuota
from layerstore.errors import (
    Holder,
    InvalidOptionError,
    LayerStoreError,
    NotSupportedError,
    ReadOnlyStoreError,
    readable,
)
from layerstore.limits import Limits
from layerstore.sizes import human_size
from layerstore.streams.sources import refuse_nothing
from layerstore.streams.tarstream import TarStream
from layerstore.values import Change, ChangeKind, Durability

log = logging.getLogger("layerstore")

_DIRECTORIES = (("WorkDir", "work"), ("MergedDir", "merged"), ("UpperDir", "diff"))


class Overlay2:
    """The overlay2 driver below one home."""

    name = "overlay2"

    def __init__(
        self, home: str, options: Mapping[str, str], *, holds: Holds | None = None, read_only: bool = False,
        limits: Limits | None = None, lock_timeout: float = LOCK_TIMEOUT,
    ) -> None:  # fmt: skip
        """Check the host, make the home. Raises NotSupportedError, InvalidOptionError, OSError.

        holds       tells other stores which mounts are in use here
        read_only   make, mount and change nothing below home
        limits      what tars may ask for; None: the defaults
        lock_timeout   seconds of a wait for a directory that another store mounts or unmounts; 0: for ever
        """
        self.home = home
        self._default_size = parse_driver_options(options)
        self._limits = limits or Limits()
        self._read_only = read_only
        self._at = Directories(home, lock_timeout)
        self._unowned = Unowned(self._at)
        self._native: bool | None = None
        self._quota: ProjectQuota | None = None
        if not read_only:
            self._prepare(home)
        self.in_memory = checks.fs_name(home) in ("tmpfs", "ramfs")
        self.userxattr = checks.needs_userxattr(home)
        self._classes = Classes(self._at, userxattr=self.userxattr)
        self._mounting = Mounting(
            self._at, holds or Holds(""), self._classes, read_only=read_only, userxattr=self.userxattr
        )
        if not read_only:
            self._quota, why = self._find_quota()
            if self._default_size and self._quota is None:
                raise NotSupportedError(why)

    def _prepare(self, home: str) -> None:
        """Can overlays be mounted there? Then make it."""
        where = home if os.path.isdir(home) else os.path.dirname(home)
        if os.environ.get("_DOCKERD_ROOTLESS_SELINUX") == "1":
            raise NotSupportedError("driver not supported: rootless with SELinux")
        checks.probe_overlay(where)
        self._require_d_type(where)
        self._at.prepare()

    @staticmethod
    def _require_d_type(where: str) -> None:
        if checks.has_d_type(where):
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
        """The quotas of home's file system; without them, the reason."""
        found = checks.fs_name(self.home)
        if found != "xfs" or checks.in_user_namespace():
            return None, f"Storage Option overlay2.size only supported for backingFS XFS. Found {found}"
        try:
            return ProjectQuota(self.home), ""
        except NotSupportedError as err:
            return None, f"Storage option overlay2.size not supported. Filesystem does not support Project Quota: {err}"

    # ---- life of a directory ----

    def create(self, id: str, parent: str, *, like: str = "") -> None:
        """Make the directory of a read-only layer; nobody's until recorded().

        like     an id whose marks are of the class that those of the new one must have; "": the parent
        Raises   NotSupportedError   this process cannot write such marks
        """
        user = self._classes.is_user(like) if like else self._classes.for_new(parent)
        if self.userxattr and not user:
            raise NotSupportedError(
                f"the marks in {like} are attributes trusted.overlay.*, which root alone can write, outside "
                "of a user namespace"
            )
        self._at.create(id, parent, lambda path: self._classes.write(path, user))

    def create_read_write(self, id: str, parent: str, storage_opt: Mapping[str, str] | None) -> None:
        """Make the directory of a writable layer; nobody's until recorded().

        Raises  InvalidOptionError, NotSupportedError, MaxDepthExceededError, OSError
        """
        options = {str(key).lower(): str(value) for key, value in (storage_opt or {}).items()}
        if "size" not in options and self._default_size:
            options["size"] = self._default_size
        if "size" in options and self._quota is None:
            raise NotSupportedError("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
        for key in options:
            if key != "size":
                raise InvalidOptionError(f"Unknown option {key}")
        quota, size = self._quota, human_size(options["size"]) if "size" in options else 0
        user = self._classes.for_new(parent)

        def prepare(path: str) -> None:
            self._classes.write(path, user)
            if quota and size:
                quota.limit(path, size)

        self._at.create(id, parent, prepare)

    def put_on(self, id: str, parent: str, unpacked: Any) -> None:
        """Let id, registered on nothing with this result, stand on parent. Raises MaxDepthExceededError, OSError."""
        self._at.put_on(id, parent)
        with self._at.opened_diff(id) as root:
            self._settle_on(id, root, unpacked)

    def _settle_on(self, id: str, root: int, unpacked: Any) -> None:
        """What the tar of id leaves open follows from what is below."""
        if unpacked.unsettled:
            with contextlib.ExitStack() as stack:
                lowers = [stack.enter_context(opened(path)) for path in self._at.lower_dirs(id)]
                _apply.stand_on(root, unpacked.unsettled, lowers, self._marks(id))

    def stand_on(self, id: str, parent: str) -> None:
        """Write anew what id stands on, after the directory of something below it was replaced."""
        self._at.stand_on(id, parent)

    def mend(self, id: str, below: Sequence[str], *, emptied: bool = False) -> None:
        """Write anew what is wrong of id's own small files: its short link, what it stands on, its directories.

        below     the ids of all it stands on, nearest first
        emptied   make the directory for its files where that is gone: what was in it can be had elsewhere
        """
        self._at.mend(id, below, emptied=emptied)

    def graft(self, id: str, sound: str, names: Iterable[str]) -> None:
        """Replace the damaged files of id by those of sound, a directory with the same layer; each in one step."""
        with self._at.opened_diff(id) as damaged, self._at.opened_diff(sound) as whole:
            Graft(whole, damaged).names(names)

    def settle(self, id: str, parent: str) -> None:
        """id is whole, and stands on parent, which from now on is not mounted writable."""
        self._at.settle(parent)

    def recorded(self, id: str) -> None:
        """A layer or mount on disk names id now: it is no longer kept from cleanup()."""
        self._at.recorded(id)

    def exists(self, id: str) -> bool:
        """Say whether the directory is there."""
        return self._at.exists(id)

    def remove(self, id: str) -> None:
        """Remove a directory and its link, whatever is mounted in it; fine if it is gone."""
        if not id:
            raise ValueError("refusing to remove the directories: id is empty")
        directory = self._at.path(id)
        with self._at.locks.hold(id):
            self._at.forget(id)
            try:
                if is_there(directory):
                    if is_there(self._at.path(id, "merged")):      # there only while mounted
                        self._mounting.unmount_all(id)
                    self._at.remove_tree(id)
                self._mounting.end(id)
                self._classes.forget(id)
            finally:
                self._at.recorded(id)                    # what could not be removed is cleanup()'s

    # ---- mounts ----

    def get(self, id: str, mount_label: str = "", *, read_only: bool = False) -> str:
        """Mount id, or count one user more; gives the path. Raises OSError."""
        return self._mounting.get(id, mount_label, read_only=read_only)

    def put(self, id: str, *, lazy: bool = False) -> None:
        """Count one user less; unmount at zero. Harmless without a get(). Raises ActiveMountError."""
        self._mounting.put(id, lazy=lazy)

    def holders(self, id: str) -> list[Holder]:
        """List who is inside id."""
        return self._mounting.holders(id)

    def ask(self, marks: Marks, recorded: Callable[[str], Recorded | None]) -> None:
        """Begin to ask the store what it knows of ids.

        marks      boxes that were detached while somebody was inside
        recorded   what the record of a layer says
        """
        self._mounting.marks, self._classes.recorded = marks, recorded

    def cleanup(self) -> None:
        """Unmount everything below home that no other store uses."""
        self._mounting.cleanup()

    # ---- contents ----

    def _where_to_probe(self) -> str:
        """A directory to mount overlays in. What is asked there is the kernel's to answer, not the file system's."""
        return tempfile.gettempdir() if self._read_only else self.home

    def _native_works(self) -> bool:
        if self._native is None:
            why = checks.native_diff_problem(self._where_to_probe())
            if why:
                text = "Not using native diff for overlay2, this may cause degraded performance for building images: %s"
                log.warning(text, why, extra={"directory": self.home})
            self._native = not why
        return self._native

    def _is_native(self, id: str, parent: str) -> bool:
        """Is parent what id stands on, so that id's own directory is the difference?"""
        items = self._at.lower_items(id)
        if items and parent:
            try:
                target = _files.readlink(os.path.join(self.home, items[0]))
            except OSError:
                return False
            return target == f"../{parent}/diff" and self._native_works()
        return not items and not parent and self._native_works()

    def register(self, id: str, parent: str, record_fd: int, feed: Callable[[Any], None]) -> Any:
        """Unpack a layer tar into id and record it: the core's Applied."""
        home = self._at.path(id)
        with opened(home) as scratch, opened("diff", dir_fd=scratch) as root, placing(os.path.join(home, "diff")):
            done = self._apply(_apply.Apply(root, record_fd, scratch, flags=self._marks(id), limits=self._limits), feed)
            if parent:
                self._settle_on(id, root, done)
            return done

    def _marks(self, id: str) -> int:
        """Which marks are written to id."""
        if self.userxattr:
            return _apply.USERNS
        return _apply.USERXATTR if self._classes.is_user(id) else 0

    def apply_diff(self, id: str, parent: str, feed: Callable[[Any], None]) -> int:
        """Unpack a tar over what a writable layer shows; gives the bytes of its own files then.

        Through the mount: the kernel puts the marks, and who has it mounted sees all of it.
        """
        with self._mounting.mounted(id) as root, placing(self._at.path(id, "diff")):
            flags = _apply.MERGED | _apply.NO_DRAIN | self._marks(id)
            refuse_nothing(self._apply(_apply.Apply(root, flags=flags, limits=self._limits), feed))
        return self.diff_size(id, parent)

    @staticmethod
    def _apply(apply: _apply.Apply, feed: Callable[[Any], None]) -> Any:
        try:
            feed(apply)
            done = apply.finish()
        finally:
            apply.close()
        if done.left_out:
            first = readable(os.fsdecode(done.first_left_out))
            text = "%d devices are left out, as a user namespace cannot make any: the first is %s; verify() tells all"
            log.warning(text, done.left_out, first, extra={"left_out": done.left_out, "path": first})
        return done

    def stored_tar(self, id: str, record_fd: int, diff_id: bytes) -> TarStream:
        """Give the recorded tar again."""
        with self._at.opened_diff(id) as root:
            return TarStream(_tarstream.assemble(record_fd, root, diff_id), seekable=True)

    def open_file(self, id: str, path: str, size: int) -> int:
        """Open a recorded file of id for reading, beneath its directory, through no link. Raises CorruptLayerError."""
        with self._at.opened_diff(id) as root:
            return _listing.open_file(root, path, size)

    def check(
        self, id: str, record_fd: int, diff_id: bytes, report: Callable[[int], None] | None = None, *,
        metadata: bool = True,
    ) -> list[tuple[str, str, str]]:  # fmt: skip
        """Compare id's directory with the record: (kind, path, sentence).

        report     hears of bytes looked at
        metadata   compare more than presence and bytes
        """
        flags = _tarstream.CHECK_METADATA if metadata else 0
        user = self._classes.is_user(id)
        flags |= _tarstream.CHECK_USERNS if user or checks.in_user_namespace() else 0
        flags |= _tarstream.CHECK_USERXATTR if user else 0
        with self._at.opened_diff(id) as root, contextlib.ExitStack() as stack:
            lowers: list[int] = []
            with contextlib.suppress(OSError, LayerStoreError):     # told by problems(); every mark is needed then
                lowers = [stack.enter_context(opened(path)) for path in self._at.lower_dirs(id)]
            return _tarstream.check(record_fd, root, diff_id, report, lowers, flags)

    def diff(self, id: str, parent: str, *, read_only: bool = False, flags: int = 0) -> TarStream:
        """Make a fresh tar of the difference to parent ("" = nothing), after a look at all that will go into it.

        read_only   id must not be written to
        flags       _tarstream.EXPORT_KEEP, EXPORT_SKIP_MARKS
        Raises      BreakoutError       a name would be a mark in the tar
                    NotSupportedError   a mark says what only a mount can tell, and this host's mount cannot
        """
        if self._is_native(id, parent):
            marks = _tarstream.EXPORT_OVERLAY | (_tarstream.EXPORT_USERXATTR if self._classes.view(id, ()) else 0)
            try:
                with self._at.opened_diff(id) as root:
                    return self._looked_over(_tarstream.export_tree(root, flags | marks))
            except NotSupportedError as why:
                with self._shown(id, parent, why) as root, self._shown(id, parent, why, below=True) as below:
                    changes = _changes.compare_trees(root, below, attributes=True, touched=True)
                    return self._looked_over(_tarstream.export_changes(root, changes, flags))
        path = self.get(id, read_only=read_only)
        try:
            with opened(path) as root:
                return self._looked_over(self._difference(root, parent, flags), lambda: self._mounting.done(id))
        except BaseException:
            self._mounting.done(id)
            raise

    def _difference(self, root: int, parent: str, flags: int) -> _tarstream.Source:
        """A fresh tar of the difference of a mounted tree to parent."""
        if not parent:
            return _tarstream.export_tree(root, flags)
        with self._mounting.mounted(parent, read_only=True) as below:
            return _tarstream.export_changes(root, _changes.compare_trees(root, below, attributes=True), flags)

    @staticmethod
    def _looked_over(source: _tarstream.Source, on_close: Callable[[], None] | None = None) -> TarStream:
        try:
            source.size()                 # what cannot be told, or must not go out, is met before the first byte
        except BaseException:
            source.close()
            raise
        return TarStream(source, seekable=False, on_close=on_close)

    def _shown(self, id: str, parent: str, why: NotSupportedError, *, below: bool = False) -> Scope[int]:
        """A descriptor of what id, or what lies below it, shows to a mount that follows every mark.

        Raises why where there is none.
        """
        if not parent or self._classes.view(id, ()):      # with user.* marks the kernel follows none
            raise why
        if self._read_only:
            text = f"{ReadOnlyStoreError.text}: nothing is mounted in it"
            raise ReadOnlyStoreError(text, path=self._at.path(id)) from why
        return checks.shown(self.home, [*([] if below else [f"{id}/diff"]), *self._at.lower_items(id)], why)

    def diff_size(self, id: str, parent: str) -> int:
        """Count the bytes of id's own files."""
        with self._at.opened_diff(id) as root:
            return _changes.tree_size(root)

    def changes(self, id: str, parent: str) -> list[Change]:
        """List what differs from parent."""
        kinds = list(ChangeKind)
        with contextlib.ExitStack() as stack:
            if self._is_native(id, parent) and parent:
                upper = stack.enter_context(self._at.opened_diff(id))
                if _files.is_empty(upper):
                    return []
                lowers = [stack.enter_context(opened(path)) for path in self._at.lower_dirs(id)]
                userxattr = self._classes.view(id, self._at.lower_ids(self._at.lower_items(id)))
                try:
                    return _changes.compare_overlay(upper, lowers, userxattr).to_list(Change, kinds)
                except NotSupportedError as err:
                    new = stack.enter_context(self._shown(id, parent, err))
                    old = stack.enter_context(self._shown(id, parent, err, below=True))
                return _changes.compare_trees(new, old).to_list(Change, kinds)
            new = stack.enter_context(self._mounting.mounted(id))
            old = stack.enter_context(self._mounting.mounted(parent, read_only=True)) if parent else -1
            return _changes.compare_trees(new, old).to_list(Change, kinds)

    # ---- what it says of itself ----

    def metadata(self, id: str) -> dict[str, str]:
        """Name id's directories. Raises FileNotFoundError."""
        os.stat(self._at.path(id))
        found = {key: self._at.path(id, name) for key, name in _DIRECTORIES}
        lowers = self._at.lower_dirs(id)
        if lowers:
            found["LowerDir"] = ":".join(lowers)
        return found

    def status(self) -> list[tuple[str, str]]:
        """Ordered pairs, as `docker info` shows them."""
        def truth(value: bool) -> str:
            return "true" if value else "false"

        typed = mounts.dirents_typed(self.home) if self._read_only else checks.has_d_type(self.home)

        return [
            ("Backing Filesystem", checks.fs_name(self.home)),
            ("Supports d_type", truth(typed)),
            ("Using metacopy", truth(checks.uses_metacopy(self._where_to_probe()))),
            ("Native Overlay Diff", truth(self._native_works())),
            ("userxattr", truth(self.userxattr)),
        ]

    def standing(self, id: str, below: Sequence[str]) -> list[tuple[str, str]]:
        """Compare id's small files with what they must be: (kind, sentence). below: the ids of all it stands on."""
        return self._at.problems(id, below)

    def problems(self, id: str, below: Sequence[str]) -> list[tuple[str, str]]:
        """Say what is wrong of id beside its contents: its small files, as standing() has it, and its marks."""
        found = self._at.problems(id, below)
        with contextlib.suppress(OSError):                # what is gone is told
            marks = self._classes.problem(id)
            found += [("metadata", marks)] if marks else []
        return found

    def stands_on(self, id: str) -> list[str]:
        """Tell the ids that id's own files say it stands on, nearest first. Raises OSError, InvalidMetadataError."""
        return self._at.lower_ids(self._at.lower_items(id))

    # ---- keeping house ----

    def usage(self, name: str) -> int:
        """Count the bytes of the files below one of orphans(): 0 for a link."""
        return self._unowned.usage(name)

    def orphans(self, owned: Callable[[], Iterable[str]]) -> list[str]:
        """Name the directories and links below home that belong to nobody."""
        return self._unowned.names(owned)

    def reclaim(self, owned: Callable[[], Iterable[str]]) -> None:
        """Remove every directory and link that belongs to nobody."""
        self._unowned.reclaim(owned, self.remove)

    def sync(self, ids: Iterable[str], durability: Durability, *, everything: bool = False) -> bool:
        """Put what was made on the disk, before it becomes visible; True: all of the file system. See Directories."""
        return self._at.sync(ids, durability, everything=everything)
