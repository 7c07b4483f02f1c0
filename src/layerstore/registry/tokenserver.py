"""A token server: what a registry's challenge says of it, and the two ways to ask it for a token.

Enters: a challenge, scopes, and credentials. Leaves: a token, or an AuthenticationError that names the server. Its
redirects are followed as those of a registry, and credentials go to its own origin alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlencode

from layerstore.documents import gojson
from layerstore.errors import AuthenticationError, RegistryError
from layerstore.registry import headers, places
from layerstore.registry.headers import Challenge
from layerstore.registry.places import Place, Target

CLIENT: Final = "layerstore"
# Bytes of an answer.
TOKEN_LIMIT: Final = 1 << 20
# Seconds that a token lasts whose answer does not say.
_LASTS: Final = 60.0
# The longest that one is used: a number that some server made may be larger than any float.
_LONGEST: Final = 1e9
_MOST_REDIRECTS: Final = 10
_REDIRECTS: Final = (301, 302, 303, 307, 308)
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


class Realm(NamedTuple):
    """A token server, and the service that it gives tokens for.

    target   where it is, with its own query
    service  "" if the challenge names none
    """

    target: Target
    service: str

    @property
    def told(self) -> str:
        """Its URL as it may be told."""
        return self.target.told

    @property
    def host(self) -> str:
        """"name:port"."""
        return self.target.place.full_name


class Token(NamedTuple):
    """What a token server gave.

    until    when it ends, by time.monotonic()
    refresh  the identity token that replaces the one that was used, or ""
    """

    value: str
    until: float
    refresh: str = ""

    def __repr__(self) -> str:
        return "<token>"


def realm_of(challenge: Challenge, registry: Place) -> Realm:
    """Read where a Bearer challenge sends us. Raises RegistryError: it may not be asked.

    registry   who sent the challenge, with the scheme that it is asked by
    """
    return Realm(places.check_named(challenge.params["realm"], registry), challenge.params.get("service", ""))


class TokenServer:
    """How one registry's token servers are asked."""

    def __init__(self, exchange: Exchange, hide: Callable[[str], str]) -> None:
        """Take what sends the requests, and what hides our secrets in a text that a server chose."""
        self._exchange = exchange
        self._hide = hide

    def get(
        self, call: Caller, realm: Realm, scopes: Iterable[str], authorization: str | None, refused: str = ""
    ) -> Token:
        """Ask for a token, by a Basic authorization or without one.

        refused   what the error says besides if the answer is 401

        Raises    AuthenticationError
        """
        query = [("service", realm.service)] if realm.service else []
        query += [("scope", scope) for scope in scopes]
        path, text = realm.target.path, urlencode(query)
        target = realm.target._replace(path=path + (("&" if "?" in path else "?") + text if text else ""))
        began = time.monotonic()
        answer = self._followed(call, target, {"Authorization": authorization} if authorization else {})
        return self._token(realm, "GET", answer, began, refused)

    def refresh(
        self, call: Caller, realm: Realm, scopes: Iterable[str], identity: str, refused: str = ""
    ) -> Token:
        """Ask for a token, by an identity token. As get()."""
        form = {
            "grant_type": "refresh_token", "service": realm.service, "client_id": CLIENT, "scope": " ".join(scopes),
            "refresh_token": identity,
        }  # fmt: skip
        sent = {"Content-Type": "application/x-www-form-urlencoded"}
        began = time.monotonic()
        answer = self._asked(call, "POST", realm.target, sent, urlencode(form).encode())
        return self._token(realm, "POST", answer, began, refused)

    def _asked(
        self, call: Caller, method: str, target: Target, sent: Mapping[str, str], body: bytes | None = None
    ) -> Answered:
        try:
            return self._exchange(call, method, target.url, {"Accept": "application/json", **sent}, body)
        except RegistryError as err:
            call.check()                   # what stopped the call is not the token server's
            error = AuthenticationError(str(err), status=err.status, code=err.code, host=err.host)
        raise error

    def _followed(self, call: Caller, target: Target, sent: Mapping[str, str]) -> Answered:
        """Ask by GET, wherever that leads."""
        passed: list[str] = []
        while True:
            answer = self._asked(call, "GET", target, sent)
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or not location:
                return answer
            passed.append(target.url)
            following = _next(target, location, passed)
            if not following.place.is_same(target.place):
                sent = {}
            target = following

    def _token(self, realm: Realm, method: str, answer: Answered, began: float, refused: str) -> Token:
        """Read a token server's answer."""
        if answer.status != 200:
            code, message = headers.errors(answer.body)
            said = [f"{answer.status} {code}".rstrip(), self._hide(message), refused if answer.status == 401 else ""]
            why = ": ".join(filter(None, said))
            raise AuthenticationError(
                f"{method} {realm.told}: {why}", status=answer.status, code=code, host=realm.host
            )
        document = gojson.or_none(gojson.parse_struct, answer.body, _ANSWER, "the answer")
        if document is None:
            raise _failed(realm, "its answer is not the JSON document of a token server")
        value = document.get("token") or document.get("access_token") or ""
        lasts = document.get("expires_in", _LASTS)
        if not _VISIBLE.fullmatch(value):
            raise _failed(realm, "its answer has no token, or one with characters that no header may have")
        if isinstance(lasts, bool) or not isinstance(lasts, (int, float)):
            raise _failed(realm, "the expires_in of its answer is not a number")
        return Token(value, began + max(0, min(lasts, _LONGEST)), document.get("refresh_token", ""))


def _next(target: Target, location: str, passed: Sequence[str]) -> Target:
    """Return where a redirect leads. Raises AuthenticationError if that is not asked."""
    try:
        following = places.check_named(location, target.place, target.url)
    except RegistryError as err:
        why = str(err)
    else:
        if following.url not in passed and len(passed) <= _MOST_REDIRECTS:
            return following
        why = f"it redirects in a circle, or more than {_MOST_REDIRECTS} times, at {following.told}"
    raise AuthenticationError(f"GET {target.told}: {why}", host=target.place.full_name)


def _failed(realm: Realm, why: str) -> AuthenticationError:
    return AuthenticationError(f"the token server {realm.told} failed: {why}", status=200, host=realm.host)
