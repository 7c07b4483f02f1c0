"""Sockets that wait so long and no longer, read what is there, and can be cut by another thread."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from layerstore.registry.calls import Broken, Call

_ENOUGH: Final = 1 << 10            # bytes in `timeout` seconds that a body moves by, or more
_LOOK: Final = 0.05                 # seconds between two looks whether the call was stopped, where nothing wakes
_LONGEST: Final = 1e6               # seconds that poll(2) takes
_LARGE: Final = 1 << 16             # bytes asked for at once by a reader of a large body ...
_BRIEFLY: Final = 0.002             # ... and then waits so many seconds for more
_PIECE: Final = 1 << 18             # bytes sent at a time


class AnsweredError(Exception):
    """The other side answers, or closes, before all of the request was sent."""


class Patience:
    """How long the other side may keep us waiting. The time that the caller takes between reads does not count.

    refills   True: a body, which has all the time again after each KiB
    """

    def __init__(self, seconds: float, *, refills: bool) -> None:
        self.left = min(seconds, _LONGEST)
        self._seconds, self._refills, self._seen = self.left, refills, 0

    def spend(self, seconds: float, count: int) -> None:
        """Count a wait, and the bytes that it brought."""
        self.left -= seconds
        self._seen += count
        if self._refills and self._seen >= _ENOUGH:
            self.left, self._seen = self._seconds, 0


class Wire(socket.socket):
    """A socket. Its own time-out is not used: `patience` says how long it waits.

    patience   for what is sent and received from now on
    allowance  bytes that may come before it is set anew
    listening  True: what comes while something is sent is the answer already
    heard      bytes came since it was set to False
    """

    patience = Patience(0, refills=False)
    allowance = 0
    listening = False
    heard = False
    _failed: OSError | None = None

    def __init__(self, *made_of: Any, **more: Any) -> None:
        super().__init__(*made_of, **more)
        self._maker = os.getpid()

    @property
    def is_inherited(self) -> bool:
        """True in a child that was forked since: the connection is its parent's."""
        return self._maker != os.getpid()

    def __del__(self) -> None:
        # An interrupt may come before it has an owner. It is closed then, and no warning tells of it.
        with contextlib.suppress(Exception):
            self.close()

    def cut(self) -> None:
        """Shut it down, from any thread: what is blocked ends. A forked child has no right to."""
        if self.is_inherited:
            return
        try:
            self.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass                                                # not connected, or closed

    # ---- receiving ----

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive what is there, at least a byte; 0 at the end."""
        view = memoryview(buffer)
        view = view[:nbytes] if nbytes else view
        if self._failed is not None:
            raise self._failed
        got = more = self._first(view)
        briefly = _BRIEFLY if len(view) >= _LARGE else 0.0
        while more and got < len(view):
            try:
                more = self._more(view[got:], briefly)
            except OSError as err:
                self._failed = err                  # what came before it counts
                break
            got += more
        return got

    def _first(self, view: memoryview) -> int:
        """Receive at least a byte; 0 at the end."""
        return self._take(view)

    def _more(self, view: memoryview, seconds: float) -> int:
        """Receive what comes within some seconds."""
        return self._take(view) if self.wait_for(select.POLLIN, seconds) else 0

    def _take(self, view: memoryview) -> int:
        """Receive bytes as they come over the network."""
        if self.patience.left <= 0:
            raise TimeoutError
        self.settimeout(self.patience.left)
        begun, got = time.monotonic(), 0
        try:
            got = super().recv_into(view)
        finally:
            self.patience.spend(time.monotonic() - begun, got)
        self.heard = self.heard or got > 0
        self.allowance -= got
        if self.allowance < 0:
            raise OSError(errno.EMSGSIZE, "more bytes came around the body than belong to one")
        return got

    def is_idle(self) -> bool:
        """Return True if it is connected, and no bytes came that were not asked for."""
        return not self.wait_for(select.POLLIN, 0)

    # ---- sending ----

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all.

        Raises  AnsweredError   an answer came meanwhile
        """
        left = memoryview(data).cast("B")
        while left:
            left = left[self._put(left[:_PIECE]) :]

    def _put(self, view: memoryview) -> int:
        """Send bytes as they go over the network; return how many went."""
        self._wait_to_send()
        self.settimeout(max(self.patience.left, _LOOK))
        begun, sent = time.monotonic(), 0
        try:
            sent = self.send(view)
        finally:
            self.patience.spend(time.monotonic() - begun, sent)
        return sent

    def _wait_to_send(self) -> None:
        watched = select.POLLOUT | (select.POLLIN if self.listening else 0)
        while True:
            begun = time.monotonic()
            events = self.wait_for(watched, max(self.patience.left, 0))
            self.patience.spend(time.monotonic() - begun, 0)
            if events & select.POLLIN and self._is_answered():
                raise AnsweredError
            if events & ~select.POLLIN:
                return
            if self.patience.left <= 0:
                raise TimeoutError

    def _is_answered(self) -> bool:
        """Return True if what came is an answer, or the end."""
        return True

    def wait_for(self, events: int, seconds: float) -> int:
        """Wait until one of some events of poll(2) happens. Return those that did, 0 if the time is up."""
        poll = select.poll()
        poll.register(self, events)
        found = poll.poll(seconds * 1000)
        return found[0][1] if found else 0


