"""The directories of layers below one home: their names, short links, what they stand on, who is making them.

    <home>/l/<26 letters> -> ../<id>/<files>
    <home>/<id>/{<files>,link,lower,work,merged,committed}
<files> is the directory of an id's files: each driver has its own name for it.
Source: moby, daemon/graphdriver/overlay2
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from layerstore._core import _files
from layerstore.disk import mounts
from layerstore.disk.locks import (
    LOCK_TIMEOUT,
    Claim,
    NamedLocks,
    OpenDirectory,
    Scope,
    claim_directory,
    in_use,
    surely,
)
from layerstore.disk.textfile import (
    drop_acls,
    read_text,
    remove_below,
    replace_small,
    sync_directory,
    sync_file,
    write_small,
)
from layerstore.drivers.overlay.lowers import LINKS as LINKS
from layerstore.drivers.overlay.lowers import Lowers, is_link
from layerstore.drivers.overlay.lowers import is_there as is_there
from layerstore.drivers.overlay.lowers import make as make
from layerstore.drivers.overlay.lowers import opened as opened
from layerstore.errors import LayerStoreError, MaxDepthExceededError
from layerstore.values import Durability

MAX_LOWERS = 128
# Files of a layer that are synced one by one, in twice as many directories.
_FEW = 8


def _new_link() -> str:
    return base64.b32encode(_files.random(17)).decode()[:26]


def _few_files(directory: str) -> list[str] | None:
    """Regular files and directories ("/" at the end) in directory, itself last; None: more than a few, or too deep.

    What the kernel has there for a mount is left out: names come and go in it, and it is of no use after a crash.
    """
    files: list[str] = []
    directories = [directory]
    for path in directories:                  # grows on the way
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if path is directory and entry.name in ("work", "merged"):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        files.append(entry.path)
        except OSError as err:
            if err.errno != errno.ENAMETOOLONG:
                raise
            return None                       # no call takes that path; the sync of a file system takes none
        if len(files) > _FEW or len(directories) > 2 * _FEW:
            return None
    return files + [path + "/" for path in reversed(directories)]


class Directories(Lowers):
    """What lies below one home."""

    def __init__(self, home: str, files: str, lock_timeout: float = LOCK_TIMEOUT) -> None:
        """home          the driver's directory; it need not be there yet
        files         the name of the directory of an id's files
        lock_timeout  seconds; 0: for ever
        """
        super().__init__(home, files)
        self._lock_timeout = lock_timeout
        self.locks = NamedLocks()          # of an id, for the length of a mount, an unmount or a removal
        self._claims: dict[str, Claim | None] = {}
        self._held: dict[str, Claim] = {}  # claims of held(): of ids whose lock a thread has

    def prepare(self) -> None:
        """Make home."""
        make(self.home, 0o710)
        make(os.path.join(self.home, LINKS), 0o700)

    def opened_files(self, id: str) -> OpenDirectory:
        """Open the directory of id's files, through no link."""
        with opened(self.path(id)) as directory:
            return opened(self.files, dir_fd=directory)

    def exists(self, id: str) -> bool:
        """Return True if the directory is there."""
        return os.path.isdir(self.path(id))

    # ---- making ----

    def create(
        self, id: str, parent: str, limit: Callable[[str], None] | None = None, *,
        lower: str = "", most: int = MAX_LOWERS,
    ) -> None:  # fmt: skip
        """Make a directory, unowned until recorded(). Raises MaxDepthExceededError, OSError.

        limit   called with its path while nothing is in it yet
        lower   what its `lower` says, in place of what parent asks for
        most    items that it may have
        """
        directory = self.path(id)
        link = ""
        try:
            self._claims[id] = self._made(directory)
            drop_acls(directory)
            if limit:
                limit(directory)
            make(self.files_of(id), 0o755)
            link = _new_link()
            _files.symlink(self._target(id), os.path.join(self.home, LINKS, link))
            write_small(self.path(id, "link"), link.encode(), 0o644, sync=False)
            self._items[id] = f"{LINKS}/{link}"
            self._sound[self._items[id]] = id
            if parent or lower:
                self.put_on(id, parent, lower, most)
        except BaseException:
            self._forget_link(link)
            try:
                self.remove_tree(id)
            finally:
                self.recorded(id)         # what could not be removed is left to cleanup()
            raise

    def _made(self, directory: str) -> Claim:
        """Make a directory that cleanup() leaves alone."""
        while True:
            try:
                make(directory, 0o710)
                claim = claim_directory(directory)
            except FileNotFoundError:
                if not os.path.isdir(self.home):
                    raise
                claim = None
            if claim:                     # else a cleanup() took the new directory for an abandoned one
                return claim

    def claimed(self, id: str, *, if_possible: bool = False) -> Scope[Claim | None]:
        """Keep other stores from mounting or unmounting id; cleanup() lets a claimed directory be, too.

        The thread has the lock of id, and may hold id or claim it once more in the block.
        if_possible   one that cannot be locked is let be
        """

        def begin() -> Claim | None:
            claim: Claim | None = None
            try:
                claim = self._claim(id)
                if claim is not None:
                    self._held[id] = claim
            except BaseException as err:
                surely(end, claim)
                if not (if_possible and isinstance(err, OSError)):
                    raise
            return claim

        def end(claim: Claim | None) -> None:
            if claim is not None:
                self._held.pop(id, None)
                claim.release()

        return Scope(begin, end)

    def _claim(self, id: str) -> Claim | None:
        """Claim id; None: it is claimed here already, or gone."""
        held = self._held.get(id)
        if id in self._claims or (held is not None and held.is_held()):
            return None
        return claim_directory(self.path(id), timeout=self._lock_timeout, late=in_use)

    def held(self, id: str) -> Scope[None]:
        """Keep other threads and other stores from mounting, unmounting or changing id; its thread may do so."""
        left: list[contextlib.AbstractContextManager[object]] = []

        def begin() -> None:
            left.append(self.locks.hold(id))
            left[0].__enter__()
            try:
                claim = self._claim(id)
                if claim is not None:
                    self._held[id] = claim
                    left.append(claim)
            except BaseException:
                surely(end, None)
                raise

        def end(_: None) -> None:
            if len(left) > 1:
                self._held.pop(id, None)
                left[1].__exit__(None, None, None)
                left.pop()
            if left:
                left.pop().__exit__(None, None, None)

        return Scope(begin, end)

    def known(self, claims: Mapping[str, Claim | None]) -> Scope[None]:
        """Hold ids by claims of the caller's for the length of a `with` block, so that no call waits for them here."""
        mine = {id: claim for id, claim in claims.items() if claim and id not in self._held}

        def end(_: None) -> None:
            for id in mine:
                self._held.pop(id, None)

        return Scope(lambda: self._held.update(mine), end)

    def keep(self, id: str) -> bool:
        """Claim an unowned id, until recorded(). Return False if another one has it, or it is gone."""
        if id not in self._claims:
            claim = claim_directory(self.path(id), wait=False)
            if claim is None:
                return False
            self._claims[id] = claim
        return True

    def settle(self, stack: Sequence[str]) -> None:
        """Note that something stands on this stack: its first directory is no longer mounted for writing."""
        if stack and not os.path.exists(self.path(stack[0], "committed")):
            write_small(self.path(stack[0], "committed"), b"", 0o600, sync=False)    # nothing in it can be half there

    def recorded(self, id: str) -> None:
        """Release the claim of id, which a layer or mount on disk names now."""
        claim = self._claims.pop(id, None)
        if claim is not None:
            claim.release()

    def put_on(self, id: str, parent: str, lower: str = "", most: int = MAX_LOWERS) -> None:
        """Let id, made on nothing, stand on parent, or on what lower says. Raises MaxDepthExceededError, OSError."""
        make(self.path(id, "work"), 0o700)
        lower = lower or self._lower_for(parent)
        if lower.count(":") + 1 > most:
            raise MaxDepthExceededError(path=self.path(parent or id))
        write_small(self.path(id, "lower"), os.fsencode(lower), 0o644, sync=False)

    def mend(self, id: str, stack: Sequence[str], *, emptied: bool = False) -> None:
        """Write anew what is wrong of id's own small files: its short link, what it stands on, its directories.

        stack     the ids of all it stands on, nearest first
        emptied   make the directory for its files where that is gone: what was in it can be had elsewhere
        Raises    FileNotFoundError      its files are gone, and not emptied
                  InvalidMetadataError   something it stands on has no short link
        """
        if emptied:
            make(self.path(id), 0o710)
            make(self.files_of(id), 0o755)
        self.require(id, self.files)
        link = self._own_link(id)
        if not link or not self._may_lead_to(link, id):
            link = self._link_to(id) or _new_link()
            replace_small(self.path(id, "link"), link.encode(), 0o644, sync=True)
        place = os.path.join(self.home, LINKS, link)
        if not os.path.lexists(place):
            _files.symlink(self._target(id), place)
        self._sound.pop(f"{LINKS}/{link}", None)
        if stack:
            make(self.path(id, "work"), 0o700)
            if not self._stands_on(id, stack):
                lower = ":".join(f"{LINKS}/{self._link_of(other)}" for other in stack)
                replace_small(self.path(id, "lower"), lower.encode(), 0o644, sync=True)
        else:
            with contextlib.suppress(FileNotFoundError):
                _files.unlink(self.path(id, "lower"))
        sync_directory(self.path(id))
        sync_directory(os.path.join(self.home, LINKS))

    def _may_lead_to(self, link: str, id: str) -> bool:
        """Return True if a short link may be id's: no other id that it leads to names it as its own."""
        place = os.path.join(self.home, LINKS, link)
        target = None
        with contextlib.suppress(OSError):
            target = self.link.fullmatch(_files.readlink(place))
        if target and target[1] == id:
            return True
        if target and self._own_link(target[1]) == link:
            return False
        with contextlib.suppress(FileNotFoundError):
            _files.unlink(place)
        return True

    # ---- ending ----

    def forget(self, id: str) -> None:
        """Remove the short link of id, if it can be read."""
        self._stacks.pop(id, None)
        self._forget_link(self._own_link(id))

    def _forget_link(self, link: str) -> None:
        if link:
            self._items.pop(self._sound.pop(f"{LINKS}/{link}", ""), None)
            with contextlib.suppress(OSError):
                _files.unlink(os.path.join(self.home, LINKS, link))

    def remove_tree(self, id: str) -> None:
        """Remove the directory and all in it, what is mounted there first; fine if it is gone. Raises OSError."""
        with opened(self.home) as home:
            for attempt in range(50):
                try:
                    remove_below(home, self.home, id)
                    return
                except OSError as err:
                    if err.errno not in (errno.EBUSY, errno.ENOTEMPTY) or attempt == 49:
                        raise
                    mounts.unmount_below(self.path(id))
                    time.sleep(0.1 if attempt else 0)

    def empty(self, id: str, name: str) -> None:
        """Remove all that is in a directory of id. Raises OSError."""
        directory = self.path(id, name)
        with opened(directory) as fd:
            for entry in os.listdir(fd):
                remove_below(fd, directory, entry)

    def remove_in(self, id: str, *names: str) -> None:
        """Remove what these names lead to in id; fine if it is gone. Raises OSError."""
        directory = self.path(id, *names[:-1])
        with contextlib.suppress(FileNotFoundError), opened(directory) as fd:
            remove_below(fd, directory, names[-1])

    # ---- on the disk ----

    def problems(self, id: str, stack: Sequence[str]) -> list[tuple[str, str]]:
        """Compare id's own files with what they must be: (kind, sentence).

        stack   the ids of all it stands on, nearest first
        """
        try:
            self.require(id, self.files)
        except FileNotFoundError:
            return [("missing", f"the driver's directory {id}/{self.files} is gone")]
        except OSError as err:
            return [("metadata", f"the driver's directory of {id} is none: {err}")]
        found = []
        try:
            link = read_text(self.path(id, "link"))
            if not is_link(link):
                found.append(("metadata", f"the file {id}/link holds no short link"))
            elif _files.readlink(os.path.join(self.home, LINKS, link)) != self._target(id):
                found.append(("metadata", f"the short link {link} leads elsewhere"))
        except (OSError, LayerStoreError) as err:
            found.append(("missing", f"the short link of {id} cannot be followed: {err}"))
        try:
            items = self.lower_items(id)
            if bool(items) != bool(stack):
                kind, what = ("metadata", "there, though it stands on nothing") if items else ("missing", "gone")
                found.append((kind, f"the file {id}/lower is {what}"))
            elif not self._stands_on(id, stack):
                self.lower_ids(items)
                found.append(("metadata", f"the file {id}/lower does not lead to what its parent says"))
            if stack and not os.path.isdir(self.path(id, "work")):
                found.append(("missing", f"the driver's directory {id}/work is gone"))
        except (OSError, LayerStoreError) as err:
            found.append(("metadata", f"the lower directories of {id} cannot be followed: {err}"))
        return found

    def sync(self, ids: Iterable[str], durability: Durability, *, everything: bool = False) -> bool:
        """Put what was made on the disk, before it becomes visible.

        ids          directories that are whole and settled
        durability   "full": all of them; "ordered": the driver's own small files, as moby does; "none": nothing
        everything   the whole file system, whatever it takes: what they stand on may be on no disk yet

        Returns  True: all of the file system is on its disk
        One syncfs is quickest (measured: 1,024 files of 4 KiB in 8 to 15 ms, file by file 170 to 220), but waits also
        for what others wrote there; so the few files of a small change are synced one by one.
        """
        if durability == "none":
            return False
        if durability == "ordered":
            for id in ids:
                for name in ("link", "lower"):
                    with contextlib.suppress(FileNotFoundError):
                        sync_file(self.path(id, name))
            return False
        few: list[str] | None = [] if not everything else None
        for id in ids:
            found = _few_files(self.path(id)) if few is not None else None
            few = [*few, *found] if few is not None and found is not None else None
        if few is None:
            mounts.sync_filesystem(self.home)
            return True
        for path in few:
            (sync_directory if path.endswith("/") else sync_file)(path)
        sync_directory(os.path.join(self.home, LINKS))
        sync_directory(self.home)
        return False
