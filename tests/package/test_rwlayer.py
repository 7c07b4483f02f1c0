"""A writable layer: mounted and counted, its size, its changes, its tar, its end."""

import io
import os
import re
import stat
import tarfile

import pytest
import refused
import tarkit
from disk import mount_line, mounts_below, shape
from driven import DRIVER, FILES, LAYERDB
from stored import BoomError
from tarkit import end, file

import layerstore
from layerstore import (
    CreateRWLayerOpts,
    LayerNotRetainedError,
    LayerStoreError,
    MountDoesNotExistError,
    MountNameConflictError,
    changes_between,
    overlay_changes,
)

BASE = (
    tarkit.dir("etc/", mtime=5) + file("etc/hosts", b"127.0.0.1", mtime=5) + file("etc/motd", b"hi", mtime=5)
    + tarkit.dir("var/", mtime=5) + tarkit.dir("var/log/", mtime=5) + file("var/log/a", b"a", mtime=5)
    + tarkit.symlink("link", "etc", mtime=5) + file("top", b"top", mtime=5) + end()
)


@pytest.fixture
def base(store):
    return store.register(BASE)


@pytest.fixture
def rw(store, base):
    return store.create_rw_layer("c", base.chain_id)


def write(path, text="", mode="w"):
    with open(path, mode) as out:
        out.write(text)


def texts(changes):
    return [str(change) for change in changes]


def members(stream):
    with stream, tarfile.open(fileobj=io.BytesIO(stream.read())) as tar:
        return {member.name: member for member in tar}


def test_mounts_are_counted(rw):
    first = rw.mount()
    assert rw.mount() == first
    rw.unmount()
    assert mount_line(first)
    rw.unmount()
    assert mount_line(first) is None
    assert not os.path.exists(first)
    rw.unmount()


def test_mounted_unmounts_at_the_end_and_when_the_block_raises(rw):
    with rw.mounted() as path:
        assert mount_line(path)
    assert mount_line(path) is None
    with pytest.raises(BoomError), rw.mounted() as path:
        raise BoomError
    assert mount_line(path) is None


def test_handles_of_one_name_share_the_mount(store, rw):
    other = store.get_rw_layer("c")
    path = rw.mount()
    assert other.mount() == path
    rw.unmount()
    assert mount_line(path)
    other.unmount()
    assert mount_line(path) is None
    store.release_rw_layer(other)


def test_three_handles_are_released_one_by_one(store, rw, root):
    second, third = store.get_rw_layer("c"), store.get_rw_layer("c")
    assert store.release_rw_layer(rw) == []
    with pytest.raises(LayerNotRetainedError):
        store.release_rw_layer(rw)
    assert store.release_rw_layer(second) == []
    mount_id = store.get_mount_id("c")
    assert store.release_rw_layer(third) == []
    assert not (root / DRIVER / mount_id).exists()
    assert not (root / LAYERDB / "mounts/c").exists()
    assert store.release_rw_layer(third) == []
    with pytest.raises(MountDoesNotExistError, match="mount does not exist"):
        store.get_rw_layer("c")


def test_the_last_release_takes_the_parents_with_it(store, base, rw):
    assert base.release() == []
    assert [m.chain_id for m in store.release_rw_layer(rw)] == [base.chain_id]
    assert store.map() == {}


def test_with_releases_the_writable_layer(store, base):
    with store.create_rw_layer("w", base.chain_id) as rw:
        assert store.mounts() == ["w"]
        assert (rw.name, rw.parent.chain_id) == ("w", base.chain_id)
    assert store.mounts() == []


def test_a_name_is_taken_once_and_free_again(store, base, rw, unchanged):
    with unchanged(), pytest.raises(MountNameConflictError):
        store.create_rw_layer("c", "sha256:" + "0" * 64)
    store.release_rw_layer(rw)
    assert store.create_rw_layer("c").parent is None


@pytest.mark.parametrize("name", ["../up", "a/b", "..", ".", "", "/abs", "nul\0"])
def test_a_name_that_is_no_file_name_is_refused_and_leaves_nothing(store, base, rw, unchanged, name):
    with unchanged(), pytest.raises((layerstore.LayerStoreError, ValueError)):
        store.create_rw_layer(name, base.chain_id)
    assert store.mounts() == ["c"]


