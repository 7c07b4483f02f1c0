"""One blob on its way out: sent in one piece or in chunks, gone on with where the registry kept a part, or begun anew.

Enters: something that makes the bytes as often as it is asked. Leaves: the digest and the size that the registry has
acknowledged. An upload is a session at a place that the registry names anew with each answer. One that is not brought
to its end is ended, so that the registry keeps no half blob.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import threading
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from layerstore.errors import ImageError, InvalidDigestError, RegistryError
from layerstore.ids import Digest
from layerstore.registry import headers
from layerstore.registry.attempts import Attempts
from layerstore.registry.calls import Broken, Call
from layerstore.registry.failures import Told, broken
from layerstore.registry.places import check_named

if TYPE_CHECKING:
    from layerstore.registry.registry import Registry
    from layerstore.registry.session import Answer
    from layerstore.registry.transport import Body

log = logging.getLogger("layerstore")

# What says that a request was taken; that it may be later; that the session is lost; that the body is too large.
_TAKEN = {"PATCH": (202, 201, 204), "PUT": (201, 200, 204)}
_LATER, _LOST, _TOO_LARGE = (408, 429, 500, 502, 503, 504), (404, 416), 413
# All that a request may be answered with that is tried once; but redirects, and what is about credentials.
STATUSES = tuple(status for status in range(200, 600) if status not in (401, 403, 429) and not 300 <= status < 400)
# What a registry may answer that is asked how much it has.
_TELLING = tuple(status for status in STATUSES if status not in _LATER)
# Bytes of a chunk for a registry that takes no whole layer.
_CHUNK = 64 << 20
# Chunks are held in memory. Where a registry takes larger ones only, it gets the layer in one.
_CHUNK_LIMIT = 1 << 30
# Seconds that ending a session may take; of a call that was stopped.
_ENDING, _ENDING_STOPPED = 5.0, 0.4
_BYTES = {"Content-Type": "application/octet-stream"}

Blocks = Generator[bytes, None, None]
MakeBlocks = Callable[[], Blocks]


class Sent(NamedTuple):
    """A blob that the registry has acknowledged."""

    digest: Digest
    size: int


class Begun(NamedTuple):
    """The session of an upload: where the next request goes, and the least bytes of a chunk."""

    location: str
    least: int = 0


class _TroubleError(Exception):
    """A request of an upload failed; the upload may go on, or begin anew."""

    def __init__(self, error: Callable[[int], RegistryError], *, lost: bool = False, pause: float = 0.0) -> None:
        """error   makes what is raised, once there were so many attempts
        lost    the session is useless
        pause   seconds that the registry asks to wait
        """
        super().__init__()
        self.error, self.lost, self.pause = error, lost, pause


class _TooLargeError(Exception):
    """The registry takes no body that is so large. error: what is raised if it cannot be smaller."""

    def __init__(self, error: RegistryError) -> None:
        super().__init__()
        self.error = error


class _Source:
    """What is sent, hashed and counted on the way. What its source raises is kept apart from the network's failures."""

    def __init__(self, make: MakeBlocks) -> None:
        self._make = make
        self._hashed = hashlib.sha256()
        self.size, self.whole = 0, False
        self.failure: BaseException | None = None
        self._running: Blocks | None = None

    def blocks(self) -> Blocks:
        """Return all of it, from its first byte."""
        self.close()
        self._hashed, self.size, self.whole = hashlib.sha256(), 0, False
        self._running = self._counted(self._make())
        return self._running

    def _counted(self, blocks: Blocks) -> Blocks:
        with contextlib.closing(blocks):
            try:
                for block in blocks:
                    if block:
                        self._hashed.update(block)
                        self.size += len(block)
                        yield block
                self.whole = True
            except GeneratorExit:
                raise
            except BaseException as err:
                self.failure = err
                raise

    def close(self) -> None:
        """Stop what makes the blocks, if it is under way."""
        if self._running:
            self._running.close()

    @property
    def digest(self) -> Digest:
        """The digest of all that went."""
        return Digest(f"sha256:{self._hashed.hexdigest()}")


