"""image pull and image push, with a real docker-registry: what they print, how they end, and that a password stays unseen."""

import itertools
import os

import pytest
import realregistry
from disk import disk_state
from dockerd import image_archive
from tarkit import dir, end, file

BASE = dir("etc/") + file("etc/motd", b"hello\n") + end()
APP = dir("app/") + file("app/main", b"print\n") + end()
NOISE = file("noise", os.urandom(4_000_000)) + end()
PASSWORD = "unseen Passwort"
_number = itertools.count()


@pytest.fixture(scope="module")
def registry(tmpfs):
    with realregistry.Registry(tmpfs / "registry-of-cli") as server:
        yield server


@pytest.fixture(autouse=True)
def home(environment, room, monkeypatch):
    """A home without credentials."""
    for name in ("DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(room / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(room / "home/run"))
    return room / "home"


@pytest.fixture
def app(made, room):
    """A store with an image of two layers, app:latest."""
    (room / "app.tar").write_bytes(image_archive([BASE, APP], "app"))
    made("image", "load", room / "app.tar")
    return made


# ---- wrong uses ---------------------------------------------------------------------------------
WRONG = [
    (2, ["pull", "No/Name"], "invalid reference format"),
    (2, ["pull", "localhost:1/a:1", "--platform", "a/b/c/d"], "a/b/c/d"),
    (2, ["pull", "localhost:1/a:1", "--retries", "-1"], "--retries"),
    (2, ["pull", "localhost:1/a:1", "--connections", "0"], "--connections"),
    (2, ["pull", "localhost:1/a:1", "--timeout", "soon"], "--timeout"),
    (2, ["pull", "localhost:1/a:1", "--timeout", "0"], "--timeout"),
    (2, ["pull", "localhost:1/a:1", "--user", "ann"], "--password-stdin"),
    (2, ["pull", "localhost:1/a:1", "--password-stdin"], "--user"),
    (1, ["pull", "localhost:1/a:1", "--retries", "0"], "localhost:1"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "words", "told"), WRONG, ids=[" ".join(words)[:60] for _, words, _ in WRONG])
def test_wrong_uses(app, refused, root, code, words, told):
    before = disk_state(root)
    assert told in refused(code, "image", *words)
    assert disk_state(root) == before


def test_what_is_not_there(refused, made, registry):
    for reference in ("nothing:1", f"nothing@sha256:{'0' * 64}"):
        said = refused(3, "image", "pull", f"{registry.host}/{reference}")
        assert "404" in said and registry.host in said


def test_no_store_is_made(refused, room, registry):
    assert "make one with" in refused(3, "--root", room / "none", "image", "pull", f"{registry.host}/a:1")
    assert not (room / "none").exists()
