"""What an answer that is none of those expected becomes: the exceptions of the package, with texts that may be told."""

from __future__ import annotations

import http
import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from layerstore.errors import AuthenticationError, NotInRegistryError, RegistryError

_CODE = re.compile(r"[A-Z_]{1,64}")
_LONGEST: Final = 500                  # characters of what a registry says


class Told(NamedTuple):
    """A request as errors tell it.

    method    GET, HEAD ...
    url       scheme, host and path
    host      "name:port" of who was asked
    """

    method: str
    url: str
    host: str

    def __str__(self) -> str:
        return f"{self.method} {self.url}"


def refusal(told: Told, status: int, body: bytes, attempts: int = 1, *, about: str = "") -> RegistryError:
    """Return the exception for a status that was not expected.

    body       of the answer, b"" if it was too long or broken
    attempts   how often it was asked
    about      more to say about the answer
    """
    code, message = said(body)
    reason = code or _phrase(status)
    text = f"{told}: {status}{' ' if reason else ''}{reason}"
    text = ": ".join(filter(None, [text, message, about])) + _after(attempts)
    kind = RegistryError
    if status in (401, 403):
        kind = AuthenticationError
    elif status == 404 and not (told.method in ("POST", "PATCH") or "/blobs/uploads/" in told.url):
        kind = NotInRegistryError
    return kind(text, status=status, code=code, host=told.host)


def broken(told: Told, why: str, attempts: int = 1) -> RegistryError:
    """Return the exception for a request without an answer."""
    return RegistryError(f"{told}: {why}{_after(attempts)}", host=told.host)


def _after(attempts: int) -> str:
    return f" (after {attempts} attempts)" if attempts > 1 else ""


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return ""


def said(body: bytes) -> tuple[str, str]:
    """Return the code and the messages of an error's body, as they may be shown; "" where it has none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    errors = found.get("errors") if isinstance(found, dict) else None
    if not isinstance(errors, list):
        return "", ""
    errors = [each for each in errors if isinstance(each, dict)]
    codes = [each["code"] for each in errors if isinstance(each.get("code"), str) and _CODE.fullmatch(each["code"])]
    return (codes[0] if codes else ""), shown("; ".join(_messages(errors)))


def _messages(errors: list[Any]) -> Iterator[str]:
    for each in errors:
        message = each.get("message")
        if isinstance(message, str) and message:
            yield message


def shown(text: str) -> str:
    """Return the printable characters of a text, as one line of at most 500."""
    one_line = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in text)
    return re.sub(" +", " ", one_line).strip()[:_LONGEST]
