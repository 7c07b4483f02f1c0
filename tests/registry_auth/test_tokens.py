"""What is sent as authorization: after which challenge, for which scopes, how often, and shared by all threads."""

import base64
import json
import os
import re
import threading
import time
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from layerstore.errors import AuthenticationError, RegistryError
from layerstore.registry import tokens
from layerstore.registry.calls import Call
from layerstore.registry.tokens import Authorizer, Stays

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


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr(tokens.time, "monotonic", lambda: now[0])
    yield now


def made(server: Server, auth: Any = ("user", PASSWORD), key: str = "registry.example.com", plain: bool = False) -> Authorizer:
    return Authorizer(key, auth=auth, timeout=5, plain=lambda: plain, exchange=server)


CALL = Call()


# ---- what is asked for ----


def test_nothing_is_sent_before_it_is_asked_for(server: Server) -> None:
    assert made(server).header("a/b", [PULL]) is None and server.asked == []


def test_a_token_of_the_caller_is_sent_at_once_and_its_401_stays(server: Server) -> None:
    authorizer = made(server, auth="visible")
    sent = authorizer.header("a/b", [PULL])
    assert sent == "Bearer visible"
    assert isinstance(authorizer.challenged(CALL, "a/b", [PULL], bearer(), sent), Stays) and server.asked == []


def test_a_bearer_challenge_gets_a_token(server: Server) -> None:
    authorizer = made(server)
    assert authorizer.challenged(CALL, "a/b", [PULL], bearer(), None) == "Bearer token-1"
    asked, = server.asked
    assert asked.method == "GET" and asked.url.startswith(REALM + "?") and asked.basic == f"user:{PASSWORD}"
    assert asked.query == {"service": ["registry.example.com"], "scope": [PULL]}
    assert authorizer.header("a/b", [PULL]) == "Bearer token-1"
    assert authorizer.header("a/b", [PUSH]) is None and authorizer.header("c", [PULL]) is None


def test_the_realms_own_query_is_kept(server: Server) -> None:
    made(server).challenged(CALL, "a/b", [PULL], bearer(realm=REALM + "?a=1&b="), None)
    assert server.asked[0].query == {"a": ["1"], "b": [""], "service": ["registry.example.com"], "scope": [PULL]}


def test_without_service_and_scope_the_realm_is_asked_as_it_is(server: Server) -> None:
    made(server).challenged(CALL, "a/b", [], challenge(f'Bearer realm="{REALM}"'), None)
    assert server.asked[0].url == REALM


def test_without_credentials_the_token_server_is_asked_without(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens.credentials, "find", lambda *_: None)
    made(server, auth=None).challenged(CALL, "a/b", [PULL], bearer(), None)
    assert "Authorization" not in server.asked[0].headers


@pytest.mark.parametrize(("scope", "known", "asked"), [
    ("", [PULL], [PULL]),
    (PULL, [PULL], [PULL]),
    (PULL, [PUSH], [PULL, PUSH]),
    (f"{PUSH} repository:base:pull", [PUSH, "repository:base:pull"], [PUSH, "repository:base:pull"]),
    ("repository:base:pull repository:a/b:push,pull", [PUSH, "repository:base:pull"], ["repository:a/b:push,pull", "repository:base:pull"]),
    ("", [PUSH, "repository:base:pull"], [PUSH, "repository:base:pull"]),
    (f"{PULL}  {PULL}", [], [PULL]),
    ("repository:a/b:push,pull", [PUSH], ["repository:a/b:push,pull"]),
    ("repository:host:5000/a:pull registry:catalog:* odd", [], ["repository:host:5000/a:pull", "registry:catalog:*", "odd"]),
])  # fmt: skip
def test_scopes_are_the_challenges_and_what_we_know(server: Server, scope: str, known: list[str], asked: list[str]) -> None:
    made(server).challenged(CALL, "a/b", known, bearer(scope), None)
    assert server.asked[0].query["scope"] == asked


