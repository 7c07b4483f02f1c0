"""What is not the file that was written of a layer is refused by its name, and the kernel never sees it."""

import os
import struct

import pytest
from kernellog import complaints, kernel_log

from layerstore.errors import LayerStoreError

SUPER = 1024
# Where a field of the superblock is, how many bytes it has, and how an error names it.
FIELDS = {
    "magic": (0, 4), "feature_compat": (8, 4), "blkszbits": (12, 1), "sb_extslots": (13, 1), "root nid": (14, 2), "inos": (16, 8),
    "epoch": (24, 8), "fixed_nsec": (32, 4), "blocks": (36, 4), "meta_blkaddr": (40, 4), "xattr_blkaddr": (44, 4), "uuid": (48, 16),
    "volume_name": (64, 16), "feature_incompat": (80, 4), "extra_devices": (86, 2), "devt_slotoff": (88, 2), "dirblkbits": (90, 1),
    "xattr_prefix_count": (91, 1), "packed_nid": (96, 8), "build_time": (108, 4),
}  # fmt: skip


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


def seal(block):
    """A superblock's block with the checksum that fits."""
    block[4:8] = bytes(4)
    block[4:8] = struct.pack("<I", crc32c(block))


@pytest.fixture
def log():
    fd = kernel_log()
    yield fd
    os.close(fd)


@pytest.fixture
def stack(home):
    return home.layers(3)


@pytest.fixture
def refused(home, stack, log):
    """Damage the second of three layers: the box on it is refused, and mounted again once it is whole."""
    box, path, length = home.box(stack[0]), home.path / stack[1] / "layer.erofs", home.path / stack[1] / "length"

    def check(damage):
        whole, number = path.read_bytes(), length.read_text()
        home.mounting.get(box)                          # a file that was found whole is looked at again when it changed
        home.mounting.put(box)
        damage(path, length)
        for _ in range(5):                              # the log is the machine's: other programs mount, too
            complaints(log)
            with pytest.raises((LayerStoreError, OSError)) as met:
                home.mounting.get(box)
            if not (found := complaints(log)):
                break
        assert home.mounts() == set() and found == []
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
        path.write_bytes(whole)
        length.write_text(number)
        home.mounting.get(box)
        home.mounting.put(box)
        assert home.mounts() == set()
        assert stack[1] in str(met.value)
        return str(met.value)

    return check


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "unsealed"])
def test_a_field_of_the_superblock_that_is_another(refused, field, sealed):
    at, size = FIELDS[field]

    def damage(path, _):
        data = bytearray(path.read_bytes())
        data[SUPER + at + size - 1] ^= 0x15
        data[SUPER + at] ^= 0x16 if size > 1 else 0
        if sealed:
            block = data[SUPER : SUPER + 512]
            seal(block)
            data[SUPER : SUPER + 512] = block
        path.write_bytes(data)

    text = refused(damage).replace("_", " ")
    assert field.replace("_", " ") in text or (not sealed and "checksum" in text)


@pytest.mark.parametrize("by", [-512, -1, 1, 512, 4096])
def test_a_file_that_was_cut_or_has_grown(refused, by):
    def damage(path, _):
        os.truncate(path, path.stat().st_size + by)

    assert "blocks" in refused(damage)


@pytest.mark.parametrize("number", ["0", "512", "99999999"])
def test_another_length(refused, number):
    assert "length" in refused(lambda _, length: length.write_text(number))


def test_what_is_no_regular_file(refused, place):
    def replaced(make):
        def damage(path, _):
            path.rename(place / "elsewhere")
            make(path)

        assert "not a regular file" in refused(damage)

    replaced(lambda path: path.symlink_to(place / "elsewhere"))
    replaced(os.mkfifo)
    replaced(os.mkdir)


def test_a_layer_of_another_tar(refused, home, stack):
    other = home.layer(another="tar")

    def damage(path, length):
        path.write_bytes((home.path / other / "layer.erofs").read_bytes())
        length.write_text((home.path / other / "length").read_text())

    assert "uuid" in refused(damage)


def test_zeros_in_the_place_of_all(refused):
    refused(lambda path, _: path.write_bytes(bytes(path.stat().st_size)))
