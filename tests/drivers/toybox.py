"""The writable layers of the toy driver, which are copies of what lies below them.

    <home>/<id>/{box,below}   all it shows, and the same without what was written
"""

import subprocess
import tempfile

from layerstore._core import _apply, _changes, _tarstream
from layerstore.disk.locks import OpenDirectory
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
    holders = standing = check = stack_of = staticmethod(lambda *_: [])

    def __init__(self, toy):
        self.toy, self.home = toy, toy.home
        self.exists, self.publish, self.remove = toy.exists, toy.publish, toy.remove

    def create(self, id, stack, options, *, most=128, like=""):
        self.toy.make(id)
        if stack and (self.home / stack[0] / "box").exists():      # an init layer, which shows all that is below it
            subprocess.run(["cp", "-a", f"{stack[0]}/box", f"{id}/below"], check=True, cwd=self.home)
        else:
            copy(self.toy, stack, self.home / id / "below")
        subprocess.run(["cp", "-a", "below", "box"], check=True, cwd=self.home / id)

    def mount(self, id, label=""):
        return str(self.home / id / "box")

    def changes(self, id, stack):
        with OpenDirectory(self.home / id / "box") as new, OpenDirectory(self.home / id / "below") as old:
            return _changes.compare_trees(new, old).to_list(Change, list(ChangeKind))

    def diff(self, id, stack, flags=0):
        return difference(self.home / id / "box", self.home / id / "below", flags)

    def size(self, id):
        with tempfile.TemporaryDirectory(dir=self.home) as place, OpenDirectory(self.home) as home, OpenDirectory(place) as root:
            with tempfile.TemporaryFile() as record, self.diff(id, []) as tar:
                return self.toy.unpack(tar, _apply.register, root, home, record.fileno()).size

    def apply(self, id, stack, given):
        with OpenDirectory(self.home / id / "box") as root:
            refuse_nothing(self.toy.unpack(given, _apply.over_mount, root))
        return self.size(id)

    def paths(self, id):
        return {"UpperDir": str(self.home / id / "box")}
