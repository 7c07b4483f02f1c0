"""prune() removes unused images, and nothing else: random roots against a plain model of what needs what."""

import os
import random
import time

import pytest
import tarkit
from driven import DRIVER

import layerstore
from layerstore import Images, Removed

TARS = [tarkit.file(f"f{n}", b"x" * n) + tarkit.end() for n in range(1, 9)]


def draw(seed, store, images, root):
    """A random root: (images by id: (names, digest names, parent, age, top), tops that boxes stand on)."""
    dice = random.Random(seed)
    layers = [store.register(tar) for tar in TARS[:3]]
    layers += [store.register(tar, dice.choice(layers).chain_id) for tar in TARS[3:]]
    made, now = {}, time.time()
    for number in range(dice.randrange(1, 8)):
        top = dice.choice(layers)
        names = [f"i{number}:{tag}" for tag in range(dice.choice([0, 0, 1, 2]))]
        image = images.create(top, {"author": str(number)}, tags=names)
        digests = [f"i{number}@sha256:{number:064x}"] if dice.random() < 0.3 else []
        parent = dice.choice([*made, "", ""]) if made else ""
        age = dice.choice([0, 100, 10_000])
        if digests:
            found = images._db.repositories()
            found.setdefault(f"i{number}", {})[digests[0]] = image.id
            images._db.write_repositories(found)
        if parent:
            images._db.note(image.id, "parent", parent)
        if names:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S.5Z", time.gmtime(now - age))
            images._db.note(image.id, "lastUpdated", stamp)
        os.utime(root / "image" / DRIVER / "imagedb/content/sha256" / image.id[7:], (now - age, now - age))
        made[image.id] = (names, digests, parent, age, top.chain_id)
    boxes = {dice.choice(layers).chain_id for _ in range(dice.randrange(3))}
    for number, chain in enumerate(boxes):
        store.create_rw_layer(f"box{number}", chain)
    for layer in layers:
        layer.release()
    return made, boxes


def needed(made, boxes, dangling, unused_for):
    """Who stays, by the words of the documentation."""
    stays = {id for id, (names, _, _, age, top) in made.items()
             if top in boxes or (dangling and names) or (unused_for is not None and age < unused_for)}  # fmt: skip
    while True:
        more = {made[id][2] for id in stays} & made.keys() - stays
        if not more:
            return stays
        stays |= more


@pytest.mark.parametrize("seed", range(30))
def test_what_goes_and_what_stays(store, images, root, seed):
    made, boxes = draw(seed, store, images, root)
    dice = random.Random(-seed)
    dangling, unused_for = dice.random() < 0.5, dice.choice([None, None, 0, 50, 5000])
    stays = needed(made, boxes, dangling, unused_for)
    told = images.prune(dangling=dangling, unused_for=unused_for, dry_run=True)
    assert {image.id for image in images.list()} == made.keys()
    gone = images.prune(dangling=dangling, unused_for=unused_for)
    assert (told.untagged, told.deleted, told.layers) == (gone.untagged, gone.deleted, [])
    assert set(gone.deleted) == made.keys() - stays and {image.id for image in images.list()} == stays
    assert sorted(gone.untagged) == sorted(name for id in gone.deleted for part in made[id][:2] for name in part)
    left = {chain for id in stays for chain in images.get(id).layers}
    for chain in boxes:
        layer = store.map()[chain]
        while layer:
            left.add(layer.chain_id)
            layer = layer.parent
    of_gone = {meta.chain_id for meta in gone.layers}
    assert not of_gone & left and set(store.map()) & of_gone == set()
    assert left <= set(store.map())
    # Released already, each layer that no image had named is gone, too.
    assert set(store.map()) == left
    assert images.prune(dangling=dangling, unused_for=unused_for) == Removed((), (), [])
    assert store.verify() == []


def test_layers_of_a_pruned_image_that_somebody_holds_stay(store, images):
    layer = store.register(TARS[0])
    images.create(layer, {})
    assert images.prune().layers == [] and layer.chain_id in store.map()
    assert [meta.chain_id for meta in layer.release()] == [layer.chain_id]


def test_a_damaged_image_is_not_pruned(store, images, root):
    with store.register(TARS[0]) as layer:
        image = images.create(layer, {})
    (root / "image" / DRIVER / "imagedb/content/sha256" / image.id[7:]).write_bytes(b"{}")
    assert images.prune(dangling=False) == Removed((), (), [])
    assert images.remove(image.id).deleted == (image.id,)


@pytest.mark.parametrize("wrong", [-1, float("nan")])
def test_what_is_no_time(images, wrong):
    with pytest.raises(ValueError, match="unused_for"):
        images.prune(unused_for=wrong)


def test_a_store_for_reading_only_tells_and_does_nothing(store, images, root):
    with store.register(TARS[0]) as layer:
        image = images.create(layer, {})
    with layerstore.Store(root, options={"read_only": "true"}) as reader:
        assert Images(reader).prune(dry_run=True).deleted == (image.id,)
        with pytest.raises(layerstore.ReadOnlyStoreError):
            Images(reader).prune()
    assert images.prune().deleted == (image.id,)
