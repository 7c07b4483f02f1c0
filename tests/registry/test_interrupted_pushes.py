"""A push that ends early: by Ctrl-C within a second wherever it waits, by a kill, by an exception of progress; what it leaves there and here."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import imagekit
import pytest
import tarkit
from imagekit import BASE, TOP
from scripted import STALL, Answer
from soak import budget
from stored import BoomError, at_once
from storelook import left, threads

NOISE = tarkit.file("noise", random.Random(3).randbytes(6_000_000)) + tarkit.end()
LAYERS = [BASE, NOISE, TOP]


@pytest.fixture
def image(images):
    [loaded] = images.load(imagekit.tar_of(imagekit.docker([(LAYERS, [])])))
    return loaded


@pytest.fixture
def unrecorded(shelf, images, image):
    """`with unrecorded(Error):` it raises; no manifest is there, and no name, no thread and no hold is here."""
    @contextlib.contextmanager
    def watched(kind):
        held, ran = dict(images.store._engine.holds._counts), threads()
        with pytest.raises(kind) as caught:
            yield caught
        assert shelf.manifests == {}
        assert [(each.references, each.digests) for each in images.list()] == [((), ())]
        assert left(ran) == set()
        assert images.store._engine.holds._counts == held

    return watched


WHERE = {
    "a HEAD": ("HEAD", ".*", None), "a POST": ("POST", ".*/uploads/", None), "a PATCH": ("PATCH", ".*", "unread"), "a PUT": ("PUT", ".*/uploads/.*", None), "the manifest": ("PUT", ".*/manifests/.*", None),
    "a wait": ("PATCH", ".*", "503"), "an answer behind a PATCH": ("PATCH", ".*", "read"),
}  # fmt: skip


@pytest.mark.parametrize("where", WHERE)
def test_an_interrupt_ends_it_within_a_second(shelf, images, image, connect, unrecorded, where):
    method, pattern, how = WHERE[where]
    over = threading.Event()

    def stall(request):
        if how == "503":
            return Answer(503, {"Retry-After": "50"})
        if how == "unread":
            over.wait(20)
        return Answer(raw=[STALL] if request.body is not None else [])

    shelf.always(method, pattern, stall)
    sent = []
    timer = threading.Timer(0.5, lambda: (sent.append(time.monotonic()), os.kill(os.getpid(), signal.SIGINT)))
    timer.start()
    registry = connect(timeout=20, retries=5)
    ended = []
    try:
        with unrecorded(KeyboardInterrupt):
            try:
                images.push(image, f"{shelf.host}/app:1", registry=registry)
            finally:
                ended.append(time.monotonic())
    finally:
        over.set()
        timer.join()
    assert ended[0] - sent[0] < 1


def test_the_session_under_way_is_ended(shelf, images, image, connect, unrecorded):
    def boom(done):
        if done > 1_000_000:
            raise BoomError

    shelf.always("PATCH", ".*", lambda request: (shelf.closing.wait(0.3), None)[1])
    with unrecorded(BoomError):
        images.push(image, f"{shelf.host}/app:1", registry=connect(), progress=boom)
    assert shelf.ended_uploads(), "a session is left open"


def test_a_refused_layer_ends_the_others_sessions(shelf, images, image, connect):
    def refuse(request):
        return Answer(403) if shelf.closing.wait(0.2) is False else None

    shelf.on("PATCH", ".*", refuse)
    with pytest.raises(Exception, match="403"):
        images.push(image, f"{shelf.host}/app:1", registry=connect())
    assert shelf.ended_uploads() and shelf.manifests == {}


@pytest.mark.soak(60, 900)
@pytest.mark.filterwarnings("ignore:.*(ScandirIterator|Wire):pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment(shelf, images, image, connect, root):
    """The manifest is there whole, with all its blobs, or it is not there; what is known here is true."""
    drawn, moved = random.Random(4), []

    def push(name, registry):
        shutil.rmtree(root / "image/overlay2/distribution", ignore_errors=True)      # so that all is sent
        return images.push(image, f"{shelf.host}/{name}:1", registry=registry)

    for name in ("first", "second"):
        began = time.monotonic()
        push(name, connect())
        took = time.monotonic() - began
    rounds = budget(20, 300)
    for number in range(rounds):
        timer = threading.Timer(drawn.uniform(0, 2.5 * took), lambda: os.kill(os.getpid(), signal.SIGINT))
        registry = connect()
        name = f"r{number}"
        try:
            try:
                timer.start()
                push(name, registry)
            finally:
                timer.join()
                time.sleep(0.001)
        except KeyboardInterrupt:
            pass
        moved.append(name in shelf.manifests)
        if moved[-1]:
            assert len(shelf.blobs[name]) == 4
        recorded = any(f"/{name}@" in digest for digest in images.get(image.id).digests)
        assert not recorded or moved[-1]
        assert set(images.store._engine.holds._counts) <= {"store"}
    assert 0 < sum(moved) < rounds
    assert push("last", connect())
    assert images.store.verify() == []


PUSH = """
import sys, layerstore
with layerstore.Store(sys.argv[1]) as store, layerstore.Registry(sys.argv[2], retries=0, timeout=20) as registry:
    print("begun", flush=True)
    print(layerstore.Images(store).push(sys.argv[3], sys.argv[4], registry=registry), flush=True)
"""


def start(*words):
    return subprocess.Popen([sys.executable, "-c", PUSH, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.soak(60, 900)
def test_killed_at_drawn_moments(shelf, images, image, root, connect):
    drawn = random.Random(8)
    for number in range(budget(4, 60)):
        with start(root, shelf.url, image.id, f"{shelf.host}/k{number}:1") as process:
            assert process.stdout.readline() == "begun\n"
            time.sleep(drawn.uniform(0, 0.25))
            process.kill()
        images.store.cleanup()
        assert images.store.verify() == [] and images.store.orphans() == []
        assert images.get(image.id).layers == image.layers
    digest = images.push(image, f"{shelf.host}/app:1", registry=connect())
    assert imagekit.digest(shelf.manifests["app"]["1"][1]) == digest


def test_processes_push_one_image(shelf, images, image, root):
    programs = [start(root, shelf.url, image.id, f"{shelf.host}/app:{number % 2}") for number in range(4)]
    digests = set()
    for process in programs:
        out, errors = process.communicate(timeout=40)
        assert out.startswith("begun\nsha256:"), errors
        digests.add(out.split()[1])
    assert len(digests) == 1 and set(shelf.tags("app")) == {"0", "1"}
    assert len(images.get(image.id).digests) == 1


def test_a_hundred_layers(shelf, images, connect, within):
    layers = [tarkit.file(f"f{n}", random.Random(n).randbytes(1000)) + tarkit.end() for n in range(100)]
    [image] = images.load(imagekit.tar_of(imagekit.docker([(layers, [])])))
    with within(8):
        images.push(image, f"{shelf.host}/app:1", registry=connect())
    assert shelf.connections <= 4 and len(shelf.blobs["app"]) == 101
    with within(2):
        images.push(image, f"{shelf.host}/app:1", registry=connect())


def test_a_pull_and_a_push_at_once(shelf, images, image, connect, check):
    put = shelf.put([*LAYERS, BASE], name="other")
    registry = connect()
    found = at_once(*[lambda: images.push(image, f"{shelf.host}/app:1", registry=registry), lambda: images.pull(put.reference, registry=registry)] * 3)
    assert len(set(found[::2])) == 1
    for each in found[1::2]:
        check(each, put, [put.reference])
