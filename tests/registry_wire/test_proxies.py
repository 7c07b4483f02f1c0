"""Proxies that the environment names."""

import base64
import contextlib
import socket
import threading

import pytest
from wirekit import Server, answer, certificate, server_tls

from layerstore import RegistryError
from layerstore.registry.calls import started
from layerstore.registry.places import Place
from layerstore.registry.proxies import proxy_for
from layerstore.registry.registry import Registry

OK = answer(200, b"{}")
PLAIN, SECURE = Place("http", "registry.example.com", 5000), Place("https", "registry.example.com")


def named(monkeypatch, place=SECURE, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = proxy_for(place)
    return found and found.name


def test_which_variable_counts(monkeypatch):
    assert named(monkeypatch) is None
    assert named(monkeypatch, ALL_PROXY="http://all") == "all:80"
    assert named(monkeypatch, all_proxy="small:1") == "small:1"
    assert named(monkeypatch, HTTPS_PROXY="http://secure:3128/") == "secure:3128"
    assert named(monkeypatch, PLAIN) == "small:1"
    assert named(monkeypatch, https_proxy="http://[::1]:3128") == "[::1]:3128"
    assert named(monkeypatch, PLAIN, http_proxy="HTTP://plain:8080") == "plain:8080"
    assert named(monkeypatch, PLAIN, http_proxy="") is None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_never_for_this_machine(monkeypatch, host, scheme):
    assert named(monkeypatch, Place(scheme, host, 5000), all_proxy="http://proxy", http_proxy="http://proxy", https_proxy="http://proxy") is None


@pytest.mark.parametrize(("entry", "host", "port", "excepted"), [
    ("*", "registry.example.com", 0, True), ("a, *", "registry.example.com", 0, True), ("", "registry.example.com", 0, False),
    ("registry.example.com", "registry.example.com", 0, True), ("REGISTRY.example.COM", "registry.example.com", 0, True), ("example.com", "registry.example.com", 0, True),
    ("ample.com", "registry.example.com", 0, False), (".example.com", "registry.example.com", 0, True), (".example.com", "example.com", 0, False),
    ("*.example.com", "a.example.com", 0, True), ("other.com", "registry.example.com", 0, False), ("other.com,example.com", "registry.example.com", 0, True),
    ("other.com example.com", "registry.example.com", 0, True), ("registry.example.com:443", "registry.example.com", 0, True),
    ("registry.example.com:444", "registry.example.com", 0, False), ("registry.example.com:5000", "registry.example.com", 5000, True),
    ("registry.example.com:5000", "registry.example.com", 5001, False), (".example.com:5000", "registry.example.com", 5000, True),
    ("10.0.0.1", "10.0.0.1", 0, True), ("10.0.0.1", "10.0.0.2", 0, False), ("10.0.0.1:443", "10.0.0.1", 0, True), ("10.0.0.1:80", "10.0.0.1", 0, False),
    ("10.0.0.0/8", "10.1.2.3", 0, True), ("10.0.0.0/8", "11.1.2.3", 0, False), ("10.1.2.3/8", "10.9.9.9", 0, True), ("10.0.0.0/99", "10.0.0.1", 0, False),
    ("fd00::/8", "fd00::1", 0, True), ("fd00::1", "fd00:0::1", 0, True), ("[fd00::1]:443", "fd00::1", 0, True), ("[fd00::1]:80", "fd00::1", 0, False),
    ("10.0.0.0/8:443", "10.0.0.1", 0, True), ("10.0.0.0/8:80", "10.0.0.1", 0, False), ("[fd00::/8]:443", "fd00::1", 0, True),
    ("10.0.0.0/8", "registry.example.com", 0, False), ("0.0.1", "10.0.0.1", 0, False), (".", "registry.example.com", 0, False), ("registry.example.com.", "registry.example.com", 0, True),
])  # fmt: skip
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_no_proxy(monkeypatch, entry, host, port, excepted, variable):
    assert (named(monkeypatch, Place("https", host, port), all_proxy="proxy", **{variable: entry}) is None) == excepted


def test_no_proxy_in_lower_case_wins(monkeypatch):
    assert named(monkeypatch, all_proxy="proxy", no_proxy="other.com", NO_PROXY="*") == "proxy:80"


@pytest.mark.parametrize("value", ["socks5://user:secret@host", "https://user:secret@host:1", "http://user:secret@host:99999", "http://user:secret@", "http://ho st", "http://a/b"])
def test_a_proxy_that_cannot_be(monkeypatch, value):
    with pytest.raises(RegistryError, match="https_proxy") as caught:
        named(monkeypatch, https_proxy=value)
    assert "secret" not in str(caught.value)


def test_credentials_are_decoded_and_hidden(monkeypatch):
    monkeypatch.setenv("all_proxy", "http://us%40er:se%3Acret%C3%A9@proxy:3128")
    found = proxy_for(SECURE)
    assert base64.b64decode(found.authorization.removeprefix("Basic ")) == "us@er:se:creté".encode()
    assert "Basic" not in repr(found)
    monkeypatch.setenv("all_proxy", "http://proxy:3128")
    assert proxy_for(SECURE).headers() == {}


# ---- real ones. `registry.example.com` exists only for them ----


class Proxy(Server):
    """A proxy that leads everything to one server."""

    def __init__(self, server, *, answers=b"HTTP/1.1 200 Connection established\r\n\r\n"):
        super().__init__(connection=self._relay)
        self.server, self.answers = server, answers

    def _relay(self, client):
        file = client.makefile("rb", buffering=0)
        lines = b""
        while not lines.endswith(b"\r\n\r\n"):
            lines += file.read(1)
        file.close()
        self.requests.append(lines.decode().split("\r\n"))
        with socket.create_connection(("127.0.0.1", self.server.port)) as onward:
            if lines.startswith(b"CONNECT"):
                client.sendall(self.answers)
            else:
                onward.sendall(lines)
            thread = threading.Thread(target=self._copy, args=[onward, client], daemon=True)
            thread.start()
            self._copy(client, onward)
            thread.join()

    @staticmethod
    def _copy(source, sink):
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                sink.sendall(block)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def test_plain_requests_have_the_whole_url(monkeypatch, asking):
    with Server(lambda request: OK) as server, Proxy(server) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
        with Registry("http://registry.example.com:5000", insecure=True) as registry, started() as call:
            for path in ("/v2/a?b=%2F", "/v2/c"):
                found = registry.session.ask(call, "GET", path)
    assert (found.url, found.host) == ("http://registry.example.com:5000/v2/c", "registry.example.com:5000")
    assert [request.path for request in server.requests] == [f"http://registry.example.com:5000{path}" for path in ("/v2/a?b=%2F", "/v2/c")]
    assert server.requests[0].headers["host"] == "registry.example.com:5000"
    assert server.requests[0].headers["proxy-authorization"] == "Basic " + base64.b64encode(b"user:secret").decode()
    assert (proxy.connections, server.connections) == (1, 1)


def test_tls_goes_through_a_tunnel(monkeypatch, asking, tmp_path):
    pair = certificate(tmp_path, "server", names="DNS:registry.example.com")
    with Server(lambda request: OK, tls=server_tls(pair)) as server, Proxy(server) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{proxy.port}")
        assert asking("registry.example.com", ca=pair[0], auth="token").url == "https://registry.example.com/v2/"
    lines = proxy.requests[0]
    assert lines[:2] == ["CONNECT registry.example.com:443 HTTP/1.1", "Host: registry.example.com:443"]
    assert lines[2:] == ["Proxy-Authorization: Basic " + base64.b64encode(b"user:secret").decode(), "", ""]
    assert server.requests[0].path == "/v2/"
    assert "proxy-authorization" not in server.requests[0].headers
    assert server.requests[0].headers["authorization"] == "Bearer token"


def test_the_scheme_is_found_out_through_a_tunnel(monkeypatch, asking):
    with Server(lambda request: OK) as server, Proxy(server) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"127.0.0.1:{proxy.port}")
        assert asking("registry.example.com:5000", insecure=True).url == "http://registry.example.com:5000/v2/"
    assert [lines[0] for lines in proxy.requests] == ["CONNECT registry.example.com:5000 HTTP/1.1", "GET http://registry.example.com:5000/v2/ HTTP/1.1"]


