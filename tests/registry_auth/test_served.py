"""Authentication over sockets: a registry and its token server, helpers, files, threads; and no secret where one can be read."""

import base64
import copy
import json
import logging
import os
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layerstore.errors import AuthenticationError, RegistryError
from layerstore.registry.registry import Registry

from .conftest import Request, Said, Serve, Served

USER, PASSWORD = "user", "pass word:wörd"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


class Guarded:
    """A registry that gives tags to those who have a token, and the token server that it names.

    accepts   the tokens that it takes; None: any that was given
    """

    def __init__(self, serve: Serve) -> None:
        self.given: list[str] = []
        self.accepts: Callable[[str], bool] = lambda token: token in self.given
        self.more: dict[str, Any] = {"expires_in": 300}
        self.users = {f"Basic {BASIC}"}
        self.delay = 0.0
        self.auth = serve(self._give)
        self.registry = serve(self._answer)

    def _give(self, request: Request) -> Said:
        time.sleep(self.delay)
        if request.method == "GET" and request.authorization not in self.users:
            return Said(401, {"errors": [{"code": "UNAUTHORIZED", "message": f"wrong: {request.authorization}"}]})
        self.given.append(f"given-token-{len(self.given) + 1}")
        return Said(200, {"token": self.given[-1], **self.more})

    def _answer(self, request: Request) -> Said:
        if self.accepts((request.authorization or "").removeprefix("Bearer ")):
            return Said(200, {"tags": ["1"]})
        scope = f"repository:{request.path.removeprefix('/v2/').removesuffix('/tags/list')}:pull"
        challenge = f'Bearer realm="{self.auth.url}/token?own=1",service="test",scope="{scope}"'
        body = {"errors": [{"code": "UNAUTHORIZED", "message": f"not with {request.authorization}"}]}
        return Said(401, body, (("WWW-Authenticate", challenge),))

    def connect(self, **more: Any) -> Registry:
        return Registry(self.registry.url, auth=more.pop("auth", (USER, PASSWORD)), retries=0, **more)


@pytest.fixture
def guarded(serve: Serve) -> Guarded:
    return Guarded(serve)


def test_a_token_is_got_once_and_used(guarded: Guarded) -> None:
    with guarded.connect() as registry:
        assert registry.tags("a") == registry.tags("a") == ["1"]
    asked, = guarded.auth.asked
    assert asked.query == {"own": ["1"], "service": ["test"], "scope": ["repository:a:pull"]} and asked.path == "/token"
    assert [request.authorization for request in guarded.registry.asked] == [None, "Bearer given-token-1", "Bearer given-token-1"]
    assert guarded.registry.connections == guarded.auth.connections == 1
    assert "Cookie" not in asked.headers and asked.headers["User-Agent"].startswith("layerstore/")


def test_a_token_that_ended_early_is_replaced(guarded: Guarded) -> None:
    with guarded.connect() as registry:
        registry.tags("a")
        guarded.given[0] = "-"
        assert registry.tags("a") == ["1"]
    assert [request.authorization for request in guarded.registry.asked[2:]] == ["Bearer given-token-1", "Bearer given-token-2"]


def test_a_401_that_stays_is_an_error(guarded: Guarded) -> None:
    guarded.accepts = lambda _: False
    with guarded.connect() as registry, pytest.raises(AuthenticationError, match=r"GET .*/v2/a/tags/list: 401 UNAUTHORIZED: not with Bearer \*\*\*: the user and password given were not accepted$") as raised:
        registry.tags("a")
    err = raised.value
    assert (err.status, err.code, err.host) == (401, "UNAUTHORIZED", guarded.registry.host) and len(guarded.registry.asked) == 2 and len(guarded.auth.asked) == 1
    for twin in (copy.copy(err), pickle.loads(pickle.dumps(err))):
        assert (str(twin), twin.status, twin.code, twin.host) == (str(err), err.status, err.code, err.host)


