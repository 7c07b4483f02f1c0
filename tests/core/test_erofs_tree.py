"""erofs_tree.h: the tree that a tar makes in memory is the one that unpacking makes on the disk, and so is every error."""

import errno
import os
import random
from pathlib import Path

import door
import etrees
import pytest
import recipes
import refused
import sinks
import tarkit
from tarkit import dir, end, fifo, file, hardlink, node, opaque, symlink, whiteout

LONG = "n" * 255


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The kernel's form of an ACL: tags, rights, ids."""
    return (2).to_bytes(4, "little") + b"".join(t.to_bytes(2, "little") + r.to_bytes(2, "little") + i.to_bytes(4, "little") for t, r, i in entries)


NONE = 0xFFFFFFFF
PLAIN_ACL = acl((1, 6, NONE), (4, 4, NONE), (32, 0, NONE))
NAMED_ACL = acl((1, 7, NONE), (2, 5, 1000), (4, 5, NONE), (8, 1, 1000), (16, 3, NONE), (32, 1, NONE))
ATTRIBUTES = {
    "user.a": [b"", b"1", b"x" * 3000],
    "user.": [b"1"],
    "user.overlay.opaque": [b"y"],
    "trusted.overlay.opaque": [b"y"],
    "trusted.overlay." + "x" * 300: [b"y"],
    "trusted.b": [b"2", b""],
    "trusted.": [b"2"],
    "security.capability": [
        tarkit.CAPABILITY, b"short", tarkit.CAPABILITY[:3] + b"\3" + tarkit.CAPABILITY[4:], tarkit.CAPABILITY[:3] + b"\3" + tarkit.CAPABILITY[4:] + bytes(4),
        tarkit.CAPABILITY[:3] + b"\3" + tarkit.CAPABILITY[4:] + b"\xe8\3\0\0", tarkit.CAPABILITY[:3] + b"\3" + tarkit.CAPABILITY[4:] + b"\xff" * 4,
        b"\2" + tarkit.CAPABILITY[1:], b"\0" + tarkit.CAPABILITY[1:],
    ],
    "security.other": [b"3", b"4"],
    "security.": [b"3"],
    "system.posix_acl_access": [
        b"", b"123", PLAIN_ACL, NAMED_ACL, acl(), acl((1, 7, 5), (4, 5, 6), (16, 2, 7), (32, 1, 8)), NAMED_ACL[:-1], b"\3" + NAMED_ACL[1:],
        acl((1, 7, NONE), (2, 5, NONE), (4, 5, NONE), (16, 3, NONE), (32, 1, NONE)), acl((1, 7, NONE), (2, 5, 1), (4, 5, NONE), (32, 1, NONE)),
        acl((1, 15, NONE), (4, 5, NONE), (32, 1, NONE)), acl((1, 7, NONE), (32, 1, NONE)), acl((64, 7, NONE)), acl((1, 7, NONE), (1, 7, NONE), (4, 5, NONE), (32, 1, NONE)),
    ],
    "system.posix_acl_default": [b"", PLAIN_ACL, NAMED_ACL, acl(), b"12345"],
    "system.posix_acl_accessory": [b"1"],
    "system.other": [b"1"],
    "other": [b"1"],
    "other.ns": [b"1"],
    "": [b"1"],
    "user." + "n" * 250: [b"1"],
    "user." + "n" * 251: [b"1"],
}  # fmt: skip


FINE = [(name, value) for name, value in [
    ("user.a", b"1"), ("user.b", b""), ("trusted.b", b"2"), ("security.capability", tarkit.CAPABILITY), ("security.other", b"3"),
    ("system.posix_acl_access", PLAIN_ACL), ("system.posix_acl_access", NAMED_ACL), ("system.posix_acl_access", b""),
]]  # fmt: skip


