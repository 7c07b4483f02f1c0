"""In and out again: the same bytes, for every writer of tars and every way to read them back."""

import io
import os
import random
import subprocess
import tarfile
import threading

import pytest
import recipes
import tarkit
from disk import changed, disk_state, mounts_below
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored import Trickle, tar_of
from tarkit import end, file

from layerstore import LayerStoreError

LAW = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_round_trip(store, tar, parent=""):
    """The law of this page; return the layer."""
    layer = store.register(io.BytesIO(tar), parent)
    assert layer.diff_id == tarkit.diff_id(tar)
    with layer.tar_stream() as stream:
        assert stream.size == len(tar)
        # Not `==` inside the assert: pytest would spend minutes on the difference of two megabytes.
        same = stream.read() == tar
    assert same, "the tar came back with other bytes"
    return layer


@pytest.mark.parametrize("name", recipes.GOOD)
def test_every_good_layer_comes_back_the_same_and_goes_without_a_trace(store, root, name):
    tar = recipes.GOOD[name]()
    store.register(tarkit.T2 + b"warm").release()
    before = disk_state(root)
    layer = assert_round_trip(store, tar)
    assert store.verify(layer.chain_id) == []
    assert mounts_below(root) == []
    assert len(layer.release()) == 1
    assert changed(before, disk_state(root)) == []


@pytest.mark.parametrize("name", recipes.GOOD)
def test_every_good_layer_comes_back_after_a_restart_over_a_parent(store, open_store, name):
    tar = recipes.GOOD[name]()
    base = store.register(file("below", b"below") + end())
    chain = store.register(tar, base.chain_id).chain_id
    store.close()
    assert tar_of(open_store().get(chain)) == tar


@pytest.mark.parametrize("name", recipes.GOOD)
def test_every_good_layer_may_come_byte_by_byte(store, name):
    tar = recipes.GOOD[name]()
    layer = store.register(Trickle(tar, 1 if len(tar) < 20_000 else 997))
    assert layer.diff_id == tarkit.diff_id(tar)
    assert tar_of(layer) == tar


# ---- tars by others ---------------------------------------------------------------------------------
@pytest.fixture
def tree(room):
    """A directory tree with what a tar can hold."""
    place = room / "tree"
    (place / "dir/sub").mkdir(parents=True)
    (place / "dir/file").write_bytes(b"content\n" * 1000)
    (place / "dir/sub/empty").touch()
    (place / "réunion").write_text("utf-8")
    os.symlink("dir/file", place / "link")
    os.link(place / "dir/file", place / "hard")
    os.mkfifo(place / "fifo")
    os.mknod(place / "null", 0o020666, os.makedev(1, 3))
    with open(place / "sparse", "wb") as out:
        for offset in range(0, 40 * 65536, 65536):
            out.seek(offset)
            out.write(b"data" * 1024)
        out.truncate(50 * 65536)
    os.chmod(place / "dir/file", 0o4755)
    os.chown(place / "dir/sub", 1234, 4321)
    return place


