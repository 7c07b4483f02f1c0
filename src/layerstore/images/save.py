"""Images.save(): images leave as an archive, the same bytes each time.

    docker    OCI layout with manifest.json and repositories, as `docker save` writes since 25: docker load of every
              age, skopeo (docker-archive:, oci-archive:) and, unpacked, umoci read it
    docker-v1 <id>/layer.tar, VERSION and json, as `docker save` wrote until 25
    oci       OCI layout in a tar
    oci-dir   OCI layout in a directory
Documents come first, then the layers, base first, so that who reads a stream knows all before the first layer.
A layer comes out of the store once, straight into the archive; only a compressed one, whose digest has to be known
before it is written, waits in a file without a name.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import io
import json
import os
import queue
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple, Protocol

from layerstore import _files
from layerstore._pack import Packer
from layerstore.errors import ImageError, readable
from layerstore.ids import ChainID, DiffID, Digest
from layerstore.images import references
from layerstore.images.documents import (
    CONTAINERD_NAME,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    OWN_IMAGE,
    REF_NAME,
)
from layerstore.images.gather import Teller
from layerstore.images.image import Image
from layerstore.tarstream import COPY_BLOCK, TarStream, write_whole
from layerstore.textfile import naming, random_number, remove_directory, sync_directory, sync_tree

# What each format's readers take: docker load of 20.10 has no zstd.
COMPRESSIONS = {"docker": (None, "gzip"), "docker-v1": (None,), "oci": (None, "gzip", "zstd"),
                "oci-dir": (None, "gzip", "zstd")}  # fmt: skip
FORMATS = tuple(COMPRESSIONS)
_WORKERS = min(4, os.cpu_count() or 1)
_NO_TIME = "1970-01-01T00:00:00Z"

OpenLayer = Callable[[ChainID], TarStream]


class Outgoing(NamedTuple):
    """An image on its way out: its config's bytes, and the names that go with it."""

    image: Image
    content: bytes
    references: tuple[str, ...]


class _Blob(NamedTuple):
    digest: Digest
    size: int


def encode(document: Any) -> bytes:
    """JSON as it is always written: compact, keys as they stand."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogateescape")


def _digest(data: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


# ---- where it goes -----------------------------------------------------------------------------


class Target(Protocol):
    """What takes files by name."""

    def directory(self, name: str) -> None:
        """Make a directory."""
        ...

    def file(self, name: str, data: bytes) -> None:
        """Write a small file."""
        ...

    def link(self, name: str, to: str) -> None:
        """Make a symbolic link."""
        ...

    def stream(self, name: str, size: int, write_to: Callable[[Any], int]) -> None:
        """Write a file of size bytes by write_to(a descriptor or binary file)."""
        ...


class TarTarget:
    """A tar that is written to a descriptor or a binary file. Owners, modes and times are always the same."""

    def __init__(self, out: Any) -> None:
        """out   a descriptor, or a file with write(bytes)"""
        self._out = out
        self.written = 0

    def _write(self, data: bytes) -> None:
        if isinstance(self._out, int):
            _files.write_all(self._out, data)
        else:
            write_whole(self._out, data)
        self.written += len(data)

    def _header(self, name: str, kind: bytes, size: int, mode: int, to: str = "") -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.size, entry.mode, entry.linkname = kind, size, mode, to
        self._write(entry.tobuf(tarfile.PAX_FORMAT))

    def directory(self, name: str) -> None:
        """Write a directory's entry."""
        self._header(name + "/", tarfile.DIRTYPE, 0, 0o755)

    def file(self, name: str, data: bytes) -> None:
        """Write a file's entry with its bytes."""
        self._header(name, tarfile.REGTYPE, len(data), 0o644)
        self._write(data + bytes(-len(data) % 512))

    def link(self, name: str, to: str) -> None:
        """Write a link's entry."""
        self._header(name, tarfile.SYMTYPE, 0, 0o777, to)

    def stream(self, name: str, size: int, write_to: Callable[[Any], int]) -> None:
        """Write a file's entry, its bytes by write_to."""
        self._header(name, tarfile.REGTYPE, size, 0o644)
        got = write_to(self._out)
        if got != size:
            raise ImageError(f"the layer has {got} bytes, not {size}")
        self.written += got
        self._write(bytes(-size % 512))

    def end(self) -> None:
        """Write the end mark."""
        self._write(bytes(1024))


