"""What proves to a registry who asks: a token that its token server gives, a token that the caller has, or a password.

Enters: the 401 of a registry. Leaves: the value of an Authorization header for the same request. Nothing is sent before
a challenge asked for it, but a token that the caller gave. Tokens are shared among threads; one of them asks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlencode

from layerstore.documents import gojson
from layerstore.errors import AuthenticationError, ImageError, RegistryError
from layerstore.registry import credentials, headers, helpers, places
from layerstore.registry.credentials import Credentials
from layerstore.registry.flights import Flights, Once, Turns

CLIENT: Final = "layerstore"
TOKEN_LIMIT: Final = 1 << 20
# Seconds that a token lasts whose answer does not say, and the seconds before its end in which it is not used.
_LASTS, _SPARE = 60.0, 10.0
# Tokens at a time before those at their end are dropped.
_MANY = 1000
_VISIBLE = re.compile(r"[!-~]+")
_ANSWER: gojson.Table = {
    "token": gojson.text, "access_token": gojson.text, "refresh_token": gojson.text, "expires_in": gojson.anything,
}  # fmt: skip


class Caller(Protocol):
    """What may be stopped while it waits: a Call."""

    def check(self) -> None:
        """Raise what stopped it."""


class Fields(Protocol):
    """The headers of an answer."""

    def get(self, name: str, default: str = "", /) -> str:
        """Return one header."""

    def all(self, name: str, /) -> list[str]:
        """Return all headers of a name."""


class Answered(Protocol):
    """A whole answer."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Fields:
        """The headers."""

    @property
    def body(self) -> bytes:
        """The body."""

    @property
    def url(self) -> str:
        """What was asked, as it may be told: scheme, host and path."""

    @property
    def host(self) -> str:
        """Who answered: "name:port"."""


class Exchange(Protocol):
    """One request without authentication and without redirects; retried as any.

    url    absolute, or "/v2/" of the registry itself
    body   of at most TOKEN_LIMIT bytes is returned

    Raises RegistryError
    """

    def __call__(
        self, call: Any, method: str, url: str, headers: Mapping[str, str], body: bytes | None, /
    ) -> Answered: ...


class Sent(str):
    """The value of an Authorization header, and what it means when a request with it gets a 401.

    step   KEPT: it served requests before, so another is got; FRESH: it was got for this request; LAST: after that
    """

    step: int

    __slots__ = ("step",)

    def __new__(cls, value: str, step: int) -> Sent:
        """Make one of a header's value."""
        made = super().__new__(cls, value)
        made.step = step
        return made

    def __repr__(self) -> str:
        return "<Authorization>"


KEPT, FRESH, LAST = range(3)


class _Token(NamedTuple):
    value: str
    until: float

    def __repr__(self) -> str:
        return "<token>"


class _Realm(NamedTuple):
    """A token server.

    url    as the challenge has it
    told   without its query
    host   "name:port"
    """

    url: str
    service: str
    told: str
    host: str


class _Wanted(NamedTuple):
    """What a token is for, and who asks for it."""

    realm: _Realm
    scopes: tuple[str, ...]
    known: Credentials | None

    @property
    def key(self) -> Hashable:
        """By what a token is kept."""
        return self.realm.url, self.realm.service, frozenset(self.scopes), self.known


