"""One data root: dockerd knows the names, digests and blobs of what we pulled and pushed there, and we those of dockerd."""

import json

import programs
import pytest
from dockerd import Dockerd
from realregistry import split

from layerstore import Images, ReadOnlyStoreError

LAYERS = programs.layers()


def pushed_by(docker: Dockerd, reference: str) -> list[str]:
    """What `docker push` says of each layer."""
    said = docker.docker("push", reference).decode().splitlines()
    states = [line.partition(": ")[2] for line in said if line[:12].isalnum() and line[12:13] == ":"]
    return [state for state in states if state not in ("Preparing", "Waiting")]


def test_dockerd_knows_what_we_pulled(registry, named, skopeo, archive, root, open_store):
    first, second = named("app"), named("second")
    skopeo.copy(f"docker-archive:{archive}", f"docker://{first}")
    digest = registry.tag(*split(first))
    with open_store() as store:
        image = Images(store).pull(first)
    with Dockerd(root, network=True) as docker:
        lines = docker.docker("images", "--digests", "--no-trunc", "--format", "{{.Repository}} {{.Tag}} {{.Digest}} {{.ID}}")
        assert lines.decode().split() == [first.rpartition(":")[0], "1", digest, image.id]
        assert programs.docker_run(docker, first, "/bin/cat", "/etc/new") == b"new"
        before = len(registry.requests())
        assert pushed_by(docker, first) == ["Layer already exists"] * len(LAYERS)
        docker.docker("tag", first, second)
        source = "Mounted from " + split(first)[0]
        assert pushed_by(docker, second) == [source] * len(LAYERS)
        assert not [one for one in registry.requests(before) if one.method == "PATCH" and one.status == 202 and "layer" in one.uri]
        kept = root / "image/overlay2/imagedb/metadata/sha256" / image.id[7:]
        assert (kept / "manifest").read_bytes() == registry.blob(digest)
        docker.docker("image", "rm", "--force", image.id)
        assert not kept.exists()
        assert docker.images() == []


@pytest.mark.parametrize("compression", ["gzip", None])
def test_dockerd_sends_nothing_of_what_we_pushed(registry, named, archive, root, open_store, compression):
    first, second = named("app"), named("second")
    with open_store() as store:
        images = Images(store)
        [image] = images.load(archive)
        images.tag(image, first)
        digest = images.push(first, compression=compression)
    with Dockerd(root, network=True) as docker:
        assert docker.inspect(first)["RepoDigests"] == [f"{first.rpartition(':')[0]}@{digest}"]
        docker.docker("tag", first, second)
        assert pushed_by(docker, second) == ["Mounted from " + split(first)[0]] * len(LAYERS)
    theirs = registry.manifest(*split(second))["layers"]
    assert [layer["digest"] for layer in theirs] == [layer["digest"] for layer in registry.manifest(*split(first))["layers"]]


def test_we_send_nothing_of_what_dockerd_pushed_or_pulled(registry, named, archive, root, open_store, skopeo):
    first, second, third = named("app"), named("second"), named("third")
    pulled = programs.archive(archive.parent / "pulled.tar", "pulled:1", author="somebody else")
    skopeo.copy(f"docker-archive:{pulled}", f"docker://{second}")
    with Dockerd(root, network=True) as docker:
        docker.docker("load", "-q", "--input", str(archive))
        docker.docker("tag", "app:1", first)
        docker.docker("push", first)
        docker.docker("pull", "-q", second)
        id = docker.inspect(second)["Id"]
    with open_store() as store:
        images = Images(store)
        assert images.get(second).digests == (f"{second.rpartition(':')[0]}@{registry.tag(*split(second))}",)
        for name in (first, second):
            before = len(registry.requests())
            images.push(name, third)
            asked = registry.requests(before)
            blobs = [one for one in asked if "/blobs/uploads/" in one.uri and one.method in ("PATCH", "PUT")]
            assert [one.method for one in blobs] == ["PUT"], "the config alone"
        assert images.pull(third).id == id
        notes = root / "image/overlay2/distribution/v2metadata-by-diffid/sha256"
        assert len(list(notes.iterdir())) == len(LAYERS)
        assert all(json.loads(note.read_bytes()) for note in notes.iterdir())


def test_the_root_of_a_running_dockerd_is_neither_pulled_to_nor_pushed_from(registry, named, archive, root, open_store, skopeo):
    """Its notes and names are dockerd's meanwhile: no request is made."""
    reference = named("app")
    skopeo.copy(f"docker-archive:{archive}", f"docker://{reference}")
    with Dockerd(root, network=True) as docker:
        docker.docker("load", "-q", "--input", str(archive))
        before = len(registry.requests())
        with open_store() as store:
            images = Images(store)
            [image] = images.list()
            for call in (lambda: images.pull(reference), lambda: images.push(image, reference)):
                with pytest.raises(ReadOnlyStoreError):
                    call()
        assert registry.requests(before) == []
