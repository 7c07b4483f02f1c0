"""Mounts: shared, counted over boxes, stores and processes, and gone after the last; what is refused before the kernel sees it."""

import os
import struct
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import disk
import erofsreader
import kit
import pytest
import tarkit

import layerstore

T1, T2 = tarkit.T1, tarkit.T2


@pytest.fixture(params=["tmpfs", "ext4"])
def root(room, ext4, request):
    """A root on what the kernel mounts by loop devices, and on what it mounts itself."""
    if request.param == "tmpfs":
        yield room / "docker"
        return
    place = ext4 / room.name
    yield place
    disk.unmount_below(ext4)
    if place.exists():
        disk.remove_tree(place)


def mounts(store) -> list[str]:
    """Mounts below the root, shortly."""
    return [os.path.relpath(point, kit.home_of(store)) for point in disk.mounts_below(store.root)]


def stack(store, n):
    layers = []
    for i in range(n):
        layers.append(store.register(tarkit.file(f"n{i}", b"%d" % i) + tarkit.file("top", b"%d" % i) + tarkit.end(), layers[-1].chain_id if layers else ""))
    return layers


def test_only_a_mount_mounts(store):
    layers = stack(store, 3)
    top = layers[-1]
    for read in (
        lambda: top.tar_stream().close(), lambda: list(top.files()), lambda: top.open("n2").close(), lambda: list(top.merged()), lambda: store.verify(),
        lambda: store.diff(layers[0].chain_id, top.chain_id), lambda: store.orphans(), lambda: store.usage(), lambda: top.metadata(), lambda: store.map(),
        lambda: store.cleanup(), lambda: store.create_rw_layer("box", top.chain_id), lambda: store.get_rw_layer("box").changes(), lambda: store.get_rw_layer("box").size(),
        lambda: store.get_rw_layer("box").metadata(), lambda: store.repair(top.chain_id), lambda: list(store.get_rw_layer("box").files()), lambda: store.get_rw_layer("box").open("n2").close(),
    ):  # fmt: skip
        read()
        assert disk.mounts_below(store.root) == [] and kit.loops_below(Path(store.root)) == []
    with store.get_rw_layer("box").tar_stream() as tar:
        tar.read()
    assert disk.mounts_below(store.root) == []


def test_layers_are_mounted_once_and_shared(store, open_store):
    layers = stack(store, 3)
    other = open_store()
    one, two = store.create_rw_layer("one", layers[2].chain_id), other.create_rw_layer("two", layers[1].chain_id)
    first = one.mount()
    expected = {str(kit.cache_of(layer) / "fs") for layer in layers}
    assert set(disk.mounts_below(store.root)) == expected | {first}
    devices = {layer: os.stat(kit.cache_of(layer) / "fs").st_dev for layer in layers}
    second = two.mount()
    assert set(disk.mounts_below(store.root)) == expected | {first, second}
    assert devices == {layer: os.stat(kit.cache_of(layer) / "fs").st_dev for layer in layers}
    for layer in layers:
        line = disk.mount_line(kit.cache_of(layer) / "fs")
        assert line[2] == "erofs" and "ro" in line[3].split(",")
    one.unmount()
    assert set(disk.mounts_below(store.root)) == expected - {str(kit.cache_of(layers[2]) / "fs")} | {second}
    two.unmount()
    assert disk.mounts_below(store.root) == [] and kit.loops_below(Path(store.root)) == []


def test_counted_mounts(store):
    box = store.create_rw_layer("box", stack(store, 2)[-1].chain_id)
    assert box.mount() == box.mount()
    box.unmount()
    assert len(disk.mounts_below(store.root)) == 3
    box.unmount()
    assert disk.mounts_below(store.root) == []


def test_a_mount_that_stands_there_is_used_whoever_made_it(store):
    base = store.register(T1)
    fs = kit.cache_of(base) / "fs"
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", kit.file_of(base), fs], check=True)
    device = os.stat(fs).st_dev
    box = store.create_rw_layer("box", base.chain_id)
    with box.mounted() as place:
        assert Path(place, "a/f").read_bytes() == b"hello"
        assert os.stat(fs).st_dev == device and len(disk.mounts_below(store.root)) == 2
    assert disk.mounts_below(store.root) == []


