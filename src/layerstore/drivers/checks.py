"""What this host can do: probes with real mounts, each in a directory that is gone afterwards.

A directory on the file system in question comes in; an answer comes out. Answers about a file system
are kept for as long as the process lives, since a store may be opened often.
Source: moby, daemon/graphdriver/overlayutils and overlay2/check.go
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import TypeVar

from layerstore.disk import mounts
from layerstore.disk.locks import Claim, Scope, claim_directory, surely
from layerstore.disk.textfile import remove_directory
from layerstore.errors import NotSupportedError

log = logging.getLogger("layerstore")

FS_NAMES = {
    0x61756673: "aufs",
    0x9123683E: "btrfs",
    0x28CD3D45: "cramfs",
    0xF15F: "ecryptfs",
    0xEF53: "extfs",
    0xF2F52010: "f2fs",
    0x65735546: "fuse",
    0x47504653: "gpfs",
    0x72B6: "jffs2",
    0x3153464A: "jfs",
    0x6969: "nfs",
    0x794C7630: "overlayfs",
    0x858458F6: "ramfs",
    0x52654973: "reiserfs",
    0x517B: "smb",
    0x73717368: "squashfs",
    0x01021994: "tmpfs",
    0xA501FCF5: "vxfs",
    0x58465342: "xfs",
    0x2FC12FC1: "zfs",
}

_T = TypeVar("_T")


def _once_per_file_system(look: Callable[[str], _T]) -> Callable[[str], _T]:
    """Keep what `look` answers of a file system; what it raises is not kept."""
    known: dict[tuple[int, int], _T] = {}

    @functools.wraps(look)
    def looked(where: str) -> _T:
        at = os.stat(where).st_dev, mounts.fs_magic(where)     # the number alone is given again after an unmount
        if at not in known:
            known[at] = look(where)
        return known[at]

    return looked


def fs_name(path: str) -> str:
    """Name the file system at path as moby does; "<unknown>" for one it does not know."""
    return FS_NAMES.get(mounts.fs_magic(path), "<unknown>")


@functools.cache
def in_user_namespace() -> bool:
    """Return True if this process runs in another than the initial user namespace."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as table:
            return [line.split() for line in table] != [["0", "0", "4294967295"]]
    except OSError:
        return False


@functools.cache
def kernel_version() -> tuple[int, int]:
    """Return the running kernel's version, for example (6, 18)."""
    major, minor = os.uname().release.split(".")[:2]
    digits = "".join(char for char in minor if char.isdigit())
    return int(major), int(digits or 0)


_PARAMETERS = "/sys/module/overlay/parameters"


def options_off() -> tuple[str, ...]:
    """Name the mount options that must be given as "off": what a box shows must follow from its directories alone.

    index: two mounts on one lower would exclude each other. redirect_dir, metacopy, where the kernel has them on by
    itself: an upper directory would not hold all of what was changed.
    """
    found = ["index"] if os.path.exists(os.path.join(_PARAMETERS, "index")) else []
    if not in_user_namespace():           # with userxattr both are off, and a conflict to name
        for name in ("redirect_dir", "metacopy"):
            with contextlib.suppress(OSError), open(os.path.join(_PARAMETERS, name), encoding="ascii") as value:
                if value.read().strip() not in ("N", "0"):
                    found.append(name)
    return tuple(found)


_PROBES = re.compile(
    r"(check-overlayfs-support|check-overlayfs-userxattr|check-d-type|metacopy-check|opaque-bug-check|look)[a-z0-9_]{8}"
)


# What keeps others from taking a probe for an abandoned one.
_claims: dict[str, Claim | None] = {}


def _probe_directory(where: str, prefix: str, *names: str) -> Scope[str]:
    def begin() -> str:
        directory = ""
        claim: Claim | None = None
        try:
            while not claim:              # else another process took the new directory for an abandoned one
                directory = tempfile.mkdtemp(prefix=prefix, dir=where)
                with contextlib.suppress(FileNotFoundError):
                    claim = claim_directory(directory)
            _claims[directory] = claim
            for name in names:
                os.makedirs(os.path.join(directory, name), 0o755)
        except BaseException:
            if directory:
                surely(end, directory)
            raise
        return directory

    def end(directory: str) -> None:
        _remove_probe(directory)
        _claims.pop(directory, None)

    return Scope(begin, end)


