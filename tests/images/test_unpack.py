"""Images.unpack(): the flat file system is what an overlay mount shows, to the attribute and the second."""

import contextlib
import ctypes
import os
import stat
import subprocess
import threading
import time

import disk
import imagekit
import pytest
import tarkit
from driven import DRIVER
from imagekit import BASE, MIDDLE, TOP, tar_of
from stored import shown

import layerstore
from layerstore import CorruptLayerError, ImageError

LOWER = b"".join([
    tarkit.dir("etc/", mtime=1000), tarkit.file("etc/a", b"a", mtime=1001), tarkit.file("etc/b", b"b", mtime=1002),
    tarkit.dir("opaque/", mtime=5), tarkit.file("opaque/old", b"o", mtime=6), tarkit.dir("gone/", mtime=7), tarkit.file("gone/x", b"x"),
    tarkit.file("setuid", b"s", mode=0o4755, uid=3, gid=4, mtime=8), tarkit.hardlink("same", "setuid"),
    tarkit.xattrs({"user.note": b"n\0n"}) + tarkit.file("noted", b"n", mtime=9),
    tarkit.symlink("link", "etc/a", mtime=10), tarkit.fifo("fifo", mtime=11), tarkit.node("null", "c", 1, 3, mtime=12),
    tarkit.file("becomes-a-directory", b"", mtime=13), tarkit.dir("becomes-a-file/", mtime=14), tarkit.file("becomes-a-file/x", b""),
    tarkit.end(),
])  # fmt: skip
UPPER = b"".join([
    tarkit.dir("etc/", mtime=2000), tarkit.whiteout("etc/a"), tarkit.file("etc/c", b"c", mtime=2001),
    tarkit.dir("opaque/", mtime=2002), tarkit.opaque("opaque"), tarkit.file("opaque/new", b"n", mtime=2003), tarkit.whiteout("gone"),
    tarkit.dir("becomes-a-directory/", mtime=2004), tarkit.file("becomes-a-directory/x", b"", mtime=2005),
    tarkit.file("becomes-a-file", b"f", mtime=2006), tarkit.end(),
])  # fmt: skip


@pytest.fixture(params=["mounted", "read_only"])
def unpacking(request, images, open_store):
    """Images of the same root: as the loader has them, and as one has them that may only read."""
    return images if request.param == "mounted" else layerstore.Images(open_store(options={"read_only": "true"}))


def test_it_is_what_a_mount_shows(images, unpacking, store, room):
    images.load(tar_of(imagekit.docker([([LOWER, UPPER, TOP], ["x"])])))
    unpacking.unpack("x", room / "flat")
    wanted, found = shown(store, images.get("x").top, looks), looks(room / "flat")
    for state in (wanted, found):
        state.pop(b"")                                         # the top itself is in no layer
    assert disk.changed(wanted, found) == []
    assert sorted(os.listdir(room / "flat")) == [
        "app", "becomes-a-directory", "becomes-a-file", "etc", "fifo", "link", "noted", "null", "opaque", "same", "setuid",
    ]  # fmt: skip
    assert disk.mounts_below(room) == []


def test_an_image_of_one_layer_with_whiteouts(images, unpacking, room):
    """Nothing lies below, so they mean nothing, and are no files."""
    images.load(tar_of(imagekit.docker([([UPPER], ["x"])])))
    unpacking.unpack("x", room / "flat")
    assert sorted(os.listdir(room / "flat")) == ["becomes-a-directory", "becomes-a-file", "etc", "opaque"]
    assert os.listdir(room / "flat/etc") == ["c"]
    assert os.listxattr(room / "flat/opaque") == []


def test_links_in_an_image_lead_out_of_nothing(images, unpacking, room, victim):
    """A link to a directory in one layer, files below it in the next: a directory, as in a mount."""
    lower = tarkit.symlink("out", "../victim") + tarkit.symlink("abs", "/") + tarkit.end()
    upper = tarkit.file("out/planted", b"p") + tarkit.file("abs/sub/planted", b"q") + tarkit.end()
    images.load(tar_of(imagekit.docker([([lower, upper], ["x"])])))
    unpacking.unpack("x", room / "flat")
    assert os.listdir(room / "flat/out") == ["planted"]
    assert sorted(os.listdir(room / "flat")) == ["abs", "out"]
    assert sorted(os.listdir(victim)) == ["hello", "link", "sub"]


def test_only_into_what_is_empty(images, room):
    images.load(tar_of(imagekit.docker([([BASE], ["x"])])))
    (room / "full").mkdir()
    (room / "full/x").write_text("mine")
    with pytest.raises(ImageError, match="not empty"):
        images.unpack("x", room / "full")
    with pytest.raises(FileExistsError):
        images.unpack("x", room / "full/x")
    with pytest.raises(FileNotFoundError):
        images.unpack("x", room / "nowhere/x")
    assert (room / "full/x").read_text() == "mine"
    (room / "empty").mkdir(mode=0o700)
    images.unpack("x", room / "empty")
    assert sorted(os.listdir(room / "empty")) == ["etc", "tool"]


