"""Pulls of one image by several threads and processes at once, and one that is killed: each ends with the image, nothing is kept twice."""

import os
import pickle
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import another
import pytest
import tarkit
from scripted import STALL, Answer
from stored import at_once, driver_directories, tar_of

from layerstore import Images, Registry, Store, TarFormatError
from layerstore.layerdb.imagedb import ImageDB

LAYERS = [tarkit.file(f"layer-{n}", random.Random(n).randbytes(200_000)) + tarkit.end() for n in range(4)]
PROGRAM = """
import sys
from layerstore import Images, Registry, Store, TarFormatError
from layerstore.layerdb.imagedb import ImageDB
root, url, reference = sys.argv[1:]
with Store(root, driver="overlay2") as store, Registry(url) as registry:
    print("ready", flush=True)
    sys.stdin.readline()
    print(Images(store).pull(reference, registry=registry).id, flush=True)
"""


def start(root, shelf, put) -> subprocess.Popen:
    words = another.command(PROGRAM, root, shelf.url, put.reference)
    return subprocess.Popen(words, env=another.ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def whole(store, images, put):
    image = images.get(put.reference)
    assert image.id == put.id
    assert [tar_of(store.map()[chain]) for chain in image.layers] == put.layers
    assert set(store.map()) == set(put.chains)
    assert len(driver_directories(Path(store.root))) == len(put.layers)
    assert store.verify() == store.orphans() == []


def stored(root) -> list[str]:
    """The layers of a store, without opening it."""
    place = root / "image/overlay2/layerdb/sha256"
    return os.listdir(place) if place.exists() else []


def test_processes_at_once(shelf, root):
    put = shelf.put(LAYERS)
    shelf.always("GET", put.blob_path(2), lambda request: time.sleep(random.random() / 5))
    Store(root, driver="overlay2").close()
    started = [start(root, shelf, put) for _ in range(4)]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("go\n")
    for process in started:
        out, _ = process.communicate(timeout=50)
        assert (out.strip(), process.returncode) == (put.id, 0)
    with Store(root) as store:
        whole(store, Images(store), put)


def test_threads_at_once(shelf, store, images, connect):
    put = shelf.put(LAYERS)
    registry, other = connect(), connect()
    pulls = [lambda each=each: images.pull(put.reference, registry=each) for each in (registry, registry, other, other)]
    assert at_once(*pulls) == [images.get(put.id)] * 4
    whole(store, images, put)
    assert shelf.most_bodies <= 6


@pytest.mark.parametrize("keep", [False, True])
def test_one_ends_and_the_other_fails(shelf, store, images, connect, keep):
    """What both wanted stays for the one that ends well."""
    put = shelf.put(LAYERS)
    gate = threading.Event()

    def second(done):
        gate.wait(20)
        raise ValueError

    def fails():
        with pytest.raises(ValueError):
            images.pull(put.reference, registry=connect(), progress=second, keep=keep)

    thread = threading.Thread(target=fails)
    thread.start()
    images.pull(put.reference, registry=connect())
    gate.set()
    thread.join()
    whole(store, images, put)


@pytest.mark.parametrize("number", range(4))
def test_killed(shelf, root, number):
    put = shelf.put(LAYERS)
    shelf.on("GET", put.blob_path(number), Answer(200, {}, [put.blobs[number][:50_000], STALL], len(put.blobs[number])))
    Store(root, driver="overlay2").close()
    process = start(root, shelf, put)
    with process:
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        until = time.monotonic() + 20
        while len(stored(root)) < number and time.monotonic() < until:
            time.sleep(0.05)
        while not shelf.asked("GET", put.blob_path(number)) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    with Store(root) as store:
        images = Images(store)
        assert images.list() == []
        assert set(store.map()) == set(put.chains[:number])
        store.cleanup()
        assert set(store.map()) == set(put.chains[:number])
        assert len(driver_directories(root)) == number
        shelf.forget()
        with Registry(shelf.url) as registry:
            images.pull(put.reference, registry=registry)
        asked = {path for path in shelf.paths() if "/blobs/" in path}
        assert asked == {f"GET /v2/app/blobs/{digest}" for digest in [put.id, *put.digests[number:]]}
        whole(store, images, put)



def test_an_index_again_with_one_request(shelf, images, connect):
    """The manifest of the platform is kept: it is not asked for again."""
    put = shelf.put(LAYERS[:2], tag="one")
    digest = shelf.put_index([(put, {"platform": {"os": "linux", "architecture": "amd64"}})])
    registry = connect()
    image = images.pull(f"{shelf.host}/app:all", platform="linux/amd64", registry=registry)
    assert image.digests == (f"{shelf.host}/app@{digest}",)
    shelf.forget()
    assert images.pull(f"{shelf.host}/app:all", platform="linux/amd64", registry=registry) == image
    assert shelf.paths() == ["GET /v2/app/manifests/all"]


def test_an_error_of_a_tar_names_the_blob(shelf, images, connect):
    put = shelf.put([tarkit.file("a", b"a" * 5000) + tarkit.end()], packed="gzip")
    data = bytearray(put.blobs[0])
    data[-8] ^= 1
    shelf.always("GET", put.blob_path(0), Answer(200, {}, bytes(data)))
    with pytest.raises(TarFormatError, match=f"^gzip: the CRC-32 does not match .*{put.digests[0]}") as caught:
        images.pull(put.reference, registry=connect())
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.offset) == (str(caught.value), caught.value.offset)


@pytest.mark.parametrize("where", ["last progress", "names"])
def test_a_keep_that_fails_at_the_end(shelf, store, images, connect, where, monkeypatch):
    """All layers came: the next pull fetches none of them, and keeps the manifest."""
    put = shelf.put(LAYERS)

    def last(done):
        if where == "last progress" and done == done.total:
            raise ValueError

    def write(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "names":
            patch.setattr(ImageDB, "write_repositories", write)
        with pytest.raises((ValueError, OSError)):
            images.pull(put.reference, registry=connect(), progress=last, keep=True)
    assert images.list() == []
    assert set(store.map()) == set(put.chains)
    shelf.forget()
    image = images.pull(put.reference, registry=connect())
    assert not [path for path in shelf.paths() if any(digest in path for digest in put.digests)]
    assert store.images.kept_manifest(image.id) == put.manifest
    whole(store, images, put)
