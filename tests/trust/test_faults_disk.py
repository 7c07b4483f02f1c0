"""A disk that is full, at every point of it: of bytes, of inodes, of quota; on tmpfs, ext4, XFS, and btrfs where it can be made.

The disk is filled until so much is left, the call fails with ENOSPC (EDQUOT for a quota) or fits; what lies below the
root is what lay there; and with the room free again the same call succeeds.
"""

import contextlib
import errno
import os
import re
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import disk
import faultkit
import pytest
import recipes
import tarkit
from faultkit import Ground, Held, state
from machine import needs
from soak import budget
from tarkit import dir, end, file

from layerstore import CreateRWLayerOpts, LeftOutWarning

KIB = 1 << 10
# As ext4 and XFS keep for themselves, and what the smallest steps are.
LEFT = budget([0, 4, 8, 16, 40, 64, 100, 200, 300, 420, 600, 900], [*range(0, 120, 4), *range(120, 1300, 20)])
INODES = budget([0, 1, 2, 3, 5, 8, 12, 17, 23, 30, 40, 60], list(range(70)))

# Some 900 KiB and 60 inodes: payloads, directories, links, xattrs, and framing that no deflate makes small.
TAR = (
    b"".join(dir(f"d{i}/") + file(f"d{i}/f", recipes.noise(13_000 * (i % 5), i + 1)) + tarkit.symlink(f"d{i}/s", "f") for i in range(14))
    + b"".join(tarkit.whiteout(f"w{i}", recipes.noise(9_000, i + 50)) for i in range(20))
    + tarkit.xattrs({"user.large": b"x" * 200})
    + file("last", recipes.noise(150_000, 99))
    + end()
)


def fill(place: Path, left: int) -> None:
    """A file in place that leaves so many bytes, as near as the file system can tell."""
    with open(place / "filler", "wb", buffering=0) as out:
        step = 1 << 20
        while step >= 512:
            free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
            if free <= left:
                break
            try:
                os.posix_fallocate(out.fileno(), out.seek(0, 2), min(step, max(free - left, 512)))
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                step //= 2


def fill_inodes(place: Path, left: int) -> None:
    (place / "fillers").mkdir()
    with contextlib.suppress(OSError):
        while True:
            for _ in range(max(os.statvfs(place).f_ffree - left, 1)):
                os.mknod(place / "fillers" / str(len(os.listdir(place / "fillers"))) )
            if os.statvfs(place).f_ffree <= left:
                break
    for name in os.listdir(place / "fillers")[: max(0, left - os.statvfs(place).f_ffree)]:
        (place / "fillers" / name).unlink()


def emptied(place: Path, _left: int) -> None:
    (place / "filler").unlink(missing_ok=True)
    if (place / "fillers").exists():
        disk.remove_tree(place / "fillers")


def register(g: Ground) -> None:
    with g.store.register(TAR, g.above.chain_id) as layer:
        assert layer.diff_id == tarkit.diff_id(TAR)
        assert faultkit.tar_of(layer.tar_stream) == layer.diff_id.encoded


def commit(g: Ground) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftOutWarning)      # the box has an attribute that docker's tars have not
        layer = g.full.commit()
    with layer:
        assert faultkit.tar_of(layer.tar_stream) == layer.diff_id.encoded


def create(g: Ground) -> None:
    def init(path: str) -> None:
        for i in range(6):
            Path(path, f"init{i}").write_bytes(recipes.noise(20_000, i + 1))

    g.store.create_rw_layer("new", g.above.chain_id, CreateRWLayerOpts(init_func=init)).release()


CALLS: dict[str, Callable[[Ground], object]] = {
    "register": register, "apply_diff": lambda g: g.bare.apply_diff(TAR), "commit": commit, "create_rw_layer": create,
}  # fmt: skip
Filling = Callable[[Path, int], None]       # leaves so much room in a place
SYSTEMS = ["tmpfs", "ext4", "xfs"]
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def ground(place: Path) -> Iterator[Ground]:
    g = Ground(place / "docker", "full")
    g.full = g.store.create_rw_layer("full", g.above.chain_id)
    g.full.apply_diff(TAR)
    register(g), create(g), g.full.size()        # whatever is made once is there
    try:
        yield g
    finally:
        g.store.close()


