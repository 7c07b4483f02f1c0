"""Changes: `RWLayer.changes()`, `overlay_changes`, `changes_between`: the answers of moby's full comparison,
from the upper directory alone.

Every answer is held against full_comparison.py, which mounts both sides and reads them whole: the same lines
in the same order, over thousands of random edits of random stacks in real overlay mounts. Then what the slow
way costs and ours must not: counted in system calls.
"""

import contextlib
import os
import re
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import disk
import pytest
import tarkit
from edits import CAPABILITIES, MARKS, VERBS, Edits, Node, as_tar, layers, on_disk, scripts
from full_comparison import EMPTY, full_comparison, paths_in, tree_of
from hypothesis import given, settings
from hypothesis import strategies as st
from soak import budget

import layerstore
from layerstore import Change, ChangeKind, CreateRWLayerOpts, NotSupportedError, changes_between, overlay_changes

CI = bool(os.environ.get("CI"))
MS_RDONLY = 1
STACKS, SCRIPTS_PER_STACK = budget(50, 220), 10


def law(examples):
    """The same cases every time in CI, new ones at a desk."""
    return settings(max_examples=examples, deadline=None, derandomize=CI, database=None)


def texts(changes):
    return [str(change) for change in changes]


def stood_over(lowers, place) -> contextlib.AbstractContextManager[Path]:
    """The lowers merged by the kernel, read-only. One alone too, which moby compares as it lies on disk: there it
    finds the whiteouts of a base layer as devices, and tells them deleted in an untouched container.
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
@pytest.mark.soak(120)
def test_edit_scripts_are_told_as_the_full_comparison_tells_them(open_store, room):
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

    @law(STACKS)
    @given(
        st.lists(layers(), max_size=4), st.none() | scripts(1, 5),
        st.lists(scripts(), min_size=SCRIPTS_PER_STACK, max_size=SCRIPTS_PER_STACK)
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
    assert scripts_run >= 0.9 * STACKS * SCRIPTS_PER_STACK
    assert min(kinds[kind] for kind in "CAD") > scripts_run / 3, kinds
    # The kernel allows no whiteout to be made in a mount, only in a layer that has no parent and so no mount.
    # A short run misses some of the others by luck, a long one none.
    rare = [verb for verb in VERBS if verbs[verb] < budget(1, 5) and verb != "new whiteout"]
    assert len(rare) <= budget(len(VERBS) // 4, 0), verbs


# ---- plain directories -------------------------------------------------------------------------------
def planted(layer, path, **how):
    return os.fsdecode(on_disk(layer, os.fsencode(path), **how))


@pytest.mark.soak(60)
def test_an_upper_directory_over_its_lowers_is_read_as_the_kernel_merges_them(room):
    kinds = Counter()

    @law(budget(150, 500))
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
    assert min(kinds[kind] for kind in "CAD") > budget(20, 200), kinds


@pytest.mark.soak(60)
@pytest.mark.parametrize("linked", [False, True], ids=["copied", "hard-linked"])
def test_a_tree_and_its_edited_copy_are_compared_whole(room, linked):
    kinds = Counter()

    @law(budget(120, 400))
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
    assert min(kinds[kind] for kind in "CAD") > budget(5, 50), kinds


@pytest.mark.soak(60)
def test_two_unrelated_trees_are_compared_whole(room):
    @law(budget(60, 200))
    @given(layers(), layers())
    def held(one, other):
        with case(room) as place:
            old, new = planted(one, place / "old"), planted(other, place / "new")
            expected = full_comparison(tree_of(new), tree_of(old))
            assert_the_same(changes_between(new, old), expected, [one, other])
            assert changes_between(new, new) == []
            (place / "empty").mkdir()
            for nothing in ("", b""):
                added = changes_between(new, nothing)
                assert {change.kind for change in added} <= {ChangeKind.ADD}
                assert_the_same(added, full_comparison(tree_of(new), tree_of(place / "empty")), [other])

    held()


# ---- one fact at a time ------------------------------------------------------------------------------
OLD = {kind: Node(kind, 0o755, (3, 4), time=5_300_000_000, text=b"five!") for kind in ("file", "link", "dir", "fifo")}
OLD["char"] = Node("char", 0o600, time=5_300_000_000, which=0)
CAPABLE = Node("file", time=5_300_000_000, capability=CAPABILITIES[1])
SINGLE_FACTS = {
    # what differs: (before, after, is it a change)
    "nothing": (OLD["file"], OLD["file"], False),
    "mode": (OLD["file"], OLD["file"]._replace(mode=0o754), True),
    "set-user-ID": (OLD["file"], OLD["file"]._replace(mode=0o4755), True),
    "sticky directory": (OLD["dir"], OLD["dir"]._replace(mode=0o1755), True),
    "owner": (OLD["file"], OLD["file"]._replace(owner=(9, 4)), True),
    "group": (OLD["file"], OLD["file"]._replace(owner=(3, 9)), True),
    "owner of a link": (OLD["link"], OLD["link"]._replace(owner=(9, 4)), True),
    "group of a directory": (OLD["dir"], OLD["dir"]._replace(owner=(3, 9)), True),
    "device number": (OLD["char"], OLD["char"]._replace(which=1), True),
    "kind of device": (OLD["char"], OLD["char"]._replace(kind="block"), True),
    "capability": (CAPABLE, CAPABLE._replace(capability=CAPABILITIES[2]), True),
    "capability gone": (CAPABLE, CAPABLE._replace(capability=b""), True),
    "capability of another root": (CAPABLE, CAPABLE._replace(capability=CAPABILITIES[3]), True),
    "capability of a directory": (OLD["dir"], OLD["dir"]._replace(capability=CAPABILITIES[1]), True),
    "size": (OLD["file"], OLD["file"]._replace(text=b"sixsix"), True),
    "length of a link": (OLD["link"], OLD["link"]._replace(text=b"sixsix"), True),
    "content": (OLD["file"], OLD["file"]._replace(text=b"other"), False),
    "target of a link": (OLD["link"], OLD["link"]._replace(text=b"other"), False),
    "second": (OLD["file"], OLD["file"]._replace(time=6_300_000_000), True),
    "nanosecond": (OLD["file"], OLD["file"]._replace(time=5_300_000_001), True),
    "nanoseconds lost": (OLD["file"], OLD["file"]._replace(time=5_000_000_000), False),
    "nanoseconds lost, and a second": (OLD["file"], OLD["file"]._replace(time=4_000_000_000), True),
    "nanosecond of a fifo": (OLD["fifo"], OLD["fifo"]._replace(time=5_300_000_001), True),
    "time of a directory": (OLD["dir"], OLD["dir"]._replace(time=9_100_000_000), False),
    "before 1970, nanoseconds lost": (
        OLD["file"]._replace(time=-500_000_000),
        OLD["file"]._replace(time=-1_000_000_000),
        False,
    ),
    "across 1970": (OLD["file"]._replace(time=-1), OLD["file"]._replace(time=0), True),
    "type": (OLD["file"], OLD["fifo"]._replace(mode=0o755), True),
}


@pytest.mark.parametrize("fact", SINGLE_FACTS)
def test_each_fact_alone_makes_a_change_or_none(room, fact):
    before, after, is_change = SINGLE_FACTS[fact]
    old, new = planted({b"x": before}, room / "old"), planted({b"x": after}, room / "new")
    expected = ["C /x"] if is_change else []
    assert full_comparison(tree_of(new), tree_of(old)) == expected
    assert texts(changes_between(new, old)) == texts(changes_between(old, new)) == expected
    assert texts(overlay_changes(new, [old])) == expected


# ---- marks that only the kernel can follow -----------------------------------------------------------
def mark(path, name, value):
    os.setxattr(path, f"trusted.overlay.{name}", value)


def hide_by_xattr(layer, *, told_above=True):
    """A whiteout that is no device but an empty file with a mark, and its directory's mark if told_above."""
    (layer / "a").mkdir()
    (layer / "a/f").touch()
    mark(layer / "a/f", "whiteout", b"y")
    if told_above:
        mark(layer / "a", "opaque", b"x")


