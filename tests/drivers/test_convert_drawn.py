"""convert() of every named layer and of drawn stacks, there and back: tars, sizes, entries, and what a mount shows."""

import contextlib
import itertools
import random

import disk
import pytest
import recipes
import tarkit
from soak import SEED, budget
from stored import tar_of

import layerstore
from layerstore import BreakoutError, TarFormatError
from layerstore.drivers import registry

TERABYTES = {"good_sparse_of_eight_tebibytes"}      # returned by reading all of it
WAYS = [*itertools.permutations(registry.DRIVERS, 2)]
NAMES = ["a", "b", "a/c", "a/d", "a/d/e", "a/d/f", "b/c", "g/h/i", "j"]


def there_and_back(root, way, tars):
    """Register a stack under one driver, convert it to the other; a root of its own takes it back. Return the three tops."""
    stores = [layerstore.Store(root / "there", driver=way[0]), layerstore.Store(root / "there", driver=way[1])]
    layer = ""
    for tar in tars:
        layer = stores[0].register(tar, layer).chain_id
    made = stores[0].convert(layer, way[1])
    assert made == chain_of(stores[0].find(layer))
    tops = [store.find(layer) for store in stores]
    assert [store.verify() for store in stores] == [[], []]
    return stores, tops


def chain_of(layer):
    return [*(chain_of(layer.parent) if layer.parent else []), layer.chain_id]


def facts(layer):
    return layer.chain_id, layer.diff_id, layer.size, layer.diff_size


def entries(layer):
    """CRCs are one driver's alone."""
    return [entry._replace(crc=None) for entry in layer.files()]


@pytest.mark.parametrize("way", WAYS, ids="-to-".join)
@pytest.mark.parametrize("name", sorted(set(recipes.GOOD) - TERABYTES))
def test_each_named_layer_is_the_same_in_the_other_half(room, way, name):
    tar = recipes.GOOD[name]()
    stores, (old, new) = there_and_back(room, way, [tar])
    with contextlib.ExitStack() as stack:
        for store in stores:
            stack.callback(store.close)
        assert facts(new) == facts(old)
        assert tar_of(new) == tar == tar_of(old)
        assert entries(new) == entries(old)


class Drawn:
    """Layer tars of a few names, in all ways that replace, link, hide and imply."""

    def __init__(self, seed):
        self.dice = random.Random(seed)

    def meta(self):
        dice = self.dice
        return {"mode": dice.choice([0o600, 0o644, 0o755, 0o4711, 0o1777]), "uid": dice.choice([0, 7]), "gid": dice.choice([0, 9]), "mtime": dice.randrange(1 << 31)}

    def entry(self):
        dice, name = self.dice, self.dice.choice(NAMES)
        kind = dice.randrange(12)
        if kind < 4:
            return tarkit.file(name, dice.randbytes(dice.choice([0, 1, 511, 512, 513, 9000])), **self.meta())
        if kind < 7:
            return tarkit.dir(name + "/", **self.meta())
        if kind == 7:
            return tarkit.symlink(name, dice.choice(["a", "../b", "nowhere", "/a/d"]))
        if kind == 8:
            return tarkit.whiteout(name)
        if kind == 9:
            return tarkit.opaque(dice.choice(["a/", "a/d/", "b/"]))
        if kind == 10:
            note = {f"user.{dice.choice('xyz')}": dice.randbytes(dice.choice([1, 40, 300])), "trusted.t": b"1"}
            return tarkit.xattrs(note) + tarkit.file(name, b"noted", **self.meta())
        return tarkit.fifo(name, **self.meta())

    def tar(self):
        parts = [self.entry() for _ in range(self.dice.randrange(1, 12))]
        if self.dice.randrange(3) == 0:
            parts += [tarkit.file("l/one", b"linked"), tarkit.hardlink("l/two", "l/one")]
        return b"".join(parts) + tarkit.end(self.dice.choice([2, 3, 20]))


def registrable(room, drawn, way):
    """As many drawn layers on one another as the source takes."""
    tars, layer = [], ""
    with layerstore.Store(room / "tried", driver=way[0]) as store:
        for _ in range(40):
            tar = drawn.tar()
            try:
                layer = store.register(tar, layer).chain_id
            except (TarFormatError, BreakoutError, OSError):
                continue
            tars.append(tar)
            if len(tars) == drawn.depth:
                break
    return tars


@pytest.mark.soak(60, 900)
@pytest.mark.parametrize("way", WAYS, ids="-to-".join)
def test_drawn_stacks_are_the_same_in_the_other_half(room, way):
    for turn in range(budget(12, 400)):
        drawn = Drawn(f"{SEED} {turn} {way}")
        drawn.depth = drawn.dice.randrange(1, 6)
        place = room / str(turn)
        place.mkdir()
        tars = registrable(place, drawn, way)
        stores, (old, new) = there_and_back(place, way, tars)
        with contextlib.ExitStack() as stack:
            for store in stores:
                stack.callback(store.close)
            assert facts(new) == facts(old), turn
            while old:
                assert (entries(new), tar_of(new)) == (entries(old), tar_of(old)), turn
                old, new = old.parent, new.parent
            assert tars and shown(stores[0], tars) == shown(stores[1], tars), turn
        disk.remove_tree(place)


def shown(store, tars):
    """What a mounted box shows. (The times of directories that a tar implies, and of the root, differ by driver.)"""
    top = next(chain for chain, layer in store.map().items() if layer.size == max(each.size for each in store.map().values()) and depth(layer) == len(tars))
    with store.create_rw_layer("box", top) as box, box.mounted() as at:
        return disk.disk_state(at)


def depth(layer):
    return 1 + depth(layer.parent) if layer.parent else 1
