"""What a tar becomes: the plain reader and the kernel agree with what is written here by hand."""

import errno
import os
import random
import stat
import struct
from pathlib import Path

import disk
import kit
import ocimodel
import pytest
import recipes
import tarkit
from ocimodel import DIR, FIFO, FILE, LINK, NULL

import layerstore

ORIGIN, MARK = "trusted.overlay.origin", "trusted.overlay.opaque"


def both(layer, room):
    """What the reader and the kernel agree on."""
    image = kit.read(layer)
    told, seen = kit.told(image), kit.seen(kit.file_of(layer), room / "at")
    assert disk.changed(told, seen) == []
    return image


@pytest.mark.parametrize("name", [name for name in recipes.GOOD if name not in ("good_sparse_of_eight_tebibytes", "good_pax_path_over_4096")])
def test_the_kernel_sees_what_the_reader_reads(store, room, name):
    both(store.register(recipes.GOOD[name]()), room)


# ---- sparse files ------------------------------------------------------------------------------------------------------
def pieces(*ends):
    return [(at, recipes.noise(n, at + 1)) for at, n in ends]


SPARSE = {
    "aligned": (pieces((512, 512), (4096, 1024), (65536, 512)), 66048),
    "hole at the end": (pieces((0, 512), (8192, 512)), 1 << 20),
    "last piece odd": (pieces((1024, 512), (8192, 100)), 8292),
    "last piece odd, then a hole": (pieces((1024, 512), (8192, 100)), 20000),
    "odd start": (pieces((100, 512), (8192, 512)), 9000),
    "odd lengths": (pieces((0, 10), (1000, 24), (4096, 1), (4098, 7)), 5000),
    "one piece": (pieces((0, 700)), 700),
    "all hole": ([], 1 << 20),
    "all hole, odd": ([], 12345),
    "one byte at the end": (pieces((999_999, 1)), 1_000_000),
    "far": (pieces((0, 512), (5 << 30, 512)), (5 << 30) + 512),
    "far, odd": (pieces((0, 3), ((5 << 30) + 7, 512)), (5 << 30) + 600),
    "many": ([(n * 8192, bytes([n % 255 + 1]) * 4096) for n in range(60)], 60 * 8192),
    "many odd": ([(n * 1000, bytes([n % 255 + 1]) * (n + 1)) for n in range(60)], 60_000),
    "touching": (pieces((0, 512), (512, 512), (1024, 300)), 1324),
    "empty piece at the end": ([*pieces((0, 512)), (8192, b"")], 8192),
    "empty file": ([], 0),
}
FORMS = {"0.0": tarkit.pax_sparse_0_0, "0.1": tarkit.pax_sparse_0_1, "1.0": tarkit.pax_sparse_1_0, "old gnu": tarkit.old_gnu_sparse}


