"""mount.c, quota.c and inside.c: overlays of any shape, the kernel's own reasons, and who is inside."""

import errno
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import disk
import door
import pytest

MNT_DETACH = 2
OPTION_LIMIT = 255  # bytes of an option of fsconfig
TMPFS_MAGIC = 0x01021994


class Box:
    """Two lowers, an upper and a place to mount, in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for name in ("near", "far", "upper", "work", "merged"):
            (home / name).mkdir()
            (home / name / "from").write_text(name)
        (home / "far/deep").write_text("far")
        (home / "work/from").unlink()
        (home / "upper/from").unlink()
        self.merged = home / "merged"

    def mount(self, *, relative: bool = False, **changed: Any) -> None:
        """Mount by lay_mount_overlay: two lowers and the upper, if changed says nothing else."""
        base = "" if relative else f"{self.home}/"
        fields: dict[str, Any] = {"home": f"{self.home}" if relative else None, "target": base + "merged"}
        if "data" not in changed:
            fields |= {"lowers": [base + "near", base + "far"], "upper": base + "upper", "work": base + "work"}
        fields |= changed
        alive = []

        def c(value: Any) -> Any:
            if isinstance(value, str):
                value = door.ffi.new("char[]", os.fsencode(value))
            elif isinstance(value, list):
                value = door.ffi.new("char *[]", [c(each) for each in value])
            alive.append(value)
            return value

        counts = {f"n_{name}": len(fields[name]) for name in ("lowers", "off") if name in fields}
        set_fields = {name: c(value) for name, value in (fields | counts).items() if value is not None}
        door.call("lay_mount_overlay", door.ffi.new("lay_overlay *", set_fields))

    def unmount(self, flags: int = 0) -> None:
        door.call("lay_umount", os.fsencode(self.merged), flags)

    def of_length(self, length: int) -> str:
        """Make a directory whose path has that many bytes."""
        path = f"{self.home}/"
        while len(path) < length - 200:
            path += "d" * 100 + "/"
        path += "e" * (length - len(path))
        os.makedirs(path)
        return path


@pytest.fixture
def box(room: Path) -> Box:
    (room / "home").mkdir()
    return Box(room / "home")


def ask(kind: str, name: str, *args: Any) -> int:
    answer = door.out(kind)
    door.call(name, *args, answer)
    return int(answer[0])


def options(box: Box) -> str:
    line = disk.mount_line(box.merged)
    assert line
    return line[-1]


# ---- mounting and unmounting -----------------------------------------------------------------------
@pytest.mark.parametrize("way", ["absolute", "relative", "old", "old, relative"])
def test_the_nearest_lower_hides_the_others_and_the_upper_takes_what_is_written(box: Box, way: str) -> None:
    before = os.getcwd()
    relative = "relative" in way
    base = "" if relative else f"{box.home}/"
    data = f"lowerdir={base}near:{base}far,upperdir={base}upper,workdir={base}work"
    box.mount(relative=relative, **({"data": data} if "old" in way else {}))
    assert os.getcwd() == before
    assert (box.merged / "from").read_text() == "near"
    assert (box.merged / "deep").read_text() == "far"
    (box.merged / "new").write_text("new")
    assert (box.home / "upper/new").read_text() == "new"
    box.unmount()
    assert disk.mount_line(box.merged) is None


def test_without_an_upper_nothing_can_be_written_and_options_are_the_kernels(box: Box) -> None:
    box.mount(upper=None, work=None, follow=1, off=["index", "nfs_export"])
    with pytest.raises(OSError) as caught:
        (box.merged / "new").write_text("new")
    assert caught.value.errno == errno.EROFS
    assert "redirect_dir=" in options(box) and "metacopy=on" in options(box)
    assert "upperdir" not in options(box)
    box.unmount()


def test_userxattr_is_a_flag(box: Box) -> None:
    box.mount(userxattr=1)
    assert "userxattr" in options(box)
    box.unmount()


@pytest.mark.parametrize("option", ["first lower", "last lower", "upper"])
@pytest.mark.parametrize("longer", [0, 1])
def test_an_option_has_at_most_255_bytes(box: Box, option: str, longer: int) -> None:
    long, near = box.of_length(OPTION_LIMIT + longer), f"{box.home}/near"
    changed: dict[str, Any] = {
        "first lower": {"lowers": [long, near]}, "last lower": {"lowers": [near, long]}, "upper": {"upper": long},
    }[option]  # fmt: skip
    if not longer:
        box.mount(**changed)
        box.unmount()
        return
    with door.fails("LAY_E_OS") as errors:
        box.mount(**changed)
    # The same answer as from a kernel that has no "lowerdir+": another way may do.
    assert errors[0].sys_errno == (errno.ENOSYS if option == "first lower" else errno.EINVAL)
    assert errors[0].path == os.fsencode(box.merged)
    assert disk.mount_line(box.merged) is None


@pytest.mark.parametrize("count", [128, 500, 501])
def test_five_hundred_lowers_are_taken_and_one_more_is_refused_in_the_kernels_words(box: Box, count: int) -> None:
    lowers = [f"l/{i}" for i in range(count)]
    for name in lowers:
        (box.home / name).mkdir(parents=True)
        (box.home / name / name[2:]).touch()
    if count > 500:
        with door.fails("LAY_E_OS") as errors:
            box.mount(relative=True, lowers=lowers)
        assert errors[0].sys_errno == errno.EINVAL
        assert errors[0].text == "overlay: too many lower directories, limit is 500"
        return
    box.mount(relative=True, lowers=lowers)
    assert len(os.listdir(box.merged)) == count
    box.unmount()


def fails_with_path(code: int, path: Path, act: Callable[[], None]) -> str:
    with door.fails("LAY_E_OS") as errors:
        act()
    assert (errors[0].sys_errno, errors[0].path) == (code, os.fsencode(path))
    return errors[0].text


def test_each_failure_names_what_it_concerns(box: Box) -> None:
    merged, nowhere = box.merged, box.home / "nowhere"
    (box.home / "upper/work").mkdir()
    for silent in ({"work": f"{box.home}/upper/work"}, {"lowers": []}):  # of these the kernel says nothing more
        text = fails_with_path(errno.EINVAL, merged, lambda changed=silent: box.mount(**changed))
        assert text == os.strerror(errno.EINVAL)
    fails_with_path(errno.ENOENT, nowhere, lambda: box.mount(target=str(nowhere)))
    fails_with_path(errno.ENOENT, nowhere, lambda: box.mount(relative=True, home=str(nowhere)))
    fails_with_path(errno.ENOENT, merged, lambda: box.mount(data=f"lowerdir={nowhere}"))
    fails_with_path(errno.EINVAL, merged, box.unmount)
    assert disk.mount_line(merged) is None


# ---- an upper, a file system -------------------------------------------------------------------------
def test_an_upper_is_in_use_until_the_last_descriptor_of_its_overlay_is_closed(box: Box) -> None:
    def used() -> int:
        return ask("int *", "lay_upper_in_use", os.fsencode(box.home / "upper"))

    assert used() == 0
    box.mount()
    assert used() == 1
    assert ask("int *", "lay_upper_in_use", os.fsencode(box.home / "far")) == 0
    inside = os.open(box.merged, os.O_PATH)
    box.unmount(MNT_DETACH)
    assert used() == 1
    os.close(inside)
    assert used() == 0
    assert os.listdir(box.home / "upper") == []
    box.home.joinpath("upper").rmdir()
    fails_with_path(errno.ENOENT, box.home / "upper", lambda: used() and None)


def test_a_file_system_says_what_it_is(box: Box) -> None:
    path, nowhere = os.fsencode(box.home), box.home / "nowhere"
    assert ask("unsigned *", "lay_fs_magic", path) == TMPFS_MAGIC
    assert ask("int *", "lay_dirents_typed", path) == 1
    door.call("lay_sync_filesystem", path)
    for name, answer in (("lay_fs_magic", ["unsigned *"]), ("lay_dirents_typed", ["int *"]), ("lay_sync_filesystem", [])):
        given = [door.out(kind) for kind in answer]
        fails_with_path(errno.ENOENT, nowhere, lambda name=name, given=given: door.call(name, os.fsencode(nowhere), *given))


def test_quota_is_refused_with_its_path_where_it_is_not(box: Box) -> None:
    for act in (
        lambda: door.call("lay_quota_set_limit", os.fsencode(box.home), 7, 4096),
        lambda: door.call("lay_quota_state", os.fsencode(box.home), door.out("int *")),
    ):
        fails_with_path(errno.ENOTBLK, box.home, act)
    nowhere = box.home / "nowhere"
    fails_with_path(errno.ENOENT, nowhere, lambda: door.call("lay_quota_set_project", os.fsencode(nowhere), 7))
    fails_with_path(errno.ENOENT, nowhere, lambda: door.call("lay_quota_get_project", os.fsencode(nowhere), door.out("unsigned *")))


# ---- who is inside -----------------------------------------------------------------------------------
def uses(place: Path, *ours: int) -> set[tuple[int, str, str]]:
    device = os.stat(place).st_dev
    out, size = door.out("char **"), door.out("size_t *")
    given = door.ffi.new("int[]", list(ours))
    ask("int *", "lay_uses", os.major(device), os.minor(device), given, len(ours), out, size)
    records = bytes(door.ffi.buffer(out[0], size[0])).split(b"\0")[:-1]
    door.lib.lay_uses_free(out[0])
    return {(int(pid), use.decode(), os.fsdecode(path)) for pid, use, path in (r.split(b" ", 2) for r in records)}


@pytest.fixture
def mounted(box: Box) -> Iterator[Box]:
    box.mount()
    yield box
    box.unmount(MNT_DETACH)


def test_every_use_of_a_file_system_is_listed(mounted: Box) -> None:
    merged = mounted.merged
    (merged / "a\nb").write_text("mapped")
    me = os.getpid()
    written, read, listed = os.open(merged / "new", os.O_CREAT | os.O_WRONLY), os.open(merged / "deep", 0), os.open(merged, 0)
    with open(merged / "a\nb", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    child = subprocess.Popen(["sleep", "60"], cwd=merged)
    try:
        found = {use for use in uses(merged, listed) if use[0] in (me, child.pid)}
    finally:
        child.kill()
        child.wait()
        mapped.close()
        for fd in (written, read, listed):
            os.close(fd)
    inside = {(pid, use, path.removeprefix(f"{merged}").replace("\\012", "\n")) for pid, use, path in found}
    assert inside == {(me, "w", "/new"), (me, "f", "/deep"), (me, "m", "/a\nb"), (me, "f", "/a\nb"), (child.pid, "c", "")}
    assert not uses(merged)


def test_mounts_are_counted_here_and_elsewhere(mounted: Box) -> None:
    device = os.stat(mounted.merged).st_dev
    here, elsewhere = door.out("int *"), door.out("int *")

    def count() -> tuple[int, int]:
        place = os.fsencode(mounted.merged)
        answers = set()
        for first in 0, door.lib.lay_mount_id(place):      # all mounts are looked at, or those since
            door.lib.lay_count_mounts(place, first, os.major(device), os.minor(device), here, elsewhere)
            answers.add((here[0], elsewhere[0]))
        assert len(answers) == 1
        return here[0], elsewhere[0]

    first = count()
    assert first in [(1, 0), (-errno.ENOTTY,) * 2, (-errno.ENOSYS,) * 2]
    if first[0] < 0:  # before Linux 6.11
        return
    child = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; sleep 60"], stdout=subprocess.PIPE)
    assert child.stdout
    child.stdout.readline()
    assert count() == (1, 1)
    child.kill()
    child.wait()
    child.stdout.close()


# ---- another mount in its place -------------------------------------------------------------------------
@pytest.fixture
def switchable(mounted: Box) -> Box:
    if not door.lib.lay_can_switch():
        pytest.skip("NOT TESTED: this kernel cannot mount beneath (6.8 can)")
    for name in ("upper2", "work2"):
        (mounted.home / name).mkdir()
    return mounted


def is_used(box: Box) -> bool:
    return bool(ask("int *", "lay_mount_is_used", os.fsencode(box.merged)))


def another(box: Box) -> int:
    """A detached overlay with the second upper."""
    made = door.ffi.new("lay_overlay *")
    paths = [door.ffi.new("char[]", f"{box.home}/{name}".encode()) for name in ("upper", "near", "upper2", "work2")]
    lowers = door.ffi.new("char *[]", paths[:2])
    made.lowers, made.n_lowers, made.upper, made.work, made.target = lowers, 2, paths[2], paths[3], paths[0]
    return ask("int *", "lay_make_overlay", made)


def switch(box: Box, *, lazy: bool = False) -> tuple[int, int]:
    old, done, busy, new = door.out("int *"), door.out("int *"), door.out("int *"), another(box)
    try:
        door.call("lay_switch_mount", os.fsencode(box.merged), new, int(lazy), old, done, busy)
    finally:
        os.close(new)
    assert done[0] == (old[0] >= 0) == (not busy[0])
    return int(old[0]), int(busy[0])


@pytest.mark.parametrize("use", ["nothing", "cwd", "file", "map", "below"])
def test_the_kernel_tells_whether_a_mount_is_used_and_it_stays(switchable: Box, use: str) -> None:
    merged = switchable.merged
    (merged / "dir").mkdir()
    child = subprocess.Popen(["sleep", "60"], cwd=merged) if use == "cwd" else None
    fd = os.open(merged / "deep", os.O_PATH) if use == "file" else -1
    with open(merged / "deep", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if use == "map" else None
    if use == "below":
        disk.mount("tmpfs", merged / "dir", "tmpfs")
    for _ in range(5):
        assert is_used(switchable) == (use != "nothing")
        assert disk.mount_line(merged)
    if child:
        child.kill()
        child.wait()
    if fd >= 0:
        os.close(fd)
    if mapped:
        mapped.close()
    if use == "below":
        disk.unmount(merged / "dir")
    assert not is_used(switchable)
    switchable.unmount()
    with door.fails("LAY_E_OS"):
        is_used(switchable)
    switchable.mount()


def test_a_switch_shows_the_new_mount_and_keeps_the_old_file_system(switchable: Box) -> None:
    merged = switchable.merged
    (merged / "new").write_text("new")
    before = os.stat(merged).st_dev
    old, busy = switch(switchable)
    assert old >= 0 and not busy
    assert os.stat(merged).st_dev != before
    assert (merged / "new").read_text() == "new"           # its upper is a lower now
    (merged / "newer").write_text("newer")
    assert (switchable.home / "upper2/newer").exists() and not (switchable.home / "upper/newer").exists()
    assert ask("int *", "lay_upper_in_use", os.fsencode(switchable.home / "upper"))
    os.close(old)
    assert not ask("int *", "lay_upper_in_use", os.fsencode(switchable.home / "upper"))
    assert len(disk.mounts_below(switchable.home)) == 1


def test_a_used_mount_is_not_switched_but_lazily(switchable: Box) -> None:
    merged = switchable.merged
    before = os.stat(merged).st_dev
    with open(merged / "deep", "rb") as file:
        assert switch(switchable) == (-1, 1)
        assert os.stat(merged).st_dev == before
        assert len(disk.mounts_below(switchable.home)) == 2     # the new one beneath
        switchable.unmount(MNT_DETACH)
        switchable.unmount()
        switchable.mount()
        (switchable.home / "work2/work").rmdir()
        with open(merged / "deep", "rb") as too:
            old, busy = switch(switchable, lazy=True)
            assert old >= 0 and not busy
            assert too.read() == b"far"
            assert not ask("int *", "lay_stop_writes", old)
            with pytest.raises(OSError) as caught:
                os.open(f"/proc/self/fd/{too.fileno()}", os.O_RDWR)
            assert caught.value.errno == errno.EROFS
            os.close(old)
        assert file.read() == b"far"


def test_writes_go_on_while_a_file_is_open_for_writing(switchable: Box) -> None:
    with open(switchable.merged / "new", "w"):
        old, _ = switch(switchable, lazy=True)
        assert ask("int *", "lay_stop_writes", old)
    assert not ask("int *", "lay_stop_writes", old)
    os.close(old)


def test_volatile_is_a_flag(box: Box) -> None:
    box.mount(is_volatile=1)
    assert "volatile" in options(box)
    box.unmount()
    with door.fails("LAY_E_OS"):
        box.mount(is_volatile=1)                           # a work directory that was volatile
