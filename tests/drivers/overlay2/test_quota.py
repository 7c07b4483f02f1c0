"""Project quotas on a real XFS: a writable layer holds as much as it was given and not a block more.

Each XFS is an image file on a tmpfs, mounted through a loop device; mkfs.xfs and loop mounts are all it takes.
"""

import ctypes
import errno
import os
import stat
import struct
import subprocess
from pathlib import Path

import disk
import pytest
import recipes
import tarkit
from machine import needs
from stored import tar_of
from tarkit import end, file

import layerstore
from layerstore import CreateRWLayerOpts, LayerStoreError, NotSupportedError
from layerstore.disk import mounts
from layerstore.drivers.quota import leave_project

MIB = 1 << 20
NO_PQUOTA = "--storage-opt is supported only for overlay over xfs with 'pquota' mount option"
HOLDS = (errno.ENOSPC, errno.EDQUOT)


@pytest.fixture(scope="module")
def xfs(tmpfs):
    """Make an XFS with these mount options; return its directory."""
    needs("mkfs.xfs")
    made, refused = {}, set()

    def mounted(options):
        if options in made:
            return made[options]
        place, image = tmpfs / f"xfs-{options}", tmpfs / f"xfs-{options}.image"
        if options not in refused:
            place.mkdir()
            with open(image, "wb") as out:
                out.truncate(320 * MIB)
            subprocess.run(["mkfs.xfs", "-q", str(image)], check=True, capture_output=True)
            given = subprocess.run(["mount", "-o", f"loop,{options}", str(image), str(place)], capture_output=True)
            if given.returncode == 0:
                made[options] = place
                return place
            # Only the option may be what is refused: the same image without it has to mount, or something else is wrong.
            subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True)
            subprocess.run(["umount", str(place)], check=True, capture_output=True)
            image.unlink()
            place.rmdir()
            refused.add(options)
        return pytest.skip(f"NOT TESTED: this kernel mounts XFS, but not with {options}; it needs CONFIG_XFS_QUOTA")

    yield mounted
    for place in made.values():
        disk.unmount_below(place)
        subprocess.run(["umount", str(place)], check=True, capture_output=True)
        place.rmdir()
        place.with_name(place.name + ".image").unlink()


@pytest.fixture
def quota(xfs, tmp_path_factory, request):
    """A fresh directory on an XFS that keeps project quotas."""
    place = xfs("pquota") / f"root-{request.node.name[:40]}-{len(os.listdir(xfs('pquota')))}"
    yield place
    assert disk.unmount_below(place) == []
    if place.exists():
        disk.remove_tree(place)


@pytest.fixture
def on_xfs(open_store, quota):
    return open_store(quota)


def sized(store, name, size, parent="", **more):
    return store.create_rw_layer(name, parent, CreateRWLayerOpts(storage_opt={"size": size}, **more))


def fill(path, mebibytes, name="fill"):
    """Write so much into one file; return the bytes that went in and the errno that ended it."""
    written = 0
    fd = os.open(os.path.join(path, name), os.O_WRONLY | os.O_CREAT)
    try:
        while written < mebibytes * MIB:
            written += os.write(fd, b"\xa5" * MIB)
        os.fsync(fd)
    except OSError as error:
        return written, error.errno
    finally:
        os.close(fd)
    return written, 0


def test_a_layer_of_10_mebibytes_takes_10_and_not_20(on_xfs):
    base = on_xfs.register(tarkit.T1)
    with sized(on_xfs, "c", "10M", base.chain_id).mounted() as path:
        written, ended = fill(path, 20)
    assert ended in HOLDS
    assert 8 * MIB <= written <= 10 * MIB


def test_what_is_deleted_can_be_written_again(on_xfs):
    with sized(on_xfs, "c", "10M", on_xfs.register(tarkit.T1).chain_id).mounted() as path:
        for _ in range(3):
            assert fill(path, 8) == (8 * MIB, 0)
            os.unlink(f"{path}/fill")


