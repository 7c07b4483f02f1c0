"""Debian's docker-registry, and skopeo, podman, dockerd and containerd beside it. None of them sees the credentials of this machine."""

import contextlib
import itertools

import programs
import pytest
from dockerd import Dockerd
from dockerd import programs as of_docker
from machine import needs
from realregistry import Registry

_number = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def machine(tmpfs):
    needs("docker-registry", "skopeo", "podman", "ctr", "htpasswd", "openssl", "busybox")
    needs("dockerd", there=of_docker())


@pytest.fixture(autouse=True)
def settings(room, monkeypatch):
    """A home without anything in it, for every test."""
    for name in programs.ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    home = room / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    return home


@pytest.fixture(scope="session")
def registry(tmpfs):
    """A registry that asks for nothing, for all tests. Each test has repositories of its own: see `named`."""
    with Registry(tmpfs / "registry") as server:
        yield server


@pytest.fixture(scope="session")
def named(registry):
    """named("app") is a reference into a repository of this name that no other test has."""
    return lambda name, tag="1": f"{registry.host}/t{next(_number)}/{name}:{tag}"


@pytest.fixture(scope="session")
def start(tmpfs):
    """Start another registry: start(users=..., tls=True). They end with the session."""
    with contextlib.ExitStack() as stack:
        yield lambda **how: stack.enter_context(Registry(tmpfs / f"registry-{next(_number)}", **how))


@pytest.fixture(scope="session")
def skopeo(tmpfs):
    return programs.Skopeo(tmpfs / "skopeo")


@pytest.fixture(scope="session")
def podman(tmpfs):
    with programs.Podman(tmpfs / "podman") as podman:
        yield podman


@pytest.fixture(scope="session")
def docker(tmpfs):
    """A dockerd that reaches the registries, on a root that is not ours."""
    with Dockerd(tmpfs / "dockerd", network=True) as dockerd:
        yield dockerd


@pytest.fixture(scope="session")
def containerd(docker):
    return programs.Containerd(docker)


@pytest.fixture(scope="session")
def archive(tmpfs):
    """A Docker archive of an image that runs."""
    return programs.archive(tmpfs / "app.tar")
