"""Image: what its config and its names say; and the result of a removal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from layerstore.ids import ChainID, DiffID, Digest
from layerstore.layer import Top
from layerstore.values import Metadata

if TYPE_CHECKING:
    from layerstore.store import Store


class Removed(NamedTuple):
    """What Images.remove() removed.

    untagged   names
    deleted    images, by id
    layers     their layers that nothing else needed, as Metadata
    """

    untagged: tuple[str, ...]
    deleted: tuple[Digest, ...]
    layers: list[Metadata]


class ArchivedImage(NamedTuple):
    """An image in an archive, as Images.list_archive() finds it.

    id            SHA-256 of its config; "" in archives from before Docker 1.10, where loading makes the config
    references    its names, "name:tag"
    digests       its names by digest, "name@sha256:..."
    os            its operating system, "linux"
    architecture  its processor, for example "amd64"
    variant       of the processor, for example "v7"; mostly ""
    diff_ids      the tars of its layers, base first; () if only the tars say
    layers        number of layers
    created       when it was made, as in the config; ""
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


def text_in(config: dict[str, Any], key: str) -> str:
    """Return a text of a config; "" if it has none of this name."""
    value = config.get(key)
    return value if isinstance(value, str) else ""


@dataclass(frozen=True)
class Image(Top):
    """One image of a store, as it was when it was read. Two are equal if their ids are.

    id           SHA-256 of its config
    references   its names, "name:tag"
    digests      its names by digest, "name@sha256:..."
    config       the parsed config: "config" in it is what a container runs with
    diff_ids     the tars of its layers, base first
    layers       its layers, base first
    size         bytes of the files of all layers
    parent       id of the image it was built on, if Docker noted it; else ""
    """

    id: Digest
    references: tuple[str, ...] = field(compare=False)
    digests: tuple[str, ...] = field(compare=False)
    config: dict[str, Any] = field(compare=False, repr=False)
    diff_ids: tuple[DiffID, ...] = field(compare=False, repr=False)
    layers: tuple[ChainID, ...] = field(compare=False, repr=False)
    size: int = field(compare=False)
    parent: str = field(default="", compare=False, repr=False)

    @property
    def created(self) -> str:
        """When it was made, RFC 3339 as in the config; "" if unknown."""
        return text_in(self.config, "created")

    @property
    def architecture(self) -> str:
        """Its processor, for example "amd64"."""
        return text_in(self.config, "architecture")

    @property
    def variant(self) -> str:
        """The variant of its processor, for example "v7"; mostly ""."""
        return text_in(self.config, "variant")

    @property
    def os(self) -> str:
        """The operating system."""
        return text_in(self.config, "os") or "linux"

    @property
    def top(self) -> ChainID | str:
        """Its top layer, for Store.create_rw_layer(); "" if it has none."""
        return self.layers[-1] if self.layers else ""


class Stored(Protocol):
    """The images of a store, as far as a pull or a push needs them."""

    @property
    def store(self) -> Store:
        """The store they are in."""
        ...

    def get(self, reference: str | Image) -> Image:
        """Return one."""
        ...
