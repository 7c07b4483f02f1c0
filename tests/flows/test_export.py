"""Tars of our own making, to the byte: of a tree, of a difference, of all layers; Docker's block for block where Docker's are determined."""

import io
import os
import socket
import stat
import tarfile
import time

import pytest
import tarkit
from disk import changed, disk_state, redirects, shape
from stored import names_of
from tarkit import dir, end, fifo, file, hardlink, node, symlink, whiteout

from layerstore import LeftOutWarning

CAPABILITY_OF_A_NAMESPACE = bytes.fromhex("0100000300040000000000000000000000000000a0860100")
only_native = pytest.mark.skipif(redirects(), reason="this kernel's upper directories cannot be read alone")


@pytest.fixture
def made(store):
    """The tar that our writer makes of a tree, which a function builds in the upper directory of a writable layer."""

    def make(build, parent=""):
        rw = store.create_rw_layer(f"made-{len(store.mounts())}", parent)
        upper = rw.metadata()["UpperDir"]
        build(upper)
        with rw.tar_stream() as stream:
            return stream.read()

    return make


def put(path, data=b"", mode=0o644, uid=0, gid=0, seconds=0):
    with open(path, "wb") as out:
        out.write(data)
    os.chown(path, uid, gid)
    os.chmod(path, mode)
    os.utime(path, (seconds, seconds))


def still(*paths):
    """These times last: making something in a directory has just changed its own."""
    for path in paths:
        os.utime(path, (0, 0), follow_symlinks=False)


def pax_entry(name, records, entry):
    """Go's extended header: named for the entry, every number 0, no device fields."""
    parent, base = os.path.split(name)
    place = os.path.join(parent, "PaxHeaders.0", base)[:100]
    return tarkit.pax(records, name=place, mode=0, devmajor=b"", devminor=b"") + entry


