"""Every system call of every operation fails once, and from there on: an honest error or a right result, nothing left.

A walk goes over the n-th open, write, rename, close ... (faultkit.KINDS) that an operation makes in any of its threads.
It stops at a spread of places; in `make soak` at each, with LAYERSTORE_SOAK=2 also with every errno. Each time

    the operation succeeds with the right result, or raises an OSError or a LayerStoreError (MemoryError for ENOMEM);
    descriptors, threads and mounts are those of before;
    one failure: what lies on disk is what lay there, unless a deletion failed, which cleanup() then finishes;
    many failures: cleanup() finishes;
    another Store on the root finds every layer exact and verify() empty, and the same call then succeeds.
"""

import contextlib
import errno
import gc
import io
import os
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import disk
import faultkit
import frozenoperations
import operations
import pytest
import soak
from faultkit import ERRNOS, KINDS, PASSING, Faults, Ground, Held, contents, state

import layerstore
from layerstore import LayerStoreError

OPERATIONS = operations.OPERATIONS | frozenoperations.OPERATIONS
NAMELESS = ("descriptor", "thread", "memory", "random")      # what fails there is no file
SPREAD, THIN = 2, 1       # places of a kind, where not all are walked; of an operation on snapshots
EVERY, EVERY_ERRNO = soak.LEVEL > 0, soak.LEVEL > 1
MEMORY_LIMIT = 256 << 10  # what a second walk may add to what malloc has given out: less than any buffer of the core
COUNTED = ("Register", "RegisterZstd", "CopyTo", "Changes")


