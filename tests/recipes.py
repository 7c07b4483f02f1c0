"""The named layers: every kind of tar that must be stored and given back, or refused.

good_*         register accepts it and gives back the same bytes
bad_*          TarFormatError; the recipe returns (tar, first, last): the offset lies in first..last
unsupported_*  an entry no file system object can be made of; refused with its type's number

Each docstring says in one sentence why the layer is here. A crash found by a fuzzer becomes one
more recipe. What is refused stands in recipes_refused.py. good(), bad() and unsupported() list them by name.
"""

import hashlib
import importlib

import tarkit
from tarkit import dir, end, fifo, file, hardlink, node, opaque, symlink, whiteout

HOLED = [(4096, b"first" * 100), (65536, b"x" * 4096), (200_000, b"last")]
MANY = [(i * 8192, bytes([65 + i % 26]) * 700) for i in range(1, 31)]


def _named(prefix, module=__name__):
    found = vars(importlib.import_module(module))
    return {name: found[name] for name in sorted(found) if name.startswith(prefix)}


def good() -> dict:
    return _named("good_")


def bad() -> dict:
    return _named("bad_", "recipes_refused")


def unsupported() -> dict:
    return _named("unsupported_", "recipes_refused")


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that do not compress, the same in every run."""
    return hashlib.shake_256(b"%d" % seed).digest(size)


# ---- ends and paddings -------------------------------------------------------------------------
def good_t1():
    """The smallest ordinary layer: a directory and a file."""
    return tarkit.T1


def good_t2():
    """A whiteout, an opaque mark and two files."""
    return tarkit.T2


def good_one_zero_block():
    """Half an end marker and nothing else."""
    return end(1)


def good_empty_layer():
    """The empty layer every builder makes: 1024 zero bytes."""
    return end()


def good_blocked_to_10240():
    """GNU tar's blocking factor fills up with zero blocks."""
    return file("a", b"hello") + end(18)


def good_no_end_marker():
    """Ends after the last padding."""
    return file("a", b"hello")


def good_no_padding():
    """Ends with the last byte of the payload."""
    return file("a", b"hello")[:-507]


def good_partial_padding():
    """Ends inside the padding; moby loses those bytes."""
    return file("a", b"hello")[: 512 + 5 + 100]


def good_partial_padding_of_junk():
    """Ends inside a padding that is not zero."""
    return file("a", b"hello")[:517] + b"junk in the padding"


def good_one_zero_block_at_end():
    """Ends with one zero block."""
    return file("a", b"hello") + end(1)


def good_junk_after_end():
    """What follows the end marker belongs to the DiffID."""
    return tarkit.T1 + b"JUNK" * 10


def good_header_after_end():
    """A whole tar after the end marker is trailing data, not entries."""
    return tarkit.T1 + file("after", b"never unpacked") + end()


def good_zeros_after_end_not_whole_block():
    """The last zero block is cut."""
    return file("a") + end() + bytes(100)


def good_junk_in_padding():
    """Padding need not be zero."""
    return file("a", b"hello")[:517] + b"\xff" * 507 + file("b", b"b") + end()


def good_pax_header_then_end():
    """An extended header with no entry to extend."""
    return tarkit.pax({"path": "nobody"}) + end()


def good_large_tail():
    """Trailing zeros over several pieces of the record."""
    return file("a", b"hello") + bytes(5 << 20)


# ---- names ----------------------------------------------------------------------------------------
def good_names_with_dots():
    """Names are cleaned for the tree and kept for the tar."""
    return (
        dir("./")
        + dir("./d/")
        + file("./d/a", b"1")
        + file("/abs", b"2")
        + file("d//b", b"3")
        + file("d/x/../c", b"4")
        + end()
    )


def good_empty_name():
    """An entry without a name changes nothing."""
    return file("") + file("a", b"a") + end()


def good_root_entries():
    """Entries for the top directory itself change nothing."""
    return dir("./", mode=0o700) + dir("/", mode=0o711) + dir(".", mode=0o500) + file("a") + end()


def good_v7():
    """A header from before magic numbers."""
    return file("a", b"hello", magic=tarkit.V7) + end()


