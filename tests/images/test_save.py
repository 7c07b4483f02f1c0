"""What save() writes: every layer bit for bit, the same bytes each time, wherever it goes."""

import gzip
import io
import json
import os
import subprocess
import tarfile
import tempfile
import threading

import imagekit
import pytest
import recipes
import stored
import tarkit
from imagekit import BASE, MIDDLE, TOP, Once, image_id, tar_of

import layerstore
from layerstore import CorruptLayerError, ImageDoesNotExistError, ImageError, Images, Store
from layerstore.images.save import TarTarget

LAYERS = [BASE, MIDDLE, TOP]
MANY = [(LAYERS, ["a/b:1", "a/b:2"]), ([BASE], ["base:latest"]), ([TOP, BASE, TOP], []), ([], ["empty:x"])]
WAYS = [("docker", None), ("docker", "gzip"), ("docker-v1", None), ("oci", None), ("oci", "gzip"), ("oci", "zstd"),
        ("oci-dir", None), ("oci-dir", "gzip"), ("oci-dir", "zstd")]  # fmt: skip


@pytest.fixture
def loaded(images):
    images.load(tar_of(imagekit.docker(MANY)))
    return images


@pytest.mark.parametrize(("format", "compression"), WAYS)
def test_what_went_out_comes_in_again(loaded, room, format, compression):
    """All images with all names and layers, also through a pipe; into a store that has none of them."""
    ids = [image_id(layers) for layers, _ in MANY]
    written = loaded.save(ids, room / "out", format=format, compression=compression)
    sources = [room / "out"]
    if format != "oci-dir":
        assert written == (room / "out").stat().st_size
        sources.append(Once((room / "out").read_bytes()))
    for number, source in enumerate(sources):
        with Store(room / str(number), options={"durability": "none"}) as store:
            found = Images(store).load(source)
            assert [image.id for image in found] == ids
            assert [image.references for image in found] == [tuple(names) for _, names in MANY]
            for image, (layers, _) in zip(found, MANY, strict=True):
                assert [stored.tar_of(store.map()[chain]) for chain in image.layers] == layers
            assert store.verify() == []


