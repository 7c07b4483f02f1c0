"""Every error of the contract: its place in the tree of classes, and that wrong use raises it."""

import ast
import logging
import os
import pickle
import re
from pathlib import Path

import pytest
import tarkit
from driven import DRIVER, FILES
from stored import UNKNOWN

import layerstore
from layerstore import LayerStoreError
from layerstore.errors import readable

BASES = {
    "InvalidDigestError": ValueError, "LayerDoesNotExistError": LookupError, "LayerNotRetainedError": LayerStoreError,
    "MountDoesNotExistError": LookupError, "MountNameConflictError": LayerStoreError,
    "ActiveMountError": LayerStoreError, "NotMountedError": LayerStoreError, "MaxDepthExceededError": LayerStoreError,
    "NotSupportedError": LayerStoreError, "TarFormatError": ValueError, "BreakoutError": LayerStoreError,
    "CorruptLayerError": LayerStoreError,
}
@pytest.mark.parametrize("name", BASES)
def test_each_error_is_a_layer_store_error_and_what_python_would_call_it(name):
    error = getattr(layerstore, name)
    assert issubclass(error, LayerStoreError)
    assert issubclass(error, BASES[name])


def test_errors_carry_what_the_contract_says():
    assert "offset" in dir(layerstore.TarFormatError("x"))
    assert "path" in dir(layerstore.BreakoutError("x"))
    assert "path" in dir(layerstore.CorruptLayerError("x"))


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
        (lambda s: s.register(tarkit.T1, "", "plan9"), "NotSupportedError", None)]
)
def test_unknown_names_get_the_contracts_error_and_mobys_text(store, unchanged, wrong, error, text):
    with unchanged(), pytest.raises(getattr(layerstore, error)) as caught:
        wrong(store)
    assert text is None or str(caught.value).startswith(text)


@pytest.mark.parametrize("source", [None, 3.5, object(), "", [b"x"], ["x"], [1], {"x": 1}, range(3)], ids=repr)
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


# ---- errors name what they are about ------------------------------------------------------------
SUBJECTS = {
    "LayerDoesNotExistError": {"chain_id"},
    "LayerNotRetainedError": {"chain_id", "name"},
    "MountDoesNotExistError": {"name"}, "MountNameConflictError": {"name"}, "ActiveMountError": {"name"},
    "NotMountedError": {"name", "path"},
    "MaxDepthExceededError": {"chain_id", "path"},
    "CorruptLayerError": {"chain_id", "name", "path"},
    "StoreClosedError": {"path"}, "ReadOnlyStoreError": {"path"}, "StoreInUseError": {"path", "chain_id"},
    "ImageDoesNotExistError": {"name"},
}
SOURCES = sorted(Path(layerstore.__file__).parent.rglob("*.py"))


