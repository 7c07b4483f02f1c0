"""An HTTP server of plain sockets that does what a script says: answers, lies, cuts at any byte, stalls, drips.

Enters: rules (`on`, `always`) and what the class answers by itself (`respond`). Leaves: what was asked, in `requests`, and
how many connections came. Each connection has a thread; a body is a list of steps, so a script is data.
"""

import re
import select
import socket
import ssl
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

# Steps of a body, beside bytes (sent) and floats (seconds of waiting).
CUT, RESET, STALL = "cut", "reset", "stall"
Step = bytes | float | str
REASONS = {200: "OK", 401: "Unauthorized", 404: "Not Found"}


class GoneError(Exception):
    """The client is gone, or the script ends the connection."""


@dataclass
class Answer:
    """status, headers and body; `length` is told in place of the true one, None: not told; raw: all that is sent instead."""

    status: int = 200
    headers: Mapping[str, str] | list[tuple[str, str]] = field(default_factory=dict)
    body: bytes | Iterable[Step] = b""
    length: int | str | None = "true"
    chunked: bool = False
    close: bool = False
    raw: Iterable[Step] | None = None

    def fields(self) -> list[tuple[str, str]]:
        return list(self.headers.items() if isinstance(self.headers, Mapping) else self.headers)


HANG_UP = Answer(raw=[CUT])


def cut(answer: Answer, after: int, end: Step = CUT) -> Answer:
    """The same answer, whose body ends after so many bytes though its length is told."""
    assert isinstance(answer.body, bytes)
    length = len(answer.body) if answer.length == "true" else answer.length
    return Answer(answer.status, answer.headers, [answer.body[:after], end], length)


class Request:
    """What came: `body` is read when it is asked for."""

    def __init__(self, line: str, headers: list[tuple[str, str]], connection: "Connection"):
        self.method, self.target, self.version = line.split(" ")
        self.headers, self.connection, self.number = headers, connection, connection.number
        self.server = connection.server
        self.path, _, query = self.target.partition("?")
        self.query = query
        self.fields = urllib.parse.parse_qsl(query, keep_blank_values=True)
        self.time = time.monotonic()
        self._body: bytes | None = None
        self._left: int | None = None       # of what Content-Length told; None: chunked or not begun

    def __repr__(self) -> str:
        return f"<{self.method} {self.target}>"

    def header(self, name: str, default: str = "") -> str:
        return next((value for key, value in self.headers if key.lower() == name.lower()), default)

    def field(self, name: str, default: str = "") -> str:
        return dict(self.fields).get(name, default)

    @property
    def chunked(self) -> bool:
        return self.header("Transfer-Encoding").lower() == "chunked"

    @property
    def body(self) -> bytes:
        if self._body is None:
            found = b"".join(self.pieces())
            self._body = found
        return self._body

    def pieces(self):
        """Yield the body as it comes, without its chunks' framing; once."""
        read = self.connection.read
        self._body = b""
        if self.chunked:
            while size := int(self.connection.line(), 16):
                piece = read(size)
                self._keep(piece)
                yield piece
                self.connection.line()
            self.connection.line()
            return
        left = int(self.header("Content-Length", "0"))
        while left:
            piece = read(min(left, 1 << 16))
            left -= len(piece)
            self._keep(piece)
            yield piece

    def _keep(self, piece: bytes) -> None:
        if self.method == "PUT":
            self._body += piece

    def take(self, count: int) -> bytes:
        """The first bytes of a body; the rest is left where it is, and the connection of no more use."""
        found = b""
        for piece in self.pieces():
            found += piece
            if len(found) >= count:
                break
        self.connection.spoilt = True
        return found[:count]

    @property
    def was_read(self) -> bool:
        return self._body is not None or not (self.chunked or int(self.header("Content-Length", "0") or 0))


