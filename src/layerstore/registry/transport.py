"""Connections to one place after another, one request at a time on each, and the answers that come over them.

The requests and answers are urllib3's, the sockets below are ours. urllib3 never sees the query of a URL but on its way
to the server: its records and errors would tell it.
"""

from __future__ import annotations

import http.client
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import urllib3
from urllib3.connection import HTTPConnection

from layerstore.registry.calls import Broken, Call
from layerstore.registry.places import Target
from layerstore.registry.proxies import Proxy
from layerstore.registry.sockets import AnsweredError, Patience, Wire
from layerstore.registry.tls import reason_of

# A body as it is sent: bytes; or what makes the blocks, for each request anew.
Body = bytes | Callable[[], Iterable[bytes]] | None

_HEADER_BYTES: Final = 8 << 20        # of an answer, more than http.client takes
_AROUND: Final = 1 << 20              # bytes around a block of a body: of chunks, of TLS, and what is read ahead
_IDLE: Final = 32                     # connections that wait at a time
_FAILURES: Final = (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError)


T = TypeVar("T")


class Headers:
    """The headers of an answer; names in any case."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = [(name.lower(), value) for name, value in pairs]

    def get(self, name: str, default: str = "") -> str:
        """Return the first header of a name."""
        return next(iter(self.all(name)), default)

    def all(self, name: str) -> list[str]:
        """Return all headers of a name."""
        return [value for each, value in self._pairs if each == name.lower()]


class Connection(HTTPConnection):
    """A connection over a socket that is connected already.

    wire        the socket
    leads_to    by what a pool keeps it
    proxy_told  the proxy that gets whole URLs; None: it leads to the host
    waited      seconds that it waited in a pool before this request
    is_last     it is not used again
    """

    def __init__(self, wire: Wire, leads_to: object, proxy: Proxy | None) -> None:
        super().__init__("", 0, timeout=None)
        self.wire = wire
        self.proxy_told = proxy
        self.sock = wire
        self.leads_to = leads_to
        self.waited = 0.0
        self.is_last = False
        self._sent_target = ""
        self._body: Body = None
        self._is_chunked = False
        self._failure: BaseException | None = None

    def connect(self) -> None:
        """Raise: what broke is not connected again here."""
        raise http.client.NotConnected

    def putrequest(self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False) -> None:
        """Send the request's line, with the query that `url` lacks."""
        super().putrequest(method, self._sent_target, skip_host, skip_accept_encoding)

    def ask(
        self, method: str, target: Target, headers: Mapping[str, str], body: Body, timeout: float
    ) -> urllib3.BaseHTTPResponse:
        """Send a request and return its answer, whose body is still to come.

        Raises  Broken, and what the body raises
        """
        wire, self._sent_target = self.wire, target.path
        self._body, self._failure, self._is_chunked = body, None, False
        if self.proxy_told:
            self._sent_target, headers = target.url, {**headers, **self.proxy_told.headers()}
        if isinstance(body, bytes):
            headers = {**headers, "Content-Length": str(len(body))}
        elif body is not None and "Content-Length" not in headers:
            headers, self._is_chunked = {**headers, "Transfer-Encoding": "chunked"}, True
        wire.heard, wire.listening, wire.allowance = False, False, _HEADER_BYTES
        wire.patience = Patience(timeout, refills=True)
        is_whole = True
        try:
            try:
                self.request(
                    method, target.path.partition("?")[0], None, headers, preload_content=False, decode_content=False
                )
            except (AnsweredError, BrokenPipeError, ConnectionResetError) as err:
                if err is self._failure:
                    raise
                is_whole = False                # what it says to that may have come
            wire.listening = False
            wire.patience = Patience(timeout, refills=False)
            response = self.getresponse()
        except _FAILURES as err:
            if err is self._failure:
                raise                           # it is the body's
            broken = broken_by(err)
        else:
            self.is_last = not is_whole
            return response
        finally:
            self._failure = None                # no cycle through its traceback
        raise broken

    def endheaders(self, message_body: Any = None, *, encode_chunked: bool = False) -> None:
        """Send the headers, and the body behind them: urllib3 would copy each block first."""
        super().endheaders(message_body, encode_chunked=encode_chunked)
        body, self._body = self._body, None
        self.wire.listening = True
        if isinstance(body, bytes):
            self.send(body)
        elif body is not None:
            self._send_blocks(self._made(lambda: iter(body())))

    def _send_blocks(self, blocks: Iterator[bytes]) -> None:
        before = b""
        try:
            while block := self._made(lambda: next(filter(None, blocks), b"")):
                if self._is_chunked:
                    self.send(b"%b%x\r\n" % (before, len(block)))
                    before = b"\r\n"
                self.send(block)
            self.send(before)                   # the last chunk, of no bytes, is urllib3's
        finally:
            if isinstance(blocks, Generator):
                blocks.close()

    def _made(self, make: Callable[[], T]) -> T:
        """Return a part of the body. What making it raises is not the connection's."""
        try:
            return make()
        except BaseException as err:
            self._failure = err
            raise

    def end(self) -> None:
        """End it: for the other side too, though a child that was forked may have the socket."""
        self.wire.cut()
        self.forget()

    def forget(self) -> None:
        """Close it in this process alone."""
        self.close()
        self.wire.close()


