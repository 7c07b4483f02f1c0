"""drivers/erofs/mounted.py: a layer is mounted once, for every overlay on it, and no longer than one stands there."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import disk
import pytest
from home import Home, loops

from layerstore.disk import erofs, mounts
from layerstore.drivers.erofs.options import Options
from layerstore.errors import CorruptLayerError, InvalidMetadataError, NotSupportedError, StoreInUseError


def test_the_layers_of_a_box_are_mounted_with_it_and_gone_after_it(home, place):
    stack = home.layers(4)
    box = home.box(stack[0])
    assert home.mounts() == set()
    merged = Path(home.mounting.get(box))
    assert home.shown(stack) == stack and home.mounts() == {f"{id}/fs" for id in stack} | {f"{box}/merged"}
    assert (merged / "top").read_text() == "3" and (merged / "of0").read_text() == "0"
    (merged / "of0").write_text("changed")
    (merged / "of1").unlink()
    home.mounting.put(box)
    assert home.mounts() == set() and loops(place) == []
    assert (home.files(box) / "of0").read_text() == "changed"


def test_boxes_share_a_layers_mount_and_the_last_one_ends_it(open_home):
    one, other = open_home(), open_home()
    base = one.layer(hello="world")
    left, right = one.layer(base, side="left"), one.layer(base, side="right")
    a, b = one.box(left), one.box(right)
    one.mounting.get(a)
    device = os.stat(one.files(base)).st_dev
    other.mounting.get(b)
    assert os.stat(one.files(base)).st_dev == device
    one.mounting.put(a)
    assert one.shown([base, left, right]) == [base, right]
    assert (Path(other.at.path(b, "merged")) / "hello").read_text() == "world"
    other.mounting.put(b)
    assert one.mounts() == set()


def test_a_mount_that_is_there_is_used_whoever_made_it_and_ends_with_the_last_overlay(home):
    stack = home.layers(2)
    box = home.box(stack[0])
    path = home.at.image(stack[1])
    with open(path, "rb") as file:
        erofs.mount_file([erofs.File(file.fileno(), path)], str(home.files(stack[1])), home.mounted.mode())
    device = os.stat(home.files(stack[1])).st_dev
    home.mounting.get(box)
    assert os.stat(home.files(stack[1])).st_dev == device
    home.mounting.put(box)
    assert home.mounts() == set()


def test_what_was_mounted_for_an_overlay_that_failed_is_unmounted_again(home, place):
    stack = home.layers(3)
    box = home.box(stack[0])
    os.rmdir(home.at.path(box, "work"))
    with pytest.raises(FileNotFoundError):
        home.mounting.get(box)
    (home.path / box / "work").mkdir()
    other = home.box(stack[2])
    home.mounting.get(other)
    (home.path / stack[1] / "layer.erofs").write_bytes(b"no image")     # the second of three
    with pytest.raises(InvalidMetadataError):
        home.mounting.get(box)
    assert home.shown(stack) == [stack[2]]                              # the other box stands on it
    home.mounting.put(other)
    assert home.mounts() == set() and loops(place) == []


def test_the_block_that_raises_takes_back_what_it_mounted_and_nothing_else(home):
    stack = home.layers(3)
    box = home.box(stack[2])
    home.mounting.get(box)
    with pytest.raises(ZeroDivisionError), home.mounted.standing(stack):
        assert home.shown(stack) == stack
        raise ZeroDivisionError
    assert home.shown(stack) == [stack[2]]
    home.mounting.put(box)


def test_two_that_mount_at_once_wait_for_each_other(open_home):
    one, other = open_home(), open_home()
    stack = one.layers(2)
    entered = threading.Event()

    def enter():
        with other.mounted.standing(stack):
            entered.set()

    thread = threading.Thread(target=enter)
    with one.mounted.standing(stack):
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(10)
    thread.join()
    one.mounted.left(stack)
    assert one.mounts() == set()


def test_what_ends_waits_for_who_is_about_to_stand_on_it(open_home):
    one, other = open_home(), open_home()
    stack = one.layers(2)
    box = one.box(stack[0])
    done = threading.Event()

    def leave():
        other.mounted.left(stack)
        done.set()

    thread = threading.Thread(target=leave)
    with one.mounted.standing(stack):
        thread.start()
        assert not done.wait(0.2)
        assert one.mounted.orphans() == [] and one.shown(stack) == stack
        merged = one.at.path(box, "merged")
        os.mkdir(merged)
        mounts.mount_overlay(mounts.Overlay(str(one.path), one.at.lower_items(box), f"{box}/fs", f"{box}/work"), f"{box}/merged")
    assert done.wait(10)
    thread.join()
    assert one.shown(stack) == stack
    mounts.unmount(merged)
    one.mounted.left(stack)
    assert one.mounts() == set()


def test_a_layer_that_is_locked_for_too_long_is_told_and_nothing_stays(open_home):
    one, other = open_home(), open_home()
    stack = one.layers(2)
    box = one.box(stack[0])
    other.at._lock_timeout = 0.2
    with one.at.held(stack[1]), pytest.raises(StoreInUseError):
        other.mounting.get(box)
    assert one.mounts() == set()


def test_an_overlay_that_was_detached_keeps_what_it_shows_and_its_layers_mounts_go(home, place):
    stack = home.layers(2)
    box = home.box(stack[0])
    merged = home.mounting.get(box)
    with open(f"{merged}/of0") as file:
        home.mounting.put(box, lazy=True)
        assert home.mounts() == set()
        assert file.read() == "0"
    assert loops(place) == []


def test_overlays_of_another_mount_namespace_keep_what_they_show(home):
    stack = home.layers(2)
    box = home.box(stack[0])
    merged = home.mounting.get(box)
    script = f"cd {merged}; echo; read line; cat of0"
    inside = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    inside.stdout.readline()
    home.mounting.put(box, lazy=True)
    assert home.mounts() == set()
    assert inside.communicate("go\n")[0] == "0"


def test_each_mount_namespace_has_its_own_mounts_and_ends_them(home, place):
    stack = home.layers(2)
    box, other = home.box(stack[0]), home.box(stack[0])
    paths = ":".join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    arguments = ["unshare", "-m", "--propagation", "private", sys.executable, "-c", IN_ANOTHER_NAMESPACE, str(place), other, paths]
    inside = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert inside.stdout.readline() == "3 0\n"
    home.mounting.get(box)
    assert len(home.mounts()) == 3
    home.mounting.put(box)
    assert home.mounts() == set() and home.mounted.orphans() == []
    home.mounted.cleanup()
    assert inside.communicate("\n")[0] == "0\n"
    assert loops(place) == []


IN_ANOTHER_NAMESPACE = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3].split(":")
from home import Home
home = Home(Path(sys.argv[1]))
merged = home.mounting.get(sys.argv[2])
print(len(home.mounts()), (Path(merged) / "of0").read_text(), flush=True)
sys.stdin.readline()
assert (Path(merged) / "of0").read_text() == "0"
home.mounting.put(sys.argv[2])
print(len(home.mounts()))
home.close()
"""


