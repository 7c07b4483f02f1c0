"""Options of the overlay2 driver: key=value pairs.

Source: moby, daemon/graphdriver/overlay2/overlay.go
"""

from __future__ import annotations

from collections.abc import Mapping

from layerstore.errors import InvalidOptionError
from layerstore.sizes import parse_size


def parse_driver_options(options: Mapping[str, str]) -> str:
    """Check overlay2's options and return the default size of writable layers, or "".

    Raises  InvalidOptionError   an unknown option, or an invalid size
    """
    size = ""
    for key, value in options.items():
        name = str(key).strip().lower()
        if name == "overlay2.size":
            size = str(value).strip()
            parse_size(size)
        elif name == "overlay2.override_kernel_check":
            continue  # known to 20.10, and of no effect there
        else:
            raise InvalidOptionError(f"overlay2: unknown option {name}")
    return size
