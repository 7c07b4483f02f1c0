"""Two drivers on one root: each sees its half, and a layer goes from one to the other, whole."""

import hashlib
import os

import disk
import kit
import pytest
import recipes
import tarkit

import layerstore

T1, T2 = tarkit.T1, tarkit.T2


def files_of(root):
    return disk.disk_state(root, content=False)


def test_each_sees_its_half(open_store, root):
    one, other = open_store(driver="overlay2"), open_store()
    layers = [store.register(T1) for store in (one, other)]
    assert layers[0].chain_id == layers[1].chain_id and layers[0].diff_size == layers[1].diff_size
    boxes = [store.create_rw_layer("box", layers[0].chain_id) for store in (one, other)]
    for box, text in zip(boxes, ("overlay2", "erofs"), strict=True):
        with box.mounted() as place, open(f"{place}/who", "w") as file:
            file.write(text)
    for box, text in zip(boxes, ("overlay2", "erofs"), strict=True):
        with box.open("who") as file:
            assert file.read() == text.encode()
    assert one.mounts() == other.mounts() == ["box"]
    assert one.verify() == other.verify() == [] and one.orphans() == other.orphans() == []
    one.cleanup(), other.cleanup()
    boxes[0].release(), layers[0].release()
    assert one.map() == {} and list(other.map()) == [layers[1].chain_id]
    assert layers[1].tar_stream().read() == T1
    with boxes[1].mounted() as place:
        assert sorted(os.listdir(place)) == ["a", "who"]
    assert {"overlay2", "erofs"} <= set(os.listdir(root)) and {"overlay2", "erofs"} <= set(os.listdir(root / "image"))


def test_which_one_opens(root, room):
    with layerstore.Store(room / "new") as store:
        assert store.driver_name() == "overlay2"
    with layerstore.Store(room / "mine", driver="erofs") as store:
        store.register(T1)
    with layerstore.Store(room / "mine") as store:
        assert store.driver_name() == "erofs" and len(store.map()) == 1
    with layerstore.Store(room / "mine", driver="overlay2") as store:
        assert store.map() == {}
        store.register(T2)
    with layerstore.Store(room / "mine") as store:
        assert store.driver_name() == "overlay2" and len(store.map()) == 1
        assert any("erofs" in str(value) and "overlay2" in str(value) for _, value in store.driver_status())


def test_opening_one_half_writes_nothing_into_the_other(open_store, root):
    with layerstore.Store(root, driver="overlay2") as store:
        store.register(T1)
    before = {name: facts for name, facts in files_of(root).items() if name.startswith((b"overlay2", b"image/overlay2"))}
    store = open_store()
    base = store.register(T1)
    with store.create_rw_layer("box", base.chain_id) as box, box.mounted():
        pass
    store.cleanup()
    base.release()
    assert {name: facts for name, facts in files_of(root).items() if name.startswith((b"overlay2", b"image/overlay2"))} == before


def stack(store):
    base = store.register_with_descriptor(recipes.GOOD["good_hard_links"](), "", None, layerstore.Descriptor("application/x", "sha256:" + "a" * 64, 123, ("http://x",), {"k": "v"}))
    middle = store.register(T2, base.chain_id)
    return [base, middle, store.register(recipes.GOOD["good_sparse_duplicate"](), middle.chain_id)]


@pytest.mark.parametrize(("here", "there"), [("overlay2", "erofs"), ("erofs", "overlay2")])
def test_convert(open_store, root, here, there):
    store = open_store(driver=here)
    layers = stack(store)
    chain = [layer.chain_id for layer in layers]
    tars = [hashlib.sha256(layer.tar_stream().read()).hexdigest() for layer in layers]
    assert store.convert(chain[1], there) == chain[:2]
    assert store.convert(chain[2], there) == chain[2:]
    assert store.convert(chain[2], there) == []
    other = open_store(driver=there)
    assert sorted(other.map()) == sorted(chain)
    assert other.verify() == [] and store.verify() == []
    copies = [other.get(at) for at in chain]
    for i, copy in enumerate(copies):
        assert hashlib.sha256(copy.tar_stream().read()).hexdigest() == tars[i]
        assert (copy.size, copy.diff_size, copy.descriptor, copy.diff_id) == (layers[i].size, layers[i].diff_size, layers[i].descriptor, layers[i].diff_id)
    assert len(store.map()) == 3
    # The layers made are kept by nothing else, and released as any is.
    for layer in layers[::-1]:
        layer.release()
    assert store.map() == {} and len(other.map()) == 3
    for copy in copies[::-1]:
        copy.release()
    assert other.map() == {} and [name for name in os.listdir(root / there) if name != "l"] == []


def test_what_convert_made_stays(open_store, root):
    store = open_store(driver="overlay2")
    layer = store.register(T1)
    store.convert(layer.chain_id, "erofs")
    layer.release()
    other = open_store()
    other.create_rw_layer("box", layer.chain_id).release()
    other.cleanup()
    assert list(other.map()) == [layer.chain_id]
    other.remove(layer.chain_id)
    assert other.map() == {}


def test_convert_of_what_is_not_there(open_store, root):
    store = open_store(driver="overlay2")
    layer = store.register(T1)
    before = disk.inventory(root)
    with pytest.raises(layerstore.LayerDoesNotExistError):
        store.convert("sha256:" + "1" * 64, "erofs")
    with pytest.raises(layerstore.NotSupportedError):
        store.convert(layer.chain_id, "aufs")
    assert disk.inventory(root) == before


@pytest.mark.parametrize(("here", "there"), [("overlay2", "erofs"), ("erofs", "overlay2")])
def test_convert_of_a_damaged_layer(open_store, root, here, there):
    store = open_store(driver=here)
    layers = stack(store)
    if here == "erofs":
        with open(kit.file_of(layers[1]), "r+b") as file:
            file.seek(4096 + 520)
            file.write(b"DAMAGED")
    else:
        path = os.path.join(layers[1].metadata()["UpperDir"], "b")
        with open(path, "wb") as file:
            file.write(b"xyz")
    with pytest.raises(layerstore.CorruptLayerError):
        store.convert(layers[2].chain_id, there)
    other = open_store(driver=there)
    assert layers[1].chain_id not in other.map() and layers[2].chain_id not in other.map()
    assert other.verify() == [] and other.orphans() == []


def test_converted_images_are_those_of_register(open_store, root, room):
    store = open_store(driver="overlay2")
    layers = stack(store)
    top = store.register(tarkit.file("deep/er/f", b"1") + tarkit.end(), store.register(tarkit.dir("deep/", mode=0o700, uid=3) + tarkit.end(), layers[2].chain_id).chain_id)
    store.convert(top.chain_id, "erofs")
    other, fresh = open_store(), open_store(room / "fresh")
    parent = ""
    for layer in [*layers, top.parent, top]:
        made = fresh.register(layer.tar_stream().read(), parent)
        parent = made.chain_id
        assert kit.file_of(made).read_bytes() == kit.file_of(other.get(layer.chain_id)).read_bytes()


def test_a_tar_of_containerds_cache(open_store, root):
    store = open_store(**{"erofs.containerd_cache": "on"})
    layer = store.register(T1)
    digest = layer.diff_id.split(":")[1]
    name = kit.home_of(store) / "sha256" / digest[:2] / f"{digest}.erofs"
    assert os.stat(name).st_ino == os.stat(kit.file_of(layer)).st_ino
    assert store.verify() == [] and store.orphans() == []
    layer.release()
    assert not name.exists()


def test_no_cache_without_the_option(store):
    store.register(T1)
    assert not (kit.home_of(store) / "sha256").exists()
