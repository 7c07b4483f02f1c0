"""What a registry lists, page by page: the tags of a repository, and what refers to a manifest.

The pages are the registry's own, on its own host; their number and all that they list are bounded. Mirrors are never
asked: what they list may be old.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

from layerstore.documents import gojson
from layerstore.documents.manifests import INDEXES, MANIFESTS
from layerstore.documents.references import Within, is_tag
from layerstore.errors import InvalidDigestError, RegistryError
from layerstore.ids import Digest, sha256_of
from layerstore.registry import headers, places
from layerstore.registry.calls import Call
from layerstore.registry.session import Answer, Session
from layerstore.values import Descriptor

_ACCEPT: Final = ", ".join((*INDEXES, *MANIFESTS))
_PAGE_LIMIT: Final = 4 << 20
_MOST_PAGES: Final = 1000
_MOST_LISTED: Final = 1_000_000
# Lists and objects in one page of tags: some registries tell of each manifest beside them.
_MOST_CONTAINERS: Final = 100_000

_DESCRIPTOR: gojson.Table = {
    "mediaType": gojson.text, "digest": gojson.text, "size": gojson.int64, "artifactType": gojson.text,
    "annotations": gojson.map_of(gojson.text),
}  # fmt: skip
_INDEX: gojson.Table = {"mediaType": gojson.text, "manifests": gojson.list_of(gojson.struct(_DESCRIPTOR), "objects")}


def tags(call: Call, session: Session, path: str) -> list[str]:
    """Return the tags of a repository, in the registry's order.

    Raises  RegistryError   NotInRegistryError: there is no such repository
    """
    found: list[str] = []
    for answer in _pages(call, session, path, f"/v2/{path}/tags/list", (200,)):
        found += _tags_of(answer)
        _check_number(answer, len(found))
    return found


def referrers(call: Call, session: Session, named: Within, artifact_type: str | None) -> list[Descriptor]:
    """Return what refers to a manifest.

    named          its name, with a tag or a digest
    artifact_type  only those of this type; None: all

    Raises  RegistryError   NotInRegistryError: there is no such tag
    """
    path = named.path
    digest = Digest(named.digest) if named.digest else _digest_of(call, session, path, named.tag)
    first = f"/v2/{path}/referrers/{digest}"
    if artifact_type is not None:
        first += f"?artifactType={quote(artifact_type, safe='')}"
    found: list[Descriptor] = []
    for answer in _pages(call, session, path, first, (200, 404)):
        if answer.status == 404:           # an older registry: they are in an index by a tag of their own, if there are
            if found:
                raise _malformed(answer, "a page that was promised is missing")
            answer = _ask(call, session, path, f"/v2/{path}/manifests/{digest.algorithm}-{digest.encoded}", (200, 404))
        listed = _descriptors_of(answer) if answer.status == 200 else []
        if artifact_type is not None and not _is_filtered(answer):
            listed = [each for each in listed if each.artifact_type == artifact_type]
        found += listed
        _check_number(answer, len(found))
    return found


# ---- pages -------------------------------------------------------------------------------------


def _ask(call: Call, session: Session, path: str, where: str, expect: tuple[int, ...], method: str = "GET") -> Answer:
    return session.ask(
        call, method, where, scopes=(f"repository:{path}:pull",), headers={"Accept": _ACCEPT}, expect=expect,
        limit=_PAGE_LIMIT,
    )  # fmt: skip


def _pages(call: Call, session: Session, path: str, first: str, expect: tuple[int, ...]) -> Iterator[Answer]:
    """Return the answers of a list, each as the one before it names it."""
    where, seen = first, {first}
    while True:
        answer = _ask(call, session, path, where, expect)
        yield answer
        target = _next(session, answer)
        if target is None:
            return
        if target.path in seen:
            raise _malformed(answer, "its pages go round in a circle")
        if len(seen) >= _MOST_PAGES:
            raise _malformed(answer, f"it has more than {_MOST_PAGES} pages")
        seen.add(target.path)
        where = target.url


def _next(session: Session, answer: Answer) -> places.Target | None:
    """Return where the next page is; None: there is none. Raises RegistryError: it is on another host."""
    link = headers.next_link(", ".join(answer.headers.all("Link")))
    if answer.status != 200 or not link:
        return None
    here = places.check_named(answer.url, session.place).place
    target = places.check_named(link, session.place._replace(scheme=here.scheme), answer.url)
    if not target.place.is_same(here):
        raise _malformed(answer, f"its next page is at {target.told}, which is another place")
    return target


def _malformed(answer: Answer, why: str) -> RegistryError:
    return RegistryError(f"GET {answer.url}: {why}", status=answer.status, host=answer.host)


def _check_number(answer: Answer, number: int) -> None:
    if number > _MOST_LISTED:
        raise _malformed(answer, f"it lists more than {_MOST_LISTED} names")


# ---- what a page has ---------------------------------------------------------------------------


def _tags_of(answer: Answer) -> list[str]:
    listed = _list_of_tags(answer.body)
    if listed is None:
        raise _malformed(answer, "the answer is not a JSON document with a list of tags")
    if not all(map(is_tag, listed)):
        raise _malformed(answer, "it lists a tag that no image can have")
    return listed


def _list_of_tags(data: bytes) -> list[str] | None:
    """Return the tags in a page; None: it is malformed, or would take much more memory than its bytes."""
    if data.count(b"[") + data.count(b"{") > _MOST_CONTAINERS:
        return None
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    listed = (found.get("tags") or []) if isinstance(found, dict) else None
    sound = isinstance(listed, list) and all(isinstance(tag, str) for tag in listed)
    return listed if sound else None


def _descriptors_of(answer: Answer) -> list[Descriptor]:
    """Return what an index has; nothing, if it is a document of another kind."""
    found = gojson.or_none(gojson.parse_struct, answer.body, _INDEX, "the index")
    if found is None:
        raise _malformed(answer, "the answer is not the JSON document of an index")
    kind = found.get("mediaType") or headers.media_type(answer.headers.get("Content-Type"))
    if kind not in INDEXES and "manifests" not in found:
        return []
    made = [_descriptor(entry) for entry in found.get("manifests", [])]
    if None in made:
        raise _malformed(answer, "an entry of the index has no digest or no size that there can be")
    return [each for each in made if each is not None]


def _descriptor(found: dict[str, Any] | None) -> Descriptor | None:
    try:
        digest = Digest((found or {}).get("digest", ""))
    except InvalidDigestError:
        return None
    size = (found or {}).get("size", -1)
    if found is None or size < 0:
        return None
    annotations = found.get("annotations")
    if annotations is not None:                            # null is of every kind, and says nothing
        annotations = {name: text or "" for name, text in annotations.items()}
    return Descriptor(found.get("mediaType", ""), digest, size, (), annotations, found.get("artifactType", ""))


def _is_filtered(answer: Answer) -> bool:
    applied = ",".join(answer.headers.all("OCI-Filters-Applied"))
    return "artifacttype" in [word.strip().lower() for word in applied.split(",")]


def _digest_of(call: Call, session: Session, path: str, tag: str) -> Digest:
    """Return what a tag names."""
    where = f"/v2/{path}/manifests/{tag}"
    answer = _ask(call, session, path, where, (200,), "HEAD")
    try:
        return Digest(answer.headers.get("Docker-Content-Digest").strip())
    except InvalidDigestError:
        return sha256_of(_ask(call, session, path, where, (200,)).body)
