"""A small HTTP server whose answers a test writes, and which notes what it is asked."""

import http.server
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from .asked import Server


class Request(NamedTuple):
    """What a server was asked."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    body: bytes

    @property
    def authorization(self) -> str | None:
        found: str | None = self.headers.get("Authorization")
        return found


class Said(NamedTuple):
    """What it answers."""

    status: int = 200
    body: Any = b""
    headers: tuple[tuple[str, str], ...] = ()


class Served:
    """A server on a port of its own.

    host      "127.0.0.1:port"
    asked     the requests, in order
    answer    makes the answer to a request
    """

    def __init__(self, answer: Callable[[Request], Said]) -> None:
        self.asked: list[Request] = []
        self.answer = answer
        self.connections = 0
        served = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20
            disable_nagle_algorithm = True

            def setup(self) -> None:
                served.connections += 1
                super().setup()

            def handle_any(self) -> None:
                url = urllib.parse.urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Request(self.command, url.path, urllib.parse.parse_qs(url.query, keep_blank_values=True), self.headers, body)
                served.asked.append(request)
                status, document, headers = served.answer(request)
                data = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else data)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: Any) -> None:
                """A client that hangs up is no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


Serve = Callable[[Callable[[Request], Said]], Served]


@contextmanager
def _serving() -> Iterator[Serve]:
    running: list[Served] = []

    def serve(answer: Callable[[Request], Said]) -> Served:
        running.append(Served(answer))
        return running[-1]

    try:
        yield serve
    finally:
        for each in running:
            each.close()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers with the answers that are given."""
    with _serving() as made:
        yield made


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let no file of this machine's user count."""
    home = tmp_path_factory.mktemp("home")
    for name in ("DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))


@pytest.fixture
def server() -> Server:
    """A token server without sockets."""
    return Server()
