"""The thread of a store: jobs in order, asked again where they cannot be done yet, and gone at the end."""

import _thread
import itertools
import os
import threading
import time

import pytest

from layerstore.disk.background import Background


def tasks():
    return len(os.listdir("/proc/self/task"))


def settled(most):
    """How many threads there are, once those that end have left /proc."""
    until = time.monotonic() + 10
    while tasks() > most and time.monotonic() < until:
        time.sleep(0.01)
    return tasks()


@pytest.fixture
def background():
    made = Background()
    yield made
    made.close()


def test_jobs_are_done_in_order_by_one_thread(background):
    done = []
    for number in range(100):
        background.submit(lambda number=number: done.append((number, threading.get_ident())) is None)
    background.drain()
    assert [number for number, _ in done] == list(range(100))


def test_a_job_that_cannot_be_done_is_asked_again(background):
    asked = []
    background.submit(lambda: asked.append(time.monotonic()) or len(asked) > 2)
    until = time.monotonic() + 10
    while len(asked) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(asked) == 3
    assert all(after - before > 0.2 for before, after in itertools.pairwise(asked))


def test_draining_asks_once_more_and_closing_forgets(background):
    asked, threads = [], tasks()
    background.submit(lambda: asked.append(1) is not None)
    background.drain()
    first = len(asked)
    background.drain()
    assert first >= 1 and len(asked) > first
    background.close()
    background.close()
    left = len(asked)
    time.sleep(0.4)
    assert len(asked) == left
    assert settled(threads) <= threads


def test_what_a_job_raises_is_logged_and_the_next_is_done(background, caplog):
    done = []
    background.submit(lambda: 1 / 0)
    background.submit(lambda: done.append(1) is None)
    background.drain()
    assert done and "division by zero" in caplog.text


def test_the_thread_ends_with_its_jobs(background):
    threads = tasks()
    background.submit(lambda: True)
    assert settled(threads) <= threads


@pytest.mark.parametrize("fault", ["refused", "no memory", "gone at once"])
def test_a_job_without_a_thread_is_done_with_the_next_or_when_drained(background, monkeypatch, fault):
    """A thread that finds no memory as it begins tells that to the thread that waits for it, if one does."""
    begin, done = _thread.start_new_thread, []

    def start(function, arguments):
        if fault == "gone at once":
            return begin(int, ())
        raise RuntimeError("can't start new thread") if fault == "refused" else MemoryError

    monkeypatch.setattr(_thread, "start_new_thread", start)
    background.submit(lambda: done.append(1) is None)
    background.drain()
    assert done == [1]
    background.submit(lambda: done.append(2) is None)
    monkeypatch.undo()
    background.submit(lambda: done.append(3) is None)
    until = time.monotonic() + 10
    while len(done) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert done == [1, 2, 3]


def test_a_job_may_drain_and_submit(background):
    done = []

    def job():
        background.drain()
        background.submit(lambda: done.append(1) is None)
        return True

    background.submit(job)
    until = time.monotonic() + 10
    while not done and time.monotonic() < until:
        time.sleep(0.01)
    assert done


def test_a_forked_child_has_no_jobs_and_may_have_its_own(background):
    waiting = threading.Event()
    background.submit(lambda: waiting.wait(10))
    background.submit(lambda: True)
    pid = os.fork()
    if not pid:
        done = []
        background.drain()
        background.submit(lambda: done.append(1) is None)
        background.close()
        os._exit(0 if done else 1)
    assert os.waitpid(pid, 0)[1] == 0
    waiting.set()
