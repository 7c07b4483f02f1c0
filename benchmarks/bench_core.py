"""The core's stages one at a time, in one thread, through the tests' door: what a pipeline can be made of."""

import hashlib

import pytest

from benchmarks import measure, stages


@pytest.fixture
def data(layer):
    with stages.mapped(layer.path) as memory:
        for _ in range(0, len(memory), 4096):
            pass
        yield memory


def test_digest_mb_per_s(measured, data, layer):
    """SHA-256, libcrypto."""
    assert measured(lambda: stages.digest(data), mb=layer.megabytes).hex() == _sha256(layer)


def test_crc64_mb_per_s(measured, data, layer):
    measured(lambda: stages.crc64(data), mb=layer.megabytes)


def test_tar_read_entries_per_s(measured, data, layer):
    """The reader's events, nothing done with them."""
    measured(lambda: stages.tar_read(data), mb=layer.megabytes, entries=layer.entries)


def test_split_entries_per_s(measured, data, layer):
    """The tar-split record: reader, CRC-64, base64 and JSON, deflate."""
    measured(lambda: stages.split(data), mb=layer.megabytes, entries=layer.entries)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_unpack_entries_per_s(measured, data, layer, place, threads):
    """Files on a tmpfs; threads: of the pool, 0 none."""
    measured(
        lambda into: stages.unpack(data, into, threads=threads), setup=lambda: measure.fresh(place / "x"),
        mb=layer.megabytes, entries=layer.entries,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "suffix"), [("gzip", ".gz"), ("zstd", ".zst")])
def test_inflate_mb_per_s(measured, packed_layer, kind, suffix):
    """Megabytes that come out."""
    with stages.mapped(packed_layer.packed(suffix)) as packed:
        assert measured(lambda: stages.inflate(packed, kind), mb=packed_layer.megabytes) == packed_layer.size_bytes


def _sha256(layer):
    with open(layer.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
