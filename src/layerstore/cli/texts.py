"""Numbers and names as people read them."""

from __future__ import annotations

import datetime
import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)
_LENGTH = re.compile(rf"({_NUMBER.pattern})([smhdw])", re.ASCII)
_LENGTHS = re.compile(rf"(?:{_LENGTH.pattern})+", re.ASCII)
_SHORT = 12
_AGES = ((365 * 86400, "y"), (7 * 86400, "w"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def human_age(seconds: float) -> str:
    """Return for example "3 h", in the largest unit of which there are two, or else a smaller one."""
    for length, unit in _AGES:
        if seconds >= (2 * length if unit in ("y", "w") else length):
            return f"{int(seconds // length)} {unit}"
    return "now"


def parse_age(text: str) -> float:
    """Parse for example "24h", "1h30m", "7d", or a number of seconds. Raises ValueError."""
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _LENGTHS.fullmatch(text):
        raise ValueError(f"{text!r} is not a length of time such as 90s, 24h or 7d")
    return sum(float(number) * _SECONDS[unit] for number, unit in _LENGTH.findall(text))


def short_id(digest: str) -> str:
    """Return the first twelve hex digits of a digest."""
    return digest.rpartition(":")[2][:_SHORT]


def iso_time(seconds: float) -> str:
    """Return a time in seconds since 1970 as RFC 3339 in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
