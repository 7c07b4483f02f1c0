"""rw run: a command with a writable layer as its root.

The command's own exit code is that of `rw run`, and its standard files are ours.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from typing import Any

from layerstore.cli.exits import Exit, Failure
from layerstore.cli.opening import writing
from layerstore.cli.parser import Commands
from layerstore.cli.screen import Screen
from layerstore.cli.texts import parse_age


def add_to_writable(rw: Commands) -> None:
    """Add `run` to the commands of writable layers."""
    run = rw.command(
        "run", run_run, "run a command with one as its root, and exit with the command's exit code", "NAME argv:ARGV+",
        more="The command runs in namespaces of its own, made by bubblewrap, with an environment of its own, without\n"
             "a network. When it ends, so do the processes that it started. It is no jail for hostile code.",
        examples=["rw run box -- sh -c 'id; ls -l /'", "rw run box --cwd /src --user 1000 -- make test",
                  "rw run box --network --bind /work=ro:$PWD -- pytest /work"])  # fmt: skip
    run.command_behind = 1
    run.add_argument("--cwd", metavar="PATH_INSIDE", default="/", help="the working directory")
    run.add_argument("--env", metavar="NAME=VALUE", action="append", default=[],
                     help="set a variable; NAME alone: to the value that it has here")  # fmt: skip
    run.add_argument("--user", metavar="USER", help="a number, UID:GID, or a name of its /etc/passwd (default: root)")
    run.add_argument("--timeout", metavar="TIME", help="end it after this time, for example 90s, with exit code 124")
    run.add_argument("--network", action="store_true", help="use the network of this host")
    run.add_argument("--bind", metavar="INSIDE=PATH", action="append", default=[],
                     help="show a path of this host inside; INSIDE=ro:PATH: for reading only")  # fmt: skip


def run_run(args: Any, screen: Screen) -> int:
    user = int(args.user) if args.user is not None and args.user.isascii() and args.user.isdigit() else args.user
    how = {
        "cwd": args.cwd, "env": dict(_variables(args.env)), "user": user, "timeout": _seconds(args.timeout),
        "network": args.network, "binds": dict(_binds(args.bind)),
    }  # fmt: skip
    screen.out.flush()
    with writing(args) as opened:
        box = opened.rw_layer(args.name)
        try:
            done = box.run(args.argv, input=0, capture=screen.as_json, **how)
        except subprocess.TimeoutExpired:
            raise Failure(f"{args.argv[0]} was ended after {args.timeout}", Exit.TIMED_OUT) from None
    if screen.as_json:
        printed = {name: os.fsdecode(getattr(done, name)) for name in ("stdout", "stderr")}
        screen.json({"name": args.name, "returncode": done.returncode, **printed})
    return done.returncode


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else parse_age(text)
    except ValueError as err:
        raise Failure(f"--timeout: {err}", Exit.USAGE) from None


def _variables(given: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Return names and values; a name that has no value here is left out."""
    for word in given:
        name, equals, value = word.partition("=")
        if not name:
            raise Failure(f"--env {word}: a variable is NAME or NAME=VALUE", Exit.USAGE)
        if equals or name in os.environ:
            yield name, value if equals else os.environ[name]


def _binds(given: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Return paths inside and paths outside, these made absolute."""
    for word in given:
        inside, _, outside = word.partition("=")
        mark = "ro:" if outside.startswith("ro:") else ""
        path = outside.removeprefix(mark)
        if not inside.startswith("/") or not path:
            raise Failure(f"--bind {word}: a bind is INSIDE=PATH or INSIDE=ro:PATH, INSIDE from the root", Exit.USAGE)
        yield inside, mark + os.path.abspath(path)
