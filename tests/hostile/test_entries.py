"""What else a worst enemy puts into a tar, and does beside it: names, links, marks and numbers that mean harm.

test_breakouts.py has the names and links that lead out of a layer. Here: directories swapped for links while a tar is
unpacked, marks of overlayfs smuggled in, whiteouts where none belong, numbers beyond all bounds. The law is the same
for each: a byte-exact layer whose tree holds what it may, or an error; and nothing outside is touched.
"""

import contextlib
import ctypes
import os
import stat
import struct
import threading

import pytest
import tarkit
from disk import disk_state, shape
from stored import comes_back
from tarkit import base256, dir, end, fifo, file, hardlink, node, raw_header, symlink, whiteout

from layerstore import BreakoutError, LayerStoreError, TarFormatError

SMALL = {"durability": "none"}
UP = "../" * 12
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def base(store):
    """A layer below: directories, and links of every kind to lead astray."""
    return store.register(
        dir("low/") + file("low/f", b"low") + file("gone", b"g")
        + symlink("up", UP + "victim") + symlink("root", "/") + symlink("link", "low") + symlink("proc", "/proc/self/root") + end()
    )  # fmt: skip


@pytest.fixture(params=["native", "merged"])
def rw(request, store, base):
    """A writable layer over base, unpacked into by itself or, as where it cannot be read alone, through its mount."""
    store._engine.driver.host.ground._native = request.param == "native"
    return store.create_rw_layer("c", base.chain_id)


def trusted(diff):
    """All overlay marks on disk: {path: names}."""
    found = {}
    for path, facts in disk_state(diff).items():
        names = {name for name, _ in facts[-1] if ".overlay." in name.lower()}
        if names:
            found[os.fsdecode(path)] = names
    return found


# ---- swapped while it is unpacked ------------------------------------------------------------------------------
AT_FDCWD, RENAME_EXCHANGE, IN_OPEN = -100, 2, 0x20


class Swapper:
    """Exchanges `at`/d with a link to a directory and `at`/n with one to a file in it, over and over, when they are there."""

    def __init__(self, find, target):
        self.find, self.links, self.count, self.stop = find, {"d": target, "n": f"{target}/hello"}, 0, False
        self.thread = threading.Thread(target=self.run)

    def plant(self, at):
        """A link beside each name that is there, if there is none: an entry may have replaced it."""
        for name, link in self.links.items():
            here, there = f"{at}/{name}", f"{at}/.{name}"
            if os.path.lexists(here) and not os.path.islink(here) and not os.path.islink(there):
                with contextlib.suppress(OSError):
                    os.symlink(link, f"{there}+")
                    os.rename(f"{there}+", there)

    def run(self):
        at = None
        while not self.stop:
            at = at or self.find()
            if at is None:
                continue
            self.plant(at)
            for _ in range(20):
                for name in self.links:
                    here, there = os.fsencode(f"{at}/{name}"), os.fsencode(f"{at}/.{name}")
                    self.count += libc.renameat2(AT_FDCWD, here, AT_FDCWD, there, RENAME_EXCHANGE) == 0

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop = True
        self.thread.join()


def many_below(name, count):
    """Everything an entry can do, in a directory that may be another one at every moment; and one name made very often."""
    again = tarkit.xattrs({"trusted.x": b"y"}) + fifo("n", mode=0o4777, uid=7, gid=7, mtime=7)
    parts = [dir(f"{name}/", mode=0o700, mtime=5), again * 1500]
    for n in range(count):
        parts += [
            file(f"{name}/f{n}", b"f", mode=0o777, uid=7, gid=7, mtime=6),
            dir(f"{name}/sub/", mode=0o711, uid=8),
            tarkit.xattrs({"trusted.x": b"y"}) + file(f"{name}/sub/g{n}", b"g"),
            hardlink(f"{name}/h{n}", f"{name}/f{n}", mode=0o606, mtime=7),
            symlink(f"{name}/s{n}", "hello", uid=9), whiteout(f"{name}/w{n}", uid=3), fifo(f"{name}/p{n}", mode=0o666),
            tarkit.opaque(name), file(f"{name}/hello", b"mine"), file(f"{name}/implied{n}/x", b"x"),
            hardlink(f"{name}/n{n}", "n", mode=0o4777, uid=9),
        ]
    return b"".join(parts)


