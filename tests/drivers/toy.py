"""A driver of plain directories, copied: no overlay, no mount, no sidecar. Its writable layers are in toybox.py.

    <home>/<id>/{tree,record}   a layer: its files, and how its tar is made of them again
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from toybox import ToyBoxes, ToyTrees, copy, difference

from layerstore._core import _apply, _files, _listing, _tarstream
from layerstore.disk import mounts
from layerstore.disk.locks import OpenDirectory, claim_directory
from layerstore.drivers import Driver, Finding, Received, record
from layerstore.errors import LayerStoreError
from layerstore.ids import is_driver_id
from layerstore.streams.tarstream import TarStream


class Toy:
    """Layers and Host at once."""

    name, in_memory, status = "toy", False, staticmethod(list)
    cleanup = close = staticmethod(lambda: None)

    implied_ns = None

    def __init__(self, home, options, view):
        self.home, self.limits, self.claims = Path(home), view.limits, {}
        if not view.read_only:
            self.home.mkdir(0o710, exist_ok=True)

    def make(self, id):
        """Make a directory that no reclaim() takes until publish() or remove()."""
        (self.home / id).mkdir()
        self.claims[id] = claim_directory(str(self.home / id))

    def seize(self, id):
        """Claim an unowned id; no call of another store works on it here."""
        return self.exists(id)

    def publish(self, id):
        self.claims.pop(id, None)

    def exists(self, id):
        return (self.home / id).is_dir()

    def remove(self, id):
        if not is_driver_id(id):
            raise LayerStoreError(f"{id!r} is no id", name=id)
        shutil.rmtree(self.home / id, ignore_errors=not self.exists(id))
        self.publish(id)

    def paths(self, id):
        return {"UpperDir": str(self.home / id / "tree")}

    def show(self, stack, into):
        """Put what a stack shows into a new directory: a writable layer shows all that is below it."""
        if stack and (self.home / stack[0] / "box").exists():
            subprocess.run(["cp", "-a", self.home / stack[0] / "box", into], check=True)
        else:
            copy(self, stack, into)

    def begin(self, id, stack, sidecar=None, *, like=""):
        return ToyLayer(self, id, stack)

    open = begin

    def unpack(self, given, open_apply, *where):
        with contextlib.closing(open_apply(*where, limits=self.limits)) as apply:
            given.pump_into(apply)
            return apply.finish()

    def orphans(self, owned):
        unowned = set(filter(is_driver_id, os.listdir(self.home))) - set(owned())
        claimed = [id for id in unowned if not claim_directory(str(self.home / id), wait=False)]
        return sorted(unowned - set(claimed) - set(owned()))

    def usage(self, name):
        return sum(path.lstat().st_size for path in (self.home / name).rglob("*"))

    def blocks(self, id, seen):
        places = [place for name in ("tree", "box") if (place := self.home / id / name).is_dir()]
        if not places:
            return 0
        with OpenDirectory(places[0]) as fd:
            return seen.add(fd)

    def reclaim(self, owned):
        for id in self.orphans(owned):
            self.remove(id)

    def sync(self, ids, durability, *, everything=False):
        mounts.sync_filesystem(str(self.home))
        return True


class ToyLayer:
    """A draft and a stored layer at once. It keeps no stack: it is told each time what it stands on."""

    settle, is_described_by_its_sidecars = staticmethod(lambda: None), staticmethod(lambda draft: True)

    def __init__(self, toy, id, stack):
        self.toy, self.id, self.stack, self.home = toy, id, stack, toy.home / id
        self.publish, self.discard, self.paths = (partial(do, id) for do in (toy.publish, toy.remove, toy.paths))

    @contextlib.contextmanager
    def opened(self, mode="rb"):
        """The record, and descriptors of the layer's tree and of those below."""
        trees = [self.toy.home / id / "tree" for id in (self.id, *self.stack)]
        with open(self.home / "record", mode) as record, contextlib.ExitStack() as stack:
            yield record.fileno(), *[stack.enter_context(OpenDirectory(tree)) for tree in trees]

    def receive(self, given, sidecar, digest=None):
        self.toy.make(self.id)
        (self.home / "tree").mkdir()
        with self.opened("w+b") as (record_fd, root, *_), OpenDirectory(self.home) as scratch:
            done = self.toy.unpack(given, partial(_apply.register, digest=digest), root, scratch, record_fd)
        self.unsettled = done.unsettled
        self.place_on(self.stack)
        return Received.of(done, digest)

    def place_on(self, stack):
        self.stack = stack
        with self.opened() as (_, root, *lowers):
            if lowers and self.unsettled:
                _apply.stand_on(root, self.unsettled, lowers)

    def tar(self, diff_id):
        with self.opened() as (record_fd, root, *_):
            return TarStream(_tarstream.assemble(record_fd, root, diff_id and diff_id.raw), seekable=True)

    def tar_from(self, ancestor):
        place, chain = tempfile.TemporaryDirectory(dir=self.toy.home), [self.id, *self.stack]
        copy(self.toy, chain, new := Path(place.name, "new"))
        copy(self.toy, chain[chain.index(ancestor):] if ancestor else [], old := Path(place.name, "old"))
        return difference(new, old, on_close=place.cleanup)

    def entries(self, chain_id):
        with self.opened() as (record_fd, *_):
            return record.entries(record_fd, chain_id)

    def open_file(self, entry):
        with self.opened() as (_, root, *_):
            return _listing.open_file(root, entry.path, entry.size)

    def check(self, diff_id, report=None, *, metadata=True):
        flags = _tarstream.CHECK_METADATA if metadata else 0
        try:
            with self.opened() as (record_fd, root, *lowers):
                return [Finding(*one) for one in _tarstream.check(record_fd, root, diff_id.raw, report, lowers, flags)]
        except (OSError, LayerStoreError) as err:
            return [Finding("missing", "", str(err))]

    def mend(self, *, emptied=False):
        if emptied:
            (self.home / "tree").mkdir(parents=True, exist_ok=True)
            (self.home / "record").touch()

    def rebuild_from(self, draft, names):
        with OpenDirectory(self.home) as here, OpenDirectory(draft.home) as there:
            for name in ("tree", "record"):
                _files.exchange(here, name, there, name)


def open_toy(home, options, view):
    return Driver(toy := Toy(home, options, view), ToyBoxes(toy), toy, ToyTrees(toy))
