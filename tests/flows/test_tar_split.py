"""tar-split records byte for byte: what is written of each small tar, what is read, and what is refused.

Where the original loses bytes or refuses (partial paddings, duplicates, links with sizes, sparse files) the record
keeps what the tree cannot give, so that the tar comes back; dockerd must still be able to read it.
"""

import base64
import gzip
import io
import json
import os
import re
import resource
import tarfile

import pytest
import recipes
import tarkit
from another import growth
from recorded import MIB, RECORDED, REFUSED, ZZ, A, in_short
from stored import BoomError, Failing, Trickle
from tarkit import dir, file, symlink

from layerstore import CorruptLayerError, LayerStoreError, TarFormatError, assemble, disassemble

HELLO = "PD7u4tgQAAA="


def record_of(tar):
    out = io.BytesIO()
    assert disassemble(tar, out) == tarkit.diff_id(tar)
    return out.getvalue()


# ---- small inputs ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", RECORDED)
def test_a_small_tar_is_recorded_so_and_comes_back(room, name):
    tar, expected = RECORDED[name]
    record = record_of(tar)
    assert in_short(record) == expected
    for path in re.findall(r"F\(([^,)]+),5\)", expected):
        place = room / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"hello")
    with assemble(io.BytesIO(record), room) as stream:
        assert stream.read() == tar


@pytest.mark.parametrize("name", RECORDED)
def test_a_small_tar_in_single_bytes_is_recorded_the_same(name):
    tar, _ = RECORDED[name]
    out = io.BytesIO()
    disassemble(Trickle(tar), out)
    assert out.getvalue() == record_of(tar)


@pytest.mark.parametrize("name", REFUSED)
def test_a_malformed_tar_is_refused_in_gos_words_where_it_stands(store, unchanged, name):
    tar, _, offset, text = REFUSED[name]
    store.register(tarkit.T1)
    for take in (lambda: disassemble(tar, io.BytesIO()), lambda: store.register(tar)):
        with unchanged(), pytest.raises(TarFormatError) as caught:
            take()
        assert text in str(caught.value)
        assert caught.value.offset == offset


# ---- lines -------------------------------------------------------------------------------------------------------
CRCS = {b"hello": HELLO, b"foo": "PDwwMAAAAAA=", b"bar": "LcQW8AAAAAA=", b"123456789": "uQlWx3WkEAE="}


@pytest.mark.parametrize("content", CRCS)
def test_a_payload_is_its_crc(content):
    line = record_of(file("a", content) + ZZ).splitlines()[1]
    assert line == b'{"type":1,"name":"a","size":%d,"payload":"%s","position":1}' % (
        len(content), CRCS[content].encode()
    )


@pytest.mark.parametrize("size", [1, 7, 8, 15, 16, 63, 64, 127, 128, 129, 1000, 4095, 4097, 65537])
def test_crcs_of_every_length_are_go_iso(size):
    content = recipes.noise(size, size)
    crc = 0xFFFFFFFFFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xD800000000000000 if crc & 1 else 0)
    payload = json.loads(record_of(file("a", content) + ZZ).splitlines()[1])["payload"]
    assert base64.b64decode(payload) == (crc ^ 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big")


def test_lines_are_the_originals_to_the_byte():
    def b64(data):
        return base64.b64encode(data)

    tar = tarkit.T1
    assert record_of(tar) == (
        b'{"type":2,"payload":"%s","position":0}\n' % b64(tar[:512])
        + b'{"type":1,"name":"a/","payload":null,"position":1}\n'
        + b'{"type":2,"payload":"%s","position":2}\n' % b64(tar[512:1024])
        + b'{"type":1,"name":"a/f","size":5,"payload":"PD7u4tgQAAA=","position":3}\n'
        + b'{"type":2,"payload":"%s","position":4}\n' % b64(tar[1029:])
    )


NAMES = {
    'a<b>&c\u2028"\\\t\x01\x7f\x08\x0cé': r'"a\u003cb\u003e\u0026c\u2028\"\\\t\u0001' + "\x7f" + r"\b\fé" + '"',
    "\u2029\n\r": r'"\u2029\n\r"',
    "/x/'`": '"/x/\'`"',
    "".join(map(chr, (2, 0x0B, 0x0E, 0x1B, 0x1F))): r'"\u0002\u000b\u000e\u001b\u001f"',
    "\U0001f600\ufffd\ufeff\u0080": '"\U0001f600\ufffd\ufeff\u0080"',
}


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_are_escaped_as_go_escapes_them(name):
    line = record_of(tarkit.pax({"path": name}) + A + ZZ).split(b"\n")[1]
    assert line == b'{"type":1,"name":%s,"size":5,"payload":"%s","position":1}' % (NAMES[name].encode(), HELLO.encode())


@pytest.mark.parametrize("name", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"a\xe2("])
def test_what_go_calls_invalid_utf8_is_raw(name):
    entry = json.loads(record_of(file(name, b"hello") + ZZ).splitlines()[1])
    assert ("name" in entry, base64.b64decode(entry["name_raw"])) == (False, name)


