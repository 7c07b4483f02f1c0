"""Stopped at every step: a source that fails, a tar that is cut, a disk that is full, a killed process.

Each time the store's directories hold afterwards what they held before, and the store goes on working.
"""

import errno
import os
import signal
import subprocess
import sys
import threading

import disk
import pytest
import recipes
import tarkit
from disk import changed, disk_state
from stored import BoomError, Failing, tar_of
from tarkit import end, file

import layerstore
from layerstore import LayerStoreError, TarFormatError

MIXED = (
    tarkit.dir("d/") + file("d/a", b"a" * 700) + tarkit.pax({"path": "long/" * 40 + "f", "mtime": "1.5"})
    + file("x", b"long") + tarkit.gnu_long("g" * 150) + file(b"g" * 100, b"gnu", magic=tarkit.GNU)
    + tarkit.pax_sparse_1_0("s", [(4096, b"x" * 600)], 9000) + file("d/a", b"again") + tarkit.whiteout("w")
    + tarkit.hardlink("h", "d/a") + end()
)


def works(store):
    layer = store.register(tarkit.T1)
    assert tar_of(layer) == tarkit.T1
    layer.release()


@pytest.fixture
def base(store):
    return store.register(tarkit.T2)


@pytest.mark.time_limit(120)
def test_a_source_that_raises_at_any_offset_leaves_nothing(store, base, root):
    before = disk_state(root)
    for cut in [*range(0, len(MIXED), 256), *range(1, len(MIXED), 509), len(MIXED)]:
        error = BoomError(cut)
        with pytest.raises(BoomError) as caught:
            store.register(Failing(MIXED, cut, error, 4096), base.chain_id)
        assert caught.value is error
        assert changed(before, disk_state(root)) == []
    works(store)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(errno.EIO, "gone"), SystemExit])
def test_any_exception_of_the_source_passes_through(store, base, unchanged, error):
    with unchanged(), pytest.raises(error if isinstance(error, type) else type(error)):
        store.register(Failing(MIXED, 2000, error, 100), base.chain_id)
    works(store)


def test_an_error_behind_the_end_marker_is_raised_too(store, base, unchanged):
    with unchanged(), pytest.raises(BoomError):
        store.register(Failing(MIXED + bytes(5000), 1 << 30, step=512), base.chain_id)


@pytest.mark.time_limit(180)
def test_a_tar_cut_anywhere_is_refused_or_stored_whole(store, base, root):
    # The first child marks its parent as committed, and that mark stays.
    store.register(MIXED, base.chain_id).release()
    before = disk_state(root)
    outcomes = {"stored": 0, "refused": 0}
    for cut in sorted({*range(0, len(MIXED) + 1, 512), *range(100, len(MIXED), 512), *range(511, len(MIXED), 1024)}):
        tar = MIXED[:cut]
        try:
            layer = store.register(tar, base.chain_id)
        except TarFormatError as error:
            assert error.offset is not None
            assert 0 <= error.offset <= cut
            outcomes["refused"] += 1
        else:
            assert layer.diff_id == tarkit.diff_id(tar)
            assert tar_of(layer) == tar
            layer.release()
            outcomes["stored"] += 1
        assert changed(before, disk_state(root)) == [], cut
    assert min(outcomes.values()) > 10


