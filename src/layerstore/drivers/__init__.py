"""Drivers: how layers lie on disk and are mounted. The protocols; registry.py has the table of drivers.

A driver owns what a stored layer is. It keeps its files below its home, <root>/<driver name>. Files that belong beside
the record of a layer go into the layerdb, as sidecars. A driver shows five faces: Layers make, find and remove
layers; a StoredLayer is one of them; Writables are the writable layers, and their frozen states; Trees are what ids
show together; the Host is the machine and the home.

An id is the name that the engine drew for a layer or a writable layer. A stack is a value: the ids below something, the
nearest first; [] for nothing. No method remembers a stack for the engine: it passes the stack each time.
Threads may call every method at once, on different ids; of one id, the engine makes or removes one thing at a time.
Every method may raise OSError, with its filename.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from layerstore._core._apply import Applied
from layerstore._core._changes import Blocks
from layerstore.contents.files import Opened
from layerstore.disk.holds import Holds
from layerstore.errors import Holder
from layerstore.ids import ChainID, DiffID, Digest, diff_id_of, digest_of
from layerstore.layerdb.detached import Detached
from layerstore.limits import Limits
from layerstore.streams.sources import TarInput
from layerstore.streams.tarstream import TarStream
from layerstore.values import Change, Durability, FileEntry, Progress

Stack = Sequence[str]

Sidecar = Callable[[str], int]
"""Opens the file of that name beside a layer's record and returns its descriptor, which the caller closes: a new file
for reading and writing while the layer is made, the stored one for reading later. Raises FileNotFoundError, OSError."""

Owned = Callable[[], Iterable[str]]
"""Names every id that the layerdb names now. Raises LayerStoreError, OSError: the layerdb cannot be read."""


class Received(NamedTuple):
    """What a tar was that a draft received."""

    diff_id: DiffID
    tar_size: int
    """Bytes of the tar, once decompressed."""
    size: int
    """Bytes of the layer's files, as moby counts them."""
    left_out: Sequence[tuple[str, int, list[str]]] = ()
    """What the tar leaves out that adopted files have: as the core counts it."""
    source_digest: Digest | None = None
    """Of the bytes that came, compressed if they were; None: not asked for."""
    source_size: int = 0
    """Bytes that came; of adopted files 0."""

    @classmethod
    def of(cls, done: Applied, digest: str | None) -> Received:
        """Return what the core says of a tar that it took in, asked for this digest of its source."""
        source = digest_of(digest, done.source_digest) if digest else None
        return cls(diff_id_of(done.diff_id), done.tar_size, done.size, (), source, done.source_size)


class Finding(NamedTuple):
    """One thing that is wrong on disk."""

    kind: str
    """As Problem.kind has it."""
    path: str
    """The file's name as in the layer's tar; "" for one of the driver's own files."""
    text: str
    """One sentence."""


# ---- layers ------------------------------------------------------------------------------------


class Draft(Protocol):
    """A layer in the making. Its files are invisible, and no cleanup() of another process removes them."""

    @property
    def id(self) -> str:
        """The id that the layer will have."""

    def receive(self, given: TarInput, sidecar: Sidecar, digest: str | None = None) -> Received:
        """Store the tar of the layer. Call it once.

        given    pumps the tar into the core
        sidecar  makes files beside the layer's record
        digest   what the source_digest will be: "sha256", "sha384", "sha512"
        Returns  what the tar was; nothing is synced yet
        Raises   TarFormatError, LimitExceededError, BreakoutError, NotSupportedError, MaxDepthExceededError, OSError,
                 and what given raises: then discard() removes what is on disk
        """

    def place_on(self, stack: Stack) -> None:
        """Let a layer that was received on [] stand on this stack.

        Raises  MaxDepthExceededError, OSError
        """

    def settle(self) -> None:
        """Note that the layer is whole. From now on what it stands on is not mounted for writing."""

    def publish(self) -> None:
        """Note that a record on disk names the layer: cleanup() no longer passes over it. Never raises."""

    def discard(self) -> None:
        """Remove all that is on disk. Do nothing where nothing is. What cannot be removed is left to cleanup()."""


