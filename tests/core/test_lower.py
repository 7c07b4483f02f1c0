"""lower.h: layers below are asked through functions, so another kind of layer gives the same answers as a directory."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import door
import pytest
import variant
from test_changes import changes, grown, lines_of, one_processor, whiteout


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return variant.memory_lowers(tmp_path_factory.mktemp("memory"))


@pytest.fixture
def read(memory: Any) -> Iterator[Any]:
    """A layer read into memory. At the end every directory that was opened in one must have been closed."""
    made = []

    def new(place: Path) -> Any:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        made.append(memory.memory_new(fd))
        os.close(fd)
        return made[-1]

    yield new
    assert [memory.memory_given(one) for one in made] == [0] * len(made)
    for one in made:
        memory.memory_free(one)


def changes_in_memory(memory: Any, upper: Any, lowers: list[Any]) -> list[str]:
    """upper: a path, or a layer that was read."""
    handle, err = door.ffi.new("lay_changes **"), door.ffi.new("lay_error *")
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY) if isinstance(upper, Path) else -1
    try:
        below = door.ffi.new("memory *[]", lowers)
        code = memory.memory_changes(handle, door.ffi.NULL if fd >= 0 else upper, fd, below, len(lowers), err)
    finally:
        if fd >= 0:
            os.close(fd)
    assert code == door.lib.LAY_OK, door.ffi.string(err.text)
    return lines_of(handle[0])


def drawn(place: Path, seed: int) -> tuple[Path, list[Path]]:
    draw = random.Random(seed)
    place.mkdir()
    below = [grown(place / f"low{i}", draw, upper=False) for i in range(draw.randrange(1, 5))]
    upper = grown(place / "up", draw, upper=True)
    subprocess.run(["cp", "-a", "--remove-destination", f"{below[0]}/.", upper], check=True)
    for path in sorted(upper.rglob("f*")):
        what = draw.random()
        if what < 0.2:
            path.unlink()
        if what < 0.1:
            whiteout(path)
        elif path.is_file() and what > 0.7:
            os.setxattr(path, "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    return upper, below


@pytest.mark.parametrize("seed", range(12))
def test_the_changes_over_layers_in_memory_are_those_over_their_directories(room: Path, memory: Any, read: Any, seed: int) -> None:
    upper, below = drawn(room / "all", seed)
    expected = changes(upper, below)
    lowers, upper_read = [read(place) for place in below], read(upper)
    for place in below:
        shutil.rmtree(place)
    assert len(expected) > 50
    assert changes_in_memory(memory, upper, lowers) == expected
    with one_processor():
        assert changes_in_memory(memory, upper_read, lowers) == expected
    assert sum(memory.memory_asked(one) for one in lowers) > 50


@pytest.mark.parametrize("seed", range(6))
def test_what_layers_show_at_a_path_is_what_their_directories_show(room: Path, memory: Any, read: Any, seed: int) -> None:
    upper, below = drawn(room / "all", seed)
    stack = [upper, *below]
    names = sorted({os.fsencode(path.relative_to(place)) for place in stack for path in place.rglob("*")})
    fds = [os.open(place, os.O_RDONLY | os.O_DIRECTORY) for place in stack]
    lowers = door.ffi.new("lay_lowers *")
    door.call("lay_lowers_open", lowers, door.shown(fds), len(fds), False)
    there = {name: door.lib.lay_lowers_show(lowers, name, len(name)) for name in [*names, b"none", b"d1/none", b"n" * 300]}
    in_memory = door.ffi.new("memory *[]", [read(place) for place in stack])
    assert {name: memory.memory_shows(in_memory, len(stack), name, len(name)) for name in there} == there
    assert {there[name] for name in names} == {0, 1}
    door.lib.lay_lowers_free(lowers)
    for fd in fds:
        os.close(fd)