@pytest.mark.parametrize("name_length", [20, 99, 100, 101, 150, 254])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_by_python_come_back(store, tree, form, name_length):
    # USTAR takes 100 bytes behind a slash and 155 before it, "./" included.
    half = "n" * (name_length - 101 if name_length > 200 else name_length // 2)
    deep = tree / half
    deep.mkdir()
    (deep / ("m" * (name_length - len(half) - 1))).write_text("long")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8") as tar:
        tar.add(tree, arcname=".")
    assert_round_trip(store, out.getvalue())


def gnu_tar(tree, *options):
    done = subprocess.run(["tar", "-C", tree, "-cf", "-", *options, "."], capture_output=True, check=False)
    assert done.stdout, done.stderr
    return done.stdout


GNU_FORMATS = ["--format=v7", "--format=ustar", "--format=oldgnu", "--format=gnu", "--format=posix"]


@pytest.mark.parametrize("form", GNU_FORMATS)
def test_tars_by_gnu_tar_come_back(store, tree, form):
    if form == "--format=v7":
        os.unlink(tree / "fifo"), os.unlink(tree / "null")
    assert_round_trip(store, gnu_tar(tree, form))


@pytest.mark.parametrize("options", ["-b1", "-b64", "--xattrs", "--null", "--owner=n:4000000"])
def test_tars_by_gnu_tar_with_options_come_back(store, tree, options):
    os.setxattr(tree / "dir/file", "user.note", b"\x00binary\xff")
    assert_round_trip(store, gnu_tar(tree, "--format=posix", options))


SPARSE = [
    ["--format=oldgnu"], ["--format=gnu"], ["--format=posix", "--sparse-version=0.0"],
    ["--format=posix", "--sparse-version=0.1"], ["--format=posix", "--sparse-version=1.0"],
]


@pytest.mark.parametrize("options", SPARSE, ids=lambda o: o[-1])
def test_sparse_tars_by_gnu_tar_come_back_and_stay_sparse(store, tree, diff_of, options):
    tar = gnu_tar(tree, "--sparse", *options)
    layer = assert_round_trip(store, tar)
    stored = diff_of(layer) / "sparse"
    assert stored.read_bytes() == (tree / "sparse").read_bytes()
    assert stored.stat().st_blocks * 512 < 50 * 65536 // 2


# ---- reading it back in pieces ------------------------------------------------------------------------
PIECES = ["good_t2", "good_duplicate_big", "good_sparse_1_0", "good_sizes_about_a_block", "good_large_file"]


@pytest.mark.parametrize("name", PIECES)
def test_any_piece_read_after_any_seek_is_the_tars_piece(store, name):
    tar = recipes.GOOD[name]()
    dice = random.Random(name)
    with store.register(tar).tar_stream() as stream:
        assert stream.seekable()
        assert stream.readable()
        assert not stream.writable()
        assert stream.tell() == 0
        assert stream.seek(0, os.SEEK_END) == len(tar) == stream.size
        assert stream.read(1) == b""
        for _ in range(200):
            at, size = dice.randrange(len(tar) + 1), dice.choice([0, 1, 7, 511, 512, 513, 5000, 100_000])
            whence = dice.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])
            base = {os.SEEK_SET: 0, os.SEEK_CUR: stream.tell(), os.SEEK_END: len(tar)}[whence]
            assert stream.seek(at - base, whence) == at
            piece = bytearray()
            while len(piece) < size and (more := stream.read(size - len(piece))):
                piece += more
            assert piece == tar[at : at + size]
            assert stream.tell() == at + len(piece)


def test_readinto_fills_buffers_of_every_kind(store):
    tar = recipes.GOOD["good_sizes_about_a_block"]()
    with store.register(tar).tar_stream() as stream:
        got, buffer = bytearray(), bytearray(777)
        while n := stream.readinto(memoryview(buffer)):
            got += buffer[:n]
        assert got == tar
        assert stream.readinto(bytearray()) == 0


@pytest.mark.parametrize("size", [1, 3, 512, 4096])
def test_small_reads_add_up(store, size):
    tar = recipes.GOOD["good_pax_path"]()
    with store.register(tar).tar_stream() as stream:
        assert b"".join(iter(lambda: stream.read(size), b"")) == tar


def test_seeking_before_the_start_or_oddly_is_a_value_error(store):
    with store.register(tarkit.T1).tar_stream() as stream:
        for where in ((-1, os.SEEK_SET), (-5000, os.SEEK_END), (0, 9)):
            with pytest.raises((ValueError, OSError)):
                stream.seek(*where)
        assert stream.seek(10**6) == 10**6
        assert stream.read(5) == b""
        stream.seek(0)
        assert stream.read() == tarkit.T1


