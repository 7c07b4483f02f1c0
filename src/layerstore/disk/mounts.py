"""The mount calls: overlay mounts by the new mount API or by mount(2), and unmounting.

A driver's home and paths relative to it come in; a mount, or an OSError with the kernel's own reason,
comes out. Layers are named by their short links l/<name>, absolute where that fits and relative to the
home otherwise: mount(2) takes one page of text for all options, fsconfig 255 bytes an option.
The C side is ext/core/mount.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from layerstore._core._mount import ffi, lib
from layerstore.disk.textfile import naming
from layerstore.errors import from_core

log = logging.getLogger("layerstore")

OVERLAY_MAGIC: Final = 0x794C7630
MNT_DETACH: Final = 2

# "new": fsopen and friends alone; "old": mount(2) alone; else the new way, then the old one.
API_VARIABLE = "LAYERSTORE_MOUNT_API"

_OPTION_LIMIT = 255  # fsconfig(2) takes 256 bytes with the NUL
# What would need quoting in one of the option languages; such a home is only named relatively.
_AWKWARD = re.compile(r"[\\,:\"\s]")


def call(function: Any, *args: Any) -> None:
    """Call a function of the core that takes a lay_error last. Raise what the error says."""
    err = ffi.new("lay_error *")
    if function(*args, err):
        raise from_core(err.code, err.sys_errno, err.offset, ffi.string(err.path), os.fsdecode(ffi.string(err.text)))


def _ask(kind: str, function: Any, *args: Any) -> int:
    """Return the one answer of a function of the core. Raise what its error says."""
    answer = ffi.new(kind)
    call(function, *args, answer)
    return int(answer[0])


def _go_quoted(text: str) -> str:
    """Quote text as Go's %q does."""
    short = dict(zip('\a\b\f\n\r\t\v\\"', 'abfnrtv\\"', strict=True))
    out = []
    for char in text:
        if char in short:
            out.append("\\" + short[char])
        elif char.isprintable():
            out.append(char)
        else:
            code = ord(char)
            out.append(f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return f'"{"".join(out)}"'


def _text_of(fields: dict[str, Any]) -> bytes:
    """Return the option text of mount(2) for the fields of a lay_overlay."""
    parts = [f"{name}=off" for name in fields["off"]]
    if fields["userxattr"]:
        parts.append("userxattr")
    if fields["is_volatile"]:
        parts.append("volatile")
    if fields["is_apart"]:
        parts.append("xino=auto")
    if fields["follow"]:
        parts.append("metacopy=on,redirect_dir=follow")
    parts.append("lowerdir=" + ":".join(fields["lowers"]))
    if fields["upper"] is not None:
        parts.append(f"upperdir={fields['upper']},workdir={fields['work']}")
    if fields["context"]:
        parts.append("context=" + _go_quoted(fields["context"]))
    return os.fsencode(",".join(parts))


def _overlay(alive: list[Any], **fields: Any) -> Any:
    """Return a lay_overlay with these fields. cffi frees what is not referenced: it lives as long as alive."""

    def c(value: Any) -> Any:
        if isinstance(value, (str, bytes)):
            value = ffi.new("char[]", os.fsencode(value))
        elif isinstance(value, Sequence):
            value = ffi.new("char *[]", [c(each) for each in value])
        alive.append(value)
        return value

    return ffi.new("lay_overlay *", {key: c(value) for key, value in fields.items() if value})


def _mount(**fields: Any) -> None:
    """Mount what a lay_overlay with these fields says. Raises OSError, with the kernel's own reason if it gave one."""
    alive: list[Any] = []
    call(lib.lay_mount_overlay, _overlay(alive, **fields))


class Overlay(NamedTuple):
    """What an overlay is made of. Every path is relative to home."""

    home: str
    """An absolute directory."""
    lowers: Sequence[str]
    """Nearest first, at least one."""
    upper: str | None = None
    """With work: the writable layer; None: read-only."""
    work: str | None = None
    context: str = ""
    """SELinux label for all of the mount, or ""."""
    off: Sequence[str] = ()
    """Names of options that are given as "off"."""
    userxattr: bool = False
    follow: bool = False
    """Marks of renamed directories and of files without their data are followed."""
    is_volatile: bool = False
    """Nothing that is written is ever synced."""
    is_apart: bool = False
    """Its layers lie on several file systems. Its files have its own device all the same, by which they are found."""

    def fields(self, *, relative: bool) -> dict[str, Any]:
        """Return the fields of a lay_overlay."""
        base = "" if relative else self.home + "/"
        return {
            "lowers": [base + lower for lower in self.lowers], "n_lowers": len(self.lowers),
            "off": self.off, "n_off": len(self.off),
            "upper": None if self.upper is None else base + self.upper,
            "work": None if self.work is None else base + self.work,
            "context": self.context, "userxattr": self.userxattr, "follow": self.follow,
            "is_volatile": self.is_volatile, "is_apart": self.is_apart,
        }  # fmt: skip

    def is_awkward(self) -> bool:
        """Return True if home can be named relatively only."""
        return bool(_AWKWARD.search(self.home))

    def must_be_relative(self) -> bool:
        """Return True if an absolute path of it is too long for fsconfig, or awkward."""
        longest = max(len(os.fsencode(path)) for path in (*self.lowers, self.upper or "", self.work or ""))
        return self.is_awkward() or len(os.fsencode(self.home)) + 1 + longest > _OPTION_LIMIT

    def check(self, target: str) -> None:
        """Raise ValueError for what is no path."""
        if any("\0" in text for text in (self.home, target, self.context, *self.lowers)):
            raise ValueError("embedded null byte in a mount option")


def _api() -> str:
    return os.environ.get(API_VARIABLE) or "auto"


def mount_overlay(overlay: Overlay, target: str, *, api: str | None = None) -> None:
    """Mount an overlay.

    target   relative to the overlay's home
    api      "new", "old" or "auto"; None: what LAYERSTORE_MOUNT_API says, else "auto"

    Raises   OSError   with the kernel's errno, its own reason where it gave one, and the target
    Source   moby, daemon/graphdriver/overlay2: overlay.go and mount.go
    """
    api = api or _api()
    home = overlay.home
    shown = os.path.join(home, target)
    overlay.check(target)

    def mount(*, relative: bool, **request: Any) -> None:
        _mount(home=home if relative else None, target=target if relative else shown, **request)

    reason = ""
    if api != "old":
        relative = overlay.must_be_relative()
        try:
            mount(relative=relative, **overlay.fields(relative=relative))
            return
        except OSError as err:
            reason = _reason(err)
            # These calls answer so if they are missing or the kernel is older than 6.8; mount(2) knows more.
            if api == "new" or err.errno not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
                raise _refused(err, reason, shown) from None
    limit = os.sysconf("SC_PAGESIZE") - 1
    awkward = overlay.is_awkward()
    data = _text_of(overlay.fields(relative=awkward))
    if relative := awkward or len(data) > limit:
        data = _text_of(overlay.fields(relative=True))
        if len(data) > limit:
            raise OSError(errno.E2BIG, f"cannot mount layer, mount label too large {len(data)}", shown)
    try:
        mount(relative=relative, data=data)
    except OSError as err:
        raise _refused(err, reason, shown) from None


# ---- another mount under a mounted path ----------------------------------------------------------


_kernel_can: list[bool] = []


def can_switch() -> bool:
    """Return True if this kernel can put another mount under a mounted path, and makes any overlay detached (6.8)."""
    if not _kernel_can:
        _kernel_can.append(bool(lib.lay_can_switch()))
    return _api() != "old" and _kernel_can[0]


class Detached:
    """A mount that is attached nowhere, as a descriptor. Without further references it is closed."""

    def __init__(self) -> None:
        self.fd = ffi.new("int *", -1)
        _detached.add(self)

    def fileno(self) -> int:
        """Return the descriptor, or less than 0."""
        return int(self.fd[0])

    def close(self) -> None:
        """Close it: what nothing else uses of it ends, which may take long. Twice is harmless."""
        fd = self.fileno()
        if fd >= 0:
            self.fd[0] = -1
            with contextlib.suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        self.close()


_detached: weakref.WeakSet[Detached] = weakref.WeakSet()


def _after_fork() -> None:
    """Close in a forked child what its parent is at: a box would be in use by it."""
    for mount in list(_detached):
        mount.close()


os.register_at_fork(after_in_child=_after_fork)


def make_overlay(overlay: Overlay, target: str) -> Detached:
    """Make an overlay that is mounted nowhere. Raises OSError as mount_overlay() does.

    target   names it in errors, relative to the overlay's home
    """
    overlay.check(target)
    relative = overlay.must_be_relative()
    shown = os.path.join(overlay.home, target)
    alive: list[Any] = []
    made = _overlay(alive, home=overlay.home if relative else None, target=shown, **overlay.fields(relative=relative))
    detached = Detached()
    try:
        call(lib.lay_make_overlay, made, detached.fd)
    except OSError as err:
        raise _refused(err, _reason(err), shown) from None
    return detached


def is_used(path: str) -> bool:
    """Return True if something uses the mount at path; its other mounts are not seen. Not for two at once.

    Raises  OSError   EINVAL: nothing is mounted there
    """
    return bool(_ask("int *", lib.lay_mount_is_used, os.fsencode(path)))


class Switch:
    """Another mount in the place of the one at a path: what became of it, also where an interrupt comes into it."""

    def __init__(self) -> None:
        self.old = Detached()
        """Keeps the file system of the old mount, once it is switched away from."""
        self._done, self._busy = ffi.new("int *"), ffi.new("int *")

    def run(self, path: str, mount: Detached, *, lazy: bool) -> bool:
        """Switch to a detached mount. Return False if the old one is used, and still there. Raises OSError.

        lazy   switch also while it is used
        """
        place = os.fsencode(path)
        call(lib.lay_switch_mount, place, mount.fileno(), lazy, self.old.fd, self._done, self._busy)
        return not self._busy[0]

    @property
    def is_done(self) -> bool:
        """True: path shows the new mount."""
        return bool(self._done[0])


def stop_writes(mount: Detached) -> bool:
    """Make the file system of a mount read-only. Return False if a file in it is open for writing. Raises OSError."""
    return not _ask("int *", lib.lay_stop_writes, mount.fileno())


def _reason(err: OSError) -> str:
    return "" if err.strerror == os.strerror(err.errno or 0) else f" ({err.strerror})"


def _refused(err: OSError, reason: str, target: str) -> OSError:
    code = err.errno or 0
    return OSError(code, f"error creating overlay mount to {target}: {os.strerror(code)}{reason}", target)


def unmount(path: str, flags: int = MNT_DETACH) -> None:
    """Unmount what is mounted at path. Raises OSError (EINVAL where nothing is)."""
    call(lib.lay_umount, os.fsencode(path), flags)


_OCTAL = re.compile(rb"\\([0-7]{3})")


class MountPoint(NamedTuple):
    """One line of a process's mountinfo."""

    device: tuple[int, int]
    root: str
    """What of the file system is mounted there: "/", or a path in it."""
    point: str
    options: str
    """The file system's own."""


def _unescaped(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))


