"""RWLayer: a reference to a writable layer: mount, changes, tar, commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from layerstore.engine.engine import Engine
from layerstore.engine.record import Mount, MountReference
from layerstore.errors import ActiveMountError, Holder
from layerstore.layer import Layer
from layerstore.streams.leftout import Keep, Marks, export_flags
from layerstore.streams.tarstream import TarStream
from layerstore.values import Change, Metadata, Progress


class RWLayer:
    """A reference to a writable layer. `with rw:` releases it at the end."""

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
        """The bare layer below, or None."""
        below = self._reference.mount.parent
        return Layer(self._engine, below) if below else None

    def mount(self, mount_label: str = "") -> str:
        """Mount it, or count one user more; gives the path.

        mount_label   SELinux label of the whole mount, or ""
        What its own small files lost since it was made, and follows from what it stands on, is mended first.
        Raises        OSError            from the kernel: EINVAL for a label where there is no SELinux
                      CorruptLayerError  they are damaged, and another tree would be shown
                      ActiveMountError   it was detached and somebody is still inside, or another process has it
                                         mounted in another mount namespace
        """
        if not isinstance(mount_label, str):
            raise TypeError(f"a mount label is a str, not {type(mount_label).__name__}")
        return self._engine.writable.mount(self._held(), mount_label)

    def unmount(self, *, lazy: bool = False) -> None:
        """Count one user less; unmount at zero. One too many is harmless.

        lazy     detach it, whoever is inside: they keep what they have open, and until they end it cannot be mounted
        Raises   ActiveMountError (.holders)   somebody is inside, through a copy of the mount in another mount
                                               namespace too: it stays mounted, and this call is still owed
        """
        self._engine.check_open()
        self._engine.writable.unmount(self._reference.mount, lazy=lazy)

    def holders(self) -> list[Holder]:
        """List the processes that use it, by pid: while it is mounted, or was detached and is still in use."""
        return self._engine.writable.holders(self._held())

    @contextmanager
    def mounted(self, mount_label: str = "") -> Iterator[str]:
        """Mount for the length of a `with` block, which gets the path. The end is an unmount(), with its error.

        Where the block itself raised, that is raised, and a box with somebody inside stays mounted.
        """
        path = self.mount(mount_label)
        try:
            yield path
        except BaseException:
            with suppress(ActiveMountError):
                self.unmount()
            raise
        self.unmount()

    def size(self) -> int:
        """Count the bytes of its own files."""
        return self._engine.writable.size(self._held())

    def changes(self) -> list[Change]:
        """List what differs from its parent, by its upper directory alone."""
        return self._engine.writable.changes(self._held())

    def tar_stream(self, *, keep: Keep = "docker", marks: Marks = "refuse") -> TarStream:
        """Make a tar of what differs from its parent.

        keep     "docker": moby's tar, byte for byte: no extended attributes but security.capability, no ACLs, whole
                 seconds; a LeftOutWarning, also in the log, counts and names what that leaves out. "all": user.*,
                 trusted.* and security.* attributes, ACLs and nanoseconds too, in PAX records
        marks    names that begin with ".wh." would delete where the tar is unpacked: "refuse" raises BreakoutError,
                 "skip" leaves them out, with all below them

        Raises   BreakoutError (.path), OSError
                 NotSupportedError   another mount wrote marks into it that this host's mounts cannot follow
        """
        return self._engine.writable.tar_stream(self._held(), export_flags(keep, marks))

    def apply_diff(self, source: Any, *, progress: Progress | None = None) -> int:
        """Unpack a tar over it; gives the bytes of all its own files then.

        source, progress, and what is raised: as Store.register has it; what was unpacked before an error stays
        """
        return self._engine.writable.apply_diff(self._held(), source, progress)

    def metadata(self) -> dict[str, str]:
        """Name the driver's directories (UpperDir, WorkDir, MergedDir, LowerDir), and its own name as ID."""
        found = self._engine.writable.paths(self._held())
        found.setdefault("ID", self.name)
        return found

    def commit(
        self, *, keep: Keep = "docker", marks: Marks = "refuse", durability: str | None = None,
        progress: Progress | None = None,
    ) -> Layer:  # fmt: skip
        """Register what it holds now as a new read-only layer on the same parent; gives the reference.

        keep, marks  as tar_stream() takes them
        durability   as the store's option of that name; None: the store's
        progress     called with the bytes of its tar so far, at most ten times a second
        """
        made = self._engine.writable.commit(self._held(), export_flags(keep, marks), durability, progress)
        return Layer(self._engine, made.record, made)

    def release(self) -> list[Metadata]:
        """Give the reference back: the store's release_rw_layer(self)."""
        self._engine.check_open()
        return self._engine.writable.release(self._reference)

    def __enter__(self) -> RWLayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
