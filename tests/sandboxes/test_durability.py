"""What each level of durability makes of a mount, of its end, and of a work directory that a volatile mount left behind."""

import os
import time
from pathlib import Path

import disk
import pytest
import tarkit
from boxes import shown, write
from driven import DRIVER

import layerstore
from layerstore import Store

BASE = tarkit.file("f", b"f") + tarkit.end()


def options_of(path) -> set[str]:
    """The options of a mount; what newer kernels call fsync=volatile is volatile."""
    return set(disk.mount_line(path)[3].replace("fsync=volatile", "volatile").split(","))


@pytest.fixture
def ext4(room):
    with disk.sized_file_system(room, "ext4", size=512 << 20) as place:
        yield place


@pytest.mark.parametrize("durability", ["none", "ordered", "full"])
def test_only_none_is_volatile(ext4, durability):
    with Store(ext4 / "docker", options={"durability": durability}) as store:
        box = store.create_rw_layer("box", store.register(BASE))
        path = box.mount()
        assert ("volatile" in options_of(path)) == (durability == "none")
        write(box, "one")
        box.snapshot()
        assert ("volatile" in options_of(path)) == (durability == "none"), "the switched overlay as well"
        box.rollback(box.base)
        assert ("volatile" in options_of(path)) == (durability == "none")
        box.unmount()
        place = Path(box.metadata()["WorkDir"])
        assert not (place / "work/incompat").exists()
        with box.mounted():
            pass


def parameter(name: str) -> str | None:
    try:
        return Path("/sys/module/overlay/parameters", name).read_text().strip()
    except OSError:
        return None


def test_a_mount_does_without_what_a_stack_cannot_have(store, box):
    with box.mounted() as path:
        given = options_of(path)
        assert not {"index=on", "redirect_dir=on", "metacopy=on"} & given
        assert parameter("index") in (None, "N") or "index=off" in given
    box.mount()
    box.snapshot()
    assert not {"index=on", "redirect_dir=on", "metacopy=on"} & options_of(path)
    box.unmount()


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_a_work_directory_that_a_kill_left_is_mounted_again(room, kind):
    with disk.sized_file_system(room, kind, size=512 << 20) as place, Store(place / "docker", options={"durability": "none"}) as store:
        box = store.create_rw_layer("box", store.register(BASE))
        path = box.mount()
        write(box, "one", "1")
        store.close()
        disk.unmount(path, 0)       # as a restart of the machine does, and nothing of ours sees it
        work = next(Path(place, "docker", DRIVER).glob("*/work")) / "work"
        assert (work / "incompat/volatile").exists(), "it was volatile"
        for durability in ("full", "none"):
            with Store(place / "docker", options={"durability": durability}) as again:
                box = again.get_rw_layer("box")
                assert shown(box)["one"] == "1"
                snap = box.snapshot()
                assert shown(box)["one"] == "1" and snap.release() == []


def test_the_end_of_a_volatile_mount_writes_nothing_back(ext4):
    took = {}
    for durability in ("none", "full"):
        with Store(ext4 / f"docker {durability}", options={"durability": durability}) as store:
            box = store.create_rw_layer("box", store.register(BASE))
            path = box.mount()
            Path(path, "big").write_bytes(bytes(80 << 20))
            began = time.perf_counter()
            box.unmount()
            took[durability] = time.perf_counter() - began
    assert took["none"] < 0.05 and took["none"] < took["full"], took


def test_a_snapshot_of_what_another_level_mounted(ext4):
    with Store(ext4 / "docker", options={"durability": "none"}) as fast, Store(ext4 / "docker", options={"durability": "full"}) as safe:
        box = fast.create_rw_layer("box", fast.register(BASE))
        path = box.mount()
        write(box, "one")
        snap = safe.get_rw_layer("box").snapshot()
        assert box.base.id == snap.id and os.listdir(path)
        write(box, "two")
        box.unmount()
        assert {"one", "two"} <= shown(box).keys()
        with pytest.raises((ValueError, layerstore.LayerStoreError)):
            box.snapshot(durability="perhaps")
