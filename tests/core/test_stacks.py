"""changes_stacks.c: several uppers, and whole stacks, differ as the overlays that the kernel mounts of them do."""

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import door
import pytest
from full_comparison import by_contents, full_comparison, tree_of
from test_changes import changes, lines_of, one_processor, whiteout
from test_union import drawn, few_descriptors, is_real_dir, mounted, opened

CONTENTS = 8


def between(new: Sequence[Path], old: Sequence[Path], flags: int = 0) -> list[str]:
    places = sorted({*new, *old})
    with opened(places) as fds:
        of = dict(zip(places, fds, strict=True))
        ints = door.shown(of[place] for place in [*new, *old])
        handle = door.ffi.new("lay_changes **")
        door.call("lay_changes_stacks", handle, ints, len(new), ints + len(new), len(old), flags)
    return lines_of(handle[0])


def mixed(room: Path, seed: int) -> list[Path]:
    """Layers whose files are alike here and there: in all, in bytes alone, in size and time alone."""
    layers, draw = drawn(room / "all", seed, 6), random.Random(seed)
    for layer in layers[1:]:
        for path in sorted(layers[0].rglob("f*")):
            there = layer / path.relative_to(layers[0])
            if not is_real_dir(there.parent) or not path.is_file() or is_real_dir(there):
                continue
            what = draw.random()
            if what < 0.5:
                there.unlink(missing_ok=True)
                shutil.copy2(path, there)
            if what < 0.2:
                os.utime(there, (7, 7))
            elif what < 0.4 and there.stat().st_size:
                time = there.stat().st_mtime_ns
                there.write_text("y" * there.stat().st_size)
                os.utime(there, ns=(time, time))
    for i, layer in enumerate(layers):
        (layer / "link").symlink_to("ab"[i % 2])
        os.utime(layer / "link", (5, 5), follow_symlinks=False)
    return layers


def stacks_of(layers: list[Path]) -> list[tuple[list[Path], list[Path]]]:
    a, b, c, d, e, f = layers
    return [
        (layers, layers), ([a, b, c, d], [c, d]), (layers, [f]), ([a], []), ([], [a, b]), ([a, b], [b, a]), ([a, b, c], [d, e, f]),
        ([a, d, e, f], [b, d, e, f]), ([a, b, d, e], [c, d, e]), ([c, d, e], [a, b, c, d, e]), ([a, e], [a, b, e]), ([a, b, e], [a, e]),
        ([a, c, e, f], [b, c, d, f]), ([d, e, f], [f]),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_two_stacks_differ_as_their_mounts_do(room: Path, seed: int) -> None:
    places = room / "new", room / "old"
    for place in places:
        place.mkdir()
    kinds, differ = set(), 0
    for new, old in stacks_of(mixed(room, seed)):
        with mounted(places[0], new) as here, mounted(places[1], old) as before:
            expected = full_comparison(tree_of(here), tree_of(before))
            alike = by_contents(here, before)
        assert between(new, old) == expected
        assert between(new, old, CONTENTS) == alike
        kinds |= {line[0] for line in expected}
        if old == new[len(new) - len(old) :]:
            uppers = new[: len(new) - len(old)]
            for _ in range(2):
                assert changes(uppers, old) == expected
                assert changes(uppers, old, CONTENTS) == alike
            with one_processor():
                assert changes(uppers, old) == expected
        differ += expected != alike
    assert kinds == {"A", "C", "D"} and differ > 3


@pytest.mark.parametrize("size", [1, 32767, 32768, 32769, 100_000])
def test_contents_are_compared_to_the_last_byte_and_times_are_not(room: Path, size: int) -> None:
    new, old = room / "new", room / "old"
    for place, last in ((new, b"1"), (old, b"2")):
        place.mkdir()
        (place / "same").write_bytes(b"x" * size)
        (place / "other").write_bytes(b"x" * (size - 1) + last)
        os.utime(place / "other", (5, 5))
        os.utime(place / "same", (5, int(last)))
    for found in (between([new], [old], CONTENTS), changes([new, room / "new"], [old], CONTENTS)):
        assert found == ["C /other"]
    assert between([new], [old]) == ["C /same"]


def test_stacks_of_hundreds_take_few_descriptors(room: Path) -> None:
    layers = [room / f"l{i}" for i in range(400)]
    for i, layer in enumerate(layers):
        (layer / "a/b/c/d").mkdir(parents=True)
        (layer / f"a/b/c/d/{i:03}").touch()
    whiteout(layers[0] / "a/b/x")
    with few_descriptors(600):
        assert between(layers, layers[1:]) == ["C /a", "C /a/b", "C /a/b/c", "C /a/b/c/d", "A /a/b/c/d/000"]
    with few_descriptors(700):       # the lowers' directories, too
        added = [f"A /a/b/c/d/{i:03}" for i in range(200)]
        assert changes(layers[:200], layers[200:]) == ["C /a", "C /a/b", "C /a/b/c", "C /a/b/c/d", *added]
        assert between(layers[:200], layers[200:])[4:204] == added
