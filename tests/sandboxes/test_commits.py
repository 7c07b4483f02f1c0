"""Snapshots that become layers where they lie, squashed ones, and what an init layer is to both."""

import os

import disk
import pytest
import tarkit
from boxes import lowers, shown, tar_of, write
from driven import DRIVER, FILES

import layerstore
from layerstore import CreateRWLayerOpts, LayerDoesNotExistError, MaxDepthExceededError


def chains(removed):
    return [item.chain_id for item in removed]


# ---- commit --------------------------------------------------------------------------------------
@pytest.mark.only("overlay2", "a layer is made of the snapshot's directory where it lies")
def test_commit_makes_layers_of_the_directories_where_they_lie(store, base, box, root, home, db_of, record, layerdb):
    write(box, "one", "1" * 10)
    first = box.snapshot()
    write(box, "two", "2" * 20)
    second = box.snapshot()
    write(box, "three", "3")
    tars = tar_of(first), tar_of(second)
    inode = os.stat(home(second) / FILES / "two").st_ino
    before = shown(box), tar_of(box), lowers(root, store.get_mount_id("box"))
    layer = second.commit()
    low = layer.parent
    assert (low.parent.chain_id, layer.cache_id, low.cache_id) == (base.chain_id, second.id, first.id)
    assert (low.diff_id, layer.diff_id) == (tarkit.diff_id(tars[0]), tarkit.diff_id(tars[1]))
    assert (low.diff_size, layer.diff_size) == (10, 20)
    assert (tar_of(low), tar_of(layer)) == tars
    assert os.stat(home(second) / FILES / "two").st_ino == inode
    assert (db_of(layer) / "cache-id").read_text() == second.id
    assert lowers(root, second.id) == [first.id, base.cache_id] and lowers(root, first.id) == [base.cache_id]
    assert shown(box) == before[0] and lowers(root, store.get_mount_id("box")) == before[2]
    assert box.parent.chain_id == box.base.chain_id == layer.chain_id
    assert (layerdb / "mounts/box/parent").read_text() == layer.chain_id
    assert [str(line) for line in box.changes()] == ["A /three"] and box.size() == 1
    assert (record(second) / "layer").read_text() == layer.chain_id and (record(first) / "layer").read_text() == low.chain_id
    assert (record(second) / "lower").exists()
    assert [one.id for one in store.snapshots()] == [first.id, second.id]
    assert store.get(second.id).chain_id == layer.chain_id
    again = second.commit()
    assert again.chain_id == layer.chain_id and again is not layer
    assert store.verify() == [] and store.orphans() == []
    with store.create_rw_layer("on it", layer) as made, store.create_rw_layer("by id", second.id) as other:
        assert shown(made) == shown(other) and other.base.chain_id == other.parent.chain_id == layer.chain_id


def test_the_layer_stays_for_its_snapshot_and_goes_after_it(store, base, box):
    write(box, "one")
    snap = box.snapshot()
    box.release()
    layer = snap.commit()
    assert layer.release() == []
    assert layer.chain_id in store.map(), "the record keeps it as a child would"
    assert chains(snap.release()) == [layer.chain_id]
    assert list(store.map()) == [base.chain_id]


def test_a_layer_that_is_there_already_wins(store, base, box, home, directories):
    fork = box.fork("fork")
    for one in (box, fork):
        with one.mounted() as path:
            with open(f"{path}/same", "w") as out:
                out.write("same")
            os.utime(f"{path}/same", ns=(5 * 10**9, 5 * 10**9 + (one is fork)))
            os.utime(path, (5, 5))
    first, second = box.snapshot(), fork.snapshot()
    low = first.commit()
    count = len(store.map())
    again = second.commit()
    assert again.chain_id == low.chain_id and len(store.map()) == count
    assert store.get(second.id).chain_id == low.chain_id
    assert home(second).exists() and fork.base.chain_id == low.chain_id
    with fork.mounted() as path:
        assert os.stat(f"{path}/same").st_mtime_ns == 5 * 10**9 + 1, "what a box shows does not change"
    with store.create_rw_layer("by id", second.id) as made, made.mounted() as path:
        assert os.stat(f"{path}/same").st_mtime_ns == 5 * 10**9 + 1, "the id always shows what the snapshot showed"
    assert store.verify() == [] and store.orphans() == []


