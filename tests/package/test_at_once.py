"""Several at once: threads and processes on one root, each with what it asked for, and nothing left between them."""

import os
import random
import subprocess
import threading

import another
import pytest
import recipes
import tarkit
from disk import mount_line, mounts_below
from driven import DRIVER
from stored import BoomError, at_once, driver_directories, tar_of
from tarkit import end, file

import layerstore
from layerstore import LayerDoesNotExistError


def noisy(number, files=20):
    return b"".join(file(f"{number}-{i}", recipes.noise(500 + i, number * 100 + i + 1)) for i in range(files)) + end()


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_that_register_one_tar_get_one_layer(store, root, threads):
    tar = noisy(1)
    for _ in range(5):
        layers = at_once(*[lambda: store.register(tar)] * threads)
        assert len({id(layer) for layer in layers}) == threads
        assert {layer.cache_id for layer in layers} == set(driver_directories(root))
        assert len(os.listdir(root / DRIVER / "l")) == 1
        assert [len(layer.release()) for layer in layers] == [0] * (threads - 1) + [1]
        assert driver_directories(root) == []


@pytest.mark.parametrize("what", ["layers", "writable layers"])
def test_threads_that_are_first_in_a_fresh_store_all_succeed(open_store, room, what):
    """The second must not stumble over the directories that the first is just making."""
    for number in range(25):
        store = open_store(room / str(number))
        if what == "layers":
            made = at_once(*[lambda n=n, s=store: s.register(noisy(n, 1)) for n in range(4)])
        else:
            made = at_once(*[lambda n=n, s=store: s.create_rw_layer(str(n)) for n in range(4)])
        assert len({id(handle) for handle in made}) == 4
        store.close()


def test_threads_that_register_many_tars_get_each_its_own(store):
    base = store.register(tarkit.T1)
    tars = [noisy(n) for n in range(8)]
    layers = at_once(*[lambda tar=tar: store.register(tar, base.chain_id) for tar in tars])
    for layer, tar in zip(layers, tars, strict=True):
        assert layer.diff_id == tarkit.diff_id(tar)
        assert layer.chain_id == tarkit.chain_id(base.chain_id, layer.diff_id)
        assert tar_of(layer) == tar
    assert base.release() == []
    gone = [layer.release() for layer in layers]
    assert [len(records) for records in gone] == [1] * 7 + [2]


def test_a_slow_register_keeps_nobody_waiting(store):
    """Register holds no lock while it reads: a source may take for ever."""
    started, go_on = threading.Event(), threading.Event()

    class Slow:
        left = tarkit.T1

        def read(self, n):
            started.set()
            assert go_on.wait(30)
            piece, self.left = self.left, b""
            return piece

    slow = []
    thread = threading.Thread(target=lambda: slow.append(store.register(Slow())))
    thread.start()
    assert started.wait(30)
    other = store.register(tarkit.T2)
    rw = store.create_rw_layer("c", other.chain_id)
    assert set(store.map()) == {other.chain_id}
    assert store.release_rw_layer(rw) == []
    assert len(store.release(other)) == 1
    go_on.set()
    thread.join()
    assert slow[0].chain_id == tarkit.T1_DIFF_ID


def test_a_parent_released_while_its_child_registers_stays_below_it(store):
    base = store.register(tarkit.T1)

    class Releases:
        left = tarkit.T2

        def read(self, n):
            piece, self.left = self.left, b""
            if piece:
                assert base.release() == []
            return piece

    child = store.register(Releases(), base.chain_id)
    assert set(store.map()) == {tarkit.T1_DIFF_ID, child.chain_id}
    assert [gone.chain_id for gone in child.release()] == [tarkit.T2_ON_T1_CHAIN_ID, tarkit.T1_DIFF_ID]


def test_a_parent_released_while_its_child_fails_goes_with_the_failure(store, root):
    base = store.register(tarkit.T1)

    class Releases:
        def read(self, n):
            base.release()
            raise BoomError

    with pytest.raises(BoomError):
        store.register(Releases(), base.chain_id)
    assert store.map() == {}
    assert driver_directories(root) == []