def content(path, extents, size):
    """Compare a file with its pieces, its holes too."""
    assert os.path.getsize(path) == size
    with open(path, "rb") as file:
        at = 0
        for offset, data in [*extents, (size, b"")]:
            gap = offset - at
            for where in {at, at + gap // 2, max(at, offset - 600)}:
                n = min(600, offset - where)
                if n > 0:
                    file.seek(where)
                    assert file.read(n) == bytes(n), f"a hole at {where}"
            file.seek(offset)
            assert file.read(len(data)) == data, f"a piece at {offset}"
            at = offset + len(data)


# A map without a piece says in the older two forms that the file is none of theirs.
@pytest.mark.parametrize(("name", "form"), [(name, form) for name in SPARSE for form in FORMS if SPARSE[name][0] or form in ("1.0", "old gnu")])
def test_sparse_files(store, room, name, form):
    extents, size = SPARSE[name]
    tar = tarkit.file("before", b"b" * 700) + FORMS[form]("s", extents, size, mtime=77) + tarkit.file("after", b"after") + tarkit.end()
    layer = store.register(tar)
    if size < 1 << 30:
        image = kit.read(layer)
        assert image.tar == tar and image.tree["s"].size == size and image.tree["s"].mtime_ns == 77 * 10**9
    assert os.stat(kit.file_of(layer)).st_blocks * 512 < 1 << 20, "holes are holes"
    with kit.seen_by_kernel(kit.file_of(layer), room / "at") as at:
        content(at / "s", extents, size)
        assert (at / "after").read_bytes() == b"after"
    with layer.open("s") as file:
        for offset, data in extents:
            file.seek(offset)
            assert file.read(len(data)) == data
    assert store.verify(layer.chain_id) == []
    assert layer.diff_size == size + 705


@pytest.mark.parametrize("seed", range(12))
def test_drawn_sparse_files(store, room, seed):
    draw = random.Random(seed)
    tar, files = b"", {}
    for n in range(8):
        unit = draw.choice([1, 512, 512, 512, 4096])
        extents, at = [], 0
        for _ in range(draw.randrange(12)):
            at += draw.randrange(0, 40) * unit
            data = recipes.noise(draw.randrange(1, 20) * unit, draw.randrange(1 << 30))
            if data:
                extents.append((at, data))
            at += len(data)
        size = at + draw.choice([0, 0, 1, 511, 512, 70000])
        form = draw.choice(list(FORMS) if extents else ["1.0", "old gnu"])
        tar += FORMS[form](f"f{n}", extents, size)
        files[f"f{n}"] = (extents, size)
    layer = store.register(tar + tarkit.end())
    image = both(layer, room)
    with kit.seen_by_kernel(kit.file_of(layer), room / "at") as at:
        for name, (extents, size) in files.items():
            assert (at / name).read_bytes() == tarkit.expand(extents, size) == image.bytes_of(name)
    for name, (extents, size) in files.items():
        with layer.open(name) as file:
            assert file.read() == tarkit.expand(extents, size)
    assert store.verify() == []


def test_holes_are_told(store, room):
    layer = store.register(tarkit.pax_sparse_1_0("s", pieces((0, 512), (1536, 512)), 2048) + tarkit.end())
    with kit.seen_by_kernel(kit.file_of(layer), room / "at") as at:
        fd = os.open(at / "s", os.O_RDONLY)
        try:
            assert os.lseek(fd, 0, os.SEEK_HOLE) == 512 and os.lseek(fd, 600, os.SEEK_DATA) == 1536
        finally:
            os.close(fd)
    assert kit.read(layer).sb["incompat"] == 4


# ---- attributes --------------------------------------------------------------------------------------------------------
ACL = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in [(1, 6, 0xFFFFFFFF), (2, 7, 1000), (4, 4, 0xFFFFFFFF), (0x10, 7, 0xFFFFFFFF), (0x20, 4, 0xFFFFFFFF)])


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 255, 511, 512, 3000, 4096, 60_000, 65_535])
def test_values_of_every_size(store, room, size):
    value = recipes.noise(size, 5) if size else b""
    tar = b""
    for made in (tarkit.file("file", b"x"), tarkit.dir("dir/"), tarkit.symlink("link", "to"), tarkit.fifo("fifo")):
        tar += tarkit.pax({"SCHILY.xattr.trusted.big": value, "SCHILY.xattr.trusted.a": "1", "SCHILY.xattr.security.z": "2"}) + made
    image = both(store.register(tar + tarkit.end()), room)
    for name in ("file", "dir", "link", "fifo"):
        assert image.tree[name].xattrs["trusted.big"] == value
        assert image.tree[name].xattrs["trusted.a"] == b"1" and image.tree[name].xattrs["security.z"] == b"2"


REFUSED_XATTRS = {
    "value of 65,536": ({"trusted.k": b"v" * 65536}, "file"),
    "no namespace": ({"foo.bar": b"v"}, "file"),
    "no dot": ({"foo": b"v"}, "file"),
    "name of 256": ({"trusted." + "n" * 248: b"v"}, "file"),
    "all too much": ({f"trusted.n{i}": b"v" * 65000 for i in range(5)}, "file"),
    "no name behind the prefix": ({"user.": b"v"}, "file"),
    "no name behind trusted": ({"trusted.": b"v"}, "file"),
    "a malformed acl": ({"system.posix_acl_access": b"junk"}, "file"),
    "an acl of version 1": ({"system.posix_acl_access": b"\1" + ACL[1:]}, "file"),
    "a default acl of a file": ({"system.posix_acl_default": ACL}, "file"),
    "an acl of a link": ({"system.posix_acl_access": ACL}, "link"),
    "a malformed capability": ({"security.capability": b"junk"}, "file"),
    "another system attribute": ({"system.foo": b"x"}, "file"),
}


