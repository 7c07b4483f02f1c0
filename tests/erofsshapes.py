"""EROFS images of every shape that a reader meets, by plain Python: blocks of 512 to 4096 bytes, compact inodes, chunks, other devices,
shared attributes and long prefixes. Our own writer makes none of these.

    shape = build({"": directory(), "d": directory(), "d/f": file(b"x", xattrs={"user.k": b"v"})}, bits=12, compact=True)
    shape.image, shape.device
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from erofsreader import crc32c

PREFIXES = {"user.": 1, "system.posix_acl_access": 2, "system.posix_acl_default": 3, "trusted.": 4, "security.": 6}
TYPES = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFSOCK: 6, stat.S_IFLNK: 7}
EPOCH, NSEC = 1_600_000_000, 7
HOLE = 0xFFFFFFFF
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


class Thing(NamedTuple):
    """What is at a path. content: of a file, or the text of a link."""

    mode: int
    content: bytes = b""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = EPOCH * 10**9 + NSEC
    rdev: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = {}


def directory(mode: int = 0o755, **fields: object) -> Thing:
    return Thing(stat.S_IFDIR | mode, **fields)  # type: ignore[arg-type]


def file(content: bytes = b"", mode: int = 0o644, **fields: object) -> Thing:
    return Thing(stat.S_IFREG | mode, content, **fields)  # type: ignore[arg-type]


def link(target: str, **fields: object) -> Thing:
    return Thing(stat.S_IFLNK | 0o777, os.fsencode(target), **fields)  # type: ignore[arg-type]


class Shape(NamedTuple):
    image: bytes
    device: bytes  # b"": there is none; its bytes are wanted beside the image, or behind it at unified * block
    unified: int


def up(n: int, to: int) -> int:
    return -(-n // to) * to


class _Build:
    def __init__(self, tree: Mapping[str, Thing], bits: int) -> None:
        self.tree, self.bits, self.block = tree, bits, 1 << bits
        self.data, self.device = bytearray(), bytearray()
        self.first = up(4096, self.block) // self.block  # where the data begins

    def put(self, content: bytes, *, device: bool = False) -> int:
        """Blocks of their own; gives the first one."""
        to = self.device if device else self.data
        at = len(to) // self.block
        to += content.ljust(up(len(content), self.block), b"\0")
        return at if device else self.first + at

    def attributes(self, thing: Thing, shared: Mapping[str, int], infixes: Sequence[str]) -> bytes:
        ids = b"".join(struct.pack("<I", shared[name]) for name in thing.xattrs if name in shared)
        own = b"".join(entry(name, value, infixes) for name, value in thing.xattrs.items() if name not in shared)
        return struct.pack("<IB7x", 0, len(ids) // 4) + ids + own if thing.xattrs else b""

    def names(self, path: str, nids: Mapping[str, int]) -> bytes:
        """The content of a directory."""
        parent = os.path.dirname(path) if path else ""
        entries = [(b".", nids[path], 2), (b"..", nids[parent], 2)]
        for child, thing in self.tree.items():
            if child and os.path.dirname(child) == path:
                entries.append((os.fsencode(os.path.basename(child)), nids[child], TYPES[stat.S_IFMT(thing.mode)]))
        entries.sort()
        blocks: list[bytes] = []
        here: list[tuple[bytes, int, int]] = []
        for each in [*entries, None]:
            if each is None or sum(12 + len(name) for name, _, _ in [*here, each]) > self.block:
                at, heads = 12 * len(here), b""
                for name, nid, kind in here:
                    heads += struct.pack("<QHBB", nid, at, kind, 0)
                    at += len(name)
                blocks.append(heads + b"".join(name for name, _, _ in here))
                here = []
            here.append(each) if each else None  # type: ignore[func-returns-value]
        return b"".join(block.ljust(self.block, b"\0") for block in blocks[:-1]) + blocks[-1]


def entry(name: str, value: bytes, infixes: Sequence[str] = ()) -> bytes:
    """One extended attribute; with a long prefix, if one fits."""
    for number, infix in enumerate(infixes):
        if name.startswith(infix):
            rest, index = os.fsencode(name[len(infix) :]), 0x80 | number
            break
    else:
        prefix = next(p for p in PREFIXES if name.startswith(p))
        rest, index = os.fsencode(name[len(prefix) :]), PREFIXES[prefix]
    packed = struct.pack("<BBH", len(rest), index, len(value)) + rest + value
    return packed.ljust(up(len(packed), 4), b"\0")


def build(
    tree: Mapping[str, Thing], *, bits: int = 9, compact: bool = False, chunk: int = 0, wide: bool = True, device: bool = False, uni: bool = False,
    share: Sequence[str] = (), infixes: Sequence[str] = (), links: Mapping[str, str] = {}, unified: int = 1 << 16,
) -> Shape:  # fmt: skip
    """An image of a tree. links: one more name, and which it is of.

    chunk    files are in chunks of so many bytes, zero ones are holes; 0: they lie flat
    wide     an index of 8 bytes for a chunk, else 4
    device   files lie in another device: named by each index, or, with uni or flat, by their place in the space of all
    unified  where that device is in it
    """  # fmt: skip
    b = _Build({**tree, **{name: tree[to] for name, to in links.items()}}, bits)
    shared: dict[str, int] = {}
    area = b""
    for thing in tree.values():
        for name, value in thing.xattrs.items():
            if name in share and name not in shared:
                shared[name] = len(area) // 4
                area += entry(name, value)
    shared_block = b.put(area) if area else 0
    table = b"".join(prefix_of(infix) for infix in infixes)
    table_block = b.put(table) if table else 0
    arrays, starts = {}, {}
    for path, thing in tree.items():
        starts[path], arrays[path] = 0, b""
        if stat.S_ISLNK(thing.mode):
            starts[path] = b.put(thing.content)
        elif stat.S_ISREG(thing.mode) and chunk:
            starts[path] = (chunk // b.block).bit_length() - 1 | (0x20 if wide else 0)
            for at in range(0, len(thing.content), chunk):
                piece = thing.content[at : at + chunk]
                where = b.put(piece, device=device) if any(piece) else HOLE
                named = device and wide and not uni and where != HOLE
                where += unified if device and not named and where != HOLE else 0
                arrays[path] += struct.pack("<HHI", 0, int(named), where) if wide else struct.pack("<I", where)
        elif stat.S_ISREG(thing.mode) and thing.content:
            starts[path] = b.put(thing.content, device=device) + (unified if device else 0)
    nids, at, small = {}, 32, 32 if compact else 64
    bodies = {path: b.attributes(thing, shared, infixes) for path, thing in tree.items()}
    for path in tree:
        nids[path] = at // 32
        at = up(up(at + small + len(bodies[path]), 8) + len(arrays[path]), 32)
    every = {**nids, **{name: nids[to] for name, to in links.items()}}
    sizes = {path: len(thing.content) for path, thing in tree.items()}
    for path, thing in tree.items():
        if stat.S_ISDIR(thing.mode):
            content = b.names(path, every)
            starts[path], sizes[path] = b.put(content), len(content)
    meta = b.first + len(b.data) // b.block
    metadata = bytearray(up(at, b.block))
    for path, thing in tree.items():
        offset, body = 32 * nids[path], bodies[path]
        below = sum(1 for child in tree if child and os.path.dirname(child) == path and stat.S_ISDIR(tree[child].mode))
        nlink = 2 + below if stat.S_ISDIR(thing.mode) else 1 + [*links.values()].count(path)
        u = starts[path] if thing.rdev == (0, 0) else thing.rdev[1] & 0xFF | thing.rdev[0] << 8 | (thing.rdev[1] & ~0xFF) << 12
        layout = 4 if stat.S_ISREG(thing.mode) and chunk else 0
        icount = 1 + (len(body) - 12) // 4 if body else 0
        if compact:
            head = struct.pack("<HHHHIIIIHHI", layout << 1, icount, thing.mode, nlink, sizes[path], 0, u, 0, thing.uid, thing.gid, 0)
        else:
            sec, nsec = divmod(thing.mtime_ns, 10**9)
            head = struct.pack("<HHHHQIIIIqII16x", 1 | layout << 1, icount, thing.mode, 0, sizes[path], u, 0, thing.uid, thing.gid, sec, nsec, nlink)
        metadata[offset : offset + len(head + body)] = head + body
        array = up(meta * b.block + offset + len(head + body), 8 if wide else 4) - meta * b.block
        metadata[array : array + len(arrays[path])] = arrays[path]
    blocks = meta + len(metadata) // b.block
    incompat = (4 if chunk else 0) | (8 if device else 0) | (0x40 if infixes else 0)
    superblock = bytearray(struct.pack(
        "<IIIBBHQqIIII16s16sIHHHBBIQBBHIQQ", 0xE0F5E1E2, 0, 3, bits, 0, nids[""], len(tree), EPOCH, NSEC, blocks, meta, shared_block, b"a test's image..",
        b"", incompat, 0, int(device), 9 if device else 0, 0, len(infixes), table_block * b.block // 4, *[0] * 7,
    ))  # fmt: skip
    slot = struct.pack("<64sII56x", b"", len(b.device) // b.block, unified) if device else b""
    image = bytearray(bytes(1024) + (superblock + slot)).ljust(b.first * b.block, b"\0") + b.data + metadata
    over = b.block if bits <= 10 else b.block - 1024
    image[1028:1032] = struct.pack("<I", crc32c(bytes(image[1024 : 1024 + over])))
    return Shape(bytes(image), bytes(b.device), unified)


def prefix_of(infix: str) -> bytes:
    """A long prefix, as the table has it."""
    base = next(p for p in PREFIXES if infix.startswith(p))
    packed = bytes([PREFIXES[base]]) + os.fsencode(infix[len(base) :])
    packed = struct.pack("<H", len(packed)) + packed
    return packed.ljust(up(len(packed), 4), b"\0")


def sample(*, compact: bool = False) -> tuple[dict[str, Thing], dict[str, str]]:
    """A tree with everything in it, and one more name of a file."""
    own = {} if compact else {"mtime_ns": -5_250_000_000, "uid": 100_000, "gid": 70_000}
    noise = bytes(i * 7 % 251 for i in range(20_000))
    tree = {
        "": directory(), "!": file(b"x"), "-a": file(b""), "c": Thing(stat.S_IFCHR | 0o600, rdev=(300, 70_000)), "b": Thing(stat.S_IFBLK | 0o660, rdev=(8, 1)),
        "d": directory(0o1777, xattrs={"trusted.overlay.opaque": b"y", "user.long.prefix.b": b"2"}, **own),
        "d/f": file(noise, 0o4755, xattrs={"user.k": b"v" * 300, "security.capability": CAPABILITY, "user.long.prefix.a": b"1"}, **own),
        "d/g": file(b"\0" * 9000 + noise, xattrs={"user.k": b"v" * 300}), "d/h": file(noise[:4096]), "d/l": link("../c"), "d/m": link("y" * 600),
        "d/gone": Thing(stat.S_IFCHR, rdev=(0, 0)), "p": Thing(stat.S_IFIFO | 0o644), "s": Thing(stat.S_IFSOCK | 0o644), "many": directory(),
    }  # fmt: skip
    tree |= {f"many/{i:04}{'z' * (i % 50)}": file(b"%d" % i) for i in range(300)}
    tree |= {"many/" + "n" * 255: directory(), "many/\udcff": file(b"odd")}
    return tree, {"d/again": "d/f"}


SHAPES: dict[str, dict[str, object]] = {
    "flat": {}, "flat of 1024": {"bits": 10}, "flat of 2048": {"bits": 11}, "flat of 4096": {"bits": 12},
    "compact": {"compact": True, "bits": 12}, "shared": {"share": ("user.k", "security.capability")},
    "prefixes": {"infixes": ("user.long.prefix.", "trusted.overlay.")}, "all attributes": {"share": ("user.k",), "infixes": ("user.long.", "trusted.over"), "bits": 12},
    "chunks": {"chunk": 512}, "large chunks": {"chunk": 65_536}, "narrow chunks": {"chunk": 1024, "wide": False}, "chunks of 4096": {"chunk": 4096, "bits": 12},
    "uni": {"device": True}, "uni of 4096": {"device": True, "bits": 12}, "chunks in a device": {"chunk": 2048, "device": True},
    "chunks in all of space": {"chunk": 2048, "device": True, "uni": True}, "narrow chunks in a device": {"chunk": 2048, "device": True, "wide": False},
}  # fmt: skip


def shape(name: str, **more: int) -> tuple[Shape, dict[str, Thing], dict[str, str]]:
    """The sample in this shape."""
    how = {**SHAPES[name], **more}
    tree, links = sample(compact=bool(how.get("compact")))
    return build(tree, links=links, **how), tree, links  # type: ignore[arg-type]


def flattened(name: str) -> bytes:
    """In one file: its device, if it has one, lies behind the image."""
    made = shape(name, unified=256)[0]
    at = made.unified << int(SHAPES[name].get("bits", 9))  # type: ignore[call-overload]
    assert len(made.image) <= at or not made.device
    return made.image.ljust(at, b"\0") + made.device if made.device else made.image