def test_a_layer_below_that_was_there_and_that_nobody_released_stays(store, open_store, root, base, box):
    known = store.register(tarkit.end(), base).chain_id        # what the first snapshot's tar makes
    store.close()
    store = open_store(root)
    box = store.get_rw_layer("box")
    first = box.snapshot()
    write(box, "one")
    second = box.snapshot()
    layer = second.commit()
    assert layer.parent.chain_id == known
    box.release()
    for snap in (second, first):
        snap.release()
    assert chains(layer.release()) == [layer.chain_id]
    assert set(store.map()) == {known, base.chain_id}


def test_squash_makes_one_new_layer_and_leaves_the_snapshots(store, base, box, unchanged, home, root):
    write(box, "one")
    first = box.snapshot()
    write(box, "two")
    os.unlink(f"{box.mount()}/one")
    box.unmount()
    second = box.snapshot()
    whole = tar_of(box)
    before = disk.disk_state(home(first)), disk.disk_state(home(second))
    layer = second.commit(squash=True)
    assert layer.parent.chain_id == base.chain_id and tar_of(layer) == whole and b"one" not in whole.replace(b"old/one", b"")
    assert layer.cache_id not in (first.id, second.id)
    assert (disk.disk_state(home(first)), disk.disk_state(home(second))) == before
    assert box.base.id == second.id and box.parent.chain_id == base.chain_id
    with pytest.raises(LayerDoesNotExistError):
        store.get(second.id)
    assert box.commit().chain_id == layer.chain_id
    assert second.commit().chain_id != layer.chain_id


def test_commit_deeper_than_layers_go(store, unchanged, box, base):
    top = ""
    for number in range(124):
        top = store.register(tarkit.file(f"f{number}", b"%d" % number) + tarkit.end(), top)
    with store.create_rw_layer("high", top) as high:
        snaps = []
        for number in range(2):
            write(high, f"s{number}")
            snaps.append(high.snapshot())
        with unchanged(), pytest.raises(MaxDepthExceededError, match="squash=True makes one layer"):
            snaps[1].commit()
        assert len(store.map()) == 125
        layer = snaps[1].commit(squash=True)
        assert layer.parent.chain_id == top.chain_id
        assert snaps[0].commit().parent.chain_id == top.chain_id
        with pytest.raises(MaxDepthExceededError):
            snaps[1].commit()
        with high.mounted() as path:
            assert len(os.listdir(path)) == 126


def test_loose_ones_below_are_committed_too(store, base, box):
    write(box, "one")
    fork = box.fork("fork")
    write(box, "two")
    second = box.snapshot()
    layer = second.commit()
    assert fork.parent.chain_id == fork.base.chain_id == layer.parent.chain_id != base.chain_id
    assert fork.changes() == [] and shown(fork)["one"] == "x"
    write(fork, "more")
    assert [str(line) for line in fork.changes()] == ["A /more"]
    assert store.verify() == []


@pytest.mark.only("overlay2", "a layer is made of the snapshot's directory where it lies")
def test_a_committed_directory_shows_what_its_tar_does_not_say(store, box):
    with box.mounted() as path:
        with open(f"{path}/f", "w") as out:
            out.write("f")
        os.setxattr(f"{path}/f", "user.note", b"1")
        os.utime(f"{path}/f", ns=(1, 5_123_456_789))
    snap = box.snapshot()
    with pytest.warns(layerstore.LeftOutWarning):
        layer = snap.commit()
    with store.create_rw_layer("on it", layer) as made, made.mounted() as path:
        assert os.getxattr(f"{path}/f", "user.note") == b"1" and os.stat(f"{path}/f").st_mtime_ns == 5_123_456_789
    assert store.verify() == []


def test_names_that_are_marks_are_refused_by_commit_and_leave_a_snapshot(store, box, unchanged):
    write(box, ".wh.top")
    snap = box.snapshot()
    with unchanged(), pytest.raises(layerstore.BreakoutError, match=r"\.wh\.top"):
        snap.commit()
    with pytest.raises(layerstore.BreakoutError):
        snap.tar_stream().close()
    with snap.fork("fork") as fork:
        assert ".wh.top" in shown(fork)


# ---- init layers -----------------------------------------------------------------------------------
def make_init(path):
    os.mkdir(f"{path}/dev")
    with open(f"{path}/dev/console", "w") as out:
        out.write("console")


@pytest.fixture
def with_init(store, base):
    return store.create_rw_layer("box", base, CreateRWLayerOpts(init_func=make_init))


