"""Interrupt a process at the entry of one function after the other, and look at what it keeps while it lives on.

    python tests/trust/ownspace.py interruptwalk.py '{"act": "register", "first": 1, "step": 1}'

One plan is one act. For each n, on the same start, a child process does the act, and a KeyboardInterrupt is raised at
the entry of the n-th Python function that it enters, as a signal's handler does. Then, while the child lives on:
no lock on a directory is left to it; another thread of its own and another process do the act, within seconds; and
verify() finds nothing but what the living child may still have in the making.
"""

import contextlib
import gc
import itertools
import json
import logging
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import acts
import killwalk
import ownspace
import seeded
from acts import ARCHIVE, BASE, DIFF, INIT, NEW, TOP
from seeded import chain

from layerstore import Images, LayerStoreError, Store

# A longer wait is one for a lock that is not released.
SECONDS = 5


def imaged(store: Store) -> None:
    acts.with_box(store)
    Images(store).create(store.get(chain(BASE, TOP)), {"created": "2020-01-01T00:00:00Z"}, tags=["keep:1", "keep:2"])


def box_of(store: Store) -> Any:
    return store.get_rw_layer("box")


def mount_twice(store: Store, box: Any) -> None:
    box.mount()
    with box.mounted():
        pass
    box.unmount()


_count = itertools.count()


def make_and_release(store: Store, _: Any) -> None:
    with store.create_rw_layer(f"new-{next(_count)}", chain(BASE, TOP), INIT) as box, box.mounted() as path:
        Path(path, "x").write_text("x")


def load_and_remove(store: Store, _: Any) -> None:
    images = Images(store)
    images.load(ARCHIVE)
    images.remove("app:1")


def snapshot(store: Store, box: Any) -> None:
    with box.mounted():
        box.snapshot().release()


def roll_back(store: Store, box: Any) -> None:
    with box.snapshot() as frozen, box.mounted():
        box.rollback(frozen)


def fork(store: Store, box: Any) -> None:
    with box.fork(f"fork-{next(_count)}") as made, made.mounted():
        pass


def commit_snapshot(store: Store, box: Any) -> None:
    with box.snapshot() as frozen:
        frozen.commit().release()


def squash(store: Store, box: Any) -> None:
    for _ in range(2):
        box.snapshot().release()
    box.squash()


class Act(NamedTuple):
    ready: Callable[[Store], Any]
    do: Callable[[Store, Any], object]


ACTS = {
    "open": Act(acts.nothing, lambda store, _: Store(store.root).close()),
    "register": Act(acts.nothing, lambda store, _: store.register(seeded.layer(NEW).tar, chain(BASE, TOP)).release()),
    "register known": Act(acts.nothing, lambda store, _: store.register(seeded.layer(BASE).tar)),
    "get": Act(acts.nothing, lambda store, _: (store.get(chain(BASE, TOP)), store.map())),
    "create": Act(acts.nothing, make_and_release),
    "mount": Act(box_of, mount_twice),
    "commit": Act(box_of, lambda store, box: box.commit().release()),
    "apply_diff": Act(box_of, lambda store, box: box.apply_diff(DIFF)),
    "changes": Act(box_of, lambda store, box: (box.changes(), box.size())),
    "tar_stream": Act(lambda store: store.get(chain(BASE, TOP)), lambda store, layer: layer.tar_stream().read()),
    "load": Act(acts.nothing, load_and_remove),
    "save": Act(acts.nothing, lambda store, _: Images(store).save("keep:1", f"{store.root}.tar")),
    "tag": Act(acts.nothing, lambda store, _: (Images(store).tag("keep:1", "t:1"), Images(store).remove("t:1"))),
    "snapshot": Act(box_of, snapshot),
    "rollback": Act(box_of, roll_back),
    "fork": Act(box_of, fork),
    "commit snapshot": Act(box_of, commit_snapshot),
    "squash": Act(box_of, squash),
    "verify": Act(acts.nothing, lambda store, _: store.verify()),
    "reclaim": Act(acts.nothing, lambda store, _: store.orphans()),
}
# Another process does this: it changes all that a lock may keep it from.
OTHERS = ("register", "create", "tag", "load")


def flocks(pid: int) -> list[str]:
    """Directories on which a process holds a lock."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if "FLOCK" in Path(f"/proc/{pid}/fdinfo/{fd}").read_text():
                found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


def at_entry(number: int, act: Callable[[int, Any], object]) -> Callable[[Any, str, Any], None]:
    """For sys.setprofile: call act as a signal's handler at the n-th function that is entered, and look no further."""
    entered = itertools.count(1)

    def enter(frame: Any, event: str, _arg: Any) -> None:
        if event == "call" and next(entered) == number:
            sys.setprofile(None)         # what is called now is not the act's
            act(signal.SIGINT, frame)

    return enter


class Places:
    """The functions that an act enters, each with the lines that led there: every way counts, not every time."""

    def __init__(self) -> None:
        self.total = 0
        self.first: dict[tuple[Any, ...], int] = {}
        self.last: dict[tuple[Any, ...], int] = {}

    def enter(self, frame: Any, event: str, _arg: Any) -> None:
        """For sys.setprofile."""
        if event == "call":
            self.total += 1
            way, at = [], frame
            while at and len(way) < 6:
                way.append((at.f_code.co_filename, at.f_lineno))
                at = at.f_back
            self.first.setdefault(tuple(way), self.total)
            self.last[tuple(way)] = self.total

    def numbers(self) -> list[int]:
        """The first and the last time of each way."""
        return sorted({*self.first.values(), *self.last.values()})


