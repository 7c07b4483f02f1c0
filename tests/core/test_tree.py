"""tree.c, sweep.c, trail.c: everything happens beneath one descriptor, by no link, at any length and depth."""

import errno
import os
import posixpath
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import disk
import door
import pytest
import variant
from hypothesis import given
from hypothesis import strategies as st
from sinks import directory

MS_BIND = 4096

# ---- names ----------------------------------------------------------------------------------------
def clean(name: bytes) -> bytes:
    out = door.ffi.new("char[]", len(name) + 2)
    n = door.lib.lay_path_clean(door.ffi.new("char[]", name), len(name), out)
    assert out[n] == b"\0"
    return door.ffi.buffer(out, n)[:]


def gos(name: bytes) -> bytes:
    """Go's path.Clean: normpath, but for the two slashes that POSIX lets stand at the front."""
    rooted = b"/" if name.startswith(b"/") else b""
    return posixpath.normpath(rooted + name.lstrip(b"/"))


@pytest.mark.parametrize(
    "name, wanted",
    [
        (b"", b"."), (b".", b"."), (b"/", b"/"), (b"//", b"/"), (b"///a", b"/a"), (b"a//b/./c/../d/", b"a/b/d"),
        (b"./a", b"a"), (b"a/..", b"."), (b"a/../..", b".."), (b"../../a", b"../../a"), (b"/../a", b"/a"),
        (b"/..", b"/"), (b"a/b/../../..", b".."), (b"../a/../b", b"../b"), (b"...", b"..."),
        (b"..a/.b/c..", b"..a/.b/c.."), (b"a/../../b/../..", b"../..")]
)
def test_names_are_cleaned_as_go_cleans_them(name: bytes, wanted: bytes) -> None:
    assert clean(name) == wanted == gos(name)


@given(st.lists(st.sampled_from([b"", b".", b"..", b"a", b"bc", b"...", b"\xff"]), max_size=12).map(b"/".join))
def test_any_name_is_cleaned_as_go_cleans_it(name: bytes) -> None:
    assert clean(name) == gos(name)
    assert clean(clean(name)) == clean(name)


def test_cleaning_needs_no_second_buffer() -> None:
    for name in (b"a//b/./c/../d/", b"/../x/./y//", b"../../a/../b", b"./" * 40 + b"z"):
        memory = door.ffi.new("char[]", name + b"\0\0")
        n = door.lib.lay_path_clean(memory, len(name), memory)
        assert door.ffi.buffer(memory, n)[:] == gos(name)


# ---- opening --------------------------------------------------------------------------------------
def opened(call: Callable[[], int]) -> Any:
    """The path of what a call opened beneath the room, "/" for the room itself; or the name of its error."""
    fd = call()
    if fd < 0:
        return errno.errorcode[door.ffi.errno]
    try:
        assert os.get_inheritable(fd) is False
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


class Tree:
    """A root with a victim beside it; paths of the answers are relative to the root."""

    def __init__(self, top: Path, fd: int, lib: Any) -> None:
        self.top, self.fd, self.lib = top, fd, lib

    def dir(self, path: str, flags: int = 0) -> Any:
        raw = os.fsencode(path)
        return self._inside(opened(lambda: self.lib.lay_tree_open_dir(self.fd, raw, len(raw), flags)))

    def file(self, path: str) -> Any:
        return self._inside(opened(lambda: open_file(self, os.fsencode(path))))

    def regular(self, name: str) -> Any:
        with CStat() as (memory, _):
            return self._inside(opened(lambda: self.lib.lay_tree_open_regular(self.fd, os.fsencode(name), memory)))

    def stat(self, path: str) -> os.stat_result | str:
        raw = os.fsencode(path)
        with CStat() as (memory, inode):
            if self.lib.lay_tree_stat(self.fd, raw, len(raw), memory):
                return errno.errorcode[door.ffi.errno]
            return inode()

    def _inside(self, found: str) -> str:
        return found.removeprefix(str(self.top)).lstrip("/") if found.startswith("/") else found


class CStat:
    """Room for a struct stat, of which the inode number is read (the 2nd word on 64-bit Linux)."""

    def __enter__(self) -> Any:
        self.memory = door.ffi.new("uint64_t[64]")
        return door.ffi.cast("struct stat *", self.memory), lambda: self.memory[1]

    def __exit__(self, *_: object) -> None:
        pass