class Drawn:
    """Entries of a few names, so that each meets what came before it: now and then one that must be refused."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.wild = self.draw.random() < 0.3

    def name(self) -> str:
        d = self.draw
        parts = [d.choice("abcd") for _ in range(d.choice((1, 1, 2, 2, 3, 4)))]
        if self.wild and d.random() < 0.1:
            parts.insert(d.randrange(len(parts) + 1), d.choice(("..", ".", "", LONG, LONG + "x", ".wh.a")))
        return d.choice(("", "", "", "./", "/")) + "/".join(parts)

    def target(self) -> str:
        d = self.draw
        parts = [d.choice(("a", "b", "c", "d", "..", ".")) for _ in range(d.randrange(1, 4))]
        return d.choice(("", "", "/")) + "/".join(parts)

    def fields(self) -> dict[str, int]:
        d = self.draw
        owner = d.choice((0, 0, 0, 1000, 70000, 2**32 - 2, *((2**32 - 1,) if self.wild else ())))
        return {"uid": owner, "gid": d.choice((0, 0, 5)), "mode": d.choice((0o644, 0o755, 0o4755, 0o2711, 0o1777, 0)), "mtime": d.randrange(1, 10**9)}

    def attributes(self, *, links: bool) -> bytes:
        d = self.draw
        if d.random() < 0.6:
            return b""
        if self.wild and d.random() < 0.2:
            name = d.choice(list(ATTRIBUTES))
            return tarkit.xattrs({name: d.choice(ATTRIBUTES[name])})
        chosen = dict(d.sample(FINE, d.randrange(1, 4)))
        return tarkit.xattrs({name: value for name, value in chosen.items() if links or not name.startswith("system.")})

    def mark(self, name: str) -> bytes:
        if self.draw.random() < 0.3:
            return opaque(os.path.dirname(name) + "/" if "/" in name.strip("/") else "")
        return whiteout(name, uid=self.draw.choice((0, 7)))

    def entry(self) -> bytes:
        name, target = self.name(), self.name()
        if len(name) < 90 and len(target) < 90:
            return self.short(name, target)
        return tarkit.gnu_long(name) + tarkit.gnu_long(target, b"K") + self.short("a", "b")

    def short(self, name: str, target: str) -> bytes:
        d, fields = self.draw, self.fields()
        kind = d.choices(("file", "dir", "link", "hard", "mark", "node", "sparse", "odd"), (30, 25, 12, 12, 12, 5, 3, 1 if self.wild else 0))[0]
        if kind == "mark":
            return self.mark(name)
        before = self.attributes(links=kind not in ("link", "hard"))
        if kind == "file":
            return before + file(name, recipes.noise(d.choice((0, 1, 511, 512, 2000)), d.randrange(9)), **fields)
        if kind == "dir":
            default = tarkit.xattrs({"system.posix_acl_default": NAMED_ACL}) if d.random() < 0.1 else b""
            return (default or before) + dir(name + "/", **fields)
        if kind == "link":
            return before + symlink(name, self.target(), **fields)
        if kind == "hard":
            return before + hardlink(name, target, **fields)
        if kind == "node":
            return before + (fifo(name, **fields) if d.random() < 0.4 else node(name, d.choice("bc"), d.choice((0, 0, 5, 4095)), d.choice((0, 3, 1 << 19)), **fields))
        if kind == "sparse":
            return tarkit.pax_sparse_1_0(name, recipes.HOLED, 300_000)
        return file(name, b"odd", typeflag=d.choice((b"7", b"Z", b"g")))

    def tar(self) -> bytes:
        """Most of what would be refused is left out: a tar ends with that, and few should soon."""
        tar = b""
        for _ in range(self.draw.choice((3, 8, 20, 40))):
            longer = tar + self.entry()
            if self.draw.random() < 0.04 or isinstance(etrees.outcome(lambda longer=longer: etrees.of(longer + end())), etrees.Tree):
                tar = longer
        return tar + end()

    def keeping(self) -> bytes:
        """A tar that is not refused, and that takes no directory away again."""
        tar, directories = b"", set[bytes]()
        for _ in range(self.draw.choice((3, 8, 14))):
            longer = tar + self.entry()
            made = etrees.outcome(lambda longer=longer: etrees.of(longer + end()))
            if isinstance(made, etrees.Tree):
                now = {path for path, facts in made.state.items() if facts[0] == "dir"}
                if directories <= now:
                    tar, directories = longer, now
        return tar + end()


@pytest.mark.parametrize("seed", range(40))
def test_drawn_tars_make_what_they_unpack_to(room: Path, seed: int) -> None:
    for i in range(10):
        tar = Drawn(seed * 1000 + i).tar()
        assert etrees.differences(tar, room) == [], f"seed {seed * 1000 + i}"


@pytest.mark.parametrize("seed", range(10))
def test_drawn_tars_stand_on_others_as_the_unpacked_ones_do(room: Path, seed: int) -> None:
    for i in range(5):
        drawn = Drawn(seed * 1000 + i)
        with etrees.layers(room, [drawn.keeping() for _ in range(drawn.draw.randrange(4))]) as lowers:
            assert etrees.differences(drawn.keeping(), room, lowers) == [], f"seed {seed * 1000 + i}"


@pytest.mark.parametrize("name", recipes.GOOD)
def test_a_named_tar_makes_the_tree_that_it_unpacks_to(room: Path, name: str) -> None:
    assert etrees.differences(recipes.GOOD[name](), room) == []


@pytest.mark.parametrize("name", [*refused.BAD, *refused.UNSUPPORTED])
def test_what_is_refused_is_refused_with_the_same_error(room: Path, name: str) -> None:
    tar = {**refused.BAD, **refused.UNSUPPORTED}[name]()[0]
    assert isinstance(etrees.outcome(lambda: etrees.of(tar)), etrees.Told)
    assert etrees.differences(tar, room) == []


KINDS = {
    "file": lambda: file("x", b"1", mode=0o640, uid=9),
    "dir": lambda: dir("x/", mode=0o750),
    "dir again": lambda: dir("x/", mode=0o705) + tarkit.xattrs({"user.new": b"1"}) + dir("x/", mode=0o2750),
    "link": lambda: symlink("x", "y"),
    "fifo": lambda: fifo("x", mode=0o620),
    "whiteout": lambda: node("x", "c", 0, 0),
    "hard link": lambda: file("y", uid=1) + tarkit.xattrs({"user.a": b"later"}) + hardlink("x", "y", mode=0o604, uid=2),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_is_set_dropped_or_refused_as_setxattr_does(room: Path, name: str) -> None:
    for value in ATTRIBUTES[name]:
        for kind, make in KINDS.items():
            assert etrees.differences(tarkit.xattrs({name: value}) + make() + end(), room) == [], (kind, value)


@pytest.mark.parametrize(("size", "sys_errno"), [(65535, 0), (65536, errno.ENOSPC), (65537, errno.E2BIG)])
def test_an_attribute_has_as_many_bytes_as_an_image_holds(size: int, sys_errno: int) -> None:
    made = etrees.outcome(lambda: etrees.of(tarkit.xattrs({"user.a": b"x" * size}) + file("f") + end()))
    assert sys_errno == (made.sys_errno if isinstance(made, etrees.Told) else 0)
    four = {f"user.{i}": b"x" * 65500 for i in range(4)}
    assert isinstance(etrees.outcome(lambda: etrees.of(tarkit.xattrs(four) + file("f") + end())), etrees.Tree)
    made = etrees.outcome(lambda: etrees.of(tarkit.xattrs(four | {"user.more": b"x" * 300}) + file("f") + end()))
    assert isinstance(made, etrees.Told) and made.sys_errno == errno.ENOSPC and made.text.startswith("cannot set xattr user.")


def test_equal_attributes_are_kept_once() -> None:
    label = {"security.selinux": b"system_u:object_r:usr_t:s0\0", "user.x": b"y" * 1000}
    built = etrees.Built(b"".join(tarkit.xattrs(label) + file(f"f{i}") for i in range(300)) + end())
    assert len({int(door.ffi.cast("intptr_t", built.node(i).xattrs)) for i in range(1, 301)}) == 1


# ---- what is below -------------------------------------------------------------------------------------------
BELOW = [
    dir("a/", mode=0o700, uid=3) + dir("a/b/", mode=0o2711, gid=4, mtime=77) + dir("x/") + dir("x/y/", mode=0o711) + file("f") + end(),
    tarkit.xattrs({"user.kept": b"1", "system.posix_acl_access": NAMED_ACL}) + dir("a/", mode=0o750, uid=5) + dir("c/", mode=0o701) + dir("x/") + opaque("x/") + whiteout("g") + end(),
]
ABOVE = {
    "what_the_topmost_shows": (file("a/b/f") + file("c/f"), {"a": "0o750", "a/b": "0o2711", "c": "0o701"}),
    "nothing_is_below": (file("n/m/f"), {"n": "0o755", "n/m": "0o755"}),
    "below_a_mark_of_its_own": (dir("a/", mode=0o705) + opaque("a/") + file("a/b/f"), {"a": "0o705", "a/b": "0o755"}),
    "what_a_mark_is_on_is_not_hidden": (file("a/b/f") + opaque("a/"), {"a": "0o750", "a/b": "0o755"}),
    "below_a_mark_further_down": (file("x/y/f"), {"x": "0o755", "x/y": "0o755"}),
    "a_file_is_no_directory": (file("f/f"), {"f": "0o755"}),
    "an_entry_came_later": (file("a/b/f") + dir("a/", mode=0o707), {"a": "0o707", "a/b": "0o2711"}),
    "the_root_is_marked": (file("a/f") + opaque(""), {"a": "0o755", "c": "0o0", "f": "0o0", "g": "0o0", "x": "0o0"}),
}


@pytest.mark.parametrize("name", ABOVE)
def test_a_directory_without_an_entry_is_what_the_layers_below_show(room: Path, name: str) -> None:
    tar, modes = ABOVE[name][0] + end(), ABOVE[name][1]
    with etrees.layers(room, BELOW[::-1]) as lowers:
        assert etrees.differences(tar, room, lowers) == []
        state = etrees.of(tar, lowers).state
    assert {path.decode(): facts[1] for path, facts in state.items() if path and facts[0] != "file"} == modes
    assert state[b""][-1] == 0
    assert {facts[-1] for path, facts in state.items() if facts[0] == "dir" and facts[1] in ("0o750", "0o2711")} <= {0}
    if name == "the_root_is_marked":
        assert dict(state[b"a"][4])["trusted.overlay.opaque"] == dict(state[b""][4])["trusted.overlay.opaque"] == b"y"


# ---- limits ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("option", "most", "tar"), [
    ("entries", 4, file("a") + file("b/c/d") + file("e")),
    ("size", 9, file("a", b"12345") + symlink("s", "1234") + file("b", b"1")),
    ("file_size", 4, file("a", b"1234") + file("b", b"12345")),
    ("depth", 5, dir("d/") + symlink("l", "d/../d/../d") + file("l/f") + file("l/x/f")),
])
def test_a_limit_ends_both_at_the_same_entry(room: Path, option: str, most: int, tar: bytes) -> None:
    limits = door.ffi.new("lay_limits *", door.lib.lay_limits_default()[0])
    setattr(limits, option, most)
    assert etrees.differences(tar + end(), room, limits=limits) == []
    refused = etrees.outcome(lambda: etrees.of(tar + end(), limits=limits))
    assert isinstance(refused, etrees.Told) and refused.code == "LAY_E_LIMIT" and f"(max_{option})" in refused.text
    setattr(limits, option, most * 3)
    assert isinstance(etrees.outcome(lambda: etrees.of(tar + end(), limits=limits)), etrees.Tree)


def test_many_different_attributes_do_not_fill_the_memory() -> None:
    """A tar of them packs to little."""
    ffi = door.ffi
    tree = door.make("lay_etree_new", "lay_etree *", ffi.NULL)
    value, name, text = ffi.new("uint8_t[]", 60_000), ffi.new("char[]", b"f"), ffi.new("char[]", b"user.a")
    one = ffi.new("lay_xattr *", [text, value, 60_000])
    entry = ffi.new("lay_tar_entry *", {"name": name, "name_len": 1, "type": b"0", "xattrs": one, "nxattrs": 1, "offset": 7})
    with door.fails("LAY_E_LIMIT") as errors:
        for i in range(5000):
            ffi.memmove(value, i.to_bytes(4, "little"), 4)
            door.call("lay_etree_entry", tree, entry, 512)
    assert 4000 < i < 5000 and errors[0].path == b"f" and errors[0].offset == 7


def test_many_pieces_of_sparse_files_do_not_fill_the_memory() -> None:
    extents = [(2 * i, b"x") for i in range(90_000)]
    one = tarkit.pax_sparse_1_0("s", extents, 200_000)
    handle = door.ffi.new("lay_apply **")
    with sinks.memory() as fd:
        door.call("lay_apply_erofs", handle, fd, door.shown([]), 0, door.ffi.new("lay_apply_options *"))
        try:
            with door.fails("LAY_E_LIMIT") as errors:
                for _ in range(50):
                    door.call("lay_apply_push", handle[0], one, len(one))
        finally:
            door.lib.lay_apply_free(handle[0])
    assert errors[0].path == b"s" and errors[0].offset // len(one) == (4 << 20) // 90_000
