"""Hostile tars: nothing outside the layer's own directory is written, changed or read."""

import contextlib
import io
import json
import os
import re

import pytest
import tarkit
from disk import changed, disk_state, shape
from tarkit import dir, end, file, hardlink, node, symlink, whiteout

from layerstore import BreakoutError, LayerStoreError, assemble

UP = "../" * 12


@pytest.fixture
def outside(store, room, root, victim):
    """The whole room but the layers' own directories must stay as it is."""
    store.register(tarkit.T1)
    before = disk_state(room)
    yield
    after = disk_state(room)
    known = re.compile(rb"docker/overlay2/([0-9a-f]{64}|l/)|docker/image/overlay2/layerdb/(sha256/[0-9a-f]{64}|mounts)")
    names = before.keys() | after.keys()
    strange = [name for name in names if before.get(name) != after.get(name) and not known.match(name)]
    assert strange == []


def absolute(path):
    return os.fspath(path)


NAMES = {
    "parent": "../victim/x", "parent behind a slash": "/../victim/x", "the parent itself": "..",
    "the parent with a slash": "../", "climbs after a step": "a/../../victim/x", "climbs far": UP + "victim/x",
    "hidden among dots": "./.././victim/x", "doubled slashes": "..//victim//x",
    "a whiteout outside": "../victim/.wh.hello",
    "an opaque mark outside": "../victim/.wh..wh..opq",
    "an opaque mark for the parent": "../.wh..wh..opq",
}


@pytest.mark.parametrize("entry", [file, dir, tarkit.fifo], ids=lambda e: e.__name__)
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_a_name_that_leaves_the_root_is_a_breakout(store, outside, unchanged, entry, name):
    with unchanged(), pytest.raises(BreakoutError) as caught:
        store.register(file("good", b"g") + entry(name) + end())
    assert caught.value.path == name


def test_dots_that_stay_inside_are_cleaned(store, outside, diff_of):
    layer = store.register(file("a/../b", b"b") + file("/c", b"c") + file("//d//e", b"e") + end())
    assert shape(diff_of(layer)) == {"b": "b", "c": "c", "d": "dir", "d/e": "e"}


@pytest.mark.parametrize("target", ["../victim/hello", "/../victim/hello", UP + "victim/hello", ".", "..", "/", ""])
def test_a_hard_link_to_the_outside_is_refused(store, outside, unchanged, target):
    with unchanged(), pytest.raises((BreakoutError, OSError)) as caught:
        store.register(file("good", b"g") + hardlink("x", target) + end())
    if target.strip("./"):
        assert isinstance(caught.value, BreakoutError)


def test_a_hard_link_to_an_absolute_host_path_finds_nothing(store, outside, unchanged, victim):
    target = tarkit.raw(absolute(victim / "hello"))
    with unchanged(), pytest.raises(FileNotFoundError):
        store.register(hardlink("x", target) + end())


def test_an_absolute_hard_link_means_the_layers_root(store, outside, diff_of):
    layer = store.register(file("usr/bin/a", b"a") + hardlink("b", "/usr/bin/a") + end())
    assert os.path.samefile(diff_of(layer) / "b", diff_of(layer) / "usr/bin/a")


def test_a_hard_link_through_a_symlink_cannot_reach_outside(store, outside, unchanged, victim):
    for target in ("../../../victim", absolute(victim)):
        with unchanged(), pytest.raises((LayerStoreError, OSError)):
            store.register(symlink("l", target) + hardlink("x", "l/hello") + end())


def test_a_hard_link_to_a_symlink_links_the_symlink(store, outside, diff_of, victim):
    """Setting mode and owner on that entry must not reach through it either."""
    tar = symlink("l", absolute(victim / "hello")) + hardlink("x", "l", mode=0o777, uid=5, gid=5, mtime=9) + end()
    layer = store.register(tar)
    assert os.path.islink(diff_of(layer) / "x")


ESCAPES = {
    "relative": symlink("l", UP + "victim"), "one up": symlink("l", "../victim"),
    "in two hops": dir("inner/") + symlink("inner/up", "..") + symlink("inner/up/l", "../victim"),
    "a chain of links": symlink("a", "b") + symlink("b", "c") + symlink("c", "..") + symlink("l", "a/victim"),
    "far up": symlink("l", UP),
}


