"""The life of snapshots and of what stands on them: names, records, order, release, what goes with whom, what is refused."""

import datetime
import os
import stat

import disk
import pytest
import tarkit
from boxes import CREATED, lowers, shown, tar_of, write
from driven import FILES

import layerstore
from layerstore import (
    ActiveMountError,
    CreateRWLayerOpts,
    Images,
    LayerDoesNotExistError,
    LayerNotRetainedError,
    LayerStoreError,
    MountNameConflictError,
    NotSupportedError,
    ReadOnlyStoreError,
    StoreClosedError,
    StoreInUseError,
)

UNKNOWN = "1" * 64


def chains(removed):
    return [item.chain_id for item in removed]


# ---- names and records ---------------------------------------------------------------------------
def test_a_snapshot_says_what_it_is(store, base, box, snap, home, record, root):
    assert len(snap.id) == 64 and int(snap.id, 16)
    assert (snap.box, snap.parent.chain_id, snap.layer.chain_id) == ("box", base.chain_id, base.chain_id)
    assert snap.created.tzinfo == datetime.UTC
    assert abs((datetime.datetime.now(datetime.UTC) - snap.created).total_seconds()) < 60
    assert box.base.id == snap.id and box.parent.chain_id == base.chain_id
    data = snap.metadata()
    assert data["UpperDir"] == str(home(snap) / FILES) and disk.shape(data["UpperDir"]) == {"one": "1"}
    assert data["LowerDir"] == str(home(base.cache_id) / FILES)
    assert box.metadata()["LowerDir"] == f"{data['UpperDir']}:{data['LowerDir']}"
    with pytest.raises(LayerNotRetainedError):
        layer = snap.layer
        layer.release()         # the bare layer is no reference


def test_the_record_on_the_disk(store, base, box, snap, home, record, root):
    place = record(snap)
    assert stat.S_IMODE(place.parent.stat().st_mode) == stat.S_IMODE(place.stat().st_mode) == 0o700
    assert sorted(path.name for path in place.iterdir()) == ["box", "created", "parent"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o644}
    assert (place / "box").read_text() == "box" and (place / "parent").read_text() == base.chain_id
    created = (place / "created").read_text()
    assert CREATED.fullmatch(created)
    assert snap.created == datetime.datetime.fromisoformat(created[:26] + "+00:00")
    there = home(snap)
    assert stat.S_IMODE(there.stat().st_mode) == 0o710
    assert {FILES, "link", "lower", "work", "committed"} <= set(os.listdir(there))
    assert (there / "lower").read_text() == "l/" + (home(base.cache_id) / "link").read_text()
    upper = home(store.get_mount_id("box"))
    assert (upper / "lower").read_text() == "l/" + (there / "link").read_text() + ":" + (there / "lower").read_text()
    assert stat.S_IMODE((there / FILES).stat().st_mode) == 0o755


def test_the_mount_id_its_link_and_the_record_of_the_box_stay(store, box, layerdb, home):
    id = store.get_mount_id("box")
    before = (home(id) / "link").read_text(), disk.disk_state(layerdb / "mounts")
    write(box, "one")
    box.snapshot()
    box.mount()
    box.snapshot()
    box.unmount()
    assert store.get_mount_id("box") == id
    assert ((home(id) / "link").read_text(), disk.disk_state(layerdb / "mounts")) == before


def test_what_is_frozen_is_the_upper_itself(box, home, store):
    write(box, "one")
    upper = box.metadata()["UpperDir"]
    inode = os.stat(f"{upper}/one").st_ino, os.stat(upper).st_ino
    snap = box.snapshot()
    frozen = snap.metadata()["UpperDir"]
    assert (os.stat(f"{frozen}/one").st_ino, os.stat(frozen).st_ino) == inode
    assert os.listdir(upper) == []