def redirect(layer):
    (layer / "a").mkdir()
    mark(layer / "a", "redirect", b"/z")


def marked_dir(name, value):
    def plant(layer):
        (layer / "a").mkdir()
        mark(layer / "a", name, value)

    return plant


def write_in(name):
    def plant(layer):
        (layer / "a").mkdir()
        (layer / "a" / name).write_text("written")

    return plant


MARKS_IN_THE_MIDDLE = {
    "a directory that is another's": redirect,
    "a whiteout as a file": hide_by_xattr,
    "a whiteout as a file that its directory does not tell": lambda layer: hide_by_xattr(layer, told_above=False),
    "an opaque mark of another value": marked_dir("opaque", b"n"),
    "an opaque mark of two letters": marked_dir("opaque", b"yy"),
    "an empty opaque mark": marked_dir("opaque", b""),
    "an opaque mark of an overlay inside": marked_dir("overlay.opaque", b"y"),
}
EDITS_ABOVE = {
    "nothing": lambda upper: None, "an old file": write_in("f"), "a new file": write_in("q"),
    "an opaque directory": marked_dir("opaque", b"y"),
}


@pytest.mark.parametrize("edit", EDITS_ABOVE)
@pytest.mark.parametrize("marked", MARKS_IN_THE_MIDDLE)
def test_rare_marks_are_read_as_the_kernel_reads_them(store, room, diff_of, marked, edit):
    low = store.register(b"".join(tarkit.file(name, b"x", mtime=5) for name in ("a/f", "a/g", "z/q")) + tarkit.end())
    middle = store.register(tarkit.file("other") + tarkit.end(), low.chain_id)
    with store.create_rw_layer("c", middle.chain_id) as rw:
        upper = Path(rw.metadata()["UpperDir"])
        MARKS_IN_THE_MIDDLE[marked](diff_of(middle))
        EDITS_ABOVE[edit](upper)
        with below(rw, room) as before, merged(room / "now", lowers_of(rw), upper) as now:
            expected = full_comparison(tree_of(now), before)
        assert texts(rw.changes()) == expected
        # Without a mount there may be no answer, but never a wrong one.
        with contextlib.suppress(NotSupportedError):
            assert texts(overlay_changes(upper, lowers_of(rw))) == expected


