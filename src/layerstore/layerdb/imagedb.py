"""The image database on disk, as dockerd keeps it: configs, what is noted beside them, and the names of images.

    image/<driver>/imagedb/content/sha256/<hex>             an image's config; the name is its SHA-256
    image/<driver>/imagedb/metadata/sha256/<hex>/           [parent] [lastUpdated] [manifest]
    image/<driver>/.layerstore-making                       [ids that are being made, and have no name yet]
    image/<driver>/repositories.json                        {"Repositories": {name: {"name:tag" or "name@digest": id}}}

Each file is replaced in one step. Who changes something holds a lock on image/<driver> meanwhile, so that two processes
lose nothing of each other's.
Source: moby, image/fs.go and reference/store.go
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from layerstore._core import _files
from layerstore.disk import textfile
from layerstore.disk.locks import LOCK_TIMEOUT, directory_lock
from layerstore.errors import InvalidDigestError, InvalidMetadataError, LayerStoreError, readable
from layerstore.ids import ChainID, DiffID, Digest, chain_on, sha256_of
from layerstore.layerdb.descriptor import parse_document as parse_document
from layerstore.values import Durability

log = logging.getLogger("layerstore")

# No larger document is read, of disk or of an archive.
DOCUMENT_LIMIT = 8 << 20
_REPOSITORIES_LIMIT = 256 << 20
# The largest manifest that is taken, and kept.
MANIFEST_LIMIT = 4 << 20

Repositories = dict[str, dict[str, str]]


def diff_ids_of(config: Any) -> list[DiffID]:
    """Return the DiffIDs an image's config names, base first. Raises InvalidMetadataError."""
    rootfs = config.get("rootfs") if isinstance(config, dict) else None
    if not isinstance(rootfs, dict):
        raise InvalidMetadataError("invalid image JSON, no RootFS key")
    found = rootfs.get("diff_ids") or []
    try:
        return [DiffID(text) for text in found]
    except (InvalidDigestError, TypeError) as err:
        raise InvalidMetadataError(f"invalid image JSON, its diff_ids are not digests: {err}") from None


def chains_of(diff_ids: list[DiffID]) -> tuple[ChainID, ...]:
    """Fold DiffIDs into the ChainIDs of all layers of an image, base first."""
    chains: list[ChainID] = []
    for diff_id in diff_ids:
        chains.append(chain_on(chains[-1] if chains else "", diff_id))
    return tuple(chains)


def _names_images(tags: Any) -> bool:
    return isinstance(tags, dict) and all(isinstance(id, str) for id in tags.values())


def now() -> str:
    """Return the time as Go writes it: RFC 3339 with nanoseconds, UTC."""
    ns = time.time_ns()
    head = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ns // 10**9))
    tail = f".{ns % 10**9:09}".rstrip("0").rstrip(".")
    return f"{head}{tail}Z"


