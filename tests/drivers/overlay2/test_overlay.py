"""The overlay2 directory as Docker knows it, seen through Store and on disk."""

import os
import re
import stat
import types

import another
import pytest
import tarkit
from disk import inventory, mount_line, mounts_below
from stored import shown
from tarkit import end, file

import layerstore
from layerstore import CreateRWLayerOpts, LayerStoreError, MaxDepthExceededError
from layerstore.disk import mounts
from layerstore.drivers import checks
from layerstore.drivers.overlay import lowers

SHORT = re.compile(r"[A-Z2-7]{26}")


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def link_of(place):
    return (place / "link").read_text()


def numbered(i):
    """A layer of five bytes of its own."""
    return file(f"f{i}", b"%05d" % i) + end()


def stack(store, count):
    """So many layers of five bytes, each on the one before."""
    layers, below = [], ""
    for i in range(1, count + 1):
        layers.append(below := store.register(numbered(i), below))
    return layers


@pytest.fixture
def home(root):
    return root / "overlay2"


@pytest.fixture
def tower(store):
    """125 layers of five bytes; the handle of the top one."""
    *below, top = stack(store, 125)
    assert [layer.release() for layer in below] == [[]] * 124
    return top


@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_a_base_layer_is_diff_and_link(open_store, home, umask):
    before = os.umask(umask)
    try:
        layer = open_store().register(tarkit.T1)
    finally:
        os.umask(before)
    place = home / layer.cache_id
    assert sorted(os.listdir(place)) == ["diff", "link"]
    assert [mode(p) for p in (home, home / "l", place, place / "diff", place / "link")] == [0o710, 0o700, 0o710, 0o755, 0o644]
    assert SHORT.fullmatch(link_of(place))
    assert os.readlink(home / "l" / link_of(place)) == f"../{layer.cache_id}/diff"
    assert os.listdir(home / "l") == [link_of(place)]


def test_a_child_names_its_lowers_nearest_first(store, home):
    one, two, three = stack(store, 3)
    places = [home / layer.cache_id for layer in (one, two, three)]
    assert (places[1] / "lower").read_text() == f"l/{link_of(places[0])}"
    assert len((places[1] / "lower").read_text()) == 28
    assert (places[2] / "lower").read_text() == f"l/{link_of(places[1])}:l/{link_of(places[0])}"
    assert sorted(os.listdir(places[2])) == ["diff", "link", "lower", "work"]
    assert mode(places[2] / "work") == 0o700
    assert mode(places[2] / "lower") == 0o644
    for place in places[:2]:
        assert mode(place / "committed") == 0o600
        assert (place / "committed").stat().st_size == 0
    assert not (places[2] / "committed").exists()


def test_a_writable_layer_with_init_stands_on_init(store, home):
    one, two = stack(store, 2)
    store.create_rw_layer("c", two.chain_id, CreateRWLayerOpts(init_func=lambda path: None))
    mount_id = store.get_mount_id("c")
    init = home / f"{mount_id}-init"
    lower = (home / mount_id / "lower").read_text()
    expected = [init, home / two.cache_id, home / one.cache_id]
    assert lower == ":".join(f"l/{link_of(place)}" for place in expected)
    assert len(lower) == 86
    assert (init / "committed").exists()
    assert not (home / mount_id / "committed").exists()
    assert not (init / "merged").exists()


def test_a_writable_layer_without_lowers_is_its_diff_directory(store, home):
    rw = store.create_rw_layer("c")
    assert rw.mount() == str(home / store.get_mount_id("c") / "diff")
    assert mounts_below(home) == []
    rw.unmount()


def test_a_mount_is_an_overlay_as_docker_mounts_it(store, home):
    base = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", base.chain_id)
    place = home / store.get_mount_id("c")
    merged = rw.mount()
    source, _, kind, options = mount_line(merged)
    assert merged == str(place / "merged")
    assert (source, kind) == ("overlay", "overlay")
    given = dict(o.partition("=")[::2] for o in options.split(","))
    for name, end_of in (("upperdir", "diff"), ("workdir", "work")):
        assert given[name].endswith(f"{place.name}/{end_of}")
    assert "metacopy" not in options.replace("metacopy=off", "")
    assert "redirect_dir=on" not in options
    assert ("volatile" in options) == (checks.kernel_version() >= (5, 10))      # as the home is on tmpfs
    assert mode(place / "work" / "work") == 0
    assert (os.stat(merged).st_mode & 0o7777) == 0o755
    rw.unmount()
    assert mount_line(merged) is None
    assert not os.path.exists(merged)


def test_metadata_names_three_directories_and_a_childs_lowers(store, home):
    one, two, three = stack(store, 3)
    place = home / one.cache_id
    assert one.metadata() == {
        "WorkDir": str(place / "work"),
        "MergedDir": str(place / "merged"),
        "UpperDir": str(place / "diff"),
    }
    assert three.metadata()["LowerDir"] == f"{home}/{two.cache_id}/diff:{home}/{one.cache_id}/diff"
    assert len(three.metadata()) == 4


