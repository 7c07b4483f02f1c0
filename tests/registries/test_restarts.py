"""A registry that is killed and begun again in the middle of a pull or a push: it goes on from where it was, or begins anew."""

import contextlib
import os
import threading
import time

import imagekit
import pytest
import tarkit
from stored import size_below, tar_of

from layerstore import Images, Registry, RegistryError

LARGE = tarkit.file("large", os.urandom(40 << 20)) + tarkit.end()


@pytest.fixture
def large(images):
    """An image of one layer that takes a moment to carry."""
    [image] = images.load(imagekit.tar_of(imagekit.docker([([LARGE], ["large:1"])])))
    return image


@contextlib.contextmanager
def killed(server, arrived, *, again: bool):
    """Meanwhile the registry is killed, once a third of the layer has arrived; again: and begun again on its port."""
    over = threading.Event()
    done = []

    def watch() -> None:
        while not over.is_set():
            if arrived() > len(LARGE) // 3:
                server.stop()
                if again:
                    server.start()
                done.append("killed")
                over.set()
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    assert done, "it was over before the registry was killed"


def received(root):
    return lambda: size_below(root, "overlay2/*/diff/large")


def uploaded(server):
    return lambda: size_below(server.data, "docker/registry/v2/repositories/app/_uploads/*/data")


def test_a_pull_goes_on_where_it_was_cut(start, images, large, open_store, room):
    server = start()
    reference = f"{server.host}/app:1"
    images.push(large, reference, compression=None)
    elsewhere = open_store(room / "elsewhere")
    told: list[int] = []
    with Registry(server.host) as registry, killed(server, received(room / "elsewhere"), again=True):
        image = Images(elsewhere).pull(reference, registry=registry, progress=told.append)
    assert tar_of(elsewhere.map()[image.top]) == LARGE
    assert told == sorted(told)
    assert [one.status for one in server.requests() if one.method == "GET" and "/blobs/" in one.uri].count(206) == 1


def test_a_push_begins_the_blob_again(start, images, large):
    server = start()
    told: list[int] = []
    with Registry(server.host) as registry, killed(server, uploaded(server), again=True):
        digest = images.push(large, f"{server.host}/app:1", registry=registry, compression=None, progress=told.append)
    assert server.tag("app", "1") == digest
    assert server.blob(server.manifest("app", "1")["layers"][0]["digest"]) == LARGE
    assert told == sorted(told)


def test_of_a_pull_from_a_registry_that_stays_away_nothing_is_left(start, images, large, open_store, room):
    server = start()
    images.push(large, f"{server.host}/app:1", compression=None)
    elsewhere = open_store(room / "elsewhere")
    with killed(server, received(room / "elsewhere"), again=False), Registry(server.host, retries=1) as registry:
        with pytest.raises(RegistryError) as caught:
            Images(elsewhere).pull(f"{server.host}/app:1", registry=registry)
    assert (caught.value.status, caught.value.host) == (0, server.host)
    assert (elsewhere.map(), elsewhere.orphans(), Images(elsewhere).list()) == ({}, [], [])


def test_of_a_push_to_a_registry_that_stays_away_nothing_is_noted(start, images, large, root):
    server = start()
    with killed(server, uploaded(server), again=False), Registry(server.host, retries=1) as registry:
        with pytest.raises(RegistryError) as caught:
            images.push(large, f"{server.host}/app:1", registry=registry)
    assert (caught.value.status, caught.value.host) == (0, server.host)
    assert images.get("large:1").digests == ()
    assert not (root / "image/overlay2/distribution").exists()
