"""Reading without mounting: a layer's entries and files by its record, and the tree of a chain as overlay shows it."""

import base64
import errno
import gzip
import io
import json
import os
import random
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
import recipes
import tarkit
from disk import disk_state
from driven import LAYERDB
from tarkit import dir, end, fifo, file, hardlink, node, opaque, symlink, whiteout

import layerstore
from layerstore import CorruptLayerError, FileEntry, FileType, LayerStoreError, MergedTree, Store

# Layers of real images, if they were made.
BOUND = 9223372036 * 10**9


# An image may have up to 2 TiB.
GOOD = [
    pytest.param(name, marks=pytest.mark.only("overlay2", "no image has 8 TiB")) if name == "good_sparse_of_eight_tebibytes" else name
    for name in recipes.GOOD
]


@pytest.fixture
def mixed(store):
    """One layer with something of every kind."""
    tar = (
        dir("a/", mode=0o1750, uid=3, gid=4, mtime=5)
        + file("./a/f", b"hello", mode=0o4755, uid=1000, gid=1001, mtime=7)
        + hardlink("a/also", "/a/f", mode=0o4755, uid=1000, gid=1001, mtime=7) + symlink("a/link", "f")
        + symlink("up", "/a/../a") + symlink("loop", "loop") + fifo("fifo") + node("null", "c", 1, 3)
        + node("disk", "b", 8, 1) + tarkit.xattrs({"user.colour": b"\0red"}) + file("marked", b"") + whiteout("a/gone")
        + opaque("a") + file("deep/er/file", b"x" * 1000) + file("caf\udce9", b"latin") + end()
    )
    return store.register(tar)


# ---- one layer ----------------------------------------------------------------------------------
@pytest.mark.only("overlay2", "of the tar-split record")
def test_entries_come_in_the_tars_order_with_all_that_the_header_says(mixed):
    found = list(mixed.files())
    assert [(e.path, e.type) for e in found] == [
        ("a", "directory"), ("a/f", "file"), ("a/also", "link"), ("a/link", "symlink"), ("up", "symlink"),
        ("loop", "symlink"), ("fifo", "fifo"), ("null", "character"), ("disk", "block"), ("marked", "file"),
        ("a/gone", "whiteout"), ("a", "opaque"), ("deep/er/file", "file"), ("caf\udce9", "file"),
    ]  # fmt: skip
    a, f, also, link = found[:4]
    assert (a.mode, a.uid, a.gid, a.mtime_ns, a.name) == (0o1750, 3, 4, 5 * 10**9, "a/")
    assert (f.mode, f.uid, f.gid, f.mtime_ns, f.size, f.name) == (0o4755, 1000, 1001, 7 * 10**9, 5, "./a/f")
    assert (f.crc, f.atime_ns, f.link, f.device, f.xattrs) == (0x3C3EEEE2D8100000, None, "", None, {})
    assert (also.link, also.size, also.crc, also.offset) == ("a/f", 0, None, None)
    assert (link.link, link.size) == ("f", 0)
    assert [e.device for e in found[7:9]] == [(1, 3), (8, 1)]
    assert (found[9].xattrs, found[9].crc) == ({"user.colour": b"\0red"}, 0)
    assert [e.name for e in found[10:12]] == ["a/.wh.gone", "a/.wh..wh..opq"]
    assert {type(e) for e in found} == {FileEntry}
    assert {type(e.type) for e in found} == {FileType}
    assert {e.chain_id for e in found} == {mixed.chain_id}


def test_the_offset_is_where_the_tar_has_the_bytes(mixed):
    with mixed.tar_stream() as tar:
        for entry in mixed.files():
            if entry.type == "file":
                tar.seek(entry.offset)
                with mixed.open(entry.path) as content:
                    assert tar.read(entry.size) == content.read()


