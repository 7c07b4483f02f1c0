"""The entries of an archive by name, as in the unpacked archive: links are followed, within the archive."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from layerstore.errors import ImageError, readable
from layerstore.images.archive import FILE, HARD_LINK, LINK, Entry, plain_path

LINKS_LIMIT = 10


def follow(name: str, link_at: Callable[[str], str | None]) -> str:
    """Return the path that a name means: no part of it is a link.

    link_at   returns the path that a link means, "" if it leads out of the archive; None: the path is no link
    Raises  ImageError   a link leads out, or they lead in a circle
    """
    at = plain_path(name)
    for _ in range(LINKS_LIMIT):
        for end in [*(n for n, c in enumerate(at) if c == "/"), len(at)]:
            target = link_at(at[:end])
            if target is not None:
                break
        else:
            return at
        if not target:
            raise ImageError(f"{readable(name)} in the archive is not a file of it: it leads out of the layout")
        at = plain_path(target + at[end:])
    raise ImageError(f"links in the archive lead in a circle: {readable(name)}")


class Catalogue:
    """The entries of a tar by name."""

    def __init__(self, same: Callable[[Entry, Entry], bool]) -> None:
        """Begin without any.

        same   says whether two files of one name have the same bytes
        """
        self._entries: dict[str, Entry] = {}
        self._again: dict[str, list[Entry]] = {}
        self._links = 0
        self._mixed: set[str] = set()
        self._same = same

    def add(self, entry: Entry) -> None:
        """Add one."""
        before = self._entries.get(entry.name)
        if before is None:
            self._entries[entry.name] = entry
        elif FILE in (entry.kind, before.kind) or (entry.kind, entry.target) != (before.kind, before.target):
            self._again.setdefault(entry.name, []).append(entry)
        self._links += entry.kind == LINK

    def names(self) -> list[str]:
        """Name all, in their order."""
        return list(self._entries)

    def _link_at(self, path: str) -> str | None:
        entry = self._entries.get(path)
        return entry.target if entry and entry.kind in (LINK, HARD_LINK) else None

    def end(self) -> None:
        """Finish: all entries are added. A name below a link is another name of a file: such names are not found."""
        if not self._links:
            return
        link = ""
        for name in sorted(self._entries, key=lambda name: name.replace("/", "\0")):
            if link and name.startswith(link):
                self._mixed |= {name, *self._reached(name)}
            else:
                link = f"{name}/" if self._entries[name].kind == LINK else ""

    def _reached(self, name: str) -> Iterable[str]:
        directory, _, last = name.rpartition("/")
        try:
            return [plain_path(f"{follow(directory, self._link_at)}/{last}")]
        except ImageError:
            return []

    def find(self, name: str) -> Entry | None:
        """Return the file of this name, or None. Raises ImageError: it is no file, or it is ambiguous."""
        at = follow(name, self._link_at)
        entry = self._entries.get(at)
        if at in self._mixed:
            raise ImageError(f"{readable(at)} is reached by two names in the archive, one of them below a link")
        for again in self._again.get(at, ()):
            if entry and not (entry.kind == again.kind == FILE and self._same(entry, again)):
                raise ImageError(f"{readable(at)} is in the archive more than once, and is not the same each time")
        if entry and entry.kind != FILE:
            raise ImageError(f"{readable(at)} in the archive is not a file of it")
        return entry
