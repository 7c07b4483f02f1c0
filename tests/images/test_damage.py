"""verify() over images: a config, a layer or a name that is damaged or lost is told, with the image and its names."""

import os
import shutil

import imagekit
import pytest
from driven import DRIVER
from imagekit import BASE, MIDDLE, TOP, image_id, tar_of

LAYERS = [BASE, MIDDLE, TOP]
ID, OTHER = image_id(LAYERS), image_id([BASE])


@pytest.fixture
def loaded(images):
    images.load(tar_of(imagekit.docker([(LAYERS, ["a/b:1", "c:1"]), ([BASE], ["base"])])))
    return images


def lose_layer(place, images):
    shutil.rmtree(place / "layerdb/sha256" / images.get("c:1").layers[1].encoded)


def config(place):
    return place / "imagedb/content/sha256" / ID[7:]


def note(place, name, data):
    where = place / "imagedb/metadata/sha256" / ID[7:]
    os.makedirs(where, exist_ok=True)
    (where / name).write_bytes(data)


DAMAGES = {
    "a layer is gone": (lose_layer, ID, "missing"),
    "the config is another": (lambda place, images: config(place).write_bytes(b"{}"), ID, "metadata"),
    "the config is zeros": (lambda place, images: config(place).write_bytes(bytes(config(place).stat().st_size)), ID, "metadata"),
    "the config is a directory": (lambda place, images: (config(place).unlink(), config(place).mkdir()), ID, "metadata"),
    "the config is gone": (lambda place, images: config(place).unlink(), ID, "missing"),
    "the names are cut": (lambda place, images: (place / "repositories.json").write_bytes(b"{"), "repositories.json", "metadata"),
    "the names are zeros": (lambda place, images: (place / "repositories.json").write_bytes(bytes(50)), "repositories.json", "metadata"),
    "the names are none": (lambda place, images: (place / "repositories.json").write_bytes(b'{"Repositories":{"a":{"a:1":7}}}'), "repositories.json", "metadata"),
    "the parent is zeros": (lambda place, images: note(place, "parent", bytes(71)), ID, "metadata"),
    "the time is zeros": (lambda place, images: note(place, "lastUpdated", bytes(20)), ID, "metadata"),
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
def test_each_damage_of_an_image_is_told_with_its_names(store, loaded, root, how):
    assert store.verify() == []
    harm, subject, kind = DAMAGES[how]
    harm(root / "image" / DRIVER, loaded)
    told = [p for p in store.verify() if p.kind != "orphan" and p.subject not in store.map()]
    mine = [p for p in told if p.subject == subject]
    assert {p.kind for p in mine} == {kind}, told
    if subject == ID:
        assert all("a/b:1" in p.detail or "c:1" in p.detail for p in mine)
    assert not [p for p in told if p.subject == OTHER]
    assert not [p for chain in store.map() for p in store.verify(chain) if p.subject in (ID, "repositories.json")]


def test_what_is_called_by_odd_names_reaches_no_terminal_raw(store, loaded, root):
    names = root / "image" / DRIVER / "repositories.json"
    names.write_bytes(b'{"Repositories":{"a":{"a\\u001b[31m:1":"%s"}}}' % ID.encode())
    config(root / "image" / DRIVER).write_bytes(b"{}")
    assert not [p for p in store.verify() if "\x1b" in p.detail]
