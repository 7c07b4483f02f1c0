"""Serve the layers of a store over HTTP, ranges too: as root `python examples/serve.py ROOT [PORT]`.

In: the root of a store, Docker's own too: it is opened for reading only. Out: GET / lists DiffIDs and lengths, GET
/sha256:<hex> is that layer's tar, byte for byte, whole or the one range asked for. The first line printed is the
address. Ctrl-C ends it.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import sys
from typing import Any

from layerstore import CorruptLayerError, Layer, Store

BLOCK = 1 << 20


def wanted(header: str, size: int) -> tuple[int, int] | None:
    """First byte, and the one behind the last, of a Range header; None: no header, or one that may be ignored."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if not match or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return max(size - int(last), 0), size
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size


class Layers(http.server.BaseHTTPRequestHandler):
    """One request; the store is the server's."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        layers = {str(layer.diff_id): layer for layer in self.server.store.map().values()}
        if self.path == "/":
            lines = []
            for diff_id, listed in sorted(layers.items()):
                with listed.tar_stream() as stream:
                    lines.append(f"{diff_id} {stream.size}\n")
            self.head(200, len(text := "".join(lines).encode()), "text/plain")
            if self.command == "GET":
                self.wfile.write(text)
        elif layer := layers.get(self.path[1:]):
            self.give(layer)
        else:
            self.send_error(404)

    def head(self, status: int, length: int, kind: str, **more: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **more}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def give(self, layer: Layer) -> None:
        with layer.tar_stream() as stream:
            size = stream.size
            part = wanted(self.headers.get("Range", ""), size)
            known = {"Accept_Ranges": "bytes", "ETag": f'"{layer.diff_id}"'}
            if part and part[0] >= part[1]:
                return self.head(416, 0, "text/plain", Content_Range=f"bytes */{size}")
            if part:
                known["Content_Range"] = f"bytes {part[0]}-{part[1] - 1}/{size}"
            first, behind = part or (0, size)
            self.head(206 if part else 200, behind - first, "application/x-tar", **known)
            if self.command == "HEAD":
                return None
            try:
                if part:
                    stream.seek(first)      # from the first byte to the end the DiffID is checked, too
                while first < behind:
                    block = stream.read(min(BLOCK, behind - first))
                    self.wfile.write(block)
                    first += len(block)
            except (CorruptLayerError, ConnectionError) as error:
                # Too late for another status: the connection ends early, and the client sees that.
                self.log_error("%s", error)
                self.close_connection = True
        return None

    def log_message(self, format: str, *values: Any) -> None:
        print(f"{self.address_string()} {format % values}", file=sys.stderr)


class Server(http.server.ThreadingHTTPServer):
    """Threads of one server share one store."""

    daemon_threads = True

    def __init__(self, store: Store, port: int) -> None:
        super().__init__(("127.0.0.1", port), Layers)
        self.store = store


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 8000
    with Store(sys.argv[1], options={"read_only": "true"}) as store, Server(store, port) as server:
        with contextlib.suppress(KeyboardInterrupt):
            print(f"http://127.0.0.1:{server.server_port}/", flush=True)
            server.serve_forever()


if __name__ == "__main__":
    main()
