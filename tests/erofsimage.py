"""An EROFS image of a few small files, by plain Python: for tests of mounts, which must not depend on the writer."""

import struct

BLOCK = 512


def image(files: dict[str, bytes], *, slots: list[tuple[int, int]] = ()) -> bytes:
    """An image whose root has these files, each inline and of fewer than 400 bytes.

    slots   of a device table: (first block of the unified space, blocks); a file of no bytes is then all of the first one
    """
    names = sorted([".", "..", *files])
    inodes = {".": 1, "..": 1} | {name: BLOCK // 32 * (2 + at) for at, name in enumerate(sorted(files))}
    text = b"".join(name.encode() for name in names)
    entries, at = b"", 12 * len(names)
    for name in names:
        entries += struct.pack("<QHBB", inodes[name], at, 2 if name in (".", "..") else 1, 0)
        at += len(name)
    assert len(entries + text) <= BLOCK
    metadata = bytearray(BLOCK * (2 + len(files)))
    metadata[32:96] = _inode(0o40755, at, 2, inline=False, start=9)
    metadata[BLOCK : BLOCK + at] = entries + text
    for name, content in files.items():
        where = 32 * inodes[name]
        first, blocks = slots[0] if slots and not content else (0, 0)
        size = len(content) or blocks * BLOCK
        metadata[where : where + 64 + len(content)] = _inode(0o100644, size, 1, inline=bool(content), start=first) + content
    blocks = 8 + len(metadata) // BLOCK
    superblock = struct.pack(
        "<IIIBBHQqIIII16s16sIHHHBBIQBBHIQQ",
        0xE0F5E1E2, 0, 2, 9, 0, 1, 1 + len(files), 0, 0, blocks, 8, 0, b"a test's image..", b"", 8 if slots else 0, 0, len(slots), 9 if slots else 0, *[0] * 10,
    )  # fmt: skip
    table = b"".join(struct.pack("<64sII56x", b"", size, first) for first, size in slots)
    return bytes(1024) + (superblock + table).ljust(3072, b"\0") + bytes(metadata)


def _inode(mode: int, size: int, links: int, *, inline: bool, start: int) -> bytes:
    return struct.pack("<HHHHQIIIIqII16x", 1 | (2 << 1 if inline else 0), 0, mode, 0, size, start, 1, 0, 0, 7, 0, links)
