"""The public contract, parameter by parameter: a call by name or by place finds what is written here.

How each name is called, and what it is.
"""

import enum
import inspect
import subprocess
import sys
import typing

import pytest
import tarkit
from driven import DRIVER

import layerstore
from layerstore import Images, Layer, RWLayer, Store

# As written in the contract: names, order, defaults, and what may only be given by name (behind *).
SIGNATURES = {
    "create_chain_id": "(diff_ids)", "release_and_log": "(store, layer)", "log_release_metadata": "(metadata)",
    "disassemble": "(source, tar_split)", "assemble": "(tar_split, root)", "changes_between": "(new, old)",
    "overlay_changes": "(upper, lowers)",
    "Metadata": "(chain_id, diff_id, size, diff_size)",
    "Change": "(path, kind)",
    "Descriptor": "(media_type='', digest='', size=0, urls=(), annotations=None, artifact_type='')",
    "CreateRWLayerOpts": "(mount_label='', init_func=None, storage_opt=None)",
    "Problem": "(kind, subject, path, detail)", "FileMetadataStore": "(root)",
    "Store": "(root, *, driver=None, options=None)",
    "Store.register": "(self, source, parent='', os=None, *, progress=None)",
    "Store.register_with_descriptor": "(self, source, parent='', os=None, descriptor=None, *, progress=None)",
    "Store.get": "(self, chain_id)", "Store.map": "(self)", "Store.release": "(self, layer)",
    "Store.create_rw_layer": "(self, name, parent='', opts=None)",
    "Store.get_rw_layer": "(self, name)", "Store.get_mount_id": "(self, name)",
    "Store.release_rw_layer": "(self, layer)", "Store.cleanup": "(self)", "Store.driver_status": "(self)",
    "Store.driver_name": "(self)", "Store.mounts": "(self)", "Store.verify": "(self, chain_id=None)",
    "Store.close": "(self)", "Layer.tar_stream": "(self)", "Layer.tar_stream_from": "(self, parent)",
    "Layer.metadata": "(self)", "Layer.release": "(self)", "RWLayer.mount": "(self, mount_label='')",
    "RWLayer.unmount": "(self)", "RWLayer.holders": "(self)", "RWLayer.mounted": "(self, mount_label='')",
    "RWLayer.size": "(self)", "RWLayer.changes": "(self, since=None)", "RWLayer.tar_stream": "(self)",
    "RWLayer.run": "(self, argv, *, cwd='/', env=None, user=None, timeout=None, network=False, binds=None, input=None, capture=True, check=False)",
    "RWLayer.apply_diff": "(self, source)", "RWLayer.metadata": "(self)", "RWLayer.commit": "(self)",
    "TarStream.copy_to": "(self, dst)",
    "Registry": "(host, *, auth=None, insecure=False, ca=None, mirrors=(), timeout=30.0, retries=5, connections=3, chunk=None)",
    "Registry.tags": "(self, repository)", "Registry.manifest": "(self, reference)",
    "Registry.referrers": "(self, reference, artifact_type=None)", "Registry.close": "(self)",
    "Images.pull": "(self, reference, *, platform=None, registry=None, progress=None, durability=None, keep=False)",
    "Images.push": "(self, image, reference=None, *, registry=None, compression='gzip', force_compression=False, progress=None)",
}
METADATA_STORE = {
    "start_transaction": "(self)", "get_size": "(self, chain_id)", "get_parent": "(self, chain_id)",
    "get_diff_id": "(self, chain_id)", "get_cache_id": "(self, chain_id)", "get_descriptor": "(self, chain_id)",
    "get_os": "(self, chain_id)", "tar_split_reader": "(self, chain_id)", "set_mount_id": "(self, mount, mount_id)",
    "set_init_id": "(self, mount, init_id)", "set_mount_parent": "(self, mount, parent)",
    "get_mount_id": "(self, mount)", "get_init_id": "(self, mount)", "get_mount_parent": "(self, mount)",
    "list": "(self)", "remove": "(self, chain_id)", "remove_mount": "(self, mount)",
}
TRANSACTION = {
    "set_size": "(self, size)", "set_parent": "(self, parent)", "set_diff_id": "(self, diff_id)",
    "set_cache_id": "(self, cache_id)", "set_descriptor": "(self, descriptor)", "set_os": "(self, os)",
    "tar_split_writer": "(self, compress_input)", "commit": "(self, chain_id)", "cancel": "(self)",
}
LAYER_FACTS = {
    "chain_id": layerstore.ChainID, "diff_id": layerstore.DiffID, "os": str, "size": int, "diff_size": int,
    "cache_id": str,
}