# ---- the walk ------------------------------------------------------------------------------------------
class Walk:
    """An operation, walked over in this process, which is under supervision."""

    def __init__(self, name: str, place: Path, say: Callable[[str], None]) -> None:
        self.name, self.operation, self.place, self.say = name, OPERATIONS[name], place, say
        operation = self.operation
        self.faults = Faults()
        self.grounds = 0
        self.wrong: list[str] = []
        self.raised = self.succeeded = 0
        self.ground: Ground | None = None
        self.deletes, self.threads = operation.deletes, faultkit.threads()

    def fresh(self) -> Ground:
        """A ground that is prepared; the last one, if it is as it was."""
        if self.ground is not None and not (self.deletes or self.operation.leaves == "a tree") and state(self.ground.root) == self.before:
            return self.ground
        self.drop()
        self.grounds += 1
        self.ground = Ground(self.place / f"root{self.grounds}", self.operation.durability)
        is_tree = self.operation.leaves == "a tree"
        self.layers = {} if is_tree else contents(self.ground.again())
        self.unprepared = state(self.ground.root)
        self.operation.prepare(self.ground)
        frozenoperations.settle(self.ground, self.threads)
        if not (self.deletes or is_tree):
            self.layers = contents(self.ground.again())
        self.before = state(self.ground.root)
        if is_tree:
            self.there = frozenoperations.There.now(self.ground)
        return self.ground

    def drop(self) -> None:
        if self.ground is not None:
            self.ground.gone()
        self.ground = None

    def counts(self) -> dict[str, int]:
        """How many calls of each kind the operation makes, nothing failing; it must be right then."""
        found = {}
        kinds = KINDS if self.operation.leaves == "a tree" else ["open", *KINDS]      # once to be warm
        for kind in kinds:
            g = self.fresh()
            value, raised, met = self.faults.run(lambda g=g: self.operation.run(g), kind, errno.EIO, 1 << 40)
            if raised:
                raise raised
            assert self.operation.right(g, value), value
            self.operation.undo(g, value)
            found[kind] = met.met
        if self.operation.leaves == "a tree":
            self.after = frozenoperations.There.now(g)
        return found

    def step(self, kind: str, sys_errno: int, first: int, last: int | None) -> bool:
        """One failure, or one after the other; tells whether there was one."""
        g = self.fresh()
        label = f"{kind} {first}{'' if last is None else '...'} {errno.errorcode[sys_errno]}"
        self.say(label)
        gc.collect()
        held = Held.now(self.place)
        value, raised, met = self.faults.run(lambda: self.operation.run(g), kind, sys_errno, first, last)
        if not met.failed:
            if raised is not None:
                self.wrong.append(f"{label}: no fault, and {raised!r}")
            else:
                self.operation.undo(g, value)
            return False
        label += f" ({met.first_failed})"
        try:
            look = self.look_at_trees if self.operation.leaves == "a tree" else self.look
            look(g, label, kind, sys_errno, last is not None, held, raised, value)
        except Exception as error:
            lines = [f"{os.path.basename(at.filename)}:{at.lineno}" for at in traceback.extract_tb(error.__traceback__)]
            self.wrong.append(f"{label}: afterwards {error!r} [{' '.join(lines)}] (first: {raised!r})")
            self.drop()
        return True

    def look(self, g: Ground, label: str, kind: str, sys_errno: int, many: bool, held: Held, raised: BaseException | None, value: Any) -> None:
        """Check that everything is as it must be behind a failure. The root is as before when this ends, or is dropped."""
        op = self.operation
        said = repr(raised)
        if raised is None:
            self.succeeded += 1
            if not op.right(g, value) and not many:
                self.wrong.append(f"{label}: a wrong result, {value!r:.200}")
            if not self.deletes:
                with contextlib.suppress(LayerStoreError, OSError) if many else contextlib.nullcontext():
                    op.undo(g, value)
                value = None
        else:
            self.judge_error(raised, label, kind, sys_errno, many)
            raised = None
        gc.collect()
        now = state(g.root)
        littered = now != self.before
        if not (op.leaves == "a part" or self.deletes):
            # Where the kernel will not unmount, cleanup() does it.
            for line in held.differences(mounts=not many and "umount2" not in label):
                self.wrong.append(f"{label}: {said}; left {line}")
        if littered and op.leaves == "nothing" and not many and said != "None":
            self.wrong.append(f"{label}: {said}; left {faultkit.disk.changed(self.before, now)}")
        again = g.again()
        problems = again.verify()
        # What was being made may be half there; what was there before may not.
        worse = [p for p in problems if p.kind != "orphan" and not (many and p.subject == "new")]
        if worse or (problems and not littered and not self.deletes):
            self.wrong.append(f"{label}: {said}; {problems}")
        if op.leaves == "scaffold":
            if (g.root / "fresh").exists():
                with layerstore.Store(g.root / "fresh", options=g.options) as fresh:
                    fresh.cleanup()
                    assert fresh.verify() == []
                faultkit.disk.remove_tree(g.root / "fresh")
        elif littered or self.deletes or "umount2" in label:
            if op.durability == "full" and kind == "stat" and many and said != "None":
                self.release_visible(again)
            again.cleanup()
            problems = again.verify()
            if problems:
                self.wrong.append(f"{label}: {said}; behind cleanup() {problems}")
            left = state(g.root)
            if self.deletes:
                wanted = (self.unprepared, self.before)
            else:
                wanted = (self.before,)
            if op.leaves != "a part" and left not in wanted and not (self.deletes and again.map().keys() | set(again.mounts()) != self.layers.keys()):
                self.wrong.append(f"{label}: {said}; behind cleanup() {faultkit.disk.changed(wanted[0], left)}")
        if self.deletes:
            self.drop_checked(again, label)
            return
        if (many or "umount2" in label) and op.leaves != "scaffold":
            again.cleanup()
            again.close()
            for line in held.differences():
                self.wrong.append(f"{label}: {said}; left behind cleanup() {line}")
            again = g.again()
        found = contents(again)
        if op.leaves == "a part":
            found["bare"] = self.layers["bare"]
        if found != self.layers:
            self.wrong.append(f"{label}: {said}; layers {found.keys() ^ self.layers.keys() or 'differ'}")
        # And the same objects go on working.
        again.close()
        value = op.run(g)
        if not op.right(g, value):
            self.wrong.append(f"{label}: {said}; then a wrong result, {value!r:.200}")
        op.undo(g, value)

    def judge_error(self, raised: BaseException, label: str, kind: str, sys_errno: int, many: bool) -> None:
        """Return True if an error is an honest one; let go of what its frames hold."""
        said = repr(raised)
        self.raised += 1
        expected = (OSError, LayerStoreError, *((MemoryError,) if sys_errno == errno.ENOMEM else ()))
        if not isinstance(raised, expected):
            self.wrong.append(f"{label}: raised {said}")
        elif isinstance(raised, OSError) and raised.errno != sys_errno and not many and not (
            kind == "stat" and (raised.errno == errno.EEXIST or isinstance(raised, io.UnsupportedOperation))
        ):  # fmt: skip
            # (os.makedirs() says EEXIST of what it cannot look at, open() that what it cannot seek is not seekable.)
            self.wrong.append(f"{label}: said {said}")
        elif isinstance(raised, OSError) and kind not in NAMELESS and not (raised.filename and isinstance(raised.filename, str)):
            self.wrong.append(f"{label}: {said} names no file")
        raised.__traceback__ = raised.__context__ = raised.__cause__ = None

    def look_at_trees(self, g: Ground, label: str, kind: str, sys_errno: int, many: bool, held: Held, raised: BaseException | None, value: Any) -> None:
        """Check what shows trees, whose names on disk are random: never what was, always what must be."""
        op, said = self.operation, repr(raised)
        if raised is None:
            self.succeeded += 1
            if not op.right(g, value) and not many:
                self.wrong.append(f"{label}: a wrong result, {value!r:.200}")
        else:
            self.judge_error(raised, label, kind, sys_errno, many)
            raised = None
        frozenoperations.settle(g, self.threads)
        for line in held.differences(mounts=not many and "umount2" not in label):
            self.wrong.append(f"{label}: {said}; left {line}")
        for line in frozenoperations.wrong_of(g, self.there, self.after, finished=said == "None"):
            self.wrong.append(f"{label}: {said}; {line}")
        if said != "None":
            if many:          # a box whose name could not be taken back (release_visible)
                for name in set(g.store.mounts()) - self.there.views.boxes.keys():
                    g.store.get_rw_layer(name).release()
            value = op.run(g)
            if not op.right(g, value):
                self.wrong.append(f"{label}: {said}; then a wrong result, {value!r:.200}")
        self.drop()

    def release_visible(self, again: Any) -> None:
        """Release what was not there before. When a file system dies behind the rename, which the fstat of an fsync tells,
        nothing can be made invisible again: it is whole, as verify() has said, and the call said that it failed."""
        for chain in again.map().keys() - self.layers.keys():
            again.get(chain).release()
        for name in set(again.mounts()) - self.layers.keys():
            again.get_rw_layer(name).release()

    def drop_checked(self, again: Any, label: str) -> None:
        """What was not to be deleted is exact, and what was may be there whole or not at all."""
        found = contents(again)
        if {name: tar for name, tar in found.items() if name in self.layers} != self.layers:
            self.wrong.append(f"{label}: layers differ")
        again.close()
        self.drop()

    def grown(self, counts: dict[str, int]) -> int:
        """What malloc has given out and not got back after a failure of each kind, when the same has been before."""
        before = 0
        for turn in range(4):
            for kind, count in counts.items():
                if count:
                    self.step(kind, ERRNOS[kind][0], (count + 1) // 2, None)
            gc.collect()
            before = before or (faultkit.allocated() if turn == 1 else 0)
        return faultkit.allocated() - before

    def all(self, counts: dict[str, int]) -> None:
        for kind, count in counts.items():
            if self.operation.leaves == "a tree" and not EVERY:      # each on a ground of its own: one of each kind
                for place in places(count, zlib.crc32(f"{kind} {soak.SEED} {self.name}".encode()), THIN):
                    self.step(kind, ERRNOS[kind][0], place, None)
                continue
            for sys_errno in ERRNOS[kind] if EVERY_ERRNO else ERRNOS[kind][:1]:
                for place in places(count, sys_errno):
                    self.step(kind, sys_errno, place, None)
            for sys_errno in [e for e in ERRNOS[kind] if e not in PASSING][: None if EVERY_ERRNO else 1]:
                for place in places(count, sys_errno + 1)[:: 1 if EVERY else 2]:
                    self.step(kind, sys_errno, place, 1 << 40)


def places(count: int, seed: int, spread: int = SPREAD) -> list[int]:
    """Which of so many places are walked."""
    if EVERY or count <= spread:
        return list(range(1, count + 1))
    return sorted({1 + (k * count + seed * 7) // spread % count for k in range(spread)})


@pytest.mark.soak(60, 3600)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_system_call_that_fails_is_an_error_or_overcome_and_leaves_nothing(room: Path, figures: list[str], name: str) -> None:
    with contextlib.ExitStack() as stack:
        # On a tmpfs nothing is synced.
        place = stack.enter_context(disk.sized_file_system(room, "ext4", size=64 << 20)) if OPERATIONS[name].durability == "full" else room

        def work(say: Callable[[str], None]) -> tuple[list[str], int, int]:
            gc.freeze()
            walk = Walk(name, place, say)
            counts = walk.counts()
            walk.all(counts)
            if EVERY or name in COUNTED:
                grown = walk.grown(counts)
                if grown > MEMORY_LIMIT:
                    walk.wrong.append(f"{grown} bytes are lost in two rounds")
            walk.drop()
            return walk.wrong, walk.raised, walk.succeeded

        wrong, raised, succeeded = faultkit.in_a_child(work, seconds=3500 if EVERY else 55)
    print(f"{name}: {raised} raised, {succeeded} overcome", *wrong, sep="\n  ")
    if EVERY:
        figures.append(f"faults: {raised + succeeded:4} failures in {name}, {succeeded} overcome; problems {len(wrong)}")
    assert not wrong, f"{len(wrong)} of {raised + succeeded}"
    assert raised > 0


@pytest.mark.parametrize("kind", ["sync", "open", "close"])
def test_a_second_register_that_fails_leaves_no_reference_behind(room: Path, kind: str) -> None:
    """With the first reference the layer goes, however often it was asked for in vain."""
    def work(say: Callable[[str], None]) -> tuple[int, list[str]]:
        faults, failed = Faults(), 0
        with layerstore.Store(place / "root") as store:
            layer = store.register(faultkit.EVERY_KIND, durability="none")
            for place_of_fault in range(1, 400):
                say(f"{kind} {place_of_fault}")
                again, raised, met = faults.run(
                    lambda: store.register(faultkit.EVERY_KIND, durability="full"), kind, errno.EIO, place_of_fault, None
                )
                if raised is None:
                    again.release()
                failed += raised is not None
                if not met.failed:
                    break
            return failed, [str(gone.chain_id) for gone in layer.release()] or ["nothing went"]

    with disk.sized_file_system(room, "ext4", size=64 << 20) as place:
        failed, gone = faultkit.in_a_child(work, seconds=55)
    assert failed > 0 and len(gone) == 1 and gone[0].startswith("sha256:")
