"""layerdb by itself and as the store writes it: files, modes, transactions, listings, removal."""

import gzip
import io
import json
import os
import shutil
import stat

import pytest
import tarkit
from disk import changed, disk_state, inventory
from driven import DRIVER, LAYERDB

import layerstore
from layerstore import CreateRWLayerOpts, Descriptor, FileMetadataStore, InvalidDigestError

ONE, TWO, THREE = (f"sha256:{digit * 64}" for digit in "123")
HEX = "0123456789abcdef" * 4
FULL = {"diff": ONE, "size": "5", "cache-id": HEX}


@pytest.fixture
def db(room):
    return FileMetadataStore(room / "layerdb")


def put(room, chain, **files):
    """A layer directory with just these files."""
    place = room / "layerdb" / "sha256" / chain.removeprefix("sha256:")
    place.mkdir(parents=True)
    for name, text in files.items():
        (place / name.replace("_", "-")).write_bytes(text if isinstance(text, bytes) else text.encode())
    return place


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.mark.only("overlay2", "of the tar-split record")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_files_and_modes_of_a_layer_are_dockers(open_store, root, umask):
    before = os.umask(umask)
    try:
        layer = open_store().register(tarkit.T1)
    finally:
        os.umask(before)
    db = root / LAYERDB
    place = db / "sha256" / layer.chain_id.encoded
    assert sorted(os.listdir(place)) == ["cache-id", "diff", "size", "tar-split.json.gz"]
    assert (place / "diff").read_text() == tarkit.T1_DIFF_ID
    assert (place / "size").read_text() == "5"
    assert (place / "cache-id").read_text() == layer.cache_id
    assert len(layer.cache_id) == 64
    assert os.listdir(db / "tmp") == []
    assert mode(db) == 0o700
    assert mode(place) == 0o700
    if umask == 0o022:
        assert {mode(place / name) for name in os.listdir(place)} == {0o644}
        assert (mode(db / "sha256"), mode(db / "tmp")) == (0o755, 0o755)


def test_a_child_names_its_parent(store, root):
    base = store.register(tarkit.T1)
    child = store.register(tarkit.T2, base.chain_id)
    assert child.chain_id == tarkit.T2_ON_T1_CHAIN_ID
    place = root / LAYERDB / "sha256" / child.chain_id.encoded
    assert (place / "parent").read_text() == tarkit.T1_DIFF_ID
    assert (place / "size").read_text() == "4"


def test_files_and_modes_of_a_mount_are_dockers(store, root):
    base = store.register(tarkit.T1)
    store.create_rw_layer("c1", base.chain_id, CreateRWLayerOpts(init_func=lambda path: None))
    store.create_rw_layer("c2", base.chain_id)
    store.create_rw_layer("c3")
    mounts = root / LAYERDB / "mounts"
    c1, c2, c3 = mounts / "c1", mounts / "c2", mounts / "c3"
    mount_id = (c1 / "mount-id").read_text()
    assert len(mount_id) == 64
    assert (c1 / "init-id").read_text() == mount_id + "-init"
    assert (c1 / "parent").read_text() == tarkit.T1_DIFF_ID
    assert sorted(os.listdir(c2)) == ["mount-id", "parent"]
    assert os.listdir(c3) == ["mount-id"]
    assert {mode(mounts), mode(c1), mode(c2)} == {0o755}
    assert {mode(path) for path in c1.iterdir()} == {0o644}


@pytest.mark.parametrize(
    ("name", "content", "loads"),
    [
        ("size", b"5\n", False), ("size", b" 5", False), ("size", b"x", False), ("size", b"", False),
        ("size", b"5.0", False), ("size", b"1_000", False), ("size", b"99999999999999999999", False),
        ("cache-id", None, True), ("cache-id", b"", False), ("cache-id", b" \n", False),
        ("diff", b"  " + tarkit.T1_DIFF_ID.encode() + b"\n", True), ("diff", b"", False),
        ("diff", b"sha256:abc", False), ("parent", b"", False), ("parent", b"sha256:" + b"9" * 64, False),
        ("descriptor.json", b"{", False), ("descriptor.json", b"{}", True),
        ("descriptor.json", b'{"mediaType":"m","SIZE":3,"digest":"d","unknown":[1]}', True)]
)
def test_a_restart_loads_what_can_be_read_and_touches_nothing(store, open_store, root, name, content, loads):
    layer = store.register(tarkit.T1)
    store.close()
    place = root / LAYERDB / "sha256" / layer.chain_id.encoded
    if content is None:
        content = (place / name).read_bytes() + b"\n"
    (place / name).write_bytes(content)
    before = disk_state(root)
    again = open_store()
    assert (layer.chain_id in again.map()) is loads
    assert changed(before, disk_state(root)) == []
    if loads:
        assert again.get(layer.chain_id).cache_id == layer.cache_id


