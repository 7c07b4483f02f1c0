"""Sources, callbacks and signals that misbehave: the call ends with the caller's own exception, or an honest one, at once.

Nothing is left on disk, no descriptor, thread or mount, and the store goes on working with the same objects.
"""

import contextlib
import fcntl
import gc
import gzip
import io
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faultkit
import pytest
import recipes
import tarkit
from faultkit import EVERY_KIND, LARGE, Ground, Held, state
from soak import budget
from stored import BoomError
from tarkit import dir, end, file

import layerstore
from layerstore import CreateRWLayerOpts, LayerStoreError, TarFormatError

# Seconds after which a signal was swallowed that has ended nothing.
SWALLOWED = 10.0
PROMPT = 1.0        # seconds from a signal to the end of the call, on a processor of its own


@pytest.fixture
def g(room: Path) -> Iterator[Ground]:
    ground = Ground(room / "docker")
    yield ground
    ground.store.close()


@contextmanager
def whole(g: Ground) -> Iterator[None]:
    """Behind the block all is as before, and the store works."""
    gc.collect()
    before, held, layers = state(g.root), Held.now(g.root), g.contents()
    yield
    gc.collect()
    assert held.differences() == []
    assert faultkit.disk.changed(before, state(g.root)) == []
    assert g.verify() == []
    assert g.contents() == layers
    with g.store.register(EVERY_KIND, g.base.chain_id) as layer:
        assert faultkit.tar_of(layer.tar_stream) == layer.diff_id.encoded
    assert faultkit.disk.changed(before, state(g.root)) == []


class Source:
    """Return data in pieces; at call number `at` it does something else."""

    def __init__(self, data: bytes, at: int = 1 << 60, act: Callable[[], Any] = lambda: b"", step: int = 0) -> None:
        self.data, self.at, self.act, self.step, self.calls, self.given = data, at, act, step, 0, 0

    def read(self, n: int) -> Any:
        self.calls += 1
        if self.calls == self.at:
            return self.act()
        piece = self.data[self.given : self.given + (self.step or n)]
        self.given += len(piece)
        return piece


