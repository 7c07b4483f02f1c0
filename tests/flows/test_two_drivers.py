"""A root with both drivers, and a real dockerd on its half: it lists, compares, saves and deletes, and the other half is as it was."""

import os
from pathlib import Path

import disk
import pytest
import tarkit
from dockerd import Dockerd, programs
from machine import needs
from stored import tar_of

import layerstore
from layerstore import Images, ReadOnlyStoreError

pytestmark = pytest.mark.time_limit(240)

OTHER = "erofs"
TARS = [
    tarkit.dir("etc/") + tarkit.file("etc/hostname", b"box\n") + tarkit.file("etc/gone", b"g") + tarkit.end(),
    tarkit.dir("etc/") + tarkit.whiteout("etc/gone") + tarkit.symlink("etc/link", "hostname") + tarkit.end(),
    tarkit.dir("srv/") + tarkit.opaque("srv/") + tarkit.file("srv/data", bytes(range(256)) * 300) + tarkit.end(),
]


def half(root: Path) -> list:
    """Every file of the other half."""
    return [disk.disk_state(root / place) for place in (OTHER, f"image/{OTHER}")]


def test_dockerd_on_its_half_leaves_the_other_one_alone(root):
    needs("dockerd to compare with", there=programs())
    with Dockerd(root) as docker:
        image = docker.load(TARS, "theirs/three")
        digests = docker.saved(image)
        container = docker.create("theirs/three")
    with layerstore.Store(root) as store:
        chains = [*Images(store).get(image).layers]
        before = disk.disk_state(root / "overlay2"), disk.disk_state(root / "image/overlay2")
        assert store.convert(chains[-1], OTHER) == chains
        assert (disk.disk_state(root / "overlay2"), disk.disk_state(root / "image/overlay2")) == before
    with layerstore.Store(root, driver=OTHER) as store:
        with store.create_rw_layer(container, chains[-1]) as box, box.mounted() as tree:      # a name that both halves have
            assert os.readlink(Path(tree, "etc/link")) == "hostname" and not Path(tree, "etc/gone").exists()
            Path(tree, "etc/ours").write_text("of the other half")
            box.snapshot()
        store.create_rw_layer(container, chains[-1])
        before = half(root)
    with Dockerd(root) as docker:
        assert docker.inspect("theirs/three")["Id"] == image and docker.images() == [image] and docker.saved(image) == digests
        assert docker.containers() == [container] and docker.diff(container) == []
        with layerstore.Store(root, driver=OTHER) as store:
            assert store.read_only and sorted(store.map()) == sorted(chains)
            assert [tar_of(store.find(chain)) for chain in chains] == TARS
            with pytest.raises(ReadOnlyStoreError, match="a dockerd is using"):
                store.convert(chains[-1], "overlay2")
        docker.docker("rm", container)
        docker.docker("rmi", "theirs/three")
        assert docker.images() == [] and half(root) == before
    assert half(root) == before
    with layerstore.Store(root) as store:
        assert store.map() == {} and store.verify() == []
    with layerstore.Store(root, driver=OTHER) as store:
        assert store.verify() == []
        assert store.convert(chains[-1], "overlay2") == chains
        again = docker_layers(root)
        assert again == {chain: tarkit.diff_id(tar) for chain, tar in zip(chains, TARS, strict=True)}
    assert disk.mounts_below(root) == []


def docker_layers(root: Path) -> dict[str, str]:
    """What dockerd would find: the DiffID of each layer of its half."""
    with layerstore.Store(root) as store:
        return {chain: layer.diff_id for chain, layer in store.map().items()}
