"""How far a long call has come, told to its caller now and then."""

from __future__ import annotations

import time

from layerstore.values import Done, Progress

EVERY = 0.1


class Teller:
    """Calls progress at most ten times a second, and once at the end."""

    def __init__(self, progress: Progress | None, total: int | None) -> None:
        """total   of how many bytes; None: unknown"""
        self.progress, self.total = progress, total
        self._last = time.monotonic() - 1

    def tell(self, done: int, *, end: bool = False) -> None:
        """Report that so many bytes are done."""
        now = time.monotonic()
        if self.progress is not None and (end or now - self._last >= EVERY):
            self._last = now
            self.progress(Done(done, self.total))
