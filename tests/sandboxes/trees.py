"""Trees in plain Python: what a mount must show, and how two trees differ.

A tree is a mapping of paths (bytes, "" is the root) to Nodes. Names of one inode are one Node. read_tree() makes such a
tree of a real directory; lines() says how it is not what was expected; difference() is what `docker diff` would say.
Nothing here knows how the package works.
"""

import copy
import os
import stat

import disk

CAPABILITY = "security.capability"
Tree = dict[bytes, "Node"]


class Node:
    """An inode. home: a token of the directory on the disk that has it, for what is counted by directory."""

    __slots__ = ("data", "gid", "home", "kind", "mode", "mtime", "rdev", "target", "uid", "xattrs")

    def __init__(self, kind, mode=0o755, uid=0, gid=0, mtime=0, data=b"", target=b"", rdev=0, xattrs=None, home=None):
        self.kind, self.mode, self.uid, self.gid, self.mtime = kind, mode, uid, gid, mtime
        self.data, self.target, self.rdev, self.xattrs, self.home = data, target, rdev, dict(xattrs or {}), home

    @property
    def size(self) -> int:
        return len(self.data) if self.kind == "file" else len(self.target) if self.kind == "link" else 0

    def copied(self) -> "Node":
        twin = copy.copy(self)
        twin.xattrs = dict(self.xattrs)
        return twin

    def facts(self) -> dict[str, object]:
        found = {"kind": self.kind, "mode": oct(self.mode), "owner": (self.uid, self.gid), "mtime": self.mtime}
        if self.kind == "file":
            found["data"] = self.data if len(self.data) < 60 else (len(self.data), self.data[:40], hash(self.data))
        if self.kind == "link":
            found["target"] = self.target
        if self.kind in ("char", "block"):
            found["rdev"] = self.rdev
        return found | {"xattrs": self.xattrs}


def parent_of(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def below(tree: Tree, path: bytes) -> list[bytes]:
    """Paths strictly beneath it."""
    top = path + b"/" if path else b""
    return [one for one in tree if one.startswith(top) and one != path]


def above(path: bytes) -> list[bytes]:
    """Directories on the way to it, the root first."""
    parts = path.split(b"/") if path else []
    return [b"/".join(parts[:n]) for n in range(len(parts))]


def twin(tree: Tree, which=lambda node: True) -> Tree:
    """The tree with Nodes of its own for those that are asked for; names of one inode stay together."""
    memo: dict[int, Node] = {}
    made: Tree = {}
    for path, node in tree.items():
        if which(node):
            if id(node) not in memo:
                memo[id(node)] = node.copied()
            made[path] = memo[id(node)]
        else:
            made[path] = node
    return made


# ---- a real directory ----------------------------------------------------------------------------
def read_tree(place) -> Tree:
    """What lies at place, root and all."""
    tree: Tree = {}
    names: dict[tuple[int, int], Node] = {}
    for path, fd, base in disk.walk(place):
        status = os.stat(base, dir_fd=fd, follow_symlinks=False)
        kind = disk.kind_of(status.st_mode)
        inode = status.st_dev, status.st_ino
        if kind != "dir" and status.st_nlink > 1 and inode in names:
            tree[path] = names[inode]
            continue
        node = Node(kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)
        if kind == "file":
            with open(os.open(base, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd), "rb") as content:
                node.data = content.read()
        elif kind == "link":
            node.target = os.readlink(base, dir_fd=fd)
        elif kind in ("char", "block"):
            node.rdev = status.st_rdev
        found = disk.xattrs_of(b"/proc/self/fd/%d/" % fd + base)
        node.xattrs = {name: value for name, value in found.items() if not name.startswith("trusted.SGI_ACL")}     # XFS's own of an ACL
        tree[path] = names[inode] = node
    return tree


def groups(tree: Tree) -> set[frozenset[bytes]]:
    """Names of one inode, where there are several."""
    found: dict[int, set[bytes]] = {}
    for path, node in tree.items():
        if node.kind != "dir":
            found.setdefault(id(node), set()).add(path)
    return {frozenset(names) for names in found.values() if len(names) > 1}


def lines(wanted: Tree, found: Tree, *, loose: bool = False, root: bool = True, links: bool = True) -> list[str]:
    """How what was found is not what was wanted. loose: as a tar of moby's has it, whole seconds and no attribute of a user."""
    told = []
    for path in sorted(wanted.keys() | found.keys()):
        if not path and not root:
            continue
        one, other = wanted.get(path), found.get(path)
        if one is None or other is None:
            told.append(f"{path!r} {'is there' if one is None else 'is not there'}: {(one or other).facts()}")
            continue
        want, got = one.facts(), other.facts()
        if loose:
            if "system.posix_acl_access" in one.xattrs:
                del want["mode"]            # whose group bits are the list's mask
            want["xattrs"] = {k: v for k, v in want["xattrs"].items() if k == CAPABILITY}
            got["xattrs"] = {k: v for k, v in got["xattrs"].items() if k == CAPABILITY}
            if other.mtime == one.mtime // 10**9 * 10**9:
                got["mtime"] = want["mtime"]
        told += [f"{path!r} has {key} {got.get(key)!r}, not {want.get(key)!r}" for key in want if want[key] != got.get(key)]
    if links and groups(wanted) != groups(found):
        told.append(f"names of one inode: {groups(found)}, not {groups(wanted)}")
    return told


# ---- what differs --------------------------------------------------------------------------------
def _same_time(one: int, other: int) -> bool:
    """A time without nanoseconds may have lost them in a tar."""
    if one // 10**9 != other // 10**9:
        return False
    return one == other or 0 in (one % 10**9, other % 10**9)


def _differ(new: Node, old: Node, contents: bool) -> bool:
    if (new.kind, new.mode, new.uid, new.gid, new.rdev) != (old.kind, old.mode, old.uid, old.gid, old.rdev):
        return True
    if contents:
        return new.kind != "dir" and (new.data, new.target) != (old.data, old.target)
    if new.xattrs.get(CAPABILITY, b"") != old.xattrs.get(CAPABILITY, b""):
        return True
    return new.kind != "dir" and (new.size != old.size or not _same_time(new.mtime, old.mtime))


def difference(new: Tree, old: Tree, *, contents: bool = False) -> list[str]:
    """["A /a", "C /b", "D /c"], sorted by path: what makes new of old, each removed directory once."""
    told: dict[bytes, str] = {}
    for path, node in new.items():
        if not path:
            continue
        before = old.get(path)
        if before is None:
            told[path] = "A"
        elif _differ(node, before, contents):
            told[path] = "C"
    for path in old:
        if path and path not in new:
            up = parent_of(path)
            if up == b"" or (up in new and new[up].kind == "dir" and up in old and old[up].kind == "dir"):
                told[path] = "D"
    for path in list(told):
        for up in above(path):
            if up and up not in told:
                told[up] = "C"
    return sorted(f"{what} /{os.fsdecode(path)}" for path, what in told.items())


def said(changes) -> list[str]:
    """Changes of the package, to hold beside difference()."""
    return sorted(map(str, changes))
