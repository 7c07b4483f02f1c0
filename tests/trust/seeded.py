"""Layers drawn from a seed: the seed tells every byte, in any process.

Every directory and file has an entry, with its time, so that the whole unpacked tree is known too.
"""

import hashlib
import random
from functools import lru_cache
from typing import NamedTuple

import tarkit

DIRS = ["a", "b", "a/deep", "c"]
SIZES = (0, 1, 300, 4096, 5000, 20_000, 70_000)


class Seeded(NamedTuple):
    tar: bytes
    diff_id: str


@lru_cache(maxsize=256)
def layer(seed: int) -> Seeded:
    """The layer of this seed: some 5 to 40 files, up to about 1.5 MB. Seeds below 1000 give small ones, of a dozen KiB."""
    draw, big = random.Random(seed), seed >= 1000
    when = draw.randrange(1_000_000_000, 1_700_000_000)
    entries = [tarkit.dir(f"{name}/", mtime=when + i, mode=0o755) for i, name in enumerate(DIRS)]
    names: list[str] = []
    for _ in range(draw.randrange(5, 40 if big else 9)):
        name = f"{draw.choice(DIRS)}/f{draw.randrange(60)}"
        if name in names:
            continue
        size = draw.choice(SIZES if big else SIZES[:4])
        if big and draw.random() < 0.06:
            size = draw.randrange(200_000, 600_000)
        data = draw.randbytes(size)
        if draw.random() < 0.15:
            data += bytes(9000) + data[:100]    # zeros in the middle: a hole on disk
        fields = {"mode": draw.choice((0o644, 0o600, 0o755, 0o4755)), "uid": draw.choice((0, 0, 1000)),
                  "mtime": when - draw.randrange(100_000)}
        if draw.random() < 0.1:
            entries.append(tarkit.pax({"SCHILY.xattr.user.note": f"of {name}"}))
        entries.append(tarkit.file(name, data, **fields))
        names.append(name)
    entries.append(tarkit.symlink("c/link", names[0], mtime=when))
    entries.append(tarkit.hardlink("c/hard", names[-1], mtime=when))
    for n in draw.sample(range(60, 90), draw.randrange(4)):
        entries.append(tarkit.whiteout(f"b/f{n}", mtime=when))
    if draw.random() < 0.3:
        entries.append(tarkit.opaque("a/deep", mtime=when))
    tar = b"".join(entries) + tarkit.end()
    return Seeded(tar, "sha256:" + hashlib.sha256(tar).hexdigest())


def chain_id(parent: str, diff_id: str) -> str:
    """The ChainID of this layer on that parent ("": none)."""
    return tarkit.chain_id(parent, diff_id) if parent else diff_id


def chain(*seeds: int) -> str:
    """The ChainID of these layers, each on the one before."""
    below = ""
    for seed in seeds:
        below = chain_id(below, layer(seed).diff_id)
    return below
