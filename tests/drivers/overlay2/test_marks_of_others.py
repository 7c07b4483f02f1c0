"""Boxes that were written through a mount with metacopy and redirect_dir on, as kernels may have them by themselves: renamed
directories and files without their data. What is told, and what is committed, is what that mount showed, or it is refused.
"""

import contextlib
import os
import random
import stat
from pathlib import Path

import disk
import pytest
import tarkit
from disk import inventory, redirects, shape
from edits import Edits, as_tar, layers, scripts
from full_comparison import full_comparison, paths_in, tree_of
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from recipes import SERIES, listing
from stored import shown
from tarkit import dir, end, file, hardlink, symlink, whiteout

from layerstore import LayerStoreError, NotSupportedError, overlay_changes

MS_RDONLY = 1

BASE = (
    dir("d/", mtime=5) + file("d/small", b"small", mtime=5) + dir("d/e/", mtime=5) + file("d/e/deep", b"deep" * 2000, mtime=5)
    + file("big", b"big" * 9000, mtime=5) + tarkit.xattrs({"user.base": b"1"}) + file("named", b"n", mtime=5)
    + file("gone", b"g", mtime=5) + dir("full/", mtime=5) + file("full/f", b"f", mtime=5) + end()
)  # fmt: skip


def texts(changes):
    return [str(change) for change in changes]


def lowers_of(rw):
    return rw.metadata()["LowerDir"].split(":")


@contextlib.contextmanager
def below(rw, room):
    """The tree that the box started from, mounted for the block."""
    point, nothing = room / "below", room / "nothing"
    point.mkdir(exist_ok=True)
    nothing.mkdir(exist_ok=True)
    disk.mount("overlay", point, "overlay", MS_RDONLY, "lowerdir=" + ":".join([*lowers_of(rw), os.fspath(nothing)]))
    try:
        yield tree_of(point)
    finally:
        disk.unmount(point, 0)


@contextlib.contextmanager
def followed(rw, place):
    """The box mounted with both features on."""
    at = rw.metadata()
    point = Path(place) / "followed"
    point.mkdir(exist_ok=True)
    options = f"lowerdir={at['LowerDir']},upperdir={at['UpperDir']},workdir={at['WorkDir']},metacopy=on,redirect_dir=on,index=off"
    disk.mount("overlay", point, "overlay", 0, options)
    try:
        yield point
    finally:
        disk.unmount(point, 0)


def looked(root):
    """All that counts of a tree, with the bytes of its files; names that would be marks, and what is in them, left out."""
    found = {}
    for at, directories, names in os.walk(os.fsencode(root)):
        directories[:] = [name for name in directories if not name.startswith(b".wh.")]
        for name in directories + [name for name in names if not name.startswith(b".wh.")]:
            path = os.path.join(at, name)
            status = os.lstat(path)
            what = b""
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as content:
                    what = content.read()
            elif stat.S_ISLNK(status.st_mode):
                what = os.readlink(path)
            if not stat.S_ISSOCK(status.st_mode):
                kind = status.st_mode, status.st_uid, status.st_gid, status.st_rdev
                # What lies before 1970, or beyond 2262, is unpacked as 1970.
                time = status.st_mtime_ns if status.st_mtime_ns >= 0 else 0
                attributes = [x for x in os.listxattr(path, follow_symlinks=False) if not x.startswith("trusted.overlay.")]
                found[os.path.relpath(path, os.fsencode(root))] = (*kind, time, what, sorted(attributes))
    return found


EDITS = {
    "chmod": (lambda p: os.chmod(p / "big", 0o600), ["C /big"]),
    "chown": (lambda p: os.chown(p / "big", 5, 5), ["C /big"]),
    "times": (lambda p: os.utime(p / "big", (9, 9)), ["C /big"]),
    "an attribute": (lambda p: os.setxattr(p / "big", "user.x", b"1"), []),
    "chmod and rename": (lambda p: (os.chmod(p / "big", 0o600), os.rename(p / "big", p / "big2")), ["A /big2", "D /big"]),
    "chmod and move": (
        lambda p: (os.chmod(p / "big", 0o600), os.rename(p / "big", p / "full/b")), ["C /full", "A /full/b", "D /big"]),
    "chmod and link": (lambda p: (os.chmod(p / "big", 0o600), os.link(p / "big", p / "big2")), ["C /big", "A /big2"]),
    "a directory renamed": (
        lambda p: os.rename(p / "d", p / "d2"), ["A /d2", "A /d2/e", "A /d2/e/deep", "A /d2/small", "D /d"]),
    "a directory moved": (
        lambda p: os.rename(p / "d/e", p / "full/e"), ["C /d", "D /d/e", "C /full", "A /full/e", "A /full/e/deep"]),
    "renamed and changed below": (
        lambda p: (os.rename(p / "d", p / "d2"), os.chmod(p / "d2/e/deep", 0o600), os.unlink(p / "d2/small")),
        ["A /d2", "A /d2/e", "A /d2/e/deep", "D /d"]),
    "another in its place": (
        lambda p: (os.rename(p / "d", p / "d2"), os.mkdir(p / "d"), os.rename(p / "full", p / "d/full")),
        ["C /d", "A /d/full", "A /d/full/f", "D /d/e", "D /d/small", "A /d2", "A /d2/e", "A /d2/e/deep", "A /d2/small", "D /full"]),
    "data changed, no size and no time": (
        lambda p: (os.chmod(p / "big", 0o600), (p / "gone").write_bytes(b"G"), os.utime(p / "gone", (5, 5))), ["C /big"]),
}  # fmt: skip


