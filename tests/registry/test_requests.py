"""Every request: which answers are tried again and how long after, which end the call at once, and how long any of it may take."""

import email.utils
import socket
import time

import pytest
from imagekit import BASE, TOP
from scripted import CUT, HANG_UP, RESET, STALL, Answer, Server
from shelf import error

from layerstore import AuthenticationError, NotInRegistryError, Registry, RegistryError

RETRIED = [408, 429, 500, 502, 503, 504]
FINAL = [201, 202, 204, 206, 300, 304, 305, 400, 402, 405, 406, 409, 410, 418, 451, 501, 505, 507, 599]


@pytest.fixture
def put(shelf):
    return shelf.put([BASE, TOP])


def manifest(put):
    return "/v2/app/manifests/1"


# ---- statuses ----
def test_statuses_that_are_tried_again(serve, each):
    """Once, after about half a second; and the answer behind them counts."""
    def one(status):
        server = servers[status]
        answer = HANG_UP if status == "hangs up" else Answer(raw=[b"HTTP/1.1 20", RESET]) if status == "breaks" else Answer(status)
        server.on("GET", "/v2/app/tags/list", answer, Answer(200, {}, b'{"tags":["a"]}'))
        with Registry(server.url, retries=1, timeout=5) as registry:
            began = time.monotonic()
            assert registry.tags("app") == ["a"]
            assert 0.3 < time.monotonic() - began < 1.5
        assert len(server.requests) == 2

    names = [*RETRIED, "hangs up", "breaks"]
    servers = {name: serve(Server()) for name in names}
    each({name: name for name in names}, one)


def test_statuses_that_are_tried_again_end_as_errors(serve, each):
    def one(status):
        server = servers[status]
        server.always("GET", ".*", HANG_UP if status == 0 else Answer(status))
        with Registry(server.url, retries=1, timeout=5) as registry:
            with pytest.raises(RegistryError, match=r"\(after 2 attempts\)") as caught:
                registry.manifest("app:1")
        assert type(caught.value) is RegistryError
        assert (caught.value.status, caught.value.host) == (status, server.host)
        assert f"GET {server.url}/v2/app/manifests/1: " in str(caught.value)
        assert len(server.requests) == 2

    servers = {status: serve(Server()) for status in [0, *RETRIED]}
    each({str(status): status for status in servers}, one)


@pytest.mark.parametrize("status", FINAL)
def test_other_statuses_are_errors_at_once(shelf, connect, put, status):
    shelf.always("GET", ".*", Answer(status, {}, b"" if status in (204, 304) else put.manifest))
    with connect(retries=3) as registry, pytest.raises(RegistryError) as caught:
        registry.manifest("app:1")
    assert type(caught.value) is RegistryError
    assert caught.value.status == status
    assert str(status) in str(caught.value) and "attempts" not in str(caught.value)
    assert len(shelf.requests) == 1


@pytest.mark.parametrize(("status", "kind"), [(403, AuthenticationError), (404, NotInRegistryError)])
def test_403_and_404(shelf, connect, put, status, kind):
    shelf.always("GET", ".*", error(status, "DENIED", "requested access to the resource is denied"))
    with connect(retries=3) as registry:
        for call in (lambda: registry.manifest("app:1"), lambda: registry.tags("app")):
            with pytest.raises(kind, match=f"{status} DENIED: requested access to the resource is denied") as caught:
                call()
            assert (caught.value.status, caught.value.code, caught.value.host) == (status, "DENIED", shelf.host)
    assert len(shelf.requests) == 2


def test_the_waits_double(shelf, connect, put):
    shelf.always("GET", ".*", Answer(503))
    with connect(retries=2) as registry, pytest.raises(RegistryError, match=r"after 3 attempts"):
        registry.manifest("app:1")
    first, second, third = [request.time for request in shelf.requests]
    assert 0.37 < second - first < 0.75
    assert 0.74 < third - second < 1.4


def test_no_retries(shelf, connect, put):
    shelf.always("GET", ".*", Answer(503))
    with connect(retries=0) as registry, pytest.raises(RegistryError) as caught:
        registry.manifest("app:1")
    assert len(shelf.requests) == 1
    assert caught.value.status == 503


def test_nobody_listens():
    server = Server()
    server.close()
    with Registry(f"http://{server.host}", retries=0, timeout=2) as registry, pytest.raises(RegistryError) as caught:
        registry.tags("app")
    assert (caught.value.status, caught.value.code, caught.value.host) == (0, "", server.host)
    assert server.host in str(caught.value)


# ---- Retry-After ----
def test_retry_after_is_waited_when_it_is_longer(serve, each):
    cases = {
        "seconds": ("2", 1.9, 3), "blanks": (" 2 ", 1.9, 3), "shorter": ("0", 0.37, 0.8), "nonsense": ("soon", 0.37, 0.8), "negative": ("-5", 0.37, 0.8), "empty": ("", 0.37, 0.8),
        "a date": (None, 1.0, 3.5), "a date that was": ("Wed, 21 Oct 2015 07:28:00 GMT", 0.37, 0.8), "a fraction": ("0.1", 0.37, 0.8),
    }  # fmt: skip
    servers = {name: serve(Server()) for name in cases}

    def one(name):
        text, least, most = cases[name]
        server = servers[name]
        server.on("GET", ".*", lambda _: Answer(429, {"Retry-After": text if text is not None else email.utils.formatdate(time.time() + 2.9, usegmt=True)}), Answer(200, {}, b'{"tags":[]}'))
        with Registry(server.url, retries=1, timeout=5) as registry:
            assert registry.tags("app") == []
        first, second = [request.time for request in server.requests]
        assert least <= second - first <= most, f"{second - first:.2f} s"

    each({name: name for name in cases}, one)


