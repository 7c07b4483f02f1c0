"""What a writable layer changed: changes() over its upper directory, beside os.walk over the same one."""

from pathlib import Path

import tarkit

import layerstore
from benchmarks import baselines


def test_changes_entries_per_s(measured, edited):
    found = edited.changes()
    assert found
    assert measured(edited.changes, entries=len(found)) == found


def test_changes_of_nothing_us_each(measured, new_store, real_layer):
    store = new_store()
    rw = store.create_rw_layer("idle", store.register(real_layer.path).chain_id)
    assert measured(lambda: [rw.changes() for _ in range(20)], times=20)[0] == []


def test_size_entries_per_s(measured, edited):
    """RWLayer.size(): bytes of the upper directory."""
    assert measured(edited.size, entries=len(edited.changes())) > 0


def test_baseline_os_walk_entries_per_s(measured, edited):
    """A name and an lstat of everything in the upper directory: the least that any answer needs."""
    upper = Path(edited.metadata()["UpperDir"])
    measured(lambda: baselines.walk(upper), entries=baselines.walk(upper))


def test_changes_between_entries_per_s(measured, new_store, real_layer):
    """Two whole plain trees that are alike, compared as moby's slow way does."""
    store = new_store()
    base = store.register(tarkit.file("base") + tarkit.end()).chain_id
    trees = [store.register(real_layer.path, parent).metadata()["UpperDir"] for parent in ("", base)]
    assert measured(lambda: layerstore.changes_between(*trees), entries=real_layer.entries) == []
