"""Where requests go: hosts as people write them, and URLs as servers name them, which are checked before any use."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final, NamedTuple
from urllib.parse import urljoin

from layerstore.documents.references import HUB
from layerstore.errors import RegistryError, readable

HUB_HOST: Final = "registry-1.docker.io"
PORTS: Final = {"http": 80, "https": 443}

_TOLD: Final = 500                      # characters of what a server named, as an error tells it
_LONGEST_HOST: Final = 300              # names have 253 characters

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_NAME = rf"{_LABEL}(?:\.{_LABEL})*"
_WRITTEN = re.compile(rf"(?:(https?)://)?(?:({_NAME})|\[([0-9a-fA-F:.]+)\])(?::([0-9]{{1,5}}))?")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")
# A host in a URL may also have underscores and a dot at its end: both are names that resolvers take.
_ABSOLUTE = re.compile(r"([A-Za-z]+)://([^/?#]*)(.*)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_AUTHORITY = re.compile(r"(?:([A-Za-z0-9_.-]+)|\[([0-9a-fA-F:.]+)\])(?::([0-9]{1,5}))?")
_SOUND = re.compile(r"[!-~]+")


class Place(NamedTuple):
    """A host that is asked.

    scheme   "http" or "https"; "" while it is unknown
    host     in lower case, an IPv6 address without brackets
    port     0: the scheme's own
    """

    scheme: str
    host: str
    port: int = 0

    @property
    def name(self) -> str:
        """"name", or "name:port" if a port was written."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host

    @property
    def real_port(self) -> int:
        """The port; of an unknown scheme that of https."""
        return self.port or PORTS[self.scheme or "https"]

    @property
    def full_name(self) -> str:
        """"name:port", always with the port."""
        return self._replace(port=self.real_port).name

    def is_same(self, other: Place) -> bool:
        """Return True if scheme, host and port are the same."""
        return (self.scheme, self.host, self.real_port) == (other.scheme, other.host, other.real_port)


class Target(NamedTuple):
    """What is asked for.

    place   where
    path    with the query, as it was named
    """

    place: Place
    path: str

    @property
    def url(self) -> str:
        """The whole URL. Its query may be a secret."""
        return f"{self.place.scheme}://{self.place.name}{self.path}"

    @property
    def told(self) -> str:
        """The URL as it may be told: scheme, host and path."""
        return f"{self.place.scheme or 'https'}://{self.place.name}{_cut(readable(self.path.partition('?')[0]))}"


def place_of(text: str) -> Place:
    """Read "name", "name:port" or "[address]:port", with "http://" or "https://" in front or not.

    Raises  TypeError, ValueError   it is anything else
    """
    if not isinstance(text, str):
        raise TypeError(f"the host of a registry is a str, not {type(text).__name__}")
    found = _WRITTEN.fullmatch(text)
    advice = "; user and password go into auth=" if "@" in text else ""
    written = f"{_without_user(text)!r}{advice}"
    wrong = ValueError(f'not a host, host:port, or one after "http://" or "https://" (without a path): {written}')
    if not found:
        raise wrong
    scheme, name, address, port = found.groups()
    if (address and not _is_v6(address)) or (port is not None and not 0 < int(port) <= 0xFFFF):
        raise wrong
    return Place(scheme or "", (name or address).lower(), int(port or 0))


def mirror_of(text: str) -> tuple[Place, str]:
    """Read a mirror: as place_of(), with a path or not. Return the place, and the path without a slash at its end."""
    if not isinstance(text, str):
        raise TypeError(f"a mirror is a str, not {type(text).__name__}")
    scheme, sep, rest = text.rpartition("://")
    host, slash, path = rest.partition("/")
    path = (slash + path).rstrip("/")
    place = place_of(scheme + sep + host)
    if not _PREFIX.fullmatch(path):
        raise ValueError(f"the path of a mirror is made of letters, digits, -, _, . and ~, not {readable(path)!r}")
    return place, path


def asked_at(place: Place) -> Place:
    """Return where the registry of this name is: Docker Hub has another host than its name says."""
    return place._replace(host=HUB_HOST) if name_of(place) == HUB else place


def name_of(place: Place) -> str:
    """Return how references and files with credentials name a place."""
    return HUB if place.host in (HUB, f"index.{HUB}") and not place.port else place.name


def check_named(url: str, registry: Place, base: str = "") -> Target:
    """Check a URL that a server named.

    registry   the host of the registry; its scheme is that of the request whose answer named the URL
    base       the URL that was asked: a relative one is taken from there. "": relative ones are refused

    Raises  RegistryError   it may not be asked; the text names its host
    """
    if not _SOUND.fullmatch(url):
        raise _refused("it is empty, or has characters that no URL has", registry)
    if base and not _SCHEME.match(url):
        # Of "///x", urljoin() would make a URL of this host.
        url = f"{registry.scheme}:{url}" if url.startswith("//") else urljoin(base, url)
    found = _ABSOLUTE.fullmatch(url.partition("#")[0])
    if not found:
        raise _refused("it has no host", registry)
    scheme, authority, path = found[1].lower(), found[2], found[3]
    if scheme not in PORTS:
        raise _refused(f"its scheme is {scheme!r}", registry)
    if "@" in authority:
        raise _refused(f"it has a user in it: {authority.rpartition('@')[2]}", registry)
    sound = _AUTHORITY.fullmatch(authority)
    if (
        not sound or len(authority) > _LONGEST_HOST
        or (sound[2] and not _is_v6(sound[2])) or (sound[3] and not 0 < int(sound[3]) <= 0xFFFF)
    ):  # fmt: skip
        raise _refused(f"its host is malformed: {authority!r}", registry)
    place = Place(scheme, (sound[1] or sound[2]).lower(), int(sound[3] or 0))
    if scheme == "http" and registry.scheme == "https":
        raise _refused(f"it leaves TLS: http://{place.name}", registry)
    if is_link_local(place.host):
        raise _refused(f"{place.name} is a link-local address", registry)
    if is_loopback(place.host) and not is_loopback(registry.host):
        raise _refused(f"{place.name} is this machine, and the registry is another one", registry)
    return Target(place, path if path.startswith("/") else f"/{path}")


def is_loopback(host: str) -> bool:
    """Return True for localhost, and for an address of this machine itself."""
    bare = host.rstrip(".").lower()
    if bare == "localhost" or bare.endswith(".localhost"):
        return True
    address = _address(bare)
    return address is not None and (address.is_loopback or address.is_unspecified)


def is_link_local(host: str) -> bool:
    """Return True for an address of 169.254/16 or fe80::/10, however it is spelled."""
    address = _address(host.rstrip("."))
    return address is not None and address.is_link_local


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return a literal address, in any form that the system's resolver takes for one."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))      # 0xa9fea9fe, 169.254.43518 ...
        except OSError:
            return None
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or (ipaddress.IPv4Address(int(address)) if 1 < int(address) < 1 << 32 else None)
        return inner or address
    return address


def _is_v6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _refused(why: str, registry: Place) -> RegistryError:
    return RegistryError(f"{registry.name} names a URL that is not asked: {_cut(why)}", host=registry.full_name)


def _cut(text: str) -> str:
    """Return a text that a server chose, with an end."""
    return text if len(text) <= _TOLD else f"{text[:_TOLD]}..."


def _without_user(text: str) -> str:
    """Return a text as it may be told: what stands before an @ may be a password."""
    return readable(text.rpartition("@")[2]) if "@" in text else readable(text)
