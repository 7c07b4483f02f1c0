"""A registry as images/ knows it: manifests and blobs by the path of their repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerstore.registry import manifests
from layerstore.registry.blobs import Download
from layerstore.registry.calls import Call, started
from layerstore.registry.destination import Destination
from layerstore.values import Descriptor

if TYPE_CHECKING:
    from layerstore.registry.registry import Registry


class RegistryRemote:
    """One registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.name, self.connections = registry.name, registry.connections

    def manifest(self, call: Call, path: str, wanted: str, size: int = -1) -> tuple[Descriptor, bytes]:
        """Fetch a manifest or an index by its tag or digest. size: what its index says, or -1."""
        return manifests.fetch(call, [*self._registry.mirrors, self._registry.session], path, wanted, size)

    def blob(self, call: Call, path: str, blob: Descriptor) -> Download:
        """Return a blob of a repository, which is asked for when it is taken."""
        return Download(call, self._registry, path, blob)

    def repository(self, call: Call, path: str) -> Destination:
        """Return a repository to push to."""
        return Destination(call, self._registry, path)

    def started(self) -> Call:
        """Return a call, to be left with the end of a pull or a push."""
        return started()
