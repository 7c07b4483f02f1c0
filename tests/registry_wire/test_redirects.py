"""Where a request goes on to, and what it takes along."""

import time

import pytest
from wirekit import Server, answer

from layerstore import AuthenticationError, RegistryError
from layerstore.registry.calls import started
from layerstore.registry.registry import Registry

OK = answer(200, b"{}")


def to(place, status=307, **headers):
    return answer(status, b"see there", Location=place, **headers)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_redirect_is_followed(asking, status, method):
    with Server(lambda request: OK) as store, Server(lambda request: to(f"http://{store.host}/data?signed=%2fsecret%20", status)) as server:
        found = asking(f"http://{server.host}", "/v2/a/blobs/b", method, headers={"Range": "bytes=5-", "Accept": "x"}, auth="token")
    assert found.status == 200
    assert (found.host, found.url) == (store.host, f"http://{store.host}/data")
    asked = store.requests[0]
    assert (asked.method, asked.path) == (method, "/data?signed=%2fsecret%20")
    assert (asked.headers["range"], asked.headers["accept"], asked.headers["host"]) == ("bytes=5-", "x", store.host)
    assert "authorization" not in asked.headers
    assert server.requests[0].headers["authorization"] == "Bearer token"


def test_a_relative_one_stays_and_keeps_the_authorization(asking):
    def script(request):
        return {"/v2/a": to("b?x=%2F"), "/v2/b?x=%2F": to("/c", 302)}.get(request.path, OK)

    with Server(script) as server:
        asking(f"http://{server.host}", "/v2/a", auth="token")
    assert [(each.path, each.headers.get("authorization")) for each in server.requests] == [
        ("/v2/a", "Bearer token"), ("/v2/b?x=%2F", "Bearer token"), ("/c", "Bearer token"),
    ]  # fmt: skip
    assert server.connections == 1


def test_who_left_comes_back_without_authorization(asking):
    with Server(lambda request: to(f"http://{server.host}/v2/back")) as store, Server(lambda request: OK if "back" in request.path else to(f"http://{store.host}/")) as server:
        asking(f"http://{server.host}", "/v2/a", auth="token")
    assert [each.headers.get("authorization") for each in server.requests] == ["Bearer token", None]


def test_no_token_is_got_for_another_host(asking):
    with Server(lambda request: answer(401, WWW_Authenticate=f'Bearer realm="http://{server.host}/token"')) as store:
        with Server(lambda request: to(f"http://{store.host}/")) as server, pytest.raises(AuthenticationError, match=r"/: 401 Unauthorized: redirected from http://127") as caught:
            asking(f"http://{server.host}", auth=("ann", "secret"))
    assert (caught.value.host, len(server.requests), len(store.requests)) == (store.host, 1, 1)


def test_ten_redirects_are_followed_and_no_more(asking):
    def script(request):
        n = int(request.path.rpartition("/")[2])
        return to(f"/v2/{n + 1}") if n < last else OK

    with Server(script) as server:
        last = 10
        assert asking(f"http://{server.host}", "/v2/0").status == 200
        last = 11
        with pytest.raises(RegistryError, match="more than 10 redirects") as caught:
            asking(f"http://{server.host}", "/v2/0", retries=3)
    assert (caught.value.status, len(server.requests)) == (307, 11 + 11)


@pytest.mark.parametrize("chain", [{"/v2/a": "/v2/a"}, {"/v2/a": "/v2/b", "/v2/b": "/v2/a"}, {"/v2/a": "/v2/b?x", "/v2/b?x": "/v2/c", "/v2/c": "b?x"}])
def test_a_circle_ends(asking, chain):
    with Server(lambda request: to(chain[request.path])) as server, pytest.raises(RegistryError, match="circle"):
        asking(f"http://{server.host}", "/v2/a")
    assert len(server.requests) == len(chain)


@pytest.mark.parametrize(("place", "why"), [
    ("file:///etc/passwd", "its scheme is 'file'"), ("ftp://host/", "its scheme is 'ftp'"), ("http://user:secret@host/", "user in it: host"), ("http:///x", "malformed"),
    ("http://169.254.169.254/latest/meta-data", "169.254.169.254 is a link-local address"), ("http://[fe80::1]/", "link-local"), ("http://a b/", "characters"),
    ("", "does not say where to"), (None, "does not say where to"),
])  # fmt: skip
def test_a_place_that_is_not_asked(asking, place, why):
    with Server(lambda request: answer(307) if place is None else to(place)) as server, pytest.raises(RegistryError, match=why) as caught:
        asking(f"http://{server.host}", retries=3)
    assert (caught.value.host, len(server.requests)) == (server.host, 1)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
