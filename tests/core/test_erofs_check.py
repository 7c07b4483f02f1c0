"""An image against its tar: every byte that is another is found, and all but the tar is made again from it."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import erofsreader
import pytest
import recipes
from test_erofs_write import TOO_LARGE, entry, sparse, sparse_entry, tar_of, written

from layerstore._core import _apply, _erofs

BIG = tar_of(
    *[(entry(f"d/{i:04}", pax_headers={"SCHILY.xattr.user.k": "v"}), b"content") for i in range(3000)],
    entry("link", b"2", linkname="/".join(["t" * 200] * 5)),
)
TARS = {
    "odd": sparse([(100, b"a" * 100), (500_000, b"b" * 700)], 1_000_000),
    "chunks": sparse([(512, b"a" * 512)], 4096),
    "big": BIG,
    "empty": bytes(1024),
}


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


def put(fd: int, image: bytes) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, image, 0)


def register(fd: int, tar: bytes, lowers: list[int] | None = None) -> bytes:
    os.ftruncate(fd, 0)
    apply = _apply.erofs(fd, lowers or ())
    try:
        apply.push(tar)
        apply.finish()
    finally:
        apply.close()
    return os.pread(fd, os.fstat(fd).st_size, 0)


def found(fd: int, tar: bytes, lowers: list[int] | None = None) -> list[tuple[str, str, str]]:
    return _erofs.compare(fd, len(tar), hashlib.sha256(tar).digest(), lowers or ())


@pytest.mark.parametrize("name", [name for name in recipes.GOOD if name != TOO_LARGE])
def test_an_image_is_what_its_tar_makes(file: int, name: str) -> None:
    tar = recipes.GOOD[name]()
    image = register(file, tar)
    assert found(file, tar) == []
    os.ftruncate(file, 4096 + len(tar))
    os.pwrite(file, bytes(4096), 0)
    _erofs.rebuild(file, len(tar), hashlib.sha256(tar).digest())
    assert os.pread(file, 2 * len(image), 0) == image


@pytest.mark.parametrize("name", TARS)
def test_a_byte_that_is_another_is_found_anywhere(file: int, name: str) -> None:
    tar = TARS[name]
    image = register(file, tar)
    meta = erofsreader.Image(image).meta
    places = {*range(1024, 1152, 3), 0, 1023, 1152, 4095, *range(meta, len(image), max((len(image) - meta) // 200, 1)), len(image) - 1}
    for at in sorted(places):
        os.pwrite(file, bytes([image[at] ^ 0x40]), at)
        problems = found(file, tar)
        assert [kind for kind, _, _ in problems] == ["metadata"], at
        os.pwrite(file, image[at : at + 1], at)
    assert found(file, tar) == []


def test_the_field_and_the_file_are_named(file: int) -> None:
    image = register(file, BIG)
    for at, field in ((1024, "magic"), (1028, "checksum"), (1036, "blkszbits"), (1072, "uuid"), (1088, "volume_name"), (1104, "feature_incompat")):
        os.pwrite(file, bytes([image[at] ^ 1]), at)
        assert found(file, BIG)[0][2].endswith(f": {field}")
        os.pwrite(file, image[at : at + 1], at)
    read = erofsreader.Image(image)
    for path in ("d/1234", "link", "d"):
        at = read.meta + read.tree[path].nid * 32 + 10
        os.pwrite(file, bytes([image[at] ^ 1]), at)
        assert [(kind, name) for kind, name, _ in found(file, BIG)] == [("metadata", path)]
        os.pwrite(file, image[at : at + 1], at)
    target = image.index(b"t" * 200 + b"/" + b"t" * 200, read.meta)
    os.pwrite(file, b"u", target)
    assert [name for _, name, _ in found(file, BIG)] == ["link"]


def test_another_length_and_another_tar_are_found(file: int) -> None:
    image = register(file, BIG)
    for size in (len(image) + 512, len(image) - 512):
        os.ftruncate(file, size)
        assert {kind for kind, _, _ in found(file, BIG)} == {"metadata"}
        put(file, image)
    os.pwrite(file, b"?", 4096 + 700)
    assert [kind for kind, _, _ in found(file, BIG)] == ["content"]
    put(file, image[: 4096 + 5000])
    assert [kind for kind, _, _ in found(file, BIG)] == ["content"]
    put(file, image[:900])
    assert [kind for kind, _, _ in found(file, BIG)] == ["content"]


def test_what_pads_the_tar_is_zero(file: int) -> None:
    tar = bytes(1024) + b"trailing"
    image = register(file, tar)
    assert found(file, tar) == []
    os.pwrite(file, b"x", 4096 + len(tar) + 3)
    assert [kind for kind, _, _ in found(file, tar)] == ["metadata"]
    _erofs.rebuild(file, len(tar), hashlib.sha256(tar).digest())
    assert os.pread(file, 2 * len(image), 0) == image


def test_metadata_is_not_looked_at_unless_asked(file: int) -> None:
    image = register(file, BIG)
    os.pwrite(file, b"?", len(image) - 1)
    assert _erofs.compare(file, len(BIG), hashlib.sha256(BIG).digest(), metadata=False) == []


def test_implied_directories_follow_from_what_is_below(file: int, tmp_path: Path) -> None:
    tar = tar_of((entry("a/b/f"), b"x"))
    below = tmp_path / "below"
    (below / "a" / "b").mkdir(parents=True)
    (below / "a" / "b").chmod(0o711)
    fd = os.open(below, os.O_RDONLY | os.O_DIRECTORY)
    try:
        image = register(file, tar, [fd])
        tree = erofsreader.Image(image).tree
        assert tree["a/b"].mode == 0o40711 and tree["a"].mode == 0o40755
        assert found(file, tar, [fd]) == [] and [kind for kind, _, _ in found(file, tar)] == ["metadata"]
        _erofs.rebuild(file, len(tar), hashlib.sha256(tar).digest())
        assert erofsreader.Image(os.pread(file, 1 << 20, 0)).tree["a/b"].mode == 0o40755
    finally:
        os.close(fd)


def test_a_tar_that_is_in_the_file_already_is_not_written(file: int) -> None:
    image = register(file, BIG)
    os.ftruncate(file, 0)
    os.pwrite(file, BIG, 4096)
    apply = _apply.erofs(file, present=True)
    try:
        end, at = False, 4096
        while not end:
            end, at = apply.pump(file, at)
        apply.finish()
    finally:
        apply.close()
    assert os.pread(file, 2 * len(image), 0) == image


def test_tables_of_sparse_files_are_not_many_times_the_tar(file: int) -> None:
    """One of a mebibyte each; the holes of those that get none take no room."""
    pieces = [(0, b"a" * 512), ((1 << 26) - 512, b"b" * 512)]
    tar = tar_of(*[sparse_entry(f"f{i}", pieces, 1 << 26) for i in range(100)])
    apply = _apply.erofs(file)
    try:
        apply.push(tar)
        apply.finish()
    finally:
        apply.close()
    assert os.fstat(file).st_blocks * 512 < 20_000_000 and os.fstat(file).st_size > 84 << 26
    assert found(file, tar) == []
    with contextlib.closing(_erofs.Image(file)) as image:
        assert image.verify() == []
        for name in ("f0", "f99"):
            assert image.read(name, 2, 511) == b"a\0" and image.read(name, 513, (1 << 26) - 513) == b"\0" + b"b" * 512


def test_progress_is_told_and_may_raise(file: int) -> None:
    told: list[int] = []
    tar = tar_of((entry("f"), recipes.noise(3_000_000)))
    put(file, written(tar))
    _erofs.compare(file, len(tar), hashlib.sha256(tar).digest(), (), told.append)
    assert sum(told) >= len(tar)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _erofs.compare(file, len(tar), hashlib.sha256(tar).digest(), (), stop)
