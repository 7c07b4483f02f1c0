"""An image's config, limited to what dockerd can read: dockerd deletes the layers of an image that it cannot read.

Source: moby, image/image.go and api/types/container/config.go (the fields of the structs, and their Go types)
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from layerstore.documents.gojson import (
    Table,
    anything,
    flag,
    int64,
    list_of,
    map_of,
    parse_struct,
    struct,
    text,
    time,
    words,
)
from layerstore.documents.platforms import Platform
from layerstore.errors import ImageError, InvalidDigestError, readable
from layerstore.ids import DiffID, Digest, sha256_of

# As many layers as a store puts on each other; one more would have to fail there.
LAYERS_LIMIT = 125

_exact = functools.partial(struct, exact=True)
_NOTHING: Table = {}
_HEALTH: Table = {
    "Test": list_of(text), "Interval": int64, "Timeout": int64, "StartPeriod": int64, "StartInterval": int64,
    "Retries": int64,
}  # fmt: skip
_RUN: Table = {
    "Hostname": text, "Domainname": text, "User": text, "AttachStdin": flag, "AttachStdout": flag,
    "AttachStderr": flag, "ExposedPorts": map_of(struct(_NOTHING)), "Tty": flag, "OpenStdin": flag, "StdinOnce": flag,
    "Env": list_of(text), "Cmd": words, "Healthcheck": _exact(_HEALTH), "ArgsEscaped": flag, "Image": text,
    "Volumes": map_of(struct(_NOTHING)), "WorkingDir": text, "Entrypoint": words, "NetworkDisabled": flag,
    "MacAddress": text, "OnBuild": list_of(text), "Labels": map_of(text), "StopSignal": text, "StopTimeout": int64,
    "Shell": words,
}  # fmt: skip
_STEP: Table = {"created": time, "author": text, "created_by": text, "comment": text, "empty_layer": flag}
_IMAGE: Table = {
    "id": text, "parent": text, "comment": text, "created": time, "container": text,
    "container_config": _exact(_RUN), "docker_version": text, "author": text, "config": _exact(_RUN),
    "architecture": text, "variant": text, "os": text, "Size": int64,
    "rootfs": _exact({"type": text, "diff_ids": list_of(anything)}), "history": list_of(_exact(_STEP), "objects"),
    "os.version": text, "os.features": list_of(text),
}  # fmt: skip
# Before Docker 1.10: an image's fields in the document of each layer.
V1: Table = {key: kind for key, kind in _IMAGE.items() if key not in ("rootfs", "history")}


class NoImageError(ImageError):
    """The manifest is for no image that this host can store: an artifact, or an image of another system."""


class Config(NamedTuple):
    """An image's config: its bytes, and what of it is needed."""

    data: bytes
    id: Digest
    diff_ids: list[DiffID]
    platform: Platform
    created: str


def parse_config(data: bytes, what: str) -> Config:
    """Read an image's config.

    Raises  NoImageError   it is of another system than Linux
            ImageError     it is not what dockerd can read; the message names the field
    """
    found = parse_struct(data, _IMAGE, what, exact=True)
    root = found.get("rootfs")
    if root is None:
        raise ImageError(f"{what}: invalid image JSON, no RootFS key")
    try:
        diff_ids = [DiffID(each) for each in root.get("diff_ids", [])]
    except (InvalidDigestError, TypeError) as err:
        raise ImageError(f"{what}: invalid image JSON, its diff_ids are not digests: {err}") from None
    system = found.get("os") or "linux"
    if system != "linux" and system.lower() == "linux":
        raise ImageError(f"{what}: os is {system!r}, not 'linux': a dockerd on the same root would end with a panic")
    if system != "linux":
        raise NoImageError(
            f"cannot load {readable(system[:40])!r} image on this host: its layers are no tars of Linux files ({what})"
        )
    if len(diff_ids) > LAYERS_LIMIT:
        raise ImageError(f"{what}: {len(diff_ids)} layers, and there may be at most {LAYERS_LIMIT} on each other")
    steps: list[dict[str, Any] | None] = found.get("history", [])
    if sum(not (step or {}).get("empty_layer") for step in steps) > len(diff_ids):
        raise ImageError(f"{what}: too many non-empty layers in History section")
    id = sha256_of(data)
    platform = Platform(system, found.get("architecture", ""), found.get("variant", ""))
    return Config(data, id, diff_ids, platform, found.get("created", ""))
