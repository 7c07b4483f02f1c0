"""Token servers: what they are asked, what they may answer, how long a token is used, and where a realm may be."""

import logging
import time
from urllib.parse import parse_qs

import pytest
from guards import PASSWORD, USER, BearerGuard, Gate, Proxy, Tokens, basic
from imagekit import BASE, TOP, encode
from scripted import HANG_UP, STALL, Answer, Server
from shelf import Shelf
from stored import at_once

from layerstore import AuthenticationError, Registry, RegistryError

AUTH = (USER, PASSWORD)


@pytest.fixture
def tokens(serve):
    return serve(Tokens(users={USER: PASSWORD}))


@pytest.fixture
def guarded(shelf, tokens):
    shelf.put([BASE, TOP])
    shelf.guard = BearerGuard(tokens)
    return shelf


def scopes(request):
    return [value for key, value in request.fields if key == "scope"]


# ---- what is asked ----
def test_what_a_pull_asks(guarded, tokens, pull):
    pull(f"{guarded.host}/app:1", auth=AUTH)
    [asked] = tokens.requests
    assert asked.method == "GET" and asked.path == "/token"
    assert asked.fields == [("service", "registry.example.com"), ("scope", "repository:app:pull")]
    assert asked.header("Authorization") == basic()
    assert "account" not in asked.query
    assert guarded.requests[0].header("Authorization") == "" and len({request.header("Authorization") for request in guarded.requests[1:]}) == 1


def test_the_realms_own_query_is_kept(guarded, tokens, connect):
    guarded.guard = lambda request: None if request.header("Authorization") else Answer(401, {"WWW-Authenticate": f'Bearer realm="{tokens.realm}?a=b&c=%2F",service="s&t=u v"'})
    connect(auth=AUTH).tags("app")
    assert tokens.requests[0].target.startswith("/token?a=b&c=%2F&service=s%26t%3Du")
    assert tokens.requests[0].field("service") == "s&t=u v"


def test_without_a_service(guarded, tokens, connect):
    guarded.guard = lambda request: None if request.header("Authorization") else Answer(401, {"WWW-Authenticate": f'Bearer realm="{tokens.realm}"'})
    connect(auth=AUTH).tags("app")
    assert scopes(tokens.requests[0]) == ["repository:app:pull"]


def test_what_a_push_asks(guarded, tokens, pull, images, connect):
    image = pull(f"{guarded.host}/app:1", auth=AUTH)
    tokens.requests.clear()
    guarded.mounts = False
    images.push(image, f"{guarded.host}/new:1", registry=connect(auth=AUTH), force_compression=True)
    asked = [scopes(request) for request in tokens.requests]
    assert all("repository:new:pull,push" in each for each in asked)
    assert {scope for each in asked for scope in each} <= {"repository:new:pull,push", "repository:new:pull", "repository:app:pull"}


def test_what_a_mount_asks(guarded, tokens, pull, images, connect):
    image = pull(f"{guarded.host}/app:1", auth=AUTH)
    tokens.requests.clear()
    images.push(image, f"{guarded.host}/new:1", registry=connect(auth=AUTH))
    assert ["repository:new:pull,push", "repository:app:pull"] in [scopes(request) for request in tokens.requests]
    assert guarded.manifests["new"]["1"]


def test_scopes_of_the_challenge_and_ours(guarded, tokens, connect):
    guard = BearerGuard(tokens, scoped=False)

    def challenge(request):
        return Answer(401, {"WWW-Authenticate": f'Bearer realm="{tokens.realm}",service="s",scope="repository:app:pull registry:catalog:*"'}) if guard(request) else None

    guarded.guard = challenge
    connect(auth=AUTH).tags("app")
    asked = [scope for each in scopes(tokens.requests[0]) for scope in each.split()]
    assert sorted(asked) == ["registry:catalog:*", "repository:app:pull"]


