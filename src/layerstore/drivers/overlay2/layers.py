"""The stored layers of overlay2: a directory of files each, and a tar-split record beside the layerdb's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

from layerstore._core import _apply, _listing, _tarstream
from layerstore.disk.textfile import placing
from layerstore.drivers import Draft, Finding, Received, Sidecar, Stack, checks, record
from layerstore.drivers.overlay import differences
from layerstore.drivers.overlay.directories import opened
from layerstore.drivers.overlay.ground import Ground, pump
from layerstore.drivers.overlay.trees import Trees
from layerstore.drivers.overlay2 import adopted
from layerstore.drivers.overlay2.graft import Graft
from layerstore.errors import LayerStoreError, NotSupportedError
from layerstore.ids import ChainID, DiffID
from layerstore.streams.sources import TarInput
from layerstore.streams.tarstream import TarStream
from layerstore.values import FileEntry


class Layers:
    """The drivers.Layers of overlay2; the methods are the protocol's."""

    implied_ns: int | None = None

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.exists, self.remove = ground.at.exists, ground.remove

    def begin(self, id: str, stack: Stack, *, like: str = "") -> OverlayDraft:
        """Begin a layer; its marks are of the class of like's, or of what it stands on."""
        return OverlayDraft(self._ground, id, stack, like)

    def open(self, id: str, stack: Stack, sidecar: Sidecar) -> OverlayLayer:
        return OverlayLayer(self._ground, id, stack, sidecar)

    def adopt(self, id: str, stack: Stack, sidecar: Sidecar) -> Received:
        """Make the record of a writable layer's directory, which is noted to have come before its tar."""
        ground, home = self._ground, self._ground.at.path(id)
        user = ground.classes.view(id, ())
        with record.opened(sidecar) as record_fd, ground.at.opened_files(id) as root:
            with placing(os.path.join(home, "diff")):
                received = adopted.record(root, record_fd, userxattr=user, limits=ground.limits)
        adopted.note(home)
        return received


class OverlayDraft:
    """The drivers.Draft of overlay2: a directory, and a record beside it."""

    def __init__(self, ground: Ground, id: str, stack: Stack, like: str) -> None:
        self.id, self._stack, self._like = id, stack, like
        self._ground, self._at = ground, ground.at
        self._unsettled = b""
        self.diff_id: DiffID | None = None

    def receive(self, given: TarInput, sidecar: Sidecar, digest: str | None = None) -> Received:
        """Make the directory, unpack the tar into it, and write its record.

        Raises  NotSupportedError   this process cannot write marks like those of `like`
        """
        self._create()
        home = self._at.path(self.id)
        with record.opened(sidecar) as record_fd, opened(home) as scratch, opened("diff", dir_fd=scratch) as root:
            with placing(os.path.join(home, "diff")):
                flags = self._ground.marks(self.id)
                limits = self._ground.limits
                done = pump(given, _apply.register(root, scratch, record_fd, flags=flags, limits=limits, digest=digest))
                self._unsettled = done.unsettled
                if self._stack:
                    self._settle_on(root)
        received = Received.of(done, digest)
        self.diff_id = received.diff_id
        return received

    def _create(self) -> None:
        classes = self._ground.classes
        parent = self._stack[0] if self._stack else ""
        user = classes.is_user(self._like) if self._like else classes.for_new(parent)
        if self._ground.userxattr and not user:
            raise NotSupportedError(
                f"the marks in {self._like} are attributes trusted.overlay.*, which root alone can write, outside "
                "of a user namespace"
            )
        lower = self._at.lower_over(self._stack)
        self._at.create(self.id, parent, lambda path: classes.write(path, user), lower=lower)

    def place_on(self, stack: Stack) -> None:
        self._stack = stack
        if stack:
            self._at.put_on(self.id, stack[0], self._at.lower_over(stack))
            with self._at.opened_files(self.id) as root:
                self._settle_on(root)

    def _settle_on(self, root: int) -> None:
        """Do what the tar leaves open: it follows from what is below."""
        if self._unsettled:
            with contextlib.ExitStack() as stack:
                lowers = [stack.enter_context(opened(path)) for path in self._at.lower_dirs(self.id)]
                _apply.stand_on(root, self._unsettled, lowers, self._ground.marks(self.id))

    def settle(self) -> None:
        self._at.settle(self._stack)

    def publish(self) -> None:
        self._at.recorded(self.id)

    def discard(self) -> None:
        self._ground.remove(self.id)


