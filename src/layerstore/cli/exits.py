"""How a command ends: the exit codes, and what an exception says in one line.

Enters: any exception. Leaves: a sentence that fits one line, and the code.
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum

from layerstore.errors import (
    ActiveMountError,
    AuthenticationError,
    InvalidDigestError,
    InvalidOptionError,
    NotSupportedError,
    ReadOnlyStoreError,
    RegistryError,
    StoreInUseError,
    readable,
)


class Exit(IntEnum):
    """The exit codes; MEANINGS says what each means."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_THERE = 3
    IN_USE = 4
    NOT_SUPPORTED = 5
    DENIED = 6
    TIMED_OUT = 124
    HUNG_UP = 129
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


MEANINGS = {
    Exit.OK: "done; no problem was found",
    Exit.FAILED: "it failed, or problems were found (verify, doctor)",
    Exit.USAGE: "the command line is wrong, or a name in it is ambiguous",
    Exit.NOT_THERE: "no such store, layer, writable layer, image or file; not in the registry",
    Exit.IN_USE: "in use by something else, or the store is read-only (a dockerd runs on it)",
    Exit.NOT_SUPPORTED: "this host, or this user, cannot do it; `layerstore doctor` says more",
    Exit.DENIED: "the registry does not know you, or does not let you",
    Exit.TIMED_OUT: "rw run: the command did not end within --timeout",
    Exit.HUNG_UP: "SIGHUP: the terminal was closed",
    Exit.INTERRUPTED: "Ctrl-C",
    Exit.BROKEN_PIPE: "the reader of the output has gone",
    Exit.TERMINATED: "SIGTERM",
}


class Failure(Exception):  # noqa: N818  what a command ends with need not be an error of the program
    """A command failed: the sentence to print, and the exit code."""

    def __init__(self, text: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(text)
        self.code = code


_USAGE = (InvalidDigestError, InvalidOptionError)
_IN_USE = (ActiveMountError, ReadOnlyStoreError, StoreInUseError)
_IN_USE_ERRNO = (errno.EBUSY, errno.ETXTBSY)


# Advice of the library that names an argument, and the option for it.
OPTIONS_FOR = {
    "or auth=)": "or --user)", "trust who signed it: ca=...": "trust who signed it: --ca FILE",
    "insecure=True allows": "--insecure allows",
}  # fmt: skip


def code_of(error: BaseException) -> Exit:
    """Return the exit code for an exception."""
    if isinstance(error, Failure):
        return error.code
    if isinstance(error, _IN_USE) or (isinstance(error, OSError) and error.errno in _IN_USE_ERRNO):
        return Exit.IN_USE
    if isinstance(error, AuthenticationError):
        return Exit.DENIED
    if isinstance(error, _USAGE):
        return Exit.USAGE
    if isinstance(error, (LookupError, FileNotFoundError)) and not isinstance(error, (KeyError, IndexError)):
        return Exit.NOT_THERE
    if isinstance(error, (NotSupportedError, PermissionError)):
        return Exit.NOT_SUPPORTED
    return Exit.FAILED


def sentence(error: BaseException) -> str:
    """Return in one line what an exception means."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        if isinstance(error.filename, (str, bytes)) and os.fsdecode(error.filename) not in text:
            text = f"{os.fsdecode(error.filename)}: {text}"
    else:
        text = str(error) or type(error).__name__
        for argument, option in OPTIONS_FOR.items() if isinstance(error, RegistryError) else ():
            text = text.replace(argument, option)
    notes: list[str] = getattr(error, "__notes__", [])
    for note in notes:
        if note not in text:
            text += f": {note}"
    return readable(text.replace("\n", "; "))
