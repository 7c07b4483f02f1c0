"""commit() and tar_stream(): what they keep, what they tell that they leave out, and what they refuse."""

import contextlib
import io
import logging
import os
import random
import stat
import struct
import tarfile
import warnings

import pytest
import tarkit
from tarkit import dir, end, file

import layerstore
from layerstore import BreakoutError, InvalidOptionError, LeftOutWarning

BASE = (
    dir("d/", mode=0o751, mtime=5) + file("d/f", b"f", mtime=5) + tarkit.xattrs({"user.base": b"kept"})
    + file("base", b"base", mode=0o640, mtime=5) + dir("gone/") + file("gone/x", b"x") + dir("again/")
    + file("again/old", b"old") + file("secret", b"s") + end()
)

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 0x10, 0x20
NOBODY = 0xFFFFFFFF
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def acl(user=6, group=0, mask=7, other=0, named=((USER, 7, 1000),)):
    entries = [(USER_OBJ, user, NOBODY), *named, (GROUP_OBJ, group, NOBODY), (MASK, mask, NOBODY), (OTHER, other, NOBODY)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in sorted(entries))


@pytest.fixture
def base(store):
    return store.register(BASE)


@pytest.fixture
def box(store, base):
    with store.create_rw_layer("box", base.chain_id) as made:
        yield made


@contextlib.contextmanager
def told():
    """The warnings of a block, which must be those of the log."""
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record):
            if record.levelno >= logging.WARNING:
                lines.append(record.getMessage())

    listener = Listener()
    logging.getLogger("layerstore").addHandler(listener)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", LeftOutWarning)
            found: list[str] = []
            yield found
        found += [str(one.message) for one in caught]
        assert found == lines
    finally:
        logging.getLogger("layerstore").removeHandler(listener)


def write(path, data=b"x"):
    with open(path, "wb") as out:
        out.write(data)


def looked(path):
    """All of a tree that a layer can hold, by path: no link followed."""
    found = {}
    links: dict[tuple[int, int], str] = {}
    for at, directories, names in os.walk(path):
        directories.sort()
        for name in sorted(directories + names):
            whole = os.path.join(at, name)
            status = os.lstat(whole)
            mode, what = status.st_mode, b""
            if stat.S_ISREG(mode):
                with open(whole, "rb") as content:
                    what = content.read()
            elif stat.S_ISLNK(mode):
                what = os.readlink(os.fsencode(whole))
            elif stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
                what = b"%d" % status.st_rdev
            here = os.path.relpath(whole, path)
            first = links.setdefault((status.st_dev, status.st_ino), here) if not stat.S_ISDIR(mode) else here
            attributes = {
                x: os.getxattr(whole, x, follow_symlinks=False) for x in os.listxattr(whole, follow_symlinks=False)
            }
            found[here] = (mode, status.st_uid, status.st_gid, status.st_mtime_ns, what, attributes, first)
    return found


def shown(store, layer):
    with store.create_rw_layer("view", layer.chain_id) as view, view.mounted() as path:
        return looked(path)


def other_root(open_store, room, stream):
    """The same base in a store of its own, and a layer of the stream's tar on it."""
    store = open_store(room / "other")
    with stream:
        return store, store.register(stream, store.register(BASE).chain_id)


# ---- keep="docker" tells what it leaves out ----
def edit_xattr(path):
    write(f"{path}/new")
    os.setxattr(f"{path}/new", "user.pax.flags", b"em")


def edit_acl(path):
    write(f"{path}/new")
    os.chmod(f"{path}/new", 0o600)
    os.setxattr(f"{path}/new", ACCESS, acl())


def edit_default_acl(path):
    os.chmod(f"{path}/d", stat.S_IMODE(os.stat(f"{path}/d").st_mode))       # the kernel sets none on what is an image's still
    os.setxattr(f"{path}/d", DEFAULT, acl())


def edit_socket(path):
    os.mknod(f"{path}/new", stat.S_IFSOCK | 0o600)


