"""What stands around a pull: odd files, forks, ends of the interpreter, closed stores, signals to the command line, asyncio."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import tarkit
from guards import BasicGuard, BearerGuard, Tokens
from imagekit import BASE, TOP, encode
from scripted import STALL, Answer, cut

from layerstore import AuthenticationError, Images, LayerStoreError, Registry, RegistryError, Store, aio

NOISE = tarkit.file("noise", random.Random(6).randbytes(400_000)) + tarkit.end()
LAYERS = [BASE, NOISE, TOP]


@pytest.fixture
def put(shelf):
    return shelf.put(LAYERS)


# ---- credential files that are none ----
@pytest.mark.parametrize("kind", ["fifo", "zero", "full", "tty", "socket", "directory", "loop", "huge", "dangling", "unreadable name"])
@pytest.mark.parametrize("variable", ["REGISTRY_AUTH_FILE", "DOCKER_CONFIG"])
def test_odd_credential_files(shelf, connect, tmp_path, monkeypatch, within, kind, variable):
    shelf.put([BASE])
    shelf.guard = BasicGuard()
    place = tmp_path / "config.json"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "fifo":
            os.mkfifo(place)
        elif kind in ("zero", "full", "tty"):
            place.symlink_to(f"/dev/{kind}")
        elif kind == "socket":
            listener.bind(str(place))
        elif kind == "directory":
            place.mkdir()
        elif kind == "loop":
            place.symlink_to(place)
        elif kind == "dangling":
            place.symlink_to(tmp_path / "nowhere")
        elif kind == "huge":
            with open(place, "wb") as file:
                file.truncate(1 << 40)
        value = str(place if variable == "REGISTRY_AUTH_FILE" else tmp_path)
        monkeypatch.setenv(variable, value + "\udcff" if kind == "unreadable name" else value)
        with within(5), pytest.raises(AuthenticationError) as caught:
            connect().tags("app")
    str(caught.value).encode()


def test_a_helper_that_prints_what_no_terminal_should_see(shelf, connect, tmp_path, monkeypatch, home):
    shelf.put([BASE])
    shelf.guard = BasicGuard()
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_bytes(encode({"credsStore": "evil"}))
    path = tmp_path / "docker-credential-evil"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for script in (r"printf '\033]0;x\007\377\376 %s' \"$(head -c 9000 /dev/zero | tr '\0' x)\"; exit 1", r"printf '\377\000{}'", r"printf '{\"Username\":\"\\ud800\",\"Secret\":\"\\udfff\"}'", r"printf '{\"Username\":\"a:b\",\"Secret\":\"x\"}'"):
        path.write_text("#!/bin/sh\n" + script.replace('\\"', '"') + "\n")
        path.chmod(0o755)
        with pytest.raises(AuthenticationError) as caught:
            connect().tags("app")
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1500
        str(caught.value).encode()


def test_an_interrupt_while_a_helper_runs(shelf, connect, tmp_path, monkeypatch, home):
    shelf.guard = BasicGuard()
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_bytes(encode({"credsStore": "slow"}))
    path = tmp_path / "docker-credential-slow"
    path.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 57\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    sent = []
    timer = threading.Timer(0.6, lambda: (sent.append(time.monotonic()), os.kill(os.getpid(), signal.SIGINT)))
    registry = connect(timeout=30)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        registry.tags("app")
    assert time.monotonic() - sent[0] < 1
    timer.join()
    time.sleep(0.1)
    assert not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}"), "the helper goes on"


# ---- programs that end ----
def run(script, *words, seconds=30, **more):
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *map(str, words)], capture_output=True, text=True, timeout=seconds, **more)
    return done, time.monotonic() - began


DAEMON = """
import sys, threading, time, layerstore
def pull():
    with layerstore.Store(sys.argv[1]) as store, layerstore.Registry(sys.argv[2], retries=5, timeout=20) as registry:
        layerstore.Images(store).pull(sys.argv[3], registry=registry)
