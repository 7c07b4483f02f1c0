"""The scheme that is found out, and whose certificates are believed and shown."""

import os
import socket
import ssl
import subprocess
import threading
import time
import warnings

import pytest
from wirekit import Server, answer, certificate, server_tls

from layerstore import RegistryError
from layerstore.registry.calls import started
from layerstore.registry.registry import Registry

OK = answer(200, b"{}")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def pair(room):
    return certificate(room, "server")


@pytest.fixture(scope="module")
def authority(room):
    return certificate(room, "authority", more=["-addext", "basicConstraints=critical,CA:true"])


@pytest.fixture(scope="module")
def client(room, authority):
    return certificate(room, "client", subject="client", issuer=authority)


def ok(request):
    return OK


# ---- which scheme ----


def test_tls_comes_first(asking, pair):
    with Server(ok, tls=server_tls(pair)) as server:
        found = asking(server.host, ca=pair[0])
    assert (found.url, server.connections) == (f"https://{server.host}/v2/", 1)


def test_plain_http_where_no_tls_is_spoken(asking):
    with Server(ok) as server, Registry(server.host) as registry, started() as call:
        for _ in range(3):
            assert registry.session.ask(call, "GET", "/v2/").url == f"http://{server.host}/v2/"
    assert (server.hellos, server.connections) == (1, 1)


def hang_up(client):
    """Hang up, if TLS is spoken."""
    if client.recv(1, socket.MSG_PEEK) == b"\x16":
        client.recv(4096)
        return False
    return True


@pytest.mark.parametrize("how", ["close", "reset"])
def test_plain_http_where_the_handshake_is_hung_up(asking, how):
    hellos = []

    def raw(client):
        if client.recv(1, socket.MSG_PEEK) == b"\x16":
            hellos.append(1)
            if how == "close":
                client.recv(4096)           # what is left unread makes a reset
            return False
        return True

    with Server(ok, raw=raw) as server, Registry(server.host, retries=0) as registry, started() as call:
        for _ in range(2):
            assert registry.session.ask(call, "GET", "/v2/").url == f"http://{server.host}/v2/"
    assert len(hellos) == 1


def test_a_hang_up_is_believed_only_if_plain_http_is_answered(asking, pair, monkeypatch):
    monkeypatch.setattr("layerstore.registry.calls.Call.wait", lambda self, seconds: None)
    context, count = server_tls(pair), []

    def script(client):
        count.append(client.recv(1, socket.MSG_PEEK))
        if len(count) < 3:
            return                          # it is not ready yet
        with context.wrap_socket(client, server_side=True) as secure:
            secure.recv(4096)
            secure.sendall(OK)

    with Server(connection=script, raw=lambda client: True) as server:
        assert asking(server.host, ca=pair[0], retries=2).url == f"https://{server.host}/v2/"
    assert count == [b"\x16", b"G", b"\x16"]


@pytest.mark.parametrize("says", [b"", b"\x16", b"\x16\x03\x03\x00"])
def test_silence_in_the_handshake_is_a_stall(asking, says):
    def silent(client):
        client.sendall(says)
        while client.recv(4096):
            pass

    with Server(connection=silent, raw=lambda client: True) as server:
        began = time.monotonic()
        with pytest.raises(RegistryError, match="it did not answer in time in the TLS handshake"):
            asking(server.host, timeout=0.5, insecure=True)
        assert 0.4 < time.monotonic() - began < 1.5
    assert server.connections == 1


def test_a_wrong_certificate_is_not_followed_by_plain_http(asking, pair):
    with Server(ok, tls=server_tls(pair)) as server:
        with pytest.raises(RegistryError, match=r"its certificate is not trusted: self-signed certificate; to trust who signed it: ca=") as caught:
            asking(server.host, retries=5)
        assert (caught.value.status, caught.value.host, server.connections) == (0, server.host, 1)


@pytest.mark.parametrize("insecure", [True, False])
def test_an_alert_is_not_followed_by_plain_http(asking, insecure):
    def alert(client):
        client.recv(4096)
        client.sendall(b"\x15\x03\x03\x00\x02\x02\x28")
        client.recv(4096)

    with Server(connection=alert, raw=lambda client: True) as server:
        with pytest.raises(RegistryError, match=r"TLS failed: .*alert handshake failure"):
            asking(server.host, insecure=insecure, retries=5)
    assert server.connections == 1


def test_https_that_is_written_is_never_plain_http(asking):
    with Server(ok) as server, pytest.raises(RegistryError, match="does not speak TLS"):
        asking(f"https://{server.host}", insecure=True)
    assert (server.connections, server.hellos, server.requests) == (0, 1, [])


def test_http_that_is_written_never_speaks_tls(asking):
    with Server(ok) as server:
        asking(f"http://{server.host}")
    assert (server.connections, server.hellos) == (1, 0)


