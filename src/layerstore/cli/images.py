"""Images: image load, save, pull, push, ls, rm, tag, inspect, unpack, create, history, prune."""

from __future__ import annotations

import argparse
import datetime
import os
import time
from collections.abc import Sequence
from typing import Any

from layerstore import Images, Removed
from layerstore.cli import registries
from layerstore.cli.exits import Exit, Failure
from layerstore.cli.layers import add_durability, source_of, tell_gone, tell_written
from layerstore.cli.naming import Refused, facts_of, meanings, named, new_name, tell_image
from layerstore.cli.opening import reading, writing
from layerstore.cli.parser import Commands
from layerstore.cli.screen import Cell, Screen
from layerstore.cli.texts import human_age, parse_age, short_id
from layerstore.documents import platforms
from layerstore.layerdb.imagedb import DOCUMENT_LIMIT, parse_document

FORMATS = ("docker", "oci", "oci-dir")


def add(commands: Commands) -> None:
    image = commands.family(
        "image", "images: pull, push, load, save, tag, unpack",
        examples=["image pull debian:12", "image push app:1 registry.example.com/app:1", "image ls",
                  "image load debian.tar", "image save debian:12 -o debian.tar"])  # fmt: skip
    load = image.command(
        "load", run_load, "load the images of an archive",
        more="Archives of docker save and OCI layouts (a tar, or a directory), plain or compressed.",
        examples=["image load debian.tar.gz", "image load - < debian.tar", "image load layout/ --tag debian:12"],
    )  # fmt: skip
    load.add_argument("archive", metavar="TAR", help='the archive, or the directory of a layout; "-" is standard input')
    load.add_argument("--tag", metavar="NEW_NAME", action="append", default=[], help="a name for the only image in it")
    load.add_argument("--platform", metavar="OS/ARCH", help='for example linux/arm64, or "all"; default: this host\'s')
    add_durability(load)

    save = image.command(
        "save", run_save, "write images to an archive", "IMAGE+",
        examples=["image save debian:12 -o debian.tar", "image save app:1 --format oci --zstd | ssh host skopeo ...",
                  "image save app:1 --format oci-dir -o layout",
                  "image save app:2 --exclude app:1 -o app-2.tar"])  # fmt: skip
    save.add_argument("-o", "--output", metavar="FILE", default="-", help='"-" (default) is standard output')
    told = "docker (default): for docker load; oci: an OCI layout in a tar; oci-dir: in a directory"
    save.add_argument("--format", choices=FORMATS, default="docker", help=told)
    save.add_argument("--exclude", metavar="LAYER", action="append", default=[],
                      help="a layer, or an image, that the other side has: it is named, but not written")  # fmt: skip
    packed = save.add_mutually_exclusive_group()
    packed.add_argument("--gzip", dest="compression", action="store_const", const="gzip", help="compress the layers")
    packed.add_argument("--zstd", dest="compression", action="store_const", const="zstd",
                        help="compress the layers with zstd (oci, oci-dir)")  # fmt: skip

    registries.add_to_images(image)

    listed = image.command("ls", run_ls, "list the images, newest first",
                           examples=["image ls", "image ls --json", "image ls --archive debian.tar.gz"])  # fmt: skip
    listed.add_argument("--archive", metavar="TAR",
                        help='list what an archive holds, or the directory of a layout, and load nothing; "-" is '
                             "standard input")  # fmt: skip

    remove = image.command("rm", run_rm, "remove names of images, and with the last name the image and its layers",
                           "IMAGE+", examples=["image rm debian:12", "image rm --force 5f70bf18a086"])  # fmt: skip
    remove.add_argument("-f", "--force", action="store_true", help="also with several names, or a writable layer on it")

    image.command("tag", run_tag, "add a name to an image", "IMAGE name:NEW_NAME",
                  examples=["image tag debian:12 base:latest"])  # fmt: skip
    image.command("inspect", run_inspect, "print all about images, as docker image inspect does", "IMAGE+",
                  examples=["image inspect debian:12"])  # fmt: skip

    unpack = image.command("unpack", run_unpack, "unpack an image's file system into a plain directory", "IMAGE",
                           examples=["image unpack debian:12 rootfs"])  # fmt: skip
    unpack.add_argument("directory", metavar="DIR", help="created if it is missing; otherwise it must be empty")

    create = image.command(
        "create", run_create, "create an image of a layer and all below it, and print its id",
        more="The config is JSON as in Docker; missing fields are filled in from this host and the present time.",
        examples=["image create 4e596c87bd09 --tag app:1", "image create 4e596c87bd09 --config app.json --tag app:1"],
    )  # fmt: skip
    create.add_argument("layer", metavar="LAYER", help="its top layer")
    create.add_argument("--config", metavar="FILE", help='the config; "-" is standard input')
    create.add_argument("--tag", metavar="NEW_NAME", action="append", default=[], help="a name for it")

    history = image.command("history", run_history, "print how an image was made, newest step first", "IMAGE",
                            examples=["image history debian:12", "image history debian:12 --no-trunc"])  # fmt: skip
    history.add_argument("--no-trunc", action="store_true", help="whole ids and commands")

    prune = image.command(
        "prune", run_prune, "remove images without a name, with their layers, and print what was removed",
        more="An image with a writable layer on it stays.",
        examples=["image prune --dry-run", "image prune --all --unused-for 24h"])  # fmt: skip
    prune.add_argument("--all", action="store_true", help="also images with names, without a writable layer on them")
    prune.add_argument("--unused-for", metavar="TIME", type=_age_given,
                       help="only images last tagged or loaded so long ago: 24h, 7d, or seconds")  # fmt: skip
    prune.add_argument("--dry-run", action="store_true", help="remove nothing, print what would be removed")