@pytest.mark.parametrize("name", ["with blank", "ünï", "-x", ".hidden", "n" * 255])
def test_odd_names_are_names(store, open_store, base, name):
    store.create_rw_layer(name, base.chain_id)
    store.close()
    assert open_store().get_rw_layer(name).name == name


def test_what_init_writes_is_seen_and_not_counted(store, base, root):
    def init(path):
        with open(os.path.join(path, "init-file"), "wb") as out:
            out.write(b"i" * 100)
        with open(os.path.join(path, "etc/hosts"), "w") as out:
            out.write("from init")

    rw = store.create_rw_layer("i", base.chain_id, CreateRWLayerOpts(init_func=init))
    assert rw.size() == 0
    assert rw.changes() == []
    assert members(rw.tar_stream()) == {}
    with rw.mounted() as path:
        assert shape(path)["etc/hosts"] == "from init"
        assert os.path.getsize(os.path.join(path, "init-file")) == 100
        with open(os.path.join(path, "mine"), "w") as out:
            out.write("12345")
    assert texts(rw.changes()) == ["A /mine"]
    assert rw.size() == 5
    assert list(members(rw.tar_stream())) == ["mine"]
    assert mounts_below(root) == []


def test_an_init_that_raises_leaves_nothing(store, base, rw, unchanged):
    store.create_rw_layer("warm", base.chain_id)
    error = BoomError()

    def init(path):
        raise error

    with unchanged(), pytest.raises(BoomError) as caught:
        store.create_rw_layer("i", base.chain_id, CreateRWLayerOpts(init_func=init))
    assert caught.value is error
    assert store.create_rw_layer("i", base.chain_id).name == "i"


def test_metadata_has_the_directories_and_the_name(store, base, rw, root):
    place = root / DRIVER / store.get_mount_id("c")
    assert rw.metadata() == {
        "ID": "c", "WorkDir": str(place / "work"), "MergedDir": str(place / "merged"), "UpperDir": str(place / FILES),
        "LowerDir": str(root / DRIVER / base.cache_id / FILES),
    }


def test_size_counts_each_inode_once(rw):
    with rw.mounted() as path:
        for i in range(100):
            write(f"{path}/f{i}", "fooo")
            os.link(f"{path}/f{i}", f"{path}/l{i}")
        os.symlink("12345678", f"{path}/s")
        os.unlink(f"{path}/top")
    assert rw.size() == 408


# ---- changes ----------------------------------------------------------------------------------------
def test_an_untouched_layer_has_no_changes(rw):
    assert rw.changes() == []


