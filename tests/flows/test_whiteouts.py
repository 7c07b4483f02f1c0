"""What a real overlay mount shows of layers that hide things, and what comes out again."""

import io
import os
import stat

import pytest
import tarkit
from disk import inventory, shape
from recipes import SERIES, listing
from stored import names_of
from tarkit import dir, end, file, opaque, whiteout

from layerstore import BreakoutError, LayerStoreError


@pytest.fixture
def stacked(store):
    """Register tars upon one another and show what a mount on top has."""

    def show(*tars):
        layer = None
        for tar in tars:
            layer = store.register(tar + end(), layer.chain_id if layer else "")
        rw = store.create_rw_layer(f"show {len(store.mounts())}", layer.chain_id)
        with rw.mounted() as path:
            return shape(path)

    return show


BASE = dir("d/") + file("d/f", b"f") + file("d/g", b"g") + dir("d/sub/") + file("d/sub/x", b"x") + file("top", b"t")


def test_a_whiteout_hides_a_file(stacked):
    assert stacked(BASE, whiteout("top")) == {"d": "dir", "d/f": "f", "d/g": "g", "d/sub": "dir", "d/sub/x": "x"}


def test_a_whiteout_hides_a_whole_directory(stacked):
    assert stacked(BASE, whiteout("d")) == {"top": "t"}


def test_a_whiteout_of_nothing_hides_nothing(stacked):
    assert stacked(BASE, whiteout("d/never") + whiteout("d/sub/never")) == stacked(BASE)


def test_a_whiteout_in_an_implied_directory_hides_its_file(stacked):
    assert "d/sub/x" not in stacked(BASE, whiteout("d/sub/x"))


def test_a_hidden_name_may_come_back_above(stacked):
    shown = stacked(BASE, whiteout("top"), file("top", b"again"))
    assert shown["top"] == "again"


def test_a_hidden_directory_comes_back_empty(stacked):
    shown = stacked(BASE, whiteout("d"), dir("d/"))
    assert shown == {"d": "dir", "top": "t"}


def test_an_opaque_directory_hides_what_is_below_and_keeps_its_own(stacked):
    shown = stacked(BASE, dir("d/") + opaque("d") + file("d/new", b"n"))
    assert shown == {"d": "dir", "d/new": "n", "top": "t"}


def test_an_opaque_mark_after_the_files_keeps_them(stacked):
    shown = stacked(BASE, dir("d/") + file("d/new", b"n") + opaque("d"))
    assert shown == {"d": "dir", "d/new": "n", "top": "t"}


def test_an_opaque_mark_without_a_directory_entry_makes_the_directory(stacked):
    assert stacked(BASE, opaque("d/sub")) == {"d": "dir", "d/f": "f", "d/g": "g", "d/sub": "dir", "top": "t"}


def test_an_opaque_mark_at_the_top_is_an_attribute_of_the_diff_directory(store, diff_of):
    layer = store.register(opaque("") + file("only", b"o") + end())
    assert os.getxattr(diff_of(layer), "trusted.overlay.opaque") == b"y"


def test_a_file_over_a_directory_and_back(stacked):
    assert stacked(BASE, file("d", b"file"))["d"] == "file"
    shown = stacked(BASE, file("d", b"file"), dir("d/") + file("d/z", b"z"))
    assert shown == {"d": "dir", "d/z": "z", "top": "t"}


def test_three_layers_of_docker_s_own_series(stacked):
    """archive-apply 11.16, seen through a mount instead of applied to it."""
    base = file(".baz") + dir("bar/") + file("bar/bax") + dir("bar/bay/") + file("baz") + dir("foo/") + file("foo/.abc")
    base += dir("foo/.bcd/") + file("foo/.bcd/a") + dir("foo/cde/") + file("foo/cde/def") + file("foo/cde/efg")
    base += file("foo/fgh") + file("foobar")
    second = file(".bay") + whiteout("baz") + dir("foo/") + file("foo/.bce") + opaque("foo") + dir("foo/cde/")
    second += file("foo/cde/efg")
    third = file(".bay") + whiteout(".baz") + whiteout("foobar") + dir("foo/") + file("foo/.abc") + whiteout("foo/cde")
    third += dir("bar/")
    assert sorted(stacked(base, second)) == sorted(
        [".bay", ".baz", "bar", "bar/bax", "bar/bay", "foo", "foo/.bce", "foo/cde", "foo/cde/efg", "foobar"]
    )
    assert sorted(stacked(base, second, third)) == sorted(
        [".bay", "bar", "bar/bax", "bar/bay", "foo", "foo/.abc", "foo/.bce"]
    )


def test_the_marks_lie_on_disk_and_no_wh_name_does(store, diff_of):
    base = store.register(BASE + end())
    tar = whiteout("d/f", uid=7, gid=8) + dir("e/") + opaque("e") + whiteout("top", b"payload", mode=0o777) + end()
    diff = diff_of(store.register(tar, base.chain_id))
    for name, owner in (("d/f", (7, 8)), ("top", (0, 0))):
        status = os.lstat(diff / name)
        assert (stat.S_ISCHR(status.st_mode), status.st_rdev, (status.st_uid, status.st_gid)) == (True, 0, owner)
    assert os.getxattr(diff / "e", "trusted.overlay.opaque") == b"y"
    assert shape(diff) == {"d": "dir", "d/f": "whiteout", "e": "dir", "top": "whiteout"}


