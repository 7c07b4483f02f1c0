"""A real dockerd and this package on one data root, both ways.

What dockerd loaded, the store opens and returns bit for bit; what the store registered, dockerd saves with
the same digests; and about a container's changes both say the same. They take turns: the store is
closed while dockerd runs, dockerd has ended before a store is opened.
"""

import os
import shutil
import stat

import disk
import pytest
import recipes
import tarkit
from dockerd import Dockerd, DockerError, adopt, container_tree, programs
from machine import needs
from soak import budget
from stored import tar_of

import layerstore

pytestmark = pytest.mark.time_limit(240)

TERABYTES = {"good_sparse_of_eight_tebibytes"}  # returned by reading all of it
HANGS_MOBY = {"good_nodes_with_size"}  # it opens the fifo to read the payload, and waits


@pytest.fixture(scope="module", autouse=True)
def machine(tmpfs):
    needs("dockerd to compare with", there=programs())


# ---- layers ------------------------------------------------------------------------------------
def base_layer() -> bytes:
    """Every kind of entry that dockerd both loads and returns."""
    return b"".join([
        tarkit.dir("etc/"), tarkit.file("etc/hostname", b"base\n"), tarkit.file("etc/passwd", b"root:x:0:0::/:/bin/sh\n", mode=0o600),
        tarkit.dir("usr/"), tarkit.dir("usr/bin/"),
        tarkit.file("usr/bin/tool", recipes.noise(70_000), mode=0o755),
        tarkit.file("usr/bin/setuid", b"#!/bin/sh\n", mode=0o4755, uid=1000, gid=100),
        tarkit.hardlink("usr/bin/other-name", "usr/bin/tool"), tarkit.symlink("usr/bin/link", "../../etc/passwd"),
        tarkit.with_pax_path("usr/" + "p" * 150 + "/" + "q" * 150, tarkit.file, b"pax name"),
        tarkit.with_gnu_path("usr/" + "g" * 150 + "/" + "h" * 150, tarkit.file, b"gnu name"),
        tarkit.file(b"usr/not-\xff\xfe-utf8", b"odd"),
        tarkit.pax({"mtime": "1700000000.123456789"}) + tarkit.file("usr/nanoseconds", b"n"),
        tarkit.xattrs({"user.note": b"hello\x00world"}) + tarkit.file("usr/noted", b"with an attribute"),
        tarkit.dir("dev/"), tarkit.node("dev/null", "c", 1, 3, mode=0o666), tarkit.fifo("dev/fifo"),
        tarkit.dir("srv/"), tarkit.file("srv/one", b"1"), tarkit.file("srv/two", b"2"),
        tarkit.dir("srv/deep/"), tarkit.dir("srv/deep/er/"), tarkit.file("srv/deep/er/file", b"far down"),
        tarkit.dir("var/"), tarkit.dir("var/data/"), *(tarkit.file(f"var/data/{n:03}", recipes.noise(n, n)) for n in range(100)),
        tarkit.end(),
    ])  # fmt: skip


def middle_layer() -> bytes:
    """Whiteouts of a file and a directory, an opaque directory, and things put in their place."""
    return b"".join([
        tarkit.dir("srv/"), tarkit.whiteout("srv/one"), tarkit.whiteout("srv/deep"),
        tarkit.dir("var/"), tarkit.dir("var/data/"), tarkit.opaque("var/data/"), tarkit.file("var/data/000", b"alone now"),
        tarkit.dir("etc/"), tarkit.file("etc/hostname", b"middle\n"),
        tarkit.end(20),
    ])  # fmt: skip


def top_layer() -> bytes:
    """Back again what was gone, a directory for a file, a file for a directory."""
    return b"".join([
        tarkit.dir("srv/"), tarkit.dir("srv/deep/"), tarkit.file("srv/deep/new", b"again"),
        tarkit.dir("srv/two/"), tarkit.file("srv/two/inside", b"2"),
        tarkit.whiteout("var"), tarkit.dir("opt/"), tarkit.file("opt/last", recipes.noise(5000)),
        tarkit.end(),
    ])  # fmt: skip


