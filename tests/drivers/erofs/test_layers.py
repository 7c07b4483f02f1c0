"""Layers of erofs as files: what lies on the disk, and that every verb answers as overlay2's layer of the same tar does."""

import hashlib
import os
import random
import stat
import time
from pathlib import Path

import erofsreader
import ocimodel
import pytest
import recipes
import tarkit
from stored import tar_of
from tarkit import T1, T2, dir, end, file

from layerstore import FileType, LayerStoreError
from layerstore._core import _files

HEADER = 4096


@pytest.fixture
def store(open_store, room):
    return open_store(room / "erofs", driver="erofs")


@pytest.fixture
def beside(open_store, room):
    """A store of overlay2, to compare with."""
    return open_store(room / "overlay2", driver="overlay2")


def place(layer):
    return Path(layer.metadata()["Layer"])


def home(store):
    return Path(store.root, "erofs")


# ---- what lies there ----
def test_a_layer_is_a_file_and_few_small_ones(store):
    base = store.register(T1)
    top = store.register(T2, base)
    for layer, tar, more in ((base, T1, {"committed"}), (top, T2, {"lower", "work"})):
        at = place(layer)
        assert {entry.name for entry in at.parent.iterdir()} == {"layer.erofs", "fs", "length", "link", *more}
        assert stat.S_IMODE(at.stat().st_mode) == 0o600 and stat.S_IMODE(at.parent.stat().st_mode) == 0o710
        assert stat.S_IMODE((at.parent / "fs").stat().st_mode) == 0o755 and not list((at.parent / "fs").iterdir())
        assert (at.parent / "length").read_text() == str(len(tar))
        data = at.read_bytes()
        assert data[HEADER : HEADER + len(tar)] == tar
        assert erofsreader.read(at).tree
    assert {entry.name for entry in home(store).iterdir()} == {"l", place(base).parent.name, place(top).parent.name}
    layerdb = Path(store.root, "image/erofs/layerdb/sha256", top.chain_id.encoded)
    assert {entry.name for entry in layerdb.iterdir()} == {"diff", "size", "cache-id", "parent"}


