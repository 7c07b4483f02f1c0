"""A push to Debian's docker-registry: others take it as an image, and what is there already is not sent again."""

import gzip
import hashlib
import json
import subprocess

import imagekit
import pytest
from imagekit import BASE, MIDDLE, TOP, tar_of
from programs import docker_run
from realregistry import split
from stored import tar_of as stored_tar

from layerstore import Images, Registry, Store
from layerstore.documents.manifests import OCI_LAYER

LAYERS = [BASE, MIDDLE, TOP, BASE]
UNPACK = {"+gzip": gzip.decompress, "+zstd": lambda data: subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout, "": bytes}


@pytest.fixture
def image(images):
    """An image with a name of no registry, one of whose layers comes twice."""
    [image] = images.load(tar_of(imagekit.docker([(LAYERS, ["app:1"])])))
    return image


def methods(requests) -> list[str]:
    return [one.method for one in requests]


@pytest.mark.parametrize(("compression", "suffix"), [("gzip", "+gzip"), ("zstd", "+zstd"), (None, "")])
@pytest.mark.parametrize("chunk", [None, 1000])
def test_what_is_there_then(registry, named, images, image, compression, suffix, chunk):
    """The manifest and its blobs, byte for byte those of another push of the same image; each layer once."""
    seen = []
    for number in "12":
        reference = named("app")
        before, told = len(registry.requests()), []
        with Registry(registry.host, chunk=chunk) as target:
            digest = images.push(image, reference, registry=target, compression=compression, force_compression=True, progress=told.append)
        repository, tag = split(reference)
        assert registry.tag(repository, tag) == digest
        manifest = registry.manifest(repository, tag)
        assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
        assert manifest["config"] == {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": image.id, "size": len(imagekit.config(LAYERS))}
        assert registry.blob(image.id) == imagekit.config(LAYERS)
        for layer, tar in zip(manifest["layers"], LAYERS, strict=True):
            blob = registry.blob(layer["digest"])
            assert (layer["mediaType"], layer["size"]) == (OCI_LAYER + suffix, len(blob))
            assert UNPACK[suffix](blob) == tar
        seen.append(digest)
        if number == "1":
            total = sum(map(len, {BASE, MIDDLE, TOP}))
            assert (int(told[-1]), told[-1].total) == (total, total)
            sent = methods(registry.requests(before))
            assert sent.count("POST") == 4
            assert sent[-1] == "PUT"
    assert seen[0] == seen[1]


def test_names_and_notes(registry, named, images, image, root):
    reference = named("app")
    repository, tag = split(reference)
    digest = images.push("app:1", reference)
    found = images.get("app:1")
    assert (found.references, found.digests) == (("app:1",), (f"{registry.host}/{repository}@{digest}",))
    notes = root / "image" / "overlay2" / "distribution"
    for layer, tar in zip(registry.manifest(repository, tag)["layers"], LAYERS, strict=True):
        diff_id = f"sha256:{hashlib.sha256(tar).hexdigest()}"
        assert (notes / "diffid-by-digest" / layer["digest"].replace(":", "/")).read_text() == diff_id
        assert json.loads((notes / "v2metadata-by-diffid" / diff_id.replace(":", "/")).read_bytes()) == [
            {"Digest": layer["digest"], "SourceRepository": f"{registry.host}/{repository}", "HMAC": "",
             "MediaType": layer["mediaType"], "Size": layer["size"]},
        ]  # fmt: skip


def test_again_only_asks(registry, named, images, image, room, root):
    """Also in a store that is opened anew, and to another tag: no blob goes, and nothing is compressed."""
    reference = named("app")
    repository, _ = split(reference)
    digest = images.push(image, reference)
    for store_again, target in ((False, reference), (True, reference), (True, f"{registry.host}/{repository}:2")):
        before, told = len(registry.requests()), []
        if store_again:
            images.store.close()
            with Store(root) as store:
                assert Images(store).push("app:1", target, progress=told.append) == digest
        else:
            assert images.push(image, target, progress=told.append) == digest
        assert [(int(done), done.total) for done in told] == [(0, 0)]
        asked = registry.requests(before)
        assert sorted(methods(asked)) == ["HEAD"] * 4 + ["PUT"]
        assert asked[-1].uri == f"/v2/{repository}/manifests/{split(target)[1]}"


def test_another_repository_gets_it_mounted(registry, named, images, image):
    first, second = named("app"), named("other")
    digest = images.push(image, first)
    before = len(registry.requests())
    assert images.push(image, second) == digest
    asked = registry.requests(before)
    assert methods(asked).count("PATCH") == 0
    mounts = [one for one in asked if "mount=" in one.uri]
    assert [one.status for one in mounts] == [201] * 3
    assert all(one.uri.endswith(f"&from={split(first)[0]}") for one in mounts)
    assert registry.blobs_of(split(second)[0]) == registry.blobs_of(split(first)[0])


def test_what_the_registry_lost_is_sent_again(registry, named, images, image):
    reference = named("app")
    repository, tag = split(reference)
    digest = images.push(image, reference)
    registry.forget(repository)
    assert images.push(image, reference) == digest
    assert registry.tag(repository, tag) == digest


def test_skopeo_takes_it(named, images, image, skopeo, room):
    reference = named("app")
    for compression in ("gzip", "zstd", None):
        digest = images.push(image, reference, compression=compression, force_compression=True)
        found = json.loads(skopeo.inspect(reference))
        assert (found["Digest"], len(found["Layers"])) == (digest, len(LAYERS))
        skopeo.copy(f"docker://{reference}", f"dir:{room / str(compression)}")


def test_docker_and_podman_run_it(named, images, archive, docker, podman):
    [image] = images.load(archive)
    reference = named("app")
    images.push(image, reference)
    docker.docker("pull", "-q", reference)
    podman.pull(reference)
    words = ("/bin/busybox", "echo", "hello")
    assert docker_run(docker, reference, *words) == podman.run(reference, *words) == b"hello\n"


def test_a_pulled_image_keeps_its_digest(registry, named, images, skopeo, archive):
    """What skopeo wrote, of docker's media types, goes byte for byte; elsewhere too, where its blobs are mounted."""
    reference, other = named("app"), named("other")
    skopeo.copy(f"docker-archive:{archive}", f"docker://{reference}", "--format", "v2s2")
    image = images.pull(reference)
    repository, tag = split(reference)
    digest = registry.tag(repository, tag)
    assert images.push(image) == digest
    assert images.push(image, other) == digest
    assert registry.tag(*split(other)) == digest
    assert images.push(image, other, force_compression=True) != digest


def test_what_was_pushed_is_pulled(named, images, image, room, registry):
    reference = named("app")
    digest = images.push(image, reference, compression="zstd")
    with Store(room / "second") as store:
        pulled = Images(store).pull(reference)
        assert pulled.id == image.id
        assert [stored_tar(store.map()[chain]) for chain in pulled.layers] == LAYERS
        assert Images(store).push(pulled) == digest
        assert store.verify() == []


def test_an_image_without_layers(registry, named, images):
    [image] = images.load(tar_of(imagekit.docker([([], ["empty:1"])])))
    reference = named("empty")
    digest = images.push(image, reference)
    assert registry.manifest(*split(reference))["layers"] == []
    assert registry.tag(*split(reference)) == digest