def test_the_limit_is_the_layers_own(on_xfs):
    """Neighbours, lower layers and layers without a size do not share it."""
    base = on_xfs.register(tarkit.T1)
    one, two = (sized(on_xfs, name, "10M", base.chain_id) for name in ("one", "two"))
    free = on_xfs.create_rw_layer("free", base.chain_id)
    with one.mounted() as first, two.mounted() as second, free.mounted() as third:
        assert fill(first, 20)[1] in HOLDS
        assert fill(second, 8) == (8 * MIB, 0)
        assert fill(third, 20) == (20 * MIB, 0)
    assert on_xfs.register(file("big", bytes(MIB)) + end()).diff_size == MIB


def test_a_layer_without_parent_and_one_with_init_are_limited_too(on_xfs):
    base = on_xfs.register(tarkit.T1)
    seen = []
    for rw in (sized(on_xfs, "alone", "10M"), sized(on_xfs, "init", "10M", base.chain_id, init_func=seen.append)):
        with rw.mounted() as path:
            assert fill(path, 20)[1] in HOLDS
    assert len(seen) == 1


def test_the_init_layer_is_held_to_the_size_as_well(on_xfs):
    """The same options go to both creations."""
    found = []

    def init(path):
        found.append(fill(path, 20))
        os.unlink(f"{path}/fill")

    sized(on_xfs, "init", "10M", on_xfs.register(tarkit.T1).chain_id, init_func=init)
    assert found[0][1] in HOLDS


def test_an_init_that_leaves_no_room_fails_the_creation_and_leaves_nothing(on_xfs, unchanged):
    """The mark that closes the init layer has no place either."""
    base = on_xfs.register(tarkit.T1)
    on_xfs.create_rw_layer("warm", base.chain_id)
    with unchanged(on_xfs.root), pytest.raises(OSError) as caught:
        sized(on_xfs, "c", "10M", base.chain_id, init_func=lambda path: fill(path, 20))
    assert caught.value.errno in HOLDS
    assert on_xfs.mounts() == ["warm"]


def test_files_copied_up_from_below_count(on_xfs):
    base = on_xfs.register(file("big", b"\xa5" * (12 * MIB)) + end())
    with sized(on_xfs, "c", "10M", base.chain_id).mounted() as path:
        with pytest.raises(OSError) as caught:
            with open(f"{path}/big", "ab") as out:
                out.write(b"x")
    assert caught.value.errno in HOLDS


def test_apply_diff_is_held_to_the_size_and_says_so(on_xfs):
    rw = sized(on_xfs, "c", "10M", on_xfs.register(tarkit.T1).chain_id)
    with pytest.raises(OSError) as caught:
        rw.apply_diff(file("big", b"\xa5" * (20 * MIB)) + end())
    assert caught.value.errno in HOLDS


TEN_MEBIBYTES = ["10M", "10m", "10MB", "10mib", "10240k", "10485760", "10485760b", "0.009765625g", "10 M"]


@pytest.mark.parametrize("text", TEN_MEBIBYTES)
def test_sizes_are_read_as_docker_reads_them(on_xfs, text):
    with sized(on_xfs, "c", text, on_xfs.register(tarkit.T1).chain_id).mounted() as path:
        free = os.statvfs(path)
        assert free.f_blocks * free.f_frsize == 10 * MIB


NO_SIZES = {
    "10x": "invalid suffix: 'x'", "-5M": "invalid size: '-5M'", "": "invalid size: ''", "M": "invalid size: 'M'",
}


@pytest.mark.parametrize(("text", "sentence"), NO_SIZES.items())
def test_a_size_that_is_none_is_refused_and_leaves_nothing(on_xfs, unchanged, text, sentence):
    base = on_xfs.register(tarkit.T1)
    on_xfs.create_rw_layer("warm", base.chain_id)
    with unchanged(on_xfs.root), pytest.raises((LayerStoreError, ValueError)) as caught:
        sized(on_xfs, "c", text, base.chain_id)
    assert sentence in str(caught.value)