# ---- what it answers ----
@pytest.mark.parametrize("field", ["token", "access_token"])
def test_either_name_of_the_token(guarded, tokens, connect, field):
    tokens.field = field
    assert connect(auth=AUTH).tags("app") == ["1"]


BAD_TOKENS = ["", " ", "a b", "a\r\nX-Evil: y", "a\n", "tök", "\x00", 5, None, True, ["a"], {"a": "b"}, "\x7f"]


@pytest.mark.parametrize("token", BAD_TOKENS, ids=repr)
def test_tokens_that_are_none(guarded, tokens, connect, token):
    tokens.always("GET", "/token", Answer(200, {}, encode({"token": token})))
    with pytest.raises(AuthenticationError):
        connect(auth=AUTH, retries=1).tags("app")
    assert len(guarded.requests) == 1 and not any(request.header("X-Evil") for request in guarded.requests)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"token"', b"5", b"{}", b"\xff", b"[" * 90_000, b'{"token"', b'{"access_tokens":"x"}'], ids=lambda body: repr(body[:12]))
def test_bodies_that_are_none(guarded, tokens, connect, body):
    tokens.always("GET", "/token", Answer(200, {}, body))
    with pytest.raises(AuthenticationError):
        connect(auth=AUTH, retries=1).tags("app")


def test_a_token_without_end(guarded, tokens, connect):
    count = []

    def endless():
        yield b'{"token":"'
        while True:
            count.append(1)
            yield b"x" * 65536

    tokens.always("GET", "/token", lambda _: Answer(200, {}, endless(), None))
    with pytest.raises(AuthenticationError):
        connect(auth=AUTH, retries=2).tags("app")
    assert len(count) < 200 and len(tokens.requests) == 1
    tokens.forget()
    tokens.always("GET", "/token", Answer(200, {}, [b" ", 20.0], (1 << 20) + 1))
    began = time.monotonic()
    with pytest.raises(AuthenticationError):
        connect(auth=AUTH, retries=2).tags("app")
    assert time.monotonic() - began < 2


def test_a_big_token_is_taken(guarded, tokens, connect):
    tokens.always("GET", "/token", Answer(200, {}, encode({"token": "t" * 12_000, "expires_in": 100})))
    guarded.guard = lambda request: None if request.header("Authorization") == "Bearer " + "t" * 12_000 else Answer(401, {"WWW-Authenticate": f'Bearer realm="{tokens.realm}"'})
    assert connect(auth=AUTH).tags("app") == ["1"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 418])
def test_a_token_server_that_refuses(guarded, tokens, connect, status):
    tokens.always("GET", "/token", Answer(status, {}, encode({"details": "bad", "errors": [{"code": "DENIED", "message": "no"}]})))
    with pytest.raises(AuthenticationError) as caught:
        connect(auth=AUTH, retries=2).tags("app")
    assert len(tokens.requests) == 1 and len(guarded.requests) == 1
    assert PASSWORD not in str(caught.value) and str(status) in str(caught.value)


def test_a_token_server_that_is_tired(guarded, tokens, connect):
    tokens.on("GET", "/token", Answer(503), HANG_UP)
    assert connect(auth=AUTH, retries=2).tags("app") == ["1"]
    assert len(tokens.requests) == 3


def test_a_token_server_that_stalls(guarded, tokens, connect, within):
    tokens.always("GET", "/token", Answer(raw=[STALL]))
    with within(3), pytest.raises(RegistryError):
        connect(auth=AUTH, timeout=0.7).tags("app")


# ---- how long it is used ----
@pytest.mark.parametrize("expires", ["300", "soon", [], {}, True, 1e400], ids=repr)
def test_a_life_of_another_kind(guarded, tokens, connect, expires):
    tokens.expires_in = expires
    with pytest.raises(AuthenticationError):
        connect(auth=AUTH).tags("app")


