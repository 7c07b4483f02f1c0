"""Writable layers: rw create, ls, mount, unmount, holders, changes, size, commit, rm. Others add their own to `rw`.

A mount outlives the process that made it, and the next one finds it: it ends with `rw unmount`, `rw rm` or a reboot.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import Any

from layerstore import (
    Change,
    CreateRWLayerOpts,
    LayerDoesNotExistError,
    LayerStoreError,
    Metadata,
    ReadOnlyStoreError,
    RWLayer,
    StoreInUseError,
)
from layerstore.cli import running, snapshots
from layerstore.cli.exits import Exit, Failure
from layerstore.cli.layers import add_durability, add_null, below_of, tell_gone, tell_layer
from layerstore.cli.opening import Opened, checked_name, id_of, reading, writing
from layerstore.cli.parser import Commands
from layerstore.cli.screen import Cell, Screen
from layerstore.cli.texts import iso_time, short_id


def add(commands: Commands) -> None:
    rw = commands.family("rw", "writable layers: create, mount, compare, commit, remove",
                         examples=["rw create box debian:12", "rw mount box", "rw changes box",
                                   "rw commit box", "rw rm --force box"])  # fmt: skip
    create = rw.command("create", run_create, "create a writable layer on a layer or snapshot, or on an empty tree",
                        examples=["rw create box debian:12", "rw create box 4e596c87bd09 --size 10G"])  # fmt: skip
    create.add_argument("name", metavar="NEW_NAME", help="its name")
    create.add_argument("base", metavar="BASE", nargs="?", help="the layer, image or snapshot below")
    create.add_argument("--size", metavar="SIZE", help="what may be written, for example 10G; only on xfs with pquota")
    add_durability(create)

    rw.command("ls", run_ls, "list the writable layers", examples=["rw ls", "rw ls --json"])

    mount = rw.command("mount", run_mount, "mount one and print the path", "NAME",
                       more="It stays mounted after this command, until `rw unmount`. Mounting twice is harmless.",
                       examples=["rw mount box"])  # fmt: skip
    mount.add_argument("--label", metavar="CONTEXT", default="", help="SELinux label of the whole mount")

    unmount = rw.command("unmount", run_unmount, "unmount one; what was written stays", "NAME",
                         examples=["rw unmount box"])  # fmt: skip
    unmount.add_argument("--lazy", action="store_true",
                         help="detach it although processes are inside; until they end it cannot be mounted again")

    running.add_to_writable(rw)

    rw.command("holders", run_holders, "list the processes that use a mounted one", "NAME",
               more="A PID of 0 is the kernel itself, or a mount that no process uses.",
               examples=["rw holders box", "rw holders box --json"])  # fmt: skip

    changes = rw.command(
        "changes", run_changes, "list what differs from the layer below", "NAME",
        more="Lines begin with A (added), C (changed) or D (deleted).",
        examples=["rw changes box", "rw changes box --since 7d1f"])  # fmt: skip
    changes.add_argument("--since", metavar="BASE", help="since this snapshot or layer, of those below")
    add_null(changes)

    rw.command("size", run_size, "print how many bytes its own files have", "NAME", examples=["rw size box --bytes"])

    commit = rw.command("commit", run_commit, "store its present contents as a layer, and print the ChainID", "NAME",
                        more="The writable layer stays, on its old parent. What the layer's tar leaves out is printed.",
                        examples=["rw commit box", "rw commit box --keep all"])  # fmt: skip
    commit.add_argument("--keep", choices=("docker", "all"), default="docker",
                        help="docker: the tar that Docker would make; all: also extended attributes, ACLs, nanoseconds")
    commit.add_argument("--marks", choices=("refuse", "skip"), default="refuse",
                        help="names that begin with .wh. (they delete in a tar): refuse them, or leave them out")
    add_durability(commit)

    snapshots.add_to_writable(rw)

    remove = rw.command("rm", run_rm, "delete writable layers with everything that was written", "NAME+",
                        examples=["rw rm box", "rw rm --force box other"])  # fmt: skip
    remove.add_argument("-f", "--force", action="store_true", help="delete it even if it is mounted")
    remove.add_argument("--layers", action="store_true", help="also the layers below, unless something else needs them")
    remove.add_argument("--snapshots", action="store_true", help="also the snapshots that were taken of them")


def _mounted_at(rw: RWLayer) -> str | None:
    """Return where it is mounted, or None. A box without a parent needs no mount."""
    try:
        point = rw.metadata().get("MergedDir", "")
    except (OSError, LayerStoreError):                    # its directories are gone: it can be removed all the same
        return None
    return point if point and os.path.ismount(point) else None


def run_create(args: Any, screen: Screen) -> None:
    options = CreateRWLayerOpts(storage_opt={"size": args.size}) if args.size is not None else None
    with writing(args) as opened:
        parent = opened.parent(args.base) if args.base is not None else ""
        rw = opened.store.create_rw_layer(checked_name(args.name), parent, options, durability=args.durability)
        facts = {"name": rw.name, "parent": id_of(rw.parent), "base": id_of(rw.base),
                 "mount_id": opened.store.get_mount_id(rw.name)}  # fmt: skip
    screen.result(facts, [rw.name])


def run_ls(args: Any, screen: Screen) -> None:
    facts: list[dict[str, Any]] = []
    rows: list[list[Cell]] = []
    with reading(args) as opened:
        for rw in opened.rw_layers():
            made, parent = rw.created_at, id_of(rw.parent)
            base, size, mounted = parent, None, None
            with contextlib.suppress(OSError, LayerStoreError):       # `verify` says what is wrong with it
                base, size, mounted = id_of(rw.base), rw.size(), _mounted_at(rw)
            facts.append({"name": rw.name, "parent": parent, "base": base, "size": size, "mounted": mounted,
                          "created": iso_time(made) if made else None})  # fmt: skip
            rows.append([(rw.name, "green"), short_id(parent) if parent else "-",
                         short_id(base) if base and base != parent else "-", "?" if size is None else screen.size(size),
                         screen.age(made) if made else "", mounted or "-"])  # fmt: skip
    titles = ["NAME", "ON LAYER", "SNAPSHOT", ">SIZE", "AGE", "MOUNTED AT"]
    if all(row[2] == "-" for row in rows):                # that column is there for boxes on snapshots
        titles, rows = titles[:2] + titles[3:], [row[:2] + row[3:] for row in rows]
    screen.table(titles, rows, facts=facts, none="no writable layers")


def run_mount(args: Any, screen: Screen) -> None:
    with writing(args) as opened:
        path = opened.rw_layer(args.name).mount(args.label)
    screen.result({"name": args.name, "path": path}, [path])


def run_unmount(args: Any, screen: Screen) -> None:
    with writing(args) as opened:
        rw = opened.rw_layer(args.name)
        before = _mounted_at(rw)
        rw.unmount(lazy=args.lazy)
        if _mounted_at(rw):
            raise Failure(f"another process uses the mount of {args.name}: it goes when that has ended", Exit.IN_USE)
    note = f"{args.name} was not mounted" if before is None else ""
    screen.result({"name": args.name, "unmounted": before is not None}, note=note)


def run_holders(args: Any, screen: Screen) -> None:
    with reading(args) as opened:
        found = opened.rw_layer(args.name).holders()
    facts = [holder._asdict() for holder in found]
    rows: list[list[Cell]] = [[str(one.pid), one.command, ",".join(one.uses), " ".join(one.paths)] for one in found]
    screen.table((">PID", "COMMAND", "USES", "PATHS"), rows, facts=facts, none=f"no process uses {args.name}")


def _changes(opened: Opened, args: Any) -> list[Change]:
    since = None if args.since is None else opened.parent(args.since)
    return opened.rw_layer(args.name).changes(since)


def run_changes(args: Any, screen: Screen) -> None:
    try:
        with reading(args) as opened:
            changes = _changes(opened, args)
    except ReadOnlyStoreError:                            # both trees must be compared, and mounted for it
        with writing(args) as opened:
            changes = _changes(opened, args)
    facts = [{"kind": str(change.kind), "path": change.path} for change in changes]
    screen.result(facts, map(str, changes), null=args.null)


def run_size(args: Any, screen: Screen) -> None:
    with reading(args) as opened:
        size = opened.rw_layer(args.name).size()
    screen.result({"name": args.name, "size": size}, [screen.size(size)])


def run_commit(args: Any, screen: Screen) -> None:
    with writing(args) as opened:
        rw = opened.rw_layer(args.name)
        with screen.progress("commit") as progress:
            layer = rw.commit(keep=args.keep, marks=args.marks, durability=args.durability, progress=progress)
    tell_layer(layer, screen)


def run_rm(args: Any, screen: Screen) -> int:
    removed: list[Metadata] = []
    with writing(args) as opened:
        names = list(dict.fromkeys(args.names))
        held = [opened.rw_layer(name) for name in names]
        mounted = [rw.name for rw in held if _mounted_at(rw)]
        if mounted and not args.force:
            raise Failure(f"{mounted[0]} is mounted; unmount it, or use --force", Exit.IN_USE)
        stacks = [list(below_of(rw)) if args.layers else [] for rw in held]
        taken = [one for one in opened.store.snapshots() if one.box in names] if args.snapshots else []
        for rw in held:
            removed += rw.release()
        left = set(opened.store.mounts()).intersection(names)
        for snapshot in taken:
            removed += [] if snapshot.box in left else snapshot.release()
        for chain in itertools.chain.from_iterable(stacks):
            with contextlib.suppress(LayerDoesNotExistError, StoreInUseError):
                removed += opened.store.remove(chain)
    gone = [name for name in names if name not in left]
    facts = {"removed": gone, "layers": [item.chain_id for item in removed], "kept": sorted(left)}
    tell_gone(removed, screen, facts)
    for name in sorted(left):
        screen.warn(f"{name} stays: another process uses it")
    return Exit.IN_USE if left else Exit.OK