@pytest.mark.parametrize(("format", "compression"), [way for way in WAYS if way[0] != "oci-dir"])
def test_the_bytes_are_the_same_each_time(loaded, room, format, compression):
    """From another store, loaded in another order, at another time, to another kind of target."""
    loaded.save(["a/b:1", "base"], room / "one.tar", format=format, compression=compression)
    with Store(room / "second", options={"durability": "none"}) as store:
        other = Images(store)
        other.load(Once(tar_of(imagekit.layers_upside_down(imagekit.docker(MANY)))))
        out = io.BytesIO()
        other.save(["a/b:1", "base"], out, format=format, compression=compression)
    assert out.getvalue() == (room / "one.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}
        assert all(member.mode == {b"0": 0o644, b"5": 0o755}.get(member.type, 0o777) for member in tar)


def test_documents_come_before_layers(loaded):
    """So a reader of the stream knows what it wants before it comes."""
    for format in ("docker", "oci"):
        out = io.BytesIO()
        loaded.save("a/b:1", out, format=format)
        names = stored.names_of(out.getvalue())
        layers = [names.index(imagekit.blob(layer)[0]) for layer in LAYERS]
        assert layers == sorted(layers)
        assert min(layers) > max(names.index(name) for name in names if not name.startswith("blobs") or len(names) < 3)
        assert min(layers) > names.index(imagekit.blob(imagekit.config(LAYERS))[0])
        assert "manifest.json" in names or format == "oci"


def test_a_layer_that_images_share_is_there_once(loaded, room):
    loaded.save([image_id(layers) for layers, _ in MANY], room / "out")
    names = stored.names_of((room / "out").read_bytes())
    assert len(names) == len(set(names))
    assert sum(name.startswith("blobs/sha256/") for name in names) == 3 + 2 * len(MANY)


def test_a_name_takes_itself_along_and_an_id_all(loaded):
    for wanted, names in (("a/b:1", ["a/b:1"]), (image_id(LAYERS), ["a/b:1", "a/b:2"]), (["a/b:2", "a/b:1"], ["a/b:2", "a/b:1"])):
        out = io.BytesIO()
        loaded.save(wanted, out)
        with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
            entries = json.load(tar.extractfile("manifest.json"))
        assert [entry["RepoTags"] for entry in entries] == [names]


@pytest.mark.parametrize("target", ["path", "descriptor", "pipe", "file", "unbuffered", "write()"])
def test_every_target_gets_the_same_bytes(loaded, room, target):
    loaded.save("a/b:1", room / "wanted")
    wanted, path = (room / "wanted").read_bytes(), room / "out"
    if target == "path":
        assert loaded.save("a/b:1", path) == len(wanted)
    elif target == "write()":

        class Little:
            """A raw file, which takes what it likes."""

            data = b""

            def write(self, data):
                self.data += bytes(data[:777])
                return min(len(data), 777)

        out = Little()
        loaded.save("a/b:1", out)
        path.write_bytes(out.data)
    elif target == "pipe":
        to_read, to_write = os.pipe()
        with open(to_read, "rb") as reader:
            with open(to_write, "wb"):
                loaded.save("base", to_write)
            path.write_bytes(reader.read())
        loaded.save("base", room / "wanted")
        wanted = (room / "wanted").read_bytes()
    else:
        with open(path, "wb", buffering=0 if target == "unbuffered" else -1) as out:
            loaded.save("a/b:1", out.fileno() if target == "descriptor" else out)
    assert path.read_bytes() == wanted


def test_gzip_is_of_the_layer_and_its_digest_of_that(loaded, room):
    loaded.save("a/b:1", room / "out", format="oci-dir", compression="gzip")
    index = json.loads((room / "out/index.json").read_bytes())
    manifest = json.loads((room / "out/blobs/sha256" / index["manifests"][0]["digest"][7:]).read_bytes())
    for layer, tar in zip(manifest["layers"], LAYERS, strict=True):
        data = (room / "out/blobs/sha256" / layer["digest"][7:]).read_bytes()
        assert (imagekit.digest(data), len(data)) == (layer["digest"], layer["size"])
        assert gzip.decompress(data) == tar
        assert layer["mediaType"].endswith("tar+gzip")


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_a_file_is_replaced_when_the_new_one_is_whole(loaded, store, room):
    path = room / "out.tar"
    path.write_text("the old one")
    damaged = store.map()[loaded.get("a/b:1").top]
    with open(os.path.join(damaged.metadata()["UpperDir"], "app/main"), "r+b") as file:
        file.write(b"y")
    for format, compression in WAYS:
        with pytest.raises(CorruptLayerError):
            loaded.save("a/b:1", room / "directory" if format == "oci-dir" else path, format=format, compression=compression)
    assert path.read_text() == "the old one"
    assert sorted(os.listdir(room)) == ["docker", "out.tar"]
    loaded.save("base", path)
    assert path.stat().st_size > 1000
    assert store._engine.holds._counts.keys() == {"store"}


def test_a_link_is_followed_and_a_device_stays_one(loaded, room):
    (room / "real.tar").write_text("old")
    (room / "link.tar").symlink_to("real.tar")
    loaded.save("base", room / "link.tar")
    assert (room / "link.tar").is_symlink()
    assert (room / "real.tar").stat().st_size > 1000
    os.mknod(room / "null", 0o600 | 0o020000, os.makedev(1, 3))
    assert loaded.save("base", room / "null") > 1000
    assert (room / "null").is_char_device()
    (room / "place").mkdir()
    (room / "to-place").symlink_to("place")
    loaded.save("base", room / "to-place", format="oci-dir")
    assert (room / "place/index.json").exists()
    with pytest.raises(OSError, match="Is a directory"):
        loaded.save("base", room / "place")


def test_a_directory_has_to_be_empty(loaded, room):
    (room / "full").mkdir()
    (room / "full/x").write_text("")
    with pytest.raises(ImageError, match="not empty"):
        loaded.save("base", room / "full", format="oci-dir")
    (room / "empty").mkdir()
    loaded.save("base", room / "empty", format="oci-dir")
    assert sorted(os.listdir(room / "full")) == ["x"]


def test_what_cannot_be_asked_for(loaded, room):
    for wrong in (
        {"format": "zip"}, {"compression": "xz"}, {"format": "docker-v1", "compression": "gzip"}, {"compression": "zstd"},
    ):  # fmt: skip
        with pytest.raises(ImageError):
            loaded.save("base", room / "out", **wrong)
    with pytest.raises(ImageError, match="no image is named"):
        loaded.save([], room / "out")
    for target in (None, True, object()):
        with pytest.raises(TypeError):
            loaded.save("base", target)
    with pytest.raises(TypeError):
        loaded.save("base", 1, format="oci-dir")
    assert sorted(os.listdir(room)) == ["docker"]


def test_progress_is_told_in_bytes_of_layers(images, room):
    layers = [tarkit.file("a", bytes(4 << 20)) + tarkit.end(), BASE]
    images.load(tar_of(imagekit.docker([(layers, ["x"])])))
    for format, compression in WAYS:
        told: list[layerstore.Done] = []
        images.save("x", room / f"{format}{compression}", format=format, compression=compression, progress=told.append)
        assert told[-1] == told[-1].total == sum(map(len, layers))
        assert told == sorted(told)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_packing_that_is_stopped_leaves_nothing(images, store, room, compression):
    """By what progress raises, several layers on their way."""
    layers = [tarkit.file(name, recipes.noise(20 << 20, 3)) + tarkit.end() for name in "abc"]
    images.load(tar_of(imagekit.docker([(layers, ["x"])])))
    threads = threading.active_count()

    def stop(done):
        raise stored.BoomError

    with pytest.raises(stored.BoomError):
        images.save("x", room / "out", format="oci", compression=compression, progress=stop)
    assert sorted(os.listdir(room)) == ["docker"]
    assert threading.active_count() == threads
    assert store._engine.holds._counts.keys() == {"store"}


def test_what_is_larger_than_a_header_can_say(images, room):
    """9 GB of zeros: the size needs a PAX record. A hole in, a hole out of the file system, never in memory."""
    size = 9 << 30
    head = tarkit.raw_header("hole", typeflag=b"S", magic=tarkit.GNU, size=0, patch={483: tarkit.number(size, 12)})
    assert len(head) == 512                                    # a sparse file of nothing but a hole: small as a tar
    images.load(tar_of(imagekit.docker([([head + tarkit.end()], ["hole"])])))
    assert images.get("hole").size == size
    assert images.save("hole", room / "out") < 20_000
    out = io.BytesIO()
    target = TarTarget(out)
    target._header("large", b"0", size, 0o644)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue() + bytes(1024))) as tar:
        assert tar.next().size == size


