"""descriptor.json, as Go's encoding/json writes and reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

from layerstore.errors import InvalidMetadataError
from layerstore.values import Descriptor

# Go's encoding/json escapes these inside of strings.
_GO_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def encode_descriptor(descriptor: Descriptor) -> bytes:
    """Return descriptor.json as Go writes it: that order of keys, empty ones left out, no newline."""
    fields: dict[str, object] = {
        "mediaType": str(descriptor.media_type),
        "size": int(descriptor.size),
        "digest": str(descriptor.digest),
        "urls": [str(url) for url in descriptor.urls],
        "annotations": dict(sorted((descriptor.annotations or {}).items())),
    }
    kept = {key: value for key, value in fields.items() if value}
    text = json.dumps(kept, ensure_ascii=False, separators=(",", ":"))
    for plain, escaped in _GO_ESCAPES.items():
        text = text.replace(plain, escaped)
    # Go writes U+FFFD for what is not UTF-8.
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode()


def decode_descriptor(data: bytes) -> Descriptor:
    """Read descriptor.json as Go does: keys in any case, unknown ones ignored.

    Raises  InvalidMetadataError   no JSON object, or a value of another type
    """
    try:
        found = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as err:
        raise InvalidMetadataError(f"descriptor.json is not valid JSON: {err}") from None
    if found is None:
        return Descriptor()
    if not isinstance(found, dict):
        raise InvalidMetadataError("descriptor.json is not a JSON object")
    fields = {key.lower(): value for key, value in found.items()}

    def field(name: str, kind: type, empty: Any) -> Any:
        value = fields.get(name)
        if value is None:
            return empty
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InvalidMetadataError(f"descriptor.json: {name} has the wrong type")
        return value

    urls = field("urls", list, [])
    annotations = field("annotations", dict, None)
    texts: Iterable[object] = [*urls, *(annotations or {}).values()]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidMetadataError("descriptor.json: urls and annotations must be texts")
    return Descriptor(
        media_type=field("mediatype", str, ""),
        digest=field("digest", str, ""),
        size=field("size", int, 0),
        urls=tuple(urls),
        annotations=cast("Mapping[str, str] | None", annotations),
    )
