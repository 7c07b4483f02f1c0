"""paths.c: a path is a number, the same for the same path, and comes back as it was."""

import ctypes

import door
from hypothesis import given
from hypothesis import strategies as st


class Paths:
    def __init__(self) -> None:
        self.paths = door.ffi.new("lay_paths *")
        door.call("lay_paths_init", self.paths)
        self.alive = door.ffi.gc(self.paths, door.lib.lay_paths_free)

    def add(self, path: bytes) -> int:
        number = door.out("uint32_t *")
        memory = door.ffi.new("char[]", len(path) or 1)      # ends where the path does, for the address sanitizer
        door.ffi.memmove(memory, path, len(path))
        door.call("lay_paths_add", self.paths, memory, len(path), number)
        return number[0]

    def get(self, number: int) -> bytes:
        text = door.ffi.new("lay_text *")
        door.call("lay_paths_get", self.paths, number, text)
        found = door.ffi.buffer(text.p, text.len)[:]
        ctypes.CDLL(None).free(ctypes.c_void_p(int(door.ffi.cast("uintptr_t", text.p))))
        return found


names = st.sampled_from([b"a", b"b", b"usr", b"x" * 255, b"..", b"\xff"])
paths = st.lists(names, max_size=6).map(b"/".join)


@given(st.lists(paths, max_size=60))
def test_every_path_has_one_number_and_comes_back(many: list[bytes]) -> None:
    known, numbers = Paths(), {b"": 0}
    for path in many:
        assert numbers.setdefault(path, known.add(path)) == known.add(path)
    assert len(set(numbers.values())) == len(numbers)
    assert {path: known.get(number) for path, number in numbers.items()} == {path: path for path in numbers}


def test_twenty_thousand_files_of_one_deep_directory_cost_their_own_names() -> None:
    known, deep = Paths(), b"/".join([b"p" * 250] * 80)
    for number in range(20_000):
        known.add(deep + b"/%d" % number)
    assert known.get(known.add(deep + b"/17777")) == deep + b"/17777"
    took = known.paths.cap * door.ffi.sizeof("lay_path_node") + (known.paths.mask + 1) * 4 + known.paths.names.cap
    assert took < 64 * 20_000
