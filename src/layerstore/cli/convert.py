"""convert: layers of one driver become layers of another one, on the same root."""

from __future__ import annotations

from typing import Any

from layerstore import CorruptLayerError
from layerstore.cli.exits import Exit, Failure, sentence
from layerstore.cli.opening import Opened, writing
from layerstore.cli.parser import Commands
from layerstore.cli.screen import Screen
from layerstore.cli.texts import short_id
from layerstore.drivers import registry


def add(commands: Commands) -> None:
    first, last = (*registry.DRIVERS,)[0], (*registry.DRIVERS,)[-1]
    convert = commands.command(
        "convert", run_convert, "make layers, with all below them, layers of another driver too", "LAYER*",
        more="Each layer is registered from its tar, in the other half of the same root, with the same ChainID. What\n"
             "is there already is left as it is, and the layers converted from stay. Prints what was made.",
        examples=[f"convert debian:12 --to {last}", f"--driver {last} convert --all --to {first}"])  # fmt: skip
    convert.add_argument("--all", action="store_true", help="all layers of the store")
    convert.add_argument("--to", choices=[*registry.DRIVERS], required=True, help="the other driver")


def _asked(opened: Opened, args: Any) -> list[str]:
    """Return the ChainIDs that are named, or of all layers that no other one stands on."""
    if not args.all:
        return list(dict.fromkeys(opened.find(name) for name in args.layers))
    layers = opened.store.map()
    below = {layer.parent.chain_id for layer in layers.values() if layer.parent}
    return sorted(chain for chain in layers if chain not in below)


def run_convert(args: Any, screen: Screen) -> int:
    if bool(args.layers) == args.all:
        raise Failure("name layers, or --all", Exit.USAGE)
    made: list[str] = []
    damaged: dict[str, str] = {}
    with writing(args) as opened, screen.progress("convert") as progress:
        for chain in _asked(opened, args):
            try:
                made += opened.store.convert(chain, args.to, progress=progress)
            except CorruptLayerError as err:
                if not args.all:
                    raise
                damaged[chain] = sentence(err)
        came_from = opened.store.driver_name()
    facts = {"from": came_from, "to": args.to, "made": made, "damaged": damaged}
    counted = f"{len(made)} layer{'' if len(made) == 1 else 's'} made"
    screen.result(facts, made, counted if made else "all are there already")
    for chain, why in damaged.items():
        screen.warn(f"{short_id(chain)} is not converted: {why}")
    return Exit.FAILED if damaged else Exit.OK
