"""A squash, a commit, a fork and a release that meet, of the same directories: each does all it has to, or gives way.

The other one is a store of its own, as another process has it, which comes in at the worst moment.
"""

import errno
import os
from pathlib import Path

import pytest
import tarkit
from boxes import lowers, shown, tar_of, write
from driven import DRIVER

from layerstore import CreateRWLayerOpts, StoreInUseError

ADOPTS = pytest.mark.only("overlay2", "the layer of a snapshot is its directory, which stands on other ones then")
A, B = (tarkit.file(name, name.encode()) + tarkit.end() for name in ("a", "b"))


@pytest.fixture
def other(open_store, root, store):
    """Another store on the same root, which waits for no lock for long."""
    return open_store(root, options={"durability": "none", "lock_timeout": "0.2"})


@pytest.fixture
def writables(store):
    return store._engine.driver.writables


@pytest.fixture
def meets(monkeypatch):
    """Let something happen once, right before a method of an object does its work, or right behind it."""

    def at(thing, name, act, *, behind=False):
        method, left = getattr(thing, name), [act]

        def wrapped(*args, **named):
            acts = [left.pop()] if left else []
            found = method(*args, **named) if behind else None
            for each in acts:
                each()
            return found if behind else method(*args, **named)

        monkeypatch.setattr(thing, name, wrapped)

    return at


def is_whole(store, box, snap, wanted):
    """Whatever met, both show what they showed, and all of it is sound."""
    with snap.fork("look") as fork:
        assert (shown(box), shown(fork)) == wanted
    assert store.verify() == []
    store.cleanup()
    assert store.verify() == [] and store.orphans() == []


def deep(box):
    """A box on a kept snapshot, on two released ones, and what both show; the released ones' tars too."""
    snaps = []
    for name in ("one", "two", "three"):
        write(box, name)
        snaps.append(box.snapshot())
    write(box, "last")
    tars = [tar_of(snap) for snap in snaps[:2]]
    with snaps[2].fork("look") as fork:
        wanted = shown(box), shown(fork)
    for snap in snaps[:2]:
        snap.release()
    return snaps[2], wanted, tars


@pytest.mark.parametrize("known", [0, 1, 2])
def test_a_commit_while_a_squash_merges_what_is_below(store, other, base, box, root, meets, writables, known):
    """known: how many of the layers are there already: then directories of the same contents stand in their places."""
    top, wanted, tars = deep(box)
    below = [base]
    for tar in tars[:known]:
        below.append(store.register(tar, below[-1]))
    made = []
    meets(writables, "merge", lambda: made.append(other.get_snapshot(top.id).commit()), behind=True)
    box.squash()
    layer = store.get(made[0].chain_id)
    with store.create_rw_layer("of the layer", layer) as look:
        assert shown(look) == wanted[1]
    is_whole(store, box, top, wanted)
    store.get_snapshot(top.id)
    assert box.parent.chain_id == layer.chain_id, "led at the next look"
    assert top.id != layer.cache_id or lowers(root, top.id)[0] == layer.parent.cache_id
    made[0].release()
    for thing in (*below[1:], layer, top):
        thing.release()
    assert store.verify() == [] and shown(box) == wanted[0]


def test_a_squash_while_a_commit_reads_what_is_below(store, other, box, meets):
    top, wanted, _ = deep(box)
    meets(store._engine.driver.layers, "adopt", other.get_rw_layer("box").squash)
    layer = top.commit()
    assert layer.parent.parent.parent is None, "what was merged is one layer"
    is_whole(store, box, top, wanted)


def test_a_squash_while_a_fork_is_made(store, other, box, meets, writables):
    top, wanted, _ = deep(box)
    box.rollback(top)
    write(box, "last")

    def squash():
        with pytest.raises(StoreInUseError):
            other.get_rw_layer("box").squash()

    meets(writables, "settle", squash)
    with box.fork("fork") as fork:
        other.get_rw_layer("box").squash()
        assert shown(fork) == wanted[0]
        is_whole(store, box, top, wanted)


