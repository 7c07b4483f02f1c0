"""image pull and image push: images of registries, and how a command line says which registry it is, and as which user.

A password comes by standard input alone: all users of a host see command lines.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

import layerstore
from layerstore import Registry
from layerstore.cli.exits import Exit, Failure
from layerstore.cli.layers import add_durability
from layerstore.cli.naming import Refused, meanings, named, tell_image
from layerstore.cli.opening import writing
from layerstore.cli.parser import Commands, Parser
from layerstore.cli.screen import Screen
from layerstore.cli.texts import parse_age
from layerstore.documents import platforms, references
from layerstore.images import pulling, pushing

_LONGEST_PASSWORD = 64 << 10


def add_to_images(image: Commands) -> None:
    """Add `pull` and `push` to the commands of images."""
    pull = image.command(
        "pull", run_pull, "fetch an image from a registry, without the layers that are here",
        more="REFERENCE without a tag or a digest means latest. If a pull fails, it leaves nothing. Credentials are\n"
             "those of `docker login` and `podman login`, unless --user is given.",
        examples=["image pull debian:12", "image pull localhost:5000/app:1 --platform linux/arm64 --json",
                  "image pull registry.example.com/app:1 --mirror https://mirror.example.com --keep"],
    )  # fmt: skip
    pull.add_argument("reference", metavar="REFERENCE", help="debian:12, registry.example.com/app, app@sha256:...")
    pull.add_argument("--platform", metavar="OS/ARCH", help="for example linux/arm64; default: this host's")
    pull.add_argument("--keep", action="store_true",
                      help="after a failure keep the layers that came whole, for the next pull")  # fmt: skip
    pull.add_argument("--mirror", metavar="URL", action="append", default=[],
                      help="a registry to ask first; several are asked in their order")  # fmt: skip
    add_durability(pull)
    _add_options(pull)

    push = image.command(
        "push", run_push, "send an image to a registry, without what is there, and print its digest", "IMAGE",
        more="Layers are compressed as they were pulled or pushed before, otherwise with gzip. Credentials are\n"
             "those of `docker login` and `podman login`, unless --user is given.",
        examples=["image push registry.example.com/app:1", "image push app:1 localhost:5000/app:1 --zstd",
                  "image push app:1 registry.example.com/app:1 --user ann --password-stdin < password"],
    )  # fmt: skip
    push.add_argument("reference", metavar="REFERENCE", nargs="?", help="its name there; default: the name IMAGE")
    how = push.add_mutually_exclusive_group()
    for name, told in (("gzip", "compress all layers with gzip"), ("zstd", "compress all layers with zstd"),
                       ("plain", "send all layers uncompressed")):  # fmt: skip
        how.add_argument(f"--{name}", dest="compression", action="store_const", const=name, help=told)
    _add_options(push)


def _add_options(parser: Parser) -> None:
    """Add what says how a registry is asked."""
    parser.add_argument("--user", metavar="USER", help="the user's name, with --password-stdin")
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    parser.add_argument("--insecure", action="store_true", help="allow plain HTTP, and any certificate")
    parser.add_argument("--ca", metavar="FILE", help="also trust the certificates in this file")
    parser.add_argument("--timeout", metavar="S", type=_seconds, help="seconds without progress (30)")
    parser.add_argument("--retries", metavar="N", type=_at_least(0), help="further attempts (5)")
    parser.add_argument("--connections", metavar="N", type=_at_least(1), help="layers at a time (3)")


def _seconds(text: str) -> float:
    try:
        found = parse_age(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err)) from None
    if not found:
        raise argparse.ArgumentTypeError("a time of 0 s is too short")
    return found


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
        return int(text)

    return number


def _registry(args: Any, domain: str, mirrors: Any = ()) -> Registry:
    """Return the registry of a domain as a command line describes it. Raises Failure, NotSupportedError, OSError."""
    given = {name: getattr(args, name) for name in ("ca", "timeout", "retries", "connections")}
    how = {name: value for name, value in given.items() if value is not None}
    try:
        return layerstore.Registry(domain, auth=_credentials(args), insecure=args.insecure, mirrors=mirrors, **how)
    except ValueError as err:
        raise Failure(str(err), Exit.USAGE) from None


def _credentials(args: Any) -> tuple[str, str] | None:
    """Return the user and the password, if they are given. Raises Failure."""
    if args.user is None and not args.password_stdin:
        return None
    if not args.user:
        raise Failure("--password-stdin needs the user's name: --user USER", Exit.USAGE)
    if not args.password_stdin:
        raise Failure("--user needs --password-stdin: a password is read from standard input alone", Exit.USAGE)
    if sys.stdin is None or os.isatty(sys.stdin.fileno()):
        raise Failure("the password is needed on standard input, which is a terminal", Exit.USAGE)
    with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
        data = stream.read(_LONGEST_PASSWORD + 1)
    try:
        password = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise Failure("the password on standard input is not UTF-8", Exit.USAGE) from None
    if not password or len(data) > _LONGEST_PASSWORD:
        what = f"has more than {_LONGEST_PASSWORD} bytes" if password else "is empty"
        raise Failure(f"the password on standard input {what}", Exit.USAGE)
    return args.user, password


def _domain(reference: str) -> str:
    """Return the registry of a reference. Raises Failure if it is none."""
    with Refused(Exit.USAGE):
        return references.split_domain(references.parse(reference).name)[0]


def run_pull(args: Any, screen: Screen) -> None:
    domain = _domain(args.reference)
    if args.platform == "all":
        raise Failure("--platform: one image is pulled, so it is for one platform, not for all", Exit.USAGE)
    if args.platform is not None:
        with Refused(Exit.USAGE):
            platforms.parse_platform(args.platform)
    with _registry(args, domain, args.mirror) as registry, writing(args) as opened:
        before = meanings(opened)
        with screen.progress("pull") as progress:
            pulled = pulling.pull(
                opened.images, args.reference, platform=args.platform, registry=registry, progress=progress,
                durability=args.durability, keep=args.keep,
            )  # fmt: skip
    name = str(references.parse(args.reference).tagged())
    facts = tell_image(pulled.image, before, screen, called=[name])
    screen.result({**facts, "digest": pulled.digest, "fetched": pulled.fetched, "present": pulled.present})
    if not screen.as_json:
        if "@" not in name:
            screen.note(f"{pulled.digest} is what {name} means")
        layers = len(pulled.image.layers)
        screen.note(f"fetched {screen.size(pulled.fetched)}, {pulled.present} of {layers} layers were here")


_COMPRESSIONS = {None: "gzip", "gzip": "gzip", "zstd": "zstd", "plain": None}


def run_push(args: Any, screen: Screen) -> None:
    if args.reference is not None:
        _domain(args.reference)
    with writing(args) as opened:
        image = named(opened, args.image)
        with Refused(Exit.USAGE):
            target = str(pushing.target_of(image, args.image, args.reference))
        with _registry(args, _domain(target)) as registry, screen.progress("push") as progress:
            pushed = pushing.push(
                opened.images, args.image, target, registry=registry, compression=_COMPRESSIONS[args.compression],
                force_compression=args.compression is not None, progress=progress,
            )  # fmt: skip
    there = f"mounted: {_blobs(pushed.mounted)}; there already: {_blobs(pushed.present)}"
    screen.result(pushed._asdict(), [pushed.digest], f"sent {screen.size(pushed.sent)}; {there}")


def _blobs(number: int) -> str:
    return f"{number} blob" if number == 1 else f"{number} blobs"
