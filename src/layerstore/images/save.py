"""Images.save(): images become an archive, the same bytes each time.

    docker    OCI layout with manifest.json and repositories, as `docker save` writes since 25: docker load of every
              age, skopeo (docker-archive:, oci-archive:) and, unpacked, umoci read it
    docker-v1 <id>/layer.tar, VERSION and json, as `docker save` wrote until 25
    oci       OCI layout in a tar
    oci-dir   OCI layout in a directory
Documents come first, then the layers, base first, so that a reader of a stream knows all before the first layer.
A layer comes out of the store once, straight into the archive; a compressed one waits (see packing.py) until its digest
can be written before it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

from layerstore.documents import manifests, references
from layerstore.ids import ChainID, DiffID, Digest, sha256_of
from layerstore.images.packing import Below, Blob, Layers, OpenLayer, Outgoing, Spool, own_file
from layerstore.images.targets import DirectoryTarget, Target, TarTarget
from layerstore.streams.progress import Teller

# What each format's readers take: docker load of 20.10 has no zstd.
COMPRESSIONS = {"docker": (None, "gzip"), "docker-v1": (None,), "oci": (None, "gzip", "zstd"),
                "oci-dir": (None, "gzip", "zstd")}  # fmt: skip
FORMATS = tuple(COMPRESSIONS)
_NO_TIME = "1970-01-01T00:00:00Z"

# No size takes more digits.
_LARGEST = 1 << 63


def encode(document: Any) -> bytes:
    """Return compact JSON; the keys keep their order."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogateescape")


# ---- the formats -------------------------------------------------------------------------------


def _manifest(out: Outgoing, layers: Layers, media_type: str) -> bytes:
    blobs = [layers.blobs[diff_id] for diff_id in out.image.diff_ids]
    entries = [(media_type, blob.digest, blob.size) for blob in blobs]
    return manifests.encode_manifest(out.image.id, len(out.content), entries)


def write_documents(
    images: Sequence[Outgoing], layers: Layers, target: Target, *, compression: str | None, with_docker: bool
) -> None:
    """Write all of an OCI layout but its layers; with_docker: also the documents that docker load reads."""
    media_type = manifests.OCI_LAYER + (f"+{compression}" if compression else "")
    written: dict[Digest, bytes] = {}
    index = []
    for out in images:
        manifest = _manifest(out, layers, media_type)
        written[out.image.id] = out.content
        written[sha256_of(manifest)] = manifest
        entry: dict[str, Any] = {"mediaType": manifests.OCI_MANIFEST, "digest": sha256_of(manifest)}
        entry["size"] = len(manifest)
        if out.image.architecture:
            platform = {"architecture": out.image.architecture, "os": out.image.os, "variant": out.image.variant}
            entry["platform"] = {key: value for key, value in platform.items() if value}
        for name in out.references or ("",):
            index.append(entry | {"annotations": _annotations(name) if name else {manifests.OWN_IMAGE: out.image.id}})
    target.file("oci-layout", encode({"imageLayoutVersion": "1.0.0"}))
    target.file("index.json", encode({"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": index}))
    if with_docker:
        entries = []
        for out in images:
            paths = [_blob_path(layers.blobs[d].digest) for d in out.image.diff_ids]
            entries.append(_docker_entry(out, _blob_path(out.image.id), paths, images))
        target.file("manifest.json", encode(entries))
        target.file("repositories", encode(_repositories(images, lambda out: out.image.diff_ids[-1].encoded)))
    target.directory("blobs")
    target.directory("blobs/sha256")
    for digest in sorted(written):
        target.file(_blob_path(digest), written[digest])


def write_layers(layers: Layers, target: Target, tell: Callable[[int], None]) -> None:
    """Write the layers of an OCI layout behind its documents."""
    written: set[Digest] = set()
    for diff_id in layers.chains:
        digest = layers.blobs[diff_id].digest
        if digest not in written:
            layers.write(diff_id, _blob_path(digest), target, tell)
            written.add(digest)


def _blob_path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def _annotations(name: str) -> dict[str, str]:
    reference = references.parse(name)
    return {manifests.CONTAINERD_NAME: f"{reference.full_name}:{reference.tag}", manifests.REF_NAME: reference.tag}


def _docker_entry(out: Outgoing, config: str, paths: list[str], images: Sequence[Outgoing]) -> dict[str, Any]:
    """Return the entry of an image in manifest.json."""
    entry: dict[str, Any] = {"Config": config, "RepoTags": list(out.references) or None, "Layers": paths or None}
    if out.image.parent in {other.image.id for other in images}:
        entry["Parent"] = out.image.parent
    return entry