def test_times_are_nanoseconds(store):
    tar = tarkit.pax({"mtime": "1.25", "atime": "-0.5"}) + file("f") + tarkit.pax({"mtime": "99999999999"}) + file("g")
    first, second = store.register(tar + end()).files()
    assert (first.mtime_ns, first.atime_ns) == (1_250_000_000, -500_000_000)
    assert second.mtime_ns == 99_999_999_999 * 10**9


@pytest.mark.parametrize("name", GOOD)
def test_every_layer_that_is_accepted_is_listed_as_tarfile_reads_it(store, name):
    tar = recipes.GOOD[name]()
    layer = store.register(tar)
    found = list(layer.files())
    for entry in found:
        if entry.type == "file" and entry.crc is not None and entry.offset is not None:
            assert layerstore._core._listing.add_crc(0, tar[entry.offset : entry.offset + entry.size]) == entry.crc
    try:
        with tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8", errors="surrogateescape") as oracle:
            wanted = [member.name.rstrip("/") for member in oracle]
    except (tarfile.TarError, ValueError):
        return
    if not any(word in name for word in ("nul", "star", "gnu_magic", "pax_", "empty", "header", "styles", "sparse")):
        assert [entry.name.rstrip("/") for entry in found] == wanted


@pytest.mark.only("overlay2", "of the tar-split record")
def test_a_record_made_by_dockerd_is_listed_the_same(store):
    """One gzip member, and sparse files as their whole content without the map."""
    sparse = [(4096, b"data")]
    tar = file("f", b"hello") + tarkit.pax_sparse_1_0("holes", sparse, 8192) + dir("d") + file("g", b"last") + end()
    layer = store.register(tar)
    ours = list(layer.files())
    lines = _docker_record(tar, {"holes": tarkit.expand(sparse, 8192)})
    record = Path(store.root, LAYERDB, "sha256", layer.chain_id.encoded, "tar-split.json.gz")
    record.write_bytes(gzip.compress(lines))
    theirs = list(layer.files())
    assert [e._replace(crc=None, offset=None) for e in theirs] == [e._replace(crc=None, offset=None) for e in ours]
    assert [e.crc for e in theirs] == [ours[0].crc, _crc(tarkit.expand(sparse, 8192)), None, ours[3].crc]
    assert theirs[1].offset is None
    with layer.open("holes") as content:
        assert content.read() == tarkit.expand(sparse, 8192)


def _crc(data):
    return layerstore._core._listing.add_crc(0, data)


def _docker_record(tar, expanded):
    """What dockerd records of a tar of ordinary and of sparse files (spec tar-split, 4)."""
    lines, at, raw = [], 0, b""

    def put(**line):
        lines.append(json.dumps({**line, "position": len(lines)}, separators=(",", ":")))

    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        for member in members:
            raw += tar[at : member.offset_data]
            stored = member.size if member.sparse is None else _stored_size(tar, member)
            if member.sparse is not None:         # tarfile's data begins behind the map, dockerd's record before
                raw = raw[: len(raw) - 512]
                stored += 512
            put(type=2, payload=base64.b64encode(raw).decode())
            content = expanded.get(member.name, tar[member.offset_data : member.offset_data + member.size])
            if member.isfile():
                crc = base64.b64encode(_crc(content).to_bytes(8, "big")).decode()
                put(type=1, name=member.name, size=len(content), payload=crc)
            else:
                put(type=1, name=member.name + "/", payload=None)
            start = member.offset_data - (512 if member.sparse is not None else 0)
            at, raw = start + (stored if member.isfile() else 0), b""
    put(type=2, payload=base64.b64encode(tar[at:]).decode())
    return "\n".join(lines).encode() + b"\n"


def _stored_size(tar, member):
    return sum(size for _, size in member.sparse)


