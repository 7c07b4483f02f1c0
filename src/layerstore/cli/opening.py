"""The store of a command, and the layers, snapshots and writable layers in it by their names.

Enters: --root, LAYERSTORE_ROOT, and names as typed. Leaves: an open store and references to layers. Every named layer
is held until the process ends and never released, so no failure and no removal of a layer on top deletes it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from layerstore import ChainID, ImageError, Images, Layer, MountDoesNotExistError, RWLayer, Snapshot, Store
from layerstore.cli.exits import Exit, Failure
from layerstore.cli.texts import short_id
from layerstore.disk import dockerd
from layerstore.drivers import checks, registry
from layerstore.layerdb.store import FileMetadataStore
from layerstore.layerdb.transaction import check_mount_name

log = logging.getLogger("layerstore")

ROOT_VARIABLE = "LAYERSTORE_ROOT"
_HEX = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")


def default_root() -> str:
    """Return the root of a command that names none: LAYERSTORE_ROOT, else a place fit for this user."""
    given = os.environ.get(ROOT_VARIABLE)
    if given:
        return given
    if os.geteuid() == 0 and not checks.in_user_namespace():
        return "/var/lib/layerstore"
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(data, "layerstore")


def root_of(args: Any) -> str:
    """Return the root that a command line means. Raises Failure for an empty one."""
    root = default_root() if args.root is None else args.root
    if not root:
        raise Failure("--root is a directory's path, not an empty text", Exit.USAGE)
    return os.path.abspath(root)


def nearest(root: str) -> str:
    """Return the directory root, or the nearest one above that exists."""
    while not os.path.isdir(root):
        root = os.path.dirname(root)
    return root


def is_store(root: str, driver: str | None = None) -> bool:
    """Return True if there is a store below root, of this driver. Raises PermissionError."""
    try:
        os.stat(os.path.join(root, "image", registry.choose(root, driver), "layerdb", "."))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _one(name: str, known: Iterable[str], what: str) -> str | None:
    """Return the ID that begins with a name, or None. Raises Failure if several do."""
    digits = _HEX.fullmatch(name)
    if not digits:
        return None
    found = [one for one in known if one.rpartition(":")[2].startswith(digits[1])]
    if len(found) > 1:
        shown = ", ".join(short_id(one) for one in sorted(found)[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise Failure(f"{name} is the beginning of several {what}: {shown}{more}", Exit.USAGE)
    return found[0] if found else None


def checked_name(name: str) -> str:
    """Return the name of a writable layer. Raises Failure if it cannot be one."""
    try:
        return check_mount_name(name)
    except ValueError as err:
        raise Failure(str(err), Exit.USAGE) from None


def id_of(base: Snapshot | Layer | None) -> str | None:
    """Return the ID of a snapshot, or the ChainID of a layer; None for nothing."""
    if base is None:
        return None
    return base.id if isinstance(base, Snapshot) else base.chain_id


class Opened:
    """An open store, and how layers in it are named."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.images = Images(store)

    def find(self, name: str) -> ChainID:
        """Return the ChainID that a name means: a ChainID, the unique beginning of one, or an image's name.

        Raises  Failure   it means none, or several
        """
        found = _one(name, self.store.names()[0], "layers")
        return ChainID(found) if found else self._top_of_image(name, "layer")

    def _top_of_image(self, name: str, or_no: str) -> ChainID:
        try:
            top = self.images.get(name).top
        except LookupError:
            why = f"there is no {or_no} and no image {name} in {self.store.root}"
            raise Failure(why, Exit.NOT_THERE) from None
        except ImageError as err:                 # no name at all, or the beginning of several
            raise Failure(str(err), Exit.USAGE) from None
        if not top:
            raise Failure(f"the image {name} has no layers", Exit.NOT_THERE)
        return ChainID(top)

    def layer(self, name: str) -> Layer:
        """Return the layer that a name means, held. Raises Failure, LayerDoesNotExistError."""
        return self.store.get(self.find(name))

    def kept(self, name: str) -> contextlib.AbstractContextManager[Layer]:
        """Keep the layer that a name means for the length of a `with` block. Whether it was released stays as it is."""
        return self.store.using(self.find(name))

    def rw_layer(self, name: str) -> RWLayer:
        """Return the writable layer of a name. Raises Failure if there is none."""
        try:
            return self.store.get_rw_layer(checked_name(name))
        except MountDoesNotExistError:
            raise Failure(f"there is no writable layer {name} in {self.store.root}", Exit.NOT_THERE) from None

    def snapshot(self, name: str) -> Snapshot:
        """Return the snapshot that an ID, or the unique beginning of one, means. Raises Failure if none or several."""
        found = self._snapshot_id(name)
        if not found:
            raise Failure(f"there is no snapshot {name} in {self.store.root}", Exit.NOT_THERE)
        return self.store.get_snapshot(found)

    def _snapshot_id(self, name: str) -> str | None:
        return _one(name, (each.id for each in self.store.snapshots()), "snapshots")

    def parent(self, name: str) -> str:
        """Return the ID of what a writable layer can stand on: a snapshot, a layer, or an image's top.

        Raises  Failure   the name means none of them, or several
        """
        known = [*self.store.names()[0], *(each.id for each in self.store.snapshots())]
        return _one(name, known, "layers and snapshots") or self._top_of_image(name, "layer, no snapshot")

    def origin(self, name: str) -> RWLayer | Snapshot:
        """Return the writable layer of a name, or else the snapshot that it means. Raises Failure if there is none."""
        if name in self.store.mounts():
            return self.rw_layer(name)
        found = self._snapshot_id(name)
        if not found:
            why = f"there is no writable layer and no snapshot {name} in {self.store.root}"
            raise Failure(why, Exit.NOT_THERE)
        return self.store.get_snapshot(found)

    def rw_layers(self) -> Iterator[RWLayer]:
        """Return all writable layers, by name; one that another process removes meanwhile is left out."""
        for name in self.store.mounts():
            with contextlib.suppress(MountDoesNotExistError):
                yield self.store.get_rw_layer(name)

    def halves(self) -> dict[str, set[ChainID]]:
        """Return which layers each driver of the root has."""
        root = self.store.root
        layerdbs = {name: os.path.join(root, "image", name, "layerdb") for name in registry.found(root)}
        return {name: set(FileMetadataStore(at, make=False).list()[0]) for name, at in layerdbs.items()}

    def image_names(self) -> dict[str, list[str]]:
        """Return the names of the images whose topmost layer is a ChainID, by that."""
        names: dict[str, list[str]] = {}
        for image in self.images.list():
            names.setdefault(image.top, []).extend(image.references or (short_id(image.id),))
        return names


