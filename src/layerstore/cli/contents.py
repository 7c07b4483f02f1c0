"""What is in layers, told from their records, with nothing mounted: ls-files, cat, find."""

from __future__ import annotations

import datetime
import re
import stat
from collections.abc import Callable, Iterable
from typing import Any

from layerstore import FileEntry, Layer
from layerstore.cli.exits import Exit, Failure
from layerstore.cli.layers import add_null
from layerstore.cli.opening import Opened, reading
from layerstore.cli.parser import Commands
from layerstore.cli.screen import Cell, Screen
from layerstore.cli.texts import iso_time, short_id

_KINDS = {
    "file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK, "link": stat.S_IFREG,
    "character": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO,
}  # fmt: skip


def add(commands: Commands) -> None:
    listed = commands.command(
        "ls-files", run_ls_files, "list the files of a layer with all below it, or of it alone", "LAYER",
        more='With --own, in the order of the tar; what it deletes of those below is listed as "whiteout", and a\n'
             'directory whose old content it hides as "opaque".',
        examples=["ls-files debian:12", "ls-files -l debian:12 'etc/*.conf'", "ls-files --own 4e596c87bd09"],
    )  # fmt: skip
    listed.add_argument("pattern", metavar="PATTERN", nargs="?",
                        help='which: "*", "?" and "[...]" within a name, "**" any number of directories')  # fmt: skip
    listed.add_argument("--own", action="store_true", help="of this layer alone")
    listed.add_argument("-l", "--long", action="store_true", help="with rights, owner, size and time")
    add_null(listed)

    cat = commands.command(
        "cat", run_cat, "print a file of a layer with all below it", "LAYER paths:PATH+",
        examples=["cat debian:12 /etc/os-release", "cat --own 4e596c87bd09 /etc/passwd"])  # fmt: skip
    cat.add_argument("--own", action="store_true", help="of this layer alone")

    find = commands.command(
        "find", run_find, "say which layers hold a path, or delete it",
        more='Without a layer, all are looked at, each alone: a "whiteout" deletes what is below. With one, what\n'
             "a mount of it would show, and which layer that comes from.",
        examples=["find /etc/passwd", "find '**/*.so*' debian:12", "find '/usr/bin/py*' --json"])  # fmt: skip
    find.add_argument("pattern", metavar="PATTERN", help='a path; "*", "?" and "[...]" within a name, "**" over names')
    find.add_argument("layer", metavar="LAYER", nargs="?", help="this layer with all below it")
    add_null(find)


# "[]a]" holds a bracket, and "[" alone is one.
_PARTS = re.compile(r"\*|\?|\[[!^]?\]?[^\]/]*\]|.", re.DOTALL)


def facts_of(entry: FileEntry) -> dict[str, Any]:
    """Return an entry as --json shows it. Attributes' bytes are hex."""
    return {
        "path": f"/{entry.path}", "type": str(entry.type), "size": entry.size, "mode": f"{entry.mode:04o}",
        "uid": entry.uid, "gid": entry.gid, "mtime": iso_nanoseconds(entry.mtime_ns), "link": entry.link or None,
        "device": list(entry.device) if entry.device else None,
        "xattrs": {name: value.hex() for name, value in entry.xattrs.items()}, "layer": entry.chain_id,
    }  # fmt: skip


