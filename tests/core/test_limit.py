"""limit.c and who asks it: each limit holds at its number and not below, in every sink, at the entry's offset."""

import base64
import contextlib
import json
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import door
import pytest
import sinks
import tarkit
from tarkit import end, file, hardlink, symlink

LATER = file("later") + end()
GOOD = file("good", b"g" * 600)

# limit: (the option, what it is set to, blocks just within, blocks just beyond)
CASES: dict[str, tuple[str, int, bytes, bytes]] = {
    "entries": ("max_entries", 3, file("a") + file("b"), file("a") + file("b") + file("c")),
    "path": ("max_path", 120, tarkit.with_pax_path("p" * 120), tarkit.with_pax_path("p" * 121)),
    "link": ("max_path", 120, tarkit.gnu_long("p" * 120, b"K") + symlink("s", ""), tarkit.gnu_long("p" * 121, b"K") + symlink("s", "")),
    "depth": ("max_depth", 4, file("a//./b/c/d/"), file("a/b/c/d/e")),
    "link depth": ("max_depth", 4, hardlink("l", "a/b/c/d"), hardlink("l", "a/b/c/d/e")),
    "names": ("max_names", 14, file("a" * 10), file("a" * 11)),
    "header": ("max_header", 64, tarkit.pax(b"64 c=" + b"c" * 58 + b"\n") + file("x"), tarkit.pax(b"65 c=" + b"c" * 59 + b"\n") + file("x")),
    "headers": ("max_headers", 1200, 2 * tarkit.gnu_long("n" * 80) + file("x"), 3 * tarkit.gnu_long("n" * 80) + file("x")),
    "global_headers": ("max_global_headers", 1200, 2 * tarkit.global_pax({"c": "c" * 60}), 3 * tarkit.global_pax({"c": "c" * 60})),
    "extents": ("max_extents", 5, tarkit.old_gnu_sparse("s", [(n * 9, b"x") for n in range(5)], 90),
                tarkit.old_gnu_sparse("s", [(n * 9, b"x") for n in range(6)], 90)),
    "extents 0.1": ("max_extents", 1, tarkit.pax_sparse_0_1("s", [(0, b"x")], 90), tarkit.pax_sparse_0_1("s", [(0, b"x"), (9, b"x")], 90)),
    "extents 1.0": ("max_extents", 1, tarkit.pax_sparse_1_0("s", [(0, b"x")], 90), tarkit.pax_sparse_1_0("s", [(0, b"x"), (9, b"x")], 90)),
    "xattrs": ("max_xattrs", 2, tarkit.xattrs({"user.a": b"", "user.b": b""}) + file("x"),
               tarkit.xattrs({"user.a": b"", "user.b": b"", "user.c": b""}) + file("x")),
    "xattr_size": ("max_xattr_size", 20, tarkit.xattrs({"user.a": b"v" * 14}) + file("x"), tarkit.xattrs({"user.a": b"v" * 15}) + file("x")),
}  # fmt: skip
FIELD = {"link": "path", "link depth": "depth", "extents 0.1": "extents", "extents 1.0": "extents"}


def limits(**given: int) -> Any:
    """The core's defaults, but for these."""
    made = door.ffi.new("lay_limits *", door.lib.lay_limits_default()[0])
    for name, value in given.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def places(room: Path) -> Iterator[Callable[[], dict[str, int]]]:
    """Each call: a fresh root, scratch directory and record."""
    with contextlib.ExitStack() as stack:

        def fresh() -> dict[str, int]:
            at = Path(tempfile.mkdtemp(dir=room))
            for name in ("root", "scratch"):
                (at / name).mkdir()
            opened = {name: stack.enter_context(sinks.directory(at / name)) for name in ("root", "scratch")}
            return {**opened, "record_fd": stack.enter_context(sinks.memory())}

        yield fresh


def read_all(tar: bytes, bounds: Any) -> None:
    """Through the reader alone."""
    ffi, lib = door.ffi, door.lib
    reader, item, err = ffi.gc(lib.lay_tar_new(), lib.lay_tar_free), ffi.new("lay_tar_item *"), door.new_error()
    lib.lay_tar_limit(reader, bounds)
    window = ffi.new("uint8_t[]", tar)
    lib.lay_tar_feed(reader, window, len(tar))
    while (event := lib.lay_tar_next(reader, item, err)) > 0:
        pass
    if event < 0:
        raise door.error_of(err)


@pytest.mark.parametrize("case", CASES)
def test_a_limit_holds_at_its_number_and_tells_option_and_place(case: str) -> None:
    option, number, within, beyond = CASES[case]
    bounds = limits(**{FIELD.get(case, case): number})
    read_all(GOOD + within + end(), bounds)
    with door.fails("LAY_E_LIMIT") as errors:
        read_all(GOOD + beyond + end(), bounds)
    assert errors[0].text.endswith(f"({option})")
    assert f"more than {number} " in errors[0].text
    assert len(GOOD) <= errors[0].offset < len(GOOD + beyond)
    assert errors[0].path
    read_all(GOOD + beyond + end(), limits(**{FIELD.get(case, case): 0}))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("workers", [0, 2])
