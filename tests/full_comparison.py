"""The slow way to tell what changed: read both trees whole, then hold them side by side.

Enters: two directories, mounted or plain. Leaves: the lines that `docker diff` would print, "A /etc/hosts",
siblings in byte order, a directory before what is in it, deletions of a directory after all else in it. It
knows nothing of overlayfs: the kernel has merged the layers before anything is read here. That makes it the
measure for every quicker way.
"""

import os
import stat
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One file as lstat tells it, and for a directory what is in it."""

    device: int
    inode: int
    mode: int
    uid: int
    gid: int
    rdev: int
    capability: bytes
    size: int
    seconds: int
    nanoseconds: int
    inside: dict[bytes, "Entry"]

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


def tree_of(root) -> Entry:
    """The whole tree at root. Walked by descriptors, so that no path is too long."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _entry(b"/proc/self/fd/%d/." % fd, os.fstat(fd), _inside(fd))
    finally:
        os.close(fd)


def _inside(fd: int) -> dict[bytes, Entry]:
    found = {}
    for name in map(os.fsencode, os.listdir(fd)):
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            # Of a directory that it need not merge, overlayfs lists the whiteouts too, and then has no such file.
            continue
        inside = {}
        if stat.S_ISDIR(status.st_mode):
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            try:
                inside = _inside(below)
            finally:
                os.close(below)
        found[name] = _entry(b"/proc/self/fd/%d/%s" % (fd, name), status, inside)
    return found


def _capability(path) -> bytes:
    try:
        return os.getxattr(path, "security.capability", follow_symlinks=False)
    except OSError:
        return b""


def _entry(path: bytes, status: os.stat_result, inside: dict[bytes, Entry]) -> Entry:
    capability = _capability(path)
    owner = status.st_uid, status.st_gid, status.st_rdev
    seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
    facts = capability, status.st_size, seconds, nanoseconds
    return Entry(status.st_dev, status.st_ino, status.st_mode, *owner, *facts, inside)


EMPTY = Entry(0, 0, stat.S_IFDIR, 0, 0, 0, b"", 0, 0, 0, {})


def paths_in(tree: Entry, prefix: bytes = b"") -> list[bytes]:
    """Every path of a tree, relative, directories before what is in them."""
    found = []
    for name in sorted(tree.inside):
        found.append(prefix + name)
        found += paths_in(tree.inside[name], prefix + name + b"/")
    return found


def full_comparison(new: Entry, old: Entry = EMPTY) -> list[str]:
    """How new differs from old, one line a change."""
    return [os.fsdecode(b"%s %s" % line) for line in _below(b"", new, old)]


def _below(path: bytes, new: Entry, old: Entry | None) -> list[tuple[bytes, bytes]]:
    """What differs beneath path. What stood below an old directory counts only if the new one is a directory too."""
    if not new.is_dir:
        return []
    gone = dict(old.inside) if old else {}
    lines = []
    for name in sorted(new.inside):
        here, before = new.inside[name], gone.pop(name, None)
        if before and (before.device, before.inode) == (here.device, here.inode):
            continue
        below = _below(path + b"/" + name, here, before)
        if before is None:
            lines.append((b"A", path + b"/" + name))
        elif below or _differ(here, before):
            lines.append((b"C", path + b"/" + name))
        lines += below
    return lines + [(b"D", path + b"/" + name) for name in sorted(gone)]


def _differ(new: Entry, old: Entry) -> bool:
    facts = ("mode", "uid", "gid", "rdev", "capability")
    if any(getattr(new, fact) != getattr(old, fact) for fact in facts):
        return True
    return not new.is_dir and (new.size != old.size or not _same_time(new, old))


def _same_time(new: Entry, old: Entry) -> bool:
    """A time without nanoseconds may have lost them in a tar: then the second alone counts."""
    if new.seconds != old.seconds:
        return False
    return new.nanoseconds == old.nanoseconds or 0 in (new.nanoseconds, old.nanoseconds)


# ---- by contents ----


def by_contents(new: Path, old: Path) -> list[str]:
    """How one mounted tree differs from another in what counts but for times: names, kinds, rights, bytes and targets."""

    def names_in(place: Path) -> list[str]:
        # see _inside()
        return [name for name in os.listdir(place) if os.path.lexists(place / name)]

    def is_dir(path: Path) -> bool:
        return stat.S_ISDIR(os.lstat(path).st_mode)

    def differ(a: Path, b: Path) -> bool:
        x, y = os.lstat(a), os.lstat(b)
        facts = "st_mode", "st_uid", "st_gid", "st_rdev"
        if any(getattr(x, fact) != getattr(y, fact) for fact in facts) or _capability(a) != _capability(b):
            return True
        if stat.S_ISLNK(x.st_mode):
            return a.readlink() != b.readlink()
        return stat.S_ISREG(x.st_mode) and a.read_bytes() != b.read_bytes()

    def below(path: str, was_dir: bool) -> list[str]:
        lines = []
        names, before = names_in(new / path[1:]), names_in(old / path[1:]) if was_dir else []
        for name in sorted(names, key=os.fsencode):
            here = f"{path}/{name}"
            a, b = new / here[1:], old / here[1:]
            found = below(here, name in before and is_dir(b)) if is_dir(a) else []
            if name not in before:
                lines.append(f"A {here}")
            elif found or differ(a, b):
                lines.append(f"C {here}")
            lines += found
        return lines + [f"D {path}/{name}" for name in sorted(set(before) - set(names), key=os.fsencode)]

    return below("", True)
