"""Images of OCI layouts, and of what else names blobs by digest: from an index down to the images that serve.

An index names manifests, and other indexes. What is no image (a chart, an SBOM, a signature, an attestation, an image
of another system) is skipped, and so is what an archive of one platform leaves out; both are errors only if no image
remains.
Source: OCI image-layout.md, image-index.md and annotations.md; containerd, images/archive/importer.go
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from layerstore.documents import manifests, references
from layerstore.documents.configs import NoImageError, parse_config
from layerstore.documents.platforms import Platform, normalized, rank
from layerstore.errors import ImageError, readable
from layerstore.ids import Digest
from layerstore.images.planned import ARCHIVE, Planned, PlannedLayer
from layerstore.images.shelf import MissingError

# Indexes within indexes, and manifests altogether.
_DEPTH_LIMIT = 8
MANIFESTS_LIMIT = 4096


class Wanted(NamedTuple):
    """Which images to load.

    platform  whose; None: all that are there
    asked     the caller named this platform; else it is this host's, and another one serves if it is the only one
    complete  the whole archive is read; else MissingError tells that a document has not come yet
    stem      the name of the archive itself, for names that are only tags; ""
    named     names were given: those in the archive do not matter
    where     what has the images, in words; "": an archive
    """

    platform: Platform | None
    asked: bool
    complete: bool
    stem: str
    named: bool
    where: str = ""


class Readable(Protocol):
    """What an index and what it leads to are read from."""

    def read(self, name: str, blob: manifests.Blob) -> bytes:
        """Read a document by its descriptor. Raises MissingError, ImageError: its bytes are others."""
        ...


class _Leaf(NamedTuple):
    """A manifest that an index leads to, and the platform that it is said to be for."""

    blob: manifests.Blob
    platform: Platform | None


def place_in_layout(digest: Digest, *, manifest: bool = False) -> str:
    """Return the path of a blob in an OCI layout."""
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def is_attestation(blob: manifests.Blob) -> bool:
    """Return True if an entry is a builder's statement about an image, and no image."""
    kind = blob.annotations.get("vnd.docker.reference.type")
    return kind == "attestation-manifest" or (blob.platform is not None and blob.platform.os == "unknown")


