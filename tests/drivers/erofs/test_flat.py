"""drivers/erofs/flat.py: many layers as one mount, of an index that may be deleted."""

import os
import statistics
import time
from pathlib import Path

import pytest
from home import loops

from layerstore.drivers.erofs.draft import refuse_mounted
from layerstore.drivers.erofs.options import Options
from layerstore.errors import ActiveMountError


@pytest.fixture
def flat(open_home):
    """A store that mounts four layers and more as one."""
    return open_home(options=Options(flatten=4))


def shown(merged):
    """What a mount shows: each name and its content."""
    return {name: (Path(merged) / name).read_text() for name in sorted(os.listdir(merged))}


def test_a_stack_of_as_many_layers_is_one_mount_and_a_smaller_one_is_not(flat, open_home, place):
    plain = open_home()
    stack = flat.layers(5)
    box, few = flat.box(stack[0]), flat.box(stack[2])
    merged = flat.mounting.get(box)
    found = shown(merged)
    assert found == {**{f"of{at}": str(at) for at in range(5)}, "top": "4"}
    assert flat.mounts() == {f"{stack[0]}/flat", f"{box}/merged"}
    (Path(merged) / "of0").write_text("changed")
    flat.mounting.get(few)
    assert flat.mounts() == {f"{stack[0]}/flat", f"{box}/merged", f"{few}/merged", *(f"{id}/fs" for id in stack[2:])}
    flat.mounting.put(box)
    assert flat.mounts() == {f"{few}/merged", *(f"{id}/fs" for id in stack[2:])}
    flat.mounting.put(few)
    assert flat.mounts() == set() and loops(place) == []
    assert sorted(os.listdir(flat.path / stack[0])) == ["committed", "fs", "fsmeta.erofs", "layer.erofs", "length", "link", "lower", "work"]
    merged = plain.mounting.get(box)                       # a store without the option knows the index not
    assert shown(merged) == {**found, "of0": "changed"} and len(plain.mounts()) == 6
    plain.mounting.put(box)
    assert plain.mounts() == set()


def test_boxes_and_stores_share_the_mount(flat, open_home):
    other = open_home(options=Options(flatten=2))
    stack = flat.layers(4)
    one, two = flat.box(stack[0]), flat.box(stack[0])
    flat.mounting.get(one)
    device = os.stat(flat.path / stack[0] / "flat").st_dev
    other.mounting.get(two)
    assert os.stat(flat.path / stack[0] / "flat").st_dev == device
    flat.mounting.put(one)
    assert flat.mounts() == {f"{stack[0]}/flat", f"{two}/merged"} and flat.mounted.orphans() == []
    other.mounting.put(two)
    assert flat.mounts() == set()


def test_directories_above_the_layers_stay_directories(flat):
    stack = flat.layers(5)
    frozen = flat.box(stack[0])
    (flat.files(frozen) / "of1").write_text("frozen")
    flat.at.settle([frozen])
    box = flat.box(frozen)
    merged = flat.mounting.get(box)
    assert shown(merged)["of1"] == "frozen" and flat.mounts() == {f"{stack[0]}/flat", f"{box}/merged"}
    flat.mounting.put(box)
    with flat.mounting.mounted(stack[0], read_only=True) as fd:
        assert "of0" in os.listdir(fd)                     # an overlay of nothing but layers has two of them at least
        assert flat.mounts() == {f"{stack[0]}/fs", f"{stack[1]}/flat", f"{stack[0]}/merged"}
    assert flat.mounts() == set()


def test_the_index_is_used_again_and_may_be_deleted_damaged_or_old(flat):
    stack = flat.layers(4)
    box, index = flat.box(stack[0]), flat.path / stack[0] / "fsmeta.erofs"
    found = shown(flat.mounting.get(box))
    flat.mounting.put(box)
    whole, inode = index.read_bytes(), index.stat().st_ino

    def mounted():
        assert shown(flat.mounting.get(box)) == found
        flat.mounting.put(box)
        return index.stat().st_ino

    assert index.stat().st_mode & 0o777 == 0o600
    assert mounted() == inode
    index.unlink()
    assert mounted() and index.read_bytes() == whole
    for damaged in b"", bytes(len(whole)), whole[:-512], b"none" * 999:
        index.write_bytes(damaged)
        assert mounted() and index.read_bytes() == whole
    index.unlink()
    index.symlink_to("layer.erofs")
    assert mounted() and not index.is_symlink() and index.read_bytes() == whole
    inode = index.stat().st_ino
    os.utime(flat.path / stack[2] / "layer.erofs")         # a layer that was mended is a newer file
    assert mounted() and index.read_bytes() == whole


def test_layers_that_cannot_be_one_are_mounted_apart(flat, caplog):
    stack = flat.layers(4)
    box, index = flat.box(stack[0]), flat.path / stack[0] / "fsmeta.erofs"
    index.mkdir()                                          # what cannot be replaced
    (index / "full").mkdir()
    merged = flat.mounting.get(box)
    assert shown(merged)["of0"] == "0" and flat.mounts() == {f"{box}/merged", *(f"{id}/fs" for id in stack)}
    assert "4 layers are mounted apart" in caplog.text
    flat.mounting.put(box)
    assert flat.mounts() == set() and not (flat.path / stack[0] / "flat").exists()


def test_what_was_left_alone_is_an_orphan_and_ends(flat, place):
    stack = flat.layers(4)
    with flat.mounted.standing(stack):
        pass
    assert flat.mounted.orphans() == [f"{stack[0]}/flat"]
    flat.mounted.cleanup()
    assert flat.mounts() == set() and loops(place) == []
    with flat.mounted.standing(stack):
        pass
    flat.ground.remove(stack[0])
    assert flat.mounts() == set() and loops(place) == []
    with pytest.raises(ZeroDivisionError), flat.mounted.standing(stack[1:]):
        raise ZeroDivisionError
    assert flat.mounts() == set()


def test_a_layer_below_is_mounted_with_the_one_above(flat):
    stack, other = flat.layers(4), flat.layers(1)
    box = flat.box(stack[0])
    assert not any(map(flat.mounted.is_mounted, stack))
    flat.mounting.get(box)
    assert all(map(flat.mounted.is_mounted, stack)) and not flat.mounted.is_mounted(other[0])
    for id in stack:
        with pytest.raises(ActiveMountError):
            refuse_mounted(flat.ground, id)
    flat.mounting.put(box)
    assert not any(map(flat.mounted.is_mounted, stack))


def test_look_ups_no_longer_grow_with_depth(open_home):
    """In 125 layers a name that is in none, and one of the lowest, are found as quickly as in one."""
    plain, flat = open_home(), open_home(options=Options(flatten=20))
    stack = plain.layers(125)
    box = plain.box(stack[0])

    def looked_up(home):
        merged = home.mounting.get(box)
        times = []
        for at in range(7):
            begin = time.perf_counter()
            for name in range(100):
                assert not os.path.lexists(f"{merged}/none-{at}-{name}")
            times.append(time.perf_counter() - begin)
        home.mounting.put(box)
        return statistics.median(times) * 1e4

    apart, together = looked_up(plain), looked_up(flat)
    print(f"a look-up of what is not there: {apart:.1f} us in 125 mounts, {together:.1f} us in one")
    assert together < apart / 3
