"""Two stores on one root, as two processes have them: what one holds the other does not delete."""

import contextlib
import errno
import os
import signal
import subprocess
import sys

import pytest
import tarkit
from driven import DRIVER
from tarkit import end, file

import layerstore
from layerstore import CreateRWLayerOpts, LayerDoesNotExistError, MountDoesNotExistError


@pytest.fixture
def two(root, open_store):
    return open_store(root), open_store(root)


def test_the_last_of_all_references_deletes(two, root):
    one, other = two
    mine = one.register(tarkit.T1)
    theirs = other.get(mine.chain_id)
    assert mine.release() == []
    assert theirs.tar_stream().read() == tarkit.T1
    assert [gone.chain_id for gone in theirs.release()] == [mine.chain_id]
    assert os.listdir(root / DRIVER / "l") == []
    with pytest.raises(LayerDoesNotExistError):
        one.get(mine.chain_id)


def test_a_parent_in_use_elsewhere_stays_when_its_child_goes(two):
    one, other = two
    base = one.register(tarkit.T1)
    child = one.register(tarkit.T2, base.chain_id)
    held = other.get(base.chain_id)
    base.release()
    assert [gone.chain_id for gone in child.release()] == [child.chain_id]
    assert held.tar_stream().read() == tarkit.T1
    assert [gone.chain_id for gone in held.release()] == [base.chain_id]


def test_closing_gives_back_what_was_held_and_deletes_nothing(two):
    one, other = two
    mine = one.register(tarkit.T1)
    other.get(mine.chain_id)
    other.close()
    assert [gone.chain_id for gone in mine.release()] == [mine.chain_id]


def test_a_writable_layer_held_elsewhere_is_not_deleted(two):
    one, other = two
    mine = one.create_rw_layer("c", one.register(tarkit.T1).chain_id)
    theirs = other.get_rw_layer("c")
    assert one.release_rw_layer(mine) == [] and other.mounts() == ["c"]
    assert theirs.apply_diff(file("x", b"y") + end()) == 1
    other.release_rw_layer(theirs)
    with pytest.raises(MountDoesNotExistError):
        one.get_rw_layer("c")


@pytest.mark.parametrize("withdrawn", [True, False], ids=["withdrawn", "left visible"])
def test_a_create_that_fails_behind_its_rename_gives_back_just_what_it_held(two, monkeypatch, withdrawn):
    """Not what is held of a writable layer whose name only begins so."""
    one, other = two
    base = one.register(tarkit.T1)
    held = one.create_rw_layer("box-2", base.chain_id)

    @contextlib.contextmanager
    def dying(kind, level):
        yield
        if not withdrawn:
            monkeypatch.setattr(one._engine.metadata, "exclusive", failing)
        raise OSError(errno.EIO, "the disk")

    def failing():
        raise OSError(errno.EIO, "the disk, still")

    with monkeypatch.context() as patched:
        patched.setattr(one._engine.syncing, "name", dying)
        with pytest.raises(OSError, match="the disk"):
            one.create_rw_layer("box", base.chain_id)
    monkeypatch.undo()
    assert other.release_rw_layer(other.get_rw_layer("box-2")) == []
    assert "box-2" in other.mounts(), "what the first store holds was deleted"
    if withdrawn:
        assert other.mounts() == ["box-2"]
    else:
        other.release_rw_layer(other.get_rw_layer("box"))       # it is unheld
        assert other.mounts() == ["box-2"]
    assert held.apply_diff(file("x", b"y") + end()) == 1
    one.release_rw_layer(held)
    one.cleanup()
    assert one.verify() == []


def test_a_register_that_fails_behind_its_rename_and_stays_visible_is_held_by_nobody(two, monkeypatch):
    one, other = two

    def failing():
        raise OSError(errno.EIO, "the disk, still")

    @contextlib.contextmanager
    def dying(kind, level):
        yield
        monkeypatch.setattr(one._engine.metadata, "exclusive", failing)
        raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr(one._engine.syncing, "name", dying)
    with pytest.raises(OSError, match="the disk"):
        one.register(tarkit.T1)
    monkeypatch.undo()
    [chain] = other.map()
    assert [gone.chain_id for gone in other.get(chain).release()] == [chain]
    assert one.map() == {} and one.verify() == []


