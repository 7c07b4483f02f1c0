"""Many processes on one root, some of them killed at any moment; none may take away what another one holds.

    python tests/trust/ownspace.py crowd.py '{"seconds": 10, "processes": 8, "seed": 1}'

"steps" and "kills" in the plan say how much has to be done at least: on a busy machine it takes longer than "seconds".

Each process registers, gets, reads, releases, mounts and commits layers of one small family of chains, and freezes, forks
and rolls back boxes on them: its own, and one that all of them have. A table in
shared memory says what each holds: a slot is set after a reference was given and cleared before its release, so a
set slot is a reference for certain. A process that is to be killed is stopped first, and its slots are cleared.

The result has "broken" (the promise below), "errors" (any call that raised what it should not) and "problems" (what is
wrong at the end, after cleanup()).
"""

import json
import mmap
import os
import random
import secrets
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import disk
import ownspace
import powercut
import seeded

from layerstore import Layer, LayerDoesNotExistError, Store

# Three bases, two layers on each, two on each of those: seeds from the base up. Those of one base are large.
FAMILY: list[tuple[int, ...]] = []
for base in (101, 102, 1103):
    FAMILY.append((base,))
    for child in (base + 10, base + 20):
        FAMILY.append((base, child))
        FAMILY += [(base, child, child + leaf) for leaf in (100, 200)]

SHARED, SHARED_SEED = "shared", 7       # a box that all of them have, and its layer
BETWEEN_KILLS = 4       # calls of all of them together, at least


def held_layer_is_kept(before: dict[int, int], after: dict[int, int]) -> bool:
    """THE PROMISE: a layer that any process holds is never deleted.

    before, after: who held the layer when a call began, and when it raised LayerDoesNotExistError (process -> the
    number of its holding). Who is in both with one number held the layer all the time, so the error is a lie.
    """
    return not any(after.get(process) == holding for process, holding in before.items())


class Table:
    """What each holds: one row per process, one 64-bit number per layer, odd while held. Then a count of calls each,
    and last whether it is time to stop."""

    def __init__(self, path: Path, processes: int) -> None:
        size = (processes * len(FAMILY) + processes + 1) * 8
        with open(path, "a+b") as file:
            file.truncate(size)
            self.cells = memoryview(mmap.mmap(file.fileno(), size)).cast("Q")
        self.processes = processes

    def at(self, process: int, layer: int) -> int:
        return process * len(FAMILY) + layer

    def hold(self, process: int, layer: int, on: bool) -> None:
        cell = self.at(process, layer)
        if self.cells[cell] % 2 != on:
            self.cells[cell] += 1

    def holders(self, layer: int) -> dict[int, int]:
        numbers = {process: self.cells[self.at(process, layer)] for process in range(self.processes)}
        return {process: number for process, number in numbers.items() if number % 2}

    def count(self, process: int) -> None:
        self.cells[self.processes * len(FAMILY) + process] += 1

    def steps(self) -> int:
        return sum(self.cells[self.processes * len(FAMILY) : -1])


