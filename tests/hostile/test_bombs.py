"""Bombs: small inputs that ask for a lot. Each is refused or survived with less than 64 MB of memory, and soon.

Each runs in a process of its own, forked from one that did nothing but import layerstore: what it says of its peak
is the bomb's alone.
"""

import contextlib
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import tarkit
from tarkit import dir, end, file, symlink

import layerstore

MOST_MB = 64
MIB = 1 << 20

SERVER = """
import json, os, sys, time
import layerstore

class Reads:
    def __init__(self, path): self.file = open(path, "rb")
    def read(self, n): return self.file.read(n)

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024

def answer(job):
    def use_up(stream):
        with stream:
            while stream.read(1 << 20): pass
    work = {
        "register": lambda: store.register(job["source"]),
        "register from read(n)": lambda: store.register(Reads(job["source"])),
        "apply_diff": lambda: store.create_rw_layer("c").apply_diff(job["source"]),
        "read": lambda: use_up(store.get(job["source"]).tar_stream()),
        "size": lambda: store.get(job["source"]).tar_stream().size,
        "seek": lambda: store.get(job["source"]).tar_stream().seek(1 << 40),
        "verify": lambda: [[p.kind, p.path, p.detail] for p in store.verify(job["source"])],
        "disassemble": lambda: layerstore.disassemble(job["source"], os.open("/dev/null", os.O_WRONLY)),
        "assemble": lambda: use_up(layerstore.assemble(os.open(job["source"], os.O_RDONLY), job["root"])),
    }[job["work"]]
    store = layerstore.Store(job["root"], options={"durability": "none", **job["options"]}) if job["work"] not in ("disassemble", "assemble") else None
    before, began = peak(), time.monotonic()
    try:
        result = work()
        # Of a layer that was not refused: what it was taken for.
        about = {"layer": [result.diff_id, result.diff_size, os.path.getsize(job["source"])]} if job["work"] == "register" else {}
        said = {"result": result if job["work"] == "verify" else bool(result), **about}
    except Exception as error:
        said = {"error": type(error).__name__, "text": str(error), "option": getattr(error, "option", ""), "path": getattr(error, "path", "")}
    return {**said, "mb": peak() - before, "seconds": time.monotonic() - began}

for line in sys.stdin:
    child = os.fork()
    if not child:
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\\n")
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        sys.stdout.write(json.dumps({"error": f"died of {status}", "mb": 1e9}) + "\\n")
    sys.stdout.flush()
"""


