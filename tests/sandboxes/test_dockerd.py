"""A real dockerd on a root with snapshots: it shows each box as we do, and takes no snapshot along.

They take turns: the store is closed while dockerd runs. Boxes have the names of containers, so that dockerd sees them.
"""

import os
import shutil
import stat
from pathlib import Path

import disk
import pytest
import tarkit
from boxes import shown, tar_of, write
from dockerd import Dockerd, adopt, container_tree, programs
from machine import needs

import layerstore
from layerstore import CreateRWLayerOpts, ReadOnlyStoreError, Store

pytestmark = [pytest.mark.time_limit(240), pytest.mark.only("overlay2", "dockerd reads no images")]


@pytest.fixture(scope="module", autouse=True)
def machine(tmpfs):
    needs("dockerd to compare with", there=programs())


def container(name: str) -> str:
    """The name of a container: 64 hex digits."""
    return name.encode().hex().ljust(64, "0")


def init(path: str) -> None:
    os.mkdir(f"{path}/dev")
    Path(path, "dev/console").write_text("")
    Path(path, "etc/hostname").write_text("box")


def edit(box, n: int) -> None:
    with box.mounted() as path:
        place = Path(path)
        (place / f"made {n}").write_text("x" * n)
        (place / "etc/hosts").write_text("y" * n)
        if n == 2:
            (place / "top").unlink()
            shutil.rmtree(place / "old")
            (place / "old").mkdir()
            (place / "old/again").write_text("again")
        if n == 3:
            os.rename(place / "made 1", place / "moved")
            os.symlink("moved", place / "link")
            os.chmod(place / "etc", 0o711)
            os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            (place / "top").write_text("another")


def grown(store, name: str, base, opts=None):
    """A box on three snapshots, the middle one loose."""
    box = store.create_rw_layer(container(name), base, opts)
    snaps = []
    for n in (1, 2, 3):
        edit(box, n)
        snaps.append(box.snapshot())
    snaps[1].release()
    write(box, "last", "l")
    return box, snaps[0], snaps[2]


def test_each_box_is_to_dockerd_what_it_is_to_us(root, room):
    with Store(root) as store:
        base = store.register(tarkit.dir("etc/") + tarkit.file("etc/hosts", b"h") + tarkit.file("top", b"top") + tarkit.dir("old/") + tarkit.file("old/one", b"1") + tarkit.end())
        plain, first, _ = grown(store, "plain", base)
        with_init, _, last = grown(store, "init", base, CreateRWLayerOpts(init_func=init))
        committed, _, high = grown(store, "committed", base)
        high.commit()
        forks = [first.fork(container("fork")), last.fork(container("init fork")), plain.fork(container("box fork"))]
        for fork in forks:
            write(fork, "of the fork")
        back, start, _ = grown(store, "back", base)
        back.rollback(start)
        squashed, _, _ = grown(store, "squashed", base)
        squashed.squash()
        boxes = [plain, with_init, committed, back, squashed, *forks]
        changes = {box.name: sorted(map(str, box.changes())) for box in boxes}
        trees = {box.name: shown(box) for box in boxes}
        ids = [snap.id for snap in store.snapshots()]
        frozen = {snap.id: tar_of(snap) for snap in store.snapshots()}
    adopt(root)
    records = disk.disk_state(root / "image/overlay2/layerdb/snapshots", times=True)
    with Dockerd(root) as docker:
        assert docker.containers() == sorted(trees)
        for name in trees:
            assert docker.diff(name) == changes[name]
            with container_tree(docker, name, room / "tree") as tree:
                assert disk.shape(tree) == trees[name]
        (room / "made").write_text("by docker cp")
        docker.docker("cp", str(room / "made"), f"{plain.name}:/etc/copied")
        image = docker.docker("commit", plain.name, "ours/committed").decode().strip()
        saved = docker.saved(image)[image]
        assert all(promised == digest for promised, digest in saved) and len(saved) == 2
        for name in (with_init.name, committed.name, back.name):
            docker.docker("rm", name)
    assert disk.disk_state(root / "image/overlay2/layerdb/snapshots", times=True) == records, "dockerd looks at no snapshot"
    with Store(root) as store:
        assert [snap.id for snap in store.snapshots()] == ids
        assert {snap.id: tar_of(snap) for snap in store.snapshots()} == frozen
        assert store.verify() == [] and sorted(store.mounts()) == sorted({*trees} - {with_init.name, committed.name, back.name})
        box = store.get_rw_layer(plain.name)
        assert sorted(map(str, box.changes())) == sorted([*changes[plain.name], "A /etc/copied"])
        for name in store.mounts():
            if name != plain.name:
                assert shown(store.get_rw_layer(name)) == trees[name]
        for snap in store.snapshots():
            with snap.fork("again") as again:
                assert "etc/hosts" in shown(again)
                if snap.id == last.id:
                    assert "dev/console" in shown(again), "the init layer of a snapshot is its own"
        layer = store.get(tarkit.chain_id(*(promised for promised, _ in saved)))
        with store.create_rw_layer("look", layer) as look:
            assert shown(look) == shown(box)
        store.cleanup()
        assert store.orphans() == []


