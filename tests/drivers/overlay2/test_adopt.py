"""A writable layer's directory becomes a layer where it lies: its tar, its record, and what a check then says."""

import contextlib
import errno
import os
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import disk
import pytest
import tarkit
from edits import Edits, layers, on_disk, scripts
from hypothesis import HealthCheck, given, settings
from machine import needs
from stored import read
from tarkit import dir, end, file, symlink

from layerstore import BreakoutError, CorruptLayerError, FileType, LimitExceededError, NotSupportedError
from layerstore._core import _changes, _tarstream
from layerstore.drivers.overlay2 import adopted
from layerstore.ids import ChainID, random_id
from layerstore.limits import Limits
from layerstore.streams.sources import SourceInput

CHAIN = ChainID("sha256:" + "7" * 64)
BASE = dir("d/") + file("d/kept", b"kept") + file("d/gone", b"gone") + dir("old/") + file("old/x", b"x") + file("plain", b"plain") \
    + symlink("way", "d") + end()


@pytest.fixture
def base(opened):
    draft = opened.driver.layers.begin(random_id(), [])
    draft.receive(SourceInput(BASE), opened.new(draft.id))
    draft.settle()
    draft.publish()
    return draft.id


@pytest.fixture
def written(opened, base):
    """Make a writable layer on the base, and let a function write into its mount; returns its id."""

    def made(write, stack=None):
        id, boxes = random_id(), opened.driver.writables
        boxes.create(id, [base] if stack is None else stack, None)
        boxes.publish(id)
        at = boxes.mount(id)
        try:
            write(at)
        finally:
            boxes.unmount(id)
        return id

    return made


def adopt(opened, id, stack):
    return opened.driver.layers.adopt(id, list(stack), opened.new(id))


def found(opened, id, stack, received, **how):
    return opened.layer(id, stack).check(received.diff_id, **how)


def put(path, data=b"", mode=0o644, ns=None):
    with open(path, "wb") as out:
        out.write(data)
    os.chmod(path, mode)
    if ns is not None:
        os.utime(path, ns=(ns, ns))