# ---- opening ------------------------------------------------------------------------------------
def test_a_file_is_read_like_any_binary_file(mixed):
    with mixed.open("/a/f") as f:
        assert (f.readable(), f.seekable(), f.writable(), f.name) == (True, True, False, "a/f")
        assert f.read(2) == b"he"
        assert f.seek(-1, os.SEEK_END) == 4
        assert f.read() == b"o"
        assert f.seek(1) == 1
        assert f.readline() == b"ello"
        assert f.read() == b""
        assert f.seek(100) == 100
        assert f.read(1) == b""
        with pytest.raises(ValueError, match="negative"):
            f.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        f.read()


@pytest.mark.parametrize("path", ["a/also", "a/link", "up/f", b"up/link", "./a//f", "a/../a/f", "../../a/f", Path("a/f")])
def test_links_lead_to_their_file_below_the_layers_root(mixed, path):
    with mixed.open(path) as f:
        assert f.read() == b"hello"


@pytest.mark.parametrize(
    "path, error, number",
    [
        ("nothing", FileNotFoundError, 2), ("", FileNotFoundError, 2), ("a/gone", FileNotFoundError, 2),
        ("a", IsADirectoryError, 21), ("/", IsADirectoryError, 21), ("up", IsADirectoryError, 21),
        ("deep/er", IsADirectoryError, 21), ("a/f/x", NotADirectoryError, 20), ("a/f/", NotADirectoryError, 20),
        ("loop", OSError, 40), ("fifo", OSError, 22), ("null", OSError, 22), ("a\0b", FileNotFoundError, 2),
    ],
)  # fmt: skip
def test_what_is_no_file_is_told_as_the_kernel_tells_it(mixed, path, error, number):
    with pytest.raises(error) as caught:
        mixed.open(path)
    assert (caught.value.errno, caught.value.filename) == (number, path)


def _on_disk(layer, path):
    return Path(layer.metadata()["UpperDir"], path)


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_a_changed_byte_is_found_by_who_reads_all_of_it(store):
    layer = store.register(file("f", b"a" * 200_000) + end())
    with _on_disk(layer, "f").open("r+b") as damaged:
        damaged.seek(150_000)
        damaged.write(b"b")
    with layer.open("f") as f, pytest.raises(CorruptLayerError) as caught:
        f.read()
    assert caught.value.path == "f"
    with layer.open("f") as f, pytest.raises(CorruptLayerError):
        while f.read(1000):
            pass
    with layer.open("f") as f:            # a part says nothing of the rest
        f.seek(1)
        assert len(f.read()) == 199_999
        f.seek(0)
        with pytest.raises(CorruptLayerError):
            f.read()
    with layer.open("f") as f:            # its size, asked for by a seek, costs nothing
        f.seek(0, os.SEEK_END)
        f.seek(0)
        assert f.read(10) == b"a" * 10
        f.seek(10)
        with pytest.raises(CorruptLayerError):
            f.read()
    with layer.open("f") as f:            # begun anew, it is the whole again
        f.read(100_000)
        f.seek(0)
        with pytest.raises(CorruptLayerError):
            f.read()


@pytest.mark.only("overlay2", "of the files in a layer's directory")
@pytest.mark.parametrize("plant", ["longer", "shorter", "gone", "link", "parent", "fifo", "directory"])
def test_what_was_planted_in_the_directory_is_not_read(store, room, plant):
    layer = store.register(file("d/f", b"right") + end())
    secret = room / "secret"
    secret.mkdir()
    (secret / "f").write_bytes(b"other")
    at = _on_disk(layer, "d/f")
    if plant in ("longer", "shorter"):
        at.write_bytes(b"other!" if plant == "longer" else b"x")
    elif plant == "parent":
        at.unlink()
        at.parent.rmdir()
        at.parent.symlink_to(secret)
    else:
        at.unlink()
        {"gone": lambda: None, "link": lambda: at.symlink_to(secret / "f"), "fifo": lambda: os.mkfifo(at),
         "directory": at.mkdir}[plant]()  # fmt: skip
    with pytest.raises(CorruptLayerError) as caught:
        layer.open("d/f")
    assert caught.value.path == "d/f"


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_a_file_cut_behind_the_open_is_found(store):
    layer = store.register(file("f", b"a" * 200_000) + end())
    with layer.open("f") as f:
        os.truncate(_on_disk(layer, "f"), 100_000)
        with pytest.raises(CorruptLayerError):
            f.read()


