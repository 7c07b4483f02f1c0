"""pack.c: what goes in plain comes out of anybody's gzip or zstd again, wherever either side was cut."""

import gzip
import itertools
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import door
import pytest
import recipes
import variant

TEXT = b"".join(b"line %d of a text that packs well\n" % i for i in range(9_000))
PLAIN = {
    "nothing": b"", "a byte": b"a", "text": TEXT, "zeros": bytes(3_000_000), "noise": recipes.noise(300_001),
    "both": TEXT + recipes.noise(70_000) + TEXT,
}


@pytest.fixture(scope="module")
def by_zlib(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return variant.without_isal(tmp_path_factory.mktemp("pack"), "codec/pack.c")


@pytest.fixture(params=["ISA-L", "zlib", "zstd"])
def way(request: pytest.FixtureRequest, by_zlib: Any) -> tuple[Any, str]:
    return by_zlib if request.param == "zlib" else door.lib, "ZSTD" if request.param == "zstd" else "GZIP"


def packed(way: tuple[Any, str], pieces: Iterable[bytes], *, room: int = 65_536) -> bytes:
    lib, how = way
    ffi, err = door.ffi, door.new_error()
    handle = ffi.new("lay_packer **")
    if lib.lay_packer_open(handle, getattr(door.lib, f"LAY_PACK_{how}"), err):
        raise door.error_of(err)
    k = ffi.gc(handle[0], lib.lay_packer_free)
    out, used, got, done = ffi.new("uint8_t[]", room), ffi.new("size_t *"), ffi.new("size_t *"), ffi.new("int *")
    made = []
    for piece in itertools.chain(pieces, [None]):
        left, end = piece or b"", piece is None
        while left or (end and not done[0]):
            window = ffi.new("uint8_t[]", left or b"\0")      # of its own, so that a look beyond it shows
            if lib.lay_packer_run(k, window, len(left), end, out, room, used, got, done, err):
                raise door.error_of(err)
            assert used[0] <= len(left) and got[0] <= room
            assert used[0] or got[0] or done[0], "it goes nowhere"
            left = left[used[0] :]
            made.append(ffi.buffer(out, got[0])[:])
    assert lib.lay_packer_run(k, ffi.NULL, 0, 1, out, room, used, got, done, err) == 0 and done[0] and not got[0]
    assert lib.lay_packer_run(k, out, 1, 1, out, room, used, got, done, err) == door.lib.LAY_E_STATE
    return b"".join(made)


def plain(data: bytes) -> bytes:
    """By the tools of others."""
    if data[:2] == b"\x1f\x8b":
        return gzip.decompress(data)
    return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("room", [64, 65_536], ids=lambda room: f"room{room}")
def test_it_comes_out_again(way: tuple[Any, str], name: str, room: int) -> None:
    data = PLAIN[name]
    assert plain(packed(way, [data] if data else [], room=room)) == data


@pytest.mark.parametrize("step", [1, 1000, 65_537])
def test_it_comes_out_again_however_it_was_cut(way: tuple[Any, str], step: int) -> None:
    data = PLAIN["both"][: 40_000 if step == 1 else None]
    assert plain(packed(way, (data[at : at + step] for at in range(0, len(data), step)))) == data


def test_the_same_bytes_give_the_same_stream(way: tuple[Any, str]) -> None:
    first = packed(way, [TEXT, TEXT])
    assert first == packed(way, [TEXT, TEXT])
    assert len(first) < len(TEXT) / 4


def test_a_gzip_names_nothing_and_no_time(way: tuple[Any, str]) -> None:
    made = packed(way, [TEXT])
    if way[1] == "GZIP":
        assert made[:8] == b"\x1f\x8b\x08\0\0\0\0\0"          # no flags, no time
        assert made.count(b"\x1f\x8b\x08\0") == 1               # one member
    else:
        assert made[:4] == b"\x28\xb5\x2f\xfd" and made[4] & 4  # with a checksum


def test_two_at_once_do_not_mix(way: tuple[Any, str], tmp_path: Path) -> None:
    def halves(data: bytes) -> Iterable[bytes]:
        yield data[:5000]
        assert plain(packed(way, [TEXT])) == TEXT
        yield data[5000:]

    data = recipes.noise(20_000)
    assert plain(packed(way, halves(data))) == data
