"""Who keeps what: a layer goes when it was released and nothing needs it; by the disk, over stores, restarts and deaths."""

import os
import signal
import stat

import disk
import pytest
import tarkit
from driven import DRIVER, FILES, LAYERDB
from tarkit import end, file

import layerstore
from layerstore import LayerDoesNotExistError, Store, StoreInUseError

A, B, C = (file(name, name.encode()) + end() for name in ("a", "b", "c"))


@pytest.fixture
def mark(root):
    def path(layer):
        return root / LAYERDB / "sha256" / getattr(layer, "chain_id", layer).removeprefix("sha256:") / "released"

    return path


@pytest.fixture
def two(root, open_store):
    return open_store(root), open_store(root)


def chains(removed):
    return [item.chain_id for item in removed]


# ---- the mark ----------------------------------------------------------------------------------
def test_released_while_something_stands_on_it_is_a_file(store, mark):
    base = store.register(A)
    top = store.register(B, base)
    assert not mark(base).exists()
    assert base.release() == []
    assert stat.S_IMODE(mark(base).stat().st_mode) == 0o644 and mark(base).read_bytes() == b""
    assert chains(top.release()) == [top.chain_id, base.chain_id]


def test_a_new_reference_takes_the_mark_away(store, mark):
    base = store.register(A)
    top = store.register(B, base)
    base.release()
    for again in (lambda: store.get(base.chain_id), lambda: store.register(A)):
        layer = again()
        assert not mark(base).exists()
        assert layer.release() == [] and mark(base).exists()
    again()
    assert chains(top.release()) == [top.chain_id]


def test_a_child_or_a_box_takes_no_mark_away(store, mark):
    base = store.register(A)
    top = store.register(B, base)
    base.release()
    with store.create_rw_layer("box", base):
        store.register(C, base).release()
        assert mark(base).exists()
    assert chains(top.release()) == [top.chain_id, base.chain_id]


def test_a_mark_that_is_no_file_is_none(store, mark):
    base = store.register(A)
    top = store.register(B, base)
    mark(base).symlink_to("/dev/null")
    assert chains(top.release()) == [top.chain_id]


def test_the_walk_ends_at_the_first_that_was_not_released(store):
    one, two = store.register(A), None
    two = store.register(B, one)
    three = store.register(C, two)
    one.release()
    assert chains(three.release()) == [three.chain_id]
    assert chains(two.release()) == [two.chain_id, one.chain_id]


def test_over_a_restart(store, open_store, root):
    base = store.register(A)
    top = store.register(B, base)
    base.release()
    store.close()
    again = open_store()
    assert chains(again.get(top.chain_id).release()) == [top.chain_id, base.chain_id]


@pytest.mark.parametrize("how", ["close", "exit", "kill"])
def test_what_ends_releases_nothing(store, root, how):
    base = store.register(A)
    store.close()
    pid = os.fork()
    if not pid:
        other = Store(root)
        held = other.get(base.chain_id)
        other.register(B, held)
        if how == "close":
            other.close()
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    os.waitpid(pid, 0)
    with Store(root) as again:
        assert len(again.map()) == 2
        assert chains(again.remove(layerstore.create_chain_id([base.diff_id, tarkit.diff_id(B)]))) != [base.chain_id]
        assert set(again.map()) == {base.chain_id}


# ---- remove() ----------------------------------------------------------------------------------
def test_remove_releases_what_nobody_holds(store, root):
    chain = store.register(A).chain_id
    store.close()
    with Store(root) as again:
        assert chains(again.remove(chain)) == [chain]
        with pytest.raises(LayerDoesNotExistError):
            again.remove(chain)
        assert again.map() == {}


def test_remove_takes_a_layer_of_any_store(store, open_store, room):
    chain = store.register(A).chain_id
    store.close()
    other = open_store(room / "other")
    mine = other.register(A)
    again = open_store()
    assert chains(again.remove(mine)) == [chain]
    assert set(other.map()) == {chain}