def test_a_stream_serves_as_file_for_pythons_tarfile(store):
    with store.register(tarkit.T1).tar_stream() as stream, tarfile.open(fileobj=stream) as tar:
        assert tar.extractfile("a/f").read() == b"hello"
        assert tar.getnames() == ["a", "a/f"]


def test_a_stream_registers_in_another_store(store, open_store, room):
    other = open_store(room / "other")
    for name in ("good_t2", "good_duplicate_big", "good_sparse_of_eight_tebibytes"):
        tar = recipes.GOOD[name]()
        layer = store.register(tar)
        with layer.tar_stream() as stream:
            assert tar_of(other.register(stream)) == tar


def test_many_streams_of_one_layer_do_not_disturb_each_other(store):
    tar = recipes.GOOD["good_large_file"]()
    layer = store.register(tar)
    streams = [layer.tar_stream() for _ in range(5)]
    for i, stream in enumerate(streams):
        stream.seek(i * 100_001)
    for i, stream in enumerate(streams):
        with stream:
            assert stream.read(1000) == tar[i * 100_001 : i * 100_001 + 1000]


# ---- copy_to -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PIECES)
def test_copy_to_a_file_a_descriptor_and_a_memory_file(store, room, name):
    tar = recipes.GOOD[name]()
    layer = store.register(tar)
    with open(room / "one", "wb") as out, layer.tar_stream() as stream:
        assert stream.copy_to(out) == len(tar)
    with open(room / "two", "wb") as out, layer.tar_stream() as stream:
        assert stream.copy_to(out.fileno()) == len(tar)
    memory = io.BytesIO()
    with layer.tar_stream() as stream:
        assert stream.copy_to(memory) == len(tar)
    for got in ((room / "one").read_bytes(), (room / "two").read_bytes(), memory.getvalue()):
        assert (got == tar) is True


def test_copy_to_a_pipe(store):
    tar = recipes.GOOD["good_large_file"]()
    reader, writer = os.pipe()
    got = []
    with open(reader, "rb") as source:
        drain = threading.Thread(target=lambda: got.append(source.read()))
        drain.start()
        with store.register(tar).tar_stream() as stream:
            assert stream.copy_to(writer) == len(tar)
        os.close(writer)
        drain.join()
    assert (got[0] == tar) is True


def test_copy_to_appends_to_what_a_buffered_file_holds(store, room):
    with open(room / "out", "wb") as out, store.register(tarkit.T1).tar_stream() as stream:
        out.write(b"before")
        stream.copy_to(out)
        out.write(b"after")
    assert (room / "out").read_bytes() == b"before" + tarkit.T1 + b"after"


def test_copy_to_a_file_that_takes_little_at_a_time(store):
    class Slow(io.RawIOBase):
        def __init__(self):
            super().__init__()
            self.got = bytearray()

        def writable(self):
            return True

        def write(self, data):
            self.got += bytes(data[:700])
            return min(700, len(data))

    sink = Slow()
    with store.register(recipes.GOOD["good_sizes_about_a_block"]()).tar_stream() as stream:
        stream.copy_to(sink)
    assert sink.got == recipes.GOOD["good_sizes_about_a_block"]()


def test_copy_to_what_breaks_raises_its_error(store, room):
    layer = store.register(recipes.GOOD["good_large_file"]())
    reader, writer = os.pipe()
    os.close(reader)
    with layer.tar_stream() as stream, pytest.raises(BrokenPipeError):
        stream.copy_to(writer)
    os.close(writer)
    with open(room / "ro", "wb") as made, open(made.name, "rb") as source, layer.tar_stream() as stream:
        with pytest.raises(OSError):
            stream.copy_to(source.fileno())
    with layer.tar_stream() as stream, pytest.raises((TypeError, AttributeError, ValueError)):
        stream.copy_to("no file")


def test_copy_to_finds_a_changed_file(store, diff_of):
    layer = store.register(tarkit.T1)
    (diff_of(layer) / "a/f").write_bytes(b"jello")
    with layer.tar_stream() as stream, pytest.raises(LayerStoreError):
        stream.copy_to(io.BytesIO())


