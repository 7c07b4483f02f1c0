"""doctor: what this host can do for a store, and what to do about what it cannot.

Nothing is guessed: every answer comes from a try, in a directory that is gone afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import importlib.util
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from layerstore import LayerStoreError, NotSupportedError, Store, build_info
from layerstore._core import _files
from layerstore.cli.exits import Exit, sentence
from layerstore.cli.opening import is_store, nearest, root_of
from layerstore.cli.parser import Commands
from layerstore.cli.screen import Cell, Screen
from layerstore.disk import dockerd, erofs, mounts
from layerstore.disk.locks import OpenDirectory
from layerstore.disk.textfile import remove_directory
from layerstore.documents.references import HUB
from layerstore.drivers import checks
from layerstore.drivers.quota import ProjectQuota
from layerstore.registry import credentials, helpers
from layerstore.running import bubblewrap
from layerstore.sizes import format_size

OK, NOTE, BAD = "ok", "note", "bad"
_STYLES = {OK: "green", NOTE: "yellow", BAD: "red"}
_NAMESPACE = "unshare --user --map-root-user --mount"
_OPENAT2 = 437
_FICLONE = 0x40049409
_LITTLE_SPACE, _FEW_INODES = 1 << 30, 10_000


class Check(NamedTuple):
    """One answer.

    state   "ok"; "note": it goes without; "bad": a store cannot work so
    todo    what to do about it, or ""
    """

    name: str
    state: str
    found: str
    todo: str = ""


def add(commands: Commands) -> None:
    commands.command(
        "doctor", run_doctor, "say what this host can do, and what to do about what it cannot",
        more='"note": it goes without. "bad": a store cannot work so; the exit code is 1 then.',
        examples=["doctor", "--root /srv/layers doctor", "doctor --json"])  # fmt: skip


def run_doctor(args: Any, screen: Screen) -> int:
    found = examine(root_of(args))
    bad = any(check.state == BAD for check in found)
    rows: list[list[Cell]] = []
    for check in found:
        rows.append([check.name, (check.state, _STYLES[check.state]), check.found])
        if check.todo:
            rows.append(["", "", (f"-> {check.todo}", "bold")])
    screen.table(("WHAT", "STATE", "FOUND"), rows, facts=[check._asdict() for check in found])
    if bad and not screen.as_json:
        screen.note("a store cannot work here yet", "red")
    return Exit.FAILED if bad else Exit.OK


def examine(root: str) -> list[Check]:
    """Look at everything; root need not be there."""
    place = nearest(root)
    found = [_kernel(), _rights(), _store(root), _dockerd(root), _space(place)]
    try:
        with room_in(place, "doctor") as room:
            found += [look(room) for look in _TRIES]
    except OSError as err:
        found.append(Check("writing", BAD, sentence(err), "name a directory that you may write to with --root"))
    return [*found, _libraries(), _libarchive(), _bubblewrap(), _rich(), _urllib3(), _credentials()]


@contextlib.contextmanager
def room_in(place: str, what: str) -> Iterator[str]:
    """Create a directory for the length of a `with` block; it is removed with all in it and all mounts below."""
    room = tempfile.mkdtemp(prefix=f"layerstore-{what}-", dir=place)
    try:
        yield room
    finally:
        mounts.unmount_below(room)
        remove_directory(room)


# ---- the host -----------------------------------------------------------------------------------
def _kernel() -> Check:
    release = os.uname().release
    if checks.kernel_version() < (4, 0):
        return Check("kernel", BAD, release, "a kernel from 4.0 on has overlays with many layers")
    if checks.in_user_namespace() and checks.kernel_version() < (5, 11):
        return Check("kernel", BAD, release, "a kernel from 5.11 on mounts overlays in user namespaces; or be root")
    return Check("kernel", OK, release)


def _rights() -> Check:
    if checks.in_user_namespace():
        todo = "owners that are not mapped here cannot be unpacked: map more of them (newuidmap), or be root"
        return Check("rights", NOTE, f"user {os.geteuid()} of a user namespace", todo)
    if os.geteuid() != 0:
        return Check("rights", BAD, f"user {os.geteuid()} has no right to mount", f"be root, or: {_NAMESPACE}")
    return Check("rights", OK, "root")


def _store(root: str) -> Check:
    try:
        there = is_store(root)
    except OSError as err:
        return Check("store", BAD, sentence(err), "run as the owner of the store, or name another one with --root")
    if there:
        return Check("store", OK, root)
    return Check("store", NOTE, f"none at {root} yet", f"layerstore --root {root} init")


def _dockerd(root: str) -> Check:
    database = dockerd.locked_database(root)
    if database is None:
        return Check("dockerd", OK, "none is running on this root")
    return Check("dockerd", NOTE, f"one is running on this root: {database} is locked",
                 "reading works; to change something stop it, or use another root")  # fmt: skip


def _space(place: str) -> Check:
    found = os.statvfs(place)
    free, inodes = found.f_bavail * found.f_frsize, found.f_favail
    shown = f"{format_size(free)} free" + (f", {inodes:,} inodes" if found.f_files else "")
    little = free < _LITTLE_SPACE or (found.f_files and inodes < _FEW_INODES)
    if not little:
        return Check("space", OK, shown)
    todo = "make room, or put the root on another file system; `layerstore gc --dry-run` lists unowned files"
    return Check("space", BAD if free == 0 else NOTE, shown, todo)


# ---- tried in a room of the file system ---------------------------------------------------------
def _file_system(room: str) -> Check:
    name = checks.fs_name(room)
    if name in ("overlayfs", "nfs", "fuse"):
        return Check("file system", BAD, name,
                     "overlays need ext4, xfs, btrfs or a tmpfs; in a container, put the root on a volume")  # fmt: skip
    if name == "tmpfs":
        return Check("file system", NOTE, name, "a tmpfs is empty after a reboot")
    return Check("file system", OK, name)


def _overlay(room: str) -> Check:
    try:
        checks.probe_overlay(room)
    except NotSupportedError as err:
        cause = err.__cause__
        todo = checks.how_to_mount(cause.errno, room) if isinstance(cause, OSError) else ""
        return Check("overlay mounts", BAD, sentence(cause or err), todo)
    except OSError as err:
        return Check("overlay mounts", BAD, sentence(err), "name another place with --root")
    return Check("overlay mounts", OK, "with userxattr" if checks.needs_userxattr(room) else "work")


def _erofs(room: str) -> Check:
    try:
        mode = erofs.probe(room)
    except (NotSupportedError, OSError) as err:
        todo = "layers that are EROFS images can be stored and read here, and not mounted"
        return Check("EROFS mounts", NOTE, f"none: {sentence(err)}", todo)
    if mode == "file":
        return Check("EROFS mounts", OK, "file: images are mounted themselves")
    return Check("EROFS mounts", OK, "loop: images are mounted by loop devices")


def _d_type(room: str) -> Check:
    if checks.has_d_type(room):
        return Check("d_type", OK, "directories tell the types of their entries")
    return Check("d_type", BAD, "directories do not tell the types of their entries",
                 "create the file system again: mkfs.xfs -n ftype=1, or mkfs.ext4 -O filetype")  # fmt: skip


def _xattrs(room: str) -> Check:
    path = os.path.join(room, "xattrs")
    os.mkdir(path)
    names = ["user"] if checks.in_user_namespace() else ["user", "trusted"]
    for name in names:
        try:
            os.setxattr(path, f"{name}.layerstore", b"y")
        except OSError as err:
            todo = "they mark opaque directories" if name == names[-1] else "layers with such attributes are refused"
            return Check("xattrs", BAD if name == names[-1] else NOTE, f"no {name}.*: {os.strerror(err.errno or 0)}",
                         f"{todo}: use ext4, xfs, btrfs, or a tmpfs of a newer kernel")  # fmt: skip
    return Check("xattrs", OK, " and ".join(f"{name}.*" for name in names))


def _whiteouts(room: str) -> Check:
    path = os.path.join(room, "whiteout")
    try:
        os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
    except OSError as err:
        return Check("whiteouts", BAD, f"devices cannot be made: {os.strerror(err.errno or 0)}",
                     "a layer that deletes something needs them: use kernel 5.8 or later, or be root")  # fmt: skip
    return Check("whiteouts", OK, "devices 0:0 can be made")


def _native(room: str) -> Check:
    why = checks.native_diff_problem(room)
    if why is None:
        return Check("changes", OK, "read from the upper directory alone")
    return Check("changes", NOTE, why, "changes() and commit() compare both trees, which takes longer")


def _mount_api(room: str) -> Check:
    for name in ("lower", "upper", "work", "merged"):
        os.makedirs(os.path.join(room, "api", name))
    home = os.path.join(room, "api")
    try:
        userxattr = checks.needs_userxattr(room)
        mounts.mount_overlay(mounts.Overlay(home, ["lower"], "upper", "work", userxattr=userxattr), "merged", api="new")
    except OSError as err:
        if err.errno in (errno.ENOSYS, errno.EINVAL):
            return Check("mount API", NOTE, "mount(2) alone", "nothing to do: kernel 6.8 brings the newer way")
        return Check("mount API", NOTE, sentence(err), "see: overlay mounts")
    mounts.unmount(os.path.join(home, "merged"), 0)
    return Check("mount API", OK, "fsopen(), one directory at a time")


def _openat2(room: str) -> Check:
    import ctypes  # not for every command that starts

    how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_CLOEXEC, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(_OPENAT2, ctypes.c_int(-100), ctypes.c_char_p(os.fsencode(room)), how, ctypes.c_size_t(24))
    if fd < 0:
        why = os.strerror(ctypes.get_errno())
        return Check("openat2", NOTE, why, "paths are followed step by step, which takes longer: use kernel 5.6 or "
                     "later; in a container, a seccomp profile that allows it")  # fmt: skip
    os.close(fd)
    return Check("openat2", OK, "the kernel keeps paths below a layer's root")


def _locks(room: str) -> Check:
    with OpenDirectory(room) as one, OpenDirectory(room) as other:
        try:
            _files.lock_byte(one, _files.SHARED, 1)
            seen = _files.is_byte_locked(other, 1)
        except OSError as err:
            return Check("locks", NOTE, sentence(err), "use the root from one process at a time")
    if seen:
        return Check("locks", OK, "processes see what others hold")
    return Check("locks", NOTE, "processes do not see what others hold", "use the root from one process at a time")


def _quota(room: str) -> Check:
    if checks.fs_name(room) != "xfs":
        return Check("quota", NOTE, "only xfs bounds the size of writable layers",
                     "for `rw create --size`: an xfs mounted with pquota")  # fmt: skip
    home = os.path.join(room, "quota")
    os.mkdir(home)
    try:
        ProjectQuota(home)
    except (NotSupportedError, OSError) as err:
        return Check("quota", NOTE, sentence(err), "for `rw create --size`: mount the xfs with -o pquota")
    return Check("quota", OK, "project quotas")


def _snapshots(room: str) -> Check:
    try:
        with Store(os.path.join(room, "snapshots"), options={"durability": "none"}) as store:
            with store.register(bytes(1024)) as layer, store.create_rw_layer("box", layer) as box, box.mounted():
                box.snapshot(busy="error").release()
    except (LayerStoreError, OSError) as err:
        return Check("snapshots", NOTE, f"a mounted box is copied: {sentence(err)}",
                     "kernel 6.5 switches a mounted box in place; see also: overlay mounts")  # fmt: skip
    return Check("snapshots", OK, "a mounted box is switched in place")


def _reflinks(room: str) -> Check:
    try:
        with open(os.path.join(room, "one"), "w+b") as one, open(os.path.join(room, "other"), "wb") as other:
            one.write(b"x" * 4096)
            one.flush()
            fcntl.ioctl(other, _FICLONE, one.fileno())
    except OSError as err:
        return Check("reflinks", NOTE, os.strerror(err.errno or 0),
                     "a snapshot of a box with processes inside copies files: xfs and btrfs share them")  # fmt: skip
    return Check("reflinks", OK, "files are cloned without a copy")


_TRIES: tuple[Callable[[str], Check], ...] = (
    _file_system, _overlay, _erofs, _d_type, _xattrs, _whiteouts, _native, _mount_api, _openat2, _locks, _quota,
    _snapshots, _reflinks,
)  # fmt: skip


# ---- this build ---------------------------------------------------------------------------------
def _libraries() -> Check:
    found = build_info()
    shown = ", ".join(f"{use}: {library}" for use, library in found.items())
    if "isa-l" not in found.get("gzip", ""):
        return Check("libraries", NOTE, shown, "for faster gzip install libisal-dev and build again")
    if "zstd" not in found or "libzstd" not in found["zstd"]:
        return Check("libraries", NOTE, shown, "for zstd layers install libzstd-dev and build again")
    return Check("libraries", OK, shown)


def _libarchive() -> Check:
    try:
        import libarchive  # noqa: F401
    except (ImportError, OSError, TypeError, AttributeError) as err:
        return Check("libarchive", NOTE, sentence(err), "for layers in bzip2, xz or lz4: apt-get install libarchive13")
    return Check("libarchive", OK, "bzip2, xz and lz4 layers")


def _bubblewrap() -> Check:
    try:
        found = bubblewrap.find()
    except NotSupportedError:
        return Check("bubblewrap", NOTE, "not installed", "for run() and `rw run`: apt-get install bubblewrap")
    return Check("bubblewrap", OK, found)


def _rich() -> Check:
    if importlib.util.find_spec("rich") is None:
        return Check("rich", NOTE, "not installed", "for colours and progress bars: pip install 'layerstore[cli]'")
    return Check("rich", OK, "colours and progress bars")


# ---- registries ---------------------------------------------------------------------------------
def _urllib3() -> Check:
    if importlib.util.find_spec("urllib3") is None:
        return Check("urllib3", NOTE, "not installed", "to pull and push images: pip install 'layerstore[registry]'")
    return Check("urllib3", OK, f"{importlib.metadata.version('urllib3')}, to pull and push images")


def _credentials() -> Check:
    """Say which files with credentials there are, in the order in which they count. No helper is asked."""
    places = [place for place in credentials.sources(HUB) if place.state != "absent"]
    if not places:
        return Check("credentials", OK, "none: registries are asked without a user (docker login, podman login)")
    found = ", then ".join(place.name for place in places)
    for place in places:
        if place.state == "malformed":
            return Check("credentials", NOTE, f"{found}; {place.name} is malformed",
                         "no registry can be used that asks for a user: mend it, or remove it")  # fmt: skip
        if place.helper and not helpers.located(place.helper, os.environ):
            return Check("credentials", NOTE, f"{found}; {place.name} names a helper that is not in PATH",
                         f"install {place.helper}, or remove the helper from the file")  # fmt: skip
    return Check("credentials", OK, found)