def mount_table(process: str = "self", kind: str = "") -> Iterator[MountPoint]:
    """List the mounts that a process sees, oldest first. Raises OSError.

    kind   only those of this kind of file system
    """
    start = b"%s " % kind.encode() if kind else b""
    path = f"/proc/{process}/mountinfo"
    with naming(path), open(path, "rb") as table:
        for line in table:
            head, _, tail = line.rstrip(b"\n").partition(b" - ")
            if not tail.startswith(start):
                continue
            fields = head.split(b" ", 5)
            major, _, minor = fields[2].partition(b":")
            options = tail.split(b" ", 2)[2] if tail.count(b" ") > 1 else b""
            device = int(major), int(minor)
            yield MountPoint(device, _unescaped(fields[3]), _unescaped(fields[4]), _unescaped(options))


def mounts_below(path: str) -> list[str]:
    """Name the mount points at path and below it, deepest first."""
    top = os.path.realpath(path)
    found = [mount.point for mount in mount_table() if mount.point == top or mount.point.startswith(top + "/")]
    # A later mount covers an earlier one at the same place: the table's order, reversed.
    found.reverse()
    return sorted(found, key=len, reverse=True)


def unmount_below(
    path: str, may_go: Callable[[str], bool] = lambda point: True, end: Callable[[str], None] = unmount
) -> OSError | None:
    """Unmount everything at path and below it, deepest first.

    may_go   says whether a mount point may be unmounted
    end      unmounts one, or raises OSError
    Returns  the last failure, when something is still mounted there afterwards
    """
    last: OSError | None = None
    for point in mounts_below(path):
        if not may_go(point):
            continue
        try:
            end(point)
        except OSError as err:
            last = err
            log.debug("Failed to unmount %s: %s", point, err, extra={"directory": point, "error": err})
    return last if last is not None and mounts_below(path) else None


