"""Sandboxes: snapshot, rollback, fork, unmount, clone, commit, changes(since), a tree of forks.

    python -m benchmarks.bench_sandbox [--runs N] [--only WORD ...] [--save]

Each row runs on a tmpfs, or on an ext4 or xfs made for that row in an image on a tmpfs; durability "none". Out: a table
of medians in milliseconds; --save writes it into README.md beside this file. Needs root. check_ratios.py takes its
ratios from here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import disk
import tarkit

from benchmarks import ROOT, baselines, measure
from layerstore import RWLayer, Snapshot, Store

RUNS = 20
README = ROOT / "benchmarks" / "README.md"
BEGIN, END = "<!-- sandboxes: begin -->", "<!-- sandboxes: end -->"
SIZE = 3 << 30
MEGABYTE = os.urandom(1 << 20)
FILES_IN_DIRECTORY = 100
FORKS = 1000


# ---- what is written ------------------------------------------------------------------------------
def large(root: Path, megabytes: int) -> None:
    """Write files of 1 MiB."""
    for number in range(megabytes):
        (root / f"large-{number}").write_bytes(MEGABYTE)


def many(root: Path, count: int, size: int = 4096) -> None:
    """Write files of one size into directories of 100."""
    for number in range(count):
        directory = root / f"many-{number // FILES_IN_DIRECTORY}"
        if number % FILES_IN_DIRECTORY == 0:
            directory.mkdir()
        (directory / str(number)).write_bytes(MEGABYTE[:size])


def one_mb(root: Path) -> None:
    large(root, 1)


def ten_mb(root: Path) -> None:
    large(root, 10)


def hundred_mb(root: Path) -> None:
    large(root, 100)


def ten_thousand(root: Path) -> None:
    many(root, 10_000)


Write = Callable[[Path], None]
Seconds = Generator[float]


# ---- one round after the other --------------------------------------------------------------------
class Ground:
    """A store with one base layer on a file system of its own."""

    def __init__(self, place: Path) -> None:
        """Make the store."""
        self.place = place
        self.store = Store(place / "root", options={"durability": "none"})
        self.base = self.store.register(tarkit.dir("etc/") + tarkit.file("etc/motd", b"hello\n") + tarkit.end())
        self._made = 0

    def name(self) -> str:
        """Return a new name."""
        self._made += 1
        return f"box-{self._made}"

    def box(self, on: Snapshot | None = None) -> RWLayer:
        """Return a new writable layer."""
        return self.store.create_rw_layer(self.name(), on or self.base)

    @contextlib.contextmanager
    def written(self, write: Write, on: Snapshot | None = None) -> Iterator[RWLayer]:
        """Return a mounted writable layer in which something was written; it is dropped afterwards."""
        box = self.box(on)
        write(Path(box.mount()))
        try:
            yield box
        finally:
            box.unmount()
            box.release()

    def snapshot_of(self, write: Write) -> Snapshot:
        """Return a snapshot of what was written."""
        with self.written(write) as box:
            return box.snapshot()


def bare(ground: Ground) -> Seconds:
    """An overlay by hand: mount(2), umount(2). What any fork pays at least."""
    place = measure.fresh(ground.place / "bare")
    lower = ground.base.metadata()["UpperDir"]
    for name in ("upper", "work", "merged"):
        (place / name).mkdir()
    options = f"lowerdir={lower},upperdir={place}/upper,workdir={place}/work,index=off,volatile"
    while True:
        shutil.rmtree(place / "work" / "work" / "incompat", ignore_errors=True)
        began = time.perf_counter()
        disk.mount("overlay", place / "merged", "overlay", 0, options)
        disk.unmount(place / "merged", 0)
        yield time.perf_counter() - began


def snapshot(write: Write) -> Callable[[Ground], Seconds]:
    """Return a row: snapshot() of a mounted, idle box."""

    def rounds(ground: Ground) -> Seconds:
        while True:
            with ground.written(write) as box:
                began = time.perf_counter()
                taken = box.snapshot()
                yield time.perf_counter() - began
            taken.release()

    return rounds


def rollback(write: Write) -> Callable[[Ground], Seconds]:
    """Return a row: rollback() of a mounted, idle box to its layer."""

    def rounds(ground: Ground) -> Seconds:
        while True:
            with ground.written(write) as box:
                began = time.perf_counter()
                box.rollback(ground.base)
                yield time.perf_counter() - began

    return rounds


def unmount(write: Write) -> Callable[[Ground], Seconds]:
    """Return a row: the last unmount() of a box."""

    def rounds(ground: Ground) -> Seconds:
        while True:
            box = ground.box()
            write(Path(box.mount()))
            began = time.perf_counter()
            box.unmount()
            yield time.perf_counter() - began
            box.release()

    return rounds


def fork(ground: Ground) -> Seconds:
    """Snapshot.fork()."""
    taken = ground.snapshot_of(ten_mb)
    while True:
        name = ground.name()
        began = time.perf_counter()
        box = taken.fork(name)
        yield time.perf_counter() - began
        box.release()


def first_mount(ground: Ground) -> Seconds:
    """mount() of a box that was just forked."""
    taken = ground.snapshot_of(ten_mb)
    while True:
        box = taken.fork(ground.name())
        began = time.perf_counter()
        box.mount()
        yield time.perf_counter() - began
        box.unmount()
        box.release()


def clone(ground: Ground) -> Seconds:
    """snapshot() of a box with a process inside: its 10,000 files are cloned."""
    with ground.written(ten_thousand) as box:
        inside = os.open(box.mount(), os.O_RDONLY | os.O_DIRECTORY)
        try:
            while True:
                began = time.perf_counter()
                taken = box.snapshot()
                yield time.perf_counter() - began
                taken.release()
        finally:
            os.close(inside)
            box.unmount()


def copied(ground: Ground) -> Seconds:
    """cp -a --reflink=always of the same upper directory."""
    with ground.written(ten_thousand) as box:
        upper, to = box.metadata()["UpperDir"], ground.place / "copy"
        while True:
            began = time.perf_counter()
            measure.run("cp", "-a", "--reflink=always", upper, to)
            yield time.perf_counter() - began
            measure.wipe(to)


def hundred_mb_in_1000(root: Path) -> None:
    many(root, 1000, 100_000)


def commit(ground: Ground) -> Seconds:
    """Snapshot.commit() of 100 MB in 1,000 files. Its layer goes at once, so that the next one is new."""
    while True:
        taken = ground.snapshot_of(hundred_mb_in_1000)
        began = time.perf_counter()
        layer = taken.commit()
        yield time.perf_counter() - began
        taken.release()
        layer.release()


def hashed(ground: Ground) -> Seconds:
    """openssl dgst -sha256 of the tar of that snapshot, which lies beside it."""
    taken = ground.snapshot_of(hundred_mb_in_1000)
    tar = ground.place / "snapshot.tar"
    with taken.tar_stream() as stream, open(tar, "wb") as out:
        stream.copy_to(out)
    while True:
        began = time.perf_counter()
        measure.run(*baselines.openssl_sha256(tar))
        yield time.perf_counter() - began


def changes_since(below: Write) -> Callable[[Ground], Seconds]:
    """Return a row: changes(since=) with 100 new files above a snapshot of what was written."""

    def rounds(ground: Ground) -> Seconds:
        taken = ground.snapshot_of(below)
        with ground.written(lambda root: many(root / "etc", 100, 10), taken) as box:
            while True:
                began = time.perf_counter()
                found = box.changes(taken)
                yield time.perf_counter() - began
                assert len(found) == 102, len(found)

    return rounds


def tree(first: bool) -> Callable[[Ground], Seconds]:
    """Return a row: a fork is made, gets 10 files and a snapshot, and is dropped. first=False: beside 1,000 others."""

    def one(ground: Ground, base: Snapshot) -> tuple[Snapshot, float]:
        name = ground.name()
        began = time.perf_counter()
        box = base.fork(name)
        with box.mounted() as root:
            many(Path(root), 10, 100)
            taken = box.snapshot()
        box.release()
        return taken, time.perf_counter() - began

    def rounds(ground: Ground) -> Seconds:
        base = ground.snapshot_of(ten_mb)
        kept = [] if first else [one(ground, base)[0] for _ in range(FORKS)]
        while True:
            taken, seconds = one(ground, base)
            began = time.perf_counter()
            taken.release()
            yield seconds + time.perf_counter() - began
            assert len(kept) == (0 if first else FORKS)

    return rounds


def holders(ground: Ground) -> Seconds:
    """holders() with 500 processes on the machine, one of them inside."""
    with ground.written(one_mb) as box:
        sleeping = [subprocess.Popen(["sleep", "600"]) for _ in range(500)]
        inside = os.open(box.mount(), os.O_RDONLY | os.O_DIRECTORY)
        try:
            while True:
                began = time.perf_counter()
                found = box.holders()
                yield time.perf_counter() - began
                assert len(found) == 1
        finally:
            os.close(inside)
            box.unmount()
            for process in sleeping:
                process.kill()
                process.wait()


def stacked(ground: Ground, box: RWLayer, depth: int) -> list[Snapshot]:
    """Return the snapshots of a box that each hold 100 files."""
    taken = []
    for number in range(depth):
        with box.mounted() as root:
            directory = Path(root, f"step-{number}")
            directory.mkdir()
            many(directory, 100, 100)
        taken.append(box.snapshot())
    return taken


def squash(ground: Ground) -> Seconds:
    """squash() of 48 released snapshots with 100 files each."""
    while True:
        with ground.written(one_mb) as box:
            box.unmount()
            for taken in stacked(ground, box, 48):
                taken.release()
            began = time.perf_counter()
            box.squash()
            yield time.perf_counter() - began
            box.mount()


def deep_mount(ground: Ground) -> Seconds:
    """mount() of a box on 50 snapshots."""
    origin = ground.box()
    top = stacked(ground, origin, 50)[-1]
    while True:
        box = ground.box(top)
        began = time.perf_counter()
        box.mount()
        yield time.perf_counter() - began
        box.unmount()
        box.release()


# ---- the table ------------------------------------------------------------------------------------
class Row(NamedTuple):
    """One line: what it is, where it is measured, and the bar in milliseconds, by file system or for all."""

    name: str
    rounds: Callable[[Ground], Seconds]
    grounds: Sequence[str]
    bar: str = ""


BOTH = ("tmpfs", "ext4")
WRITTEN = {"1 MB": one_mb, "10 MB": ten_mb, "100 MB": hundred_mb, "10,000 files": ten_thousand}
ROWS = [
    Row("a bare overlay, mount and umount", bare, ("tmpfs", "ext4", "xfs")),
    *(Row(f"snapshot(), {words} written", snapshot(write), BOTH, "1.5") for words, write in WRITTEN.items()),
    *(Row(f"rollback(), {words} written", rollback(write), BOTH, "1.5") for words, write in WRITTEN.items()),
    Row("fork()", fork, BOTH, "0.6"),
    Row("the first mount() of a fork", first_mount, BOTH, "0.8"),
    Row("unmount(), 100 MB written", unmount(hundred_mb), ("ext4",), "1"),
    Row("unmount(), 10,000 files written", unmount(ten_thousand), ("ext4",), "45"),
    Row("snapshot() of a busy box, 10,000 files", clone, ("tmpfs", "ext4", "xfs"), "xfs: 0.7 of the next row"),
    Row("cp -a --reflink=always of the same", copied, ("xfs",)),
    Row("commit() of a snapshot, 100 MB in 1,000 files", commit, BOTH, "1.15 of the next row"),
    Row("openssl dgst -sha256 of its tar", hashed, BOTH),
    Row("changes(since), 100 files, 1 MB below", changes_since(one_mb), BOTH),
    Row("changes(since), 100 files, 10,000 files below", changes_since(ten_thousand), BOTH, "the row above"),
    Row("fork, 10 files, snapshot, drop", tree(first=True), BOTH, "4"),
    Row("the same beside 1,000 others", tree(first=False), BOTH, "4"),
    Row("holders(), 500 processes", holders, ("tmpfs",), "20"),
    Row("squash() of 48 snapshots of 100 files", squash, BOTH, "tmpfs 60, ext4 200"),
    Row("mount() on 50 snapshots", deep_mount, BOTH, "0.6"),
]  # fmt: skip


@contextlib.contextmanager
def ground(kind: str) -> Iterator[Ground]:
    """Make a file system with a store."""
    with measure.room() as room, disk.sized_file_system(room, kind, size=SIZE) as place:
        made = Ground(place)
        try:
            yield made
        finally:
            made.store.close()


def measured(rows: Sequence[Callable[[Ground], Seconds]], kind: str, runs: int) -> list[tuple[float, ...]]:
    """Return each row's seconds, measured in turn on one file system. The first round warms up and is not counted."""
    with ground(kind) as made, contextlib.ExitStack() as stack:
        rounds = [stack.enter_context(contextlib.closing(row(made))) for row in rows]
        seconds = [[next(one) for one in rounds] for _ in range(runs + 1)]
    return list(zip(*seconds[1:], strict=True))