def test_a_layer_that_is_removed_is_unmounted_first(home, place):
    stack = home.layers(1)
    with home.mounted.standing(stack):
        pass
    assert home.shown(stack) == stack and home.mounted.orphans() == [f"{stack[0]}/fs"]
    home.ground.remove(stack[0])
    assert home.mounts() == set() and not (home.path / stack[0]).exists() and loops(place) == []


def test_cleanup_ends_what_was_left_alone_and_nothing_else(home):
    stack, others = home.layers(2), home.layers(2)
    box = home.box(stack[0])
    home.mounting.get(box)
    with home.mounted.standing(others):
        pass
    assert sorted(home.mounted.orphans()) == sorted(f"{id}/fs" for id in others)
    home.mounted.cleanup()
    assert home.shown([*stack, *others]) == stack and home.mounted.orphans() == []
    home.mounting.put(box)


def test_a_layer_is_seen_without_a_mount_that_others_see(home, place):
    (id,) = home.layers(1)
    with home.mounted.seen(id) as fd:
        assert sorted(os.listdir(fd)) == ["of0", "top"]
        assert home.mounts() == set()
    assert loops(place) == []
    with home.mounted.standing([id]), home.mounted.seen(id) as fd:
        assert os.stat(home.files(id)).st_dev == os.fstat(fd).st_dev
        erofs.unmount(str(home.files(id)))
        assert sorted(os.listdir(fd)) == ["of0", "top"]
    assert loops(place) == []


def test_a_layer_that_is_read_alone_is_its_own_mount_and_stays_while_a_store_uses_it(open_home):
    one, other = open_home(), open_home()
    top, base = stack = one.layers(2)
    box = one.box(top)
    path = Path(one.mounting.get(base, read_only=True))
    assert path == one.files(base) and (path / "of0").read_text() == "0" and one.mounts() == {f"{base}/fs"}
    other.mounting.get(box)
    other.mounting.put(box)
    assert one.shown(stack) == [base] and one.mounted.orphans() == [] == other.mounted.orphans()
    other.mounted.cleanup()
    with other.mounting.mounted(base, read_only=True) as fd:
        one.mounting.put(base)
        assert one.mounts() == {f"{base}/fs"} and "of0" in os.listdir(fd)
    assert one.mounts() == set()


