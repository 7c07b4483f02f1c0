"""tar_read.c, tar_head.c, tar_sparse.c: spans in, events out, the same wherever the spans are cut."""
import io
import itertools
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import door
import tarkit


class Entry(NamedTuple):
    name: bytes
    link: bytes
    type: bytes
    size: int
    stored: int
    mode: int
    owner: tuple[int, int]
    mtime: tuple[int, int]
    device: tuple[int, int]
    xattrs: tuple[tuple[bytes, bytes], ...]
    sparse: bool
    offset: int


class Reading(NamedTuple):
    entries: list[Entry]
    expanded: list[bytes]     # each entry's payload, holes as zeros
    framing: bytes            # all RAW spans
    spans: bytes              # all RAW and DATA spans, in order
    ended: bool


def read(tar: bytes, cuts: list[int] | None = None) -> Reading:
    """Feed tar in the windows that cuts make; raises CoreError."""
    ffi, lib = door.ffi, door.lib
    reader = ffi.gc(lib.lay_tar_new(), lib.lay_tar_free)
    item = ffi.new("lay_tar_item *")
    err = door.new_error()
    entries, expanded = [], []
    framing, spans = io.BytesIO(), io.BytesIO()
    bounds = [0, *sorted(cuts or []), len(tar)]
    for start, stop in itertools.pairwise(bounds):
        window = ffi.new("uint8_t[]", tar[start:stop] or b"\0")
        lib.lay_tar_feed(reader, window, stop - start)
        while (event := lib.lay_tar_next(reader, item, err)) != lib.LAY_TAR_NEED:
            if event == lib.LAY_TAR_BAD:
                raise door.error_of(err)
            if event in (lib.LAY_TAR_RAW, lib.LAY_TAR_DATA):
                assert item.n > 0
                piece = ffi.buffer(item.p, item.n)[:]
                spans.write(piece)
                if event == lib.LAY_TAR_RAW:
                    framing.write(piece)
                else:
                    payload = expanded[-1]
                    payload[item.file_offset : item.file_offset + item.n] = piece
            elif event == lib.LAY_TAR_ENTRY:
                e = item.entry
                xattrs = tuple((ffi.string(e.xattrs[i].name), ffi.buffer(e.xattrs[i].value, e.xattrs[i].len)[:]) for i in range(e.nxattrs))
                entries.append(Entry(ffi.string(e.name), ffi.string(e.link), e.type, e.size, e.stored, e.mode, (e.uid, e.gid),
                                     (e.mtime.sec, e.mtime.nsec), (e.dev_major, e.dev_minor), xattrs, e.sparse, e.offset))
                expanded.append(bytearray(e.size if e.stored or e.sparse else 0))
    door.call("lay_tar_eof", reader)
    return Reading(entries, [bytes(p) for p in expanded], framing.getvalue(), spans.getvalue(), lib.lay_tar_ended(reader))


