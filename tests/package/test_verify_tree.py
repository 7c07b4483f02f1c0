"""verify() against a plain walk: drawn layers, drawn damage done by plain calls, and what repair() makes of it.

The tree is noted before it is damaged, by lstat and read alone. Each damage must be told with its path and kind, two
at once too; afterwards the tree is what it was.
"""

import os
import random
import shutil
import stat
import struct

import pytest
import tarkit
from driven import DRIVER, FILES, LAYERDB
from tarkit import dir, end, fifo, file, hardlink, node, opaque, symlink, whiteout

from layerstore import BreakoutError, CorruptLayerError, TarFormatError

DIRECTORIES = ["d0", "d0/s", "d1", "usr/lib", "usr/share/doc", "deep/a/b/c"]
BASE = b"".join([
    *(file(f"{at}/w{n}", b"below") for at in ("d0", "d1", "usr/lib") for n in range(3)), file("w9", b"below"),
    dir("o/"), file("o/below", b"x"), end(),
])  # fmt: skip
# What the layers below show: there a mark that follows from others must be.
SHOWN = {"o", "d0", "d1", "usr", "usr/lib", "w9", *(f"{at}/w{n}" for at in ("d0", "d1", "usr/lib") for n in range(3))}
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def acl(*extra):
    entries = sorted([(1, 6, 0xFFFFFFFF), (4, 4, 0xFFFFFFFF), (0x10, 6, 0xFFFFFFFF), (0x20, 4, 0xFFFFFFFF), *extra])
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)


# ---- drawn layers ----------------------------------------------------------------------------------------
class Drawn:
    """A layer's tar, and which of its directories have an entry."""

    def __init__(self, dice):
        self.dice, self.parts, self.recorded, self.files = dice, [], set(), []
        if dice.random() < 0.1:
            self.parts.append(opaque(""))
        self.parts.append(dir("usr/lib/", **self.meta()))
        self.recorded.add("usr/lib")
        self.parts.append(symlink("lib", dice.choice(["usr/lib", "/usr/lib", "usr/../usr/lib"])))
        for _ in range(dice.randrange(4, 30)):
            dice.choice([self.file] * 5 + [self.directory, self.link, self.hard, self.odd, self.sparse, self.hide, self.replace, self.reborn])()
        self.tar = b"".join(self.parts) + end()

    def meta(self):
        dice = self.dice
        return {"mode": dice.choice([0o644, 0o755, 0o600, 0o4755, 0o2755, 0o1777, 0o400]), "uid": dice.choice([0, 1000, 70_000]),
                "gid": dice.choice([0, 5, 4_000_000]), "mtime": dice.choice([0, 1, 1_600_000_000, 1_700_000_123])}  # fmt: skip

    def place(self):
        at = self.dice.choice([*DIRECTORIES, "lib", "lib/more", ""])
        return f"{at}/" if at else ""

    def extended(self):
        dice, given = self.dice, {}
        if dice.random() < 0.3:
            given["user.one"] = dice.randbytes(dice.choice([0, 3, 2000]))
        if dice.random() < 0.2:
            given["trusted.two"] = b"t"
        if dice.random() < 0.2:
            given["security.capability"] = CAPABILITY
        if dice.random() < 0.1:
            given["user.three"] = dice.randbytes(2)
        if dice.random() < 0.2:
            given["system.posix_acl_access"] = acl((2, 7, 1234))
        return tarkit.xattrs(given) if given else b""

    def file(self):
        dice = self.dice
        data = dice.choice([b"", b"small", dice.randbytes(5000), bytes(20_000) + b"x", b"same" * 50])
        name = f"{self.place()}f{dice.randrange(12)}"
        self.parts.append(self.extended() + file(name, data, **self.meta()))
        self.files.append(name)

    def directory(self):
        name = f"{self.place()}n{self.dice.randrange(4)}"
        self.parts.append(self.extended() + dir(name + "/", **self.meta()))
        self.recorded.add(name.replace("lib/", "usr/lib/", 1) if name.startswith("lib/") else name)

    def link(self):
        self.parts.append(symlink(f"{self.place()}l{self.dice.randrange(6)}", self.dice.choice(["f1", "/etc/passwd", "x" * 99]), **self.meta()))

    def hard(self):
        if self.files:
            self.parts.append(self.extended() + hardlink(f"{self.place()}h{self.dice.randrange(6)}", self.dice.choice(self.files), **self.meta()))

    def odd(self):
        name = f"{self.place()}s{self.dice.randrange(6)}"
        self.parts.append(self.dice.choice([fifo(name, **self.meta()), node(name, "c", 1, 3, **self.meta()), node(name, "b", 7, 200, **self.meta())]))

    def sparse(self):
        make = self.dice.choice([tarkit.old_gnu_sparse, tarkit.pax_sparse_0_0, tarkit.pax_sparse_0_1, tarkit.pax_sparse_1_0])
        self.parts.append(make(f"{self.place()}p{self.dice.randrange(4)}", [(8192, b"first" * 100), (300_000, b"last")], 400_000))

    def hide(self):
        at = self.dice.choice(["d0/", "d1/", "usr/lib/", "lib/"])
        self.parts.append(self.dice.choice([whiteout(f"{at}w{self.dice.randrange(3)}"), opaque("o/"), whiteout("w9")]))

    def reborn(self):
        """A whiteout, and a directory of its name."""
        name = self.dice.choice(["d0/w0", "d1/w1", "usr/lib/w2", "w9"])
        self.parts.append(whiteout(name) + dir(name + "/", **self.meta()) + file(f"{name}/new", b"n", **self.meta()))
        self.recorded.add(name)

    def replace(self):
        """Something of another kind where something was."""
        if self.files:
            name = self.dice.choice(self.files)
            kind = self.dice.choice([lambda: dir(name + "/", **self.meta()), lambda: symlink(name, "elsewhere"), lambda: fifo(name)])
            self.parts.append(kind())
            self.files = [f for f in self.files if f != name]
            self.recorded.add(name.replace("lib/", "usr/lib/", 1) if name.startswith("lib/") else name)


