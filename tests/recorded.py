"""Small tars with the tar-split record of each in short, and those that have none: what the core says and what the package says.

"S512 F(a,5) S507": a segment of 512 bytes, the file a of 5, another segment.
"""

import base64
import json

import tarkit
from tarkit import dir, end, file, hardlink

MIB = 1 << 20
A, ZZ = file("a", b"hello"), end()
PLAIN = "S512 F(a,5) S1531"
HEADER = "archive/tar: invalid tar header"

RECORDED = {
    "no bytes": (b"", ""),
    "one zero block": (end(1), "S512"),
    "two zero blocks": (ZZ, "S1024"),
    "no end": (A, "S512 F(a,5) S507"),
    "no padding": (A[:517], "S512 F(a,5)"),
    "part of the padding": (A[:617], "S512 F(a,5) S100"),       # moby forgets these 100 bytes
    "junk behind the end": (A + ZZ + b"j" * 40, f"{PLAIN} S40"),
    "twenty zero blocks": (A + end(20), f"{PLAIN} S9216"),
    "zeros behind the end": (file("a") + ZZ + bytes(100), "S512 F(a) S1024 S100"),
    "pax": (tarkit.pax({"path": "a", "mtime": "1.5"}) + A + ZZ, "S1536 F(a,5) S1531"),
    "pax size": (tarkit.pax({"size": "5"}) + tarkit.raw_header("a") + tarkit.blocks(b"hello") + ZZ, "S1536 F(a,5) S1531"),
    "pax and no entry": (tarkit.pax({"path": "nobody"}) + ZZ, "S2048"),
    "pax over gnu long name": (tarkit.gnu_long("gnu") + tarkit.pax({"path": "pax"}) + A + ZZ, "S2560 F(gnu,5) S1531"),
    "gnu long name": (tarkit.gnu_long("n" * 120) + A + ZZ, f"S1536 F({'n' * 120},5) S1531"),
    "gnu short name": (tarkit.gnu_long("a") + A + ZZ, "S1536 F(a,5) S1531"),
    "global header": (tarkit.global_pax(b"14 comment=ab\n") + A + ZZ, "S526 F(pax_global_header) S1010 F(a,5) S1531"),
    "base-256": (file("a", b"hello", size=tarkit.base256(5, 12)) + ZZ, PLAIN),
    "type Z": (file("a", b"hello", typeflag=b"Z") + ZZ, PLAIN),
    "empty name": (file("") + ZZ, "S512 F() S1024"),
    "V7": (file("a", b"hello", magic=tarkit.V7) + ZZ, PLAIN),
    "directory and file": (tarkit.T1, "S512 F(a/) S512 F(a/f,5) S1531"),
    "hard link without size": (A + hardlink("b", "a") + ZZ, "S512 F(a,5) S1019 F(b) S1024"),
    "names kept as they are": (dir("./") + dir("./d//") + file("./d/../x", b"hello") + ZZ, "S512 F(./) S512 F(./d//) S512 F(./d/../x,5) S1531"),
    "prefix": (file("b", b"hello", prefix="p/q") + ZZ, "S512 F(p/q/b,5) S1531"),
    "star's prefix": (file("b", b"hello", prefix="p", patch={508: b"tar\0"}) + ZZ, "S512 F(p/b,5) S1531"),
}  # fmt: skip

# (tar, the core's code, where, in Go's words)
REFUSED = {
    "zero block and part": (end(1) + bytes(100), "LAY_E_TRUNCATED", 612, "unexpected EOF"),
    "zero block and header": (end(1) + A, "LAY_E_TAR", 512, HEADER),
    "letters": (b"A" * 1024, "LAY_E_TAR", 0, HEADER),
    "cut payload": (A[:514], "LAY_E_TRUNCATED", 514, "unexpected EOF"),
    "cut header": (A[:300], "LAY_E_TRUNCATED", 300, "unexpected EOF"),
    "negative size": (file("a", size=-1) + ZZ, "LAY_E_TAR", 0, HEADER),
    "nine in octal": (file("a", size=b"00000000009\0") + ZZ, "LAY_E_TAR", 0, HEADER),
    "checksum": (file("a", chksum=1) + ZZ, "LAY_E_TAR", 0, HEADER),
    "pax record": (tarkit.pax(b"9 pathxx\n") + A + ZZ, "LAY_E_TAR", 512, HEADER),
    "pax header over a MiB": (tarkit.pax({"c": "c" * MIB}) + A, "LAY_E_LIMIT", 0, "archive/tar: header field too long"),
    "long name over a MiB": (tarkit.gnu_long("c" * MIB + "c") + A, "LAY_E_LIMIT", 0, "archive/tar: header field too long"),
    "endless sparse map": (tarkit.pax_sparse_1_0("s", [], 10, sparse_map=b"2000000\n" + b"0\n0\n" * 300_000), "LAY_E_LIMIT", 1536, "archive/tar: sparse map too long"),
}  # fmt: skip


def in_short(record: bytes) -> str:
    """The lines of a plain record, each in its place."""
    words = []
    for position, line in enumerate(map(json.loads, record.splitlines())):
        assert line["position"] == position
        if line["type"] == 1:
            words.append(f"F({line.get('name', '')}{',' + str(line['size']) if 'size' in line else ''})")
        else:
            words.append(f"S{len(base64.b64decode(line['payload'], validate=True))}")
    return " ".join(words)
