"""Images in Docker's own files: what lies where, names and ids, removal, and several processes at once."""

import contextlib
import json
import os
import stat
import subprocess

import another
import disk
import imagekit
import pytest
import tarkit
from driven import DRIVER
from imagekit import BASE, MIDDLE, TOP, image_id, tar_of
from stored import at_once

import layerstore
from layerstore import Image, ImageDoesNotExistError, ImageError, Images, Removed
from layerstore.documents import references

LAYERS = [BASE, MIDDLE, TOP]


@pytest.fixture
def loaded(images):
    images.load(tar_of(imagekit.docker([(LAYERS, ["a/b:1", "a/b:2", "c:1"]), ([BASE], ["base"])])))
    return images


def names_on_disk(root) -> dict:
    return json.loads((root / "image" / DRIVER / "repositories.json").read_bytes())


# ---- files -------------------------------------------------------------------------------------
def test_the_files_are_docker_s(loaded, root):
    place = root / "image" / DRIVER
    id = image_id(LAYERS)
    assert (place / "imagedb/content/sha256" / id[7:]).read_bytes() == imagekit.config(LAYERS)
    base = image_id([BASE])
    assert (place / "repositories.json").read_bytes() == (
        f'{{"Repositories":{{"a/b":{{"a/b:1":"{id}","a/b:2":"{id}"}},"base":{{"base:latest":"{base}"}},"c":{{"c:1":"{id}"}}}}}}'
    ).encode()
    stamp = (place / "imagedb/metadata/sha256" / id[7:] / "lastUpdated").read_text()
    assert stamp.endswith("Z")
    assert len(stamp) <= len("2026-01-01T00:00:00.123456789Z")
    for path, mode in (("repositories.json", 0o600), ("imagedb", 0o700), (f"imagedb/content/sha256/{id[7:]}", 0o600)):
        assert stat.S_IMODE((place / path).stat().st_mode) == mode, path
    left = [name for name in disk.inventory(place) if ".tmp-" in name]
    assert left == []


def test_opening_and_looking_makes_nothing(images, root):
    before = disk.inventory(root)
    assert images.list() == []
    with pytest.raises(ImageDoesNotExistError):
        images.get("x")
    assert disk.inventory(root) == before


def test_what_a_crash_left_half_written_goes_with_the_next_load(loaded, root):
    junk = [root / "image" / DRIVER / "imagedb/content/sha256/.tmp-abc1", root / "image" / DRIVER / ".tmp-repositories.json7"]
    for path in junk:
        path.write_text("half")
    assert len(loaded.list()) == 2
    loaded.load(tar_of(imagekit.docker([([TOP], [])])))
    assert not any(path.exists() for path in junk)


def test_a_load_that_cannot_write_the_names_takes_its_images_back(images, root, nothing_left):
    (root / "image" / DRIVER / "repositories.json").mkdir(parents=True)
    with nothing_left(), pytest.raises((OSError, layerstore.InvalidMetadataError)):
        images.load(tar_of(imagekit.docker([(LAYERS, ["x"])])))
    assert images.store.map() == {}


def test_a_directory_in_the_way_of_the_names_only_at_the_end(images, root, monkeypatch):
    """The configs are written before the names are: they go again, with the layers."""
    def full(_self, _names):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("layerstore.layerdb.imagedb.ImageDB.write_repositories", full)
        with pytest.raises(OSError, match="No space"):
            images.load(tar_of(imagekit.docker([(LAYERS, ["x"])])))
    assert images.list() == []
    assert images.store.map() == {}
    assert images.load(tar_of(imagekit.docker([(LAYERS, ["x"])])))


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"Repositories": 1}', b'{"Repositories": {"a": {"a:1": 1}}}', b"\xff"])
def test_damaged_names_are_an_error_and_stay_as_they_are(loaded, root, damage):
    path = root / "image" / DRIVER / "repositories.json"
    path.write_bytes(damage)
    with pytest.raises(layerstore.InvalidMetadataError):
        loaded.list()
    with pytest.raises(layerstore.InvalidMetadataError):
        loaded.tag(image_id(LAYERS), "new")
    assert path.read_bytes() == damage


