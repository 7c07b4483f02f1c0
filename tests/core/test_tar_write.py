"""tar_write.c: header blocks to the byte as archive-apply.md 8.5 has them, and every reader reads what went in."""

import io
import tarfile
from typing import Any, NamedTuple

import door
import pytest
import tarkit
from hypothesis import given
from hypothesis import strategies as st
from test_tar_read import read


class Head(NamedTuple):
    name: bytes
    link: bytes = b""
    type: bytes = b"0"
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    dev_major: int = 0
    dev_minor: int = 0
    capability: bytes | None = None


def format(h: Head) -> bytes:
    ffi = door.ffi
    name, link = ffi.new("char[]", h.name), ffi.new("char[]", h.link)
    capability = ffi.NULL if h.capability is None else ffi.new("uint8_t[]", h.capability or b"\0")
    head = ffi.new(
        "lay_tar_head *",
        {
            "name": name,
            "name_len": len(h.name),
            "link": link,
            "link_len": len(h.link),
            "type": h.type,
            "mode": h.mode,
            "uid": h.uid,
            "gid": h.gid,
            "size": h.size,
            "mtime": h.mtime,
            "dev_major": h.dev_major,
            "dev_minor": h.dev_minor,
            "capability": capability,
            "capability_len": len(h.capability or b""),
        },
    )
    out, cap, n = ffi.new("uint8_t **"), ffi.new("size_t *"), ffi.new("size_t *")
    try:
        door.call("lay_tar_format", head, out, cap, n)
        assert n[0] <= cap[0]
        return ffi.buffer(out[0], n[0])[:]
    finally:
        libc().free(out[0])


def libc() -> Any:
    if not hasattr(libc, "opened"):
        import cffi

        made = cffi.FFI()
        made.cdef("void free(void *);")
        libc.opened = made.dlopen(None)  # type: ignore[attr-defined]
    return libc.opened  # type: ignore[attr-defined]


def pax(name: str, records: dict[str, bytes]) -> bytes:
    """An extended header as Go writes it: no mode, no owner, no time, no device fields."""
    return tarkit.pax(records, name=name, mode=0, devmajor=b"", devminor=b"")


# ---- to the byte ----------------------------------------------------------------------------------


def test_a_header_block_to_the_byte() -> None:
    block = bytearray(512)
    block[0:1] = b"f"
    block[100:148] = b"0000644\x000001750\x000001747\x0000000000005\x0014371143400\x00"
    block[148:156] = b"%06o\x00 " % (sum(block) + 8 * 32 + ord("0") + sum(b"ustar00") + 2 * sum(b"0000000"))
    block[156:157] = b"0"
    block[257:265] = b"ustar\x0000"
    block[329:345] = b"0000000\x000000000\x00"
    assert format(Head(b"f", mode=0o644, uid=1000, gid=999, size=5, mtime=0o14371143400)) == bytes(block)


PREFIX, REST = "p" * 155, "n" * 100


@pytest.mark.parametrize(
    "head, wanted",
    [
        pytest.param(Head(b"d/", type=b"5", mode=0o755), tarkit.dir("d/"), id="directory"),
        pytest.param(Head(b"s", b"/a b", b"2", 0o777), tarkit.symlink("s", "/a b"), id="symlink"),
        pytest.param(Head(b"h", b"a", b"1"), tarkit.hardlink("h", "a"), id="hard link"),
        pytest.param(Head(b"n", type=b"3", dev_major=12, dev_minor=5), tarkit.node("n", "c", 12, 5), id="device"),
        pytest.param(Head(b"p", type=b"6", mode=0o7777), tarkit.fifo("p", mode=0o7777), id="fifo"),
        pytest.param(Head(b"n" * 100), tarkit.file("n" * 100), id="name of 100"),
        pytest.param(Head(b"l", b"t" * 100, b"2"), tarkit.symlink("l", "t" * 100, mode=0o644), id="link of 100"),
        pytest.param(Head(b"d/" + b"n" * 99), tarkit.file("n" * 99, prefix="d"), id="name of 101 splits"),
        pytest.param(Head(f"{PREFIX}/{REST}".encode()), tarkit.file(REST, prefix=PREFIX), id="name of 256 splits"),
        pytest.param(
            Head(f"{'p' * 90}/{'q' * 60}/{'n' * 50}".encode()),
            tarkit.file("n" * 50, prefix=f"{'p' * 90}/{'q' * 60}"),
            id="at the last slash",
        ),
        pytest.param(
            Head(f"{'d' * 90}/{'n' * 20}/".encode(), type=b"5"),
            tarkit.dir("n" * 20 + "/", prefix="d" * 90, mode=0o644),
            id="directory splits",
        ),
        pytest.param(
            Head(b"a", uid=2097151, gid=2097151), tarkit.file("a", uid=2097151, gid=2097151), id="largest owner"
        ),
        pytest.param(Head(b"a", size=(8 << 30) - 1), tarkit.raw_header("a", size=(8 << 30) - 1), id="largest size"),
        pytest.param(Head(b"a", mtime=8589934591), tarkit.raw_header("a", mtime=8589934591), id="last second"),
    ],
)
def test_what_fits_is_ustar(head: Head, wanted: bytes) -> None:
    assert format(head) == wanted[:512]


