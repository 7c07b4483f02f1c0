"""Directories and links below a driver's home that belong to nobody."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator

from layerstore._core import _changes, _files
from layerstore.disk.locks import claim_directory
from layerstore.drivers import checks
from layerstore.drivers.overlay2.directories import LINKS, Directories, opened
from layerstore.errors import LayerStoreError
from layerstore.ids import is_driver_id

log = logging.getLogger("layerstore")

# How many unowned directories are looked at together: each holds a descriptor meanwhile.
_BATCH = 256


class Unowned:
    """Finds them, and removes them."""

    def __init__(self, at: Directories) -> None:
        """at   where to look"""
        self._at = at

    def _directories(self, owned: Iterable[str]) -> list[str]:
        """Ids of directories below home that are none of these, nor below one of these."""
        with os.scandir(self._at.home) as entries:
            names = [e.name for e in entries if e.name != LINKS and e.is_dir(follow_symlinks=False)]
        found = [name for name in names if is_driver_id(name)]
        keep = set(owned)
        # Directories of other names are BuildKit's, whose own database owns them and what they stand on.
        for id in [*keep, *(name for name in names if not is_driver_id(name))]:
            with contextlib.suppress(OSError, LayerStoreError):
                keep.update(os.path.basename(os.path.dirname(path)) for path in self._at.lower_dirs(id))
        return sorted(id for id in found if id not in keep)

    def _abandoned(self, owned: Callable[[], Iterable[str]]) -> Iterator[str]:
        """Ids of nobody, each while it is claimed so that nobody can be making it."""
        candidates = self._directories(owned())
        for at in range(0, len(candidates), _BATCH):
            claims = {id: claim_directory(self._at.path(id), wait=False) for id in candidates[at : at + _BATCH]}
            try:
                # Asked again: what was being made at the first look is recorded by now, or still claimed.
                left = set(self._directories(owned()))
                yield from (id for id, claim in claims.items() if claim and id in left)
            finally:
                for claim in claims.values():
                    if claim:
                        claim.release()

    def usage(self, name: str) -> int:
        """Count the bytes of the files below one of names(): 0 for a link."""
        with contextlib.suppress(OSError), opened(os.path.join(self._at.home, name)) as fd:
            return _changes.tree_size(fd)
        return 0

    def names(self, owned: Callable[[], Iterable[str]]) -> list[str]:
        """Name the directories and links below home that belong to nobody."""
        return [*self._abandoned(owned), *self._at.dangling()]

    def reclaim(self, owned: Callable[[], Iterable[str]], remove: Callable[[str], None]) -> None:
        """Remove every directory and link that belongs to nobody.

        Raises  OSError   the first that could not be removed; the others were
        """
        failed: list[OSError] = []
        for id in self._abandoned(owned):
            try:
                remove(id)
            except OSError as err:
                failed.append(err)
        for link in self._at.dangling():
            with contextlib.suppress(FileNotFoundError):
                _files.unlink(os.path.join(self._at.home, link))
        for where in (self._at.home, os.path.dirname(self._at.home)):
            checks.remove_abandoned(where)
        for other in failed[1:]:
            log.error("Cannot remove %s: %s", other.filename, other, extra={"path": other.filename, "error": other})
        if failed:
            raise failed[0]
