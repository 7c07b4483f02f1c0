"""FileMetadataStore: the layerdb on disk, and what an interruption left behind in it.

    layerdb/tmp/write-set-<decimal>/      a transaction; one rename makes it ...
    layerdb/sha256/<hex of ChainID>/      ... a layer: diff size cache-id [parent] [descriptor.json]
                                              tar-split.json.gz [released]
    layerdb/sha256/<hex>-<hex>-removing/  a layer being deleted
    layerdb/mounts/<name>/                a writable layer: mount-id [init-id] [parent]
    layerdb/snapshots/<id>/               see snapshots.py

Every file is to the byte what dockerd reads and writes; modes do not depend on the umask.
Source: moby, layer/filestore.go
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gzip
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol, TypeVar, cast

from layerstore._core import _files
from layerstore.disk import textfile
from layerstore.disk.locks import LOCK_TIMEOUT, directory_lock
from layerstore.errors import InvalidDigestError, InvalidMetadataError, LayerStoreError, readable
from layerstore.ids import OS, ChainID, DiffID, Digest, is_driver_id
from layerstore.layerdb.descriptor import decode_descriptor, encode_descriptor
from layerstore.layerdb.transaction import (
    TAR_SPLIT,
    FileMetadataTransaction,
    MetadataTransaction,
    OwningGzip,
    check_mount_name,
)
from layerstore.values import Descriptor, Durability, StrPath

log = logging.getLogger("layerstore")

REMOVING = "-removing"
_INTEGER = re.compile(rb"[+-]?[0-9]+")
_D = TypeVar("_D", bound=Digest)


class MetadataStore(Protocol):
    """What remembers layers and mounts. FileMetadataStore is the one on files."""

    def start_transaction(self) -> MetadataTransaction:
        """Begin to write a layer's metadata."""

    def get_size(self, chain_id: str) -> int:
        """Read the layer's own size in bytes."""

    def get_parent(self, chain_id: str) -> ChainID | str:
        """Read the parent's ChainID; "" where there is none."""

    def get_diff_id(self, chain_id: str) -> DiffID:
        """Read the DiffID."""

    def get_cache_id(self, chain_id: str) -> str:
        """Read the driver's id of the layer."""

    def get_descriptor(self, chain_id: str) -> Descriptor:
        """Read the blob's descriptor; Descriptor() where there is none."""

    def get_os(self, chain_id: str) -> OS:
        """Read the operating system; on Linux always "linux"."""

    def tar_split_reader(self, chain_id: str) -> BinaryIO:
        """Read the tar-split record as JSON lines."""

    def set_mount_id(self, mount: str, mount_id: str) -> None:
        """Note the driver's id of a writable layer."""

    def set_init_id(self, mount: str, init_id: str) -> None:
        """Note the driver's id of a writable layer's init layer."""

    def set_mount_parent(self, mount: str, parent: str) -> None:
        """Note the ChainID a writable layer stands on."""

    def get_mount_id(self, mount: str) -> str:
        """Read the driver's id of a writable layer."""

    def get_init_id(self, mount: str) -> str:
        """Read the driver's id of the init layer; "" where there is none."""

    def get_mount_parent(self, mount: str) -> ChainID | str:
        """Read the ChainID a writable layer stands on; "" where there is none."""

    def list(self) -> tuple[list[ChainID], list[str]]:
        """Name all layers and all mounts."""

    def remove(self, chain_id: str) -> None:
        """Remove a layer's metadata."""

    def remove_mount(self, mount: str) -> None:
        """Remove a writable layer's metadata."""


# Inside of the stores `list` is their own method.
_Names = list[str]


# ---- the store --------------------------------------------------------------------------------


