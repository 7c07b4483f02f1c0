"""The stored layers of erofs: a file each, which is the layer's tar with an image of it around."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator

from layerstore._core import _erofs, _files, _listing, _tarstream
from layerstore.disk.textfile import replace_small, sync_directory
from layerstore.drivers import Draft, Finding, Received, Sidecar, Stack, record
from layerstore.drivers.erofs import image
from layerstore.drivers.erofs.directories import IMAGE, LENGTH
from layerstore.drivers.erofs.draft import ErofsDraft, refuse_mounted
from layerstore.drivers.erofs.extents import Extents
from layerstore.drivers.erofs.ground import ErofsGround
from layerstore.drivers.erofs.trees import ErofsTrees
from layerstore.drivers.overlay import differences
from layerstore.drivers.overlay.directories import make
from layerstore.errors import CorruptLayerError, InvalidMetadataError, LayerStoreError, readable
from layerstore.ids import ChainID, DiffID
from layerstore.streams.tarstream import TarStream
from layerstore.values import FileEntry


class Layers:
    """The drivers.Layers of erofs; the methods are the protocol's."""

    implied_ns: int | None = 0

    def __init__(self, ground: ErofsGround, same: Callable[[DiffID], Iterable[str]]) -> None:
        """same   names the layers that have a DiffID"""
        self._ground, self._same = ground, same
        self.exists = ground.at.exists

    def remove(self, id: str) -> None:
        self._ground.at.drop_image(id)
        self._ground.names.going(self._ground.at.image(id))
        self._ground.remove(id)

    def begin(self, id: str, stack: Stack, *, like: str = "") -> ErofsDraft:
        return ErofsDraft(self._ground, self._same, id, stack, like)

    def open(self, id: str, stack: Stack, sidecar: Sidecar) -> ErofsLayer:
        return ErofsLayer(self._ground, id, stack)

    def adopt(self, id: str, stack: Stack, sidecar: Sidecar) -> Received | None:
        """Return None: a layer is a file."""
        return None