@pytest.fixture
def box(store):
    with store.create_rw_layer("box", store.register(BASE).chain_id) as made:
        yield made


@pytest.mark.filterwarnings("ignore::layerstore.LeftOutWarning")
@pytest.mark.parametrize("edit", EDITS)
def test_what_such_a_mount_showed_is_told_and_committed(store, box, room, open_store, edit):
    act, expected = EDITS[edit]
    with followed(box, room) as path:
        act(path)
        before = looked(path)
    assert texts(box.changes()) == expected
    with contextlib.suppress(NotSupportedError):
        assert texts(overlay_changes(box.metadata()["UpperDir"], lowers_of(box))) == expected
    with box.commit(keep="all") as layer:
        assert shown(store, layer, looked) == before
    with box.commit() as layer:
        after = shown(store, layer, looked)
        assert {name: one[5] for name, one in after.items()} == {name: one[5] for name, one in before.items()}
        assert {name: one[:4] for name, one in after.items()} == {name: one[:4] for name, one in before.items()}
    other = open_store(room / "other")
    with box.tar_stream(keep="all") as stream:
        assert shown(other, other.register(stream, other.register(BASE).chain_id), looked) == before
    assert os.listdir(room / "docker/overlay2/l") and not [n for n in os.listdir(room / "docker/overlay2") if n.startswith("look")]


@pytest.mark.filterwarnings("ignore::layerstore.LeftOutWarning")
@pytest.mark.time_limit(200)
def test_any_edits_through_such_a_mount_are_told_and_committed(open_store, room):
    store = open_store(options={"durability": "none"})
    renamed = 0

    # The story in the message says enough; making it shorter would take longer than the test.
    @settings(max_examples=40, deadline=None, derandomize=bool(os.environ.get("CI")), database=None, phases=[Phase.generate])
    @given(st.lists(layers(), min_size=1, max_size=3), scripts(4, 12))
    def held(stack, script):
        nonlocal renamed
        with contextlib.ExitStack() as handles:
            parent = ""
            for layer in stack:
                parent = handles.enter_context(store.register(as_tar(layer), parent)).chain_id
            rw = handles.enter_context(store.create_rw_layer("box", parent))
            with below(rw, room) as old, followed(rw, room) as path:
                edits = Edits(path, paths_in(old))
                story = edits.run(script)
                try:
                    expected, before = full_comparison(tree_of(path), old), looked(path)
                except OSError:
                    return                # what that mount itself cannot show
            with contextlib.suppress(NotSupportedError):
                assert texts(rw.changes()) == expected, [stack, *story]
            upper = rw.metadata()["UpperDir"]
            renamed += any("trusted.overlay.redirect" in os.listxattr(at) for at, _, _ in os.walk(upper))
            try:
                layer = handles.enter_context(rw.commit(keep="all", marks="skip"))
            except NotSupportedError:
                return
            after = shown(store, layer, looked)
            lost = {name: (before.get(name), after.get(name)) for name in before | after if before.get(name) != after.get(name)}
            assert not lost, "\n".join(map(str, [lost, *stack, *story]))

    held()
    assert renamed > 0


def test_a_mark_that_leads_nowhere_is_refused_with_its_path(box, room):
    upper = Path(box.metadata()["UpperDir"])
    with open(upper / "nothing", "wb") as out:
        out.truncate(500)
    os.setxattr(upper / "nothing", "trusted.overlay.metacopy", b"")
    for call in (box.changes, box.commit, box.tar_stream):
        with pytest.raises((NotSupportedError, OSError)) as caught:
            call()
        assert "nothing" in str(caught.value) or getattr(caught.value, "filename", "") == "nothing"