def open_file(tree: Tree, raw: bytes) -> int:
    """lay_tree_open_file, and its answer about the file is that of the descriptor."""
    parent = door.ffi.new("lay_parent *", {"fd": -1})
    with CStat() as (memory, inode):
        fd = tree.lib.lay_tree_open_file(tree.fd, parent, raw, len(raw), memory)
        failure = door.ffi.errno
        assert fd < 0 or os.fstat(fd).st_ino == inode()
    tree.lib.lay_parent_free(parent)
    door.ffi.errno = failure
    return fd


@pytest.fixture(scope="module")
def old_kernel(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return variant.old_kernel(tmp_path_factory.mktemp("tree"), "tree/tree.c", "tree/sweep.c", "tree/trail.c")


@pytest.fixture(params=["openat2", "by steps"])
def tree(request: pytest.FixtureRequest, room: Path, victim: Path) -> Iterator[Tree]:
    top = room / "root"
    (top / "a/b/c").mkdir(parents=True)
    (top / "a/f").write_text("f")
    (top / "a/b/c/deep").write_text("deep")
    (top / "victim").mkdir()
    (top / "victim/hello").write_text("inside")
    for name, target in {
        "l": "a", "abs": "/a/b", "out": "../victim", "out_abs": "/victim", "file": "a/f", "self": "self", "a/up": "..",
        "a/b/far": "../../../../../a/f", "nowhere": "gone", "top": "/", "a/root": "../../../..", "chain0": "a",
    }.items():
        (top / name).symlink_to(target)
    for i in range(1, 300):
        (top / f"chain{i}").symlink_to(f"chain{i - 1}")
    os.mkfifo(top / "fifo")
    os.mknod(top / "null", 0o600 | 0o020000, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(top / "socket"))
    with directory(top) as fd:
        yield Tree(top, fd, door.lib if request.param == "openat2" else request.getfixturevalue("old_kernel"))


@pytest.mark.parametrize(
    "path, found",
    [
        ("", ""), ("a", "a"), ("a/b/c", "a/b/c"), ("gone", "ENOENT"), ("a/gone/c", "ENOENT"), ("a/f", "ENOTDIR"),
        ("a/f/x", "ENOTDIR"), ("fifo", "ENOTDIR"), ("l", "ENOTDIR"), ("out", "ENOTDIR"), ("l/b", "ELOOP"),
        ("out/sub", "ELOOP"), ("a/up/a", "ELOOP"), ("file/x", "ELOOP"), ("top/a", "ELOOP")]
)
def test_a_directory_is_opened_by_no_link(tree: Tree, path: str, found: str) -> None:
    answer = tree.dir(path)
    # what a link at the end is called depends on who resolves: the kernel, or we
    assert answer == found or (found == "ENOTDIR" and "/" not in path and answer == "ELOOP")


@pytest.mark.parametrize(
    "path, found",
    [
        ("a/f", "a/f"),
        ("a/b/c/deep", "a/b/c/deep"),
        ("gone", "ENOENT"),
        ("a/gone", "ENOENT"),
        ("gone/f", "ENOENT"),
        ("a", "EINVAL"),
        ("a/b", "EINVAL"),
        ("fifo", "EINVAL"),
        ("null", "EINVAL"),
        ("socket", "EINVAL"),
        ("file", "ELOOP"),
        ("self", "ELOOP"),
        ("out", "ELOOP"),
        ("a/b/far", "ELOOP"),
        ("a/f/x", "ENOTDIR"),
        ("fifo/x", "ENOTDIR"),
        ("file/x", "ENOTDIR"),
        ("self/x", "ELOOP"),
        ("nowhere/x", "ENOENT"),
        # links of parents are followed as if the root were "/"
        ("l/f", "a/f"),
        ("abs/c/deep", "a/b/c/deep"),
        ("a/up/a/f", "a/f"),
        ("top/a/f", "a/f"),
        ("a/root/a/f", "a/f"),
        ("out/hello", "victim/hello"),
        ("out_abs/hello", "victim/hello"),
        ("l/up/l/up/out/hello", "victim/hello"),
        # the kernel follows 40, moby 255
        ("chain39/f", "a/f"),
        ("chain41/f", "a/f"),
        ("chain254/f", "a/f"),
        ("chain255/f", "ELOOP"),
        ("chain299/f", "ELOOP"),
    ],
)
def test_a_file_is_opened_only_when_it_is_one_and_only_inside(tree: Tree, path: str, found: str) -> None:
    assert tree.file(path) == found


@pytest.mark.parametrize(
    "name, found", [("fifo", "EINVAL"), ("null", "EINVAL"), ("file", "ELOOP"), ("a", "EINVAL"), ("gone", "ENOENT")]
)
def test_only_a_regular_file_of_a_directory_is_opened(tree: Tree, name: str, found: str) -> None:
    assert tree.regular(name) == found


@pytest.mark.parametrize(
    "path, place",
    [("", ""), ("a", "a"), ("a/f", "a/f"), ("file", "file"), ("out", "out"), ("fifo", "fifo"), ("a/up", "a/up")],
)
def test_stat_looks_at_the_thing_itself(tree: Tree, path: str, place: str) -> None:
    assert tree.stat(path) == os.lstat(tree.top / place).st_ino


@pytest.mark.parametrize(
    "path, error", [("gone", "ENOENT"), ("l/f", "ELOOP"), ("out/hello", "ELOOP"), ("a/f/x", "ENOTDIR")]
)
def test_stat_follows_no_link_on_the_way(tree: Tree, path: str, error: str) -> None:
    assert tree.stat(path) == error


def make_deep(top: int, parts: list[str]) -> None:
    """Directories one below the other, of any length together."""
    fd = os.dup(top)
    for part in parts:
        os.mkdir(part, dir_fd=fd)
        inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    with open(os.open("f", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd), "w") as f:
        f.write("deep")
    os.symlink("/l", "back", dir_fd=fd)
    os.close(fd)


@pytest.mark.parametrize("length", [250, 255, 1, 100])
def test_paths_longer_than_the_kernel_takes(tree: Tree, length: int) -> None:
    parts = ["d" * length] * (9000 // (length + 1))
    make_deep(tree.fd, parts)
    deep = "/".join(parts)
    raw = os.fsencode(f"{deep}/f")
    fd = open_file(tree, raw)
    assert fd >= 0, os.strerror(door.ffi.errno)
    with open(fd) as f:
        assert f.read() == "deep"
    raw = os.fsencode(deep)
    fd = tree.lib.lay_tree_open_dir(tree.fd, raw, len(raw), 0)
    assert sorted(os.listdir(fd)) == ["back", "f"]
    os.close(fd)
    assert tree.dir(f"{deep}/gone") == "ENOENT"
    assert tree.dir(f"{deep}/f") == "ENOTDIR"
    assert tree.dir(f"{deep}/back/b") == "ELOOP"
    assert tree.file(f"{deep}/back/f") == "a/f"
    assert isinstance(tree.stat(f"{deep}/f"), int)
    remove(tree.top, parts[0].encode(), tree.lib)


def test_a_component_longer_than_any_name_is_an_error(tree: Tree) -> None:
    for name in ("n" * 256, "n" * 5000, "a/" + "n" * 5000 + "/f"):
        assert tree.dir(name) == "ENAMETOOLONG"
        assert tree.file(name) == "ENAMETOOLONG"


def test_a_parent_is_remembered_until_it_is_forgotten(tree: Tree) -> None:
    ffi, lib = door.ffi, tree.lib
    parent = ffi.new("lay_parent *", {"fd": -1})
    base = ffi.new("char **")

    def of(path: str) -> tuple[int, str]:
        raw = ffi.new("char[]", path.encode())
        fd = lib.lay_parent_open(parent, tree.fd, raw, len(path), base)
        return fd, ffi.string(base[0]).decode()

    try:
        first = of("l/f")
        assert first[1] == "f"
        assert os.path.samestat(os.fstat(first[0]), os.stat(tree.top / "a"))
        (tree.top / "l").unlink()
        assert of("l/g") == (first[0], "g")
        lib.lay_parent_close(parent)
        assert of("l/f")[0] == -1
        assert of("top")[1] == "top"
        assert os.path.samestat(os.fstat(of("fifo")[0]), os.stat(tree.top))
    finally:
        lib.lay_parent_free(parent)


def test_a_child_directory_is_opened_by_no_link_and_a_mount_is_told(tree: Tree) -> None:
    crossed = door.out("bool *")

    def sub(name: bytes) -> Any:
        return tree._inside(opened(lambda: tree.lib.lay_tree_open_sub(tree.fd, name, crossed))), crossed[0]

    assert sub(b"a") == ("a", False)
    assert sub(b"l")[0] in ("ENOTDIR", "ELOOP")
    assert sub(b"gone") == ("ENOENT", False)
    assert sub(b"fifo")[0] == "ENOTDIR"
    disk.mount("tmpfs", tree.top / "a/b", "tmpfs")
    with directory(tree.top / "a") as fd:
        inner = tree.lib.lay_tree_open_sub(fd, b"b", crossed)
        # an old kernel cannot say so; then the device does
        assert crossed[0] or (tree.lib is not door.lib and os.fstat(inner).st_dev != os.fstat(fd).st_dev)
        os.close(inner)
    disk.unmount(tree.top / "a/b")


# ---- listing and asking -----------------------------------------------------------------------------
def names(path: Path) -> list[tuple[bytes, int, int]]:
    ffi = door.ffi
    out = ffi.new("lay_names *")
    with directory(path) as fd:
        door.call("lay_names_read", out, fd)
    try:
        return [(ffi.string(out.text + n.at), n.len, n.ino) for n in (out.list[i] for i in range(out.count))]
    finally:
        door.lib.lay_names_free(out)


def test_names_are_sorted_by_their_bytes(room: Path) -> None:
    for name in (b"b", b"a", b"a.b", b"a-b", b"ab", b"B", b"\xff", b"\xc3\xa4", b"..x", b".a", b"n" * 255, b"a\n"):
        Path(os.fsdecode(os.fsencode(room) + b"/" + name)).touch()
    (room / "a").unlink()
    (room / "a").mkdir()
    listed = names(room)
    assert [name for name, _, _ in listed] == sorted(os.listdir(os.fsencode(room)))
    for name, n, ino in listed:
        assert (len(name), os.lstat(os.fsencode(room) + b"/" + name).st_ino) == (n, ino)


def test_a_large_directory_is_listed_whole(room: Path) -> None:
    for i in range(4000):
        (room / f"file-with-a-rather-long-name-{i}").touch()
    assert [name for name, _, _ in names(room)] == sorted(os.listdir(os.fsencode(room)))


def test_an_empty_directory_has_no_names(room: Path) -> None:
    assert names(room) == []


def test_xattrs_are_read_without_following_a_link(tree: Tree) -> None:
    ffi, lib = door.ffi, tree.lib
    os.setxattr(tree.top / "a", "user.k", b"value")
    os.setxattr(tree.top / "a", "user.empty", b"")
    os.setxattr(tree.top / "l", "trusted.k", b"of the link", follow_symlinks=False)
    buffer = ffi.new("uint8_t[]", 64)

    def get(name: bytes, xattr: bytes, size: int = 64) -> Any:
        n = lib.lay_tree_getxattr(tree.fd, name, xattr, buffer, size)
        return errno.errorcode[ffi.errno] if n < 0 else ffi.buffer(buffer, n)[:]

    assert get(b"a", b"user.k") == b"value"
    assert get(b"a", b"user.empty") == get(b"a", b"user.none") == b""
    assert get(b"l", b"user.k") in (b"", "EPERM")
    assert get(b"l", b"trusted.k") == b"of the link"
    assert get(b"a", b"user.k", 3) == "ERANGE"
    assert get(b"gone", b"user.k") == "ENOENT"
    assert [lib.lay_tree_hasxattr(tree.fd, b"a", x) for x in (b"user.k", b"user.empty", b"user.none")] == [1, 1, 0]
    assert lib.lay_tree_hasxattr(tree.fd, b"gone", b"user.k") == -1


# ---- sizes and removal ------------------------------------------------------------------------------
def size_of(path: Path) -> int:
    size = door.out("int64_t *")
    with directory(path) as fd:
        door.call("lay_tree_size", fd, size)
    return size[0]


def test_a_trees_size_is_that_of_each_inode_once_and_of_no_directory(room: Path) -> None:
    (room / "d/e").mkdir(parents=True)
    (room / "d/f").write_bytes(b"x" * 1000)
    os.link(room / "d/f", room / "d/e/same")
    (room / "s").symlink_to("t" * 30)
    os.mkfifo(room / "p")
    with (room / "hole").open("wb") as f:
        f.truncate(1 << 40)
    assert size_of(room) == 1000 + 30 + (1 << 40)


def test_a_hundred_linked_files_count_once_each(room: Path) -> None:
    for i in range(100):
        (room / f"f{i}").write_text("fooo")
        os.link(room / f"f{i}", room / f"l{i}")
    assert size_of(room) == 400


def blocks_of(*trees: Path, freed: bool = False) -> list[int]:
    """What each of these takes beside those before it."""
    blocks, found = door.make("lay_blocks_open", "lay_blocks *", freed), []
    for tree in trees:
        size = door.out("int64_t *")
        with directory(tree) if tree.is_dir() else tree.open("rb") as file:
            fd = file if isinstance(file, int) else file.fileno()
            door.call("lay_blocks_add", blocks, fd, size)
        found.append(size[0])
    return found


def test_blocks_are_counted_with_the_first_tree_that_has_the_inode(room: Path) -> None:
    for name in ("a/d", "b"):
        (room / name).mkdir(parents=True)
    (room / "a/d/big").write_bytes(b"x" * 100_000)
    (room / "a/hole").touch()
    os.truncate(room / "a/hole", 1 << 30)
    os.link(room / "a/d/big", room / "a/again")
    os.link(room / "a/d/big", room / "b/again")
    (room / "b/own").write_bytes(b"x" * 10_000)
    (room / "b/link").symlink_to("t" * 2000)

    def taken(*names: str) -> int:
        return sum(os.lstat(room / name).st_blocks for name in names) * 512

    first = taken("a", "a/d", "a/d/big", "a/hole")
    assert blocks_of(room / "a", room / "b") == [first, taken("b", "b/own", "b/link")]
    assert blocks_of(room / "a", room / "a") == [first, taken("a", "a/d", "a/hole")]


def test_a_file_is_counted_alone_once_by_any_of_its_names(room: Path) -> None:
    (room / "layer").write_bytes(b"x" * 50_000)
    os.link(room / "layer", room / "same")
    assert blocks_of(room / "layer", room / "same") == [os.lstat(room / "layer").st_blocks * 512, 0]


def test_blocks_are_freed_with_the_last_name(room: Path) -> None:
    for name in "abc":
        (room / name).mkdir()
        (room / name / "own").write_bytes(b"x" * 5000)
    (room / "a/shared").write_bytes(b"x" * 100_000)
    os.link(room / "a/shared", room / "b/shared")
    each = sum(os.lstat(room / name).st_blocks for name in ("a", "a/own")) * 512
    shared = os.lstat(room / "a/shared").st_blocks * 512
    assert blocks_of(room / "a", room / "c", freed=True) == [each, each]
    assert blocks_of(room / "a", room / "b", freed=True) == [each, each + shared]


def remove(parent: Path, name: bytes, lib: Any = None) -> None:
    err = door.new_error()
    with directory(parent) as fd:
        if (lib or door.lib).lay_tree_remove(fd, name, err):
            raise door.error_of(err)


def test_a_tree_is_removed_with_all_in_it_and_no_link_is_followed(tree: Tree) -> None:
    (tree.top / "a").chmod(0)
    remove(tree.top.parent, b"root", tree.lib)
    # the victim fixture sees that what the links named is still as it was
    assert not tree.top.exists()


@pytest.mark.parametrize("name", ["fifo", "null", "socket", "file", "out", "nowhere", "gone"])
def test_one_thing_is_removed_and_nothing_else(tree: Tree, name: str) -> None:
    before = disk.inventory(tree.top)
    remove(tree.top, name.encode(), tree.lib)
    assert disk.inventory(tree.top) == before - {name}


def test_a_tree_of_any_depth_is_removed_and_measured(room: Path) -> None:
    (room / "t").mkdir()
    with directory(room / "t") as fd:
        make_deep(fd, ["d" * (i % 200 + 1) for i in range(3000)])
    assert size_of(room) == len("deep") + len("/l")
    remove(room, b"t")
    assert os.listdir(room) == []


@pytest.mark.parametrize("kind", ["tmpfs", "bind", "itself"])
def test_removal_stops_at_a_mount_and_names_it(tree: Tree, kind: str) -> None:
    if kind == "bind" and tree.lib is not door.lib:
        kind = "tmpfs"  # of its own file system only a new kernel knows it
    point = tree.top if kind == "itself" else tree.top / "a/b"
    disk.mount(str(tree.top.parent / "victim"), point, *(("none", MS_BIND) if kind == "bind" else ("tmpfs",)))
    if kind != "bind":
        (point / "precious").write_text("kept")
    with door.fails("LAY_E_OS") as errors:
        remove(tree.top.parent, b"root", tree.lib)
    assert errors[0].sys_errno == errno.EBUSY
    assert errors[0].path.endswith(point.name.encode())
    assert os.listdir(point)
    disk.unmount(point)
    remove(tree.top.parent, b"root", tree.lib)
    assert not tree.top.exists()


def test_no_descriptor_is_left_open(tree: Tree) -> None:
    before = disk.open_files()
    for path in ("a/f", "l/f", "out/hello", "gone/x", "self/x", "chain255/f", "a/root/a/f"):
        tree.file(path)
        tree.dir(path)
    size_of(tree.top)
    assert disk.open_files() == before
