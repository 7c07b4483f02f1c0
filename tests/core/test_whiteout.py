"""whiteout.h: what a name means, and what on disk is a mark."""

import os
import stat

import door
import pytest


@pytest.mark.parametrize(
    "name, kind",
    [
        (b"a", "PLAIN"), (b"", "PLAIN"), (b".wh", "PLAIN"), (b".whx", "PLAIN"), (b"wh.a", "PLAIN"),
        (b"a.wh.b", "PLAIN"), (b".WH.a", "PLAIN"), (b".wh.", "BAD"), (b".wh..", "BAD"), (b".wh...", "BAD"),
        (b".wh.a", "NAME"), (b".wh..a", "NAME"), (b".wh....", "NAME"), (b".wh.\xff", "NAME"), (b".wh..wh.a", "NAME"),
        (b".wh..wh.plnk", "NAME"), (b".wh..wh.aufs", "NAME"), (b".wh..wh..opq", "OPAQUE_DIR"),
        (b".wh..wh..opqx", "NAME"), (b".wh..wh..op", "NAME"), (b".wh..wh..opq/", "NAME")]
)
def test_names_and_their_meaning(name: bytes, kind: str) -> None:
    # no NUL behind the name: only its n bytes count
    memory = door.ffi.new("char[]", len(name) or 1)
    door.ffi.memmove(memory, name, len(name))
    assert door.lib.lay_whiteout_kind(memory, len(name)) == getattr(door.lib, f"LAY_WH_{kind}")


@pytest.mark.parametrize(
    "mode, device, is_mark",
    [
        (stat.S_IFCHR, 0, True), (stat.S_IFCHR | 0o777, 0, True), (stat.S_IFCHR, os.makedev(0, 1), False),
        (stat.S_IFCHR, os.makedev(1, 0), False), (stat.S_IFCHR, os.makedev(1, 3), False), (stat.S_IFBLK, 0, False),
        (stat.S_IFREG, 0, False), (stat.S_IFIFO, 0, False)]
)
def test_only_a_character_device_0_0_is_a_whiteout(mode: int, device: int, is_mark: bool) -> None:
    assert door.lib.lay_stat_is_whiteout(mode, device) == is_mark


def test_the_opaque_attribute_depends_on_the_mount() -> None:
    assert door.ffi.string(door.lib.lay_opaque_xattr(False)) == b"trusted.overlay.opaque"
    assert door.ffi.string(door.lib.lay_opaque_xattr(True)) == b"user.overlay.opaque"
