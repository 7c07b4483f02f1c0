"""Archives that are wrong, on purpose or not: a clear error, and nothing is left, in the store or outside of it."""

import gzip
import json
import os
import resource
import subprocess

import disk
import imagekit
import pytest
import tarkit
from another import growth
from imagekit import BASE, MIDDLE, OCI, TOP, Once, blob, descriptor, digest, encode, hexes, tar_of, write_to

import layerstore
from layerstore import BreakoutError, ImageError, TarFormatError
from layerstore.layerdb.imagedb import DOCUMENT_LIMIT

LAYERS = [BASE, MIDDLE, TOP]
ABSENT = "sha256:" + "ab" * 32


def docker_with(change) -> dict[str, bytes]:
    """A sound archive of docker's, its manifest's entry changed."""
    files = imagekit.docker([(LAYERS, ["a/b:1"])])
    entry = json.loads(files["manifest.json"])[0]
    change(files, entry)
    return files | {"manifest.json": encode([entry])}


def docker_of(data: bytes) -> dict[str, bytes]:
    """An archive whose config is this."""
    return {"c.json": data, "manifest.json": encode([{"Config": "c.json", "RepoTags": None, "Layers": ["l.tar"]}]), "l.tar": BASE}


def oci_with(change) -> dict[str, bytes]:
    """A sound layout, its manifest changed; the index names what it became."""
    document, blobs = imagekit.manifest(LAYERS, "gzip")
    found = json.loads(document)
    change(found, blobs)
    document = encode(found)
    return imagekit.layout([descriptor(document, OCI + "manifest.v1+json")], blobs | dict([blob(document)]))


def layers_of(document, **change):
    def apply(found, blobs):
        found["layers"][1] |= change

    return oci_with(apply)


def index_of(*entries: dict, **blobs) -> dict[str, bytes]:
    return imagekit.layout(entries, blobs)


def circle() -> dict[str, bytes]:
    """Indexes in each other, deeper than any archive needs; a real circle would need a SHA-256 that fits itself."""
    document, blobs = imagekit.manifest([BASE])
    blobs |= dict([blob(document)])
    inner = descriptor(document, OCI + "manifest.v1+json")
    for _ in range(20):
        index = encode({"manifests": [inner]})
        blobs |= dict([blob(index)])
        inner = descriptor(index, OCI + "index.v1+json")
    return imagekit.layout([inner], blobs)


def a_true_circle() -> dict[str, bytes]:
    name = "blobs/sha256/" + "ab" * 32
    index = encode({"manifests": [{"mediaType": OCI + "index.v1+json", "digest": ABSENT, "size": 1}]})
    return imagekit.layout([{"mediaType": OCI + "index.v1+json", "digest": ABSENT, "size": len(index)}], {name: index})


def packed_wrong(found, blobs):
    name = "blobs/sha256/" + found["layers"][1]["digest"][7:]
    blobs[name] = gzip.compress(TOP, 9, mtime=1).ljust(found["layers"][1]["size"], b"\0")[: found["layers"][1]["size"]]


def other_layer(found, blobs):
    """Digests and sizes are right, but the config means another tar."""
    data = gzip.compress(BASE, 1, mtime=0)
    blobs |= dict([blob(data)])
    found["layers"][1] = descriptor(data, OCI + "layer.v1.tar+gzip")


def set_key(key, value):
    return lambda files, entry: entry.update({key: value})


