"""What a worst enemy found: interruptions at the worst moment, two processes on one root, planted links, lying writers.

Each test is a promise of the house: bytes out equal bytes in, or an error; nothing outside is touched; nothing hangs.
"""

import bz2
import contextlib
import gzip
import io
import os
import random
import shutil
import signal
import sys
import threading
import time

import pytest
import tarkit
from disk import OUTSIDE, mounts_below
from soak import budget
from stored import at_once, tar_of
from tarkit import dir, end, file, hardlink, symlink, whiteout

from layerstore import (
    CreateRWLayerOpts,
    FileMetadataStore,
    LayerStoreError,
    MountNameConflictError,
    TarFormatError,
    disassemble,
)

# Calls whose result would be lost with the exception, which no signal can do: it comes between calls.
INDIVISIBLE = {"__enter__", "acquire", "open", "lock"}
SMALL = {"durability": "none"}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, at a chosen moment."""


@contextlib.contextmanager
def interruption(number, *, after=lambda: True, at=None, act=None):
    """Interrupt the number-th return from a C call (of that name), counted from when after() is true.

    Yields a list that is not empty once it happened."""
    left, happened = [number], []

    def watch(frame, event, call):
        name = getattr(call, "__name__", "")
        if event != "c_return" or name in INDIVISIBLE or (at and name != at) or not after():
            return
        left[0] -= 1
        if left[0] < 0:
            sys.setprofile(None)
            happened.append(name)
            if act:
                act()
            raise Interrupted

    sys.setprofile(watch)
    try:
        yield happened
    except Interrupted:
        pass
    finally:
        sys.setprofile(None)


def worse_than_orphans(store):
    return [problem for problem in store.verify() if problem.kind != "orphan"]


# ---- interruptions -------------------------------------------------------------------------------------
def in_a_child(work):
    """What work() does and leaves open is a child's; return its answer."""
    child = os.fork()
    if not child:
        answer = 99
        try:
            answer = int(work())
        finally:
            os._exit(answer)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("durability", ["full", "none"])
def test_ctrl_c_just_after_a_layer_became_visible_leaves_it_whole_or_away(room, open_store, durability):
    for number in range(60):
        root = room / f"root{number}"
        layers = root / "image/overlay2/layerdb/sha256"
        store = open_store(root, options={"durability": durability})
        base = store.register(tarkit.T1)

        def interrupted(store=store, base=base, number=number, layers=layers):
            with interruption(number, after=lambda: len(os.listdir(layers)) > 1) as happened:
                store.register(tarkit.T2, base.chain_id)
            return 2 if worse_than_orphans(store) else bool(happened)

        answer = in_a_child(interrupted)
        assert answer in (0, 1), f"the {number}th place"
        again = open_store(root, options=SMALL)
        assert worse_than_orphans(again) == []
        again.cleanup()
        assert again.verify() == []
        assert tar_of(again.register(tarkit.T2, base.chain_id)) == tarkit.T2
        if not answer:
            break
    assert 1 < number < 59


@pytest.mark.time_limit(40)
@pytest.mark.parametrize("what", ["create_rw_layer", "register", "release"])
def test_ctrl_c_at_any_return_of_c_does_not_hang(room, open_store, what):
    """The undo takes the same locks, while the traceback keeps what was half entered. (Function entries: test_walks.)"""
    answer, number = 1, 0
    while answer:
        root = room / f"root{number}"
        store = open_store(root, options=SMALL)
        base = store.register(tarkit.T1)
        layer = store.register(tarkit.T2, base.chain_id)
        chain = layer.chain_id
        # What two processes hold none of them deletes; so the child alone holds what it releases.
        if what == "release":
            store.close()
        work = {
            "create_rw_layer": lambda at=store, on=layer: at.create_rw_layer(
                "c", on.chain_id, CreateRWLayerOpts(init_func=lambda path: None)),
            "register": lambda at=store, on=layer: at.register(file("x") + end(), on.chain_id),
        }.get(what)

        def interrupted(store=store, work=work, number=number, root=root, chain=chain):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(3)
            if not work:
                store = open_store(root, options=SMALL)
                work = store.get(chain).release
            with interruption(number) as happened:
                work()
            return 2 if worse_than_orphans(store) else bool(happened)

        answer = in_a_child(interrupted)
        assert answer in (0, 1), f"the {number}th place"
        number += 17
    assert number > 100