class StoredLayer(Protocol):
    """A stored layer, to be read and mended. It holds nothing open."""

    def tar(self, diff_id: DiffID) -> TarStream:
        """Return the tar as it was received, byte for byte, seekable. At its end it compares the bytes with diff_id.

        Raises  CorruptLayerError, OSError   what describes the tar is gone or damaged: now, or while it is read
        """

    def tar_from(self, ancestor: str) -> TarStream:
        """Return a fresh tar of the difference to an id of the stack; "": to nothing.

        Raises  NotSupportedError, ReadOnlyStoreError, OSError
        """

    def entries(self, chain_id: ChainID) -> Iterator[FileEntry]:
        """Return the entries of the layer, in the order of its tar. No file of the layer is looked at.

        chain_id   what the entries name as their layer
        Raises     CorruptLayerError, OSError   now, or behind the last entry that can be read
        """

    def open_file(self, entry: FileEntry) -> int | Opened:
        """Open a regular file of the layer for reading. No link is followed.

        Returns  a descriptor, or what reads the file
        Raises   CorruptLayerError   the file is not what the entry says
        """

    def check(
        self, diff_id: DiffID, report: Callable[[int], None] | None = None, *, metadata: bool = True
    ) -> list[Finding]:
        """Compare what is on disk with what was received. Nothing is written.

        report     hears of bytes looked at, at least every 100 ms; what it raises ends the check
        metadata   compare also modes, owners, times, extended attributes, kinds, link targets and added names
        Returns    all that is wrong, also what could not be read
        """

    def mend(self, *, emptied: bool = False) -> None:
        """Write anew what is wrong of the driver's own small files, and sync them. The layer's files stay.

        emptied   also make the place of the layer's files where that is gone, for rebuild_from() to fill
        Raises    FileNotFoundError      the layer's files are gone, and not emptied
                  InvalidMetadataError   something it stands on is to be mended first
        """

    def is_described_by_its_sidecars(self, draft: Draft) -> bool:
        """Return True if the layer's sidecars describe draft, which received the same tar.

        Where they do not, the engine puts those of draft in their place before it calls rebuild_from().
        """

    def rebuild_from(self, draft: Draft, names: Iterable[str]) -> None:
        """Replace files of the layer by those of draft, which received the same tar: each in one step.

        names   of what is damaged, as Finding.path has them; draft is spent, and still to be discarded
        """

    def paths(self) -> dict[str, str]:
        """Name the directories, as `docker inspect` does. Raises FileNotFoundError."""


class Layers(Protocol):
    """The stored layers of one home."""

    implied_ns: int | None
    """The time of a directory that a layer's tar has no entry for, in nanoseconds; None: that of the one below."""

    def begin(self, id: str, stack: Stack, *, like: str = "") -> Draft:
        """Begin a layer. Nothing is on disk until receive().

        like   the id of the layer that the draft will mend, whose files it is to be like; "": none
        """

    def open(self, id: str, stack: Stack, sidecar: Sidecar) -> StoredLayer:
        """Return a stored layer, without a look at the disk.

        sidecar   opens the files beside the layer's record
        """

    def adopt(self, id: str, stack: Stack, sidecar: Sidecar) -> Received | None:
        """Let the files of a writable layer, which is written to no longer, be those of a layer, where they lie.

        They are read once, as the tar that Writables.diff() makes of them, and not copied. What that tar leaves out
        stays with the files, and is no damage to StoredLayer.check(). A call that failed may be repeated.

        stack      what the layer is to stand on
        sidecar    makes files beside the layer's record
        Returns    what the tar is; nothing is synced yet. None: layers are not made of files where they lie; their tar
                   is to be registered
        Raises     BreakoutError       a name would be a mark in the tar
                   NotSupportedError   only a mount can tell what a mark stands for
                   LimitExceededError, OSError
        """

    def exists(self, id: str) -> bool:
        """Return True if the files of a layer, or of a draft, are there."""

    def remove(self, id: str) -> None:
        """Remove a layer, or a draft, whatever is mounted in it. Do nothing if it is gone.

        Raises  ValueError   id is empty
                OSError      something could not be removed: cleanup() tries again
        """


