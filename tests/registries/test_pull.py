"""What skopeo, podman and docker pushed is pulled: the same image, under the same digest, layer by layer the same tars."""

import hashlib
import json
from pathlib import Path

import imagekit
import programs
import pytest
import realregistry
from dockerd import Dockerd
from realregistry import split
from stored import tar_of

import layerstore
from layerstore import Images, Registry

LAYERS = programs.layers()


def loaded_by_docker(docker: Dockerd, archive, reference: str) -> None:
    docker.docker("load", "-q", "--input", str(archive))
    docker.docker("tag", "app:1", reference)


@pytest.fixture
def pushed(skopeo, podman, docker, archive, room):
    """Push the image by a program: pushed(who, reference)."""

    def push(who: str, reference: str) -> None:
        program, _, how = who.partition(", ")
        if program == "docker":
            loaded_by_docker(docker, archive, reference)
            docker.docker("push", reference)
        elif program == "podman":
            podman.push(podman.load(archive), reference, *["--format", how] * bool(how))
        else:
            source = f"docker-archive:{archive}"
            words = {"zstd": ["--format", "oci", "--dest-compress", "--dest-compress-format", "zstd"]}.get(how, ["--format", how] * bool(how))
            if how in ("plain", "members"):
                source, words = f"oci:{room / how}:1", ["--preserve-digests"]
                imagekit.write_to(room / how, imagekit.oci(LAYERS, how, "app:1"))
            skopeo.copy(source, f"docker://{reference}", *words)

    return push


KINDS = {
    "skopeo": "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "skopeo, oci": "application/vnd.oci.image.layer.v1.tar+gzip",
    "skopeo, zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
    "skopeo, plain": "application/vnd.oci.image.layer.v1.tar",
    "skopeo, members": "application/vnd.oci.image.layer.v1.tar+gzip",
    "podman": "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "podman, oci": "application/vnd.oci.image.layer.v1.tar+gzip",
    "docker": "application/vnd.docker.image.rootfs.diff.tar.gzip",
}


@pytest.mark.parametrize("who", KINDS)
def test_what_a_program_pushed_is_pulled_bit_for_bit(registry, named, pushed, store, images, who):
    reference = named("app")
    pushed(who, reference)
    sent, digest = registry.manifest(*split(reference)), registry.tag(*split(reference))
    assert {layer["mediaType"] for layer in sent["layers"]} == {KINDS[who]}
    image = images.pull(reference)
    assert image.id == sent["config"]["digest"]
    assert (image.references, image.digests) == ((reference,), (f"{reference.removesuffix(':1')}@{digest}",))
    assert [tar_of(store.map()[chain]) for chain in image.layers] == LAYERS
    assert store.verify() == store.orphans() == []


def test_zstd_chunked_of_podman_is_zstd(start, podman, archive, store, images):
    """A registry of its own: of another one podman knows blobs of these layers, and would take them."""
    server = start()
    podman.push(podman.load(archive), f"{server.host}/app:1", "--format", "oci", "--compression-format", "zstd:chunked")
    layers = server.manifest("app", "1")["layers"]
    assert {layer["mediaType"] for layer in layers} == {"application/vnd.oci.image.layer.v1.tar+zstd"}
    assert all(any("zstd-chunked" in key for key in layer["annotations"]) for layer in layers)
    image = images.pull(f"{server.host}/app:1")
    assert [tar_of(store.map()[chain]) for chain in image.layers] == LAYERS
    assert images.push(image, f"{server.host}/again:1") == server.tag("app", "1")


