"""Tidying: what a process that was killed left in directories that are owned.

A file that was not renamed yet, beside `lower`; and what the kernel keeps in `work`, where a mount ended unseen: with
the mark of a mount that never synced, on which dockerd mounts nothing.
"""

from __future__ import annotations

import contextlib
import os

from layerstore._core import _files
from layerstore.disk.locks import claim_directory
from layerstore.disk.textfile import left_beside
from layerstore.drivers.overlay.directories import is_there
from layerstore.drivers.overlay.ground import Ground
from layerstore.errors import LayerStoreError
from layerstore.ids import is_driver_id


def tidy(ground: Ground) -> None:
    """Remove what was left. What another thread or store works on, or cannot be removed, stays."""
    at = ground.at
    with os.scandir(at.home) as entries:
        ids = [entry.name for entry in entries if is_driver_id(entry.name)]
    for id in ids:
        if not (left_beside(at.path(id)) or is_there(at.path(id, "work", "work"))):
            continue
        with contextlib.suppress(OSError, LayerStoreError), at.locks.hold(id):
            claim = claim_directory(at.path(id), wait=False)
            if claim:
                with claim:
                    _tidy(ground, id)


def _tidy(ground: Ground, id: str) -> None:
    for path in left_beside(ground.at.path(id)):
        _files.unlink(path)
    if is_there(ground.at.path(id, "work", "work")) and ground.mounting.is_over(id):
        ground.mounting.end_work(id)
