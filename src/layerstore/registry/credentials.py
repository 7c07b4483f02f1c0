"""Which credentials count for a registry: what docker and podman wrote into files, and what their helpers know.

Places are looked at in a fixed order; the first that has something for the registry wins. Errors name the file or the
program, never what it holds, and are made outside of the handlers: a JSON error keeps the whole text it was about.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from layerstore.documents import gojson
from layerstore.errors import AuthenticationError

HUB = "docker.io"
# By what the hub is called in files, the usual first.
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")
# Bytes of a file with credentials. The largest seen has some thousands.
_FILE_LIMIT = 1 << 20
_JSON_VARIABLE = "DOCKER_AUTH_CONFIG"
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")
_VISIBLE = re.compile(r"[!-~]+")
_URL = re.compile(r"https?://([^/]+)(?:/.*)?", re.S)

_FILE: gojson.Table = {
    "auths": gojson.map_of(gojson.anything), "credHelpers": gojson.map_of(gojson.text), "credsStore": gojson.text,
}  # fmt: skip
_ENTRY: gojson.Table = dict.fromkeys(("auth", "username", "password", "identitytoken", "registrytoken"), gojson.text)


class Credentials(NamedTuple):
    """What a user proves itself with to a registry or its token server: a name and a password, or a token of two kinds.

    refresh   an identity token, for which the token server gives tokens
    bearer    a token for the registry itself
    """

    user: str = ""
    password: str = ""
    refresh: str = ""
    bearer: str = ""

    def __repr__(self) -> str:
        return "<credentials>"

    def basic(self) -> str:
        """Return the value of an Authorization header with user and password."""
        both = f"{self.user}:{self.password}".encode("utf-8", "surrogateescape")
        return "Basic " + base64.b64encode(both).decode()

    def secrets(self) -> Iterator[str]:
        """Return the texts that must not be shown."""
        yield from filter(None, (self.password, self.refresh, self.bearer))
        if self.password:
            yield self.basic().removeprefix("Basic ")


class Found(NamedTuple):
    """Credentials, and where they come from.

    origin   the path of a file, the name of a program or of a variable; "" for those that the caller gave
    """

    credentials: Credentials
    origin: str = ""

    def __str__(self) -> str:
        if self.credentials.refresh or self.credentials.bearer:
            return f"the {'identity ' if self.credentials.refresh else ''}token of {self.origin}"
        return f"the credentials of {self.origin}" if self.origin else "the user and password given"


class Place(NamedTuple):
    """Where credentials may be.

    name     the path of a file, or the environment variable that holds the JSON itself
    legacy   the file has the entries of "auths" alone, without that level
    """

    name: str
    legacy: bool = False


class AskHelper(Protocol):
    """Ask a credential helper by its name for a server. None: it knows nothing. Raises AuthenticationError."""

    def __call__(self, helper: str, server: str, /) -> Credentials | None: ...


def places(environ: Mapping[str, str] = os.environ) -> list[Place]:
    """Return where credentials may be, in the order in which they count."""
    found = [Place(_JSON_VARIABLE)] if environ.get(_JSON_VARIABLE) else []
    if alone := environ.get("REGISTRY_AUTH_FILE"):
        return [*found, Place(alone)]
    home = environ.get("HOME") or os.path.expanduser("~")
    running = environ.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.getuid()}"
    inside = "containers/auth.json" if environ.get("XDG_RUNTIME_DIR") else "auth.json"
    config = environ.get("XDG_CONFIG_HOME") or f"{home}/.config"
    docker = environ.get("DOCKER_CONFIG") or f"{home}/.docker"
    files = (f"{running}/{inside}", f"{config}/containers/auth.json", f"{docker}/config.json")
    return [*found, *map(Place, files), Place(f"{home}/.dockercfg", legacy=True)]


def find(key: str, repository: str, ask: AskHelper, environ: Mapping[str, str] = os.environ) -> Found | None:
    """Return the credentials for a repository of a registry, of the first place that has some; None: there are none.

    key          the registry: "name:port", or "docker.io"
    repository   its path

    Raises  AuthenticationError   a file is malformed or cannot be read, or a helper failed
    """
    for place in places(environ):
        document = _read(place, environ)
        if document is None:
            continue
        for helper, server in _helpers(document, key, place.name):
            if known := ask(helper, server):
                return Found(known, f"docker-credential-{helper}")
        for entry in _entries(document, key, repository):
            if known := _credentials(entry, place.name):
                return Found(known, place.name)
    return None


class Source(NamedTuple):
    """What one place says of a registry, without its secrets.

    name    the path of a file, or the environment variable that holds the JSON itself
    state   "absent", "malformed", "silent" (it knows nothing of the registry), "helper" or "entry"
    helper  the program that the place names for the registry, or ""
    """

    name: str
    state: str
    helper: str = ""


def sources(key: str, repository: str = "", environ: Mapping[str, str] = os.environ) -> list[Source]:
    """Return all places for credentials, in the order in which they count, with what each says of a registry.

    For doctor: the first whose state is "entry" or "helper" counts (a helper that knows nothing lets the next one
    count), and one that is "malformed" before it stops the search. No helper is asked, and no secret is in the result.
    """
    return [_look(place, key, repository, environ) for place in places(environ)]


def _look(place: Place, key: str, repository: str, environ: Mapping[str, str]) -> Source:
    try:
        document = _read(place, environ)
        if document is None:
            return Source(place.name, "absent")
        for helper, _ in _helpers(document, key, place.name):
            return Source(place.name, "helper", f"docker-credential-{helper}")
        known = any(_credentials(entry, place.name) for entry in _entries(document, key, repository))
        return Source(place.name, "entry" if known else "silent")
    except AuthenticationError:
        return Source(place.name, "malformed")


# ---- one place ---------------------------------------------------------------------------------


def _malformed(name: str, why: str) -> AuthenticationError:
    path = "" if name == _JSON_VARIABLE else name
    return AuthenticationError(f"cannot take credentials from {name}: {why}", path=path)


def _read(place: Place, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Return a place's document with the fields of _FILE; None: it is not there, or empty."""
    if place.name == _JSON_VARIABLE:
        data = environ[_JSON_VARIABLE].encode("utf-8", "surrogateescape")
    else:
        data = _read_file(place.name)
    if len(data) > _FILE_LIMIT:
        raise _malformed(place.name, f"it has more than {_FILE_LIMIT} bytes")
    if not data.strip():
        return None
    found = gojson.or_none(gojson.parse_object, data, "the file")
    document: dict[str, Any] | None = gojson.or_none(
        gojson.struct(_FILE), {"auths": found} if place.legacy and found is not None else found, "the file"
    )
    if document is None:
        raise _malformed(place.name, "it is not a JSON document as docker and podman write it")
    return document


