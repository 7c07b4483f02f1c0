"""A layer of erofs in the making: one file without a name, which Host.sync() names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from layerstore._core import _apply, _erofs
from layerstore.disk.textfile import naming
from layerstore.drivers import Received, Sidecar, Stack
from layerstore.drivers.erofs import image
from layerstore.drivers.erofs.ground import ErofsGround
from layerstore.drivers.erofs.unnamed import Unnamed
from layerstore.drivers.overlay.ground import pump
from layerstore.errors import ActiveMountError
from layerstore.ids import DiffID
from layerstore.streams.lying import lying
from layerstore.streams.sources import Section, SourceInput, TarInput


class ErofsDraft:
    """The drivers.Draft of erofs."""

    def __init__(
        self, ground: ErofsGround, same: Callable[[DiffID], Iterable[str]], id: str, stack: Stack, like: str
    ) -> None:
        """same    names the layers that have a DiffID
        like    mends this one, whose file the draft must not share
        """
        self.id, self._stack, self._like = id, stack, like
        self._ground, self._at, self._same = ground, ground.at, same
        self._received: Received | None = None
        self._unsettled = False

    def receive(self, given: TarInput, sidecar: Sidecar, digest: str | None = None) -> Received:
        """Make the directory, write the tar and its image into a file of it.

        Raises  ActiveMountError   the layer that is to be mended is mounted
        """
        if self._like:
            refuse_mounted(self._ground, self._like)
        self._at.create(self.id, self._stack[0] if self._stack else "")
        unnamed = self._at.begin_image(self.id)
        with naming(self._at.image(self.id)):
            done = self._shared(given, unnamed, digest) or pump(given, self._writer(unnamed, digest))
            unnamed.tar_size = done.tar_size
        self._unsettled = bool(done.unsettled)
        self._received = Received.of(done, digest)
        self._settle()
        return self._received

    def _writer(self, unnamed: Unnamed, digest: str | None, *, present: bool = False) -> _apply.Apply:
        return _apply.erofs(unnamed.fd, limits=self._ground.limits, digest=digest, present=present)

    def _shared(self, given: TarInput, unnamed: Unnamed, digest: str | None) -> _apply.Applied | None:
        """Take the tar in by sharing its blocks, and hash what is stored then; None: it is to be read."""
        if not self._ground.shares_blocks:
            return None
        with lying(given) as there:
            if there is None or not unnamed.share(*there.section):
                return None
            own = Section(unnamed.fd, image.HEADER, there.section.size)
            done = pump(SourceInput(own, there.progress), self._writer(unnamed, digest, present=True))
            if there.diff_id in (None, done.diff_id):
                there.take()
                return done
            unnamed.empty()                       # it is damaged, which reading it tells
            return None

    def place_on(self, stack: Stack) -> None:
        self._stack = stack
        if stack:
            self._at.put_on(self.id, stack[0])
            self._settle()

    def _settle(self) -> None:
        """Do what the tar leaves open: it follows from what is below."""
        assert self._received
        unnamed = self._at.image_in_making(self.id)
        if self._unsettled and self._stack:
            with contextlib.ExitStack() as opened, naming(self._at.image(self.id)):
                lowers = [opened.enter_context(self._ground.below.opened(id)) for id in self._stack]
                _erofs.rebuild(unnamed.fd, unnamed.tar_size, self._received.diff_id.raw, lowers)
        if not self._like:
            diff_id = self._received.diff_id
            unnamed.like = lambda: [self._at.image(id) for id in self._same(diff_id) if id != self.id]

    def settle(self) -> None:
        self._at.settle(self._stack)

    def publish(self) -> None:
        with contextlib.suppress(OSError):
            self._at.name_image(self.id)
        if self._received:
            self._ground.names.add(self._received.diff_id, self._at.image(self.id))
        self._at.recorded(self.id)

    def discard(self) -> None:
        self._at.drop_image(self.id)
        self._ground.remove(self.id)


def refuse_mounted(ground: ErofsGround, id: str) -> None:
    """Raise ActiveMountError if the file of a layer is mounted, for this id or for another one that shares it."""
    for each in ground.at.sharing(id):
        if ground.below.is_mounted(each):
            text = "an overlay that is mounted stands on it: the layer can be mended once that is unmounted"
            raise ActiveMountError(f"{ActiveMountError.text}: {ground.at.files_of(each)}: {text}", name=each)
