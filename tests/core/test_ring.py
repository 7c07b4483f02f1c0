"""ring.c: in order, bounded, stopped at an offset; and ring_stress.c under the thread sanitizer."""

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import door
import pytest
import variant
from soak import budget

BLOCK = 1 << 20


class Ring:
    """A ring whose spans are the numbers of the blocks lent."""

    def __init__(self, readers: int = 1) -> None:
        handle = door.ffi.new("lay_ring **")
        door.call("lay_ring_new", handle, readers)
        self.ring = door.ffi.gc(handle[0], door.lib.lay_ring_free)
        self.bytes = door.ffi.new("uint8_t[]", 4096)

    def lend(self, n: int = 100) -> bool:
        return door.lib.lay_ring_lend(self.ring, self.bytes, n)

    def take(self, reader: int = 0) -> Any:
        span = door.ffi.new("lay_span *")
        return span if door.lib.lay_ring_take(self.ring, reader, span) else None

    def offsets(self, reader: int = 0) -> list[int]:
        return [span.offset for span in iter(lambda: self.take(reader), None)]


@pytest.fixture
def later() -> Any:
    """later(call) runs it in a thread and gives a function: has it come back? All must have in the end."""
    threads = []

    def start(call: Any) -> Any:
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        threads.append(thread)
        return lambda seconds=10.0: (thread.join(seconds), not thread.is_alive())[1]

    yield start
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_every_reader_sees_every_span_in_order() -> None:
    ring = Ring(readers=2)
    sizes = [1, 100, 4096, 7, 4000]
    assert all(ring.lend(n) for n in sizes)
    door.lib.lay_ring_close(ring.ring)
    assert ring.offsets(0) == ring.offsets(1) == [0, 1, 101, 4197, 4204]


def test_blocks_filled_and_spans_lent_come_in_one_order() -> None:
    ring = Ring()
    for text in (b"first", b"second"):
        block = door.lib.lay_ring_block(ring.ring, door.new_error())
        door.ffi.memmove(block, text, len(text))
        door.lib.lay_ring_push(ring.ring, len(text))
        assert ring.lend(10)
    door.lib.lay_ring_close(ring.ring)
    spans = []
    while (span := ring.take()) is not None:
        spans.append((span.offset, door.ffi.buffer(span.p, span.n)[:]))
    assert spans == [(0, b"first"), (5, bytes(10)), (15, b"second"), (21, bytes(10))]


def test_a_full_ring_waits_for_its_slowest_reader(later: Any) -> None:
    ring = Ring(readers=2)
    assert all(ring.lend() for _ in range(door.lib.LAY_RING_SLOTS))
    back = later(ring.lend)
    ring.take(0)
    ring.take(0)
    assert not back(0.1)
    ring.take(1)
    assert not back(0.1)  # the slower one still has the first span
    ring.take(1)
    assert back()


def test_a_held_span_keeps_its_slot_until_it_is_dropped(later: Any) -> None:
    ring = Ring()
    assert all(ring.lend() for _ in range(door.lib.LAY_RING_SLOTS))
    first = ring.take()
    door.lib.lay_ring_hold(ring.ring, first.slot)
    ring.take()
    back = later(ring.lend)
    assert not back(0.1)
    door.lib.lay_ring_drop(ring.ring, first.slot)
    assert back()


def test_a_reader_that_has_left_is_waited_for_no_more(later: Any) -> None:
    ring = Ring(readers=2)
    assert all(ring.lend() for _ in range(door.lib.LAY_RING_SLOTS))
    back = later(ring.lend)
    ring.take(0)
    ring.take(0)
    assert not back(0.1)
    door.lib.lay_ring_done(ring.ring, 1)
    assert back()


def test_an_empty_ring_waits_for_its_writer(later: Any) -> None:
    ring = Ring()
    seen: list[Any] = []
    back = later(lambda: seen.append(ring.offsets()))
    assert not back(0.1)
    ring.lend()
    assert not back(0.1)
    door.lib.lay_ring_close(ring.ring)
    assert back()
    assert seen == [[0]]


