"""erofs_*.c: what the reader says of an image is what an independent reader says; and no image makes it do anything else."""

import errno
import hashlib
import os
import random
import struct
from pathlib import Path
from typing import Any

import door
import erofsreader
import pytest
import recipes
from erofsdoor import opened
from erofsshapes import build, directory, file
from test_erofs_write import TOO_LARGE, written

GOOD = [name for name in recipes.GOOD if name != TOO_LARGE]
LONG = 1 << 22  # bytes of a file that are compared


def together(node: erofsreader.Node) -> list[tuple[int, int, int]]:
    """The pieces of a file that are no holes; those that follow each other are one."""
    found: list[tuple[int, int, int]] = []
    for offset, n, at in node.pieces:
        if at is not None and found and sum(found[-1][:2]) == offset and found[-1][1] + found[-1][2] == at:
            found[-1] = (found[-1][0], found[-1][1] + n, found[-1][2])
        elif at is not None:
            found.append((offset, n, at))
    return found


def check_equal(data: bytes, reader: Any) -> None:
    """Every path, field and byte, by both."""
    expected = erofsreader.Image(data)
    found = reader.tree()
    assert found.keys() == expected.tree.keys()
    for path, node in expected.tree.items():
        it = found[path]
        fields = (it.ino, it.mode, it.nlink, it.uid, it.gid, it.size, it.mtime_sec * 10**9 + it.mtime_nsec)
        assert fields == (node.nid, node.mode, node.nlink, node.uid, node.gid, node.size, node.mtime_ns), path
        assert it.rdev == os.makedev(*node.rdev)
        own = {name: value for name, value in reader.xattrs(path).items() if name != "user.overlay.opaque" or name in node.xattrs}
        assert own == node.xattrs, path
        if node.mode & 0o170000 == 0o120000:
            assert reader.target(path) == node.target
        if node.mode & 0o170000 == 0o100000:
            assert reader.pieces(path) == together(node), path
            if node.size < LONG:
                assert reader.read(path, node.size + 1) == expected.bytes_of(path), path


@pytest.mark.parametrize("name", GOOD)
def test_an_image_is_read_as_the_independent_reader_reads_it(name: str) -> None:
    tar = recipes.GOOD[name]()
    data = written(tar)
    with opened(data) as reader:
        check_equal(data, reader)
        reader.verify()
        assert reader.refusal(hashlib.sha256(tar).digest(), len(tar)) == ""
        assert door.lib.lay_erofs_tar_bytes(reader.e) == len(tar)


def test_what_is_not_there_is_told_as_a_file_system_tells_it() -> None:
    with opened(written(recipes.GOOD["good_t1"]())) as reader:
        some_file = next(path for path, it in reader.tree().items() if it.mode & 0o170000 == 0o100000)
        for path, why in (("none", errno.ENOENT), (f"{some_file}/x", errno.ENOTDIR), ("n" * 256, errno.ENAMETOOLONG), ("", 0), (some_file, 0)):
            try:
                reader.find(path)
                assert why == 0
            except door.CoreError as error:
                assert (error.code, error.sys_errno, error.path) == ("LAY_E_OS", why, path.encode())


# ---- refused ----

FIELDS = [
    (8, 4, "feature_compat"), (13, 1, "sb_extslots"), (14, 2, "root"), (16, 8, "inos"), (24, 8, "epoch"), (32, 4, "fixed_nsec"), (36, 4, "blocks"),
    (40, 4, "meta_blkaddr"), (44, 4, "xattr_blkaddr"), (48, 16, "uuid"), (64, 16, "volume_name"), (80, 4, "feature_incompat"),
    (84, 2, "compression"), (86, 2, "extra_devices"), (88, 2, "devt_slotoff"), (90, 1, "dirblkbits"), (91, 1, "xattr_prefix_count"),
    (92, 4, "xattr_prefix_start"), (96, 8, "packed_nid"), (104, 1, "xattr filter"), (105, 1, "inode-share"), (106, 2, "reserved"), (108, 4, "build_time"),
    (112, 8, "root nid, 64 bit"), (120, 8, "reserved"), (0, 4, "magic"), (12, 1, "blkszbits"),
]  # fmt: skip


def with_field(data: bytes, at: int, value: bytes, *, sealed: bool = True) -> bytes:
    changed = bytearray(data)
    changed[1024 + at : 1024 + at + len(value)] = value
    if sealed and struct.unpack("<I", changed[1032:1036])[0] & 1:
        changed[1028:1032] = bytes(4)
        changed[1028:1032] = struct.pack("<I", erofsreader.crc32c(bytes(changed[1024:1536])))
    return bytes(changed)


@pytest.mark.parametrize(("at", "size", "name"), FIELDS)
def test_each_field_that_we_would_not_have_written_is_named(at: int, size: int, name: str) -> None:
    tar = recipes.GOOD["good_t1"]()
    data = written(tar)
    for bit in range(8 * size):
        value = (int.from_bytes(data[1024 + at : 1024 + at + size], "little") ^ 1 << bit).to_bytes(size, "little")
        try:
            with opened(with_field(data, at, value)) as reader:
                why = reader.refusal(hashlib.sha256(tar).digest(), len(tar))
        except door.CoreError as error:
            assert error.code == "LAY_E_IMAGE"
            why = error.text
        if (name == "inos" and bit < 10) or (name == "feature_incompat" and bit == 2):
            continue                                            # how many there are, and if any is chunked, only a walk can tell: verify() does
        assert why, f"bit {bit} of {name}"
        if name not in ("blkszbits", "feature_compat", "meta_blkaddr", "blocks"):       # with another one of these, another field is wrong first
            assert name in why, f"bit {bit} of {name}: {why}"


