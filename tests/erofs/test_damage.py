"""Damage: what verify() calls it, what is read all the same, and what repair() needs."""

import os
import random
import struct

import disk
import kit
import pytest
import tarkit

import layerstore

TAR = (
    tarkit.dir("d/") + tarkit.file("d/one", b"1" * 3000, mtime=5) + tarkit.file("d/two", b"2" * 700) + tarkit.symlink("s", "d/one") + tarkit.hardlink("h", "d/one")
    + tarkit.xattrs({"user.k": b"value"}) + tarkit.file("x", b"x") + tarkit.pax_sparse_1_0("odd", [(100, b"a" * 100), (50_000, b"b" * 100)], 100_000) + tarkit.end()
)  # fmt: skip


@pytest.fixture
def layer(store):
    return store.register(TAR)


def write(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        before = file.read(len(data))
        file.seek(offset)
        file.write(bytes(a ^ b for a, b in zip(before, data, strict=True)))


def kinds(store, layer):
    problems = store.verify(layer.chain_id)
    assert all(problem.subject == layer.chain_id and problem.detail for problem in problems)
    return [problem.kind for problem in problems]


def test_a_whole_one(store, layer):
    assert store.verify() == [] and store.repair(layer.chain_id) == []


def test_a_damaged_payload_is_content(store, layer):
    path = kit.file_of(layer)
    whole = path.read_bytes()
    write(path, 4096 + 512 + 512 + 10, b"\1")
    assert kinds(store, layer) == ["content"]
    with layer.tar_stream() as stream:
        got = b""
        with pytest.raises(layerstore.CorruptLayerError):
            while piece := stream.read(1000):
                got += piece
    assert len(got) == len(TAR) and got != TAR
    target = path.parent.parent / "copied"
    with layer.tar_stream() as stream, open(target, "wb") as out, pytest.raises(layerstore.CorruptLayerError):
        stream.copy_to(out)
    assert target.stat().st_size == len(TAR)
    target.unlink()
    with pytest.raises(layerstore.CorruptLayerError):
        store.repair(layer.chain_id)
    assert path.read_bytes() != whole
    with pytest.raises((layerstore.CorruptLayerError, layerstore.LayerStoreError)):
        store.repair(layer.chain_id, tarkit.T1)
    assert kinds(store, layer) == ["content"]
    assert [problem.kind for problem in store.repair(layer.chain_id, TAR)] == ["content"]
    assert path.read_bytes() == whole and store.verify() == []


def test_a_damaged_header_of_the_tar_is_content(store, layer):
    write(kit.file_of(layer), 4096 + 512 + 100, b"\7")
    assert "content" in kinds(store, layer)
    assert store.repair(layer.chain_id, TAR) and store.verify() == []


@pytest.mark.parametrize("name", ["header zeros", "header zeros behind", "padding", "first slot", "inode", "last byte", "expanded", "hole", "superblock"])
def test_damaged_metadata_is_repaired_from_the_tar(store, name):
    layer = store.register(TAR + b"odd end")
    path = kit.file_of(layer)
    whole = path.read_bytes()
    image = kit.read(layer)
    odd = image.tree["odd"].pieces[0].image_offset
    at = {
        "header zeros": 5, "header zeros behind": 2000, "padding": 4096 + len(TAR) + 10, "first slot": image.meta + 3, "inode": image.meta + 32 * image.tree["x"].nid + 4,
        "last byte": len(whole) - 1, "expanded": odd + 150, "hole": odd + 20_000, "superblock": 1024 + 16,
    }[name]  # fmt: skip
    write(path, at, b"\1")
    assert kinds(store, layer) == ["metadata"], f"byte {at} of {len(whole)}"
    with layer.tar_stream() as stream:
        assert stream.read() == TAR + b"odd end"
    assert [problem.kind for problem in store.repair(layer.chain_id)] == ["metadata"]
    assert path.read_bytes() == whole and store.verify() == []


def test_any_byte_of_the_metadata(store, layer):
    path = kit.file_of(layer)
    whole = path.read_bytes()
    image = kit.read(layer)
    draw = random.Random(7)
    places = {draw.randrange(image.meta, len(whole)) for _ in range(120)} | {draw.randrange(0, 4096) for _ in range(40)}
    for at in places:
        write(path, at, bytes([1 << draw.randrange(8)]))
        assert kinds(store, layer) == ["metadata"], f"byte {at}"
        path.write_bytes(whole)
    assert store.verify() == []


def test_lengths(store, layer):
    length = kit.cache_of(layer) / "length"
    text = length.read_text()
    for wrong in ("1", "many", "", str(len(TAR) + 512), "-5", "9" * 30, str(len(TAR) - 512)):
        length.write_text(wrong)
        assert kinds(store, layer) == ["metadata"], wrong
        with layer.tar_stream() as stream:
            assert stream.read() == TAR, f"{wrong!r}: the volume's name says it, too"
        assert store.repair(layer.chain_id) and length.read_text() == text
    length.unlink()
    assert kinds(store, layer)[0] in ("metadata", "missing")
    with layer.tar_stream() as stream:
        assert stream.read() == TAR
    assert store.repair(layer.chain_id) and length.read_text() == text and store.verify() == []


def test_neither_length_nor_name(store, layer):
    (kit.cache_of(layer) / "length").write_text("many")
    with open(kit.file_of(layer), "r+b") as file:
        file.seek(1024 + 64)
        file.write(b"hello".ljust(16, b"\0"))
    with pytest.raises(layerstore.CorruptLayerError):
        layer.tar_stream().read()
    assert store.verify(layer.chain_id)
    store.repair(layer.chain_id, TAR)
    assert store.verify() == []


@pytest.mark.parametrize("what", ["gone", "link", "fifo", "directory", "link to the whole one"])
def test_missing(store, layer, room, what):
    path = kit.file_of(layer)
    aside = room / "aside"
    os.rename(path, aside)
    {"gone": lambda: None, "link": lambda: path.symlink_to("/etc/passwd"), "fifo": lambda: os.mkfifo(path), "directory": path.mkdir, "link to the whole one": lambda: path.symlink_to(aside)}[what]()
    assert kinds(store, layer) == ["missing"]
    for read in (lambda: layer.tar_stream().read(), lambda: list(layer.files()), lambda: layer.open("d/one").close()):
        with pytest.raises((layerstore.LayerStoreError, OSError)):
            read()
    with pytest.raises((layerstore.LayerStoreError, OSError)):
        store.repair(layer.chain_id)
    assert store.repair(layer.chain_id, TAR)
    assert store.verify() == [] and path.read_bytes() == aside.read_bytes()


@pytest.mark.parametrize("by", [-1, -512, -5000, 1, 512])
def test_cut_and_grown(store, layer, by):
    path = kit.file_of(layer)
    whole = path.read_bytes()
    os.truncate(path, len(whole) + by)
    assert set(kinds(store, layer)) == {"metadata"}
    assert store.repair(layer.chain_id) and path.read_bytes() == whole


def test_cut_within_the_tar(store, layer):
    path = kit.file_of(layer)
    whole = path.read_bytes()
    os.truncate(path, 4096 + 2000)
    assert "content" in kinds(store, layer)
    with pytest.raises((layerstore.CorruptLayerError, OSError)):
        layer.tar_stream().read()
    with pytest.raises((layerstore.CorruptLayerError, OSError)):
        layer.open("d/two").read()
    assert store.repair(layer.chain_id, TAR) and path.read_bytes() == whole


def test_layers_that_share_the_file_are_mended_together_and_others_not_accused(store):
    base = store.register(tarkit.T1)
    layers = [store.register(TAR), store.register(TAR, base.chain_id)]
    other = store.register(tarkit.T2, base.chain_id)
    write(kit.file_of(layers[0]), 4096 + 1100, b"\1")
    assert {problem.subject for problem in store.verify()} == {layer.chain_id for layer in layers}
    assert kinds(store, other) == [] and kinds(store, base) == []
    store.repair(layers[1].chain_id, TAR)
    assert store.verify() == []
    assert len({os.stat(kit.file_of(layer)).st_ino for layer in layers}) == 1


def test_repair_while_mounted(store, layer):
    box = store.create_rw_layer("box", layer.chain_id)
    with box.mounted():
        write(kit.file_of(layer), 4096 + 1100, b"\1")
        for source in (None, TAR):
            with pytest.raises((layerstore.ActiveMountError, layerstore.CorruptLayerError)) as refused:
                store.repair(layer.chain_id, source)
            assert source is None or isinstance(refused.value, layerstore.ActiveMountError)
    assert store.repair(layer.chain_id, TAR) and store.verify() == []
    with box.mounted() as place, open(f"{place}/d/one", "rb") as file:
        assert file.read() == b"1" * 3000


def test_repair_of_metadata_while_mounted(store, layer):
    box = store.create_rw_layer("box", layer.chain_id)
    with box.mounted():
        write(kit.file_of(layer), 1024 + 16, b"\1")
        with pytest.raises(layerstore.ActiveMountError):
            store.repair(layer.chain_id)
    assert store.repair(layer.chain_id) and store.verify() == []


def test_an_implied_parent_is_repaired_with_the_same_look_up(store):
    base = store.register(tarkit.dir("a/", mode=0o700, uid=9) + tarkit.dir("a/b/", mode=0o711, gid=8) + tarkit.end())
    top = store.register(tarkit.file("a/b/c/f", b"x") + tarkit.end(), base.chain_id)
    whole = kit.file_of(top).read_bytes()
    assert store.verify() == []
    write(kit.file_of(top), len(whole) - 300, b"\1")
    assert kinds(store, top) == ["metadata"]
    assert store.repair(top.chain_id) and kit.file_of(top).read_bytes() == whole
    write(kit.file_of(top), 4096 + 10, b"\1")
    assert store.repair(top.chain_id, tarkit.file("a/b/c/f", b"x") + tarkit.end()) and kit.file_of(top).read_bytes() == whole


def test_a_lost_directory_and_an_orphan(store, layer):
    stray = kit.home_of(store) / ("f" * 64)
    stray.mkdir()
    (stray / "layer.erofs").write_bytes(b"x" * 100)
    problems = store.verify()
    assert [problem.kind for problem in problems] == ["orphan"]
    store.cleanup()
    assert not stray.exists() and store.verify() == []
    disk.remove_tree(kit.cache_of(layer))
    assert "missing" in kinds(store, layer)
    store.repair(layer.chain_id, TAR)
    assert store.verify() == [] and layer.tar_stream().read() == TAR


def test_a_damaged_layer_is_not_linked_to(store, layer):
    base = store.register(tarkit.T1)
    write(kit.file_of(layer), 4096 + 1100, b"\1")
    other = store.register(TAR, base.chain_id)
    assert kinds(store, other) == []
    assert struct.unpack_from("<I", kit.file_of(other).read_bytes(), 1024)[0] == 0xE0F5E1E2


ODD_LENGTHS = {
    "fifo": os.mkfifo, "link out": lambda path: path.symlink_to("/etc/passwd"), "directory": os.mkdir, "link to itself": lambda path: path.symlink_to(path.name),
    "long": lambda path: path.write_bytes(b"1" * (8 << 20)),
}  # fmt: skip


@pytest.mark.time_limit(20)
@pytest.mark.parametrize("odd", ODD_LENGTHS)
def test_an_odd_thing_in_the_place_of_length(store, layer, odd):
    path = kit.cache_of(layer) / "length"
    path.unlink()
    ODD_LENGTHS[odd](path)
    assert kinds(store, layer) == ["metadata"]
    with layer.tar_stream() as stream:
        assert stream.read() == TAR
    assert store.repair(layer.chain_id) and store.verify() == []
    assert path.read_text() == str(len(TAR)) and not path.is_symlink()


def test_a_link_in_the_place_of_fs_is_not_mounted_on(store, layer, victim):
    path = kit.cache_of(layer) / "fs"
    path.rmdir()
    path.symlink_to(victim)
    box = store.create_rw_layer("box", layer.chain_id)
    with pytest.raises((OSError, layerstore.LayerStoreError)):
        box.mount()
    assert disk.mounts_below(victim) == [] and disk.mounts_below(store.root) == []
    assert kinds(store, layer) and store.repair(layer.chain_id) and store.verify() == []
    with box.mounted() as place:
        assert sorted(os.listdir(place)) == ["d", "h", "odd", "s", "x"]


def test_the_other_half_of_a_root_is_a_source(open_store, store, layer):
    other = open_store(driver="overlay2")
    there = other.register(TAR)
    for source in (there, other):
        write(kit.file_of(layer), 4096 + 1100, b"\1")
        assert [problem.kind for problem in store.repair(layer.chain_id, source)] == ["content"]
        assert store.verify() == []
    with open(os.path.join(there.metadata()["UpperDir"], "d/two"), "wb") as file:
        file.write(b"other")
    assert other.repair(there.chain_id, layer) and other.verify() == []