EDITS = {
    "removed file": (lambda p: os.unlink(f"{p}/etc/motd"), ["C /etc", "D /etc/motd"]),
    "removed directory is one entry": (
        lambda p: (os.unlink(f"{p}/var/log/a"), os.rmdir(f"{p}/var/log")), ["C /var", "D /var/log"]),
    "new file": (lambda p: write(f"{p}/new"), ["A /new"]),
    "new directory with a file": (lambda p: (os.mkdir(f"{p}/n"), write(f"{p}/n/f")), ["A /n", "A /n/f"]),
    "content": (lambda p: write(f"{p}/top", "more", "a"), ["C /top"]),
    "mode of a file": (lambda p: os.chmod(f"{p}/top", 0o600), ["C /top"]),
    "mode of a directory": (lambda p: os.chmod(f"{p}/var/log", 0o700), ["C /var", "C /var/log"]),
    "owner": (lambda p: os.chown(f"{p}/top", 5, 6), ["C /top"]),
    "owner of a link": (lambda p: os.lchown(f"{p}/link", 5, 6), ["C /link"]),
    "time one second on": (lambda p: os.utime(f"{p}/top", (6, 6)), ["C /top"]),
    "time of a directory": (lambda p: os.utime(f"{p}/var", (9, 9)), []),
    "same time and same size": (lambda p: (write(f"{p}/top", "TOP"), os.utime(f"{p}/top", (5, 5))), []),
    "nanoseconds against none are the same time": (
        lambda p: os.utime(f"{p}/top", ns=(5_300_000_000, 5_300_000_000)), []),
    "link to elsewhere of another length": (
        lambda p: (os.unlink(f"{p}/link"), os.symlink("etc/hosts", f"{p}/link")), ["C /link"]),
    "file becomes directory": (
        lambda p: (os.unlink(f"{p}/top"), os.mkdir(f"{p}/top"), write(f"{p}/top/x")), ["C /top", "A /top/x"]),
    "directory becomes file": (
        lambda p: (os.unlink(f"{p}/var/log/a"), os.rmdir(f"{p}/var/log"), write(f"{p}/var/log")),
        ["C /var", "C /var/log"]),
    "directory replaced by an empty one (opaque)": (
        lambda p: (os.unlink(f"{p}/var/log/a"), os.rmdir(f"{p}/var/log"), os.mkdir(f"{p}/var/log")),
        ["C /var", "C /var/log", "D /var/log/a"]),
    "removed and made again the same": (
        lambda p: (os.unlink(f"{p}/top"), write(f"{p}/top", "top"), os.utime(f"{p}/top", (5, 5))), []),
    "deep below unchanged directories": (
        lambda p: write(f"{p}/var/log/new"), ["C /var", "C /var/log", "A /var/log/new"]),
    "opened for writing and left": (lambda p: write(f"{p}/top", "", "a"), []),
    "made and removed again": (lambda p: (write(f"{p}/n"), os.unlink(f"{p}/n")), []),
    "fifo for a file": (lambda p: (os.unlink(f"{p}/top"), os.mkfifo(f"{p}/top")), ["C /top"]),
    "capability": (
        lambda p: (
            os.setxattr(f"{p}/top", "security.capability", bytes.fromhex("0100000200040000" + "00" * 12)),
            os.utime(f"{p}/top", (5, 5))),
        ["C /top"]),
    "another xattr": (lambda p: os.setxattr(f"{p}/top", "user.x", b"y"), []),
    "root directory's mode": (lambda p: os.chmod(p, 0o700), []),
    "a space for order": (
        lambda p: [write(f"{p}/{n}") for n in ("a", "a.b", "a-b", "a b")], ["A /a", "A /a b", "A /a-b", "A /a.b"]),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_in_the_mount_is_told_as_docker_tells_it(rw, unchanged, name):
    edit, expected = EDITS[name]
    with rw.mounted() as path:
        edit(path)
        while_mounted = sorted(texts(rw.changes()), key=lambda line: line[2:])
    with unchanged():
        changes = rw.changes()
    assert sorted(texts(changes), key=lambda line: line[2:]) == sorted(expected, key=lambda line: line[2:])
    assert while_mounted == sorted(expected, key=lambda line: line[2:])


def test_a_directory_comes_before_what_changed_in_it_and_deletions_last(rw):
    with rw.mounted() as path:
        os.unlink(f"{path}/etc/hosts")
        for name in ("etc/zzz", "etc/aaa"):
            write(f"{path}/{name}")
    order = texts(rw.changes())
    assert order[0] == "C /etc"
    assert order[-1] == "D /etc/hosts"
    assert order[1:3] == ["A /etc/aaa", "A /etc/zzz"]


def test_changes_of_a_layer_without_parent_are_all_added(store):
    rw = store.create_rw_layer("alone")
    with rw.mounted() as path:
        os.mkdir(f"{path}/d")
        write(f"{path}/d/f")
    assert texts(rw.changes()) == ["A /d", "A /d/f"]


def test_names_that_are_not_utf8_are_told(rw):
    with rw.mounted() as path:
        with open(os.fsencode(path) + b"/l\xe4", "w"):
            pass
    assert [os.fsencode(change.path) for change in rw.changes()] == [b"/l\xe4"]


def test_whiteouts_of_nothing_are_no_change(store, base):
    layer = store.register(tarkit.whiteout("never-there") + end(), base.chain_id)
    rw = store.create_rw_layer("w", layer.chain_id)
    assert rw.changes() == []


# ---- two trees, and an upper over its lowers ----------------------------------------------------------
def plant(place, **files):
    place.mkdir()
    for name, seconds in files.items():
        path = place / name
        path.write_text("same")
        os.utime(path, ns=(seconds, seconds))
    return place


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (5_000_000_000, 5_300_000_000, True), (5_300_000_000, 5_000_000_000, True),
        (5_200_000_000, 5_300_000_000, False), (5_000_000_000, 6_000_000_000, False),
        (5_200_000_001, 5_200_000_001, True)]
)
def test_times_are_the_same_when_one_of_them_has_no_nanoseconds(room, old, new, same):
    before, after = plant(room / "old", f=old), plant(room / "new", f=new)
    assert texts(changes_between(after, before)) == ([] if same else ["C /f"])


