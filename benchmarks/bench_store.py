"""The store itself: opening a large one, tiny layers, writable layers, several at once."""

import concurrent.futures

import pytest
import tarkit

import layerstore
from benchmarks import layers, measure
from layerstore.drivers import registry

CHAINS, DEPTH = 250, 20
NO_SYNC = {"durability": "none"}


def tiny(number):
    return tarkit.file(f"f{number}", b"%d" % number) + tarkit.end()


def chain(store, depth, start=0):
    """depth tiny layers on each other; the top one's ChainID. The references are kept by the store's layers above."""
    parent = ""
    for number in range(start, start + depth):
        layer = store.register(tiny(number), parent)
        parent = layer.chain_id
    return parent


@pytest.fixture(scope="session")
def large_store(ground):
    """The root of a store of 5,000 layers in 250 chains of 20, and one chain's top."""
    root = measure.fresh(ground / "large")
    with layerstore.Store(root, options=NO_SYNC) as store:
        tops = [chain(store, DEPTH, start=number * DEPTH) for number in range(CHAINS)]
    yield root, tops[CHAINS // 2]
    measure.wipe(root)


def test_open_5000_layers_and_get_one_ms(measured, large_store):
    root, top = large_store

    def open_and_get():
        with layerstore.Store(root) as store:
            # Not released: the last release would delete it.
            return store.get(top).size

    assert measured(open_and_get) > 0


def test_open_5000_layers_and_map_them_entries_per_s(measured, large_store):
    """Every layer read: what moby does when it starts."""
    root, _ = large_store

    def open_and_map():
        with layerstore.Store(root) as store:
            return len(store.map())

    assert measured(open_and_map, entries=CHAINS * DEPTH) == CHAINS * DEPTH


@pytest.mark.parametrize("driver", registry.DRIVERS)
@pytest.mark.parametrize("depth", [1, 20, 125])
def test_create_mount_unmount_release_us_each(measured, new_store, depth, driver):
    store = new_store(driver=driver)
    top = chain(store, depth)

    def cycle():
        for number in range(10):
            with store.create_rw_layer(f"w{number}", top) as rw:
                rw.mount()
                rw.unmount()

    measured(cycle, times=10)


@pytest.mark.parametrize("driver", registry.DRIVERS)
@pytest.mark.parametrize("durability", ["none", "full"])
def test_register_tiny_layers_us_each(measured, new_store, durability, driver):
    def register(store):
        for number in range(100):
            store.register(tiny(number))

    measured(register, setup=lambda: new_store(durability, driver), times=100)


def test_register_what_is_there_us_each(measured, new_store):
    """The same tiny layer again and again."""
    store = new_store()
    store.register(tiny(1))
    measured(lambda: [store.register(tiny(1)).release() for _ in range(100)], times=100)


@pytest.mark.parametrize("driver", registry.DRIVERS)
def test_register_and_release_us_each(measured, new_store, driver):
    """A layer comes and goes: its files and its record are deleted."""
    store = new_store(driver=driver)
    measured(lambda: [store.register(tiny(n)).release() for n in range(100)], times=100)


@pytest.mark.parametrize("threads", [1, 5])
def test_register_5_layers_mb_per_s(measured, new_store, threads):
    """The same real layer on five bases: one after the other, or from five threads at once."""
    (layer,) = layers.make(["few-debs"])
    layers.warm([layer])

    def bases():
        store = new_store()
        return store, [store.register(tiny(number)).chain_id for number in range(5)]

    def register(given):
        store, parents = given
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            return len({done.chain_id for done in pool.map(lambda parent: store.register(layer.path, parent), parents)})

    assert measured(register, setup=bases, mb=5 * layer.megabytes) == 5