# ---- writable layers ---------------------------------------------------------------------------


class Writables(Protocol):
    """The writable layers of one home. An init layer is one of them: the first of its writable layer's stack."""

    def create(
        self, id: str, stack: Stack, options: Mapping[str, str] | None, *, most: int = 128, like: str = ""
    ) -> None:
        """Make an empty writable layer on just this stack. Until publish() it is invisible; no cleanup() removes it.

        options   CreateRWLayerOpts.storage_opt
        most      ids that the stack may have
        like      an id whose root directory's mode, owner, times and attributes the new one gets; "": a new one's
        Raises    InvalidOptionError, NotSupportedError, MaxDepthExceededError, OSError: then nothing is left on disk
        """

    def settle(self, id: str, stack: Stack) -> None:
        """Note that id is whole. From now on what it stands on is not mounted for writing."""

    def seize(self, id: str) -> bool:
        """Claim an unowned id, until publish() or remove(). Return False if a call works on it, or it is gone."""

    def publish(self, id: str) -> None:
        """Note that a record on disk names id: cleanup() no longer passes over it. Never raises."""

    def exists(self, id: str) -> bool:
        """Return True if the files of id are there."""

    def remove(self, id: str) -> None:
        """Remove id, as Layers.remove() does. Processes inside keep what they have open."""

    def mount(self, id: str, label: str = "") -> str:
        """Mount id, or count one user more, and return the path.

        label    SELinux label of the whole mount, or ""
        Raises   ActiveMountError   it was detached and is still in use, or is mounted in another mount namespace
        """

    def unmount(self, id: str, *, lazy: bool = False) -> None:
        """Count one user less, and unmount at zero. Harmless without a mount().

        lazy     detach it, even while processes are inside
        Raises   ActiveMountError   a process is inside: it stays mounted, and counted
        """

    def holders(self, id: str) -> list[Holder]:
        """List who uses id, by pid: while it is mounted, or was detached and is still in use."""

    def apply(self, id: str, stack: Stack, given: TarInput) -> int:
        """Unpack a tar over what id shows, and return the bytes of its own files then.

        Raises  as Draft.receive(); what was unpacked before an error stays
        """

    def standing(self, id: str, stack: Stack) -> list[Finding]:
        """Compare id's own small files with stack, quickly: for a look before each use."""

    def check(self, id: str, stack: Stack) -> list[Finding]:
        """Say all that is wrong of id beside its contents, which are its user's. Nothing is written."""

    def mend(self, id: str, stack: Stack) -> None:
        """Write anew what is wrong of id's own small files, and sync them: so it stands on stack.

        Raises  FileNotFoundError      what was written in it is gone
                InvalidMetadataError   something of the stack is to be mended first
        """

    def stack_of(self, id: str) -> list[str]:
        """Return the stack that id's own files name; a look at the disk each time, but read only where it changed.

        Raises  InvalidMetadataError, OSError
        """

    def lower_text(self, id: str) -> str:
        """Return how id's own files name its stack: a text for named_in() and restand(); "" on nothing."""

    def named_in(self, text: str) -> list[str]:
        """Return the ids that a lower_text() names and that are there."""

    def restand(self, id: str, stack: Stack, *, text: str | None = None, durable: bool | None = None) -> None:
        """Let id stand on another stack, in one step. What is mounted does not see it.

        text      a lower_text(), in place of stack
        durable   what is written is on the disk before it is seen; None: as the store's durability says
        """

    # ---- snapshots and rollback ----

    def hold(self, id: str) -> AbstractContextManager[None]:
        """Keep threads and other stores from mounting, unmounting, freezing and turning id; its own thread may."""

    def freeze(
        self, id: str, into: str, stack: Stack, sync: Callable[[str], None], *, durable: bool | None = None
    ) -> None:
        """Make into, unowned until publish(), of what id wrote. id goes on, empty, on into and stack, at its path.

        sync      called with into, before anything of id changes
        durable   as restand() has it
        Raises    ActiveMountError   a process is inside, or came in meanwhile: nothing has changed
                  OSError            and what sync raises: nothing has changed
        """

    def make_fresh(self, id: str, fresh: str, *, like: str = "") -> int:
        """Make fresh, unowned until publish(): what id is to go on with after turn(). Return what names id's files now.

        like     as create() has it
        """

    def require_idle(self, id: str, *, force: bool) -> bool:
        """Raise if id cannot be switched.

        force    processes inside do not matter
        Returns  True if there are processes that keep what they see: they only read, or force says so
        Raises   ActiveMountError    a process is inside, or it is mounted where this process does not see it
                 NotSupportedError   it is mounted, and this kernel cannot switch
        """

    def turn(self, id: str, fresh: str, upper: int, stack: Stack, *, durable: bool | None = None) -> None:
        """Exchange id's files with fresh's, and let it stand on stack; what is mounted does not see it.

        Called again, also after a kill, it does what is left to do.
        upper     what make_fresh() returned: if id has other files by now, they are exchanged already
        durable   as restand() has it
        """

    def switch(self, id: str, *, force: bool, is_read: bool | None = None) -> None:
        """Let the mounted path of id show what turn() made of it. Do nothing where it is not mounted.

        force    who is inside keeps what it sees
        is_read  what require_idle() has just returned; None: it is asked now
        Raises   ActiveMountError, OSError: nothing has changed
        """

    def discard(self, id: str, then: Callable[[], object] = lambda: None, was: str = "") -> None:
        """Remove an unowned id, by a thread, once no process uses or reads its files; no cleanup() does so before.

        then     called when it is gone
        was      the id that had its files before turn()

        Host.close() and Host.cleanup() end what can end. With a limit of its own it is removed before the call ends.
        """

    def is_used(self, id: str) -> bool:
        """Return True if something that is or was mounted still writes, or reads, id's files as its own."""

    def paths(self, id: str) -> dict[str, str]:
        """Name the directories, as `docker inspect` does. Raises FileNotFoundError."""

    def text_of(self, stack: Stack) -> str:
        """Return the text that lower_text() returns of an id on this stack. Raises InvalidMetadataError, OSError."""

    def changed(self, id: str) -> int:
        """Return when id's directory was last changed, in nanoseconds since 1970. Raises FileNotFoundError."""

    def upper(self, id: str) -> int:
        """Return what names id's files now, for turn(). Raises OSError."""

    def is_mounted(self, id: str) -> bool:
        """Return True if id is mounted at its path, by any store; on nothing, if this store counts a user."""

    # ---- frozen ids: they are written to no longer ----

    def clone(self, id: str, into: str, stack: Stack) -> None:
        """Copy what id wrote to a new id on a stack, while id may be written to. Unowned until publish().

        Each file is whole; nothing is left on disk if this raises.
        """

    def copy(self, id: str, into: str, stack: Stack) -> None:
        """Make a new id on a stack with the files of a frozen one, which both share. Unowned until publish()."""

    def merge(self, ids: Stack, into: str, below: Stack) -> None:
        """Make a new id on a stack that shows what frozen ids on it show. Unowned until publish().

        ids      nearest first
        """

    def empty(self, id: str, stack: Stack) -> None:
        """Remove what an unmounted id holds, and let it stand on a stack."""

    def disown(self, id: str) -> None:
        """Note that the files of a frozen id are a layer's now: no limit of a writable layer counts them.

        It may be repeated.
        """


