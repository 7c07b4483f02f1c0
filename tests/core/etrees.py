"""Trees that tars make in memory, as disk.disk_state() shows them, beside those that unpacking makes.

    tree = etrees.of(tar)
    tree.state == disk.disk_state(root, times=True, content=False)
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import disk
import door
import sinks

PREFIXES = {1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security."}
SMALL = 8 << 20


class Told(NamedTuple):
    """An error, in every part."""

    code: str
    sys_errno: int
    offset: int
    path: bytes
    text: str
    target: bytes


class Tree(NamedTuple):
    state: dict[bytes, tuple]
    contents: dict[bytes, bytes]  # of regular files up to SMALL
    twins: set[frozenset[bytes]]  # names that share an inode
    size: int
    unsettled: bool


def told(err: Any) -> Told:
    error = door.error_of(err)
    return Told(error.code, error.sys_errno, error.offset, error.path, error.text, door.ffi.string(err.target))


def _raise(err: Any) -> None:
    error = door.error_of(err)
    error.target = door.ffi.string(err.target)  # type: ignore[attr-defined]
    raise error


# ---- in memory ----
class Built:
    """A tree that is built from tar, and settled on lowers: directories' descriptors."""

    def __init__(self, tar: bytes, lowers: tuple[int, ...] = (), *, limits: Any = None) -> None:
        ffi, lib = door.ffi, door.lib
        self.tar = tar
        self.handle = door.make("lay_etree_new", "lay_etree *", limits or ffi.NULL)
        self._read(tar, limits)
        applied = ffi.new("lay_applied *")
        door.call("lay_etree_end", self.handle, applied)
        self.size, self.entries, self.unsettled = applied.size, applied.entries, applied.unsettled_len > 0
        below = ffi.gc(ffi.new("lay_lowers *"), lib.lay_lowers_free)
        door.call("lay_lowers_open", below, door.shown(lowers), len(lowers), False)
        door.call("lay_etree_settle", self.handle, below)

    def _read(self, tar: bytes, limits: Any) -> None:
        ffi, lib = door.ffi, door.lib
        reader = ffi.gc(lib.lay_tar_new(), lib.lay_tar_free)
        if limits:
            lib.lay_tar_limit(reader, limits)
        item, err = ffi.new("lay_tar_item *"), door.new_error()
        kept = ffi.from_buffer(tar)
        lib.lay_tar_feed(reader, kept, len(tar))
        while (event := lib.lay_tar_next(reader, item, err)) > lib.LAY_TAR_NEED:
            at = lib.lay_tar_offset(reader)
            failed = 0
            if event == lib.LAY_TAR_ENTRY:
                failed = lib.lay_etree_entry(self.handle, item.entry, at, err)
            if event == lib.LAY_TAR_DATA:
                failed = lib.lay_etree_piece(self.handle, item.file_offset, at - item.n, item.n, err)
            if failed:
                _raise(err)
            if event == lib.LAY_TAR_END:
                return
        if event == lib.LAY_TAR_BAD or lib.lay_tar_eof(reader, err):
            _raise(err)

    def children(self, directory: int) -> list[int]:
        count = door.out("uint32_t *")
        names = door.lib.lay_etree_children(self.handle, directory, count)
        return [names[i] for i in range(count[0])]

    def name(self, number: int) -> tuple[bytes, int]:
        name = door.ffi.new("lay_ename *")
        door.lib.lay_etree_name(self.handle, number, name)
        return door.ffi.buffer(name.text, name.len)[:], name.node

    def node(self, number: int) -> Any:
        node = door.ffi.new("lay_enode *")
        return node if door.lib.lay_etree_node(self.handle, number, node) else None

    def walk(self) -> Iterator[tuple[bytes, int]]:
        yield b"", door.lib.LAY_ETREE_ROOT
        todo = [(b"", door.lib.LAY_ETREE_ROOT)]
        while todo:
            prefix, directory = todo.pop()
            names = [self.name(number) for number in self.children(directory)]
            assert [n for n, _ in names] == sorted({n for n, _ in names})
            for base, node in names:
                path = prefix + b"/" + base if prefix else base
                yield path, node
                if stat.S_ISDIR(self.node(node).mode):
                    todo.append((path, node))

    def content(self, node: Any) -> bytes:
        if not node.sparse:
            return self.tar[node.data : node.data + node.size] if node.size else b""
        whole = bytearray(node.size)
        for i in range(node.npieces):
            p = node.pieces[i]
            whole[p.file_offset : p.file_offset + p.n] = self.tar[p.tar_offset : p.tar_offset + p.n]
        return bytes(whole)


def xattrs(node: Any) -> dict[str, bytes]:
    got, at, all_ = {}, 0, door.ffi.buffer(node.xattrs, node.xattrs_len)[:] if node.xattrs_len else b""
    while at < len(all_):
        name_len, index, value_len = all_[at], all_[at + 1], int.from_bytes(all_[at + 2 : at + 4], "little")
        name = PREFIXES[index] + os.fsdecode(all_[at + 4 : at + 4 + name_len])
        got[name] = all_[at + 4 + name_len : at + 4 + name_len + value_len]
        at += (4 + name_len + value_len + 3) // 4 * 4
    assert list(got) == sorted(got)
    return got


def _facts(node: Any) -> tuple:
    kind = disk.kind_of(node.mode)
    facts = [kind, oct(stat.S_IMODE(node.mode)), node.uid, node.gid]
    if kind == "file":
        facts += [node.size, node.nlink]
    if kind == "link":
        facts.append(os.fsdecode(door.ffi.buffer(node.text, node.size)[:]).encode("utf-8", "surrogateescape"))
    if kind in ("char", "block"):
        facts.append((node.rdev >> 8 & 0xFFF, node.rdev & 0xFF | node.rdev >> 12 & 0xFFF00))
    return (*facts, tuple(xattrs(node).items()), node.mtime_sec * 1_000_000_000 + node.mtime_nsec)