def test_marks_in_a_box_without_parent_are_refused(store):
    with store.create_rw_layer("alone") as box:
        with open(Path(box.mount()) / "f", "wb") as out:
            out.write(b"x")
        os.setxattr(Path(box.metadata()["UpperDir"]) / "f", "trusted.overlay.metacopy", b"")
        box.unmount()
        for call in (box.commit, box.tar_stream):
            with pytest.raises(NotSupportedError):
                call()


def test_a_box_that_is_mounted_meanwhile_is_told_alike(box, room):
    draw = random.Random(0)
    with followed(box, room) as path:
        os.rename(path / "d", path / "d2")
        os.chmod(path / "big", 0o600)
        for _ in range(20):
            (path / "d2" / str(draw.randrange(9))).write_text("x")
            expected = {"/d", "/d2", "/d2/e", "/d2/e/deep", "/d2/small", "/big"} | {f"/d2/{n}" for n in os.listdir(path / "d2")}
            assert {change.path for change in box.changes()} == expected


# ---- a kernel whose overlays move directories by redirection ---------------------------------------------
only_redirecting = pytest.mark.skipif(
    not redirects(), reason="NOT TESTED: this kernel's overlays rename no directory by redirection"
)


@only_redirecting
def test_dockers_series_is_executed_on_the_mount_where_the_upper_directory_cannot_be_read_alone(store):
    """There a mark at the top works too: what lay below is deleted, not hidden."""
    rw = store.create_rw_layer("c", store.register(SERIES[0][0]).chain_id)
    last = listing(".abc .wh..wh..opq foobar"), ".abc foobar"
    for tar, expected in [*SERIES[1:], last]:
        rw.apply_diff(tar)
        with rw.mounted() as path:
            assert inventory(path) == set(expected.split())


@only_redirecting
def test_there_the_size_of_a_diff_is_the_sum_of_what_its_headers_say(store):
    rw = store.create_rw_layer("c", store.register(tarkit.T1).chain_id)
    tar = file("x", b"hello") + hardlink("y", "x", size=7) + whiteout("a", b"abc") + dir("./", size=11) + end()
    assert rw.apply_diff(tar) == 5 + 7 + 3 + 11


@only_redirecting
@pytest.mark.parametrize("name", ["d/.wh.", "d/.wh..", "d/.wh..."])
def test_there_a_whiteout_of_no_name_is_refused_too(store, name):
    rw = store.create_rw_layer("c", store.register(dir("d/") + file("d/f") + end()).chain_id)
    with pytest.raises(LayerStoreError):
        rw.apply_diff(file(name) + end())
    with rw.mounted() as path:
        assert shape(path) == {"d": "dir", "d/f": ""}


@only_redirecting
def test_there_an_opaque_mark_spares_what_its_own_tar_brought(store):
    below = dir("d/") + file("d/old") + dir("d/e/") + file("d/e/old") + end()
    rw = store.create_rw_layer("c", store.register(below).chain_id)
    rw.apply_diff(file("d/new") + dir("d/e/") + file("d/e/new") + tarkit.opaque("d") + file("d/later") + end())
    with rw.mounted() as path:
        assert sorted(shape(path)) == ["d", "d/e", "d/e/new", "d/later", "d/new"]


@only_redirecting
def test_there_a_hard_link_may_name_a_file_of_a_lower_layer(store):
    """It is made on the mount, where every layer is seen."""
    rw = store.create_rw_layer("c", store.register(tarkit.T1).chain_id)
    rw.apply_diff(hardlink("h", "a/f") + end())
    with rw.mounted() as path:
        assert os.path.samefile(f"{path}/h", f"{path}/a/f")


@only_redirecting
def test_there_nothing_leaves_the_mount_either(store, victim):
    rw = store.create_rw_layer("c", store.register(symlink("l", "../../../../victim") + end()).chain_id)
    for entries in (file("../x"), file("l/x"), hardlink("h", "../victim/hello")):
        with pytest.raises((LayerStoreError, OSError)):
            rw.apply_diff(entries + end())


@only_redirecting
def test_a_directory_moved_by_redirection_is_told_and_stored_whole(store):
    """The upper directory alone does not hold what moved; the driver must not read it as if it did."""
    base = store.register(dir("d1/") + file("d1/f", b"hello") + file("d1/g", b"g") + end())
    rw = store.create_rw_layer("c", base.chain_id)
    with rw.mounted() as path:
        os.rename(f"{path}/d1", f"{path}/d2")
        mine = shape(path)
    assert sorted(str(change) for change in rw.changes()) == ["A /d2", "A /d2/f", "A /d2/g", "D /d1"]
    layer = rw.commit()
    assert shown(store, layer) == mine
    assert ("Native Overlay Diff", "false") in store.driver_status()
