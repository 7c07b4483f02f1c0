"""Kill a process at one system call after the other, and look at what it leaves.

    python tests/trust/ownspace.py killwalk.py '{"act": "register", "first": 1, "step": 1}'

One plan is one act. It is done once in peace, which tells what it makes. Then for each n: the same start, a child
process does the act and is killed on entry of its n-th system call (killwalk.c); the root is opened anew and held
against what was there before and what the act makes. With "all" every call counts, not only those that change
something. With "kind": "ext4" or "xfs" the power is cut there too: only what had reached the disk is left.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import acts
import disk
import faultkit
import frozenacts
import ownspace
import powercut
import seeded
import stackview
from acts import BASE, NEW, TOP, Act, images_of, nothing, two_layers, with_box
from cutdisk import CutDisk
from driven import DRIVER, FILES, LAYERDB
from seeded import chain

from layerstore import Store

ACTS = acts.ACTS | frozenacts.ACTS


class Walk(ctypes.Structure):
    _fields_ = (("counted", ctypes.c_int64), ("call", ctypes.c_int64), ("killed", ctypes.c_int32),
                ("status", ctypes.c_int32))


def copy_of(start: Path, root: Path) -> None:
    """The start again, whatever there is of the root."""
    if root.exists():
        disk.unmount_below(root)
        disk.remove_tree(root)
    subprocess.run(["cp", "-a", str(start), str(root)], check=True)


# ---- what is there -------------------------------------------------------------------------------
def shape(root: Path, store: Store) -> dict[str, frozenset[str]]:
    """Every path below the root, by owner and with no random name in it; not what is in layers' diff directories."""
    layerdb = root / LAYERDB
    owners = {layer.cache_id: id for id, layer in store.map().items()}
    for name in store.mounts():
        owners[store.get_mount_id(name)] = f"box {name}"
        if (init := layerdb / "mounts" / name / "init-id").exists():
            owners[init.read_text().strip()] = f"init of {name}"
    # Of snapshots, and of what they left below, only the kinds of their files are held against each other: their ids are random.
    owners = dict.fromkeys(stackview.owned(root), "what is frozen") | owners
    layers = {id.split(":")[1]: id for id in store.map()}
    found: dict[str, set[str]] = {}
    for path in disk.inventory(root):
        parts = path.split("/")
        owner = ""
        if parts[0] == DRIVER and len(parts) > 1:
            if parts[1] == "l" and len(parts) > 2:
                owner, parts = owners.get(os.readlink(root / path).split("/")[1], "nobody"), ["l"]
            elif parts[1] in owners:
                owner, parts = owners[parts[1]], parts[2:]
                if (owner in layers.values() or owner == "what is frozen") and parts[:1] == [FILES]:
                    parts = [FILES]
        elif parts[:4] == ["image", DRIVER, "layerdb", "sha256"] and parts[4:5] and parts[4] in layers:
            owner, parts = layers[parts[4]], ["layerdb", *parts[5:]]
        elif parts[:4] == ["image", DRIVER, "layerdb", "snapshots"]:
            owner, parts = "what is frozen", ["layerdb", *parts[5:]]
        elif parts[:4] == ["image", DRIVER, "layerdb", "mounts"] and parts[4:5] and parts[4] in store.mounts():
            owner, parts = f"box {parts[4]}", ["layerdb", *parts[5:]]
        found.setdefault(owner, set()).add("/".join(parts))
    return {owner: frozenset(paths) for owner, paths in found.items()}


def traced(lib: ctypes.CDLL, root: Path, act: Act) -> NoReturn:
    """The act in this process, which is traced while it does it, and ends with it."""
    store: Any = root if act is ACTS["open"] else Store(root, options={"durability": "full"})
    ready = act.ready(store)
    assert lib.killwalk_be_traced() == 0
    os.kill(os.getpid(), signal.SIGSTOP)
    act.do(store, ready)
    lib.killwalk_end()
    os._exit(0)


class State(NamedTuple):
    layers: frozenset[str]
    boxes: frozenset[str]
    images: frozenset[str]
    shape: dict[str, frozenset[str]]
    views: stackview.Views


