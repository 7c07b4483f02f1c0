"""Proxies, as the environment names them: for which hosts, and what is said to them first."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from layerstore.errors import RegistryError
from layerstore.registry.calls import Broken, Call
from layerstore.registry.places import Place, is_loopback
from layerstore.registry.sockets import Wire

_LIMIT = 64 << 10                       # bytes of a proxy's answer
_WRITTEN = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*)://)?(?:([^/]*)@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?/?")
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: |\r?\n)")
_END = re.compile(rb"\r?\n\r?\n")


class Proxy(NamedTuple):
    """A proxy.

    authorization   the value of Proxy-Authorization, or "". It is a secret
    """

    host: str
    port: int
    authorization: str

    def __repr__(self) -> str:
        return f"<Proxy {self.name}>"

    @property
    def name(self) -> str:
        """"name:port"."""
        return Place("http", self.host, self.port).full_name

    def headers(self) -> dict[str, str]:
        """Return what a request to the proxy itself has beside its other headers."""
        return {"Proxy-Authorization": self.authorization} if self.authorization else {}


def proxy_for(place: Place) -> Proxy | None:
    """Return the proxy by which a place is asked; None: it is asked itself.

    Raises  RegistryError   a variable names a proxy that cannot be used; the text has the variable, and not its value
    """
    if is_loopback(place.host):
        return None
    names = [f"{place.scheme}_proxy", "all_proxy"]
    for name in names:
        variable, value = _variable(name)
        if value:
            return None if _is_excepted(place) else _read(variable, value)
        if variable:
            return None                     # set to nothing: no proxy
    return None


def _variable(name: str) -> tuple[str, str]:
    """Return the name that is set, and its value; lower case wins."""
    for each in (name, name.upper()):
        if each in os.environ:
            return each, os.environ[each].strip()
    return "", ""


def _read(variable: str, value: str) -> Proxy:
    found = _WRITTEN.fullmatch(value)
    port = int(found[4] or 80) if found else 0
    if not found or not 0 < port <= 0xFFFF:
        raise RegistryError(f"the variable {variable} does not name a proxy: it must be http://name:port")
    if (found[1] or "http").lower() != "http":
        raise RegistryError(f"the variable {variable} names a proxy of a kind that is not supported; http:// is")
    user = unquote_to_bytes(found[2] or "")
    authorization = f"Basic {base64.b64encode(user).decode()}" if user else ""
    return Proxy(found[3].strip("[]"), port, authorization)


def _is_excepted(place: Place) -> bool:
    """Return True if no_proxy names a place."""
    _, text = _variable("no_proxy")
    return any(_matches(entry.lower(), place) for entry in re.split(r"[,\s]+", text) if entry)


def _matches(entry: str, place: Place) -> bool:
    if entry == "*":
        return True
    try:
        host = ipaddress.ip_address(place.host)
    except ValueError:
        host = None
    name, port = entry, ""
    if entry.startswith("["):
        name, _, port = entry[1:].partition("]")
        port = port.removeprefix(":")
    elif entry.count(":") == 1:
        name, _, port = entry.partition(":")
    if port and port != str(place.real_port):
        return False
    if host:
        try:
            return host in ipaddress.ip_network(name, strict=False)
        except ValueError:
            return False
    name = name.removeprefix("*").rstrip(".")
    asked = place.host.rstrip(".")
    # A name is for the hosts below it, too; with a dot in front, for those alone.
    return bool(name.strip(".")) and (asked.endswith(name if name.startswith(".") else f".{name}") or asked == name)


def tunnel(call: Call, wire: Wire, proxy: Proxy, place: Place) -> None:
    """Have a proxy connect a socket to a place.

    Raises  RegistryError, Broken, what stopped the call
    """
    lines = [f"CONNECT {place.full_name} HTTP/1.1", f"Host: {place.full_name}"]
    lines += [f"{name}: {value}" for name, value in proxy.headers().items()]
    failed = None
    answer = b""
    try:
        wire.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        block = bytearray(4096)
        wire.allowance = _LIMIT
        while not _END.search(answer):
            count = wire.recv_into(block)
            if not count:
                break
            answer += block[:count]
    except OSError as err:
        failed = err
    call.check()
    told = f"the proxy {proxy.name}"
    found = _STATUS.match(answer)
    if failed or not found or not _END.search(answer):
        raise Broken(f"{told} did not answer as proxies do")
    status = int(found[1])
    if status in (408, 429, 500, 502, 503, 504):
        raise Broken(f"{told} did not connect: {status}")
    if not 200 <= status < 300:
        raise RegistryError(f"{told} did not connect to {place.full_name}: {status}", status=status, host=proxy.name)
