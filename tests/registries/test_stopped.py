"""A command that pulls or pushes is killed, or told to end, at drawn moments: no half image, and the next time works."""

import os
import random
import signal
import subprocess
import sys
import time

import imagekit
import programs
import pytest
import tarkit
from stored import size_below, tar_of

from layerstore import Images

PARTS = [tarkit.file(f"part-{number}", os.urandom(8 << 20)) + tarkit.end() for number in range(4)]
SIZE = sum(map(len, PARTS))


@pytest.fixture
def image(images):
    """An image of some layers that take a moment to carry."""
    [image] = images.load(imagekit.tar_of(imagekit.docker([(PARTS, ["parts:1"])])))
    return image


def stopped(number: int, arrived, size: int, settings, *words: str) -> int:
    """Begin a command, send it a signal once so many bytes have arrived, and return its exit code, which comes soon."""
    command = [sys.executable, "-m", "layerstore", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=programs.environment(settings)) as running:
        while running.poll() is None and arrived() < size:
            time.sleep(0.001)
        running.send_signal(number)
        sent = time.monotonic()
        running.communicate(timeout=50)
        assert time.monotonic() - sent < 10
        return running.returncode


@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_pull_leaves_no_half_image(start, images, image, open_store, room, settings, number, code):
    reference = f"{start().host}/parts:1"
    images.push(image, reference, compression=None)
    draw = random.Random(13)
    stops = 0
    for attempt in range(3):
        root = room / str(attempt)
        open_store(root).close()
        arrived = lambda root=root: size_below(root, "overlay2/*/diff/part-*")      # noqa: E731
        told = stopped(number, arrived, int(draw.uniform(0, 0.9) * SIZE), settings, "--root", str(root), "image", "pull", reference)
        assert told in (code, 0)
        stops += told == code
        with open_store(root) as store:
            found = Images(store).list()
            assert [one.id for one in found] in ([], [image.id])
            if told and number != signal.SIGKILL:
                assert (found, store.map(), store.orphans()) == ([], {}, [])
            store.cleanup()
            assert store.orphans() == []
            assert {tar_of(layer) for layer in store.map().values()} <= set(PARTS)
            again = Images(store).pull(reference)
            assert (again.id, [tar_of(store.map()[chain]) for chain in again.layers]) == (image.id, PARTS)
            assert store.verify() == []
    assert stops >= 2, "hardly any was stopped in time"


@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_stopped_push_leaves_no_manifest(start, images, image, root, settings, number, code):
    draw = random.Random(13)
    stops, digests = 0, set()
    for _ in range(2):
        server = start()            # one that has no blob to mount
        arrived = lambda server=server: size_below(server.data, "docker/registry/v2/repositories/app/_uploads/*/data")       # noqa: E731
        words = ["--root", str(root), "image", "push", "parts:1", f"{server.host}/app:1"]
        told = stopped(number, arrived, int(draw.uniform(0, 0.5) * SIZE), settings, *words)
        assert told in (code, 0)
        stops += told == code
        if told:
            assert not (server.data / "docker/registry/v2/repositories/app/_manifests").exists()
            assert not [digest for digest in images.get(image.id).digests if digest.startswith(server.host)]
        digests.add(images.push(image, f"{server.host}/app:1"))
        assert server.tag("app", "1") in digests
    assert len(digests) == 1
    assert stops >= 1, "hardly any was stopped in time"
