"""The life of a layer in the store: registered, found again, shared, released, cleaned up."""

import io
import logging
import os

import pytest
import recipes
import refused
import tarkit
from disk import changed, disk_state
from tarkit import end, file

import layerstore
from layerstore import (
    CreateRWLayerOpts,
    LayerDoesNotExistError,
    LayerNotRetainedError,
    MountDoesNotExistError,
    MountNameConflictError,
)

UNKNOWN = "sha256:" + "1" * 64


class Failing:
    """A source that raises after so many bytes."""

    def __init__(self, data, after, error):
        self.stream, self.left, self.error = io.BytesIO(data), after, error
        self.asked = 0

    def read(self, n):
        self.asked += 1
        if self.left <= 0:
            raise self.error
        piece = self.stream.read(min(n, self.left))
        self.left -= len(piece)
        return piece


class BoomError(Exception):
    pass


@pytest.fixture
def db(root):
    return root / "image/overlay2/layerdb"


def drivers(root):
    return sorted(name for name in os.listdir(root / "overlay2") if len(name) >= 64)


def test_register_gives_ids_and_sizes(store):
    layer = store.register(tarkit.T1)
    assert (layer.chain_id, layer.diff_id) == (tarkit.T1_DIFF_ID, tarkit.T1_DIFF_ID)
    assert (layer.size, layer.diff_size) == (5, 5)


def test_the_same_tar_twice_is_one_layer_with_two_references(store, root, db):
    first, second = store.register(tarkit.T1), store.register(tarkit.T1)
    assert first is not second
    assert first.cache_id == second.cache_id
    assert len(os.listdir(db / "sha256")) == 1
    assert os.listdir(db / "tmp") == []
    assert drivers(root) == [first.cache_id]
    assert len(os.listdir(root / "overlay2/l")) == 1


def test_each_reference_is_released_once(store, root, db):
    first, second = store.register(tarkit.T1), store.register(tarkit.T1)
    assert store.release(first) == []
    with pytest.raises(LayerNotRetainedError, match="layer not retained"):
        store.release(first)
    gone = store.release(second)
    assert gone == [(tarkit.T1_DIFF_ID, tarkit.T1_DIFF_ID, 5, 5)]
    assert (gone[0].chain_id, gone[0].size, gone[0].diff_size) == (tarkit.T1_DIFF_ID, 5, 5)
    assert store.release(second) == []
    assert drivers(root) == []
    assert os.listdir(db / "sha256") == []


def test_an_unknown_parent_is_refused_before_a_byte_is_read(store, unchanged):
    store.register(tarkit.T2)
    source = Failing(tarkit.T1, 10**9, BoomError())
    with unchanged(), pytest.raises(LayerDoesNotExistError):
        store.register(source, UNKNOWN)
    assert source.asked == 0


def test_a_diamond_is_released_from_the_top(store):
    one = store.register(tarkit.T1)
    two = store.register(tarkit.T2, one.chain_id)
    left = store.register(file("l", b"l") + end(), two.chain_id)
    right = store.register(file("r", b"r") + end(), two.chain_id)
    assert one.release() == []
    assert two.release() == []
    assert [m.chain_id for m in store.release(right)] == [right.chain_id]
    assert [m.chain_id for m in store.release(left)] == [left.chain_id, two.chain_id, one.chain_id]
    assert store.map() == {}


@pytest.mark.parametrize("after", [0, 1, 600, 1024, 1029, 2559, 2560])
def test_a_source_that_raises_leaves_nothing(store, unchanged, root, after):
    base = store.register(tarkit.T2)
    error = BoomError(after)
    with unchanged(), pytest.raises(BoomError) as caught:
        store.register(Failing(tarkit.T1, after, error), base.chain_id)
    assert caught.value is error
    assert len(store.release(base)) == 1
    assert drivers(root) == []


@pytest.mark.parametrize("name", refused.BAD)
def test_a_malformed_tar_is_refused_with_its_offset_and_leaves_nothing(store, unchanged, name):
    tar, first, last = refused.BAD[name]()
    base = store.register(tarkit.T2)
    with unchanged(), pytest.raises(layerstore.TarFormatError) as caught:
        store.register(tar, base.chain_id)
    assert first <= caught.value.offset <= last
    assert [m.chain_id for m in base.release()] == [tarkit.T2_DIFF_ID]