def test_a_lonely_mount_is_an_orphan_and_ends(store):
    base = store.register(T1)
    fs = kit.cache_of(base) / "fs"
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", kit.file_of(base), fs], check=True)
    found = [orphan for orphan in store.orphans() if orphan.kind == "mount"]
    assert len(found) == 1 and kit.cache_of(base).name in str(found[0])
    assert store.reclaim(dry_run=False) == found
    assert disk.mounts_below(store.root) == [] and store.orphans() == []
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", kit.file_of(base), fs], check=True)
    store.cleanup()
    assert disk.mounts_below(store.root) == []
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", kit.file_of(base), fs], check=True)
    base.release()
    assert disk.mounts_below(store.root) == [] and os.listdir(kit.home_of(store)) == ["l"]


def test_a_box_without_a_parent_mounts_nothing_below(store):
    box = store.create_rw_layer("box")
    place = box.mount()
    Path(place, "f").write_text("x")
    assert all(disk.mount_line(point)[2] != "erofs" for point in disk.mounts_below(store.root))
    box.unmount()
    assert disk.mounts_below(store.root) == []


def child(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


MOUNTER = """
    import sys, layerstore
    store = layerstore.Store(sys.argv[1], driver="erofs")
    box = store.get_rw_layer(sys.argv[2])
    print(box.mount(), flush=True)
    sys.stdin.readline()
    box.unmount()
    print("done", flush=True)
    sys.stdin.readline()
    store.close()
"""


def test_processes_share_and_a_killed_one_leaves_what_cleanup_ends(store):
    layers = stack(store, 3)
    for name in ("mine", "theirs"):
        store.create_rw_layer(name, layers[-1].chain_id)
    mine = store.get_rw_layer("mine")
    with child(MOUNTER, store.root, "theirs") as other:
        assert other.stdout.readline().strip()
        mine.mount()
        assert len(disk.mounts_below(store.root)) == 5
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "done\n"
        assert len(disk.mounts_below(store.root)) == 4
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.wait(20) == 0
    with child(MOUNTER, store.root, "theirs") as other:
        assert other.stdout.readline().strip()
        mine.unmount()
        assert len(disk.mounts_below(store.root)) == 4
        other.kill()
        other.wait()
    theirs = store.get_rw_layer("theirs")
    place = theirs.mount()
    assert Path(place, "top").read_text() == "2"
    theirs.unmount()
    theirs.unmount()
    store.cleanup()
    assert disk.mounts_below(store.root) == [] and kit.loops_below(Path(store.root)) == [] and store.orphans() == []
    store.get_rw_layer("theirs").release()


def test_threads_mount_and_unmount_at_once(store):
    layers = stack(store, 4)
    boxes = [store.create_rw_layer(f"b{i}", layers[i % 4].chain_id) for i in range(6)]
    failed = []

    def work(box):
        try:
            for _ in range(6):
                with box.mounted() as place:
                    Path(place, "top").read_text()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(box,)) for box in boxes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and disk.mounts_below(store.root) == [] and kit.loops_below(Path(store.root)) == []


def sealed(data: bytearray) -> bytes:
    """The file with the checksum of its superblock right."""
    block = bytearray(data[1024:1536])
    block[4:8] = bytes(4)
    data[1028:1032] = struct.pack("<I", erofsreader.crc32c(bytes(block)))
    return bytes(data)


def field(at, form, value, seal=True):
    def change(path):
        data = bytearray(path.read_bytes())
        struct.pack_into(form, data, 1024 + at, value)
        path.write_bytes(sealed(data) if seal else bytes(data))
    return change


def replaced(make):
    def change(path):
        path.unlink()
        make(path)
    return change


def cut(path):
    os.truncate(path, os.path.getsize(path) - 512)


