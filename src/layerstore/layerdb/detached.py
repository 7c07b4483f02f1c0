"""Boxes that were unmounted while a process was inside: mounts/<name>/detached names the device still written to.

The driver knows boxes by its own ids; here they have names. The mark is no more than a hint at the users' device: the
kernel says whether a box is still in use.
"""

from __future__ import annotations

import contextlib
import os

from layerstore._core import _files
from layerstore.disk.textfile import read_small, replace_small, trimmed
from layerstore.errors import LayerStoreError
from layerstore.layerdb.store import FileMetadataStore

_FILE = "detached"


class Detached:
    """The marks of one layerdb."""

    def __init__(self, metadata: FileMetadataStore) -> None:
        self._metadata = metadata
        self._names: dict[str, str] = {}

    def know(self, id: str, name: str) -> None:
        """Remember which box a driver id belongs to."""
        self._names[id] = name

    def name_of(self, id: str) -> str:
        """Name the box of a driver id; "" for what is none, or no longer."""
        name = self._names.get(id, "")
        if not (name and self._is(name, id)):
            name = next((name for name in self._metadata.list_mounts() if self._is(name, id)), "")
        self._names[id] = name
        return name

    def shown_name(self, id: str) -> str:
        """Name the box of a driver id for a message, also one that was just released."""
        return self._names.get(id, "") or self.name_of(id) or id

    def _is(self, name: str, id: str) -> bool:
        with contextlib.suppress(OSError, LayerStoreError):
            return self._metadata.get_mount_id(name) == id
        return False

    def _path(self, id: str) -> str | None:
        name = self.name_of(id)
        return os.path.join(self._metadata.mount_directory(name), _FILE) if name else None

    def device(self, id: str) -> int | None:
        """Say which device a box has that was detached while in use; None: it was not."""
        path = self._path(id)
        if path is None:
            return None
        with contextlib.suppress(OSError, LayerStoreError, ValueError):
            major, minor = trimmed(read_small(path)).split(":")
            return os.makedev(int(major), int(minor))
        return None

    def mark(self, id: str, device: int) -> None:
        """Note that a process is still inside a box. Raises OSError."""
        path = self._path(id)
        if path is not None:
            replace_small(path, f"{os.major(device)}:{os.minor(device)}".encode(), 0o644, sync=True)

    def clear(self, id: str) -> None:
        """Note that no process is inside."""
        path = self._path(id)
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                _files.unlink(path)
