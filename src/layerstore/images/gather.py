"""From planned images to layers in the store: each file of an archive is unpacked once, and put where it belongs.

A file is unpacked before its parent is known, or stored: a layer's directory does not depend on the layers below it.
So the layers of one image are unpacked side by side, and a stream needs no spool, whatever its order. An unpacked layer
stays invisible until one rename puts it on its parent; after a crash cleanup() removes it.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from layerstore._core import _files
from layerstore._core._apply import guess_format
from layerstore._core._walk import begins
from layerstore.documents.configs import Config
from layerstore.errors import ImageError, LayerDoesNotExistError, LayerStoreError, readable
from layerstore.ids import ChainID, DiffID, Digest, chain_on
from layerstore.images import v1
from layerstore.images.planned import Planned, PlannedLayer
from layerstore.images.shelf import OpenShelf, hash_section, missing
from layerstore.layer import Layer
from layerstore.store import Store, Unpacked
from layerstore.streams.progress import Teller
from layerstore.streams.sources import HEAD
from layerstore.values import Descriptor, Done, Durability, Progress

# Layers that are unpacked side by side; each has a few threads of its own in the core.
_WORKERS_LIMIT = 8


class Stopped(BaseException):
    """The load has failed elsewhere; the caller never sees this."""


class Job:
    """A file of an archive that is, or was, unpacked.

    unpacked  what is not on its parent yet; None afterwards
    layer     a layer of the same DiffID
    digest    of the file itself, if its name or a manifest says one
    """

    def __init__(self) -> None:
        self.unpacked: Unpacked | None = None
        self.layer: Layer | None = None
        self.digest: Digest | None = None
        self.size = self.taken = 0
        self.error: Exception | None = None

    @property
    def diff_id(self) -> DiffID:
        """The DiffID of the tar."""
        if self.unpacked:
            return self.unpacked.diff_id
        assert self.layer
        return self.layer.diff_id

    def check(self, layer: PlannedLayer) -> None:
        """Compare what came with what was promised. Raises ImageError, or what went wrong with the file."""
        where = readable(layer.name)
        check_size(layer, self.size)
        if self.error and (not layer.digest or self.digest in (None, layer.digest)):
            raise self.error
        if layer.digest and self.digest != layer.digest:
            raise ImageError(f"the layer {where} is damaged: its digest is {self.digest}, not {layer.digest}")
        if layer.diff_id and self.diff_id != layer.diff_id:
            raise ImageError(f"the layer {where} is another one: its DiffID is {self.diff_id}, not {layer.diff_id}")


def check_size(layer: PlannedLayer, size: int) -> None:
    """Raise ImageError where a file has not the bytes that were promised."""
    if layer.size not in (-1, size):
        raise ImageError(f"the layer {readable(layer.name)} has {size} bytes, not the {layer.size} its manifest says")


def no_tar(name: str) -> ImageError:
    """Return the error of a file that must be a layer and is none."""
    return ImageError(f"{readable(name)} in the archive is not a layer's tar")


def looks_like_tar(head: bytes) -> bool:
    """Return True if a file that begins so may be a layer: packed or not, or without any bytes."""
    return guess_format(head) != "plain" or begins(head) or not head.strip(b"\0")


def unpack_nothing(store: Store, job: Job, algorithm: str) -> None:
    """Unpack a file without any bytes: the layer of a step that changed nothing."""
    job.unpacked = store.unpack_ahead(b"")
    job.digest = Digest(f"{algorithm}:{hashlib.new(algorithm).hexdigest()}")


class Gatherer:
    """The layers of one load: held until the images that need them are written, or undone."""

    def __init__(self, store: Store, level: Durability) -> None:
        """level   the durability of this load"""
        self.store, self._level = store, level
        self._held: dict[ChainID, Layer] = {}
        self._known = contextlib.ExitStack()   # keeps those that were there before
        self._made: list[Layer] = []           # and those that were there when they came
        self.jobs: dict[str, Job] = {}

    def has(self, chain: ChainID) -> bool:
        """Return True if a layer is in the store, with its files; it is held from then on."""
        if chain in self._held:
            return True
        try:
            layer = self.keep(chain)
        except LayerDoesNotExistError:
            return False
        try:
            layer.metadata()
        except FileNotFoundError:
            return False                       # its files are gone: registering it anew mends it
        except (OSError, LayerStoreError):     # it is damaged, as verify() tells
            pass
        self._held[chain] = layer
        return True

    def missing(self, images: Iterable[Planned]) -> dict[str, PlannedLayer]:
        """Return the files that must be unpacked, by name, in the order in which they are needed."""
        found: dict[str, PlannedLayer] = {}
        coming: set[str] = set()               # layers that an image before brings
        for image in images:
            parent = ""
            for layer in image.layers:
                if not layer.diff_id:
                    found.setdefault(layer.name, layer)
                    continue
                parent = chain_on(parent, layer.diff_id)
                if layer.name and parent not in coming and not self.has(parent):
                    found.setdefault(layer.name, layer)
                    coming.add(parent)
        return found

    def keep(self, chain: ChainID) -> Layer:
        """Keep a layer that was there before until close(). Raises LayerDoesNotExistError."""
        return self._known.enter_context(self.store.using(chain))

    def put(self, images: Iterable[Planned], job_of: Callable[[str], Job]) -> list[Config]:
        """Make all layers of images, each on the one below, and return the images' configs.

        job_of   returns the finished job of a file
        Raises   ImageError, and what unpacking raised
        """
        configs = []
        for image in images:
            parent: ChainID | str = ""
            diff_ids: list[DiffID] = []
            for layer in image.layers:
                if layer.diff_id and self.has(chain := chain_on(parent, layer.diff_id)):
                    parent, diff_id = chain, DiffID(layer.diff_id)
                elif not layer.name:
                    raise ImageError(f"a layer is left out of the archive, and is not in the store: {layer.diff_id}")
                else:
                    job = job_of(layer.name)
                    job.check(layer)
                    diff_id = job.diff_id
                    parent = self._put(job, parent, layer.descriptor)
                diff_ids.append(diff_id)
            if parent:
                self.store.sync(self._held[ChainID(parent)], durability=self._level)
            configs.append(image.config or v1.make_config(image.v1, diff_ids))
        return configs

    def _put(self, job: Job, parent: ChainID | str, descriptor: Descriptor | None) -> ChainID:
        chain = chain_on(parent, job.diff_id)
        if self.has(chain):
            return chain
        if job.unpacked is None:
            # The same tar on another parent: it comes out of the store.
            assert job.layer
            with job.layer.tar_stream() as stream:
                job.unpacked = self.store.unpack_ahead(stream)
        unpacked = job.unpacked
        handle = self.store.register_unpacked(unpacked, parent, descriptor, durability=self._level)
        self._made.append(handle)              # at once: an interrupt may come next
        job.unpacked, job.layer = None, handle
        self._held[chain] = handle
        return chain

    def leave(self) -> None:
        """Let the layers that this load made stay without a reference, as those of a killed process do."""
        for layer in self._made:
            if layer.is_new:
                self.store.leave(layer)
        self._made = [layer for layer in self._made if not layer.is_new]

    def close(self) -> None:
        """Release all references, and discard what was unpacked and not used. Can be called again.

        The layers that this load made are deleted, if no image needs them now; what was there before stays as it was.
        """
        for job in self.jobs.values():
            if job.unpacked:
                self.store.discard(job.unpacked)
            job.unpacked = None
        for layer in reversed(self._made):     # an image keeps those that stay; what was there before stays, too
            with contextlib.suppress(LayerStoreError):
                self.store.take_back(layer)
        self._made = []
        self._known.close()
        self._held.clear()


# ---- files that can be had in any order ----------------------------------------------------------


class Crew:
    """Threads that unpack the files of layers, side by side."""

    every = 0.1
    """Seconds between two looks at how far they are."""

    def __init__(self, gatherer: Gatherer, progress: Progress | None) -> None:
        """progress   told of the bytes of files taken"""
        self._gatherer, self._progress = gatherer, progress
        self._pid = os.getpid()
        # No pool, no Event, no Future: an interrupt within one of their locks would leave it to this thread for ever.
        self._is_stopped = False
        self._threads: list[threading.Thread] = []
        self._waiting: collections.deque[tuple[str, Callable[[], object]]] = collections.deque()
        self._working: set[object] = set()
        self._ended: dict[str, BaseException | None] = {}
        self._bell = threading.Lock()
        self._bell.acquire()

    def close(self) -> None:
        """Stop the threads, and wait until they end. Can be called again."""
        self._is_stopped = True
        if not self.is_ours:
            return
        while self._working:                   # a thread that begins from now on does nothing
            time.sleep(0.001)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(1)

    @property
    def is_ours(self) -> bool:
        """False in a forked child: the threads, and what they use, are its parent's."""
        return os.getpid() == self._pid

    def start(
        self, wanted: dict[str, PlannedLayer], total: int, workers: int, run: Callable[[PlannedLayer, Job], None]
    ) -> None:
        """Start on these, in their order.

        total   bytes of their files
        run     unpacks one
        """
        self._teller = Teller(self._progress, total)
        for name, layer in wanted.items():
            job = self._gatherer.jobs[name] = Job()
            self._waiting.append((name, functools.partial(run, layer, job)))
        for _ in range(min(workers, len(wanted))):
            self._begin()

    def do(self, name: str, work: Callable[[], object]) -> None:
        """Start on some other work, for wait_for()."""
        self._waiting.append((name, work))
        self._begin()

    def _begin(self) -> None:
        self._threads.append(threading.Thread(target=self._serve, name="layerstore-load", daemon=True))
        self._threads[-1].start()

    def _serve(self) -> None:
        me = object()
        self._working.add(me)
        try:
            while not self._is_stopped and self._waiting:
                with contextlib.suppress(IndexError):        # another one took it
                    self._work(*self._waiting.popleft())
        finally:
            self._working.discard(me)

    def _work(self, name: str, run: Callable[[], object]) -> None:
        why: BaseException | None = None
        try:
            run()
        except BaseException as err:
            why = err
        self._ended[name] = why
        with contextlib.suppress(RuntimeError):              # it was rung before, and not heard yet
            self._bell.release()

    def check_stopped(self) -> None:
        """Raise if the crew was closed."""
        if self._is_stopped:
            raise Stopped

    def job_of(self, name: str) -> Job:
        """Wait for a file. Raises what unpacking it raised."""
        if name not in self._gatherer.jobs:
            raise missing(name)
        self.wait_for(name, self._tell)
        return self._gatherer.jobs[name]

    def wait_for(self, name: str, tell: Callable[[], None]) -> None:
        """Wait for the end of some work, and raise what it raised. tell: called now and then."""
        while name not in self._ended:
            self._bell.acquire(timeout=self.every)
            tell()
        tell()
        why = self._ended[name]
        if why is not None:
            with self.named(name):
                raise why

    def named(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Name the file in an error."""
        return named(name)

    def _tell(self, *, end: bool = False) -> None:
        self._teller.tell(sum(job.taken for job in self._gatherer.jobs.values()), end=end)

    def end(self) -> None:
        """Report the end to progress."""
        self._tell(end=True)


class ShelfCrew(Crew):
    """Threads that unpack the files of a shelf."""

    def __init__(self, gatherer: Gatherer, shelf: OpenShelf, progress: Progress | None) -> None:
        super().__init__(gatherer, progress)
        self._shelf = shelf

    def begin(self, wanted: dict[str, PlannedLayer]) -> None:
        """Start on these. Raises MissingError, ImageError: one is not there, or of another size."""
        total = 0
        for layer in wanted.values():
            with self._shelf.opened(layer.name) as section:
                total += section.size
                check_size(layer, section.size)
        self.start(wanted, total, min(len(os.sched_getaffinity(0)), _WORKERS_LIMIT), self._run)

    def _run(self, layer: PlannedLayer, job: Job) -> None:
        with self._shelf.opened(layer.name) as section:
            job.size = section.size
            head = _files.read(section.fd, min(HEAD, section.size), section.offset)
            if not looks_like_tar(head):
                raise no_tar(layer.name)
            if not section.size:
                algorithm = layer.digest.algorithm if layer.digest else "sha256"
                unpack_nothing(self._gatherer.store, job, algorithm)
                return
            # A plain tar's digest is its DiffID.
            is_plain = guess_format(head) == "plain"
            if layer.digest and not (is_plain and layer.digest.algorithm == "sha256"):
                job.digest = hash_section(section, layer.digest.algorithm, self.check_stopped)
                if job.digest != layer.digest:
                    return                     # check() says so
            def tell(done: Done) -> None:
                job.taken = int(done)
                self.check_stopped()

            job.unpacked = self._gatherer.store.unpack_ahead(section, progress=tell)
            if layer.digest and job.digest is None:
                job.digest = Digest(job.diff_id)


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Name the file in an error."""
    try:
        yield
    except (LayerStoreError, OSError) as err:
        err.add_note(f"in the layer {readable(name)} of the archive")
        raise