def test_what_is_asked_told_and_noted(registry, named, pushed, images, store, root):
    reference = named("app")
    pushed("skopeo", reference)
    repository, tag = split(reference)
    digest, manifest = registry.tag(repository, tag), registry.manifest(repository, tag)
    before, told = len(registry.requests()), []
    image = images.pull(reference, progress=told.append)
    total = sum(layer["size"] for layer in manifest["layers"])
    assert (told[-1], told[-1].total) == (total, total)
    asked = registry.requests(before)
    blobs = [manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]
    assert asked[0].uri == f"/v2/{repository}/manifests/{tag}"
    assert sorted(one.uri for one in asked[1:]) == sorted(f"/v2/{repository}/blobs/{blob}" for blob in blobs)

    below = root / "image/overlay2"
    for chain, entry in zip(image.layers, manifest["layers"], strict=True):
        diff_id = store.map()[chain].diff_id
        assert json.loads((below / "layerdb" / chain.replace(":", "/") / "descriptor.json").read_bytes()) == entry
        assert (below / "distribution/diffid-by-digest" / entry["digest"].replace(":", "/")).read_text() == diff_id
        [noted] = json.loads((below / "distribution/v2metadata-by-diffid" / diff_id.replace(":", "/")).read_bytes())
        assert noted == {
            "Digest": entry["digest"], "SourceRepository": f"{registry.host}/{repository}", "HMAC": "",
            "MediaType": entry["mediaType"], "Size": entry["size"],
        }  # fmt: skip
    kept = below / "imagedb/metadata" / image.id.replace(":", "/") / "manifest"
    assert kept.read_bytes() == registry.blob(digest)


def test_a_pulled_image_runs(named, pushed, store, images):
    reference = named("app")
    pushed("skopeo", reference)
    with store.create_rw_layer("box", images.pull(reference)) as box:
        done = box.run(["/bin/cat", "/etc/new"])
        assert (done.returncode, done.stdout) == (0, b"new")


def test_an_image_that_is_here_costs_one_request(registry, named, pushed, images):
    reference = named("app")
    pushed("skopeo", reference)
    first = images.pull(reference)
    before, told = len(registry.requests()), []
    assert images.pull(reference, progress=told.append) == first
    repository, tag = split(reference)
    assert [(one.method, one.uri, one.status) for one in registry.requests(before)] == [("GET", f"/v2/{repository}/manifests/{tag}", 200)]
    assert [(int(done), done.total) for done in told[-1:]] == [(0, 0)]
    images.remove(reference)
    assert images.pull(first.digests[0]).references == ()


def test_a_digest_pulls_what_the_tag_no_longer_names(registry, named, pushed, room, images, skopeo):
    reference = named("app")
    pushed("skopeo", reference)
    repository, tag = split(reference)
    digest, first = registry.tag(repository, tag), registry.manifest(repository, tag)
    later = programs.archive(room / "later.tar", author="later")
    skopeo.copy(f"docker-archive:{later}", f"docker://{reference}")
    by_digest = f"{reference.removesuffix(':1')}@{digest}"
    image = images.pull(by_digest)
    assert (image.id, image.references, image.digests) == (first["config"]["digest"], (), (by_digest,))
    assert images.pull(reference).id != image.id


# ---- images for several platforms ---------------------------------------------------------------
@pytest.fixture
def of_two(room):
    """Archives of one image for two platforms."""
    return {arch: programs.archive(room / f"{arch}.tar", f"app:{arch}", architecture=arch) for arch in ("amd64", "arm64")}


def list_by_docker(docker, skopeo, of_two, reference: str) -> None:
    """`docker manifest`, which makes Docker's manifest lists."""
    parts = [f"{reference}-{arch}" for arch in of_two]
    for (arch, archive), part in zip(of_two.items(), parts, strict=True):
        docker.docker("load", "-q", "--input", str(archive))
        docker.docker("tag", f"app:{arch}", part)
        docker.docker("push", part)
    docker.docker("manifest", "create", "--insecure", reference, *parts)
    docker.docker("manifest", "push", "--insecure", reference)


def list_by_podman(podman, of_two, reference: str) -> None:
    """`podman manifest`, which makes OCI's indexes."""
    name = "localhost/list:" + reference.replace("/", "-").replace(":", "-")
    podman("manifest", "create", name)
    for archive in of_two.values():
        podman("manifest", "add", name, f"docker-archive:{archive}")
    podman("manifest", "push", "-q", "--all", "--format", "oci", "--tls-verify=false", name, f"docker://{reference}")


