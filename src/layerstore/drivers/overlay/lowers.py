"""What directories stand on: short links, and the file `lower` of each, which names those below it, nearest first.

    <home>/l/<26 letters> -> ../<id>/<files>
    <home>/<id>/lower: l/<26 letters>:l/<26 letters>...
`lower` is the one truth about a stack. It is replaced in one step, and read again only where it changed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence

from layerstore._core import _files
from layerstore.disk.locks import OpenDirectory
from layerstore.disk.textfile import make_directory, read_text, replace_small, write_small
from layerstore.errors import InvalidMetadataError, LayerStoreError, readable

LINKS = "l"
_ITEM = re.compile(rf"{LINKS}/[^/]+")


opened = OpenDirectory


def make(path: str, mode: int) -> None:
    """Make a directory with just this mode, also where it exists; NotADirectoryError for a link or a file."""
    make_directory(path, mode)
    if _files.mode_of(path) & 0o7777 != mode:
        _files.chmod(path, mode)


def is_there(path: str) -> bool:
    """Return True if something is there; what cannot be looked at (OSError) is not taken for gone."""
    try:
        _files.mode_of(path)
    except FileNotFoundError:
        return False
    return True


def is_link(text: str) -> bool:
    return _ITEM.fullmatch(f"{LINKS}/{text}") is not None and text not in (".", "..")


class Lowers:
    """What the directories below one home stand on."""

    def __init__(self, home: str, files: str) -> None:
        self.home, self.files = home, files
        self.link = re.compile(rf"\.\./([^/]+)/{files}")      # where a short link leads
        self._sound: dict[str, str] = {}  # items of `lower` that were looked at: the ids they lead to
        self._items: dict[str, str] = {}  # of ids: their items
        self._stacks: dict[str, tuple[tuple[int, int, int], list[str]]] = {}

    def path(self, id: str, *parts: str) -> str:
        """Return the path of id's directory, or of something in it. Raises LayerStoreError: id is no plain name."""
        if id in ("", ".", "..", LINKS) or "/" in id or "\0" in id:
            raise LayerStoreError(f"{id!r} is not an id of a layer's directory", name=id)
        return "/".join((self.home, id, *parts))

    def files_of(self, id: str) -> str:
        """Return the path of the directory of id's files."""
        return self.path(id, self.files)

    def _target(self, id: str) -> str:
        return f"../{id}/{self.files}"

    def require(self, id: str, *names: str) -> None:
        """Make sure that id and these in it are real directories. Raises NotADirectoryError, FileNotFoundError."""
        for path in (self.path(id), *(self.path(id, name) for name in names)):
            if not stat.S_ISDIR(_files.mode_of(path)):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)

    # ---- short links ----

    def _own_link(self, id: str) -> str:
        """Return the short link that id's directory names; "" if that cannot be read, or is none."""
        with contextlib.suppress(OSError, LayerStoreError):
            link = read_text(self.path(id, "link"))
            return link if is_link(link) else ""
        return ""

    def _link_of(self, id: str) -> str:
        """Return the short link of id. Raises InvalidMetadataError: none leads to it."""
        link = self._own_link(id)
        with contextlib.suppress(OSError):
            if link and _files.readlink(os.path.join(self.home, LINKS, link)) == self._target(id):
                return link
        link = self._link_to(id)
        if not link:
            raise InvalidMetadataError(f"no short link leads to {id}: the layer is to be repaired first", path=id)
        return link

    def _stands_on(self, id: str, below: Sequence[str]) -> bool:
        """Return True if `lower` leads to these, looked at anew."""
        try:
            items = self.lower_items(id)
            if len(items) != len(below) or not all(map(_ITEM.fullmatch, items)):
                return False
            with opened(self.home) as fd:
                sound = _files.links_lead(fd, items, below, self.files)
        except (OSError, LayerStoreError):
            return False
        known = zip(items, below, strict=True)
        if sound:
            self._sound.update(known)
        else:
            for item, _ in known:
                self._sound.pop(item, None)
        return sound

    def _link_to(self, id: str) -> str:
        """Return the short link that leads to id, or ""."""
        return next((link for link, other in self._links() if other == id), "")

    def _links(self) -> Iterator[tuple[str, str]]:
        """Yield each short link, and the id that it leads to. One that goes meanwhile is left out."""
        with os.scandir(os.path.join(self.home, LINKS)) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    target = self.link.fullmatch(_files.readlink(entry.path)) if entry.is_symlink() else None
                    if target:
                        yield entry.name, target[1]

    # ---- what it stands on ----

    def _lower_for(self, parent: str) -> str:
        """Return what `lower` must say in a child of parent."""
        lower = f"{LINKS}/{self._own_link(parent) or self._link_of(parent)}"
        with contextlib.suppress(FileNotFoundError, InvalidMetadataError):    # what is damaged is mended at a mount
            lower += ":" + read_text(self.path(parent, "lower"))
        return lower

    def is_plain(self, id: str) -> bool:
        """Return True if id stands on nothing: it is a plain directory, and no overlay."""
        return not is_there(self.path(id, "lower"))

    def lower_items(self, id: str) -> list[str]:
        """Return the items of `lower`, nearest first; [] if id stands on nothing."""
        try:
            return read_text(self.path(id, "lower")).split(":")
        except FileNotFoundError:
            return []

    def lower_ids(self, items: Iterable[str]) -> list[str]:
        """Return the ids that items of a `lower` lead to. Each is a directory of this home, whatever the file says.

        Raises  OSError                the short link or the directory is gone
                InvalidMetadataError   it leads elsewhere
        """
        ids = []
        for item in items:
            id = self._sound.get(item)
            if id is None:
                sound = _ITEM.fullmatch(item) is not None
                target = self.link.fullmatch(_files.readlink(os.path.join(self.home, item))) if sound else None
                if target is None or target[1] in (".", "..", LINKS):
                    raise InvalidMetadataError(f"the short link {readable(item)} leads to no layer", path=item)
                id = target[1]
                self.require(id, self.files)
                self._sound[item] = id
            ids.append(id)
        return ids

    def stack_of(self, id: str) -> list[str]:
        """Return the ids below id, nearest first; kept in memory until its `lower` is another file, or was changed."""
        try:
            found = os.stat(self.path(id, "lower"), follow_symlinks=False)
        except FileNotFoundError:
            return []
        mark = (found.st_ino, found.st_mtime_ns, found.st_size)
        known = self._stacks.get(id)
        if known is None or known[0] != mark:
            known = self._stacks[id] = mark, self.lower_ids(self.lower_items(id))
        return list(known[1])

    def lower_text(self, id: str) -> str:
        """Return what `lower` says; "" without one. Raises OSError, InvalidMetadataError."""
        return ":".join(self.lower_items(id))

    def named_in(self, text: str) -> list[str]:
        """Return the ids that the text of a `lower` names. What leads to no directory of this home is left out."""
        found = []
        for item in text.split(":") if text else []:
            with contextlib.suppress(OSError, LayerStoreError):
                found += self.lower_ids([item])
        return found

    def lower_for(self, stack: Sequence[str]) -> str:
        """Return what `lower` must say on just this stack. Raises InvalidMetadataError: something of it has no link."""
        if not stack:
            return ""
        first = self.item_of(stack[0])
        with contextlib.suppress(OSError, LayerStoreError):       # what is damaged may have whole links
            if self.stack_of(stack[0]) == list(stack[1:]):
                return ":".join([first, *self.lower_items(stack[0])])
        return ":".join([first, *map(self.item_of, stack[1:])])

    def lower_on(self, stack: Sequence[str]) -> str:
        """Return what `lower` says of something new on this stack; "": damaged, the first one's must say it."""
        try:
            return self.lower_for(stack)
        except (OSError, LayerStoreError):
            return ""

    def lower_over(self, stack: Sequence[str]) -> str:
        """Return what `lower` says of something new on layers; "": what the first one's asks for, as Docker has it.

        A commit that was stopped leaves the first one on what it stood on as a snapshot, which may go.
        """
        with contextlib.suppress(OSError, LayerStoreError):
            if stack and not set(stack).issuperset(self.stack_of(stack[0])):
                return ":".join(f"{LINKS}/{self._link_of(id)}" for id in stack)
        return ""

    def led_to(self, link: str) -> str:
        """Return the id that a short link leads to; "" if it does not lead to one."""
        with contextlib.suppress(OSError):
            target = self.link.fullmatch(_files.readlink(os.path.join(self.home, LINKS, link)))
            return target[1] if target else ""
        return ""

    def item_of(self, id: str) -> str:
        """Return the item of `lower` that leads to id."""
        item = self._items.get(id)
        if item is None or self._sound.get(item) != id:
            item = self._items[id] = f"{LINKS}/{self._link_of(id)}"
            self._sound[item] = id
        return item

    def restand(self, id: str, lower: str, *, durable: bool) -> None:
        """Replace `lower` in one step; "": remove it.

        durable   the bytes are on the disk before they are seen
        """
        self._stacks.pop(id, None)
        if lower:
            replace_small(self.path(id, "lower"), os.fsencode(lower), 0o644, sync=durable)
        else:
            with contextlib.suppress(FileNotFoundError):
                _files.unlink(self.path(id, "lower"))

    def restand_aside(self, id: str, aside: str, lower: str, *, durable: bool) -> None:
        """Replace `lower` in one step; the old file is aside then, the name of a file beside it, for undo_restand().

        No inode is needed to undo it: a full disk does not prevent that.
        """
        if not is_there(self.path(id, "lower")):
            self.restand(id, lower, durable=durable)
            return
        self._stacks.pop(id, None)
        write_small(self.path(id, aside), os.fsencode(lower), 0o644, sync=durable)
        with opened(self.path(id)) as directory:
            _files.exchange(directory, aside, directory, "lower")

    def undo_restand(self, id: str, aside: str, text: str, *, durable: bool) -> None:
        """Let `lower` be text again, as it was before restand_aside(), which may have been stopped anywhere."""
        self._stacks.pop(id, None)
        if self.lower_text(id) != text:
            if text:
                _files.rename(self.path(id, aside), self.path(id, "lower"))
            else:
                self.restand(id, "", durable=durable)
        self.forget_aside(id, aside)

    def forget_aside(self, id: str, aside: str) -> None:
        """Remove the old file of restand_aside(), if it is there."""
        with contextlib.suppress(OSError):
            _files.unlink(self.path(id, aside))

    def lower_dirs(self, id: str) -> list[str]:
        """Return the directories of the files below id, nearest first."""
        return [self.files_of(lower) for lower in self.lower_ids(self.lower_items(id))]

    def dangling(self) -> list[str]:
        """Return the short links whose directory is gone. A directory in the making comes before its link."""
        links = self._links()
        return sorted(f"{LINKS}/{link}" for link, id in links if not is_there(os.path.join(self.home, id)))