@pytest.mark.parametrize("name", ["t2", "pax_everything", "names_json_must_escape", "not_utf8_names", "large_tail"])
def test_the_stores_record_is_the_same_gzipped(store, root, name):
    tar = recipes.GOOD["good_" + name]()
    layer = store.register(tar)
    packed = root / "image/overlay2/layerdb/sha256" / layer.chain_id.encoded / "tar-split.json.gz"
    assert gzip.decompress(packed.read_bytes()) == record_of(tar)


# ---- what the original loses or refuses ---------------------------------------------------------------------------
BETTER = [name for name in recipes.GOOD if name.startswith(("good_sparse", "good_duplicate", "good_two_global"))] + [
    "good_hard_link_with_size", "good_symlink_with_size", "good_directory_with_size", "good_nodes_with_size",
    "good_partial_padding", "good_partial_padding_of_junk", "good_whiteout_with_payload", "good_names_through_symlink",
    "good_file_replaced_by_everything",
]


@pytest.mark.parametrize("name", BETTER)
def test_no_record_names_a_file_twice_or_with_bytes_its_tree_has_not(store, diff_of, root, name):
    """What a reader of Docker's would do with it: open each name below the tree and find CRC and size right."""
    tar = recipes.GOOD[name]()
    layer = store.register(tar)
    packed = root / "image/overlay2/layerdb/sha256" / layer.chain_id.encoded / "tar-split.json.gz"
    rebuilt, seen = b"", set()
    for line in gzip.decompress(packed.read_bytes()).splitlines():
        entry = json.loads(line)
        if entry["type"] == 2:
            rebuilt += base64.b64decode(entry["payload"])
            continue
        cleaned = os.path.normpath(entry["name"])
        assert cleaned not in seen, "dockerd refuses a record with one name twice"
        seen.add(cleaned)
        if entry.get("size", 0):
            rebuilt += (diff_of(layer) / cleaned.lstrip("/")).read_bytes()
    assert rebuilt == tar


ALONE = {
    "twice": recipes.GOOD["good_duplicate"](),
    "with and without a slash in front": A + file("/a") + ZZ,
    "four spellings": recipes.GOOD["good_duplicate_spellings"](),
    "directory and file": dir("d/") + file("d/f", b"1") + file("d", b"2") + ZZ,
    "link with a size": recipes.GOOD["good_hard_link_with_size"](),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_record_made_alone_fits_the_tree_that_tar_would_make(store, diff_of, name):
    """disassemble() sees no tree; what it leaves to the tree must be what the last entry of each name left there."""
    tar = ALONE[name]
    tree = diff_of(store.register(tar))
    with assemble(io.BytesIO(record_of(tar)), tree) as stream:
        assert stream.read() == tar


# ---- reading -------------------------------------------------------------------------------------------------------
@pytest.fixture
def tree(room):
    place = room / "tree"
    (place / "a").mkdir(parents=True)
    (place / "a/f").write_bytes(b"hello")
    return place


def lines(*entries):
    return io.BytesIO(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))


def test_a_flipped_crc_is_told_with_the_files_name(tree):
    record = record_of(tarkit.T1).replace(HELLO.encode(), b"PD7u4tgQAAE=")
    with assemble(io.BytesIO(record), tree) as stream, pytest.raises(CorruptLayerError) as caught:
        stream.read()
    assert 'file integrity checksum failed for "a/f"' in str(caught.value)
    assert caught.value.path == "a/f"


@pytest.mark.parametrize("keep", range(0, 300, 23))
def test_a_cut_record_is_an_error_unless_cut_between_objects(tree, keep):
    record = record_of(tarkit.T1)
    cut = record[: len(record) - 1 - keep]
    with pytest.raises((LayerStoreError, OSError)) if keep else _nothing():
        with assemble(io.BytesIO(cut), tree) as stream:
            assert stream.read() == tarkit.T1


class _nothing:  # noqa: N801
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


