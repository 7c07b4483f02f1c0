"""The layers that must be refused, each with the place or the number its refusal must name.

recipes.py tells what the two kinds mean and lists them by name.
"""

import tarkit
from recipes import HOLED
from tarkit import dir, end, file


# ---- malformed: (tar, first, last) ----------------------------------------------------------------------
def _before():
    """A good entry in front, so that refusal must clean something up."""
    return dir("d/") + file("d/good", b"unpacked before the defect")


def _broken(block: bytes, *, behind: bytes = b""):
    """A defect after a good entry, wherever in `block` it is reported."""
    start = len(_before())
    return _before() + block + behind + end(), start, start + len(block)


def bad_garbage():
    """Not a tar at all."""
    return b"A" * 1024, 0, 512


def bad_checksum():
    """One bit of a header changed."""
    return _broken(tarkit.raw_header("x", chksum=1))


def bad_checksum_field():
    """A checksum that is no number."""
    return _broken(tarkit.raw_header("x", chksum=b"zzzzzz\0 "))


def bad_octal():
    """A nine in an octal number."""
    return _broken(tarkit.raw_header("x", size=b"00000000009\0"))


def bad_mode():
    """Letters in the mode."""
    return _broken(tarkit.raw_header("x", mode=b"rwxr-xr\0"))


def bad_base256_minus_one():
    """A size of -1."""
    return _broken(tarkit.raw_header("x", size=-1))


def bad_base256_overflow():
    """A size beyond 63 bits."""
    return _broken(tarkit.raw_header("x", size=b"\x80" + b"\xff" * 11))


def bad_cut_header():
    """The input ends inside a header."""
    tar = _before() + tarkit.raw_header("x")[:300]
    return tar, len(_before()), len(tar)


def bad_cut_payload():
    """The input ends inside a payload."""
    tar = _before() + file("x", b"hello")[:514]
    return tar, len(_before()), len(tar)


def bad_exabyte_and_nothing_behind():
    """A size of exabytes costs nothing until the bytes arrive."""
    tar = _before() + tarkit.raw_header("x", size=tarkit.base256(1 << 61, 12)) + bytes(4096)
    return tar, len(_before()), len(tar)


def bad_zero_block_then_part():
    """Half an end marker, then not a whole block."""
    tar = _before() + end(1) + bytes(100)
    return tar, len(_before()), len(tar)


def bad_zero_block_then_header():
    """A header after one zero block."""
    tar, start, _ = _broken(end(1) + file("x", b"hidden"))
    return tar, start, start + 1024


def bad_pax_length():
    """A record that says it is longer than the data."""
    return _broken(tarkit.pax(b"99 path=x\n"), behind=file("x"))


def bad_pax_no_equals():
    """A record without an equals sign."""
    return _broken(tarkit.pax(b"9 pathxx\n"), behind=file("x"))


def bad_pax_empty_key():
    """A record without a key."""
    return _broken(tarkit.pax(b"6 =xy\n"), behind=file("x"))


def bad_pax_length_not_a_number():
    """A record whose length is a word."""
    return _broken(tarkit.pax(b"xx path=y\n"), behind=file("x"))


def bad_pax_no_newline():
    """A record that does not end where it says."""
    return _broken(tarkit.pax(b"9 path=xyz\n"), behind=file("x"))


def bad_pax_nul_in_path():
    """A NUL inside a path."""
    return _broken(tarkit.pax({"path": b"a\0b"}), behind=file("x"))


def bad_pax_nul_in_key():
    """A NUL inside a key."""
    return _broken(tarkit.pax({b"VENDOR.a\0b": b"c"}.items()), behind=file("x"))


def bad_pax_number():
    """A uid that is a word."""
    return _broken(tarkit.pax({"uid": "root"}) + file("x"))


def bad_pax_time():
    """A time that is a word."""
    return _broken(tarkit.pax({"mtime": "noon"}) + file("x"))


def bad_pax_negative_size():
    """A size below zero."""
    return _broken(tarkit.pax({"size": "-5"}) + file("x"))


def bad_pax_over_a_mebibyte():
    """Extended headers are limited to 1 MiB."""
    return _broken(tarkit.pax({"comment": "c" * (1 << 20)}) + file("x"))


def bad_gnu_long_name_over_a_mebibyte():
    """So are long names."""
    return _broken(tarkit.gnu_long("n" * ((1 << 20) + 1)) + file("x"))


def bad_pax_cut():
    """The input ends inside an extended header."""
    tar = _before() + tarkit.pax({"path": "p" * 600})[:700]
    return tar, len(_before()), len(tar)


def bad_sparse_overlap():
    """Two extents over one another."""
    return _broken(tarkit.pax_sparse_0_1("s", [(0, b"x" * 600), (100, b"y")], 1000))


def bad_sparse_unsorted():
    """Extents out of order."""
    return _broken(tarkit.pax_sparse_0_0("s", [(800, b"x"), (0, b"y")], 1000))


def bad_sparse_beyond_its_size():
    """An extent that leaves the file."""
    return _broken(tarkit.old_gnu_sparse("s", [(990, b"x" * 20)], 1000))


def bad_sparse_more_than_the_data():
    """Extents that need more bytes than the entry has."""
    return _broken(tarkit.old_gnu_sparse("s", [(0, b"x" * 600)], 1000, size=100))


def bad_sparse_1_0_no_number():
    """A map that is no list of numbers."""
    return _broken(tarkit.pax_sparse_1_0("s", HOLED, 300_000, sparse_map=b"1\nx\n5\n"))


def bad_sparse_1_0_endless_map():
    """A map that claims more entries than any map may have."""
    lines = b"99999999999\n" + b"0\n0\n" * 200_000
    return _broken(tarkit.pax_sparse_1_0("s", [], 10, sparse_map=lines))


def bad_sparse_count():
    """A count that its map does not keep."""
    records = {"GNU.sparse.size": "10", "GNU.sparse.numblocks": "3", "GNU.sparse.map": "0,1"}
    return _broken(tarkit.pax(records) + file("s", b"x"))


# ---- well formed, and nothing a tree can hold -----------------------------------------------------------
def unsupported_type_seven():
    """A contiguous file, code 55."""
    return _before() + file("x", b"hello", typeflag=b"7") + end(), 55


def unsupported_type_z():
    """A letter nobody defined, code 90."""
    return _before() + file("x", b"hello", typeflag=b"Z") + end(), 90


def unsupported_type_v():
    """GNU's volume label, code 86."""
    return _before() + file("label", typeflag=b"V", magic=tarkit.GNU) + end(), 86