def good_star():
    """Schilling's star: prefix of 131 bytes, trailer 'tar'."""
    return file("x", b"hello", prefix=b"star/prefix", patch={508: b"tar\0"}) + end()


def good_ustar_prefix():
    """A path of 200 bytes in name and prefix."""
    prefix, name = tarkit.split_name("p" * 90 + "/" + "q" * 10 + "/" + "n" * 98)
    return file(name, b"hello", prefix=prefix) + end()


def good_gnu_magic_without_prefix():
    """GNU's header has times where USTAR has the prefix."""
    return file("a", b"hello", magic=tarkit.GNU, patch={345: b"00000000001\x0000000000002\x00"}) + end()


def good_gnu_long_name():
    """A name of 300 bytes by L."""
    return tarkit.with_gnu_path("g" * 150 + "/" + "h" * 149, file, b"hello") + end()


def good_gnu_long_link():
    """A symlink's target of 400 bytes by K."""
    return tarkit.gnu_long("t" * 400, b"K") + symlink("s", b"t" * 100, magic=tarkit.GNU) + end()


def good_gnu_long_name_and_link():
    """L and K before one hard link."""
    name = "n" * 120
    return (
        tarkit.with_gnu_path(name, file, b"hello")
        + tarkit.gnu_long(name, b"K")
        + tarkit.gnu_long("m" * 130)
        + hardlink(b"m" * 100, b"n" * 100, magic=tarkit.GNU)
        + end()
    )


def good_pax_path():
    """A long name and a time in nanoseconds by PAX."""
    records = {"path": "é" * 100 + "/x", "mtime": "1700000000.123456789"}
    return tarkit.pax(records) + file("short", b"hello") + end()


def good_pax_path_over_4096():
    """A path longer than any system call takes."""
    name = "/".join(f"{i:03}" + "d" * 247 for i in range(24)) + "/f"
    assert len(name) > 6000
    return tarkit.with_pax_path(name, file, b"deep") + end()


def good_component_of_255():
    """The longest name a directory can hold."""
    return tarkit.with_pax_path("c" * 255, file, b"hello") + end()


def good_not_utf8_names():
    """Latin-1 names, as a file, a directory and a link's target."""
    return (
        file(b"file-\xe4", b"hello")
        + dir(b"d\xff/")
        + file(b"d\xff/\xfe", b"x")
        + symlink(b"l\xe4", b"d\xff/\xfe")
        + hardlink(b"h\xe4", b"file-\xe4")
        + end()
    )


def good_not_utf8_pax_path():
    """A PAX path that breaks PAX's own rule."""
    return tarkit.pax({"path": b"p\xe4\xff/q"}) + file("short", b"hello") + end()


def good_names_json_must_escape():
    """Every character JSON writers argue about."""
    name = 'a<b>&c\u2028"\\\t\x01\x7f\x08\x0cé\n\r\u2029'
    return tarkit.pax({"path": name}) + file("short", b"hello") + end()


def good_trailing_slash_type_nul():
    """Old tars write directories as files whose name ends in a slash."""
    return file("d/", typeflag=b"\0", mode=0o755) + file("d/f", b"f", typeflag=b"\0") + end()


def good_names_through_symlink():
    """The same file reached as d/f and as l/f; the second payload wins in the tree."""
    return dir("d/") + symlink("l", "d") + file("l/f", b"by the link") + file("d/f", b"by the directory") + end()


def good_names_through_symlink_reversed():
    """d/f first and then l/f over it."""
    return dir("d/") + symlink("l", "d") + file("d/f", b"one") + file("l/f", b"second") + end()


def good_symlink_replaced_below_names():
    """A link leads to one directory, later to another: two names, two files."""
    return (
        dir("x/")
        + dir("y/")
        + symlink("l", "x")
        + file("l/f", b"in x")
        + symlink("l", "y")
        + file("l/f", b"in y")
        + end()
    )


# ---- duplicates -----------------------------------------------------------------------------------
def good_duplicate():
    """The same name twice; moby refuses it."""
    return file("a", b"first") + file("a", b"second, longer") + end()


