"""Snapshots: rw snapshot, rollback, fork, squash; snapshot ls, rm, commit.

A snapshot stays until `snapshot rm`. Its id, or a unique beginning of it, names it as a base, as a layer's does:
in rw create, rw rollback, rw changes, diff.
"""

from __future__ import annotations

from typing import Any, Literal

from layerstore import Metadata, Snapshot
from layerstore.cli.layers import add_durability, tell_gone, tell_layer
from layerstore.cli.opening import checked_name, id_of, reading, writing
from layerstore.cli.parser import Commands
from layerstore.cli.screen import Cell, Screen
from layerstore.cli.texts import short_id


def add(commands: Commands) -> None:
    family = commands.family("snapshot", "snapshots of writable layers: list, remove, make layers of them",
                             examples=["snapshot ls", "snapshot commit 7d1f", "snapshot rm 7d1f"])  # fmt: skip
    family.command("ls", run_ls, "list the snapshots, the oldest first", "NAME?",
                   more="With a name, those that were taken of this writable layer.",
                   examples=["snapshot ls", "snapshot ls box --json"])  # fmt: skip
    family.command(
        "rm", run_rm, "release snapshots, and print which layers were removed", "SNAPSHOT+",
        more="The files stay as long as a writable layer or another snapshot stands on them.",
        examples=["snapshot rm 7d1f", "snapshot rm $(layerstore rw snapshot box)"])  # fmt: skip
    commit = family.command(
        "commit", run_commit, "make a layer of one, in place, and print the ChainID", "SNAPSHOT",
        more="Nothing is copied. Snapshots below that are no layers yet become layers first, each one.",
        examples=["snapshot commit 7d1f", "snapshot commit 7d1f --squash"])  # fmt: skip
    commit.add_argument("--squash", action="store_true",
                        help="one new layer of it and all snapshots below; they stay, and files are copied")
    add_durability(commit)


def add_to_writable(rw: Commands) -> None:
    """Add what takes snapshots and goes on from them to the commands of writable layers."""
    snapshot = rw.command(
        "snapshot", run_snapshot, "freeze its present contents, go on above them, and print the snapshot's id", "NAME",
        more="While no process is inside nothing is copied. What a process is inside of is copied instead.",
        examples=["rw snapshot box", "rw snapshot box --error-if-busy"])  # fmt: skip
    snapshot.add_argument("--error-if-busy", action="store_true", help="if a process is inside, take none")
    snapshot.add_argument("--freeze", metavar="DIR", help="a cgroup v2 directory: freeze its processes meanwhile")
    add_durability(snapshot)

    rollback = rw.command(
        "rollback", run_rollback, "drop its contents, and go on from a snapshot, a layer or an image", "NAME to:BASE",
        more="A mounted path stays valid. Everything written since is deleted.",
        examples=["rw rollback box 7d1f", "rw rollback box debian:12", "rw rollback --force box 7d1f"])  # fmt: skip
    rollback.add_argument("-f", "--force", action="store_true",
                          help="although processes are inside: they keep what they see, until they end")
    add_durability(rollback)

    fork = rw.command(
        "fork", run_fork, "create a writable layer with the contents of another one, or of a snapshot",
        "origin:ORIGIN new:NEW_NAME", examples=["rw fork box try-1", "rw fork 7d1f try-1"])  # fmt: skip
    add_durability(fork)

    rw.command("squash", run_squash, "merge the released snapshots below that nothing else stands on", "NAME",
               more="What it shows stays the same. Long stacks of snapshots are merged without being asked, too.",
               examples=["rw squash box"])  # fmt: skip


def _facts(snapshot: Snapshot) -> dict[str, Any]:
    layer = snapshot.layer
    return {
        "id": snapshot.id, "box": snapshot.box, "parent": id_of(snapshot.parent),
        "layer": layer.chain_id if layer else None,
        "created": snapshot.created.isoformat().replace("+00:00", "Z"),
    }  # fmt: skip


def run_ls(args: Any, screen: Screen) -> None:
    facts: list[dict[str, Any]] = []
    rows: list[list[Cell]] = []
    with reading(args) as opened:
        for snapshot in opened.store.snapshots():
            if args.name not in (None, snapshot.box):
                continue
            size, parent = snapshot.size(), id_of(snapshot.parent)
            facts.append({**_facts(snapshot), "size": size})
            rows.append([(short_id(snapshot.id), "green"), snapshot.box, short_id(parent) if parent else "-",
                         screen.size(size), screen.age(snapshot.created.timestamp())])  # fmt: skip
    screen.table(("SNAPSHOT", "OF", "ON", ">SIZE", "AGE"), rows, facts=facts, none="no snapshots")


def run_rm(args: Any, screen: Screen) -> None:
    removed: list[Metadata] = []
    with writing(args) as opened:
        chosen = {snapshot.id: snapshot for snapshot in map(opened.snapshot, args.snapshots)}
        for snapshot in chosen.values():
            removed += snapshot.release()
    tell_gone(removed, screen, {"removed": [*chosen], "layers": [item.chain_id for item in removed]})


def run_commit(args: Any, screen: Screen) -> None:
    with writing(args) as opened:
        layer = opened.snapshot(args.snapshot).commit(squash=args.squash, durability=args.durability)
    tell_layer(layer, screen)


def run_snapshot(args: Any, screen: Screen) -> None:
    with writing(args) as opened:
        busy: Literal["clone", "error"] = "error" if args.error_if_busy else "clone"
        box = opened.rw_layer(args.name)
        snapshot = box.snapshot(busy=busy, freeze=args.freeze, durability=args.durability)
        facts = _facts(snapshot)
    screen.result(facts, [snapshot.id])


def run_rollback(args: Any, screen: Screen) -> None:
    with writing(args) as opened:
        to = opened.parent(args.to)
        opened.rw_layer(args.name).rollback(to, force=args.force, durability=args.durability)
    screen.result({"name": args.name, "to": to})


def run_fork(args: Any, screen: Screen) -> None:
    new = checked_name(args.new)
    with writing(args) as opened:
        origin = opened.origin(args.origin)
        box = origin.fork(new, durability=args.durability)
        facts = {"name": box.name, "base": id_of(box.base), "mount_id": opened.store.get_mount_id(box.name)}
    screen.result(facts, [box.name])


def run_squash(args: Any, screen: Screen) -> None:
    with writing(args) as opened:
        opened.rw_layer(args.name).squash()
    screen.result({"name": args.name})
