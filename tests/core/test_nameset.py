"""nameset.c: a name that is in is found, however many there are."""

import door
from hypothesis import given
from hypothesis import strategies as st


class Names:
    def __init__(self) -> None:
        self.set = door.ffi.new("lay_nameset *")
        door.call("lay_nameset_init", self.set)
        self.alive = door.ffi.gc(self.set, door.lib.lay_nameset_free)

    def hash(self, name: bytes) -> int:
        return door.lib.lay_nameset_hash(self.set, door.ffi.new("char[]", name), len(name))

    def add_hash(self, value: int) -> bool:
        seen = door.out("bool *")
        door.call("lay_nameset_add", self.set, value, seen)
        return seen[0]

    def add(self, name: bytes) -> bool:
        return self.add_hash(self.hash(name))

    def has(self, name: bytes) -> bool:
        return door.lib.lay_nameset_has(self.set, self.hash(name))


def test_a_name_is_new_once() -> None:
    names = Names()
    assert not names.has(b"a")
    assert [names.add(b"a"), names.add(b"b"), names.add(b"a"), names.add(b"")] == [False, False, True, False]
    assert names.has(b"a")
    assert not names.has(b"c")


def test_thirty_thousand_names_are_all_found_and_no_other() -> None:
    names = Names()
    every = [b"usr/share/doc/%d/file" % i for i in range(30_000)]
    assert not any(names.add(name) for name in every)
    assert names.set.count == len(every)
    assert all(names.has(name) for name in every)
    assert not any(names.has(name + b"x") for name in every)


def test_hashes_that_would_share_a_slot_are_told_apart() -> None:
    names = Names()
    # zero is what an empty slot holds; the others have the same low bits
    values = [0, *(1 + (i << 20) for i in range(5000))]
    assert not any(names.add_hash(value) for value in values)
    assert all(names.add_hash(value) for value in values)
    assert not door.lib.lay_nameset_has(names.set, 1 + (5000 << 20))


@given(st.sets(st.binary(max_size=40), max_size=60))
def test_every_length_has_its_own_hash(names: set[bytes]) -> None:
    one = Names()
    assert len({one.hash(name) for name in names}) == len(names)


def test_each_set_has_a_key_of_its_own() -> None:
    assert Names().hash(b"a") != Names().hash(b"a")


def test_a_name_is_hashed_to_its_last_byte_and_no_further() -> None:
    names = Names()
    text = door.ffi.new("char[]", b"abcdefghijklmnopqrstuvwxyz")
    for n in range(27):
        assert door.lib.lay_nameset_hash(names.set, text, n) == names.hash(b"abcdefghijklmnopqrstuvwxyz"[:n])