def test_sha256_being_a_file_fails_the_commit_and_leaves_no_driver_directory(store, root, unchanged):
    db = root / LAYERDB
    (db / "tmp").mkdir(exist_ok=True)
    (db / "sha256").write_text("in the way")
    with unchanged(), pytest.raises(NotADirectoryError):
        store.register(tarkit.T1)


def test_tmp_being_a_file_fails_register_until_it_is_gone(store, root, unchanged):
    tmp = root / LAYERDB / "tmp"
    if tmp.exists():
        tmp.rmdir()
    tmp.write_text("in the way")
    with unchanged(), pytest.raises(NotADirectoryError):
        store.register(tarkit.T1)
    tmp.unlink()
    assert store.register(tarkit.T1).diff_size == 5


@pytest.mark.parametrize("damage", ["size", "emptied", "no diff directory"])
def test_a_broken_layer_is_replaced_when_it_is_registered_again(store, open_store, root, damage):
    layer = store.register(tarkit.T1)
    child = store.register(tarkit.T2, layer.chain_id)
    store.create_rw_layer("c", child.chain_id).apply_diff(tarkit.file("mine", b"m") + tarkit.end())
    store.close()
    db = root / LAYERDB / "sha256" / layer.chain_id.encoded
    if damage == "size":
        (db / "size").write_text("x")
    elif damage == "emptied":
        for path in db.iterdir():
            path.unlink()
    else:
        shutil.rmtree(root / DRIVER / layer.cache_id)
    again = open_store()
    assert again.verify() != []
    new = again.register(tarkit.T1)
    assert new.cache_id != layer.cache_id
    again.cleanup()
    assert again.verify() == []
    assert new.tar_stream().read() == tarkit.T1
    assert again.get(child.chain_id).tar_stream().read() == tarkit.T2
    with again.get_rw_layer("c").mounted() as path:
        assert {"mine", "a", "b"} <= set(os.listdir(path)), os.listdir(path)


def test_strange_directories_beside_the_layers_are_ignored(store, open_store, root):
    layer = store.register(tarkit.T1)
    store.close()
    db = root / LAYERDB / "sha256"
    (db / "foo").mkdir()
    (db / HEX[:-1]).mkdir()
    (db / HEX.upper()).mkdir()
    (db / HEX).write_text("a plain file")
    (db / HEX.replace("0", "f")).symlink_to(layer.chain_id.encoded)
    assert list(open_store().map()) == [layer.chain_id]
    assert FileMetadataStore(root / LAYERDB).list() == ([layer.chain_id], [])


def test_an_interrupted_transaction_is_left_alone_at_start(store, open_store, root, unchanged):
    store.register(tarkit.T1)
    store.close()
    (root / LAYERDB / "tmp/write-set-1").mkdir()
    with unchanged():
        assert len(open_store().map()) == 1


# ---- FileMetadataStore, alone ---------------------------------------------------------------------
def test_a_transaction_becomes_a_layer_directory_in_one_rename(db, room):
    transaction = db.start_transaction()
    inside = os.path.basename(str(transaction))
    assert os.path.dirname(str(transaction)) == str(room / "layerdb/tmp")
    assert inside.startswith("write-set-")
    assert mode(str(transaction)) == 0o700
    transaction.set_size(5)
    transaction.set_diff_id(ONE)
    transaction.set_cache_id(HEX)
    transaction.set_parent(TWO)
    transaction.set_os("linux")
    with transaction.tar_split_writer(True) as writer:
        writer.write(b'{"type":2,"payload":"QQ==","position":0}\n')
    assert not (room / "layerdb/sha256").exists()
    transaction.commit(THREE)
    assert os.listdir(room / "layerdb/tmp") == []
    place = room / "layerdb/sha256" / THREE.removeprefix("sha256:")
    assert sorted(os.listdir(place)) == ["cache-id", "diff", "parent", "size", "tar-split.json.gz"]
    assert (db.get_size(THREE), db.get_diff_id(THREE)) == (5, ONE)
    assert (db.get_cache_id(THREE), db.get_parent(THREE), db.get_os(THREE)) == (HEX, TWO, "linux")
    assert db.get_descriptor(THREE) == Descriptor()
    with db.tar_split_reader(THREE) as reader:
        assert reader.read() == b'{"type":2,"payload":"QQ==","position":0}\n'


def test_a_cancelled_transaction_leaves_nothing(db, room):
    first = db.start_transaction()
    first.cancel()
    before = inventory(room)
    transaction = db.start_transaction()
    transaction.set_size(1)
    transaction.cancel()
    transaction.cancel()
    assert inventory(room) == before


