"""Images as the kernel and fsck.erofs see them: what is mounted is what unpacking the same tar makes."""

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import recipes
import sinks
from test_erofs_write import TOO_LARGE, entry, sparse, tar_of, written

from layerstore._core import _erofs
from layerstore.disk import erofs

ORIGIN = "trusted.overlay.origin"
ODD = {
    "links": lambda: tar_of(*[entry(f"{n:04}", b"2", linkname="y" * n, mtime=n) for n in range(1, 512)]),
    "chunks": lambda: sparse([(512, b"a" * 512), (1536, b"b" * 100)], 1636),
    "many chunks": lambda: sparse([(512, b"a" * 512), (1 << 25, b"b" * 512)], (1 << 25) + 512),
    "a hole": lambda: sparse([], 12_345_678),
    "deep": lambda: tar_of((entry("/".join(["d"] * 900)), b"x")),
    "odd pieces": lambda: sparse([(100, b"a" * 100), (70_000, b"b" * 100)], 100_000),
    "sizes": lambda: tar_of(*[(entry(str(n)), recipes.noise(n) if n else b"") for n in (0, 1, 511, 512, 513, 4095, 4096, 4097)]),
    "owners": lambda: tar_of(entry("a", b"5", uid=70_000, gid=1 << 31, mode=0o3770), (entry("a/f", mode=0o6711, mtime=2.5), b"x")),
    "xattrs": lambda: tar_of(*[(entry(f"f{n}", pax_headers={"SCHILY.xattr.user.k": "v" * n}), b"x") for n in (0, 1, 3000)]),
}
# A path that the kernel takes in steps only.
TOO_DEEP = "good_pax_path_over_4096"
TARS = {name: recipe for name, recipe in recipes.GOOD.items() if name not in (TOO_LARGE, TOO_DEEP)} | ODD


@contextmanager
def mounted(image: bytes, place: Path) -> Iterator[Path]:
    path, at = place / "image", place / "at"
    path.write_bytes(image)
    at.mkdir()
    fd = os.open(path, os.O_RDONLY)
    try:
        erofs.mount_file([erofs.File(fd, str(path))], str(at), "loop")
    finally:
        os.close(fd)
    try:
        yield at
    finally:
        erofs.unmount(str(at))


def seen(path: str) -> tuple[Any, ...]:
    st = os.lstat(path)
    kind, whiteout = stat.S_IFMT(st.st_mode), stat.S_ISCHR(st.st_mode) and st.st_rdev == 0
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}
    xattrs.pop(ORIGIN, None)
    content: Any = None
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
    elif kind == stat.S_IFLNK:
        content = os.readlink(path)
    is_directory = kind == stat.S_IFDIR
    return (kind, whiteout or (oct(st.st_mode), st.st_uid, st.st_gid), is_directory or (st.st_size, st.st_nlink), st.st_rdev, xattrs, content)


def tree(top: Path) -> dict[str, tuple[Any, ...]]:
    found = {}
    for place, directories, files in os.walk(top):
        for name in [*directories, *files]:
            path = os.path.join(place, name)
            found[os.path.relpath(path, top)] = seen(path)
    return found


def times(top: Path) -> dict[str, int]:
    return {os.path.relpath(os.path.join(place, name), top): os.lstat(os.path.join(place, name)).st_mtime_ns
            for place, directories, files in os.walk(top) for name in [*directories, *files]}  # fmt: skip


def unpacked(tar: bytes, root: Path) -> set[str]:
    """Unpack tar as overlay2 keeps a layer; the paths that have an entry."""
    scratch = root.parent / "scratch"
    root.mkdir()
    scratch.mkdir()
    with sinks.directory(root) as fd, sinks.directory(scratch) as spare, sinks.memory() as record:
        sinks.apply(tar, root=fd, record_fd=record, scratch=spare)
        return {os.fsdecode(line.name).strip("/").removeprefix("./") for line in sinks.lines(sinks.content(record)) if line.name is not None}


@pytest.mark.parametrize("name", TARS)
def test_a_mounted_image_is_the_unpacked_layer(room: Path, name: str) -> None:
    tar = TARS[name]()
    entries = unpacked(tar, room / "root")
    with mounted(written(tar), room) as at:
        assert tree(at) == tree(room / "root")
        ours, theirs = times(at), times(room / "root")
        assert [path for path in entries & theirs.keys() if ours[path] != theirs[path]] == []


def test_a_hundred_thousand_names_are_found(room: Path) -> None:
    names = [f"{i * 7919 % 100_000:05}" for i in range(100_000)]
    with mounted(written(tar_of(*[entry(f"d/{name}") for name in names])), room) as at:
        assert len(os.listdir(at / "d")) == len(names)
        assert all(os.path.exists(at / "d" / name) for name in names[::97])
        assert not os.path.exists(at / "d" / "x")


def test_a_superblock_with_another_bit_is_refused(room: Path) -> None:
    image = bytearray(written(TARS["sizes"]()))
    image[1024 + 40] ^= 1
    with pytest.raises(OSError) as caught, mounted(bytes(image), room):
        pass
    assert caught.value.errno in (errno.EBADMSG, errno.EUCLEAN)


def test_a_file_far_behind_four_gibibytes_is_read(room: Path) -> None:
    """All but the last bytes of a tar of 1.9 TiB are holes: only the headers are read."""
    size = 1_900 << 30
    head, tail = entry("big"), tar_of((entry("behind"), b"behind"))
    head.size = size + 7
    start = head.tobuf(tarfile.PAX_FORMAT)
    total = len(start) + size + 512 + len(tail)
    fd = os.open(room / "image", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(fd, start, 4096)
        os.pwrite(fd, b"the end", 4096 + len(start) + size)
        os.pwrite(fd, tail, 4096 + total - len(tail))
        _erofs.rebuild(fd, total, bytes(32))
        (room / "at").mkdir()
        erofs.mount_file([erofs.File(fd, "image")], str(room / "at"), "loop")
        try:
            assert os.stat(room / "at/big").st_size == size + 7
            with open(room / "at/big", "rb") as file:
                assert os.pread(file.fileno(), 100, size - 1) == b"\0the end"
            assert (room / "at/behind").read_bytes() == b"behind"
        finally:
            erofs.unmount(str(room / "at"))
    finally:
        os.close(fd)


@pytest.fixture(scope="session")
def fsck(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One that knows blocks of 512 bytes."""
    found = shutil.which("fsck.erofs")
    if found is None:
        pytest.skip("NOT TESTED: there is no fsck.erofs here")
    empty = tmp_path_factory.mktemp("fsck") / "empty"
    empty.write_bytes(written(bytes(1024)))
    done = subprocess.run([found, empty], capture_output=True, text=True, check=False)
    if "blksize 512 isn't supported" in done.stderr:
        pytest.skip("NOT TESTED: this fsck.erofs is older than blocks of 512 bytes")
    assert done.returncode == 0, done.stderr
    return found


@pytest.mark.parametrize("name", TARS)
def test_fsck_accepts_and_extracts(fsck: str, name: str, tmp_path: Path) -> None:
    tar = TARS[name]()
    image, out = tmp_path / "image", tmp_path / "out"
    image.write_bytes(written(tar))
    done = subprocess.run([fsck, image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([fsck, f"--extract={out}", "--no-preserve", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