def test_a_damaged_config_hides_only_its_image(loaded, root, caplog):
    path = root / "image" / DRIVER / "imagedb/content/sha256" / image_id(LAYERS)[7:]
    path.write_bytes(b"{}")
    assert [image.id for image in loaded.list()] == [image_id([BASE])]
    assert "failed to verify" in caplog.text
    with pytest.raises(layerstore.InvalidMetadataError):
        loaded.get("a/b:1")
    assert loaded.remove(image_id(LAYERS), force=True).deleted == (image_id(LAYERS),)
    assert not path.exists()


# ---- list, get, inspect ------------------------------------------------------------------------
def test_an_image_says_what_it_is(loaded, store):
    image = loaded.get("a/b:1")
    assert isinstance(image, Image)
    assert image.id == image_id(LAYERS)
    assert image.references == ("a/b:1", "a/b:2", "c:1")
    assert image.digests == ()
    assert image.created == "2024-01-01T00:00:00Z"
    assert (image.os, image.architecture, image.variant) == ("linux", "amd64", "")
    assert image.config["config"]["Cmd"] == ["/nothing"]
    assert image.size == sum(layer.diff_size for layer in map(store.map().get, image.layers))
    assert image == loaded.get(image)
    assert len({image, loaded.get("c:1"), loaded.get("base")}) == 2


def test_images_come_newest_first(images):
    for year in (2020, 2022, 2021):
        config = imagekit.config([BASE], created=f"{year}-01-01T00:00:00Z")
        images.load(tar_of({"c.json": config, "l.tar": BASE, "manifest.json": imagekit.encode([{"Config": "c.json", "Layers": ["l.tar"]}])}))
    assert [image.created[:4] for image in images.list()] == ["2022", "2021", "2020"]


@pytest.mark.parametrize("called", ["a/b:1", "docker.io/a/b:1", "{id}", "{hex}", "{hex:.12}", "sha256:{hex:.12}", "c:1"])
def test_an_image_is_found_by(loaded, called):
    hexes = image_id(LAYERS)[7:]
    text = called.replace("{id}", "sha256:" + hexes).replace("{hex}", hexes).replace("{hex:.12}", hexes[:12])
    assert loaded.get(text).id == image_id(LAYERS)


@pytest.mark.parametrize("called", ["a/b", "a/b:3", "nothing", "sha256:" + "0" * 64, "0" * 64, "00000000", "a/b@sha256:" + "0" * 64])
def test_what_is_not_there(loaded, called):
    for call in (loaded.get, loaded.inspect, loaded.remove, lambda name: loaded.tag(name, "x"), lambda name: loaded.save(name, 1)):
        with pytest.raises(ImageDoesNotExistError, match="No such image"):
            call(called)


@pytest.mark.parametrize("called", ["", "A", "a b", "a:", ":1", "a@b", "../a", "a//b", "a:b:c", "a" * 300])
def test_what_is_no_name(loaded, called):
    for call in (loaded.get, lambda name: loaded.tag("c:1", name)):
        with pytest.raises(ImageError):
            call(called)


def test_a_name_that_could_be_an_id_is_none(loaded):
    with pytest.raises(ImageError, match="ambiguous"):
        loaded.tag("c:1", "sha256:abc")
    with pytest.raises(ImageError, match="invalid reference"):
        loaded.tag("c:1", "0" * 64)


@pytest.mark.parametrize(
    ("address", "shown"),
    [("https://ann:unseen@host/app:1", "https://...@host/app:1"), ("ann:unseen@host/app", "...@host/app"), ("http://host/app", "http://host/app"),
     ("https://unseen/@x@host/app?sig=unseen", "https://...@host/app?..."), ("://", "://")],
)  # fmt: skip
def test_an_address_is_no_name_and_its_password_is_not_told(loaded, address, shown):
    with pytest.raises(ImageError) as caught:
        loaded.get(address)
    assert repr(shown) in str(caught.value) and caught.value.name == shown
    assert "unseen" not in f"{caught.value!r} {vars(caught.value)}"