def test_the_order_of_actions_makes_no_other_scope(server: Server) -> None:
    authorizer = made(server)
    first = authorizer.challenged(CALL, "a/b", [PUSH], bearer("repository:a/b:push,pull"), None)
    assert first == authorizer.challenged(CALL, "a/b", [PUSH], bearer(PUSH), None) == authorizer.header("a/b", [PUSH]) and len(server.asked) == 1


def test_bearer_comes_before_basic(server: Server) -> None:
    offered = challenge('Basic realm="x"', f'Bearer realm="{REALM}"')
    assert made(server).challenged(CALL, "a/b", [PULL], offered, None) == "Bearer token-1"


def test_basic(server: Server) -> None:
    authorizer = made(server, auth=("bär", "pass:wört"))
    basic = "Basic " + base64.b64encode("bär:pass:wört".encode()).decode()
    sent = authorizer.challenged(CALL, "a/b", [PULL], challenge("Basic"), None)
    assert sent == basic == authorizer.header("a/b", [PULL]) == authorizer.header("other", [])
    assert isinstance(authorizer.challenged(CALL, "a/b", [PULL], challenge("Basic"), sent), Stays)
    assert isinstance(authorizer.challenged(CALL, "a/b", [PULL], challenge("Basic"), authorizer.header("a/b")), Stays)


def test_a_registry_that_changes_its_mind_gets_what_it_asks_for(server: Server) -> None:
    authorizer = made(server)
    authorizer.challenged(CALL, "a/b", [PULL], challenge("Basic"), None)
    sent = authorizer.header("a/b", [PULL])
    assert authorizer.challenged(CALL, "a/b", [PULL], bearer(), sent) == "Bearer token-1"
    kept = authorizer.header("a/b", [PULL])
    assert kept == "Bearer token-1"
    again = authorizer.challenged(CALL, "a/b", [PULL], challenge("Basic"), kept)
    assert again == sent == authorizer.header("a/b", [PULL])


@pytest.mark.parametrize("unusable", [(), ("Negotiate",), ("Bearer",), ('Bearer realm=""',), ("Bearer " + "x" * 17_000,)])
def test_without_a_usable_challenge_the_registrys_base_is_asked_once(server: Server, unusable: tuple[str, ...]) -> None:
    server.base = bearer("")
    assert made(server).challenged(CALL, "a/b", [PULL], challenge(*unusable), None) == "Bearer token-2"
    assert [asked.url.partition("?")[0] for asked in server.asked] == ["/v2/", REALM]
    assert server.asked[0].headers == {}


@pytest.mark.parametrize("base", [challenge(), challenge("Negotiate"), bearer()._replace(status=200), bearer()._replace(status=404)])
def test_the_401_stays_if_the_base_says_nothing_either(server: Server, base: Answer) -> None:
    server.base = base
    assert isinstance(made(server).challenged(CALL, "a/b", [PULL], challenge(), None), Stays)
    assert [asked.url for asked in server.asked] == ["/v2/"]


# ---- tokens that are refused ----


def test_a_fresh_token_that_is_refused_ends_it(server: Server) -> None:
    authorizer = made(server)
    sent = authorizer.challenged(CALL, "a/b", [PULL], bearer(), None)
    assert isinstance(authorizer.challenged(CALL, "a/b", [PULL], bearer(error="invalid_token"), sent), Stays)
    assert len(server.asked) == 1


@pytest.mark.parametrize("error", ["", "invalid_token", "insufficient_scope"])
def test_a_token_that_served_before_and_is_refused_is_replaced_once(server: Server, error: str) -> None:
    authorizer = made(server)
    authorizer.challenged(CALL, "a/b", [PULL], bearer(), None)
    sent = authorizer.header("a/b", [PULL])
    new = authorizer.challenged(CALL, "a/b", [PULL], bearer(error=error), sent)
    assert (sent, new) == ("Bearer token-1", "Bearer token-2") and authorizer.header("a/b", [PULL]) == new
    assert isinstance(authorizer.challenged(CALL, "a/b", [PULL], bearer(), new), Stays)