@pytest.mark.parametrize("name", refused.UNSUPPORTED)
def test_an_entry_of_no_kind_is_refused_with_its_number(store, unchanged, name):
    tar, code = refused.UNSUPPORTED[name]()
    base = store.register(tarkit.T2)
    error = (layerstore.NotSupportedError, layerstore.TarFormatError)
    with unchanged(), pytest.raises(error, match=f"unhandled tar header type {code}"):
        store.register(tar, base.chain_id)


def test_a_failure_in_a_fresh_store_leaves_only_its_scaffold(store, root, db):
    before = disk_state(root)
    with pytest.raises(layerstore.TarFormatError):
        store.register(b"A" * 1024)
    added = set(disk_state(root)) - set(before)
    assert added <= {b"image/overlay2/layerdb/tmp"}
    assert os.listdir(root / "overlay2/l") == []


def test_bytes_behind_the_end_are_part_of_the_layer(store):
    tar = tarkit.T1 + b"JUNK"
    layer = store.register(tar)
    assert layer.diff_id == tarkit.diff_id(tar)
    with layer.tar_stream() as stream:
        assert stream.read() == tar


def test_a_restart_finds_everything(store, open_store, root):
    one = store.register(tarkit.T1)
    two = store.register(tarkit.T2, one.chain_id)
    rw = store.create_rw_layer("c", two.chain_id)
    path = rw.mount()
    rw.unmount()
    facts = [(x.chain_id, x.diff_id, x.size, x.diff_size, x.cache_id) for x in (one, two)]
    store.close()
    again = open_store()
    back = [again.get(x[0]) for x in facts]
    assert [(x.chain_id, x.diff_id, x.size, x.diff_size, x.cache_id) for x in back] == facts
    assert back[1].parent.chain_id == one.chain_id
    assert back[0].parent is None
    assert again.mounts() == ["c"]
    with pytest.raises(MountNameConflictError, match="mount already exists with name"):
        again.create_rw_layer("c", two.chain_id)
    rw = again.get_rw_layer("c")
    assert rw.mount() == path
    rw.unmount()
    assert back[0].release() == []
    assert back[1].release() == []
    assert [m.chain_id for m in again.release_rw_layer(rw)] == [two.chain_id, one.chain_id]
    assert drivers(root) == []
    assert again.map() == {}


def test_opening_touches_nothing(store, open_store, root):
    one = store.register(tarkit.T1)
    store.create_rw_layer("c", one.chain_id)
    store.close()
    before = disk_state(root, times=True)
    open_store()
    assert changed(before, disk_state(root, times=True)) == []


def test_a_restored_layer_stays_until_it_is_taken_and_released(store, open_store):
    chain = store.register(tarkit.T1).chain_id
    store.close()
    again = open_store()
    assert chain in again.map()
    assert [m.chain_id for m in again.get(chain).release()] == [chain]


def test_a_corrupt_layer_hides_its_children_and_nothing_else(store, open_store, root, db):
    one = store.register(tarkit.T1)
    two = store.register(tarkit.T2, one.chain_id)
    three = store.register(file("x", b"x") + end(), two.chain_id)
    other = store.register(file("y", b"y") + end())
    store.create_rw_layer("on three", three.chain_id)
    store.create_rw_layer("on other", other.chain_id)
    store.close()
    (db / "sha256" / two.chain_id.encoded / "size").write_text("x")
    before = disk_state(root)
    again = open_store()
    assert set(again.map()) == {one.chain_id, other.chain_id}
    assert again.mounts() == ["on other"]
    for hidden in (two, three):
        with pytest.raises(LayerDoesNotExistError):
            again.get(hidden.chain_id)
    with pytest.raises(MountDoesNotExistError):
        again.get_rw_layer("on three")
    assert changed(before, disk_state(root)) == []


