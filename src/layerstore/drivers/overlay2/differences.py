"""Differences: what a directory's files change of what lies below it, as a list or as a fresh tar.

The upper directory alone tells them where overlay keeps to itself what it notes; a mount tells the rest.
Source: moby, daemon/graphdriver/overlay2 (Diff, Changes)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from layerstore._core import _changes, _files, _tarstream
from layerstore.disk.locks import Scope
from layerstore.drivers import checks
from layerstore.drivers.overlay2.directories import opened
from layerstore.drivers.overlay2.ground import Ground
from layerstore.errors import NotSupportedError, ReadOnlyStoreError
from layerstore.streams.tarstream import TarStream
from layerstore.values import Change, ChangeKind


class Differences:
    """The differences between ids of one home; `parent` is the id that another one is compared with, or ""."""

    def __init__(self, ground: Ground) -> None:
        self._ground, self._at = ground, ground.at
        self._classes, self._mounting = ground.classes, ground.mounting

    def _is_native(self, id: str, parent: str) -> bool:
        """Return True if id stands right on parent, so that id's own directory is the difference."""
        items = self._at.lower_items(id)
        if items and parent:
            try:
                target = _files.readlink(os.path.join(self._at.home, items[0]))
            except OSError:
                return False
            return target == f"../{parent}/diff" and self._ground.native_works()
        return not items and not parent and self._ground.native_works()

    def tar(self, id: str, parent: str, *, read_only: bool = False, flags: int = 0) -> TarStream:
        """Make a fresh tar of the difference, after a look at all that will go into it.

        read_only   id must not be written to
        flags       EXPORT_KEEP, EXPORT_SKIP_MARKS
        Raises      BreakoutError, NotSupportedError, ReadOnlyStoreError, OSError
        """
        if self._is_native(id, parent):
            marks = _tarstream.EXPORT_OVERLAY | (_tarstream.EXPORT_USERXATTR if self._classes.view(id, ()) else 0)
            try:
                with self._at.opened_diff(id) as root:
                    return _looked_over(_tarstream.export_tree(root, flags | marks))
            except NotSupportedError as why:
                with self._shown(id, parent, why) as root, self._shown(id, parent, why, below=True) as below:
                    changes = _changes.compare_trees(root, below, attributes=True, touched=True)
                    return _looked_over(_tarstream.export_changes(root, changes, flags))
        path = self._mounting.get(id, read_only=read_only)
        try:
            with opened(path) as root:
                return _looked_over(self._merged(root, parent, flags), lambda: self._mounting.done(id))
        except BaseException:
            self._mounting.done(id)
            raise

    def _merged(self, root: int, parent: str, flags: int) -> _tarstream.Source:
        """Make a fresh tar of the difference of a mounted tree to parent."""
        if not parent:
            return _tarstream.export_tree(root, flags)
        with self._mounting.mounted(parent, read_only=True) as below:
            return _tarstream.export_changes(root, _changes.compare_trees(root, below, attributes=True), flags)

    def _shown(self, id: str, parent: str, why: NotSupportedError, *, below: bool = False) -> Scope[int]:
        """Open what id, or what lies below it, shows to a mount that follows every mark.

        Raises  why   there is no such mount
        """
        if not parent or self._classes.view(id, ()):      # with user.* marks the kernel follows none
            raise why
        if self._ground.read_only:
            text = f"{ReadOnlyStoreError.text}: nothing is mounted in it"
            raise ReadOnlyStoreError(text, path=self._at.path(id)) from why
        return checks.shown(self._at.home, [*([] if below else [f"{id}/diff"]), *self._at.lower_items(id)], why)

    def changes(self, id: str, parent: str) -> list[Change]:
        kinds = list(ChangeKind)
        with contextlib.ExitStack() as stack:
            if self._is_native(id, parent) and parent:
                upper = stack.enter_context(self._at.opened_diff(id))
                if _files.is_empty(upper):
                    return []
                lowers = [stack.enter_context(opened(path)) for path in self._at.lower_dirs(id)]
                userxattr = self._classes.view(id, self._at.lower_ids(self._at.lower_items(id)))
                try:
                    return _changes.compare_overlay([upper], lowers, userxattr).to_list(Change, kinds)
                except NotSupportedError as err:
                    new = stack.enter_context(self._shown(id, parent, err))
                    old = stack.enter_context(self._shown(id, parent, err, below=True))
                return _changes.compare_trees(new, old).to_list(Change, kinds)
            new = stack.enter_context(self._mounting.mounted(id))
            old = stack.enter_context(self._mounting.mounted(parent, read_only=True)) if parent else -1
            return _changes.compare_trees(new, old).to_list(Change, kinds)


def _looked_over(source: _tarstream.Source, on_close: Callable[[], None] | None = None) -> TarStream:
    try:
        source.size()                     # what cannot be told, or must not go out, is met before the first byte
    except BaseException:
        source.close()
        raise
    return TarStream(source, seekable=False, on_close=on_close)
