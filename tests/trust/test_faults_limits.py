"""Too few descriptors, no threads, threads that die, forks, and an interpreter that ends in the middle.

Each in a child of its own: what it holds before and after is counted there, what it left is looked at here.
"""

import errno
import functools
import gc
import gzip
import hashlib
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faultkit
import ownspace
import pytest
import recipes
import tarkit
from faultkit import LARGE, Ground, Held, state
from soak import budget
from stored import comes_back, tar_of
from tarkit import end, file

import layerstore
from layerstore import CreateRWLayerOpts, LayerStoreError, Store

# Descriptors that are free, up to as many as the call has succeeded with so often.
MORE, ENOUGH = budget(((0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 14, 18, 24, 32, 45, 60), 1), (range(80), 3))
PACKED = gzip.compress(LARGE, 1)


def copy(g: Ground) -> bool:
    with open(os.devnull, "wb") as out, g.large.tar_stream() as stream:
        return stream.copy_to(out) == len(LARGE)


def register(g: Ground, tar: bytes = LARGE) -> bool:
    with g.store.register(tar, g.base.chain_id) as layer:
        return layer.diff_id == tarkit.diff_id(LARGE)


def mount(g: Ground) -> bool:
    with g.rw.mounted() as path:
        return sorted(os.listdir(path)) == ["c", "e", "new", "sub"]


def create(g: Ground) -> bool:
    if "new" in g.store.mounts():        # made, and then not released
        g.new.release()
    g.new = g.store.create_rw_layer("new", g.above.chain_id, CreateRWLayerOpts(init_func=lambda path: None))
    return g.new.release() == []


def opened(g: Ground) -> bool:
    with g.again() as again:
        return len(again.map()) == 3


CALLS: dict[str, Callable[[Ground], bool]] = {
    "register": register,
    "register gzip": lambda g: register(g, PACKED),
    "tar_stream": lambda g: tar_of(g.large) == LARGE, "copy_to": copy,
    "changes": lambda g: len(g.rw.changes()) == 5,
    "changes_between": lambda g: layerstore.changes_between(*(g.root / "overlay2" / layer.cache_id for layer in (g.above, g.base))) != [],
    "tar_stream of a writable layer": lambda g: len(tar_of(g.rw)) > 9000,
    "commit": lambda g: g.rw.commit().release() != [],
    "mount": mount, "create_rw_layer": create, "verify": lambda g: g.store.verify() == [], "open": opened,
}


@pytest.mark.soak(60, 300)
@pytest.mark.parametrize("name", CALLS)
def test_too_few_descriptors_are_said_or_overcome_and_none_is_lost(room: Path, name: str) -> None:
    call = CALLS[name]

    def work(say: Callable[[str], None]) -> tuple[int, int, list[str]]:
        gc.freeze()
        alone = faultkit.threads()
        g = Ground(room / "docker")
        g.large = g.store.register(LARGE, g.base.chain_id)
        assert call(g)
        layers, before, wrong, failed, enough = g.contents(), state(g.root), [], 0, 0
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        for more in MORE:
            say(f"{more} descriptors")
            # The numbers below the limit count, not how many are open.
            fillers = []
            while (fd := os.open("/dev/null", os.O_RDONLY)) < max(faultkit.disk.open_files()):
                fillers.append(fd)
            fillers.append(fd)
            assert faultkit.settled_threads(alone) == alone       # those of the call before have left /proc
            held = Held.now(room)
            resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1 + more, hard))
            right: Any = None
            try:
                right = call(g)
            except (OSError, LayerStoreError) as error:
                failed += 1
                if isinstance(error, OSError) and error.errno != errno.EMFILE:
                    wrong.append(f"{more}: {error!r}")
            except BaseException as error:
                wrong.append(f"{more}: {error!r}")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            gc.collect()
            wrong += [f"{more}: left {line}" for line in held.differences()]
            for fd in fillers:
                os.close(fd)
            if right is False and name != "verify":     # which may tell of what it could not open
                wrong.append(f"{more}: a wrong result")
            littered = state(g.root) != before
            if littered and "new" not in g.store.mounts():
                with g.again() as again:
                    again.cleanup()
                wrong += [f"{more}: behind cleanup() {line}" for line in faultkit.disk.changed(before, state(g.root))]
            if not call(g):
                wrong.append(f"{more}: then a wrong result")
            enough = enough + 1 if right else 0
            if enough == ENOUGH:
                break
        if g.contents() != layers or g.verify() != []:
            wrong.append("layers differ")
        return failed, enough, wrong

    failed, enough, wrong = faultkit.in_a_child(work, seconds=budget(50, 280))
    print(name, failed, enough, *wrong, sep="\n  ")
    assert not wrong
    assert enough == ENOUGH
    assert failed or name in ("verify",)


