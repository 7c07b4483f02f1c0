"""The fresh tar of a layer comes out of its file: nothing is mounted, and it is the tar that overlay2's layer gives."""

import io
import tarfile
import warnings
from pathlib import Path

import disk
import kit
import pytest
import recipes
import tarkit

import layerstore


def given(layer, parent):
    """The fresh tar, and what it leaves out; or how that fails."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with layer.tar_stream_from(parent) as stream:
                return stream.read(), [str(warning.message) for warning in told]
        except layerstore.LayerStoreError as error:
            return type(error), str(error)


def members(tar, own):
    """All that is in a tar. What has no entry of its own has no time of its own: overlay2 keeps the time of its making."""
    with tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8", errors="surrogateescape") as opened:
        for one in opened:
            content = opened.extractfile(one).read() if one.isreg() else b""
            yield one.get_info() | {"chksum": 0, "pax": one.pax_headers, "content": content, "mtime": one.mtime if one.name in own else 0}


@pytest.mark.parametrize("name", [name for name in recipes.GOOD if name != "good_sparse_of_eight_tebibytes"])
def test_it_is_that_of_a_layer_of_overlay2(open_store, room, name):
    tar = recipes.GOOD[name]()
    found = {}
    for driver in ("erofs", "overlay2"):
        store = open_store(room / driver, driver)
        layers = store.register(tar), store.register(tar, store.register(tarkit.T1).chain_id)
        found[driver] = [given(layer, layer.parent.chain_id if layer.parent else "") for layer in layers]
        assert disk.mounts_below(room) == []
        own = {entry.path for entry in layers[0].files() if entry.type not in (layerstore.FileType.WHITEOUT, layerstore.FileType.OPAQUE)}
    for (fresh, said), (expected, expected_said) in zip(found["erofs"], found["overlay2"], strict=True):
        assert said == expected_said
        if fresh != expected:
            assert list(members(fresh, own)) == list(members(expected, own))


def test_a_layer_whose_file_is_damaged_says_so(store):
    layer = store.register(tarkit.dir("sub/") + b"".join(tarkit.file(f"sub/f{i}", b"") for i in range(30)) + tarkit.end())
    data = bytearray(kit.file_of(layer).read_bytes())
    at = data.index(b"f0f1f10")
    data[at : at + 2] = b"zz"                     # the first of the names comes last
    kit.file_of(layer).write_bytes(data)
    with pytest.raises(layerstore.CorruptLayerError, match="out of order") as error:
        layer.tar_stream_from("")
    assert error.value.path == "sub"


def test_a_committed_snapshot_gives_its_files(store, room):
    """Its layer is a file by then, of which a stack tells as of any other."""
    base = store.register(tarkit.T1)
    box = store.create_rw_layer("box", base.chain_id)
    with box.mounted() as at:
        Path(at, "new").write_text("new")
        Path(at, "a/f").unlink()
        one = box.snapshot()
        Path(at, "more").symlink_to("new")
        tar = one.tar_stream().read()
        layer = one.commit()
        assert one.tar_stream().read() == layer.tar_stream_from(base.chain_id).read() == tar
    assert disk.mounts_below(room) == []
    assert one.tar_stream().read() == layer.tar_stream_from(base.chain_id).read() == tar
    with box.open("new") as file:
        assert file.read() == b"new"
    assert [entry.path for entry in box.files()] == ["a", "more", "new"]
    assert disk.mounts_below(room) == []
    one.release()
    box.release()
