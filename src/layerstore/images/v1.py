"""Images as they were before Docker 1.10: a JSON document a layer, and a config made of them.

Source: moby, image/v1/imagev1.go and image/tarexport/load.go (legacyLoadImage)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from layerstore.errors import ImageError
from layerstore.images.documents import Config, field, parse_config

_DROPPED = ("id", "parent", "Size", "parent_id", "layer_id", "throwaway")
_GO_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def parent_of(document: dict[str, Any]) -> str:
    """The id of the layer below; "" for a base."""
    return field(document, "parent", str, "a layer's json", "")


def _step(document: dict[str, Any]) -> dict[str, Any]:
    """The line of an image's history that a layer's document says."""
    ran: dict[str, Any] = field(document, "container_config", dict, "a layer's json", {})
    command = ran.get("Cmd") or []
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise ImageError("a layer's json: its command is no list of texts")
    step = {"created": document.get("created") or "0001-01-01T00:00:00Z"}
    for key, value in (
        ("author", document.get("author")), ("created_by", " ".join(command)), ("comment", document.get("comment")),
    ):  # fmt: skip
        if value:
            step[key] = value
    return step


def make_config(documents: Sequence[dict[str, Any]], diff_ids: Sequence[str]) -> Config:
    """Make an image's config of its layers' documents, base first. Raises ImageError."""
    top = {key: value for key, value in documents[-1].items() if key not in _DROPPED}
    top["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids)}
    top["history"] = [_step(document) for document in documents]
    data = json.dumps(dict(sorted(top.items())), ensure_ascii=False, separators=(",", ":"))
    for plain, escaped in _GO_ESCAPES.items():
        data = data.replace(plain, escaped)
    return parse_config(data.encode("utf-8", "replace"), "the config made of a layer's json")
