"""Transactions of the layerdb: a write set below tmp/ that one rename makes a layer, or a writable layer.

A running transaction holds an advisory lock on its directory, so that an abandoned one can be told.
Modes do not depend on the umask.
Source: moby, layer/filestore.go
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
from typing import BinaryIO, Protocol, cast

from layerstore._core import _files
from layerstore.disk import textfile
from layerstore.disk.locks import Claim, claim_directory, surely
from layerstore.ids import OS, ChainID
from layerstore.layerdb.descriptor import encode_descriptor
from layerstore.values import Descriptor, Durability

TAR_SPLIT = "tar-split.json.gz"


class MetadataTransaction(Protocol):
    """A layer's metadata on its way in: all of it becomes visible at commit(), or nothing."""

    def set_size(self, size: int) -> None:
        """Note the layer's own size in bytes."""

    def set_parent(self, parent: str) -> None:
        """Note the parent's ChainID."""

    def set_diff_id(self, diff_id: str) -> None:
        """Note the DiffID."""

    def set_cache_id(self, cache_id: str) -> None:
        """Note the driver's id of the layer."""

    def set_descriptor(self, descriptor: Descriptor) -> None:
        """Note the blob's descriptor."""

    def set_os(self, os: OS) -> None:
        """Note the operating system; on Linux nothing is written."""

    def tar_split_writer(self, compress_input: bool) -> BinaryIO:
        """Return a writer of the tar-split record; compress_input: JSON lines come in, gzip is stored."""

    def commit(self, chain_id: str) -> None:
        """Make all of it visible as the layer chain_id."""

    def cancel(self) -> None:
        """Forget all of it."""


class OwningGzip(gzip.GzipFile):
    """A GzipFile that closes the file below it, too. Its header has no name and no time, as Go's."""

    def __init__(self, under: BinaryIO, mode: str) -> None:
        super().__init__(filename="", mode=mode, compresslevel=6, fileobj=under, mtime=0)
        self._under = under

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._under.close()


class _SyncedFile(io.FileIO):
    """A file that is on the disk once it is closed."""

    def close(self) -> None:
        try:
            if not self.closed:
                _files.fsync(self.fileno())
        finally:
            super().close()


