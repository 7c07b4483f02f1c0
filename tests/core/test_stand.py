"""stand.c: what a tar leaves open is settled by what is below; and unpacking over that gives the tree that an overlay shows."""

import errno
import os
import random
import stat
from pathlib import Path

import door
import ocimodel
import pytest
import sinks
import tarkit
from tarkit import dir, end, file, opaque, whiteout

OPAQUE = "trusted.overlay.opaque"


def unpacked(tar: bytes, root: int, *, over: str = "") -> bytes:
    """Unpack tar; what it leaves open."""
    done = door.ffi.new("lay_applied *")
    with sinks.memory() as record, sinks.directory(f"/proc/self/fd/{root}/..") as scratch, sinks.applying(
        root=root, record_fd=record, scratch=scratch, over=over
    ) as a:
        for window, size in sinks.windows(tar, None):
            door.call("lay_apply_push", a, window, size)
        door.call("lay_apply_finish", a, done)
        return bytes(door.ffi.buffer(done.unsettled, done.unsettled_len)) if done.unsettled_len else b""


def stand_on(root: int, unsettled: bytes, lowers: list[int]) -> None:
    door.call("lay_stand_on", root, door.ffi.from_buffer(unsettled), len(unsettled), door.shown(lowers), len(lowers), 0)


def is_opaque(path: Path) -> bool:
    return OPAQUE in os.listxattr(path)


def overlaid(layers: list[Path], inside: str = "") -> dict[str, tuple]:
    """What overlayfs shows of directories, topmost first."""
    found: dict[str, tuple] = {}
    for name in sorted({name for layer in layers for name in os.listdir(layer)}):
        path, merged = f"{inside}{name}", []
        for layer in layers:
            try:
                st = os.lstat(layer / name)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(st.st_mode):
                if not merged and not (stat.S_ISCHR(st.st_mode) and st.st_rdev == 0):
                    found[path] = (stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode), st.st_uid)
                break
            if not merged:
                found[path] = (stat.S_IFDIR, stat.S_IMODE(st.st_mode), st.st_uid)
            merged.append(layer / name)
            if is_opaque(layer / name):
                break
        if merged:
            found.update(overlaid(merged, f"{path}/"))
    return found


KINDS = {"dir": stat.S_IFDIR, "file": stat.S_IFREG, "link": stat.S_IFLNK, "fifo": stat.S_IFIFO, "null": stat.S_IFCHR}


@pytest.mark.parametrize("seed", range(60))
def test_layers_that_stand_on_one_another_show_what_the_model_says(room: Path, seed: int) -> None:
    draw, known, tree, layers = random.Random(seed), [], {}, []
    flat = room / "flat"
    flat.mkdir()
    while len(layers) < 4:
        entries = ocimodel.drawn(draw, known)
        tar = b"".join(entry.tar() for entry in entries) + end()
        try:
            tree = ocimodel.applied(tree, entries)
        except ocimodel.RefusedError:
            continue
        layer = room / str(len(layers))
        layer.mkdir()
        with sinks.directory(layer) as root:
            unsettled = unpacked(tar, root)
            fds = [os.open(below, os.O_RDONLY) for below in layers]
            try:
                if unsettled:
                    stand_on(root, unsettled, fds)
            finally:
                for fd in fds:
                    os.close(fd)
        with sinks.directory(flat) as root:
            assert unpacked(tar, root, over="tree") == b""
        layers.insert(0, layer)
        wanted = {path: (KINDS[node.kind], 0o777 if node.kind == "link" else node.mode, node.uid) for path, node in tree.items()}
        assert overlaid(layers) == wanted
        assert overlaid([flat]) == wanted


def test_what_is_cut_or_forged_is_refused(room: Path) -> None:
    """It comes from this very core; another length or order is a mistake, and no way to read outside of it."""
    names = file("a/b/c/d") + file("a/x/y") + file("z/y")
    (room / "one").mkdir()
    (room / "two").mkdir()
    with sinks.directory(room / "one") as root, sinks.directory(room / "two") as below:
        unsettled = unpacked(names + end(), root)
        ends = set()
        for n in range(len(unsettled)):
            try:
                stand_on(root, unsettled[:n], [below])
                ends.add(n)                    # between two directories
            except door.CoreError as error:
                assert error.code == "LAY_E_STATE"
        assert len(ends) == 5                  # behind the head, and behind each of five directories but the last
        for at in range(0, len(unsettled), 4):
            forged = unsettled[:at] + b"\xff\xff\xff\xff" + unsettled[at + 4 :]
            try:
                stand_on(root, forged[: len(unsettled)], [below])
            except door.CoreError as error:
                assert error.code in ("LAY_E_STATE", "LAY_E_OS")


def test_a_mark_at_the_top_becomes_a_mark_of_each_name_below(room: Path) -> None:
    for name in ("top", "one", "two"):
        (room / name).mkdir()
    with sinks.directory(room / "two") as two, sinks.directory(room / "one") as one, sinks.directory(room / "top") as top:
        unpacked(dir("d/") + file("f") + file("only") + end(), two)
        unpacked(whiteout("f") + dir("e/") + end(), one)
        stand_on(top, unpacked(dir("d/") + file("only") + file("implied/x") + opaque("") + end(), top), [one, two])
    kinds = {name: os.lstat(room / "top" / name) for name in os.listdir(room / "top")}
    hidden = {name for name, st in kinds.items() if stat.S_ISCHR(st.st_mode) and st.st_rdev == 0}
    assert (hidden, set(kinds) - hidden) == ({"e", "f"}, {"d", "only", "implied"})
    assert [is_opaque(room / "top" / name) for name in ("d", "implied")] == [True, False]


def test_nothing_is_left_open_where_all_have_entries(room: Path) -> None:
    (room / "a").mkdir()
    with sinks.directory(room / "a") as root:
        assert unpacked(dir("d/") + file("d/x") + tarkit.symlink("l", "d") + file("l/y") + whiteout("d/z") + end(), root) == b""
        assert unpacked(file("n/x") + dir("n/") + end(), root) == b""
        with pytest.raises(door.CoreError) as caught:
            unpacked(whiteout("q") + file("q/x") + end(), root)
        assert caught.value.sys_errno == errno.ENOTDIR
