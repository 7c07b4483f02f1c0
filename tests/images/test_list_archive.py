"""Images.list_archive(): what an archive holds, told without loading it, whatever way it comes."""

import gzip

import imagekit
import pytest
from imagedraw import Draw
from imagekit import BASE, MIDDLE, TOP, Once, image_id, tar_of, write_to

import layerstore
from layerstore import ImageError, Images, LayerStoreError

KINDS = {
    "docker": lambda: imagekit.docker([([BASE, TOP], ["a/b:1", "c"]), ([MIDDLE], [])]),
    "oci": lambda: imagekit.oci([BASE, TOP], "gzip", "docker.io/a/b:1"),
    "v1": lambda: imagekit.v1([BASE, TOP], "a/b:1"),
}


@pytest.mark.parametrize("how", ["file", "stream", "packed", "directory"])
@pytest.mark.parametrize("kind", KINDS)
def test_names_ids_and_platforms_are_told(room, kind, how):
    files = KINDS[kind]()
    (room / "archive").write_bytes(tar_of(files))
    source = {"file": room / "archive", "stream": Once(tar_of(files)), "packed": gzip.compress(tar_of(files)),
              "directory": write_to(room / "layout", files)}[how]  # fmt: skip
    found = Images.list_archive(source)
    assert found[0].references == (("a/b:1", "c:latest") if kind == "docker" else ("a/b:1",))
    assert (found[0].os, found[0].architecture, found[0].layers) == ("linux", "amd64", 2)
    assert found[0].id == ("" if kind == "v1" else image_id([BASE, TOP]))
    assert found[0].created == ("2013-01-01T00:00:00Z" if kind == "v1" else "2024-01-01T00:00:00Z")
    assert [len(image.diff_ids) for image in found] == {"docker": [2, 1], "oci": [2], "v1": [0]}[kind]


def test_layers_need_not_be_there(room):
    files = KINDS["oci"]()
    layers = [name for name, data in files.items() if data[:2] == b"\x1f\x8b"]
    assert layers
    thin = {name: data for name, data in files.items() if name not in layers}
    assert Images.list_archive(tar_of(thin))[0].references == ("a/b:1",)


def test_what_is_listed_is_what_is_loaded(images):
    """Of drawn archives: the same images under the same names, and nothing loaded before load() is called."""
    loaded = 0
    for seed in range(60):
        data = Draw(seed).tar()
        try:
            found = images.load(data)
        except LayerStoreError:
            found = []
        told = {(image.id, image.references) for image in found}
        for image in images.list():
            images.remove(image, force=True)
        if not found:
            continue
        listed = Images.list_archive(data, platform=None)
        assert [image.references for image in listed] == [image.references for image in found]
        assert {image.id for image in listed} <= {id for id, _ in told} | {""}
        assert images.store.map() == {}
        loaded += 1
    assert loaded > 15


def test_what_is_no_archive_is_told():
    for data, said in ((b"", "empty"), (b"x" * 1000, "not a tar"), (tar_of({"x": b"y"}), "no manifest.json")):
        with pytest.raises(ImageError, match=said):
            Images.list_archive(data)
    assert layerstore.ArchivedImage is type(Images.list_archive(tar_of(KINDS["docker"]()))[0])
