"""What an answer that is none of those expected becomes: the exceptions of the package, with texts that may be told."""

from __future__ import annotations

import http
from collections.abc import Callable
from typing import NamedTuple

from layerstore.errors import AuthenticationError, NotInRegistryError, RegistryError
from layerstore.registry import headers


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


def refusal(
    told: Told, status: int, body: bytes, attempts: int = 1, *, about: str = "", upload: bool = False,
    hide: Callable[[str], str] = str,
) -> RegistryError:  # fmt: skip
    """Return the exception for a status that was not expected.

    body       of the answer, b"" if it was too long or broken
    attempts   how often it was asked
    about      more to say about the answer
    upload     True: to a step of an upload, of which 404 says that its session is lost
    hide       takes secrets out of a text
    """
    code, message = headers.errors(body)
    reason = code or _phrase(status)
    text = f"{told}: {status}{' ' if reason else ''}{reason}"
    text = ": ".join(filter(None, [text, hide(message), about])) + _after(attempts)
    kind = RegistryError
    if status in (401, 403):
        kind = AuthenticationError
    elif status == 404 and not upload:
        kind = NotInRegistryError
    return kind(text, status=status, code=code, host=told.host)


def broken(told: Told, why: str, attempts: int = 1, *, about: str = "") -> RegistryError:
    """Return the exception for a request without an answer. about: more to say about it."""
    text = ": ".join(filter(None, [str(told), why, about]))
    return RegistryError(f"{text}{_after(attempts)}", host=told.host)


def _after(attempts: int) -> str:
    return f" (after {attempts} attempts)" if attempts > 1 else ""


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return ""
