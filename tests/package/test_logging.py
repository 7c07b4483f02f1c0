"""What is logged, for people and for programs; and the warnings about what was never closed."""

import gc
import json
import logging
import subprocess
import warnings

import pytest
import tarkit
from another import ENVIRONMENT, command
from driven import LAYERDB

import layerstore


def test_it_is_silent_by_default_and_speaks_when_asked(store, root):
    layer = store.register(tarkit.T1)
    (root / LAYERDB / "sha256" / layer.chain_id.encoded / "size").write_text("x")
    script = "import sys, logging, layerstore\n{}\nwith layerstore.Store(sys.argv[1]) as store: store.map()"

    def run(setup):
        done = subprocess.run(command(script.format(setup), root), capture_output=True, check=True, text=True, env=ENVIRONMENT)
        return done.stdout + done.stderr

    assert run("") == ""
    assert "Failed to load layer" in run("logging.basicConfig()")


def test_records_carry_what_they_are_about(store, open_store, root, caplog):
    layer = store.register(tarkit.T1)
    store.create_rw_layer("c", layer.chain_id)
    (root / LAYERDB / "sha256" / layer.chain_id.encoded / "size").write_text("x")
    (root / LAYERDB / "mounts/c/mount-id").write_text("nonsense")
    with caplog.at_level(logging.INFO, "layerstore"):
        open_store().map()
    about = {record.getMessage().split(" ")[3]: record for record in caplog.records}
    assert about["layer"].chain_id == layer.chain_id and isinstance(about["layer"].error, layerstore.LayerStoreError)
    assert about["mount"].mount == "c"
    caplog.clear()
    other = open_store(root / "other")
    with caplog.at_level(logging.INFO, "layerstore"):
        layerstore.release_and_log(other, other.register(tarkit.T1))
    (record,) = caplog.records
    assert (record.chain_id, record.diff_size) == (layer.chain_id, 5)
    assert json.dumps({"chain_id": record.chain_id, "size": record.size})


def test_a_store_and_a_stream_that_were_never_closed_are_warned_of(room):
    def leave():
        store = layerstore.Store(room / "left")
        store.register(tarkit.T1).tar_stream().read(1)

    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        leave()
        gc.collect()
    texts = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
    assert len(texts) == 2
    assert any("unclosed" in text and "TarStream" in text for text in texts)
    assert any(text == f"unclosed store {room / 'left'}, which holds 1 layers" for text in texts)


def test_what_is_closed_and_what_could_not_be_made_is_not(room):
    (room / "file").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with layerstore.Store(room / "closed") as store, store.register(tarkit.T1).tar_stream() as stream:
            stream.read()
        with pytest.raises(OSError):
            layerstore.Store(room / "file")
        with pytest.raises(layerstore.InvalidOptionError):
            layerstore.Store(room / "closed", options={"nonsense": "1"})
        gc.collect()