@pytest.mark.parametrize("number", range(0, 160, 8))
@pytest.mark.parametrize("how", ["kill", "ctrl-c"])
def test_an_interrupted_deletion_of_a_writable_layer_leaves_it_whole_or_cleanup_finishes_it(
    room, open_store, how, number
):
    root = room / "docker"
    store = open_store(root, options=SMALL)
    rw = store.create_rw_layer("c", store.register(tarkit.T1).chain_id)
    rw.apply_diff(tarkit.T2)

    def interrupted():
        with interruption(number, act=(lambda: os._exit(1)) if how == "kill" else None):
            store.release_rw_layer(rw)
        return 0

    assert in_a_child(interrupted) in (0, 1)
    again = open_store(root, options=SMALL)
    assert worse_than_orphans(again) == []
    again.cleanup()
    assert again.verify() == []
    if "c" in again.mounts():
        with again.get_rw_layer("c").mounted() as path:
            assert sorted(os.listdir(path)) == ["a", "b", "d", "gone"]


@pytest.mark.time_limit(15)
def test_a_fork_elsewhere_does_not_keep_the_stores_lock(store, root):
    with FileMetadataStore(root / "image/overlay2/layerdb").exclusive():
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
    try:
        began = time.monotonic()
        store.register(tarkit.T1)
        assert time.monotonic() - began < 5
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


# ---- two stores on one root, as two processes have them ------------------------------------------------------
@pytest.fixture
def two(root, open_store):
    return open_store(root, options=SMALL), open_store(root, options=SMALL)


def test_what_another_one_deleted_meanwhile_is_stored_again(two):
    one, other = two
    layer = one.register(tarkit.T1)
    other.register(tarkit.T1).release()
    assert layer.release() != []
    assert tar_of(other.register(tarkit.T1)) == tarkit.T1
    assert other.verify() == []


def test_a_reference_to_a_layer_that_is_gone_does_not_delete_the_one_made_anew(two):
    one, other = two
    layer = one.register(tarkit.T1)
    old = other.get(layer.chain_id)
    layer.release()
    layer = one.register(tarkit.T1)
    with contextlib.suppress(LayerStoreError):
        other.release(old)
    assert tar_of(layer) == tarkit.T1
    assert one.verify() == []


def test_a_reference_to_a_mount_that_is_gone_does_not_delete_the_one_made_anew(two, root):
    one, other = two
    mount = one.create_rw_layer("c")
    old = other.get_rw_layer("c")
    # A program that knows no holds, dockerd for example, removes it.
    FileMetadataStore(root / "image/overlay2/layerdb").remove_mount("c")
    mount = one.create_rw_layer("c")
    mount.apply_diff(file("mine", b"m") + end())
    with contextlib.suppress(LayerStoreError):
        other.release_rw_layer(old)
    one.cleanup()
    assert one.verify() == []
    with mount.mounted() as path:
        assert os.listdir(path) == ["mine"]


def test_two_that_make_the_same_mount_at_once_do_not_take_it_from_each_other(two):
    one, other = two
    made = []
    opts = CreateRWLayerOpts(init_func=lambda path: made.append(other.create_rw_layer("c")))
    with pytest.raises(MountNameConflictError):
        one.create_rw_layer("c", "", opts)
    made[0].apply_diff(file("mine", b"m") + end())
    one.cleanup()
    assert other.verify() == []
    with made[0].mounted() as path:
        assert os.listdir(path) == ["mine"]