def grown(path):
    os.truncate(path, os.path.getsize(path) + 512)


def header_zeros(path):
    with open(path, "r+b") as file:
        file.write(bytes(4096))


WRONG = {
    "magic": field(0, "<I", 0xE0F5E1E3, False), "checksum": field(4, "<I", 1, False), "compat": field(8, "<I", 2), "more compat": field(8, "<I", 7), "blkszbits": field(12, "<B", 12),
    "slots": field(13, "<B", 1), "root": field(14, "<H", 2), "inos": field(16, "<Q", 99), "epoch": field(24, "<q", 5), "nsec": field(32, "<I", 5), "blocks": field(36, "<I", 9),
    "meta": field(40, "<I", 9), "xattr": field(44, "<I", 1), "uuid": field(48, "<16s", b"u" * 16), "volume": field(64, "<16s", b"tar:1"), "volume text": field(64, "<16s", b"hello"),
    "unknown incompat": field(80, "<I", 0x800), "lz4": field(84, "<H", 1), "devices": field(86, "<H", 1), "slotoff": field(88, "<H", 9), "dirblk": field(90, "<B", 1),
    "prefixes": field(91, "<B", 1), "prefix start": field(92, "<I", 1), "packed": field(96, "<Q", 5), "filter": field(104, "<B", 1), "share": field(105, "<B", 1), "reserved": field(106, "<H", 1),
    "build": field(108, "<I", 1), "root8": field(112, "<Q", 1), "reserved2": field(120, "<Q", 1),
    "cut": cut, "grown": grown, "zeros": header_zeros, "symlink": replaced(lambda path: path.symlink_to("/etc/passwd")), "fifo": replaced(os.mkfifo), "directory": replaced(os.mkdir),
    "missing": replaced(lambda path: None), "empty": replaced(lambda path: path.write_bytes(b"")),
    "length": lambda path: (path.parent / "length").write_text("1"), }  # fmt: skip


@pytest.mark.time_limit(90)
@pytest.mark.parametrize("root", ["ext4"], indirect=True)
@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_ours_is_refused_before_the_kernel_sees_it(store, name):
    layers = stack(store, 3)
    layer = layers[1]
    box = store.create_rw_layer("box", layers[-1].chain_id)
    path = kit.file_of(layer)
    before = kit.kernel_log()
    whole = path.read_bytes()
    WRONG[name](path)
    with pytest.raises((layerstore.LayerStoreError, OSError)) as refused:
        box.mount()
    assert (str(refused.value) and kit.cache_of(layer).name[:12] in str(refused.value) + str(getattr(refused.value, "filename", ""))) or layer.chain_id[7:19] in str(refused.value), str(refused.value)
    assert disk.mounts_below(store.root) == [] and kit.loops_below(Path(store.root)) == []
    here = os.path.basename(store.root)
    assert [line for line in kit.kernel_log() if line not in before and here in line] == []
    problems = store.verify(layer.chain_id)
    assert problems and {problem.kind for problem in problems} <= {"metadata", "missing"}
    assert all(problem.detail and problem.subject == layer.chain_id for problem in problems), problems
    assert {problem.kind for problem in problems} == ({"missing"} if name in ("symlink", "fifo", "directory", "missing") else {"metadata"}), problems
    assert store.verify(layers[0].chain_id) == []
    source = io_of(layers, 1)
    done = store.repair(layer.chain_id, source) if name in ("symlink", "fifo", "directory", "missing", "empty") else store.repair(layer.chain_id)
    assert store.verify() == [], done
    assert path.read_bytes() == whole
    with box.mounted() as place:
        assert Path(place, "top").read_text() == "2"


def io_of(layers, i):
    return tarkit.file(f"n{i}", b"%d" % i) + tarkit.file("top", b"%d" % i) + tarkit.end()


