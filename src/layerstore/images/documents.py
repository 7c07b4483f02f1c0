"""The JSON documents of archives, read with suspicion: descriptors, indexes, manifests, configs.

Enters: bytes of at most 8 MiB. Leaves: values of the right kinds, digests checked, or an ImageError that says what is
wrong.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from layerstore.errors import ImageError, InvalidDigestError, InvalidMetadataError
from layerstore.ids import DiffID, Digest
from layerstore.imagedb import diff_ids_of, parse_document
from layerstore.images.shelf import Shelf, needed

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
INDEXES = (OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = (OCI_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
_CONFIGS = (OCI_CONFIG, "application/vnd.docker.container.image.v1+json")
_LAYER = re.compile(
    r"application/vnd\.oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+(?:gzip|zstd))?"
    r"|application/vnd\.docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:\.(?:gzip|zstd))?"
)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
# As many layers as a store puts on each other; one more would have to fail there.
LAYERS_LIMIT = 125

_T = TypeVar("_T")


class NoImageError(ImageError):
    """A manifest that is of something else than an image."""


def field(where: Mapping[str, Any], key: str, kind: type[_T], what: str, default: _T | None = None) -> _T:
    """Give where[key]. None counts as not there. Raises ImageError: it is not there, or of another kind."""
    value = where.get(key)
    if value is None:
        if default is None:
            raise ImageError(f"{what} has no {key}")
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ImageError(f"{what}: {key} has the wrong type")
    return value


def texts(where: Mapping[str, Any], key: str, what: str) -> list[str]:
    """Give a list of texts; [] where there is none."""
    found: list[Any] = field(where, key, list, what, [])
    if not all(isinstance(item, str) for item in found):
        raise ImageError(f"{what}: {key} is no list of texts")
    return found


def parse_json(data: bytes, what: str) -> Any:
    """Read JSON. Raises ImageError."""
    try:
        return parse_document(data, what)
    except InvalidMetadataError as err:
        raise ImageError(str(err)) from None


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object. Raises ImageError."""
    found = parse_json(data, what)
    if not isinstance(found, dict):
        raise ImageError(f"{what} is not a JSON object")
    return found


