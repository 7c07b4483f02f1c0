"""The plain side of a root: layers, init layers, frozen states and boxes, and what each of them stands on."""

import os

from trees import Node, Tree

SECOND = 10**9
INIT_FILES = {
    b"init.d": Node("dir", mode=0o755, mtime=9 * SECOND),
    b"init.d/host": Node("file", mode=0o644, mtime=9 * SECOND, data=b"of the box\n"),
}
EMPTY: Tree = {b"": Node("dir")}


def make_init(root: str) -> None:
    os.mkdir(f"{root}/init.d")
    os.chmod(f"{root}/init.d", 0o755)
    with open(f"{root}/init.d/host", "wb") as out:
        out.write(INIT_FILES[b"init.d/host"].data)
    os.chmod(f"{root}/init.d/host", 0o644)
    for name in ("init.d/host", "init.d"):
        os.utime(f"{root}/{name}", (9, 9))


class PlainLayer:
    def __init__(self, chain: str, tree: Tree, parent: "PlainLayer | None"):
        self.chain, self.tree, self.parent = chain, tree, parent
        self.handles: list[tuple[int, object]] = []
        self.marked = False

    @property
    def base(self) -> "PlainLayer | None":
        return self.parent


class Init:
    """An init layer: seen in the view, and in no difference."""

    def __init__(self, tree: Tree, base):
        self.tree, self.base = tree, base


class Frozen:
    """A frozen upper. id: None while only the disk knows it; recorded: until it is released; layer: once committed."""

    def __init__(self, tree: Tree, home, base, box: str, id: str | None):
        self.tree, self.home, self.base, self.box, self.id = tree, home, base, box, id
        self.recorded, self.layer, self.in_place, self.sibling_of = id is not None, None, False, None


class Box:
    def __init__(self, name: str, tree: Tree, base):
        self.name, self.tree, self.base = name, tree, base
        self.home = object()
        self.mounts = 0
        self.mounted_by = 0
        self.handles: dict[int, object] = {}
        self.init = False


def stack(thing) -> list:
    """What it stands on, nearest first, down to the ground."""
    found = []
    while (thing := thing.base) is not None:
        found.append(thing)
    return found


def nearest(thing) -> PlainLayer | None:
    for one in stack(thing):
        if isinstance(one, PlainLayer):
            return one
        if isinstance(one, Frozen) and one.layer:
            return one.layer
    return None


def uncommitted(thing) -> list[Frozen]:
    """The frozen states between it and the nearest layer, nearest first."""
    found = []
    for one in stack(thing):
        if isinstance(one, PlainLayer) or (isinstance(one, Frozen) and one.layer):
            break
        if isinstance(one, Frozen):
            found.append(one)
    return found


def with_init(tree: Tree, thing) -> Tree:
    """What an init layer in its stack adds to a tree that it is compared with."""
    if not any(isinstance(one, Init) for one in stack(thing)):
        return tree
    return tree | {path: node for path, node in INIT_FILES.items() if path not in tree}


def compared_with(thing) -> Tree:
    """What changes() of a box compares with: the nearest layer, with the init layer."""
    layer = nearest(thing)
    return with_init(layer.tree if layer else EMPTY, thing)
