"""The manifest that an image was pulled with, which a push sends again byte for byte; and the list beside its subject.

A registry that keeps no list of what refers to a manifest has an index instead, at a tag that its clients agree on.
Source: OCI distribution-spec 1.1, Pushing Manifests with Subject
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from layerstore.documents import gojson
from layerstore.documents.manifests import INDEXES, OCI_INDEX, Manifest, checked, kind_of, parse_manifest_or_index
from layerstore.errors import ImageError, InvalidDigestError
from layerstore.ids import Digest, sha256_of
from layerstore.images.image import Image
from layerstore.layerdb.imagedb import ImageDB

log = logging.getLogger("layerstore")

_SUBJECT: gojson.Table = {
    "subject": gojson.struct({"digest": gojson.text}), "artifactType": gojson.text,
    "annotations": gojson.map_of(gojson.text),
}  # fmt: skip


class Kept(NamedTuple):
    """A manifest that was kept.

    subject   digest of the manifest that it refers to, or ""
    entry     what an index says of it
    """

    data: bytes
    media_type: str
    digest: Digest
    manifest: Manifest
    subject: Digest | str
    entry: dict[str, Any]


def read_kept(db: ImageDB, image: Image, config: bytes) -> Kept | None:
    """Return the manifest that an image was pulled with; None: there is none, or it is not this image's."""
    data = db.kept_manifest(image.id)
    if data is None:
        return None
    what = f"the kept manifest of the image {image.id}"
    try:
        return _parsed(data, image, config, what)
    except (ImageError, InvalidDigestError) as err:
        log.warning("Passing over %s: %s", what, err, extra={"image": image.id, "error": err})
        return None


def _parsed(data: bytes, image: Image, config: bytes, what: str) -> Kept:
    media_type = kind_of(data, "", what)
    manifest = parse_manifest_or_index(data, media_type, what)
    if not isinstance(manifest, Manifest) or len(manifest.layers) != len(image.diff_ids):
        raise ImageError("it is of another image")
    checked(manifest.config, config)
    fields = gojson.parse_struct(data, _SUBJECT, what)
    subject = fields.get("subject", {}).get("digest", "")
    digest = sha256_of(data)
    entry: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": len(data)}
    entry["artifactType"] = fields.get("artifactType") or manifest.config.media_type
    if fields.get("annotations"):
        entry["annotations"] = fields["annotations"]
    return Kept(data, media_type, digest, manifest, Digest(subject) if subject else "", entry)


def index_tag(subject: Digest) -> str:
    """Return the tag of the index of what refers to a manifest."""
    return f"{subject.algorithm}-{subject.encoded}"


def listed_in(found: tuple[str, bytes] | None, kept: Kept, what: str) -> tuple[str, bytes] | None:
    """Return the media type and the bytes of an index with a manifest more in it; None: it is in it already.

    found    the index, by its media type and its bytes; None: there is none
    Raises   ImageError   it is no index
    """
    if found is None:
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [kept.entry]}
        return OCI_INDEX, gojson.encode(index, what)
    media_type = kind_of(found[1], found[0], what)
    entries = parse_manifest_or_index(found[1], media_type, what)
    if media_type not in INDEXES or isinstance(entries, Manifest):
        raise ImageError(f"{what} is no index: {media_type or 'its kind is unknown'}")
    if any(entry.digest == kept.digest for entry in entries):
        return None
    document = gojson.parse_object(found[1], what)
    document |= {"schemaVersion": 2, "mediaType": media_type}
    document["manifests"] = [*(document.get("manifests") or []), kept.entry]
    return media_type, gojson.encode(document, what)