# ---- far down, and many ------------------------------------------------------------------------------
def test_a_change_150_directories_down_is_told_with_every_directory_above_it(store):
    dirs = ["/".join(["d"] * depth) for depth in range(1, 151)]
    tar = b"".join(tarkit.with_pax_path(name + "/", tarkit.dir) for name in dirs)
    tar += tarkit.with_pax_path(dirs[-1] + "/f", tarkit.file, b"deep") + tarkit.end()
    base = store.register(tar)
    with store.create_rw_layer("c", base.chain_id) as rw:
        with rw.mounted() as path:
            os.chmod(os.path.join(path, dirs[-1], "f"), 0o600)
        assert texts(rw.changes()) == [f"C /{name}" for name in [*dirs, dirs[-1] + "/f"]]


LONG = b"n" * 250


def descend(root, depth, make=False):
    """A descriptor of the directory depth long names below root."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        if make:
            os.mkdir(LONG, dir_fd=fd)
        deeper = os.open(LONG, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    return fd


@contextlib.contextmanager
def long_path(root, depth=20, *, make=False):
    fd = descend(root, depth, make)
    try:
        yield fd
    finally:
        os.close(fd)


def write_at(fd, name, text):
    with open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=fd), "w") as out:
        out.write(text)


def test_a_path_longer_than_the_kernel_takes_in_one_call_is_told_whole(store, room):
    dirs = [b"/".join([LONG] * depth).decode() for depth in range(1, 21)]
    assert len(dirs[-1]) > 4096
    with store.create_rw_layer("c", store.register(tarkit.T1).chain_id) as rw:
        with rw.mounted() as path, long_path(path, make=True) as fd:
            write_at(fd, "f", "new")
        assert texts(rw.changes()) == [f"A /{name}" for name in [*dirs, dirs[-1] + "/f"]]
    upper, low = room / "up", room / "low"
    for place in (upper, low):
        place.mkdir()
    with long_path(low, make=True) as fd:
        for name in ("gone", "f"):
            write_at(fd, name, "old")
        with merged(room / "m", [low], upper) as point, long_path(point) as shown:
            os.unlink("gone", dir_fd=shown)
            write_at(shown, "f", "changed")
            write_at(shown, "new", "new")
    ends = [f"C /{dirs[-1]}/f", f"A /{dirs[-1]}/new", f"D /{dirs[-1]}/gone"]
    assert texts(overlay_changes(upper, [low])) == [f"C /{name}" for name in dirs] + ends
    assert texts(changes_between(low, upper))[:20] == [f"C /{name}" for name in dirs]


def test_ten_thousand_changes_are_told_in_order(open_store, room):
    store = open_store(options={"durability": "none"})
    names = [f"d{i % 60:02}/f{i:05}" for i in range(8000)]
    base = store.register(b"".join(tarkit.file(name, b"x", mtime=5) for name in names) + tarkit.end())
    with store.create_rw_layer("c", base.chain_id) as rw:
        with below(rw, room) as before, rw.mounted() as path:
            for i, name in enumerate(names):
                if i % 8 == 0:
                    os.unlink(f"{path}/{name}")
                else:
                    os.chmod(f"{path}/{name}", 0o600)
            for i in range(2000):
                os.mkfifo(f"{path}/d{i % 60:02}/new{i}")
            expected = full_comparison(tree_of(path), before)
        assert len(expected) == 8000 + 2000 + 60
        assert texts(rw.changes()) == expected


# ---- what it costs -----------------------------------------------------------------------------------
TRACED = """
import os, sys, layerstore
with layerstore.Store(sys.argv[1]) as store:
    rw = store.get_rw_layer("c")
    rw.changes()                    # what a process finds out once, it knows now
    os.access("/begin-of-the-trace", 0)
    print(len(rw.changes()))
    os.access("/end-of-the-trace", 0)
