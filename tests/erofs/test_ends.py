"""Processes that are killed while they register, mount, repair or release: nothing half-made is ever seen, and cleanup() ends the rest."""

import os
import random
import subprocess
import sys
import textwrap
import threading
import time

import disk
import kit
import pytest
import tarkit

import layerstore

PROGRAM = """
    import sys
    sys.path.insert(0, sys.argv[2])
    import layerstore, tarkit
    store = layerstore.Store(sys.argv[1], driver="erofs")
    base = store.register(tarkit.T1)
    print("begins", flush=True)
    n = 0
    while True:
        n += 1
        layer = store.register(tarkit.dir("x/y/") + tarkit.file("x/y/z", b"%d" % n * 3000) + tarkit.file("a/of/lower", b"1") + tarkit.end(), base.chain_id)
        same = store.register(tarkit.T2)
        box = store.create_rw_layer("box%d" % n, layer.chain_id)
        with box.mounted() as place:
            open(place + "/f", "w").write("x")
        made = box.commit()
        made.release()
        box.release()
        layer.release()
        same.release()
"""


@pytest.mark.parametrize("seed", range(4))
def test_killed_anywhere(root, open_store, seed):
    draw = random.Random(seed)
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", textwrap.dedent(PROGRAM), str(root), os.path.dirname(tarkit.__file__)], stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout.readline() == "begins\n"
            time.sleep(draw.random() * 0.15)
            run.kill()
        store = open_store()
        for layer in list(store.map().values()):
            assert layer.tar_stream().read()
        assert [problem for problem in store.verify() if problem.kind != "orphan"] == []
        for name in store.mounts():
            box = store.get_rw_layer(name)
            with box.mounted() as place:
                os.listdir(place)
            box.release()
        store.cleanup()
        assert disk.mounts_below(root) == [] and kit.loops_below(root) == []
        assert store.orphans() == [] and store.verify() == []
        for path in kit.home_of(store).iterdir():
            assert path.name == "l" or ((path / "layer.erofs").exists() and (path / "length").exists()), path
        for layer in sorted(store.map().values(), key=lambda layer: layer.size, reverse=True):
            if layer.parent is not None:
                store.remove(layer.chain_id)
        store.close()


def test_many_register_the_same_tar_at_once_and_release_it(root, open_store):
    stores = [open_store() for _ in range(3)]
    bases = [stores[0].register(tarkit.file(f"base{i}") + tarkit.end()) for i in range(3)]
    tar = tarkit.file("same", b"s" * 100_000) + tarkit.end()
    failed = []

    def work(store, at):
        try:
            for _ in range(15):
                layer = store.register(tar, bases[at].chain_id)
                assert layer.tar_stream().read() == tar
                layer.release()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(store, i)) for i, store in enumerate(stores) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert stores[0].verify() == [] and stores[0].orphans() == []
    assert len(os.listdir(kit.home_of(stores[0]))) == 1 + 3


def test_a_full_disk_leaves_nothing(room):
    with disk.sized_file_system(room, "tmpfs", size=4 << 20) as place:
        with layerstore.Store(place / "root", driver="erofs") as store:
            small = store.register(tarkit.T1)
            before = disk.inventory(place)
            for tar in (tarkit.file("big", b"x" * (5 << 20)) + tarkit.end(), tarkit.file("big", b"x" * ((4 << 20) - 40000)) + tarkit.end(), b"".join(tarkit.raw_header(f"{n}") for n in range(7800)) + tarkit.end()):
                with pytest.raises(OSError, match="No space"):
                    store.register(tar)
                assert disk.inventory(place) == before
            assert store.verify() == [] and small.tar_stream().read() == tarkit.T1


@pytest.mark.parametrize("cut", [100, 512, 700, 4096, 100_000])
def test_a_source_that_breaks_off_leaves_nothing(store, cut):
    store.register(tarkit.T1)
    before = disk.inventory(store.root)

    class Broken:
        left = cut

        def read(self, n):
            if not self.left:
                raise ConnectionError("cut")
            n = min(n, self.left)
            self.left -= n
            return (tarkit.file("f", b"x" * 200_000) + tarkit.end())[cut - self.left - n : cut - self.left]

    with pytest.raises(ConnectionError):
        store.register(Broken())
    assert disk.inventory(store.root) == before and disk.open_files()
