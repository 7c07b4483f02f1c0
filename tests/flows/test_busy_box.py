"""changes(), size(), tar_stream() and commit() of a box in which others are at work: names come, go, and change their kind.

What goes while it is looked at is passed over. Each test works for a bounded time; what it finds wrong it finds by
luck, and it fails by luck never: whatever was looked at, the answers are answers.
"""

import contextlib
import io
import os
import random
import tarfile
import time

import pytest
import tarkit
from another import at_work
from soak import budget
from tarkit import dir, end, file

from layerstore import CorruptLayerError, changes_between

SECONDS = budget(0.6, 6.0)
pytestmark = pytest.mark.soak(60)
BASE = (
    dir("d/") + file("d/f", b"f" * 5000) + dir("d/e/") + dir("d/e/g/") + file("d/e/g/h", b"h") + tarkit.symlink("l", "d/f")
    + b"".join(dir("deep/" + "n/" * i) for i in range(9)) + file("deep/" + "n/" * 8 + "f", b"deep") + end()
)  # fmt: skip

# Run beside the test, in a process of its own, until it is killed.
WORK = '''
import ctypes, os, random, shutil, sys
libc = ctypes.CDLL(None)
os.chdir(sys.argv[1])
draw = random.Random(int(sys.argv[2]))
names = ["a", "b", "c", "d/x", "d/y", "d/e/z", "d/f", "l", "deep/n/n/x", "deep/n/n/n/n/n/n/y", "a/in", "b/in/in", "o/x"]
big = b"x" * 3000
def write(name):
    # Whole under its name at once: a file that gets shorter while it is read is an error, and is to be one.
    with open(".new", "wb") as out:
        out.write(big)
    os.rename(".new", name)
def away():
    os.rename("deep/n/n", "moved")
    os.rename("moved", "deep/n/n")
def opaque():
    shutil.rmtree("o", ignore_errors=True)
    os.mkdir("o")
acts = [
    lambda: write(draw.choice(names)), lambda: os.mkdir(draw.choice(names)), lambda: os.symlink("d", draw.choice(names)),
    lambda: os.mkfifo(draw.choice(names)), lambda: os.unlink(draw.choice(names)), lambda: os.rmdir(draw.choice(names)),
    lambda: os.rename(draw.choice(names), draw.choice(names)), lambda: os.link(draw.choice(names), draw.choice(names)),
    lambda: libc.renameat2(-100, draw.choice(names).encode(), -100, draw.choice(names).encode(), 2),
    lambda: os.setxattr(draw.choice(names), "user.x", b"1", follow_symlinks=False),
    lambda: os.setxattr(draw.choice(names), "security.capability",
                        bytes.fromhex("0100000200040000000000000000000000000000"), follow_symlinks=False),
    lambda: os.chmod(draw.choice(names), draw.choice([0o600, 0o755])), away, opaque,
]
print("ready", flush=True)
while True:
    try:
        draw.choice(acts)()
    except OSError:
        pass
'''


def read_whole(stream):
    with stream:
        data = stream.read()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            if member.isreg():
                assert len(tar.extractfile(member).read()) == member.size
    return data


@pytest.fixture
def box(store):
    with store.create_rw_layer("box", store.register(BASE).chain_id) as made:
        yield made


def put_on_snapshots(box, count):
    """Names that the work takes, in every kind, under the box."""
    for i in range(count):
        with box.mounted() as path:
            for name in ("a", "o", f"deep/n/{i}"):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(f"{path}/{name}")
            for name in ("a/in", "c", "o/x", "o/y", f"d/e/{i}"):
                with open(f"{path}/{name}", "wb") as out:
                    out.write(b"s" * (100 + i))
            os.unlink(f"{path}/d/f") if i == 0 else os.rename(f"{path}/c", f"{path}/d/f")
        box.snapshot().release()


