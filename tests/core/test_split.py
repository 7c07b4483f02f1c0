"""split_record.c, split_read.c: a tar becomes its record, line by line to the byte, and the record is read back."""

import base64
import gzip
import json
import resource
import zlib
from typing import Any

import door
import pytest
import recipes
import sinks
import tarkit
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import RECORDED, REFUSED, A, in_short
from sinks import Line, lines, record
from tarkit import dir, end, file

HELLO_CRC = 0x3C3EEEE2D8100000


@pytest.mark.parametrize("name", RECORDED)
def test_a_small_tar_is_recorded_so(name: str) -> None:
    tar, wanted = RECORDED[name]
    assert in_short(record(tar)) == wanted
    assert reassembled(record(tar), tar) == tar


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("step", [None, 1])
def test_a_tar_that_has_no_record_is_refused_where_it_stands(name: str, step: int | None) -> None:
    tar, code, offset, text = REFUSED[name]
    with door.fails(code) as errors:
        record(tar, step=step if len(tar) < 20_000 else step and 999)
    assert text in errors[0].text
    assert errors[0].offset == offset


def reassembled(plain: bytes, tar: bytes) -> bytes:
    """The tar as the record's lines and the payloads at the places they name give it."""
    out, crc64 = b"", door.lib.lay_crc64_plain
    for line in lines(plain):
        assert line.tar_offset == len(out)
        if line.segment is not None:
            out += line.segment
            continue
        payload = tar[line.tar_offset : line.tar_offset + line.size]
        assert line.size == 0 or line.crc == crc64(0, door.ffi.from_buffer(payload), len(payload))
        out += payload
    return out


@pytest.mark.parametrize("name", recipes.GOOD)
def test_every_recipes_record_gives_the_tar_again_and_is_the_same_at_any_cut(name: str) -> None:
    tar = recipes.GOOD[name]()
    plain = record(tar)
    assert reassembled(plain, tar) == tar
    for step in (1, 511, 100_000) if len(tar) < 20_000 else (100_003,):
        assert record(tar, step=step) == plain


@pytest.mark.parametrize("name", recipes.GOOD)
def test_a_packed_record_is_the_plain_one(name: str) -> None:
    tar = recipes.GOOD[name]()
    packed = record(tar, gzip=True)
    assert gzip.decompress(packed) == record(tar)
    assert lines(packed) == lines(record(tar))


# ---- the lines, 2.1 -------------------------------------------------------------------------------
def file_lines(tar: bytes) -> list[bytes]:
    return [line for line in record(tar).splitlines(keepends=True) if line.startswith(b'{"type":1')]


# What is recorded of an entry: its line, between type and position.
FILE_LINES = {
    "directory": (dir("a/"), '"name":"a/","payload":null'),
    "file": (file("a/f", b"hello"), '"name":"a/f","size":5,"payload":"PD7u4tgQAAA="'),
    "not UTF-8": (file(b"file-\xe4", b"hello"), '"name_raw":"ZmlsZS3k","size":5,"payload":"PD7u4tgQAAA="'),
    "no name": (file(""), '"payload":null'),
    "not cleaned": (file("./d//x/../f/"), '"name":"./d//x/../f/","payload":null'),
    "absolute": (file("/abs"), '"name":"/abs","payload":null'),
    # moby writes the size of a link and then cannot give the tar back
    "link with a size": (tarkit.hardlink("b", "a", size=5), '"name":"b","payload":null'),
    "checklist 4": (tarkit.pax({"path": 'a<b>&c\u2028"\\\t\x01\x7f\x08\x0cé'}) + file("x"),
                    r'"name":"a\u003cb\u003e\u0026c\u2028\"\\\t\u0001' + "\x7f" + r'\b\fé","payload":null'),
}  # fmt: skip


@pytest.mark.parametrize("what", FILE_LINES)
def test_file_lines_to_the_byte(what: str) -> None:
    entry, fields = FILE_LINES[what]
    assert file_lines(entry + end()) == [f'{{"type":1,{fields},"position":1}}\n'.encode()]


NO_FILE = {
    "whiteout": tarkit.whiteout("gone", b"payload"), "opaque": tarkit.opaque("d", b"payload"), "root": file("./", b"payload"),
    "sparse": tarkit.pax_sparse_0_1("s", [(0, b"pay"), (4096, b"load")], 5000),
}  # fmt: skip


