"""What runs while the power goes: layers and boxes made, committed, released, each step told before and after.

    python workload.py JSON     {"root", "durability", "seed", "fd", "stop": number of the report to stop behind, or 0}

Reports are JSON lines on the descriptor `fd`, which is no file of the disk under test. A step's first line says what is
about to begin, with all that is needed to know what it would make; its second, with "done", that the call returned.
"""

import hashlib
import json
import os
import random
import sys
from pathlib import Path

import seeded

from layerstore import CreateRWLayerOpts, Store

INIT_TEXT = "made before the box\n"


def init(root: str) -> None:
    Path(root, "made-by-init").write_text(INIT_TEXT)


class Workload:
    def __init__(self, plan: dict) -> None:
        self.fd, self.stop, self.reports = plan["fd"], plan["stop"], 0
        self.draw = random.Random(plan["seed"])
        self.store = Store(plan["root"], options={"durability": plan["durability"]})
        # What is there already is taken hold of, as a program should.
        self.layers = {chain: self.store.get(chain) for chain in sorted(self.store.map())}
        self.boxes = {name: self.store.get_rw_layer(name) for name in sorted(self.store.mounts())}
        self.files: dict[str, dict[str, str]] = {}     # box -> name -> text written there
        self.count = 0
        self.tell(do="open", held=sorted(self.layers), boxes=sorted(self.boxes), done=True)

    def tell(self, **what) -> None:
        os.write(self.fd, json.dumps(what).encode() + b"\n")
        self.reports += 1
        if self.reports == self.stop:
            os.read(0, 1)   # nothing ever comes; at the reader's end it is over
            os._exit(1)

    def step(self) -> None:
        some = self.draw.random()
        if some < 0.35 or not self.layers:
            self.register()
        elif some < 0.50:
            self.make_box()
        elif some < 0.72 and self.files:
            self.write_and_commit()
        elif some < 0.85:
            self.release()
        elif some < 0.95 and self.boxes:
            self.release_box()
        elif some < 0.98:
            self.tell(do="cleanup")
            self.store.cleanup()
            self.tell(do="cleanup", done=True)

    def parent(self) -> str:
        return self.draw.choice(["", *sorted(self.layers)[:40]])

    def register(self) -> None:
        seed, parent = self.draw.randrange(1000, 1 << 40), self.parent()
        known = seeded.layer(seed)
        chain = seeded.chain_id(parent, known.diff_id)
        self.tell(do="register", seed=seed, parent=parent, chain=chain, diff=known.diff_id)
        self.layers[chain] = self.store.register(known.tar, parent)
        self.tell(do="register", chain=chain, done=True)

    def make_box(self) -> None:
        name, parent, with_init = f"box-{self.draw.randrange(1 << 30)}", self.parent(), self.draw.random() < 0.6
        self.tell(do="make", name=name, parent=parent, init=with_init)
        self.boxes[name] = self.store.create_rw_layer(name, parent, CreateRWLayerOpts(init_func=init) if with_init else None)
        self.files[name] = {}
        self.tell(do="make", name=name, done=True)

    def write_and_commit(self) -> None:
        name = self.draw.choice(sorted(self.files))
        box, files = self.boxes[name], self.files[name]
        with box.mounted() as path:
            for _ in range(self.draw.randrange(1, 8)):
                file = f"w{self.draw.randrange(20)}"
                files[file] = self.draw.randbytes(self.draw.choice((0, 10, 3000, 40_000))).hex()
                Path(path, file).write_text(files[file])
        if self.draw.random() < 0.7:
            digests = {file: hashlib.sha256(text.encode()).hexdigest() for file, text in files.items()}
            parent = box.parent.chain_id if box.parent else ""
            self.tell(do="commit", name=name, parent=parent, files=digests)
            layer = box.commit()
            self.layers[layer.chain_id] = layer
            self.tell(do="commit", parent=parent, chain=layer.chain_id, diff=layer.diff_id, files=digests, done=True)

    def release(self) -> None:
        chain = self.draw.choice(sorted(self.layers))
        self.tell(do="release", chain=chain)
        self.store.release(self.layers.pop(chain))
        # Another handle of the same layer (a commit of nothing new) keeps it; so does what stands on it.
        self.tell(do="release", chain=chain, done=True)

    def release_box(self) -> None:
        name = self.draw.choice(sorted(self.boxes))
        self.tell(do="unmake", name=name)
        self.files.pop(name, None)
        self.store.release_rw_layer(self.boxes.pop(name))
        self.tell(do="unmake", name=name, done=True)


if __name__ == "__main__":
    work = Workload(json.loads(sys.argv[1]))
    try:
        while True:
            work.step()
    except BaseException as error:
        work.tell(do="failed", error=f"{type(error).__name__}: {error}")
        os._exit(1)