# ---- a compressed archive takes no room but its own --------------------------------------------
@pytest.fixture
def noisy(images):
    """An image whose layers do not become smaller."""
    layers = [tarkit.file(f"{n}", recipes.noise(3 << 20, n)) + tarkit.end() for n in range(4)] + [tarkit.end()]
    images.load(tar_of(imagekit.docker([(layers, ["noisy"])])))
    return images


@pytest.mark.parametrize(("format", "compression"), [(f, c) for f, c in WAYS if c])
@pytest.mark.parametrize("target", ["path", "descriptor", "append", "file", "behind"])
def test_the_archive_takes_no_more_room_than_it_has_bytes(noisy, room, mounted, monkeypatch, format, compression, target):
    """Nothing waits anywhere else either: there is no room for it."""
    whole = room / "whole"
    size = noisy.save("noisy", whole, format=format, compression=compression)
    place = mounted("tmpfs", f"size={size + (6 << 20)}")
    monkeypatch.setattr(tempfile, "tempdir", str(mounted("tmpfs", "size=4096")))
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    path = place / "out"
    if format == "oci-dir" or target == "path":
        assert noisy.save("noisy", path, format=format, compression=compression) == size
    else:
        before = b"before" if target == "behind" else b""
        path.write_bytes(before)
        with open(path, "ab" if target == "append" else "r+b", buffering=0) as out:
            out.seek(0, os.SEEK_END)
            given = out if target == "file" else out.fileno()
            assert noisy.save("noisy", given, format=format, compression=compression) == size
            out.write(b"behind")
        data = path.read_bytes()
        assert data.startswith(before) and data.endswith(b"behind")
        path.write_bytes(data[len(before) : -6])
    if format == "oci-dir":
        assert {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()} == {
            p.relative_to(whole): p.read_bytes() for p in whole.rglob("*") if p.is_file()
        }
    else:
        assert path.read_bytes() == whole.read_bytes()


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_a_file_that_was_given_is_as_it_was_after_an_error(noisy, store, room):
    damaged = store.map()[noisy.get("noisy").layers[2]]
    with open(os.path.join(damaged.metadata()["UpperDir"], "2"), "r+b") as file:
        file.write(b"y")
    path = room / "out"
    path.write_bytes(b"before")
    with open(path, "ab") as out, pytest.raises(CorruptLayerError, match=damaged.chain_id):
        noisy.save("noisy", out, compression="gzip")
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR])
def test_what_stands_behind_is_not_overwritten_from_far(loaded, room, flags):
    """A descriptor inside a file: the archive is written over what is there, as ever, and what lies behind stays."""
    loaded.save("base", room / "wanted", compression="gzip")
    wanted = (room / "wanted").read_bytes()
    path = room / "out"
    path.write_bytes(b"z" * (len(wanted) + 5000))
    fd = os.open(path, flags)
    os.lseek(fd, 100, os.SEEK_SET)
    loaded.save("base", fd, compression="gzip")
    os.close(fd)
    assert path.read_bytes() == b"z" * 100 + wanted + b"z" * 4900


