"""Platforms, as people and tools spell them: an operating system, an architecture, and perhaps a variant.

Source: containerd, platforms/database.go, whose spellings docker, nerdctl and buildx take
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from layerstore.errors import ImageError, readable


class Platform(NamedTuple):
    """An operating system, an architecture and, if it has several, its variant."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return readable("/".join(part for part in self if part)[:100])


_SYSTEMS = {"macos": "darwin"}
_MACHINES = {
    "x86_64": "amd64", "x86-64": "amd64", "x64": "amd64", "i386": "386", "i486": "386", "i586": "386", "i686": "386",
    "x86": "386", "aarch64": "arm64", "armhf": "arm/v7", "armel": "arm/v6", "armv5l": "arm/v5", "armv5tel": "arm/v5",
    "armv6l": "arm/v6", "armv7": "arm/v7", "armv7l": "arm/v7", "armv8l": "arm/v7", "armv8": "arm64", "arm64v8": "arm64",
    "arm32v5": "arm/v5", "arm32v6": "arm/v6", "arm32v7": "arm/v7", "loongarch64": "loong64", "powerpc64le": "ppc64le",
    "ppc64el": "ppc64le", "mips64el": "mips64le", "mipsel": "mipsle",
}  # fmt: skip
# What goes without saying.
_PLAIN_VARIANTS = {("amd64", "v1"), ("arm64", "v8")}


def normalized(system: str, architecture: str, variant: str = "") -> Platform:
    """Return a platform in Go's own words."""
    system, architecture, variant = system.lower(), architecture.lower(), variant.lower()
    architecture, _, implied = _MACHINES.get(architecture, architecture).partition("/")
    variant = variant or implied
    if variant[:1].isdigit():
        variant = f"v{variant}"
    if (architecture, variant) in _PLAIN_VARIANTS:
        variant = ""
    return Platform(_SYSTEMS.get(system, system), architecture, variant)


def parse_platform(text: str) -> Platform:
    """Read "linux/amd64", "arm64", "x86_64", "linux/arm/v7". Raises ImageError."""
    parts = text.strip().lower().split("/")
    if _SYSTEMS.get(parts[0], parts[0]) not in ("linux", "windows", "freebsd", "darwin"):
        parts.insert(0, "linux")
    if len(parts) not in (2, 3) or not all(re.fullmatch(r"[a-z0-9_.-]+", part) for part in parts):
        raise ImageError(f"{text!r} is not a platform such as linux/arm64")
    return normalized(*parts)


def host_platform() -> Platform:
    """Name what runs here."""
    return normalized("linux", os.uname().machine)


def rank(has: Platform, wanted: Platform) -> tuple[int, str] | None:
    """Return how well a platform serves another: the largest is best, None: not at all. Both are normalized."""
    if has[:2] != wanted[:2]:
        return None
    if has.variant == wanted.variant:
        return (3, "")
    if has.architecture == "arm":
        # A newer processor runs what was made for an older one. Who names none means v7.
        return (2, has.variant) if has.variant <= (wanted.variant or "v7") else None
    if not wanted.variant:
        return (1, "")
    return (0, "") if not has.variant else None