class ImageDB:
    """The images of one root. Nothing is read before it is asked for, and nothing made before it is written."""

    def __init__(self, root: str, durability: Durability, lock_timeout: float = LOCK_TIMEOUT) -> None:
        """root   image/<driver> below the data root.  lock_timeout: seconds that exclusive() may wait; 0: for ever"""
        self.root = root
        self._exclusive = directory_lock(root, lock_timeout)
        self._durability: Durability = durability
        self._content = os.path.join(root, "imagedb", "content", "sha256")
        self._metadata = os.path.join(root, "imagedb", "metadata", "sha256")
        self._repositories = os.path.join(root, "repositories.json")
        self._making = os.path.join(root, ".layerstore-making")
        self._chains: dict[str, frozenset[str] | None] = {}      # of contents; None: what they are cannot be read

    def exclusive(self, check: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
        """Keep other threads and processes from the database.

        check   called once the lock is held; what it raises ends the `with` block before it begins
        Entering it raises StoreInUseError after lock_timeout seconds.
        """

        def begin() -> None:
            check()
            if os.path.lexists(self._making):
                for id in self._in_making():
                    self.remove(id)
                self.end_making()

        return self._exclusive.hold(begin)

    # ---- images that have no name yet ----

    def begin_making(self, ids: Iterable[str]) -> None:
        """Note images that will get names, before their configs are written; under the lock. Until end_making() no list
        has them, and where this process dies before, they go.
        """
        if wanted := list(ids):
            self._write(self._making, json.dumps(wanted).encode())

    def end_making(self) -> None:
        """Note that they have their names now, or are gone; under the lock."""
        with contextlib.suppress(FileNotFoundError):
            _files.unlink(self._making)

    def take_back(self, ids: Iterable[str]) -> None:
        """Remove those that got no name, under the lock. Can be begun again."""
        named = self._named()
        for id in ids:
            if id not in named:
                with contextlib.suppress(OSError):
                    self.remove(id)
        self.end_making()

    def _named(self) -> set[str]:
        return {id for tags in self.repositories().values() for id in tags.values()}

    def _in_making(self) -> set[str]:
        """Return images without a name that a process is making, or was making when it died."""
        try:
            noted = json.loads(textfile.read_small(self._making, _REPOSITORIES_LIMIT))
            ids = {str(Digest(id)) for id in noted}
        except (FileNotFoundError, ValueError, TypeError, LayerStoreError):
            return set()                      # none is noted, or a power cut left it so, before any config was written
        return ids - self._named()

    def _write(self, path: str, data: bytes) -> None:
        textfile.make_directories(os.path.dirname(path), 0o700)
        textfile.replace_small(path, data, 0o600, sync=self._durability != "none")
        if self._durability == "full":
            textfile.sync_directory(os.path.dirname(path))

    # ---- contents ----

    def ids(self) -> list[Digest]:
        """Name all images, sorted. What else lies there is passed over, and what is still being made."""
        making = self._in_making()
        return [id for id in self._all_ids() if id not in making]

    def _all_ids(self) -> list[Digest]:
        try:
            names = sorted(os.listdir(self._content))
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            with contextlib.suppress(InvalidDigestError):
                found.append(Digest(f"sha256:{name}"))
        return found

    def has(self, id: str) -> bool:
        """Return True if there is an image with this id."""
        return os.path.lexists(self._path(id))

    def _path(self, id: str) -> str:
        return os.path.join(self._content, Digest(id).encoded)

    def content(self, id: str) -> bytes:
        """Read a config. Raises FileNotFoundError, OSError, InvalidMetadataError (it is not what its name says)."""
        data = textfile.read_small(self._path(id), DOCUMENT_LIMIT)
        if sha256_of(data) != Digest(id):
            raise InvalidMetadataError(f"failed to verify: {id}")
        return data

    def diff_ids(self, id: str) -> list[DiffID]:
        """Return the DiffIDs in a config, base first. Raises as content(), or InvalidMetadataError."""
        return diff_ids_of(parse_document(self.content(id), f"the image {id}"))

    def add(self, data: bytes) -> Digest:
        """Write a config; its id."""
        id = sha256_of(data)
        made = not os.path.isdir(self._content)
        self._write(self._path(id), data)
        if made and self._durability == "full":
            for directory in (os.path.dirname(self._content), os.path.join(self.root, "imagedb"), self.root):
                textfile.sync_directory(directory)
        return id

    def remove(self, id: str) -> None:
        """Remove an image with what is noted beside it, not its names; fine if it is gone."""
        with contextlib.suppress(FileNotFoundError):
            try:
                _files.unlink(self._path(id))
            except IsADirectoryError:                     # damage, no longer an image
                textfile.remove_directory(self._path(id))
            if self._durability == "full":
                textfile.sync_directory(self._content)
        textfile.remove_directory(os.path.join(self._metadata, Digest(id).encoded))

    def sweep(self) -> None:
        """Remove what a dead process left half written; the lock is held."""
        noted: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            noted = [os.path.join(self._metadata, name) for name in os.listdir(self._metadata)]
        for directory in (self._content, self.root, *noted):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for name in os.listdir(directory):
                    if name.startswith(".tmp-"):
                        with contextlib.suppress(OSError):
                            _files.unlink(os.path.join(directory, name))

    def written(self, id: str) -> float:
        """Say when a config was written here, in seconds since 1970; 0 if that is unknown."""
        return textfile.modified(self._path(id))

    # ---- what is noted beside ----

    def note(self, id: str, name: str, value: str) -> None:
        """Write "parent" or "lastUpdated"."""
        self._write(os.path.join(self._metadata, Digest(id).encoded, name), value.encode())

    def noted(self, id: str, name: str) -> str:
        """Read what note() wrote; "" where there is nothing."""
        try:
            return textfile.read_text(os.path.join(self._metadata, Digest(id).encoded, name))
        except FileNotFoundError:
            return ""

    # ---- the manifest that an image came by ----

    def keep_manifest(self, id: str, data: bytes | None) -> None:
        """Write the manifest of an image beside its config, so that a push can send it again; None: remove it."""
        path = self._manifest(id)
        if data is not None:
            self._write(path, data)
            return
        with contextlib.suppress(FileNotFoundError):
            _files.unlink(path)

    def kept_manifest(self, id: str) -> bytes | None:
        """Read what keep_manifest() wrote; None: there is none, or a power cut left something else."""
        try:
            return textfile.read_small(self._manifest(id), MANIFEST_LIMIT)
        except (FileNotFoundError, NotADirectoryError, InvalidMetadataError):
            return None

    def find_manifest(self, digest: Digest, size: int) -> bytes | None:
        """Return the kept manifest of any image that has this digest; None: there is none."""
        for id in self._all_ids():
            with contextlib.suppress(OSError):
                if os.stat(self._manifest(id), follow_symlinks=False).st_size != size:
                    continue
                data = self.kept_manifest(id)
                if data is not None and hashlib.new(digest.algorithm, data).hexdigest() == digest.encoded:
                    return data
        return None

    def _manifest(self, id: str) -> str:
        return os.path.join(self._metadata, Digest(id).encoded, "manifest")

    # ---- who stands on a layer ----

    def standing_on(self, chain_id: str) -> str:
        """Return the id of an image that needs this layer, or cannot be read and may need it; "" for none."""
        ids = self._all_ids()
        for gone in self._chains.keys() - set(ids):
            self._chains.pop(gone, None)
        for id in ids:
            if self._chains.get(id) is None:
                self._chains[id] = self._read_chains(id)
        for name, chains in self._chains.items():
            if chains is None or chain_id in chains:
                return name
        return ""

    def why_standing(self, id: str) -> str:
        """Say in words why the image that standing_on() gave keeps a layer."""
        if self._chains.get(id) is None:
            return f"the image {id} cannot be read, and may need it"
        called = [id]
        with contextlib.suppress(OSError, LayerStoreError):
            called += (name for tags in self.repositories().values() for name, named in tags.items() if named == id)
        return f"the image {called[-1]} needs it"

    def _read_chains(self, id: Digest) -> frozenset[str] | None:
        try:
            return frozenset(chains_of(self.diff_ids(id)))
        except FileNotFoundError:
            return frozenset()
        except (OSError, LayerStoreError) as err:
            text = "Nothing is deleted, as the image %s cannot be read, and may need it: %s"
            log.warning(text, id, err, extra={"image": id, "error": err})
            return None

    # ---- names ----

    def repositories(self) -> Repositories:
        """Read which names there are: {name: {"name:tag" or "name@digest": id}}.

        Raises  OSError, InvalidMetadataError   the file is not what it must be
        """
        try:
            data = textfile.read_small(self._repositories, _REPOSITORIES_LIMIT)
        except FileNotFoundError:
            return {}
        found = parse_document(data, readable(self._repositories))
        names = (found.get("Repositories") or {}) if isinstance(found, dict) else None
        if not isinstance(names, dict) or not all(_names_images(tags) for tags in names.values()):
            raise InvalidMetadataError(f"{readable(self._repositories)} does not name images")
        return {name: dict(tags) for name, tags in names.items()}

    def write_repositories(self, names: Repositories) -> None:
        """Write what repositories() reads."""
        kept = {name: tags for name, tags in names.items() if tags}
        self._write(
            self._repositories, json.dumps({"Repositories": kept}, sort_keys=True, separators=(",", ":")).encode()
        )
