"""An archive that can be read once, from its first byte to its last: a pipe, a socket, a compressed file.

Documents are kept, and layers are unpacked as they come, in any order: gather.py says why nothing is spooled. If the
documents come first, only what is needed is unpacked, and what the store has is skipped; if they come last (as
`docker save` writes them), a file is unpacked unless its name has the digest of a tar in the store.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from layerstore._core._apply import guess_format
from layerstore.errors import ImageError, LayerStoreError, readable
from layerstore.ids import ChainID, DiffID, Digest
from layerstore.images.archive import FILE, Entry, cut, entries
from layerstore.images.catalogue import Catalogue
from layerstore.images.gather import Gatherer, Job, check_size, looks_like_tar, named, no_tar, unpack_nothing
from layerstore.images.plan import plan
from layerstore.images.planned import Planned, PlannedLayer, algorithm_in, check_useful, digest_in
from layerstore.images.shelf import missing, too_large
from layerstore.layerdb.imagedb import DOCUMENT_LIMIT
from layerstore.streams.decompress import decompress
from layerstore.streams.progress import Teller
from layerstore.streams.sources import BLOCK, HEAD, Input, SourceInput, read_waiting

_TAR_NAME = re.compile(r"([a-f0-9]{64})\.tar")
# Bytes of documents that wait, packed.
_KEPT_LIMIT = 24 << 20
# How often it is asked whether all documents have come: in most archives once is enough.
_LOOKS_LIMIT = 32


class Reader:
    """The bytes of a stream in exact portions, counted."""

    def __init__(self, block: Callable[[], bytes], *, fd: int = -1, begin: bytes = b"") -> None:
        """block   returns the next bytes, however many; b"" at the end
        fd     where they come from, if that is a descriptor: then the core may read it itself
        begin  what was read of it before
        """
        self._block, self._fd, self._pending = block, fd, begin
        self.position = 0

    def some(self, n: int) -> bytes:
        """Return up to n bytes; none only at the end."""
        if not self._pending:
            self._pending = read_waiting(self._fd, min(n, BLOCK)) if self._fd >= 0 else self._block()
        found, self._pending = self._pending[:n], self._pending[n:]
        self.position += len(found)
        return found

    def exactly(self, n: int) -> bytes:
        """Return n bytes, fewer only at the end."""
        found = b""
        while len(found) < n and (more := self.some(n - len(found))):
            found += more
        return found

    def skip(self, n: int, tell: Callable[[], None] | None = None) -> None:
        """Skip n bytes, or all to the end."""
        while n > 0 and (passed := len(self.some(min(n, BLOCK)))):
            n -= passed
            if tell:
                tell()

    def pump(self, apply: Any, n: int, tell: Callable[[], None]) -> int:
        """Push n bytes into apply, by the core where that can be. Returns how many there were."""
        left = n
        while left and (self._pending or self._fd < 0):
            block = self.some(left)
            if not block:
                return n - left
            apply.push(block)
            left -= len(block)
            tell()
        while left:
            before = apply.taken
            end, _ = apply.pump(self._fd, -1, left, 100)
            taken = apply.taken - before
            left -= taken
            self.position += taken
            tell()
            if end:
                break
        return n - left


class Part:
    """A file of the stream as a source: read(n), and the digest of what was read."""

    def __init__(self, reader: Reader, head: bytes, left: int, algorithm: str, tell: Callable[[], None]) -> None:
        """head   its first bytes, read before; left: how many follow"""
        self._reader, self._head, self.left, self._tell = reader, head, left, tell
        self._hash = hashlib.new(algorithm)
        self._algorithm = algorithm

    def read(self, n: int) -> bytes:
        """Return the next bytes."""
        block, self._head = self._head, b""
        if not block:
            block = self._reader.some(min(n, self.left))
            self.left -= len(block)
        self._hash.update(block)
        self._tell()
        return block

    def digest(self) -> Digest:
        """Return the digest of the whole file; the rest of it is read."""
        while self.read(BLOCK):
            pass
        return Digest(f"{self._algorithm}:{self._hash.hexdigest()}")


class _Plain(NamedTuple):
    """A plain tar in the stream, as what is unpacked: its bytes go to the core without a copy here."""

    reader: Reader
    entry: Entry
    head: bytes
    tell: Callable[[], None]

    def pump_into(self, apply: Any) -> None:
        apply.push(self.head)
        got = len(self.head) + self.reader.pump(apply, self.entry.size - len(self.head), self.tell)
        if got < self.entry.size:
            raise cut(self.entry)


class _Packed(NamedTuple):
    """A file of the stream as what is unpacked; its digest is the job's, whatever happens."""

    part: Part
    entry: Entry
    job: Job

    def pump_into(self, apply: Any) -> None:
        part, job = self.part, self.job
        try:
            SourceInput(part).pump_into(apply)
        except LayerStoreError:
            job.digest = part.digest()                 # other bytes than promised is what is said then
            raise
        job.digest = part.digest()
        if part.left:
            raise cut(self.entry)


