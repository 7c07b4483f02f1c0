"""Cut the power under a workload, look at what is left, again and again.

    python tests/trust/ownspace.py powercut.py '{"kind": "ext4", "durability": "full", "seed": 1, "cuts": 4}'

One plan is one file system and one seed. Each cut: the workload runs (workload.py), the power goes behind a certain
report or some milliseconds later, the file system is mounted again, and what is there is held against what the
workload had been told. With "full" the next workload goes on from there; else it begins with an empty root.

What must hold after a cut:
    full      what had returned is there and exact; what is visible is exact; cleanup() leaves nothing
              unowned, and then verify() is []; everything works
    ordered   what is visible is exact, or verify() names it; then as with none
    none      opening works; what is visible and damaged is named by verify(); cleanup() works; a layer registered again
              is good, if need be after repair(); all can be released, and a new layer is good
"""

import errno
import hashlib
import json
import os
import random
import select
import subprocess
import tarfile
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import disk
import ownspace
import seeded
import stackview
import workload
from cutdisk import CutDisk
from driven import DRIVER, LAYERDB

from layerstore import CreateRWLayerOpts, Store
from layerstore.layerdb.transaction import FileMetadataTransaction

Line = dict[str, Any]
FRESH = seeded.layer(0)


# ---- what was promised ---------------------------------------------------------------------------
class Promised:
    """What the workload's reports amount to."""

    def __init__(self) -> None:
        self.layers: dict[str, Line] = {}   # every layer that was ever about to be: parent, diff, seed or files
        self.boxes: dict[str, Line] = {}
        self.held: set[str] = set()
        self.kept: set[str] = set()         # boxes
        self.pending: list[Line] = []       # begun and never done: registers, commits ...
        self.returned = 0

    def read(self, line: Line) -> None:
        do, done = line["do"], line.get("done", False)
        if do == "failed":
            return
        if not done:
            self.pending.append(line)
        else:
            self.pending = []
            self.returned += 1
        if do == "open":
            self.held, self.kept = set(line["held"]), set(line["boxes"])
        elif do == "register" and not done:
            self.layers[line["chain"]] = line
        elif do == "register" or (do == "commit" and done):
            self.layers.setdefault(line["chain"], line)
            self.held.add(line["chain"])
        elif do == "release" and not done:
            self.held.discard(line["chain"])
        elif do == "make":
            if done:
                self.kept.add(line["name"])
            else:
                self.boxes[line["name"]] = line
        elif do == "unmake" and not done:
            self.kept.discard(line["name"])

    def required(self) -> set[str]:
        """Return layers that are held, those below them, and those below boxes."""
        todo = [*self.held, *(self.boxes[name]["parent"] for name in self.kept)]
        found: set[str] = set()
        while todo:
            chain = todo.pop()
            if chain and chain not in found:
                found.add(chain)
                todo.append(self.layers[chain]["parent"])
        return found


# ---- is it whole ---------------------------------------------------------------------------------
class Judge:
    """Holds a layer on disk against the same layer unpacked in peace, on a tmpfs."""

    def __init__(self, place: Path) -> None:
        self.store = Store(place, options={"durability": "none"})
        self.trees: dict[int, dict[bytes, tuple]] = {}

    def tree(self, seed: int) -> dict[bytes, tuple]:
        if seed not in self.trees:
            with self.store.register(seeded.layer(seed).tar) as layer:
                self.trees[seed] = self.state(layer)
        return self.trees[seed]

    @staticmethod
    def state(layer: Any) -> dict[bytes, tuple]:
        with stackview.files_of(Path(layer.metadata()["UpperDir"]).parent) as top:
            state = disk.disk_state(top, times=True, content=False)
            del state[b""]      # the layer's root has no entry in the tar, so no time of its own; nor has a whiteout
            for name, facts in state.items():
                if facts[0] == "file":
                    state[name] = *facts, hashlib.sha256(Path(top, os.fsdecode(name)).read_bytes()).hexdigest()[:16]
                elif facts[0] == "char":
                    state[name] = facts[:-1]
        return state

    def faults(self, layer: Any, known: Line | None) -> list[str]:
        """What is wrong with this layer; known is the report that says what it should be."""
        found = []
        try:
            with layer.tar_stream() as stream:
                size = sum(map(len, iter(lambda: stream.read(1 << 20), b"")))    # raises unless it is the DiffID's tar
                if size != stream.size:
                    found.append(f"{size} bytes instead of {stream.size}")
            if known is None:
                return found
            if known["diff"] is not None and layer.diff_id != known["diff"]:
                found.append(f"DiffID {layer.diff_id}")
            if (layer.parent.chain_id if layer.parent else "") != known["parent"]:
                found.append("another parent")
            if "seed" in known:
                found += disk.changed(self.tree(known["seed"]), self.state(layer))[:4]
            else:
                with layer.tar_stream() as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                    found += self.committed(tar, known["files"])
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
        return found

    @staticmethod
    def committed(tar: tarfile.TarFile, files: dict[str, str]) -> list[str]:
        seen = {entry.name.lstrip("./"): hashlib.sha256(tar.extractfile(entry).read()).hexdigest() for entry in tar if entry.isreg()}
        return [f"{name} is not what was committed" for name in files if seen.get(name) != files[name]]


