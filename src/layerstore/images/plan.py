"""What an archive holds: from its documents to the images that are to be loaded.

Three kinds are told apart by what is there: manifest.json (docker save since 1.10, also beside an OCI layout since 25),
index.json (an OCI layout), repositories or <id>/layer.tar alone (docker save before 1.10).
Source: moby, image/tarexport/load.go; OCI image-layout.md and image-index.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from layerstore.errors import ImageError, InvalidDigestError, readable
from layerstore.ids import DiffID, Digest
from layerstore.images import references, v1
from layerstore.images.archive import plain_path
from layerstore.images.documents import (
    CONTAINERD_NAME,
    INDEXES,
    LAYERS_LIMIT,
    REF_NAME,
    Blob,
    Config,
    NoImageError,
    Platform,
    check_digest,
    field,
    host_platform,
    parse_config,
    parse_index,
    parse_json,
    parse_manifest,
    parse_object,
    parse_platform,
    read_blob,
    texts,
)
from layerstore.images.shelf import DOCUMENTS_LIMIT, MissingError, Shelf, needed

# Indexes within indexes, and manifests altogether.
_DEPTH_LIMIT = 8
_MANIFESTS_LIMIT = 4096
_BLOB = re.compile(r"blobs/(sha256|sha512)/([a-f0-9]+)")
_CONFIG_NAME = re.compile(r"([a-f0-9]{64})\.json")


class PlannedLayer(NamedTuple):
    """A layer to be had from an archive.

    name     its path in the archive
    diff_id  what its tar must be; "" where only the tar says
    digest   what the file itself must be, or None
    size     bytes of the file, or -1
    """

    name: str
    diff_id: DiffID | str
    digest: Digest | None = None
    size: int = -1


class Planned(NamedTuple):
    """An image to be loaded.

    config   None: made of v1, the documents of its layers, once the layers are known
    """

    config: Config | None
    layers: list[PlannedLayer]
    references: list[str]
    parent: str = ""
    v1: tuple[dict[str, Any], ...] = ()


def digest_in(name: str) -> Digest | None:
    """The digest that a blob's path in a layout says."""
    found = _BLOB.fullmatch(name)
    if not found:
        return None
    try:
        return Digest(":".join(found.groups()))
    except InvalidDigestError:
        return None


