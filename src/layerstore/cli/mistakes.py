"""Mistakes: unknown words of a command line, and what was probably meant.

Enters: the parser of all commands and the words. Leaves: the words, divided, or a Failure that names the word, similar
ones, and the help of the command. argparse finds the rest.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence

from layerstore.cli.exits import Exit, Failure
from layerstore.cli.parser import Parser

_MOST = 3
# Words behind these are ignored.
_ENDS = ("-h", "--help", "--version")
# Names that other tools, mainly docker, have for these commands.
_OTHER_WORDS = {
    "checkpoint": "rw snapshot", "clone": "rw fork", "containers": "rw ls", "delete": "rm", "del": "rm", "df": "usage",
    "du": "usage", "exec": "rw run", "extract": "unpack", "images": "image ls", "import": "register", "list": "ls",
    "ps": "rw ls", "remove": "rm", "reset": "rw rollback", "restore": "rw rollback", "rmi": "image rm",
    "snapshots": "snapshot ls", "tree": "ls", "umount": "unmount", "files": "ls-files", "fsck": "verify",
}  # fmt: skip


def check_words(parser: Parser, words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Look for unknown commands and options. Raises Failure for the first one.

    Returns the words of this command line, and those of another program's that begins in it, whose options are its own.
    """
    rest, plain = iter(enumerate(words)), 0
    options_over = False
    for at, word in rest:
        if word == "--" and not options_over:
            if plain == parser.command_behind:
                return words[:at], words[at + 1 :]
            options_over = True
        elif word in _ENDS and not options_over:
            break
        elif word.startswith("-") and word != "-" and not options_over:
            _check_option(parser, word, rest)
        else:
            below = parser.commands
            if not below:
                if plain == parser.command_behind:
                    return words[:at], words[at:]
                plain += 1
                continue
            if word not in below:
                raise _unknown(parser, f"there is no command {word!r}", _commands_like(parser, word))
            parser = below[word]
    return words, ()


def _check_option(parser: Parser, word: str, rest: Iterator[tuple[int, str]]) -> None:
    """Check one word that begins with "-", and take its value from the rest. Raises Failure if it is unknown."""
    options = {name: action for action in parser.arguments() for name in action.option_strings}
    name, equals, _ = word.partition("=")
    if name in options:
        if options[name].nargs != 0 and not equals:
            next(rest, None)
        return
    if not word.startswith("--"):
        for at, letter in enumerate(word[1:], 1):           # several of one letter, the last perhaps with its value
            action = options.get(f"-{letter}")
            if action is None:
                break
            if action.nargs != 0:
                if at == len(word) - 1:
                    next(rest, None)
                return
        else:
            return
    long = [one for one in options if one.startswith("--")]
    raise _unknown(parser, f"there is no option {name!r}", _like(name, long))


def _unknown(parser: Parser, what: str, meant: Sequence[str]) -> Failure:
    guess = f": did you mean {' or '.join(meant)}?" if meant else ""
    return Failure(f"{what}{guess} (see: {parser.prog} --help)", Exit.USAGE)


def _like(word: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(word.lower(), list(known), _MOST, 0.6)


def _commands_like(parser: Parser, word: str) -> list[str]:
    """Return the commands that may be meant: of this name in a group, as other tools call them, or spelled alike."""
    below = parser.commands
    deeper = [f"{family} {name}" for family, one in below.items() for name in one.commands if name == word]
    other = _OTHER_WORDS.get(word, "")
    if deeper or not (other and _is_command(parser, other.split())):
        return deeper or _like(word, below)
    return [other]


def _is_command(parser: Parser, words: Sequence[str]) -> bool:
    for word in words:
        below = parser.commands
        if word not in below:
            return False
        parser = below[word]
    return True
