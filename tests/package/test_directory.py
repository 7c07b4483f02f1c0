"""pack_directory(): the same tree gives the same tar, whatever it lies on; and other programs take it."""

import contextlib
import errno
import fnmatch
import gc
import io
import os
import random
import stat
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import disk
import pytest
from disk import sized_file_system
from machine import needs
from stored import read, tar_of
from tarkit import end, file

import layerstore
from layerstore import BreakoutError, TarStream, pack_directory

NOW = 1_700_000_000
CAPABILITY = bytes.fromhex("01000002000400000000000000000000") + bytes(4)


def packed(path, **how) -> bytes:
    return read(pack_directory(path, **how))


def members(tar: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as archive:
        return archive.getmembers()


def names(tar: bytes) -> list[str]:
    return [one.name for one in members(tar)]


def put(path, data=b"", mode=0o644, seconds=NOW):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    os.utime(path, ns=(0, seconds * 10**9 + 123_456_789))
    return path


@pytest.fixture
def place(room):
    (room / "build").mkdir()
    return room / "build"


# ---- the order ---------------------------------------------------------------------------------------------------
def test_entries_are_sorted_by_the_bytes_of_their_whole_paths(place):
    for name in ("a/b/c", "a/b.c", "a-b/x", "a.b", "a", "\udcff", "é", "Z", "a0"):
        if name != "a":
            put(place / name)
    found = names(packed(place))
    assert found == sorted(found, key=os.fsencode)
    assert found == ["Z", "a", "a-b", "a-b/x", "a.b", "a/b", "a/b.c", "a/b/c", "a0", "é", "\udcff"]


def test_the_directory_itself_is_no_entry(place):
    assert packed(place) == bytes(1024)
    put(place / "f")
    assert names(packed(place)) == ["f"]


def draw(dice, count=60):
    """What a tree holds: (path, kind, data, mode, owner, seconds, attributes), parents first."""
    directories, found, taken = [""], [], set()
    for _ in range(count):
        name = dice.choice(["a", "b", "a-b", "a.b", "ä", "\udc80", "x" * 90, "long " * 20, "-", "~"]) + dice.choice(["", "0", "/"]).strip("/")
        path = f"{dice.choice(directories)}/{name}".lstrip("/")
        if path in taken:
            continue
        taken.add(path)
        kind = dice.choices(["file", "directory", "link", "symlink", "fifo", "device", "socket"], [9, 6, 3, 2, 1, 1, 1])[0]
        files = [one[0] for one in found if one[1] == "file"]
        if kind == "link" and not files:
            kind = "file"
        data = dice.randbytes(dice.choice([0, 5, 511, 512, 513, 70_000])) if kind == "file" else dice.choice(files) if kind == "link" else b""
        attributes = {"user.note": dice.randbytes(4)} if kind in ("file", "directory") and dice.random() < 0.2 else {}
        mode = dice.choice([0o644, 0o4755, 0o1777, 0o600, 0o2750])
        found.append((path, kind, data, mode, (dice.choice([0, 1000, 3_000_000]), dice.choice([0, 7])), dice.choice([-5, 0, NOW, 2**33 + 7]), attributes))
        if kind == "directory":
            directories.append(path)
    return found


def make(place, things, dice):
    """Make a tree in an order of its own: directories before what is in them, files before their links."""
    todo, done = list(things), {""}
    while todo:
        path, kind, data, mode, owner, _, attributes = one = dice.choice(todo)
        if os.path.dirname(path) not in done or (kind == "link" and data not in done):
            continue
        todo.remove(one)
        done.add(path)
        at = place / path
        if kind == "file":
            at.write_bytes(data)
        elif kind == "directory":
            at.mkdir()
        elif kind == "link":
            os.link(place / data, at)
            continue
        elif kind == "symlink":
            os.symlink("to/" + "t" * 120, at)
        else:
            os.mknod(at, {"fifo": stat.S_IFIFO, "device": stat.S_IFCHR, "socket": stat.S_IFSOCK}[kind] | 0o600, os.makedev(1, 3))
        os.chown(at, *owner, follow_symlinks=False)
        if kind != "symlink":
            at.chmod(mode)
        for name, value in attributes.items():
            os.setxattr(at, name, value)
    for path, kind, _, _, _, seconds, _ in reversed(things):
        if kind != "link":
            os.utime(place / path, ns=(dice.randrange(10**9), seconds * 10**9 + dice.randrange(10**9)), follow_symlinks=False)


def test_a_tree_gives_the_same_bytes_on_every_file_system(room):
    needs("mkfs.xfs", "mkfs.ext4", "mkfs.btrfs")
    dice = random.Random(31)
    (room / "plain").mkdir()
    with contextlib.ExitStack() as stack:
        ext4, xfs, btrfs = (stack.enter_context(sized_file_system(room, kind, size=320 << 20)) for kind in ("ext4", "xfs", "btrfs"))
        for number in range(8):
            things, found = draw(dice), []
            for on in (room / "plain", ext4, xfs, btrfs):
                at = on / f"tree {number}"
                at.mkdir()
                make(at, things, dice)
                found.append(packed(at, prefix="app"))
                assert packed(at, prefix="app") == found[-1]
            assert [one == found[0] for one in found] == [True] * 4
            check(found[0], things, "app/")


def check(tar, things, prefix=""):
    """Compare with what was drawn."""
    found = {one.name: one for one in members(tar)}
    assert [*found] == sorted(found, key=os.fsencode)
    assert {*found} == {prefix + path for path, kind, *_ in things if kind != "socket"}
    by_path = {path: (path, kind, *rest) for path, kind, *rest in things}
    first: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as archive:
        for name, one in found.items():
            path = name.removeprefix(prefix)
            _, kind, data, mode, owner, seconds, attributes = by_path[path]
            if kind in ("file", "link"):
                of = data if kind == "link" else path
                _, _, data, mode, owner, seconds, attributes = by_path[of]
                if of in first:
                    assert (one.type, one.linkname) == (tarfile.LNKTYPE, first[of])
                else:
                    first[of] = name
                    assert archive.extractfile(one).read() == data
            kinds = {"directory": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE, "fifo": tarfile.FIFOTYPE, "device": tarfile.CHRTYPE}
            assert kind in ("file", "link") or one.type == kinds[kind]
            assert (one.uid, one.gid, int(one.mtime)) == (*owner, seconds)
            assert float(one.pax_headers.get("mtime", 0)).is_integer()
            if kind != "symlink":
                assert one.mode == mode
            assert {key for key in one.pax_headers if key.startswith("SCHILY")} == {f"SCHILY.xattr.{key}" for key in attributes}


# ---- what is said of each ----------------------------------------------------------------------------------------
def test_pax_is_for_what_ustar_cannot_say(place):
    put(place / "plain")
    put(place / ("d" * 90) / ("f" * 90))
    put(place / ("x" * 101))
    put(place / "ä")
    put(place / "early", seconds=-1)
    put(place / "late", seconds=1 << 33)
    os.chown(put(place / "owned"), 1 << 21, 0)
    os.setxattr(put(place / "noted"), "user.note", b"\0=\n")
    os.setxattr(put(place / "able"), "security.capability", CAPABILITY)
    os.setxattr(put(place / "hidden"), "trusted.note", b"x")
    found = {one.name: one.pax_headers for one in members(packed(place))}
    assert {name: {*headers} for name, headers in found.items() if headers} == {
        "x" * 101: {"path"}, "ä": {"path"}, "early": {"mtime"}, "late": {"mtime"}, "owned": {"uid"},
        "noted": {"SCHILY.xattr.user.note"}, "able": {"SCHILY.xattr.security.capability"},
    }  # fmt: skip


def test_a_large_file_has_its_size_in_pax(place):
    (place / "large").touch()
    os.truncate(place / "large", 1 << 33)
    with pack_directory(place, mtime=0) as tar:
        head = tar.read(1536)
        assert tar.size == (1 << 33) + 3 * 512 + 1024
    assert b"size=8589934592\n" in head


def test_a_later_name_is_a_link_to_the_first(place):
    put(place / "z", b"data")
    os.link(place / "z", place / "a")
    os.link(place / "z", place.parent / "elsewhere")
    first, second = members(packed(place, prefix="p"))
    assert (first.name, first.type, second.name, second.type, second.linkname) == ("p/a", tarfile.REGTYPE, "p/z", tarfile.LNKTYPE, "p/a")
    assert [one.type for one in members(packed(place, exclude=["a"]))] == [tarfile.REGTYPE]


def test_an_acl_gives_its_group_no_more_than_it_had(place):
    put(place / "f", mode=0o640)
    entries = [(1, 6, -1), (2, 7, 1000), (4, 0, -1), (0x10, 7, -1), (0x20, 0, -1)]
    os.setxattr(place / "f", "system.posix_acl_access", struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *e) for e in entries))
    assert [one.mode for one in members(packed(place))] == [0o600]