@pytest.mark.parametrize("who", ["docker", "podman", "skopeo"])
def test_of_an_index_the_image_for_the_platform_is_pulled(registry, named, docker, podman, skopeo, of_two, images, who):
    reference = named("list")
    if who == "docker":
        list_by_docker(docker, skopeo, of_two, reference)
    else:
        list_by_podman(podman, of_two, reference)
    if who == "skopeo":
        skopeo.copy(f"docker://{reference}", f"docker://{(reference := named('copied'))}", "--all")
    digest = registry.tag(*split(reference))
    entries = registry.manifest(*split(reference))["manifests"]
    for arch in of_two:
        [entry] = [entry for entry in entries if entry["platform"]["architecture"] == arch]
        image = images.pull(reference, platform=f"linux/{arch}")
        assert image.architecture == arch
        assert image.id == json.loads(registry.blob(entry["digest"]))["config"]["digest"]
        assert image.digests == (f"{reference.removesuffix(':1')}@{digest}",)
    with pytest.raises(layerstore.ImageError, match=r"linux/amd64.*linux/arm64"):
        images.pull(reference, platform="linux/s390x")


def test_registry_tells_what_is_there(registry, named, pushed, podman, of_two):
    reference = named("app")
    pushed("skopeo", reference)
    pushed("podman, oci", reference.removesuffix("1") + "2")
    list_by_podman(podman, of_two, reference.removesuffix("1") + "list")
    repository, _ = split(reference)
    with Registry(registry.host) as asked:
        assert sorted(asked.tags(repository)) == ["1", "2", "list"]
        for tag in ("1", "2", "list"):
            about, data = asked.manifest(f"{repository}:{tag}")
            assert about.digest == registry.tag(repository, tag) == "sha256:" + hashlib.sha256(data).hexdigest()
            assert (about.size, about.media_type) == (len(data), json.loads(data)["mediaType"])
        assert asked.referrers(f"{repository}:1") == []         # it does not know referrers, and has no index in their place
        for ask in (asked.tags, asked.manifest):
            with pytest.raises(layerstore.NotInRegistryError):
                ask(repository + "/none")


# ---- what is no image for us --------------------------------------------------------------------
def test_of_what_is_refused_the_reason_is_what_it_is(named, skopeo, archive, room, images, nothing_left):
    realregistry.run("openssl", "genrsa", "-out", room / "key", "2048")
    realregistry.run("openssl", "rsa", "-in", room / "key", "-pubout", "-out", room / "public")
    windows = programs.archive(room / "windows.tar", os="windows", **{"os.version": "10.0.17763.1"})
    kinds = {
        r"schema 1": (archive, "--format", "v2s1"),
        r"windows": (windows, "--override-os", "windows"),
        r"tar\+gzip\+encrypted": (archive, "--format", "oci", "--encryption-key", f"jwe:{room / 'public'}"),
    }
    for reason, (source, *words) in kinds.items():
        reference = named("app")
        skopeo.copy(f"docker-archive:{source}", f"docker://{reference}", *words)
        with nothing_left(), pytest.raises(layerstore.ImageError, match=reason):
            images.pull(reference)


# ---- between two stores ---------------------------------------------------------------------------
def test_stores_without_an_image_fetch_only_what_they_lack(registry, named, pushed, open_store, room, images):
    """The layers that two images share are fetched once."""
    reference, second = named("app"), named("other")
    pushed("skopeo", reference)
    first = images.pull(reference)
    with open_store(room / "elsewhere") as other:
        base = Images(other).pull(reference)
        with other.create_rw_layer("box", base) as box:
            with box.mounted() as root:
                Path(root, "more").write_text("more\n")
            with box.commit() as top:
                made = Images(other).create(top, {"config": {}}, tags=second)
                Images(other).push(made)
        before = len(registry.requests())
        again = images.pull(second)
        blobs = [one.uri.rpartition("/")[2] for one in registry.requests(before) if "/blobs/" in one.uri]
        config = registry.manifest(*split(second))["config"]["digest"]
        top = registry.manifest(*split(second))["layers"][-1]["digest"]
        assert sorted(blobs) == sorted([config, top])
        assert again.layers[:-1] == first.layers
