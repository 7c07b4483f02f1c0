"""What layers show, by OCI's rules, in plain Python: a model to hold the package against. It shares no line with it.

Enters: layers as lists of Entry, base first. Leaves: a tree {path: Node}. A layer is applied entry by entry to what the
layers below show. A mark takes away what was there before the layer, wherever in the layer it stands, and nothing of its own.
Names lead through links of their own layer (over a box: through all that it shows), as if the root were "/".
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import tarkit

DIR, FILE, LINK, HARD, FIFO, NULL, WHITEOUT, OPAQUE = "dir", "file", "link", "hard", "fifo", "null", "whiteout", "opaque"
MANY = 255


@dataclass(frozen=True)
class Entry:
    kind: str
    name: str                                  # of a mark: what it hides, or in which directory
    data: str = ""                             # or where a link leads
    mode: int = 0o644
    uid: int = 0
    mtime: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()

    def tar(self) -> bytes:
        facts = {"mode": self.mode, "uid": self.uid, "mtime": self.mtime}
        made = {
            DIR: lambda: tarkit.dir(self.name + "/", **facts), FILE: lambda: tarkit.file(self.name, self.data.encode(), **facts),
            LINK: lambda: tarkit.symlink(self.name, self.data, **facts), HARD: lambda: tarkit.hardlink(self.name, self.data, **facts),
            FIFO: lambda: tarkit.fifo(self.name, **facts), NULL: lambda: tarkit.node(self.name, "c", 1, 3, **facts),
            WHITEOUT: lambda: tarkit.whiteout(self.name), OPAQUE: lambda: tarkit.opaque(self.name),
        }[self.kind]()  # fmt: skip
        return (tarkit.xattrs(dict(self.xattrs)) if self.xattrs else b"") + made


@dataclass
class Node:
    """What names share that are hard links of one another."""

    kind: str
    data: str = ""
    mode: int = 0o755
    uid: int = 0
    mtime: int | None = None                   # None: unknown
    xattrs: dict[str, bytes] = field(default_factory=dict)


class RefusedError(Exception):
    """No layer, or no diff for this box."""


def parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


class Layer:
    """One layer on its way onto a tree."""

    def __init__(self, tree: dict[str, Node], *, box: bool = False) -> None:
        self.tree, self.box = dict(tree), box
        self.own: set[str] = set()
        self.implied: set[str] = set()         # of own: directories without an entry
        self.hidden: set[str] = set()          # whiteouts with nothing in their place

    def remove(self, path: str) -> None:
        for held in (self.tree, self.own, self.implied, self.hidden):
            for name in [name for name in held if name == path or name.startswith(path + "/")]:
                held.pop(name) if isinstance(held, dict) else held.remove(name)

    def leads_on(self, path: str) -> bool:
        return path in self.tree and self.tree[path].kind == LINK and (self.box or path in self.own)

    def parent(self, path: str) -> str:
        """The real directory of a name, made where it is missing."""
        real: list[str] = []
        todo = parts(path)[:-1]
        links, absolute = 0, False
        while todo:
            part = todo.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                if not real and not absolute:
                    raise RefusedError("out of the layer")
                real = real[:-1]
                continue
            here = "/".join([*real, part])
            if not self.leads_on(here):
                real.append(part)
                continue
            links += 1
            if links > MANY:
                raise RefusedError("links")
            target = self.tree[here].data
            if target.startswith("/"):
                real, absolute = [], True
            todo = [*target.split("/"), *todo]
        for end in range(1, len(real) + 1):
            here = "/".join(real[:end])
            node = self.tree.get(here)
            if here in self.own:
                if node is None or node.kind != DIR:
                    raise RefusedError("no directory")
                continue
            if here in self.hidden:
                raise RefusedError("below a whiteout")
            if node is None or node.kind != DIR:
                self.remove(here)
                self.tree[here] = Node(DIR)
            self.own.add(here)
            self.implied.add(here)
        return "/".join(real)

    def place(self, path: str) -> str:
        above = self.parent(path)
        return f"{above}/{parts(path)[-1]}" if above else parts(path)[-1]

    def add(self, entry: Entry) -> None:
        if entry.kind == OPAQUE:
            return self.empty(self.parent(entry.name + "/x"))
        path = self.place(entry.name)
        if entry.kind == WHITEOUT:
            if path in self.own and path in self.tree:
                raise RefusedError("a whiteout behind its own name")
            self.remove(path)
            self.hidden.add(path)
            return None
        if entry.kind == HARD:
            return self.link(path, entry)
        there = self.tree.get(path)
        if not (there and there.kind == DIR and entry.kind == DIR):
            self.remove(path)
        self.put(path, Node(entry.kind, entry.data, entry.mode, entry.uid, entry.mtime, dict(entry.xattrs)))
        return None

    def put(self, path: str, node: Node) -> None:
        self.tree[path] = node
        self.own.add(path)
        self.implied.discard(path)
        self.hidden.discard(path)

    def link(self, path: str, entry: Entry) -> None:
        target = self.place(entry.data)
        if target == path and path in self.tree and self.tree[path].kind != DIR and (self.box or path in self.own):
            self.own.add(path)
            return
        self.remove(path)
        if target in self.hidden:
            self.hidden.add(path)
            return
        node = self.tree.get(target)
        if node is None or node.kind == DIR or not (self.box or target in self.own):
            raise RefusedError("no file to link to")
        node.uid = entry.uid
        node.xattrs = {**node.xattrs, **dict(entry.xattrs)}
        if node.kind != LINK:
            node.mode, node.mtime = entry.mode, entry.mtime
        self.put(path, node)

    def empty(self, directory: str) -> None:
        inside = f"{directory}/" if directory else ""
        for path in sorted(self.tree):
            if path.startswith(inside) and path != directory:
                if path not in self.own:
                    self.tree.pop(path)
                elif path in self.implied:
                    self.tree[path] = Node(DIR)


def copied(tree: dict[str, Node]) -> dict[str, Node]:
    """The same, so that a layer changes nothing of another."""
    made: dict[int, Node] = {}
    return {path: made.setdefault(id(node), Node(node.kind, node.data, node.mode, node.uid, node.mtime, dict(node.xattrs)))
            for path, node in tree.items()}  # fmt: skip


def applied(below: dict[str, Node], entries: Iterable[Entry], *, box: bool = False) -> dict[str, Node]:
    """What shows after a layer (box: after a diff over a box). Raises Refused."""
    layer = Layer(copied(below), box=box)
    for entry in entries:
        layer.add(entry)
    return layer.tree


# ---- layers by chance --------------------------------------------------------------------------------------------------
NAMES = ("a", "b", "c")
TARGETS = ("a", "b", "../b", "/a/b", "c/a", "..", "/c", "../../c", "/")
KINDS = (DIR, DIR, DIR, FILE, FILE, FILE, LINK, HARD, FIFO, NULL, WHITEOUT, WHITEOUT, WHITEOUT, OPAQUE)


def drawn(draw: random.Random, known: list[str]) -> list[Entry]:
    """A layer of a few names, which often meet; known: names of those below."""
    entries = []
    for _ in range(draw.randrange(1, 11)):
        name = "/".join(draw.choice(NAMES) for _ in range(draw.choice((1, 1, 2, 2, 3, 4))))
        if known and draw.random() < 0.4:
            name = draw.choice(known)
        kind = draw.choice(KINDS)
        if kind == OPAQUE and draw.random() < 0.25:
            name = ""
        data = {FILE: f"{draw.random()}", LINK: draw.choice(TARGETS), HARD: draw.choice([*known, name, "a", "b/c"])}.get(kind, "")
        pairs = tuple((f"user.{key}", str(draw.randrange(9)).encode()) for key in "pq" if draw.random() < 0.3)
        entries.append(Entry(
            kind, name, data, draw.choice((0o755, 0o700, 0o1777, 0o644, 0o2750)), draw.choice((0, 1000)), draw.randrange(1, 1 << 30),
            pairs if kind in (DIR, FILE) else (),
        ))  # fmt: skip
        known.append(name or "a")
    return entries
