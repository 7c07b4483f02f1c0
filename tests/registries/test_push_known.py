"""What a push knows of blobs, and finds out: docker's notes without our keys, notes that lie, a kept manifest that is none."""

import json
from pathlib import Path

import imagekit
import pytest
import tarkit
from imagekit import BASE, MIDDLE, tar_of
from realregistry import split

from layerstore import Descriptor, ImageDoesNotExistError
from layerstore.documents.manifests import OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from layerstore.layerdb.imagedb import ImageDB

LAYERS = [BASE, MIDDLE]


@pytest.fixture
def image(images):
    [image] = images.load(tar_of(imagekit.docker([(LAYERS, ["app:1"])])))
    return image


@pytest.fixture
def notes(root):
    """The notes of a layer: notes(tar) is their path."""
    place = root / "image/overlay2/distribution/v2metadata-by-diffid/sha256"
    return lambda tar: place / imagekit.hexes(tar)


def as_docker_writes_them(path: Path) -> None:
    entries = json.loads(path.read_bytes())
    path.write_bytes(json.dumps([{key: entry[key] for key in ("Digest", "SourceRepository", "HMAC")} for entry in entries]).encode())


def methods(requests) -> list[str]:
    return sorted(one.method for one in requests)


@pytest.mark.parametrize(("compression", "suffix"), [("gzip", "+gzip"), ("zstd", "+zstd"), (None, "")])
def test_an_entry_of_dockerd_is_looked_into(registry, named, images, image, notes, compression, suffix):
    """Its first four bytes say what it is; its size is the registry's. So the manifest is the same."""
    reference = named("app")
    digest = images.push(image, reference, compression=compression)
    for tar in LAYERS:
        as_docker_writes_them(notes(tar))
    before = len(registry.requests())
    assert images.push(image, reference) == digest
    asked = registry.requests(before)
    assert methods(asked) == ["GET"] * 2 + ["HEAD"] * 3 + ["PUT"]
    assert [one.status for one in asked if one.method == "GET"] == [206, 206]
    assert [entry["mediaType"] for entry in registry.manifest(*split(reference))["layers"]] == [OCI_LAYER + suffix] * 2
    assert all(json.loads(notes(tar).read_bytes())[-1]["MediaType"] == OCI_LAYER + suffix for tar in LAYERS)


def test_forced_only_the_same_compression_will_do(registry, named, images, image, notes):
    """Known by our keys, or by its first bytes; both are passed over, and those of the right one are taken."""
    reference = named("app")
    first = images.push(image, reference, compression="zstd")
    second = images.push(image, reference, compression="gzip", force_compression=True)
    assert first != second
    before = len(registry.requests())
    assert images.push(image, reference, compression="zstd", force_compression=True) == first
    assert images.push(image, reference, compression="gzip", force_compression=True) == second
    for tar in LAYERS:
        as_docker_writes_them(notes(tar))
    assert images.push(image, reference, compression="zstd", force_compression=True) == first
    assert {"PATCH", "POST"}.isdisjoint(methods(registry.requests(before)))


def test_a_note_with_another_size_is_not_believed(registry, named, images, image, notes):
    reference = named("app")
    digest = images.push(image, reference)
    entries = json.loads(notes(BASE).read_bytes())
    notes(BASE).write_bytes(json.dumps([entries[0] | {"Size": entries[0]["Size"] + 1}]).encode())
    before = len(registry.requests())
    assert images.push(image, reference) == digest
    assert methods(registry.requests(before)).count("PATCH") == 1


def test_the_descriptor_of_a_layer_is_known(registry, named, images, store, image):
    """A layer that was registered with a descriptor, and whose blob the registry has, is not compressed."""
    reference = named("app")
    images.push(image, reference)
    [entry, _] = registry.manifest(*split(reference))["layers"]
    tar = tarkit.file("one", b"more") + tarkit.end()
    layer = store.register_with_descriptor(tar, descriptor=Descriptor(entry["mediaType"], entry["digest"], entry["size"]))
    other = images.create(layer, tags=named("other"))
    layer.release()
    before = len(registry.requests())
    images.push(other, reference)
    assert methods(registry.requests(before)).count("PATCH") == 0
    assert registry.manifest(*split(reference))["layers"] == [entry]


def test_a_mount_that_lost_its_source_is_sent(registry, named, images, image):
    first, second = named("app"), named("other")
    digest = images.push(image, first)
    registry.forget(split(first)[0])
    before = len(registry.requests())
    assert images.push(image, second) == digest
    asked = registry.requests(before)
    mounts = [one for one in asked if "mount=" in one.uri]
    assert [one.status for one in mounts] == [202, 202]
    # The sessions that the registry began instead are used: none is begun for a layer beside them.
    assert [one.uri.endswith("/blobs/uploads/") for one in asked if one.method == "POST" and one not in mounts] == [True]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"manifests":[]}', b'{"schemaVersion":2,"config":{}}', b"\0" * 500])
