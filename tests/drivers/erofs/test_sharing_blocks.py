"""On a file system whose files can share blocks, a plain tar there is not copied: the layer has the same blocks."""

import os

import pytest
import recipes
from damages import patch
from disk import sized_file_system
from stored import tar_of
from tarkit import end, file

from layerstore import CorruptLayerError, Store, TarFormatError

BIG = 6 << 20
TAR = file("big", recipes.noise(BIG)) + file("small", b"hello") + end() + b"behind"
SMALL = 1 << 20


@pytest.fixture
def xfs(room):
    with sized_file_system(room, "xfs", size=320 << 20) as place:
        yield place


@pytest.fixture
def store(xfs):
    with Store(xfs / "root", driver="erofs") as store:
        yield store


@pytest.fixture
def path(xfs):
    (xfs / "given.tar").write_bytes(TAR)
    return xfs / "given.tar"


def used(xfs):
    os.sync()
    st = os.statvfs(xfs)
    return (st.f_blocks - st.f_bfree) * st.f_frsize


def as_path(path):
    return path


def as_descriptor(path):
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def as_file(path):
    return open(path, "rb")


def as_raw(path):
    return open(path, "rb", buffering=0)


@pytest.mark.parametrize("given", [as_path, as_descriptor, as_file, as_raw])
def test_a_plain_tar_beside_the_store_is_not_copied(store, xfs, path, given):
    source, seen = given(path), []
    before = used(xfs)
    layer = store.register(source, progress=seen.append)
    assert used(xfs) - before < SMALL
    assert tar_of(layer) == TAR and store.verify() == [] and seen[-1] == len(TAR)
    if given is as_descriptor:
        assert os.lseek(source, 0, os.SEEK_CUR) == len(TAR)
        os.close(source)
    elif given is not as_path:
        assert source.tell() == len(TAR)
        source.close()


def test_the_tar_of_another_store_is_not_copied(store, xfs, path):
    with Store(xfs / "other", driver="erofs") as other:
        theirs = other.register(path)
        path.unlink()
        before = used(xfs)
        with theirs.tar_stream() as stream:
            ours = store.register(stream)
            assert stream.read() == b"" and stream.tell() == len(TAR)
        assert used(xfs) - before < SMALL
        assert ours.chain_id == theirs.chain_id and tar_of(ours) == TAR


def test_a_damaged_tar_of_another_store_is_refused(store, xfs, path):
    with Store(xfs / "other", driver="erofs") as other:
        theirs = other.register(path)
        image = xfs / "other/erofs" / theirs.cache_id / "layer.erofs"
        patch(image, 4096 + BIG // 2, b"damaged")
        with theirs.tar_stream() as stream, pytest.raises(CorruptLayerError):
            store.register(stream)
        with theirs.tar_stream() as stream:
            stream.seek(512)
            with pytest.raises(TarFormatError):
                store.register(stream)
    assert os.listdir(xfs / "root/erofs") == ["l"]


def test_what_begins_inside_of_a_block_is_copied(store, path):
    with open(path, "rb") as source:
        source.seek(len(TAR) - 6 - 1024 - 1024)           # where the second entry begins
        layer = store.register(source)
    assert tar_of(layer) == TAR[-6 - 2048 :]


def test_a_tar_that_is_written_on_is_stored_as_it_was(store, path):
    layer = store.register(path)
    patch(path, 5000, b"changed")
    assert tar_of(layer) == TAR and store.verify() == []


@pytest.mark.parametrize("tar", [b"", TAR[: BIG // 2], b"x" * 8192])
def test_what_is_no_whole_tar_is_refused_and_leaves_nothing(store, xfs, path, tar):
    path.write_bytes(tar)
    with pytest.raises(TarFormatError):
        store.register(path)
    assert os.listdir(xfs / "root/erofs") == ["l"]


def test_a_fifo_is_opened_once(store, xfs):
    os.mkfifo(xfs / "fifo")
    if (child := os.fork()) == 0:
        with open(xfs / "fifo", "wb") as out:
            out.write(TAR)
        os._exit(0)
    layer = store.register(xfs / "fifo")
    os.waitpid(child, 0)
    assert tar_of(layer) == TAR
