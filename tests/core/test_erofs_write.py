"""The writer of images: what an independent reader finds in them, byte for byte the same however the tar came."""

import errno
import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import door
import erofsreader
import pytest
import recipes
import sinks


def written(tar: bytes, *, step: int | None = None, workers: int = 0) -> bytes:
    """The image of a tar, pushed whole or step bytes at a time."""
    ffi = door.ffi
    with sinks.memory() as fd:
        handle, options = ffi.new("lay_apply **"), ffi.new("lay_apply_options *", [workers, 0, ffi.NULL, 0])
        door.call("lay_apply_erofs", handle, fd, ffi.NULL, 0, options)
        try:
            for window, n in sinks.windows(tar, step):
                door.call("lay_apply_push", handle[0], window, n)
            got = sinks.finish(handle[0])
        finally:
            door.lib.lay_apply_free(handle[0])
        assert got.diff_id == hashlib.sha256(tar).digest() and got.tar_size == len(tar)
        return sinks.content(fd)


def image_of(tar: bytes, **how: Any) -> erofsreader.Image:
    return erofsreader.Image(written(tar, **how))


def tar_of(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            info, content = member if isinstance(member, tuple) else (member, b"")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


# Its one piece lies at an odd place: it would have to be expanded.
TOO_LARGE = "good_sparse_of_eight_tebibytes"


@pytest.mark.parametrize("name", [name for name in recipes.GOOD if name != TOO_LARGE])
def test_an_image_keeps_its_tar_and_is_the_same_at_any_cut(name: str) -> None:
    tar = recipes.GOOD[name]()
    whole = written(tar)
    image = erofsreader.Image(whole)
    assert image.tar == tar and image.sb["uuid"] == hashlib.sha256(tar).digest()[:16]
    assert written(tar, workers=2) == whole
    if len(tar) < 300_000:
        assert written(tar, step=777) == whole


def test_an_empty_tar_is_an_image_of_the_root() -> None:
    image = image_of(bytes(1024))
    assert list(image.tree) == [""] and image.tree[""].mode == 0o40755 and image.tree[""].mtime_ns == 0
    assert len(image.data) == 5632


def test_contents_and_fields() -> None:
    members = [
        entry("d", tarfile.DIRTYPE, mode=0o1777, uid=5, gid=70_000, mtime=5),
        (entry("d/f", mode=0o4755, mtime=1.25, pax_headers={"SCHILY.xattr.user.k": "v"}), b"content" * 1000),
        entry("d/l", tarfile.SYMTYPE, linkname="../x", mtime=3),
        entry("d/h", tarfile.LNKTYPE, linkname="d/f", mode=0o4755, mtime=1.25),
        entry("n", tarfile.CHRTYPE, devmajor=300, devminor=70_000),
        entry("p", tarfile.FIFOTYPE),
        entry("d/.wh.gone"),
    ]
    image = image_of(tar_of(*members))
    tree = image.tree
    assert (tree["d"].mode, tree["d"].uid, tree["d"].gid, tree["d"].mtime_ns) == (0o41777, 5, 70_000, 5_000_000_000)
    assert image.bytes_of("d/f") == b"content" * 1000 and tree["d/f"].mtime_ns == 1_250_000_000
    assert tree["d/f"].nid == tree["d/h"].nid and tree["d/f"].nlink == 2
    assert tree["d/l"].target == "../x" and tree["d/l"].mode == 0o120777
    assert tree["n"].rdev == (300, 70_000) and tree["p"].mode & 0o170000 == 0o010000
    assert tree["d/gone"].is_whiteout


@pytest.mark.parametrize("xattr", [0, 1, 8, 17, 29])
def test_links_of_every_length_at_every_slot(xattr: int) -> None:
    """With attributes of odd lengths, so that the text begins anywhere in its block."""
    headers = {"SCHILY.xattr.trusted.k": "x" * xattr} if xattr else {}
    lengths = [*range(1, 600), 1023, 1024, 4095]
    links = [entry(f"{n:04}", tarfile.SYMTYPE, linkname="/".join(["y" * 99] * 50)[:n].ljust(n, "z"), pax_headers=headers) for n in lengths]
    tree = image_of(tar_of(*links)).tree
    assert [tree[info.name].target for info in links] == [info.linkname for info in links]


def test_many_names_of_all_kinds_in_one_directory() -> None:
    names = ["!", "-a", "+", ".a", "..b", "...", ".-x", "\x01c", "n" * 255, "\udcff\udcfe", *(f"{i:05}-{'z' * (i % 90)}" for i in range(3000))]
    image = image_of(tar_of(*[(entry(f"d/{name}"), name.encode("utf-8", "surrogateescape")) for name in names]))
    assert {name.removeprefix("d/") for name in image.tree if name.startswith("d/")} == set(names)
    assert all(image.bytes_of(f"d/{name}") == name.encode("utf-8", "surrogateescape") for name in names)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 4095, 4096, 4097])