def made_in(path):
    """Every call of one of these classes in a file: (class, line, names of its keywords)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SUBJECTS:
            yield node.func.id, node.lineno, {keyword.arg for keyword in node.keywords}


def test_every_error_about_something_is_made_with_it():
    found = [(path, *each) for path in SOURCES for each in made_in(path)]
    assert len(found) > 25
    assert [(path.name, line, kind) for path, kind, line, given in found if not given & SUBJECTS[kind]] == []


@pytest.mark.parametrize("kind", SUBJECTS)
@pytest.mark.parametrize("words", [(), ("other words",)], ids=["moby's words", "other words"])
def test_the_subject_is_in_the_text_and_an_attribute(kind, words):
    cls = getattr(layerstore, kind)
    subject = {"chain_id": UNKNOWN, "name": "b\x1b[2Jx", "path": "/a\udcff\nb"}
    for key in SUBJECTS[kind]:
        err = cls(*words, **{key: subject[key]})
        assert str(err).startswith(f"{words[0] if words else cls.text}: ")
        assert getattr(err, key) == subject[key] and readable(subject[key]) in str(err)
        assert [getattr(err, other) for other in {"chain_id", "name", "path"} - {key}] == ["", ""]
        again = pickle.loads(pickle.dumps(err))
        assert (str(again), getattr(again, key)) == (str(err), subject[key])
        assert str(cls(f"of {subject[key]}", **{key: subject[key]})) == f"of {readable(subject[key])}"


def test_about_names_what_is_not_named_yet():
    err = layerstore.CorruptLayerError("damaged", path="a/b")
    assert err.about(chain_id=UNKNOWN, path="c") is err
    assert (str(err), err.chain_id, err.path) == (f"damaged: a/b: {UNKNOWN}", UNKNOWN, "a/b")


def test_errors_of_a_store_name_their_subject(store, root):
    layer = store.register(tarkit.T1)
    box = store.create_rw_layer("box", layer.chain_id)
    told = {}
    for what, call in {
        "conflict": lambda: store.create_rw_layer("box"), "mount": lambda: store.get_mount_id("no"),
        "layer": lambda: layerstore.Images(store).create(UNKNOWN), "verify": lambda: store.verify(UNKNOWN),
    }.items():  # fmt: skip
        with pytest.raises(LayerStoreError) as caught:
            call()
        told[what] = caught.value
    assert (str(told["conflict"]), told["conflict"].name) == ("mount already exists with name: box", "box")
    assert (str(told["mount"]), told["mount"].name) == ("mount does not exist: no", "no")
    for what in ("layer", "verify"):
        assert (str(told[what]), told[what].chain_id) == (f"layer does not exist: {UNKNOWN}", UNKNOWN)
    box.release()
    layer.release()
    for call in (box.mount, layer.release):
        try:
            assert call() == []
        except layerstore.LayerNotRetainedError as err:
            assert str(err).startswith("layer not retained: ") and (err.name or err.chain_id) in ("box", layer.chain_id)
    store.close()
    with pytest.raises(layerstore.StoreClosedError, match=re.escape(f"layer store is closed: {root}")) as caught:
        store.map()
    assert caught.value.path == str(root)


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_a_damaged_layer_is_named_by_all_that_read_it(store, root):
    layer = store.register(tarkit.T1)
    path = next(p for p in (root / DRIVER / layer.cache_id / FILES).rglob("*") if p.is_file() and p.stat().st_size)
    path.write_bytes(bytes(path.stat().st_size))
    name = str(path.relative_to(root / DRIVER / layer.cache_id / FILES))
    for read in (lambda: layer.tar_stream().read(), lambda: layer.open(name).read(), lambda: layer.merged().open(name).read()):
        with pytest.raises(layerstore.CorruptLayerError) as caught:
            read()
        assert caught.value.chain_id == layer.chain_id and caught.value.path.endswith(name)
        assert layer.chain_id in str(caught.value) and name in str(caught.value)


# ---- texts are readable -------------------------------------------------------------------------
TRICKS = [*map(chr, range(0x20)), "\x7f", *map(chr, range(0x80, 0xA0)), *"\u200e\u200f\u202a\u202e\u2066\u2069\u2028\u2029\ufeff\xad", "\udcff", "\udc1b", "\ud800", "\U000e0001"]  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS, ids=ascii)
def test_no_control_character_is_left_in_a_text(trick):
    shown = readable(f"a{trick}b")
    assert shown.isprintable() and shown.isascii() and shown.startswith("a\\") and shown.endswith("b")
    assert readable(shown) == shown
    assert str(LayerStoreError(f"a{trick}b")).isprintable()
    assert str(layerstore.TarFormatError(f"a{trick}b", offset=1, path=f"c{trick}")).isprintable()


def test_what_people_write_stays_as_it_is():
    text = "Grüße, 世界 e\u0301 'quoted' \\x1b 🐳"
    assert readable(text) is text


def test_log_records_are_readable(caplog):
    log = logging.getLogger("layerstore")
    for trick in TRICKS:
        log.warning("%s and %s: %d", f"a{trick}b", OSError(2, f"no{trick}", f"b{trick}"), 5, extra={"mount": trick})
        log.warning("%(name)s", {"name": f"a{trick}b"})
    assert len(caplog.records) == 2 * len(TRICKS) and all(record.getMessage().isprintable() for record in caplog.records)
    assert [record.mount for record in caplog.records[::2]] == TRICKS
