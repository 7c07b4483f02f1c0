"""RWLayer: a reference to a writable layer: mount, changes, tar, commit. Snapshot: its state at one moment.

The two make each other, so they stand in one file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from subprocess import CompletedProcess
from typing import Any, BinaryIO, Literal, TypeVar

from layerstore.disk.locks import Scope
from layerstore.engine.engine import Engine
from layerstore.engine.looking import Looking, Shown
from layerstore.engine.record import Mount, MountReference
from layerstore.engine.stacks import Place
from layerstore.errors import ActiveMountError, Holder
from layerstore.layer import Layer, Parent, Top, parent_id
from layerstore.layerdb.snapshots import Saved
from layerstore.running import bubblewrap
from layerstore.running.command import checked
from layerstore.running.sandbox import run_in
from layerstore.streams.leftout import Keep, Marks, export_flags
from layerstore.streams.tarstream import TarStream
from layerstore.values import Change, CreateRWLayerOpts, FileEntry, Metadata, Progress, StrPath

_T = TypeVar("_T")


class RWLayer:
    """A reference to a writable layer. `with rw:` releases it at the end.

    name   its name in the store
    """

    name: str

    def __init__(self, engine: Engine, reference: MountReference) -> None:
        """Show a writable layer of an engine."""
        self._engine, self._reference = engine, reference
        self.name = reference.mount.name

    def _held(self) -> Mount:
        self._engine.check_open()
        return self._engine.writable.held(self._reference)

    def __repr__(self) -> str:
        return f"<RWLayer {self.name}>"

    @property
    def parent(self) -> Layer | None:
        """The nearest layer below, bare, or None: whatever snapshots lie between."""
        below = self._place().layer
        return Layer(self._engine, below) if below else None

    @property
    def base(self) -> Snapshot | Layer | None:
        """What it stands on now: a snapshot, a layer, or None. A snapshot that was released is named all the same."""
        for _ in range(3):
            with suppress(FileNotFoundError):             # another store merged it, or committed it, meanwhile
                return _base_of(self._engine, self._place())
        return _base_of(self._engine, self._place())

    def _place(self) -> Place:
        return self._engine.writable.place(self._reference.mount)

    @property
    def created_at(self) -> float:
        """When it was made, in seconds since 1970; 0.0 if its record is gone."""
        return self._engine.metadata.mount_written(self.name)

    def mount(self, mount_label: str = "") -> str:
        """Mount it and return the path. Mounts are reference-counted: unmount once per mount.

        mount_label   SELinux label of the whole mount, or ""
        Damaged small files of the layer that follow from the layers below are mended first.
        Raises        OSError            from the kernel: EINVAL for a label where there is no SELinux
                      CorruptLayerError  they cannot be mended, and the mount would show another tree
                      ActiveMountError   it was detached and a process is still inside, or another process has it
                                         mounted in another mount namespace
        """
        if not isinstance(mount_label, str):
            raise TypeError(f"a mount label is a str, not {type(mount_label).__name__}")
        return self._engine.writable.mount(self._held(), mount_label)

    def unmount(self, *, lazy: bool = False) -> None:
        """End one mount; the last unmount unmounts the layer. One too many is harmless.

        lazy     True: detach it although processes are inside. They keep what they have open; until they end, the layer
                 cannot be mounted again
        Raises   ActiveMountError (.holders)   a process is inside, or uses a copy of the mount in another mount
                                               namespace: it stays mounted, and one unmount() is still needed
        """
        self._engine.check_open()
        self._engine.driver.writables.unmount(self._reference.mount.mount_id, lazy=lazy)
        self._engine.squash.unmounted(self._reference.mount)

    def holders(self) -> list[Holder]:
        """List the processes that use it, by pid, while it is mounted, or detached and still in use."""
        return self._engine.driver.writables.holders(self._held().mount_id)

    @contextmanager
    def mounted(self, mount_label: str = "") -> Iterator[str]:
        """Mount for the length of a `with` block, which gets the path. Its end is an unmount(), with its error.

        If the block itself raises, that error is raised, and a layer with a process inside stays mounted.
        """
        path = self.mount(mount_label)
        try:
            yield path
        except BaseException:
            with suppress(ActiveMountError):
                self.unmount()
            raise
        self.unmount()

    def run(
        self, argv: Sequence[str], *, cwd: str = "/", env: Mapping[str, str] | None = None,
        user: int | str | None = None, timeout: float | None = None, network: bool = False,
        binds: Mapping[str, str] | None = None, input: bytes | int | None = None, capture: bool = True,
        check: bool = False,
    ) -> CompletedProcess[bytes]:  # fmt: skip
        """Run a command with it as the root directory, in namespaces of its own, by bubblewrap.

        argv      program and arguments; a name without "/" is looked for in PATH, inside
        cwd       the working directory, inside
        env       variables, beside or in place of PATH, HOME and TERM; no variable of this process is inherited
        user      a uid (with the gid that /etc/passwd inside has for it, else the same number), "uid:gid", or a name
                  of that /etc/passwd; None: root. The process really has that uid, and no supplementary groups
        timeout   seconds
        network   True: the network of this process, and its resolv.conf if there is none inside; False: no network
        binds     {path inside: path outside}, mounted in this order; "ro:" in front of the path outside: read-only.
                  A missing path inside is made, and removed afterwards if it is empty
        input     for standard input: bytes, or a descriptor to read; None: /dev/null
        capture   False: the command writes to standard output and error of this process
        check     True: raise CalledProcessError if the return code is not 0

        What the command sees: the layer as "/", a /proc of its own processes, a /dev with null, zero, full, random,
        urandom, tty, shm and pts, no /sys. Kernel settings below /proc are read-only. Devices that the layer holds
        cannot be opened, setuid bits have no effect. Root has the capabilities that chown, su and package managers
        need, and cannot mount; other users have none. The layer is mounted for the call if it is not.

        The call ends with the command: what that left running is killed. When it returns or raises, for
        KeyboardInterrupt too, no process of it is left, and nothing is mounted that was not before.

        Returns  a subprocess.CompletedProcess; its return code is 128 and the signal of a command that was killed
        Raises   NotSupportedError        bubblewrap is missing or older than 0.4, or cannot make a sandbox here
                 FileNotFoundError, PermissionError (.filename)   argv[0], cwd, or a path outside
                 LookupError              /etc/passwd inside has no such user
                 ActiveMountError         as of mount(), and of unmount() after the command
                 subprocess.TimeoutExpired, subprocess.CalledProcessError   with the output so far
                 TypeError, ValueError
        """
        told = checked(
            argv, cwd=cwd, env=env, user=user, timeout=timeout, network=network, binds=binds, input=input,
            capture=capture,
        )  # fmt: skip
        program = bubblewrap.find()
        done: list[CompletedProcess[bytes]] = []

        def leave(_: str) -> None:
            with suppress(*(() if done else (ActiveMountError,))):       # what the block raised is raised
                self.unmount()

        with Scope(self.mount, leave) as path:
            done.append(run_in(path, told, program))
        if check:
            done[0].check_returncode()
        return done[0]

    # ---- snapshots ----

    def snapshot(
        self, *, busy: Literal["clone", "error"] = "clone", freeze: StrPath | None = None, durability: str | None = None
    ) -> Snapshot:
        """Freeze what the layer holds now, and let it continue on top of that.

        If no process is inside, this costs the same whatever was changed: the upper directory itself becomes the
        snapshot, and a mounted path stays valid throughout. Processes that only read keep reading what they have open.
        busy         if a process is inside (its root, its working directory, an open directory, a file open for
                     writing, a shared mapping), or the layer is mounted once more elsewhere: "clone" copies what the
                     layer holds (with reflinks, if the file system has them), and the layer stays as it is; "error"
                     raises ActiveMountError
        freeze       a cgroup v2 directory that is frozen while files are cloned, so that all are of one moment; without
                     it each file is whole
        durability   as the store's option of that name; None: the store's

        Raises   ActiveMountError (.holders), MaxDepthExceededError (500 directories below), OSError
        """
        if busy not in ("clone", "error"):
            raise ValueError(f'busy is "clone" or "error", not {busy!r}')
        level = self._engine.syncing.level(durability)
        return Snapshot(self._engine, *self._engine.snapshots.take(self._held(), busy, freeze, level))

    def rollback(self, to: Parent, *, force: bool = False, durability: str | None = None) -> None:
        """Discard what the layer holds and continue from a snapshot or a layer, in place: a mounted path stays valid.

        to           a Snapshot, a Layer, an Image, or the id of one; "" only while it is not mounted
        force        True: processes inside keep what they see, detached; it is deleted when the last of them ends
        durability   as the store's option of that name; None: the store's
        What was discarded is removed by a thread of the store.

        Raises   ActiveMountError (.holders)   processes are inside; nothing has changed
                 LayerDoesNotExistError, MaxDepthExceededError, OSError
        """
        target = parent_id(to)
        level = self._engine.syncing.level(durability)
        self._engine.rollbacks.rollback(self._held(), target, level, force=force)

    def fork(self, name: str, *, durability: str | None = None) -> RWLayer:
        """Create a writable layer that holds what this one holds now: a snapshot without a name of its own.

        Raises   as snapshot(), and as Store.create_rw_layer() for the name
        """
        level = self._engine.syncing.level(durability)
        return RWLayer(self._engine, self._engine.forks.fork(self._held(), name, level))

    def squash(self) -> None:
        """Merge the released snapshots below that nothing else stands on.

        create_rw_layer(), snapshot() and rollback() do it by themselves if a stack has more than 48 snapshots. What the
        layer shows does not change.
        Raises   OSError
        """
        self._engine.squash.squash(self._held())

    # ---- contents ----

    def size(self) -> int:
        """Return the bytes of the files that it holds above its nearest layer, each counted once."""
        return self._look(Looking.size)

    def _look(self, at: Callable[[Looking, Shown], _T]) -> _T:
        looking, mount = self._engine.looking, self._held()
        return looking.look(lambda: looking.box(mount), lambda shown: at(looking, shown))

    def changes(self, since: Parent | None = None) -> list[Change]:
        """List what differs; only directories that were written to are read.

        since   None: from its nearest layer; or a snapshot or a layer that it stands on; or a snapshot that was
                cloned of it

        Raises  LayerDoesNotExistError
                LayerStoreError          since is not below it
        """
        told = None if since is None else parent_id(since)
        return self._look(lambda looking, shown: looking.changes(shown, told))

    def files(self) -> Iterator[FileEntry]:
        """Return an iterator over all files that it shows, as Layer.merged() has them; it need not be mounted.

        crc and offset are None for what is in no layer. Sockets and names that begin with ".wh." are left out. While it
        is mounted, files may be of different moments.
        """
        return self._look(Looking.merged).files()

    def open(self, path: StrPath) -> BinaryIO:
        """Open a regular file that it shows for reading; it need not be mounted.

        path    from its root, with or without "/" in front; links are followed, below that root
        Raises  FileNotFoundError, IsADirectoryError, NotADirectoryError, OSError
        """
        return self._look(lambda looking, shown: looking.open(shown, path))

    def tar_stream(self, *, keep: Keep = "docker", marks: Marks = "refuse") -> TarStream:
        """Return a tar of what differs from its nearest layer.

        keep     "docker": moby's tar, byte for byte: no extended attributes except security.capability, no ACLs, whole
                 seconds; a LeftOutWarning, also in the log, counts and names what is left out. "all": user.*,
                 trusted.* and security.* attributes, ACLs and nanoseconds too, in PAX records
        marks    names that begin with ".wh." would delete when the tar is unpacked: "refuse" raises BreakoutError,
                 "skip" leaves them out, with everything below them

        Raises   BreakoutError (.path), OSError
                 NotSupportedError   another mount wrote marks into it that this host's mounts cannot follow
        """
        flags = export_flags(keep, marks)
        return self._look(lambda looking, shown: looking.tar(shown, flags))

    def apply_diff(self, source: Any, *, progress: Progress | None = None) -> int:
        """Unpack a tar over it, and return the bytes of all its own files afterwards.

        source, progress   as for Store.register(), with the same errors; what was unpacked before an error stays
        """
        return self._engine.writable.apply_diff(self._held(), source, progress)

    def metadata(self) -> dict[str, str]:
        """Return the driver's directories (UpperDir, WorkDir, MergedDir, LowerDir), and its own name as ID."""
        found = self._engine.driver.writables.paths(self._held().mount_id)
        found.setdefault("ID", self.name)
        return found

    def commit(
        self, *, keep: Keep = "docker", marks: Marks = "refuse", durability: str | None = None,
        progress: Progress | None = None,
    ) -> Layer:  # fmt: skip
        """Register its present contents as a new read-only layer on its nearest layer, and return a reference.

        keep, marks  as for tar_stream()
        durability   as the store's option of that name; None: the store's
        progress     called with the bytes of its tar so far, at most ten times a second
        """
        self._engine.check_writable()
        level = self._engine.syncing.level(durability)
        flags = export_flags(keep, marks)
        made = self._look(lambda looking, shown: looking.commit(shown, flags, level, progress))
        return Layer(self._engine, made.record, made)

    def release(self) -> list[Metadata]:
        """Release the reference: the store's release_rw_layer(self)."""
        self._engine.check_open()
        return self._engine.writable.release(self._reference)

    def __enter__(self) -> RWLayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Snapshot(Top):
    """The state of a writable layer at one moment, frozen. `with snapshot:` releases it at the end.

    It has no digest until it is committed. It stays until one object of it, in any process, is released: an object is a
    name, and no counted reference.

    id        64 hexadecimal digits; create_rw_layer() and rollback() take it as a parent
    created   when it was taken, in UTC
    """

    id: str
    created: datetime

    def __init__(self, engine: Engine, id: str, saved: Saved | None = None) -> None:
        """Show a snapshot of an engine, recorded or loose; saved: what its record says, if that is known."""
        self._engine, self.id = engine, id
        saved = saved or engine.snapshots.read(id)
        self._box = saved.box
        self.created = _EPOCH + timedelta(microseconds=saved.created // 1000)

    def __repr__(self) -> str:
        return f"<Snapshot {self.id[:12]}{f' of {self.box}' if self.box else ''}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def box(self) -> str:
        """The name of the writable layer that it was taken of; "" once it is released."""
        return self._box if self._engine.snapshots.is_recorded(self.id) else ""

    @property
    def top(self) -> str:
        """Its id: what a `parent` argument takes."""
        return self.id

    @property
    def parent(self) -> Snapshot | Layer | None:
        """What it stands on: a snapshot, a layer (bare), or None."""
        return _base_of(self._engine, self._shown().place)

    @property
    def layer(self) -> Layer | None:
        """The nearest layer below, bare, or None."""
        below = self._shown().place.layer
        return Layer(self._engine, below) if below else None

    def _shown(self) -> Shown:
        self._engine.check_open()
        return self._engine.looking.snapshot(self.id)

    def _look(self, at: Callable[[Looking, Shown], _T]) -> _T:
        return self._engine.looking.look(self._shown, lambda shown: at(self._engine.looking, shown))

    def fork(self, name: str, opts: CreateRWLayerOpts | None = None, *, durability: str | None = None) -> RWLayer:
        """Create a writable layer on it and return a reference. Nothing is copied.

        Raises   as Store.create_rw_layer()
        """
        self._engine.check_writable()
        level = self._engine.syncing.level(durability)
        return RWLayer(self._engine, self._engine.create(name, self.id, checked_opts(opts), level))

    def changes(self, since: Parent | None = None) -> list[Change]:
        """List what differs.

        since   None: from what it stands on; or a snapshot or a layer below it

        Raises  LayerDoesNotExistError
                LayerStoreError          since is not below it
        """
        told = None if since is None else parent_id(since)
        return self._look(lambda looking, shown: looking.changes(shown, told))

    def size(self) -> int:
        """Return the bytes of the files in its own directory."""
        return self._look(Looking.size)

    def tar_stream(self) -> TarStream:
        """Return the tar that commit() registers. Raises LayerDoesNotExistError, BreakoutError (.path), OSError."""
        self._engine.snapshots.check(self.id)
        return self._look(lambda looking, shown: looking.tar(shown, whole=False))

    def commit(self, *, squash: bool = False, durability: str | None = None) -> Layer:
        """Make a read-only layer of it, and return a reference.

        Its directory is read once, and becomes the layer's: nothing is copied. What stands on it continues on the
        layer, and shows what it showed. Snapshots below it are committed too, a layer each. From then on `id` names
        the layer, too, and commit() returns it again.
        squash       True: all down to the nearest layer becomes one new layer, which is a copy; the snapshots stay
        durability   as the store's option of that name; None: the store's

        Raises   MaxDepthExceededError   there would be more than 125 layers; nothing was done
                 LayerDoesNotExistError, BreakoutError (.path), OSError
        """
        self._engine.check_writable()
        level = self._engine.syncing.level(durability)
        self._engine.snapshots.check(self.id)
        made = (
            self._look(lambda looking, shown: looking.commit(shown, 0, level, None))
            if squash and not self._engine.snapshots.is_committed(self.id)
            else self._engine.promotion.commit(self.id, level)
        )
        return Layer(self._engine, made.record, made)

    def metadata(self) -> dict[str, str]:
        """Return the driver's directories (UpperDir: the frozen one, LowerDir ...), and its id as ID."""
        self._shown()
        found = self._engine.driver.writables.paths(self.id)
        found.setdefault("ID", self.id)
        return found

    def release(self) -> list[Metadata]:
        """Release it: it can no longer be forked. Its directory stays as long as something stands on it.

        Returns  the layers that were deleted with it; [] if it was released before
        """
        return self._engine.snapshots.release(self.id)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _base_of(engine: Engine, place: Place) -> Snapshot | Layer | None:
    if place.base:
        return Snapshot(engine, place.base)
    return Layer(engine, place.layer) if place.layer else None


def checked_opts(opts: CreateRWLayerOpts | None) -> CreateRWLayerOpts:
    """Return the options of a new writable layer. Raises TypeError."""
    if opts is not None and not isinstance(opts, CreateRWLayerOpts):
        raise TypeError(f"opts is a CreateRWLayerOpts, not {type(opts).__name__}")
    return opts or CreateRWLayerOpts()