def fs_magic(path: str) -> int:
    """Return the magic number of the file system at path (statfs). Raises OSError."""
    return _ask("unsigned *", lib.lay_fs_magic, os.fsencode(path))


def is_mounted(path: str) -> bool:
    """Return True if an overlay is mounted at path; False if that is unknown."""
    with contextlib.suppress(OSError):
        return is_mounted_surely(path)
    return False


def is_mounted_surely(path: str) -> bool:
    """Return True if an overlay is mounted at path. Raises OSError if that is unknown."""
    try:
        return fs_magic(path) == OVERLAY_MAGIC and os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except (FileNotFoundError, NotADirectoryError):
        return False


def upper_in_use(upper: str, *, userxattr: bool) -> bool | None:
    """Return True if an overlay writes to this directory: attached or not, in any namespace, or kept by a descriptor.

    None   this kernel does not tell, or not in a user namespace (userxattr), where it takes no file handles
    """
    if userxattr:
        return None
    try:
        return bool(_ask("int *", lib.lay_upper_in_use, os.fsencode(upper)))
    except OSError as err:
        log.debug("Cannot ask whether %s is in use: %s", upper, err.strerror, extra={"directory": upper})
        return None


def mount_id(path: str) -> int:
    """Return the id of the mount at path, which no other mount ever has; 0: the kernel does not tell."""
    return int(lib.lay_mount_id(os.fsencode(path)))


