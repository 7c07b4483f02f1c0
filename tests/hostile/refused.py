"""The layers that must be refused, each with the place or the number its refusal must name.

BAD            TarFormatError; (tar, first, last): the offset lies in first..last
UNSUPPORTED    an entry no file system object can be made of: (tar, the number of its type, which the refusal names)
"""

import tarkit
from recipes import HOLED
from tarkit import dir, end, file

# A good entry in front, so that refusal must clean something up.
BEFORE = dir("d/") + file("d/good", b"unpacked before the defect")


def _broken(block: bytes, *, behind: bytes = b"") -> tuple[bytes, int, int]:
    """A defect after a good entry, wherever in `block` it is reported."""
    return BEFORE + block + behind + end(), len(BEFORE), len(BEFORE + block)


def _ends(block: bytes) -> tuple[bytes, int, int]:
    """The input ends in or behind `block`."""
    return BEFORE + block, len(BEFORE), len(BEFORE + block)


BAD = {
    # Not a tar at all.
    "bad_garbage": lambda: (b"A" * 1024, 0, 512),
    # One bit of a header changed.
    "bad_checksum": lambda: _broken(tarkit.raw_header("x", chksum=1)),
    # A checksum that is no number.
    "bad_checksum_field": lambda: _broken(tarkit.raw_header("x", chksum=b"zzzzzz\0 ")),
    # A nine in an octal number.
    "bad_octal": lambda: _broken(tarkit.raw_header("x", size=b"00000000009\0")),
    # Letters in the mode.
    "bad_mode": lambda: _broken(tarkit.raw_header("x", mode=b"rwxr-xr\0")),
    # A size of -1.
    "bad_base256_minus_one": lambda: _broken(tarkit.raw_header("x", size=-1)),
    # A size beyond 63 bits.
    "bad_base256_overflow": lambda: _broken(tarkit.raw_header("x", size=b"\x80" + b"\xff" * 11)),
    # The input ends inside a header.
    "bad_cut_header": lambda: _ends(tarkit.raw_header("x")[:300]),
    # The input ends inside a payload.
    "bad_cut_payload": lambda: _ends(file("x", b"hello")[:514]),
    # A size of exabytes costs nothing until the bytes arrive.
    "bad_exabyte_and_nothing_behind": lambda: _ends(tarkit.raw_header("x", size=tarkit.base256(1 << 61, 12)) + bytes(4096)),
    # Half an end marker, then not a whole block.
    "bad_zero_block_then_part": lambda: _ends(end(1) + bytes(100)),
    # A header after one zero block.
    "bad_zero_block_then_header": lambda: (*_broken(end(1) + file("x", b"hidden"))[:2], len(BEFORE) + 1024),
    # A record that says it is longer than the data.
    "bad_pax_length": lambda: _broken(tarkit.pax(b"99 path=x\n"), behind=file("x")),
    # A record without an equals sign.
    "bad_pax_no_equals": lambda: _broken(tarkit.pax(b"9 pathxx\n"), behind=file("x")),
    # A record without a key.
    "bad_pax_empty_key": lambda: _broken(tarkit.pax(b"6 =xy\n"), behind=file("x")),
    # A record whose length is a word.
    "bad_pax_length_not_a_number": lambda: _broken(tarkit.pax(b"xx path=y\n"), behind=file("x")),
    # A record that does not end where it says.
    "bad_pax_no_newline": lambda: _broken(tarkit.pax(b"9 path=xyz\n"), behind=file("x")),
    # A NUL inside a path.
    "bad_pax_nul_in_path": lambda: _broken(tarkit.pax({"path": b"a\0b"}), behind=file("x")),
    # A NUL inside a key.
    "bad_pax_nul_in_key": lambda: _broken(tarkit.pax({b"VENDOR.a\0b": b"c"}.items()), behind=file("x")),
    # A uid that is a word.
    "bad_pax_number": lambda: _broken(tarkit.pax({"uid": "root"}) + file("x")),
    # A time that is a word.
    "bad_pax_time": lambda: _broken(tarkit.pax({"mtime": "noon"}) + file("x")),
    # A size below zero.
    "bad_pax_negative_size": lambda: _broken(tarkit.pax({"size": "-5"}) + file("x")),
    # Extended headers are limited to 1 MiB.
    "bad_pax_over_a_mebibyte": lambda: _broken(tarkit.pax({"comment": "c" * (1 << 20)}) + file("x")),
    # So are long names.
    "bad_gnu_long_name_over_a_mebibyte": lambda: _broken(tarkit.gnu_long("n" * ((1 << 20) + 1)) + file("x")),
    # The input ends inside an extended header.
    "bad_pax_cut": lambda: _ends(tarkit.pax({"path": "p" * 600})[:700]),
    # Two extents over one another.
    "bad_sparse_overlap": lambda: _broken(tarkit.pax_sparse_0_1("s", [(0, b"x" * 600), (100, b"y")], 1000)),
    # Extents out of order.
    "bad_sparse_unsorted": lambda: _broken(tarkit.pax_sparse_0_0("s", [(800, b"x"), (0, b"y")], 1000)),
    # An extent that leaves the file.
    "bad_sparse_beyond_its_size": lambda: _broken(tarkit.old_gnu_sparse("s", [(990, b"x" * 20)], 1000)),
    # Extents that need more bytes than the entry has.
    "bad_sparse_more_than_the_data": lambda: _broken(tarkit.old_gnu_sparse("s", [(0, b"x" * 600)], 1000, size=100)),
    # A map that is no list of numbers.
    "bad_sparse_1_0_no_number": lambda: _broken(tarkit.pax_sparse_1_0("s", HOLED, 300_000, sparse_map=b"1\nx\n5\n")),
    # A map that claims more entries than any map may have.
    "bad_sparse_1_0_endless_map": lambda: _broken(
        tarkit.pax_sparse_1_0("s", [], 10, sparse_map=b"99999999999\n" + b"0\n0\n" * 200_000)),
    # A count that its map does not keep.
    "bad_sparse_count": lambda: _broken(
        tarkit.pax({"GNU.sparse.size": "10", "GNU.sparse.numblocks": "3", "GNU.sparse.map": "0,1"}) + file("s", b"x")),
}  # fmt: skip
UNSUPPORTED = {
    # A contiguous file, code 55.
    "unsupported_type_seven": lambda: (BEFORE + file("x", b"hello", typeflag=b"7") + end(), 55),
    # An undefined letter, code 90.
    "unsupported_type_z": lambda: (BEFORE + file("x", b"hello", typeflag=b"Z") + end(), 90),
    # GNU's volume label, code 86.
    "unsupported_type_v": lambda: (BEFORE + file("label", typeflag=b"V", magic=tarkit.GNU) + end(), 86),
}
