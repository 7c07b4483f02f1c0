"""Mounted: the layers that overlays stand on, each mounted once in a mount namespace, at its own directory of files.

A mount is found by the kind of file system there; every store uses it, not only the one that made it. It ends when no
overlay of this mount namespace stands on it: overlays in others, and those that were detached, keep what they show. A
layer that stands on nothing may also be used as it is, without an overlay. Who looks at a layer's mount, makes it or
ends it, holds the layer from that look until the overlay stands or the mount is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from layerstore.disk import erofs, mounts
from layerstore.disk.locks import OpenDirectory, Scope, claim_directory, surely
from layerstore.drivers import StoreView
from layerstore.drivers.erofs.directories import IMAGE, ErofsDirectories
from layerstore.drivers.erofs.flat import PLACE, Flat
from layerstore.drivers.erofs.mountable import Mountable
from layerstore.drivers.erofs.options import Options
from layerstore.drivers.overlay.below import Given
from layerstore.drivers.overlay.mounting import Mounting
from layerstore.drivers.shown import Shown
from layerstore.errors import CorruptLayerError, InvalidMetadataError, LayerStoreError

log = logging.getLogger("layerstore")

# How the options of an overlay name a directory of files.
_SHORT = re.compile(r"\bl/([A-Z0-9]{26})\b")
_LONG = re.compile(rf"\b([0-9a-f]{{64}}(?:-init)?/(?:fs|{PLACE}))\b")


class Mounted:
    """The drivers.overlay.below.Below of erofs; the methods are the protocol's."""

    def __init__(
        self, at: ErofsDirectories, mounting: Callable[[], Mounting], options: Options, view: StoreView
    ) -> None:
        """mounting   of the same home: what overlays of any mount namespace stand on, and what stores use"""
        self._at, self._mounting, self._options, self._view = at, mounting, options, view
        self._files = Mountable(at, view.diff_id_of)
        self._flat = Flat(at, self._files, durable=view.durability != "none")
        self._mode: erofs.Mode | None = None

    def mode(self) -> erofs.Mode:
        """Return how images are mounted here. Raises NotSupportedError, OSError."""
        if self._mode is None:
            self._mode = self._looked_up() if self._view.read_only else self._probed(self._at.home)
        return self._mode

    def _probed(self, directory: str) -> erofs.Mode:
        return erofs.probe(directory, directio=self._options.directio)

    def _looked_up(self) -> erofs.Mode:
        """Find out by a layer that is there how images are mounted, as a store that only reads makes no file here."""
        for id in self._images():
            with contextlib.suppress(CorruptLayerError, InvalidMetadataError), self._files.opened(id) as file:
                return erofs.mode_of(file, directio=self._options.directio)
        return self._probed(tempfile.gettempdir())

    def _images(self) -> list[str]:
        with os.scandir(self._at.home) as entries:
            return [entry.name for entry in entries if os.path.lexists(os.path.join(entry.path, IMAGE))]

    # ---- below an overlay ----

    def standing(self, ids: Sequence[str]) -> AbstractContextManager[Given]:
        """Show what Below says. ids are in the order of a stack, which is the order of their locks."""
        return Standing(self, self._at, ids)

    def show(self, id: str, made: list[str]) -> None:
        """Mount id, which is held, if it is not mounted; then its place is in made. Raises OSError, LayerStoreError."""
        files = self._at.files_of(id)
        if erofs.is_erofs(files):
            return
        with self._files.opened(id) as file:
            made.append(files)
            self._mount([file], files)

    def _mount(self, files: Sequence[erofs.File], place: str) -> None:
        """Mount images that were looked at; the first mount finds out how that is done here."""
        if self._mode is None:
            self._mode = erofs.mount_first(files, place, directio=self._options.directio)
        else:
            erofs.mount_file(files, place, self._mode, directio=self._options.directio)

    def flattened(self, ids: Sequence[str]) -> list[str]:
        """Return those of a stack that are mounted as one: all layers at its end, if they are as many as asked for."""
        least, at = max(self._options.flatten, 2), len(ids)
        while self._options.flatten and at and self._at.is_image(ids[at - 1]):
            at -= 1
        return list(ids[at:]) if self._options.flatten and len(ids) - at >= least else []

    def show_flat(self, ids: Sequence[str], made: list[str]) -> str:
        """Mount these layers, of which the nearest is held, as one, if they are not mounted so; return its item.

        ""   they cannot be: each is to be mounted
        """
        place = self._flat.place(ids[0])
        try:
            if not erofs.is_erofs(place):
                made.append(place)
                self._flat.mount(ids, self._mount)
        except (OSError, LayerStoreError) as err:
            self.undo(made.pop())
            log.warning("%d layers are mounted apart: %s", len(ids), err, extra={"id": ids[0], "error": err})
            return ""
        return f"{ids[0]}/{PLACE}"

    # ---- after an overlay ----

    def left(self, ids: Sequence[str]) -> None:
        with _told():
            self._leave([id for id in ids if any(map(erofs.is_erofs, self._places(id)))])

    def sweep(self) -> None:
        with _told():
            for name in self._left_here():
                with _told():             # apart: they are no stack, which gives locks their order
                    self._leave([_parted(name)[0]])

    def _places(self, id: str) -> tuple[str, str]:
        """Return where a layer may be mounted: alone, and with all below it."""
        return self._at.files_of(id), self._flat.place(id)

    def _leave(self, ids: Sequence[str]) -> None:
        """End what is shown of those of these that no overlay of this mount namespace stands on."""
        if not ids:
            return
        held: list[Scope[None]] = []
        try:
            for id in ids:
                held.append(self._at.held(id))
                held[-1].__enter__()
            used = self._used_here(ids)
            for id in ids:
                for place in self._places(id):
                    if place not in used:
                        with _told():
                            _unmount(place)
        finally:
            surely(_release, held)

    def _used_here(self, ids: Iterable[str]) -> set[str]:
        """Return the places of these that an overlay of this mount namespace stands on, or that a store uses alone."""
        text = "\n".join(mount.options for mount in mounts.mount_table(kind="overlay"))
        links, named = set(_SHORT.findall(text)), set(_LONG.findall(text))
        used = {f"{self._at.home}/{name}" for name in named}
        bare = self._mounting().is_used_bare
        return used | {self._at.files_of(id) for id in ids if self._link(id) in links or bare(id)}

    def _mounted_here(self) -> set[str]:
        """Name the places below the home where this mount namespace has layers mounted."""
        top = os.path.realpath(self._at.home) + "/"
        points = (mount.point for mount in mounts.mount_table(kind="erofs"))
        below = {point.removeprefix(top) for point in points if point.startswith(top)}
        return {name for name in below if _parted(name)[2] in (self._at.files, PLACE)}

    def _left_here(self) -> list[str]:
        """Name those of these places that no overlay of this mount namespace stands on."""
        found = self._mounted_here()
        used = self._used_here({_parted(name)[0] for name in found}) if found else set()
        return sorted(name for name in found if f"{self._at.home}/{name}" not in used)

    def is_mounted(self, id: str) -> bool:
        """Return True if this mount namespace has a layer mounted, alone or together with those above it."""
        if erofs.is_erofs(self._at.files_of(id)):
            return True
        tops = [top for top, _, name in map(_parted, self._mounted_here()) if name == PLACE]
        return any(id in (top, *self._at.stack_of(top)) for top in tops)

    def _link(self, id: str) -> str:
        with contextlib.suppress(OSError, LayerStoreError):
            return self._at.item_of(id).rpartition("/")[2]
        return ""

    def undo(self, place: str) -> None:
        """Unmount a place of a layer that is held, after show() did not lead to an overlay."""
        with contextlib.suppress(OSError):
            _unmount(place)

    # ---- one layer ----

    def opened(self, id: str) -> AbstractContextManager[Shown]:
        return self._files.image(id) if self._at.is_image(id) else self._at.opened_files(id)

    def seen(self, id: str) -> AbstractContextManager[int]:
        """Open a directory that shows id's files; a layer that is mounted nowhere gets a mount of its own meanwhile."""
        left: list[OpenDirectory] = []

        def begin() -> int:
            left.append(self._at.opened_files(id))
            fd = left[0].__enter__()
            if self._at.is_image(id) and not erofs.is_erofs(f"/proc/self/fd/{fd}"):
                end(fd)
                left.append(self._seen_alone(id))
            return left[0].__enter__()

        def end(_: int) -> None:
            while left:
                left[-1].__exit__(None, None, None)
                left.pop()

        return Scope(begin, end)

    def _seen_alone(self, id: str) -> OpenDirectory:
        """Open the root of a mount of a layer that is attached nowhere, and goes with that."""
        mode = self.mode()
        with self._files.opened(id) as file:
            mount = erofs.make_mount([file], mode, directio=self._options.directio)
        with contextlib.closing(mount):
            return OpenDirectory(".", dir_fd=mount.fileno())

    def is_apart(self, ids: Sequence[str]) -> bool:
        return any(map(self._at.is_image, ids))

    def keeps(self, point: str) -> bool:
        id, _, rest = _parted(os.path.relpath(point, os.path.realpath(self._at.home)))
        return rest in (self._at.files, PLACE) and self._at.is_image(id)

    def removing(self, id: str) -> None:
        for place in self._places(id):
            _unmount(place)

    # ---- the home ----

    def orphans(self) -> list[str]:
        """Name the mounts of layers that no overlay stands on, by their paths below the home."""
        return [name for name in self._left_here() if self._is_left(*_parted(name)[::2])]

    def _is_left(self, id: str, name: str) -> bool:
        """Return True if a mount on which no overlay stood is there still, and no store is about to stand on it."""
        with contextlib.suppress(OSError):
            claim = claim_directory(self._at.path(id), wait=False)
            if claim:
                with claim:
                    place = self._at.path(id, name)
                    return erofs.is_erofs(place) and place not in self._used_here([id])
        return False

    def cleanup(self) -> None:
        """End what no overlay stands on, and what a process that was killed left beside it."""
        self.sweep()
        for id in self._images():
            if os.path.lexists(self._flat.place(id)):
                with _told(), self._at.held(id):
                    self._end_empty(id)

    def _end_empty(self, id: str) -> None:
        """Remove the place of a mount that was never made."""
        if not erofs.is_erofs(self._flat.place(id)):
            _unmount(self._flat.place(id))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Log what cannot be unmounted: the next cleanup() tries again."""
    try:
        yield
    except (OSError, LayerStoreError) as err:
        log.warning("Cannot unmount layers that nothing stands on: %s", err, extra={"error": err})


def _release(held: list[Scope[None]]) -> None:
    """Release what is held, also what is only about to be. Twice is harmless."""
    while held:
        held[-1].__exit__(None, None, None)
        held.pop()


def _unmount(place: str) -> None:
    """Unmount a place of a layer, however often it is mounted. Raises OSError."""
    while erofs.is_erofs(place):
        erofs.unmount(place)
    if os.path.basename(place) == PLACE:
        with contextlib.suppress(OSError):
            os.rmdir(place)


def _parted(path: str) -> tuple[str, str, str]:
    return path.partition("/")


class Standing:
    """The layers of a stack, each held and mounted for the length of a `with` block in which an overlay is made."""

    def __init__(self, mounted: Mounted, at: ErofsDirectories, ids: Sequence[str]) -> None:
        self._mounted, self._at, self._ids = mounted, at, ids
        self._held: list[Scope[None]] = []
        self._made: list[str] = []
        self._item, self._apart = "", len(ids)

    def __enter__(self) -> Given:
        try:
            flat = self._mounted.flattened(self._ids)
            apart = len(self._ids) - len(flat)
            for id in self._ids[:apart]:
                self._stand(id)
            if flat:
                self._hold(flat[0])
                self._item = self._mounted.show_flat(flat, self._made)
                self._apart = apart if self._item else self._apart
            for id in self._ids[apart : self._apart]:
                self._stand(id)
        except BaseException:
            surely(self._end, True)
            raise
        return self._given

    def _given(self, items: Sequence[str]) -> Sequence[str]:
        return [*items[: self._apart], *([self._item] if self._item else [])]

    def _hold(self, id: str) -> None:
        self._held.append(self._at.held(id))
        self._held[-1].__enter__()

    def _stand(self, id: str) -> None:
        if self._at.is_image(id):
            self._hold(id)
            self._mounted.show(id, self._made)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        surely(self._end, kind is not None)

    def _end(self, failed: bool) -> None:
        """Release what is held; of what failed, unmount what was mounted for it. Twice is harmless."""
        while failed and self._made:
            self._mounted.undo(self._made[-1])
            self._made.pop()
        _release(self._held)
