"""main(): parse, run, and end with one line and an exit code, never with a traceback."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from layerstore.cli.commands import build, parse
from layerstore.cli.completion import print_words
from layerstore.cli.exits import Exit, code_of, sentence
from layerstore.cli.parser import PROGRAM
from layerstore.cli.screen import Screen
from layerstore.errors import readable

DEBUG_VARIABLE = "LAYERSTORE_DEBUG"
# What the completion scripts call: it prints candidates and never complains.
WORDS_COMMAND = "__words"


class _Log(logging.Handler):
    """Show what the library logs as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        text = readable(" ".join(record.getMessage().splitlines()))
        sys.stderr.write(f"{PROGRAM}: {record.levelname.lower()}: {text}\n")


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Show a warning of the library as a note."""
    sys.stderr.write(f"{PROGRAM}: warning: {readable(str(message))}\n")


class _TerminatedError(BaseException):
    """SIGTERM came: what was begun is undone on the way out."""


def _on_sigterm(_signum: int, _frame: object) -> NoReturn:
    raise _TerminatedError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; give its exit code.

    argv   without the program's name; None: sys.argv
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        return Exit.BROKEN_PIPE
    except KeyboardInterrupt:
        return _end("interrupted", Exit.INTERRUPTED)
    except _TerminatedError:
        return _end("terminated", Exit.TERMINATED)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        return _end(sentence(error), code_of(error))


def _end(text: str, code: Exit) -> int:
    try:
        sys.stderr.write(f"{PROGRAM}: {text}\n")
        sys.stderr.flush()
    except OSError:
        pass                                  # nobody is left to be told
    return code


def _forget_output() -> None:
    """Whoever read standard output has gone: what is still buffered must not complain at the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _run(argv: Sequence[str]) -> int:
    if argv[:1] == [WORDS_COMMAND]:
        return print_words(build(), argv[1:])
    try:
        args = parse(argv)
    except SystemExit as end:                 # --help, --version
        return int(end.code or 0)
    screen = Screen(as_json=args.json, in_bytes=args.bytes, quiet=args.quiet, color=args.color)
    logger, handler = logging.getLogger("layerstore"), _Log()
    before, showing = logger.level, warnings.showwarning
    warnings.showwarning = _show_warning
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if args.verbose else logging.ERROR if args.quiet else logging.WARNING)
    try:
        code: int = args.run(args, screen)
        return code
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        warnings.showwarning = showing


def _open_standard_files() -> None:
    """Where the caller closed one of the three, the next file opened would take its number, and what is printed."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def program() -> NoReturn:
    """Be the program: main(), with SIGTERM turned into an orderly end."""
    _open_standard_files()
    signal.signal(signal.SIGTERM, _on_sigterm)
    sys.exit(main())
