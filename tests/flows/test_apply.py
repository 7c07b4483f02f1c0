"""One layer tar on disk: types, modes, owners, attributes, times and the order of entries."""

import errno
import os
import stat

import pytest
import tarkit
from disk import shape
from stored import tar_of
from tarkit import dir, end, file, hardlink, node, symlink, whiteout

from layerstore import LayerStoreError

SECOND = 10**9


@pytest.fixture
def unpacked(store, diff_of):
    """Register a tar and give its diff directory."""
    return lambda tar: diff_of(store.register(tar + end()))


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def owner(path):
    status = os.lstat(path)
    return status.st_uid, status.st_gid


def mtime(path):
    return os.lstat(path).st_mtime_ns


# ---- one thing over another ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["file", "dir", "link", "fifo", "node"])
@pytest.mark.parametrize("over", ["file", "full dir", "link", "fifo", "node", "whiteout"])
def test_the_later_entry_takes_the_place(unpacked, name, over):
    below = {
        "file": file("x", b"old"),
        "full dir": dir("x/") + dir("x/y/") + file("x/y/z", b"z"),
        "link": symlink("x", "elsewhere"), "fifo": tarkit.fifo("x"), "node": node("x", "c", 1, 3),
        "whiteout": tarkit.whiteout("x"),
    }[over]
    above, expected = {
        "file": (file("x", b"new"), "new"), "dir": (dir("x/"), "dir"), "link": (symlink("x", "t"), "-> t"),
        "fifo": (tarkit.fifo("x"), "fifo"), "node": (node("x", "b", 7, 7), "block"),
    }[name]
    shown = shape(unpacked(below + above))
    assert shown["x"] == expected
    if (name, over) != ("dir", "full dir"):
        assert list(shown) == ["x"]


def test_a_directory_over_a_directory_keeps_its_content_and_takes_its_metadata(unpacked):
    diff = unpacked(dir("d/", mode=0o755) + file("d/f", b"f") + dir("d/", mode=0o700, uid=3, gid=4, mtime=9))
    assert shape(diff) == {"d": "dir", "d/f": "f"}
    assert (mode(diff / "d"), owner(diff / "d"), mtime(diff / "d")) == (0o700, (3, 4), 9 * SECOND)


def test_a_longer_file_replaced_by_a_shorter_one_leaves_no_rest(unpacked):
    assert shape(unpacked(file("f", b"long content") + file("f", b"s"))) == {"f": "s"}


def test_a_file_written_again_leaves_its_hard_links_alone(unpacked):
    diff = unpacked(file("a", b"first") + hardlink("b", "a") + file("a", b"second"))
    assert shape(diff) == {"a": "second", "b": "first"}
    assert os.stat(diff / "b").st_nlink == 1


@pytest.mark.parametrize("again", ["a", "./a", "/a", "d/../a"])
def test_a_hard_link_to_itself_is_nothing(store, diff_of, again):
    """GNU tar writes one where it meets a file twice."""
    tar = file("a", b"a", mode=0o640) + hardlink("b", "a") + hardlink("a", again, mode=0o600) + end()
    layer = store.register(tar)
    assert shape(diff_of(layer)) == {"a": "a", "b": "a"}
    assert os.path.samefile(diff_of(layer) / "a", diff_of(layer) / "b")
    assert tar_of(layer) == tar
    assert {e.path: e.mode for e in layer.merged()} == {name: os.stat(diff_of(layer) / name).st_mode & 0o7777 for name in "ab"}


def test_a_hard_link_to_itself_through_a_link_is_nothing(store, diff_of):
    tar = dir("usr/") + file("usr/x", b"x") + symlink("lib", "usr") + hardlink("lib/x", "usr/x") + hardlink("usr/x", "lib/x") + end()
    layer = store.register(tar)
    assert shape(diff_of(layer)) == {"usr": "dir", "usr/x": "x", "lib": "-> usr"}
    assert {e.path for e in layer.merged()} == {"usr", "usr/x", "lib"}
    assert store.verify() == []


