"""A whole root in plain Python: layers, frozen states and boxes, and what each of them must show and say.

World draws one act after the other, does it to real stores and to the plain side, and holds both beside each other. Rules
are those of the documents: who keeps what, what a snapshot freezes, what changes() compares. A failure tells all acts.
"""

import contextlib
import os
import random
import time

import disk
import pytest
import tarkit
from driven import DRIVER, LAYERDB
from hands import Hands
from keeping import Keeping
from looks import Looks
from plain import (
    EMPTY,
    INIT_FILES,
    SECOND,
    Box,
    Frozen,
    Init,
    PlainLayer,
    make_init,
    nearest,
    stack,
    uncommitted,
)
from stored import names_of
from trees import Node, Tree, below, difference, lines, read_tree, said, twin

from layerstore import ActiveMountError, CreateRWLayerOpts, Store


class World(Looks, Keeping):
    def __init__(self, root, seed: int, *, durability: str = "none"):
        self.root, self.draw, self.options = root, random.Random(seed), {"durability": durability}
        self.told: list[str] = [f"seed {seed}"]
        self.stores: list[Store] = []
        self.layers: dict[str, PlainLayer] = {}
        self.frozen: list[Frozen] = []          # recorded ones, in the order in which they were made
        self.boxes: dict[str, Box] = {}
        self.count = 0
        self.open_both()

    def __enter__(self) -> "World":
        return self

    def __exit__(self, kind, error, trace) -> None:
        for store in self.stores:
            store.close()
        if error is not None:
            error.add_note("\n".join(self.told))

    def tell(self, line: str) -> None:
        self.told.append(line)

    def open_both(self) -> None:
        self.stores = [Store(self.root, options=self.options) for _ in range(2)]
        for box in self.boxes.values():
            box.handles = {0: self.stores[0].get_rw_layer(box.name)}
            # A mount that survives counts as one; of a plain directory nothing survives.
            box.mounts, box.mounted_by = min(box.mounts, 1) if box.base else 0, 0
        for layer in self.layers.values():
            layer.handles = []

    def store(self) -> Store:
        return self.draw.choice(self.stores)

    def handle(self, box: Box):
        """A box by one store or the other."""
        which = self.draw.randrange(2)
        if which not in box.handles:
            box.handles[which] = self.stores[which].get_rw_layer(box.name)
        return box.handles[which]

    def name(self) -> str:
        self.count += 1
        return f"box {self.count}"

    # ---- acts ----------------------------------------------------------------------------------------
    def act(self) -> None:
        boxes = len(self.boxes)
        acts = [self.edit] * 6 + [self.snapshot] * 5 + [self.rollback] * 3 + [self.squash] * 2 + [self.mount, self.unmount, self.unmount]
        acts += [self.commit_snapshot] * 2 + [self.commit_box] + [self.release_snapshot] * 3 + [self.release_layer] * 2 + [self.remove_layer]
        acts += [self.fork_box, self.fork_snapshot, self.busy] * (2 if boxes < 6 else 0) + [self.release_box] * (1 if boxes < 4 else 4)
        acts += [self.register, self.create] * (3 if boxes < 2 else 1) + [self.reopen] + [self.get_layer]
        chosen = self.draw.choice(acts)
        chosen()

    def some(self, things):
        things = list(things)
        return self.draw.choice(things) if things else None

    def register(self) -> None:
        parent = self.some([None, *self.layers.values()])
        tree = twin(parent.tree) if parent else {b"": Node("dir")}
        tar = b""
        for n in range(self.draw.randrange(1, 4)):
            self.count += 1
            top = self.draw.choice([b"a", b"b", b"etc%d" % self.count])
            if top in tree and tree[top].kind != "dir":
                continue
            name, data = top + b"/" + b"abcd"[n:n + 1], b"%d" % self.count * self.draw.choice([1, 300])
            tar += tarkit.dir(top + b"/", mtime=7) + tarkit.file(name, data, mtime=8)
            for one in below(tree, name):
                del tree[one]
            tree[top], tree[name] = Node("dir", mtime=7 * SECOND), Node("file", 0o644, mtime=8 * SECOND, data=data)
            if n == 0 and self.draw.random() < 0.3:
                tar += tarkit.hardlink(top + b"/l%d" % self.count, name, mtime=8)
                tree[top + b"/l%d" % self.count] = tree[name]
        which = self.draw.randrange(2)
        tar += tarkit.end()
        made = self.stores[which].register(tar, parent.chain if parent else "")
        self.tell(f"register {made.chain_id} on {parent and parent.chain}: {names_of(tar)}")
        if made.chain_id not in self.layers:
            self.layers[made.chain_id] = PlainLayer(made.chain_id, tree, parent)
            self.seen(made.chain_id, root=False)
        self.referenced(self.layers[made.chain_id], made, which)

    def seen(self, chain: str, *, wanted: Tree | None = None, root: bool = True, loose: bool = False) -> None:
        """A mount of a layer shows its tree; what it shows is the tree from now on."""
        layer = self.layers[chain]
        with self.stores[0].create_rw_layer("to be seen", chain) as box, box.mounted() as path:
            found = read_tree(path)
        told = lines(wanted or layer.tree, found, root=root, loose=loose)
        assert not told, [f"layer {chain}", *told]
        layer.tree = found

    def get_layer(self) -> None:
        if layer := self.some(self.layers.values()):
            which = self.draw.randrange(2)
            self.tell(f"get {layer.chain}")
            self.referenced(layer, self.stores[which].get(layer.chain), which)

    def create(self) -> None:
        base = self.some([None, *self.layers.values(), *self.layers.values(), *self.frozen])
        name, which = self.name(), self.draw.randrange(2)
        init = self.draw.random() < 0.25 and (base is None or b"init.d" not in base.tree)
        parent = "" if base is None else base.chain if isinstance(base, PlainLayer) else self.draw.choice([base.id, self.stores[which].get_snapshot(base.id)])
        self.tell(f"create {name} on {parent}{' with init' if init else ''}")
        made = self.stores[which].create_rw_layer(name, parent, CreateRWLayerOpts(init_func=make_init) if init else None)
        tree = twin(base.tree if base else EMPTY)
        if init:
            tree |= twin(INIT_FILES)
            base = Init(tree, base)
        self.boxes[name] = box = Box(name, dict(tree), base)
        box.handles[which], box.init = made, init
        self.root_of(box)

    def root_of(self, box: Box) -> None:
        """The root directory of a new box is that of its snapshot; of one on a layer it is what it is, and must stay so."""
        if isinstance(box.base, Frozen):
            box.tree[b""] = box.tree[b""].copied()
            box.tree[b""].home = box.home
            return self.look(box)
        root = box.tree[b""].copied()
        with self.at(box) as path:
            status = os.stat(path)
            root.xattrs = disk.xattrs_of(path)
        root.mode, root.uid, root.gid, root.mtime = status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime_ns
        root.home = box.home
        box.tree = box.tree | {b"": root}
        return self.look(box)

    @contextlib.contextmanager
    def at(self, box: Box):
        with self.handle(box).mounted() as path:
            yield path

    def edit(self) -> None:
        if box := self.some(self.boxes.values()):
            with self.at(box) as path:
                hands = Hands(path, box.tree, box.home, self.draw)
                told = hands.work(self.draw.randrange(1, 7))
                self.tell(f"edit {box.name}: " + "; ".join(told))
                self.same(f"{box.name} just edited", box.tree, read_tree(path))
            self.look(box)

    def mount(self) -> None:
        if box := self.some(self.boxes.values()):
            self.tell(f"mount {box.name}")
            handle = self.handle(box) if not box.mounts else box.handles[box.mounted_by]
            box.mounted_by = next(which for which, one in box.handles.items() if one is handle)
            handle.mount()
            box.mounts += 1

    def unmount(self) -> None:
        if box := self.some(box for box in self.boxes.values() if box.mounts):
            self.tell(f"unmount {box.name}")
            box.handles[box.mounted_by].unmount()
            box.mounts -= 1

    def frozen_of(self, box: Box, id: str | None) -> Frozen:
        """The upper goes beneath; the box goes on, on top of it."""
        made = Frozen(dict(box.tree), box.home, box.base, box.name, id)
        box.base, box.home = made, object()
        box.tree = box.tree | {b"": box.tree[b""].copied()}
        box.tree[b""].home = box.home
        return made

    def snapshot(self) -> None:
        if box := self.some(self.boxes.values()):
            before = self.facts(box)
            snap = self.handle(box).snapshot()
            self.tell(f"snapshot of {box.name}: {snap.id}")
            made = self.frozen_of(box, snap.id) if not self.is_ground(box) else self.cloned(box, snap.id)
            self.frozen.append(made)
            self.unmoved(box, before)
            assert snap.box == box.name

    def is_ground(self, box: Box) -> bool:
        """A mounted box on nothing is a plain directory, which cannot be switched."""
        return box.base is None and box.mounts > 0

    def cloned(self, box: Box, id: str) -> Frozen:
        home = object()
        tree = twin(box.tree, lambda node: node.home is box.home)
        for _path, node in tree.items():
            if node.home is box.home:
                node.home = home
        made = Frozen(tree, home, box.base, box.name, id)
        made.sibling_of = box
        return made

    def busy(self) -> None:
        """This process has a directory of it open: it is cloned, not rolled back, and not unmounted."""
        box = self.some(box for box in self.boxes.values() if box.base is not None)
        if not box:
            return
        store_handle = self.handle(box)
        path = store_handle.mount()
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            before = self.facts(box)
            with pytest.raises(ActiveMountError) as refused:
                store_handle.snapshot(busy="error")
            assert [one.pid for one in refused.value.holders] == [os.getpid()]
            snap = store_handle.snapshot()
            self.tell(f"snapshot of {box.name}, in use: {snap.id}")
            made = self.cloned(box, snap.id)
            self.frozen.append(made)
            self.unmoved(box, before)
            assert said(store_handle.changes(since=snap)) == []
            with pytest.raises(ActiveMountError):
                store_handle.rollback(snap)
            if self.draw.random() < 0.5:
                self.tell("squash while it is in use")
                store_handle.squash()
            hands = Hands(path, box.tree, box.home, self.draw)
            self.tell("edit: " + "; ".join(hands.work(3)))
            self.same(f"{box.name} in use", box.tree, read_tree(path))
            wanted = difference(box.tree, made.tree)
            assert said(store_handle.changes(since=snap)) == wanted
            assert os.path.samestat(os.fstat(fd), os.stat(path))
        finally:
            os.close(fd)
            store_handle.unmount()
        self.look(box)

    def squash(self) -> None:
        if box := self.some(self.boxes.values()):
            before = self.facts(box)
            self.tell(f"squash {box.name}")
            self.handle(box).squash()
            self.unmoved(box, before)
            if not any(isinstance(one, Frozen) for one in stack(box)):
                return
            self.squashed(box)

    def squashed(self, box: Box) -> None:
        """If the upper itself was merged, only the next write shows it; its names stay together."""
        handle = self.handle(box)
        under = box.base.base if isinstance(box.base, Init) else box.base
        if isinstance(under, Frozen) and under.recorded and not under.layer:
            merged = handle.base.id != under.id
        else:
            merged = os.listdir(handle.metadata()["UpperDir"]) == [] and any(node.home is box.home for path, node in box.tree.items() if path)
        if merged:
            made = self.frozen_of(box, None)
            made.recorded = False

    def rollback(self) -> None:
        box = self.some(self.boxes.values())
        if not box:
            return
        ancestors = [one for one in stack(box) if isinstance(one, PlainLayer) or (isinstance(one, Frozen) and one.recorded)]
        to = self.some([*ancestors * 2, *self.frozen, *self.layers.values(), None])
        handle = self.handle(box)
        if box.base is None and box.mounts:
            with pytest.raises(ActiveMountError):
                handle.rollback(to_argument(to, self))
            return
        if to is None and box.mounts:
            with pytest.raises(ActiveMountError):
                handle.rollback("")
            return
        if box.init and (to is None or b"init.d" in to.tree):
            return      # what an init layer is that stands on nothing, or on its own names, is not said
        went = nearest(box)
        self.tell(f"rollback of {box.name} to {(to and getattr(to, 'id', None)) or (to and to.chain)}")
        handle.rollback(to_argument(to, self))
        box.base = to
        tree = to.tree if to else EMPTY
        if box.init and isinstance(to, PlainLayer):
            tree = tree | {path: node for path, node in twin(INIT_FILES).items() if path not in tree}
            box.base = Init(tree, to)
        box.tree, box.home = dict(tree), object()
        self.root_of(box)
        self.gone_with(went)
        ends = time.monotonic() + 10        # what only this box kept goes by a thread
        while set(map(str, self.stores[0].map())) != set(self.layers) and time.monotonic() < ends:
            time.sleep(0.002)

    def fork_box(self) -> None:
        box = self.some(self.boxes.values())
        if not box:
            return
        name = self.name()
        before = self.facts(box)
        made = self.handle(box).fork(name)
        self.tell(f"fork of {box.name}: {name}")
        frozen = self.cloned(box, None) if self.is_ground(box) else self.frozen_of(box, None)
        self.unmoved(box, before)
        self.forked(name, frozen, made)

    def fork_snapshot(self) -> None:
        if frozen := self.some(self.frozen):
            name = self.name()
            self.tell(f"fork of {frozen.id}: {name}")
            which = self.draw.randrange(2)
            self.forked(name, frozen, self.stores[which].get_snapshot(frozen.id).fork(name), which)

    def forked(self, name: str, frozen: Frozen, made, which: int | None = None) -> None:
        self.boxes[name] = box = Box(name, dict(frozen.tree), frozen)
        box.init = any(isinstance(one, Init) for one in stack(box))
        if which is not None:
            box.handles[which] = made
        else:
            self.keep(made)
        self.root_of(box)

    def keep(self, handle) -> None:
        """Release a handle whose store the plain side does not know, once the box has another."""
        box = self.boxes[handle.name]
        box.handles[0] = self.stores[0].get_rw_layer(box.name)
        assert handle.release() == []

    def commit_snapshot(self) -> None:
        frozen = self.some(self.frozen)
        if not frozen:
            return
        # What an init layer leaves in a layer committed in place is told by hand elsewhere.
        squash = self.draw.random() < 0.3 or any(isinstance(one, Init) for one in stack(frozen))
        if frozen.layer and squash:
            return
        which = self.draw.randrange(2)
        snap = self.stores[which].get_snapshot(frozen.id)
        with snap.tar_stream() as stream:
            tar = stream.read()
        upper = snap.metadata()["UpperDir"]
        files = {name: os.lstat(f"{upper}/{name}").st_ino for name in os.listdir(upper)}
        before = {name: self.facts(box) for name, box in self.boxes.items() if frozen not in stack(box)}
        self.tell(f"commit of {frozen.id}{', squash' if squash else ''}")
        known = set(self.layers)
        again = frozen.layer
        made = snap.commit(squash=squash)
        if again:
            assert made.chain_id == again.chain
            self.referenced(again, made, which)
            return
        if squash:
            base = nearest(frozen)
            layer = self.new_layer(made, base)
            self.referenced(layer, made, which)
            if made.chain_id not in known:
                wanted = frozen.tree if not any(isinstance(one, Init) for one in stack(frozen)) else None
                self.seen_new(layer, wanted, base, loose=True)
            self.unmoved_all(before)
            return
        assert made.diff_id == tarkit.diff_id(tar), "DiffID is the digest of tar_stream()"
        below_it = uncommitted(frozen)
        self.adopt(frozen, made.chain_id, known, upper, files, made)
        for one in reversed(below_it):
            self.learn_layer(one, [frozen, *below_it], known)
        self.referenced(frozen.layer, made, which)
        self.unmoved_all({name: facts for name, facts in before.items() if not set(below_it) & set(stack(self.boxes[name]))})

    def unmoved_all(self, before) -> None:
        for name, facts in before.items():
            self.unmoved(self.boxes[name], facts)

    def new_layer(self, made, parent: PlainLayer | None) -> PlainLayer:
        assert (made.parent.chain_id if made.parent else None) == (parent.chain if parent else None)
        return self.layers.setdefault(made.chain_id, PlainLayer(made.chain_id, {}, parent))

    def seen_new(self, layer: PlainLayer, wanted: Tree | None, base: PlainLayer | None, *, loose: bool) -> None:
        if wanted is None:
            with self.stores[0].create_rw_layer("to be seen", layer.chain) as box, box.mounted() as path:
                layer.tree = read_tree(path)
        else:
            self.seen(layer.chain, wanted=wanted, root=False, loose=loose)

    def adopt(self, frozen: Frozen, chain: str, known: set[str], upper: str, files: dict[str, int], made) -> None:
        """The layer of a snapshot: its directory, where there was no such layer before."""
        todo, one = [frozen, *uncommitted(frozen)], made
        chains: list[str] = []
        while one is not None and one.chain_id not in known:
            chains.append(one.chain_id)
            one = one.parent
        ground = one.chain_id if one is not None else None
        for new in reversed(chains):
            parent = self.layers.get(ground) if ground else None
            self.layers[new] = PlainLayer(new, {}, parent)
            ground = new
        assert len(chains) <= len(todo), "more layers than there were states"
        frozen.layer = self.layers[chain]
        if chain in known:
            return
        frozen.in_place = DRIVER == "overlay2"
        if not frozen.in_place:           # the layer is made of the tar, which does not say all
            for new in reversed(chains):
                self.seen_new(self.layers[new], None, None, loose=True)
            for new in chains[1:]:
                self.layers[new].marked = True
            return
        assert made.metadata()["UpperDir"] == upper
        assert {name: os.lstat(f"{upper}/{name}").st_ino for name in os.listdir(upper)} == files
        # On a layer that was there already it shows what that one shows.
        doubled = any(isinstance(one, Frozen) and one.layer and not one.in_place for one in stack(frozen))
        self.seen_new(self.layers[chain], frozen.tree, None, loose=doubled or len(chains) < len(todo))
        for new in chains[1:]:
            self.layers[new].marked = True      # the commit of what stands on it released it at once
            self.seen_new(self.layers[new], None, None, loose=False)

    def learn_layer(self, frozen: Frozen, below_it: list[Frozen], known: set[str]) -> None:
        """The layer of one below: its record says it; of a loose one that is a layer now, what stands on it does."""
        chain = None
        if frozen.recorded:
            with open(f"{self.root}/{LAYERDB}/snapshots/{frozen.id}/layer") as text:
                chain = text.read()
        else:
            for thing in [*self.boxes.values(), *(one for one in self.frozen if one.layer is None)]:
                first = next((one for one in stack(thing) if one in below_it), None)
                if first is frozen:
                    layer = self.handle(thing).parent if isinstance(thing, Box) else self.stores[0].get_snapshot(thing.id).layer
                    chain = layer.chain_id if layer else None
            under = nearest(frozen)
            if chain in (None, under.chain if under else None):
                return      # merged into others; or there was such a layer, and it is a loose directory as before
        frozen.layer = self.layers[chain]
        frozen.in_place = chain not in known and DRIVER == "overlay2"
        if frozen.in_place:
            self.same(f"layer of {frozen.id}", frozen.tree, frozen.layer.tree, root=False, loose=any(one.layer and not one.in_place for one in below_it))

    def commit_box(self) -> None:
        if box := self.some(self.boxes.values()):
            handle = self.handle(box)
            with handle.tar_stream() as stream:
                tar = stream.read()
            before = self.facts(box)
            which = next(n for n, one in box.handles.items() if one is handle)
            self.tell(f"commit of {box.name}")
            base, known = nearest(box), set(self.layers)
            made = handle.commit()
            assert made.diff_id == tarkit.diff_id(tar)
            layer = self.new_layer(made, base)
            self.referenced(layer, made, which)
            if made.chain_id not in known:
                has_init = any(isinstance(each, Init) for each in stack(box))
                self.seen_new(layer, None if has_init else box.tree, base, loose=True)
            self.unmoved(box, before)

    def reopen(self) -> None:
        self.tell("reopen")
        for store in self.stores:
            store.close()
        self.open_both()
        if self.draw.random() < 0.3:
            self.tell("cleanup")
            self.stores[1].close()
            self.stores[0].cleanup()
            self.stores[1] = Store(self.root, options=self.options)
            for box in self.boxes.values():
                box.mounts = 0      # cleanup() unmounts what no other store uses

    # ---- a course ------------------------------------------------------------------------------------
    def run(self, steps: int) -> None:
        for step in range(steps):
            self.act()
            self.look_at_lists()
            if box := self.some(self.boxes.values()):
                self.look(box)
                self.look_since(box)
            if frozen := self.some(self.frozen):
                self.look_at_frozen(frozen)
            self.look_at_pair()
            if step % 20 == 19:
                self.look_at_all()
                assert self.stores[0].orphans() == []
        self.look_at_all()
        self.end()

    def end(self) -> None:
        """Release everything: nothing is left behind."""
        store = self.stores[0]
        assert store.verify() == []
        while self.boxes:
            self.release_box()
            self.look_at_lists()
        while self.frozen:
            self.release_snapshot()
            self.look_at_lists()
        while any(layer.handles for layer in self.layers.values()):
            self.release_layer()
        while self.layers:
            top = next(layer for layer in self.layers.values() if not self.needed(layer))
            top.marked = True
            wanted = self.gone_with(top)
            assert [str(one.chain_id) for one in self.store().remove(top.chain)] == wanted
        for one in self.stores:
            one.close()
        with Store(self.root) as again:
            assert again.orphans() == [] and again.verify() == []
            assert again.snapshots() == [] and again.map() == {} and again.mounts() == []
        home = os.path.join(self.root, DRIVER)
        left = [name for name in os.listdir(home) if name != "backingFsBlockDev"]
        assert left == ["l"] and os.listdir(f"{home}/l") == []
        records = os.path.join(self.root, LAYERDB, "snapshots")
        assert not os.path.exists(records) or os.listdir(records) == []


def to_argument(to, world: World):
    if to is None:
        return ""
    if isinstance(to, PlainLayer):
        return to.chain
    return world.draw.choice([to.id, world.stores[0].get_snapshot(to.id)])