@pytest.mark.parametrize("umask", [0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(store, umask):
    before = os.umask(umask)
    try:
        layer = store.register(T1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(place(layer).stat().st_mode) == 0o600


def test_the_paths_name_the_file_and_the_directories(store):
    base = store.register(T1)
    told = store.register(T2, base).metadata()
    at = Path(told["Layer"]).parent
    assert told == {
        "Layer": f"{at}/layer.erofs", "UpperDir": f"{at}/fs", "WorkDir": f"{at}/work", "MergedDir": f"{at}/merged",
        "LowerDir": f"{place(base).parent}/fs",
    }  # fmt: skip


@pytest.mark.parametrize("tar", [b"not a tar", file("../f") + end(), T1[:700], file("f", b"x") + b"\1" * 512], ids=["none", "out", "cut", "bad"])
def test_a_tar_that_is_refused_leaves_nothing(store, tar):
    with pytest.raises(LayerStoreError):
        store.register(tar)
    assert [entry.name for entry in home(store).iterdir()] == ["l"] and not list((home(store) / "l").iterdir())


def test_a_file_gets_its_name_once_it_is_on_the_disk(open_store, room, monkeypatch):
    """By "full" and "ordered" it is synced before; by "none" never. `length` comes behind it."""
    calls = []

    def told(name, real):
        def call(*args, **named):
            calls.append(name)
            return real(*args, **named)

        return call

    monkeypatch.setattr(_files, "fsync", told("fsync", _files.fsync))
    monkeypatch.setattr(_files, "link", told("link", _files.link))
    # The driver asks the file system, which outlives nothing here.
    from layerstore.drivers.erofs.unnamed import Unnamed

    for durability, wanted in (("full", ["fsync", "link"]), ("ordered", ["fsync", "link"]), ("none", ["link"])):
        at = room / durability
        at.mkdir()
        unnamed = Unnamed(f"{at}/layer.erofs", f"{at}/length")
        os.write(unnamed.fd, b"0123")
        unnamed.tar_size = 7
        calls.clear()
        unnamed.give_name(durability)
        assert calls[:2] == wanted[:2] and "link" in calls
        assert (at / "layer.erofs").read_bytes() == b"0123" and (at / "length").read_bytes() == b"7"


# ---- the same as overlay2 ----
def everything(layer):
    """What is told of a layer: its entries, and the bytes of each of its files."""
    entries = [entry._replace(crc=None) for entry in layer.files()]
    tree = layer.merged()
    contents = {}
    for entry in tree:
        if entry.type == FileType.FILE and entry.size < 1 << 30:
            with tree.open(entry.path) as opened:
                contents[entry.path] = hashlib.sha256(opened.read()).digest()
    return entries, [entry._replace(crc=None) for entry in tree], contents


def agree(ours, theirs):
    """Compare all that is told; a directory that a layer has no entry for is of the time 0, not of that of what is below."""
    entries, merged, contents = everything(theirs)
    told = everything(ours)
    zero = {entry.path for entry in told[1] if entry.type == FileType.DIRECTORY and entry.mtime_ns == 0}
    assert told == (entries, [entry._replace(mtime_ns=0) if entry.path in zero else entry for entry in merged], contents)


def registered(store, tars):
    layer, told = None, []
    for tar in tars:
        layer = store.register(tar, layer)
        told.append(layer)
    return told


@pytest.mark.parametrize("name", [name for name in recipes.GOOD if "eight_tebi" not in name])
def test_a_layer_of_any_tar_is_told_as_overlay2_tells_it(store, beside, name):
    tar = recipes.GOOD[name]()
    ours, theirs = store.register(tar), beside.register(tar)
    assert tar_of(ours) == tar
    assert (ours.chain_id, ours.size, ours.diff_size) == (theirs.chain_id, theirs.size, theirs.diff_size)
    agree(ours, theirs)
    assert store.verify() == []


@pytest.mark.parametrize("seed", range(40))
def test_layers_that_were_drawn_are_told_as_overlay2_tells_them(store, beside, seed):
    draw, known, layers = random.Random(seed), [], (None, None)
    for _ in range(8):                    # many are refused
        tar = b"".join(entry.tar() for entry in ocimodel.drawn(draw, known)) + end() + draw.randbytes(draw.choice([0, 0, 7, 512]))
        made = []
        for of, below in zip((store, beside), layers, strict=True):
            try:
                made.append(of.register(tar, below))
            except (LayerStoreError, OSError) as err:
                made.append((type(err), str(err)))
        if isinstance(made[0], tuple) or isinstance(made[1], tuple):
            assert made[0] == made[1]
            continue
        agree(*made)
        assert made[0].diff_size == made[1].diff_size and tar_of(made[0]) == tar
        layers = tuple(made)
    assert store.verify() == []


def test_a_stream_seeks_and_reads_as_a_file_does(store):
    tar = recipes.noise(3 << 20)
    tar = file("f", tar) + end() + b"trailing"
    layer = store.register(tar)
    with layer.tar_stream() as stream:
        assert stream.seekable() and stream.size == len(tar)
        stream.seek(1000)
        assert stream.read(5000) == tar[1000:6000]
        stream.seek(-8, os.SEEK_END)
        assert stream.read() == b"trailing"
    with layer.tar_stream() as stream, open(os.devnull, "wb") as null:
        assert stream.copy_to(null) == len(tar)


# ---- the same tar again ----
def inode(layer):
    return place(layer).stat().st_ino


def test_a_tar_that_is_there_costs_nothing_on_another_layer(store, open_store):
    one, other = store.register(T2), store.register(T1)
    twin = store.register(T2, other)
    assert inode(one) == inode(twin) and place(one).stat().st_nlink == 2
    again = open_store(store.root, driver="erofs")
    third = again.register(T2, again.register(file("z") + end()))
    assert inode(third) == inode(one)
    assert store.verify() == []
    store.release(one)
    assert tar_of(twin) == T2 and tar_of(third) == T2


def test_a_sparse_file_larger_than_the_disk_is_had_once(store):
    tar = tarkit.pax_sparse_1_0("s", [(0, b"begin"), ((1 << 40) + 512, b"x" * 1000)], (1 << 40) + 1512) + end()
    one = store.register(tar)
    began = time.monotonic()
    twin = store.register(tar, store.register(T1))
    assert inode(one) == inode(twin) and store.verify() == [] and time.monotonic() - began < 5
    with twin.open("s") as opened:
        opened.seek((1 << 40) + 512)
        assert opened.read() == b"x" * 1000 and opened.seek(1 << 39) and opened.read(10) == bytes(10)


def test_what_is_damaged_is_not_linked(store):
    one = store.register(T1)
    data = place(one).read_bytes()
    place(one).write_bytes(data.replace(b"hello", b"HELLO"))
    twin = store.register(T1, store.register(T2))
    assert inode(twin) != inode(one)
    assert {problem.subject for problem in store.verify()} == {one.chain_id}


def test_an_image_that_depends_on_what_is_below_is_its_own(store):
    tar = file("a/b/f", b"x") + end()
    low, high = (store.register(dir("a", mode=mode) + dir("a/b", mode=mode) + end()) for mode in (0o700, 0o711))
    plain, one, two, three = store.register(tar), store.register(tar, low), store.register(tar, high), store.register(tar, low)
    assert len({inode(plain), inode(one), inode(two)}) == 3 and three.chain_id == one.chain_id
    four = store.register(tar, store.register(file("other") + end(), low))
    assert inode(four) == inode(one)
    assert [erofsreader.read(place(layer)).tree["a/b"].mode & 0o777 for layer in (plain, one, two)] == [0o755, 0o700, 0o711]
    assert store.verify() == []
