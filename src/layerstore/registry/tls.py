"""Whose certificates are believed, and which one is shown.

A host of this machine may speak no TLS, and then the system's certificates are not needed. Reading them takes longer
than asking such a registry, so a handshake has them read once the other side has answered it.
"""

from __future__ import annotations

import errno
import os
import re
import ssl
import threading

from layerstore.errors import RegistryError

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[\sA-Za-z0-9+/=]+-----END CERTIFICATE-----")


class Trust:
    """Whom a registry's connections trust. Threads may share it."""

    def __init__(self, name: str, *, ca: str = "", insecure: bool = False) -> None:
        """name   the directories' name of the host that may see our certificate.  ca: PEM texts beside the system's"""
        self._name, self._ca, self._insecure = name, ca, insecure
        self.renew()

    def renew(self) -> None:
        """Begin anew, in a forked child."""
        self._lock = threading.Lock()
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._complete: set[bool] = set()

    def context(self, *, is_home: bool) -> ssl.SSLContext:
        """Return what a handshake begins with.

        is_home   True: with the host itself, which sees our certificate

        Raises  RegistryError   a file of this host cannot be used
        """
        with self._lock:
            found = self._contexts.get(is_home)
            if found is None:
                found = self._contexts[is_home] = self._made(is_home)
            return found

    def complete(self, *, is_home: bool) -> None:
        """Read the certificates to believe, now that the other side's is about to come."""
        with self._lock:
            if is_home not in self._complete and not self._insecure:
                context = self._contexts[is_home]
                context.load_default_certs()
                for text in filter(None, [self._ca, _directory_texts(self._name)]):
                    context.load_verify_locations(cadata=text)
            self._complete.add(is_home)

    def advice(self) -> str:
        """Return how a certificate may be trusted, for the end of a sentence."""
        return f"; to trust who signed it: ca=..., or a .crt file in /etc/docker/certs.d/{self._name}"

    def _made(self, is_home: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for certificate, key in _client_certificates(self._name) if is_home else ():
            try:
                # Without this function, OpenSSL would ask at the terminal.
                context.load_cert_chain(certificate, key, password=lambda: b"")
            except OSError as err:
                raise _unusable(certificate, err) from None
        return context


def reason_of(err: ssl.SSLError) -> str:
    """Return what OpenSSL says."""
    return f"TLS failed: {(err.reason or 'unknown reason').replace('_', ' ').lower()}"


# ---- files ----


def read_ca(path: str) -> str:
    """Return the certificates of a PEM file, or of the files of a directory.

    Raises  OSError   it cannot be read, or has none
    """
    names = [path]
    if os.path.isdir(path):
        inside = sorted(os.path.join(path, name) for name in os.listdir(path))
        names = [name for name in inside if os.path.isfile(name)]
    text = "\n".join(_certificates(name) for name in names).strip()
    try:
        if text:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except ssl.SSLError:
        text = ""
    if not text:
        raise OSError(errno.EINVAL, "no certificate in PEM", path)
    return text


def _certificates(path: str) -> str:
    with open(path, encoding="latin-1") as file:
        return "\n".join(_CERTIFICATE.findall(file.read()))


def _directory(name: str) -> str:
    """Return where the files of a host are; "" if there are none."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    for above in (f"{config}/containers/certs.d", "/etc/containers/certs.d", "/etc/docker/certs.d"):
        if os.path.isdir(f"{above}/{name}"):
            return f"{above}/{name}"
    return ""


def _files(name: str, suffix: str) -> list[str]:
    above = _directory(name)
    try:
        return sorted(f"{above}/{each}" for each in os.listdir(above) if each.endswith(suffix)) if above else []
    except OSError as err:
        raise _unusable(above, err) from None


def _directory_texts(name: str) -> str:
    texts = []
    for path in _files(name, ".crt"):
        try:
            texts.append(read_ca(path))
        except OSError as err:
            raise _unusable(path, err) from None
    return "\n".join(texts)


def _client_certificates(name: str) -> list[tuple[str, str]]:
    """Return pairs of a certificate and its key. Raises RegistryError if one has no other."""
    certificates, keys = _files(name, ".cert"), _files(name, ".key")
    pairs = [(each, f"{each.removesuffix('.cert')}.key") for each in certificates]
    for certificate, key in pairs:
        if key not in keys:
            raise RegistryError(f"the client's certificate {certificate} has no key: {key} is missing")
    for key in keys:
        if key not in [key for _, key in pairs]:
            raise RegistryError(f"the client's key {key} has no certificate")
    return pairs


def _unusable(path: str, err: OSError) -> RegistryError:
    why = reason_of(err) if isinstance(err, ssl.SSLError) else err.strerror
    return RegistryError(f"the certificate {path} cannot be used: {why}")
