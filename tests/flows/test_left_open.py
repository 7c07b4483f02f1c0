"""What a tar leaves open: directories without an entry, ACLs that come by themselves, the umask. Every way in gives the same."""

import os
import stat
import struct

import pytest
import tarkit
from stored import tar_of
from tarkit import dir, end, file, opaque, symlink, whiteout

from layerstore import Images

WAYS = ["register", "load", "apply_diff", "unpack"]
NOBODY = 0xFFFFFFFF
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def acl(*more, group=4, mask=7, other=4):
    """The value of an ACL: the owner, the group, a mask, the others, and (tag, rights, id) beside these."""
    entries = sorted([(1, 6, NOBODY), (4, group, NOBODY), (0x10, mask, NOBODY), (0x20, other, NOBODY), *more])
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)


@pytest.fixture
def shown(store, room, open_store):
    """Look at what the way shows of two tars, the second over the first."""

    def look(way, lower, upper, see, place=room):
        base = store.register(lower + end())
        if way == "register":
            layer = store.register(upper + end(), base.chain_id)
            with store.create_rw_layer("view", layer.chain_id) as box, box.mounted() as path:
                return see(path)
        if way == "apply_diff":
            with store.create_rw_layer("box", base.chain_id) as box:
                box.apply_diff(upper + end())
                with box.mounted() as path:
                    return see(path)
        Images(store).create(store.register(upper + end(), base.chain_id), {}, tags="x")
        if way == "unpack":
            Images(store).unpack("x", place / "flat")
            return see(place / "flat")
        Images(store).save("x", room / "x.tar")
        other = open_store(place / "other")
        with other.create_rw_layer("view", Images(other).load(room / "x.tar")[0].top) as box, box.mounted() as path:
            return see(path)

    return look


def facts(path):
    st = os.lstat(path)
    return stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid


# ---- directories without an entry -------------------------------------------------------------------------------------------
LOWER = (
    dir("tmp/", mode=0o1777) + dir("home/") + dir("home/u/", mode=0o750, uid=1000, gid=100, mtime=77)
    + tarkit.xattrs({"user.note": b"n"}) + dir("noted/", mode=0o711) + file("home/u/old", b"o") + file("was-a-file")
    + symlink("was-a-link", "tmp") + dir("secret/", mode=0o700) + file("secret/old")
)  # fmt: skip
PARENTS = {
    "a file in it": (file("tmp/x") + file("home/u/x"), {"tmp": (0o1777, 0, 0), "home/u": (0o750, 1000, 100), "home": (0o755, 0, 0)}),
    "only a whiteout in it": (whiteout("home/u/old"), {"home/u": (0o750, 1000, 100)}),
    "marked opaque": (opaque("home/u"), {"home/u": (0o750, 1000, 100)}),
    "below an opaque mark, behind it": (file("home/u/x") + opaque("home"), {"home/u": (0o755, 0, 0), "home": (0o755, 0, 0)}),
    "below an opaque mark, in front of it": (opaque("home") + file("home/u/x"), {"home/u": (0o755, 0, 0)}),
    "below an opaque mark at the top": (file("home/u/x") + opaque(""), {"home/u": (0o755, 0, 0), "home": (0o755, 0, 0)}),
    "a directory that was deleted": (whiteout("secret") + dir("secret/", mode=0o711) + file("secret/sub/x"),
                                     {"secret": (0o711, 0, 0), "secret/sub": (0o755, 0, 0)}),
    "no directory below": (file("was-a-file/x") + file("new/sub/x", uid=5), {"was-a-file": (0o755, 0, 0), "new/sub": (0o755, 0, 0)}),
    "an entry behind it": (file("tmp/x") + dir("tmp/", mode=0o700, uid=3), {"tmp": (0o700, 3, 0)}),
    "an entry in front of it": (dir("tmp/", mode=0o700, uid=3) + file("tmp/x"), {"tmp": (0o700, 3, 0)}),
}  # fmt: skip


@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", PARENTS)
def test_a_directory_without_an_entry_is_what_it_was_below(shown, what, way, umask):
    upper, right = PARENTS[what]
    before = os.umask(umask)
    try:
        assert shown(way, LOWER, upper, lambda root: {name: facts(f"{root}/{name}") for name in right}) == right
    finally:
        os.umask(before)


@pytest.mark.parametrize("way", WAYS)
def test_it_has_the_xattrs_and_times_of_below_too(shown, way):
    def see(root):
        return os.getxattr(f"{root}/noted", "user.note"), int(os.stat(f"{root}/home/u").st_mtime)

    assert shown(way, LOWER, file("noted/x") + file("home/u/x"), see) == (b"n", 77)


@pytest.mark.parametrize("way", ["register", "load", "unpack"])
def test_a_link_below_is_no_directory(shown, way):
    def see(root):
        return os.path.islink(f"{root}/was-a-link"), facts(f"{root}/was-a-link"), os.listdir(f"{root}/tmp")

    assert shown(way, LOWER, file("was-a-link/x"), see) == (False, (0o755, 0, 0), [])


def test_an_acl_below_comes_with_the_mode_that_it_explains(shown):
    """The mode alone would give the group what the ACL gave to one user."""
    lower = tarkit.xattrs({ACCESS: acl((2, 7, 1000), group=0, other=0)}) + dir("d/", mode=0o670)
    found = shown("register", lower, file("d/x"), lambda root: (facts(f"{root}/d")[0], os.getxattr(f"{root}/d", ACCESS)))
    assert found == (0o670, acl((2, 7, 1000), group=0, other=0))