# What is wrong: (files, what is said)
WRONG = {
    "no archive of images": ({"hello": b"world"}, "no manifest.json, no index.json"),
    "manifest.json is not JSON": ({"manifest.json": b"[{]"}, "manifest.json is not valid JSON"),
    "manifest.json is an object": ({"manifest.json": b"{}"}, "not a list of images"),
    "manifest.json of numbers": ({"manifest.json": b"[1]"}, "not a list of images"),
    "manifest.json is deep": ({"manifest.json": b"[" * 200_000}, "not valid JSON"),
    "no config named": (docker_with(lambda f, e: e.pop("Config")), "has no Config"),
    "a config that is a number": (docker_with(set_key("Config", 1)), "Config has the wrong type"),
    "a config outside": (docker_with(set_key("Config", "../../etc/passwd")), "outside of the archive"),
    "a config at the root": (docker_with(set_key("Config", "/etc/passwd")), "the archive has no etc/passwd"),
    "a config behind the root": (docker_with(set_key("Config", "/../etc/passwd")), "outside of the archive"),
    "a config that is not there": (docker_with(set_key("Config", "nothing.json")), "has no nothing.json"),
    "a layer outside": (docker_with(set_key("Layers", ["../x", "a", "b"])), "outside of the archive"),
    "a layer that is not there": (docker_with(set_key("Layers", ["0/layer.tar", "1/layer.tar", "9/layer.tar"])), "has no 9/layer.tar"),
    "layers that are no texts": (docker_with(set_key("Layers", [1, 2, 3])), "not a list of texts"),
    "too few layers": (docker_with(set_key("Layers", ["0/layer.tar"])), "length mismatch: expected 3, got 1"),
    "the same layer for all": (docker_with(set_key("Layers", ["0/layer.tar"] * 3)), "its DiffID is"),
    "layers in another order": (docker_with(set_key("Layers", ["2/layer.tar", "1/layer.tar", "0/layer.tar"])), "its DiffID is"),
    "a name that is none": (docker_with(set_key("RepoTags", ["Not A Name"])), "repository name must be lowercase"),
    "a name with a path": (docker_with(set_key("RepoTags", ["../../x:1"])), "invalid reference format"),
    "names that are a text": (docker_with(set_key("RepoTags", "x")), "RepoTags has the wrong type"),
    "a config of other bytes": (docker_with(lambda f, e: f.update({e["Config"]: imagekit.config(LAYERS, author="x")})), "is damaged"),
    "a layer that is a document": (docker_with(lambda f, e: f.update({"1/layer.tar": b'{"a": 1}'})), "1/layer.tar|tar header"),
    "a config without layers": (docker_of(encode({"os": "linux"})), "no RootFS key"),
    "a config that is a list": (docker_of(b"[]"), "not a JSON object"),
    "DiffIDs that are none": (docker_of(encode({"rootfs": {"diff_ids": ["sha256:xyz"]}})), "not digests"),
    "DiffIDs with a path": (docker_of(encode({"rootfs": {"diff_ids": ["sha256:../../../etc/passwd" + "0" * 42]}})), "not digests"),
    "DiffIDs that are numbers": (docker_of(encode({"rootfs": {"diff_ids": [1]}})), "not digests"),
    "too many layers": (docker_of(imagekit.config([BASE] * 126)), "126 layers"),
    "too much history": (docker_of(imagekit.config([BASE], history=[{}, {}])), "too many non-empty layers"),
    "history of numbers": (docker_of(imagekit.config([BASE], history=[1])), "not a list of objects"),
    "a time that is none": (docker_of(imagekit.config([BASE], created="yesterday")), "is not a time"),
    "another system": (docker_of(imagekit.config([BASE], os="windows")), "cannot load 'windows' image"),
    "a config that dockerd cannot read": (docker_of(imagekit.config([BASE], config=[])), "config has the wrong type"),
    "an index of numbers": ({"index.json": b'{"manifests": [1]}'}, "not a JSON object"),
    "an empty index": ({"index.json": b'{"manifests": []}'}, "no image in the layout"),
    "another version": (index_of() | {"oci-layout": b'{"imageLayoutVersion":"2.0.0"}'}, "version '2.0.0'"),
    "a digest that is none": (index_of({"digest": "sha256:../../etc/passwd", "size": 1}), "a digest that is none"),
    "a digest of no known kind": (index_of({"digest": "md5:" + "a" * 32, "size": 1}), "a digest that is none"),
    "no size": (index_of({"digest": ABSENT}), "has no size"),
    "a size below nothing": (index_of({"digest": ABSENT, "size": -1}), "negative"),
    "a manifest that is not there": (index_of({"digest": ABSENT, "size": 1}), "has no blobs/sha256/abab"),
    "a manifest of another size": (index_of({"digest": digest(b"{}"), "size": 3}, **dict([blob(b"{}")])), "has 2 bytes, not the 3"),
    "a manifest of other bytes": (index_of({"digest": ABSENT, "size": 2}, **{"blobs/sha256/" + "ab" * 32: b"{}"}), "is damaged"),
    "the first schema": (index_of(descriptor(b'{"fsLayers":[]}', ""), **dict([blob(b'{"fsLayers":[]}')])), "first schema"),
    "an artifact": (oci_with(lambda found, blobs: found["config"].update(mediaType="application/vnd.cncf.helm.config.v1+json")), "not an image"),
    "an encrypted layer": (layers_of(0, mediaType=OCI + "layer.v1.tar+gzip+encrypted"), "cannot be unpacked"),
    "a layer of another size": (layers_of(0, size=5), "not the 5 its manifest says"),
    "a layer's digest is none": (layers_of(0, digest="sha256:0"), "a digest that is none"),
    "a layer that is absent": (layers_of(0, digest=ABSENT), "has no blobs/sha256/abab"),
    "a damaged layer": (oci_with(packed_wrong), "damaged: its digest is"),
    "a layer of another image": (oci_with(other_layer), "another one: its DiffID is"),
    "fewer layers than the config": (oci_with(lambda found, blobs: found["layers"].pop()), "has 2 layers, its config 3"),
    "indexes without end": (circle(), "more than 8 deep"),
    "an index in itself": (a_true_circle(), "is damaged"),
    "layers in a circle": (
        {f"{a}/json": encode({"id": a, "parent": b}) for a, b in (("a" * 64, "b" * 64), ("b" * 64, "a" * 64))}
        | {f"{a}/layer.tar": BASE for a in ("a" * 64, "b" * 64)} | {"repositories": encode({"x": {"1": "a" * 64}})},
        "in a circle",
    ),
    "a layer's id that is none": ({"x/layer.tar": BASE, "x/json": b"{}"}, "is not an id of a layer"),
    "repositories of numbers": ({"repositories": b'{"x": 1}'}, "does not name images"),
}  # fmt: skip
WAYS = {
    "file": lambda images, files, room: images.load(write_file(room, tar_of(imagekit.documents_first(files)))),
    "stream, documents first": lambda images, files, room: images.load(Once(tar_of(imagekit.documents_first(files)))),
    "stream, documents last": lambda images, files, room: images.load(Once(tar_of(imagekit.documents_last(files)))),
    "directory": lambda images, files, room: images.load(write_to(room / "layout", files)),
}


