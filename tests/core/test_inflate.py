"""inflate.c: gzip and zstd come out plain wherever they are cut, by ISA-L as by zlib, and never silently short."""

import ctypes
import gzip
import io
import itertools
import subprocess
import tarfile
import zlib
from collections.abc import Iterable
from typing import Any

import door
import pytest
import recipes
import tarkit
import variant
from hypothesis import given
from hypothesis import strategies as st

TEXT = b"".join(b"%d bottles, " % i for i in range(400)) + bytes(3000) + recipes.noise(2000)
SOURCES = ("codec/inflate.c", "codec/pack.c", "tar/tar_read.c", "tar/tar_head.c", "tar/tar_number.c", "tar/tar_pax.c", "tar/tar_sparse.c")


@pytest.fixture(scope="module")
def by_zlib(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return variant.without_isal(tmp_path_factory.mktemp("inflate"), *SOURCES)


@pytest.fixture(params=["built", "zlib"])
def lib(request: pytest.FixtureRequest) -> Any:
    """The core as it is built here, and as it is built without ISA-L."""
    return door.lib if request.param == "built" else request.getfixturevalue("by_zlib")


def inflate(lib: Any, pieces: Iterable[bytes], *, zstd: bool = False, room: int = 4096) -> bytes:
    """What the pieces, fed one after the other, come out as. A CoreError's .given is what came before it."""
    ffi, err, handle = door.ffi, door.new_error(), door.ffi.new("lay_inflate **")
    assert lib.lay_inflate_open(handle, door.lib.LAY_FORMAT_ZSTD if zstd else door.lib.LAY_FORMAT_GZIP, err) == 0
    z = ffi.gc(handle[0], lib.lay_inflate_free)
    out, got, plain = ffi.new("uint8_t[]", room), ffi.new("size_t *"), io.BytesIO()

    def failed() -> door.CoreError:
        error = door.error_of(err)
        error.given = plain.getvalue()  # type: ignore[attr-defined]
        return error

    for piece in pieces:
        window = ffi.new("uint8_t[]", piece or b"\0")
        lib.lay_inflate_feed(z, window, len(piece))
        while True:
            if lib.lay_inflate_next(z, out, room, got, err):
                raise failed()
            if not got[0]:
                break
            plain.write(ffi.buffer(out, got[0]))
    if lib.lay_inflate_eof(z, err):
        raise failed()
    return plain.getvalue()


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def member(
    plain: bytes, *, extra: bytes | None = None, name: bytes | None = None, comment: bytes | None = None,
    header_crc: bool = False, level: int = 6
) -> bytes:
    """One gzip member with the optional fields of RFC 1952."""
    flags = (header_crc << 1) | (extra is not None) << 2 | (name is not None) << 3 | (comment is not None) << 4
    head = b"\x1f\x8b\x08" + bytes([flags]) + b"\x01\x02\x03\x04\x02\x03"
    if extra is not None:
        head += len(extra).to_bytes(2, "little") + extra
    head += b"".join(text + b"\0" for text in (name, comment) if text is not None)
    if header_crc:
        head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
    engine = zlib.compressobj(level, zlib.DEFLATED, -15)
    body = engine.compress(plain) + engine.flush()
    return head + body + zlib.crc32(plain).to_bytes(4, "little") + (len(plain) & 0xFFFFFFFF).to_bytes(4, "little")


ALL_FIELDS = {"extra": b"e" * 300, "name": b"name", "comment": b"com\xffment", "header_crc": True}
MEMBERS = {
    "plain": member(TEXT), "stored": member(TEXT, level=0), "empty": member(b""),
    "extra": member(TEXT, extra=b"LS\x02\0ab"), "empty extra": member(TEXT, extra=b""),
    "name": member(TEXT, name=b"a.tar"), "empty name": member(TEXT, name=b""),
    "comment": member(TEXT, comment=b"hello"), "header crc": member(TEXT, header_crc=True),
    "all": member(TEXT, **ALL_FIELDS),
}


def in_many_blocks() -> bytes:
    """TEXT in a fixed, a dynamic and a stored block, with empty ones between."""
    engine = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = engine.compress(TEXT[:50]) + engine.flush(zlib.Z_FULL_FLUSH) + engine.compress(TEXT[50:7000])
    packed += engine.flush(zlib.Z_SYNC_FLUSH) + engine.flush(zlib.Z_SYNC_FLUSH)
    return packed + engine.compress(TEXT[7000:]) + engine.flush()


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("room", [1, 7, 100_000])
def test_a_member_with_any_fields_comes_out_plain(lib: Any, name: str, room: int) -> None:
    plain = gzip.decompress(MEMBERS[name])
    assert inflate(lib, [MEMBERS[name]], room=room) == plain
    assert inflate(lib, bytewise(MEMBERS[name]), room=room) == plain


def test_every_kind_of_block_is_inflated_one_byte_in_one_byte_out(lib: Any) -> None:
    packed = in_many_blocks()
    assert inflate(lib, bytewise(packed), room=1) == inflate(lib, [packed]) == TEXT


def test_all_members_are_one_stream(lib: Any) -> None:
    packed = MEMBERS["all"] + MEMBERS["empty"] + MEMBERS["stored"] + MEMBERS["plain"]
    for pieces in ([packed], bytewise(packed)):
        assert inflate(lib, pieces) == TEXT * 3


@pytest.mark.parametrize(
    "garbage", [b"\0", bytes(5000), b"garbage", b"\x1f", b"\x1fx", b"\x8b\x1f\x8b\x08", MEMBERS["plain"][1:]]
)
def test_what_follows_the_last_member_ends_the_stream(lib: Any, garbage: bytes) -> None:
    for pieces in ([MEMBERS["plain"] + garbage], bytewise(MEMBERS["plain"] + garbage), [MEMBERS["plain"], garbage]):
        assert inflate(lib, pieces) == TEXT


SMALL = member(b"hello, hello, hello" * 3, extra=b"xx", name=b"n", comment=b"c", header_crc=True)


@pytest.mark.parametrize("how", ["one window", "a byte a window"])
def test_a_member_cut_anywhere_is_truncated_and_what_came_is_right(lib: Any, how: str) -> None:
    plain = gzip.decompress(SMALL)
    for cut in range(len(SMALL)):
        with door.fails("LAY_E_TRUNCATED") as errors:
            inflate(lib, [SMALL[:cut]] if how == "one window" else bytewise(SMALL[:cut]))
        assert plain.startswith(errors[0].given)
        assert errors[0].offset == len(errors[0].given)


def test_a_second_member_cut_is_truncated_from_its_second_byte_on(lib: Any) -> None:
    for cut in range(2, len(SMALL)):
        with door.fails("LAY_E_TRUNCATED"):
            inflate(lib, [SMALL + SMALL[:cut]])


def test_a_flipped_bit_is_never_passed_as_good(lib: Any) -> None:
    plain = gzip.decompress(SMALL)
    filling = len(SMALL) - 9  # after the last block's end its byte has bits that mean nothing
    for bit in range(len(SMALL) * 8):
        broken = bytearray(SMALL)
        broken[bit // 8] ^= 1 << bit % 8
        try:
            assert inflate(lib, [bytes(broken)]) == plain
            assert bit // 8 == filling
        except door.CoreError as error:
            assert error.code in ("LAY_E_TAR", "LAY_E_TRUNCATED")


@pytest.mark.parametrize(
    "packed, code",
    [
        (b"", "LAY_E_TRUNCATED"), (b"no gzip at all", "LAY_E_TAR"), (b"\x1f\x8b\x07" + SMALL[3:], "LAY_E_TAR"),
        (b"\x1f\x8b\x08\xe0" + bytes(40), "LAY_E_TAR"), (b"\x1f\x8b\x08" + bytes(7) + b"\x07" * 40, "LAY_E_TAR")]
)
def test_what_is_no_member_is_refused(lib: Any, packed: bytes, code: str) -> None:
    for pieces in ([packed], bytewise(packed)):
        with door.fails(code):
            inflate(lib, pieces)


def test_a_failure_stays_and_comes_after_the_good_bytes(lib: Any) -> None:
    broken = MEMBERS["plain"][:-8] + bytes(8)
    with door.fails("LAY_E_TAR") as errors:
        inflate(lib, [broken], room=100)
    assert errors[0].given == TEXT
    assert "CRC-32" in errors[0].text


@given(st.binary(max_size=200), st.integers(1, 50), st.booleans())
def test_no_bytes_make_it_fall_over(by_zlib: Any, data: bytes, room: int, zstd: bool) -> None:
    magic = b"\x28\xb5\x2f\xfd" if zstd else b"\x1f\x8b\x08"
    for lib in (door.lib, by_zlib):
        for packed in (data, magic + data, magic + bytes(7) + data):
            try:
                inflate(lib, [packed[:20], packed[20:]], zstd=zstd, room=room)
            except door.CoreError as error:
                assert error.code in ("LAY_E_TAR", "LAY_E_TRUNCATED", "LAY_E_LIMIT")


@given(st.binary(max_size=400), st.lists(st.integers(0, 500), max_size=6), st.integers(1, 300), st.integers(0, 9))
def test_both_libraries_agree_at_any_cut(by_zlib: Any, plain: bytes, cuts: list[int], room: int, level: int) -> None:
    packed = member(plain * 3, level=level)
    bounds = [0, *sorted(min(cut, len(packed)) for cut in cuts), len(packed)]
    pieces = [packed[start:stop] for start, stop in itertools.pairwise(bounds)]
    assert inflate(door.lib, pieces, room=room) == inflate(by_zlib, pieces, room=room) == plain * 3


# ---- zstd -----------------------------------------------------------------------------------------
def zstd(*arguments: str, plain: bytes = TEXT) -> bytes:
    return subprocess.run(["zstd", "-q", "-c", *arguments], input=plain, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def frame() -> bytes:
    return zstd()


SKIPPED = b"\x5a\x2a\x4d\x18" + (7).to_bytes(4, "little") + b"skip me"
EMPTY_SKIPPED = b"\x50\x2a\x4d\x18" + bytes(4)


@pytest.mark.parametrize("room", [1, 100_000])
def test_frames_and_skippable_frames_are_one_stream(frame: bytes, room: int) -> None:
    packed = SKIPPED + frame + EMPTY_SKIPPED + SKIPPED + frame + zstd(plain=b"") + frame + SKIPPED
    for pieces in ([packed], bytewise(packed)):
        assert inflate(door.lib, pieces, zstd=True, room=room) == TEXT * 3


def test_a_stream_of_skippable_frames_is_empty() -> None:
    assert inflate(door.lib, [SKIPPED + EMPTY_SKIPPED], zstd=True) == b""


@pytest.mark.parametrize("options", [["-1", "--no-check"], ["-19"], ["--long=24"], ["--no-content-size"]], ids=str)
def test_frames_of_every_make(options: list[str]) -> None:
    assert inflate(door.lib, bytewise(zstd(*options)), zstd=True) == TEXT


def test_a_frame_cut_anywhere_is_truncated(frame: bytes) -> None:
    for cut in [*range(200), *range(200, len(frame), 37), len(frame) - 1]:
        for pieces in ([frame[:cut]], [SKIPPED + frame[:cut]] if cut else [SKIPPED[:9]]):
            with door.fails("LAY_E_TRUNCATED") as errors:
                inflate(door.lib, pieces, zstd=True)
            assert TEXT.startswith(errors[0].given)


def test_garbage_behind_a_frame_is_refused(frame: bytes) -> None:
    for garbage in (b"\0\0\0\0", b"garbage", MEMBERS["plain"]):
        with door.fails("LAY_E_TAR") as errors:
            inflate(door.lib, [frame + garbage], zstd=True)
        assert errors[0].given == TEXT


def test_a_flipped_bit_of_a_frame_is_never_passed_as_good() -> None:
    packed = zstd(plain=b"hello, hello, hello" * 5)
    for bit in range(len(packed) * 8):
        broken = bytearray(packed)
        broken[bit // 8] ^= 1 << bit % 8
        try:
            plain = inflate(door.lib, [bytes(broken)], zstd=True)
        except door.CoreError as error:
            assert error.code in ("LAY_E_TAR", "LAY_E_TRUNCATED", "LAY_E_LIMIT")
        else:
            # one bit of the magic makes no other magic; in the header some bits only change the window
            assert plain == b"hello, hello, hello" * 5


def test_a_window_beyond_the_limit_is_refused() -> None:
    huge = b"\x28\xb5\x2f\xfd\x00" + b"\xf8" + b"\x01\x00\x00"  # window descriptor: 2^41
    with door.fails("LAY_E_LIMIT"):
        inflate(door.lib, [huge], zstd=True)


# ---- what a stream is -----------------------------------------------------------------------------
def guess(data: bytes) -> Any:
    return door.lib.lay_format_guess(door.ffi.new("uint8_t[]", data or b"\0"), len(data))


@pytest.mark.parametrize(
    "data, name",
    [
        (b"", "PLAIN"), (bytes(512), "PLAIN"), (b"\x1f\x8b", "PLAIN"), (MEMBERS["plain"][:512], "GZIP"),
        (b"\x28\xb5\x2f\xfd", "ZSTD"), (SKIPPED, "ZSTD"), (b"BZh9", "BZIP2"), (b"\xfd7zXZ\0", "XZ"),
        (b"\xfd7zXZ", "PLAIN"), (b"\x04\x22\x4d\x18", "LZ4"), (tarkit.T1[:512], "PLAIN"),
        (tarkit.file(b"\x1f\x8b\x08gz")[:512], "PLAIN"), (tarkit.file(b"BZh9")[:512], "PLAIN"),
        (tarkit.file(b"\x28\xb5\x2f\xfd", chksum=1)[:512], "ZSTD")]
)
def test_the_first_bytes_say_what_a_stream_is_and_a_tar_header_is_a_tar(data: bytes, name: str) -> None:
    assert guess(data) == getattr(door.lib, f"LAY_FORMAT_{name}")


def test_formats_left_to_others_cannot_be_opened() -> None:
    for name in ("PLAIN", "BZIP2", "XZ", "LZ4"):
        with door.fails("LAY_E_UNSUPPORTED"):
            door.make("lay_inflate_open", "lay_inflate *", getattr(door.lib, f"LAY_FORMAT_{name}"))


# ---- one member, made -------------------------------------------------------------------------------
def made(lib: Any, plain: bytes, extra: bytes = b"", spare: int = 0) -> bytes:
    ffi, err = door.ffi, door.new_error()
    room = lib.lay_gzip_bound(len(plain)) + len(extra) + spare
    out, n = ffi.new("uint8_t[]", max(room, 1)), ffi.new("size_t *")
    code = lib.lay_gzip_member(
        ffi.new("uint8_t[]", plain or b"\0"), len(plain), extra or ffi.NULL, len(extra), out, room, n, err
    )
    if code:
        raise door.error_of(err)
    return ffi.buffer(out, n[0])[:]


@pytest.mark.parametrize(
    "plain", [b"", b"a", TEXT, bytes(300_000), recipes.noise(65_535), recipes.noise(65_536), recipes.noise(200_001)],
    ids=len
)
@pytest.mark.parametrize("extra", [b"", b"x", b"LS\x20\0" + bytes(32)], ids=len)
def test_a_member_made_here_is_read_by_python_and_by_us(lib: Any, plain: bytes, extra: bytes) -> None:
    packed = made(lib, plain, extra)
    assert gzip.decompress(packed) == plain == inflate(lib, [packed], room=100_000)
    assert packed[:10] == bytes([0x1F, 0x8B, 8, 4 if extra else 0, 0, 0, 0, 0, 0, 0xFF])
    assert not extra or packed[10 : 12 + len(extra)] == len(extra).to_bytes(2, "little") + extra


def test_a_member_does_not_depend_on_what_its_memory_held(lib: Any) -> None:
    """ISA-L takes a number from there for the window's bits: members became five times larger, by chance."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: what is freed is given again
    libc.mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD
    packed = set()
    for bits in (0, 1, 9, 13):
        held = [(libc.malloc(size), libc.malloc(64), size) for size in range(100_000, 600_000, 8000)]
        for at, _, size in held:
            ctypes.memset(at, 0, size)
            ctypes.memmove(at, bits.to_bytes(2, "little") * 64, 128)
            libc.free(at)
        packed.add(made(lib, TEXT))
        for _, between, _ in held:
            libc.free(between)
    assert len(packed) == 1


def test_a_member_has_too_little_room_or_too_much_extra(lib: Any) -> None:
    with door.fails("LAY_E_STATE"):
        made(lib, TEXT, spare=-1)
    with door.fails("LAY_E_LIMIT"):
        made(lib, TEXT, extra=b"x" * 65_536)


def test_tarfiles_gzip_is_inflated(lib: Any) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.add(__file__, "this")
    assert inflate(lib, [out.getvalue()]) == gzip.decompress(out.getvalue())


def test_a_gzip_that_adds_up_like_a_tar_header_is_gzip() -> None:
    """Seen by chance: its signed bytes add up to 0, which is what a blank checksum says; a tar says it in digits."""

    def member(data: bytes) -> bytes:
        return gzip.compress(data, 6, mtime=0)

    head = tarkit.raw_header("z", size=tarkit.base256(10 << 30, 12))
    stream = member(head) + member(bytes(16 << 20)) * 2
    found = 0
    for low in range(1 << 16):
        packed = stream[:4] + low.to_bytes(2, "little") + stream[6:512]
        if sum(byte - 256 if byte > 127 else byte for byte in packed[:148] + b" " * 8 + packed[156:]) == 0:
            found += 1
            assert door.lib.lay_format_guess(packed, 512) == door.lib.LAY_FORMAT_GZIP
            break
    assert found
    for name in (b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ"):
        assert door.lib.lay_format_guess(tarkit.file(name), 512) == door.lib.LAY_FORMAT_PLAIN
