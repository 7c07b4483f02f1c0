"""Upper directories stacked: their tar, size and merge are those of the one directory that shows the same.

The directories are real ones, which overlay mounts have written; what they show is asked of real mounts.
"""

import contextlib
import errno
import io
import os
import random
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import disk
import pytest
from edits import Edits, layers, on_disk, scripts
from full_comparison import full_comparison, tree_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from soak import budget

from layerstore import FileEntry, FileType, NotSupportedError
from layerstore._core import _apply, _changes, _clone, _listing, _tarstream
from layerstore.drivers.record import entries as record_entries
from layerstore.drivers.record import listed

OVERLAY, KEEP, SKIP = _tarstream.EXPORT_OVERLAY, _tarstream.EXPORT_KEEP, _tarstream.EXPORT_SKIP_MARKS
pytestmark = pytest.mark.time_limit(120)


@contextlib.contextmanager
def opened(*places: Path) -> Iterator[list[int]]:
    fds = [os.open(place, os.O_RDONLY | os.O_DIRECTORY) for place in places]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


@contextlib.contextmanager
def mounted(place: Path, lowers: Sequence[Path], upper: Path | None = None) -> Iterator[Path]:
    """lowers, nearest first, with upper over them."""
    point, work, nothing = (Path(tempfile.mkdtemp(dir=place)) for _ in range(3))
    data = "lowerdir=" + ":".join(map(str, [*lowers, nothing])) + (f",upperdir={upper},workdir={work}" if upper else "")
    disk.mount("overlay", point, "overlay", 0, data)
    try:
        yield point
    finally:
        disk.unmount(point, 0)


def known(root: Path) -> list[bytes]:
    return sorted(os.path.relpath(os.path.join(at, name), os.fsencode(root)) for at, dirs, files in os.walk(os.fsencode(root)) for name in dirs + files)


def grown(place: Path, base: Sequence[Path], scripts_: Sequence[list[tuple[str, int, int, int]]]) -> list[Path]:
    """Uppers over base, nearest first: each script is one life of a mount."""
    stack: list[Path] = []
    for i, script in enumerate(scripts_):
        upper = place / f"u{i}"
        upper.mkdir()
        with mounted(place, [*stack, *base], upper) as point:
            Edits(point, known(point)).run(script)
        stack.insert(0, upper)
    return stack


def tar_of(source: _tarstream.Source) -> bytes:
    try:
        size = source.size()
        data = source.read(-1)
        assert len(data) == size
        return data
    finally:
        source.close()


def stacked_tar(stack: Sequence[Path], below: Sequence[Path] | None, flags: int) -> bytes:
    with opened(*stack) as fds, opened(*(below or ())) as lowers:
        return tar_of(_tarstream.export_stack(fds, flags, lowers if below is not None else None))


def tree_tar(place: Path, flags: int) -> bytes:
    with opened(place) as (fd,):
        return tar_of(_tarstream.export_tree(fd, flags | OVERLAY))


def merged(place: Path, stack: Sequence[Path], below: Sequence[Path], flags: int = 0) -> Path:
    into = Path(tempfile.mkdtemp(dir=place))
    with opened(*stack) as fds, opened(*below) as lowers, opened(into) as (to,):
        _clone.merge_stack(fds, lowers, to, flags)
    return into


def entries(stack: Sequence[Path], below: Sequence[Path] | None) -> list[FileEntry]:
    with opened(*stack) as fds, opened(*(below or ())) as lowers:
        return list(listed(_listing.list_stack(fds, lowers if below is not None else None), ""))


def entries_of_tar(tar: bytes) -> list[FileEntry]:
    """As a layer of that tar has them, but for what only a layer has."""
    with tempfile.TemporaryFile() as record:
        apply = _apply.disassemble(record.fileno())
        apply.push(tar)
        apply.finish()
        record.seek(0)
        found = list(record_entries(record.fileno(), ""))
    return [entry._replace(crc=None, offset=None) for entry in found]


def read(stack: Sequence[Path], path: str) -> bytes:
    with opened(*stack) as fds:
        with open(_listing.open_stacked(fds, path), "rb") as content:
            return content.read()


def size_of(stack: Sequence[Path]) -> int:
    with opened(*stack) as fds:
        return _changes.stack_size(fds)


def check(place: Path, stack: Sequence[Path], base: Sequence[Path]) -> Path:
    """All that must hold of a stack on base; returns what it was merged to."""
    with mounted(place, [*stack, *base]) as point:
        shown = tree_of(point)
    one = merged(place, stack, base)
    with mounted(place, [one, *base]) as point:
        assert full_comparison(tree_of(point), shown) == full_comparison(shown, tree_of(point)) == []
    for flags in (SKIP, SKIP | KEEP):
        assert stacked_tar(stack, base, flags) == tree_tar(one, flags)
        assert stacked_tar([one], base, flags) == tree_tar(one, flags)
    with opened(one) as (fd,):
        assert size_of(stack) == _changes.tree_size(fd)
    found = entries(stack, base)
    assert found == entries([one], None) == entries_of_tar(stacked_tar(stack, base, SKIP))
    for entry in [entry for entry in found if entry.type == FileType.FILE][:4]:
        content = read(stack, entry.path)
        assert content == (one / entry.path).read_bytes() and len(content) == entry.size
    return one


