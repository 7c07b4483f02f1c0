"""Trees: how stacks of directories differ, as a list or as a fresh tar; read from the directories, without a mount.

Where a mark says what only a mount can tell, both sides are mounted apart for the length of the call, read-only.
Source: moby, daemon/graphdriver/overlay2 (Diff, Changes)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import cast

from layerstore._core import _changes, _files, _listing, _tarstream
from layerstore.contents.image import write_image
from layerstore.disk.locks import Scope
from layerstore.disk.textfile import read_text
from layerstore.drivers import Stack, checks
from layerstore.drivers.overlay.directories import LINKS
from layerstore.drivers.overlay.ground import Ground
from layerstore.drivers.record import listed
from layerstore.errors import LayerStoreError, NotSupportedError, ReadOnlyStoreError
from layerstore.ids import ChainID
from layerstore.streams.tarstream import TarStream
from layerstore.values import Change, ChangeKind, FileEntry, Progress

_KINDS = list(ChangeKind)


class Trees:
    """The drivers.Trees of overlays; the methods are the protocol's."""

    def __init__(self, ground: Ground) -> None:
        self._ground, self._at, self._classes, self._below = ground, ground.at, ground.classes, ground.below

    # ---- what differs ----

    def changes(self, new: Stack, old: Stack, *, contents: bool = False) -> list[Change]:
        new, old = list(new), list(old)
        if new == old:
            return []
        try:
            self._require_native([*new, *old])
            compared = self._compared(new, old, contents=contents)
        except NotSupportedError as why:
            with contextlib.ExitStack() as stack:
                shown = stack.enter_context(self._shown(new, why))
                before = stack.enter_context(self._shown(old, why)) if old else -1
                compared = _changes.compare_trees(shown, before, contents=contents)
        return compared.to_list(Change, _KINDS) if compared else []

    def _compared(self, new: list[str], old: list[str], *, contents: bool) -> _changes.Changes | None:
        """Compare by the directories. None: nothing stands above. Raises NotSupportedError."""
        above = len(new) - len(old)
        with contextlib.ExitStack() as stack:
            if not old and len(new) == 1 and self.is_bare(new[0]):
                return _changes.compare_trees(stack.enter_context(self._at.opened_files(new[0])))
            if above > 0 and new[above:] == old:
                uppers = [stack.enter_context(self._below.opened(id)) for id in new[:above]]
                uppers = [each for each in uppers if not (isinstance(each, int) and _files.is_empty(each))]
                if not uppers:
                    return None
                user = self._view(new)
                lowers = [stack.enter_context(self._below.opened(id)) for id in old]
                return _changes.compare_overlay(uppers, lowers, user, contents=contents)
            fds = {id: stack.enter_context(self._below.opened(id)) for id in {*new, *old}}
            users = {"userxattr": self._view(new), "old_userxattr": self._view(old)}
            return _changes.compare_stacks([fds[id] for id in new], [fds[id] for id in old], **users, contents=contents)

    def is_bare(self, id: str) -> bool:
        """Return True if id, on nothing, is a box: no overlay but a directory, which shows what lies in it as it is."""
        return not os.path.exists(self._at.path(id, "committed"))

    def _view(self, ids: Sequence[str]) -> bool:
        """Choose the class of marks that shows all of these. Raises NotSupportedError: there is none."""
        return bool(ids) and self._classes.view(ids[0], ids[1:])

    # ---- a fresh tar ----

    def diff(self, above: Stack, below: Stack, flags: int = 0) -> TarStream:
        try:
            self._require_native([*above, *below])
            return self._exported(above, below, flags)
        except NotSupportedError as why:
            if not below and self.is_native(above):
                raise                     # nothing below that a mark could lead to
            with contextlib.ExitStack() as stack:
                shown = stack.enter_context(self._shown([*above, *below], why))
                if not below:
                    return looked_over(_tarstream.export_tree(shown, flags))
                before = stack.enter_context(self._shown(below, why))
                changes = _changes.compare_trees(shown, before, attributes=True, touched=True)
                return looked_over(_tarstream.export_changes(shown, changes, flags))

    def write_image(self, stack: Stack, fd: int, progress: Progress | None = None) -> None:
        with self._whole(stack, _tarstream.EXPORT_KEEP | _tarstream.EXPORT_WHOLE) as tar:
            write_image(tar, fd, progress)

    def _whole(self, stack: Stack, flags: int) -> TarStream:
        """Make a tar of all that ids show, without marks."""
        if len(stack) != 1:
            return self.diff(stack, [], flags)
        try:
            self._require_native(stack)
            return self._exported(stack, [], flags, merged=True)
        except NotSupportedError as why:
            with self._shown(stack, why) as shown:
                return looked_over(_tarstream.export_tree(shown, flags))

    def _exported(self, above: Stack, below: Stack, flags: int, *, merged: bool = False) -> TarStream:
        """Make the tar of the directory that merging these makes; of one, its own, or (merged) what it shows alone."""
        flags |= _tarstream.EXPORT_OVERLAY | (_tarstream.EXPORT_USERXATTR if self._view(above) else 0)
        with contextlib.ExitStack() as stack:
            fds = [stack.enter_context(self._below.opened(id)) for id in above]
            if len(fds) == 1 and not merged:
                return looked_over(_tarstream.export_stack(fds, flags))
            lowers = [stack.enter_context(self._below.opened(id)) for id in below]
            return looked_over(_tarstream.export_stack(fds, flags, lowers))

    # ---- how much it is ----

    def size(self, above: Stack) -> int:
        with contextlib.ExitStack() as stack:
            fds = [stack.enter_context(self._below.opened(id)) for id in above]
            if len(fds) == 1 and isinstance(fds[0], int):
                return _changes.tree_size(fds[0])
            try:
                return _changes.stack_size(fds, self._view(above))
            except NotSupportedError as why:
                return _changes.tree_size(stack.enter_context(self._shown(above, why)))

    # ---- what is in it ----

    def entries(self, above: Stack, below: Stack) -> Iterator[FileEntry]:
        flags = _tarstream.EXPORT_KEEP | (_tarstream.EXPORT_USERXATTR if self._view(above) else 0)
        with contextlib.ExitStack() as stack:
            fds = [stack.enter_context(self._below.opened(id)) for id in above]
            lowers = [stack.enter_context(self._below.opened(id)) for id in below] if len(fds) > 1 else None
            return listed(_listing.list_stack(fds, lowers, flags), cast(ChainID, ""))

    def open_file(self, above: Stack, path: str) -> int:
        with contextlib.ExitStack() as stack:
            fds = [stack.enter_context(self._below.seen(id)) for id in above]
            return _listing.open_stacked(fds, path, self._view(above))

    # ---- what a mount shows ----

    def is_native(self, ids: Sequence[str]) -> bool:
        """Return True if these say what overlays show; of a read-only store they must, as nothing is mounted."""
        return self._ground.read_only or self._ground.native_works()

    def _require_native(self, ids: Sequence[str]) -> None:
        if not self.is_native(ids):
            text = "this kernel's overlays do not say by their directories what they show"
            raise NotSupportedError(text, path=self._at.home)

    def _item(self, id: str) -> str:
        """Name a directory for a mount: by its short link, as mount(2) takes little text."""
        with contextlib.suppress(OSError, LayerStoreError):
            item = f"{LINKS}/{read_text(self._at.path(id, 'link'))}"
            if self._at.lower_ids([item]) == [id]:
                return item
        return f"{id}/{self._at.files}"

    def _shown(self, ids: Sequence[str], why: NotSupportedError) -> Scope[int]:
        """Open what a mount that follows every mark shows of these.

        Raises  why   there is no such mount
        """
        if self._view(ids):               # with user.* marks the kernel follows none
            raise why
        if self._ground.read_only:
            text = f"{ReadOnlyStoreError.text}: nothing is mounted in it"
            raise ReadOnlyStoreError(text, path=self._at.path(ids[0])) from why
        made: list[Scope[int]] = []

        def begin() -> int:
            with self._below.standing(ids) as given:
                made.append(checks.shown(self._at.home, given([self._item(id) for id in ids]), why))
                return made[0].__enter__()

        def end(_: int) -> None:
            made[0].__exit__(None, None, None)
            self._below.left(ids)

        return Scope(begin, end)


def looked_over(source: _tarstream.Source, on_close: Callable[[], None] | None = None) -> TarStream:
    """Make a stream of a fresh tar, after a look at all that will go into it."""
    try:
        source.size()                     # what cannot be told, or must not go out, is met before the first byte
    except BaseException:
        source.close()
        raise
    return TarStream(source, seekable=False, on_close=on_close)
