"""Deep and long: 5,000 directories in one another, and a path of 60 KB. Nothing recurs, nothing is left unsynced."""

import os
import subprocess

import pytest
import tarkit

from layerstore import Images
from layerstore.disk import mounts

PATHS = {"5,000 directories": "/".join(["a"] * 5000), "60 KB": "/".join(["n" * 255] * 240)}


def one(directory, name, data=b"deep"):
    return tarkit.pax({"path": f"{directory}/{name}"}) + tarkit.file("x", data) + tarkit.end()


@pytest.fixture
def deep(open_store, room, root):
    yield open_store(options={"max_depth": "6000", "max_path": "80000", "durability": "full"})
    subprocess.run(["rm", "-rf", room / "flat", root / "overlay2"], check=True)      # deeper than Python's own calls go


def read_at(root, path):
    fd = os.open(root, os.O_RDONLY)
    for part in path.split("/"):
        fd, above = os.open(part, os.O_RDONLY, dir_fd=fd), fd
        os.close(above)
    with os.fdopen(fd, "rb") as opened:
        return opened.read()


@pytest.mark.time_limit(110)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_every_call_goes_as_deep(deep, room, path):
    store, top = deep, path.split("/")[0]
    base = store.register(one(path, "f"), store.register(tarkit.file("z") + tarkit.end()).chain_id)
    layer = store.register(one(path, "g", b"again"), base.chain_id)      # the same directories, without entries
    assert len(layer.merged()) == path.count("/") + 1 + 3
    assert store.verify() == []
    with layer.merged().open(f"{path}/g") as opened:
        assert opened.read() == b"again"
    Images(store).create(layer, {}, tags="x")
    Images(store).unpack("x", room / "flat")
    assert read_at(room / "flat", f"{path}/f") == b"deep"
    box = store.create_rw_layer("box", layer.chain_id)
    box.apply_diff(one(path, "h", b"box"))
    with box.mounted() as mounted:
        assert [read_at(mounted, f"{path}/{name}") for name in "fgh"] == [b"deep", b"again", b"box"]
    assert len(box.changes()) == path.count("/") + 2
    assert box.size() == 3
    committed = box.commit()
    assert store.verify() == []
    box.apply_diff(one(path, ".wh.g", b""))
    assert box.size() == 3
    box.apply_diff(tarkit.pax({"path": f".wh.{top}"}) + tarkit.file("x") + tarkit.end())
    with box.mounted() as mounted:
        assert os.listdir(mounted) == ["z"]
    store.release_rw_layer(box)
    Images(store).remove("x")
    for held in (committed, layer, base):
        store.release(held)
    assert store.orphans() == []


@pytest.mark.parametrize("path", ["/".join(["d" * 99] * 45), "/".join("a" * 3000), "/".join(["n" * 255] * 17), "/".join("a" * 17)])
def test_what_no_path_reaches_is_synced_all_the_same(deep, monkeypatch, path):
    """Such a layer is synced with the whole of its file system: sync(2) by names would miss it."""
    synced = []
    monkeypatch.setattr(mounts, "sync_filesystem", synced.append)
    layer = deep.register(one(path, "f"))
    synced.clear()
    assert deep._engine.driver.host.sync([layer.cache_id], "full")
    assert synced == [deep._engine.driver.host.ground.home]
