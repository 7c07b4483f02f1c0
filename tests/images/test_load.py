"""Whatever holds images, and however it comes: the same images with the same layers."""

import bz2
import gzip
import io
import json
import lzma
import os
import signal
import subprocess

import another
import disk
import imagekit
import pytest
import tarkit
from driven import DRIVER, LAYERDB
from imagekit import BASE, MIDDLE, TOP, Once, image_id, write_to
from imagekit import tar_of as archive_of
from stored import BoomError, Failing, at_once, tar_of

import layerstore
from layerstore import ImageError, Images, LayerStoreError

LAYERS = [BASE, MIDDLE, TOP]
CHAINS = [tarkit.chain_id(*map(tarkit.diff_id, LAYERS[: n + 1])) for n in range(3)]

ARCHIVES = {
    "docker": lambda: imagekit.docker([(LAYERS, ["a/b:1"])]),
    "docker, layers packed": lambda: imagekit.docker([(LAYERS, ["a/b:1"])], gzip.compress),
    "oci": lambda: imagekit.oci(LAYERS, "plain", "docker.io/a/b:1"),
    "oci gzip": lambda: imagekit.oci(LAYERS, "gzip", "docker.io/a/b:1"),
    "oci zstd": lambda: imagekit.oci(LAYERS, "zstd", "docker.io/a/b:1"),
    "docker's media types": lambda: imagekit.oci(LAYERS, "gzip", "docker.io/a/b:1", docker_types=True),
}  # fmt: skip
ORDERS = [imagekit.documents_first, imagekit.documents_last, imagekit.layers_upside_down]


def load_file(images, data, room):
    (room / "archive").write_bytes(data)
    return images.load(room / "archive")


def load_open_file(images, data, room):
    """From where it stands, and to its end."""
    (room / "archive").write_bytes(b"before" + data)
    with open(room / "archive", "rb") as file:
        file.seek(6)
        found = images.load(file)
        assert file.read() == b""
    return found


def load_descriptor(images, data, room):
    (room / "archive").write_bytes(b"before" + data)
    with open(room / "archive", "rb", buffering=0) as file:
        os.lseek(file.fileno(), 6, os.SEEK_SET)
        found = images.load(file.fileno())
        assert os.read(file.fileno(), 10) == b""
    return found


def load_pipe(images, data, room):
    (room / "archive").write_bytes(data)
    with subprocess.Popen(["cat", room / "archive"], stdout=subprocess.PIPE) as cat:
        return images.load(cat.stdout.fileno())


WAYS = {
    "path": load_file,
    "open file": load_open_file,
    "descriptor": load_descriptor,
    "pipe": load_pipe,
    "read(n)": lambda images, data, room: images.load(Once(data)),
    "buffer": lambda images, data, room: images.load(data),
    "gzip": lambda images, data, room: images.load(gzip.compress(data)),
    "gzip in a file": lambda images, data, room: load_file(images, gzip.compress(data), room),
    "xz through a pipe": lambda images, data, room: load_pipe(images, lzma.compress(data), room),
    "bzip2": lambda images, data, room: images.load(Once(bz2.compress(data))),
    "zstd": lambda images, data, room: images.load(imagekit.zstd(data)),
}


def check(store, image):
    assert image.id == image_id(LAYERS)
    assert image.references == ("a/b:1",)
    assert list(image.layers) == CHAINS
    assert image.top == CHAINS[-1]
    assert set(store.map()) == set(CHAINS)
    assert [tar_of(store.map()[chain]) for chain in CHAINS] == LAYERS
    assert store.verify() == []
    assert store.orphans() == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("archive", ["docker", "oci gzip"])
def test_every_way_in_gives_the_same_image(store, images, room, archive, way):
    [image] = WAYS[way](images, archive_of(ARCHIVES[archive]()), room)
    check(store, image)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.__name__)
