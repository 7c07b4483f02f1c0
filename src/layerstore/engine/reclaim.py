"""Reclaim: what is unowned: found, weighed and removed.

Enters: the layerdb, the driver, and the records, which name every driver id that is owned. They are asked twice, the
second time while what was found is claimed, so that nothing is taken from a process that is just making it.
"""

from __future__ import annotations

import contextlib
import logging
import os

from layerstore._core import _files
from layerstore.disk.holds import STORE
from layerstore.disk.textfile import left_beside, tree_bytes
from layerstore.engine.ground import Ground
from layerstore.engine.references import References
from layerstore.errors import LayerStoreError, StoreInUseError
from layerstore.layerdb.leftovers import Leftovers
from layerstore.values import Orphan

log = logging.getLogger("layerstore")


def _kind(path: str) -> str:
    """Return the kind of an orphan of the driver."""
    if os.path.islink(path):
        return "link"
    if os.path.ismount(path):
        return "mount"
    return "file" if os.path.isfile(path) else "directory"


class Reclaim:
    """Finds and removes what is unowned below one root."""

    def __init__(self, ground: Ground, references: References) -> None:
        self._ground, self._root, self._metadata, self._driver = ground, ground.root, ground.metadata, ground.driver
        self._records, self._references, self._holds = ground.records, references, ground.holds
        self._leftovers = Leftovers(ground.metadata)

    def find(self) -> list[Orphan]:
        """List what is unowned, largest first. Raises as Store.orphans() does."""
        root, m, host = self._root, self._metadata, self._driver.host
        self._ground.check_open()
        self._ground.check_no_dockerd()
        released = [m.layer_directory(chain_id) for chain_id in self._references.unneeded()]
        found = []
        for name in host.orphans(self._records.owned):
            path = os.path.join(root, host.name, name)
            found.append(Orphan(_kind(path), path, host.usage(name)))
        left = self._leftovers
        for kind, paths in (
            ("removal", left.removals()), ("layer", released), ("transaction", left.transactions(remove=False)),
        ):  # fmt: skip
            found += [Orphan(kind, path, tree_bytes(path)) for path in paths]
        relative = [orphan._replace(path=os.path.relpath(orphan.path, root)) for orphan in found]
        return sorted(relative, key=lambda orphan: (-orphan.size, orphan.path))

    def remove(self, *, dry_run: bool) -> list[Orphan]:
        """Remove what find() lists, as Store.reclaim() does."""
        self._ground.check_open()
        self._ground.check_no_dockerd()
        if self._holds.held_elsewhere(STORE):
            why = f"{StoreInUseError.text}: another store, of this or another process, has it open"
            raise StoreInUseError(why, path=self._root)
        found = self.find()
        if dry_run:
            return found
        self._ground.check_writable()
        swept = self.finish()

        def is_gone(orphan: Orphan) -> bool:
            """True if it was removed, and not only renamed."""
            if orphan.kind == "layer":
                return f"sha256:{os.path.basename(orphan.path)}" in swept
            path = os.path.join(self._root, orphan.path)
            return not (os.path.ismount(path) if orphan.kind == "mount" else os.path.lexists(path))

        return [orphan for orphan in found if is_gone(orphan)]

    def finish(self) -> list[str]:
        """Finish deletions and releases that were interrupted, forget abandoned transactions, remove what is unowned.

        What cannot be removed is logged and left. Returns the layers whose release was finished. Raises OSError if the
        layerdb cannot be listed.
        """
        owned = self._records.owned

        def delete(cache_id: str) -> None:
            if cache_id not in owned():
                self._driver.layers.remove(cache_id)

        self._leftovers.finish_removals(delete)
        self._leftovers.remove_nameless_mounts()
        self._leftovers.transactions(remove=True)
        self._remove_left_beside()
        try:
            self._driver.host.reclaim(owned)
        except (OSError, LayerStoreError) as err:
            # Better to leave too much than to take what an unreadable file may name.
            log.error("Not everything was reclaimed: %s", err, extra={"error": err})
        return self._references.sweep_all()

    def _remove_left_beside(self) -> None:
        """Remove what a process that was killed wrote beside files of writable layers and snapshots."""
        m, w = self._metadata, self._driver.writables
        for kind in ("mounts", "snapshots"):
            for name in m.names(kind):
                directory = os.path.join(m.root, kind, name)
                if not left_beside(directory):
                    continue
                with contextlib.suppress(OSError, LayerStoreError):
                    id = m.get_mount_id(name) if kind == "mounts" else name
                    with w.hold(id), self._records.lock, m.exclusive():
                        for path in left_beside(directory):
                            _files.unlink(path)