def test_insufficient_scope_asks_once_more_with_the_challenges_scope(server: Server) -> None:
    authorizer = made(server)
    sent = authorizer.challenged(CALL, "a/b", [PULL], bearer(""), None)
    more = authorizer.challenged(CALL, "a/b", [PULL], bearer(PUSH, "insufficient_scope"), sent)
    assert more == "Bearer token-2" and server.asked[1].query["scope"] == [PUSH, PULL]
    assert isinstance(authorizer.challenged(CALL, "a/b", [PULL], bearer(PUSH, "insufficient_scope"), more), Stays)
    assert authorizer.header("a/b", [PULL]) == "Bearer token-2"


def test_a_token_that_another_thread_got_meanwhile_is_used(server: Server) -> None:
    authorizer = made(server)
    authorizer.challenged(CALL, "a/b", [PULL], bearer(), None)
    first, second = authorizer.header("a/b", [PULL]), authorizer.header("a/b", [PULL])
    new = authorizer.challenged(CALL, "a/b", [PULL], bearer(), first)
    assert authorizer.challenged(CALL, "a/b", [PULL], bearer(), second) == new and len(server.asked) == 2


def test_a_token_that_is_there_serves_a_request_that_began_without(server: Server) -> None:
    authorizer = made(server)
    authorizer.challenged(CALL, "a/b", [PULL], bearer(), None)
    sent = authorizer.challenged(CALL, "a/b", [PULL], bearer(), None)
    assert sent == "Bearer token-1" and len(server.asked) == 1
    assert authorizer.challenged(CALL, "a/b", [PULL], bearer(), sent) == "Bearer token-2"


# ---- how long a token lasts ----


@pytest.mark.parametrize(("lasts", "used"), [(300, 289), (None, 49), (11, 0.9), (20.5, 10.4), (10**400, 1e9 - 11)])
def test_a_token_is_used_until_10_seconds_before_its_end(server: Server, clock: list[float], lasts: Any, used: float) -> None:
    server.lasts = lasts
    authorizer = made(server)
    authorizer.challenged(CALL, "a/b", [PULL], bearer(), None)
    clock[0] += used
    assert authorizer.header("a/b", [PULL]) == "Bearer token-1"
    clock[0] += 1.2
    assert authorizer.header("a/b", [PULL]) is None
    assert authorizer.challenged(CALL, "a/b", [PULL], bearer(), None) == "Bearer token-2"


def test_an_answer_without_expires_in_lasts_60_seconds(server: Server, clock: list[float]) -> None:
    server.answers = [(200, {"access_token": "other"})]
    authorizer = made(server)
    assert authorizer.challenged(CALL, "a/b", [PULL], bearer(), None) == "Bearer other"
    clock[0] += 49
    assert authorizer.header("a/b", [PULL]) == "Bearer other"
    clock[0] += 2
    assert authorizer.header("a/b", [PULL]) is None


@pytest.mark.parametrize("lasts", [0, -5, 10, 1])
def test_a_token_is_always_used_for_the_request_that_it_was_got_for(server: Server, lasts: int) -> None:
    server.lasts = lasts
    authorizer = made(server)
    assert authorizer.challenged(CALL, "a/b", [PULL], bearer(), None) == "Bearer token-1"
    assert authorizer.header("a/b", [PULL]) is None


def test_a_call_replaces_a_token_at_its_end_before_it_asks(server: Server, clock: list[float]) -> None:
    authorizer = made(server)
    authorizer.challenged(CALL, "a/b", [PULL], bearer(), None)
    clock[0] += 291
    sent = authorizer.header("a/b", [PULL], CALL)
    assert sent == "Bearer token-2" == authorizer.header("a/b", [PULL])
    assert isinstance(authorizer.challenged(CALL, "a/b", [PULL], bearer(), sent), Stays)


# ---- answers of token servers ----


