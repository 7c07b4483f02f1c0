"""Images as they were before Docker 1.10: one JSON document per layer, and a config made of them.

Source: moby, image/v1/imagev1.go and image/tarexport/load.go (legacyLoadImage)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layerstore.documents.configs import V1, Config, parse_config
from layerstore.documents.gojson import encode, parse_object, struct
from layerstore.layerdb.descriptor import go_escaped

_DROPPED = ("id", "parent", "Size", "parent_id", "layer_id", "throwaway")


def parse(data: bytes, what: str) -> dict[str, Any]:
    """Read a layer's document, as it stands; its fields are of the right kinds. Raises ImageError."""
    found = parse_object(data, what)
    struct(V1, exact=True)(found, what)
    return found


def parent_of(document: dict[str, Any]) -> str:
    """Return the id of the layer below; "" for a base."""
    return document.get("parent") or ""


def _step(document: dict[str, Any]) -> dict[str, Any]:
    """Return the step of an image's history that a layer's document describes."""
    command = (document.get("container_config") or {}).get("Cmd") or []
    words = [command] if isinstance(command, str) else command
    step = {"created": document.get("created") or "0001-01-01T00:00:00Z"}
    for key, value in (
        ("author", document.get("author")), ("created_by", " ".join(word or "" for word in words)),
        ("comment", document.get("comment")),
    ):  # fmt: skip
        if value:
            step[key] = value
    return step


def make_config(documents: Sequence[dict[str, Any]], diff_ids: Sequence[str]) -> Config:
    """Make an image's config of its layers' documents, base first. Raises ImageError."""
    top = {key: value for key, value in documents[-1].items() if key not in _DROPPED}
    top["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids)}
    top["history"] = [_step(document) for document in documents]
    what = "the config made of a layer's json"
    data = encode(dict(sorted(top.items())), what).decode()
    return parse_config(go_escaped(data).encode(), what)