@pytest.mark.parametrize(
    "stop, seen", [(0, []), (1, [0]), (100, [0]), (101, [0, 100]), (250, [0, 100, 200]), (10_000, [0, 100, 200, 300])]
)
def test_a_stopped_ring_goes_on_up_to_its_offset(stop: int, seen: list[int]) -> None:
    ring = Ring()
    assert all(ring.lend() for _ in range(4))
    door.lib.lay_ring_stop(ring.ring, stop)
    assert door.lib.lay_ring_stopped(ring.ring)
    assert not ring.lend()
    assert door.lib.lay_ring_block(ring.ring, door.new_error()) == door.ffi.NULL
    door.lib.lay_ring_close(ring.ring)
    assert ring.offsets() == seen


def test_the_lowest_stop_wins() -> None:
    ring = Ring()
    assert all(ring.lend() for _ in range(4))
    for stop in (350, 150, 250):
        door.lib.lay_ring_stop(ring.ring, stop)
    assert ring.offsets() == [0, 100]


def test_stopping_wakes_the_writer_and_the_readers(later: Any) -> None:
    ring = Ring(readers=2)
    assert all(ring.lend() for _ in range(door.lib.LAY_RING_SLOTS))
    refused: list[bool] = []
    writing = later(lambda: refused.append(ring.lend()))
    for _ in range(door.lib.LAY_RING_SLOTS):
        ring.take(0)
    reading = later(lambda: refused.append(ring.take(0) is not None))
    assert not writing(0.05)
    assert not reading(0.05)
    door.lib.lay_ring_stop(ring.ring, 0)
    assert writing()
    assert reading()
    assert refused == [False, False]


def test_a_ring_takes_the_memory_of_its_slots_and_no_more() -> None:
    ring = Ring()
    blocks = set()
    for _ in range(5 * door.lib.LAY_RING_SLOTS):
        block = door.lib.lay_ring_block(ring.ring, door.new_error())
        blocks.add(int(door.ffi.cast("uintptr_t", block)))
        door.lib.lay_ring_push(ring.ring, BLOCK)
        assert ring.take().n == BLOCK
    assert len(blocks) <= door.lib.LAY_RING_SLOTS


@pytest.mark.own_sanitizers
@pytest.mark.soak(60, 600)
@pytest.mark.parametrize("sanitize", ["thread", "address,undefined"])
def test_threads_at_random_lose_nothing_and_race_nowhere(tmp_path: Path, sanitize: str) -> None:
    program = variant.program(
        tmp_path / "ring_stress", ["apply/ring.c"], Path(__file__).with_name("ring_stress.c"), sanitize=sanitize
    )
    environment = {
        key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "TSAN_OPTIONS", "ASAN_OPTIONS")
    }
    started = time.monotonic()
    done = subprocess.run(
        [program, str(budget(40, 1000))], env=environment, capture_output=True, check=False, text=True, timeout=budget(50, 500)
    )
    assert (done.returncode, done.stderr) == (0, ""), f"after {time.monotonic() - started:.1f} s"


def test_a_narrow_ring_holds_no_more_blocks_than_it_is_wide() -> None:
    ffi, lib = door.ffi, door.lib
    ring, span, err = door.make("lay_ring_new", "lay_ring *", 1), ffi.new("lay_span *"), door.new_error()
    lib.lay_ring_narrow(ring, 3)
    seen = set()
    for i in range(20):
        block = lib.lay_ring_block(ring, err)
        seen.add(int(ffi.cast("intptr_t", block)))
        block[0] = i
        lib.lay_ring_push(ring, 1)
        if i >= 1:      # the reader is one behind, and leaves a span with the next
            assert lib.lay_ring_take(ring, 0, span) and span.p[0] == i - 1
    assert len(seen) == 3
