"""verify() with progress, repair() from every source, orphans() and reclaim()."""

import os
import shutil
import stat

import pytest
import recipes
import tarkit
from disk import changed, disk_state
from driven import DRIVER, FILES, LAYERDB
from tarkit import dir, end, file, hardlink, opaque, symlink, whiteout

import layerstore
from layerstore import (
    CorruptLayerError,
    Done,
    InvalidOptionError,
    LayerDoesNotExistError,
    ReadOnlyStoreError,
    StoreInUseError,
)

NOISE = recipes.noise(40_000, 7)
TAR = b"".join([
    dir("./"), dir("etc/"), file("etc/one", b"one", mode=0o640, uid=7, gid=8, mtime=1_600_000_000), file("etc/two", NOISE),
    dir("usr/"), dir("usr/lib/"), file("usr/lib/a", recipes.noise(5_000, 3)), hardlink("usr/b", "usr/lib/a"),
    symlink("usr/link", "lib/a"), file(b"usr/not-\xff", b"odd"), dir("old/"), opaque("old/"), whiteout("etc/gone"), end(),
])  # fmt: skip


@pytest.fixture
def layer(store):
    base = store.register(file("etc/gone", b"g") + dir("old/") + file("old/x", b"x") + end())
    made = store.register(TAR, base.chain_id)
    base.release()
    return made


def diff_of(root, layer):
    return os.path.join(root, DRIVER, layer.cache_id, FILES)


DAMAGES = {
    "a byte": lambda at: write(f"{at}/etc/two", NOISE[:-1] + b"?"),
    "cut to nothing": lambda at: os.truncate(f"{at}/etc/one", 0),
    "grown": lambda at: write(f"{at}/etc/one", b"one and more"),
    "a file gone": lambda at: os.unlink(f"{at}/etc/two"),
    "a linked file": lambda at: write(f"{at}/usr/lib/a", b"?" * 5_000),
    "one link gone": lambda at: os.unlink(f"{at}/usr/b"),
    "a directory gone": lambda at: shutil.rmtree(f"{at}/usr"),
    "a file for a directory": lambda at: (shutil.rmtree(f"{at}/usr"), write(f"{at}/usr", b"planted")),
    "a link out for a directory": lambda at: (shutil.rmtree(f"{at}/usr"), os.symlink("/tmp", f"{at}/usr")),
    "a link out for a file": lambda at: (os.unlink(f"{at}/etc/one"), os.symlink("/etc/passwd", f"{at}/etc/one")),
    "a fifo for a file": lambda at: (os.unlink(f"{at}/etc/one"), os.mkfifo(f"{at}/etc/one")),
    "a directory for a file": lambda at: (os.unlink(f"{at}/etc/one"), os.makedirs(f"{at}/etc/one/deep")),
    "a name that is not UTF-8": lambda at: write(os.fsencode(at) + b"/usr/not-\xff", b"ODD"),
    "a symlink gone": lambda at: os.unlink(f"{at}/usr/link"),
    "a whiteout gone": lambda at: os.unlink(f"{at}/etc/gone"),
    "no longer opaque": lambda at: os.removexattr(f"{at}/old", "trusted.overlay.opaque"),
    "everything gone": lambda at: shutil.rmtree(at),
    "several": lambda at: (write(f"{at}/etc/one", b"ONE"), os.unlink(f"{at}/etc/two"), os.unlink(f"{at}/usr/link")),
}


def write(path, data):
    with open(path, "wb") as out:
        out.write(data)


@pytest.mark.only("overlay2", "of the files in a layer's directory")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("source", ["tar", "store", "layer"])
def test_a_damaged_layer_is_mended_and_only_what_was_damaged_changes(store, open_store, room, root, layer, damage, source):
    before = disk_state(root, times=True)
    inodes = {path: os.lstat(path).st_ino for path in everything(diff_of(root, layer))}
    DAMAGES[damage](diff_of(root, layer))
    damaged = {p.path for p in store.verify(layer.chain_id)}
    assert damaged
    sound = open_store(room / "other")
    there = sound.register(TAR)
    problems = store.repair(layer.chain_id, {"tar": TAR, "store": sound, "layer": there}[source])
    assert {p.path for p in problems} == damaged
    assert store.verify() == []
    assert layer.tar_stream().read() == TAR
    after = disk_state(root, times=True)
    # The layer's tar says no times of these.
    timeless = ("layerdb", f"{DRIVER} (", "/l (", f"{layer.cache_id} (", f"{layer.cache_id}/work", f"{layer.cache_id}/diff (", "'char'")
    assert [line for line in changed(before, after) if not any(word in line for word in timeless)] == []
    if damage in ("a byte", "cut to nothing", "a file gone"):
        touched = "etc/one" if damage == "cut to nothing" else "etc/two"
        for path, inode in inodes.items():
            if path.endswith(touched):
                assert os.lstat(path).st_ino != inode, "exchanged for a whole one, not written to"
            else:
                assert os.lstat(path).st_ino == inode, f"{path} was sound, and stays"


