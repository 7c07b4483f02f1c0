"""One archive, three ways in: from a file, a stream and a directory come the same images, or the same error.

Archives are drawn: every kind, several images, names that are none, entries that are no images, things left out, changed,
twice or behind links, in any order.
"""

import gzip

import pytest
from imagedraw import Draw
from imagekit import Once, tar_of, write_to

from layerstore import LayerStoreError


def outcome(images, source, options):
    """What load() says, and afterwards nothing is left."""
    try:
        found = images.load(source, **options)
    except LayerStoreError as err:
        assert images.list() == []
        assert images.store.map() == {}
        return type(err).__name__, str(err)
    told = [(image.id, tuple(name for name in image.references if not name.startswith("thing:")), image.layers) for image in found]
    for image in images.list():
        images.remove(image, force=True)
    assert images.store.map() == {}
    return told


@pytest.mark.parametrize("part", range(8))
def test_a_file_a_stream_and_a_directory_give_the_same(images, room, part):
    outcomes = set()
    for seed in range(part * 40, part * 40 + 40):
        drawn = Draw(seed)
        data = drawn.tar()
        options = {"platform": drawn.pick.choice([None, None, "all", "linux/amd64", "arm64", "armhf"])}
        if drawn.pick.random() < 0.2:
            options["tags"] = "given:1"
        place = room / str(seed)
        place.mkdir()
        (place / "thing.tar").write_bytes(data)
        found = {"file": outcome(images, place / "thing.tar", options), "stream": outcome(images, Once(data, 1 << 20), options),
                 "packed": outcome(images, gzip.compress(data, 1), options)}  # fmt: skip
        if not drawn.again:
            where = write_to(place / "thing", drawn.files)
            for name, target in drawn.links.items():
                (where / name).parent.mkdir(parents=True, exist_ok=True)
                (where / name).symlink_to(target)
            found["directory"] = outcome(images, where, options)
        elif drawn.again[0][1] == drawn.files.get(drawn.again[0][0]):
            found["directory"] = outcome(images, write_to(place / "thing", drawn.files), options)
        first = found["file"]
        assert all(other == first for other in found.values()), (seed, drawn.kind, options, found)
        outcomes.add(type(first))
    assert outcomes == {list, tuple}                      # some are loaded, some are not


def test_what_is_drawn_is_mostly_right(images):
    """The test above proves something only where images come out."""
    kinds = {}
    for seed in range(60):
        drawn = Draw(seed)
        if isinstance(outcome(images, drawn.tar(), {}), list):
            kinds[drawn.kind] = kinds.get(drawn.kind, 0) + 1
    assert kinds.keys() == {"docker", "named by digest", "both", "oci", "nested", "dir", "v1"}
    assert sum(kinds.values()) > 25


def test_the_oldest_kind_is_told_of_in_one_order(images, room):
    """Without a list the directories say which layers there are; a tar has them in any order."""
    files = {f"{n}/layer.tar": b"" for n in (2, 0, 1)}
    found = [outcome(images, source, {}) for source in (tar_of(files), Once(tar_of(files)), write_to(room / "layout", files))]
    assert found == [("ImageError", "'0' is not an id of a layer")] * 3