threading.Thread(target=pull, daemon=True).start()
time.sleep(1)
print("over", flush=True)
"""


def test_a_daemon_thread_that_pulls_does_not_keep_the_program(shelf, put, root, store):
    shelf.always("GET", put.blob_path(1), cut(Answer(200, {}, put.blobs[1]), 100_000, STALL))
    done, took = run(DAEMON, root, shelf.url, put.reference)
    assert done.stdout == "over\n", done.stderr
    assert took < 8
    store.cleanup()
    assert store.orphans() == [] and store.verify() == []


FORKS = """
import os, sys, layerstore
children = []
def progress(done):
    child = os.fork()
    if not child:
        sys.exit(7)         # all of its interpreter's end runs
    children.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with layerstore.Store(sys.argv[1]) as store, layerstore.Registry(sys.argv[2], retries=0, timeout=10) as registry:
    image = layerstore.Images(store).pull(sys.argv[3], registry=registry, progress=progress)
    print(image.id, set(children), store.orphans(), store.verify())
"""


def test_a_child_that_exits_in_the_middle_takes_nothing_along(shelf, put, root):
    shelf.on("GET", put.blob_path(1), Answer(200, {}, [put.blobs[1][:200_000], 0.4, put.blobs[1][200_000:]], len(put.blobs[1])))
    done, took = run(FORKS, root, shelf.url, put.reference)
    assert done.stdout == f"{put.id} {{7}} [] []\n", done.stderr + done.stdout
    assert took < 20


def test_a_store_that_is_closed_meanwhile(shelf, put, root, connect):
    shelf.always("GET", put.blob_path(1), Answer(200, {}, [put.blobs[1][:200_000], 0.5, put.blobs[1][200_000:]], len(put.blobs[1])))
    store = Store(root)
    timer = threading.Timer(0.3, store.close)
    timer.start()
    try:
        Images(store).pull(put.reference, registry=connect())
    except LayerStoreError:
        pass
    timer.join()
    with Store(root) as again:
        again.cleanup()
        assert again.verify() == [] and again.orphans() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_to_the_command_line(shelf, put, root, store, number):
    shelf.always("GET", put.blob_path(1), cut(Answer(200, {}, put.blobs[1]), 100_000, STALL))
    with subprocess.Popen([sys.executable, "-m", "layerstore", "--root", str(root), "image", "pull", put.reference], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 10
        while not shelf.asked("GET", put.blob_path(1)) and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.3)
        began = time.monotonic()
        process.send_signal(number)
        process.wait(10)
        assert time.monotonic() - began < 1.5
        text = process.stderr.read()
    assert "Traceback" not in text
    assert process.returncode != 0
    assert store.map() == {} and store.orphans() == []


def test_stopped_and_continued(shelf, put, root):
    """SIGSTOP for longer than the timeout: what was waiting in the socket counts."""
    script = """
import sys, layerstore
with layerstore.Store(sys.argv[1]) as store, layerstore.Registry(sys.argv[2], retries=1, timeout=1) as registry:
    print("begun", flush=True)
    print(layerstore.Images(store).pull(sys.argv[3], registry=registry).id)
