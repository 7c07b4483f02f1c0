"""What is to be run: a command and all that was asked for with it, checked before anything is mounted."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

READ_ONLY = "ro:"


class Bind(NamedTuple):
    """A file or directory outside that is shown inside.

    inside, outside   absolute paths
    read_only         True: not to be written to inside
    is_directory      what the path outside is
    """

    inside: str
    outside: str
    read_only: bool
    is_directory: bool


class Command(NamedTuple):
    """A command, checked.

    argv         program and arguments
    cwd          the working directory inside
    env          the caller's variables
    user         a uid, "uid:gid", a name, or None for root
    timeout      seconds, or None
    network      True: the network of the caller
    binds        in the order in which they are mounted
    input        for its standard input: bytes, a descriptor, or None
    capture      True: its output is returned
    """

    argv: list[str]
    cwd: str
    env: dict[str, str]
    user: int | str | None
    timeout: float | None
    network: bool
    binds: list[Bind]
    input: bytes | int | None
    capture: bool


def checked(
    argv: Sequence[str], *, cwd: str = "/", env: Mapping[str, str] | None = None, user: int | str | None = None,
    timeout: float | None = None, network: bool = False, binds: Mapping[str, str] | None = None,
    input: bytes | int | None = None, capture: bool = True,
) -> Command:  # fmt: skip
    """Check what RWLayer.run() was given. Raises TypeError, ValueError, and OSError for a path outside."""
    if isinstance(argv, (str, bytes)) or not isinstance(argv, Iterable):
        raise TypeError(f"argv is a sequence of str, not {type(argv).__name__}: split the command into its arguments")
    words = [_text(word, "an argument") for word in argv]
    if not words:
        raise ValueError("argv is empty: it needs the program's name")
    if timeout is not None:
        timeout = float(timeout)
        if timeout != timeout:
            raise ValueError("timeout is a number of seconds, not NaN")
    return Command(
        words, _text(cwd, "cwd"), _variables(env), _known_user(user), timeout, bool(network), _binds(binds),
        _standard_input(input), bool(capture),
    )  # fmt: skip


def _standard_input(given: bytes | int | None) -> bytes | int | None:
    """Return what the command reads. The host's /dev/null is None: the command could change it by the descriptor."""
    if given is None or isinstance(given, (bytes, bytearray, memoryview)):
        return given
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"input is bytes or a descriptor, not {type(given).__name__}")
    try:
        found = os.fstat(given)
    except (OSError, OverflowError):
        raise ValueError(f"input: {given} is no open descriptor") from None
    is_null = stat.S_ISCHR(found.st_mode) and found.st_rdev == os.stat(os.devnull).st_rdev
    return None if is_null else given


def _text(value: object, what: str) -> str:
    """Return a str, or a path, that a system call can take."""
    if isinstance(value, (bytes, os.PathLike)):
        value = os.fsdecode(value)
    if not isinstance(value, str):
        raise TypeError(f"{what} is a str, not {type(value).__name__}: {value!r}")
    if "\0" in value:
        raise ValueError(f"{what} has a null byte: {value!r}")
    return value


def _variables(env: Mapping[str, str] | None) -> dict[str, str]:
    if env is None:
        return {}
    if not isinstance(env, Mapping):
        raise TypeError(f"env is a mapping of str to str, not {type(env).__name__}")
    variables = {_text(name, "a variable's name"): _text(value, "a variable") for name, value in env.items()}
    for name in variables:
        if not name or "=" in name:
            raise ValueError(f"a variable's name is not empty and has no '=': {name!r}")
    return variables


def _known_user(user: int | str | None) -> int | str | None:
    if user is None:
        return None
    if isinstance(user, bool) or not isinstance(user, (int, str)):
        raise TypeError(f"user is a number, 'uid:gid' or a name, not {type(user).__name__}")
    if isinstance(user, int):
        return as_id(user)
    return _text(user, "user")


def as_id(number: int) -> int:
    """Return a uid or gid. Raises ValueError: the kernel has no such number."""
    if not 0 <= number < 0xFFFFFFFF:
        raise ValueError(f"a uid or gid is a number from 0 to 4294967294, not {number}")
    return number


def _binds(binds: Mapping[str, str] | None) -> list[Bind]:
    if binds is None:
        return []
    if not isinstance(binds, Mapping):
        raise TypeError(f"binds is a mapping of paths inside to paths outside, not {type(binds).__name__}")
    pairs = binds.items()
    return [_bind(_text(inside, "a path inside"), _text(outside, "a path outside")) for inside, outside in pairs]


def _bind(inside: str, outside: str) -> Bind:
    if not inside.startswith("/"):
        raise ValueError(f"binds: the path inside is absolute, not {inside!r}")
    inside = posixpath.normpath("/" + inside.lstrip("/"))
    if inside == "/":
        raise ValueError("binds: '/' is the layer itself")
    read_only = outside.startswith(READ_ONLY)
    outside = outside.removeprefix(READ_ONLY)
    if not outside:
        raise ValueError(f"binds: no path outside for {inside!r}")
    return bind_of(inside, outside, read_only)


def bind_of(inside: str, outside: str, read_only: bool) -> Bind:
    """Return a bind of what is outside now. Raises FileNotFoundError, PermissionError (.filename: the path outside)."""
    is_directory = stat.S_ISDIR(os.stat(outside).st_mode)
    if not os.access(outside, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), outside)
    return Bind(inside, os.path.realpath(outside), read_only, is_directory)


def resolver() -> Bind | None:
    """Return a bind of the caller's resolv.conf, or None if the caller has none."""
    with contextlib.suppress(OSError):
        return bind_of("/etc/resolv.conf", "/etc/resolv.conf", True)
    return None