def test_what_is_no_text(loaded):
    for wrong in (None, 1, b"c:1"):
        with pytest.raises(TypeError):
            loaded.get(wrong)


def test_names_by_digest_are_kept_and_found(loaded, root):
    """docker pull writes them."""
    digest = "sha256:" + "12" * 32
    names = names_on_disk(root)
    names["Repositories"]["c"][f"c@{digest}"] = image_id(LAYERS)
    (root / "image" / DRIVER / "repositories.json").write_text(json.dumps(names))
    image = loaded.get(f"c@{digest}")
    assert image.digests == (f"c@{digest}",)
    assert f"c@{digest}" not in image.references
    assert loaded.inspect("c:1")["RepoDigests"] == [f"c@{digest}"]
    loaded.tag("c:1", "d")
    assert names_on_disk(root)["Repositories"]["c"][f"c@{digest}"] == image_id(LAYERS)
    with pytest.raises(ImageError, match="digest"):
        loaded.tag("c:1", f"d@{digest}")


def test_inspect_tells_what_docker_tells(loaded, store):
    found = loaded.inspect("a/b:1")
    assert found["RepoTags"] == ["a/b:1", "a/b:2", "c:1"]
    assert found["RootFS"] == {"Type": "layers", "Layers": [tarkit.diff_id(layer) for layer in LAYERS]}
    assert found["GraphDriver"]["Data"] == store.map()[loaded.get("c:1").top].metadata()
    assert found["Config"] == {"Cmd": ["/nothing"]}
    json.dumps(found)


# ---- tag and remove ----------------------------------------------------------------------------
def test_a_name_moves(loaded):
    loaded.tag("base", "a/b:1")
    assert loaded.get("a/b:1").id == image_id([BASE])
    assert loaded.get("c:1").references == ("a/b:2", "c:1")
    assert loaded.tag(loaded.get("base"), "docker.io/library/more").references == ("a/b:1", "base:latest", "more:latest")


def called(root, *names):
    """Add further names to the image of a/b:1, a/b:2 and c:1, by digest, as pulls and pushes do."""
    found = names_on_disk(root)
    for name in names:
        found["Repositories"].setdefault(name.partition("@")[0], {})[name] = image_id(LAYERS)
    (root / "image" / DRIVER / "repositories.json").write_text(json.dumps(found))


D1, D2 = (f"@sha256:{n * 32}" for n in ("12", "34"))


def test_names_by_digest_go_with_the_last_tag_of_their_repository(loaded, root):
    """As docker rmi has it; those of other repositories stay, and keep the image."""
    called(root, f"a/b{D1}", f"c{D1}", f"c{D2}", f"host:5000/x/y{D1}")
    assert loaded.remove("c:1") == Removed(tuple(sorted(["c:1", f"c{D1}", f"c{D2}"])), (), [])
    assert loaded.remove("a/b:1") == Removed(("a/b:1",), (), [])
    assert loaded.get("a/b:2").digests == (f"a/b{D1}", f"host:5000/x/y{D1}")
    assert loaded.remove("a/b:2") == Removed(("a/b:2", f"a/b{D1}"), (), [])
    assert loaded.get(image_id(LAYERS)).digests == (f"host:5000/x/y{D1}",)
    gone = loaded.remove(f"host:5000/x/y{D1}")
    assert (gone.untagged, gone.deleted) == ((f"host:5000/x/y{D1}",), (image_id(LAYERS),))


def test_a_name_by_digest_goes_alone(loaded, root):
    called(root, f"c{D1}", f"d{D2}", f"e{D1}")
    assert loaded.remove(f"c{D1}") == Removed((f"c{D1}",), (), [])
    for name in ("a/b:1", "a/b:2", "c:1"):
        assert loaded.remove(name) == Removed((name,), (), [])
    assert loaded.remove(f"d{D2}") == Removed((f"d{D2}",), (), [])
    assert loaded.get(f"e{D1}").digests == (f"e{D1}",)
    assert loaded.remove(f"e{D1}").deleted == (image_id(LAYERS),)