@pytest.mark.parametrize("name", REFUSED_XATTRS)
def test_what_no_file_system_takes_is_refused(store, open_store, room, name):
    attributes, kind = REFUSED_XATTRS[name]
    entry = {"file": tarkit.file("f", b"x"), "link": tarkit.symlink("f", "to")}[kind]
    tar = tarkit.file("good", b"1") + tarkit.xattrs(attributes) + entry + tarkit.end()
    with pytest.raises(OSError) as refused:
        store.register(tar)
    place = room / "plain"
    place.write_bytes(b"")
    if kind == "link":
        place.unlink()
        place.symlink_to("x")
    assert "f" in str(refused.value)
    assert [n for n in os.listdir(kit.home_of(store)) if n != "l"] == []
    expected = None
    for key, value in attributes.items():
        try:
            os.setxattr(place, key, value, follow_symlinks=False)
        except OSError as error:
            expected = error.errno
    if expected:
        assert refused.value.errno == expected, f"{refused.value} where setxattr says {os.strerror(expected)}"


def test_all_attributes_of_a_file_are_as_large_as_an_inode_says(store, room):
    # Five entries of four bytes and a name of two or three; the header has twelve.
    last = 262_148 - 12 - 4 * 65_008 - 6
    for more in (0, 1):
        attributes = {f"trusted.n{i}": b"v" * 65_000 for i in range(4)} | {"trusted.z9": b"z" * (last + more)}
        tar = tarkit.xattrs(attributes) + tarkit.file("f", b"x") + tarkit.end()
        if more:
            with pytest.raises(OSError, match="f") as refused:
                store.register(tar)
            assert refused.value.errno == errno.ENOSPC
        else:
            assert both(store.register(tar), room).tree["f"].xattrs == attributes


def test_the_longest_name_of_an_attribute(store, room):
    key = "trusted." + "n" * 247
    image = both(store.register(tarkit.xattrs({key: b"v"}) + tarkit.file("f") + tarkit.end()), room)
    assert image.tree["f"].xattrs[key] == b"v"


def test_user_attributes_of_what_cannot_have_them_are_dropped(store, room):
    kinds = {"l": tarkit.symlink("l", "t"), "p": tarkit.fifo("p"), "c": tarkit.node("c", "c", 1, 3), "f": tarkit.file("f"), "d": tarkit.dir("d/")}
    image = both(store.register(b"".join(tarkit.xattrs({"user.k": b"v", "trusted.k": b"v"}) + made for made in kinds.values()) + tarkit.end()), room)
    for name in "lpc":
        assert set(image.tree[name].xattrs) == {"trusted.k"}, name
    for name in "fd":
        assert set(image.tree[name].xattrs) == {"user.k", "trusted.k"}, name


def test_marks_of_overlayfs_are_not_taken_over(store, room):
    marks = {f"trusted.overlay.{name}": b"y" for name in ("opaque", "redirect", "metacopy", "origin", "whiteout", "foo")} | {"trusted.over": b"kept"}
    image = both(store.register(tarkit.xattrs(marks) + tarkit.dir("d/") + tarkit.xattrs(marks) + tarkit.file("f") + tarkit.end()), room)
    assert set(image.tree["d"].xattrs) == set(image.tree["f"].xattrs) == {"trusted.over"}


def test_an_acl_is_what_chmod_leaves_of_it(store, room):
    tar = tarkit.xattrs({"system.posix_acl_access": ACL}) + tarkit.file("f", b"x", mode=0o640) + tarkit.end()
    image = both(store.register(tar), room)
    place = room / "plain"
    place.write_bytes(b"")
    os.setxattr(place, "system.posix_acl_access", ACL)
    os.chmod(place, 0o640)
    assert image.tree["f"].xattrs["system.posix_acl_access"] == os.getxattr(place, "system.posix_acl_access")
    assert stat.S_IMODE(image.tree["f"].mode) == 0o640
    small = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in [(1, 7, 0xFFFFFFFF), (4, 7, 0xFFFFFFFF), (0x20, 7, 0xFFFFFFFF)])
    image = both(store.register(tarkit.xattrs({"system.posix_acl_access": small}) + tarkit.file("f", mode=0o604) + tarkit.end()), room)
    assert image.tree["f"].xattrs == {} and stat.S_IMODE(image.tree["f"].mode) == 0o604


def test_a_default_acl_stays_and_is_inherited_by_nothing(store, room):
    tar = tarkit.xattrs({"system.posix_acl_default": ACL}) + tarkit.dir("d/") + tarkit.file("d/f", mode=0o666) + tarkit.dir("d/e/", mode=0o777) + tarkit.end()
    image = both(store.register(tar), room)
    assert image.tree["d"].xattrs == {"system.posix_acl_default": ACL}
    assert image.tree["d/f"].xattrs == image.tree["d/e"].xattrs == {}
    assert image.tree["d/f"].mode == 0o100666


