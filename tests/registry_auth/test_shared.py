"""Tokens and credentials are shared: by threads, by repositories, not by a forked child; and none is told."""

import base64
import json
import os
import re
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from layerstore.errors import AuthenticationError, RegistryError
from layerstore.registry.calls import Call
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
    in_threads,
    made,
    with_file,
)

# ---- threads ----


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