def test_sizes(size: int) -> None:
    content = recipes.noise(size) if size else b""
    image = image_of(tar_of((entry("f"), content), (entry("g"), b"behind")))
    assert image.bytes_of("f") == content and image.bytes_of("g") == b"behind"


def sparse_entry(name: str, pieces: list[tuple[int, bytes]], size: int) -> tuple[tarfile.TarInfo, bytes]:
    """A PAX 0.1 sparse file."""
    numbers = ",".join(f"{offset},{len(content)}" for offset, content in pieces)
    version = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": name, "GNU.sparse.size": str(size)}
    headers = version | {"GNU.sparse.numblocks": str(len(pieces)), "GNU.sparse.map": numbers}
    return entry(f"GNUSparseFile.0/{name}", pax_headers=headers), b"".join(content for _, content in pieces)


def sparse(pieces: list[tuple[int, bytes]], size: int) -> bytes:
    """A tar of a sparse file f, and one behind it."""
    return tar_of(sparse_entry("f", pieces, size), (entry("g"), b"behind"))


@pytest.mark.parametrize(
    ("pieces", "size", "own"),
    [
        ([(0, b"a" * 512), (1024, b"b" * 1024)], 4096, False),
        ([(512, b"a" * 512), (1536, b"b" * 100)], 1636, False),
        ([(4096, b"a" * 8192)], 1 << 28, False),
        ([], 5, False),
        ([], 1 << 50, False),
        ([(512, b"a" * 100)], 1024, True),
        ([(100, b"a" * 100)], 100_000, True),
        ([(0, b"a" * 300), (1024, b"b" * 512)], 10_000_000, True),
    ],
)
def test_sparse_files(pieces: list[tuple[int, bytes]], size: int, own: bool) -> None:
    """With whole blocks they are chunks of the tar; else they are expanded, and their holes take no room."""
    image = image_of(sparse(pieces, size))
    node = image.tree["f"]
    assert node.size == size and image.bytes_of("g") == b"behind"
    if size < 1 << 30:
        expanded = bytearray(size)
        for offset, content in pieces:
            expanded[offset : offset + len(content)] = content
        assert image.bytes_of("f") == bytes(expanded)
    assert (image.sb["incompat"] == 4) == (not own)


@pytest.mark.parametrize(
    "pieces", [[(700_000_001, b"x")], [(0, b"a" * 512), ((1 << 30) - 512, b"b" * 512)]], ids=["odd", "a table of more than a mebibyte"]
)
def test_holes_of_an_expanded_file_take_no_room(tmp_path: Path, pieces: list[tuple[int, bytes]]) -> None:
    tar = sparse(pieces, 1 << 30)
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        handle, options = door.ffi.new("lay_apply **"), door.ffi.new("lay_apply_options *", [0, 0, door.ffi.NULL, 0])
        door.call("lay_apply_erofs", handle, fd, door.ffi.NULL, 0, options)
        door.call("lay_apply_push", handle[0], tar, len(tar))
        sinks.finish(handle[0])
        door.lib.lay_apply_free(handle[0])
        assert os.fstat(fd).st_blocks * 512 < 100_000 and (1 << 30) < os.fstat(fd).st_size < (1 << 30) + 20_000
        assert os.pread(fd, len(pieces[-1][1]), os.fstat(fd).st_size - (1 << 30) + pieces[-1][0]) == pieces[-1][1]
    finally:
        os.close(fd)


def test_an_image_of_more_than_two_tebibytes_is_refused() -> None:
    for tar, name in ((sparse([(1, b"x")], 1 << 42), b"f"), (recipes.GOOD[TOO_LARGE](), b"s")):
        with door.fails("LAY_E_OS") as errors:
            written(tar)
        assert errors[0].path == name and errors[0].sys_errno == errno.EFBIG