def test_capabilities(store, room):
    image = both(store.register(tarkit.xattrs({"security.capability": tarkit.CAPABILITY}) + tarkit.file("f", b"x", mode=0o755, uid=5) + tarkit.end()), room)
    assert image.tree["f"].xattrs == {"security.capability": tarkit.CAPABILITY}


# ---- everything else an inode has --------------------------------------------------------------------------------------
def test_devices(store, room):
    numbers = [(0, 0), (1, 3), (255, 255), (256, 256), (300, 70000), (4095, (1 << 20) - 1)]
    tar = b"".join(tarkit.node(f"{kind}{i}", kind, *pair, uid=i) for i, pair in enumerate(numbers) for kind in "cb") + tarkit.fifo("p", mode=0o622)
    image = both(store.register(tar + tarkit.end()), room)
    for i, pair in enumerate(numbers):
        assert image.tree[f"c{i}"].rdev == pair == image.tree[f"b{i}"].rdev
    assert image.tree["p"].mode == 0o010622


@pytest.mark.parametrize("pair", [(1 << 32, 0), (0, 1 << 32), (-1, 0)])
def test_devices_out_of_range(store, pair):
    with pytest.raises(Exception, match="out of range"):
        store.register(tarkit.node("c", "c", *pair) + tarkit.end())


LAST = (9223372036, 854775807)
TIMES = {
    "0": 0, "1": 10**9, "1700000000.123456789": 1700000000123456789, "0.000000001": 1, "-5": 0, "-5.25": 0, "-0.5": 0, "9223372036": 9223372036 * 10**9,
    "9223372036.854775807": 9223372036854775807, "9223372037": 0, "32503680000": 0, "1000000000000": 0, "1.5": 1500000000, "2147483648": 2147483648 * 10**9,
    "4294967296.7": 4294967296700000000,
}  # fmt: skip


def test_times(store, room):
    tar = b"".join(
        tarkit.pax({"mtime": text}) + made(f"{kind}{i}", *more)
        for i, text in enumerate(TIMES) for kind, made, more in (("f", tarkit.file, ()), ("l", tarkit.symlink, ("t",)), ("p", tarkit.fifo, ()))
    )  # fmt: skip
    tar += b"".join(tarkit.pax({"mtime": text}) + tarkit.dir(f"d{i}/") + tarkit.file(f"d{i}/f", mtime=3) for i, text in enumerate(TIMES))
    image = both(store.register(tar + tarkit.end()), room)
    for i, (text, expected) in enumerate(TIMES.items()):
        for kind in "flpd":
            assert image.tree[f"{kind}{i}"].mtime_ns == expected, f"{kind} of {text}"


def test_times_in_base_256(store, room):
    image = both(store.register(tarkit.file("n", mtime=-5) + tarkit.file("h", mtime=1 << 60) + tarkit.file("y", mtime=8589934592) + tarkit.end()), room)
    assert [image.tree[name].mtime_ns for name in "nhy"] == [0, 0, 8589934592 * 10**9]


def test_modes_and_owners(store, room):
    modes = [0, 0o7777, 0o4755, 0o2711, 0o1777, 0o600, 0o400, 0o100644, 0o40755]
    tar = b"".join(tarkit.file(f"f{i}", b"x", mode=mode, uid=70000 + i, gid=(1 << 31) + i) + tarkit.dir(f"d{i}/", mode=mode) for i, mode in enumerate(modes))
    tar += tarkit.symlink("l", "x", mode=0o600, uid=(1 << 32) - 2, gid=65536)
    image = both(store.register(tar + tarkit.end()), room)
    for i, mode in enumerate(modes):
        assert stat.S_IMODE(image.tree[f"f{i}"].mode) == mode & 0o7777 == stat.S_IMODE(image.tree[f"d{i}"].mode)
        assert (image.tree[f"f{i}"].uid, image.tree[f"f{i}"].gid) == (70000 + i, (1 << 31) + i)
    assert (image.tree["l"].mode, image.tree["l"].uid, image.tree["l"].gid) == (0o120777, (1 << 32) - 2, 65536)


@pytest.mark.parametrize("owner", [{"uid": (1 << 32) - 1}, {"gid": (1 << 32) - 1}])
def test_owners_that_chown_refuses(store, owner):
    with pytest.raises(layerstore.TarFormatError, match=r'out of range.*"f"'):
        store.register(tarkit.file("f", **owner) + tarkit.end())