@pytest.mark.parametrize("kind", [tarkit.dir, tarkit.fifo])
def test_the_type_of_a_whiteout_entry_does_not_matter(stacked, kind):
    assert "top" not in stacked(BASE, kind(".wh.top"))


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh..."])
def test_a_whiteout_of_no_name_is_refused_and_leaves_nothing(store, unchanged, name):
    base = store.register(BASE + end())
    with unchanged(), pytest.raises((LayerStoreError, ValueError), match="invalid whiteout entry") as caught:
        store.register(file(name) + end(), base.chain_id)
    if isinstance(caught.value, BreakoutError):
        assert caught.value.path == name


def test_a_whiteout_of_a_file_of_the_same_tar_is_refused(store, unchanged):
    store.register(BASE + end())
    with unchanged(), pytest.raises((LayerStoreError, OSError)):
        store.register(file("f", b"f") + whiteout("f") + end())


def test_a_file_below_a_whiteout_of_the_same_tar_is_refused(store, unchanged):
    store.register(BASE + end())
    with unchanged(), pytest.raises((LayerStoreError, OSError)):
        store.register(whiteout("a") + file("a/b", b"b") + end())


def test_a_file_after_its_whiteout_wins(stacked):
    assert stacked(BASE, whiteout("top") + file("top", b"new"))["top"] == "new"


def test_meta_names_are_ordinary_whiteouts(store, diff_of):
    tar = file(".wh..wh.plnk") + file(".wh..wh.aufs") + end()
    assert shape(diff_of(store.register(tar))) == {".wh.plnk": "whiteout", ".wh.aufs": "whiteout"}


def test_files_below_a_meta_name_are_real_files(store, diff_of):
    assert shape(diff_of(store.register(file(".wh..wh.plnk/x", b"x") + end()))) == {
        ".wh..wh.plnk": "dir", ".wh..wh.plnk/x": "x",
    }


def test_a_device_zero_zero_in_a_tar_hides_too(stacked):
    assert "top" not in stacked(BASE, tarkit.node("top", "c", 0, 0))


def test_names_that_only_look_like_whiteouts_are_names(stacked):
    shown = stacked(file(".whx", b"1") + file("..gitme", b"2") + file("x.wh.y", b"3") + dir(".w/"))
    assert shown == {".whx": "1", "..gitme": "2", "x.wh.y": "3", ".w": "dir"}


def test_hidden_things_stay_hidden_through_commit(store):
    base = store.register(BASE + end())
    rw = store.create_rw_layer("c", base.chain_id)
    with rw.mounted() as path:
        os.unlink(f"{path}/top")
        for name in ("sub/x", "f", "g"):
            os.unlink(f"{path}/d/{name}")
        os.rmdir(f"{path}/d/sub"), os.rmdir(f"{path}/d"), os.mkdir(f"{path}/d")
    layer = rw.commit()
    with store.create_rw_layer("again", layer.chain_id).mounted() as path:
        assert shape(path) == {"d": "dir"}
    with layer.tar_stream_from("") as stream:
        flat = store.register(stream)
    with store.create_rw_layer("flat", flat.chain_id).mounted() as path:
        assert shape(path) == {"d": "dir"}


# ---- layer over layer ------------------------------------------------------------------------------------
def test_dockers_series_of_whiteouts_flattens_as_dockers(store):
    """Through our own flattening, which mounts nothing that a whiteout could be lost in."""
    chain = ""
    for tar, expected in SERIES:
        layer = store.register(tar, chain)
        chain = layer.chain_id
        with layer.tar_stream_from("") as stream:
            found = names_of(stream.read())
        if expected:
            assert set(found) == set(expected.split())


def test_flattening_shows_what_a_mount_shows_also_of_an_opaque_top(store):
    """The kernel joins the tops of all layers whatever their marks say; so must we."""
    layer = store.register(listing(".abc .wh..wh..opq foobar"), store.register(SERIES[0][0]).chain_id)
    with store.create_rw_layer("c", layer.chain_id).mounted() as path:
        seen = inventory(path)
    with layer.tar_stream_from("") as stream:
        assert set(names_of(stream.read())) == seen


def test_dockers_series_applied_to_one_writable_layer_after_another(store):
    """apply_diff() of each tar on a writable layer over those before it, committed in between."""
    layer = store.register(SERIES[0][0])
    for number, (tar, expected) in enumerate(SERIES[1:]):
        rw = store.create_rw_layer(f"c{number}", layer.chain_id)
        rw.apply_diff(tar)
        with rw.mounted() as path:
            assert inventory(path) == set(expected.split())
        layer = rw.commit()


def test_a_diff_applied_over_another_in_one_writable_layer_replaces_and_hides(store):
    rw = store.create_rw_layer("c", store.register(tarkit.T1).chain_id)
    rw.apply_diff(file("a/f", b"one") + file("mine", b"1") + end())
    rw.apply_diff(file("a/f", b"second") + dir("mine/") + end())
    with rw.mounted() as path:
        assert shape(path) == {"a": "dir", "a/f": "second", "mine": "dir"}


def test_a_diff_that_fails_says_so_and_the_layer_goes_on_living(store):
    rw = store.create_rw_layer("c", store.register(tarkit.T1).chain_id)
    with pytest.raises(BreakoutError):
        rw.apply_diff(file("ok", b"ok") + file("../x") + end())
    assert rw.apply_diff(file("more", b"more") + end()) >= 4
    with rw.mounted() as path:
        assert shape(path)["more"] == "more"


def test_apply_diff_reads_no_further_than_it_must_and_never_too_little(store):
    """No digest is wanted of it, so what trails need not be read; every entry must be."""
    rw = store.create_rw_layer("c")
    source = io.BytesIO(tarkit.T1 + bytes(1 << 20))
    assert rw.apply_diff(source) == 5
    assert source.tell() >= len(tarkit.T1) - 512