@pytest.mark.soak(60)
def test_cleanup_beside_register_and_release_disturbs_neither(open_store):
    store, until = open_store(options=SMALL), time.monotonic() + budget(1, 10)

    def again_and_again(work):
        while time.monotonic() < until:
            work()

    def layers():
        with store.register(tarkit.T1) as below, store.register(tarkit.T2, below.chain_id) as layer:
            assert tar_of(layer) == tarkit.T2

    at_once(*[lambda work=work: again_and_again(work) for work in (layers, layers, store.cleanup)])
    assert store.map() == {}


# ---- names and tars --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("length", [251, 252, 255])
def test_the_deletion_of_a_file_with_the_longest_name_is_committed(open_store, length):
    store, name = open_store(options=SMALL), "n" * length
    base = store.register(tarkit.with_pax_path(name, file, b"x") + file("kept", b"k") + end())
    rw = store.create_rw_layer("c", base.chain_id)
    with rw.mounted() as path:
        os.unlink(f"{path}/{name}")
    with rw.tar_stream() as stream:
        difference = stream.read()
    other = store.create_rw_layer("d", base.chain_id)
    other.apply_diff(difference)
    for layer in (store.create_rw_layer("e", rw.commit().chain_id), other):
        with layer.mounted() as path:
            assert os.listdir(path) == ["kept"]


@pytest.mark.parametrize("inner", [symlink("d/x", "t"), dir("d/x/"), file("d/x"), tarkit.fifo("d/x"), hardlink("d/x", "q")])
def test_verify_finds_nothing_where_a_device_replaced_a_directory(open_store, inner):
    store = open_store(options=SMALL)
    tar = file("q", b"q") + inner + tarkit.node("d", "c", 1, 3) + end()
    assert tar_of(store.register(tar)) == tar
    assert store.verify() == []


