"""Scripted registries, an environment without credentials, and the look at a store that a failure must leave as it was."""

import contextlib
import sys
import threading
import time
from pathlib import Path

import disk
import pytest
from stored import tar_of

sys.path.insert(0, str(Path(__file__).resolve().parent))

from certificates import Authority
from scripted import Server
from shelf import Shelf
from storelook import left, state, threads

import layerstore

VARIABLES = ("DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "SSL_CERT_FILE", "SSL_CERT_DIR",
             "http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")  # fmt: skip


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A home without credentials, certificates and proxies."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return place


@pytest.fixture
def serve(room):
    """Start a server; all are closed at the end, and none may have complaints."""
    with contextlib.ExitStack() as stack:
        started = []

        def begin(server: Server):
            started.append(stack.enter_context(server))
            return server

        yield begin
    assert [words for server in started for words in server.complaints] == []


@pytest.fixture
def shelf(serve):
    return serve(Shelf())


@pytest.fixture
def connect(shelf):
    """Make a Registry, of the shelf or of another host, that does not wait long; all are closed at the end, with all their sockets."""
    with contextlib.ExitStack() as stack:

        def made(host=None, **options):
            options = {"timeout": 5, "retries": 0} | options
            return stack.enter_context(layerstore.Registry(host or shelf.url, **options))

        yield made
    assert shelf.is_quiet(), "a closed Registry has open connections"


@pytest.fixture
def pull(images, connect):
    """Pull by a Registry of the shelf; options of Registry and of pull together."""

    def pulled(reference, *, platform=None, progress=None, keep=False, registry=None, **options):
        return images.pull(reference, platform=platform, progress=progress, keep=keep, registry=registry or connect(**options))

    return pulled


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates") / "ca")


@pytest.fixture
def unstored(store, root):
    """`with unstored(Error):` it raises, and the store has afterwards what it had before, and holds it as before; no thread is left."""

    @contextlib.contextmanager
    def watched(*kinds, match=None):
        before, held, ran = state(root), dict(store._engine.holds._counts), threads()
        with pytest.raises(kinds or layerstore.LayerStoreError, match=match) as caught:
            yield caught
        assert left(ran) == set()
        assert disk.changed(before, state(root)) == []
        assert store._engine.holds._counts == held
        assert store.orphans() == []

    return watched


@pytest.fixture
def check(store, images):
    """Look whether an image came as it is in the registry: its id, names, layers, and all bytes of them."""

    def whole(image, put, names=None):
        assert image.id == put.id
        if names is not None:
            assert set(image.references) == set(names)
        assert list(image.layers) == put.chains
        for chain, tar in zip(image.layers, put.layers, strict=True):
            assert tar_of(store.map()[chain]) == tar, "a layer's tar is another"
        assert store.verify() == []
        assert store.orphans() == []

    return whole


@pytest.fixture
def within():
    """`with within(seconds):` it takes no longer."""

    @contextlib.contextmanager
    def timed(seconds, least=0.0):
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        assert least <= took <= seconds, f"it took {took:.2f} s"

    return timed


@pytest.fixture
def each():
    """Run a check of several cases at once, as waits of each are long; all that failed are told."""

    def run(cases: dict, test):
        wrong = {}

        def one(name, case):
            try:
                test(case)
            except BaseException as error:
                wrong[name] = f"{type(error).__name__}: {error}"

        jobs = [threading.Thread(target=one, args=pair) for pair in cases.items()]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        assert wrong == {}

    return run