class DirectoryTarget:
    """A directory that is made."""

    def __init__(self, path: str) -> None:
        """path   made here, or empty"""
        self._path = path
        self.written = 0

    def directory(self, name: str) -> None:
        """Make one below."""
        os.mkdir(os.path.join(self._path, name), 0o755)

    def file(self, name: str, data: bytes) -> None:
        """Write one below."""
        with open(os.path.join(self._path, name), "xb") as out:
            out.write(data)
        self.written += len(data)

    def link(self, name: str, to: str) -> None:
        """Make one below."""
        os.symlink(to, os.path.join(self._path, name))

    def stream(self, name: str, size: int, write_to: Callable[[Any], int]) -> None:
        """Write one below."""
        with open(os.path.join(self._path, name), "xb", buffering=0) as out:
            self.written += write_to(out)


# ---- layers ------------------------------------------------------------------------------------


class Layers:
    """The layers of the images that leave, each once; by DiffID, whatever they stand on."""

    def __init__(self, images: Sequence[Outgoing], open_layer: OpenLayer, spool: str | None) -> None:
        """open_layer   gives a layer's tar.  spool: a directory for files without a name, or None"""
        self.chains: dict[DiffID, ChainID] = {}
        for out in images:
            for diff_id, chain in zip(out.image.diff_ids, out.image.layers, strict=True):
                self.chains.setdefault(diff_id, chain)
        self._open, self._spool = open_layer, spool
        self.sizes: dict[DiffID, int] = {}
        for diff_id, chain in self.chains.items():
            with open_layer(chain) as stream:
                self.sizes[diff_id] = stream.size
        self.blobs: dict[DiffID, _Blob] = {d: _Blob(Digest(d), size) for d, size in self.sizes.items()}
        self._packed: dict[DiffID, IO[bytes]] = {}
        self._stack = contextlib.ExitStack()

    def compress(self, how: str, tell: Callable[[int], None]) -> None:
        """Pack all of them, several at once, into files without a name. The same bytes each time.

        how    "gzip" or "zstd"
        tell   called here, in the calling thread, with the bytes packed since; what it raises ends the packing
        """
        for diff_id in self.chains:
            self._packed[diff_id] = self._stack.enter_context(tempfile.TemporaryFile(dir=self._spool))  # noqa: SIM115
        packed: queue.SimpleQueue[int] = queue.SimpleQueue()
        stop = threading.Event()

        def ended(future: concurrent.futures.Future[_Blob]) -> None:
            if future.exception():
                stop.set()                # the others work for nothing
            packed.put(0)

        with concurrent.futures.ThreadPoolExecutor(_WORKERS, "layerstore-pack") as pool:
            running = {
                pool.submit(self._pack, how, diff_id, self._packed[diff_id], packed.put, stop): diff_id
                for diff_id in self.chains
            }
            try:
                for future in running:
                    future.add_done_callback(ended)
                while not all(future.done() for future in running) or not packed.empty():
                    tell(packed.get())
            except BaseException:
                stop.set()
                raise
            for future, diff_id in running.items():
                self.blobs[diff_id] = future.result()

    def _pack(
        self, how: str, diff_id: DiffID, packed: IO[bytes], count: Callable[[int], None], stop: threading.Event
    ) -> _Blob:  # fmt: skip
        """In a thread: pack one."""
        hashed, size, end = hashlib.sha256(), 0, False
        packer = Packer(how)
        with self._open(self.chains[diff_id]) as stream:
            while not end and not stop.is_set():
                block = stream.read(COPY_BLOCK)
                end = not block
                out = packer.flush() if end else packer.compress(block)
                hashed.update(out)
                with naming(self._spool or tempfile.gettempdir()):
                    packed.write(out)
                size += len(out)
                count(len(block))
        with naming(self._spool or tempfile.gettempdir()):
            packed.flush()
        return _Blob(Digest(f"sha256:{hashed.hexdigest()}"), size)

    def write(self, diff_id: DiffID, name: str, target: Target, tell: Callable[[int], None]) -> None:
        """Write one into the archive."""
        packed = self._packed.get(diff_id)

        def write_to(out: Any) -> int:
            if packed is None:
                with self._open(self.chains[diff_id]) as stream:
                    return _copy(stream, out, tell)
            packed.seek(0)
            return _copy_file(packed, out)

        target.stream(name, self.blobs[diff_id].size, write_to)

    def close(self) -> None:
        """Forget what was packed."""
        self._stack.close()