class OverlayLayer:
    """The drivers.StoredLayer of overlay2: its tar comes from its record and its files."""

    def __init__(self, ground: Ground, id: str, stack: Stack, sidecar: Sidecar) -> None:
        self._ground, self._at = ground, ground.at
        self.id, self._stack, self._sidecar = id, stack, sidecar

    def tar(self, diff_id: DiffID) -> TarStream:
        with record.opened(self._sidecar) as record_fd, self._at.opened_files(self.id) as root:
            return TarStream(_tarstream.assemble(record_fd, root, diff_id.raw), seekable=True)

    def tar_from(self, ancestor: str) -> TarStream:
        if ancestor == (self._stack[0] if self._stack else ""):
            return Trees(self._ground).diff([self.id], self._stack)
        return differences.tar_from(self._ground, self.id, ancestor)

    def entries(self, chain_id: ChainID) -> Iterator[FileEntry]:
        with record.opened(self._sidecar) as record_fd:
            return record.entries(record_fd, chain_id)

    def open_file(self, entry: FileEntry) -> int:
        with self._at.opened_files(self.id) as root:
            return _listing.open_file(root, entry.path, entry.size)

    def check(
        self, diff_id: DiffID, report: Callable[[int], None] | None = None, *, metadata: bool = True
    ) -> list[Finding]:
        """Compare the small files, the class of the marks, and the files with the record."""
        found = self._ground.problems(self.id, self._stack)
        try:
            with record.opened(self._sidecar) as record_fd:
                try:
                    return found + self._differences(record_fd, diff_id, self.id, report, metadata=metadata)
                except FileNotFoundError:
                    return found          # told above: the whole directory is gone
                except (OSError, LayerStoreError) as err:
                    return [*found, Finding("metadata", "", str(err))]
        except FileNotFoundError as err:
            return [*found, Finding("missing", "", f"the tar-split record is gone: {err}")]
        except OSError as err:
            return [*found, Finding("metadata", "", f"the tar-split record cannot be opened: {err}")]

    def _differences(
        self, record_fd: int, diff_id: DiffID, id: str, report: Callable[[int], None] | None = None, *,
        metadata: bool = True,
    ) -> list[Finding]:  # fmt: skip
        """Compare id's directory with the record."""
        flags = _tarstream.CHECK_METADATA if metadata else 0
        user = self._ground.classes.is_user(id)
        flags |= _tarstream.CHECK_USERNS if user or checks.in_user_namespace() else 0
        flags |= _tarstream.CHECK_USERXATTR if user else 0
        flags |= _tarstream.CHECK_FIRST if adopted.came_first(self._at.path(id)) else 0
        with self._at.opened_files(id) as root, contextlib.ExitStack() as stack:
            lowers: list[int] = []
            with contextlib.suppress(OSError, LayerStoreError):     # told by problems(); every mark is needed then
                lowers = [stack.enter_context(opened(path)) for path in self._at.lower_dirs(id)]
            told = _tarstream.check(record_fd, root, diff_id.raw, report, lowers, flags)
        return [Finding(*one) for one in told]

    def mend(self, *, emptied: bool = False) -> None:
        self._at.mend(self.id, self._stack, emptied=emptied)

    def is_described_by_its_sidecars(self, draft: Draft) -> bool:
        assert isinstance(draft, OverlayDraft) and draft.diff_id
        try:
            with record.opened(self._sidecar) as record_fd:
                return not self._differences(record_fd, draft.diff_id, draft.id)
        except (OSError, LayerStoreError):
            return False

    def rebuild_from(self, draft: Draft, names: Iterable[str]) -> None:
        with self._at.opened_files(self.id) as damaged, self._at.opened_files(draft.id) as whole:
            Graft(whole, damaged).names(names)

    def paths(self) -> dict[str, str]:
        return self._ground.paths(self.id)