def test_an_identical_copy_has_no_changes(room):
    before, after = plant(room / "old", a=5, b=6), plant(room / "new", a=5, b=6)
    assert changes_between(after, before) == []
    assert changes_between(os.fsencode(after), str(before)) == []


def test_changes_between_tells_add_modify_and_delete(room):
    before, after = plant(room / "old", gone=5, mod=5), plant(room / "new", mod=10**10, new=5)
    (before / "dir/sub").mkdir(parents=True)
    (after / "dir").mkdir()
    assert sorted(texts(changes_between(after, before))) == ["A /new", "C /dir", "C /mod", "D /dir/sub", "D /gone"]


def test_hard_linked_trees_are_pruned(room):
    before = plant(room / "old", f=5)
    (room / "new").mkdir()
    os.link(before / "f", room / "new/f")
    assert changes_between(room / "new", before) == []


def test_overlay_changes_reads_marks_over_many_lowers(room):
    low, mid, up = room / "low", room / "mid", room / "up"
    for place in (low, mid, up):
        place.mkdir()
        (place / "d").mkdir()
    for path in (low / "a", low / "b", low / "d/x", mid / "c", low / "e"):
        path.write_text("same")
    os.mknod(mid / "b", stat.S_IFCHR, 0)
    for name in ("a", "b", "c"):
        os.mknod(up / name, stat.S_IFCHR, 0)
    os.setxattr(up / "d", "trusted.overlay.opaque", b"y")
    (up / "e").write_text("changed!")
    found = sorted(texts(overlay_changes(up, [mid, low])))
    assert found == ["C /d", "C /e", "D /a", "D /c", "D /d/x"]


def test_a_missing_tree_is_an_os_error(room):
    with pytest.raises(FileNotFoundError):
        changes_between(room / "nowhere", room)
    with pytest.raises(FileNotFoundError):
        overlay_changes(room, [room / "nowhere"])


# ---- tar out, tar in, commit -----------------------------------------------------------------------------
def test_the_tar_holds_the_upper_directory_with_whiteouts(rw):
    with rw.mounted() as path:
        os.unlink(f"{path}/top")
        write(f"{path}/etc/new", "new")
    found = members(rw.tar_stream())
    assert sorted(found) == [".wh.top", "etc", "etc/new"]
    assert found["etc"].isdir()
    assert (found[".wh.top"].size, found[".wh.top"].type) == (0, tarfile.REGTYPE)


def test_the_tar_applied_elsewhere_gives_the_same_tree(store, base, rw):
    with rw.mounted() as path:
        os.unlink(f"{path}/top")
        os.rename(f"{path}/etc/hosts", f"{path}/hosts")
        os.unlink(f"{path}/var/log/a")
        os.rmdir(f"{path}/var/log")
        os.mkdir(f"{path}/var/log")
        mine = shape(path)
    layer = store.register(rw.tar_stream(), base.chain_id)
    other = store.create_rw_layer("other", layer.chain_id)
    with other.mounted() as path:
        assert shape(path) == mine


def test_commit_makes_a_layer_of_what_the_mount_holds(store, base, rw):
    with rw.mounted() as path:
        os.unlink(f"{path}/top")
        write(f"{path}/new", "new file")
        mine = shape(path)
    layer = rw.commit()
    assert layer.parent.chain_id == base.chain_id
    assert layer.diff_size == 8
    with layer.tar_stream() as stream:
        assert tarkit.diff_id(stream.read()) == layer.diff_id
    with store.create_rw_layer("other", layer.chain_id).mounted() as path:
        assert shape(path) == mine
    assert store.verify(layer.chain_id) == []


