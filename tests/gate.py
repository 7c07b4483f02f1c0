"""A gate before a server: it lets so many bytes through, then none, as a network that hangs. For tests of what ends a call.

    with Gate(registry.host, down=1 << 20) as gate:
        ...                      # gate.host is asked in place of the registry
        gate.shut.wait(20)       # the bytes are through: the reader waits now
        gate.left(1)             # True once all clients have gone, within a second
"""

import contextlib
import socket
import threading
import time


class Gate:
    """down: bytes to the clients, of all connections together; up: bytes to the server; None: any number."""

    def __init__(self, host: str, *, down: int | None = None, up: int | None = None):
        name, _, port = host.rpartition(":")
        self.server = (name, int(port))
        self.allowed = {"down": down, "up": up}
        self.shut = threading.Event()
        self.lock = threading.Lock()
        self.clients: set[socket.socket] = set()
        self.sockets: list[socket.socket] = []
        self.connections = 0

    def __enter__(self) -> "Gate":
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.threads[0].join()
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self.threads[1:]:
            thread.join()
        for one in self.sockets:
            one.close()

    def left(self, seconds: float) -> bool:
        """True once no client is connected; False if one still is after so many seconds."""
        until = time.monotonic() + seconds
        while self.clients and time.monotonic() < until:
            time.sleep(0.01)
        return not self.clients

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.server)
            self.sockets += [client, server]
            self.clients.add(client)
            self.connections += 1
            for way, source, target in (("up", client, server), ("down", server, client)):
                self.threads.append(thread := threading.Thread(target=self._carry, args=(way, source, target), daemon=True))
                thread.start()

    def _carry(self, way: str, source: socket.socket, target: socket.socket) -> None:
        """Carry bytes on, as far as they are allowed; the rest is taken and dropped, so that the end is seen."""
        with contextlib.suppress(OSError):
            while block := source.recv(1 << 16):
                with self.lock:
                    left = self.allowed[way]
                    if left is not None:
                        block = block[:left]
                        self.allowed[way] = left - len(block)
                        if not self.allowed[way]:
                            self.shut.set()
                if block:
                    target.sendall(block)
        if way == "up":
            self.clients.discard(source)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