class Layout:
    """The images that an index leads to."""

    def __init__(self, documents: Readable, wanted: Wanted, place: Callable[..., str] = place_in_layout) -> None:
        """place   returns the path of a digest; manifest=True: of a manifest or an index"""
        self._documents, self._wanted, self._place = documents, wanted, place
        self._where, self._layout = wanted.where or ARCHIVE, wanted.where or "the layout"
        self._manifests = 0
        self.notes: list[str] = []
        self._no_images: list[ImageError] = []
        self._lacking: list[ImageError] = []
        self._unfit: list[ImageError] = []

    def images(self, index: Sequence[manifests.Blob]) -> list[Planned]:
        """Return them. Raises MissingError, ImageError."""
        groups: dict[tuple[str, ...], list[manifests.Blob]] = {}
        for blob in index:
            if not is_attestation(blob):
                groups.setdefault(_group(blob), []).append(blob)
        found: list[Planned] = []
        for group, blobs in groups.items():
            images = self._chosen(blobs, flat=group == ("",))
            names = self._names(blobs[0], images) if images else []
            found += [image._replace(references=names) for image in images]
        if not found:
            raise self._why_none()
        self.notes += [f"passed over: {error}" for error in (*self._no_images, *self._unfit, *self._lacking)]
        return found

    def _why_none(self) -> ImageError:
        for errors in (self._unfit, self._no_images, self._lacking):
            if errors:
                others = (other for other in (self._lacking, self._no_images) if other is not errors)
                also = next((other[0] for other in others if other), None)
                return type(errors[0])(f"{errors[0]}; {also}") if also else errors[0]
        return ImageError(f"there is no image in {self._layout}")

    # ---- names ----

    def _names(self, blob: manifests.Blob, images: Sequence[Planned]) -> list[str]:
        if self._wanted.named:
            return []
        if self._wanted.stem and _bare_tag(blob) and _clash(images):
            tag = readable(blob.annotations[manifests.REF_NAME][:200])
            self.notes.append(f"images keep no name: several for one platform have the tag {tag!r}, and no repository")
            return []
        keys = (manifests.REF_NAME, manifests.CONTAINERD_NAME)
        said = [blob.annotations[key] for key in keys if blob.annotations.get(key)]
        found = [str(each) for each in _references(blob, self._wanted.stem)]
        if said and not found:
            where = "" if self._wanted.stem else " (the archive itself has no name that a bare tag could go with)"
            self.notes.append(f"the image keeps no name: {readable(said[0][:200])!r} is none of Docker's{where}")
        return found

    # ---- from an entry to the manifests below ----

    def _read(self, blob: manifests.Blob, *, manifest: bool) -> bytes | None:
        try:
            return self._documents.read(self._place(blob.digest, manifest=manifest), blob)
        except MissingError as err:
            if not self._wanted.complete:
                raise
            self._lacking.append(err)
            return None

    def _parsed(self, blob: manifests.Blob) -> manifests.Manifest | list[manifests.Blob] | None:
        """Read a manifest or an index; None: it is not there, or no image's."""
        if blob.media_type not in (*manifests.INDEXES, *manifests.MANIFESTS, *manifests.VAGUE):
            kind = readable(blob.media_type[:100])
            self._no_images.append(NoImageError(f"the blob {blob.digest} is not an image but {kind!r}"))
            return None
        data = self._read(blob, manifest=True)
        if data is None:
            return None
        try:
            return manifests.parse_manifest_or_index(data, blob.media_type, f"the manifest {blob.digest}")
        except NoImageError as err:
            self._no_images.append(err)
            return None

    def _leaves(self, blob: manifests.Blob, depth: int = 0) -> Iterator[_Leaf]:
        if depth > _DEPTH_LIMIT:
            raise ImageError(f"indexes lie more than {_DEPTH_LIMIT} deep in each other, or in a circle")
        self._manifests += 1
        if self._manifests > MANIFESTS_LIMIT:
            raise ImageError(f"{self._layout} has more than {MANIFESTS_LIMIT} manifests")
        if is_attestation(blob):
            return
        if blob.media_type not in manifests.MANIFESTS:
            parsed = self._parsed(blob)
            if parsed is None:
                return
            if isinstance(parsed, list):
                for entry in parsed:
                    yield from self._leaves(entry, depth + 1)
                return
        yield _Leaf(blob, normalized(*blob.platform) if blob.platform else None)

    # ---- from a manifest to an image ----

    def _image(self, leaf: _Leaf) -> Planned | None:
        """Return the image of a manifest; None: it has none, or its config is not there."""
        manifest = self._parsed(leaf.blob)
        if not isinstance(manifest, manifests.Manifest):
            return None
        what = f"the manifest {leaf.blob.digest}"
        data = self._read(manifest.config, manifest=False)
        if data is None:
            return None
        try:
            config = parse_config(data, f"the config {manifest.config.digest}")
        except NoImageError as err:
            self._no_images.append(err)
            return None
        is_for = normalized(*config.platform)
        if self._wanted.asked and leaf.platform and is_for.architecture and is_for[:2] != leaf.platform[:2]:
            raise ImageError(f"{what} is for {config.platform}, not for {leaf.platform}")
        if len(manifest.layers) != len(config.diff_ids):
            raise ImageError(f"{what} has {len(manifest.layers)} layers, its config {len(config.diff_ids)}")
        layers = [
            PlannedLayer(self._place(blob.digest), diff_id, blob.digest, blob.size)
            for blob, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
        ]
        return Planned(config, layers, [], manifest=leaf.blob.digest)

    # ---- which of them ----

    def _chosen(self, blobs: Sequence[manifests.Blob], *, flat: bool) -> list[Planned]:
        """Return the images of entries of one name: those that serve best.

        flat   they have no name: one image for several platforms, or several images
        """
        pool: dict[tuple[Digest, Platform | None], tuple[int, _Leaf]] = {}
        for entry, blob in enumerate(blobs):
            for leaf in self._leaves(blob):
                pool.setdefault((leaf.blob.digest, leaf.platform), (entry, leaf))
        entries, leaves = [entry for entry, _ in pool.values()], [leaf for _, leaf in pool.values()]
        made: dict[int, Planned | None] = {}

        def image(number: int) -> Planned | None:
            if number not in made:
                made[number] = self._image(leaves[number])
            return made[number]

        def platform_of(number: int) -> Platform | None:
            platform = leaves[number].platform
            if platform is None and (found := image(number)) and found.config:
                platform = normalized(*found.config.platform)
            return platform

        everything = range(len(leaves))
        wanted = self._wanted.platform
        if wanted is None:
            return [found for number in everything if (found := image(number))]
        platforms = {number: platform for number in everything if (platform := platform_of(number))}
        ranks = {number: serves for number, has in platforms.items() if (serves := rank(has, wanted))}
        for best in sorted(set(ranks.values()), reverse=True):
            chosen: dict[int, Planned] = {}
            # What an index says goes before what only a config says, as for containers/image.
            serving = [number for number in ranks if ranks[number] == best]
            for number in sorted(serving, key=lambda number: leaves[number].platform is None):
                if entries[number] not in chosen and (found := image(number)):
                    chosen[entries[number]] = found
            if chosen:
                left_out = sorted({str(platforms[number]) for number in platforms.keys() - ranks.keys()})
                if flat and left_out:
                    self.notes.append(f"left out: images without a name for {', '.join(left_out)[:500]}")
                return list(chosen.values())
        if not self._wanted.asked:
            others = {number: found for number in everything if number not in ranks and (found := image(number))}
            if len({platforms.get(number) for number in others}) == 1:
                return list(others.values())
        if ranks:
            self._unfit.append(ImageError(f"the image for {wanted} in {self._where} cannot be had here"))
        elif platforms:
            has = ", ".join(sorted({str(platform) for platform in platforms.values()}))[:500]
            self._unfit.append(ImageError(
                f"no image for {wanted} in {self._where}, which has {has}" if len(platforms) > 1 else
                f"no image for {wanted} in {self._where}: what it has is for {has}, not for {wanted}"
            ))  # fmt: skip
        return []

    # ---- what else reads an index ----

    def configs(self, index: Sequence[manifests.Blob]) -> tuple[dict[str, set[str]], bool]:
        """Return the configs that an index leads to, by name ("": all), and True if that is all of them.

        Nothing here is an error: another document says what is loaded.
        """
        found: dict[str, set[str]] = {"": set()}
        whole = True
        for blob in index:
            if is_attestation(blob):
                continue
            before = len(self._lacking)
            ids: set[str] = set()
            try:
                for leaf in self._leaves(blob):
                    manifest = self._parsed(leaf.blob)
                    if isinstance(manifest, manifests.Manifest):
                        ids.add(manifest.config.digest)
            except MissingError:
                raise
            except ImageError:
                whole = False
            whole = whole and len(self._lacking) == before
            for name in ("", *(str(each) for each in _references(blob, ""))):
                found.setdefault(name, set()).update(ids)
        return found, whole


