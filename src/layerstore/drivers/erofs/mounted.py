"""Mounted: the layers that overlays stand on, each mounted once on this host, at its own directory of files.

A mount is found by the kind of file system there, whoever made it. It ends when no overlay stands on it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from layerstore.disk import erofs, mounts
from layerstore.disk.locks import Claim, Scope, claim_directory, in_use
from layerstore.drivers import StoreView
from layerstore.drivers.erofs.directories import IMAGE, ErofsDirectories
from layerstore.drivers.erofs.options import Options
from layerstore.drivers.overlay.below import Shown
from layerstore.errors import LayerStoreError

log = logging.getLogger("layerstore")


class Mounted:
    """The drivers.overlay.below.Below of erofs; the methods are the protocol's."""

    def __init__(
        self, at: ErofsDirectories, stood_on: Callable[[], set[str]], options: Options, view: StoreView
    ) -> None:
        """stood_on   names the ids that overlays stand on, anywhere"""
        self._at, self._stood_on, self._options, self._view = at, stood_on, options, view
        self._mode: erofs.Mode | None = None

    def mode(self) -> erofs.Mode:
        """Return how images are mounted here, found out at the first call. Raises NotSupportedError, OSError."""
        if self._mode is None:
            self._mode = erofs.probe(self._at.home, directio=self._options.directio)
        return self._mode

    # ---- below an overlay ----

    @contextlib.contextmanager
    def standing(self, ids: Sequence[str]) -> Iterator[None]:
        made: list[str] = []
        claims: list[Claim] = []
        try:
            for id in sorted({id for id in ids if self._at.is_image(id)}):
                claim = claim_directory(self._at.path(id), timeout=self._view.lock_timeout, late=in_use)
                if claim:
                    claims.append(claim)
                self._mount(id, made)
            yield
        except BaseException:
            for id in made:
                with contextlib.suppress(OSError):
                    erofs.unmount(self._at.files_of(id))
            raise
        finally:
            for claim in claims:
                claim.release()

    def _mount(self, id: str, made: list[str]) -> None:
        files = self._at.files_of(id)
        if erofs.is_erofs(files):
            return
        if os.listdir(files):             # a box became this layer: its files lie there while an overlay stands on them
            if id in self._stood_on():
                return
            self._at.empty(id, self._at.files)
        with self._file(id) as file:
            erofs.mount_file([file], files, self.mode(), directio=self._options.directio)
        made.append(id)

    def _file(self, id: str) -> Scope[erofs.File]:
        """Open a layer's file."""
        path = self._at.image(id)

        def begin() -> erofs.File:
            return erofs.File(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), path)

        return Scope(begin, lambda file: os.close(file.fd))

    # ---- one layer ----

    def opened(self, id: str) -> AbstractContextManager[Shown]:
        return self.seen(id)

    def seen(self, id: str) -> AbstractContextManager[int]:
        """Open a directory that shows id's files; a layer that is mounted nowhere gets a mount of its own meanwhile."""
        if not self._at.is_image(id) or erofs.is_erofs(self._at.files_of(id)):
            return self._at.opened_files(id)
        made: list[mounts.Detached] = []

        def begin() -> int:
            with self._file(id) as file:
                made.append(erofs.make_mount([file], self.mode(), directio=self._options.directio))
            return made[0].fileno()

        return Scope(begin, lambda _: made.pop().close())

    def left(self, ids: Sequence[str]) -> None:
        for id in ids:
            try:
                self._end(id)
            except (OSError, LayerStoreError) as err:
                log.warning("Cannot unmount the layer in %s: %s", id, err, extra={"id": id, "error": err})

    def _end(self, id: str) -> None:
        if not self._at.is_image(id) or not erofs.is_erofs(self._at.files_of(id)):
            return
        claim = claim_directory(self._at.path(id), wait=False)     # who has it mounts an overlay on it
        if claim:
            with claim:
                if id not in self._stood_on():
                    erofs.unmount(self._at.files_of(id))

    def keeps(self, point: str) -> bool:
        id, _, rest = os.path.relpath(point, os.path.realpath(self._at.home)).partition("/")
        return rest == self._at.files and self._at.is_image(id)

    def removing(self, id: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            while erofs.is_erofs(self._at.files_of(id)):
                erofs.unmount(self._at.files_of(id))

    # ---- the home ----

    def orphans(self) -> list[str]:
        """Name the mounts of layers that no overlay stands on, by their paths below the home."""
        mounted = [id for id in self._ids() if erofs.is_erofs(self._at.files_of(id))]
        used = self._stood_on() if mounted else set()
        return [f"{id}/{self._at.files}" for id in mounted if id not in used]

    def _ids(self) -> list[str]:
        with os.scandir(self._at.home) as entries:
            return sorted(entry.name for entry in entries if os.path.lexists(os.path.join(entry.path, IMAGE)))

    def cleanup(self) -> None:
        """End what orphans() names."""
        self.left([name.partition("/")[0] for name in self.orphans()])
