"""The life of a layer in the store: registered, found again, shared, released, cleaned up."""

import io
import logging
import os
import re

import pytest
import recipes
import refused
import tarkit
from disk import disk_state, mounts_below
from driven import DRIVER, LAYERDB
from stored import UNKNOWN, BoomError, Failing, Trickle, driver_directories, tar_of
from tarkit import end, file

import layerstore
from layerstore import (
    CreateRWLayerOpts,
    LayerDoesNotExistError,
    LayerNotRetainedError,
    LayerStoreError,
)


def test_register_gives_ids_and_sizes(store):
    layer = store.register(tarkit.T1)
    assert (layer.chain_id, layer.diff_id) == (tarkit.T1_DIFF_ID, tarkit.T1_DIFF_ID)
    assert (layer.size, layer.diff_size) == (5, 5)


def test_the_same_tar_twice_is_one_layer_with_two_references(store, root, layerdb):
    first, second = store.register(tarkit.T1), store.register(tarkit.T1)
    assert first is not second
    assert first.cache_id == second.cache_id
    assert len(os.listdir(layerdb / "sha256")) == 1
    assert os.listdir(layerdb / "tmp") == []
    assert driver_directories(root) == [first.cache_id]
    assert len(os.listdir(root / DRIVER / "l")) == 1


def test_each_reference_is_released_once(store, root, layerdb):
    first, second = store.register(tarkit.T1), store.register(tarkit.T1)
    assert store.release(first) == []
    with pytest.raises(LayerNotRetainedError, match="layer not retained"):
        store.release(first)
    gone = store.release(second)
    assert gone == [(tarkit.T1_DIFF_ID, tarkit.T1_DIFF_ID, 5, 5)]
    assert (gone[0].chain_id, gone[0].size, gone[0].diff_size) == (tarkit.T1_DIFF_ID, 5, 5)
    assert store.release(second) == []
    assert driver_directories(root) == []
    assert os.listdir(layerdb / "sha256") == []


def test_an_unknown_parent_is_refused_before_a_byte_is_read(store, unchanged):
    store.register(tarkit.T2)
    source = Failing(tarkit.T1, 10**9)
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
    assert driver_directories(root) == []


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


def test_a_failure_in_a_fresh_store_leaves_only_its_scaffold(store, root, layerdb):
    before = disk_state(root)
    with pytest.raises(layerstore.TarFormatError):
        store.register(b"A" * 1024)
    added = set(disk_state(root)) - set(before)
    assert added <= {f"{LAYERDB}/tmp".encode()}
    assert os.listdir(root / DRIVER / "l") == []


def test_bytes_behind_the_end_are_part_of_the_layer(store):
    tar = tarkit.T1 + b"JUNK"
    layer = store.register(tar)
    assert layer.diff_id == tarkit.diff_id(tar)
    assert tar_of(layer) == tar


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
    "path": lambda tar, path: path, "text path": lambda tar, path: str(path),
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
    assert tar_of(layer) == bytes(1024)
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
    assert layerstore.Descriptor() == ("", "", 0, (), None, "")


# ---- what is there already -------------------------------------------------------------------------------
def test_a_register_of_what_exists_reads_its_source_to_the_end(store):
    store.register(tarkit.T1)
    reader, writer = os.pipe()
    with open(writer, "wb") as sink:
        sink.write(tarkit.T1 + b"JUNK")
    layer = store.register(reader)
    assert os.read(reader, 10) == b""
    os.close(reader)
    assert layer.diff_id == tarkit.diff_id(tarkit.T1 + b"JUNK")


