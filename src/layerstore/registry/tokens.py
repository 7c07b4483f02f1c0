"""What a user proves itself with to a registry: a token that its token server gives, the caller's own, or a password.

Enters: the 401 of a registry. Leaves: the value of an Authorization header for the same request. Nothing is sent before
a challenge asked for it, but a token that the caller gave. Tokens are shared among threads; one of them asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final, NamedTuple

from layerstore.errors import AuthenticationError, RegistryError
from layerstore.registry import credentials, headers, helpers, places, tokenserver
from layerstore.registry.credentials import Credentials, Found
from layerstore.registry.flights import Exclusive, Flights, Once
from layerstore.registry.tokenserver import Answered, Caller, Exchange, Realm, Token, TokenServer

# Seconds before the end of a token in which it is not used.
_SPARE: Final = 10.0
# Tokens at a time before those at their end are dropped.
_MANY: Final = 1000


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


class Stays(NamedTuple):
    """A 401 that no other attempt would change; why, for the error."""

    why: str


class _Wanted(NamedTuple):
    """What a token is for, and the credentials that it is asked for with."""

    realm: Realm
    scopes: tuple[str, ...]
    known: Found | None

    @property
    def key(self) -> Hashable:
        """By what a token is kept."""
        return self.realm, frozenset(map(_plain_scope, self.scopes)), self.known


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
        self._given = Found(Credentials(*auth)) if isinstance(auth, tuple) else None
        self._timeout = timeout
        self._plain = plain
        self._exchange = exchange
        self._server = TokenServer(exchange, self.hide)
        self._tokens: dict[Hashable, Token] = {}
        self._latest: dict[Hashable, _Wanted] = {}         # by repository and scopes, what serves them
        self._fixed: dict[str, str] = {}                   # by repository, what is sent as it is
        self._renewed: dict[str, str] = {}                 # identity tokens that the token server replaced
        self._flights: Flights[Token] = Flights()
        self._refreshing = Exclusive()
        self._found: Once[Found | None] = Once()
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
    ) -> Sent | Stays:
        """Return the Authorization for one more attempt of a request that got a 401, or that its 401 stays.

        sent   what the request had, as header() or this method returned it

        Raises  AuthenticationError   of the token server, a helper, a file, or a token server that may not be asked
        """
        if self._token is not None:
            return Stays("the token given was not accepted")
        step = sent.step if isinstance(sent, Sent) else None if sent is None else FRESH
        offered = headers.challenges(answer.headers.all("WWW-Authenticate"))
        if step == LAST or (step == FRESH and not _is_insufficient(offered)):
            return Stays(self._refused(self._given or self._found.peek(repository)))
        usable = self._usable_of(call, offered)
        if usable is None:
            return Stays("it offers no way to authenticate that is known here")
        known = self._known(call, repository)
        asked_for = repository, frozenset(scopes)
        if (known and known.credentials.bearer) or usable.scheme == "basic":
            self._latest.pop(asked_for, None)
            return self._sent_as_it_is(repository, known, sent)
        challenged = {_plain_scope(scope): scope for scope in usable.params.get("scope", "").split()}
        ours = {_plain_scope(scope): challenged.pop(_plain_scope(scope), scope) for scope in scopes}
        # docker-registry names the two repositories of a mount in any order: ours has the target first.
        every = (*challenged.values(), *ours.values())
        wanted = _Wanted(self._realm(usable, answer), every, known)
        token = self._usable(wanted.key) if sent is None else None
        self._latest[asked_for] = wanted
        if token:
            return Sent(f"Bearer {token.value}", KEPT)
        value = f"Bearer {self._token_for(call, wanted, sent).value}"
        return Sent(value, LAST if step == FRESH else FRESH)

    def hide(self, text: str) -> str:
        """Return a text that a server chose without the secrets that it may have repeated."""
        found = [*self._fixed.copy().values(), *self._renewed.copy().values()]
        found += [token.value for token in self._tokens.copy().values()]
        found = [value.removeprefix("Basic ").removeprefix("Bearer ") for value in found]
        found += [self._token or ""]
        looked_up = (each.credentials for each in (self._given, *self._found.values()) if each)
        for known in (*looked_up, *self._asked.values()):
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

    def _known(self, call: Caller, repository: str) -> Found | None:
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

    def _sent_as_it_is(self, repository: str, known: Found | None, sent: str | None) -> Sent | Stays:
        """Return a password, or a token for the registry itself."""
        if known is None:
            return Stays(self._refused(None))
        if known.credentials.refresh:
            return Stays(f"it asks for a password, and there is only {known}")
        bearer = known.credentials.bearer
        value = f"Bearer {bearer}" if bearer else known.credentials.basic()
        if sent == value:
            return Stays(self._refused(known))
        self._fixed[self._whose(repository)] = value
        return Sent(value, FRESH)

    def _refused(self, known: Found | None) -> str:
        """Return what to say of a 401 that came in spite of what was sent."""
        if known is None:
            return f"no credentials for {self._key} were found (docker login, podman login, or auth=)"
        return f"{known} {'was' if known.credentials.refresh or known.credentials.bearer else 'were'} not accepted"

    def _realm(self, challenge: headers.Challenge, answer: Answered) -> Realm:
        registry = places.place_of(self._key)._replace(scheme="http" if self._plain() else "https")
        try:
            return tokenserver.realm_of(challenge, registry)
        except RegistryError as err:
            why = f"{answer.url}: 401: its token server is refused: {err}"
        raise AuthenticationError(why, status=401, host=answer.host)

    # ---- tokens ----

    def _usable(self, key: Hashable) -> Token | None:
        token = self._tokens.get(key)
        return token if token and time.monotonic() < token.until - _SPARE else None

    def _token_for(self, call: Caller, wanted: _Wanted, refused: str | None) -> Token:
        """Return a token; another than the one that was refused, unless the token server gives that again."""
        key = wanted.key

        def make() -> Token:
            token = self._usable(key)
            if token and refused != f"Bearer {token.value}":           # another thread got it meanwhile
                return token
            self._tokens.pop(key, None)
            made = self._got(call, wanted)
            if len(self._tokens) >= _MANY:
                self._tokens = {each: token for each, token in self._tokens.copy().items() if self._usable(each)}
            self._tokens[key] = made
            return made

        return self._flights.get(key, call.check, make)

    def _got(self, call: Caller, wanted: _Wanted) -> Token:
        """Ask the token server."""
        realm, scopes, found = wanted
        known, refused = found.credentials if found else None, self._refused(found)
        if known is None or not known.refresh:
            return self._server.get(call, realm, scopes, known.basic() if known else None, refused)
        first = known.refresh

        def refresh() -> Token:
            token = self._server.refresh(call, realm, scopes, self._renewed.get(first, first), refused)
            if token.refresh:
                self._renewed[first] = token.refresh
            return token

        return self._refreshing.do(call.check, refresh)    # each identity token may be good for one request only


def _best(offered: Sequence[headers.Challenge]) -> headers.Challenge | None:
    """Return the first Bearer challenge with a token server, else the first Basic one."""
    bearer = (each for each in offered if each.scheme == "bearer" and each.params.get("realm"))
    basic = (each for each in offered if each.scheme == "basic")
    return next(bearer, None) or next(basic, None)


def _plain_scope(scope: str) -> str:
    """Return a scope with its actions in one order: docker-registry writes them in any."""
    what, colon, actions = scope.rpartition(":")
    return what + colon + ",".join(sorted({*actions.split(",")}))


def _is_insufficient(offered: Sequence[headers.Challenge]) -> bool:
    return any(each.params.get("error") == "insufficient_scope" for each in offered)
