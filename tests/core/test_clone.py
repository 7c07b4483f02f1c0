"""clone.c and copy.c: the same tree once more, to the last attribute and hole, beneath two descriptors."""

import collections
import errno
import hashlib
import os
import random
import socket
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import disk
import door
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sinks import directory

FILE_SYSTEMS = ["tmpfs", "ext4", "xfs", "btrfs"]
REFLINK = ("xfs", "btrfs")
ITS_OWN = {f"trusted.overlay.{name}" for name in ("origin", "upper", "index", "nlink", "uuid")}
ACL = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in [(1, 6, 2**32 - 1), (2, 7, 1000), (4, 4, 2**32 - 1), (16, 6, 2**32 - 1), (32, 0, 2**32 - 1)])


@pytest.fixture(scope="module", params=FILE_SYSTEMS)
def place(request: pytest.FixtureRequest, tmpfs: Path) -> Iterator[Path]:
    room = Path(tempfile.mkdtemp(prefix="clone-", dir=tmpfs))
    with disk.sized_file_system(room, request.param, size=600 << 20) as made:
        yield made


def run(source: Path, target: Path, *, flags: int = 0, workers: int = -1) -> list[str]:
    """Clone, and return the paths of files that were never steady."""
    with directory(source) as from_fd, directory(target) as to_fd:
        clone = door.make("lay_clone_open", "lay_clone *", from_fd, to_fd, flags, workers)
        end = door.out("int *")
        try:
            while not end[0]:
                door.call("lay_clone_run", clone, 100, end)
            found = []
            while (path := door.lib.lay_clone_unsteady(clone, len(found))) != door.ffi.NULL:
                found.append(os.fsdecode(door.ffi.string(path)))
            return found
        finally:
            door.ffi.release(clone)


QUIETLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME     # as access times are looked at, too


def content(name: bytes, dir_fd: int) -> tuple[str, list[tuple[int, int]]]:
    """A file's bytes as a digest, and where it has data."""
    fd = os.open(name, QUIETLY, dir_fd=dir_fd)
    found, at, size = [], 0, os.fstat(fd).st_size
    hashed = hashlib.sha256()
    try:
        while at < size:
            try:
                data = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(fd, data, os.SEEK_HOLE)
            hashed.update(b"%d" % data + os.pread(fd, at - data, data))
            found.append((data, at))
        return hashed.hexdigest(), found
    finally:
        os.close(fd)


def walk(fd: int, prefix: bytes = b"") -> Iterator[tuple[bytes, int, bytes, os.stat_result]]:
    """What is below an open directory."""
    for base in sorted(map(os.fsencode, os.listdir(fd))):
        s = os.stat(base, dir_fd=fd, follow_symlinks=False)
        yield prefix + base, fd, base, s
        if stat.S_ISDIR(s.st_mode):
            inner = os.open(base, QUIETLY | os.O_DIRECTORY, dir_fd=fd)
            try:
                yield from walk(inner, prefix + base + b"/")
            finally:
                os.close(inner)


def tree(root: Path) -> Iterator[tuple[bytes, int, bytes, os.stat_result]]:
    fd = os.open(root, QUIETLY | os.O_DIRECTORY)
    try:
        yield b"", fd, b".", os.fstat(fd)
        yield from walk(fd)
    finally:
        os.close(fd)


def facts(root: Path, *, holes: bool = True) -> dict[bytes, tuple[Any, ...]]:
    """All that a clone keeps; names of one inode by their first name. The access time of a link changes as it is read."""
    seen: dict[bytes, tuple[Any, ...]] = {}
    first: dict[tuple[int, int], bytes] = {}
    for name, fd, base, s in tree(root):
        kind = stat.S_IFMT(s.st_mode)
        if kind == stat.S_IFSOCK:
            continue
        attributes = {k: v for k, v in disk.xattrs_of(b"/proc/self/fd/%d/" % fd + base).items() if k not in ITS_OWN}
        twin = first.setdefault((s.st_dev, s.st_ino), name) if kind != stat.S_IFDIR else b""
        own: tuple[Any, ...] = ()
        if kind == stat.S_IFREG:
            digest, extents = content(base, fd)
            own = (s.st_size, digest, extents) if holes else (s.st_size, digest)
        elif kind == stat.S_IFLNK:
            own = (os.readlink(base, dir_fd=fd),)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            own = (s.st_rdev,)
        times = (s.st_mtime_ns, s.st_atime_ns if kind != stat.S_IFLNK else None)
        seen[name] = (oct(s.st_mode), s.st_uid, s.st_gid, times, attributes, twin, own)
    return seen


