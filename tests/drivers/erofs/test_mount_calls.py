"""disk/erofs.py: files and loop devices as mounts, what the kernel refuses, and that all of them end."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import disk
import erofsimage
import pytest
from home import loops

from layerstore.disk import erofs, mounts
from layerstore.errors import NotSupportedError

SIZES = {"ext4": 64 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}


def made(place, **files):
    """An image with these files, and a directory to mount it on."""
    (place / "layer.erofs").write_bytes(erofsimage.image({name: text.encode() for name, text in files.items()}))
    (place / "fs").mkdir(exist_ok=True)
    return str(place / "layer.erofs"), str(place / "fs")


def mount(path, at, mode, **options):
    with open(path, "rb") as file:
        erofs.mount_file([erofs.File(file.fileno(), path)], at, mode, **options)


@pytest.mark.parametrize("kind", SIZES)
def test_a_file_is_mounted_itself_on_a_file_system_that_can(room, kind):
    with disk.sized_file_system(room, kind, size=SIZES[kind]) as place:
        before = disk.inventory(place)
        assert erofs.probe(str(place)) == "file" == erofs.probe(str(place), directio=True)
        assert disk.inventory(place) == before
        path, at = made(place, hello="world")
        for options in {}, {"directio": True}:
            mount(path, at, "file", **options)
            try:
                assert erofs.is_erofs(at) and Path(at, "hello").read_text() == "world"
                assert os.statvfs(at).f_flag & os.ST_RDONLY
                line = disk.mount_line(at)
                assert line[0] == path and line[2] == "erofs" and ("directio" in line[3]) is bool(options)
            finally:
                erofs.unmount(at)
            assert not erofs.is_erofs(at)
        mount(path, at, "loop")                       # also can
        assert Path(at, "hello").read_text() == "world" and len(loops(place)) == 1
        erofs.unmount(at)
        assert loops(place) == []


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_a_loop_device_is_mounted_where_files_cannot_be_and_goes_with_the_mount(room, kind):
    place = room
    if kind == "overlay":
        for name in "lower", "upper", "work", "merged":
            (room / name).mkdir()
        place = room / "merged"
        disk.mount("overlay", place, "overlay", 0, f"lowerdir={room}/lower,upperdir={room}/upper,workdir={room}/work")
    try:
        before = disk.inventory(place)
        assert erofs.probe(str(place)) == "loop"
        assert disk.inventory(place) == before and loops(place) == []
        with pytest.raises(NotSupportedError, match="directio needs"):
            erofs.probe(str(place), directio=True)
        path, at = made(place, hello="world")
        with pytest.raises(OSError) as refused:
            mount(path, at, "file")
        assert refused.value.errno == errno.ENOTBLK and refused.value.filename == path
        mount(path, at, "loop")
        (device,) = loops(place)
        sizes = {name: Path(f"/sys/block/{device}/{name}").read_text().strip() for name in ("queue/logical_block_size", "ro", "loop/autoclear", "loop/dio")}
        assert sizes == {"queue/logical_block_size": "512", "ro": "1", "loop/autoclear": "1", "loop/dio": "0"}
        assert Path(at, "hello").read_text() == "world"
        erofs.unmount(at)
        assert loops(place) == []
    finally:
        if kind == "overlay":
            disk.unmount(place)


def test_who_is_inside_keeps_what_is_open_and_the_loop_device_goes_with_it(room):
    path, at = made(room, hello="world")
    mount(path, at, "loop")
    with open(f"{at}/hello") as file:
        erofs.unmount(at)
        assert not erofs.is_erofs(at) and len(loops(room)) == 1
        assert file.read() == "world"
    assert loops(room) == []
    with pytest.raises(OSError) as nothing:
        erofs.unmount(at)
    assert nothing.value.errno == errno.EINVAL


def test_many_at_once_take_a_loop_device_each(room):
    places = [room / str(n) for n in range(12)]
    pairs = []
    for n, place in enumerate(places):
        place.mkdir()
        pairs.append(made(place, number=str(n)))
    failed = []

    def run(path, at, number):
        try:
            for _ in range(5):
                mount(path, at, "loop")
                assert Path(at, "number").read_text() == number
                erofs.unmount(at)
        except BaseException as err:
            failed.append(err)

    threads = [threading.Thread(target=run, args=(*pair, str(n))) for n, pair in enumerate(pairs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and loops(room) == []


@pytest.mark.parametrize("mode", ["file", "loop"])
def test_files_of_the_device_table_are_handed_in_with_it(room, mode):
    with disk.sized_file_system(room, "ext4", size=SIZES["ext4"]) as place:
        (place / "data").write_bytes(b"far away".ljust(1024, b"."))
        (place / "layer.erofs").write_bytes(erofsimage.image({"from": b"", "own": b"near"}, slots=[(4096, 2)]))
        at = str(place / "at")
        os.mkdir(at)
        with open(place / "layer.erofs", "rb") as index, open(place / "data", "rb") as data:
            files = [erofs.File(index.fileno(), str(place / "layer.erofs")), erofs.File(data.fileno(), "unnamed")]
            erofs.mount_file(files, at, mode)
            assert Path(at, "from").read_bytes() == (place / "data").read_bytes() and Path(at, "own").read_bytes() == b"near"
            erofs.unmount(at)
            with pytest.raises(OSError) as refused:
                erofs.mount_file([*files, files[1]], at, mode)
            assert (refused.value.errno, refused.value.filename) == (errno.EINVAL, files[0].path)
        assert loops(place) == []


def test_what_is_no_regular_file_is_not_handed_to_the_kernel(room):
    _, at = made(room)
    reading, writing = os.pipe()
    with open("/dev/null", "rb") as null, mounts_of(room) as directory:
        for fd, code in (reading, errno.ENOTBLK), (null.fileno(), errno.ENOTBLK), (directory, errno.EISDIR):
            with pytest.raises(OSError) as refused:
                erofs.mount_file([erofs.File(fd, "what")], at, "loop")
            assert (refused.value.errno, refused.value.filename) == (code, "what")
    os.close(reading)
    os.close(writing)


def mounts_of(path):
    from layerstore.disk.locks import OpenDirectory

    return OpenDirectory(str(path))


def test_a_mount_that_is_attached_nowhere_ends_with_its_descriptor(room):
    path, at = made(room, hello="world")
    with open(path, "rb") as file:
        made_mount = erofs.make_mount([erofs.File(file.fileno(), path)], "loop")
    assert not erofs.is_erofs(at) and len(loops(room)) == 1
    assert Path(f"/proc/self/fd/{made_mount.fileno()}/hello").read_text() == "world"
    made_mount.close()
    assert loops(room) == []


def test_a_path_too_long_for_the_kernel_is_mounted_by_its_descriptor(room):
    with disk.sized_file_system(room, "ext4", size=SIZES["ext4"]) as place:
        deep = place / ("d" * 200) / ("e" * 200)
        deep.mkdir(parents=True)
        path, at = made(deep, hello="world")
        mount(path, at, "file")
        assert Path(at, "hello").read_text() == "world"
        erofs.unmount(at)


def test_another_file_under_the_path_is_not_mounted_in_its_place(room):
    with disk.sized_file_system(room, "ext4", size=SIZES["ext4"]) as place:
        path, at = made(place, hello="world")
        with open(path, "rb") as file:
            os.rename(path, path + ".old")
            os.symlink("/etc/passwd", path)
            erofs.mount_file([erofs.File(file.fileno(), path)], at, "file")
        assert Path(at, "hello").read_text() == "world"
        erofs.unmount(at)


PROBE = """
import sys
from layerstore.disk import erofs
from layerstore.errors import NotSupportedError
try:
    print(erofs.probe(sys.argv[1]))
except NotSupportedError as err:
    print("refused:", err)
"""


def test_a_user_namespace_is_told_what_is_missing(room):
    run = subprocess.run(["unshare", "-rm", sys.executable, "-c", PROBE, str(room)], capture_output=True, text=True, check=True)
    assert run.stdout == "refused: mounting EROFS needs CAP_SYS_ADMIN in the initial namespace\n"


@pytest.mark.parametrize(
    ("code", "text"),
    [(errno.ENODEV, "this kernel has no EROFS"), (errno.EINVAL, "needs Linux 6.4 or later for blocks of 512 bytes")],
)
def test_a_kernel_without_it_is_told(room, monkeypatch, code, text):
    """Such kernels are not at hand: what they answer is given in the place of the call."""

    def refused(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(erofs, "make_mount", refused)
    with pytest.raises(NotSupportedError, match=text):
        erofs.probe(str(room))
    assert list(room.iterdir()) == [] and mounts.mounts_below(str(room)) == []