def test_every_kind_of_entry_is_a_ustar_block_without_names_of_owners(made):
    def build(top):
        os.mkdir(f"{top}/d", 0o700)
        os.chmod(f"{top}/d", 0o1777)
        put(f"{top}/d/file", b"hello", 0o4755, 1000, 1001, 1234567890)
        os.symlink("d/file", f"{top}/link")
        os.lchown(f"{top}/link", 5, 6)
        os.mkfifo(f"{top}/pipe", 0o600)
        os.mknod(f"{top}/z-block", stat.S_IFBLK | 0o660, os.makedev(12, 5))
        os.mknod(f"{top}/z-char", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chmod(f"{top}/z-char", 0o666)
        os.chmod(f"{top}/z-block", 0o660)
        still(*(f"{top}/{name}" for name in ("d", "link", "pipe", "z-block", "z-char")))

    assert made(build) == (
        dir("d/", mode=0o1777) + file("d/file", b"hello", mode=0o4755, uid=1000, gid=1001, mtime=1234567890)
        + symlink("link", "d/file", uid=5, gid=6) + fifo("pipe", mode=0o600) + node("z-block", "b", 12, 5, mode=0o660)
        + node("z-char", "c", 1, 3, mode=0o666) + end()
    )


def test_an_empty_layer_is_two_zero_blocks(made):
    assert made(lambda top: None) == end()


def test_names_go_in_byte_order_within_each_directory_and_directories_before_their_content(made):
    def build(top):
        for name in ("a", "b.d"):
            os.mkdir(f"{top}/{name}")
        for name in ("a/x", "a.b", "a-b", "Z", "é", "b.d/c"):
            put(f"{top}/{name}")

    assert names_of(made(build)) == ["Z", "a", "a/x", "a-b", "a.b", "b.d", "b.d/c", "é"]


def test_fractions_of_seconds_are_cut_off(made):
    def build(top):
        put(f"{top}/f")
        os.utime(f"{top}/f", ns=(0, 1_999_999_999))

    assert made(build) == file("f", mtime=1) + end()


def test_hard_links_name_the_first_and_have_no_size(made):
    def build(top):
        put(f"{top}/c", b"hello")
        os.link(f"{top}/c", f"{top}/a")
        os.mkdir(f"{top}/b")
        os.link(f"{top}/c", f"{top}/b/x")
        still(f"{top}/b")

    assert made(build) == file("a", b"hello") + dir("b/") + hardlink("b/x", "a") + hardlink("c", "a") + end()


def test_hard_linked_symlinks_are_links_too(made):
    def build(top):
        os.symlink("t", f"{top}/a")
        os.link(f"{top}/a", f"{top}/b", follow_symlinks=False)
        still(f"{top}/a")

    first, second = symlink("a", "t"), hardlink("b", "a", mode=0o777)
    assert made(build) == first + second + end()


LONG = {"101 bytes in two": ("d" * 50, "f" * 50), "155 before the slash": ("d" * 99 + "/" + "e" * 55, "f" * 100)}


@pytest.mark.parametrize("which", LONG)
def test_a_name_that_splits_is_split(made, which):
    directory, base = LONG[which]

    def build(top):
        os.makedirs(f"{top}/{directory}")
        put(f"{top}/{directory}/{base}", b"hello")

    tar = made(build)
    assert file(base, b"hello", prefix=directory) in tar
    assert b"path=" not in tar


@pytest.mark.parametrize(
    "name", ["n" * 101, "p" * 160 + "/" + "q" * 20, "a" * 120 + "/" + "b" * 120, "d" * 200 + "/" + "e" * 98],
    ids=lambda name: f"{name[0]} {len(name)}"
)
def test_a_name_that_does_not_split_is_a_pax_path(made, name):
    def build(top):
        os.makedirs(os.path.dirname(f"{top}/{name}"), exist_ok=True)
        put(f"{top}/{name}", b"hello")

    tar = made(build)
    assert pax_entry(name, {"path": name}, b"") in tar
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert archive.extractfile(name).read() == b"hello"


def test_a_name_beyond_ascii_is_a_pax_path_and_its_block_has_the_ascii_of_it(made):
    tar = made(lambda top: put(f"{top}/réunion", b"hello"))
    header = tarkit.pax({"path": "réunion"}, name="PaxHeaders.0/runion", mode=0, devmajor=b"", devminor=b"")
    assert tar == header + file("runion", b"hello") + end()


def test_an_owner_beyond_octal_is_a_pax_record_and_zero_in_its_block(made):
    tar = made(lambda top: put(f"{top}/f", b"hello", uid=3_000_000, gid=2097151))
    assert tar == pax_entry("f", {"uid": "3000000"}, file("f", b"hello", gid=2097151)) + end()


def test_records_are_sorted_by_key(made):
    tar = made(lambda top: put(f"{top}/é", b"hello", uid=3_000_000, gid=4_000_000))
    keys = [("gid", "4000000"), ("path", "é"), ("uid", "3000000")]
    assert tarkit.pax_data(keys) in tar


def test_a_long_link_target_is_a_pax_linkpath(made):
    def build(top):
        os.symlink("t" * 101, f"{top}/l")
        os.symlink("u" * 100, f"{top}/m")
        still(f"{top}/l", f"{top}/m")

    first = pax_entry("l", {"linkpath": "t" * 101}, symlink("l", "t" * 100))
    assert made(build) == first + symlink("m", "u" * 100) + end()


def test_a_time_before_1970_is_a_pax_mtime(made):
    tar = made(lambda top: put(f"{top}/f", b"hello", seconds=-5))
    assert tar == pax_entry("f", {"mtime": "-5"}, file("f", b"hello")) + end()


def test_a_time_beyond_eleven_digits_is_a_pax_mtime(made):
    """tmpfs keeps such times; 8589934592 is the first that eleven octal digits do not hold."""
    tar = made(lambda top: put(f"{top}/f", seconds=8589934592) or put(f"{top}/e", seconds=8589934591))
    assert tar == file("e", mtime=8589934591) + pax_entry("f", {"mtime": "8589934592"}, file("f")) + end()


def test_of_attributes_only_the_capability_goes_into_the_tar(made):
    def build(top):
        put(f"{top}/f", b"hello")
        os.setxattr(f"{top}/f", "user.note", b"x")
        os.setxattr(f"{top}/f", "security.capability", tarkit.CAPABILITY)

    record = {"SCHILY.xattr.security.capability": tarkit.CAPABILITY}
    with pytest.warns(LeftOutWarning, match=r"1 file .*\(f\)"):
        assert made(build) == pax_entry("f", record, file("f", b"hello")) + end()


def test_a_namespaced_capability_is_written_as_the_one_before_it(made):
    """Revision 3 holds the root of a user namespace, which means nothing elsewhere."""

    def build(top):
        put(f"{top}/f", b"hello")
        os.setxattr(f"{top}/f", "security.capability", CAPABILITY_OF_A_NAMESPACE)

    record = {"SCHILY.xattr.security.capability": tarkit.CAPABILITY}
    assert made(build) == pax_entry("f", record, file("f", b"hello")) + end()


def test_a_socket_is_left_out(made):
    def build(top):
        here = os.getcwd()
        os.chdir(top)
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind("s")
        finally:
            os.chdir(here)
        put(f"{top}/a", b"a")
        put(f"{top}/z", b"z")

    with pytest.warns(LeftOutWarning, match="socket"):
        assert made(build) == file("a", b"a") + file("z", b"z") + end()


@only_native
def test_an_overlay_whiteout_is_an_empty_file_of_its_own_owner(made):
    def build(top):
        os.mknod(f"{top}/gone", stat.S_IFCHR, 0)
        os.chown(f"{top}/gone", 10, 11)
        os.utime(f"{top}/gone", (77, 77))

    assert made(build) == file(".wh.gone", mode=0o600, uid=10, gid=11, mtime=77) + end()


@only_native
def test_whiteouts_that_share_an_inode_keep_the_name_of_the_first(made):
    """Kernels from 5.8 on link them; Docker's writer lets the link's target stand in the later ones."""

    def build(top):
        os.mknod(f"{top}/b", stat.S_IFCHR, 0)
        os.link(f"{top}/b", f"{top}/gone")
        still(f"{top}/b")

    first, second = file(".wh.b", mode=0o600), file(".wh.gone", mode=0o600, linkname="b")
    assert made(build) == first + second + end()


@only_native
def test_an_opaque_directory_is_followed_by_its_mark(made):
    def build(top):
        os.mkdir(f"{top}/d")
        os.chown(f"{top}/d", 3, 4)
        os.chmod(f"{top}/d", 0o2750)
        put(f"{top}/d/.a", b"a")
        os.setxattr(f"{top}/d", "trusted.overlay.opaque", b"y")
        os.utime(f"{top}/d", (99, 99))

    mark = file("d/.wh..wh..opq", mode=0o750, uid=3, gid=4)
    assert made(build) == dir("d/", mode=0o2750, uid=3, gid=4, mtime=99) + mark + file("d/.a", b"a") + end()


@pytest.mark.parametrize("value", [b"x", b"n", b"yy", b""])
def test_an_opaque_attribute_of_another_value_is_no_mark(made, value):
    def build(top):
        os.mkdir(f"{top}/d")
        os.setxattr(f"{top}/d", "trusted.overlay.opaque", value)
        still(f"{top}/d")

    assert made(build) == dir("d/") + end()


@only_native
def test_what_the_kernel_wrote_comes_out_as_docker_writes_it(store):
    """Real deletions through a real mount; the same tar, registered elsewhere, hides the same."""
    base = store.register(file("b", b"b") + file("gone", b"g") + dir("d/") + file("d/x") + end())
    rw = store.create_rw_layer("c", base.chain_id)
    with rw.mounted() as path:
        os.unlink(f"{path}/b")
        os.unlink(f"{path}/gone")
        os.unlink(f"{path}/d/x")
        os.rmdir(f"{path}/d")
        os.mkdir(f"{path}/d")
        put(f"{path}/d/y", b"y")
    with rw.tar_stream() as stream:
        tar = stream.read()
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        found = [(member.name, member.mode, member.size) for member in archive]
    assert [name for name, _, _ in found] == [".wh.b", "d", "d/.wh..wh..opq", "d/y", ".wh.gone"]
    assert found[0][1:] == (0o600, 0)
    layer = store.register(tar, base.chain_id)
    with store.create_rw_layer("other", layer.chain_id).mounted() as path:
        assert shape(path) == {"d": "dir", "d/y": "y"}


# ---- tars of differences ---------------------------------------------------------------------------------
@pytest.fixture
def tower(store):
    """Three layers; over the first lie a changed directory, additions and a deletion, in two steps."""
    one = store.register(dir("a/", mtime=5) + file("gone", b"g") + file("same", b"s") + end())
    two = store.register(
        dir("a/", mtime=5) + file("a/x", b"x", mtime=6, uid=7) + whiteout("gone") + end(), one.chain_id
    )
    three = store.register(file("a.b", b"ab", mtime=8) + end(), two.chain_id)
    return one, two, three


def test_a_difference_is_in_byte_order_of_whole_paths_with_deletions_among_them(tower):
    """So `a.b` comes before `a/x`: not the order of a walk."""
    one, _, three = tower
    before = int(time.time())
    with three.tar_stream_from(one.chain_id) as stream:
        tar = stream.read()
    after = int(time.time()) + 1
    assert names_of(tar) == ["a", "a.b", "a/x", ".wh.gone"]
    mtime = int(tar[-1536 + 136 : -1536 + 147], 8)
    assert before <= mtime <= after, "a deletion happens now"
    assert tar == (
        dir("a/", mtime=5) + file("a.b", b"ab", mtime=8) + file("a/x", b"x", mtime=6, uid=7)
        + file(".wh.gone", mode=0, mtime=mtime) + end()
    )


@only_native
def test_a_difference_to_the_direct_parent_is_the_layer_itself(tower):
    one, two, _ = tower
    with two.tar_stream_from(one.chain_id) as stream:
        tar = stream.read()
    whiteout_time = int(tar[-1536 + 136 : -1536 + 147], 8)
    expected = file(".wh.gone", mode=0o600, mtime=whiteout_time)
    assert tar == dir("a/", mtime=5) + file("a/x", b"x", mtime=6, uid=7) + expected + end()


def test_everything_is_a_walk_of_the_flattened_tree(tower):
    _, _, three = tower
    with three.tar_stream_from("") as stream:
        tar = stream.read()
    assert tar == (
        dir("a/", mtime=5) + file("a/x", b"x", mtime=6, uid=7) + file("a.b", b"ab", mtime=8) + file("same", b"s")
        + end()
    )


def test_a_hard_link_across_a_difference_names_the_smallest_path(store):
    one = store.register(file("base") + end())
    two = store.register(file("z", b"hello") + hardlink("b", "z") + end(), one.chain_id)
    three = store.register(file("top") + end(), two.chain_id)
    with three.tar_stream_from(one.chain_id) as stream:
        assert stream.read() == file("b", b"hello") + file("top") + hardlink("z", "b") + end()


def test_a_difference_that_deletes_a_directory_names_it_once(store):
    one = store.register(dir("d/") + dir("d/e/") + file("d/e/f") + file("keep") + end())
    two = store.register(whiteout("d") + end(), one.chain_id)
    three = store.register(file("new") + end(), two.chain_id)
    with three.tar_stream_from(one.chain_id) as stream:
        assert names_of(stream.read()) == [".wh.d", "new"]


def test_a_difference_applied_to_the_ancestor_gives_the_layer(store, tower):
    one, _, three = tower
    with three.tar_stream_from(one.chain_id) as stream:
        flat = store.register(stream.read(), one.chain_id)
    with store.create_rw_layer("a", three.chain_id).mounted() as left:
        with store.create_rw_layer("b", flat.chain_id).mounted() as right:
            assert changed(disk_state(left, times=False), disk_state(right, times=False)) == []


def test_exports_are_streams_of_known_length_or_say_that_they_are_not(tower):
    one, _, three = tower
    for parent in ("", one.chain_id):
        with three.tar_stream_from(parent) as stream:
            size = stream.size
            assert len(stream.read()) == size
