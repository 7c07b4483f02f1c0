"""The same jobs by what everybody has: Python's tarfile and hashlib, libarchive-c, GNU tar, bsdtar, openssl, os.walk.

    python -m benchmarks.baselines JOB TAR DIRECTORY      one of the JOBS below, in a process of its own

Functions do it here; commands are lists of words for a process of their own.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCK = 1 << 20


class _Hashing:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: Any) -> None:
        self.file, self.hash = file, hashlib.sha256()

    def read(self, n: int = -1) -> bytes:
        block = self.file.read(n)
        self.hash.update(block)
        return block


def tarfile_register(tar: Path, into: Path) -> str:
    """Unpack and hash in one pass; no record is made. The DiffID."""
    with open(tar, "rb", buffering=0) as file:
        stream = _Hashing(file)
        with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK, errors="surrogateescape") as archive:  # type: ignore[arg-type]
            archive.extractall(into, filter="fully_trusted")
        while stream.read(BLOCK):
            pass
    return "sha256:" + stream.hash.hexdigest()


def tarfile_pack(tree: Path, out: Any) -> None:
    """A tree as a fresh tar."""
    with tarfile.open(fileobj=out, mode="w|", bufsize=BLOCK, format=tarfile.PAX_FORMAT) as archive:
        archive.add(tree, arcname="")


def libarchive_unpack(tar: Path, into: Path) -> None:
    """Unpack; neither hash nor record. libarchive writes where the process stands."""
    import libarchive
    from libarchive import extract

    flags = extract.EXTRACT_OWNER | extract.EXTRACT_PERM | extract.EXTRACT_TIME | extract.EXTRACT_XATTR
    before = os.getcwd()
    os.chdir(into)
    try:
        libarchive.extract_file(str(tar), flags)
    finally:
        os.chdir(before)


def layerstore_register(tar: Path, root: Path) -> str:
    import layerstore

    with layerstore.Store(root, options={"durability": "none"}) as store:
        return store.register(tar).diff_id


def hashlib_sha256(tar: Path) -> str:
    with open(tar, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def walk(tree: Path) -> int:
    """Names in a tree and an lstat of each: the least that finds out what an upper directory holds."""
    count = 0
    for place, directories, files in os.walk(tree):
        for name in (*directories, *files):
            os.lstat(os.path.join(place, name))
            count += 1
    return count


JOBS: dict[str, Callable[[Path, Path], object]] = {
    "tarfile": tarfile_register, "libarchive": libarchive_unpack, "layerstore": layerstore_register,
}  # fmt: skip


# ---- commands ---------------------------------------------------------------------------------------
def job(name: str, tar: Path, into: Path) -> list[Any]:
    return [sys.executable, "-m", "benchmarks.baselines", name, tar, into]


def tar_extract(tar: Path, into: Path) -> list[Any]:
    return ["tar", "--numeric-owner", "-xpf", tar, "-C", into]


def bsdtar_extract(tar: Path, into: Path) -> list[Any]:
    return ["bsdtar", "--numeric-owner", "-xpf", tar, "-C", into]


def tar_create(tree: Path) -> list[Any]:
    return ["tar", "--numeric-owner", "-C", tree, "-cf", "-", "."]


def openssl_sha256(tar: Path) -> list[Any]:
    # Coreutils' sha256sum has no SHA-NI in Debian 12: six times slower, and no baseline.
    return ["openssl", "dgst", "-sha256", tar]


if __name__ == "__main__":
    JOBS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
