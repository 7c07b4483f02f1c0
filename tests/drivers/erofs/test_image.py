"""_erofs.Image: what Python sees of an image, by any number of threads, and what errors name."""

import errno
import hashlib
import io
import os
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from layerstore._core import _apply, _changes, _tarstream
from layerstore._core._erofs import Image
from layerstore.errors import CorruptLayerError, InvalidMetadataError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import erofsshapes


@pytest.fixture
def layer(tmp_path):
    """A directory, its tar, and the image of that."""
    place = tmp_path / "d"
    place.mkdir()
    (place / "sub").mkdir()
    for i in range(300):
        (place / "sub" / f"name{i}").write_bytes(b"x" * i)
    (place / "l").symlink_to("sub/name1")
    (place / "\udcff").write_text("odd")
    os.setxattr(place / "sub", "user.k", b"v")
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(place, ".")
    tar = made.getvalue()
    fd = os.open(tmp_path / "layer.erofs", os.O_RDWR | os.O_CREAT)
    apply = _apply.erofs(fd)
    apply.push(tar)
    apply.finish()
    os.close(fd)
    return place, tar, tmp_path / "layer.erofs"


@pytest.fixture
def image(layer):
    fd = os.open(layer[2], os.O_RDONLY)
    opened = Image(fd)
    os.close(fd)                # it has its own
    yield opened
    opened.close()


def test_it_answers_by_path(layer, image):
    place, tar, _ = layer
    assert image.tar_size == len(tar) and image.verify() == []
    assert image.refusal(hashlib.sha256(tar).digest(), len(tar)) == ""
    assert "uuid" in image.refusal(bytes(32), len(tar))
    assert image.names("") == image.names(".") == image.names("/") == ["l", "sub", "\udcff"]
    assert image.names("sub") == sorted(os.listdir(place / "sub"))
    found, st = image.find("sub/name7"), os.lstat(place / "sub" / "name7")
    assert (found.mode, found.uid, found.size, found.nlink) == (st.st_mode, st.st_uid, 7, 1)
    assert abs(found.mtime_ns - st.st_mtime_ns) < 1000
    assert image.read("sub/name299", 1 << 40, 290) == b"x" * 9 and image.read("\udcff", 2) == b"od"
    assert image.readlink("l") == "sub/name1"
    (size, ((offset, length, at),)) = image.extents("sub/name299")
    assert (size, offset, length) == (299, 0, 299) and layer[2].read_bytes()[at : at + 299] == b"x" * 299
    assert image.extents("sub/name0") == (0, [])


def test_what_is_not_there_has_its_name_in_the_error(image):
    with pytest.raises(FileNotFoundError) as err:
        image.find("sub/none")
    assert err.value.filename == "sub/none"
    for call, why in (
        (lambda: image.find("l/x"), errno.ELOOP), (lambda: image.find("sub/name1/x"), errno.ENOTDIR), (lambda: image.extents("sub"), errno.EINVAL),
        (lambda: image.read("sub", 1), errno.EISDIR), (lambda: image.readlink("sub"), errno.EINVAL), (lambda: image.names("l"), errno.ENOTDIR),
    ):
        with pytest.raises(OSError) as other:
            call()
        assert (other.value.errno, bool(other.value.filename)) == (why, True)
    with pytest.raises(ValueError):
        image.find("a\0b")


def test_it_is_a_layer_mixed_with_directories(layer, image):
    place = layer[0]
    fd = os.open(place, os.O_RDONLY)
    assert len(_changes.compare_overlay([fd], [image], contents=True)) == 0
    assert len(_changes.compare_stacks([image], [fd], contents=True)) == 0
    assert _changes.stack_size([image]) == _changes.stack_size([fd]) == _changes.stack_size([fd, image])
    assert len(_changes.compare_overlay([image], [])) == 303
    above = _tarstream.export_stack([fd, fd], 0, [image])
    image.close()               # its tar goes on
    assert above.read(-1)
    os.close(fd)
    with pytest.raises(RuntimeError):
        _changes.stack_size([image])


def test_any_threads_ask_and_one_may_close(layer, image):
    said = []

    def ask():
        try:
            while True:
                assert image.find("sub/name7").size == 7 and len(image.names("sub")) == 300
                assert _changes.stack_size([image]) > 40_000
        except RuntimeError as err:
            said.append(str(err))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    threads[0].join(0.2)
    image.close()
    image.close()
    for thread in threads:
        thread.join(20)
    assert said == ["already closed"] * 4


def test_damage_names_the_byte_and_the_file(layer, tmp_path):
    data = bytearray(layer[2].read_bytes())
    at = data.index(b"name0name1name10")
    data[at : at + 4] = b"zzzz"
    damaged = tmp_path / "damaged"
    damaged.write_bytes(data)
    fd, directory = os.open(damaged, os.O_RDONLY), os.open(layer[0], os.O_RDONLY)
    with Image(fd) as image:
        for call in (lambda: image.names("sub"), lambda: _changes.compare_stacks([directory], [image])):
            with pytest.raises(CorruptLayerError, match=r"damaged at byte .*out of order") as err:
                call()
            assert str(damaged) in str(err.value)
        ((kind, path, text),) = image.verify()
        assert (kind, path) == ("metadata", "sub") and "out of order" in text
    os.close(fd)
    os.close(directory)


def test_what_is_no_image_is_refused_by_the_field_and_the_file(tmp_path, layer):
    for change, field in ((lambda d: d[:-512], "blocks"), (lambda d: d[:1024] + b"x" + d[1025:], "magic"), (lambda d: d[:1030] + b"x" + d[1031:], "checksum")):
        path = tmp_path / field
        path.write_bytes(change(layer[2].read_bytes()))
        fd = os.open(path, os.O_RDONLY)
        with pytest.raises(InvalidMetadataError, match=f"{field}: ") as err:
            Image(fd)
        assert str(path) in str(err.value)
        os.close(fd)


def test_bytes_in_another_file_are_read_but_not_told_as_extents(tmp_path):
    made, tree, _ = erofsshapes.shape("chunks in a device")
    fds = []
    for name, content in (("index", made.image), ("device", made.device)):
        (tmp_path / name).write_bytes(content)
        fds.append(os.open(tmp_path / name, os.O_RDONLY))
    with Image(fds[0], devices=fds[1:]) as image:
        assert image.read("d/f", 1 << 20) == tree["d/f"].content
        with pytest.raises(OSError) as err:
            image.extents("d/f")
        assert (err.value.errno, err.value.filename) == (errno.EXDEV, "d/f")
    for fd in fds:
        os.close(fd)