# ---- unusual tars ----------------------------------------------------------------------------------------
PARTS = st.sampled_from(["a", "b", "l", ".", "..", "", ".wh.a", ".wh.b", ".wh..wh..opq", "é", "x" * 60, "\udcff"])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
DATA = st.one_of(st.binary(max_size=20), st.integers(0, 3000).map(bytes), st.just(recipes.noise(1500)))
SPELLING = st.sampled_from([tarkit.with_pax_path, tarkit.with_gnu_path])
EXTENTS = st.lists(st.tuples(st.integers(0, 50), st.binary(min_size=1, max_size=30)), max_size=5).map(
    lambda pairs: [(i * 600 + gap, data) for i, (gap, data) in enumerate(pairs)]
)
SPARSE_FORMS = st.sampled_from(
    [tarkit.old_gnu_sparse, tarkit.pax_sparse_0_0, tarkit.pax_sparse_0_1, tarkit.pax_sparse_1_0]
)
MODES = st.integers(0, 0o7777)


@st.composite
def entries(draw):
    name, spell = draw(NAMES), draw(SPELLING)
    kind = draw(st.sampled_from("ffffddlhpnsg"))
    fields = {"mode": draw(MODES), "mtime": draw(st.integers(-10, 10**11)), "uid": draw(st.integers(0, 10**7))}
    if kind == "f":
        return spell(name, file, draw(DATA), **fields)
    if kind == "d":
        return spell(name + "/", tarkit.dir, **fields)
    if kind in "lh":
        entry = tarkit.symlink if kind == "l" else tarkit.hardlink
        size = draw(st.sampled_from([0, 0, 0, 5]))
        return spell(name, entry, tarkit.raw(draw(NAMES))[:100], size=size, **fields)
    if kind == "p":
        return spell(name, tarkit.fifo, **fields)
    if kind == "n":
        return spell(name, tarkit.node, draw(st.sampled_from("cb")), 12, 5, **fields)
    if kind == "g":
        return tarkit.global_pax({"comment": name})
    extents = draw(EXTENTS)
    real_size = max([at + len(data) for at, data in extents], default=0) + draw(st.integers(0, 9000))
    return draw(SPARSE_FORMS)(tarkit.raw(name)[:100], extents, real_size)


TAILS = st.one_of(st.sampled_from([b"", end(1), end(), end(7), end() + bytes(100)]), st.binary().map(end().__add__))


@LAW
@pytest.mark.time_limit(180)
@given(parts=st.lists(entries(), max_size=8), tail=TAILS)
def test_any_tar_comes_back_the_same_or_is_refused_without_a_trace(store, root, parts, tail):
    tar = b"".join(parts) + tail
    before = disk_state(root)
    if b"image/overlay2/layerdb/sha256" not in before:
        store.register(bytes(1024)).release()
        before = disk_state(root)
    try:
        layer = store.register(tar)
    except (LayerStoreError, OSError):
        pass
    else:
        assert layer.diff_id == tarkit.diff_id(tar)
        assert tar_of(layer) == tar
        layer.release()
    assert changed(before, disk_state(root)) == []


@LAW
@pytest.mark.time_limit(180)
@given(
    tar=st.sampled_from([recipes.GOOD[name]() for name in ("good_t2", "good_pax_path", "good_sparse_1_0")]),
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=3),
)
def test_a_tar_with_flipped_bytes_comes_back_or_is_refused_without_a_trace(store, root, tar, flips):
    broken = bytearray(tar)
    for at, mask in flips:
        broken[at % len(broken)] ^= mask
    store.register(bytes(1024)).release()
    before = disk_state(root)
    try:
        layer = store.register(bytes(broken))
    except (LayerStoreError, OSError):
        pass
    else:
        assert tar_of(layer) == broken
        layer.release()
    assert changed(before, disk_state(root)) == []