@pytest.mark.parametrize("entry", NO_FILE.values(), ids=NO_FILE)
def test_payload_that_no_file_keeps_is_recorded_as_segments(entry: bytes) -> None:
    plain = record(entry + end())
    assert b'"size"' not in plain
    assert b"".join(line.segment or b"" for line in lines(plain)) == entry + end()


def test_trailing_bytes_come_in_segments_of_a_mebibyte() -> None:
    tail = recipes.noise((5 << 19) + 3)
    wanted = f"S512 F(a) S1024 S{1 << 20} S{1 << 20} S{(1 << 19) + 3}"
    assert in_short(record(file("a") + end() + tail)) == wanted
    assert in_short(record(file("a") + end() + tail, step=4999)) == wanted


# Freed memory stays in the address sanitizer's quarantine for a while.
PADDING_MIB, MAY_GROW_MIB = (64, 192) if door.sanitizers() else (512, 12)


def test_gigabytes_of_zero_padding_stay_in_small_memory() -> None:
    block = door.ffi.new("uint8_t[]", 1 << 20)
    with sinks.memory() as fd:
        split = door.make("lay_split_open", "lay_split *", fd, True, door.ffi.NULL)
        for pushed in range(PADDING_MIB):
            if pushed == 4:
                before = resident()
            door.call("lay_split_add", split, block, 1 << 20)
        door.call("lay_split_end", split)
        assert resident() - before < MAY_GROW_MIB << 20
        reader = door.make("lay_split_reader_open", "lay_split_reader *", fd)
        size = door.out("int64_t *")
        door.call("lay_split_reader_size", reader, size)
        assert size[0] == PADDING_MIB << 20


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


# ---- records of others ------------------------------------------------------------------------------
def segment_json(data: bytes, position: int = 0) -> str:
    return json.dumps({"type": 2, "payload": base64.b64encode(data).decode(), "position": position})


FILE_JSON = '{"type":1,"name":"a","size":5,"payload":"PD7u4tgQAAA=","position":1}'
WANTED = [
    Line(A[:512], None, 512, None, 0, 0), Line(None, b"a", 5, HELLO_CRC, 512, 1),
    Line(A[517:], None, 507, None, 517, 2),
]
PARTS = [segment_json(A[:512]), FILE_JSON, segment_json(A[517:], 2)]


AS_WRITTEN = "\n".join(PARTS)
OF_OTHERS = {
    "as written": AS_WRITTEN + "\n",
    "no newline at the end": AS_WRITTEN,
    "nothing between": "".join(PARTS),
    "any blanks between": " \t\r\n\n".join(["", *PARTS, ""]),
    "empty segment at the end": AS_WRITTEN + '\n{"type":2,"payload":"","position":3}\n',
    "segments of nothing": AS_WRITTEN + '\n{"type":2,"payload":null}\n{"type":2}\n',
    "keys in any case": AS_WRITTEN.replace('"type"', '"Type"').replace('"payload"', '"PAYLOAD"').replace('"name"', '"nAmE"'),
    "unknown keys": AS_WRITTEN.replace('"position":1', '"position":1,"mode":[1,{"x":"}"},null,2.5e3,true]'),
    "other order": AS_WRITTEN.replace(FILE_JSON, '{"position":1,"payload":"PD7u4tgQAAA=","size":5,"name":"\\u0061","type":1}'),
    "raw name": AS_WRITTEN.replace('"name":"a"', '"name_raw":"YQ=="'),
}


@pytest.mark.parametrize("text", OF_OTHERS.values(), ids=OF_OTHERS)
@pytest.mark.parametrize("pack", ["plain", "gzip", "member a byte"])
def test_records_of_others_are_read(text: str, pack: str) -> None:
    raw = text.encode()
    if pack == "gzip":
        raw = gzip.compress(raw)
    elif pack == "member a byte":
        raw = b"".join(gzip.compress(raw[i : i + 1]) for i in range(len(raw)))
    got = lines(raw)
    # passed-over lines count, so the last of these may stand at another index
    assert [line._replace(index=0) for line in got] == [line._replace(index=0) for line in WANTED]


def test_lines_of_no_known_type_are_passed_over() -> None:
    got = lines(
        f'{PARTS[0]}\n{{"type":3,"payload":5.5}}\n'.replace("5.5", '"QQ=="').encode() + b'{"type":0}\n{}\n'
        + f"{FILE_JSON}\n".encode()
    )
    assert [(line.segment, line.name) for line in got] == [(A[:512], None), (None, b"a")]