@pytest.mark.only("overlay2", "of the files in a layer's directory")
@pytest.mark.parametrize("how", ["damaged", "stopped"])
def test_a_failure_leaves_nothing(images, unpacking, store, room, how):
    images.load(tar_of(imagekit.docker([([BASE, MIDDLE, TOP], ["x"])])))
    if how == "damaged":
        with open(os.path.join(store.map()[images.get("x").top].metadata()["UpperDir"], "app/main"), "r+b") as file:
            file.write(b"y")
    (room / "there").mkdir()

    def stop(_done):
        raise RuntimeError("enough")

    for name in ("there", "new"):
        with pytest.raises(CorruptLayerError if how == "damaged" else RuntimeError):
            unpacking.unpack("x", room / name, progress=stop if how == "stopped" else None)
    assert os.listdir(room / "there") == []
    assert not (room / "new").exists()
    assert store._engine.holds._counts.keys() == {"store"}
    assert disk.mounts_below(room) == []


def test_an_image_of_no_layers_is_an_empty_directory(images, unpacking, room):
    images.load(tar_of(imagekit.docker([([], ["x"])])))
    unpacking.unpack("x", room / "flat")
    assert os.listdir(room / "flat") == []


def test_progress(images, unpacking, room):
    images.load(tar_of(imagekit.docker([([BASE, MIDDLE, TOP], ["x"])])))
    told: list[layerstore.Done] = []
    unpacking.unpack("x", room / "flat", progress=told.append)
    assert told[-1] == told[-1].total == sum(map(len, (BASE, MIDDLE, TOP)))


# ---- another process works in the directory at the same time ------------------------------------
NAMES = [f"n{at}" for at in range(300)]
DEEP = ("d", "d/sub", "d/sub/deep")
# In each directory: names of every kind; then all of them changed in every way that there is.
FIRST = b"".join(
    tarkit.dir(f"{place}/") + b"".join(
        (tarkit.file(f"{place}/{name}", b"first"), tarkit.dir(f"{place}/{name}/"), tarkit.symlink(f"{place}/{name}", "x"), tarkit.fifo(f"{place}/{name}"))[at % 4]
        for at, name in enumerate(NAMES)
    ) for place in DEEP
) + tarkit.end()  # fmt: skip
SECOND = b"".join(
    tarkit.dir(f"{place}/", mode=0o700, uid=3) + tarkit.file(f"{place}/target", b"t" * 100_000) + b"".join(
        (tarkit.whiteout(f"{place}/{name}"), tarkit.file(f"{place}/{name}", b"second", mode=0o4711, uid=7), tarkit.dir(f"{place}/{name}/", mode=0o711),
         tarkit.hardlink(f"{place}/{name}", f"{place}/target"), tarkit.xattrs({"user.x": b"y"}) + tarkit.file(f"{place}/{name}", b"z" * 70_000),
         tarkit.symlink(f"{place}/{name}", "/etc"), tarkit.node(f"{place}/{name}", "c", 1, 3))[at % 7]
        for at, name in enumerate(NAMES)
    ) for place in DEEP
) + tarkit.end()  # fmt: skip
THIRD = tarkit.dir("d/sub/") + tarkit.opaque("d/sub") + tarkit.whiteout("d/n1") + tarkit.end()
FOURTH = tarkit.whiteout("d") + tarkit.dir("d/") + tarkit.file("d/n2", b"") + tarkit.end()


def looks(top):
    """All of a tree, to the attribute."""
    return disk.disk_state(top, times=True)


@pytest.mark.parametrize("place", DEEP)
@pytest.mark.parametrize("seed", range(2))
def test_nothing_outside_is_touched_while_names_are_exchanged(images, room, place, seed):
    """A directory on the way becomes a link that leads out, and a directory again, as fast as can be."""
    images.load(tar_of(imagekit.docker([([FIRST, SECOND, THIRD, FOURTH][: 3 + seed], ["x"])])))
    victim, flat, spare = room / "victim", room / "flat", room / "spare"
    for below in ("", "sub", "sub/deep"):
        (victim / below).mkdir()
        for at, name in enumerate(NAMES):
            if at % 3:
                (victim / below / name).write_text("precious")
            else:
                (victim / below / name).mkdir()
                (victim / below / name / "in").write_text("precious")
    before = looks(victim)
    rename, swapped, until = ctypes.CDLL(None).renameat2, 0, time.monotonic() + 2
    a, b = os.fsencode(flat / place), os.fsencode(spare)

    def swap(stop, counted):
        while not stop.is_set():
            for _ in range(2):
                counted[0] += rename(-100, a, -100, b, 2) == 0

    while time.monotonic() < until:
        os.symlink(victim / place[2:], spare)
        stop, counted = threading.Event(), [0]
        thread = threading.Thread(target=swap, args=(stop, counted))
        thread.start()
        try:
            with contextlib.suppress(layerstore.LayerStoreError, OSError):
                images.unpack("x", flat)
        finally:
            stop.set()
            thread.join()
        swapped += counted[0]
        assert looks(victim) == before
        subprocess.run(["rm", "-rf", flat, spare], check=True)
    assert swapped > 100


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_what_was_made_goes_and_what_was_there_stays_after_an_error(images, store, room):
    images.load(tar_of(imagekit.docker([([LOWER, UPPER], ["x"])])))
    cache = store.map()[images.get("x").top].cache_id
    os.unlink(os.path.join(store.root, DRIVER, cache, "diff/etc/c"))
    (room / "there").mkdir(mode=0o750)
    os.symlink("there", room / "link")
    for name in ("made", "there", "link"):
        with pytest.raises(CorruptLayerError):
            images.unpack("x", room / name)
    assert not (room / "made").exists() and os.listdir(room / "there") == [] and stat.S_IMODE((room / "there").stat().st_mode) == 0o750
