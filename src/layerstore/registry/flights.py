"""What several threads want at once is made by one of them; the others wait for it, and get what it got."""

from __future__ import annotations

import copy
import functools
import os
import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from layerstore.disk.locks import Ending
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


class _UnderWay:
    """What is being made, by key. An interrupt leaves nothing behind, and a forked child has none of its parent's."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._flights: dict[Hashable, _Flight] = {}

    def claim(self, key: Hashable, flight: _Flight) -> _Flight:
        """Make a flight the one of a key if there is none. Return the one that there is."""
        if self._pid != os.getpid():
            self._pid, self._flights = os.getpid(), {}
        return self._flights.setdefault(key, flight)

    def ending(self, key: Hashable, flight: _Flight) -> Ending:
        """Return a `with` block that ends a flight, claimed or not: those that wait for it go on."""
        return Ending(functools.partial(self._end, key, flight))

    def _end(self, key: Hashable, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            self._flights.pop(key, None)
        flight.ended.set()


class Flights(Generic[T]):
    """Things that are made once for all threads that ask at the same time.

    An error of the registry is one for all who waited. If the maker is stopped (its own call was cancelled, or failed
    elsewhere), one of those who wait makes it.
    """

    def __init__(self) -> None:
        self._under_way = _UnderWay()

    def get(self, key: Hashable, check: Callable[[], None], make: Callable[[], T]) -> T:
        """Return the thing of a key.

        check   raises what stopped the caller; called often while it waits
        """
        while True:
            mine = _Flight()
            with self._under_way.ending(key, mine):
                flight = self._under_way.claim(key, mine)
                if flight is mine:
                    return self._made(mine, check, make)
            while not flight.ended.wait(_LOOK):
                check()
            if flight.error is not None:
                raise copy.copy(flight.error)
            if flight.is_made:
                made: T = flight.made
                return made

    def _made(self, flight: _Flight, check: Callable[[], None], make: Callable[[], T]) -> T:
        try:
            made = make()
        except RegistryError as err:
            check()                        # what stopped this caller is no error of what it was making
            flight.error = copy.copy(err)
            raise
        flight.made, flight.is_made = made, True
        return made


class Exclusive:
    """What one thread does at a time. Those who wait hear that they are stopped."""

    def __init__(self) -> None:
        self._under_way = _UnderWay()

    def do(self, check: Callable[[], None], work: Callable[[], T]) -> T:
        """Return what work() returns, while no other thread is at such work. check: as of Flights."""
        mine = _Flight()
        with self._under_way.ending("", mine):
            while (flight := self._under_way.claim("", mine)) is not mine:
                if not flight.ended.wait(_LOOK):
                    check()
            return work()


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