def write_file(room, data):
    (room / "archive").write_bytes(data)
    return room / "archive"


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_and_nothing_is_left(images, room, nothing_left, victim, wrong):
    files, said = WRONG[wrong]
    for load in WAYS.values():
        with nothing_left(), pytest.raises((ImageError, TarFormatError), match=said):
            load(images, files, room)
    assert images.list() == []
    assert images.store.map() == {}
    assert images.store.orphans() == []


# ---- layers ------------------------------------------------------------------------------------
BAD_LAYERS = {
    "breakout": (tarkit.file("../../victim/hello", b"pwned") + tarkit.end(), BreakoutError),
    "no tar behind its head": (BASE[:512] + b"\1" * 1024, TarFormatError),
    "cut": (BASE[:1600], TarFormatError),
}


@pytest.mark.parametrize("bad", BAD_LAYERS)
def test_a_bad_layer_ends_the_load_with_its_own_error(images, room, nothing_left, victim, bad):
    tar, kind = BAD_LAYERS[bad]
    for load in WAYS.values():
        with nothing_left(), pytest.raises(kind) as raised:
            load(images, imagekit.docker([([BASE, TOP], ["good"]), ([BASE, tar], ["bad"])]), room)
        assert "layer.tar of the archive" in "".join(raised.value.__notes__)
    assert images.store.map() == {}


def test_a_bad_layer_that_no_image_has_is_nobody_s(images):
    files = imagekit.docker([([BASE], ["good"])]) | {"other/layer.tar": BAD_LAYERS["breakout"][0], "noise.gz": b"\x1f\x8b" + b"x" * 600}
    assert images.load(Once(tar_of(imagekit.documents_last(files))))[0].references == ("good:latest",)
    assert images.store.orphans() == []


# ---- the tar around them -----------------------------------------------------------------------
@pytest.mark.parametrize("way", ["file", "stream", "pipe"])
@pytest.mark.parametrize("at", [1, 511, 513, 700, 3000, -4000, -2000])
def test_an_archive_cut_anywhere(images, room, nothing_left, way, at):
    data = tar_of(imagekit.documents_last(imagekit.docker([(LAYERS, ["a/b:1"])])))[:at]
    with nothing_left(), pytest.raises((ImageError, TarFormatError), match=r"cut|no tar|has no|no manifest"):
        if way == "file":
            images.load(write_file(room, data))
        elif way == "stream":
            images.load(Once(data))
        else:
            with subprocess.Popen(["cat", write_file(room, data)], stdout=subprocess.PIPE) as cat:
                images.load(cat.stdout)


def test_an_empty_archive(images):
    for source in (b"", Once(b"")):
        with pytest.raises(ImageError, match="empty"):
            images.load(source)


