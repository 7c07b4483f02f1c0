"""How a call that may wait for long hears that its caller has given up.

A caller that may give up (layerstore.aio, whose tasks are cancelled) sets STOP for the length of a call. What waits
asks check() now and then. What is blocked where it cannot ask is woken by when_stopped().
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Protocol


class Stop(Protocol):
    """Who may stop a call."""

    def check(self) -> None:
        """Raise what stopped the call."""

    def when_stopped(self, wake: Callable[[BaseException], object]) -> AbstractContextManager[None]:
        """Have wake(why) called once if the call is stopped during a `with` block; at once if it is stopped already.

        wake   called in another thread, which it must not keep waiting; its exceptions are dropped
        """


# A thread that the call starts does not see it: the call passes on what its workers need.
STOP: ContextVar[Stop | None] = ContextVar("STOP", default=None)
