"""Trees: stacks of directories that the kernel wrote to, one over the other, are told as full comparisons of their mounts."""

import contextlib
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import disk
import pytest
from edits import Edits, layers, on_disk, scripts
from full_comparison import EMPTY, by_contents, full_comparison, paths_in, tree_of
from hypothesis import given, settings
from hypothesis import strategies as st
from soak import budget

from layerstore import NotSupportedError
from layerstore.drivers.overlay.trees import Trees

CI = bool(os.environ.get("CI"))
MS_RDONLY = 1
PLANS = budget(25, 150)


def law(examples):
    """The same cases every time in CI, new ones at a desk."""
    return settings(max_examples=examples, deadline=None, derandomize=CI, database=None)


def id_of(name):
    return hashlib.sha256(name.encode()).hexdigest()


class Stacks:
    """Directories of one home, by short names."""

    def __init__(self, opened):
        self.at, self.home = opened.driver.host.ground.at, opened.home
        self.trees = Trees(opened.driver.host.ground)

    def new(self, name):
        self.at.create(id_of(name), "")
        self.at.recorded(id_of(name))
        return self.diff(name)

    def diff(self, name):
        return self.home / id_of(name) / "diff"

    def made(self, name, layer):
        self.new(name).rmdir()
        on_disk(layer, os.fsencode(self.diff(name)))

    def remove(self, *names):
        for name in names:
            self.at.forget(id_of(name))
            self.at.remove_tree(id_of(name))

    @contextlib.contextmanager
    def mounted(self, names, upper=None, options=""):
        place = self.home.parent / f"at {'-'.join([upper or '', *names])}"
        for name in ("merged", "work", "nothing", "none"):
            (place / name).mkdir(parents=True, exist_ok=True)
        text = "lowerdir=" + ":".join(map(str, [*map(self.diff, names), place / "nothing", place / "none"]))
        if upper:
            text += f",upperdir={self.diff(upper)},workdir={place}/work"
        disk.mount("overlay", place / "merged", "overlay", 0 if upper else MS_RDONLY, text + options)
        try:
            yield place / "merged"
        finally:
            disk.unmount(place / "merged", 0)
            disk.remove_tree(place)

    def written(self, name, below, script):
        """A box on these, once it was edited; told as a story."""
        self.new(name)
        with self.mounted(below, name) as point:
            return Edits(point, paths_in(tree_of(point))).run(script)

    def changes(self, new, old, **options):
        return [str(one) for one in self.trees.changes([id_of(name) for name in new], [id_of(name) for name in old], **options)]


@pytest.fixture
def stacks(opened):
    return Stacks(opened)


def pairs():
    """Every relation that a box, its snapshots, their forks and layers have: names, nearest first."""
    box, side = ["c", "b", "a", "two", "one"], ["e", "d", "a", "two", "one"]
    below = [(box, box[i:]) for i in range(1, 6)]
    back = [(box[i:], box) for i in (1, 3, 5)]
    return [*below, *back, (box, side), (side, box), (side, box[1:]), (box, ["two", "one"]), (["one"], side), (side, side)]


@pytest.mark.soak(120)
def test_stacks_are_told_as_full_comparisons_of_their_mounts(stacks):
    kinds = Counter()

    @law(PLANS)
    @given(layers(), layers(), st.lists(scripts(), min_size=5, max_size=5))
    def run(one, two, plan):
        stacks.made("one", one)
        stacks.made("two", two)
        story = [one, two]
        for name, below, script in zip("abcde", ("", "a", "ba", "a", "da"), plan, strict=True):
            story += [name, *stacks.written(name, [*below, "two", "one"], script)]
        for new, old in pairs():
            with stacks.mounted(new) as here, contextlib.ExitStack() as stack:
                before = stack.enter_context(stacks.mounted(old)) if old != new and old else None
                was = tree_of(before) if before else tree_of(here) if old else EMPTY
                expected = full_comparison(tree_of(here), was)
                nothing = here.parent / "none"
                alike = by_contents(here, before or (here if old else nothing))
            told = "\n".join(map(str, story))
            assert stacks.changes(new, old) == expected, told
            assert stacks.changes(new, old, contents=True) == alike, told
            kinds.update(line[0] for line in expected)
        stacks.remove("one", "two", *"abcde")

    run()
    assert kinds["A"] > 100 and kinds["C"] > 100 and kinds["D"] > 50, kinds


def test_what_only_a_mount_can_tell_is_told_by_one(stacks):
    layer = stacks.new("one")
    for name in ("d/e", "other"):
        (layer / name).mkdir(parents=True)
        (layer / name / "f").write_text("f" * 50)
    stacks.new("box")
    with stacks.mounted(["one"], "box", ",redirect_dir=on,metacopy=on") as point:
        (point / "d").rename(point / "d2")
        os.chmod(point / "other/f", 0o600)
    stacks.new("top")
    (stacks.diff("top") / "new").touch()
    expected = ["A /d2", "A /d2/e", "A /d2/e/f", "A /new", "C /other", "C /other/f", "D /d"]
    assert stacks.changes(["top", "box", "one"], ["one"]) == expected
    assert stacks.changes(["top", "box", "one"], ["one"], contents=True) == expected
    back = ["A /d", "A /d/e", "A /d/e/f", "C /other", "C /other/f", "D /d2", "D /new"]
    assert stacks.changes(["one"], ["top", "box", "one"]) == back


