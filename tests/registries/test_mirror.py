"""A docker-registry that keeps what it fetched from another one, as the mirror of that one."""

import time

import programs
import pytest
from realregistry import split
from stored import tar_of

from layerstore import Registry

LAYERS = programs.layers()


@pytest.fixture
def pushed(start, skopeo, archive):
    """A registry with the image, the image's name, and a cache of the registry that has it too."""
    server = start()
    reference = f"{server.host}/team/app:1"
    skopeo.copy(f"docker-archive:{archive}", f"docker://{reference}")
    cache = start(cache_of=server.host)
    skopeo.inspect(f"{cache.host}/team/app:1")
    for layer in server.manifest("team/app", "1")["layers"]:
        skopeo(*f"copy -q --src-tls-verify=false docker://{cache.host}/team/app:1 dir:{cache.place}/out".split())
        wait_for(cache.path(layer["digest"]))
    return server, reference, cache


def wait_for(path) -> None:
    """The cache writes a blob after it has passed it on."""
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"the cache never wrote {path}"
        time.sleep(0.01)


def blobs(server, since: int) -> list[str]:
    return [one.uri for one in server.requests(since) if one.method == "GET" and "/blobs/" in one.uri and one.status == 200]


def test_the_mirror_alone_is_asked_and_the_names_are_the_registrys(pushed, images, store):
    server, reference, cache = pushed
    before, of_cache = len(server.requests()), len(cache.requests())
    with Registry(server.host, mirrors=[f"http://{cache.host}"]) as registry:
        image = images.pull(reference, registry=registry)
    assert image.references == (reference,)
    assert image.digests == (f"{server.host}/team/app@{server.tag(*split(reference))}",)
    assert [tar_of(store.map()[chain]) for chain in image.layers] == LAYERS
    assert len(blobs(cache, of_cache)) == len(LAYERS) + 1
    assert not [one for one in server.requests(before) if one.agent.startswith("layerstore/")]


def test_a_mirror_that_is_down_is_passed_over(pushed, images):
    server, reference, cache = pushed
    cache.stop()
    with Registry(server.host, mirrors=[f"http://{cache.host}"]) as registry:
        assert images.pull(reference, registry=registry).references == (reference,)


def test_a_blob_that_the_mirror_has_wrong_comes_from_the_registry(pushed, images, store, nothing_left):
    server, reference, cache = pushed
    wrong = [server.manifest("team/app", "1")["layers"][number]["digest"] for number in (0, 2)]
    for digest in wrong:
        data = bytearray(cache.blob(digest))
        data[len(data) // 2] ^= 1
        cache.path(digest).write_bytes(data)
    before = len(server.requests())
    with Registry(server.host, mirrors=[f"http://{cache.host}"]) as registry:
        image = images.pull(reference, registry=registry)
    assert [tar_of(store.map()[chain]) for chain in image.layers] == LAYERS
    assert store.verify() == store.orphans() == []
    assert sorted(uri.rpartition("/")[2] for uri in blobs(server, before)) == sorted(wrong)


def test_a_push_never_goes_to_a_mirror(pushed, images, archive):
    server, _, cache = pushed
    images.load(archive)
    before = len(cache.requests())
    with Registry(server.host, mirrors=[f"http://{cache.host}"]) as registry:
        digest = images.push("app:1", f"{server.host}/team/ours:1", registry=registry)
    assert server.tag("team/ours", "1") == digest
    assert cache.requests(before) == []