def broken_by(err: BaseException) -> Broken:
    """Return what a failure of a connection is, without words that the other side chose."""
    while isinstance(err, urllib3.exceptions.HTTPError) and (err.__cause__ or err.__context__):
        err = err.__cause__ or err.__context__ or err
    # What the other side alerts of within TLS 1.3 comes after the handshake: that a certificate is required, say.
    return Broken(_why(err), is_final=isinstance(err, ssl.SSLError) and "ALERT" in (err.reason or ""))


def _why(err: BaseException) -> str:
    if isinstance(err, TimeoutError):
        return "it did not answer in time"
    if isinstance(err, ssl.SSLError):
        return reason_of(err)
    if isinstance(err, (http.client.RemoteDisconnected, http.client.NotConnected)):
        return "the connection was closed without an answer"
    if isinstance(err, http.client.IncompleteRead):
        return "the connection was closed within the body"
    if isinstance(err, OSError) and err.strerror:
        return f"the connection broke: {err.strerror.lower()}"
    return "what came is not HTTP"


class Reply:
    """An answer whose body is read as it comes. Use it as a context manager.

    status   of HTTP
    headers  of it
    host     "name:port" of who answered
    url      scheme, host and path
    """

    def __init__(
        self, call: Call, pool: Pool, connection: Connection, response: urllib3.BaseHTTPResponse, target: Target,
        timeout: float,
    ) -> None:  # fmt: skip
        self.status = response.status
        self.headers = Headers(response.headers.items())
        self.host, self.url, self.target = target.place.full_name, target.told, target
        self._call, self._pool, self._connection, self._response = call, pool, connection, response
        self._wire = connection.wire
        self._is_open = True
        self._timeout = timeout
        self._wire.patience = Patience(timeout, refills=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def hurry(self, seconds: float) -> None:
        """Let all that is still to come take so long together, or as long as a KiB may, if that is less."""
        self._wire.patience = Patience(min(seconds, self._timeout), refills=False)

    def read(self, n: int = 1 << 20) -> bytes:
        """Return the next bytes of the body, as many as are here, at most n; b"" at its end.

        Raises  Broken   it was cut, or stalled; or what stopped the call
        """
        if not self._is_open:
            return b""
        self._call.check()
        self._wire.allowance = n + _AROUND
        try:
            block = self._response.read1(n)
        except _FAILURES as err:
            broken = broken_by(err)
        else:
            if not block:
                self._call.check()
                self._end(is_whole=True)
            elif self._response.length_remaining == 0:
                self._end(is_whole=True)
            return block or b""
        self.close()
        self._call.check()
        raise broken

    def close(self) -> None:
        """Return the connection to its pool if the body was read to its end, else close it. Twice is harmless."""
        if self._is_open:
            self._end(is_whole=self._response.length_remaining == 0)

    def _end(self, *, is_whole: bool) -> None:
        self._is_open = False
        self._call.drop(self._wire)
        connection = self._connection
        is_kept = is_whole and connection.sock is not None and self.status >= 200 and not connection.is_last
        self._response.close()
        if is_kept:
            self._pool.give(connection)
        else:
            connection.end()


class Pool:
    """Connections that wait for a next request, by what they lead to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._is_closed = False

    def take(self, leads_to: object) -> Connection | None:
        """Return the connection used last, None if there is none that is still connected."""
        while True:
            with self._lock:
                found = next((each for each in reversed(self._idle) if each.leads_to == leads_to), None)
                if found is None:
                    return None
                self._idle.remove(found)
            found.waited = time.monotonic() - found.waited
            if found.wire.is_idle():
                return found
            found.end()

    def give(self, connection: Connection) -> None:
        """Take a connection back."""
        connection.waited = time.monotonic()
        with self._lock:
            is_kept = not self._is_closed and not connection.wire.is_inherited
            if is_kept:
                self._idle.append(connection)
            beyond = self._idle[:-_IDLE]
            self._idle = self._idle[-_IDLE:]
        for each in beyond if is_kept else [connection]:
            each.end()

    def close(self) -> None:
        """Close all that wait, and each that comes back."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for each in idle:
            each.end()

    def renew(self) -> None:
        """Begin anew in a forked child, which has copies of its parent's descriptors."""
        self._lock = threading.Lock()           # a thread of the parent may hold the old one
        inherited, self._idle = self._idle, []
        for each in inherited:
            each.forget()
