"""convert(): a layer and all below it, in the other half of the root: the same ids, sizes and tars, standing on their own."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import pytest
from disk import disk_state, mounts_below
from stored import UNKNOWN, at_once, tar_of
from tarkit import T1, T2, dir, end, file, opaque, whiteout
from toy import open_toy

import layerstore
from layerstore import (
    CorruptLayerError,
    Descriptor,
    LayerDoesNotExistError,
    LayerStoreError,
    NotSupportedError,
    ReadOnlyStoreError,
    aio,
)
from layerstore.drivers import registry

TOP = dir("d/") + file("d/new", b"new") + opaque("d/") + whiteout("b") + end(5)
BLOB = Descriptor(media_type="application/vnd.oci.image.layer.v1.tar", digest="sha256:" + "5" * 64, size=7, urls=("https://x.test/",))
# Each to each, and the first one to the toy and back.
WAYS = [*permutations(registry.DRIVERS, 2), *permutations([next(iter(registry.DRIVERS)), "toy"])]


@pytest.fixture(params=WAYS, ids="-to-".join)
def way(request, monkeypatch):
    """(from which driver, to which)."""
    monkeypatch.setitem(registry.DRIVERS, "toy", open_toy)
    return request.param


@pytest.fixture
def open_store(root):
    """Open a store of a driver; all are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda where=None, **how: stack.enter_context(layerstore.Store(where or root, **how))


@pytest.fixture
def here(open_store, way):
    return open_store(driver=way[0])


@pytest.fixture
def stack(here):
    """Three layers on one another, base first; the middle one has a descriptor."""
    base = here.register(T1)
    middle = here.register_with_descriptor(T2, base, None, BLOB)
    return base, middle, here.register(TOP, middle)


def half(root: Path, driver: str) -> dict:
    """What lies on the disk of one half."""
    return {place: disk_state(root / place) for place in (driver, f"image/{driver}") if (root / place).exists()}


def facts(layer):
    below = layer.parent.chain_id if layer.parent else None
    return layer.chain_id, layer.diff_id, layer.size, layer.diff_size, below, layer.descriptor


def test_the_layers_are_in_the_other_half_and_stand_on_their_own(here, open_store, root, way, stack):
    before = half(root, way[0])
    chains = [layer.chain_id for layer in stack]
    assert here.convert(chains[2], way[1]) == chains
    assert half(root, way[0]) == before, "the source layers stay as they are"
    there = open_store(driver=way[1])
    assert sorted(there.map()) == sorted(chains)
    for layer, tar in zip(stack, (T1, T2, TOP), strict=True):
        assert facts(there.find(layer.chain_id)) == facts(layer)
        assert tar_of(there.find(layer.chain_id)) == tar
    assert there.verify() == here.verify() == [] == there.orphans()
    for layer in reversed(stack):
        layer.release()
    here.close()
    assert [tar_of(there.find(chain)) for chain in chains] == [T1, T2, TOP]
    there.close()
    again = open_store(driver=way[1])
    assert [gone.chain_id for gone in again.remove(chains[2])] == [chains[2]], "those below were released by nobody"
    assert sorted(again.map()) == sorted(chains[:2])


def test_what_is_there_is_left_as_it_is(here, open_store, root, way, stack):
    chains = [layer.chain_id for layer in stack]
    there = open_store(driver=way[1])
    with there.register(T1) as held:
        assert here.convert(chains[1], way[1]) == [chains[1]]
        assert there.find(chains[0]).cache_id == held.cache_id
    assert here.convert(chains[2], way[1]) == [chains[2]]
    before = half(root, way[1])
    assert here.convert(chains[2], way[1]) == []
    assert half(root, way[1]) == before
    assert there.convert(chains[2], way[0]) == [], "and back"
    assert here.convert(chains[2], way[0]) == [], "to its own driver"
    assert half(root, way[1]) == before


def test_a_whole_layer_takes_the_place_of_one_whose_files_are_gone(here, open_store, root, way, stack):
    here.convert(stack[2].chain_id, way[1])
    there = open_store(driver=way[1])
    shutil.rmtree(root / way[1] / there.find(stack[1].chain_id).cache_id)
    assert here.convert(stack[2].chain_id, way[1]) == [stack[1].chain_id]
    assert [problem for problem in there.verify() if problem.kind != "orphan"] == []
    assert tar_of(there.find(stack[2].chain_id)) == TOP