def good_duplicate_spellings():
    """One file under four spellings."""
    return file("a", b"1") + file("./a", b"22") + file("/a", b"333") + file("x/../a", b"4444") + end()


def good_duplicate_same_payload():
    """The same file twice, byte for byte."""
    return file("a", b"same") * 2 + end()


def good_duplicate_big():
    """Earlier payloads of several MiB must come from the record."""
    return file("a", noise(2 << 20)) + file("b", b"b") + file("a", noise(1 << 20, 2)) + end()


def good_duplicate_empty():
    """A payload, then none, then one again."""
    return file("a", b"1") + file("a") + file("a", b"3") + end()


def good_file_becomes_directory_and_back():
    """a is a file, a directory with a file, and a file again."""
    return (
        file("a", b"file")
        + dir("a/")
        + file("a/f", b"below")
        + file("a", b"file again")
        + dir("a/")
        + file("a/f", b"below again")
        + end()
    )


def good_file_replaced_by_everything():
    """A file's place is taken by a link, a fifo and a device."""
    return (
        file("a", b"payload a")
        + symlink("a", "elsewhere")
        + file("b", b"payload b")
        + fifo("b")
        + file("c", b"payload c")
        + node("c", "c", 1, 3)
        + end()
    )


def good_directory_replaced_with_its_content():
    """Files under a directory that a later file replaces whole."""
    return dir("d/") + file("d/a", b"a") + file("d/e/b", b"b") + file("d", b"now a file") + end()


def good_directory_replaced_by_a_device():
    """An empty file that is gone with its directory, whose place a device took; found by fuzz_round_trip."""
    return dir("d/") + file("d/f") + node("d", "c", 1, 3) + end()


def good_whiteout_then_file():
    """A whiteout replaced by the file of that name."""
    return whiteout("a") + file("a", b"alive") + end()


def good_hard_link_outlives_its_name():
    """b keeps a's first content though a is written again."""
    return file("a", b"first") + hardlink("b", "a") + file("a", b"second") + end()


def good_duplicate_of_a_hard_link():
    """A file written over a hard link must not change the other name."""
    return file("a", b"first") + hardlink("b", "a") + file("b", b"second") + end()


# ---- sizes, payloads in odd places ------------------------------------------------------------------
def good_hard_link_with_size():
    """A hard link whose size field is the file's: no payload follows."""
    return file("a", b"hello") + hardlink("b", "a", size=5) + end()


def good_symlink_with_size():
    """A symlink with a size and no payload."""
    return symlink("s", "target", size=6) + file("a", b"a") + end()


def good_directory_with_size():
    """A directory with a size and no payload."""
    return dir("d/", size=4096) + file("d/a", b"a") + end()


def good_nodes_with_size():
    """A fifo and a device with a size and no payload."""
    return fifo("p", size=3) + node("n", "c", 1, 3, size=7) + end()


def good_whiteout_with_payload():
    """A whiteout's payload is in no file; the record must keep it."""
    return file("a", b"a") + whiteout("gone", b"payload of a whiteout") + file("z", b"z") + end()


def good_opaque_with_payload():
    """The same for an opaque mark."""
    return dir("d/") + opaque("d/", noise(70_000)) + file("d/f", b"f") + end()


def good_root_entry_with_payload():
    """A regular file named `.` has a payload and no place in the tree."""
    return file("./", b"nowhere", typeflag=b"0") + file("a", b"a") + end()


def good_large_file():
    """More bytes than any block or ring holds."""
    return file("big", noise(5 << 20)) + file("after", b"x") + end()


def good_zeros_stay_holes():
    """Runs of zeros inside a file."""
    return file("z", b"x" + bytes(1 << 20) + b"y" + bytes(4096 * 3)) + end()


def good_sizes_about_a_block():
    """Payloads of 0, 1, 511, 512, 513, 1023, 1024 and 1025 bytes."""
    sizes = (0, 1, 511, 512, 513, 1023, 1024, 1025)
    return b"".join(file(f"s{n}", noise(n, n)) for n in sizes) + end()


def good_many_small_files():
    """More files than any table starts with."""
    return (
        b"".join(dir(f"d{d}/") + b"".join(file(f"d{d}/f{n}", b"%d" % n) for n in range(60)) for d in range(20)) + end()
    )