def count_mounts(path: str, device: int, first: int = 0) -> tuple[int, bool]:
    """Count how often a file system is mounted here, and say whether it is mounted in another mount namespace, too.

    path    where one of its mounts is; others that propagation made of that one are left out, if the kernel tells
    first   the id of its first mount, 0 if that is not known: of many mounts, only those made later are looked at then
    """
    here, elsewhere = ffi.new("int *"), ffi.new("int *")
    lib.lay_count_mounts(os.fsencode(path), first, os.major(device), os.minor(device), here, elsewhere)
    numbers = (os.major(device), os.minor(device))
    count = int(here[0])
    if count < 0:                         # before Linux 6.11
        count = sum(mount.device == numbers for mount in mount_table())
    if elsewhere[0] >= 0:
        return count, bool(elsewhere[0])
    return count, any(mount.device == numbers for table in other_tables() for mount in table)


def other_tables() -> Iterator[Iterable[MountPoint]]:
    """List the mounts of each other mount namespace that a process is in."""
    known = {_namespace("self")}
    for name in os.listdir("/proc"):
        space = _namespace(name) if name.isdecimal() else None
        if space is not None and space not in known:
            with contextlib.suppress(OSError):
                table = list(mount_table(name))
                known.add(space)
                yield table


def _namespace(process: str) -> int | None:
    """Return the number of a process's mount namespace; None: it has ended, or access is denied."""
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{process}/ns/mnt").st_ino
    return None


def uses(device: int, ours: Sequence[int] = ()) -> list[tuple[int, str, str]]:
    """List what processes use of a file system: (pid, use, path), as ext/core/mount/inside.h has them.

    ours    descriptors of this process that do not count
    Raises  OSError
    """
    out, size = ffi.new("char **"), ffi.new("size_t *")
    given = ffi.new("int[]", list(ours))
    denied = _ask("int *", lib.lay_uses, os.major(device), os.minor(device), given, len(ours), out, size)
    text = bytes(ffi.buffer(out[0], size[0])) if size[0] else b""
    lib.lay_uses_free(out[0])
    if denied:
        log.debug("%d processes may not be looked into", denied)
    found = []
    for record in text.split(b"\0")[:-1]:
        pid, use, path = record.split(b" ", 2)
        found.append((int(pid), use.decode(), os.fsdecode(path)))
    return found


def sync_filesystem(path: str) -> None:
    """Put everything of the file system that holds path on its disk (syncfs)."""
    call(lib.lay_sync_filesystem, os.fsencode(path))


def dirents_typed(path: str) -> bool:
    """Return True if every entry of the directory is listed with its type (d_type)."""
    return bool(_ask("int *", lib.lay_dirents_typed, os.fsencode(path)))


# ---- project quota ----------------------------------------------------------------------------


def project_of(directory: str) -> int:
    """Read the project id of a directory."""
    return _ask("unsigned *", lib.lay_quota_get_project, os.fsencode(directory))


def set_project(directory: str, project: int) -> None:
    """Set the project id of a directory, inherited by what is made in it."""
    call(lib.lay_quota_set_project, os.fsencode(directory), project)


def set_project_limit(device: str, project: int, size: int) -> None:
    """Limit a project to size bytes, hard and soft."""
    call(lib.lay_quota_set_limit, os.fsencode(device), project, size)


def project_quota_on(device: str) -> bool:
    """Return True if project quotas are counted and enforced on a block device."""
    return bool(_ask("int *", lib.lay_quota_state, os.fsencode(device)))