def times_of(root: Path) -> dict[bytes, tuple[int, int, int]]:
    return {name: (s.st_atime_ns if not stat.S_ISLNK(s.st_mode) else 0, s.st_mtime_ns, s.st_ctime_ns) for name, _, _, s in tree(root)}


class Drawn:
    """A tree of everything that an upper directory may hold."""

    def __init__(self, root: Path, r: random.Random) -> None:
        self.root, self.r = root, r
        self.files: list[Path] = []
        self.whiteouts: list[Path] = []
        self.fill(root, 0)
        for path in [*sorted(root.rglob("*"), reverse=True), root]:
            self.dress(path)

    def fill(self, place: Path, depth: int) -> None:
        for i in range(self.r.randrange(1, 9)):
            path = place / f"{self.r.choice(['a', 'B', 'ö', '.wh.x', 'n' * 250, chr(0xDC80)])}{i}"
            kind = self.r.choice(["file", "file", "file", "sparse", "link", "dir", "dir", "device", "fifo", "whiteout", "socket", "twin"])
            self.make(kind, path, depth)

    def make(self, kind: str, path: Path, depth: int) -> None:
        r = self.r
        if kind == "file":
            path.write_bytes(r.randbytes(r.choice([0, 1, 100, 4095, 4096, 4097, 70000, 300000])))
            self.files.append(path)
        elif kind == "sparse":
            with path.open("wb") as out:
                for _ in range(r.randrange(0, 4)):
                    out.seek(r.randrange(0, 40) << 16)
                    out.write(r.randbytes(r.choice([1, 5000, 100000])))
                out.truncate(r.choice([1, 4096, 1 << 20, (4 << 20) + 5]))
            self.files.append(path)
        elif kind == "link":
            path.symlink_to(r.choice(["/etc/passwd", "nowhere", "..", "x" * 1000]))
        elif kind == "dir" and depth < 4:
            path.mkdir()
            self.fill(path, depth + 1)
        elif kind == "device":
            os.mknod(path, r.choice([stat.S_IFCHR, stat.S_IFBLK]) | 0o640, os.makedev(r.randrange(1, 300), r.randrange(0, 70000)))
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "whiteout" and self.whiteouts and r.random() < 0.7:
            os.link(self.whiteouts[0], path, follow_symlinks=False)
        elif kind == "whiteout":
            os.mknod(path, stat.S_IFCHR, 0)
            self.whiteouts.append(path)
        elif kind == "socket" and len(os.fsencode(path)) < 100:
            with socket.socket(socket.AF_UNIX) as s:
                s.bind(str(path))
        elif kind == "twin" and self.files:
            os.link(r.choice(self.files), path)

    def dress(self, path: Path) -> None:
        r, mode = self.r, path.lstat().st_mode
        kind = stat.S_IFMT(mode)
        os.chown(path, r.choice([0, 0, 1000, 65534]), r.choice([0, 0, 100]), follow_symlinks=False)
        if kind != stat.S_IFLNK:
            os.chmod(path, r.choice([0o644, 0o755, 0o000, 0o4755, 0o2755, 0o1777, 0o6711]))
        for name in ("opaque", "impure", "redirect", "origin", "nlink", "uuid"):
            if r.random() < 0.1:
                os.setxattr(path, f"trusted.overlay.{name}", b"y", follow_symlinks=False)
        if r.random() < 0.2:
            os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0), follow_symlinks=False) if kind == stat.S_IFREG else None
        if kind in (stat.S_IFREG, stat.S_IFDIR) and r.random() < 0.2:
            os.setxattr(path, "user.note", r.randbytes(r.choice([0, 10, 1500])))
        if kind in (stat.S_IFREG, stat.S_IFDIR) and r.random() < 0.15:
            os.setxattr(path, "system.posix_acl_access", ACL)
        if kind == stat.S_IFDIR and r.random() < 0.2:
            os.setxattr(path, "system.posix_acl_default", ACL)
        os.utime(path, ns=(r.randrange(1, 2 * 10**18), r.randrange(1, 2 * 10**18)), follow_symlinks=False)


def pair(place: Path) -> tuple[Path, Path]:
    room = Path(tempfile.mkdtemp(dir=place))
    (room / "source").mkdir()
    (room / "target").mkdir()
    return room / "source", room / "target"


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), workers=st.sampled_from([-1, -1, 0, 1, 5]))
def test_a_drawn_tree_is_the_same_once_more(place: Path, seed: int, workers: int) -> None:
    source, target = pair(place)
    Drawn(source, random.Random(seed))
    wanted, times = facts(source), times_of(source)
    assert run(source, target, workers=workers) == []
    assert times_of(source) == times
    assert disk.changed(wanted, facts(target)) == []
    disk.remove_tree(source.parent)