# ---- what ids show -----------------------------------------------------------------------------


class Trees(Protocol):
    """What ids show when they are stacked. A tree is a stack, the nearest first. Nothing is mounted by a caller."""

    def changes(self, new: Stack, old: Stack, *, contents: bool = False) -> list[Change]:
        """List what makes a tree of another one. Of ids that both have, as little as possible is read.

        contents   the same kind, mode, owner, link, device and bytes is no change, whatever the times
        """

    def diff(self, above: Stack, below: Stack, flags: int = 0) -> TarStream:
        """Return a fresh tar of what the ids above change of the tree below. All that goes into it is looked at before.

        flags    the core's EXPORT_KEEP, EXPORT_SKIP_MARKS
        Raises   BreakoutError       a name would be a mark in the tar
                 NotSupportedError   a mark says what only a mount can tell, and this host's mount cannot
        """

    def write_image(self, stack: Stack, fd: int, progress: Progress | None = None) -> None:
        """Write all that ids show into an empty file, as an EROFS image with all bytes in it and no marks.

        fd        for reading and writing
        progress  called with the bytes written
        Raises    NotSupportedError   as diff() does
        """

    def size(self, above: Stack) -> int:
        """Count the bytes of the files that these ids show, each once."""

    def entries(self, above: Stack, below: Stack) -> Iterator[FileEntry]:
        """Return the entries of diff(), in its order; they are of no layer, and have no CRC and no offset."""

    def open_file(self, above: Stack, path: str) -> int:
        """Open a regular file among entries() for reading, and return the descriptor. No link is followed.

        path    as FileEntry.path has it
        Raises  OSError   these do not show a regular file there
        """


