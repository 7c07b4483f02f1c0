"""Images in a docker-registry of the loopback, and the programs beside us that pull them and push them.

Each peer has a store of its own below the place given, with the driver overlay, and is run as its users run it.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import http.client
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import programs
from dockerd import image_config
from realregistry import Registry

from benchmarks import measure, peers
from benchmarks.measure import Case

OCI = "application/vnd.oci.image."


# ---- what lies in a registry ------------------------------------------------------------------------
def publish(registry: Registry, name: str, blobs: Sequence[tuple[Path, str]]) -> str:
    """Put an image of these blobs, each with its DiffID, into a registry, and return its reference."""

    def ask(method: str, path: str, body: bytes = b"", **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", registry.port)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status}")
        return answer

    def put(data: bytes, kind: str) -> dict[str, Any]:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        where = ask("POST", f"/v2/{name}/blobs/uploads/").headers["Location"]
        ask("PUT", f"/{where.partition('://')[2].partition('/')[2]}&digest={digest}", data)
        return {"mediaType": OCI + kind, "digest": digest, "size": len(data)}

    layers = [put(path.read_bytes(), "layer.v1.tar+gzip") for path, _ in blobs]
    config = put(image_config([diff_id for _, diff_id in blobs]), "config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": OCI + "manifest.v1+json", "config": config, "layers": layers}
    ask("PUT", f"/v2/{name}/manifests/1", json.dumps(manifest).encode(), **{"Content-Type": OCI + "manifest.v1+json"})
    return f"{registry.host}/{name}:1"


class Target:
    """A registry that is empty each time it is started, to be pushed to."""

    def __init__(self, place: Path) -> None:
        self._place, self._running = place, Registry(place)

    def start(self) -> None:
        measure.fresh(self._place)
        self._running = Registry(self._place)
        self._running.start()

    def stop(self) -> None:
        self._running.stop()
        measure.wipe(self._place)

    @property
    def reference(self) -> str:
        """What is pushed there is called this."""
        return f"{self._running.host}/app:1"


# ---- peers ------------------------------------------------------------------------------------------
class Peer(abc.ABC):
    """A program with a store of its own, and an image that it pulls."""

    who = ""
    daemons: Any = staticmethod(tuple)

    @abc.abstractmethod
    def pull(self, reference: str) -> None:
        """Pull an image that is there, or is not."""

    @abc.abstractmethod
    def forget(self, reference: str) -> None:
        """Remove an image with its layers."""

    def pulls(self, reference: str) -> Case:
        return Case(
            self.who, lambda: self.pull(reference), measure.nothing, lambda: self.forget(reference), self.daemons
        )

    def pulls_again(self, reference: str) -> Case:
        return Case(self.who, lambda: self.pull(reference), daemons=self.daemons)


class Pusher(Peer):
    """A peer that pushes, too."""

    @abc.abstractmethod
    def push(self, reference: str, to: str) -> None:
        """Push an image under another name."""

    def pushes(self, reference: str, target: Target) -> Case:
        """To an empty registry; the image is there."""
        return Case(self.who, lambda: self.push(reference, target.reference), target.start, target.stop, self.daemons)

    def pushes_again(self, reference: str, to: str) -> Case:
        return Case(self.who, lambda: self.push(reference, to), daemons=self.daemons)


class Docker(Pusher):
    """dockerd, whose root is the place's."""

    who = "docker"

    def __init__(self, docker: peers.Docker) -> None:
        self._docker, self.daemons = docker, docker.pids

    def pull(self, reference: str) -> None:
        self._docker.run("pull", "-q", reference)

    def forget(self, reference: str) -> None:
        with contextlib.suppress(RuntimeError):
            self._docker.run("rmi", "-f", reference)

    def push(self, reference: str, to: str) -> None:
        self._docker.run("tag", reference, to)
        self._docker.run("push", "-q", to)


class Containerd(Peer):
    """ctr, and the containerd that the dockerd has started. It has no push of layers: its blobs go as they came."""

    who = "containerd (ctr)"

    def __init__(self, docker: peers.Docker) -> None:
        self._docker, self.daemons = docker, docker.pids

    def pull(self, reference: str) -> None:
        self._docker.ctr("images", "pull", "--plain-http", reference)

    def forget(self, reference: str) -> None:
        with contextlib.suppress(RuntimeError):
            self._docker.ctr("images", "rm", "--sync", reference)


class Podman(Pusher):
    """podman on an overlay store of its own."""

    who = "podman"

    def __init__(self, place: Path) -> None:
        self._place = place
        self._env = programs.Podman(place).env

    def _run(self, *words: Any) -> None:
        where = ["--root", self._place / "root", "--runroot", self._place / "run", "--tmpdir", self._place / "tmp"]
        how = ["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        measure.run("podman", *where, *how, *words, environment=self._env)

    def pull(self, reference: str) -> None:
        self._run("pull", "-q", "--tls-verify=false", reference)

    def forget(self, reference: str) -> None:
        with contextlib.suppress(RuntimeError):
            self._run("rmi", "-f", reference)

    def push(self, reference: str, to: str) -> None:
        self._run("push", "-q", "--tls-verify=false", reference, to)


class Skopeo(Pusher):
    """skopeo and containers-storage, overlay."""

    who = "skopeo, containers-storage"

    def __init__(self, place: Path) -> None:
        self._env = programs.Skopeo(place).env
        self._store = f"containers-storage:[overlay@{place / 'root'}+{place / 'run'}]"

    def _run(self, *words: Any) -> None:
        measure.run("skopeo", "--insecure-policy", *words, environment=self._env)

    def pull(self, reference: str) -> None:
        self._run("copy", "-q", "--src-tls-verify=false", f"docker://{reference}", self._store + reference)

    def forget(self, reference: str) -> None:
        with contextlib.suppress(RuntimeError):
            self._run("delete", self._store + reference)

    def push(self, reference: str, to: str) -> None:
        self._run("copy", "-q", "--dest-tls-verify=false", self._store + reference, f"docker://{to}")


def found(place: Path, docker: peers.Docker | None) -> list[Peer]:
    """Return the peers that are installed."""
    here: list[Peer] = []
    if docker:
        here.append(Docker(docker))
        if peers.has("ctr"):
            here.append(Containerd(docker))
    if peers.has("podman"):
        here.append(Podman(place / "podman"))
    if peers.has("skopeo"):
        here.append(Skopeo(place / "skopeo"))
    return here