@pytest.mark.parametrize("kind", ["file", "dir", "whiteout", "opaque", "fifo", "hardlink", "symlink", "node"])
@pytest.mark.parametrize("escape", ESCAPES)
def test_nothing_is_made_through_a_symlink_that_climbs_out(store, outside, unchanged, escape, kind):
    entry = {
        "file": file("l/f", b"f"), "dir": dir("l/f/"), "whiteout": whiteout("l/hello"), "opaque": tarkit.opaque("l"),
        "fifo": tarkit.fifo("l/f"), "hardlink": file("g") + hardlink("l/f", "g"), "symlink": symlink("l/f", "g"),
        "node": tarkit.node("l/f", "c", 1, 3),
    }[kind]
    with unchanged(), pytest.raises(BreakoutError):
        store.register(ESCAPES[escape] + entry + end())


def test_an_absolute_symlink_leads_to_the_layers_own_root(store, outside, diff_of, victim):
    layer = store.register(symlink("l", absolute(victim)) + file("l/hello", b"inside") + end())
    inside = absolute(victim).lstrip("/")
    assert (diff_of(layer) / inside / "hello").read_bytes() == b"inside"


@pytest.mark.parametrize("with_run", [True, False])
def test_a_link_that_was_there_before_is_followed_inside(store, outside, diff_of, with_run):
    rw = store.create_rw_layer("c")
    rw.apply_diff((dir("run/") if with_run else b"") + symlink("var/run", "/run") + end())
    rw.apply_diff(file("var/run/existing/non-existing/f", b"f") + end())
    diff = diff_of(store.get_mount_id("c"))
    assert (diff / "run/existing/non-existing/f").read_bytes() == b"f"
    assert os.readlink(diff / "var/run") == "/run"


def test_a_relative_climb_before_an_absolute_link_is_refused(store, outside, victim):
    rw = store.create_rw_layer("c")
    rw.apply_diff(symlink("escape", "..") + symlink("absolute", "/target") + end())
    with pytest.raises(BreakoutError):
        rw.apply_diff(file("escape/absolute/f", b"f") + end())


def test_symlinks_alone_are_kept_verbatim(store, outside, diff_of):
    targets = {"a": "/etc/passwd", "b": "../../x", "c": UP + "victim", "d": ".", "e": "x" * 90}
    layer = store.register(b"".join(symlink(*pair) for pair in targets.items()) + end())
    assert {name: os.readlink(diff_of(layer) / name) for name in targets} == targets


@pytest.mark.parametrize("change", ["mode", "owner", "times", "xattr", "file over it", "directory over it"])
def test_an_entry_over_a_symlink_never_touches_its_target(store, outside, victim, change):
    """The last component is never followed, whichever metadata it brings."""
    link = symlink("l", absolute(victim / "hello"))
    entry = {
        "mode": symlink("l", absolute(victim / "hello"), mode=0o000),
        "owner": symlink("l", absolute(victim / "hello"), uid=99, gid=99),
        "times": symlink("l", absolute(victim / "hello"), mtime=99),
        "xattr": tarkit.xattrs({"trusted.x": b"y"}) + symlink("l", absolute(victim / "hello")),
        "file over it": file("l", b"new", mode=0o777, mtime=5),
        "directory over it": dir("l/", mode=0o700) + file("l/sub", b"s"),
    }[change]
    store.register(link + entry + end())


def test_a_directory_entry_over_a_link_to_a_directory_replaces_the_link(store, outside, diff_of, victim):
    layer = store.register(symlink("l", absolute(victim)) + dir("l/", mode=0o700) + file("l/x", b"x") + end())
    assert shape(diff_of(layer)) == {"l": "dir", "l/x": "x"}


def test_replacing_a_tree_removes_links_and_not_what_they_lead_to(store, outside, diff_of, victim):
    tar = (dir("d/") + symlink("d/l", absolute(victim)) + symlink("d/m", UP + "victim") + file("d", b"now") + end())
    assert shape(diff_of(store.register(tar))) == {"d": "now"}


