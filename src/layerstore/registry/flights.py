"""What several threads want at once is made by one of them; the others wait for it, and get what it got."""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar

from layerstore.errors import RegistryError

# Seconds between two looks whether the caller has given up.
_LOOK = 0.05

T = TypeVar("T")


class _Flight:
    """One that is being made. Its maker writes the fields, then sets the event."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.made: Any = None
        self.error: RegistryError | None = None
        self.is_made = False


class Flights(Generic[T]):
    """Things that are made once for all threads that ask at the same time.

    An error of the registry is one for all who waited. If the maker is stopped (its own call was cancelled, or failed
    elsewhere), one of those who wait makes it.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._under_way: dict[Hashable, _Flight] = {}

    def get(self, key: Hashable, check: Callable[[], None], make: Callable[[], T]) -> T:
        """Return the thing of a key.

        check   raises what stopped the caller; called often while it waits
        """
        if self._pid != os.getpid():       # a forked child: the threads that were making something are not in it
            self._begin()
        while True:
            with self._lock:
                flight = self._under_way.get(key)
                mine = flight is None
                if flight is None:
                    flight = self._under_way[key] = _Flight()
            if mine:
                return self._made(key, flight, check, make)
            while not flight.ended.wait(_LOOK):
                check()
            if flight.error is not None:
                raise copy.copy(flight.error)
            if flight.is_made:
                made: T = flight.made
                return made

    def _made(self, key: Hashable, flight: _Flight, check: Callable[[], None], make: Callable[[], T]) -> T:
        try:
            made = make()
            flight.made, flight.is_made = made, True
            return made
        except RegistryError as err:
            check()                        # what stopped this caller is no error of what it was making
            flight.error = copy.copy(err)
            raise
        finally:
            with self._lock:
                del self._under_way[key]
            flight.ended.set()


class Once(Generic[T]):
    """Things that are made once and kept; an error of the registry is kept, too."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, T | RegistryError] = {}
        self._flights: Flights[T | RegistryError] = Flights()

    def get(self, key: Hashable, check: Callable[[], None], make: Callable[[], T]) -> T:
        """Return the thing of a key. Raises the error that making it ended with, each time."""

        def kept() -> T | RegistryError:
            if key not in self._kept:
                self._kept[key] = self._tried(check, make)
            return self._kept[key]

        found = self._kept[key] if key in self._kept else self._flights.get(key, check, kept)
        if isinstance(found, RegistryError):
            raise copy.copy(found)
        return found

    def peek(self, key: Hashable) -> T | None:
        """Return the thing of a key if it is made; None: it is not, or making it failed."""
        found = self._kept.get(key)
        return None if isinstance(found, RegistryError) else found

    def values(self) -> list[T]:
        """Return all that is made."""
        return [found for found in self._kept.copy().values() if not isinstance(found, RegistryError)]

    def _tried(self, check: Callable[[], None], make: Callable[[], T]) -> T | RegistryError:
        try:
            return make()
        except RegistryError as err:
            check()
            return copy.copy(err)


class Exclusive:
    """A lock whose waiters hear that they are stopped, and that a forked child does not inherit."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def taken(self, check: Callable[[], None]) -> Iterator[None]:
        """Hold the lock during a `with` block."""
        if self._pid != os.getpid():
            self._begin()
        while not self._lock.acquire(timeout=_LOOK):
            check()
        try:
            yield
        finally:
            self._lock.release()