def chosen(plan: dict[str, Any], numbers: Sequence[int]) -> Sequence[int]:
    """The places of a plan: those of a sample, or every step-th."""
    if "sample" in plan:
        return sorted(random.Random(plan["seed"]).sample(numbers, min(len(numbers), plan["sample"])))
    if "only" in plan:
        return plan["only"]
    return numbers[plan.get("first", 1) - 1 :: plan.get("step", 1)]


class Walker:
    def __init__(self, plan: dict[str, Any], place: Path) -> None:
        self.plan, self.place, self.act = plan, place, ACTS[plan["act"]]
        self.start, self.root, self.told = place / "start", place / "docker", place / "told"
        self.problems: list[str] = []
        seeded.layer(NEW)       # drawn once
        with Store(self.start) as store:
            imaged(store)
            with box_of(store).mounted() as path:
                self.shown = sorted(os.listdir(path))
                if plan["act"] == "apply_diff":
                    self.shown = sorted([*self.shown, "by-diff"])

    # ---- the one that is interrupted -----------------------------------------------------------
    def child(self, number: int, out: int) -> None:
        """Do the act, interrupted at the entry of its n-th function (0: never); tell how many there were; live on."""
        store = Store(self.root, options={"lock_timeout": str(SECONDS)})
        ready = self.act.ready(store)
        self.quiet()
        if not number:
            places = Places()
            sys.setprofile(places.enter)
            self.act.do(store, ready)
            sys.setprofile(None)
            os.write(out, json.dumps(places.numbers()).encode())
            return
        sys.setprofile(at_entry(number, signal.default_int_handler))
        kept = None
        try:
            self.act.do(store, ready)
        except KeyboardInterrupt as error:
            kept = error            # with its frames, as an interactive interpreter keeps it
        finally:
            sys.setprofile(None)
        store._engine.driver.host.ground.background.drain()     # what it removes is claimed until it is gone
        text = "-"
        if directories := flocks(os.getpid()):
            text += f"it keeps locks on {directories}; "
        ended: list[str] = []
        thread = threading.Thread(target=lambda: ended.append(self.attempt(store, self.act.ready, self.act.do)), daemon=True)
        thread.start()
        thread.join(SECONDS)
        text += ended[0] if ended else "another thread waits; "
        if text[1:] and kept:
            frames = traceback.extract_tb(kept.__traceback__)[1:]
            text += "interrupted in " + " ".join(f"{Path(at.filename).stem}.{at.name}:{at.lineno}" for at in frames)
        os.write(out, text.encode())
        time.sleep(60)
        assert kept is None or store

    @staticmethod
    def quiet() -> None:
        """Nothing but the act is interrupted, and nothing is printed."""
        gc.collect()
        gc.disable()
        logging.disable()

    @staticmethod
    def attempt(store: Store, ready: Callable[[Store], Any], do: Callable[..., object]) -> str:
        try:
            do(store, ready(store))
        except (LayerStoreError, OSError) as error:
            if "option lock_timeout" in str(error):
                return f"{type(error).__name__}: {error}; "
        except Exception:
            return traceback.format_exc() + "; "
        return ""

    def tell(self, what: str) -> None:
        self.told.write_text(what)

    # ---- the others ----------------------------------------------------------------------------
    def others(self) -> None:
        self.quiet()
        with Store(self.root, options={"lock_timeout": str(SECONDS)}) as store:
            for name in dict.fromkeys((self.plan["act"], *self.draw.sample(OTHERS, 2))):
                if said := self.attempt(store, ACTS[name].ready, ACTS[name].do):
                    self.tell(f"{name}: {said}")
                    os._exit(2)
            with box_of(store).mounted() as path:
                if sorted(os.listdir(path)) != self.shown:
                    self.tell(f"the box shows {sorted(os.listdir(path))}")
                    os._exit(4)
            found = [str(problem) for problem in store.verify() if problem.kind != "orphan"]
            if found:
                self.tell(f"{found}")
                os._exit(3)

    def begin(self, number: int) -> tuple[int, int]:
        """child() on a fresh copy of the start: (where it tells, its process)."""
        killwalk.copy_of(self.start, self.root)
        read, out = os.pipe()
        pid = ownspace.forked(lambda: self.child(number, out))
        os.close(out)
        return read, pid

    def places(self) -> list[int]:
        """Do the act in peace: where it can be interrupted."""
        read, pid = self.begin(0)
        with open(read) as found:
            numbers = json.load(found)
        os.waitpid(pid, 0)
        return numbers

    def at(self, number: int) -> None:
        """Walk one place."""
        self.draw = random.Random(f"{self.plan['act']} {number}")
        read, pid = self.begin(number)
        try:
            said = os.read(read, 1 << 16).decode() if select.select([read], [], [], 2 * SECONDS + 2)[0] else ""
            if not said:
                self.problems.append(f"interrupted at function {number}: it does not end")
            if said[1:]:
                self.problems.append(f"interrupted at function {number}: {said[1:]}")
            if said and (code := ownspace.ended(ownspace.forked(self.others), 3 * SECONDS)):
                told = self.told.read_text() if self.told.exists() else ""
                self.problems.append(f"interrupted at function {number}: another process ends with {code} {told} {said[1:]}")
        finally:
            os.close(read)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def walk(self) -> dict[str, Any]:
        numbers = self.places()
        walked = 0
        for number in chosen(self.plan, numbers):
            self.at(number)
            walked += 1
            if len(self.problems) > 20:
                break
        return {"problems": self.problems, "of": len(numbers), "walked": walked}


if __name__ == "__main__":
    ownspace.main(lambda plan, place: Walker(plan, place).walk())