@pytest.mark.parametrize("target", ["gone", "./d/gone", "/d/gone", "d/f/x", "low/f"])
@pytest.mark.parametrize("way", ["register", "apply_diff"])
def test_a_hard_link_to_what_is_not_there_names_it(store, target, way):
    base = store.register(dir("low/") + file("low/g") + end())
    work = store.create_rw_layer("c", base.chain_id).apply_diff if way == "apply_diff" else lambda tar: store.register(tar, base.chain_id)
    with pytest.raises(OSError) as caught:
        work(dir("d/") + file("d/f", b"f") + hardlink("h", target) + end())
    assert (caught.value.filename, caught.value.filename2) == ("h", target)
    assert f'"{target}"' in caught.value.strerror


# ---- parents -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_implied_directories_are_0755_whatever_the_umask(unpacked, umask):
    before = os.umask(umask)
    try:
        diff = unpacked(file("deeply/nested/and/implied", b"x", uid=5, gid=6) + dir("other/d/", mode=0o700))
    finally:
        os.umask(before)
    for name in ("deeply", "deeply/nested", "deeply/nested/and", "other"):
        assert (mode(diff / name), owner(diff / name)) == (0o755, (0, 0))
    assert mode(diff / "other/d") == 0o700
    assert owner(diff / "deeply/nested/and/implied") == (5, 6)


def test_a_file_where_a_parent_should_be_is_not_a_directory(store, unchanged):
    store.register(tarkit.T1)
    for entry in (file("f/x", b"x"), dir("f/x/"), file("f/x/y/z"), tarkit.whiteout("f/x"), symlink("f/l", "t")):
        with unchanged(), pytest.raises(OSError) as caught:
            store.register(file("f", b"f") + entry + end())
        assert caught.value.errno == errno.ENOTDIR


def test_a_directory_that_comes_after_its_files_gets_its_mode(unpacked):
    diff = unpacked(file("d/f", b"f") + dir("d/", mode=0o711, uid=1, gid=2, mtime=77))
    assert (mode(diff / "d"), owner(diff / "d"), mtime(diff / "d")) == (0o711, (1, 2), 77 * SECOND)


# ---- modes and owners -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("umask", [0o027, 0o777, 0])
def test_modes_are_the_headers_whatever_the_umask(unpacked, umask):
    modes = [0, 0o400, 0o600, 0o644, 0o666, 0o777, 0o1777, 0o2755, 0o4755, 0o7777]
    before = os.umask(umask)
    try:
        diff = unpacked(
            b"".join(dir(f"d{m:o}/", mode=m) + file(f"d{m:o}/f", b"f", mode=m) + file(f"e{m:o}", mode=m) for m in modes)
            + tarkit.fifo("p", mode=0o666) + node("n", "c", 1, 3, mode=0o4666)
        )
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    for m in modes:
        assert [mode(diff / name) for name in (f"d{m:o}", f"d{m:o}/f", f"e{m:o}")] == [m, m, m]
    assert (mode(diff / "p"), mode(diff / "n")) == (0o666, 0o4666)


def test_setuid_survives_the_change_of_owner(unpacked):
    diff = unpacked(file("s", b"#!", mode=0o4755, uid=1000, gid=1000) + dir("d/", mode=0o2770, uid=1000, gid=1000))
    assert (mode(diff / "s"), owner(diff / "s")) == (0o4755, (1000, 1000))
    assert mode(diff / "d") == 0o2770


def test_files_below_a_setgid_directory_keep_their_own_group(unpacked):
    diff = unpacked(dir("d/", mode=0o2777, gid=50) + file("d/f", gid=60) + dir("d/e/", gid=70) + symlink("d/l", "x"))
    assert [owner(diff / name)[1] for name in ("d", "d/f", "d/e", "d/l")] == [50, 60, 70, 0]
    assert mode(diff / "d/e") == 0o755