def test_remove_names_what_needs_it(store, open_store, root, mark):
    base = store.register(A)
    with pytest.raises(StoreInUseError, match=f"{base.chain_id} is needed: this store has a reference to it"):
        store.remove(base)
    other = open_store()
    with pytest.raises(StoreInUseError, match="another process"):
        other.remove(base)
    top = store.register(B, base)
    store.close()
    with pytest.raises(StoreInUseError, match=f"the layer {top.chain_id} stands on it"):
        other.remove(base)
    box = other.create_rw_layer("box", top)
    with pytest.raises(StoreInUseError, match="the writable layer box stands on it"):
        other.remove(top)
    image = layerstore.Images(other).create(top, {}, tags="app:1")
    box.release()
    with pytest.raises(StoreInUseError, match="the image app:1 needs it"):
        other.remove(top)
    assert not mark(base).exists() and not mark(top).exists(), "a refused remove() is no release"
    assert chains(layerstore.Images(other).remove(image).layers) == [top.chain_id, base.chain_id]


@pytest.mark.parametrize("wrong", [None, 5, b"sha256:", object()])
def test_remove_takes_a_text_or_a_layer(store, wrong):
    with pytest.raises(TypeError, match="remove"):
        store.remove(wrong)


@pytest.mark.parametrize("name", ["size", "diff", "cache-id", "parent"])
def test_remove_takes_a_damaged_layer(store, open_store, root, mark, name):
    base = store.register(A)
    top = store.register(B, base)
    base.release()
    mark(top).with_name(name).write_text("?" if name != "cache-id" else base.cache_id)
    store.close()
    with open_store() as again:
        assert chains(again.remove(top.chain_id))[0] == top.chain_id
        there = root / DRIVER / base.cache_id / ("layer.erofs" if DRIVER == "erofs" else f"{FILES}/a")
        assert there.exists() == (base.chain_id in again.map())
        again.cleanup()
        assert again.map() == {} and os.listdir(root / DRIVER) == ["l"]


# ---- a release that did not come to its end ----------------------------------------------------
@pytest.fixture
def interrupted(store, open_store):
    """A store in which a child went and its released parent did not: a kill between the two."""
    base = store.register(A)
    top = store.register(B, base)
    base.release()
    store._engine.references.sweep = lambda chain_id: []
    assert chains(top.release()) == [top.chain_id]
    store.close()
    return open_store(), base.chain_id


def test_cleanup_finishes_a_release(interrupted, root):
    store, _ = interrupted
    store.cleanup()
    assert store.map() == {} and os.listdir(root / DRIVER) == ["l"]


def test_orphans_lists_it_and_reclaim_removes_it(interrupted, root):
    store, chain = interrupted
    found = store.orphans()
    assert [(orphan.kind, orphan.path) for orphan in found] == [("layer", f"{LAYERDB}/sha256/{chain[7:]}")]
    assert store.reclaim() == found and set(store.map()) == {chain}
    assert store.reclaim(dry_run=False) == found
    assert store.map() == {} and store.orphans() == []


def test_what_needs_it_again_keeps_it(interrupted):
    store, chain = interrupted
    with store.create_rw_layer("box", chain):
        store.cleanup()
        assert set(store.map()) == {chain} and store.orphans() == []
    assert store.map() == {}


def test_a_stack_of_released_layers_is_one_list(store, open_store, root, mark):
    one = store.register(A)
    two = store.register(B, one)
    three = store.register(C, two)
    one.release(), two.release()
    mark(three).touch()                       # as if the kill came before the last of them went
    store.close()
    again = open_store()
    found = again.orphans()
    assert [orphan.kind for orphan in found] == ["layer"] * 3
    assert again.reclaim(dry_run=False) == found and again.map() == {}
    assert os.listdir(root / DRIVER) == ["l"]