def _read_file(name: str) -> bytes:
    """Return a file's bytes, one more than the limit at most; b"": it is not there."""
    try:
        # Not blocking: a FIFO that no one writes to is an empty file.
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            found = b""
            while len(found) <= _FILE_LIMIT and (block := os.read(fd, _FILE_LIMIT + 1 - len(found))):
                found += block
            return found
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except (OSError, ValueError) as err:
        why = getattr(err, "strerror", None) or "it is no path"
    raise _malformed(name, why)


def _keys(key: str) -> tuple[str, ...]:
    return _HUB_KEYS if key == HUB else (key,)


def _helpers(document: Mapping[str, Any], key: str, name: str) -> Iterator[tuple[str, str]]:
    """Return the helpers that a document names for a registry, each with what it is to be asked for."""
    own: Mapping[str, str | None] = document.get("credHelpers", {})
    named = next((helper for each in _keys(key) if (helper := own.get(each))), None)
    for helper in filter(None, (named, document.get("credsStore"))):
        if not _HELPER_NAME.fullmatch(helper):
            raise _malformed(name, "it names a credential helper with a character that no such name has")
        yield helper, _keys(key)[0]


def _entries(document: Mapping[str, Any], key: str, repository: str) -> Iterator[Any]:
    """Return the entries of "auths" for a repository, the narrowest first."""
    entries: Mapping[str, Any] = document.get("auths", {})
    parts = repository.split("/") if repository else []
    within = ("/".join((key, *parts[:n])) for n in range(len(parts), 0, -1))
    names: Iterable[str] = (*within, *_keys(key))
    yield from (entries[name] for name in names if name in entries)
    for name, entry in entries.items():
        url = _URL.fullmatch(name)
        if url and url[1] in _keys(key):
            yield entry


def _credentials(entry: Any, name: str) -> Credentials | None:
    """Return what an entry of "auths" holds; None: it is empty, as docker writes it for a registry with a helper."""
    if entry is None:
        return None
    found = gojson.or_none(gojson.struct(_ENTRY), entry, "the entry")
    if found is None:
        raise _malformed(name, 'an entry of "auths" has a value of another kind than docker writes')
    if token := found.get("registrytoken"):
        if not _VISIBLE.fullmatch(token):
            raise _malformed(name, 'a "registrytoken" in it has a character that no header may have')
        return Credentials(bearer=token)
    if token := found.get("identitytoken"):
        return Credentials(refresh=token)
    if found.get("auth"):
        both = _decoded(found["auth"])
        if both is None:
            raise _malformed(name, 'an "auth" in it is not the base64 of user:password')
        return Credentials(*both)
    if found.get("username"):
        return Credentials(found["username"], found.get("password", ""))
    return None


def _decoded(auth: str) -> tuple[str, str] | None:
    """Return user and password of an "auth"; None: it is malformed."""
    try:
        both = base64.b64decode("".join(auth.split()), validate=True).decode("utf-8", "surrogateescape")
    except ValueError:
        return None
    user, colon, password = both.partition(":")
    return (user, password.strip("\0")) if colon else None
