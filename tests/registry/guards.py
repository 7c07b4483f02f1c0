"""Who may come in: Basic, Bearer with a token server of its own, and a proxy that stands between."""

import base64
import json
import secrets
import select
import socket
import threading
from collections.abc import Mapping
from urllib.parse import parse_qsl

from scripted import Answer, Request, Server

USER, PASSWORD = "möwe", "gr:ün-s3cret"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def basic(user: str = USER, password: str = PASSWORD) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class BasicGuard:
    """Let in who has the password."""

    def __init__(self, user: str = USER, password: str = PASSWORD, challenge: str = 'Basic realm="here"'):
        self.expected, self.challenge = basic(user, password), challenge

    def __call__(self, request: Request) -> Answer | None:
        if request.header("Authorization") == self.expected:
            return None
        return Answer(401, {"WWW-Authenticate": self.challenge}, b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}')


class Tokens(Server):
    """A token server: Basic of `users` or a refresh token, scopes as they are asked for."""

    def __init__(self, *more, users: Mapping[str, str] | None = None, field: str = "token", expires_in: object = 300, refresh: str = "", **named):
        self.users, self.field, self.expires_in, self.refresh = users, field, expires_in, refresh
        self.granted: dict[str, frozenset[str]] = {}
        self.rotate = ""
        super().__init__(*more, **named)

    @property
    def realm(self) -> str:
        return f"{self.url}/token"

    def respond(self, request: Request) -> Answer:
        if request.method == "POST":
            form = dict(parse_qsl(request.body.decode()))
            if not self.refresh or form.get("refresh_token") != self.refresh:
                return Answer(401, {}, b'{"details":"no"}')
            scopes = form.get("scope", "").split()
        else:
            if self.users is not None:
                known = {basic(user, password) for user, password in self.users.items()}
                if request.header("Authorization") not in known:
                    return Answer(401, {"WWW-Authenticate": 'Basic realm="tokens"'}, b'{"details":"no"}')
            scopes = [value for key, value in request.fields if key == "scope"]
        token = secrets.token_urlsafe(24)
        self.granted[token] = frozenset(scopes)
        document: dict[str, object] = {self.field: token}
        if self.expires_in is not None:
            document["expires_in"] = self.expires_in
        if request.method == "POST" and self.rotate:
            document["refresh_token"] = self.refresh = self.rotate
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(document).encode())


class BearerGuard:
    """Let in who has a token of this token server for what is asked."""

    def __init__(self, tokens: Tokens, service: str = "registry.example.com", scoped: bool = True):
        self.tokens, self.service, self.scoped = tokens, service, scoped
        self.dropped: set[str] = set()

    def needed(self, request: Request) -> str:
        if request.path == "/v2/":
            return ""
        name = request.path.removeprefix("/v2/").rpartition("/manifests/" if "/manifests/" in request.path else "/tags/" if "/tags/" in request.path
                                                            else "/referrers/" if "/referrers/" in request.path else "/blobs/")[0]  # fmt: skip
        return f"repository:{name}:{'pull' if request.method in ('GET', 'HEAD') and '/uploads/' not in request.path else 'pull,push'}"

    def __call__(self, request: Request) -> Answer | None:
        token = request.header("Authorization").removeprefix("Bearer ")
        needed = self.needed(request)
        if token in self.tokens.granted and token not in self.dropped and (not self.scoped or self.covers(self.tokens.granted[token], needed)):
            return None
        challenge = f'Bearer realm="{self.tokens.realm}",service="{self.service}"' + (f',scope="{needed}"' if needed and self.scoped else "")
        return Answer(401, {"WWW-Authenticate": challenge}, b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}')

    @staticmethod
    def covers(granted: frozenset[str], needed: str) -> bool:
        if not needed:
            return True
        name, _, actions = needed.rpartition(":")
        return any(each.rpartition(":")[0] == name and set(actions.split(",")) <= set(each.rpartition(":")[2].split(",")) for each in granted)


class Proxy(Server):
    """A proxy: plain requests in absolute form, TLS by CONNECT; with `needs` it wants this Proxy-Authorization."""

    needs = ""

    def answer(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
        rule = self._rule(request)
        if isinstance(rule, Answer):
            return rule
        if self.needs and request.header("Proxy-Authorization") != self.needs:
            return Answer(407, {"Proxy-Authenticate": "Basic realm=proxy"})
        if request.method == "CONNECT":
            host, _, port = request.target.rpartition(":")
            with socket.create_connection(self.where(host.strip("[]"), int(port)), 5) as there:
                self._pump(request, there, b"")
        else:
            authority, _, path = request.target.removeprefix("http://").partition("/")
            host, _, port = authority.partition(":")
            kept = [(name, value) for name, value in request.headers if not name.lower().startswith("proxy-")]
            head = f"{request.method} /{path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in kept if name.lower() != "connection")
            with socket.create_connection(self.where(host, int(port or 80)), 5) as there:
                self._pump(request, there, f"{head}Connection: close\r\n\r\n".encode("latin-1") + request.body)
        return Answer()

    def where(self, host: str, port: int) -> tuple[str, int]:
        """Every name is the loopback here, so that names of other hosts can be asked for."""
        return ("127.0.0.1", port)

    def _pump(self, request: Request, there: socket.socket, first: bytes) -> None:
        here = request.connection.sock
        request.connection.tunnel = True
        if request.method == "CONNECT":
            here.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        there.sendall(first)
        ends = {here: there, there: here}
        while not self.closing.is_set():
            ready, _, _ = select.select(list(ends), [], [], 0.1)
            for end in ready:
                data = end.recv(1 << 16)
                if not data:
                    return
                ends[end].sendall(data)


class Gate:
    """A place where so many threads wait for one another, at most `seconds`; `passed` says that all came."""

    def __init__(self, count: int, seconds: float = 5):
        self.barrier, self.seconds = threading.Barrier(count), seconds

    def __call__(self, _: Request) -> None:
        try:
            self.barrier.wait(self.seconds)
        except threading.BrokenBarrierError:
            pass

    @property
    def passed(self) -> bool:
        return not self.barrier.broken
