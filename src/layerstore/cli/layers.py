"""Layers: ls, show, register, export, release, diff."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from layerstore import (
    ChainID,
    FileEntry,
    Image,
    Layer,
    LayerDoesNotExistError,
    LayerStoreError,
    MergedTree,
    Metadata,
    RWLayer,
    Snapshot,
    StoreInUseError,
    TarStream,
)
from layerstore.cli.exits import Exit, Failure
from layerstore.cli.opening import Opened, id_of, reading, writing
from layerstore.cli.parser import Commands
from layerstore.cli.screen import Cell, Screen
from layerstore.cli.texts import iso_time, short_id
from layerstore.disk.textfile import new_file
from layerstore.ids import is_driver_id

DURABILITIES = ("full", "ordered", "none")


def add(commands: Commands) -> None:
    ls = commands.command(
        "ls", run_ls, "list the layers as a tree",
        more="Each layer is listed below its parent, indented if several stand on one. Writable layers, snapshots and\n"
             "images are listed at their layers.",
        examples=["ls", "ls --no-trunc", "ls --json"])  # fmt: skip
    ls.add_argument("--no-trunc", action="store_true", help="whole ChainIDs")

    commands.command("show", run_show, "print all that is known of a layer", "LAYER",
                            examples=["show 4e596c87bd09", "show debian:12 --json"])  # fmt: skip

    register = commands.command(
        "register", run_register, "store a layer tar and print its ChainID",
        more="The tar may be plain or compressed (gzip, zstd, bzip2, xz, lz4). The layer stays until it is released.",
        examples=["register base.tar", "register app.tar.gz --parent 4e596c87bd09",
                  "register - --parent debian:12 < app.tar"])  # fmt: skip
    register.add_argument("tar", metavar="TAR", help='the layer tar; "-" is standard input')
    register.add_argument("--parent", metavar="LAYER", help="the layer below")
    add_durability(register)

    export = commands.command(
        "export", run_export, "write a layer's tar, byte for byte as it was registered", "LAYER",
        more="The tar is verified: a changed file ends the command with an error, and with -o no file is left behind.",
        examples=["export 4e596c87bd09 -o base.tar", "export debian:12 | tar t",
                  "export app:1 --from debian:12 -o new.tar", "export app:1 --erofs rootfs.erofs"])  # fmt: skip
    export.add_argument("-o", "--output", metavar="FILE", default="-", help='"-" (default) is standard output')
    export.add_argument("--from", dest="below", metavar="LAYER",
                        help="write a new tar of the difference to this ancestor; not verified")  # fmt: skip
    export.add_argument("--erofs", dest="image", metavar="FILE",
                        help="write one EROFS image of the layer with all below it, which a virtual machine "
                             "can boot from")  # fmt: skip

    release = commands.command(
        "release", run_release, "remove layers that nothing needs, and print what was removed", "LAYER+",
        more="A layer stays while something needs it: another layer, a writable layer, an image, or another process.\n"
             "A layer below a removed one is removed too if it was released before.",
        examples=["release 4e596c87bd09", "release --only 4e596c87bd09"])  # fmt: skip
    release.add_argument("--only", action="store_true", help="keep the layers below, also those released before")

    diff = commands.command(
        "diff", run_diff, "compare the file systems of two layers or snapshots", "old:BASE new:BASE",
        more="Lines begin with A (added), D (deleted) or C (changed: content, kind, rights, owner, attributes).\n"
             "Layers are compared by their records. A snapshot has no record: its files are compared.",
        examples=["diff debian:11 debian:12", "diff 4e596c87bd09 7d1f --json"])  # fmt: skip
    counted = diff.add_mutually_exclusive_group()
    counted.add_argument("--times", action="store_true", help="compare times too")
    counted.add_argument("--contents", action="store_true", help="compare kind, rights, owner and content alone")
    add_null(diff)


def add_durability(parser: Any) -> None:
    """Add --durability."""
    told = "full (default): what is stored survives a power cut; ordered: as moby does; none: nothing is synced"
    parser.add_argument("--durability", choices=DURABILITIES, help=told)


def add_null(parser: Any) -> None:
    """Add -0."""
    parser.add_argument("-0", "--null", action="store_true", help="end each line with a NUL, for xargs -0")


_Names = dict[str, list[str]]
_Standing = dict[str, list[RWLayer]]
_Halves = dict[str, set[ChainID]]


def _standing(opened: Opened) -> _Standing:
    """Return the writable layers on each layer, with snapshots between them or not."""
    standing: _Standing = {}
    for rw in opened.rw_layers():
        standing.setdefault(id_of(rw.parent) or "", []).append(rw)
    return standing


def below_of(layer: Layer | RWLayer) -> Iterator[ChainID]:
    """Return the layers below, nearest first."""
    below = layer.parent
    while below:
        yield below.chain_id
        below = below.parent


def _children(opened: Opened, chain_id: str) -> list[str]:
    """Return the layers that stand directly on one."""
    layers = opened.store.map().values()
    return sorted(str(layer.chain_id) for layer in layers if layer.parent and layer.parent.chain_id == chain_id)


# ---- ls -----------------------------------------------------------------------------------------
def run_ls(args: Any, screen: Screen) -> None:
    with reading(args) as opened:
        layers = opened.store.map()
        images, standing, halves = opened.image_names(), _standing(opened), opened.halves()
        if screen.as_json:
            found = [_facts(layer, images, standing.get(layer.chain_id, []), halves) for layer in layers.values()]
            pairs = [(rw.name, parent) for parent, held in standing.items() for rw in held]
            writable = [{"name": name, "parent": parent or None} for name, parent in sorted(pairs)]
            screen.json({"layers": found, "writable": writable})
            return
        above: list[Snapshot | RWLayer] = [*opened.store.snapshots(), *itertools.chain.from_iterable(standing.values())]
        rows = list(_Tree(screen, layers, images, above, halves, whole=args.no_trunc).rows())
        titles = ("LAYER", ">SIZE", ">WITH BELOW", "AGE", *["DRIVERS"] * (len(halves) > 1), "IMAGES")
        screen.table(titles, rows, none=f"no layers in {opened.store.root}")


def _drivers_of(layer: Layer, halves: _Halves) -> list[str]:
    return [name for name, chains in halves.items() if layer.chain_id in chains]


def _facts(layer: Layer, images: _Names, standing: list[RWLayer], halves: _Halves) -> dict[str, Any]:
    made = layer.created_at
    return {
        "chain_id": layer.chain_id,
        "diff_id": layer.diff_id,
        "parent": layer.parent.chain_id if layer.parent else None,
        "diff_size": layer.diff_size,
        "size": layer.size,
        "cache_id": layer.cache_id,
        "drivers": _drivers_of(layer, halves),
        "created": iso_time(made) if made else None,
        "images": images.get(layer.chain_id, []),
        "writable": [rw.name for rw in standing],
    }


_Node = Layer | Snapshot | RWLayer


class _Tree:
    """The rows of `ls`: each layer and snapshot below what it stands on, the oldest first."""

    def __init__(
        self, screen: Screen, layers: dict[ChainID, Layer], images: _Names, above: Sequence[Snapshot | RWLayer],
        halves: _Halves, *, whole: bool,
    ) -> None:  # fmt: skip
        self._screen, self._images, self._halves, self._whole = screen, images, halves, whole
        self._made = {chain: layer.created_at for chain, layer in layers.items()}
        self._standing: dict[str, list[_Node]] = {}
        for one in above:
            below = one.base if isinstance(one, RWLayer) else one.parent
            self._standing.setdefault(id_of(below) or "", []).append(one)
        for chain in sorted(layers, key=lambda chain: (self._made[chain], chain)):
            self._standing.setdefault(id_of(layers[chain].parent) or "", []).append(layers[chain])
        self._branch, self._last, self._on, self._none = screen.branches()

    def rows(self) -> Iterator[list[Cell]]:
        """Return the rows, from the base layers up."""
        grounded = self._standing.get("", [])
        for node in sorted(grounded, key=lambda node: not isinstance(node, Layer)):
            yield self._row("", node)
            yield from self._above(node, "")

    def _above(self, top: _Node, before: str) -> Iterator[list[Cell]]:
        # With a stack of its own: layers stand up to 125 high, snapshots higher.
        todo = self._on_top(top, before)
        while todo:
            before, last, node = todo.pop()
            yield self._row(before + (self._last if last else self._branch), node)
            above = before + (self._none if last else self._on)
            on_top = self._on_top(node, above)
            # A line of descent goes straight on: what stands alone on the last one is drawn below it.
            todo += self._on_top(node, before) if last and len(on_top) == 1 else on_top

    def _on_top(self, node: _Node, before: str) -> list[tuple[str, bool, _Node]]:
        """Return what stands on a layer or snapshot, the last first."""
        found = [] if isinstance(node, RWLayer) else self._standing.get(id_of(node) or "", [])
        return [(before, at == 0, what) for at, what in enumerate(reversed(found))]

    def _row(self, drawn: str, node: _Node) -> list[Cell]:
        screen = self._screen
        if isinstance(node, Snapshot):
            name, made = node.id if self._whole else short_id(node.id), node.created.timestamp()
            return self._cells((f"{drawn}{name} (snapshot of {node.box})", "green"), age=screen.age(made))
        if isinstance(node, RWLayer):
            name, made = node.name, node.created_at
            if not self._whole and is_driver_id(name):        # what dockerd calls a container
                name = short_id(name)
            return self._cells((f"{drawn}{name} (writable)", "green"), age=screen.age(made) if made else "")
        name, made = node.chain_id if self._whole else short_id(node.chain_id), self._made[node.chain_id]
        images = ", ".join(self._images.get(node.chain_id, []))
        age = screen.age(made) if made else ""
        sizes = screen.size(node.diff_size), screen.size(node.size)
        return self._cells(drawn + name, *sizes, age, ", ".join(_drivers_of(node, self._halves)), (images, "cyan"))

    def _cells(
        self, name: Cell, size: str = "", below: str = "", age: str = "", drivers: str = "", images: Cell = ""
    ) -> list[Cell]:
        return [name, size, below, age, *[drivers] * (len(self._halves) > 1), images]


# ---- show ---------------------------------------------------------------------------------------
def run_show(args: Any, screen: Screen) -> None:
    with reading(args) as opened:
        layer = opened.layer(args.layer)
        standing = _standing(opened).get(layer.chain_id, [])
        facts = _facts(layer, opened.image_names(), standing, opened.halves())
        below = list(below_of(layer))
        above = _children(opened, layer.chain_id)
        found = layer.descriptor
        tar_size, directories = None, {}
        with contextlib.suppress(OSError, LayerStoreError):       # `verify` says what is wrong with a damaged one
            directories = layer.metadata()
            with layer.tar_stream() as stream:
                tar_size = stream.size
        facts |= {
            "tar_size": tar_size, "depth": len(below) + 1, "below": below, "above": above,
            "descriptor": found._asdict() if found else None, "directories": directories,
        }  # fmt: skip
    if screen.as_json:
        screen.json(facts)
        return
    pairs: list[tuple[str, Cell]] = [
        ("ChainID", layer.chain_id), ("DiffID", layer.diff_id), ("size", screen.size(layer.diff_size)),
        ("with below", screen.size(layer.size)), ("tar", "?" if tar_size is None else screen.size(tar_size)),
        ("registered", facts["created"] or "?"), ("depth", str(facts["depth"])),
    ]  # fmt: skip
    if len(facts["drivers"]) > 1:
        pairs.append(("drivers", ", ".join(facts["drivers"])))
    pairs += [("below", chain) for chain in below] + [("above", chain) for chain in facts["above"]]
    pairs += [("writable", name) for name in facts["writable"]] + [("image", name) for name in facts["images"]]
    if found:
        pairs.append(("blob", f"{found.digest}, {screen.size(found.size)}, {found.media_type}"))
    pairs += [(key, value) for key, value in facts["directories"].items() if key in ("Layer", "UpperDir", "MergedDir")]
    screen.pairs(pairs)


# ---- register, export ---------------------------------------------------------------------------
def source_of(name: str) -> Any:
    """Return what register() takes for a name on a command line; "-" is standard input."""
    if name != "-":
        return name
    if sys.stdin is None or os.isatty(sys.stdin.fileno()):
        raise Failure("a tar is needed on standard input, which is a terminal", Exit.USAGE)
    return sys.stdin.fileno()


def run_register(args: Any, screen: Screen) -> None:
    source = source_of(args.tar)
    with writing(args) as opened:
        parent = opened.find(args.parent) if args.parent is not None else ""
        with screen.progress("register") as progress:
            layer = opened.store.register(source, parent, progress=progress, durability=args.durability)
    tell_layer(layer, screen)


def tell_layer(layer: Layer, screen: Screen) -> None:
    """Print a layer that was just made, or was there already."""
    note = f"{screen.size(layer.diff_size)} in files" if layer.is_new else "known already"
    screen.result({
        "chain_id": layer.chain_id, "diff_id": layer.diff_id, "size": layer.size, "diff_size": layer.diff_size,
        "parent": layer.parent.chain_id if layer.parent else None, "new": layer.is_new,
    }, [layer.chain_id], note)  # fmt: skip


def _export_image(args: Any, screen: Screen) -> None:
    if args.below is not None or args.output != "-":
        raise Failure("--erofs names the file, and takes all layers: it goes without -o and --from", Exit.USAGE)
    with reading(args) as opened, opened.kept(args.layer) as layer, screen.progress("export") as progress:
        written = layer.export_erofs(args.image, progress=progress)
    facts = {"chain_id": layer.chain_id, "diff_id": layer.diff_id, "output": args.image, "bytes": written}
    tell_written(facts, screen)


def run_export(args: Any, screen: Screen) -> None:
    if args.image is not None:
        _export_image(args, screen)
        return
    if args.output == "-" and screen.as_json:
        raise Failure("--json and a tar cannot both go to standard output: name a file with -o", Exit.USAGE)
    # A tar of a difference may need a mount, which a store for reading only does not make.
    with (reading if args.below is None else writing)(args) as opened:
        below = opened.find(args.below) if args.below is not None else None
        with contextlib.ExitStack() as stack:
            layer = stack.enter_context(opened.kept(args.layer))
            fd = screen.binary("a tar") if args.output == "-" else stack.enter_context(new_file(args.output))
            tar: TarStream = layer.tar_stream() if below is None else layer.tar_stream_from(below)
            stack.enter_context(tar)
            progress = stack.enter_context(screen.progress("export"))
            written = tar.copy_to(fd, progress=progress)
    facts = {"chain_id": layer.chain_id, "diff_id": layer.diff_id, "output": args.output, "bytes": written}
    tell_written(facts, screen)


def tell_written(facts: dict[str, Any], screen: Screen) -> None:
    """Print how many "bytes" were written to "output", a file or "-"."""
    output = facts["output"]
    screen.result(facts, note="" if output == "-" else f"{output}: {screen.size(facts['bytes'])}")


# ---- release ------------------------------------------------------------------------------------
def run_release(args: Any, screen: Screen) -> int:
    removed: list[Metadata] = []
    with writing(args) as opened:
        chains: list[str] = list(dict.fromkeys(opened.find(name) for name in args.layers))
        of_images: dict[str, Image] = {chain: image for image in opened.images.list() for chain in image.layers}
        for chain in chains:
            image = of_images.get(chain)
            if image:
                name = (*image.references, short_id(image.id))[0]
                raise Failure(f"{short_id(chain)} belongs to the image {name}; remove that: layerstore image rm {name}",
                              Exit.IN_USE)  # fmt: skip
        if args.only:
            for layer in [opened.store.map()[ChainID(chain)] for chain in chains]:
                if layer.parent and layer.parent.chain_id not in chains:
                    opened.store.get(layer.parent.chain_id)
        left, before = chains, 0
        while len(left) != before:        # one may stand on another that was named before it
            before = len(left)
            for chain in list(left):
                with contextlib.suppress(StoreInUseError, LayerDoesNotExistError):
                    removed += opened.store.remove(chain)
                    left = [other for other in left if other != chain]
        gone = {item.chain_id for item in removed}
        kept = {chain: _why_kept(opened, chain) for chain in chains if chain not in gone}
    tell_gone(removed, screen, {
        "removed": [{"chain_id": item.chain_id, "diff_id": item.diff_id, "size": item.size,
                     "diff_size": item.diff_size} for item in removed],
        "kept": [{"chain_id": chain, "why": why} for chain, why in kept.items()],
    })  # fmt: skip
    for chain, why in kept.items():
        screen.warn(f"{short_id(chain)} stays: {why}")
    return Exit.IN_USE if kept else Exit.OK


def tell_gone(removed: Sequence[Metadata], screen: Screen, facts: Any = None) -> None:
    """Print facts as JSON if that is asked for, else one line per layer that was removed."""
    screen.result(facts, [f"removed {item.chain_id}  {screen.size(item.diff_size)}" for item in removed])


def _why_kept(opened: Opened, chain: str) -> str:
    needed = [f"the layer {short_id(above)}" for above in _children(opened, chain)]
    needed += [f"the writable layer {name}" for name in opened.store.mounts(on=chain)]
    if not needed:
        return "another process uses it"
    return f"on it stands {', '.join(needed[:3])}{' and others' if len(needed) > 3 else ''}"


# ---- diff ---------------------------------------------------------------------------------------
def run_diff(args: Any, screen: Screen) -> None:
    with reading(args) as opened:
        old, new = opened.parent(args.old), opened.parent(args.new)
        chains = opened.store.names()[0]
        if old in chains and new in chains and not args.contents:
            found = _by_records(opened.store.get(old), opened.store.get(new), times=args.times)
        else:
            changes = opened.store.diff(old, new, contents=not args.times)
            found = [{"kind": str(change.kind), "path": change.path} for change in changes]
    screen.result(found, (f"{change['kind']} {change['path']}" for change in found), null=args.null)


def _by_records(old: Layer, new: Layer, *, times: bool) -> list[dict[str, Any]]:
    trees = old.merged(), new.merged()
    was = {entry.path: entry for entry in trees[0].files()}
    found: list[dict[str, Any]] = []
    for entry in trees[1].files():
        before = was.pop(entry.path, None)
        what = _differences(before, entry, times=times) if before else []
        if before and not what and _is_in_doubt(before, entry):
            what = ["content"] * (not _is_same(*trees, entry.path))
        if before is None or what:
            found.append({"kind": "C" if before else "A", "path": f"/{entry.path}", "what": what})
    found += [{"kind": "D", "path": f"/{path}", "what": []} for path in was]
    found.sort(key=lambda change: os.fsencode(change["path"]).split(b"/"))
    return found


def _is_in_doubt(old: FileEntry, new: FileEntry) -> bool:
    """Return True if the records do not tell whether two files of one size have the same bytes."""
    same = (old.chain_id, old.offset) == (new.chain_id, new.offset) and old.offset is not None
    return old.type == "file" and old.size > 0 and None in (old.crc, new.crc) and not same


def _is_same(old: MergedTree, new: MergedTree, path: str) -> bool:
    with old.open(path) as one, new.open(path) as other:
        while block := one.read(1 << 20):
            if other.read(len(block)) != block:
                return False
        return not other.read(1)


def _differences(old: FileEntry, new: FileEntry, *, times: bool) -> list[str]:
    """Say in what two entries of one path differ, as far as their records tell."""
    if old.type != new.type:
        return ["type"]
    crcs = old.crc != new.crc and None not in (old.crc, new.crc)
    looks = {
        "content": old.size != new.size or crcs,
        "link": old.type == "symlink" and old.link != new.link,
        "device": old.device != new.device,
        "mode": old.mode != new.mode,
        "owner": (old.uid, old.gid) != (new.uid, new.gid),
        "xattrs": dict(old.xattrs) != dict(new.xattrs),
        "time": times and old.type != "directory" and old.mtime_ns != new.mtime_ns,
    }
    return [name for name, differs in looks.items() if differs]