def test_sockets_are_left_out(place):
    os.mknod(place / "socket", stat.S_IFSOCK | 0o600)
    put(place / "f")
    assert names(packed(place)) == ["f"]


# ---- what a caller may ask for -----------------------------------------------------------------------------------
@pytest.mark.parametrize("prefix", ["app", "/app/", "./app//.", b"app", Path("app")])
def test_a_prefix(place, prefix):
    put(place / "d/f")
    assert names(packed(place, prefix=prefix)) == ["app/d", "app/d/f"]


@pytest.mark.parametrize("prefix", ["..", "a/../b", "a\0b", ".wh.a", "a/.wh..wh..opq"])
def test_a_prefix_that_is_none(place, prefix):
    with pytest.raises(ValueError, match="no directory of a layer"):
        pack_directory(place, prefix=prefix)


def test_no_entry_is_newer_than_mtime(place, monkeypatch):
    put(place / "old", seconds=5)
    put(place / "new", seconds=NOW)

    def times(**how):
        return {one.name: one.mtime for one in members(packed(place, **how))}

    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert times() == {"old": 5, "new": NOW}
    assert times(mtime=1000) == {"old": 5, "new": 1000}
    assert times(mtime=-1) == {"old": -1, "new": -1}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "2000")
    assert times() == {"old": 5, "new": 2000}
    assert times(mtime=1000) == {"old": 5, "new": 1000}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "")
    assert times() == {"old": 5, "new": NOW}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert times(mtime=1000) == {"old": 5, "new": 1000}
    with pytest.raises(ValueError, match="SOURCE_DATE_EPOCH is a number of seconds, not 'yesterday'"):
        pack_directory(place)


