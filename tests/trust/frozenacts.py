"""Acts on snapshots and forks, for the walks: as those in acts.py."""

import os
from pathlib import Path
from typing import Any

import driven
from acts import BASE, TOP, Act, all_held, nothing, with_box
from seeded import chain

from layerstore import Store

LATE = b"late"
# What lies in a frozen directory and in a snapshot's record.
FILES = frozenset(["", driven.FILES, "link", "lower", "work", "committed", "l", *(
    f"layerdb{name}" for name in ("", "/box", "/created", "/parent", "/lower", "/layer"))])


# ---- the start -------------------------------------------------------------------------------------
def write(box: Any, **files: str) -> None:
    with box.mounted() as path:
        for name, text in files.items():
            Path(path, name).write_text(text * 700)
            os.utime(f"{path}/{name}", (1e9, 1e9))


def with_snapshot(store: Store) -> None:
    """A box with an init layer on a snapshot, with more on top."""
    with_box(store)
    box = store.get_rw_layer("box")
    box.snapshot()
    write(box, three="three", two="other")
    with box.mounted() as path:
        os.unlink(f"{path}/one")


def with_snapshots(store: Store) -> None:
    """Three of them, the one in the middle loose."""
    with_snapshot(store)
    box = store.get_rw_layer("box")
    middle = box.snapshot()
    write(box, four="four")
    box.snapshot()
    middle.release()


def with_loose(store: Store) -> None:
    """A box on a snapshot, and three loose ones on that."""
    with_snapshot(store)
    box, made = store.get_rw_layer("box"), []
    for name in ("four", "five", "six"):
        made.append(box.snapshot())
        write(box, **{name: name})
    for each in made:
        each.release()


def released(store: Store) -> None:
    """Three snapshots of a box that is gone; all the rest goes with them."""
    with_snapshots(store)
    held = all_held(store)
    store.get_rw_layer("box").release()
    for layer in held.values():
        layer.release()


def with_fork(store: Store) -> None:
    with_snapshot(store)
    fork = store.get_rw_layer("box").fork("fork")
    write(fork, forked="forked")
    write(store.get_rw_layer("box"), after="after")


# ---- the call --------------------------------------------------------------------------------------
def box_of(store: Store) -> Any:
    return store.get_rw_layer("box")


def mounted(store: Store) -> Any:
    box = box_of(store)
    box.mount()
    return box


def busy(store: Store) -> Any:
    box = box_of(store)
    return box, os.open(box.mount(), os.O_RDONLY | os.O_DIRECTORY)


def write_late(box: Any) -> Any:
    """Write into what is mounted already, and sync nothing."""
    path = os.path.join(box.metadata()["MergedDir"], os.fsdecode(LATE))
    with open(path, "w") as out:
        out.write("late" * 5000)
    os.utime(path, (1e9, 1e9))
    os.utime(os.path.dirname(path), (1e9, 1e9))
    return box


def newest(store: Store) -> Any:
    return store.snapshots()[-1]


def works(store: Store) -> None:
    """Whatever is left, everything can be done with it."""
    held = all_held(store)
    for name in store.mounts():
        box = store.get_rw_layer(name)
        with box.mounted() as path:
            there = sorted(os.listdir(path))
            snapshot = box.snapshot()
            Path(path, "junk").write_text("junk")
            assert [str(change) for change in box.changes(snapshot)] == ["A /junk"], name
            box.rollback(snapshot)
            assert sorted(os.listdir(path)) == there, name
        with box.fork("again") as fork, fork.mounted() as path:
            assert sorted(os.listdir(path)) == there, name
            fork.squash()
        snapshot.commit().release()
        snapshot.release()
        box.squash()
    for snapshot in store.snapshots():
        with snapshot.fork("again") as fork, fork.mounted():
            pass
    assert held.keys() <= store.map().keys()


def all_goes(store: Store) -> None:
    """Released one after the other, all of it goes."""
    held = all_held(store)
    for name in store.mounts():
        store.get_rw_layer(name).release()
    for snapshot in store.snapshots():
        snapshot.release()
    for layer in held.values():
        layer.release()
    assert not store.map() and not store.snapshots()


def act(before: Any, ready: Any, do: Any, again: Any = works) -> Act:
    return Act(before, ready, do, again, shows=True)


ACTS = {
    "snapshot": act(with_box, box_of, lambda store, box: box.snapshot()),
    "snapshot mounted": act(with_snapshot, mounted, lambda store, box: write_late(box).snapshot()),
    "snapshot busy": act(with_snapshot, busy, lambda store, ready: write_late(ready[0]).snapshot()),
    "rollback": act(with_snapshot, box_of, lambda store, box: box.rollback(newest(store))),
    "rollback mounted": act(with_snapshots, mounted, lambda store, box: box.rollback(chain(BASE, TOP))),
    "fork": act(with_snapshot, mounted, lambda store, box: box.fork("new")),
    "fork snapshot": act(with_snapshot, newest, lambda store, snapshot: snapshot.fork("new")),
    "commit snapshot": act(with_snapshot, newest, lambda store, snapshot: snapshot.commit()),
    "commit snapshots": act(with_snapshots, newest, lambda store, snapshot: snapshot.commit()),
    "squash": act(with_loose, mounted, lambda store, box: box.squash()),
    "release snapshot": act(with_snapshots, newest, lambda store, snapshot: snapshot.release()),
    "release snapshots": act(released, nothing, lambda store, _: [each.release() for each in reversed(store.snapshots())], all_goes),
    "release forked": act(with_fork, lambda store: store.get_rw_layer("fork"), lambda store, fork: fork.release()),
}  # fmt: skip
