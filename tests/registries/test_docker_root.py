"""One data root: dockerd knows the names, digests and blobs of what we pulled and pushed there, and we those of dockerd."""

import programs
from dockerd import Dockerd
from realregistry import split

from layerstore import Images

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
