"""Which blob of which registry holds which layer: docker's own notes, which dockerd reads and writes too.

    image/<driver>/distribution/v2metadata-by-diffid/sha256/<DiffID>    [{"Digest", "SourceRepository", "HMAC"}],
                                                                        newest last
    image/<driver>/distribution/diffid-by-digest/<algorithm>/<digest>   the DiffID

Our entries also have "MediaType" and "Size". dockerd reads over them, and drops them when it rewrites the file. Each
file is replaced in one step; who writes holds the image database's lock (ImageDB.exclusive).
Source: moby, distribution/metadata/v2_metadata_service.go
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from typing import Any, NamedTuple

from layerstore._core import _files
from layerstore.disk import textfile
from layerstore.errors import InvalidDigestError, InvalidMetadataError
from layerstore.ids import DiffID, Digest
from layerstore.layerdb.descriptor import parse_document
from layerstore.values import Durability

log = logging.getLogger("layerstore")

# As many as dockerd keeps.
ENTRIES_LIMIT = 50
_SIZE_LIMIT = 1 << 63


class Entry(NamedTuple):
    """A blob that holds a layer.

    digest       of its bytes
    repository   where it was last seen, with its registry: "docker.io/library/busybox"
    media_type   "" in an entry of dockerd
    size         its bytes; None in an entry of dockerd
    """

    digest: Digest
    repository: str
    media_type: str
    size: int | None


def _entry(found: Any) -> Entry | None:
    """Read one; None: it is malformed."""
    if not isinstance(found, dict):
        return None
    repository, media_type, size = found.get("SourceRepository", ""), found.get("MediaType", ""), found.get("Size")
    if not isinstance(repository, str) or not isinstance(media_type, str):
        return None
    if size is not None and (type(size) is not int or not 0 <= size < _SIZE_LIMIT):
        return None
    try:
        return Entry(Digest(found.get("Digest", "")), repository, media_type, size)
    except (InvalidDigestError, TypeError):
        return None


class Distribution:
    """The notes of one root. Nothing is made before it is written."""

    def __init__(self, root: str, durability: Durability) -> None:
        """root   image/<driver> below the data root"""
        self._durability: Durability = durability
        self._root = root
        self._before: dict[str, bytes | None] = {}       # of what was written here
        self._entries = os.path.join(root, "distribution", "v2metadata-by-diffid")
        self._diff_ids = os.path.join(root, "distribution", "diffid-by-digest")

    def known(self, diff_id: DiffID) -> list[Entry]:
        """Return the blobs known to hold a layer, newest first. Malformed entries are passed over. Raises OSError."""
        return [entry for entry in map(_entry, reversed(self._read(diff_id))) if entry]

    def diff_id_of(self, digest: Digest) -> DiffID | None:
        """Return the DiffID of what a blob holds; None: that is unknown, or malformed. Raises OSError."""
        try:
            return DiffID(textfile.read_text(_path(self._diff_ids, digest)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (InvalidDigestError, InvalidMetadataError):
            log.warning("Passing over the malformed note of the blob %s", digest, extra={"digest": digest})
            return None

    def note(self, diff_id: DiffID, digest: Digest, repository: str, media_type: str, size: int) -> None:
        """Note that a blob holds a layer; under the lock. An older entry of the same blob and repository goes."""
        digest = Digest(digest)
        before = self._read(diff_id)
        new = {"Digest": digest, "SourceRepository": repository, "HMAC": "", "MediaType": media_type, "Size": size}
        if before[-1:] != [new]:
            kept = [entry for entry in before if _entry(entry) and not _same(entry, new)]
            data = json.dumps([*kept, new][-ENTRIES_LIMIT:], separators=(",", ":")).encode()
            self._write(_path(self._entries, diff_id), data)
        if self.diff_id_of(digest) != diff_id:
            self._write(_path(self._diff_ids, digest), diff_id.encode())

    def take_back(self) -> None:
        """Let the notes be what they were when this object was made; under the lock. Can be begun again."""
        for path, data in self._before.items():
            if data is not None:
                self._replace(path, data)
                continue
            with contextlib.suppress(FileNotFoundError):
                _files.unlink(path)

    def sweep(self) -> None:
        """Remove what a dead process left half written; under the lock."""
        for directory in (self._entries, self._diff_ids):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for name in os.listdir(directory):
                    for path in textfile.left_beside(os.path.join(directory, name)):
                        with contextlib.suppress(OSError):
                            _files.unlink(path)

    def _read(self, diff_id: DiffID) -> list[Any]:
        try:
            found = parse_document(textfile.read_small(_path(self._entries, diff_id)), "the note")
        except (FileNotFoundError, NotADirectoryError):
            return []
        except InvalidMetadataError:
            found = None
        if not isinstance(found, list):
            log.warning("Passing over the malformed note of the layer %s", diff_id, extra={"diff_id": diff_id})
            return []
        return found

    def _write(self, path: str, data: bytes) -> None:
        directory = os.path.dirname(path)
        made = not os.path.isdir(directory)
        textfile.make_directories(directory, 0o700)
        if path not in self._before:
            try:
                self._before[path] = textfile.read_small(path)
            except (FileNotFoundError, InvalidMetadataError):
                self._before[path] = None
        self._replace(path, data)
        if self._durability == "full":
            textfile.sync_directory(directory)
            while made and directory != self._root:
                directory = os.path.dirname(directory)
                textfile.sync_directory(directory)

    def _replace(self, path: str, data: bytes) -> None:
        textfile.replace_small(path, data, 0o600, sync=self._durability != "none")


def _path(directory: str, digest: Digest) -> str:
    return os.path.join(directory, digest.algorithm, digest.encoded)


def _same(entry: Any, new: dict[str, Any]) -> bool:
    """Return True if one is in the place of the other: dockerd's own, of some credentials, stay."""
    return all(entry.get(key) == new[key] for key in ("Digest", "SourceRepository")) and not entry.get("HMAC")
