"""Drivers: how layers lie on disk and are mounted. The protocol, and which driver a root has.

A driver keeps one directory an id below its home, <root>/<driver name>. It hands out what the store
needs and no more, so that another one (a layer as one image file, say) fits beside overlay2.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from layerstore.disk.holds import Holds
from layerstore.disk.locks import LOCK_TIMEOUT
from layerstore.drivers.overlay2.classes import Recorded
from layerstore.drivers.overlay2.mounting import Marks
from layerstore.errors import Holder, LayerStoreError
from layerstore.limits import Limits
from layerstore.streams.tarstream import TarStream
from layerstore.values import Change, Durability

REMOVED = ("aufs", "devicemapper", "overlay")
PRIORITY = ("overlay2",)


class Driver(Protocol):
    """What the store asks of a driver. Ids are directory names it drew itself."""

    name: str
    in_memory: bool
    """Nothing in home outlives a crash of the machine, so nothing need be waited for."""

    def create(self, id: str, parent: str, *, like: str = "") -> None: ...
    def create_read_write(self, id: str, parent: str, storage_opt: Mapping[str, str] | None) -> None: ...
    def put_on(self, id: str, parent: str, unpacked: Any) -> None: ...
    def stand_on(self, id: str, parent: str) -> None: ...
    def mend(self, id: str, below: Sequence[str], *, emptied: bool = False) -> None: ...
    def graft(self, id: str, sound: str, names: Iterable[str]) -> None: ...
    def settle(self, id: str, parent: str) -> None: ...
    def recorded(self, id: str) -> None: ...
    def exists(self, id: str) -> bool: ...
    def remove(self, id: str) -> None: ...
    def get(self, id: str, mount_label: str = "") -> str: ...
    def put(self, id: str, *, lazy: bool = False) -> None: ...
    def holders(self, id: str) -> list[Holder]: ...
    def ask(self, marks: Marks, recorded: Callable[[str], Recorded | None]) -> None: ...
    def register(self, id: str, parent: str, record_fd: int, feed: Callable[[Any], None]) -> Any: ...
    def apply_diff(self, id: str, parent: str, feed: Callable[[Any], None]) -> int: ...
    def stored_tar(self, id: str, record_fd: int, diff_id: bytes) -> TarStream: ...
    def open_file(self, id: str, path: str, size: int) -> int: ...
    def check(
        self, id: str, record_fd: int, diff_id: bytes, report: Callable[[int], None] | None = None, *,
        metadata: bool = True,
    ) -> list[tuple[str, str, str]]: ...
    def diff(self, id: str, parent: str, *, read_only: bool = False, flags: int = 0) -> TarStream: ...
    def diff_size(self, id: str, parent: str) -> int: ...
    def changes(self, id: str, parent: str) -> list[Change]: ...
    def metadata(self, id: str) -> dict[str, str]: ...
    def problems(self, id: str, below: Sequence[str]) -> list[tuple[str, str]]: ...
    def standing(self, id: str, below: Sequence[str]) -> list[tuple[str, str]]: ...
    def stands_on(self, id: str) -> list[str]: ...
    def status(self) -> list[tuple[str, str]]: ...
    def usage(self, name: str) -> int: ...
    def orphans(self, owned: Callable[[], Iterable[str]]) -> list[str]: ...
    def reclaim(self, owned: Callable[[], Iterable[str]]) -> None: ...
    def sync(self, ids: Iterable[str], durability: Durability, *, everything: bool = False) -> bool: ...
    def cleanup(self) -> None: ...


def choose(root: str, name: str | None) -> str:
    """Name the driver of a root: the one asked for, the one found there, else overlay2.

    Raises  LayerStoreError   a driver nobody has (any more), or several in one root
    """
    if name in REMOVED:
        raise LayerStoreError(
            f"[graphdriver] ERROR: the {name} storage-driver has been deprecated and removed; "
            "visit https://docs.docker.com/go/storage-driver/ for more information"
        )
    if name and name not in PRIORITY:
        raise LayerStoreError("driver not supported")
    if name:
        return name
    prior = [n for n in (*PRIORITY, "fuse-overlayfs", "btrfs", "zfs") if _holds_something(os.path.join(root, n))]
    if len(prior) > 1:
        raise LayerStoreError(
            f"{root} contains several valid graphdrivers: {', '.join(prior)}; "
            "cleanup or explicitly choose storage driver (-s <DRIVER>)"
        )
    if prior and prior[0] not in PRIORITY:
        raise LayerStoreError(f"driver not supported: {prior[0]}")
    return prior[0] if prior else PRIORITY[0]


def _holds_something(path: str) -> bool:
    try:
        return bool(os.listdir(path))
    except OSError:
        return False


def open_driver(
    name: str, root: str, options: Mapping[str, str], holds: Holds, *, read_only: bool = False,
    limits: Limits | None = None, lock_timeout: float = LOCK_TIMEOUT,
) -> Driver:  # fmt: skip
    """Make the driver of this name for root; holds tells other stores what is mounted here, limits bound its tars,
    lock_timeout the seconds of a wait for a directory that another store mounts."""
    # Here, so that a driver may import the protocol it follows.
    from layerstore.drivers.overlay2.driver import Overlay2

    return Overlay2(
        os.path.join(root, name), options, holds=holds, read_only=read_only, limits=limits, lock_timeout=lock_timeout
    )
