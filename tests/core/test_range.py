"""range.c: a tar that lies in a file goes out as it is, and is checked as a whole."""

import hashlib
import os

import door
import pytest
import recipes
import sinks
from hypothesis import given
from hypothesis import strategies as st
from test_source import MIB, Pipe, copy, read, read_all

TAR = recipes.noise(6 * MIB + 1234)
DIGEST = hashlib.sha256(TAR).digest()


def lying(digest=DIGEST, *, tar=TAR, size=None):
    expected = door.ffi.NULL if digest is None else door.ffi.from_buffer("uint8_t[]", digest)
    with sinks.memory(b"before" + tar) as fd:
        return opened(fd, len("before"), len(TAR) if size is None else size, expected)


def opened(fd, *args):
    handle = door.out("lay_source **")
    door.call("lay_range_open", handle, fd, *args)
    return door.ffi.gc(handle[0], door.lib.lay_source_free)


def way_out(source, by):
    """(all bytes that come, the error that ends them)"""
    seen, error = b"", None
    try:
        if by == "read":
            while piece := read(source, 700_000):
                seen += piece
        else:
            with sinks.memory() as fd:
                try:
                    copy(source, fd)
                finally:
                    seen = sinks.content(fd)
    except door.CoreError as raised:
        error = raised
    return seen, error


@pytest.mark.parametrize("by", ["read", "copy"])
def test_the_bytes_come_and_then_what_is_known_of_the_whole(by):
    assert way_out(lying(), by) == (TAR, None)
    assert way_out(lying(None), by) == (TAR, None)
    source = lying(bytes(32))
    seen, error = way_out(source, by)
    assert seen == TAR
    assert error.code == "LAY_E_MISMATCH" and error.text.startswith(f"could not verify layer data for: sha256:{bytes(32).hex()}")
    with door.fails("LAY_E_MISMATCH"):
        read(source, 1)


@pytest.mark.parametrize("by", ["read", "copy"])
def test_a_file_that_ends_too_soon_gives_what_it_has(by):
    for digest in (DIGEST, None):
        seen, error = way_out(lying(digest, tar=TAR[:-1]), by)
        assert seen == TAR[:-1] and error.code == "LAY_E_MISMATCH"
    source = lying(tar=TAR[:-5])
    door.call("lay_source_seek", source, len(TAR) - 9)
    seen, error = way_out(source, by)
    assert seen == TAR[-9:-5] and error.code == "LAY_E_MISMATCH"


def test_what_stands_behind_the_tar_is_not_given():
    assert way_out(lying(hashlib.sha256(TAR[:-7]).digest(), size=len(TAR) - 7), "copy") == (TAR[:-7], None)
    assert way_out(lying(hashlib.sha256(b"").digest(), size=0), "read") == (b"", None)


@given(steps=st.lists(st.tuples(st.sampled_from("rcls"), st.integers(0, len(TAR) + MIB)), max_size=10))
def test_reading_copying_and_seeking_by_turns_is_a_files(steps):
    source, at = lying(), 0
    for what, n in steps:
        if what == "s":
            door.call("lay_source_seek", source, n)
            at = n
        elif what == "r":
            want = TAR[at : at + n]
            came = read(source, n) if n else b""
            # What a copy that stopped had read ahead comes alone.
            while len(came) < len(want) and (more := read(source, n - len(came))):
                came += more
            assert came == want
            at += len(want)
        else:
            with sinks.memory() as fd:
                written, _ = copy(source, fd, 1 << 40 if what == "l" else n, 0 if what == "l" else -1)
                assert sinks.content(fd) == TAR[at : at + written]
                at += written
        assert door.lib.lay_source_tell(source) == at
    assert read_all(source) == TAR[at:]


def test_a_seek_to_the_start_begins_the_check_again():
    source = lying(bytes(32))
    door.call("lay_source_seek", source, 5)
    assert read_all(source) == TAR[5:]
    door.call("lay_source_seek", source, 0)
    with door.fails("LAY_E_MISMATCH"):
        read_all(source)
    door.call("lay_source_seek", source, len(TAR) + 5)
    assert read(source, 10) == b""


def test_size_and_a_pipe():
    size, source = door.out("int64_t *"), lying()
    door.call("lay_source_size", source, size)
    assert size[0] == len(TAR)
    with Pipe(slow=True) as pipe:
        while not copy(source, pipe.fd, 1 << 40, 20)[1]:
            pass
    assert pipe.bytes == TAR


def test_an_error_of_the_file_comes_behind_the_good_bytes(tmp_path):
    """A directory cannot be read."""
    fd = os.open(tmp_path, os.O_RDONLY)
    source = opened(fd, 0, 10, door.ffi.NULL)
    os.close(fd)
    for _ in range(2):
        with door.fails("LAY_E_OS"):
            read(source, 4)