def test_an_empty_record_has_no_lines() -> None:
    assert lines(b"") == lines(gzip.compress(b"")) == lines(b" \n") == []


@pytest.mark.parametrize("name", [b"\xff\xfe/x", "é<>\u2028".encode(), b'a\\"\n'])
def test_names_come_back_as_they_were(name: bytes) -> None:
    assert [
        line.name for line in lines(record(tarkit.pax({"path": name}) + file("x") + end())) if line.segment is None
    ] == [name]


def test_an_empty_raw_name_is_none() -> None:
    name = b"n" * 20  # more, and a buffer of one byte is overrun with worse than the sanitizer's word for it
    (line,) = lines(b'{"type":1,"name":"' + name + b'","name_raw":""}')
    assert line.name == name


def test_a_link_that_docker_recorded_with_a_size_has_none() -> None:
    header = tarkit.hardlink("b", "a", size=5)
    docker = (
        segment_json(header) + '\n{"type":1,"name":"b","size":5,"payload":"AAAAAAAAAAA=","position":1}\n'
        + segment_json(end())
    )
    assert [(line.size, line.tar_offset) for line in lines(docker.encode())] == [(512, 0), (0, 512), (1024, 512)]


@pytest.mark.parametrize("crc", ['"PD7u4tgQAA=="', '""', "null"])
def test_a_crc_that_is_not_eight_bytes_is_none(crc: str) -> None:
    (line,) = lines(FILE_JSON.replace('"PD7u4tgQAAA="', crc).encode())
    assert line.crc is None


UNREADABLE = {
    "base64 without padding": ('{"type":2,"payload":"QQ"}', "base64"),
    "no base64": ('{"type":2,"payload":"Q*=="}', "base64"),
    "raw name": ('{"type":1,"name_raw":"Q"}', "base64"),
    "negative size": ('{"type":1,"name":"a","size":-1,"payload":null}', "negative"),
    "NUL in a name": ('{"type":1,"name":"a\\u0000b"}', "NUL"),
    "payload is a number": ('{"type":2,"payload":5}', "JSON"),
    "size is no whole number": ('{"type":1,"size":1e30}', "JSON"),
    "an array": ("[]", ""),
    "garbage behind": ('{"type":2}x', "JSON"),
    "cut": ('{"type":1,"name":"a"', "unexpected EOF"),
    "too large together": ('{"type":1,"size":9223372036854775807}' * 2, "2^63 bytes"),
}


@pytest.mark.parametrize("text, why", UNREADABLE.values(), ids=UNREADABLE)
def test_a_record_that_cannot_be_read_says_why(text: str, why: str) -> None:
    for raw in (text.encode(), gzip.compress(text.encode())):
        with door.fails("LAY_E_SPLIT") as errors:
            lines(raw)
        assert why in errors[0].text


def test_a_packed_record_cut_anywhere_is_refused() -> None:
    packed = record(tarkit.T1, gzip=True)
    for cut in range(1, len(packed)):
        with door.fails("LAY_E_SPLIT"):
            lines(packed[:cut])


@pytest.mark.parametrize("field", ["crc", "length"])
def test_a_packed_record_with_a_wrong_trailer_is_refused(field: str) -> None:
    packed = bytearray(record(tarkit.T1, gzip=True))
    packed[{"crc": -8, "length": -4}[field]] ^= 1
    with door.fails("LAY_E_SPLIT"):
        lines(bytes(packed))


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_fall_over(data: bytes) -> None:
    for raw in (data, b"{" + data, gzip.compress(data)):
        try:
            lines(raw)
        except door.CoreError as error:
            assert error.code == "LAY_E_SPLIT"


# ---- our own members --------------------------------------------------------------------------------
LONG = (
    b"".join(file(f"f{i:04}", recipes.noise(i % 700, i), mtime=i) for i in range(1500)) + end() + recipes.noise(3 << 20)
)


@pytest.fixture(scope="module")
def packed() -> bytes:
    return record(LONG, gzip=True)


def test_a_long_record_is_several_members_which_any_gzip_reader_joins(packed: bytes) -> None:
    assert packed.count(b"\x1f\x8b\x08\x04") > 3
    assert packed.startswith(bytes.fromhex("1f8b0804 00000000 00ff"))
    assert gzip.decompress(packed) == record(LONG)


