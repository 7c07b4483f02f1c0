"""Bytes out again: the registered tar, byte for byte, verified; and pieces of it."""

import random

import pytest

from benchmarks import measure
from layerstore.drivers import registry


@pytest.fixture(params=registry.DRIVERS)
def stored(request, new_store, layer):
    """The layer, in a store of each driver in turn."""
    return new_store(driver=request.param).register(layer.path)


def test_tar_stream_copy_to_pipe_mb_per_s(measured, stored, layer):
    """To a pipe that cat empties."""

    def copy():
        with stored.tar_stream() as stream, measure.drain() as pipe:
            return stream.copy_to(pipe)

    assert measured(copy, mb=layer.megabytes, entries=layer.entries) == layer.size_bytes


def test_tar_stream_copy_to_file_mb_per_s(measured, stored, layer, place):
    def copy():
        with stored.tar_stream() as stream, open(place / "out.tar", "wb") as out:
            return stream.copy_to(out)

    assert measured(copy, mb=layer.megabytes) == layer.size_bytes


@pytest.mark.parametrize("block", [1 << 20, 32 << 10])
def test_tar_stream_readinto_mb_per_s(measured, stored, layer, block):
    buffer = bytearray(block)

    def read():
        total = 0
        with stored.tar_stream() as stream:
            while got := stream.readinto(buffer):
                total += got
        return total

    assert measured(read, mb=layer.megabytes) == layer.size_bytes


def test_tar_stream_random_reads_us_each(measured, new_store, real_layer):
    """Open once, then 200 seeks and reads of 4 KiB all over the tar."""
    stored = new_store().register(real_layer.path)
    places = [random.Random(n).randrange(real_layer.size_bytes - 4096) for n in range(200)]

    def read():
        with stored.tar_stream() as stream:
            for at in places:
                stream.seek(at)
                assert len(stream.read(4096)) == 4096

    measured(read, times=len(places))


def test_tar_stream_first_byte_us_each(measured, new_store, real_layer):
    """Open, read 512 bytes, close."""
    stored = new_store().register(real_layer.path)

    def read():
        for _ in range(20):
            with stored.tar_stream() as stream:
                stream.read(512)

    measured(read, times=20)


def test_verify_mb_per_s(measured, new_store, layer):
    store = new_store()
    chain_id = store.register(layer.path).chain_id
    assert measured(lambda: store.verify(chain_id), mb=layer.megabytes, entries=layer.entries) == []