def test_nothing_is_written_and_a_store_for_reading_will_do(root, store, mixed):
    chain = mixed.chain_id
    before = disk_state(root)
    with Store(root, options={"read_only": "true"}) as reader:
        layer = reader.map()[chain]
        assert len(list(layer.files())) == 14
        with layer.open("a/f") as f:
            assert f.read() == b"hello"
        assert "deep/er/file" in layer.merged()
    assert disk_state(root) == before


def test_the_empty_layer_has_no_files():
    layer = layerstore.EMPTY_LAYER
    assert list(layer.files()) == list(layer.merged().files()) == []
    with pytest.raises(FileNotFoundError):
        layer.open("f")


def test_a_closed_store_gives_nothing_more(root):
    with Store(root) as store:
        layer = store.register(file("f", b"1") + end())
        tree = layer.merged()
    for call in (layer.files, layer.merged, lambda: layer.open("f"), lambda: tree.open("f")):
        with pytest.raises(layerstore.StoreClosedError):
            call()


# ---- records that lie ---------------------------------------------------------------------------
@pytest.mark.only("overlay2", "of the tar-split record")
def test_a_damaged_record_is_told_after_what_can_be_read(store):
    layer = store.register(b"".join(file(f"f{i}", b"%d" % i) for i in range(2000)) + end())
    record = Path(store.root, LAYERDB, "sha256", layer.chain_id.encoded, "tar-split.json.gz")
    record.write_bytes(record.read_bytes()[:-40])
    found = []
    with pytest.raises(CorruptLayerError):
        for entry in layer.files():
            found.append(entry)
    assert [entry.path for entry in found] == [f"f{i}" for i in range(len(found))]
    assert len(found) > 500
    with pytest.raises(CorruptLayerError):
        layer.merged()
    record.unlink()
    with pytest.raises(FileNotFoundError):
        layer.files()


@pytest.mark.only("overlay2", "of the tar-split record")
@pytest.mark.parametrize(
    "tar",
    [
        pytest.param(file("../x", b"1"), id="name leaves"),
        pytest.param(hardlink("a", "../x"), id="link leaves"),
        pytest.param(file("f") + whiteout("f"), id="whiteout of its own"),
        pytest.param(file("f") + file("f/g"), id="below a file"),
        pytest.param(hardlink("a", "b"), id="link to nothing"),
        pytest.param(dir("d") + hardlink("a", "d"), id="link to a directory"),
        pytest.param(symlink("l", "l") + file("l/f"), id="loop"),
        pytest.param(symlink("l", "..") + file("l/f"), id="link leaves by parent"),
        pytest.param(whiteout(".."), id="whiteout of the parent"),
        pytest.param(file("f", typeflag=b"Z"), id="type"),
        pytest.param(symlink("l", ""), id="link without target")]
)
def test_a_record_of_what_no_layer_can_be_is_corrupt(store, tar):
    layer = store.register(file("good", b"1") + end())
    record = Path(store.root, LAYERDB, "sha256", layer.chain_id.encoded, "tar-split.json.gz")
    with record.open("wb") as lie:
        layerstore.disassemble(file("good", b"1") + tar + end(), lie)
    with pytest.raises(CorruptLayerError):
        layer.merged()


# ---- chains -------------------------------------------------------------------------------------
def shown(path):
    """What a mount shows below path: name -> what lstat and the like say."""
    found = {}
    for at, directories, names in os.walk(path):
        for name in [*directories, *names]:
            full = os.path.join(at, name)
            try:
                st = os.lstat(full)
            except FileNotFoundError:             # a whiteout that the kernel lists where nothing is below
                continue
            except OSError as error:
                assert error.errno == errno.ENAMETOOLONG
                continue
            found[os.path.relpath(full, path)] = (full, st)
    return found