def made_since(overlay, before):
    """The diff directory that is not among these names, or None yet."""
    for name in set(os.listdir(overlay)) - before:
        if (overlay / name / "diff").is_dir():
            return overlay / name / "diff"
    return None


@pytest.mark.parametrize("target", ["absolute", "relative", "the driver's own"])
@pytest.mark.parametrize("way", ["register", "native", "merged"])
def test_a_directory_swapped_for_a_link_meanwhile_lets_nothing_out(store, base, root, victim, target, way):
    """What comes of the layer does not matter, what becomes of the victim does. Many swaps must have come in between."""
    overlay, tar = root / "overlay2", many_below("d", 60) + end()
    link = {"absolute": os.fspath(victim), "relative": UP + os.path.relpath(victim, "/"), "the driver's own": "../../l"}[target]
    links, swaps, number = sorted(os.listdir(overlay / "l")), 0, 0
    store._engine.driver.host.ground._native = way != "merged"
    while number < 3 or (swaps < 500 and number < 50):
        number += 1
        before, rw = set(os.listdir(overlay)), None
        if way != "register":
            rw = store.create_rw_layer(f"c{number}", base.chain_id)
            mounted = rw.mount()
        where = {"native": overlay / rw.metadata()["UpperDir"], "merged": mounted}[way] if rw else None
        with Swapper(lambda before=before, where=where: where or made_since(overlay, before), link) as swapper:
            with contextlib.suppress(LayerStoreError, OSError):
                rw.apply_diff(tar) if rw else store.register(tar).release()
        swaps += swapper.count
        if rw:
            rw.unmount()
            rw.release()
    assert sorted(os.listdir(overlay / "l")) == links
    assert store.verify() == []


# ---- names through what lies below, and through /proc --------------------------------------------------------
@pytest.mark.parametrize("name", ["up/f", "root/../up/f", "link/../up/f"])
def test_links_of_a_lower_layer_lead_nobody_out(store, base, rw, victim, name):
    """In the layer's own directory they are not there; in what a box shows they are, and are not followed out."""
    tar = file(name, b"x") + end()
    layer = store.register(tar, base.chain_id)
    assert comes_back(layer, tar)
    with pytest.raises(BreakoutError):
        rw.apply_diff(tar)
    for inside in ("proc/f", "root/f", "link/f"):
        try:
            rw.apply_diff(file(inside, b"x") + end())
        except OSError as error:
            assert "too many links" in str(error)


MAGIC = ["/proc/self/root", "/proc/self/cwd", "/proc/1/root", "/proc/self/fd/0", "/proc/thread-self/root", "/dev/fd/0"]


@pytest.mark.parametrize("target", MAGIC)
@pytest.mark.parametrize("native", [True, False])
def test_magic_links_are_texts(store, victim, diff_of, target, native):
    tar = symlink("m", target) + file("m/planted", b"x") + hardlink("h", "m/planted") + end()
    layer = store.register(tar)
    assert (diff_of(layer) / target[1:] / "planted").read_bytes() == b"x"
    assert comes_back(layer, tar)
    store._engine.driver.host.ground._native = native
    rw = store.create_rw_layer("c", store.register(file("plain") + end()).chain_id)
    rw.apply_diff(tar)
    with rw.mounted() as path, open(f"{path}/{target[1:]}/planted") as planted:
        assert planted.read() == "x"
    assert not os.path.exists("/planted")