def test_names_go_one_by_one_and_the_image_with_the_last(loaded, store):
    assert loaded.remove("a/b:1") == Removed(("a/b:1",), (), [])
    assert loaded.remove("a/b:2") == Removed(("a/b:2",), (), [])
    removed = loaded.remove("c:1")
    assert (removed.untagged, removed.deleted) == (("c:1",), (image_id(LAYERS),))
    assert [gone.diff_id for gone in removed.layers] == [tarkit.diff_id(TOP), tarkit.diff_id(MIDDLE)]   # base is an image
    assert loaded.remove("base").layers[0].diff_id == tarkit.diff_id(BASE)
    assert (loaded.list(), store.map()) == ([], {})


def test_an_id_with_several_names_has_to_be_forced(loaded):
    with pytest.raises(ImageError, match="must be forced"):
        loaded.remove(image_id(LAYERS))
    removed = loaded.remove(image_id(LAYERS), force=True)
    assert removed.untagged == ("a/b:1", "a/b:2", "c:1")
    assert [image.references for image in loaded.list()] == [("base:latest",)]


def test_a_writable_layer_on_an_image_has_to_be_forced_and_keeps_its_layers(loaded, store):
    image = loaded.get("base")
    with store.create_rw_layer("box", image.top):
        with pytest.raises(ImageError, match="box uses it"):
            loaded.remove("base")
        assert loaded.remove("base", force=True).layers == []
        assert image.top in store.map()
    loaded.remove(image_id(LAYERS), force=True)
    assert store.map() == {}


def test_layers_that_somebody_holds_outlive_their_image(loaded, store):
    held = store.get(loaded.get("c:1").layers[1])
    assert len(loaded.remove(image_id(LAYERS), force=True).layers) == 1
    assert len(held.release()) == 1
    loaded.remove("base")
    assert store.map() == {}


def test_removing_what_a_save_is_reading(loaded, store, room):
    """The reader holds the layers; when it is done they go."""
    class Slow:
        def __init__(self):
            self.data = b""

        def write(self, data):
            if not self.data:
                loaded.remove(image_id(LAYERS), force=True)
                loaded.remove("base")
            self.data += data
            return len(data)

    out = Slow()
    loaded.save(image_id(LAYERS), out)
    assert store.map() == {}
    assert Images(store).load(out.data)[0].id == image_id(LAYERS)


# ---- made here ---------------------------------------------------------------------------------
def test_an_image_is_made_of_layers_of_the_store(images, store, room):
    base = store.register(BASE)
    with store.create_rw_layer("box", base.chain_id) as box:
        with box.mounted() as path:
            (room / "x").write_text("")
            os.rename(os.path.join(path, "tool"), os.path.join(path, "moved"))
        top = box.commit()
    given = {"config": {"Cmd": ["/moved"]}, "created": "2026-01-01T00:00:00Z", "architecture": "arm64", "variant": "v8"}
    made = images.create(top, given, tags=["made:1", "made"])
    assert made.references == ("made:1", "made:latest")
    assert (made.layers, made.architecture, made.variant) == ((base.chain_id, top.chain_id), "arm64", "v8")
    assert images.create(top.chain_id, given) == made
    for layer in (top, base):
        assert layer.release() == []
    images.save("made", room / "out")
    assert len(images.remove(made, force=True).layers) == 2
    assert images.load(room / "out") == [made]
    assert images.create("").layers == ()


def test_an_image_is_not_made_of_nonsense(images, store, nothing_left):
    layer = store.register(BASE)
    with nothing_left():
        for wrong in ({"os": "plan9"}, {"created": "now"}, {"history": [{}, {}]}, {"config": 1}):
            with pytest.raises(ImageError):
                images.create(layer, wrong)
        with pytest.raises(ImageError):
            images.create(layer, tags="Not A Name")
        with pytest.raises(layerstore.LayerDoesNotExistError):
            images.create("sha256:" + "0" * 64)
    layer.release()


