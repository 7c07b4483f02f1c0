"""Fresh tars: of a writable layer's changes, of a difference between layers; commit."""

import io
from pathlib import Path

from benchmarks import baselines, measure


def _copied(stream):
    with stream, measure.drain() as pipe:
        return stream.copy_to(pipe)


def test_rw_tar_stream_mb_per_s(measured, edited):
    size = _copied(edited.tar_stream())
    assert measured(lambda: _copied(edited.tar_stream()), mb=size / 1e6, entries=len(edited.changes())) == size


def test_commit_mb_per_s(measured, edited):
    """The same tar, registered as a layer; each round's layer is released again."""
    size = _copied(edited.tar_stream()) / 1e6
    kept = []

    def released():
        while kept:
            kept.pop().release()

    measured(lambda _: kept.append(edited.commit()), setup=released, mb=size)


def test_tar_stream_from_nothing_mb_per_s(measured, new_store, layer):
    """A whole layer as a fresh tar: moby's TarStreamFrom("")."""
    stored = new_store().register(layer.path)
    size = _copied(stored.tar_stream_from(""))
    assert measured(lambda: _copied(stored.tar_stream_from("")), mb=size / 1e6, entries=layer.entries) == size


def test_baseline_tar_create_mb_per_s(measured, new_store, layer):
    """GNU tar of the same tree into the same pipe."""
    tree = new_store().register(layer.path).metadata()["UpperDir"]
    measured(lambda: measure.drained(*baselines.tar_create(tree)), mb=layer.megabytes, entries=layer.entries)


def test_baseline_tarfile_create_mb_per_s(measured, new_store, real_layer):
    tree = Path(new_store().register(real_layer.path).metadata()["UpperDir"])

    def create():
        with measure.drain() as pipe, io.FileIO(pipe, "wb", closefd=False) as out:
            baselines.tarfile_pack(tree, out)

    measured(create, mb=real_layer.megabytes, entries=real_layer.entries)
