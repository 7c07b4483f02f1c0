"""Where the blobs of a pull come from: the one thing that a pull knows of a registry.

layerstore.registry fulfils it, and is loaded with the first pull.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from layerstore.errors import ImageError
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

    def started(self) -> contextlib.AbstractContextManager[Call]:
        """Return a call, to be left with the end of a pull."""
        ...


@contextlib.contextmanager
def opened(domain: str, registry: Registry | None) -> Iterator[Remote]:
    """Lend the registry of a domain for the length of a `with` block.

    registry   the caller's, which must be that one; None: one of our own
    Raises     ImageError, NotSupportedError: urllib3 is not there
    """
    from layerstore.registry.remote import RegistryRemote

    if registry is None:
        with Registry(domain) as own:
            yield RegistryRemote(own)
        return
    if not isinstance(registry, Registry):
        raise TypeError(f"registry is a Registry, not {type(registry).__name__}")
    if registry.name != domain:
        raise ImageError(f"the reference names the registry {domain}, and the Registry given is {registry.name}")
    yield RegistryRemote(registry)
