"""A token server whose tokens docker-registry takes: what stands beside the large registries, in little.

Enters: openssl, which signs. Leaves: nothing running. It gives tokens by GET with a password or none, and by POST for a password
or a refresh token, as docker's and OAuth's flows have it; `asked` is what came, `rights` says who may do what.
"""

import base64
import contextlib
import http.server
import json
import secrets
import threading
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import realregistry

SERVICE = ISSUER = "tests"


class Asked(NamedTuple):
    """A request for a token. grant: "" of a GET, else its grant_type. user: "" is anybody."""

    user: str
    grant: str
    scopes: list[str]
    answer: int


class TokenServer:
    """A context manager. users: passwords. rights: for a user ("" for all) the beginnings of repositories' names, with actions."""

    def __init__(self, place: Path, *, users: Mapping[str, str], rights: Mapping[str, Mapping[str, str]]):
        self.place = place
        self.users, self.rights = users, rights
        self.asked: list[Asked] = []
        self.refresh: dict[str, str] = {}
        place.mkdir(parents=True, exist_ok=True)
        self.renew()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = False      # server_close() waits for them, and no connection outlives its answer

    def renew(self) -> None:
        """Sign with another key from now on; a registry takes it when it is restarted."""
        self.key, self.certificate = self.place / "key.pem", self.place / "certificate.pem"
        realregistry.run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens",
                         "-keyout", self.key, "-out", self.certificate)  # fmt: skip

    def __enter__(self) -> "TokenServer":
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def settings(self) -> dict:
        """What docker-registry's configuration says under auth."""
        realm = f"http://127.0.0.1:{self.server.server_port}/token"
        return {"token": {"realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(self.certificate)}}

    # ---- tokens -----------------------------------------------------------------------------------
    def granted(self, user: str, scopes: list[str]) -> list[dict]:
        """Of the scopes that are asked for, what a user may."""
        found = []
        for kind, _, rest in (scope.partition(":") for scope in scopes):
            name, _, actions = rest.rpartition(":")
            rights = {**self.rights.get("", {}), **self.rights.get(user, {})}
            may = {action for prefix, allowed in rights.items() if name.startswith(prefix) for action in allowed.split(",")}
            if both := [action for action in actions.split(",") if action in may]:
                found.append({"type": kind, "name": name, "actions": both})
        return found

    def token(self, user: str, scopes: list[str]) -> str:
        chain = [line for line in self.certificate.read_text().splitlines() if "-----" not in line]
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(chain)]}
        claims = {"iss": ISSUER, "sub": user, "aud": SERVICE, "exp": now + 300, "nbf": now - 10, "iat": now,
                  "jti": secrets.token_hex(8), "access": self.granted(user, scopes)}  # fmt: skip
        signed = ".".join(encoded(json.dumps(part).encode()) for part in (header, claims))
        to_sign = self.place / f"claims-{secrets.token_hex(8)}"
        to_sign.write_text(signed)
        signature = realregistry.run("openssl", "dgst", "-sha256", "-sign", self.key, to_sign)
        to_sign.unlink()
        return f"{signed}.{encoded(signature)}"

    # ---- requests ---------------------------------------------------------------------------------
    def answer(self, query: dict[str, list[str]], authorization: str, *, posted: bool) -> tuple[int, dict]:
        def first(name: str) -> str:
            return query.get(name, [""])[0]

        grant = first("grant_type") if posted else ""
        user, password = first("username"), first("password")
        if authorization:
            with contextlib.suppress(ValueError):
                user, _, password = base64.b64decode(authorization.partition(" ")[2]).decode().partition(":")
        if grant == "refresh_token":
            user = self.refresh.get(first("refresh_token"), "")
            known = bool(user)
        else:
            known = user in self.users and self.users[user] == password if user or posted else True
        scopes = [scope for text in query.get("scope", []) for scope in text.split()]
        self.asked.append(Asked(user, grant, scopes, 200 if known else 401))
        if not known:
            return 401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong user or password"}]}
        token = self.token(user, scopes)
        found = {"token": token, "access_token": token, "expires_in": 300}
        if first("offline_token") == "true" or first("access_type") == "offline":
            found["refresh_token"] = secrets.token_urlsafe(16)
            self.refresh[found["refresh_token"]] = user
        return 200, found

    def _handler(self):
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = 20

            def do_GET(self):
                self.tell(urllib.parse.urlsplit(self.path).query, posted=False)

            def do_POST(self):
                self.tell(self.rfile.read(int(self.headers["Content-Length"])).decode(), posted=True)

            def tell(self, text: str, *, posted: bool):
                status, document = outer.answer(urllib.parse.parse_qs(text), self.headers.get("Authorization", ""), posted=posted)
                data = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        return Handler


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