def test_a_directory_swapped_for_a_link_gets_no_late_metadata(store, outside, victim, diff_of):
    """Directory times are set at the end: through the old name they would reach the victim."""
    tar = (
        dir("d/", mtime=5, mode=0o700) + file("d/f", b"f") + symlink("d", absolute(victim)) + dir("e/", mtime=6)
        + symlink("e", UP + "victim") + end()
    )
    layer = store.register(tar)
    assert os.readlink(diff_of(layer) / "d") == absolute(victim)


def test_a_parent_swapped_for_a_link_hides_no_later_file(store, outside, unchanged):
    tar = dir("d/") + file("d/a", b"a") + symlink("d", UP + "victim") + file("d/a", b"b") + end()
    with unchanged(), pytest.raises(BreakoutError):
        store.register(tar)


def test_a_ring_of_links_is_an_error_and_not_a_hang(store, outside, unchanged):
    for tar in (
        symlink("a", "b") + symlink("b", "a") + file("a/f", b"f"),
        symlink("a", "a") + file("a/f"),
        symlink("a", "/b/x") + symlink("b", "/a/x") + file("a/f"),
    ):
        with unchanged(), pytest.raises((LayerStoreError, OSError)):
            store.register(tar + end())


def test_proc_and_dev_of_the_host_are_not_reachable(store, outside, diff_of):
    tar = (
        symlink("p", "/proc/self/root") + file("p/breakout-proof", b"x") + symlink("q", "/dev/shm") + file("q/y", b"y")
    )
    layer = store.register(tar + end())
    assert (diff_of(layer) / "proc/self/root/breakout-proof").read_bytes() == b"x"
    assert not os.path.exists("/breakout-proof")
    assert not os.path.exists("/dev/shm/y")


def test_the_working_directory_plays_no_part(store, outside, victim, diff_of, monkeypatch):
    monkeypatch.chdir(victim)
    layer = store.register(file("hello", b"mine") + hardlink("x", "hello", mode=0o777) + whiteout("sub") + end())
    assert (diff_of(layer) / "hello").read_bytes() == b"mine"


@pytest.mark.parametrize("tar", [file("../victim/x"), symlink("l", UP + "victim") + file("l/x"), whiteout("../victim")])
def test_apply_diff_into_a_writable_layer_is_as_strict(store, outside, victim, tar):
    base = store.register(tarkit.T1)
    for parent in ("", base.chain_id):
        rw = store.create_rw_layer(f"c{parent}"[:9], parent)
        with pytest.raises(BreakoutError):
            rw.apply_diff(tar + end())


# ---- the way out ---------------------------------------------------------------------------------------
def record(name, size=5):
    line = {"type": 1, "name": name, "size": size, "payload": "PD7u4tgQAAA=", "position": 0}
    return io.BytesIO(json.dumps(line).encode() + b"\n")


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/../secret", "link", "dir/secret", "abs"])
def test_assemble_reads_nothing_outside_its_root(room, name):
    (room / "secret").write_bytes(b"hello")
    tree = room / "tree"
    tree.mkdir()
    (tree / "link").symlink_to("../secret")
    (tree / "dir").symlink_to("..")
    (tree / "abs").symlink_to(room / "secret")
    with pytest.raises((LayerStoreError, OSError)):
        with assemble(record(name), tree) as stream:
            assert stream.read() != b"hello"


@pytest.mark.time_limit(20)
def test_assemble_waits_for_no_fifo_and_opens_no_device(room):
    tree = room / "tree"
    tree.mkdir()
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "zero", 0o020666, os.makedev(1, 5))
    (tree / "dir").mkdir()
    for name in ("fifo", "zero", "dir"):
        with pytest.raises((LayerStoreError, OSError)), assemble(record(name), tree) as stream:
            stream.read()


def test_assemble_takes_absolute_names_as_beneath_the_root(room):
    tree = room / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/passwd").write_bytes(b"hello")
    with assemble(record("/etc/passwd"), tree) as stream:
        assert stream.read() == b"hello"


def test_exports_follow_no_link(store, victim, room):
    rw = store.create_rw_layer("c", store.register(tarkit.T1).chain_id)
    with rw.mounted() as path:
        os.symlink(absolute(victim / "hello"), f"{path}/l")
        os.symlink(absolute(victim), f"{path}/d")
    before = disk_state(victim)
    with rw.tar_stream() as stream:
        data = stream.read()
    assert b"what a hostile tar" not in data
    assert changed(before, disk_state(victim)) == []