def test_cancel_after_commit_takes_nothing_back(db, room):
    transaction = db.start_transaction()
    transaction.set_size(7)
    transaction.commit(ONE)
    transaction.cancel()
    assert db.get_size(ONE) == 7


def test_a_second_set_overwrites(db):
    transaction = db.start_transaction()
    transaction.set_size(123456)
    transaction.set_size(7)
    transaction.commit(ONE)
    assert db.get_size(ONE) == 7


@pytest.mark.parametrize("size", [0, 1, -1, 2**63 - 1])
def test_sizes_of_64_bits_come_back(db, size):
    transaction = db.start_transaction()
    transaction.set_size(size)
    transaction.commit(ONE)
    assert db.get_size(ONE) == size


def test_an_empty_transaction_commits_an_empty_directory(db, room):
    db.start_transaction().commit(ONE)
    assert os.listdir(room / "layerdb/sha256" / ONE.removeprefix("sha256:")) == []
    with pytest.raises(FileNotFoundError):
        db.get_size(ONE)


def test_commit_onto_a_layer_fails_and_leaves_both(db, room):
    put(room, ONE, size="1")
    transaction = db.start_transaction()
    transaction.set_size(2)
    with pytest.raises(OSError):
        transaction.commit(ONE)
    assert db.get_size(ONE) == 1
    assert os.path.isdir(str(transaction))
    transaction.cancel()


def test_a_raw_tar_split_writer_copies_gzip_as_it_is(db, room):
    packed = gzip.compress(b"lines\n")
    transaction = db.start_transaction()
    with transaction.tar_split_writer(False) as writer:
        writer.write(packed)
    transaction.commit(ONE)
    assert (room / "layerdb/sha256" / ONE.removeprefix("sha256:") / "tar-split.json.gz").read_bytes() == packed
    with db.tar_split_reader(ONE) as reader:
        assert reader.read() == b"lines\n"


def test_the_descriptor_is_compact_json_in_gos_order(db, room):
    descriptor = Descriptor("application/a+b", ONE, 123, ("https://x/<y>&z",), {"b": "2", "a": "1"})
    transaction = db.start_transaction()
    transaction.set_descriptor(descriptor)
    transaction.commit(TWO)
    place = room / "layerdb/sha256" / TWO.removeprefix("sha256:") / "descriptor.json"
    assert place.read_text() == (
        '{"mediaType":"application/a+b","size":123,"digest":"' + ONE + '",'
        '"urls":["https://x/\\u003cy\\u003e\\u0026z"],"annotations":{"a":"1","b":"2"}}'
    )
    assert db.get_descriptor(TWO) == descriptor


def test_a_descriptor_reads_keys_in_any_case_and_ignores_others(db, room):
    text = json.dumps({"MEDIATYPE": "m", "Size": 4, "digest": ONE, "platform": {"os": "linux"}, "x": 1})
    put(room, ONE, **{"descriptor.json": text})
    assert db.get_descriptor(ONE)[:3] == ("m", ONE, 4)


@pytest.mark.parametrize("getter", ["get_size", "get_diff_id", "get_cache_id", "tar_split_reader"])
def test_what_is_not_there_is_not_found(db, getter):
    with pytest.raises(FileNotFoundError):
        getattr(db, getter)(ONE)


def test_a_missing_parent_or_descriptor_is_none(db):
    assert db.get_parent(ONE) == ""
    assert db.get_descriptor(ONE) == Descriptor()


@pytest.mark.parametrize("name", ["parent", "diff"])
def test_an_empty_digest_file_is_an_error_not_an_absence(db, room, name):
    put(room, ONE, **{name: ""})
    getter = {"parent": db.get_parent, "diff": db.get_diff_id}[name]
    with pytest.raises(InvalidDigestError):
        getter(ONE)


@pytest.mark.parametrize("content", ["5\n", " 5", "", "x", "0x5", "5L", "٣"])
def test_a_size_is_not_trimmed(db, room, content):
    put(room, ONE, size=content)
    with pytest.raises((ValueError, layerstore.LayerStoreError)):
        db.get_size(ONE)


def test_digests_and_ids_are_trimmed(db, room):
    put(room, ONE, diff=f"\t{TWO} \n", parent=f"{THREE}\n", cache_id="\n anything \n")
    assert (db.get_diff_id(ONE), db.get_parent(ONE), db.get_cache_id(ONE)) == (TWO, THREE, "anything")


def test_a_blank_cache_id_is_invalid(db, room):
    put(room, ONE, cache_id=" \n")
    with pytest.raises((ValueError, layerstore.LayerStoreError), match="cache id"):
        db.get_cache_id(ONE)


