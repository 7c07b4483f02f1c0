"""Others agree: Python's tarfile, GNU tar and libarchive on the tree, the tar-split program on the record.

Each program is asked on tars that mean one thing to everybody; where they are known to differ the tar is left out
and the difference said.
"""

import base64
import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile

import libarchive
import pytest
import recipes
from disk import changed, disk_state
from tarkit import file

import layerstore

TAR_SPLIT = shutil.which("tar-split")
needs_tar_split = pytest.mark.skipif(TAR_SPLIT is None, reason="NOT TESTED: no tar-split program on this machine")

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.fixture
def tree(room):
    """A tree of everything whose times are whole seconds, so that every format can say them."""
    place = room / "tree"
    (place / "dir/sub/deep").mkdir(parents=True)
    (place / "dir/file").write_bytes(recipes.noise(100_000))
    (place / "dir/sub/empty").touch()
    (place / "dir/sub/deep/one").write_bytes(b"1")
    (place / ("n" * 60)).mkdir()
    (place / ("n" * 60) / ("m" * 60)).write_text("a path of 121 bytes")
    (place / "blank and $ign").write_text("name")
    (place / "link").symlink_to("dir/file")
    (place / "dangling").symlink_to("/nowhere/at/all")
    os.link(place / "dir/file", place / "hard")
    os.link(place / "dir/file", place / "zz-hard")
    os.mkfifo(place / "fifo", 0o620)
    os.mknod(place / "char", 0o020664, os.makedev(1, 3))
    os.mknod(place / "block", 0o060660, os.makedev(7, 200))
    os.chown(place / "dir/file", 1234, 4321)
    os.lchown(place / "link", 12, 34)
    for name, mode in (("dir/file", 0o6755), ("dir/sub", 0o1777), ("dir/sub/empty", 0), ("blank and $ign", 0o444)):
        os.chmod(place / name, mode)
    seconds = 1_000_000_000
    for path, dirs, files in os.walk(place, topdown=False):
        for name in files + dirs:
            seconds += 86_399
            os.utime(os.path.join(path, name), (seconds, seconds), follow_symlinks=False)
    return place


def tar_of(tree, form):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=FORMATS[form]) as tar:
        for name in sorted(os.listdir(tree)):
            tar.add(tree / name, arcname=name)
    return out.getvalue()


def by_tarfile(tar, place):
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        archive.extractall(place, numeric_owner=True)


def by_gnu_tar(tar, place):
    command = ["tar", "-xpf", "-", "--numeric-owner", "--same-owner", "--delay-directory-restore", "-C", str(place)]
    command += ["--xattrs", "--xattrs-include=*"]
    subprocess.run(command, input=tar, check=True, capture_output=True)


def by_libarchive(tar, place):
    flags = libarchive.extract
    where = os.getcwd()
    os.chdir(place)
    try:
        libarchive.extract_memory(
            tar, flags.EXTRACT_OWNER | flags.EXTRACT_PERM | flags.EXTRACT_TIME | flags.EXTRACT_XATTR
        )
    finally:
        os.chdir(where)


ORACLES = {"tarfile": by_tarfile, "GNU tar": by_gnu_tar, "libarchive": by_libarchive}


def state(place, tar=None, links=True):
    """Everything but the top directory, whose metadata is the layer's own. With a tar, directories that it implies and
    does not name tell no time, since theirs is the moment of unpacking; nor do links where links is False."""
    facts = disk_state(place, times=True)
    del facts[b""]
    if tar is not None:
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            named = {os.fsencode(name).rstrip(b"/") for name in archive.getnames()}
        for path, fact in facts.items():
            if path not in named or (fact[0] == "link" and not links):
                facts[path] = fact[:-1]
    return facts


def assert_alike(oracle, tar, theirs, ours):
    """tarfile gives symlinks no time; all others agree on everything."""
    links = oracle != "tarfile"
    assert changed(state(theirs, tar, links), state(ours, tar, links)) == []


@pytest.mark.parametrize("form", FORMATS)
def test_a_registered_tree_is_the_tree_it_was_made_from(store, diff_of, tree, form):
    layer = store.register(tar_of(tree, form))
    assert changed(state(tree), state(diff_of(layer))) == []


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("form", FORMATS)
def test_others_unpack_the_same_tree(store, diff_of, room, tree, form, oracle):
    tar = tar_of(tree, form)
    place = room / "theirs"
    place.mkdir()
    ORACLES[oracle](tar, place)
    assert_alike(oracle, tar, place, diff_of(store.register(tar)))


