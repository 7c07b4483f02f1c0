"""RWLayer: a reference to a writable layer: mount, changes, tar, commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from subprocess import CompletedProcess
from typing import Any

from layerstore.disk.locks import Scope
from layerstore.engine.engine import Engine
from layerstore.engine.record import Mount, MountReference
from layerstore.errors import ActiveMountError, Holder
from layerstore.layer import Layer
from layerstore.running import bubblewrap
from layerstore.running.command import checked
from layerstore.running.sandbox import run_in
from layerstore.streams.leftout import Keep, Marks, export_flags
from layerstore.streams.tarstream import TarStream
from layerstore.values import Change, Metadata, Progress


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
        """The layer below, bare, or None."""
        below = self._reference.mount.parent
        return Layer(self._engine, below) if below else None

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

    def size(self) -> int:
        """Return the bytes of its own files."""
        return self._engine.driver.writables.size(self._held().mount_id)

    def changes(self) -> list[Change]:
        """List what differs from its parent; only its upper directory is read."""
        return self._engine.writable.changes(self._held())

    def tar_stream(self, *, keep: Keep = "docker", marks: Marks = "refuse") -> TarStream:
        """Return a tar of what differs from its parent.

        keep     "docker": moby's tar, byte for byte: no extended attributes except security.capability, no ACLs, whole
                 seconds; a LeftOutWarning, also in the log, counts and names what is left out. "all": user.*,
                 trusted.* and security.* attributes, ACLs and nanoseconds too, in PAX records
        marks    names that begin with ".wh." would delete when the tar is unpacked: "refuse" raises BreakoutError,
                 "skip" leaves them out, with everything below them

        Raises   BreakoutError (.path), OSError
                 NotSupportedError   another mount wrote marks into it that this host's mounts cannot follow
        """
        return self._engine.writable.tar_stream(self._held(), export_flags(keep, marks))

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
        """Register its present contents as a new read-only layer on the same parent, and return a reference.

        keep, marks  as for tar_stream()
        durability   as the store's option of that name; None: the store's
        progress     called with the bytes of its tar so far, at most ten times a second
        """
        made = self._engine.writable.commit(self._held(), export_flags(keep, marks), durability, progress)
        return Layer(self._engine, made.record, made)

    def release(self) -> list[Metadata]:
        """Release the reference: the store's release_rw_layer(self)."""
        self._engine.check_open()
        return self._engine.writable.release(self._reference)

    def __enter__(self) -> RWLayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
