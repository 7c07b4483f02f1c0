"""How often each mount is in use, by its path.

Source: moby, daemon/graphdriver/counter.go
"""

from __future__ import annotations

from collections.abc import Callable

from layerstore.disk.locks import Mutex


class MountCounter:
    """Counts of users; a mount found at the first look had one user before this process."""

    def __init__(self, is_mounted: Callable[[str], bool]) -> None:
        """is_mounted   says whether something is mounted at a path; asked once a path."""
        self._lock = Mutex()
        self._is_mounted = is_mounted
        self._counts: dict[str, int] = {}

    def _change(self, path: str, by: int) -> int:
        with self._lock:
            count = self._counts.get(path)
            if count is None:
                count = 1 if self._is_mounted(path) else 0
            count += by
            if count > 0:
                self._counts[path] = count
            else:
                self._counts.pop(path, None)
            return count

    def users(self, path: str) -> int:
        """Return the count, without a look."""
        return self._counts.get(path, 0)

    def begin(self, path: str) -> None:
        """Count the first user of this process; the mount may be another one's."""
        with self._lock:
            self._counts[path] = 1

    def increment(self, path: str) -> int:
        """Count one user more and return the new number."""
        return self._change(path, 1)

    def decrement(self, path: str) -> int:
        """Count one user less and return the new number, which may be negative."""
        return self._change(path, -1)

    def forget(self, path: str | None = None) -> None:
        """Drop what is known of a path, or of all."""
        with self._lock:
            if path is None:
                self._counts.clear()
            else:
                self._counts.pop(path, None)
