"""A reference to a read-only layer: what it says, its tar, its tar from another layer, its end."""

import io
import os
import tarfile

import pytest
import tarkit
from disk import changed, disk_state, mounts_below
from driven import DRIVER, FILES, LAYERDB
from stored import tar_of
from tarkit import end, file

import layerstore
from layerstore import CorruptLayerError, Layer, LayerNotRetainedError, LayerStoreError


@pytest.fixture
def chain(store):
    """Three layers; the second removes a/f and hides d."""
    one = store.register(tarkit.T1)
    two = store.register(tarkit.T2, one.chain_id)
    three = store.register(file("c", b"three!") + end(), two.chain_id)
    return one, two, three


def names(stream):
    with stream, tarfile.open(fileobj=io.BytesIO(stream.read())) as tar:
        return [member.name for member in tar]


def test_a_layer_says_what_it_is(chain):
    one, two, three = chain
    assert (one.chain_id, one.diff_id) == (tarkit.T1_DIFF_ID, tarkit.T1_DIFF_ID)
    assert (two.chain_id, two.diff_id) == (tarkit.T2_ON_T1_CHAIN_ID, tarkit.T2_DIFF_ID)
    assert [layer.size for layer in chain] == [5, 9, 15]
    assert [layer.diff_size for layer in chain] == [5, 4, 6]
    assert one.parent is None
    assert [two.parent.chain_id, three.parent.chain_id] == [one.chain_id, two.chain_id]
    assert three.parent.parent.parent is None
    assert one.os == "linux"
    assert len({layer.cache_id for layer in chain}) == 3
    assert all(isinstance(layer, Layer) for layer in (one, two.parent))
    assert type(one.chain_id) is layerstore.ChainID
    assert type(one.diff_id) is layerstore.DiffID


def test_two_references_of_one_layer_are_different_objects(store, chain):
    again = store.get(chain[0].chain_id)
    assert again is not chain[0]
    assert again != chain[0]
    assert again.cache_id == chain[0].cache_id
    assert again.release() == []


def test_a_parent_is_no_reference(store, chain):
    for bare in (chain[1].parent, store.map()[chain[0].chain_id]):
        with pytest.raises(LayerNotRetainedError):
            store.release(bare)
        with pytest.raises(LayerNotRetainedError):
            bare.release()


def test_a_bare_layer_still_gives_its_tar(chain):
    assert tar_of(chain[1].parent) == tarkit.T1


def test_with_releases_the_layer_at_the_end(store, root):
    with store.register(tarkit.T1) as layer:
        assert layer.size == 5
    assert store.map() == {}
    assert os.listdir(root / DRIVER / "l") == []


def test_with_releases_the_layer_when_the_block_raises(store):
    with pytest.raises(KeyError), store.register(tarkit.T1):
        raise KeyError
    assert store.map() == {}


def test_leaving_a_with_block_after_a_release_is_not_an_error(store):
    with store.register(tarkit.T1) as layer:
        layer.release()
    assert store.map() == {}


def test_a_layers_tar_comes_back_without_a_mount(store, chain, root):
    for layer, tar in zip(chain, (tarkit.T1, tarkit.T2, file("c", b"three!") + end()), strict=True):
        with layer.tar_stream() as stream:
            assert stream.size == len(tar)
            assert stream.read() == tar
            assert stream.read() == b""
    assert mounts_below(root) == []


def test_tar_streams_leave_the_disk_alone(chain, unchanged):
    with unchanged():
        for layer in chain:
            with layer.tar_stream() as stream:
                stream.read()
            with layer.tar_stream_from("") as stream:
                stream.read()


def test_tar_stream_from_the_direct_parent_is_the_diff_directory(chain):
    one, two, three = chain
    assert names(two.tar_stream_from(one.chain_id)) == ["a", "a/.wh.f", "b", "d", "d/.wh..wh..opq", "gone"]
    assert names(three.tar_stream_from(two.chain_id)) == ["c"]


def test_tar_stream_from_a_grandparent_is_the_difference_of_both(chain):
    one, _, three = chain
    assert sorted(names(three.tar_stream_from(one.chain_id))) == ["a", "a/.wh.f", "b", "c", "d", "gone"]


def test_tar_stream_from_nothing_is_everything(chain):
    one, _, three = chain
    assert names(one.tar_stream_from("")) == ["a", "a/f"]
    assert names(three.tar_stream_from("")) == ["a", "b", "c", "d", "gone"]


