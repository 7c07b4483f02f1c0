"""Layers and edit scripts drawn by Hypothesis, and the hands that carry them out on real directories.

A drawn layer is a mapping of paths to Nodes: as_tar() writes it as a layer tar, on_disk() as a directory with
overlay's own marks. A script is a list of small tuples (verb, where, whither, choice); Edits turns each into one
real edit at a path that it knows, so that every script means something on every tree. What the kernel refuses
is no edit, and is told. `told` then reads like a shell session, for the reader of a failure.
"""

import ctypes
import errno
import os
import stat
from typing import NamedTuple

import tarkit
from hypothesis import strategies as st

NAMES = [b"a", b"b", b"c", b"a.b", b"a b", b"l\xe4\xff", b"Z"]
# Names that mean something in a layer tar, and nothing at all in a mount.
EDIT_NAMES = [*NAMES, b".wh.a", b".wh..wh..opq", b"n\nl"]
# Where layers meet: drawn often, so that one layer's name is another's too.
SHARED_PATHS = [b"a", b"b", b"a/a", b"a/b", b"a/c", b"a/b/a", b"a/b/b", b"b/a", b"b/b", b"a/b/c/a"]
PATHS = [
    *SHARED_PATHS * 4, *NAMES,
    *[top + b"/" + name for top in NAMES[:4] for name in NAMES],
    *[top + b"/b/" + name for top in NAMES[:3] for name in NAMES[:5]],
    *[b"a/b/c/" + name for name in NAMES[:4]],
]
MODES = [0o644, 0o755, 0o600, 0o4755, 0o2755, 0o1777, 0]
OWNERS = [(0, 0), (1, 0), (0, 1), (1000, 1000), (3_000_000, 5)]
CONTENTS = [b"one", b"two", b"", b"three"]
TARGETS = [b"a", b"b", b"a/b", b"/nowhere"]
SECOND = 10**9
TIMES = [5 * SECOND, 5_300_000_000, 5_200_000_000, 6 * SECOND, 5_000_000_001, 0, 2_000_000_000 * SECOND]
TIMES_ON_DISK = [*TIMES, -500_000_000, -SECOND]
DEVICES = [os.makedev(1, 3), os.makedev(1, 5), os.makedev(4, 3)]


def _capability(revision: int, permitted: int, root: bytes = b"") -> bytes:
    return bytes([1, 0, 0, revision, permitted]) + bytes(15) + root


CAPABILITIES = [b"", _capability(2, 4), _capability(2, 5), _capability(3, 4, (1000).to_bytes(4, "little"))]


class Node(NamedTuple):
    """One entry of a layer. text: content or link target. which: among equals (a device, a hard link's file)."""

    kind: str
    mode: int = 0o755
    owner: tuple[int, int] = (0, 0)
    time: int = 5 * SECOND
    text: bytes = b""
    capability: bytes = b""
    opaque: bool = False
    which: int = 0


Layer = dict[bytes, Node]
IMPLIED = Node("implied")
DIRS = ("dir", "implied")
# How often each kind is drawn.
USUAL = ["file"] * 5 + ["dir"] * 4 + ["link"] * 2 + ["whiteout"] * 4 + ["opaque"] * 3
USUAL += ["hard", "fifo", "char", "char", "block"]
MARKS = ["file", "dir", "link"] + ["whiteout"] * 6 + ["opaque"] * 5


def _node(kind, mode, owner, time, text, capability, which) -> Node:
    if kind == "opaque":
        return Node("dir", mode, owner, time, opaque=True)
    text = {"file": CONTENTS, "link": TARGETS}.get(kind, [b""])[text % (4 if kind in ("file", "link") else 1)]
    return Node(kind, mode, owner, time, text, capability if kind in ("file", "dir") else b"", which=which)


def _often_first(choices):
    return st.sampled_from([choices[0]] * len(choices) + list(choices))