VALID_IDS = [HEX, HEX + "-init"]
INVALID_IDS = [HEX[:16], HEX + "ab", HEX[:-1] + "F", HEX[:-1] + "g", "", "-init", HEX + "-init-init", HEX + "-INIT"]


@pytest.mark.parametrize(("text", "valid"), [(i, True) for i in VALID_IDS] + [(i, False) for i in INVALID_IDS])
def test_mount_and_init_ids_are_64_hex_and_perhaps_init(db, text, valid):
    db.set_mount_id("c", text)
    db.set_init_id("c", text)
    if valid:
        assert (db.get_mount_id("c"), db.get_init_id("c")) == (text, text)
        return
    for getter, words in ((db.get_mount_id, "mount id"), (db.get_init_id, "init id")):
        with pytest.raises((ValueError, layerstore.LayerStoreError), match=f"invalid {words} value"):
            getter("c")


def test_mount_files_are_trimmed_and_the_optional_ones_may_miss(db, room):
    db.set_mount_id("c", HEX + "\n")
    assert db.get_mount_id("c") == HEX
    assert db.get_init_id("c") == ""
    assert db.get_mount_parent("c") == ""
    db.set_mount_parent("c", ONE)
    assert db.get_mount_parent("c") == ONE
    (room / "layerdb/mounts/c/parent").write_text("")
    with pytest.raises(InvalidDigestError):
        db.get_mount_parent("c")
    with pytest.raises(FileNotFoundError):
        db.get_mount_id("other")


def test_list_is_sorted_and_looks_at_names_only(db, room):
    for chain in (THREE, ONE, TWO):
        put(room, chain)
    put(room, ONE + "-abc-removing")
    put(room, "sha256:mounts")
    for name in ("zz", "aa", "any name"):
        (room / "layerdb/mounts" / name).mkdir(parents=True)
    (room / "layerdb/mounts/file").write_text("")
    assert db.list() == ([ONE, TWO, THREE], ["aa", "any name", "zz"])


def test_list_of_a_fresh_layerdb_is_empty(db):
    assert db.list() == ([], [])


def test_remove_takes_one_layer_and_leaves_the_rest(db, room):
    put(room, ONE, **FULL)
    put(room, TWO, **FULL)
    db.remove(ONE)
    assert db.list()[0] == [TWO]


def test_remove_mount_takes_one_mount_and_forgives_absence(db):
    db.set_mount_id("a", HEX)
    db.set_mount_id("b", HEX)
    db.remove_mount("a")
    db.remove_mount("a")
    assert db.list()[1] == ["b"]


def test_the_layerdb_is_made_closed_to_others(room):
    FileMetadataStore(room / LAYERDB)
    assert [mode(room / p) for p in ("image", f"image/{DRIVER}", LAYERDB)] == [0o700] * 3


def test_a_tar_split_that_is_no_gzip_is_told_at_once(db, room):
    put(room, ONE, **{"tar-split.json.gz": "not gzip"})
    with pytest.raises((layerstore.LayerStoreError, OSError)):
        db.tar_split_reader(ONE)


def test_roots_may_be_text_bytes_or_paths(room):
    for kind in (str, os.fsencode, lambda p: p):
        assert FileMetadataStore(kind(room / "db")).list() == ([], [])


# ---- descriptors through the store -----------------------------------------------------------------
def test_a_registered_descriptor_is_written_and_read_back(store, open_store, root):
    descriptor = Descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", ONE, 123)
    layer = store.register_with_descriptor(io.BytesIO(tarkit.T1), "", None, descriptor)
    place = root / LAYERDB / "sha256" / layer.chain_id.encoded / "descriptor.json"
    assert place.read_text() == (
        '{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","size":123,"digest":"' + ONE + '"}'
    )
    assert layer.descriptor == descriptor
    store.close()
    assert open_store().get(layer.chain_id).descriptor == descriptor


@pytest.mark.parametrize("descriptor", [None, Descriptor(), Descriptor("type only", "", 5)])
def test_a_descriptor_without_digest_is_not_written(store, root, descriptor):
    layer = store.register_with_descriptor(tarkit.T1, "", None, descriptor)
    assert not (root / LAYERDB / "sha256" / layer.chain_id.encoded / "descriptor.json").exists()


def test_the_first_descriptor_of_a_layer_is_kept(store):
    first, second = Descriptor("m", ONE, 1), Descriptor("m", TWO, 2)
    store.register_with_descriptor(tarkit.T1, "", None, first)
    assert store.register_with_descriptor(tarkit.T1, "", None, second).descriptor == first