def test_what_is_unknown_makes_nothing(here, root, way, stack, unchanged):
    with unchanged():
        for chain in (UNKNOWN, "", "nonsense"):
            with pytest.raises(LayerDoesNotExistError):
                here.convert(chain, way[1])
        for driver in ("btrfs", "nonsense", ""):
            with pytest.raises(NotSupportedError, match="driver not supported"):
                here.convert(stack[0].chain_id, driver)
        for driver in way:
            with pytest.raises(LayerDoesNotExistError):
                here.convert(UNKNOWN, driver)
        with pytest.raises(TypeError):
            here.convert(7, way[1])
    assert not (root / way[1]).exists()


def damage(store, layer, root):
    """Change one byte of what holds the content of a layer."""
    place = root / store.driver_name() / layer.cache_id
    path = next(path for path in sorted(place.rglob("*")) if path.is_file() and b"hello" in path.read_bytes())
    data = path.read_bytes().replace(b"hello", b"hellO", 1)
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_nothing_of_a_damaged_layer_appears(here, open_store, root, way, at):
    tars = [file(f"of {n}", b"hello %d" % n) + end() for n in range(3)]
    layers: list = []
    for tar in tars:
        layers.append(here.register(tar, layers[-1] if layers else ""))
    damage(here, layers[at], root)
    with pytest.raises(CorruptLayerError) as told:
        here.convert(layers[2].chain_id, way[1])
    assert told.value.chain_id == layers[at].chain_id
    assert (root / way[1]).exists() == (root / "image" / way[1]).exists() == (at > 0)
    there = open_store(driver=way[1])
    assert sorted(there.map()) == sorted(layer.chain_id for layer in layers[:at])
    assert there.orphans() == [] == there.verify()
    here.repair(layers[at].chain_id, tars[at])
    assert here.convert(layers[2].chain_id, way[1]) == [layer.chain_id for layer in layers[at:]]


@pytest.mark.parametrize("gone", ["all", "record", "diff"])
def test_a_layer_of_which_something_is_gone_is_damaged(here, open_store, root, way, stack, gone):
    layerdb = root / "image" / way[0] / "layerdb" / "sha256"
    if gone == "all":
        shutil.rmtree(root / way[0] / stack[1].cache_id)
    else:
        (layerdb / stack[1].chain_id.encoded / {"record": "cache-id", "diff": "diff"}[gone]).unlink()
    if gone != "all":
        here.close()
        here = open_store(driver=way[0])
    with pytest.raises(CorruptLayerError):
        here.convert(stack[1].chain_id, way[1])
    assert stack[1].chain_id not in open_store(driver=way[1]).map()


def test_a_store_for_reading_only_converts_nothing(here, open_store, root, way, stack, unchanged):
    reader = open_store(driver=way[0], options={"read_only": "true"})
    with unchanged(), pytest.raises(ReadOnlyStoreError):
        reader.convert(stack[0].chain_id, way[1])
    here.close()
    with pytest.raises(layerstore.StoreClosedError):
        here.convert(stack[0].chain_id, way[1])


def test_limits_and_durability_are_the_stores(open_store, root, way):
    here = open_store(driver=way[0], options={"durability": "none"})
    layer = here.register(file("f", b"x" * 5000) + end())
    here.close()
    small = open_store(driver=way[0], options={"max_size": "1000"})
    with pytest.raises(layerstore.LimitExceededError):
        small.convert(layer.chain_id, way[1])
    with pytest.raises(layerstore.InvalidOptionError):
        small.convert(layer.chain_id, way[1], durability="some")
    assert not (root / way[1]).exists()
    assert open_store(driver=way[0]).convert(layer.chain_id, way[1], durability="none") == [layer.chain_id]


def test_progress_is_told_over_all_layers_and_can_end_the_call(here, root, way, stack):
    told: list = []
    here.convert(stack[0].chain_id, way[1])
    here.convert(stack[2].chain_id, way[1], progress=told.append)
    assert told == sorted(told)
    assert {done.total for done in told} == {len(T1 + T2 + TOP)} == {int(told[-1])}

    class StopError(Exception):
        pass

    def stop(_):
        raise StopError

    shutil.rmtree(root / way[1])
    shutil.rmtree(root / "image" / way[1])
    with pytest.raises(StopError):
        here.convert(stack[2].chain_id, way[1], progress=stop)
    assert not (root / way[1]).exists()