LOSSES = {
    "user.* on a new file": (edit_xattr, "extended attributes of 1 file (new)"),
    "user.* on a file of the base": (lambda p: os.setxattr(f"{p}/d/f", "user.x", b"1"), "extended attributes of 1 file (d/f)"),
    "user.* of the base": (lambda p: os.chmod(f"{p}/base", 0o600), "extended attributes of 1 file (base)"),
    "an empty one": (lambda p: os.setxattr(f"{p}/d/f", "user.x", b""), "extended attributes of 1 file (d/f)"),
    "trusted.* on a directory": (lambda p: os.setxattr(f"{p}/d", "trusted.x", b"1"), "extended attributes of 1 file (d)"),
    "security.*": (lambda p: os.setxattr(f"{p}/d/f", "security.x", b"1"), "extended attributes of 1 file (d/f)"),
    "another overlay's marks": (
        lambda p: os.setxattr(f"{p}/d", "user.overlay.opaque", b"y"), "extended attributes of 1 file (d)"),
    "an ACL": (edit_acl, "the ACL of 1 file (new)"),
    "a default ACL": (edit_default_acl, "the ACL of 1 file (d)"),
    "a socket": (edit_socket, "1 socket (new)"),
}  # fmt: skip


@pytest.mark.parametrize("what", LOSSES)
def test_moby_s_tar_is_made_with_one_warning_that_names_what_it_leaves_out(store, base, box, what):
    edit, expected = LOSSES[what]
    with box.mounted() as path:
        edit(path)
    with told() as lines:
        box.commit().release()
    assert lines == [lines[0]] and expected in lines[0] and "writable layer box" in lines[0]
    with told() as again:
        with box.tar_stream() as stream:
            stream.read()
    assert again == lines


def test_a_capability_times_and_marks_of_the_overlay_are_no_loss(store, box):
    with box.mounted() as path:
        write(f"{path}/new")
        os.setxattr(f"{path}/new", "security.capability", tarkit.CAPABILITY)
        os.unlink(f"{path}/d/f")
        os.unlink(f"{path}/secret")
        os.mkdir(f"{path}/opaque")
    with told() as lines, box.commit() as layer:
        assert shown(store, layer)["new"][5]["security.capability"] == tarkit.CAPABILITY
    assert lines == []


