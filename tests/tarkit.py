"""Layer tars written byte by byte, for tests: what goes in is exactly what stands here.

Every function returns bytes; a tar is their sum. Nothing is checked and nothing is added behind the
caller's back: no end marker, no long-name header, no sorting. Numbers may be given as ints (octal,
or base-256 where octal does not fit) or as raw bytes, texts as str or bytes, so that every defect
can be made on purpose. Independent of Python's tarfile, which is used as an oracle elsewhere.

    tar = dir("a/") + file("a/f", b"hello") + end()
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence

BLOCK = 512
USTAR = b"ustar\x0000"
GNU = b"ustar  \x00"
V7 = b"\x00" * 8
# Of security.capability: CAP_NET_BIND_SERVICE, as setcap writes it.
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")

Text = str | bytes
Number = int | bytes
Extent = tuple[int, bytes]

# name: (offset, width), POSIX order; STAR and GNU put other things behind byte 345
FIELDS = {
    "name": (0, 100), "mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136, 12),
    "chksum": (148, 8), "typeflag": (156, 1), "linkname": (157, 100), "magic": (257, 8), "uname": (265, 32),
    "gname": (297, 32), "devmajor": (329, 8), "devminor": (337, 8), "prefix": (345, 155),
}


def raw(text: Text) -> bytes:
    """Text as the bytes it stands for (surrogateescape for names that are not UTF-8)."""
    return text if isinstance(text, bytes) else os.fsencode(text)


def diff_id(tar: bytes) -> str:
    """The DiffID a tar must get."""
    return "sha256:" + hashlib.sha256(tar).hexdigest()


def chain_id(*diff_ids: str) -> str:
    """The ChainID of layers given from the base up."""
    chain = diff_ids[0]
    for diff in diff_ids[1:]:
        chain = "sha256:" + hashlib.sha256(f"{chain} {diff}".encode()).hexdigest()
    return chain


# ---- numbers and blocks ---------------------------------------------------------------------
def base256(value: int, width: int) -> bytes:
    """GNU's binary number: big-endian two's complement with the top bit set as its mark."""
    if value < 0:
        return ((1 << (8 * width)) + value).to_bytes(width, "big")
    number = bytearray(value.to_bytes(width, "big"))
    if number[0] & 0xC0:
        raise ValueError("does not fit beside the mark and the sign")
    number[0] |= 0x80
    return bytes(number)


def octal(value: int, width: int) -> bytes:
    """Zero-padded octal with a NUL behind it."""
    return b"%0*o\x00" % (width - 1, value)


def number(value: Number, width: int) -> bytes:
    if isinstance(value, bytes):
        return value
    if 0 <= value < 8 ** (width - 1):
        return octal(value, width)
    return base256(value, width)


def pad(data: bytes) -> bytes:
    """The zeros that fill the last block of data."""
    return bytes(-len(data) % BLOCK)


def blocks(data: bytes) -> bytes:
    return data + pad(data)


def end(count: int = 2) -> bytes:
    """The end-of-archive marker, or any other count of zero blocks."""
    return bytes(BLOCK * count)


def checksum(block: bytes, *, signed: bool = False) -> int:
    """The sum of a header's bytes, its checksum field read as blanks."""
    summed = block[:148] + b" " * 8 + block[156:]
    return sum(b - 256 if signed and b > 127 else b for b in summed)


def seal(block: bytes, *, signed: bool = False) -> bytes:
    """A header block with its checksum put right."""
    return block[:148] + b"%06o\x00 " % checksum(block, signed=signed) + block[156:]


def raw_header(
    name: Text = b"", *, mode: Number = 0o644, uid: Number = 0, gid: Number = 0, size: Number = 0, mtime: Number = 0,
    chksum: Number | None = None, typeflag: bytes = b"0", linkname: Text = b"", magic: bytes = USTAR, uname: Text = b"",
    gname: Text = b"", devmajor: Number = 0, devminor: Number = 0, prefix: Text = b"", signed: bool = False,
    patch: Mapping[int, bytes] | None = None
) -> bytes:
    """One header block. chksum None puts the right one; patch lays raw bytes over given offsets
    before the checksum is made."""
    values = {
        "name": raw(name), "mode": number(mode, 8), "uid": number(uid, 8), "gid": number(gid, 8),
        "size": number(size, 12), "mtime": number(mtime, 12), "typeflag": typeflag, "linkname": raw(linkname),
        "magic": magic, "uname": raw(uname), "gname": raw(gname), "prefix": raw(prefix),
    }
    if magic != V7:
        values["devmajor"] = number(devmajor, 8)
        values["devminor"] = number(devminor, 8)
    block = bytearray(BLOCK)
    for field, value in values.items():
        offset, width = FIELDS[field]
        if len(value) > width:
            raise ValueError(f"{field} holds {width} bytes, not {len(value)}: {value!r}")
        block[offset : offset + len(value)] = value
    for offset, data in (patch or {}).items():
        block[offset : offset + len(data)] = data
    if chksum is None:
        return seal(bytes(block), signed=signed)
    block[148:156] = number(chksum, 8).ljust(8, b"\x00")
    return bytes(block)


