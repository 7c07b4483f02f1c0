"""A token server behind exchange(), without sockets, and the 401s of a registry that names it."""

import base64
import json
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest

from layerstore.registry.calls import Call
from layerstore.registry.tokens import Authorizer

PULL = "repository:a/b:pull"
PUSH = "repository:a/b:pull,push"
REALM = "https://auth.example.com/token"
PASSWORD = "correct horse:battery"


class Headers:
    def __init__(self, *pairs: tuple[str, str]) -> None:
        self._pairs = pairs

    def get(self, name: str, default: str = "") -> str:
        return ", ".join(self.all(name)) or default

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key.lower() == name.lower()]


class Answer(NamedTuple):
    status: int
    headers: Headers
    body: bytes
    url: str
    host: str


class Asked(NamedTuple):
    """A request of a token server."""

    method: str
    url: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]

    @property
    def basic(self) -> str:
        return base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()


def challenge(*texts: str) -> Answer:
    """The 401 of a registry."""
    pairs = [("WWW-Authenticate", text) for text in texts]
    return Answer(401, Headers(*pairs), b"", "https://registry.example.com/v2/a/b/manifests/1", "registry.example.com:443")


def bearer(scope: str = PULL, error: str = "", realm: str = REALM) -> Answer:
    return challenge(f'Bearer realm="{realm}",service="registry.example.com",scope="{scope}"' + (f',error="{error}"' if error else ""))


class Server:
    """A token server and a registry's GET /v2/, behind exchange(); gives numbered tokens, or what `answers` has left."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answers: list[tuple[int, Any]] = []
        self.lasts: Any = 300
        self.base: Answer | None = None
        self.before: Callable[[], Any] = lambda: None
        self._lock = threading.Lock()

    def __call__(self, call: Any, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        self.before()
        with self._lock:
            query = urllib.parse.urlsplit(url).query if body is None else body.decode()
            self.asked.append(Asked(method, url, urllib.parse.parse_qs(query, keep_blank_values=True), headers))
            if url == "/v2/":
                assert self.base is not None
                return self.base
            status, document = self.answers.pop(0) if self.answers else (200, {"token": f"token-{len(self.asked)}", "expires_in": self.lasts})
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return Answer(status, Headers(), body, url.partition("?")[0], "auth.example.com:443")


def made(server: Server, auth: Any = ("user", PASSWORD), key: str = "registry.example.com", plain: bool = False) -> Authorizer:
    return Authorizer(key, auth=auth, timeout=5, plain=lambda: plain, exchange=server)


CALL = Call()


def with_file(monkeypatch: pytest.MonkeyPatch, entry: dict[str, str]) -> None:
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {"registry.example.com": entry}}))


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What each of the threads gets, or the error that it ends with."""
    results: list[Any] = [None] * count
    together = threading.Barrier(count)

    def run(number: int) -> None:
        together.wait()
        try:
            results[number] = work(number)
        except BaseException as err:
            results[number] = err

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results