def owned_by_nobody(root: Path, store: Store) -> list[str]:
    """Whatever lies in the store's directories and belongs to no layer and no box: by Docker's own layout."""
    layerdb, driver = root / LAYERDB, root / DRIVER
    layers, boxes = store.map(), store.mounts()
    ids = {layer.cache_id for layer in layers.values()}
    for name in boxes:
        ids.add(store.get_mount_id(name))
        with suppress(FileNotFoundError):
            ids.add((layerdb / "mounts" / name / "init-id").read_text().strip())
    ids |= stackview.owned(root)

    def names(path: Path) -> set[str]:
        return set(os.listdir(path)) if path.exists() else set()

    links = {name: os.readlink(driver / "l" / name) for name in names(driver / "l")}
    found = [f"sha256/{name}" for name in names(layerdb / "sha256") ^ {chain.split(":")[1] for chain in layers}]
    found += [f"mounts/{name}" for name in names(layerdb / "mounts") ^ set(boxes)]
    found += [f"tmp/{name}" for name in names(layerdb / "tmp")]
    found += [f"{DRIVER}/{name}" for name in (names(driver) - {"l", "backingFsBlockDev"}) ^ ids]
    found += [f"l/{name} -> {to}" for name, to in links.items() if to.split("/")[1] not in ids]
    found += [f"no link for {id}" for id in ids - {to.split("/")[1] for to in links.values()}]
    return sorted(found)


def cleaned(root: Path, store: Store) -> list[str]:
    """What verify() says before cleanup(), which is called here, and what is left after it."""
    wrong = [f"before cleanup() {problem}" for problem in store.verify() if problem.kind != "orphan"]
    store.cleanup()
    wrong += [f"after cleanup() {problem}" for problem in store.verify()]
    return wrong + [f"after cleanup() {name} is left" for name in owned_by_nobody(root, store)]