# ---- without layers that the other side has -----------------------------------------------------
@pytest.mark.parametrize(("format", "compression"), WAYS)
def test_layers_that_are_left_out_are_named_and_not_written(loaded, store, room, format, compression):
    image = loaded.get("a/b:1")
    whole, part = room / "whole", room / "part"
    loaded.save("a/b:1", whole, format=format, compression=compression)
    loaded.save("a/b:1", part, format=format, compression=compression, exclude=[image.layers[-2]])
    if format == "oci-dir":
        there = [{str(p.relative_to(one)): p.read_bytes() for p in one.rglob("*") if p.is_file()} for one in (whole, part)]
    else:
        there = []
        for one in (whole, part):
            with tarfile.open(one) as tar:
                there.append({e.name: tar.extractfile(e).read() if e.isfile() else e.linkname for e in tar if not e.isdir()})
    assert there[1] == {name: data for name, data in there[0].items() if name in there[1]}
    gone = [data for name, data in there[0].items() if name not in there[1]]
    unpack = {"gzip": gzip.decompress, "zstd": lambda data: subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout}
    plain = [unpack[compression](data) if compression else data for data in gone if isinstance(data, bytes)]
    assert sorted(plain) == sorted(set(LAYERS[: len(image.layers) - 1]) - {LAYERS[len(image.layers) - 1]})


@pytest.mark.parametrize("how", ["Layer", "ChainID", "Image", "name", "id", "alone"])
def test_what_may_be_left_out(loaded, store, room, how):
    image = loaded.get("base")
    bare = store.map()[image.top]
    given = {"Layer": [bare], "ChainID": [image.top, "sha256:" + "0" * 64], "Image": {image}, "name": iter(["base"]), "id": [image.id],
             "alone": "base"}[how]  # fmt: skip
    loaded.save(["a/b:1", "base"], room / "out", exclude=given)
    names = stored.names_of((room / "out").read_bytes())
    left_out = {d for d, c in zip(loaded.get("a/b:1").diff_ids, loaded.get("a/b:1").layers, strict=True) if c in image.layers}
    assert left_out
    assert [d for d in left_out if f"blobs/sha256/{d.encoded}" in names] == []
    for wrong, error in ((["no:1"], ImageDoesNotExistError), (["UPPER"], ImageError), ([5], TypeError)):
        with pytest.raises(error):
            loaded.save("base", room / "other", exclude=wrong)
    assert not (room / "other").exists()


@pytest.mark.parametrize(("format", "compression"), WAYS)
def test_what_was_left_out_is_taken_from_the_store(loaded, store, room, format, compression):
    """An archive without the layers below is loaded where they are, and refused where they are not."""
    loaded.save("base", room / "base")
    loaded.save("a/b:1", room / "part", format=format, compression=compression, exclude="base")
    with layerstore.Store(room / "there") as other:
        Images(other).load(room / "base")
        [image] = Images(other).load(room / "part")
        assert image == loaded.get("a/b:1") and other.verify() == []
    with layerstore.Store(room / "elsewhere") as other, pytest.raises(ImageError):
        Images(other).load(room / "part")