class FileMetadataStore:
    """The MetadataStore on files: FileMetadataStore(root) is the layerdb at root.

    root         its directory, an absolute path
    durability   "full": metadata synced, its directories too; "ordered": files alone, as moby;
                 "none": nothing is synced
    """

    def __init__(
        self, root: StrPath, *, durability: Durability = "full", make: bool = True, lock_timeout: float = LOCK_TIMEOUT
    ) -> None:
        """Open the layerdb, or make it (0700, with its parents; make=False: nothing is made).

        lock_timeout   seconds that exclusive() may wait; 0: for ever
        """
        self.root: str = os.path.abspath(os.fsdecode(root))
        self._durability: Durability = durability
        self._exclusive = directory_lock(self.root, lock_timeout)
        if make:
            self.make(durability)

    def make(self, durability: Durability) -> None:
        """Make the layerdb (0700, with its parents); what is written from now on is as durable as is said."""
        self._durability = durability
        textfile.make_directories(self.root, 0o700)

    @property
    def is_durable(self) -> bool:
        """True if what comes in the place of a file is on the disk before."""
        return self._durability != "none"

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes (and threads) on this layerdb from making a layer visible or taking one away.

        Held for the moment of a rename only; on a file system without locks it stops no other process. Reentrant.
        Entering it raises StoreInUseError after lock_timeout seconds.
        """
        return self._exclusive.hold()

    def start_transaction(self) -> FileMetadataTransaction:
        """Begin a write set. Cancel or commit it."""
        return FileMetadataTransaction(self.root, self._durability)

    def start_deferred(self) -> FileMetadataTransaction:
        """Begin a write set of which nothing is synced but by its sync(). Cancel, or publish and release it."""
        return FileMetadataTransaction(self.root, self._durability, deferred=True)

    @contextlib.contextmanager
    def names_synced(self, kind: str) -> Iterator[None]:
        """Around a rename that makes something visible: behind it, its name is put on the disk.

        kind   "sha256" or "mounts". The directories are opened before the rename, so that behind it nothing can fail
               but the disk itself.
        """
        with contextlib.ExitStack() as opened:
            fds = []
            for path in (os.path.join(self.root, kind), self.root):
                textfile.make_directories(path, 0o755)
                fds.append(_files.open(path, os.O_RDONLY | os.O_DIRECTORY))
                opened.callback(_files.close, fds[-1], path)
            yield
            for fd in fds:
                _files.fsync(fd)

    # -- layers --

    def layer_directory(self, chain_id: str) -> str:
        """Return the directory of a layer, whether or not it is there."""
        chain = ChainID(chain_id)
        return os.path.join(self.root, chain.algorithm, chain.encoded)

    def _layer_file(self, chain_id: str, name: str) -> str:
        return os.path.join(self.layer_directory(chain_id), name)

    def has(self, chain_id: str) -> bool:
        """Return True if the layer's directory is there."""
        return textfile.is_directory(self.layer_directory(chain_id))

    def get_size(self, chain_id: str) -> int:
        """Read the layer's own size in bytes.

        Raises  FileNotFoundError      the layer or the file is not there
                InvalidMetadataError   not a decimal number of 64 bits
        """
        path = self._layer_file(chain_id, "size")
        data = textfile.read_small(path)
        # Not trimmed: moby refuses a newline here, and so hides the layer.
        size = int(data) if len(data) <= 20 and _INTEGER.fullmatch(data) else None
        if size is None or not -(1 << 63) <= size < 1 << 63:
            shown = data[:40].decode("utf-8", "backslashreplace")
            raise InvalidMetadataError(f'parsing size "{shown}": invalid syntax', chain_id=chain_id, path=path)
        return size

    def get_parent(self, chain_id: str) -> ChainID | str:
        """Read the parent's ChainID; "" where there is none."""
        return _parent(self._layer_file(chain_id, "parent"))

    def get_diff_id(self, chain_id: str) -> DiffID:
        """Read the layer's DiffID."""
        return _digest(DiffID, self._layer_file(chain_id, "diff"))

    def get_cache_id(self, chain_id: str) -> str:
        """Read the driver's id of the layer. Raises InvalidMetadataError when it is blank."""
        path = self._layer_file(chain_id, "cache-id")
        cache_id = textfile.read_text(path)
        if not cache_id:
            raise InvalidMetadataError("invalid cache id value", path=path)
        return cache_id

    def get_descriptor(self, chain_id: str) -> Descriptor:
        """Read the blob's descriptor; Descriptor() where there is none."""
        try:
            return decode_descriptor(textfile.read_small(self._layer_file(chain_id, "descriptor.json")))
        except FileNotFoundError:
            return Descriptor()

    def get_os(self, chain_id: str) -> OS:
        """Answer "linux": on Linux no file says so."""
        return "linux"

    def open_sidecar(self, chain_id: str, name: str) -> int:
        """Open a file that the driver put beside the layer's, for reading. The caller closes the descriptor."""
        return _files.open(self._layer_file(chain_id, name), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)

    def layer_in(self, cache_id: str) -> tuple[ChainID, Callable[[str], int]] | None:
        """Find the layer of a driver's id: its ChainID, and what opens its sidecars; None: no layer has it."""
        for chain_id in self.list()[0]:
            with contextlib.suppress(OSError, LayerStoreError):
                if self.get_cache_id(chain_id) == cache_id:
                    return chain_id, functools.partial(self.open_sidecar, chain_id)
        return None

    def tar_split_reader(self, chain_id: str) -> BinaryIO:
        """Read the layer's tar-split record as JSON lines; several gzip members are one stream.

        Raises  FileNotFoundError   the layer or the record is not there
                gzip.BadGzipFile    it does not begin as gzip (an OSError)
        """
        raw = os.fdopen(self.open_sidecar(chain_id, TAR_SPLIT), "rb")
        try:
            if raw.peek(2)[:2] != b"\x1f\x8b":
                raise gzip.BadGzipFile("gzip: invalid header")
            return cast(BinaryIO, OwningGzip(raw, "rb"))
        except BaseException:
            raw.close()
            raise

    def written(self, chain_id: str) -> float:
        """Return when the layer's record was written, in seconds since 1970; 0.0 if it is gone."""
        return textfile.modified(self._layer_file(chain_id, "diff"))

    # -- mounts --

    def mount_directory(self, mount: str) -> str:
        """Return the directory of a writable layer's record, whether or not it is there."""
        return os.path.join(self.root, "mounts", check_mount_name(mount))

    def _mount_file(self, mount: str, name: str) -> str:
        return os.path.join(self.mount_directory(mount), name)

    def _set_mount(self, mount: str, name: str, value: str) -> None:
        path = self._mount_file(mount, name)
        directory = os.path.dirname(path)
        textfile.make_directories(os.path.dirname(directory), 0o755)
        textfile.make_directories(directory, 0o755)
        full = self._durability == "full"
        textfile.write_small(path, os.fsencode(value), sync=full)
        if full:
            textfile.sync_directory(directory)
            textfile.sync_directory(os.path.dirname(directory))

    def set_mount_id(self, mount: str, mount_id: str) -> None:
        """Write the driver's id of a writable layer. Not checked."""
        self._set_mount(mount, "mount-id", mount_id)

    def set_init_id(self, mount: str, init_id: str) -> None:
        """Write the driver's id of a writable layer's init layer. Not checked."""
        self._set_mount(mount, "init-id", init_id)

    def forget_init_id(self, mount: str) -> None:
        """Note that a writable layer has no init layer."""
        with contextlib.suppress(FileNotFoundError):
            _files.unlink(self._mount_file(mount, "init-id"))

    def set_mount_parent(self, mount: str, parent: str) -> None:
        """Write the ChainID a writable layer stands on. Not checked."""
        self._set_mount(mount, "parent", parent)

    def get_mount_id(self, mount: str) -> str:
        """Read the driver's id of a writable layer. Raises InvalidMetadataError when it is none."""
        return self._mount_driver_id(mount, "mount")

    def get_init_id(self, mount: str) -> str:
        """Read the driver's id of the init layer; "" where there is none."""
        try:
            return self._mount_driver_id(mount, "init")
        except FileNotFoundError:
            return ""

    def _mount_driver_id(self, mount: str, kind: str) -> str:
        path = self._mount_file(mount, f"{kind}-id")
        id = textfile.read_text(path)
        if not is_driver_id(id):
            raise InvalidMetadataError(f"invalid {kind} id value", name=mount, path=path)
        return id

    def get_mount_parent(self, mount: str) -> ChainID | str:
        """Read the ChainID a writable layer stands on; "" where there is none."""
        return _parent(self._mount_file(mount, "parent"))

    def mount_parent_state(self, mount: str) -> tuple[int, ...]:
        """Return what is another one after the file was replaced that get_mount_parent() reads; () if it is gone."""
        try:
            st = os.stat(self._mount_file(mount, "parent"), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns

    def replace_mount_parent(self, mount: str, parent: str) -> None:
        """Write the ChainID that a writable layer stands on, in one step; "": nothing."""
        path = self._mount_file(mount, "parent")
        if parent:
            textfile.replace_small(path, os.fsencode(parent), 0o644, sync=self.is_durable)
            return
        with contextlib.suppress(FileNotFoundError):
            _files.unlink(path)

    def has_mount(self, mount: str) -> bool:
        """Return True if the directory of a writable layer is there."""
        return textfile.is_directory(self.mount_directory(mount))

    def mount_written(self, mount: str) -> float:
        """Return when the record of a writable layer was written, in seconds since 1970; 0.0 if it is gone."""
        return textfile.modified(self._mount_file(mount, "mount-id"))

    # -- lists and removal --

    def names(self, directory: str) -> _Names:
        """Name the directories in one of the layerdb's, sorted; [] if it is not there. Raises OSError."""
        try:
            with os.scandir(os.path.join(self.root, directory)) as entries:
                found = (entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
                return sorted(found, key=os.fsencode)
        except FileNotFoundError:
            return []

    def list(self) -> tuple[list[ChainID], list[str]]:
        """Name all layers and all mounts, sorted. What they hold is not looked at.

        Raises  OSError   a directory of the layerdb cannot be read
        """
        chains = []
        for name in self.names("sha256"):
            try:
                chains.append(ChainID(f"sha256:{name}"))
            except InvalidDigestError:
                log.debug("Ignoring invalid digest sha256:%s", readable(name), extra={"directory": name})
        return chains, self.list_mounts()

    def list_mounts(self) -> _Names:
        """Name all mounts, sorted. Raises OSError."""
        return self.names("mounts")

    def set_aside(self, chain_id: str) -> str | None:
        """Rename a layer's directory to <hex>-<random>-removing, the first step of deleting it.

        Returns  the new path, or None: the directory is gone
        Raises   OSError
        """
        directory = self.layer_directory(chain_id)
        return _renamed(directory, lambda: f"{directory}-{_files.random(32).hex()}{REMOVING}")

    def rewrite(
        self, chain_id: str, diff_id: str, size: int, cache_id: str, parent: str, descriptor: Descriptor
    ) -> None:
        """Write a layer's small files anew, each in one step."""
        texts = {
            "diff": os.fsencode(diff_id), "size": b"%d" % size, "cache-id": os.fsencode(cache_id),
            "parent": os.fsencode(parent),
            "descriptor.json": encode_descriptor(descriptor) if descriptor.digest else b"",
        }  # fmt: skip
        for name, data in texts.items():
            path = self._layer_file(chain_id, name)
            if data:
                textfile.replace_small(path, data, 0o644)
            else:
                with contextlib.suppress(FileNotFoundError):
                    _files.unlink(path)
        textfile.sync_directory(self.layer_directory(chain_id))

    def take_sidecars(self, chain_id: str, transaction: FileMetadataTransaction) -> None:
        """Put the files of a write set, which holds sidecars alone, in the place of a layer's."""
        for name in sorted(os.listdir(str(transaction))):
            path = os.path.join(str(transaction), name)
            textfile.sync_file(path)
            _files.rename(path, self._layer_file(chain_id, name))
        textfile.sync_directory(self.layer_directory(chain_id))

    def remove_aside(self, aside: str | None) -> None:
        """Remove what was set aside, if anything was. Never raises OSError: what cannot be removed is cleanup()'s."""
        if aside is None:
            return
        try:
            textfile.remove_directory(aside)
        except OSError as err:
            about = {"directory": aside, "error": err}
            log.warning("Cannot remove %s; cleanup() will: %s", readable(aside), err, extra=about)

    def put_back(self, chain_id: str, aside: str) -> None:
        """Undo set_aside()."""
        _files.rename(aside, self.layer_directory(chain_id))

    def remove(self, chain_id: str) -> None:
        """Remove a layer's metadata at once; fine if it is gone (the interface of 2018)."""
        textfile.remove_directory(self.set_aside(chain_id) or self.layer_directory(chain_id))

    def set_mount_aside(self, mount: str) -> str | None:
        """Rename a mount's directory below tmp/, where cleanup() removes what no process works on.

        Returns  the new path, or None: it is gone
        """
        return self.set_directory_aside(self.mount_directory(mount))

    def set_directory_aside(self, directory: str) -> str | None:
        """Do what set_mount_aside() does, for any directory of the layerdb."""
        tmp = os.path.join(self.root, "tmp")
        textfile.make_directories(tmp, 0o755)
        return _renamed(directory, lambda: os.path.join(tmp, f"write-set-{textfile.random_number()}"))

    def put_mount_back(self, mount: str, aside: str) -> None:
        """Undo set_mount_aside()."""
        _files.rename(aside, self.mount_directory(mount))

    def remove_mount(self, mount: str) -> None:
        """Remove a writable layer's metadata; fine if it is gone."""
        textfile.remove_directory(self.mount_directory(mount))


def _renamed(directory: str, draw: Callable[[], str]) -> str | None:
    """Rename a directory to an unused name and return the name; None: the directory is gone."""
    while True:
        name = draw()
        try:
            _files.rename(directory, name)
            return name
        except FileNotFoundError:
            return None
        except OSError as err:
            if err.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise


def _digest(kind: Callable[[str], _D], path: str) -> _D:
    try:
        return kind(textfile.read_text(path))
    except InvalidDigestError as err:
        raise err.about(path=path) from None


def _parent(path: str) -> ChainID | str:
    try:
        return _digest(ChainID, path)
    except FileNotFoundError:
        return ""
