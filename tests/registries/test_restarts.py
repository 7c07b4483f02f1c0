"""A registry that is killed and begun again in the middle of a pull or a push: it goes on from where it was, or begins anew."""

import os
import time

import imagekit
import pytest
import tarkit
from stored import tar_of

from layerstore import Images, Registry, RegistryError

LARGE = tarkit.file("large", os.urandom(96 << 20)) + tarkit.end()


@pytest.fixture
def large(images):
    """An image of one layer that takes a moment to carry."""
    [image] = images.load(imagekit.tar_of(imagekit.docker([([LARGE], ["large:1"])])))
    return image


class Restart:
    """A progress that restarts a registry once there are some bytes, and keeps what it was told."""

    def __init__(self, server, *, again: bool = True):
        self.server, self.again = server, again
        self.told: list[int] = []

    def __call__(self, done) -> None:
        self.told.append(int(done))
        if 0 < done < done.total and self.server.process and self.again is not None:
            self.server.stop()
            if self.again:
                self.server.start()
            self.again = None


def test_a_pull_goes_on_where_it_was_cut(start, images, large, open_store, room):
    server = start()
    reference = f"{server.host}/app:1"
    images.push(large, reference, compression=None)
    elsewhere = open_store(room / "elsewhere")
    restart = Restart(server)
    began = time.monotonic()
    with Registry(server.host) as registry:
        image = Images(elsewhere).pull(reference, registry=registry, progress=restart)
    assert restart.again is None, "it was over before the registry was restarted"
    assert tar_of(elsewhere.map()[image.top]) == LARGE
    assert restart.told == sorted(restart.told)
    assert [one.status for one in server.requests() if one.method == "GET" and "/blobs/" in one.uri].count(206) == 1
    assert time.monotonic() - began < 20


def test_a_push_begins_the_blob_again(start, images, large):
    server = start()
    restart = Restart(server)
    with Registry(server.host) as registry:
        digest = images.push(large, f"{server.host}/app:1", registry=registry, compression=None, progress=restart)
    assert restart.again is None, "it was over before the registry was restarted"
    assert server.tag("app", "1") == digest
    assert server.blob(server.manifest("app", "1")["layers"][0]["digest"]) == LARGE
    assert restart.told == sorted(restart.told)


def test_of_a_pull_from_a_registry_that_stays_away_nothing_is_left(start, images, large, open_store, room):
    server = start()
    images.push(large, f"{server.host}/app:1", compression=None)
    elsewhere = open_store(room / "elsewhere")
    with Registry(server.host, retries=1) as registry, pytest.raises(RegistryError) as caught:
        Images(elsewhere).pull(f"{server.host}/app:1", registry=registry, progress=Restart(server, again=False))
    assert (caught.value.status, caught.value.host) == (0, server.host)
    assert (elsewhere.map(), elsewhere.orphans(), Images(elsewhere).list()) == ({}, [], [])


def test_of_a_push_to_a_registry_that_stays_away_nothing_is_noted(start, images, large, root):
    server = start()
    with Registry(server.host, retries=1) as registry, pytest.raises(RegistryError) as caught:
        images.push(large, f"{server.host}/app:1", registry=registry, progress=Restart(server, again=False))
    assert (caught.value.status, caught.value.host) == (0, server.host)
    assert images.get("large:1").digests == ()
    assert not (root / "image/overlay2/distribution").exists()