# ---- counts of references after a failure ----------------------------------------------------------------
FAILURES = {
    "source raises": lambda s, p: s.register(Failing(tarkit.T2, 600), p),
    "garbage": lambda s, p: s.register(b"A" * 1024, p),
    "cut": lambda s, p: s.register(file("x", b"hello")[:514], p),
    "unhandled type": lambda s, p: s.register(file("x", typeflag=b"7") + end(), p),
    "breakout": lambda s, p: s.register(file("../x") + end(), p),
    "progress raises": lambda s, p: s.register(tarkit.T2, p, progress=lambda done: 1 / 0),
    "wrong source": lambda s, p: s.register(3.5, p),
    "init raises": lambda s, p: s.create_rw_layer("c", p, CreateRWLayerOpts(init_func=lambda path: 1 / 0)),
    "storage option": lambda s, p: s.create_rw_layer("c", p, CreateRWLayerOpts(storage_opt={"foo": "1"})),
    "storage size": lambda s, p: s.create_rw_layer("c", p, CreateRWLayerOpts(storage_opt={"size": "10M"})),
    "no size": lambda s, p: s.create_rw_layer("c", p, CreateRWLayerOpts(storage_opt={"size": "10x"})),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_gives_back_the_reference_to_the_parent(store, root, name):
    base = store.register(tarkit.T1)
    for _ in range(3):
        with pytest.raises((LayerStoreError, ArithmeticError, BoomError, TypeError, ValueError, OSError)):
            FAILURES[name](store, base.chain_id)
    assert [gone.chain_id for gone in base.release()] == [tarkit.T1_DIFF_ID]
    assert (driver_directories(root), store.map(), store.mounts()) == ([], {}, [])
    assert os.listdir(root / DRIVER / "l") == []
    assert os.listdir(root / LAYERDB / "tmp") == []


def test_a_layer_that_exists_gives_back_the_second_reference_to_its_parent(store):
    base = store.register(tarkit.T1)
    first, second = store.register(tarkit.T2, base.chain_id), store.register(tarkit.T2, base.chain_id)
    assert base.release() == []
    assert first.release() == []
    assert [gone.chain_id for gone in second.release()] == [tarkit.T2_ON_T1_CHAIN_ID, tarkit.T1_DIFF_ID]


def test_an_init_that_raises_frees_the_name_and_the_parent(store, root):
    base = store.register(tarkit.T1)
    with pytest.raises(BoomError):
        store.create_rw_layer("c", base.chain_id, CreateRWLayerOpts(init_func=lambda path: _raise(BoomError())))
    assert [name for name in os.listdir(root / DRIVER) if name.endswith("-init")] == []
    assert mounts_below(root) == []
    rw = store.create_rw_layer("c", base.chain_id)
    assert base.release() == []
    assert len(store.release_rw_layer(rw)) == 1


def _raise(error):
    raise error


def test_an_exception_that_is_no_error_passes_through_init_and_leaves_nothing(store, unchanged):
    base = store.register(tarkit.T1)
    store.create_rw_layer("warm", base.chain_id)
    with unchanged(), pytest.raises(KeyboardInterrupt):
        store.create_rw_layer("c", base.chain_id, CreateRWLayerOpts(init_func=lambda path: _raise(KeyboardInterrupt())))
    assert mounts_below(store.root) == []


# ---- releasing what will not go --------------------------------------------------------------------------
@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_a_layer_that_cannot_be_deleted_is_an_error_and_cleanup_finishes_it(store, root, stuck):
    base = store.register(tarkit.T1)
    child = store.register(tarkit.dir("a/") + file("a/x", b"x") + end(), base.chain_id)
    loosen = stuck(child)
    assert base.release() == []
    with pytest.raises(OSError):
        store.release(child)
    assert set(store.map()) == {base.chain_id}, "it is out of the map before it is deleted"
    names = os.listdir(root / LAYERDB / "sha256")
    removing = [name for name in names if name.endswith("-removing")]
    assert len(removing) == 1
    assert re.fullmatch(child.chain_id.encoded + "-[0-9a-f]{64}-removing", removing[0])
    assert store.release(child) == []
    loosen()
    store.cleanup()
    assert os.listdir(root / LAYERDB / "sha256") == [], "the base was released, and what needed it is gone"
    assert driver_directories(root) == []


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_a_layer_that_cannot_be_deleted_is_logged_by_release_and_log(store, stuck, caplog):
    layer = store.register(tarkit.T1)
    loosen = stuck(layer)
    with caplog.at_level(logging.INFO):
        layerstore.release_and_log(store, layer)
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.getMessage().startswith(f"Error releasing layer {layer.chain_id}: ")
    loosen()


def test_a_writable_layer_that_cannot_be_deleted_may_be_released_again(store, root, stuck):
    base = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", base.chain_id)
    rw.apply_diff(tarkit.T1)
    loosen = stuck(store.get_mount_id("c"))
    with pytest.raises(OSError):
        store.release_rw_layer(rw)
    assert store.mounts() == ["c"]
    assert base.release() == []
    loosen()
    assert [gone.chain_id for gone in store.release_rw_layer(rw)] == [base.chain_id]
    assert driver_directories(root) == []


# ---- words -----------------------------------------------------------------------------------------------
def test_what_is_no_ancestor_is_refused_in_mobys_words(store):
    one = store.register(tarkit.T1)
    two = store.register(tarkit.T2, one.chain_id)
    for wrong in (two.chain_id, UNKNOWN, "x"):
        with pytest.raises(Exception, match="is not a parent") as caught:
            two.tar_stream_from(wrong)
        text = f"layer ID '{wrong}' is not a parent of the specified layer: cannot provide diff to non-parent"
        assert str(caught.value) == text


def test_a_tar_that_differs_from_its_record_is_told_in_mobys_words(store, root):
    layer = store.register(tarkit.T1)
    (root / LAYERDB / "sha256" / layer.chain_id.encoded / "diff").write_text(tarkit.T2_DIFF_ID)
    store.close()
    with layerstore.Store(root) as again:
        with again.map()[layer.chain_id].tar_stream() as stream, pytest.raises(layerstore.CorruptLayerError) as caught:
            stream.read()
    assert str(caught.value).startswith(
        f"could not verify layer data for: {tarkit.T2_DIFF_ID}. This may be because internal files in the layer "
        "store were modified. Re-pulling or rebuilding this image may resolve the issue"
    )


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_all_bytes_are_delivered_before_a_tar_is_found_to_differ(store, root):
    one = store.register(file("f", b"hello") + end())
    two = store.register(file("f", b"hello", mtime=5) + end())
    db = root / LAYERDB / "sha256"
    record = "tar-split.json.gz"
    (db / one.chain_id.encoded / record).write_bytes((db / two.chain_id.encoded / record).read_bytes())
    got = b""
    with one.tar_stream() as stream, pytest.raises(layerstore.CorruptLayerError):
        while piece := stream.read(700):
            got += piece
    assert len(got) == 2048


@pytest.mark.parametrize(
    ("driver", "text"),
    [
        ("aufs", "ERROR: the aufs storage-driver has been deprecated and removed"),
        ("devicemapper", "ERROR: the devicemapper storage-driver has been deprecated and removed"),
        ("overlay", "ERROR: the overlay storage-driver has been deprecated and removed"),
        ("nonsense", "error initializing graphdriver: "),
        ("nonsense", ": nonsense")]
)
def test_a_driver_of_the_past_or_of_nobody_is_refused_by_name(root, driver, text):
    with pytest.raises(LayerStoreError) as caught:
        layerstore.Store(root, driver=driver)
    assert text in str(caught.value)


def test_the_name_of_a_missing_layer_is_told_as_moby_tells_it(store):
    for call in (store.get, store.verify, lambda chain: store.register(b"", chain)):
        with pytest.raises(LayerDoesNotExistError) as caught:
            call(UNKNOWN)
        assert str(caught.value).startswith("layer does not exist")


def test_an_empty_id_names_no_layer(store):
    with pytest.raises(LayerDoesNotExistError):
        store.get("")


# ---- wrong use -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong", [None, "text", 5, object(), tarkit.T1_DIFF_ID])
def test_what_is_no_layer_cannot_be_released(store, wrong):
    store.register(tarkit.T1)
    for call in (store.release, store.release_rw_layer):
        with pytest.raises((TypeError, AttributeError, LayerNotRetainedError)):
            call(wrong)
    assert len(store.map()) == 1


def test_handles_of_the_other_kind_are_refused(store):
    layer = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", layer.chain_id)
    for call, wrong in ((store.release, rw), (store.release_rw_layer, layer)):
        with pytest.raises((TypeError, AttributeError, LayerNotRetainedError)):
            call(wrong)
    assert (len(store.map()), store.mounts()) == (1, ["c"])


def test_a_writable_handle_of_another_store_is_not_retained_here(open_store, room):
    here, there = open_store(), open_store(room / "other")
    here.create_rw_layer("c")
    stranger = there.create_rw_layer("c")
    with pytest.raises(LayerNotRetainedError):
        here.release_rw_layer(stranger)
    assert here.release_rw_layer(there.create_rw_layer("unknown here")) == []
    assert (here.mounts(), sorted(there.mounts())) == (["c"], ["c", "unknown here"])


def test_the_empty_layer_is_no_layer_of_a_store(store):
    empty = layerstore.EMPTY_LAYER
    assert (empty.chain_id, empty.diff_id) == (layerstore.EMPTY_LAYER_DIFF_ID,) * 2
    assert (empty.parent, empty.size, empty.diff_size, empty.metadata()) == (None, 0, 0, {})
    for stream in (empty.tar_stream(), empty.tar_stream_from("")):
        with stream:
            assert stream.read() == bytes(1024)
    with pytest.raises(Exception, match="can't get parent tar stream of an empty layer"):
        empty.tar_stream_from(UNKNOWN)
    assert store.map() == {}


def test_a_tar_of_zeros_is_the_empty_layer(store):
    zeros = store.register(bytes(1024))
    assert (zeros.diff_id, zeros.size) == (layerstore.EMPTY_LAYER_DIFF_ID, 0)
