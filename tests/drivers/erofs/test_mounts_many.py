"""Many processes mount and unmount boxes on the same layers, and are killed at random: against a plain model.

The model: a layer is mounted if and only if an overlay of the mount table stands on it.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from home import Home, loops

from layerstore.disk import mounts
from layerstore.drivers.erofs.options import Options

SECONDS = 2.0

WORKER = """
import random, sys
from pathlib import Path
sys.path[:0] = sys.argv[3].split(":")
from home import Home
from layerstore.errors import ActiveMountError
home, draw = Home(Path(sys.argv[1])), random.Random(sys.argv[2])
boxes = sys.argv[4].split(",")
print("ready", flush=True)
while True:
    box = draw.choice(boxes)
    merged = Path(home.mounting.get(box))
    depth = int((merged / "top").read_text())
    for layer in range(depth + 1):
        assert (merged / f"of{layer}").read_text() == str(layer), (box, layer)
    home.mounting.put(box)
"""


def stood_on(home):
    """The layers that overlays of this mount namespace stand on, by a look at each option."""
    found = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        _head, _, tail = line.partition(" - ")
        if not tail.startswith("overlay "):
            continue
        for option in tail.split(" ", 2)[2].split(","):
            key, _, value = option.partition("=")
            if key.startswith("lowerdir") and f"{home.path}/l/" in value:
                link = value.rpartition("/")[2]
                found.add(os.readlink(home.path / "l" / link).split("/")[1])
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_many_processes_that_are_killed_leave_no_more_than_what_stands(open_home, place, seed):
    home, draw = open_home(), random.Random(seed)
    stack = home.layers(6)
    layers = set(stack)
    boxes = [home.box(stack[at]) for at in (0, 0, 2, 2, 4)]
    paths = ":".join([str(Path(__file__).parent), str(Path(__file__).parents[2])])

    def start():
        arguments = [sys.executable, "-c", WORKER, str(place), str(draw.random()), paths, ",".join(boxes)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdout.readline()
        return process

    workers = [start() for _ in range(3)]
    until = time.monotonic() + SECONDS
    try:
        while time.monotonic() < until:
            time.sleep(draw.random() / 5)
            at = draw.randrange(3)
            workers[at].kill()
            assert (workers[at].wait(), workers[at].communicate()[1]) == (-signal.SIGKILL, "")
            home.mounted.cleanup()
            workers[at] = start()
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            errors = worker.communicate()[1]
            assert errors == "", errors
    home.mounted.cleanup()
    assert set(home.shown(stack)) == stood_on(home) & layers        # what was mounted by the killed is there still
    assert home.mounted.orphans() == []
    home.mounting.cleanup()
    home.mounted.cleanup()
    assert home.mounts() == set() and loops(place) == []
    for box in boxes:                                               # all can be mounted anew
        assert (Path(home.mounting.get(box)) / "top").exists()
        assert set(home.shown(stack)) == stood_on(home) & layers
    for box in boxes:
        home.mounting.put(box)
        assert set(home.shown(stack)) == stood_on(home) & layers
    assert home.mounts() == set()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[3].split(":")
from home import Home
from layerstore.disk import erofs, mounts
from layerstore.drivers.erofs.options import Options
home, at = Home(Path(sys.argv[1]), Options(flatten=int(sys.argv[5]))), int(sys.argv[4])
calls = 0
def counted(function):
    def call(*arguments, **options):
        global calls
        for point in "before", "after":
            if point == "after":
                result = function(*arguments, **options)
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
for module, name in (erofs, "mount_file"), (mounts, "mount_overlay"), (mounts, "unmount"), (os, "rmdir"), (erofs, "mount_first"):
    setattr(module, name, counted(getattr(module, name)))
home.mounting.get(sys.argv[2])
home.mounting.put(sys.argv[2])
print(calls)
"""


@pytest.mark.parametrize("flatten", [0, 2])
def test_killed_at_every_call_of_a_mount_and_an_unmount_the_next_one_finds_all(open_home, place, flatten):
    home = open_home(options=Options(flatten=flatten))
    stack = home.layers(2)
    box = home.box(stack[0])
    paths = ":".join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    at, ended = 0, False
    while not ended:
        at += 1
        arguments = [sys.executable, "-c", KILLED, str(place), box, paths, str(at), str(flatten)]
        run = subprocess.run(arguments, capture_output=True, text=True, check=False)
        ended = run.returncode == 0
        assert ended or run.returncode == -signal.SIGKILL, run.stderr
        if at % 2:                                   # the next user of the box ends all of it
            assert (Path(home.mounting.get(box)) / "of0").read_text() == "0"
            assert home.shown(stack) == ([] if flatten else stack)
            home.mounting.put(box)
            if home.mounts():                        # a mount that was found may be another program's, until cleanup()
                assert flatten or set(home.shown(stack)) == stood_on(home)
                home.mounting.cleanup()
        else:
            home.mounting.cleanup()
            home.mounted.cleanup()
        assert home.mounts() == set() and home.mounted.orphans() == [] and loops(place) == []
        home.mounted.cleanup()
        assert not (home.path / stack[0] / "flat").exists()
    assert int(run.stdout) == at - 1 > 8


def test_a_mount_of_a_layer_and_of_a_stack_of_20_is_quick(open_home):
    """No more than a guard: the figures are the benchmarks'. Best of ten, on any machine that is not overloaded."""
    home = open_home()
    stack = home.layers(20)
    best = {}
    for name, box in ("one", home.box(stack[-1])), ("twenty", home.box(stack[0])):
        for _ in range(10):
            begin = time.perf_counter()
            home.mounting.get(box)
            taken = time.perf_counter() - begin
            home.mounting.put(box)
            best[name] = min(best.get(name, 9), taken)
    print({name: f"{seconds * 1e3:.2f} ms" for name, seconds in best.items()})
    assert mounts.mounts_below(str(home.path)) == []
    assert isinstance(home, Home) and best["one"] < 0.05 and best["twenty"] < 0.1