def found(path):
    thing = layerstore
    for part in path.split("."):
        thing = getattr(thing, part)
    return thing


def spelled(callable_):
    """The signature as the contract writes it: no annotations, no parameters that were added by name."""
    signature = inspect.signature(callable_)
    kept = []
    for parameter in signature.parameters.values():
        kept.append(parameter.replace(annotation=parameter.empty))
    return str(signature.replace(parameters=kept, return_annotation=signature.empty))


def without_additions(callable_, promised):
    """The same, less keyword-only parameters with a default that the contract does not name: those may be added."""
    signature = inspect.signature(callable_)
    kept = []
    for parameter in signature.parameters.values():
        added = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
        if added and f"{parameter.name}=" not in promised:
            continue
        kept.append(parameter.replace(annotation=parameter.empty))
    return str(signature.replace(parameters=kept, return_annotation=signature.empty))


@pytest.mark.parametrize("path", SIGNATURES)
def test_it_is_called_as_the_contract_says(path):
    assert without_additions(found(path), SIGNATURES[path]) == SIGNATURES[path]


@pytest.mark.parametrize("owner", ["MetadataStore", "FileMetadataStore"])
@pytest.mark.parametrize("name", METADATA_STORE)
def test_the_metadata_store_is_called_as_the_contract_says(owner, name):
    assert spelled(getattr(found(owner), name)) == METADATA_STORE[name]


@pytest.mark.parametrize("name", TRANSACTION)
def test_the_transaction_is_called_as_the_contract_says(room, name):
    assert spelled(getattr(layerstore.MetadataTransaction, name)) == TRANSACTION[name]
    transaction = layerstore.FileMetadataStore(room / "layerdb").start_transaction()
    assert spelled(getattr(transaction, name)) == TRANSACTION[name].replace("self, ", "").replace("self", "")
    transaction.cancel()


def test_a_transaction_says_where_it_stands(room):
    transaction = layerstore.FileMetadataStore(room / "layerdb").start_transaction()
    assert str(transaction).startswith(str(room / "layerdb/tmp/write-set-"))
    transaction.cancel()


def test_protocols_are_protocols():
    for name in ("MetadataStore", "MetadataTransaction"):
        assert getattr(found(name), "_is_protocol", False), name


def test_values_are_named_tuples_in_the_contracts_order():
    for name in ("Metadata", "Change", "Descriptor", "CreateRWLayerOpts", "Problem"):
        fields = SIGNATURES[name].strip("()").split(", ")
        assert issubclass(found(name), tuple)
        assert list(found(name)._fields) == [field.partition("=")[0] for field in fields]


def test_kinds_of_change_are_numbered_as_in_moby():
    assert issubclass(layerstore.ChangeKind, enum.IntEnum)
    assert [(kind.name, int(kind), str(kind)) for kind in layerstore.ChangeKind] == [
        ("MODIFY", 0, "C"), ("ADD", 1, "A"), ("DELETE", 2, "D"),
    ]


def test_ids_are_text():
    assert layerstore.OS is str
    for kind in (layerstore.DiffID, layerstore.ChainID):
        assert issubclass(kind, layerstore.Digest)
    assert issubclass(layerstore.Digest, str)
    empty = layerstore.EMPTY_LAYER_DIFF_ID
    assert type(empty) is layerstore.DiffID
    assert (empty.algorithm, empty.encoded) == tuple(empty.split(":"))


def test_layers_streams_and_their_facts_have_the_contracts_types(store):
    base = store.register(tarkit.T1)
    layer = store.register(tarkit.T2, base.chain_id)
    for fact, kind in LAYER_FACTS.items():
        assert type(getattr(layer, fact)) is kind, fact
    assert (type(layer.parent.chain_id), layer.descriptor) == (layerstore.ChainID, None)
    assert type(layer.metadata()) is dict
    with layer.tar_stream() as stream:
        assert isinstance(stream, layerstore.TarStream)
        assert (type(stream.size), stream.readable(), stream.seekable(), stream.writable()) == (int, True, True, False)
    with layer.tar_stream_from(base.chain_id) as stream:
        assert isinstance(stream, layerstore.TarStream)
    assert isinstance(layer, Layer)
    assert isinstance(base.release(), list)
    assert type(layer.release()[0]) is layerstore.Metadata


