"""Every error of the contract: its place in the tree of classes, and that wrong use raises it."""

import inspect
import os
import re
from pathlib import Path

import pytest
import tarkit

import layerstore
from layerstore import LayerStoreError

BASES = {
    "InvalidDigestError": ValueError,
    "LayerDoesNotExistError": LookupError,
    "LayerNotRetainedError": LayerStoreError,
    "MountDoesNotExistError": LookupError,
    "MountNameConflictError": LayerStoreError,
    "ActiveMountError": LayerStoreError,
    "NotMountedError": LayerStoreError,
    "MaxDepthExceededError": LayerStoreError,
    "NotSupportedError": LayerStoreError,
    "TarFormatError": ValueError,
    "BreakoutError": LayerStoreError,
    "CorruptLayerError": LayerStoreError,
}
UNKNOWN = "sha256:" + "1" * 64

CONTRACT = [
    "Digest",
    "DiffID",
    "ChainID",
    "OS",
    "EMPTY_LAYER_DIFF_ID",
    "create_chain_id",
    "Metadata",
    "ChangeKind",
    "Change",
    "Descriptor",
    "CreateRWLayerOpts",
    "Problem",
    "TarStream",
    "Layer",
    "RWLayer",
    "Store",
    "release_and_log",
    "log_release_metadata",
    "MetadataTransaction",
    "MetadataStore",
    "FileMetadataStore",
    "disassemble",
    "assemble",
    "changes_between",
    "overlay_changes",
    "LayerStoreError",
    *BASES,
]


@pytest.mark.parametrize("name", CONTRACT)
def test_every_name_of_the_contract_is_there(name):
    assert hasattr(layerstore, name)


@pytest.mark.parametrize("name", BASES)
def test_each_error_is_a_layer_store_error_and_what_python_would_call_it(name):
    error = getattr(layerstore, name)
    assert issubclass(error, LayerStoreError)
    assert issubclass(error, BASES[name])


def test_errors_carry_what_the_contract_says():
    assert "offset" in dir(layerstore.TarFormatError("x"))
    assert "path" in dir(layerstore.BreakoutError("x"))
    assert "path" in dir(layerstore.CorruptLayerError("x"))


PUBLIC = {
    layerstore.Store: "register register_with_descriptor get map release create_rw_layer get_rw_layer "
    "get_mount_id release_rw_layer cleanup driver_status driver_name mounts verify close",
    layerstore.Layer: "tar_stream tar_stream_from metadata release chain_id diff_id parent os size "
    "diff_size descriptor cache_id",
    layerstore.RWLayer: "name parent mount unmount mounted size changes tar_stream apply_diff metadata commit",
    layerstore.FileMetadataStore: "start_transaction get_size get_parent get_diff_id get_cache_id "
    "get_descriptor get_os tar_split_reader set_mount_id set_init_id set_mount_parent get_mount_id "
    "get_init_id get_mount_parent list remove remove_mount",
}


@pytest.mark.parametrize("owner", PUBLIC, ids=lambda owner: owner.__name__)
def test_every_method_of_the_contract_is_there(store, owner):
    made = {layerstore.Layer: lambda: store.register(tarkit.T1), layerstore.RWLayer: lambda: store.create_rw_layer("c")}
    subject = made[owner]() if owner in made else owner
    assert [name for name in PUBLIC[owner].split() if not hasattr(subject, name)] == []


def test_no_public_name_is_missing_a_docstring():
    names = [n for n in layerstore.__all__ if inspect.isclass(getattr(layerstore, n))]
    assert [n for n in names if not inspect.getdoc(getattr(layerstore, n))] == []


