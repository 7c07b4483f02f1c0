"""What a pull fetches, of a store that has some of it: in its place, on another parent, damaged; held to a plain model."""

import os
from dataclasses import dataclass

import tarkit
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from imagekit import PACKERS
from shelf import Shelf
from stored import tar_of

from layerstore import Images, Registry, Store

LAYERS = [tarkit.file(f"layer-{n}", b"%d" % n * (500 * n + 1)) + tarkit.end() for n in range(4)]


@dataclass(frozen=True)
class Before:
    """What is there before: the lowest layers of the image; layers alone, on nothing; of these, damaged ones; the config;
    which blobs are known to be which layers."""

    lowest: int
    alone: frozenset[int]
    damaged: frozenset[int]
    config: bool
    known: frozenset[int]


def spoil(store, chain: str) -> None:
    """Change a byte of the only file of a layer."""
    upper = store.map()[chain].metadata()["UpperDir"]
    [name] = os.listdir(upper)
    with open(os.path.join(upper, name), "r+b") as file:
        file.write(b"!")


numbers = st.frozensets(st.integers(0, len(LAYERS) - 1))
befores = st.builds(Before, st.integers(0, 5), numbers, numbers, st.booleans(), numbers)
images_of = st.lists(st.integers(0, len(LAYERS) - 1), min_size=1, max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@example([0, 1, 0], Before(0, frozenset(), frozenset(), False, frozenset()), "gzip")
@example([0, 1, 0], Before(1, frozenset(), frozenset(), True, frozenset({0})), "zstd")
@example([2, 1], Before(0, frozenset({1}), frozenset({1}), False, frozenset({1})), "plain")
@given(images_of, befores, st.sampled_from(sorted(PACKERS)))
def test_what_is_fetched(tmp_path_factory, layers, before, packed):
    root = tmp_path_factory.mktemp("store")
    with Shelf() as shelf, Store(root, driver="overlay2", options={"durability": "none"}) as store, Registry(shelf.url, retries=0) as registry:
        put = shelf.put([LAYERS[n] for n in layers], packed=packed)
        images, held = Images(store), []
        at = ""
        for number in layers[: before.lowest]:
            held.append(store.register(LAYERS[number], at))
            at = held[-1].chain_id
        for number in sorted(before.alone):
            held.append(store.register(LAYERS[number]))
        have = {layer.chain_id: layer.diff_id for layer in held}
        damaged = [number for number in before.damaged & before.alone if list(have.values()).count(tarkit.diff_id(LAYERS[number])) == 1]
        if layers[0] in damaged:
            damaged.remove(layers[0])          # the base of the image is there, whole or not: it is not looked into
        for number in damaged:
            spoil(store, tarkit.diff_id(LAYERS[number]))
        if before.config:
            content = root / "image/overlay2/imagedb/content/sha256"
            content.mkdir(parents=True)
            (content / put.id.partition(":")[2]).write_bytes(put.config)
        for number in before.known & set(layers):
            note = root / "image/overlay2/distribution/diffid-by-digest" / put.digests[layers.index(number)].replace(":", "/")
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(tarkit.diff_id(LAYERS[number]))

        # the model
        missing = {number: None for number, chain in zip(layers, put.chains, strict=True) if chain not in have}
        alike = {tarkit.diff_id(LAYERS[number]) for number in range(len(LAYERS))} & set(have.values())
        fetched = [number for number in missing if tarkit.diff_id(LAYERS[number]) not in alike or number in damaged]
        asked = {f"/v2/app/blobs/{put.digests[layers.index(number)]}" for number in fetched}
        if not before.config:
            asked.add(f"/v2/app/blobs/{put.id}")
        compared = set(fetched) | before.known

        told = []
        image = images.pull(put.reference, registry=registry, progress=told.append)
        assert sorted(shelf.paths()) == sorted(["GET /v2/app/manifests/1", *(f"GET {path}" for path in asked)])
        assert image.id == put.id
        assert list(image.layers) == put.chains
        for chain, number in zip(image.layers, layers, strict=True):
            if chain not in have:
                assert tar_of(store.map()[chain]) == LAYERS[number]
        total = sum(len(put.blobs[layers.index(number)]) for number in fetched)
        assert (int(told[-1]), told[-1].total) == (total, total)
        kept = root / "image/overlay2/imagedb/metadata" / put.id.replace(":", "/") / "manifest"
        assert kept.exists() == (set(layers) <= compared)
        if kept.exists():
            assert kept.read_bytes() == put.manifest
        for number in set(layers):
            noted = root / "image/overlay2/distribution/v2metadata-by-diffid" / tarkit.diff_id(LAYERS[number]).replace(":", "/")
            assert noted.exists() == (number in compared)
        assert store.orphans() == []
        # Once more: the first request is the only one.
        shelf.forget()
        assert images.pull(put.reference, registry=registry) == image
        assert shelf.paths() == ["GET /v2/app/manifests/1"]
