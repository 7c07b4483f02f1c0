import sys
from pathlib import Path

import disk
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kit

import layerstore


@pytest.fixture(scope="session")
def ext4(tmpfs):
    """A file system whose files the kernel mounts without a loop device."""
    with disk.sized_file_system(tmpfs, "ext4", size=1 << 30, inodes=100_000) as place:
        yield place
        assert kit.loops_below(place) == []


@pytest.fixture
def open_store(root):
    """Open a store of the erofs driver; all of them are closed at the end, and no mount or loop device of theirs is left."""
    opened = []

    def opening(where=None, driver="erofs", **options):
        opened.append((layerstore.Store(where or root, driver=driver, options=options or None), where or root))
        return opened[-1][0]

    yield opening
    for store, _ in reversed(opened):
        store.close()
    for _, where in opened:
        assert disk.mounts_below(where) == []
        assert kit.loops_below(where) == []


@pytest.fixture
def store(open_store):
    return open_store()
