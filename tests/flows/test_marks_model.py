"""Marks in any order and place: a mount, merged(), unpack(), apply_diff() and a commit show one tree, that of OCI's rules.

Each seed draws three layers of names that meet, with marks, links and things of all kinds over one another. Many more
seeds: MARKS_FIRST=96 MARKS_SEEDS=5000 pytest tests/flows/test_marks_model.py
"""

import os
import random
import stat
from pathlib import Path

import ocimodel
import pytest
import tarkit
from ocimodel import DIR, FILE, LINK
from stored import tar_of

from layerstore import Images, LayerStoreError, Store

SEEDS = int(os.environ.get("MARKS_SEEDS", "96"))
FIRST = int(os.environ.get("MARKS_FIRST", "0"))
PART = 12
KINDS = {stat.S_IFDIR: DIR, stat.S_IFREG: FILE, stat.S_IFLNK: LINK, stat.S_IFIFO: "fifo", stat.S_IFCHR: "null"}


def on_disk(root):
    """{path: all that the model says of it}."""
    found = {}
    for place, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(place, name)
            st = os.lstat(path)                # a name that is listed and not there ends here
            kind = KINDS[stat.S_IFMT(st.st_mode)]
            data = os.readlink(path) if kind == LINK else Path(path).read_text() if kind == FILE else ""
            pairs = {} if kind == LINK else {x: os.getxattr(path, x) for x in os.listxattr(path) if x.startswith("user.")}
            mode = None if kind == LINK else stat.S_IMODE(st.st_mode)
            found[os.path.relpath(path, root)] = [kind, data, mode, st.st_uid, pairs, int(st.st_mtime)]
    return found


def in_memory(tree):
    kinds = {"directory": DIR, "file": FILE, "symlink": LINK, "fifo": "fifo", "character": "null"}
    found = {}
    for entry in tree:
        kind = kinds[entry.type]
        if kind == FILE:
            with tree.open(entry.path) as opened:
                data = opened.read().decode()
        found[entry.path] = [kind, data if kind == FILE else entry.link if kind == LINK else "", None if kind == LINK else entry.mode,
                             entry.uid, {} if kind == LINK else dict(entry.xattrs), entry.mtime_ns // 10**9]  # fmt: skip
    return found


def differences(wanted, found):
    """Lines; a time that the model cannot say is any."""
    lines = []
    for path in sorted({*wanted, *found}):
        node, got = wanted.get(path), found.get(path)
        if node is None or got is None:
            lines.append(f"{path}: {'is there' if node is None else 'is not there'}")
            continue
        right = [node.kind, node.data if node.kind in (FILE, LINK) else "", None if node.kind == LINK else node.mode, node.uid,
                 {} if node.kind == LINK else node.xattrs, got[5] if node.mtime is None else node.mtime]  # fmt: skip
        if got != right:
            lines.append(f"{path}: {got}, not {right}")
    return lines


def tar_made_of(entries):
    return b"".join(entry.tar() for entry in entries) + tarkit.end()


class Chain:
    """Layers that were drawn, registered one on another, and what the model says that they show."""

    def __init__(self, store, seed):
        self.draw, self.store, self.known = random.Random(seed), store, []
        self.layers, self.tars, self.trees, self.told = [], [], [{}], []

    @property
    def top(self):
        return self.layers[-1].chain_id if self.layers else ""

    def grow(self):
        """Register one more layer; False: the model refuses it, and so did the store."""
        entries = ocimodel.drawn(self.draw, self.known)
        try:
            tree = ocimodel.applied(self.trees[-1], entries)
        except ocimodel.RefusedError:
            with pytest.raises((LayerStoreError, OSError)):
                self.store.register(tar_made_of(entries), self.top)
            return False
        self.told.append(entries)
        self.layers.append(self.store.register(tar_made_of(entries), self.top))
        self.tars.append(tar_made_of(entries))
        self.trees.append(tree)
        return True

    def same(self, what, wanted, found):
        lines = differences(wanted, found)
        layers = "\n".join(f"  layer: {entries}" for entries in self.told)
        assert not lines, f"{what}:\n  " + "\n  ".join(lines) + f"\n{layers}"


def check_chain(store, room, seed):
    chain = Chain(store, seed)
    while len(chain.layers) < 3:
        chain.grow()
    for number, (layer, tar, tree) in enumerate(zip(chain.layers, chain.tars, chain.trees[1:], strict=True)):
        assert tar_of(layer) == tar
        with store.create_rw_layer(f"view {seed} {number}", layer.chain_id) as box, box.mounted() as path:
            chain.same(f"a mount of layer {number}", tree, on_disk(path))
        chain.same(f"merged() of layer {number}", tree, in_memory(layer.merged()))
    flat = room / f"flat {seed}"
    Images(store).create(chain.layers[-1], {}, tags=f"seed:{seed}")
    Images(store).unpack(f"seed:{seed}", flat)
    chain.same("unpack()", chain.trees[-1], on_disk(flat))
    check_box(chain)
    if seed % 4 == 0:
        check_load(chain, room, seed)
    assert [problem for layer in chain.layers for problem in store.verify(layer.chain_id)] == [], chain.told


def check_load(chain, room, seed):
    """Elsewhere, where layers are unpacked side by side, before any of them knows what it stands on."""
    archive, root = room / f"{seed}.tar", room / f"elsewhere {seed}"
    Images(chain.store).save(f"seed:{seed}", archive)
    with Store(root) as store:
        top = Images(store).load(archive)[0].top
        with store.create_rw_layer("view", top) as box, box.mounted() as path:
            chain.same("a mount of what was saved and loaded", chain.trees[-1], on_disk(path))


def check_box(chain):
    """Diffs over a box, mounted or not; and what its commit shows."""
    store, tree = chain.store, chain.trees[1]
    with store.create_rw_layer("box", chain.layers[0].chain_id) as box:
        for _ in range(3):
            entries = ocimodel.drawn(chain.draw, chain.known)
            try:
                after = ocimodel.applied(tree, entries, box=True)
            except ocimodel.RefusedError:
                continue                       # what came before the error stays: nothing to compare
            chain.told.append(entries)
            mounted = chain.draw.random() < 0.5
            path = box.mount() if mounted else None
            if mounted:
                on_disk(path)                  # so that the kernel has seen all of it
            box.apply_diff(tar_made_of(entries))
            if mounted:
                chain.same("a box that is mounted while a diff comes", after, on_disk(path))
                box.unmount()
            with box.mounted() as path:
                chain.same("a box after a diff", after, on_disk(path))
            tree = after
        with box.commit(keep="all") as layer, store.create_rw_layer("again", layer.chain_id) as again, again.mounted() as path:
            chain.same("a commit", tree, on_disk(path))


@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, PART))
def test_all_ways_show_what_the_model_says(store, room, first):
    for seed in range(first, min(first + PART, FIRST + SEEDS)):
        check_chain(store, room, seed)