def test_owners_come_from_headers_binary_numbers_and_pax(unpacked):
    diff = unpacked(
        file("a", uid=3_000_000, gid=4_000_000) + tarkit.pax({"uid": "5000000", "gid": "6000000"})
        + file("b", uid=1, gid=1) + symlink("l", "x", uid=7, gid=8)
    )
    assert [owner(diff / n) for n in "abl"] == [(3_000_000, 4_000_000), (5_000_000, 6_000_000), (7, 8)]


def test_type_bits_in_the_mode_field_are_ignored(unpacked):
    diff = unpacked(file("f", b"f", mode=0o100644) + dir("d/", mode=0o040711))
    assert (mode(diff / "f"), mode(diff / "d")) == (0o644, 0o711)


def test_the_top_directory_keeps_its_own_metadata(unpacked):
    for name in ("./", "/", "."):
        diff = unpacked(dir(name, mode=0o700, uid=9, gid=9, mtime=5) + file(f"f{len(name)}"))
        assert (mode(diff), owner(diff)) == (0o755, (0, 0))


def test_a_hard_link_takes_the_last_header_for_the_inode(unpacked):
    diff = unpacked(file("a", b"a", mode=0o600, mtime=5) + hardlink("b", "a", mode=0o640, uid=3, gid=3, mtime=9))
    assert os.path.samefile(diff / "a", diff / "b")
    assert (mode(diff / "a"), owner(diff / "a"), mtime(diff / "a")) == (0o640, (3, 3), 9 * SECOND)


def test_a_hard_link_to_a_lower_layers_file_finds_nothing(store, unchanged):
    base = store.register(tarkit.T1)
    store.register(tarkit.T2, base.chain_id)
    with unchanged(), pytest.raises(FileNotFoundError):
        store.register(hardlink("b", "a/f") + end(), base.chain_id)


# ---- attributes ---------------------------------------------------------------------------------------------
def test_attributes_are_set_on_every_kind(unpacked):
    diff = unpacked(
        tarkit.xattrs({"user.foo": b"bar", "user.empty": b"", "user.bin": bytes(range(256))})
        + file("f", b"f", mode=0o400) + tarkit.xattrs({"user.d": b"d"}) + dir("d/", mode=0)
        + tarkit.xattrs({"trusted.l": b"l"}) + symlink("l", "f") + tarkit.xattrs({"trusted.p": b"p"}) + tarkit.fifo("p")
    )
    assert os.getxattr(diff / "f", "user.foo") == b"bar"
    assert os.getxattr(diff / "f", "user.empty") == b""
    assert os.getxattr(diff / "f", "user.bin") == bytes(range(256))
    assert os.getxattr(diff / "d", "user.d") == b"d"
    assert os.getxattr(diff / "l", "trusted.l", follow_symlinks=False) == b"l"
    assert os.getxattr(diff / "p", "trusted.p") == b"p"
    assert mode(diff / "f") == 0o400


def test_a_capability_survives_owner_and_mode(unpacked):
    diff = unpacked(tarkit.xattrs({"security.capability": tarkit.CAPABILITY}) + file("f", b"ELF", mode=0o755, uid=7, gid=7))
    assert os.getxattr(diff / "f", "security.capability") == tarkit.CAPABILITY
    assert owner(diff / "f") == (7, 7)


def test_attributes_belong_to_one_entry_only(unpacked):
    diff = unpacked(tarkit.xattrs({"user.foo": b"bar"}) + file("f") + file("g"))
    assert os.listxattr(diff / "g") == []


def test_an_attribute_the_file_system_does_not_know_is_an_error(store, unchanged):
    store.register(tarkit.T1)
    with unchanged(), pytest.raises((OSError, LayerStoreError)):
        store.register(tarkit.xattrs({"nonsense.foo": b"bar"}) + file("f") + end())