@pytest.mark.parametrize("mounted", [False, True])
def test_the_root_directory_of_a_box_stays_what_it_was(box, mounted):
    with box.mounted() as path:
        os.chmod(path, 0o711)
        os.chown(path, 5, 6)
        os.setxattr(path, "user.note", b"1")
        os.utime(path, ns=(5, 123456789))
        before = os.stat(path)
    if mounted:
        path = box.mount()
    snap = box.snapshot()
    with box.mounted() as path:
        after = os.stat(path)
        assert os.getxattr(path, "user.note") == b"1"
    assert (after.st_mode, after.st_uid, after.st_gid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_gid, before.st_mtime_ns)
    with snap.fork("fork") as fork, fork.mounted() as path:
        assert (os.stat(path).st_mode, os.stat(path).st_uid) == (before.st_mode, before.st_uid)
    if mounted:
        box.unmount()


def test_any_object_of_any_store_means_the_one_snapshot(open_store, root, snap):
    other = open_store(root)
    again = other.get_snapshot(snap.id)
    assert (again.id, again.box, again.created, again.parent.chain_id) == (snap.id, snap.box, snap.created, snap.parent.chain_id)
    assert [one.id for one in other.snapshots()] == [snap.id]
    assert again.release() == []
    assert snap.release() == [] and again.release() == []
    assert other.snapshots() == []


@pytest.mark.parametrize("id", [UNKNOWN, "", "short", "0" * 63])
def test_an_unknown_id(store, snap, id):
    with pytest.raises(LayerDoesNotExistError, match=id or None):
        store.get_snapshot(id)


def test_beginnings_of_ids_are_none(store, snap):
    with pytest.raises(LayerDoesNotExistError):
        store.get_snapshot(snap.id[:12])


def test_the_end_of_with_releases(store, box):
    with box.snapshot() as snap:
        assert [one.id for one in store.snapshots()] == [snap.id]
    assert store.snapshots() == []
    with pytest.raises(ValueError, match="mine"), box.snapshot():
        raise ValueError("mine")
    assert store.snapshots() == []


def test_snapshots_are_listed_as_they_were_taken(store, open_store, root, box, record):
    other = open_store(root).get_rw_layer("box")
    taken = [(box, other)[n % 2].snapshot().id for n in range(30)]
    assert [one.id for one in store.snapshots()] == taken
    written = [(record(id) / "created").read_text() for id in taken]
    assert written == sorted(set(written)), "no two at one time, on the disk"


def test_what_else_lies_there_is_ignored(store, open_store, root, snap, record):
    (record(snap) / "novelty").write_text("later")
    (record(snap).parent / "no id").mkdir()
    (record(snap).parent / "file").write_text("x")
    again = open_store(root)
    assert [one.id for one in again.snapshots()] == [one.id for one in store.snapshots()] == [snap.id]
    assert again.verify() == []


# ---- after its release ---------------------------------------------------------------------------
def test_of_a_released_snapshot_nothing_can_be_made(store, snap):
    snap.release()
    for use in (lambda: snap.fork("f"), snap.commit, lambda: snap.commit(squash=True), snap.tar_stream,
                lambda: store.create_rw_layer("f", snap.id), lambda: store.create_rw_layer("f", snap),
                lambda: store.get_snapshot(snap.id)):  # fmt: skip
        with pytest.raises(LayerDoesNotExistError, match=snap.id[:12]):
            use()
    assert store.mounts() == ["box"]


def test_a_loose_base_still_answers(store, box, snap, base, record, home):
    metadata, size = snap.metadata(), snap.size()
    snap.release()
    assert not record(snap).exists() and home(snap).exists()
    loose = box.base
    assert (loose.id, loose.box, loose.parent.chain_id, loose.layer.chain_id) == (snap.id, "", base.chain_id, base.chain_id)
    assert abs(loose.created.timestamp() - home(snap).stat().st_mtime) < 3
    assert loose.size() == size == 1 and loose.metadata() == metadata
    assert [str(line) for line in loose.changes()] == ["A /one"]
    write(box, "two")
    assert [str(line) for line in box.changes(since=loose)] == ["A /two"]
    with pytest.raises(LayerDoesNotExistError):
        loose.fork("f")
    assert box.rollback(base.chain_id) is None


