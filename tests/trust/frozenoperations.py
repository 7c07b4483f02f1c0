"""Operations on snapshots and forks that faults are walked over, and what is looked at behind each failure.

What these leave has random names, so the disk is not as it was. Instead: every box and snapshot shows its tree of before
or of after, by its directories alone and at its path; behind cleanup() nothing is unowned and verify() finds nothing;
what was there is there; the same call then succeeds.
"""

import gc
import hashlib
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import faultkit
import stackview
from faultkit import Ground
from operations import INIT, Operation


# ---- the start ------------------------------------------------------------------------------------
def write(box: Any, **files: str) -> None:
    with box.mounted() as path:
        for name, text in files.items():
            Path(path, name).write_text(text * 700)
            os.utime(f"{path}/{name}", (1e9, 1e9))


def mounted(g: Ground) -> None:
    g.path = g.rw.mount()


def with_init(g: Ground) -> None:
    g.rw = g.store.create_rw_layer("init", g.above.chain_id, INIT)
    g.rw.apply_diff(Ground.EDIT)
    mounted(g)


def busy(g: Ground) -> None:
    mounted(g)
    g.inside = os.open(g.path, os.O_RDONLY | os.O_DIRECTORY)


def on_snapshot(g: Ground) -> None:
    g.first = g.rw.snapshot()
    write(g.rw, three="three", new="other")


def on_snapshot_mounted(g: Ground) -> None:
    on_snapshot(g)
    mounted(g)


def on_snapshots(g: Ground) -> None:
    """Three of them, the one in the middle loose."""
    on_snapshot(g)
    middle = g.rw.snapshot()
    write(g.rw, four="four")
    g.last = g.rw.snapshot()
    middle.release()


def on_loose(g: Ground) -> None:
    on_snapshots(g)
    g.first.release()
    g.last.release()
    mounted(g)


def forked(g: Ground) -> None:
    on_snapshot(g)
    g.forked = g.rw.fork("forked")
    write(g.forked, forked="forked")


# ---- whether it is right ----------------------------------------------------------------------------
def frozen(g: Ground, snapshot: Any) -> bool:
    """It shows what its box shows, whose changes since then are none."""
    seen = stackview.views(g.root)
    return seen.snapshots[snapshot.id] == seen.boxes[g.rw.name] and g.rw.changes(snapshot) == []


def shows_what_first_did(g: Ground, value: Any) -> bool:
    seen = stackview.views(g.root)
    return seen.boxes["rw"] == seen.snapshots[g.first.id]


def shows_the_layer(g: Ground, value: Any) -> bool:
    return sorted(os.listdir(g.path)) == ["a", "c", "e"] and g.rw.changes() == []


def shows_what_rw_does(g: Ground, fork: Any) -> bool:
    seen = stackview.views(g.root)
    return seen.boxes[fork.name] == seen.boxes["rw"]


def committed(of: str, depth: int) -> Callable[[Ground, Any], bool]:
    def right(g: Ground, layer: Any) -> bool:
        snapshot, chain = getattr(g, of), layer
        for _ in range(depth):
            faultkit.tar_of(chain.tar_stream)       # raises unless it is the DiffID's
            chain = chain.parent
        return layer.cache_id == snapshot.id and chain.chain_id == g.above.chain_id

    return right


def squashed(g: Ground, value: Any) -> bool:
    return sorted(os.listdir(g.path)) == ["c", "e", "four", "new", "sub", "three"] and len(stackview.stack_of(g.root, g.store.get_mount_id("rw"))) <= 4


def changed_since(g: Ground, value: Any) -> bool:
    return [str(change) for change in value] == ["C /new", "A /three"]


def shown_backwards(g: Ground, value: Any) -> bool:
    return [str(change) for change in value] == ["A /a", "A /a/f", "C /c", "D /new", "D /sub"]


def frozen_operation(run: Callable[[Ground], Any], right: Callable[[Ground, Any], bool], prepare: Callable[[Ground], object], **how: Any) -> Operation:
    return Operation(run, right, lambda g, value: None, prepare, leaves="a tree", **how)


def snapshots(g: Ground) -> Any:
    return g.rw.snapshot()


