"""Changes: `RWLayer.changes()`, `overlay_changes`, `changes_between`: the answers of moby's full comparison,
from the upper directory alone.

Every answer is held against full_comparison.py, which mounts both sides and reads them whole: the same lines
in the same order, over thousands of random edits of random stacks in real overlay mounts. Then what the slow
way costs and ours must not: counted in system calls.
"""

import contextlib
import os
from collections import Counter
from pathlib import Path

import disk
import pytest
from edits import MARKS, VERBS, Edits, as_tar, layers, on_disk, scripts
from full_comparison import EMPTY, full_comparison, paths_in, tree_of
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore import Change, ChangeKind, CreateRWLayerOpts, changes_between, overlay_changes

CI = bool(os.environ.get("CI"))
MS_RDONLY = 1
SCRIPTS_PER_STACK = 10


def law(examples):
    """The same cases every time in CI, new ones at a desk."""
    return settings(max_examples=examples, deadline=None, derandomize=CI, database=None)


def texts(changes):
    return [str(change) for change in changes]


def stood_over(lowers, place) -> contextlib.AbstractContextManager[Path]:
    """The lowers merged by the kernel, read-only. One alone too, which moby compares as it lies on disk: there it
    finds the whiteouts of a base layer as devices, and tells them deleted in a container that nobody has touched.
    Ours is the law that nothing changed gives no changes."""
    nothing = place / "nothing"
    nothing.mkdir(parents=True, exist_ok=True)
    return merged(place, lowers if len(lowers) > 1 else [*lowers, nothing])


@contextlib.contextmanager
def merged(place, lowers, upper=None):
    """A real overlay mount at place/merged."""
    point, work = place / "merged", place / "work"
    for path in (point, work):
        path.mkdir(parents=True, exist_ok=True)
    options = "lowerdir=" + ":".join(os.fspath(lower) for lower in lowers)
    if upper:
        options += f",upperdir={os.fspath(upper)},workdir={os.fspath(work)}"
    disk.mount("overlay", point, "overlay", 0 if upper else MS_RDONLY, options)
    try:
        yield point
    finally:
        disk.unmount(point, 0)


@contextlib.contextmanager
def case(room):
    """A place for one drawn case, gone afterwards."""
    place = room / "case"
    place.mkdir()
    try:
        yield place
    finally:
        disk.remove_tree(place)


def lowers_of(rw):
    listed = rw.metadata().get("LowerDir", "")
    return listed.split(":") if listed else []


@contextlib.contextmanager
def below(rw, room):
    """The tree that the writable layer started from: its init layer if there is one, on its parents.

    It stays mounted for the block: the kernel may give a device number that is free again to the next mount,
    and then the same inode on the same device would be another file."""
    lowers = lowers_of(rw)
    if not lowers:
        yield EMPTY
        return
    place = room / "below"
    place.mkdir(exist_ok=True)
    with stood_over(lowers, place) as point:
        yield tree_of(point)


def assert_the_same(found, expected, story):
    """In order and as a set, and when not, with what led to it."""
    if texts(found) != expected:
        missing, extra = sorted(set(expected) - set(texts(found))), sorted(set(texts(found)) - set(expected))
        told = "\n    ".join(map(str, story))
        raise AssertionError(
            f"found    {texts(found)}\nexpected {expected}\nmissing  {missing}\nextra    {extra}\n"
            f"otherwise only the order differs\n    {told}"
        )
    assert all(isinstance(change, Change) and isinstance(change.kind, ChangeKind) for change in found)