@pytest.mark.parametrize(("says", "status"), [(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", 407), (b"HTTP/1.1 403 no\r\nX: y\r\n\r\n", 403), (b"HTTP/1.0 302 no\r\n\r\n", 302)])
def test_a_tunnel_that_is_refused(monkeypatch, asking, says, status):
    with Server(lambda request: OK) as server, Proxy(server, answers=says) as proxy:
        monkeypatch.setenv("https_proxy", f"http://user:secret@127.0.0.1:{proxy.port}")
        with pytest.raises(RegistryError, match=f"the proxy 127.0.0.1:{proxy.port} did not connect to registry.example.com:443: {status}") as caught:
            asking("registry.example.com", retries=3)
    assert (caught.value.status, caught.value.host, proxy.connections) == (status, f"127.0.0.1:{proxy.port}", 1)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("says", [b"HTTP/1.1 503 later\r\n\r\n", b"what\r\n\r\n", b"HTTP/1.1 200 ok\r\n", b"A: b\r\n" * 100000])
def test_a_proxy_that_fails_is_asked_again(monkeypatch, asking, says):
    monkeypatch.setattr("layerstore.registry.calls.Call.wait", lambda self, seconds: None)
    with Server(lambda request: OK) as server, Proxy(server, answers=says) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(RegistryError, match=r"the proxy .* did not (connect: 503|answer as proxies do) \(after 2 attempts\)$") as caught:
            asking("registry.example.com", retries=1, timeout=0.5)
    assert (caught.value.status, proxy.connections) == (0, 2)


def test_bytes_of_the_proxy_behind_its_answer_are_not_the_registrys(monkeypatch, asking, tmp_path):
    pair = certificate(tmp_path, "server", names="DNS:registry.example.com")
    with Server(lambda request: OK, tls=server_tls(pair)) as server, Proxy(server, answers=b"HTTP/1.1 200 ok\r\n\r\nmore") as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        assert asking("registry.example.com", ca=pair[0]).status == 200


def test_a_proxy_that_is_not_there_is_named(monkeypatch, asking):
    monkeypatch.setenv("https_proxy", "http://user:secret@localhost:1")
    with pytest.raises(RegistryError, match=r"/v2/: the proxy localhost:1: cannot connect: connection refused$") as caught:
        asking("registry.example.com")
    assert caught.value.host == "registry.example.com:443"


def test_plain_http_through_a_tunnel_says_the_way_out(monkeypatch, asking):
    with Server(lambda request: OK) as server, Proxy(server) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(RegistryError, match="it does not speak TLS; insecure=True allows plain HTTP"):
            asking("registry.example.com:5000", retries=3)
        with pytest.raises(RegistryError, match=r"it does not speak TLS$"):
            asking("https://registry.example.com:5000", retries=3)
    assert server.hellos == 2