def everything(at):
    return [os.path.join(where, name) for where, dirs, files in os.walk(at) for name in dirs + files]


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_files_of_other_layers_mend_what_they_hold_too(store, root, layer):
    with pytest.raises(CorruptLayerError, match="in no other layer"):
        write(f"{diff_of(root, layer)}/etc/two", b"?" * len(NOISE))
        store.repair(layer.chain_id)
    other = store.register(file("elsewhere/same", NOISE) + file("x", b"y") + end())
    assert [p.path for p in store.repair(layer.chain_id)] == ["etc/two"]
    assert store.verify() == []
    assert layer.tar_stream().read() == TAR
    write(f"{diff_of(root, layer)}/etc/two", b"?" * len(NOISE))
    write(f"{diff_of(root, other)}/elsewhere/same", b"!" * len(NOISE))
    with pytest.raises(CorruptLayerError, match="in no other layer"):
        store.repair(layer.chain_id)                 # the donor is damaged as well


@pytest.mark.parametrize(
    "damage",
    [
        "link", "lower", "work", "short link", "diff", "size", "cache-id", "parent",
        *(pytest.param(damage, marks=pytest.mark.only("overlay2", "of the tar-split record")) for damage in ("no record", "half a record", "another record")),
    ],
)
def test_the_stores_own_files_are_mended_too(store, root, layer, damage):
    home, db = root / DRIVER, root / LAYERDB / "sha256" / layer.chain_id.encoded
    own, record = home / layer.cache_id, db / "tar-split.json.gz"
    if damage in ("link", "lower"):
        (own / damage).write_text("l/NONSENSE" if damage == "lower" else "")
    elif damage == "work":
        shutil.rmtree(own / "work")
    elif damage == "short link":
        (home / "l" / (own / "link").read_text()).unlink()
    elif damage == "no record":
        record.unlink()
    elif damage == "half a record":
        record.write_bytes(record.read_bytes()[: record.stat().st_size // 2])
    elif damage == "another record":
        parent = layer.parent.chain_id.removeprefix("sha256:")
        record.write_bytes((db.parent / parent / "tar-split.json.gz").read_bytes())
    else:
        (db / damage).unlink()
    assert store.verify(layer.chain_id)
    assert store.repair(layer.chain_id, TAR)
    assert store.verify() == []
    assert layer.tar_stream().read() == TAR
    assert store.repair(layer.chain_id, TAR) == []


def test_a_layer_that_cannot_be_read_is_mended_from_its_tar(store, open_store, root, layer):
    (root / LAYERDB / "sha256" / layer.chain_id.encoded / "size").write_text("x")
    again = open_store()
    with pytest.raises(CorruptLayerError, match="its tar, or another store, is needed"):
        again.repair(layer.chain_id)
    other = again.register(tarkit.T2, layer.parent.chain_id).chain_id
    again.close()
    store.close()
    again = open_store()                             # which was not asked for that one yet
    for wrong in (tarkit.T1, tarkit.T2):
        with pytest.raises(CorruptLayerError, match="the source is another layer"):
            again.repair(layer.chain_id, wrong)
    assert set(again.map()) == {layer.parent.chain_id, other}
    assert [p.kind for p in again.repair(layer.chain_id, TAR)] == ["metadata"]
    assert again.get(layer.chain_id).tar_stream().read() == TAR


@pytest.mark.only("overlay2", "of the files in a layer's directory")
@pytest.mark.parametrize("source", [tarkit.T1, TAR[:-2048], b"", TAR[:600] + b"\xff" + TAR[601:]], ids=["other", "cut", "empty", "broken"])
def test_a_source_that_is_not_the_layer_leaves_it_as_it_is(store, root, layer, source):
    write(f"{diff_of(root, layer)}/etc/two", b"?" * len(NOISE))
    before = disk_state(f"{root}/{DRIVER}/{layer.cache_id}", times=True)
    names = sorted(os.listdir(root / DRIVER))
    with pytest.raises(layerstore.LayerStoreError):
        store.repair(layer.chain_id, source)
    assert changed(before, disk_state(f"{root}/{DRIVER}/{layer.cache_id}", times=True)) == []
    assert sorted(os.listdir(root / DRIVER)) == names
    with pytest.raises(LayerDoesNotExistError):
        store.repair("sha256:" + "1" * 64, TAR)


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_a_mended_file_is_seen_through_a_mount_made_afterwards(store, root, layer):
    write(f"{diff_of(root, layer)}/etc/one", b"ONE")
    store.repair(layer.chain_id, TAR)
    rw = store.create_rw_layer("c", layer.chain_id)
    with rw.mounted() as path:
        with open(f"{path}/etc/one", "rb") as one:
            assert one.read() == b"one"
        st = os.stat(f"{path}/etc/one")
        assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_mtime) == (0o640, 7, 8, 1_600_000_000)


def test_verify_tells_its_progress_from_the_calling_thread_and_stops_when_told(store, layer):
    for n in range(4):
        store.register(file(f"f{n}", recipes.noise(300_000, n + 50)) + end())
    told = []
    assert store.verify(progress=told.append, workers=2) == []
    assert told[-1] == told[-1].total == sum(one.diff_size for one in store.map().values())
    assert all(isinstance(done, Done) for done in told) and told == sorted(told)

    class EnoughError(Exception):
        pass

    def enough(done):
        raise EnoughError

    with pytest.raises(EnoughError):
        store.verify(progress=enough)
    assert store.verify() == []


# ---- unowned files ----------------------------------------------------------------------------------------
def test_orphans_are_listed_by_size_and_reclaimed(store, root, layer):
    assert store.orphans() == store.reclaim() == store.reclaim(dry_run=False) == []
    home, db = root / DRIVER, root / LAYERDB
    big, small = "a" * 64, "b" * 64
    for name, size in ((big, 50_000), (small, 5)):
        (home / name / FILES).mkdir(parents=True)
        (home / name / FILES / "f").write_bytes(b"x" * size)
    (home / "l/DANGLING").symlink_to(f"../{'c' * 64}/{FILES}")
    (db / "tmp").mkdir(exist_ok=True)
    (db / "tmp/write-set-7").mkdir()
    (db / "tmp/write-set-7/diff").write_text("half")
    (db / "sha256" / f"{'d' * 64}-{'e' * 64}-removing").mkdir()
    expected = [
        ("directory", f"{DRIVER}/{big}", 50_000), ("directory", f"{DRIVER}/{small}", 5),
        ("transaction", f"{LAYERDB}/tmp/write-set-7", 4),
        *sorted([("removal", f"{LAYERDB}/sha256/{'d' * 64}-{'e' * 64}-removing", 0), ("link", f"{DRIVER}/l/DANGLING", 0)], key=lambda one: one[1]),
    ]  # fmt: skip
    assert store.orphans() == expected
    assert store.reclaim(dry_run=True) == store.reclaim() == expected
    assert store.orphans() == expected
    assert {p.kind for p in store.verify()} == {"orphan"} and len(store.verify()) == 5
    assert store.reclaim(dry_run=False) == expected
    assert store.orphans() == [] and store.verify() == []
    assert layer.tar_stream().read() == TAR


def test_buildkits_directories_and_what_they_stand_on_are_not_orphans(store, root):
    home = root / DRIVER
    below, above = "a" * 64, "xk2v9m3q8w7e5r1t6y4u0i2o3"
    for name, link in ((below, "B" * 26), (above, "A" * 26)):
        (home / name / FILES).mkdir(parents=True)
        (home / name / "link").write_text(link)
        (home / "l" / link).symlink_to(f"../{name}/{FILES}")
    (home / above / "lower").write_text("l/" + "B" * 26)
    assert store.orphans() == []
    store.cleanup()
    assert (home / below / FILES).is_dir() and (home / above / FILES).is_dir()


def test_reclaim_refuses_while_another_store_has_the_root_open(store, open_store, root):
    (root / DRIVER / ("a" * 64) / "diff").mkdir(parents=True)
    other = open_store()
    for dry_run in (True, False):
        with pytest.raises(StoreInUseError, match="another store"):
            store.reclaim(dry_run)
    assert len(store.orphans()) == 1
    other.close()
    assert len(store.reclaim(dry_run=False)) == 1


# ---- for reading only -------------------------------------------------------------------------------------
def test_a_store_for_reading_only_reads_and_writes_nothing(store, open_store, root, layer):
    rw = store.create_rw_layer("c", layer.chain_id)
    rw.apply_diff(file("mine", b"m") + end())
    store.close()
    before = disk_state(root, times=True)
    reader = open_store(options={"read_only": "true"})
    assert reader.read_only and not store.read_only
    got, mine = reader.get(layer.chain_id), reader.get_rw_layer("c")
    assert got.tar_stream().read() == TAR
    assert [str(change) for change in mine.changes()] == ["A /mine"]
    assert mine.size() == 1 and file("mine", b"m")[:512][:4] == mine.tar_stream().read()[:4]
    assert reader.verify() == [] and reader.orphans() == [] and reader.mounts() == ["c"]
    assert dict(reader.driver_status())["userxattr"] == "false"
    for attempt in (
        lambda: reader.register(tarkit.T1), lambda: reader.create_rw_layer("d"), lambda: mine.mount(), lambda: mine.commit(),
        lambda: mine.apply_diff(tarkit.T1), lambda: reader.repair(layer.chain_id, TAR), lambda: reader.cleanup(),
        lambda: reader.reclaim(dry_run=False),
    ):  # fmt: skip
        with pytest.raises(ReadOnlyStoreError):
            attempt()
    assert reader.release_rw_layer(mine) == [] and got.release() == []
    reader.close()
    assert changed(before, disk_state(root, times=True)) == []
    with pytest.raises(InvalidOptionError):
        open_store(options={"read_only": "perhaps"})


def test_reading_only_wants_a_store_that_is_there(room, open_store):
    with pytest.raises(layerstore.LayerStoreError, match="no store"):
        open_store(room / "nothing", options={"read_only": "true"})
    assert not (room / "nothing").exists()
