"""changes_overlay.c, changes_spots.c: the same answer, and the same first error, however many threads look."""

import contextlib
import os
import random
import resource
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import door
import pytest
from door import fails

KINDS = "CAD"
THREADS_SEEN = 200  # rounds in which more than one thread must have been seen at least once


def changes(upper: Path | list[Path], lowers: list[Path], flags: int = 0) -> list[str]:
    """The comparison, as lines."""
    with contextlib.ExitStack() as stack:
        fds = []
        for place in (*([upper] if isinstance(upper, Path) else upper), *lowers):
            fds.append(os.open(place, os.O_RDONLY | os.O_DIRECTORY))
            stack.callback(os.close, fds[-1])
        handle = door.ffi.new("lay_changes **")
        uppers = 1 if isinstance(upper, Path) else len(upper)
        ints = door.shown(fds)
        door.call("lay_changes_overlay", handle, ints, uppers, ints + uppers, len(lowers), flags)
    return lines_of(handle[0])


def lines_of(owned: Any) -> list[str]:
    found = door.ffi.gc(owned, door.lib.lay_changes_free)
    path, n = door.out("const char **"), door.out("size_t *")
    lines = []
    for i in range(door.lib.lay_changes_count(found)):
        kind = KINDS[door.lib.lay_changes_at(found, i, path, n)]
        lines.append(f"{kind} {os.fsdecode(door.ffi.buffer(path[0], n[0])[:])}")
    return lines


@contextlib.contextmanager
def one_processor() -> Iterator[None]:
    """No second thread is started then."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0))


def grown(place: Path, draw: random.Random, *, upper: bool) -> Path:
    """A tree of some 200 directories, of names that come again in each tree."""
    place.mkdir()
    dirs = [place]
    for _ in range(draw.randrange(100, 300)):
        path = draw.choice(dirs[-8:]) / f"d{draw.randrange(12)}"
        if not os.path.lexists(path):
            path.mkdir(mode=draw.choice((0o755, 0o700)))
            dirs.append(path)
            if draw.random() < 0.1:
                os.setxattr(path, "trusted.overlay.opaque", b"y")
    for path in dirs:
        for i in range(draw.randrange(5)):
            name = path / f"f{i}"
            if draw.random() < 0.2 and (upper or path != place):
                whiteout(name)
            else:
                name.write_text("x" * draw.randrange(3))
                os.utime(name, (5, 5))
    return place


@pytest.mark.parametrize("lowers", [0, 1, 3])
def test_any_number_of_threads_gives_the_same_list(room: Path, lowers: int) -> None:
    for seed in range(10):
        draw = random.Random(seed * 10 + lowers)
        place = room / str(seed)
        place.mkdir()
        below = [grown(place / f"low{i}", draw, upper=False) for i in range(lowers)]
        upper = grown(place / "up", draw, upper=True)
        with one_processor():
            alone = changes(upper, below)
        assert len(alone) > 50
        for _ in range(5):
            assert changes(upper, below) == alone


def test_a_hundred_lowers_of_the_same_directories_are_looked_up_each(room: Path) -> None:
    """More than a thread keeps open."""
    lowers = []
    for i in range(100):
        for name in ("a/b", "a/c", "q"):
            (room / f"low{i}" / name).mkdir(parents=True)
        (room / f"low{i}/a/b/f{i:03}").touch()
        lowers.append(room / f"low{i}")
    for i in range(100):
        path = room / "up/a/b" / f"f{i:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("longer")
    for name in ("a/c", "q"):
        (room / "up" / name).mkdir(parents=True)
    os.setxattr(room / "low0/q", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    expected = ["C /a", "C /a/b", *(f"C /a/b/f{i:03}" for i in range(100)), "C /q"]
    assert changes(room / "up", lowers) == expected
    os.setxattr(room / "up/a/b", "trusted.overlay.opaque", b"y")
    (room / "up/a/b/f007").unlink()
    expected[9:10] = []
    assert changes(room / "up", lowers) == [*expected[:-1], "D /a/b/f007", "C /q"]


def test_of_several_errors_the_first_in_order_is_told(room: Path) -> None:
    """Behind it in order, but nearer to the top, lie others."""
    up, low = room / "up", room / "low"
    for top in range(40):
        for deep in range(20):
            for place in (up, low):
                (place / f"t{top:02}/d{deep:02}/e").mkdir(parents=True)
    for top, names in ((7, ("d19/e",)), (8, ("", "d00", "d01")), (30, ("", "d03/e"))):
        for name in names:
            os.setxattr(up / f"t{top:02}" / name, "trusted.overlay.redirect", b"/x")
    for _ in range(20):
        with fails("LAY_E_UNSUPPORTED") as errors:
            changes(up, [low])
        assert errors[0].path == b"t07/d19/e"
    os.removexattr(up / "t07/d19/e", "trusted.overlay.redirect")
    (up / "t07/d02/f").touch()
    os.setxattr(up / "t07/d02/f", "trusted.overlay.metacopy", b"")
    with fails("LAY_E_UNSUPPORTED") as errors:
        changes(up, [low])
    assert errors[0].path == b"t07/d02/f"


def test_threads_are_used_and_end_with_the_call(room: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.fail("two processors are needed")
    up = room / "up"
    for i in range(1500):
        (up / f"d{i}").mkdir(parents=True)
    seen, over = 0, threading.Event()

    def watch() -> None:
        nonlocal seen
        while not over.is_set():
            seen = max(seen, len(os.listdir("/proc/self/task")))

    before = len(os.listdir("/proc/self/task"))
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(THREADS_SEEN):
            assert len(changes(up, [])) == 1500
            if seen > before + 1:
                break
    finally:
        over.set()
        watcher.join()
    assert seen > before + 1
    # A thread that was joined may still be listed for a moment.
    while len(os.listdir("/proc/self/task")) > before:
        time.sleep(0.001)


def test_few_descriptors_are_enough(room: Path) -> None:
    """Where they do not last for every thread, one does it all."""
    lowers = [room / f"low{i}" for i in range(30)]
    for place in (room / "up", *lowers):
        for i in range(60):
            (place / f"t{i}/a/b").mkdir(parents=True)
    for i in range(60):
        (room / f"up/t{i}/a/b/f").touch()
    enough = changes(room / "up", lowers)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = 31 + 70  # the roots; 30 lowers, twice, and upper's; not twice that
    lowest = os.dup(0)
    os.close(lowest)
    for _ in range(5):
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, limits[1]))
        try:
            found = changes(room / "up", lowers)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert found == enough
    assert sum(line.startswith("A ") for line in enough) == 60
