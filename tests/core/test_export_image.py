"""export_union.c of layers that are images: the fresh tar is that of the directory which the same image is when it is mounted."""

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import door
import pytest
import recipes
import sinks
from erofsdoor import Reader
from test_changes import grown
from test_erofs_kernel import ODD, TOO_LARGE, mounted
from test_erofs_lower import Layer, images_of, shown, source, tar_of
from test_erofs_write import entry, written
from test_erofs_write import tar_of as tar_with

OVERLAY, USERXATTR, KEEP, SKIP_MARKS, WHOLE = (
    int(getattr(door.lib, f"LAY_EXPORT_{name}")) for name in ("OVERLAY", "USERXATTR", "KEEP", "SKIP_MARKS", "WHOLE")
)
FLAGS = {"moby's": 0, "all attributes": KEEP, "whole": KEEP | WHOLE}
KINDS = range(4)
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
THIRD = bytes.fromhex("010000030020000000000000000000000000000000000000")

TARS = {name: recipe for name, recipe in (recipes.GOOD | ODD).items() if name != TOO_LARGE} | {
    "capabilities": lambda: tar_with(
        (entry("f", pax_headers={"SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1")}), b"x"),
        *[(entry(f"t{owner}", pax_headers={"SCHILY.xattr.security.capability": (THIRD[:20] + bytes([owner, 0, 0, 0])).decode("latin-1")}), b"x") for owner in (0, 100)],
        (entry("g", pax_headers={"SCHILY.xattr.trusted.t": "v", "SCHILY.xattr.user.u": ""}), b"x"),
    ),
    "opaque and deleted": lambda: tar_with(
        entry("d", b"5"), entry("d/.wh..wh..opq"), entry("d/.wh.gone"), entry(".wh.a"), entry("b", b"5", mode=0o1777), entry("b/c", b"6")
    ),
    "names of one file": lambda: tar_with((entry("b"), b"content"), entry("a", b"1", linkname="b"), entry("c/d", b"1", linkname="b")),
    "long names": lambda: tar_with((entry("d" * 200 + "/" + "f" * 255), b"x"), entry("l", b"2", linkname="t" * 4000)),
}


def outcome(exporting: Callable[..., tuple[Any, ...]], *args: Any) -> tuple[Any, ...]:
    """What it returns, or how it fails."""
    try:
        return exporting(*args)
    except door.CoreError as error:
        return error.code, error.text, error.path


def told(exported: Any, step: int = sinks.LIMIT) -> tuple[Any, ...]:
    """What an export says before it is read, its bytes, and what it says then."""
    size = door.out("int64_t *")
    door.call("lay_source_size", exported, size)
    before = [door.lib.lay_export_left_out(exported, kind) for kind in KINDS]
    tar = sinks.read_source(exported, step)
    assert len(tar) == size[0]
    return before, tar, [door.lib.lay_export_left_out(exported, kind) for kind in KINDS], door.lib.lay_export_files_size(exported)


def of_layers(layers: list[Layer], below: list[Layer] | None = None, flags: int = 0, step: int = sinks.LIMIT) -> tuple[Any, ...]:
    with shown(layers) as above, shown(below or []) as under:
        exported = source("lay_export_stack_open", above, len(layers), door.ffi.NULL if below is None else under, len(below or []), flags)
    try:
        return told(exported, step)
    finally:
        door.ffi.release(exported)


def of_directory(place: Path, flags: int) -> tuple[Any, ...]:
    with sinks.directory(place) as fd:
        exported = source("lay_export_tree_open", fd, flags | OVERLAY)
    try:
        return told(exported)
    finally:
        door.ffi.release(exported)


@contextlib.contextmanager
def image(data: bytes) -> Iterator[Reader]:
    fd = os.memfd_create("image")
    with os.fdopen(fd, "wb", closefd=False) as file:
        file.write(data)
    reader = Reader(fd)
    os.close(fd)
    try:
        yield reader
    finally:
        reader.close()