def test_commit_of_an_init_layer_leaves_init_out(store, base):
    def init(path):
        with open(os.path.join(path, "init-file"), "w"):
            pass

    rw = store.create_rw_layer("i", base.chain_id, CreateRWLayerOpts(init_func=init))
    layer = rw.commit()
    assert layer.parent.chain_id == base.chain_id
    with store.create_rw_layer("other", layer.chain_id).mounted() as path:
        assert not os.path.exists(os.path.join(path, "init-file"))


def test_apply_diff_unpacks_into_the_layer_and_gives_its_size(rw):
    assert rw.apply_diff(tarkit.T1) == 5
    assert rw.apply_diff(io.BytesIO(tarkit.whiteout("top") + end())) == 5
    with rw.mounted() as path:
        assert shape(path)["a/f"] == "hello"
        assert "top" not in shape(path)
    assert texts(rw.changes()) == ["A /a", "A /a/f", "D /top"]


def test_apply_diff_of_a_malformed_tar_says_where(rw):
    tar, first, last = refused.BAD["bad_checksum"]()
    with pytest.raises(layerstore.TarFormatError) as caught:
        rw.apply_diff(tar)
    assert first <= caught.value.offset <= last


def test_a_released_handle_is_refused(store, rw):
    store.get_rw_layer("c")
    store.release_rw_layer(rw)
    with pytest.raises(layerstore.LayerStoreError):
        rw.mount()


def test_a_stream_of_a_writable_layer_is_closed_with_its_mount_gone(rw, root):
    stream = rw.tar_stream()
    stream.read(1)
    stream.close()
    assert mounts_below(root) == []


# ---- labels, init layers, names --------------------------------------------------------------------------
@pytest.mark.skipif(os.path.exists("/sys/fs/selinux/enforce"), reason="a kernel with SELinux takes the label")
def test_a_label_the_kernel_does_not_know_is_an_error_and_leaves_no_mount(store, root):
    base = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", base.chain_id)
    for _ in range(2):
        with pytest.raises((OSError, LayerStoreError)):
            rw.mount("system_u:object_r:container_file_t:s0")
        assert mounts_below(root) == []
        assert not (root / DRIVER / store.get_mount_id("c") / "merged").exists()
    path = rw.mount()
    assert rw.mount("the label of a later call is ignored") == path
    rw.unmount()
    rw.unmount()
    assert mounts_below(root) == []


def test_a_label_longer_than_a_page_is_an_error_and_leaves_no_mount(store, root):
    rw = store.create_rw_layer("c", store.register(tarkit.T1).chain_id)
    with pytest.raises((OSError, LayerStoreError)):
        rw.mount("x" * 5000)
    assert mounts_below(root) == []
    assert len(rw.mount()) > 1
    rw.unmount()
    assert mounts_below(root) == []


def test_init_is_given_a_writable_root_and_its_mount_is_gone_when_it_ends(store, root):
    base = store.register(tarkit.T1)
    seen = []

    def init(path):
        seen.append((path, mount_line(path)[2], os.access(path, os.W_OK), sorted(os.listdir(path))))

    store.create_rw_layer("c", base.chain_id, CreateRWLayerOpts(init_func=init))
    init_root = str(root / DRIVER / (store.get_mount_id("c") + "-init") / "merged")
    assert seen == [(init_root, "overlay", True, ["a"])]
    assert mounts_below(root) == []


def test_an_init_without_parent_is_given_the_diff_directory(store, root):
    seen = []
    rw = store.create_rw_layer("c", "", CreateRWLayerOpts(init_func=lambda path: seen.append(path)))
    assert seen == [str(root / DRIVER / (store.get_mount_id("c") + "-init") / FILES)]
    with rw.mounted() as path:
        assert path.endswith("merged")


def test_a_storage_option_map_of_the_caller_is_left_as_it_is(store):
    base = store.register(tarkit.T1)
    given = {}
    store.create_rw_layer("c", base.chain_id, CreateRWLayerOpts(storage_opt=given))
    assert given == {}


def test_mount_ids_are_64_hex_that_do_not_begin_with_twelve_digits(store):
    ids = []
    for number in range(20):
        store.create_rw_layer(str(number))
        ids.append(store.get_mount_id(str(number)))
    assert len(set(ids)) == 20
    assert all(re.fullmatch("[0-9a-f]{64}", text) and not text[:12].isdigit() for text in ids)
