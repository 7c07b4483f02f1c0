"""TLS over a socket of ours, with the handshake.

The records pass through memory, so that what came is looked at before OpenSSL sees it, and each wait is the socket's.
"""

from __future__ import annotations

import select
import ssl
from typing import Any, Final

from layerstore.registry.calls import Broken, Call
from layerstore.registry.sockets import Patience, Wire, let_go
from layerstore.registry.tls import Trust, reason_of

_BLOCK: Final = 1 << 18             # bytes taken from the network at a time
_PIECE: Final = 1 << 16             # bytes encrypted at a time
_HANDSHAKE: Final = 1 << 20         # bytes that a handshake may bring
_UNKNOWN_ISSUER: Final = range(18, 22)       # X509_V_ERR_...: its signer is not trusted
_RECORDS: Final = range(20, 24)     # the first byte of what TLS sends: 20 to 23


class NoTLSError(Broken):
    """What answers speaks no TLS, or hangs up when it is spoken to.

    is_sure   True: it said something else
    """

    def __init__(self, why: str, *, is_sure: bool) -> None:
        super().__init__(why, is_final=is_sure)
        self.is_sure = is_sure


class TLSWire(Wire):
    """A socket with TLS over it."""

    def __init__(self, wire: Wire, context: ssl.SSLContext, host: str) -> None:
        """Take over a connected socket."""
        patience = wire.patience
        super().__init__(fileno=wire.detach())
        self.patience = patience
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._block = memoryview(bytearray(_BLOCK))
        self._ahead = b""
        self._tls = context.wrap_bio(self._came, self._goes, server_hostname=host)

    def shake_hands(self, trust: Trust, *, is_home: bool) -> None:
        """Do the handshake. Raises NoTLSError, ssl.SSLError, OSError."""
        is_heard = False
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
            count = self._fill()
            if not is_heard:
                is_heard = True
                if count and self._block[0] not in _RECORDS:
                    raise NoTLSError("it does not speak TLS", is_sure=True)
                trust.complete(is_home=is_home)
        self._flush()

    # ---- receiving ----

    def _first(self, view: memoryview) -> int:
        while (got := self._decrypted(view)) is None:
            self._fill()
        return got

    def _more(self, view: memoryview, seconds: float) -> int:
        while (got := self._decrypted(view)) is None:
            if not self.wait_for(select.POLLIN, seconds):
                return 0
            self._fill()
        return got

    def _decrypted(self, view: memoryview) -> int | None:
        """Return how many bytes were put into view, 0 at the end; None: more must come first."""
        if self._ahead:
            count = min(len(view), len(self._ahead))
            view[:count], self._ahead = self._ahead[:count], self._ahead[count:]
            return count
        try:
            return self._tls.read(len(view), view)  # type: ignore[return-value]
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLEOFError:
            return 0                                # many servers do not say goodbye

    def _fill(self) -> int:
        """Take what came over the network; return how many bytes."""
        count = self._take(self._block)
        if count:
            self._came.write(self._block[:count])
        else:
            self._came.write_eof()
        return count

    def is_idle(self) -> bool:
        """Return True if it is connected, and no answer came. A ticket for another session is none."""
        self.patience, self.allowance = Patience(1, refills=False), _BLOCK
        while True:
            if (self._ahead or self._decrypted(memoryview(bytearray(1)))) is not None:
                return False
            if not self.wait_for(select.POLLIN, 0):
                return True
            try:
                self._fill()
            except OSError:
                return False

    # ---- sending ----

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all.

        Raises  AnsweredError   an answer came meanwhile
        """
        left = memoryview(data).cast("B")
        while left:
            left = left[self._tls.write(left[:_PIECE]) :]
            self._flush()

    def _flush(self) -> None:
        left = memoryview(self._goes.read())
        while left:
            left = left[self._put(left) :]

    def _is_answered(self) -> bool:
        self._fill()
        block = bytearray(_PIECE)
        count = self._decrypted(memoryview(block))
        if count:
            self._ahead = bytes(block[:count])
        return count is not None


def secured(call: Call, wire: Wire, trust: Trust, host: str, patience: Patience, *, is_home: bool) -> TLSWire:
    """Shake hands over a connected socket. Return its successor, held by the call; if it fails, the socket is closed.

    Raises  NoTLSError, Broken, RegistryError, what stopped the call
    """
    why: BaseException
    wrapped = wire
    try:
        context = trust.context(is_home=is_home)
        call.drop(wire)
        wire.patience, wire.allowance = patience, _HANDSHAKE
        wrapped = secure = TLSWire(wire, context, host.rstrip("."))
        secure.allowance = _HANDSHAKE
        call.hold(secure)
        secure.shake_hands(trust, is_home=is_home)
        return secure
    except BaseException as err:
        let_go(call, wrapped)
        call.check()
        why = err
    if isinstance(why, ssl.SSLCertVerificationError):
        advice = trust.advice() if why.verify_code in _UNKNOWN_ISSUER else ""
        raise Broken(f"its certificate is not trusted: {why.verify_message}{advice}", is_final=True)
    if isinstance(why, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError, ConnectionError)):
        raise NoTLSError("it hung up in the TLS handshake", is_sure=False)
    if isinstance(why, ssl.SSLError):
        raise Broken(reason_of(why), is_final=True)
    if isinstance(why, TimeoutError):
        raise Broken("it did not answer in time in the TLS handshake")
    if isinstance(why, OSError):
        raise Broken(f"the TLS handshake broke: {(why.strerror or 'unknown reason').lower()}")
    raise why
