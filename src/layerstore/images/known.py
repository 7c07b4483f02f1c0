"""Which blobs may hold a layer in a registry already: what a push asks for before it sends anything.

Enters: the layer's descriptor, and docker's notes. Leaves: candidates, the likeliest first, each checked as far as it
can be without asking.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from layerstore.documents import references
from layerstore.documents.manifests import OCI_LAYER
from layerstore.errors import InvalidDigestError
from layerstore.ids import Digest
from layerstore.layerdb.distribution import Entry
from layerstore.values import Descriptor

# Of docker's notes, the newest of so many of the registry, and of so many others.
_ENTRIES = 5
_LAYER = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1|docker\.image\.rootfs\.(?:foreign\.)?diff)"
    r"\.tar(?:[+.](gzip|zstd))?"
)
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


class Candidate(NamedTuple):
    """A blob that may be there.

    size         -1: unknown
    media_type   OCI's; "": unknown
    sources      paths of repositories of the same registry that had it, newest first
    """

    digest: Digest
    size: int
    media_type: str
    sources: tuple[str, ...] = ()

    def joined(self, other: Candidate) -> Candidate:
        """Return what both say of the same blob."""
        sources = tuple(dict.fromkeys([*self.sources, *other.sources]))
        size = self.size if self.size >= 0 else other.size
        return Candidate(self.digest, size, self.media_type or other.media_type, sources)


def layer_type(compression: str | None) -> str:
    """Return OCI's media type of a layer."""
    return OCI_LAYER + (f"+{compression}" if compression else "")


def oci_type(media_type: str) -> str:
    """Return OCI's media type of the same compression; "" if a type does not tell which."""
    found = _LAYER.fullmatch(media_type)
    return layer_type(found[1]) if found else ""


def type_of(head: bytes) -> str:
    """Return the media type of a blob that begins so."""
    return layer_type(next((how for magic, how in _MAGIC.items() if head.startswith(magic)), None))


def candidates(
    descriptor: Descriptor | None, entries: Iterable[Entry], domain: str, path: str
) -> list[Candidate]:
    """Return the blobs that may hold a layer, each once.

    descriptor   of the layer as it is stored
    entries      docker's notes of it, newest first
    domain, path of the repository that it is pushed to
    """
    found: dict[Digest, Candidate] = {}

    def add(each: Candidate) -> None:
        found[each.digest] = found[each.digest].joined(each) if each.digest in found else each

    if descriptor and descriptor.digest:
        try:
            add(Candidate(Digest(descriptor.digest), descriptor.size or -1, oci_type(descriptor.media_type)))
        except InvalidDigestError:
            pass
    left = {True: _ENTRIES, False: _ENTRIES}
    for entry in entries:
        called = references.parse_or_none(entry.repository)
        if called is None or called.tag or called.digest:
            continue
        its_domain, its_path = references.split_domain(called.name)
        is_here = its_domain == domain
        if left[is_here]:
            left[is_here] -= 1
            sources = (its_path,) if is_here and its_path != path else ()
            size = -1 if entry.size is None else entry.size
            add(Candidate(entry.digest, size, oci_type(entry.media_type), sources))
    return list(found.values())