# ---- one cut -------------------------------------------------------------------------------------
class Stirrer(threading.Thread):
    """Does what the kernel would do in a longer life: the log is written, some file's data, or all, at any moment."""

    def __init__(self, point: Path, draw: random.Random) -> None:
        super().__init__(daemon=True)
        self.point, self.draw, self.over = point, draw, threading.Event()

    def run(self) -> None:
        while not self.over.wait(self.draw.uniform(0.0005, 0.012)):
            with suppress(OSError):
                some = self.draw.random()
                if some < 0.7:      # the log, with every name made so far, but no other file's data
                    with open(self.point / "stirred", "ab", buffering=0) as out:
                        out.write(b"x")
                        os.fsync(out)
                elif some < 0.9:    # some file's data
                    where = self.point
                    while where.is_dir() and not where.is_symlink():
                        where /= self.draw.choice(sorted(os.listdir(where)) or ["none"])
                    fd = os.open(where, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                    try:
                        os.fdatasync(fd)
                    finally:
                        os.close(fd)
                else:
                    fd = os.open(self.point, os.O_RDONLY)
                    try:
                        disk._libc.syncfs(fd)
                    finally:
                        os.close(fd)


class Cutter:
    def __init__(self, plan: dict[str, Any], place: Path) -> None:
        self.plan, self.place = plan, place
        self.draw = random.Random(f"{plan['kind']} {plan['durability']} {plan['seed']}")
        self.disk = CutDisk(place, plan["kind"], plan.get("options", ""))
        self.judge = Judge(place / "judge")
        self.problems: list[str] = []
        self.seen = dict.fromkeys(("cuts", "returned", "whole", "gone", "lost", "damaged", "told", "kept bad"), 0)

    def wrong(self, text: str) -> None:
        self.problems.append(f"cut {self.seen['cuts']} of {json.dumps(self.plan)}: {text}")

    def run(self) -> dict[str, Any]:
        promised, root = Promised(), self.disk.point / "docker"
        for n in range(self.plan["cuts"]):
            if self.plan["durability"] != "full":
                promised, root = Promised(), self.disk.point / f"docker-{n}"
            problems = len(self.problems)
            self.work_and_cut(root, promised)
            self.disk.again()
            self.seen["cuts"] += 1
            try:
                if self.plan["durability"] == "full":
                    self.nothing_lost(root, promised)
                else:
                    self.damage_is_told(root, promised)
            except Exception as error:
                self.wrong("".join(traceback.format_exception(error))[-1500:])
            if len(self.problems) > problems:
                promised, root = Promised(), self.disk.point / f"docker-{n + 1}"
        self.disk.off()
        return {"plan": self.plan, "problems": self.problems, **self.seen}

    def work_and_cut(self, root: Path, promised: Promised) -> None:
        """Let the workload run until its moment, cut, end it, and read what it said."""
        reports = self.plan.get("reports") or self.draw.randrange(1, 40)
        stands = self.plan.get("stands", self.draw.random() < 0.4)      # the cut comes while nothing runs
        delay = 0.0 if stands else self.draw.choice((0.0, self.draw.uniform(0, 0.004), self.draw.uniform(0, 0.03)))
        stirrer = Stirrer(self.disk.point, random.Random(self.draw.random())) if self.plan.get("stir", self.draw.random() < 0.6) else None
        out, into = os.pipe()
        todo = {"root": str(root), "durability": self.plan["durability"], "seed": self.draw.randrange(1 << 40),
                "fd": into, "stop": reports if stands else 0}
        process = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "--",
                                    *ownspace.python("workload.py", json.dumps(todo))],
                                   stdin=subprocess.PIPE, pass_fds=[into], env=ownspace.environment())
        os.close(into)
        if stirrer:
            stirrer.start()
        lines, rest = 0, b""
        deadline = time.monotonic() + 30
        while lines < reports:
            if not select.select([out], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"the workload says nothing more after {lines} reports")
            piece = os.read(out, 1 << 16)
            if not piece:
                break
            rest += piece
            lines = rest.count(b"\n")
        time.sleep(delay)
        before = (select.select([out], [], [], 0)[0] and os.read(out, 1 << 16)) or b""
        self.disk.cut()
        process.kill()
        process.wait()
        process.stdin.close()
        if stirrer:
            stirrer.over.set()
            stirrer.join()
        after = b"".join(iter(lambda: os.read(out, 1 << 16), b""))
        os.close(out)
        for line in (rest + before + after).split(b"\n")[:-1]:
            promised.read(json.loads(line))
        if b'"failed"' in rest + before:
            self.wrong(f"the workload failed before the cut: {(rest + before)[-600:].decode()}")
        self.seen["returned"] += promised.returned
        promised.returned = 0

    # ---- durability "full" ---------------------------------------------------------------------
    def nothing_lost(self, root: Path, promised: Promised) -> None:
        store = Store(root, options={"durability": "full"})
        layers, boxes = store.map(), store.mounts()
        for chain in sorted(promised.required() - layers.keys()):
            self.seen["lost"] += 1
            self.wrong(f"{promised.layers[chain]['do']} had returned layer {chain}, and it is gone")
        for chain, layer in layers.items():
            known, faults = self.judged(promised, chain, layer)
            if known is None:
                self.wrong(f"layer {chain} was never made")
            if faults:
                self.wrong(f"layer {chain} ({'returned' if chain in promised.required() else 'not returned'}): {faults}")
        self.seen["gone"] += len(promised.layers.keys() - layers.keys())
        for name in sorted(promised.kept - set(boxes)):
            self.seen["lost"] += 1
            self.wrong(f"box {name} is gone")
        for text in cleaned(root, store):
            self.wrong(text)
        self.everything_works(store, promised)
        # The next workload takes hold of all that is here.
        promised.held, promised.kept = set(store.map()), set(store.mounts())
        promised.pending = []
        store.close()
        with open("/proc/self/mounts") as table:
            left = [line for line in table if str(root) in line]
        if left:
            self.wrong(f"mounts left: {left}")

    def judged(self, promised: Promised, chain: str, layer: Any) -> tuple[Line | None, list[str]]:
        """The report that tells of this layer, if any does, and what is wrong with the layer."""
        known = promised.layers.get(chain) or self.unfinished_commit(promised, layer)
        if known is not None:
            promised.layers.setdefault(chain, {**known, "chain": chain})
        faults = self.judge.faults(layer, known)
        self.seen["damaged" if faults else "whole"] += 1
        return known, faults

    @staticmethod
    def unfinished_commit(promised: Promised, layer: Any) -> Line | None:
        """The commit that was under way, if this can be its layer."""
        parent = layer.parent.chain_id if layer.parent else ""
        for line in promised.pending:
            if line["do"] == "commit" and line["parent"] == parent:
                return {**line, "diff": None}
        return None

    def everything_works(self, store: Store, promised: Promised) -> None:
        for name in store.mounts():
            box = store.get_rw_layer(name)
            with box.mounted() as path:
                if promised.boxes[name]["init"] and Path(path, "made-by-init").read_text() != workload.INIT_TEXT:
                    self.wrong(f"box {name}: what its init_func wrote is not there")
                Path(path, "written-after").write_text("x")
                os.unlink(f"{path}/written-after")
        for line in promised.pending:
            if line["do"] == "register" and (not line["parent"] or line["parent"] in store.map()):
                layer = store.register(seeded.layer(line["seed"]).tar, line["parent"])
                if faults := self.judge.faults(layer, line):
                    self.wrong(f"registered again, layer {layer.chain_id}: {faults}")
            elif line["do"] == "make" and line["name"] not in store.mounts():
                opts = CreateRWLayerOpts(init_func=workload.init) if line["init"] else None
                with store.create_rw_layer(line["name"], line["parent"], opts) as box, box.mounted() as path:
                    Path(path, "w").write_text("x")

    # ---- durability "ordered" and "none" ---------------------------------------------------------
    def damage_is_told(self, root: Path, promised: Promised) -> None:
        durability = self.plan["durability"]
        store = Store(root, options={"durability": durability})
        told = {problem.subject for problem in store.verify() if problem.kind != "orphan"}
        layers = store.map()
        self.seen["lost"] += len(promised.required() - layers.keys())
        bad = []
        for chain, layer in layers.items():
            _, faults = self.judged(promised, chain, layer)
            if faults:
                bad.append(chain)
                if chain in told:
                    self.seen["told"] += 1
                else:
                    self.wrong(f"layer {chain} is damaged and verify() does not say so: {faults}; it names {sorted(told)}")
        store.cleanup()
        for known in list(promised.layers.values()):
            if "seed" in known and (not known["parent"] or known["parent"] in store.map()):
                self.again(store, known)
        for name in store.mounts():
            store.release_rw_layer(store.get_rw_layer(name))
        for subject in {problem.subject for problem in store.verify() if problem.kind == "metadata"} - store.map().keys():
            store.remove(subject)       # nothing but its names was written, and it may have stood on any other one
        for layer in [store.get(chain) for chain in store.map()]:
            store.release(layer)
        if store.map() or store.mounts():
            self.wrong(f"not everything could be released: {list(store.map())}, {store.mounts()}")
        # With that, whatever was whole or told to be damaged is no more, and all begins anew.
        store.cleanup()
        with store.register(FRESH.tar) as layer:
            if faults := self.judge.faults(layer, {"parent": "", "diff": FRESH.diff_id, "seed": 0}):
                self.wrong(f"a new layer: {faults}")
        store.close()

    def again(self, store: Store, known: Line) -> None:
        """Register a layer once more, whatever is left of it. It is good then, or it was there, damaged: repair() helps."""
        tar = seeded.layer(known["seed"]).tar
        with store.register(tar, known["parent"]) as layer:
            if self.judge.faults(layer, known):
                self.seen["kept bad"] += 1
                store.repair(known["chain"], tar)
                if faults := self.judge.faults(layer, known):
                    self.wrong(f"registered again and repaired, layer {known['chain']}: {faults}")
                for problem in store.verify(known["chain"]):
                    self.wrong(f"registered again and repaired, {problem}")


