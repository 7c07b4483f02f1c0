"""Processes with threads that all work on one root at once, and release all they took: then nothing is left.

    python tests/trust/ownspace.py everyone.py '{"seconds": 10, "processes": 3, "seed": 1, "least": 50}'

None is killed and nothing is closed over, so every layer was released by one of them, at a moment of which none
knows what else was going on. The result has "errors" (calls that raised what they should not) and "problems" (what is
left, without any cleanup()).
"""

import contextlib
import functools
import json
import os
import random
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ownspace
import tarkit
from dockerd import image_archive
from driven import DRIVER
from stored import at_once

from layerstore import (
    ImageDoesNotExistError,
    Images,
    LayerDoesNotExistError,
    MountDoesNotExistError,
    MountNameConflictError,
    Store,
    StoreInUseError,
)

TARS = [tarkit.file(f"f{n}", bytes([65 + n]) * n) + tarkit.end() for n in range(4)]
DEPTH = 4
# What another process did meanwhile, or is doing.
MEANWHILE = (LayerDoesNotExistError, MountDoesNotExistError, MountNameConflictError, ImageDoesNotExistError, StoreInUseError)


class Worker:
    """One thread: a store it shares with others of its process, and what it holds."""

    def __init__(self, store: Store, seed: float, me: str) -> None:
        self.store, self.images, self.draw, self.me = store, Images(store), random.Random(seed), me
        self.layers: list[Any] = []
        self.boxes: list[Any] = []
        self.tagged: list[str] = []
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        what: list[Callable[[], None]] = [self.register, self.register_on, self.register_on, self.get, self.release, self.release,
                                          self.release, self.box, self.release_box, self.remove, self.read, self.image, self.remove_image]
        with contextlib.suppress(*MEANWHILE):
            self.draw.choice(what)()
        if len(self.layers) > 6:
            self.layers.pop(0).release()

    def some_chain(self) -> str:
        there = sorted(self.store.map())
        return self.draw.choice(there) if there else "sha256:" + "0" * 64

    def register(self) -> None:
        self.layers.append(self.store.register(self.draw.choice(TARS)))

    def register_on(self) -> None:
        if self.layers and (below := self.draw.choice(self.layers)):
            depth, at = 0, below
            while at:
                depth, at = depth + 1, at.parent
            if depth < DEPTH:
                self.layers.append(self.store.register(self.draw.choice(TARS), below))

    def get(self) -> None:
        self.layers.append(self.store.get(self.some_chain()))

    def release(self) -> None:
        if self.layers:
            self.layers.pop(self.draw.randrange(len(self.layers))).release()

    def box(self) -> None:
        if self.layers and len(self.boxes) < 3:
            self.boxes.append(self.store.create_rw_layer(f"box{self.draw.randrange(6)}", self.draw.choice(self.layers)))

    def release_box(self) -> None:
        if self.boxes:
            self.boxes.pop().release()

    def remove(self) -> None:
        self.store.remove(self.some_chain())

    def read(self) -> None:
        if self.layers:
            layer = self.draw.choice(self.layers)
            assert len(list(layer.merged().files())) >= len(list(layer.files()))
            assert layer.tar_stream().read() in TARS

    def image(self) -> None:
        if len(self.tagged) < 2:
            name = f"{self.me}-{self.steps}"
            if self.draw.random() < 0.5:
                self.images.load(image_archive(self.draw.choices(TARS, k=self.draw.randint(1, 3)), name))
            else:
                self.images.create(self.some_chain(), {"created": "2026-01-01T00:00:00Z", "author": name}, tags=name)
            self.tagged.append(name)

    def remove_image(self) -> None:
        if self.tagged:
            self.images.remove(self.tagged.pop(), force=True)

    def give_back(self) -> None:
        for what in (*self.boxes, *self.layers):
            what.release()
        for name in self.tagged:
            self.images.remove(name, force=True)


def member(root: str, seed: int, until: float, least: int, log: int) -> None:
    """Two threads, each for so long, and for so many steps."""
    store, draw = Store(root, options={"durability": "none"}), random.Random(seed)

    def work(me: str) -> None:
        worker = Worker(store, draw.random(), me)
        try:
            while ownspace.goes_on(until, worker.steps < least):
                worker.step()
            worker.give_back()
        except BaseException:
            os.write(log, json.dumps(["error", traceback.format_exc()]).encode() + b"\n")
        os.write(log, json.dumps(["steps", worker.steps]).encode() + b"\n")

    at_once(*(functools.partial(work, f"p{os.getpid()}t{n}") for n in range(2)))
    store.close()


def everyone(plan: dict[str, Any], place: Path) -> dict[str, Any]:
    root, until = str(place / "docker"), time.monotonic() + plan["seconds"]
    Store(root).close()
    log = os.open(place / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    children = [ownspace.forked(functools.partial(member, root, plan["seed"] * 100 + number, until, plan.get("least", 0), log))
                for number in range(plan.get("processes", 3))]
    problems = [f"a process ended with {ended}" for child in children if (ended := os.waitpid(child, 0)[1])]
    said = [json.loads(line) for line in (place / "log").read_text().splitlines()]
    with Store(root) as store:
        for what, left in (("layers", store.map()), ("writable layers", store.mounts()), ("images", Images(store).list()),
                           ("problems", store.verify()), ("orphans", store.orphans()), ("directories", set(os.listdir(f"{root}/{DRIVER}")) - {"l"})):
            problems += [f"{what} are left: {left}"] if left else []
    return {"plan": plan, "steps": sum(text for kind, text in said if kind == "steps"),
            "errors": [text for kind, text in said if kind == "error"], "problems": problems}


if __name__ == "__main__":
    ownspace.main(everyone)
