"""What nobody owns: found, weighed and removed.

Enters: the layerdb, the driver, and a function that names every driver id somebody owns. It is asked twice, the second
time while what was found is claimed, so that nothing is taken from a process that is just making it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable

from layerstore.disk.textfile import tree_bytes
from layerstore.drivers import Driver
from layerstore.errors import LayerStoreError
from layerstore.layerdb.store import FileMetadataStore
from layerstore.values import Orphan

log = logging.getLogger("layerstore")

Owned = Callable[[], set[str]]


def find(
    root: str, metadata: FileMetadataStore, driver: Driver, owned: Owned, released: Iterable[str]
) -> list[Orphan]:
    """List what nobody owns below root, largest first.

    released   directories of layers that were released and that nothing needs
    Raises  LayerStoreError, OSError   somebody owns something, and what it is cannot be read
    """
    found = []
    for name in driver.orphans(owned):
        path = os.path.join(root, driver.name, name)
        found.append(Orphan("link" if os.path.islink(path) else "directory", path, driver.usage(name)))
    for name in metadata.removing():
        path = os.path.join(metadata.root, "sha256", name)
        found.append(Orphan("removal", path, tree_bytes(path)))
    found += [Orphan("layer", path, tree_bytes(path)) for path in released]
    found += [Orphan("transaction", path, tree_bytes(path)) for path in metadata.abandoned_transactions(remove=False)]
    relative = [orphan._replace(path=os.path.relpath(orphan.path, root)) for orphan in found]
    return sorted(relative, key=lambda orphan: (-orphan.size, orphan.path))


def finish(metadata: FileMetadataStore, driver: Driver, owned: Owned) -> None:
    """Finish deletions that were interrupted, forget abandoned transactions, remove what nobody owns.

    What cannot be removed is logged and left. Raises OSError where the layerdb cannot be listed.
    """
    for removing in metadata.get_orphans():
        try:
            if removing.cache_id not in owned():
                driver.remove(removing.cache_id)
            metadata.remove_orphan(removing.chain_id, removing.cache_id)
        except (OSError, LayerStoreError) as err:
            about = {"chain_id": removing.chain_id, "error": err}
            log.error("Failed to remove orphaned layer %s: %s", removing.chain_id, err, extra=about)
    metadata.remove_nameless_orphans()
    metadata.remove_nameless_mounts()
    metadata.abandoned_transactions(remove=True)
    try:
        driver.reclaim(owned)
    except (OSError, LayerStoreError) as err:
        # Better to leave too much than to take what an unreadable file may name.
        log.error("Not everything was reclaimed: %s", err, extra={"error": err})