# ---- what cannot be removed --------------------------------------------------------------------
def in_a(data=b"x"):
    return tarkit.dir("a/") + file("a/f", data) + end()


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_the_error_names_the_file_and_nothing_says_that_it_is_gone(store, open_store, root, stuck, diff_of, caplog):
    layer, other = store.register(in_a()), store.register(in_a(b"y"))
    stuck(layer), stuck(other)
    for release in (layer.release, lambda: store.remove(other.chain_id), other.release):
        with pytest.raises((OSError, StoreInUseError)) as caught:
            release()
    assert caught.value.filename == str(diff_of(other) / "a/f")
    store.close()
    again = open_store()
    kinds = sorted(orphan.kind for orphan in again.orphans())
    assert kinds == ["directory", "directory", "removal", "removal"]
    assert again.reclaim(dry_run=False) == [] and len(again.orphans()) == 4
    for which in (layer, other):
        assert str(diff_of(which) / "a/f") in caplog.text


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_a_released_layer_that_cannot_be_removed_is_not_told_as_gone(interrupted, root, stuck):
    store, chain = interrupted
    (root / DRIVER / store.map()[chain].cache_id / FILES / "a").unlink()
    (root / DRIVER / store.map()[chain].cache_id / FILES / "a").mkdir()
    (root / DRIVER / store.map()[chain].cache_id / FILES / "a/f").touch()
    loosen = stuck(store.map()[chain])
    assert [orphan.kind for orphan in store.orphans()] == ["layer"]
    assert store.reclaim(dry_run=False) == []
    assert sorted(orphan.kind for orphan in store.orphans()) == ["directory", "removal"]
    loosen()
    assert len(store.reclaim(dry_run=False)) == 2 and store.orphans() == []


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_one_that_cannot_be_removed_hinders_no_other(store, open_store, root, stuck):
    layers = [store.register(in_a(bytes([n]))) for n in range(5)]
    loosen = stuck(layers[2])
    with pytest.raises(OSError):
        layers[2].release()
    store.close()
    db = root / LAYERDB / "sha256"
    for place in db.iterdir():
        disk.remove_tree(place)
    again = open_store()
    assert len(again.orphans()) == 5
    assert len(again.reclaim(dry_run=False)) == 4
    loosen()
    assert len(again.reclaim(dry_run=False)) == 1


# ---- by the disk -------------------------------------------------------------------------------
def test_a_layer_that_another_store_made_anew_is_the_one_below(two):
    one, other = two
    first = one.register(A)
    other.register(A).release()
    first.release()
    base = one.register(A)
    top = one.register(B, base)
    held = other.get(top.chain_id)
    assert held.parent.cache_id == base.cache_id and held.parent.metadata()
    base.release(), top.release()
    assert other.register(A).release() == []
    assert {entry.path for entry in held.merged().files()} == {"a", "b"}
    assert chains(held.release()) == [top.chain_id, base.chain_id]


def test_a_second_release_of_what_another_store_deleted_gives_nothing(two):
    one, other = two
    mine = one.register(A)
    theirs = other.get(mine.chain_id)
    assert mine.release() == [] and chains(theirs.release()) == [theirs.chain_id]
    assert mine.release() == [] and theirs.release() == []


def test_a_bare_layer_made_anew_elsewhere_still_reads(two):
    one, other = two
    one.register(A).release()
    held = one.register(A)
    bare = other.map()[held.chain_id]
    held.release()
    again = one.register(A)
    assert bare.tar_stream().read() == A and bare.cache_id == again.cache_id
    assert other.map()[again.chain_id].metadata() == again.metadata()


@pytest.mark.parametrize("what", ["lost", "empty", "another", "garbage"])
def test_a_layer_whose_parent_file_is_damaged_keeps_its_parent(store, open_store, root, mark, what):
    base, other = store.register(A), store.register(C)
    top = store.register(B, base)
    for layer in (base, other, top):
        if layer is not top:
            layer.release()
    place = mark(top).with_name("parent")
    if what == "lost":
        place.unlink()
    else:
        place.write_text({"empty": "", "another": "sha256:" + "e" * 64, "garbage": "x"}[what])
    store.close()
    again = open_store()
    with pytest.raises(StoreInUseError, match=top.chain_id):
        again.remove(base)
    assert again.get(base.chain_id).release() == []