def test_another_host_is_never_asked_by_plain_http():
    with pytest.raises(ValueError, match="insecure=True"):
        Registry("http://registry.example.com")
    Registry("http://registry.example.com", insecure=True).close()
    Registry("http://localhost").close()


@pytest.mark.parametrize("tls", [True, False])
def test_threads_that_ask_first_agree(pair, tls):
    def slowly(client):
        time.sleep(0.05)
        return Server._no_tls(server, client) if not tls else True

    found = []
    with Server(ok, tls=server_tls(pair) if tls else None, raw=slowly) as server:
        with Registry(server.host, ca=pair[0], retries=0) as registry, started() as call:
            threads = [threading.Thread(target=lambda: found.append(registry.session.ask(call, "GET", "/v2/").url)) for _ in range(8)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
    assert found == [f"{'https' if tls else 'http'}://{server.host}/v2/"] * 8
    assert server.hellos == (0 if tls else 1)


def test_ipv6(asking, room):
    pair = certificate(room, "v6", names="IP:::1")
    with Server(ok, tls=server_tls(pair), address="::1") as server:
        assert asking(server.host, ca=pair[0]).url == f"https://[::1]:{server.port}/v2/"
    assert server.requests[0].headers["host"] == server.host


# ---- whom to believe ----


def test_names_are_checked(asking, room):
    pair = certificate(room, "other", names="DNS:other.example.com")
    with Server(ok, tls=server_tls(pair)) as server, pytest.raises(RegistryError, match=r"certificate.*mismatch"):
        asking(server.host, ca=pair[0])
    with Server(ok, tls=server_tls(pair)) as server:
        asking(server.host, insecure=True)


def test_old_versions_of_tls_are_refused(asking, pair):
    context = server_tls(pair)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with Server(ok, tls=context) as server, pytest.raises(RegistryError, match="TLS failed"):
        asking(server.host, insecure=True)


@pytest.mark.parametrize("how", ["file", "bytes", "directory", "chain"])
def test_ca(asking, pair, authority, tmp_path, how):
    given = pair[0]
    if how == "bytes":
        given = os.fsencode(given)
    elif how == "chain":
        given = tmp_path / "all.pem"
        given.write_bytes("# für alle\n".encode() + authority[0].read_bytes() + pair[0].read_bytes())
    elif how == "directory":
        given = tmp_path / "ca"
        given.mkdir()
        (given / "README").write_text("no certificate")
        (given / "below").mkdir()
        (given / "one.pem").write_bytes(authority[0].read_bytes())
        (given / "two.crt").write_bytes(pair[0].read_bytes())
    with Server(ok, tls=server_tls(pair)) as server:
        assert asking(server.host, ca=given).status == 200


def test_the_systems_certificates_count(asking, pair, monkeypatch, tmp_path):
    with Server(ok, tls=server_tls(pair)) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(pair[0]))
        assert asking(server.host).status == 200
        monkeypatch.delenv("SSL_CERT_FILE")
        stem = subprocess.run(["openssl", "x509", "-hash", "-noout", "-in", pair[0]], capture_output=True, text=True, check=True).stdout.strip()
        (tmp_path / f"{stem}.0").write_bytes(pair[0].read_bytes())
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
        assert asking(server.host).status == 200


@pytest.mark.parametrize("what", ["missing", "junk", "empty", "directory", "broken"])
def test_a_ca_that_cannot_be_used(tmp_path, what):
    path = tmp_path / "ca"
    if what == "directory":
        path.mkdir()
        (path / "README").write_text("nothing")
    elif what != "missing":
        path.write_text({"junk": "what", "empty": "", "broken": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}[what])
    with pytest.raises(OSError) as caught:
        Registry("localhost", ca=path)
    assert caught.value.filename == str(path)


# ---- certs.d ----


@pytest.mark.parametrize("config", ["xdg", "home"])
def test_certs_d(asking, pair, monkeypatch, tmp_path, config):
    if config == "home":
        monkeypatch.delenv("XDG_CONFIG_HOME")
    above = tmp_path / ("config" if config == "xdg" else "home/.config") / "containers/certs.d"
    with Server(ok, tls=server_tls(pair)) as server:
        (above / "127.0.0.1").mkdir(parents=True)                  # of the host without its port
        (above / "127.0.0.1/ca.crt").write_bytes(pair[0].read_bytes())
        with pytest.raises(RegistryError, match="certificate"):
            asking(server.host)
        (above / server.host).mkdir()
        with pytest.raises(RegistryError, match="certificate"):
            asking(server.host)
        (above / server.host / "ca.pem").write_bytes(pair[0].read_bytes())          # another suffix
        with pytest.raises(RegistryError, match="certificate"):
            asking(server.host)
        (above / server.host / "ca.crt").write_bytes(pair[0].read_bytes())
        assert asking(server.host).status == 200