# ---- threads ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["register", "register gzip", "tar_stream", "copy_to", "mount", "commit"])
@pytest.mark.parametrize("first", [1, 2, 3])
def test_threads_that_cannot_be_made_are_done_without_or_said(room: Path, name: str, first: int) -> None:
    def work(say: Callable[[str], None]) -> str:
        g = Ground(room / "docker")
        g.large = g.store.register(LARGE, g.base.chain_id)
        before, held = state(g.root), Held.now(room)
        faults = faultkit.Faults()
        held = Held.now(room)
        for last in (None, 1 << 40):
            value, raised, _ = faults.run(lambda: CALLS[name](g), "thread", errno.EAGAIN, first, last)
            assert value or isinstance(raised, OSError), (value, raised)
            assert raised is None or raised.errno == errno.EAGAIN, raised
            raised = None
            gc.collect()
            assert state(g.root) == before
            assert held.differences() == []
        assert CALLS[name](g)
        return "well"

    assert faultkit.in_a_child(work) == "well"


# ---- forks ----------------------------------------------------------------------------------------------------
def test_a_fork_in_another_thread_during_register_leaves_both_processes_able_to_work(room: Path) -> None:
    tar = b"".join(file(f"f{i}", recipes.noise(3000, i + 1)) for i in range(900)) + end()

    def work(say: Callable[[str], None]) -> list[int]:
        store, done, codes, problems = Store(room / "docker", options={"durability": "none"}), threading.Event(), [], []
        base = store.register(tarkit.T1)

        def registering() -> None:
            try:
                while not done.is_set():
                    with store.register(tar, base.chain_id) as layer:
                        if faultkit.tar_of(layer.tar_stream) != hashlib.sha256(tar).hexdigest():
                            problems.append("differs")
            except BaseException as error:
                problems.append(repr(error))

        def alone(i: int) -> None:
            """With a store of its own, as a child does; the parent's locks are wherever they were."""
            with Store(room / f"child{i}", options={"durability": "none"}) as own, own.register(LARGE) as layer:
                assert comes_back(layer, LARGE)

        thread = threading.Thread(target=registering)
        thread.start()
        for i in range(20):
            time.sleep(0.003 * (i % 7))
            child = ownspace.forked(functools.partial(alone, i))
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        done.set()
        thread.join()
        assert problems == []
        assert store.verify() == []
        return codes

    assert faultkit.in_a_child(work) == [0] * 20


# ---- the end of the interpreter -----------------------------------------------------------------------------------
PROGRAM = """
import os, sys, threading, time
sys.path[:0] = sys.argv[3:]
import layerstore
store = layerstore.Store(sys.argv[1], options={"durability": "none"})
tar = open(sys.argv[2], "rb").read()
class Slow:
    at = 0
    def read(self, n):
        time.sleep(0.001)
        self.at += 4096
        return tar[self.at - 4096 : self.at]
layer = store.register(tar)
reader, writer = os.pipe()
def work():
    while True:
        WORK
thread = threading.Thread(target=work, daemon=True)
thread.start()
time.sleep(DELAY)
print("end", flush=True)
"""
WORKS = {
    "register": "store.register(tar + bytes(512)).release()",
    "register from a slow source": "store.register(Slow()).release()",
    "register from a pipe nobody writes": "store.register(reader)",
    "read": "layer.tar_stream().read()",
    "copy to a pipe nobody reads": "layer.tar_stream().copy_to(writer)",
    "verify": "store.verify()",
}


@pytest.mark.soak(60)
@pytest.mark.parametrize("name", WORKS)
def test_the_interpreter_ends_in_the_middle_of_a_daemon_threads_call(room: Path, name: str) -> None:
    (room / "tar").write_bytes(LARGE)
    where = [str(Path(layerstore.__file__).parents[1])]
    for i in range(budget(3, 8)):
        root = room / f"docker{i}"
        program = PROGRAM.replace("WORK", WORKS[name]).replace("DELAY", str(0.02 + 0.013 * i))
        done = subprocess.run([sys.executable, "-c", program, str(root), str(room / "tar"), *where], capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
        with Store(root) as store:
            store.cleanup()
            assert store.verify() == []
            assert [layer.diff_id for layer in store.map().values()].count(tarkit.diff_id(LARGE)) == 1


@pytest.mark.parametrize("where", ["read", "progress", "init_func", "write"])
def test_sys_exit_in_a_callback_ends_the_call_and_leaves_nothing(room: Path, where: str) -> None:
    g = Ground(room / "docker")
    before = state(g.root)

    class Leaving:
        def __init__(self) -> None:
            self.left = [tarkit.T1[:512]]

        def read(self, n: int) -> bytes:
            return self.left.pop() if self.left else sys.exit(7)

        def write(self, data: Any) -> int:
            sys.exit(7)

    with pytest.raises(SystemExit) as caught:
        if where == "read":
            g.store.register(Leaving(), g.base.chain_id)
        elif where == "progress":
            g.store.register(LARGE, g.base.chain_id, progress=lambda taken: sys.exit(7))
        elif where == "init_func":
            g.store.create_rw_layer("new", g.above.chain_id, CreateRWLayerOpts(init_func=lambda path: sys.exit(7)))
        else:
            with g.above.tar_stream() as stream:
                stream.copy_to(Leaving())
    assert caught.value.code == 7
    assert state(g.root) == before
    assert register(g)
    assert g.store.verify() == []