def packings() -> dict[str, tuple[bytes, int]]:
    """A tar as it may come, and in what pieces so that there are some twenty."""
    found = {"plain": LARGE, "gzip": gzip.compress(LARGE, 1)}
    for program in ("zstd", "bzip2", "xz"):
        found[program] = subprocess.run([program, "-c"], input=EVERY_KIND if program != "zstd" else LARGE, capture_output=True, check=True).stdout
    return {name: (data, max(len(data) // 20, 40)) for name, data in found.items()}


PACKINGS = packings()


def raising(error: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


# ---- sources ----------------------------------------------------------------------------------------------
@pytest.mark.soak(60)
@pytest.mark.parametrize("way, packing", [("disassemble", "plain"), *((way, packing) for way in ("register", "apply_diff") for packing in PACKINGS)])
def test_a_source_that_raises_at_any_read_is_heard_and_leaves_nothing(g: Ground, way: str, packing: str) -> None:
    data, step = PACKINGS[packing]
    calls = {
        "register": lambda source: g.store.register(source, g.base.chain_id),
        "apply_diff": lambda source: g.bare.apply_diff(source),
        "disassemble": lambda source: layerstore.disassemble(source, io.BytesIO()),
    }
    gc.collect()
    held = Held.now(g.root)
    counted = Source(data, step=step)
    layerstore.disassemble(counted, io.BytesIO()) if way == "disassemble" else g.store.register(counted).release()
    # Each of them, the one that tells the end too, if it is asked for.
    for at in range(1, counted.calls + 1, budget(4, 1)):
        error = BoomError(at)
        before = state(g.root)
        with pytest.raises(BoomError) as caught:
            calls[way](Source(data, at, raising(error), step))
        assert caught.value is error
        del caught, error
        if way != "apply_diff":
            assert state(g.root) == before
    gc.collect()
    assert held.differences() == []
    assert g.verify() == []
    assert g.store.register(LARGE, g.base.chain_id).diff_id == tarkit.diff_id(LARGE)


WRONG = {
    "None, as a descriptor that is not ready": None,
    "text": "text", "a number": 7, "a list": [1, 2], "an object": object(),
}


@pytest.mark.parametrize("at", [1, 2, 9])
@pytest.mark.parametrize("what", WRONG)
def test_a_read_of_another_type_is_a_type_error(g: Ground, what: str, at: int) -> None:
    with whole(g), pytest.raises(TypeError):
        g.store.register(Source(LARGE, at, lambda: WRONG[what], 50_000), g.base.chain_id)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_read_that_gives_more_than_was_asked_for_is_taken_whole(g: Ground, packing: str) -> None:
    data, _ = PACKINGS[packing]
    with whole(g), g.store.register(Source(data, step=len(data)), g.base.chain_id) as layer:
        assert faultkit.tar_of(layer.tar_stream) == layer.diff_id.encoded


def test_a_bytearray_that_is_changed_behind_the_read_does_no_harm(g: Ground) -> None:
    """read() that always gives the same buffer, filled anew."""
    kept = bytearray(50_000)

    class Reuses(Source):
        def read(self, n: int) -> Any:
            piece = super().read(50_000)
            kept[: len(piece)] = piece
            return memoryview(kept)[: len(piece)]

    with whole(g), g.store.register(Reuses(LARGE), g.base.chain_id) as layer:
        assert layer.diff_id == tarkit.diff_id(LARGE)


def test_a_pipe_that_is_not_ready_is_waited_for(g: Ground) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_NONBLOCK)

    def slowly() -> None:
        for at in range(0, len(LARGE), 100_000):
            time.sleep(0.002)
            piece = LARGE[at : at + 100_000]
            while piece:
                piece = piece[os.write(writer, piece) :]
        os.close(writer)

    thread = threading.Thread(target=slowly)
    try:
        thread.start()
        with g.store.register(reader, g.base.chain_id) as layer:
            assert layer.diff_id == tarkit.diff_id(LARGE)
    finally:
        thread.join()
        os.close(reader)


@pytest.mark.parametrize("to", [0, 600, 512 * 700, len(LARGE) - 5000])
@pytest.mark.parametrize("way", ["path", "file", "descriptor"])
def test_a_file_that_is_truncated_while_it_is_read_is_refused_or_whole(g: Ground, room: Path, way: str, to: int) -> None:
    path = room / "tar"
    path.write_bytes(LARGE)
    cut = []

    def progress(taken: int) -> None:
        cut.append(os.truncate(path, to))

    with whole(g), open(path, "rb") as opened:
        source = {"path": path, "file": opened, "descriptor": opened.fileno()}[way]
        try:
            os.truncate(path, len(LARGE))
            threading.Timer(0.001, os.truncate, (path, to)).start()
            layer = g.store.register(source, g.base.chain_id, progress=progress)
        except (TarFormatError, OSError):
            pass
        else:
            # The bytes it got: all, or so many that they are a tar.
            assert faultkit.tar_of(layer.tar_stream) == layer.diff_id.encoded
            layer.release()
        time.sleep(0.002)
        gc.collect()
        while threading.active_count() > 1 and any(isinstance(t, threading.Timer) for t in threading.enumerate()):
            time.sleep(0.001)


def test_a_file_that_grows_while_it_is_read_gives_a_layer_of_what_was_read(g: Ground, room: Path) -> None:
    path, done = room / "tar", threading.Event()
    path.write_bytes(LARGE)

    def grow() -> None:
        with open(path, "ab", buffering=0) as out:
            for _ in range(2000):
                if done.is_set():
                    break
                out.write(bytes(5120))

    for _ in range(5):
        thread = threading.Thread(target=grow)
        with whole(g):
            thread.start()
            with g.store.register(path, g.base.chain_id) as layer:
                assert faultkit.tar_of(layer.tar_stream) == layer.diff_id.encoded
            done.set()
            thread.join()
        done.clear()


@pytest.mark.parametrize("kind", ["reader", "file"])
def test_a_source_that_is_closed_under_us_is_an_error(g: Ground, room: Path, kind: str) -> None:
    path = room / "tar"
    path.write_bytes(LARGE)
    with whole(g), open(path, "rb", buffering=0 if kind == "file" else -1) as opened:
        if kind == "reader":
            source: Any = Source(LARGE, 3, lambda: opened.close() or opened.read(), 100_000)
        else:
            source = Closing(opened)
        with pytest.raises(ValueError):
            g.store.register(source, g.base.chain_id)


class Closing:
    """Closes the file that it reads from, in the middle."""

    def __init__(self, opened: Any) -> None:
        self.opened, self.calls = opened, 0

    def read(self, n: int) -> bytes:
        self.calls += 1
        if self.calls == 3:
            self.opened.close()
        return self.opened.read(100_000)


def test_a_source_that_uses_the_store_from_read_is_served(g: Ground) -> None:
    inner: list[Any] = []

    def use() -> None:
        layer = g.store.register(EVERY_KIND, g.base.chain_id)
        inner.append(faultkit.tar_of(layer.tar_stream) == layer.diff_id.encoded)
        inner.append(g.store.verify() == [])
        with g.rw.mounted() as path:
            inner.append(len(os.listdir(path)) == 4)
        g.store.create_rw_layer("inner", layer.chain_id).release()
        layer.release()
        # Even the very layer that is being made.
        g.store.register(LARGE, g.base.chain_id).release()
        g.store.cleanup()

    def act() -> bytes:
        at = source.given
        use()
        source.given = at + 1000
        return LARGE[at : at + 1000]

    for number in (1, 2, 10):
        source = Source(LARGE, number, act, 100_000)
        with whole(g), g.store.register(source, g.base.chain_id) as layer:
            assert layer.diff_id == tarkit.diff_id(LARGE)
        assert inner and all(inner)


# ---- callbacks -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("packing", ["plain", "gzip", "bzip2"])
@pytest.mark.parametrize("kind", ["buffer", "reader", "path"])
def test_a_progress_that_raises_is_heard_and_leaves_nothing(g: Ground, room: Path, kind: str, packing: str) -> None:
    data, step = PACKINGS[packing]
    (room / "packed").write_bytes(data)
    source = {"buffer": data, "reader": Source(data, step=step), "path": room / "packed"}[kind]
    with whole(g), pytest.raises(BoomError):
        g.store.register(source, g.base.chain_id, progress=lambda taken: raising(BoomError())())


def test_a_progress_that_uses_the_store_is_served(g: Ground) -> None:
    def progress(taken: int) -> None:
        g.store.register(EVERY_KIND, g.base.chain_id).release()
        assert g.store.verify() == []

    with whole(g):
        g.store.register(LARGE, g.base.chain_id, progress=progress).release()


def raises(path: str) -> None:
    Path(path, "half").write_text("half")
    raise BoomError


def mounts_and_raises(path: str) -> None:
    os.mkdir(f"{path}/inside")
    faultkit.disk.mount("tmpfs", f"{path}/inside", "tmpfs", 0, "size=64k")
    Path(path, "inside/f").write_text("f")
    raise BoomError


@pytest.mark.parametrize("init", [raises, mounts_and_raises])
def test_an_init_that_raises_is_heard_and_leaves_nothing(g: Ground, init: Any) -> None:
    with whole(g), pytest.raises(BoomError):
        g.store.create_rw_layer("new", g.above.chain_id, CreateRWLayerOpts(init_func=init))


def test_an_init_that_leaves_a_mount_makes_a_layer_that_goes_with_it(g: Ground) -> None:
    def init(path: str) -> None:
        os.mkdir(f"{path}/inside")
        faultkit.disk.mount("tmpfs", f"{path}/inside", "tmpfs", 0, "size=64k")

    with whole(g):
        rw = g.store.create_rw_layer("new", g.above.chain_id, CreateRWLayerOpts(init_func=init))
        with rw.mounted() as path:
            assert os.listdir(f"{path}/inside") == []
        rw.release()


def test_an_init_that_uses_the_store_is_served(g: Ground) -> None:
    def init(path: str) -> None:
        g.store.create_rw_layer("inner", g.above.chain_id).release()
        g.store.register(EVERY_KIND, g.above.chain_id).release()
        assert g.store.verify() == []
        with g.rw.mounted():
            pass

    with whole(g):
        g.store.create_rw_layer("new", g.above.chain_id, CreateRWLayerOpts(init_func=init)).release()


# ---- Ctrl-C -------------------------------------------------------------------------------------------------
SIDE = budget(30, 60)      # so many directories of so many files
MANY = b"".join(dir(f"d{i}/") + b"".join(file(f"d{i}/f{j}", b"%d" % j) for j in range(SIDE)) for i in range(SIDE)) + end()
HUGE_HOLE = tarkit.pax_sparse_1_0("hole", [((3 << 30) - 512, b"x" * 512)], 3 << 30) + end()


class Prepared:
    """What the interrupted calls work on; made once a child."""

    def __init__(self, room: Path) -> None:
        self.g = Ground(room / "docker")
        self.many = self.g.store.register(MANY)
        self.hole = self.g.store.register(HUGE_HOLE)
        self.big = self.g.store.create_rw_layer("big", self.g.above.chain_id)
        self.big.apply_diff(MANY)
        (room / "packed").write_bytes(subprocess.run(["bzip2", "-c"], input=LARGE + recipes.noise(3 << 20), capture_output=True, check=True).stdout)
        self.packed = room / "packed"
        self.reader, self.writer = os.pipe()
        self.null = os.open(os.devnull, os.O_WRONLY)
        self.room = room

    def until(self, call: Callable[[], Any]) -> None:
        """Again and again: the signal decides when it is over."""
        while True:
            call()

    def create_and_release(self) -> None:
        self.new = self.g.store.create_rw_layer("new", self.g.above.chain_id)
        self.new.release()

    def spill(self) -> None:
        """What cleanup() finds to do: thousands of unowned files."""
        with self.g.store.register(MANY + bytes(512), self.g.base.chain_id) as layer:
            self.g.store._engine.metadata.set_aside(layer.chain_id)


def written_to_by_init(path: str) -> None:
    while True:
        Path(path, "f").write_text("f")


INTERRUPTED: dict[str, Callable[[Prepared], Any]] = {
    "register": lambda p: p.until(lambda: p.g.store.register(MANY, p.g.base.chain_id).release()),
    "register a reader": lambda p: p.until(lambda: p.g.store.register(io.BytesIO(MANY), p.g.base.chain_id).release()),
    "register bzip2": lambda p: p.until(lambda: p.g.store.register(p.packed, p.g.base.chain_id).release()),
    "register a pipe nobody writes": lambda p: p.g.store.register(p.reader),
    "register a hole": lambda p: p.until(lambda: p.g.store.register(HUGE_HOLE, p.g.base.chain_id).release()),
    "tar_stream.read": lambda p: p.until(lambda: p.many.tar_stream().read()),
    "copy_to a pipe nobody reads": lambda p: p.many.tar_stream().copy_to(p.writer),
    "copy_to": lambda p: p.until(lambda: p.many.tar_stream().copy_to(p.null)),
    "changes": lambda p: p.until(p.big.changes),
    "tar_stream of a writable layer": lambda p: p.until(lambda: faultkit.tar_of(p.big.tar_stream)),
    "size": lambda p: p.until(p.big.size),
    "verify": lambda p: p.until(p.g.store.verify),
    "commit": lambda p: p.until(lambda: p.big.commit().release()),
    "create_rw_layer": lambda p: p.g.store.create_rw_layer("new", p.g.above.chain_id, CreateRWLayerOpts(init_func=written_to_by_init)),
    "apply_diff": lambda p: p.until(lambda: p.g.bare.apply_diff(MANY)),
    "create and release": lambda p: p.until(p.create_and_release),
    "cleanup": lambda p: p.until(lambda: (p.spill(), p.g.store.cleanup())),
    "disassemble": lambda p: p.until(lambda: layerstore.disassemble(MANY, io.BytesIO())),
    "changes_between": lambda p: p.until(lambda: layerstore.changes_between(p.g.root / "overlay2" / p.many.cache_id / "diff", p.g.root)),
}


@pytest.mark.soak(180, 300)
@pytest.mark.parametrize("name", INTERRUPTED)
def test_ctrl_c_ends_every_long_call_at_once_and_leaves_nothing(room: Path, name: str) -> None:
    seeds = range(budget(2, 60))

    def work(say: Callable[[str], None]) -> list[str]:
        wrong, lost, swallowed = list[str](), list[str](), 0
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.callbacks.clear()            # hypothesis has one: what a signal raises in it is swallowed by the collector
        p = Prepared(room)
        g = p.g
        layers, before = g.contents(), state(g.root)
        gc.freeze()
        for seed in seeds:
            delay = random.Random(f"{name} {seed}").uniform(0.002, 0.12)
            say(f"seed {seed}, {delay * 1000:.1f} ms")
            gc.collect()
            held, sent = Held.now(room), []

            done = threading.Event()

            def interrupt(sent: list[float] = sent, delay: float = delay, done: threading.Event = done) -> None:
                time.sleep(delay)
                for _ in range(3):        # Python swallows one that comes while it runs a finalizer, or a callback
                    sent.append(time.monotonic())
                    os.kill(os.getpid(), signal.SIGINT)
                    if done.wait(SWALLOWED):
                        return

            thread = threading.Thread(target=interrupt)
            try:
                thread.start()          # on a busy machine it interrupts the start already
                INTERRUPTED[name](p)
            except KeyboardInterrupt:
                ended = time.monotonic()
                done.set()
            thread.join()
            swallowed += len(sent) - 1
            if ended - sent[-1] > PROMPT * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)):
                wrong.append(f"{seed}: {ended - sent[0]:.2f} s")
            gc.collect()
            again = g.again()
            littered = state(g.root) != before
            # Behind one signal only what was being deleted may be left, and is unowned then.
            problems = again.verify()
            if [problem for problem in problems if problem.kind != "orphan"]:
                wrong.append(f"{seed}: {problems}")
            if name == "create and release" and "new" in g.store.mounts():
                # A release that was interrupted is tried again; what was made, and not yet in our hands, is another store's.
                with contextlib.suppress(LayerStoreError):
                    p.new.release()
                if "new" in g.store.mounts():
                    g.store, old = g.again(), g.store
                    g.store.get_rw_layer("new").release()
                    old.close()
            if littered:
                released = {n for n in again.mounts() if n not in layers} | {str(c) for c in again.map() if str(c) not in layers}
                if released and name in ("apply_diff",):
                    wrong.append(f"{seed}: made {released}")
                for thing in released:
                    # The signal came between register()'s return and the call of release(): the store has that reference.
                    held_still = g.store._engine.records.layers.get(thing)
                    for reference in list(held_still.references) if held_still else []:
                        g.store._engine.release(reference, str(thing))
                    if str(thing) not in again.map() and thing not in again.mounts():
                        continue
                    (again.get_rw_layer(thing) if "sha256:" not in thing else again.get(thing)).release()
                again.cleanup()
                if name != "apply_diff":
                    wrong += [f"{seed}: behind cleanup() {line}" for line in faultkit.disk.changed(before, state(g.root))]
            again.close()
            lost += [f"{seed}: left {line}" for line in held.differences()]
            if name == "apply_diff":
                g.bare.release()
                g.bare = g.store.create_rw_layer("bare", g.above.chain_id)
                with g.bare.mounted():
                    pass
                layers, before = g.contents(), state(g.root)
            with g.store.register(EVERY_KIND, g.base.chain_id) as layer:
                if faultkit.tar_of(layer.tar_stream) != layer.diff_id.encoded:
                    wrong.append(f"{seed}: then a wrong layer")
        if g.contents() != layers or g.verify() != []:
            wrong.append("layers differ")
        wrong += [f"{swallowed} of {len(seeds)} signals were not heard"] if swallowed > 1 else []
        # An interrupt may come between a call's return and the variable for its result: a descriptor is lost then.
        wrong += lost if len(lost) > 1 or any(" descriptor " not in line for line in lost) else []
        return wrong

    wrong = faultkit.in_a_child(work, seconds=budget(170, 280))
    print(name, *wrong, sep="\n  ")
    assert not wrong