class _Counted:
    """A shelf whose documents are not more than memory has room for, all together."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf, self._left = shelf, DOCUMENTS_LIMIT
        self.names = shelf.names

    def document(self, name: str) -> bytes | None:
        found = self._shelf.document(name)
        self._left -= len(found or b"")
        if self._left < 0:
            raise ImageError(f"the archive has documents of more than {DOCUMENTS_LIMIT} bytes")
        return found


def plan(shelf: Shelf, platform: str | None, stem: str = "") -> list[Planned]:
    """Say which images to load, in the archive's order, each once.

    platform   as Images.load() takes it
    stem       what the archive itself is called, for names that are only tags

    Raises  MissingError   a document is not there (yet)
            ImageError     one is malformed, or none fits the platform
    """
    wanted = _wanted(platform)
    shelf = _Counted(shelf)
    has_index = shelf.document("index.json") is not None
    manifest = shelf.document("manifest.json")
    if manifest is not None and not (has_index and platform is not None):
        found = _of_manifest(shelf, manifest)
        if platform is not None and wanted is not None:
            found = [image for image in found if image.config and _serves(image.config.platform, wanted)]
            if not found:
                raise ImageError(f"no image in the archive is for {wanted}")
    elif has_index:
        found = Layout(shelf, wanted, stem, strict=platform is not None).images()
    else:
        found = _of_v1(shelf)
    return _merged(found)


def _wanted(platform: str | None) -> Platform | None:
    """The platform asked for; None: all of them."""
    if platform is None:
        return host_platform()
    return None if platform == "all" else parse_platform(platform)


def _merged(images: Iterable[Planned]) -> list[Planned]:
    """Each image once, with all its names."""
    found: dict[str, Planned] = {}
    for number, image in enumerate(images):
        key = image.config.id if image.config else f"v1 {number}"
        if key in found:
            image = found[key]._replace(references=[*found[key].references, *image.references])
        found[key] = image._replace(references=list(dict.fromkeys(image.references)))
    return list(found.values())


# ---- docker save since 1.10 ----


def _of_manifest(shelf: Shelf, data: bytes) -> list[Planned]:
    what = "manifest.json"
    found = parse_json(data, what)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ImageError(f"{what} is not a list of images")
    if len(found) > _MANIFESTS_LIMIT:
        raise ImageError(f"{what} has more than {_MANIFESTS_LIMIT} images")
    return [_of_entry(shelf, entry, what) for entry in found]


def _path(text: str, what: str) -> str:
    path = plain_path(text)
    if not path or path == "." or text.startswith("/"):
        raise ImageError(f"{what} names a path outside of the archive: {readable(text[:200])!r}")
    return path


def _of_entry(shelf: Shelf, entry: dict[str, Any], what: str) -> Planned:
    name = _path(field(entry, "Config", str, what), what)
    data = needed(shelf, name)
    hexes = _CONFIG_NAME.fullmatch(name)
    digest = Digest(f"sha256:{hexes[1]}") if hexes else digest_in(name)
    if digest:
        check_digest(digest, data)
    config = parse_config(data, f"the config {readable(name)}")
    paths = [_path(path, what) for path in texts(entry, "Layers", what)]
    if len(paths) != len(config.diff_ids):
        raise ImageError(f"invalid manifest, layers length mismatch: expected {len(config.diff_ids)}, got {len(paths)}")
    layers = [PlannedLayer(p, d, digest_in(p)) for p, d in zip(paths, config.diff_ids, strict=True)]
    names = [str(references.parse(tag).tagged()) for tag in texts(entry, "RepoTags", what)]
    parent = field(entry, "Parent", str, what, "")
    return Planned(config, layers, names, parent)


# ---- OCI layouts ----


def _serves(has: Platform, wanted: Platform) -> bool:
    return has[:2] == wanted[:2] and (not wanted.variant or has.variant in (wanted.variant, ""))


def _rank(has: Platform, wanted: Platform) -> tuple[int, int, str] | None:
    """How well a platform serves another; the largest is best, None: not at all."""
    if has[:2] != wanted[:2]:
        return None
    if has.variant == wanted.variant:
        return (3, 0, "")
    if wanted.architecture == "arm" and wanted.variant:
        # A newer processor runs what was made for an older one.
        return (2, 0, has.variant) if has.variant <= wanted.variant else None
    if not wanted.variant:
        return (1, 1 if has.variant in ("v1", "v8") else 0, "")
    return (0, 0, "") if not has.variant else None


class Layout:
    """An OCI layout's images, found from its index.json down."""

    def __init__(self, shelf: Shelf, wanted: Platform | None, stem: str, *, strict: bool) -> None:
        """wanted   None: all platforms.  strict: an image must be for it, also where no index offers a choice"""
        self._shelf, self._wanted, self._stem, self._strict = shelf, wanted, stem, strict
        self._manifests = 0

    def images(self) -> list[Planned]:
        """Give them all. Raises as plan() does."""
        layout = self._shelf.document("oci-layout")
        if layout is not None:
            version: str = field(parse_object(layout, "oci-layout"), "imageLayoutVersion", str, "oci-layout", "")
            if not version.startswith("1."):
                raise ImageError(f"an OCI layout of version {version[:20]!r}, not 1")
        index = parse_index(needed(self._shelf, "index.json"), "index.json")
        # Entries of one name are one image for several platforms.
        groups: dict[str, list[Blob]] = {}
        for blob in index:
            groups.setdefault(self._name_of(blob), []).append(blob)
        found: list[Planned] = []
        for name, blobs in groups.items():
            for blob in self._chosen(blobs, "index.json", top=True):
                found += [image._replace(references=[name] if name else []) for image in self._below(blob, 0)]
        if not found:
            raise ImageError("there is no image in the layout")
        return found

    def _name_of(self, blob: Blob) -> str:
        full, name = references.parse_or_none(blob.annotations.get(CONTAINERD_NAME)), blob.annotations.get(REF_NAME)
        if not isinstance(name, str):
            return str(full.tagged()) if full else ""
        if "/" in name or ":" in name:
            found = references.parse_or_none(name) or full
            return str(found.tagged()) if found else ""
        if full:
            # A tool that knows only the latter, as umoci does, leaves the former as it was on a new image.
            return str(references.parse_or_none(f"{full.name}:{name}") or full.tagged())
        return references.from_file_name(self._stem, name) or "" if self._stem else ""

    def _chosen(self, blobs: list[Blob], what: str, *, top: bool = False) -> list[Blob]:
        """Those of an index to go on with: all, or the one that serves best; at the top also those that do not say."""
        blobs = [blob for blob in blobs if not _is_attestation(blob)]
        if self._wanted is None:
            return blobs
        silent = [blob for blob in blobs if blob.platform is None]
        ranked = [(_rank(blob.platform, self._wanted), blob) for blob in blobs if blob.platform]
        best = max((rank for rank, _ in ranked if rank), default=None)
        chosen = [blob for rank, blob in ranked if rank == best and rank][:1]
        if top or not chosen:
            chosen = chosen + (silent if top else silent[:1])
        if not chosen and blobs:
            has = ", ".join(sorted({str(blob.platform) for blob in blobs}))
            raise ImageError(f"no image for {self._wanted} in {what}, which has {has[:500]}")
        return chosen

    def _below(self, blob: Blob, depth: int) -> list[Planned]:
        """The images an entry leads to."""
        if depth > _DEPTH_LIMIT:
            raise ImageError(f"indexes lie more than {_DEPTH_LIMIT} deep in each other, or in a circle")
        self._manifests += 1
        if self._manifests > _MANIFESTS_LIMIT:
            raise ImageError(f"the layout has more than {_MANIFESTS_LIMIT} manifests")
        data = read_blob(self._shelf, blob)
        what = f"the manifest {blob.digest}"
        found = parse_object(data, what)
        if blob.media_type in INDEXES or found.get("mediaType") in INDEXES or "manifests" in found:
            inner = self._chosen(parse_index(data, what), what)
            return [image for entry in inner for image in self._below(entry, depth + 1)]
        try:
            return [self._image(data, what)]
        except NoImageError:
            if self._wanted is None:
                return []
            raise

    def _image(self, data: bytes, what: str) -> Planned:
        manifest = parse_manifest(data, what)
        config = parse_config(read_blob(self._shelf, manifest.config), f"the config {manifest.config.digest}")
        if self._strict and self._wanted and not _serves(config.platform, self._wanted):
            raise ImageError(f"{what} is for {config.platform}, not for {self._wanted}")
        if len(manifest.layers) != len(config.diff_ids):
            raise ImageError(f"{what} has {len(manifest.layers)} layers, its config {len(config.diff_ids)}")
        layers = [
            PlannedLayer(blob.path, diff_id, blob.digest, blob.size)
            for blob, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
        ]
        return Planned(config, layers, [])