@pytest.mark.parametrize("way", ["path", "pipe"])
@pytest.mark.parametrize("archive", ARCHIVES)
def test_every_archive_in_every_order(store, images, room, archive, way, order):
    [image] = WAYS[way](images, archive_of(order(ARCHIVES[archive]())), room)
    check(store, image)


@pytest.mark.parametrize("archive", ARCHIVES)
def test_an_unpacked_archive(store, images, room, archive):
    [image] = images.load(write_to(room / "layout", ARCHIVES[archive]()))
    check(store, image)


def test_what_docker_25_saves_is_both(store, images):
    """An OCI layout with manifest.json: its names count, and they are those of docker."""
    files = imagekit.oci(LAYERS, "plain", "other/name:9")
    blobs = [imagekit.blob(layer)[0] for layer in LAYERS]
    files["manifest.json"] = imagekit.encode([
        {"Config": imagekit.blob(imagekit.config(LAYERS))[0], "RepoTags": ["a/b:1"], "Layers": blobs}
    ])  # fmt: skip
    [image] = images.load(archive_of(files))
    check(store, image)


@pytest.mark.parametrize("way", ["path", "pipe"])
def test_what_docker_saved_before_1_10(store, images, room, way):
    [image] = WAYS[way](images, archive_of(imagekit.v1(LAYERS, "a/b:1")), room)
    assert list(image.layers) == CHAINS
    assert image.references == ("a/b:1",)
    assert image.config["history"][1] == {"created": "2013-01-01T00:00:00Z", "created_by": "sh -c step 1"}
    assert "id" not in image.config
    assert image.created == "2013-01-01T00:00:00Z"


@pytest.mark.parametrize("way", ["path", "pipe", "read(n)"])
def test_links_between_layers_are_followed(store, images, room, way):
    files = imagekit.docker([(LAYERS, ["a/b:1"])])
    layer = files.pop("1/layer.tar")
    links = {"1/layer.tar": "../elsewhere/./layer.tar"}
    [image] = WAYS[way](images, archive_of(files | {"elsewhere/layer.tar": layer}, links), room)
    check(store, image)


@pytest.mark.parametrize("way", ["path", "pipe"])
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.__name__)
def test_several_images_that_share_layers(store, images, room, way, order):
    """One of them has a layer on another parent: it is unpacked once, and both are whole."""
    many = [(LAYERS, ["a/b:1", "a/b:latest"]), ([BASE], ["base"]), ([TOP, BASE, TOP], []), ([], ["empty:x"])]
    found = WAYS[way](images, archive_of(order(imagekit.docker(many))), room)
    assert [image.id for image in found] == [image_id(layers) for layers, _ in many]
    assert [image.references for image in found] == [("a/b:1", "a/b:latest"), ("base:latest",), (), ("empty:x",)]
    for image, (layers, _) in zip(found, many, strict=True):
        assert [tar_of(store.map()[chain]) for chain in image.layers] == layers
    assert store.verify() == []
    assert store.orphans() == []
    assert found[3].size == 0
    assert found[3].top == ""


@pytest.mark.parametrize("first", ["parent", "child"])
def test_a_parent_is_noted_wherever_it_stands_in_the_archive(images, first):
    """docker save writes images in no order, and so in another one each time."""
    files = imagekit.docker([([BASE], ["parent"]), ([BASE, MIDDLE], ["child"])])
    below, above = json.loads(files["manifest.json"])
    above["Parent"] = image_id([BASE])
    files["manifest.json"] = json.dumps([below, above] if first == "parent" else [above, below]).encode()
    images.load(archive_of(files))
    assert images.get("child").parent == image_id([BASE])
    assert images.get("parent").parent == ""
    assert images.remove("child").deleted == (image_id([BASE, MIDDLE]),)


