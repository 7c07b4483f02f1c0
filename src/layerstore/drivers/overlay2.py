"""overlay2: one directory a layer, chained by short links, mounted as an overlay and counted.

    <home>/l/<26 letters> -> ../<id>/diff
    <home>/<id>/{diff,link,lower,work,merged,committed}
Source: moby, daemon/graphdriver/overlay2
"""

from __future__ import annotations

import base64
import contextlib
import errno
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from layerstore import _apply, _changes, _tarstream
from layerstore.drivers import checks, mounts
from layerstore.drivers.quota import ProjectQuota
from layerstore.errors import InvalidOptionError, LayerStoreError, MaxDepthExceededError, NotSupportedError
from layerstore.ids import is_driver_id
from layerstore.locks import NamedLocks
from layerstore.tarstream import TarStream
from layerstore.textfile import read_small, replace_small, trimmed
from layerstore.values import Change, ChangeKind

log = logging.getLogger("layerstore")

MAX_LOWERS = 128
LINKS = "l"
_LINK = re.compile(r"\.\./([^/]+)/diff")
_SIZE = re.compile(r"(-?[0-9.]+) ?([A-Za-z]*)")
_UNITS = {"": 1, "b": 1, **{u + s: 1024 ** (i + 1) for i, u in enumerate("kmgtp") for s in ("", "b", "ib")}}