# ---- numbers -----------------------------------------------------------------------------------------
def good_base256_size():
    """A size in GNU's binary form."""
    return file("a", b"hello", size=tarkit.base256(5, 12)) + end()


def good_base256_owner():
    """Owners beyond octal's reach."""
    return file("a", b"hello", uid=3_000_000, gid=4_000_000) + end()


def good_numbers_in_old_styles():
    """Blanks before, NULs, blanks behind, no terminator, empty."""
    return (
        file("a", b"hello", size=b"          5 ", mode=b"   644 \0", uid=b"", mtime=b"0" * 11 + b" ")
        + file("b", b"hello", size=b"000000000005", gid=b"\0" * 8)
        + end()
    )


def good_signed_checksum():
    """Some old tars sum signed characters."""
    return file(b"\xe4\xf6\xfc", b"hello", signed=True) + end()


def good_checksum_styles():
    """Seven digits, or blanks in front, instead of six digits, NUL and blank."""
    one, two = file("a", b"a"), file("b", b"b")
    one = one[:148] + b"%07o\x00" % tarkit.checksum(one[:512]) + one[156:]
    two = two[:148] + b"%6o \x00" % tarkit.checksum(two[:512]) + two[156:]
    return one + two + end()


def good_pax_size():
    """PAX's size overrides the block's."""
    return tarkit.pax({"size": "5"}) + file("a", b"hello", size=0) + end()


def good_pax_everything():
    """Every record PAX knows, and some it does not."""
    records = {
        "uid": "1234567",
        "gid": "7654321",
        "uname": "someone",
        "gname": "some",
        "mtime": "1.5",
        "atime": "2.25",
        "ctime": "3",
        "comment": "nothing",
        "VENDOR.key": "value=with=equals",
        "SCHILY.xattr.user.a": "b",
    }
    return tarkit.pax(records) + file("a", b"hello") + end()


def good_pax_empty_values():
    """An empty value keeps the block's."""
    return tarkit.pax({"path": "", "uid": "", "mtime": ""}) + file("a", b"hello", uid=7) + end()


def good_pax_repeated_record():
    """The last of two equal keys wins."""
    return tarkit.pax([("path", "first"), ("path", "second")]) + file("x", b"hello") + end()


def good_two_pax_headers():
    """Two extended headers before one entry."""
    return tarkit.pax({"path": "one"}) + tarkit.pax({"uid": "5"}) + file("x", b"hello") + end()


def good_times():
    """Before 1970, in the year 3000, and to the nanosecond."""
    return (
        tarkit.pax({"mtime": "-5"})
        + file("old", b"1")
        + file("older", b"1", mtime=-(2**33))
        + file("future", b"2", mtime=32503680000)
        + tarkit.pax({"mtime": "1700000000.000000001"})
        + file("exact", b"3")
        + end()
    )


def good_modes():
    """setuid, setgid, sticky, no bits at all, and the file-type bits 20.10 wrote."""
    return (
        dir("sticky/", mode=0o1777)
        + file("setuid", b"#!", mode=0o4755, uid=1000, gid=1000)
        + file("setgid", b"#!", mode=0o2755)
        + file("none", b"secret", mode=0)
        + dir("closed/", mode=0)
        + file("closed/f", b"in", mode=0o100644)
        + dir("typed/", mode=0o040755)
        + end()
    )


# ---- global headers ------------------------------------------------------------------------------------
def good_global_header():
    """git archive's comment in front of everything."""
    return tarkit.global_pax({"comment": "0" * 40}) + file("a", b"hello") + end()


def good_two_global_headers():
    """Two of them under one name; moby refuses the second."""
    return (
        tarkit.global_pax({"comment": "1"})
        + file("a", b"a")
        + tarkit.global_pax({"comment": "2"})
        + file("b", b"b")
        + end()
    )


def good_global_header_named_like_a_file():
    """A global header makes no file."""
    return tarkit.global_pax({"comment": "1"}, name="foo/bar") + file("a", b"a") + end()


