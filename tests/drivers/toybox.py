"""The writable layers of the toy driver, which are copies of what lies below them.

    <home>/<id>/{box,below}   all it shows, and the same without what was written
"""

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path

from layerstore._core import _apply, _changes, _tarstream
from layerstore.contents.image import write_image
from layerstore.disk.locks import OpenDirectory
from layerstore.drivers import record
from layerstore.errors import NotSupportedError
from layerstore.streams.sources import refuse_nothing
from layerstore.streams.tarstream import TarStream
from layerstore.values import Change, ChangeKind


def copy(toy, stack, into):
    """Put what a stack of layers shows into a new directory."""
    into.mkdir()
    for id in reversed(stack):
        with OpenDirectory(into) as root, toy.open(id, []).tar(None) as tar:
            toy.unpack(tar, _apply.over_tree, root)


def difference(new, old, flags=0, on_close=None):
    with OpenDirectory(new) as new_fd, OpenDirectory(old) as old_fd:
        changes = _changes.compare_trees(new_fd, old_fd, attributes=True)
        return TarStream(_tarstream.export_changes(new_fd, changes, flags), seekable=False, on_close=on_close)


class ToyBoxes:
    settle = unmount = mend = staticmethod(lambda *_, **__: None)
    holders = standing = check = staticmethod(lambda *_: [])
    hold = staticmethod(lambda id: contextlib.nullcontext())

    def __init__(self, toy):
        self.toy, self.home = toy, toy.home
        self.exists, self.publish, self.remove = toy.exists, toy.publish, toy.remove

    def create(self, id, stack, options, *, most=128, like=""):
        self.toy.make(id)
        (self.home / id / "stack").write_text(":".join(stack))
        self.toy.show(stack, self.home / id / "below")
        subprocess.run(["cp", "-a", "below", "box"], check=True, cwd=self.home / id)

    def stack_of(self, id):
        return [below for below in (self.home / id / "stack").read_text().split(":") if below]

    def mount(self, id, label=""):
        return str(self.home / id / "box")

    def freeze(self, *_, **__):
        raise NotSupportedError("the toy driver has no snapshots")

    def apply(self, id, stack, given):
        with OpenDirectory(self.home / id / "box") as root:
            refuse_nothing(self.toy.unpack(given, _apply.over_mount, root))
        return ToyTrees(self.toy).size([id])

    def paths(self, id):
        return {"UpperDir": str(self.home / id / "box")}


class ToyTrees:
    """What a stack shows is copied to compare it."""

    def __init__(self, toy):
        self.toy, self.home = toy, toy.home

    @contextlib.contextmanager
    def shown(self, *stacks):
        with tempfile.TemporaryDirectory(dir=self.home) as place, contextlib.ExitStack() as opened:
            trees = [Path(place, str(n)) for n in range(len(stacks))]
            for stack, tree in zip(stacks, trees, strict=True):
                self.toy.show(stack, tree)
            yield [opened.enter_context(OpenDirectory(tree)) for tree in trees]

    def changes(self, new, old, *, contents=False):
        with self.shown(new, old) as trees:
            return _changes.compare_trees(*trees).to_list(Change, list(ChangeKind))

    def diff(self, above, below, flags=0):
        place = tempfile.TemporaryDirectory(dir=self.home)
        for name, stack in (("new", [*above, *below]), ("old", below)):
            self.toy.show(stack, Path(place.name, name))
        return difference(Path(place.name, "new"), Path(place.name, "old"), flags, place.cleanup)

    def write_image(self, stack, fd, progress=None):
        with self.diff(stack, [], _tarstream.EXPORT_KEEP) as tar:
            write_image(tar, fd, progress)

    def size(self, above):
        with self.recorded(above, self.below(above)) as (received, _):
            return received.size

    def below(self, above):
        return [below for below in ToyBoxes(self.toy).stack_of(above[-1]) if below not in above]

    @contextlib.contextmanager
    def recorded(self, above, below):
        with tempfile.TemporaryDirectory(dir=self.home) as place, OpenDirectory(self.home) as home, OpenDirectory(place) as root:
            with tempfile.TemporaryFile() as file, self.diff(above, below) as tar:
                yield self.toy.unpack(tar, _apply.register, root, home, file.fileno()), file.fileno()

    def entries(self, above, below):
        with self.recorded(above, below) as (_, fd):
            yield from (entry._replace(crc=None, offset=None) for entry in record.entries(fd, ""))

    def open_file(self, above, path):
        return os.open(self.home / above[0] / "box" / path, os.O_RDONLY | os.O_NOFOLLOW)
