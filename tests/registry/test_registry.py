"""The Registry itself: its arguments, its life, threads and forks; and what the package loads without it."""

import os
import pickle
import subprocess
import sys
import threading

import pytest
from imagekit import BASE, TOP
from scripted import STALL, Answer
from shelf import Shelf
from stored import at_once

import layerstore
from layerstore import Registry, RegistryError

WRONG = [
    {"timeout": 0}, {"timeout": -1}, {"timeout": float("nan")}, {"timeout": "5"}, {"timeout": None}, {"retries": -1}, {"retries": 1.5}, {"retries": "5"}, {"retries": None},
    {"connections": 0}, {"connections": -1}, {"connections": 1.5}, {"connections": "3"}, {"chunk": 0}, {"chunk": -1}, {"chunk": 1.5}, {"chunk": "x"}, {"auth": ("a",)}, {"auth": 5}, {"auth": ""}, {"auth": ("a", 5)},
    {"ca": 5}, {"mirrors": 5}, {"mirrors": [5]},
]  # fmt: skip


@pytest.mark.parametrize("options", WRONG, ids=repr)
def test_wrong_values_are_errors_at_once(options):
    with pytest.raises((ValueError, TypeError)):
        Registry("localhost:1", **options)


def test_unknown_arguments_and_positions():
    with pytest.raises(TypeError):
        Registry("localhost:1", more=1)
    with pytest.raises(TypeError):
        Registry("localhost:1", ("user", "password"))
    with pytest.raises(TypeError):
        Registry()


def test_it_opens_no_connection_by_itself(shelf):
    with Registry(shelf.host):
        pass
    assert shelf.connections == 0


def test_closed_it_is_an_error(shelf, images):
    put = shelf.put([BASE])
    registry = Registry(shelf.url)
    registry.tags("app")
    image = images.pull(put.reference, registry=registry)
    registry.close()
    registry.close()
    shelf.requests.clear()
    for call in (lambda: registry.tags("app"), lambda: registry.manifest("app:1"), lambda: registry.referrers("app:1"), lambda: images.pull(put.reference, registry=registry), lambda: images.push(image, put.reference, registry=registry)):
        with pytest.raises(RegistryError, match="closed"):
            call()
    assert shelf.requests == [] and shelf.is_quiet()


def test_close_ends_what_is_under_way(shelf, within):
    shelf.always("GET", ".*", Answer(raw=[STALL]))
    registry = Registry(shelf.url, timeout=20)
    threading.Timer(0.3, registry.close).start()
    with within(3), pytest.raises(RegistryError):
        registry.tags("app")


def test_repr_has_the_class_and_the_host():
    for host in ("registry.example.com:5000", "localhost:5"):
        with Registry(host, auth=("s3cret-user", "s3cret")) as registry:
            assert host in repr(registry) and "Registry" in repr(registry) and "s3cret" not in repr(registry)
            assert "s3cret" not in str(registry)


def test_it_is_no_secret_keeper_in_pickles(shelf):
    with Registry(shelf.url, auth=("u", "s3cret")) as registry:
        try:
            data = pickle.dumps(registry)
        except Exception:
            return
    assert b"s3cret" not in data


def test_threads_share_connections(shelf, connect):
    shelf.put([BASE])
    registry = connect()
    for _ in range(5):
        assert at_once(*[lambda: registry.tags("app")] * 8) == [["1"]] * 8
    assert shelf.connections <= 8


def test_no_socket_is_left_by_many_threads(shelf, images):
    """More requests at once than connections are kept: each is closed, now or by close()."""
    put = shelf.put([BASE, TOP])
    with Registry(shelf.url, retries=0, timeout=5, connections=2) as registry:
        for _ in range(3):
            at_once(*[lambda: images.pull(put.reference, registry=registry)] * 5, *[lambda: registry.tags("app")] * 5)
    assert shelf.is_quiet()


