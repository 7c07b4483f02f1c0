"""Kill a process at one system call of a snapshot, rollback, fork, commit, squash or release, and look at what is left.

    python tests/trust/ownspace.py $PWD/tests/sandboxes/crashwalk.py '{"act": "snapshot", "first": 1, "step": 1}'

One plan is one act. It is done once in peace: how the root was before and after it is all that may be there. Then for each
n: the same start, a child does the act and is killed on entry of its n-th system call (tests/trust/killwalk.c); the root is
opened anew. What a box or a snapshot shows is what it showed before or shows after; what the act returned is there;
cleanup() leaves nothing unowned, and takes nothing that is owned; the act succeeds now; released, all is gone.
With "kind": "ext4" or "xfs" the power is cut there too, at durability "full": only what had reached the disk is left.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "trust")]

import disk  # noqa: E402
import faultkit  # noqa: E402
import ownspace  # noqa: E402
import tarkit  # noqa: E402
from cutdisk import CutDisk  # noqa: E402
from driven import DRIVER  # noqa: E402
from killwalk import Walk  # noqa: E402
from plain import make_init  # noqa: E402
from trees import Tree, difference, lines, read_tree, said  # noqa: E402

from layerstore import CreateRWLayerOpts, Layer, Store  # noqa: E402

TAR = tarkit.dir("etc/") + tarkit.file("etc/hosts", b"h" * 5000) + tarkit.file("top", b"top") + tarkit.dir("old/") + tarkit.file("old/one", b"1") + tarkit.end()
FILES = 3


def write(box, **files: str) -> None:
    with box.mounted() as path:
        for name, text in files.items():
            Path(path, name).write_text(text)


# ---- starts and acts -------------------------------------------------------------------------------
def start(store: Store, opts: CreateRWLayerOpts | None = None) -> None:
    """A box on two snapshots, with something in it; another one on the first of them."""
    box = store.create_rw_layer("box", store.register(TAR), opts)
    write(box, one="1")
    first = box.snapshot()
    with box.mounted() as path:
        os.unlink(f"{path}/top")
        os.mkdir(f"{path}/new")
        os.link(f"{path}/one", f"{path}/linked")
    write(box, two="2")
    box.snapshot()
    write(box, three="3" * 5000)
    with box.mounted() as path:
        for number in range(FILES):
            Path(path, f"new/{number}").write_text("n" * number)
        os.unlink(f"{path}/old/one")
    write(first.fork("other"), other="o")


def with_init(store: Store) -> None:
    start(store, CreateRWLayerOpts(init_func=make_init))


def with_loose(store: Store) -> None:
    start(store)
    box = store.get_rw_layer("box")
    for number in range(4):
        write(box, **{f"loose{number}": "l", "same": "s" * (number + 1)})
        box.snapshot().release()
    write(box, last="l")


def fresh_box(store: Store) -> None:
    write(store.create_rw_layer("box", store.register(TAR), CreateRWLayerOpts(init_func=make_init)), one="1")


def committed(store: Store) -> None:
    start(store)
    snaps(store)[1].commit()


def the(store: Store):
    return store.get_rw_layer("box")


def snaps(store: Store):
    return [one for one in store.snapshots() if one.box == "box"]


class Act(NamedTuple):
    before: Callable[[Store], None]
    ready: Callable[[Store], Any]           # in the child, before the walk begins
    do: Callable[[Any], object]
    again: bool = True                      # it can be done once more in whatever is left


def mounted(store: Store):
    box = the(store)
    box.mount()
    return box


ACTS = {
    "snapshot": Act(start, the, lambda box: box.snapshot()),
    "snapshot, mounted": Act(start, mounted, lambda box: box.snapshot()),
    "snapshot, in use": Act(start, lambda store: (mounted(store), os.open(the(store).mount(), os.O_RDONLY)), lambda pair: pair[0].snapshot()),
    "snapshot, the first with an init layer": Act(fresh_box, the, lambda box: box.snapshot()),
    "rollback": Act(start, lambda store: (the(store), snaps(store)[0]), lambda pair: pair[0].rollback(pair[1])),
    "rollback, mounted": Act(start, lambda store: (mounted(store), snaps(store)[1]), lambda pair: pair[0].rollback(pair[1])),
    "rollback to a layer": Act(with_init, lambda store: (mounted(store), the(store).parent), lambda pair: pair[0].rollback(pair[1])),
    "rollback to nothing": Act(start, the, lambda box: box.rollback(""), again=True),
    "rollback by force": Act(start, lambda store: (mounted(store), snaps(store)[0], os.open(the(store).mount(), os.O_RDONLY)),
                             lambda three: three[0].rollback(three[1], force=True)),
    "fork": Act(with_init, lambda store: snaps(store)[1], lambda snap: snap.fork("fork"), again=False),
    "fork of a box": Act(start, mounted, lambda box: box.fork("fork"), again=False),
    "commit": Act(start, lambda store: snaps(store)[1], lambda snap: snap.commit()),
    "commit with an init layer": Act(with_init, lambda store: snaps(store)[1], lambda snap: snap.commit()),
    "commit, loose ones below": Act(with_loose, lambda store: the(store).snapshot(), lambda snap: snap.commit(), again=False),
    "commit, squash": Act(start, lambda store: snaps(store)[1], lambda snap: snap.commit(squash=True)),
    "commit of a box": Act(start, the, lambda box: box.commit()),
    "release": Act(start, lambda store: snaps(store)[1], lambda snap: snap.release(), again=False),
    "release of a committed one": Act(committed, lambda store: snaps(store)[1], lambda snap: snap.release(), again=False),
    "release of a box": Act(with_loose, the, lambda box: box.release(), again=False),
    "squash": Act(with_loose, the, lambda box: box.squash()),
    "squash, mounted": Act(with_loose, mounted, lambda box: box.squash()),
}


# ---- what is there -------------------------------------------------------------------------------
class State(NamedTuple):
    boxes: dict[str, Tree]
    snapshots: list[tuple[str, str, Tree]]      # id, box, tree
    layers: set[str]


def view(store: Store, thing) -> Tree:
    with store.create_rw_layer("to be seen", thing) as box, box.mounted() as path:
        tree = read_tree(path)
    del tree[b""]
    return tree


def state_of(store: Store) -> tuple[State, list[str]]:
    """All that it shows; and what it says of it that does not agree."""
    wrong: list[str] = []
    boxes: dict[str, Tree] = {}
    for name in store.mounts():
        box = store.get_rw_layer(name)
        with box.mounted() as path:
            boxes[name] = read_tree(path)
        del boxes[name][b""]
        under = view(store, box.parent) if box.parent else {}
        if b"init.d" in boxes[name] and b"init.d" not in under:
            under |= {path: node for path, node in boxes[name].items() if path.startswith(b"init.d")}
        if said(box.changes()) != difference(boxes[name], under):
            wrong.append(f"changes() of {name}: {said(box.changes())}, not {difference(boxes[name], under)}")
        if sorted(os.fsencode(entry.path) for entry in box.files() if entry.path != ".") != sorted(boxes[name]):
            wrong.append(f"files() of {name}")
        if isinstance(box.base, Layer) and box.base.chain_id != box.parent.chain_id:
            wrong.append(f"base of {name}: {box.base}")
    found = [(snap.id, snap.box, view(store, snap)) for snap in store.snapshots()]
    return State(boxes, found, set(map(str, store.map()))), wrong


def unlike(tree: Tree, *may: Tree) -> list[str]:
    """Nothing, if it is one of these."""
    told = [lines(one, tree, root=False) for one in may]
    return [] if [] in told else min(told, key=len)


class Walker:
    def __init__(self, plan: dict[str, Any], place: Path):
        self.plan, self.place, self.act = plan, place, ACTS[plan["act"]]
        self.lib = ctypes.CDLL(faultkit.compiled("killwalk"))
        self.disk = CutDisk(place, plan["kind"]) if plan.get("kind") else None
        self.options = {"durability": "full" if self.disk else "none"}
        self.root, self.start = (self.disk.point if self.disk else place) / "docker", place / "start"
        self.problems: list[str] = []

    def lay(self) -> None:
        if self.root.exists():
            disk.unmount_below(self.root)
            disk.remove_tree(self.root)
        subprocess.run(["cp", "-a", str(self.start), str(self.root)], check=True)
        if self.disk:
            disk._libc.syncfs(self.disk.fd)

    def child(self, at: int) -> Walk:
        def work() -> None:
            store = Store(self.root, options=self.options)
            ready = self.act.ready(store)
            assert self.lib.killwalk_be_traced() == 0
            os.kill(os.getpid(), signal.SIGSTOP)
            self.act.do(ready)
            self.lib.killwalk_end()
            os._exit(0)

        pid, walk = ownspace.forked(work), Walk()
        if error := self.lib.killwalk_run(pid, ctypes.c_int64(at), int(self.plan.get("all", False)), ctypes.byref(walk)):
            raise OSError(error, os.strerror(error))
        if not walk.killed and walk.status:
            raise RuntimeError(f"the act failed by itself: status {walk.status:#x}")
        return walk

    def prepare(self) -> None:
        with Store(self.start, options=self.options) as store:
            self.act.before(store)
        with Store(self.start, options=self.options) as store:
            self.before, wrong = state_of(store)
        assert wrong == [], wrong
        self.lay()
        self.total = self.child(0).counted
        with Store(self.root, options=self.options) as store:
            self.after, wrong = state_of(store)
        assert wrong == [], wrong

    # ---- after a kill ------------------------------------------------------------------------------
    def held_beside(self, now: State, finished: bool) -> list[str]:
        wrong = []
        for name, tree in now.boxes.items():
            may = [state.boxes[name] for state in ([self.after] if finished else [self.before, self.after]) if name in state.boxes]
            if told := unlike(tree, *may) if may else ["from nowhere"]:
                wrong.append(f"box {name}: {told[:6]}")
        must = self.after.boxes.keys() if finished else self.before.boxes.keys() & self.after.boxes.keys()
        if lost := must - now.boxes.keys():
            wrong.append(f"boxes lost: {lost}")
        known = {id: tree for state in (self.before, self.after) for id, _, tree in state.snapshots}
        mine = {id: tree for id, _, tree in now.snapshots}
        old = {id for id, _, _ in self.before.snapshots} & {id for id, _, _ in self.after.snapshots}
        if lost := old - mine.keys():
            wrong.append(f"snapshots lost: {lost}")
        for id, tree in mine.items():
            may = [known[id]] if id in known else [state.snapshots[-1][2] for state in (self.after,) if len(state.snapshots) > len(self.before.snapshots)]
            if told := unlike(tree, *may) if may else ["from nowhere"]:
                wrong.append(f"snapshot {id}: {told[:6]}")
        counts = sorted({len(self.before.snapshots), len(self.after.snapshots)})
        if not (len(mine) == counts[-1] if finished and len(self.after.snapshots) == counts[-1] else counts[0] <= len(mine) <= counts[-1]):
            wrong.append(f"{len(mine)} snapshots, not {counts}")
        if lost := (self.after.layers if finished else self.before.layers & self.after.layers) - now.layers:
            wrong.append(f"layers lost: {lost}")
        if more := now.layers - self.before.layers - self.after.layers:
            wrong.append(f"layers from nowhere: {more}")
        return wrong

    def judge(self, finished: bool) -> list[str]:
        path = self.root / DRIVER
        alive = [Path(point) for point in disk.mounts_below(path)]
        with Store(self.root, options=self.options) as store:
            lost = []
            # What is written at the path of a box that is going to be rolled back goes with the rest.
            if not self.plan["act"].startswith("rollback") and alive and "box" in store.mounts() and len(alive) == 1 and store.get_mount_id("box") in str(alive[0]):
                # The mount that survived goes on, and what is written there is the box's.
                (alive[0] / "late").write_text("late")
                box = the(store)
                with box.mounted():
                    pass
                box.unmount()
                with box.mounted() as again:
                    if os.path.exists(f"{again}/late"):
                        os.unlink(f"{again}/late")
                    else:
                        lost = ["what the mount that survived wrote is lost"]
            now, wrong = state_of(store)
            wrong += lost + self.held_beside(now, finished)
        disk.unmount_below(self.root)
        with Store(self.root, options=self.options) as store:
            store.cleanup()
            wrong += [f"after cleanup() {one}" for one in [*store.orphans(), *store.verify()]]
            again, told = state_of(store)
            wrong += [f"after cleanup() {one}" for one in told + self.held_beside(again, finished)]
            if [id for id, _, _ in again.snapshots] != [id for id, _, _ in now.snapshots]:
                wrong.append("cleanup() took a snapshot")
            if self.act.again and not wrong:
                ready = self.act.ready(store)
                self.act.do(ready)
                for one in ready if isinstance(ready, tuple) else ():
                    if isinstance(one, int):
                        os.close(one)
        disk.unmount_below(self.root)
        return wrong or self.all_gone()

    def all_gone(self) -> list[str]:
        with Store(self.root, options=self.options) as store:
            wrong = [str(one) for one in store.verify()]
            for name in store.mounts():
                store.get_rw_layer(name).release()
            for snap in store.snapshots():
                snap.release()
            while layers := store.map():
                for id in layers:
                    with contextlib.suppress(Exception):
                        store.remove(id)
                if store.map().keys() == layers.keys():
                    wrong.append(f"layers that cannot be removed: {list(layers)}")
                    break
            store.cleanup()
            wrong += [f"orphan {one}" for one in store.orphans()]
        left = [name for name in os.listdir(self.root / DRIVER) if name not in ("l", "backingFsBlockDev")]
        links = os.listdir(self.root / DRIVER / "l")
        return wrong + ([f"released everything, and there is {left + links}"] if left or links else [])

    def run(self) -> dict[str, Any]:
        self.prepare()
        step = max(1, self.total // self.plan["kills"]) if "kills" in self.plan else self.plan.get("step", 1)
        kills, n = 0, self.plan.get("first", 1)
        if "kills" in self.plan:
            n = 1 + n % step
        while True:
            self.lay()
            walk = self.child(n)
            if self.disk:
                disk.unmount_below(self.disk.point)
                self.disk.cut()
                self.disk.again()
            kills += walk.killed
            try:
                wrong = self.judge(not walk.killed)
            except Exception as error:
                wrong = ["".join(traceback.format_exception(error))[-2500:]]
            if wrong:
                self.problems.append(f"{json.dumps({**self.plan, 'first': n})} at call {n} (number {walk.call}): {wrong}")
            if not walk.killed or len(self.problems) > 6:
                break
            n += step
        disk.unmount_below(self.place)
        return {"plan": self.plan, "kills": kills, "of": self.total, "problems": self.problems}


if __name__ == "__main__":
    ownspace.main(lambda plan, place: Walker(plan, place).run())