def _copy(stream: TarStream, out: Any, tell: Callable[[int], None]) -> int:
    total, end = 0, False
    fd = out if isinstance(out, int) else _descriptor_of(out)
    while not end:
        if fd >= 0:
            end, written = stream.copy_some(fd)
        else:
            block = stream.read(COPY_BLOCK)
            write_whole(out, block)
            end, written = not block, len(block)
        total += written
        tell(written)
    return total


def _descriptor_of(out: Any) -> int:
    if isinstance(out, (io.FileIO, io.BufferedWriter)):
        out.flush()
        return out.fileno()
    return -1


def _copy_file(packed: IO[bytes], out: Any) -> int:
    total = 0
    while block := packed.read(COPY_BLOCK):
        if isinstance(out, int):
            _files.write_all(out, block)
        else:
            write_whole(out, block)
        total += len(block)
    return total


# ---- the formats -------------------------------------------------------------------------------


def _manifest(out: Outgoing, layers: Layers, media_type: str) -> bytes:
    return encode({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": out.image.id, "size": len(out.content)},
        "layers": [
            {"mediaType": media_type, "digest": layers.blobs[d].digest, "size": layers.blobs[d].size}
            for d in out.image.diff_ids
        ],
    })  # fmt: skip


def write_layout(
    images: Sequence[Outgoing], layers: Layers, target: Target, tell: Callable[[int], None], *,
    compression: str | None, with_docker: bool,
) -> None:  # fmt: skip
    """Write an OCI layout; with_docker: also the documents that docker load reads."""
    media_type = OCI_LAYER + (f"+{compression}" if compression else "")
    documents: dict[Digest, bytes] = {}
    index = []
    for out in images:
        manifest = _manifest(out, layers, media_type)
        documents[out.image.id] = out.content
        documents[_digest(manifest)] = manifest
        entry: dict[str, Any] = {"mediaType": OCI_MANIFEST, "digest": _digest(manifest), "size": len(manifest)}
        if out.image.architecture:
            platform = {"architecture": out.image.architecture, "os": out.image.os, "variant": out.image.variant}
            entry["platform"] = {key: value for key, value in platform.items() if value}
        for name in out.references or ("",):
            index.append(entry | {"annotations": _annotations(name) if name else {OWN_IMAGE: out.image.id}})
    target.file("oci-layout", encode({"imageLayoutVersion": "1.0.0"}))
    target.file("index.json", encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": index}))
    if with_docker:
        entries = []
        for out in images:
            paths = [_blob_path(layers.blobs[d].digest) for d in out.image.diff_ids]
            entries.append(_docker_entry(out, _blob_path(out.image.id), paths, images))
        target.file("manifest.json", encode(entries))
        target.file("repositories", encode(_repositories(images, lambda out: out.image.diff_ids[-1].encoded)))
    target.directory("blobs")
    target.directory("blobs/sha256")
    for digest in sorted(documents):
        target.file(_blob_path(digest), documents[digest])
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
    return {CONTAINERD_NAME: f"{reference.full_name}:{reference.tag}", REF_NAME: reference.tag}


def _docker_entry(out: Outgoing, config: str, paths: list[str], images: Sequence[Outgoing]) -> dict[str, Any]:
    """What manifest.json says of an image."""
    entry: dict[str, Any] = {"Config": config, "RepoTags": list(out.references) or None, "Layers": paths or None}
    if out.image.parent in {other.image.id for other in images}:
        entry["Parent"] = out.image.parent
    return entry


def _repositories(images: Sequence[Outgoing], top_of: Callable[[Outgoing], str]) -> dict[str, dict[str, str]]:
    """The oldest document: which layer a name means."""
    found: dict[str, dict[str, str]] = {}
    for out in images:
        for name in out.references if out.image.diff_ids else ():
            reference = references.parse(name)
            found.setdefault(reference.name, {})[reference.tag] = top_of(out)
    return dict(sorted(found.items()))


def write_v1(images: Sequence[Outgoing], layers: Layers, target: Target, tell: Callable[[int], None]) -> None:
    """Write what docker save wrote until 25: a directory a layer, a link where its tar is in another one already."""
    tops: dict[Digest, str] = {}
    places: dict[DiffID, str] = {}
    made: set[str] = set()
    for out in images:
        id = ""
        for diff_id, chain in zip(out.image.diff_ids, out.image.layers, strict=True):
            document = _v1_document(out, id, chain)
            id = hashlib.sha256(encode([chain, document])).hexdigest()
            if id in made:
                continue
            made.add(id)
            target.directory(id)
            target.file(f"{id}/VERSION", b"1.0")
            target.file(f"{id}/json", encode({"id": id, **document}))
            place = places.setdefault(diff_id, id)
            if place == id:
                layers.write(diff_id, f"{id}/layer.tar", target, tell)
            else:
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
    """What the oldest archives say of a layer; the uppermost has the config."""
    document: dict[str, Any] = {"created": _NO_TIME, "os": out.image.os}
    if chain == out.image.top:
        document |= {k: v for k, v in out.image.config.items() if k not in ("rootfs", "history", "id", "parent")}
    return document | ({"parent": parent} if parent else {})


def save(
    images: Sequence[Outgoing], out: Any, format: str, compression: str | None, open_layer: OpenLayer,
    spool: str | None, progress: Any,
) -> int:  # fmt: skip
    """Write images. out: a descriptor, a binary file, or (oci-dir) the path of an empty directory. Returns bytes."""
    layers = Layers(images, open_layer, spool)
    done = 0
    teller = Teller(progress, sum(layers.sizes.values()))

    def tell(n: int) -> None:
        nonlocal done
        done += n
        teller.tell(done)

    target = DirectoryTarget(out) if format == "oci-dir" else TarTarget(out)
    try:
        if compression:
            layers.compress(compression, tell)
        if format == "docker-v1":
            write_v1(images, layers, target, tell)
        else:
            write_layout(images, layers, target, tell, compression=compression, with_docker=format == "docker")
    finally:
        layers.close()
    if isinstance(target, TarTarget):
        target.end()
    teller.tell(done, end=True)
    return target.written


# ---- paths -------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_directory(path: str) -> Iterator[str]:
    """A directory that is at path, and on the disk, once the block ended well. Raises ImageError: it is not empty."""
    if os.path.isdir(path) and os.listdir(path):
        raise ImageError(f"{readable(path)} is not empty")
    path = os.path.realpath(path)
    beside = f"{path}.tmp-{random_number()}"
    os.mkdir(beside, 0o777)
    try:
        yield beside
        sync_tree(beside)
        os.rename(beside, path)
        sync_directory(os.path.dirname(path))
    except BaseException:
        remove_directory(beside)
        raise
