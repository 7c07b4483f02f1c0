"""What a killed process and a lost layerdb leave mounted: reclaim() ends it at once."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time

import disk

KILLED = """
import os, sys, layerstore
layerstore.Store(sys.argv[1], driver="erofs").get_rw_layer("box").mount()
os.kill(os.getpid(), 9)
"""


def tar(name):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        made.addfile(tarfile.TarInfo(name))
    return io.BytesIO(out.getvalue())


def test_a_mounted_box_of_no_layerdb_goes_with_the_layers_that_it_stands_on(root, open_store):
    with open_store(driver="erofs") as store:
        layer = None
        for name in "abc":
            layer = store.register(tar(name), layer.chain_id if layer else None)
        store.create_rw_layer("box", layer.chain_id)
    subprocess.run([sys.executable, "-c", KILLED, str(root)], check=False)
    assert len(disk.mounts_below(root)) == 4
    shutil.rmtree(root / "image")
    store = open_store(driver="erofs")
    begin = time.monotonic()
    assert store.reclaim(dry_run=False)
    assert time.monotonic() - begin < 20                   # a lock that the store has itself is waited for for a minute
    assert disk.mounts_below(root) == [] and os.listdir(root / "erofs") == ["l"] and store.orphans() == []
