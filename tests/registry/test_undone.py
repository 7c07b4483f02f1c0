"""All or nothing: whatever ends a pull, and when, the store is as it was, no socket and no thread is left, and it ends at once."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import imagekit
import pytest
import tarkit
from imagekit import BASE, TOP
from scripted import CUT, STALL, Answer, cut
from soak import budget
from stored import BoomError, at_once

from layerstore import LayerStoreError, NotInRegistryError, Registry, RegistryError

NOISE = tarkit.file("noise", random.Random(6).randbytes(400_000)) + tarkit.end()
LAYERS = [BASE, NOISE, TOP]


@pytest.fixture
def put(shelf):
    return shelf.put(LAYERS)


# ---- each request may fail ----
@pytest.mark.parametrize("what", ["manifest", "config", 0, 1, 2])
@pytest.mark.parametrize("answer", [Answer(404), Answer(403), Answer(401), Answer(503), Answer(raw=[CUT]), Answer(200, {}, b"nonsense")], ids=["404", "403", "401", "503", "hang up", "nonsense"])
def test_each_request_may_fail(shelf, pull, unstored, put, what, answer):
    path = "/v2/app/manifests/1" if what == "manifest" else put.blob_path(what) if isinstance(what, int) else f"/v2/app/blobs/{imagekit.digest(put.config)}"
    shelf.always("GET", path, answer)
    with unstored():
        pull(put.reference)


@pytest.mark.parametrize("what", [0, 1, 2])
def test_over_an_image_that_is_there(shelf, pull, unstored, images, put, what):
    """Names stay where they were, too."""
    old = shelf.put([TOP])
    pull(old.reference)
    new = shelf.put(LAYERS)
    shelf.blobs["app"].pop(new.digests[what])
    if what == 2:
        shelf.blobs["app"].pop(imagekit.digest(new.config))
    with unstored(NotInRegistryError):
        pull(new.reference)
    assert images.get(old.reference).id == old.id


def test_layers_that_others_hold_stay(shelf, pull, store, put):
    with store.register(BASE) as held:
        shelf.blobs["app"].pop(put.digests[2])
        with pytest.raises(NotInRegistryError):
            pull(put.reference)
        assert list(store.map()) == [held.chain_id]


# ---- progress ----
def test_progress_counts_compressed_bytes(shelf, pull, put):
    done, threads_seen = [], set()
    pull(put.reference, progress=lambda each: (done.append(each), threads_seen.add(threading.current_thread()))[0])
    total = sum(map(len, put.blobs))
    assert done == sorted(done) and {each.total for each in done} == {total} and done[-1] == total
    assert threads_seen == {threading.main_thread()}


def test_progress_is_at_most_ten_a_second(shelf, pull, put):
    blob = put.blobs[1]
    shelf.on("GET", put.blob_path(1), Answer(200, {}, [step for at in range(0, len(blob), 20_000) for step in (blob[at : at + 20_000], 0.05)], len(blob)))
    times = []
    began = time.monotonic()
    pull(put.reference, progress=lambda _: times.append(time.monotonic()))
    took = time.monotonic() - began
    assert 3 <= len(times) <= 10 * took + 3


def test_nothing_to_fetch_is_a_total_of_nothing(shelf, pull, put):
    pull(put.reference)
    done = []
    pull(put.reference, progress=done.append)
    assert [(int(each), each.total) for each in done] == [(0, 0)]


def test_what_is_there_is_not_counted(shelf, pull, put):
    pull(shelf.put([BASE], tag="base").reference)
    done = []
    pull(put.reference, progress=done.append)
    assert done[-1].total == done[-1] == len(put.blobs[1]) + len(put.blobs[2])


@pytest.mark.parametrize("at", [0, 1, 100_000, 10**9])
def test_progress_that_raises_ends_it(shelf, pull, unstored, put, at):
    def progress(done):
        if done >= min(at, done.total):
            raise BoomError

    with unstored(BoomError):
        pull(put.reference, progress=progress)


# ---- Ctrl-C ----
STALLS = {
    "in a layer": lambda put: (put.blob_path(1), cut(Answer(200, {}, put.blobs[1]), 200_000, STALL)),
    "before a layer": lambda put: (put.blob_path(1), Answer(raw=[STALL])),
    "before the config": lambda put: (f"/v2/app/blobs/{imagekit.digest(put.config)}", Answer(raw=[STALL])),
    "before the manifest": lambda put: ("/v2/app/manifests/1", Answer(raw=[STALL])),
    "in the manifest": lambda put: ("/v2/app/manifests/1", cut(Answer(200, {}, put.manifest), 100, STALL)),
    "while it waits": lambda put: (put.blob_path(1), Answer(503, {"Retry-After": "50"})),
    "while it waits for the manifest": lambda put: ("/v2/app/manifests/1", Answer(503, {"Retry-After": "50"})),
}


@pytest.mark.parametrize("where", STALLS)
def test_an_interrupt_ends_it_within_a_second(shelf, pull, unstored, put, where):
    path, answer = STALLS[where](put)
    shelf.always("GET", path, answer)
    sent = []

    def interrupt():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.4, interrupt)
    timer.start()
    with unstored(KeyboardInterrupt):
        pull(put.reference, timeout=30, retries=5)
    assert time.monotonic() - sent[0] < 1
    timer.join()


@pytest.mark.parametrize("where", ["TLS", "connect"])
def test_an_interrupt_while_connecting(unstored, images, where):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0 if where == "connect" else 5)
        fillers = [socket.create_connection(listener.getsockname()) for _ in range(1 if where == "connect" else 0)]
        sent = []
        timer = threading.Timer(0.4, lambda: (sent.append(time.monotonic()), os.kill(os.getpid(), signal.SIGINT)))
        timer.start()
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        with Registry(host, timeout=20) as registry, unstored(KeyboardInterrupt):
            images.pull(f"{host}/app:1", registry=registry)
        assert time.monotonic() - sent[0] < 1
        for each in fillers:
            each.close()
        timer.join()


@pytest.mark.soak(60, 900)
# What is opened at the moment of the interrupt is closed by the garbage collector.
@pytest.mark.filterwarnings("ignore:.*(ScandirIterator|Wire):pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment(shelf, images, connect, store, put):
    """Many pulls, each interrupted a little later: each is whole or has left nothing."""
    drawn, moved, began = random.Random(4), [], time.monotonic()
    image = images.pull(put.reference, registry=connect())
    took = time.monotonic() - began
    images.remove(image.id, force=True)
    rounds = budget(25, 400)
    for _ in range(rounds):
        after = drawn.uniform(0, 1.6 * took)
        timer = threading.Timer(after, lambda: os.kill(os.getpid(), signal.SIGINT))
        registry = connect()
        try:
            try:
                timer.start()
                images.pull(put.reference, registry=registry)
            finally:
                timer.join()
                time.sleep(0.001)
        except KeyboardInterrupt:
            pass
        moved.append(bool(images.list()))
        if moved[-1]:
            [image] = images.list()
            assert image.id == put.id and store.verify() == []
            images.remove(image.id, force=True)
        assert store.map() == {} and store.orphans() == []
        assert set(store._engine.holds._counts) <= {"store"}
    assert 0 < sum(moved) < rounds


# ---- kills ----
PULL = """
import sys, layerstore
with layerstore.Store(sys.argv[1]) as store, layerstore.Registry(sys.argv[2], retries=0, timeout=20) as registry:
    print("begun", flush=True)
    print(layerstore.Images(store).pull(sys.argv[3], registry=registry, keep=len(sys.argv) > 4).id, flush=True)