class Platform(NamedTuple):
    """An operating system, an architecture and, where it has several, which variant."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in self if part)


_MACHINES = {
    "x86_64": "amd64", "i386": "386", "i686": "386", "aarch64": "arm64", "armv6l": "arm/v6", "armv7l": "arm/v7",
    "armv8l": "arm/v7", "loongarch64": "loong64",
}  # fmt: skip


def parse_platform(text: str) -> Platform:
    """Read "linux/amd64", "arm64", "linux/arm/v7". Raises ImageError."""
    parts = text.lower().split("/")
    if parts[0] not in ("linux", "windows", "freebsd", "darwin"):
        parts.insert(0, "linux")
    if len(parts) not in (2, 3) or not all(re.fullmatch(r"[a-z0-9_.-]+", part) for part in parts):
        raise ImageError(f"{text!r} is no platform, as linux/arm64 is one")
    return Platform(*parts)


def host_platform() -> Platform:
    """Name what runs here."""
    machine = os.uname().machine
    return parse_platform("linux/" + _MACHINES.get(machine, machine))


class Blob(NamedTuple):
    """What an index or a manifest says of a blob."""

    digest: Digest
    size: int
    media_type: str
    platform: Platform | None
    annotations: Mapping[str, Any]

    @property
    def path(self) -> str:
        """Where it lies in a layout."""
        return f"blobs/{self.digest.algorithm}/{self.digest.encoded}"


def parse_blob(found: Any, what: str) -> Blob:
    """Read a descriptor. Raises ImageError."""
    if not isinstance(found, dict):
        raise ImageError(f"{what}: a descriptor is not a JSON object")
    try:
        digest = Digest(field(found, "digest", str, what))
    except InvalidDigestError as err:
        raise ImageError(f"{what} names a digest that is none: {err}") from None
    size: int = field(found, "size", int, what)
    if size < 0:
        raise ImageError(f"{what}: a size is negative")
    named: dict[str, Any] = field(found, "platform", dict, what, {})
    platform = None
    if named:
        parts = [field(named, key, str, what, "") for key in ("os", "architecture", "variant")]
        platform = Platform(*parts)
    annotations: dict[str, Any] = field(found, "annotations", dict, what, {})
    return Blob(digest, size, field(found, "mediaType", str, what, ""), platform, annotations)


def read_blob(shelf: Shelf, blob: Blob) -> bytes:
    """Read a document by its descriptor. Raises MissingError, ImageError: its bytes are others."""
    data = needed(shelf, blob.path)
    if len(data) != blob.size:
        raise ImageError(f"the blob {blob.digest} has {len(data)} bytes, not the {blob.size} its manifest says")
    check_digest(blob.digest, data)
    return data


def check_digest(digest: Digest, data: bytes) -> None:
    """Raise ImageError where data is not what digest says."""
    got = hashlib.new(digest.algorithm, data).hexdigest()
    if got != digest.encoded:
        raise ImageError(f"the blob {digest} is damaged: its digest is {digest.algorithm}:{got}")


class Manifest(NamedTuple):
    """One image as a registry knows it."""

    config: Blob
    layers: list[Blob]


def parse_manifest(data: bytes, what: str) -> Manifest:
    """Read an image manifest.

    Raises  NoImageError   it is of an artifact
            ImageError     it is malformed
    """
    found = parse_object(data, what)
    if "config" not in found and ("fsLayers" in found or found.get("schemaVersion") == 1):
        raise ImageError(f"{what} is of the first schema, which nobody writes any more")
    config = parse_blob(field(found, "config", dict, what), what)
    if found.get("artifactType") and config.media_type not in _CONFIGS:
        raise NoImageError(f"{what} is no image but {str(found['artifactType'])[:100]}")
    if config.media_type and config.media_type not in _CONFIGS:
        raise NoImageError(f"{what} is no image: its config is {config.media_type[:100]!r}")
    layers = [parse_blob(layer, what) for layer in field(found, "layers", list, what, [])]
    for layer in layers:
        if layer.media_type and not _LAYER.fullmatch(layer.media_type):
            raise NoImageError(f"{what}: a layer of the kind {layer.media_type[:100]!r} cannot be unpacked")
    return Manifest(config, layers)


def parse_index(data: bytes, what: str) -> list[Blob]:
    """Read an index or a manifest list. Raises ImageError."""
    return [parse_blob(entry, what) for entry in field(parse_object(data, what), "manifests", list, what, [])]


class Config(NamedTuple):
    """An image's config, checked as far as dockerd must be able to read it."""

    data: bytes
    id: Digest
    found: dict[str, Any]
    diff_ids: list[DiffID]
    platform: Platform


def parse_config(data: bytes, what: str) -> Config:
    """Read an image's config. Raises ImageError."""
    found = parse_object(data, what)
    try:
        diff_ids = diff_ids_of(found)
    except InvalidMetadataError as err:
        raise ImageError(f"{what}: {err}") from None
    system = field(found, "os", str, what, "linux") or "linux"
    if system != "linux":
        raise ImageError(f"cannot load {system[:40]!r} image on this host: its layers are no tars of Linux files")
    if len(diff_ids) > LAYERS_LIMIT:
        raise ImageError(f"{what}: {len(diff_ids)} layers, and there may be at most {LAYERS_LIMIT} on each other")
    history: list[Any] = field(found, "history", list, what, [])
    if not all(isinstance(step, dict) for step in history):
        raise ImageError(f"{what}: its history is no list of objects")
    if sum(not step.get("empty_layer") for step in history) > len(diff_ids):
        raise ImageError(f"{what}: too many non-empty layers in History section")
    for where in (found, *history):
        created = field(where, "created", str, what, "")
        if created and not _TIME.fullmatch(created):
            raise ImageError(f"{what}: {created[:40]!r} is no time")
    field(found, "config", dict, what, {})
    parts = [field(found, key, str, what, "") for key in ("architecture", "variant")]
    for key in ("author", "comment", "docker_version"):
        field(found, key, str, what, "")
    id = Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
    return Config(data, id, found, diff_ids, Platform(system, *parts))