def test_cleanup_finishes_an_interrupted_removal(store, open_store, root, db):
    layer = store.register(tarkit.T1)
    keep = store.register(tarkit.T2)
    store.close()
    place = db / "sha256" / layer.chain_id.encoded
    place.rename(place.with_name(place.name + "-0123-removing"))
    again = open_store()
    assert set(again.map()) == {keep.chain_id}
    again.cleanup()
    assert os.listdir(db / "sha256") == [keep.chain_id.encoded]
    assert drivers(root) == [keep.cache_id]
    assert len(os.listdir(root / "overlay2/l")) == 1


def test_cleanup_removes_what_nobody_owns_and_nothing_else(store, root, db):
    keep = store.register(tarkit.T1)
    store.create_rw_layer("c", keep.chain_id, CreateRWLayerOpts(init_func=lambda path: None))
    before = disk_state(root)
    stray = "f" * 64
    (root / "overlay2" / stray / "diff").mkdir(parents=True)
    (root / "overlay2" / stray / "link").write_text("A" * 26)
    (root / "overlay2/l" / ("A" * 26)).symlink_to(f"../{stray}/diff")
    (root / "overlay2/l" / ("B" * 26)).symlink_to("../gone/diff")
    (db / "tmp/write-set-77").mkdir()
    (db / "tmp/write-set-77/size").write_text("1")
    store.cleanup()
    assert changed(before, disk_state(root)) == []


def test_cleanup_keeps_what_strangers_put_beside_it(store, root):
    """Not ids of ours, so not ours to take."""
    store.register(tarkit.T1)
    for path in ("overlay2/lost+found", "image/overlay2/imagedb", "containers"):
        (root / path).mkdir()
    (root / "image/overlay2/repositories.json").write_text("{}")
    before = disk_state(root)
    store.cleanup()
    assert changed(before, disk_state(root)) == []


def test_cleanup_spares_layers_that_did_not_load(store, open_store, root, db):
    layer = store.register(tarkit.T1)
    store.close()
    (db / "sha256" / layer.chain_id.encoded / "size").write_text("x")
    before = disk_state(root)
    open_store().cleanup()
    assert changed(before, disk_state(root)) == []


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_cleanup_skips_a_removal_that_names_no_cache_id(store, db, content):
    keep = store.register(tarkit.T1)
    place = db / "sha256" / ("3" * 64 + "-9-removing")
    place.mkdir()
    if content is not None:
        (place / "cache-id").write_text(content)
    store.cleanup()
    assert keep.chain_id in store.map()
    assert store.verify(keep.chain_id) == []


@pytest.mark.parametrize("escape", ["..", ".", "../victim", "l", "/etc"])
def test_cleanup_never_follows_a_planted_cache_id_out_of_the_driver(store, root, db, victim, escape):
    keep = store.register(tarkit.T1)
    place = db / "sha256" / ("3" * 64 + "-9-removing")
    place.mkdir()
    (place / "cache-id").write_text(escape)
    store.cleanup()
    assert store.verify(keep.chain_id) == []
    with keep.tar_stream() as stream:
        assert stream.read() == tarkit.T1


def test_map_is_a_copy(store):
    layer = store.register(tarkit.T1)
    store.map().clear()
    assert set(store.map()) == {layer.chain_id}


