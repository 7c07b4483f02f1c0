"""All commands: the parser of the whole command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from layerstore import __version__
from layerstore.cli import (
    bench,
    completion,
    contents,
    convert,
    doctor,
    health,
    host,
    images,
    layers,
    pack,
    snapshots,
    writable,
)
from layerstore.cli.exits import MEANINGS
from layerstore.cli.mistakes import check_words
from layerstore.cli.parser import DEFAULTS, PROGRAM, Commands, Parser, common_options, help_of

_EPILOG = """\
a LAYER is named by its ChainID, by a unique beginning of it (with or without "sha256:"), or by an image: debian:12
a SNAPSHOT is named by its id, or by a unique beginning of it; a BASE is a LAYER or a SNAPSHOT

environment:
  LAYERSTORE_ROOT     the store, if --root is not given
  LAYERSTORE_DEBUG=1  tracebacks instead of one line
  NO_COLOR=1          no colours

exit codes:
"""


def build() -> Parser:
    """Return the parser of all commands. Its result has `run`, the command."""
    common = common_options()
    codes = "".join(f"  {code.value:>3}  {meaning}\n" for code, meaning in MEANINGS.items())
    parser = Parser(
        prog=PROGRAM, parents=[common], formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Docker's layer store: store layer tars, read them back bit for bit, mount them as file systems.",
        epilog=_EPILOG + codes, allow_abbrev=False,
    )  # fmt: skip
    parser.set_defaults(run=help_of(parser), parser=parser)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = Commands(parser, "commands", common)
    families = (
        host, layers, pack, contents, writable, snapshots, images, convert, health, doctor, bench, completion,
    )  # fmt: skip
    for family in families:
        family.add(commands)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. Raises Failure for a wrong one, SystemExit behind --help and --version."""
    parser = build()
    words, command = check_words(parser, argv)
    # argparse would drop a "--" of the command: one word stands for it.
    args, unknown = parser.parse_known_args([*words, "command"] if command else words)
    if command:
        args.argv = list(command)
    if unknown:
        args.parser.error(f"too many arguments: {' '.join(unknown)}")
    for name, value in DEFAULTS.items():
        if not hasattr(args, name):
            setattr(args, name, value)
    return args