@pytest.mark.parametrize(("status", "document", "said"), [
    (200, b"", "JSON"), (200, b"not json", "JSON"), (200, [], "JSON"), (200, b"[" * 100_000, "JSON"), (200, b"\xff", "JSON"), (200, {"token": 7}, "JSON"),
    (200, {}, "token"), (200, {"token": ""}, "token"), (200, {"token": "a b"}, "token"), (200, {"token": "a\r\nX: y"}, "token"), (200, {"token": "ä"}, "token"), (200, {"token": None}, "token"),
    (200, {"token": "a", "expires_in": "300"}, "expires_in"), (200, {"token": "a", "expires_in": True}, "expires_in"), (200, {"token": "a", "expires_in": [1]}, "expires_in"),
    (401, {"errors": [{"code": "UNAUTHORIZED", "message": "who are you"}]}, "401 UNAUTHORIZED: who are you"), (403, b"<html>", "403"), (404, {}, "404"), (302, b"", "302"), (503, b"", "503"),
])  # fmt: skip
def test_other_answers_of_a_token_server_are_errors(server: Server, status: int, document: Any, said: str) -> None:
    server.answers = [(status, document)]
    with pytest.raises(AuthenticationError, match=said) as raised:
        made(server).challenged(CALL, "a/b", [PULL], bearer(), None)
    assert (raised.value.status, raised.value.host) == (status, "auth.example.com:443") and REALM in str(raised.value)


def test_a_token_server_that_cannot_be_reached_is_an_authentication_error(server: Server) -> None:
    def refuse() -> None:
        raise RegistryError("GET https://auth.example.com/token: connection refused", host="auth.example.com:443")

    server.before = refuse
    with pytest.raises(AuthenticationError, match="connection refused") as raised:
        made(server).challenged(CALL, "a/b", [PULL], bearer(), None)
    assert raised.value.host == "auth.example.com:443"


@pytest.mark.parametrize(("realm", "key", "plain"), [
    ("/token", "registry.example.com", False),
    ("auth.example.com/token", "registry.example.com", False),
    ("ftp://auth.example.com/", "registry.example.com", False),
    ("file:///etc/passwd", "registry.example.com", False),
    ("http://auth.example.com/token", "registry.example.com", False),
    ("https://user:pw@auth.example.com/", "registry.example.com", False),
    ("https://169.254.169.254/latest", "registry.example.com", False),
    ("http://169.254.169.254/latest", "localhost:5000", True),
    ("https://[fe80::1]/", "registry.example.com", False),
    ("https://127.0.0.1/token", "registry.example.com", False),
    ("https://localhost/token", "docker.io", False),
    ("https:///token", "registry.example.com", False),
    ("https://auth.example.com/ token", "registry.example.com", False),
])  # fmt: skip
def test_realms_that_are_refused(server: Server, realm: str, key: str, plain: bool) -> None:
    with pytest.raises(AuthenticationError, match="token server") as raised:
        made(server, key=key, plain=plain).challenged(CALL, "a/b", [PULL], bearer(realm=realm), None)
    assert server.asked == [] and "pw" not in str(raised.value)


@pytest.mark.parametrize(("realm", "key", "plain"), [
    ("http://auth.example.com/token", "registry.example.com", True), ("http://127.0.0.1:5001/token", "localhost:5000", True), ("https://10.0.0.1/token", "registry.example.com", False),
    ("https://[::1]:5001/token", "[::1]:5000", False), ("HTTPS://AUTH.example.com/token", "docker.io", False),
])  # fmt: skip
def test_realms_that_are_asked(server: Server, realm: str, key: str, plain: bool) -> None:
    assert made(server, key=key, plain=plain).challenged(CALL, "a/b", [PULL], bearer(realm=realm), None) == "Bearer token-1"


# ---- identity tokens, and tokens that files have ----


def with_file(monkeypatch: pytest.MonkeyPatch, entry: dict[str, str]) -> None:
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {"registry.example.com": entry}}))


