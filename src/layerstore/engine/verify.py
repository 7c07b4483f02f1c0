"""Verifier: what is stored, compared with what was registered.

Enters: records, and the layerdb and driver they came from. Leaves: a list of Problems. Layers are looked at side by
side, one thread each, as the core works without the GIL; the calling thread waits and tells the progress. Nothing is
written, so that it works on the data root of a running dockerd.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from layerstore.drivers import Finding
from layerstore.engine.ground import Ground
from layerstore.engine.record import Mount, Record
from layerstore.engine.stacks import Stacks
from layerstore.errors import LayerStoreError, readable
from layerstore.ids import chain_on
from layerstore.layerdb.imagedb import ImageDB, chains_of, diff_ids_of, parse_document
from layerstore.layerdb.leftovers import Leftovers
from layerstore.streams.progress import EVERY, Teller
from layerstore.values import Problem, Progress


class _StoppedError(Exception):
    """The caller has stopped reading."""


class Verifier:
    """Compares what one store has on disk with its records."""

    def __init__(self, ground: Ground, *, attributes: bool = True) -> None:
        """Look at this ground. attributes: compare more of a layer's files than presence and bytes."""
        self._ground, self._metadata, self._attributes = ground, ground.metadata, attributes
        self._seen: set[str] = set()      # directories of snapshots
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._done = self._total = 0
        self._caller, self._teller = threading.get_ident(), Teller(None, None)

    def layers(
        self, records: Sequence[Record], progress: Progress | None = None, workers: int | None = None
    ) -> list[Problem]:
        """Compare layers with what was registered, in the order given.

        progress   called with the bytes read of all these layers' files (Done: .total), from the calling thread
        workers    threads; None: one for each processor
        """
        self._total = sum(max(record.diff_size, 0) for record in records)
        self._teller = Teller(progress, self._total)
        threads = min(workers or len(os.sched_getaffinity(0)), len(records))
        found = self._side_by_side(records, threads) if threads > 1 else [p for r in records for p in self.layer(r)]
        self._teller.tell(self._total, end=True)
        return found

    def _side_by_side(self, records: Sequence[Record], threads: int) -> list[Problem]:
        pool = concurrent.futures.ThreadPoolExecutor(threads, "layerstore-verify")
        try:
            todo = [pool.submit(self.layer, record) for record in records]
            left: set[concurrent.futures.Future[list[Problem]]] = set(todo)
            while left:
                _, left = concurrent.futures.wait(left, timeout=EVERY)
                self._tell(self._caller)
            return [problem for job in todo for problem in job.result()]
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)

    def _tell(self, thread: int) -> None:
        """From the calling thread alone."""
        if thread == self._caller:
            # What files hold, and what is counted as a layer's size, differ by the targets of links.
            self._teller.tell(min(self._done, self._total))

    def _report(self, bytes_more: int) -> None:
        with self._lock:
            self._done += bytes_more
        if self._stopped.is_set():
            raise _StoppedError
        self._tell(threading.get_ident())

    def layer(self, record: Record) -> list[Problem]:
        """Compare one layer: metadata, arithmetic, links and lowers, every file's CRC, the whole DiffID."""
        subject = str(record.chain_id)
        parent = record.parent.chain_id if record.parent else ""
        m = self._metadata
        found = self._files(subject, [
            ("diff id", m.get_diff_id, record.diff_id), ("size", m.get_size, record.diff_size),
            ("cache id", m.get_cache_id, record.cache_id), ("parent", m.get_parent, parent),
            ("descriptor", m.get_descriptor, record.descriptor),
        ])  # fmt: skip
        if chain_on(parent, record.diff_id) != record.chain_id:
            found.append(Problem("metadata", subject, "", "the ChainID does not follow from the parent and the DiffID"))
        told = self._check(record)
        return found + [Problem(kind, subject, path, text) for kind, path, text in told]

    def _check(self, record: Record) -> list[Finding]:
        ground = self._ground

        def check(below: Sequence[str]) -> list[Finding]:
            return ground.stored(record, below).check(record.diff_id, self._report, metadata=self._attributes)

        below, before = record.directories[1:], self._before_commit(record)
        told = check(below if before is None else before)
        if told and self._before_commit(record) != before:
            told = check(below)           # its commit was finished meanwhile
        return told

    def _before_commit(self, record: Record) -> list[str] | None:
        """Return what a snapshot stands on whose commit as this layer was not finished; None: it was, or is none."""
        db, w = self._ground.snapshots_db, self._ground.driver.writables
        with contextlib.suppress(OSError, LayerStoreError):
            lower = db.lower(record.cache_id) if db.layer(record.cache_id) == record.chain_id else None
            if lower is not None and w.lower_text(record.cache_id) == lower:
                return w.named_in(lower)
        return None

    def mount(self, mount: Mount, stacks_of: Callable[[Mount], list[tuple[str, list[str]]]]) -> list[Problem]:
        """Compare the record and the driver's files of a writable layer; what is in it is its user's."""
        parent = mount.parent.chain_id if mount.parent else ""
        m = self._metadata
        found = self._files(mount.name, [
            ("mount id", m.get_mount_id, mount.mount_id), ("init id", m.get_init_id, mount.init_id),
            ("parent", m.get_mount_parent, parent),
        ])  # fmt: skip
        try:
            directories = stacks_of(mount)
        except LayerStoreError as err:
            return [*found, Problem("metadata", mount.name, "", str(err))]
        for id, below in directories:
            told = self._ground.driver.writables.check(id, below)
            found += [Problem(kind, mount.name, path, text) for kind, path, text in told]
        return found

    def snapshot(self, id: str, stacks: Stacks) -> list[Problem]:
        """Compare the record and the driver's files of a snapshot, and of the directories that it stands on."""
        w, found = self._ground.driver.writables, []
        try:
            stacks.snapshots.read(id)
            place = stacks.of_snapshot(id)
        except (OSError, LayerStoreError) as err:
            kind = "missing" if isinstance(err, FileNotFoundError) else "metadata"
            return [Problem(kind, id, "", f"the snapshot's record or directory cannot be read: {err}")]
        if stacks.snapshots.layer(id):
            return []                     # looked at as a layer
        for each in [id, *place.loosenable]:
            if each in self._seen:
                continue
            self._seen.add(each)
            try:
                told = w.check(each, w.stack_of(each))
            except (OSError, LayerStoreError) as err:
                told = [Finding("metadata", "", str(err))]
            found += [Problem(kind, id, path, text) for kind, path, text in told]
        return found

    def images(self, db: ImageDB) -> list[Problem]:
        """Compare the images with their ids, with the layers they need, and with their names."""
        found: list[Problem] = []
        names: dict[str, list[str]] = {}
        try:
            for tags in db.repositories().values():
                for name, id in tags.items():
                    names.setdefault(id, []).append(name)
        except (OSError, LayerStoreError) as err:
            found.append(Problem("metadata", "repositories.json", "", f"the names of the images cannot be read: {err}"))
        ids = db.ids()
        for id in ids:
            called = "".join(f" {readable(name)}" for name in names.get(id, []))
            found += [Problem(kind, id, "", f"the image{called}: {text}") for kind, text in self._image(db, id)]
        for id, of_it in names.items():
            if id not in ids:
                found += [Problem("missing", id, "", f"the image {readable(name)} is gone") for name in of_it]
        return found

    def _image(self, db: ImageDB, id: str) -> list[tuple[str, str]]:
        try:
            config = parse_document(db.content(id), f"the config of {id}")
            chains = chains_of(diff_ids_of(config))
        except FileNotFoundError:
            return []                     # deleted meanwhile
        except (OSError, LayerStoreError) as err:
            return [("metadata", f"its config cannot be used: {err}")]
        found = [("missing", f"its layer {chain} is gone") for chain in chains if not self._metadata.has(chain)]
        for name in ("parent", "lastUpdated"):
            try:
                db.noted(id, name)
            except (OSError, LayerStoreError) as err:
                found.append(("metadata", f"what is noted of it as {name} cannot be read: {err}"))
        return found

    def orphans(self, owned: Callable[[], Iterable[str]]) -> list[Problem]:
        """Name unowned files in the driver's directories and in the layerdb."""
        found: list[Problem] = []
        with contextlib.suppress(OSError, LayerStoreError):  # whose file cannot be read is told elsewhere
            found += [Problem("orphan", name, "", "it is unowned") for name in self._ground.driver.host.orphans(owned)]
        left = Leftovers(self._metadata)
        names = map(os.path.basename, left.removals())
        found += [Problem("orphan", name, "", "a deletion was interrupted") for name in names]
        for path in left.transactions(remove=False):
            name = os.path.relpath(path, self._metadata.root)
            found.append(Problem("orphan", name, "", "a registration was interrupted"))
        return found

    def _files(self, subject: str, expected: Iterable[tuple[str, Callable[[str], Any], Any]]) -> list[Problem]:
        """Return True if the small files on disk are still what was loaded from them."""
        found = []
        for what, read, value in expected:
            try:
                now = read(subject)
            except FileNotFoundError as err:
                found.append(Problem("missing", subject, "", f"the {what} is gone: {err}"))
            except (OSError, LayerStoreError) as err:
                found.append(Problem("metadata", subject, "", f"the {what} cannot be read: {err}"))
            else:
                if now != value:
                    found.append(Problem("metadata", subject, "", f"the {what} on disk is {now!r}, not {value!r}"))
        return found