class Connection:
    """One connection, in a thread of its own."""

    def __init__(self, server: "Server", sock: socket.socket, number: int):
        self.server, self.sock, self.number = server, sock, number
        self._buffer, self.spoilt, self.tunnel = b"", False, False

    def run(self) -> None:
        try:
            if self.server.tls is not None:
                self.wrap(self.server.tls)
            while self.serve_one():
                pass
        except (GoneError, OSError, ValueError):
            pass
        finally:
            self.sock.close()

    def wrap(self, context: ssl.SSLContext) -> None:
        self.sock.settimeout(5)
        try:
            self.sock = context.wrap_socket(self.sock, server_side=True)
        except OSError:
            self.server.failed_handshakes += 1
            raise
        self.sock.settimeout(None)

    # ---- reading ----
    def more(self) -> None:
        data = self.sock.recv(1 << 16)
        if not data:
            raise GoneError
        self._buffer += data

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self.more()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def line(self) -> str:
        while b"\r\n" not in self._buffer:
            self.more()
        found, _, self._buffer = self._buffer.partition(b"\r\n")
        return found.decode("latin-1")

    def serve_one(self) -> bool:
        while not self._buffer:
            self.more()
        if not self._buffer[:1].isalpha():
            self.server.not_http += 1
            self.send(self.server.to_not_http)
            raise GoneError
        line, headers = self.line(), []
        while header := self.line():
            name, _, value = header.partition(":")
            headers.append((name, value.strip()))
        request = Request(line, headers, self)
        answer = self.server.answer(request)
        if self.tunnel:
            return False
        self.send_answer(request, answer)
        return not (answer.close or self.spoilt or (answer.length is None and not answer.chunked and request.method != "HEAD"))

    # ---- writing ----
    def send_answer(self, request: Request, answer: Answer) -> None:
        if answer.raw is not None:
            self.send(answer.raw)
            self.spoilt = True
            return
        if not request.was_read or request.header("Connection").lower() == "close":
            self.spoilt = True
        fields = answer.fields()
        steps = [answer.body] if isinstance(answer.body, bytes) else answer.body
        if answer.chunked:
            fields.append(("Transfer-Encoding", "chunked"))
        elif answer.length == "true":
            if answer.status not in (204, 304):
                fields.append(("Content-Length", str(len(answer.body) if isinstance(answer.body, bytes) else sum(map(len, filter(is_bytes, steps))))))
        elif answer.length is not None:
            fields.append(("Content-Length", str(answer.length)))
        if self.spoilt or answer.close or (answer.length is None and not answer.chunked):
            fields.append(("Connection", "close"))
        head = f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Such')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in fields) + "\r\n"
        self.send([head.encode("latin-1")])
        if request.method != "HEAD":
            with self.server.sending(request):
                self.send(steps, answer.chunked)
                if answer.chunked:
                    self.send([b"0\r\n\r\n"])
        if self.spoilt:
            self.linger()

    def send(self, steps: Iterable[Step], chunked: bool = False) -> None:
        for step in steps:
            if isinstance(step, bytes):
                for at in range(0, len(step), 1 << 16):
                    piece = step[at : at + (1 << 16)]
                    self.sock.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            elif step == STALL:
                self.wait(3600)
                raise GoneError
            elif step == RESET:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise GoneError
            elif step == CUT:
                raise GoneError
            else:
                self.wait(step)

    def wait(self, seconds: float) -> None:
        """Wait; ends at once when the client hangs up or the server closes."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.server.closing.is_set():
                raise GoneError
            poll = select.poll()
            poll.register(self.sock, select.POLLRDHUP)
            if poll.poll(min(left, 0.05) * 1000):
                raise GoneError

    def linger(self) -> None:
        """What the client still sends is read over, so that it sees the answer and no reset."""
        self.sock.settimeout(1)
        self.sock.shutdown(socket.SHUT_WR)
        while self.sock.recv(1 << 16):
            pass


def is_bytes(step: Step) -> bool:
    return isinstance(step, bytes)


Action = Answer | Callable[[Request], Answer | None]


class Server:
    """Listen on a free port of the loopback; `with` ends it, all its connections and threads."""

    to_not_http: Iterable[Step] = (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",)

    def __init__(self, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1", name: str = ""):
        self.tls, self.closing = tls, threading.Event()
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self.connections = self.failed_handshakes = self.not_http = 0
        self.bodies = self.most_bodies = 0      # blob bodies under way, in and out
        self._rules: list[tuple[str, re.Pattern[str], list[Action], bool]] = []
        self._lock = threading.RLock()
        self._open: dict[Connection, threading.Thread] = {}
        self._listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET, backlog=200)
        self.port = self._listener.getsockname()[1]
        self.host = f"{name or address}:{self.port}"
        self._acceptor = threading.Thread(target=self._accept, name="scripted accept")
        self._acceptor.start()

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://{self.host}"

    # ---- scripts ----
    def on(self, method: str, pattern: str, *actions: Action) -> None:
        """Answer the next requests of this kind by these actions, each used once; then as ever."""
        self._rules.append((method, re.compile(pattern), list(actions), False))

    def always(self, method: str, pattern: str, action: Action) -> None:
        self._rules.append((method, re.compile(pattern), [action], True))

    def forget(self) -> None:
        """Drop all rules and what was asked up to now."""
        self._rules.clear()
        self.requests.clear()

    def _rule(self, request: Request) -> Action | None:
        with self._lock:
            for method, pattern, actions, stays in self._rules:
                if actions and request.method in method.split("|") and pattern.fullmatch(request.path):
                    return actions[0] if stays else actions.pop(0)
        return None

    def answer(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
        self.look_at(request)
        action = self._rule(request)
        found = action if isinstance(action, Answer) or action is None else action(request)
        return self.respond(request) if found is None else found

    def respond(self, request: Request) -> Answer:
        return Answer(404)

    def look_at(self, request: Request) -> None:
        """Complain of what no request may be."""

    # ---- what was asked ----
    def asked(self, method: str = "", pattern: str = ".*") -> list[Request]:
        return [each for each in list(self.requests) if (not method or each.method in method.split("|")) and re.fullmatch(pattern, each.path)]

    def paths(self) -> list[str]:
        return [f"{each.method} {each.path}" for each in list(self.requests)]

    @property
    def open_connections(self) -> int:
        return len(self._open)

    def is_quiet(self, seconds: float = 2.0) -> bool:
        """Return True if the last connection ends in this time."""
        until = time.monotonic() + seconds
        while self._open and time.monotonic() < until:
            time.sleep(0.005)
        return not self._open

    def sending(self, request: Request):
        return _Counted(self, "/blobs/" in request.path and request.method == "GET")

    def receiving(self):
        return _Counted(self, True)

    # ---- life ----
    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
                connection = Connection(self, sock, self.connections)
                thread = threading.Thread(target=self._run, args=[connection], name="scripted connection")
                self._open[connection] = thread
            thread.start()

    def _run(self, connection: Connection) -> None:
        try:
            connection.run()
        finally:
            with self._lock:
                del self._open[connection]

    def close(self) -> None:
        self.closing.set()
        for end in (self._listener, *(each.sock for each in list(self._open))):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._listener.close()
        self._acceptor.join()
        for thread in list(self._open.values()):
            thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Counted:
    def __init__(self, server: Server, counts: bool):
        self.server, self.counts = server, counts

    def __enter__(self) -> None:
        if self.counts:
            with self.server._lock:
                self.server.bodies += 1
                self.server.most_bodies = max(self.server.most_bodies, self.server.bodies)

    def __exit__(self, *_: object) -> None:
        if self.counts:
            with self.server._lock:
                self.server.bodies -= 1