@settings(max_examples=budget(60, 400), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(layers(), max_size=3), st.lists(scripts(3, 12), min_size=1, max_size=5))
def test_a_stack_of_uppers_is_the_one_directory_that_shows_the_same(room: Path, below: list, lives: list) -> None:
    place = Path(tempfile.mkdtemp(dir=room))
    base = []
    for i, layer in enumerate(below):
        on_disk(layer, os.fsencode(place / f"l{i}"))
        base.insert(0, place / f"l{i}")
    stack = grown(place, base, lives)
    check(place, stack, base)
    # merged in steps, as while some of them are kept, is merged at once: to the time of a whiteout in the tar
    cut = len(stack) // 2
    if cut:
        upper = merged(place, stack[:cut], [*stack[cut:], *base], _clone.MERGE_OVER_MARKS)
        lower = merged(place, stack[cut:], base, _clone.MERGE_OVER_MARKS)
        for some in ([upper, *stack[cut:]], [*stack[:cut], lower], [upper, lower]):
            assert stacked_tar(some, base, SKIP) == stacked_tar(stack, base, SKIP)
    disk.remove_tree(place)


def test_the_tar_of_a_stack_has_one_deletion_for_what_the_base_has_and_none_else(room: Path) -> None:
    base, up1, up2 = room / "l", room / "u1", room / "u2"
    for path in (base / "d/e", base / "gone", up1, up2):
        path.mkdir(parents=True)
    (base / "d/e/f").write_text("old")
    (base / "gone/f").write_text("old")
    with mounted(room, [base], up1) as point:
        (point / "d/e/f").unlink()
        (point / "d/e").rmdir()
        (point / "d/e").mkdir()                     # opaque
        (point / "d/e/new").write_text("1")
        (point / "brief").write_text("x")
        (point / "gone/f").unlink()
    with mounted(room, [up1, base], up2) as point:
        (point / "brief").unlink()                  # a whiteout of what the base does not have
        (point / "d/e/new").write_text("22")
        (point / "gone").rmdir()
    with tarfile.open(fileobj=io.BytesIO(stacked_tar([up2, up1], [base], 0))) as tar:
        found = [(m.name, m.type, m.size) for m in tar]
    assert found == [
        ("d", tarfile.DIRTYPE, 0), ("d/e", tarfile.DIRTYPE, 0), ("d/e/.wh..wh..opq", tarfile.REGTYPE, 0), ("d/e/new", tarfile.REGTYPE, 2), (".wh.gone", tarfile.REGTYPE, 0),
    ]
    check(room, [up2, up1], [base])
    assert size_of([up2, up1]) == 2


def test_one_directory_is_told_as_ever(room: Path) -> None:
    """Also with a whiteout of what nothing below has, as moby tells it."""
    (room / "u/d").mkdir(parents=True)
    os.mknod(room / "u/d/nothing", stat.S_IFCHR, 0)
    os.setxattr(room / "u/d", "trusted.overlay.opaque", b"y")
    assert stacked_tar([room / "u"], None, 0) == tree_tar(room / "u", 0)
    assert b".wh.nothing" in stacked_tar([room / "u"], None, 0)
    assert b".wh.nothing" not in stacked_tar([room / "u"], [], 0)


def test_names_of_one_inode_in_one_layer_stay_names_of_one_inode(room: Path) -> None:
    for name in ("u1", "u2"):
        (room / name / "d").mkdir(parents=True)
    (room / "u1/z").write_bytes(b"z" * 1000)
    os.link(room / "u1/z", room / "u1/d/a")
    os.link(room / "u1/z", room / "u1/b")
    (room / "u2/d/a").write_text("over it")
    one = check(room, [room / "u2", room / "u1"], [])
    assert (one / "b").stat().st_ino == (one / "z").stat().st_ino == (room / "u1/z").stat().st_ino
    assert size_of([room / "u2", room / "u1"]) == 1007
    with tarfile.open(fileobj=io.BytesIO(stacked_tar([room / "u2", room / "u1"], [], 0))) as tar:
        assert [(m.name, m.type, m.linkname) for m in tar] == [("b", tarfile.REGTYPE, ""), ("d", tarfile.DIRTYPE, ""), ("d/a", tarfile.REGTYPE, ""), ("z", tarfile.LNKTYPE, "b")]