@pytest.mark.time_limit(120)
def test_threads_that_register_get_and_release_at_random_leave_nothing(store, root):
    tars = [noisy(n, 3) for n in range(3)]

    def life(seed):
        dice = random.Random(seed)
        held = []
        for _ in range(60):
            choice = dice.random()
            if choice < 0.4 or not held:
                held.append(store.register(dice.choice(tars)))
            elif choice < 0.6:
                try:
                    held.append(store.get(dice.choice(held).chain_id))
                except LayerDoesNotExistError:
                    raise AssertionError("a layer with a reference was gone") from None
            else:
                store.release(held.pop(dice.randrange(len(held))))
        for layer in held:
            store.release(layer)

    at_once(*[lambda seed=seed: life(seed) for seed in range(4)])
    assert store.map() == {}
    assert driver_directories(root) == []
    assert os.listdir(root / DRIVER / "l") == []
    assert store.verify() == []


def test_one_of_many_threads_gets_the_name(store, root):
    base = store.register(tarkit.T1)
    won, lost = [], []

    def create():
        try:
            won.append(store.create_rw_layer("c", base.chain_id))
        except layerstore.MountNameConflictError:
            lost.append(1)

    at_once(*[create] * 8)
    assert (len(won), len(lost)) == (1, 7)
    assert driver_directories(root) == sorted([base.cache_id, store.get_mount_id("c")])
    assert store.release_rw_layer(won[0]) == []
    assert len(base.release()) == 1


def test_threads_share_the_count_of_a_mount(store):
    base = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", base.chain_id)
    paths = at_once(*[rw.mount] * 8)
    assert len(set(paths)) == 1
    assert len([p for p in mounts_below(store.root) if p == paths[0]]) == 1
    at_once(*[rw.unmount] * 7)
    assert mount_line(paths[0])
    rw.unmount()
    assert mount_line(paths[0]) is None


REGISTER = """
import errno, os, sys, layerstore, tarkit
store = layerstore.Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for n in range(10):
    try:
        layer = store.register(tarkit.file(f"{n}", b"%d" % n * 5000) + tarkit.end())
    except OSError as error:
        assert error.errno in (errno.EEXIST, errno.ENOTEMPTY), error
        continue
    with layer.tar_stream() as stream:
        assert tarkit.diff_id(stream.read()) == layer.diff_id
print("done", flush=True)
os._exit(0)
"""


@pytest.mark.time_limit(120)
def test_processes_that_register_the_same_layers_on_one_root_do_not_corrupt_each_other(store, open_store, root):
    """The second to commit is handed the first one's layer, or told that it exists: never half of each."""
    store.close()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(another.command(REGISTER, root), env=another.ENVIRONMENT, **pipes) for _ in range(2)]
    for child in children:
        assert child.stdout.readline() == "ready\n", child.stderr.read()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    outcomes = [child.communicate(timeout=60) for child in children]
    assert [out for out, _ in outcomes] == ["done\n"] * 2, outcomes
    again = open_store()
    assert len(again.map()) == 10
    assert again.verify() == []
    assert len(driver_directories(root)) == 10
    assert len(os.listdir(root / DRIVER / "l")) == 10


def test_a_writable_layer_made_beside_map_and_mounts_holds_its_parent_once(open_store):
    """What one of them has just made is not loaded from disk by another as a second one."""
    store = open_store(options={"durability": "none"})
    base = store.register(tarkit.T1)
    child = store.register(tarkit.T2, base.chain_id)
    done = threading.Event()

    def look():
        while not done.is_set():
            store.map()
            store.mounts()

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for thread in lookers:
        thread.start()
    try:
        for n in range(150):
            store.create_rw_layer(f"c{n}", child.chain_id).release()
    finally:
        done.set()
        for thread in lookers:
            thread.join()
    base.release()
    assert [gone.chain_id for gone in child.release()] == [child.chain_id, base.chain_id]
    assert store.map() == {}
