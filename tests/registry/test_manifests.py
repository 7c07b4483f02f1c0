"""Manifests: which are taken, which are refused and with what words; indexes, platforms, digests and sizes."""

import json

import imagekit
import pytest
import tarkit
from imagekit import BASE, DOCKER, MIDDLE, OCI, TOP
from scripted import Answer
from shelf import KINDS, Shelf

from layerstore import ImageError, InvalidDigestError, RegistryError

INDEX, MANIFEST, DOCKER_LIST, DOCKER_MANIFEST = KINDS
AMD64, ARM64 = {"platform": {"os": "linux", "architecture": "amd64"}}, {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}


# ---- what kind it is ----
@pytest.mark.parametrize("vague", ["", "application/json", "text/plain", "application/octet-stream", "application/json; charset=utf-8"])
@pytest.mark.parametrize("said", [True, False], ids=["mediaType", "without"])
def test_a_content_type_that_says_little(shelf, pull, check, vague, said):
    put = shelf.put([BASE], edit=lambda document: None if said else document.pop("mediaType"))
    shelf.on("GET", "/v2/app/manifests/1", Answer(200, {"Content-Type": vague} if vague else {}, put.manifest))
    check(pull(put.reference), put)


def test_parameters_of_a_content_type_are_dropped(shelf, pull, check):
    put = shelf.put([BASE])
    shelf.on("GET", "/v2/app/manifests/1", Answer(200, {"content-type": MANIFEST.upper() + '; charset="utf-8"'}, put.manifest))
    check(pull(put.reference), put)


def test_an_index_without_types_is_told_by_its_shape(shelf, pull, check):
    put = shelf.put([BASE], tag="")
    data = imagekit.encode({"schemaVersion": 2, "manifests": [{"mediaType": MANIFEST, "digest": put.digest, "size": len(put.manifest)} | AMD64]})
    shelf.on("GET", "/v2/app/manifests/1", Answer(200, {"Content-Type": "application/json"}, data))
    check(pull(f"{shelf.host}/app:1", platform="linux/amd64"), put)


@pytest.mark.parametrize("told", [INDEX, DOCKER_LIST, DOCKER_MANIFEST])
def test_two_types_that_differ_are_refused(shelf, pull, unstored, told):
    put = shelf.put([BASE])
    shelf.on("GET", "/v2/app/manifests/1", Answer(200, {"Content-Type": told}, put.manifest))
    with unstored(ImageError):
        pull(put.reference)