def test_t2_lies_on_disk_as_overlay_marks(store, diff_of):
    base = store.register(tarkit.T1)
    layer = store.register(tarkit.T2, base.chain_id)
    diff = diff_of(layer)
    status = os.lstat(diff / "a/f")
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == 0
    assert os.getxattr(diff / "d", "trusted.overlay.opaque") == b"y"
    assert not [name for name in inventory(diff) if ".wh." in name]
    assert layer.diff_size == 4


@pytest.mark.time_limit(120)
def test_the_top_of_125_layers_mounts_with_init_and_without(store, tower, home):
    plain = store.create_rw_layer("plain", tower.chain_id)
    seen = []
    init = store.create_rw_layer("init", tower.chain_id, CreateRWLayerOpts(init_func=seen.append))
    assert seen == [str(home / (store.get_mount_id("init") + "-init") / "merged")]
    for rw in (plain, init):
        merged = rw.mount()
        assert len(os.listdir(merged)) == 125
        with open(os.path.join(merged, "f1")) as lowest:
            assert lowest.read() == "00001"
        rw.unmount()
    assert mounts_below(home) == []


@pytest.mark.time_limit(120)
def test_the_126th_layer_is_refused_and_leaves_nothing(store, tower, unchanged):
    with unchanged(), pytest.raises(MaxDepthExceededError, match="max depth exceeded"):
        store.register(numbered(126), tower.chain_id)


@pytest.mark.time_limit(120)
def test_releasing_the_top_of_125_layers_gives_125_records(store, tower, home):
    gone = store.release(tower)
    assert len(gone) == 125
    assert (gone[0].size, gone[0].diff_size) == (625, 5)
    assert (gone[-1].size, gone[-1].diff_size) == (5, 5)
    assert os.listdir(home) == ["l"]
    assert os.listdir(home / "l") == []


def test_releasing_a_mounted_layer_unmounts_it(store, home):
    base = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", base.chain_id)
    place = home / store.get_mount_id("c")
    merged = rw.mount()
    short = link_of(place)
    store.release_rw_layer(rw)
    assert mount_line(merged) is None
    assert not place.exists()
    assert not (home / "l" / short).is_symlink()


def test_a_mount_that_outlived_its_process_is_used_again(store, open_store, room, root):
    base = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", base.chain_id)
    store.close()
    code = "import sys, os, layerstore; s = layerstore.Store(sys.argv[1]); print(s.get_rw_layer('c').mount(), flush=True); os._exit(0)"
    path = another.python(code, root).strip()
    assert mount_line(path)
    again = open_store()
    rw = again.get_rw_layer("c")
    assert rw.mount() == path
    assert mounts_below(root).count(path) == 1
    rw.unmount()
    assert mount_line(path)
    rw.unmount()
    assert mount_line(path) is None


def test_driver_status_is_in_dockers_order(store):
    assert store.driver_name() == "overlay2"
    assert store.driver_status() == [
        ("Backing Filesystem", "tmpfs"),
        ("Supports d_type", "true"),
        ("Using metacopy", "false"),
        ("Native Overlay Diff", "true"),
        ("userxattr", "false"),
    ]


SIZES = ["10M", "1.5g", "50", "1kib", "0.5T", "1 PB", "7b"]


@pytest.mark.parametrize("size", SIZES)
def test_a_storage_size_needs_xfs_and_leaves_nothing(store, unchanged, size):
    base = store.register(tarkit.T1)
    store.create_rw_layer("first", base.chain_id)
    with unchanged(), pytest.raises(Exception, match="only for overlay over xfs with 'pquota'"):
        store.create_rw_layer("c", base.chain_id, CreateRWLayerOpts(storage_opt={"size": size}))
    assert store.mounts() == ["first"]


def test_an_unknown_storage_option_is_refused_and_the_parent_let_go(store, unchanged):
    base = store.register(tarkit.T1)
    child = store.create_rw_layer("first", base.chain_id)
    with unchanged(), pytest.raises(Exception, match="Unknown option foo"):
        store.create_rw_layer("c", base.chain_id, CreateRWLayerOpts(storage_opt={"foo": "1"}))
    store.release_rw_layer(child)
    assert [m.chain_id for m in store.release(base)] == [tarkit.T1_DIFF_ID]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"overlay2.size": "10M"}, "only supported for backingFS XFS"),
        ({"overlay2.nonsense": "1"}, "overlay2: unknown option overlay2.nonsense"),
    ],
)
def test_driver_options_are_judged_at_opening(root, options, sentence):
    with pytest.raises(Exception, match=sentence):
        layerstore.Store(root, options=options)


@pytest.mark.parametrize("driver", ["aufs", "devicemapper", "overlay", "zfs", "nonsense", "../x"])
def test_a_driver_that_is_not_ours_is_refused_and_makes_nothing(root, room, unchanged, driver):
    with unchanged(room), pytest.raises((LayerStoreError, ValueError)):
        layerstore.Store(root, driver=driver)