def _repositories(images: Sequence[Outgoing], top_of: Callable[[Outgoing], str]) -> dict[str, dict[str, str]]:
    """Return the oldest document: the top layer of each name."""
    found: dict[str, dict[str, str]] = {}
    for out in images:
        for name in out.references if out.image.diff_ids else ():
            reference = references.parse(name)
            found.setdefault(reference.name, {})[reference.tag] = top_of(out)
    return dict(sorted(found.items()))


def write_v1(images: Sequence[Outgoing], layers: Layers, target: Target, tell: Callable[[int], None]) -> None:
    """Write what docker save wrote until 25: one directory per layer, with a link if another one has the same tar."""
    tops: dict[Digest, str] = {}
    places: dict[DiffID, str] = {}
    made: set[str] = set()
    for out in images:
        id = ""
        for diff_id, chain in zip(out.image.diff_ids, out.image.layers, strict=True):
            document = _v1_document(out, id, chain)
            id = sha256_of(encode([chain, document])).encoded
            if id in made:
                continue
            made.add(id)
            target.directory(id)
            target.file(f"{id}/VERSION", b"1.0")
            target.file(f"{id}/json", encode({"id": id, **document}))
            place = places.setdefault(diff_id, id)
            if place == id:
                layers.write(diff_id, f"{id}/layer.tar", target, tell)
            elif diff_id not in layers.left_out:
                target.link(f"{id}/layer.tar", f"../{place}/layer.tar")
        tops[out.image.id] = id
        target.file(f"{out.image.id.encoded}.json", out.content)
    entries = []
    for out in images:
        paths = [f"{places[d]}/layer.tar" for d in out.image.diff_ids]
        entries.append(_docker_entry(out, f"{out.image.id.encoded}.json", paths, images))
    target.file("manifest.json", encode(entries))
    target.file("repositories", encode(_repositories(images, lambda out: tops[out.image.id])))


def _v1_document(out: Outgoing, parent: str, chain: ChainID) -> dict[str, Any]:
    """Return the oldest document of a layer; the top layer's has the config."""
    document: dict[str, Any] = {"created": _NO_TIME, "os": out.image.os}
    if chain == out.image.top:
        document |= {k: v for k, v in out.image.config.items() if k not in ("rootfs", "history", "id", "parent")}
    return document | ({"parent": parent} if parent else {})


def save(
    images: Sequence[Outgoing], out: Any, format: str, compression: str | None, open_layer: OpenLayer,
    spool: str | None, progress: Any, left_out: Collection[ChainID] = (),
) -> int:  # fmt: skip
    """Write images. out: a descriptor, a binary file, or (oci-dir) a DirectoryTarget. Returns bytes written."""
    layers = Layers(images, open_layer, left_out)
    done = 0
    teller = Teller(progress, layers.to_read(packed=compression is not None))

    def tell(n: int) -> None:
        nonlocal done
        done += n
        teller.tell(done)

    with contextlib.ExitStack() as stack:
        if compression:
            out = _packed(layers, images, out, format, compression, spool, tell, stack)
        target = out if isinstance(out, DirectoryTarget) else TarTarget(out)
        if format == "docker-v1":
            write_v1(images, layers, target, tell)
        else:
            write_documents(images, layers, target, compression=compression, with_docker=format == "docker")
            write_layers(layers, target, tell)
        if isinstance(target, TarTarget):
            target.end()
    teller.tell(done, end=True)
    return target.written


class _Measure:
    """A file that discards what is written."""

    def write(self, data: Any) -> int:
        return len(data)


def _packed(
    layers: Layers, images: Sequence[Outgoing], out: Any, format: str, compression: str, spool: str | None,
    tell: Callable[[int], None], stack: contextlib.ExitStack,
) -> Any:  # fmt: skip
    """Pack the layers, to wait where there is room for them. Returns what the archive is to be written to."""
    if isinstance(out, DirectoryTarget):
        layers.compress(compression, layers.places(lambda n: Below(out, f".layer-{n}", stack)), tell)
        return out
    own = stack.enter_context(own_file(out))
    if own is None:
        layers.compress(compression, layers.places(lambda _: Spool(spool, stack)), tell)
        return out
    measured = TarTarget(_Measure())
    plain, layers.blobs = layers.blobs, {d: Blob(Digest(d), _LARGEST) for d in layers.blobs}
    write_documents(images, layers, measured, compression=compression, with_docker=format == "docker")
    layers.blobs = plain
    layers.compress(compression, layers.places_inside(own, os.lseek(own, 0, os.SEEK_CUR) + measured.written), tell)
    return own
