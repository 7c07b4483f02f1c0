"""source.c, and assemble.c as a source: whatever way the bytes go out, they are the same bytes in the same order."""

import ctypes
import functools
import hashlib
import itertools
import os
import platform
import resource
import threading

import door
import pytest
import recipes
import sinks
from hypothesis import given
from hypothesis import strategies as st
from tarkit import dir, end, file

MIB = 1 << 20
FILES = {b"d/big": recipes.noise(5 * MIB + 77), **{b"d/%03d" % n: recipes.noise(n * 211, n) for n in range(150)}}
TAR = dir("d/") + b"".join(file(name, data) for name, data in FILES.items()) + end() + b"tail" * 100


@functools.cache
def record_of_tar():
    return sinks.record(TAR)


@pytest.fixture
def record():
    return record_of_tar()


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "d").mkdir()
    for name, data in FILES.items():
        (tmp_path / os.fsdecode(name)).write_bytes(data)
    return tmp_path


def assembled(record, tree, digest=None):
    with sinks.memory(record) as record_fd, sinks.directory(tree) as root_fd:
        expected = door.ffi.NULL if digest is None else door.ffi.from_buffer("uint8_t[]", digest)
        handle = door.out("lay_source **")
        door.call("lay_assemble_open", handle, record_fd, root_fd, expected)
        return door.ffi.gc(handle[0], door.lib.lay_source_free)


def read(source, n):
    buffer, got = door.ffi.new("uint8_t[]", n), door.out("size_t *")
    door.call("lay_source_read", source, buffer, n, got)
    return bytes(door.ffi.buffer(buffer, got[0]))


def read_all(source, n=MIB):
    return b"".join(iter(lambda: read(source, n), b""))


def copy(source, fd, max_bytes=-1, max_ms=-1):
    """(bytes written, at the end)"""
    written, ended = door.out("int64_t *"), door.out("int *")
    door.call("lay_source_copy", source, fd, max_bytes, max_ms, written, ended)
    return written[0], bool(ended[0])


class Pipe:
    """A pipe whose other end is drained by a thread; slowly where that is asked for."""

    def __init__(self, slow=False, nonblocking=False):
        self.out, self.fd = os.pipe()
        os.set_blocking(self.fd, not nonblocking)
        self.bytes, self.slow = b"", slow
        self.thread = threading.Thread(target=self.drain)
        self.thread.start()

    def drain(self):
        pieces = []
        while piece := os.read(self.out, 3000 if self.slow else MIB):
            pieces.append(piece)
        self.bytes = b"".join(pieces)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)
        self.thread.join()
        os.close(self.out)


def test_read_in_large_and_small_pieces_gives_the_tar(record, tree):
    digest = hashlib.sha256(TAR).digest()
    for n in (MIB, 4 * MIB, len(TAR) + 5, 512 * 1024, 100_003):
        assert read_all(assembled(record, tree, digest), n) == TAR


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("nonblocking", [False, True])
def test_copied_into_a_pipe_it_is_the_tar(record, tree, slow, nonblocking):
    with Pipe(slow, nonblocking) as pipe:
        source, total, at_end = assembled(record, tree, hashlib.sha256(TAR).digest()), 0, False
        while not at_end:
            written, at_end = copy(source, pipe.fd, 1 << 40, 20)
            total += written
            assert door.lib.lay_source_tell(source) == total
    assert total == len(TAR)
    assert pipe.bytes == TAR


@given(steps=st.lists(st.tuples(st.sampled_from("rcl"), st.integers(1, 3 * MIB)), max_size=12))
def test_reading_and_copying_by_turns_lose_nothing(tmp_path_factory, steps):
    tree = tmp_path_factory.getbasetemp() / "kept"
    if not tree.exists():
        (tree / "d").mkdir(parents=True)
        for name, data in FILES.items():
            (tree / os.fsdecode(name)).write_bytes(data)
    source, seen = assembled(record_of_tar(), tree, hashlib.sha256(TAR).digest()), b""
    for what, n in itertools.chain(steps, [("r", len(TAR)), ("l", len(TAR))]):
        if what == "r":
            seen += read(source, n)
            continue
        with sinks.memory() as fd:
            # "l" asks for so much that it reads ahead; "c" for no more than it gets.
            written, _ = copy(source, fd, 1 << 40 if what == "l" else n, 0 if what == "l" else -1)
            assert what == "l" or written <= n
            seen += sinks.content(fd)
        assert door.lib.lay_source_tell(source) == len(seen)
    seen += read_all(source)
    assert seen == TAR


def test_a_seek_forgets_what_was_read_ahead(record, tree):
    source = assembled(record, tree)
    with Pipe() as pipe:
        copy(source, pipe.fd, 1 << 40, 0)
        copy(source, pipe.fd, 1 << 40, 0)
    for offset in (0, 1000, len(TAR) - 50, 3 * MIB, 0):
        door.call("lay_source_seek", source, offset)
        assert read(source, 40) == TAR[offset : offset + 40]