REFUSED = {
    "schema 1": ({"schemaVersion": 1, "name": "app", "tag": "1", "fsLayers": [], "history": [], "signatures": []}, DOCKER + "distribution.manifest.v1+prettyjws", "schema"),
    "an artifact by its config": ({"schemaVersion": 2, "mediaType": MANIFEST, "config": {"mediaType": "application/vnd.example.thing+json", "digest": imagekit.digest(b"{}"), "size": 2}, "layers": []}, MANIFEST, r"application/vnd\.example\.thing\+json"),
    "an artifact by its type": ({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.example.sbom", "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": imagekit.digest(b"{}"), "size": 2}, "layers": []}, MANIFEST, r"application/vnd\.example\.sbom"),
    "a list": ([1], MANIFEST, ""),
    "a text": ("x", MANIFEST, ""),
    "no layers": ({"schemaVersion": 2, "mediaType": MANIFEST, "config": imagekit.descriptor(b"{}", OCI + "config.v1+json")}, MANIFEST, ""),
    "layers of another kind": ({"schemaVersion": 2, "mediaType": MANIFEST, "config": imagekit.descriptor(b"{}", OCI + "config.v1+json"), "layers": {}}, MANIFEST, ""),
    "an empty index": ({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}, INDEX, ""),
    "an index of no list": ({"schemaVersion": 2, "mediaType": INDEX, "manifests": {"a": 1}}, INDEX, ""),
    "an index of numbers": ({"schemaVersion": 2, "mediaType": INDEX, "manifests": [1, None]}, INDEX, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_refused_with_a_sentence(shelf, pull, unstored, name):
    document, kind, words = REFUSED[name]
    shelf.add_blob(b"{}")
    shelf.add_manifest(imagekit.encode(document), tag="1", kind=kind)
    with unstored(ImageError, match=words or None):
        pull(f"{shelf.host}/app:1")
    assert not shelf.asked("GET", "/v2/app/blobs/.*") or name in ("no layers", "layers of another kind")


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b'{"schemaVersion":2,"schemaVersion":', b"NaN"], ids=lambda data: repr(data[:12]))
def test_json_that_is_none(shelf, pull, unstored, data):
    for kind in (MANIFEST, INDEX, "application/json"):
        shelf.on("GET", "/v2/app/manifests/1", Answer(200, {"Content-Type": kind}, data))
        with unstored(ImageError):
            pull(f"{shelf.host}/app:1")


LAYER_TYPES = ["application/vnd.oci.image.layer.v1.tar+encrypted", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/x-thing", "text/plain"]


@pytest.mark.parametrize("kind", LAYER_TYPES)
def test_a_layer_that_is_no_tar(shelf, pull, unstored, kind):
    put = shelf.put([BASE, TOP], edit=lambda document: document["layers"][1].update(mediaType=kind))
    with unstored(ImageError) as caught:
        pull(put.reference)
    assert kind in str(caught.value)
    assert shelf.asked("GET", put.blob_path(0)) == []


def test_windows_is_refused(shelf, pull, unstored):
    put = shelf.put([BASE], os="windows")
    with unstored(ImageError, match="(?i)windows"):
        pull(put.reference)


def test_126_layers_are_too_many_and_125_are_not(shelf, pull, check, unstored):
    layers = [tarkit.file(f"f{n}", b"") + tarkit.end() for n in range(126)]
    put = shelf.put(layers, tag="many")
    with unstored(ImageError, match="12[56]"):
        pull(put.reference)
    assert not shelf.asked("GET", put.blob_path(0))
    check(pull(shelf.put(layers[:125]).reference), shelf.put(layers[:125]))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_config_of_other_layers(shelf, pull, unstored, count):
    put = shelf.put([BASE, TOP], rootfs={"type": "layers", "diff_ids": [tarkit.diff_id(BASE)] * count})
    with unstored(ImageError):
        pull(put.reference)


def test_a_config_with_another_diff_id(shelf, pull, unstored):
    put = shelf.put([BASE, TOP], rootfs={"type": "layers", "diff_ids": [tarkit.diff_id(BASE), tarkit.diff_id(MIDDLE)]})
    with unstored(ImageError, match="DiffID"):
        pull(put.reference)


SIZES = [-1, 1.5, "5", None, 2**63, 2**70, 1e300, True, [5], 5.0]


@pytest.mark.parametrize("size", SIZES, ids=repr)
@pytest.mark.parametrize("which", ["config", "layer"])
def test_a_size_that_is_no_whole_number(shelf, pull, unstored, which, size):
    def edit(document):
        (document["config"] if which == "config" else document["layers"][0])["size"] = size

    put = shelf.put([BASE], edit=edit)
    with unstored(ImageError):
        pull(put.reference)
    assert len(shelf.requests) == 1


DIGESTS = ["", "sha256:", "sha256:" + "a" * 63, "sha256:" + "A" * 64, "sha256:" + "g" * 64, "md5:" + "a" * 32, "sha256:" + "a" * 64 + "/../../x", "sha256:" + "a" * 64 + "?x=1",
           "sha256:" + "a" * 64 + "\r\nX: y", "../../../etc/passwd", 5, None, ["sha256:" + "a" * 64], "sha256:" + "a" * 64 + "\n", "sha256:" + "a" * 64 + "\x00"]  # fmt: skip


@pytest.mark.parametrize("digest", DIGESTS, ids=repr)
def test_a_digest_that_is_none(shelf, pull, unstored, digest):
    for number, which in enumerate(("config", "layer")):
        def edit(document, which=which):
            (document["config"] if which == "config" else document["layers"][0])["digest"] = digest

        put = shelf.put([BASE], tag=f"{number}", edit=edit)
        with unstored(ImageError, InvalidDigestError):
            pull(put.reference)
    assert len(shelf.requests) == 2
    put = shelf.put([BASE], tag="")
    shelf.add_manifest({"schemaVersion": 2, "mediaType": INDEX, "manifests": [{"mediaType": MANIFEST, "digest": digest, "size": 5} | AMD64]}, tag="index")
    with unstored(ImageError, InvalidDigestError):
        pull(f"{shelf.host}/app:index", platform="linux/amd64")
    assert len(shelf.requests) == 3


# ---- digests ----
def test_another_manifest_than_the_digest_asked_for(shelf, pull, unstored):
    put, other = shelf.put([BASE]), shelf.put([TOP], tag="2")
    shelf.on("GET", f"/v2/app/manifests/{put.digest}", Answer(200, {"Content-Type": MANIFEST, "Docker-Content-Digest": put.digest}, other.manifest))
    with unstored(ImageError) as caught:
        pull(put.by_digest)
    assert put.digest in str(caught.value)


def test_a_content_digest_that_is_another(shelf, pull, unstored):
    put = shelf.put([BASE])
    for wrong in (imagekit.digest(b"other"), imagekit.digest(b"other", "sha512")):
        shelf.on("GET", "/v2/app/manifests/1", Answer(200, {"Content-Type": MANIFEST, "Docker-Content-Digest": wrong}, put.manifest))
        with unstored(ImageError):
            pull(put.reference)


@pytest.mark.parametrize("passed", ["", "nonsense", "sha256:abc", "md5:" + "a" * 32, "SHA256:" + "a" * 64, "sha256:" + "A" * 64, "blake3:" + "a" * 64, "sha256:" + "a" * 64 + "/x"])
def test_a_content_digest_that_is_none_is_passed_over(shelf, pull, check, passed):
    put = shelf.put([BASE])
    shelf.on("GET", "/v2/app/manifests/1", Answer(200, {"Content-Type": MANIFEST, "Docker-Content-Digest": passed}, put.manifest))
    check(pull(put.reference), put, [put.reference])


def test_a_content_digest_of_another_algorithm_is_compared_by_its_own(shelf, pull, check):
    put = shelf.put([BASE])
    for reference, path in ((put.reference, "1"), (put.by_digest, put.digest)):
        shelf.on("GET", f"/v2/app/manifests/{path}", Answer(200, {"Content-Type": MANIFEST, "Docker-Content-Digest": imagekit.digest(put.manifest, "sha512")}, put.manifest))
        check(pull(reference), put)


def test_a_content_digest_of_a_blob_is_passed_over(shelf, pull, check):
    put = shelf.put([BASE])
    shelf.on("GET", put.blob_path(0), Answer(200, {"Docker-Content-Digest": imagekit.digest(b"other")}, put.blobs[0]))
    shelf.on("GET", f"/v2/app/blobs/{imagekit.digest(put.config)}", Answer(200, {"Docker-Content-Digest": "x" * 900}, put.config))
    check(pull(put.reference), put)


# ---- configs ----
def test_a_config_of_another_size_or_digest(shelf, pull, unstored):
    put = shelf.put([BASE])
    path = f"/v2/app/blobs/{imagekit.digest(put.config)}"
    for body in (put.config[:-1], put.config + b" ", put.config.replace(b"amd64", b"arm64"), b""):
        shelf.on("GET", path, Answer(200, {}, body))
        with unstored(ImageError, RegistryError) as caught:
            pull(put.reference)
        assert imagekit.digest(put.config) in str(caught.value)


def test_a_config_that_is_stored_is_not_asked_for(shelf, pull, images, check):
    put = shelf.put([BASE, TOP])
    images.load(imagekit.tar_of(imagekit.oci([BASE, TOP])))
    check(pull(put.reference), put)
    assert shelf.paths() == ["GET /v2/app/manifests/1"]


# ---- indexes ----
def test_the_platform_is_chosen(shelf, pull, check):
    amd, arm = shelf.put([BASE], tag=""), shelf.put([TOP], tag="", architecture="arm64")
    shelf.put_index([(amd, AMD64), (arm, ARM64)])
    check(pull(f"{shelf.host}/app:all", platform="linux/amd64"), amd)
    check(pull(f"{shelf.host}/app:all", platform="linux/arm64"), arm)


def test_no_such_platform_lists_those_there_are(shelf, pull, unstored):
    amd, arm = shelf.put([BASE], tag=""), shelf.put([TOP], tag="", architecture="arm64")
    shelf.put_index([(amd, AMD64), (arm, ARM64)])
    with unstored(ImageError, match="linux/amd64.*linux/arm64") as caught:
        pull(f"{shelf.host}/app:all", platform="linux/s390x")
    assert "linux/s390x" in str(caught.value)


@pytest.mark.parametrize("platform", ["all", "linux", "", "linux/amd64/v1/x"])
def test_platforms_that_are_none(shelf, pull, platform):
    put = shelf.put([BASE])
    with pytest.raises((ImageError, ValueError, TypeError)):
        pull(put.reference, platform=platform)


def test_a_platform_holds_for_a_single_manifest_too(shelf, pull, unstored, check):
    put = shelf.put([BASE], architecture="arm64")
    with unstored(ImageError):
        pull(put.reference, platform="linux/amd64")
    check(pull(put.reference), put)
    check(pull(put.reference, platform="linux/arm64"), put)


def test_attestations_are_passed_over(shelf, pull, check):
    put, other = shelf.put([BASE], tag=""), shelf.put([TOP], tag="")
    attestation = {"platform": {"os": "unknown", "architecture": "unknown"}, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    shelf.put_index([(other, attestation), (put, AMD64)])
    check(pull(f"{shelf.host}/app:all", platform="linux/amd64"), put)
    assert other.digest not in "".join(shelf.paths())


def nest(shelf, put, depth):
    digest, size, kind = put.digest, len(put.manifest), MANIFEST
    for level in range(depth):
        document = imagekit.encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": [{"mediaType": kind, "digest": digest, "size": size} | (AMD64 if not level else {})]})
        digest, size, kind = shelf.add_manifest(document, tag="deep"), len(document), INDEX
    return f"{shelf.host}/app:deep"


def test_indexes_in_indexes(shelf, pull, check, unstored):
    put = shelf.put([BASE], tag="")
    check(pull(nest(shelf, put, 8), platform="linux/amd64"), put)
    with unstored(ImageError):
        pull(nest(shelf, put, 30), platform="linux/amd64")
    assert len(shelf.requests) < 30


def test_4097_manifests_are_too_many(shelf, pull, unstored):
    put = shelf.put([BASE], tag="")
    shelf.put_index([(put, ARM64)] * 4096 + [(put, AMD64)])
    with unstored(ImageError):
        pull(f"{shelf.host}/app:all", platform="linux/amd64")


def test_an_entrys_size_and_digest_count(shelf, pull, unstored):
    put, other = shelf.put([BASE], tag=""), shelf.put([TOP], tag="")
    for number, wrong in enumerate(({"size": len(put.manifest) + 1}, {"size": len(put.manifest) - 1}, {"size": 0})):
        shelf.put_index([(put, AMD64 | wrong)], tag=f"{number}")
        with unstored(ImageError):
            pull(f"{shelf.host}/app:{number}", platform="linux/amd64")
    shelf.put_index([(put, AMD64)])
    shelf.on("GET", f"/v2/app/manifests/{put.digest}", Answer(200, {"Content-Type": MANIFEST}, other.manifest))
    with unstored(ImageError):
        pull(f"{shelf.host}/app:all", platform="linux/amd64")


def test_an_entry_that_is_missing(shelf, pull, unstored):
    put = shelf.put([BASE], tag="")
    shelf.put_index([(put, AMD64)])
    del shelf.manifests["app"][put.digest]
    with unstored(RegistryError, match=put.digest):
        pull(f"{shelf.host}/app:all", platform="linux/amd64")


# ---- foreign layers ----
def test_foreign_layers_are_asked_of_the_registry_alone(shelf, serve, pull, check, unstored):
    elsewhere = serve(Shelf())

    def edit(document):
        document["layers"][0] |= {"mediaType": DOCKER + "image.rootfs.foreign.diff.tar.gzip", "urls": [f"{elsewhere.url}/layer"]}

    put = shelf.put([BASE], docker_types=True, edit=edit)
    blob = shelf.blobs["app"].pop(put.digests[0])
    with unstored(RegistryError, match="foreign|urls"):
        pull(put.reference)
    shelf.blobs["app"][put.digests[0]] = blob
    check(pull(put.reference), put)
    assert elsewhere.connections == 0
    assert json.loads(put.manifest)["layers"][0]["urls"]
