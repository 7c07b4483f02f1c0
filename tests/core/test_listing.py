"""listing.c: the entries of any record, and of one that lies."""

import base64
import gzip
import json
import os
from typing import Any

import door
import pytest
import recipes
import sinks
import tarkit
from hypothesis import given
from hypothesis import strategies as st
from tarkit import dir, end, file, hardlink, opaque, symlink, whiteout

KINDS = ["file", "directory", "symlink", "link", "character", "block", "fifo", "whiteout", "opaque"]
HELLO_CRC = 0x3C3EEEE2D8100000


def listed(record: bytes, batch: int = 1000) -> list[dict[str, Any]]:
    """Every entry as a dict; CoreError behind those that could be read (then .found has them)."""
    with sinks.memory(record) as fd:
        return entries(door.make("lay_listing_open", "lay_listing *", fd), batch)


def lying(tar: bytes, batch: int = 1000, *, before: bytes = b"", behind: bytes = b"", size: int = -1) -> list[dict[str, Any]]:
    """The same, of a tar that lies in a file."""
    with sinks.memory(before + tar + behind) as fd:
        size = len(tar) if size < 0 else size
        handle = door.out("lay_listing **")
        door.call("lay_listing_tar_open", handle, fd, len(before), size)
        return entries(door.ffi.gc(handle[0], door.lib.lay_listing_free), batch)


def entries(listing: Any, batch: int) -> list[dict[str, Any]]:
    ffi, lib = door.ffi, door.lib
    found: list[dict[str, Any]] = []
    count, ended, e = door.out("size_t *"), door.out("int *"), door.out("lay_listed *")
    while not ended[0]:
        try:
            door.call("lay_listing_next", listing, batch, 1000, count, ended)
        except door.CoreError as error:
            error.found = found  # type: ignore[attr-defined]
            with door.fails(error.code):      # it stays so
                door.call("lay_listing_next", listing, batch, 1000, count, ended)
            raise
        for i in range(count[0]):
            lib.lay_listing_at(listing, i, e)
            one = {
                "name": bytes(ffi.buffer(e.name, e.name_len)), "path": bytes(ffi.buffer(e.path, e.path_len)),
                "link": bytes(ffi.buffer(e.link, e.link_len)), "kind": KINDS[e.kind], "size": e.size, "mode": e.mode,
                "uid": e.uid, "offset": e.offset, "crc": e.crc if e.has_crc else None, "xattrs": xattrs(e),
                "mtime": (e.mtime_sec, e.mtime_nsec), "atime": (e.atime_sec, e.atime_nsec) if e.has_atime else None,
                "device": (e.dev_major, e.dev_minor), "gid": e.gid,
            }  # fmt: skip
            assert e.path[e.path_len] == e.name[e.name_len] == b"\0"
            found.append(one)
    return found


def xattrs(e: Any) -> dict[bytes, bytes]:
    found = {}
    at, name, value, n = e.xattrs, door.out("const char **"), door.out("const uint8_t **"), door.out("size_t *")
    for _ in range(e.nxattrs):
        at = door.lib.lay_listed_xattr(at, name, value, n)
        found[door.ffi.string(name[0])] = bytes(door.ffi.buffer(value[0], n[0]))
    return found


def shapes(record: bytes, **how: int) -> list[tuple[str, str]]:
    return [(one["path"].decode(), one["kind"]) for one in listed(record, **how)]


def lines(*given: bytes | tuple[str, bytes | None, int]) -> bytes:
    """A record by hand: bytes are framing; (name, content, size) a file's line, its CRC of content."""
    made = []
    for position, one in enumerate(given):
        if isinstance(one, bytes):
            line = {"type": 2, "payload": base64.b64encode(one).decode(), "position": position}
        else:
            name, content, size = one
            crc = None if content is None else door.lib.lay_crc64_add(0, content, len(content)).to_bytes(8, "big")
            payload = None if crc is None else base64.b64encode(crc).decode()
            line = {"type": 1, "name": name, "size": size, "payload": payload, "position": position}
        made.append(json.dumps(line))
    return "\n".join(made).encode()


# ---- what a record says ---------------------------------------------------------------------------
TAR = (
    dir("./d/") + file("d/f", b"hello", uid=7, mode=0o104755) + hardlink("h", "/d/./f") + symlink("s", "/d/../x")
    + whiteout("d/w") + opaque("d") + opaque("") + tarkit.xattrs({"user.a": b"", "user.b": b"\0\1"}) + file("/x//y") + end()
)  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2, 1000])
@pytest.mark.parametrize("packed", [False, True])
def test_each_kind_of_entry(batch: int, packed: bool) -> None:
    record = sinks.record(TAR, gzip=packed)
    found = listed(record, batch=batch)
    assert [(one["path"], one["kind"], one["link"]) for one in found] == [
        (b"d", "directory", b""), (b"d/f", "file", b""), (b"h", "link", b"d/f"), (b"s", "symlink", b"/d/../x"),
        (b"d/w", "whiteout", b""), (b"d", "opaque", b""), (b".", "opaque", b""), (b"x/y", "file", b""),
    ]  # fmt: skip
    f, y = found[1], found[7]
    assert (f["name"], f["size"], f["crc"], f["offset"], f["uid"], f["mode"]) == (b"d/f", 5, HELLO_CRC, 1024, 7, 0o4755)
    assert (y["name"], y["crc"], y["xattrs"]) == (b"/x//y", 0, {b"user.a": b"", b"user.b": b"\0\1"})


