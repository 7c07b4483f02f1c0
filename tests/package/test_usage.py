"""usage(): what a store takes of the disk, against a walk of its directories; and what it says could be freed."""

import contextlib
import os
import time
from pathlib import Path

import another
import pytest
import tarkit
from disk import sized_file_system
from driven import DRIVER, FILES
from tarkit import end, file

import layerstore
from layerstore import CreateRWLayerOpts, Usage

BIG = 300_000


def tree(*names, size=BIG):
    return b"".join(file(name, os.urandom(size)) for name in names) + end()


def taken(seen, *directories):
    """What these take beside those seen before: blocks, each inode once."""
    total = 0
    for top in directories:
        for above, _, names in os.walk(top) if os.path.isdir(top) else [(top, [], [])]:
            for path in (above, *(os.path.join(above, name) for name in names)):
                st = os.lstat(path)
                if (st.st_dev, st.st_ino) not in seen:
                    seen.add((st.st_dev, st.st_ino))
                    total += st.st_blocks * 512
    return total


def upper(thing):
    """The files of a box or of a layer: of one that is an image, that."""
    found = thing.metadata()
    return found.get("Layer", found["UpperDir"])


@pytest.fixture(params=["tmpfs", "ext4", "xfs"])
def place(request, room):
    with sized_file_system(room, request.param, size=320 << 20) as place:
        yield place


