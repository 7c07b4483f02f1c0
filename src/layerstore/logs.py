"""The library's logger: silent until the program that imports it listens, and readable in whatever it writes to.

Records carry names that others chose (of boxes, files, images). What stands in a record's text can be printed by any
terminal; the fields beside it (`record.mount`, ...) are the names themselves, for programs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from layerstore.errors import readable


def _shown(value: Any) -> Any:
    return readable(str(value)) if isinstance(value, (str, BaseException)) else value


def _make_readable(record: logging.LogRecord) -> bool:
    if isinstance(record.args, Mapping):
        record.args = {key: _shown(value) for key, value in record.args.items()}
    elif record.args:
        record.args = tuple(map(_shown, record.args))
    return True


def prepare() -> None:
    """Make the logger of the library what the package promises; once, when it is imported."""
    log = logging.getLogger("layerstore")
    log.addHandler(logging.NullHandler())         # a logger without a handler would print warnings
    log.addFilter(_make_readable)
