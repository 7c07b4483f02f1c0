"""JSON of the layerdb, as Go's encoding/json writes and reads it; descriptor.json."""

from __future__ import annotations

import json
from typing import Any

from layerstore.errors import InvalidMetadataError
from layerstore.values import Descriptor

# Go's encoding/json escapes these inside of strings.
_GO_ESCAPES = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})


def go_escaped(text: str) -> str:
    """Return JSON text with those characters escaped that Go escapes."""
    return text.translate(_GO_ESCAPES)


def parse_document(data: bytes, what: str) -> Any:
    """Read JSON. Raises InvalidMetadataError."""
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as err:
        raise InvalidMetadataError(f"{what} is not valid JSON: {err}") from None


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
    text = go_escaped(json.dumps(kept, ensure_ascii=False, separators=(",", ":")))
    # Go writes U+FFFD for what is not UTF-8.
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode()


def decode_descriptor(data: bytes) -> Descriptor:
    """Read descriptor.json as Go does: keys in any case, unknown ones ignored.

    Raises  InvalidMetadataError   no JSON object, or a value of another type
    """
    found = parse_document(data, "descriptor.json")
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
    if not all(isinstance(text, str) for text in (*urls, *(annotations or {}).values())):
        raise InvalidMetadataError("descriptor.json: urls and annotations must be texts")
    return Descriptor(
        media_type=field("mediatype", str, ""),
        digest=field("digest", str, ""),
        size=field("size", int, 0),
        urls=tuple(urls),
        annotations=annotations,
    )
