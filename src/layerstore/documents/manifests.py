"""The JSON documents of archives, read with suspicion: descriptors, indexes, manifests, and docker's manifest.json.

Enters: bytes of at most 8 MiB. Leaves: values of the right kinds, digests checked, or an ImageError that says what is
wrong. A document that some readers take for a manifest and others for an index is refused (CVE-2021-41190).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from layerstore.documents import gojson
from layerstore.documents.configs import NoImageError
from layerstore.documents.gojson import Table, anything, int64, list_of, map_of, parse, parse_struct, struct, text
from layerstore.documents.platforms import Platform
from layerstore.errors import ImageError, InvalidDigestError, readable
from layerstore.ids import Digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
INDEXES = (OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = (OCI_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
# Of old registries: lists of layers by two digests, with or without signatures.
SCHEMA_1 = tuple(f"application/vnd.docker.distribution.manifest.v1+{form}" for form in ("json", "prettyjws"))
# What says nothing about what it is.
VAGUE = ("", "application/json", "application/octet-stream", "text/plain")
# The last four are what old registries and tools wrote for a config, and what dockerd takes for one.
_CONFIGS = (
    OCI_CONFIG, "application/vnd.docker.container.image.v1+json", "application/octet-stream", "application/json",
    "text/html", "text/plain", "",
)  # fmt: skip
_LAYER = re.compile(
    r"application/vnd\.oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:[+.](?:gzip|zstd))?"
    r"|application/vnd\.docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:[+.](?:gzip|zstd))?"
    r"|application/vnd\.docker\.container\.image\.rootfs\.diff\+x-gtar"
    r"|application/(?:x-)?(?:tar|gzip|zstd|tar\+gzip|tar\+zstd)|application/octet-stream|"
)

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
# What save() writes beside an image without a name: entries that are images of their own, not one for many platforms.
OWN_IMAGE = "com.github.layerstore.image"

_PLATFORM: Table = {
    "architecture": text, "os": text, "os.version": text, "os.features": list_of(text), "variant": text,
}  # fmt: skip
_BLOB: Table = {
    "mediaType": text, "digest": text, "size": int64, "urls": list_of(text), "annotations": map_of(text),
    "data": text, "platform": struct(_PLATFORM), "artifactType": text,
}  # fmt: skip
_BLOBS = list_of(struct(_BLOB), "objects: a descriptor is not a JSON object")
# Of a manifest and of an index at once: what is there says which of them it is.
_DOCUMENT: Table = {
    "schemaVersion": int64, "mediaType": text, "artifactType": text, "config": struct(_BLOB), "layers": _BLOBS,
    "manifests": _BLOBS, "fsLayers": anything, "history": anything, "subject": struct(_BLOB),
    "annotations": map_of(text),
}  # fmt: skip
# What of a document tells its kind.
_HEAD: Table = {"mediaType": text, "manifests": anything, "config": anything}
_LAYOUT: Table = {"imageLayoutVersion": text}
_SAVED: Table = {
    "Config": text, "RepoTags": list_of(text), "Layers": list_of(text), "Parent": text,
    "LayerSources": map_of(struct(_BLOB)),
}  # fmt: skip


class Blob(NamedTuple):
    """What an index or a manifest says of a blob."""

    digest: Digest
    size: int
    media_type: str
    platform: Platform | None
    annotations: Mapping[str, str]
    urls: Sequence[str] = ()


class Manifest(NamedTuple):
    """One image as a registry knows it."""

    config: Blob
    layers: list[Blob]


def _blob(found: dict[str, Any] | None, what: str) -> Blob:
    if found is None:
        raise ImageError(f"{what}: a descriptor is not a JSON object")
    if "digest" not in found:
        raise ImageError(f"{what} has no digest")
    try:
        digest = Digest(found["digest"])
    except InvalidDigestError as err:
        raise ImageError(f"{what} names a digest that is none: {err}") from None
    if "size" not in found:
        raise ImageError(f"{what} has no size")
    if found["size"] < 0:
        raise ImageError(f"{what}: a size is negative")
    named = found.get("platform")
    platform = None
    if named and named.get("os") and named.get("architecture"):        # else the config says it
        platform = Platform(named.get("os", ""), named.get("architecture", ""), named.get("variant", ""))
    urls = [url for url in found.get("urls", []) if url]
    annotations = {key: value or "" for key, value in found.get("annotations", {}).items()}    # null is "" to Go
    return Blob(digest, found["size"], found.get("mediaType", ""), platform, annotations, urls)


def check_digest(digest: Digest, data: bytes) -> None:
    """Raise ImageError where data is not what digest says."""
    got = hashlib.new(digest.algorithm, data).hexdigest()
    if got != digest.encoded:
        raise ImageError(f"the blob {digest} is damaged: its digest is {digest.algorithm}:{got}")


def checked(blob: Blob, data: bytes) -> bytes:
    """Return data, if it is what a descriptor says. Raises ImageError."""
    if len(data) != blob.size:
        raise ImageError(f"the blob {blob.digest} has {len(data)} bytes, not the {blob.size} its manifest says")
    check_digest(blob.digest, data)
    return data


def parse_manifest_or_index(data: bytes, media_type: str, what: str) -> Manifest | list[Blob]:
    """Read an image manifest, or an index's entries.

    media_type   what the descriptor calls it; "" where it does not say

    Raises  NoImageError   it is of an artifact
            ImageError     it is malformed, or others take it for something else
    """
    found = parse_struct(data, _DOCUMENT, what)
    own = found.get("mediaType", "")
    if own and media_type in (*INDEXES, *MANIFESTS) and own != media_type:
        raise ImageError(f"{what} calls itself {own[:100]!r}, and its descriptor {media_type[:100]!r}")
    kind = media_type if media_type in (*INDEXES, *MANIFESTS) else own
    holds = [key for key in ("config", "layers", "fsLayers") if key in found]
    if "manifests" in found and holds:
        raise ImageError(f"{what} is an index and a manifest at once: it has manifests and {holds[0]}")
    if (kind in INDEXES and holds) or (kind in MANIFESTS and "manifests" in found):
        odd = holds[0] if holds else "manifests"
        raise ImageError(f"{what} is called {kind}, and has {odd}")
    if "manifests" in found or kind in INDEXES:
        return [_blob(entry, what) for entry in found.get("manifests", [])]
    if "config" not in found and ("fsLayers" in found or found.get("schemaVersion") == 1):
        raise ImageError(f"{what} is of the first schema (schema 1), which tools no longer write")
    if own and own not in MANIFESTS:
        raise NoImageError(f"{what} is not an image but {(found.get('artifactType') or own)[:100]!r}")
    if "config" not in found:
        raise ImageError(f"{what} has no config")
    config = _blob(found["config"], what)
    if found.get("artifactType") and config.media_type not in _CONFIGS[:2]:
        raise NoImageError(f"{what} is not an image but {found['artifactType'][:100]!r}")
    if config.media_type not in _CONFIGS:
        raise NoImageError(f"{what} is not an image: its config is {config.media_type[:100]!r}")
    layers = [_blob(layer, what) for layer in found.get("layers", [])]
    for layer in layers:
        if not _LAYER.fullmatch(layer.media_type):
            raise NoImageError(f"{what}: a layer of the kind {layer.media_type[:100]!r} cannot be unpacked")
    return Manifest(config, layers)


def kind_of(data: bytes, said: str, what: str) -> str:
    """Return the media type of a manifest or an index: what it says, else what was said of it, else what it looks like.

    said     the media type that it was sent with; ""
    Raises   ImageError   it is no JSON object, or both are known and differ
    """
    found = parse_struct(data, _HEAD, what)
    own, known = found.get("mediaType", ""), (*INDEXES, *MANIFESTS)
    if own in known and said in known and own != said:
        raise ImageError(f"{what} calls itself {own!r}, and was sent as {said!r}")
    for kind in (own, said):
        if kind in known:
            return str(kind)
    for kind in (said, own):
        if kind not in VAGUE:
            return str(kind)
    return OCI_INDEX if "manifests" in found else OCI_MANIFEST if "config" in found else ""


def encode_manifest(config: Digest, size: int, layers: Iterable[tuple[str, Digest, int]]) -> bytes:
    """Return an image's manifest; the same bytes each time.

    config, size  the digest and the bytes of its config
    layers        media type, digest and size of each, base first
    """
    return gojson.encode({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config, "size": size},
        "layers": [{"mediaType": kind, "digest": digest, "size": length} for kind, digest, length in layers],
    }, "the manifest")  # fmt: skip


def parse_index(data: bytes, what: str) -> list[Blob]:
    """Read a layout's index.json. Raises ImageError."""
    found = parse_struct(data, _DOCUMENT, what)
    holds = [key for key in ("config", "layers", "fsLayers") if key in found]
    if holds:
        raise ImageError(f"{what} is an index and a manifest at once: it has {holds[0]}")
    if found.get("mediaType", OCI_INDEX) not in INDEXES:
        raise ImageError(f"{what} calls itself {found['mediaType'][:100]!r}, which is not an index")
    return [_blob(entry, what) for entry in found.get("manifests", [])]


def check_layout(data: bytes) -> None:
    """Read the file oci-layout. Raises ImageError: it is of another version."""
    version = parse_struct(data, _LAYOUT, "oci-layout").get("imageLayoutVersion", "")
    if not version.startswith("1."):
        raise ImageError(f"an OCI layout of version {readable(version[:20])!r}, not 1")


class Saved(NamedTuple):
    """What docker's manifest.json says of one image."""

    config: str
    names: list[str]
    layers: list[str]
    parent: str


def parse_saved(data: bytes, what: str) -> list[Saved] | None:
    """Read docker's manifest.json; None: it is an object, so a registry's manifest. Raises ImageError."""
    found = parse(data, what)
    if isinstance(found, dict):
        return None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ImageError(f"{what} is not a list of images")
    saved = []
    for entry in found:
        taken = struct(_SAVED)(entry, what)
        if "Config" not in taken:
            raise ImageError(f"{what} has no Config")
        names, layers = ([item or "" for item in taken.get(key, [])] for key in ("RepoTags", "Layers"))
        saved.append(Saved(taken["Config"], names, layers, taken.get("Parent", "")))
    return saved
