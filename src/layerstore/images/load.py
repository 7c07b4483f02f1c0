"""Images.load(): open an archive of any kind, and bring its layers into the store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from layerstore._core._apply import guess_format
from layerstore.disk.locks import Scope
from layerstore.documents import references
from layerstore.documents.configs import Config
from layerstore.errors import ImageError
from layerstore.images.gather import Gatherer, ShelfCrew
from layerstore.images.image import ArchivedImage
from layerstore.images.plan import plan
from layerstore.images.planned import Planned
from layerstore.images.shelf import DirectoryShelf, OpenShelf, TarShelf
from layerstore.images.stream import Reader, Stream, decompressed, documents_of, teller_of
from layerstore.streams.sources import HEAD, Input
from layerstore.values import Progress

_Loaded = tuple[list[Planned], list[Config]]
_SUFFIXES = (".gz", ".tgz", ".zst", ".bz2", ".xz", ".lz4", ".tar")


class _Supply(NamedTuple):
    """An opened archive: a shelf, or a reader of what can be read once; tell is the reader's.

    stem   the name of the archive, for names that are only tags
    """

    shelf: OpenShelf | None
    reader: Reader | None
    stem: str
    tell: Any


def gather(
    gatherer: Gatherer, source: Any, platform: str | None, progress: Progress | None, *, named: bool
) -> _Loaded:  # fmt: skip
    """Bring all layers of an archive into the store: what was planned, and the images' configs.

    source   as Images.load() takes it
    named    names were given: those in the archive do not matter
    """
    with _opened(source, progress, gatherer.store.limits.max_window) as supply:
        if supply.shelf:
            return _from_shelf(gatherer, supply.shelf, platform, supply.stem, progress, named=named)
        assert supply.reader
        return _from_stream(gatherer, supply.reader, platform, supply.stem, supply.tell, named=named)


def look(source: Any, platform: str | None, max_window: int) -> list[Planned]:
    """Return what gather() would bring in, without any store."""
    with _opened(source, None, max_window) as supply:
        shelf = supply.shelf or documents_of(supply.reader)
        return plan(shelf, platform, supply.stem)


@contextlib.contextmanager
def _opened(source: Any, progress: Progress | None, max_window: int) -> Iterator[_Supply]:
    """Open whatever holds images."""
    if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
        with contextlib.closing(DirectoryShelf(os.fspath(source))) as shelf:
            yield _Supply(shelf, None, _stem(source), None)
        return
    with contextlib.closing(Input(source)) as given:
        head = given.head()
        kind = guess_format(head[:HEAD])
        stem = _stem(source) if isinstance(source, (str, os.PathLike)) else ""
        if not head:
            raise ImageError("the archive is empty")
        if given.regular and kind == "plain":
            yield _Supply(TarShelf(given.fd, given.reread()[1]), None, stem, None)
            _at_the_end(given)
            return
        if given.regular:
            head = b""
        if kind == "plain":
            fd = given.fd if given.offset < 0 else -1
            reader = Reader(given.block, fd=fd, begin=head)
            yield _Supply(None, reader, stem, teller_of(progress, None, lambda: reader.position))
            return
        taken = [0]

        def count(n: int) -> None:
            taken[0] += n

        total = os.fstat(given.fd).st_size - given.reread()[1] if given.regular else None
        tell = teller_of(progress, total, lambda: taken[0])
        with decompressed(kind, given, head, count, max_window) as reader:
            yield _Supply(None, reader, stem, tell)


def _stem(path: str | os.PathLike[Any]) -> str:
    """Return the name of a file or a directory, without the suffixes of its packing."""
    stem = os.path.basename(os.path.abspath(os.fsdecode(path)))
    while stem.lower().endswith(_SUFFIXES):
        stem = stem.rpartition(".")[0]
    return stem


def _at_the_end(given: Input) -> None:
    """Move the position of the caller's file to its end: all of it was read."""
    if given.offset >= 0:
        given.offset = os.fstat(given.fd).st_size
    elif not given.owned:
        os.lseek(given.fd, 0, os.SEEK_END)


def _from_shelf(
    gatherer: Gatherer, shelf: OpenShelf, platform: str | None, stem: str, progress: Progress | None,
    *, named: bool,
) -> _Loaded:  # fmt: skip
    images = plan(shelf, platform, stem, named=named, known=gatherer.has)
    with Scope(lambda: ShelfCrew(gatherer, shelf, progress), ShelfCrew.close) as crew:
        crew.begin(gatherer.missing(images))
        configs = gatherer.put(images, crew.job_of)
        crew.end()
    return images, configs


def _from_stream(
    gatherer: Gatherer, reader: Reader, platform: str | None, stem: str, tell: Any, *, named: bool
) -> _Loaded:  # fmt: skip
    stream = Stream(gatherer, reader, platform, stem, tell, named=named)
    images = stream.run()
    stream.check(gatherer.missing(images).values())
    configs = gatherer.put(images, stream.job_of)
    tell(end=True)
    return images, configs


def archived(planned: Planned) -> ArchivedImage:
    """Return what list_archive() says of a planned image."""
    config, top = planned.config, planned.v1[-1] if planned.v1 else {}
    called, digests = references.split(planned.references)
    if config:
        system, architecture, variant = config.platform
    else:
        system, architecture, variant = (str(top.get(key) or "") for key in ("os", "architecture", "variant"))
    return ArchivedImage(
        id=config.id if config else "",
        references=called, digests=digests,
        os=system or "linux", architecture=architecture, variant=variant,
        diff_ids=tuple(config.diff_ids) if config else (),
        layers=len(planned.layers),
        created=config.created if config else str(top.get("created") or ""),
    )  # fmt: skip