"""


class Trace:
    """The system calls of one changes() of the writable layer c, made in a process of its own."""

    def __init__(self, root, room):
        listing = room / "trace"
        program = [sys.executable, "-c", TRACED, os.fspath(root)]
        found_at = {**os.environ, "PYTHONPATH": str(Path(layerstore.__file__).parents[1])}
        run = subprocess.run(
            ["strace", "-f", "-y", "-qq", "-o", listing, *program], env=found_at, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        self.changes = int(run.stdout)
        text = listing.read_text(errors="surrogateescape")
        self.calls = text.partition("/begin-of-the-trace")[2].partition("/end-of-the-trace")[0].splitlines()[1:-1]
        assert self.calls

    def listed(self) -> set[str]:
        """The directories whose entries were asked for."""
        return {found[1] for call in self.calls if (found := re.search(r"getdents64\(\d+<([^>]*)>", call))}

    def opened(self) -> list[str]:
        return [found[1] for call in self.calls if (found := re.search(r" = \d+<([^>]*)>$", call)) and "open" in call]


def image_of(store, files):
    """Two layers: `files` files in one directory and as many directories beside it; a small one above."""
    many = tarkit.dir("big/") + b"".join(tarkit.file(f"big/{i}", b"x", mtime=5) for i in range(files))
    many += b"".join(tarkit.dir(f"dir{i}/") for i in range(files)) + tarkit.end()
    low = store.register(many)
    return store.register(tarkit.dir("small/") + tarkit.file("small/f", b"x", mtime=5) + tarkit.end(), low.chain_id)


@contextlib.contextmanager
def edited(open_store, room, files, edit):
    """A store with a writable layer c on a big image, edited and closed."""
    root = room / f"docker{files}"
    with open_store(root, options={"durability": "none"}) as store:
        rw = store.create_rw_layer("c", image_of(store, files).chain_id)
        with rw.mounted() as path:
            edit(Path(path))
        yield root, rw.metadata()["UpperDir"], lowers_of(rw)


def trace_of(open_store, room, files, edit):
    with edited(open_store, room, files, edit) as (root, upper, lowers):
        pass
    return Trace(root, room), upper, lowers


def test_nothing_changed_opens_no_directory_of_the_image(open_store, room):
    trace, upper, lowers = trace_of(open_store, room, 1000, lambda path: None)
    assert trace.changes == 0
    assert trace.listed() == {upper}
    assert [path for path in trace.opened() if any(path.startswith(lower + "/") for lower in lowers)] == []
    assert not any("mount" in call.split("(")[0] for call in trace.calls)


def test_one_file_changed_among_5000_lists_the_upper_directory_only(open_store, room):
    trace, upper, _ = trace_of(open_store, room, 5000, lambda path: (path / "big/77").chmod(0o600))
    assert trace.changes == 2
    assert trace.listed() == {upper, f"{upper}/big"}


def test_the_cost_is_that_of_the_changes_and_not_that_of_the_image(open_store, room):
    def edit(path):
        (path / "big/7").chmod(0o600)
        (path / "big/8").unlink()
        (path / "big/new").touch()
        (path / "dir3/new").touch()
        (path / "small/f").unlink()

    small, big = (trace_of(open_store, room, files, edit)[0] for files in (10, 3000))
    assert small.changes == big.changes == 8
    assert len(small.calls) == len(big.calls)


def test_a_directory_made_anew_lists_that_one_directory_below_and_no_other(open_store, room):
    def edit(path):
        (path / "small/f").unlink()
        (path / "small").rmdir()
        (path / "small").mkdir()

    trace, upper, lowers = trace_of(open_store, room, 1000, edit)
    assert trace.changes == 2
    assert stat.S_ISDIR(os.lstat(f"{upper}/small").st_mode)
    assert trace.listed() == {upper, f"{upper}/small", f"{lowers[0]}/small"}
