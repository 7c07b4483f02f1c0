"""Edits that a program makes in a mounted box: each is done to the real tree and to the plain one.

What the kernel alone decides of a path that was touched (its time, its mode and capability after a write or chown) is
read back there and then; that it stays so is what tests look at. What the kernel refuses is no edit.
"""

import errno
import os
import random
import shutil
import stat

from trees import CAPABILITY, Node, Tree, below, parent_of

NAMES = [b"a", b"b", b"c", b"a.b", b"a b", b"l\xe4\xff", b"Z", b"n\nl", b"\xc3\xa9"]
MODES = [0o644, 0o755, 0o600, 0o4755, 0o2755, 0o1777, 0]
OWNERS = [(0, 0), (1, 0), (0, 1), (1000, 1000), (3_000_000, 5)]
SECOND = 10**9
TIMES = [5 * SECOND, 5_300_000_000, 5_200_000_000, 6 * SECOND, 5_000_000_001, 0, 2_000_000_000 * SECOND]
CAPABILITIES = [bytes([1, 0, 0, 2, n]) + bytes(15) for n in (4, 5)]
ACL = bytes.fromhex("0200000001000600ffffffff020004000100000004000400ffffffff10000600ffffffff20000400ffffffff")
ACCESS = "system.posix_acl_access"
KERNELS = {CAPABILITY, ACCESS}      # attributes that a write, chown or chmod changes
TARGETS = [b"a", b"b", b"a/b", b"/nowhere", b"../a"]
REFUSED = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EXDEV, errno.EINVAL, errno.EBUSY,
    errno.EPERM, errno.ENXIO, errno.ELOOP, errno.ENODATA, errno.EOPNOTSUPP, errno.ENAMETOOLONG,
}  # fmt: skip


