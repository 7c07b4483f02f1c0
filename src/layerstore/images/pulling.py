"""Images.pull(): from a name to an image whose layers are in the store, and to what is noted of where they came from.

The calling thread looks on and tells progress; other threads ask the registry, and unpack while the bytes come. What
stops the calling thread stops the call, so that no thread waits for the network any longer.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from layerstore.disk.locks import Ending, Scope
from layerstore.documents import references
from layerstore.documents.configs import Config
from layerstore.documents.manifests import Blob, Manifest, checked, parse_manifest_or_index
from layerstore.documents.platforms import Platform, host_platform, parse_platform
from layerstore.errors import ImageError, LayerStoreError, RegistryError
from layerstore.ids import ChainID, DiffID, Digest, chain_on
from layerstore.images.gather import Crew, Gatherer, Job, Stopped
from layerstore.images.image import Image, Stored
from layerstore.images.layouts import Layout, Wanted
from layerstore.images.planned import Budget, Planned, PlannedLayer
from layerstore.images.publishing import check_name, publish
from layerstore.images.remote import Incoming, Remote, opened
from layerstore.layer import Layer
from layerstore.layerdb.distribution import Distribution
from layerstore.layerdb.imagedb import DOCUMENT_LIMIT, ImageDB
from layerstore.store import Unpacked
from layerstore.streams.sources import refuse_nothing
from layerstore.values import Descriptor, Progress

if TYPE_CHECKING:
    from layerstore.registry.calls import Call
    from layerstore.registry.registry import Registry

log = logging.getLogger("layerstore")

T = TypeVar("T")
# How the name of a manifest begins, as against that of a blob.
_MANIFEST = "manifests/"


class Request(NamedTuple):
    """What is to be pulled: a name, checked, and for which platform; None: what a single manifest is for."""

    reference: references.Reference
    domain: str
    path: str
    platform: Platform | None

    @property
    def wanted(self) -> str:
        """The tag, or the digest."""
        return self.reference.digest or self.reference.tag


def parse_request(reference: str, platform: str | None) -> Request:
    """Read the arguments of a pull. Raises ImageError."""
    called = references.parse(reference).tagged()
    check_name(called)
    if platform == "all":
        raise ImageError("one image is pulled, for one platform: 'all' is none")
    return Request(
        called, *references.split_domain(called.name), parse_platform(platform) if platform is not None else None
    )


class Pulled(NamedTuple):
    """What a pull brought.

    image     as it is stored now
    digest    of what its name meant: of the index, if it was one
    fetched   bytes of layers that came from the registry
    present   layers that were here
    """

    image: Image
    digest: Digest
    fetched: int
    present: int


def pull(
    images: Stored, reference: str, *, platform: str | None = None, registry: Registry | None = None,
    progress: Progress | None = None, durability: str | None = None, keep: bool = False,
) -> Pulled:  # fmt: skip
    """Do what Images.pull() does, and say what came."""
    store = images.store
    store.check_writable()
    level = store.durability(durability)
    request = parse_request(reference, platform)
    gatherer = Gatherer(store, level)
    db, notes = ImageDB(store.images.root, level), Distribution(store.images.root, level)

    def note_kept(found: Found) -> None:
        with store.images.exclusive(store.check_writable):
            note(notes, found, request)

    def note_all() -> None:
        if note(notes, found, request):
            db.keep_manifest(found.config.id, found.manifest)

    def take_back() -> None:
        notes.take_back()
        if db.kept_manifest(found.config.id) != kept:
            db.keep_manifest(found.config.id, kept)

    with opened(request.domain, registry) as remote, Ending(gatherer.close):
        found = gather(gatherer, remote, request, db, progress, note_kept if keep else None)
        try:
            with store.images.exclusive(store.check_writable):
                kept = db.kept_manifest(found.config.id)
                publish(db, [found.planned], [found.config.data], note_all, take_back)
                image = images.get(found.config.id)
        except BaseException:
            if keep:
                _leave(gatherer, found, note_kept)
            raise
    return Pulled(image, found.digest, found.fetched_size, found.present)


class Found(NamedTuple):
    """An image whose layers are in the store, and held, before anything names it.

    manifest  its bytes
    digest    of what its name means
    blobs     of its layers, base first
    fetched   those that came from the registry, each compared with its DiffID
    """

    planned: Planned
    config: Config
    manifest: bytes
    digest: Digest
    blobs: Sequence[Blob]
    fetched: frozenset[Digest]

    @property
    def fetched_size(self) -> int:
        """The bytes of what was fetched."""
        return sum({blob.digest: blob.size for blob in self.blobs if blob.digest in self.fetched}.values())

    @property
    def present(self) -> int:
        """The number of layers that were here."""
        return sum(blob.digest not in self.fetched for blob in self.blobs)


def gather(
    gatherer: Gatherer, remote: Remote, request: Request, db: ImageDB, progress: Progress | None,
    keep: Callable[[Found], None] | None = None,
) -> Found:  # fmt: skip
    """Bring all layers of an image into the store. Raises as Images.pull() does.

    keep   called where this fails, with what came whole: the lowest layers of the image, which stay
    """
    with remote.started() as call:
        source = _Source(remote, call, request, db)
        with Scope(lambda: FetchingCrew(gatherer, source, progress), FetchingCrew.close) as crew:
            digest, planned, data = crew.done(source.find)
            blobs = _blobs_of(data, planned)
            config = planned.config
            assert config
            planned = planned._replace(layers=_described(planned, blobs), references=_names(request, digest))
            missing = gatherer.missing([planned])
            crew.begin(missing, blobs)
            try:
                gatherer.put([planned], crew.job_of)
                crew.end()
            except BaseException:
                if keep:
                    crew.close()
                    _leave(gatherer, Found(planned, config, data, digest, blobs, frozenset(crew.fetched)), keep)
                raise
    return Found(planned, config, data, digest, blobs, frozenset(crew.fetched))


def _names(request: Request, digest: Digest) -> list[str]:
    """Return what the image is called: as docker has it, its tag, and the digest of what the tag means."""
    called = request.reference
    by_digest = str(references.Reference(called.name, "", digest))
    return [by_digest] if called.digest else [str(called), by_digest]


def note(notes: Distribution, found: Found, request: Request) -> bool:
    """Note which blobs the layers came as, as far as blobs and DiffIDs were compared here. True: all were.

    Under the lock of the images. Raises OSError.
    """
    notes.sweep()
    compared = True
    for blob, layer in zip(found.blobs, found.planned.layers, strict=False):
        diff_id = DiffID(layer.diff_id)
        if blob.digest in found.fetched or notes.diff_id_of(blob.digest) == diff_id:
            notes.note(diff_id, blob.digest, request.reference.full_name, blob.media_type, blob.size)
        else:
            compared = False
    return compared


# ---- which image ---------------------------------------------------------------------------------


def _place(digest: Digest, *, manifest: bool = False) -> str:
    """Return the name of a document, and of a layer's blob."""
    return f"{_MANIFEST}{digest}" if manifest else digest