def test_an_init_layer_is_shared_by_its_snapshots_and_in_no_difference(store, base, with_init, home, root, layerdb):
    id = store.get_mount_id("box")
    write(with_init, "one", "1")
    first = with_init.snapshot()
    assert lowers(root, id) == [first.id, f"{first.id}-init", base.cache_id]
    assert lowers(root, first.id) == [f"{first.id}-init", base.cache_id], "its own, not the box's, which dockerd removes with the box"
    write(with_init, "two", "2")
    second = with_init.snapshot()
    assert lowers(root, id) == [second.id, first.id, f"{first.id}-init", base.cache_id]
    assert home(f"{id}-init").exists() and (layerdb / "mounts/box/init-id").read_text() == f"{id}-init"
    assert os.stat(home(f"{id}-init") / FILES / "dev/console").st_ino == os.stat(home(f"{first.id}-init") / FILES / "dev/console").st_ino
    assert [str(line) for line in with_init.changes()] == ["A /one", "A /two"] and with_init.size() == 2
    assert [str(line) for line in second.changes()] == ["A /two"] and [str(line) for line in first.changes()] == ["A /one"]
    assert b"console" not in tar_of(with_init) + tar_of(first)
    fork = second.fork("fork")
    assert shown(fork)["dev/console"] == "console" and fork.changes()[0].path == "/one"
    fork_id = store.get_mount_id("fork")
    assert (layerdb / "mounts/fork/init-id").read_text() == f"{fork_id}-init"
    assert lowers(root, f"{fork_id}-init") == [base.cache_id]
    with_init.release()
    assert not home(f"{id}-init").exists() and shown(fork)["dev/console"] == "console"
    fork.release()
    for snap in (first, second):
        snap.release()
    assert sorted(name for name in os.listdir(root / DRIVER) if len(name) >= 64) == [base.cache_id]


def test_what_a_box_changed_in_its_init_layer_is_its_own(store, with_init):
    with with_init.mounted() as path:
        with open(f"{path}/dev/console", "a") as out:
            out.write(" more")
    snap = with_init.snapshot()
    assert [str(line) for line in with_init.changes()] == ["C /dev", "C /dev/console"]
    assert [str(line) for line in snap.changes()] == ["C /dev", "C /dev/console"]
    assert with_init.size() == len("console more")


@pytest.mark.only("overlay2", "a layer is made of the snapshot's directory where it lies")
def test_commit_takes_the_init_layer_out_of_the_layer_alone(store, base, with_init, root, home):
    write(with_init, "one", "1")
    snap = with_init.snapshot()
    fork = snap.fork("fork")
    before = shown(with_init)
    layer = snap.commit()
    assert lowers(root, snap.id) == [base.cache_id]
    assert shown(with_init) == shown(fork) == before and "dev/console" in before
    assert with_init.changes() == fork.changes() == []
    for one in (with_init, fork):
        assert sorted(entry.path for entry in one.files() if entry.path != ".") == sorted(before)
        with one.open("dev/console") as content:
            assert content.read() == b"console"
    with store.create_rw_layer("on it", layer) as made:
        assert "dev/console" not in shown(made) and shown(made)["one"] == "1"
    with store.create_rw_layer("by id", snap.id) as made:
        assert shown(made) == before
    id = store.get_mount_id("box")
    assert os.listdir(home(f"{id}-init") / FILES) == [] and lowers(root, f"{id}-init")[0] == snap.id
    assert store.verify() == [] and store.orphans() == []


def test_rollback_has_the_init_layer_that_was_there(store, base, with_init, root):
    write(with_init, "one")
    snap = with_init.snapshot()
    before = shown(with_init)
    with_init.rollback(base)
    assert shown(with_init)["dev/console"] == "console" and "one" not in shown(with_init)
    with_init.rollback(snap)
    assert shown(with_init) == before
    bare = store.create_rw_layer("bare", base)
    plain = bare.snapshot()
    with_init.rollback(plain)
    assert "dev/console" not in shown(with_init)
    bare.rollback(snap)
    assert shown(bare) == before and [str(line) for line in bare.changes()] == ["A /one"]


def test_a_fork_with_an_init_function_has_both(store, base, box, snap):
    fork = snap.fork("fork", CreateRWLayerOpts(init_func=make_init))
    assert {"dev/console", "one"} <= shown(fork).keys()
    assert [str(line) for line in fork.changes()] == ["A /one"] and fork.size() == 1
    second = fork.snapshot()
    with second.fork("again") as again:
        assert {"dev/console", "one"} <= shown(again).keys()
