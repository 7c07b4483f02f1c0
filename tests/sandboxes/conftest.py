"""Boxes on file systems of their own, the four that a root may lie on; and small words for what tests of boxes do all the time."""

import sys
import time
from pathlib import Path

import disk
import pytest
import tarkit
from machine import needs

sys.path.insert(0, str(Path(__file__).resolve().parent))

from boxes import write
from driven import DRIVER

KINDS = ("tmpfs", "ext4", "xfs", "btrfs")
BASE = tarkit.dir("etc/") + tarkit.file("etc/hosts", b"127.0.0.1\n" * 500) + tarkit.file("top", b"top") + tarkit.dir("old/") + tarkit.file("old/one", b"1") + tarkit.end()


@pytest.fixture(params=KINDS)
def ground(request, room):
    """A fresh file system of each kind."""
    if request.param != "tmpfs":
        needs(f"mkfs.{request.param}")
    with disk.sized_file_system(room, request.param, size=512 << 20) as place:
        yield place


@pytest.fixture
def base(store):
    return store.register(BASE)


@pytest.fixture
def box(store, base):
    return store.create_rw_layer("box", base)


@pytest.fixture
def snap(box):
    write(box, "one", "1")
    return box.snapshot()


@pytest.fixture
def record(layerdb):
    """The directory of a snapshot's record."""
    return lambda snap: layerdb / "snapshots" / getattr(snap, "id", snap)


@pytest.fixture
def home(root):
    """The driver's directory of a snapshot, or of an id."""
    return lambda thing: root / DRIVER / getattr(thing, "id", thing)


@pytest.fixture
def directories(root):
    """The driver's directories, without the links; waits for what a thread of the store is removing until there are so many."""

    def listed(count: int | None = None) -> set[str]:
        ends = time.monotonic() + 10
        while True:
            found = {path.name for path in (root / DRIVER).iterdir() if len(path.name) >= 64}
            if count is None or len(found) == count or time.monotonic() > ends:
                return found
            time.sleep(0.002)

    return listed
