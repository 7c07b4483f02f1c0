"""Registry: one registry host, with its connections."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from layerstore.documents.references import HUB
from layerstore.errors import NotSupportedError
from layerstore.registry import places
from layerstore.values import StrPath

if TYPE_CHECKING:
    from layerstore.registry.session import Session


class Registry:
    """One registry host, with its connections. It opens none by itself. Threads may share it; `with` closes it."""

    def __init__(
        self, host: str, *, auth: tuple[str, str] | str | None = None, insecure: bool = False,
        ca: StrPath | None = None, mirrors: Sequence[str] = (), timeout: float = 30.0, retries: int = 5,
        connections: int = 3, chunk: int | None = None,
    ) -> None:  # fmt: skip
        """Create it.

        host         "name", "name:port" or "[address]:port"; "http://" or "https://" in front of it sets the scheme
        auth         (user, password), or a bearer token; None: what docker and podman have stored, else anonymous
        insecure     True: plain HTTP, or any certificate. A host of this machine may always use plain HTTP
        ca           a PEM file, or a directory of them, with certificates to trust beside those of the system
        mirrors      hosts or URLs to ask for manifests and blobs before the registry
        timeout      seconds without progress that break a connection
        retries      more attempts after a failure
        connections  blobs at a time, both ways
        chunk        bytes of an upload's parts; None: a layer goes in one piece

        Raises  TypeError, ValueError   an argument that cannot be
                OSError                 `ca` cannot be read
                NotSupportedError       urllib3 is not installed
        """
        place = places.place_of(host)
        self.place = places.asked_at(place)
        self.name = HUB if self.place.host != place.host or place.host == HUB else place.name
        try:
            from layerstore.registry.session import Manners, Session
        except ModuleNotFoundError as err:
            if err.name != "urllib3":
                raise
            raise NotSupportedError("registries need urllib3: pip install 'layerstore[registry]'") from None
        manners = Manners(insecure=insecure, timeout=timeout, retries=retries)
        self.connections, self.chunk = connections, chunk
        self.slots = threading.BoundedSemaphore(connections)
        self.session: Session = Session(self.place, manners)
        self.mirrors: list[Session] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def close(self) -> None:
        """Close the connections. Later calls raise RegistryError. Closing twice is harmless."""
        for session in (self.session, *self.mirrors):
            session.close()