@pytest.fixture(scope="module")
def server():
    environment = {**os.environ, "PYTHONPATH": os.fspath(Path(layerstore.__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield process
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.fixture
def said(server, root):
    """said(work, source, **options): what came of it, within the bounds of memory."""

    def ask(work, source, *, at=root, **options):
        job = {"work": work, "source": os.fspath(source), "root": os.fspath(at), "options": options}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        assert answer["mb"] < MOST_MB, answer
        return answer

    return ask


def packed(*parts):
    """gzip of (bytes, how often) after one another, without ever making them."""
    members = []
    for data, times in parts:
        members.append(gzip.compress(data, 6) * times)
    return b"".join(members)


def zeros(count):
    return (bytes(16 * MIB), count >> 24)


def header(name, size, **fields):
    return tarkit.raw_header(name, size=size if size < 8**11 else tarkit.base256(size, 12), **fields)


TEN_GB = 10 << 30
LONG_NAME = tarkit.pax({"path": ("p" * 200 + "/") * 79})
MUCH = tarkit.pax({f"SCHILY.xattr.trusted.overlay.{n}": bytes(60_000) for n in range(17)})

# what: (the tar, options, the option that refuses it or "" if it is taken)
TARS = {
    "10 GB of zeros in a file": (lambda: packed((header("z", TEN_GB), 1), zeros(TEN_GB), (end(), 1)), {"max_size": "1G"}, "max_size"),
    "10 GB of zeros, the tar bounded": (lambda: packed((header("z", TEN_GB), 1), zeros(TEN_GB), (end(), 1)), {"max_tar_size": "64M"}, "max_tar_size"),
    "10 GB of zeros, the file bounded": (lambda: packed((header("z", TEN_GB), 1), zeros(TEN_GB), (end(), 1)), {"max_file_size": "1G"}, "max_file_size"),
    "10 GB of nothing but zeros": (lambda: packed(zeros(TEN_GB)), {"max_tar_size": "64M"}, "max_tar_size"),
    "10 GB of zeros behind the end": (lambda: packed((file("a") + end(), 1), zeros(TEN_GB)), {"max_tar_size": "64M"}, "max_tar_size"),
    "500 MB of zeros in a file": (lambda: packed((header("z", 512 * MIB), 1), zeros(512 * MIB), (end(), 1)), {}, ""),
    "a file of 4 exabytes": (lambda: header("z", 1 << 62) + bytes(5000), {"max_size": "100G"}, "max_size"),
    "a hole of 4 exabytes": (lambda: tarkit.pax_sparse_1_0("z", [(1 << 61, b"x")], 1 << 62) + end(), {}, ""),
    "a million PAX records": (lambda: tarkit.pax(b"6 a=b\n" * MIB) + file("x"), {}, "max_header"),
    "as many PAX records as fit": (lambda: tarkit.pax(b"6 a=b\n" * (MIB // 6)) + file("x") + end(), {}, ""),
    "a million extended headers": (lambda: packed((tarkit.pax(b"6 a=b\n") * 1000, 1000), (file("x") + end(), 1)), {}, "max_headers"),
    "a million empty extended headers": (lambda: packed((tarkit.pax(b"") * 1000, 1000), (file("x") + end(), 1)), {}, "max_headers"),
    "a thousand long names": (lambda: packed((tarkit.gnu_long("n" * 900_000), 1000), (file("x") + end(), 1)), {}, "max_headers"),
    "a thousand large global headers": (lambda: packed((tarkit.global_pax({"c": "c" * 900_000}), 1000), (end(), 1)), {}, "max_global_headers"),
    "a million global headers": (lambda: packed((tarkit.global_pax({}) * 1000, 1000), (end(), 1)), {}, "max_global_headers"),
    "a million entries": (lambda: packed((file("x") * 1000, 1000), (end(), 1)), {"max_entries": "1000"}, "max_entries"),
    "a million names": (lambda: packed((LONG_NAME + dir("x"), 1000), (end(), 1)), {"max_names": "100K"}, "max_names"),
    "one name again and again": (lambda: packed((file("x", b"1"), 2000), (end(), 1)), {}, ""),
    "one directory again and again": (lambda: packed((dir("d/"), 200_000), (end(), 1)), {"max_entries": "50000"}, "max_entries"),
    "a mebibyte of depth": (lambda: tarkit.with_pax_path("d/" * 500_000 + "f") + end(), {}, "max_path"),
    "ten thousand implied directories": (lambda: b"".join(tarkit.with_pax_path(f"{n}/" + "d/" * 1000 + "f") for n in range(10)) + end(), {"max_entries": "5000"}, "max_entries"),
    "fifty thousand attributes": (lambda: tarkit.pax(b"24 SCHILY.xattr.user.a=\n" * 43_000) + file("x") + end(), {}, "max_xattrs"),
    "a hundred files of a mebibyte of attributes": (lambda: b"".join(MUCH + file(f"x{n}") for n in range(100)) + end(), {}, ""),
    "a million extents": (
        lambda: tarkit.old_gnu_sparse("s", [(0, b"")] * 4, 90, patch={482: b"\x01"})[:512]
        + (tarkit._sparse_slots([(0, 0)] * 21, 21) + b"\x01" + bytes(7)) * 49933 + end(), {}, "max_extents"),
    "a window of 2 GiB": (lambda: b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x01\0\0", {}, "max_window"),
    "a dictionary of 4 GiB": (lambda: xz_of_4_gib(), {}, "max_window"),
    "a gzip header without end": (lambda: b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"n" * (16 * MIB), {}, "TarFormatError"),
    "gzip in gzip in gzip": (lambda: gzip.compress(gzip.compress(gzip.compress(end()))), {}, "TarFormatError"),
}  # fmt: skip


def xz_of_4_gib():
    """The byte for the dictionary's size in the block's header says 4 GiB - 1."""
    whole = bytearray(lzma.compress(file("a", b"a" * 5000) + end(), check=lzma.CHECK_NONE, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}]))
    length = (whole[12] + 1) * 4
    at = whole.index(b"\x21\x01", 12) + 2
    whole[at] = 40
    whole[12 + length - 4 : 12 + length] = zlib.crc32(whole[12 : 12 + length - 4]).to_bytes(4, "little")
    return bytes(whole)


@pytest.mark.time_limit(20)
@pytest.mark.parametrize("what", TARS)
def test_a_bomb_is_refused_or_survived_in_little_memory(said, room, open_store, what):
    make, options, refused = TARS[what]
    (room / "bomb").write_bytes(make())
    answer = said("register", room / "bomb", **options)
    if not refused:
        assert answer.get("result") is True, answer
        return
    if refused == "TarFormatError":
        assert answer["error"] == refused, answer
        return
    assert (answer.get("error"), answer.get("option")) == ("LimitExceededError", refused), answer
    assert answer["seconds"] < 5


@pytest.mark.parametrize("work", ["register from read(n)", "apply_diff", "disassemble"])
@pytest.mark.parametrize("what", ["a million extended headers", "a mebibyte of depth", "a million extents", "a window of 2 GiB", "a dictionary of 4 GiB"])
def test_it_is_the_same_however_the_bytes_come(said, room, what, work):
    make, options, refused = TARS[what]
    (room / "bomb").write_bytes(make())
    answer = said(work, room / "bomb", **options)
    assert (answer.get("error"), answer.get("option")) == ("LimitExceededError", refused), answer


# ---- records of other writers ------------------------------------------------------------------------------
def line(**fields):
    return json.dumps(fields).encode() + b"\n"


SEGMENT = line(type=2, payload="A" * 1000, position=0)
RECORDS = {
    "a line of 4 GB": lambda: packed((b'{"type":2,"payload":"', 1), (b"A" * (16 * MIB), 256), (b'","position":0}\n', 1)),
    "blanks of 4 GB": lambda: packed((b" " * (16 * MIB), 256)),
    "a name of 4 GB": lambda: packed((b'{"type":1,"name":"', 1), (b"n" * (16 * MIB), 256), (b'","position":0}\n', 1)),
    "nesting of 4 GB": lambda: packed((b'{"x":', 1), (b"[" * (16 * MIB), 256)),
    "100 GB of empty segments": lambda: packed((line(type=2, payload="", position=0) * 400_000, 6000)),
    "100 GB of lines of no type": lambda: packed((line(type=9) * 1_500_000, 6000)),
    "100 GB of empty files": lambda: packed((line(type=1, name="f", payload=None, position=1) * 300_000, 6000)),
    "lines out of order": lambda: gzip.compress(b"".join(sorted(tar_split_lines(), reverse=True))),
    "positions out of order": lambda: gzip.compress(tar_split_lines()[0] + tar_split_lines()[2] + tar_split_lines()[1]),
    "sizes of exabytes": lambda: gzip.compress(line(type=1, name="a/f", size=1 << 62, payload="AAAAAAAAAAA=", position=0) * 3),
    "a file outside": lambda: gzip.compress(line(type=1, name="../../../../../../../../etc/passwd", size=os.stat("/etc/passwd").st_size, payload=crc("/etc/passwd"), position=0)),
    "the driver's own file": lambda: gzip.compress(line(type=1, name="a/../../link", size=26, payload="AAAAAAAAAAA=", position=0)),
    "a base64 of nonsense": lambda: gzip.compress(line(type=2, payload="@@@@", position=0)),
    "no JSON": lambda: gzip.compress(b"\0" * 1000),
    "no gzip": lambda: b"\x1f\x8b\x08\0" + b"\xff" * 1000,
    "cut": lambda: packed((SEGMENT * 100, 10))[:-9],
    "nothing": lambda: b"",
}  # fmt: skip


def tar_split_lines():
    out = io.BytesIO()
    layerstore.disassemble(tarkit.T1, out)
    return out.getvalue().splitlines(keepends=True)


def crc(path):
    """The right one: it must be refused for its name alone."""
    out = io.BytesIO()
    layerstore.disassemble(file("x", Path(path).read_bytes()) + end(), out)
    return json.loads(out.getvalue().splitlines()[1])["payload"]


@pytest.mark.time_limit(20)
@pytest.mark.parametrize("record", RECORDS)
def test_a_hostile_record_is_told_as_such_in_little_memory(said, root, open_store, record):
    with open_store() as store:
        layer = store.register(tarkit.T1)
        chain = layer.chain_id
    (root / "image/overlay2/layerdb/sha256" / chain.encoded / "tar-split.json.gz").write_bytes(RECORDS[record]())
    answer = said("read", chain)
    assert answer.get("error") == "CorruptLayerError", answer
    assert answer["text"]
    found = said("verify", chain)
    assert {kind for kind, _, _ in found["result"]} & {"content", "missing", "metadata"}, found
    for work in ("size", "seek"):
        answer = said(work, chain)
        assert answer.get("error", "CorruptLayerError") == "CorruptLayerError", answer


def test_a_record_names_nothing_outside_of_its_layer(said, root, open_store):
    """Neither reading nor verifying looks at it: the refusal is the name's, whatever is there."""
    with open_store() as store:
        chain = store.register(tarkit.T1).chain_id
    target = root / "image/overlay2/layerdb/sha256" / chain.encoded / "tar-split.json.gz"
    for name in ("../../../../../../../../etc/passwd", "/../../../../../../../etc/passwd", "..", "a/../.."):
        target.write_bytes(gzip.compress(line(type=1, name=name, size=5, payload="PD7u4tgQAAA=", position=0)))
        answer = said("read", chain)
        assert (answer["error"], "outside of the layer" in answer["text"]) == ("CorruptLayerError", True), answer
        assert [detail for _, _, detail in said("verify", chain)["result"]] == [
            "the tar-split record cannot be read: bytes of a file where none are due", "the record names a file outside of the layer",
        ]  # fmt: skip


@pytest.mark.parametrize("record", ["a line of 4 GB", "100 GB of empty segments", "blanks of 4 GB"])
def test_assemble_alone_is_as_careful(said, room, record):
    (room / "record").write_bytes(RECORDS[record]())
    with contextlib.suppress(FileExistsError):
        (room / "tree").mkdir()
    answer = said("assemble", room / "record", at=room / "tree")
    assert answer.get("error") == "CorruptLayerError", answer


def test_names_through_links_to_long_paths_take_no_longer_than_the_long_paths(store):
    """Links that lead through links: 84 directories of 250 letters behind each name of 13. The way there is looked for once."""
    deep = "/".join(["p" * 250] * 14)

    def names(linked):
        out = [dir("d/")]
        for hop in range(6):
            start = "s" + "/x" * (hop - 1) + "/" if hop else ""
            out.append(tarkit.pax({"path": f"{start}{deep}/"}) + dir("long/"))
            out.append(tarkit.pax({"linkpath": deep}) + symlink(f"{start}x" if hop else "s", "long"))
        way = "s/x/x/x/x/x" if linked else "d"
        return b"".join([*out, *(file(f"{way}/{n}/f") for n in range(1000)), end()])

    def seconds(tar):
        began = time.process_time()
        with store.register(tar), store.create_rw_layer("box") as box:
            box.apply_diff(tar)
        return time.process_time() - began

    plain = seconds(names(False))
    assert seconds(names(True)) < 6 * plain + 2