def shown(home: str, lowers: Sequence[str], why: NotSupportedError) -> Scope[int]:
    """Return a descriptor of these layers, nearest first, as an overlay that follows every mark shows them; read-only.

    What was opened in it can be read after the block, but directories not be listed.
    Raises  why   the kernel cannot follow marks of renamed directories and of files without their data
    """
    left: list[Scope[str]] = []          # once it is empty all is undone

    def begin() -> int:
        # One layer alone is no overlay, and its whiteouts would be devices: so there is always one more.
        left.append(_probe_directory(home, "look", "merged", "nothing"))
        directory = left[0].__enter__()
        try:
            point, nothing = (os.path.relpath(os.path.join(directory, name), home) for name in ("merged", "nothing"))
            off = [name for name in options_off() if name == "index"]
            mounts.mount_overlay(mounts.Overlay(home, [*lowers, nothing], follow=True, off=off), point)
            return os.open(os.path.join(home, point), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException as err:
            surely(left.pop().__exit__, None, None, None)
            if isinstance(err, OSError):
                raise why from err
            raise

    def end(fd: int) -> None:
        os.close(fd)
        if left:
            left.pop().__exit__(None, None, None)

    return Scope(begin, end)


def _remove_probe(directory: str) -> None:
    mounts.unmount_below(directory)
    with contextlib.suppress(OSError):
        remove_directory(directory)


def remove_abandoned(where: str) -> None:
    """Remove the probes below `where` that a killed process left behind."""
    with os.scandir(where) as entries:
        found = [e.path for e in entries if _PROBES.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    for directory in found:
        claim = claim_directory(directory, wait=False)
        if claim:
            with claim:
                _remove_probe(directory)


def _mounted(directory: str, *lowers: str, upper: str, userxattr: bool) -> Scope[str]:
    def begin() -> str:
        overlay = mounts.Overlay(directory, lowers, upper, "work", off=options_off(), userxattr=userxattr)
        mounts.mount_overlay(overlay, "merged")
        return os.path.join(directory, "merged")

    return Scope(begin, lambda merged: mounts.unmount(merged, 0))


_TWO_LOWERS = ("lower1", "lower2", "upper", "work", "merged")


@_once_per_file_system
def probe_overlay(where: str) -> None:
    """Mount an overlay with two lowers below `where`.

    Raises  NotSupportedError   the kernel refuses the mount; it says why, and what to do
            OSError             no directory can be made below where: it is read-only, full, or another user's
    """
    with _probe_directory(where, "check-overlayfs-support", *_TWO_LOWERS) as directory:
        try:
            with _mounted(directory, "lower2", "lower1", upper="upper", userxattr=needs_userxattr(where)):
                pass
        except OSError as err:
            remedy = how_to_mount(err.errno, where)
            raise NotSupportedError(f"driver not supported: {err}{f' ({remedy})' if remedy else ''}") from err


def how_to_mount(code: int | None, where: str) -> str:
    """Say what to do when the kernel refuses to mount an overlay below where; "" if there is no advice."""
    container = in_container()
    if code == errno.EPERM and container:
        return ("this container has no right to mount: run it with --privileged, or with --cap-add SYS_ADMIN and "
                "--security-opt apparmor=unconfined; or in a user namespace, where they are allowed: unshare -Urm"
                )  # fmt: skip
    if code == errno.EPERM:
        return "mounting takes root, or a user namespace with mounts of its own: unshare -Urm"
    if code == errno.EACCES:
        return ("a security module forbids the mount: "
                + ("run the container with --security-opt apparmor=unconfined, or with --privileged" if container
                   else "see the kernel's log (dmesg) for what AppArmor or SELinux denied"))  # fmt: skip
    if code == errno.ENODEV:
        return "this kernel has no overlay: modprobe overlay"
    if code == errno.EINVAL:
        found = fs_name(where)
        if found == "overlayfs":
            return ("the store would be on the root of a container, an overlay, which cannot hold another one: "
                    "put it on a volume (docker run -v layers:/var/lib/layerstore), or name another place")  # fmt: skip
        return f"no overlay can be written to on {found}: put the store on ext4, xfs, btrfs or tmpfs"
    return ""


def in_container() -> bool:
    """Return True if this process seems to run in a container: its managers leave one of these marks."""
    marks = ("/.dockerenv", "/run/.containerenv")
    return "container" in os.environ or any(os.path.exists(mark) for mark in marks)


@functools.cache
def needs_userxattr(where: str) -> bool:
    """Return True if mounts need `userxattr`: in a user namespace, if the kernel knows it."""
    if not in_user_namespace():
        return False
    if kernel_version() >= (5, 11):
        return True
    with contextlib.suppress(OSError), _probe_directory(where, "check-overlayfs-userxattr", *_TWO_LOWERS) as directory:
        with _mounted(directory, "lower2", "lower1", upper="upper", userxattr=True):
            return True
    return False


@_once_per_file_system
def has_d_type(where: str) -> bool:
    """Return True if directories list the types of their entries, which overlay relies on."""
    with _probe_directory(where, "check-d-type", "find-d_type") as directory:
        return mounts.dirents_typed(directory)


@_once_per_file_system
def uses_metacopy(where: str) -> bool:
    """Return True if a chmod through the mount copies the metadata alone. Only the status reports it."""
    userxattr = needs_userxattr(where)
    attribute = ("user" if userxattr else "trusted") + ".overlay.metacopy"
    try:
        names = ("l1", "l2", "work", "merged")
        with _probe_directory(where, "metacopy-check", *names) as directory:
            path = os.path.join(directory, "l1", "f")
            with open(path, "wb") as file:
                file.write(b"\xff")
                os.fchmod(file.fileno(), 0o700)
            with _mounted(directory, "l1", upper="l2", userxattr=userxattr):
                os.chmod(os.path.join(directory, "merged", "f"), 0o600)
            return _attribute(os.path.join(directory, "l2", "f"), attribute) is not None
    except OSError as err:
        text = "Unable to detect whether overlay kernel module supports metacopy: %s"
        log.warning(text, err, extra={"directory": where, "error": err})
        return False


def native_diff_problem(where: str) -> str | None:
    """Say why a layer's difference cannot be read off its upper directory; None when it can.

    Done with a real mount, since a kernel may copy opaque marks up or redirect renamed directories.
    """
    userxattr = needs_userxattr(where)
    if in_user_namespace() and not userxattr:
        return "native diff is not supported in user namespace, consider updating to kernel 5.11 or later to fix"
    prefix = "user" if userxattr else "trusted"
    names = ("l1/d", "l1/d1", "l2/d", "l3", "work", "merged")
    try:
        with _probe_directory(where, "opaque-bug-check", *names) as directory:
            os.setxattr(os.path.join(directory, "l2", "d"), f"{prefix}.overlay.opaque", b"y")
            merged = os.path.join(directory, "merged")
            with _mounted(directory, "l2", "l1", upper="l3", userxattr=userxattr):
                with open(os.path.join(merged, "d", "f"), "wb"):
                    pass
                if _attribute(os.path.join(directory, "l3", "d"), f"{prefix}.overlay.opaque") == b"y":
                    return "opaque flag erroneously copied up, consider updating to kernel 4.8 or later to fix"
                try:
                    os.rename(os.path.join(merged, "d1"), os.path.join(merged, "d2"))
                except OSError as err:
                    if err.errno == errno.EXDEV:
                        return None
                    raise
                redirect = _attribute(os.path.join(directory, "l3", "d2"), f"{prefix}.overlay.redirect")
                return "kernel has CONFIG_OVERLAY_FS_REDIRECT_DIR enabled" if redirect == b"d1" else None
    except OSError as err:
        return str(err)


def _attribute(path: str, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name)
    except OSError as err:
        if err.errno == errno.ENODATA:
            return None
        raise