def of(tar: bytes, lowers: tuple[int, ...] = (), *, limits: Any = None) -> Tree:
    built = Built(tar, lowers, limits=limits)
    state, contents, inodes = {}, {}, {}
    for path, number in built.walk():
        node = built.node(number)
        state[path] = _facts(node)
        if stat.S_ISREG(node.mode) and node.size <= SMALL:
            contents[path] = built.content(node)
        if not stat.S_ISDIR(node.mode):
            inodes.setdefault(number, set()).add(path)
            assert node.nlink >= len(inodes[number])
    return Tree(state, contents, {frozenset(names) for names in inodes.values()}, built.size, built.unsettled)


# ---- on the disk ----
def unpacked(tar: bytes, room: Path, lowers: tuple[int, ...] = (), *, limits: Any = None) -> Tree:
    """What the unpacker makes of it, below room."""
    root, scratch = room / "root", room / "scratch"
    root.mkdir()
    scratch.mkdir()
    root.chmod(0o755)
    try:
        with sinks.directory(root) as root_fd, sinks.directory(scratch) as scratch_fd, sinks.memory() as record_fd:
            with sinks.applying(root=root_fd, scratch=scratch_fd, record_fd=record_fd, limits=limits) as a:
                for window, n in sinks.windows(tar):
                    err = door.new_error()
                    if door.lib.lay_apply_push(a, window, n, err):
                        _raise(err)
                applied, err = door.ffi.new("lay_applied *"), door.new_error()
                if door.lib.lay_apply_finish(a, applied, err):
                    _raise(err)
                unsettled = door.ffi.buffer(applied.unsettled, applied.unsettled_len)[:] if applied.unsettled_len else b""
                if lowers and unsettled:
                    door.call("lay_stand_on", root_fd, unsettled, len(unsettled), door.shown(lowers), len(lowers), 0)
                size = applied.size
        return _seen(root, size, bool(unsettled))
    finally:
        disk.remove_tree(root)
        scratch.rmdir()


@contextmanager
def layers(room: Path, tars: list[bytes]) -> Iterator[tuple[int, ...]]:
    """Directories that these tars unpack to, each by itself."""
    fds, places = [], []
    try:
        for i, tar in enumerate(tars):
            place = room / f"layer{i}"
            place.mkdir()
            places.append(place)
            with sinks.memory() as record_fd, sinks.directory(room) as scratch_fd:
                fds.append(os.open(place, os.O_RDONLY | os.O_DIRECTORY))
                sinks.apply(tar, root=fds[-1], scratch=scratch_fd, record_fd=record_fd)
        yield tuple(fds)
    finally:
        for fd in fds:
            os.close(fd)
        for place in places:
            disk.remove_tree(place)


def _seen(root: Path, size: int, unsettled: bool) -> Tree:
    contents: dict[bytes, bytes] = {}
    inodes: dict[int, set[bytes]] = {}
    for path, fd, base in disk.walk(root):
        status = os.stat(base, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode) and status.st_size <= SMALL:
            with open(os.open(base, os.O_RDONLY, dir_fd=fd), "rb") as f:
                contents[path] = f.read()
        if not stat.S_ISDIR(status.st_mode):
            inodes.setdefault(status.st_ino, set()).add(path)
    state = disk.disk_state(root, times=True, content=False)
    return Tree(state, contents, {frozenset(names) for names in inodes.values()}, size, unsettled)


# ---- both ----
def outcome(make: Callable[[], Tree]) -> Tree | Told:
    try:
        return make()
    except door.CoreError as error:
        return Told(error.code, error.sys_errno, error.offset, error.path, error.text, getattr(error, "target", b""))


def _level(real: Tree, memory: Tree) -> None:
    """Takes out what the unpacker has from the clock, or from the directory that it makes a whiteout in.

    Of directories without an entry, and of the root, the time; of whiteouts the time, an ACL and a group.
    """
    for path, facts in memory.state.items():
        whiteout = facts[0] == "char" and facts[4] == (0, 0)
        if path not in real.state or not (whiteout or facts[-1] == 0):
            continue
        for tree in (real, memory):
            *rest, attributes, _ = tree.state[path]
            rest[3] = rest[3] if not whiteout or facts[3] else 0
            kept = tuple(pair for pair in attributes if not (whiteout and pair[0] == "system.posix_acl_access"))
            tree.state[path] = (*rest, kept, None)


def differences(tar: bytes, room: Path, lowers: tuple[int, ...] = (), *, limits: Any = None) -> list[str]:
    """How the tree in memory differs from the one on the disk; [] when it does not."""
    memory = outcome(lambda: of(tar, lowers, limits=limits))
    real = outcome(lambda: unpacked(tar, room, lowers, limits=limits))
    if isinstance(memory, Told) or isinstance(real, Told):
        return [] if memory == real else [f"memory: {memory}"[:1500], f"disk: {real}"[:1500]]
    _level(real, memory)
    lines = disk.changed(real.state, memory.state)
    lines += [f"{p!r}: contents" for p in real.contents if memory.contents.get(p) != real.contents[p]]
    lines += [f"twins {sorted(t)}" for t in real.twins ^ memory.twins]
    if memory.size != real.size or memory.unsettled > real.unsettled:     # the unpacker also tells of directories that went since
        lines.append(f"size, unsettled: {real.size, real.unsettled} on the disk, {memory.size, memory.unsettled} in memory")
    return lines