@pytest.mark.parametrize("how", [{"mtime": 1 << 63}, {"owner": (-1, 0)}, {"owner": (0, (1 << 32) - 1)}, {"exclude": [""]}, {"exclude": ["./"]}, {"exclude": ["a\0"]}])
def test_what_is_out_of_range(place, how):
    with pytest.raises(ValueError, match=r"63 bits|owner is|below the directory|null byte"):
        pack_directory(place, **how)


@pytest.mark.parametrize("how", [{"exclude": "*.pyc"}, {"exclude": b"*.pyc"}, {"mtime": 1.5}, {"mtime": "1"}, {"owner": ("root", "root")}, {"prefix": None}])
def test_what_is_of_another_kind(place, how):
    with pytest.raises(TypeError):
        pack_directory(place, **how)


def test_an_owner_for_all(place):
    os.chown(put(place / "d/f"), 5, 6)
    assert {(one.uid, one.gid) for one in members(packed(place, owner=(1000, (1 << 32) - 2)))} == {(1000, (1 << 32) - 2)}


# ---- exclude -----------------------------------------------------------------------------------------------------
TREE = ["src/a.py", "src/a.pyc", "src/sub/b.pyc", "src/sub/.hidden", ".git/objects/aa/1", ".git/HEAD", "node/node/x", "a[b]c", "ä", "\udcff", "deep/deep/deep/end"]


@pytest.mark.parametrize(
    "patterns",
    [
        [".git"], ["**/*.pyc"], ["*.pyc"], ["src/*"], ["src/**"], ["**"], ["**/deep"], ["deep/**/end"], ["**/deep/**/end"], ["*/*/*"],
        ["?"], ["[[]*"], ["a[[]b]c"], ["a[b]c"], ["a[b"], ["[!a-z.]*"], ["/src/./sub/"], ["src/sub/b.pyc", ".git/objects", "??"], ["**/**/x"],
        ["node/**"], ["**/node"], ["\udcff"], ["[é-ö]"], [".*"], ["**/.*"], ["nothing"], ["..", "src/../.git"],
    ],
)  # fmt: skip
def test_what_is_excluded_is_what_find_finds(store, place, patterns):
    for path in TREE:
        put(place / path)
    with store.register(pack_directory(place)) as layer:
        tree = layer.merged()
        every = [entry.path for entry in tree.files()]
        found = {entry.path for pattern in patterns for entry in tree.find(pattern)}
    left = [path for path in every if not any(path == one or path.startswith(one + "/") for one in found)]
    assert names(packed(place, exclude=iter(patterns))) == sorted(left, key=os.fsencode)