def drawn(store, seed):
    """A layer that was registered on a base, and its tar."""
    for attempt in range(50):
        made = Drawn(random.Random(f"{seed} {attempt}"))
        try:
            with store.register(BASE) as base:
                return store.register(made.tar, base.chain_id), made
        except (TarFormatError, BreakoutError, OSError):
            continue                                   # a hard link to what went, for instance
    raise AssertionError("no layer can be drawn")


# ---- the plain walk -----------------------------------------------------------------------------------------
def note(root, recorded):
    """{path: all that is promised of it}; names that share a file share its number."""
    found, numbers = {}, {}
    for at, directories, names in os.walk(root):
        directories.sort()
        for name in sorted(directories + names):
            path = os.path.join(at, name)
            key, st = os.path.relpath(path, root), os.lstat(path)
            facts = {"kind": stat.S_IFMT(st.st_mode), "mode": stat.S_IMODE(st.st_mode), "owner": (st.st_uid, st.st_gid)}
            facts["xattrs"] = {x: os.getxattr(path, x, follow_symlinks=False) for x in os.listxattr(path, follow_symlinks=False)}
            above = key
            while above := os.path.dirname(above):
                if "trusted.overlay.opaque" in found[above]["xattrs"]:
                    break
            facts["rdev"], facts["shows"] = st.st_rdev, key in SHOWN and not above
            mark = stat.S_ISCHR(st.st_mode) and not st.st_rdev      # its time is that of its making
            if key in recorded if stat.S_ISDIR(st.st_mode) else not mark:
                facts["time"] = st.st_mtime_ns
            if stat.S_ISREG(st.st_mode):
                with open(path, "rb") as data:
                    facts["bytes"] = data.read()
            if stat.S_ISLNK(st.st_mode):
                facts["text"] = os.readlink(path)
            if not stat.S_ISDIR(st.st_mode):
                facts["same"] = numbers.setdefault((st.st_dev, st.st_ino), key)
            found[key] = facts
    return found


# ---- damage ---------------------------------------------------------------------------------------------------
def kept(path, act):
    """Change something and give it its times back, so that no time tells."""
    st = os.lstat(path)
    act()
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)