def test_a_mount_that_fails_takes_back_its_layers(store, monkeypatch):
    layers = stack(store, 4)
    box = store.create_rw_layer("box", layers[-1].chain_id)
    work = Path(box.metadata()["WorkDir"])
    disk.remove_tree(work)
    work.write_text("no directory")
    with pytest.raises((OSError, layerstore.LayerStoreError)):
        box.mount()
    assert disk.mounts_below(store.root) == [] and kit.loops_below(Path(store.root)) == []
    work.unlink()
    work.mkdir()
    with box.mounted():
        assert len(disk.mounts_below(store.root)) == 5


def test_a_store_that_only_reads(open_store, store):
    layer = stack(store, 2)[-1]
    reading = open_store(read_only="true")
    same = next(found for found in reading.map().values() if found.chain_id == layer.chain_id)
    before = disk.inventory(store.root)
    assert same.tar_stream().read() == layer.tar_stream().read() and [entry.name for entry in same.files()] == ["n1", "top"]
    assert reading.verify() == [] and dict(reading.driver_status())["EROFS mode"] in ("file", "loop")
    for write in (lambda: reading.register(T1), lambda: reading.create_rw_layer("x", layer.chain_id), lambda: reading.convert(layer.chain_id, "overlay2")):
        with pytest.raises(layerstore.ReadOnlyStoreError):
            write()
    assert disk.inventory(store.root) == before and disk.mounts_below(store.root) == []


def test_status_tells_the_mode(store, request):
    status = dict(store.driver_status())
    on_ext4 = "ext4" in request.node.name
    assert status["EROFS mode"] == ("file" if on_ext4 else "loop")
    assert status["Backing Filesystem"] in ("extfs", "tmpfs", "ext4")
    assert disk.mounts_below(store.root) == [] and kit.loops_below(Path(store.root)) == []
    assert not kit.home_of(store).exists() or set(os.listdir(kit.home_of(store))) <= {"l"}


@pytest.mark.parametrize("root", ["ext4"], indirect=True)
def test_a_stack_of_125_layers(store):
    layers = stack(store, 125)
    with pytest.raises(layerstore.MaxDepthExceededError):
        store.register(T1, layers[-1].chain_id)
    box = store.create_rw_layer("box", layers[-1].chain_id)
    with box.mounted() as place:
        assert len(os.listdir(place)) == 126 and Path(place, "top").read_text() == "124"
        assert len(disk.mounts_below(store.root)) == 126
    assert disk.mounts_below(store.root) == []
    assert store.diff(layers[0].chain_id, layers[-1].chain_id)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_other_file_systems(room, kind):
    with disk.sized_file_system(room, kind, size=400 << 20) as place:
        store = layerstore.Store(place / "root", driver="erofs")
        try:
            layers = stack(store, 3)
            assert dict(store.driver_status())["EROFS mode"] == "file"
            with store.create_rw_layer("box", layers[-1].chain_id) as box, box.mounted() as at:
                assert Path(at, "top").read_text() == "2"
                assert {disk.mount_line(kit.cache_of(layer) / "fs")[2] for layer in layers} == {"erofs"} and kit.loops_below(place) == []
            # A source on the same file system is shared with it.
            tar = place / "source.tar"
            tar.write_bytes(tarkit.file("big", os.urandom(8 << 20)) + tarkit.end() + b"x")
            os.sync()
            free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
            layer = store.register(tar)
            os.sync()
            used = free - os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
            assert used < 4 << 20, f"{used} bytes for a layer whose tar lies there"
            assert kit.read(layer).tar == tar.read_bytes() and store.verify() == []
        finally:
            store.close()


def test_on_overlayfs(room):
    for name in ("low", "up", "work", "at"):
        (room / name).mkdir()
    disk.mount("overlay", room / "at", "overlay", 0, f"lowerdir={room}/low,upperdir={room}/up,workdir={room}/work")
    store = layerstore.Store(room / "at/root", driver="erofs")
    try:
        assert dict(store.driver_status())["EROFS mode"] == "loop"
        layer = stack(store, 2)[-1]
        assert store.verify() == [] and layer.tar_stream().read()
    finally:
        store.close()
        disk.unmount_below(room)
    assert kit.loops_below(room) == []
