"""Leftovers: what deletions and calls that were interrupted left in the layerdb.

    sha256/<hex>-<random>-removing   a layer that is invisible, and whose files may still be there
    tmp/write-set-<number>           a write set; of a process that works on it if it is locked
    mounts/<name> without mount-id   a writable layer that was stopped before its first file; or all its files are
                                     empty: the power was cut
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable

from layerstore._core import _files
from layerstore.disk.locks import claim_directory
from layerstore.disk.textfile import is_directory, read_text, remove_directory
from layerstore.errors import InvalidDigestError, LayerStoreError, readable
from layerstore.ids import ChainID
from layerstore.layerdb.store import REMOVING, FileMetadataStore

log = logging.getLogger("layerstore")


class Leftovers:
    """The leftovers of one layerdb."""

    def __init__(self, metadata: FileMetadataStore) -> None:
        self._metadata = metadata

    def removals(self) -> list[str]:
        """Return the paths of interrupted deletions of layers."""
        directory = os.path.join(self._metadata.root, "sha256")
        return [os.path.join(directory, name) for name in self._metadata.names("sha256") if name.endswith(REMOVING)]

    def finish_removals(self, delete: Callable[[str], None]) -> None:
        """Finish interrupted deletions. What cannot be removed is logged and left.

        delete   deletes a driver directory, by its id; a deletion that no longer names one is past that step
        Raises   OSError   the layerdb cannot be listed
        """
        for path in self.removals():
            name = os.path.basename(path)
            try:
                chain_id = ChainID("sha256:" + name.partition("-")[0])
            except InvalidDigestError:
                log.debug("Ignoring invalid digest sha256:%s", readable(name), extra={"directory": name})
                continue
            try:
                cache_id = read_text(os.path.join(path, "cache-id"))
            except FileNotFoundError:
                cache_id = ""
            except (OSError, LayerStoreError) as err:
                text = "Cannot read the cache-id of %s: %s"
                log.error(text, readable(name), err, extra={"directory": name, "error": err})
                continue
            try:
                if cache_id:
                    delete(cache_id)
                remove_directory(path)
            except (OSError, LayerStoreError) as err:
                about = {"chain_id": chain_id, "error": err}
                log.error("Failed to remove orphaned layer %s: %s", chain_id, err, extra=about)

    def remove_nameless_mounts(self) -> None:
        """Remove the records of writable layers that say nothing: no mount-id, or files that are all empty.

        With a mount-id that alone is empty the others still say something, and such a record stays.
        """
        m = self._metadata
        if not is_directory(os.path.join(m.root, "mounts")):
            return                            # a link leads to what is not ours
        with m.exclusive():
            for name in m.names("mounts"):
                try:
                    nameless = _says_nothing(m.mount_directory(name))
                except OSError as err:
                    about = {"mount": name, "error": err}
                    log.error("Cannot read the mount-id of %s: %s", readable(name), err, extra=about)
                    continue
                if not nameless:
                    continue
                try:
                    m.remove_mount(name)
                except OSError as err:
                    text = "Cannot remove the record of mount %s: %s"
                    log.error(text, readable(name), err, extra={"mount": name, "error": err})

    def transactions(self, *, remove: bool) -> list[str]:
        """Return the paths of write sets that no process works on; remove: and remove them."""
        found = []
        for name in self._metadata.names("tmp"):
            path = os.path.join(self._metadata.root, "tmp", name)
            if not re.fullmatch(r"write-set-[0-9]+", name):
                continue
            claim = claim_directory(path, wait=False)
            if claim is None:
                continue
            try:
                with claim:
                    if remove:
                        remove_directory(path)
                found.append(path)
            except OSError as err:
                about = {"directory": path, "error": err}
                log.error("Cannot remove abandoned %s: %s", readable(path), err, extra=about)
        return found


def _says_nothing(directory: str) -> bool:
    """Return whether the record of a writable layer has no mount-id, or only empty files. Raises OSError."""
    try:
        _files.mode_of(os.path.join(directory, "mount-id"))
    except FileNotFoundError:
        return True
    with os.scandir(directory) as entries:
        facts = [entry.stat(follow_symlinks=False) for entry in entries]
    return all(stat.S_ISREG(fact.st_mode) and fact.st_size == 0 for fact in facts)