def test_stores_answer_with_the_contracts_types(store):
    layer = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", layer.chain_id)
    assert isinstance(store, Store)
    assert isinstance(rw, RWLayer)
    assert (type(store.root), type(store.driver_name()), store.mounts()) == (str, str, ["c"])
    assert [type(part) for row in store.driver_status() for part in row] == [str] * 2 * len(store.driver_status())
    (key,) = store.map()
    assert type(key) is layerstore.ChainID
    assert (type(store.verify()), type(rw.size()), type(rw.mount()), rw.unmount()) == (list, int, str, None)
    assert (store.cleanup(), type(rw.changes()), type(rw.apply_diff(tarkit.T2))) == (None, list, int)
    assert type(rw.changes()[0]) is layerstore.Change
    assert type(rw.changes()[0].kind) is layerstore.ChangeKind
    with rw.tar_stream() as stream:
        assert isinstance(stream, layerstore.TarStream)


def test_every_promised_parameter_is_annotated():
    """Callers with a type checker read the signature, not the page."""
    bare = []
    for path in SIGNATURES:
        for name, parameter in inspect.signature(found(path)).parameters.items():
            if name != "self" and parameter.annotation is parameter.empty:
                bare.append(f"{path}({name})")
    assert bare == []
    assert typing.get_type_hints(layerstore.Metadata).keys() == {"chain_id", "diff_id", "size", "diff_size"}


def test_what_is_printed_of_an_object_says_what_it_is(store):
    assert repr(store) == f"<Store {store.root} ({DRIVER})>"
    assert repr(Images(store)) == f"<Images of {store.root}>"
    with store.register(tarkit.file("f") + tarkit.end()) as layer:
        assert repr(layer) == f"<Layer {layer.chain_id}>"
        assert repr(layer.merged()) == "<MergedTree of 1 entry>"
        with layer.tar_stream() as stream:
            assert repr(stream) == f"<TarStream of {layer.chain_id}>"
        assert repr(stream) == f"<TarStream of {layer.chain_id}, closed>"
        with store.create_rw_layer("box", layer) as box, box.tar_stream() as stream:
            assert (repr(box), repr(stream)) == ("<RWLayer box>", "<TarStream>")
    with Store(store.root, options={"read_only": "true"}) as reader:
        assert repr(reader) == f"<Store {store.root} ({DRIVER}, read-only)>"
    assert repr(reader) == f"<Store {store.root} ({DRIVER}, read-only), closed>"


def test_the_package_shows_its_public_names_only():
    assert dir(layerstore) == sorted([*layerstore.__all__, "__version__", "aio", "errors"])
    assert all(hasattr(layerstore, name) for name in dir(layerstore))


def test_aio_is_there_without_an_import_of_its_own():
    script = "import sys, layerstore; assert 'asyncio' not in sys.modules; print(layerstore.aio.Store.__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("Store\n", "")
    with pytest.raises(AttributeError, match="'layerstore' has no attribute 'oia'"):
        getattr(layerstore, "oia")  # noqa: B009


def test_registries_cost_nothing_until_one_is_made():
    """Neither TLS nor the HTTP client is loaded by a program that asks no registry; the names are there all the same."""
    script = """if True:
        import sys, layerstore
        names = [layerstore.Registry, layerstore.RegistryError, layerstore.NotInRegistryError, layerstore.AuthenticationError]
        print(sorted({"urllib3", "ssl"} & {*sys.modules}))
        layerstore.aio.Registry
        print("urllib3" in sys.modules)
        layerstore.Registry("localhost:5000")
        print("urllib3" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["[]", "False", "True"], "")


def test_without_urllib3_a_registry_names_the_extra():
    script = """if True:
        import sys
        sys.modules["urllib3"] = None
        import layerstore
        try:
            layerstore.Registry("localhost:5000")
        except layerstore.NotSupportedError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "pip install 'layerstore[registry]'" in done.stdout