def test_what_changes_something_is_not_redirected(asking, method):
    with Server(lambda request: to("/v2/b") if request.path == "/v2/a" else OK) as server, pytest.raises(RegistryError, match="307"):
        asking(f"http://{server.host}", "/v2/a", method, body=b"x")
    assert len(server.requests) == 1


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_an_upload_follows_307_and_308(asking, method, status):
    with Server(lambda request: to("/v2/b", status) if request.path == "/v2/a" else OK) as server:
        if status in (307, 308):
            asking(f"http://{server.host}", "/v2/a", method, body=lambda: [b"the ", b"body"], upload=True)
            assert [(each.method, each.body) for each in server.requests] == [(method, b"the body")] * 2
        else:
            with pytest.raises(RegistryError, match=str(status)):
                asking(f"http://{server.host}", "/v2/a", method, body=b"x", upload=True)


def test_a_failure_of_the_other_host_begins_at_the_registry(asking, monkeypatch):
    monkeypatch.setattr("layerstore.registry.calls.Call.wait", lambda self, seconds: None)
    said = [answer(503), None, OK]
    with Server(lambda request: said.pop(0)) as store, Server(lambda request: to(f"http://{store.host}/{len(store.requests)}")) as server:
        assert asking(f"http://{server.host}", retries=2).status == 200
    assert [each.path for each in store.requests] == ["/0", "/1", "/2"]
    assert len(server.requests) == 3


@pytest.mark.parametrize("said", [answer(404), answer(503), None, answer(307, Location="ftp://x/"), answer(200, bytes(100))])
def test_an_error_behind_a_redirect_names_what_was_asked_for(asking, said):
    with Server(lambda request: said) as store, Server(lambda request: to(f"http://{store.host}/data?secret")) as server:
        with pytest.raises(RegistryError, match=f"^GET http://{store.host}/data: .*redirected from http://{server.host}/v2/app/blobs/sha256:abc$") as caught:
            asking(f"http://{server.host}", "/v2/app/blobs/sha256:abc", limit=10)
    assert caught.value.host == store.host


def test_who_does_not_answer_behind_a_redirect_is_named(asking):
    with Server(lambda request: to("http://127.0.0.1:1/data?secret")) as server, pytest.raises(RegistryError, match=r"^GET http://127\.0\.0\.1:1/data: cannot connect") as caught:
        asking(f"http://{server.host}", "/v2/app/blobs/sha256:abc")
    assert caught.value.host == "127.0.0.1:1"
    assert "sha256:abc" in str(caught.value)


def test_the_body_of_a_redirect_is_not_waited_for(asking):
    def script(request):
        if request.path == "/v2/b":
            return OK
        return b"HTTP/1.1 307 X\r\nLocation: /v2/b\r\nContent-Length: 1000\r\n\r\nx"

    with Server(script) as server:
        began = time.monotonic()
        assert asking(f"http://{server.host}", "/v2/a", timeout=30).status == 200
        assert time.monotonic() - began < 5


def test_a_location_of_an_upload_may_be_elsewhere(asking):
    with Server(lambda request: answer(202, b"")) as store, Server(lambda request: answer(202, b"")) as server:
        with Registry(f"http://{server.host}", auth="token") as registry, started() as call:
            for place in (f"http://{store.host}/up?x=%2f", f"http://{server.host}/v2/up?x=%2f"):
                registry.session.ask(call, "PATCH", place, body=b"x", expect=(202,), upload=True)
            with pytest.raises(RegistryError, match="link-local"):
                registry.session.ask(call, "PATCH", "http://169.254.1.1/", body=b"x", expect=(202,), upload=True)
    assert (store.requests[0].path, store.requests[0].headers.get("authorization")) == ("/up?x=%2f", None)
    assert (server.requests[0].path, server.requests[0].headers.get("authorization")) == ("/v2/up?x=%2f", "Bearer token")