# ---- hard links ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tar", [
    dir("d/") + hardlink("h", "d"), dir("d/") + hardlink("h", "d/"), dir("d/") + hardlink("d/h", "d"), hardlink("h", "h"),
    dir("h/") + hardlink("h", "h"), whiteout("w") + hardlink("h", ".wh.w"), hardlink("h", "low/f"), hardlink("h", "link/f"),
    hardlink("h", "gone/"), tarkit.opaque("d") + hardlink("h", "d/.wh..wh..opq"), hardlink("h", "\x00"),
], ids=["directory", "directory/", "its own directory", "itself", "what it replaces", "a whiteout's name", "lower", "lower, by a link", "lower/",
        "an opaque mark", "nothing"])  # fmt: skip
def test_a_hard_link_to_what_is_no_file_of_the_layer_is_refused(store, base, unchanged, tar):
    with unchanged(), pytest.raises((OSError, BreakoutError)):
        store.register(tar + end(), base.chain_id)


def test_a_hard_link_to_a_whiteout_is_a_whiteout_and_comes_back(store, base):
    tar = whiteout("gone") + hardlink("low", "gone") + end()
    layer = store.register(tar, base.chain_id)
    assert comes_back(layer, tar)
    with store.create_rw_layer("c", layer.chain_id) as rw, rw.mounted() as path:
        assert not {"gone", "low"} & set(os.listdir(path))


def test_a_hard_link_cannot_hide_by_its_name(store, base, diff_of):
    layer = store.register(file("t", b"t") + hardlink(".wh.gone", "t") + end(), base.chain_id)
    assert shape(diff_of(layer)) == {"t": "t", "gone": "whiteout"}


# ---- devices and modes ------------------------------------------------------------------------------------------
def opened(directory):
    """Watch what is opened in a directory: call it for the names so far."""
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(fd, os.fsencode(directory), IN_OPEN) >= 0

    def names():
        found, data = set(), b""
        try:
            while block := os.read(fd, 1 << 16):
                data += block
        except BlockingIOError:
            pass
        while data:
            _, _, _, length = struct.unpack_from("iIII", data)
            found.add(data[16 : 16 + length].rstrip(b"\0").decode())
            data = data[16 + length :]
        return found - {""}

    return fd, names


@pytest.mark.time_limit(20)
def test_device_nodes_are_stored_and_never_opened(open_store, diff_of):
    store = open_store(options=SMALL)
    nodes = {"null": ("c", 1, 3), "zero": ("c", 1, 5), "mem": ("c", 1, 1), "sda": ("b", 8, 0), "console": ("c", 5, 1)}
    special = b"".join(node(name, *what, mode=0o666) for name, what in nodes.items()) + fifo("fifo")
    tar = special + file("plain", b"p") + hardlink("again", "zero") + end()
    layer = store.register(tar)
    fd, names = opened(diff_of(layer))
    try:
        assert comes_back(layer, tar)
        assert store.verify() == []
        with layer.tar_stream() as stream:
            stream.seek(len(special) + 600)
            stream.read()
        rw = store.create_rw_layer("c", layer.chain_id)
        rw.changes()
        with layer.tar_stream_from("") as stream:
            stream.read()
        rw.commit().release()
        rw.release()
        assert names() == {"plain"}
        os.close(os.open(diff_of(layer) / "null", os.O_RDWR))
        assert names() == {"null"}, "else this showed nothing"
        kinds = {name: stat.S_IFMT(os.stat(diff_of(layer) / name).st_mode) for name in nodes}
        assert kinds == {name: stat.S_IFBLK if what[0] == "b" else stat.S_IFCHR for name, what in nodes.items()}
        layer.release()
        assert names() == set()
    finally:
        os.close(fd)


def test_setuid_is_stored_as_it_is_and_nothing_runs(store, diff_of, victim):
    script = f"#!/bin/sh\necho ran > {victim}/ran\n".encode()
    layer = store.register(b"".join(file(name, script, mode=0o6755) for name in ("sh", "ld.so", ".wh", "modprobe")) + end())
    assert stat.S_IMODE(os.stat(diff_of(layer) / "sh").st_mode) == 0o6755
    assert os.path.dirname(os.fspath(diff_of(layer))) and oct(stat.S_IMODE(os.stat(diff_of(layer).parent).st_mode)) == "0o710"


