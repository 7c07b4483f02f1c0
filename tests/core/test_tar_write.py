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


def head(name: tarkit.Text, link: tarkit.Text = b"", *more: Any, **fields: Any) -> Head:
    return Head(tarkit.raw(name), tarkit.raw(link), *more, **fields)


def format(h: Head) -> bytes:
    ffi = door.ffi
    name, link = ffi.new("char[]", h.name), ffi.new("char[]", h.link)
    capability = ffi.NULL if h.capability is None else ffi.new("uint8_t[]", h.capability or b"\0")
    lengths = {"name_len": len(h.name), "link_len": len(h.link), "capability_len": len(h.capability or b"")}
    made = ffi.new("lay_tar_head *", {**h._asdict(), "name": name, "link": link, "capability": capability, **lengths})
    out, cap, n = ffi.new("uint8_t **"), ffi.new("size_t *"), ffi.new("size_t *")
    try:
        door.call("lay_tar_format", made, out, cap, n)
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


P, N = "p" * 155, "n" * 100
USTAR = {
    "directory": (head("d/", type=b"5", mode=0o755), tarkit.dir("d/")),
    "symlink": (head("s", "/a b", b"2", 0o777), tarkit.symlink("s", "/a b")),
    "hard link": (head("h", "a", b"1"), tarkit.hardlink("h", "a")),
    "device": (head("n", type=b"3", dev_major=12, dev_minor=5), tarkit.node("n", "c", 12, 5)),
    "fifo": (head("p", type=b"6", mode=0o7777), tarkit.fifo("p", mode=0o7777)),
    "name of 100": (head(N), tarkit.file(N)),
    "link of 100": (head("l", "t" * 100, b"2"), tarkit.symlink("l", "t" * 100, mode=0o644)),
    "name of 101 splits": (head("d/" + "n" * 99), tarkit.file("n" * 99, prefix="d")),
    "name of 256 splits": (head(f"{P}/{N}"), tarkit.file(N, prefix=P)),
    "at the last slash": (head(f"{'p' * 90}/{'q' * 60}/{N[:50]}"), tarkit.file(N[:50], prefix=f"{'p' * 90}/{'q' * 60}")),
    "directory splits": (head(f"{P[:90]}/{N[:20]}/", type=b"5"), tarkit.dir(f"{N[:20]}/", prefix=P[:90], mode=0o644)),
    "largest owner": (head("a", uid=2097151, gid=2097151), tarkit.file("a", uid=2097151, gid=2097151)),
    "largest size": (head("a", size=(8 << 30) - 1), tarkit.raw_header("a", size=(8 << 30) - 1)),
    "last second": (head("a", mtime=8589934591), tarkit.raw_header("a", mtime=8589934591)),
}


@pytest.mark.parametrize("what", USTAR)
def test_what_fits_is_ustar(what: str) -> None:
    given, wanted = USTAR[what]
    assert format(given) == wanted[:512]