def test_a_kept_manifest_that_is_damaged_is_passed_over(registry, named, images, image, store, data):
    """A manifest of ours goes instead."""
    digest = images.push(image, named("app"))
    path = Path(store.images.root, "imagedb/metadata/sha256", image.id.partition(":")[2], "manifest")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    assert images.push(image, named("app")) == digest


def test_a_kept_manifest_of_another_image_is_passed_over(named, images, image, store, registry):
    [other] = images.load(tar_of(imagekit.docker([([MIDDLE, BASE], ["other:1"])])))
    digest = images.push(image, named("app"))
    reference = named("other")
    images.push(other, reference)
    db: ImageDB = store.images
    db.keep_manifest(image.id, json.dumps(registry.manifest(*split(reference))).encode())
    assert images.push(image, named("app")) == digest


def test_of_two_layers_one_is_lost_and_ours_takes_the_other_as_it_is(registry, named, images, skopeo, archive):
    """A kept manifest cannot go, as one blob of it is gone: ours has the others, with OCI's media types."""
    reference, other = named("app"), named("other")
    skopeo.copy(f"docker-archive:{archive}", f"docker://{reference}", "--format", "v2s2")
    image = images.pull(reference)
    kept = registry.manifest(*split(reference))
    gone = kept["layers"][0]["digest"]
    repository, _ = split(reference)
    for link in (registry.data / "docker/registry/v2/repositories" / repository).rglob(gone.partition(":")[2]):
        for path in link.rglob("*"):
            path.unlink()
    images.push(image, other)
    found = registry.manifest(*split(other))
    assert found["mediaType"] == OCI_MANIFEST
    assert all(entry["mediaType"] == OCI_LAYER + "+gzip" for entry in found["layers"])
    assert [entry["digest"] for entry in found["layers"][1:]] == [entry["digest"] for entry in kept["layers"][1:]]


def subject_of(registry, named, images, *, annotations=None, artifact="") -> tuple[dict, str, str]:
    """Push an image whose kept manifest has a subject, twice; the index beside the subject, the reference, the digest."""
    reference, subject = named("app"), imagekit.digest(b"subject")
    [image] = images.load(tar_of(imagekit.docker([([BASE], [])])))
    images.push(image, reference)
    document = registry.manifest(*split(reference)) | {"subject": {"mediaType": OCI_MANIFEST, "digest": subject, "size": 7}}
    document |= {"annotations": annotations} if annotations else {}
    document |= {"artifactType": artifact} if artifact else {}
    images.store.images.keep_manifest(image.id, imagekit.encode(document))
    digest = images.push(image, reference)
    assert digest == imagekit.digest(imagekit.encode(document))
    assert images.push(image, reference) == digest
    repository, _ = split(reference)
    tag = subject.replace(":", "-")
    return registry.manifest(repository, tag), reference, digest


def test_a_registry_without_referrers_gets_an_index(registry, named, images):
    """docker-registry 2.8.2 keeps no list of what refers to a manifest. The second push adds nothing."""
    index, reference, digest = subject_of(registry, named, images, annotations={"a": "b"})
    document = json.dumps(registry.manifest(*split(reference)), separators=(",", ":"))
    assert index == {
        "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [{"mediaType": OCI_MANIFEST, "digest": digest, "size": len(document.encode()),
                       "artifactType": "application/vnd.oci.image.config.v1+json", "annotations": {"a": "b"}}],
    }  # fmt: skip


def test_an_artifact_type_is_in_the_index(registry, named, images):
    index, _, _ = subject_of(registry, named, images, artifact="application/x")
    assert index["manifests"][0]["artifactType"] == "application/x"


@pytest.mark.parametrize("when", ["config", "layers"])
def test_an_image_that_is_removed_meanwhile_does_not_exist(registry, named, images, image, monkeypatch, when):
    """By another thread, between the look for it and the hold on its layers."""
    db = images.store.images
    content = db.content

    def removing(id: str) -> bytes:
        data = content(id)
        if when == "config":
            data = b""
        monkeypatch.undo()
        images.remove(id, force=True)
        return data or content(id)

    target = named("app")
    found = images.get
    monkeypatch.setattr(images, "get", lambda reference: (found(reference), monkeypatch.setattr(db, "content", removing))[0])
    before = len(registry.requests())
    with pytest.raises(ImageDoesNotExistError, match=image.id):
        images.push(image, target)
    assert registry.requests(before) == []