# ---- links, devices, attributes -------------------------------------------------------------------------
def good_hard_links():
    """One inode, three names, and a link to a symlink."""
    return (
        dir("d/")
        + file("d/a", b"hello")
        + hardlink("d/b", "d/a")
        + hardlink("c", "/d/a")
        + symlink("s", "d/a")
        + hardlink("t", "s")
        + end()
    )


def good_symlinks_to_anywhere():
    """Targets are text, wherever they lead."""
    return (
        symlink("passwd", "/etc/passwd")
        + symlink("up", "../../x")
        + symlink("self", "self")
        + symlink("dangling", "nowhere/at/all")
        + end()
    )


def good_devices():
    """A fifo, a block device and character devices."""
    return (
        fifo("fifo", mode=0o600)
        + node("null", "c", 1, 3, mode=0o666)
        + node("block", "b", 12, 5, mode=0o660)
        + node("char", "c", 12, 5)
        + end()
    )


def good_xattrs():
    """User attributes, binary ones and a capability."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    return (
        tarkit.xattrs({"user.foo": b"bar", "user.bin": b"\x00\xff\n=x"})
        + file("a", b"hello")
        + tarkit.xattrs({"security.capability": capability})
        + file("cap", b"\x7fELF", mode=0o755)
        + tarkit.xattrs({"user.dir": b"d"})
        + dir("d/")
        + end()
    )


def good_implied_parents():
    """Files whose directories no entry makes."""
    return file("deeply/nested/and/implied", b"x") + dir("implied/d/", mode=0o700) + end()


def good_aufs_names():
    """AUFS's own names get no special handling."""
    return file(".wh..wh.aufs") + dir(".wh..wh.orph/") + file(".wh..wh.plnk/1.2", b"p") + end()


def good_hard_links_by_the_hundred():
    """Hundred files, each with one hard link."""
    return b"".join(file(f"f{i}", b"fooo") + hardlink(f"l{i}", f"f{i}") for i in range(100)) + end()


# ---- sparse files: none of these survives moby ---------------------------------------------------------
def good_sparse_old_gnu():
    """Type S with three extents."""
    return tarkit.old_gnu_sparse("s", HOLED, 300_000) + file("after", b"x") + end()


def good_sparse_old_gnu_extended():
    """Type S with thirty extents: two extension blocks."""
    return tarkit.old_gnu_sparse("s", MANY, 400_000) + file("after", b"x") + end()


def good_sparse_old_gnu_hole_only():
    """Type S without a byte of data."""
    return tarkit.old_gnu_sparse("s", [(1_000_000, b"")], 1_000_000) + end()


def good_sparse_0_0():
    """Offsets and sizes as repeated records."""
    return tarkit.pax_sparse_0_0("s", HOLED, 300_000) + file("after", b"x") + end()


def good_sparse_0_1():
    """One map record."""
    return tarkit.pax_sparse_0_1("s", HOLED, 300_000) + file("after", b"x") + end()


def good_sparse_1_0():
    """The map in front of the data."""
    return tarkit.pax_sparse_1_0("s", HOLED, 300_000) + file("after", b"x") + end()


def good_sparse_1_0_long_map():
    """A map that fills more than one block."""
    return tarkit.pax_sparse_1_0("s", MANY, 400_000) + file("after", b"x") + end()


def good_sparse_without_holes():
    """Sparse in form only."""
    return (
        tarkit.pax_sparse_0_1("a", [(0, b"hello")], 5)
        + tarkit.old_gnu_sparse("b", [(0, b"hello")], 5)
        + tarkit.pax_sparse_1_0("c", [(0, b"hello")], 5)
        + end()
    )


def good_sparse_of_eight_tebibytes():
    """Holes stay holes: nine bytes of data in 8 TiB."""
    return tarkit.pax_sparse_1_0("s", [(1 << 42, b"nine byte")], 1 << 43) + end()


def good_sparse_duplicate():
    """A sparse file written again, sparse and not."""
    return (
        tarkit.pax_sparse_0_1("s", HOLED, 300_000)
        + tarkit.old_gnu_sparse("s", MANY, 400_000)
        + file("s", b"plain")
        + end()
    )