def test_the_driver_found_below_the_root_is_taken(open_store, root):
    layer = open_store(driver="overlay2").register(tarkit.T1)
    store = open_store()
    assert store.driver_name() == "overlay2"
    assert layer.chain_id in store.map()


def test_a_lost_short_link_is_an_error_and_not_a_wrong_mount(store, home):
    one, two = stack(store, 2)
    rw = store.create_rw_layer("c", two.chain_id)
    (home / "l" / link_of(home / one.cache_id)).unlink()
    with pytest.raises((OSError, LayerStoreError)):
        rw.mount()
    assert mounts_below(home) == []


def test_short_links_of_any_length_are_followed(store, open_store, home):
    """Reading code must not assume 26 characters: another writer's store stays readable."""
    one, two = stack(store, 2)
    store.close()
    place = home / one.cache_id
    (home / "l" / link_of(place)).unlink()
    (home / "l/SHORT").symlink_to(f"../{one.cache_id}/diff")
    (place / "link").write_text("SHORT")
    (home / two.cache_id / "lower").write_text("l/SHORT")
    again = open_store()
    rw = again.create_rw_layer("c", two.chain_id)
    with rw.mounted() as merged:
        assert sorted(os.listdir(merged)) == ["f1", "f2"]
    assert (home / again.get_mount_id("c") / "lower").read_text().endswith(":l/SHORT")


def test_a_root_with_colon_comma_and_blanks_mounts(open_store, room):
    odd = room / "a:b,c d\\e"
    store = open_store(odd)
    base = store.register(tarkit.T1)
    assert shown(store, base) == {"a": "dir", "a/f": "hello"}


def test_a_root_of_300_characters_mounts(open_store, room):
    deep = room / ("x" * 150) / ("y" * 150)
    deep.mkdir(parents=True)
    store = open_store(deep)
    assert len(shown(store, stack(store, 29)[-1])) == 29


# ---- what a kernel has on by itself ----------------------------------------------------------------------
@pytest.mark.parametrize(("values", "off"), [
    ({"index": "N", "redirect_dir": "N", "metacopy": "N"}, ("index",)), ({"redirect_dir": "N", "metacopy": "0"}, ()),
    ({"index": "Y", "redirect_dir": "Y", "metacopy": "N"}, ("index", "redirect_dir")),
    ({"index": "Y", "redirect_dir": "on", "metacopy": "Y"}, ("index", "redirect_dir", "metacopy")), ({}, ()),
])  # fmt: skip
def test_what_the_kernel_has_on_by_itself_is_given_as_off(room, monkeypatch, values, off):
    for name, value in values.items():
        (room / name).write_text(f"{value}\n")
    monkeypatch.setattr(checks, "_PARAMETERS", str(room))
    assert checks.options_off() == off


@pytest.mark.parametrize("api", ["old", "new"])
def test_every_mount_gives_these_options(room, root, open_store, monkeypatch, api):
    """A kernel that has them on shows what is off in its table of mounts."""
    monkeypatch.setenv("LAYERSTORE_MOUNT_API", api)
    monkeypatch.setattr(checks, "options_off", lambda: ("index", "redirect_dir", "metacopy"))
    seen = []
    monkeypatch.setattr(mounts, "mount_overlay", lambda *args, **more: (seen.append(args[0].off), real(*args, **more)))
    with open_store() as store:
        with store.create_rw_layer("box", store.register(tarkit.T1).chain_id).mounted() as path:
            assert os.listdir(path)
    assert seen and set(seen) == {("index", "redirect_dir", "metacopy")}


real = mounts.mount_overlay


def test_a_short_link_that_goes_while_links_are_listed(store, home, monkeypatch):
    """A thread of the store removes what a rollback dropped, while orphans() looks."""
    store.register(tarkit.T1)
    (home / "l/GOING").symlink_to("../gone/diff")

    def readlink(path, *, real=lowers._files.readlink):
        (home / "l/GOING").unlink(missing_ok=True)
        return real(path)

    monkeypatch.setattr(lowers, "_files", types.SimpleNamespace(**{**vars(lowers._files), "readlink": readlink}))
    assert store.orphans() == []


@pytest.mark.parametrize("lost", [1, 3])
def test_a_probe_whose_new_directory_another_process_removes_makes_another_one(room, monkeypatch, lost):
    """A cleanup() of another process may look between the two steps that make and claim a probe's directory."""
    claim, left = checks.claim_directory, [*range(lost)]

    def claimed(directory, **how):
        if left and not how:
            left.pop()
            checks.remove_abandoned(str(room))
        return claim(directory, **how)

    monkeypatch.setattr(checks, "claim_directory", claimed)
    checks.probe_overlay.__wrapped__(str(room))
    assert not left and list(room.iterdir()) == []
