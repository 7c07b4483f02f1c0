"""A push over connections that break, to Debian's docker-registry: at any byte, in any step, whole or in chunks."""

import functools
import itertools
import random

import imagekit
import pytest
import tarkit
from cutting import Cutter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagekit import tar_of
from realregistry import split

from layerstore import Registry, RegistryError
from layerstore.registry import attempts

_number = itertools.count()


@functools.cache
def big(size: int = 300_000) -> bytes:
    """A tar whose blob is no smaller than this."""
    return tarkit.file("noise", random.Random(7).randbytes(size)) + tarkit.end()


LAYERS = [imagekit.BASE, big()]


@pytest.fixture
def image(images):
    [image] = images.load(tar_of(imagekit.docker([(LAYERS, ["app:1"])])))
    return image


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    """What a wait is for is not tested here."""
    monkeypatch.setattr(attempts, "_FIRST_PAUSE", 0.001)


def whole(registry, reference: str, digest: str) -> None:
    """All that the manifest names is there as it must be."""
    repository, tag = split(reference)
    assert registry.tag(repository, tag) == digest
    manifest = registry.manifest(repository, tag)
    for entry in (manifest["config"], *manifest["layers"]):
        blob = registry.blob(entry["digest"])
        assert (imagekit.digest(blob), len(blob)) == (entry["digest"], entry["size"])


@pytest.mark.time_limit(180)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chunk=st.none() | st.integers(20_000, 400_000),
    cuts=st.lists(st.integers(0, 320_000), max_size=5),
    reset=st.booleans(),
    compression=st.sampled_from(["gzip", "zstd", None]),
)
def test_cuts_at_any_byte(registry, images, image, chunk, cuts, reset, compression):
    """A cut may count twice: the registry says that it has the session, and then that it has not."""
    with Cutter(registry.port, cuts, reset=reset) as cutter, Registry(cutter.host, chunk=chunk, retries=10, timeout=10) as target:
        reference = f"{cutter.host}/drawn{next(_number)}:1"
        digest = images.push(image, reference, registry=target, compression=compression, force_compression=True)
    whole(registry, reference, digest)


def test_it_ends_after_retries(registry, images, image, root):
    with Cutter(registry.port) as cutter, Registry(cutter.host, retries=2, connections=1, timeout=10) as target:
        reference = f"{cutter.host}/ends{next(_number)}:1"
        cutter.cut(*[100_000] * 20)
        with pytest.raises(RegistryError, match=r"PATCH .*\(after 3 attempts\)"):
            images.push(image, reference, registry=target, compression=None)
    assert not (registry.data / "docker/registry/v2/repositories" / split(reference)[0] / "_manifests").exists()
    assert images.get(image).digests == ()


def test_the_second_push_after_a_failed_one_sends_what_was_missing(registry, images, image):
    """What is there was noted: it is not compressed again."""
    with Cutter(registry.port) as cutter, Registry(cutter.host, retries=0, connections=1, timeout=10) as target:
        reference = f"{cutter.host}/again{next(_number)}:1"
        cutter.cut(100_000)
        with pytest.raises(RegistryError):
            images.push(image, reference, registry=target)
        told = []
        digest = images.push(image, reference, registry=target, progress=told.append)
    assert told[-1].total == len(big())
    whole(registry, reference, digest)