# ---- several at once ---------------------------------------------------------------------------
PROGRAM = """
import sys
from layerstore import Images, Store
with Store(sys.argv[1], options={"durability": "none"}) as store:
    images = Images(store)
    for n in range(40):
        images.tag("c:1", f"{sys.argv[2]}:{n}")
        images.load(sys.argv[3])
        images.remove(f"{sys.argv[2]}:x{n % 2}") if n > 1 else None
        images.tag("moving", f"{sys.argv[2]}:x{n % 2}")
"""


def test_processes_lose_nothing_of_each_other_s(loaded, root, room):
    """Each loads one archive again and again while the others do, names it and removes names."""
    archive = room / "moving.tar"
    archive.write_bytes(tar_of(imagekit.docker([([BASE, TOP], ["moving:latest"])])))
    running = [subprocess.Popen(another.command(PROGRAM, root, name, archive), env=another.ENVIRONMENT) for name in ("p", "q", "r")]
    assert [process.wait() for process in running] == [0, 0, 0]
    kept = set(loaded.get("c:1").references)
    assert kept == {"a/b:1", "a/b:2", "c:1"} | {f"{name}:{n}" for name in "pqr" for n in range(40)}
    assert loaded.store.verify() == []
    assert set(loaded.get("moving").references) == {"moving:latest"} | {f"{name}:x{n}" for name in "pqr" for n in (0, 1)}


def test_loading_and_removing_the_same_from_many_threads(images, store, room):
    """Whatever the turns, an image that is listed is whole, and in the end nothing is left over."""
    archive = room / "a.tar"
    archive.write_bytes(tar_of(imagekit.docker([(LAYERS, ["x"])])))

    def remove():
        for _ in range(15):
            with contextlib.suppress(ImageDoesNotExistError):
                images.remove("x")

    at_once(*[lambda: [images.load(archive) for _ in range(15)], remove] * 2)
    for image in images.list():
        assert all(chain in store.map() for chain in image.layers)
        images.remove(image, force=True)
    assert store.map() == {}
    assert store.orphans() == []


# ---- names alone -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox"), ("a/b", "docker.io/a/b"), ("localhost/a", "localhost/a"),
        ("x.y/a", "x.y/a"), ("x:5/a", "x:5/a"), ("Upper/a", "Upper/a"), ("docker.io/busybox", "docker.io/library/busybox"),
        ("[::1]:5000/a", "[::1]:5000/a"),
    ],
)  # fmt: skip
def test_full_names(text, full):
    assert references.parse(text).full_name == full
    assert references.parse(full) == references.parse(text)


@pytest.mark.parametrize("text", ["a_b", "a__b", "a---b", "a.b/c-d", "a0/0b:_x.y-z", "a:" + "t" * 128])
def test_good_names(text):
    assert str(references.parse(text)) == text


@pytest.mark.parametrize("text", ["a___b", "-a", "a-", "a..b", "a/", "/a", "a:-x", "a:" + "t" * 129, "0" * 64, "a@sha256:12", "ü", "a\n", "a:1\n"])
def test_bad_names(text):
    with pytest.raises(ImageError):
        references.parse(text)


def test_history_is_the_configs_newest_first(store, images):
    """Each step with its layer; layers that no step tells of stand on top of it."""
    base = store.register(tarkit.file("a", b"aa") + tarkit.end())
    top = store.register(tarkit.file("b", b"bbb") + tarkit.end(), base.chain_id)
    told = [{"created_by": "one", "empty_layer": True}, {"created_by": "two", "comment": "c"}, {"created_by": "three", "empty_layer": True}]
    image = images.create(top, {"history": told})
    assert images.history(image) == [
        {"layer": top.chain_id, "size": 3}, {**told[2], "layer": None, "size": 0}, {**told[1], "layer": base.chain_id, "size": 2},
        {**told[0], "layer": None, "size": 0},
    ]  # fmt: skip
    assert [step["layer"] for step in images.history(images.create(top, {}).id)] == [top.chain_id, base.chain_id]
    assert images.history(images.create("", {"history": []})) == []