def assert_agrees(tree, mounted, *, contents=True):
    """The tree is what the kernel shows, to the last attribute a tar has."""
    real = shown(mounted)
    listed = {entry.path: entry for entry in tree.files()}
    assert len(tree) == len(listed)
    assert sorted(path for path in listed if len(os.fsencode(path)) < 3800) == sorted(real)
    kinds = {
        "file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK, "fifo": stat.S_IFIFO,
        "character": stat.S_IFCHR, "block": stat.S_IFBLK,
    }  # fmt: skip
    for path, (full, st) in real.items():
        e = listed[path]
        assert stat.S_IFMT(st.st_mode) == kinds[e.type], path
        assert (st.st_uid, st.st_gid) == (e.uid, e.gid), path
        if e.type != "symlink":
            assert stat.S_IMODE(st.st_mode) == e.mode, path
        else:
            assert os.readlink(full) == e.link, path
        if e.name and e.type != "symlink":
            assert st.st_mtime_ns == (e.mtime_ns if 0 <= e.mtime_ns <= BOUND else 0), path
        if e.device:
            assert st.st_rdev == os.makedev(*e.device), path
        xattrs = {name: os.getxattr(full, name, follow_symlinks=False) for name in os.listxattr(full, follow_symlinks=False)}
        assert xattrs == {name: value for name, value in e.xattrs.items() if not name.startswith("trusted.overlay.")}, path
        if e.type == "file":
            assert st.st_size == e.size, path
            if contents and e.size < 1 << 30:
                with tree.open(path) as ours, open(full, "rb") as theirs:
                    assert ours.read() == theirs.read(), path
        assert tree.get(path) == e
    # ways through links end at the same places
    for path, (_full, st) in real.items():
        if stat.S_ISLNK(st.st_mode):
            end_of = tree.get(path, follow=True)
            assert (end_of.path if end_of else None) == resolve(mounted, path), path


def resolve(mounted, path, depth=40):
    """By hand and by lstat alone: the oracle knows the mount only."""
    todo, at = path.split("/")[::-1], []
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            del at[-1:]
            continue
        full = os.path.join(mounted, *at, part)
        try:
            st = os.lstat(full)
        except OSError:
            return None
        if stat.S_ISLNK(st.st_mode):
            depth -= 1
            if depth < 0:
                return None
            target = os.readlink(full)
            at = [] if target.startswith("/") else at
            todo += target.split("/")[::-1]
            continue
        if todo and not stat.S_ISDIR(st.st_mode):
            return None
        at.append(part)
    return "/".join(at) or "."


def random_layer(dice, below):
    """A tar of odd things: whiteouts, opaque marks, replaced names, names through links, links across names."""
    names = ["a", "b", "c", "d", "e\udcff", "é"]
    tar, mine, files = b"", [], []

    def path():
        known = mine + below
        if known and dice.random() < 0.6:
            start = dice.choice(known)
            return start if dice.random() < 0.4 else f"{start}/{dice.choice(names)}"
        return "/".join(dice.choice(names) for _ in range(dice.choice([1, 1, 2, 3])))

    for _ in range(dice.randrange(1, 14)):
        name, kind = path(), dice.random()
        attributes = {"mode": dice.choice([0o644, 0o755, 0o4711, 0o1777]), "uid": dice.randrange(3), "gid": dice.randrange(3),
                      "mtime": dice.randrange(10**9)}  # fmt: skip
        if kind < 0.3:
            tar += file(name, dice.randbytes(dice.choice([0, 1, 600, 5000])), **attributes)
            files.append(name)
        elif kind < 0.5:
            tar += dir(name + "/", **attributes)
        elif kind < 0.6:
            target = dice.choice([f"/{path()}", path(), f"../{path()}", "..", "/"])
            tar += symlink(name, target, uid=attributes["uid"])
        elif kind < 0.7 and files:
            tar += hardlink(name, dice.choice(files), **attributes)
        elif kind < 0.85:
            tar += whiteout(name)
            continue
        elif kind < 0.93:
            tar += opaque(name.rpartition("/")[0])
            continue
        elif kind < 0.95:
            tar += node(name, "c", 0, 0)
        elif kind < 0.97:
            tar += tarkit.xattrs({"trusted.overlay.opaque": b"y"}) + dir(name + "/", **attributes)
        elif kind < 0.99:
            tar += tarkit.xattrs({"user.x": dice.randbytes(3)}) + file(name, b"marked", **attributes)
            files.append(name)
        else:
            tar += fifo(name, **attributes)
        mine.append(name)
    return tar + end(), mine


