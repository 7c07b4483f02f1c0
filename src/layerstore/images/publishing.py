"""Images become visible: their configs are written, then their names. All of it under the lock of the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from layerstore.disk.locks import surely
from layerstore.documents import references
from layerstore.errors import ImageError, LayerStoreError
from layerstore.ids import Digest, sha256_of
from layerstore.images.planned import Planned
from layerstore.layerdb.imagedb import ImageDB, Repositories, diff_ids_of, now, parse_document


def publish(
    db: ImageDB, planned: Sequence[Planned], contents: Sequence[bytes], beside: Callable[[], None] = lambda: None,
    undo: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Write configs, what beside() writes, then names; all is taken back if the rest cannot be written.

    planned    images whose layers are held
    contents   their configs
    undo       takes back what beside() wrote; called twice where an interrupt comes into it
    """
    names = db.repositories()
    db.sweep()
    made: list[Digest] = []
    ids = [sha256_of(data) for data in contents]
    try:
        made += [id for id in dict.fromkeys(ids) if not db.has(id)]
        named = {id for id, image in zip(ids, planned, strict=True) if image.references}
        db.begin_making(id for id in made if id in named)
        for data in contents:
            db.add(data)
        beside()
        for id, image, data in zip(ids, planned, contents, strict=True):     # a parent may come behind its child
            if image.parent and id in made and _is_parent(db, image.parent, id, data):
                db.note(id, "parent", image.parent)
            for name in image.references:
                name_image(names, name, id)
            if image.references:
                db.note(id, "lastUpdated", now())
        db.write_repositories(names)
    except BaseException:
        try:
            surely(undo)
        finally:
            surely(db.take_back, made)
        raise
    db.end_making()


def _is_parent(db: ImageDB, parent: str, id: str, data: bytes) -> bool:
    """Return True if an image can be built on that one. Nothing else is noted, so that none is its own ancestor."""
    above: set[str] = {id}
    try:
        at = parent
        while at:
            if at in above:
                return False
            above.add(at)
            at = db.noted(at, "parent")
        below = db.diff_ids(parent)
        return diff_ids_of(parse_document(data, "the image"))[: len(below)] == below
    except (OSError, LayerStoreError):
        return False


def check_name(called: references.Reference) -> None:
    """Raise ImageError for a name that would be taken for a digest."""
    if called.name == "sha256":
        raise ImageError("refusing to create an ambiguous tag using digest algorithm as name", name=str(called))


def name_image(names: Repositories, name: str, id: Digest) -> None:
    """Name an image "name:tag" or "name@digest", which another one may have. Raises ImageError."""
    called = references.parse(name)
    check_name(called)
    names.setdefault(called.name, {})[str(called)] = id
