"""The health of a store: verify, repair, orphans, gc."""

from __future__ import annotations

from typing import Any

from layerstore import Orphan, Problem, Store
from layerstore.cli.exits import Exit, Failure
from layerstore.cli.layers import source_of
from layerstore.cli.opening import Opened, reading, require_store, writing
from layerstore.cli.parser import Commands
from layerstore.cli.screen import Cell, Screen
from layerstore.cli.texts import short_id


def add(commands: Commands) -> None:
    commands.command(
        "verify", run_verify, "compare what is stored with what was registered", "LAYER*",
        more="Reads every file of the named layers; without a name the whole store, with images and writable layers.\n"
             "Exit code 1: there are problems.",
        examples=["verify", "verify debian:12 --json"])  # fmt: skip

    repair = commands.command(
        "repair", run_repair, "replace what is damaged in a layer, and nothing else", "LAYER",
        more="Without a source, damaged files are taken from other layers that hold the same. For a writable layer,\n"
             "its small files are mended, not its contents.",
        examples=["repair 4e596c87bd09", "repair 4e596c87bd09 base.tar", "repair 4e596c87bd09 --store /mnt/backup",
                  "repair box"])  # fmt: skip
    source = repair.add_mutually_exclusive_group()
    source.add_argument("tar", metavar="TAR", nargs="?", help='the tar it was registered from; "-" is standard input')
    source.add_argument("--store", metavar="DIR", help="another store that has the layer")

    commands.command("orphans", run_orphans, "list unowned files in the store",
                     examples=["orphans", "orphans --json"])  # fmt: skip

    gc = commands.command(
        "gc", run_gc, "remove unowned files",
        more="Layers are never removed: see `release`. No dockerd and no other program may have the store open.",
        examples=["gc --dry-run", "gc"])  # fmt: skip
    gc.add_argument("-n", "--dry-run", action="store_true", help="only print what would be removed")


def _tell_problems(problems: list[Problem], screen: Screen, facts: dict[str, Any], note: str, style: str) -> None:
    rows: list[list[Cell]] = [
        [(problem.kind, "red"), short_id(problem.subject), problem.path or "-", problem.detail] for problem in problems
    ]
    screen.table(("KIND", "OF", "PATH", "WHAT"), rows, facts=facts)
    if not screen.as_json:
        screen.note(note, style)


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def run_verify(args: Any, screen: Screen) -> int:
    with reading(args) as opened, screen.progress("verify") as progress:
        images = 0
        if args.layers:
            chains = list(dict.fromkeys(opened.find(name) for name in args.layers))
            problems = [problem for chain in chains for problem in opened.store.verify(chain, progress=progress)]
            looked = len(chains)
        else:
            problems = opened.store.verify(progress=progress)
            looked = len(opened.store.names()[0])
            images = len(opened.store.images.ids())
    counted = _counted(looked, "layer") + (f" and {_counted(images, 'image')}" if images else "")
    note = f"problems: {len(problems)}; see: layerstore repair --help" if problems else f"{counted}, all as registered"
    facts = {"layers": looked, "problems": [problem._asdict() for problem in problems]}
    _tell_problems(problems, screen, facts, note, "red" if problems else "green")
    return Exit.FAILED if problems else Exit.OK


def _to_repair(opened: Opened, name: str) -> str:
    """Return the ChainID that a name means, or the name of a writable layer, which comes after the layers."""
    try:
        return opened.find(name)
    except Failure:
        if name in opened.store.names()[1]:
            return name
        raise


def run_repair(args: Any, screen: Screen) -> None:
    source = source_of(args.tar) if args.tar is not None else None
    with writing(args) as opened, screen.progress("repair") as progress:
        chain = _to_repair(opened, args.layer)
        if args.store is not None:
            require_store(args.store)
            with Store(args.store, options={"read_only": "true"}) as other:
                problems = opened.store.repair(chain, other, progress=progress)
        else:
            problems = opened.store.repair(chain, source, progress=progress)
    facts = {"chain_id": chain, "mended": [problem._asdict() for problem in problems]}
    _tell_problems(problems, screen, facts, "all mended" if problems else "nothing to mend", "green")


def _tell_orphans(orphans: list[Orphan], screen: Screen, verb: str) -> None:
    rows: list[list[Cell]] = [[orphan.kind, screen.size(orphan.size), orphan.path] for orphan in orphans]
    facts = [orphan._asdict() for orphan in orphans]
    screen.table(("KIND", ">SIZE", "PATH"), rows, facts=facts, none="nothing is left over")
    if rows and not screen.as_json:
        screen.note(f"{verb}: {screen.size(sum(orphan.size for orphan in orphans))} in {len(orphans)}")


def run_orphans(args: Any, screen: Screen) -> None:
    with reading(args) as opened:
        orphans = opened.store.orphans()
    _tell_orphans(orphans, screen, "left over")


def run_gc(args: Any, screen: Screen) -> int:
    with (reading if args.dry_run else writing)(args) as opened:
        found = opened.store.reclaim()
        gone = found if args.dry_run else opened.store.reclaim(dry_run=False)
    _tell_orphans(gone, screen, "would go" if args.dry_run else "gone")
    left = [orphan.path for orphan in found if orphan not in gone]
    for path in left:
        screen.warn(f"{path} could not be removed")
    return Exit.FAILED if left else Exit.OK
