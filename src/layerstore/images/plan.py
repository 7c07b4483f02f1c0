"""What an archive holds: from its documents to the images that are to be loaded.

Four kinds are told apart by what is there: a list in manifest.json (docker save since 1.10, also beside an OCI layout
since 25), an object in manifest.json (a registry's, as `skopeo copy ... dir:` writes it), index.json (an OCI layout),
repositories or <id>/layer.tar alone (docker save before 1.10).
Source: moby, image/tarexport/load.go; OCI image-layout.md and image-index.md; containers/image, directory/
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any

from layerstore.documents import references
from layerstore.documents.configs import LAYERS_LIMIT, NoImageError, parse_config
from layerstore.documents.gojson import parse_object, top_keys
from layerstore.documents.manifests import (
    Blob,
    Saved,
    check_digest,
    check_layout,
    parse_index,
    parse_saved,
)
from layerstore.documents.platforms import Platform, host_platform, normalized, parse_platform, rank
from layerstore.errors import ImageError, readable
from layerstore.ids import ChainID, Digest, chain_on, sha256_of
from layerstore.images import v1
from layerstore.images.archive import plain_path
from layerstore.images.layouts import MANIFESTS_LIMIT, Layout, Wanted
from layerstore.images.planned import Documents, Planned, PlannedLayer, digest_in
from layerstore.images.shelf import MissingError, Shelf, needed

log = logging.getLogger("layerstore")

# Layers of the oldest archives, which no list names.
_V1_LIMIT = 10_000
_CONFIG_NAME = re.compile(r"([a-f0-9]{64})\.json")


def plan(
    shelf: Shelf, platform: str | None, stem: str = "", *, complete: bool = True, named: bool = False,
    known: Callable[[ChainID], bool] | None = None,
) -> list[Planned]:  # fmt: skip
    """Return the images to load, in the archive's order, each once.

    platform   as Images.load() takes it
    stem       the name of the archive itself, for names that are only tags
    complete   False: more of the archive may come
    named      names were given: those in the archive do not matter
    known      True if the store has a layer, which the archive need not have then; None: no layer is needed

    Raises  MissingError   a document is not there (yet)
            ImageError     one is malformed, or none fits the platform
    """
    of = None if platform == "all" else parse_platform(platform) if platform is not None else host_platform()
    wanted = Wanted(of, platform is not None, complete, stem, named)
    found, notes = _found(Documents(shelf), wanted)
    found = _merged(found)
    if of is None and complete and known:
        found = _those_with_layers(found, shelf, known, notes)
    found = _settled(found, of or host_platform())
    for note in notes if complete else ():
        log.warning("Images of an archive: %s", note)
    return found


def _found(documents: Documents, wanted: Wanted) -> tuple[list[Planned], list[str]]:
    has_index = documents.document("index.json") is not None
    data = documents.document("manifest.json")
    if data is not None:
        saved = parse_saved(data, "manifest.json")
        if saved is not None:
            return _Saved(documents, wanted).images(saved, has_index=has_index)
        if has_index or not top_keys(data, "manifest.json") & {"config", "manifests", "fslayers"}:
            raise ImageError("manifest.json is not a list of images")
        return _of_directory(documents, data, wanted)
    if has_index:
        return _of_layout(documents, wanted)
    return _of_v1(documents, wanted), []


def _merged(images: Iterable[Planned]) -> list[Planned]:
    """Return each image once, with all its names."""
    found: dict[str, Planned] = {}
    for number, image in enumerate(images):
        key = image.config.id if image.config else f"v1 {number}"
        if key in found:
            image = found[key]._replace(references=[*found[key].references, *image.references])
        found[key] = image._replace(references=list(dict.fromkeys(image.references)))
    return list(found.values())


def _settled(images: list[Planned], wanted: Platform) -> list[Planned]:
    """Leave each name to one image: of those for several platforms, the one that serves best."""
    best: dict[str, tuple[tuple[int, str], int]] = {}
    for number, image in enumerate(images):
        has = normalized(*image.config.platform) if image.config else wanted
        serves = rank(has, wanted) or (-1, str(has))
        for name in image.references:
            before = best.get(name)
            if before and before[0] == serves:
                raise ImageError(f"the archive has two images for {has} with the name {name}: others take either")
            if not before or serves > before[0]:
                best[name] = (serves, number)
    return [
        image._replace(references=[name for name in image.references if best[name][1] == number])
        for number, image in enumerate(images)
    ]


def _those_with_layers(
    images: list[Planned], shelf: Shelf, known: Callable[[ChainID], bool], notes: list[str]
) -> list[Planned]:
    """Return the images of all platforms whose layers are there."""
    found, lacking = [], []
    for image in images:
        parent: ChainID | str = ""
        for layer in image.layers:
            parent = chain_on(parent, layer.diff_id) if layer.diff_id else ""
            if layer.name and not shelf.has(layer.name) and not (parent and known(ChainID(parent))):
                lacking.append(f"passed over: the archive has no {readable(layer.name)}")
                break
        else:
            found.append(image)
    if not found:
        return images
    notes += lacking
    return found


# ---- docker save since 1.10 ----


def _path(text: str, what: str) -> str:
    """Return a path in the archive, from its root. Raises ImageError: it leads outside."""
    path = plain_path(text)
    if not path or path == ".":
        raise ImageError(f"{what} names a path outside of the archive: {readable(text[:200])!r}")
    return path


class _Saved:
    """The images that docker's manifest.json names."""

    def __init__(self, documents: Documents, wanted: Wanted) -> None:
        self._documents, self._wanted = documents, wanted
        self._what = "manifest.json"

    def images(self, saved: list[Saved], *, has_index: bool) -> tuple[list[Planned], list[str]]:
        if len(saved) > MANIFESTS_LIMIT:
            raise ImageError(f"{self._what} has more than {MANIFESTS_LIMIT} images")
        found: list[Planned] = []
        notes: list[str] = []
        errors: list[NoImageError] = []
        for entry in saved:
            try:
                found.append(self._image(entry))
            except NoImageError as err:
                errors.append(err)
        if not found and errors:
            raise errors[0]
        if has_index and self._wanted.complete:
            self._agree(found)
        platform = self._wanted.platform
        serving = found
        if platform is not None and self._wanted.asked:
            serving = [image for image in found if image.config and rank(normalized(*image.config.platform), platform)]
        if self._wanted.asked and has_index and (platform is None or not serving):
            more, notes = self._of_index()
            serving = [*serving, *more]
        if not serving and platform is not None:
            has = ", ".join(sorted({str(normalized(*image.config.platform)) for image in found if image.config}))
            raise ImageError(f"no image in the archive is for {platform}" + (f", but for {has}" if has else ""))
        return serving, [*notes, *(f"passed over: {error}" for error in errors)]

    def _image(self, entry: Saved) -> Planned:
        what = self._what
        name = _path(entry.config, what)
        data = needed(self._documents, name)
        hexes = _CONFIG_NAME.fullmatch(name)
        digest = Digest(f"sha256:{hexes[1]}") if hexes else digest_in(name)
        if digest:
            check_digest(digest, data)
        config = parse_config(data, f"the config {readable(name)}")
        paths = [_path(path, what) if path else "" for path in entry.layers]
        if len(paths) != len(config.diff_ids):
            raise ImageError(
                f"invalid manifest, layers length mismatch: expected {len(config.diff_ids)}, got {len(paths)}"
            )
        layers = [PlannedLayer(p, d, digest_in(p)) for p, d in zip(paths, config.diff_ids, strict=True)]
        names = [] if self._wanted.named else references.parse_tags(entry.names)
        return Planned(config, layers, names, entry.parent)

    def _of_index(self) -> tuple[list[Planned], list[str]]:
        """Return what index.json has besides, for other platforms. An error there is a note: manifest.json is valid."""
        try:
            return _of_layout(self._documents, self._wanted)
        except MissingError:
            if not self._wanted.complete:
                raise
            return [], []
        except ImageError as err:
            return [], [f"index.json: {err}"]

    def _agree(self, images: list[Planned]) -> None:
        """Raise ImageError where readers of index.json see other images under the same names, or other images only."""
        try:
            index = parse_index(needed(self._documents, "index.json"), "index.json")
        except ImageError as err:
            if " at once" in str(err):
                raise
            return
        there, whole = Layout(self._documents, self._wanted).configs(index)
        for image in images:
            id = image.config.id if image.config else ""
            for name in image.references:
                if there.get(name) and id not in there[name]:
                    raise ImageError(f"manifest.json and index.json name different images {name}")
            if whole and there[""] and id not in there[""]:
                raise ImageError(f"manifest.json has the image {id}, and index.json has others, without it")


