"""MergedTree: the files of a layer with all below it, as an overlay mount shows them, from the records alone.

Enters: the entries of each layer, base first. Leaves: one tree in memory. A layer is first made a tree of its own, by
the rules of an unpack: an entry replaces what had its name, names go through the links of the same layer, a whiteout
hides nothing beside it. Then it is laid over what is below, and a directory without an entry is what it was there.
Where a path leads is told by the tree: an entry keeps its path only where the tar spells it so, as names that lead
through links would take room for a long path each. Nothing here calls itself: a tar may nest to any depth.
Source: moby, archive; the kernel, fs/overlayfs
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from layerstore.errors import CorruptLayerError, readable
from layerstore.ids import ChainID
from layerstore.values import FileEntry, FileType, StrPath

LINKS_MAX = 40          # as the kernel's
LAYER_LINKS_MAX = 255   # as the unpacking's
KNOWN_ROOM = 4 << 20     # letters of paths that are remembered while a layer is read


class _Directory:
    """A directory; children by name."""

    __slots__ = ("above", "base", "children", "entry", "implied", "opaque")

    def __init__(
        self, entry: FileEntry, above: _Directory | None, base: str, *, implied: bool = False, opaque: bool = False
    ) -> None:
        self.entry, self.above, self.base = entry, above, base
        self.children: dict[str, _Node] = {}
        self.implied = implied            # there is no entry for it, so far
        self.opaque = opaque              # a mark's to say: overlay's own xattrs are not unpacked


class _Inode:
    """What the names of one hard-linked file share."""

    __slots__ = ("entry",)

    def __init__(self, entry: FileEntry) -> None:
        self.entry = entry

    def take(self, link: FileEntry) -> None:
        """Take over the attributes of a link's entry; of a symbolic link all but mode and times."""
        kept = self.entry
        taken = kept._replace(uid=link.uid, gid=link.gid, xattrs={**kept.xattrs, **link.xattrs})
        if kept.type is not FileType.SYMLINK:
            taken = taken._replace(mode=link.mode, mtime_ns=link.mtime_ns, atime_ns=link.atime_ns)
        self.entry = taken


class _Name:
    """One name of a hard-linked file; beside, base: another one, for all but the first."""

    __slots__ = ("base", "beside", "inode", "name")

    def __init__(self, inode: _Inode, name: str, beside: _Directory | None, base: str) -> None:
        self.inode, self.name, self.beside, self.base = inode, name, beside, base

    @property
    def entry(self) -> FileEntry:
        kept = self.inode.entry
        if kept.type is FileType.SYMLINK:
            link = kept.link
        else:
            link = _below(_path_of(self.beside), self.base) if self.beside is not None else ""
        return kept._replace(name=self.name, link=link)


_Node = _Directory | _Name | FileEntry


def _entry_of(node: _Node) -> FileEntry:
    return node if type(node) is FileEntry else node.entry  # type: ignore[union-attr]


def _below(directory: str, base: str) -> str:
    return f"{directory}/{base}" if directory else base


def _path_of(directory: _Directory) -> str:
    """Return its path in its layer."""
    parts: list[str] = []
    at: _Directory | None = directory
    while at is not None and at.above is not None:
        parts.append(at.base)
        at = at.above
    return "/".join(reversed(parts))


def _at(path: str, node: _Node) -> FileEntry:
    """Return the entry of a node, at a path."""
    entry = _entry_of(node)
    return entry if entry.path == path else entry._replace(path=path)


def _implied(path: str, chain_id: ChainID) -> FileEntry:
    return FileEntry(path, FileType.DIRECTORY, 0, 0o755, 0, 0, 0, None, "", None, {}, None, None, "", chain_id)


def _is_whiteout(node: _Node) -> bool:
    return type(node) is FileEntry and node.type is FileType.WHITEOUT


