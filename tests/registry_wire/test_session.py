"""Requests: what is sent, what is tried again, what an answer that is refused becomes."""

import email.utils
import logging
import re
import socket
import threading
import time

import pytest
from wirekit import Server, answer

import layerstore
from layerstore import AuthenticationError, ImageError, NotInRegistryError, RegistryError
from layerstore.registry.calls import Broken, started
from layerstore.registry.registry import Registry

OK = answer(200, b"{}")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    """Pauses between attempts are noted, and take no time."""
    waited = []

    def wait(self, seconds):
        waited.append(seconds)
        self.check()

    monkeypatch.setattr("layerstore.registry.calls.Call.wait", wait)
    return waited


def in_turn(*answers):
    """A script: one answer after another, the last one ever after."""
    left = list(answers)

    def script(request):
        said = left.pop(0) if len(left) > 1 else left[0]
        return said(request) if callable(said) else said

    return script


# ---- what is sent ----


def test_every_request_has_the_same_headers(asking):
    with Server(in_turn(OK)) as server:
        asking(server.host, "/v2/app/manifests/1", headers={"Accept": "a, b"})
    assert [request[:2] for request in server.requests] == [("GET", "/v2/app/manifests/1")]
    assert server.requests[0].headers == {
        "host": server.host, "user-agent": f"layerstore/{layerstore.__version__}", "accept-encoding": "identity", "accept": "a, b",
    }  # fmt: skip


def test_no_cookie_is_sent_back(asking):
    with Server(in_turn(answer(200, b"", Set_Cookie="a=b"))) as server, Registry(server.host) as registry, started() as call:
        for _ in range(2):
            registry.session.ask(call, "GET", "/v2/")
    assert "cookie" not in server.requests[1].headers


def test_a_body_is_sent_whole_or_in_blocks(asking):
    with Server(in_turn(OK)) as server:
        asking(server.host, method="POST", body=b"")
        asking(server.host, method="PUT", body=b"whole")
        asking(server.host, method="PATCH", body=lambda: iter([b"in ", b"", b"blocks"]), upload=True)
        asking(server.host, method="PATCH", body=lambda: [b"counted"], headers={"Content-Length": "7"}, upload=True)
    assert [request.body for request in server.requests] == [b"", b"whole", b"in blocks", b"counted"]
    assert [request.headers.get("content-length") for request in server.requests] == ["0", "5", None, "7"]
    assert server.requests[2].headers["transfer-encoding"] == "chunked"


def test_a_large_body_passes(asking):
    block = bytes(range(256)) * 4096
    with Server(in_turn(OK)) as server:
        asking(server.host, method="PATCH", body=lambda: (block for _ in range(20)), upload=True)
        asking(server.host, method="PUT", body=block * 20)
    assert [len(request.body) for request in server.requests] == [20 << 20] * 2
    assert server.requests[0].body == block * 20


def test_content_encoding_is_ignored(asking):
    with Server(in_turn(answer(200, b"\x1f\x8b bytes as they are", Content_Encoding="gzip"))) as server:
        assert asking(server.host).body == b"\x1f\x8b bytes as they are"


@pytest.mark.parametrize("said", [
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nconTENT-length: 7\r\n\r\nabcdefg",
    b"HTTP/1.0 200 OK\r\n\r\nabcdefg",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcdefg",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nabcdefg",
])  # fmt: skip
def test_ways_to_frame_a_body(asking, said):
    def once(client):
        client.recv(4096)
        client.sendall(said)

    with Server(connection=once) as server:
        found = asking(server.host.replace("127", "http://127", 1), limit=7)
    assert (found.body, found.status, found.url, found.host) == (b"abcdefg", 200, f"http://{server.host}/v2/", server.host)


def test_headers_have_names_in_any_case(asking):
    with Server(in_turn(answer(200, b"", LINK="a", link="b"))) as server:
        found = asking(server.host).headers
    assert (found.get("Link"), found.all("lInK"), found.get("none"), found.get("none", "x"), found.all("none")) == ("a", ["a", "b"], "", "x", [])


# ---- connections are used again ----


def test_one_connection_serves_one_request_after_another():
    with Server(in_turn(OK, answer(404), answer(200, b""), OK)) as server, Registry(f"http://{server.host}") as registry, started() as call:
        for n in range(100):
            method = "HEAD" if n % 7 == 0 else "GET"
            registry.session.ask(call, method, "/v2/", expect=(200, 404))
    assert server.connections == 1


