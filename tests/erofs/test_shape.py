"""The bytes of an image: the header, the padding, where inodes and directories lie, and what is inline."""

import hashlib
import io
import os
import stat
import struct

import erofsreader
import kit
import pytest
import recipes
import tarkit

# Its one odd piece would be an expanded file of eight tebibytes.
TOO_LARGE = "good_sparse_of_eight_tebibytes"


def test_what_would_pass_two_tebibytes_is_refused(store, root):
    with pytest.raises(OSError, match="2 TiB"):
        store.register(recipes.GOOD[TOO_LARGE]())
    assert [name for name in os.listdir(kit.home_of(store)) if name != "l"] == []


@pytest.mark.parametrize("name", [name for name in recipes.GOOD if name != TOO_LARGE])
def test_an_image_of_any_recipe(store, name):
    tar = recipes.GOOD[name]()
    layer = store.register(tar)
    path = kit.file_of(layer)
    image = erofsreader.read(path)
    assert image.tar == tar
    assert hashlib.sha256(path.read_bytes()[4096 : 4096 + len(tar)]).hexdigest() == layer.diff_id.split(":")[1]
    sb = image.sb
    assert sb["compat"] == 3 and sb["blkszbits"] == 9 and sb["dirblkbits"] == 0 and sb["root_nid"] == 1
    assert sb["volume"].rstrip(b"\0") == b"tar:%d" % len(tar)
    assert sb["meta_blkaddr"] == 8 + (len(tar) + 511) // 512
    assert sb["uuid"].strip(b"\0")
    data = path.read_bytes()
    at = sb["meta_blkaddr"] * 512
    assert not any(data[at : at + 32]), "slot 0 is left free"
    assert not any(data[:1024]) and not any(data[1152:4096])
    root = image.tree[""]
    assert (root.mode, root.uid, root.gid, root.mtime_ns, root.nid) == (0o40755, 0, 0, 0, 1)
    for path, node in image.tree.items():
        if stat.S_ISLNK(node.mode):
            assert node.mode == 0o120777, path
        if stat.S_ISREG(node.mode):
            for piece in node.pieces:
                if piece.image_offset is not None and not sb["incompat"]:
                    assert piece.image_offset >= 4096


def test_an_empty_tar_is_6144_bytes(store):
    layer = store.register(bytes(1024))
    assert os.path.getsize(kit.file_of(layer)) in (5632, 6144)     # the directory inline, or in a block of its own
    image = kit.read(layer)
    assert set(image.tree) == {""} and image.sb["inos"] == 1 and image.tree[""].nlink == 2


def test_two_roots_make_the_same_image(open_store, room):
    one, other = open_store(room / "one"), open_store(room / "other")
    for name in ("good_t2", "good_hard_links", "good_names_with_dots", "good_sparse_duplicate"):
        tar = recipes.GOOD[name]()
        assert kit.file_of(one.register(tar)).read_bytes() == kit.file_of(other.register(io.BytesIO(tar))).read_bytes()


def test_uuids_differ(store):
    layers = [store.register(tarkit.file("f", b"%d" % n) + tarkit.end()) for n in range(20)]
    assert len({kit.read(layer).sb["uuid"] for layer in layers}) == 20


def inode_at(image, nid):
    """(layout, bytes of inode and xattrs, size) of an inode."""
    offset = image.meta + 32 * nid
    form, icount = struct.unpack("<HH", image.data[offset : offset + 4])
    (size,) = struct.unpack("<Q", image.data[offset + 8 : offset + 16])
    return form >> 1 & 7, 64 + (12 + 4 * (icount - 1) if icount else 0), size, offset


@pytest.mark.parametrize("xattr", [None, 0, 1, 2, 3, 5, 9, 17, 30, 100])
def test_links_of_every_length_are_inline_while_they_can_be(store, room, xattr):
    tar = b""
    for n in range(1, 601):
        if xattr is not None:
            tar += tarkit.pax({"SCHILY.xattr.trusted.k": b"v" * xattr, "linkpath": "t" * n})
        else:
            tar += tarkit.pax({"linkpath": "t" * n})
        tar += tarkit.symlink(f"link{n:03}", b"x", uid=n)
    layer = store.register(tar + tarkit.end())
    image = kit.read(layer)
    for n in range(1, 601):
        node = image.tree[f"link{n:03}"]
        assert node.target == "t" * n
        layout, length, size, _ = inode_at(image, node.nid)
        room_inline = 512 - length % 32 if length % 32 else (511 if xattr is None else 512)
        assert size == n
        if n <= min(room_inline, 511):
            assert layout == 2, f"{n} bytes behind {length} are inline"
        elif n > room_inline:
            assert layout == 0, f"{n} bytes behind {length} are not inline"
    with kit.seen_by_kernel(kit.file_of(layer), room / "at") as at:
        for n in range(1, 601):
            assert os.readlink(at / f"link{n:03}") == "t" * n
            if xattr is not None:
                assert os.getxattr(at / f"link{n:03}", "trusted.k", follow_symlinks=False) == b"v" * xattr