# ---- made first without durability, then with it -----------------------------------------------------
def known_already(plan: dict[str, Any], place: Path) -> dict[str, Any]:
    """One store makes a layer with durability "none", another one stands on it with "full"; then the power goes.

    "upon" says what the second one does: "register" the same layer, "child": a layer on it, "box": a box on it.
    """
    loop, judge, below, above = CutDisk(place, plan["kind"]), Judge(place / "judge"), seeded.layer(2001), seeded.layer(2002)
    root, problems = loop.point / "docker", []
    with Store(root, options={"durability": "full"}):
        pass
    known = {below.diff_id: {"parent": "", "seed": 2001, "diff": below.diff_id}}
    with Store(root, options={"durability": "none"}) as careless, Store(root, options={"durability": "full"}) as store:
        careless.register(below.tar)
        if plan["upon"] == "register":
            store.register(below.tar)
        elif plan["upon"] == "child":
            child = store.register(above.tar, below.diff_id)
            known[child.chain_id] = {"parent": below.diff_id, "seed": 2002, "diff": above.diff_id}
        else:
            store.create_rw_layer("box", below.diff_id)
        loop.cut()
    disk.unmount_below(loop.point)
    loop.again()
    with Store(root) as store:
        for chain, line in known.items():
            try:
                if faults := judge.faults(store.get(chain), line):
                    problems.append(f"layer {chain} is damaged: {faults}")
            except Exception as error:
                problems.append(f"layer {chain}: {type(error).__name__}: {error}")
        if plan["upon"] == "box" and store.mounts() != ["box"]:
            problems.append(f"boxes: {store.mounts()}")
    loop.off()
    return {"plan": plan, "problems": problems}