def test_what_cannot_be_read_at_all_keeps_everything(store, root, mark, caplog):
    base = store.register(A)
    place = mark(base).parent.parent / ("ab" * 32)
    place.mkdir()
    (place / "parent").write_text("?")
    assert base.release() == []
    assert "ab" * 32 in caplog.text
    (place / "parent").unlink(), place.rmdir()
    assert chains(store.remove(base)) == [base.chain_id]


def test_a_box_whose_other_files_are_damaged_keeps_its_layer(store, open_store, root):
    base = store.register(A)
    store.create_rw_layer("box", base)
    (root / LAYERDB / "mounts/box/mount-id").write_text("")
    store.close()
    again = open_store()
    assert again.mounts() == []
    with pytest.raises(StoreInUseError, match="box stands on it"):
        again.remove(base)


def empty(directory):
    for path in directory.iterdir():
        path.write_text("")


def test_damaged_layers_that_do_not_say_what_they_stand_on_can_be_removed_one_by_one(store, open_store, root):
    base = store.register(A)
    torn = [store.register(B, base).chain_id, store.register(C, base).chain_id]
    for chain in torn:
        empty(root / LAYERDB / "sha256" / chain.partition(":")[2])
    store.close()
    again = open_store()
    with pytest.raises(StoreInUseError, match="does not say what it stands on"):
        again.remove(base.chain_id)
    for chain in torn:
        assert chains(again.remove(chain)) == [chain]
    assert chains(again.remove(base.chain_id)) == [base.chain_id]
    again.cleanup()
    assert again.orphans() == [] == again.verify()


def test_a_box_of_whose_record_the_names_alone_are_left_goes_with_cleanup(store, open_store, root):
    base = store.register(A)
    store.create_rw_layer("box", base)
    store.create_rw_layer("whole", base)
    empty(root / LAYERDB / "mounts/box")
    store.close()
    again = open_store()
    assert "box" in {problem.subject for problem in again.verify()}
    with pytest.raises(StoreInUseError, match="box does not say what it stands on"):
        again.remove(base.chain_id)
    again.cleanup()
    assert again.mounts() == ["whole"] and again.orphans() == [] == again.verify()
    again.get_rw_layer("whole").release()
    assert chains(again.remove(base.chain_id)) == [base.chain_id]


def test_a_box_made_anew_on_another_layer_keeps_that_one(two, root, open_store):
    one, other = two
    first, second = one.register(A).chain_id, one.register(B).chain_id
    box = one.create_rw_layer("box", first)
    assert other.mounts() == ["box"]
    with pytest.raises(StoreInUseError):
        other.remove(first)
    box.release()
    one.create_rw_layer("box", second)
    one.close()
    with pytest.raises(StoreInUseError, match="box stands on it"):
        other.remove(second)
    assert chains(other.remove(first)) == [first]
    assert other.get_rw_layer("box").parent.chain_id == second


# ---- what a layer can stand on -----------------------------------------------------------------
def test_a_parent_is_a_text_a_layer_or_an_image(store, open_store, room):
    base = store.register(A)
    elsewhere = open_store(room / "other").register(A)
    image = layerstore.Images(store).create(base, {}, tags="base:1")
    parents = [base.chain_id, base, store.map()[base.chain_id], elsewhere, image]
    for number, parent in enumerate(parents):
        assert store.register(B, parent).parent.chain_id == base.chain_id
        assert store.register_with_descriptor(B, parent=parent).parent.chain_id == base.chain_id
        assert store.create_rw_layer(f"box{number}", parent).parent.chain_id == base.chain_id
    for nothing in ("", None, layerstore.Images(store).create("", {}, tags="empty:1")):
        assert store.register(C, nothing).parent is None


@pytest.mark.parametrize("wrong", [5, b"sha256:", object(), ("a",)])
def test_another_parent_is_refused(store, unchanged, wrong):
    with unchanged():
        for call in (lambda: store.register(A, wrong), lambda: store.create_rw_layer("box", wrong)):
            with pytest.raises(TypeError, match="a parent is a ChainID, a Layer or an Image"):
                call()