class _Source:
    """The documents of one repository, each fetched once, and none that is here."""

    def __init__(self, remote: Remote, call: Call, request: Request, db: ImageDB) -> None:
        self.remote, self.call, self.path = remote, call, request.path
        self._request, self._db = request, db
        self.where = str(request.reference)
        self._budget = Budget(self.where)
        self._seen: dict[Digest, bytes] = {}

    def find(self) -> tuple[Digest, Planned, bytes]:
        """Return the digest of what the name means, the image for the platform, and its manifest."""
        request = self._request
        top, data = self.remote.manifest(self.call, self.path, request.wanted)
        digest = Digest(top.digest)
        self._take(_place(digest, manifest=True), digest, data)
        single = isinstance(parse_manifest_or_index(data, top.media_type, f"the manifest {digest}"), Manifest)
        platform = request.platform or (None if single else host_platform())
        wanted = Wanted(platform, request.platform is not None, complete=True, stem="", named=True, where=self.where)
        layout = Layout(self, wanted, _place)
        planned = layout.images([Blob(digest, top.size, top.media_type, None, {})])[0]
        for text in layout.notes:
            log.debug("Images of %s: %s", self.where, text)
        assert planned.manifest
        return digest, planned, self._seen[planned.manifest]

    def read(self, name: str, blob: Blob) -> bytes:
        """Return a document by its descriptor. Raises RegistryError, ImageError."""
        data = self._seen.get(blob.digest)
        if data is None:
            data = self._manifest(blob) if name.startswith(_MANIFEST) else self._config(blob)
            self._take(name, blob.digest, data)
        return checked(blob, data)

    def _take(self, name: str, digest: Digest, data: bytes) -> None:
        self._budget.take(name, data)
        self._seen[digest] = data

    def _manifest(self, blob: Blob) -> bytes:
        kept = self._db.find_manifest(blob.digest, blob.size)
        return kept or self.remote.manifest(self.call, self.path, blob.digest, blob.size)[1]

    def _config(self, blob: Blob) -> bytes:
        if blob.size > DOCUMENT_LIMIT:
            raise ImageError(f"the config {blob.digest} has {blob.size} bytes, a document has at most {DOCUMENT_LIMIT}")
        with contextlib.suppress(OSError, LayerStoreError):      # it is not here, or damaged
            return self._db.content(blob.digest)
        return self.remote.blob(self.call, self.path, _descriptor(blob)).read_all()