class Kept:
    """The documents of a stream, as they come: compressed, and only those that an image may need."""

    def __init__(self) -> None:
        self._catalogue = Catalogue(self._same)
        self._documents: dict[int, bytes | ImageError] = {}      # by the entry's offset
        self._digests: dict[int, Digest] = {}                    # of what is no document, where it is known
        self._kept = 0
        self.names, self.find = self._catalogue.names, self._catalogue.find
        self.add, self.end = self._catalogue.add, self._catalogue.end

    def has(self, name: str) -> bool:
        """Return True if a file of this name came."""
        return self.find(name) is not None

    def keep(self, entry: Entry, data: bytes | None) -> None:
        """Keep a document; None: it is too large."""
        found: bytes | ImageError
        try:
            if data is None:
                raise too_large(entry.name, entry.size)
            check_useful(entry.name, data)
            found = zlib.compress(data, 1)
            self._kept += len(found)
        except ImageError as err:
            found = err.with_traceback(None)
        if self._kept > _KEPT_LIMIT:
            raise ImageError(f"the archive has documents of more than {_KEPT_LIMIT} bytes, packed")
        self._documents[entry.offset] = found

    def take(self, entry: Entry, head: bytes, reader: Reader) -> None:
        """Keep a file whose head was read, if it is small enough for a document."""
        if entry.size > DOCUMENT_LIMIT:
            self.keep(entry, None)
            return
        data = head + reader.exactly(entry.size - len(head))
        if len(data) < entry.size:
            raise cut(entry)
        self.keep(entry, data)

    def hashed(self, entry: Entry, digest: Digest | None) -> None:
        """Note the digest of a file that is no document."""
        if digest:
            self._digests[entry.offset] = digest

    def document(self, name: str) -> bytes | None:
        """Return a document that came."""
        entry = self.find(name)
        if entry is None:
            return None
        if not entry.size:
            return b""
        found = self._documents.get(entry.offset)
        if found is None:
            raise ImageError(f"{readable(entry.name)} in the archive is not a document")
        if isinstance(found, ImageError):
            raise found
        return zlib.decompress(found)

    def _same(self, one: Entry, other: Entry) -> bool:
        if not one.size and not other.size:
            return True
        for of in (self._documents, self._digests):
            first, second = of.get(one.offset), of.get(other.offset)
            if isinstance(first, (bytes, str)) and first == second:
                return True
        return False


def _head_of(entry: Entry, reader: Reader) -> bytes:
    head = reader.exactly(min(HEAD, entry.size))
    if len(head) < min(HEAD, entry.size):
        raise cut(entry)
    return head


def documents_of(reader: Reader | None) -> Kept:
    """Read an archive for its documents alone. Raises ImageError."""
    assert reader
    kept = Kept()
    for entry in entries(reader.exactly, reader.skip, lambda: reader.position):
        kept.add(entry)
        if entry.kind == FILE and entry.size and not looks_like_tar(head := _head_of(entry, reader)):
            kept.take(entry, head, reader)
    reader.skip(1 << 62)
    kept.end()
    return kept


