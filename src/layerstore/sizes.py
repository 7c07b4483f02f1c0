"""Sizes as people write and read them.

Source: docker/go-units, size.go
"""

from __future__ import annotations

import re

from layerstore.errors import InvalidOptionError

_SUFFIX = re.compile(r"(?:([kmgtp])(?:i?b)?|b)?", re.IGNORECASE)
_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_size(text: str) -> int:
    """Read a size in binary units: "10M", "1.5g", "50", "1kib" give bytes.

    Raises  InvalidOptionError   no number, a negative one, or an unknown suffix
    """
    text = str(text)
    # Go's cut: behind the last digit, point or blank the suffix begins.
    end = max((i for i, char in enumerate(text) if char in "0123456789. "), default=-1) + 1
    number, suffix = text[:end], text[end:]
    if end == 0:
        raise InvalidOptionError(f"invalid size: '{text}'")
    if text[end - 1] == " ":
        number = text[: end - 1]
    if not re.fullmatch(r"[+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)", number):
        raise InvalidOptionError(f"invalid size: '{text}'")
    match = _SUFFIX.fullmatch(suffix)
    if match is None:
        raise InvalidOptionError(f"invalid suffix: '{suffix}'")
    size = int(float(number) * 1024 ** _POWERS[(match[1] or "").lower()])
    if size >= 1 << 63:
        raise InvalidOptionError(f"invalid size: '{text}'")
    return size


def format_size(size: float) -> str:
    """Return bytes as for instance "114.0 MB" (powers of 1000)."""
    for factor, unit in _UNITS:
        if abs(size) >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"