@pytest.mark.parametrize("seed", range(30))
def test_a_random_chain_is_what_a_mount_shows(store, seed):
    dice = random.Random(seed)
    parent, below, layers, refused = "", [], [], 0
    while len(layers) < 4:
        tar, names = random_layer(dice, below)
        try:
            layers.append(store.register(tar, parent))
        except (LayerStoreError, OSError):
            refused += 1
            assert refused < 100
            continue
        parent, below = layers[-1].chain_id, (below + names)[-30:]
    for number, layer in enumerate(layers):
        with store.create_rw_layer(f"rw{number}", layer.chain_id) as rw, rw.mounted() as mounted:
            assert_agrees(layer.merged(), mounted)


@pytest.mark.parametrize("name", GOOD)
def test_every_layer_that_is_accepted_is_what_a_mount_shows(store, name):
    base = store.register(dir("a") + file("a/old", b"1") + file("f", b"2") + dir("d") + file("d/x", b"3") + end())
    layer = store.register(recipes.GOOD[name](), base.chain_id)
    with store.create_rw_layer("rw", layer.chain_id) as rw, rw.mounted() as mounted:
        assert_agrees(layer.merged(), mounted)


@pytest.mark.time_limit(110)
def test_real_trees_are_what_a_mount_shows(store):
    """Python's own library, which is there wherever this runs, and a second layer that changes it."""
    library = os.path.dirname(os.__file__)
    top = os.path.basename(library)
    tar = subprocess.run(["tar", "-C", os.path.dirname(library), "--exclude=site-packages", "-cf", "-", top], capture_output=True, check=True)
    base = store.register(tar.stdout)
    layer = store.register(
        whiteout(f"{top}/json") + opaque(f"{top}/email") + file(f"{top}/email/new.py", b"new = True\n")
        + file(f"{top}/os.py", b"changed = True\n") + end(),
        base.chain_id,
    )  # fmt: skip
    with store.create_rw_layer("rw", layer.chain_id) as rw, rw.mounted() as mounted:
        tree = layer.merged()
        assert_agrees(tree, mounted, contents=False)
        modules = [entry for entry in tree.find("**/*.py") if entry.type == "file"]
        assert len(modules) > 100 and f"{top}/json/decoder.py" not in tree
        for entry in modules:
            with tree.open(entry.path) as ours, open(os.path.join(mounted, entry.path), "rb") as theirs:
                assert ours.read() == theirs.read()


@pytest.fixture
def chain(store):
    one = store.register(
        dir("etc") + file("etc/passwd", b"root") + file("etc/Passwd", b"") + file("usr/lib/x.so", b"so") + symlink("lib", "/usr/lib")
        + file("usr/lib/.hidden.so", b"") + file("usr/share/[x]/y.so", b"") + end()
    )  # fmt: skip
    two = store.register(whiteout("etc/Passwd") + file("opt/new.so", b"new") + end(), one.chain_id)
    return one, two