# ---- times ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1700000000.123456789", 1700000000123456789), ("1700000000.1234567899", 1700000000123456789),
        ("1700000000.5", 1700000000500000000), ("1.000000001", 1000000001), ("0", 0), ("-5", 0), ("-0.5", 0),
        ("32503680000", 0), ("9223372036", 9223372036 * SECOND), ("9223372037", 0)]
)
def test_times_are_kept_to_the_nanosecond_and_bounded(unpacked, text, nanoseconds):
    diff = unpacked(tarkit.pax({"mtime": text}) + file("f", b"f"))
    assert mtime(diff / "f") == nanoseconds


def test_every_kind_gets_its_time(unpacked):
    diff = unpacked(
        file("f", mtime=11) + dir("d/", mtime=12) + symlink("l", "nowhere", mtime=13) + tarkit.fifo("p", mtime=14)
        + node("n", "c", 1, 3, mtime=15) + file("zero", mtime=0)
    )
    assert [mtime(diff / n) // SECOND for n in ("f", "d", "l", "p", "n", "zero")] == [11, 12, 13, 14, 15, 0]


def test_a_directory_keeps_its_time_though_files_come_later(unpacked):
    diff = unpacked(
        dir("d/", mtime=5) + dir("d/e/", mtime=6) + file("z") + file("d/f") + file("d/e/g") + tarkit.whiteout("d/h")
    )
    assert (mtime(diff / "d"), mtime(diff / "d/e")) == (5 * SECOND, 6 * SECOND)


def test_the_access_time_is_never_before_the_modification(unpacked):
    diff = unpacked(
        tarkit.pax({"atime": "100", "mtime": "200"}) + file("a") + tarkit.pax({"atime": "300", "mtime": "200"})
        + file("b")
    )
    assert [os.lstat(diff / n).st_atime_ns // SECOND for n in "ab"] == [200, 300]


# ---- kinds ------------------------------------------------------------------------------------------------------
def test_devices_keep_their_numbers(unpacked):
    diff = unpacked(node("b", "b", 12, 5) + node("c", "c", 12, 5) + node("big", "c", 4095, 1048575) + tarkit.fifo("p"))
    for name, kind in (("b", stat.S_ISBLK), ("c", stat.S_ISCHR)):
        status = os.lstat(diff / name)
        assert kind(status.st_mode)
        assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (12, 5)
    status = os.lstat(diff / "big")
    assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (4095, 1048575)
    assert stat.S_ISFIFO(os.lstat(diff / "p").st_mode)


@pytest.mark.parametrize(("major", "minor"), [(1 << 32, 0), (0, 1 << 32), (-1, 0), (1 << 40, 5)])
def test_a_device_number_out_of_range_is_refused(store, unchanged, major, minor):
    store.register(tarkit.T1)
    with unchanged(), pytest.raises((LayerStoreError, ValueError), match="out of range"):
        store.register(node("n", "c", major, minor) + end())


def test_a_global_header_makes_no_file_and_changes_no_entry(unpacked):
    diff = unpacked(
        tarkit.global_pax({"path": "elsewhere", "uid": "77", "mtime": "99"}, name="foo/bar") + file("a", b"a", mtime=5)
    )
    assert shape(diff) == {"a": "a"}
    assert (owner(diff / "a"), mtime(diff / "a")) == ((0, 0), 5 * SECOND)


def test_a_leading_dot_dot_is_a_name(unpacked):
    assert shape(unpacked(file("..gitme", b"g") + file("...", b"d") + dir("..d/"))) == {
        "..gitme": "g", "...": "d", "..d": "dir",
    }


def test_size_counts_each_inode_once_with_symlinks(store):
    tar = b"".join(file(f"f{i}", b"fooo") + hardlink(f"l{i}", f"f{i}") for i in range(100)) + symlink("s", "12345678")
    assert store.register(tar + end()).diff_size == 408


def test_the_size_of_replaced_and_hidden_things_is_not_counted(store):
    tar = file("a", b"12345") + file("a", b"1") + tarkit.whiteout("w", b"payload") + dir("d/", size=4096) + end()
    assert store.register(tar).diff_size == 1


def test_the_size_of_a_sparse_file_is_its_real_size(store):
    assert store.register(tarkit.pax_sparse_1_0("s", [(4096, b"x")], 1_000_000) + end()).diff_size == 1_000_000


@pytest.mark.parametrize(
    "maker", [tarkit.old_gnu_sparse, tarkit.pax_sparse_0_0, tarkit.pax_sparse_0_1, tarkit.pax_sparse_1_0]
)
def test_sparse_files_hold_their_bytes_in_place(unpacked, maker):
    extents = [(4096, b"first"), (70_000, b"y" * 1000), (150_000, b"")]
    diff = unpacked(maker("s", extents, 150_000, mode=0o640, uid=5))
    assert (diff / "s").read_bytes() == tarkit.expand(extents, 150_000)
    assert (mode(diff / "s"), owner(diff / "s")) == (0o640, (5, 0))


def test_runs_of_zeros_are_not_written(unpacked):
    data = b"x" + bytes(4 << 20) + b"y"
    diff = unpacked(file("z", data))
    assert (diff / "z").read_bytes() == data
    assert (diff / "z").stat().st_blocks * 512 < 1 << 20


def test_sizes_named_by_a_tar_cost_nothing_until_bytes_arrive(store, unchanged):
    store.register(tarkit.T1)
    for tar in (
        tarkit.raw_header("x", size=tarkit.base256(1 << 60, 12)) + b"x" * 512,
        tarkit.old_gnu_sparse("s", [], 8**11 - 1, size=8**11 - 1)[:512] + bytes(512),
        tarkit.pax({"size": str(1 << 62)}) + tarkit.raw_header("x") + b"x" * 512,
    ):
        with unchanged(), pytest.raises((LayerStoreError, OSError)):
            store.register(tar)


def test_a_path_deeper_than_4096_bytes_is_made_whole(unpacked):
    parts = ["d" * 250] * 24
    diff = unpacked(tarkit.with_pax_path("/".join([*parts, "f"]), file, b"deep", mtime=5))
    fd = os.open(diff, os.O_RDONLY)
    for part in parts:
        fd, above = os.open(part, os.O_RDONLY, dir_fd=fd), fd
        os.close(above)
    assert os.stat("f", dir_fd=fd).st_mtime == 5
    os.close(fd)


def test_a_component_of_256_bytes_is_an_os_error(store, unchanged):
    store.register(tarkit.T1)
    with unchanged(), pytest.raises(OSError) as caught:
        store.register(tarkit.with_pax_path("n" * 256, file, b"x") + end())
    assert caught.value.errno == errno.ENAMETOOLONG
    assert "nnnn" in os.fspath(caught.value.filename or str(caught.value))


def test_os_errors_name_the_entry(store, unchanged):
    store.register(tarkit.T1)
    with unchanged(), pytest.raises(OSError) as caught:
        store.register(file("plain", b"p") + file("plain/below", b"x") + end())
    assert "plain" in str(caught.value)


# ---- marks and links -------------------------------------------------------------------------------------
def test_a_whiteout_keeps_the_owner_of_its_entry_and_no_mode(store, diff_of):
    diff = diff_of(store.register(whiteout("x", mode=0o644, uid=1000, gid=1001, mtime=77) + end()))
    status = os.lstat(diff / "x")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 1001, 0)


def test_an_opaque_mark_changes_neither_mode_nor_owner_of_its_directory(store, diff_of):
    diff = diff_of(store.register(dir("d/", mode=0o750, uid=7) + tarkit.opaque("d/", mode=0o600, uid=9) + end()))
    status = os.lstat(diff / "d")
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (7, 0o750)


def test_a_hard_link_to_a_symlink_leaves_the_mode_of_what_it_leads_to(store, diff_of):
    tar = file("target", mode=0o644) + symlink("s", "target") + hardlink("h", "s", mode=0o777) + end()
    diff = diff_of(store.register(tar))
    assert stat.S_IMODE(os.lstat(diff / "target").st_mode) == 0o644
    assert os.readlink(diff / "h") == "target"