@pytest.mark.parametrize("name", recipes.GOOD)
def test_a_file_of_any_layer_has_the_offset_and_the_crc_of_its_bytes(name: str) -> None:
    tar = recipes.GOOD[name]()
    for one in listed(sinks.record(tar)):
        assert not one["path"].startswith(b"/")
        if one["kind"] == "file" and one["offset"] >= 0 and one["crc"] is not None:
            content = tar[one["offset"] : one["offset"] + one["size"]]
            assert len(content) == one["size"]
            assert one["crc"] == door.lib.lay_crc64_add(0, content, len(content))


@given(st.lists(st.integers(1, 700), max_size=12), st.integers(1, 9))
def test_framing_may_be_cut_anywhere(cuts: list[int], batch: int) -> None:
    """A file's bytes in the record itself, and lines of any length: what is said is the same."""
    whole = listed(lines(TAR))
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(TAR[at : at + cut])
        at += cut
    found = listed(lines(*(piece for piece in [*pieces, TAR[at:]] if piece)), batch=batch)
    assert found == whole
    assert found[1]["crc"] == HELLO_CRC


def test_dockerds_sparse_file_is_listed_without_its_map() -> None:
    content = tarkit.expand([(4096, b"data")], 8192)
    tar = tarkit.pax_sparse_1_0("holes", [(4096, b"data")], 8192)
    header = 1536
    record = lines(tar[:header], ("holes", content, 8192), bytes(508) + file("g"), ("g", None, 0), end())
    holes, g = listed(record)
    assert (holes["path"], holes["size"], holes["offset"]) == (b"holes", 8192, -1)
    assert holes["crc"] == door.lib.lay_crc64_add(0, content, 8192)
    assert (g["path"], g["offset"]) == (b"g", header + 8192 + 508 + 512)


def test_a_record_of_an_old_dockerd_ends_with_an_empty_segment() -> None:
    assert shapes(gzip.compress(lines(file("a", b"x")[:512], ("a", b"x", 1), bytes(511) + end(), b""))) == [("a", "file")]


def test_a_link_with_a_size_has_no_bytes() -> None:
    record = lines(hardlink("b", "a", size=5), ("b", b"", 5), file("c"), ("c", None, 0), end())
    assert shapes(record) == [("b", "link"), ("c", "file")]


def test_a_global_header_is_no_entry() -> None:
    tar = tarkit.global_pax(b"14 comment=ab\n") + file("a", b"1") + end()
    assert shapes(sinks.record(tar)) == [("a", "file")]


def test_an_empty_record_lists_nothing() -> None:
    assert listed(b"") == []
    assert listed(lines(end())) == []


def test_what_a_store_with_wider_limits_took_is_listed() -> None:
    name = "d/" * 3000 + "n" * (2 << 20)
    assert [len(one["path"]) for one in listed(lines(tarkit.with_pax_path(name, file) + end()))] == [len(name)]


def test_a_large_file_costs_nothing() -> None:
    """Its bytes are passed over at once, not block by block."""
    head = tarkit.raw_header("huge", size=tarkit.base256(1 << 62, 12))
    assert listed(lines(head, ("huge", b"", 1 << 62)))[0]["size"] == 1 << 62


# ---- what a record cannot say -------------------------------------------------------------------------
A = file("a", b"x")[:512]


@pytest.mark.parametrize(
    "record, good",
    [
        pytest.param(lines(A, ("a", b"xy", 2)), 0, id="another size"),
        pytest.param(lines(A, ("b", b"x", 1)), 0, id="another name"),
        pytest.param(lines(("a", b"x", 1)), 0, id="no header"),
        pytest.param(lines(A, ("a", b"x", 1), ("a", b"x", 1)), 1, id="bytes twice"),
        pytest.param(lines(A + b"x", ("a", b"x", 1)), 1, id="bytes in both"),
        pytest.param(lines(A), 0, id="bytes in neither"),
        pytest.param(lines(A, ("a", b"x", 1), b"J" * 1024), 1, id="no tar"),
        pytest.param(lines(A, ("a", b"x", 1), bytes(511) + A[:100]), 1, id="half a header"),
        pytest.param(lines(file("../a")), 0, id="name leaves"),
        pytest.param(lines(file("ok") + hardlink("a", "../b")), 1, id="link leaves"),
        pytest.param(lines(hardlink("a", ".")), 0, id="link to the root"),
        pytest.param(lines(symlink("a", "")), 0, id="no target"),
        pytest.param(lines(whiteout("a/..")), 0, id="whiteout of the parent"),
        pytest.param(lines(whiteout("a/")), 0, id="whiteout of nothing"),
        pytest.param(lines(file("a", typeflag=b"Z")), 0, id="type"),
        pytest.param(b'{"type":2,"payload":"!"}', 0, id="base64"),
        pytest.param(lines(file("ok")) + b'{"type":1,"size":-1}', 1, id="negative size"),
        pytest.param(gzip.compress(lines(file("ok")))[:-9], 1, id="cut gzip")]
)
def test_what_no_layer_can_be_is_told_behind_all_that_can(record: bytes, good: int) -> None:
    with door.fails("LAY_E_SPLIT") as errors:
        listed(record)
    assert len(errors[0].found) == good  # type: ignore[attr-defined]
    assert "tar-split" in errors[0].text


