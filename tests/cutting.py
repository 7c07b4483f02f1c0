"""A way to a server that breaks: it cuts connections once so many bytes went, and then lets the next one through.

Enters: where the server listens. Leaves: a port of the loopback; how many connections it cut.
"""

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterable


class Cutter:
    """A context manager. cuts: after how many bytes of clients each next cut comes, connection after connection.

    reset: True: the client sees a reset, else an end. stall_after: so many bytes of clients go, and none behind them; `stalls` says
    that it came to that.
    """

    def __init__(self, port: int, cuts: Iterable[int] = (), *, reset: bool = False, stall_after: int = 1 << 60):
        self._server, self._reset = port, reset
        self._cuts = list(cuts)
        self._left = stall_after
        self.done = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.port = self._listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"

    def cut(self, *after: int) -> None:
        """Cut again, after so many bytes from now on."""
        with self._lock:
            self._cuts.extend(after)

    @property
    def stalls(self) -> bool:
        return self._left <= 0

    def __enter__(self) -> "Cutter":
        self._begin(self._accept)
        return self

    def __exit__(self, *_) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _begin(self, work, *args) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._begin(self._carry, client)

    def _takes(self, count: int) -> int:
        """Say how many of these bytes may pass; -1: all of them."""
        with self._lock:
            if not self._cuts:
                return -1
            if count < self._cuts[0]:
                self._cuts[0] -= count
                return -1
            self.done += 1
            return self._cuts.pop(0)

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server)) as server:
            ends = {client: server, server: client}
            for end in ends:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not self._closing.is_set():
                ready, _, _ = select.select([server] if self.stalls else list(ends), [], [], 0.05)
                for end in ready:
                    try:
                        data = end.recv(1 << 14)
                        taken = self._takes(len(data)) if end is client and data else -1
                        ends[end].sendall(data if taken < 0 else data[:taken])
                        self._left -= len(data) if end is client else 0
                    except OSError:
                        return
                    if not data or taken >= 0:
                        if taken >= 0 and self._reset:
                            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        return