def test_a_token_server_that_does_not_know_the_user(guarded: Guarded) -> None:
    with guarded.connect(auth=(USER, "wrong-password")) as registry, pytest.raises(AuthenticationError, match=r"GET .*/token: 401 UNAUTHORIZED: wrong: Basic \*\*\*: the user and password given were not accepted$") as raised:
        registry.tags("a")
    assert (raised.value.status, raised.value.host) == (401, guarded.auth.host)


def test_basic(serve: Serve) -> None:
    def answer(request: Request) -> Said:
        return Said(200, {"tags": ["1"]}) if request.authorization == f"Basic {BASIC}" else Said(401, b"", (("WWW-Authenticate", 'Basic realm="x"'),))

    server = serve(answer)
    with Registry(server.url, auth=(USER, PASSWORD)) as registry:
        assert registry.tags("a") == registry.tags("b") == ["1"]
    assert [request.authorization for request in server.asked] == [None, f"Basic {BASIC}", f"Basic {BASIC}"]
    with Registry(server.url, auth=(USER, "wrong")) as registry, pytest.raises(AuthenticationError):
        registry.tags("a")
    assert len(server.asked) == 5
    with Registry(server.url) as registry, pytest.raises(AuthenticationError, match="no credentials for 127"):
        registry.tags("a")
    assert len(server.asked) == 6


@pytest.mark.parametrize("auth", ["", "a b", "a\r\nX: y", "tokén", ("a:b", "c"), ("a",), ("a", "b", "c"), ("\ud800", "b"), ("a", "hush\udfff")])
def test_what_no_header_can_have_is_refused_at_once(auth: Any) -> None:
    with pytest.raises(ValueError) as raised:
        Registry("localhost:1", auth=auth)
    assert "hush" not in told_of(raised.value)


def test_bytes_that_are_no_text_are_a_password_too(serve: Serve) -> None:
    server = serve(lambda request: Said(200, {"tags": []}) if request.authorization else Said(401, b"", (("WWW-Authenticate", "Basic"),)))
    with Registry(server.url, auth=("user", "\udcff")) as registry:
        registry.tags("a")
    assert base64.b64decode(str(server.asked[1].authorization)[6:]) == b"user:\xff"


def test_a_token_of_the_caller(guarded: Guarded) -> None:
    guarded.given = ["my-own"]
    with guarded.connect(auth="my-own") as registry:
        assert registry.tags("a") == ["1"] and len(guarded.registry.asked) == 1
        guarded.given = []
        with pytest.raises(AuthenticationError, match=r"not with Bearer \*\*\*: the token given was not accepted$"):
            registry.tags("a")
    assert len(guarded.registry.asked) == 2 and guarded.auth.asked == []


def test_a_403_stays(serve: Serve) -> None:
    server = serve(lambda _: Said(403, {"errors": [{"code": "DENIED", "message": "no"}]}, (("WWW-Authenticate", "Basic"),)))
    with Registry(server.url, auth=(USER, PASSWORD)) as registry, pytest.raises(AuthenticationError, match="403 DENIED: no") as raised:
        registry.tags("a")
    assert raised.value.status == 403 and len(server.asked) == 1


def test_an_identity_token_of_a_file(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded.more["refresh_token"] = "second-identity"
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {guarded.registry.host: {"identitytoken": "first-identity"}}}))
    with guarded.connect(auth=None) as registry:
        assert registry.tags("a") == registry.tags("b") == ["1"]
    first, second = guarded.auth.asked
    assert (first.method, first.path, first.query) == ("POST", "/token", {"own": ["1"]})
    assert b"refresh_token=first-identity" in first.body and b"scope=repository%3Aa%3Apull" in first.body and b"refresh_token=second-identity" in second.body


def test_an_answer_of_a_token_server_has_1_mib_at_most(guarded: Guarded) -> None:
    guarded.more["x"] = "y" * (1 << 20)
    with guarded.connect() as registry, pytest.raises(AuthenticationError, match="more than 1048576 bytes"):
        registry.tags("a")


