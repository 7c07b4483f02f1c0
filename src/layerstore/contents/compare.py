"""Directory differences on their own: two plain trees, or an overlay upper over its lowers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from layerstore._core import _changes, _files
from layerstore.values import Change, ChangeKind, StrPath


def _open(stack: ExitStack, path: StrPath) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(_files.close, fd, path)
    return fd


def changes_between(new: StrPath, old: StrPath) -> list[Change]:
    """List how new differs from old, as moby compares two trees.

    old     "": nothing; all of new is added
    Raises  OSError
    """
    with ExitStack() as stack:
        before = -1 if os.fspath(old) in ("", b"") else _open(stack, old)
        return _changes.compare_trees(_open(stack, new), before).to_list(Change, list(ChangeKind))


def overlay_changes(upper: StrPath, lowers: Sequence[StrPath]) -> list[Change]:
    """List how an overlay differs from its lowers (nearest first), by reading upper alone.

    Raises  NotSupportedError   upper holds a renamed directory or a file without its data
    """
    if isinstance(lowers, (str, bytes, os.PathLike)):
        raise TypeError("lowers is a sequence of paths, not one path")
    with ExitStack() as stack:
        fds = [_open(stack, lower) for lower in lowers]
        return _changes.compare_overlay([_open(stack, upper)], fds).to_list(Change, list(ChangeKind))
