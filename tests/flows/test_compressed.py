"""A layer may come compressed: the same DiffID as its plain tar, and nothing on disk where the stream is broken."""

import bz2
import functools
import gzip
import io
import lzma
import os
import re
import struct
import subprocess
import zlib

import pytest
import recipes
import tarkit
from machine import needs
from stored import BoomError, Failing, Trickle, tar_of
from tarkit import end, file

import layerstore
from layerstore import TarFormatError

TAR = tarkit.dir("d/") + file("d/a", recipes.noise(150_000)) + file("d/b", b"text " * 5000) + end()
HALF = 100_000


def tool(name, *options):
    """A command-line compressor; the tests that need one that is not there say so."""

    @functools.cache
    def pack(data):
        needs(name)
        return subprocess.run([name, *options], input=data, stdout=subprocess.PIPE, check=True).stdout

    return pack


def gzip_with_everything(data):
    """Name, comment, extra field and a checksum of the header."""
    head = b"\x1f\x8b\x08\x1e\1\2\3\4\2\3" + b"\x04\x00xtra" + b"name\0" + b"comment\0"
    return head + struct.pack("<H", zlib.crc32(head) & 0xFFFF) + gzip.compress(data, mtime=0)[10:]


def raw_frame(data):
    """A zstd frame of one stored block: nothing but framing."""
    size = len(data)
    assert size < 128 * 1024
    return b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", size) + struct.pack("<I", size << 3 | 1)[:3] + data


