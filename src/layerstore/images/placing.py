"""Layers on their way to a registry: found there, mounted from another repository, or compressed and sent."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from layerstore._core._pack import Packer
from layerstore.errors import LayerStoreError, RegistryError
from layerstore.ids import Digest
from layerstore.images.known import Candidate, layer_type, type_of
from layerstore.layer import Layer
from layerstore.streams.ahead import Blocks, ahead

if TYPE_CHECKING:
    from layerstore.images.remote import Begun, Repository, Turn
    from layerstore.registry.calls import Call

T = TypeVar("T")
_EVERY = 0.05
_BLOCK = 1 << 20
# For a smaller layer no threads are started.
_SMALL = 4 << 20


class Placed(NamedTuple):
    """A blob that the registry has.

    media_type   OCI's
    how          "sent", "mounted" or "present"
    """

    digest: Digest
    size: int
    media_type: str
    how: str


class Sending:
    """One layer of a push: what may be there of it, where it is, and how far it has come."""

    def __init__(self, layer: Layer, known: list[Candidate], turn: Turn) -> None:
        """known   blobs that may hold it.  turn: of who sends it"""
        self.layer, self.known, self.turn = layer, known, turn
        self.offer: Begun | None = None        # a session of an upload that an attempt to mount has brought
        self.mounted: set[Digest] = set()
        self.tried: set[Digest] = set()        # what was looked for already
        self.placed: Placed | None = None
        self.size = self.done = 0              # bytes of the tar that is compressed


class Placing:
    """What brings one layer after the other into a repository, in several threads. All methods work in any of them."""

    def __init__(self, call: Call, repository: Repository, compression: str | None, *, force: bool) -> None:
        """force   True: only blobs of this compression"""
        self._call, self._to, self._compression = call, repository, compression
        self._wanted = layer_type(compression) if force else ""
        self.trusting = True
        """False: what the registry says that it has is not believed."""

    def find(self, layer: Sending) -> None:
        """Look whether a blob of a layer is there, or can be mounted."""
        known = [each for each in layer.known if not (self.trusting and each.digest in layer.tried)]
        layer.placed = self.found(layer, known)
        if layer.placed and layer.offer:
            self._to.end([layer.offer])
            layer.offer = None

    def found(self, layer: Sending, known: Iterable[Candidate]) -> Placed | None:
        """Return the first blob that is there or can be mounted; None: there is none."""
        tried = [each for each in known if not self._wanted or each.media_type in ("", self._wanted)]
        if self.trusting:
            for each in tried:
                size = self._to.size_of(each.digest)
                if size is not None and (each.size < 0 or size == each.size):
                    placed = self._placed(each, size, "present")
                    if placed:
                        return placed
        for each in tried:
            # What was mounted, and is not there all the same, is sent.
            if each.digest not in layer.mounted and self._mount(layer, each):
                layer.mounted.add(each.digest)
                placed = self._placed(each, each.size, "mounted")
                if placed:
                    return placed
        return None

    def _mount(self, layer: Sending, known: Candidate) -> bool:
        for source in known.sources:
            got = self._to.mount(known.digest, source)
            if isinstance(got, bool):
                if got:
                    return True
            elif layer.offer:
                self._to.end([got])
            else:
                layer.offer = got
        return False

    def _placed(self, known: Candidate, size: int, how: str) -> Placed | None:
        """Return a blob that is there, with what was unknown of it; None: that cannot be known, or it is of no use."""
        media_type = known.media_type
        if not media_type or size < 0:
            beginning = self._to.beginning(known.digest)
            if beginning is None:
                return None
            head, told = beginning
            media_type = media_type or type_of(head)
            size = told if size < 0 else size
        if size < 0:
            size = self._to.size_of(known.digest) or -1
        if size < 0 or self._wanted not in ("", media_type):
            return None
        return Placed(known.digest, size, media_type, how)

    def send(self, layer: Sending) -> None:
        """Compress a layer and send it; or wait until another push of the same registry has."""
        media_type = layer_type(self._compression)
        with self._to.turn(layer.turn):
            earlier: Placed | None = layer.turn.result
            if earlier and self.trusting and self._wanted in ("", earlier.media_type):
                layer.placed = earlier._replace(how="present")
                layer.done = layer.size
            else:
                offer, layer.offer = layer.offer, None
                try:
                    sent = self._to.send(lambda: self._blocks(layer), offer)
                except RegistryError as err:
                    # The digest of the blob is known only once all of it was sent.
                    err.args = (f"{err}, of the layer {layer.layer.diff_id}",)
                    raise
                layer.turn.result = layer.placed = Placed(sent.digest, sent.size, media_type, "sent")
        if layer.offer:
            self._to.end([layer.offer])
            layer.offer = None

    def _blocks(self, layer: Sending) -> Blocks:
        """Return the bytes that are sent: the same each time. They are read, compressed and sent at the same time."""
        beside = ahead if layer.size > _SMALL else _same
        blocks = beside(self._plain(layer))
        return beside(_packed(self._compression, blocks)) if self._compression else blocks

    def _plain(self, layer: Sending) -> Blocks:
        at = 0
        with layer.layer.tar_stream() as stream:
            while block := stream.read_block(_BLOCK):
                self._call.check()
                yield block
                at += len(block)
                layer.done = max(layer.done, at)


def _same(blocks: Blocks) -> Blocks:
    return blocks


def _packed(compression: str, plain: Blocks) -> Blocks:
    packer = Packer(compression)
    with contextlib.closing(plain):
        for block in plain:
            if packed := packer.compress(block):
                yield packed
    yield packer.flush()


class _StoppedError(LayerStoreError):
    """Another part of the push has failed."""


class Crew:
    """Threads that work side by side while the calling thread looks on. A program that ends does not wait for them."""

    def __init__(self, call: Call, threads: int) -> None:
        self._call, self._count = call, threads
        self._pid = os.getpid()
        self._left: collections.deque[Any] = collections.deque()
        self._threads: list[threading.Thread] = []
        self._ended: list[bool] = []
        self._news = threading.Event()
        self._failed: list[BaseException] = []

    def close(self) -> None:
        """Stop what still works, and wait for it. Can be called again. In a forked child nothing works."""
        if os.getpid() != self._pid:
            return
        self._left.clear()
        if len(self._ended) < len(self._threads):
            self._call.stop(_StoppedError("the push has ended"))
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def each(self, work: Callable[[T], object], items: Iterable[T], look: Callable[[], None]) -> None:
        """Work on all, the first ones first. Raises what the first one raises that fails.

        look   called now and then, in the calling thread; what it raises ends the work
        """
        self._left.extend(items)
        self._threads, self._ended = [], []
        for _ in range(min(self._count, len(self._left))):
            thread = threading.Thread(target=self._run, args=[work], name="layerstore-push", daemon=True)
            self._threads.append(thread)
            thread.start()
        while len(self._ended) < len(self._threads) and not self._failed:
            self._news.wait(_EVERY)
            self._news.clear()
            self._call.check()
            look()
        if self._failed:
            raise self._failed[0]

    def _run(self, work: Callable[[T], object]) -> None:
        try:
            while not self._failed:
                try:
                    item = self._left.popleft()
                except IndexError:
                    return
                work(item)
        except BaseException as err:
            self._failed.append(err)
        finally:
            self._ended.append(True)
            self._news.set()
