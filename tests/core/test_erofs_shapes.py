"""erofs_*.c: images as other programs write them are read, too: in their own file, with other devices, and with these behind them."""

import contextlib
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import door
import erofsshapes
import pytest
import recipes
from erofsdoor import Reader, opened
from erofsshapes import SHAPES
from test_changes import lines_of
from test_erofs_write import TOO_LARGE, written

LONG = 1 << 22  # bytes of a file that are compared
TOO_LONG = "good_pax_path_over_4096"  # its paths are longer than a system call takes


@contextlib.contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """By the kernel, through a loop device."""
    at = image.with_suffix(".at")
    at.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", image, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


def check(reader: Reader, tree: dict[str, erofsshapes.Thing], links: dict[str, str]) -> None:
    found = reader.tree()
    assert found.keys() == tree.keys() | links.keys()
    for path, it in found.items():
        thing = tree[links.get(path, path)]
        assert (it.mode, it.uid, it.gid, it.mtime_sec * 10**9 + it.mtime_nsec) == (thing.mode, thing.uid, thing.gid, thing.mtime_ns), path
        assert it.rdev == os.makedev(*thing.rdev), path
        expected = {**thing.xattrs, **({"user.overlay.opaque": b"y"} if "trusted.overlay.opaque" in thing.xattrs else {})}
        assert reader.xattrs(path) == expected, path
        if stat.S_ISREG(it.mode):
            assert it.size == len(thing.content)
            assert reader.read(path, len(thing.content) + 1) == thing.content, path
            for offset in (1, 511, 512, 9001):
                assert reader.read(path, 700, offset) == thing.content[offset : offset + 700]
        elif stat.S_ISLNK(it.mode):
            assert os.fsencode(reader.target(path)) == thing.content
    reader.verify()


@pytest.mark.parametrize("name", SHAPES)
def test_an_image_of_every_shape_is_read(name: str) -> None:
    made, tree, links = erofsshapes.shape(name)
    if not made.device:
        with opened(made.image) as reader:
            check(reader, tree, links)
        return
    fd = os.memfd_create("device")
    os.write(fd, made.device)
    with opened(made.image, devices=[fd]) as reader:
        check(reader, tree, links)
    os.close(fd)
    bits = int(SHAPES[name].get("bits", 9))  # type: ignore[call-overload]
    with opened(made.image.ljust(made.unified << bits, b"\0") + made.device) as reader:
        check(reader, tree, links)
        (size, pieces) = reader.find("d/h").size, reader.pieces("d/h")
        assert sum(n for _, n, _ in pieces) == size and pieces[0][2] >= made.unified << bits


def test_a_device_that_is_missing_or_too_many_is_refused() -> None:
    made, _, _ = erofsshapes.shape("uni")
    fd = os.memfd_create("device")
    with door.fails("LAY_E_IMAGE") as errors, opened(made.image):
        pass
    assert "blocks: a device is shorter" in errors[0].text
    with door.fails("LAY_E_IMAGE") as errors, opened(made.image, devices=[fd]):
        pass
    assert "blocks: a device is shorter" in errors[0].text
    with door.fails("LAY_E_IMAGE") as errors, opened(made.image, devices=[fd, fd]):
        pass
    assert "extra_devices" in errors[0].text
    os.close(fd)


def check_mounted(at: Path, reader: Reader) -> None:
    """The kernel shows what the reader says: every name, field, attribute and byte."""
    found = {os.path.relpath(os.path.join(here, each), at) for here, dirs, files in os.walk(at) for each in dirs + files}
    assert found == reader.tree().keys() - {""}
    for path in found:
        st, it = os.lstat(at / path), reader.find(path)
        fields = ("mode", "uid", "gid", "nlink", "ino", "size", "rdev")
        assert [getattr(st, f"st_{field}") for field in fields] == [getattr(it, field) for field in fields], path
        assert st.st_mtime_ns == it.mtime_sec * 10**9 + it.mtime_nsec
        shown = {x: os.getxattr(at / path, x, follow_symlinks=False) for x in os.listxattr(at / path, follow_symlinks=False)}
        assert shown == {x: value for x, value in reader.xattrs(path).items() if x != "user.overlay.opaque"}, path
        if stat.S_ISREG(st.st_mode) and st.st_size < LONG:
            assert (at / path).read_bytes() == reader.read(path, st.st_size)
        elif stat.S_ISLNK(st.st_mode):
            assert os.readlink(at / path) == reader.target(path)


@pytest.mark.parametrize("name", [name for name in SHAPES if not SHAPES[name].get("device")])
def test_mounted_by_the_kernel_a_shape_shows_the_same(tmp_path: Path, name: str) -> None:
    """What the builder makes are images: the kernel reads them so, too."""
    made = erofsshapes.shape(name)[0]
    (tmp_path / "image").write_bytes(made.image)
    with mounted(tmp_path / "image") as at, opened(made.image) as reader:
        check_mounted(at, reader)


@pytest.mark.parametrize("part", range(4))
def test_mounted_by_the_kernel_our_own_images_show_the_same(tmp_path: Path, part: int) -> None:
    for name in [name for name in recipes.GOOD if name not in (TOO_LARGE, TOO_LONG)][part::4]:
        image = written(recipes.GOOD[name]())
        (tmp_path / name).write_bytes(image)
        with mounted(tmp_path / name) as at, opened(image) as reader:
            check_mounted(at, reader)


def differing(upper: Path, reader: Reader, flags: int) -> list[str]:
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY)
    handle = door.ffi.new("lay_changes **")
    shown = reader.shown()
    door.call("lay_changes_overlay", handle, door.shown([fd]), 1, shown, 1, flags)
    os.close(fd)
    return lines_of(handle[0])


@pytest.mark.parametrize("options", [(), ("-Eforce-inode-compact",), ("--chunksize=4096",)], ids=str)
def test_an_image_that_mkfs_made_of_a_directory_does_not_differ_from_it(tmp_path: Path, request: pytest.FixtureRequest, options: tuple[str, ...]) -> None:
    place = tmp_path / "d"
    place.mkdir()
    (place / "sub").mkdir()
    for i in range(300):
        (place / "sub" / f"name{i}").write_text("x" * (37 * i))
    (place / "l").symlink_to("sub/name1")
    (place / "h").hardlink_to(place / "sub" / "name2")
    os.setxattr(place / "h", "user.k", b"v")
    os.mkfifo(place / "p")
    image = tmp_path / "image"
    subprocess.run(["mkfs.erofs", "--quiet", *options, image, place], check=True)
    with open(image, "rb") as file:
        reader = Reader(file.fileno())
    request.addfinalizer(reader.close)
    reader.verify()
    flags = int(door.lib.LAY_CHANGES_CONTENTS)
    assert differing(place, reader, flags) == []
    if "-Eforce-inode-compact" not in options:          # such inodes have one time for all
        assert differing(place, reader, 0) == []
    (place / "sub" / "name7").write_text("y" * (37 * 7))
    (place / "sub" / "name8").chmod(0o600)
    (place / "sub" / "new").write_text("")
    assert differing(place, reader, flags) == ["C /sub", "C /sub/name7", "C /sub/name8", "A /sub/new"]
