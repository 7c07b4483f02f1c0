"""Locks that no interrupt loses and no fork leaves behind: each is taken and released inside one call of C."""
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar, final, type_check_only

_T = TypeVar("_T")

@type_check_only
class _Block(Generic[_T]):
    """What a `with` block is given."""

    def __enter__(self) -> _T: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

@final
class Mutex(_Block[None]):
    """A lock between threads, whose owner may take it again. In a forked child what other threads had is free."""

    def __new__(cls, told: Callable[[BaseException], object] | None = None) -> Mutex:
        """told   called with what ended a `with` block, once the lock is released"""

    def is_held(self) -> bool:
        """Return True if this thread holds it."""

@final
class NamedLocks:
    """One Mutex per name, which exists only while a thread holds it or waits for it."""

    def hold(self, name: str) -> HeldName:
        """Hold the lock of name for the length of a `with` block."""

    def names(self) -> list[str]:
        """Return the names of the locks that a thread holds or waits for."""

@final
class HeldName(_Block[None]):
    """What NamedLocks.hold() gives."""

@final
class HeldDirectory(_Block[None]):
    """What DirectoryLock.hold() gives."""

@final
class DirectoryLock:
    """A lock between threads and processes: a Mutex, and a flock on a directory. Its owner may take it again."""

    def __new__(cls, path: str, timeout: float, late: Callable[[str], BaseException]) -> DirectoryLock:
        """timeout  seconds; 0: waits for ever.  late: makes the error of a wait that took longer"""

    def hold(self, check: Callable[[], object] | None = None) -> HeldDirectory:
        """Hold it for the length of a `with` block; check is called first, and what it raises ends the block."""

@final
class Claim(_Block[Claim]):
    """A directory marked as in use by a lock on it. Without further references it is released."""

    def is_held(self) -> bool:
        """Return True if the mark is this process's still; in a forked child it is the parent's."""

    def release(self) -> None:
        """Release the mark. Twice is harmless."""


def claim_directory(
    path: str, *, wait: bool = True, timeout: float = 0.0, late: Callable[[str], BaseException] | None = None
) -> Claim | None:
    """Lock a directory, if it still is the one at path once the lock is there.

    wait      False: None at once where another one holds the lock
    timeout   seconds that a wait may take; then what late() makes is raised. 0: for ever

    Returns  the claim, or None: the directory is gone, was replaced, or (wait=False) is in use
    """

def surely(call: Callable[..., _T], *args: Any) -> _T:
    """Call what can be called twice: anew where an interrupt comes into it, which is raised then."""

@final
class Ending(_Block[None]):
    """`with Ending(close):` ends in surely(close)."""

    def __new__(cls, call: Callable[[], object]) -> Ending: ...

@final
class Scope(_Block[_T]):
    """`with Scope(begin, end) as value:` ends in surely(end, value)."""

    def __new__(cls, begin: Callable[[], _T], end: Callable[[_T], object]) -> Scope[_T]: ...

@final
class OpenDirectory(_Block[int]):
    """An open directory for the length of a `with` block, which gets its descriptor; a link is none."""

    def __new__(cls, path: Any, *, dir_fd: int | None = None) -> OpenDirectory: ...