def test_tar_stream_from_gives_content_and_an_end_marker(chain):
    with chain[2].tar_stream_from(chain[1].chain_id) as stream:
        data = stream.read()
    assert data[512:518] == b"three!"
    assert data.endswith(end())
    assert len(data) == 2048


def test_tar_stream_from_itself_or_a_stranger_is_refused(store, chain):
    stranger = store.register(file("s", b"s") + end())
    for wrong in (chain[1].chain_id, chain[2].chain_id, stranger.chain_id, "sha256:" + "0" * 64, "nonsense"):
        with pytest.raises((LayerStoreError, ValueError), match="is not a parent of the specified layer"):
            chain[1].tar_stream_from(wrong)


@pytest.mark.only("overlay2", "of the tar-split record")
def test_a_swapped_record_is_found_at_the_end_of_the_tar(store, root):
    one = store.register(file("f", b"hello") + end())
    two = store.register(file("f", b"hello", mtime=5) + end())
    db = root / LAYERDB / "sha256"
    records = [db / layer.chain_id.encoded / "tar-split.json.gz" for layer in (one, two)]
    contents = [record.read_bytes() for record in records]
    records[0].write_bytes(contents[1])
    records[1].write_bytes(contents[0])
    with one.tar_stream() as stream, pytest.raises(CorruptLayerError, match="could not verify layer data for"):
        stream.read()


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_a_changed_file_is_found_by_its_name(store, diff_of):
    layer = store.register(tarkit.T1)
    (diff_of(layer) / "a/f").write_bytes(b"jello")
    with layer.tar_stream() as stream, pytest.raises(CorruptLayerError) as caught:
        stream.read()
    assert caught.value.path == "a/f"
    assert 'file integrity checksum failed for "a/f"' in str(caught.value)


@pytest.mark.only("overlay2", "of the files in a layer's directory")
@pytest.mark.parametrize("content", [b"hell", b"hello!", b""])
def test_a_file_of_another_length_is_found_by_its_name(store, diff_of, content):
    layer = store.register(tarkit.T1)
    (diff_of(layer) / "a/f").write_bytes(content)
    with layer.tar_stream() as stream, pytest.raises(CorruptLayerError) as caught:
        stream.read()
    assert caught.value.path == "a/f"


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_a_random_read_of_a_changed_file_finds_it_too(store, diff_of):
    layer = store.register(tarkit.T1)
    (diff_of(layer) / "a/f").write_bytes(b"jello")
    with layer.tar_stream() as stream:
        stream.seek(1024)
        with pytest.raises(CorruptLayerError):
            stream.read(512)


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_a_missing_file_is_an_error_with_its_name(store, diff_of):
    layer = store.register(tarkit.T1)
    (diff_of(layer) / "a/f").unlink()
    with layer.tar_stream() as stream, pytest.raises((CorruptLayerError, FileNotFoundError)) as caught:
        stream.read()
    assert "a/f" in str(caught.value)


@pytest.mark.only("overlay2", "of the files in a layer's directory")
@pytest.mark.time_limit(20)
@pytest.mark.parametrize("planted", ["symlink", "absolute", "fifo", "dir", "parent link"])
def test_nothing_is_read_through_what_was_planted(store, diff_of, victim, planted):
    layer = store.register(tarkit.T1)
    (victim.parent / "secret").mkdir()
    (victim.parent / "secret/f").write_bytes(b"hello")
    place = diff_of(layer) / "a/f"
    place.unlink()
    if planted == "symlink":
        place.symlink_to("../../../../../secret/f")
    elif planted == "absolute":
        place.symlink_to(victim.parent / "secret/f")
    elif planted == "fifo":
        os.mkfifo(place)
    elif planted == "dir":
        place.mkdir()
    else:
        place.parent.rmdir()
        place.parent.symlink_to(victim.parent / "secret")
    with layer.tar_stream() as stream, pytest.raises((LayerStoreError, OSError)):
        stream.read()


@pytest.mark.only("overlay2", "of the tar-split record")
@pytest.mark.parametrize("record", [None, b"", b"not gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\xffgarbage"])
def test_a_record_that_cannot_be_read_is_an_error(store, root, record):
    layer = store.register(tarkit.T1)
    path = root / LAYERDB / "sha256" / layer.chain_id.encoded / "tar-split.json.gz"
    path.unlink()
    if record is not None:
        path.write_bytes(record)
    with pytest.raises((LayerStoreError, OSError)), layer.tar_stream() as stream:
        stream.read()