def _descriptor(blob: Blob) -> Descriptor:
    return Descriptor(blob.media_type, blob.digest, blob.size, tuple(blob.urls), blob.annotations or None)


def _blobs_of(data: bytes, planned: Planned) -> list[Blob]:
    """Return what the manifest of an image, which was read before, says of its layers."""
    parsed = parse_manifest_or_index(data, "", f"the manifest {planned.manifest}")
    assert isinstance(parsed, Manifest)
    return parsed.layers


def _described(planned: Planned, blobs: Sequence[Blob]) -> list[PlannedLayer]:
    """Return the layers, each with what is stored beside it."""
    return [
        layer._replace(descriptor=_descriptor(blob)._replace(urls=()))
        for layer, blob in zip(planned.layers, blobs, strict=True)
    ]


# ---- its layers ----------------------------------------------------------------------------------


class FetchingCrew(Crew):
    """Threads that fetch the blobs of layers, and unpack each while it comes."""

    every = 0.05

    def __init__(self, gatherer: Gatherer, source: _Source, progress: Progress | None) -> None:
        super().__init__(gatherer, progress)
        self._source, self._call = source, source.call
        self._coming: dict[str, Incoming] = {}
        self._alike: dict[DiffID, Layer] = {}
        self._blobs: dict[str, Blob] = {}
        self.fetched: set[Digest] = set()

    def close(self) -> None:
        """Stop the threads, and wait until they end. Can be called again."""
        if self.is_ours:
            self._call.stop(Stopped())
        super().close()

    def done(self, work: Callable[[], T]) -> T:
        """Return what work returns, done in a thread. Raises what it raises, and what stopped the call."""
        found: list[T] = []
        self.do("", lambda: found.append(work()))
        self.wait_for("", self._call.check)
        return found[0]

    def begin(self, wanted: dict[str, PlannedLayer], blobs: Sequence[Blob]) -> None:
        """Start on these layers. What another parent has in the store is copied."""
        store = self._gatherer.store
        if wanted:
            self._blobs = {_place(blob.digest): blob for blob in blobs}
            self._alike = {layer.diff_id: layer for layer in store.map().values()}
        total = sum(layer.size for layer in wanted.values() if layer.diff_id not in self._alike)
        self.start(wanted, total, self._source.remote.connections, self._run)

    def named(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Add nothing: the thread that failed named the layer."""
        return contextlib.nullcontext()

    def _tell(self, *, end: bool = False) -> None:
        self._call.check()
        self._teller.tell(sum(coming.taken for coming in [*self._coming.values()]), end=end)

    def end(self) -> None:
        """Report the end to progress: also where another pull stored a layer that was still coming here."""
        self._call.check()
        self._teller.tell(self._teller.total or 0, end=True)

    # ---- in the threads ----

    def _run(self, layer: PlannedLayer, job: Job) -> None:
        try:
            if not self._copy(layer, job):
                self._fetch(layer, job)
        except BaseException as err:
            self._stop(err, layer)
            raise

    def _stop(self, err: BaseException, layer: PlannedLayer) -> None:
        """Stop the others, which would be of no use."""
        try:
            self._call.check()
        except BaseException:
            return                             # this one was stopped
        if isinstance(err, LayerStoreError) and layer.name not in str(err):       # of the tar: the core knows no blob
            err.args = (f"{err} (in the blob {layer.name})",)
        if isinstance(err, (LayerStoreError, OSError)):
            err.add_note(f"in the layer {layer.name} of {self._source.where}")
        self._call.stop(err)

    def _copy(self, layer: PlannedLayer, job: Job) -> bool:
        """Unpack the tar of a layer with this DiffID that is in the store; False: there is none, or it is damaged."""
        stored = self._alike.get(DiffID(layer.diff_id))
        if stored is None:
            return False
        store = self._gatherer.store
        try:
            with store.using(stored.chain_id) as held, held.tar_stream() as stream:
                job.unpacked = store.unpack_ahead(stream, progress=lambda _: self._call.check())
        except (LayerStoreError, OSError) as err:
            self._call.check()
            text = "The layer %s is fetched, as the one in the store cannot be copied: %s"
            log.warning(text, layer.diff_id, err, extra={"diff_id": layer.diff_id, "error": err})
            self._teller.total = (self._teller.total or 0) + layer.size
            return False
        job.size, job.digest = layer.size, layer.digest
        return True

    def _fetch(self, layer: PlannedLayer, job: Job) -> None:
        assert layer.digest
        blob = _descriptor(self._blobs[layer.name])
        coming = self._coming[layer.name] = self._source.remote.blob(self._call, self._source.path, blob)
        while job.unpacked is None:
            try:
                job.unpacked = self._unpacked(coming, layer.digest)
            except RegistryError:
                raise
            except LayerStoreError as err:
                self._call.check()
                if not coming.begin_anew(err):
                    raise
        job.size, job.digest = layer.size, layer.digest
        job.check(layer)
        self.fetched.add(layer.digest)

    def _unpacked(self, coming: Incoming, digest: Digest) -> Unpacked:
        store = self._gatherer.store
        unpacked = store.unpack_ahead(coming, digest=digest.algorithm)
        try:
            if unpacked.source_digest != digest:
                raise ImageError(f"the blob {digest} is damaged: its digest is {unpacked.source_digest}")
            refuse_nothing(unpacked.received)
        except BaseException:
            store.discard(unpacked)
            raise
        return unpacked


def _leave(gatherer: Gatherer, found: Found, keep: Callable[[Found], None]) -> None:
    """Let the layers that came whole stay without a reference, with all below them. Raise no Exception.

    found   the image that did not come
    keep    called with it, and these layers alone
    """
    whole: list[PlannedLayer] = []
    parent: ChainID | str = ""
    for layer in found.planned.layers:
        parent = chain_on(parent, layer.diff_id)
        job = gatherer.jobs.get(layer.name)
        came = job is not None and (job.unpacked or job.layer) and job.diff_id == layer.diff_id
        if not came and not gatherer.has(parent):
            break
        whole.append(layer)
    planned = found.planned._replace(layers=whole)
    try:
        gatherer.put([planned], gatherer.jobs.__getitem__)
        keep(found._replace(planned=planned))
    except (LayerStoreError, OSError) as err:
        log.warning("Not all layers of %s that came whole are kept: %s", planned.references, err, extra={"error": err})
    gatherer.leave()