def split_name(name: Text) -> tuple[bytes, bytes]:
    """(prefix, name) as USTAR splits a path of up to 256 bytes at a slash."""
    path = raw(name)
    if len(path) <= 100:
        return b"", path
    cut = path.rfind(b"/", 0, 156)
    if cut <= 0 or len(path) - cut - 1 > 100:
        raise ValueError("this path does not split")
    return path[:cut], path[cut + 1 :]


# ---- entries --------------------------------------------------------------------------------
def file(name: Text, data: bytes = b"", **fields) -> bytes:
    """A regular file with its payload and padding. size= may lie about the payload."""
    fields.setdefault("size", len(data))
    return raw_header(name, **fields) + blocks(data)


def dir(name: Text, **fields) -> bytes:
    fields.setdefault("mode", 0o755)
    return raw_header(name, typeflag=b"5", **fields)


def symlink(name: Text, target: Text, **fields) -> bytes:
    fields.setdefault("mode", 0o777)
    return raw_header(name, typeflag=b"2", linkname=target, **fields)


def hardlink(name: Text, target: Text, **fields) -> bytes:
    return raw_header(name, typeflag=b"1", linkname=target, **fields)


def node(name: Text, kind: str, major: Number, minor: Number, **fields) -> bytes:
    """A device: kind "c" or "b"."""
    typeflag = {"c": b"3", "b": b"4"}[kind]
    return raw_header(name, typeflag=typeflag, devmajor=major, devminor=minor, **fields)


def fifo(name: Text, **fields) -> bytes:
    return raw_header(name, typeflag=b"6", **fields)


def whiteout(name: Text, data: bytes = b"", **fields) -> bytes:
    """The entry that hides `name` of the layers below."""
    parent, base = os.path.split(raw(name))
    return file(os.path.join(parent, b".wh." + base), data, **fields)


def opaque(directory: Text, data: bytes = b"", **fields) -> bytes:
    """The entry that hides everything the layers below have in `directory`."""
    return file(os.path.join(raw(directory), b".wh..wh..opq"), data, **fields)


# ---- headers before an entry -----------------------------------------------------------------
def pax_record(key: Text, value: Text) -> bytes:
    """`<length> <key>=<value>\\n`, the length counting itself."""
    body = b" " + raw(key) + b"=" + raw(value) + b"\n"
    length = len(body)
    while len(b"%d" % length) + len(body) != length:
        length = len(b"%d" % length) + len(body)
    return b"%d" % length + body


def pax_data(records: Mapping[str, Text] | Iterable[tuple[Text, Text]] | bytes) -> bytes:
    if isinstance(records, bytes):
        return records
    pairs = records.items() if isinstance(records, Mapping) else records
    return b"".join(pax_record(key, value) for key, value in pairs)


def pax(records, *, name: Text = "PaxHeaders.0/entry", typeflag: bytes = b"x", **fields) -> bytes:
    """An extended header for the next entry: a mapping, pairs (repeats allowed) or raw bytes."""
    data = pax_data(records)
    fields.setdefault("size", len(data))
    return raw_header(name, typeflag=typeflag, **fields) + blocks(data)


def global_pax(records, *, name: Text = "pax_global_header", **fields) -> bytes:
    return pax(records, name=name, typeflag=b"g", **fields)


def gnu_long(name: Text, kind: bytes = b"L", **fields) -> bytes:
    """GNU's long name (L) or long link target (K) for the next entry."""
    data = raw(name) + b"\x00"
    return raw_header("././@LongLink", typeflag=kind, magic=GNU, size=len(data), **fields) + blocks(data)


def with_pax_path(name: Text, entry=file, *args, **fields) -> bytes:
    """An entry whose name only a PAX record can hold."""
    tail = b"/" if raw(name).endswith(b"/") else b""
    short = raw(name)[:90].rstrip(b"/") + tail
    return pax({"path": name}) + entry(short, *args, **fields)


def with_gnu_path(name: Text, entry=file, *args, **fields) -> bytes:
    return gnu_long(name) + entry(raw(name)[:100], *args, magic=GNU, **fields)