# ---- overlayfs's own marks ---------------------------------------------------------------------------------------
MARKS = ["opaque", "redirect", "metacopy", "whiteout", "xwhiteouts", "origin", "impure", "nlink", "upper", "uuid", "protattr", "overlay.opaque", "x"]


@pytest.mark.parametrize("entry", [dir("low/"), file("low/f", b"new"), symlink("low", "x"), node("low", "c", 1, 3)], ids=["dir", "file", "link", "node"])
def test_no_mark_of_overlayfs_comes_in_as_an_attribute(store, base, rw, diff_of, entry):
    values = {"opaque": b"y", "redirect": b"/gone", "metacopy": b"", "whiteout": b"y", "impure": b"y", "protattr": b"i", "nlink": b"U+1"}
    smuggled = {f"{space}.overlay.{mark}": values.get(mark, b"y") for space in ("trusted", "user") for mark in MARKS}
    tar = tarkit.xattrs({**smuggled, "trusted.kept": b"1"}) + entry + end()
    layer = store.register(tar, base.chain_id)
    assert trusted(diff_of(layer)) == {}
    assert any(b"trusted.kept" in repr(facts[-1]).encode() for facts in disk_state(diff_of(layer)).values())
    assert comes_back(layer, tar)
    assert store.verify() == []
    rw.apply_diff(tar)
    ours = {name.replace("overlay.", "") for names in trusted(diff_of(store.get_mount_id("c"))).values() for name in names}
    # What the kernel itself writes where it copies a directory up or makes one anew.
    assert ours <= {"trusted.origin", "trusted.impure", "trusted.opaque", "trusted.uuid"}


def test_a_smuggled_opaque_mark_hides_nothing_and_a_redirect_shows_nothing(store, base):
    hidden = {"trusted.overlay.opaque": b"y", "user.overlay.opaque": b"y"}
    moved = {"trusted.overlay.redirect": b"/low", "user.overlay.redirect": b"/low"}
    copied = {"trusted.overlay.metacopy": b"", "trusted.overlay.redirect": b"/low/f", "user.overlay.metacopy": b""}
    tar = tarkit.xattrs(hidden) + dir("low/") + tarkit.xattrs(moved) + dir("moved/") + tarkit.xattrs(copied) + file("copied", b"own") + end()
    layer = store.register(tar, base.chain_id)
    with store.create_rw_layer("c", layer.chain_id) as rw, rw.mounted() as path:
        assert os.listdir(f"{path}/low") == ["f"]
        assert os.listdir(f"{path}/moved") == []
        with open(f"{path}/copied", "rb") as copy:
            assert copy.read() == b"own"


@pytest.mark.parametrize("key", ["LIBARCHIVE.xattr.trusted.overlay.opaque", "SCHILY.xattr.TRUSTED.overlay.opaque", "RHT.security.selinux"])
def test_attributes_by_other_names_are_no_attributes_or_errors(store, diff_of, key):
    try:
        layer = store.register(tarkit.pax({key: "y"}) + dir("d/") + end())
    except OSError:
        return
    assert os.listxattr(diff_of(layer) / "d") == []


def test_a_whiteout_carries_no_attribute_and_no_capability(store, diff_of):
    tar = tarkit.xattrs({"security.capability": tarkit.CAPABILITY, "trusted.x": b"y"}) + whiteout("w") + end()
    layer = store.register(tar)
    assert os.listxattr(diff_of(layer) / "w") == []
    assert comes_back(layer, tar)


