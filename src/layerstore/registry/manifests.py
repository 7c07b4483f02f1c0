"""Manifests and indexes as a registry, or a mirror of it, has them: fetched whole, and held against what they must be.

Enters: a repository, and a tag or a digest. Leaves: the bytes, and what they are. They are not looked into further than
to tell their kind.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from layerstore.documents.manifests import INDEXES, MANIFESTS, SCHEMA_1, check_digest, kind_of
from layerstore.errors import ImageError, InvalidDigestError, RegistryError
from layerstore.ids import Digest, is_digest, sha256_of
from layerstore.registry import headers
from layerstore.registry.calls import Call
from layerstore.values import Descriptor

if TYPE_CHECKING:
    from layerstore.registry.session import Answer, Session

log = logging.getLogger("layerstore")

MANIFEST_LIMIT = 4 << 20
ACCEPT = ", ".join((INDEXES[0], MANIFESTS[0], INDEXES[1], MANIFESTS[1]))


def fetch(
    call: Call, hosts: Sequence[Session], path: str, wanted: str, size: int = -1
) -> tuple[Descriptor, bytes]:  # fmt: skip
    """Return a manifest or an index, with its media type, digest and size.

    hosts    mirrors, and then the registry
    path     of the repository
    wanted   a tag or a digest
    size     what it must have, in bytes; -1: that is unknown
    Raises   RegistryError, ImageError: what came is something else
    """
    if size > MANIFEST_LIMIT:
        raise ImageError(f"the manifest {wanted} has {size} bytes, a manifest has at most {MANIFEST_LIMIT}")
    for mirror in hosts[:-1]:
        try:
            return _fetch(call, mirror, path, wanted, size)
        except (RegistryError, ImageError) as err:
            call.check()
            host = mirror.told("GET", "/v2/").host
            text = "Passing over the mirror %s for the manifest %s: %s"
            log.warning(text, host, wanted, err, extra={"host": host, "error": err})
    return _fetch(call, hosts[-1], path, wanted, size)


def _fetch(call: Call, session: Session, path: str, wanted: str, size: int) -> tuple[Descriptor, bytes]:
    where = f"/v2/{path}/manifests/{wanted}"
    answer = session.ask(
        call, "GET", where, scopes=(f"repository:{path}:pull",), headers={"Accept": ACCEPT}, limit=MANIFEST_LIMIT,
        beyond=ImageError,
    )
    data = answer.body
    place = f"{session.told('GET', '/v2/').host}/{path}"
    what = f"the manifest {wanted} of {place}" if is_digest(wanted) else f"the manifest of {place}:{wanted}"
    if size not in (-1, len(data)):
        raise ImageError(f"{what} has {len(data)} bytes, not the {size} its index says")
    digest = sha256_of(data)
    if is_digest(wanted):
        digest = Digest(wanted)
        check_digest(digest, data)
    said = headers.media_type(answer.headers.get("Content-Type"))
    if said not in SCHEMA_1:                # its digest is told without its signatures
        _check_told(answer, data, what)
    kind = kind_of(data, said, what)
    return Descriptor(kind, digest, len(data)), data


def _check_told(answer: Answer, data: bytes, what: str) -> None:
    """Raise ImageError where the registry says another digest than the bytes have."""
    try:
        told = Digest(answer.headers.get("Docker-Content-Digest").strip())
    except InvalidDigestError:
        return
    got = f"{told.algorithm}:{hashlib.new(told.algorithm, data).hexdigest()}"
    if got != told:
        raise ImageError(f"{what} is damaged: its digest is {got}, and the registry says {told}")