def test_an_answer_that_is_not_read_closes_its_connection():
    with Server(in_turn(answer(200, bytes(1 << 20)))) as server, Registry(f"http://{server.host}") as registry, started() as call:
        with registry.session.open(call, "/v2/app/blobs/x") as reply:
            assert reply.read(10) == bytes(10)
        with registry.session.open(call, "/v2/app/blobs/x") as reply:
            count = 0
            while block := reply.read():
                count += len(block)
        assert (count, reply.read()) == (1 << 20, b"")
        reply.close()
        registry.session.ask(call, "GET", "/v2/", limit=1 << 20)
    assert server.connections == 2


def test_threads_open_no_more_connections_than_they_need():
    def slowly(request):
        time.sleep(0.005)
        return OK

    with Server(slowly) as server, Registry(f"http://{server.host}") as registry, started() as call:

        def work():
            for _ in range(25):
                registry.session.ask(call, "GET", "/v2/")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert len(server.requests) == 100
    assert server.connections <= 4


def test_a_connection_that_is_closed_while_it_waits_is_no_failure():
    with Server(in_turn(OK, None, OK)) as server, Registry(f"http://{server.host}", retries=0) as registry, started() as call:
        registry.session.ask(call, "GET", "/v2/")
        time.sleep(1.1)
        registry.session.ask(call, "GET", "/v2/")      # the server reads it, and hangs up
    assert (server.connections, len(server.requests)) == (2, 3)


def test_a_connection_that_is_closed_at_once_is_one():
    with Server(in_turn(OK, None)) as server, Registry(f"http://{server.host}", retries=2) as registry, started() as call:
        registry.session.ask(call, "GET", "/v2/")
        with pytest.raises(RegistryError, match="after 3 attempts"):
            registry.session.ask(call, "GET", "/v2/")
    assert (server.connections, len(server.requests)) == (3, 4)


def test_what_nobody_asked_for_is_not_read_as_an_answer():
    def too_much(request):
        yield OK
        time.sleep(0.02)
        yield answer(200, b"poison")

    with Server(in_turn(too_much, OK)) as server, Registry(f"http://{server.host}") as registry, started() as call:
        assert registry.session.ask(call, "GET", "/v2/").body == b"{}"
        time.sleep(0.1)
        assert registry.session.ask(call, "GET", "/v2/").body == b"{}"
    assert server.connections == 2


# ---- statuses ----


ERROR = b'{"errors":[{"code":"DENIED","message":"no, \\u001b[31mnot\\nyou"},{"code":"X","message":"nor he"}]}'


@pytest.mark.parametrize(("status", "kind"), [
    (400, RegistryError), (401, AuthenticationError), (403, AuthenticationError), (404, NotInRegistryError), (405, RegistryError), (416, RegistryError),
    (418, RegistryError), (201, RegistryError), (204, RegistryError), (304, RegistryError), (103, RegistryError), (501, RegistryError), (599, RegistryError),
    (500, RegistryError), (300, RegistryError),
])  # fmt: skip
def test_a_status_that_is_not_expected(asking, status, kind):
    with Server(in_turn(answer(status, ERROR))) as server, pytest.raises(RegistryError) as caught:
        asking(server.host, "/v2/app/manifests/1")
    error = caught.value
    assert (type(error), error.status, error.host) == (kind, status, server.host)
    assert [request.path for request in server.requests] == ["/v2/app/manifests/1"] + ["/v2/"] * (status == 401)
    if status not in (103, 204, 304):
        assert error.code == "DENIED"
        assert str(error).startswith(f"GET http://{server.host}/v2/app/manifests/1: {status} DENIED: no, [31mnot you; nor he")


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
def test_404_of_an_upload_is_no_missing_thing(asking, method):
    with Server(in_turn(answer(404))) as server, pytest.raises(RegistryError, match=r"404 Not Found$") as caught:
        asking(server.host, "/v2/app/blobs/uploads/", method=method, body=b"", upload=True)
    assert type(caught.value) is RegistryError


