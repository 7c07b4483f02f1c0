"""Requests to one host: tried again, redirected, authenticated and bounded.

Only this module decides what is asked next. What an answer means for images and blobs is its callers' business.
"""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from layerstore.errors import AuthenticationError, LayerStoreError, RegistryError
from layerstore.registry import failures, headers
from layerstore.registry.attempts import Attempts, asked_pause
from layerstore.registry.calls import Broken, Call
from layerstore.registry.dialing import Dialer
from layerstore.registry.failures import Told
from layerstore.registry.places import Place, Target, check_named
from layerstore.registry.tls import Trust
from layerstore.registry.tokens import Authorizer, Stays
from layerstore.registry.tokenserver import TOKEN_LIMIT
from layerstore.registry.transport import Body, Connection, Headers, Pool, Reply
from layerstore.version import VERSION

T = TypeVar("T")

ERROR_LIMIT: Final = 64 << 10
_AGAIN: Final = (408, 429, 500, 502, 503, 504)
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_MOST_REDIRECTS: Final = 10
_ASIDE: Final = 1.0                     # seconds for a body that is read only to use its connection again
_STALE: Final = 1.0                     # seconds without a request, behind which servers may hang up
_MOST_WARNINGS: Final = 1000
_ALWAYS: Final = {"User-Agent": f"layerstore/{VERSION}", "Accept-Encoding": "identity"}

log = logging.getLogger("layerstore")


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
    """How hosts are to be asked: the arguments of Registry().

    ca       PEM texts of certificates to trust beside the system's
    warned   the warnings that were logged
    """

    insecure: bool = False
    ca: str = ""
    timeout: float = 30.0
    retries: int = 5
    warned: dict[str, object] = field(default_factory=dict)