SHARED = """
import os, sys, layerstore
registry = layerstore.Registry(sys.argv[1], retries=0, timeout=5)
print(registry.tags("app"), flush=True)
child = os.fork()
for _ in range(5):
    assert registry.tags("app") == ["1"]
    assert registry.manifest("app:1")[1]
if child:
    assert os.waitpid(child, 0)[1] == 0
    assert registry.tags("app") == ["1"]
    print("fine")
registry.close()
"""


def run(script, *words, **more):
    return subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *words], capture_output=True, text=True, timeout=50, **more)


def test_a_forked_child_makes_connections_of_its_own(shelf):
    shelf.put([BASE])
    done = run(SHARED, shelf.url)
    assert done.stdout == "['1']\nfine\n", done.stderr
    assert shelf.connections == 2


def test_a_child_forked_over_tls(serve, authority):
    shelf = serve(Shelf(authority.server()))
    shelf.put([BASE])
    done = run(SHARED, shelf.host, env=os.environ | {"SSL_CERT_FILE": str(authority.file)})
    assert done.stdout == "['1']\nfine\n", done.stderr
    assert shelf.connections == 2


def test_a_child_that_closes_leaves_the_parents_connection(shelf):
    shelf.put([BASE])
    script = "import os, sys, layerstore\nr = layerstore.Registry(sys.argv[1], retries=0)\nr.tags('app')\nif not os.fork():\n r.close(); os._exit(0)\nos.wait()\nprint(r.tags('app'))"
    done = run(script, shelf.url)
    assert done.stdout == "['1']\n", done.stderr
    assert shelf.connections == 1


def test_a_fork_in_the_middle_of_a_pull(shelf, room):
    """A thread forks again and again while another pulls: the pull is whole, and so are the children."""
    put = shelf.put([BASE, TOP])
    script = """
import os, sys, threading, layerstore
def forks():
    while not over.is_set():
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
over = threading.Event()
thread = threading.Thread(target=forks); thread.start()
with layerstore.Store(sys.argv[1]) as store, layerstore.Registry(sys.argv[2], retries=0, timeout=5) as registry:
    images = layerstore.Images(store)
    for _ in range(20):
        print(images.pull(sys.argv[3], registry=registry).id)
        images.remove(sys.argv[3], force=True); [images.remove(image, force=True) for image in images.list()]
    over.set(); thread.join()
    assert store.orphans() == [] and store.verify() == []
"""
    done = run(script, str(room / "forked"), shelf.url, put.reference)
    assert done.stdout.splitlines() == [put.id] * 20, done.stderr


def test_what_import_loads():
    done = run("import sys, layerstore; layerstore.Images; print([name for name in ('urllib3', 'ssl', 'http.client', 'layerstore.registry.session') if name in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


def test_without_urllib3():
    script = """
import sys
sys.modules["urllib3"] = None
import layerstore, tempfile
layerstore.Registry; layerstore.RegistryError; layerstore.NotInRegistryError; layerstore.AuthenticationError
def named(call):
    try: call()
    except layerstore.NotSupportedError as error: print("layerstore[registry]" in str(error))
named(lambda: layerstore.Registry("localhost:1"))
with tempfile.TemporaryDirectory(dir="/dev/shm") as place, layerstore.Store(place) as store:
    images = layerstore.Images(store)
    named(lambda: images.pull("localhost:1/app"))
print("done")
"""
    done = run(script)
    assert done.stdout == "True\nTrue\ndone\n", done.stderr


def test_images_made_it_and_close_it(shelf, images):
    """pull and push without `registry`."""
    put = shelf.put([BASE])
    image = images.pull(put.reference)
    images.push(image, f"{shelf.host}/new:1")
    assert shelf.is_quiet() and shelf.manifests["new"]["1"][1] == put.manifest


def test_public_names():
    for name in ("Registry", "RegistryError", "NotInRegistryError", "AuthenticationError"):
        assert name in dir(layerstore) and getattr(layerstore, name).__doc__
    assert issubclass(layerstore.RegistryError, layerstore.LayerStoreError)
    assert issubclass(layerstore.NotInRegistryError, (layerstore.RegistryError,)) and issubclass(layerstore.NotInRegistryError, LookupError)
    assert issubclass(layerstore.AuthenticationError, layerstore.RegistryError)
