"""Many: forks of one base, stacks deeper than the kernel takes, processes and threads on one box.

Times are held against each other only, the last hundred against the first: nothing grows.
"""

import os
import statistics
import subprocess
import time

import pytest
from another import ENVIRONMENT, command
from boxes import lowers, shown, write
from driven import DRIVER
from soak import SEED, budget

import layerstore
from layerstore import MaxDepthExceededError

FORKS = budget(300, 1000)


def ten_files(path: str, n: int) -> None:
    for number in range(10):
        with open(f"{path}/f{number}", "w") as out:
            out.write(f"{n}")


@pytest.mark.soak(60, 300)
def test_forks_of_one_base_cost_what_the_first_cost(store, box):
    write(box, "base")
    base = box.snapshot()
    times, kept = [], []
    for number in range(FORKS):
        began = time.perf_counter()
        fork = base.fork(f"fork {number}")
        with fork.mounted() as path:
            ten_files(path, number)
        snap = fork.snapshot()
        if number % 10:
            snap.release()
            fork.release()
        else:
            kept.append((fork, snap, number))
        times.append(time.perf_counter() - began)
    first, last = statistics.median(times[:100]), statistics.median(times[-100:])
    assert last < 2 * first + 0.002, f"{first * 1000:.2f} ms at first, {last * 1000:.2f} ms at last"
    for fork, snap, number in kept[::7]:
        assert shown(fork)["f3"] == str(number) and snap.size() == 10 * len(str(number))
        assert len(fork.changes(since=base)) == 10
    assert len(store.snapshots()) == 1 + len(kept) and store.orphans() == []
    began = time.perf_counter()
    for fork, snap, _ in kept:
        fork.release()
        snap.release()
    assert time.perf_counter() - began < 1 + 0.05 * len(kept)
    box.release()
    base.release()
    assert store.snapshots() == [] and store.orphans() == []


@pytest.mark.parametrize("mounted", [False, True])
def test_a_stack_of_released_snapshots_does_not_grow(store, box, base, root, mounted):
    path = box.mount() if mounted else None
    wanted, deepest = {}, 0
    for number in range(130):
        name = f"n{number % 20}"
        write(box, name, str(number))
        wanted[name] = str(number)
        box.snapshot().release()
        deepest = max(deepest, len(lowers(root, store.get_mount_id("box"))))
    assert deepest <= 51 and len(lowers(root, store.get_mount_id("box"))) < 51
    assert {name: text for name, text in shown(box).items() if name in wanted} == wanted
    assert sorted(map(str, box.changes())) == sorted(f"A /{name}" for name in wanted)
    assert store.orphans() == []
    if path:
        box.unmount()
    box.squash()
    assert len(lowers(root, store.get_mount_id("box"))) <= 2
    assert {name: text for name, text in shown(box).items() if name in wanted} == wanted
    assert len([name for name in os.listdir(root / DRIVER) if len(name) >= 64]) <= 3


def test_kept_snapshots_are_not_merged(store, box, root, base):
    kept = {}
    for number in range(60):
        write(box, f"n{number}", str(number))
        snap = box.snapshot()
        if number % 20 == 10:
            kept[number] = snap
        else:
            snap.release()
    box.squash()
    names = lowers(root, store.get_mount_id("box"))
    assert [name for name in names if name in {snap.id for snap in kept.values()}] == [kept[n].id for n in sorted(kept, reverse=True)]
    assert len(names) <= 8
    for number, snap in kept.items():
        with snap.fork("look") as fork:
            assert {name for name in shown(fork) if name.startswith("n")} == {f"n{n}" for n in range(number + 1)}
        assert len(box.changes(since=snap)) == 59 - number


def test_a_loose_one_with_others_on_it_is_not_merged(store, box, root):
    write(box, "one")
    fork = box.fork("fork")
    write(box, "two")
    box.snapshot().release()
    write(box, "three")
    box.snapshot().release()
    shared = fork.base.id
    box.squash()
    names = lowers(root, store.get_mount_id("box"))
    assert shared in names and len(names) == 3
    assert {"one", "two", "three"} <= shown(box).keys() and "two" not in shown(fork)
    fork.release()
    box.squash()
    assert shared not in lowers(root, store.get_mount_id("box"))
    assert {"one", "two", "three"} <= shown(box).keys()