def human_size(text: str) -> int:
    """Read a size such as 10M or 1.5g (1024-based). Raises InvalidOptionError."""
    found = _SIZE.fullmatch(text.strip())
    try:
        number = float(found[1]) if found else -1.0
    except ValueError:
        number = -1.0
    if found is None or number < 0:
        raise InvalidOptionError(f"invalid size: '{text}'")
    if found[2].lower() not in _UNITS:
        raise InvalidOptionError(f"invalid suffix: '{found[2]}'")
    return int(number * _UNITS[found[2].lower()])


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """A directory's descriptor for the length of a `with` block."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _make(path: str, mode: int, exist_ok: bool = True) -> None:
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not exist_ok:
            raise
    if os.stat(path).st_mode & 0o7777 != mode:
        os.chmod(path, mode)


class Overlay2:
    """The overlay2 driver below one home."""

    name = "overlay2"

    def __init__(self, home: str, options: Mapping[str, str]) -> None:
        """Check the host, make the home. Raises NotSupportedError, InvalidOptionError, OSError."""
        self.home = home
        self._default_size = 0
        for key, value in options.items():
            if key.strip().lower() != "overlay2.size":
                raise InvalidOptionError(f"overlay2: unknown option {key.strip().lower()}")
            self._default_size = human_size(value.strip())
        where = home if os.path.isdir(home) else os.path.dirname(home)
        try:
            checks.probe_overlay(where)
        except OSError as err:
            raise NotSupportedError(f"error initializing graphdriver: driver not supported: overlay2 ({err})") from err
        if not checks.has_d_type(where):
            raise NotSupportedError(
                f"overlay2: the backing {checks.fs_name(where)} filesystem is formatted without d_type support, "
                "which leads to incorrect behavior. Backing filesystems without d_type support are not supported."
            )
        _make(home, 0o710)
        _make(os.path.join(home, LINKS), 0o700)
        self.userxattr = checks.needs_userxattr(home)
        self._index_off = checks.index_parameter_exists()
        self._locks = NamedLocks()
        self._counts: dict[str, int] = {}
        self._guard = threading.Lock()
        self._native: bool | None = None
        self._quota: ProjectQuota | None = None
        if checks.fs_name(home) == "xfs":
            with contextlib.suppress(NotSupportedError):
                self._quota = ProjectQuota(home)
        if self._default_size and self._quota is None:
            found = checks.fs_name(home)
            if found == "xfs":
                raise NotSupportedError("Storage option overlay2.size not supported. Filesystem does not support Project Quota")
            raise NotSupportedError(f"Storage Option overlay2.size only supported for backingFS XFS. Found {found}")

    def _dir(self, id: str, *parts: str) -> str:
        if id in ("", ".", "..", LINKS) or "/" in id or "\0" in id:
            raise LayerStoreError(f"{id!r} is no id of a layer's directory")
        return os.path.join(self.home, id, *parts)

    # ---- life of a directory ----

    def create(self, id: str, parent: str) -> None:
        """Make the directory of a read-only layer."""
        self._create(id, parent, {})

    def create_read_write(self, id: str, parent: str, storage_opt: Mapping[str, str] | None) -> None:
        """Make the directory of a writable layer. Raises InvalidOptionError, NotSupportedError."""
        options = {key.lower(): value for key, value in (storage_opt or {}).items()}
        if "size" not in options and self._default_size:
            options["size"] = str(self._default_size)
        for key in options:
            if key != "size":
                raise InvalidOptionError(f"Unknown option {key}")
        if "size" in options and self._quota is None:
            raise NotSupportedError("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
        self._create(id, parent, options)

    def _create(self, id: str, parent: str, options: Mapping[str, str]) -> None:
        directory = self._dir(id)
        _make(directory, 0o710)
        link = ""
        try:
            size = human_size(options["size"]) if "size" in options else 0
            if size and self._quota:
                self._quota.limit(directory, size)
            _make(self._dir(id, "diff"), 0o755)
            link = base64.b32encode(secrets.token_bytes(17)).decode()[:26]
            os.symlink(f"../{id}/diff", os.path.join(self.home, LINKS, link))
            replace_small(self._dir(id, "link"), link.encode(), 0o644, sync=False)
            if not parent:
                return
            _make(self._dir(id, "work"), 0o700)
            lower = f"{LINKS}/{trimmed(read_small(self._dir(parent, 'link')))}"
            with contextlib.suppress(FileNotFoundError):
                lower += ":" + trimmed(read_small(self._dir(parent, "lower")))
            if lower.count(":") + 1 > MAX_LOWERS:
                raise MaxDepthExceededError()
            replace_small(self._dir(id, "lower"), lower.encode(), 0o644, sync=False)
        except BaseException:
            if link:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self.home, LINKS, link))
            self._remove_tree(id)
            raise

    def settle(self, id: str, parent: str) -> None:
        """Something stands on parent from now on: it is no longer mounted writable."""
        if parent:
            replace_small(self._dir(parent, "committed"), b"", 0o600, sync=False)

    def exists(self, id: str) -> bool:
        """Say whether the directory is there."""
        return os.path.isdir(self._dir(id))

    def _remove_tree(self, id: str) -> None:
        with opened(self.home) as home:
            for attempt in range(50):
                try:
                    _changes.remove_tree(home, id)
                    return
                except OSError as err:
                    if err.errno not in (errno.EBUSY, errno.ENOTEMPTY) or attempt == 49:
                        raise
                    mounts.unmount_below(self._dir(id))
                    time.sleep(0.1 if attempt else 0)

    def remove(self, id: str) -> None:
        """Remove a directory and its link, whatever is mounted in it; fine if it is gone."""
        if not id:
            raise ValueError("refusing to remove the directories: id is empty")
        self._dir(id)
        with self._locks.hold(id):
            with contextlib.suppress(OSError, LayerStoreError):
                link = trimmed(read_small(self._dir(id, "link")))
                if link and "/" not in link:
                    os.unlink(os.path.join(self.home, LINKS, link))
            if not os.path.lexists(self._dir(id)):
                return
            mounts.unmount_below(self._dir(id))
            self._remove_tree(id)
            with self._guard:
                self._counts.pop(self._dir(id, "merged"), None)

    # ---- mounts ----

    def _lower_items(self, id: str) -> list[str]:
        try:
            return trimmed(read_small(self._dir(id, "lower"))).split(":")
        except FileNotFoundError:
            return []

    def lower_dirs(self, id: str) -> list[str]:
        """Absolute diff directories below id, nearest first."""
        return [
            os.path.normpath(os.path.join(self.home, LINKS, os.readlink(os.path.join(self.home, item))))
            for item in self._lower_items(id)
        ]

    def _count(self, path: str, step: int) -> int:
        with self._guard:
            if path not in self._counts:
                self._counts[path] = 1 if mounts.is_overlay(path) else 0
            self._counts[path] += step
            count = self._counts[path]
            if count <= 0:
                del self._counts[path]
            return count

    def get(self, id: str, mount_label: str = "", *, read_only: bool = False) -> str:
        """Mount id, or count one user more; gives the path. Raises OSError."""
        with self._locks.hold(id):
            os.stat(self._dir(id))
            lowers = self._lower_items(id)
            if not lowers:
                return self._dir(id, "diff")
            merged = self._dir(id, "merged")
            if self._count(merged, 1) > 1:
                return merged
            try:
                _make(merged, 0o700)
                writable = not read_only and not os.path.exists(self._dir(id, "committed"))
                mounts.mount_overlay(
                    self.home, f"{id}/merged",
                    lowers if writable else [f"{id}/diff", *lowers],
                    f"{id}/diff" if writable else None,
                    f"{id}/work" if writable else None,
                    context=mount_label, index_off=self._index_off, userxattr=self.userxattr,
                )  # fmt: skip
            except BaseException:
                if self._count(merged, -1) <= 0:
                    with contextlib.suppress(OSError):
                        mounts.unmount(merged, 0)
                    with contextlib.suppress(OSError):
                        os.rmdir(merged)
                raise
            return merged

    def put(self, id: str) -> None:
        """Count one user less; unmount at zero. Harmless without a get()."""
        with self._locks.hold(id):
            if not self._lower_items(id):
                return
            merged = self._dir(id, "merged")
            if self._count(merged, -1) > 0:
                return
            with contextlib.suppress(OSError):
                mounts.unmount(merged)
            with contextlib.suppress(OSError):
                os.rmdir(merged)

    @contextlib.contextmanager
    def _mounted(self, id: str, *, read_only: bool = False) -> Iterator[int]:
        path = self.get(id, read_only=read_only)
        try:
            with opened(path) as fd:
                yield fd
        finally:
            self.put(id)

    # ---- contents ----

    def _native_works(self) -> bool:
        if self._native is None:
            why = checks.native_diff_problem(self.home)
            if why:
                log.warning("Not using native diff for overlay2, this may cause degraded performance for building images: %s", why)
            self._native = not why
        return self._native

    def _is_native(self, id: str, parent: str) -> bool:
        try:
            lowers = self.lower_dirs(id)
        except OSError:
            return False
        if not self._native_works():
            return False
        return os.path.dirname(lowers[0]) == self._dir(parent) if lowers and parent else not lowers and not parent

    def register(self, id: str, parent: str, record_fd: int, feed: Callable[[Any], None]) -> Any:
        """Unpack a layer tar into id and record it: the core's Applied."""
        flags = _apply.USERNS if self.userxattr else 0
        with opened(self._dir(id)) as scratch, opened(self._dir(id, "diff")) as root:
            return self._apply(_apply.Apply(root, record_fd, scratch, flags=flags), feed)

    def apply_diff(self, id: str, parent: str, feed: Callable[[Any], None]) -> int:
        """Unpack a tar over a writable layer; gives its size as moby counts it."""
        flags = _apply.NO_DRAIN | (_apply.USERNS if self.userxattr else 0)
        if self._is_native(id, parent):
            with opened(self._dir(id, "diff")) as root:
                return int(self._apply(_apply.Apply(root, flags=flags), feed).size)
        with self._mounted(id) as root:
            return int(self._apply(_apply.Apply(root, flags=flags | _apply.MERGED), feed).size)

    @staticmethod
    def _apply(apply: _apply.Apply, feed: Callable[[Any], None]) -> Any:
        try:
            feed(apply)
            return apply.finish()
        finally:
            apply.close()

    def stored_tar(self, id: str, record_fd: int, diff_id: bytes) -> TarStream:
        """Give the recorded tar again."""
        with opened(self._dir(id, "diff")) as root:
            return TarStream(_tarstream.assemble(record_fd, root, diff_id), seekable=True)

    def check(self, id: str, record_fd: int, diff_id: bytes) -> list[tuple[str, str, str]]:
        """Compare id's files with the record: (kind, path, sentence)."""
        with opened(self._dir(id, "diff")) as root:
            return _tarstream.check(record_fd, root, diff_id)

    def diff(self, id: str, parent: str, *, read_only: bool = False) -> TarStream:
        """Make a fresh tar of the difference to parent ("" = nothing); read_only: id must not be written to."""
        if self._is_native(id, parent):
            flags = _tarstream.EXPORT_OVERLAY | (_tarstream.EXPORT_USERXATTR if self.userxattr else 0)
            with opened(self._dir(id, "diff")) as root:
                return TarStream(_tarstream.export_tree(root, flags), seekable=False)
        path = self.get(id, read_only=read_only)
        try:
            with opened(path) as root:
                if parent:
                    with self._mounted(parent, read_only=True) as below:
                        source = _tarstream.export_changes(root, _changes.compare_trees(root, below))
                else:
                    source = _tarstream.export_tree(root, 0)
            return TarStream(source, seekable=False, on_close=lambda: self.put(id))
        except BaseException:
            self.put(id)
            raise

    def diff_size(self, id: str, parent: str) -> int:
        """Count the bytes of id's own files."""
        with opened(self._dir(id, "diff")) as root:
            return _changes.tree_size(root)

    def changes(self, id: str, parent: str) -> list[Change]:
        """List what differs from parent."""
        kinds = list(ChangeKind)
        with contextlib.ExitStack() as stack:
            if self._is_native(id, parent) and parent:
                upper = stack.enter_context(opened(self._dir(id, "diff")))
                lowers = [stack.enter_context(opened(path)) for path in self.lower_dirs(id)]
                with contextlib.suppress(NotSupportedError):
                    return _changes.compare_overlay(upper, lowers, self.userxattr).to_list(Change, kinds)
            new = stack.enter_context(self._mounted(id))
            old = stack.enter_context(self._mounted(parent, read_only=True)) if parent else -1
            return _changes.compare_trees(new, old).to_list(Change, kinds)

    # ---- what it says of itself ----

    def metadata(self, id: str) -> dict[str, str]:
        """Name id's directories. Raises FileNotFoundError."""
        os.stat(self._dir(id))
        found = {"WorkDir": self._dir(id, "work"), "MergedDir": self._dir(id, "merged"), "UpperDir": self._dir(id, "diff")}
        lowers = self.lower_dirs(id)
        if lowers:
            found["LowerDir"] = ":".join(lowers)
        return found

    def problems(self, id: str, parent: str) -> list[tuple[str, str]]:
        """Compare id's own files with what they must be: (kind, sentence)."""
        found = []
        if not os.path.isdir(self._dir(id, "diff")):
            return [("missing", f"the driver's directory {id}/diff is gone")]
        try:
            link = trimmed(read_small(self._dir(id, "link")))
            if os.readlink(os.path.join(self.home, LINKS, link)) != f"../{id}/diff":
                found.append(("metadata", f"the short link {link} leads elsewhere"))
        except (OSError, LayerStoreError) as err:
            found.append(("missing", f"the short link of {id} cannot be followed: {err}"))
        try:
            lowers = self.lower_dirs(id)
            if (os.path.dirname(lowers[0]) if lowers else "") != (self._dir(parent) if parent else ""):
                found.append(("metadata", f"the lower directories of {id} are not those of its parent"))
        except (OSError, LayerStoreError) as err:
            found.append(("metadata", f"the lower directories of {id} cannot be followed: {err}"))
        return found

    def status(self) -> list[tuple[str, str]]:
        """Ordered pairs, as `docker info` shows them."""
        def truth(value: bool) -> str:
            return "true" if value else "false"

        return [
            ("Backing Filesystem", checks.fs_name(self.home)),
            ("Supports d_type", truth(checks.has_d_type(self.home))),
            ("Using metacopy", truth(checks.uses_metacopy(self.home))),
            ("Native Overlay Diff", truth(self._native_works())),
            ("userxattr", truth(self.userxattr)),
        ]

    def orphans(self, owned: Iterable[str]) -> list[str]:
        """Directories and links below home that belong to none of the ids."""
        keep = set(owned)
        found = []
        with os.scandir(self.home) as entries:
            for entry in entries:
                if is_driver_id(entry.name) and entry.is_dir(follow_symlinks=False) and entry.name not in keep:
                    found.append(entry.name)
        with os.scandir(os.path.join(self.home, LINKS)) as entries:
            for entry in entries:
                target = _LINK.fullmatch(os.readlink(entry.path)) if entry.is_symlink() else None
                if target and target[1] not in keep:
                    found.append(f"{LINKS}/{entry.name}")
        return sorted(found)

    def reclaim(self, owned: Iterable[str]) -> None:
        """Remove every directory and link of nobody."""
        for name in self.orphans(owned):
            if name.startswith(LINKS + "/"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.home, name))
            else:
                self.remove(name)

    def sync(self) -> None:
        """Put all of the home's file system on its disk."""
        mounts.sync_filesystem(self.home)

    def cleanup(self) -> None:
        """Unmount everything below home."""
        failed = mounts.unmount_below(self.home)
        with self._guard:
            self._counts.clear()
        if failed:
            raise failed