def nodes(kinds):
    small = st.integers(0, 3)
    times = st.sampled_from([5 * SECOND] * 5 + [5_300_000_000] * 4 + TIMES)
    looks = _often_first(MODES), _often_first(OWNERS), times, small, _often_first(CAPABILITIES), small
    return st.builds(_node, st.sampled_from(kinds), *looks)


def _layer(drawn, top_is_opaque: bool) -> Layer:
    """Only what a layer can hold: what is below anything is in a directory, in any order."""
    layer: Layer = {b"": Node("dir", opaque=True)} if top_is_opaque else {}
    for path, node in drawn:
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            above = b"/".join(parts[:depth])
            if above not in layer or layer[above].kind not in DIRS:
                layer[above] = IMPLIED
        if node.kind not in DIRS:
            for below in [known for known in layer if known.startswith(path + b"/")]:
                del layer[below]
        layer[path] = node
    return dict(sorted(layer.items()))


def layers(kinds=USUAL, *, least: int = 2, most: int = 12):
    entries = st.lists(st.tuples(st.sampled_from(PATHS), nodes(kinds)), min_size=least, max_size=most)
    return st.builds(_layer, entries, st.sampled_from([False] * 7 + [True]))


def as_tar(layer: Layer) -> bytes:
    """The layer as a tar: directories first, hard links last, times to the nanosecond where they have any."""
    files = [path for path, node in layer.items() if node.kind == "file"]
    entries, late = [], []
    for path, node in layer.items():
        fields = {"mode": node.mode, "uid": node.owner[0], "gid": node.owner[1], "mtime": node.time // SECOND}
        head = _records(node)
        match node.kind:
            case "file":
                entries.append(head + tarkit.file(path, node.text, **fields))
            case "dir" if path:
                entries.append(head + tarkit.dir(path + b"/", **fields))
            case "link":
                entries.append(head + tarkit.symlink(path, node.text, **fields))
            case "fifo":
                entries.append(head + tarkit.fifo(path, **fields))
            case "char" | "block":
                device = DEVICES[node.which % len(DEVICES)]
                numbers = os.major(device), os.minor(device)
                entries.append(head + tarkit.node(path, node.kind[0], *numbers, **fields))
            case "whiteout":
                entries.append(tarkit.whiteout(path))
            case "hard" if files:
                late.append(head + tarkit.hardlink(path, files[node.which % len(files)], **fields))
        if node.opaque:
            entries.append(tarkit.opaque(path))
    return b"".join(entries + late) + tarkit.end()


def _records(node: Node) -> bytes:
    """The extended header for what a plain one cannot hold."""
    records = {}
    if node.time % SECOND:
        records["mtime"] = f"{node.time // SECOND}.{node.time % SECOND:09d}"
    if node.capability:
        records["SCHILY.xattr.security.capability"] = node.capability
    return tarkit.pax(records) if records else b""


def on_disk(layer: Layer, root: bytes, *, share: bytes | None = None) -> bytes:
    """The layer as a directory at root, made here. share: a tree whose equal files are hard-linked in."""
    os.mkdir(root, 0o755)
    files = [path for path, node in layer.items() if node.kind == "file"]
    for path, node in layer.items():
        if node.kind != "hard":
            place = os.path.join(root, path)
            if share and node.kind not in DIRS:
                os.link(os.path.join(share, path), place, follow_symlinks=False)
                continue
            if path:
                make(place, node)
            if node.opaque:
                os.setxattr(place, "trusted.overlay.opaque", b"y")
    for path, node in layer.items():
        if node.kind == "hard" and files:
            os.link(os.path.join(root, files[node.which % len(files)]), os.path.join(root, path))
    for path, node in reversed(layer.items()):
        if node.kind == "dir" and path:
            os.utime(os.path.join(root, path), ns=(node.time, node.time))
    return root


def make(path: bytes, node: Node) -> None:
    """One entry, all its metadata as told."""
    match node.kind:
        case "file":
            with open(path, "xb") as out:
                out.write(node.text)
        case "dir" | "implied":
            os.mkdir(path)
        case "link":
            os.symlink(node.text, path)
        case "fifo":
            os.mkfifo(path)
        case "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
        case "char":
            os.mknod(path, stat.S_IFCHR | 0o600, DEVICES[node.which % len(DEVICES)])
        case "block":
            os.mknod(path, stat.S_IFBLK | 0o600, DEVICES[node.which % len(DEVICES)])
        case "whiteout":
            os.mknod(path, stat.S_IFCHR, 0)
            return
    os.lchown(path, *node.owner)
    if node.capability:
        os.setxattr(path, "security.capability", node.capability, follow_symlinks=False)
    if node.kind != "link":
        os.chmod(path, node.mode)
    os.utime(path, ns=(node.time, node.time), follow_symlinks=False)


def remove(path: bytes, *, keep: bool = False) -> None:
    """rm -r; keep: only what is in it."""
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for name in os.listdir(path):
            remove(os.path.join(path, name))
        if not keep:
            os.rmdir(path)
    else:
        os.unlink(path)


class Kept(NamedTuple):
    """A tree remembered, so that it can be made again as it was."""

    name: bytes
    status: os.stat_result
    text: bytes
    capability: bytes
    inside: list["Kept"]


def keep(path: bytes) -> Kept:
    status = os.lstat(path)
    text, inside = b"", []
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as content:
            text = content.read()
    elif stat.S_ISLNK(status.st_mode):
        text = os.readlink(path)
    elif stat.S_ISDIR(status.st_mode):
        inside = [keep(os.path.join(path, name)) for name in sorted(os.listdir(path))]
    try:
        capability = os.getxattr(path, "security.capability", follow_symlinks=False)
    except OSError:
        capability = b""
    return Kept(os.path.basename(path), status, text, capability, inside)


def make_again(path: bytes, kept: Kept, times) -> None:
    """What was kept, at path; times: what becomes of each mtime."""
    mode = kept.status.st_mode
    if stat.S_ISREG(mode):
        with open(path, "xb") as out:
            out.write(kept.text)
    elif stat.S_ISLNK(mode):
        os.symlink(kept.text, path)
    elif stat.S_ISDIR(mode):
        os.mkdir(path)
        for inner in kept.inside:
            make_again(os.path.join(path, inner.name), inner, times)
    else:
        os.mknod(path, mode, kept.status.st_rdev)
    os.lchown(path, kept.status.st_uid, kept.status.st_gid)
    if kept.capability:
        os.setxattr(path, "security.capability", kept.capability, follow_symlinks=False)
    if not stat.S_ISLNK(mode):
        os.chmod(path, stat.S_IMODE(mode))
    when = times(kept.status.st_mtime_ns)
    os.utime(path, ns=(when, when), follow_symlinks=False)


# ---- edits ------------------------------------------------------------------------------------------
_libc = ctypes.CDLL(None, use_errno=True)
RENAME_EXCHANGE = 2
REFUSALS = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EXDEV, errno.EINVAL, errno.EBUSY,
    errno.EPERM, errno.ENXIO, errno.ELOOP, errno.ENODATA, errno.EOPNOTSUPP,
}  # fmt: skip


