"""Bytes in: Store.register of whole layers, plain and packed, from each kind of source; disassemble; baselines."""

import hashlib
import subprocess

import pytest

import layerstore
from benchmarks import baselines, measure
from layerstore.drivers import registry


@pytest.mark.parametrize("driver", registry.DRIVERS)
@pytest.mark.parametrize("durability", ["none", "full"])
def test_register_mb_per_s(measured, new_store, layer, durability, driver):
    done = measured(
        lambda store: store.register(layer.path),
        setup=lambda: new_store(durability, driver),
        mb=layer.megabytes,
        entries=layer.entries,
    )
    assert done.diff_id == baselines.hashlib_sha256(layer.path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_register_packed_mb_per_s(measured, new_store, packed_layer, suffix):
    done = measured(
        lambda store: store.register(packed_layer.packed(suffix)), setup=new_store, mb=packed_layer.megabytes
    )
    assert done.diff_id == baselines.hashlib_sha256(packed_layer.path)


@pytest.mark.parametrize("source", ["path", "descriptor", "pipe", "read", "buffer"])
def test_register_by_source_mb_per_s(measured, new_store, real_layer, source):
    """The same layer given in each way the contract knows; "read" is a Python object, one call a MiB."""
    data = real_layer.path.read_bytes() if source == "buffer" else b""

    class OnlyRead:
        """An object with read(n) and nothing else."""

        def __init__(self, file):
            self.read = file.read

    def register(store):
        if source == "path":
            return store.register(real_layer.path)
        if source == "buffer":
            return store.register(data)
        if source == "pipe":
            with subprocess.Popen(["cat", real_layer.path], stdout=subprocess.PIPE) as cat:
                return store.register(cat.stdout.fileno())
        with open(real_layer.path, "rb", buffering=0) as file:
            return store.register(OnlyRead(file) if source == "read" else file.fileno())

    measured(register, setup=new_store, mb=real_layer.megabytes)


def test_disassemble_mb_per_s(measured, place, layer):
    """No tree is made: framing, checksums and the DiffID."""

    def disassemble():
        with open(place / "record", "wb") as record:
            return layerstore.disassemble(layer.path, record)

    assert measured(disassemble, mb=layer.megabytes, entries=layer.entries) == baselines.hashlib_sha256(layer.path)


def test_apply_diff_mb_per_s(measured, new_store, real_layer):
    """Into a writable layer: no record, no DiffID is wanted."""

    def writable():
        return new_store().create_rw_layer("w")

    measured(
        lambda rw: rw.apply_diff(real_layer.path), setup=writable, mb=real_layer.megabytes, entries=real_layer.entries
    )


# ---- baselines -------------------------------------------------------------------------------------
def test_baseline_tar_extract_mb_per_s(measured, place, layer):
    """GNU tar alone: neither hash nor record."""
    measured(
        lambda into: measure.run(*baselines.tar_extract(layer.path, into)), setup=lambda: measure.fresh(place / "x"),
        mb=layer.megabytes, entries=layer.entries,
    )  # fmt: skip


def test_baseline_openssl_sha256_mb_per_s(measured, layer):
    """The hash alone."""
    measured(lambda: measure.run(*baselines.openssl_sha256(layer.path)), mb=layer.megabytes)


def test_baseline_tarfile_hashlib_mb_per_s(measured, place, real_layer):
    """Python's tarfile and hashlib; no record."""
    got = measured(
        lambda into: baselines.tarfile_register(real_layer.path, into), setup=lambda: measure.fresh(place / "x"),
        mb=real_layer.megabytes, entries=real_layer.entries,
    )  # fmt: skip
    assert got == "sha256:" + hashlib.sha256(real_layer.path.read_bytes()).hexdigest()


def test_baseline_libarchive_mb_per_s(measured, place, real_layer):
    """libarchive-c; neither hash nor record."""
    measured(
        lambda into: baselines.libarchive_unpack(real_layer.path, into), setup=lambda: measure.fresh(place / "x"),
        mb=real_layer.megabytes, entries=real_layer.entries,
    )  # fmt: skip
