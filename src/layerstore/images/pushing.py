"""Images.push(): an image's layers, its config and its manifest go to a registry; what is there already is not sent.

The calling thread looks on and tells progress; other threads ask the registry. A layer is read, compressed, hashed and
sent at the same time, and lies in no file on the way. The manifest comes last, so that it names only what is there.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from layerstore.disk.locks import Scope
from layerstore.documents import references
from layerstore.documents.manifests import OCI_CONFIG, OCI_MANIFEST, encode_manifest
from layerstore.documents.references import Reference
from layerstore.errors import (
    ImageDoesNotExistError,
    ImageError,
    LayerDoesNotExistError,
    LayerStoreError,
    RegistryError,
)
from layerstore.ids import DiffID, Digest, sha256_of
from layerstore.images.image import Image, Stored
from layerstore.images.kept import Kept, index_tag, listed_in, read_kept
from layerstore.images.known import Candidate, candidates, oci_type
from layerstore.images.placing import Crew, Placed, Placing, Sending
from layerstore.images.remote import Repository, opened
from layerstore.layer import Layer
from layerstore.layerdb.distribution import Distribution
from layerstore.store import Store
from layerstore.streams.progress import Teller
from layerstore.values import Progress

if TYPE_CHECKING:
    from layerstore.registry.registry import Registry

log = logging.getLogger("layerstore")

COMPRESSIONS = ("gzip", "zstd", None)


class Pushed(NamedTuple):
    """What a push did.

    reference   the name that the image has there, as docker shows it
    digest      of the manifest
    size        its bytes
    media_type  what it is
    image       the id
    sent        bytes of blobs that went: of layers, and of the config
    mounted     blobs that the registry had in another repository
    present     blobs that were there
    """

    reference: str
    digest: Digest
    size: int
    media_type: str
    image: Digest
    sent: int
    mounted: int
    present: int


def target_of(image: Image, called: str | Image, reference: str | None) -> Reference:
    """Return the name that an image is pushed to.

    called      what the image was called by
    reference   the name that was given; None: that it was called by
    Raises      ImageError   it is none, or the image has no name or several
    """
    if reference is not None:
        target = references.parse(reference).tagged()
    elif isinstance(called, Image):
        if len(image.references) != 1:
            names = ", ".join(image.references) or "none"
            raise ImageError(f"give the reference to push the image to: it has these names: {names}", name=image.id)
        target = references.parse(image.references[0])
    else:
        found = references.parse_or_none(called)
        if found is None or str(found.tagged()) not in (*image.references, *image.digests):
            raise ImageError("give the reference to push the image to: an id is none", name=called)
        target = found.tagged()
    if target.digest:
        raise ImageError("an image is pushed to a tag, and not to a digest", name=str(target))
    if target.name == "sha256":
        raise ImageError("refusing to push to a name that is that of a digest algorithm", name=str(target))
    return target


def push(
    images: Stored, called: str | Image, reference: str | None = None, *, registry: Registry | None = None,
    compression: str | None = "gzip", force_compression: bool = False, progress: Progress | None = None,
) -> Pushed:  # fmt: skip
    """Do what Images.push() does, and say what went."""
    store = images.store
    store.check_writable()
    if compression not in COMPRESSIONS:
        raise ImageError(f"the compression of layers is 'gzip', 'zstd' or None, not {compression!r}")
    image = images.get(called)
    target = target_of(image, called, reference)
    domain, path = references.split_domain(target.name)
    distribution = Distribution(store.images.root, store.durability())
    with contextlib.ExitStack() as stack:
        content, layers = _held(store, image, stack)
        remote = stack.enter_context(opened(domain, registry))
        call = stack.enter_context(remote.started())
        repository = remote.repository(call, path)
        sending = {}
        for diff_id, layer in layers.items():
            known = candidates(layer.descriptor, distribution.known(diff_id), domain, path)
            sending[diff_id] = Sending(layer, known, stack.enter_context(repository.joined(diff_id)))
        placing = Placing(call, repository, compression, force=force_compression)
        work = _Push(repository, image, content, sending, placing, Teller(progress, 0))
        kept = None if force_compression else read_kept(store.images, image, content)
        pid = os.getpid()
        try:
            threads = max(1, min(remote.connections, len(sending)))
            with Scope(lambda: Crew(call, threads), Crew.close) as crew:
                pushed = work.run(crew, target, kept)
        except Exception:
            if os.getpid() == pid and (there := work.there()):
                with contextlib.suppress(LayerStoreError, OSError):
                    _note(store, distribution, there, target)
            raise
        finally:
            if os.getpid() == pid:              # a child that was forked meanwhile leaves all to its parent
                repository.end([each.offer for each in sending.values() if each.offer])
        _note(store, distribution, work.there(), target, pushed)
        return pushed


def _held(store: Store, image: Image, stack: contextlib.ExitStack) -> tuple[bytes, dict[DiffID, Layer]]:
    """Return the config and the layers of an image, each once, base first; the stack holds them.

    Raises  ImageDoesNotExistError   it was removed meanwhile
    """
    try:
        content = store.images.content(image.id)
        layers = [stack.enter_context(store.using(chain)) for chain in image.layers]
    except (FileNotFoundError, LayerDoesNotExistError):
        if store.images.has(image.id):
            raise
        raise ImageDoesNotExistError(name=image.id) from None
    return content, {layer.diff_id: layer for layer in layers}


def _note(
    store: Store, distribution: Distribution, blobs: Iterable[tuple[DiffID, Placed]], target: Reference,
    pushed: Pushed | None = None,
) -> None:  # fmt: skip
    """Note which blobs are there, for the next push, and what the image is called by its digest; in one step."""
    db = store.images
    with db.exclusive(store.check_writable):
        distribution.sweep()
        for diff_id, blob in blobs:
            distribution.note(diff_id, blob.digest, target.full_name, blob.media_type, blob.size)
        if pushed and db.has(pushed.image):            # else it was removed meanwhile
            names = db.repositories()
            name = str(Reference(target.name, "", pushed.digest))
            if names.get(target.name, {}).get(name) != pushed.image:
                names.setdefault(target.name, {})[name] = pushed.image
                db.write_repositories(names)


class _Push:
    """One image on its way to one repository."""

    def __init__(
        self, repository: Repository, image: Image, content: bytes, sending: dict[DiffID, Sending], placing: Placing,
        teller: Teller,
    ) -> None:  # fmt: skip
        """content   the config.  sending: its layers, each once, base first"""
        self._to, self._image, self._content = repository, image, content
        self._sending, self._placing, self._teller = sending, placing, teller
        self._kept: list[tuple[DiffID, Placed]] = []       # blobs of the kept manifest that are there
        self._left: list[Sending] = []                     # what is compressed
        self._before = 0                                   # bytes that were compressed, and the registry lost them

    def there(self) -> list[tuple[DiffID, Placed]]:
        """Return the blobs that the registry has, as far as they were looked for."""
        placed = [(diff_id, each.placed) for diff_id, each in self._sending.items() if each.placed]
        return list(dict.fromkeys([*self._kept, *placed]))

    def run(self, crew: Crew, target: Reference, kept: Kept | None) -> Pushed:
        """Send what is not there, and the manifest.

        kept   the manifest that the image was pulled with
        """
        if kept and not self._find_kept(crew, kept):
            kept = None
        try:
            if not kept:
                return self._send(crew, target)
            self._tell(end=True)
            config = self._send_config(kept.manifest.config.digest)
            is_listed = self._to.put_manifest(target.tag, kept.media_type, kept.digest, kept.data)
        except RegistryError as err:
            if err.code != "MANIFEST_BLOB_UNKNOWN":
                raise
            log.warning("Sending all blobs again, as the registry lacks one that it had: %s", err, extra={"error": err})
            self._forget()
            return self._send(crew, target)
        if isinstance(kept.subject, Digest) and not is_listed:
            self._list_beside(kept, kept.subject)
        return self._told(target, kept.data, kept.media_type, [*(blob for _, blob in self._kept), config])

    def _send(self, crew: Crew, target: Reference) -> Pushed:
        """Send what is not there, and a manifest of ours."""
        placed = self._place(crew)
        self._tell(end=True)                # what progress raises comes before the manifest
        config = self._send_config(self._image.id)
        layers = [(blob.media_type, blob.digest, blob.size) for blob in map(placed.__getitem__, self._image.diff_ids)]
        data = encode_manifest(self._image.id, len(self._content), layers)
        self._to.put_manifest(target.tag, OCI_MANIFEST, sha256_of(data), data)
        return self._told(target, data, OCI_MANIFEST, [*placed.values(), config])

    def _told(self, target: Reference, data: bytes, media_type: str, blobs: list[Placed]) -> Pushed:
        numbers = collections.Counter(blob.how for blob in blobs)
        sent = sum(blob.size for blob in blobs if blob.how == "sent")
        digest = sha256_of(data)
        return Pushed(
            str(target), digest, len(data), media_type, self._image.id, sent, numbers["mounted"], numbers["present"]
        )

    # ---- layers ----

    def _find_kept(self, crew: Crew, kept: Kept) -> bool:
        """Return True if every layer of the kept manifest is there, or was mounted."""
        wanted: dict[DiffID, dict[Digest, Candidate]] = {}
        for diff_id, blob in zip(self._image.diff_ids, kept.manifest.layers, strict=True):
            known = [each for each in self._sending[diff_id].known if each.digest == blob.digest]
            sources = known[0].sources if known else ()
            found = Candidate(blob.digest, blob.size, oci_type(blob.media_type), sources)
            wanted.setdefault(diff_id, {})[blob.digest] = found

        def look(diff_id: DiffID) -> None:
            layer = self._sending[diff_id]
            for digest, each in wanted[diff_id].items():
                layer.tried.add(digest)
                if placed := self._placing.found(layer, [each]):
                    self._kept.append((diff_id, placed))
                    layer.placed = layer.placed or placed

        crew.each(look, wanted, lambda: None)
        return len(self._kept) == sum(map(len, wanted.values()))

    def _place(self, crew: Crew) -> dict[DiffID, Placed]:
        """Bring each layer there. Returns where it is."""
        layers = self._sending.values()
        crew.each(self._placing.find, [layer for layer in layers if not layer.placed], lambda: None)
        self._left = [layer for layer in layers if not layer.placed]
        for layer in self._left:
            with layer.layer.tar_stream() as stream:
                layer.size, layer.done = stream.size, 0
        self._teller.total = self._before + sum(layer.size for layer in self._left)
        crew.each(self._placing.send, self._left, self._tell)
        return {diff_id: layer.placed for diff_id, layer in self._sending.items() if layer.placed}

    def _forget(self) -> None:
        """Begin anew: the registry said that it has what it has not."""
        self._placing.trusting = False
        self._before = self._teller.total or 0
        self._kept, self._left = [], []
        for layer in self._sending.values():
            layer.placed = None

    def _tell(self, *, end: bool = False) -> None:
        self._teller.tell(self._before + sum(layer.done for layer in self._left), end=end)

    # ---- documents ----

    def _send_config(self, digest: Digest) -> Placed:
        """Bring the config there. digest: of its bytes, as the manifest has it."""
        if self._placing.trusting and self._to.size_of(digest) == len(self._content):
            return Placed(digest, len(self._content), OCI_CONFIG, "present")
        self._to.send_whole(self._content, digest)
        return Placed(digest, len(self._content), OCI_CONFIG, "sent")

    def _list_beside(self, kept: Kept, subject: Digest) -> None:
        """List the manifest in the index of what refers to its subject, which this registry does not keep by itself."""
        tag = index_tag(subject)
        index = listed_in(self._to.index(tag), kept, f"the index {tag}")
        if index:
            media_type, data = index
            self._to.put_manifest(tag, media_type, sha256_of(data), data)