# What all of them read alike; the rest holds duplicates, odd ends, AUFS names or values beyond what all can say.
# GNU tar needs its own dialect of sparse maps: extents of whole blocks and an empty last one at the end.
SPARSE = ("tarfile", "libarchive")
ALIKE = {
    "good_blocked_to_10240": ORACLES,
    "good_ustar_prefix": ORACLES,
    "good_v7": ORACLES,
    "good_gnu_long_name": ORACLES,
    "good_gnu_long_name_and_link": ORACLES,
    "good_pax_path": ("GNU tar", "libarchive"),  # tarfile rounds nanoseconds
    "good_component_of_255": ORACLES,
    "good_hard_links_by_the_hundred": ORACLES,
    "good_sizes_about_a_block": ORACLES,
    "good_many_small_files": ORACLES,
    "good_base256_owner": ORACLES,
    "good_base256_size": ORACLES,
    "good_pax_size": ORACLES,
    "good_symlinks_to_anywhere": ("GNU tar", "libarchive"),
    "good_devices": ORACLES,
    "good_large_file": ORACLES,
    "good_sparse_old_gnu": SPARSE,
    "good_sparse_old_gnu_extended": SPARSE,
    "good_sparse_0_0": SPARSE,
    "good_sparse_0_1": SPARSE,
    "good_sparse_1_0": SPARSE,
    "good_sparse_1_0_long_map": SPARSE,
    "good_duplicate": ORACLES,
    "good_xattrs": ("GNU tar", "libarchive"),
    "good_not_utf8_names": ORACLES,
    "good_pax_repeated_record": ORACLES,
    "good_two_pax_headers": ("libarchive",),
}
PAIRS = [(name, oracle) for name, oracles in ALIKE.items() for oracle in oracles]