def test_every_limit_of_the_reader_holds_for_a_whole_layer(case: str, workers: int, places: Callable[[], dict[str, int]]) -> None:
    option, number, _, beyond = CASES[case]
    bounds = limits(**{FIELD.get(case, case): number})
    with door.fails("LAY_E_LIMIT") as errors:
        sinks.apply(GOOD + beyond + LATER, workers=workers, limits=bounds, **places())
    assert errors[0].text.endswith(f"({option})")
    with sinks.memory() as fd, door.fails("LAY_E_LIMIT") as alone:
        sinks.apply(GOOD + beyond + LATER, record_fd=fd, limits=bounds)
    assert (alone[0].text, alone[0].offset, alone[0].path) == (errors[0].text, errors[0].offset, errors[0].path)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("field, option, number, within, beyond", [
    ("size", "max_size", 1000, file("a", b"a" * 400), file("a", b"a" * 401)),
    ("size", "max_size", 1000, symlink("a", "l" * 100) + file("b", b"b" * 300), symlink("a", "l" * 100) + file("b", b"b" * 301)),
    ("file_size", "max_file_size", 700, file("a", b"a" * 700), file("a", b"a" * 701)),
    ("file_size", "max_file_size", 700, tarkit.pax_sparse_1_0("s", [], 700), tarkit.pax_sparse_1_0("s", [], 701)),
    ("entries", "max_entries", 4, file("i/j/f"), file("i/j/k/f")),
    ("entries", "max_entries", 4, file("i/f") + file("i/g"), file("i/j/f") + file("i/g")),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_what_is_unpacked_is_bounded(
    field: str, option: str, number: int, within: bytes, beyond: bytes, workers: int, places: Callable[[], dict[str, int]]
) -> None:
    bounds = limits(**{field: number})
    sinks.apply(GOOD + within + end(), workers=workers, limits=bounds, **places())
    with door.fails("LAY_E_LIMIT") as errors:
        sinks.apply(GOOD + beyond + LATER, workers=workers, limits=bounds, **places())
    assert errors[0].text.endswith(f"({option})")
    assert errors[0].path
    assert len(GOOD) <= errors[0].offset < len(GOOD + beyond)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_plain_tar_is_bounded_however_it_comes(workers: int, places: Callable[[], dict[str, int]]) -> None:
    tar = file("a", b"a" * 3_000_000) + end()
    pack = zlib.compressobj(1, zlib.DEFLATED, 31)
    packed = pack.compress(tar) + pack.flush()
    for number in (len(tar) - 1, 2 << 20, 1000, len(tar)):
        for stream, step in ((tar, None), (tar, 70_000), (packed, None)):
            bounds = limits(tar_size=number)
            if number == len(tar):
                assert sinks.apply(stream, step=step, workers=workers, limits=bounds, **places()).tar_size == len(tar)
                continue
            with door.fails("LAY_E_LIMIT") as errors:
                sinks.apply(stream, step=step, workers=workers, limits=bounds, **places())
            assert (errors[0].offset, errors[0].text.endswith("(max_tar_size)")) == (number, True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_lent_tar_is_bounded_too_and_what_is_wrong_before_the_limit_comes_first(
    workers: int, places: Callable[[], dict[str, int]]
) -> None:
    tar = file("a", b"a" * 3_000_000) + end()
    for stream, code, offset in ((tar, "LAY_E_LIMIT", 2_000_000), (b"x" * 3_000_000, "LAY_E_TAR", 0)):
        memory = door.ffi.from_buffer(stream)
        with sinks.applying(workers=workers, limits=limits(tar_size=2_000_000), **places()) as a:
            with door.fails(code) as errors:
                door.call("lay_apply_lend", a, memory, len(stream))
                sinks.finish(a)
        assert errors[0].offset == offset


def test_the_record_is_bounded_also_in_its_second_pass(places: Callable[[], dict[str, int]]) -> None:
    once = b"".join(tarkit.whiteout(f"w{n}", b"w" * 5000) for n in range(20)) + end()
    twice = file("a", bytes(range(256)) * 100) + file("a", b"last") + end()
    for tar in (once, twice):
        with sinks.memory() as fd:
            where = {**places(), "record_fd": fd}
            sinks.apply(tar, **where)
            length = len(sinks.content(fd))
        for number in (length, length - 1):
            with sinks.memory() as fd:
                where = {**places(), "record_fd": fd}
                if number == length:
                    sinks.apply(tar, limits=limits(record=number), **where)
                    continue
                with door.fails("LAY_E_LIMIT") as errors:
                    sinks.apply(tar, limits=limits(record=number), **where)
                assert errors[0].text.endswith("(max_record)")
                assert 0 <= errors[0].offset <= len(tar)


def test_a_zstd_window_is_bounded() -> None:
    def frame(exponent: int) -> bytes:
        raw = b"hello"
        return b"\x28\xb5\x2f\xfd\x00" + bytes([(exponent - 10) << 3]) + (len(raw) << 3 | 1).to_bytes(3, "little") + raw

    def inflate(packed: bytes, window: int) -> bytes:
        z = door.make("lay_inflate_open", "lay_inflate *", door.lib.LAY_FORMAT_ZSTD)
        door.lib.lay_inflate_limit(z, window)
        source, out, got = door.ffi.new("uint8_t[]", packed), door.ffi.new("uint8_t[]", 100), door.out("size_t *")
        door.lib.lay_inflate_feed(z, source, len(packed))
        door.call("lay_inflate_next", z, out, 100, got)
        return bytes(door.ffi.buffer(out, got[0]))

    assert inflate(frame(20), 1 << 20) == inflate(frame(20), (2 << 20) - 1) == inflate(frame(27), 128 << 20) == b"hello"
    assert inflate(frame(28), 0) == b"hello"
    for exponent, window in ((21, 1 << 20), (20, (1 << 20) - 1), (28, 128 << 20), (31, 128 << 20)):
        with door.fails("LAY_E_LIMIT") as errors:
            inflate(frame(exponent), window)
        assert errors[0].text.endswith("(max_window)")


# ---- records that another program wrote -----------------------------------------------------------------------
def line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def packed(*parts: tuple[bytes, int]) -> bytes:
    """gzip of each part so many times over, itself small however much that is."""
    pack = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join(pack.compress(part) for part, times in parts for _ in range(times)) + pack.flush()


NAMED = line(type=1, name="f", payload=None, position=0)
HOSTILE = {
    "a line without end": packed((b'{"type":2,"payload":"', 1), (b"A" * (1 << 20), 40)),
    "blanks without end": packed((b" " * (1 << 20), 40)),
    "brackets without end": packed((b'{"x":', 1), (b"[" * (1 << 20), 40)),
    "empty segments": packed((line(type=2, payload="", position=0) * 1000, 40)),
    "lines of no type": packed((line(type=7) * 1000, 40)),
    "files of no size": packed((NAMED * 1000, 40)),
    "sizes beyond 63 bits": packed((line(type=1, name="f", size=2**62, payload="AAAAAAAAAAA=", position=0), 3)),
    "a segment behind 63 bits": packed((line(type=1, name="f", size=2**63 - 1, payload="", position=0), 1), (line(type=2, payload="AAAA"), 1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_record_that_says_nothing_at_length_is_refused(kind: str) -> None:
    with door.fails("LAY_E_SPLIT") as errors:
        sinks.lines(HOSTILE[kind])
    assert errors[0].text.startswith("the tar-split record ")


def test_a_record_may_hold_a_few_lines_of_nothing() -> None:
    tar = file("a") * 1
    record = sinks.record(tar) + line(type=2, payload="", position=9) * 900 + line(type=2, payload="AAAA", position=9) * 2
    assert [found.size for found in sinks.lines(record)] == [512, 0, 3, 3]


def test_restart_points_of_many_tiny_members_cost_little_and_are_right() -> None:
    """Members of one line each, 3000 of them: far more than ours ever are."""
    field = b"LS\x28\0"
    record, at = b"", 0
    for number in range(3000):
        body = zlib.compressobj(1, zlib.DEFLATED, -15)
        text = line(type=2, payload="QUJD", position=number)
        raw = body.compress(text) + body.flush()
        length = 10 + 2 + 44 + len(raw) + 8
        extra = length.to_bytes(8, "little") + at.to_bytes(8, "little") + number.to_bytes(8, "little") + b"\xff" * 8
        extra = field + extra + door.lib.lay_crc64_add(0, extra, len(extra)).to_bytes(8, "little")
        record += b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x2c\0" + extra + raw
        record += zlib.crc32(text).to_bytes(4, "little") + len(text).to_bytes(4, "little")
        at += 3
    with sinks.memory(record) as fd:
        reader = door.make("lay_split_reader_open", "lay_split_reader *", fd)
        for offset in (0, 3 * 1000, 3 * 2999, 3 * 2500):
            door.call("lay_split_reader_rewind", reader, offset)
            found: Any = sinks.next_line(reader)
            assert found.tar_offset <= offset < found.tar_offset + 3 * 100
            assert found.index * 3 == found.tar_offset


def test_a_missing_file_of_exabytes_is_told_at_once_and_the_rest_is_looked_at(places: Callable[[], dict[str, int]]) -> None:
    """A check passes over what it cannot have; it does not count it."""
    huge = tarkit.raw_header("huge", size=tarkit.base256(1 << 61, 12))
    parts = [line(type=2, payload=text(huge), position=0),
             line(type=1, name="huge", size=1 << 61, payload="AAAAAAAAAAA=", position=1),
             line(type=2, payload=text(tarkit.raw_header("gone")), position=2),
             line(type=1, name="gone", payload=None, position=3)]  # fmt: skip
    with sinks.memory(b"".join(parts)) as fd:
        found = sinks.problems(fd, places()["root"])
    assert [(kind, path) for kind, path, _ in found] == [(door.lib.LAY_PROBLEM_MISSING, b"huge"), (door.lib.LAY_PROBLEM_MISSING, b"gone")]