@pytest.mark.parametrize("expires", [None, 300, 1e9, 0, -5, 9, 10**30], ids=repr)
def test_lives(guarded, tokens, connect, expires):
    """Always used for the request that it was got for; kept where it lives long."""
    tokens.expires_in = expires
    registry = connect(auth=AUTH)
    for _ in range(2):
        assert registry.tags("app") == ["1"]
    if expires in (300, None):
        assert len(tokens.requests) == 1
    if expires in (0, -5, 9):
        assert len(tokens.requests) == 2


def test_a_token_is_renewed_ten_seconds_before_its_end(guarded, tokens, connect):
    tokens.expires_in = 12
    registry = connect(auth=AUTH)
    registry.tags("app")
    registry.tags("app")
    assert len(tokens.requests) == 1
    time.sleep(2.2)
    registry.tags("app")
    assert len(tokens.requests) == 2
    assert len(guarded.requests) == 4, "the old token was not even tried"


def test_a_token_that_got_401_is_dropped(guarded, tokens, connect):
    registry = connect(auth=AUTH)
    registry.tags("app")
    guarded.guard.dropped |= set(tokens.granted)
    assert registry.tags("app") == ["1"]
    assert len(tokens.requests) == 2


def test_a_new_token_that_gets_401_too_is_an_error(guarded, tokens, connect):
    challenge = {"WWW-Authenticate": f'Bearer realm="{tokens.realm}",service="s",scope="repository:app:pull",error="invalid_token"'}
    guarded.guard = lambda _: Answer(401, challenge)
    with pytest.raises(AuthenticationError) as caught:
        connect(auth=AUTH, retries=3).tags("app")
    assert caught.value.status == 401
    assert len(guarded.requests) <= 3 and len(tokens.requests) <= 2


def test_insufficient_scope_is_asked_once_more_with_the_challenges(guarded, tokens, connect):
    def guard(request):
        token = request.header("Authorization").removeprefix("Bearer ")
        if "repository:app:metadata" in tokens.granted.get(token, ()):
            return None
        if token in tokens.granted:
            return Answer(401, {"WWW-Authenticate": f'Bearer realm="{tokens.realm}",service="s",scope="repository:app:metadata",error="insufficient_scope"'})
        return Answer(401, {"WWW-Authenticate": f'Bearer realm="{tokens.realm}",service="s"'})

    guarded.guard = guard
    assert connect(auth=AUTH).tags("app") == ["1"]
    assert len(tokens.requests) == 2 and "repository:app:metadata" in scopes(tokens.requests[1])


def test_tokens_are_kept_by_repository(guarded, tokens, connect):
    guarded.put([BASE], name="other")
    registry = connect(auth=AUTH)
    for name in ("app", "other", "app", "other"):
        assert registry.tags(name) == ["1"]
    assert [scopes(request) for request in tokens.requests] == [["repository:app:pull"], ["repository:other:pull"]]


def test_threads_wait_for_one_request(guarded, tokens, connect):
    gate = Gate(2, 0.5)
    tokens.always("GET", "/token", gate)
    registry = connect(auth=AUTH)
    assert at_once(*[lambda: registry.tags("app")] * 6) == [["1"]] * 6
    assert len(tokens.requests) == 1


def test_a_request_for_a_token_that_fails_fails_for_all_that_wait(guarded, tokens, connect):
    tokens.always("GET", "/token", Answer(200, {}, [0.3, b"{}"], 2))
    registry = connect(auth=AUTH)

    def one():
        with pytest.raises(AuthenticationError):
            registry.tags("app")

    at_once(*[one] * 4)


# ---- refresh tokens ----
@pytest.fixture
def refreshing(serve, shelf, home):
    tokens = serve(Tokens(refresh="refr3sh-1"))
    shelf.put([BASE])
    shelf.guard = BearerGuard(tokens)
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_bytes(encode({"auths": {shelf.host: {"identitytoken": "refr3sh-1", "auth": "dTpw"}}}))
    return tokens


