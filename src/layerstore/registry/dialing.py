"""How a connection to a place is made: itself or by a proxy, with TLS or without.

A host whose scheme was not written is asked by TLS first. If it may be asked without TLS, and speaks none, it is asked
without from then on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from layerstore.registry import proxies
from layerstore.registry.calls import Broken, Call
from layerstore.registry.places import Place
from layerstore.registry.proxies import Proxy
from layerstore.registry.secure import NoTLSError, secured
from layerstore.registry.sockets import Patience, Wire, connected, let_go
from layerstore.registry.tls import Trust
from layerstore.registry.transport import Connection

_LOOK = 0.05


class Dialer:
    """Makes the connections of one session, and finds out the scheme of its host."""

    def __init__(self, home: Place, trust: Trust, timeout: float, *, may_be_plain: bool) -> None:
        """home: the session's host.  may_be_plain: it may be asked without TLS, though its scheme was not written"""
        self._home, self._trust, self._timeout = home, trust, timeout
        self._may_be_plain = may_be_plain
        self.scheme = home.scheme or ("" if may_be_plain else "https")
        self._is_supposed = False
        self._finding = threading.Lock()

    def renew(self) -> None:
        """Begin anew, in a forked child."""
        self._finding = threading.Lock()
        self._trust.renew()

    def found(self, call: Call) -> Connection | None:
        """Find out the scheme of the host, if it is unknown. Return the connection that came of that.

        Raises  Broken, RegistryError, what stopped the call
        """
        if self.scheme:
            return None
        with self._alone(call):
            return self._find(call) if not self.scheme else None       # another thread may have found it

    def _find(self, call: Call) -> Connection | None:
        try:
            connection = self.dial(call, self._home._replace(scheme="https"), is_home=True)
        except NoTLSError as err:
            # Who only hangs up may be a host that starts: what it says to plain HTTP decides.
            self._is_supposed = not err.is_sure
            self.scheme = "http"
            return None
        self.scheme = "https"
        return connection

    def confirm(self, *, is_answered: bool) -> None:
        """Learn whether a request to the host got an answer."""
        if self._is_supposed:
            with self._finding:
                if self._is_supposed and not is_answered:
                    self.scheme = ""
                self._is_supposed = False

    def dial(self, call: Call, place: Place, *, is_home: bool) -> Connection:
        """Return a new connection, held by the call.

        Raises  Broken, RegistryError, what stopped the call
        """
        patience = Patience(self._timeout, refills=False)
        proxy = proxies.proxy_for(place)
        wire = self._connected(call, place, proxy, patience)
        try:
            wire.patience = patience
            if proxy and place.scheme == "https":
                proxies.tunnel(call, wire, proxy, place)
        except BaseException:
            let_go(call, wire)
            raise
        if place.scheme == "https":
            wire = self._secured(call, wire, place, patience, is_home)
            proxy = None
        return Connection(wire, (place, is_home), proxy)

    def _secured(self, call: Call, wire: Wire, place: Place, patience: Patience, is_home: bool) -> Wire:
        try:
            return secured(call, wire, self._trust, place.host, patience, is_home=is_home)
        except NoTLSError as err:
            if self._may_be_plain or self._home.scheme or not (is_home and err.is_sure):
                raise
        raise Broken("it does not speak TLS; insecure=True allows plain HTTP", is_final=True)

    @staticmethod
    def _connected(call: Call, place: Place, proxy: Proxy | None, patience: Patience) -> Wire:
        if proxy is None:
            return connected(call, place.host, place.real_port, patience)
        try:
            return connected(call, proxy.host, proxy.port, patience)
        except Broken as err:
            why = f"the proxy {proxy.name}: {err.why}"
        raise Broken(why)

    @contextlib.contextmanager
    def _alone(self, call: Call) -> Iterator[None]:
        lock = self._finding
        while not lock.acquire(timeout=_LOOK):
            call.check()
        try:
            yield
        finally:
            lock.release()