"""
    shelf.on("GET", put.blob_path(1), Answer(200, {}, [put.blobs[1][:100_000], 0.4, put.blobs[1][100_000:]], len(put.blobs[1])))
    with subprocess.Popen([sys.executable, "-c", script, str(root), shelf.url, put.reference], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        process.send_signal(signal.SIGCONT)
        out, errors = process.communicate(timeout=20)
    assert out == f"{put.id}\n", errors


# ---- asyncio ----
def test_asyncio_pulls_and_pushes(shelf, put, root):
    async def main():
        done = []
        async with aio.Store(root) as store, aio.Registry(shelf.url, retries=0, timeout=5) as registry:
            images = aio.Images(store)
            image = await images.pull(put.reference, registry=registry, progress=lambda each: done.append((int(each), threading.current_thread())))
            assert image.id == put.id
            assert await images.push(image.id, f"{shelf.host}/new:1", registry=registry) == put.digest
            assert await registry.tags("new") == ["1"]
            assert (await registry.manifest("new:1"))[1] == put.manifest
            assert await registry.referrers("new:1") == []
            assert {thread for _, thread in done} == {threading.main_thread()}
            assert done[-1][0] == sum(map(len, put.blobs))
            with pytest.raises(RegistryError):
                await registry.tags("none")
            found = await asyncio.gather(*[images.pull(put.reference, registry=registry) for _ in range(4)])
            assert {each.id for each in found} == {put.id}

    asyncio.run(main())
    assert shelf.is_quiet()


WAITS = {
    "in a layer": lambda put: (put.blob_path(1), cut(Answer(200, {}, put.blobs[1]), 200_000, STALL)),
    "before the manifest": lambda put: ("/v2/app/manifests/1", Answer(raw=[STALL])),
    "in a wait": lambda put: (put.blob_path(1), Answer(503, {"Retry-After": "50"})),
    "tags": lambda put: ("/v2/app/tags/list", Answer(raw=[STALL])),
}


@pytest.mark.parametrize("where", WAITS)
def test_a_cancelled_task_ends_within_a_second(shelf, put, root, where):
    path, answer = WAITS[where](put)
    shelf.always("GET", path, answer)

    async def main():
        async with aio.Store(root) as store, aio.Registry(shelf.url, retries=5, timeout=30) as registry:
            call = registry.tags("app") if where == "tags" else aio.Images(store).pull(put.reference, registry=registry)
            task = asyncio.create_task(call)
            await asyncio.sleep(0.5)
            began = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - began < 1
            assert await store.map() == {} and await store.orphans() == []
            shelf.forget()
            assert await registry.tags("app") == ["1"], "other calls go on"

    asyncio.run(main())
    assert shelf.is_quiet()


def test_one_of_two_tasks_is_cancelled(shelf, put, root):
    other = shelf.put([TOP], name="other")
    shelf.always("GET", put.blob_path(1), Answer(raw=[STALL]))

    async def main():
        async with aio.Store(root) as store, aio.Registry(shelf.url, retries=0, timeout=30) as registry:
            images = aio.Images(store)
            stuck = asyncio.create_task(images.pull(put.reference, registry=registry))
            await asyncio.sleep(0.3)
            image = await images.pull(other.reference, registry=registry)
            stuck.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stuck
            assert image.id == other.id and set(await store.map()) == set(other.chains)

    asyncio.run(main())


def test_timeouts_of_asyncio(shelf, put, root):
    shelf.always("GET", put.blob_path(1), Answer(raw=[STALL]))

    async def main():
        async with aio.Store(root) as store, aio.Registry(shelf.url, timeout=30) as registry:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await aio.Images(store).pull(put.reference, registry=registry)
            assert await store.map() == {}

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 2


# ---- progress, and what it may do ----
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError(), RegistryError("mine")], ids=lambda error: type(error).__name__)
def test_whatever_progress_raises(shelf, pull, unstored, put, error):
    def progress(_):
        raise error

    with unstored(type(error)) as caught:
        pull(put.reference, progress=progress)
    assert caught.value is error


def test_progress_may_ask_and_pull(shelf, images, connect, put, check):
    other = shelf.put([TOP, BASE], name="other")
    registry = connect()
    seen = []

    def progress(_):
        if not seen:
            seen.append(registry.tags("app"))
            check(images.pull(other.reference, registry=registry), other)

    check(images.pull(put.reference, registry=registry, progress=progress), put)
    assert seen == [["1"]]


def test_progress_that_closes_the_registry(shelf, images, put, unstored):
    with Registry(shelf.url, retries=0, timeout=5) as registry:
        with unstored(RegistryError):
            images.pull(put.reference, registry=registry, progress=lambda _: registry.close())


def test_a_hundred_pulls_leave_no_descriptors(shelf, images, connect, put):
    registry = connect()
    images.pull(put.reference, registry=registry)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        images.pull(put.reference, registry=registry)
        with pytest.raises(RegistryError):
            registry.tags("none")
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert shelf.connections <= 5


def test_a_hundred_registries_leave_nothing(shelf, images, put):
    before = len(os.listdir("/proc/self/fd"))
    ran = threading.active_count()
    for _ in range(50):
        with Registry(shelf.url, retries=0, timeout=5) as registry:
            images.pull(put.reference, registry=registry)
    assert shelf.is_quiet()
    assert len(os.listdir("/proc/self/fd")) <= before + 2 and threading.active_count() <= ran + 1


def test_a_token_server_that_is_the_registry_itself(shelf, pull, check):
    tokens = Tokens()
    put = shelf.put([BASE])
    try:
        guard = BearerGuard(tokens)
        shelf.guard = lambda request: tokens.respond(request) if request.path == "/token" else guard(request)
        guard.tokens = type("Here", (), {"realm": f"{shelf.url}/token", "granted": tokens.granted})
        check(pull(put.reference), put)
    finally:
        tokens.close()