@pytest.mark.only("overlay2", "of the tar-split record")
def test_a_cut_record_never_reads_as_a_whole_tar(store, root):
    layer = store.register(tarkit.T1)
    path = root / LAYERDB / "sha256" / layer.chain_id.encoded / "tar-split.json.gz"
    record = path.read_bytes()
    for cut in range(0, len(record), 7):
        path.write_bytes(record[:cut])
        with pytest.raises((LayerStoreError, OSError)), layer.tar_stream() as stream:
            stream.read()


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_a_stream_closed_early_verifies_nothing_and_is_closed(store, diff_of):
    layer = store.register(tarkit.T1)
    (diff_of(layer) / "a/f").write_bytes(b"jello")
    stream = layer.tar_stream()
    assert stream.read(100) == tarkit.T1[:100]
    stream.close()
    stream.close()
    with pytest.raises(ValueError):
        stream.read(1)


def test_use_after_release_is_an_error_or_the_truth(store):
    layer = store.register(tarkit.T1)
    layer.release()
    assert layer.chain_id == tarkit.T1_DIFF_ID
    with pytest.raises((LayerStoreError, OSError)), layer.tar_stream() as stream:
        stream.read()
    with pytest.raises((LayerStoreError, OSError)):
        layer.metadata()


def test_a_stream_outlives_the_handle_it_came_from(store):
    layer = store.register(tarkit.T1)
    keep = store.get(layer.chain_id)
    with layer.tar_stream() as stream:
        layer.release()
        del layer
        assert stream.read() == tarkit.T1
    keep.release()


def test_layers_of_another_store_are_not_retained_here(open_store, room):
    here, there = open_store(), open_store(room / "other")
    mine, yours = here.register(tarkit.T1), there.register(tarkit.T1)
    with pytest.raises(LayerNotRetainedError):
        here.release(yours)
    assert mine.chain_id in here.map()
    assert here.release(there.register(tarkit.T2)) == []


def test_verify_finds_nothing_in_a_good_store(store, chain):
    assert store.verify() == []
    assert store.verify(chain[1].chain_id) == []


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_verify_names_the_changed_and_the_missing_file(store, chain, diff_of, unchanged):
    (diff_of(chain[0]) / "a/f").write_bytes(b"jello")
    (diff_of(chain[1]) / "b").unlink()
    with unchanged():
        found = {(p.kind, p.subject, p.path) for p in store.verify()}
    assert ("content", chain[0].chain_id, "a/f") in found
    assert ("missing", chain[1].chain_id, "b") in found
    assert {subject for _, subject, _ in found} == {chain[0].chain_id, chain[1].chain_id}
    assert store.verify(chain[2].chain_id) == []


@pytest.mark.only("overlay2", "of the tar-split record")
def test_verify_names_missing_records_bad_metadata_and_orphans(store, chain, root):
    db = root / LAYERDB / "sha256"
    (db / chain[0].chain_id.encoded / "tar-split.json.gz").unlink()
    (db / chain[1].chain_id.encoded / "size").write_text("x")
    stray = "f" * 64
    (root / DRIVER / stray / FILES).mkdir(parents=True)
    found = {(p.kind, p.subject) for p in store.verify()}
    assert ("missing", chain[0].chain_id) in found
    assert ("metadata", chain[1].chain_id) in found
    assert ("orphan", stray) in found


def test_verify_of_an_unknown_layer_is_an_error(store):
    with pytest.raises(layerstore.LayerDoesNotExistError):
        store.verify("sha256:" + "0" * 64)


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_verify_finds_a_missing_link_directory_and_whiteout(store, diff_of):
    base = store.register(tarkit.T1)
    tar = tarkit.symlink("s", "a") + tarkit.dir("empty/") + tarkit.whiteout("a/f") + end()
    layer = store.register(tar, base.chain_id)
    diff = diff_of(layer)
    (diff / "s").unlink()
    (diff / "empty").rmdir()
    assert {p.path.rstrip("/") for p in store.verify(layer.chain_id) if p.kind == "missing"} >= {"s", "empty"}


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_problems_are_told_in_one_sentence(store, chain, diff_of):
    (diff_of(chain[0]) / "a/f").write_bytes(b"jello")
    (problem,) = [p for p in store.verify() if p.path == "a/f"]
    assert problem.detail
    assert "\n" not in problem.detail


def test_a_failing_verify_changes_nothing_on_disk(store, chain, root):
    before = disk_state(root, times=True)
    store.verify()
    assert changed(before, disk_state(root, times=True)) == []
