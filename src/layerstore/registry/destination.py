"""One repository as a push uses it: what it has, what it takes from another one, and what is sent.

images/pushing.py knows this by the protocol of images/remote.py. Mirrors are never asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from layerstore.documents.manifests import INDEXES, OCI_INDEX
from layerstore.errors import RegistryError
from layerstore.ids import DiffID, Digest
from layerstore.registry import headers
from layerstore.registry.calls import Broken, Call
from layerstore.registry.turns import Turn
from layerstore.registry.uploads import STATUSES, Begun, MakeBlocks, Sent, Upload, check_told_digest

if TYPE_CHECKING:
    from layerstore.registry.registry import Registry

_MANIFEST_LIMIT = 4 << 20
# As many bytes of a blob tell how it is compressed.
_HEAD = 4


class Destination:
    """One repository of a registry."""

    def __init__(self, call: Call, registry: Registry, path: str) -> None:
        """path   of the repository"""
        self._call, self._registry, self._session, self._path = call, registry, registry.session, path
        self._scopes = (f"repository:{path}:pull,push",)

    # ---- blobs that are there ----

    def size_of(self, digest: Digest) -> int | None:
        """Return the size of a blob; -1: it is there, and the registry tells no size; None: it is not there."""
        url = f"/v2/{self._path}/blobs/{digest}"
        answer = self._session.ask(self._call, "HEAD", url, scopes=self._scopes, expect=(200, 400, 404, 405))
        length = headers.number(answer.headers.get("Content-Length"))
        return None if answer.status != 200 else -1 if length is None else length

    def beginning(self, digest: Digest) -> tuple[bytes, int] | None:
        """Return the first four bytes of a blob, and its size, or -1; None: it cannot be had."""
        url = f"/v2/{self._path}/blobs/{digest}"
        asked = {"Range": f"bytes=0-{_HEAD - 1}"}
        try:
            with (
                self._call.slot_of(self._registry.slots),
                self._session.open(self._call, url, scopes=self._scopes, headers=asked) as reply,
            ):
                if reply.status == 206:
                    found = headers.content_range(reply.headers.get("Content-Range"))
                    if found is None or found[0]:
                        return None
                    size = found[2]
                else:
                    size = headers.number(reply.headers.get("Content-Length"))
                head = b""
                while len(head) < _HEAD and (block := reply.read(_HEAD - len(head))):
                    head += block
        except (RegistryError, Broken):
            self._call.check()
            return None
        return head[:_HEAD], -1 if size is None else size

    def mount(self, digest: Digest, source: str) -> bool | Begun:
        """Have a blob of another repository here too. Returns False if it cannot be; or a session of an upload.

        source   path of that repository
        """
        url = f"/v2/{self._path}/blobs/uploads/?mount={digest}&from={source}"
        scopes = (*self._scopes, f"repository:{source}:pull")
        upload = Upload(self._call, self._registry, self._path)
        try:
            answer = self._session.ask(
                self._call, "POST", url, scopes=scopes, body=b"", expect=(*STATUSES, 403, 429), upload=True
            )
            if answer.status == 202:
                return upload.begun_with(answer)
        except RegistryError:
            self._call.check()
            return False
        return answer.status == 201

    # ---- what is sent ----

    def joined(self, diff_id: DiffID) -> contextlib.AbstractContextManager[Turn]:
        """Take part in sending a layer, for the length of a `with` block."""
        return self._registry.turns.joined((self._path, diff_id))

    @contextlib.contextmanager
    def turn(self, turn: Turn) -> Iterator[None]:
        """Wait until no other thread sends it, for the length of a `with` block."""
        with self._registry.turns.taken(turn, self._call):
            yield

    def send(self, make: MakeBlocks, begun: Begun | None = None) -> Sent:
        """Send the blob that make() makes, the same bytes each time. begun: a session that mount() gave."""
        upload = Upload(self._call, self._registry, self._path)
        with self._call.slot_of(self._registry.slots):
            return upload.send(make, begun)

    def send_whole(self, data: bytes, digest: Digest) -> Sent:
        """Send a small blob."""
        upload = Upload(self._call, self._registry, self._path)
        with self._call.slot_of(self._registry.slots):
            return upload.send_whole(data, digest)

    def end(self, sessions: Sequence[Begun]) -> None:
        """End sessions that are not needed."""
        Upload(self._call, self._registry, self._path).end(*sessions)

    # ---- manifests ----

    def put_manifest(self, wanted: str, media_type: str, digest: Digest, data: bytes) -> bool:
        """Put a manifest or an index at a tag. Returns True if the registry lists it beside its subject.

        wanted   the tag.  digest: of data
        Raises   RegistryError, ImageError: the registry says that it is another one
        """
        answer = self._session.ask(
            self._call, "PUT", f"/v2/{self._path}/manifests/{wanted}", scopes=self._scopes,
            headers={"Content-Type": media_type}, body=data, expect=(200, 201, 202),
        )  # fmt: skip
        check_told_digest(answer, digest)
        return bool(answer.headers.get("OCI-Subject"))

    def index(self, tag: str) -> tuple[str, bytes] | None:
        """Return the media type and the bytes of the index at a tag; None: there is none. Raises RegistryError."""
        answer = self._session.ask(
            self._call, "GET", f"/v2/{self._path}/manifests/{tag}", scopes=self._scopes,
            headers={"Accept": ", ".join(INDEXES)}, expect=(200, 404), limit=_MANIFEST_LIMIT,
        )  # fmt: skip
        if answer.status == 404:
            return None
        return headers.media_type(answer.headers.get("Content-Type")) or OCI_INDEX, answer.body