def test_a_layer_on_another_one_is_read_by_an_overlay_of_both(home):
    top, base = home.layers(2)
    with home.mounting.mounted(top, read_only=True) as fd:
        assert sorted(os.listdir(fd)) == ["of0", "of1", "top"] and home.mounts() == {f"{base}/fs", f"{top}/fs", f"{top}/merged"}
    assert home.mounts() == set()


@pytest.mark.parametrize(("kind", "size"), [("xfs", 320 << 20), ("btrfs", 128 << 20), ("tmpfs", 64 << 20)])
def test_a_box_on_each_kind_of_file_system(room, kind, size):
    with disk.sized_file_system(room, kind, size=size) as place:
        home = Home(place)
        stack = home.layers(3)
        box = home.box(stack[0])
        merged = Path(home.mounting.get(box))
        (merged / "of0").write_text("changed")
        assert home.shown(stack) == stack and (merged / "of1").read_text() == "1"
        assert home.mounted.mode() == ("loop" if kind == "tmpfs" else "file") == erofs.probe(str(place))
        home.mounting.put(box)
        assert home.mounts() == set() and loops(place) == []
        home.close()


def test_a_deep_stack_is_mounted_and_unmounted_in_one_go(home):
    stack = home.layers(125)
    box = home.box(stack[0])
    merged = home.mounting.get(box)
    assert home.shown(stack) == stack and len(os.listdir(merged)) == 126
    home.mounting.put(box)
    assert home.mounts() == set()


def test_a_link_in_the_place_of_a_layers_file_is_not_followed(home):
    stack = home.layers(2)
    box = home.box(stack[0])
    image = Path(home.at.image(stack[1]))
    image.rename(image.with_name("elsewhere"))
    image.symlink_to("elsewhere")
    with pytest.raises(CorruptLayerError) as refused:
        home.mounting.get(box)
    assert refused.value.path == str(image) and home.mounts() == set()
    image.unlink()
    os.mkfifo(image)
    with pytest.raises(CorruptLayerError):
        home.mounting.get(box)
    assert home.mounts() == set()
    assert disk.mounts_below(home.path) == []


def test_directio_is_the_mounts_option_and_is_refused_where_files_cannot_be_mounted(open_home, place):
    plain, home = open_home(), open_home(options=Options(directio=True))
    stack = home.layers(2)
    box = home.box(stack[0])
    if plain.mounted.mode() == "loop":
        with pytest.raises(NotSupportedError, match="directio needs a file system whose files can be mounted"):
            home.mounting.get(box)
        assert home.mounts() == set()
        return
    merged = home.mounting.get(box)
    assert all("directio" in disk.mount_line(home.files(id))[3].split(",") for id in stack)
    assert (Path(merged) / "of0").read_text() == "0"
    home.mounting.put(box)
    plain.mounting.get(box)
    assert not any("directio" in disk.mount_line(home.files(id))[3] for id in stack)
    plain.mounting.put(box)


def test_a_store_that_only_reads_sees_a_layer_and_writes_nothing(open_home):
    (id,) = open_home().layers(1)
    reader = open_home(read_only=True)
    before = disk.disk_state(reader.path, times=True)
    with reader.mounted.seen(id) as fd:
        assert sorted(os.listdir(fd)) == ["of0", "top"]
    assert reader.mounted.mode() == open_home().mounted.mode()
    assert disk.disk_state(reader.path, times=True) == before and reader.mounts() == set()


IN_A_USER_NAMESPACE = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2].split(":")
from home import Home
from layerstore.errors import NotSupportedError
home = Home(Path(sys.argv[1]))
stack = home.layers(2)
box = home.box(stack[0])
try:
    home.mounting.get(box)
except NotSupportedError as err:
    print(err, home.mounts())
"""


def test_a_user_namespace_makes_layers_and_boxes_and_mounts_none(room):
    paths = ":".join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    arguments = ["unshare", "-rm", sys.executable, "-c", IN_A_USER_NAMESPACE, str(room), paths]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert run.stdout == "mounting EROFS needs CAP_SYS_ADMIN in the initial namespace set()\n"
