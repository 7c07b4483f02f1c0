"""main(): parse, run, and end with one line and an exit code, never with a traceback."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from layerstore.cli.commands import build, parse
from layerstore.cli.completion import print_words
from layerstore.cli.exits import Exit, code_of, sentence
from layerstore.cli.parser import PROGRAM
from layerstore.cli.screen import Screen, closed_at_start
from layerstore.errors import readable
from layerstore.streams.leftout import LeftOutWarning

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


class _EndedError(BaseException):
    """A signal that ends a program arrived: what was begun is undone on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


# What ends a command: Ctrl-C, a service manager, a terminal that is closed.
_ENDS = {
    signal.SIGINT: (Exit.INTERRUPTED, "interrupted"),
    signal.SIGTERM: (Exit.TERMINATED, "terminated"),
    signal.SIGHUP: (Exit.HUNG_UP, "hung up"),
}


def _end_by(number: int, frame: FrameType | None) -> None:
    """End the command at the first signal; later ones must not end what the first one has begun to undo."""
    while frame:
        if frame.f_code is _end_by.__code__:
            return                            # a second one came before the first one had shut it out
        frame = frame.f_back
    for one in _ENDS:
        signal.signal(one, _go_on)
    raise _EndedError(number)


def _go_on(_number: int, _frame: object) -> None:
    pass


# What an error of printing says: the other files' errors have their names.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    argv   without the program's name; None: sys.argv
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        try:
            return _run(argv)
        finally:
            _flush_output()
    except BrokenPipeError:
        _forget_output()
        return Exit.BROKEN_PIPE
    except KeyboardInterrupt:
        return _end("interrupted", Exit.INTERRUPTED)
    except _EndedError as error:
        code, text = _ENDS[signal.Signals(error.number)]
        if code is Exit.HUNG_UP:
            _forget_output()                  # the terminal is gone
        return _end(text, code)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        if isinstance(error, OSError) and error.filename is None and error.errno in _NO_ROOM:
            error.filename = _output_name()   # every other file's error has its name
        return _end(sentence(error), code_of(error))


def _flush_output() -> None:
    """Write what is still buffered, or forget it: the interpreter would complain at its end."""
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = _output_name()
        _forget_output()
        raise


def _output_name() -> str:
    """Name the file that standard output was sent to."""
    try:
        found = os.readlink(f"/proc/self/fd/{sys.stdout.fileno()}")
    except OSError:
        found = ""
    return found if found.startswith("/") else "standard output"


def _end(text: str, code: Exit) -> int:
    try:
        sys.stderr.write(f"{PROGRAM}: {text}\n")
        sys.stderr.flush()
    except OSError:
        pass                                  # there is no reader left
    return code


def _forget_output() -> None:
    """Drop what is still buffered for standard output, so that the exit does not complain."""
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LeftOutWarning)       # it is in the log, which is shown
            return args.run(args, screen) or Exit.OK
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        warnings.showwarning = showing


def _open_standard_files() -> None:
    """Open /dev/null for each closed one of the three: the next file opened would take its number, and the output."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            closed_at_start.add(fd)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def program() -> NoReturn:
    """Be the program: main(), with signals that end it turned into an orderly end."""
    _open_standard_files()
    for number in _ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:      # as nohup and shells set it
            signal.signal(number, _end_by)
    try:
        code = main()
        # The interpreter gives signals their old meaning while it ends.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    except _EndedError as error:              # all was done
        code = _ENDS[signal.Signals(error.number)][0]
    sys.exit(code)
