"""Images as words of a command line, and as what is printed of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layerstore import Image, ImageDoesNotExistError, ImageError
from layerstore.cli.exits import Exit, Failure
from layerstore.cli.opening import Opened
from layerstore.cli.screen import Screen
from layerstore.cli.texts import short_id
from layerstore.documents import references


def facts_of(image: Image) -> dict[str, Any]:
    """Return what --json prints of an image."""
    return {
        "id": image.id, "references": list(image.references), "digests": list(image.digests), "created": image.created,
        "os": image.os, "architecture": image.architecture, "variant": image.variant, "size": image.size,
        "layers": list(image.layers), "diff_ids": list(image.diff_ids), "top": image.top,
    }  # fmt: skip


class Refused:
    """Turns an ImageError in its `with` block into a Failure with this code, unless the image does not exist."""

    def __init__(self, code: Exit) -> None:
        self._code = code

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, err: object, _trace: object) -> None:
        if isinstance(err, ImageError) and not isinstance(err, ImageDoesNotExistError):
            raise Failure(str(err), self._code) from None


def new_name(name: str) -> str:
    """Return a name that an image is to get. Raises Failure if it is not a name."""
    with Refused(Exit.USAGE):
        references.parse(name)
    return name


def named(opened: Opened, name: str) -> Image:
    """Return the image that a word of the command line means. Raises Failure if it is not a name, or ambiguous."""
    with Refused(Exit.USAGE):
        return opened.images.get(name)


def meanings(opened: Opened) -> dict[str, str]:
    """Return which image each name means."""
    return {name: image.id for image in opened.images.list() for name in image.references}


def tell_image(
    image: Image, before: dict[str, str], screen: Screen, *, names_only: bool = False, called: Sequence[str] = ()
) -> dict[str, Any]:
    """Print an image and which of its names meant another one before; return what --json prints.

    called   the names to print; else all with a tag
    """
    moved = {name: before[name] for name in image.references if before.get(name, image.id) != image.id}
    if not screen.as_json:
        if not names_only:
            screen.line("  ".join((image.id, *(called or image.references))))
        for name, id in moved.items():
            screen.note(f"{name} was {short_id(id)} before, which is still there under its id: {id}", "yellow")
    return {**facts_of(image), "moved": moved}
