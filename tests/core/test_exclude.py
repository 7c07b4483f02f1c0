"""exclude.c: patterns fit names as Python's fnmatch says, and paths as MergedTree.find() does."""

import fnmatch
import os
from functools import cache

import door
from hypothesis import given, settings
from hypothesis import strategies as st

LETTERS = ["a", "b", "-", "]", "[", "!", "^", "\\", "*", "?", "\n", "é", "\udce9", "\udcf0", "😀"]
names = st.text(st.sampled_from(LETTERS), max_size=6)
patterns = st.lists(st.sampled_from([*LETTERS, "[!", "[a-", "]-", "[]", "**"]), max_size=7).map("".join)


def bytes_at(data: bytes):
    """Room of just so many bytes, so that a sanitizer sees a step beyond."""
    room = door.ffi.new("char[]", max(len(data), 1))
    door.ffi.memmove(room, data, len(data))
    return room


@settings(max_examples=500, deadline=None)
@given(patterns, names)
def test_one_name(pattern: str, name: str) -> None:
    p, n = os.fsencode(pattern), os.fsencode(name)
    assert door.lib.lay_glob_fits(bytes_at(p), len(p), bytes_at(n), len(n)) == fnmatch.fnmatchcase(os.fsdecode(n), os.fsdecode(p))


def test_a_star_costs_no_power_of_the_length() -> None:
    p, n = b"*a" * 30 + b"b", b"a" * 5000
    assert not door.lib.lay_glob_fits(p, len(p), n, len(n))


def fits(parts: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """By recursion: does a pattern fit a whole path?"""

    @cache
    def at(i: int, j: int) -> bool:
        if i == len(parts):
            return j == len(path)
        if parts[i] == "**":
            return at(i + 1, j) or (j < len(path) and at(i, j + 1))
        return j < len(path) and fnmatch.fnmatchcase(path[j], parts[i]) and at(i + 1, j + 1)

    return at(0, 0)


few = st.sampled_from(["a", "b", "ab"])
lists = st.lists(st.lists(st.sampled_from(["a", "b", "?", "*", "a*", "**", "**"]), min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=500, deadline=None)
@given(lists, st.lists(st.lists(few, min_size=1, max_size=5), min_size=1, max_size=5))
def test_whole_paths(given_: list[list[str]], paths: list[list[str]]) -> None:
    text = b"".join("/".join(parts).encode() + b"\0" for parts in given_)
    exclude = door.make("lay_exclude_new", "lay_exclude *", text, len(given_))
    for path in paths:
        door.lib.lay_exclude_enter(exclude, "/".join(path[:-1]).encode())
        expected = any(fits((*parts, "*") if parts[-1] == "**" else tuple(parts), tuple(path)) for parts in given_)
        assert door.lib.lay_exclude_fits(exclude, path[-1].encode()) == expected, (given_, path)


def test_no_pattern_fits_nothing() -> None:
    handle = door.ffi.new("lay_exclude **")
    door.call("lay_exclude_new", handle, b"", 0)
    door.lib.lay_exclude_enter(handle[0], b"a")
    assert not door.lib.lay_exclude_fits(handle[0], b"b")