# ---- whiteouts in odd places ---------------------------------------------------------------------------------------
ODD = {
    "opaque as a directory": (dir("d/.wh..wh..opq/"), {"d": "dir"}),
    "opaque as a link": (symlink("d/.wh..wh..opq", "/etc"), {"d": "dir"}),
    "opaque as a hard link": (file("q") + hardlink("d/.wh..wh..opq", "q"), {"d": "dir", "q": ""}),
    "opaque as a device": (node("d/.wh..wh..opq", "b", 8, 0), {"d": "dir"}),
    "opaque with a payload": (tarkit.opaque("d", b"payload" * 99), {"d": "dir"}),
    "opaque twice": (tarkit.opaque("d") + tarkit.opaque("d"), {"d": "dir"}),
    "opaque as a parent": (file("d/.wh..wh..opq/x", b"x"), {"d": "dir", "d/.wh..wh..opq": "dir", "d/.wh..wh..opq/x": "x"}),
    "whiteout as a parent": (file(".wh.x/y", b"y"), {".wh.x": "dir", ".wh.x/y": "y"}),
    "whiteout as a directory": (dir(".wh.x/"), {"x": "whiteout"}),
    "whiteout with a payload": (whiteout("x", b"payload" * 99), {"x": "whiteout"}),
    "whiteout of a sparse file": (tarkit.pax_sparse_1_0(".wh.x", [(5, b"x")], 90), {"x": "whiteout"}),
    "whiteout of the prefix": (file(".wh..wh."), {".wh.": "whiteout"}),
    "whiteout of the prefix and a dot": (file(".wh..wh.."), {".wh..": "whiteout"}),
    "whiteout of a whiteout": (file(".wh..wh.x"), {".wh.x": "whiteout"}),
    "whiteout twice": (whiteout("x") + whiteout("x"), {"x": "whiteout"}),
    "plnk as a file": (file(".wh..wh.plnk", b"p"), {".wh.plnk": "whiteout"}),
    "plnk as a directory": (dir(".wh..wh.plnk/"), {".wh.plnk": "whiteout"}),
    "below plnk": (file(".wh..wh.plnk/1.2", b"p") + hardlink("h", ".wh..wh.plnk/1.2"), {".wh..wh.plnk": "dir", ".wh..wh.plnk/1.2": "p", "h": "p"}),
    "aufs": (file(".wh..wh.aufs") + dir(".wh..wh.orph/"), {".wh.aufs": "whiteout", ".wh.orph": "whiteout"}),
    "a device 0:0": (node("x", "c", 0, 0, mode=0o777), {"x": "whiteout"}),
    "a device 0:0, named as a whiteout": (node(".wh.x", "c", 0, 0), {"x": "whiteout"}),
    "a block device 0:0": (node("x", "b", 0, 0), {"x": "block"}),
    "by a long name": (tarkit.with_pax_path(".wh.x"), {"x": "whiteout"}),
    "of the longest name": (tarkit.with_pax_path(".wh." + "n" * 255), {"n" * 255: "whiteout"}),
    "behind dots": (file("d/../.wh.x") + file("./e//.wh.y"), {"x": "whiteout", "e": "dir", "e/y": "whiteout"}),
    "in capitals": (file(".WH.x"), {".WH.x": ""}),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_a_whiteout_in_an_odd_place_is_what_its_name_says(store, rw, victim, diff_of, odd):
    entries, left = ODD[odd]
    layer = store.register(entries + end())
    assert shape(diff_of(layer)) == left
    assert comes_back(layer, entries + end())
    assert store.verify() == []
    try:
        rw.apply_diff(entries + end())
    except OSError:
        # The kernel makes no whiteout by hand on an overlay, and AUFS's links are long gone.
        assert not store._engine.driver.host.ground._native
        assert odd.startswith("a device 0:0") or odd == "below plnk"


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh...", "/.wh..", "d//.wh...", "./.wh.", ".wh./", "d/e/.wh.../"])
@pytest.mark.parametrize("kind", [file, dir, fifo], ids=["file", "dir", "fifo"])
def test_whiteouts_of_directories_themselves_are_refused(store, base, rw, unchanged, name, kind):
    with unchanged(), pytest.raises(BreakoutError, match="invalid whiteout entry"):
        store.register(file("good") + kind(name) + end())
    with pytest.raises(BreakoutError, match="invalid whiteout entry"):
        rw.apply_diff(kind(name) + end())


def test_whiteouts_of_links_and_mounts_touch_the_link_alone(store, base, rw, victim):
    rw.apply_diff(whiteout("up") + whiteout("proc") + whiteout("root") + end())
    with rw.mounted() as path:
        assert sorted(os.listdir(path)) == ["gone", "link", "low"]


# ---- names ------------------------------------------------------------------------------------------------------------
STRANGE = [b"a\nb", b"\r\x1b[2J", b"\x01\x7f", b"\xff\xfe\x80", b" ", b"...", b".. ", b"-rf", b"*", b"a\\b", b"c:\\x", "\u202e\u2028é".encode(), b"\xed\xa0\x80"]


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_name_is_a_name(store, rw, diff_of, name):
    tar = file(b"d/" + name, b"1") + tarkit.pax({"path": b"e/" + name}) + dir("x/") + end()
    layer = store.register(tar)
    assert os.listdir(os.fsencode(diff_of(layer) / "d")) == os.listdir(os.fsencode(diff_of(layer) / "e")) == [name]
    assert comes_back(layer, tar)
    rw.apply_diff(tar)


@pytest.mark.parametrize("tar", [
    tarkit.pax({"path": b"a\0b"}) + file("x"), tarkit.pax({"linkpath": b"a\0b"}) + symlink("x", "y"),
    tarkit.pax({b"SCHILY.xattr.user.a\0b": b"1"}.items()) + file("x"), tarkit.pax({"uname": b"a\0b"}) + file("x"),
], ids=["path", "link", "attribute", "owner"])  # fmt: skip
def test_a_nul_in_a_text_is_malformed(store, unchanged, tar):
    store.register(end())
    with unchanged(), pytest.raises(TarFormatError, match="NUL"):
        store.register(tar + end())


def test_a_nul_ends_a_name_of_gnu(store, diff_of):
    tar = tarkit.gnu_long(b"a\0/../../victim") + file("x", b"1") + end()
    layer = store.register(tar)
    assert shape(diff_of(layer)) == {"a": "1"}
    assert comes_back(layer, tar)


@pytest.mark.parametrize("name", ["n" * 256, "d/" + "n" * 256, "n" * 256 + "/f", ".wh." + "n" * 256, "n" * 5000])
def test_a_component_too_long_is_refused_with_its_entry(store, unchanged, name):
    store.register(end())
    with unchanged(), pytest.raises(OSError, match="too long") as caught:
        store.register(file("good") + tarkit.with_pax_path(name) + end())
    assert caught.value.filename.startswith(name[:100])
    assert "at byte 512" in " ".join(caught.value.__notes__)


@pytest.mark.parametrize("count", [25, 60])
def test_a_path_beyond_what_the_kernel_takes_is_stored_removed_and_written_into(store, rw, count):
    deep = "/".join([f"{n}" * 100 for n in range(1, 9)] * (count // 8 + 1))
    tar = tarkit.with_pax_path(deep, file, b"deep", mode=0o640) + tarkit.with_pax_path(deep + "2", file, b"2") + end()
    layer = store.register(tar)
    assert comes_back(layer, tar)
    assert store.verify() == []
    rw.apply_diff(tar)
    rw.release()
    assert len(layer.release()) == 1
    assert store.verify() == []


@pytest.mark.parametrize("tar", [
    tarkit.gnu_long("a" * 120) + tarkit.gnu_long("../" * 9) + file("x"), tarkit.pax({"path": "in"}) + tarkit.gnu_long("../up") + file("x"),
    tarkit.gnu_long("in") + tarkit.pax({"path": "../up"}) + tarkit.gnu_long("../up") + file("x"), tarkit.pax({"path": "in"}) + tarkit.pax({"path": "../up"}) + file("x"),
    tarkit.gnu_long("in", b"K") + tarkit.gnu_long("../../up", b"K") + hardlink("h", "in"),
    tarkit.global_pax({"path": "in"}) + tarkit.pax({"path": "../up"}) + file("in"),
], ids=["L L", "x L", "L x L", "x x", "K K", "g x"])  # fmt: skip
def test_the_last_long_name_counts_and_is_looked_at(store, unchanged, tar):
    store.register(end())
    with unchanged(), pytest.raises(BreakoutError):
        store.register(file("in") + tar + end())


@pytest.mark.parametrize("tar, left", [
    (tarkit.gnu_long("../up") + tarkit.gnu_long("in") + file("x", b"1"), {"in": "1"}),
    (tarkit.gnu_long("../../etc/passwd"), {}),                                  # announced, and never there
    (tarkit.pax({"path": "../up"}) + tarkit.global_pax({"c": "c"}) + file("in", b"1"), {"in": "1"}),
    (tarkit.global_pax({"path": "../up", "linkpath": "/etc/passwd", "SCHILY.xattr.trusted.overlay.opaque": "y"}) + dir("in/"), {"in": "dir"}),
    (file("a", b"1") + end() + file("../up", b"x") + whiteout("../victim") + end(), {"a": "1"}),
    (file("/", b"x") + symlink("./", "/etc") + fifo("") + file("a/..", b"x"), {}),
], ids=["L L", "L and no entry", "x g", "g", "behind the end", "the root itself"])  # fmt: skip
def test_a_bad_name_that_names_nothing_does_nothing(store, rw, victim, diff_of, tar, left):
    layer = store.register(tar + end())
    assert shape(diff_of(layer)) == left
    assert comes_back(layer, tar + end())
    if left.get("in") != "dir":
        rw.apply_diff(tar + end())


# ---- numbers ------------------------------------------------------------------------------------------------------------
HUGE = (1 << 63) - 1
REFUSED_NUMBERS = {
    "size -1": raw_header("x", size=-1),
    "size -2^63": raw_header("x", size=-(1 << 63)),
    "size 2^63": raw_header("x", size=base256(1 << 63, 12)),
    "size 2^63-1": raw_header("x", size=base256(HUGE, 12)),
    "size of a header 2^63-1": raw_header("x", size=base256(HUGE, 12), typeflag=b"x") + file("y"),
    "size of a header -5": raw_header("x", size=-5, typeflag=b"L") + file("y"),
    "pax size 2^63-1": tarkit.pax({"size": str(HUGE)}) + file("x"),
    "pax size 2^63": tarkit.pax({"size": str(HUGE + 1)}) + file("x"),
    "pax size -1": tarkit.pax({"size": "-1"}) + file("x"),
    "pax size 0x10": tarkit.pax({"size": "0x10"}) + file("x"),
    "sizes of directories together": dir("x/", size=base256(HUGE, 12)) + dir("y/", size=base256(HUGE, 12)),
    "holes together": tarkit.pax_sparse_1_0("x", [], HUGE) + tarkit.pax_sparse_1_0("y", [], HUGE),
    "uid -1": file("x", uid=-1),
    "uid 2^32": file("x", uid=1 << 32),
    "uid 2^32-1, which changes nothing": file("x", uid=(1 << 32) - 1),
    "gid 2^32-1": file("x", gid=(1 << 32) - 1),
    "pax uid -2^31 - 1": tarkit.pax({"uid": str(-(1 << 31) - 1)}) + file("x"),
    "owner of a whiteout": whiteout("x", uid=-1),
    "mtime of no number": file("x", mtime=b"zzzzzzzzzzz\0"),
    "pax mtime of no number": tarkit.pax({"mtime": "nan"}) + file("x"),
    "pax mtime of forty digits": tarkit.pax({"mtime": "9" * 40}) + file("x"),
    "device -1": node("x", "c", -1, 0),
    "device 2^63": node("x", "b", 0, base256(1 << 50, 8)),
    "checksum of another header": raw_header("x", chksum=tarkit.checksum(raw_header("y"))),
    "checksum negative": raw_header("x", chksum=base256(-5, 8)),
    "checksum in base 256": raw_header("x", chksum=base256(tarkit.checksum(raw_header("x")), 8)),
    "sparse, offset -1": tarkit.pax({"GNU.sparse.size": "10", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "-1,1"}) + file("x", b"x"),
    "sparse, length -1": tarkit.pax({"GNU.sparse.size": "10", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "1,-1"}) + file("x", b"x"),
    "sparse, count -1": tarkit.pax({"GNU.sparse.size": "10", "GNU.sparse.numblocks": "-1", "GNU.sparse.map": "0,1"}) + file("x", b"x"),
    "sparse, size -1": tarkit.pax({"GNU.sparse.size": "-1", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,1"}) + file("x", b"x"),
    "sparse, offset and length leave 63 bits": tarkit.pax({"GNU.sparse.size": str(HUGE), "GNU.sparse.numblocks": "1", "GNU.sparse.map": f"{HUGE},1"}) + file("x", b"x"),
    "sparse, overlapping": tarkit.old_gnu_sparse("x", [(0, b"x" * 600), (599, b"y")], 1000),
    "sparse, out of order": tarkit.pax_sparse_1_0("x", [(600, b"x"), (0, b"y")], 1000),
    "sparse, beyond its size": tarkit.pax_sparse_0_0("x", [(999, b"xy")], 1000),
    "sparse, a map that is cut": tarkit.pax_sparse_1_0("x", [], 10, sparse_map=b"5\n0\n"),
    "sparse, a map larger than the file": tarkit.pax_sparse_1_0("x", [], 10, sparse_map=b"1\n0\n", size=100),
    "sparse, a count of 2^63-1": tarkit.pax_sparse_1_0("x", [], 10, sparse_map=b"%d\n" % HUGE),
    "sparse, a directory": tarkit.pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}) + dir("x/"),
}  # fmt: skip


@pytest.mark.parametrize("number", REFUSED_NUMBERS)
def test_a_number_beyond_all_bounds_is_refused_where_it_stands(store, base, rw, unchanged, number):
    front = file("front", b"f")
    tar = front + REFUSED_NUMBERS[number] + bytes(2048) + end()
    with unchanged(), pytest.raises(TarFormatError) as caught:
        store.register(tar)
    assert len(front) <= caught.value.offset <= len(tar)
    with pytest.raises(TarFormatError):
        rw.apply_diff(tar)


TAKEN_NUMBERS = {
    "size -1 of a directory": dir("x/", size=-1),
    "size 2^63-1 of a directory": dir("x/", size=base256(HUGE, 12)),
    "mtime -2^62": file("x", mtime=-(1 << 62)),
    "mtime 2^62": file("x", mtime=base256(1 << 62, 12)),
    "pax mtime -1.5": tarkit.pax({"mtime": "-1.5", "atime": str(HUGE)}) + file("x"),
    "uid 2^32-2": file("x", uid=(1 << 32) - 2, gid=(1 << 32) - 2),
    "mode -1": file("x", mode=-1),
    "checksum with signs": raw_header(b"\xff\xfe", signed=True),
    "a hole of exabytes": tarkit.pax_sparse_1_0("x", [(1 << 61, b"x")], 1 << 62),
    "a hole of 2^63-1": tarkit.pax_sparse_1_0("x", [], HUGE),
    "empty pieces": tarkit.pax_sparse_0_1("x", [(0, b""), (0, b""), (5, b"x"), (6, b""), (90, b"")], 90),
}  # fmt: skip


@pytest.mark.parametrize("number", TAKEN_NUMBERS)
def test_a_number_that_can_be_meant_is_taken_and_comes_back(store, number):
    tar = TAKEN_NUMBERS[number] + end()
    layer = store.register(tar)
    assert comes_back(layer, tar)
    assert store.verify() == []


def test_an_error_shows_no_control_characters_of_a_name(store):
    with pytest.raises(BreakoutError) as caught:
        store.register(file("../\x1b[2J\n\xff".encode("latin-1")) + end())
    assert str(caught.value).isprintable()
    assert caught.value.path == "../\x1b[2J\n\udcff"