def test_a_token_server_that_hangs_up(guarded: Guarded) -> None:
    guarded.auth.close()
    with guarded.connect() as registry, pytest.raises(AuthenticationError, match="/token: ") as raised:
        registry.tags("a")
    assert (raised.value.status, raised.value.host) == (0, guarded.auth.host)
    guarded.auth = Served(guarded._give)
    try:
        with guarded.connect() as registry:
            assert registry.tags("a") == ["1"]
    finally:
        guarded.auth.close()


def test_a_token_server_that_is_busy_is_asked_again(guarded: Guarded) -> None:
    give, guarded.auth.answer = guarded.auth.answer, lambda _: Said(503, b"")
    with Registry(guarded.registry.url, auth=(USER, PASSWORD), retries=1) as registry:
        with pytest.raises(AuthenticationError, match=r"503 .*\(after 2 attempts\)"):
            registry.tags("a")
        assert len(guarded.auth.asked) == 2
        guarded.auth.answer = give
        assert registry.tags("a") == ["1"]


def test_threads_share_one_token(guarded: Guarded) -> None:
    guarded.delay = 0.3
    together, found = threading.Barrier(12), []
    with guarded.connect() as registry:

        def work() -> None:
            together.wait()
            found.extend(registry.tags("a"))

        threads = [threading.Thread(target=work) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert found == ["1"] * 12 and len(guarded.auth.asked) == 1


def test_a_401_behind_a_redirect_to_another_host_is_an_error(guarded: Guarded, serve: Serve) -> None:
    door = serve(lambda request: Said(307, b"", (("Location", f"{guarded.registry.url}{request.path}"),)))
    with Registry(door.url, auth=(USER, PASSWORD)) as registry, pytest.raises(AuthenticationError, match="401"):
        registry.tags("a")
    assert guarded.auth.asked == [] and [request.authorization for request in guarded.registry.asked] == [None]


def test_a_token_of_the_caller_stays_at_its_host(serve: Serve) -> None:
    other = serve(lambda request: Said(200, {"tags": ["1"]}))
    door = serve(lambda request: Said(307, b"", (("Location", f"{other.url}{request.path}"),)))
    with Registry(door.url, auth="my-own") as registry:
        assert registry.tags("a") == ["1"]
    assert [request.authorization for request in door.asked + other.asked] == ["Bearer my-own", None]


def test_the_base_says_what_a_401_leaves_out(guarded: Guarded) -> None:
    answer = guarded.registry.answer
    guarded.registry.answer = lambda request: answer(request)._replace(headers=()) if request.path != "/v2/" else answer(request._replace(path="/v2/x/tags/list"))
    with guarded.connect() as registry:
        assert registry.tags("a") == ["1"]
    assert [request.path for request in guarded.registry.asked] == ["/v2/a/tags/list", "/v2/", "/v2/a/tags/list"]
    guarded.registry.answer = lambda request: answer(request)._replace(headers=())
    with guarded.connect() as registry, pytest.raises(AuthenticationError, match="/v2/b/tags/list: 401"):
        registry.tags("b")
    assert [request.path for request in guarded.registry.asked[3:]] == ["/v2/b/tags/list", "/v2/"]


def test_a_token_of_a_few_seconds_serves_each_request_it_was_got_for(guarded: Guarded) -> None:
    guarded.more["expires_in"] = 5
    with guarded.connect() as registry:
        for _ in range(3):
            assert registry.tags("a") == ["1"]
    assert [request.authorization for request in guarded.registry.asked] == [None, *(f"Bearer given-token-{number}" for number in (1, 2, 3))]


def test_a_refused_realm_is_an_authentication_error(guarded: Guarded) -> None:
    for realm in ("http://169.254.169.254/token", "ftp://x/token", "/token", "http://user:realm-pw@127.0.0.1/token"):
        guarded.registry.answer = lambda request, realm=realm: Said(401, b"", (("WWW-Authenticate", f'Bearer realm="{realm}"'),))  # type: ignore[misc]
        with guarded.connect() as registry, pytest.raises(AuthenticationError, match="token server is refused") as raised:
            registry.tags("a")
        assert "realm-pw" not in told_of(raised.value) and (raised.value.status, raised.value.host) == (401, guarded.registry.host)


# ---- secrets ----


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """All that any logger says, at its most talkative."""
    kept: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record)

    handler, root = Keep(level=1), logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("", "layerstore", "urllib3", "urllib3.connectionpool", "http.client")}
    for name in levels:
        logging.getLogger(name).setLevel(1)
    root.addHandler(handler)
    for name in levels:
        logging.getLogger(name).debug("is heard")
    assert len(kept) == len(levels)
    try:
        yield kept
    finally:
        root.removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def told_of(err: BaseException) -> str:
    """All that an error tells, and those that it came from."""
    texts, seen = [], set()
    waiting: list[BaseException | None] = [err]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        texts += ["".join(traceback.format_exception(each)), repr(each), repr(vars(each)), repr(each.args), repr(getattr(each, "__notes__", ""))]
        waiting += [each.__cause__, each.__context__]
    return "".join(texts)