SKIPPABLE = struct.pack("<II", 0x184D2A50, 5) + b"skip!"
ZSTD, LZ4 = tool("zstd", "-qc"), tool("lz4", "-qc")
PACKED = {
    "gzip": lambda t: gzip.compress(t),
    "gzip, stored": lambda t: gzip.compress(t, 0),
    "gzip, several members": lambda t: gzip.compress(t[:HALF]) + gzip.compress(t[HALF:]),
    "gzip, an empty member between": lambda t: gzip.compress(t[:HALF]) + gzip.compress(b"") + gzip.compress(t[HALF:]),
    "gzip, a member a kibibyte": lambda t: b"".join(gzip.compress(t[i : i + 1024]) for i in range(0, len(t), 1024)),
    "gzip, every header field": gzip_with_everything,
    "gzip of Docker's own level 1": lambda t: gzip.compress(t, 1),
    "bzip2": lambda t: bz2.compress(t),
    "bzip2, several streams": lambda t: bz2.compress(t[:HALF]) + bz2.compress(t[HALF:]),
    "xz": lambda t: lzma.compress(t),
    "xz, several streams": lambda t: lzma.compress(t[:HALF]) + lzma.compress(t[HALF:]),
    "xz, no check": lambda t: lzma.compress(t, check=lzma.CHECK_NONE),
    "zstd": ZSTD,
    "zstd, level 19, no checksum": tool("zstd", "-qc", "-19", "--no-check"),
    "zstd, long window": tool("zstd", "-qc", "--long=27"),
    "zstd, several frames": lambda t: ZSTD(t[:HALF]) + ZSTD(t[HALF:]),
    "zstd, a skippable frame in front": lambda t: SKIPPABLE + ZSTD(t),
    "zstd, skippable frames between and behind": lambda t: ZSTD(t[:HALF]) + SKIPPABLE + ZSTD(t[HALF:]) + SKIPPABLE,
    "zstd, frames without compression": lambda t: b"".join(raw_frame(t[i : i + HALF]) for i in range(0, len(t), HALF)),
    "lz4": LZ4,
    "lz4, linked blocks and content size": tool("lz4", "-qc", "-BD", "--content-size"),
    "lz4, several frames": lambda t: LZ4(t[:HALF]) + LZ4(t[HALF:]),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_compressed_layer_is_the_layer_of_its_tar(store, name):
    layer = store.register(PACKED[name](TAR))
    assert (layer.diff_id, layer.chain_id) == (tarkit.diff_id(TAR),) * 2
    assert tar_of(layer) == TAR
    plain = store.register(TAR)
    assert plain.cache_id == layer.cache_id, "it is the same layer"


def from_path(data, room):
    (room / "blob").write_bytes(data)
    return room / "blob"


SOURCES = {
    "a path": from_path,
    "an object with read": lambda data, room: io.BytesIO(data),
    "seven bytes at a time": lambda data, room: Trickle(data, 7),
    "memory": lambda data, room: memoryview(data),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ["gzip", "zstd", "bzip2", "xz", "lz4"])
def test_it_may_come_from_anything(store, room, name, source):
    packed = PACKED[name](tarkit.T1 + bytes(20_000))
    layer = store.register(SOURCES[source](packed, room))
    assert layer.diff_id == tarkit.diff_id(tarkit.T1 + bytes(20_000))


@pytest.mark.parametrize("name", ["gzip", "zstd", "bzip2", "xz", "lz4"])
def test_it_may_come_down_a_pipe(store, name):
    packed = PACKED[name](tarkit.T1)
    reader, writer = os.pipe()
    with open(writer, "wb") as sink:
        sink.write(packed)
    try:
        assert store.register(reader).diff_id == tarkit.T1_DIFF_ID
    finally:
        os.close(reader)


@pytest.mark.parametrize("name", ["gzip", "zstd", "bzip2", "xz", "lz4"])
def test_an_open_file_is_decompressed_from_where_it_stands(store, room, name):
    (room / "blob").write_bytes(b"nine byte" + PACKED[name](tarkit.T1))
    with open(room / "blob", "rb") as source:
        source.seek(9)
        assert store.register(source).diff_id == tarkit.T1_DIFF_ID


@pytest.mark.parametrize("name", ["gzip", "zstd", "bzip2", "xz", "lz4"])
def test_junk_behind_the_tar_inside_the_compression_is_part_of_the_layer(store, name):
    tar = TAR + b"JUNK" * 10_000
    assert store.register(PACKED[name](tar)).diff_id == tarkit.diff_id(tar)


@pytest.mark.parametrize("name", ["gzip", "zstd", "bzip2", "xz", "lz4"])
def test_a_compressed_tar_of_no_bytes_is_refused(store, unchanged, name):
    store.register(TAR)
    with unchanged(), pytest.raises(layerstore.TarFormatError, match="no tar: the source was empty") as caught:
        store.register(PACKED[name](b""))
    assert caught.value.offset == 0


def test_the_descriptor_of_the_blob_is_kept_beside_the_digest_of_the_tar(store):
    blob = gzip.compress(TAR)
    given = layerstore.Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", tarkit.diff_id(blob), len(blob))
    layer = store.register_with_descriptor(blob, "", None, given)
    assert (layer.descriptor.digest, layer.diff_id) == (tarkit.diff_id(blob), tarkit.diff_id(TAR))


def test_progress_ends_with_a_compressed_source(store):
    seen = []
    store.register(io.BytesIO(gzip.compress(TAR)), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] in (len(gzip.compress(TAR)), len(TAR))


def test_a_writable_layer_takes_compressed_tars_too(store):
    rw = store.create_rw_layer("c")
    assert rw.apply_diff(gzip.compress(tarkit.T1)) == 5
    assert rw.apply_diff(ZSTD(file("more", b"123") + end())) == 8


def test_disassemble_takes_compressed_tars_too():
    plain, packed = io.BytesIO(), io.BytesIO()
    assert layerstore.disassemble(gzip.compress(TAR), packed) == layerstore.disassemble(TAR, plain)
    assert plain.getvalue() == packed.getvalue()


# ---- cut and broken ----------------------------------------------------------------------------------------------
PROGRAMS = ["bzip2", "xz", "lz4"]


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, -1])
@pytest.mark.parametrize("name", ["gzip", "gzip, several members", "zstd", "zstd, several frames", *PROGRAMS])
def test_a_cut_stream_is_refused_and_leaves_nothing(store, unchanged, name, part):
    """-1: only the last byte is missing, behind every byte of the tar."""
    packed = PACKED[name](TAR)
    cut = packed[:-1] if part == -1 else packed[: int(len(packed) * part)]
    base = store.register(tarkit.T1)
    with unchanged(), pytest.raises(TarFormatError):
        store.register(cut, base.chain_id)
    assert len(base.release()) == 1


@pytest.mark.parametrize("keep", range(4, 18))
def test_a_stream_cut_in_its_header_is_refused(store, unchanged, keep):
    store.register(tarkit.T1)
    with unchanged(), pytest.raises(TarFormatError):
        store.register(gzip.compress(TAR)[:keep])


@pytest.mark.parametrize("at", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["gzip", "zstd", "bzip2", "xz", "lz4"])
def test_a_broken_stream_is_refused_and_leaves_nothing(store, unchanged, name, at):
    packed = bytearray(PACKED[name](TAR))
    for offset in range(int(len(packed) * at), int(len(packed) * at) + 16):
        packed[offset] ^= 0x55
    store.register(tarkit.T1)
    with unchanged(), pytest.raises(TarFormatError):
        store.register(bytes(packed))


