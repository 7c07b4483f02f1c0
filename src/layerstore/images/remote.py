"""Where the blobs of a pull come from, and where those of a push go: all that images/ knows of a registry.

layerstore.registry fulfils it, and is loaded with the first pull or push.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from layerstore.errors import ImageError
from layerstore.ids import DiffID, Digest
from layerstore.registry.registry import Registry
from layerstore.values import Descriptor

if TYPE_CHECKING:
    from layerstore._core._apply import Apply
    from layerstore.registry.calls import Call


class Incoming(Protocol):
    """A blob on its way in."""

    taken: int
    """Bytes that came; it never goes back."""

    def pump_into(self, apply: Apply) -> None:
        """Push all of it into the core, as many bytes as it must have."""

    def read_all(self) -> bytes:
        """Return it whole, its size and its digest compared."""
        ...

    def begin_anew(self, why: Exception) -> bool:
        """Return True if what came may be refuted by other bytes: then it can be taken once more."""
        ...


class Begun(Protocol):
    """An upload that is begun."""


class Turn(Protocol):
    """The work on one thing, of all pushes that share a registry.

    result   what the last one that ended well has set; None
    """

    result: Any


class Sent(Protocol):
    """A blob that the registry has acknowledged."""

    @property
    def digest(self) -> Digest:
        """Its digest."""
        ...

    @property
    def size(self) -> int:
        """Its bytes."""
        ...


class Repository(Protocol):
    """One repository, to which blobs and manifests go."""

    def size_of(self, digest: Digest) -> int | None:
        """Return the size of a blob; -1: it is there, and the registry tells no size; None: it is not there."""

    def beginning(self, digest: Digest) -> tuple[bytes, int] | None:
        """Return the first four bytes of a blob, and its size, or -1; None: it cannot be had."""

    def mount(self, digest: Digest, source: str) -> bool | Begun:
        """Have a blob of another repository here too. Returns False if it cannot be; or an upload that is begun."""
        ...

    def joined(self, diff_id: DiffID) -> contextlib.AbstractContextManager[Turn]:
        """Take part in sending a layer, for the length of a `with` block."""
        ...

    def turn(self, turn: Any) -> contextlib.AbstractContextManager[None]:
        """Wait until no other thread sends it, for the length of a `with` block."""
        ...

    def send(self, make: Callable[[], Generator[bytes, None, None]], begun: Any = None) -> Sent:
        """Send the blob that make() makes, the same bytes each time. begun: what mount() gave."""
        ...

    def send_whole(self, data: bytes, digest: Digest) -> Sent:
        """Send a small blob."""
        ...

    def end(self, sessions: Sequence[Any]) -> None:
        """End uploads that are not needed."""

    def put_manifest(self, wanted: str, media_type: str, digest: Digest, data: bytes) -> bool:
        """Put a manifest or an index at a tag. Returns True if the registry lists it beside its subject."""
        ...

    def index(self, tag: str) -> tuple[str, bytes] | None:
        """Return the media type and the bytes of the index at a tag; None: there is none."""


class Remote(Protocol):
    """One registry."""

    name: str
    """As references spell it: "docker.io", "registry.example.com:5000"."""
    connections: int
    """Blobs that come side by side."""

    def manifest(self, call: Call, path: str, wanted: str, size: int = -1) -> tuple[Descriptor, bytes]:
        """Fetch a manifest or an index by its tag or digest. size: what its index says, or -1."""
        ...

    def blob(self, call: Call, path: str, blob: Descriptor) -> Incoming:
        """Return a blob of a repository, which is asked for when it is taken."""
        ...

    def repository(self, call: Call, path: str) -> Repository:
        """Return a repository to push to."""
        ...

    def started(self) -> contextlib.AbstractContextManager[Call]:
        """Return a call, to be left with the end of a pull or a push."""
        ...


@contextlib.contextmanager
def opened(domain: str, registry: Registry | None) -> Iterator[Remote]:
    """Lend the registry of a domain for the length of a `with` block.

    registry   the caller's, which must be that one; None: one of our own
    Raises     ImageError, NotSupportedError: urllib3 is not there
    """
    if not isinstance(registry, Registry | None):
        raise TypeError(f"registry is a Registry, not {type(registry).__name__}")
    if registry is not None and registry.name != domain.lower():
        raise ImageError(f"the reference names the registry {domain}, and the Registry given is {registry.name}")
    with contextlib.nullcontext(registry) if registry is not None else Registry(domain) as lent:
        # Behind Registry(), which says how urllib3 is installed.
        from layerstore.registry.remote import RegistryRemote

        yield RegistryRemote(lent)
