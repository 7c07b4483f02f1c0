"""What register() takes: iterables of blocks and TarStreams as well; and what has no bytes at all is no tar."""

import array
import asyncio
import bz2
import gzip
import hashlib
import io
import itertools
import mmap
import os

import pytest
import tarkit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tarkit import end, file

import layerstore
from layerstore import TarFormatError, aio

TAR = file("f", b"f" * 3000) + file("g", b"g") + end()
DIFF_ID = tarkit.diff_id(TAR)


def mapped(data):
    made = mmap.mmap(-1, len(data))
    made.write(data)
    return made


def wide(data):
    """The same bytes as words of two."""
    return array.array("H", data)


def spread(data):
    """The same bytes, each of them followed in memory by another one."""
    return memoryview(b"".join(bytes([byte, 0]) for byte in data))[::2]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, wide, mapped, spread])
@pytest.mark.parametrize("whole", [list, tuple, iter], ids=["list", "tuple", "iterator"])
def test_an_iterable_of_any_bytes_like_blocks_is_a_source(store, kind, whole):
    assert store.register(whole([kind(TAR[:700]), kind(TAR[700:5000]), kind(TAR[5000:])])).diff_id == DIFF_ID


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None, max_examples=40)
@given(cuts=st.lists(st.integers(0, len(TAR)), max_size=12), packed=st.booleans())
def test_blocks_may_be_of_any_length_and_empty_ones_are_no_end(store, cuts, packed):
    data = gzip.compress(TAR) if packed else TAR
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    with store.register(data[a:b] for a, b in itertools.pairwise(places)) as layer:
        assert layer.diff_id == DIFF_ID


class Told:
    """A generator, and what became of it."""

    def __init__(self, blocks, error=None):
        self.blocks, self.error = blocks, error
        self.given, self.ended = 0, False

    def __iter__(self):
        try:
            for block in self.blocks:
                self.given += 1
                yield block
            if self.error:
                raise self.error
        finally:
            self.ended = True


