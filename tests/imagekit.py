"""Archives of images written byte by byte, for tests: every kind that load() reads, in any order of entries.

An image is a list of layer tars with a config; an archive is a mapping of names to bytes, which tar_of() or write_to() puts
where it is wanted. Independent of the package's own writer.
"""

import gzip
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import tarkit

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."

BASE = tarkit.dir("etc/") + tarkit.file("etc/motd", b"hello\n") + tarkit.file("tool", b"#!/bin/sh\n", mode=0o755) + tarkit.end()
MIDDLE = tarkit.dir("etc/") + tarkit.whiteout("etc/motd") + tarkit.file("etc/new", b"new") + tarkit.end()
TOP = tarkit.dir("app/") + tarkit.file("app/main", b"x" * 3000, uid=7, gid=8) + tarkit.end()


def digest(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def hexes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def encode(document) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def config(layers: Sequence[bytes], **more) -> bytes:
    """The config of an image of these layer tars."""
    fields = {
        "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z", "config": {"Cmd": ["/nothing"]},
        "rootfs": {"type": "layers", "diff_ids": [tarkit.diff_id(layer) for layer in layers]},
        "history": [{"created": "2024-01-01T00:00:00Z", "created_by": f"layer {n}"} for n in range(len(layers))],
    }  # fmt: skip
    return encode({key: value for key, value in (fields | more).items() if value is not None})


def image_id(layers: Sequence[bytes], **more) -> str:
    return digest(config(layers, **more))


# ---- archives: {name: bytes} -------------------------------------------------------------------
def docker(images: Sequence[tuple[Sequence[bytes], Sequence[str]]], pack: Callable[[bytes], bytes] = bytes) -> dict[str, bytes]:
    """What `docker save` writes, layers named by number; images: (layers, names)."""
    files: dict[str, bytes] = {}
    places: dict[bytes, str] = {}
    manifest = []
    for layers, names in images:
        data = config(layers)
        for layer in layers:
            place = places.setdefault(layer, f"{len(places)}/layer.tar")
            files[place] = pack(layer)
        files[f"{hexes(data)}.json"] = data
        manifest.append({
            "Config": f"{hexes(data)}.json", "RepoTags": list(names) or None, "Layers": [places[layer] for layer in layers],
        })  # fmt: skip
    return files | {"manifest.json": encode(manifest)}


def descriptor(data: bytes, kind: str, **more) -> dict:
    return {"mediaType": kind, "digest": digest(data), "size": len(data)} | more


def blob(data: bytes, algorithm: str = "sha256") -> tuple[str, bytes]:
    return "blobs/" + digest(data, algorithm).replace(":", "/"), data


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout


PACKERS: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "plain": (bytes, OCI + "layer.v1.tar", DOCKER + "image.rootfs.diff.tar"),
    "gzip": (lambda data: gzip.compress(data, 1, mtime=0), OCI + "layer.v1.tar+gzip", DOCKER + "image.rootfs.diff.tar.gzip"),
    # As eStargz has it, and pigz --independent.
    "members": (lambda data: b"".join(gzip.compress(data[at : at + 99_999], 1, mtime=0) for at in range(0, len(data), 99_999)),
                OCI + "layer.v1.tar+gzip", DOCKER + "image.rootfs.diff.tar.gzip"),
    "zstd": (zstd, OCI + "layer.v1.tar+zstd", DOCKER + "image.rootfs.diff.tar.zstd"),
}


def manifest(layers: Sequence[bytes], packed: str = "plain", *, docker_types: bool = False, **more) -> tuple[bytes, dict[str, bytes]]:
    """A manifest of an image, and the blobs it names."""
    pack, oci_type, docker_type = PACKERS[packed]
    data = config(layers, **more)
    blobs = [pack(layer) for layer in layers]
    document = encode({
        "schemaVersion": 2,
        "mediaType": DOCKER + "distribution.manifest.v2+json" if docker_types else OCI + "manifest.v1+json",
        "config": descriptor(data, DOCKER + "container.image.v1+json" if docker_types else OCI + "config.v1+json"),
        "layers": [descriptor(each, docker_type if docker_types else oci_type) for each in blobs],
    })  # fmt: skip
    return document, dict(map(blob, [data, *blobs]))


def layout(entries: Iterable[dict], blobs: Mapping[str, bytes]) -> dict[str, bytes]:
    """An OCI layout of these entries of its index."""
    index = encode({"schemaVersion": 2, "manifests": list(entries)})
    return dict(blobs) | {"index.json": index, "oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}


def image(layers: Sequence[bytes], packed: str = "plain", entry: Mapping | None = None, **more) -> tuple[dict, dict[str, bytes]]:
    """Return an image's entry in an index, which may say more, and its blobs; `more` is of its manifest and config."""
    document, blobs = manifest(layers, packed, **more)
    return descriptor(document, json.loads(document)["mediaType"], **entry or {}), blobs | dict([blob(document)])


def layout_of(*images: tuple[dict, dict[str, bytes]]) -> dict[str, bytes]:
    """An OCI layout of such images."""
    return layout([entry for entry, _ in images], {name: data for _, blobs in images for name, data in blobs.items()})


def oci(layers: Sequence[bytes], packed: str = "plain", name: str = "", *, docker_types: bool = False) -> dict[str, bytes]:
    """An OCI layout of one image."""
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    return layout_of(image(layers, packed, {"annotations": names} if name else None, docker_types=docker_types))


def v1(layers: Sequence[bytes], name: str) -> dict[str, bytes]:
    """What `docker save` wrote before 1.10."""
    files, parent = {}, ""
    for number, layer in enumerate(layers):
        id = hexes(b"%d" % number + layer)
        document = {"id": id, "created": "2013-01-01T00:00:00Z", "architecture": "amd64", "os": "linux",
                    "container_config": {"Cmd": ["sh", "-c", f"step {number}"]}, "docker_version": "1.9.0"}  # fmt: skip
        files |= {f"{id}/VERSION": b"1.0", f"{id}/json": encode(document | ({"parent": parent} if parent else {}))}
        files[f"{id}/layer.tar"] = layer
        parent = id
    repository, _, tag = name.rpartition(":")
    return files | {"repositories": encode({repository: {tag: parent}})}


# ---- where they go -----------------------------------------------------------------------------
def tar_of(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """A tar of these files in this order, links behind them."""
    entries = [tarkit.with_pax_path(name, tarkit.file, data) if len(name) > 100 else tarkit.file(name, data) for name, data in files.items()]
    entries += [tarkit.symlink(name, target) for name, target in (links or {}).items()]
    return b"".join(entries) + tarkit.end()


def write_to(directory: Path, files: Mapping[str, bytes]) -> Path:
    """The same as a directory."""
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def documents_first(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return dict(sorted(files.items(), key=lambda item: (item[1][:1] not in (b"{", b"["), item[0])))


def documents_last(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return dict(sorted(files.items(), key=lambda item: (item[1][:1] in (b"{", b"["), item[0])))


def layers_upside_down(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return dict(reversed(documents_first(files).items()))


class Once:
    """A source with read(n) and nothing else, as a socket's file has it; odd in how much it gives."""

    def __init__(self, data: bytes, most: int = 700):
        self._data, self._at, self._most = data, 0, most

    def read(self, n: int) -> bytes:
        found = self._data[self._at : self._at + min(n, self._most)]
        self._at += len(found)
        return found