def test_a_directory_is_merged_with_all_that_the_nearest_has(room: Path) -> None:
    for name, mode, owner in (("u1", 0o700, 5), ("u2", 0o2751, 7)):
        (room / name / "d/e").mkdir(parents=True)
        (room / name / f"d/e/{name}").write_text(name)
        for path in (room / name / "d/e", room / name / "d", room / name):
            os.chown(path, owner, owner + 1)
            path.chmod(mode)
            os.setxattr(path, "user.who", name.encode())
            os.setxattr(path, "trusted.overlay.origin", b"")
            os.utime(path, ns=(10**18 + owner, 10**18 + mode))
    one = merged(room, [room / "u2", room / "u1"], [])
    for path in (one, one / "d", one / "d/e"):
        s = path.stat()
        assert (s.st_mode & 0o7777, s.st_uid, s.st_gid, s.st_mtime_ns) == (0o2751, 7, 8, 10**18 + 0o2751), path
        assert disk.xattrs_of(path) == {"user.who": b"u2"}
    assert sorted(p.name for p in (one / "d/e").iterdir()) == ["u1", "u2"]


def test_what_cannot_be_linked_is_copied_and_keeps_its_twins(room: Path) -> None:
    """As where the layers count to the limits of other boxes."""
    r = random.Random(3)
    (room / "u1/d").mkdir(parents=True)
    (room / "u1/f").write_bytes(r.randbytes(100_000))
    os.link(room / "u1/f", room / "u1/d/g")
    os.mknod(room / "u1/gone", stat.S_IFCHR, 0)
    os.link(room / "u1/gone", room / "u1/d/gone", follow_symlinks=False)
    (room / "base/d").mkdir(parents=True)
    (room / "base/gone").touch()
    (room / "base/d/gone").touch()
    with disk.sized_file_system(room, "ext4", size=32 << 20) as other:
        one = merged(other, [room / "u1"], [room / "base"])
        assert stacked_tar([room / "u1"], [room / "base"], 0) == tree_tar(one, 0)
        assert (one / "f").read_bytes() == (room / "u1/f").read_bytes()
        assert (one / "f").stat().st_ino == (one / "d/g").stat().st_ino
        assert (one / "gone").lstat().st_ino == (one / "d/gone").lstat().st_ino


def test_a_deep_stack_of_deep_trees_takes_few_descriptors(room: Path) -> None:
    stack = [room / f"u{i}" for i in range(60)]
    for place in stack:
        at = place
        at.mkdir()
        for k in range(40):
            at = at / f"d{k}"
            at.mkdir()
            (at / place.name).write_text(place.name)
    one = check(room, stack, [])
    assert len(list(one.rglob("u*"))) == 60 * 40


@pytest.mark.parametrize("mark", ["trusted.overlay.redirect", "trusted.overlay.metacopy"])
def test_what_only_a_mount_can_tell_is_refused_in_a_tar(room: Path, mark: str) -> None:
    (room / "u1/d").mkdir(parents=True)
    (room / "u1/f").touch()
    (room / "u2").mkdir()
    os.setxattr(room / "u1" / ("d" if mark.endswith("redirect") else "f"), mark, b"x")
    with pytest.raises(NotSupportedError):
        stacked_tar([room / "u2", room / "u1"], [], 0)


def test_a_target_that_is_not_empty_is_an_error_with_the_path(room: Path) -> None:
    (room / "u/d").mkdir(parents=True)
    (room / "u/d/f").touch()
    into = room / "into"
    (into / "d").mkdir(parents=True)
    with opened(room / "u", into) as (fd, to):
        with pytest.raises(FileExistsError) as caught:
            _clone.merge_stack([fd], [], to)
    assert caught.value.filename == "d"


def test_a_file_is_opened_where_it_is_shown_and_through_no_link(room: Path) -> None:
    (room / "u1/d").mkdir(parents=True)
    (room / "u2").mkdir()
    (room / "u1/d/f").write_text("below")
    (room / "u1/gone").write_text("gone")
    (room / "u1/l").symlink_to("d")
    os.mknod(room / "u2/gone", stat.S_IFCHR, 0)
    os.mkfifo(room / "u2/fifo")
    stack = [room / "u2", room / "u1"]
    assert read(stack, "d/f") == b"below"
    for path, number in (("gone", errno.ENOENT), ("d/none", errno.ENOENT), ("l", errno.ELOOP), ("l/f", None), ("d", errno.EINVAL), ("fifo", errno.EINVAL)):
        with pytest.raises(OSError) as caught:
            read(stack, path)
        assert number in (None, caught.value.errno) and caught.value.filename == path
    (room / "u2/d").mkdir()
    (room / "u2/d/f").write_text("above")
    assert read(stack, "d/f") == b"above"
    os.setxattr(room / "u2/d/f", "trusted.overlay.metacopy", b"")
    with pytest.raises(NotSupportedError, match="d/f"):
        read(stack, "d/f")


def test_names_that_would_be_marks_in_a_tar_are_left_out_of_a_list(room: Path) -> None:
    (room / "u/.wh.d").mkdir(parents=True)
    (room / "u/.wh.d/f").touch()
    (room / "u/f").touch()
    assert [entry.path for entry in entries([room / "u"], None)] == ["f"]
    assert [entry.path for entry in entries([room / "u"], [])] == ["f"]