@pytest.mark.soak(90)
def test_deeper_than_the_kernel_takes(store, box, root, unchanged):
    snaps = []
    with pytest.raises(MaxDepthExceededError):
        for number in range(600):
            if number % 50 == 0:
                write(box, f"n{number}", str(number))
            snaps.append(box.snapshot())
    assert len(snaps) == 499 and len(lowers(root, store.get_mount_id("box"))) == 500
    with unchanged(), pytest.raises(MaxDepthExceededError):
        box.snapshot()
    assert len(store.snapshots()) == 499
    with box.mounted() as path:
        assert len([name for name in os.listdir(path) if name.startswith("n")]) == 10
        with unchanged(), pytest.raises(MaxDepthExceededError):
            box.snapshot()
    with snaps[-1].fork("fork") as fork:
        assert len(shown(fork)) == len(shown(box))
        with pytest.raises(MaxDepthExceededError):
            fork.snapshot()
    with pytest.raises(MaxDepthExceededError):
        box.fork("fork")
    assert store.mounts() == ["box"]
    for snap in snaps[100:200]:
        snap.release()
    assert box.snapshot().box == "box", "what was released makes room"
    assert len(lowers(root, store.get_mount_id("box"))) < 420
    assert len([name for name in shown(box) if name.startswith("n")]) == 10
    began = time.monotonic()
    assert store.verify() == [] and store.orphans() == []
    assert time.monotonic() - began < 10


CROWD = """
import faulthandler, random, sys, threading, time
import layerstore
root, seed, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
faulthandler.dump_traceback_later(40 + seconds, exit=True)
store = layerstore.Store(root, options={"durability": "none"})
box = store.get_rw_layer("box")
until, errors, done = time.monotonic() + seconds, [], [0]

def work(n):
    draw = random.Random(seed * 10 + n)
    mine = []
    while time.monotonic() < until:
        try:
            what = draw.randrange(7)
            if what <= 1:
                mine.append(box.snapshot())
            elif what == 2 and mine:
                mine.pop(draw.randrange(len(mine))).release()
            elif what == 3 and mine:
                fork = draw.choice(mine).fork(f"fork {seed} {n} {done[0]} {draw.random()}")
                with fork.mounted() as path:
                    open(path + "/made", "w").write("x")
                fork.snapshot().release()
                fork.release()
            elif what == 4:
                box.squash()
            elif what == 5:
                path = box.mount()
                with open(f"{path}/by {seed} {n}", "a") as out:
                    out.write("x")
                while True:
                    try:
                        box.unmount()
                        break
                    except layerstore.ActiveMountError:
                        time.sleep(0.001)       # somebody else is at work there
            else:
                box.changes(), box.size(), [one.id for one in store.snapshots()]
            done[0] += 1
        except layerstore.ActiveMountError:
            pass
        except layerstore.MaxDepthExceededError:
            pass
        except BaseException as error:
            import traceback
            errors.append(traceback.format_exc())
            break

threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
store.close()
print(done[0])
print("\\n".join(errors), file=sys.stderr)
sys.exit(bool(errors))
"""