@pytest.mark.parametrize("kind", ["gzip", "zstd", "xz"])
def test_a_compressed_archive_that_is_cut(images, nothing_left, kind):
    data = subprocess.run([kind, "-c"], input=tar_of(imagekit.docker([(LAYERS, [])])), capture_output=True, check=True).stdout
    with nothing_left(), pytest.raises((TarFormatError, ImageError)):
        images.load(Once(data[: len(data) // 2]))


HEADERS = {
    "a number that is none": (tarkit.raw_header("x", size=b"zz"), "no number"),
    "more than there is": (tarkit.raw_header("x", size=1 << 40), "cut"),
    "a huge extension": (tarkit.raw_header("x", typeflag=b"x", size=1 << 40), "extended header"),
    "a huge long name": (tarkit.raw_header("x", typeflag=b"L", size=1 << 30), "extended header"),
    "a negative size": (tarkit.raw_header("x", size=b"\xff" * 12), "the size is negative"),
    "a bad checksum": (tarkit.raw_header("x", chksum=1), "not a tar"),
    "malformed extensions": (tarkit.pax(b"99999 path=x\n"), "malformed"),
    "an endless name": (tarkit.pax({"path": "x" * 5000}) + tarkit.file("x"), "malformed"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("header", HEADERS)
def test_a_bad_header_of_the_archive(images, room, nothing_left, header, stream):
    data, said = HEADERS[header]
    data = tar_of({"first": b"{}"})[:1024] + data + tar_of(imagekit.docker([(LAYERS, [])]))
    with nothing_left(), pytest.raises(ImageError, match=said):
        images.load(Once(data) if stream else write_file(room, data))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("link", "said"),
    [
        (tarkit.symlink("2/layer.tar", "../../../victim/hello"), "is not a file of it"),
        (tarkit.symlink("2/layer.tar", "/etc/passwd"), "is not a file of it"),
        (tarkit.symlink("2/layer.tar", "layer.tar"), "in a circle"),
        (tarkit.symlink("2/layer.tar", "../nothing"), "has no 2/layer.tar"),
        (tarkit.hardlink("2/layer.tar", "../../etc/passwd"), "is not a file of it"),
        (tarkit.fifo("2/layer.tar"), "is not a file of it"),
        (tarkit.dir("2/layer.tar"), "is not a file of it"),
    ],
)  # fmt: skip
def test_a_layer_that_is_a_link_out_of_the_archive(images, room, nothing_left, victim, stream, link, said):
    files = imagekit.docker([(LAYERS, [])])
    del files["2/layer.tar"]
    data = tar_of(files)[:-1024] + link + tarkit.end()
    with nothing_left(), pytest.raises(ImageError, match=said):
        images.load(Once(data) if stream else write_file(room, data))


@pytest.mark.parametrize("name", ["manifest.json", "2/layer.tar"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_there_twice_is_refused(images, room, nothing_left, stream, name):
    """One tool takes the first, another the last: they would see different images. The same bytes are the same image."""
    files = imagekit.docker([(LAYERS, [])])
    data = tar_of(files)[:-1024] + tarkit.file(name, files[name]) + tarkit.end()
    images.remove(images.load(Once(data) if stream else write_file(room, data))[0])
    other = {"manifest.json": files[name] + b" ", "2/layer.tar": files["1/layer.tar"]}[name]
    data = tar_of(files)[:-1024] + tarkit.file(name, other) + tarkit.end()
    with nothing_left(), pytest.raises(ImageError, match="more than once"):
        images.load(Once(data) if stream else write_file(room, data))


# ---- the directory -----------------------------------------------------------------------------
def sound_layout(room):
    return write_to(room / "layout", imagekit.oci(LAYERS, "gzip", "a/b:1"))


@pytest.mark.parametrize("what", ["index.json", "layer", "blobs", "config"])
def test_links_lead_out_of_no_layout(images, room, nothing_left, what):
    """Even where what they lead to would be right."""
    place = sound_layout(room)
    outside = room / "outside"
    layer = imagekit.PACKERS["gzip"][0](BASE)
    name = {"index.json": "index.json", "blobs": "blobs", "config": blob(imagekit.config(LAYERS))[0], "layer": blob(layer)[0]}[what]
    (place / name).rename(outside)
    (place / name).symlink_to(outside if what == "layer" else os.path.relpath(outside, (place / name).parent))
    with nothing_left(), pytest.raises(ImageError, match="leads out of the layout"):
        images.load(place)


def test_links_within_a_layout_are_followed(images, room):
    place = sound_layout(room)
    (place / "blobs/sha256").rename(place / "real")
    (place / "blobs/sha256").symlink_to("../real")
    layer = blob(imagekit.PACKERS["gzip"][0](BASE))[0].rpartition("/")[2]
    (place / "real" / layer).rename(place / "apart")
    (place / "real" / layer).symlink_to("../apart")
    assert images.load(place)[0].references == ("a/b:1",)


def test_links_in_a_circle_and_fifos_end(images, room, nothing_left):
    place = sound_layout(room)
    layer = place / blob(imagekit.PACKERS["gzip"][0](BASE))[0]
    layer.unlink()
    layer.symlink_to(layer.name)
    with nothing_left(), pytest.raises(ImageError, match="in a circle"):
        images.load(place)
    layer.unlink()
    os.mkfifo(layer)
    with nothing_left(), pytest.raises(ImageError, match="is not a file"):
        images.load(place)


# ---- a full disk -------------------------------------------------------------------------------
@pytest.mark.parametrize("way", WAYS)
def test_a_disk_that_is_full_leaves_nothing(room, open_store, way):
    """The second layer does not fit; then a smaller image does."""
    place = room / "small"
    place.mkdir()
    disk.mount("tmpfs", place, "tmpfs", 0, "size=3m")
    try:
        store = open_store(place / "docker")
        images = layerstore.Images(store)
        before = disk.inventory(place)
        large = tarkit.file("large", os.urandom(4 << 20)) + tarkit.end()
        with pytest.raises(OSError, match="No space left"):
            WAYS[way](images, imagekit.docker([([BASE, large], ["x"])]), room)
        empty = {"docker/image/overlay2/layerdb/tmp", "docker/image/overlay2/layerdb/sha256"}
        assert disk.inventory(place) - empty == before - empty
        assert images.load(tar_of(imagekit.docker([(LAYERS, ["x"])])))
        store.close()
    finally:
        disk.unmount(place)


# ---- memory ------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", WAYS)
def test_a_huge_document_is_not_read(images, room, nothing_left, way):
    files = {"manifest.json": b"[" + b" " * DOCUMENT_LIMIT + b"]"}
    with nothing_left(), pytest.raises(ImageError, match=r"a document has at most|larger than one may be"):
        WAYS[way](images, files, room)


def test_documents_altogether_are_bounded(images, room):
    """Each is small enough, and of another image."""
    many = encode([{"Config": f"{n}.json", "Layers": []} for n in range(20)])
    with open(room / "archive", "wb") as out:
        out.write(tarkit.file("manifest.json", many))
        for n in range(20):
            out.write(tarkit.file(f"{n}.json", b'{"rootfs":{},"n":%d}' % n + b" " * (DOCUMENT_LIMIT - 64)))
        out.write(tarkit.end())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open(room / "archive", "rb") as file:
        for source in (room / "archive", Piped(file)):
            with pytest.raises(ImageError, match=r"documents of more than"):
                images.load(source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


class Piped:
    """read() of a file, and nothing else."""

    def __init__(self, file):
        self._file = file

    def read(self, n):
        return self._file.read(n)


def test_an_archive_of_too_many_entries(images, room, monkeypatch):
    monkeypatch.setattr("layerstore.images.archive.ENTRIES_LIMIT", 1000)
    data = b"".join(tarkit.file(f"{n}") for n in range(1001)) + tarkit.end()
    for source in (write_file(room, data), Once(data, 1 << 20)):
        with pytest.raises(ImageError, match="more than 1000 entries"):
            images.load(source)


LARGE = """
import hashlib, imagekit
size = 300 << 20
head = tarkit.raw_header("f", size=size)
hashed = hashlib.sha256(head)
for _ in range(300): hashed.update(bytes(1 << 20))
hashed.update(bytes(1024))
config = imagekit.config([], rootfs={"type": "layers", "diff_ids": ["sha256:" + hashed.hexdigest()]}, history=[])
tar_size = 512 + size + 1024
archive = Reads(tarkit.raw_header("l.tar", size=tar_size), head, size + 1024 + -tar_size % 512, tarkit.file("c.json", config),
                tarkit.file("manifest.json", imagekit.encode([{"Config": "c.json", "Layers": ["l.tar"]}])), 1024)
store = layerstore.Store(sys.argv[1], options={"durability": "none"})
"""


def test_a_layer_is_not_held_in_memory(room):
    """300 MB of it from a stream, in a process that may not have 100 MB more."""
    assert growth("layerstore.Images(store).load(archive)", room / "store", before=LARGE) < 100


def test_hexes_are_those_of_the_archive():
    """The kit's own arithmetic, on which the tests above stand."""
    assert digest(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert hexes(b"") == digest(b"")[7:]