@pytest.fixture
def store_at(place):
    """Open a store on that file system; all are closed before it is unmounted."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(layerstore.Store(place / "root"))


def test_a_store_of_nothing_takes_nothing(store):
    assert store.usage() == Usage(0, 0, 0, 0, 0)
    assert store.usage()._fields == ("layers", "writable", "snapshots", "orphans", "reclaimable")


def test_each_thing_counts_its_blocks(store_at, place):
    store = store_at()
    base = store.register(tree("a", "d/b"))
    top = store.register(tree("c"), base)
    seen = set()

    def init(path):
        Path(path, "etc").mkdir()
        Path(path, "etc/hosts").write_bytes(b"h" * 5000)

    with store.create_rw_layer("box", top, CreateRWLayerOpts(init_func=init)) as box:
        with box.mounted() as path:
            Path(path, "new").write_bytes(os.urandom(BIG))
            with open(f"{path}/a", "ab") as out:
                out.write(b"!")
            Path(path, "hole").touch()
            os.truncate(f"{path}/hole", 1 << 30)
            os.link(f"{path}/new", f"{path}/again")
            during = store.usage()
        layers = taken(seen, upper(base), upper(top))
        boxes = taken(seen, upper(box), Path(upper(box)).parent.with_name(f"{Path(upper(box)).parent.name}-init") / FILES)
        found = store.usage()
        assert found == Usage(layers, boxes, 0, 0, 0)
        assert during.layers == layers
        assert boxes > 2 * BIG
        orphan = place / "root" / DRIVER / ("a" * 64)
        (orphan / FILES).mkdir(parents=True)
        (orphan / FILES / "left").write_bytes(os.urandom(BIG))
        left = taken(set(), orphan)
        assert store.usage() == Usage(layers, boxes, 0, left, left)


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_what_two_have_counts_for_the_first(store, root):
    layer = store.register(tree("a"))
    with store.create_rw_layer("box", layer) as box:
        before = store.usage()
        os.link(f"{upper(layer)}/a", f"{upper(box)}/same")
        assert store.usage() == before
        orphan = root / DRIVER / ("b" * 64)
        (orphan / FILES).mkdir(parents=True)
        os.link(f"{upper(layer)}/a", orphan / FILES / "same")
        found = store.usage()
        assert found.layers == before.layers
        assert found.orphans < 100_000
        assert found.reclaimable == found.orphans


def test_reclaimable_is_what_nothing_needs(open_store, root):
    store = open_store()
    base = store.register(tree("a"))
    middle = store.register(tree("b"), base)
    top = store.register(tree("c"), middle)
    other = store.register(tree("d"), base)
    size = {layer.chain_id: taken(set(), upper(layer)) for layer in (base, middle, top, other)}
    assert store.usage().reclaimable == 0                    # this store has references
    chains = [layer.chain_id for layer in (base, middle, top, other)]
    store.close()

    store = open_store()
    assert store.usage().reclaimable == sum(size.values()) == store.usage().layers
    code = "import sys, time, layerstore; store = layerstore.Store(sys.argv[1]); kept = store.get(sys.argv[2]); print('ready', flush=True); time.sleep(60)"
    with another.at_work(code, root, chains[3]):
        assert store.usage().reclaimable == size[chains[1]] + size[chains[2]]
    box = store.create_rw_layer("box", chains[1])
    assert store.usage().reclaimable == size[chains[2]] + size[chains[3]]
    box.release()
    assert store.usage().reclaimable == store.usage().layers


def test_an_image_keeps_its_layers(open_store):
    store = open_store()
    base = store.register(tree("a"))
    top = store.register(tree("b"), base)
    of_top = taken(set(), upper(top))
    layerstore.Images(store).create(base, {"created": "2026-01-01T00:00:00Z"}, tags="base:1")
    store.close()
    assert open_store().usage().reclaimable == of_top


def test_what_remove_frees_is_what_was_said(store_at):
    store = store_at()
    keep = store.register(tree("keep"))
    loose = [store.register(tree(f"f{i}", size=100_000 * (i + 1)), keep if i % 2 else "") for i in range(4)]
    store.register(tree("on top"), loose[2])
    kept = keep.chain_id
    store.close()
    store = store_at()
    with store.get(kept):
        said = store.usage()
        chains = set(store.map()) - {kept}
        while chains:
            for chain in sorted(chains):
                try:
                    chains -= {gone.chain_id for gone in store.remove(chain)}
                except layerstore.StoreInUseError:
                    continue
        assert store.usage() == Usage(said.layers - said.reclaimable, 0, 0, 0, 0)


def write(box, *names, size=BIG):
    with box.mounted() as path:
        for name in names:
            Path(path, name).write_bytes(os.urandom(size))


def test_snapshots_count_for_themselves(store_at):
    store = store_at()
    base = store.register(tree("a"))
    box = store.create_rw_layer("box", base)
    write(box, "one")
    first = box.snapshot()
    write(box, "two")
    second = box.snapshot()
    write(box, "three")
    fork = second.fork("fork")
    write(fork, "four")
    layers, snapshots = taken(set(), upper(base)), taken(set(), upper(first), upper(second))
    boxes = taken(set(), upper(box), upper(fork))
    assert store.usage() == Usage(layers, boxes, snapshots, 0, 0)
    loose = upper(first)
    assert first.release() == []                                # it stays, as the second stands on it
    assert store.usage() == Usage(layers, boxes, snapshots, 0, 0)
    kept = taken(set(), upper(box))
    box.rollback(base)
    fork.release()
    found = store.usage()
    assert found.reclaimable == found.snapshots == snapshots
    second.release()
    assert not os.path.exists(loose)
    assert store.usage()._replace(writable=0) == Usage(layers, 0, 0, 0, 0)
    assert kept > 0


def test_init_layers_of_snapshots_are_writable(store):
    base = store.register(tree("a"))
    box = store.create_rw_layer("box", base, CreateRWLayerOpts(init_func=lambda path: Path(path, "etc").write_bytes(bytes(BIG))))
    before = store.usage()
    snapshot = box.snapshot()
    after = store.usage()
    assert after.writable < before.writable + BIG               # the snapshot's is a copy by hard links
    assert after.snapshots == taken(set(), upper(snapshot))


@pytest.mark.only("overlay2", "a layer is made of the snapshot's directory where it lies")
def test_a_committed_snapshot_is_a_layer(store):
    base = store.register(tree("a"))
    box = store.create_rw_layer("box", base)
    write(box, "b")
    snapshot = box.snapshot()
    before = store.usage()
    layer = snapshot.commit()
    after = store.usage()
    assert (after.layers, after.snapshots) == (before.layers + before.snapshots, 0)
    assert upper(layer) == upper(snapshot)
    assert after.reclaimable == 0


def test_what_remove_frees_of_snapshots_is_what_was_said(store_at):
    """A tree of snapshots: those that a box stands on stay, and what is below them."""
    store = store_at()
    base = store.register(tree("a"))
    box = store.create_rw_layer("box", base)
    other = store.create_rw_layer("other", base)
    made = []
    for i in range(6):
        write(box, f"f{i}", size=50_000 * (i + 1))
        made.append(box.snapshot())
        if i == 2:
            fork = made[-1].fork("fork")
        write(other, f"o{i}")
        made.append(other.snapshot())
    box.rollback(base)
    other.rollback(made[1])
    said = store.usage()
    assert 0 < said.reclaimable < said.snapshots
    fork_base = fork.base.id
    left = store.snapshots()
    while left:
        before = len(left)
        for snapshot in list(left):
            try:
                store.remove(snapshot)
            except layerstore.StoreInUseError:
                continue
            left.remove(snapshot)
        if len(left) == before:
            break
    assert fork_base in [snapshot.id for snapshot in left]
    found = store.usage()
    assert (found.snapshots, found.reclaimable) == (said.snapshots - said.reclaimable, 0)


def test_a_read_only_store_says_the_same(open_store):
    store = open_store()
    store.register(tree("a"))
    found = store.usage()
    store.close()
    assert open_store(options={"read_only": "true"}).usage() == found._replace(reclaimable=found.layers)


def test_a_closed_store(store):
    store.close()
    with pytest.raises(layerstore.StoreClosedError):
        store.usage()


def test_65_000_files_are_weighed_quickly(store):
    """What a layer of a large image has. Seen: some 0.1 s."""
    tar = b"".join(tarkit.dir(f"d{i}/") + b"".join(file(f"d{i}/f{j}", b"x") for j in range(250)) for i in range(260)) + end()
    store.register(tar)
    began = time.process_time()
    assert store.usage().layers > 0
    assert time.process_time() - began < 2


def test_names_that_are_no_layer_are_no_error(store, root):
    layer = store.register(tree("a"))
    Path(upper(layer)).rename(root / "elsewhere")
    assert store.usage().layers == 0