class Walker:
    def __init__(self, plan: dict[str, Any], place: Path) -> None:
        self.plan, self.place, self.act = plan, place, ACTS[plan["act"]]
        self.lib, self.judge = ctypes.CDLL(faultkit.compiled("killwalk")), powercut.Judge(place / "judge")
        self.disk = CutDisk(place, plan["kind"]) if plan.get("kind") else None
        self.root = (self.disk.point if self.disk else place) / "docker"
        self.start = place / "start"
        self.known: dict[str, Any] = {}
        self.problems: list[str] = []
        for seeds in ((BASE,), (BASE, TOP), (BASE, TOP, NEW), (NEW,)):
            self.known[chain(*seeds)] = {"parent": chain(*seeds[:-1]), "seed": seeds[-1],
                                         "diff": seeded.layer(seeds[-1]).diff_id}

    # ---- in the child --------------------------------------------------------------------------
    def child(self, act: Act, root: Path, at: int) -> Walk:
        """The act in a process of its own, killed at that call (0: never)."""

        def work() -> None:
            if act is ACTS["open"]:     # in a new interpreter: this one knows already what the host can do
                os.execv(sys.executable, ownspace.python("killwalk.py", "--open", self.lib._name, str(root)))
            traced(self.lib, root, act)

        pid, walk = ownspace.forked(work), Walk()
        if error := self.lib.killwalk_run(pid, ctypes.c_int64(at), int(self.plan.get("all", False)), ctypes.byref(walk)):
            raise OSError(error, os.strerror(error))
        if not walk.killed and walk.status:
            raise RuntimeError(f"the act failed by itself: status {walk.status:#x}")
        return walk

    # ---- the start -----------------------------------------------------------------------------
    def lay(self) -> None:
        disk.unmount_below(self.root.parent) if self.disk else None
        copy_of(self.start, self.root)
        if self.disk:
            disk._libc.syncfs(self.disk.fd)

    def state(self, root: Path) -> State:
        with Store(root) as store:
            return State(frozenset(store.map()), frozenset(store.mounts()), images_of(store), shape(root, store), stackview.views(root))

    def prepare(self) -> None:
        with Store(self.start) as store:
            self.act.before(store)
        self.before = self.state(self.start)
        for name in self.act.leaves:
            self.root, root = self.start, self.root
            half = ACTS[name]
            if half.before is two_layers or half.before is with_box:
                self.child(half, self.start, {"mount": 12}.get(name, 40))
            self.root = root
        if self.act is ACTS["open"]:
            disk.remove_tree(self.start)
            self.start.mkdir()
        self.lay()
        self.total = self.child(self.act, self.root, 0).counted
        with Store(self.root) as store:
            if self.act is not ACTS["cleanup"]:
                store.cleanup()
            for id, layer in store.map().items():
                if id not in self.known:
                    self.known[id] = {"parent": layer.parent.chain_id if layer.parent else "", "diff": layer.diff_id, "files": {}}
        self.after = self.state(self.root)
        if self.act.leaves:     # what was left half-way was the acts' own to lose
            self.before = self.after

    # ---- after each kill -------------------------------------------------------------------------
    def judge_the_views(self, finished: bool) -> list[str]:
        """What boxes and snapshots show, by their directories alone, and boxes at their paths where a mount survived."""
        if not self.act.shows:
            return []
        views = self.before.views, self.after.views
        return stackview.compared(stackview.views(self.root), *views, finished=finished, written=frozenacts.LATE, exact=not self.disk)

    def judge_what_is_left(self, finished: bool) -> list[str]:
        wrong = self.judge_the_views(finished)
        with Store(self.root, options={"durability": "full"}) as store:
            layers, boxes = store.map(), set(store.mounts())
            for what, now, before, after in (("images", images_of(store), self.before.images, self.after.images),
                                             ("layers", set(layers), self.before.layers, self.after.layers),
                                             ("boxes", boxes, self.before.boxes, self.after.boxes)):
                must = after if finished else before & after
                if lost := must - now:
                    wrong.append(f"{what} lost: {sorted(lost)}")
                # What was deleted may come back with the power, but whole: durable is what was made, not what was removed.
                if extra := now - (after if finished and not self.disk else before | after):
                    wrong.append(f"{what} from nowhere: {sorted(extra)}")
            if finished and not self.act.kept(store):
                wrong.append("what the act had done is lost")
            for id, layer in layers.items():
                if faults := self.judge.faults(layer, self.known.get(id)):
                    wrong.append(f"layer {id}: {faults}")
            wrong += powercut.cleaned(self.root, store)
            wrong += [f"after cleanup() {problem}" for problem in self.judge_the_views(finished)]
            for owner, paths in shape(self.root, store).items():
                one, other = self.before.shape.get(owner), self.after.shape.get(owner)
                least = (one or other or frozenset()) & (other or one or frozenset())
                most = (one or frozenset()) | (other or frozenset())
                if self.act.shows:          # what boxes hold is looked at by itself
                    paths, least, most = (frozenset(path for path in some if not path.startswith(f"{FILES}/")) for some in (paths, least, most))
                if owner == "what is frozen":
                    least, most = frozenset(), frozenacts.FILES
                least -= {"committed", "layerdb/released"}       # marks that come when the layer is there
                if not least <= paths <= most:
                    wrong.append(f"after cleanup() {owner or 'the root'}: {sorted(least - paths)} missing, {sorted(paths - most)} too many")
            if mounts := [point for point in disk.mounts_below(self.root) if point != str(self.root)]:
                wrong.append(f"after cleanup() mounted: {mounts}")
        with Store(self.root, options={"durability": "full"}) as store:
            self.act.again(store)
            if self.act.again is not nothing:
                wrong += [f"after doing it again {problem}" for problem in store.verify()]
        return wrong

    def run(self) -> dict[str, Any]:
        self.prepare()
        # So many kills, spread over the calls; or one at each step-th.
        step = max(1, self.total // self.plan["kills"]) if "kills" in self.plan else self.plan.get("step", 1)
        kills, n, calls = 0, self.plan.get("first", 1), set()
        until = time.monotonic() + self.plan.get("seconds", 3600)
        while time.monotonic() < until:
            self.lay()
            walk = self.child(self.act, self.root, n)
            if self.disk:
                disk.unmount_below(self.disk.point)
                self.disk.cut()
                self.disk.again()
            kills += walk.killed
            try:
                wrong = self.judge_what_is_left(not walk.killed)
            except Exception as error:
                wrong = ["".join(traceback.format_exception(error))[-1500:]]
            if wrong:
                self.problems.append(f"{json.dumps({**self.plan, 'first': n})} at call {n} (number {walk.call}): {wrong}")
            calls.add(walk.call)
            if not walk.killed or len(self.problems) > 20:
                break
            n += step
        disk.unmount_below(self.place)
        return {"plan": self.plan, "kills": kills, "of": self.total, "calls": len(calls), "problems": self.problems}


if __name__ == "__main__":
    if sys.argv[1] == "--open":
        traced(ctypes.CDLL(sys.argv[2]), Path(sys.argv[3]), ACTS["open"])
    ownspace.main(lambda plan, place: Walker(plan, place).run())
