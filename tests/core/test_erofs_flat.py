"""Layers stacked as one image: an index over their files, and all of it in one file, show what an overlay of them shows."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import disk
import erofsreader
import pytest
from test_erofs_check import register
from test_erofs_kernel import seen, times, tree
from test_erofs_write import entry, sparse, tar_of

from layerstore._core import _erofs
from layerstore.disk import erofs
from layerstore.errors import NotSupportedError

XATTR = {"SCHILY.xattr.user.k": "value", "SCHILY.xattr.trusted.t": "x" * 3000}
BASE = [
    entry("d", b"5", mode=0o750, uid=7, mtime=11),
    (entry("d/kept", mtime=12, pax_headers=XATTR), b"kept" * 3000),
    (entry("d/gone"), b"gone"),
    (entry("d/replaced"), b"old"),
    entry("d/sub", b"5", mtime=13),
    (entry("d/sub/hidden"), b"hidden"),
    (entry("one", mode=0o4755, mtime=14), b"shared"),
    entry("two", b"1", linkname="one", mode=0o4755, mtime=14),
    entry("link", b"2", linkname="d/kept", mtime=15),
    entry("long", b"2", linkname="/".join(["y" * 100] * 9), mtime=15),
    entry("null", b"3", devmajor=1, devminor=3, mtime=16),
    entry("pipe", b"6", mtime=17),
]
MIDDLE = [
    entry("d", b"5", mode=0o755, uid=8, mtime=21),
    entry("d/.wh.gone"),
    (entry("d/replaced", mtime=22), b"new" * 1000),
    entry("d/sub", b"5", mtime=23),
    entry("d/sub/.wh..wh..opq"),
    (entry("d/sub/shown", mtime=24), b""),
    entry(".wh.nothing"),
]
TOP = [*[(entry(f"many/{i:05}", mtime=i), b"%d" % i * (i % 700)) for i in range(2000)], entry("many", b"5", mtime=30)]
LAYERS = [tar_of(*BASE), tar_of(*MIDDLE), sparse([(512, b"a" * 512), (4096, b"b" * 700)], 4796), sparse([(100, b"c" * 99)], 99_999), tar_of(*TOP)]


class Layers:
    """Files of images, the lowest first, and these images."""

    def __init__(self, place: Path, tars: list[bytes], open_files: contextlib.ExitStack) -> None:
        self.files: list[int] = []
        for i, tar in enumerate(tars):
            fd = os.open(place / f"layer{i}", os.O_RDWR | os.O_CREAT, 0o600)
            open_files.callback(os.close, fd)
            register(fd, tar)
            self.files.append(fd)
        self.images: list[Any] = [open_files.enter_context(contextlib.closing(_erofs.Image(fd))) for fd in self.files]

    @property
    def nearest_first(self) -> list[Any]:
        return self.images[::-1]


@pytest.fixture
def layers(room: Path) -> Iterator[Layers]:
    with contextlib.ExitStack() as stack:
        yield Layers(room, LAYERS, stack)


def file_in(room: Path, name: str) -> int:
    return os.open(room / name, os.O_RDWR | os.O_CREAT, 0o600)


@contextlib.contextmanager
def mounted(room: Path, name: str, fds: list[int]) -> Iterator[Path]:
    at = room / name
    at.mkdir()
    erofs.mount_file([erofs.File(fd, f"{name}{i}") for i, fd in enumerate(fds)], str(at), "loop")
    try:
        yield at
    finally:
        erofs.unmount(str(at))


@contextlib.contextmanager
def overlaid(room: Path, files: list[int]) -> Iterator[Path]:
    at = room / "overlaid"
    at.mkdir()
    with contextlib.ExitStack() as stack:
        lowers = [stack.enter_context(mounted(room, f"lower{i}", [fd])) for i, fd in enumerate(files)]
        disk.mount("overlay", at, "overlay", 0, "lowerdir=" + ":".join(str(lower) for lower in reversed(lowers)))
        stack.callback(disk.unmount, at)
        yield at


def test_an_index_shows_what_an_overlay_shows(room: Path, layers: Layers) -> None:
    index = file_in(room, "index")
    try:
        _erofs.flatten(layers.nearest_first, index)
        assert os.fstat(index).st_size < 1_000_000
        with overlaid(room, layers.files) as overlay, mounted(room, "flat", [index, *layers.files]) as flat:
            assert tree(flat) == tree(overlay) and times(flat) == times(overlay)
            assert seen(f"{flat}/one")[2] == (6, 2)
        with contextlib.closing(_erofs.Image(index, devices=layers.files)) as image:
            assert image.verify() == []
    finally:
        os.close(index)


def test_all_in_one_file_shows_what_an_overlay_shows(room: Path, layers: Layers) -> None:
    whole, again = file_in(room, "whole"), file_in(room, "again")
    told: list[int] = []
    try:
        _erofs.export(layers.nearest_first, whole, told.append)
        _erofs.export(layers.nearest_first, again)
        data = (room / "whole").read_bytes()
        assert data == (room / "again").read_bytes() and sum(told) == len(data)
        read = erofsreader.Image(data, own=False)
        assert not any(node.is_whiteout or any(name.startswith("trusted.overlay.") for name in node.xattrs) for node in read.tree.values())
        with overlaid(room, layers.files) as overlay, mounted(room, "flat", [whole]) as flat:
            assert tree(flat) == tree(overlay) and times(flat) == times(overlay)
    finally:
        os.close(whole)
        os.close(again)


def test_all_goes_into_a_pipe(room: Path, layers: Layers) -> None:
    whole = file_in(room, "whole")
    came: list[bytes] = []
    read, write = os.pipe()
    reader = threading.Thread(target=lambda: came.extend(iter(lambda: os.read(read, 1 << 16), b"")))
    reader.start()
    try:
        _erofs.export(layers.nearest_first, whole)
        _erofs.export(layers.nearest_first, write)
    finally:
        os.close(write)
        reader.join()
        os.close(read)
        os.close(whole)
    assert b"".join(came) == (room / "whole").read_bytes()


def test_one_layer_and_many(room: Path) -> None:
    """More than there is room for in the header."""
    tars = [tar_of((entry(f"f{i}"), b"%d" % i), (entry("same"), b"layer %d" % i)) for i in range(60)]
    for count in (1, 60):
        with contextlib.ExitStack() as stack:
            place = room / str(count)
            place.mkdir()
            layers = Layers(place, tars[:count], stack)
            index = file_in(place, "index")
            stack.callback(os.close, index)
            _erofs.flatten(layers.nearest_first, index)
            with mounted(place, "flat", [index, *layers.files]) as flat:
                assert sorted(os.listdir(flat)) == sorted(["same", *[f"f{i}" for i in range(count)]])
                assert (flat / "same").read_text() == f"layer {count - 1}"
                assert all((flat / f"f{i}").read_text() == str(i) for i in range(count))


def test_a_name_of_nothing_below_leaves_no_whiteout(room: Path) -> None:
    with contextlib.ExitStack() as stack:
        layers = Layers(room, [tar_of(*MIDDLE)], stack)
        whole = file_in(room, "whole")
        stack.callback(os.close, whole)
        _erofs.export(layers.nearest_first, whole)
        assert set(erofsreader.read(room / "whole", own=False).tree) == {"", "d", "d/replaced", "d/sub", "d/sub/shown"}


def test_bytes_that_lie_elsewhere_are_refused(room: Path, layers: Layers) -> None:
    index = file_in(room, "index")
    try:
        _erofs.flatten(layers.nearest_first, index)
        with contextlib.closing(_erofs.Image(index, devices=layers.files)) as image, pytest.raises(NotSupportedError):
            _erofs.flatten([image], index)
    finally:
        os.close(index)


def test_progress_may_raise(room: Path, layers: Layers) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    whole = file_in(room, "whole")
    try:
        with pytest.raises(KeyboardInterrupt):
            _erofs.export(layers.nearest_first, whole, stop)
    finally:
        os.close(whole)
