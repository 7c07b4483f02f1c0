"""What threads make once for all of them: shared, kept, one at a time; and an interrupt at any line leaves no one waiting."""

import linecache
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from layerstore.errors import AuthenticationError
from layerstore.registry import flights
from layerstore.registry.flights import Exclusive, Flights, Once


def nothing() -> None:
    """The check of a caller that is never stopped."""


def interrupted_at(line: int, work: Callable[[], Any]) -> bool:
    """Run something, with an interrupt at so many lines of the module. Return False if it was over before."""
    left = line

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != flights.__file__:
            return None
        # A trace sees the line of a `with` once more as the block ends; CPython hears no interrupt there.
        if event == "line" and not linecache.getline(flights.__file__, frame.f_lineno).strip().startswith("with "):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def soon(work: Callable[[], Any]) -> Any:
    """What something returns that must not wait; it is done by another thread."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(5)
    assert found, "it waits for one that was interrupted"
    return found[0]


@pytest.mark.parametrize("how", ["flights", "once", "exclusive"])
def test_an_interrupt_at_any_line_leaves_no_one_waiting(how: str) -> None:
    for line in range(1, 200):
        shared: dict[str, Any] = {"flights": Flights(), "once": Once(), "exclusive": Exclusive()}
        work = {
            "flights": lambda shared=shared: shared["flights"].get("key", nothing, lambda: 7),
            "once": lambda shared=shared: shared["once"].get("key", nothing, lambda: 7),
            "exclusive": lambda shared=shared: shared["exclusive"].do(nothing, lambda: 7),
        }[how]
        more = interrupted_at(line, work)
        assert soon(work) == 7
        if not more:
            assert line > 5
            return
    raise AssertionError("it has no end")


def test_an_interrupt_of_the_maker_lets_another_make() -> None:
    shared: Flights[int] = Flights()
    making, found = threading.Event(), []

    def interrupted() -> int:
        making.set()
        time.sleep(0.2)
        raise KeyboardInterrupt

    other = threading.Thread(target=lambda: making.wait(5) and found.append(shared.get("key", nothing, lambda: 8)))
    other.start()
    with pytest.raises(KeyboardInterrupt):
        shared.get("key", nothing, interrupted)
    other.join(5)
    assert found == [8]


def test_each_time_it_is_made_anew_and_once_it_is_kept() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(1)
        return len(made)

    shared: Flights[int] = Flights()
    assert [shared.get("key", nothing, make) for _ in range(2)] == [1, 2]
    once: Once[int] = Once()
    assert [once.get(key, nothing, make) for key in ("a", "a", "b")] == [3, 3, 4]
    assert (once.peek("a"), once.peek("c"), once.values()) == (3, None, [3, 4])


def test_an_error_is_kept_too_as_a_copy() -> None:
    once: Once[int] = Once()

    def fail() -> int:
        raise AuthenticationError("no", status=403, host="h:1")

    errors = []
    for _ in range(2):
        with pytest.raises(AuthenticationError) as raised:
            once.get("key", nothing, fail)
        errors.append(raised.value)
    assert errors[0] is not errors[1] and [(str(err), err.status, err.host) for err in errors] == [("no", 403, "h:1")] * 2
    assert once.peek("key") is None and once.values() == []


def test_one_thread_at_a_time() -> None:
    exclusive, inside, most, lock = Exclusive(), 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.01)
        with lock:
            inside -= 1

    threads = [threading.Thread(target=lambda: [exclusive.do(nothing, work) for _ in range(5)]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (inside, most) == (0, 1)


def test_one_who_waits_for_the_other_work_hears_that_it_is_stopped() -> None:
    exclusive, begun, ended = Exclusive(), threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: exclusive.do(nothing, lambda: begun.set() or ended.wait(10)))
    thread.start()
    assert begun.wait(5)

    def stopped() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exclusive.do(stopped, lambda: None)
    ended.set()
    thread.join(5)
