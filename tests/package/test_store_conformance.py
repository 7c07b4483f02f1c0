"""The store's promises that only show when several do things at once, or when something fails half way.

What one caller sees of a healthy store stands in tests/package/test_store.py; here are threads and processes on
one root, counts of references after every kind of failure, the words of errors and logs, and wrong use.
"""

import logging
import os
import random
import re
import subprocess
import sys
import threading

import pytest
import recipes
import tarkit
from disk import changed, disk_state, mount_line, mounts_below
from tarkit import end, file

import layerstore
from layerstore import CreateRWLayerOpts, LayerDoesNotExistError, LayerNotRetainedError, LayerStoreError

UNKNOWN = "sha256:" + "1" * 64
SOURCES = [os.path.dirname(os.path.dirname(layerstore.__file__)), os.path.dirname(tarkit.__file__)]


class BoomError(Exception):
    pass


def drivers(root):
    return sorted(name for name in os.listdir(root / "overlay2") if len(name) >= 64)


def at_once(*jobs):
    """Run all jobs in threads that start together; gives their results, raises their first error."""
    gate, results, errors = threading.Barrier(len(jobs)), [None] * len(jobs), []

    def run(index, job):
        gate.wait()
        try:
            results[index] = job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def python(code, *arguments):
    """Another process with the package at hand; what it prints."""
    preface = f"import sys; sys.path[:0] = {SOURCES!r}\nimport layerstore, tarkit, errno, os\n"
    command = [sys.executable, "-c", preface + code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def tar_of(number, files=20):
    return b"".join(file(f"{number}-{i}", recipes.noise(500 + i, number * 100 + i + 1)) for i in range(files)) + end()


# ---- several at once ----------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [2, 8])
def test_threads_that_register_one_tar_get_one_layer(store, root, threads):
    tar = tar_of(1)
    for _ in range(5):
        layers = at_once(*[lambda: store.register(tar)] * threads)
        assert len({id(layer) for layer in layers}) == threads
        assert {layer.cache_id for layer in layers} == set(drivers(root))
        assert len(os.listdir(root / "overlay2/l")) == 1
        assert [len(layer.release()) for layer in layers] == [0] * (threads - 1) + [1]
        assert drivers(root) == []


@pytest.mark.parametrize("what", ["layers", "writable layers"])
def test_threads_that_are_first_in_a_fresh_store_all_succeed(open_store, room, what):
    """Whoever comes second must not stumble over the directories that the first is just making."""
    for number in range(25):
        store = open_store(room / str(number))
        if what == "layers":
            made = at_once(*[lambda n=n, s=store: s.register(tar_of(n, 1)) for n in range(4)])
        else:
            made = at_once(*[lambda n=n, s=store: s.create_rw_layer(str(n)) for n in range(4)])
        assert len({id(handle) for handle in made}) == 4
        store.close()


def test_threads_that_register_many_tars_get_each_its_own(store):
    base = store.register(tarkit.T1)
    tars = [tar_of(n) for n in range(8)]
    layers = at_once(*[lambda tar=tar: store.register(tar, base.chain_id) for tar in tars])
    for layer, tar in zip(layers, tars, strict=True):
        assert layer.diff_id == tarkit.diff_id(tar)
        assert layer.chain_id == tarkit.chain_id(base.chain_id, layer.diff_id)
        with layer.tar_stream() as stream:
            assert stream.read() == tar
    assert base.release() == []
    gone = [layer.release() for layer in layers]
    assert [len(records) for records in gone] == [1] * 7 + [2]


def test_a_slow_register_keeps_nobody_waiting(store):
    """Register holds no lock while it reads: a source may take for ever."""
    started, go_on = threading.Event(), threading.Event()

    class Slow:
        left = tarkit.T1

        def read(self, n):
            started.set()
            assert go_on.wait(30)
            piece, self.left = self.left, b""
            return piece

    slow = []
    thread = threading.Thread(target=lambda: slow.append(store.register(Slow())))
    thread.start()
    assert started.wait(30)
    other = store.register(tarkit.T2)
    rw = store.create_rw_layer("c", other.chain_id)
    assert set(store.map()) == {other.chain_id}
    assert store.release_rw_layer(rw) == []
    assert len(store.release(other)) == 1
    go_on.set()
    thread.join()
    assert slow[0].chain_id == tarkit.T1_DIFF_ID


def test_a_parent_released_while_its_child_registers_stays_below_it(store):
    base = store.register(tarkit.T1)

    class Releases:
        left = tarkit.T2

        def read(self, n):
            piece, self.left = self.left, b""
            if piece:
                assert base.release() == []
            return piece

    child = store.register(Releases(), base.chain_id)
    assert set(store.map()) == {tarkit.T1_DIFF_ID, child.chain_id}
    assert [gone.chain_id for gone in child.release()] == [tarkit.T2_ON_T1_CHAIN_ID, tarkit.T1_DIFF_ID]


def test_a_parent_released_while_its_child_fails_goes_with_the_failure(store, root):
    base = store.register(tarkit.T1)

    class Releases:
        def read(self, n):
            base.release()
            raise BoomError

    with pytest.raises(BoomError):
        store.register(Releases(), base.chain_id)
    assert store.map() == {}
    assert drivers(root) == []


@pytest.mark.time_limit(120)
def test_threads_that_register_get_and_release_at_random_leave_nothing(store, root):
    tars = [tar_of(n, 3) for n in range(3)]

    def life(seed):
        dice = random.Random(seed)
        held = []
        for _ in range(60):
            choice = dice.random()
            if choice < 0.4 or not held:
                held.append(store.register(dice.choice(tars)))
            elif choice < 0.6:
                try:
                    held.append(store.get(dice.choice(held).chain_id))
                except LayerDoesNotExistError:
                    raise AssertionError("a layer with a reference was gone") from None
            else:
                store.release(held.pop(dice.randrange(len(held))))
        for layer in held:
            store.release(layer)

    at_once(*[lambda seed=seed: life(seed) for seed in range(4)])
    assert store.map() == {}
    assert drivers(root) == []
    assert os.listdir(root / "overlay2/l") == []
    assert store.verify() == []


def test_one_of_many_threads_gets_the_name(store, root):
    base = store.register(tarkit.T1)
    won, lost = [], []

    def create():
        try:
            won.append(store.create_rw_layer("c", base.chain_id))
        except layerstore.MountNameConflictError:
            lost.append(1)

    at_once(*[create] * 8)
    assert (len(won), len(lost)) == (1, 7)
    assert drivers(root) == sorted([base.cache_id, store.get_mount_id("c")])
    assert store.release_rw_layer(won[0]) == []
    assert len(base.release()) == 1


def test_threads_share_the_count_of_a_mount(store):
    base = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", base.chain_id)
    paths = at_once(*[rw.mount] * 8)
    assert len(set(paths)) == 1
    assert len([p for p in mounts_below(store.root) if p == paths[0]]) == 1
    at_once(*[rw.unmount] * 7)
    assert mount_line(paths[0])
    rw.unmount()
    assert mount_line(paths[0]) is None


REGISTER = """
store = layerstore.Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for n in range(10):
    try:
        layer = store.register(tarkit.file(f"{n}", b"%d" % n * 5000) + tarkit.end())
    except OSError as error:
        assert error.errno in (errno.EEXIST, errno.ENOTEMPTY), error
        continue
    with layer.tar_stream() as stream:
        assert tarkit.diff_id(stream.read()) == layer.diff_id
print("done", flush=True)
os._exit(0)
"""


@pytest.mark.time_limit(120)
def test_processes_that_register_the_same_layers_on_one_root_do_not_corrupt_each_other(store, open_store, root):
    """The second to commit is handed the first one's layer, or told that it exists: never half of each."""
    store.close()
    children = [python(REGISTER, root) for _ in range(2)]
    for child in children:
        assert child.stdout.readline() == "ready\n", child.stderr.read()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    outcomes = [child.communicate(timeout=60) for child in children]
    assert [out for out, _ in outcomes] == ["done\n"] * 2, outcomes
    again = open_store()
    assert len(again.map()) == 10
    assert again.verify() == []
    assert len(drivers(root)) == 10
    assert len(os.listdir(root / "overlay2/l")) == 10


# ---- counts of references after a failure ---------------------------------------------------------------
class Breaks:
    def __init__(self, after):
        self.left = tarkit.T2[:after]

    def read(self, n):
        if not self.left:
            raise BoomError
        piece, self.left = self.left, b""
        return piece


FAILURES = {
    "source raises": lambda s, p: s.register(Breaks(600), p),
    "garbage": lambda s, p: s.register(b"A" * 1024, p),
    "cut": lambda s, p: s.register(file("x", b"hello")[:514], p),
    "unhandled type": lambda s, p: s.register(file("x", typeflag=b"7") + end(), p),
    "breakout": lambda s, p: s.register(file("../x") + end(), p),
    "progress raises": lambda s, p: s.register(tarkit.T2, p, progress=lambda done: 1 / 0),
    "wrong source": lambda s, p: s.register(3.5, p),
    "init raises": lambda s, p: s.create_rw_layer("c", p, CreateRWLayerOpts(init_func=lambda path: 1 / 0)),
    "storage option": lambda s, p: s.create_rw_layer("c", p, CreateRWLayerOpts(storage_opt={"foo": "1"})),
    "storage size": lambda s, p: s.create_rw_layer("c", p, CreateRWLayerOpts(storage_opt={"size": "10M"})),
    "no size": lambda s, p: s.create_rw_layer("c", p, CreateRWLayerOpts(storage_opt={"size": "10x"})),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_gives_back_the_reference_to_the_parent(store, root, name):
    base = store.register(tarkit.T1)
    for _ in range(3):
        with pytest.raises((LayerStoreError, ArithmeticError, BoomError, TypeError, ValueError, OSError)):
            FAILURES[name](store, base.chain_id)
    assert [gone.chain_id for gone in base.release()] == [tarkit.T1_DIFF_ID]
    assert (drivers(root), store.map(), store.mounts()) == ([], {}, [])
    assert os.listdir(root / "overlay2/l") == []
    assert os.listdir(root / "image/overlay2/layerdb/tmp") == []


def test_a_layer_that_exists_gives_back_the_second_reference_to_its_parent(store):
    base = store.register(tarkit.T1)
    first, second = store.register(tarkit.T2, base.chain_id), store.register(tarkit.T2, base.chain_id)
    assert base.release() == []
    assert first.release() == []
    assert [gone.chain_id for gone in second.release()] == [tarkit.T2_ON_T1_CHAIN_ID, tarkit.T1_DIFF_ID]


def test_an_init_that_raises_frees_the_name_and_the_parent(store, root):
    base = store.register(tarkit.T1)
    with pytest.raises(BoomError):
        store.create_rw_layer("c", base.chain_id, CreateRWLayerOpts(init_func=lambda path: _raise(BoomError())))
    assert [name for name in os.listdir(root / "overlay2") if name.endswith("-init")] == []
    assert mounts_below(root) == []
    rw = store.create_rw_layer("c", base.chain_id)
    assert base.release() == []
    assert len(store.release_rw_layer(rw)) == 1


def _raise(error):
    raise error


def test_an_exception_that_is_no_error_passes_through_init_and_leaves_nothing(store, unchanged):
    base = store.register(tarkit.T1)
    store.create_rw_layer("warm", base.chain_id)
    with unchanged(), pytest.raises(KeyboardInterrupt):
        store.create_rw_layer("c", base.chain_id, CreateRWLayerOpts(init_func=lambda path: _raise(KeyboardInterrupt())))
    assert mounts_below(store.root) == []


# ---- releasing what will not go ---------------------------------------------------------------------------
def test_a_layer_that_cannot_be_deleted_is_an_error_and_cleanup_finishes_it(store, root, stuck):
    base = store.register(tarkit.T1)
    child = store.register(tarkit.dir("a/") + file("a/x", b"x") + end(), base.chain_id)
    loosen = stuck(child)
    assert base.release() == []
    with pytest.raises(OSError):
        store.release(child)
    assert set(store.map()) == {base.chain_id}, "it is out of the map before it is deleted"
    names = os.listdir(root / "image/overlay2/layerdb/sha256")
    removing = [name for name in names if name.endswith("-removing")]
    assert len(removing) == 1
    assert re.fullmatch(child.chain_id.encoded + "-[0-9a-f]{64}-removing", removing[0])
    assert store.release(child) == []
    loosen()
    store.cleanup()
    assert os.listdir(root / "image/overlay2/layerdb/sha256") == [], "the base was released, and what needed it is gone"
    assert drivers(root) == []


def test_a_layer_that_cannot_be_deleted_is_logged_by_release_and_log(store, stuck, caplog):
    layer = store.register(tarkit.T1)
    loosen = stuck(layer)
    with caplog.at_level(logging.INFO):
        layerstore.release_and_log(store, layer)
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.getMessage().startswith(f"Error releasing layer {layer.chain_id}: ")
    loosen()


def test_a_writable_layer_that_cannot_be_deleted_may_be_released_again(store, root, stuck):
    base = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", base.chain_id)
    rw.apply_diff(tarkit.T1)
    loosen = stuck(store.get_mount_id("c"))
    with pytest.raises(OSError):
        store.release_rw_layer(rw)
    assert store.mounts() == ["c"]
    assert base.release() == []
    loosen()
    assert [gone.chain_id for gone in store.release_rw_layer(rw)] == [base.chain_id]
    assert drivers(root) == []


# ---- opening a root where something is wrong ---------------------------------------------------------------
DAMAGE = {
    "size": ("x", "failed to get size for"),
    "diff": ("nonsense", "failed to get diff id for"),
    "cache-id": ("", "failed to get cache id for"),
    "parent": ("", "failed to get parent for"),
    "descriptor.json": ("{", "failed to get descriptor for"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_layer_that_does_not_load_is_logged_with_its_reason(store, open_store, root, caplog, name):
    chain = store.register(tarkit.T1).chain_id
    store.close()
    text, reason = DAMAGE[name]
    (root / "image/overlay2/layerdb/sha256" / chain.encoded / name).write_text(text)
    with caplog.at_level(logging.DEBUG):
        assert open_store().map() == {}
    found = [r for r in caplog.records if chain in r.getMessage() or chain.encoded in r.getMessage()]
    assert found, caplog.messages
    assert any("Failed to load layer" in r.getMessage() and reason in r.getMessage() for r in found), caplog.messages
    assert max(r.levelno for r in found) < logging.ERROR


def test_a_mount_that_does_not_load_is_logged_and_its_name_is_free(store, open_store, root, caplog):
    base = store.register(tarkit.T1)
    store.create_rw_layer("c", base.chain_id)
    store.close()
    (root / "image/overlay2/layerdb/mounts/c/mount-id").write_text("short")
    with caplog.at_level(logging.DEBUG):
        again = open_store()
        assert again.mounts() == []
    assert any("invalid mount id value" in message for message in caplog.messages), caplog.messages
    rw = again.create_rw_layer("c", base.chain_id)
    assert (root / "image/overlay2/layerdb/mounts/c/mount-id").read_text() == again.get_mount_id("c")
    assert len(again.get_mount_id("c")) == 64
    again.release_rw_layer(rw)
    assert not (root / "image/overlay2/layerdb/mounts/c").exists()


def test_a_name_freed_by_a_failed_load_takes_no_init_id_of_the_old_mount(store, open_store, root):
    """The old files are overwritten; one that the new mount does not have must not be taken for its own."""
    base = store.register(tarkit.T1)
    store.create_rw_layer("c", base.chain_id, CreateRWLayerOpts(init_func=lambda path: None))
    store.close()
    (root / "image/overlay2/layerdb/mounts/c/mount-id").write_text("short")
    again = open_store()
    again.create_rw_layer("c")
    again.close()
    last = open_store()
    rw = last.get_rw_layer("c")
    assert rw.parent is None
    assert rw.changes() == []


def test_opening_does_not_ask_for_the_driver_directory(store, open_store, root):
    layer = store.register(tarkit.T1)
    store.close()
    (root / "overlay2" / layer.cache_id).rename(root / "moved")
    again = open_store()
    back = again.get(layer.chain_id)
    assert (back.size, back.diff_id) == (5, tarkit.T1_DIFF_ID)
    with pytest.raises(OSError):
        back.metadata()
    (root / "moved").rename(root / "overlay2" / layer.cache_id)
    with back.tar_stream() as stream:
        assert stream.read() == tarkit.T1


def test_opening_asks_neither_for_the_record_nor_for_ids_that_fit(store, open_store, root):
    """Chain IDs are names here: that they follow from the parent is verify's business."""
    layer = store.register(tarkit.T1)
    store.close()
    db = root / "image/overlay2/layerdb/sha256"
    (db / layer.chain_id.encoded).rename(db / ("2" * 64))
    (db / ("2" * 64) / "tar-split.json.gz").unlink()
    again = open_store()
    assert set(again.map()) == {"sha256:" + "2" * 64}
    assert again.verify() != []


def test_references_of_children_and_mounts_are_counted_anew_at_opening(store, open_store):
    one = store.register(tarkit.T1)
    two = store.register(tarkit.T2, one.chain_id)
    three = store.register(file("x") + end(), one.chain_id)
    store.create_rw_layer("c", two.chain_id)
    store.close()
    again = open_store()
    first, left, right = (again.get(layer.chain_id) for layer in (one, two, three))
    assert [again.release(layer) for layer in (first, left)] == [[], []]
    assert [gone.chain_id for gone in again.release(right)] == [three.chain_id]
    gone = again.release_rw_layer(again.get_rw_layer("c"))
    assert [g.chain_id for g in gone] == [two.chain_id, one.chain_id]


def test_cleanup_logs_what_it_skips_and_raises_nothing(store, root, caplog):
    keep = store.register(tarkit.T1)
    db = root / "image/overlay2/layerdb/sha256"
    for name in ("zz-x-removing", "abc-removing", keep.chain_id.encoded + "-1-removing"):
        (db / name).mkdir()
    (db / (keep.chain_id.encoded + "-1-removing") / "cache-id").mkdir()
    with caplog.at_level(logging.DEBUG):
        store.cleanup()
    assert store.verify(keep.chain_id) == []
    with keep.tar_stream() as stream:
        assert stream.read() == tarkit.T1


def test_cleanup_never_removes_a_live_layers_files_by_a_stale_record(store, root):
    """A `-removing` record that names the cache ID of a layer in use must not take it."""
    keep = store.register(tarkit.T1)
    db = root / "image/overlay2/layerdb/sha256"
    stale = db / ("4" * 64 + "-1-removing")
    stale.mkdir()
    (stale / "cache-id").write_text(keep.cache_id)
    store.cleanup()
    with keep.tar_stream() as stream:
        assert stream.read() == tarkit.T1


# ---- words ------------------------------------------------------------------------------------------------
def test_what_is_no_ancestor_is_refused_in_mobys_words(store):
    one = store.register(tarkit.T1)
    two = store.register(tarkit.T2, one.chain_id)
    for wrong in (two.chain_id, UNKNOWN, "x"):
        with pytest.raises(Exception, match="is not a parent") as caught:
            two.tar_stream_from(wrong)
        text = f"layer ID '{wrong}' is not a parent of the specified layer: cannot provide diff to non-parent"
        assert str(caught.value) == text


def test_a_tar_that_differs_from_its_record_is_told_in_mobys_words(store, root):
    layer = store.register(tarkit.T1)
    (root / "image/overlay2/layerdb/sha256" / layer.chain_id.encoded / "diff").write_text(tarkit.T2_DIFF_ID)
    store.close()
    with layerstore.Store(root) as again:
        with again.map()[layer.chain_id].tar_stream() as stream, pytest.raises(layerstore.CorruptLayerError) as caught:
            stream.read()
    assert str(caught.value).startswith(
        f"could not verify layer data for: {tarkit.T2_DIFF_ID}. This may be because internal files in the layer "
        "store were modified. Re-pulling or rebuilding this image may resolve the issue"
    )


def test_all_bytes_are_delivered_before_a_tar_is_found_to_differ(store, root):
    one = store.register(file("f", b"hello") + end())
    two = store.register(file("f", b"hello", mtime=5) + end())
    db = root / "image/overlay2/layerdb/sha256"
    record = "tar-split.json.gz"
    (db / one.chain_id.encoded / record).write_bytes((db / two.chain_id.encoded / record).read_bytes())
    got = b""
    with one.tar_stream() as stream, pytest.raises(layerstore.CorruptLayerError):
        while piece := stream.read(700):
            got += piece
    assert len(got) == 2048


@pytest.mark.parametrize(
    ("driver", "text"),
    [
        ("aufs", "ERROR: the aufs storage-driver has been deprecated and removed"),
        ("devicemapper", "ERROR: the devicemapper storage-driver has been deprecated and removed"),
        ("overlay", "ERROR: the overlay storage-driver has been deprecated and removed"),
        ("nonsense", "error initializing graphdriver: "),
        ("nonsense", ": nonsense"),
    ],
)
def test_a_driver_of_the_past_or_of_nobody_is_refused_by_name(root, driver, text):
    with pytest.raises(LayerStoreError) as caught:
        layerstore.Store(root, driver=driver)
    assert text in str(caught.value)


def test_the_name_of_a_missing_layer_is_told_as_moby_tells_it(store):
    for call in (store.get, store.verify, lambda chain: store.register(b"", chain)):
        with pytest.raises(LayerDoesNotExistError) as caught:
            call(UNKNOWN)
        assert str(caught.value).startswith("layer does not exist")


def test_an_empty_id_names_no_layer(store):
    with pytest.raises(LayerDoesNotExistError):
        store.get("")


# ---- mounts ---------------------------------------------------------------------------------------------------
@pytest.mark.skipif(os.path.exists("/sys/fs/selinux/enforce"), reason="a kernel with SELinux takes the label")
def test_a_label_the_kernel_does_not_know_is_an_error_and_leaves_no_mount(store, root):
    base = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", base.chain_id)
    for _ in range(2):
        with pytest.raises((OSError, LayerStoreError)):
            rw.mount("system_u:object_r:container_file_t:s0")
        assert mounts_below(root) == []
        assert not (root / "overlay2" / store.get_mount_id("c") / "merged").exists()
    path = rw.mount()
    assert rw.mount("the label of a later call is ignored") == path
    rw.unmount()
    rw.unmount()
    assert mounts_below(root) == []


def test_a_label_longer_than_a_page_is_an_error_and_leaves_no_mount(store, root):
    rw = store.create_rw_layer("c", store.register(tarkit.T1).chain_id)
    with pytest.raises((OSError, LayerStoreError)):
        rw.mount("x" * 5000)
    assert mounts_below(root) == []
    assert len(rw.mount()) > 1
    rw.unmount()
    assert mounts_below(root) == []


def test_init_is_given_a_writable_root_and_its_mount_is_gone_when_it_ends(store, root):
    base = store.register(tarkit.T1)
    seen = []

    def init(path):
        seen.append((path, mount_line(path)[2], os.access(path, os.W_OK), sorted(os.listdir(path))))

    store.create_rw_layer("c", base.chain_id, CreateRWLayerOpts(init_func=init))
    init_root = str(root / "overlay2" / (store.get_mount_id("c") + "-init") / "merged")
    assert seen == [(init_root, "overlay", True, ["a"])]
    assert mounts_below(root) == []


def test_an_init_without_parent_is_given_the_diff_directory(store, root):
    seen = []
    rw = store.create_rw_layer("c", "", CreateRWLayerOpts(init_func=lambda path: seen.append(path)))
    assert seen == [str(root / "overlay2" / (store.get_mount_id("c") + "-init") / "diff")]
    with rw.mounted() as path:
        assert path.endswith("merged")


def test_a_storage_option_map_of_the_caller_is_left_as_it_is(store):
    base = store.register(tarkit.T1)
    given = {}
    store.create_rw_layer("c", base.chain_id, CreateRWLayerOpts(storage_opt=given))
    assert given == {}


def test_mount_ids_are_64_hex_that_do_not_begin_with_twelve_digits(store):
    ids = []
    for number in range(20):
        store.create_rw_layer(str(number))
        ids.append(store.get_mount_id(str(number)))
    assert len(set(ids)) == 20
    assert all(re.fullmatch("[0-9a-f]{64}", text) and not text[:12].isdigit() for text in ids)


# ---- wrong use --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong", [None, "text", 5, object(), tarkit.T1_DIFF_ID])
def test_what_is_no_layer_cannot_be_released(store, wrong):
    store.register(tarkit.T1)
    for call in (store.release, store.release_rw_layer):
        with pytest.raises((TypeError, AttributeError, LayerNotRetainedError)):
            call(wrong)
    assert len(store.map()) == 1


def test_handles_of_the_other_kind_are_refused(store):
    layer = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", layer.chain_id)
    for call, wrong in ((store.release, rw), (store.release_rw_layer, layer)):
        with pytest.raises((TypeError, AttributeError, LayerNotRetainedError)):
            call(wrong)
    assert (len(store.map()), store.mounts()) == (1, ["c"])


def test_a_writable_handle_of_another_store_is_not_retained_here(open_store, room):
    here, there = open_store(), open_store(room / "other")
    here.create_rw_layer("c")
    stranger = there.create_rw_layer("c")
    with pytest.raises(LayerNotRetainedError):
        here.release_rw_layer(stranger)
    assert here.release_rw_layer(there.create_rw_layer("unknown here")) == []
    assert (here.mounts(), sorted(there.mounts())) == (["c"], ["c", "unknown here"])


def test_the_empty_layer_is_no_layer_of_a_store(store):
    empty = layerstore.EMPTY_LAYER
    assert (empty.chain_id, empty.diff_id) == (layerstore.EMPTY_LAYER_DIFF_ID,) * 2
    assert (empty.parent, empty.size, empty.diff_size, empty.metadata()) == (None, 0, 0, {})
    for stream in (empty.tar_stream(), empty.tar_stream_from("")):
        with stream:
            assert stream.read() == bytes(1024)
    with pytest.raises(Exception, match="can't get parent tar stream of an empty layer"):
        empty.tar_stream_from(UNKNOWN)
    assert store.map() == {}


def test_a_tar_of_zeros_is_the_empty_layer(store):
    zeros = store.register(bytes(1024))
    assert (zeros.diff_id, zeros.size) == (layerstore.EMPTY_LAYER_DIFF_ID, 0)


# ---- what verify says ---------------------------------------------------------------------------------------------
FAULTS = {
    "content of a file": (lambda diff, db: (diff / "a/f").write_bytes(b"jello"), ("content", "a/f")),
    "length of a file": (lambda diff, db: (diff / "a/f").write_bytes(b"hello!"), ("content", "a/f")),
    "file gone": (lambda diff, db: (diff / "a/f").unlink(), ("missing", "a/f")),
    "record gone": (lambda diff, db: (db / "tar-split.json.gz").unlink(), ("missing", "")),
    "size wrong": (lambda diff, db: (db / "size").write_text("77"), ("metadata", "")),
    "size unreadable": (lambda diff, db: (db / "size").write_text("x"), ("metadata", "")),
    "diff gone": (lambda diff, db: (db / "diff").unlink(), ("metadata", "")),
    "link wrong": (lambda diff, db: (diff.parent / "link").write_text("A" * 26), ("metadata", "")),
    "link gone": (lambda diff, db: (diff.parent / "link").unlink(), ("metadata", "")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_verify_names_a_fault_by_its_kind(store, root, diff_of, unchanged, name):
    layer = store.register(tarkit.T1)
    other = store.register(tarkit.T2)
    harm, (kind, path) = FAULTS[name]
    harm(diff_of(layer), root / "image/overlay2/layerdb/sha256" / layer.chain_id.encoded)
    with unchanged():
        found = store.verify()
    told = [(p.kind, p.path.rstrip("/")) for p in found if p.subject in (layer.chain_id, layer.cache_id)]
    assert (kind, path) in told or (kind == "metadata" and ("missing", path) in told), found
    assert all(problem.subject != other.chain_id for problem in found)
    assert all(problem.detail.strip() and "\n" not in problem.detail for problem in found)


def test_verify_names_a_broken_mount(store, root):
    base = store.register(tarkit.T1)
    store.create_rw_layer("c", base.chain_id)
    assert store.verify() == []
    (root / "image/overlay2/layerdb/mounts/c/parent").write_text("nonsense")
    assert [(p.kind, p.subject) for p in store.verify()] == [("metadata", "c")]


def test_verify_names_every_kind_of_orphan(store, root):
    keep = store.register(tarkit.T1)
    store.create_rw_layer("c", keep.chain_id)
    (root / "overlay2" / ("e" * 64) / "diff").mkdir(parents=True)
    (root / "overlay2/l" / ("Z" * 26)).symlink_to("../nowhere/diff")
    removing = root / "image/overlay2/layerdb/sha256" / ("5" * 64 + "-1-removing")
    removing.mkdir()
    found = store.verify()
    assert {p.kind for p in found} == {"orphan"}
    told = " ".join(f"{p.subject} {p.path} {p.detail}" for p in found)
    for name in ("e" * 64, "Z" * 26, "5" * 64):
        assert name in told
    store.cleanup()
    left = [p for p in store.verify() if p.subject == "e" * 64 or "Z" * 26 in f"{p.subject} {p.path} {p.detail}"]
    assert left == []


def test_a_register_of_what_exists_reads_its_source_to_the_end(store):
    store.register(tarkit.T1)
    reader, writer = os.pipe()
    with open(writer, "wb") as sink:
        sink.write(tarkit.T1 + b"JUNK")
    layer = store.register(reader)
    assert os.read(reader, 10) == b""
    os.close(reader)
    assert layer.diff_id == tarkit.diff_id(tarkit.T1 + b"JUNK")


def test_two_stores_on_one_root_see_the_same_bytes(open_store, root):
    """A second opening in one process neither harms the first nor is harmed by it."""
    one = open_store()
    layer = one.register(tarkit.T1)
    before = disk_state(root)
    two = open_store()
    assert set(two.map()) == {layer.chain_id}
    with two.get(layer.chain_id).tar_stream() as stream:
        assert stream.read() == tarkit.T1
    two.close()
    assert changed(before, disk_state(root)) == []
    with layer.tar_stream() as stream:
        assert stream.read() == tarkit.T1
