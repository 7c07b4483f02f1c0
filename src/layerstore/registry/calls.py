"""What is stopped together: all that one pull, one push or one look at a registry does in its threads.

Stopping a call shuts its sockets down, so that a read that is blocked ends at once.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

from layerstore.streams.stopping import STOP


class Broken(Exception):                # noqa: N818  (it is caught inside the package, and no caller sees it)
    """A connection could not be made, broke, or stalled.

    why       what happened, without names of hosts; a text that may be told
    is_final  True: another attempt would end in the same way
    """

    def __init__(self, why: str, *, is_final: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.is_final = is_final


class Cuttable(Protocol):
    """What a call can end from another thread."""

    def cut(self) -> None:
        """End what is blocked; must not wait."""


class Call:
    """One pull, push or other call of a registry, with the sockets that it uses. Use it as a context manager."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._why: BaseException | None = None
        self._leaving = contextlib.ExitStack()
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._held: set[Cuttable] = set()

    def _mine(self) -> threading.Lock:
        """Return the lock; in a forked child one of its own, and the sockets are its parent's."""
        if self._pid != os.getpid():
            self._begin()
        return self._lock

    def __enter__(self) -> Self:
        stop = STOP.get()
        if stop is not None:
            self._leaving.enter_context(stop.when_stopped(self.stop))
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self._leaving.close()

    def check(self) -> None:
        """Raise what stopped the call."""
        if self._why is not None:
            raise self._why

    def stop(self, why: BaseException) -> None:
        """End all that the call waits for, from any thread. The first reason counts."""
        with self._mine():
            if self._why is not None:
                return
            self._why = why
            self._stopped.set()
            for each in self._held:
                each.cut()

    def wait(self, seconds: float) -> None:
        """Sleep. Raises what stopped the call, at once."""
        self._stopped.wait(seconds)
        self.check()

    @contextlib.contextmanager
    def slot_of(self, slots: threading.Semaphore) -> Iterator[None]:
        """Wait until one of the slots is free, and keep it. Raises what stopped the call."""
        while not slots.acquire(timeout=0.05):
            self.check()
        try:
            yield
        finally:
            slots.release()

    def hold(self, what: Cuttable) -> None:
        """Have something cut when the call is stopped. Raises what stopped it already."""
        with self._mine():
            self.check()
            self._held.add(what)

    def drop(self, what: Cuttable) -> None:
        """Leave something alone from now on. Twice is harmless."""
        with self._mine():
            self._held.discard(what)


def started() -> Call:
    """Return a new call. In a `with` block, layerstore.aio stops it when its task is cancelled."""
    return Call()