# ---- the home ----------------------------------------------------------------------------------


class Host(Protocol):
    """The machine and the home: what is on it, and what no layer owns."""

    name: str
    """The driver's."""
    in_memory: bool
    """Nothing in the home outlives a crash of the machine, so no disk need be waited for."""

    def status(self) -> list[tuple[str, str]]:
        """Return ordered pairs, as `docker info` shows them."""

    def orphans(self, owned: Owned) -> list[str]:
        """Name what no layer owns, by its path below the home. What a process is making is left out."""

    def usage(self, name: str) -> int:
        """Count the bytes of the files below one of orphans(); 0 for a link."""

    def blocks(self, id: str, seen: Blocks) -> int:
        """Count what the files of a layer or a writable layer take of the disk, in bytes of whole blocks.

        seen   counts each inode once over all calls; 0 for what has gone
        """

    def reclaim(self, owned: Owned) -> None:
        """Remove what orphans() names, and what killed processes left.

        Raises  OSError   the first that could not be removed; the others were
        """

    def sync(self, ids: Iterable[str], durability: Durability, *, everything: bool = False) -> bool:
        """Put layers and writable layers on the disk that are whole and settled.

        durability   "full": all of them; "ordered": the driver's own small files; "none": nothing
        everything   the whole file system: what they stand on may be on no disk yet
        Returns      True: all of the file system is on its disk
        """

    def cleanup(self) -> None:
        """Unmount everything below the home that no other store uses. Raises OSError: something stays mounted."""

    def close(self) -> None:
        """End what is done beside the calls: removals that can end do so, threads end. Twice is harmless."""


class Driver(NamedTuple):
    """One opened driver."""

    layers: Layers
    writables: Writables
    host: Host
    trees: Trees


# ---- what a driver may ask of its store ----------------------------------------------------------


class StoreView(NamedTuple):
    """What a driver may ask of the store that opened it."""

    read_only: bool
    """Make, mount and change nothing below the home."""
    limits: Limits
    """What tars may ask for."""
    lock_timeout: float
    """Seconds of a wait for what another store has locked; 0: for ever."""
    holds: Holds
    """Makes known to other stores what is mounted here."""
    boxes: Detached
    """What is remembered of writable layers that were detached while a process was inside."""
    layer_in: Callable[[str], tuple[ChainID, Sidecar] | None]
    """Finds the layer of an id; None: no layer has it."""
    durability: Durability = "full"
    """What calls wait for; of "none" nothing that is written in a box is ever synced."""
    same: Callable[[DiffID], Iterable[str]] = lambda _: ()
    """Names the ids of the layers that have a DiffID, also those that another process made."""
    diff_id_of: Callable[[str], DiffID | None] = lambda _: None
    """Finds the DiffID of an id; None: no layer has it."""


Open = Callable[[str, Mapping[str, str], StoreView], Driver]
"""Opens the driver whose home this path is, with these options of its own; makes the home.
Raises NotSupportedError, InvalidOptionError, OSError."""