def test_drawn_patterns_fit_as_fnmatch_says(place):
    """Names and patterns of the same few letters, one directory of names for each pattern's list."""
    dice = random.Random(17)

    def word(letters, most):
        return "".join(dice.choice(letters) for _ in range(dice.randint(1, most)))

    made = {word(["a", "b", "-", "]", "[", "!", "é", "\udce9", "^", "\\", "*", "?", "\n"], 5) for _ in range(150)}
    for name in made:
        put(place / name)
    for _ in range(400):
        pattern = word(["a", "b", "*", "?", "[", "]", "!", "-", "é", "\udce9", "^", "\\", "[!", "[a-"], 7)
        if pattern == "**":
            continue
        fits = {name for name in made if fnmatch.fnmatchcase(name, pattern)}
        assert {*names(packed(place, exclude=[pattern]))} == made - fits, pattern


def test_an_excluded_directory_is_not_entered(place):
    put(place / "closed/f")
    put(place / "open/f")
    trace = place.parent / "trace"
    needs("strace")
    program = f"import layerstore; layerstore.pack_directory({os.fspath(place)!r}, exclude=['closed']).read()"
    subprocess.run(["strace", "-f", "-e", "trace=open,openat,openat2", "-o", trace, sys.executable, "-W", "ignore", "-c", program], check=True)
    assert '"open"' in trace.read_text()
    assert '"closed"' not in trace.read_text()


# ---- what goes wrong ---------------------------------------------------------------------------------------------
def test_it_is_said_at_the_call(place):
    with pytest.raises(FileNotFoundError) as gone:
        pack_directory(place / "gone")
    assert os.fspath(gone.value.filename) == str(place / "gone")
    with pytest.raises(NotADirectoryError):
        pack_directory(put(place / "file"))
    os.symlink("gone", place / "link")
    with pytest.raises(FileNotFoundError):
        pack_directory(place / "link")


def test_a_link_to_a_directory_is_followed(place):
    put(place / "f")
    os.symlink("build", place.parent / "link")
    assert names(packed(place.parent / "link")) == ["f"]


@pytest.mark.parametrize("name", [".wh.f", "d/.wh..wh..opq", "d/.wh.x/f"])
def test_a_name_that_would_delete_is_refused_at_the_call(place, name):
    put(place / name)
    with pytest.raises(BreakoutError, match="rename it, or exclude it") as raised:
        pack_directory(place, prefix="p")
    assert raised.value.path == name.removesuffix("/f")
    assert not any(".wh." in one for one in names(packed(place, exclude=["**/.wh.*"])))


def test_a_file_that_shrinks_while_it_is_read(place):
    put(place / "d/f", b"x" * (8 << 20))
    with pack_directory(place, prefix="p") as tar:
        assert len(tar.read(4096)) == 4096
        os.truncate(place / "d/f", 1 << 20)
        with pytest.raises(OSError, match="became 7340032 bytes shorter while it was read") as raised:
            tar.read()
    assert (raised.value.errno, raised.value.filename) == (errno.EIO, str(place / "d/f"))


def test_a_file_that_grows_gives_the_bytes_it_had(place):
    put(place / "f", b"x" * (8 << 20))
    with pack_directory(place) as tar:
        head = tar.read(4096)
        with open(place / "f", "ab") as out:
            out.write(b"more" * 1000)
        assert members(head + tar.read())[0].size == 8 << 20


def test_what_goes_before_it_is_read(place):
    put(place / "a")
    put(place / "d/f")
    with pack_directory(place) as tar:
        (place / "d/f").unlink()
        with pytest.raises(FileNotFoundError) as raised:
            tar.read()
    assert raised.value.filename == str(place / "d/f")