def test_blocks_are_pulled_as_they_are_needed_and_the_iterator_is_closed(store):
    whole = Told([TAR[at : at + 512] for at in range(0, len(TAR), 512)])
    store.register(whole)
    assert (whole.given, whole.ended) == (len(TAR) // 512, True)
    # What comes behind a block that ends it all is not asked for.
    broken = Told([b"x" * (1 << 20)] * 1000)
    with pytest.raises(TarFormatError):
        store.register(broken)
    assert broken.given < 50 and broken.ended


def test_what_the_iterator_raises_passes_through_and_leaves_nothing(store, unchanged):
    store.register(tarkit.T2)
    broken = Told([TAR[:512]], error=KeyError("mine"))
    with unchanged(), pytest.raises(KeyError, match="mine"):
        store.register(broken)
    assert broken.ended


@pytest.mark.parametrize("block", ["text", 5, None, [b"x"]], ids=repr)
def test_a_block_that_is_no_bytes_is_named(store, unchanged, block):
    store.register(tarkit.T2)
    with unchanged(), pytest.raises(TypeError, match=type(block).__name__):
        store.register([TAR[:512], block])


def test_a_tar_stream_is_taken_from_where_it_stands(store, open_store, room):
    """What was read ahead of the caller is not lost."""
    entries = [file(f"f{i}", b"%d" % i * 400) for i in range(200)]
    tar = b"".join(entries) + end()
    with open_store(room / "other") as other, other.register(tar) as layer, layer.tar_stream() as stream:
        assert stream.read(512) + stream.read(len(entries[0]) - 512) == entries[0]
        assert store.register(stream).diff_id == tarkit.diff_id(tar[len(entries[0]) :])
        stream.seek(0)
        assert store.register(stream).diff_id == layer.diff_id
        stream.seek(len(entries[0]))
        unpacked = store.unpack_ahead(stream)
        assert unpacked.diff_id == tarkit.diff_id(tar[len(entries[0]) :])
        store.discard(unpacked)


def test_a_tar_stream_tells_its_progress(store, open_store, room):
    told = []
    tar = file("f", bytes(3 << 20)) + end()
    with open_store(room / "other") as other, other.register(tar) as layer, layer.tar_stream() as stream:
        store.register(stream, progress=told.append)
    assert told[-1] == len(tar)


def test_a_tar_stream_of_another_store_is_a_source(store, open_store, room):
    other = open_store(room / "other")
    for tar in (TAR, file("sparse", b"s" * 40_000_000) + end()):
        with other.register(tar) as layer, layer.tar_stream() as stream:
            with store.register(stream) as copy:
                assert copy.diff_id == layer.diff_id
    with other.create_rw_layer("box", other.register(TAR).chain_id) as box, box.mounted() as path:
        with open(os.path.join(path, "new"), "w") as out:
            out.write("new")
        with box.tar_stream() as stream:
            layer = store.register(stream)
    assert [entry.path for entry in layer.files()] == ["new"]


# ---- no bytes at all ----
def pipe_of_nothing():
    reader, writer = os.pipe()
    os.close(writer)
    return os.fdopen(reader, "rb")


NOTHING = {
    "bytes": lambda room: b"",
    "a bytearray": lambda room: bytearray(),
    "a list": lambda room: [],
    "a list of empty blocks": lambda room: [b"", b""],
    "a generator": lambda room: (block for block in ()),
    "a stream": lambda room: io.BytesIO(),
    "a pipe": lambda room: pipe_of_nothing(),
    "a path": lambda room: room / "nothing",
    "a file": lambda room: (room / "nothing").open("rb"),
    "a file at its end": lambda room: at_its_end(room / "something"),
    "gzip": lambda room: gzip.compress(b""),
    "gzip in blocks": lambda room: [gzip.compress(b"")[:5], gzip.compress(b"")[5:]],
    "a gzip file": lambda room: room / "nothing.gz",
    "two members of gzip": lambda room: gzip.compress(b"") * 2,
}


def at_its_end(path):
    opened = path.open("rb")
    opened.read()
    return opened


@pytest.mark.parametrize("what", NOTHING)
def test_a_source_of_no_bytes_is_refused_and_leaves_nothing(store, unchanged, room, what):
    (room / "nothing").touch()
    (room / "something").write_bytes(TAR)
    (room / "nothing.gz").write_bytes(gzip.compress(b""))
    base = store.register(TAR)
    for parent in ("", base.chain_id):
        source = NOTHING[what](room)
        with unchanged(), pytest.raises(TarFormatError, match="no tar: the source was empty") as caught:
            store.register(source, parent)
        assert caught.value.offset == 0
        getattr(source, "close", lambda: None)()
    with store.create_rw_layer("box", base.chain_id) as box:
        source = NOTHING[what](room)
        with pytest.raises(TarFormatError, match="the source was empty"):
            box.apply_diff(source)
        getattr(source, "close", lambda: None)()


def test_asyncio_takes_blocks_and_refuses_none_alike(root):
    async def some():
        yield TAR[:600]
        yield b""
        yield TAR[600:]

    async def none():
        return
        yield

    async def run():
        async with aio.Store(root) as store:
            assert (await store.register(some())).diff_id == DIFF_ID
            assert (await store.register([TAR[:600], TAR[600:]])).diff_id == DIFF_ID
            for source in (none(), [], b""):
                with pytest.raises(TarFormatError, match="the source was empty"):
                    await store.register(source)

    asyncio.run(run())


def test_zeros_are_a_tar(store):
    assert store.register(bytes(1024)).diff_id == layerstore.EMPTY_LAYER_DIFF_ID
    assert store.register([bytes(512)]).diff_id == tarkit.diff_id(bytes(512))


# ---- the digest of the source, in the same pass ----
@pytest.mark.parametrize("kind", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("give", [bytes, io.BytesIO, lambda data: [data[:700], data[700:]]], ids=["buffer", "read", "blocks"])
def test_unpacking_ahead_gives_the_digest_of_the_source(store, kind, pack, give):
    came = pack(TAR)
    unpacked = store.unpack_ahead(give(came), digest=kind)
    assert unpacked.source_digest == f"{kind}:{hashlib.new(kind, came).hexdigest()}"
    assert (unpacked.source_size, unpacked.diff_id) == (len(came), DIFF_ID)
    store.discard(unpacked)


def test_no_digest_is_given_that_was_not_asked_for(store):
    unpacked = store.unpack_ahead(TAR)
    assert (unpacked.source_digest, unpacked.source_size) == (None, len(TAR))
    store.discard(unpacked)


def test_an_unknown_digest_is_refused(store):
    with pytest.raises(ValueError, match="md5"):
        store.unpack_ahead(TAR, digest="md5")
    assert store.orphans() == []


def test_what_python_decompresses_has_no_digest(store):
    with pytest.raises(layerstore.NotSupportedError, match="bzip2"):
        store.unpack_ahead(bz2.compress(TAR), digest="sha256")
