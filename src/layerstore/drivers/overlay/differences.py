"""What a layer changes of any of its ancestors, as moby tells it: from mounts of both.

Source: moby, daemon/graphdriver/overlay2 (Diff)
"""

from __future__ import annotations

from layerstore._core import _changes, _tarstream
from layerstore.drivers.overlay.directories import opened
from layerstore.drivers.overlay.ground import Ground
from layerstore.drivers.overlay.trees import looked_over
from layerstore.streams.tarstream import TarStream


def tar_from(ground: Ground, id: str, ancestor: str) -> TarStream:
    """Make a fresh tar of the difference, after a look at all that will go into it; mounted until it is closed.

    ancestor   an id that id stands on, not right on it; "": nothing
    Raises     BreakoutError, ReadOnlyStoreError, OSError
    """
    mounting = ground.mounting
    path = mounting.get(id, read_only=True)
    try:
        with opened(path) as root:
            return looked_over(_merged(ground, root, ancestor), lambda: mounting.done(id))
    except BaseException:
        mounting.done(id)
        raise


def _merged(ground: Ground, root: int, ancestor: str) -> _tarstream.Source:
    if not ancestor:
        return _tarstream.export_tree(root)
    with ground.mounting.mounted(ancestor, read_only=True) as below:
        return _tarstream.export_changes(root, _changes.compare_trees(root, below, attributes=True))