class Hands:
    """Edits of the tree at root, which is the plain `tree`; what is written lies in the directory that `home` stands for."""

    def __init__(self, root, tree: Tree, home, draw: random.Random):
        self.root, self.tree, self.home, self.draw = os.fsencode(root), tree, home, draw
        self.told: list[str] = []

    def work(self, count: int) -> list[str]:
        for _ in range(count):
            name, verb = self.draw.choice(VERBS)
            path = self.draw.choice(sorted(self.tree))
            new = self.fresh_path()
            try:
                if not path and name in NOT_OF_THE_ROOT:
                    raise OSError(errno.EBUSY, "the root stays")
                done = verb(self, path, new)
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
                self.told.append(f"{name} {path!r} {new!r}: {errno.errorcode[error.errno]}")
                self.looked(path, new)
            else:
                self.told.append(f"{name} {path!r} {new!r}: {done or 'done'}")
        return self.told

    def fresh_path(self) -> bytes:
        place = self.draw.choice(sorted(path for path, node in self.tree.items() if node.kind == "dir"))
        name = self.draw.choice(NAMES)
        return place + b"/" + name if place else name

    def at(self, path: bytes) -> bytes:
        return self.root + b"/" + path if path else self.root

    # ---- the plain side ----------------------------------------------------------------------------
    def own(self, path: bytes) -> Node:
        """The node of a path that is about to change: copied up by its name if it lies in another directory."""
        node = self.tree[path]
        if node.home is not self.home:
            node = node.copied()
            node.home = self.home
            self.tree[path] = node
        if path:
            self.own(parent_of(path))
        return node

    def put(self, path: bytes, node: Node) -> None:
        status = os.lstat(self.at(path))        # whose group may be the directory's
        node.home, node.uid, node.gid = self.home, status.st_uid, status.st_gid
        self.tree[path] = node
        self.own(parent_of(path))

    def looked(self, *paths: bytes) -> None:
        """Read back what the kernel decides of these paths and of the directories that they are in."""
        for path in {*paths, *map(parent_of, paths)}:
            if path not in self.tree:
                continue
            try:
                status = os.lstat(self.at(path))
            except (FileNotFoundError, NotADirectoryError):
                continue
            node = self.tree[path]
            if node.mtime != status.st_mtime_ns or node.mode != stat.S_IMODE(status.st_mode):
                node = self.own(path)
                node.mtime, node.mode = status.st_mtime_ns, stat.S_IMODE(status.st_mode)
            for name in KERNELS & node.xattrs.keys():
                try:
                    value = os.getxattr(self.at(path), name, follow_symlinks=False)
                except OSError:
                    del self.own(path).xattrs[name]
                else:
                    if value != node.xattrs[name]:
                        self.own(path).xattrs[name] = value

    # ---- edits -------------------------------------------------------------------------------------
    def new_file(self, path, new):
        data = self.draw.choice([b"", b"one", b"two", b"three" * 30, os.urandom(5000)])
        fd = os.open(self.at(new), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        os.write(fd, data)
        os.close(fd)
        self.put(new, Node("file", data=data))
        self.looked(new)

    def append(self, path, new):
        self._written(path, os.O_APPEND, b"more", lambda old, data: old + data)

    def rewrite(self, path, new):
        data = self.draw.choice([b"1", b"22", b"re" * 50])
        self._written(path, os.O_TRUNC, data, lambda old, data: data)

    def overwrite(self, path, new):
        self._written(path, 0, b"**", lambda old, data: data + old[2:])

    def _written(self, path, flags, data, whole):
        fd = os.open(self.at(path), os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags)
        try:
            if self.tree[path].kind == "file":
                os.write(fd, data)
                node = self.own(path)
                node.data = whole(node.data, data)
        finally:
            os.close(fd)
        self.looked(path)

    def in_silence(self, path, new):
        """Other bytes, the same size, the old time."""
        node = self.tree[path]
        if node.kind != "file" or not node.data:
            raise OSError(errno.EINVAL, "nothing to overwrite")
        fd = os.open(self.at(path), os.O_WRONLY)
        data = bytes([self.draw.randrange(256)]) * min(4, node.size)
        os.write(fd, data)
        os.close(fd)
        os.utime(self.at(path), ns=(0, node.mtime))
        node = self.own(path)
        node.data = data + node.data[len(data):]
        self.looked(path)

    def truncate(self, path, new):
        if self.tree[path].kind != "file":
            raise OSError(errno.EINVAL, "no file")
        size = self.draw.choice([0, 1, 3, 700])
        os.truncate(self.at(path), size)
        node = self.own(path)
        node.data = node.data[:size] + bytes(max(0, size - len(node.data)))
        self.looked(path)

    def open_only(self, path, new):
        """Copied up, and nothing more."""
        if self.tree[path].kind != "file":
            raise OSError(errno.EINVAL, "no file")
        os.close(os.open(self.at(path), os.O_WRONLY))
        self.own(path)
        self.looked(path)

    def chmod(self, path, new):
        if self.tree[path].kind == "link":
            raise OSError(errno.EOPNOTSUPP, "a link has no mode")
        mode = self.draw.choice(MODES)
        os.chmod(self.at(path), mode)
        self.own(path).mode = mode
        self.looked(path)

    def chown(self, path, new):
        uid, gid = self.draw.choice(OWNERS)
        os.lchown(self.at(path), uid, gid)
        node = self.own(path)
        node.uid, node.gid = uid, gid
        self.looked(path)

    def utime(self, path, new):
        when = self.draw.choice(TIMES)
        os.utime(self.at(path), ns=(0, when), follow_symlinks=False)
        self.own(path).mtime = when
        self.looked(path)

    def set_xattr(self, path, new):
        kind = self.tree[path].kind
        names = ["trusted.x"] + ["user.x", "user.y"] * (kind in ("file", "dir")) + [CAPABILITY] * (kind == "file")
        name = self.draw.choice(names)
        value = self.draw.choice(CAPABILITIES if name == CAPABILITY else [b"", b"1", b"value" * 20])
        os.setxattr(self.at(path), name, value, follow_symlinks=False)
        self.own(path).xattrs[name] = value
        self.looked(path)

    def remove_xattr(self, path, new):
        name = self.draw.choice(["trusted.x", "user.x", CAPABILITY])
        os.removexattr(self.at(path), name, follow_symlinks=False)
        self.own(path).xattrs.pop(name)
        self.looked(path)

    def set_acl(self, path, new):
        if self.tree[path].kind not in ("file", "dir"):
            raise OSError(errno.EINVAL, "neither a file nor a directory")
        os.setxattr(self.at(path), ACCESS, ACL)
        self.own(path).xattrs[ACCESS] = os.getxattr(self.at(path), ACCESS)
        self.looked(path)

    def mkdir(self, path, new):
        os.mkdir(self.at(new), 0o750)
        self.put(new, Node("dir"))
        self.looked(new)

    def symlink(self, path, new):
        target = self.draw.choice(TARGETS)
        os.symlink(target, self.at(new))
        self.put(new, Node("link", target=target))
        self.looked(new)

    def link(self, path, new):
        os.link(self.at(path), self.at(new), follow_symlinks=False)
        self.put(new, self.own(path))
        self.looked(path, new)

    def node(self, path, new):
        kind, mode, device = self.draw.choice([
            ("fifo", stat.S_IFIFO, 0), ("char", stat.S_IFCHR, os.makedev(1, 3)), ("block", stat.S_IFBLK, os.makedev(7, 200))])
        os.mknod(self.at(new), mode | 0o600, device)
        self.put(new, Node(kind, rdev=device))
        self.looked(new)

    def unlink(self, path, new):
        os.unlink(self.at(path))
        del self.tree[path]
        self.own(parent_of(path))
        self.looked(path)

    def rmdir(self, path, new):
        os.rmdir(self.at(path))
        del self.tree[path]
        self.own(parent_of(path))
        self.looked(path)

    def remove(self, path, new):
        self._removed(path)
        self.looked(path)

    def _removed(self, path):
        if self.tree[path].kind == "dir":
            shutil.rmtree(self.at(path))
        else:
            os.unlink(self.at(path))
        for one in [path, *below(self.tree, path)]:
            del self.tree[one]
        self.own(parent_of(path))

    def again(self, path, new):
        """rm -r and a new directory of that name: an opaque one, where there was something below."""
        self._removed(path)
        os.mkdir(self.at(path), 0o755)
        self.put(path, Node("dir"))
        if self.draw.random() < 0.6:
            name = path + b"/" + self.draw.choice(NAMES)
            with open(self.at(name), "xb") as out:
                out.write(b"inside")
            self.put(name, Node("file", data=b"inside"))
            self.looked(name)
        self.looked(path)

    def other_kind(self, path, new):
        """Removed, and something else in its place at once."""
        self._removed(path)
        made = self.draw.choice([self.new_file, self.symlink, self.node, self.mkdir])
        made(path, path)

    def rename(self, path, new):
        os.rename(self.at(path), self.at(new))
        self._moved(path, new)

    def replace(self, path, new):
        """Onto something that may be there."""
        other = self.draw.choice(sorted(self.tree))
        if not other:
            raise OSError(errno.EBUSY, "the root stays")
        os.rename(self.at(path), self.at(other))
        self._moved(path, other)

    def _moved(self, path, new):
        if path == new:
            return
        if self.tree.get(new) is self.tree[path] and self.tree[path].home is self.home and self.tree[path].kind != "dir":
            return          # two names of one inode: nothing happens
        node = self.own(path)
        inside = below(self.tree, path)
        del self.tree[path]
        self.put(new, node)
        for one in inside:
            self.tree[new + one[len(path):]] = self.tree.pop(one)
        self.own(parent_of(path))
        self.looked(path, new)

    def save_over(self, path, new):
        """What editors do: a new file beside the old one, then renamed over it."""
        if self.tree[path].kind != "file":
            raise OSError(errno.EINVAL, "no file")
        aside = path + b"~"
        with open(self.at(aside), "wb") as out:
            out.write(b"saved" * 9)
        os.rename(self.at(aside), self.at(path))
        self.tree.pop(aside, None)
        self.put(path, Node("file", data=b"saved" * 9))
        self.looked(path)

    def moved_by_copy(self, path, new):
        """What mv does where a directory cannot be renamed: times and all, then the old one goes."""
        if self.tree[path].kind != "dir" or new in self.tree or new.startswith(path + b"/") or len(below(self.tree, path)) > 12:
            raise OSError(errno.EINVAL, "not moved")
        if any(self.tree[one].kind not in ("file", "dir", "link") for one in below(self.tree, path)):
            raise OSError(errno.EINVAL, "not moved")
        for one in [path, *sorted(below(self.tree, path))]:
            old, there = self.tree[one], new + one[len(path):]
            if old.kind == "dir":
                os.mkdir(self.at(there), 0o700)
            elif old.kind == "link":
                os.symlink(old.target, self.at(there))
            else:
                with open(self.at(there), "xb") as out:
                    out.write(old.data)
            self.put(there, Node(old.kind, data=old.data, target=old.target))
        for one in [path, *below(self.tree, path)]:
            self.looked(new + one[len(path):])
        self._removed(path)
        self.looked(path, new)


OFTEN = {"new_file": 4, "rewrite": 3, "append": 3, "mkdir": 3, "unlink": 3, "link": 3, "rename": 4, "again": 3, "in_silence": 2, "other_kind": 2}
NOT_OF_THE_ROOT = {"unlink", "rmdir", "remove", "again", "other_kind", "rename", "replace", "moved_by_copy", "link"}
VERBS = [
    (name, verb)
    for name, verb in vars(Hands).items()
    if callable(verb) and not name.startswith("_") and name not in ("work", "fresh_path", "at", "own", "put", "looked")
    for _ in range(OFTEN.get(name, 1))
]