def test_a_refresh_token_is_posted(shelf, refreshing, connect):
    assert connect().tags("app") == ["1"]
    [asked] = refreshing.requests
    assert asked.method == "POST" and asked.query == "" and asked.header("Content-Type").startswith("application/x-www-form-urlencoded")
    assert parse_qs(asked.body.decode()) == {"grant_type": ["refresh_token"], "service": ["registry.example.com"], "client_id": ["layerstore"], "scope": ["repository:app:pull"], "refresh_token": ["refr3sh-1"]}
    assert asked.header("Authorization") == ""


def test_a_new_refresh_token_replaces_ours(shelf, refreshing, connect):
    refreshing.rotate, refreshing.expires_in = "refr3sh-2", 1
    registry = connect()
    registry.tags("app")
    registry.tags("app")
    assert [("refr3sh-2" in request.body.decode()) for request in refreshing.requests] == [False, True]


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_refresh_token_that_is_refused(shelf, refreshing, connect, status):
    refreshing.always("POST", "/token", Answer(status))
    with pytest.raises(AuthenticationError) as caught:
        connect(retries=2).tags("app")
    assert len(refreshing.requests) == 1 and "refr3sh" not in str(caught.value)


# ---- where a realm may be ----
REALMS = ["", "/token", "token", "ftp://127.0.0.1/token", "file:///etc/passwd", "http://169.254.169.254/token", "https://[fe80::1]/token", "http://u:p@127.0.0.1/token", "http:///token", "http://127.0.0.1:99999/token", "http://a b/",
          "http://127.0.0.1/\x01", "http://[::ffff:169.254.169.254]/t", "javascript:1", "http://0xa9fea9fe/t", "http://127.0.0.1#x"]  # fmt: skip


@pytest.mark.parametrize("realm", REALMS, ids=repr)
def test_realms_that_are_refused(guarded, connect, realm, within):
    guarded.guard = lambda _: Answer(401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'})
    with within(2), pytest.raises(AuthenticationError):
        connect(auth=AUTH, retries=1, timeout=1).tags("app")


def test_a_plain_realm_of_a_safe_registry_is_refused(serve, authority):
    tokens, shelf = serve(Tokens()), serve(Shelf(authority.server()))
    shelf.guard = BearerGuard(tokens)
    with Registry(shelf.host, ca=authority.file, auth=AUTH, retries=0, timeout=5) as registry, pytest.raises(AuthenticationError):
        registry.tags("app")
    assert tokens.connections == 0


def test_a_safe_realm(serve, authority, shelf, connect):
    tokens = serve(Tokens(authority.server(), users={USER: PASSWORD}))
    shelf.put([BASE])
    shelf.guard = BearerGuard(tokens)
    assert connect(auth=AUTH, ca=authority.file).tags("app") == ["1"]


def test_a_realm_on_the_loopback_of_a_registry_elsewhere(serve, monkeypatch):
    shelf, proxy, victim = serve(Shelf()), serve(Proxy()), serve(Server())
    monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
    shelf.guard = lambda _: Answer(401, {"WWW-Authenticate": f'Bearer realm="{victim.url}/token",service="s"'})
    with Registry(f"http://registry.example.com:{shelf.port}", insecure=True, auth=AUTH, retries=0, timeout=5) as registry, pytest.raises(AuthenticationError):
        registry.tags("app")
    assert victim.connections == 0


def test_a_realm_that_redirects(guarded, tokens, serve, connect):
    """Where it goes is another place: no password is sent there."""
    elsewhere = serve(Server())
    elsewhere.always("GET", ".*", Answer(200, {}, b'{"token":"x"}'))
    tokens.always("GET", "/token", Answer(307, {"Location": f"{elsewhere.url}/t"}))
    try:
        connect(auth=AUTH).tags("app")
    except AuthenticationError:
        pass
    assert all(request.header("Authorization") == "" for request in elsewhere.requests)


def test_nothing_secret_is_logged(guarded, tokens, connect, caplog):
    with caplog.at_level(logging.DEBUG):
        connect(auth=AUTH).tags("app")
    for secret in (PASSWORD, basic().split()[1], *tokens.granted):
        assert secret not in caplog.text