@pytest.mark.parametrize("by", ["read", "copy"])
def test_a_changed_file_is_an_error_and_its_end_is_not_given(record, tree, by):
    (tree / "d/big").write_bytes(FILES[b"d/big"][:-1] + b"!")
    source, seen = assembled(record, tree, hashlib.sha256(TAR).digest()), b""
    with door.fails("LAY_E_MISMATCH") as errors:
        if by == "read":
            while piece := read(source, 700_000):
                seen += piece
        else:
            with sinks.memory() as fd:
                try:
                    copy(source, fd)
                finally:
                    seen = sinks.content(fd)
    assert errors[0].path == b"d/big"
    assert len(seen) > 4 * MIB
    assert TAR.startswith(seen)


def test_a_tar_that_differs_as_a_whole_is_given_whole_and_then_refused(record, tree):
    source = assembled(record, tree, bytes(32))
    with sinks.memory() as fd:
        with door.fails("LAY_E_MISMATCH") as errors:
            while not copy(source, fd, -1, 5)[1]:
                pass
        assert sinks.content(fd) == TAR
    assert errors[0].path == b""


def test_a_descriptor_that_takes_nothing_is_an_error_and_loses_nothing(record, tree):
    source = assembled(record, tree)
    with sinks.memory() as fd:
        copy(source, fd, 2 * MIB)
        before = door.lib.lay_source_tell(source)
        closed = os.open(os.devnull, os.O_RDONLY)
        try:
            with door.fails("LAY_E_OS"):
                copy(source, closed)
        finally:
            os.close(closed)
        assert door.lib.lay_source_tell(source) == before
        assert sinks.content(fd) + read_all(source) == TAR


def test_a_refusal_as_a_whole_stays_until_a_seek(record, tree):
    source = assembled(record, tree, bytes(32))
    with sinks.memory() as fd:
        for _ in range(2):
            with door.fails("LAY_E_MISMATCH"):
                copy(source, fd)
            with door.fails("LAY_E_MISMATCH"):
                read(source, 1)
            assert sinks.content(fd) == TAR
    door.call("lay_source_seek", source, 0)
    with door.fails("LAY_E_MISMATCH"):
        read_all(source, 4 * MIB)
    door.call("lay_source_seek", source, 1)
    assert read_all(source) == TAR[1:]


@pytest.mark.parametrize("by", ["read", "copy"])
def test_after_a_seek_to_the_start_the_whole_is_checked_again(record, tree, by):
    for digest, fails in ((hashlib.sha256(TAR).digest(), False), (bytes(32), True)):
        source = assembled(record, tree, digest)
        with sinks.memory() as fd:
            copy(source, fd, 1 << 40, 0)
            if by == "read":
                read(source, 3 * MIB)
            door.call("lay_source_seek", source, 0)
            if fails:
                with door.fails("LAY_E_MISMATCH"):
                    read_all(source)
            else:
                assert read_all(source) == TAR


def test_neither_a_thread_nor_a_mark_on_the_callers_one_is_left(record, tree):
    source = assembled(record, tree, hashlib.sha256(TAR).digest())
    cores, threads = os.sched_getaffinity(0), len(os.listdir("/proc/self/task"))
    with sinks.memory() as fd:
        at_end = False
        while not at_end:
            _, at_end = copy(source, fd, 1 << 40, 0)
            assert os.sched_getaffinity(0) == cores
            assert len(os.listdir("/proc/self/task")) == threads
        assert sinks.content(fd) == TAR


def test_on_one_core_it_is_the_same_tar(record, tree):
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with sinks.memory() as fd:
            assert copy(assembled(record, tree, hashlib.sha256(TAR).digest()), fd) == (len(TAR), True)
            assert sinks.content(fd) == TAR
        assert read_all(assembled(record, tree, hashlib.sha256(TAR).digest()), 4 * MIB) == TAR
    finally:
        os.sched_setaffinity(0, cores)


def test_where_no_thread_can_be_made_the_caller_does_it_all(record, tree):
    tree.chmod(0o755)
    good, bad = (assembled(record, tree, digest) for digest in (hashlib.sha256(TAR).digest(), bytes(32)))
    done = []

    def alone():
        # By the bare call only this thread becomes another user: the limit does not hold for root.
        setresuid = {"x86_64": 117, "aarch64": 147}[platform.machine()]
        assert ctypes.CDLL(None).syscall(setresuid, 54321, 54321, 54321) == 0
        with pytest.raises(RuntimeError):
            threading.Thread(target=print).start()
        with sinks.memory() as fd:
            assert copy(good, fd) == (len(TAR), True)
            assert sinks.content(fd) == TAR
        with sinks.memory() as fd, door.fails("LAY_E_MISMATCH"):
            copy(bad, fd)
        door.call("lay_source_seek", good, 0)
        assert read_all(good, 4 * MIB) == TAR
        done.append(True)

    thread, limits = threading.Thread(target=alone), resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, limits[1]))
    try:
        thread.start()
        thread.join()
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, limits)
    assert done