def test_keys_are_read_in_any_case_and_unknown_ones_refused(on_xfs):
    base = on_xfs.register(tarkit.T1)
    rw = on_xfs.create_rw_layer("c", base.chain_id, CreateRWLayerOpts(storage_opt={"SiZe": "10M"}))
    with rw.mounted() as path:
        assert fill(path, 20)[1] in HOLDS
    with pytest.raises(Exception, match="Unknown option inodes"):
        on_xfs.create_rw_layer("d", base.chain_id, CreateRWLayerOpts(storage_opt={"size": "10M", "inodes": "5"}))
    assert on_xfs.mounts() == ["c"]


def test_a_size_of_zero_is_no_limit(on_xfs):
    with sized(on_xfs, "c", "0", on_xfs.register(tarkit.T1).chain_id).mounted() as path:
        assert fill(path, 20) == (20 * MIB, 0)


def test_limits_outlive_the_store_and_new_ones_take_other_projects(open_store, quota):
    first = open_store(quota)
    base = first.register(tarkit.T1)
    sized(first, "old", "10M", base.chain_id)
    first.close()
    again = open_store(quota)
    old, new = again.get_rw_layer("old"), sized(again, "new", "30M", base.chain_id)
    with old.mounted() as path, new.mounted() as other:
        assert fill(other, 20) == (20 * MIB, 0)
        assert fill(path, 20)[1] in HOLDS


def test_the_drivers_option_is_the_size_of_every_layer_that_names_none(open_store, quota):
    store = open_store(quota, options={"overlay2.size": "10M"})
    base = store.register(file("big", b"\xa5" * (12 * MIB)) + end())
    assert base.diff_size == 12 * MIB, "a read-only layer has no limit"
    given = {}
    limited = store.create_rw_layer("c", base.chain_id)
    wide = sized(store, "wide", "25M", base.chain_id)
    empty = store.create_rw_layer("empty", base.chain_id, CreateRWLayerOpts(storage_opt=given))
    for rw, fits in ((limited, False), (wide, True), (empty, False)):
        with rw.mounted() as path:
            assert (fill(path, 20)[1] == 0) is fits


def test_what_leaves_the_quota_counts_no_longer(on_xfs, quota):
    rw = sized(on_xfs, "c", "10M", on_xfs.register(tarkit.T1).chain_id)
    box, apart = Path(rw.metadata()["UpperDir"]).parent, quota / "overlay2" / ("5" * 64)
    with rw.mounted() as path:
        assert fill(path, 8) == (8 * MIB, 0)
    apart.mkdir()
    mounts.set_project(str(apart), mounts.project_of(str(box)))
    (box / "diff").rename(apart / "diff")
    (box / "diff").mkdir()
    with rw.mounted() as path:
        assert fill(path, 8)[1] in HOLDS
    on_xfs._engine.driver.writables.disown(apart.name)
    with rw.mounted() as path:
        assert fill(path, 9)[1] == 0


def project_of_any(path):
    """By file_getattr, which takes what cannot be opened, too; None: this kernel does not have it."""
    answer = struct.Struct("=QIIII")
    room = ctypes.create_string_buffer(answer.size)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(468, -100, os.fsencode(path), room, ctypes.c_size_t(answer.size), 0x100) < 0:
        assert ctypes.get_errno() == errno.ENOSYS, os.strerror(ctypes.get_errno())
        return None
    return answer.unpack(room.raw)[3]