def test_a_client_shows_its_certificate(asking, pair, authority, client, tmp_path):
    with Server(ok, tls=server_tls(pair, clients=authority[0])) as server:
        above = tmp_path / "config/containers/certs.d" / server.host
        above.mkdir(parents=True)
        with pytest.raises(RegistryError, match="certificate required"):
            asking(server.host, ca=pair[0], retries=5)
        assert server.connections == 1
        (above / "me.cert").write_bytes(client[0].read_bytes())
        with pytest.raises(RegistryError, match=r"me\.key is missing"):
            asking(server.host, ca=pair[0])
        (above / "me.key").write_bytes(client[1].read_bytes())
        assert asking(server.host, ca=pair[0]).status == 200
        (above / "me.key").write_text("junk")
        with pytest.raises(RegistryError, match=r"me\.cert cannot be used"):
            asking(server.host, ca=pair[0])


def test_another_host_does_not_see_the_clients_certificate(asking, pair, authority, client, tmp_path):
    shown = []
    context = server_tls(pair, clients=authority[0])
    context.verify_mode = ssl.CERT_OPTIONAL

    def store_talks(secure):
        shown.append(secure.getpeercert())
        secure.recv(4096)
        secure.sendall(OK)

    with Server(connection=store_talks, tls=context) as store:
        with Server(lambda request: answer(307, Location=f"https://{store.host}/"), tls=server_tls(pair, clients=authority[0])) as server:
            above = tmp_path / "config/containers/certs.d" / server.host
            above.mkdir(parents=True)
            (above / "me.cert").write_bytes(client[0].read_bytes())
            (above / "me.key").write_bytes(client[1].read_bytes())
            assert asking(server.host, ca=pair[0]).status == 200
    assert shown == [None]


def test_from_tls_to_plain_http_no_redirect_leads(asking, pair):
    with Server(ok) as store, Server(lambda request: answer(307, Location=f"http://{store.host}/"), tls=server_tls(pair)) as server:
        with pytest.raises(RegistryError, match=f"it leaves TLS: http://{store.host}"):
            asking(server.host, insecure=True)
    assert store.connections == 0


@pytest.mark.parametrize("n", [10, 5000, 1 << 20])
def test_a_body_by_tls_that_comes_in_pieces(pair, n):
    body = os.urandom(300_000) * 4

    def in_pieces(client):
        """Speak TLS, and send what it becomes in pieces that fit no record."""
        came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = server_tls(pair).wrap_bio(came, goes, server_side=True)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def flush(size):
            data = goes.read()
            for at in range(0, len(data), size):
                client.sendall(data[at : at + size])

        def step(what):
            while True:
                try:
                    return what()
                except ssl.SSLWantReadError:
                    flush(1000)
                    came.write(client.recv(65536))

        step(tls.do_handshake)
        step(lambda: tls.read(4096))
        tls.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 10_000):
            tls.write(body[at : at + 10_000])
        flush(7919)
        client.recv(1)

    with Server(connection=in_pieces, raw=lambda client: True) as server, Registry(server.host, ca=pair[0], timeout=10) as registry, started() as call:
        with registry.session.open(call, "/v2/x") as reply:
            came = b""
            while len(came) < len(body) and (block := reply.read(n)):
                assert len(block) <= n
                came += block
                if n == 10 and len(came) > 5000:
                    n = 1 << 18
        assert came == body


def test_a_session_ticket_is_no_answer(pair):
    """A server sends tickets behind the handshake; a connection with one that waits is used again."""
    context = server_tls(pair)
    context.num_tickets = 8
    with Server(ok, tls=context) as server, Registry(server.host, ca=pair[0]) as registry, started() as call:
        for _ in range(5):
            registry.session.ask(call, "GET", "/v2/")
            registry.session.ask(call, "PATCH", "/v2/", body=lambda: [bytes(100_000)] * 5, upload=True)
    assert server.connections == 1


def test_an_answer_by_tls_before_the_body_is_whole(asking, pair):
    sent = []

    def early(secure):
        secure.recv(100)
        secure.sendall(answer(413, b'{"errors":[{"code":"SIZE_INVALID","message":"too large"}]}'))
        done.wait(10)

    def body():
        for _ in range(1000):
            sent.append(1)
            yield bytes(1 << 20)

    done = threading.Event()
    with Server(connection=early, tls=server_tls(pair)) as server:
        with pytest.raises(RegistryError, match="413 SIZE_INVALID: too large"):
            asking(server.host, ca=pair[0], method="PATCH", body=body, upload=True)
        done.set()
    assert len(sent) < 100
