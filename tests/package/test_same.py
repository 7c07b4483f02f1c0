"""layerdb/same.py: which layers have a DiffID, those that other processes made, too."""

import os

import pytest
from tarkit import T1, T2, end, file

from layerstore.ids import ChainID, DiffID
from layerstore.layerdb.same import Same
from layerstore.layerdb.store import FileMetadataStore


@pytest.fixture
def another(open_store, store):
    """The same root, as another process has it."""
    return open_store()


def ids(*layers):
    return sorted(layer.cache_id for layer in layers)


def test_layers_of_any_store_are_named(store, another):
    same = Same(FileMetadataStore(store._engine.intake._ground.metadata.root, make=False))
    diff_id = DiffID("sha256:" + "7" * 64)
    assert same(diff_id) == []
    one = store.register(T1)
    top = another.register(T1, another.register(T2))
    assert sorted(same(one.diff_id)) == ids(one, top)
    assert sorted(store._engine.intake._ground.same(one.diff_id)) == ids(one, top)
    store.release(one)
    assert same(top.diff_id) == ids(top)
    assert same(diff_id) == []


def test_one_that_comes_as_another_goes_is_found(store, another):
    """The directory has as many names as before."""
    first = store.register(T1)
    same = store._engine.intake._ground.same
    assert same(first.diff_id) == ids(first)
    gone = another.register(file("gone") + end())
    kept = store.register(file("kept") + end())
    another.release(gone)
    new = another.register(T2)
    assert same(new.diff_id) == ids(new) and same(gone.diff_id) == [] and same(kept.diff_id) == ids(kept)


def test_what_is_noted_needs_no_listing(store, monkeypatch):
    same = store._engine.intake._ground.same
    layers = [store.register(file(f"f{n}") + end()) for n in range(3)]
    if os.stat(f"{store._engine.intake._ground.metadata.root}/sha256").st_nlink != 5:
        pytest.skip("this file system does not count the names of a directory")
    monkeypatch.setattr(os, "listdir", lambda *_: pytest.fail("listed"))
    assert [same(layer.diff_id) for layer in layers] == [ids(layer) for layer in layers]


def test_a_layer_that_is_noted_and_gone_is_not_named(store):
    same = Same(FileMetadataStore(store._engine.intake._ground.metadata.root, make=False))
    chain = ChainID("sha256:" + "a" * 64)
    same.note(chain, DiffID("sha256:" + "b" * 64))
    assert same(DiffID("sha256:" + "b" * 64)) == []