@pytest.mark.soak(60, 300)
def test_processes_and_threads_on_one_box(store, root, box):
    seconds = budget(4, 120)
    crowd = [
        subprocess.Popen(command(CROWD, root, SEED * 3 + n, seconds), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        for n in range(3)
    ]
    said = [process.communicate() for process in crowd]
    assert [process.returncode for process in crowd] == [0, 0, 0], "\n".join(error for _, error in said)
    assert sum(int(out) for out, _ in said) > 30
    for _ in range(4):      # a store that meets a mounted box takes that for a use, of which it does not know the end
        box.unmount()
    tree = shown(box)
    assert {name for name in tree if name.startswith("by ")} and all(set(tree[name]) == {"x"} for name in tree if name.startswith("by "))
    assert store.mounts() == ["box"]
    with layerstore.Store(root) as again:
        again.cleanup()
        assert again.verify() == [] and again.orphans() == []
    for snap in store.snapshots():
        with snap.fork("look") as fork:
            assert "etc/hosts" in shown(fork)
        snap.release()
    box.release()
    assert [name for name in os.listdir(root / DRIVER) if len(name) >= 64] == [layer.cache_id for layer in store.map().values()]


@pytest.mark.soak(60, 900)
def test_thousands_of_snapshots(store, open_store, root, base):
    count = budget(600, 10_000)
    boxes = [store.create_rw_layer(f"box {n}", base) for n in range(40)]
    times = []
    for number in range(count):
        began = time.perf_counter()
        boxes[number % 40].snapshot()
        times.append(time.perf_counter() - began)
    assert statistics.median(times[-200:]) < 3 * statistics.median(times[:200]) + 0.003
    began = time.monotonic()
    with open_store(root) as again:
        assert len(again.snapshots()) == count
        assert time.monotonic() - began < 10
    assert store.orphans() == []


SWAP = """
import faulthandler, os, random, sys, threading, time, traceback
from pathlib import Path
import layerstore
root, told, seed, seconds, acts = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:]
faulthandler.dump_traceback_later(60 + seconds, exit=True)
store = layerstore.Store(root, options={"durability": "none"})
base = next(iter(store.map()))
until, errors, done = time.monotonic() + seconds, [], {}

def read(box):
    with box.mounted() as path:
        return Path(path, "state").read_text()

def leave(box):
    while True:
        try:
            return box.unmount()
        except layerstore.ActiveMountError:
            time.sleep(0.001)

def work(n):
    draw = random.Random(seed * 10 + n)
    box = store.create_rw_layer(f"box {seed} {n}", base)
    count = 0
    while time.monotonic() < until:
        act = draw.choice(acts)
        try:
            known = [one for one in store.snapshots() if (told / one.id).exists()]
            some = draw.choice(known) if known else None
            if act == "take" and len(known) < 12:
                count += 1
                token = f"{seed} {n} {count}"
                path = box.mount()
                Path(path, "state").write_text(token)
                if draw.random() < 0.5:
                    leave(box)
                    path = None
                id = box.snapshot().id
                (told / ".new").with_suffix(f".{seed}.{n}").write_text(token)
                os.rename((told / ".new").with_suffix(f".{seed}.{n}"), told / id)
                if path:
                    leave(box)
            elif some and act in ("fork", "create"):
                name = f"{act} {seed} {n} {done.get(act, 0)}"
                fork = some.fork(name) if act == "fork" else store.create_rw_layer(name, some.id)
                got, want = read(fork), (told / some.id).read_text()
                assert got == want, f"{act} of {some.id} shows {got}, not {want}"
                if draw.random() < 0.3:
                    fork.snapshot().release()
                    assert read(fork) == want
                fork.release()
            elif some and act == "release" and len(known) > 3:
                some.release()
            elif some and act == "remove" and len(known) > 3:
                store.remove(some)
            elif some and act == "commit":
                want = (told / some.id).read_text()
                layer = some.commit(squash=draw.random() < 0.3)
                with store.create_rw_layer(f"look {seed} {n} {done.get(act, 0)}", layer) as look:
                    got = read(look)
                assert got == want, f"the layer of {some.id} shows {got}, not {want}"
                layer.release()
            elif some and act == "back":
                box.rollback(some)
                got, want = read(box), (told / some.id).read_text()
                assert got == want, f"rolled back to {some.id} it shows {got}, not {want}"
            elif act == "squash":
                box.squash()
            done[act] = done.get(act, 0) + 1
        except (layerstore.LayerDoesNotExistError, layerstore.StoreInUseError, layerstore.ActiveMountError, layerstore.MaxDepthExceededError):
            pass
        except BaseException:
            errors.append(act + ": " + traceback.format_exc())
            break
    while True:
        try:
            box.release()
            break
        except layerstore.ActiveMountError:
            time.sleep(0.001)

threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
store.close()
print(sum(done.values()))
print("\\n".join(errors), file=sys.stderr)
sys.exit(bool(errors))
"""


ACTS = {
    "all": "take take fork fork release commit back create squash remove",
    "squash beside commit": "take take take fork release release commit commit back squash squash",
}


@pytest.mark.soak(90, 600)
@pytest.mark.parametrize("acts", ACTS)
def test_what_a_snapshot_shows_whatever_others_do_with_it(store, root, room, base, acts):
    """Forks, releases, removals, commits and rollbacks of the same snapshots by several processes at once."""
    (room / "told").mkdir()
    seconds = budget(5, 120)
    crowd = [
        subprocess.Popen(command(SWAP, root, room / "told", SEED * 3 + n, seconds, *ACTS[acts].split()), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        for n in range(3)
    ]
    said = [process.communicate() for process in crowd]
    assert [process.returncode for process in crowd] == [0, 0, 0], "\n".join(error for _, error in said)
    assert sum(int(out) for out, _ in said) > 30
    with layerstore.Store(root) as again:
        again.cleanup()
        assert again.verify() == [] and again.orphans() == []
        for name in again.mounts():
            again.get_rw_layer(name).release()
        for snap in again.snapshots():
            token = room / "told" / snap.id
            with snap.fork("look") as fork:
                assert not token.exists() or shown(fork)["state"] == token.read_text()
            snap.release()
        again.cleanup()
        assert again.orphans() == [] and again.verify() == []