def test_the_tar_and_the_size_of_a_box_are_those_of_its_snapshots_merged(stacks, room):
    """Before and after a snapshot, an empty box over it too."""
    one = stacks.new("one")
    for name in ("a", "b", "c"):
        (one / name).write_text(name * 10)
    stacks.new("low")
    with stacks.mounted(["one"], "low") as point:
        (point / "a").unlink()
        (point / "own").write_text("own")
        (point / "b").write_text("b" * 20)
    stacks.new("high")
    with stacks.mounted(["low", "one"], "high") as point:
        (point / "own").unlink()
        (point / "b").write_text("b" * 30)
        (point / "d").mkdir()
    stacks.new("empty")

    def tar_of(*above):
        with stacks.trees.diff([id_of(name) for name in above], [id_of("one")]) as stream:
            return stream.read()

    with tarfile.open(fileobj=io.BytesIO(tar_of("high", "low"))) as read:
        assert read.getnames() == [".wh.a", "b", "d"]
    assert tar_of("high", "low") == tar_of("empty", "high", "low")
    assert tar_of("low") == tar_of("low", "empty") == tar_of("empty", "low")
    sizes = [stacks.trees.size([id_of(name) for name in names]) for names in (["high", "low"], ["low"], ["empty", "high", "low"], ["empty"])]
    assert sizes == [30, 23, 30, 0]


def test_where_the_kernel_does_not_say_it_by_directories_mounts_do(opened, stacks, monkeypatch):
    stacks.new("one")
    (stacks.diff("one") / "f").touch()
    stacks.new("two")
    (stacks.diff("two") / "g").touch()
    asked = []
    monkeypatch.setattr(opened.driver.host.ground, "native_works", lambda: asked.append(1))
    assert stacks.changes(["two", "one"], ["one"]) == ["A /g"]
    assert stacks.changes(["two"], ["one"]) == ["A /g", "D /f"]
    assert stacks.changes(["two"], []) == ["A /g"]
    assert len(asked) == 3
    monkeypatch.setattr(opened.driver.host.ground, "read_only", True)
    assert stacks.changes(["two"], ["one"]) == ["A /g", "D /f"]
    assert len(asked) == 3              # a look by mounts, which there are none of there


def test_marks_of_two_classes_in_one_tree_are_refused(stacks):
    for name, user in (("one", False), ("two", True)):
        (stacks.new(name) / "d").mkdir()
        stacks.trees._classes.set(id_of(name), user)
        os.setxattr(stacks.diff(name) / "d", f"{'user' if user else 'trusted'}.overlay.opaque", b"y")
    with pytest.raises(NotSupportedError, match="the opaque marks of"):
        stacks.changes(["two", "one"], ["one"])
    with pytest.raises(NotSupportedError, match="the opaque marks of"):
        stacks.changes(["one"], ["two", "one"])


def test_trees_of_two_classes_are_compared(stacks):
    """A side each: every opaque mark hides in its own tree."""
    for name, user in (("one", False), ("two", True)):
        kind = "user" if user else "trusted"
        (stacks.new(f"{name} base") / "d").mkdir()
        (stacks.diff(f"{name} base") / "d" / kind).touch()
        (stacks.new(name) / "d").mkdir()
        for each in (name, f"{name} base"):
            stacks.trees._classes.set(id_of(each), user)
        os.setxattr(stacks.diff(name) / "d", f"{kind}.overlay.opaque", b"y")
    assert stacks.changes(["one", "one base"], ["two", "two base"]) == []
    assert stacks.changes(["two", "two base"], ["two base"]) == ["C /d", "D /d/user"]
    assert stacks.changes(["one base"], ["two", "two base"]) == ["C /d", "A /d/trusted"]


# ---- what it costs ----

RUN = """
import sys
from layerstore._core import _changes
import os
sides = [[os.open(place, os.O_RDONLY) for place in side.split(":")] for side in sys.argv[2:]]
os.access("/begin here", 0)
found = getattr(_changes, sys.argv[1])(*sides)
os.access("/end here", 0)
print(len(found))
"""


def calls(name, new, old):
    """How many system calls a comparison makes, and what it finds."""
    command = [sys.executable, "-c", RUN, name, *(":".join(map(str, side)) for side in (new, old))]
    done = subprocess.run(["strace", "-f", "-qq", *command], capture_output=True, check=True, text=True)
    inside = re.search(r"begin here.*?\n(.*)\n[^\n]*end here", done.stderr, re.S)[1]
    return len(inside.splitlines()), int(done.stdout)


def test_forks_cost_what_they_changed_whatever_they_stand_on(room):
    costs = []
    for size in (20, 2000):
        place = Path(room / str(size))
        for i in range(size):
            path = place / "base" / f"d{i % 10}" / f"f{i}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        for name in ("left", "right"):
            (place / name / "d1").mkdir(parents=True)
            (place / name / "d1" / name).touch()
        left, right, base = ([place / name] for name in ("left", "right", "base"))
        costs.append((calls("compare_stacks", left + base, right + base), calls("compare_overlay", left + right, base)))
    assert costs[0] == costs[1]
    assert costs[0][0][1] == 3 and costs[0][1][1] == 3