@given(st.data())
def test_any_change_of_a_record_is_read_without_harm(data: st.DataObject) -> None:
    record = bytearray(sinks.record(TAR))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(record) - 1))
        record[at] = data.draw(st.integers(0, 255))
    try:
        for one in listed(bytes(record), batch=data.draw(st.integers(1, 4))):
            assert not one["path"].startswith((b"/", b"../"))
    except door.CoreError as error:
        assert error.code == "LAY_E_SPLIT"


# ---- opening ----------------------------------------------------------------------------------------
def opened(root: int, path: str, size: int) -> bytes:
    fd = door.out("int *")
    door.call("lay_listed_open", root, path.encode(), size, fd)
    try:
        return os.read(fd[0], 100)
    finally:
        os.close(fd[0])


def test_a_file_is_opened_beneath_the_root_and_through_no_link(tmp_path: Any) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(b"hello")
    (tmp_path / "f").write_bytes(b"top")
    (tmp_path / "l").symlink_to("d")
    (tmp_path / "d/s").symlink_to("f")
    os.mkfifo(tmp_path / "p")
    with sinks.directory(tmp_path) as root:
        assert opened(root, "d/f", 5) == b"hello"
        assert opened(root, "f", 3) == b"top"
        for path, size in (("l/f", 5), ("d/s", 1), ("p", 0), ("d", 0), ("gone", 0), ("f/x", 0), ("f", 4), ("../f", 3)):
            with door.fails("LAY_E_MISMATCH") as errors:
                opened(root, path, size)
            assert errors[0].path == path.encode()


# ---- the tar itself, where it lies in a file --------------------------------------------------------


def without_crc(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one | {"crc": None} for one in found]


@pytest.mark.parametrize("name", recipes.GOOD)
@pytest.mark.parametrize("batch", [1, 1000])
def test_a_tar_in_a_file_is_listed_as_its_record_is(name: str, batch: int) -> None:
    tar = recipes.GOOD[name]()
    assert lying(tar, batch, before=b"\1" * 4096, behind=file("no")) == without_crc(listed(sinks.record(tar)))


@pytest.mark.parametrize("sizes", [(0, 1, 511, 512, 513), (15 << 10, 16 << 10, 17 << 10, 1 << 20)])
def test_payloads_of_any_length_are_passed_over(sizes: tuple[int, ...]) -> None:
    tar = b"".join(file(f"f{n}", file("hidden") * (n // 512) + bytes(n % 512)) for n in sizes)
    for whole in (tar + end(), tar):
        assert [(one["path"], one["size"]) for one in lying(whole)] == [(b"f%d" % n, n) for n in sizes]


def test_what_trails_the_end_of_a_tar_is_no_entry() -> None:
    assert [one["path"] for one in lying(file("a") + end() + file("b") + b"x" * 99)] == [b"a"]


@pytest.mark.parametrize(
    ("tar", "says"),
    [
        (file("a", bytes(2000))[:-1600], "it ends inside a file's data"),
        (file("a")[:300], "a header block"),
        (file("a", b"x") + b"\1" * 512, "invalid tar header"),
        (file("a", b"x") + file("../b"), "outside of the layer"),
    ],
)
def test_a_damaged_tar_gives_what_comes_before(tar: bytes, says: str) -> None:
    before = file("0", b"good")
    with door.fails("LAY_E_SPLIT") as errors:
        lying(before + tar)
    assert next(one["path"] for one in errors[0].found) == b"0"  # type: ignore[attr-defined]
    assert says in errors[0].text and errors[0].text.startswith("the tar cannot be read: ")


def test_a_file_that_ends_inside_the_tar_is_told() -> None:
    with door.fails("LAY_E_SPLIT") as errors:
        lying(file("a", b"x"), size=4096)
    assert (errors[0].text, errors[0].offset) == ("the tar cannot be read: its file ends here", 1024)
    assert [one["path"] for one in errors[0].found] == [b"a"]  # type: ignore[attr-defined]