"""


def start(*words, script=PULL):
    return subprocess.Popen([sys.executable, "-c", script, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", range(3))
def test_killed_in_the_middle_of_a_layer(shelf, root, put, check, store, images, connect, number):
    came = threading.Event()

    def stall(_):
        came.set()
        return cut(Answer(200, {}, put.blobs[number]), len(put.blobs[number]) // 2, STALL)

    shelf.on("GET", put.blob_path(number), stall)
    with start(root, shelf.url, put.reference) as process:
        assert came.wait(10)
        time.sleep(0.3)
        process.kill()
    assert images.list() == []
    store.cleanup()
    assert store.orphans() == [] and store.verify() == []
    whole = set(store.map())
    assert whole <= set(put.chains)
    shelf.requests.clear()
    image = images.pull(put.reference, registry=connect())
    check(image, put, [put.reference])
    for chain, digest in zip(put.chains, put.digests, strict=True):
        assert (f"/v2/app/blobs/{digest}" in [request.path for request in shelf.requests]) == (chain not in whole)


@pytest.mark.soak(60, 900)
def test_killed_at_drawn_moments(shelf, root, put, store, images, connect, check):
    drawn = random.Random(8)
    for _ in range(budget(3, 60)):
        with start(root, shelf.url, put.reference) as process:
            assert process.stdout.readline() == "begun\n"
            time.sleep(drawn.uniform(0, 0.06))
            process.kill()
        store.cleanup()
        assert store.orphans() == [] and store.verify() == []
        for image in images.list():
            assert image.id == put.id and list(image.layers) == put.chains
    check(images.pull(put.reference, registry=connect()), put, [put.reference])


def test_terminated_by_sigint_as_a_program(shelf, root, put, store):
    shelf.always("GET", put.blob_path(1), cut(Answer(200, {}, put.blobs[1]), 100_000, STALL))
    with start(root, shelf.url, put.reference) as process:
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(5)
        assert time.monotonic() - began < 1
        assert "KeyboardInterrupt" in process.stderr.read()
    assert store.map() == {} and store.orphans() == []


def test_processes_pull_one_image(shelf, root, put, store, images, check):
    programs = [start(root, shelf.url, put.reference) for _ in range(4)]
    for process in programs:
        out, errors = process.communicate(timeout=30)
        assert out.splitlines()[-1] == put.id, errors
    check(images.get(put.reference), put, [put.reference])
    assert len(store.map()) == 3


# ---- keep ----
def test_kept_layers_are_not_fetched_again(shelf, pull, store, images, check, put):
    shelf.always("GET", put.blob_path(2), Answer(404))
    with pytest.raises(NotInRegistryError):
        pull(put.reference, keep=True, connections=1)
    assert images.list() == [] and store.orphans() == []
    assert set(store.map()) == set(put.chains[:2])
    assert set(store._engine.holds._counts) <= {"store"}
    shelf.forget()
    check(pull(put.reference), put, [put.reference])
    assert [path for path in shelf.paths() if path.rpartition("/")[2] in put.digests] == [f"GET {put.blob_path(2)}"]


def test_kept_layers_need_all_below_them(shelf, pull, store, put):
    shelf.always("GET", put.blob_path(0), Answer(200, {}, [0.3, CUT], len(put.blobs[0])))
    with pytest.raises(RegistryError):
        pull(put.reference, keep=True)
    assert store.map() == {} and store.orphans() == []


def test_a_keep_that_is_interrupted(shelf, pull, store, put):
    shelf.always("GET", put.blob_path(2), Answer(raw=[STALL]))
    timer = threading.Timer(0.6, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        pull(put.reference, keep=True)
    timer.join()
    assert set(store.map()) == set(put.chains[:2]) and store.orphans() == []


# ---- at once ----
def test_one_of_several_pulls_fails(shelf, images, connect, put, check, unstored):
    """Its layers are those of the others, who stay whole."""
    bad = shelf.put([*LAYERS, b"no tar"], tag="bad", blobs=[*put.blobs, b"no tar at all" * 50])

    def fails():
        with Registry(shelf.url, retries=0) as registry, pytest.raises(LayerStoreError):
            images.pull(bad.reference, registry=registry)

    def works():
        return images.pull(put.reference, registry=connect())

    for image in at_once(fails, works, fails, works)[1::2]:
        check(image, put, [put.reference])


def test_a_hundred_layers(shelf, pull, check, within):
    put = shelf.put([tarkit.file(f"f{n}", random.Random(n).randbytes(1000)) + tarkit.end() for n in range(100)])
    with within(5):
        image = pull(put.reference)
    check(image, put)
    assert shelf.connections <= 4