def rewrite(path, change):
    with open(path, "rb") as old:
        data = old.read()
    with open(path, "r+b") as out:
        out.write(change(data))
        out.truncate(len(change(data)))


def anew(path, make):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
    make(path)


def write(path, data=b"planted"):
    with open(path, "wb") as out:
        out.write(data)


def chown(path):
    st = os.lstat(path)
    os.chown(path, st.st_uid + 1, st.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(st.st_mode):
        os.chmod(path, stat.S_IMODE(st.st_mode))


def is_file(facts): return stat.S_ISREG(facts["kind"])
def is_full(facts): return is_file(facts) and facts["bytes"]
def is_shared(facts): return is_file(facts) and facts["shared"]
def is_dir(facts): return stat.S_ISDIR(facts["kind"])
def is_recorded(facts): return is_dir(facts) and "time" in facts
def is_link(facts): return stat.S_ISLNK(facts["kind"])
def is_mark(facts): return stat.S_ISCHR(facts["kind"]) and not facts["rdev"]
def is_node(facts): return stat.S_ISBLK(facts["kind"]) or (stat.S_ISCHR(facts["kind"]) and facts["rdev"])
def is_thing(facts): return not is_dir(facts) and not is_mark(facts)
def is_changeable(facts): return (is_file(facts) or is_recorded(facts) or is_node(facts)) and not is_mark(facts)
def holds_xattrs(facts): return is_file(facts) or is_recorded(facts)
def is_opaque(facts): return facts["shows"] and "trusted.overlay.opaque" in facts["xattrs"]
def is_plain_dir(facts): return is_dir(facts) and "trusted.overlay.opaque" not in facts["xattrs"]


# name: (to what it can be done, how, kinds that may tell it, what the path told ends in: "" is the name itself)
DAMAGES = {
    "a byte": (is_full, lambda p: rewrite(p, lambda data: bytes([data[0] ^ 1]) + data[1:]), {"content"}, ""),
    "a byte, the time kept": (is_full, lambda p: kept(p, lambda: rewrite(p, lambda data: data[:-1] + bytes([data[-1] ^ 1]))), {"content"}, ""),
    "emptied": (is_full, lambda p: os.truncate(p, 0), {"content"}, ""),
    "cut by one": (is_full, lambda p: os.truncate(p, os.path.getsize(p) - 1), {"content"}, ""),
    "grown": (is_file, lambda p: rewrite(p, lambda data: data + b"more"), {"content"}, ""),
    "gone": (is_thing, os.unlink, {"missing"}, ""),
    "a directory for it": (is_thing, lambda p: anew(p, lambda q: os.makedirs(f"{q}/deep")), {"content"}, ""),
    "a file for it": (lambda f: not is_file(f) and not is_mark(f), lambda p: anew(p, write), {"content"}, ""),
    "a link out for it": (lambda f: not is_link(f) and not is_mark(f), lambda p: anew(p, lambda q: os.symlink("/etc", q)), {"content"}, ""),
    "a fifo for it": (lambda f: is_file(f) or is_dir(f), lambda p: anew(p, os.mkfifo), {"content"}, ""),
    "a whiteout for it": (is_thing, lambda p: anew(p, lambda q: os.mknod(q, stat.S_IFCHR, 0)), {"content"}, ""),
    "another target": (is_link, lambda p: anew(p, lambda q: os.symlink("/etc/shadow", q)), {"content"}, ""),
    "another device": (is_node, lambda p: anew(p, lambda q: os.mknod(q, stat.S_IFCHR | 0o644, os.makedev(1, 5))), {"content"}, ""),
    "a directory gone": (is_dir, shutil.rmtree, {"missing"}, ""),
    "mode": (is_changeable, lambda p: os.chmod(p, stat.S_IMODE(os.lstat(p).st_mode) ^ 0o101), {"metadata"}, ""),
    "setuid": (is_file, lambda p: os.chmod(p, stat.S_IMODE(os.lstat(p).st_mode) ^ 0o4000), {"metadata"}, ""),
    "owner": (lambda f: is_thing(f) or is_recorded(f), chown, {"metadata"}, ""),
    "time": (lambda f: is_thing(f) or is_recorded(f), lambda p: os.utime(p, (1, 123_456), follow_symlinks=False), {"metadata"}, ""),
    "an xattr more": (holds_xattrs, lambda p: os.setxattr(p, "user.more", b""), {"metadata"}, ""),
    "a trusted xattr more": (holds_xattrs, lambda p: os.setxattr(p, "trusted.more", b"x"), {"metadata"}, ""),
    "an xattr's value": (lambda f: holds_xattrs(f) and "user.one" in f["xattrs"], lambda p: os.setxattr(p, "user.one", b"other"), {"metadata"}, ""),
    "a capability gone": (lambda f: "security.capability" in f["xattrs"], lambda p: os.removexattr(p, "security.capability"), {"metadata"}, ""),
    "a capability more": (lambda f: is_file(f) and "security.capability" not in f["xattrs"], lambda p: os.setxattr(p, "security.capability", CAPABILITY), {"metadata"}, ""),
    "an ACL more": (lambda f: is_file(f) and "system.posix_acl_access" not in f["xattrs"], lambda p: os.setxattr(p, "system.posix_acl_access", acl((2, 7, 99))), {"metadata"}, ""),
    "a default ACL": (is_recorded, lambda p: os.setxattr(p, "system.posix_acl_default", acl((2, 7, 99))), {"metadata"}, ""),
    "a name of its own": (is_shared, lambda p: (shutil.copy2(p, p + ".copy"), os.rename(p + ".copy", p)), {"metadata"}, None),
    "opaque": (is_plain_dir, lambda p: os.setxattr(p, "trusted.overlay.opaque", b"y"), {"metadata"}, ""),
    "a redirect": (is_dir, lambda p: os.setxattr(p, "trusted.overlay.redirect", b"/o"), {"metadata"}, ""),
    "no longer opaque": (is_opaque, lambda p: os.removexattr(p, "trusted.overlay.opaque"), {"missing"}, "/.wh..wh..opq"),
    "a whiteout gone": (is_mark, os.unlink, {"missing"}, ".wh."),
    "a file for a whiteout": (is_mark, lambda p: anew(p, write), {"content"}, ".wh."),
    "a file more": (is_dir, lambda p: write(f"{p}/added"), {"orphan"}, "/added"),
    "a directory more": (is_dir, lambda p: (os.mkdir(f"{p}/added"), write(f"{p}/added/in")), {"orphan"}, "/added"),
    "a whiteout more": (is_dir, lambda p: os.mknod(f"{p}/added", stat.S_IFCHR, 0), {"orphan"}, "/added"),
    "a link more": (is_dir, lambda p: os.symlink("/", f"{p}/added"), {"orphan"}, "/added"),
}  # fmt: skip


def told_as(path, ending):
    if ending == ".wh.":
        directory, base = os.path.split(path)
        return os.path.join(directory, ".wh." + base)
    return path + ending


def is_told(problems, before, path, damage):
    """Some problem has this path, or that of another name of the file, and a right kind."""
    _, _, kinds, ending = DAMAGES[damage]
    paths = {told_as(path, ending or "")}
    same = before[path].get("same")
    if same is not None:
        paths |= {told_as(other, ending or "") for other, facts in before.items() if facts.get("same") == same}
    return any(os.path.normpath(p.path.lstrip("/")) in paths and p.kind in kinds for p in problems) or any(
        p.path.startswith("lib/") and "usr/" + p.path in paths and p.kind in kinds for p in problems
    )


def choose(dice, before, taken, rather=()):
    """A damage, one of these if it can be, and a path that has nothing to do with those taken."""
    def is_free(path):
        return all(
            path != other and not path.startswith(other + "/") and not other.startswith(path + "/")
            and (before[path].get("same") is None or before[path].get("same") != before[other].get("same"))
            for other in taken
        )  # fmt: skip

    for damage in [*dice.sample(sorted(rather), len(rather)), *dice.sample(list(DAMAGES), len(DAMAGES))]:
        paths = [path for path, facts in before.items() if DAMAGES[damage][0](facts) and is_free(path)]
        if paths:
            return damage, dice.choice(sorted(paths))
    return None


@pytest.mark.only("overlay2", "of the files in a layer's directory")
@pytest.mark.time_limit(600)
@pytest.mark.parametrize("many", [1, 2])
def test_every_damage_is_told_and_mended(store, open_store, room, root, many):
    other, seen = open_store(room / "other"), set()
    for seed in range(int(os.environ.get("LAYERSTORE_DRAWS", "120"))):
        dice = random.Random(seed * 10 + many)
        layer, made = drawn(store, f"{seed} {many}")
        tree = os.path.join(root, DRIVER, layer.cache_id, FILES)
        before = note(tree, made.recorded)
        names = [facts.get("same") for facts in before.values()]
        for facts in before.values():
            facts["shared"] = facts.get("same") is not None and names.count(facts["same"]) > 1
        assert store.verify() == [], seed
        done = []
        for _ in range(many):
            chosen = choose(dice, before, [path for _, path in done], set(DAMAGES) - seen)
            if chosen is None:
                break
            damage, path = chosen
            DAMAGES[damage][1](os.path.join(tree, path))
            done.append(chosen)
            seen.add(damage)
        what = f"seed {seed}: {done}"
        problems = store.verify(layer.chain_id)
        for damage, path in done:
            assert is_told(problems, before, path, damage), f"{what}: {problems}"
        with other.register(made.tar) as there:
            assert store.repair(layer.chain_id, {0: made.tar, 1: other, 2: there}[dice.randrange(3)]) == problems, what
        assert store.verify() == [], what
        after = note(tree, made.recorded)
        for facts in before.values():
            del facts["shared"]
        assert after == before, f"{what}: {[k for k in {*before, *after} if before.get(k) != after.get(k)]}"
        assert layer.tar_stream().read() == made.tar, what
        layer.release()
    assert seen == set(DAMAGES)


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_what_needs_no_bytes_of_others_is_mended_without_a_tar(store, root):
    """Links, marks, modes, added names, and bytes that the record has itself."""
    for seed in range(60):
        dice = random.Random(seed)
        layer, made = drawn(store, f"alone {seed}")
        tree = os.path.join(root, DRIVER, layer.cache_id, FILES)
        before = note(tree, made.recorded)
        for facts in before.values():
            facts["shared"] = False
        damage, path = choose(dice, before, [])
        DAMAGES[damage][1](os.path.join(tree, path))
        problems = store.verify(layer.chain_id)
        assert is_told(problems, before, path, damage)
        for facts in before.values():
            del facts["shared"]
        try:
            store.repair(layer.chain_id)
        except CorruptLayerError as err:
            assert "in no other layer" in str(err)
            assert any(problem.kind in ("content", "missing") for problem in problems)
        else:
            assert note(tree, made.recorded) == before, f"seed {seed}: {damage} of {path}"
            assert store.verify() == []
        layer.release()


@pytest.mark.only("overlay2", "of the files in a layer's directory")
@pytest.mark.time_limit(120)
@pytest.mark.parametrize("depth", [30, 240])
def test_paths_longer_than_the_kernel_takes_are_looked_at_too(store, root, depth):
    parts = [f"{n:03d}" + "x" * 60 for n in range(depth)]
    at = "/".join(parts)
    tar = tarkit.with_pax_path(f"{at}/file", file, b"deep") + tarkit.with_pax_path(f"{at}/empty", file) + end()
    layer = store.register(tar)
    assert store.verify() == []

    def bottom():
        fd = os.open(os.path.join(root, DRIVER, layer.cache_id, FILES), os.O_RDONLY)
        for part in parts:
            below = os.open(part, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        return fd

    for harm, told in (
        (lambda fd: os.chmod("file", 0o600, dir_fd=fd), ("metadata", f"{at}/file")),
        (lambda fd: os.unlink("empty", dir_fd=fd), ("missing", f"{at}/empty")),
        (lambda fd: os.mkfifo("more", dir_fd=fd), ("orphan", f"{at}/more")),
    ):
        fd = bottom()
        harm(fd)
        os.close(fd)
        assert [(p.kind, p.path) for p in store.verify()] == [told]
        assert store.repair(layer.chain_id, tar)
        assert store.verify() == []


def test_a_hard_link_to_a_device_of_no_number_changes_nothing_of_it(store):
    """To overlayfs that is a whiteout, of any maker: unpacking leaves its mode, and verify() expects that."""
    link = hardlink("t", "s", mode=0o644)
    layer = store.register(node("s", "c", 0, 0, mode=0o777) + link + link + end())
    assert store.verify(layer.chain_id) == []


def test_the_owner_of_an_opaque_mark_is_nobodys(store):
    mark = tarkit.raw_header("d/.wh..wh..opq", gid=tarkit.base256(1 << 49, 8))
    layer = store.register(dir("d/") + mark + end())
    assert store.verify(layer.chain_id) == []


# ---- what it says ----------------------------------------------------------------------------------------
FAULTS = {
    "content of a file": (lambda diff, db: (diff / "a/f").write_bytes(b"jello"), ("content", "a/f")),
    "length of a file": (lambda diff, db: (diff / "a/f").write_bytes(b"hello!"), ("content", "a/f")),
    "file gone": (lambda diff, db: (diff / "a/f").unlink(), ("missing", "a/f")),
    "record gone": (lambda diff, db: (db / "tar-split.json.gz").unlink(), ("missing", "")),
    "size wrong": (lambda diff, db: (db / "size").write_text("77"), ("metadata", "")),
    "size unreadable": (lambda diff, db: (db / "size").write_text("x"), ("metadata", "")),
    "diff gone": (lambda diff, db: (db / "diff").unlink(), ("metadata", "")),
    "link wrong": (lambda diff, db: (diff.parent / "link").write_text("A" * 26), ("metadata", "")),
    "link gone": (lambda diff, db: (diff.parent / "link").unlink(), ("metadata", "")),
}


@pytest.mark.only("overlay2", "of the files in a layer's directory")
@pytest.mark.parametrize("name", FAULTS)
def test_verify_names_a_fault_by_its_kind(store, root, diff_of, unchanged, name):
    layer = store.register(tarkit.T1)
    other = store.register(tarkit.T2)
    harm, (kind, path) = FAULTS[name]
    harm(diff_of(layer), root / LAYERDB / "sha256" / layer.chain_id.encoded)
    with unchanged():
        found = store.verify()
    told = [(p.kind, p.path.rstrip("/")) for p in found if p.subject in (layer.chain_id, layer.cache_id)]
    assert (kind, path) in told or (kind == "metadata" and ("missing", path) in told), found
    assert all(problem.subject != other.chain_id for problem in found)
    assert all(problem.detail.strip() and "\n" not in problem.detail for problem in found)


def test_verify_names_a_broken_mount(store, root):
    base = store.register(tarkit.T1)
    store.create_rw_layer("c", base.chain_id)
    assert store.verify() == []
    (root / LAYERDB / "mounts/c/parent").write_text("nonsense")
    assert [(p.kind, p.subject) for p in store.verify()] == [("metadata", "c")]


def test_verify_names_every_kind_of_orphan(store, root):
    keep = store.register(tarkit.T1)
    store.create_rw_layer("c", keep.chain_id)
    (root / DRIVER / ("e" * 64) / "diff").mkdir(parents=True)
    (root / DRIVER / "l" / ("Z" * 26)).symlink_to(f"../nowhere/{FILES}")
    removing = root / LAYERDB / "sha256" / ("5" * 64 + "-1-removing")
    removing.mkdir()
    found = store.verify()
    assert {p.kind for p in found} == {"orphan"}
    told = " ".join(f"{p.subject} {p.path} {p.detail}" for p in found)
    for name in ("e" * 64, "Z" * 26, "5" * 64):
        assert name in told
    store.cleanup()
    left = [p for p in store.verify() if p.subject == "e" * 64 or "Z" * 26 in f"{p.subject} {p.path} {p.detail}"]
    assert left == []
