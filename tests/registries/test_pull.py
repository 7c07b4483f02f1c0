"""A pull from Debian's docker-registry of what skopeo put there: whole, named as docker names it, and the second time with one request."""

import hashlib
import json

import programs
from stored import tar_of

from layerstore import Registry


def split(reference: str) -> tuple[str, str, str]:
    host, _, rest = reference.partition("/")
    return host, *rest.rpartition(":")[::2]


def test_what_skopeo_put_there(registry, named, skopeo, archive, images, store, root):
    reference = named("app")
    host, repository, tag = split(reference)
    skopeo.copy(f"docker-archive:{archive}", f"docker://{reference}")
    digest, manifest = registry.tag(repository, tag), registry.manifest(repository, tag)
    before = len(registry.requests())
    told = []
    with Registry(host) as source:
        image = images.pull(reference, registry=source, progress=told.append)
    total = sum(layer["size"] for layer in manifest["layers"])
    assert (told[-1], told[-1].total) == (total, total)
    assert image.id == manifest["config"]["digest"]
    assert image.references == (reference,)
    assert image.digests == (f"{host}/{repository}@{digest}",)
    assert [tar_of(store.map()[chain]) for chain in image.layers] == programs.layers()
    assert store.verify() == store.orphans() == []
    asked = registry.requests(before)
    blobs = [manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]
    assert asked[0].uri == f"/v2/{repository}/manifests/{tag}"
    assert sorted(one.uri for one in asked[1:]) == sorted(f"/v2/{repository}/blobs/{blob}" for blob in blobs)

    notes = root / "image" / "overlay2" / "distribution"
    for chain, entry in zip(image.layers, manifest["layers"], strict=True):
        diff_id = store.map()[chain].diff_id
        layer = root / "image" / "overlay2" / "layerdb" / chain.replace(":", "/")
        assert json.loads((layer / "descriptor.json").read_bytes()) == entry
        assert (notes / "diffid-by-digest" / entry["digest"].replace(":", "/")).read_text() == diff_id
        [noted] = json.loads((notes / "v2metadata-by-diffid" / diff_id.replace(":", "/")).read_bytes())
        assert noted == {
            "Digest": entry["digest"], "SourceRepository": f"{host}/{repository}", "HMAC": "",
            "MediaType": entry["mediaType"], "Size": entry["size"],
        }  # fmt: skip
    kept = root / "image" / "overlay2" / "imagedb" / "metadata" / image.id.replace(":", "/") / "manifest"
    assert f"sha256:{hashlib.sha256(kept.read_bytes()).hexdigest()}" == digest


def test_again_with_one_request(registry, named, skopeo, archive, images):
    reference = named("app")
    host, repository, tag = split(reference)
    skopeo.copy(f"docker-archive:{archive}", f"docker://{reference}")
    with Registry(host) as source:
        image = images.pull(reference, registry=source)
        before, told = len(registry.requests()), []
        assert images.pull(reference, registry=source, progress=told.append) == image
        assert [one.uri for one in registry.requests(before)] == [f"/v2/{repository}/manifests/{tag}"]
        assert [(int(done), done.total) for done in told[-1:]] == [(0, 0)]
        images.remove(reference)
        by_digest = images.pull(image.digests[0], registry=source)
    assert (by_digest.references, by_digest.digests) == ((), image.digests)
