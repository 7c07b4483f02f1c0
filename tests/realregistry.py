"""Debian's docker-registry for tests: on a free port of the loopback, with a directory of its own, ended by its process ID.

Enters: docker-registry; htpasswd if it has users; openssl if it speaks TLS. Leaves: nothing running. Its directory stays,
and tells without it what it was sent: blob(), manifest(), tag(). Its log tells what it was asked: requests().

    with realregistry.Registry(room / "registry", users={"ann": "secret"}, tls=True) as registry:
        layerstore.Registry(registry.host, auth=("ann", "secret"), ca=registry.ca)
"""

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from machine import needs

SECONDS_TO_START = 30
SECONDS_TO_STOP = 10
LISTENING = re.compile(rb'"msg":"listening on 127\.0\.0\.1:([0-9]+)')
# Apache's combined format.
ACCESS = re.compile(r'^\S+ \S+ \S+ \[.*?\] "(?P<method>[A-Z]+) (?P<uri>\S*) \S*" (?P<status>[0-9]+) \S+ ".*?" "(?P<agent>.*)"$', re.MULTILINE)
CERTIFICATE_OF = "/CN=localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1"


class Request(NamedTuple):
    """A request that the registry has answered."""

    method: str
    uri: str
    status: int
    agent: str


class Registry:
    """One run of docker-registry, a context manager. users: names and passwords; without them it asks for none.

    tls: with a certificate for localhost and 127.0.0.1, which `ca` verifies. client_tls: it also asks for a certificate of
    its clients; `client` is one, as (certificate, key). cache_of: the host of a registry that it fetches from what it lacks.
    auth: another way to ask its clients who they are, http: more about how it is asked, as its configuration has both.
    port: 0 is a free one.
    """

    def __init__(
        self, place: Path, *, users: Mapping[str, str] | None = None, tls: bool = False, client_tls: bool = False,
        cache_of: str = "", auth: Mapping | None = None, http: Mapping | None = None, port: int = 0,
    ):  # fmt: skip
        needs("docker-registry", *["htpasswd"] * bool(users), *["openssl"] * (tls or client_tls))
        self.place = Path(place)
        self.data = self.place / "data"
        self.log = self.place / "log"
        self.port = port
        self.ca: Path | None = None
        self.client: tuple[Path, Path] | None = None
        self.process: subprocess.Popen | None = None
        self.data.mkdir(parents=True, exist_ok=True)
        self._configure(users, tls or client_tls, client_tls, cache_of, auth)
        self.config["http"] |= http or {}

    def _configure(self, users, tls: bool, client_tls: bool, cache_of: str, auth) -> None:
        config = {
            "version": 0.1,
            "log": {"level": "info", "formatter": "json"},
            "storage": {"filesystem": {"rootdirectory": str(self.data)}, "delete": {"enabled": True}},
            "http": {"addr": "127.0.0.1:0", "secret": "one for all runs on this directory"},
            "compatibility": {"schema1": {"enabled": True}},
        }
        if users:
            lines = [run("htpasswd", "-nbB", "-C", "4", user, password).strip() for user, password in users.items()]
            (self.place / "htpasswd").write_bytes(b"\n".join(lines) + b"\n")
            config["auth"] = {"htpasswd": {"realm": "tests", "path": str(self.place / "htpasswd")}}
        if tls:
            self.ca, key = self._certificate("server")
            config["http"]["tls"] = {"certificate": str(self.ca), "key": str(key)}
        if client_tls:
            self.client = self._certificate("client")
            config["http"]["tls"]["clientcas"] = [str(self.client[0])]
        if auth:
            config["auth"] = auth
        if cache_of:
            config["proxy"] = {"remoteurl": f"http://{cache_of}"}
        self.config = config

    def _certificate(self, name: str) -> tuple[Path, Path]:
        certificate, key = self.place / f"{name}.crt", self.place / f"{name}.key"
        if not certificate.exists():
            subject, names = CERTIFICATE_OF
            run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                "-subj", subject, "-addext", names, "-keyout", key, "-out", certificate)  # fmt: skip
        return certificate, key

    def __enter__(self) -> "Registry":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Begin it; after stop() on the same port again."""
        self.config["http"]["addr"] = f"127.0.0.1:{self.port}"
        (self.place / "config.yml").write_text(json.dumps(self.config))
        with open(self.log, "ab") as log:
            begins = log.tell()
            command = ["docker-registry", "serve", str(self.place / "config.yml")]
            if threading.current_thread() is threading.main_thread():       # it would end with another thread, too
                command = ["setpriv", "--pdeathsig", "TERM", "--", *command]
            without = {name: value for name, value in os.environ.items() if not name.startswith(("REGISTRY_", "OTEL_"))}
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=without)
        deadline = time.monotonic() + SECONDS_TO_START
        while not (found := LISTENING.search(self.log.read_bytes(), begins)):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"docker-registry does not listen:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.01)
        self.port = int(found[1])

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    # ---- what it was asked ------------------------------------------------------------------------
    def requests(self, since: int = 0) -> list[Request]:
        """What it has answered, without the first `since`. A request is logged once its answer is written: soon, not at once."""
        found = ACCESS.finditer(self.log.read_text(errors="replace"))
        return [Request(line["method"], line["uri"], int(line["status"]), line["agent"]) for line in found][since:]

    # ---- what it holds ----------------------------------------------------------------------------
    def blob(self, digest: str) -> bytes:
        """A blob or a manifest, whatever repository it is in."""
        return self.path(digest).read_bytes()

    def path(self, digest: str) -> Path:
        """The file of a blob or a manifest."""
        algorithm, _, encoded = digest.partition(":")
        return self.data / "docker/registry/v2/blobs" / algorithm / encoded[:2] / encoded / "data"

    def tag(self, repository: str, tag: str) -> str:
        """The digest that a tag names."""
        return (self._repository(repository) / "_manifests/tags" / tag / "current/link").read_text()

    def manifest(self, repository: str, tag: str) -> dict:
        return json.loads(self.blob(self.tag(repository, tag)))

    def blobs_of(self, repository: str) -> set[str]:
        """The digests of the blobs that are linked into a repository."""
        links = (self._repository(repository) / "_layers").glob("*/*/link")
        return {link.read_text() for link in links}

    def forget(self, repository: str) -> None:
        """Remove a repository's links behind the registry's back, its tags too; the blobs stay."""
        shutil.rmtree(self._repository(repository))

    def _repository(self, repository: str) -> Path:
        return self.data / "docker/registry/v2/repositories" / repository


def split(reference: str) -> tuple[str, str]:
    """Repository and tag of "host/repository:tag"."""
    repository, _, tag = reference.partition("/")[2].rpartition(":")
    return repository, tag


def run(*words) -> bytes:
    """Run a program to its end; what it printed. AssertionError with its words if it fails."""
    done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr.decode(errors='replace')}"
    return done.stdout
