"""Snapshots on disk: layerdb/snapshots/<id>/, beside the writable layers, where Docker does not look.

    box      the name of the writable layer that it was taken of
    created  2026-11-28T04:54:32.123456789Z
    parent   the ChainID of the nearest layer below; absent: none
    layer    once committed: the ChainID
    lower    once committed: what the driver's directory stood on before, as the driver's text
    unled    only for a while: what stands on it may not name the layer yet

What a snapshot stands on is the driver's to say (`lower` in its directory). A box that is being rolled back has a file
mounts/<name>/rollback until that is done. The time of the directory snapshots/ is set by each change of what stands on
what, under the lock of the layerdb: so a store sees that nothing changed since it last looked.
Source: sandbox.md 4
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import time
from typing import NamedTuple

from layerstore._core import _files
from layerstore.disk import textfile
from layerstore.errors import InvalidMetadataError, LayerStoreError
from layerstore.ids import ChainID, is_driver_id
from layerstore.layerdb.store import FileMetadataStore
from layerstore.layerdb.transaction import FileMetadataTransaction

_KIND = "snapshots"
_CREATED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Saved(NamedTuple):
    """What a record says."""

    box: str
    created: int
    """In nanoseconds since 1970."""
    parent: str


class Rollback(NamedTuple):
    """A rollback that has begun and will be finished: by its call, or by the next look at the box."""

    fresh: str
    """The driver's id whose empty directories become the box's."""
    upper: int
    """The inode of what the box held."""
    lower: str
    """What it stands on from then on, as the driver's text."""
    parent: str


