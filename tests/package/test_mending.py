"""repair() of what is not a layer's files: its directory in the layerdb, small files of the driver, writable layers.

verify() tells each damage, mount() never shows another tree, and a sound state comes back: the data is all there.
"""

import itertools
import os
import shutil

import driven
import pytest
from driven import DRIVER, LAYERDB
from tarkit import dir, end, file, whiteout

from layerstore import CorruptLayerError, CreateRWLayerOpts, LayerDoesNotExistError, LayerStoreError

TARS = [
    dir("d/") + file("d/a", b"A") + end(), file("d/b", b"B") + whiteout("d/a") + end(), file("c", b"C" * 5000) + end(),
]
RIGHT = {"c": b"C" * 5000, "d/b": b"B", "mine": b"precious"}


@pytest.fixture
def chain(store):
    """Three layers, one on the other, as their ChainIDs."""
    ids = []
    for tar in TARS:
        ids.append(store.register(tar, ids[-1] if ids else "").chain_id)
    return ids


@pytest.fixture(params=[False, True], ids=["", "with an init layer"])
def box(request, store, chain):
    """A writable layer on them, with one file of its own; never released."""
    def init(path):
        return None

    made = store.create_rw_layer("box", chain[-1], CreateRWLayerOpts(init_func=init if request.param else None))
    with made.mounted() as path:
        write(f"{path}/mine", b"precious")
    return made


def write(path, data):
    with open(path, "wb") as out:
        out.write(data)


def shown(path):
    found = {}
    for at, _, names in os.walk(path):
        for name in names:
            with open(os.path.join(at, name), "rb") as data:
                found[os.path.relpath(os.path.join(at, name), path)] = data.read()
    return found


def nothing(path):
    write(path, b"")


def zeros(path):
    write(path, bytes(os.path.getsize(path)))


def no_text(path):
    write(path, b"\xff" * 26)


# what becomes of the box: (how, by its own directory and that of the whole driver)
BOX = {
    "lower is gone": lambda own, home: os.unlink(f"{own}/lower"),
    "lower is empty": lambda own, home: nothing(f"{own}/lower"),
    "lower is zeros": lambda own, home: zeros(f"{own}/lower"),
    "lower is cut": lambda own, home: write(f"{own}/lower", read(f"{own}/lower").rsplit(b":", 1)[0]),
    "lower is in another order": lambda own, home: write(f"{own}/lower", b":".join(reversed(read(f"{own}/lower").split(b":")))),
    "lower leads nowhere": lambda own, home: write(f"{own}/lower", b"l/NOWHERE"),
    "lower leads out": lambda own, home: write(f"{own}/lower", b"l/../../.."),
    "work is gone": lambda own, home: shutil.rmtree(f"{own}/work"),
    "work is a file": lambda own, home: (shutil.rmtree(f"{own}/work"), nothing(f"{own}/work")),
    "link is gone": lambda own, home: os.unlink(f"{own}/link"),
    "link is empty": lambda own, home: nothing(f"{own}/link"),
    "link is zeros": lambda own, home: zeros(f"{own}/link"),
    "the short link is gone": lambda own, home: os.unlink(f"{home}/l/{read(f'{own}/link').decode()}"),
    "the short link leads elsewhere": lambda own, home: relink(f"{home}/l/{read(f'{own}/link').decode()}"),
}


def read(path):
    with open(path, "rb") as data:
        return data.read()


def relink(path):
    os.unlink(path)
    os.symlink("../elsewhere/diff", path)


@pytest.mark.parametrize("how", BOX)
@pytest.mark.parametrize("call", ["mount", "repair"])
def test_a_box_is_mended_and_shows_what_it_showed(store, open_store, box, root, how, call):
    own = os.path.dirname(box.metadata()["UpperDir"])
    BOX[how](own, os.path.dirname(own))
    again = open_store()
    told = again.verify()
    assert {p.subject for p in told if p.kind != "orphan"} == {"box"}, told
    if how == "work is a file":
        with pytest.raises((CorruptLayerError, NotADirectoryError)):
            again.get_rw_layer("box").mount()
        return
    if call == "repair":
        assert again.repair("box") == [p for p in told if p.subject == "box"]
        assert again.repair("box") == []
    with again.get_rw_layer("box").mounted() as path:
        assert shown(path) == RIGHT
    assert again.verify() == []
    assert {change.path for change in again.get_rw_layer("box").changes()} == {"/mine"}
    again.close()


