"""progress= of every long call: bytes done and of how many, at most ten times a second, from the calling thread."""

import gzip
import io
import os
import threading
import time

import pytest
import recipes
from disk import changed, disk_state
from tarkit import end, file

from layerstore import Done

TAR = b"".join(file(f"f{n}", recipes.noise(200_000, n + 1)) for n in range(100)) + end()


class Told(list):
    """What progress was called with, when and where."""

    def __init__(self):
        self.times, self.threads = [], set()

    def __call__(self, done):
        self.append(done)
        self.times.append(time.monotonic())
        self.threads.add(threading.get_ident())

    def check(self, last, total):
        assert self and self == sorted(self) and self[-1] == last
        assert all(isinstance(done, Done) and done.total == total for done in self)
        assert self.threads == {threading.get_ident()}
        between = [b - a for a, b in zip(self.times[:-2], self.times[1:-1], strict=True)]
        assert all(seconds > 0.09 for seconds in between)


def slowly(data):
    """A source of 40 pieces, a little late each."""
    stream = io.BytesIO(data)

    class Slow:
        def read(self, n):
            time.sleep(0.01)
            return stream.read(len(data) // 40)

    return Slow()


def test_register_tells_the_total_where_it_is_known(store, room):
    packed = gzip.compress(TAR, 1)
    (room / "a.tar").write_bytes(TAR)
    (room / "a.tar.gz").write_bytes(packed)
    with open(room / "a.tar", "rb") as opened:
        for source, last, total in (
            (TAR, len(TAR), len(TAR)), (room / "a.tar", len(TAR), len(TAR)), (opened, len(TAR), len(TAR)),
            (room / "a.tar.gz", len(packed), len(packed)), (slowly(TAR), len(TAR), None),
        ):  # fmt: skip
            told = Told()
            store.register(source, progress=told).release()
            told.check(last, total)


def test_so_do_copy_to_apply_diff_and_commit(store, room):
    layer = store.register(TAR)
    for out in (open(room / "out", "wb"), io.BytesIO()):  # noqa: SIM115
        with out, layer.tar_stream() as stream:
            stream.seek(512)
            told = Told()
            assert stream.copy_to(out, progress=told) == len(TAR) - 512
            told.check(len(TAR) - 512, len(TAR) - 512)
    with store.create_rw_layer("c", layer.chain_id) as box:
        told = Told()
        box.apply_diff(TAR, progress=told)
        told.check(len(TAR), len(TAR))
        told = Told()
        with box.commit(progress=told) as made:
            told.check(made.tar_stream().size, None)


class EnoughError(Exception):
    pass


def enough(done):
    raise EnoughError


def test_what_progress_raises_ends_the_call_and_leaves_nothing(store, root):
    layer = store.register(TAR)
    box = store.create_rw_layer("c", layer.chain_id)
    with box.mounted() as path, open(f"{path}/new", "wb") as out:
        out.write(b"x" * 1000)
    before = disk_state(root)
    descriptors = len(os.listdir("/proc/self/fd"))
    for call in (
        lambda: store.register(file("other") + TAR, layer.chain_id, progress=enough),
        lambda: store.register(slowly(file("other") + TAR), layer.chain_id, progress=enough),
        lambda: box.commit(progress=enough), lambda: store.verify(progress=enough),
    ):  # fmt: skip
        with pytest.raises(EnoughError):
            call()
        assert changed(before, disk_state(root)) == []
    with layer.tar_stream() as stream, open(os.devnull, "wb") as out, pytest.raises(EnoughError):
        stream.copy_to(out, progress=enough)
    assert len(os.listdir("/proc/self/fd")) == descriptors and threading.active_count() == 1


@pytest.mark.time_limit(20)
def test_a_pipe_nobody_writes_to_can_be_given_up(store, root):
    store.register(file("first") + end())
    before = disk_state(root)
    reader, writer = os.pipe()
    os.write(writer, TAR[:1000])
    told = []

    def later(done):
        told.append(done)
        if len(told) == 5:
            raise EnoughError

    with pytest.raises(EnoughError):
        store.register(reader, progress=later)
    assert changed(before, disk_state(root)) == [] and told[-1] == 1000
    os.close(reader)
    os.close(writer)