# ---- a writable layer -------------------------------------------------------------------------------
@pytest.mark.time_limit(120)
def test_two_thousand_edit_scripts_are_told_as_the_full_comparison_tells_them(open_store, room):
    store = open_store(options={"durability": "none"})
    scripts_run, kinds, verbs = 0, Counter(), Counter()

    def one_script(parent, init, script, story):
        opts = CreateRWLayerOpts(init_func=lambda path: Edits(path, known).run(init)) if init is not None else None
        known = paths_in(tree_of_layer)
        with store.create_rw_layer("c", parent, opts) as rw:
            with below(rw, room) as before, rw.mounted() as path:
                edits = Edits(path, paths_in(before))
                story = [*story, "edits:", *edits.run(script)]
                after = tree_of(path)
                while_mounted = rw.changes()
            expected = full_comparison(after, before)
            assert_the_same(while_mounted, expected, ["mounted", *story])
            assert_the_same(rw.changes(), expected, ["unmounted", *story])
            if lowers_of(rw):
                upper = rw.metadata()["UpperDir"]
                assert_the_same(overlay_changes(upper, lowers_of(rw)), expected, ["overlay_changes", *story])
        kinds.update(line[0] for line in expected or ["-"])
        verbs.update(edits.done)

    @law(220)
    @given(
        st.lists(layers(), max_size=4),
        st.none() | scripts(1, 5),
        st.lists(scripts(), min_size=SCRIPTS_PER_STACK, max_size=SCRIPTS_PER_STACK),
    )
    def held(stack, init, drawn_scripts):
        nonlocal scripts_run, tree_of_layer
        with contextlib.ExitStack() as handles:
            parent, story = "", []
            for layer in stack:
                handle = handles.enter_context(store.register(as_tar(layer), parent))
                parent = handle.chain_id
                story.append(f"layer: {layer}")
            with store.create_rw_layer("look", parent) as rw:
                with below(rw, room) as tree_of_layer:
                    pass
            if init is not None:
                story.append(f"init: {init}")
            for script in drawn_scripts:
                one_script(parent, init, script, story)
                scripts_run += 1

    tree_of_layer = EMPTY
    held()
    assert scripts_run >= 2000
    assert min(kinds[kind] for kind in "CAD") > scripts_run / 3, kinds
    # The kernel lets nobody make a whiteout in a mount, only in a layer that has no parent and so no mount.
    rare = [verb for verb in VERBS if verbs[verb] < 5 and verb != "new whiteout"]
    assert rare == [], verbs


# ---- plain directories -------------------------------------------------------------------------------
def planted(layer, path, **how):
    return os.fsdecode(on_disk(layer, os.fsencode(path), **how))


@pytest.mark.time_limit(60)
def test_an_upper_directory_over_its_lowers_is_read_as_the_kernel_merges_them(room):
    kinds = Counter()

    @law(500)
    @given(layers() | layers(MARKS), st.lists(layers(), min_size=1, max_size=4))
    def held(upper, stack):
        with case(room) as place:
            up = planted(upper, place / "up")
            lowers = [planted(layer, place / f"low{i}") for i, layer in enumerate(stack)]
            found = overlay_changes(up, lowers)
            with stood_over(lowers, place / "o") as before, merged(place / "n", lowers, up) as after:
                expected = full_comparison(tree_of(after), tree_of(before))
            assert_the_same(found, expected, [f"upper: {upper}", *(f"lower: {layer}" for layer in stack)])
            kinds.update(line[0] for line in expected)

    held()
    assert min(kinds[kind] for kind in "CAD") > 200, kinds


@pytest.mark.time_limit(60)
@pytest.mark.parametrize("linked", [False, True], ids=["copied", "hard-linked"])
def test_a_tree_and_its_edited_copy_are_compared_whole(room, linked):
    kinds = Counter()

    @law(400)
    @given(layers(), scripts())
    def held(layer, script):
        with case(room) as place:
            old = planted(layer, place / "old")
            new = planted(layer, place / "new", share=os.fsencode(old) if linked else None)
            edits = Edits(new, paths_in(tree_of(old)))
            edits.run(script)
            expected = full_comparison(tree_of(new), tree_of(old))
            assert_the_same(changes_between(new, old), expected, [layer, *edits.told])
            kinds.update(line[0] for line in expected)

    held()
    assert min(kinds[kind] for kind in "CAD") > 50, kinds


@pytest.mark.time_limit(60)
def test_two_unrelated_trees_are_compared_whole(room):
    @law(200)
    @given(layers(), layers())
    def held(one, other):
        with case(room) as place:
            old, new = planted(one, place / "old"), planted(other, place / "new")
            expected = full_comparison(tree_of(new), tree_of(old))
            assert_the_same(changes_between(new, old), expected, [one, other])
            assert changes_between(new, new) == []

    held()
