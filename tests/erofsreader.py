"""An EROFS image read by plain Python, strictly, from the description of the format alone: it shares no code with the package.

    image = read(path)                 # AssertionError: it breaks a rule of the format, or one of our own
    image.tree["usr/bin/env"].mode     # "": the root; names are str by os.fsdecode
    image.bytes_of("usr/bin/env")

Uncompressed images only. `own` says that the package's writer made it: then the rules of its one shape hold, too.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import NamedTuple

MAGIC = 0xE0F5E1E2
BLOCK = 512
HOLE = 0xFFFFFFFF
PREFIXES = {1: b"user.", 2: b"system.posix_acl_access", 3: b"system.posix_acl_default", 4: b"trusted.", 6: b"security."}
FORMAT = "<IIIBBHQQIIII16s16sIHHHBBIQBBHIQQ"
FIELDS = """magic checksum compat blkszbits extslots root_nid inos epoch fixed_nsec blocks meta_blkaddr xattr_blkaddr uuid volume
incompat algorithms extra_devices devt_slotoff dirblkbits prefix_count prefix_start packed_nid filter share reserved build_time
root_nid_8b reserved2"""
# In our images.
ALWAYS_ZERO = """extslots epoch fixed_nsec xattr_blkaddr algorithms extra_devices devt_slotoff dirblkbits prefix_count prefix_start
packed_nid filter share reserved build_time root_nid_8b reserved2"""
TYPES = {1: stat.S_IFREG, 2: stat.S_IFDIR, 3: stat.S_IFCHR, 4: stat.S_IFBLK, 5: stat.S_IFIFO, 6: stat.S_IFSOCK, 7: stat.S_IFLNK}


def crc32c(data: bytes) -> int:
    """CRC-32C that starts with all ones and is not inverted at its end."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


class Piece(NamedTuple):
    """Bytes of a file that lie together; image_offset None: a hole."""

    offset: int
    length: int
    image_offset: int | None


class Node(NamedTuple):
    """One inode, as a name leads to it."""

    nid: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: tuple[int, int]
    xattrs: dict[str, bytes]
    target: str
    pieces: tuple[Piece, ...]

    @property
    def is_whiteout(self) -> bool:
        """It hides what lies below: a character device 0:0."""
        return stat.S_ISCHR(self.mode) and self.rdev == (0, 0)


