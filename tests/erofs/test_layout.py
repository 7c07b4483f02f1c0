"""What lies on the disk: names, modes, links and lengths, and what does not lie there."""

import os
import re
import stat

import disk
import kit
import pytest
import recipes
import tarkit

import layerstore

T1, T2 = tarkit.T1, tarkit.T2


def mode_of(path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_a_layer_is_a_directory_of_three_names(store):
    layer = store.register(T1)
    cache = kit.cache_of(layer)
    assert cache.parent == kit.home_of(store)
    assert {"layer.erofs", "fs", "length"} <= set(os.listdir(cache)) <= {"layer.erofs", "fs", "length", "link", "lower", "committed", "work"}
    assert os.listdir(cache / "fs") == []
    assert (cache / "length").read_text().strip() == str(len(T1))
    assert (cache / "length").read_text().isdecimal()


def test_modes(store):
    for mask in (0, 0o077):
        before = os.umask(mask)
        try:
            layer = store.register(T1 + bytes(512 * mask))
        finally:
            os.umask(before)
        cache = kit.cache_of(layer)
        assert mode_of(kit.home_of(store)) == 0o710
        assert mode_of(cache) == 0o710
        assert mode_of(cache / "fs") == 0o755
        assert mode_of(cache / "layer.erofs") == 0o600
        assert os.lstat(cache / "layer.erofs").st_uid == 0


def test_short_names_lead_to_fs(store):
    base = store.register(T1)
    top = store.register(T2, base.chain_id)
    links = kit.home_of(store) / "l"
    found = {os.readlink(links / name): name for name in os.listdir(links)}
    for layer in (base, top):
        cache = kit.cache_of(layer)
        name = found[f"../{cache.name}/fs"]
        assert re.fullmatch("[A-Z0-9]{26}", name)
        assert (cache / "link").read_text() == name
    assert (kit.cache_of(top) / "lower").read_text() == "l/" + found[f"../{kit.cache_of(base).name}/fs"]
    assert not (kit.cache_of(base) / "lower").exists()


def test_the_layerdb_has_all_but_the_record(store):
    base = store.register(T1)
    top = store.register(T2, base.chain_id)
    for layer, parent in ((base, None), (top, base)):
        entry = os.path.join(store.root, "image/erofs/layerdb/sha256", layer.chain_id.split(":")[1])
        names = set(os.listdir(entry))
        assert {"cache-id", "diff", "size"} <= names and not any("tar-split" in name for name in names)
        assert ("parent" in names) == (parent is not None)


def test_nothing_else_lies_there(store):
    base = store.register(T1)
    top = store.register(T2, base.chain_id)
    box = store.create_rw_layer("box", top.chain_id)
    box.mount()
    names = disk.inventory(kit.home_of(store))
    box.unmount()
    for name in names:
        parts = name.split("/")
        assert parts[0] == "l" or re.fullmatch("[0-9a-f]{64}(-init)?", parts[0]), name
        assert not re.search(r"\.(tmp|part|lock|crc)|probe", name), name
        if len(parts) > 1 and parts[0] != "l":
            assert parts[1] in {"layer.erofs", "fs", "length", "link", "lower", "committed", "work", "merged"}, name
    box.release()


def test_opening_a_store_makes_no_probe(root, store):
    store.map(), store.mounts(), store.driver_name(), store.orphans(), store.verify()
    home = kit.home_of(store)
    assert not home.exists() or set(os.listdir(home)) <= {"l"}


def test_a_box_has_an_upper_and_no_image(store):
    base = store.register(T1)
    box = store.create_rw_layer("box", base.chain_id)
    meta = box.metadata()
    upper = meta["UpperDir"]
    assert os.path.basename(upper) == "fs"
    assert meta["LowerDir"].split(":")[-1] == str(kit.cache_of(base) / "fs")
    assert meta["WorkDir"] == os.path.join(os.path.dirname(upper), "work")
    assert meta["MergedDir"] == os.path.join(os.path.dirname(upper), "merged")
    assert not os.path.exists(os.path.join(os.path.dirname(upper), "layer.erofs"))
    box.release()


def test_metadata_of_layers(store):
    layers = [store.register(T1)]
    for n in range(3):
        layers.append(store.register(tarkit.file(f"n{n}", b"x") + tarkit.end(), layers[-1].chain_id))
    meta = layers[-1].metadata()
    cache = kit.cache_of(layers[-1])
    assert meta["Layer"] == str(cache / "layer.erofs")
    assert meta["UpperDir"] == str(cache / "fs")
    assert meta["WorkDir"] == str(cache / "work")
    assert meta["MergedDir"] == str(cache / "merged")
    assert meta["LowerDir"] == ":".join(str(kit.cache_of(layer) / "fs") for layer in reversed(layers[:-1]))
    assert "LowerDir" not in layers[0].metadata()


@pytest.mark.parametrize("name", ["good_t2", "good_empty_layer", "good_sparse_old_gnu", "good_hard_links", "good_sparse_duplicate", "good_hard_link_with_size", "good_symlink_with_size"])
def test_size_is_that_of_overlay2(open_store, room, name):
    tar = recipes.GOOD[name]()
    one, other = open_store(room / "one"), open_store(room / "other", driver="overlay2")
    assert one.register(tar).diff_size == other.register(tar).diff_size


def test_size_counts_each_inode_once_and_sparse_ones_expanded(store):
    tar = (
        tarkit.file("f", b"12345") + tarkit.hardlink("g", "f") + tarkit.symlink("s", "abc") + tarkit.hardlink("t", "s")
        + tarkit.pax_sparse_1_0("p", [(0, b"x" * 512), (1 << 20, b"y")], (1 << 20) + 1) + tarkit.dir("d/") + tarkit.fifo("fi")
        + tarkit.file("again", b"123") + tarkit.file("again", b"1") + tarkit.end()
    )  # fmt: skip
    layer = store.register(tar)
    assert layer.diff_size == 5 + 3 + (1 << 20) + 1 + 1
    assert layer.size == layer.diff_size


def test_the_same_tar_on_other_layers_is_the_same_inode(store):
    base, other = store.register(T1), store.register(T2)
    tar = tarkit.file("same", b"x" * 10000) + tarkit.end()
    layers = [store.register(tar), store.register(tar, base.chain_id), store.register(tar, other.chain_id)]
    inodes = {os.stat(kit.file_of(layer)).st_ino for layer in layers}
    assert len(inodes) == 1 and os.stat(kit.file_of(layers[0])).st_nlink == 3
    layers[0].release()
    assert os.stat(kit.file_of(layers[1])).st_nlink == 2
    assert store.verify() == []
    tar = tarkit.file("a/deep/file", b"x") + tarkit.end()
    parents = [store.register(tarkit.dir("a/", mode=0o700, uid=5, gid=6) + tarkit.dir("a/deep/", mode=0o751) + tarkit.end()), base]
    here = [store.register(tar, parent.chain_id) for parent in parents]
    assert len({os.stat(kit.file_of(layer)).st_ino for layer in here}) == 2
    images = [kit.read(layer) for layer in here]
    assert (images[0].tree["a"].mode, images[0].tree["a"].uid, images[0].tree["a"].gid) == (0o40700, 5, 6)
    assert images[0].tree["a/deep"].mode == 0o40751
    assert (images[1].tree["a"].mode, images[1].tree["a/deep"].mode) == (0o40755, 0o40755)
    # Times of implied directories are 0.
    assert images[0].tree["a"].mtime_ns == images[0].tree["a/deep"].mtime_ns == 0
    again = store.register(tar, store.register(tarkit.file("unrelated") + tarkit.end(), base.chain_id).chain_id)
    assert os.stat(kit.file_of(again)).st_ino == os.stat(kit.file_of(here[1])).st_ino
    assert store.verify() == []


def test_released_layers_leave_nothing(store):
    layer = store.register(T1)
    top = store.register(T2, layer.chain_id)
    layer.release(), top.release()
    assert disk.inventory(kit.home_of(store)) == {"l"}
    assert not any(os.listdir(os.path.join(store.root, "image/erofs/layerdb/sha256")))


def test_a_refused_tar_leaves_nothing(store):
    before = disk.inventory(store.root)
    with pytest.raises(layerstore.TarFormatError, match="checksum"):
        store.register(tarkit.file("a", b"x" * 5000) + tarkit.raw_header("x", chksum=1) + tarkit.end())
    made_once = {"erofs", "erofs/l", "image", "image/erofs", "image/erofs/layerdb", "image/erofs/layerdb/tmp", "image/erofs/layerdb/sha256"}
    assert disk.inventory(store.root) - before <= made_once
