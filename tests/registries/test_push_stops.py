"""A push that is stopped: at once, whatever the network does; then nothing is named, and no thread and no socket stays."""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import imagekit
import pytest
import tarkit
from cutting import Cutter
from imagekit import tar_of
from realregistry import split

from layerstore import CorruptLayerError, Registry

LAYERS = [tarkit.file(f"noise{n}", random.Random(n).randbytes(6_000_000)) + tarkit.end() for n in range(3)]


@pytest.fixture
def image(images):
    [image] = images.load(tar_of(imagekit.docker([(LAYERS, ["app:1"])])))
    return image


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = {each.name for each in threading.enumerate()}
    yield
    assert {each.name for each in threading.enumerate()} <= before


def test_ctrl_c_while_the_registry_takes_nothing(registry, named, images, image, root):
    with Cutter(registry.port, stall_after=100_000) as stalling, Registry(stalling.host) as target:
        reference = f"{stalling.host}/{split(named('app'))[0]}:1"
        began = []

        def interrupt() -> None:
            while not stalling.stalls:
                time.sleep(0.01)
            began.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        other = threading.Thread(target=interrupt)
        other.start()
        with pytest.raises(KeyboardInterrupt):
            images.push(image, reference, registry=target)
        assert time.monotonic() - began[0] < 1
        other.join()
    assert images.get(image).digests == ()


@pytest.mark.parametrize("error", [ValueError("enough"), KeyboardInterrupt()])
def test_what_progress_raises_ends_it(registry, named, images, image, error):
    reference = named("app")

    def tell(done) -> None:
        if done:
            raise error

    with pytest.raises(type(error)) as caught:
        images.push(image, reference, progress=tell)
    assert caught.value is error
    repository, _ = split(reference)
    assert not (registry.data / "docker/registry/v2/repositories" / repository / "_manifests").exists()
    assert images.get(image).digests == ()


def test_progress_never_goes_back_and_ends_with_the_total(named, images, image):
    told = []
    images.push(image, named("app"), progress=lambda done: told.append((time.monotonic(), int(done), done.total, threading.get_ident())))
    total = sum(map(len, LAYERS))
    assert [done for _, done, _, _ in told] == sorted(done for _, done, _, _ in told)
    assert told[-1][1] == total
    assert {(total, thread) for _, _, total, thread in told} == {(total, threading.get_ident())}
    # The last one comes at the end, whenever that is.
    assert all(b[0] - a[0] > 0.09 for a, b in itertools.pairwise(told[:-1]))


def test_a_damaged_layer_ends_it_without_a_manifest(registry, named, images, image, store):
    reference = named("app")
    [path] = Path(store.root).rglob("noise1")
    with path.open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"changed")
    with pytest.raises(CorruptLayerError):
        images.push(image, reference)
    repository, _ = split(reference)
    place = registry.data / "docker/registry/v2/repositories" / repository
    assert not (place / "_manifests").exists()
    assert images.get(image).digests == ()


def test_a_program_that_ends_does_not_wait_for_a_push_in_a_daemon_thread(registry, image, images):
    """The registry takes nothing; all time-outs are far away."""
    program = """
import sys, threading, time
from layerstore import Images, Registry, Store
root, host = sys.argv[1:]
store = Store(root)
threading.Thread(target=lambda: Images(store).push("app:1", f"{host}/daemon:1"), daemon=True).start()
time.sleep(1.5)
print("end")
"""
    root = images.store.root
    images.store.close()
    with Cutter(registry.port, stall_after=100_000) as stalling:
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", program, root, stalling.host], capture_output=True, text=True, timeout=30, check=False)
        assert stalling.stalls
    assert (done.stdout, done.returncode) == ("end\n", 0), done.stderr
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("leaves", ["sys.exit(7)", "raise ValueError", "os._exit(7)"])
def test_a_child_that_is_forked_meanwhile_takes_nothing_along(registry, named, image, images, leaves):
    """progress() forks; the child unwinds its copy of the push, or does not. The parent's goes on."""
    program = f"""
import os, sys
from layerstore import Images, Registry, Store
root, reference = sys.argv[1:]
children = []
def tell(done):
    if not children:
        children.append(os.fork())
        if children == [0]:
            {leaves}
with Store(root) as store:
    digest = Images(store).push("app:1", reference, progress=tell)
    print(digest, os.waitpid(children[0], 0)[1] != 0)
"""
    root, reference = images.store.root, named("forked")
    images.store.close()
    done = subprocess.run([sys.executable, "-c", program, root, reference], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == f"{registry.tag(*split(reference))} True\n", done.stderr


def test_what_progress_raises_at_the_end_comes_before_the_manifest(registry, named, images, image):
    reference = named("app")

    def tell(done) -> None:
        if done == done.total:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        images.push(image, reference, progress=tell)
    repository, _ = split(reference)
    assert not (registry.data / "docker/registry/v2/repositories" / repository / "_manifests").exists()
    assert images.get(image).digests == ()
    assert images.push(image, reference) == registry.tag(repository, "1")