def test_what_cannot_be_opened_is_named(place):
    """As another user, whom one directory is closed to."""
    put(place / "d/f", mode=0o600)
    (place / "d").chmod(0o700)
    place.chmod(0o755)
    program = (
        "import os, sys, layerstore\n"
        "os.setresuid(65534, 65534, 65534)\n"
        f"try: layerstore.pack_directory({os.fspath(place)!r})\n"
        "except PermissionError as err: print(err.filename)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout
    assert said == f"{place}/d\n"


def test_a_tree_that_is_deeper_than_a_path(place):
    depth, fd = 40, os.open(place, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deep" * 50, dir_fd=fd)
        below = os.open("deep" * 50, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("end", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
    os.close(fd)
    found = names(packed(place))
    assert len(found) == depth + 1
    assert found[-1].count("/") == depth


# ---- what takes it -----------------------------------------------------------------------------------------------
@pytest.fixture
def some(place):
    """A tree of all kinds; what it holds."""
    things = draw(random.Random(5), 80)
    make(place, things, random.Random(6))
    return things


def test_gnu_tar_unpacks_it(place, some, room):
    needs("tar")
    (room / "out").mkdir()
    tar = packed(place)
    said = subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=user.*", "--same-owner", "-xpf", "-", "-C", room / "out"], input=tar, capture_output=True, check=True
    )
    assert [line for line in said.stderr.splitlines() if b"in the future" not in line and b"implausibly old" not in line] == []
    for path, kind, *_ in some:
        if kind == "socket":
            (place / path).unlink()
    assert packed(room / "out") == tar
    listed = subprocess.run(["tar", "--quoting-style=literal", "-tf", "-"], input=tar, capture_output=True, check=True).stdout
    assert listed.splitlines() == [os.fsencode(one.name) + (b"/" if one.isdir() else b"") for one in members(tar)]


def test_pythons_tarfile_unpacks_it(place, some, room):
    tar = packed(place)
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as archive:
        archive.extractall(room / "out", numeric_owner=True, filter="fully_trusted")
    found = {os.path.relpath(os.path.join(above, name), room / "out") for above, *both in os.walk(room / "out") for names in both for name in names}
    assert found == {one.name for one in members(tar)}


def test_a_store_takes_it(store, place, some):
    base = store.register(file("base", b"below") + end())
    tar = packed(place, prefix="app", owner=(7, 8), mtime=NOW)
    with pack_directory(place, prefix="app", owner=(7, 8), mtime=NOW) as stream:
        assert isinstance(stream, TarStream)
        assert not stream.seekable()
        assert stream.size == len(tar)
        layer = store.register(stream, base)
    assert tar_of(layer) == tar
    assert store.verify(layer.chain_id) == []
    with store.create_rw_layer("box", layer) as box, box.mounted() as path:
        assert (Path(path) / "base").read_bytes() == b"below"
        for name, kind, data, *_ in some:
            if kind == "file":
                assert (Path(path) / "app" / name).read_bytes() == data
    again = store.register(pack_directory(place, prefix="app", owner=(7, 8), mtime=NOW), base)
    assert again.chain_id == layer.chain_id


def test_it_may_be_given_away(store, place, recwarn):
    """No one needs to close what register() was given; also where that fails."""
    put(place / "f", b"x" * 100_000)
    held = disk.open_files()
    store.register(pack_directory(place)).release()
    with pytest.raises(layerstore.LayerDoesNotExistError):
        store.register(pack_directory(place), "sha256:" + "1" * 64)
    gc.collect()
    assert [str(one.message) for one in recwarn] == []
    assert disk.open_files() == held


def test_skopeo_and_umoci_take_its_layer(store, images, place, room):
    needs("skopeo", "umoci")
    put(place / "bin/tool", b"tool", 0o755)
    put(place / ("long " * 30) / "ä", b"odd")
    os.link(place / "bin/tool", place / "bin/also")
    layer = store.register(pack_directory(place, prefix="opt", owner=(0, 0), mtime=NOW))
    images.create(layer, {"architecture": "amd64", "os": "linux"}, tags="packed:1")
    images.save("packed:1", room / "image.tar", format="oci")
    subprocess.run(["skopeo", "--insecure-policy", "copy", "-q", f"oci-archive:{room}/image.tar", f"oci:{room}/layout:1"], check=True)
    subprocess.run(["umoci", "unpack", "--image", f"{room}/layout:1", room / "bundle"], check=True, capture_output=True)
    rootfs = room / "bundle/rootfs/opt"
    assert (rootfs / ("long " * 30) / "ä").read_bytes() == b"odd"
    assert (rootfs / "bin/tool").stat().st_ino == (rootfs / "bin/also").stat().st_ino
    assert stat.S_IMODE((rootfs / "bin/tool").stat().st_mode) == 0o755
    assert int((rootfs / "bin/tool").stat().st_mtime) == NOW


def test_nothing_is_left_open_or_changed(place, some):
    before, held = disk.disk_state(place), disk.open_files()
    packed(place)
    stream = pack_directory(place)
    stream.read(100)
    stream.close()
    assert disk.open_files() == held
    assert disk.disk_state(place) == before


def test_it_is_public(place):
    assert "pack_directory" in layerstore.__all__