class Authorizer:
    """What one registry host asked for so far, and what was got for it. Safe for threads."""

    def __init__(
        self, key: str, *, auth: tuple[str, str] | str | None, timeout: float, plain: Callable[[], bool],
        exchange: Exchange,
    ) -> None:  # fmt: skip
        """Take the credentials of a registry.

        key        its name in files with credentials: "name", "name:port" or "docker.io"
        auth       a user and a password, a token, or None: look into the files when it asks
        timeout    seconds for a credential helper
        plain      whether the registry is asked by plain HTTP
        exchange   asks the token server
        """
        self._key = key
        self._token = auth if isinstance(auth, str) else None
        self._given = Credentials(*auth) if isinstance(auth, tuple) else None
        self._timeout = timeout
        self._plain = plain
        self._exchange = exchange
        self._tokens: dict[Hashable, _Token] = {}
        self._latest: dict[Hashable, _Wanted] = {}         # by repository and scopes, what serves them
        self._fixed: dict[str, str] = {}                   # by repository, what is sent as it is
        self._renewed: dict[str, str] = {}                 # identity tokens that the token server replaced
        self._flights: Flights[_Token] = Flights()
        self._refreshing = Turns()
        self._found: Once[Credentials | None] = Once()
        self._asked: Once[Credentials | None] = Once()

    def header(self, repository: str, scopes: Iterable[str] = (), call: Caller | None = None) -> str | None:
        """Return the Authorization that a request begins with; None: it is sent without.

        call   a token that is at its end is replaced now, on behalf of this call; None: the next 401 does it

        Raises  AuthenticationError   the token server refused
        """
        if self._token is not None:
            return Sent(f"Bearer {self._token}", LAST)
        if wanted := self._latest.get((repository, frozenset(scopes))):
            if token := self._usable(wanted.key):
                return Sent(f"Bearer {token.value}", KEPT)
            if call is not None:
                return Sent(f"Bearer {self._token_for(call, wanted, None).value}", FRESH)
        fixed = self._fixed.get(self._whose(repository))
        return Sent(fixed, KEPT) if fixed else None

    def challenged(
        self, call: Caller, repository: str, scopes: Iterable[str], answer: Answered, sent: str | None
    ) -> str | None:
        """Return the Authorization for one more attempt of a request that got a 401; None: its 401 stays.

        sent   what the request had, as header() or this method returned it

        Raises  AuthenticationError   of the token server, a helper, a file, or a token server that may not be asked
        """
        step = sent.step if isinstance(sent, Sent) else None if sent is None else FRESH
        offered = headers.challenges(answer.headers.all("WWW-Authenticate"))
        if step == LAST or self._token is not None or (step == FRESH and not _is_insufficient(offered)):
            return None
        usable = self._usable_of(call, offered)
        if usable is None:
            return None
        known = self._known(call, repository)
        asked_for = repository, frozenset(scopes)
        if (known and known.bearer) or usable.scheme == "basic":
            self._latest.pop(asked_for, None)
            return self._sent_as_it_is(repository, known, sent)
        every = dict.fromkeys([*usable.params.get("scope", "").split(), *scopes])
        wanted = _Wanted(self._realm(usable, answer), tuple(every), known)
        token = self._usable(wanted.key) if sent is None else None
        self._latest[asked_for] = wanted
        if token:
            return Sent(f"Bearer {token.value}", KEPT)
        value = f"Bearer {self._token_for(call, wanted, sent).value}"
        return Sent(value, LAST if step == FRESH else FRESH)

    def lacks(self, repository: str) -> str:
        """Return a sentence for the error of a 401 that stays, if it stays as there are no credentials; else ""."""
        known = self._found.peek(repository) if self._given is None and self._token is None else True
        return "" if known else f"no credentials for {self._key} were found"

    def hide(self, text: str) -> str:
        """Return a text that a server chose without the secrets that it may have repeated."""
        found = [*self._fixed.values(), *(token.value for token in [*self._tokens.values()]), *self._renewed.values()]
        found = [value.removeprefix("Basic ").removeprefix("Bearer ") for value in found]
        found += [self._token or ""]
        for known in (self._given, *self._found.values(), *self._asked.values()):
            found += known.secrets() if known else ()
        for secret in sorted(filter(None, found), key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    # ---- what is asked for ----

    def _usable_of(self, call: Caller, offered: Sequence[headers.Challenge]) -> headers.Challenge | None:
        """Return the challenge to answer: of the 401, else of that to `GET /v2/`."""
        if found := _best(offered):
            return found
        again = self._exchange(call, "GET", "/v2/", {}, None)
        return _best(headers.challenges(again.headers.all("WWW-Authenticate"))) if again.status == 401 else None

    def _known(self, call: Caller, repository: str) -> Credentials | None:
        def ask(helper: str, server: str) -> Credentials | None:
            return self._asked.get(
                (helper, server), call.check, lambda: helpers.ask(helper, server, self._timeout, call.check)
            )

        if self._given is not None:
            return self._given
        return self._found.get(repository, call.check, lambda: credentials.find(self._key, repository, ask))

    def _whose(self, repository: str) -> str:
        """Return by what is kept what a repository is asked with: files may have others for each."""
        return "" if self._given is not None else repository

    def _sent_as_it_is(self, repository: str, known: Credentials | None, sent: str | None) -> str | None:
        """Return a password or a token of the caller's; None: there is none, or just that was refused."""
        if known is None or known.refresh:
            return None
        value = f"Bearer {known.bearer}" if known.bearer else known.basic()
        if sent == value:
            return None
        self._fixed[self._whose(repository)] = value
        return Sent(value, FRESH)

    def _realm(self, challenge: headers.Challenge, answer: Answered) -> _Realm:
        registry = places.place_of(self._key)._replace(scheme="http" if self._plain() else "https")
        try:
            target = places.check_named(challenge.params["realm"], registry)
        except RegistryError as err:
            why = f"{answer.url}: 401: its token server is refused: {err}"
        else:
            return _Realm(target.url, challenge.params.get("service", ""), target.told, target.place.full_name)
        raise AuthenticationError(why, status=401, host=answer.host)

    # ---- tokens ----

    def _usable(self, key: Hashable) -> _Token | None:
        token = self._tokens.get(key)
        return token if token and time.monotonic() < token.until - _SPARE else None

    def _token_for(self, call: Caller, wanted: _Wanted, refused: str | None) -> _Token:
        """Return a token; another than the one that was refused, unless the token server gives that again."""
        key = wanted.key

        def make() -> _Token:
            token = self._usable(key)
            if token and refused != f"Bearer {token.value}":           # another thread got it meanwhile
                return token
            self._tokens.pop(key, None)
            made = self._got(call, wanted)
            if len(self._tokens) >= _MANY:
                self._tokens = {each: token for each, token in [*self._tokens.items()] if self._usable(each)}
            self._tokens[key] = made
            return made

        return self._flights.get(key, call.check, make)

    def _got(self, call: Caller, wanted: _Wanted) -> _Token:
        """Ask the token server."""
        began, realm, known = time.monotonic(), wanted.realm, wanted.known
        if known and known.refresh:
            document = self._refreshed(call, wanted, known.refresh)
        else:
            query = [("service", realm.service)] if realm.service else []
            query += [("scope", scope) for scope in wanted.scopes]
            text = urlencode(query)
            url = realm.url + (("&" if "?" in realm.url else "?") + text if text else "")
            document = self._document(call, realm, "GET", url, {"Authorization": known.basic()} if known else {}, None)
        value = document.get("token") or document.get("access_token") or ""
        lasts = document.get("expires_in", _LASTS)
        if not _VISIBLE.fullmatch(value):
            raise _failed(realm, "its answer has no token, or one with characters that no header may have")
        if isinstance(lasts, bool) or not isinstance(lasts, (int, float)):
            raise _failed(realm, "the expires_in of its answer is not a number")
        return _Token(value, began + lasts)

    def _refreshed(self, call: Caller, wanted: _Wanted, first: str) -> dict[str, Any]:
        """Ask by an identity token: one at a time, as each may be good for one request only."""
        with self._refreshing.taken(call.check):
            form = {
                "grant_type": "refresh_token", "service": wanted.realm.service, "client_id": CLIENT,
                "scope": " ".join(wanted.scopes), "refresh_token": self._renewed.get(first, first),
            }  # fmt: skip
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            document = self._document(call, wanted.realm, "POST", wanted.realm.url, kind, urlencode(form).encode())
            if renewed := document.get("refresh_token"):
                self._renewed[first] = renewed
        return document

    def _document(
        self, call: Caller, realm: _Realm, method: str, url: str, sent: dict[str, str], body: bytes | None
    ) -> dict[str, Any]:
        try:
            answer = self._exchange(call, method, url, {"Accept": "application/json", **sent}, body)
        except RegistryError as err:
            call.check()                                   # what stopped the call is not the token server's
            error = AuthenticationError(str(err), status=err.status, code=err.code, host=err.host)
        else:
            if answer.status == 200:
                document = _parsed(answer.body)
                if document is None:
                    raise _failed(realm, "its answer is not the JSON document of a token server")
                return document
            code, message = headers.errors(answer.body)
            why = ": ".join(filter(None, [f"{answer.status} {code}".rstrip(), self.hide(message)]))
            error = AuthenticationError(
                f"{method} {realm.told}: {why}", status=answer.status, code=code, host=realm.host
            )
        raise error


def _best(offered: Sequence[headers.Challenge]) -> headers.Challenge | None:
    """Return the first Bearer challenge with a token server, else the first Basic one."""
    bearer = (each for each in offered if each.scheme == "bearer" and each.params.get("realm"))
    basic = (each for each in offered if each.scheme == "basic")
    return next(bearer, None) or next(basic, None)


def _is_insufficient(offered: Sequence[headers.Challenge]) -> bool:
    return any(each.params.get("error") == "insufficient_scope" for each in offered)


def _failed(realm: _Realm, why: str) -> AuthenticationError:
    return AuthenticationError(f"the token server {realm.told} failed: {why}", status=200, host=realm.host)


def _parsed(body: bytes) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = gojson.parse_struct(body, _ANSWER, "the answer")
        return found
    except ImageError:
        return None