def tried(g: Ground, call: str, what: str) -> bool:
    """The call on a full disk: whether it failed. Nothing else changed."""
    before, held = state(g.root), Held.now(g.root)
    try:
        CALLS[call](g)
        failed = False
    except OSError as error:
        assert error.errno in FULL, f"{what}: {error!r}"
        failed = True
    if call != "apply_diff":
        assert disk.changed(before, state(g.root)) == [], what
    assert held.differences() == [], what
    return failed


def walked(place: Path, g: Ground, call: str, steps: list[int], fill: Filling, emptied: Filling = emptied) -> int:
    """The call with less and more left, and each time with room again; how often it failed."""
    failed, layers = 0, g.contents()
    for left in steps:
        fill(place, left)
        failed += tried(g, call, f"{left} left")
        emptied(place, 100 << 20)
        assert g.verify() == [], f"{left} left"
        CALLS[call](g)
        if call == "apply_diff":
            g.bare.release()
            g.bare = g.store.create_rw_layer("bare", g.above.chain_id)
    assert g.contents() == layers
    return failed


@pytest.mark.soak(60, 900)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_full_disk_is_said_leaves_nothing_and_with_room_it_goes_on(room: Path, system: str, call: str) -> None:
    size = {"tmpfs": 12 << 20, "ext4": 16 << 20, "xfs": 320 << 20}[system]
    steps = LEFT if system != "xfs" else [n * 4 for n in LEFT[:: budget(3, 1)]]
    with disk.sized_file_system(room, system, size=size) as place, ground(place) as g:
        assert walked(place, g, call, [n * KIB for n in steps], fill) >= 2


@pytest.mark.soak(60, 900)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("system", ["tmpfs", "ext4"])
def test_a_disk_without_inodes_is_said_leaves_nothing_and_with_room_it_goes_on(room: Path, system: str, call: str) -> None:
    with disk.sized_file_system(room, system, size=24 << 20, inodes=400) as place, ground(place) as g:
        assert walked(place, g, call, INODES, fill_inodes) >= 2


@pytest.fixture
def btrfs(room: Path) -> Iterator[tuple[Path, Callable[[Path, int], None]]]:
    """A subvolume with a limit of its own, and what sets the limit to so much more than it holds."""
    needs("mkfs.btrfs")
    image, top = room / "image", room / "btrfs"
    top.mkdir()
    with open(image, "wb") as out:
        out.truncate(256 << 20)

    def run(*command: Any) -> str:
        return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout

    run("mkfs.btrfs", "-q", "-f", image)
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(top)], capture_output=True, text=True)
    # Only where there is no btrfs at all: any other failure is one.
    if "\tbtrfs\n" not in Path("/proc/filesystems").read_text() and mounted.returncode != 0:
        pytest.skip(f"NOT TESTED: this kernel mounts no btrfs: {mounted.stderr.strip()}")
    assert mounted.returncode == 0, mounted.stderr
    try:
        run("btrfs", "quota", "enable", top)
        run("btrfs", "subvolume", "create", top / "limited")

        def limit(place: Path, left: int) -> None:
            shown = run("btrfs", "qgroup", "show", "--raw", "--sync", "-f", place).split()
            group = next(i for i, word in enumerate(shown) if re.fullmatch(r"0/\d+", word))
            # Asked for at the top: below a limit that is reached not even a limit can be set.
            run("btrfs", "qgroup", "limit", int(shown[group + 1]) + left, shown[group], top)

        yield top / "limited", limit
    finally:
        disk.unmount_below(top)
        run("umount", top)


@pytest.mark.soak(60, 900)
@pytest.mark.parametrize("call", CALLS)
def test_a_quota_that_is_used_up_is_said_leaves_nothing_and_with_room_it_goes_on(btrfs: Any, call: str) -> None:
    place, limit = btrfs
    with ground(place) as g:
        assert walked(place, g, call, [n * KIB for n in LEFT[:: budget(3, 1)]], limit, limit) >= 1