def acl(path, group, kind="access"):
    """Let user 1000 have all rights beside the owning group's, and a mask of all."""
    entries = [(1, 6, -1), (2, 7, 1000), (4, group, -1), (0x10, 7, -1), (0x20, 0, -1)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(path, f"system.posix_acl_{kind}", value)


def everything(at):
    """All that a box may hold, and much of it what a tar of it leaves out."""
    put(f"{at}/new", b"new" * 1000, 0o4755, 1_700_000_000_123_456_789)
    put(f"{at}/empty", ns=-5_500_000_000)
    put(f"{at}/late", b"l", ns=9_300_000_000_500_000_000)
    put(f"{at}/d/kept", b"other", 0o600, 1_600_000_000_999_999_999)
    os.unlink(f"{at}/d/gone")
    os.unlink(f"{at}/plain")
    disk.remove_tree(f"{at}/old")
    os.mkdir(f"{at}/old", 0o2750)
    put(f"{at}/old/y", b"y")
    os.mkdir(f"{at}/deep")
    os.makedirs(f"{at}/deep/" + "n" * 100 + "/" + "m" * 200)
    put(f"{at}/deep/" + "n" * 100 + "/" + "m" * 200 + "/end", b"end")
    os.symlink("../elsewhere", f"{at}/link")
    os.chown(f"{at}/link", 3_000_000, 7, follow_symlinks=False)
    os.link(f"{at}/new", f"{at}/deep/again")
    os.mkfifo(f"{at}/fifo", 0o620)
    os.mknod(f"{at}/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(f"{at}/block", 0o600 | stat.S_IFBLK, os.makedev(7, 300))
    put(f"{at}/\udcff\udcfe name", b"raw")
    with open(f"{at}/sparse", "wb") as out:
        out.seek(3 << 20)
        out.write(b"end")
    # what no tar of moby's has
    put(f"{at}/user", b"user")
    os.setxattr(f"{at}/user", "user.note", b"kept")
    os.setxattr(f"{at}/user", "trusted.note", b"kept")
    os.setxattr(f"{at}/d", "user.of a directory", b"kept")
    put(f"{at}/able", b"able", 0o755)
    os.setxattr(f"{at}/able", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    put(f"{at}/able elsewhere", b"able", 0o755)
    os.setxattr(
        f"{at}/able elsewhere", "security.capability",
        bytes.fromhex("0100000300040000000000000000000000000000") + (1000).to_bytes(4, "little"),
    )  # fmt: skip
    put(f"{at}/shared", b"acl", 0o640)
    acl(f"{at}/shared", 4)
    os.mkdir(f"{at}/shared.d")
    acl(f"{at}/shared.d", 5, "default")
    put(f"{at}/shared.d/inside", b"in")
    os.mknod(f"{at}/socket", 0o755 | stat.S_IFSOCK)
    os.utime(f"{at}/d", ns=(1, 1_500_000_000_000_000_001))


def test_the_tar_is_the_one_that_diff_makes(opened, base, written):
    id = written(everything)
    tar = read(opened.driver.trees.diff([id], [base]))
    size = opened.driver.trees.size([id])
    before = disk.disk_state(opened.home / id / "diff")
    received = adopt(opened, id, [base])
    assert received.tar_size == len(tar)
    assert received.size == size
    layer = opened.layer(id, [base])
    assert read(layer.tar(received.diff_id)) == tar
    assert disk.disk_state(opened.home / id / "diff") == before


@pytest.mark.parametrize("metadata", [True, False])
def test_a_check_finds_nothing(opened, base, written, metadata):
    id = written(everything)
    received = adopt(opened, id, [base])
    assert found(opened, id, [base], received, metadata=metadata) == []


def test_on_nothing(opened, written):
    def write(at):
        put(f"{at}/a", b"a", ns=1_700_000_000_000_000_001)
        os.setxattr(f"{at}/a", "user.note", b"kept")

    id = written(write, [])
    received = adopt(opened, id, [])
    assert found(opened, id, [], received) == []
    assert [entry.path for entry in opened.layer(id).entries(CHAIN)] == ["a"]


def test_of_nothing_at_all(opened, base, written):
    id = written(lambda at: None)
    received = adopt(opened, id, [base])
    assert received.tar_size == 1024
    assert received.size == 0
    assert found(opened, id, [base], received) == []


def test_entries_and_files(opened, base, written):
    id = written(everything)
    adopt(opened, id, [base])
    layer = opened.layer(id, [base])
    entries = {entry.path: entry for entry in layer.entries(CHAIN)}
    assert entries["d/gone"].type == FileType.WHITEOUT
    assert entries["old"].type in (FileType.DIRECTORY, FileType.OPAQUE)
    assert "socket" not in entries
    assert {entries["new"].type, entries["deep/again"].type} == {FileType.FILE, FileType.LINK}
    fd = layer.open_file(entries["old/y"])
    try:
        assert os.read(fd, 10) == b"y"
    finally:
        os.close(fd)


def test_it_is_read_once(opened, base, written, tmp_path):
    """No file is opened twice."""
    needs("strace")
    id = written(lambda at: [put(f"{at}/f{i}", b"%d" % i) for i in range(20)])
    (tmp_path / "main.py").write_text(
        "import os, sys\n"
        "from layerstore._core import _apply\n"
        "from layerstore.drivers.overlay2 import adopted\n"
        "from layerstore.limits import Limits\n"
        "root = os.open(sys.argv[1], os.O_RDONLY); out = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)\n"
        "adopted.record(root, out, userxattr=False, limits=Limits())\n"
    )
    trace = tmp_path / "trace"
    subprocess.run(
        ["strace", "-f", "-e", "trace=openat,openat2,open", "-o", trace, sys.executable, tmp_path / "main.py",
         opened.home / id / "diff", tmp_path / "record"], check=True,
    )  # fmt: skip
    lines = trace.read_text().splitlines()
    for i in range(20):
        assert sum(f'"f{i}"' in line for line in lines) == 1


def test_it_may_be_repeated(opened, base, written):
    id = written(everything)
    assert adopt(opened, id, [base]) == adopt(opened, id, [base])


def test_a_name_that_would_be_a_mark(opened, base, written):
    id = written(lambda at: put(f"{at}/d/.wh.kept"))
    with pytest.raises(BreakoutError, match=r"begins with \.wh\.") as raised:
        adopt(opened, id, [base])
    assert raised.value.path == "d/.wh.kept"


def test_what_only_a_mount_can_tell(opened, base, written):
    id = written(lambda at: os.mkdir(f"{at}/moved"))
    os.setxattr(opened.home / id / "diff" / "moved", "trusted.overlay.redirect", b"/d")
    with pytest.raises(NotSupportedError, match="only a mount can tell"):
        adopt(opened, id, [base])


def test_a_limit_of_the_store(opened, base, written):
    id = written(lambda at: [put(f"{at}/f{i}") for i in range(20)])
    opened.driver.layers._ground.limits = Limits(max_entries=10)
    with pytest.raises(LimitExceededError, match="max_entries"):
        adopt(opened, id, [base])


# ---- damage is told as of any layer ----
def at(opened, id, name):
    return opened.home / id / "diff" / name


def keep_times(path, change):
    st = os.stat(path)
    change(path)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


DAMAGES = {
    "bytes": ("d/kept", lambda p: keep_times(p, lambda p: p.write_bytes(b"OTHER")), "content"),
    "bytes of another length": ("d/kept", lambda p: p.write_bytes(b"x"), "content"),
    "a second more": ("new", lambda p: os.utime(p, ns=(0, 1_700_000_001_000_000_000)), "metadata"),
    "a time before 1970": ("empty", lambda p: os.utime(p, ns=(0, 10**9)), "metadata"),
    "a mode": ("d/kept", lambda p: p.chmod(0o644), "metadata"),
    "a mode beneath an ACL": ("shared", lambda p: acl(p, 7), "metadata"),
    "an owner": ("link", lambda p: os.chown(p, 0, 0, follow_symlinks=False), "metadata"),
    "a capability": ("able", lambda p: os.removexattr(p, "security.capability"), "metadata"),
    "another capability": ("able", lambda p: os.setxattr(p, "security.capability", bytes.fromhex("01000002ff040000" + "0" * 24)), "metadata"),
    "one too many": ("new", lambda p: os.setxattr(p, "security.capability", bytes.fromhex("0100000200040000" + "0" * 24)), "metadata"),
    "an added file": ("d/added", lambda p: p.touch(), "orphan"),
    "a name gone": ("fifo", lambda p: p.unlink(), "missing"),
    "a whiteout gone": ("plain", lambda p: p.unlink(), "missing"),
    "an opaque mark gone": ("old", lambda p: os.removexattr(p, "trusted.overlay.opaque"), "missing"),
    "an opaque mark": ("d", lambda p: os.setxattr(p, "trusted.overlay.opaque", b"y"), "metadata"),
    "a link target": ("link", lambda p: (p.unlink(), p.symlink_to("where/ever0")), "content"),
    "a device": ("null", lambda p: (p.unlink(), os.mknod(p, 0o666 | stat.S_IFCHR, os.makedev(1, 5))), "content"),
    "a second file of two names": ("deep/again", lambda p: (subprocess.run(["cp", "-a", p, f"{p}2"], check=True), os.rename(f"{p}2", p)), "metadata"),
    "a socket in another's place": ("d/kept", lambda p: (p.unlink(), os.mknod(p, 0o600 | stat.S_IFSOCK)), "content"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told(opened, base, written, damage):
    id = written(everything)
    received = adopt(opened, id, [base])
    name, change, kind = DAMAGES[damage]
    change(at(opened, id, name))
    told = found(opened, id, [base], received)
    assert any(one.kind == kind and os.path.basename(name) in one.path for one in told), told


def test_another_layer_is_looked_at_as_closely_as_ever(opened, base):
    """What is no damage to a directory that came first is one to a layer that came as a tar."""
    received = opened.driver.layers.begin(random_id(), []).receive
    draft = received.__self__
    done = received(SourceInput(BASE), opened.new(draft.id))
    draft.settle()
    draft.publish()
    os.setxattr(at(opened, draft.id, "plain"), "user.note", b"y")
    os.mknod(at(opened, draft.id, "socket"), 0o755 | stat.S_IFSOCK)
    os.utime(at(opened, draft.id, "d/kept"), ns=(0, 1))
    told = {one.path: one.kind for one in found(opened, draft.id, [], done)}
    assert told == {"plain": "metadata", "socket": "orphan", "d/kept": "metadata"}


def test_a_file_system_without_user_attributes(opened, base, written, monkeypatch):
    id = written(everything)

    def setxattr(path, name, value, *more, real=os.setxattr, **named):
        if name.startswith("user."):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported", str(path))
        real(path, name, value, *more, **named)

    monkeypatch.setattr(os, "setxattr", setxattr)
    received = adopt(opened, id, [base])
    assert found(opened, id, [base], received) == []
    assert "trusted.layerstore.adopted" in os.listxattr(opened.home / id)


def test_a_directory_that_shrinks_meanwhile(opened, base, written):
    """A record whose files changed after it was written does not pass for the layer."""
    id = written(everything)
    received = adopt(opened, id, [base])
    at(opened, id, "late").unlink()
    with pytest.raises((CorruptLayerError, OSError)):
        read(opened.layer(id, [base]).tar(received.diff_id))


# ---- drawn boxes ----
@pytest.fixture(params=["tmpfs", "ext4", "xfs", "btrfs"])
def place(request, room):
    needs(*([f"mkfs.{request.param}"] if request.param != "tmpfs" else []))
    with disk.sized_file_system(room, request.param, size=320 << 20) as place:
        yield place


@pytest.mark.time_limit(180)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers(), layers(), scripts(4, 16))
def test_of_any_box_the_tar_is_the_same_and_a_check_finds_nothing(place, lower, upper, script):
    """What edits made of a mount, and with all that a directory may hold besides."""
    at = Path(tempfile.mkdtemp(dir=place))
    for name, layer in (("low", lower), ("up", upper)):
        on_disk(layer, os.fsencode(at / name))
    with contextlib.suppress(OSError):                # no box has such a mark at its top
        os.removexattr(at / "up", "trusted.overlay.opaque")
    for name in ("work", "point"):
        (at / name).mkdir()
    known = sorted({*lower, *upper})
    disk.mount("overlay", at / "point", "overlay", 0, f"lowerdir={at}/low,upperdir={at}/up,workdir={at}/work")
    try:
        edits = Edits(at / "point", known)
        edits.run(script)
        for path in map(edits._at, edits.known):
            if os.path.isfile(path) and not os.path.islink(path):
                os.setxattr(path, "user.note", b"kept")
                os.utime(path, ns=(1, os.stat(path).st_mtime_ns + 5))
    finally:
        disk.unmount(at / "point", 0)
    record = os.memfd_create("record")
    root, below = (os.open(at / name, os.O_RDONLY) for name in ("up", "low"))
    try:
        try:
            received = adopted.record(root, record, userxattr=False, limits=Limits())
        except BreakoutError:
            assert any(name.startswith(b".wh.") for path in edits.known for name in path.split(b"/"))
            return
        with contextlib.closing(_tarstream.export_tree(root, _tarstream.EXPORT_OVERLAY)) as source:
            tar = source.read(-1)
        assert (received.diff_id, received.tar_size) == (tarkit.diff_id(tar), len(tar))
        assert received.size == _changes.tree_size(root)
        flags = _tarstream.CHECK_METADATA | _tarstream.CHECK_FIRST
        assert _tarstream.check(record, root, received.diff_id.raw, None, [below], flags) == [], edits.told
        with contextlib.closing(_tarstream.assemble(record, root, received.diff_id.raw)) as source:
            assert source.read(-1) == tar
    finally:
        for fd in (record, root, below):
            os.close(fd)
        disk.remove_tree(at)