L, D = "l" * 101, f"{'p' * 156}/{'n' * 80}"
HEADER = tarkit.raw_header
CAPABILITY = {"SCHILY.xattr.security.capability": tarkit.CAPABILITY}
# What is given: where the PAX header lies, its records, and the block behind it.
PAX = {
    "name without a slash": (head("n" * 101), f"PaxHeaders.0/{'n' * 87}", {"path": "n" * 101}, HEADER(N)),
    "rest too long": (head(f"d/{L}"), f"d/PaxHeaders.0/{L[:85]}", {"path": f"d/{L}"}, HEADER(f"d/{L}"[:100])),
    "prefix too long": (head(D), "p" * 100, {"path": D}, HEADER("p" * 100)),
    "not ASCII": (head("é/é"), "/PaxHeaders.0/", {"path": "é/é"}, HEADER("/")),
    "stripped": (head("dir/naïve"), "dir/PaxHeaders.0/nave", {"path": "dir/naïve"}, HEADER("dir/nave")),
    "not UTF-8": (head(b"d\xff"), "PaxHeaders.0/d", {"path": b"d\xff"}, HEADER("d")),
    "directory": (head("dé/", type=b"5"), "d/PaxHeaders.0", {"path": "dé/"}, HEADER("d/", typeflag=b"5")),
    "link": (head("l", "t" * 101, b"2"), "PaxHeaders.0/l", {"linkpath": "t" * 101}, tarkit.symlink("l", "t" * 100, mode=0o644)),
    "link not ASCII": (head("l", "é", b"2"), "PaxHeaders.0/l", {"linkpath": "é"}, tarkit.symlink("l", "", mode=0o644)),
    "uid": (head("a", uid=3_000_000), "PaxHeaders.0/a", {"uid": "3000000"}, HEADER("a")),
    "gid": (head("a", gid=2097152), "PaxHeaders.0/a", {"gid": "2097152"}, HEADER("a")),
    "size": (head("a", size=8 << 30), "PaxHeaders.0/a", {"size": "8589934592"}, HEADER("a")),
    "before 1970": (head("a", mtime=-5), "PaxHeaders.0/a", {"mtime": "-5"}, HEADER("a")),
    "after 2242": (head("a", mtime=8589934592), "PaxHeaders.0/a", {"mtime": "8589934592"}, HEADER("a")),
    "capability": (head("x/a", capability=tarkit.CAPABILITY), "x/PaxHeaders.0/a", CAPABILITY, HEADER("x/a")),
    # once there is a PAX header, a name that USTAR could have split goes there as well
    "splits but is PAX": (head(f"{P}/{N}", uid=3_000_000), P[:100], {"path": f"{P}/{N}", "uid": "3000000"}, HEADER(P[:100])),
    "everything, sorted by key": (
        head("é", "è", b"1", 0o600, 1 << 31, 1 << 32, 1 << 40, -1, capability=tarkit.CAPABILITY), "PaxHeaders.0/",
        CAPABILITY | {"gid": "4294967296", "linkpath": "è", "mtime": "-1", "path": "é", "size": "1099511627776", "uid": "2147483648"},
        HEADER("", typeflag=b"1", mode=0o600),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", PAX)
def test_what_does_not_fit_is_pax_with_the_records_needed(what: str) -> None:
    given, place, records, block = PAX[what]
    wanted = tarkit.pax(records, name=place, mode=0, devmajor=b"", devminor=b"") + block       # as Go writes it
    made = format(given)
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
    for much in (head(b"n" * (1 << 20)), head("l", b"t" * (1 << 20)), head("a", capability=bytes(1 << 20)), head("n" * 600_000, "t" * 600_000)):
        with door.fails("LAY_E_LIMIT"):
            format(much)


def test_a_buffer_is_used_again_and_carries_nothing_over() -> None:
    ffi = door.ffi
    out, cap, n = ffi.new("uint8_t **"), ffi.new("size_t *"), ffi.new("size_t *")
    try:
        for name in (b"n" * 5000, b"a", b"n" * 300):
            text, none = ffi.new("char[]", name), ffi.new("char[]", b"")
            made = ffi.new("lay_tar_head *", {"name": text, "name_len": len(name), "link": none, "type": b"0", "mode": 0o644})
            door.call("lay_tar_format", made, out, cap, n)
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
    assert (info.name.encode(), info.linkname.encode(), info.type, info.mode, info.uid, info.gid) == head[:6]
    assert info.mtime == head.mtime
    assert (info.uname, info.gname) == ("", "")


@given(heads)
def test_our_reader_reads_back_what_went_in(head: Head) -> None:
    (entry,) = read(format(head) + bytes(1024)).entries
    assert (entry.name, entry.link, entry.type, entry.mode, *entry.owner) == head[:6]
    assert entry.mtime == (head.mtime, 0)
    assert entry.xattrs == (((b"security.capability", tarkit.CAPABILITY),) if head.capability else ())
