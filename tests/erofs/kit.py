"""Layers of the erofs driver, looked at from outside: by the disk, a reader in plain Python, and the kernel."""

import contextlib
import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import disk
import erofsreader

HEADER = 4096


def home_of(store: Any) -> Path:
    """Return the directory of the driver."""
    return Path(store.root) / "erofs"


def cache_of(layer: Any) -> Path:
    """Return the directory of a layer. It is found by the name of its file, which metadata() tells."""
    return Path(layer.metadata()["Layer"]).parent


def file_of(layer: Any) -> Path:
    return cache_of(layer) / "layer.erofs"


def read(layer: Any) -> erofsreader.Image:
    """Read a layer's image strictly."""
    assert os.path.getsize(file_of(layer)) < 256 << 20, "too large for the reader"
    return erofsreader.read(file_of(layer))


def loops_below(place: Path) -> list[str]:
    """Return the loop devices whose files lie below a directory, or have lain there."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            name = backing.read_text().strip()
            if name.startswith(f"{place}/"):
                found.append(f"{backing.parts[3]} {name}")
    return found


@contextlib.contextmanager
def seen_by_kernel(path: Path, at: Path) -> Iterator[Path]:
    """Mount an image for the length of the block, by a loop device."""
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", str(path), str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)
        at.rmdir()


def seen(path: Path, at: Path) -> dict[str, tuple]:
    """Return what the kernel shows of an image, and the digest of each file."""
    with seen_by_kernel(path, at):
        state = {os.fsdecode(name): facts for name, facts in disk.disk_state(at, times=True, content=False).items()}
        for name, facts in state.items():
            if facts[0] == "file":
                with open(at / name, "rb") as file:
                    state[name] = (*facts, hashlib.file_digest(file, "sha256").hexdigest())
        return state


def told(image: erofsreader.Image) -> dict[str, tuple]:
    """Return what the plain reader says, in the words of seen()."""
    state = {}
    for name, node in image.tree.items():
        kind = disk.kind_of(node.mode)
        facts: list[Any] = [kind, oct(stat.S_IMODE(node.mode)), node.uid, node.gid]
        if kind == "file":
            facts += [node.size, node.nlink]
        elif kind == "link":
            facts.append(os.fsencode(node.target))
        elif kind in ("char", "block"):
            facts.append(node.rdev)
        facts += [tuple(sorted(node.xattrs.items())), node.mtime_ns]
        if kind == "file":
            facts.append(hashlib.sha256(image.bytes_of(name)).hexdigest())
        state[name] = tuple(facts)
    return state


def fsck() -> tuple[str, str]:
    """Return a fsck.erofs that knows blocks of 512 bytes, and why there is none."""
    for directory in os.environ.get("PATH", "").split(":"):
        path = os.path.join(directory, "fsck.erofs")
        if not os.access(path, os.X_OK):
            continue
        said = subprocess.run([path, "-V"], capture_output=True, text=True, check=False)
        version = re.search(r"(\d+)\.(\d+)", said.stdout + said.stderr)
        if version and tuple(map(int, version.groups())) >= (1, 6):
            return path, ""
        return "", f"{path} is of version {version.group() if version else said.stdout!r}, and blocks of 512 bytes need 1.6"
    return "", "no fsck.erofs in PATH"


def kernel_log() -> list[str]:
    """Return the kernel's lines about erofs and block devices."""
    said = subprocess.run(["dmesg"], capture_output=True, text=True, check=True)
    return [line for line in said.stdout.splitlines() if "erofs" in line]