def test_the_package_is_typed():
    assert (Path(layerstore.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (lambda s: s.get(UNKNOWN), "LayerDoesNotExistError", "layer does not exist"),
        (lambda s: s.get("not a digest"), "LayerDoesNotExistError", "layer does not exist"),
        (lambda s: s.register(tarkit.T1, UNKNOWN), "LayerDoesNotExistError", "layer does not exist"),
        (lambda s: s.create_rw_layer("c", UNKNOWN), "LayerDoesNotExistError", "layer does not exist"),
        (lambda s: s.get_rw_layer("nobody"), "MountDoesNotExistError", "mount does not exist"),
        (lambda s: s.get_mount_id("nobody"), "MountDoesNotExistError", "mount does not exist"),
        (lambda s: s.register(tarkit.T1, "", "plan9"), "NotSupportedError", None),
    ],
)
def test_unknown_names_get_the_contracts_error_and_mobys_text(store, unchanged, wrong, error, text):
    with unchanged(), pytest.raises(getattr(layerstore, error)) as caught:
        wrong(store)
    assert text is None or str(caught.value).startswith(text)


@pytest.mark.parametrize("source", [None, 3.5, object(), "", [b"x"]], ids=repr)
def test_what_is_no_source_is_refused_and_leaves_nothing(store, unchanged, source):
    store.register(tarkit.T2)
    with unchanged(), pytest.raises((TypeError, ValueError, OSError)):
        store.register(source)


@pytest.mark.parametrize("answer", [None, "text", 5, [1]], ids=repr)
def test_a_source_that_reads_no_bytes_is_refused_and_leaves_nothing(store, unchanged, answer):
    class Odd:
        def read(self, n):
            return answer

    store.register(tarkit.T2)
    with unchanged(), pytest.raises(TypeError):
        store.register(Odd())


def test_a_closed_descriptor_is_an_os_error(store, unchanged):
    store.register(tarkit.T2)
    reader, writer = os.pipe()
    os.close(reader), os.close(writer)
    with unchanged(), pytest.raises(OSError):
        store.register(reader)


def test_a_source_that_is_a_directory_is_an_os_error(store, unchanged, room):
    store.register(tarkit.T2)
    with unchanged(), pytest.raises(OSError) as caught:
        store.register(room)
    assert caught.value.errno


CLOSED = {
    "register": lambda s, layer, rw: s.register(tarkit.T1),
    "get": lambda s, layer, rw: s.get(layer.chain_id),
    "map": lambda s, layer, rw: s.map(),
    "release": lambda s, layer, rw: s.release(layer),
    "create_rw_layer": lambda s, layer, rw: s.create_rw_layer("other"),
    "get_rw_layer": lambda s, layer, rw: s.get_rw_layer("c"),
    "get_mount_id": lambda s, layer, rw: s.get_mount_id("c"),
    "release_rw_layer": lambda s, layer, rw: s.release_rw_layer(rw),
    "cleanup": lambda s, layer, rw: s.cleanup(),
    "mounts": lambda s, layer, rw: s.mounts(),
    "verify": lambda s, layer, rw: s.verify(),
    "layer.tar_stream": lambda s, layer, rw: layer.tar_stream(),
    "layer.tar_stream_from": lambda s, layer, rw: layer.tar_stream_from(""),
    "layer.release": lambda s, layer, rw: layer.release(),
    "rw.mount": lambda s, layer, rw: rw.mount(),
    "rw.changes": lambda s, layer, rw: rw.changes(),
    "rw.tar_stream": lambda s, layer, rw: rw.tar_stream(),
    "rw.apply_diff": lambda s, layer, rw: rw.apply_diff(tarkit.T1),
    "rw.commit": lambda s, layer, rw: rw.commit(),
}


@pytest.mark.parametrize("use", CLOSED.values(), ids=CLOSED.keys())
def test_use_of_a_closed_store_is_an_error_and_changes_nothing(store, unchanged, use):
    layer = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", layer.chain_id)
    store.close()
    with unchanged(), pytest.raises((LayerStoreError, ValueError)):
        use(store, layer, rw)


def test_closing_twice_is_harmless(store):
    store.close()
    store.close()


def test_messages_name_no_addresses(store):
    with pytest.raises(LayerStoreError) as caught:
        store.get(UNKNOWN)
    assert not re.search(r"0x[0-9a-f]{6}", str(caught.value))
