"""walk.c: the entries of a tar whose payloads others read, as the whole reader sees them; and what is in doubt."""
import io
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import door
import tarkit
import test_tar_read


def walk(tar: bytes, most: int = 1 << 16) -> list[tuple[bytes, bytes, bytes, bool, int, int, str]]:
    """(name, link, type, sparse, bytes of the payload, where it begins, doubt) of each entry; raises CoreError."""
    ffi, lib = door.ffi, door.lib
    walker = door.make("lay_walk_open", "lay_walk *")
    entry, found, at, seen = ffi.new("lay_walked *"), door.out("int *"), 0, []
    while (want := min(lib.lay_walk_wants(walker), most)) and at < len(tar):
        data = tar[at : at + want]
        at += len(data)
        door.call("lay_walk_feed", walker, ffi.from_buffer(data), len(data), entry, found)
        if found[0]:
            doubt = ffi.string(entry.doubt).decode() if entry.doubt else ""
            seen.append((ffi.string(entry.name), ffi.string(entry.link), entry.type, bool(entry.sparse), entry.stored, at, doubt))
            at += entry.stored + entry.padding
    if at <= len(tar) and want:
        door.call("lay_walk_end", walker)
    return seen


PIECES = [
    tarkit.file("a", b"x" * 700), tarkit.file("empty"), tarkit.dir("d/"), tarkit.dir("sized/", size=900), tarkit.symlink("l", "a"),
    tarkit.hardlink("h", "a"), tarkit.hardlink("h2", "a", size=512), tarkit.fifo("f"), tarkit.file("n" * 100, b"1"),
    tarkit.with_pax_path("long/" * 40 + "x", tarkit.file, b"y" * 513), tarkit.with_gnu_path("gnu/" * 40 + "x", tarkit.file, b"z" * 512),
    tarkit.pax({"size": "3"}) + tarkit.raw_header("p", size=0) + b"abc".ljust(512, b"\0"), tarkit.global_pax({"comment": "x"}),
    tarkit.pax_sparse_1_0("s", [(0, b"data")], 4096), tarkit.old_gnu_sparse("o", [(512, b"data" * 200)], 4096),
    tarkit.raw_header("odd", typeflag=b"V", size=5) + b"label".ljust(512, b"\0"),
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=8), st.sampled_from([1, 100, 512, 1 << 16]))
def test_it_sees_what_the_reader_sees(pieces, most):
    tar = b"".join(pieces) + tarkit.end()
    whole = test_tar_read.read(tar).entries
    seen = walk(tar, most)
    assert [entry[:4] for entry in seen] == [(e.name, e.link, e.type, e.sparse) for e in whole]
    assert [entry[4] for entry in seen] == [e.stored for e in whole]
    assert all(entry[6] == "" for entry in seen)


@given(st.binary(max_size=1500), st.integers(0, 2))
def test_any_bytes_end(noise, at):
    tar = b"".join(PIECES[:at]) + noise
    try:
        walk(tar)
    except door.CoreError as err:
        assert err.code in ("LAY_E_TAR", "LAY_E_TRUNCATED", "LAY_E_LIMIT")


@pytest.mark.parametrize("cut", range(0, 2600, 131))
def test_a_cut_inside_a_header_is_told(cut):
    tar = b"".join(PIECES[9:11])
    try:
        seen = walk(tar[:cut])
    except door.CoreError as err:
        assert err.code == "LAY_E_TRUNCATED"
    else:
        assert len(seen) < 2 or cut >= len(tar) - 1024


DOUBTS = {
    "two PAX headers": tarkit.pax({"path": "one"}) + tarkit.pax({"path": "two"}) + tarkit.file("x"),
    "two long names": tarkit.gnu_long("one") + tarkit.gnu_long("two") + tarkit.file("x"),
    "two long targets": tarkit.gnu_long("one", b"K") + tarkit.gnu_long("two", b"K") + tarkit.symlink("x", "t"),
    "a PAX path and a long name": tarkit.pax({"path": "one"}) + tarkit.gnu_long("two") + tarkit.file("x"),
    "a long target and a PAX one": tarkit.pax({"linkpath": "two"}) + tarkit.gnu_long("one", b"K") + tarkit.symlink("x", "t"),
    "a global path": tarkit.global_pax({"path": "one"}) + tarkit.file("x"),
    "a global size": tarkit.global_pax({"size": "512"}) + tarkit.file("x", b"1"),
    "a global sparse map": tarkit.global_pax({"GNU.sparse.size": "1"}) + tarkit.file("x", b"1"),
    "a global header in between": tarkit.pax({"path": "one"}) + tarkit.global_pax({"comment": "c"}) + tarkit.file("x"),
    "Solaris' own": tarkit.pax({"path": "one"}, typeflag=b"X") + tarkit.file("x"),
}  # fmt: skip


@pytest.mark.parametrize("what", DOUBTS)
def test_what_python_reads_as_another_entry_is_in_doubt(what):
    tar = DOUBTS[what] + tarkit.end()
    doubts = [entry[6] for entry in walk(tar) if entry[6]]
    assert len(doubts) == 1
    if what != "a global sparse map":                      # where Python gives up
        with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
            theirs = [(m.name.encode(), m.linkname.encode(), m.size) for m in opened.getmembers()]
        assert theirs != [(entry[0], entry[1], entry[4]) for entry in walk(tar) if entry[2] != b"g"]


def test_more_than_was_asked_for_is_refused():
    walker = door.make("lay_walk_open", "lay_walk *")
    with pytest.raises(door.CoreError, match="more than was asked for"):
        door.call("lay_walk_feed", walker, bytes(513), 513, door.ffi.new("lay_walked *"), door.out("int *"))
