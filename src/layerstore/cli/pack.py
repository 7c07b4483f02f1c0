"""A layer's tar from a directory: pack."""

from __future__ import annotations

import contextlib
from typing import Any

from layerstore import pack_directory
from layerstore.cli.exits import Exit, Failure
from layerstore.cli.layers import tell_written
from layerstore.cli.parser import Commands
from layerstore.cli.screen import Screen
from layerstore.disk.textfile import new_file


def add(commands: Commands) -> None:
    pack = commands.command(
        "pack", run_pack, "write a reproducible layer tar of a directory",
        more="The same tree always makes the same bytes: entries are sorted, and times are whole seconds.\n"
             "Sockets are left out. No entry is newer than SOURCE_DATE_EPOCH if --mtime is not given.",
        examples=["pack build --prefix app -o app.tar",
                  "pack build --owner 0:0 --mtime 0 --exclude '**/*.pyc' | layerstore register -"])  # fmt: skip
    pack.add_argument("directory", metavar="DIR", help="the directory")
    pack.add_argument("-o", "--output", metavar="FILE", default="-", help='"-" (default) is standard output')
    pack.add_argument("--prefix", metavar="PATH", default="", help="where its entries are in the layer")
    pack.add_argument("--mtime", metavar="SECONDS", type=int, help="no entry is newer; seconds since 1970")
    pack.add_argument("--owner", metavar="UID:GID", help="the owner of all entries")
    pack.add_argument(
        "--exclude", metavar="PATTERN", action="append", default=[],
        help='leave out what fits, for example ".git" or "**/*.pyc"; may be given several times',
    )  # fmt: skip


def _owner(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    uid, _, gid = text.partition(":")
    if not (uid.isdecimal() and gid.isdecimal()):
        raise Failure(f"--owner is UID:GID, two numbers, not {text!r}", Exit.USAGE)
    return int(uid), int(gid)


def run_pack(args: Any, screen: Screen) -> None:
    if args.output == "-" and screen.as_json:
        raise Failure("--json and a tar cannot both go to standard output: name a file with -o", Exit.USAGE)
    owner = _owner(args.owner)
    try:
        tar = pack_directory(
            args.directory, prefix=args.prefix, mtime=args.mtime, owner=owner, exclude=args.exclude
        )  # fmt: skip
    except ValueError as err:
        raise Failure(str(err), Exit.USAGE) from None
    with tar, contextlib.ExitStack() as stack:
        fd = screen.binary("a tar") if args.output == "-" else stack.enter_context(new_file(args.output))
        progress = stack.enter_context(screen.progress("pack"))
        written = tar.copy_to(fd, progress=progress)
    tell_written({"directory": args.directory, "output": args.output, "bytes": written}, screen)
