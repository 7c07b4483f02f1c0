"""Random histories of a few stores on one root, each step compared with a plain model of who keeps what.

    python tests/trust/ownspace.py histories.py '{"seconds": 10, "seed": 1, "least": 300}'

Two to four stores live in processes that take one command at a time: they register, get, release and remove layers,
make and release writable layers, make, load and remove images, close and reopen, fork, and are killed. After each step
the model (Model, which knows nothing of how the package does it) says what the call must have returned, and what the
layerdb, its marks, the driver's directories and the image database must hold.

The result has "steps", "wrong" (the first difference, with the history that led to it) and "verbs" (what was done).
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import ownspace
import tarkit
from dockerd import image_archive
from driven import DRIVER

import layerstore
from layerstore import Images, LayerDoesNotExistError, Store, create_chain_id

TARS = [tarkit.file(f"f{n}", bytes([65 + n]) * n) + tarkit.end() for n in range(5)]
DIFFS = [tarkit.diff_id(tar) for tar in TARS]
BOXES = ["red", "green", "blue"]
TAGS = ["one", "two", "three"]
DEPTH = 4
GONE, NOT_HELD, IN_USE = "LayerDoesNotExistError", "LayerNotRetainedError", "StoreInUseError"
NO_BOX, BOX_THERE, NO_IMAGE = "MountDoesNotExistError", "MountNameConflictError", "ImageDoesNotExistError"

Answer = dict[str, Any]


# ---- what must hold ------------------------------------------------------------------------------
class Model:
    """sandbox.md 2, in sets and dictionaries. A store is named by its process and number, a reference by any number."""

    def __init__(self) -> None:
        self.parents: dict[str, str] = {}                 # of every layer there is
        self.released: set[str] = set()
        self.references: dict[tuple[str, int], str] = {}  # (store, number) -> layer
        self.boxes: dict[str, str] = {}                   # name -> parent
        self.box_references: dict[tuple[str, int], str] = {}
        self.images: dict[str, list[str]] = {}            # id -> layers, base first
        self.tags: dict[str, str] = {}

    def is_held(self, chain: str) -> bool:
        return chain in self.references.values()

    def is_needed(self, chain: str) -> bool:
        return (self.is_held(chain) or chain in self.parents.values() or chain in self.boxes.values()
                or any(chain in layers for layers in self.images.values()))

    def delete(self, chain: str) -> list[str]:
        """The layer goes, and what it stood on by the same rule."""
        parent = self.parents.pop(chain)
        self.released.discard(chain)
        return [chain, *self.sweep(parent)]

    def sweep(self, chain: str) -> list[str]:
        return self.delete(chain) if chain in self.released and not self.is_needed(chain) else []

    def refer(self, store: str, number: int, chain: str) -> None:
        self.references[store, number] = chain
        self.released.discard(chain)

    def register(self, store: str, number: int, chain: str, parent: str) -> Answer:
        if parent and parent not in self.parents:
            return {"error": GONE}
        self.parents.setdefault(chain, parent)
        self.refer(store, number, chain)
        return {"chain": chain}

    def get(self, store: str, number: int, chain: str) -> Answer:
        if chain not in self.parents:
            return {"error": GONE}
        self.refer(store, number, chain)
        return {"chain": chain}

    def release(self, store: str, number: int, chain: str) -> Answer:
        if self.references.pop((store, number), None) is None:
            return {"error": NOT_HELD} if chain in self.parents else {"gone": []}
        if self.is_held(chain):
            return {"gone": []}
        if self.is_needed(chain):
            self.released.add(chain)
            return {"gone": []}
        return {"gone": self.delete(chain)}

    def remove(self, chain: str) -> Answer:
        if chain not in self.parents:
            return {"error": GONE}
        return {"error": IN_USE} if self.is_needed(chain) else {"gone": self.delete(chain)}

    def create_box(self, store: str, number: int, name: str, parent: str) -> Answer:
        if name in self.boxes:
            return {"error": BOX_THERE}
        if parent and parent not in self.parents:
            return {"error": GONE}
        self.boxes[name] = parent
        self.box_references[store, number] = name
        return {"chain": parent}

    def get_box(self, store: str, number: int, name: str) -> Answer:
        if name not in self.boxes:
            return {"error": NO_BOX}
        self.box_references[store, number] = name
        return {"chain": self.boxes[name]}

    def release_box(self, store: str, number: int, name: str) -> Answer:
        if self.box_references.pop((store, number), None) is None:
            held_here = any(at[0] == store and held == name for at, held in self.box_references.items())
            return {"error": NOT_HELD} if held_here else {"gone": []}
        if name in self.box_references.values():
            return {"gone": []}
        return {"gone": self.sweep(self.boxes.pop(name))}

    def make_image(self, id: str, layers: list[str], tag: str) -> None:
        self.images[id] = layers
        self.tags[tag] = id

    def remove_image(self, tag: str) -> Answer:
        id = self.tags.pop(tag, None)
        if id is None:
            return {"error": NO_IMAGE}
        if id in self.tags.values():
            return {"gone": []}
        gone: list[str] = []
        for chain in reversed(self.images.pop(id)):
            if chain not in self.parents:
                continue
            if self.is_needed(chain):
                break
            self.parents.pop(chain)
            self.released.discard(chain)
            gone.append(chain)
        return {"gone": gone}

    def end_store(self, store: str) -> None:
        """Closed, or its process is dead: nothing is released by that."""
        self.references = {at: chain for at, chain in self.references.items() if at[0] != store}
        self.box_references = {at: name for at, name in self.box_references.items() if at[0] != store}

    def fork_store(self, store: str, copy: str) -> None:
        self.references |= {(copy, at[1]): chain for at, chain in self.references.items() if at[0] == store}
        self.box_references |= {(copy, at[1]): name for at, name in self.box_references.items() if at[0] == store}


def on_disk(root: Path) -> dict[str, Any]:
    """What is there, by nothing but os and json."""
    images, home = f"{root}/image/{DRIVER}", f"{root}/{DRIVER}"
    db = f"{images}/layerdb"

    def read(path: str) -> str:
        try:
            with open(path) as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def names(path: str) -> list[str]:
        return sorted(os.listdir(path)) if os.path.exists(path) else []

    layers = {f"sha256:{name}": f"{db}/sha256/{name}" for name in names(f"{db}/sha256")}
    boxes = {name: f"{db}/mounts/{name}" for name in names(f"{db}/mounts")}
    ids = [read(f"{path}/cache-id") for path in layers.values()] + [read(f"{path}/mount-id") for path in boxes.values()]
    return {
        "parents": {chain: read(f"{path}/parent") for chain, path in layers.items()},
        "released": {chain for chain, path in layers.items() if os.path.exists(f"{path}/released")},
        "boxes": {name: read(f"{path}/parent") for name, path in boxes.items()},
        "directories without an owner": sorted(set(names(home)) - {"l", *ids}), "owners without a directory": sorted(set(ids) - set(names(home))),
        "links": len(names(f"{home}/l")) - len(ids), "being made": names(f"{db}/tmp"),
        "images": {f"sha256:{name}" for name in names(f"{images}/imagedb/content/sha256")},
    }


def in_the_model(model: Model) -> dict[str, Any]:
    return {"parents": model.parents, "released": model.released, "boxes": model.boxes, "directories without an owner": [],
            "owners without a directory": [], "links": 0, "being made": [], "images": set(model.images)}


# ---- a process with stores -----------------------------------------------------------------------
class Actor:
    """Does what it is told, with the stores it has. References are kept by the numbers that the other side draws."""

    def __init__(self, root: str, address: str) -> None:
        self.root, self.address = root, address
        self.stores: dict[int, Store] = {}
        self.layers: dict[tuple[int, int], Any] = {}
        self.boxes: dict[tuple[int, int], Any] = {}

    def serve(self) -> None:
        while True:
            line = socket.socket(socket.AF_UNIX)
            line.connect(self.address)
            with line, line.makefile("rwb") as talk:
                talk.write(json.dumps(os.getpid()).encode() + b"\n")
                talk.flush()
                if not self.obey(talk):
                    return

    def obey(self, talk: Any) -> bool:
        """True: this is a forked child, which is a process of its own from now on."""
        for asked in talk:
            command = json.loads(asked)
            if command["do"] == "fork":
                if not os.fork():
                    for store in self.stores.values():
                        store.mounts()
                        for key in list(store._engine.holds._counts):    # as if each were used
                            store._engine.holds.take_over(key)
                    return True
                answer: Answer = {}
            else:
                try:
                    answer = getattr(self, command.pop("do"))(**command)
                except (layerstore.LayerStoreError, OSError) as err:
                    answer = {"error": type(err).__name__, "text": str(err)}
                except BaseException:
                    answer = {"error": traceback.format_exc()}
            talk.write(json.dumps(answer).encode() + b"\n")
            talk.flush()
        return False

    def open(self, store: int) -> Answer:
        self.stores[store] = Store(self.root, options={"durability": "none"})
        return {}

    def close(self, store: int) -> Answer:
        self.stores.pop(store).close()
        self.layers = {at: layer for at, layer in self.layers.items() if at[0] != store}
        self.boxes = {at: box for at, box in self.boxes.items() if at[0] != store}
        return {}

    def register(self, store: int, number: int, tar: int, parent: str, bare: bool) -> Answer:
        on: Any = self.stores[store].map().get(parent, parent) if bare else parent
        layer = self.layers[store, number] = self.stores[store].register(TARS[tar], on)
        below = layer.parent.chain_id if layer.parent else ""
        return {"chain": layer.chain_id} if below == parent else {"error": f"it stands on {below}"}

    def get(self, store: int, number: int, chain: str) -> Answer:
        layer = self.layers[store, number] = self.stores[store].get(chain)
        return {"chain": layer.chain_id}

    def release(self, store: int, number: int) -> Answer:
        return {"gone": [gone.chain_id for gone in self.layers[store, number].release()]}

    def remove(self, store: int, chain: str) -> Answer:
        return {"gone": [gone.chain_id for gone in self.stores[store].remove(chain)]}

    def create_box(self, store: int, number: int, name: str, parent: str) -> Answer:
        box = self.boxes[store, number] = self.stores[store].create_rw_layer(name, parent)
        return {"chain": box.parent.chain_id if box.parent else ""}

    def get_box(self, store: int, number: int, name: str) -> Answer:
        box = self.boxes[store, number] = self.stores[store].get_rw_layer(name)
        return {"chain": box.parent.chain_id if box.parent else ""}

    def release_box(self, store: int, number: int) -> Answer:
        return {"gone": [gone.chain_id for gone in self.boxes[store, number].release()]}

    def commit(self, store: int, number: int, box: int, tar: int) -> Answer:
        at = self.boxes[store, box]
        at.apply_diff(TARS[tar])
        layer = self.layers[store, number] = at.commit()
        return {"chain": layer.chain_id, "parent": layer.parent.chain_id if layer.parent else ""}

    def make_image(self, store: int, chain: str, tag: str, moment: str) -> Answer:
        image = Images(self.stores[store]).create(chain, {"created": moment}, tags=tag)
        return {"id": image.id, "layers": list(image.layers)}

    def load(self, store: int, tars: list[int], tag: str) -> Answer:
        image, = Images(self.stores[store]).load(image_archive([TARS[tar] for tar in tars], tag))
        return {"id": image.id, "layers": list(image.layers)}

    def remove_image(self, store: int, tag: str) -> Answer:
        return {"gone": [gone.chain_id for gone in Images(self.stores[store]).remove(tag, force=True).layers]}

    def look(self, store: int) -> Answer:
        """All that the store shows, and what it holds read through."""
        found = self.stores[store]
        for (at, _), layer in self.layers.items():
            with suppress(LayerDoesNotExistError):
                if at == store and layer._reference in layer._record.references:
                    assert {entry.path for entry in layer.merged().files()} >= {entry.path for entry in layer.files()}
                    assert layer.tar_stream().read()
                    if layer.parent:
                        layer.parent.metadata()
        return {"parents": {chain: layer.parent.chain_id if layer.parent else "" for chain, layer in found.map().items()},
                "boxes": found.mounts(), "images": sorted(image.id for image in Images(found).list())}

    def cleanup(self, store: int) -> Answer:
        self.stores[store].cleanup()
        return {}


# ---- a history -----------------------------------------------------------------------------------
class WrongError(Exception):
    pass


class History:
    def __init__(self, root: Path, address: Path, draw: random.Random) -> None:
        self.root, self.draw, self.model = root, draw, Model()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(address))
        self.listener.listen()
        self.listener.settimeout(30)
        self.talks: dict[int, Any] = {}               # process -> the line to it
        self.first = subprocess.Popen(ownspace.python("histories.py", "--actor", str(root), str(address)))
        self.origin = self.talks.pop(self.accept())   # a process without stores, which all others are forked from
        self.stores: list[tuple[int, int]] = []       # (process, number in it)
        self.numbers = 0
        self.known: dict[tuple[str, int], str] = {}   # every reference ever given to an open store: also released ones
        self.known_boxes: dict[tuple[str, int], str] = {}
        self.chains: list[str] = ["sha256:" + "0" * 64]
        self.done: list[str] = []
        self.verbs: Counter[str] = Counter()

    def accept(self) -> int:
        line, _ = self.listener.accept()
        line.settimeout(60)
        talk = line.makefile("rwb")
        pid = int(json.loads(talk.readline()))
        self.talks[pid] = talk
        return pid

    def spawn(self) -> int:
        self.compare("fork", self.say(self.origin, do="fork"), {})
        return self.accept()

    def tell(self, pid: int, **command: Any) -> Answer:
        return self.say(self.talks[pid], **command)

    @staticmethod
    def say(talk: Any, **command: Any) -> Answer:
        talk.write(json.dumps(command).encode() + b"\n")
        talk.flush()
        return json.loads(talk.readline() or b'{"error": "the process died"}')

    def name(self, at: tuple[int, int]) -> str:
        return f"{at[0]}/{at[1]}"

    def step(self) -> None:
        verb = self.draw.choices(
            ["register", "get", "release", "again", "remove", "create_box", "get_box", "release_box", "box_again", "commit",
             "make_image", "load", "remove_image", "reopen", "fork", "kill", "cleanup", "look"],
            [14, 8, 14, 1, 5, 6, 2, 7, 1, 2, 3, 3, 4, 2, 1, 1, 1, 3])[0]
        self.verbs[verb] += 1
        at = self.draw.choice(self.stores)
        self.numbers += 1
        getattr(self, f"do_{verb}")(at, self.name(at), self.numbers)

    def compare(self, what: str, got: Any, wanted: Any) -> None:
        if got != wanted:
            raise WrongError(f"{what}\n  got      {got}\n  expected {wanted}")

    def ask(self, at: tuple[int, int], wanted: Answer, **command: Any) -> Answer:
        self.done.append(f"{at} {command} -> {wanted}")
        got = self.tell(at[0], store=at[1], **command)
        text = got.pop("text", "")
        self.compare(f"{command} by {at} {text}", got, wanted)
        return got

    def take(self, at: tuple[int, int], store: str, number: int, known: dict[tuple[str, int], str], of: str,
             wanted: Answer, **command: Any) -> None:
        """A reference of this number, noted as known if the call is to give it."""
        if "chain" in wanted:
            known[store, number] = of
        self.ask(at, wanted, number=number, **command)

    def some_chain(self) -> str:
        there = sorted(self.model.parents)
        return self.draw.choice(there) if there and self.draw.random() < 0.9 else self.draw.choice(self.chains)

    def depth(self, chain: str) -> int:
        return 1 + self.depth(self.model.parents.get(chain, "")) if chain else 0

    def do_register(self, at: tuple[int, int], store: str, number: int) -> None:
        parent = self.some_chain() if self.draw.random() < 0.75 else ""
        if self.depth(parent) >= DEPTH:
            parent = ""
        tar = self.draw.randrange(len(TARS))
        chain = str(create_chain_id([parent, DIFFS[tar]]) if parent else DIFFS[tar])
        wanted = self.model.register(store, number, chain, parent)
        if "chain" in wanted:
            self.chains.append(chain)
        self.take(at, store, number, self.known, chain, wanted, do="register", tar=tar, parent=parent, bare=self.draw.random() < 0.5)

    def do_get(self, at: tuple[int, int], store: str, number: int) -> None:
        chain = self.some_chain()
        self.take(at, store, number, self.known, chain, self.model.get(store, number, chain), do="get", chain=chain)

    def release(self, at: tuple[int, int], store: str, mine: list[tuple[str, int]], box: bool = False) -> None:
        """Release one of these references."""
        if mine:
            number, do = self.draw.choice(mine)[1], "release_box" if box else "release"
            known = (self.known_boxes if box else self.known)[store, number]
            self.ask(at, getattr(self.model, do)(store, number, known), do=do, number=number)

    def do_release(self, at: tuple[int, int], store: str, _: int) -> None:
        self.release(at, store, [held for held in self.model.references if held[0] == store])

    def do_again(self, at: tuple[int, int], store: str, _: int) -> None:
        """Release what was released before."""
        self.release(at, store, [held for held in self.known if held[0] == store and held not in self.model.references])

    def do_remove(self, at: tuple[int, int], _: str, __: int) -> None:
        chain = self.some_chain()
        self.ask(at, self.model.remove(chain), do="remove", chain=chain)

    def do_create_box(self, at: tuple[int, int], store: str, number: int) -> None:
        name, parent = self.draw.choice(BOXES), self.some_chain() if self.draw.random() < 0.9 else ""
        wanted = self.model.create_box(store, number, name, parent)
        self.take(at, store, number, self.known_boxes, name, wanted, do="create_box", name=name, parent=parent)

    def do_get_box(self, at: tuple[int, int], store: str, number: int) -> None:
        name = self.draw.choice(BOXES)
        self.take(at, store, number, self.known_boxes, name, self.model.get_box(store, number, name), do="get_box", name=name)

    def do_release_box(self, at: tuple[int, int], store: str, _: int) -> None:
        self.release(at, store, [held for held in self.model.box_references if held[0] == store], box=True)

    def do_box_again(self, at: tuple[int, int], store: str, _: int) -> None:
        mine = [held for held in self.known_boxes if held[0] == store and held not in self.model.box_references]
        self.release(at, store, mine, box=True)

    def do_commit(self, at: tuple[int, int], store: str, number: int) -> None:
        mine = [held for held in self.model.box_references if held[0] == store]
        if mine and self.depth(self.model.boxes[self.known_boxes[box := self.draw.choice(mine)]]) < DEPTH:
            parent = self.model.boxes[self.known_boxes[box]]
            command = {"do": "commit", "number": number, "box": box[1], "tar": self.draw.randrange(len(TARS))}
            self.done.append(f"{at} {command} on {parent}")
            got = self.tell(at[0], store=at[1], **command)
            self.compare(f"{command} by {at}: {got}", got.get("parent"), parent)
            self.model.register(store, number, got["chain"], parent)
            self.known[store, number] = got["chain"]
            self.chains.append(got["chain"])

    def do_make_image(self, at: tuple[int, int], _: str, number: int) -> None:
        chain, tag = self.some_chain(), self.draw.choice(TAGS)
        command = {"do": "make_image", "chain": chain, "tag": tag, "moment": f"2026-01-01T00:00:00.{number:09}Z"}
        if chain not in self.model.parents:
            self.ask(at, {"error": GONE}, **command)
            return
        below = [chain]
        while self.model.parents[below[0]]:
            below.insert(0, self.model.parents[below[0]])
        self.made(at, command, tag, below)

    def do_load(self, at: tuple[int, int], _: str, __: int) -> None:
        tars, tag = self.draw.choices(range(len(TARS)), k=self.draw.randint(1, 3)), self.draw.choice(TAGS)
        chains = [str(create_chain_id([DIFFS[tar] for tar in tars[: n + 1]])) for n in range(len(tars))]
        new = [chain for chain in chains if chain not in self.model.parents]
        for below, chain in zip(["", *chains], chains, strict=False):
            self.model.parents.setdefault(chain, below)
        self.model.released.update(new)           # load() made them, and released them
        self.chains += new
        self.made(at, {"do": "load", "tars": tars, "tag": tag}, tag, chains)

    def made(self, at: tuple[int, int], command: Answer, tag: str, layers: list[str]) -> None:
        self.done.append(f"{at} {command} -> {layers}")
        got = self.tell(at[0], store=at[1], **command)
        self.compare(f"{command} by {at}: {got}", got.get("layers"), layers)
        self.model.make_image(got["id"], layers, tag)

    def do_remove_image(self, at: tuple[int, int], _: str, __: int) -> None:
        tag = self.draw.choice(TAGS)
        self.ask(at, self.model.remove_image(tag), do="remove_image", tag=tag)

    def do_reopen(self, at: tuple[int, int], store: str, _: int) -> None:
        self.forget(store)
        self.ask(at, {}, do="close")
        self.ask(at, {}, do="open")

    def forget(self, store: str) -> None:
        self.model.end_store(store)
        self.known = {held: chain for held, chain in self.known.items() if held[0] != store}
        self.known_boxes = {held: name for held, name in self.known_boxes.items() if held[0] != store}

    def do_fork(self, at: tuple[int, int], _: str, __: int) -> None:
        """The child takes the place of another process, or stands beside all of them."""
        if len(self.talks) > 2:
            self.do_kill(self.draw.choice([other for other in self.stores if other[0] != at[0]]), "", 0)
        self.done.append(f"{at} fork")
        self.compare("fork", self.tell(at[0], do="fork"), {})
        child = self.accept()
        for mine in [mine for mine in self.stores if mine[0] == at[0]]:
            copy = (child, mine[1])
            self.stores.append(copy)
            self.model.fork_store(self.name(mine), self.name(copy))
            for known in (self.known, self.known_boxes):
                known |= {(self.name(copy), held[1]): what for held, what in known.items() if held[0] == self.name(mine)}

    def do_kill(self, at: tuple[int, int], _: str, __: int) -> None:
        if len(self.talks) < 2:
            return
        self.done.append(f"kill {at[0]}")
        os.kill(at[0], signal.SIGKILL)
        talk = self.talks.pop(at[0])
        with suppress(OSError):
            talk.readline()                           # until it is dead
        talk.close()
        for gone in [store for store in self.stores if store[0] == at[0]]:
            self.stores.remove(gone)
            self.forget(self.name(gone))

    def do_cleanup(self, at: tuple[int, int], _: str, __: int) -> None:
        self.ask(at, {}, do="cleanup")

    def do_look(self, at: tuple[int, int], _: str, __: int) -> None:
        self.ask(at, {"parents": self.model.parents, "boxes": sorted(self.model.boxes), "images": sorted(self.model.images)}, do="look")

    def people(self) -> None:
        """Two processes with one or two stores each."""
        while len(self.talks) < 2:
            pid = self.spawn()
            for number in range(self.draw.randint(1, 2)):
                self.ask((pid, number), {}, do="open")
                self.stores.append((pid, number))

    def run(self, until: float, steps: int) -> int:
        count = 0
        while count < steps and time.monotonic() < until:
            self.people()
            self.step()
            got, wanted = on_disk(self.root), in_the_model(self.model)
            for what, value in wanted.items():
                self.compare(f"{what}, after {self.done[-1] if self.done else 'nothing'}", got[what], value)
            count += 1
        return count

    def end(self) -> None:
        for pid in list(self.talks):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            self.talks.pop(pid).close()
        self.first.kill()
        self.first.wait()
        self.origin.close()
        self.listener.close()


def histories(plan: dict[str, Any], place: Path) -> dict[str, Any]:
    draw, until = random.Random(plan["seed"]), time.monotonic() + plan["seconds"]
    steps, count, verbs = 0, 0, Counter()
    while ownspace.goes_on(until, steps < plan.get("least", 0)):
        count += 1
        history = History(place / f"docker{count}", place / f"line{count}", random.Random(draw.randrange(1 << 40)))
        try:
            steps += history.run(max(until, time.monotonic() + 2), plan.get("steps", 1500))
        except WrongError as err:
            return {"plan": plan, "steps": steps, "verbs": verbs, "problems": [str(err), *history.done[-plan.get("tell", 40):]]}
        finally:
            history.end()
            verbs += history.verbs
    return {"plan": plan, "steps": steps, "histories": count, "verbs": verbs, "problems": []}


if __name__ == "__main__":
    if sys.argv[1] == "--actor":
        Actor(sys.argv[2], sys.argv[3]).serve()
        os._exit(0)
    ownspace.main(histories)
