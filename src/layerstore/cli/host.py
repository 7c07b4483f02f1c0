"""The store itself: init, info, usage."""

from __future__ import annotations

import os
from typing import Any

from layerstore import Store, __version__, build_info
from layerstore.cli.opening import is_store, reading, refuse_dockerd, root_of
from layerstore.cli.parser import Commands
from layerstore.cli.screen import Cell, Screen
from layerstore.disk import dockerd


def add(commands: Commands) -> None:
    commands.command("init", run_init, "make a store; harmless where there is one",
                     examples=["init", "--root /srv/layers init"])  # fmt: skip
    commands.command("info", run_info, "say what a store holds and what it stands on", examples=["info", "info --json"])
    commands.command("usage", run_usage, "say how much disk a store uses, and for what",
                     more="Bytes of blocks on the disk. What is shared counts once.",
                     examples=["usage", "usage --json"])  # fmt: skip


def run_init(args: Any, screen: Screen) -> None:
    root = root_of(args)
    refuse_dockerd(root)
    new = not is_store(root, args.driver)
    if new:
        os.makedirs(os.path.dirname(root), exist_ok=True)
    with Store(root, driver=args.driver) as store:
        driver = store.driver_name()
    note = f"a new store, {driver}" if new else "there is a store already"
    screen.result({"root": root, "driver": driver, "new": new}, [root], note)


def run_info(args: Any, screen: Screen) -> None:
    with reading(args) as opened:
        store, layers = opened.store, opened.store.map()
        facts: dict[str, Any] = {
            "root": store.root, "driver": store.driver_name(),
            "drivers": [*opened.halves()], "driver_status": dict(store.driver_status()),
            "layers": len(layers), "unreadable_layers": len(store.names()[0]) - len(layers),
            "size": sum(layer.diff_size for layer in layers.values()),
            "writable_layers": len(store.mounts()), "images": len(opened.images.list()),
        }  # fmt: skip
    facts["dockerd"] = dockerd.locked_database(store.root)
    facts |= {"libraries": build_info(), "version": __version__}
    if screen.as_json:
        screen.json(facts)
        return
    pairs: list[tuple[str, Cell]] = [
        ("root", facts["root"] + _several(facts["drivers"])), ("driver", facts["driver"]),
        ("layers", str(facts["layers"])), ("size", screen.size(facts["size"])),
        ("writable layers", str(facts["writable_layers"])), ("images", str(facts["images"])),
    ]  # fmt: skip
    if facts["unreadable_layers"]:
        pairs.append(("unreadable", (f"{facts['unreadable_layers']}; see: layerstore verify", "red")))
    if facts["dockerd"]:
        pairs.append(("dockerd", (f"is running on it ({facts['dockerd']}): reading only", "yellow")))
    pairs += [(name, value) for name, value in facts["driver_status"].items()]
    pairs += [(name, value) for name, value in facts["libraries"].items()]
    pairs.append(("layerstore", facts["version"]))
    screen.pairs(pairs)


def _several(drivers: list[str]) -> str:
    """Return what stands behind the root in the first line, where it has several drivers."""
    return f" (has several drivers: {', '.join(drivers)})" if len(drivers) > 1 else ""


def run_usage(args: Any, screen: Screen) -> None:
    with reading(args) as opened:
        usage = opened.store.usage()
    if screen.as_json:
        screen.json(usage._asdict())
        return
    told = {"layers": "layers", "writable": "writable layers", "snapshots": "snapshots", "orphans": "unowned",
            "reclaimable": "reclaimable"}  # fmt: skip
    screen.pairs((told.get(name, name), screen.size(size)) for name, size in usage._asdict().items())