def time_text(nanoseconds: int) -> str:
    """Return a time as a record has it."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{(_EPOCH + datetime.timedelta(seconds=seconds)):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def parse_time(text: str) -> int:
    """Return the nanoseconds since 1970 that a text means. Raises ValueError."""
    found = _CREATED.fullmatch(text)
    if found is None:
        raise ValueError(f"no time: {text!r}")
    seconds = datetime.datetime.fromisoformat(f"{found[1]}+00:00") - _EPOCH
    return int(seconds.total_seconds()) * 10**9 + int((found[2] or "0").ljust(9, "0"))


class SnapshotDB:
    """The records of one layerdb. Nothing is kept in memory."""

    def __init__(self, metadata: FileMetadataStore) -> None:
        self._metadata = metadata
        self.root = os.path.join(metadata.root, _KIND)

    # ---- finding ----

    def directory(self, id: str) -> str:
        """Return the directory of a record, whether or not it is there."""
        return os.path.join(self.root, id)

    def _file(self, id: str, name: str) -> str:
        return os.path.join(self.root, id, name)

    def has(self, id: str) -> bool:
        """Return True if a snapshot of this id has a record."""
        return is_driver_id(id) and textfile.is_directory(self.directory(id))

    def names(self) -> list[str]:
        """List the ids that have a record. Raises OSError."""
        return [name for name in self._metadata.names(_KIND) if is_driver_id(name)]

    def any(self) -> bool:
        """Return True if there was a snapshot in this layerdb, ever."""
        return textfile.is_directory(self.root)

    def read(self, id: str) -> Saved:
        """Return a record. Raises FileNotFoundError, InvalidMetadataError, OSError."""
        path = self._file(id, "created")
        try:
            created = parse_time(textfile.read_text(path))
        except ValueError as err:
            raise InvalidMetadataError(f"the snapshot {id} does not say when it was taken: {err}", path=path) from None
        return Saved(textfile.read_text(self._file(id, "box")), created, self.parent(id))

    def parent(self, id: str) -> str:
        """Return the ChainID of the nearest layer that was below when it was last written; "" for none."""
        return self._chain(self._file(id, "parent"))

    def layer(self, id: str) -> str:
        """Return the ChainID of the layer that it was committed as; "": it was not, or has no record."""
        return self._chain(self._file(id, "layer"))

    def lower(self, id: str) -> str | None:
        """Return the text of what it stood on when it was committed; None: it was not."""
        try:
            return os.fsdecode(textfile.read_small(self._file(id, "lower"), 1 << 16))
        except (FileNotFoundError, NotADirectoryError):
            return None

    @staticmethod
    def _chain(path: str) -> str:
        try:
            return ChainID(textfile.read_text(path))
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except LayerStoreError as err:
            raise InvalidMetadataError(f"no ChainID: {err}", path=path) from err

    # ---- writing ----

    def make(self) -> None:
        """Make the directory of the records. Raises OSError."""
        textfile.make_directories(self.root, 0o700)

    def start(self, box: str, parent: str, deferred: FileMetadataTransaction) -> None:
        """Write a record into a write set; created comes at publish()."""
        for name, value in (("box", box), ("parent", parent), ("created", time_text(self._next_time()))):
            if value:
                deferred.write_text(name, value)

    def _next_time(self) -> int:
        """Return now; or, if a change was noted then or later, the next nanosecond."""
        now = time.time_ns()
        with contextlib.suppress(FileNotFoundError):
            now = max(now, os.stat(self.root).st_mtime_ns + 1)
        return now

    def publish(self, id: str, transaction: FileMetadataTransaction, *, sync: bool) -> int:
        """Make a snapshot of a write set: one rename, under the layerdb's lock. Return `created`. Raises OSError."""
        self.make()
        created = parse_time(textfile.read_text(os.path.join(str(transaction), "created")))
        if created <= os.stat(self.root).st_mtime_ns:     # another one was quicker
            created = self._next_time()
            transaction.write_text("created", time_text(created), sync=sync)
        transaction.publish_as(self.root, id)
        self.note(created)
        return created

    def note(self, when: int = 0) -> None:
        """Note that what stands on what has changed, under the layerdb's lock. Does nothing without any snapshots.

        when   the new time of the directory; 0: now
        """
        with contextlib.suppress(FileNotFoundError):
            when = max(when, self._next_time())
            with textfile.naming(self.root):
                os.utime(self.root, ns=(when, when))

    def state(self) -> tuple[int, int]:
        """Return what is another one after each change of a snapshot or writable layer, under the layerdb's lock."""
        found = []
        for name in (_KIND, "mounts"):
            try:
                found.append(os.stat(os.path.join(self._metadata.root, name)).st_mtime_ns)
            except FileNotFoundError:
                found.append(0)
        return found[0], found[1]

    def layers_state(self) -> int:
        """Return what is another one after each layer that came or went, under the layerdb's lock."""
        try:
            return os.stat(os.path.join(self._metadata.root, "sha256")).st_mtime_ns
        except FileNotFoundError:
            return 0

    def note_layer(self) -> None:
        """Note that a snapshot's directory is a layer's now, under the layerdb's lock."""
        path = os.path.join(self._metadata.root, "sha256")
        when = max(time.time_ns(), os.stat(path).st_mtime_ns + 1)
        with textfile.naming(path):
            os.utime(path, ns=(when, when))

    def set_aside(self, id: str) -> str | None:
        """Make a snapshot invisible, by one rename, and return where its record is now; None: it is gone."""
        return self._metadata.set_directory_aside(self.directory(id))

    def put_back(self, id: str, aside: str) -> None:
        """Undo set_aside()."""
        _files.rename(aside, self.directory(id))

    def set_committed(self, id: str, lower: str, chain_id: str, *, sync: bool) -> None:
        """Note what a snapshot stands on, and the layer that it is about to become. Raises OSError."""
        textfile.write_small(self._file(id, "unled"), b"", sync=False)
        textfile.replace_small(self._file(id, "lower"), os.fsencode(lower), 0o644, sync=sync)
        textfile.replace_small(self._file(id, "layer"), os.fsencode(chain_id), 0o644, sync=sync)
        if sync:
            textfile.sync_directory(self.directory(id))

    def is_committed(self, id: str, lower: str, chain_id: str) -> bool:
        """Return True if set_committed() noted this, and it was not taken back since."""
        return self.is_unled(id) and (self.lower(id), self.layer(id)) == (lower, chain_id)

    def forget_committed(self, id: str) -> None:
        """Undo set_committed(). Raises OSError."""
        for name in ("layer", "lower", "unled"):
            with contextlib.suppress(FileNotFoundError):
                _files.unlink(self._file(id, name))

    def is_unled(self, id: str) -> bool:
        """Return True if what follows from a commit may not be done yet."""
        return os.path.lexists(self._file(id, "unled"))

    def note_led(self, id: str) -> None:
        """Note that what follows from a commit is done. Raises OSError."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            _files.unlink(self._file(id, "unled"))

    def set_parent(self, id: str, parent: str) -> None:
        """Note the nearest layer. Raises OSError."""
        path = self._file(id, "parent")           # where there was a good one: it must not be empty after a power cut
        textfile.replace_small(path, os.fsencode(parent), 0o644, sync=self._metadata.is_durable)

    # ---- boxes that are being rolled back ----

    def _rollback(self, box: str) -> str:
        return os.path.join(self._metadata.mount_directory(box), "rollback")

    def set_rollback(self, box: str, to: Rollback, *, sync: bool) -> None:
        """Note a rollback: from here on it is going to happen. Raises OSError."""
        data = "\n".join((to.fresh, str(to.upper), to.lower, to.parent))
        path = self._rollback(box)
        textfile.replace_small(path, os.fsencode(data), 0o644, sync=sync)
        if sync:
            textfile.sync_directory(os.path.dirname(path))

    def rollback(self, box: str) -> Rollback | None:
        """Return the rollback of a box that has begun; None: none has. Raises InvalidMetadataError, OSError."""
        path = self._rollback(box)
        try:
            data = os.fsdecode(textfile.read_small(path, 1 << 16))
        except (FileNotFoundError, NotADirectoryError):
            return None
        fields = data.split("\n")
        if len(fields) != 4 or not is_driver_id(fields[0]) or not fields[1].isdecimal():
            raise InvalidMetadataError(f"the rollback of {box} cannot be read; remove the file", name=box, path=path)
        return Rollback(fields[0], int(fields[1]), fields[2], fields[3])

    def forget_rollback(self, box: str) -> None:
        """Note that a rollback is done. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            _files.unlink(self._rollback(box))
