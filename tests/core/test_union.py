"""union/: layers stacked show what one directory would, as a model in plain Python and as real overlay mounts say."""

import contextlib
import os
import random
import resource
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import disk
import door
import pytest
from door import fails
from full_comparison import full_comparison, paths_in, tree_of
from test_changes import grown, whiteout

OPAQUE = "trusted.overlay.opaque"
DT_DIR, DT_WHT = 4, 14
USERXATTR, OVER_MARKS, KEEP, WHOLE = 1, 2, 4, 16


class Found(NamedTuple):
    path: str
    layer: int
    is_dir: bool
    hidden: bool
    opaque: bool


@contextlib.contextmanager
def opened(places: Sequence[Path]) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        fds = []
        for place in places:
            fds.append(os.open(place, os.O_RDONLY | os.O_DIRECTORY))
            stack.callback(os.close, fds[-1])
        yield fds


@contextlib.contextmanager
def union(layers: Sequence[Path], below: Sequence[Path] | None = (), flags: int = 0) -> Iterator[Any]:
    with opened([*layers, *(below or ())]) as fds:
        ints = door.shown(fds)
        lower = door.ffi.NULL if below is None else ints + len(layers)
        handle = door.ffi.new("lay_union **")
        door.call("lay_union_open_at", handle, ints, len(layers), lower, len(below or ()), flags)
        try:
            yield handle[0]
        finally:
            door.lib.lay_union_free(handle[0])


@contextlib.contextmanager
def walk(layers: Sequence[Path], below: Sequence[Path] | None = (), flags: int = 0) -> Iterator[Iterator[Any]]:
    def each(handle: Any) -> Iterator[Any]:
        found = door.ffi.new("lay_union_found *")
        while True:
            door.call("lay_union_walk_next", handle, found)
            if not found.path:
                return
            yield found

    with union(layers, below, flags) as stacked:
        handle = door.make("lay_union_walk_open", "lay_union_walk *", stacked)
        try:
            yield each(handle)
        finally:
            door.ffi.release(handle)


def text(p: Any) -> str:
    return os.fsdecode(door.ffi.string(p))


def walked(layers: Sequence[Path], below: Sequence[Path] | None = (), flags: int = 0) -> list[Found]:
    with walk(layers, below, flags) as entries:
        found = []
        for e in entries:
            path = text(e.path)
            assert (len(os.fsencode(path)), path.count("/") + 1) == (e.path_len, e.depth)
            assert path.rpartition("/")[2] == text(e.name)
            seen, there = os.stat(e.name and text(e.name), dir_fd=getattr(e, "in"), follow_symlinks=False), layers[e.layer] / path
            assert os.path.samestat(seen, os.lstat(there))
            found.append(Found(path, e.layer, e.type == DT_DIR, e.type == DT_WHT, bool(e.opaque)))
        return found


# ---- the model ----


def is_whiteout(path: Path) -> bool:
    status = os.lstat(path)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, OPAQUE) == b"y"
    except OSError:
        return False