def test_an_image_of_another_tar_is_refused() -> None:
    tar = recipes.GOOD["good_t1"]()
    with opened(written(tar)) as reader:
        assert "uuid" in reader.refusal(bytes(32), len(tar))
        assert "volume_name" in reader.refusal(hashlib.sha256(tar).digest(), len(tar) + 512)


def test_any_changed_bit_of_the_superblock_s_block_is_seen() -> None:
    data = written(recipes.GOOD["good_t1"]())
    for at in range(1024, 1536):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        try:
            with opened(bytes(changed)) as reader:
                assert reader.refusal(bytes(32), 0), at         # the bit that says that there is a checksum
        except door.CoreError as error:
            assert error.code == "LAY_E_IMAGE", at


def test_a_cut_image_is_refused_and_a_file_that_is_none(tmp_path: Path) -> None:
    data = written(recipes.GOOD["good_t1"]())
    for n in (0, 1, 1023, 1024, 1151, 1152, 1535, 1536, len(data) // 2, len(data) - 512, len(data) - 1):
        with door.fails("LAY_E_IMAGE"), opened(data[:n]):
            pass
    with door.fails("LAY_E_IMAGE"), opened(data, size=len(data) - 1):
        pass
    with door.fails("LAY_E_IMAGE") as errors, opened(bytes(100_000)):
        pass
    assert "magic" in errors[0].text
    fd = os.open(tmp_path, os.O_RDONLY)
    with door.fails("LAY_E_OS") as errors:
        door.make("lay_erofs_open", "lay_erofs *", fd, -1, door.ffi.NULL, 0)
    os.close(fd)
    assert (errors[0].sys_errno, errors[0].path) == (errno.EISDIR, os.fsencode(tmp_path))


# ---- damaged ----


def walked(reader: Any) -> None:
    """Ask all that there is to ask, whatever comes: it ends soon."""
    try:
        reader.verify()
    except door.CoreError as error:
        assert error.code == "LAY_E_MISMATCH" and "at byte" in error.text
    todo, asked = [""], 0
    while todo and asked < 2000:
        path = todo.pop()
        asked += 1
        try:
            it = reader.find(path)
            reader.xattrs(path)
            kind = it.mode & 0o170000
            if kind == 0o040000:
                todo += [os.path.join(path, name) for name in reader.names(path)]
            elif kind == 0o120000:
                reader.target(path)
            elif kind == 0o100000:
                reader.read(path, 100_000)
                reader.pieces(path) if it.size < 1 << 30 else None
        except door.CoreError as error:
            assert error.code in ("LAY_E_MISMATCH", "LAY_E_OS"), error


def nested() -> tuple[bytes, dict[str, int]]:
    """A directory in each other, two in the last, and where the entry of each is."""
    tree = {"": directory(), "a": directory(), "a/b": directory(), "a/c": directory(), "a/f": file(b"x")}
    image = build(tree).image
    entries = [at for at in range(4096, len(image), 4) if image[at + 10 : at + 12] in (b"\1\0", b"\2\0")]
    return image, {path: at for path in tree for at in entries if path and named(image, at) == path[-1:].encode()}


def named(image: bytes, at: int) -> bytes:
    """The one byte of a name that an entry of a directory has."""
    block, (nameoff,) = at // 512 * 512, struct.unpack("<H", image[at + 8 : at + 10])
    return image[block + nameoff : block + nameoff + 1] if nameoff < 512 else b""


def test_no_way_leads_around_and_no_directory_has_two_names() -> None:
    image, at = nested()
    with opened(image) as reader:
        reader.verify()
        nids = {path: reader.find(path).ino for path in at}
    assert at.keys() == {"a", "a/b", "a/c", "a/f"}
    for path, to, kind, why in (
        ("a/b", nids["a"], 2, "does not lead back"), ("a/c", nids["a/b"], 2, "two names for one directory"),
        ("a/f", nids["a/b"], 1, "another type than its name"), ("a/b", nids["a/f"], 2, "another type than its name"),
    ):  # fmt: skip
        changed = bytearray(image)
        changed[at[path] : at[path] + 8], changed[at[path] + 10] = struct.pack("<Q", to), kind
        with opened(bytes(changed)) as reader:
            with door.fails("LAY_E_MISMATCH") as errors:
                reader.tree()
            assert why in errors[0].text
            with door.fails("LAY_E_MISMATCH"):
                reader.verify()


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_image_is_told_or_read_and_never_more(seed: int) -> None:
    draw = random.Random(seed)
    tar = recipes.GOOD[draw.choice(GOOD)]()
    data = written(tar)
    (meta,) = struct.unpack("<I", data[1064:1068])
    for _ in range(60):
        changed = bytearray(data)
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(512 * meta, len(data))
            changed[at] = draw.choice((0, 255, changed[at] ^ 1 << draw.randrange(8), draw.randrange(256)))
        try:
            with opened(bytes(changed)) as reader:
                walked(reader)
        except door.CoreError as error:
            assert error.code == "LAY_E_IMAGE" and "root_nid" in error.text
