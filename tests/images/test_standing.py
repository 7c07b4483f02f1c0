"""An image on disk keeps its layers, no matter what releases them, and what put it there."""

import hashlib
import logging
import os

import tarkit
from dockerd import image_config
from driven import DRIVER

TARS = [tarkit.dir("a/") + tarkit.file("a/f", b"1") + tarkit.end(), tarkit.file("b", b"2") + tarkit.end()]


def write_image(root, tars=TARS, *, name: str | None = None) -> str:
    """What dockerd writes of an image, and no more; its id."""
    config = image_config([tarkit.diff_id(tar) for tar in tars])
    id = hashlib.sha256(config).hexdigest()
    place = root / "image" / DRIVER / "imagedb/content/sha256"
    place.mkdir(parents=True, exist_ok=True)
    (place / (name or id)).write_bytes(config)
    return id


def register(store, tars=TARS):
    base = store.register(tars[0])
    top = store.register(tars[1], base.chain_id)
    return base, top


def test_a_layer_that_an_image_names_outlives_its_last_reference(store, root):
    base, top = register(store)
    id = write_image(root)
    assert top.release() == []
    assert base.release() == []
    assert set(store.map()) == {base.chain_id, top.chain_id}
    os.unlink(root / "image" / DRIVER / "imagedb/content/sha256" / id)
    assert [gone.chain_id for gone in store.get(top.chain_id).release()] == [top.chain_id, base.chain_id]


def test_also_where_only_a_layer_above_is_named(store, root):
    """The image's top was deleted by hand; what is left of it is not made less."""
    base, top = register(store)
    assert [gone.chain_id for gone in top.release()] == [top.chain_id]
    write_image(root)
    assert base.release() == []


def test_an_image_that_cannot_be_read_keeps_everything(store, root, caplog):
    base, top = register(store)
    write_image(root, name="00" * 32)
    with caplog.at_level(logging.WARNING):
        assert top.release() == []
    assert "0000" in caplog.text
    assert "Nothing is deleted" in caplog.text
    os.unlink(root / "image" / DRIVER / "imagedb/content/sha256" / ("00" * 32))
    base.release()
    assert len(store.get(top.chain_id).release()) == 2


def test_what_is_no_image_keeps_nothing(store, root):
    base, top = register(store)
    write_image(root, name=".tmp-of-a-crash")
    top.release()
    assert [gone.chain_id for gone in base.release()] == [base.chain_id]
