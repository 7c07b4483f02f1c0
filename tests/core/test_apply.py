"""apply.c: however many workers, however the bytes come: one tree, one record, one DiffID, or one error."""

import errno
import gzip
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import disk
import door
import imagekit
import pytest
import recipes
import refused
import sinks
import tarkit
from tarkit import dir, end, file

# Threads start with the second block, so what is to happen in them stands behind this.
FRONT = dir("front/") + file("front/large", recipes.noise((9 << 17) + 77))
SECONDS = 1_000_000_000


class Outcome(NamedTuple):
    applied: sinks.Applied
    record: bytes
    tree: dict[bytes, tuple]
    tar: bytes  # assembled from record and tree


class Ground:
    """A fresh root, scratch directory and record for every apply."""

    def __init__(self, room: Path) -> None:
        self.room, self.count = room, 0

    def apply(self, push: Callable[[Any], None], *, workers: int = 0, flags: int = 0) -> Outcome:
        self.count += 1
        root, scratch = self.room / f"root{self.count}", self.room / f"scratch{self.count}"
        root.mkdir()
        scratch.mkdir()
        with sinks.directory(root) as root_fd, sinks.directory(scratch) as scratch_fd, sinks.memory() as record_fd:
            where = {"root": root_fd, "scratch": scratch_fd, "record_fd": record_fd, "workers": workers, "flags": flags}
            try:
                with sinks.applying(**where) as a:
                    push(a)
                    applied = sinks.finish(a)
                tree = without_now(disk.disk_state(root, times=True))
                return Outcome(
                    applied, sinks.content(record_fd), tree, sinks.assemble(record_fd, root_fd, applied.diff_id)
                )
            finally:
                assert os.listdir(scratch) == []
                with sinks.directory(self.room) as room_fd:
                    door.call("lay_tree_remove", room_fd, root.name.encode())

    def of(self, tar: bytes, **how: int) -> Outcome:
        return self.apply(lambda a: push_all(a, tar), **how)

    def error(self, tar: bytes, **how: int) -> tuple[str, int, int, bytes, str]:
        try:
            self.of(tar, **how)
        except door.CoreError as error:
            return error.code, error.sys_errno, error.offset, error.path, error.text
        raise AssertionError("accepted")


def push_all(a: Any, tar: bytes, step: int | None = None) -> None:
    for window, n in sinks.windows(tar, step):
        door.call("lay_apply_push", a, window, n)


def without_now(tree: dict[bytes, tuple]) -> dict[bytes, tuple]:
    """A tree without the times that no entry gave: of the root and of implied directories."""
    lately = time.time_ns() - 3600 * SECONDS
    return {name: (*facts[:-1], "now" if facts[-1] > lately else facts[-1]) for name, facts in tree.items()}


@pytest.fixture
def ground(room: Path) -> Ground:
    return Ground(room)


WORKERS = (0, 1, 2)


# ---- one tar, one outcome ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", recipes.GOOD)
def test_workers_change_nothing_and_what_came_in_goes_out(ground: Ground, name: str) -> None:
    small = recipes.GOOD[name]()
    assert ground.of(small, workers=2).tar == small
    tar = FRONT + small
    first, *others = [ground.of(tar, workers=workers) for workers in WORKERS]
    assert first.tar == tar
    assert first.applied.diff_id == hashlib.sha256(tar).digest()
    assert first.applied.tar_size == len(tar)
    for other in others:
        assert other.applied == first.applied
        assert other.record == first.record
        assert disk.changed(first.tree, other.tree) == []


def test_many_files_by_many_workers(ground: Ground) -> None:
    tar = (
        b"".join(
            file(f"d{i % 50}/f{i}", recipes.noise(i % 3000, i), mode=0o600 + i % 8, uid=i % 3) for i in range(3000)
        )
        + end()
    )
    first, *others = [ground.of(tar, workers=workers) for workers in (0, 1, 2, 4)]
    for other in others:
        assert disk.changed(first.tree, other.tree) == []
        assert other.record == first.record