def test_a_released_box_leaves_its_snapshots(store, box, snap):
    box.release()
    assert store.mounts() == [] and [one.id for one in store.snapshots()] == [snap.id]
    with snap.fork("again") as again:
        assert shown(again)["one"] == "1"
        assert snap.box == "box"


def test_the_directory_goes_with_the_last_that_stands_on_it(store, box, snap, directories, home):
    second = box.snapshot()
    fork = second.fork("fork")
    assert len(directories()) == 5             # layer, two snapshots, two boxes
    assert snap.release() == [] and second.release() == []
    assert store.orphans() == [] and store.reclaim(dry_run=True) == [] and len(directories()) == 5
    store.cleanup()
    assert len(directories()) == 5
    box.release()
    assert len(directories()) == 4 and shown(fork)["one"] == "1"
    fork.release()
    assert len(directories(1)) == 1
    assert store.orphans() == [] and store.verify() == []


def test_a_chain_of_loose_ones_goes_as_one(store, base, box, directories):
    snaps = [box.snapshot() for _ in range(5)]
    box.release()
    for snap in snaps[:4]:
        snap.release()
    assert len(directories()) == 6
    assert snaps[4].release() == []
    assert len(directories()) == 1


def test_what_a_rollback_drops_goes_too(store, base, box, directories):
    for _ in range(3):
        box.snapshot().release()
    box.rollback(base)
    assert len(directories(2)) == 2
    assert store.orphans() == []


def test_the_layer_goes_with_the_last_snapshot_if_it_was_released(store, base, box, snap):
    assert base.release() == []
    assert box.release() == []
    assert base.chain_id in store.map()
    gone = snap.release()
    assert chains(gone) == [base.chain_id]
    assert store.map() == {}


def test_a_layer_that_was_not_released_outlives_them_all(store, open_store, root, base, box, snap):
    store.close()
    again = open_store(root)
    assert again.get_rw_layer("box").release() == []
    assert again.get_snapshot(snap.id).release() == []
    assert list(again.map()) == [base.chain_id]


def test_close_and_the_end_of_a_process_release_no_snapshot(store, open_store, root, snap):
    store.close()
    del snap
    with open_store(root) as again:
        assert len(again.snapshots()) == 1
    pid = os.fork()
    if not pid:
        layerstore.Store(root).get_rw_layer("box").snapshot()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert len(open_store(root).snapshots()) == 2


# ---- remove --------------------------------------------------------------------------------------
@pytest.mark.parametrize("by", ["id", "object"])
def test_remove_of_a_snapshot(store, box, snap, by):
    with pytest.raises(StoreInUseError, match="box"):
        store.remove(snap.id if by == "id" else snap)
    assert [one.id for one in store.snapshots()] == [snap.id], "a refused remove() is no release"
    box.release()
    assert store.remove(snap.id if by == "id" else snap) == []
    assert store.snapshots() == []
    with pytest.raises(LayerDoesNotExistError):
        store.remove(snap.id if by == "id" else snap)


def test_remove_names_the_snapshot_that_needs_it(store, base, box, snap):
    second = box.snapshot()
    box.release()
    with pytest.raises(StoreInUseError, match=second.id):
        store.remove(snap)
    base.release()
    with pytest.raises(StoreInUseError) as error:
        store.remove(base.chain_id)
    assert snap.id in str(error.value) or second.id in str(error.value)
    second.release()
    assert chains(store.remove(snap)) == [base.chain_id]


