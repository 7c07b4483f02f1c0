"""Options of the erofs driver: key=value pairs, their keys with or without "erofs." in front."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from layerstore.errors import InvalidOptionError
from layerstore.sizes import parse_size

MOST = 1 << 16


class Options(NamedTuple):
    """What was asked for."""

    size: str = ""
    """Of every writable layer, as text; "": no limit."""
    flatten: int = 0
    """From so many layers on, a stack is mounted as one image of all; 0: never."""
    containerd_cache: bool = False
    """Keep a name for each layer where containerd looks for the layers that it has already."""
    directio: bool = False
    """Mount images so that their data is cached once, by the image alone."""


def parse_driver_options(options: Mapping[str, str]) -> Options:
    """Check the driver's options. Raises InvalidOptionError: an unknown one, or a value that it cannot have."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        given = str(key).strip().lower()
        name = given.removeprefix("erofs.")
        if name not in _VALUES:
            raise InvalidOptionError(f"erofs: unknown option {given}")
        found[name] = _VALUES[name](name, str(value).strip())
    return Options(**found)


def _size(_name: str, text: str) -> str:
    parse_size(text)
    return text


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MOST)) and int(text) <= MOST):
        raise InvalidOptionError(f"erofs.{name} is a number of layers, or 0 for never, not {text!r}")
    return int(text)


def _switch(name: str, text: str) -> bool:
    if text not in ("on", "off"):
        raise InvalidOptionError(f"erofs.{name} is on or off, not {text!r}")
    return text == "on"


_VALUES: dict[str, Callable[[str, str], Any]] = {
    "size": _size, "flatten": _number, "containerd_cache": _switch, "directio": _switch,
}  # fmt: skip
