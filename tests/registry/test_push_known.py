"""Blobs that may be there, at registries that say little, or something else; the config's own troubles; indexes that are others'."""

import json

import imagekit
import pytest
from imagekit import BASE, MIDDLE, OCI, TOP
from scripted import CUT, Answer

from layerstore import ImageError, RegistryError

LAYERS = [BASE, MIDDLE]
BLOB = "/v2/app/blobs/sha256:.+"
UPLOAD = "/v2/app/blobs/uploads/.+"


@pytest.fixture
def image(images):
    [loaded] = images.load(imagekit.tar_of(imagekit.docker([(LAYERS, [])])))
    return loaded


@pytest.fixture
def push(images, connect, shelf):
    def pushed(image, name="app:1", *, registry=None, compression="gzip", force_compression=False, **options):
        return images.push(image, f"{shelf.host}/{name}", registry=registry or connect(**options), compression=compression, force_compression=force_compression)

    return pushed


@pytest.fixture
def dockers(root):
    """Drop our keys from all notes, as dockerd does."""

    def rewrite(**more):
        for path in (root / "image/overlay2/distribution/v2metadata-by-diffid").rglob("*"):
            if path.is_file():
                entries = json.loads(path.read_bytes())
                path.write_text(json.dumps([{key: each[key] for key in ("Digest", "SourceRepository", "HMAC")} | more for each in entries]))

    return rewrite


def manifest(shelf, name="app", tag="1"):
    return json.loads(shelf.manifests[name][tag][1])


def without_length(shelf):
    """HEAD as a registry answers it that tells no size."""

    def answer(request):
        found = shelf.respond(request)
        return Answer(found.status, {}, b"", length=None) if found.status == 200 else found

    return answer


# ---- what is unknown of a blob ----
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("compression", ["gzip", "zstd", None])
def test_what_neither_the_note_nor_head_says_a_range_does(shelf, push, image, dockers, compression, ranges):
    """Content-Range has the size; a registry that answers with the whole blob has it in Content-Length."""
    digest = push(image, compression=compression)
    dockers()
    shelf.requests.clear()
    shelf.always("HEAD", BLOB, without_length(shelf))
    if not ranges:
        shelf.always("GET", BLOB, lambda request: Answer(200, {}, shelf.blobs["app"][request.path.rpartition("/")[2]]))
    # The config has no note: without a size it is sent again.
    assert push(image) == digest
    assert shelf.asked("PATCH") == []
    assert {request.header("Range") for request in shelf.asked("GET", BLOB)} == {"bytes=0-3"}


@pytest.mark.parametrize(
    "answer",
    [Answer(404), Answer(416), Answer(206, {"Content-Range": "bytes 5-8/100"}, b"1234"), Answer(206, {}, b"1234"), Answer(403),
     Answer(206, {"Content-Range": "bytes 0-3/100"}, [b"\x1f", CUT], 4)],
    ids=lambda answer: f"{answer.status} {answer.headers}",
)  # fmt: skip
def test_a_blob_that_cannot_be_looked_into_is_not_guessed(shelf, push, image, dockers, answer):
    digest = push(image)
    dockers()
    shelf.requests.clear()
    shelf.always("GET", BLOB, answer)
    assert push(image) == digest
    assert len(shelf.asked("PATCH")) == len(LAYERS)


def test_a_known_type_and_head_are_enough(shelf, push, image, dockers):
    digest = push(image)
    dockers(MediaType=OCI + "layer.v1.tar+gzip")
    shelf.requests.clear()
    assert push(image) == digest
    assert shelf.asked("GET|PATCH|POST") == []


@pytest.mark.parametrize("status", [400, 404, 405])
def test_a_head_that_is_refused_is_as_404(shelf, push, image, status):
    digest = push(image)
    shelf.requests.clear()
    shelf.always("HEAD", BLOB, Answer(status))
    assert push(image) == digest
    assert len(shelf.asked("PATCH")) == len(LAYERS)


def test_what_is_mounted_may_be_of_unknown_size_and_type(shelf, push, image, dockers):
    digest = push(image, compression="zstd")
    dockers()
    shelf.always("HEAD", "/v2/other/.+", without_length(shelf))
    assert push(image, "other:1") == digest
    assert shelf.asked("PATCH", "/v2/other/.+") == []


# ---- sessions that a mount brings ----
def test_a_session_of_a_mount_is_ended_if_the_next_one_succeeds(shelf, push, image):
    """The blob is in two repositories, and the registry has lost it in the newer one."""
    push(image, "first:1")
    push(image, "second:1")
    shelf.blobs["second"].clear()
    shelf.requests.clear()
    push(image, "third:1")
    assert shelf.asked("PATCH") == []
    assert [request.field("from") for request in shelf.asked("POST") if request.field("mount")].count("second") == len(LAYERS)
    assert len(shelf.asked("DELETE")) == len(LAYERS)
    assert shelf.uploads == {}