LONG = "l" * 101
DEEP = f"{'p' * 156}/{'n' * 80}"


@pytest.mark.parametrize(
    "head, wanted",
    [
        pytest.param(
            Head(b"n" * 101),
            pax(f"PaxHeaders.0/{'n' * 87}", {"path": b"n" * 101}) + tarkit.raw_header("n" * 100),
            id="name without a slash",
        ),
        pytest.param(
            Head(f"d/{LONG}".encode()),
            pax(f"d/PaxHeaders.0/{LONG[:85]}", {"path": f"d/{LONG}".encode()}) + tarkit.raw_header(f"d/{LONG}"[:100]),
            id="rest too long",
        ),
        pytest.param(
            Head(DEEP.encode()),
            pax("p" * 100, {"path": DEEP.encode()}) + tarkit.raw_header("p" * 100),
            id="prefix too long",
        ),
        pytest.param(
            Head("é/é".encode()),
            pax("/PaxHeaders.0/", {"path": "é/é".encode()}) + tarkit.raw_header("/"),
            id="not ASCII",
        ),
        pytest.param(
            Head("dir/naïve".encode()),
            pax("dir/PaxHeaders.0/nave", {"path": "dir/naïve".encode()}) + tarkit.raw_header("dir/nave"),
            id="stripped",
        ),
        pytest.param(
            Head(b"d\xff"), pax("PaxHeaders.0/d", {"path": b"d\xff"}) + tarkit.raw_header("d"), id="not UTF-8"
        ),
        pytest.param(
            Head("dé/".encode(), type=b"5"),
            pax("d/PaxHeaders.0", {"path": "dé/".encode()}) + tarkit.raw_header("d/", typeflag=b"5"),
            id="directory",
        ),
        pytest.param(
            Head(b"l", b"t" * 101, b"2"),
            pax("PaxHeaders.0/l", {"linkpath": b"t" * 101}) + tarkit.symlink("l", "t" * 100, mode=0o644),
            id="link",
        ),
        pytest.param(
            Head(b"l", "é".encode(), b"2"),
            pax("PaxHeaders.0/l", {"linkpath": "é".encode()}) + tarkit.symlink("l", "", mode=0o644),
            id="link not ASCII",
        ),
        pytest.param(
            Head(b"a", uid=3_000_000), pax("PaxHeaders.0/a", {"uid": b"3000000"}) + tarkit.raw_header("a"), id="uid"
        ),
        pytest.param(
            Head(b"a", gid=2097152), pax("PaxHeaders.0/a", {"gid": b"2097152"}) + tarkit.raw_header("a"), id="gid"
        ),
        pytest.param(
            Head(b"a", size=8 << 30), pax("PaxHeaders.0/a", {"size": b"8589934592"}) + tarkit.raw_header("a"), id="size"
        ),
        pytest.param(
            Head(b"a", mtime=-5), pax("PaxHeaders.0/a", {"mtime": b"-5"}) + tarkit.raw_header("a"), id="before 1970"
        ),
        pytest.param(
            Head(b"a", mtime=8589934592),
            pax("PaxHeaders.0/a", {"mtime": b"8589934592"}) + tarkit.raw_header("a"),
            id="after 2242",
        ),
        pytest.param(
            Head(b"x/a", capability=tarkit.CAPABILITY),
            pax("x/PaxHeaders.0/a", {"SCHILY.xattr.security.capability": tarkit.CAPABILITY}) + tarkit.raw_header("x/a"),
            id="capability",
        ),
        # once there is a PAX header, a name that USTAR could have split goes there as well
        pytest.param(
            Head(f"{PREFIX}/{REST}".encode(), uid=3_000_000),
            pax("p" * 100, {"path": f"{PREFIX}/{REST}".encode(), "uid": b"3000000"}) + tarkit.raw_header("p" * 100),
            id="splits but is PAX",
        ),
        pytest.param(
            Head("é".encode(), "è".encode(), b"1", 0o600, 1 << 31, 1 << 32, 1 << 40, -1, capability=tarkit.CAPABILITY),
            pax(
                "PaxHeaders.0/",
                {
                    "SCHILY.xattr.security.capability": tarkit.CAPABILITY,
                    "gid": b"4294967296",
                    "linkpath": "è".encode(),
                    "mtime": b"-1",
                    "path": "é".encode(),
                    "size": b"1099511627776",
                    "uid": b"2147483648",
                },
            )
            + tarkit.raw_header("", typeflag=b"1", mode=0o600),
            id="everything, sorted by key",
        ),
    ],
)
def test_what_does_not_fit_is_pax_with_the_records_needed(head: Head, wanted: bytes) -> None:
    made = format(head)
    name = wanted[:100].rstrip(b"\0").rstrip(b"/")
    assert made == tarkit.seal(name.ljust(100, b"\0") + wanted[100:512]) + wanted[512:]