def _exchange(one: bytes, other: bytes) -> None:
    if _libc.renameat2(-100, one, -100, other, RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Edits:
    """Edits of the tree at root. known: the paths that a script can name, new ones added as they are made."""

    def __init__(self, root, known: list[bytes]):
        self.root = os.fsencode(root)
        self.known = [*known, b""]
        self.told: list[str] = []
        self.done: set[str] = set()

    def run(self, script) -> list[str]:
        for verb, where, whither, choice in script:
            path = self.known[where % len(self.known)]
            if verb in NEEDS_A_NEW_PATH:
                target = self._new_path(verb, whither, choice)
                words = (verb, path, target, choice)
            else:
                target = b""
                words = (verb, path, choice)
            try:
                if not path and verb in NOT_AT_THE_TOP:
                    raise OSError(errno.EBUSY, "the top stays")
                VERBS[verb](self, self._at(path), self._at(target), choice)
            except OSError as error:
                if error.errno not in REFUSALS:
                    raise
                self.told.append(f"{words}: {errno.errorcode[error.errno]}")
            else:
                self.told.append(str(words))
                self.done.add(verb)
                if target and target not in self.known:
                    self.known.append(target)
        return self.told

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self.root, path) if path else self.root

    def _new_path(self, verb: str, whither: int, choice: int) -> bytes:
        """A name in a known directory, or, for what may replace, a known path. The kernel says what is free."""
        path = self.known[whither // 2 % len(self.known)]
        if path and (verb == "exchange" or (verb == "rename" and whither % 2)):
            return path
        return os.path.join(path, EDIT_NAMES[choice % len(EDIT_NAMES)])


def _keeping_the_time(path, act):
    when = os.lstat(path).st_mtime_ns
    act()
    os.utime(path, ns=(when, when), follow_symlinks=False)


def _open(path, flags):
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _write(path, flags, data):
    fd = _open(path, os.O_WRONLY | flags)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _size(path):
    """Of a regular file: anything else cannot be overwritten."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a file")
    return status.st_size


def _replaced(kind):
    """Remove what is there, however deep, and make a thing of this kind of it, at a time that it may have had."""

    def act(edits, path, target, choice):
        was = os.lstat(path)
        when = was.st_mtime_ns if choice % 2 else TIMES_ON_DISK[choice % len(TIMES_ON_DISK)]
        mode = stat.S_IMODE(was.st_mode) if choice & 2 else MODES[choice % len(MODES)]
        remove(path)
        text = {"file": CONTENTS, "link": TARGETS}.get(kind, [b""] * 4)[choice % 4]
        make(path, Node(kind, mode, time=when, text=text, which=choice))
        if kind == "dir" and choice & 4:
            make(os.path.join(path, NAMES[choice % len(NAMES)]), Node("file", 0o644, text=b"inside"))

    return act


def _made(kind):
    def act(edits, path, target, choice):
        make(target, Node(kind, MODES[choice % len(MODES)], text=TARGETS[choice % 4], which=choice))

    return act


def _again(edits, path, target, choice):
    """Remove and make the same again: all of it, or without its last entry, or with times cut to seconds."""
    kept = keep(path)
    remove(path)
    if choice & 1 and kept.inside:
        kept.inside.pop()
    make_again(path, kept, (lambda ns: ns // SECOND * SECOND) if choice & 2 else (lambda ns: ns))


def _again_empty(edits, path, target, choice):
    kept = keep(path)
    if not stat.S_ISDIR(kept.status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory")
    remove(path)
    make_again(path, kept._replace(inside=[]), lambda ns: ns)


def _moved_out_and_back(edits, path, target, choice):
    aside = path + b".aside"
    os.rename(path, aside)
    os.rename(aside, path)


def _copied_over(edits, path, target, choice):
    """What editors do: a new file written beside the old one, then renamed over it."""
    kept, aside = keep(path), path + b"~"
    make_again(aside, kept, (lambda ns: ns) if choice % 2 else (lambda ns: ns + SECOND))
    os.rename(aside, path)


def _set_capability(edits, path, target, choice):
    value = CAPABILITIES[choice % len(CAPABILITIES)]
    if value:
        os.setxattr(path, "security.capability", value, follow_symlinks=False)
    else:
        os.removexattr(path, "security.capability", follow_symlinks=False)


def _chmod(path, mode):
    if stat.S_ISLNK(os.lstat(path).st_mode):
        raise OSError(errno.EOPNOTSUPP, "a link has no mode")
    os.chmod(path, mode)


def _unnamed_then_linked(edits, path, target, choice):
    """A file that had no name before it was linked in."""
    fd = os.open(os.path.dirname(target), os.O_TMPFILE | os.O_WRONLY, 0o644)
    try:
        os.write(fd, CONTENTS[choice % 4])
        # Python follows the link in /proc only when told of a directory, which two absolute paths then ignore.
        os.link(f"/proc/self/fd/{fd}", target, src_dir_fd=fd, follow_symlinks=True)
    finally:
        os.close(fd)


VERBS = {
    # verb: (edits, path, target, choice), both paths absolute
    "append": lambda e, p, t, c: _write(p, os.O_APPEND, b"more"),
    "rewrite": lambda e, p, t, c: _write(p, os.O_TRUNC, CONTENTS[c % 4]),
    "overwrite in silence": lambda e, p, t, c: _keeping_the_time(p, lambda: _write(p, 0, b"*" * _size(p))),
    "truncate": lambda e, p, t, c: os.truncate(p, c % 5 if _size(p) else 0),
    "open to append": lambda e, p, t, c: os.close(_open(p, os.O_WRONLY | os.O_APPEND)),
    "utime": lambda e, p, t, c: os.utime(p, ns=(0, TIMES_ON_DISK[c % len(TIMES_ON_DISK)]), follow_symlinks=False),
    "chmod": lambda e, p, t, c: _chmod(p, MODES[c % len(MODES)]),
    "chmod to the same": lambda e, p, t, c: _chmod(p, stat.S_IMODE(os.lstat(p).st_mode)),
    "chown": lambda e, p, t, c: os.lchown(p, *OWNERS[c % len(OWNERS)]),
    "chown to the same": lambda e, p, t, c: os.lchown(p, os.lstat(p).st_uid, os.lstat(p).st_gid),
    "setcap": _set_capability,
    "setxattr": lambda e, p, t, c: os.setxattr(p, "trusted.other", b"%d" % c, follow_symlinks=False),
    "unlink": lambda e, p, t, c: os.unlink(p),
    "remove": lambda e, p, t, c: remove(p, keep=p == e.root),
    "rename": lambda e, p, t, c: os.rename(p, t),
    "exchange": lambda e, p, t, c: _exchange(p, t),
    "link": lambda e, p, t, c: os.link(p, t, follow_symlinks=False),
    "new file": _made("file"),
    "new dir": _made("dir"),
    "new link": _made("link"),
    "new fifo": _made("fifo"),
    "new device": _made("char"),
    "new whiteout": lambda e, p, t, c: os.mknod(t, stat.S_IFCHR, 0),
    "link in": _unnamed_then_linked,
    "to file": _replaced("file"),
    "to dir": _replaced("dir"),
    "to link": _replaced("link"),
    "to fifo": _replaced("fifo"),
    "to socket": _replaced("socket"),
    "to char": _replaced("char"),
    "to block": _replaced("block"),
    "again": _again,
    "again, empty": _again_empty,
    "out and back": _moved_out_and_back,
    "copy over": _copied_over,
}
NEEDS_A_NEW_PATH = {"rename", "exchange", "link", "link in", *(verb for verb in VERBS if verb.startswith("new "))}
NOT_AT_THE_TOP = {"rename", "exchange", *(v for v in VERBS if v.startswith(("to ", "again", "out ", "copy ")))}
OFTEN = ["remove", "again", "again, empty", "to dir", "new file", "new dir", "rename", "utime", "chmod to the same"]
OFTEN += ["overwrite in silence", "link", "exchange"]


def scripts(least: int = 3, most: int = 10):
    step = st.tuples(
        st.sampled_from([*VERBS, *OFTEN, *OFTEN]), st.integers(0, 63), st.integers(0, 63), st.integers(0, 9)
    )
    return st.lists(step, min_size=least, max_size=most)