CUTS = {
    "inside the first header": (file("a", b"hello")[:300], False),
    "behind a header with data": (file("a", b"hello")[:512], False),
    "inside a payload": (file("a", b"hello")[:514], False),
    "inside a padding": (file("a", b"hello")[:600], True),
    "behind a padding": (file("a", b"hello"), True),
    "inside an extended header": (tarkit.pax({"path": "p" * 200})[:600], False),
    "inside its data": (tarkit.pax({"path": "p" * 900})[:1200], False),
    "inside a long name": (tarkit.gnu_long("p" * 900)[:1200], False),
    "inside a sparse map": (tarkit.pax_sparse_1_0("s", recipes.MANY, 400_000)[:1900], False),
    "inside a sparse extension": (tarkit.old_gnu_sparse("s", recipes.MANY, 400_000)[:700], False),
    "inside the end marker": (file("a") + bytes(700), False),
    "between the end marker's blocks": (file("a") + bytes(512), True),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_is_refused_unless_only_padding_is_lost(store, base, unchanged, name):
    tar, stored = CUTS[name]
    if stored:
        assert tar_of(store.register(tar, base.chain_id)) == tar
        return
    with unchanged(), pytest.raises(TarFormatError) as caught:
        store.register(tar, base.chain_id)
    assert 0 <= caught.value.offset <= len(tar)


# ---- a full disk ------------------------------------------------------------------------------------------
@pytest.fixture
def small(room, open_store):
    """A store on a disk of a few hundred blocks and inodes, with one layer in it."""
    place = room / "small"
    place.mkdir()
    disk.mount("tmpfs", place, "tmpfs", 0, "size=1m,nr_inodes=200,mode=755")
    store = open_store(place / "docker")
    layer = store.register(tarkit.T1)
    yield store, layer, place / "docker"
    store.close()
    disk.unmount(place)


FULL = {
    "of bytes": file("big", recipes.noise(3 << 20)) + end(),
    "of bytes, in many files": b"".join(file(f"f{i}", recipes.noise(9000, i + 1)) for i in range(150)) + end(),
    "of inodes": b"".join(file(f"f{i}") for i in range(300)) + end(),
    "of inodes, by directories": b"".join(tarkit.dir(f"d{i}/") for i in range(300)) + end(),
    "by the record": b"".join(tarkit.whiteout("w", recipes.noise(60_000, i)) for i in range(1, 60)) + end(),
}


@pytest.mark.parametrize("name", FULL)
def test_a_disk_that_is_full_is_an_os_error_and_leaves_nothing(small, name):
    store, layer, root = small
    before = disk_state(root)
    with pytest.raises(OSError) as caught:
        store.register(FULL[name], layer.chain_id)
    assert caught.value.errno == errno.ENOSPC
    assert changed(before, disk_state(root)) == []
    works(store)
    assert len(layer.release()) == 1


def test_a_full_disk_fails_a_writable_layer_without_a_trace(small):
    store, layer, root = small
    store.create_rw_layer("first", layer.chain_id)
    before = disk_state(root)
    free = os.statvfs(root).f_ffree
    fillers = [root.parent / f"filler{i}" for i in range(free - 2)]
    for filler in fillers:
        filler.touch()
    with pytest.raises(OSError) as caught:
        store.create_rw_layer("c", layer.chain_id)
    assert caught.value.errno == errno.ENOSPC
    assert changed(before, disk_state(root)) == []
    for filler in fillers:
        filler.unlink()
    assert store.create_rw_layer("c", layer.chain_id).name == "c"


def test_a_read_only_disk_is_an_os_error(small):
    store, layer, root = small
    disk.mount("tmpfs", root.parent, "tmpfs", 32 | 1, "size=1m,nr_inodes=200")  # MS_REMOUNT | MS_RDONLY
    before = disk_state(root)
    for attempt in (
        lambda: store.register(tarkit.T2), lambda: store.create_rw_layer("c", layer.chain_id),
        lambda: store.release(layer)
    ):
        with pytest.raises((OSError, LayerStoreError)):
            attempt()
    assert changed(before, disk_state(root)) == []


# ---- a killed process ----------------------------------------------------------------------------------------
CHILD = """
import sys
sys.path[:0] = sys.argv[2:]
import layerstore
store = layerstore.Store(sys.argv[1])
print("open", flush=True)
store.register(sys.stdin.buffer.raw)
print("registered", flush=True)
"""


def child(root):
    where = os.path.dirname(os.path.dirname(layerstore.__file__))
    command = [sys.executable, "-c", CHILD, str(root), where]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def fed(process, tar, cut):
    """Write so much of the tar that the child must have taken most of it."""
    assert process.stdout.readline() == b"open\n"
    process.stdin.write(tar[:cut])
    process.stdin.flush()


def test_a_killed_register_is_swept_up_by_cleanup(store, open_store, root):
    chain = store.register(tarkit.T2).chain_id
    store.close()
    before = disk_state(root)
    tar = b"".join(file(f"f{i}", recipes.noise(20_000, i + 1)) for i in range(200)) + end()
    with child(root) as process:
        fed(process, tar, len(tar) // 2)
        process.send_signal(signal.SIGKILL)
    again = open_store()
    assert list(again.map()) == [chain]
    again.cleanup()
    assert changed(before, disk_state(root)) == []
    works(again)


def test_an_interrupt_stops_a_register_and_leaves_nothing(store, root):
    chain = store.register(tarkit.T2).chain_id
    store.close()
    before = disk_state(root)
    tar = b"".join(file(f"f{i}", recipes.noise(20_000, i + 1)) for i in range(200)) + end()
    with child(root) as process:
        fed(process, tar, len(tar) // 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
        assert b"registered" not in process.stdout.read()
    assert changed(before, disk_state(root)) == []
    assert chain


@pytest.mark.time_limit(30)
def test_an_alarm_reaches_a_register_that_waits_on_a_pipe(store, unchanged):
    store.register(tarkit.T2)
    reader, writer = os.pipe()
    os.write(writer, tarkit.T1[:1000])

    def stop(signum, frame):
        raise BoomError

    before = signal.signal(signal.SIGUSR1, stop)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with unchanged(), pytest.raises(BoomError):
            store.register(reader)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
        os.close(reader), os.close(writer)


# ---- other calls stopped half-way ----------------------------------------------------------------------------
def test_a_commit_that_fails_leaves_the_writable_layer(small):
    store, layer, root = small
    rw = store.create_rw_layer("c", layer.chain_id)
    with rw.mounted() as path:
        with open(f"{path}/big", "wb") as out:
            out.write(recipes.noise(400_000))
    before = disk_state(root)
    with open(root.parent / "filler", "wb") as out:
        out.write(bytes(os.statvfs(root).f_bavail * 4096 - 100_000))
    with pytest.raises(OSError):
        rw.commit()
    assert changed(before, disk_state(root)) == []
    with rw.tar_stream() as stream:
        assert b"big" in stream.read(512)


def test_a_register_refused_at_its_end_keeps_the_parents_count(store, base):
    for _ in range(3):
        with pytest.raises(TarFormatError):
            store.register(tarkit.T1[:-700] + b"x", base.chain_id)
    assert len(base.release()) == 1


def test_hundreds_of_failures_leave_no_descriptor(store, base):
    before = disk.open_files()
    for i in range(300):
        with pytest.raises((TarFormatError, BoomError)):
            store.register(Failing(MIXED, 13 * i % len(MIXED), step=512), base.chain_id)
        with pytest.raises(LayerStoreError):
            store.register(b"A" * 1024, base.chain_id)
    assert disk.open_files().keys() == before.keys()