def test_two_images_that_are_each_other_s_parents(images):
    """The same layers, other configs: the second is not noted as the first one's parent again, or nothing would end."""
    files = imagekit.docker([([BASE], ["one"])])
    [one] = json.loads(files["manifest.json"])
    data = imagekit.config([BASE], author="another")
    two = one | {"Config": f"{imagekit.hexes(data)}.json", "RepoTags": ["two:latest"], "Parent": image_id([BASE])}
    one["Parent"] = imagekit.digest(data)
    files |= {two["Config"]: data, "manifest.json": json.dumps([one, two]).encode()}
    images.load(archive_of(files))
    assert sorted([images.get("one").parent, images.get("two").parent]) == ["", imagekit.digest(data)]
    assert images.remove("one").deleted == (image_id([BASE]),)
    assert images.remove("two").deleted == (imagekit.digest(data),)


@pytest.mark.parametrize("of", ["another image's layers", "itself", "nobody", "what is no digest"])
def test_a_parent_that_cannot_be_one_is_not_noted(images, of):
    files = imagekit.docker([([TOP], ["other"]), ([BASE, MIDDLE], ["child"])])
    other, child = json.loads(files["manifest.json"])
    child["Parent"] = {"itself": image_id([BASE, MIDDLE]), "nobody": image_id([MIDDLE]), "what is no digest": "../x"}.get(of, image_id([TOP]))
    files["manifest.json"] = json.dumps([other, child]).encode()
    images.load(archive_of(files))
    assert images.get("child").parent == ""
    assert len(images.remove("child").deleted) == 1


@pytest.mark.parametrize("way", ["path", "pipe", "read(n)"])
@pytest.mark.parametrize("archive", ["docker", "oci", "oci gzip"])
def test_what_is_there_is_not_unpacked_again(store, images, room, root, archive, way):
    data = archive_of(imagekit.documents_first(ARCHIVES[archive]()))
    [image] = WAYS[way](images, data, room)
    stamps = {path: os.stat(root / DRIVER / path).st_ctime_ns for path in os.listdir(root / DRIVER)}
    assert WAYS[way](images, data, room) == [image]
    home = os.stat(root / DRIVER).st_mtime_ns
    assert WAYS[way](images, data, room) == [image]
    assert os.stat(root / DRIVER).st_mtime_ns == home       # no directory was even begun
    assert {path: os.stat(root / DRIVER / path).st_ctime_ns for path in os.listdir(root / DRIVER)} == stamps


def test_a_stream_with_its_documents_last_does_not_unpack_what_a_name_says_is_there(store, images, room, root):
    """skopeo's docker-archive and docker 25 name a layer by its digest."""
    files = imagekit.documents_last(imagekit.oci(LAYERS, "plain", "a/b:1"))
    images.load(Once(archive_of(files)))
    home = os.stat(root / DRIVER).st_mtime_ns
    images.load(Once(archive_of(files)))
    assert os.stat(root / DRIVER).st_mtime_ns == home


def test_a_layer_known_by_its_name_goes_on_another_parent(store, images):
    images.load(Once(archive_of(imagekit.documents_last(imagekit.oci([BASE, TOP])))))
    [image] = images.load(Once(archive_of(imagekit.documents_last(imagekit.oci([TOP, BASE])))))
    assert [tar_of(store.map()[chain]) for chain in image.layers] == [TOP, BASE]
    assert store.verify() == []


def test_a_broken_layer_is_mended_by_loading_its_image_again(store, images, root):
    data = archive_of(ARCHIVES["docker"]())
    images.load(data)
    layer = store.map()[CHAINS[0]]
    subprocess.run(["rm", "-r", root / DRIVER / layer.cache_id], check=True)
    assert store.verify() != []
    images.load(data)
    store.cleanup()                                            # the short name that led to what is gone
    assert store.verify() == []


def test_a_layer_with_a_damaged_file_of_the_driver_is_there_all_the_same(store, images):
    [image] = images.load(archive_of(ARCHIVES["docker"]()))
    with store.get(image.top) as top:
        place = os.path.join(store.root, store.driver_name(), top.cache_id, "lower")
        with open(place, "w", encoding="ascii") as lower:
            lower.write("l/../x")
    assert images.load(archive_of(ARCHIVES["docker"]())) == [image]
    assert {problem.subject for problem in store.verify()} == {image.top}