def shown(records: list[logging.LogRecord]) -> str:
    return "".join(record.getMessage() + repr(vars(record)) for record in records)


SECRETS = [PASSWORD, BASIC, "given-token", "first-identity", "second-identity", "signature=abc"]


@pytest.mark.parametrize("how", ["password", "wrong password", "identity token", "token", "helper", "refused", "redirected"])
def test_no_secret_is_told(guarded: Guarded, monkeypatch: pytest.MonkeyPatch, records: list[logging.LogRecord], tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str) -> None:
    auth: Any = (USER, PASSWORD)
    if how == "wrong password":
        guarded.users = set()
    if how in ("identity token", "helper"):
        auth = None
    if how == "identity token":
        guarded.more["refresh_token"] = "second-identity"
        monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {guarded.registry.host: {"identitytoken": "first-identity"}}}))
    if how == "helper":
        program = tmp_path / "docker-credential-tell"
        program.write_text(f"#!/bin/sh\ntr '\\0' ' ' </proc/$$/cmdline >{tmp_path}/argv; tr '\\0' '\\n' </proc/$$/environ >{tmp_path}/environ; echo '{json.dumps({'Username': USER, 'Secret': PASSWORD})}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"credsStore": "tell"}))
    if how == "token":
        guarded.given, auth = ["given-token-own"], "given-token-own"
    if how == "redirected":
        give = guarded.auth.answer
        guarded.auth.answer = lambda request: give(request) if request.path != "/token" else Said(307, b"", (("Location", "/real?signature=abc"),))
    errors: list[BaseException] = []
    with guarded.connect(auth=auth) as registry:
        for accepts in (guarded.accepts, lambda _: False):
            guarded.accepts = accepts
            guarded.given = [] if how == "refused" else guarded.given
            try:
                registry.tags("a")
            except RegistryError as err:
                errors.append(err)
        with pytest.raises(RegistryError) as raised:
            registry.tags("b")
        errors.append(raised.value)
        told = repr(registry) + repr(registry.session) + "".join(map(told_of, errors)) + shown(records) + "".join(capfd.readouterr())
    if how == "helper":
        assert (tmp_path / "argv").exists()
        told += (tmp_path / "argv").read_text() + (tmp_path / "environ").read_text()
    assert errors
    for secret in SECRETS:
        assert secret not in told, secret


def test_a_warning_that_repeats_a_secret_does_not_tell_it(guarded: Guarded, records: list[logging.LogRecord]) -> None:
    answer = guarded.registry.answer
    guarded.registry.answer = lambda request: answer(request)._replace(headers=(("Warning", f'299 - "saw {request.authorization}"'), *answer(request).headers))
    with guarded.connect() as registry:
        registry.tags("a")
    assert "saw Bearer ***" in shown(records) and "given-token" not in shown(records)