def require_store(root: str, driver: str | None = None) -> None:
    """Raise Failure if there is no store, of this driver."""
    if is_store(root, driver):
        return
    if driver and registry.found(root):
        make = f"layerstore --root {root} --driver {driver} init"
        raise Failure(f"the store below {root} has no {driver} half; make one with: {make}", Exit.NOT_THERE)
    raise Failure(f"there is no store below {root}; make one with: layerstore --root {root} init", Exit.NOT_THERE)


def _chosen(args: Any) -> tuple[str, str | None]:
    """Return the root and the driver of a command line. A root with several drivers is told, unless one is named."""
    root = root_of(args)
    require_store(root, args.driver)
    names = registry.found(root)
    if args.driver is None and len(names) > 1:
        text = "%s has several drivers: %s. This is the half of %s; --driver names another one"
        log.warning(text, root, ", ".join(names), names[0], extra={"root": root})
    return root, args.driver


@contextlib.contextmanager
def reading(args: Any) -> Iterator[Opened]:
    """Open the store of a command line for reading only: also beside a running dockerd."""
    root, driver = _chosen(args)
    with Store(root, driver=driver, options={"read_only": "true"}) as store:
        yield Opened(store)


def refuse_dockerd(root: str) -> None:
    """Raise Failure where a dockerd runs on root."""
    database = dockerd.locked_database(root)
    if database:
        why = f"a dockerd is using {root} ({database} is locked): stop it, or use a root of your own"
        raise Failure(why, Exit.IN_USE)


@contextlib.contextmanager
def writing(args: Any) -> Iterator[Opened]:
    """Open the store of a command line to change it. Raises Failure if there is none, or a dockerd runs on it."""
    root, driver = _chosen(args)
    refuse_dockerd(root)
    with Store(root, driver=driver) as store:
        yield Opened(store)
