"""The parts of the commands' parsers.

Every family of commands adds its own through Commands, with examples for its help. The metavar of an argument (LAYER,
NAME, IMAGE, ...) says what it names; completion.py uses it too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from layerstore.cli.exits import Exit, Failure
from layerstore.cli.screen import Run, Screen

PROGRAM = "layerstore"

class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise Failure with the code for a wrong command line."""
        raise Failure(f"{message} (see: {self.prog} --help)", Exit.USAGE)


def common_options() -> Parser:
    """Make the options that stand before or behind a command's name."""
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("options of every command")
    group.add_argument("--root", metavar="DIR", help="the store (else LAYERSTORE_ROOT, else /var/lib/layerstore; "
                       "without root's rights: ~/.local/share/layerstore)")  # fmt: skip
    group.add_argument("--json", action="store_true", help="print the result as one JSON document")
    group.add_argument("--bytes", action="store_true", help="sizes as plain numbers of bytes")
    group.add_argument("-q", "--quiet", action="store_true", help="no notes and no progress")
    group.add_argument("-v", "--verbose", action="store_true", help="print what the library logs too")
    group.add_argument("--color", choices=("auto", "always", "never"), help="colours (auto: on a terminal)")
    return common


DEFAULTS: dict[str, Any] = {
    "root": None, "json": False, "bytes": False, "quiet": False, "verbose": False, "color": "auto",
}  # fmt: skip


class Commands:
    """Where a family of commands adds its own."""

    def __init__(self, parser: argparse.ArgumentParser, title: str, common: Parser) -> None:
        """Add below parser, the main one or that of a family."""
        self._common = common
        self._below = parser.add_subparsers(title=title, metavar="COMMAND", parser_class=Parser)
        self.prog = parser.prog

    def command(
        self, name: str, run: Run, short: str, *, more: str = "", examples: Sequence[str] = ()
    ) -> argparse.ArgumentParser:
        """Add one command and return its parser, for its arguments.

        short      what it does, in one line
        more       what its help says besides
        examples   command lines, without the program's name
        """
        parser = self._add(name, short, more, examples)
        parser.set_defaults(run=run, parser=parser)
        return parser

    def family(self, name: str, short: str, *, examples: Sequence[str] = ()) -> Commands:
        """Add a command that has commands of its own."""
        parser = self._add(name, short, "", examples)
        parser.set_defaults(run=help_of(parser), parser=parser)
        return Commands(parser, "commands", self._common)

    def _add(self, name: str, short: str, more: str, examples: Sequence[str]) -> argparse.ArgumentParser:
        described = short[0].upper() + short[1:] + "."
        shown = "examples:\n" + "".join(f"  {PROGRAM} {example}\n" for example in examples)
        return self._below.add_parser(
            name, help=short, description=f"{described}\n\n{more}" if more else described,
            epilog=shown if examples else None, parents=[self._common],
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip


def help_of(parser: argparse.ArgumentParser) -> Run:
    """Return what runs when a command with commands of its own is named alone: it prints its help."""

    def run(_args: Any, screen: Screen) -> int:
        screen.out.write(parser.format_help())
        return Exit.OK

    return run


def subparsers_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a parser's commands, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def arguments_of(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    """Return the options and arguments of a parser, without its commands and hidden ones."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction) and action.help != argparse.SUPPRESS:
            yield action
