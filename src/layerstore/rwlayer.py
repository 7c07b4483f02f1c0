"""RWLayer: a reference to a writable layer: mount, changes, tar, commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from layerstore.errors import ActiveMountError, LayerNotRetainedError
from layerstore.layer import Layer, Record
from layerstore.streams.leftout import Keep, Marks, export_flags, told_left_out
from layerstore.streams.tarstream import TarStream
from layerstore.values import Change, Holder, Metadata, Progress

if TYPE_CHECKING:
    from layerstore.store import Store


class Mount:
    """One writable layer in memory: what all its handles share."""

    def __init__(self, store: Store, name: str, mount_id: str, init_id: str, parent: Record | None) -> None:
        """Hold what the metadata says."""
        self.store, self.name, self.mount_id, self.init_id, self.parent = store, name, mount_id, init_id, parent
        self.handles: set[RWLayer] = set()
        # Where the record was put when its deletion began: it has none on disk then.
        self.aside: str | None = None

    @property
    def held(self) -> bool:
        """Whether it has references that keep it, as Record.held."""
        return bool(self.handles) and self.store._writable.keeps(self)

    @property
    def below(self) -> str:
        """The driver id it stands on: its init layer, else its parent's, as the disk has it now, else ""."""
        if self.parent and not self.init_id:
            self.store._contents.current(self.parent)
        return self.init_id or (self.parent.cache_id if self.parent else "")

    @property
    def directories(self) -> list[tuple[str, list[str]]]:
        """Its own driver ids, the init layer's first, each with all it stands on, nearest first."""
        below = self.store._contents.directories_of(self.parent) if self.parent else []
        if not self.init_id:
            return [(self.mount_id, below)]
        return [(self.init_id, below), (self.mount_id, [self.init_id, *below])]


class RWLayer:
    """A reference to a writable layer. `with rw:` releases it at the end."""

    name: str

    def __init__(self, mount: Mount) -> None:
        """Refer to a mount; the store counts it."""
        self._mount = mount
        self._is_new = False              # the call that gave this reference made the writable layer
        self.name = mount.name

    def _held(self) -> Mount:
        if self not in self._mount.handles:
            raise LayerNotRetainedError(name=self.name)
        self._mount.store._writable.take_over(self._mount)
        return self._mount

    def __repr__(self) -> str:
        return f"<RWLayer {self.name}>"

    @property
    def parent(self) -> Layer | None:
        """The bare layer below, or None."""
        return Layer(self._mount.parent) if self._mount.parent else None

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
        store = self._held().store
        store._stand_right(self._mount)
        return store._driver_of().get(self._mount.mount_id, mount_label)

    def unmount(self, *, lazy: bool = False) -> None:
        """Count one user less; unmount at zero. One too many is harmless.

        lazy     detach it, whoever is inside: they keep what they have open, and until they end it cannot be mounted
        Raises   ActiveMountError (.holders)   somebody is inside, through a copy of the mount in another mount
                                               namespace too: it stays mounted, and this call is still owed
        """
        self._mount.store._driver_of().put(self._mount.mount_id, lazy=lazy)

    def holders(self) -> list[Holder]:
        """List the processes that use it, by pid: while it is mounted, or was detached and is still in use."""
        return self._held().store._driver_of().holders(self._mount.mount_id)

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
        return self._held().store._driver_of().diff_size(self._mount.mount_id, self._mount.below)

    def changes(self) -> list[Change]:
        """List what differs from its parent, by its upper directory alone."""
        self._held().store._stand_right(self._mount)
        return self._held().store._driver_of().changes(self._mount.mount_id, self._mount.below)

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
        self._held().store._stand_right(self._mount)
        driver, flags = self._held().store._driver_of(), export_flags(keep, marks)
        stream = driver.diff(self._mount.mount_id, self._mount.below, flags=flags)
        return told_left_out(stream, f"writable layer {self.name}")

    def apply_diff(self, source: Any, *, progress: Progress | None = None) -> int:
        """Unpack a tar over it; gives the bytes of all its own files then.

        source, progress, and what is raised: as Store.register has it; what was unpacked before an error stays
        """
        return self._held().store._apply_diff(self._mount, source, progress)

    def metadata(self) -> dict[str, str]:
        """Name the driver's directories (UpperDir, WorkDir, MergedDir, LowerDir), and its own name as ID."""
        found = self._held().store._driver_of().metadata(self._mount.mount_id)
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
        return self._held().store._commit(self._mount, export_flags(keep, marks), durability, progress)

    def release(self) -> list[Metadata]:
        """Give the reference back: the store's release_rw_layer(self)."""
        return self._mount.store.release_rw_layer(self)

    def __enter__(self) -> RWLayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