class LayerTree:
    """What the entries of one layer make of an empty directory, whiteouts among them."""

    def __init__(self, chain_id: ChainID) -> None:
        self._chain_id = chain_id
        self.root = _Directory(_implied(".", chain_id), None, "", implied=True)
        self._known: dict[str, _Directory] = {"": self.root}   # by real path
        self._letters = 0                 # in the keys of _known

    def add(self, entry: FileEntry) -> None:
        """Do what unpacking the entry does. Raises CorruptLayerError: it could not have been unpacked."""
        path, kind = entry.path, entry.type
        if kind is FileType.OPAQUE:
            self._enter("" if path == "." else path, entry)[0].opaque = True
            return
        if path == ".":
            return
        head, _, base = path.rpartition("/")
        parent = self._known.get(head)
        if parent is None:
            parent, real = self._enter(head, entry)
            if real != head:
                entry = entry._replace(path="")
        there = parent.children.get(base)
        stays = there is not None and self._is_itself(parent, base, there, entry)
        if there is not None and (stays or not self._make_way(parent, base, there, entry)):
            return
        if kind is FileType.DIRECTORY:        # what stood here before, a whiteout too, hides all below it
            parent.children[base] = made = _Directory(entry, parent, base, opaque=there is not None)
            if entry.path:
                self._remember(path, made)
        elif kind is FileType.LINK:
            self._link(parent, base, entry)
        elif entry.device == (0, 0) and kind is FileType.CHARACTER:    # what a whiteout is on disk
            parent.children[base] = entry._replace(type=FileType.WHITEOUT)
        else:
            parent.children[base] = entry

    def _is_itself(self, parent: _Directory, base: str, there: _Node, entry: FileEntry) -> bool:
        """Return True if the entry is a hard link of what is there to itself, which changes nothing."""
        if entry.type is not FileType.LINK or isinstance(there, _Directory) or _is_whiteout(there):
            return False
        head, _, target = entry.link.rpartition("/")
        return target == base and self._directory(head, entry) is parent

    def _make_way(self, parent: _Directory, base: str, there: _Node, entry: FileEntry) -> bool:
        """Remove what has the name. False: the entry only changes it."""
        if entry.type is FileType.WHITEOUT and not _is_whiteout(there):
            raise self._impossible(entry, "a whiteout of a name in the same layer")
        if isinstance(there, _Directory):
            if entry.type is FileType.DIRECTORY:
                there.entry, there.implied = entry, False
                return False
            self._forget()
        del parent.children[base]
        return True

    def _link(self, parent: _Directory, base: str, entry: FileEntry) -> None:
        head, _, target = entry.link.rpartition("/")
        beside = self._directory(head, entry)
        there = beside.children.get(target)
        if there is None or isinstance(there, _Directory):
            raise self._impossible(entry, "a hard link to no file of the layer")
        if _is_whiteout(there):
            parent.children[base] = _entry_of(there)._replace(path="", name=entry.name)
            return
        if not isinstance(there, _Name):
            there = beside.children[target] = _Name(_Inode(there), there.name, None, "")
        there.inode.take(entry)
        parent.children[base] = _Name(there.inode, entry.name, beside, target)

    def _remember(self, path: str, directory: _Directory) -> None:
        if self._letters > KNOWN_ROOM:
            self._forget()
        self._known[path] = directory
        self._letters += len(path)

    def _forget(self) -> None:
        self._known = {"": self.root}
        self._letters = 0

    def _directory(self, path: str, entry: FileEntry) -> _Directory:
        return self._known.get(path) or self._enter(path, entry)[0]

    def _enter(self, path: str, entry: FileEntry) -> tuple[_Directory, str]:
        """Return the directory of a path, through links as if the root were "/", and its path; make it if missing."""
        real: list[tuple[str, _Node | None]] = []
        todo = path.split("/")[::-1]
        links, absolute = 0, False
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not real and not absolute:
                    raise self._impossible(entry, "a path that escapes from its parent")
                del real[-1:]
                continue
            above = real[-1][1] if real else self.root
            node = above.children.get(part) if isinstance(above, _Directory) else None
            found = _entry_of(node) if node is not None else None
            if found is None or found.type is not FileType.SYMLINK:
                real.append((part, node))     # what cannot be entered is told below: ".." may leave it again
                continue
            links += 1
            if links > LAYER_LINKS_MAX:
                raise self._impossible(entry, "too many links")
            if found.link.startswith("/"):
                real.clear()
                absolute = True
            todo += found.link.split("/")[::-1]
        here = self.root
        for part, _ in real:
            child = here.children.get(part)
            if child is None:
                child = here.children[part] = _Directory(_implied("", self._chain_id), here, part, implied=True)
            if not isinstance(child, _Directory):
                raise self._impossible(entry, "a name below what is no directory")
            here = child
        at = "/".join(part for part, _ in real)
        self._remember(at, here)
        return here, at

    @staticmethod
    def _impossible(entry: FileEntry, why: str) -> CorruptLayerError:
        text = f'the tar-split record cannot be read: "{readable(entry.name)}" is {why}'
        return CorruptLayerError(text, path=entry.name)


