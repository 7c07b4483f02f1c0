"""Image: what a config on the disk and its names say; and what a removal did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from layerstore.ids import ChainID, DiffID, Digest
from layerstore.layer import Top
from layerstore.values import Metadata


class Removed(NamedTuple):
    """What Images.remove() took away.

    untagged   the names that are gone
    deleted    the images, by id
    layers     their layers that nobody needs any more
    """

    untagged: tuple[str, ...]
    deleted: tuple[Digest, ...]
    layers: list[Metadata]


class ArchivedImage(NamedTuple):
    """An image as Images.list_archive() finds it in an archive.

    id            SHA-256 of its config; "" in archives from before Docker 1.10, where loading makes the config
    references    its names, "name:tag"
    digests       its names by digest, "name@sha256:..."
    diff_ids      the tars of its layers, base first; () where only the tars say
    layers        how many they are
    created       when it was made, as the config has it; ""
    """

    id: Digest | str
    references: tuple[str, ...]
    digests: tuple[str, ...]
    os: str
    architecture: str
    variant: str
    diff_ids: tuple[DiffID, ...]
    layers: int
    created: str


@dataclass(frozen=True)
class Image(Top):
    """One image of a store, as it was when it was asked for. Two are equal if their ids are."""

    id: Digest
    """SHA-256 of its config."""
    references: tuple[str, ...] = field(compare=False)
    """Its names, "name:tag"."""
    digests: tuple[str, ...] = field(compare=False)
    """Its names by digest, "name@sha256:..."."""
    config: dict[str, Any] = field(compare=False, repr=False)
    """The config, parsed: "config" in it is what a container runs with."""
    diff_ids: tuple[DiffID, ...] = field(compare=False, repr=False)
    """The tars of its layers, base first."""
    layers: tuple[ChainID, ...] = field(compare=False, repr=False)
    """Its layers, base first."""
    size: int = field(compare=False)
    """Bytes of the files of all layers."""
    parent: str = field(default="", compare=False, repr=False)
    """The id of the image it was built on, where Docker noted it."""

    def _text(self, key: str) -> str:
        value = self.config.get(key)
        return value if isinstance(value, str) else ""

    @property
    def created(self) -> str:
        """When it was made, RFC 3339 as in the config; "" where that does not say."""
        return self._text("created")

    @property
    def architecture(self) -> str:
        """For which processor: "amd64"."""
        return self._text("architecture")

    @property
    def variant(self) -> str:
        """For which variant of it: "v7"; mostly ""."""
        return self._text("variant")

    @property
    def os(self) -> str:
        """The operating system."""
        return self._text("os") or "linux"

    @property
    def top(self) -> ChainID | str:
        """Its uppermost layer, for Store.create_rw_layer(); "" where it has none."""
        return self.layers[-1] if self.layers else ""