# ---- one of the crowd ------------------------------------------------------------------------------
class Member:
    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan, self.me = plan, plan["process"]
        self.draw = random.Random(plan["seed"])
        self.table = Table(Path(plan["table"]), plan["processes"])
        self.log = os.open(plan["log"], os.O_WRONLY | os.O_APPEND)
        self.store = Store(plan["root"], options={"durability": plan["durability"]})
        self.held: dict[int, list[Layer]] = {}

    def say(self, kind: str, text: str) -> None:
        os.write(self.log, json.dumps([kind, f"at {time.time() % 1000:.4f} process {self.me} ({os.getpid()}): {text}"]).encode() + b"\n")

    def hold(self, index: int, layer: Layer) -> None:
        self.held.setdefault(index, []).append(layer)
        self.table.hold(self.me, index, True)

    def let_go(self, index: int) -> None:
        layer = self.held[index].pop()
        if not self.held[index]:
            del self.held[index]
            self.table.hold(self.me, index, False)
        self.store.release(layer)

    def register(self) -> None:
        index = self.draw.randrange(len(FAMILY))
        seeds = FAMILY[index]
        for depth in range(1, len(seeds) + 1):      # each one of the chain is held until the next one stands on it
            below, part = seeds[: depth - 1], FAMILY.index(seeds[:depth])
            self.hold(part, self.store.register(seeded.layer(seeds[depth - 1]).tar, seeded.chain(*below)))
        for depth in range(1, len(seeds)):
            self.let_go(FAMILY.index(seeds[:depth]))

    def get(self) -> None:
        index = self.draw.randrange(len(FAMILY))
        before = self.table.holders(index)
        try:
            layer = self.store.get(seeded.chain(*FAMILY[index]))
        except LayerDoesNotExistError:
            after = self.table.holders(index)
            if not held_layer_is_kept(before, after):
                self.say("broken", f"get of layer {FAMILY[index]}: does not exist, but is held by {before} and {after}")
        else:
            self.hold(index, layer)

    def read(self, index: int) -> None:
        with self.held[index][-1].tar_stream() as stream:
            if stream.read() != seeded.layer(FAMILY[index][-1]).tar:
                self.say("broken", f"layer {FAMILY[index]} gives another tar")

    def box(self, index: int) -> None:
        # No number of a process: those come again within a minute, threads take them, too.
        box = self.store.create_rw_layer(f"box-{secrets.token_hex(8)}", seeded.chain(*FAMILY[index]))
        with box.mounted() as path:
            if os.readlink(f"{path}/c/link") == "":
                self.say("broken", "what is below a box is not there")
            Path(path, "mine").write_text(str(self.draw.random()))
        if self.draw.random() < 0.5:
            with box.commit().tar_stream() as stream:
                stream.read()
        box.release()

    def sandbox(self, index: int) -> None:
        """A box of its own with a snapshot, a fork, a way back and a layer; each shows what it must."""
        box = self.store.create_rw_layer(f"box-{secrets.token_hex(8)}", seeded.chain(*FAMILY[index]))
        with box.mounted() as path:
            Path(path, "mine").write_text("one")
            frozen = box.snapshot()
            Path(path, "mine").write_text("two")
            fork = (box if self.draw.random() < 0.5 else frozen).fork(f"box-{secrets.token_hex(8)}")
            shown = {"two", "one"}
            if self.draw.random() < 0.5:
                box.rollback(frozen)
                shown = {"one"}
            if Path(path, "mine").read_text() not in shown:
                self.say("broken", "a box does not show what it went back to")
        with fork.mounted() as path:
            if Path(path, "mine").read_text() not in ("one", "two") or os.readlink(f"{path}/c/link") == "":
                self.say("broken", "a fork shows something else")
        if self.draw.random() < 0.4:
            frozen.commit().release()
        for each in self.draw.sample((box, frozen, fork), 3):
            each.release()

    def shared(self, index: int) -> None:
        """A box that all of them freeze, fork and merge at once."""
        with self.store.get_rw_layer(SHARED).snapshot() as frozen, frozen.fork(f"box-{secrets.token_hex(8)}") as fork:
            box = self.store.get_rw_layer(SHARED)
            if self.draw.random() < 0.3:
                box.squash()
            if [str(change) for change in self.store.diff(frozen, fork.base)]:
                self.say("broken", "a fork is not what it is of")

    def step(self) -> None:
        act = self.draw.choice(("register", "register", "get", "get", "get", "read", "read", "box", "sandbox", "shared", "release", "release"))
        index = self.draw.choice(sorted(self.held)) if self.held else None
        try:
            if act in ("register", "get") and len(self.held) < 8:
                getattr(self, act)()
            elif index is not None and act in ("read", "box", "sandbox", "shared"):
                getattr(self, act)(index)
            elif index is not None:
                act = "release"
                self.let_go(index)
        except Exception as error:
            # Everything but a get is done on layers that this process holds itself.
            kind = "broken" if isinstance(error, LayerDoesNotExistError | FileNotFoundError) else "errors"
            self.say(kind, f"{act} of {FAMILY[index] if index is not None else 'a layer'}: {type(error).__name__}: {str(error)[:200]}")
            if "trace" in self.plan:
                traceback.print_exc(file=open(self.plan["trace"], "a"))     # noqa: SIM115
        self.table.count(self.me)

    def run(self) -> None:
        while not self.table.cells[-1]:
            self.step()
        os._exit(0)     # what is held at the end goes with the process


