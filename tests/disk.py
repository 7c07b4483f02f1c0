"""What lies on disk, told exactly: for tests that promise "nothing changed" or "this came out".

disk_state(root) sees every path below root with its kind, mode, owner, size, content, link target,
device, link count and extended attributes, following no link. Two states are equal only if the
trees are; changed(before, after) says in lines how they differ.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFCHR: "char", stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket",
}
MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)

OUTSIDE = "what a hostile tar must never touch\n"


def kind_of(mode: int) -> str:
    return KINDS[stat.S_IFMT(mode)]


def digest_of(path, dir_fd: int | None = None) -> str:
    """A regular file's content as a short digest; holes of a huge sparse file are skipped."""
    hashed = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    try:
        size, at = os.fstat(fd).st_size, 0
        while at < size:
            try:
                data = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break
            hole = os.lseek(fd, data, os.SEEK_HOLE)
            for offset in range(data, hole, 1 << 20):
                piece = os.pread(fd, min(1 << 20, hole - offset), offset)
                if piece.strip(b"\0"):
                    hashed.update(b"%d:" % offset + piece)
            at = hole
    finally:
        os.close(fd)
    return hashed.hexdigest()[:16]


def xattrs_of(path) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(names)}


def walk(root):
    """Every path below root and root itself, relative, as bytes, in byte order.

    By descriptors, so that a tree deeper than PATH_MAX is walked too; yields (name, dir_fd, base)."""

    def below(fd, prefix):
        for base in sorted(os.listdir(fd)):
            raw = os.fsencode(base)
            name = prefix + raw
            yield name, fd, raw
            if stat.S_ISDIR(os.stat(raw, dir_fd=fd, follow_symlinks=False).st_mode):
                inner = os.open(raw, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                try:
                    yield from below(inner, name + b"/")
                finally:
                    os.close(inner)

    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield b"", fd, b"."
        yield from below(fd, b"")
    finally:
        os.close(fd)


def disk_state(root, *, times: bool = False, content: bool = True) -> dict[bytes, tuple]:
    """An exact snapshot of the tree at root. times adds every mtime in nanoseconds."""
    state = {}
    for name, fd, base in walk(root):
        status = os.stat(base, dir_fd=fd, follow_symlinks=False)
        kind = kind_of(status.st_mode)
        facts = [kind, oct(stat.S_IMODE(status.st_mode)), status.st_uid, status.st_gid]
        if kind == "file":
            facts += [status.st_size, status.st_nlink]
            if content:
                facts.append(digest_of(base, dir_fd=fd))
        elif kind == "link":
            facts.append(os.readlink(base, dir_fd=fd))
        elif kind in ("char", "block"):
            facts.append((os.major(status.st_rdev), os.minor(status.st_rdev)))
        facts.append(tuple(xattrs_of(b"/proc/self/fd/%d/" % fd + base).items()))
        if times:
            facts.append(status.st_mtime_ns)
        state[name] = tuple(facts)
    return state


def changed(before: dict, after: dict) -> list[str]:
    """How two states differ, one line a path; [] when they are equal."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None:
            lines.append(f"+ {os.fsdecode(name)} {new}")
        elif new is None:
            lines.append(f"- {os.fsdecode(name)}")
        elif old != new:
            lines.append(f"! {os.fsdecode(name)} {old} -> {new}")
    return lines


def shape(root) -> dict[str, str]:
    """Path -> kind, and for links the target, for regular files the text if it is short."""
    result = {}
    for name, fd, base in walk(root):
        if not name:
            continue
        status = os.stat(base, dir_fd=fd, follow_symlinks=False)
        kind = kind_of(status.st_mode)
        if kind == "link":
            kind = "-> " + os.fsdecode(os.readlink(base, dir_fd=fd))
        elif kind == "char" and status.st_rdev == 0:
            kind = "whiteout"
        elif kind == "file" and status.st_size <= 64:
            with open(os.open(base, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd), "rb") as content:
                kind = content.read().decode("utf-8", "surrogateescape")
        result[os.fsdecode(name)] = kind
    return result


def inventory(root) -> set[str]:
    """Just the paths."""
    return {os.fsdecode(name) for name, _, _ in walk(root) if name}


# ---- mounts and descriptors --------------------------------------------------------------------
def unescape(field: str) -> str:
    """A path of /proc/self/mounts as it really is."""
    return field.encode("latin-1", "surrogateescape").decode("unicode_escape")


def mounts_below(root) -> list[str]:
    """Mount points at or below root, deepest last."""
    top = os.path.realpath(os.fspath(root)).rstrip("/")
    points = []
    with open("/proc/self/mounts", errors="surrogateescape") as table:
        for line in table:
            point = unescape(line.split(" ")[1])
            if point == top or point.startswith(top + "/"):
                points.append(point)
    return points


def mount_line(point) -> list[str] | None:
    """[source, point, type, options] of what is mounted exactly there, or None."""
    wanted = os.path.realpath(os.fspath(point))
    with open("/proc/self/mounts", errors="surrogateescape") as table:
        found = [line.split(" ")[:4] for line in table]
    for line in reversed(found):
        if unescape(line[1]) == wanted:
            return line
    return None


def mount(source: str, target, kind: str, flags: int = 0, data: str = "") -> None:
    arguments = source.encode(), os.fsencode(target), kind.encode(), flags, data.encode()
    if _libc.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[4]):
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), os.fspath(target))


_CLONE_NEWNS, _MS_PRIVATE, _MS_REC = 0x20000, 1 << 18, 1 << 14


def leave_mount_namespace() -> None:
    """Go on in a mount namespace of our own: what other runs copy (`unshare -m`) holds no box of ours, and keeps none busy."""
    if _libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", "/", "", _MS_PRIVATE | _MS_REC)


def unmount(target, flags: int = MNT_DETACH) -> None:
    if _libc.umount2(os.fsencode(target), flags):
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), os.fspath(target))


def unmount_below(root) -> list[str]:
    """Detach every mount strictly below root; returns what there was."""
    top = os.path.realpath(os.fspath(root))
    points = [point for point in mounts_below(root) if point != top]
    for point in reversed(points):
        unmount(point)
    return points


def open_files() -> dict[int, str]:
    """This process's descriptors and what they stand for."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found


@contextlib.contextmanager
def sized_file_system(room: Path, kind: str, *, size: int = 24 << 20, inodes: int = 0) -> Iterator[Path]:
    """A file system of its own: kind is "tmpfs", "ext4", "xfs" or "btrfs". An image lies in the room, itself a tmpfs."""
    place, image = room / f"fs-{kind}", room / f"image-{kind}"
    place.mkdir()
    if kind == "tmpfs":
        given = f"size={size},mode=755" + (f",nr_inodes={inodes}" if inodes else "")
        mount("tmpfs", place, "tmpfs", 0, given)
    else:
        with open(image, "wb") as out:
            out.truncate(size)
        make = {
            "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "has_journal", *(["-N", str(inodes)] if inodes else [])],
            "xfs": ["mkfs.xfs", "-q", "-f"],
            "btrfs": ["mkfs.btrfs", "-q", "-f"],
        }[kind]
        subprocess.run([*make, str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True)
    try:
        yield place
    finally:
        unmount_below(place)
        subprocess.run(["umount", str(place)], check=True, capture_output=True)
        place.rmdir()
        image.unlink(missing_ok=True)


def remove_tree(root) -> None:
    """Delete a tree of any depth, by descriptors."""

    def empty(fd):
        for base in os.listdir(fd):
            status = os.stat(base, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                inner = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                try:
                    empty(inner)
                finally:
                    os.close(inner)
                os.rmdir(base, dir_fd=fd)
            else:
                os.unlink(base, dir_fd=fd)

    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        empty(fd)
    finally:
        os.close(fd)
    os.rmdir(root)


FS_IMMUTABLE = 0x10
FS_IOC_SETFLAGS, FS_IOC_GETFLAGS = 0x40086602, 0x80086601


def immutable(path, on):
    """Let nothing in a directory be removed, or let it again."""
    target = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags = int.from_bytes(fcntl.ioctl(target, FS_IOC_GETFLAGS, bytes(8))[:4], sys.byteorder)
        flags = flags | FS_IMMUTABLE if on else flags & ~FS_IMMUTABLE
        fcntl.ioctl(target, FS_IOC_SETFLAGS, flags.to_bytes(8, sys.byteorder))
    finally:
        os.close(target)


def redirects() -> bool:
    """Return True if overlays rename directories by redirection, so that an upper directory cannot be read alone."""
    try:
        with open("/sys/module/overlay/parameters/redirect_dir") as parameter:
            return parameter.read().strip() == "Y"
    except OSError:
        return False