class ErofsLayer:
    """The drivers.StoredLayer of erofs: its tar lies in its file as it is."""

    def __init__(self, ground: ErofsGround, id: str, stack: Stack) -> None:
        self._ground, self._at = ground, ground.at
        self.id, self._stack = id, stack
        self._path, self._length = ground.at.image(id), ground.at.length(id)

    # ---- what is in it ----

    def tar(self, diff_id: DiffID) -> TarStream:
        with image.opened(self._path) as fd:
            size = image.tar_size(fd, self._length)
            return TarStream(_tarstream.of_range(fd, image.HEADER, size, diff_id.raw), seekable=True)

    def tar_from(self, ancestor: str) -> TarStream:
        if ancestor == (self._stack[0] if self._stack else ""):
            return ErofsTrees(self._ground).diff([self.id], self._stack)
        return differences.tar_from(self._ground, self.id, ancestor)

    def entries(self, chain_id: ChainID) -> Iterator[FileEntry]:
        with image.opened(self._path) as fd:
            size = image.tar_size(fd, self._length)
            return record.listed(_listing.list_tar(fd, image.HEADER, size), chain_id)

    def open_file(self, entry: FileEntry) -> Extents:
        fd = image.open_regular(self._path)
        try:
            return Extents(fd, entry.size, self._pieces(fd, entry))
        except BaseException:
            _files.close(fd, self._path)
            raise

    def _pieces(self, fd: int, entry: FileEntry) -> list[tuple[int, int, int]]:
        try:
            with _erofs.Image(fd) as opened:
                size, pieces = opened.extents(entry.path)
            if size == entry.size:
                return pieces
            why = f"it has {size} bytes, not {entry.size}"
        except (CorruptLayerError, InvalidMetadataError) as err:
            why = str(err)
        except OSError as err:
            if err.errno in (errno.ENOENT, errno.ENOTDIR):
                why = "it is gone"
            elif err.errno in (errno.EINVAL, errno.EISDIR, errno.ELOOP):
                why = "it is not a regular file"
            else:
                raise
        raise CorruptLayerError(f'cannot open "{readable(entry.path)}" of the layer: {why}', path=entry.path)

    # ---- is it as it was ----

    def check(
        self, diff_id: DiffID, report: Callable[[int], None] | None = None, *, metadata: bool = True
    ) -> list[Finding]:
        """Compare the small files, the tar with its DiffID, and the image with the one that the tar makes."""
        found = self._ground.problems(self.id, self._stack, marks=False)
        try:
            with image.opened(self._path) as fd:
                return found + self._differences(fd, diff_id, report, metadata=metadata)
        except FileNotFoundError:
            return [*found, Finding("missing", "", f"the layer's file {self.id}/{IMAGE} is gone")]
        except CorruptLayerError as err:
            return [*found, Finding("missing", "", str(err))]
        except OSError as err:
            return [*found, Finding("content", "", f"the layer's file cannot be read: {err}")]

    def _differences(
        self, fd: int, diff_id: DiffID, report: Callable[[int], None] | None, *, metadata: bool
    ) -> list[Finding]:
        try:
            size = image.tar_size(fd, self._length)
        except CorruptLayerError as err:
            return [Finding("metadata", "", str(err))]
        found = []
        if image.noted(self._length) != size:
            found = [Finding("metadata", "", f"the file {self.id}/length does not say that the tar has {size} bytes")]
        there = image.file_size(fd)
        if there < image.HEADER + size:
            text = f"{self.id}/{IMAGE} was cut: it has {there} bytes, and its tar alone needs {image.HEADER + size}"
            return [*found, Finding("content", "", text)]
        try:
            with contextlib.ExitStack() as opened:
                lowers = [opened.enter_context(self._ground.below.opened(id)) for id in self._stack] if metadata else []
                told = _erofs.compare(fd, size, diff_id.raw, lowers, report, metadata=metadata)
        except (OSError, LayerStoreError) as err:
            if not metadata or not self._stack:
                return [*found, Finding("metadata", "", str(err))]
            # What stands below is damaged, and told of that: what follows from it cannot be said.
            told = _erofs.compare(fd, size, diff_id.raw, (), report, metadata=False)
        return found + [Finding(*one) for one in told]

    # ---- mending ----

    def mend(self, *, emptied: bool = False) -> None:
        if not emptied:
            _files.mode_of(self._path)
        make(self._at.path(self.id), 0o710)
        self._clear(self._at.files, stat.S_ISDIR)
        make(self._at.files_of(self.id), 0o755)
        self._at.mend(self.id, self._stack, emptied=emptied)
        with contextlib.suppress(OSError, LayerStoreError), image.opened(self._path) as fd:
            self._note_length(image.tar_size(fd, self._length))

    def _clear(self, name: str, is_wanted: Callable[[int], bool], id: str = "") -> None:
        """Remove what lies in the place of a directory, or a file, of the layer and is none."""
        with contextlib.suppress(FileNotFoundError):
            if not is_wanted(_files.mode_of(self._at.path(id or self.id, name))):
                self._at.remove_in(id or self.id, name)

    def _note_length(self, size: int, id: str = "") -> None:
        path = self._at.length(id or self.id)
        if image.noted(path) != size:
            self._clear(LENGTH, stat.S_ISREG, id)
            replace_small(path, b"%d" % size, 0o644, sync=True)
            sync_directory(os.path.dirname(path))

    def is_described_by_its_sidecars(self, draft: Draft) -> bool:
        """Return True: it has none."""
        return True

    def rebuild_from(self, draft: Draft, names: Iterable[str]) -> None:
        """Put the file of draft in the place of the layer's, and of every layer's that shares it.

        Raises  ActiveMountError   one of these is mounted
        """
        self._at.name_image(draft.id)
        size = image.noted(self._at.length(draft.id))
        with image.opened(self._at.image(draft.id)) as fd:
            size = image.tar_size(fd, self._at.length(draft.id)) if size is None else size
        with contextlib.ExitStack() as claims:
            ids = self._at.sharing(self.id)
            for id in sorted(ids):
                claims.enter_context(self._at.claimed(id))
            refuse_mounted(self._ground, self.id)
            for id in ids:
                self._replace(id, draft.id)
                self._note_length(size, id)
        self._ground.names.renew(self._path)

    def _replace(self, id: str, by: str) -> None:
        """Replace id's file by the file of another id, in one step."""
        path = self._at.image(id)
        beside = f"{self._at.image(by)}.{id}"             # among what cleanup() removes after a kill
        self._clear(IMAGE, stat.S_ISREG, id)
        os.link(self._at.image(by), beside, follow_symlinks=False)
        _files.rename(beside, path)
        sync_directory(os.path.dirname(path))

    def paths(self) -> dict[str, str]:
        return {"Layer": self._path, **self._ground.paths(self.id)}
