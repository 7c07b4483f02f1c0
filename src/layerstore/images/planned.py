"""What is planned: the images to load, their layers, and the documents that say so."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from layerstore.documents.configs import Config
from layerstore.documents.gojson import VALUES_LIMIT, count_values, top_keys
from layerstore.documents.manifests import Blob, checked
from layerstore.errors import ImageError, InvalidDigestError, readable
from layerstore.ids import DiffID, Digest
from layerstore.images.shelf import DOCUMENTS_LIMIT, Shelf, needed
from layerstore.values import Descriptor

_BLOB = re.compile(r"blobs/(sha256|sha512)/([a-f0-9]+)")
# Larger documents are looked at before they are kept: attestations are large, and no image needs them.
_SMALL = 64 << 10
# Values in all documents together: the images that are loaded keep their configs.
_VALUES_LIMIT = 5 * VALUES_LIMIT // 2
_KEYS = {"rootfs", "config", "layers", "manifests", "fslayers", "container_config"}
# What documents are read from, in words.
ARCHIVE = "the archive"
_BY_NAME = ("manifest.json", "index.json", "repositories")


class PlannedLayer(NamedTuple):
    """A layer in an archive.

    name        its path in the archive; "" if it was left out, as the other side has it
    diff_id     what its tar must be; "" where only the tar says
    digest      what the file itself must be, or None
    size        bytes of the file, or -1
    descriptor  what is stored beside the layer, or None
    """

    name: str
    diff_id: DiffID | str
    digest: Digest | None = None
    size: int = -1
    descriptor: Descriptor | None = None


class Planned(NamedTuple):
    """An image to be loaded.

    config    None: made of v1, the documents of its layers, once the layers are known
    manifest  the digest of its manifest, if it has one
    """

    config: Config | None
    layers: list[PlannedLayer]
    references: list[str]
    parent: str = ""
    v1: tuple[dict[str, Any], ...] = ()
    manifest: Digest | None = None


def digest_in(name: str) -> Digest | None:
    """Return the digest in a blob's path, or None."""
    found = _BLOB.fullmatch(name)
    if not found:
        return None
    try:
        return Digest(":".join(found.groups()))
    except InvalidDigestError:
        return None


def algorithm_in(name: str) -> str:
    """Return the algorithm of the digest in a blob's path; of any other file "sha256"."""
    found = digest_in(name)
    return found.algorithm if found else "sha256"


def check_useful(name: str, data: bytes, where: str = ARCHIVE) -> None:
    """Raise ImageError where a large document is none that an image has."""
    if len(data) <= _SMALL or name in _BY_NAME:
        return
    what = f"{readable(name)} in {where}"
    if not top_keys(data, what) & _KEYS:
        raise ImageError(f"{what} is not a document of an image")


class Budget:
    """The limits for all documents of one source together."""

    def __init__(self, where: str = ARCHIVE) -> None:
        """where   what has the documents, in words"""
        self._where, self._left, self._values = where, DOCUMENTS_LIMIT, 0
        self._seen: set[str] = set()

    def take(self, name: str, data: bytes) -> None:
        """Count one, once. Raises ImageError."""
        if name in self._seen:
            return
        self._seen.add(name)
        check_useful(name, data, self._where)
        self._left -= len(data)
        self._values += count_values(data)
        if self._left < 0:
            raise ImageError(f"{self._where} has documents of more than {DOCUMENTS_LIMIT} bytes")
        if self._values > _VALUES_LIMIT:
            raise ImageError(f"{self._where} has documents of more than {_VALUES_LIMIT} values")


class Documents:
    """The documents of a shelf that an image needs, within the limits for all of them together."""

    def __init__(self, shelf: Shelf) -> None:
        """shelf   asked for what is not known yet"""
        self._shelf, self._budget = shelf, Budget()
        self.names, self.has = shelf.names, shelf.has

    def document(self, name: str) -> bytes | None:
        """Read one, as the shelf does."""
        found = self._shelf.document(name)
        if found is not None:
            self._budget.take(name, found)
        return found

    def read(self, name: str, blob: Blob) -> bytes:
        """Read one by its descriptor. Raises MissingError, ImageError: its bytes are others."""
        return checked(blob, needed(self, name))