@pytest.mark.parametrize("body", [b"<html>secret</html>", b"[]", b'{"errors":{}}', b'{"errors":[1,{"code":5,"message":[]}]}', b"[" * 60000, b"\xff\xfe", b'{"errors":[{"code":"lower"}]}'])
def test_another_body_is_not_quoted(asking, body):
    with Server(in_turn(answer(400, body))) as server, pytest.raises(RegistryError) as caught:
        asking(server.host)
    assert (caught.value.code, str(caught.value)) == ("", f"GET http://{server.host}/v2/: 400 Bad Request")


@pytest.mark.parametrize("told", [True, False])
def test_an_error_without_end_is_not_read_to_it(asking, told):
    def endless(request):
        yield b"HTTP/1.1 500 X\r\n" + (b"Content-Length: 99999999999\r\n\r\n" if told else b"\r\n")
        for _ in range(1 << 20):
            yield bytes(1 << 16)

    with Server(endless) as server, pytest.raises(RegistryError, match=r"500 Internal Server Error$"):
        asking(server.host)


def test_an_error_pickles_and_copies():
    import copy
    import pickle

    for kind in (RegistryError, NotInRegistryError, AuthenticationError):
        error = kind("GET https://host/v2/: 404 X: y", status=404, code="X", host="host:443")
        for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert (type(other), str(other), other.status, other.code, other.host) == (kind, str(error), 404, "X", "host:443")


# ---- attempts ----


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(asking, _no_pauses, status):
    with Server(in_turn(answer(status), answer(status), OK)) as server:
        assert asking(server.host, retries=2).body == b"{}"
    assert len(server.requests) == 3
    assert 0.375 <= _no_pauses[0] <= 0.625
    assert 0.75 <= _no_pauses[1] <= 1.25


def test_each_wait_is_logged(asking, caplog):
    with caplog.at_level(logging.WARNING, "layerstore"), Server(in_turn(answer(503), OK)) as server:
        asking(server.host, retries=2)
    (said,) = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(rf"GET http://{server.host}/v2/: 503 Service Unavailable; trying again in 0\.[3-6] s", said)


def test_attempts_come_to_an_end(asking, _no_pauses):
    with Server(in_turn(answer(503, b'{"errors":[{"code":"UNAVAILABLE","message":"later"}]}'))) as server:
        with pytest.raises(RegistryError, match=r"503 UNAVAILABLE: later \(after 9 attempts\)$"):
            asking(server.host, retries=8)
    assert len(server.requests) == 9
    assert all(min(0.75 * n, 30) <= waited <= min(1.25 * n, 30) for n, waited in zip([0.5, 1, 2, 4, 8, 16, 32, 64], _no_pauses, strict=True))