def _bare(top: _Directory) -> _Directory:
    """Return the same without whiteouts, for a base layer."""
    todo = [top]
    while todo:
        children = todo.pop().children
        for name in [name for name, node in children.items() if _is_whiteout(node)]:
            del children[name]
        todo += [node for node in children.values() if isinstance(node, _Directory)]
    return top


def _lay_over(below: _Directory, above: _Directory, implied_ns: int | None) -> None:
    """Change below into what an overlay of both shows.

    implied_ns   the time of a directory that above has no entry for; None: that of the one below
    """
    below.entry = above.entry
    if above.opaque:
        below.children = _bare(above).children
        return
    todo = [(below, above)]
    while todo:
        lower, upper = todo.pop()
        for name, node in upper.children.items():
            if isinstance(node, _Directory):
                there = lower.children.get(name)
                if isinstance(there, _Directory) and node.implied:
                    node.entry = there.entry._replace(chain_id=node.entry.chain_id)
                    if implied_ns is not None:
                        node.entry = node.entry._replace(mtime_ns=implied_ns)
                if isinstance(there, _Directory) and not node.opaque:
                    there.entry = node.entry
                    todo.append((there, node))
                else:
                    lower.children[name] = _bare(node)
            elif _is_whiteout(node):
                lower.children.pop(name, None)
            else:
                lower.children[name] = node