@pytest.mark.parametrize(("name", "oracle"), PAIRS)
def test_others_unpack_our_recipes_the_same(store, diff_of, room, name, oracle):
    tar = recipes.GOOD[name]()
    place = room / "theirs"
    place.mkdir()
    ORACLES[oracle](tar, place)
    assert_alike(oracle, tar, place, diff_of(store.register(tar)))


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=posix"]], ids=lambda o: o[0])
def test_gnu_tars_own_tree_with_nanoseconds_and_attributes_is_the_same(store, diff_of, tree, options):
    os.setxattr(tree / "dir/file", "user.note", b"\x00binary\xff\n=")
    if options == ["--format=posix"]:
        os.utime(tree / "dir/sub", ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
        options = [*options, "--xattrs", "--xattrs-include=*"]
    else:
        os.removexattr(tree / "dir/file", "user.note")
    names = sorted(os.listdir(tree))
    done = subprocess.run(["tar", "-C", tree, "--numeric-owner", "-cf", "-", *options, *names], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert changed(state(tree), state(diff_of(store.register(done.stdout)))) == []


# ---- our tars, read by others ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("oracle", ORACLES)
def test_others_unpack_our_own_tars_to_the_same_tree(store, room, tree, diff_of, oracle):
    """tar_stream_from() is our writer; everything but what an overlay cannot hold must arrive."""
    layer = store.register(tar_of(tree, "pax"))
    with layer.tar_stream_from("") as stream:
        tar = stream.read()
    place = room / "theirs"
    place.mkdir()
    ORACLES[oracle](tar, place)
    assert_alike(oracle, tar, place, diff_of(layer))


def test_libarchive_lists_our_tar_as_it_lists_gnu_tars(store, tree, diff_of):
    layer = store.register(tar_of(tree, "gnu"))

    def listed(data):
        with libarchive.memory_reader(data) as archive:
            return sorted(
                (e.pathname, e.filetype, e.perm, e.uid, e.gid, e.size or 0, e.mtime, e.linkpath or "") for e in archive
            )

    with layer.tar_stream_from("") as stream:
        ours = listed(stream.read())
    names = sorted(os.listdir(diff_of(layer)))
    theirs = subprocess.run(
        ["tar", "-C", diff_of(layer), "--sort=name", "--numeric-owner", "--format=pax", "-cf", "-", *names],
        capture_output=True, check=True
    ).stdout
    assert ours == listed(theirs)


# ---- the tar-split program -------------------------------------------------------------------------------------------
def entries(record):
    """Lines as values, everything behind the last file joined: those pieces follow the reader's own read sizes."""
    found, tail = [], b""
    for line in record.splitlines():
        entry = json.loads(line)
        if entry["type"] == 2:
            tail += base64.b64decode(entry["payload"])
            continue
        found.append((2, tail))
        found.append((1, entry.get("name"), entry.get("name_raw"), entry.get("size", 0), entry["payload"]))
        tail = b""
    return [*found, (2, tail)]


def theirs(tar, room):
    (room / "tar").write_bytes(tar)
    command = [TAR_SPLIT, "disasm", "--no-stdout", "--output", str(room / "record.gz"), str(room / "tar")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return gzip.decompress((room / "record.gz").read_bytes())


# Not ordinary to the program: what it loses, refuses, or hands out expanded (see the spec's known limits); 0.10's
# tar reader also knows no time before 1970 in PAX and takes a record for a global header's own.
NOT_ORDINARY = {
    name
    for name in recipes.GOOD
    if name.startswith(("good_sparse", "good_duplicate", "good_two_global", "good_partial", "good_names_through"))
} | {
    "good_hard_link_with_size",
    "good_symlink_with_size",
    "good_directory_with_size",
    "good_nodes_with_size",
    "good_whiteout_with_payload",
    "good_opaque_with_payload",
    "good_root_entry_with_payload",
    "good_file_becomes_directory_and_back",
    "good_file_replaced_by_everything",
    "good_directory_replaced_with_its_content",
    "good_directory_replaced_by_a_device",
    "good_symlink_replaced_below_names",
    "good_hard_link_outlives_its_name",
    "good_root_entries",
    "good_names_json_must_escape",
    "good_pax_path_over_4096",  # no open() takes the path, so we keep the payload
}
ORDINARY = sorted(set(recipes.GOOD) - NOT_ORDINARY)


@needs_tar_split
@pytest.mark.parametrize("name", ORDINARY)
def test_the_tar_split_program_records_the_same(room, name):
    tar = recipes.GOOD[name]()
    ours = io.BytesIO()
    layerstore.disassemble(tar, ours)
    assert entries(ours.getvalue()) == entries(theirs(tar, room))


@needs_tar_split
@pytest.mark.parametrize("form", FORMATS)
def test_the_tar_split_program_records_a_real_tar_to_the_byte(room, tree, form):
    """Line by line, but for its empty last one and where it cuts what trails."""
    tar = tar_of(tree, form)
    ours = io.BytesIO()
    layerstore.disassemble(tar, ours)
    mine, other = ours.getvalue().splitlines(), theirs(tar, room).splitlines()
    last = max(number for number, line in enumerate(mine) if line.startswith(b'{"type":1'))
    assert mine[: last + 1] == other[: last + 1]
    assert entries(ours.getvalue()) == entries(b"\n".join(other))


@needs_tar_split
@pytest.mark.parametrize("name", recipes.GOOD)
def test_the_tar_split_program_makes_the_tar_of_our_record(store, room, root, diff_of, name):
    """Also of those it cannot record itself: what the tree cannot give stands in the segments."""
    tar = recipes.GOOD[name]()
    layer = store.register(tar)
    record = root / "image/overlay2/layerdb/sha256" / layer.chain_id.encoded / "tar-split.json.gz"
    out = room / "out.tar"
    command = [TAR_SPLIT, "asm", "--input", str(record), "--path", str(diff_of(layer)), "--output", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    same = out.read_bytes() == tar
    assert same, "it made other bytes"


@needs_tar_split
@pytest.mark.parametrize("name", ["good_t2", "good_many_small_files", "good_pax_everything", "good_not_utf8_names"])
def test_the_tar_split_programs_record_gives_us_the_tar(store, room, diff_of, name):
    tar = recipes.GOOD[name]()
    tree = diff_of(store.register(tar))
    with layerstore.assemble(io.BytesIO(theirs(tar, room)), tree) as stream:
        assert stream.read() == tar


@needs_tar_split
def test_the_tar_split_program_refuses_what_we_keep_and_loses_what_we_keep(room):
    """The two differences this project makes on purpose; should the program change, so may our words about it."""
    with pytest.raises(AssertionError):
        theirs(recipes.GOOD["good_duplicate"](), room)
    tar = file("a", b"hello")[:617]
    kept = b"".join(entry[1] for entry in entries(theirs(tar, room)) if entry[0] == 2)
    assert len(kept) + 5 < len(tar)