class Session:
    """One host that is asked: the registry, or a mirror.

    place    where it is
    retries  more attempts after a failure
    """

    def __init__(
        self, place: Place, name: str, manners: Manners, *, auth: tuple[str, str] | str | None = None, prefix: str = "",
        may_be_plain: bool = False,
    ) -> None:  # fmt: skip
        """Take a host.

        name          its own, by which files know it
        prefix        a path in front of /v2
        may_be_plain  if its scheme is unknown, it may be asked without TLS
        """
        self.place = place
        self.retries = manners.retries
        self._manners = manners
        self._prefix = prefix
        self._pool = Pool()
        weakref.finalize(self, self._pool.close)           # if close() is forgotten
        trust = Trust(name, ca=manners.ca, insecure=manners.insecure)
        self._dialer = Dialer(place, trust, manners.timeout, may_be_plain=may_be_plain)
        self._authorizer = Authorizer(
            name, auth=auth, timeout=manners.timeout, plain=lambda: self._dialer.scheme == "http",
            exchange=self._exchange,
        )  # fmt: skip
        self._is_closed = False
        self._calls: weakref.WeakSet[Call] = weakref.WeakSet()
        self._lock = threading.Lock()

    def told(self, method: str, path: str) -> Told:
        """Return a request as errors tell it."""
        target = self._target(path)
        return Told(method, target.told, target.place.full_name)

    def close(self) -> None:
        """Close the connections. What is under way is stopped, and what is asked from now on raises RegistryError."""
        with self._lock:
            self._is_closed = True
            calls = [*self._calls]
        for call in calls:
            call.stop(self._closed())
        self._pool.close()

    def renew(self) -> None:
        """Begin anew in a forked child: what is connected is the parent's."""
        self._pool.renew()
        self._calls, self._lock = weakref.WeakSet(), threading.Lock()
        self._dialer.renew()

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
            return _whole(reply, method, limit, beyond, self._redirected(request, reply.url))

        return self._done(call, request, whole)

    def open(
        self, call: Call, path: str, *, scopes: Sequence[str] = (), headers: Mapping[str, str] | None = None,
        expect: Sequence[int] = (200, 206), attempts: Attempts | None = None,
    ) -> Reply:  # fmt: skip
        """Ask for a blob, and return the answer with its body still to be read, by the caller.

        attempts  counts on; None: from none
        Raises    as ask()
        """
        request = _Request("GET", path, tuple(scopes), headers or {}, None, tuple(expect))
        return self._done(call, request, lambda reply: reply, attempts)

    # ---- one request, until it is answered ----

    def _done(
        self, call: Call, request: _Request, finish: Callable[[Reply], T], attempts: Attempts | None = None
    ) -> T:  # fmt: skip
        attempts = attempts or Attempts(self.retries)
        with self._lock:
            self._calls.add(call)
        while True:
            if self._is_closed:
                raise self._closed()
            attempts.made += 1
            asked = 0.0
            try:
                reply = self._course(call, request)
                if reply.status in request.expect:
                    return finish(reply)
                answer = _refusing(reply, request.method)
                err, is_final = self._refusal(request, answer, attempts.made), answer.status not in _AGAIN
                if not is_final:
                    asked, why_not = asked_pause(answer.headers.get("Retry-After"))
                    if why_not:
                        err, is_final = self._refusal(request, answer, attempts.made, why_not), True
            except Broken as broken:
                if request.is_once:
                    raise
                told = broken.told if isinstance(broken, _BrokenThere) else self.told(request.method, request.path)
                err = failures.broken(told, broken.why, attempts.made, about=self._redirected(request, told.url))
                is_final = broken.is_final
            if is_final or request.is_once or attempts.are_spent:
                raise err
            attempts.wait(call, asked, err)

    def _course(self, call: Call, request: _Request) -> Reply:
        """Ask once, wherever that leads. Return an answer that leads no further."""
        target = self._target(request.path)
        is_home = target.place.is_same(self._home())
        repository = request.repository
        sent: str | None = None
        if is_home and not request.is_bare:
            sent = self._authorizer.header(repository, request.scopes, call)
        passed: list[str] = []
        while True:
            reply = self._asked(call, request, target, {"Authorization": sent} if sent and is_home else {}, is_home)
            if reply.status == 401 and is_home and not request.is_bare:
                answer = _refusing(reply, request.method)
                outcome = self._authorizer.challenged(call, repository, request.scopes, answer, sent)
                if isinstance(outcome, Stays):
                    raise self._refusal(request, answer, 1, outcome.why)
                sent = outcome
            elif reply.status in request.follows:
                passed.append(reply.target.url)
                target, here = self._next(reply, request, passed), reply.target.place
                is_home = is_home and target.place.is_same(here)
            else:
                return reply

    def _next(self, reply: Reply, request: _Request, passed: list[str]) -> Target:
        """Return where a redirect leads. Raises RegistryError if that is not asked."""
        told = Told(request.method, reply.url, reply.host)
        location = reply.headers.get("Location")
        _refusing(reply, request.method, _ASIDE)
        why = ""
        if not location:
            why = "it does not say where to"
        elif len(passed) > _MOST_REDIRECTS:
            why = f"more than {_MOST_REDIRECTS} redirects"
        else:
            # A request by TLS never leads to one without, and one that began on another machine never to this one.
            registry = self.place._replace(scheme=reply.target.place.scheme)
            try:
                target = check_named(location, registry, reply.target.url)
            except RegistryError as err:
                why = str(err)
            else:
                if target.url not in passed:
                    return target
                why = f"the redirects go round in a circle, at {target.told}"
        text = ": ".join(filter(None, [f"{told}: {reply.status}", why, self._redirected(request, reply.url)]))
        raise RegistryError(text, status=reply.status, host=reply.host)

    def _asked(
        self, call: Call, request: _Request, target: Target, more: Mapping[str, str], is_home: bool
    ) -> Reply:
        """Send a request once. Return its answer."""
        while True:
            connection = self._dialer.found(call) if is_home else None
            if is_home:
                target = target._replace(place=target.place._replace(scheme=self._dialer.scheme or "http"))
            place = target.place._replace(port=target.place.real_port)
            connection = connection or self._pool.take((place, is_home))
            try:
                if connection is None:
                    connection = self._dialer.dial(call, place, is_home=is_home)
                call.hold(connection.wire)
                reply = self._sent(call, connection, request, target, more)
            except Broken as err:
                # What waited for long may have been closed just now: the request was not seen.
                again = _is_stale(connection) and not request.is_once
                _end(call, connection)
                call.check()
                if is_home:
                    self._dialer.confirm(is_answered=False)
                if not again:
                    told = Told(request.method, target.told, target.place.full_name)
                    raise _BrokenThere(err.why, told, is_final=err.is_final) from None
            except BaseException:
                _end(call, connection)
                call.check()
                raise
            else:
                if is_home:
                    self._dialer.confirm(is_answered=True)
                self._warn(reply)
                return reply

    def _sent(
        self, call: Call, connection: Connection, request: _Request, target: Target, more: Mapping[str, str]
    ) -> Reply:
        sent = {"Host": target.place.name, **_ALWAYS, **request.headers, **more}
        response = connection.ask(request.method, target, sent, request.body, self._manners.timeout)
        return Reply(call, self._pool, connection, response, target, self._manners.timeout)

    def _exchange(
        self, call: Any, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        """Ask for the authorizer: without authentication and redirects. Raises RegistryError."""
        statuses = tuple(status for status in range(200, 600) if status not in _AGAIN)
        request = _Request(method, url, (), headers, body, statuses, is_bare=True)
        return self._done(call, request, lambda reply: _whole(reply, method, TOKEN_LIMIT, AuthenticationError))

    # ---- what is said about it ----

    def _closed(self) -> RegistryError:
        return RegistryError(f"the registry is closed: {self.place.name}", host=self._home().full_name)

    def refusal(
        self, method: str, answer: Answer, attempts: int, *, about: str = "", upload: bool = False
    ) -> RegistryError:
        """Return the exception for an answer that was not expected.

        about    more to say of it
        upload   True: to a step of an upload
        """
        told = Told(method, answer.url, answer.host)
        return failures.refusal(
            told, answer.status, answer.body, attempts, about=about, upload=upload, hide=self._authorizer.hide
        )

    def _refusal(self, request: _Request, answer: Answer, attempts: int, about: str = "") -> RegistryError:
        about = ": ".join(filter(None, [about, self._redirected(request, answer.url)]))
        return self.refusal(request.method, answer, attempts, about=about, upload=request.upload)

    def _redirected(self, request: _Request, url: str) -> str:
        """Return the end of an error of a URL to which a redirect led: it names what was asked for."""
        first = self.told(request.method, request.path).url
        return f"redirected from {first}" if first != url else ""

    def asked_to_wait(self, method: str, answer: Answer, attempts: int) -> float:
        """Return the seconds that an answer asks to wait before another attempt; 0: it does not say so.

        Raises  RegistryError   it asks for more than a minute
        """
        seconds, why_not = asked_pause(answer.headers.get("Retry-After"))
        if why_not:
            raise self.refusal(method, answer, attempts, about=why_not)
        return seconds

    def _warn(self, reply: Reply) -> None:
        warned = self._manners.warned
        for text in headers.warnings(reply.headers.all("Warning")):
            text = self._authorizer.hide(text)
            mine = object()
            if len(warned) < _MOST_WARNINGS and warned.setdefault(text, mine) is mine:       # of all threads, one
                log.warning("%s warns: %s", reply.host, text)

    def _home(self) -> Place:
        return self.place._replace(scheme=self._dialer.scheme)

    def _target(self, path: str) -> Target:
        home = self._home()
        return Target(home, self._prefix + path) if path.startswith("/") else check_named(path, home)


class _BrokenThere(Broken):
    """A connection broke; told: what was asked over it."""

    def __init__(self, why: str, told: Told, *, is_final: bool) -> None:
        super().__init__(why, is_final=is_final)
        self.told = told


class _Request(NamedTuple):
    """What ask() and open() were given.

    is_bare   True: without authentication and redirects
    """

    method: str
    path: str
    scopes: tuple[str, ...]
    headers: Mapping[str, str]
    body: Body
    expect: tuple[int, ...]
    upload: bool = False
    is_bare: bool = False

    @property
    def is_once(self) -> bool:
        """True if the caller decides what follows a failure."""
        return self.upload and self.method in ("PATCH", "PUT")

    @property
    def repository(self) -> str:
        """What the first scope is about."""
        return self.scopes[0].split(":")[1] if self.scopes else ""

    @property
    def follows(self) -> tuple[int, ...]:
        """The redirects that are followed."""
        if self.is_bare:
            return ()
        if self.method in ("GET", "HEAD"):
            return _REDIRECTS
        return (307, 308) if self.upload else ()


def _is_stale(connection: Connection | None) -> bool:
    return connection is not None and connection.waited >= _STALE and not connection.wire.heard


def _end(call: Call, connection: Connection | None) -> None:
    if connection is not None:
        call.drop(connection.wire)
        connection.end()


def _refusing(reply: Reply, method: str, seconds: float = math.inf) -> Answer:
    """Return an answer with the body of an error: b"" if it is too long, takes too long, or breaks."""
    with reply:
        reply.hurry(seconds)
        try:
            body = _read(reply, method, ERROR_LIMIT, RegistryError)
        except (Broken, RegistryError):
            body = b""
    return Answer(reply.status, reply.headers, body, reply.url, reply.host)


def _whole(reply: Reply, method: str, limit: int, beyond: type[LayerStoreError], about: str = "") -> Answer:
    with reply:
        body = _read(reply, method, limit, beyond, about)
    return Answer(reply.status, reply.headers, body, reply.url, reply.host)


def _read(reply: Reply, method: str, limit: int, beyond: type[LayerStoreError], about: str = "") -> bytes:
    """Return a body whole, if it is not beyond a limit. about: more to say if it is."""
    length = reply.headers.get("Content-Length").strip()
    is_beyond = method != "HEAD" and length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > limit)
    blocks, size = [], 0
    while not is_beyond and (block := reply.read(min(limit + 1 - size, 1 << 16))):
        blocks.append(block)
        size += len(block)
        is_beyond = size > limit
    if is_beyond:
        text = ": ".join(filter(None, [f"{method} {reply.url}: the answer has more than {limit} bytes", about]))
        if issubclass(beyond, RegistryError):
            raise beyond(text, status=reply.status, host=reply.host)
        raise beyond(text)
    return b"".join(blocks)