class Image:
    """A read image: its superblock, and `tree`, from names to nodes."""

    def __init__(self, data: bytes, *, own: bool = True) -> None:
        self.data, self.own = data, own
        assert len(data) >= 2048, "too short for a superblock"
        self.sb = dict(zip(FIELDS.split(), struct.unpack(FORMAT, data[1024:1152]), strict=True))
        sb = self.sb
        assert sb["magic"] == MAGIC
        if sb["compat"] & 1:
            block = bytearray(data[1024 : 1024 + BLOCK])
            block[4:8] = bytes(4)
            assert crc32c(bytes(block)) == sb["checksum"], "checksum of the superblock"
        if own:
            self._check_own()
        assert sb["blkszbits"] == 9, "blocks of 512 bytes only"
        self.meta = sb["meta_blkaddr"] * BLOCK
        self.tree: dict[str, Node] = {}
        self.names_of: dict[int, int] = {}
        self._walk()

    def _check_own(self) -> None:
        sb, data = self.sb, self.data
        assert sb["compat"] == 3 and sb["incompat"] in (0, 4)
        for name in ALWAYS_ZERO.split():
            assert sb[name] == 0, name
        assert sb["blkszbits"] == 9 and sb["root_nid"] == 1
        assert len(data) == sb["blocks"] * BLOCK, "the file is as long as its blocks"
        assert not any(data[:1024]) and not any(data[1152:4096]), "the header is zero but for the superblock"
        volume = sb["volume"].rstrip(b"\0")
        assert volume.startswith(b"tar:"), "an image says how long its tar is"
        self.tar_size = int(volume[4:])
        assert sb["meta_blkaddr"] == 8 + -(-self.tar_size // BLOCK)
        assert not any(data[4096 + self.tar_size : sb["meta_blkaddr"] * BLOCK]), "the padding of the tar is zero"

    @property
    def tar(self) -> bytes:
        """The tar."""
        return self.data[4096 : 4096 + self.tar_size]

    # ---- inodes ----

    def _at(self, offset: int, size: int) -> bytes:
        assert offset >= 0 and offset + size <= self.sb["blocks"] * BLOCK, f"{offset}+{size} lies behind the end"
        return self.data[offset : offset + size]

    def _node(self, nid: int) -> Node:
        offset = self.meta + 32 * nid
        assert nid > 0 or not self.own, "slot 0 is not used"
        form, icount, mode = struct.unpack("<HHH", self._at(offset, 6))
        layout, extended = form >> 1 & 7, form & 1
        assert form >> 4 == 0 and layout in (0, 2, 4), f"i_format {form}"
        if extended:
            zero, size, u, _, uid, gid, mtime, nsec, nlink = struct.unpack("<HQIIIIqII", self._at(offset + 6, 42))
            assert zero == 0 and not any(self._at(offset + 48, 16)) and nsec < 10**9
            length = 64
        else:
            assert not self.own, "all inodes are extended"
            nlink, size, _, u, _, uid, gid = struct.unpack("<HIIIIHH", self._at(offset + 6, 22))
            mtime, nsec, length = self.sb["epoch"], self.sb["fixed_nsec"], 32
        end = offset + length
        xattrs = {}
        if icount:
            total = 12 + 4 * (icount - 1)
            xattrs = self._xattrs(end, total)
            end += total
        kind = stat.S_IFMT(mode)
        rdev, target, pieces = (0, 0), "", ()
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            rdev = (u >> 8 & 0xFFF, u & 0xFF | u >> 12 & 0xFFF00)
            assert size == 0
        elif kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            pieces = tuple(self._pieces(layout, size, u, end))
            if kind == stat.S_IFLNK:
                target = os.fsdecode(self._read(pieces))
                assert len(os.fsencode(target)) == size and 0 < size < 4096 and "\0" not in target
        else:
            assert kind == stat.S_IFIFO and size == 0 and u == 0
        return Node(nid, mode, nlink, uid, gid, size, mtime * 10**9 + nsec, rdev, xattrs, target, pieces)

    def _xattrs(self, at: int, total: int) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        _, shared = struct.unpack("<IB", self._at(at, 5))
        assert not any(self._at(at + 5, 7))
        assert not (self.own and shared)
        for i in range(shared):
            (ref,) = struct.unpack("<I", self._at(at + 12 + 4 * i, 4))
            name, value, _ = self._xattr(self.sb["xattr_blkaddr"] * BLOCK + 4 * ref)
            found[name] = value
        here, end = at + 12 + 4 * shared, at + total
        before = b""
        while here < end:
            name, value, size = self._xattr(here)
            key = os.fsencode(name)
            assert name not in found and here + size <= end
            assert not self.own or key > before or not before, "sorted"
            found[name], before = value, key
            here += -(-size // 4) * 4
        assert here == end
        return found

    def _xattr(self, at: int) -> tuple[str, bytes, int]:
        n, index, size = struct.unpack("<BBH", self._at(at, 4))
        name = PREFIXES[index] + self._at(at + 4, n)
        assert len(name) <= 255 and b"\0" not in name
        return os.fsdecode(name), self._at(at + 4 + n, size), 4 + n + size

    def _pieces(self, layout: int, size: int, u: int, end: int) -> list[Piece]:
        if layout == 0:
            if not size:
                return []
            self._at(u * BLOCK, -(-size // BLOCK) * BLOCK)
            return [Piece(0, size, u * BLOCK)]
        if layout == 2:
            tail = size % BLOCK
            whole = size - tail
            found = [Piece(0, whole, u * BLOCK)] if whole else []
            if tail:
                assert end // BLOCK == (end + tail - 1) // BLOCK, "an inline tail crosses a block"
                self._at(end, tail)
                found.append(Piece(whole, tail, end))
            return found
        assert u >> 16 == 0 and u & 0xFFFF & ~0x3F == 0, f"chunk format {u:#x}"
        chunk, wide = BLOCK << (u & 31), bool(u & 0x20)
        unit = 8 if wide else 4
        at = -(-end // unit) * unit
        found = []
        for i in range(-(-size // chunk)):
            raw = self._at(at + unit * i, unit)
            device, block = struct.unpack("<HHI", raw)[1:] if wide else (0, *struct.unpack("<I", raw))
            length = min(chunk, size - i * chunk)
            assert device == 0, "one file only"
            if block == HOLE:
                found.append(Piece(i * chunk, length, None))
            else:
                self._at(block * BLOCK, -(-length // BLOCK) * BLOCK)
                found.append(Piece(i * chunk, length, block * BLOCK))
        return found

    def _read(self, pieces: tuple[Piece, ...] | list[Piece]) -> bytes:
        return b"".join(bytes(p.length) if p.image_offset is None else self._at(p.image_offset, p.length) for p in pieces)

    def bytes_of(self, name: str) -> bytes:
        """Return the bytes of a regular file."""
        return self._read(self.tree[name].pieces)

    # ---- names ----

    def _entries(self, node: Node) -> list[tuple[bytes, int, int]]:
        content = self._read(node.pieces)
        assert len(content) == node.size
        found: list[tuple[bytes, int, int]] = []
        for start in range(0, node.size, BLOCK):
            block = content[start : start + BLOCK]
            (first,) = struct.unpack("<H", block[8:10])
            assert first and first % 12 == 0 and first <= len(block), "where the names of a directory block begin"
            heads = [struct.unpack("<QHBB", block[i : i + 12]) for i in range(0, first, 12)]
            ends = [head[1] for head in heads[1:]] + [len(block)]
            for (nid, at, kind, zero), until in zip(heads, ends, strict=True):
                name = block[at:until].split(b"\0", 1)[0]
                assert zero == 0 and at < until and name and len(name) <= 255 and b"/" not in name
                found.append((name, nid, kind))
        assert [name for name, _, _ in found] == sorted({name for name, _, _ in found}), "names in order, each once"
        return found

    def _walk(self) -> None:
        root = self.sb["root_nid"]
        seen: dict[int, int] = {}
        todo = [("", root, root)]
        nodes: dict[int, Node] = {}
        while todo:
            path, nid, parent = todo.pop()
            node = nodes.setdefault(nid, self._node(nid)) if nid not in nodes else nodes[nid]
            self.tree[path] = node
            self.names_of[nid] = self.names_of.get(nid, 0) + 1
            if not stat.S_ISDIR(node.mode):
                continue
            assert nid not in seen, "a directory has one name"
            seen[nid] = parent
            entries = self._entries(node)
            dots = {name: at for name, at, _ in entries if name in (b".", b"..")}
            assert dots == {b".": nid, b"..": parent}
            children = 0
            for name, at, kind in entries:
                if name in dots:
                    assert kind == 2
                    continue
                child = nodes.setdefault(at, self._node(at)) if at not in nodes else nodes[at]
                assert stat.S_IFMT(child.mode) == TYPES[kind], f"{path}/{name!r}: its type in the directory"
                children += stat.S_ISDIR(child.mode)
                todo.append((os.path.join(path, os.fsdecode(name)), at, nid))
            assert node.nlink == 2 + children, f"links of the directory {path!r}"
        for nid, count in self.names_of.items():
            assert stat.S_ISDIR(nodes[nid].mode) or nodes[nid].nlink == count, f"links of nid {nid}"
        if self.own:
            assert self.sb["inos"] == len(nodes)


def read(path: str | os.PathLike[str], *, own: bool = True) -> Image:
    """Read an image file."""
    with open(path, "rb") as file:
        return Image(file.read(), own=own)