@pytest.mark.parametrize("text", ["61", "3600", "99999999999999999999999999", "9" * 5000])
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_of_more_than_a_minute_ends_it(shelf, connect, put, within, status, text):
    shelf.always("GET", ".*", Answer(status, {"Retry-After": text}))
    with within(1), connect(retries=3) as registry, pytest.raises(RegistryError) as caught:
        registry.manifest("app:1")
    assert len(shelf.requests) == 1
    assert caught.value.status == status
    if len(text) < 10:
        assert text in str(caught.value)


def test_retry_after_a_date_far_away(shelf, connect, put, within):
    shelf.always("GET", ".*", Answer(429, {"Retry-After": email.utils.formatdate(time.time() + 90_000, usegmt=True)}))
    with within(1), connect(retries=3) as registry, pytest.raises(RegistryError):
        registry.manifest("app:1")
    shelf.always("GET", ".*", Answer(429, {"Retry-After": "Fri, 31 Dec 99999999 23:59:59 GMT"}))


# ---- timeouts ----
SLOW_HEADERS = {
    "no answer": [STALL],
    "half a line": [b"HTTP/1.1 200 O", STALL],
    "headers byte by byte": [step for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 500 for step in (bytes([byte]), 0.05)],
    "a header without end": [b"HTTP/1.1 200 OK\r\n", *[step for n in range(100) for step in (b"X-%d: y\r\n" % n, 0.1)]],
    "100 Continue for ever": [step for _ in range(100) for step in (b"HTTP/1.1 100 Continue\r\n\r\n", 0.1)],
}


def test_slow_headers_are_a_timeout(serve, each):
    servers = {name: serve(Server()) for name in SLOW_HEADERS}

    def one(name):
        server = servers[name]
        server.always("GET", ".*", Answer(raw=SLOW_HEADERS[name]))
        with Registry(server.url, retries=1, timeout=0.8) as registry:
            began = time.monotonic()
            with pytest.raises(RegistryError, match=r"after 2 attempts") as caught:
                registry.tags("app")
            assert 1.8 < time.monotonic() - began < 4
        assert caught.value.status == 0
        assert len(server.requests) == 2

    each({name: name for name in SLOW_HEADERS}, one)


def test_a_body_of_a_byte_now_and_then_is_a_timeout(serve, each):
    bodies = {
        "a length": Answer(200, {}, [step for _ in range(100) for step in (b" ", 0.1)], 100_000),
        "chunks": Answer(200, {}, [step for _ in range(100) for step in (b" ", 0.1)], None, chunked=True),
        "no length": Answer(200, {}, [step for _ in range(100) for step in (b" ", 0.1)], None),
        "stalls": Answer(200, {}, [b'{"tags"', STALL], 100),
        "stalls at once": Answer(200, {}, [STALL], 100),
        "of an error": Answer(400, {}, [b'{"errors"', STALL], 100),
    }
    servers = {name: serve(Server()) for name in bodies}

    def one(name):
        server = servers[name]
        server.always("GET", ".*", bodies[name])
        with Registry(server.url, retries=0, timeout=0.8) as registry:
            began = time.monotonic()
            with pytest.raises(RegistryError):
                registry.tags("app")
            assert 0.5 < time.monotonic() - began < 3

    each({name: name for name in bodies}, one)


def test_a_handshake_that_stalls_is_a_timeout(serve):
    class Mute(Server):
        to_not_http = (STALL,)

    server = serve(Mute())
    began = time.monotonic()
    with Registry(server.host, retries=0, timeout=0.7) as registry, pytest.raises(RegistryError):
        registry.tags("app")
    assert time.monotonic() - began < 3


def test_a_connection_that_is_not_taken_is_a_timeout():
    """A listener whose queue is full: connecting hangs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for each in fillers:
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        began = time.monotonic()
        with Registry(f"http://127.0.0.1:{listener.getsockname()[1]}", retries=0, timeout=0.7) as registry, pytest.raises(RegistryError) as caught:
            registry.tags("app")
        assert 0.5 < time.monotonic() - began < 3
        assert caught.value.status == 0
        for each in fillers:
            each.close()


def test_an_idle_connection_that_the_server_closed_is_no_failure(shelf, connect, put):
    """The second request on a connection that is gone: with retries=0 it may not fail, as no server ever refused it."""
    shelf.on("GET", ".*", Answer(200, {"Content-Type": "application/json"}, [b'{"tags":[]}', CUT], 11))
    with connect(retries=1) as registry:
        assert registry.tags("app") == []
        time.sleep(0.2)
        registry.tags("app")
    assert len(shelf.requests) == 2


def test_an_answer_with_bytes_left_is_not_read_by_the_next(shelf, connect, put):
    """An error body beyond the bound leaves the connection unusable; the next request gets its own answer."""
    shelf.on("GET", ".*", Answer(400, {}, b"x" * 300_000))
    with connect(connections=1) as registry:
        with pytest.raises(RegistryError):
            registry.tags("app")
        for _ in range(3):
            assert registry.tags("app") == ["1"]
