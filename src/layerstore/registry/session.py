"""Requests to one host: tried again, redirected and authenticated as registries want it, and bounded.

Only this module decides what is asked next. What an answer means for images and blobs is the caller's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from layerstore.errors import LayerStoreError, RegistryError
from layerstore.registry import failures
from layerstore.registry.attempts import Attempts
from layerstore.registry.calls import Broken, Call
from layerstore.registry.failures import Told
from layerstore.registry.places import Place, Target, check_named
from layerstore.registry.sockets import Patience, connected
from layerstore.registry.transport import Body, Connection, Headers, Pool, Reply
from layerstore.version import VERSION

T = TypeVar("T")

ERROR_LIMIT: Final = 64 << 10
_AGAIN: Final = (408, 429, 500, 502, 503, 504)
_ERROR_SECONDS: Final = 30.0            # for the body of an error
_ALWAYS: Final = {"User-Agent": f"layerstore/{VERSION}", "Accept-Encoding": "identity"}

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """An answer that was read whole.

    url    scheme, host and path of who answered
    host   its "name:port"
    """

    status: int
    headers: Headers
    body: bytes
    url: str
    host: str


@dataclass(frozen=True)
class Manners:
    """How a registry is to be asked; the arguments of Registry()."""

    insecure: bool = False
    timeout: float = 30.0
    retries: int = 5


class Session:
    """One host that is asked: the registry, or a mirror.

    place    where it is
    retries  more attempts after a failure
    """

    def __init__(self, place: Place, manners: Manners, *, prefix: str = "") -> None:
        self.place, self.retries = place, manners.retries
        self._manners = manners
        self._prefix = prefix
        self._pool = Pool()
        self._is_closed = False

    def close(self) -> None:
        """Close the connections. What is asked from now on raises RegistryError."""
        self._is_closed = True
        self._pool.close()

    def ask(
        self, call: Call, method: str, path: str, *, scopes: Sequence[str] = (),
        headers: Mapping[str, str] | None = None, body: Body = None, expect: Sequence[int] = (200,),
        limit: int = ERROR_LIMIT, beyond: type[LayerStoreError] = RegistryError, upload: bool = False,
    ) -> Answer:  # fmt: skip
        """Ask, and return the whole answer.

        path     of the registry, or the URL that a server named
        scopes   what is done, for a token: "repository:library/app:pull"
        body     bytes, or what makes its blocks, each time that the request begins
        expect   the statuses that are returned
        limit    the bytes that the answer may have
        beyond   what is raised if it has more
        upload   True: a step of an upload. PATCH and PUT are not tried again, and raise Broken

        Raises  RegistryError   any other status, or no answer; what stopped the call; what `body` raises
        """
        request = _Request(method, path, tuple(scopes), headers or {}, body, tuple(expect), upload)

        def whole(reply: Reply) -> Answer:
            with reply:
                found = _read(reply, request.method, limit, beyond)
                return Answer(reply.status, reply.headers, found, reply.url, reply.host)

        return self._done(call, request, whole)

    def open(
        self, call: Call, path: str, *, scopes: Sequence[str] = (), headers: Mapping[str, str] | None = None,
        expect: Sequence[int] = (200, 206), attempts: Attempts | None = None,
    ) -> Reply:  # fmt: skip
        """Ask for a blob, and return the answer with its body still to be read, by the caller.

        attempts  counts on; None: from none
        Raises    as ask()
        """
        request = _Request("GET", path, tuple(scopes), headers or {}, None, tuple(expect), False)
        return self._done(call, request, lambda reply: reply, attempts)

    def told(self, method: str, path: str) -> Told:
        """Return a request as errors tell it."""
        target = self._target(path)
        return Told(method, target.told, target.place.full_name)

    # ---- one request, until it is answered ----

    def _done(
        self, call: Call, request: _Request, finish: Callable[[Reply], T], attempts: Attempts | None = None
    ) -> T:  # fmt: skip
        first, told = self._target(request.path), self.told(request.method, request.path)
        attempts = attempts or Attempts(self._manners.retries)
        while True:
            if self._is_closed:
                raise RegistryError(f"{told}: the registry is closed", host=told.host)
            attempts.made += 1
            pause = 0.0
            try:
                reply = self._course(call, request, first)
                if reply.status in request.expect:
                    return finish(reply)
                err, pause = _refused(reply, request, attempts.made)
                is_final = err.status not in _AGAIN
            except Broken as broken:
                if request.is_once:
                    raise
                err, is_final = failures.broken(told, broken.why, attempts.made), broken.is_final
            if is_final or request.is_once or attempts.are_spent:
                raise err
            attempts.wait(call, pause)

    def _course(self, call: Call, request: _Request, target: Target) -> Reply:
        """Ask once, wherever that leads. Return an answer that leads no further."""
        return self._exchange(call, request, target, {})

    def _exchange(self, call: Call, request: _Request, target: Target, more: Mapping[str, str]) -> Reply:
        """Send a request, and return its answer."""
        headers = {"Host": target.place.name, **_ALWAYS, **request.headers, **more}
        if isinstance(request.body, bytes):
            headers["Content-Length"] = str(len(request.body))
        while True:
            connection = self._pool.take(target.place)
            is_used = connection is not None
            if connection is None:
                connection = self._connect(call, target.place)
            else:
                call.hold(connection.wire)
            try:
                response = connection.ask(request.method, target.path, headers, request.body, self._manners.timeout)
                return Reply(call, self._pool, connection, response, target, self._manners.timeout)
            except Broken:
                # It was closed while it waited in the pool: nobody has seen the request.
                again = is_used and not connection.wire.heard and not request.is_once
                _end(call, connection)
                call.check()
                if not again:
                    raise
            except BaseException:
                _end(call, connection)
                raise

    def _connect(self, call: Call, place: Place) -> Connection:
        patience = Patience(self._manners.timeout, refills=False)
        wire = connected(call, place.host, place.real_port, patience)
        return Connection(wire, place)

    def _target(self, path: str) -> Target:
        place = self.place._replace(scheme=self.place.scheme or "http")
        if path.startswith("/"):
            return Target(place, self._prefix + path)
        return check_named(path, place)


class _Request(NamedTuple):
    """What ask() and open() were given."""

    method: str
    path: str
    scopes: tuple[str, ...]
    headers: Mapping[str, str]
    body: Body
    expect: tuple[int, ...]
    upload: bool

    @property
    def is_once(self) -> bool:
        """True if the caller decides what follows a failure."""
        return self.upload and self.method in ("PATCH", "PUT")


def _end(call: Call, connection: Connection) -> None:
    call.drop(connection.wire)
    connection.end()


def _refused(reply: Reply, request: _Request, attempts: int) -> tuple[RegistryError, float]:
    """Return the error of an answer that was not expected, and the seconds that it asks to wait."""
    told = Told(request.method, reply.url, reply.host)
    with reply:
        reply.limit(_ERROR_SECONDS)
        try:
            body = _read(reply, request.method, ERROR_LIMIT, RegistryError)
        except (Broken, RegistryError):
            body = b""
    return failures.refusal(told, reply.status, body, attempts), 0.0


def _read(reply: Reply, method: str, limit: int, beyond: type[LayerStoreError]) -> bytes:
    """Return a body whole, if it is not beyond a limit."""
    length = reply.headers.get("Content-Length")
    is_beyond = method != "HEAD" and length.isascii() and length.isdigit() and int(length) > limit
    blocks, size = [], 0
    while not is_beyond and (block := reply.read(min(limit + 1 - size, 1 << 16))):
        blocks.append(block)
        size += len(block)
        is_beyond = size > limit
    if is_beyond:
        text = f"{method} {reply.url}: the answer has more than {limit} bytes"
        raise beyond(text, **({"host": reply.host} if issubclass(beyond, RegistryError) else {}))
    return b"".join(blocks)