def _age_given(text: str) -> float:
    try:
        return parse_age(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err)) from None


def _age(created: str) -> str:
    try:
        made = datetime.datetime.fromisoformat(created)
    except ValueError:
        return ""
    if made.tzinfo is None:
        made = made.replace(tzinfo=datetime.UTC)
    return human_age(time.time() - made.timestamp())


def run_load(args: Any, screen: Screen) -> None:
    source, tags = source_of(args.archive), [new_name(name) for name in args.tag]
    if args.platform not in (None, "all"):
        with Refused(Exit.USAGE):
            platforms.parse_platform(args.platform)
    with writing(args) as opened, screen.progress("load") as progress:
        before = meanings(opened)
        loaded = opened.images.load(
            source, tags=tags, platform=args.platform, progress=progress, durability=args.durability
        )
    screen.result([tell_image(image, before, screen) for image in loaded])


def run_save(args: Any, screen: Screen) -> None:
    if args.output == "-" and screen.as_json:
        raise Failure("--json and an archive cannot both go to standard output: name a file with -o", Exit.USAGE)
    if args.output == "-" and args.format == "oci-dir":
        raise Failure("a directory cannot go to standard output: name one with -o", Exit.USAGE)
    with reading(args) as opened:
        images = [named(opened, name) and name for name in args.images]         # before anything is written
        exclude = [opened.find(name) for name in args.exclude]
        target = screen.binary("an archive") if args.output == "-" else args.output
        with screen.progress("save") as progress:
            written = opened.images.save(
                images, target, format=args.format, compression=args.compression, exclude=exclude, progress=progress
            )
    tell_written({"images": args.images, "output": args.output, "bytes": written}, screen)


def _ls_archive(args: Any, screen: Screen) -> None:
    found = Images.list_archive(source_of(args.archive))
    rows: list[list[Cell]] = [
        [(name, "cyan"), short_id(image.id) if image.id else "-",
         "/".join(part for part in (image.os, image.architecture, image.variant) if part), str(image.layers),
         _age(image.created)]
        for image in found for name in image.references or ("-",)
    ]  # fmt: skip
    facts = [image._asdict() for image in found]
    screen.table(("IMAGE", "ID", "PLATFORM", ">LAYERS", "AGE"), rows, facts=facts)


def run_ls(args: Any, screen: Screen) -> None:
    if args.archive is not None:
        _ls_archive(args, screen)
        return
    with reading(args) as opened:
        found = opened.images.list()
    rows: list[list[Cell]] = [
        [(name, "cyan"), short_id(image.id), str(len(image.layers)), screen.size(image.size), _age(image.created)]
        for image in found for name in image.references or image.digests or ("-",)
    ]  # fmt: skip
    facts = [facts_of(image) for image in found]
    screen.table(("IMAGE", "ID", ">LAYERS", ">SIZE", "AGE"), rows, facts=facts, none="no images")