def behind_the_rename(plan: dict[str, Any], place: Path) -> dict[str, Any]:
    """The file system dies, as with its disk, between the rename that makes something visible and what syncs its name.

    "behind" says in which call: "register", "create", "commit". It must not say that all is well: an XFS in that state
    answers 0 to the fsync of a directory.
    """
    loop, problems = CutDisk(place, plan["kind"]), []
    root, renamed = loop.point / "docker", FileMetadataTransaction._publish

    def publish(*given: Any) -> None:
        renamed(*given)
        loop.cut()

    with Store(root, options={"durability": "full"}) as store:
        layer = store.register(seeded.layer(2001).tar)
        box = store.create_rw_layer("box", layer.chain_id)
        with box.mounted() as path:
            Path(path, "new").write_text("new")
        calls = {"register": lambda: store.register(seeded.layer(2002).tar, layer.chain_id),
                 "create": lambda: store.create_rw_layer("other", layer.chain_id), "commit": box.commit}
        FileMetadataTransaction._publish = publish      # type: ignore[method-assign]
        try:
            problems.append(f"it returned {calls[plan['behind']]()!r}")
        except OSError as error:
            if error.errno != errno.EIO:
                problems.append(f"it said {error!r}")
        finally:
            FileMetadataTransaction._publish = renamed  # type: ignore[method-assign]
    disk.unmount_below(loop.point)
    loop.again()
    with Store(root) as store:
        store.cleanup()
        problems += map(str, store.verify())
        if store.map().keys() != {layer.chain_id} or store.mounts() != ["box"]:
            problems.append(f"there is {[*store.map()]} and {store.mounts()}")
    loop.off()
    return {"plan": plan, "problems": problems}


def right_behind_a_release(plan: dict[str, Any], place: Path) -> dict[str, Any]:
    """A layer is released under another one, a released one is asked for again, and the power goes: both are on the disk.

    "marks" is the durability. The result has "left": the marks that a cut left, of what there should be.
    """
    loop = CutDisk(place, plan["kind"])
    root = loop.point / "docker"
    with Store(root, options={"durability": plan["marks"]}) as store:
        bases = [store.register(seeded.layer(seed).tar) for seed in (1, 2)]
        tops = [store.register(seeded.layer(seed + 10).tar, base) for seed, base in zip((1, 2), bases, strict=True)]
        bases[1].release()
        os.sync()
        bases[0].release()
        store.get(bases[1].chain_id)
        loop.cut()
    loop.again()
    left = [(root / "image/overlay2/layerdb/sha256" / base.chain_id.encoded / "released").exists() for base in bases]
    problems = []
    with Store(root) as store:
        for top, base, gone in zip(tops, bases, left, strict=True):
            went = [item.chain_id for item in store.get(top.chain_id).release()]
            if went != [top.chain_id, base.chain_id][: 1 + gone]:
                problems.append(f"released {top}, and {went} went")
        problems += map(str, store.verify())
    loop.off()
    return {"plan": plan, "problems": problems, "left": left}


def cut(plan: dict[str, Any], place: Path) -> dict[str, Any]:
    special = {"upon": known_already, "behind": behind_the_rename, "marks": right_behind_a_release}
    return next((special[key](plan, place) for key in special if key in plan), None) or Cutter(plan, place).run()


if __name__ == "__main__":
    ownspace.main(cut)