def test_a_refresh_token_is_posted_and_replaced(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with_file(monkeypatch, {"identitytoken": "id&1", "auth": base64.b64encode(b"user:x").decode()})
    authorizer = made(server, auth=None)
    server.answers = [(200, {"access_token": "one", "refresh_token": "id&2", "expires_in": 300})]
    assert authorizer.challenged(CALL, "a/b", [PUSH, "repository:base:pull"], bearer(PUSH), None) == "Bearer one"
    assert authorizer.challenged(CALL, "c", ["repository:c:pull"], bearer("repository:c:pull"), None) == "Bearer token-2"
    assert authorizer.challenged(CALL, "d", ["repository:d:pull"], bearer("repository:d:pull"), None) == "Bearer token-3"
    first, *others = server.asked
    assert (first.method, first.url) == ("POST", REALM) and "Authorization" not in first.headers
    assert first.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert first.query == {
        "grant_type": ["refresh_token"], "service": ["registry.example.com"], "client_id": ["layerstore"],
        "scope": [f"{PUSH} repository:base:pull"], "refresh_token": ["id&1"],
    }  # fmt: skip
    assert [asked.query["refresh_token"] for asked in others] == [["id&2"]] * 2


@pytest.mark.parametrize("status", [404, 405, 401, 403])
def test_there_is_no_password_to_fall_back_to(server: Server, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    with_file(monkeypatch, {"identitytoken": "secret-id"})
    server.answers = [(status, {"errors": [{"code": "DENIED", "message": "no secret-id here"}]})]
    with pytest.raises(AuthenticationError, match=r"POST https://auth.example.com/token: 40. DENIED: no \*\*\* here") as raised:
        made(server, auth=None).challenged(CALL, "a/b", [PULL], bearer(), None)
    assert raised.value.status == status and len(server.asked) == 1


def test_an_identity_token_answers_no_basic_challenge(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with_file(monkeypatch, {"identitytoken": "secret-id"})
    assert isinstance(made(server, auth=None).challenged(CALL, "a/b", [PULL], challenge("Basic"), None), Stays)


@pytest.mark.parametrize("offered", [bearer(), challenge("Basic")])
def test_a_registry_token_is_sent_as_it_is(server: Server, monkeypatch: pytest.MonkeyPatch, offered: Answer) -> None:
    with_file(monkeypatch, {"registrytoken": "for-the-registry"})
    authorizer = made(server, auth=None)
    assert authorizer.header("a/b", [PULL]) is None
    sent = authorizer.challenged(CALL, "a/b", [PULL], offered, None)
    assert sent == "Bearer for-the-registry" == authorizer.header("a/b", [PULL]) and server.asked == []
    assert isinstance(authorizer.challenged(CALL, "a/b", [PULL], offered, sent), Stays)


# ---- threads ----


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


def test_threads_that_need_the_same_token_wait_for_one_request(server: Server) -> None:
    server.before = lambda: time.sleep(0.2)
    authorizer = made(server)
    assert in_threads(8, lambda _: authorizer.challenged(CALL, "a/b", [PULL], bearer(), None)) == ["Bearer token-1"] * 8
    assert len(server.asked) == 1


def test_threads_that_wait_get_the_error_of_the_one_that_asked(server: Server) -> None:
    server.before = lambda: time.sleep(0.2)
    server.answers = [(403, b"")]
    authorizer = made(server)
    errors = in_threads(4, lambda _: authorizer.challenged(CALL, "a/b", [PULL], bearer(), None))
    assert [type(err) for err in errors] == [AuthenticationError] * 4 and len({id(err) for err in errors}) == 4
    assert {err.status for err in errors} == {403} and len(server.asked) == 1


def test_a_call_that_is_stopped_leaves_its_token_to_those_who_wait(server: Server) -> None:
    authorizer, asking, call = made(server), threading.Event(), Call()

    def blocked() -> None:
        if not asking.is_set():
            asking.set()
            while True:
                call.wait(10)

    server.before = blocked
    work = [
        lambda: authorizer.challenged(call, "a/b", [PULL], bearer(), None),
        lambda: asking.wait(5) and authorizer.challenged(CALL, "a/b", [PULL], bearer(), None),
        lambda: (asking.wait(5), time.sleep(0.2), call.stop(RegistryError("a worker failed"))),
    ]
    stopped, other, _ = in_threads(3, lambda number: work[number]())
    assert str(stopped) == "a worker failed" and type(stopped) is RegistryError
    assert other == "Bearer token-1"


def test_one_who_waits_for_a_token_hears_that_its_call_is_stopped(server: Server) -> None:
    authorizer, asking, done, call = made(server), threading.Event(), threading.Event(), Call()
    server.before = lambda: asking.set() or done.wait(10)
    work = [
        lambda: authorizer.challenged(CALL, "a/b", [PULL], bearer(), None),
        lambda: asking.wait(5) and authorizer.challenged(call, "a/b", [PULL], bearer(), None),
        lambda: (asking.wait(5), time.sleep(0.2), call.stop(KeyboardInterrupt())),
    ]

    def finish(number: int) -> Any:
        try:
            return work[number]()
        finally:
            if number == 1:
                done.set()

    first, stopped, _ = in_threads(3, finish)
    assert first == "Bearer token-1" and isinstance(stopped, KeyboardInterrupt)


# ---- credentials of files and helpers ----


def test_credentials_are_looked_up_once_per_repository_and_helpers_once_per_host(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "docker-credential-tell"
    program.write_text(f"#!/bin/sh\ncat >>{tmp_path}/asked; echo '{{\"Username\":\"user\",\"Secret\":\"{PASSWORD}\"}}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"credsStore": "tell"}))
    server.base = challenge("Basic")
    authorizer = made(server, auth=None)
    assert not (tmp_path / "asked").exists()
    in_threads(4, lambda number: authorizer.challenged(CALL, f"repository-{number}", [], bearer(), None))
    for _ in range(2):
        authorizer.challenged(CALL, "a/b", [PULL], bearer(), None)
        authorizer.challenged(CALL, "c", [PUSH], bearer(), None)
    assert (tmp_path / "asked").read_text() == "registry.example.com"
    assert {asked.basic for asked in server.asked} == {f"user:{PASSWORD}"}


def test_a_helper_that_failed_is_not_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "docker-credential-tell"
    program.write_text(f"#!/bin/sh\necho x >>{tmp_path}/asked; echo locked; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"credsStore": "tell"}))
    authorizer = made(server, auth=None)
    for repository in ("a", "a", "b"):
        with pytest.raises(AuthenticationError, match=r"docker-credential-tell .*: locked$"):
            authorizer.challenged(CALL, repository, [], bearer(), None)
    assert (tmp_path / "asked").read_text() == "x\n" and server.asked == []


def test_a_call_that_is_stopped_is_no_failure_of_a_helper(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "docker-credential-tell"
    program.write_text(f"#!/bin/sh\nif ! [ -e {tmp_path}/asked ]; then touch {tmp_path}/asked; exec sleep 1000; fi; echo '{{\"Username\":\"u\",\"Secret\":\"s\"}}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"credsStore": "tell"}))
    authorizer, call = made(server, auth=None), Call()
    threading.Timer(0.5, lambda: call.stop(RegistryError("a worker failed"))).start()
    with pytest.raises(RegistryError, match="a worker failed"):
        authorizer.challenged(call, "a", [], bearer(), None)
    assert authorizer.challenged(CALL, "a", [], bearer(), None) == "Bearer token-1"


def test_a_malformed_file_is_an_error_only_once_a_challenge_comes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", "{")
    authorizer = made(server, auth=None)
    assert authorizer.header("a/b", [PULL]) is None
    for _ in range(2):
        with pytest.raises(AuthenticationError, match="DOCKER_AUTH_CONFIG"):
            authorizer.challenged(CALL, "a/b", [PULL], bearer(), None)


def test_each_repository_has_its_own_credentials(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"registry.example.com/a": {"username": "a"}, "registry.example.com": {"username": "all"}}
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": entries}))
    authorizer = made(server, auth=None)
    for repository, user in (("a/b", "a"), ("c", "all")):
        authorizer.challenged(CALL, repository, [], bearer(""), None)
        assert server.asked[-1].basic == f"{user}:"
    sent = authorizer.challenged(CALL, "a/b", [], challenge("Basic"), None)
    assert sent == authorizer.header("a/b") and base64.b64decode(str(sent)[6:]) == b"a:" and authorizer.header("c") == "Bearer token-2"


NONE = "no credentials for registry.example.com were found (docker login, podman login, or auth=)"


@pytest.mark.parametrize(("auth", "entry", "offered", "why"), [
    (None, {}, bearer(), NONE), (None, {}, challenge("Basic"), NONE), (None, {}, challenge("Negotiate"), "it offers no way to authenticate that is known here"),
    (("user", PASSWORD), {}, bearer(), "the user and password given were not accepted"), (("user", PASSWORD), {}, challenge("Basic"), "the user and password given were not accepted"),
    ("my-own", {}, bearer(), "the token given was not accepted"),
    (None, {"username": "user", "password": PASSWORD}, bearer(), "the credentials of DOCKER_AUTH_CONFIG were not accepted"),
    (None, {"username": "user", "password": PASSWORD}, challenge("Basic"), "the credentials of DOCKER_AUTH_CONFIG were not accepted"),
    (None, {"registrytoken": "for-the-registry"}, bearer(), "the token of DOCKER_AUTH_CONFIG was not accepted"),
    (None, {"identitytoken": "identity"}, bearer(), "the identity token of DOCKER_AUTH_CONFIG was not accepted"),
    (None, {"identitytoken": "identity"}, challenge("Basic"), "it asks for a password, and there is only the identity token of DOCKER_AUTH_CONFIG"),
])  # fmt: skip
def test_a_401_that_stays_says_whose_credentials_were_not_accepted(server: Server, monkeypatch: pytest.MonkeyPatch, auth: Any, entry: dict[str, str], offered: Answer, why: str) -> None:
    with_file(monkeypatch, entry)
    server.base = challenge()
    authorizer = made(server, auth=auth)
    sent: Any = authorizer.header("a/b", [PULL])
    for _ in range(3):
        sent = authorizer.challenged(CALL, "a/b", [PULL], offered, sent)
        if isinstance(sent, Stays):
            break
    assert sent == Stays(why)


@pytest.mark.parametrize(("entry", "why"), [
    ({}, NONE), ({"username": "user", "password": PASSWORD}, "the credentials of DOCKER_AUTH_CONFIG were not accepted"), ({"identitytoken": "identity"}, "the identity token of DOCKER_AUTH_CONFIG was not accepted"),
])  # fmt: skip
def test_a_401_of_a_token_server_says_it_too(server: Server, monkeypatch: pytest.MonkeyPatch, entry: dict[str, str], why: str) -> None:
    with_file(monkeypatch, entry)
    server.answers = [(401, {"errors": [{"code": "DENIED", "message": "no"}]})]
    with pytest.raises(AuthenticationError, match=re.escape(f"{REALM}: 401 DENIED: no: {why}") + "$"):
        made(server, auth=None).challenged(CALL, "a/b", [PULL], bearer(), None)


def test_what_a_server_repeats_of_our_secrets_is_hidden(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    basic = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    server.answers = [(200, {"token": "hush-token"}), (403, {"errors": [{"code": "DENIED", "message": f"not {PASSWORD} as {basic}"}]})]
    authorizer = made(server)
    assert authorizer.hide(f"no {PASSWORD}, no {basic}, but {basic}x") == "no ***, no ***, but ***x"
    authorizer.challenged(CALL, "a/b", [PULL], bearer(), None)
    assert authorizer.hide("Bearer hush-token") == "Bearer ***"
    with pytest.raises(AuthenticationError, match=r"403 DENIED: not \*\*\* as \*\*\*$"):
        authorizer.challenged(CALL, "c", ["repository:c:pull"], bearer("repository:c:pull"), None)
    assert made(server, auth="given").hide("my given") == "my ***"
    with_file(monkeypatch, {"identitytoken": "identity"})
    authorizer = made(server, auth=None)
    server.answers = [(200, {"token": "t", "refresh_token": "renewed"})]
    authorizer.challenged(CALL, "a/b", [PULL], bearer(), None)
    assert authorizer.hide("identity or renewed") == "*** or ***"


def test_no_secret_is_in_a_repr(server: Server) -> None:
    authorizer = made(server)
    sent = authorizer.challenged(CALL, "a/b", [PULL], bearer(), None)
    assert repr(sent) == "<Authorization>" and PASSWORD not in repr(vars(authorizer)) and "token-1" not in repr(vars(authorizer))


def test_a_forked_child_waits_for_no_thread_of_its_parent(server: Server) -> None:
    authorizer, asking, done = made(server), threading.Event(), threading.Event()
    server.before = lambda: asking.set() or done.wait(30)
    thread = threading.Thread(target=lambda: authorizer.challenged(CALL, "a/b", [PULL], bearer(), None))
    thread.start()
    assert asking.wait(10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)          # of forks with threads, from 3.12 on
        pid = os.fork()
    if pid == 0:
        try:
            done.set()
            server._lock = threading.Lock()
            os._exit(0 if authorizer.challenged(CALL, "a/b", [PULL], bearer(), None) == "Bearer token-1" else 1)
        finally:
            os._exit(2)
    try:
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        done.set()
        thread.join(10)


# ---- redirects of a token server ----


def redirect(location: str, status: int = 302) -> tuple[int, Any]:
    return status, Said(location)


class Said(NamedTuple):
    location: str


class Redirecting(Server):
    """A token server whose answers may have a Location."""

    def __call__(self, call: Any, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        if self.answers and isinstance(self.answers[0][1], Said):
            status, said = self.answers.pop(0)
            self.answers.insert(0, (status, b""))
            return super().__call__(call, method, url, headers, body)._replace(headers=Headers(("Location", said.location)))
        return super().__call__(call, method, url, headers, body)


@pytest.mark.parametrize(("location", "asked", "is_known"), [
    ("/other?x=1", "https://auth.example.com/other?x=1", True), ("https://AUTH.example.com:443/other", "https://auth.example.com/other", True),
    ("https://elsewhere.example.com/t", "https://elsewhere.example.com/t", False), ("https://auth.example.com:444/t", "https://auth.example.com:444/t", False),
])  # fmt: skip
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_and_the_password_stays_at_the_origin(location: str, asked: str, is_known: bool, status: int) -> None:
    server = Redirecting()
    server.answers = [redirect(location, status)]
    assert made(server).challenged(CALL, "a/b", [PULL], bearer(), None) == "Bearer token-2"
    assert server.asked[1].url.replace(":443/", "/") == asked and ("Authorization" in server.asked[1].headers) is is_known


def test_a_password_does_not_come_back_to_its_origin() -> None:
    server = Redirecting()
    server.answers = [redirect("https://elsewhere.example.com/t"), redirect("https://auth.example.com/back")]
    made(server).challenged(CALL, "a/b", [PULL], bearer(), None)
    assert ["Authorization" in asked.headers for asked in server.asked] == [True, False, False]


@pytest.mark.parametrize(("location", "said"), [
    ("http://auth.example.com/t", "TLS"), ("https://169.254.169.254/latest", "169.254.169.254"), ("https://127.0.0.1/t", "127.0.0.1"), ("file:///etc/passwd", "file"),
    ("https://user:pw@auth.example.com/t", "auth.example.com"), (REALM, "circle"),
])  # fmt: skip
def test_redirects_that_are_refused(location: str, said: str) -> None:
    server = Redirecting()
    server.answers = [redirect(location)]
    with pytest.raises(AuthenticationError, match=said) as raised:
        made(server).challenged(CALL, "a/b", [], challenge(f'Bearer realm="{REALM}"'), None)
    assert len(server.asked) == 1 and "pw" not in str(raised.value)


def test_redirects_have_an_end() -> None:
    server = Redirecting()
    server.answers = [redirect(f"/{number}") for number in range(20)]
    with pytest.raises(AuthenticationError, match="more than 10 times"):
        made(server).challenged(CALL, "a/b", [], bearer(), None)
    assert len(server.asked) == 11


def test_a_refresh_token_is_not_redirected(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Redirecting()
    with_file(monkeypatch, {"identitytoken": "secret-id"})
    server.answers = [redirect("/other", 307)]
    with pytest.raises(AuthenticationError, match="307"):
        made(server, auth=None).challenged(CALL, "a/b", [PULL], bearer(), None)
    assert len(server.asked) == 1
