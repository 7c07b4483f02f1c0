"""Boxes on file systems of their own: the four that a root may lie on."""

import sys
from pathlib import Path

import disk
import pytest
from machine import needs

sys.path.insert(0, str(Path(__file__).resolve().parent))

KINDS = ("tmpfs", "ext4", "xfs", "btrfs")


@pytest.fixture(params=KINDS)
def ground(request, room):
    """A fresh file system of each kind."""
    if request.param != "tmpfs":
        needs(f"mkfs.{request.param}")
    with disk.sized_file_system(room, request.param, size=512 << 20) as place:
        yield place