# ---- connecting ----


def connected(call: Call, host: str, port: int, patience: Patience) -> Wire:
    """Return a socket that is connected, and held by the call.

    Raises  Broken, or what stopped the call
    """
    why = "the host has no address"
    addresses = _resolved(call, host, port, patience)
    for n, (family, kind, proto, _, address) in enumerate(addresses):
        wire = Wire(family, kind, proto)
        try:
            call.hold(wire)
            # An address that does not answer leaves time for those behind it.
            _connect(call, wire, address, patience, patience.left / (len(addresses) - n))
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as err:
            why = os.strerror(err.errno).lower() if err.errno else "it did not answer in time"
        except BaseException:
            let_go(call, wire)
            raise
        else:
            return wire
        let_go(call, wire)
    call.check()
    raise Broken(f"cannot connect: {why}")


def let_go(call: Call, wire: Wire) -> None:
    """End a socket of a call."""
    call.drop(wire)
    wire.cut()
    wire.close()


def _connect(call: Call, wire: Wire, address: Any, patience: Patience, seconds: float) -> None:
    wire.settimeout(0)
    err = wire.connect_ex(address)
    end = time.monotonic() + seconds
    while err == errno.EINPROGRESS:
        begun = time.monotonic()
        events = wire.wait_for(select.POLLOUT, min(_LOOK, max(end - begun, 0)))
        patience.spend(time.monotonic() - begun, 0)
        call.check()
        if events:
            err = wire.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        elif time.monotonic() >= end:
            raise TimeoutError
    if err:
        raise OSError(err, os.strerror(err))


def _resolved(call: Call, host: str, port: int, patience: Patience) -> list[Any]:
    def look_up(flags: int = 0) -> list[Any]:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)

    try:
        return look_up(socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        pass
    return _in_time(call, look_up, patience)


def _in_time(call: Call, look_up: Callable[[], list[Any]], patience: Patience) -> list[Any]:
    """Look a name up in another thread: nothing interrupts the system's resolver."""
    found: list[list[Any]] = []
    failed: list[Exception] = []
    ended = threading.Event()

    def work() -> None:
        try:
            found.append(look_up())
        except (OSError, UnicodeError) as err:
            failed.append(err)
        ended.set()

    threading.Thread(target=work, name="layerstore-resolve", daemon=True).start()
    begun = time.monotonic()
    while not ended.wait(_LOOK):
        call.check()
        if time.monotonic() - begun > patience.left:
            break
    patience.spend(time.monotonic() - begun, 0)
    if found:
        return found[0]
    why = failed[0] if failed else None
    if (isinstance(why, socket.gaierror) and why.errno != socket.EAI_AGAIN) or isinstance(why, UnicodeError):
        raise Broken("the host has no address: its name is unknown", is_final=True)
    raise Broken("its name was not resolved" if why else "its name was not resolved in time")
