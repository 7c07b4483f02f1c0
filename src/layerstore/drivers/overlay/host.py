"""The home of a driver that mounts overlays: what it says of itself, and what is in it that no layer owns."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator

from layerstore._core import _changes, _files
from layerstore.disk import mounts
from layerstore.disk.locks import claim_directory
from layerstore.drivers import Owned, checks
from layerstore.drivers.overlay.directories import LINKS, is_there, opened
from layerstore.drivers.overlay.ground import Ground
from layerstore.drivers.overlay.tidying import tidy
from layerstore.errors import LayerStoreError
from layerstore.ids import is_driver_id

log = logging.getLogger("layerstore")

# How many unowned directories are looked at together: each holds a descriptor meanwhile.
_BATCH = 256


class Host:
    """The drivers.Host of overlays; the methods are the protocol's."""

    def __init__(self, ground: Ground) -> None:
        self.name = ground.name
        self.ground, self._at = ground, ground.at
        self.sync = ground.at.sync
        self.close = ground.discarding.close
        self.in_memory = checks.fs_name(ground.home) in ("tmpfs", "ramfs")

    def status(self) -> list[tuple[str, str]]:
        ground, home = self.ground, self.ground.home
        typed = mounts.dirents_typed(home) if ground.read_only else checks.has_d_type(home)
        truths = {
            "Supports d_type": typed,
            "Using metacopy": checks.uses_metacopy(ground.where_to_probe()),
            "Native Overlay Diff": ground.native_works(),
            "userxattr": ground.userxattr,
        }
        told = [(name, str(truth).lower()) for name, truth in truths.items()]
        return [("Backing Filesystem", checks.fs_name(home)), *told]

    def cleanup(self) -> None:
        self.ground.mounting.cleanup()
        self.ground.background.drain()
        tidy(self.ground)

    # ---- what no layer owns ----

    def _directories(self, owned: Iterable[str]) -> list[str]:
        """Return the ids of directories below home that are none of these, nor below one of these."""
        with os.scandir(self._at.home) as entries:
            names = [e.name for e in entries if e.name != LINKS and e.is_dir(follow_symlinks=False)]
        found = [name for name in names if is_driver_id(name)]
        keep: set[str] = set()
        # Directories of other names are BuildKit's, whose own database owns them and what they stand on.
        todo = [*owned, *(name for name in names if not is_driver_id(name))]
        while todo:                       # what an owned directory stands on is owned by that
            id = todo.pop()
            if id not in keep:
                keep.add(id)
                todo += self._below(id)
        return sorted(id for id in found if id not in keep)

    def _below(self, id: str) -> list[str]:
        try:
            return self._at.stack_of(id)
        except (OSError, LayerStoreError):                # one that is damaged does not give away the others
            with contextlib.suppress(OSError, LayerStoreError):
                return self._at.named_in(self._at.lower_text(id))
        return []

    def _is_used(self, id: str) -> bool:
        """Return True if a process keeps what a rollback dropped. A mount at its own place does not count."""
        mounting = self.ground.mounting
        return mounting.is_read(id) or (not is_there(self._at.path(id, "merged")) and mounting.is_upper_used(id))

    def _abandoned(self, owned: Owned) -> Iterator[str]:
        """Yield unowned ids, each while it is claimed so that no process can be making it."""
        candidates = self._directories(owned())
        for at in range(0, len(candidates), _BATCH):
            claims = {id: claim_directory(self._at.path(id), wait=False) for id in candidates[at : at + _BATCH]}
            try:
                # Asked again: what was being made at the first look is recorded by now, or still claimed.
                left = set(self._directories(owned()))
                # A squash below a box in use leaves directories that its mount alone stands on.
                left -= self.ground.mounting.stood_on() if left else set()
                with self._at.known(claims):      # the removal of one may end mounts of the others
                    yield from (id for id, claim in claims.items() if claim and id in left and not self._is_used(id))
            finally:
                for claim in claims.values():
                    if claim:
                        claim.release()

    def usage(self, name: str) -> int:
        with contextlib.suppress(OSError), opened(os.path.join(self._at.home, name)) as fd:
            return _changes.tree_size(fd)
        return 0

    def blocks(self, id: str, seen: _changes.Blocks) -> int:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._at.opened_files(id) as fd:
            return seen.add(fd)
        return 0

    def orphans(self, owned: Owned) -> list[str]:
        return [*self._abandoned(owned), *self._at.dangling()]

    def _remove_abandoned(self, owned: Owned) -> tuple[list[OSError], int]:
        failed: list[OSError] = []
        removed = 0
        for id in self._abandoned(owned):
            try:
                self.ground.remove(id)
                removed += 1
            except OSError as err:
                failed.append(err)
        return failed, removed

    def reclaim(self, owned: Owned) -> None:
        failed, removed = self._remove_abandoned(owned)
        while removed:                    # what a mount of these stood on is abandoned only now
            failed, removed = self._remove_abandoned(owned)
        for link in self._at.dangling():
            with contextlib.suppress(FileNotFoundError):
                _files.unlink(os.path.join(self._at.home, link))
        for where in (self._at.home, os.path.dirname(self._at.home)):
            checks.remove_abandoned(where)
        for other in failed[1:]:
            log.error("Cannot remove %s: %s", other.filename, other, extra={"path": other.filename, "error": other})
        if failed:
            raise failed[0]