@pytest.mark.parametrize("cut", [None, b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", b"what is this\r\n\r\n"])
def test_a_broken_connection_is_tried_again(asking, cut):
    broken = [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde"]

    def script(client):
        client.recv(4096)
        if broken or cut is None:
            if cut:
                client.sendall(cut)
            broken.clear()
        else:
            client.sendall(OK)

    with Server(connection=script) as server:
        if cut is None:
            with pytest.raises(RegistryError, match=r"the connection was closed without an answer \(after 3 attempts\)$") as caught:
                asking(f"http://{server.host}", retries=2)
            assert (caught.value.status, caught.value.host) == (0, server.host)
            assert server.connections == 3
        else:
            assert asking(f"http://{server.host}", retries=1).body == b"{}"


def test_nobody_listens(asking):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RegistryError, match=rf"^GET https?://127.0.0.1:{port}/v2/: cannot connect: connection refused \(after 2 attempts\)$") as caught:
        asking(f"127.0.0.1:{port}", retries=1)
    assert (caught.value.status, caught.value.code, caught.value.host) == (0, "", f"127.0.0.1:{port}")


def test_a_name_that_nobody_has(asking):
    with pytest.raises(RegistryError, match="name") as caught:
        asking("nobody.invalid", timeout=5)
    assert caught.value.host == "nobody.invalid:443"


@pytest.mark.parametrize(("asked", "least"), [("7", 7), ("0", 0.375), ("junk", 0.375), ("-5", 0.375), ("date", 25), ("60", 60)])
def test_retry_after_is_waited(asking, _no_pauses, asked, least):
    text = email.utils.formatdate(time.time() + 30, usegmt=True) if asked == "date" else asked
    with Server(in_turn(answer(429, Retry_After=text), OK)) as server:
        asking(server.host, retries=1)
    assert least <= _no_pauses[0] <= max(least + 6, 0.625)


def test_retry_after_of_more_than_a_minute_is_an_error(asking, _no_pauses):
    with Server(in_turn(answer(429, Retry_After="61"))) as server, pytest.raises(RegistryError, match="61") as caught:
        asking(server.host, retries=5)
    assert (len(server.requests), _no_pauses, caught.value.status) == (1, [], 429)
    assert str(caught.value).endswith(": 429 Too Many Requests: it asks to wait 61 seconds")


def test_a_post_begins_anew_and_patch_and_put_of_an_upload_do_not(asking):
    with Server(in_turn(answer(500), answer(202))) as server:
        asking(server.host, method="POST", body=b"", expect=(202,), upload=True, retries=1)
    for method in ("PATCH", "PUT"):
        with Server(in_turn(answer(500), OK)) as server, pytest.raises(RegistryError, match=r"500 Internal Server Error$"):
            asking(server.host, method=method, body=b"x", upload=True, retries=5)
        assert len(server.requests) == 1
        with Server(in_turn(None, OK)) as server, pytest.raises(Broken):
            asking(f"http://{server.host}", method=method, body=b"x", upload=True, retries=5)
        with Server(in_turn(answer(503), OK)) as server:
            assert asking(server.host, method=method, body=b"x", upload=True, expect=(200, 503)).status == 503


@pytest.mark.parametrize("when", ["at once", "later"])
def test_what_making_the_body_raises_comes_out(asking, when):
    def later():
        yield b"x" * 100
        raise OSError(5, "the disk", "/file")

    def body():
        if when == "later":
            return later()
        raise OSError(5, "the disk", "/file")

    with Server(in_turn(OK)) as server, pytest.raises(OSError, match="the disk") as caught:
        asking(server.host, method="PATCH", body=body, upload=True, retries=5)
    assert caught.value.filename == "/file"


@pytest.mark.parametrize("ends", [True, False])
def test_an_answer_before_the_body_is_whole(asking, ends):
    made = []

    def early(client):
        client.recv(4096)
        client.sendall(answer(413, ERROR))
        if ends:
            client.shutdown(socket.SHUT_WR)
        released.wait(10)

    def body():
        for _ in range(1000):
            made.append(1)
            yield bytes(1 << 20)

    released = threading.Event()
    with Server(connection=early) as server:
        with pytest.raises(RegistryError, match="413 DENIED"):
            asking(f"http://{server.host}", method="PATCH", body=body, upload=True)
        released.set()
    assert len(made) < 100


# ---- bounds ----


@pytest.mark.parametrize("kind", [RegistryError, ImageError, AuthenticationError])
@pytest.mark.parametrize("told", [True, False])
def test_a_body_beyond_its_bound(asking, kind, told):
    sent = []

    def endless(request):
        yield b"HTTP/1.1 200 X\r\n" + (b"Content-Length: 99999999999\r\n\r\n" if told else b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(1 << 12):
            sent.append(1)
            yield bytes(1 << 16) if told else b"10000\r\n" + bytes(1 << 16) + b"\r\n"

    with Server(endless) as server, pytest.raises(kind, match="more than 100000 bytes") as caught:
        asking(server.host, limit=100_000, beyond=kind)
    assert type(caught.value) is kind
    assert len(sent) < 200


def test_a_body_at_its_bound(asking):
    with Server(in_turn(answer(200, b"12345"))) as server:
        assert asking(server.host, limit=5).body == b"12345"
        with pytest.raises(RegistryError, match="more than 4 bytes"):
            asking(server.host, limit=4)


@pytest.mark.parametrize("head", [
    b"HTTP/1.1 200 X\r\n" + b"A: b\r\n" * 100000, b"HTTP/1.1 200 X\r\nA: " + b"b" * 10_000_000, b"H" * 10_000_000, b"HTTP/1.1 100 X\r\n\r\n" * 1_000_000,
])  # fmt: skip
def test_headers_without_end(asking, head):
    def script(client):
        client.recv(4096)
        client.sendall(head)

    with Server(connection=script) as server, pytest.raises(RegistryError, match=r"not HTTP|broke|without an answer"):
        asking(f"http://{server.host}")


def test_a_trailer_without_end(asking):
    def endless(request):
        yield b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
        for _ in range(1 << 16):
            yield b"A: b\r\n" * 1000

    with Server(endless) as server, pytest.raises(RegistryError, match="broke"):
        asking(f"http://{server.host}")


# ---- time ----


def trickle(request_line, *, pause, seconds):
    def script(client):
        client.recv(4096)
        client.sendall(request_line)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            client.sendall(b"a")
            time.sleep(pause)

    return script


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", b"HTTP/1.1 500 X\r\nContent-Length: 99\r\n\r\n"])
def test_a_byte_now_and_then_is_a_stall(asking, head):
    with Server(connection=trickle(head, pause=0.05, seconds=8)) as server:
        began = time.monotonic()
        with pytest.raises(RegistryError, match="in time" if b"500" not in head else "500"):
            asking(f"http://{server.host}", timeout=0.5)
    assert 0.4 < time.monotonic() - began < 3


def test_a_slow_body_that_moves_is_none(asking):
    def script(client):
        client.recv(4096)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 20480\r\n\r\n")
        for _ in range(40):
            client.sendall(bytes(512))
            time.sleep(0.04)

    with Server(connection=script) as server:
        assert len(asking(f"http://{server.host}", timeout=0.5).body) == 20480


def test_the_readers_own_time_does_not_count():
    with Server(in_turn(answer(200, bytes(1 << 20)))) as server, Registry(f"http://{server.host}", timeout=0.3) as registry, started() as call:
        count = 0
        with registry.session.open(call, "/v2/x") as reply:
            while block := reply.read(200_000):
                count += len(block)
                time.sleep(0.15)
    assert count == 1 << 20


def test_what_came_before_a_cut_is_given():
    def script(client):
        client.recv(4096)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(345_678))

    with Server(connection=script) as server, Registry(f"http://{server.host}") as registry, started() as call:
        count = 0
        with registry.session.open(call, "/v2/x") as reply, pytest.raises(Broken, match="within the body"):
            while block := reply.read():
                count += len(block)
    assert count == 345_678


def test_a_server_that_takes_nothing(asking):
    released = threading.Event()

    def script(client):
        released.wait(10)

    with Server(connection=script) as server:
        began = time.monotonic()
        with pytest.raises(Broken, match="in time"):
            asking(f"http://{server.host}", method="PATCH", body=lambda: (bytes(1 << 20) for _ in range(100)), upload=True, timeout=0.5)
        assert time.monotonic() - began < 3
        released.set()


# ---- warnings, the end ----


def test_a_warning_is_logged_once(caplog):
    with Server(in_turn(answer(200, Warning='299 - "this is \\"old\\" \x1b[31m"'), answer(200, Warning='299 - "other"'))) as server:
        with caplog.at_level(logging.WARNING, "layerstore"), Registry(server.host) as registry, started() as call:
            server.script = in_turn(answer(200, Warning='299 - "this is \\"old\\""'), answer(200, Warning='299 - "other"'))
            for _ in range(4):
                registry.session.ask(call, "GET", "/v2/")
    said = [record.getMessage() for record in caplog.records if record.name == "layerstore"]
    assert said == [f'{server.host} warns: this is "old"', f"{server.host} warns: other"]


def test_after_close():
    with Server(in_turn(OK)) as server, Registry(server.host) as registry, started() as call:
        registry.session.ask(call, "GET", "/v2/")
        registry.close()
        registry.close()
        for ask in (lambda: registry.session.ask(call, "GET", "/v2/"), lambda: registry.session.open(call, "/v2/x")):
            with pytest.raises(RegistryError, match="closed"):
                ask()
    assert len(server.requests) == 1


def test_close_ends_what_is_under_way():
    came, released = threading.Event(), threading.Event()

    def script(request):
        came.set()
        released.wait(20)
        return OK

    failed = []
    with Server(script) as server, Registry(f"http://{server.host}", timeout=30) as registry, started() as call:

        def work():
            try:
                registry.session.ask(call, "GET", "/v2/")
            except RegistryError as err:
                failed.append(err)

        thread = threading.Thread(target=work)
        thread.start()
        assert came.wait(10)
        registry.close()
        thread.join(1)
        assert not thread.is_alive()
        assert "closed" in str(failed[0])
        released.set()


def test_a_registry_opens_no_connection_by_itself():
    with Server(in_turn(OK)) as server, Registry(server.host):
        time.sleep(0.05)
    assert server.connections == 0