def xattrs(attributes: Mapping[str, bytes]) -> bytes:
    """The extended header that sets these on the next entry."""
    return pax({"SCHILY.xattr." + name: value for name, value in attributes.items()})


# ---- sparse files -----------------------------------------------------------------------------
def expand(extents: Sequence[Extent], real_size: int) -> bytes:
    """What a sparse file holds."""
    content = bytearray(real_size)
    for offset, data in extents:
        content[offset : offset + len(data)] = data
    return bytes(content)


def _stored(extents: Sequence[Extent]) -> bytes:
    return b"".join(data for _, data in extents)


def _sparse_slots(pairs: Sequence[tuple[int, int]], slots: int) -> bytes:
    table = b"".join(octal(offset, 12) + octal(length, 12) for offset, length in pairs)
    return table.ljust(24 * slots, b"\x00")


def old_gnu_sparse(name: Text, extents: Sequence[Extent], real_size: int, **fields) -> bytes:
    """Type S: four extents in the header, 21 in each extension block."""
    pairs = [(offset, len(data)) for offset, data in extents]
    head, rest = pairs[:4], pairs[4:]
    data = _stored(extents)
    fields.setdefault("size", len(data))
    patch = {386: _sparse_slots(head, 4), 482: b"\x01" if rest else b"\x00", 483: octal(real_size, 12)}
    patch.update(fields.pop("patch", {}))
    tar = raw_header(name, typeflag=b"S", magic=GNU, patch=patch, **fields)
    while rest:
        here, rest = rest[:21], rest[21:]
        tar += (_sparse_slots(here, 21) + (b"\x01" if rest else b"\x00")).ljust(BLOCK, b"\x00")
    return tar + blocks(data)


def pax_sparse_0_0(name: Text, extents: Sequence[Extent], real_size: int, **fields) -> bytes:
    """Repeated GNU.sparse.offset / numbytes records."""
    records: list[tuple[Text, Text]] = [
        ("GNU.sparse.size", str(real_size)), ("GNU.sparse.numblocks", str(len(extents))),
    ]
    for offset, data in extents:
        records += [("GNU.sparse.offset", str(offset)), ("GNU.sparse.numbytes", str(len(data)))]
    return pax(records) + file(name, _stored(extents), **fields)


def pax_sparse_0_1(name: Text, extents: Sequence[Extent], real_size: int, **fields) -> bytes:
    """One GNU.sparse.map record; the block's own name is a made-up one."""
    pairs = ",".join(f"{offset},{len(data)}" for offset, data in extents)
    records = {
        "GNU.sparse.size": str(real_size), "GNU.sparse.numblocks": str(len(extents)), "GNU.sparse.name": name,
        "GNU.sparse.map": pairs,
    }
    return pax(records) + file(b"GNUSparseFile.0/x", _stored(extents), **fields)


def pax_sparse_1_0(
    name: Text, extents: Sequence[Extent], real_size: int, *, sparse_map: bytes | None = None, **fields
) -> bytes:
    """The map as decimal lines in front of the data, filled up to a block."""
    if sparse_map is None:
        lines = [str(len(extents))]
        for offset, data in extents:
            lines += [str(offset), str(len(data))]
        sparse_map = ("\n".join(lines) + "\n").encode()
    records = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name,
        "GNU.sparse.realsize": str(real_size),
    }
    return pax(records) + file(b"GNUSparseFile.0/x", blocks(sparse_map) + _stored(extents), **fields)


# ---- the two tars every page speaks of --------------------------------------------------------
T1 = dir("a/") + file("a/f", b"hello") + end()
T2 = file("b", b"abc") + file("gone", b"g") + dir("a/") + whiteout("a/f") + dir("d/") + opaque("d/") + end()
T1_DIFF_ID = "sha256:49dc1a9033e246312f0a4ddd11676907fbc956d2ac00fb30254b587545ebe96b"
T2_DIFF_ID = "sha256:965061ad248fed3a8d401bd2d0bb769f5925a711c04f95cdccd321256da80b3a"
T2_ON_T1_CHAIN_ID = "sha256:2ff2851abf5197f85dd7d73fcc3d9d4329f95dabc5ea6ef92dc35cbcb2f27bb1"
assert len(T1) == 2560, len(T1)
assert diff_id(T1) == T1_DIFF_ID, diff_id(T1)
assert diff_id(T2) == T2_DIFF_ID, diff_id(T2)
assert chain_id(T1_DIFF_ID, T2_DIFF_ID) == T2_ON_T1_CHAIN_ID
