"""Ground: what all parts of one engine stand on: the root, its layerdb, driver, holds and images, and the records.

Enters: a root and options. It also answers what each call asks first: is the store open, and may it write?
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

from layerstore.disk import dockerd
from layerstore.disk.holds import Holds
from layerstore.disk.locks import LOCK_TIMEOUT, parse_lock_timeout
from layerstore.drivers import StoredLayer, StoreView, registry
from layerstore.engine.record import Record
from layerstore.engine.records import Records
from layerstore.errors import InvalidOptionError, LayerStoreError, ReadOnlyStoreError, StoreClosedError, StoreInUseError
from layerstore.layerdb.detached import Detached
from layerstore.layerdb.imagedb import ImageDB
from layerstore.layerdb.same import Same
from layerstore.layerdb.snapshots import SnapshotDB
from layerstore.layerdb.store import FileMetadataStore
from layerstore.limits import Limits
from layerstore.values import Durability

log = logging.getLogger("layerstore")

_T = TypeVar("_T")
_U = TypeVar("_U")


def parse_durability(given: str) -> Durability:
    """Return the level that a text names. Raises InvalidOptionError."""
    if given not in ("full", "ordered", "none"):
        raise InvalidOptionError(f"durability is full, ordered or none, not {given!r}")
    return cast(Durability, given)


def said(read: Callable[[str], _T], name: str, otherwise: _U) -> _T | _U:
    """Return what the layerdb or the driver says of a name; `otherwise` if that cannot be read."""
    try:
        return read(name)
    except (OSError, LayerStoreError):
        return otherwise


class Ground:
    """One opened root."""

    def __init__(self, root: str, driver: str | None, options: Mapping[str, str] | None) -> None:
        """Open, or make, the store below root. Raises as Store() does."""
        self.root = root
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"options is a mapping of texts, not {type(options).__name__}")
        given = dict(options or {})
        durability = parse_durability(given.pop("durability", "full"))
        self.read_only = self._why_read_only(given.pop("read_only", "false"))
        """Why nothing is written; "": the store is open for writing."""
        lock_timeout = parse_lock_timeout(given.pop("lock_timeout", str(LOCK_TIMEOUT)))
        self.limits = Limits.take(given)
        self.shared = {name: value for name, value in (options or {}).items() if name not in given}
        """The options that are no driver's own."""
        self._open_driver(driver, given, lock_timeout, durability)
        # What outlives no crash is not synced, by the layerdb alone either.
        self.durability: Durability = "none" if self.driver.host.in_memory else durability
        if not self.read_only:
            self.metadata.make(self.durability)
            self.holds.open()
        self.images = ImageDB(os.path.dirname(self.metadata.root), self.durability, lock_timeout)
        self.snapshots_db = SnapshotDB(self.metadata)
        self.records = Records(self.metadata, self.holds)
        self.closed = False

    def _open_driver(
        self, driver: str | None, given: dict[str, str], lock_timeout: float, durability: Durability
    ) -> None:
        """Choose the driver and open it, beside the layerdb."""
        root = self.root
        fresh = not os.path.lexists(root)
        try:
            name = registry.choose(root, driver)
            self.home = os.path.join(root, name)
            layerdb = os.path.join(root, "image", name, "layerdb")
            self.holds = Holds(layerdb)
            if self.read_only and not os.path.isdir(self.home):
                raise LayerStoreError(f"there is no store below {root} to read", path=root)
            if not self.read_only:
                os.makedirs(root, 0o711, exist_ok=True)
                if os.statvfs(root).f_flag & os.ST_RDONLY:
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), root)
            m = self.metadata = FileMetadataStore(layerdb, make=False, lock_timeout=lock_timeout)
            self.boxes = Detached(m)
            same = self.same = Same(m)
            view = StoreView(
                bool(self.read_only), self.limits, lock_timeout, self.holds, self.boxes, m.layer_in, durability, same,
                same.diff_id_of,
            )  # fmt: skip
            self.driver = registry.open_driver(name, root, given, view)
        except (LayerStoreError, OSError) as err:
            if fresh:
                with contextlib.suppress(OSError):
                    os.rmdir(root)
            if isinstance(err, OSError):
                if err.errno == errno.EROFS:
                    why = f"the file system of {root} is read-only, mount it for writing, or use read_only"
                    raise ReadOnlyStoreError(f"{ReadOnlyStoreError.text}: {why}", path=root) from err
                raise
            named = f": {driver}" if driver else ""
            raise type(err)(f"error initializing graphdriver: {err}{named}", path=err.path) from err

    def _why_read_only(self, option: str) -> str:
        if option not in ("true", "false"):
            raise InvalidOptionError(f"read_only is true or false, not {option!r}")
        if option == "true":
            return "it was opened with read_only"
        database = dockerd.locked_database(self.root)
        if not database:
            return ""
        why = f"a dockerd is using {self.root} ({database} is locked); stop it, or use a root of your own"
        log.warning("Open for reading only: %s", why, extra={"root": self.root, "database": database})
        return why

    # ---- what every call asks first ----

    def check_open(self, used: str = "") -> None:
        """Raise StoreClosedError once the store is closed.

        used   a ChainID that this store holds: a forked child holds it for itself from now on
        """
        if self.closed:
            raise StoreClosedError(path=self.root)
        self.holds.take_over(used)

    def check_writable(self) -> None:
        """Raise StoreClosedError, or ReadOnlyStoreError: opened for reading, or a dockerd was started meanwhile."""
        self.check_open()
        if self.read_only:
            raise ReadOnlyStoreError(f"{ReadOnlyStoreError.text}: {self.read_only}", path=self.root)
        database = dockerd.locked_database(self.root)
        if database:
            why = f"{ReadOnlyStoreError.text}: a dockerd was started on {self.root} meanwhile, {database} is locked"
            raise ReadOnlyStoreError(why, path=self.root)

    def stored(self, record: Record, below: Sequence[str] | None = None) -> StoredLayer:
        """Return the layer of a record, as the driver has it; below: what it stands on, if not its parent's."""
        sidecar = functools.partial(self.metadata.open_sidecar, record.chain_id)
        stack = record.directories[1:] if below is None else below
        return self.driver.layers.open(record.cache_id, stack, sidecar)

    def check_no_dockerd(self) -> None:
        """Raise StoreInUseError if a dockerd uses the root."""
        database = dockerd.locked_database(self.root)
        if database:
            raise StoreInUseError(f"{StoreInUseError.text} by a dockerd: {database} is locked", path=self.root)