def run_rm(args: Any, screen: Screen) -> None:
    removed: list[Removed] = []
    with writing(args) as opened:
        with Refused(Exit.USAGE):
            for name in args.images:                      # all are there, before anything goes
                opened.images.resolve(name)
        try:
            with Refused(Exit.IN_USE):                   # a conflict: another name, or a writable layer
                for name in args.images:
                    removed.append(opened.images.remove(name, force=args.force))
        finally:
            _tell_removed(removed, screen)                # what went, went, also when another stays


def _tell_removed(removed: Sequence[Removed], screen: Screen) -> None:
    if screen.as_json:
        screen.json({
            "untagged": [name for one in removed for name in one.untagged],
            "deleted": [id for one in removed for id in one.deleted],
            "layers": [item.chain_id for one in removed for item in one.layers],
        })  # fmt: skip
        return
    for one in removed:
        for name in one.untagged:
            screen.line(f"untagged {name}")
        for id in one.deleted:
            screen.line(f"deleted {id}")
        tell_gone(one.layers, screen)


def run_tag(args: Any, screen: Screen) -> None:
    name = new_name(args.name)
    with writing(args) as opened:
        before, id = meanings(opened), named(opened, args.image).id
        image = opened.images.tag(id, name)
    screen.result(tell_image(image, before, screen, names_only=True))


def run_inspect(args: Any, screen: Screen) -> None:
    with reading(args) as opened:
        screen.json([opened.images.inspect(named(opened, name)) for name in args.images])


def run_unpack(args: Any, screen: Screen) -> None:
    with reading(args) as opened, screen.progress("unpack") as progress:
        opened.images.unpack(named(opened, args.image), args.directory, progress=progress)
    screen.result({"image": args.image, "directory": os.path.abspath(args.directory)})


def _config_of(path: str | None) -> dict[str, Any]:
    """Return the config in a file. Raises Failure if it is not a JSON object."""
    if path is None:
        return {}
    source = source_of(path)
    with open(source, "rb", closefd=not isinstance(source, int)) as file:
        data = file.read(DOCUMENT_LIMIT + 1)
    if len(data) > DOCUMENT_LIMIT:
        raise Failure(f"{path} is larger than {DOCUMENT_LIMIT} bytes, the limit for a config")
    found = parse_document(data, path)
    if not isinstance(found, dict):
        raise Failure(f"{path} is not a JSON object, which the config of an image must be")
    return found


def run_create(args: Any, screen: Screen) -> None:
    tags, config = [new_name(name) for name in args.tag], _config_of(args.config)
    with writing(args) as opened:
        before = meanings(opened)
        image = opened.images.create(opened.find(args.layer), config, tags=tags)
    screen.result(tell_image(image, before, screen))


_COMMAND_WIDTH = 45


def run_history(args: Any, screen: Screen) -> None:
    with reading(args) as opened:
        steps = opened.images.history(named(opened, args.image))
    rows: list[list[Cell]] = []
    for step in steps:
        layer, by = step["layer"], " ".join(str(step.get("created_by") or "").split())
        if not args.no_trunc:
            layer = short_id(layer) if layer else layer
            by = f"{by[:_COMMAND_WIDTH - 3]}..." if len(by) > _COMMAND_WIDTH else by
        rows.append([layer or "-", _age(str(step.get("created") or "")), screen.size(step["size"]), by,
                     str(step.get("comment") or "")])  # fmt: skip
    screen.table(("LAYER", "AGE", ">SIZE", "CREATED BY", "COMMENT"), rows, facts=steps,
                 none="the image has no layers, and its config lists no steps")  # fmt: skip


def run_prune(args: Any, screen: Screen) -> None:
    with (reading if args.dry_run else writing)(args) as opened:
        gone = opened.images.prune(dangling=not args.all, unused_for=args.unused_for, dry_run=args.dry_run)
    _tell_removed([gone], screen)
    if not screen.as_json:
        freed = screen.size(sum(layer.diff_size for layer in gone.layers))
        number = f"{len(gone.deleted)} image{'' if len(gone.deleted) == 1 else 's'}"
        screen.note(f"would go: {number}" if args.dry_run else f"removed: {number}, {freed} in files")
