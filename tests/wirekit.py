"""A server for tests that does what it is told, byte by byte: HTTP or not, with TLS or without.

    with Server(lambda request: answer(200, b"{}")) as server:
        server.host; server.requests; server.connections
"""

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from typing import NamedTuple


class Request(NamedTuple):
    method: str
    path: str
    headers: dict
    body: bytes


def answer(status, body=b"", *, length=True, **headers):
    """An answer's bytes; header names have _ for -."""
    lines = [f"HTTP/1.1 {status} X", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Server:
    """Listens on a free port of the loopback. `script` gets a Request and returns an answer's bytes, or None: hang up.

    connection: replaces all of it, called with a socket (TLS already). raw: called with the socket before any TLS; what it
    returns goes on; it is also who notices TLS. requests: what was asked. connections: how many were opened; those on which
    a server without TLS was spoken to by TLS are counted as `hellos` instead.
    """

    def __init__(self, script=None, *, tls=None, connection=None, raw=None, address="127.0.0.1"):
        self.script, self.tls, self.raw = script, tls, raw or (None if tls else self._no_tls)
        self.connection = connection or self._talk
        self.requests, self.connections, self.hellos = [], 0, 0
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = socket.create_server((address, 0), family=family)
        self.port = self.listener.getsockname()[1]
        self.host = f"[{address}]:{self.port}" if ":" in address else f"{address}:{self.port}"
        self._open = []
        self._lock = threading.Lock()
        self._ends = False
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ends = True
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(each, socket.SHUT_RDWR)
        self._thread.join()

    def _accept(self):
        threads = []
        while not self._ends:
            try:
                client, _ = self.listener.accept()
            except OSError:
                break
            with self._lock:
                self.connections += 1
                self._open.append(client)
            threads.append(threading.Thread(target=self._serve, args=[client], daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join(10)

    def _serve(self, client):
        with contextlib.suppress(OSError):
            if self.raw and not self.raw(client):
                client.close()
                return
            if self.tls:
                plain, client = client, self.tls.wrap_socket(client, server_side=True)
                with self._lock:
                    self._open = [client if each is plain else each for each in self._open]
            self.connection(client)
        with self._lock:
            self._open = [each for each in self._open if each is not client]
        with contextlib.suppress(OSError):
            client.close()

    def _no_tls(self, client):
        """Answer a ClientHello as plain servers do."""
        if client.recv(1, socket.MSG_PEEK) != b"\x16":
            return True
        client.recv(4096)
        client.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        with self._lock:
            self.hellos, self.connections = self.hellos + 1, self.connections - 1
        return False

    def _talk(self, client):
        file = client.makefile("rb")
        try:
            while request := read_request(file):
                self.requests.append(request)
                said = self.script(request)
                if said is None:
                    return
                for each in [said] if isinstance(said, bytes) else said:
                    client.sendall(each)
        finally:
            file.close()


def read_request(file):
    line = file.readline().decode("latin-1").split()
    if not line:
        return None
    headers = {}
    while text := file.readline().decode("latin-1").strip():
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(file.readline() or b"-1", 16):
            if size < 0:
                return None            # it was broken off
            body += file.read(size)
            file.readline()
        file.readline()
    else:
        body = file.read(int(headers.get("content-length", 0)))
    return Request(line[0], line[1], headers, body)


def certificate(room, name, *, subject="localhost", names="DNS:localhost,IP:127.0.0.1", issuer=None, more=()):
    """Make a key and a certificate with the openssl program. Return (certificate, key)."""
    crt, key = room / f"{name}.crt", room / f"{name}.key"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    argv += ["-keyout", key, "-out", crt, "-subj", f"/CN={subject}", "-addext", f"subjectAltName={names}", *more]
    if issuer:
        argv += ["-CA", issuer[0], "-CAkey", issuer[1]]
    subprocess.run(argv, check=True, capture_output=True)
    return crt, key


def server_tls(pair, *, clients=None):
    """A server's side of TLS; clients: the certificate that it wants of those who connect."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    if clients:
        context.load_verify_locations(clients)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def until(condition, seconds=10.0):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)