def is_real_dir(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def below_has(below: Sequence[Path], path: str, *, marks: bool) -> bool:
    """Return True if these show something at path; with marks, also if that is a whiteout."""
    *dirs, name = path.split("/")
    for place in below:
        at, last = place, False
        for part in dirs:
            at = at / part
            if not is_real_dir(at):
                last |= os.path.lexists(at)
                break
            last |= is_opaque(at)
        else:
            if os.path.lexists(at / name):
                return marks or not is_whiteout(at / name)
        if last:
            return False
    return False


def model(layers: Sequence[Path], below: Sequence[Path] | None = (), *, marks: bool = False) -> list[Found]:
    found: list[Found] = []

    def into(path: str, parts: list[int], cut: bool) -> None:
        names = {name for i in parts for name in os.listdir(layers[i] / path)}
        for name in sorted(names, key=os.fsencode):
            here = f"{path}/{name}" if path else name
            have = [i for i in parts if os.path.lexists(layers[i] / here)]
            first = layers[have[0]] / here
            if is_whiteout(first):
                if below is None or (not cut and below_has(below, here, marks=marks)):
                    found.append(Found(here, have[0], False, True, False))
                continue
            if not is_real_dir(first):
                found.append(Found(here, have[0], False, False, False))
                continue
            inner, opaque = [], False
            for i in have:
                opaque = not is_real_dir(layers[i] / here)
                if opaque:
                    break
                inner.append(i)
                opaque = is_opaque(layers[i] / here)
                if opaque:
                    break
            found.append(Found(here, have[0], True, False, opaque))
            into(here, inner, cut or opaque)

    into("", list(range(len(layers))), False)
    return found


def drawn(place: Path, seed: int, count: int) -> list[Path]:
    draw = random.Random(seed)
    place.mkdir()
    layers = [grown(place / f"l{i}", draw, upper=True) for i in range(count)]
    for layer in layers:
        for i in range(4):
            path = layer / f"d{draw.randrange(12)}"
            if not os.path.lexists(path):
                whiteout(path) if draw.random() < 0.6 else path.write_text("a file")
            elif not path.is_dir():
                path.unlink()
                path.symlink_to(f"d{i}")
    for i, layer in enumerate(layers[:-1]):        # what lies below somewhere, deleted here
        below = sorted({path.relative_to(lower) for lower in layers[i + 1 :] for path in lower.rglob("*")})
        free = [path for path in below if is_real_dir((layer / path).parent) and not os.path.lexists(layer / path)]
        for path in draw.sample(free, min(len(free), 60)):
            if is_real_dir((layer / path).parent):
                whiteout(layer / path)
    return layers


@contextlib.contextmanager
def mounted(place: Path, lowers: Sequence[Path]) -> Iterator[Path]:
    for name in ("merged", "nothing", "none"):       # one lower alone is no overlay
        (place / name).mkdir(exist_ok=True)
    options = "lowerdir=" + ":".join(map(str, [*lowers, place / "nothing", place / "none"]))
    disk.mount("overlay", place / "merged", "overlay", 1, options)
    try:
        yield place / "merged"
    finally:
        disk.unmount(place / "merged", 0)


# ---- what it shows ----


@pytest.mark.parametrize("seed", range(8))
def test_the_walk_is_what_the_model_says(room: Path, seed: int) -> None:
    layers = drawn(room / "all", seed, 6)
    for run, below in ((layers[:1], layers[1:]), (layers[:3], layers[3:]), (layers[2:4], layers[4:]), (layers, []), (layers[:4], None)):
        expected = model(run, below)
        assert len(expected) > 100
        assert walked(run, below) == expected
        assert walked(run, below, KEEP) == expected
        assert walked(run, below, OVER_MARKS) == model(run, below, marks=True)
    assert any(found.hidden for found in walked(layers[:1], layers[1:]))
    assert sum(found.opaque for found in walked(layers[:3], layers[3:])) > 3


@pytest.mark.parametrize("seed", range(8))
def test_a_whole_tree_is_what_the_kernel_mounts(room: Path, seed: int) -> None:
    layers = drawn(room / "all", seed + 100, 4)
    found = walked(layers)
    with mounted(room, layers) as point:
        tree = tree_of(point)
        assert [os.fsdecode(path) for path in paths_in(tree)] == [one.path for one in found]
        for one in found:
            seen, there = os.lstat(point / one.path), os.lstat(layers[one.layer] / one.path)
            assert (seen.st_mode, seen.st_mtime_ns) == (there.st_mode, there.st_mtime_ns)
            assert one.is_dir or seen.st_size == there.st_size


def merge(layers: Sequence[Path], below: Sequence[Path], into: Path, flags: int = 0) -> None:
    """What the walk says, made: by hard links; directories anew."""
    into.mkdir()
    with walk(layers, below, flags) as entries:
        dirs = []
        for e in entries:
            there, here = layers[e.layer] / text(e.path), into / text(e.path)
            if e.type != DT_DIR:
                os.link(there, here, follow_symlinks=False)
                continue
            here.mkdir()
            if e.opaque:
                os.setxattr(here, OPAQUE, b"y")
            dirs.append((here, os.lstat(there)))
    for here, status in reversed(dirs):
        here.chmod(stat.S_IMODE(status.st_mode))
        os.utime(here, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("seed", range(8))
def test_a_directory_made_of_a_run_shows_the_same_in_the_runs_place(room: Path, seed: int) -> None:
    layers = drawn(room / "all", seed + 200, 6)
    with mounted(room, layers) as point:
        expected = tree_of(point)
    for name, run, flags in (("some", slice(1, 4), OVER_MARKS), ("below", slice(3, 6), 0), ("whole", slice(0, 6), 0), ("one", slice(2, 3), 0)):
        merge(layers[run], layers[run.stop :], room / name, flags)
        with mounted(room, [*layers[: run.start], room / name, *layers[run.stop :]]) as point:
            # lowest directories are compared too; inodes are the mount's own
            assert full_comparison(tree_of(point), expected) == full_comparison(expected, tree_of(point)) == []


def test_merged_in_steps_is_merged_at_once(room: Path) -> None:
    """Down to the layer's own whiteouts, which a tar names with their times."""
    for seed in range(6):
        layers = drawn(room / str(seed), seed + 300, 6)
        merge(layers[1:3], layers[3:], room / f"{seed}m", OVER_MARKS)
        for base in (4, 5):
            at_once = walked(layers[:base], layers[base:])
            stepwise = walked([layers[0], room / f"{seed}m", *layers[3:base]], layers[base:])
            renumbered = [(one.path, one.is_dir, one.hidden, one.opaque) for one in at_once]
            assert [(one.path, one.is_dir, one.hidden, one.opaque) for one in stepwise] == renumbered
            for one, other in zip(at_once, stepwise, strict=True):
                place = [layers[0], room / f"{seed}m", *layers[3:base]][other.layer]
                assert one.is_dir or os.path.samestat(os.lstat(layers[one.layer] / one.path), os.lstat(place / other.path))


def test_a_directory_that_was_passed_over_is_not_entered(room: Path) -> None:
    (room / "l/a/b").mkdir(parents=True)
    (room / "l/c").mkdir()
    with union([room / "l"]) as stacked:
        handle = door.make("lay_union_walk_open", "lay_union_walk *", stacked)
        found, seen = door.ffi.new("lay_union_found *"), []
        door.call("lay_union_walk_next", handle, found)
        while found.path:
            seen.append(text(found.path))
            door.lib.lay_union_walk_pass(handle)
            door.call("lay_union_walk_next", handle, found)
        door.ffi.release(handle)
    assert seen == ["a", "c"]


def test_a_union_of_nothing_is_empty() -> None:
    assert walked([]) == []


@pytest.mark.parametrize("below", [(), None], ids=["on nothing", "any"])
def test_one_path_is_shown_by_the_layer_of_the_walk(room: Path, below: Sequence[Path] | None) -> None:
    layers = drawn(room / "all", 8, 4)
    with union(layers, below) as stacked:
        layer = door.out("size_t *")

        def shown(path: str) -> int | None:
            raw = os.fsencode(path)
            return layer[0] if door.lib.lay_union_shows(stacked, raw, len(raw), layer) == 0 else None

        there = {one.path: one.layer for one in model(layers)}
        names = {str(path.relative_to(place)) for place in layers for path in place.rglob("*")}
        assert {path: shown(path) for path in names} == {path: there.get(path) for path in names}
        assert (shown(""), shown("none"), shown("none/at/all")) == (0, None, None)


# ---- as a layer ----


def test_one_layer_answers_for_all(room: Path) -> None:
    layers = drawn(room / "all", 7, 4)
    with union(layers, None) as stacked:
        lower = door.ffi.new("lay_lower *", door.lib.lay_union_lower(stacked))
        paths = [one for one in model(layers, None) if one.is_dir]
        assert len(paths) > 50
        for one in paths:
            path = os.fsencode(one.path)
            into = lower.ops.open(lower, lower.root, path, len(path))
            assert into > 0
            value = door.ffi.new("char[8]")
            said = lower.ops.xattr(lower, into, b".", OPAQUE.encode(), value, 8)
            assert (said == 1 and value[0] == b"y") == one.opaque
            names = door.ffi.new("char[1024]")
            n = lower.ops.xattr(lower, into, b".", door.ffi.NULL, names, 1024)
            assert (OPAQUE.encode() in door.ffi.buffer(names, n)[:].split(b"\0")) == one.opaque
            assert lower.ops.xattr(lower, into, b".", door.ffi.NULL, names, 0) == n
            again = lower.ops.open(lower, into, b"", 0)
            listed = [door.ffi.new("lay_names *") for _ in range(2)]
            for place, to in zip((into, again), listed, strict=True):
                err = door.new_error()
                assert lower.ops.list(lower, place, to, err) == 0
                lower.ops.close(lower, place)
            got = [[text(names.text + names.list[i].at) for i in range(names.count)] for names in listed]
            inside = [each.path for each in model(layers, None) if each.path.rpartition("/")[0] == one.path]
            assert got == [[path.rpartition("/")[2] for path in inside]] * 2
            for names in listed:
                door.lib.lay_names_free(names)
        assert lower.ops.open(lower, lower.root, b"none", 4) == -1


# ---- extremes ----


@contextlib.contextmanager
def few_descriptors(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_five_hundred_layers_take_few_descriptors(room: Path) -> None:
    layers = []
    for i in range(500):
        layers.append(room / f"l{i}")
        for path in ("a/b/c/d/e/f", "a/b/x"):
            (layers[-1] / path).mkdir(parents=True)
        (layers[-1] / f"a/b/c/d/e/f/{i:03}").touch()
        (layers[-1] / "a/b/c/same").touch()
    with few_descriptors(700):
        found = walked(layers)
    inside = [one for one in found if one.path.startswith("a/b/c/d/e/f/")]
    assert [one.layer for one in inside] == list(range(500))
    assert [one.layer for one in found if one.path == "a/b/c/same"] == [0]
    assert len(found) == 500 + 8


def test_a_deep_tree_takes_few_descriptors(room: Path) -> None:
    depth = 2500
    layers = [room / f"l{i}" for i in range(20)]
    for layer in layers:
        layer.mkdir()
        fd = os.open(layer, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir("d", dir_fd=fd)
            inner = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.close(fd)
    with few_descriptors(200), walk(layers) as entries:
        assert sum(1 for _ in entries) == depth
    for layer in layers:
        subprocess.run(["rm", "-rf", layer], check=True)      # deeper than Python recurses


def test_many_names_are_merged(room: Path) -> None:
    for i in range(3):
        (room / f"l{i}").mkdir()
        for name in range(i, 9000, 3 - i):
            os.close(os.open(room / f"l{i}" / f"{name:05}", os.O_CREAT))
    layers = [room / f"l{i}" for i in range(3)]
    assert walked(layers) == model(layers)


@pytest.mark.parametrize("where", [0, 2])
def test_what_only_a_mount_can_tell_is_refused(room: Path, where: int) -> None:
    layers = [room / f"l{i}" for i in range(3)]
    for layer in layers:
        (layer / "a/b").mkdir(parents=True)
    os.setxattr(layers[where] / "a/b", "trusted.overlay.redirect", b"/c")
    with fails("LAY_E_UNSUPPORTED") as errors:
        walked(layers)
    assert errors[0].path == b"a/b" and errors[0].text == "a redirected directory: only a mount can tell what is there"
    os.removexattr(layers[where] / "a/b", "trusted.overlay.redirect")
    os.setxattr(layers[where] / "a", OPAQUE, b"x")
    with fails("LAY_E_UNSUPPORTED") as errors:
        walked(layers)
    assert errors[0].path == b"a"


def test_a_file_without_its_data_is_refused_where_its_data_is_needed(room: Path) -> None:
    """Also under another name than it had where its data are."""
    for name in ("l0", "l1"):
        (room / name / "d").mkdir(parents=True)
    (room / "l1/d/was").write_text("data")
    (room / "l0/d/now").touch()
    os.truncate(room / "l0/d/now", 4)
    layers = [room / "l0", room / "l1"]
    assert walked(layers, (), WHOLE) == walked(layers)
    os.setxattr(room / "l0/d/now", "trusted.overlay.metacopy", b"")
    assert [one.path for one in walked(layers)] == ["d", "d/now", "d/was"]
    with fails("LAY_E_UNSUPPORTED") as errors:
        walked(layers, (), WHOLE)
    assert (errors[0].path, errors[0].text[:38]) == (b"d/now", "a file without its data (metacopy): on")
