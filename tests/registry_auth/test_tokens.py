"""What is sent as authorization: after which challenge, for which scopes, how often, and for how long."""

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from layerstore.registry import tokens
from layerstore.registry.tokens import Stays

from .asked import (
    CALL,
    PASSWORD,
    PULL,
    PUSH,
    REALM,
    Answer,
    Server,
    bearer,
    challenge,
    made,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr(tokens.time, "monotonic", lambda: now[0])
    yield now


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