def test_a_look_at_what_is_about_to_be_a_layer(store, other, box, record, meets):
    """It takes what was noted for void, and takes it back: the commit notes it again."""
    write(box, "one")
    snap = box.snapshot()
    meets(store._engine.syncing, "name", lambda: other.get_snapshot(snap.id))
    layer = snap.commit()
    assert (record(snap) / "layer").read_text() == layer.chain_id and (record(snap) / "lower").exists()
    box.release()
    layer.release()
    assert store.verify() == [] and layer.chain_id in store.map(), "the snapshot keeps it"


def test_layers_that_another_store_made_anew_are_where_the_disk_says(store, other, base, root):
    low = store.register(A, base)
    top = store.register(B, low)
    assert top.chain_id in other.map()
    top.release()
    low.release()
    again = store.register(B, store.register(A, base))
    assert again.chain_id == top.chain_id
    box = store.create_rw_layer("box", again)
    write(box, "one")
    snap = other.get_snapshot(box.snapshot().id)
    layer = snap.commit()
    assert lowers(root, snap.id) == [again.cache_id, again.parent.cache_id, base.cache_id]
    assert layer.parent.chain_id == again.chain_id and other.verify() == store.verify() == []


@pytest.mark.parametrize("left", [["unled"], ["unled", "lower"], ["unled", "lower", "layer"]])
def test_what_a_killed_commit_noted_hinders_no_squash(store, box, root, record, left):
    top, wanted, _ = deep(box)
    said = {"unled": "", "lower": (root / DRIVER / top.id / "lower").read_text(), "layer": "sha256:" + "0" * 64}
    for name in left:
        (record(top) / name).write_text(said[name])
    store.get_snapshot(top.id)
    assert not [name for name in left if (record(top) / name).exists()]
    box.squash()
    assert len(lowers(root, top.id)) == 2
    is_whole(store, box, top, wanted)


@pytest.fixture
def unfinished(store, base, writables, monkeypatch):
    """A snapshot on an init layer; what follows when it has become a layer fails, as the disk is full."""
    box = store.create_rw_layer("box", base, CreateRWLayerOpts(init_func=lambda path: Path(path, "init").write_text("x")))
    write(box, "one")
    snap = box.snapshot()
    restand = writables.restand

    def full(id, *args, **named):
        if id == snap.id:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), id)
        restand(id, *args, **named)

    monkeypatch.setattr(writables, "restand", full)
    return snap


@ADOPTS
def test_a_layer_whose_commit_was_not_finished_is_one(store, unfinished, base, root, record, monkeypatch):
    layer = unfinished.commit()
    assert len(lowers(root, unfinished.id)) == 2, "it stands on the init layer still"
    wanted = [unfinished.id, base.cache_id]
    above = store.register(A, layer)
    ahead = store.register_unpacked(store.unpack_ahead(B), layer.chain_id)
    made = store.create_rw_layer("made", layer)
    assert [lowers(root, id) for id in (above.cache_id, ahead.cache_id, store.get_mount_id("made"))] == [wanted] * 3
    monkeypatch.undo()
    store.get_snapshot(unfinished.id)
    assert lowers(root, unfinished.id) == wanted[1:] and store.verify() == []
    made.release()
    assert not (record(unfinished) / "unled").exists()


@ADOPTS
def test_a_release_first_finishes_the_commit_or_does_nothing(store, unfinished, base, root, monkeypatch):
    layer = unfinished.commit()
    with pytest.raises(OSError, match="No space left"):
        unfinished.release()
    assert [snap.id for snap in store.snapshots()] == [unfinished.id]
    monkeypatch.undo()
    assert unfinished.release() == []
    assert lowers(root, layer.cache_id) == [base.cache_id] and store.verify() == []


def test_a_commit_does_not_wait_for_ever_for_a_box_in_use(store, other, box, base, writables):
    write(box, "one")
    snap = box.snapshot()
    with writables.hold(store.get_mount_id("box")):
        layer = other.get_snapshot(snap.id).commit()
    assert box.base.chain_id == layer.chain_id, "its snapshot says so"
    store.get_snapshot(snap.id)
    assert box.parent.chain_id == layer.chain_id
    snap.release()
    assert box.base.chain_id == layer.chain_id and store.verify() == []
