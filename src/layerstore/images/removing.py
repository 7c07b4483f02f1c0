"""The removal of images: by name, by id, and of all unused ones.

Called under the lock of the image database, which these functions write. Names are removed first,
then configs, so that a process killed between leaves images without a name, and no name without an image; the layers
are released afterwards.
Source: moby, daemon/images/image_delete.go and image_prune.go
"""

from __future__ import annotations

import calendar
import contextlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from layerstore.errors import ImageError, LayerStoreError, readable
from layerstore.ids import ChainID, Digest
from layerstore.layerdb.imagedb import ImageDB, Repositories, chains_of

_GO_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)")


class Gone(NamedTuple):
    """What was removed: names, images, and the layers of each image, base first."""

    untagged: tuple[str, ...]
    deleted: tuple[Digest, ...]
    chains: tuple[tuple[ChainID, ...], ...]


class Removing:
    """The removals of one image database."""

    def __init__(self, db: ImageDB, mounts_on: Callable[[str], list[str]]) -> None:
        """mounts_on   names the writable layers right on a layer"""
        self._db, self._mounts_on = db, mounts_on

    def remove(self, id: Digest, name: str, *, force: bool) -> Gone:
        """Remove a name of an image; with its last name, or by its id (name is ""), the image. Raises ImageError."""
        names = self._db.repositories()
        of_it = names_of(id, names)
        going = _going_with(name, of_it)
        if name and set(going) != set(of_it):
            unname(names, going)
            self._db.write_repositories(names)
            return Gone(tuple(sorted(going)), (), ())
        self._check_removable(id, name, [each for each in of_it if "@" not in each], force)
        deleted, chains = [id], [self._chains_of(id)]
        parent = self._db.noted(id, "parent")
        unname(names, of_it)
        self._db.write_repositories(names)
        self._db.remove(id)
        while parent and self._is_unneeded(parent, names):
            chains.append(self._chains_of(parent))
            deleted.append(Digest(parent))
            parent, gone = self._db.noted(parent, "parent"), parent
            self._db.remove(gone)
        return Gone(tuple(sorted(of_it)), tuple(deleted), tuple(chains))

    def prune(self, *, dangling: bool, unused_for: float | None, dry_run: bool) -> Gone:
        """Remove all images without a name, or all that no writable layer stands on."""
        names = self._db.repositories()
        ids = self._db.ids()
        before = None if unused_for is None else time.time() - unused_for
        chosen = {id for id in ids if self._may_go(id, names, dangling, before)}
        parents = {id: self._db.noted(id, "parent") for id in ids}
        while kept := {parents[id] for id in ids if id not in chosen} & chosen:     # needed by images that stay
            chosen -= {Digest(id) for id in kept}
        deleted = [id for id in ids if id in chosen]
        untagged = [name for id in deleted for name in names_of(id, names)]
        chains = [self._chains_of(id) for id in deleted]
        if deleted and not dry_run:
            unname(names, untagged)
            self._db.write_repositories(names)
            for id in deleted:
                self._db.remove(id)
        return Gone(tuple(sorted(untagged)), tuple(deleted), tuple(chains))

    def _may_go(self, id: Digest, names: Repositories, dangling: bool, before: float | None) -> bool:
        if dangling and any("@" not in name for name in names_of(id, names)):
            return False
        if before is not None and self._last_used(id) > before:
            return False
        try:
            chains = chains_of(self._db.diff_ids(id))
        except (OSError, LayerStoreError):        # damaged: only its name or id removes it
            return False
        return not chains or not self._mounts_on(chains[-1])

    def _last_used(self, id: Digest) -> float:
        """Return when an image was last tagged or loaded, in seconds since 1970."""
        noted, used = _GO_TIME.match(self._db.noted(id, "lastUpdated")), self._db.written(id)
        if noted:
            with contextlib.suppress(ValueError, OverflowError):
                used = max(used, calendar.timegm((*map(int, noted.groups()), 0, 0, 0)))
        return used

    def _check_removable(self, id: Digest, name: str, names: Sequence[str], force: bool) -> None:
        short = id.encoded[:12]
        if not name and len(names) > 1 and not force:
            raise _conflict(short, "must", f"it is called {', '.join(names)}")
        if self._has_child(id):
            raise _conflict(short, "cannot", "image has dependent child images")
        top = self._top_of(id)
        if force or not top or any(self._top_of(other) == top for other in self._db.ids() if other != id):
            return
        users = self._mounts_on(top)
        if users:
            raise _conflict(short, "must", f"the writable layer {readable(users[0])} uses it")

    def _is_unneeded(self, id: str, names: Repositories) -> bool:
        """Return True if an image has no name, and no child."""
        return self._db.has(id) and not names_of(id, names) and not self._has_child(id)

    def _has_child(self, id: str) -> bool:
        return any(self._db.noted(other, "parent") == id for other in self._db.ids() if other != id)

    def _top_of(self, id: str) -> str:
        """Return the top layer of an image; "" if it has none, or cannot be read."""
        chains = self._chains_of(id)
        return chains[-1] if chains else ""

    def _chains_of(self, id: str) -> tuple[ChainID, ...]:
        """Return the layers of an image, base first; none if it cannot be read."""
        try:
            return chains_of(self._db.diff_ids(id))
        except (OSError, LayerStoreError):
            return ()


def _conflict(short: str, may: str, why: str) -> ImageError:
    return ImageError(f"conflict: unable to delete {short} ({may} be forced) - {why}", name=short)


def _going_with(name: str, of_it: Sequence[str]) -> list[str]:
    """Return the names that go with one: with the last tag of a repository, what digests call the image there."""
    if "@" in name:
        return [name]
    there = [each for each in of_it if _repository(each) == _repository(name)]
    return there if [each for each in there if "@" not in each] == [name] else [name]


def _repository(name: str) -> str:
    """Return the repository of a name with a tag or a digest."""
    before, at, _ = name.partition("@")
    return before if at else name.rpartition(":")[0]


def names_of(id: str, names: Repositories) -> list[str]:
    """Return all names of an image."""
    return [name for tags in names.values() for name, named in tags.items() if named == id]


def unname(names: Repositories, gone: Iterable[str]) -> None:
    """Remove names."""
    for tags in names.values():
        for name in gone:
            tags.pop(name, None)
