"""Threads and processes that pull and push at once: each ends with the image, and nothing is kept or sent twice."""

import subprocess
import sys

import imagekit
import programs
import pytest
import tarkit
from realregistry import split
from stored import at_once, driver_directories, tar_of

from layerstore import Images, Registry

LAYERS = [tarkit.file(f"file-{number}", bytes([number]) * 400_000) + tarkit.end() for number in range(12)]
PROGRAM = """\
import sys
from layerstore import Images, Store
with Store(sys.argv[1]) as store:
    print(Images(store).pull(sys.argv[2]).id)
"""


@pytest.fixture
def pushed(named, images):
    """Names of images that share layers, in the registry: their tars by name."""
    made = {}
    for number in range(4):
        name, tars = named(f"app-{number}"), LAYERS[:4] + LAYERS[4 + 2 * number : 6 + 2 * number]
        images.load(imagekit.tar_of(imagekit.docker([(tars, [name])])))
        images.push(name)
        made[name] = tars
    return made


def test_threads_share_one_registry_and_its_connections(registry, pushed, open_store, room):
    store = open_store(room / "elsewhere")
    before = len(registry.requests())
    with Registry(registry.host, connections=2) as source:
        pulled = at_once(*[lambda name=name: Images(store).pull(name, registry=source) for name in [*pushed] * 2])
    for name, image in zip([*pushed] * 2, pulled, strict=True):
        assert [tar_of(store.map()[chain]) for chain in image.layers] == pushed[name]
    assert len(store.map()) == len(LAYERS)
    assert store.verify() == store.orphans() == []
    fetched = [one.uri for one in registry.requests(before) if "/blobs/" in one.uri]
    assert len(fetched) <= sum(map(len, pushed.values())) * 2 + len(pushed) * 2


def test_processes_pull_one_image_onto_one_root(pushed, open_store, room, settings):
    root = room / "elsewhere"
    open_store(root).close()
    name, tars = next(iter(pushed.items()))
    command = [sys.executable, "-c", PROGRAM, str(root), name]
    env = programs.environment(settings)
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) for _ in range(4)]
    said = [process.communicate(timeout=50) for process in running]
    assert {out.strip() for out, _ in said} == {imagekit.image_id(tars)}, said
    store = open_store(root)
    [image] = Images(store).list()
    assert [tar_of(store.map()[chain]) for chain in image.layers] == tars
    assert store.verify() == store.orphans() == []
    assert len(driver_directories(root)) == len(tars)


def test_threads_that_push_the_same_layers_send_each_once(registry, named, images):
    reference = named("app")
    images.load(imagekit.tar_of(imagekit.docker([(LAYERS, ["app:1"])])))
    before = len(registry.requests())
    with Registry(registry.host) as target:
        tags = [reference.removesuffix("1") + str(number) for number in range(4)]
        digests = at_once(*[lambda name=name: images.push("app:1", name, registry=target) for name in tags])
    assert len(set(digests)) == 1
    assert {registry.tag(*split(name)) for name in tags} == set(digests)
    assert [one.method for one in registry.requests(before)].count("PATCH") == len(LAYERS)
