"""Nothing outside is deleted, made or looked at: paths by name are for those rooms alone whose directories only the store writes.

Where others may write, a name may be another thing at the second look. So files there are reached beneath an open
directory (`dir_fd`, the core). Each room that uses names says why it may.
"""

import ast
import re
from pathlib import Path

import pytest

import layerstore

PACKAGE = Path(layerstore.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Calls that take a name, and the keywords that put it beneath a descriptor.
CHANGE = {"unlink", "remove", "rmdir", "removedirs", "rename", "renames", "replace", "mkdir", "makedirs", "symlink", "link", "mkfifo", "mknod",
          "chmod", "lchmod", "chown", "lchown", "truncate", "utime", "setxattr", "removexattr"}  # fmt: skip
LOOK = {"lstat", "stat", "walk", "scandir", "listdir", "readlink", "access", "getxattr", "listxattr"}
OWN_CALLS = {"unlink", "rename", "symlink", "mkdir", "chmod"}                  # of layerstore._core._files
REMOVALS = {"remove_directory"}
BENEATH = {"dir_fd", "src_dir_fd", "dst_dir_fd"}

THE_STORES = "below the root, in directories that only the store writes to: image/<driver>, and beside what is in layers"
ROOMS = {
    "disk/dockerd.py": THE_STORES, "disk/locks.py": THE_STORES, "layerdb/imagedb.py": THE_STORES, "layerdb/keeping.py": THE_STORES, "layerdb/store.py": THE_STORES,
    "layerdb/transaction.py": THE_STORES, "engine/references.py": THE_STORES, "engine/writable.py": THE_STORES, "layerdb/detached.py": THE_STORES, "engine/ground.py": THE_STORES, "layerdb/leftovers.py": THE_STORES,
    "drivers/registry.py": THE_STORES, "drivers/overlay/host.py": THE_STORES, "drivers/overlay/directories.py": THE_STORES, "drivers/overlay/lowers.py": THE_STORES, "drivers/overlay/ground.py": THE_STORES,
    "drivers/quota.py": THE_STORES, "drivers/overlay/mounting.py": THE_STORES + "; and mount points",
    "drivers/checks.py": "probes, each in a directory of its own that only this user may enter",
    "drivers/overlay2/classes.py": "an attribute of a directory of the store, and one of each directory of a layer: made and deleted is nothing there",
    "disk/mounts.py": "/proc, and mount points", "drivers/holders.py": "/proc and /sys",
    "disk/textfile.py": "what the rooms above use",
    "drivers/overlay/tidying.py": THE_STORES, "engine/reclaim.py": THE_STORES, "engine/convert.py": THE_STORES,
    "drivers/erofs/marks.py": THE_STORES, "drivers/erofs/containerd.py": THE_STORES, "drivers/erofs/directories.py": THE_STORES,
    "drivers/erofs/layers.py": THE_STORES, "layerdb/same.py": THE_STORES, "drivers/erofs/host.py": THE_STORES, "drivers/erofs/mounted.py": THE_STORES + "; and mount points",
    "layerdb/distribution.py": THE_STORES, "registry/helpers.py": "the caller's own PATH",
    "registry/tls.py": "certificates: the caller's own paths, and those of docker and podman; nothing is written",
    "layerdb/snapshots.py": THE_STORES, "engine/snapshots.py": THE_STORES, "drivers/overlay2/adopted.py": THE_STORES,
    "drivers/erofs/mountable.py": THE_STORES, "drivers/erofs/flat.py": THE_STORES, "drivers/overlay/writables.py": THE_STORES, "drivers/overlay/freezing.py": THE_STORES + ", and the root of a box, through no link",
    "drivers/overlay/switching.py": "mount points, /proc and /sys", "disk/cgroup.py": "a cgroup that the caller names, and /proc",
    "running/bubblewrap.py": "the caller's own PATH, and /proc", "running/command.py": "the caller's own paths, outside of the layer",
    "cli/doctor.py": "a directory of its own that only this user may enter", "cli/opening.py": "looks at the root",
    "cli/host.py": "looks at the root", "cli/main.py": "/proc: what standard output is",
}  # fmt: skip


def by_name(path):
    """Each call in a file that reaches something by its name: (line, call)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            if "shutil" in names or "glob" in names:
                yield node.lineno, "shutil"
        if not isinstance(node, ast.Call) or {keyword.arg for keyword in node.keywords} & BENEATH:
            continue
        called = ast.unparse(node.func)
        room, _, name = called.rpartition(".")
        of_os = room == "os" and name in CHANGE | LOOK and not is_descriptor(node)
        if of_os or (room == "_files" and name in OWN_CALLS) or name in REMOVALS or room.startswith("Path("):
            yield node.lineno, called


def is_descriptor(call):
    """os.listdir(fd) and its like: the name of the argument says so."""
    first = ast.unparse(call.args[0]) if call.args else ""
    return first in {"fd", "self._fd", "damaged", "sound"} or first.endswith(("_fd", ".fileno()"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_is_reached_by_name_is_the_stores_own(path):
    found = list(by_name(path))
    if str(path.relative_to(PACKAGE)) in ROOMS:
        assert [what for what in found if what[1] == "shutil"] == []
    else:
        assert found == [], f"reach it beneath a descriptor (dir_fd=, the core), or say in ROOMS why {path.name} may not"


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_there_and_needs_it(room):
    assert list(by_name(PACKAGE / room))


@pytest.mark.parametrize(
    "line",
    ["os.unlink(path)", "os.lstat(a)", "import shutil", "from shutil import rmtree", "os.rename(a, b)", "os.walk(top)", "_files.unlink(a)",
     "remove_directory(a)", "os.stat(os.path.join(a, b), follow_symlinks=False)", "os.listdir(directory)", "Path('a').unlink()"],
)  # fmt: skip
def test_the_test_sees_them(tmp_path, line):
    (tmp_path / "x.py").write_text(line)
    assert list(by_name(tmp_path / "x.py"))


@pytest.mark.parametrize("line", ["os.unlink(a, dir_fd=fd)", "os.listdir(fd)", "os.rename(a, b, src_dir_fd=x, dst_dir_fd=x)", "os.path.join(a)"])
def test_the_test_lets_the_others_be(tmp_path, line):
    (tmp_path / "x.py").write_text(line)
    assert not list(by_name(tmp_path / "x.py"))


# ---- the core -----------------------------------------------------------------------------------
CORE = Path(__file__).resolve().parents[2] / "ext" / "core"
C_CALL = re.compile(
    r"(?<![\w.>])(unlink|remove|rmdir|l?stat|open|creat|mkdir|rename|l?chown|symlink|link|mknod|mkfifo|opendir|n?ftw|realpath|truncate|utimes?"
    r"|readlink|access|chmod|chdir)\s*\((?!\d)"
)
# Of a link in /proc/self/fd, which means an open file whatever has its name now.
C_ROOMS = {("place.c", "chmod"), ("error.c", "readlink")} | {
    # Mount points, /proc, block and loop devices, and the driver's own directories: nothing in a layer.
    ("mount.c", "open"), ("switch.c", "open"), ("mount.c", "opendir"), ("mount.c", "chdir"), ("inside.c", "open"), ("quota.c", "open"),
    ("erofs.c", "open"), ("erofs.c", "lstat"),
}  # fmt: skip


def c_text(path):
    """The code alone, without comments and texts."""
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"', '""', path.read_text(), flags=re.S)


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.[ch]")), ids=lambda path: path.name)
def test_the_core_reaches_nothing_by_name_alone(path):
    assert {found for found in C_CALL.findall(c_text(path)) if (path.name, found) not in C_ROOMS} == set()


def test_the_test_of_the_core_sees_them():
    assert C_CALL.findall("x = lstat(path, &st); unlink (p); t->open(x); unlinkat(fd, p); r = o.stat(x)") == ["lstat", "unlink"]
