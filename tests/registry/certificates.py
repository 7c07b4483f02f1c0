"""Certificates made by openssl once for a run: an authority, servers it vouches for, rightly and wrongly, and a client."""

import ssl
import subprocess
from pathlib import Path


class Authority:
    """A certificate authority in a directory; `server(...)` gives contexts for servers."""

    def __init__(self, place: Path, name: str = "an authority"):
        self.place = place
        place.mkdir()
        self.file = place / "ca.pem"
        self._run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30", "-subj", f"/CN={name}",
                  "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip

    def _run(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.place, check=True, capture_output=True)

    def issue(self, name: str, names: str, *more: str) -> tuple[Path, Path]:
        """A certificate and its key; names as "DNS:localhost,IP:127.0.0.1"."""
        crt, key = self.place / f"{name}.crt", self.place / f"{name}.key"
        if crt.exists():
            return crt, key
        (self.place / f"{name}.ext").write_text(f"subjectAltName={names}\n")
        self._run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}", "-keyout", str(key),
                  "-out", f"{name}.csr")  # fmt: skip
        self._run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", str(crt),
                  "-extfile", f"{name}.ext", *(more or ("-days", "20")))  # fmt: skip
        return crt, key

    def server(self, name: str = "server", names: str = "DNS:localhost,IP:127.0.0.1,IP:::1", *more: str, clients: bool = False) -> ssl.SSLContext:
        """A context for a server; clients: it asks them for a certificate of this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(name, names, *more))
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.file)
        return context