def ratios(runs: int) -> dict[str, float]:
    """Return what check_ratios.py holds: each time over that of a baseline, measured in turn.

    The shortest of each: a call of a millisecond is disturbed more easily than one of a second.
    """
    jobs = [snapshot(hundred_mb), rollback(hundred_mb), unmount(hundred_mb), fork, first_mount]
    mount, *ours = map(min, measured([bare, *jobs], "ext4", runs))
    names = ("snapshot", "rollback", "unmount", "fork", "first_mount")
    found = {name: seconds / mount for name, seconds in zip(names, ours, strict=True)}
    pairs = {
        "clone": ("xfs", clone, copied), "commit": ("tmpfs", commit, hashed),
        "snapshot_size": ("ext4", snapshot(hundred_mb), snapshot(ten_mb)),
        "changes_since": ("tmpfs", changes_since(ten_thousand), changes_since(one_mb)),
        "tree": ("tmpfs", tree(first=False), tree(first=True)),
    }  # fmt: skip
    for name, (kind, *two) in pairs.items():
        one, other = map(min, measured(two, kind, runs))
        found[name] = one / other
    return found


def table(rows: Sequence[Row], runs: int) -> Iterator[str]:
    """Measure, and return the lines of a table in Markdown."""
    kinds = ("tmpfs", "ext4", "xfs")
    yield f"| milliseconds, medians of {runs} | {' | '.join(kinds)} | bar |"
    yield "|---|---|---|---|---|"
    for row in rows:
        cells = []
        for kind in kinds:
            found = measured([row.rounds], kind, runs)[0] if kind in row.grounds else ()
            cells.append(f"{1e3 * statistics.median(found):.2f}" if found else "")
        yield f"| {row.name} | {' | '.join(cells)} | {row.bar} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of which the medians are taken ({RUNS})")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="rows whose names contain one of these")
    parser.add_argument("--save", action="store_true", help="write the table into benchmarks/README.md")
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("stores and overlay mounts need root")
    disk.leave_mount_namespace()
    rows = [row for row in ROWS if not args.only or any(word in row.name for word in args.only)]
    about = "".join(f"- {name}: {text}\n" for name, text in measure.machine().items())
    lines = [about + "\n"]
    print(about, flush=True)
    for line in table(rows, args.runs):
        lines.append(line + "\n")
        print(line, flush=True)
    if args.save:
        head, rest = README.read_text().split(BEGIN, 1)
        README.write_text(f"{head}{BEGIN}\n\n{''.join(lines)}\n{END}{rest.split(END, 1)[1]}")


if __name__ == "__main__":
    main()