# ---- layouts ----


def _of_layout(documents: Documents, wanted: Wanted) -> tuple[list[Planned], list[str]]:
    layout = documents.document("oci-layout")
    if layout is not None:
        check_layout(layout)
    index = parse_index(needed(documents, "index.json"), "index.json")
    reader = Layout(documents, wanted)
    return reader.images(index), reader.notes


def _of_directory(documents: Documents, data: bytes, wanted: Wanted) -> tuple[list[Planned], list[str]]:
    """Read what `skopeo copy ... dir:` writes: manifest.json is a registry's, blobs are named by their digests."""
    top = sha256_of(data)

    def place(digest: Digest, *, manifest: bool = False) -> str:
        if digest == top and manifest:
            return "manifest.json"
        name = digest.encoded if digest.algorithm == "sha256" else f"{digest.algorithm}-{digest.encoded}"
        return f"{name}.manifest.json" if manifest else name

    reader = Layout(documents, wanted, place)
    return reader.images([Blob(top, len(data), "", None, {})]), reader.notes


# ---- docker save before 1.10 ----


def _of_v1(shelf: Documents, wanted: Wanted) -> list[Planned]:
    data = shelf.document("repositories")
    names: dict[str, list[str]] = {}
    if data is not None:
        for name, tags in parse_object(data, "repositories").items():
            if not isinstance(tags, dict):
                raise ImageError("repositories does not name images")
            for tag, id in tags.items():
                if not isinstance(id, str):
                    raise ImageError("repositories does not name images")
                called = [] if wanted.named else [str(references.parse(f"{name}:{tag}"))]
                names.setdefault(id, []).extend(called)
    tars = (path for path in shelf.names() if path.endswith("/layer.tar") and path.count("/") == 1)
    ids = sorted(path.removesuffix("/layer.tar") for path in itertools.islice(tars, _V1_LIMIT + 1))
    if len(ids) > _V1_LIMIT:
        raise ImageError(f"the archive has more than {_V1_LIMIT} layers")
    if data is None and not ids:
        raise MissingError("this is not an archive of images: it has no manifest.json, no index.json, no repositories")
    below = {id: v1.parent_of(_v1_document(shelf, id)) for id in ids}
    tops = names.keys() or (below.keys() - set(below.values()))
    found = []
    for top in [*names, *sorted(tops - names.keys())]:
        found.append(_v1_image(shelf, top, names.get(top, [])))
    return found


def _v1_document(shelf: Documents, id: str) -> dict[str, Any]:
    if not re.fullmatch(r"[a-f0-9]{64}", id):
        raise ImageError(f"{readable(id[:80])!r} is not an id of a layer")
    return v1.parse(needed(shelf, f"{id}/json"), f"{id}/json")


def _v1_image(shelf: Documents, top: str, names: list[str]) -> Planned:
    chain: list[tuple[str, dict[str, Any]]] = []
    at = top
    while at:
        if len(chain) >= LAYERS_LIMIT or any(at == id for id, _ in chain):
            raise ImageError(f"the layers of {top[:80]} stand on each other in a circle, or are too many")
        chain.append((at, _v1_document(shelf, at)))
        at = v1.parent_of(chain[-1][1])
    chain.reverse()
    layers = [PlannedLayer(f"{id}/layer.tar", "") for id, _ in chain]
    return Planned(None, layers, names, v1=tuple(document for _, document in chain))
