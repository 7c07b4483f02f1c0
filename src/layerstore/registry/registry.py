"""Registry: one registry host, with its connections."""

from __future__ import annotations

import math
import os
import re
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from layerstore.documents import references
from layerstore.errors import NotSupportedError
from layerstore.registry import places
from layerstore.registry.calls import started
from layerstore.registry.turns import Turns
from layerstore.values import Descriptor, StrPath

# Halves of surrogate pairs, but those that stand for bytes: surrogateescape makes bytes of them again.
_UNWRITABLE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_TOKEN = re.compile(r"[!-~]+")


class Registry:
    """One registry host, with its connections. It opens none by itself. Threads may share it; `with` closes it."""

    def __init__(
        self, host: str, *, auth: tuple[str, str] | str | None = None, insecure: bool = False,
        ca: StrPath | None = None, mirrors: Sequence[str] = (), timeout: float = 30.0, retries: int = 5,
        connections: int = 3, chunk: int | None = None,
    ) -> None:  # fmt: skip
        """Create it.

        host         "name", "name:port" or "[address]:port"; "http://" or "https://" in front of it sets the scheme
        auth         (user, password), or a bearer token; None: what docker and podman have stored, else anonymous
        insecure     True: plain HTTP, or any certificate. A host of this machine may always use plain HTTP
        ca           a PEM file, or a directory of them, with certificates to trust beside those of the system
        mirrors      hosts or URLs to ask for manifests and blobs before the registry
        timeout      seconds without progress that break a connection
        retries      more attempts after a failure
        connections  blobs at a time, both ways
        chunk        bytes of an upload's parts; None: a layer goes in one piece

        Raises  TypeError, ValueError   an argument that cannot be
                OSError                 `ca` cannot be read
                NotSupportedError       urllib3 is not installed
        """
        place = places.place_of(host)
        self.place, self.name = places.asked_at(place), places.name_of(place)
        is_local = places.is_loopback(place.host)
        if not isinstance(insecure, bool):
            raise TypeError(f"insecure is a bool, not {type(insecure).__name__}")
        if place.scheme == "http" and not (insecure or is_local):
            raise ValueError(f"a registry on another machine is asked without TLS only if insecure=True: {host}")
        _check_auth(auth)
        if isinstance(mirrors, (str, bytes)):
            raise TypeError("mirrors is a sequence of hosts or URLs, not one of them")
        asked = [places.mirror_of(mirror) for mirror in mirrors]
        self.connections = _number("connections", connections, least=1)
        self.chunk = None if chunk is None else _number("chunk", chunk, least=1)
        _number("retries", retries, least=0)
        _check_timeout(timeout)
        path = None if ca is None else os.fsdecode(ca)
        _check_urllib3()
        # These load urllib3 and ssl, which `import layerstore` does not.
        from layerstore.registry import session as sessions
        from layerstore.registry import tls

        manners = sessions.Manners(
            insecure=insecure, ca="" if path is None else tls.read_ca(path), timeout=timeout, retries=retries
        )
        self.session = sessions.Session(self.place, self.name, manners, auth=auth, may_be_plain=insecure or is_local)
        # A mirror is tried once more, then passed over.
        hasty = replace(manners, retries=1)
        self.mirrors = [
            sessions.Session(
                places.asked_at(mirror), places.name_of(mirror), hasty, prefix=prefix,
                may_be_plain=insecure or places.is_loopback(mirror.host),
            )
            for mirror, prefix in asked
        ]  # fmt: skip
        self._begin()
        _LIVING.add(self)

    def _begin(self) -> None:
        self.slots = threading.BoundedSemaphore(self.connections)
        self.turns = Turns()

    def _renew(self) -> None:
        """Begin anew in a forked child, whose parent's connections and threads are not its own."""
        self._begin()
        for session in (self.session, *self.mirrors):
            session.renew()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def tags(self, repository: str) -> list[str]:
        """Return the tags of a repository, in the registry's order.

        repository   its path, or its whole name that begins with the registry's

        Raises  ImageError         it is no name, or that of another registry
                RegistryError      the registry failed; NotInRegistryError: it has no such repository
        """
        from layerstore.registry import listing

        path = references.parse_within(self.name, repository).path
        with started() as call:
            return listing.tags(call, self.session, path)

    def manifest(self, reference: str) -> tuple[Descriptor, bytes]:
        """Return a manifest or an index as it is there: what it is, and its bytes.

        reference   its name, which may leave out the registry; without tag and digest: "latest"

        Raises  ImageError         the name is none, or that of another registry; or what came is something else
                RegistryError      the registry failed; NotInRegistryError: it has no such manifest
        """
        from layerstore.registry import manifests

        named = references.parse_within(self.name, reference)
        with started() as call:
            return manifests.fetch(call, [*self.mirrors, self.session], named.path, named.wanted)

    def referrers(self, reference: str, artifact_type: str | None = None) -> list[Descriptor]:
        """Return the manifests that refer to one: signatures, lists of components and other artifacts.

        reference       the name of a manifest, which may leave out the registry
        artifact_type   return those of this type only

        Raises  ImageError         the name is none, or that of another registry
                RegistryError      the registry failed; NotInRegistryError: it has no such tag
        """
        if not isinstance(artifact_type, str | None):
            raise TypeError(f"artifact_type is a str or None, not {type(artifact_type).__name__}")
        from layerstore.registry import listing

        named = references.parse_within(self.name, reference)
        with started() as call:
            return listing.referrers(call, self.session, named, artifact_type)

    def close(self) -> None:
        """Close the connections. Later calls raise RegistryError. Closing twice is harmless."""
        for session in (self.session, *self.mirrors):
            session.close()


def _check_auth(auth: object) -> None:
    """Raise TypeError or ValueError if this is no `auth` argument. What it is stays untold: it is a secret."""
    if auth is None:
        return
    if isinstance(auth, str):
        if not _TOKEN.fullmatch(auth):
            raise ValueError("a token has visible ASCII characters only, and at least one")
    elif not (isinstance(auth, tuple) and all(isinstance(each, str) for each in auth)):
        raise TypeError(f"auth is (user, password), a token, or None, not {type(auth).__name__}")
    elif len(auth) != 2 or ":" in auth[0]:
        raise ValueError("auth is (user, password), and a user has no colon in its name")
    elif any(map(_UNWRITABLE.search, auth)):
        raise ValueError("a user and a password are texts that UTF-8 can write")


def _check_timeout(timeout: object) -> None:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout is a number of seconds, not {type(timeout).__name__}")
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout is a number of seconds above 0, not {timeout}")


def _number(name: str, value: object, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is an int, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} is at least {least}, not {value}")
    return value


def _check_urllib3() -> None:
    needed = "registries need urllib3 2.2 or newer: pip install 'layerstore[registry]'"
    try:
        import urllib3
    except ImportError:
        raise NotSupportedError(needed) from None
    version = str(getattr(urllib3, "__version__", ""))
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) < (2, 2):
        raise NotSupportedError(f"{needed} (here is {version})")


_LIVING: weakref.WeakSet[Registry] = weakref.WeakSet()


def _renew_all() -> None:
    for registry in [*_LIVING]:
        registry._renew()


os.register_at_fork(after_in_child=_renew_all)