@pytest.mark.parametrize("way", WAYS)
def test_an_xattr_that_a_later_entry_lacks_is_gone(shown, way):
    lower = tarkit.xattrs({"user.old": b"1", "user.both": b"1", DEFAULT: acl((2, 7, 1000))}) + dir("d/")
    upper = tarkit.xattrs({"user.both": b"2", "user.gone": b"2"}) + dir("d/") + tarkit.xattrs({"user.both": b"3"}) + dir("d/") + file("d/x")

    def see(root):
        return {x: os.getxattr(f"{root}/d", x) for x in os.listxattr(f"{root}/d")}, os.listxattr(f"{root}/d/x")

    assert shown(way, lower, upper, see) == ({"user.both": b"3"}, [])


# ---- ACLs -------------------------------------------------------------------------------------------------------------------
def acls(root):
    found = {}
    for place, directories, files in os.walk(root):
        for path in (os.path.join(place, name) for name in directories + files):
            names = [x for x in os.listxattr(path, follow_symlinks=False) if "acl" in x]
            if names:
                found[os.path.relpath(path, root)] = names
    return found


ALL = dir("d/") + file("d/f", b"x", mode=0o600) + file("implied/f") + tarkit.fifo("d/p") + symlink("d/l", "f") + tarkit.node("d/n", "c", 1, 3)


@pytest.mark.parametrize("way", WAYS)
def test_a_default_acl_of_the_place_reaches_no_file(room, open_store, way):
    os.setxattr(room, DEFAULT, acl((2, 7, 1234)))
    try:
        store = open_store(room / "store")
        base = store.register(file("z") + end())
        if way == "apply_diff":
            with store.create_rw_layer("box", base.chain_id) as box:
                box.apply_diff(ALL + end())
                with box.mounted() as path:
                    with open(f"{path}/made-inside", "w"):
                        pass
                    assert acls(path) == {}
            return
        Images(store).create(store.register(ALL + end(), base.chain_id), {}, tags="x")
        if way == "unpack":
            Images(store).unpack("x", room / "flat")
            assert acls(room / "flat") == {} and "acl" not in repr(os.listxattr(room / "flat"))
            return
        top = Images(store).get("x").top
        if way == "load":
            Images(store).save("x", room / "x.tar")
            store = open_store(room / "other")
            top = Images(store).load(room / "x.tar")[0].top
        upper = store.get(top).metadata()["UpperDir"]
        assert acls(upper) == {} and "acl" not in repr(os.listxattr(upper))
        assert facts(f"{upper}/d/f")[0] == 0o600
    finally:
        os.removexattr(room, DEFAULT)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["lower", "upper", "upper, behind"])
def test_a_default_acl_of_a_directory_stays_on_it(shown, way, where):
    marked = tarkit.xattrs({DEFAULT: acl((2, 7, 1234))}) + dir("d/")
    inside = file("d/f", b"x", mode=0o600) + dir("d/sub/", mode=0o700) + file("d/made/f", mode=0o600) + tarkit.fifo("d/p", mode=0o600)
    lower = marked if where == "lower" else dir("d/")
    upper = {"lower": inside, "upper": marked + inside, "upper, behind": inside + marked}[where]
    found, modes = shown(way, lower, upper, lambda root: (acls(root), [facts(f"{root}/d/{x}")[0] for x in ("f", "sub", "made", "made/f", "p")]))
    assert found == {"d": [DEFAULT]}
    assert modes == [0o600, 0o700, 0o755, 0o600, 0o600]


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("umask", [0, 0o077])
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o4750, 0o2777, 0o000])
def test_the_mode_is_that_of_the_header_whoever_places_the_file(store, diff_of, size, umask, mode):
    """With an ACL, which changes the mode as it is set; in a tar so small that no thread begins, and in a large one."""
    more = b"".join(file(f"pad{n}", os.urandom(100_000)) for n in range(40)) if size == "large" else b""
    marked = tarkit.xattrs({ACCESS: acl((2, 7, 1000))})
    tar = marked + file("a", b"x", mode=mode) + marked + dir("d/", mode=mode) + file("b", mode=mode) + dir("e/", mode=mode) + tarkit.fifo("p", mode=mode)
    before = os.umask(umask)
    try:
        layer = store.register(tar + more + end())
    finally:
        os.umask(before)
    assert {name: facts(diff_of(layer) / name)[0] for name in "adbep"} == dict.fromkeys("adbep", mode)
    assert store.verify() == []


# ---- owners -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fields, right", [
    ({"uid": -2}, (4_294_967_294, 0)), ({"gid": -2}, (0, 4_294_967_294)), ({"uid": -(1 << 31), "gid": -3}, (1 << 31, 4_294_967_293)),
    ({"uid": 4_294_967_294}, (4_294_967_294, 0)),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["file", "dir", "symlink", "fifo", "hard link", "pax"])
def test_an_owner_below_zero_is_the_number_with_its_bits(store, diff_of, kind, fields, right):
    number = {key: tarkit.base256(value, 8) for key, value in fields.items()}
    tar = {
        "file": lambda: file("x", b"1", **number), "dir": lambda: dir("x/", **number), "symlink": lambda: symlink("x", "y", **number),
        "fifo": lambda: tarkit.fifo("x", **number), "hard link": lambda: file("y") + tarkit.hardlink("x", "y", **number),
        "pax": lambda: tarkit.pax({key: str(value) for key, value in fields.items()}) + file("x"),
    }[kind]() + end()  # fmt: skip
    layer = store.register(tar)
    st = os.lstat(diff_of(layer) / "x")
    assert (st.st_uid, st.st_gid) == right
    assert [(e.uid, e.gid) for e in layer.merged() if e.path == "x"] == [right]
    assert tar_of(layer) == tar
    assert store.verify() == []