@pytest.mark.parametrize("bit", range(0, 16, 3))
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_a_damaged_member_of_a_compressed_stream_is_never_taken_for_its_end(open_store, unchanged, pack, bit):
    """Members that end where entries do: what is left would pass for a whole tar."""
    store = open_store(options=SMALL)
    store.register(tarkit.T1)
    first, rest = pack(file("a", b"a" * 5000)), bytearray(pack(file("b", b"b" * 5000) + end()))
    rest[bit // 8] ^= 1 << bit % 8
    with unchanged(), pytest.raises(TarFormatError):
        store.register(first + bytes(rest))


def test_a_buffer_that_is_written_to_meanwhile_gives_an_error_or_a_layer_that_comes_back(open_store):
    store, rng = open_store(options=SMALL), random.Random(8)
    parts = [file(f"f{i}", rng.randbytes(30000)) for i in range(600)]
    buffer, step, done = bytearray(b"".join(parts) + end()), len(parts[0]), threading.Event()

    def scribble():
        while not done.is_set():
            at = rng.randrange(len(parts)) * step + tarkit.BLOCK + 100
            buffer[at] = (buffer[at] + 1) & 255

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        layer = store.register(buffer)
    except LayerStoreError:
        return
    finally:
        done.set()
        thread.join()
    assert tarkit.diff_id(tar_of(layer)) == layer.diff_id
    assert store.verify() == []


# ---- a store of another writer ------------------------------------------------------------------------------------
def plant(path, target):
    """A link in the place of what is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()
    path.symlink_to(target)


def everything(store, root):
    """Use all that the store holds; give every byte that came out."""
    out = []

    def tried(work):
        with contextlib.suppress(LayerStoreError, OSError, ValueError):
            return work()

    def stream(made):
        with made() as tar:
            out.append(tar.read())

    tried(store.verify)
    for layer in (tried(store.map) or {}).values():
        for made in (layer.tar_stream, lambda at=layer: at.tar_stream_from("")):
            tried(lambda made=made: stream(made))
    for name in ("alone", "above"):
        rw = tried(lambda name=name: store.get_rw_layer(name))
        if rw is None:
            continue
        tried(lambda at=rw: at.apply_diff(file("evil", b"e") + whiteout("sub") + dir("sub/", mode=0o700) + end()))
        for work in (rw.size, rw.changes, rw.commit, rw.mount, rw.unmount, lambda at=rw: stream(at.tar_stream)):
            tried(work)
        tried(lambda at=rw: store.release_rw_layer(at))
    tried(lambda: store.register(file("new", b"n") + end()))
    tried(lambda: store.create_rw_layer("new"))
    tried(store.cleanup)
    return b"".join(out)


@pytest.mark.parametrize("who", ["base", "layer", "alone", "above"])
@pytest.mark.parametrize("what", ["diff", "merged", "work", "itself", "lower", "absolute lower", "short link"])
def test_planted_links_of_a_driver_directory_lead_nowhere(root, open_store, victim, who, what):
    store = open_store(options=SMALL)
    base = store.register(tarkit.T1)
    layer = store.register(tarkit.T2, base.chain_id)
    store.create_rw_layer("alone")
    store.create_rw_layer("above", layer.chain_id)
    ids = {"base": base.cache_id, "layer": layer.cache_id}
    ids |= {name: store.get_mount_id(name) for name in ("alone", "above")}
    store.close()
    directory = root / "overlay2" / ids[who]
    if what == "itself":
        plant(directory, victim)
    elif what == "lower":
        (directory / "lower").write_text("l/../../../victim")
    elif what == "absolute lower":
        (directory / "lower").write_text(os.fspath(victim))
    elif what == "short link":
        plant(root / "overlay2/l" / (directory / "link").read_text(), victim)
    else:
        plant(directory / what, victim)
    assert OUTSIDE.encode() not in everything(open_store(options=SMALL), root)


@pytest.mark.parametrize("what", ["mounts", "tmp"])
def test_planted_links_of_the_layerdb_lead_nowhere(root, open_store, victim, what):
    store = open_store(options=SMALL)
    store.register(tarkit.T1)
    store.create_rw_layer("alone")
    store.close()
    plant(root / "image/overlay2/layerdb" / what, victim)
    everything(open_store(options=SMALL), root)


# ---- the way out -----------------------------------------------------------------------------------------------------
class Writer:
    """A file whose write() returns what the test says."""

    def __init__(self, takes, says):
        self.takes, self.says, self.got = takes, says, bytearray()

    def write(self, data):
        taken = bytes(data)[: self.takes]
        self.got += taken
        return len(taken) if self.says == "the truth" else self.says


@pytest.mark.time_limit(10)
@pytest.mark.parametrize("says", [None, 0, -1, 1 << 40])
def test_a_writer_that_takes_nothing_or_lies_is_an_error_and_no_hang(store, says):
    writer = Writer(0, says)
    with store.register(tarkit.T1).tar_stream() as stream, pytest.raises(OSError):
        stream.copy_to(writer)
    with pytest.raises(OSError):
        disassemble(tarkit.T1, Writer(0, says))


def test_a_writer_that_takes_little_at_once_gets_everything(store):
    whole, writer = io.BytesIO(), Writer(7, "the truth")
    disassemble(tarkit.T1 + tarkit.T2, whole)
    disassemble(tarkit.T1 + tarkit.T2, writer)
    assert bytes(writer.got) == whole.getvalue()
    writer = Writer(1, "the truth")
    with store.register(tarkit.T1).tar_stream() as stream:
        assert stream.copy_to(writer) == len(tarkit.T1)
    assert bytes(writer.got) == tarkit.T1


def test_a_stream_closed_while_it_is_read_gives_its_mount_back(open_store, root):
    store = open_store(options=SMALL)
    base = store.register(tarkit.old_gnu_sparse("holes", [(2 << 30, b"x")], (2 << 30) + 1) + end())
    stream = store.register(tarkit.T2, base.chain_id).tar_stream_from("")

    def use_up():
        with open(os.devnull, "wb") as null, contextlib.suppress(ValueError, RuntimeError):
            stream.copy_to(null)

    thread = threading.Thread(target=use_up)
    thread.start()
    time.sleep(0.05)
    with contextlib.suppress(RuntimeError):
        stream.close()
    thread.join()
    stream.close()
    assert mounts_below(root) == []