def test_many_are_counted_and_the_first_named(box):
    with box.mounted() as path:
        for i in range(30):
            write(f"{path}/n{i:02}")
            os.setxattr(f"{path}/n{i:02}", "user.x", b"1")
        write(f"{path}/\x1bz")
        os.setxattr(f"{path}/\x1bz", "user.x", b"1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        box.tar_stream().close()
    assert [one.message.left[0].number for one in caught] == [31]
    assert "31 files (\\x1bz, n00, n01, n02, ...)" in str(caught[0].message)


def test_where_warnings_are_errors_nothing_is_left(store, base, box, unchanged):
    with box.mounted() as path:
        edit_xattr(path)
    with unchanged(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in (box.commit, box.tar_stream):
            with pytest.raises(LeftOutWarning):
                call()


def test_the_difference_to_an_ancestor_tells_too(store, base, box):
    with box.mounted() as path:
        edit_xattr(path)
    layer = box.commit(keep="all")
    for below in ("", base.chain_id):
        with told() as lines:
            layer.tar_stream_from(below).close()
        assert len(lines) == 1 and "extended attributes of" in lines[0] and layer.chain_id in lines[0]


# ---- modes without their ACLs ----
@pytest.mark.parametrize("mask", range(8))
@pytest.mark.parametrize("group", [0, 4, 5, 7])
def test_without_its_acl_a_file_has_the_rights_of_its_group_and_not_those_of_the_mask(store, box, group, mask):
    with box.mounted() as path:
        for name, make in {"file": write, "directory": os.mkdir}.items():
            make(f"{path}/{name}")
            os.chmod(f"{path}/{name}", 0o600)
            os.setxattr(f"{path}/{name}", ACCESS, acl(group=group, mask=mask))
        os.link(f"{path}/file", f"{path}/link")
        before = looked(path)
    assert {stat.S_IMODE(before[name][0]) for name in ("file", "link", "directory")} == {0o600 | mask << 3}
    with told(), box.commit() as layer:
        after = shown(store, layer)
    wanted = 0o600 | (group & mask) << 3
    assert {stat.S_IMODE(after[name][0]) for name in ("file", "link", "directory")} == {wanted}
    assert not any(ACCESS in after[name][5] for name in ("file", "link", "directory"))
    with box.commit(keep="all") as layer:
        assert shown(store, layer)["file"] == before["file"]


# ---- keep="all" ----
def test_all_is_kept_and_comes_back_in_another_root(store, box, open_store, room):
    with box.mounted() as path:
        write(f"{path}/new", b"new")
        os.symlink("new", f"{path}/link")
        os.mkfifo(f"{path}/fifo")
        os.mkdir(f"{path}/dir")
        for name, attribute, value in (
            ("new", "user.a", b"1"), ("new", "user.b", b"\0\n=x\xff"), ("new", "trusted.c", b"2"), ("new", "security.d", b""),
            ("new", "security.capability", tarkit.CAPABILITY), ("new", "user." + "n" * 200, b"v" * 5000), ("dir", "user.e", b"3"),
            ("dir", DEFAULT, acl()), ("dir", ACCESS, acl(other=5)), ("fifo", "trusted.f", b"4"), ("fifo", ACCESS, acl()),
            ("link", "trusted.g", b"5"), ("d/f", "user.h", b"6"), ("base", "user.base", b"other"),
        ):  # fmt: skip
            os.setxattr(f"{path}/{name}", attribute, value, follow_symlinks=False)
        for i, name in enumerate(("new", "link", "fifo", "dir", "d/f", "base")):
            os.utime(f"{path}/{name}", ns=(0, 1_700_000_000_123_456_780 + i), follow_symlinks=False)
        before = looked(path)
    with told() as lines:
        stream = box.tar_stream(keep="all")
        copy, layer = other_root(open_store, room, stream)
        mine = box.commit(keep="all")
    assert lines == []
    assert shown(copy, layer) == before == shown(store, mine)


def test_python_reads_what_is_kept(box):
    with box.mounted() as path:
        write(f"{path}/new", b"new")
        os.setxattr(f"{path}/new", "user.a", b"one")
        os.setxattr(f"{path}/new", ACCESS, acl())
        os.utime(f"{path}/new", ns=(0, 5_250_000_000))
        os.symlink("x", f"{path}/early")
        os.utime(f"{path}/early", ns=(0, -1_250_000_000), follow_symlinks=False)
    with box.tar_stream(keep="all") as stream, tarfile.open(fileobj=io.BytesIO(stream.read())) as tar:
        new, early = tar.getmember("new"), tar.getmember("early")
        assert new.pax_headers["SCHILY.xattr.user.a"] == "one"
        assert new.pax_headers["SCHILY.xattr.system.posix_acl_access"].encode("utf-8", "surrogateescape") == acl()
        assert (new.mtime, new.pax_headers["mtime"], tar.extractfile(new).read()) == (5.25, "5.25", b"new")
        assert (early.mtime, early.pax_headers["mtime"]) == (-1.25, "-1.25")


def test_what_no_record_can_hold_is_told_and_not_written_wrong(store, box):
    with box.mounted() as path:
        write(f"{path}/new")
        os.setxattr(f"{path}/new", "user.a=b", b"c")
        os.setxattr(f"{path}/new", "user.a", b"d")
    with told() as lines, box.commit(keep="all") as layer:
        assert shown(store, layer)["new"][5] == {"user.a": b"d"}
    assert len(lines) == 1 and "extended attributes of 1 file (new)" in lines[0]


def test_what_a_socket_took_the_place_of_does_not_come_back_where_all_is_kept(store, base, box):
    with box.mounted() as path:
        os.unlink(f"{path}/secret")
        edit_socket(path)
        os.rename(f"{path}/new", f"{path}/secret")
        os.rename(f"{path}/gone/x", f"{path}/y")
        os.rmdir(f"{path}/gone")
        os.mknod(f"{path}/gone", stat.S_IFSOCK | 0o600)
        before = looked(path)
    with told() as lines, box.commit(keep="all") as layer:
        assert shown(store, layer) == {name: one for name, one in before.items() if name not in ("secret", "gone")}
        with told(), layer.tar_stream_from(base.chain_id) as stream, tarfile.open(fileobj=io.BytesIO(stream.read())) as tar:
            assert tar.getnames() == [".wh.gone", ".wh.secret", "y"]
    assert len(lines) == 1 and "2 sockets (gone, secret)" in lines[0]


@pytest.mark.parametrize("words", [{"keep": "most"}, {"keep": None}, {"marks": "keep"}, {"marks": True}], ids=repr)
def test_other_words_are_refused(box, words):
    for call in (box.commit, box.tar_stream):
        with pytest.raises(InvalidOptionError, match=next(iter(words))):
            call(**words)


# ---- names that are marks ----
MARKS = [
    ".wh.secret", ".wh.d", "d/.wh.f", "d/.wh..wh..opq", ".wh..wh..opq", ".wh.", ".wh..", ".wh...", ".wh..wh.plnk", ".wh..opq",
    ".wh..wh.orph", "new/deep/.wh.x", "d/.wh.\xff",
]  # fmt: skip
KINDS = {
    "file": write, "empty file": lambda p: write(p, b""), "directory": os.mkdir, "link": lambda p: os.symlink("x", p), "fifo": os.mkfifo,
    "device": lambda p: os.mknod(p, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name, kind", [*((name, "file") for name in MARKS), *((".wh.secret", kind) for kind in KINDS)])
def test_a_name_that_would_be_a_mark_never_goes_out(store, base, box, unchanged, name, kind):
    with box.mounted() as path:
        os.makedirs(os.path.dirname(f"{path}/{name}"), exist_ok=True)
        KINDS[kind](f"{path}/{name}")
        if kind == "directory":
            write(f"{path}/{name}/inside")
        write(f"{path}/other")
        before = looked(path)
    for call, keep in ((box.commit, "docker"), (box.tar_stream, "docker"), (box.tar_stream, "all")):
        with unchanged(), pytest.raises(BreakoutError, match=r"\.wh\.") as caught:
            call(keep=keep)
        assert caught.value.path == name
    with told() as lines, box.commit(marks="skip") as layer:
        after = shown(store, layer)
    assert len(lines) == 1 and '1 name that begins with ".wh."' in lines[0]
    assert set(after) == {one for one in before if one != name and not one.startswith(name + "/")}
    with told(), box.tar_stream(marks="skip") as stream, tarfile.open(fileobj=io.BytesIO(stream.read())) as tar:
        assert not [one for one in tar.getnames() if ".wh." in one]


def test_links_to_such_a_name_are_content_and_stay(store, box):
    with box.mounted() as path:
        write(f"{path}/.wh.secret", b"content")
        os.link(f"{path}/.wh.secret", f"{path}/a")
        os.link(f"{path}/.wh.secret", f"{path}/z")
        os.symlink(".wh.secret", f"{path}/link")
    with told(), box.commit(marks="skip") as layer:
        after = shown(store, layer)
    assert after["a"][4] == b"content" and after["z"][6] == "a" and after["link"][4] == b".wh.secret" and "secret" in after


def test_names_that_only_look_alike_are_names(store, box):
    names = [".wh", ".whx", "x.wh.y", "..wh.x", ".WH.x", ".w", "wh."]
    with box.mounted() as path:
        for name in names:
            write(f"{path}/{name}")
    with box.commit() as layer:
        assert set(names) < set(shown(store, layer))


def test_a_layer_that_has_such_a_directory_lets_none_out_either(store, base):
    # An entry below such a directory makes it, as in moby; its own tar is what it was.
    odd = store.register(file("e/.wh..wh.plnk/x", b"x") + file("e/y", b"y") + end(), base.chain_id)
    for below in ("", base.chain_id):
        with pytest.raises(BreakoutError) as caught:
            odd.tar_stream_from(below)
        assert caught.value.path == "e/.wh..wh.plnk"
    with store.create_rw_layer("on it", odd.chain_id) as box:
        with box.mounted() as path:
            os.unlink(f"{path}/e/.wh..wh.plnk/x")
            os.rmdir(f"{path}/e/.wh..wh.plnk")
        # Its deletion would be named as a mark of another meaning.
        with pytest.raises(BreakoutError):
            box.commit()


# ---- any box ----
def grow(draw: random.Random, root: str, *, sockets: bool) -> None:
    """Random edits of all kinds; what the kernel refuses is none."""
    known = [""]
    for at, directories, names in os.walk(root):
        known += [os.path.relpath(os.path.join(at, name), root) for name in directories + names]

    def new():
        name = draw.choice(["a", "b b", "l" * 120, "\u00e4", "n\nl", ".wh", "c", "d"])
        return os.path.join(root, draw.choice(known), name)

    def old():
        return os.path.join(root, draw.choice(known[1:] or ["d"]))

    def attributes():
        name = draw.choice(["user.a", "user.b", "trusted.c", "security.d", "security.capability"])
        value = tarkit.CAPABILITY if name == "security.capability" else draw.choice([b"", b"1", b"\0=\n" * 90, b"v" * 3000])
        os.setxattr(old(), name, value, follow_symlinks=False)

    def rights():
        named = draw.choice([((USER, draw.randrange(8), 1000),), ((GROUP, draw.randrange(8), 5), (USER, 4, 7))])
        value = acl(draw.randrange(8), draw.randrange(8), draw.randrange(8), draw.randrange(8), named)
        os.setxattr(old(), draw.choice([ACCESS, DEFAULT]), value, follow_symlinks=False)

    def listen():
        os.mknod(new(), stat.S_IFSOCK | 0o600)

    edits = [
        lambda: write(new(), draw.choice([b"", b"one", b"x" * 70_000])), lambda: os.mkdir(new()), lambda: os.symlink("a/b", new()),
        lambda: os.mkfifo(new()), lambda: os.mknod(new(), stat.S_IFCHR | 0o600, os.makedev(1, 5)), lambda: os.link(old(), new()),
        lambda: os.unlink(old()), lambda: os.rmdir(old()), lambda: os.rename(old(), new()), lambda: os.chmod(old(), draw.randrange(0o10000)),
        lambda: os.lchown(old(), draw.choice([0, 1000]), draw.choice([0, 5])), attributes, attributes, rights,
        lambda: os.utime(old(), ns=(0, draw.choice([5 * 10**9, 5_300_000_000, 1_700_000_000_123_456_789])), follow_symlinks=False),
    ]  # fmt: skip
    for _ in range(draw.randrange(4, 40)):
        with contextlib.suppress(OSError):
            (listen if sockets and draw.random() < 0.03 else draw.choice(edits))()
        known = [os.path.relpath(os.path.join(at, n), root) for at, ds, ns in os.walk(root) for n in ds + ns]
        known = ["", *known]


def without_what_docker_drops(before, box):
    """What a box shows, but for what is not in moby's tar of what it has itself."""
    upper = box.metadata()["UpperDir"]
    after = {}
    for name, (mode, uid, gid, time, what, attributes, first) in before.items():
        if os.path.lexists(os.path.join(upper, name)):
            entries = struct.iter_unpack("<HHI", attributes.get(ACCESS, bytes(4))[4:])
            rights = {tag: right for tag, right, _ in entries}
            if rights:
                mode = mode & ~0o70 | (rights[GROUP_OBJ] & rights.get(MASK, 7)) << 3
            attributes = {x: v for x, v in attributes.items() if x == "security.capability"}
            time = time // 10**9 * 10**9
        after[name] = (mode, uid, gid, time, what, attributes, first)
    return after


@pytest.mark.time_limit(300)
@pytest.mark.parametrize("seed", range(12))
def test_any_box_comes_back_in_another_root_but_for_what_the_warning_names(store, base, box, open_store, room, seed):
    draw = random.Random(seed)
    with box.mounted() as path:
        grow(draw, path, sockets=True)
        before = looked(path)
    sockets = {name for name, one in before.items() if stat.S_ISSOCK(one[0])}
    linked = {name for name, one in before.items() if one[6] in sockets or name in sockets}
    before = {name: one for name, one in before.items() if name not in linked}
    with told() as lines:
        copy, layer = other_root(open_store, room, box.tar_stream(keep="all"))
        mine = box.commit(keep="all")
    assert shown(copy, layer) == before == shown(store, mine)
    assert len(lines) == (2 if sockets else 0) and all("socket" in line for line in lines)
    with told() as lines:
        plain = box.commit()
    expected = without_what_docker_drops(before, box)
    assert shown(store, plain) == expected
    drops = [name for name in before if before[name][5] != expected[name][5]]
    assert len(lines) == bool(drops or sockets)


def test_the_whole_is_of_one_length_and_streams_in_any_pieces(box):
    with box.mounted() as path:
        grow(random.Random(3), path, sockets=True)
    for keep in ("docker", "all"):
        with told(), box.tar_stream(keep=keep) as stream:
            size, whole = stream.size, stream.read()
        with told(), box.tar_stream(keep=keep) as stream:
            assert b"".join(iter(lambda stream=stream: stream.read(777), b"")) == whole
        assert len(whole) == size


def test_layerstore_names_what_it_gives():
    assert issubclass(LeftOutWarning, UserWarning) and layerstore.LeftOutWarning is LeftOutWarning