def test_long_links(store, room):
    lengths = [600, 1023, 1024, 1025, 2047, 2048, 4000, 4094, 4095]
    tar = b"".join(tarkit.gnu_long("y" * n, b"K") + tarkit.symlink(f"l{n}", b"y" * 100, magic=tarkit.GNU) for n in lengths)
    layer = store.register(tar + tarkit.end())
    image = kit.read(layer)
    with kit.seen_by_kernel(kit.file_of(layer), room / "at") as at:
        for n in lengths:
            assert os.readlink(at / f"l{n}") == "y" * n == image.tree[f"l{n}"].target


ODD_NAMES = [b"!", b"-a", b".x", b"...", b"..b", b"+", b"\x01c", b"\xff" * 255, b"n" * 255, b"\xff", b"\x7f", b" ", b"~", b"a b", b"\xe4", b",", b"#", b"-", b".-", b"!x"]


def test_odd_names(store, room):
    tar = b"".join(tarkit.with_pax_path(name, tarkit.file, b"of " + name[:20]) for name in ODD_NAMES)
    tar += tarkit.dir("deep/") + b"".join(tarkit.with_pax_path(b"deep/" + name, tarkit.file, b"in " + name[:20]) for name in ODD_NAMES)
    layer = store.register(tar + tarkit.end())
    image = kit.read(layer)
    with kit.seen_by_kernel(kit.file_of(layer), room / "at") as at:
        for name in ODD_NAMES:
            with open(os.fsencode(at) + b"/" + name, "rb") as file:
                assert file.read() == b"of " + name[:20]
            with open(os.fsencode(at) + b"/deep/" + name, "rb") as file:
                assert file.read() == b"in " + name[:20]
            assert image.bytes_of(os.fsdecode(name)) == b"of " + name[:20]
        assert sorted(os.listdir(os.fsencode(at))) == sorted([*ODD_NAMES, b"deep"])
    for name in ODD_NAMES:
        with layer.open(os.fsdecode(b"deep/" + name)) as file:
            assert file.read() == b"in " + name[:20]


def test_a_hundred_thousand_names(store, room):
    header = bytearray(tarkit.raw_header(b"d/" + b"x" * 60))
    tar, names = [tarkit.dir("d/")], set()
    for n in range(100_000):
        name = (b"%x" % n if n % 3 else b"-%d!" % n).ljust(n % 60 + 8, b".")[:60]
        header[2:62] = name.ljust(60, b"\0")
        tar.append(tarkit.seal(bytes(header)) if n % 1000 == 0 else sealed(header))
        names.add(name)
    layer = store.register(b"".join(tar) + tarkit.end())
    with kit.seen_by_kernel(kit.file_of(layer), room / "at") as at:
        assert set(os.listdir(os.fsencode(at / "d"))) == names
        for name in names:
            os.stat(os.fsencode(at / "d") + b"/" + name)
    with layer.open("d/" + os.fsdecode(max(names))) as file:
        assert file.read() == b""


def sealed(header: bytearray) -> bytes:
    """A header with its checksum, quickly."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


SIZES = (0, 1, 511, 512, 513, 1023, 4095, 4096, 4097, 65536, 1 << 20, (1 << 20) + 1)


def test_sizes(store, room):
    tar = b"".join(tarkit.file(f"s{n}", recipes.noise(n, n or 1) if n else b"") for n in SIZES) + tarkit.end()
    layer = store.register(tar)
    image = kit.read(layer)
    with kit.seen_by_kernel(kit.file_of(layer), room / "at") as at:
        for n in SIZES:
            content = recipes.noise(n, n) if n else b""
            assert (at / f"s{n}").read_bytes() == content == image.bytes_of(f"s{n}")
            status = os.stat(at / f"s{n}")
            assert status.st_blocks == (n + 511) // 512 and status.st_ino == image.tree[f"s{n}"].nid
            with layer.open(f"s{n}") as file:
                assert file.read() == content
    offset = 0
    for n in SIZES:
        if n:
            assert image.tree[f"s{n}"].pieces[0].image_offset == 4096 + offset + 512
        offset += 512 + (n + 511) // 512 * 512


def test_directories_have_subdirectories_for_links(store):
    layer = store.register(tarkit.dir("a/") + tarkit.dir("a/b/") + tarkit.dir("a/c/") + tarkit.file("a/f") + tarkit.end())
    image = kit.read(layer)
    assert image.tree["a"].nlink == 4 and image.tree["a/b"].nlink == 2 and image.tree[""].nlink == 3
