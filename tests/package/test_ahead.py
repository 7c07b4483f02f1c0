"""Blocks made in another thread: the same ones in the same order, few at a time, and no thread that stays."""

import itertools
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore.streams.ahead import ahead


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@given(blocks=st.lists(st.binary(max_size=5), max_size=20), nested=st.booleans())
def test_the_same_blocks(blocks, nested):
    def make():
        yield from blocks

    found = ahead(ahead(make())) if nested else ahead(make())
    assert list(found) == blocks


def test_few_are_made_before_they_are_taken():
    made = []

    def make():
        for n in range(100):
            made.append(n)
            yield b"%d" % n

    blocks = ahead(make())
    next(blocks)
    time.sleep(0.1)
    assert len(made) <= 6
    blocks.close()
    assert len(made) <= 12


@pytest.mark.parametrize("error", [OSError(5, "x"), KeyboardInterrupt(), ValueError("x")])
def test_what_it_raises_is_raised_behind_what_came_before(error):
    def make():
        yield b"a"
        raise error

    blocks = ahead(make())
    assert next(blocks) == b"a"
    with pytest.raises(type(error)) as caught:
        next(blocks)
    assert caught.value is error


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_it_closes_what_makes_them(taken):
    closed = []

    def make():
        try:
            for _ in itertools.count():
                yield b"x"
        finally:
            closed.append(True)

    blocks = ahead(make())
    for _ in range(taken):
        next(blocks)
    blocks.close()
    assert closed == ([True] if taken else [])
