"""Many at once: bodies are bounded over threads, and pulls, pushes, removals and cleanups of several processes on one root leave it whole."""

import random
import subprocess
import sys
import time

import imagekit
import pytest
import tarkit
from imagekit import BASE, TOP
from scripted import Answer
from soak import budget
from stored import at_once

from layerstore import Images, Store


def tar(number, size=2000):
    return tarkit.file(f"f{number}", random.Random(number).randbytes(size)) + tarkit.end()


@pytest.mark.parametrize("connections", [1, 2, 3])
def test_bodies_are_bounded_over_all_threads(shelf, images, connect, connections, each):
    """In and out, of all pulls and pushes of one Registry."""
    puts = [shelf.put([tar(10 * n + m) for m in range(3)], name=f"in{n}") for n in range(4)]
    sent = images.load(imagekit.tar_of(imagekit.docker([([tar(1000 + 10 * n + m) for m in range(3)], []) for n in range(3)])))
    for put in puts:
        for number, blob in enumerate(put.blobs):
            shelf.on("GET", f"/v2/in{puts.index(put)}/blobs/{put.digests[number]}", Answer(200, {}, [blob[:1000], 0.05, blob[1000:]], len(blob)))
    registry = connect(connections=connections)
    jobs = [lambda put=put: images.pull(put.reference, registry=registry) for put in puts]
    jobs += [lambda n=n, image=image: images.push(image, f"{shelf.host}/out{n}:1", registry=registry) for n, image in enumerate(sent)]
    at_once(*jobs)
    assert shelf.most_bodies <= connections


WORK = """
import os, random, sys, time, layerstore
kind, root, url, seconds, seed, *references = sys.argv[1:]
drawn, done = random.Random(int(seed)), 0
host = url.partition("//")[2]
with layerstore.Store(root, options={"durability": "none"}) as store, layerstore.Registry(url, retries=2, timeout=10) as registry:
    images = layerstore.Images(store)
    print("open", flush=True)
    sys.stdin.read(1)
    until = time.time() + float(seconds)
    while time.time() < until:
        reference = drawn.choice(references)
        try:
            if kind.startswith("pull"):
                image = images.pull(reference, registry=registry, keep=drawn.random() < 0.3)
            elif kind == "push":
                images.push(reference, f"{host}/pushed{drawn.randrange(3)}:{seed}", registry=registry)
            elif kind == "remove":
                images.remove(reference, force=True)
            elif kind == "prune":
                images.prune()
                for chain in list(store.map()):
                    try: store.remove(chain)
                    except layerstore.LayerStoreError: pass
            else:
                store.cleanup()
            done += 1
        except (layerstore.LayerDoesNotExistError, layerstore.StoreInUseError, layerstore.ImageError):
            if kind.startswith("pull"):
                raise
            time.sleep(0.001)
print(done)
"""


@pytest.mark.soak(60, 600)
def test_a_crowd_on_one_root(shelf, root, room):
    puts = [shelf.put([BASE, tar(n), *([TOP] if n % 2 else []), tar(n % 2 + 50)], name=f"a{n}") for n in range(4)]
    store = Store(root)
    store.close()
    seconds = budget(4, 300)
    kinds = ["pull too", "pull", "push", "remove", "prune", "cleanup"]
    programs = [subprocess.Popen([sys.executable, "-c", WORK, kind, str(root), shelf.url, str(seconds), str(number), *[put.reference for put in puts]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for number, kind in enumerate(kinds)]
    for program in programs:
        assert program.stdout.readline() == "open\n", program.stderr.read()
    for program in programs:
        program.stdin.write("x")
        program.stdin.flush()
    ends = [program.communicate(timeout=budget(50, 500)) for program in programs]
    for kind, program, (_out, errors) in zip(kinds, programs, ends, strict=True):
        assert program.returncode == 0, f"{kind}: {errors}"
    done = dict(zip(kinds, (int(out) for out, _ in ends), strict=True))
    assert done["pull"] and done["cleanup"], done
    with Store(root) as store:
        store.cleanup()
        assert store.verify() == [] and store.orphans() == []
        for image in Images(store).list():
            assert set(image.layers) <= set(store.map())
        with room_for(room) as other:
            for name in shelf.manifests:
                if name.startswith("pushed"):
                    for tag in shelf.tags(name):
                        assert Images(other).pull(f"{shelf.host}/{name}:{tag}")
            assert other.verify() == []


def room_for(room):
    return Store(room / "other", options={"durability": "none"})


@pytest.mark.soak(60, 900)
def test_pulls_while_another_process_is_killed_and_cleans_up(shelf, root, images, connect, check):
    put = shelf.put([BASE, tar(1, 300_000), TOP])
    for _ in range(budget(2, 40)):
        seconds = 20
        programs = [subprocess.Popen([sys.executable, "-c", WORK, kind, str(root), shelf.url, str(seconds), "1", put.reference], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for kind in ("pull", "cleanup")]
        time.sleep(0.5)
        image = images.pull(put.reference, registry=connect())
        for program in programs:
            program.kill()
            program.wait()
        images.store.cleanup()
        check(image, put, [put.reference])
        images.remove(put.reference, force=True)
