"""How a token server is asked: its answers, where it may be, identity tokens, redirects."""

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from layerstore.errors import AuthenticationError, RegistryError
from layerstore.registry.tokens import Stays

from .asked import (
    CALL,
    PULL,
    PUSH,
    REALM,
    Answer,
    Headers,
    Server,
    bearer,
    challenge,
    made,
    with_file,
)

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
