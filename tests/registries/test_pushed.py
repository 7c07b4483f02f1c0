"""What we pushed, skopeo, podman, docker and containerd pull and run, under the digest that we told; another registry keeps that digest."""

import hashlib
import json
from pathlib import Path

import programs
import pytest
from realregistry import Request, split

from layerstore import Images

LAYERS = programs.layers()


@pytest.fixture
def image(images, archive):
    """The image, stored here, as app:1."""
    [loaded] = images.load(archive)
    return loaded


def sent(asked: list[Request]) -> list[str]:
    """What carried a blob: the way of the upload."""
    return [one.method for one in asked if "/blobs/uploads/" in one.uri and one.method in ("PATCH", "PUT")]


def mounts(asked: list[Request]) -> list[int]:
    return [one.status for one in asked if one.method == "POST" and "mount=" in one.uri]


def without_tag(reference: str) -> str:
    return reference.rpartition(":")[0]


# ---- what is there then ----------------------------------------------------------------------------
@pytest.mark.parametrize("compression", ["gzip", "zstd", None])
def test_podman_pulls_and_runs_it(named, images, image, podman, compression):
    reference = named("app")
    digest = images.push("app:1", reference, compression=compression)
    assert podman.pull(reference) == image.id
    [about] = json.loads(podman("image", "inspect", reference))
    assert f"{without_tag(reference)}@{digest}" in about["RepoDigests"]
    assert podman.run(reference, "/bin/cat", "/etc/new") == b"new"
    podman("image", "rm", "--force", image.id)


@pytest.mark.parametrize("compression", ["gzip", None])
def test_docker_pulls_and_runs_it(named, images, image, docker, compression):
    """dockerd 20.10 does not know zstd."""
    reference = named("app")
    digest = images.push("app:1", reference, compression=compression)
    docker.docker("pull", "-q", reference)
    about = docker.inspect(reference)
    assert about["Id"] == image.id
    assert f"{without_tag(reference)}@{digest}" in about["RepoDigests"]
    assert programs.docker_run(docker, reference, "/bin/cat", "/etc/new") == b"new"
    docker.docker("image", "rm", "--force", image.id)


@pytest.mark.parametrize("compression", ["gzip", "zstd", None])
def test_containerd_pulls_and_runs_it(registry, named, images, image, containerd, compression):
    """And pushes it: another registry or repository has the same digest."""
    reference, again = named("app"), named("again")
    digest = images.push("app:1", reference, compression=compression)
    assert containerd.pull(reference) == digest
    assert containerd.run(reference, "/bin/cat", "/etc/new") == b"new"
    containerd("images", "push", "--plain-http", again, reference)
    assert registry.tag(*split(again)) == digest
    containerd("images", "rm", reference)


def test_skopeo_copies_it_with_its_digest(named, start, images, image, skopeo, open_store, room):
    """Into a directory and to another registry, to keep or to carry over."""
    reference, other = named("app"), start()
    digest = images.push("app:1", reference)
    skopeo.copy(f"docker://{reference}", f"dir:{room / 'copy'}", "--preserve-digests")
    assert "sha256:" + hashlib.sha256((room / "copy/manifest.json").read_bytes()).hexdigest() == digest
    skopeo.copy(f"docker://{reference}", f"docker://{other.host}/app:1", "--preserve-digests")
    assert other.tag("app", "1") == digest
    [carried] = Images(open_store(room / "carried")).load(room / "copy")
    assert carried.id == image.id


# ---- what is not sent ------------------------------------------------------------------------------
def test_the_other_compression_is_sent_only_if_it_is_asked_for(registry, named, images, image):
    reference = named("app")
    digest = images.push("app:1", reference)
    before = len(registry.requests())
    assert images.push("app:1", reference, compression="zstd") == digest
    assert sent(registry.requests(before)) == []
    forced = images.push("app:1", reference, compression="zstd", force_compression=True)
    assert forced != digest
    assert {layer["mediaType"].rpartition("+")[2] for layer in registry.manifest(*split(reference))["layers"]} == {"zstd"}


def test_of_a_changed_image_the_new_layer_is_sent(registry, named, store, images, image):
    reference = named("app")
    images.push("app:1", reference)
    with store.create_rw_layer("box", image) as box:
        with box.mounted() as root:
            Path(root, "more").write_text("more\n")
        with box.commit() as top:
            images.create(top, {"config": {}}, tags=reference)
    before = len(registry.requests())
    images.push(reference)
    asked = registry.requests(before)
    assert sent(asked).count("PATCH") == 1, "the new layer"
    assert sent(asked).count("PUT") == 2, "it, and the config"
    assert mounts(asked) == []


# ---- digests that stay ----------------------------------------------------------------------------
def test_a_pulled_image_keeps_its_digest_in_another_registry(named, start, images, skopeo, archive):
    """One that has its blobs; else the layers are compressed here, and a registry keeps blobs and not tars."""
    reference, other = named("app"), start()
    skopeo.copy(f"docker-archive:{archive}", f"docker://{reference}")
    image = images.pull(reference)
    skopeo.copy(f"docker://{reference}", f"docker://{other.host}/app:theirs", "--preserve-digests")
    assert images.push(image, f"{other.host}/app:ours") == other.tag("app", "theirs") == other.tag("app", "ours")


def test_what_we_made_has_one_digest_everywhere(named, start, images, image, open_store, room):
    """Pushed, pulled on another root, pushed from there to another registry: the same bytes, the same digest."""
    reference, other = named("app"), start()
    digest = images.push("app:1", reference)
    elsewhere = Images(open_store(room / "elsewhere"))
    elsewhere.pull(reference)
    assert elsewhere.push(reference, f"{other.host}/app:1") == digest == other.tag("app", "1")