def test_names_that_symlink_and_open_refuse(store):
    with pytest.raises(layerstore.TarFormatError, match='"s"'):
        store.register(tarkit.symlink("s", "") + tarkit.end())
    for tar in (tarkit.pax({"linkpath": "t" * 4096}) + tarkit.symlink("s", "x"), tarkit.pax({"path": "n" * 256}) + tarkit.file("s")):
        with pytest.raises(OSError) as refused:
            store.register(tar + tarkit.end())
        assert refused.value.errno == errno.ENAMETOOLONG


# ---- names that meet ---------------------------------------------------------------------------------------------------
def test_hard_links(store, room):
    tar = (
        tarkit.file("a", b"first", mode=0o644, uid=1, mtime=10) + tarkit.hardlink("b", "a", mode=0o600, uid=2, gid=3, mtime=20)
        + tarkit.xattrs({"trusted.k": b"v"}) + tarkit.hardlink("c", "/a", mode=0o640, uid=4, mtime=30)
        + tarkit.file("a", b"second", mode=0o644, mtime=40) + tarkit.hardlink("d", "a", size=999, mode=0o611, mtime=50)
        + tarkit.symlink("s", "a", mtime=5) + tarkit.hardlink("t", "s", uid=9, mtime=60) + tarkit.fifo("p") + tarkit.hardlink("q", "p", mode=0o604)
    )  # fmt: skip
    image = both(store.register(tar + tarkit.end()), room)
    tree = image.tree
    assert tree["b"].nid == tree["c"].nid != tree["a"].nid == tree["d"].nid
    assert image.bytes_of("b") == b"first" and image.bytes_of("a") == b"second"
    assert (tree["b"].mode, tree["b"].uid, tree["b"].gid, tree["b"].mtime_ns, tree["b"].nlink) == (0o100640, 4, 0, 30 * 10**9, 2)
    assert tree["b"].xattrs == {"trusted.k": b"v"}
    assert (tree["a"].mode, tree["a"].mtime_ns, tree["a"].nlink) == (0o100611, 50 * 10**9, 2)
    assert tree["s"].nid == tree["t"].nid and tree["t"].target == "a" and tree["t"].uid == 9 and tree["s"].mtime_ns == 5 * 10**9
    assert tree["p"].nid == tree["q"].nid and tree["p"].mode == 0o010604


def test_replacement(store, room):
    tar = (
        tarkit.dir("d/", mode=0o700, mtime=1) + tarkit.file("d/f", b"1") + tarkit.dir("d/", mode=0o755, uid=7, mtime=2)
        + tarkit.dir("e/") + tarkit.file("e/f", b"1") + tarkit.file("e", b"now a file")
        + tarkit.file("g", b"1") + tarkit.dir("g/") + tarkit.file("g/h", b"2") + tarkit.symlink("s", "d") + tarkit.file("s", b"no link")
    )  # fmt: skip
    image = both(store.register(tar + tarkit.end()), room)
    assert set(image.tree) == {"", "d", "d/f", "e", "g", "g/h", "s"}
    assert (image.tree["d"].mode, image.tree["d"].uid, image.tree["d"].mtime_ns) == (0o40755, 7, 2 * 10**9)
    assert image.bytes_of("e") == b"now a file" and image.bytes_of("s") == b"no link"


def test_marks(store, room):
    base = store.register(tarkit.dir("d/") + tarkit.file("d/f", b"1") + tarkit.file("d/g") + tarkit.dir("o/") + tarkit.file("o/x") + tarkit.dir("w/") + tarkit.file("w/x") + tarkit.end())
    tar = (
        tarkit.dir("d/", mode=0o711) + tarkit.whiteout("d/f", mode=0o777, uid=5, gid=6, mtime=99) + tarkit.dir("o/") + tarkit.file("o/new", b"n") + tarkit.opaque("o")
        + tarkit.whiteout("w") + tarkit.dir("w/") + tarkit.file("w/y", b"y") + tarkit.dir("e/") + tarkit.whiteout("e/never")
    )  # fmt: skip
    layer = store.register(tar + tarkit.end(), base.chain_id)
    tree = both(layer, room).tree
    assert tree["d/f"].is_whiteout and tree["d/f"].mode == stat.S_IFCHR and (tree["d/f"].uid, tree["d/f"].gid, tree["d/f"].mtime_ns) == (5, 6, 99 * 10**9)
    assert tree["o"].xattrs == {MARK: b"y"} and tree["w"].xattrs == {MARK: b"y"}
    assert tree["d"].xattrs.get(ORIGIN, b"") == b"" and tree["e"].xattrs == {ORIGIN: b""}
    with store.create_rw_layer("box", layer.chain_id) as box:
        place = box.mount()
        assert sorted(os.listdir(place)) == ["d", "e", "o", "w"]
        assert os.listdir(place + "/d") == ["g"] and os.listdir(place + "/o") == ["new"] and os.listdir(place + "/w") == ["y"] and os.listdir(place + "/e") == []
        box.unmount()
    assert {entry.name.strip("/") for entry in layer.merged()} == {"d", "d/g", "e", "o", "o/new", "w", "w/y"}