def test_sessions_of_mounts_are_ended_if_the_push_fails_before_they_are_used(shelf, push, image):
    push(image, "first:1")
    shelf.mounts = False
    shelf.always("PATCH", "/v2/second/.+", Answer(400))
    with pytest.raises(RegistryError):
        push(image, "second:1", connections=1)
    assert shelf.uploads == {}


def test_a_session_of_a_mount_that_is_over_is_begun_anew(shelf, push, image):
    push(image, "first:1")
    shelf.mounts = False

    def forgotten(request):
        shelf.uploads.pop(request.path.rpartition("/")[2], None)

    shelf.on("PATCH", "/v2/second/.+", forgotten, forgotten)
    push(image, "second:1", retries=1)
    assert len(shelf.asked("PATCH", "/v2/second/.+")) == 2 * len(LAYERS)


# ---- the config ----
@pytest.mark.parametrize("trouble", [Answer(503), Answer(404), Answer(416), Answer(raw=[CUT])], ids=str)
def test_a_config_is_sent_again(shelf, push, image, trouble):
    shelf.on("PUT", UPLOAD, lambda request: None, lambda request: None, trouble)
    push(image, retries=1)
    assert shelf.blobs["app"][image.id] == imagekit.config(LAYERS)
    assert shelf.uploads == {}


def test_a_config_that_is_too_large_for_one_request_goes_in_chunks(shelf, push, image):
    shelf.always("PUT", UPLOAD, lambda request: Answer(413) if request.header("Content-Length") not in ("", "0") else None)
    push(image)
    assert shelf.blobs["app"][image.id] == imagekit.config(LAYERS)
    assert shelf.asked("PATCH")[-1].header("Content-Range") == f"0-{len(imagekit.config(LAYERS)) - 1}"


@pytest.mark.parametrize("status", [400, 409, 202])
def test_a_config_that_is_refused_is_an_error_that_names_it(shelf, push, image, status):
    shelf.on("PUT", UPLOAD, lambda request: None, lambda request: None, Answer(status))
    with pytest.raises(RegistryError, match=image.id):
        push(image, retries=3)
    assert "app" not in shelf.manifests


# ---- what errors name ----
def test_an_error_of_a_layer_names_it(shelf, push, image):
    shelf.always("PATCH", UPLOAD, Answer(400))
    with pytest.raises(RegistryError, match=imagekit.digest(BASE)):
        push(image, connections=1)


# ---- indexes beside a subject ----
@pytest.fixture
def with_subject(shelf, images, connect):
    """An image that was pulled with a manifest that has a subject; and the tag of the index beside that."""
    shelf.tells_subject = False
    base = shelf.put([BASE], tag="base")
    subject = {"mediaType": OCI + "manifest.v1+json", "digest": base.digest, "size": len(base.manifest)}
    put = shelf.put([BASE, TOP], edit=lambda document: document.update(subject=subject))
    return images.pull(put.reference, registry=connect()), put, base.digest.replace(":", "-")


def test_what_an_index_has_stays_there(shelf, push, with_subject):
    image, put, tag = with_subject
    other = {"mediaType": "application/x", "digest": imagekit.digest(b"x"), "size": 1, "annotations": {"k": "v"}, "new": [1]}
    shelf.add_manifest({"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": [other], "annotations": {"own": "1"}}, "app", tag)
    push(image)
    kind, data = shelf.manifests["app"][tag]
    found = json.loads(data)
    assert kind == found["mediaType"] == OCI + "index.v1+json"
    assert found["manifests"][0] == other and found["annotations"] == {"own": "1"}
    assert [each["digest"] for each in found["manifests"]] == [other["digest"], put.digest]


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"schemaVersion":2,"manifests":7}'])
def test_an_index_that_is_none_is_left_alone(shelf, push, with_subject, data):
    image, _, tag = with_subject
    shelf.manifests["app"][tag] = (OCI + "index.v1+json", data)
    with pytest.raises(ImageError, match=tag):
        push(image)
    assert shelf.manifests["app"][tag][1] == data


def test_an_index_that_says_nothing_is_one_without_entries(shelf, push, with_subject):
    image, put, tag = with_subject
    shelf.manifests["app"][tag] = (OCI + "index.v1+json", b"{}")
    push(image)
    assert [each["digest"] for each in json.loads(shelf.manifests["app"][tag][1])["manifests"]] == [put.digest]


def test_a_manifest_in_the_place_of_the_index_is_left_alone(shelf, push, with_subject):
    image, put, tag = with_subject
    shelf.manifests["app"][tag] = shelf.manifests["app"]["1"]
    with pytest.raises(ImageError, match=tag):
        push(image)
    assert shelf.manifests["app"][tag][1] == put.manifest
