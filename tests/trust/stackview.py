"""What boxes and snapshots show, told by their directories alone: overlays that are mounted by hand of `lower` and `diff`.

None of the library's own code takes part, so that what it says can be held against this.
"""

import contextlib
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import disk
from driven import DRIVER, FILES, LAYERDB

READ_ONLY = 1
Tree = dict[bytes, tuple]


class Views(NamedTuple):
    boxes: dict[str, Tree]
    at_paths: dict[str, Tree]           # of those that are mounted
    snapshots: dict[str, Tree]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _names(path: Path) -> list[str]:
    return sorted(os.listdir(path)) if path.exists() else []


def ids_in(root: Path, lower: str) -> list[str]:
    """The ids that the text of a `lower` names; a link without a target is an error."""
    return [os.readlink(root / DRIVER / item).split("/")[1] for item in lower.split(":") if item]


def stack_of(root: Path, id: str) -> list[str]:
    return ids_in(root, _text(root / DRIVER / id / "lower"))


def records(root: Path) -> dict[str, Path]:
    """The driver's ids of boxes and snapshots, with their records."""
    layerdb = root / LAYERDB
    found = {_text(layerdb / "mounts" / name / "mount-id"): layerdb / "mounts" / name for name in _names(layerdb / "mounts")}
    return found | {id: layerdb / "snapshots" / id for id in _names(layerdb / "snapshots")}


def owned(root: Path) -> set[str]:
    """Every id that a box or a snapshot has, or stands on."""
    found = set()
    for id, record in records(root).items():
        found |= {id, *stack_of(root, id)}
        if record.parent.name == "snapshots":
            found |= set(ids_in(root, _text(record / "lower")))
        elif init := _text(record / "init-id"):
            found |= {init, *stack_of(root, init)}
        if (rollback := record / "rollback").exists():
            found |= {id for id in _names(root / DRIVER) if id in rollback.read_text()}
    return found


def shown(place: Any) -> Tree:
    """Everything below a place; but for the number of names, as directories that are made of each other have hard links."""
    found = disk.disk_state(place, times=True, content=False)
    return {
        name: (*facts[:5], *facts[6:], hashlib.sha256(Path(place, os.fsdecode(name)).read_bytes()).hexdigest()[:16]) if facts[0] == "file" else facts
        for name, facts in found.items()
    }


def timeless(tree: Tree) -> Tree:
    """What is shown, whenever it was made."""
    return {name: (*facts[:-2], facts[-1]) if facts[0] == "file" else facts[:-1] for name, facts in tree.items()}


def tree(root: Path, id: str, stack: list[str]) -> Tree:
    """What an id shows on a stack."""
    with contextlib.ExitStack() as opened:
        directories = [opened.enter_context(files_of(root / DRIVER / each)) for each in [id, *stack]]
        if not stack:
            return shown(directories[0])
        place = opened.enter_context(tempfile.TemporaryDirectory(prefix="view-", dir=root.parent))
        disk.mount("overlay", place, "overlay", READ_ONLY, f"lowerdir={':'.join(map(str, directories))}")
        opened.callback(disk.unmount, place)
        return shown(place)


@contextlib.contextmanager
def files_of(at: Path) -> Iterator[Path]:
    """The directory of what an id, whose directory this is, has itself; an image is mounted by hand for the block."""
    if not (at / "layer.erofs").exists():
        yield at / FILES
        return
    with tempfile.TemporaryDirectory(prefix="image-", dir=at.parents[2]) as place:
        subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", at / "layer.erofs", place], check=True)
        try:
            yield Path(place)
        finally:
            disk.unmount(place)


def views(root: Path) -> Views:
    found, mounted = Views({}, {}, {}), set(disk.mounts_below(root))
    for id, record in records(root).items():
        if record.parent.name == "snapshots":
            committed = _text(record / "layer") and (root / LAYERDB / "sha256" / _text(record / "layer").split(":")[1]).exists()
            found.snapshots[id] = tree(root, id, ids_in(root, _text(record / "lower")) if committed else stack_of(root, id))
            continue
        path = root / DRIVER / id / "merged"
        if str(path) in mounted:
            found.at_paths[record.name] = shown(path)
        if not (record / "rollback").exists():      # then its next look says what it shows
            found.boxes[record.name] = tree(root, id, stack_of(root, id))
    return found


def _without(tree: Tree, *names: bytes) -> Tree:
    return {each: facts for each, facts in tree.items() if each not in names}


def compared(now: Views, before: Views, after: Views, *, finished: bool, written: bytes, exact: bool) -> list[str]:
    """Hold views against those of before and after a call.

    finished    it has returned
    written     a file that the call's own process writes first: it may be there in part
    exact       what went is gone; else the power may have brought it back
    """
    wrong = []
    for what, there in (("box", now.boxes), ("mounted box", now.at_paths)):
        for name, shown in there.items():
            known = [views.boxes[name] for views in (before, after) if name in views.boxes]
            if finished and exact:
                known = known[-1:]
            # A box that was rolled back to a layer has a new root, of that moment.
            without = (b"",) if finished else (b"", written)
            if _without(shown, *without) not in [_without(each, *without) for each in known]:
                wrong.append(f"{what} {name} shows another tree: {[disk.changed(each, shown)[:4] for each in known]}")
    new = [tree for id, tree in after.snapshots.items() if id not in before.snapshots]
    made = {id: tree for id, tree in now.snapshots.items() if id not in before.snapshots}
    for id, shown in now.snapshots.items():
        known = new if id in made else [before.snapshots[id]]
        if shown not in known:
            wrong.append(f"snapshot {id[:8]} shows another tree: {[disk.changed(each, shown)[:4] for each in known]}")
    if lost := [id for id in before.snapshots if id not in now.snapshots and (id in after.snapshots)]:
        wrong.append(f"snapshots are lost: {lost}")
    if finished and len(made) != len(new):
        wrong.append(f"{len(made)} new snapshots, not {len(new)}")
    if finished and exact and (extra := [id for id in now.snapshots if id in before.snapshots and id not in after.snapshots]):
        wrong.append(f"snapshots are there again: {extra}")
    return wrong
