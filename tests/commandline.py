"""The command line as a program of its own, and the parsers of all its commands."""

import sys

from layerstore.cli.commands import build

_WITHOUT_RICH = "import sys; sys.modules['rich'] = None; from layerstore.cli.main import program; program()"


def command(rich: bool = True) -> list[str]:
    """rich   False: as if rich were not installed"""
    return [sys.executable, "-m", "layerstore"] if rich else [sys.executable, "-c", _WITHOUT_RICH]


def every_command(parser=None, path=()):
    """Yield (words, parser) of the program itself, each command, and each that has commands of its own."""
    parser = parser or build()
    yield path, parser
    for name, one in parser.commands.items():
        yield from every_command(one, (*path, name))