def test_a_mount_is_made_once_and_goes_with_the_last_of_its_users(two):
    one, other = two
    mine = one.create_rw_layer("c", one.register(tarkit.T1).chain_id)
    theirs = other.get_rw_layer("c")
    path = mine.mount()
    assert theirs.mount() == path and theirs.mount() == path
    mine.unmount()
    assert os.path.ismount(path)
    other.cleanup()                                  # its own mount, unused by others
    assert not os.path.exists(path) or not os.path.ismount(path)
    assert mine.mount() == path and os.path.ismount(path)
    other.cleanup()                                  # another one's
    assert os.path.ismount(path)
    mine.unmount()
    assert not os.path.exists(path)


def test_a_mount_of_a_process_that_died_is_taken_over_and_stays_as_in_moby(two):
    one, other = two
    mine = one.create_rw_layer("c", one.register(tarkit.T1).chain_id)
    path = mine.mount()
    theirs = other.get_rw_layer("c")
    theirs.mount()
    one.close()                                      # without unmounting
    theirs.unmount()
    assert not os.path.exists(path)


CHILD = """
import sys
import layerstore
store = layerstore.Store(sys.argv[1])
layer = store.get(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_process_that_ends_gives_back_what_it_held(store, root, how):
    mine = store.register(tarkit.T1)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, root, mine.chain_id], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(layerstore.__file__))},
    )  # fmt: skip
    assert child.stdout.readline() == b"held\n"
    mine.release()
    again = store.get(mine.chain_id)
    if how == "kill":
        child.send_signal(signal.SIGKILL)
    child.communicate()
    assert [gone.chain_id for gone in again.release()] == [mine.chain_id]


def test_a_forked_child_holds_for_itself(store):
    mine = store.register(tarkit.T1)
    go, gone = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.read(go[0], 1)
        try:
            os._exit(0 if store.release(mine) == [] else 1)     # the parent holds it
        finally:
            os._exit(2)
    os.write(go[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    for fd in (*go, *gone):
        os.close(fd)
    assert [item.chain_id for item in mine.release()] == [mine.chain_id]


USES = {
    "get": lambda store, layer, box: store.get(layer.chain_id),
    "files": lambda store, layer, box: list(layer.files()),
    "tar_stream": lambda store, layer, box: layer.tar_stream().close(),
    "merged": lambda store, layer, box: list(layer.merged()),
    "changes of the box": lambda store, layer, box: box.changes(),
    "get_rw_layer": lambda store, layer, box: store.get_rw_layer(box.name),
}


@pytest.mark.parametrize("use", USES)
def test_what_a_forked_child_uses_its_parent_does_not_delete_and_the_rest_goes(store, use):
    layer, other = store.register(tarkit.T1), store.register(tarkit.T2)
    box, other_box = store.create_rw_layer("box", layer.chain_id), store.create_rw_layer("other", other.chain_id)
    files = list(layer.files())
    used, gone = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            USES[use](store, layer, box)
            os.write(used[1], b"x")
            os.read(gone[0], 1)
            assert store.verify() == []
            assert list(layer.files()) == files
            assert "box" not in use or box.changes() == []
            os._exit(0)
        finally:
            os._exit(1)
    os.close(used[1])
    assert os.read(used[0], 1) == b"x"
    assert box.release() == layer.release() == other_box.release() == []
    assert [each.chain_id for each in other.release()] == [other.chain_id]
    store.create_rw_layer("other").release()
    os.write(gone[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    for fd in (used[0], *gone):
        os.close(fd)
    for name in store.mounts():           # the child released nothing
        store.get_rw_layer(name).release()
    if layer.chain_id in store.map():     # else it went with the box, released before
        store.remove(layer.chain_id)


def test_init_func_may_use_another_store_of_the_root(two):
    one, other = two
    base = one.register(tarkit.T1)
    seen = []
    opts = CreateRWLayerOpts(init_func=lambda path: seen.append(other.get(base.chain_id).release()))
    one.create_rw_layer("c", base.chain_id, opts)
    assert seen == [[]]


@pytest.mark.parametrize("level", ["full", "ordered", "none"])
def test_durability_is_chosen_by_call_too(store, level):
    layer = store.register(tarkit.T1, durability=level)
    rw = store.create_rw_layer("c", layer.chain_id, durability=level)
    rw.apply_diff(file("x", b"y") + end())
    assert rw.commit(durability=level).diff_size == 1
    for attempt in (
        lambda: store.register(tarkit.T2, durability="most"),
        lambda: store.create_rw_layer("d", durability="most"),
        lambda: rw.commit(durability="most"),
    ):
        with pytest.raises(layerstore.InvalidOptionError, match="full, ordered or none"):
            attempt()
    assert store.verify() == []
