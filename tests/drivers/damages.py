"""What befalls the files of a stored layer of T1, by driver."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], object]


def patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def flip(path: Path, at: int) -> None:
    with path.open("rb") as file:
        file.seek(at)
        patch(path, at, bytes([file.read(1)[0] ^ 1]))


def root_inode(image: Path) -> int:
    """Where the root's inode is in an image."""
    header = image.read_bytes()[1024:1152]
    return int.from_bytes(header[40:44], "little") * 512 + int.from_bytes(header[14:16], "little") * 32


# Each gets the directory of the layer's files.
OF_FILES: dict[str, Damage] = {
    "content": lambda top: (top / "a/f").write_bytes(b"HELLO"),
    "missing": lambda top: (top / "a/f").unlink(),
    "mode": lambda top: (top / "a/f").chmod(0o4755),
    "added": lambda top: (top / "a/more").touch(),
    "a directory gone": lambda top: shutil.rmtree(top / "a"),
    "all gone": lambda top: shutil.rmtree(top.parent),
}

# Each gets the layer's file.
OF_AN_IMAGE: dict[str, Damage] = {
    "content": lambda image: patch(image, image.read_bytes().index(b"hello"), b"HELLO"),
    "missing": lambda image: image.unlink(),
    "mode": lambda image: flip(image, root_inode(image) + 4),
    "added": lambda image: os.truncate(image, image.stat().st_size + 512),
    "a directory gone": lambda image: os.truncate(image, 4096),
    "all gone": lambda image: shutil.rmtree(image.parent),
}

KINDS = list(OF_FILES)


def damage(kind: str, paths: dict[str, str]) -> None:
    """paths   what the layer's metadata() says"""
    if "Layer" in paths:
        OF_AN_IMAGE[kind](Path(paths["Layer"]))
    else:
        OF_FILES[kind](Path(paths["UpperDir"]))