def test_each_entry_says_which_layer_it_is_from(chain):
    one, two = chain
    tree = two.merged()
    assert isinstance(tree, MergedTree)
    assert [(e.path, e.chain_id == one.chain_id) for e in tree] == [
        ("etc", False), ("etc/passwd", True), ("lib", True), ("opt", False), ("opt/new.so", False), ("usr", True),
        ("usr/lib", True), ("usr/lib/.hidden.so", True), ("usr/lib/x.so", True), ("usr/share", True),
        ("usr/share/[x]", True), ("usr/share/[x]/y.so", True),
    ]  # fmt: skip
    assert len(tree) == 12
    with tree.open("lib/x.so") as f:
        assert f.read() == b"so"


def test_one_path_is_found_as_lstat_finds_it(chain):
    tree = chain[1].merged()
    assert tree.get("lib/x.so").path == "usr/lib/x.so"
    assert tree.get("lib").type == "symlink"
    assert tree.get("lib", follow=True).path == "usr/lib"
    assert tree.get("lib/").path == "usr/lib"
    assert tree.get("/").path == "."
    assert tree.get("etc/Passwd") is None
    assert "/etc/passwd" in tree
    assert "etc/Passwd" not in tree
    assert 3 not in tree


@pytest.mark.parametrize(
    "pattern, wanted",
    [
        ("*", ["etc", "lib", "opt", "usr"]),
        ("**/*.so", ["opt/new.so", "usr/lib/.hidden.so", "usr/lib/x.so", "usr/share/[x]/y.so"]),
        ("/usr/**/x.so", ["usr/lib/x.so"]), ("usr/lib/**/x.so", ["usr/lib/x.so"]),
        ("usr/lib/**", ["usr/lib/.hidden.so", "usr/lib/x.so"]), ("**/**/passwd", ["etc/passwd"]),
        ("etc/[pP]asswd", ["etc/passwd"]), ("etc/[!p]asswd", []), ("etc/PASSWD", []),
        ("???", ["etc", "lib", "opt", "usr"]), ("*/new.so", ["opt/new.so"]), ("*/x.so", []),
        ("usr/share/[[]x]/*", ["usr/share/[x]/y.so"]), ("lib/*", []), ("etc", ["etc"])]
)
def test_patterns(chain, pattern, wanted):
    assert [entry.path for entry in chain[1].merged().find(pattern)] == wanted
    assert [entry.path for entry in chain[1].merged().find(os.fsencode(pattern))] == wanted


def test_everything_fits_the_widest_pattern(store):
    tree = store.register(dir("x/y/z") + file("x/f", b"") + end()).merged()
    assert list(tree.find("**")) == list(tree)
    with pytest.raises(ValueError, match="below the root"):
        tree.find("/")


def test_hard_links_are_their_file_under_each_name(store):
    one = store.register(file("a", b"same", mode=0o600) + hardlink("b", "a", mode=0o640, uid=7) + hardlink("c", "b", mode=0o644) + end())
    two = store.register(whiteout("a") + end(), one.chain_id)
    tree = two.merged()
    b, c = tree
    assert [(e.path, e.type, e.size, e.mode, e.uid, e.link) for e in (b, c)] == [
        ("b", "file", 4, 0o644, 0, "a"), ("c", "file", 4, 0o644, 0, "b"),
    ]  # fmt: skip
    for name in "bc":
        with tree.open(name) as f:
            assert f.read() == b"same"


def test_names_may_nest_deeper_than_python_can_call(store):
    deep = "/".join("d" * 1020)
    one = store.register(tarkit.with_pax_path(deep, file, b"deep") + end())
    two = store.register(whiteout("d") + end(), one.chain_id)
    three = store.register(tarkit.with_pax_path(deep, file, b"again") + end(), two.chain_id)
    tree = three.merged()
    assert len(tree) == 1020
    with tree.open(deep) as f:
        assert f.read() == b"again"
    assert [entry.path for entry in tree.find(f"**/{deep}")] == [deep]
    for layer in (three, two, one):       # the room's own clearing up does call itself
        layer.release()
