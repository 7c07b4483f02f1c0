"""changes() and diff() of boxes on snapshots: what full comparisons of mounts of the same directories say, and nothing
that is seen differs before and after a snapshot and a squash.
"""

import contextlib
import os
from collections import Counter

import disk
import pytest
from edits import Edits, as_tar, layers, scripts
from full_comparison import EMPTY, by_contents, full_comparison, paths_in, tree_of
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from soak import budget

from layerstore import BreakoutError, CreateRWLayerOpts

CI = bool(os.environ.get("CI"))
MS_RDONLY = 1
BOXES = budget(20, 120)
# In MiB; the smallest that each can be made in.
FILE_SYSTEMS = {"tmpfs": 64, "ext4": 64, "xfs": 320, "btrfs": 128}


def texts(changes):
    return [str(change) for change in changes]


def directories(thing):
    """Of a box or a snapshot, nearest first."""
    at = thing.metadata()
    return [at["UpperDir"], *(at["LowerDir"].split(":") if at.get("LowerDir") else [])]


class Views:
    """Mounts of directories, for as long as their inodes are compared."""

    def __init__(self, room):
        self.room, self.stack, self.count = room, contextlib.ExitStack(), 0

    def of(self, dirs):
        place = self.room / f"view{self.count}"
        self.count += 1
        for name in ("merged", "nothing", "none"):
            (place / name).mkdir(parents=True)
        text = "lowerdir=" + ":".join([*dirs, f"{place}/nothing", f"{place}/none"])
        disk.mount("overlay", place / "merged", "overlay", MS_RDONLY, text)
        self.stack.callback(disk.remove_tree, place)
        self.stack.callback(disk.unmount, place / "merged", 0)
        return place / "merged"


def edited(box, script):
    with box.mounted() as path:
        return Edits(path, paths_in(tree_of(path))).run(script)


def base_of(dirs, parent):
    """What the box began on: its init layer, if it has one, and its layers."""
    below = directories(parent) if parent else []
    return [*(one for one in dirs if one.endswith("-init/diff")), *below]


def check_all(views, box, base, snapshots, story):
    """The box, and each snapshot, against everything below it."""
    kinds = Counter()

    def same(found, expected, what):
        told = "\n    ".join(map(str, story))
        assert texts(found) == expected, f"{what}\n    {told}"
        kinds.update(line[0] for line in expected)

    here = views.of(directories(box))
    tree, bottom = tree_of(here), views.of(base)
    below = tree_of(bottom) if base else EMPTY
    same(box.changes(), full_comparison(tree, below), "the box")
    with box.mounted():
        same(box.changes(), full_comparison(tree, below), "mounted")
    shown = [views.of(directories(one)) for one in snapshots]
    trees = [tree_of(one) for one in shown]
    for i, one in enumerate(snapshots):
        same(box.changes(since=one), full_comparison(tree, trees[i]), f"since {i}")
        for k, other in enumerate(snapshots[:i]):
            same(one.changes(since=other), full_comparison(trees[i], trees[k]), f"{i} since {k}")
    return kinds, [*shown, here], trees


@pytest.fixture(params=FILE_SYSTEMS)
def place(request, room):
    with disk.sized_file_system(room, request.param, size=FILE_SYSTEMS[request.param] << 20) as made:
        yield made


@pytest.mark.soak(150)
@pytest.mark.filterwarnings("ignore::layerstore.LeftOutWarning")
@pytest.mark.parametrize("init", [False, True], ids=["no init", "init"])
def test_boxes_on_snapshots_are_told_as_full_comparisons_tell_them(place, open_store, room, init):
    store = open_store(place, options={"durability": "none"})
    kinds, drawn = Counter(), BOXES if place.name == "fs-tmpfs" else BOXES // 4

    @settings(max_examples=drawn, phases=[Phase.generate], deadline=None, derandomize=CI, database=None)
    @given(st.lists(layers(), max_size=2), scripts(1, 5), st.lists(scripts(2, 8), min_size=4, max_size=4))
    def run(below, first, plan):
        with contextlib.ExitStack() as handles:
            parent = None
            if not below:       # a box on nothing is no overlay before its first snapshot: there a whiteout is a device
                plan = [[step for step in script if step[0] != "new whiteout"] for script in plan]
            for layer in below:
                parent = handles.enter_context(store.register(as_tar(layer), parent.chain_id if parent else ""))
            opts = CreateRWLayerOpts(init_func=lambda path: Edits(path, []).run(first)) if init else None
            box = handles.enter_context(store.create_rw_layer("box", parent, opts))
            lived(handles, parent, box, plan, [*below])

    def seen(box):
        return texts(box.changes()), box.size(), box.tar_stream(marks="skip").read()

    def lived(handles, parent, box, plan, story):
        views, base = Views(room), base_of(directories(box), parent)
        with views.stack:
            story += edited(box, plan[0])
            kinds.update(check_all(views, box, base, [], story)[0])
            snapshots = []
            for script in plan[1:3]:
                before = seen(box)
                snapshots.append(box.snapshot())
                assert seen(box) == before, story
                story += ["snapshot", *edited(box, script)]
            found, shown, trees = check_all(views, box, base, snapshots, story)
            kinds.update(found)
            fork = handles.enter_context(snapshots[0].fork("fork"))
            story += ["fork", *edited(fork, plan[3])]
            side = fork.snapshot()
            other = views.of(directories(side))
            tree = tree_of(other)
            assert texts(store.diff(snapshots[1], side)) == full_comparison(tree, trees[1]), story
            assert texts(store.diff(side, snapshots[1])) == full_comparison(trees[1], tree), story
            assert texts(store.diff(snapshots[1], side, contents=True)) == by_contents(other, shown[1]), story
            with contextlib.suppress(BreakoutError):       # of a name that a tar cannot have
                layer = handles.enter_context(snapshots[0].commit())
                since = full_comparison(tree_of(shown[2]), trees[0])
                for found in (box.changes(), box.changes(since=layer), box.changes(since=snapshots[0])):
                    assert texts(found) == since, story
                assert texts(snapshots[1].changes()) == full_comparison(trees[1], trees[0]), story
                kinds["committed"] += 1
                below = directories(box)              # the init layer is between the new layer and its parent
                base = below[below.index(snapshots[0].metadata()["UpperDir"]) :]
        before = seen(box)
        for one in (*snapshots, side):
            one.release()
        for each in (fork, box):
            each.squash()
        assert seen(box) == before, story
        with views.stack:
            check_all(views, box, base, [], story)

    run()
    assert kinds["A"] > drawn and kinds["C"] > drawn and kinds["D"] > drawn // 4 and kinds["committed"] > drawn // 4, kinds