def test_while_dockerd_runs_all_can_be_looked_at(root):
    with Store(root) as store:
        base = store.register(tarkit.T1)
        box = store.create_rw_layer(container("box"), base)
        write(box, "one")
        snap = box.snapshot()
        write(box, "two", "2")
    adopt(root)
    with Dockerd(root):
        before = disk.disk_state(root / "overlay2"), disk.disk_state(root / "image")
        with layerstore.Store(root) as store:
            assert store.read_only
            [found] = store.snapshots()
            box = store.get_rw_layer(container("box"))
            assert [str(line) for line in box.changes(since=found)] == ["A /two"]
            assert [str(line) for line in store.diff(base.chain_id, found)] == ["A /one"]
            assert {"one", "two"} <= {entry.path for entry in box.files()}
            with box.open("two") as content:
                assert content.read() == b"2"
            assert found.size() == 1 and box.size() == 2 and found.changes() and store.get_snapshot(snap.id).metadata()
            for call in (box.snapshot, lambda: box.rollback(found), box.squash, found.commit, found.release, lambda: found.fork("f"), lambda: box.fork("f")):
                with pytest.raises(ReadOnlyStoreError, match="dockerd"):
                    call()
        assert (disk.disk_state(root / "overlay2"), disk.disk_state(root / "image")) == before


def test_dockerd_mounts_a_box_as_deep_as_it_can(root):
    """By arithmetic it mounts 138 lowers; squash keeps what it may merge below 128."""
    with Store(root) as store:
        box = store.create_rw_layer(container("deep"), store.register(tarkit.T1))
        for number in range(120):
            write(box, f"n{number}")
            box.snapshot()
        write(box, "last")
        changes = sorted(map(str, box.changes()))
    adopt(root)
    with Dockerd(root) as docker:
        assert docker.diff(container("deep")) == changes and len(changes) == 121
        docker.docker("rm", container("deep"))
    with Store(root) as store:
        assert len(store.snapshots()) == 120 and store.verify() == []


def test_rmi_of_the_image_below_leaves_what_a_snapshot_needs(root):
    """dockerd knows no snapshot: the layer goes if it says so. What is lost is told, and the store opens."""
    with Store(root) as store:
        base = store.register(tarkit.T1)
        box = store.create_rw_layer(container("box"), base)
        write(box, "one")
        snap = box.snapshot()
        box.release()
    images = adopt(root, {base.chain_id: "ours/base"})
    with Dockerd(root) as docker:
        docker.docker("rmi", images[base.chain_id])
    with Store(root) as store:
        problems = store.verify()
        assert (problems and snap.id in {problem.subject for problem in problems} | {problem.detail for problem in problems}) or snap.id in str(problems)
        assert store.map() == {}
