"""Names of images: what people write becomes "name:tag" or "name@digest" as Docker shows and stores it.

Source: distribution/reference, regexp.go and normalize.go
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from layerstore.errors import ImageError, InvalidDigestError
from layerstore.ids import Digest

_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]+)?|\[[a-fA-F0-9:]+\](?::[0-9]+)?")
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")
_HEX_ID = re.compile(r"[a-f0-9]{64}")

HUB, _OFFICIAL = "docker.io", "library/"
_NAME_LIMIT = 255


class Reference(NamedTuple):
    """A name as Docker shows it ("busybox", "ghcr.io/a/b"), with a tag, a digest, or neither."""

    name: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        if self.digest:
            return f"{self.name}@{self.digest}"
        return f"{self.name}:{self.tag}" if self.tag else self.name

    def tagged(self) -> Reference:
        """Return the same name, with the tag "latest" if it has no tag and no digest."""
        return self if self.tag or self.digest else self._replace(tag="latest")

    @property
    def full_name(self) -> str:
        """The name with its registry, for example "docker.io/library/busybox"."""
        domain, path = split_domain(self.name)
        return f"{domain}/{path}"


def split_domain(name: str) -> tuple[str, str]:
    """Split a name into registry and path, both filled in."""
    if has_domain(name):
        first, _, path = name.partition("/")
        domain = HUB if first == "index.docker.io" else first
    else:
        domain, path = HUB, name
    if domain == HUB and "/" not in path:
        path = _OFFICIAL + path
    return domain, path


def parse(text: str) -> Reference:
    """Read a name.

    Raises  ImageError   it is none
    """
    if not isinstance(text, str):
        raise TypeError(f"the name of an image is a str, not {type(text).__name__}")
    if "://" in text or "/" in text.partition("@")[2]:
        raise _no_url(text)
    rest, at, digest = text.partition("@")
    head, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")
    name = f"{head}{slash}{last}"
    domain, path = split_domain(name) if name else ("", "")
    if path != path.lower():
        raise ImageError(f"invalid reference format: repository name must be lowercase: {text!r}", name=text)
    sound = (
        _DOMAIN.fullmatch(domain) and _PATH.fullmatch(path)
        and (_TAG.fullmatch(tag) if colon else True) and not _HEX_ID.fullmatch(name)
    )  # fmt: skip
    if not sound:
        raise ImageError(f"invalid reference format: {text!r}", name=text)
    if at:
        try:
            Digest(digest)
        except InvalidDigestError as err:
            raise ImageError(f"invalid reference format: {text!r}: {err}", name=text) from None
    if len(name) > _NAME_LIMIT:
        raise ImageError(f"repository name must not be more than {_NAME_LIMIT} characters", name=text[:2 * _NAME_LIMIT])
    if domain == HUB:
        path = path.removeprefix(_OFFICIAL) if "/" not in path.removeprefix(_OFFICIAL) else path
        return Reference(path, "" if at else tag, digest)
    return Reference(f"{domain}/{path}", "" if at else tag, digest)


def is_tag(text: str) -> bool:
    """Return True if a text may stand behind the colon of a name."""
    return _TAG.fullmatch(text) is not None


def has_domain(text: str) -> bool:
    """Return True if a name begins with a registry's, as docker tells it: "host.name/app", "localhost/app"."""
    first, slash, _ = text.partition("/")
    return bool(slash) and (any(c in first for c in ".:") or first == "localhost" or first.lower() != first)


class Within(NamedTuple):
    """A name as one registry knows it: the whole path, and a tag or a digest."""

    path: str
    tag: str
    digest: str

    @property
    def wanted(self) -> str:
        """What is asked for: the digest, or the tag."""
        return self.digest or self.tag


def parse_within(domain: str, text: str) -> Within:
    """Read a name that may leave out its registry; without tag and digest, the tag is "latest".

    domain  the registry that is asked: "host:port" or "docker.io"

    Raises  ImageError   it is none, or names another registry
    """
    if not isinstance(text, str):
        raise TypeError(f"the name of an image is a str, not {type(text).__name__}")
    # A host of one word, which no name can begin with, may be asked for its paths.
    before = domain if has_domain(f"{domain}/") else "localhost"
    named = parse(text if has_domain(text) else f"{before}/{text}").tagged()
    other, path = split_domain(named.name)
    if has_domain(text) and other.lower() != domain:
        raise ImageError(f"{text!r} is a name of the registry {other}, and {domain} was to be asked", name=text)
    return Within(path, named.tag, named.digest)


def _no_url(text: str) -> ImageError:
    """Return the error for an address; its user, password and query are left out."""
    scheme, separator, rest = text.rpartition("://")
    user, at, place = rest.rpartition("@")
    place, query, _ = place.partition("?")
    shown = "".join((scheme, separator, user and "...", at, place, query and "?..."))
    why = "the name of an image begins with the registry's host, without a scheme, a user and a password"
    return ImageError(f"invalid reference format: {shown!r}: {why}", name=shown)


def parse_tags(tags: str | Iterable[str]) -> list[str]:
    """Return the full names, with tags, in a `tags` argument. Raises ImageError."""
    return [str(parse(tag).tagged()) for tag in ([tags] if isinstance(tags, str) else tags)]


def split(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names with a tag and those by digest, both sorted."""
    found = sorted(names)
    return tuple(name for name in found if "@" not in name), tuple(name for name in found if "@" in name)


def parse_or_none(text: object) -> Reference | None:
    """Read a name, if it is one."""
    try:
        return parse(text) if isinstance(text, str) else None
    except ImageError:
        return None


def from_file_name(stem: str, tag: str) -> str | None:
    """Make a name of a layout's own name and a bare tag in it, as its tools call it: "dir:tag". None: it makes none."""
    name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")
    found = parse_or_none(f"{name}:{tag}")
    return str(found) if found else None


def parse_all(text: object, digest: str) -> list[Reference]:
    """Read what a layout calls an entry: "name", "name:tag", "name@digest" or "name:tag@digest"; [] where it is none.

    digest   the entry's own: a name by digest is kept only where it is that one
    """
    if not isinstance(text, str):
        return []
    name, at, said = text.partition("@")
    found = []
    called = parse_or_none(name)
    if called and called.name != "sha256":
        if not at or called.tag:
            found.append(called.tagged())
        if at and said == digest:
            found.append(Reference(called.name, "", said))
    return found