def python_tar(format: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in (("d/f", b"hello"), ("n" * 90 + "/" + "m" * 90, b"x" * 1000), ("empty", b"")):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * (300 if format != tarfile.USTAR_FORMAT else 80)
        tar.addfile(link)
    return out.getvalue()


FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
TARS = {name: python_tar(format) for name, format in FORMATS.items()}


@pytest.mark.parametrize("format", FORMATS)
def test_entries_are_those_tarfile_wrote(format: str) -> None:
    seen = read(TARS[format])
    with tarfile.open(fileobj=io.BytesIO(TARS[format])) as tar:
        for entry, payload, info in zip(seen.entries, seen.expanded, tar.getmembers(), strict=True):
            assert (entry.name, entry.link, entry.size) == (info.name.encode(), info.linkname.encode(), info.size)
            if info.isreg():
                assert payload == tar.extractfile(info).read()
    assert seen.ended


@given(st.sampled_from(sorted(TARS)), st.data())
def test_spans_in_order_are_the_bytes_fed_wherever_they_are_cut(format: str, data: st.DataObject) -> None:
    tar = TARS[format]
    cuts = data.draw(st.lists(st.integers(0, len(tar)), max_size=40))
    seen = read(tar, cuts)
    assert seen.spans == tar
    assert seen == read(tar)


def test_one_byte_windows_give_the_same_entries() -> None:
    tar = TARS["pax"]
    assert read(tar, list(range(len(tar)))) == read(tar)


def header(name: str, *, typeflag: str | bytes = b"0", **fields: object) -> bytes:
    return tarkit.raw_header(name=name, typeflag=tarkit.raw(typeflag), **fields)


def head(name: str = "a", size: object = 0, **fields: object) -> bytes:
    return header(name, size=size, **fields)


@pytest.mark.parametrize("tar", [
    pytest.param(head("a", 5) + b"he", id="inside data"),
    pytest.param(head("a")[:300], id="inside a header"),
    pytest.param(bytes(512) + bytes(100), id="inside the second zero block"),
    pytest.param(header("x", size=30, typeflag="x") + b"30 path=", id="inside PAX records"),
])
def test_a_cut_stream_is_truncated_at_its_end(tar: bytes) -> None:
    with door.fails("LAY_E_TRUNCATED") as errors:
        read(tar)
    assert errors[0].offset == len(tar)
    assert "unexpected EOF" in errors[0].text


@pytest.mark.parametrize("tar", [b"", bytes(512), bytes(1024), head("a", 5) + b"hello", head("a", 5) + b"hello" + bytes(100)])
def test_a_stream_may_end_between_entries_and_inside_padding(tar: bytes) -> None:
    assert read(tar).spans == tar


def broken_checksum() -> bytes:
    block = bytearray(head("a"))
    block[0] ^= 1
    return bytes(block)


@pytest.mark.parametrize("block, where", [
    pytest.param(broken_checksum(), 0, id="checksum"),
    pytest.param(head("a", b"00000000009\0"), 0, id="octal with a 9"),
    pytest.param(head("a", tarkit.base256(-1, 12)), 0, id="negative size"),
    pytest.param(bytes(512) + head("a"), 512, id="header after one zero block"),
    pytest.param(head("a", typeflag="S"), 0, id="sparse without GNU's magic"),
    pytest.param(header("x", size=9, typeflag="x") + b"9 path=ab" + bytes(503), 512, id="PAX record without newline"),
    pytest.param(header("x", size=9, typeflag="x") + b"8 path=a\n" + bytes(503), 512, id="PAX record with a wrong length"),
    pytest.param(header("x", size=10, typeflag="x") + b"10 size=x\n" + bytes(502) + head("a"), 1024, id="PAX size that is no number"),
])
def test_a_malformed_header_is_refused_at_its_offset(block: bytes, where: int) -> None:
    with door.fails("LAY_E_TAR") as errors:
        read(block)
    assert errors[0].offset == where
    assert errors[0].text.startswith("archive/tar: invalid tar header")


@pytest.mark.parametrize("typeflag", ["x", "g", "L", "K"])
def test_an_extension_beyond_a_mebibyte_is_refused_before_its_bytes_come(typeflag: str) -> None:
    with door.fails("LAY_E_LIMIT") as errors:
        read(header("x", size=(1 << 20) + 1, typeflag=typeflag))
    assert "header field too long" in errors[0].text


def pax(*records: tuple[str, bytes]) -> bytes:
    data = b""
    for key, value in records:
        body = b" %s=%s\n" % (key.encode(), value)
        n = len(body) + 1
        while len(b"%d" % n) + len(body) != n:
            n = len(b"%d" % n) + len(body)
        data += b"%d" % n + body
    return header("PaxHeaders.0/a", size=len(data), typeflag="x") + data + bytes(-len(data) % 512)


def test_pax_values_replace_the_blocks_and_empty_ones_do_not() -> None:
    entry = read(pax(("path", b"long"), ("uid", b"3000000"), ("gid", b""), ("mtime", b"-1.25"), ("size", b"3"),
                     ("SCHILY.xattr.user.k", b"v\0w")) + head("a", 9, gid=7) + b"abc" + bytes(509)).entries[0]
    assert (entry.name, entry.owner, entry.size) == (b"long", (3000000, 7), 3)
    assert entry.mtime == (-2, 750_000_000)
    assert entry.xattrs == ((b"user.k", b"v\0w"),)


def test_a_global_header_is_an_entry_that_changes_no_other() -> None:
    data = b"12 uid=3000\n"
    tar = header("pax_global_header", size=len(data), typeflag="g") + data + bytes(500) + head("a")
    first, second = read(tar).entries
    assert (first.name, first.type, first.size) == (b"pax_global_header", b"g", 0)
    assert second.owner == (0, 0)


@pytest.mark.parametrize("typeflag", list("123456"))
def test_types_without_data_have_none_whatever_their_size_says(typeflag: str) -> None:
    seen = read(head("a", 5, typeflag=typeflag, linkname="t") + head("b"))
    assert [(e.name, e.size, e.stored) for e in seen.entries] == [(b"a", 5, 0), (b"b", 0, 0)]


def test_old_directories_are_known_by_their_slash() -> None:
    assert [e.type for e in read(head("a/", typeflag=b"\0") + head("b", typeflag=b"\0")).entries] == [b"5", b"0"]


SPARSE_DATA = b"x" * 700 + b"y" * 5
SPARSE_WHOLE = bytes(1024) + b"x" * 700 + bytes(5000 - 1724) + b"y" * 5 + bytes(995)


def sparse_tar(version: str) -> bytes:
    stored = SPARSE_DATA + bytes(-len(SPARSE_DATA) % 512)
    runs = [(1024, 700), (5000, 5)]
    common = [("GNU.sparse.realsize", b"6000"), ("GNU.sparse.name", b"s")]
    if version == "1.0":
        table = b"2\n" + b"".join(b"%d\n%d\n" % run for run in runs)
        table += bytes(-len(table) % 512)
        return pax(("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), *common) + head("f", len(table) + len(SPARSE_DATA)) + table + stored
    if version == "0.1":
        return pax(("GNU.sparse.size", b"6000"), ("GNU.sparse.numblocks", b"2"), ("GNU.sparse.name", b"s"),
                   ("GNU.sparse.map", b"1024,700,5000,5")) + head("f", len(SPARSE_DATA)) + stored
    pieces = [(key, b"%d" % n) for run in runs for key, n in zip(("GNU.sparse.offset", "GNU.sparse.numbytes"), run, strict=True)]
    return pax(("GNU.sparse.size", b"6000"), ("GNU.sparse.numblocks", b"2"), *pieces) + head("s", len(SPARSE_DATA)) + stored


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_files_expand_to_their_real_size(version: str) -> None:
    tar = sparse_tar(version)
    seen = read(tar, list(range(0, len(tar), 97)))
    assert [(e.name, e.size, e.stored, e.sparse) for e in seen.entries] == [(b"s", 6000, 705, True)]
    assert seen.expanded == [SPARSE_WHOLE]
    assert seen.spans == tar


@pytest.mark.parametrize("bad", [b"1024,700,1000,5", b"1024,700,5999,5", b"1024,700", b"1024,700,5000,6", b"-1,700,5000,5", b"1024,x,5000,5"])
def test_a_sparse_map_that_is_out_of_order_or_leaves_the_file_is_refused(bad: bytes) -> None:
    tar = pax(("GNU.sparse.size", b"6000"), ("GNU.sparse.numblocks", b"2"), ("GNU.sparse.map", bad)) + head("f", 705) + SPARSE_DATA
    with door.fails("LAY_E_TAR"):
        read(tar)


def test_a_sparse_size_of_exabytes_costs_nothing() -> None:
    tar = pax(("GNU.sparse.size", b"%d" % (1 << 62)), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", b"%d,5" % ((1 << 62) - 5))) + head("f", 5) + b"hello"
    ffi, lib = door.ffi, door.lib
    reader, item, err = ffi.gc(lib.lay_tar_new(), lib.lay_tar_free), ffi.new("lay_tar_item *"), door.new_error()
    window = ffi.new("uint8_t[]", tar)
    lib.lay_tar_feed(reader, window, len(tar))
    offsets = []
    while (event := lib.lay_tar_next(reader, item, err)) > lib.LAY_TAR_NEED:
        if event == lib.LAY_TAR_DATA:
            offsets.append(item.file_offset)
    assert offsets == [(1 << 62) - 5]


def test_an_error_is_sticky() -> None:
    ffi, lib = door.ffi, door.lib
    reader, item, err = ffi.gc(lib.lay_tar_new(), lib.lay_tar_free), ffi.new("lay_tar_item *"), door.new_error()
    for block in (b"A" * 512, head("a")):
        window = ffi.new("uint8_t[]", block)
        lib.lay_tar_feed(reader, window, 512)
        while (event := lib.lay_tar_next(reader, item, err)) == lib.LAY_TAR_RAW:
            pass
        assert event == lib.LAY_TAR_BAD


@given(st.binary(max_size=3000))
def test_no_bytes_at_all_make_the_reader_fall_over(tar: bytes) -> None:
    try:
        assert read(tar, [len(tar) // 2]).spans == tar
    except door.CoreError as error:
        assert error.code in ("LAY_E_TAR", "LAY_E_TRUNCATED", "LAY_E_LIMIT")
        assert 0 <= error.offset <= len(tar)