@pytest.mark.only("overlay2", "of the files in a layer's directory: the file of another driver's has no name yet")
def test_no_copy_of_a_stream_is_made(store, images, room, root):
    """When the last bytes come, the disk has the files of the layers that came, and nothing else of any size."""
    noise = os.urandom(3 << 20)
    layers = [tarkit.file(f"f{n}", noise) + tarkit.end() for n in range(3)]
    data = archive_of(imagekit.documents_last(imagekit.docker([(layers, [])])))
    seen = []

    class Watched(Once):
        def read(self, n):
            found = super().read(n)
            if self._at > len(data) - 1024 and not seen:
                for place in (root / DRIVER, root / "image"):
                    size = subprocess.run(["du", "-s", "-B1", "--apparent-size", place], capture_output=True, text=True, check=True).stdout
                    seen.append(int(size.split()[0]))
            return found

    images.load(Watched(data, 1 << 20))
    assert 6 << 20 < seen[0] < (9 << 20) + (1 << 19)
    assert seen[1] < 1 << 19


# ---- names -------------------------------------------------------------------------------------
def test_names_move_to_what_was_loaded_last(images):
    [first] = images.load(archive_of(imagekit.docker([([BASE], ["a/b:1", "keep"])])))
    [second] = images.load(archive_of(imagekit.docker([([TOP], ["a/b:1"])])))
    assert images.get(first.id).references == ("keep:latest",)
    assert images.get("a/b:1") == second


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("docker.io/library/busybox:1", "busybox:1"), ("index.docker.io/library/busybox", "busybox:latest"),
        ("busybox", "busybox:latest"), ("docker.io/a/b:1", "a/b:1"), ("localhost:5000/a:1", "localhost:5000/a:1"),
        ("ghcr.io/a/b/c:x.y_z-1", "ghcr.io/a/b/c:x.y_z-1"), ("localhost/a", "localhost/a:latest"),
    ],
)  # fmt: skip
def test_names_are_docker_s_own(images, written, shown):
    [image] = images.load(archive_of(imagekit.docker([([BASE], [written])])))
    assert image.references == (shown,)
    assert images.get(written) == images.get(shown) == image


def test_tags_replace_the_names_in_the_archive(images):
    data = archive_of(ARCHIVES["docker"]())
    assert images.load(data, tags="x")[0].references == ("x:latest",)
    assert images.load(data, tags=["y:1", "z"])[0].references == ("x:latest", "y:1", "z:latest")


def test_tags_for_several_images_are_nobody_s(images, nothing_left):
    data = archive_of(imagekit.docker([([BASE], []), ([TOP], [])]))
    with nothing_left(), pytest.raises(ImageError, match="2 images"):
        images.load(data, tags="x")


V1 = {"annotations": {"org.opencontainers.image.ref.name": "v1"}}


def test_a_bare_tag_in_a_layout_is_of_what_the_layout_is_called(images, room):
    """As skopeo and umoci say it: oci:app:v1."""
    files = imagekit.layout_of(imagekit.image([BASE], entry=V1))
    assert images.load(write_to(room / "App_1", files))[0].references == ("app_1:v1",)
    (room / "other.tar.gz").write_bytes(gzip.compress(archive_of(files)))
    assert images.load(room / "other.tar.gz")[0].references == ("app_1:v1", "other:v1")
    assert images.load(archive_of(files))[0].references == ("app_1:v1", "other:v1")


@pytest.mark.parametrize("platform", [None, "linux/amd64", "all"])
def test_a_bare_tag_of_several_images_names_none_of_them(images, room, platform):
    """From a file as from a stream: the archive's own name is no reason to refuse what it holds."""
    data = archive_of(imagekit.layout_of(*(imagekit.image([layer], entry=V1) for layer in (BASE, TOP))))
    (room / "app.tar").write_bytes(data)
    for source in (room / "app.tar", Once(data)):
        assert [image.references for image in images.load(source, platform=platform)] == [(), ()]


