"""The parts of the commands' parsers.

Every family of commands adds its own through Commands, with examples for its help. The metavar of an argument (LAYER,
NAME, IMAGE, ...) says what it names; completion.py uses it too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from layerstore.cli.exits import Exit, Failure
from layerstore.cli.screen import Run, Screen
from layerstore.drivers import registry

PROGRAM = "layerstore"


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line.

    commands         the parsers of its commands, by name
    short            what its command does
    command_behind   what follows this many plain words is another program's command line; -1: nothing is
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.commands: dict[str, Parser] = {}
        self.short = ""
        self.command_behind = -1

    def arguments(self) -> list[argparse.Action]:
        """Return its options and arguments, without its commands and hidden ones."""
        return [each for each in self._actions if each.nargs != argparse.PARSER and each.help != argparse.SUPPRESS]

    def error(self, message: str) -> NoReturn:
        """Raise Failure with the code for a wrong command line."""
        raise Failure(f"{message} (see: {self.prog} --help)", Exit.USAGE)


def common_options() -> Parser:
    """Make the options that stand before or behind a command's name."""
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("options of every command")
    group.add_argument("--root", metavar="DIR", help="the store (else LAYERSTORE_ROOT, else /var/lib/layerstore; "
                       "without root's rights: ~/.local/share/layerstore)")  # fmt: skip
    group.add_argument("--driver", choices=[*registry.DRIVERS], help="which half of a root that has several drivers "
                       "(else the first that is there; of a new store, the default one)")  # fmt: skip
    group.add_argument("--json", action="store_true", help="print the result as one JSON document")
    group.add_argument("--bytes", action="store_true", help="sizes as plain numbers of bytes")
    group.add_argument("-q", "--quiet", action="store_true", help="no notes and no progress")
    group.add_argument("-v", "--verbose", action="store_true", help="print what the library logs too")
    group.add_argument("--color", choices=("auto", "always", "never"), help="colours (auto: on a terminal)")
    return common


DEFAULTS: dict[str, Any] = {
    "root": None, "driver": None, "json": False, "bytes": False, "quiet": False, "verbose": False, "color": "auto",
}  # fmt: skip


class Commands:
    """Where a family of commands adds its own."""

    def __init__(self, parser: Parser, title: str, common: Parser) -> None:
        self._common, self._known = common, parser.commands
        self._below = parser.add_subparsers(title=title, metavar="COMMAND", parser_class=Parser)
        self.prog = parser.prog

    def command(
        self, name: str, run: Run, short: str, takes: str = "", *, more: str = "", examples: Sequence[str] = ()
    ) -> Parser:
        """Add one command and return its parser, for its arguments.

        short      what it does, in one line
        takes      its plain arguments: "NAME", "LAYER+" (several, as "layers"), "old:LAYER" (as "old")
        more       what its help says besides
        examples   command lines, without the program's name
        """
        parser = self._add(name, short, more, examples)
        parser.set_defaults(run=run, parser=parser)
        for word in takes.split():
            dest, _, what = word.rpartition(":")
            one = what.rstrip("+*?")
            many: dict[str, Any] = {"nargs": what[-1]} if what != one else {}
            parser.add_argument(dest or one.lower() + ("s" if what[-1] in "+*" else ""), metavar=one, **many)
        return parser

    def family(self, name: str, short: str, *, examples: Sequence[str] = ()) -> Commands:
        """Add a command that has commands of its own."""
        parser = self._add(name, short, "", examples)
        parser.set_defaults(run=help_of(parser), parser=parser)
        return Commands(parser, "commands", self._common)

    def _add(self, name: str, short: str, more: str, examples: Sequence[str]) -> Parser:
        described = short[0].upper() + short[1:] + "."
        shown = "examples:\n" + "".join(f"  {PROGRAM} {example}\n" for example in examples)
        made = self._known[name] = self._below.add_parser(
            name, help=short, description=f"{described}\n\n{more}" if more else described,
            epilog=shown if examples else None, parents=[self._common],
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        made.short = short
        return made


def help_of(parser: argparse.ArgumentParser) -> Run:
    """Return what runs when a command with commands of its own is named alone: it prints its help."""

    def run(_args: Any, screen: Screen) -> int:
        screen.out.write(parser.format_help())
        return Exit.OK

    return run