def iso_nanoseconds(ns: int) -> str | None:
    """Return a time as RFC 3339; None where no calendar reaches."""
    try:
        return iso_time(ns // 10**9)
    except (OverflowError, ValueError, OSError):
        return None


def _long(entry: FileEntry, screen: Screen) -> list[Cell]:
    kind = _KINDS.get(str(entry.type))
    rights = stat.filemode(kind | entry.mode) if kind is not None else str(entry.type)
    size = f"{entry.device[0]}, {entry.device[1]}" if entry.device else screen.size(entry.size)
    try:
        when = datetime.datetime.fromtimestamp(entry.mtime_ns // 10**9, datetime.UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        when = "?"
    name = f"/{entry.path}"
    if entry.link:
        name += f" {'->' if entry.type == 'symlink' else '='} {entry.link}"
    return [rights, f"{entry.uid}:{entry.gid}", size, when, name]


def _print(entries: Iterable[FileEntry], args: Any, screen: Screen, *, long: bool) -> int:
    """Print entries; gives how many there were."""
    if screen.as_json:
        found = [facts_of(entry) for entry in entries]
        screen.json(found)
        return len(found)
    if long:
        rows = [_long(entry, screen) for entry in entries]
        screen.table(("RIGHTS", "OWNER", ">SIZE", "TIME (UTC)", "PATH"), rows)
        return len(rows)
    gone = ("whiteout", "opaque")
    names = (f"{entry.type} /{entry.path}" if entry.type in gone else f"/{entry.path}" for entry in entries)
    return screen.names(names, null=args.null)


def _expression(part: str) -> str:
    """Return a part of a name in a pattern as a regular expression."""
    if part == "*":
        return "[^/]*"
    if part == "?":
        return "[^/]"
    if part.startswith("[") and len(part) > 2:
        negated, inner = ("^/", part[2:-1]) if part[1] in "!^" else ("", part[1:-1])
        return f"[{negated}{inner.replace(chr(92), chr(92) * 2).replace('[', chr(92) + '[')}]"
    return re.escape(part)


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Return what tells if a path of one layer matches, in the language of MergedTree.find()."""
    parts = []
    for name in pattern.strip("/").split("/"):
        if name == "**":
            parts.append("(?:[^/]+/)*")
        else:
            parts.append("".join(map(_expression, _PARTS.findall(name))) + "/")
    whole = re.compile("".join(parts), re.DOTALL)
    return lambda path: whole.fullmatch(path + "/") is not None


def _chosen(layer: Layer, pattern: str | None, *, own: bool) -> Iterable[FileEntry]:
    if not own:
        return layer.merged().files() if pattern is None else layer.merged().find(pattern)
    if pattern is None:
        return layer.files()
    matches = _matcher(pattern)
    return (entry for entry in layer.files() if matches(entry.path))


def _by_age(opened: Opened) -> list[Layer]:
    """Return all layers, the oldest first."""
    return sorted(opened.store.map().values(), key=lambda layer: (layer.created_at, layer.chain_id))


def run_ls_files(args: Any, screen: Screen) -> None:
    with reading(args) as opened:
        layer = opened.layer(args.layer)
        found = _print(_chosen(layer, args.pattern, own=args.own), args, screen, long=args.long)
    if args.pattern is not None and not found:
        raise Failure(f"nothing in {short_id(layer.chain_id)} is called {args.pattern}", Exit.NOT_THERE)


def run_cat(args: Any, screen: Screen) -> None:
    if screen.as_json:
        raise Failure("cat prints the bytes of files, which are not JSON", Exit.USAGE)
    with reading(args) as opened:
        layer = opened.layer(args.layer)
        screen.out.flush()
        tree = layer if args.own else layer.merged()
        with open(screen.out.fileno(), "wb", closefd=False) as out:
            for path in args.paths:
                with tree.open(path) as file:
                    while block := file.read(1 << 20):
                        out.write(block)


def run_find(args: Any, screen: Screen) -> None:
    with reading(args) as opened:
        if args.layer is not None:
            entries = list(opened.layer(args.layer).merged().find(args.pattern))
        else:
            matches = _matcher(args.pattern)
            entries = [entry for layer in _by_age(opened) for entry in layer.files() if matches(entry.path)]
    if screen.as_json:
        screen.json([facts_of(entry) for entry in entries])
    elif args.null:
        screen.names((f"{entry.chain_id} {entry.type} /{entry.path}" for entry in entries), null=True)
    else:
        rows: list[list[Cell]] = [
            [short_id(entry.chain_id), (str(entry.type), "red" if entry.type in ("whiteout", "opaque") else ""),
             screen.size(entry.size) if entry.type == "file" else "", f"/{entry.path}"]
            for entry in entries
        ]  # fmt: skip
        screen.table(("LAYER", "TYPE", ">SIZE", "PATH"), rows)
    if not entries:
        raise Failure(f"no layer holds {args.pattern}", Exit.NOT_THERE)