def test_all_kinds_of_things_leave_a_project(xfs):
    """What left cannot be renamed into the project again."""
    home = xfs("noatime") / "leaving"
    (home / "box").mkdir(parents=True)
    mounts.set_project(str(home / "box"), 7)
    at = home / "box/of"
    (at / "deep/er").mkdir(parents=True)
    (at / "file").write_bytes(b"x")
    os.mkfifo(at / "deep/fifo")
    os.symlink("x" * 1000, at / "deep/link")
    os.mknod(at / "deep/er/null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(at / "deep/socket", 0o600 | stat.S_IFSOCK)
    times = os.stat(at / "file").st_mtime_ns
    assert project_of_any(at / "deep/link") in (7, None)
    at.rename(home / "apart")
    assert mounts.project_of(str(home / "apart")) == 7
    for _ in range(2):
        leave_project(str(home / "apart"))
    assert [mounts.project_of(str(home / name)) for name in ("apart", "apart/deep/er", "box")] == [0, 0, 7]
    assert os.stat(home / "apart/file").st_mtime_ns == times
    for name in ("file", "deep", "deep/fifo", "deep/link", "deep/er/null", "deep/socket"):
        assert project_of_any(home / "apart" / name) in (0, None), name
    with pytest.raises(OSError) as raised:
        os.rename(home / "apart/file", home / "box/moved")
    assert raised.value.errno == errno.EXDEV
    (home / "apart/new").mkdir()
    (home / "apart/new").rename(home / "new")


def test_the_drivers_home_holds_a_node_of_the_device(on_xfs, quota):
    sized(on_xfs, "c", "10M", on_xfs.register(tarkit.T1).chain_id)
    status = os.lstat(quota / "overlay2/backingFsBlockDev")
    assert stat.S_ISBLK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_rdev == os.stat(quota).st_dev


def test_the_node_of_the_device_is_nobodys_orphan(on_xfs, quota):
    sized(on_xfs, "c", "10M", on_xfs.register(tarkit.T1).chain_id)
    assert on_xfs.verify() == []
    on_xfs.cleanup()
    assert (quota / "overlay2/backingFsBlockDev").exists()
    with on_xfs.get_rw_layer("c").mounted() as path:
        assert fill(path, 20)[1] in HOLDS


def test_the_status_names_xfs(on_xfs):
    assert ("Backing Filesystem", "xfs") in on_xfs.driver_status()
    assert ("Supports d_type", "true") in on_xfs.driver_status()


def test_layers_come_back_from_xfs_bit_for_bit(on_xfs):
    for name in ("good_t2", "good_xattrs", "good_devices", "good_sparse_1_0", "good_times", "good_zeros_stay_holes"):
        tar = recipes.GOOD[name]()
        layer = on_xfs.register(tar)
        assert tar_of(layer) == tar
        assert on_xfs.verify(layer.chain_id) == []


# ---- without quotas -----------------------------------------------------------------------------------------------
@pytest.fixture(params=["xfs without pquota", "tmpfs"])
def without(request, open_store, xfs, room):
    if request.param == "tmpfs":
        yield open_store(room / "plain")
        return
    place = xfs("noquota") / f"root-{len(os.listdir(xfs('noquota')))}"
    yield open_store(place)
    assert disk.unmount_below(place) == []
    disk.remove_tree(place)


def test_without_pquota_a_size_is_not_supported_and_leaves_nothing(without, unchanged):
    base = without.register(tarkit.T1)
    without.create_rw_layer("warm", base.chain_id)
    with unchanged(without.root), pytest.raises(NotSupportedError) as caught:
        sized(without, "c", "10M", base.chain_id)
    assert str(caught.value) == NO_PQUOTA
    assert without.mounts() == ["warm"]
    without.release_rw_layer(without.get_rw_layer("warm"))


def test_a_size_is_refused_before_init_runs(without):
    called = []
    with pytest.raises(NotSupportedError):
        sized(without, "c", "10M", without.register(tarkit.T1).chain_id, init_func=called.append)
    assert called == []


def test_the_drivers_option_needs_xfs(room):
    with pytest.raises(LayerStoreError) as caught:
        layerstore.Store(room / "plain", options={"overlay2.size": "10M"})
    assert "Storage Option overlay2.size only supported for backingFS XFS. Found tmpfs" in str(caught.value)


def test_the_drivers_option_needs_project_quotas(xfs):
    place = xfs("noquota") / "with-option"
    with pytest.raises(LayerStoreError) as caught:
        layerstore.Store(place, options={"overlay2.size": "10M"})
    sentence = "Storage option overlay2.size not supported. Filesystem does not support Project Quota"
    assert sentence in str(caught.value)


@pytest.mark.parametrize("text", ["10x", "-5", "", "many"])
def test_a_drivers_size_that_is_none_is_refused(quota, text):
    with pytest.raises((LayerStoreError, ValueError), match="invalid s"):
        layerstore.Store(quota, options={"overlay2.size": text})