# ---- what a box can stand on ---------------------------------------------------------------------
def test_every_kind_of_parent(store, open_store, root, base, box, snap, room):
    image = Images(store).create(base.chain_id, {}, tags="an:image")
    other = open_store(root)
    parents = [base, base.chain_id, str(base.chain_id), base.parent or "", store.map()[base.chain_id], other.get(base.chain_id), image,
               snap, snap.id, other.get_snapshot(snap.id)]  # fmt: skip
    for number, parent in enumerate(parents):
        with store.create_rw_layer(f"on {number}", parent) as made:
            if parent == "":
                assert (made.base, made.parent) == (None, None)
                continue
            is_snap = parent is snap or parent == snap.id or parent is parents[-1]
            assert made.parent.chain_id == base.chain_id
            assert getattr(made.base, "id", None) == snap.id if is_snap else made.base.chain_id == base.chain_id
            assert ("one" in shown(made)) == is_snap
    for wrong in (5, b"x" * 3, object()):
        with pytest.raises(TypeError):
            store.create_rw_layer("wrong", wrong)
    with pytest.raises(TypeError):
        box.rollback(5)
    with pytest.raises(TypeError):
        store.diff(base, 5)


def test_register_on_a_snapshot_needs_its_commit(store, base, snap, unchanged):
    for parent in (snap, snap.id):
        with unchanged(), pytest.raises(NotSupportedError, match=r"it is no layer yet: commit\(\) it"):
            store.register(tarkit.T1, parent)
    layer = snap.commit()
    for parent in (snap, snap.id):
        assert store.register(tarkit.T1, parent).parent.chain_id == layer.chain_id
    assert store.get(snap.id).chain_id == layer.chain_id


def test_what_a_fork_refuses_leaves_nothing(store, box, snap, unchanged):
    for make in (lambda name: snap.fork(name), lambda name: box.fork(name), lambda name: store.create_rw_layer(name, snap)):
        for name, error in (("box", MountNameConflictError), ("", ValueError), ("a/b", ValueError), ("..", ValueError)):
            with unchanged(), pytest.raises(error):
                make(name)
    assert [one.id for one in store.snapshots()] == [snap.id]
    assert box.base.id == snap.id


def test_an_init_function_that_raises_leaves_no_fork(store, snap, nothing_left):
    def fails(path):
        raise RuntimeError("of the caller")

    with nothing_left(), pytest.raises(RuntimeError, match="of the caller"):
        snap.fork("f", CreateRWLayerOpts(init_func=fails))
    with nothing_left(), pytest.raises(NotSupportedError):
        snap.fork("f", CreateRWLayerOpts(storage_opt={"size": "10M"}))
    assert store.mounts() == ["box"]


def test_a_fork_of_a_box_is_a_box_on_a_snapshot_that_never_had_a_record(store, box, base, record, layerdb, home, root):
    write(box, "one", "1")
    fork = box.fork("fork")
    assert store.snapshots() == []
    assert fork.base.id == box.base.id and fork.base.box == ""
    assert fork.parent.chain_id == base.chain_id
    write(fork, "of the fork")
    write(box, "of the box")
    assert shown(fork).keys() - shown(box).keys() == {"of the fork"}
    assert [str(line) for line in fork.changes()] == ["A /of the fork", "A /one"]
    assert [str(line) for line in fork.changes(since=box.base)] == ["A /of the fork"]
    assert lowers(root, store.get_mount_id("fork")) == lowers(root, store.get_mount_id("box"))
    with pytest.raises(LayerDoesNotExistError):
        store.get_snapshot(fork.base.id)


