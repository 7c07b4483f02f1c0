"""digest.c: SHA-256 is SHA-256, CRC-64 is Go's, and every variant of it is the plain one."""

import hashlib
import itertools
from typing import Any

import door
import pytest
import variant
from hypothesis import given
from hypothesis import strategies as st

NOISE = hashlib.shake_256(b"digest").digest(70_000)

# tar-split-format.md, 3; big-endian as a record stores them
KNOWN = {
    b"": "0000000000000000", b"hello": "3c3eeee2d8100000", b"foo": "3c3c303000000000", b"bar": "2dc416f000000000",
    b"123456789": "b90956c775a41001",
}


def reference(data: bytes, crc: int = 0) -> int:
    """The definition, bit by bit: reflected 0xD800000000000000, ones before, complement after."""
    register = ~crc & (1 << 64) - 1
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0xD800000000000000 if register & 1 else 0)
    return ~register & (1 << 64) - 1


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """digest.c as it is built on a machine without ISA-L."""
    return variant.without_isal(tmp_path_factory.mktemp("digest"))


@pytest.fixture(params=["built", "plain", "own"])
def crc64(request: pytest.FixtureRequest) -> Any:
    if request.param == "plain":
        return door.lib.lay_crc64_plain
    return door.lib.lay_crc64_add if request.param == "built" else request.getfixturevalue("own").lay_crc64_add


@pytest.mark.parametrize("data", KNOWN)
def test_crc64_of_the_table(crc64: Any, data: bytes) -> None:
    assert crc64(0, door.ffi.new("uint8_t[]", data), len(data)).to_bytes(8, "big").hex() == KNOWN[data]


def test_crc64_is_its_definition(crc64: Any) -> None:
    for n in (1, 7, 8, 9, 63, 64, 65, 128, 1000):
        assert crc64(0, door.ffi.new("uint8_t[]", NOISE[:n]), n) == reference(NOISE[:n])


def test_crc64_is_plain_at_every_alignment_and_length(crc64: Any) -> None:
    buffer = door.ffi.new("uint8_t[]", NOISE[:512])
    plain = door.lib.lay_crc64_plain
    for start in range(64):
        for n in [*range(40), *range(48, 81), *range(112, 145), 255, 256, 257, 400]:
            assert crc64(0, buffer + start, n) == plain(0, buffer + start, n), (start, n)


def test_crc64_goes_on_after_every_cut(crc64: Any) -> None:
    data = NOISE[:700]
    whole = reference(data)
    for cut in range(len(data) + 1):
        first = crc64(0, door.ffi.new("uint8_t[]", data[:cut]), cut)
        assert crc64(first, door.ffi.new("uint8_t[]", data[cut:]), len(data) - cut) == whole


def test_crc64_of_large_spans_is_plain(crc64: Any) -> None:
    buffer = door.ffi.from_buffer(NOISE)
    assert crc64(0, buffer, len(NOISE)) == door.lib.lay_crc64_plain(0, buffer, len(NOISE))


def test_crc64_of_nothing_needs_no_memory(crc64: Any) -> None:
    assert crc64(0x1234, door.ffi.NULL, 0) == 0x1234


@given(st.binary(max_size=50), st.integers(0, 40_000))
def test_zeros_that_are_not_there_count_as_if_they_were(data: bytes, n: int) -> None:
    assert door.lib.lay_crc64_zeros(reference(data), n) == reference(bytes(n), reference(data))


def test_a_hole_of_eight_exbibytes_costs_nothing() -> None:
    halves = door.lib.lay_crc64_zeros(door.lib.lay_crc64_zeros(0x1234, (1 << 62) + 5), (1 << 62) - 6)
    assert door.lib.lay_crc64_zeros(0x1234, (1 << 63) - 1) == halves


def test_builds_name_their_crc64(own: Any) -> None:
    assert door.ffi.string(door.lib.lay_build_crc64()) in (b"isa-l", b"pclmul", b"plain")
    assert door.ffi.string(own.lay_build_crc64()) in (b"pclmul", b"plain")
    assert door.ffi.string(door.lib.lay_build_sha256()).startswith(b"libcrypto")


@given(st.lists(st.integers(0, 3000), max_size=12), st.integers(0, 70_000))
def test_sha256_is_hashlibs_wherever_it_is_cut(cuts: list[int], length: int) -> None:
    data = NOISE[:length]
    state, out = door.ffi.new("lay_sha256 *"), door.ffi.new("uint8_t[32]")
    door.lib.lay_sha256_start(state)
    bounds = [0, *sorted(min(cut, length) for cut in cuts), length]
    for start, stop in itertools.pairwise(bounds):
        piece = data[start:stop]
        door.lib.lay_sha256_add(state, door.ffi.new("uint8_t[]", piece or b"\0"), len(piece))
    door.lib.lay_sha256_end(state, out)
    assert bytes(out) == hashlib.sha256(data).digest()