def _is_attestation(blob: Blob) -> bool:
    kind = blob.annotations.get("vnd.docker.reference.type")
    return kind == "attestation-manifest" or (blob.platform is not None and blob.platform.os == "unknown")


# ---- docker save before 1.10 ----


def _of_v1(shelf: Shelf) -> list[Planned]:
    data = shelf.document("repositories")
    names: dict[str, list[str]] = {}
    if data is not None:
        for name, tags in parse_object(data, "repositories").items():
            if not isinstance(tags, dict):
                raise ImageError("repositories does not name images")
            for tag in tags:
                id: str = field(tags, tag, str, "repositories")
                names.setdefault(id, []).append(str(references.parse(f"{name}:{tag}")))
    ids = [path.removesuffix("/layer.tar") for path in shelf.names() if re.fullmatch(r"[^/]+/layer\.tar", path)]
    if data is None and not ids:
        raise MissingError("this is no archive of images: it has no manifest.json, no index.json, no repositories")
    below = {id: v1.parent_of(_v1_document(shelf, id)) for id in ids}
    tops = names.keys() or (below.keys() - set(below.values()))
    found = []
    for top in [*names, *sorted(tops - names.keys())]:
        found.append(_v1_image(shelf, top, names.get(top, [])))
    return found


def _v1_document(shelf: Shelf, id: str) -> dict[str, Any]:
    if not re.fullmatch(r"[a-f0-9]{64}", id):
        raise ImageError(f"{readable(id[:80])!r} is no id of a layer")
    return parse_object(needed(shelf, f"{id}/json"), f"{id}/json")


def _v1_image(shelf: Shelf, top: str, names: list[str]) -> Planned:
    chain: list[tuple[str, dict[str, Any]]] = []
    at = top
    while at:
        if len(chain) >= LAYERS_LIMIT or any(at == id for id, _ in chain):
            raise ImageError(f"the layers of {top[:80]} stand on each other in a circle, or are too many")
        chain.append((at, _v1_document(shelf, at)))
        at = v1.parent_of(chain[-1][1])
    chain.reverse()
    layers = [PlannedLayer(f"{id}/layer.tar", "") for id, _ in chain]
    return Planned(None, layers, names, v1=tuple(document for _, document in chain))