# ---- refusals, by name -----------------------------------------------------------------------------------
NAME, LINK, MARK = "invalid entry name", "invalid hardlink target", "invalid whiteout entry"
REFUSED = {
    "name": (file("../victim/x"), BreakoutError, rf'{NAME} "\.\./victim/x"'),
    "absolute name": (file("/../victim/x"), BreakoutError, rf'{NAME} "/\.\./victim/x"'),
    "dots": (dir(".."), BreakoutError, rf'{NAME} "\.\."'),
    "prefix": (file("x", b"x", prefix="../victim"), BreakoutError, NAME),
    "long name of PAX": (tarkit.with_pax_path("../victim/x", file, b"x"), BreakoutError, NAME),
    "long name of GNU": (tarkit.with_gnu_path("../victim/x", file, b"x"), BreakoutError, NAME),
    "sparse 0.1": (tarkit.pax_sparse_0_1("../victim/x", [(0, b"x")], 10), BreakoutError, NAME),
    "sparse 1.0": (tarkit.pax_sparse_1_0("../victim/x", [(0, b"x")], 10), BreakoutError, NAME),
    "the driver's link": (file("../link", b"x"), BreakoutError, NAME),
    "the driver's lower": (file("../lower", b"x"), BreakoutError, NAME),
    "a short name of the driver": (file("../../l/x", b"x"), BreakoutError, NAME),
    "the layerdb": (file("../../../image/overlay2/layerdb/sha256/x", b"x"), BreakoutError, NAME),
    "hard link": (file("a") + hardlink("b", "../victim/hello"), BreakoutError, LINK),
    "hard link to the top": (dir("d/") + hardlink("b", "./"), BreakoutError, LINK),
    "dangling hard link": (hardlink("h", "nope"), OSError, "nope"),
    "symlink": (symlink("l", "../victim") + file("l/f"), LayerStoreError, "escapes"),
    "two hops": (dir("i/") + symlink("i/up", "..") + symlink("i/up/out", "../victim") + file("i/up/out/new"), BreakoutError, "escapes"),
    "below a file": (file("good/x"), OSError, "good"),
    "whiteout over a file": (whiteout("good"), OSError, "good"),
    "whiteout of nothing": (file(".wh."), LayerStoreError, rf'{MARK} "\.wh\."'),
    "whiteout of nothing in a directory": (file("d/.wh."), LayerStoreError, rf'{MARK} "d/\.wh\."'),
    "whiteout of itself": (dir("d/") + file("d/.wh.."), LayerStoreError, rf'{MARK} "d/\.wh\.\."'),
    "whiteout of its parent": (file(".wh..."), LayerStoreError, rf'{MARK} "\.wh\.\.\."'),
    "name too long": (tarkit.with_gnu_path("n" * 256, file), OSError, "nnn"),
    "device": (node("n", "c", tarkit.base256(1 << 32, 8), 0), LayerStoreError, "out of range"),
    "a smaller device": (node("n", "c", 99999, 0), LayerStoreError, "out of range"),
    "type 7": (file("x", typeflag=b"7"), LayerStoreError, "unhandled tar header type 55"),
    "type Z": (file("x", typeflag=b"Z"), LayerStoreError, "unhandled tar header type 90"),
    "xattr of no kind": (tarkit.xattrs({"foo": b"1"}) + file("a"), OSError, "foo|a"),
}  # fmt: skip


@pytest.mark.parametrize("way", ["register", "apply_diff"])
@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_names_the_entry_the_reason_and_its_place(store, unchanged, outside, what, way):
    entries, error, text = REFUSED[what]
    front, work = file("good", b"g" * 600), store.register if way == "register" else store.create_rw_layer("c").apply_diff
    with unchanged() if way == "register" else contextlib.nullcontext(), pytest.raises(error) as caught:
        work(front + entries + file("behind") + end())
    said = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert re.search(text, said), said
    told = [int(number) for number in re.findall(r"at byte (\d+)", said)]
    assert told and len(front) <= told[0] < len(front) + len(entries), said
    if error is BreakoutError:
        assert caught.value.path
