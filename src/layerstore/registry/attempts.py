"""How often something was tried in vain, and how long to wait before it is tried again."""

from __future__ import annotations

import logging
import random
import time
from typing import Final

from layerstore.registry import headers
from layerstore.registry.calls import Call

log = logging.getLogger("layerstore")

_LONGEST_ASKED: Final = 60.0            # seconds
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0


def asked_pause(text: str) -> tuple[float, str]:
    """Return the seconds that a Retry-After asks to wait, and why not to wait, if they are too many; "" """
    seconds = headers.retry_after(text, time.time()) or 0.0
    return seconds, f"it asks to wait {seconds:.0f} seconds" if seconds > _LONGEST_ASKED else ""


class Attempts:
    """The attempts of one request; of one blob, since some of it came.

    made   how many, this one included
    """

    def __init__(self, retries: int) -> None:
        """retries   how many may follow the first"""
        self._retries = retries
        self.made = 0

    @property
    def are_spent(self) -> bool:
        """True if none may follow."""
        return self.made > self._retries

    def wait(self, call: Call, asked: float = 0.0, why: Exception | None = None) -> None:
        """Sleep until the next one.

        asked   the seconds that a server asks for
        why     what failed, to be logged

        Raises what stopped the call
        """
        pause = _FIRST_PAUSE * 2 ** min(self.made - 1, 16) * random.uniform(0.75, 1.25)
        pause = max(asked, min(_LONGEST_PAUSE, pause))
        if why is not None:
            log.warning("%s; trying again in %.1f s", why, pause, extra={"error": why})
        call.wait(pause)
