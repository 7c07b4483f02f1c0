"""What reads ahead must not show: reads, copies, seeks and tells by turns give the bytes of the tar, each once."""

import contextlib
import io
import os

import pytest
import recipes
import tarkit
from hypothesis import given, settings
from hypothesis import strategies as st

import layerstore

MIB = 1 << 20
NOISE = recipes.noise(MIB)
TAR = (
    b"".join(tarkit.file(f"f{n:03}", recipes.noise(n * 3001, n)) for n in range(1, 90))
    + b"".join(tarkit.file(f"s{n % 9}/{n}", NOISE[n : n + n * 31 % 2000]) for n in range(2000)) + tarkit.end(20)
)


@pytest.fixture
def layer(open_store):
    return open_store(options={"durability": "none"}).register(TAR)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 3 * MIB)),
        st.tuples(st.just("readinto"), st.integers(0, MIB)),
        st.tuples(st.just("read_block"), st.integers(0, 2 * MIB)),
        st.tuples(st.just("seek"), st.integers(0, len(TAR) + 600)),
        st.tuples(st.just("stay"), st.just(0)),
        st.tuples(st.just("copy"), st.just(0))),
    max_size=12
)


def step(stream, at, what, n):
    """Do it; what it gave, and where the stream must stand then."""
    if what == "read":
        return (got := stream.read(n)), at + len(got)
    if what == "read_block":
        return (got := stream.read_block(n)), at + len(got)
    if what == "readinto":
        buffer = bytearray(n)
        size = stream.readinto(buffer)
        return bytes(buffer[:size]), at + size
    if what == "seek":
        assert stream.seek(n) == n
        return b"", n
    if what == "stay":
        assert stream.seek(0, os.SEEK_CUR) == at
        return b"", at
    out = io.BytesIO()
    size = stream.copy_to(out)
    return out.getvalue(), at + size


def test_by_turns_they_give_the_bytes_that_stand_there(layer):
    @settings(max_examples=150, deadline=None, database=None)
    @given(STEPS)
    def law(steps):
        with layer.tar_stream() as stream:
            at = 0
            for what, n in steps:
                got, after = step(stream, at, what, n)
                assert got == TAR[at : at + len(got)]
                if what in ("read", "readinto"):
                    assert len(got) == min(n, max(len(TAR) - at, 0))
                at = after
                assert stream.tell() == at

    law()


@pytest.mark.parametrize("first", [1, 1000, 70_000, 2 * MIB])
def test_a_copy_to_a_descriptor_goes_on_where_reading_stopped(layer, room, first):
    with layer.tar_stream() as stream, open(room / "out", "wb") as out:
        head = stream.read(first) + stream.read(first)
        assert stream.copy_to(out) == len(TAR) - len(head)
    assert head + (room / "out").read_bytes() == TAR


def test_a_copy_to_a_full_pipe_goes_on_when_it_is_drained(layer):
    import threading

    out, into = os.pipe()
    os.set_blocking(into, False)
    parts = []

    def drain():
        while part := os.read(out, 50_000):
            parts.append(part)

    with layer.tar_stream() as stream:
        head = stream.read(5000) + stream.read(5000)
        thread = threading.Thread(target=drain)
        thread.start()
        stream.copy_to(into)
        os.close(into)
        thread.join()
        os.close(out)
    assert head + b"".join(parts) == TAR


@pytest.mark.time_limit(20)
def test_what_was_read_ahead_does_not_wait_in_a_full_pipe_where_no_signal_would_be_heard(layer):
    out, into = os.pipe()
    os.set_blocking(into, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(into, bytes(65536)):
            pass
    os.set_blocking(into, True)
    with layer.tar_stream() as stream:
        head = stream.read(5000) + stream.read(5000)
        assert stream._source.copy_to_fd(into, 1 << 30, 50) == (False, 0)      # and comes back
        os.close(into)
        os.close(out)
        assert head + stream.read() == TAR


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_a_changed_file_is_an_error_in_the_read_that_meets_it_and_not_before(layer, diff_of):
    path = diff_of(layer) / "f060"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    bad = TAR.index(data) + len(data)
    with layer.tar_stream() as stream:
        got = 0
        with pytest.raises(layerstore.CorruptLayerError) as caught:
            while piece := stream.read(4000):
                assert piece == TAR[got : got + len(piece)]
                got += len(piece)
        assert caught.value.path == "f060"
        assert bad - 200_000 < got < bad


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_blocks_are_the_tar_and_the_end_is_checked(layer):
    with layer.tar_stream() as stream:
        blocks = list(iter(lambda: stream.read_block(MIB), b""))
    assert b"".join(blocks) == TAR
    assert {len(block) for block in blocks[:-1]} == {MIB}
    victim = os.path.join(layer.metadata()["UpperDir"], "f089")
    with open(victim, "r+b") as file:
        file.write(b"other")
    with layer.tar_stream() as stream, pytest.raises(layerstore.CorruptLayerError, match="f089"):
        while stream.read_block(MIB):
            pass


def test_a_block_that_was_not_asked_for_is_not_read(layer):
    """Memory: what reads in blocks holds one, not what a caller of read() would be served from."""
    with layer.tar_stream() as stream:
        for _ in range(4):
            stream.read_block(MIB)
        assert stream._source.read_ahead() == b""
        stream.read(MIB)
        stream.read(MIB)
        assert stream._source.read_ahead()