def test_a_root_that_hands_down_an_owner_and_an_acl_hands_down_neither_to_the_copy(place: Path) -> None:
    source, target = pair(place)
    (source / "d").mkdir(mode=0o711)
    (source / "d/f").write_text("f")
    os.chown(target, 5, 1000)
    os.chmod(target, 0o2777)
    os.setxattr(target, "system.posix_acl_default", ACL)
    os.setxattr(target, "system.posix_acl_access", ACL)
    run(source, target)
    assert disk.changed(facts(source), facts(target)) == []


def test_files_share_their_data_where_the_file_system_can(place: Path) -> None:
    source, target = pair(place)
    (source / "f").write_bytes(os.urandom(8 << 20))
    os.sync()
    before = os.statvfs(place)
    run(source, target)
    os.sync()
    taken = (before.f_bfree - os.statvfs(place).f_bfree) * before.f_frsize
    assert (target / "f").read_bytes() == (source / "f").read_bytes()
    shares = taken < 4 << 20
    assert shares == (disk.mount_line(place)[2] in REFLINK)      # type: ignore[index]


def test_a_tree_deeper_than_a_path_may_be_takes_few_descriptors(place: Path) -> None:
    source, target = pair(place)
    at = os.open(source, os.O_RDONLY)
    for i in range(300):
        os.mkdir("d" * 60, 0o755, dir_fd=at)
        os.close(os.open(f"f{i}", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        inner = os.open("d" * 60, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    wanted = facts(source)
    run(source, target)
    assert disk.changed(wanted, facts(target)) == []


@pytest.mark.parametrize("workers", [0, 2, 8])
def test_many_small_directories_take_few_descriptors(room: Path, workers: int) -> None:
    source, target = pair(room)
    for i in range(400):
        (source / f"d{i}").mkdir()
        (source / f"d{i}/f").write_text(str(i))
    with directory(source) as from_fd, directory(target) as to_fd:
        clone = door.make("lay_clone_open", "lay_clone *", from_fd, to_fd, 0, workers)
        end, most = door.out("int *"), 0
        while not end[0]:
            door.call("lay_clone_run", clone, 0, end)
            most = max(most, len(disk.open_files()))
        door.ffi.release(clone)
    assert most < len(disk.open_files()) + 90
    assert disk.changed(facts(source), facts(target)) == []


def test_names_of_one_inode_are_names_of_one_inode_beyond_a_batch_and_a_directory(place: Path) -> None:
    source, target = pair(place)
    for i in range(20):
        (source / f"d{i}").mkdir()
    (source / "d7/first").write_bytes(b"x" * 10000)
    os.mknod(source / "d3/white", stat.S_IFCHR, 0)
    for i in range(20):
        for k in range(60):
            os.link(source / "d7/first", source / f"d{i}/f{k}")
            os.link(source / "d3/white", source / f"d{i}/w{k}", follow_symlinks=False)
    for workers in (-1, 8, 0):
        run(source, target, workers=workers)
        assert disk.changed(facts(source), facts(target)) == []
        counts = collections.Counter(p.lstat().st_ino for p in target.rglob("*") if not p.is_dir())
        assert sorted(counts.values()) == [1201, 1201]
        disk.remove_tree(target)
        target.mkdir()


# ---- by links ----
def test_linked_directories_are_new_and_the_rest_is_the_same_inode(place: Path) -> None:
    source, target = pair(place)
    Drawn(source, random.Random(7))
    for path in source.rglob("*"):
        if path.is_socket():
            path.unlink()
    wanted = facts(source)
    run(source, target, flags=door.lib.LAY_CLONE_LINK)
    assert disk.changed(wanted, facts(target)) == []
    for path in source.rglob("*"):
        assert (path.lstat().st_ino == (target / path.relative_to(source)).lstat().st_ino) != stat.S_ISDIR(path.lstat().st_mode)


def test_what_cannot_be_linked_is_copied(place: Path, room: Path) -> None:
    source, _ = pair(place)
    _, target = pair(room)
    Drawn(source, random.Random(11))
    wanted = facts(source, holes=False)
    run(source, target, flags=door.lib.LAY_CLONE_LINK)
    assert disk.changed(wanted, facts(target, holes=False)) == []


# ---- while others change the tree ----
def test_a_file_that_is_always_written_is_taken_as_read_and_named(room: Path) -> None:
    source, target = pair(room)
    (source / "d").mkdir()
    (source / "d/busy").write_bytes(bytes(16 << 20))
    (source / "d/calm").write_bytes(b"calm")
    stop = threading.Event()

    def write() -> None:
        with (source / "d/busy").open("r+b") as out:
            while not stop.is_set():
                os.pwrite(out.fileno(), b"x", 5)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert run(source, target) == ["d/busy"]
    finally:
        stop.set()
        writer.join()
    assert (target / "d/busy").stat().st_size == 16 << 20
    assert (target / "d/calm").read_bytes() == b"calm"


def test_a_file_that_was_written_once_meanwhile_is_copied_again(room: Path) -> None:
    source, target = pair(room)
    (source / "f").write_bytes(bytes(64 << 20))
    (source / "g").write_bytes(bytes(64 << 20))
    with directory(source) as from_fd, directory(target) as to_fd:
        clone = door.make("lay_clone_open", "lay_clone *", from_fd, to_fd, 0, 1)
        end = door.out("int *")
        while not (target / "f").exists() or (target / "f").stat().st_size == 0:
            door.call("lay_clone_run", clone, 1, end)
        with (source / "f").open("r+b") as out:
            out.write(b"changed")
            out.truncate(63 << 20)
        os.chmod(source / "f", 0o4711)
        while not end[0]:
            door.call("lay_clone_run", clone, 100, end)
        assert door.lib.lay_clone_unsteady(clone, 0) == door.ffi.NULL
        door.ffi.release(clone)
    assert disk.changed(facts(source), facts(target)) == []


@pytest.mark.parametrize("workers", [-1, 0])
def test_what_is_renamed_and_removed_meanwhile_is_left_out_or_there(place: Path, workers: int) -> None:
    source, target = pair(place)
    for i in range(60):
        (source / f"d{i}").mkdir()
        for k in range(20):
            (source / f"d{i}/f{k}").write_text(f"{i} {k}")
    (source / "twins").mkdir()
    stop = threading.Event()

    def change() -> None:
        r = random.Random(5)
        while not stop.is_set():
            i, k = r.randrange(60), r.randrange(20)
            try:
                if r.random() < 0.2:
                    os.rename(source / f"d{i}", source / "moved")
                    os.rename(source / "moved", source / f"d{r.randrange(60)}/e{r.randrange(100)}")
                elif r.random() < 0.5:
                    (source / f"d{i}/f{k}").unlink()
                    r.choice([os.mkfifo, os.mkdir, lambda p: os.symlink("x", p)])(source / f"d{i}/f{k}")
                else:
                    os.link(source / f"d{i}/f{k}", source / f"twins/{r.randrange(300)}", follow_symlinks=False)
            except OSError:
                pass

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(2):
            run(source, target, workers=workers)
            for path in target.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    text = path.read_text()
                    assert len(text.split()) == 2
            disk.remove_tree(target)
            target.mkdir()
    finally:
        stop.set()
        changer.join()


# ---- failures ----
def test_a_target_that_is_not_empty_is_an_error_with_the_path(room: Path) -> None:
    source, target = pair(room)
    for top in (source, target):
        (top / "d").mkdir()
        (top / "d/f").write_text("f")
    (target / "d/f").unlink()
    (target / "d").rmdir()
    (target / "d").symlink_to(room)
    with door.fails("LAY_E_OS") as errors:
        run(source, target)
    assert (errors[0].sys_errno, errors[0].path) == (errno.EEXIST, b"d")
    (target / "d").unlink()
    (source / "d/f").rename(source / "f")
    (target / "f").symlink_to(room / "victim")
    with door.fails("LAY_E_OS") as errors:
        run(source, target)
    assert (errors[0].sys_errno, errors[0].path) == (errno.EEXIST, b"f")
    assert not (room / "victim").exists()


@pytest.mark.parametrize("workers", [-1, 0])
def test_a_full_disk_is_an_error_with_the_path(room: Path, workers: int) -> None:
    source = room / "source"
    source.mkdir()
    for i in range(100):
        (source / f"f{i}").write_bytes(os.urandom(100_000))
    with disk.sized_file_system(room, "tmpfs", size=2 << 20) as small:
        (small / "target").mkdir()
        with door.fails("LAY_E_OS") as errors:
            run(source, small / "target", workers=workers)
        assert errors[0].sys_errno == errno.ENOSPC
        assert (source / os.fsdecode(errors[0].path)).is_file()


def test_a_clone_that_is_given_up_stops_inside_of_a_file(room: Path) -> None:
    source, target = pair(room)
    (source / "huge").write_bytes(os.urandom(1 << 20) * 256)
    with directory(source) as from_fd, directory(target) as to_fd:
        clone = door.make("lay_clone_open", "lay_clone *", from_fd, to_fd, 0, 1)
        end = door.out("int *")
        door.call("lay_clone_run", clone, 0, end)
        assert end[0] == 0
        began = time.monotonic()
        door.ffi.release(clone)
        assert time.monotonic() - began < 5
