"""locks.c: a mutex is its owner's, a claim its open file's, and the child of a fork finds free what its threads do not hold."""

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import door
import pytest


@pytest.fixture
def mutex() -> Iterator[Any]:
    made = door.ffi.new("lay_mutex *")
    door.lib.lay_mutex_open(made)
    yield made
    door.lib.lay_mutex_close(made)


def elsewhere(mutex: Any, wait_us: int = 0) -> list[int]:
    """What another thread gets when it tries to take the mutex. It keeps it."""
    got: list[int] = []
    until = door.lib.lay_locks_now() + wait_us if wait_us else 0
    thread = threading.Thread(target=lambda: got.append(door.lib.lay_mutex_take(mutex, until)))
    thread.start()
    thread.join()
    return got


def test_a_mutex_is_taken_twice_by_its_owner_and_released_as_often(mutex: Any) -> None:
    assert door.lib.lay_mutex_take(mutex, 0) == door.lib.lay_mutex_take(mutex, 0) == 1
    door.lib.lay_mutex_give(mutex)
    assert elsewhere(mutex) == [0]
    assert door.lib.lay_mutex_is_ours(mutex) == 1
    door.lib.lay_mutex_give(mutex)
    assert elsewhere(mutex) == [1]
    assert door.lib.lay_mutex_is_ours(mutex) == 0


def test_a_wait_ends_when_it_is_due(mutex: Any) -> None:
    door.lib.lay_mutex_take(mutex, 0)
    before = door.lib.lay_locks_now()
    assert elsewhere(mutex, 20_000) == [0]
    assert door.lib.lay_locks_now() - before >= 20_000
    door.lib.lay_mutex_give(mutex)


def test_a_wait_ends_when_the_mutex_is_free(mutex: Any) -> None:
    door.lib.lay_mutex_take(mutex, 0)
    got: list[int] = []
    end = door.lib.lay_locks_now() + 60_000_000
    waiter = threading.Thread(target=lambda: got.append(door.lib.lay_mutex_take(mutex, end)))
    waiter.start()
    door.lib.lay_locks_sleep(10_000)
    door.lib.lay_mutex_give(mutex)
    waiter.join()
    assert got == [1]


def locked(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_a_fork_frees_what_other_threads_hold_and_leaves_the_parent_its_claim(mutex: Any, room: Path) -> None:
    claim, fd = door.ffi.new("lay_claim *"), os.open(room, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    door.lib.lay_claim_enter(claim, fd)
    assert door.lib.lay_claim_is_of(fd, os.fsencode(room)) == 1
    assert door.lib.lay_claim_is_of(fd, os.fsencode(room.parent)) == 0
    held, over = threading.Event(), threading.Event()
    holder = threading.Thread(target=lambda: (door.lib.lay_mutex_take(mutex, 0), held.set(), over.wait()))
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        door.lib.lay_locks_after_fork()
        free = door.lib.lay_mutex_take(mutex, 0) == 1 and claim.fd == -1 and mutex.generation == 1
        door.lib.lay_claim_drop(claim)
        os._exit(0 if free else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert door.lib.lay_mutex_take(mutex, 0) == 0
    over.set()
    holder.join()
    assert locked(room), "closing the child's copy does not unlock"
    door.lib.lay_claim_drop(claim)
    door.lib.lay_claim_drop(claim)
    assert not locked(room)
