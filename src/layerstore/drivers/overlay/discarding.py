"""Removal beside the calls: of what a rollback dropped, once no overlay uses it.

A discarded directory is claimed until it is gone, so that no other store takes it for an orphan. Of a process that was
killed it is one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from layerstore.disk import mounts
from layerstore.disk.background import Background
from layerstore.drivers.overlay.directories import Directories
from layerstore.drivers.overlay.mounting import Mounting


class Discarding:
    """The discarded directories of one store."""

    def __init__(
        self, at: Directories, mounting: Mounting, background: Background, remove: Callable[[str], None], *,
        has_projects: bool,
    ) -> None:  # fmt: skip
        """has_projects   directories may have limits of their own"""
        self._at, self._mounting, self._background, self._remove = at, mounting, background, remove
        self._waiting: set[str] = set()
        self._has_projects = has_projects

    def discard(self, id: str, then: Callable[[], object] = lambda: None, was: str = "") -> None:
        """Remove an unowned id by the thread, then call `then`. One with a limit is removed at once if it is unused."""
        if id in self._waiting or not self._at.keep(id):
            return
        limited = False
        with contextlib.suppress(OSError):
            at = self._at
            limited = self._has_projects and mounts.project_of(at.path(id)) != mounts.project_of(at.home)
        self._waiting.add(id)
        self._background.submit(lambda: self._end(id, then, was))
        if limited:
            self._background.drain()

    def _end(self, id: str, then: Callable[[], object], was: str) -> bool:
        try:
            if self._mounting.is_upper_used(id) or any(map(self._mounting.is_read, (id, was))):
                return False
            self._remove(id)
        except BaseException:
            self._at.recorded(id)         # it is left to cleanup()
            self._waiting.discard(id)
            raise
        self._waiting.discard(id)
        then()
        return True

    def close(self) -> None:
        """End what can end. What is still used is left to the next store."""
        self._background.close()
        while self._waiting:
            self._at.recorded(self._waiting.pop())