# ---- platforms ---------------------------------------------------------------------------------
PLATFORMS = {
    "linux/amd64": [BASE], "linux/arm64/v8": [TOP], "linux/arm/v6": [MIDDLE], "linux/arm/v7": [BASE, TOP],
}  # fmt: skip


def fat(*, nested: bool, docker_types: bool = False, name: str = "fat:1") -> dict[str, bytes]:
    """A layout for several platforms, with an attestation, as buildx makes them."""
    entries, blobs = [], {}
    for platform, layers in PLATFORMS.items():
        system, architecture, *variant = platform.split("/")
        named = {"os": system, "architecture": architecture} | ({"variant": variant[0]} if variant else {})
        entry, more = imagekit.image(layers, "gzip", {"platform": named}, architecture=architecture, docker_types=docker_types)
        entries.append(entry)
        blobs |= more
    entries.append(imagekit.descriptor(b"{}", imagekit.OCI + "manifest.v1+json", platform={"os": "unknown", "architecture": "unknown"},
                                       annotations={"vnd.docker.reference.type": "attestation-manifest"}))  # fmt: skip
    names = {"annotations": {"io.containerd.image.name": name}}
    if not nested:
        return imagekit.layout([entry | names for entry in entries[:-1]], blobs)
    kind = imagekit.DOCKER + "distribution.manifest.list.v2+json" if docker_types else imagekit.OCI + "index.v1+json"
    index = imagekit.encode({"schemaVersion": 2, "mediaType": kind, "manifests": entries})
    return imagekit.layout([imagekit.descriptor(index, kind) | names], blobs | dict([imagekit.blob(index)]))


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("way", ["path", "pipe"])
@pytest.mark.parametrize(
    ("platform", "wanted"),
    [
        (None, "linux/amd64"), ("linux/amd64", "linux/amd64"), ("arm64", "linux/arm64/v8"), ("linux/arm64/v8", "linux/arm64/v8"),
        ("linux/arm/v7", "linux/arm/v7"), ("linux/arm/v6", "linux/arm/v6"), ("linux/arm/v8", "linux/arm/v7"),
    ],
)  # fmt: skip
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the default is this host's platform")
def test_the_platform_asked_for_is_loaded(store, images, room, nested, way, platform, wanted):
    (room / "a.tar").write_bytes(archive_of(imagekit.documents_last(fat(nested=nested, docker_types=nested))))
    if way == "path":
        [image] = images.load(room / "a.tar", platform=platform)
    else:
        [image] = images.load(io.BytesIO((room / "a.tar").read_bytes()), platform=platform)
    layers = PLATFORMS[wanted]
    assert list(image.diff_ids) == [tarkit.diff_id(layer) for layer in layers]
    assert image.architecture == wanted.split("/")[1]
    assert image.references == ("fat:1",)
    assert len(store.map()) == len(layers)                    # and nothing of the others


def test_all_platforms(images):
    found = images.load(archive_of(fat(nested=True)), platform="all")
    assert [image.architecture for image in found] == ["amd64", "arm64", "arm", "arm"]


def test_a_platform_that_is_not_there(images, nothing_left):
    with nothing_left(), pytest.raises(ImageError, match=r"no image for linux/s390x .* linux/amd64, linux/arm/v6"):
        images.load(archive_of(fat(nested=True)), platform="linux/s390x")


@pytest.mark.parametrize(("platform", "said"), [("windows/amd64", "cannot load 'windows' image"), ("arm64", "the archive has no blobs/")])
def test_a_platform_that_is_named_and_cannot_be_had(images, nothing_left, platform, said):
    (windows, more), (arm, _) = imagekit.manifest([BASE], os="windows"), imagekit.manifest([TOP], architecture="arm64")
    entries = [imagekit.descriptor(document, imagekit.OCI + "manifest.v1+json", platform=dict(zip(("os", "architecture"), named, strict=True)))
               for document, named in ((windows, ("windows", "amd64")), (arm, ("linux", "arm64")))]  # fmt: skip
    data = archive_of(imagekit.layout(entries, more | dict([imagekit.blob(windows)])))
    with nothing_left(), pytest.raises(ImageError, match=f"the image for [a-z0-9/]*{platform} in the archive cannot be had here; {said}"):
        images.load(data, platform=platform)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress], ids=["gzip", "bzip2"])