def _group(blob: manifests.Blob) -> tuple[str, ...]:
    """Return what entries have in common that are one image for several platforms."""
    named = (blob.annotations.get(manifests.CONTAINERD_NAME) or "", blob.annotations.get(manifests.REF_NAME) or "")
    if any(named):
        return named
    own = blob.annotations.get(manifests.OWN_IMAGE) or (blob.digest if blob.media_type in manifests.INDEXES else "")
    return ("own", own, "") if own else ("",)


def _bare_tag(blob: manifests.Blob) -> bool:
    """Return True if the name of an entry is a tag without a repository: the archive's own name must serve."""
    name = blob.annotations.get(manifests.REF_NAME) or ""
    return bool(name) and not set("/:") & set(name) and not _references(blob, "")


def _clash(images: Sequence[Planned]) -> bool:
    """Return True if several images are for one platform."""
    configs = {image.config.id: image.config for image in images if image.config}
    return len({normalized(*config.platform) for config in configs.values()}) < len(configs)


def _references(blob: manifests.Blob, stem: str) -> list[references.Reference]:
    """Return the names of an entry that Docker accepts."""
    full = references.parse_all(blob.annotations.get(manifests.CONTAINERD_NAME), blob.digest)
    name = blob.annotations.get(manifests.REF_NAME)
    if not name:
        return full
    if "/" in name or ":" in name:
        return references.parse_all(name, blob.digest) or full
    if full:
        # A tool that knows only the latter, as umoci does, leaves the former as it was on a new image.
        moved = references.parse_or_none(f"{full[0].name}:{name}")
        return [moved, *(each for each in full if each.digest)] if moved else full
    made = references.from_file_name(stem, name) if stem else None
    return [references.parse(made)] if made else []