class Stream:
    """One pass over an archive."""

    def __init__(
        self, gatherer: Gatherer, reader: Reader, platform: str | None, stem: str, tell: Callable[[], None], *,
        named: bool,
    ) -> None:  # fmt: skip
        """tell   called now and then, for progress.  named: as in plan()"""
        self._gatherer, self._reader, self._tell = gatherer, reader, tell
        self._platform, self._stem, self._named = platform, stem, named
        self._kept = Kept()
        self._tops: dict[DiffID, ChainID] | None = None
        self._wanted: dict[str, bool] | None = None      # once that is known: files that are named, whether to unpack
        self._planned: dict[str, PlannedLayer] = {}
        self._sure = False                         # nothing else can be wanted
        self._stale = False                        # a document came since it was last asked
        self._looks = 0

    def run(self) -> list[Planned]:
        """Read all of it. Returns what is to be loaded; job_of() then has the files."""
        reader = self._reader
        for entry in entries(reader.exactly, lambda n: reader.skip(n, self._tell), lambda: reader.position):
            self._kept.add(entry)
            if entry.kind == FILE:
                self._take(entry)
        reader.skip(1 << 62, self._tell)
        self._kept.end()
        return self._plan(complete=True)

    def _plan(self, *, complete: bool) -> list[Planned]:
        return plan(
            self._kept, self._platform, self._stem, complete=complete, named=self._named, known=self._gatherer.has
        )

    def check(self, wanted: Iterable[PlannedLayer]) -> None:
        """Raise MissingError, ImageError: a layer is not there, or is of another size."""
        for layer in wanted:
            entry = self._kept.find(layer.name)
            if entry is None:
                raise missing(layer.name)
            check_size(layer, entry.size)

    def job_of(self, name: str) -> Job:
        """Return the job of a file. Raises MissingError."""
        entry = self._kept.find(name)
        if entry is None:
            raise missing(name)
        job = self._gatherer.jobs.get(entry.name)
        if job is None and not entry.size:
            job = self._gatherer.jobs[entry.name] = Job()
            unpack_nothing(self._gatherer.store, job, algorithm_in(entry.name))
        if job is None:
            with named(name):
                raise no_tar(name)
        return job

    def _take(self, entry: Entry) -> None:
        head = _head_of(entry, self._reader)
        if not looks_like_tar(head):
            self._kept.take(entry, head, self._reader)
            self._stale = True
            return
        if not head:
            return                                 # a document, or a layer: job_of() makes one of it
        self._look_ahead()
        if not self._is_wanted(entry.name):
            return
        if entry.name in self._gatherer.jobs:      # again: the catalogue asks whether it is the same
            self._kept.hashed(entry, self._part(entry, head).digest())
            return
        job = self._gatherer.jobs[entry.name] = Job()
        job.size = entry.size
        try:
            with named(entry.name):
                self._unpack(entry, head, guess_format(head), job)
        except LayerStoreError as err:
            # Perhaps no image needs it; check() raises it if one does.
            job.error = err.with_traceback(None)
            if planned := self._planned.get(entry.name):
                job.check(planned)
        self._kept.hashed(entry, job.digest)

    def _look_ahead(self) -> None:
        """Learn from the documents what is needed, if all of them have come."""
        if not self._stale or self._wanted is not None or self._looks >= _LOOKS_LIMIT:
            return
        self._stale = False
        self._looks += 1
        try:
            lists = [self._kept.has(name) for name in ("manifest.json", "index.json")]
            images = self._plan(complete=False) if any(lists) else []
        except ImageError:                         # what is still wrong at the end is said then
            return
        if not any(lists):
            return
        self._sure = all(lists)
        self._planned = self._gatherer.missing(images)
        self._wanted = {layer.name: layer.name in self._planned for image in images for layer in image.layers}

    def _is_wanted(self, name: str) -> bool:
        """Return True if a file may be a layer that must be unpacked.

        A list that comes later may name it, and a link that comes later may lead to it, but never to a blob.
        """
        if self._wanted is None:
            return True
        return self._wanted.get(name, not self._sure or digest_in(name) is None)

    def _unpack(self, entry: Entry, head: bytes, kind: str, job: Job) -> None:
        if kind == "plain" and algorithm_in(entry.name) == "sha256":
            if self._hash_known(entry, head, job):
                return
            job.unpacked = self._gatherer.store.unpack_ahead(_Plain(self._reader, entry, head, self._tell))
            job.digest = Digest(job.diff_id)
            return
        job.unpacked = self._gatherer.store.unpack_ahead(_Packed(self._part(entry, head), entry, job))

    def _part(self, entry: Entry, head: bytes) -> Part:
        return Part(self._reader, head, entry.size - len(head), algorithm_in(entry.name), self._tell)

    def _hash_known(self, entry: Entry, head: bytes, job: Job) -> bool:
        """If the name has the digest of a tar in the store, compare the file with it and return True."""
        digest = digest_in(entry.name)
        hexes = _TAR_NAME.fullmatch(entry.name)
        said = digest or (Digest(f"sha256:{hexes[1]}") if hexes else None)
        if said is None:
            return False
        if self._tops is None:
            self._tops = {layer.diff_id: chain for chain, layer in self._gatherer.store.map().items()}
        chain = self._tops.get(DiffID(said))
        if chain is None or not self._gatherer.has(chain):
            return False
        layer = self._gatherer.keep(chain)
        part = self._part(entry, head)
        found = part.digest()
        if part.left:
            raise cut(entry)
        if found != said:
            raise ImageError(f"the layer {readable(entry.name)} is damaged: its digest is {found}, not {said}")
        job.layer, job.digest = layer, found
        return True