@pytest.mark.parametrize(
    "how", ["pieces", "lend", "lend in two", "pump", "pump at an offset", "a pipe", "gzip", "gzip in pieces", "zstd"]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_the_way_bytes_come_changes_nothing(ground: Ground, room: Path, how: str, workers: int) -> None:
    tar = FRONT + recipes.GOOD["good_names_through_symlink"]()[:-1024] + recipes.GOOD["good_duplicate_big"]()
    wanted = ground.of(tar)
    memory = door.ffi.from_buffer(tar)
    packed = gzip.compress(tar, 1)

    def pump(a: Any, fd: int, offset: int = -1) -> None:
        at, stop = door.ffi.new("int64_t *", offset), door.out("int *")
        while not stop[0]:
            door.call("lay_apply_pump", a, fd, at, 300_000, 1000, stop)

    def push(a: Any) -> None:
        if how == "pieces":
            push_all(a, tar, 9_999)
        elif how == "lend":
            door.call("lay_apply_lend", a, memory, len(tar))
        elif how == "lend in two":
            door.call("lay_apply_lend", a, memory, 700)
            door.call("lay_apply_lend", a, memory + 700, len(tar) - 700)
        elif how == "pump":
            with sinks.memory(tar) as fd:
                pump(a, fd)
        elif how == "pump at an offset":
            with sinks.memory(b"before" + tar) as fd:
                pump(a, fd, 6)
        elif how == "a pipe":
            end_to_read, end_to_write = os.pipe()
            with open(end_to_write, "wb") as pipe, open(end_to_read) as other:
                thread = threading.Thread(target=lambda: (pipe.write(tar), pipe.close()))
                thread.start()
                pump(a, other.fileno())
                thread.join()
        elif how == "gzip":
            push_all(a, packed)
        elif how == "gzip in pieces":
            push_all(a, packed, 1001)
        else:
            push_all(a, imagekit.zstd(tar))

    got = ground.apply(push, workers=workers)
    assert got.applied == wanted.applied
    assert got.record == wanted.record
    assert disk.changed(wanted.tree, got.tree) == []


@pytest.mark.parametrize("workers", WORKERS)
def test_a_record_alone_has_the_same_diffid(workers: int) -> None:
    for name, recipe in recipes.GOOD.items():
        tar = recipe()
        with sinks.memory() as record_fd, sinks.memory() as spool:
            applied = sinks.apply(tar, record_fd=record_fd, again=spool, workers=workers)
        assert applied.diff_id == hashlib.sha256(tar).digest(), name


# ---- one tar, one error -------------------------------------------------------------------------------
REFUSED = refused.BAD | {name: lambda made=made: (made()[0], 0, len(made()[0])) for name, made in refused.UNSUPPORTED.items()}


@pytest.mark.parametrize("name", REFUSED)
def test_workers_do_not_change_an_error(ground: Ground, name: str) -> None:
    tar, first, last = REFUSED[name]()
    for front in (b"", FRONT):
        one, *others = [ground.error(front + tar, workers=workers) for workers in WORKERS]
        assert others == [one] * len(others)
        assert first <= one[2] - len(front) <= last


NO_SUCH_XATTR = tarkit.xattrs({"bogus.name": b"x"}) + file("bogus", b"x")
MORE = b"".join(file(f"more{i}", b"m" * 100) for i in range(300))
OVER = file("f", b"f") + tarkit.whiteout("f")
BROKEN = tarkit.raw_header("x", chksum=1)
OUTSIDE = file("../x")


OS = "LAY_E_OS"
# The tar: the core's code, the errno, where.
FIRST = {
    "attribute": (NO_SUCH_XATTR, OS, errno.EOPNOTSUPP, 0),
    "attribute before a broken header": (NO_SUCH_XATTR + MORE + BROKEN, OS, errno.EOPNOTSUPP, 0),
    "attribute before a name outside": (NO_SUCH_XATTR + OUTSIDE, OS, errno.EOPNOTSUPP, 0),
    "broken header before an attribute": (MORE + BROKEN + NO_SUCH_XATTR, "LAY_E_TAR", 0, len(MORE)),
    "name outside before a broken header": (OUTSIDE + BROKEN, "LAY_E_BREAKOUT", 0, 0),
    "whiteout over a file": (MORE + OVER + MORE[:51200] + BROKEN, OS, errno.EEXIST, len(MORE) + 1024),
    "link to nothing": (tarkit.hardlink("l", "nowhere") + BROKEN, OS, errno.ENOENT, 0),
    "below a file": (file("a") + file("a/b") + BROKEN, OS, errno.ENOTDIR, 512),
    "device out of range": (tarkit.node("n", "c", tarkit.base256(1 << 32, 8), 0) + BROKEN, "LAY_E_TAR", 0, 0),
    "the first of two": (NO_SUCH_XATTR + MORE + NO_SUCH_XATTR.replace(b"bogus", b"other") + MORE + BROKEN, OS, errno.EOPNOTSUPP, 0),
}  # fmt: skip


@pytest.mark.parametrize("what", FIRST)
def test_the_error_that_comes_first_in_the_tar_is_told_however_the_threads_fell(ground: Ground, what: str) -> None:
    tar, code, number, at = FIRST[what]
    for front in (b"", FRONT):
        one, *others = [ground.error(front + tar + end(), workers=workers) for workers in (*WORKERS, 2, 4)]
        assert others == [one] * len(others)
        assert (one[0], one[1]) == (code, number)
        assert one[2] == len(front) + at


SEVERAL = (
    dir("d/") + file("d/a", b"a" * 700) + tarkit.pax({"path": "d/" + "long" * 40}) + file("d/x", b"x")
    + tarkit.symlink("s", "d") + tarkit.whiteout("gone") + file("s/a", b"again") + file("last", b"l" * 512) + end()
    + bytes(512)
)


@pytest.mark.parametrize("front", [b"", FRONT], ids=["in line", "in threads"])
def test_a_tar_cut_at_each_block_is_stored_whole_or_refused_there(ground: Ground, front: bytes) -> None:
    refused = 0
    for at in range(0, len(SEVERAL) + 1, 512):
        for cut in {at, at + 1, at + 511} if not front else {at, at + 300}:
            tar = front + SEVERAL[:cut]
            try:
                assert ground.of(tar, workers=1).tar == tar
            except door.CoreError as error:
                assert (error.code, error.offset) == ("LAY_E_TRUNCATED", len(tar))
                refused += 1
    assert refused > 10


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("pack", [gzip.compress, imagekit.zstd], ids=["gzip", "zstd"])
def test_a_compressed_stream_cut_anywhere_is_never_stored(ground: Ground, pack: Callable[[bytes], bytes], workers: int) -> None:
    packed = pack(FRONT + tarkit.T1)
    for cut in (5, 11, len(packed) // 2, len(packed) - 3000, len(packed) - 9, len(packed) - 1):
        assert ground.error(packed[:cut], workers=workers)[0] in ("LAY_E_TRUNCATED", "LAY_E_TAR")


# ---- handles ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("packed", [b"BZh91AY&SY", b"\xfd7zXZ\0", b"\x04\x22\x4d\x18"])
def test_what_the_core_does_not_inflate_is_said(ground: Ground, packed: bytes) -> None:
    assert ground.error(packed)[0] == "LAY_E_UNSUPPORTED"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failure_stays(room: Path, workers: int) -> None:
    bad = FRONT + BROKEN + bytes(3 << 20)
    with sinks.memory() as record_fd, sinks.applying(record_fd=record_fd, workers=workers) as a:
        with door.fails("LAY_E_TAR"):
            push_all(a, bad)
            sinks.finish(a)
        for again in (lambda: push_all(a, tarkit.T1), lambda: sinks.finish(a)):
            with door.fails("LAY_E_TAR") as errors:
                again()
            assert errors[0].offset == len(FRONT)


def test_a_finished_layer_takes_no_more() -> None:
    with sinks.memory() as record_fd, sinks.applying(record_fd=record_fd) as a:
        push_all(a, tarkit.T1)
        sinks.finish(a)
        for again in (lambda: push_all(a, tarkit.T1), lambda: sinks.finish(a)):
            with door.fails("LAY_E_STATE"):
                again()


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("pushed", [0, 100, 2000, 1 << 20, 3 << 20, len(FRONT) + 1500])
def test_a_layer_left_in_the_middle_leaves_no_thread_and_no_scratch(room: Path, pushed: int, workers: int) -> None:
    threads = len(os.listdir("/proc/self/task"))
    (room / "root").mkdir()
    (room / "scratch").mkdir()
    tar = FRONT + recipes.GOOD["good_duplicate"]() + bytes(3 << 20)
    with (
        sinks.directory(room / "root") as root, sinks.directory(room / "scratch") as scratch,
        sinks.memory() as record_fd
    ):
        with sinks.applying(root=root, scratch=scratch, record_fd=record_fd, workers=workers) as a:
            push_all(a, tar[:pushed])
            assert door.lib.lay_apply_taken(a) == pushed
    # The alarm of the test before may still be ending its own.
    assert len(os.listdir("/proc/self/task")) <= threads
    assert os.listdir(room / "scratch") == []


@pytest.mark.parametrize("workers", WORKERS)
def test_without_draining_nothing_is_wanted_after_the_end(room: Path, workers: int) -> None:
    with (
        sinks.directory(room) as root,
        sinks.applying(root=root, over="mount", workers=workers) as a,
    ):
        push_all(a, FRONT)
        assert not door.lib.lay_apply_sated(a)
        tail = file("f", b"f") + end() + bytes(2 << 20)
        with sinks.memory(tail + bytes(64 << 20)) as fd:
            at, stop = door.ffi.new("int64_t *", -1), door.out("int *")
            while not stop[0]:
                door.call("lay_apply_pump", a, fd, at, 1 << 20, 1000, stop)
            assert door.lib.lay_apply_sated(a)
            assert os.lseek(fd, 0, os.SEEK_CUR) < len(tail) + (32 << 20)
        sinks.finish(a)
    assert (room / "f").read_text() == "f"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("at_offset", [False, True])
def test_pump_takes_no_more_than_it_may(ground: Ground, packed: bool, at_offset: bool) -> None:
    """What follows in the file, or the pipe, belongs to another reader."""
    tar = FRONT + file("f", b"f") + end()
    data = gzip.compress(tar, 1) if packed else tar

    def push(a: Any) -> None:
        with sinks.memory(data + b"what follows") as fd:
            at, stop = door.ffi.new("int64_t *", 0 if at_offset else -1), door.out("int *")
            taken = 0
            while taken < len(data):
                door.call("lay_apply_pump", a, fd, at, min(700, len(data) - taken), 1000, stop)
                now = at[0] if at_offset else os.lseek(fd, 0, os.SEEK_CUR)
                assert taken < now <= taken + 700
                taken = now
            assert taken == len(data)

    assert ground.apply(push).applied == ground.of(tar).applied


def test_a_descriptor_that_cannot_be_read_is_an_error_of_its_own(room: Path) -> None:
    with sinks.directory(room) as fd, sinks.memory() as record_fd, sinks.applying(record_fd=record_fd) as a:
        with door.fails("LAY_E_OS") as errors:
            door.call("lay_apply_pump", a, fd, door.ffi.new("int64_t *", -1), 1 << 20, 1000, door.out("int *"))
        assert errors[0].sys_errno == errno.EISDIR