def test_many_convert_the_same_at_once(here, open_store, root, way, stack):
    stores = [open_store(driver=way[0]) for _ in range(4)]
    made = at_once(*(lambda store=store: store.convert(stack[2].chain_id, way[1]) for store in stores))
    assert sorted(chain for each in made for chain in each) == sorted(layer.chain_id for layer in stack)
    there = open_store(driver=way[1])
    assert there.verify() == [] == there.orphans()


PROGRAM = """
import sys, layerstore
from layerstore.drivers import registry
from toy import open_toy
registry.DRIVERS["toy"] = open_toy
with layerstore.Store(sys.argv[1], driver=sys.argv[2]) as store:
    print(flush=True)
    sys.stdin.readline()
    print(len(store.convert(sys.argv[4], sys.argv[3])), flush=True)
"""


def begun(root, way, chain):
    command = [sys.executable, "-c", PROGRAM, str(root), *way, chain]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
    process.stdout.readline()
    return process


def test_several_processes_and_a_kill_leave_no_half(here, open_store, root, way):
    layer = ""
    chains = []
    for n in range(8):
        layer = here.register(b"".join(file(f"{n}/{m}", b"%d" % m * 3000) for m in range(40)) + end(), layer)
        chains.append(layer.chain_id)
    for wait in (0.0, 0.005, 0.02, 0.05):
        processes = [begun(root, way, chains[-1]) for _ in range(3)]
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        time.sleep(wait)
        processes[0].send_signal(signal.SIGKILL)
        for process in processes:
            process.communicate(timeout=50)
        assert [process.returncode for process in processes[1:]] == [0, 0]
        there = open_store(driver=way[1])
        assert sorted(there.map()) == sorted(chains)
        there.cleanup()
        assert there.verify() == [] == there.orphans()
        for chain in reversed(chains):
            there.remove(chain)
        there.close()
    assert mounts_below(root) == []


def test_a_root_of_both_says_so(here, open_store, root, way, stack):
    named = "Drivers of this root"
    assert named not in dict(here.driver_status())
    here.convert(stack[0].chain_id, way[1])
    there = open_store(driver=way[1])
    for store in (here, there):
        assert dict(store.driver_status())[named] == ", ".join(driver for driver in registry.DRIVERS if driver in way)
    assert open_store().driver_name() == next(driver for driver in registry.DRIVERS if driver in way)


def test_without_a_name_a_root_has_the_driver_that_is_there(open_store, room):
    for driver in registry.DRIVERS:
        open_store(room / driver, driver=driver).close()
        assert open_store(room / driver).driver_name() == driver
    assert open_store(room / "new").driver_name() == next(iter(registry.DRIVERS))
    with pytest.raises(LayerStoreError, match="driver not supported: nonsense"):
        open_store(room / "nonsense", driver="nonsense")
    assert not (room / "nonsense").exists()


# ---- in coroutines --------------------------------------------------------------------------------
def test_convert_and_an_image_are_awaited(root, room):
    async def work():
        told: list[int] = []
        async with aio.Store(root, driver="overlay2") as store, await store.register(T1) as layer:
            assert await store.convert(layer.chain_id, "erofs", progress=told.append) == [layer.chain_id]
            assert await store.convert(layer.chain_id, "erofs") == []
            with pytest.raises(NotSupportedError):
                await store.convert(layer.chain_id, "none")
            assert await layer.export_erofs(room / "image") == (room / "image").stat().st_size
        async with aio.Store(root, driver="erofs") as store:
            assert await store.verify() == [] and [*await store.map()] == [layer.chain_id]
        await asyncio.sleep(0)
        assert told[-1] == len(T1)

    asyncio.run(work())


def test_a_convert_that_is_cancelled_leaves_whole_layers(root):
    tars = [b"".join(file(f"{n}/{m}", b"x" * 20_000) for m in range(200)) + end() for n in range(20)]

    async def work():
        async with aio.Store(root, driver="overlay2", options={"durability": "none"}) as store:
            layer = ""
            for tar in tars:
                layer = (await store.register(tar, layer)).chain_id
            task = asyncio.create_task(store.convert(layer, "erofs", progress=lambda done: done > len(tars[0]) and task.cancel()))
            with pytest.raises(asyncio.CancelledError):
                await task
        async with aio.Store(root, driver="erofs") as store:
            assert await store.verify() == []
            assert len(await store.map()) < len(tars)

    asyncio.run(work())