@pytest.mark.parametrize("name", ["gzip", "zstd", "bzip2", "xz", "lz4"])
def test_a_refusal_says_what_is_wrong_and_names_no_address(store, name):
    packed = PACKED[name](TAR)
    with pytest.raises(TarFormatError) as caught:
        store.register(packed[: len(packed) // 2])
    assert not re.search(r"0x[0-9a-f]{6,}|[0-9]{12,}|archive_p", str(caught.value)), str(caught.value)
    assert caught.value.offset is None or 0 <= caught.value.offset <= len(TAR)


CHECKSUMS = {"gzip, crc": ("gzip", -8), "gzip, length": ("gzip", -1), "zstd": ("zstd", -1), "xz": ("xz", -40)}


@pytest.mark.parametrize("name", CHECKSUMS)
def test_a_wrong_checksum_is_refused_though_every_byte_came(store, unchanged, name):
    form, where = CHECKSUMS[name]
    packed = bytearray(PACKED[form](TAR))
    packed[where] ^= 1
    store.register(tarkit.T1)
    with unchanged(), pytest.raises(TarFormatError):
        store.register(bytes(packed))


@pytest.mark.parametrize("junk", [b"junk", b"\x1f\x8b\x08", b"\xff" * 4096])
@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_junk_behind_the_compression_is_refused_or_left_out_but_never_stored(store, root, name, junk):
    """A blob's digest would cover it, a DiffID cannot: there is no plain byte it stands for."""
    try:
        layer = store.register(PACKED[name](TAR) + junk)
    except TarFormatError:
        assert store.map() == {}
        assert [entry for entry in os.listdir(root / "overlay2") if len(entry) == 64] == []
    else:
        assert layer.diff_id == tarkit.diff_id(TAR)


@pytest.mark.parametrize("zeros", [1, 512, 100_000])
@pytest.mark.parametrize("name", ["gzip", "bzip2"])
def test_zeros_behind_the_compression_are_padding(store, name, zeros):
    """Tapes and block devices fill up; gzip itself passes over them."""
    try:
        layer = store.register(PACKED[name](TAR) + bytes(zeros))
    except TarFormatError:
        assert name == "bzip2", "gzip allows zeros behind its last member"
    else:
        assert layer.diff_id == tarkit.diff_id(TAR)


@pytest.mark.parametrize("name", ["gzip", "zstd", "bzip2", "xz", "lz4"])
def test_what_is_no_tar_inside_is_refused(store, unchanged, name):
    store.register(tarkit.T1)
    for inside in (b"A" * 1024, tarkit.T1[:1026]):
        with unchanged(), pytest.raises(TarFormatError):
            store.register(PACKED[name](inside))


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_compression_within_compression_is_no_tar(store, unchanged, name):
    store.register(tarkit.T1)
    with unchanged(), pytest.raises(TarFormatError):
        store.register(PACKED[name](PACKED[name](TAR)))


def test_a_tar_that_begins_like_a_compressed_stream_is_a_tar(store):
    """The first bytes of a plain tar are a name; a name may be anything."""
    for magic in (b"BZh9", b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x01", b"\x04\x22\x4d\x18"):
        tar = file(magic + b"name", b"hello") + end()
        layer = store.register(tar)
        assert layer.diff_id == tarkit.diff_id(tar)
        layer.release()


def test_a_mebibyte_that_unpacks_to_very_much_is_stopped_by_its_reader(store, unchanged):
    """Ratio alone is no crime; the caller's progress can stop it and nothing stays."""
    bomb = gzip.compress(tarkit.raw_header("z", size=64 << 20) + bytes(64 << 20) + end(), 9)
    assert len(bomb) < 1 << 20
    store.register(tarkit.T1)

    def stop(done):
        raise InterruptedError

    with unchanged(), pytest.raises(InterruptedError):
        store.register(io.BytesIO(bomb), progress=stop)


@pytest.mark.parametrize("name", ["gzip", "zstd", "bzip2", "xz", "lz4"])
def test_a_source_that_raises_within_a_compressed_stream_is_heard(store, unchanged, name):
    store.register(tarkit.T1)
    with unchanged(), pytest.raises(BoomError):
        store.register(Failing(PACKED[name](TAR), 50_000, step=1000))
