"""A blob on its way in: asked for once, and by range where its body was cut, until all of it came.

Enters: what a manifest says of the blob. Leaves: its bytes, in order, each once; or an error that names it. Mirrors are
asked before the registry; what follows the bytes of one may come from the next. Whether the bytes are the right ones
is known at their end: the caller compares the digest, and begins anew if a mirror was wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from layerstore.documents.manifests import check_digest
from layerstore.errors import ImageError, LayerStoreError, NotInRegistryError, RegistryError
from layerstore.ids import Digest
from layerstore.registry import failures, headers
from layerstore.registry.attempts import Attempts
from layerstore.registry.calls import Broken, Call
from layerstore.registry.failures import Told
from layerstore.values import Descriptor

if TYPE_CHECKING:
    from layerstore._core._apply import Apply
    from layerstore.registry.registry import Registry
    from layerstore.registry.session import Session
    from layerstore.registry.transport import Reply

log = logging.getLogger("layerstore")

# Of one blob.
_CONNECTIONS_LIMIT = 1000
# A connection that brings less brings nothing, as a retry counts.
_SOMETHING = 1 << 10
_BLOCK = 1 << 18                        # a larger one takes memory, and no less time


class _Source:
    """One host that has the blob, as far as it is known."""

    def __init__(self, session: Session, *, is_mirror: bool) -> None:
        self.session, self.is_mirror = session, is_mirror
        self.etag = ""
        self.asked = False
        self.ranges = True                  # it answers them as it must


class Download:
    """One blob of a repository, to be taken once: pump_into() or read_all()."""

    def __init__(self, call: Call, registry: Registry, path: str, blob: Descriptor) -> None:
        """path   of the repository; blob: its digest and its size are what must come"""
        self._call, self._registry, self._path = call, registry, path
        self.digest, self.size = Digest(blob.digest), blob.size
        self._foreign = bool(blob.urls) or any(word in blob.media_type for word in ("foreign", "nondistributable"))
        self._sources = [_Source(mirror, is_mirror=True) for mirror in registry.mirrors]
        self._sources.append(_Source(registry.session, is_mirror=False))
        self._url = f"/v2/{path}/blobs/{self.digest}"
        self._connections = 0
        self._at = 0
        self._brought: set[_Source] = set()      # the mirrors whose bytes are among those that came
        self.taken = 0
        """Bytes that came, of those that are needed: it never goes back."""

    # ---- taking it ----

    def pump_into(self, apply: Apply) -> None:
        """Push all of it into apply. Raises RegistryError, ImageError, and what stopped the call."""
        for block in self.blocks():
            apply.push(block)

    def read_all(self) -> bytes:
        """Return it whole, its digest compared. Raises RegistryError, ImageError."""
        while True:
            try:
                data = b"".join(self.blocks())
                check_digest(self.digest, data)
                return data
            except ImageError as err:
                if not self.begin_anew(err):
                    raise

    def begin_anew(self, why: Exception) -> bool:
        """Leave out the mirrors that brought bytes of what was refuted, and begin anew; False: there was none.

        why   what refuted it
        """
        guilty, self._brought = [*self._brought], set()
        for source in guilty:
            self._pass_over(source, why)
        self._at = 0
        return bool(guilty)

    def blocks(self) -> Iterator[bytes]:
        """Return its bytes, as many as it must have. Raises as pump_into() does."""
        with self._call.slot_of(self._registry.slots):
            yield from self._all()

    # ---- from one source after the other ----

    def _all(self) -> Iterator[bytes]:
        while True:
            source = self._sources[0]
            try:
                yield from self._from(source)
                return
            except (RegistryError, ImageError) as err:
                if not source.is_mirror:
                    raise self._explained(err) from None
                self._call.check()
                if isinstance(err, ImageError) and self._brought:
                    raise                     # what it brought before may be wrong, too
                self._pass_over(source, err)

    def _pass_over(self, source: _Source, why: Exception) -> None:
        if source in self._sources:
            self._sources.remove(source)
            text, host = "Passing over the mirror %s for the blob %s: %s", self._told(source).host
            log.warning(text, host, self.digest, why, extra={"host": host, "digest": self.digest, "error": why})

    def _explained(self, err: LayerStoreError) -> LayerStoreError:
        if self._foreign and isinstance(err, NotInRegistryError):
            text = f"{err} (a foreign layer, which its registry need not have; its urls are not followed)"
            return NotInRegistryError(text, status=err.status, code=err.code, host=err.host)
        return err

    def _from(self, source: _Source) -> Iterator[bytes]:
        """Return the bytes that are left, of connection after connection."""
        attempts = Attempts(source.session.retries)
        while True:
            before, ranges = self._at, source.ranges
            why = yield from self._once(source, attempts)
            if not why:
                return
            if source.ranges != ranges:
                attempts.made -= 1            # it is asked at once, without a range
            elif self._at - before >= _SOMETHING:
                attempts.made = 0
            elif attempts.are_spent:
                what = f"it broke off at byte {self._at} of {self.size}: {why}"
                raise failures.broken(self._told(source), what, attempts.made)
            else:
                attempts.wait(self._call)

    def _told(self, source: _Source) -> Told:
        return source.session.told("GET", self._url)

    def _once(self, source: _Source, attempts: Attempts) -> Generator[bytes, None, str]:
        """Return what one connection brings, and why it broke off; "": it did not."""
        self._connections += 1
        if self._connections > _CONNECTIONS_LIMIT:
            raise failures.broken(self._told(source), f"it did not come whole with {_CONNECTIONS_LIMIT} connections")
        asked = {}
        if self._at and source.ranges:
            asked["Range"] = f"bytes={self._at}-"
            if source.etag:
                asked["If-Range"] = source.etag
        scopes = (f"repository:{self._path}:pull",)
        with source.session.open(
            self._call, self._url, scopes=scopes, headers=asked, expect=(200, 206, 416), attempts=attempts
        ) as reply:
            if not source.asked:
                source.asked, source.etag = True, headers.strong_etag(reply.headers.get("ETag"))
            skip = self._fits(source, reply, bool(asked))
            if skip < 0:
                return "it does not answer ranges"
            try:
                while block := reply.read(_BLOCK):
                    if skip:
                        passed = min(skip, len(block))
                        skip, block = skip - passed, block[passed:]
                        if not block:
                            continue
                    if self._at + len(block) > self.size:
                        text = f"the blob {self.digest} goes on behind the {self.size} bytes its manifest says"
                        raise ImageError(text)
                    self._at += len(block)
                    if source.is_mirror:
                        self._brought.add(source)
                    self.taken = max(self.taken, self._at)
                    yield block
            except Broken as err:
                return "" if self._at == self.size else str(err.why)
        return "" if self._at == self.size else "the body ended"

    def _fits(self, source: _Source, reply: Reply, ranged: bool) -> int:
        """Return how many bytes of an answer to pass over; -1: it is not what was asked for, and no range may be."""
        length = _length(reply)
        if reply.status == 200:
            if length not in (None, self.size):
                raise ImageError(f"the blob {self.digest} has {length} bytes, not the {self.size} its manifest says")
            return self._at
        found = headers.content_range(reply.headers.get("Content-Range")) if reply.status == 206 else None
        left = self.size - self._at
        if found == (self._at, self.size - 1, self.size) and length in (None, left):
            return 0
        if not ranged:
            raise failures.refusal(self._told(source), reply.status, b"", about="no range was asked for")
        source.ranges = False
        return -1


def _length(reply: Reply) -> int | None:
    """Return what an answer says of its length; None: it does not."""
    return headers.number(reply.headers.get("Content-Length"))