@pytest.mark.parametrize("how", ["lower is gone", "lower is cut", "lower is in another order"])
@pytest.mark.parametrize("call", ["changes", "tar_stream", "commit"])
def test_no_call_takes_another_tree_for_its_base(store, open_store, box, how, call):
    own = os.path.dirname(box.metadata()["UpperDir"])
    BOX[how](own, os.path.dirname(own))
    again = open_store()
    made = getattr(again.get_rw_layer("box"), call)()
    if call == "changes":
        assert {change.path for change in made} == {"/mine"}
    elif call == "commit":
        assert [entry.path for entry in made.files()] == ["mine"]
    else:
        made.close()
    again.close()


def test_who_may_only_read_is_told(store, open_store, box):
    own = os.path.dirname(box.metadata()["UpperDir"])
    os.unlink(f"{own}/lower")
    with open_store(options={"read_only": "true"}) as other, pytest.raises(CorruptLayerError, match="lower is gone; repair box"):
        other.get_rw_layer("box").changes()


@pytest.mark.parametrize("lost", ["parent", "init-id", "mount-id"])
@pytest.mark.parametrize("harm", [os.unlink, nothing, zeros])
def test_the_record_of_a_box_follows_from_its_files_where_it_can(store, open_store, box, root, chain, lost, harm):
    path = root / LAYERDB / "mounts/box" / lost
    if not path.exists():
        return                                         # it has no init layer
    before = path.read_bytes()
    harm(path)
    again = open_store()
    assert "box" in {p.subject for p in again.verify()}
    if lost == "mount-id":
        with pytest.raises(CorruptLayerError, match="the metadata no longer says which directory box has"):
            again.repair("box")
        return
    if lost == "parent":
        with pytest.raises(LayerStoreError):           # never without its base
            again.get_rw_layer("box").mount()
    assert again.repair("box")
    assert path.read_bytes() == before
    with again.get_rw_layer("box").mounted() as at:
        assert shown(at) == RIGHT
    assert again.verify() == []
    again.close()


def test_what_was_written_is_not_made_up(store, open_store, box):
    own = os.path.dirname(box.metadata()["UpperDir"])
    shutil.rmtree(f"{own}/{driven.FILES}")
    again = open_store()
    for call in (lambda: again.get_rw_layer("box").mount(), lambda: again.repair("box")):
        with pytest.raises(LayerStoreError, match=f"{driven.FILES} is gone"):
            call()
    assert not os.path.exists(f"{own}/{driven.FILES}")
    again.close()


def test_a_name_is_a_box_and_an_id_a_layer(store, chain):
    with pytest.raises(LayerDoesNotExistError):
        store.repair("nobody")
    assert store.repair(chain[0]) == []


# ---- a layer's own directory in the layerdb ------------------------------------------------------------------
FILES = ("cache-id", "diff", "parent", "size", "tar-split.json.gz")


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_layer_that_lost_files_of_its_directory_comes_back_by_its_tar(store, open_store, box, root, chain, at):
    directory = root / LAYERDB / "sha256" / chain[at].encoded
    there = [name for name in FILES if (directory / name).exists()]
    for count, harm in itertools.product((1, 2, len(there)), (os.unlink, nothing, zeros)):
        for lost in itertools.combinations(there, count):
            for name in lost:
                harm(directory / name)
            with open_store() as again:
                assert {p.subject for p in again.verify()} >= {chain[at]}, lost
                if lost != ("parent",):
                    with pytest.raises(CorruptLayerError):
                        again.repair(chain[at], file("other", b"x") + end())
                assert again.repair(chain[at], TARS[at]), lost
                again.cleanup()
                assert again.verify() == [], (lost, again.verify())
                with again.get_rw_layer("box").mounted() as path:
                    assert shown(path) == RIGHT, lost


