"""A program that makes a namespace, and the first process in it: both are gone when the object is."""
from collections.abc import Iterable
from typing import Final, final

NONE: Final[int]
"""In place of a descriptor: none."""
CONTROL: Final[int]
"""In place of a descriptor: the other end of the socket."""
GONE: Final[int]
"""In place of a message: none will come."""

@final
class Process:
    """A program that was started with an empty environment, in a session of its own. It ends when this object does."""

    def __new__(cls, program: bytes, argv: list[bytes], fds: Iterable[int]) -> Process:
        """Start it.

        fds      what its descriptors are, from 0 on: a descriptor, NONE, or once CONTROL
        Raises   OSError   as posix_spawn(3)
        """

    @property
    def control(self) -> int:
        """A descriptor that is readable when there is a message, or the namespace is gone."""

    @property
    def ended(self) -> int:
        """A descriptor that is readable when the program has ended."""

    def next(self) -> tuple[int, int]:
        """Return the next message and its value: (0, 0) if there is none yet, (GONE, 0) if none will come."""

    def go(self) -> None:
        """Let the first process start the command."""

    def end(self) -> None:
        """Kill the first process, and with it all in the namespace; wait until they are gone. Twice is harmless."""