class Upload:
    """One blob on its way to one repository."""

    def __init__(self, call: Call, registry: Registry, path: str) -> None:
        """path   of the repository"""
        self._call, self._registry, self._session = call, registry, registry.session
        self._path, self._scopes = path, (f"repository:{path}:pull,push",)
        self._begun: Begun | None = None
        self._chunk = registry.chunk or 0                        # bytes; 0: the whole
        self._attempts = Attempts(registry.session.retries)      # in a row, without one more byte kept
        self._kept = 0                  # the most bytes of the blob that the registry had at any time

    def send(self, make: MakeBlocks, begun: Begun | None = None) -> Sent:
        """Send what make() makes: the same bytes each time.

        begun    a session that is there already
        Raises   RegistryError, what make() raises, and what stopped the call
        """
        self._begun = begun
        return self._until(lambda: self._in_chunks(make) if self._chunk_size() else self._whole(make))

    def send_whole(self, data: bytes, digest: Digest) -> Sent:
        """Send a small blob with the request that ends its session. Raises as send() does."""

        def blocks() -> Blocks:
            yield data

        self._chunk = 0
        return self._until(lambda: self._in_chunks(blocks) if self._chunk else self._close(digest, len(data), data))

    def _until(self, send: Callable[[], Sent]) -> Sent:
        """Try until it succeeds, or was tried too often."""
        while True:
            try:
                return self._once(send)
            except _TroubleError as trouble:
                self._count(trouble)
            except _TooLargeError as err:
                if self._chunk:
                    raise err.error from None
                self._chunk = _CHUNK

    def _chunk_size(self) -> int:
        """Return the bytes of a chunk; 0: all of the blob goes in one."""
        assert self._begun
        size = max(self._chunk, self._begun.least) if self._chunk else 0
        return size if size <= _CHUNK_LIMIT else 0

    def _once(self, send: Callable[[], Sent]) -> Sent:
        """Try once, with a session that ends if it was in vain."""
        self._begun = self._begun or self.begin()
        try:
            return send()
        except BaseException:
            begun, self._begun = self._begun, None
            self.end(begun)
            raise

    # ---- sessions ----

    def begin(self) -> Begun:
        """Begin a session. Raises RegistryError."""
        url = f"/v2/{self._path}/blobs/uploads/"
        answer = self._session.ask(
            self._call, "POST", url, scopes=self._scopes, body=b"", expect=(202,), upload=True
        )
        return self.begun_with(answer)

    def begun_with(self, answer: Answer) -> Begun:
        """Return the session that an answer names. Raises RegistryError."""
        least = headers.number(answer.headers.get("OCI-Chunk-Min-Length"))
        return Begun(self._located("POST", answer), least or 0)

    def end(self, *sessions: Begun) -> None:
        """End sessions that are not needed. What fails is ignored: the registry ends them some day."""
        if not sessions:
            return
        # A call of its own, as this one may be stopped: then there is little time.
        seconds = _ENDING
        try:
            self._call.check()
        except BaseException:
            seconds = _ENDING_STOPPED
        with contextlib.suppress(Exception):
            brief = Call()
            timer = threading.Timer(seconds, brief.stop, [TimeoutError()])
            timer.daemon = True
            timer.start()
            try:
                for begun in sessions:
                    self._session.ask(brief, "DELETE", begun.location, scopes=self._scopes, expect=STATUSES)
            finally:
                timer.cancel()
                timer.join()

    def _located(self, method: str, answer: Answer) -> str:
        location = answer.headers.get("Location")
        if not location:
            text = f"{method} {answer.url}: {answer.status}, and the answer names no place to send to"
            raise RegistryError(text, status=answer.status, host=answer.host)
        asked = check_named(answer.url, self._registry.place)
        return check_named(location, self._registry.place._replace(scheme=asked.place.scheme), answer.url).url

    def _follow(self, method: str, answer: Answer) -> None:
        """Take the place that an answer names, if it names one that may be asked."""
        if self._begun and answer.headers.get("Location"):
            with contextlib.suppress(RegistryError):
                self._begun = Begun(self._located(method, answer), self._begun.least)

    # ---- ways to send ----

    def _whole(self, make: MakeBlocks) -> Sent:
        """Send all of it with one request, and end the session with another."""
        body = _Source(make)
        self._patch(body.blocks, {}, body)
        return self._close(body.digest, body.size)

    def _in_chunks(self, make: MakeBlocks) -> Sent:
        body, at = _Source(make), 0
        with contextlib.closing(_cut(body.blocks(), self._chunk_size() or _CHUNK)) as chunks:
            for chunk in chunks:
                self._send_chunk(chunk, at)
                at += len(chunk)
        while True:
            try:
                return self._close(body.digest, body.size)
            except _TroubleError as trouble:
                if self._resumed(trouble, at) != at:
                    raise
                self._count(trouble)

    def _send_chunk(self, data: bytes, start: int) -> None:
        """Send one, which begins at this byte of the blob; what the registry kept of it is not sent again."""
        at, end = start, start + len(data)
        while at < end:
            try:
                self._patch(data[at - start :], {"Content-Range": f"{at}-{end - 1}"}, None, end)
                at = end
                self._keeps(at)
            except _TroubleError as trouble:
                kept = self._resumed(trouble, start)
                if not start <= kept <= end:
                    raise
                at = kept
                if not self._keeps(at):
                    self._count(trouble)

    def _resumed(self, trouble: _TroubleError, start: int) -> int:
        """Return how many bytes the registry has after trouble; -1: the upload is to begin anew.

        start   before which byte it can know of none
        """
        if trouble.lost or not self._begun:
            return -1
        answer = self._session.ask(self._call, "GET", self._begun.location, scopes=self._scopes, expect=_TELLING)
        self._follow("GET", answer)
        last = headers.upload_range(answer.headers.get("Range"))
        if answer.status != 204 or last is None:
            return -1
        # docker-registry says "0-0" of an upload that has no byte, too. What is sent again is found out by the Range.
        return 0 if start == last == 0 else last + 1

    # ---- requests ----

    def _patch(self, body: Body, more: Mapping[str, str], source: _Source | None, end: int = 0) -> None:
        """Send bytes; where the next ones go is known then.

        body     bytes, or what makes blocks.  source: of the blocks.  end: how many bytes the registry must have then
        """
        assert self._begun
        answer = self._send("PATCH", self._begun.location, body, _BYTES | dict(more), source)
        self._begun = Begun(self._located("PATCH", answer), self._begun.least)
        told = answer.headers.get("Range")
        has = source.size if source else end
        if (source and not source.whole) or (told and has and headers.upload_range(told) != has - 1):
            # docker-registry 2.8.2 takes bytes of a wrong place, and loses the session.
            text = f"the registry says that it has other bytes than the {has} that were sent"
            told_of = Told("PATCH", answer.url, answer.host)
            raise _TroubleError(functools.partial(broken, told_of, text), lost=True)

    def _close(self, digest: Digest, size: int, data: bytes = b"") -> Sent:
        """End the session: the blob is there."""
        assert self._begun
        location = self._begun.location
        url = f"{location}{'&' if '?' in location else '?'}digest={digest}"
        try:
            answer = self._send("PUT", url, data, _BYTES)
        except RegistryError as err:
            raise _of_blob(err, digest) from None
        except _TroubleError as trouble:
            of_request = trouble.error
            trouble.error = lambda attempts: _of_blob(of_request(attempts), digest)
            raise
        check_told_digest(answer, digest)
        return Sent(digest, size)

    def _send(
        self, method: str, url: str, body: Body, more: Mapping[str, str], source: _Source | None = None
    ) -> Answer:
        taken = _TAKEN[method]
        expected = (*taken, *_LATER, *_LOST, _TOO_LARGE)
        try:
            answer = self._session.ask(
                self._call, method, url, scopes=self._scopes, headers=more, body=body, expect=expected, upload=True
            )
        except BaseException as err:
            if source and source.failure:
                raise source.failure from None
            self._call.check()
            if not isinstance(err, Broken):
                raise
            told = self._session.told(method, url)
            if err.is_final:
                raise broken(told, err.why) from None
            raise _TroubleError(functools.partial(broken, told, err.why)) from None
        finally:
            if source:
                source.close()
        if answer.status == _TOO_LARGE:
            raise _TooLargeError(self._session.refusal(method, answer, 1))
        if answer.status not in taken:
            pause = self._session.asked_to_wait(method, answer, 1) if answer.status in _LATER else 0.0
            error = functools.partial(self._session.refusal, method, answer, upload=True)
            self._follow(method, answer)
            raise _TroubleError(error, lost=answer.status in _LOST, pause=pause)
        return answer

    # ---- how often ----

    def _keeps(self, at: int) -> bool:
        """Note that the registry has so many bytes. True: more than ever."""
        more = at > self._kept
        if more:
            self._kept, self._attempts.made = at, 0
        return more

    def _count(self, trouble: _TroubleError) -> None:
        """Wait before the next attempt. Raises what the trouble was, if there were too many."""
        self._attempts.made += 1
        error = trouble.error(self._attempts.made)
        if self._attempts.are_spent:
            raise error from None
        if trouble.lost:
            log.warning("%s; beginning the upload anew", error, extra={"error": error})
        else:
            self._attempts.wait(self._call, trouble.pause, error)


def _of_blob(err: RegistryError, digest: Digest) -> RegistryError:
    """Return an error that names the blob that it is about, too."""
    err.args = (f"{err}, of the blob {digest}",)
    return err


def check_told_digest(answer: Answer, digest: Digest) -> None:
    """Raise ImageError where the registry says another SHA-256 than that of what was sent."""
    try:
        told = Digest(answer.headers.get("Docker-Content-Digest").strip())
    except InvalidDigestError:
        return
    if told.algorithm == digest.algorithm and told != digest:
        raise ImageError(f"PUT {answer.url}: {digest} was sent, and the registry says that it got {told}")


def _cut(blocks: Blocks, size: int) -> Blocks:
    """Return the same bytes in chunks of a size; the last one may be smaller."""
    parts: list[bytes] = []
    room = size
    with contextlib.closing(blocks):
        for block in blocks:
            at = 0
            while at < len(block):
                part = block[at : at + room]
                at, room = at + len(part), room - len(part)
                parts.append(part)
                if not room:
                    yield b"".join(parts)
                    parts, room = [], size
    if parts:
        yield b"".join(parts)