def test_a_reader_rewinds_to_a_point_before_any_offset(packed: bytes) -> None:
    whole = lines(packed)
    starts = {line.tar_offset: line for line in whole}
    points = set()
    with sinks.memory(packed) as fd:
        reader = door.make("lay_split_reader_open", "lay_split_reader *", fd)
        for offset in [*range(0, len(LONG) + 1_000_000, 200_000), len(LONG) - 1, 2**62, 0]:
            door.call("lay_split_reader_rewind", reader, offset)
            line: Any = sinks.next_line(reader)
            points.add(line.tar_offset)
            assert line == starts[line.tar_offset]
            assert line.tar_offset <= offset
            rest = list(iter(lambda: sinks.next_line(reader), None)) if offset in (400_000, 0) else []
            assert [line, *rest] == whole[line.index :] or not rest
    assert len(points) > 3


@pytest.mark.parametrize("how", ["ours", "docker's", "plain"])
def test_a_record_knows_the_tars_length(packed: bytes, how: str) -> None:
    raw = {"ours": packed, "docker's": gzip.compress(gzip.decompress(packed)), "plain": gzip.decompress(packed)}[how]
    with sinks.memory(raw) as fd:
        reader, size = door.make("lay_split_reader_open", "lay_split_reader *", fd), door.out("int64_t *")
        door.call("lay_split_reader_size", reader, size)
        assert size[0] == len(LONG)
        door.call("lay_split_reader_rewind", reader, 700_000)
        assert sinks.next_line(reader).tar_offset <= 700_000


def test_a_wrong_seek_field_is_passed_over_and_the_right_bytes_are_found(packed: bytes) -> None:
    """Each bit of the first one, and some of another: a damaged field costs time, and gives no wrong bytes."""
    second = int.from_bytes(packed[16:24], "little") + 12
    for at in (*range(12, 56), *range(second + 4, second + 44, 3)):
        broken = packed[:at] + bytes([packed[at] ^ 0x10]) + packed[at + 1 :]
        with sinks.memory(broken) as fd:
            reader, size = door.make("lay_split_reader_open", "lay_split_reader *", fd), door.out("int64_t *")
            door.call("lay_split_reader_size", reader, size)
            assert size[0] == len(LONG), at
            door.call("lay_split_reader_rewind", reader, 700_000)
            line = sinks.next_line(reader)
            assert line.tar_offset <= 700_000
            if line.segment:
                assert LONG[line.tar_offset :].startswith(line.segment), at


