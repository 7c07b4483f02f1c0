"""The headers of a registry's answers, read with suspicion.

Enters: texts that a server chose. Leaves: checked values, or the value that says "there is none"; no function here
raises for what a server sent, and each takes time that grows as its input does.
"""

from __future__ import annotations

import datetime
import email.utils
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from layerstore.documents import gojson

# Bytes of all WWW-Authenticate headers of one answer, and of one Link.
CHALLENGE_LIMIT = 16 << 10
_LINK_LIMIT = 16 << 10
# Bytes of all warnings of one answer.
_WARNING_LIMIT = 4096
_MESSAGE_LIMIT = 500
_ETAG_LIMIT = 1024
_LARGEST = (1 << 63) - 1
# A wait that is longer than any client's patience, for a number that no float has room for.
_FOREVER = 1e12

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = r'"(?P<quoted>(?:[^"\\]|\\.)*+)"'
_SCHEME = re.compile(rf"(?P<name>{_TOKEN})")
_PARAMETER = re.compile(rf"(?P<name>{_TOKEN})[ \t]*=[ \t]*(?:{_QUOTED}|(?P<plain>[^\s,\"\\]++))", re.S)
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]++=*+(?=[ \t]*(?:,|$))")
_BLANKS = re.compile(r"[ \t]*+")
_GAP = re.compile(r"[\s,]*+")
_ESCAPE = re.compile(r"\\(.)", re.S)
_CONTENT_RANGE = re.compile(r"bytes[ \t]+([0-9]{1,19})-([0-9]{1,19})/(?:([0-9]{1,19})|\*)", re.I)
_UPLOAD_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})", re.I)
_LINK = re.compile(r"<(?P<target>[^<>]*+)>")
_LINK_PARAMETER = re.compile(
    rf";[ \t]*(?:(?P<name>{_TOKEN})[ \t]*(?:=[ \t]*(?:{_QUOTED}|(?P<plain>[^\s,;\"]++)))?)?[ \t]*", re.S
)
_WARNING = re.compile(rf"(?P<code>[0-9]{{3}})[ \t]+(?P<agent>[^\s,\"]++)[ \t]+{_QUOTED}(?:[ \t]+\"[^\"]*+\")?", re.S)
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*+"')
_MEDIA_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}")
_CODE = re.compile(r"[A-Z_]{1,64}")


class Challenge(NamedTuple):
    """One way to authenticate that a server offers: the scheme and the names of parameters in lower case."""

    scheme: str
    params: dict[str, str]


def challenges(values: Iterable[str]) -> list[Challenge]:
    """Return what the WWW-Authenticate headers of one answer offer, in their order.

    Nothing is offered by more than CHALLENGE_LIMIT bytes. Of a malformed header counts what stands before the fault.
    """
    texts = list(values)
    if sum(map(len, texts)) > CHALLENGE_LIMIT:
        return []
    return [challenge for text in texts for challenge in _challenges(text)]


def _challenges(text: str) -> Iterator[Challenge]:
    at, found = 0, None
    while (at := _after(_GAP, text, at)) < len(text):
        parameter = _PARAMETER.match(text, at)
        if parameter and found:
            found.params[parameter["name"].lower()] = _value(parameter)
            at = parameter.end()
            continue
        scheme = None if parameter else _SCHEME.match(text, at)
        if scheme is None or text[scheme.end() : scheme.end() + 1].strip(" \t,"):
            break
        if found:
            yield found
        found = Challenge(scheme["name"].lower(), {})
        at = _after(_TOKEN68, text, scheme.end())
    # A fault may stand in the last one: of a parameter that was cut, the others are still true.
    if found:
        yield found


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _value(found: re.Match[str]) -> str:
    named = found.groupdict()
    quoted: str | None = named.get("quoted")
    return _ESCAPE.sub(r"\1", quoted) if quoted is not None else named.get("plain") or ""


