"""Looking at a box while another process changes what it stands on: the answer is whole, or it is an error.

A frozen directory never changes, so what vanishes from one while it is read was removed by a squash, a rollback or a
release. To pass over it, as over what a program deletes in its box, would make layers that lack files.
"""

import contextlib
import os
import threading
import time

import pytest
from boxes import child, tar_of
from soak import SEED, budget

from layerstore import LayerStoreError

FILES = 150

OTHER = """
import sys, layerstore
store = layerstore.Store(sys.argv[1])
box = store.get_rw_layer("box")
print("ready", flush=True)
for line in sys.stdin:
    act, *rest = line.split()
    getattr(box, act)(*rest)
    print("done", flush=True)
"""
LOOKS = {
    "commit": lambda box: tar_of(box.commit()), "tar_stream": tar_of, "size": lambda box: box.size(), "changes": lambda box: sorted(map(str, box.changes())),
    "files": lambda box: sorted(entry.path for entry in box.files()),
}  # fmt: skip


def grown(box):
    """Three loose directories, and something in the box."""
    for number in range(3):
        with box.mounted() as path:
            os.mkdir(f"{path}/{number}")
            for n in range(FILES):
                with open(f"{path}/{number}/{n}", "wb") as out:
                    out.write(bytes([n]) * 50_000)
        box.snapshot().release()
    with box.mounted() as path, open(f"{path}/last", "w") as out:
        out.write("last")


@pytest.mark.soak(60, 300)
@pytest.mark.parametrize("look", LOOKS)
def test_a_look_beside_a_squash_is_whole(root, box, look):
    grown(box)
    wanted = LOOKS[look](box)
    with child(OTHER, root) as process:
        for number in range(budget(3, 20)):
            found, errors = [], []

            def looking(found=found, errors=errors):
                try:
                    found.append(LOOKS[look](box))
                except BaseException as error:
                    errors.append(error)

            thread = threading.Thread(target=looking)
            thread.start()
            time.sleep((number + SEED) % 5 * 0.01)
            process.stdin.write("squash\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            thread.join()
            assert errors == []
            assert found[0] == wanted, "a part of it"
            with box.mounted() as path:
                os.rename(f"{path}/last", f"{path}/aside")
                os.rename(f"{path}/aside", f"{path}/last")
            box.snapshot().release()
            box.snapshot().release()


@pytest.mark.parametrize("act", ["squash", "rollback", "release"])
def test_a_stream_that_is_open_is_whole_or_says_that_it_is_not(store, box, base, act):
    grown(box)
    wanted = tar_of(box)
    with box.tar_stream() as stream:
        found = stream.read(100_000)
        {"squash": box.squash, "rollback": lambda: box.rollback(base), "release": box.release}[act]()
        with contextlib.suppress(LayerStoreError, OSError):
            found += stream.read()
            assert found == wanted, f"{len(found)} of {len(wanted)} bytes, and no error"
    store.cleanup()
    assert store.orphans() == []


def test_an_open_file_reads_to_its_end(box, base):
    grown(box)
    with box.open("1/7") as content:
        assert content.read(10) == bytes([7]) * 10
        box.squash()
        box.rollback(base)
        assert content.read() == bytes([7]) * 49_990