def member(text: bytes, tar_offset: int, line: int, total: int, *, length: int = 0) -> bytes:
    """A gzip member with a seek field, whatever it claims. length: added to the bytes that it says it has."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    body = packer.compress(text) + packer.flush()
    numbers = b"".join(n.to_bytes(8, "little") for n in (64 + len(body) + length, tar_offset, line, total))
    numbers += door.lib.lay_crc64_add(0, numbers, len(numbers)).to_bytes(8, "little")
    return (b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x2c\0LS\x28\0" + numbers + body
            + zlib.crc32(text).to_bytes(4, "little") + len(text).to_bytes(4, "little"))  # fmt: skip


NO_TOTAL = 2**64 - 1
LIES = ["", "", "", "offset", "line", "length", "junk", "zeros", "cut", "total", "joined"]


SEGMENTS = [tarkit.raw_header("f", size=3), tarkit.raw_header("d/", size=700, typeflag=b"5"), bytes(9), bytes(512), bytes(300)]
TEXTS = [json.dumps(line).encode() + b"\n" for line in (
    *({"type": 2, "payload": base64.b64encode(segment).decode()} for segment in SEGMENTS),
    {"type": 1, "name": "f", "size": 3, "payload": "AAAAAAAAAAA="},
    {"type": 1, "name": "d/", "size": 700, "payload": "AAAAAAAAAAA="},
    {"type": 1, "name": "e", "payload": None},
)]  # fmt: skip


@st.composite
def forged(draw: Any) -> bytes:
    """A record of several members whose fields tell the truth, or lie in one way each."""
    texts = draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=16))
    whole = lines(b"".join(texts))
    offsets = [line.tar_offset for line in whole] + [whole[-1].tar_offset + whole[-1].size]
    made, at = b"", 0
    for _ in range(draw(st.integers(1, 5))):
        n, lie = draw(st.integers(0, len(texts) - at)), draw(st.sampled_from(LIES))
        part = b"".join(texts[at : at + n])
        total = NO_TOTAL if made else 7 if lie == "total" else offsets[-1]
        moved = draw(st.sampled_from([-512, 512, 3])) if lie == "offset" and offsets[at] else 0
        longer = draw(st.sampled_from([-8, 8, 70])) if lie == "length" else 0
        made += {"junk": b"garbage", "zeros": bytes(8)}.get(lie, b"") if made else b""
        made += member(part[:-1] if lie == "cut" else part, max(0, offsets[at] + moved), at + (lie == "line"), total, length=longer)
        if lie != "joined":
            at += n
    return made + (gzip.compress(b"".join(texts[at:])) if draw(st.booleans()) else b"")


def until_error(reader: Any) -> tuple[list[Any], bool]:
    found: list[Any] = []
    try:
        for line in iter(lambda: sinks.next_line(reader), None):
            found.append(line)
    except door.CoreError as err:
        assert err.code == "LAY_E_SPLIT"
        return found, True
    return found, False


@settings(max_examples=100 if door.sanitizers() else 400)
@given(forged(), st.lists(st.integers(0, 8000), min_size=1, max_size=4))
def test_wherever_a_reader_rewinds_it_reads_what_reading_from_the_start_gives(packed: bytes, offsets: list[int]) -> None:
    with sinks.memory(packed) as fd:
        whole, failed = until_error(door.make("lay_split_reader_open", "lay_split_reader *", fd))
        reader = door.make("lay_split_reader_open", "lay_split_reader *", fd)
        for offset in offsets:
            door.call("lay_split_reader_rewind", reader, offset)
            rest, also = until_error(reader)
            assert rest == whole[len(whole) - len(rest) :]
            assert also == failed
            assert all(line.tar_offset + line.size <= offset for line in whole[: len(whole) - len(rest)])


def test_the_claim_of_a_wrong_length_is_told_at_the_end() -> None:
    text = record(tarkit.raw_header("a") + bytes(1024))
    with sinks.memory(member(text, 0, 0, 1536)) as fd:
        assert until_error(door.make("lay_split_reader_open", "lay_split_reader *", fd))[1] is False
    with sinks.memory(member(text, 0, 0, 1537)) as fd:
        assert until_error(door.make("lay_split_reader_open", "lay_split_reader *", fd))[1] is True


# ---- repeats and plans ------------------------------------------------------------------------------
def split_of(tar: bytes, fd: int, plan: Any = None) -> Any:
    split = door.make("lay_split_open", "lay_split *", fd, False, plan or door.ffi.NULL)
    for window, n in sinks.windows(tar):
        door.call("lay_split_add", split, window, n)
    door.call("lay_split_end", split)
    return split


@pytest.mark.parametrize(
    "first, second, clean",
    [
        ("a", "./a", b"a"),
        ("d/", "d", b"d"),
        ("a//b/../c", "a/c", b"a/c"),
        ("", "./", b"."),
        ("a", "/a", b"a"),  # two names to moby, one place in the tree
        ("a", "b", None),
        ("a", "A", None),
    ],
)
def test_a_name_that_comes_again_is_known_however_it_is_spelt(first: str, second: str, clean: bytes | None) -> None:
    with sinks.memory() as fd:
        split = split_of(file(first) + file(second) + file("other") + end(), fd)
        assert door.lib.lay_split_has_repeats(split) == (clean is not None)
        assert clean is None or door.lib.lay_split_repeats(split, clean, len(clean))
        assert not door.lib.lay_split_repeats(split, b"other", 5)
        assert door.lib.lay_split_entries(split) == 3


def test_a_plan_inlines_payloads_and_leaves_out_lines() -> None:
    tar = file("a", b"first") + file("b", b"other") + file("a", b"last") + end()
    marks = door.ffi.new("uint8_t[]", [door.lib.LAY_PLAN_INLINE | door.lib.LAY_PLAN_UNNAMED, 0, 0])
    plan = door.ffi.new("lay_plan *", {"marks": marks, "count": 3})
    with sinks.memory() as fd:
        split_of(tar, fd, plan)
        plain = sinks.content(fd)
    assert in_short(plain) == "S1536 F(b,5) S1019 F(a,4) S1532"
    assert reassembled(plain, tar) == tar