@pytest.mark.parametrize("name", TARS)
def test_a_layers_fresh_tar_is_that_of_its_mount(room: Path, name: str) -> None:
    data = written(TARS[name]())
    with image(data) as layer, mounted(data, room) as at:
        for flags in FLAGS.values():
            assert outcome(of_layers, [layer], None, flags) == outcome(of_directory, at, flags)
            expected = of_directory(at, flags | SKIP_MARKS)
            assert of_layers([layer], None, flags | SKIP_MARKS) == expected
            assert of_layers([layer], [], flags | SKIP_MARKS) == of_layers([at], [], flags | SKIP_MARKS)
        if len(expected[1]) < 100_000:
            assert of_layers([layer], None, flags | SKIP_MARKS, step=777) == expected


@pytest.mark.parametrize("seed", range(6))
def test_a_drawn_layers_fresh_tar_is_that_of_its_directory(room: Path, seed: int) -> None:
    place = grown(room / "d", random.Random(seed), upper=True)
    data = written(tar_of(place))
    with image(data) as layer, mounted(data, room) as at:
        for flags in FLAGS.values():
            assert of_layers([layer], None, flags) == of_directory(at, flags) == of_directory(place, flags)


@pytest.mark.parametrize("seed", range(6))
def test_stacks_of_images_and_directories_give_the_tar_of_directories_alone(room: Path, seed: int) -> None:
    draw = random.Random(seed)
    room.joinpath("all").mkdir()
    places = [grown(room / "all" / f"{i}", draw, upper=i < 3) for i in range(5)]
    above, below = places[: draw.randrange(1, 4)], places[3:]
    with images_of(places) as images:
        of = dict(zip(places, images, strict=True))
        for flags in FLAGS.values():
            for under in (None, [], below):
                expected = of_layers(list(above), under and list(under), flags)
                assert of_layers([of[p] for p in above], under and [of[p] for p in under], flags) == expected
                assert of_layers([draw.choice((p, of[p])) for p in above], under and [of[p] for p in under], flags) == expected


def test_a_capability_of_the_third_revision_is_of_the_second_in_moby_tars() -> None:
    value = THIRD.decode("latin-1")
    with image(written(tar_with((entry("f", pax_headers={"SCHILY.xattr.security.capability": value}), b"x")))) as layer:
        tar = of_layers([layer])[1]
    assert CAPABILITY in tar and THIRD not in tar


def test_the_image_may_be_closed_before_its_tar_is_read(room: Path) -> None:
    with image(written(TARS["good_t1"]())) as layer:
        expected = of_layers([layer])[1]
        with shown([layer]) as above:
            exported = source("lay_export_stack_open", above, 1, door.ffi.NULL, 0, 0)
    assert sinks.read_source(exported) == expected
    door.ffi.release(exported)


def test_a_name_that_is_a_mark_is_refused_or_left_out() -> None:
    """What aufs kept beside its files."""
    with image(written(recipes.GOOD["good_aufs_names"]())) as layer:
        with door.fails("LAY_E_BREAKOUT") as errors:
            of_layers([layer])
        assert errors[0].path == b".wh..wh.plnk"
        _, tar, left, _ = of_layers([layer], None, SKIP_MARKS)
    assert left[door.lib.LAY_LEFT_MARK] > 0 and b".wh..wh.plnk" not in tar


def test_damage_is_told_with_its_place(room: Path) -> None:
    (room / "d" / "sub").mkdir(parents=True)
    for i in range(30):
        (room / "d" / "sub" / f"f{i}").write_text(str(i))
    data = bytearray(written(tar_of(room / "d")))
    at = data.index(b"f0f1f10")
    data[at : at + 2] = b"zz"                    # the first of the names comes last
    with image(bytes(data)) as layer:
        with door.fails("LAY_E_MISMATCH") as errors:
            of_layers([layer])
        assert errors[0].path == b"sub" and "out of order" in errors[0].text
        with sinks.directory(room / "d"), door.fails("LAY_E_MISMATCH") as errors:
            of_layers([layer, room / "d"], [])
        assert "out of order" in errors[0].text