def looks(store, box, path, lowers):
    """Every way to look at a box."""
    def committed(keep):
        box.commit(keep=keep, marks="skip").release()

    return {
        "changes": box.changes, "size": box.size,
        "tar_stream": lambda: read_whole(box.tar_stream()),
        "tar_stream, all": lambda: read_whole(box.tar_stream(keep="all")),
        "commit": lambda: committed("docker"), "commit, all": lambda: committed("all"),
        "changes_between": lambda: changes_between(path, lowers),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::layerstore.LeftOutWarning")
@pytest.mark.parametrize("snapshots", [0, 3])
@pytest.mark.parametrize(
    "way", ["changes", "size", "tar_stream", "tar_stream, all", "commit", "commit, all", "changes_between"]
)
def test_a_box_in_use_is_looked_at_and_what_goes_meanwhile_is_passed_over(store, box, way, snapshots):
    put_on_snapshots(box, snapshots)
    with box.mounted() as path, at_work(WORK, path, 0), at_work(WORK, path, 1):
        look = looks(store, box, path, box.metadata()["LowerDir"].split(":")[-1])[way]
        done, ends = 0, time.monotonic() + SECONDS
        while time.monotonic() < ends:
            with contextlib.suppress(CorruptLayerError) if "tar" in way or "commit" in way else contextlib.nullcontext():
                look()
                done += 1
        assert done > 0
    # When it is quiet again nothing stays: what is told is what a whole walk tells.
    with box.mounted() as path:
        seen = {line.path for line in box.changes() if str(line)[0] != "D"}
        assert all(os.path.lexists(path + name) for name in seen)


def test_names_that_are_exchanged_are_one_thing_or_the_other(box):
    """Two names change places as fast as can be: each time a tar is made, each is one of the two things, whole."""
    with box.mounted() as path:
        with open(f"{path}/one", "wb") as out:
            out.write(b"1" * 4000)
        os.setxattr(f"{path}/one", "user.which", b"file")
        os.mkdir(f"{path}/two")
        os.setxattr(f"{path}/two", "user.which", b"directory")
        os.symlink("here", f"{path}/three")
        work = (
            "import ctypes, sys, random\nlibc = ctypes.CDLL(None)\nprint('ready', flush=True)\nnames = [b'one', b'two', b'three']\n"
            "import os\nos.chdir(sys.argv[1])\nwhile True: libc.renameat2(-100, random.choice(names), -100, random.choice(names), 2)\n"
        )
        with at_work(work, path):
            ends = time.monotonic() + SECONDS
            while time.monotonic() < ends:
                with box.tar_stream(keep="all") as stream:
                    data = stream.read()
                with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                    for member in (one for one in tar if ".wh." not in one.name):
                        which = member.pax_headers.get("SCHILY.xattr.user.which")
                        kind = "file" if member.isreg() else "directory" if member.isdir() else None
                        assert which == kind
                        assert not member.isreg() or tar.extractfile(member).read() == b"1" * 4000
                assert {line.path for line in box.changes()} <= {"/one", "/two", "/three"}


def test_a_directory_that_is_moved_away_while_deep_in_it_ends_nothing(box):
    draw = random.Random(1)
    with box.mounted() as path:
        for i in range(40):
            os.makedirs(f"{path}/top/{i}/" + "m/" * 12)
            for j in range(12):
                with open(f"{path}/top/{i}/" + "m/" * j + f"f{j}", "wb") as out:
                    out.write(b"x")
        work = (
            "import os, random, sys\nos.chdir(sys.argv[1])\nprint('ready', flush=True)\n"
            "while True:\n i = random.randrange(40)\n n = '/m' * random.randrange(8)\n"
            " try:\n  os.rename(f'top/{i}{n}', 'away')\n  os.rename('away', f'top/{i}{n}')\n except OSError: pass\n"
        )
        with at_work(work, path):
            ends = time.monotonic() + SECONDS
            while time.monotonic() < ends:
                draw.choice([box.changes, box.size, lambda: read_whole(box.tar_stream())])()