def test_a_compressed_archive_that_is_cut_says_so(images, nothing_left, pack):
    data = pack(archive_of(imagekit.docker([([BASE], ["x:1"])])))
    for end in (len(data) - 8, len(data) - 4, len(data) // 2):
        with nothing_left(), pytest.raises(LayerStoreError, match=r"cut|truncated|unexpected") as raised:
            images.load(data[:end])
        assert "retcode" not in str(raised.value)


def test_an_image_for_another_machine_is_loaded_unless_one_was_asked_for(images):
    files = imagekit.layout_of(imagekit.image([BASE], architecture="riscv64"))
    assert images.load(archive_of(files))[0].architecture == "riscv64"
    with pytest.raises(ImageError, match="is for linux/riscv64, not for linux/amd64"):
        images.load(archive_of(files), platform="linux/amd64")


def test_a_layout_that_has_only_one_platform_s_blobs(images):
    """`docker save` of 25 and skopeo leave the others in the index, and their blobs out."""
    files = fat(nested=True)
    _, kept = imagekit.image([BASE], "gzip")
    index = [name for name, data in files.items() if b"vnd.docker.reference.type" in data]
    thin = {name: data for name, data in files.items() if name in kept or name in index or not name.startswith("blobs")}
    assert len(thin) < len(files)
    [image] = images.load(archive_of(thin), platform="linux/amd64")
    assert list(image.diff_ids) == [tarkit.diff_id(BASE)]


# ---- what holds, and what is said --------------------------------------------------------------
def test_layers_of_an_image_stay_and_go_with_it(store, images):
    """load() returns without holding them; others may take and release references at any time."""
    [image] = images.load(archive_of(ARCHIVES["docker"]()))
    assert store._engine.holds._counts.keys() == {"store"}
    with store.get(image.top):
        pass
    with store.create_rw_layer("box", image.layers[1]):
        pass
    assert set(store.map()) == set(CHAINS)
    removed = images.remove("a/b:1")
    assert removed.untagged == ("a/b:1",)
    assert removed.deleted == (image.id,)
    assert [gone.chain_id for gone in removed.layers] == CHAINS[::-1]
    assert store.map() == {}


def test_a_layer_that_was_nobody_s_before_a_failed_load_stays(store, images):
    with layerstore.Store(store.root) as other:
        other.register(BASE)                                   # left on purpose, as README says
    files = ARCHIVES["docker"]()
    files["2/layer.tar"] = BASE
    with pytest.raises(ImageError):
        images.load(archive_of(files))
    assert list(store.map()) == CHAINS[:1]


def test_progress_is_told_as_numbers_of_all(images, room):
    noise = os.urandom(4 << 20)
    layers = [tarkit.file("a", noise) + tarkit.end(), tarkit.file("b", noise[::-1]) + tarkit.end()]
    data = archive_of(imagekit.docker([(layers, [])]))
    (room / "archive").write_bytes(data)
    told: list[layerstore.Done] = []
    images.load(room / "archive", progress=told.append)
    total = sum(map(len, layers))
    assert told[-1] == told[-1].total == total
    assert all(done.total == total for done in told)
    assert told == sorted(told)
    images.remove(images.list()[0])
    told.clear()
    images.load(Once(data, 1 << 20), progress=told.append)
    assert told[-1] == len(data)
    assert told[-1].total is None
    images.remove(images.list()[0])
    (room / "archive.gz").write_bytes(gzip.compress(data, 1))
    told.clear()
    images.load(room / "archive.gz", progress=told.append)
    assert told[-1] == told[-1].total == (room / "archive.gz").stat().st_size


@pytest.mark.parametrize("way", ["path", "read(n)", "gzip"])
def test_what_progress_raises_ends_the_load(images, room, nothing_left, way):
    def enough(_done):
        raise BoomError

    data = archive_of(ARCHIVES["docker"]())
    (room / "archive").write_bytes(data)
    source = {"path": room / "archive", "read(n)": Once(data), "gzip": gzip.compress(data)}[way]
    with nothing_left(), pytest.raises(BoomError):
        images.load(source, progress=enough)


def test_what_a_source_raises_passes_through(images, nothing_left):
    for data in (archive_of(ARCHIVES["docker"]()), gzip.compress(os.urandom(20_000))):
        with nothing_left(), pytest.raises(RuntimeError, match="the line is dead"):
            images.load(Failing(data, 5000, RuntimeError("the line is dead"), 700))


@pytest.mark.parametrize("durability", ["full", "ordered", "none"])
def test_durability_is_taken_as_register_takes_it(images, durability):
    assert images.load(archive_of(ARCHIVES["docker"]()), durability=durability)
    with pytest.raises(layerstore.InvalidOptionError):
        images.load(archive_of(ARCHIVES["docker"]()), durability="perhaps")


def test_an_image_of_layers_stored_with_less_is_put_on_the_disk(open_store, room):
    """On a tmpfs nothing ever is: an ext4 of our own, in a file."""
    with disk.sized_file_system(room, "ext4", size=64 << 20) as place:
        for durability, durable in (("none", False), ("full", True)):
            with open_store(place / "docker") as store:
                [image] = Images(store).load(archive_of(ARCHIVES["docker"]()), durability=durability)
                assert [store.map()[chain]._record.durable for chain in image.layers] == [durable] * 3


def test_a_store_open_for_reading_only_loads_nothing(open_store, images):
    images.load(archive_of(ARCHIVES["docker"]()))
    reader = Images(open_store(options={"read_only": "true"}))
    with pytest.raises(layerstore.ReadOnlyStoreError):
        reader.load(archive_of(ARCHIVES["docker"]()))
    with pytest.raises(layerstore.ReadOnlyStoreError):
        reader.remove("a/b:1")
    assert [image.references for image in reader.list()] == [("a/b:1",)]
    assert reader.inspect("a/b:1")["Id"] == image_id(LAYERS)


def test_many_threads_load_the_same_at_once(store, images, room):
    (room / "archive").write_bytes(archive_of(ARCHIVES["oci gzip"]()))
    for found in at_once(*[lambda: [images.load(room / "archive")[0].id for _ in range(5)]] * 6):
        assert found == [image_id(LAYERS)] * 5
    check(store, images.list()[0])
    assert store._engine.holds._counts.keys() == {"store"}


STALLED = """
import sys
from layerstore import Images, Store
class Stalled:
    def __init__(self, file): self.file = file
    def read(self, n):
        found = self.file.read(n)
        if not found:
            print("here", flush=True)
            sys.stdin.read()
        return found
with Store(sys.argv[1]) as store, open(sys.argv[2], "rb") as file:
    Images(store).load(Stalled(file))
"""


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_a_load_that_is_interrupted_or_killed(store, images, root, room, by):
    """Interrupted it leaves nothing; killed, what cleanup() takes, and nothing that anybody takes for a layer."""
    (room / "cut.tar").write_bytes(archive_of(imagekit.documents_last(ARCHIVES["docker"]()))[:-8000])
    before = disk.inventory(root)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(another.command(STALLED, root, room / "cut.tar"), env=another.ENVIRONMENT, **pipes) as process:
        assert process.stdout.read(4) == b"here"
        assert len(disk.inventory(root) - before) > 10     # layers that wait
        assert store.orphans() == []                           # but are owned
        process.send_signal(by)
        process.wait()
    assert store.map() == {}
    if by == signal.SIGKILL:
        assert store.orphans() != []
        store.cleanup()
    empty = {f"{LAYERDB}/tmp"}
    assert disk.inventory(root) - empty == before - empty
    check(store, images.load(archive_of(ARCHIVES["docker"]()))[0])