# ---- refused ---------------------------------------------------------------------------------------
CALLS = {
    "snapshot": lambda box, snap: box.snapshot(), "rollback": lambda box, snap: box.rollback(snap), "fork": lambda box, snap: box.fork("f"),
    "squash": lambda box, snap: box.squash(), "changes": lambda box, snap: box.changes(since=snap), "files": lambda box, snap: list(box.files()),
    "open": lambda box, snap: box.open("one"),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_a_released_handle(store, box, snap, call, unchanged):
    keep = store.get_rw_layer("box")
    box.release()
    with unchanged(), pytest.raises(LayerNotRetainedError):
        CALLS[call](box, snap)
    assert keep.changes() != []


@pytest.mark.parametrize("call", [*CALLS, "snapshot.fork", "snapshot.commit", "snapshot.release", "snapshots", "get_snapshot", "remove", "diff", "usage"])
def test_a_closed_store(store, box, snap, call):
    store.close()
    more = {
        "snapshot.fork": lambda: snap.fork("f"), "snapshot.commit": snap.commit, "snapshot.release": snap.release, "snapshots": store.snapshots,
        "get_snapshot": lambda: store.get_snapshot(snap.id), "remove": lambda: store.remove(snap.id), "diff": lambda: store.diff(snap, ""),
        "usage": store.usage,
    }  # fmt: skip
    with pytest.raises(StoreClosedError):
        more[call]() if call in more else CALLS[call](box, snap)


def test_a_read_only_file_system_is_looked_at_and_not_changed(room, open_store):
    with disk.sized_file_system(room, "tmpfs") as place:
        with layerstore.Store(place / "docker") as store:
            layer = store.register(tarkit.T1)
            box = store.create_rw_layer("box", layer)
            write(box, "one", "1")
            snap = box.snapshot()
            write(box, "two", "2")
            second = box.snapshot()
            write(box, "three", "3")
        disk.mount("none", place, "", 32 | 1)       # MS_REMOUNT, MS_RDONLY
        with layerstore.Store(place / "docker", options={"read_only": "true"}) as store:
            assert store.read_only
            box, again = store.get_rw_layer("box"), store.get_snapshot(snap.id)
            assert [one.id for one in store.snapshots()] == [snap.id, second.id]
            assert [str(line) for line in box.changes(since=snap)] == ["A /three", "A /two"]
            assert [str(line) for line in store.diff(snap, second)] == ["A /two"]
            assert [str(line) for line in store.diff(second, layer)] == ["D /one", "D /two"]
            assert {entry.path for entry in box.files()} >= {"one", "two", "three"}
            with box.open("/two") as content:
                assert content.read() == b"2"
            assert again.size() == 1 and tar_of(again)
            assert store.usage().snapshots >= 4096
            for call in (box.snapshot, lambda: box.rollback(again), lambda: box.fork("f"), box.squash, again.commit, lambda: again.fork("f"),
                         again.release, lambda: store.remove(again)):  # fmt: skip
                with pytest.raises(ReadOnlyStoreError):
                    call()


def test_arguments_that_are_none(store, box, snap, unchanged, room):
    with unchanged():
        for busy in ("", "wait", None, 1):
            with pytest.raises((ValueError, TypeError)):
                box.snapshot(busy=busy)
        with pytest.raises(OSError):
            box.snapshot(freeze=room / "no such group")
        with pytest.raises(OSError):
            box.snapshot(freeze=room)
        for durability in ("some", 1):
            for call in (box.snapshot, lambda durability: box.rollback(snap, durability=durability), snap.commit,
                         lambda durability: snap.fork("f", durability=durability), lambda durability: box.fork("f", durability=durability)):  # fmt: skip
                with pytest.raises((ValueError, TypeError, layerstore.InvalidOptionError)):
                    call(durability=durability)
        for to in (UNKNOWN, "sha256:" + UNKNOWN, "no such"):
            with pytest.raises(LayerDoesNotExistError):
                box.rollback(to)
            with pytest.raises(LayerDoesNotExistError):
                box.changes(since=to)
            with pytest.raises(LayerDoesNotExistError):
                store.diff(to, snap)
            with pytest.raises(LayerDoesNotExistError):
                store.create_rw_layer("f", to)


@pytest.mark.parametrize("durability", ["full", "ordered", "none"])
def test_each_call_takes_a_durability(store, box, durability):
    write(box, "one", "1")
    snap = box.snapshot(durability=durability)
    fork = snap.fork("fork", durability=durability)
    other = box.fork("other", durability=durability)
    box.rollback(snap, durability=durability)
    layer = snap.commit(durability=durability)
    assert shown(fork) == shown(other) == shown(box)
    assert store.verify() == [] and layer.diff_size == 1


# ---- rollback ------------------------------------------------------------------------------------
@pytest.mark.parametrize("mounted", [False, True])
def test_rollback_goes_on_from_a_snapshot_or_a_layer(store, base, box, mounted, root, layerdb):
    path = box.mount() if mounted else None
    write(box, "one", "1")
    first = box.snapshot()
    write(box, "two", "2")
    second = box.snapshot()
    write(box, "three", "3")
    id, other = store.get_mount_id("box"), store.register(tarkit.file("else", b"e") + tarkit.end())
    fourth = store.create_rw_layer("stranger", other).snapshot()
    for to, names, top in ((first, {"one"}, base), (second, {"one", "two"}, base), (base, set(), base), (fourth, {"else"}, other),
                           (other, {"else"}, other), (first, {"one"}, base)):  # fmt: skip
        box.rollback(to)
        if path:
            assert disk.mount_line(path) and set(os.listdir(path)) >= names
        tree = shown(box)
        assert {name for name in tree if name in ("one", "two", "three", "else")} == names
        assert ("etc/hosts" in tree) == (top is base)
        assert (box.parent.chain_id, getattr(box.base, "id", None)) == (top.chain_id, getattr(to, "id", None))
        assert (layerdb / "mounts/box/parent").read_text() == top.chain_id
        assert store.get_mount_id("box") == id and not (layerdb / "mounts/box/rollback").exists()
        assert box.changes(since=to) == [] and box.size() == sum(len(name) > 0 for name in names - {"else"})
        write(box, "again", "a")
        assert "again" in shown(box)
    if path:
        box.unmount()
    assert store.verify() == []


def test_rollback_to_nothing_only_while_it_is_not_mounted(store, box, snap, home, layerdb, root):
    box.mount()
    with pytest.raises(ActiveMountError):
        box.rollback("")
    assert box.base.id == snap.id
    box.unmount()
    box.rollback("")
    assert (box.base, box.parent) == (None, None) and shown(box) == {} and box.changes() == []
    place = home(store.get_mount_id("box"))
    assert not (place / "lower").exists() and not (place / "work").exists() and not (layerdb / "mounts/box/parent").exists()
    write(box, "alone", "a")
    second = box.snapshot()
    assert (second.parent, second.layer) == (None, None)
    assert not (home(second) / "lower").exists() and not (home(second) / "work").exists()
    assert lowers(root, store.get_mount_id("box")) == [second.id] and (place / "work").exists()
    write(box, "more")
    assert shown(box) == {"alone": "a", "more": "x"}
    assert [str(line) for line in box.changes()] == ["A /alone", "A /more"]
    box.rollback(snap)
    assert shown(box)["one"] == "1"


def test_a_refused_rollback_changes_nothing(store, box, snap, unchanged):
    write(box, "two")
    path = box.mount()
    with unchanged():
        for to in (UNKNOWN, ""):
            with pytest.raises(LayerStoreError):
                box.rollback(to)
        fd = os.open(path, os.O_RDONLY)
        try:
            with pytest.raises(ActiveMountError) as error:
                box.rollback(snap)
            assert [one.pid for one in error.value.holders] == [os.getpid()]
        finally:
            os.close(fd)
    box.unmount()
    assert "two" in shown(box)

def test_what_another_store_did_to_a_box_is_seen_at_the_next_call(store, open_store, root, box):
    other = open_store(root).get_rw_layer("box")
    write(other, "one")
    assert box.base.chain_id == other.base.chain_id
    snap = other.snapshot()
    assert box.base.id == snap.id and box.changes(since=snap) == []
    other.rollback(snap.layer)
    assert box.base.chain_id == snap.layer.chain_id and "one" not in shown(box)
    again = box.snapshot()
    assert other.base.id == again.id
