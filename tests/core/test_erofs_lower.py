"""erofs_lower.c: layers that are images show what their directories show, to all that look at layers, mixed with them too."""

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import door
import pytest
import sinks
from erofsdoor import Reader
from test_changes import grown, lines_of
from test_erofs_write import written
from test_lower import drawn

Layer = Path | Reader


def source(name: str, *args: Any) -> Any:
    handle = door.ffi.new("lay_source **")
    door.call(name, handle, *args)
    return door.ffi.gc(handle[0], door.lib.lay_source_free)


def tar_of(place: Path) -> bytes:
    """The tar of a layer's directory, marks and all."""
    with sinks.directory(place) as fd:
        exported = source("lay_export_tree_open", fd, door.lib.LAY_EXPORT_OVERLAY | door.lib.LAY_EXPORT_KEEP)
        tar = sinks.read_source(exported)
        door.ffi.release(exported)
        return tar


@contextlib.contextmanager
def images_of(places: list[Path]) -> Iterator[list[Reader]]:
    made = []
    for place in places:
        fd = os.memfd_create("image")
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(written(tar_of(place)))
        made.append(Reader(fd))
        os.close(fd)
    try:
        yield list(made)
    finally:
        for reader in made:
            reader.close()


@contextlib.contextmanager
def shown(layers: list[Layer]) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        all_of = []
        for layer in layers:
            if isinstance(layer, Reader):
                all_of.append((-1, door.lib.lay_erofs_lower(layer.e)))
            else:
                all_of.append((stack.enter_context(sinks.directory(layer)), door.ffi.NULL))
        yield door.ffi.new("lay_shown[]", [*all_of, (-1, door.ffi.NULL)])


def overlay(uppers: list[Layer], lowers: list[Layer], flags: int = 0) -> list[str]:
    handle = door.ffi.new("lay_changes **")
    with shown(uppers) as above, shown(lowers) as below:
        door.call("lay_changes_overlay", handle, above, len(uppers), below, len(lowers), flags)
    return lines_of(handle[0])


def stacks(new: list[Layer], old: list[Layer], flags: int = 0) -> list[str]:
    handle = door.ffi.new("lay_changes **")
    with shown(new) as fresh, shown(old) as before:
        door.call("lay_changes_stacks", handle, fresh, len(new), before, len(old), flags)
    return lines_of(handle[0])


def size(layers: list[Layer]) -> int:
    total = door.out("int64_t *")
    with shown(layers) as all_of:
        door.call("lay_stack_size", all_of, len(layers), 0, total)
    return int(total[0])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("flags", [0, 8], ids=["stats", "contents"])
def test_changes_over_images_are_those_over_their_directories(room: Path, seed: int, flags: int) -> None:
    upper, below = drawn(room / "all", seed)
    mixed = random.Random(seed)
    expected = overlay([upper], below, flags)
    assert len(expected) > 50
    with images_of(below) as images:
        assert overlay([upper], images, flags) == expected
        some = [mixed.choice(pair) for pair in zip(below, images, strict=True)]
        assert overlay([upper], some, flags) == expected


@pytest.mark.parametrize("seed", range(8))
def test_stacks_of_images_differ_as_stacks_of_their_directories(room: Path, seed: int) -> None:
    draw = random.Random(seed)
    room.joinpath("all").mkdir()
    places = [grown(room / "all" / f"{i}", draw, upper=False) for i in range(5)]
    new, old = draw.sample(places, draw.randrange(1, 5)), draw.sample(places, draw.randrange(1, 4))
    expected = stacks(new, old)
    with images_of(places) as images:
        of = dict(zip(places, images, strict=True))
        assert stacks([of[p] for p in new], [of[p] for p in old]) == expected
        assert stacks([of[p] for p in new], [of[p] for p in new]) == []
        assert stacks([of[p] for p in new], old) == expected
        assert overlay([of[p] for p in new], [of[p] for p in old]) == overlay(new, old)
        assert size([of[p] for p in new]) == size(new)


def test_an_image_that_is_freed_goes_on_for_who_keeps_it(room: Path) -> None:
    """A tar of directories that stand on an image is read after the image was closed by who opened it."""
    draw = random.Random(1)
    room.joinpath("all").mkdir()
    upper, lower = grown(room / "all" / "u", draw, upper=True), grown(room / "all" / "l", draw, upper=False)
    second = grown(room / "all" / "v", draw, upper=True)

    def exported(below: list[Layer]) -> Any:
        with shown([upper, second]) as above, shown(below) as under:
            return source("lay_export_stack_open", above, 2, under, len(below), 0)

    over_directory = exported([lower])
    with images_of([lower]) as images:
        over_image = exported(list(images))
    assert sinks.read_source(over_image) == sinks.read_source(over_directory)
    door.ffi.release(over_image)
    door.ffi.release(over_directory)


def test_what_must_read_directories_says_that_an_image_is_none(room: Path) -> None:
    (room / "d").mkdir()
    with images_of([room / "d"]) as images, shown(list(images)) as above:
        fd = door.out("int *")
        with door.fails("LAY_E_UNSUPPORTED"):
            door.call("lay_stack_open", above, 1, 0, b"f", fd)
        with door.fails("LAY_E_UNSUPPORTED"), sinks.directory(room / "d") as to:
            door.make("lay_merge_open", "lay_merge *", above, 1, door.ffi.NULL, 0, to, 0)


def test_damage_below_is_an_error_of_the_comparison(room: Path) -> None:
    place = room / "d"
    place.mkdir()
    for i in range(30):
        (place / f"f{i}").write_text(str(i))
    data = bytearray(written(tar_of(place)))
    at = data.index(b"f0f1f10")
    data[at : at + 2] = b"zz"                    # the first of the names comes last
    fd = os.memfd_create("image")
    os.write(fd, data)
    reader = Reader(fd)
    os.close(fd)
    assert door.lib.lay_lower_damage(door.lib.lay_erofs_lower(reader.e)) == door.ffi.NULL
    with door.fails("LAY_E_OS") as errors:
        stacks([place], [reader])
    assert errors[0].sys_errno == 117             # EUCLEAN
    assert b"out of order" in door.ffi.string(door.lib.lay_lower_damage(door.lib.lay_erofs_lower(reader.e)))
    with door.fails("LAY_E_MISMATCH") as errors:
        reader.verify()
    assert "out of order" in errors[0].text and "at byte" in errors[0].text
    reader.close()
