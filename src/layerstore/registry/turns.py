"""Which thread sends a layer: the first that comes. Others wait for it, and send nothing if it succeeded."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterator
from typing import Any

from layerstore.registry.calls import Call

_LOOK = 0.05


class Turn:
    """The work on one thing: at most one thread is at it.

    result   what the last one that ended well has set; None
    joined   how many threads take part
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.joined = 0
        self.result: Any = None


class Turns:
    """All that is worked on, by what it is. A result is kept as long as any thread takes part in the same work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[Hashable, Turn] = {}

    @contextlib.contextmanager
    def joined(self, what: Hashable) -> Iterator[Turn]:
        """Take part in some work for the length of a `with` block: a result that comes meanwhile is not lost."""
        with self._lock:
            turn = self._turns.setdefault(what, Turn())
            turn.joined += 1
        try:
            yield turn
        finally:
            with self._lock:
                turn.joined -= 1
                if not turn.joined:
                    del self._turns[what]

    @contextlib.contextmanager
    def taken(self, turn: Turn, call: Call) -> Iterator[None]:
        """Be the only one at it for the length of a `with` block. Raises what stopped the call."""
        while not turn.lock.acquire(timeout=_LOOK):
            call.check()
        try:
            yield
        finally:
            turn.lock.release()