# ---- a compressed archive ----------------------------------------------------------------------


@contextlib.contextmanager
def decompressed(
    kind: str, given: Input, head: bytes, count: Callable[[int], None], max_window: int
) -> Iterator[Reader]:  # fmt: skip
    """Open the archive within a compressed stream, which a thread of its own decompresses.

    kind    as guess_format() says
    head    what was read of given before
    count   told of compressed bytes taken, from that thread
    max_window   as decompress() has it
    Raises  at the end, what decompressing raised
    """
    end_to_read, end_to_write = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(end_to_write, fcntl.F_SETPIPE_SZ, BLOCK)
    failure: list[BaseException] = []
    waiting = [head]
    left = threading.Event()

    def read() -> bytes:
        block = (waiting.pop() if waiting else b"") or (b"" if left.is_set() else given.block())
        count(len(block))
        return block

    def give(block: bytes) -> bool:
        view = memoryview(block)
        while view:
            view = view[os.write(end_to_write, view) :]
        return left.is_set()

    def work() -> None:
        try:
            decompress(kind, read, give, max_window)
        except BrokenPipeError:
            pass                               # the reader needs no more
        except BaseException as err:
            failure.append(err)
        finally:
            os.close(end_to_write)

    thread = threading.Thread(target=work, name="layerstore-decompress", daemon=True)
    thread.start()
    try:
        yield Reader(lambda: b"", fd=end_to_read)
    except Exception as err:
        if failure:                            # why the tar is cut
            raise failure[0] from err
        raise
    finally:
        left.set()
        os.close(end_to_read)
        # A source that returns no more bytes cannot be stopped; then only its thread waits.
        thread.join(10)
    if failure:
        raise failure[0]


def teller_of(progress: Any, total: int | None, done: Callable[[], int]) -> Callable[..., None]:
    """Return what a stream calls now and then."""
    teller = Teller(progress, total)

    def tell(*, end: bool = False) -> None:
        teller.tell(done(), end=end)

    return tell