class MergedTree:
    """The files of a layer with all below it, as an overlay mount shows them; made by Layer.merged().

    A picture in memory of read-only layers, about 1 kB an entry; it holds no reference to them. Any number of
    threads may use it. Paths are relative to the root; "/etc" and "etc" are the same.
    """

    def __init__(
        self, layers: Iterable[tuple[ChainID, Iterable[FileEntry]]], opener: Callable[[FileEntry], BinaryIO], *,
        implied_ns: int | None = None,
    ) -> None:  # fmt: skip
        """Lay the layers over one another, base first; opener gives a file's bytes.

        implied_ns   the time of a directory that a layer has no entry for; None: that of the one below
        Raises  CorruptLayerError, OSError   a record cannot be read
        """
        self._opener = opener
        self._root = _Directory(_implied(".", ChainID(f"sha256:{'0' * 64}")), None, "")
        for chain_id, entries in layers:
            tree = LayerTree(chain_id)
            add = tree.add
            for entry in entries:
                add(entry)
            _lay_over(self._root, tree.root, implied_ns)

    def __repr__(self) -> str:
        count = len(self)
        return f"<MergedTree of {count} {'entry' if count == 1 else 'entries'}>"

    # ---- all of it ----

    def files(self) -> Iterator[FileEntry]:
        """Return every entry but the root: depth first, names in byte order, a directory before what is in it.

        There are no whiteouts, and no LINKs: each name of a hard-linked file is the file, with .link naming another.
        """
        todo: list[tuple[str, str, _Node]] = [("", "", self._root)]
        while todo:
            above, name, node = todo.pop()
            path = _below(above, name)
            if node is not self._root:
                yield _at(path, node)
            if isinstance(node, _Directory):
                children = node.children
                todo += [(path, name, children[name]) for name in sorted(children, key=os.fsencode, reverse=True)]

    __iter__ = files

    def __len__(self) -> int:
        count, todo = 0, [self._root]
        while todo:
            children = todo.pop().children.values()
            count += len(children)
            todo += [node for node in children if isinstance(node, _Directory)]
        return count

    # ---- one path ----

    def get(self, path: StrPath, *, follow: bool = False) -> FileEntry | None:
        """Return the entry at path, or None. Links on the way are followed, below the root; the last one if follow."""
        try:
            return self._find(path, follow=follow)[0]
        except OSError:
            return None

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and self.get(path) is not None

    def open(self, path: StrPath) -> BinaryIO:
        """Open a regular file for reading: a seekable binary file. Links are followed, below the root.

        Raises  FileNotFoundError, IsADirectoryError, NotADirectoryError
                OSError             ELOOP: too many links; EINVAL: a device or a fifo
                CorruptLayerError   the file is not what was registered: now, or when the last byte is read of one that
                                    is read from its first
        """
        entry, node = self._find(path, follow=True)
        if isinstance(node, _Directory):
            raise _failed(errno.EISDIR, path)
        if entry.type is not FileType.FILE:
            raise OSError(errno.EINVAL, "no regular file", os.fsdecode(path))
        return self._opener(entry)

    def _find(self, path: StrPath, *, follow: bool) -> tuple[FileEntry, _Node]:
        """Return what path leads to, as the kernel follows it below a root."""
        text = os.fsdecode(path)
        if not text:
            raise _failed(errno.ENOENT, path)
        todo = text.split("/")[::-1]
        here: list[_Directory] = [self._root]
        found: _Node = self._root
        last = ""                         # of what was found, if that is no directory
        links = 0
        while todo:
            part = todo.pop()
            if not isinstance(found, _Directory):
                raise _failed(errno.ENOTDIR, path)
            if part in ("", "."):
                continue
            if part == "..":
                here = here[:-1] or here
                found = here[-1]
                continue
            node = found.children.get(part)
            if node is None:
                raise _failed(errno.ENOENT, path)
            entry = _entry_of(node)
            if entry.type is FileType.SYMLINK and (todo or follow):
                links += 1
                if links > LINKS_MAX:
                    raise _failed(errno.ELOOP, path)
                if entry.link.startswith("/"):
                    here, found = [self._root], self._root
                todo += entry.link.split("/")[::-1]
                continue
            found, last = node, part
            if isinstance(node, _Directory):
                here.append(node)
        parts = [directory.base for directory in here[1:]]
        if not isinstance(found, _Directory):
            parts.append(last)
        return _at("/".join(parts) or ".", found), found

    # ---- some of them ----

    def find(self, pattern: StrPath) -> Iterator[FileEntry]:
        """Return the entries whose path fits, in the order of files().

        pattern   as a path, from the root: "*", "?" and "[...]" stand for text within one name, dots not excepted;
                  "**" for any number of directories, none too (at the end: for all that is below).
                  Case counts; links are not followed
        """
        parts = [part for part in os.fsdecode(pattern).split("/") if part not in ("", ".")]
        if not parts:
            raise ValueError("a pattern names something below the root")
        if parts[-1] == "**":
            parts.append("*")
        return self._fitting([None if part == "**" else re.compile(fnmatch.translate(part)).match for part in parts])

    def _fitting(self, parts: list[Any]) -> Iterator[FileEntry]:
        """parts: for each name whether it fits, or None for any number of names."""
        end = len(parts)

        def at(states: Iterable[int]) -> frozenset[int]:
            """Return where one may be without a further name: behind each "**" too."""
            reached = set(states)
            todo = list(reached)
            while todo:
                state = todo.pop()
                if state < end and parts[state] is None and state + 1 not in reached:
                    reached.add(state + 1)
                    todo.append(state + 1)
            return frozenset(reached)

        todo: list[tuple[str, str, _Node, frozenset[int], bool]] = [("", "", self._root, at([0]), False)]
        while todo:
            above, name, node, states, fits = todo.pop()
            path = _below(above, name)
            if fits:
                yield _at(path, node)
            if not isinstance(node, _Directory):
                continue
            into = []
            for name, child in node.children.items():
                next_states = at(
                    state if parts[state] is None else state + 1
                    for state in states
                    if state < end and (parts[state] is None or parts[state](name))
                )
                if next_states:
                    into.append((os.fsencode(name), child, next_states))
            into.sort(key=lambda one: one[0], reverse=True)
            todo += [(path, os.fsdecode(raw), child, after, end in after) for raw, child, after in into]


def _failed(number: int, path: StrPath) -> OSError:
    return OSError(number, os.strerror(number), os.fsdecode(path))
