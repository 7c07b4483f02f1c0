"""Copying: new directories of what others hold, by the file system's own sharing, by hard links, or byte for byte.

Each is made claimed and settled: nothing writes in it, and no cleanup() removes it until it is published.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence

from layerstore._core import _clone
from layerstore.disk import mounts
from layerstore.drivers.overlay.ground import Ground
from layerstore.errors import readable

log = logging.getLogger("layerstore")


class Copying:
    """The copies in one store."""

    def __init__(self, ground: Ground) -> None:
        self._ground, self._at = ground, ground.at

    def clone(self, id: str, into: str, stack: Sequence[str]) -> None:
        """Make into a copy of what id wrote, while processes may go on writing there."""
        with self._at.held(id), self._made(into, id, stack) as to, self._at.opened_files(id) as diff:
            with _below(self._at.files_of(id)):
                unsteady = _clone.clone_tree(diff, to, _clone.CLONE_USERXATTR if self._is_user(id) else 0)
        if unsteady:
            text = "%d files of %s changed each time they were copied, and are taken as they were read: the first is %s"
            log.warning(text, len(unsteady), id, readable(unsteady[0]), extra={"mount_id": id, "path": unsteady[0]})

    def copy(self, id: str, into: str, stack: Sequence[str]) -> None:
        """Make into share the files of a frozen id, in directories of its own."""
        flags = _clone.CLONE_LINK | (_clone.CLONE_USERXATTR if self._is_user(id) else 0)
        with self._made(into, id, stack) as to, self._at.opened_files(id) as diff, _below(self._at.files_of(id)):
            _clone.clone_tree(diff, to, flags)

    def merge(self, ids: Sequence[str], into: str, below: Sequence[str]) -> None:
        """Make into, on below, show what frozen ids on below show, the nearest first; files are shared."""
        # A whiteout over a whiteout stays, too: what is below may be merged into this one later, and a tar is to say
        # the same then.
        flags = _clone.MERGE_OVER_MARKS | (_clone.MERGE_USERXATTR if self._is_user(ids[0]) else 0)
        with contextlib.ExitStack() as stack:
            to = stack.enter_context(self._made(into, ids[0], below))
            fds = [stack.enter_context(self._at.opened_files(id)) for id in ids]
            lowers = [stack.enter_context(self._ground.below.opened(id)) for id in below]
            with _below(self._at.files_of(into)):
                _clone.merge_stack(fds, lowers, to, flags)

    def _is_user(self, id: str) -> bool:
        return self._ground.classes.is_user(id)

    @contextlib.contextmanager
    def _made(self, into: str, like: str, stack: Sequence[str]) -> Iterator[int]:
        """Make a directory on a stack, of the class and the project of another id, and open its diff; remove it if the
        block raises."""
        ground, at = self._ground, self._at
        user, project = self._is_user(like), mounts.project_of(at.path(like)) if ground.has_projects else 0

        def prepare(path: str) -> None:
            ground.classes.write(path, user)
            if project:
                mounts.set_project(path, project)

        lower = at.lower_for(stack)
        at.create(into, "", prepare, lower=lower, most=lower.count(":") + 1)
        try:
            with at.opened_files(into) as to:
                yield to
            at.settle([into])
        except BaseException:
            ground.remove(into)
            raise


@contextlib.contextmanager
def _below(directory: str) -> Iterator[None]:
    """Put directory before the path in an OSError of the core, which knows none above its descriptors."""
    try:
        yield
    except OSError as err:
        if isinstance(err.filename, str):
            err.filename = os.path.join(directory, err.filename)
        raise