def layers() -> list[bytes]:
    return [base_layer(), middle_layer(), top_layer()]


def beyond_moby() -> dict[str, bytes]:
    """DECISIONS 5: tars that moby refuses, or takes and cannot return."""
    names = ("sparse", "duplicate", "with_size", "with_payload", "padding", "two_global")
    good = recipes.GOOD
    return {name: make() for name, make in good.items() if any(n in name for n in names) and name not in TERABYTES}


def edit(tree) -> None:
    """What a container may do to its files: each kind of change, and some that cancel out."""
    (tree / "etc/hostname").write_text("edited\n")
    (tree / "etc/added").write_text("new")
    (tree / "usr/bin/other-name").unlink()
    (tree / "usr/bin/tool").chmod(0o700)
    shutil.rmtree(tree / "srv/deep")
    (tree / "srv/deep").mkdir()
    (tree / "srv/deep/fresh").write_text("an opaque directory")
    shutil.rmtree(tree / "opt")
    (tree / "opt").write_text("a file where a directory was")
    (tree / "usr/nanoseconds").unlink()
    (tree / "usr/nanoseconds").mkdir()
    os.chown(tree / "usr/noted", 12, 34)
    os.setxattr(tree / "usr/noted", "user.more", b"x")
    os.symlink("/etc", tree / "usr/to-etc")
    os.link(tree / "etc/passwd", tree / "etc/passwd.link")
    (tree / "tmp").mkdir()
    for n in range(50):
        (tree / f"tmp/{n}").write_bytes(recipes.noise(100 * n, n + 1))
    (tree / "tmp/gone").write_text("")
    (tree / "tmp/gone").unlink()
    os.rename(tree / "usr/bin/setuid", tree / "usr/bin/renamed")
    os.mknod(tree / "tmp/node", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mkfifo(tree / "tmp/fifo")
    os.utime(tree / "dev/fifo", ns=(1, 2))
    (tree / "tmp/umlaut-ü 中").write_text("names")


def init_layer(tree: str) -> None:
    """What dockerd puts into an init layer, in short."""
    for name in ("dev/pts", "dev/shm", "proc", "sys", "etc"):
        os.makedirs(os.path.join(tree, name), exist_ok=True)
    for name in (".dockerenv", "dev/console", "etc/hosts", "etc/hostname", "etc/resolv.conf"):
        with open(os.path.join(tree, name), "w"):
            pass


def lines(changes) -> list[str]:
    """Our changes as `docker diff` prints them."""
    return sorted(str(c).encode("utf-8", "surrogateescape").decode("utf-8", "replace") for c in changes)


def register_chain(store, tars) -> list:
    handles = []
    for tar in tars:
        handles.append(store.register(tar, handles[-1].chain_id if handles else ""))
    return handles


def driver_directories(root) -> list[str]:
    return sorted(os.listdir(root / "overlay2"))


# ---- dockerd first -----------------------------------------------------------------------------
def test_what_dockerd_loaded_comes_back_bit_for_bit(root, open_store):
    tars = layers()
    with Dockerd(root) as docker:
        image = docker.load(tars, "theirs/three")
        upper = docker.inspect("theirs/three")["GraphDriver"]["Data"]["UpperDir"]
        assert docker.saved(image)[image] == [(tarkit.diff_id(t), tarkit.diff_id(t)) for t in tars]
    layerdb = root / "image/overlay2/layerdb/sha256"

    store = open_store()
    diff_ids = [tarkit.diff_id(t) for t in tars]
    chains = [tarkit.chain_id(*diff_ids[: n + 1]) for n in range(3)]
    assert set(store.map()) == set(chains)
    total = 0
    for n, (chain, tar) in enumerate(zip(chains, tars, strict=True)):
        with store.get(chain) as layer:
            place = layerdb / chain[7:]
            assert layer.diff_id == diff_ids[n]
            assert (layer.parent.chain_id if layer.parent else "") == (chains[n - 1] if n else "")
            assert layer.cache_id == (place / "cache-id").read_text()
            assert layer.diff_size == int((place / "size").read_text())
            total += layer.diff_size
            assert layer.size == total
            assert tar_of(layer) == tar
            with layer.tar_stream() as stream:
                assert stream.size == len(tar)
            if n == 2:
                assert layer.metadata()["UpperDir"] == upper
    assert store.verify() == []


@pytest.mark.soak(240)
def test_what_dockerd_gives_back_of_any_tar_we_give_back_too(root, open_store):
    """One image a recipe: dockerd refuses some, and of some it cannot return what it took."""
    refused, spoilt, exact = [], [], {}
    tars = {name: make for name, make in recipes.GOOD.items() if name not in HANGS_MOBY and not name.startswith("good_sparse")}
    with Dockerd(root) as docker:
        for name, make in list(tars.items())[:: budget(4, 1)]:
            tar = make()
            try:
                image = docker.load([tar], "theirs/" + name)
            except DockerError:
                refused.append(name)
                continue
            try:
                [(promised, saved)] = docker.saved(image)[image]
            except DockerError:
                spoilt.append(name)
                continue
            if promised == saved == tarkit.diff_id(tar):
                exact[name] = tar
            else:
                spoilt.append(name)
    store = open_store()
    for name, tar in exact.items():
        with store.get(tarkit.diff_id(tar)) as layer:
            assert tar_of(layer) == tar, name
    print(f"dockerd: {len(exact)} exact, refused {refused}, not given back {spoilt}")
    assert len(exact) > budget(12, 50)


# ---- we first ----------------------------------------------------------------------------------
def test_what_we_registered_dockerd_saves_with_the_same_digests(root, open_store):
    with open_store() as store:
        chain = register_chain(store, layers())
        top = chain[-1].chain_id
        register_chain(store, [tarkit.T1, tarkit.T2])
    images = adopt(root, {top: "ours/three"})
    with Dockerd(root) as docker:
        saved = docker.saved(*images.values())
        assert saved[images[top]] == [(tarkit.diff_id(t), tarkit.diff_id(t)) for t in layers()]
        assert saved[images[tarkit.T2_ON_T1_CHAIN_ID]] == [(i, i) for i in (tarkit.T1_DIFF_ID, tarkit.T2_DIFF_ID)]
        assert len(docker.docker("history", "--quiet", "ours/three").split()) == 3
        upper = docker.inspect("ours/three")["GraphDriver"]["Data"]["UpperDir"]
        assert disk.shape(upper)["srv/deep/new"] == "again"


def test_layers_marked_as_released_are_dockerds_to_use_and_to_delete(root, open_store):
    with open_store() as store:
        chain = register_chain(store, layers())
        images = adopt(root, {chain[-1].chain_id: "ours/released"})
        assert [layer.release() for layer in chain] == [[], [], []]
    marks = [root / "image/overlay2/layerdb/sha256" / layer.chain_id.encoded / "released" for layer in chain]
    assert all(mark.is_file() for mark in marks)
    with Dockerd(root) as docker:
        image = images[chain[-1].chain_id]
        assert docker.saved(image)[image] == [(tarkit.diff_id(t), tarkit.diff_id(t)) for t in layers()]
        container = docker.create("ours/released")
    assert all(mark.is_file() for mark in marks), "dockerd leaves it where it is"
    with open_store() as store:
        assert store.verify() == [] and container in store.mounts()
        with store.get(chain[0].chain_id):
            pass
        assert len(store.map()) == 3
    with Dockerd(root) as docker:
        docker.docker("rm", container)
        docker.docker("rmi", "ours/released")
    assert os.listdir(root / "image/overlay2/layerdb/sha256") == []
    assert driver_directories(root) == ["l"]


@pytest.mark.parametrize("below", [False, True], ids=["base", "on-a-parent"])
def test_what_moby_cannot_give_back_it_gives_back_from_our_record(root, open_store, below):
    tars = beyond_moby()
    assert len(tars) > 20
    chains = {}
    with open_store() as store:
        parent = store.register(base_layer()).chain_id if below else ""
        for name, tar in tars.items():
            chains[name] = store.register(tar, parent).chain_id
    images = adopt(root)
    with Dockerd(root) as docker:
        saved = docker.saved(*set(images.values()))
        wrong = [name for name, tar in tars.items() if saved[images[chains[name]]][-1] != (tarkit.diff_id(tar),) * 2]
    assert wrong == []


def test_every_good_layer_of_ours_is_a_good_layer_to_dockerd(root, open_store):
    tars = {name: make() for name, make in recipes.GOOD.items() if name not in TERABYTES}
    with open_store() as store:
        for tar in tars.values():
            store.register(tar)
    images = adopt(root)
    with Dockerd(root) as docker:
        saved = docker.saved(*images.values())
    wrong = [name for name, tar in tars.items() if saved[images[tarkit.diff_id(tar)]] != [(tarkit.diff_id(tar),) * 2]]
    assert wrong == []


@pytest.mark.parametrize("with_init", [True, False], ids=["init-layer", "no-init-layer"])
def test_docker_diff_of_our_writable_layer_is_our_changes(root, open_store, with_init):
    name = "c0ffee" + 58 * "0"
    with open_store() as store:
        chain = register_chain(store, layers())
        options = layerstore.CreateRWLayerOpts(init_func=init_layer) if with_init else None
        with store.create_rw_layer(name, chain[-1].chain_id, options) as rw:
            with rw.mounted() as mounted:
                tree = root.__class__(mounted)
                before = rw.changes()
                edit(tree)
            after = rw.changes()
            # The last handle would take the layer with it.
            store.get_rw_layer(name)
    assert before == []
    adopt(root)
    with Dockerd(root) as docker:
        assert docker.containers() == [name]
        assert docker.diff(name) == lines(after)


def test_docker_works_on_our_image_and_leaves_nothing_of_it(root, open_store):
    with open_store() as store:
        top = register_chain(store, layers())[-1].chain_id
    adopt(root, {top: "ours/three"})
    (root.parent / "made-outside").write_text("by docker cp\n")
    with Dockerd(root) as docker:
        container = docker.create("ours/three")
        assert docker.diff(container) == []
        docker.docker("cp", str(root.parent / "made-outside"), f"{container}:/etc/hostname")
        docker.docker("cp", str(root.parent / "made-outside"), f"{container}:/etc/added")
        said = docker.diff(container)
        assert said == ["A /etc/added", "C /etc", "C /etc/hostname"]
        image = docker.docker("commit", container, "ours/four").decode().strip()
        saved = docker.saved(image)[image]
        assert len(saved) == 4 and all(promised == digest for promised, digest in saved)

    with open_store() as store:
        # Not released: the image that needs it is dockerd's knowledge, and the last reference would take it away.
        layer = store.get(tarkit.chain_id(*(d for d, _ in saved)))
        assert tarkit.diff_id(tar_of(layer)) == layer.diff_id == saved[-1][0]
        rw = store.get_rw_layer(container)
        assert lines(rw.changes()) == said
        assert store.verify() == []

    with Dockerd(root) as docker:
        docker.docker("rm", container)
        for image in ("ours/four", "ours/three"):
            docker.docker("rmi", image)
        assert docker.images() == []
    assert driver_directories(root) == ["l"]
    assert os.listdir(root / "overlay2/l") == []
    assert os.listdir(root / "image/overlay2/layerdb/sha256") == []
    assert open_store().map() == {}


# ---- containers --------------------------------------------------------------------------------
def test_changes_of_a_container_made_by_dockerd_are_what_docker_diff_says(root, room, open_store):
    with Dockerd(root) as docker:
        docker.load(layers(), "theirs/three")
        untouched, container = docker.create("theirs/three"), docker.create("theirs/three")
        with container_tree(docker, container, room / "tree") as tree:
            edit(tree)
        said = docker.diff(container)
        assert docker.diff(untouched) == []
    store = open_store()
    assert sorted(store.mounts()) == sorted([untouched, container])
    assert store.get_rw_layer(untouched).changes() == []
    assert lines(store.get_rw_layer(container).changes()) == said


def test_what_we_write_into_a_container_of_dockerd_docker_diff_sees(root, open_store):
    with Dockerd(root) as docker:
        docker.load(layers(), "theirs/three")
        container = docker.create("theirs/three")
    with open_store() as store:
        rw = store.get_rw_layer(container)
        with rw.mounted() as mounted:
            edit(root.__class__(mounted))
        ours, size = lines(rw.changes()), rw.size()
        with pytest.warns(layerstore.LeftOutWarning, match="usr/noted"):      # as dockerd's own commit leaves it out
            committed = rw.commit()
        diff_id, tar = committed.diff_id, tar_of(committed)
        assert tarkit.diff_id(tar) == diff_id
        top = committed.chain_id
    adopt(root, {top: "ours/committed"})
    with Dockerd(root) as docker:
        assert docker.diff(container) == ours
        assert docker.inspect(container)["Image"]
        [told] = docker.docker("ps", "--all", "--size", "--format", "{{.Size}}").decode().splitlines()
        assert told.split()[0] not in ("", "0B") and size > 0
        image = docker.inspect("ours/committed")["Id"]
        assert docker.saved(image)[image][-1] == (diff_id, diff_id)
        fresh = docker.create("ours/committed")
        assert docker.diff(fresh) == []


# ---- while it runs -------------------------------------------------------------------------------
def test_the_root_of_a_running_dockerd_opens_for_reading_only(room, caplog):
    root = room / "docker"
    with Dockerd(root) as dockerd:
        dockerd.load([base_layer(), middle_layer()], "live")
        before = disk.disk_state(root / "image"), disk.disk_state(root / "overlay2")
        with layerstore.Store(root) as store:
            assert store.read_only
            assert "a dockerd is using" in caplog.text and ".db is locked" in caplog.text
            layers = sorted(store.map().values(), key=lambda one: one.size)
            assert [layer.tar_stream().read() for layer in layers] == [base_layer(), middle_layer()]
            assert store.verify() == []
            for attempt in (
                lambda: store.register(tarkit.T1), lambda: store.create_rw_layer("c", layers[0].chain_id),
                lambda: store.cleanup(), lambda: store.repair(layers[0].chain_id, base_layer()),
            ):  # fmt: skip
                with pytest.raises(layerstore.ReadOnlyStoreError, match="a dockerd is using"):
                    attempt()
            for attempt in (store.orphans, store.reclaim, lambda: store.reclaim(dry_run=False)):
                with pytest.raises(layerstore.StoreInUseError, match="by a dockerd"):
                    attempt()
            held = store.get(layers[1].chain_id)
            assert held.release() == []
        assert (disk.disk_state(root / "image"), disk.disk_state(root / "overlay2")) == before
    with layerstore.Store(root) as store:
        assert not store.read_only and store.verify() == [] and store.orphans() == []


def test_a_dockerd_that_starts_under_an_open_store_keeps_its_layers(room):
    root = room / "docker"
    with layerstore.Store(root) as store:
        layer = store.register(base_layer())
        with Dockerd(root):
            with pytest.raises(layerstore.ReadOnlyStoreError, match="was started"):
                store.register(tarkit.T1)
            assert layer.release() == []
        assert layer.chain_id in store.map()
        store.get(layer.chain_id).release()
        assert store.map() == {}