class FileMetadataTransaction:
    """A write set: files in a directory of their own below tmp/ until commit() renames it.

    str() of it is that directory. Cancel it, or commit it; after either it is spent.
    Source   moby, layer/filestore.go
    """

    def __init__(self, root: str, durability: Durability, *, deferred: bool = False) -> None:
        """Make the directory. Raises OSError (NotADirectoryError where tmp is a file).

        deferred   nothing is synced as it is written: the caller does it, by sync() or otherwise, before publish()
        """
        self._root = root
        self.published = False               # or perhaps: the rename was begun
        self.kept = False                    # it is published, and stays so
        self._durability = durability
        self._sync_files = durability != "none" and not deferred
        tmp = os.path.join(root, "tmp")
        self._directory = ""
        self._claim: Claim | None = None
        try:
            while self._claim is None:
                textfile.make_directories(tmp, 0o755)
                directory = os.path.join(tmp, f"write-set-{textfile.random_number()}")
                # The name is taken, or a cleanup() took the new directory for an abandoned one. Another, then.
                with contextlib.suppress(FileExistsError, FileNotFoundError):
                    _files.mkdir(directory, 0o700)
                    self._directory = directory
                    _files.chmod(directory, 0o700)
                    self._claim = claim_directory(directory)
        except BaseException:
            with contextlib.suppress(OSError):
                surely(self.cancel)
            raise

    def __str__(self) -> str:
        return self._directory

    def _write(self, name: str, data: bytes) -> None:
        path = os.path.join(self._directory, name)
        textfile.write_small(path, data, sync=self._sync_files)

    def set_size(self, size: int) -> None:
        """Write the layer's own size in bytes."""
        self._write("size", b"%d" % size)

    def set_parent(self, parent: str) -> None:
        """Write the parent's ChainID. Not checked."""
        self._write("parent", os.fsencode(parent))

    def set_diff_id(self, diff_id: str) -> None:
        """Write the DiffID. Not checked."""
        self._write("diff", os.fsencode(diff_id))

    def set_cache_id(self, cache_id: str) -> None:
        """Write the driver's id. Not checked."""
        self._write("cache-id", os.fsencode(cache_id))

    def set_descriptor(self, descriptor: Descriptor) -> None:
        """Write descriptor.json, even of an empty descriptor."""
        self._write("descriptor.json", encode_descriptor(descriptor))

    def set_os(self, os: OS) -> None:
        """Do nothing: on Linux no file says so."""

    def open_sidecar(self, name: str) -> int:
        """Open a file of the driver's empty, for reading and writing. The caller closes the descriptor."""
        path = os.path.join(self._directory, name)
        fd = _files.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        try:
            _files.fchmod(fd, 0o644)
        except BaseException:
            _files.close(fd, path)
            raise
        return fd

    def tar_split_writer(self, compress_input: bool) -> BinaryIO:
        """Open tar-split.json.gz for writing; close it before commit().

        compress_input   True: JSON lines come in; False: they come as gzip already
        """
        fd = self.open_sidecar(TAR_SPLIT)
        writer = cast(BinaryIO, io.BufferedWriter((_SyncedFile if self._sync_files else io.FileIO)(fd, "wb")))
        return cast(BinaryIO, OwningGzip(writer, "wb")) if compress_input else writer

    def set_mount(self, mount_id: str, init_id: str, parent: str) -> None:
        """Write what a writable layer's directory holds, in place of a layer's."""
        for name, value in (("mount-id", mount_id), ("init-id", init_id), ("parent", parent)):
            if value:
                self._write(name, os.fsencode(value))
        _files.chmod(self._directory, 0o755)

    def write_text(self, name: str, value: str, *, sync: bool = False) -> None:
        """Write one small file of a record that is neither a layer's nor a writable layer's."""
        textfile.write_small(os.path.join(self._directory, name), os.fsencode(value), sync=sync)

    def sync(self) -> None:
        """Put what was written on the disk."""
        with os.scandir(self._directory) as entries:
            for path in [entry.path for entry in entries]:
                textfile.sync_file(path)
        textfile.sync_directory(self._directory)

    def publish(self, chain_id: str) -> None:
        """Make the layer visible: the one rename, and no waiting for a disk. Raises as commit() does."""
        chain = ChainID(chain_id)
        self._publish(os.path.join(self._root, chain.algorithm), chain.encoded)

    def publish_mount(self, name: str) -> None:
        """Make a writable layer visible. Raises OSError (ENOTEMPTY: it is there already)."""
        self._publish(os.path.join(self._root, "mounts"), check_mount_name(name))

    def publish_as(self, directory: str, name: str) -> None:
        """Make a record visible in an existing directory of the layerdb. Raises OSError."""
        self.published = True
        _files.rename(self._directory, os.path.join(directory, name))

    def _publish(self, parent: str, name: str) -> None:
        textfile.make_directories(parent, 0o755)
        self.published = True
        _files.rename(self._directory, os.path.join(parent, name))

    def commit(self, chain_id: str) -> None:
        """Make the layer visible by one rename.

        Raises  InvalidDigestError   chain_id is none
                OSError              with filename; ENOTEMPTY or EEXIST: the layer is there already
        """
        full = self._durability == "full"
        if full:
            textfile.sync_directory(self._directory)
        self.publish(chain_id)
        if full:
            textfile.sync_directory(os.path.join(self._root, ChainID(chain_id).algorithm))
            textfile.sync_directory(self._root)
        self.release()

    def release(self) -> None:
        """Be done, after publish(): cleanup() no longer leaves the directory alone. Twice is harmless."""
        if self._claim:
            self._claim.release()

    def cancel(self) -> None:
        """Remove what was written; fine if nothing is there."""
        if self._directory:
            try:
                textfile.remove_directory(self._directory)
            except OSError:
                self.release()
                raise
        self.release()

    def is_ours(self) -> bool:
        """Return True if it is in the making, and by this process: a forked child has none of its parent's."""
        return self._claim is not None and self._claim.is_held()


def check_mount_name(name: str) -> str:
    """Return the name if a directory can have it.

    Raises  TypeError    not a str
            ValueError   empty, ".", "..", or with "/" or NUL in it, or longer than a name may be
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a mount is a str, not {type(name).__name__}")
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"invalid mount name {name!r}")
    if len(os.fsencode(name)) > 255:
        raise ValueError(f"mount name of {len(os.fsencode(name))} bytes is too long")
    return name