def test_a_diff_id_that_is_anothers_is_put_right(store, open_store, box, root, chain):
    db = root / LAYERDB / "sha256"
    shutil.copy(db / chain[0].encoded / "diff", db / chain[1].encoded / "diff")
    with open_store() as again:
        assert chain[1] in {p.subject for p in again.verify()}
        for show in (lambda: again.map()[chain[2]].merged(), lambda: again.get_rw_layer("box").mount()):
            with pytest.raises(CorruptLayerError, match="does not follow"):
                show()
        assert again.repair(chain[1], TARS[1])
        assert again.verify() == []
        with again.get_rw_layer("box").mounted() as path:
            assert shown(path) == RIGHT


def test_a_lost_parent_is_never_no_parent(store, open_store, box, root, chain):
    (root / LAYERDB / "sha256" / chain[1].encoded / "parent").unlink()
    with open_store() as again:
        for show in (lambda: again.map()[chain[1]].merged(), lambda: again.get_rw_layer("box").mount()):
            with pytest.raises(CorruptLayerError, match="does not follow"):
                show()
        assert again.repair(chain[1])                  # what it stood on follows from its DiffID
        assert again.verify() == []
        with again.get_rw_layer("box").mounted() as path:
            assert shown(path) == RIGHT


def test_a_layer_on_a_damaged_one_says_which_is_first(store, open_store, root, chain):
    directory = root / LAYERDB / "sha256" / chain[0].encoded
    for name in os.listdir(directory):
        os.unlink(directory / name)
    with open_store() as again:
        for source in (None, TARS[1]):
            with pytest.raises(CorruptLayerError, match=r"repair that first|is to be registered first"):
                again.repair(chain[1], source)
        assert again.repair(chain[0], TARS[0])
        again.cleanup()
        assert again.verify() == []


@pytest.mark.only("overlay2", "of the files in a layer's directory")
@pytest.mark.parametrize("name", ["link", "lower"])
@pytest.mark.parametrize("harm", [zeros, nothing, os.unlink])
def test_a_layers_small_file_is_told_and_mended_and_hides_nothing(store, open_store, root, chain, box, name, harm):
    layers = store.map()
    harm(root / DRIVER / layers[chain[1]].cache_id / name)
    write(root / DRIVER / layers[chain[2]].cache_id / "diff" / "c", b"damaged")
    with open_store() as again:
        assert {p.subject for p in again.verify()} >= {chain[1], chain[2]}
        again.repair(chain[1], TARS[1])
        again.repair(chain[2], TARS[2])
        with again.get_rw_layer("box").mounted() as path:
            assert shown(path) == RIGHT
        assert again.verify() == []


@pytest.mark.parametrize("name", ["link", "lower"])
@pytest.mark.parametrize("harm", [zeros, nothing, no_text])
def test_what_is_made_on_a_layer_with_a_damaged_small_file_shows_all(store, open_store, root, chain, box, name, harm):
    harm(root / DRIVER / store.map()[chain[1]].cache_id / name)
    harm(root / DRIVER / store.map()[chain[2]].cache_id / name)
    with open_store() as again:
        committed = again.get_rw_layer("box").commit()
        registered = again.register(file("mine", b"precious") + end(), chain[2])
        for layer in (committed, registered):
            with again.create_rw_layer("new", layer) as new, new.mounted() as path:
                assert shown(path) == RIGHT


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_donors_that_cannot_be_read_are_passed_over(store, root):
    broken = store.register(file("f", b"needed" * 100) + end())
    for n, junk in enumerate((b"", b"\x1f\x8b", b"no gzip at all", bytes(500))):
        other = store.register(file("f", b"needed" * 100) + file(f"n{n}") + end())
        (root / LAYERDB / "sha256" / other.chain_id.encoded / "tar-split.json.gz").write_bytes(junk)
    damaged = store.register(file("x", b"needed" * 100) + end())
    write(root / DRIVER / damaged.cache_id / "diff" / "x", b"worse")
    write(root / DRIVER / broken.cache_id / "diff" / "f", b"damaged")
    with pytest.raises(CorruptLayerError, match="in no other layer"):
        store.repair(broken.chain_id)
    store.register(file("sound", b"needed" * 100) + end())
    assert [p.path for p in store.repair(broken.chain_id)] == ["f"]
    assert store.verify(broken.chain_id) == []