def test_progress_counts_up_to_the_tar(store):
    seen = []
    tar = file("a", recipes.noise(3 << 20)) + end()
    store.register(io.BytesIO(tar), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == len(tar)


def test_an_exception_in_progress_stops_and_leaves_nothing(store, unchanged):
    def progress(done):
        raise BoomError(done)

    store.register(tarkit.T2)
    with unchanged(), pytest.raises(BoomError):
        store.register(io.BytesIO(file("a", recipes.noise(3 << 20)) + end()), progress=progress)


SOURCES = {
    "bytes": lambda tar, path: tar,
    "bytearray": lambda tar, path: bytearray(tar),
    "memoryview": lambda tar, path: memoryview(tar),
    "path": lambda tar, path: path,
    "text path": lambda tar, path: str(path),
    "BytesIO": lambda tar, path: io.BytesIO(tar),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_tar_may_come_from_anything(store, room, kind):
    path = room / "tar"
    path.write_bytes(tarkit.T1)
    assert store.register(SOURCES[kind](tarkit.T1, path)).diff_id == tarkit.T1_DIFF_ID


@pytest.mark.parametrize("kind", ["file", "unbuffered", "descriptor"])
def test_an_open_file_is_read_from_where_it_stands(store, room, kind):
    path = room / "tar"
    path.write_bytes(b"skip this" + tarkit.T1)
    with open(path, "rb", buffering=0 if kind == "unbuffered" else -1) as stream:
        stream.seek(9)
        source = stream.fileno() if kind == "descriptor" else stream
        assert store.register(source).diff_id == tarkit.T1_DIFF_ID


def test_a_buffered_file_that_was_read_from_gives_what_is_left(store, room):
    """The file object has read ahead: its own position counts, not the descriptor's."""
    path = room / "tar"
    path.write_bytes(b"skip this" + tarkit.T1)
    with open(path, "rb") as stream:
        assert stream.read(9) == b"skip this"
        assert store.register(stream).diff_id == tarkit.T1_DIFF_ID


def test_a_pipe_and_a_source_of_single_bytes(store):
    reader, writer = os.pipe()
    with open(reader, "rb") as source, open(writer, "wb") as sink:
        sink.write(tarkit.T1)
        sink.close()
        assert store.register(source.fileno()).diff_id == tarkit.T1_DIFF_ID

    class Trickle(io.BytesIO):
        def read(self, n=-1):
            return super().read(1)

    assert store.register(Trickle(tarkit.T2)).diff_id == tarkit.T2_DIFF_ID


@pytest.mark.parametrize("os_name", [None, "", "linux"])
def test_the_hosts_os_is_linux(store, os_name):
    assert store.register(tarkit.T1, "", os_name).os == "linux"


def test_release_and_log_never_raises(store, caplog):
    layer = store.register(tarkit.T1)
    keep = store.get(layer.chain_id)
    with caplog.at_level(logging.INFO):
        layerstore.release_and_log(store, layer)
        layerstore.release_and_log(store, layer)
        layerstore.release_and_log(store, keep)
        layerstore.release_and_log(store, keep)
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert errors == [f"Error releasing layer {layer.chain_id}: layer not retained: {layer.chain_id}"]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.INFO] == [
        f"Layer {layer.chain_id} cleaned up"
    ]


def test_log_release_metadata_says_one_line_a_layer(caplog):
    records = [layerstore.Metadata(UNKNOWN, UNKNOWN, 1, 1)] * 2
    with caplog.at_level(logging.INFO):
        layerstore.log_release_metadata(records)
    assert [r.getMessage() for r in caplog.records] == [f"Layer {UNKNOWN} cleaned up"] * 2


def test_the_empty_layer_registers_like_any_other(store):
    layer = store.register(bytes(1024))
    assert layer.diff_id == layer.chain_id == layerstore.EMPTY_LAYER_DIFF_ID
    assert (layer.size, layer.parent) == (0, None)
    with layer.tar_stream() as stream:
        assert stream.read() == bytes(1024)
    child = store.register(bytes(1024), layer.chain_id)
    assert child.chain_id == "sha256:170b376f64fb30995c140276be3d71dfb256b308d86183ca3b22aa93a79ad548"


def test_a_store_closes_at_the_end_of_its_with_block(root):
    with layerstore.Store(root) as store:
        assert store.root == str(root)
        chain = store.register(tarkit.T1).chain_id
    with layerstore.Store(os.fsencode(root)) as store:
        assert chain in store.map()


def test_values_are_named_tuples_and_print_as_docker_does():
    kinds = layerstore.ChangeKind
    assert [str(kind) for kind in (kinds.MODIFY, kinds.ADD, kinds.DELETE)] == ["C", "A", "D"]
    assert [int(kind) for kind in kinds] == [0, 1, 2]
    assert str(layerstore.Change("/etc/hosts", kinds.ADD)) == "A /etc/hosts"
    assert layerstore.CreateRWLayerOpts() == ("", None, None)
    assert layerstore.Descriptor() == ("", "", 0, (), None)
