"""The named layers: every kind of tar that must be stored and returned, byte for byte: GOOD, by name.

Above each stands in one sentence why it is here. A crash found by a fuzzer becomes one more. What is refused stands in
hostile/refused.py.
"""

import hashlib

import tarkit
from tarkit import dir, end, fifo, file, hardlink, node, opaque, symlink, whiteout

HOLED = [(4096, b"first" * 100), (65536, b"x" * 4096), (200_000, b"last")]
MANY = [(i * 8192, bytes([65 + i % 26]) * 700) for i in range(1, 31)]


def listing(names: str) -> bytes:
    """A tar of these names: what ends in a slash is a directory, a file holds its name."""
    return b"".join(dir(name) if name.endswith("/") else file(name, name.encode()) for name in names.split()) + end()


# Docker's own series of whiteouts: each over those before it, and the names that are there then.
SERIES = [
    (listing(".baz bar/ bar/bax bar/bay/ baz foo/ foo/.abc foo/.bcd/ foo/.bcd/a foo/cde/ foo/cde/def foo/cde/efg foo/fgh foobar"), ""),
    (listing(".bay .wh.baz foo/ foo/.bce foo/.wh..wh..opq foo/cde/ foo/cde/efg"), ".bay .baz bar bar/bax bar/bay foo foo/.bce foo/cde foo/cde/efg foobar"),
    (listing(".bay .wh..baz .wh.foobar foo/ foo/.abc foo/.wh.cde bar/"), ".bay bar bar/bax bar/bay foo foo/.abc foo/.bce"),
]  # fmt: skip


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that do not compress, the same in every run."""
    return hashlib.shake_256(b"%d" % seed).digest(size)


GOOD = {
    # ---- ends and paddings -------------------------------------------------------------------------
    # The smallest ordinary layer: a directory and a file.
    "good_t1": lambda: tarkit.T1,
    # A whiteout, an opaque mark and two files.
    "good_t2": lambda: tarkit.T2,
    # Half an end marker and nothing else.
    "good_one_zero_block": lambda: end(1),
    # The empty layer every builder makes: 1024 zero bytes.
    "good_empty_layer": lambda: end(),
    # GNU tar's blocking factor fills up with zero blocks.
    "good_blocked_to_10240": lambda: file("a", b"hello") + end(18),
    # Ends after the last padding.
    "good_no_end_marker": lambda: file("a", b"hello"),
    # Ends with the last byte of the payload.
    "good_no_padding": lambda: file("a", b"hello")[:-507],
    # Ends inside the padding; moby loses those bytes.
    "good_partial_padding": lambda: file("a", b"hello")[: 512 + 5 + 100],
    # Ends inside a padding that is not zero.
    "good_partial_padding_of_junk": lambda: file("a", b"hello")[:517] + b"junk in the padding",
    # Ends with one zero block.
    "good_one_zero_block_at_end": lambda: file("a", b"hello") + end(1),
    # What follows the end marker belongs to the DiffID.
    "good_junk_after_end": lambda: tarkit.T1 + b"JUNK" * 10,
    # A whole tar after the end marker is trailing data, not entries.
    "good_header_after_end": lambda: tarkit.T1 + file("after", b"never unpacked") + end(),
    # The last zero block is cut.
    "good_zeros_after_end_not_whole_block": lambda: file("a") + end() + bytes(100),
    # Padding need not be zero.
    "good_junk_in_padding": lambda: file("a", b"hello")[:517] + b"\xff" * 507 + file("b", b"b") + end(),
    # An extended header with no entry to extend.
    "good_pax_header_then_end": lambda: tarkit.pax({"path": "nobody"}) + end(),
    # Trailing zeros over several pieces of the record.
    "good_large_tail": lambda: file("a", b"hello") + bytes(5 << 20),
    # ---- names ----------------------------------------------------------------------------------------
    # Names are cleaned for the tree and kept for the tar.
    "good_names_with_dots": lambda: (
        dir("./") + dir("./d/") + file("./d/a", b"1") + file("/abs", b"2") + file("d//b", b"3")
        + file("d/x/../c", b"4") + end()),
    # An entry without a name changes nothing.
    "good_empty_name": lambda: file("") + file("a", b"a") + end(),
    # Entries for the top directory itself change nothing.
    "good_root_entries": lambda: (
        dir("./", mode=0o700) + dir("/", mode=0o711) + dir(".", mode=0o500) + file("a") + end()),
    # A header from before magic numbers.
    "good_v7": lambda: file("a", b"hello", magic=tarkit.V7) + end(),
    # Schilling's star: prefix of 131 bytes, trailer 'tar'.
    "good_star": lambda: file("x", b"hello", prefix=b"star/prefix", patch={508: b"tar\0"}) + end(),
    # A path of 200 bytes in name and prefix.
    "good_ustar_prefix": lambda: file("n" * 98, b"hello", prefix="p" * 90 + "/" + "q" * 10) + end(),
    # GNU's header has times where USTAR has the prefix.
    "good_gnu_magic_without_prefix": lambda: (
        file("a", b"hello", magic=tarkit.GNU, patch={345: b"00000000001\x0000000000002\x00"}) + end()),
    # A name of 300 bytes by L.
    "good_gnu_long_name": lambda: tarkit.with_gnu_path("g" * 150 + "/" + "h" * 149, file, b"hello") + end(),
    # A symlink's target of 400 bytes by K.
    "good_gnu_long_link": lambda: tarkit.gnu_long("t" * 400, b"K") + symlink("s", b"t" * 100, magic=tarkit.GNU) + end(),
    # L and K before one hard link.
    "good_gnu_long_name_and_link": lambda: (
        tarkit.with_gnu_path("n" * 120, file, b"hello") + tarkit.gnu_long("n" * 120, b"K") + tarkit.gnu_long("m" * 130)
        + hardlink(b"m" * 100, b"n" * 100, magic=tarkit.GNU) + end()),
    # A long name and a time in nanoseconds by PAX.
    "good_pax_path": lambda: (
        tarkit.pax({"path": "é" * 100 + "/x", "mtime": "1700000000.123456789"}) + file("short", b"hello") + end()),
    # A path longer than any system call takes.
    "good_pax_path_over_4096": lambda: (
        tarkit.with_pax_path("/".join(f"{i:03}" + "d" * 247 for i in range(24)) + "/f", file, b"deep") + end()),
    # The longest name a directory can hold.
    "good_component_of_255": lambda: tarkit.with_pax_path("c" * 255, file, b"hello") + end(),
    # Latin-1 names, as a file, a directory and a link's target.
    "good_not_utf8_names": lambda: (
        file(b"file-\xe4", b"hello") + dir(b"d\xff/") + file(b"d\xff/\xfe", b"x") + symlink(b"l\xe4", b"d\xff/\xfe")
        + hardlink(b"h\xe4", b"file-\xe4") + end()),
    # A PAX path that breaks PAX's own rule.
    "good_not_utf8_pax_path": lambda: tarkit.pax({"path": b"p\xe4\xff/q"}) + file("short", b"hello") + end(),
    # Every character JSON writers argue about.
    "good_names_json_must_escape": lambda: (
        tarkit.pax({"path": 'a<b>&c\u2028"\\\t\x01\x7f\x08\x0cé\n\r\u2029'}) + file("short", b"hello") + end()),
    # Old tars write directories as files whose name ends in a slash.
    "good_trailing_slash_type_nul": lambda: (
        file("d/", typeflag=b"\0", mode=0o755) + file("d/f", b"f", typeflag=b"\0") + end()),
    # The same file reached as d/f and as l/f; the second payload wins in the tree.
    "good_names_through_symlink": lambda: (
        dir("d/") + symlink("l", "d") + file("l/f", b"by the link") + file("d/f", b"by the directory") + end()),
    # d/f first and then l/f over it.
    "good_names_through_symlink_reversed": lambda: (
        dir("d/") + symlink("l", "d") + file("d/f", b"one") + file("l/f", b"second") + end()),
    # A link leads to one directory, later to another: two names, two files.
    "good_symlink_replaced_below_names": lambda: (
        dir("x/") + dir("y/") + symlink("l", "x") + file("l/f", b"in x") + symlink("l", "y") + file("l/f", b"in y")
        + end()),
    # ---- duplicates -----------------------------------------------------------------------------------
    # The same name twice; moby refuses it.
    "good_duplicate": lambda: file("a", b"first") + file("a", b"second, longer") + end(),
    # One file under four spellings.
    "good_duplicate_spellings": lambda: (
        file("a", b"1") + file("./a", b"22") + file("/a", b"333") + file("x/../a", b"4444") + end()),
    # The same file twice, byte for byte.
    "good_duplicate_same_payload": lambda: file("a", b"same") * 2 + end(),
    # Earlier payloads of several MiB must come from the record.
    "good_duplicate_big": lambda: file("a", noise(2 << 20)) + file("b", b"b") + file("a", noise(1 << 20, 2)) + end(),
    # A payload, then none, then one again.
    "good_duplicate_empty": lambda: file("a", b"1") + file("a") + file("a", b"3") + end(),
    # It is a file, a directory with a file, and a file again.
    "good_file_becomes_directory_and_back": lambda: (
        file("a", b"file") + dir("a/") + file("a/f", b"below") + file("a", b"file again") + dir("a/")
        + file("a/f", b"below again") + end()),
    # A file's place is taken by a link, a fifo and a device.
    "good_file_replaced_by_everything": lambda: (
        file("a", b"payload a") + symlink("a", "elsewhere") + file("b", b"payload b") + fifo("b")
        + file("c", b"payload c") + node("c", "c", 1, 3) + end()),
    # Files under a directory that a later file replaces whole.
    "good_directory_replaced_with_its_content": lambda: (
        dir("d/") + file("d/a", b"a") + file("d/e/b", b"b") + file("d", b"now a file") + end()),
    # An empty file that is gone with its directory, whose place a device took; found by fuzz_round_trip.
    "good_directory_replaced_by_a_device": lambda: dir("d/") + file("d/f") + node("d", "c", 1, 3) + end(),
    # A whiteout replaced by the file of that name.
    "good_whiteout_then_file": lambda: whiteout("a") + file("a", b"alive") + end(),
    # b keeps a's first content though a is written again.
    "good_hard_link_outlives_its_name": lambda: file("a", b"first") + hardlink("b", "a") + file("a", b"second") + end(),
    # A file written over a hard link must not change the other name.
    "good_duplicate_of_a_hard_link": lambda: file("a", b"first") + hardlink("b", "a") + file("b", b"second") + end(),
    # ---- sizes, payloads in odd places ------------------------------------------------------------------
    # A hard link whose size field is the file's: no payload follows.
    "good_hard_link_with_size": lambda: file("a", b"hello") + hardlink("b", "a", size=5) + end(),
    # A symlink with a size and no payload.
    "good_symlink_with_size": lambda: symlink("s", "target", size=6) + file("a", b"a") + end(),
    # A directory with a size and no payload.
    "good_directory_with_size": lambda: dir("d/", size=4096) + file("d/a", b"a") + end(),
    # A fifo and a device with a size and no payload.
    "good_nodes_with_size": lambda: fifo("p", size=3) + node("n", "c", 1, 3, size=7) + end(),
    # A whiteout's payload is in no file; the record must keep it.
    "good_whiteout_with_payload": lambda: (
        file("a", b"a") + whiteout("gone", b"payload of a whiteout") + file("z", b"z") + end()),
    # The same for an opaque mark.
    "good_opaque_with_payload": lambda: dir("d/") + opaque("d/", noise(70_000)) + file("d/f", b"f") + end(),
    # A regular file named `.` has a payload and no place in the tree.
    "good_root_entry_with_payload": lambda: file("./", b"nowhere", typeflag=b"0") + file("a", b"a") + end(),
    # More bytes than any block or ring holds.
    "good_large_file": lambda: file("big", noise(5 << 20)) + file("after", b"x") + end(),
    # Runs of zeros inside a file.
    "good_zeros_stay_holes": lambda: file("z", b"x" + bytes(1 << 20) + b"y" + bytes(4096 * 3)) + end(),
    # Payloads of 0, 1, 511, 512, 513, 1023, 1024 and 1025 bytes.
    "good_sizes_about_a_block": lambda: (
        b"".join(file(f"s{n}", noise(n, n)) for n in (0, 1, 511, 512, 513, 1023, 1024, 1025)) + end()),
    # More files than any table starts with.
    "good_many_small_files": lambda: (
        b"".join(dir(f"d{d}/") + b"".join(file(f"d{d}/f{n}", b"%d" % n) for n in range(60)) for d in range(20)) + end()),
    # ---- numbers -----------------------------------------------------------------------------------------
    # A size in GNU's binary form.
    "good_base256_size": lambda: file("a", b"hello", size=tarkit.base256(5, 12)) + end(),
    # Owners beyond octal's reach.
    "good_base256_owner": lambda: file("a", b"hello", uid=3_000_000, gid=4_000_000) + end(),
    # Blanks before, NULs, blanks behind, no terminator, empty.
    "good_numbers_in_old_styles": lambda: (
        file("a", b"hello", size=b"          5 ", mode=b"   644 \0", uid=b"", mtime=b"0" * 11 + b" ")
        + file("b", b"hello", size=b"000000000005", gid=b"\0" * 8) + end()),
    # Some old tars sum signed characters.
    "good_signed_checksum": lambda: file(b"\xe4\xf6\xfc", b"hello", signed=True) + end(),
    # Seven digits, or blanks in front, instead of six digits, NUL and blank.
    "good_checksum_styles": lambda: (
        file("a", b"a", chksum=b"%07o\x00" % tarkit.checksum(tarkit.raw_header("a", size=1)))
        + file("b", b"b", chksum=b"%6o \x00" % tarkit.checksum(tarkit.raw_header("b", size=1))) + end()),
    # PAX's size overrides the block's.
    "good_pax_size": lambda: tarkit.pax({"size": "5"}) + file("a", b"hello", size=0) + end(),
    # Every record PAX knows, and some it does not.
    "good_pax_everything": lambda: tarkit.pax({
        "uid": "1234567", "gid": "7654321", "uname": "someone", "gname": "some", "mtime": "1.5", "atime": "2.25", "ctime": "3",
        "comment": "nothing", "VENDOR.key": "value=with=equals", "SCHILY.xattr.user.a": "b",
    }) + file("a", b"hello") + end(),
    # An empty value keeps the block's.
    "good_pax_empty_values": lambda: (
        tarkit.pax({"path": "", "uid": "", "mtime": ""}) + file("a", b"hello", uid=7) + end()),
    # The last of two equal keys wins.
    "good_pax_repeated_record": lambda: (
        tarkit.pax([("path", "first"), ("path", "second")]) + file("x", b"hello") + end()),
    # Two extended headers before one entry.
    "good_two_pax_headers": lambda: (
        tarkit.pax({"path": "one"}) + tarkit.pax({"uid": "5"}) + file("x", b"hello") + end()),
    # Before 1970, in the year 3000, and to the nanosecond.
    "good_times": lambda: (
        tarkit.pax({"mtime": "-5"}) + file("old", b"1") + file("older", b"1", mtime=-(2**33))
        + file("future", b"2", mtime=32503680000) + tarkit.pax({"mtime": "1700000000.000000001"}) + file("exact", b"3")
        + end()),
    # setuid, setgid, sticky, no bits at all, and the file-type bits 20.10 wrote.
    "good_modes": lambda: (
        dir("sticky/", mode=0o1777) + file("setuid", b"#!", mode=0o4755, uid=1000, gid=1000)
        + file("setgid", b"#!", mode=0o2755) + file("none", b"secret", mode=0) + dir("closed/", mode=0)
        + file("closed/f", b"in", mode=0o100644) + dir("typed/", mode=0o040755) + end()),
    # ---- global headers ------------------------------------------------------------------------------------
    # git archive's comment in front of everything.
    "good_global_header": lambda: tarkit.global_pax({"comment": "0" * 40}) + file("a", b"hello") + end(),
    # Two of them under one name; moby refuses the second.
    "good_two_global_headers": lambda: (
        tarkit.global_pax({"comment": "1"}) + file("a", b"a") + tarkit.global_pax({"comment": "2"}) + file("b", b"b")
        + end()),
    # A global header makes no file.
    "good_global_header_named_like_a_file": lambda: (
        tarkit.global_pax({"comment": "1"}, name="foo/bar") + file("a", b"a") + end()),
    # ---- links, devices, attributes -------------------------------------------------------------------------
    # One inode, three names, and a link to a symlink.
    "good_hard_links": lambda: (
        dir("d/") + file("d/a", b"hello") + hardlink("d/b", "d/a") + hardlink("c", "/d/a") + symlink("s", "d/a")
        + hardlink("t", "s") + end()),
    # Targets are text, wherever they lead.
    "good_symlinks_to_anywhere": lambda: (
        symlink("passwd", "/etc/passwd") + symlink("up", "../../x") + symlink("self", "self")
        + symlink("dangling", "nowhere/at/all") + end()),
    # A fifo, a block device and character devices.
    "good_devices": lambda: (
        fifo("fifo", mode=0o600) + node("null", "c", 1, 3, mode=0o666) + node("block", "b", 12, 5, mode=0o660)
        + node("char", "c", 12, 5) + end()),
    # User attributes, binary ones and a capability.
    "good_xattrs": lambda: (
        tarkit.xattrs({"user.foo": b"bar", "user.bin": b"\x00\xff\n=x"}) + file("a", b"hello")
        + tarkit.xattrs({"security.capability": tarkit.CAPABILITY}) + file("cap", b"\x7fELF", mode=0o755)
        + tarkit.xattrs({"user.dir": b"d"}) + dir("d/") + end()),
    # Files whose directories no entry makes.
    "good_implied_parents": lambda: file("deeply/nested/and/implied", b"x") + dir("implied/d/", mode=0o700) + end(),
    # AUFS's own names get no special handling.
    "good_aufs_names": lambda: file(".wh..wh.aufs") + dir(".wh..wh.orph/") + file(".wh..wh.plnk/1.2", b"p") + end(),
    # Hundred files, each with one hard link.
    "good_hard_links_by_the_hundred": lambda: (
        b"".join(file(f"f{i}", b"fooo") + hardlink(f"l{i}", f"f{i}") for i in range(100)) + end()),
    # ---- sparse files: none of these survives moby ---------------------------------------------------------
    # Type S with three extents.
    "good_sparse_old_gnu": lambda: tarkit.old_gnu_sparse("s", HOLED, 300_000) + file("after", b"x") + end(),
    # Type S with thirty extents: two extension blocks.
    "good_sparse_old_gnu_extended": lambda: tarkit.old_gnu_sparse("s", MANY, 400_000) + file("after", b"x") + end(),
    # Type S without a byte of data.
    "good_sparse_old_gnu_hole_only": lambda: tarkit.old_gnu_sparse("s", [(1_000_000, b"")], 1_000_000) + end(),
    # Offsets and sizes as repeated records.
    "good_sparse_0_0": lambda: tarkit.pax_sparse_0_0("s", HOLED, 300_000) + file("after", b"x") + end(),
    # One map record.
    "good_sparse_0_1": lambda: tarkit.pax_sparse_0_1("s", HOLED, 300_000) + file("after", b"x") + end(),
    # The map in front of the data.
    "good_sparse_1_0": lambda: tarkit.pax_sparse_1_0("s", HOLED, 300_000) + file("after", b"x") + end(),
    # A map that fills more than one block.
    "good_sparse_1_0_long_map": lambda: tarkit.pax_sparse_1_0("s", MANY, 400_000) + file("after", b"x") + end(),
    # Sparse in form only.
    "good_sparse_without_holes": lambda: (
        tarkit.pax_sparse_0_1("a", [(0, b"hello")], 5) + tarkit.old_gnu_sparse("b", [(0, b"hello")], 5)
        + tarkit.pax_sparse_1_0("c", [(0, b"hello")], 5) + end()),
    # Holes stay holes: nine bytes of data in 8 TiB.
    "good_sparse_of_eight_tebibytes": lambda: tarkit.pax_sparse_1_0("s", [(1 << 42, b"nine byte")], 1 << 43) + end(),
    # A sparse file written again, sparse and not.
    "good_sparse_duplicate": lambda: (
        tarkit.pax_sparse_0_1("s", HOLED, 300_000) + tarkit.old_gnu_sparse("s", MANY, 400_000) + file("s", b"plain")
        + end()),
}  # fmt: skip
