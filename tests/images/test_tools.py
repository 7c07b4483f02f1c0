"""The real tools read what save() writes, and load() reads what they write: dockerd, skopeo, umoci.

And one data root: what dockerd loaded is listed here, what was loaded here `docker images` shows. They take turns.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile

import imagekit
import pytest
import tarkit
from dockerd import Dockerd, programs
from imagekit import BASE, MIDDLE, TOP, image_id, tar_of
from machine import needs

import layerstore
from layerstore import Images

pytestmark = pytest.mark.time_limit(180)

LAYERS = [BASE, MIDDLE, TOP]
FORMATS = {"docker": None, "docker gzip": "gzip", "docker-v1": None, "oci": None, "oci gzip": "gzip", "oci zstd": "zstd"}


@pytest.fixture(scope="module", autouse=True)
def machine(tmpfs):
    needs("skopeo", "umoci")
    needs("dockerd", there=programs())


def run(*words) -> bytes:
    done = subprocess.run([str(word) for word in words], capture_output=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr.decode()}"
    return done.stdout


def skopeo(*words) -> bytes:
    return run("skopeo", "--insecure-policy", *words)


@pytest.fixture
def loaded(images):
    images.load(tar_of(imagekit.docker([(LAYERS, ["a/b:1", "localhost:5000/c:2"]), ([BASE], ["base:1"])])))
    return images


def layers_in(directory) -> list[bytes]:
    """The plain layer tars of an OCI layout of one image, base first."""
    index = json.loads((directory / "index.json").read_bytes())
    manifest = json.loads(blob_of(directory, index["manifests"][0]["digest"]))
    return [plain(blob_of(directory, layer["digest"])) for layer in manifest["layers"]]


def blob_of(directory, digest: str) -> bytes:
    return (directory / "blobs" / digest.replace(":", "/")).read_bytes()


def plain(data: bytes) -> bytes:
    tool = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}.get(data[:2])
    return subprocess.run([tool, "-dc"], input=data, capture_output=True, check=True).stdout if tool else data


# ---- what we write -----------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMATS)
def test_skopeo_reads_what_save_writes(loaded, room, form):
    """Every layer, bit for bit, and the config: also of an archive of several images."""
    format = form.split()[0]
    loaded.save("a/b:1", room / "one.tar", format=format, compression=FORMATS[form])
    ways = {"docker": ["docker-archive:{}", "oci-archive:{}"], "docker-v1": ["docker-archive:{}"], "oci": ["oci-archive:{}"]}[format]
    for number, way in enumerate(ways):
        skopeo("copy", "-q", way.format(room / "one.tar"), f"oci:{room / str(number)}:x")
        assert layers_in(room / str(number)) == LAYERS
    if format != "oci":
        loaded.save(["a/b:1", "base:1"], room / "two.tar", format=format, compression=FORMATS[form])
        skopeo("copy", "-q", f"docker-archive:{room / 'two.tar'}:base:1", f"oci:{room / 'base'}:x")
        assert layers_in(room / "base") == [BASE]
        skopeo("copy", "-q", f"docker-archive:{room / 'two.tar'}:a/b:1", f"oci:{room / 'ab'}:x")
        assert layers_in(room / "ab") == LAYERS
        raw = skopeo("inspect", "--config", "--raw", f"docker-archive:{room / 'two.tar'}:a/b:1")
        assert hashlib.sha256(raw).hexdigest() == image_id(LAYERS)[7:]


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_umoci_unpacks_what_save_writes(loaded, room, compression):
    loaded.save("a/b:1", room / "layout", format="oci-dir", compression=compression)
    run("umoci", "unpack", "--image", f"{room / 'layout'}:1", room / "bundle")
    rootfs = room / "bundle/rootfs"
    assert {os.path.relpath(os.path.join(place, name), rootfs) for place, _, names in os.walk(rootfs) for name in names} == {
        "tool", "etc/new", "app/main",
    }  # fmt: skip
    assert (rootfs / "app/main").stat().st_uid == 7
    assert json.loads(run("umoci", "stat", "--image", f"{room / 'layout'}:1", "--json"))["history"]
    assert run("umoci", "list", "--layout", room / "layout").decode().split() == ["1"]


def test_docker_loads_what_save_writes(loaded, room):
    for form, compression in FORMATS.items():
        format = form.split()[0]
        if format != "oci":                                    # 20.10 does not know layouts
            loaded.save(["a/b:1", "localhost:5000/c:2", "base:1"], room / f"{form}.tar", format=format, compression=compression)
    with Dockerd(room / "other") as dockerd:
        for archive in sorted(room.glob("*.tar")):
            dockerd.docker("load", "--quiet", "--input", str(archive))
            assert dockerd.images() == sorted([image_id(LAYERS), image_id([BASE])]), archive
            assert dockerd.inspect(image_id(LAYERS))["RepoTags"] == ["a/b:1", "localhost:5000/c:2"]
            saved = dockerd.saved("a/b:1")[image_id(LAYERS)]
            assert saved == [(tarkit.diff_id(layer),) * 2 for layer in LAYERS]
            dockerd.docker("image", "rm", "--force", *dockerd.images())
            assert dockerd.images() == []


# ---- what they write ---------------------------------------------------------------------------
def archives_of_tools(room, dockerd) -> dict[str, str]:
    """Archives and layouts of one image, by every tool: path -> what is special."""
    plain_tar = room / "plain.tar"
    plain_tar.write_bytes(tar_of(imagekit.docker([(LAYERS, ["a/b:1"])])))
    dockerd.docker("load", "--quiet", "--input", str(plain_tar))
    dockerd.docker("tag", "a/b:1", "second:2")
    dockerd.docker("save", "--output", str(room / "by-docker.tar"), "a/b:1", "second:2")
    source = f"docker-archive:{plain_tar}"
    skopeo("copy", "-q", source, f"docker-archive:{room / 'by-skopeo.tar'}:a/b:1")
    skopeo("copy", "-q", source, f"oci-archive:{room / 'oci.tar'}:a/b:1")
    skopeo("copy", "-q", source, f"oci:{room / 'oci-dir'}:a/b:1")
    skopeo("copy", "-q", "--dest-compress-format", "zstd", "--dest-compress", source, f"oci:{room / 'oci-zstd'}:a/b:1")
    shutil.copytree(room / "oci-dir", room / "umoci-dir")
    run("umoci", "config", "--image", f"{room / 'umoci-dir'}:a/b:1", "--tag", "changed", "--author", "somebody")
    return {"by-docker.tar": "two names", "by-skopeo.tar": "", "oci.tar": "", "oci-dir": "", "oci-zstd": "", "umoci-dir": "two images"}


def test_what_the_tools_write_is_loaded(room, images, store):
    with Dockerd(room / "other") as dockerd:
        found = archives_of_tools(room, dockerd)
    for name, special in found.items():
        for through_a_pipe in [False] if (room / name).is_dir() else [False, True]:
            if through_a_pipe:
                with subprocess.Popen(["cat", room / name], stdout=subprocess.PIPE) as cat:
                    loaded = images.load(cat.stdout)
            else:
                loaded = images.load(room / name)
            assert len(loaded) == (2 if special == "two images" else 1), name
            image = loaded[0]
            assert list(image.diff_ids) == [tarkit.diff_id(layer) for layer in LAYERS], name
            assert "a/b:1" in image.references, name
            if special == "two names":
                assert image.id == image_id(LAYERS)
                assert set(image.references) == {"a/b:1", "second:2"}
            if special == "two images":
                assert loaded[1].config["author"] == "somebody"
                assert loaded[1].references == ("umoci-dir:changed",)
            assert store.verify() == []
            for image in loaded:
                images.remove(image, force=True)
            assert store.map() == {}, name


def test_an_image_that_umoci_made_of_changes(room, images):
    """A layer by another writer, on ours: with a whiteout, owners and an extended attribute."""
    images.load(tar_of(imagekit.docker([(LAYERS, ["a/b:1"])])))
    images.save("a/b:1", room / "layout", format="oci-dir")
    run("umoci", "unpack", "--image", f"{room / 'layout'}:1", room / "bundle")
    (room / "bundle/rootfs/etc/new").unlink()
    (room / "bundle/rootfs/made").write_text("by umoci")
    os.chown(room / "bundle/rootfs/made", 5, 6)
    os.setxattr(room / "bundle/rootfs/made", "user.note", b"n")
    run("umoci", "repack", "--image", f"{room / 'layout'}:next", room / "bundle")
    [first, second] = images.load(room / "layout")
    assert second.layers[:3] == first.layers
    assert second.references == ("a/b:next",)
    images.unpack("a/b:next", room / "flat")
    assert sorted(os.listdir(room / "flat")) == ["app", "etc", "made", "tool"]
    assert os.listdir(room / "flat/etc") == []
    assert (room / "flat/made").stat().st_gid == 6
    assert os.getxattr(room / "flat/made", "user.note") == b"n"


# ---- one root for both -------------------------------------------------------------------------
@pytest.mark.only("overlay2", "dockerd reads no other driver's layers")
def test_docker_shows_what_was_loaded_here_and_here_what_docker_loaded(root, room):
    with layerstore.Store(root) as store:
        Images(store).load(tar_of(imagekit.docker([(LAYERS, ["ours:1", "localhost:5000/c:2"]), ([BASE], [])])))
    (room / "theirs.tar").write_bytes(tar_of(imagekit.docker([([TOP, MIDDLE], ["theirs:1"])])))
    with Dockerd(root) as dockerd:
        assert dockerd.images() == sorted([image_id(LAYERS), image_id([BASE])])
        shown = dockerd.docker("images", "--format", "{{.Repository}}:{{.Tag}}").decode().split()
        assert sorted(shown) == ["<none>:<none>", "localhost:5000/c:2", "ours:1"]
        theirs = dockerd.inspect("ours:1")
        assert dockerd.saved("ours:1")[image_id(LAYERS)] == [(tarkit.diff_id(layer),) * 2 for layer in LAYERS]
        dockerd.docker("load", "--quiet", "--input", str(room / "theirs.tar"))
        dockerd.docker("tag", "theirs:1", "ours:1")
        container = dockerd.create("theirs:1")
        with layerstore.Store(root) as reader:                 # for reading, while dockerd runs
            assert {image.references for image in Images(reader).list()} == {
                ("localhost:5000/c:2",), (), ("ours:1", "theirs:1"),
            }  # fmt: skip
            Images(reader).save("theirs:1", room / "beside.tar")
            Images(reader).unpack("theirs:1", room / "flat")
            with pytest.raises(layerstore.ReadOnlyStoreError):
                Images(reader).load(room / "theirs.tar")
    assert (room / "flat/app/main").stat().st_size == 3000
    with layerstore.Store(root) as store:
        images = Images(store)
        assert images.get("theirs:1").id == image_id([TOP, MIDDLE])
        assert images.get("theirs:1").references == ("ours:1", "theirs:1")
        ours = images.inspect("localhost:5000/c:2")
        for key in ("Id", "Created", "Architecture", "Os", "Size", "RootFS", "Author", "DockerVersion", "Parent", "GraphDriver"):
            assert ours[key] == theirs[key], key
        assert images.remove("ours:1").deleted == ()
        with pytest.raises(layerstore.ImageError, match="uses it"):
            images.remove("theirs:1")                          # dockerd's container stands on it
        images.remove("localhost:5000/c:2")
        assert len(store.map()) == 3                           # the base of ours is an image, too; theirs has two
        images.tag("theirs:1", "again:7")
    with Dockerd(root) as dockerd:
        assert dockerd.images() == sorted([image_id([BASE]), image_id([TOP, MIDDLE])])
        assert dockerd.inspect("again:7")["RepoTags"] == ["again:7", "theirs:1"]
        assert dockerd.containers() == [container]
        dockerd.docker("rm", container)
        dockerd.docker("image", "rm", "again:7", "theirs:1")
        assert dockerd.images() == [image_id([BASE])]


def test_an_image_docker_built_keeps_its_parent(root, room):
    """docker commit notes which image it stands on; removal here minds it as docker does."""
    (room / "a.tar").write_bytes(tar_of(imagekit.docker([(LAYERS, ["a:1"])])))
    with Dockerd(root) as dockerd:
        dockerd.docker("load", "--quiet", "--input", str(room / "a.tar"))
        container = dockerd.create("a:1")
        dockerd.docker("commit", "--message", "why", container, "child:1")
        dockerd.docker("rm", container)
        dockerd.docker("save", "--output", str(room / "both.tar"), "a:1", "child:1")
    with layerstore.Store(root) as store:
        images = Images(store)
        child = images.get("child:1")
        assert child.parent == image_id(LAYERS)
        with pytest.raises(layerstore.ImageError, match="dependent child images"):
            images.remove("a:1", force=True)
        images.save(["a:1", "child:1"], room / "ours.tar")
    for archive in ("both.tar", "ours.tar"):
        with tarfile.open(room / archive) as tar:
            parents = {entry.get("Parent") for entry in json.load(tar.extractfile("manifest.json"))}
        assert parents == {None, image_id(LAYERS)}
        with layerstore.Store(room / archive[:4]) as store:
            images = Images(store)
            images.load(room / archive)
            assert images.get("child:1").parent == image_id(LAYERS)
            with pytest.raises(layerstore.ImageError, match="dependent child images"):
                images.remove("a:1")
            assert images.remove("child:1").deleted == (child.id,)
            assert images.remove("a:1").deleted == (image_id(LAYERS),)
            assert store.map() == {}


def test_the_oldest_archives_get_the_id_that_docker_gives_them(room, images):
    """What docker load makes of an archive without a manifest.json."""
    (room / "old.tar").write_bytes(tar_of(imagekit.v1(LAYERS, "a/b:1")))
    [image] = images.load(room / "old.tar")
    with Dockerd(room / "other") as dockerd:
        dockerd.docker("load", "--quiet", "--input", str(room / "old.tar"))
        assert dockerd.inspect("a/b:1")["Id"] == image.id


# ---- what commit(keep="all") keeps ------------------------------------------------------------------------------
ACL = bytes.fromhex("0200000001000600ffffffff02000700e803000004000000ffffffff10000700ffffffff20000000ffffffff")
WHEN = 1_700_000_000_123_456_789


@pytest.fixture
def kept(images, store):
    """An image on BASE whose upper layer has attributes, an ACL and nanoseconds."""
    with store.create_rw_layer("box", store.register(BASE).chain_id) as box:
        with box.mounted() as path:
            with open(f"{path}/new", "wb") as out:
                out.write(b"new")
            os.mkdir(f"{path}/dir")
            for name in ("new", "dir"):
                os.setxattr(f"{path}/{name}", "user.a", b"\0=\n1")
                os.setxattr(f"{path}/{name}", "security.b", b"2")
                os.setxattr(f"{path}/{name}", "system.posix_acl_access", ACL)
            os.setxattr(f"{path}/new", "security.capability", tarkit.CAPABILITY)
            os.utime(f"{path}/new", ns=(WHEN, WHEN))
        layer = box.commit(keep="all")
    images.create(layer, {}, tags="kept:1")
    return images, layer


def assert_kept(place):
    for name in ("new", "dir"):
        found = {x: os.getxattr(place / name, x) for x in os.listxattr(place / name)}
        assert (found["user.a"], found["security.b"], found["system.posix_acl_access"]) == (b"\0=\n1", b"2", ACL)
    assert os.getxattr(place / "new", "security.capability")[:4] == bytes.fromhex("01000002")
    assert (place / "new").stat().st_mtime_ns == WHEN and (place / "new").read_bytes() == b"new"


def test_umoci_unpacks_what_a_commit_keeps(kept, room):
    images, _ = kept
    images.save("kept:1", room / "layout", format="oci-dir")
    run("umoci", "unpack", "--image", f"{room / 'layout'}:1", room / "bundle")
    assert_kept(room / "bundle/rootfs")


def test_dockerd_stores_what_a_commit_keeps(kept, room):
    images, layer = kept
    images.save("kept:1", room / "kept.tar")
    with Dockerd(room / "other") as dockerd:
        dockerd.docker("load", "--quiet", "--input", str(room / "kept.tar"))
        there, = (room / "other/overlay2").glob("*/diff/new")
        assert_kept(there.parent)
        dockerd.docker("save", "--output", str(room / "again.tar"), "kept:1")
    with tarfile.open(room / "again.tar") as archive:
        assert layer.diff_id in {
            tarkit.diff_id(archive.extractfile(member).read()) for member in archive if member.name.endswith("layer.tar")
        }