def number(text: str) -> int | None:
    """Return a whole number, as a length is; None: it is none."""
    text = text.strip(" \t")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def content_range(text: str) -> tuple[int, int, int | None] | None:
    """Return first byte, last byte and total of a Content-Range; the total is None if the server does not know it.

    None: it is not one range of bytes that there can be.
    """
    found = _CONTENT_RANGE.fullmatch(text.strip(" \t"))
    if not found:
        return None
    start, end, total = int(found[1]), int(found[2]), int(found[3]) if found[3] else None
    sound = start <= end <= _LARGEST and (total is None or end < total <= _LARGEST)
    return (start, end, total) if sound else None


def upload_range(text: str) -> int | None:
    """Return the last byte that an upload has, by the Range of its answer ("0-e"). None: it does not say so.

    docker-registry says "0-0" of an upload without a byte, too.
    """
    found = _UPLOAD_RANGE.fullmatch(text.strip(" \t"))
    return int(found[1]) if found and int(found[1]) <= _LARGEST else None


def next_link(text: str) -> str:
    """Return the target of the link with rel="next", as it is written; "" if there is none.

    text   of one Link header, or of several with commas between them
    """
    if len(text) > _LINK_LIMIT:
        return ""
    at = 0
    while link := _LINK.match(text, _after(_GAP, text, at)):
        at = _after(_BLANKS, text, link.end())
        relations: list[str] | None = None
        while parameter := _LINK_PARAMETER.match(text, at):
            at = parameter.end()
            if relations is None and (parameter["name"] or "").lower() == "rel":       # the first one counts
                relations = _value(parameter).lower().split()
        if "next" in (relations or ()):
            return link["target"].strip()
        if text[at : at + 1] not in ("", ","):
            break
    return ""


def retry_after(text: str, now: float) -> float | None:
    """Return the seconds that a Retry-After asks for, of a number or of an HTTP date; None: it is neither.

    now   seconds since the epoch
    """
    text = text.strip(" \t")
    if text.isascii() and text.isdigit():
        digits = text.lstrip("0") or "0"
        return float(digits) if len(digits) < 12 else _FOREVER
    if not text[:1].isalpha() or len(text) > 64:
        return None
    try:
        until = email.utils.parsedate_to_datetime(text)
        known = until if until.tzinfo else until.replace(tzinfo=datetime.UTC)
        return max(0.0, known.timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def warnings(values: Iterable[str]) -> list[str]:
    """Return the texts of the Warning headers of one answer: printable characters only, at most 4,096 bytes of all."""
    found, left = [], _WARNING_LIMIT
    for value in values:
        at = 0
        while warning := _WARNING.match(value, _after(_GAP, value, at)):
            at = warning.end()
            if warning["code"] != "299":
                continue
            text = _printable(_as_utf8(_value(warning))).encode()[:left].decode("utf-8", "ignore")
            left -= len(text.encode())
            if text:
                found.append(text)
    return found


def _as_utf8(text: str) -> str:
    """Read the bytes of a header as UTF-8, if they are; HTTP libraries read them as Latin-1."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _printable(text: str) -> str:
    """Make one line of a text that a server chose, without what a terminal would obey."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def strong_etag(text: str) -> str:
    """Return an ETag that names exactly these bytes, with its quotes; "" if there is none."""
    text = text.strip(" \t")
    return text if len(text) <= _ETAG_LIMIT and _STRONG_ETAG.fullmatch(text) else ""


def media_type(text: str) -> str:
    """Return a Content-Type in lower case and without its parameters; "" if it is none."""
    kind = text.partition(";")[0].strip(" \t").lower()
    return kind if _MEDIA_TYPE.fullmatch(kind) else ""


def errors(body: bytes) -> tuple[str, str]:
    """Return code and message of an error's body; "" and "" if it is not written as the specification says.

    The code is the first that may be one. The messages of all errors are one line of at most 500 printable characters.
    """
    found = gojson.or_none(gojson.parse, body, "the error")
    listed = found.get("errors") if isinstance(found, dict) else None
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    codes = (code for entry in entries if isinstance(code := entry.get("code"), str) and _CODE.fullmatch(code))
    said = (_printable(text[:_MESSAGE_LIMIT]) for entry in entries if isinstance(text := entry.get("message"), str))
    messages = dict.fromkeys(filter(None, said))
    return next(codes, ""), "; ".join(messages)[:_MESSAGE_LIMIT]
