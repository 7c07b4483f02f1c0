"""Images: the images of a store, in Docker's own image database and under Docker's own names.

A change of the database is made under a lock on its directory. A stored image keeps its layers: the store looks for
references first and for images afterwards, so a load that holds its layers until its configs are written loses none.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from layerstore.disk.locks import Ending
from layerstore.disk.textfile import new_file
from layerstore.documents import references
from layerstore.documents.configs import parse_config
from layerstore.documents.gojson import encode
from layerstore.documents.platforms import host_platform
from layerstore.errors import (
    ImageDoesNotExistError,
    ImageError,
    InvalidDigestError,
    LayerDoesNotExistError,
    LayerStoreError,
)
from layerstore.ids import ChainID, Digest, is_digest
from layerstore.images import load, pulling, pushing
from layerstore.images.gather import Gatherer
from layerstore.images.history import history
from layerstore.images.image import ArchivedImage, Image, Removed, text_in
from layerstore.images.load import archived
from layerstore.images.packing import Outgoing
from layerstore.images.planned import Planned
from layerstore.images.publishing import name_image, publish
from layerstore.images.removing import Gone, Removing, names_of
from layerstore.images.save import COMPRESSIONS, FORMATS, save
from layerstore.images.targets import new_directory
from layerstore.images.unpack import unpack
from layerstore.layer import Layer, parent_id
from layerstore.layerdb.imagedb import ImageDB, Repositories, chains_of, diff_ids_of, now, parse_document
from layerstore.limits import Limits
from layerstore.registry.registry import Registry
from layerstore.store import Store
from layerstore.values import Progress

log = logging.getLogger("layerstore")

_Images = list[Image]
_ArchivedImages = list[ArchivedImage]
_Excluded = Layer | Image | str
_Steps = list[Mapping[str, Any]]
_MIN_ID = 4


class Images:
    """The images of a store: what `docker images` lists on the same root. Safe to use from many threads.

    store   the store they are in
    """

    store: Store

    def __init__(self, store: Store) -> None:
        """Use the images of a store, which stays open for as long as this object is used."""
        if not isinstance(store, Store):
            raise TypeError(f"Images() takes a Store, not {type(store).__name__}")
        self.store = store
        self._db: ImageDB = store.images
        self._removing = Removing(self._db, lambda chain: store.mounts(on=chain))

    def __repr__(self) -> str:
        return f"<Images of {self.store.root}>"

    # ---- looking ----

    def list(self) -> _Images:
        """List all images, newest first. An image that cannot be read is logged and left out."""
        self.store.check_open()
        names = self._db.repositories()
        found = []
        for id in self._db.ids():
            try:
                found.append(self._image(id, names))
            except FileNotFoundError:
                continue
            except (OSError, LayerStoreError) as err:
                log.warning("Failed to load image %s: %s", id, err, extra={"image": id, "error": err})
        return sorted(found, key=lambda image: image.created, reverse=True)

    def _image(self, id: Digest, names: Repositories) -> Image:
        data = self._db.content(id)
        config = parse_document(data, f"the image {id}")
        diff_ids = diff_ids_of(config)
        layers = chains_of(diff_ids)
        found = self.store.find(layers[-1]) if layers else None
        called, digests = references.split(names_of(id, names))
        return Image(
            id=id,
            references=called,
            digests=digests,
            config=config,
            diff_ids=tuple(diff_ids),
            layers=layers,
            size=found.size if found else 0,
            parent=self._db.noted(id, "parent"),
        )

    def get(self, reference: str | Image) -> Image:
        """Return one image.

        reference   "name" (its tag "latest"), "name:tag", "name@sha256:...", an id, with or without "sha256:", or the
                    unique beginning of one; or an Image, to read it again

        Raises  ImageDoesNotExistError
                ImageError               it is not a name, or fits several images
        """
        self.store.check_open()
        return self._find(reference)[0]

    def _find(self, reference: str | Image) -> tuple[Image, str]:
        """Return the image, and the name in the reference; "" if that is an id."""
        names = self._db.repositories()
        text = reference.id if isinstance(reference, Image) else reference
        if not isinstance(text, str):
            raise TypeError(f"an image is called by a str, not {type(text).__name__}")
        id, name = self._resolve(text, names)
        try:
            return self._image(id, names), name
        except FileNotFoundError:
            raise ImageDoesNotExistError(name=text) from None

    def _resolve(self, text: str, names: Repositories) -> tuple[Digest, str]:
        with contextlib.suppress(InvalidDigestError):
            return Digest(text), ""
        with contextlib.suppress(InvalidDigestError):
            return Digest(f"sha256:{text}"), ""
        called = references.parse_or_none(text)
        if called:
            name = str(called.tagged())
            found = names.get(called.name, {}).get(name)
            if found is not None:
                return Digest(found), name
        start = text.removeprefix("sha256:")
        if len(start) >= _MIN_ID and not start.strip("0123456789abcdef"):
            fits = [id for id in self._db.ids() if id.encoded.startswith(start)]
            if len(fits) > 1:
                raise ImageError(f"{text} is the beginning of the ids of {len(fits)} images", name=text)
            if fits:
                return fits[0], ""
        if called is None:
            references.parse(text)
        raise ImageDoesNotExistError(name=str(called.tagged()) if called else text)

    def resolve(self, reference: str | Image) -> Digest:
        """Return the id of the image that a name means. Its config is not read, so it may be damaged.

        reference, and what is raised: as get() has it
        """
        self.store.check_open()
        return self._resolve_for_removal(reference)[0]

    def inspect(self, reference: str | Image) -> dict[str, Any]:
        """Return all about an image, in the words of `docker image inspect`. Raises as get() does."""
        image = self.get(reference)
        found: dict[str, Any] = {
            "Id": image.id,
            "RepoTags": [*image.references],
            "RepoDigests": [*image.digests],
            "Parent": image.parent,
            "Comment": text_in(image.config, "comment"),
            "Created": image.created,
            "DockerVersion": text_in(image.config, "docker_version"),
            "Author": text_in(image.config, "author"),
            "Config": image.config.get("config"),
            "Architecture": image.architecture,
            "Os": image.os,
            "Size": image.size,
            "GraphDriver": {"Data": None, "Name": self.store.driver_name()},
            "RootFS": {"Type": "layers", "Layers": [*image.diff_ids]},
            "Metadata": {"LastTagTime": self._db.noted(image.id, "lastUpdated") or "0001-01-01T00:00:00Z"},
        }
        if image.variant:
            found["Variant"] = image.variant
        if image.layers:
            with contextlib.suppress(LayerDoesNotExistError, OSError), self._layers(image) as layers:
                found["GraphDriver"]["Data"] = layers[-1].metadata()
        return found

    def history(self, reference: str | Image) -> _Steps:
        """Return how an image was made, newest step first: the config's words ("created", "created_by", "comment" ...),
        with "layer", the ChainID of the layer that the step made, or None, and "size", the bytes of its files.

        Raises  as get() does
        """
        image = self.get(reference)
        layers = self.store.map()

        def size_of(chain: str) -> int:
            layer = layers.get(ChainID(chain))
            return layer.diff_size if layer else 0        # a lost one; verify() tells of it

        return history(image, size_of)

    @contextlib.contextmanager
    def _layers(self, *images: Image) -> Iterator[Sequence[Layer]]:
        """Keep all layers of images for the length of a `with` block."""
        with contextlib.ExitStack() as stack:        # a layer that is released meanwhile is deleted at its end
            yield [stack.enter_context(self.store.using(chain)) for image in images for chain in image.layers]

    # ---- in and out ----

    def load(
        self, source: Any, *, tags: str | Sequence[str] = (), platform: str | None = None,
        progress: Progress | None = None, durability: str | None = None,
    ) -> _Images:  # fmt: skip
        """Load the images of an archive: their layers, their configs, their names.

        source     a path, of a tar or of an OCI layout's directory; a descriptor; an open binary file; anything with
                   read(n); a buffer. A tar may be compressed as a layer may be. docker save's archives of every age,
                   OCI layouts and what is both are told apart by what is in them
        tags       names for the only image, in place of those in the archive
        platform   which one, if there are several: "linux/arm64", "linux/arm/v7"; "all"; None: this host's
        progress   called with the bytes taken (a Done), at most ten times a second, from the calling thread
        durability as Store.register()'s

        Returns  the images, in the archive's order
        Raises   ImageError       the archive is malformed, or has no image for the platform
                 TarFormatError, BreakoutError   a layer is malformed
                 ReadOnlyStoreError, OSError
                 Then nothing is left: an archive is loaded whole or not at all.
        A regular file is read in its place, several layers at the same time. What can be read only once (a pipe, a
        compressed file) is unpacked as it arrives, and never copied. Unused files are removed at the end; cleanup()
        removes those of a killed load.
        """
        self.store.check_writable()
        level = self.store.durability(durability)
        given = references.parse_tags(tags)
        gatherer = Gatherer(self.store, level)
        db = ImageDB(self._db.root, level)
        with Ending(gatherer.close):
            planned, configs = load.gather(gatherer, source, platform, progress, named=bool(given))
            if given:
                if len(planned) != 1:
                    raise ImageError(f"the archive has {len(planned)} images: names can be given to a single one only")
                planned = [planned[0]._replace(references=given)]
            with self._changing():
                publish(db, planned, [config.data for config in configs])
                return [self.get(config.id) for config in configs]

    def pull(
        self, reference: str, *, platform: str | None = None, registry: Registry | None = None,
        progress: Progress | None = None, durability: str | None = None, keep: bool = False,
    ) -> Image:  # fmt: skip
        """Pull an image from its registry: its layers, its config, its name, and its name by digest.

        reference   "name", "name:tag", "registry.example.com/name@sha256:...", as docker pull takes it
        platform    for which one: "linux/arm64"; None: this host's, and of a single manifest what it is for
        registry    a Registry of the reference's host; None: one of its own, with docker's and podman's credentials
        progress    called with the compressed bytes of layers that came (a Done), at most ten times a second, from the
                    calling thread
        durability  as Store.register()'s
        keep        True: of a pull that fails, layers that came whole stay, without a reference, and the next pull does
                    not fetch them

        Raises   RegistryError, NotInRegistryError, AuthenticationError
                 ImageError          what came is not what its digest, size, kind or name says; a bad reference
                 NotSupportedError   urllib3 is not there
                 TarFormatError, LimitExceededError, BreakoutError, ReadOnlyStoreError, OSError
                 Then nothing is left, but what `keep` keeps.
        Layers come in side by side, each unpacked while it comes, and no blob is written to a file. What the store has
        is not fetched. A connection that breaks is made anew, and goes on where it broke.
        """
        return pulling.pull(
            self, reference, platform=platform, registry=registry, progress=progress, durability=durability, keep=keep
        ).image

    def push(
        self, image: str | Image, reference: str | None = None, *, registry: Registry | None = None,
        compression: Literal["gzip", "zstd"] | None = "gzip", force_compression: bool = False,
        progress: Progress | None = None,
    ) -> Digest:  # fmt: skip
        """Push an image to a registry: its layers, its config and its manifest, in this order.

        image        a name, an id, an Image
        reference    the name that it gets there, "registry.example.com/name:tag"; None: the name that `image` is, or
                     the only one of an Image
        registry     a Registry of the reference's host; None: one of its own, with docker's and podman's credentials
        compression  of layers that are sent: "gzip", "zstd" or None
        force_compression  True: only blobs of this compression are used, and the manifest is made anew
        progress     called with the bytes of layers compressed (.total: of how many), at most ten times a second, from
                     the calling thread

        Returns  the manifest's digest; "name@digest" is a name of the image from now on
        Raises   RegistryError, NotInRegistryError, AuthenticationError
                 ImageDoesNotExistError
                 ImageError          a bad reference or compression
                 CorruptLayerError   a layer is not what was registered; the registry gets no manifest
                 NotSupportedError   urllib3 is not there
                 ReadOnlyStoreError, OSError
        What the registry has is not sent, whatever compressed it, and what it has in another repository is mounted from
        there. An image that was pulled keeps its manifest, and so its digest, if all its blobs are there.
        """
        return pushing.push(
            self, image, reference, registry=registry, compression=compression, force_compression=force_compression,
            progress=progress,
        ).digest  # fmt: skip

    @staticmethod
    def list_archive(
        source: Any, *, platform: str | None = "all", max_window: int = Limits().max_window
    ) -> _ArchivedImages:  # fmt: skip
        """Return the images that an archive holds, without loading any; no store is needed.

        source      as load() takes it; a stream is read to its end
        platform    as load() takes it; "all" is the default here
        max_window  bytes that a compressed archive may look back, which takes as much memory
        Raises      ImageError as load() does, OSError. Layers are not checked, and may be missing.
        """
        return [archived(each) for each in load.look(source, platform, max_window)]

    def _changing(self) -> contextlib.AbstractContextManager[None]:
        """Keep other threads and processes from the database; raise if a dockerd was started meanwhile."""
        return self._db.exclusive(self.store.check_writable)

    def create(
        self, layer: Layer | str, config: Mapping[str, Any] | None = None, *, tags: str | Sequence[str] = ()
    ) -> Image:
        """Make an image of a layer and all below it, so that it can be named, kept and saved.

        layer    its top layer (RWLayer.commit() returns one), or a ChainID; "" for none
        config   the image's config as in JSON: "config" (Cmd, Env ...), "architecture", "created" ...; missing fields
                 are filled in from this host and the present time, and "rootfs" is always made here
        tags     names for it

        Raises  LayerDoesNotExistError, ImageError (a bad config or name), ReadOnlyStoreError, OSError
        """
        self.store.check_writable()
        names = references.parse_tags(tags)
        chain = parent_id(layer)
        with contextlib.ExitStack() as stack:
            diff_ids: list[str] = []
            at: Layer | None = stack.enter_context(self.store.using(chain)) if chain else None
            if at:
                self.store.sync(at)
            while at is not None:
                diff_ids.insert(0, at.diff_id)
                at = at.parent
            moment, host = now(), host_platform()
            found: dict[str, Any] = {"architecture": host.architecture, "os": host.os, "created": moment, "config": {}}
            found |= config or {}
            found.setdefault("history", [{"created": found["created"]} for _ in diff_ids])
            found["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
            made = parse_config(encode(found, "the config"), "the config")
            with self._changing():
                publish(self._db, [Planned(made, [], names)], [made.data])
                return self.get(made.id)

    def save(
        self, images: str | Image | Iterable[str | Image], target: Any, *, format: str = "docker",
        compression: str | None = None, exclude: _Excluded | Iterable[_Excluded] = (), progress: Progress | None = None,
    ) -> int:  # fmt: skip
        """Write images to an archive, the same bytes each time.

        images       a name, an id, an Image, or several. A name saves the image under it alone, an id under all of its
        target       a path, where a file is replaced when the new one is complete (a device or a fifo is written to); a
                     descriptor; a binary file. Of "oci-dir": the path of a directory that is made, or is empty
        format       "docker" (what docker load, skopeo and containerd read: an OCI layout with docker's manifest.json),
                     "docker-v1" (as docker save wrote until 25), "oci" (a tar), "oci-dir"
        compression  of layers: None, "gzip" (not of docker-v1) or "zstd" (of the OCI formats)
        exclude      layers that the other side has: a Layer or a ChainID, with all below it, or an image (a name, an
                     id, an Image), with all its layers. They are named and not written; docker and Images.load() load
                     such an archive if these layers are stored there, and skopeo an OCI one whose layers are plain
        progress     called with the bytes of layers written (.total: of how many), at most ten times a second

        A compressed archive takes no other space if the target is a file; for a pipe, the layers are first packed into
        unnamed files, in the store or in the directory for temporary files.
        Returns  bytes written
        Raises   ImageDoesNotExistError, CorruptLayerError (a layer is not what was registered), ImageError, OSError
        """
        self.store.check_open()
        if format not in FORMATS:
            raise ImageError(f"the format is one of {', '.join(FORMATS)}, not {format!r}")
        if compression not in COMPRESSIONS[format]:
            raise ImageError(f"{compression!r} is not a compression of {format}")
        chosen = self._outgoing([images] if isinstance(images, (str, Image)) else [*images])
        left_out = self._left_out([exclude] if isinstance(exclude, (str, Image, Layer)) else exclude, chosen)
        spool = None if self.store.read_only else os.path.join(self._db.root, "layerdb", "tmp")
        if spool and not os.path.isdir(spool):
            spool = None
        with self._layers(*(out.image for out in chosen)) as held, contextlib.ExitStack() as stack:
            by_chain = {layer.chain_id: layer for layer in held}
            if format == "oci-dir":
                if not isinstance(target, (str, bytes, os.PathLike)):
                    raise TypeError(f"an OCI layout is written to a path, not to {type(target).__name__}")
                target = stack.enter_context(new_directory(os.fsdecode(target)))
            elif isinstance(target, (str, bytes, os.PathLike)):
                target = stack.enter_context(new_file(os.fsdecode(target)))
            elif isinstance(target, bool) or not (isinstance(target, int) or hasattr(target, "write")):
                raise TypeError(f"an archive is written to a path, a descriptor or a file, not {type(target).__name__}")
            return save(
                chosen, target, format, compression, lambda chain: by_chain[chain].tar_stream(), spool, progress,
                left_out,
            )

    def _left_out(self, exclude: Iterable[_Excluded], chosen: Sequence[Outgoing]) -> set[ChainID]:
        """Return the layers of the chosen images that the other side has: those given, and all below them."""
        there: set[str] = set()
        for each in exclude:
            if isinstance(each, Layer):
                there.add(each.chain_id)
            elif isinstance(each, str) and is_digest(each) and not self._db.has(each):
                there.add(each)
            else:
                there.update(self.get(each).layers)
        found: set[ChainID] = set()
        for out in chosen:
            layers = out.image.layers
            found.update(layers[: max((at for at, chain in enumerate(layers, 1) if chain in there), default=0)])
        return found

    def _outgoing(self, wanted: Sequence[str | Image]) -> Sequence[Outgoing]:
        found: dict[Digest, Outgoing] = {}
        if not wanted:
            raise ImageError("no image is named")
        for each in wanted:
            image, name = self._find(each)
            of_it = (name,) if name and "@" not in name else () if name else image.references
            if image.id in found:
                of_it = tuple(dict.fromkeys([*found[image.id].references, *of_it]))
            found[image.id] = Outgoing(image, self._db.content(image.id), of_it)
        return list(found.values())

    def unpack(self, reference: str | Image, directory: Any, *, progress: Progress | None = None) -> None:
        """Unpack an image's file system, as a container sees it, into a plain directory.

        Owners, modes, times and extended attributes are those of the layers. Nothing is mounted.
        directory   created, or empty
        progress    called with the bytes of layers applied (.total: of how many), at most ten times a second
        Raises      ImageDoesNotExistError
                    ImageError, CorruptLayerError, OSError   then nothing is left in it
        """
        image = self.get(reference)
        with self._layers(image) as layers:
            unpack(layers, os.fsdecode(directory), progress)

    # ---- names, and the end ----

    def tag(self, reference: str | Image, name: str) -> Image:
        """Add a name to an image; if another image has the name, it loses it.

        name   "name:tag"; "name" is "name:latest"
        Raises  ImageDoesNotExistError, ImageError (a bad name), ReadOnlyStoreError, OSError
        """
        called = references.parse(name).tagged()
        if called.digest:
            raise ImageError("refusing to create a tag with a digest reference", name=name)
        with self._changing():
            image = self.get(reference)
            names = self._db.repositories()
            name_image(names, str(called), image.id)
            self._db.write_repositories(names)
            self._db.note(image.id, "lastUpdated", now())
            return self.get(image.id)

    def remove(self, reference: str | Image, *, force: bool = False) -> Removed:
        """Remove a name of an image; with its last name, or by its id, the image and layers that nothing else needs.

        force   True: also an image with several names, or with a writable layer on it
        Raises  ImageDoesNotExistError
                ImageError             it has several names, a writable layer, or an image that was built on it
                ReadOnlyStoreError, OSError
        """
        with self._changing():
            id, name = self._resolve_for_removal(reference)
            gone = self._removing.remove(id, name, force=force)
        return self._released(gone)

    def prune(self, *, dangling: bool = True, unused_for: float | None = None, dry_run: bool = False) -> Removed:
        """Remove unused images, and release their layers.

        dangling     True: images without a name ("name@sha256:..." is not a name); False: those with names too
        unused_for   only images that were last tagged, loaded or created at least so many seconds ago
        dry_run      True: remove nothing, return what would be removed, without layers

        Returns  what was removed
        Raises   ReadOnlyStoreError (dry_run=False), OSError
        An image stays if a writable layer stands on it, if an image that stays was built on it, or if it is damaged.
        """
        if unused_for is not None and not unused_for >= 0:
            raise ValueError(f"unused_for is a number of seconds, not {unused_for!r}")
        self.store.check_open()
        with contextlib.nullcontext() if dry_run else self._changing():
            gone = self._removing.prune(dangling=dangling, unused_for=unused_for, dry_run=dry_run)
        return Removed(gone.untagged, gone.deleted, []) if dry_run else self._released(gone)

    def _released(self, gone: Gone) -> Removed:
        layers = [layer for chains in gone.chains for layer in self.store.release_unused(chains)]
        return Removed(gone.untagged, gone.deleted, layers)

    def _resolve_for_removal(self, reference: str | Image) -> tuple[Digest, str]:
        """Do what _find() does, also for an image that cannot be read."""
        if isinstance(reference, Image):
            id, name = reference.id, ""
        else:
            id, name = self._resolve(reference, self._db.repositories())
        if not self._db.has(id) and not name:
            raise ImageDoesNotExistError(name=str(reference))
        return id, name