def test_a_cut_name_never_ends_like_a_directorys() -> None:
    made = format(Head(b"d" * 99 + b"/xy", uid=3_000_000))
    assert made[-512:][:100] == b"d" * 99 + b"\0"


@pytest.mark.parametrize("n", [80, 87, 88, 89, 90, 91, 980, 985, 986, 987, 988, 989, 990, 9_984, 9_985, 9_986, 9_987])
def test_a_records_length_counts_its_own_digits(n: int) -> None:
    name = b"\xc3\xa9" + b"n" * n
    made = format(Head(name))
    size = int(made[124:135], 8)
    assert made[512 : 512 + size] == tarkit.pax_record("path", name)
    assert len(made) == 1024 + size + -size % 512


def test_names_beyond_a_mebibyte_are_refused() -> None:
    assert len(format(Head(b"n" * ((1 << 20) - 20)))) > 1 << 20
    for head in (
        Head(b"n" * (1 << 20)),
        Head(b"l", b"t" * (1 << 20)),
        Head(b"a", capability=bytes(1 << 20)),
        Head(b"n" * 600_000, b"t" * 600_000),
    ):
        with door.fails("LAY_E_LIMIT"):
            format(head)


def test_a_buffer_is_used_again_and_carries_nothing_over() -> None:
    ffi = door.ffi
    out, cap, n = ffi.new("uint8_t **"), ffi.new("size_t *"), ffi.new("size_t *")
    try:
        for name in (b"n" * 5000, b"a", b"n" * 300):
            text, none = ffi.new("char[]", name), ffi.new("char[]", b"")
            head = ffi.new(
                "lay_tar_head *", {"name": text, "name_len": len(name), "link": none, "type": b"0", "mode": 0o644}
            )
            door.call("lay_tar_format", head, out, cap, n)
            assert ffi.buffer(out[0], n[0])[:] == format(Head(name))
    finally:
        libc().free(out[0])


# ---- read back --------------------------------------------------------------------------------------

components = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=120).filter(
    lambda part: part not in (".", "..")
)
paths = st.lists(components, min_size=1, max_size=6).map("/".join)
numbers = st.integers(0, 2**31) | st.sampled_from([2097151, 2097152, 2**40])
seconds = st.integers(-(2**40), 2**40)
capabilities = st.none() | st.just(tarkit.CAPABILITY)
names = paths.map(str.encode)
files = st.tuples(names, st.just(b""), st.just(b"0"), st.integers(0, 0o7777), numbers, numbers, st.just(0), seconds)
links = st.tuples(names, names, st.sampled_from([b"1", b"2"]), st.just(0o777), numbers, numbers, st.just(0), seconds)
heads = st.builds(lambda fields, capability: Head(*fields, capability=capability), files | links, capabilities)


@given(heads)
def test_tarfile_reads_back_what_went_in(head: Head) -> None:
    with tarfile.open(fileobj=io.BytesIO(format(head) + bytes(1024)), errors="surrogateescape") as tar:
        (info,) = tar.getmembers()
    assert (info.name.encode(), info.type, info.mode, info.uid, info.gid) == (
        head.name,
        head.type,
        head.mode,
        head.uid,
        head.gid,
    )
    assert info.linkname.encode() == head.link
    assert info.mtime == head.mtime
    assert (info.uname, info.gname) == ("", "")


@given(heads)
def test_our_reader_reads_back_what_went_in(head: Head) -> None:
    (entry,) = read(format(head) + bytes(1024)).entries
    assert (entry.name, entry.link, entry.type, entry.mode, entry.owner) == (
        head.name,
        head.link,
        head.type,
        head.mode,
        (head.uid, head.gid),
    )
    assert entry.mtime == (head.mtime, 0)
    assert entry.xattrs == (((b"security.capability", tarkit.CAPABILITY),) if head.capability else ())