OPERATIONS = {
    "Snapshot": frozen_operation(snapshots, frozen, lambda g: None),
    "SnapshotMounted": frozen_operation(snapshots, frozen, mounted),
    "SnapshotDurable": frozen_operation(snapshots, frozen, mounted, durability="full"),
    "SnapshotOfInit": frozen_operation(snapshots, frozen, with_init),
    "SnapshotClone": frozen_operation(snapshots, frozen, busy),
    "Rollback": frozen_operation(lambda g: g.rw.rollback(g.first), shows_what_first_did, on_snapshot),
    "RollbackMounted": frozen_operation(lambda g: g.rw.rollback(g.above), shows_the_layer, on_snapshot_mounted),
    "ForkOfBox": frozen_operation(lambda g: g.rw.fork("fork"), shows_what_rw_does, on_snapshot_mounted),
    "ForkOfSnapshot": frozen_operation(lambda g: g.first.fork("fork"), shows_what_rw_does, lambda g: setattr(g, "first", g.rw.snapshot())),
    "CommitSnapshot": frozen_operation(lambda g: g.first.commit(), committed("first", 1), on_snapshot),
    "CommitSnapshots": frozen_operation(lambda g: g.last.commit(), committed("last", 3), on_snapshots),
    "SquashBox": frozen_operation(lambda g: g.rw.squash(), squashed, on_loose),
    "ReleaseSnapshot": frozen_operation(lambda g: g.last.release(), lambda g, value: value == [] and len(g.store.snapshots()) == 1, on_snapshots),
    "ReleaseForkedBox": frozen_operation(lambda g: g.forked.release(), lambda g, value: value == [] and "forked" not in g.store.mounts(), forked),
    "ChangesSince": Operation(lambda g: g.rw.changes(g.first), changed_since, prepare=on_snapshot),
    "StoreDiff": Operation(lambda g: g.store.diff(g.first, g.above), shown_backwards, prepare=on_snapshot),
}  # fmt: skip


# ---- what is looked at --------------------------------------------------------------------------------
class There(NamedTuple):
    """What is there: trees, and layers with their tars; of two grounds the same: without times and random names."""

    views: stackview.Views
    layers: dict[str, str]

    @classmethod
    def now(cls, g: Ground) -> "There":
        with g.again() as store:
            return cls(views_of(g), layers_of(store))


def layers_of(store: Any) -> dict[str, str]:
    """What is in each layer, by its depth: there is one chain. Read to its end, a tar is that of the DiffID."""
    found = {}
    for layer in store.map().values():
        below, depth = layer.parent, 0
        while below is not None:
            below, depth = below.parent, depth + 1
        faultkit.tar_of(layer.tar_stream)
        with layer.tar_stream() as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            entries = [(entry.name, entry.type, entry.mode, entry.size, tar.extractfile(entry).read() if entry.isreg() else b"") for entry in tar]
        found[f"layer {depth}"] = hashlib.sha256(repr(entries).encode()).hexdigest()
    return found


def views_of(g: Ground) -> stackview.Views:
    """Trees without times, snapshots by number."""
    seen, order = stackview.views(g.root), g.__dict__.setdefault("order", {})
    for id in sorted(seen.snapshots, key=lambda id: stackview.records(g.root)[id].joinpath("created").read_text()):
        order.setdefault(id, f"number {len(order)}")
    boxes, at_paths, snapshots = ({name: stackview.timeless(tree) for name, tree in views.items()} for views in seen)
    return stackview.Views(boxes, at_paths, {order[id]: tree for id, tree in snapshots.items()})


def settle(g: Ground, threads: int) -> None:
    """What the store does beside its calls is done, and its thread has ended; it begins anew with the next job."""
    g.store._engine.driver.host.ground.background.close()
    gc.collect()
    faultkit.settled_threads(threads)


def wrong_of(g: Ground, before: There, after: There, *, finished: bool) -> list[str]:
    """What is not as it must be; calls cleanup(), and leaves it to the caller to do the operation again."""
    def trees() -> list[str]:
        return stackview.compared(views_of(g), before.views, after.views, finished=finished, written=b"", exact=True)

    found = trees()
    with g.again() as store:
        found += [str(problem) for problem in store.verify() if problem.kind != "orphan"]
        store.cleanup()
        found += [f"behind cleanup() {problem}" for problem in [*store.verify(), *store.orphans()]]
        layers = layers_of(store)
        known = before.layers | after.layers
        if lost := (before.layers.keys() & after.layers.keys()) - layers.keys():
            found.append(f"layers are lost: {lost}")
        found += [f"layer {chain} is another" for chain, tar in layers.items() if known.get(chain) != tar]
    return found + [f"behind cleanup() {line}" for line in trees()]