# ---- all of them -----------------------------------------------------------------------------------
def crowd(plan: dict[str, Any], place: Path) -> dict[str, Any]:
    draw, count = random.Random(plan["seed"]), plan.get("processes", 8)
    root, log = place / "docker", place / "log"
    table = Table(place / "table", count)
    log.touch()
    with Store(root) as store:          # makes the root
        base = store.register(seeded.layer(SHARED_SEED).tar)
        with store.create_rw_layer(SHARED, base).mounted() as path:
            Path(path, "first").write_text("first")
    for seeds in FAMILY:
        seeded.layer(seeds[-1])     # drawn once, for all that are forked

    def member(process: int) -> int:
        todo = {"process": process, "processes": count, "root": str(root), "log": str(log), "table": str(place / "table"),
                "seed": draw.randrange(1 << 40), "durability": plan.get("durability", "full"),
                **{key: plan[key] for key in ("trace",) if key in plan}}
        return ownspace.forked(lambda: Member(todo).run())

    def goes_on() -> bool:
        return ownspace.goes_on(until, table.steps() < plan.get("steps", 0) or kills < plan.get("kills", 0))

    until = time.monotonic() + plan["seconds"]
    members, kills, problems = [member(process) for process in range(count)], 0, []
    while goes_on():
        time.sleep(draw.uniform(0.1, 0.6))
        seen = table.steps()
        while table.steps() < seen + BETWEEN_KILLS and goes_on():       # a busy machine works less in that time
            time.sleep(0.02)
        victim = draw.randrange(count)
        os.kill(members[victim], signal.SIGSTOP)
        os.waitid(os.P_PID, members[victim], os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        for index in range(len(FAMILY)):
            table.hold(victim, index, False)
        os.kill(members[victim], signal.SIGKILL)
        os.waitpid(members[victim], 0)
        kills += 1
        members[victim] = member(victim)
    table.cells[-1] = 1
    for process in members:
        if code := ownspace.ended(process, 30):
            problems.append("a process hangs" if code == -signal.SIGKILL else f"a process ended with {code}")
    said: dict[str, list[str]] = {"broken": [], "errors": []}
    for line in log.read_text().splitlines():
        kind, text = json.loads(line)
        said[kind].append(text)
    return {"plan": plan, "kills": kills, "steps": table.steps(), "broken": said["broken"],
            "errors": said["errors"], "problems": problems + at_the_end(root, place)}


def at_the_end(root: Path, place: Path) -> list[str]:
    judge, wrong = powercut.Judge(place / "judge"), []
    known = {seeded.chain(*seeds): {"parent": seeded.chain(*seeds[:-1]), "diff": seeded.layer(seeds[-1]).diff_id, "seed": seeds[-1]}
             for seeds in FAMILY}
    with Store(root) as store:
        wrong += powercut.cleaned(root, store)
        if SHARED not in store.mounts():
            wrong.append("the box that all had is gone")
        with store.get_rw_layer(SHARED).mounted() as path:
            if Path(path, "first").read_text() != "first":
                wrong.append("the box that all had shows something else")
        for id, layer in store.map().items():
            wrong += [f"layer {id}: {fault}" for fault in judge.faults(layer, known.get(id))]
        wrong += [f"mounted: {point}" for point in disk.mounts_below(root)]
        for snapshot in store.snapshots():      # of those that were killed
            with snapshot.tar_stream() as stream:
                stream.read()
            snapshot.release()
        for name in store.mounts():
            store.get_rw_layer(name).release()
        wrong += [f"all boxes released, {problem}" for problem in [*store.verify(), *store.orphans()]]
    return wrong


if __name__ == "__main__":
    ownspace.main(crowd)