def test_an_opaque_root(store, room):
    base = store.register(tarkit.T1)
    layer = store.register(tarkit.file("n", b"n") + tarkit.opaque("") + tarkit.end(), base.chain_id)
    assert both(layer, room).tree[""].xattrs == {MARK: b"y"}
    with store.create_rw_layer("box", layer.chain_id) as box, box.mounted() as place:
        assert os.listdir(place) == ["n"]


@pytest.mark.parametrize("tar", [tarkit.whiteout("a") + tarkit.file("a/b"), tarkit.file("a") + tarkit.whiteout("a"), tarkit.whiteout(""), tarkit.whiteout("."), tarkit.whiteout(".."), tarkit.file("a") + tarkit.file("a/b")])
def test_refused_names(store, tar):
    with pytest.raises((OSError, layerstore.LayerStoreError)):
        store.register(tar + tarkit.end())
    assert [n for n in os.listdir(kit.home_of(store)) if n != "l"] == []


@pytest.mark.parametrize("name", [tarkit.file("../x"), tarkit.file("/../x"), tarkit.file(".."), tarkit.hardlink("h", "../x"), tarkit.hardlink("h", "/../x"), tarkit.symlink("l", "..") + tarkit.file("l/f"), tarkit.dir("i/") + tarkit.symlink("i/up", "..") + tarkit.symlink("i/up/esc", "..") + tarkit.file("i/up/esc/new")])
def test_breakouts(store, name):
    with pytest.raises((layerstore.BreakoutError, OSError)):
        store.register(name + tarkit.end())


# ---- drawn ones against the model --------------------------------------------------------------------------------------
@pytest.mark.parametrize("flatten", ["0", "2"])
@pytest.mark.parametrize("seed", range(30))
def test_drawn_stacks_show_what_the_model_says(open_store, seed, flatten):
    store = open_store(**{"erofs.flatten": flatten, "durability": "none"})
    draw = random.Random(seed)
    tree, chain, layers = {}, "", []
    for _ in range(4):
        entries = ocimodel.drawn(draw, sorted(tree))
        tar = b"".join(entry.tar() for entry in entries) + tarkit.end()
        try:
            after = ocimodel.applied(tree, entries)
        except ocimodel.RefusedError:
            with pytest.raises((OSError, layerstore.LayerStoreError)):
                store.register(tar, chain)
            continue
        layer = store.register(tar, chain)
        layers.append(layer)
        chain, tree = layer.chain_id, after
    kinds = {DIR: "dir", FILE: "file", LINK: "link", FIFO: "fifo", NULL: "char"}
    expected = {name: kinds[node.kind] for name, node in tree.items()}
    if not chain:
        return
    with store.create_rw_layer("box", chain) as box, box.mounted() as place:
        state = disk.disk_state(place, times=True)
        assert {os.fsdecode(name): facts[0] for name, facts in state.items() if name} == expected
        for name, node in tree.items():
            facts = state[os.fsencode(name)]
            if node.mtime is not None:
                assert facts[1:4] == (oct(0o777 if node.kind == LINK else node.mode), node.uid, 0), name
            if node.kind == FILE:
                assert Path(place, name).read_bytes() == node.data.encode()
            if node.kind == LINK:
                assert os.readlink(os.path.join(place, name)) == node.data
            if node.mtime is not None and node.kind not in (LINK, DIR):
                assert facts[-1] == node.mtime * 10**9, name
    files = {name for name, node in tree.items() if node.kind != DIR}
    assert files <= {entry.name.strip("/") for entry in layers[-1].merged()} <= {*expected, ""}
    assert store.verify() == []