@pytest.mark.parametrize(
    "wrong",
    [
        b"[]", b"{", b'{"type":2,"payload":"!!!!","position":0}', b'{"type":"2","payload":"","position":0}',
        b'{"type":2,"payload":5,"position":0}',
        b'{"type":1,"name":"a/f","size":-5,"payload":"PD7u4tgQAAA=","position":0}',
        b'{"type":1,"name":"a/f","size":5,"payload":"PD7u","position":0}',
        b'{"type":1,"name":5,"size":5,"payload":"PD7u4tgQAAA=","position":0}', b"nonsense",
        b'{"type":2,"payload":"","position":0}}'],
    ids=range(10)
)
def test_what_is_no_record_is_an_error(tree, wrong):
    with pytest.raises((LayerStoreError, ValueError, OSError)):
        with assemble(io.BytesIO(wrong), tree) as stream:
            stream.read()


def test_a_reader_takes_what_older_and_other_writers_write(tree):
    old = lines(
        {"type": 2, "payload": base64.b64encode(tarkit.T1[:1024]).decode(), "position": 0},
        {"position": 1, "unknown": {"deep": [1, {"x": None}]}, "PAYLOAD": HELLO, "Size": 5, "nAme": "a/f", "TYPE": 1},
        {"type": 2, "payload": base64.b64encode(tarkit.T1[1029:]).decode(), "position": 2},
        {"type": 2, "payload": "", "position": 3},
        {"type": 7, "payload": None, "position": 4},
    )
    with assemble(old, tree) as stream:
        assert stream.read() == tarkit.T1


def test_a_record_of_no_lines_is_a_tar_of_no_bytes(tree):
    with assemble(io.BytesIO(b""), tree) as stream:
        assert stream.read() == b""


def test_records_come_from_descriptors_too(room, tree):
    path = room / "record"
    with open(path, "wb") as out:
        assert disassemble(tarkit.T1, out.fileno()) == tarkit.T1_DIFF_ID
    fd = os.open(path, os.O_RDONLY)
    try:
        with assemble(fd, tree) as stream:
            assert stream.read() == tarkit.T1
    finally:
        os.close(fd)


def test_a_missing_file_is_told_when_it_is_reached(tree):
    record = record_of(tarkit.T1)
    (tree / "a/f").unlink()
    got = b""
    with assemble(io.BytesIO(record), tree) as stream, pytest.raises((CorruptLayerError, FileNotFoundError)):
        while piece := stream.read(512):
            got += piece
    assert got == tarkit.T1[:1024]


# ---- sources that fail, and sizes ------------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [0, 100, 512, 1026, 1100, 1536, 2000, 2560])
def test_a_source_that_raises_is_heard_wherever_it_stands(at):
    """Before a byte, in a header, in a payload, in the padding, in the end marker and behind it."""
    with pytest.raises(BoomError):
        disassemble(Failing(tarkit.T1, at, step=100), io.BytesIO())


def test_a_sink_that_raises_is_heard():
    class Full(io.BytesIO):
        def write(self, data):
            raise BoomError

    with pytest.raises(BoomError):
        disassemble(tarkit.T1, Full())


COUNTS = """
class Counts:
    lines = 0
    def write(self, data):
        self.lines += bytes(data).count(b"\\n")
        return len(data)
layerstore.disassemble(tarkit.T1, Counts())
source, sink = Reads(tarkit.file("a", b"hello") + tarkit.end(), int(sys.argv[1])), Counts()
"""


def test_zeros_without_end_behind_the_end_need_no_memory():
    """Once read into memory whole, in the original (CVE-2017-14992)."""
    assert growth("layerstore.disassemble(source, sink)\nassert sink.lines == 153, sink.lines", 150 * MIB, before=COUNTS) < 32


def test_a_payload_of_a_hundred_mebibytes_needs_no_memory(room):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = room / "tar"
    with open(path, "wb") as out:
        out.write(tarkit.raw_header("big", size=100 * MIB))
        out.truncate(512 + 100 * MIB + 1024)
    with open(path, "rb") as source, open(os.devnull, "wb") as sink:
        disassemble(source, sink)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


# ---- real writers ---------------------------------------------------------------------------------------------------
def python_tar(form, **members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_python_wrote_is_recorded_with_its_own_names_and_sizes(form):
    members = {"a": b"1", "d/" + "n" * 90: b"22", "d/e/f": b"", "x" * 99: b"4444" * 300}
    record = record_of(python_tar(form, **members))
    assert re.findall(r"F\(.*?\)", in_short(record)) == [f"F({name},{len(data)})" if data else f"F({name})" for name, data in members.items()]


def test_a_symlink_with_a_size_costs_its_reader_nothing(tree):
    tar = symlink("s", "a/f", size=5) + ZZ
    with assemble(io.BytesIO(record_of(tar)), tree) as stream:
        assert stream.read() == tar
