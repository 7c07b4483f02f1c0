"""Push: what is sent, what is not, in which order and form, and what is known afterwards."""

import gzip
import json
import random

import imagekit
import pytest
import tarkit
from guards import Gate
from imagekit import BASE, DOCKER, MIDDLE, OCI, TOP
from scripted import Answer
from shelf import Shelf
from stored import at_once

import layerstore
from layerstore import CorruptLayerError, ImageError, Images, Store

LAYERS = [BASE, MIDDLE, TOP]


@pytest.fixture
def image(images):
    """An image that came from no registry."""
    [loaded] = images.load(imagekit.tar_of(imagekit.docker([(LAYERS, [])])))
    return loaded


@pytest.fixture
def push(images, connect, shelf):
    def pushed(image, name="app:1", *, registry=None, progress=None, compression="gzip", force_compression=False, **options):
        return images.push(image, f"{shelf.host}/{name}", registry=registry or connect(**options), compression=compression, force_compression=force_compression, progress=progress)

    return pushed


def manifest(shelf, name="app", tag="1"):
    return json.loads(shelf.manifests[name][tag][1])


def kinds(shelf):
    return [request.method for request in shelf.requests]


# ---- what comes there ----
@pytest.mark.parametrize(("compression", "suffix"), [("gzip", "+gzip"), ("zstd", "+zstd"), (None, "")])
def test_the_manifest_and_its_blobs(shelf, push, image, compression, suffix):
    digest = push(image, compression=compression)
    data = shelf.manifests["app"]["1"][1]
    document = json.loads(data)
    assert digest == imagekit.digest(data)
    assert json.dumps(document, separators=(",", ":")).encode() == data, "it is not compact"
    assert list(document) == ["schemaVersion", "mediaType", "config", "layers"]
    assert (document["schemaVersion"], document["mediaType"]) == (2, OCI + "manifest.v1+json")
    assert document["config"] == {"mediaType": OCI + "config.v1+json", "digest": image.id, "size": len(imagekit.config(LAYERS))}
    for entry, tar in zip(document["layers"], LAYERS, strict=True):
        blob = shelf.blobs["app"][entry["digest"]]
        assert entry == {"mediaType": OCI + "layer.v1.tar" + suffix, "digest": imagekit.digest(blob), "size": len(blob)}
        magic = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", None: tar[:4]}[compression]
        assert blob.startswith(magic)
        if compression != "zstd":
            assert (gzip.decompress(blob) if compression else blob) == tar


def test_it_comes_back_the_same(shelf, push, image, room, connect):
    digest = push(image)
    with Store(room / "other") as store:
        found = Images(store).pull(f"{shelf.host}/app:1", registry=connect())
        assert found.id == image.id and found.digests == (f"{shelf.host}/app@{digest}",) and store.verify() == []


def test_a_second_push_sends_nothing(shelf, push, image):
    first = push(image)
    shelf.requests.clear()
    assert push(image) == first
    assert sorted(kinds(shelf)) == ["HEAD"] * 4 + ["PUT"]
    assert shelf.requests[-1].path == "/v2/app/manifests/1"


def test_by_another_process_too(shelf, push, image, root, connect):
    digest = push(image)
    shelf.requests.clear()
    with Store(root) as store:
        assert Images(store).push(image.id, f"{shelf.host}/app:2", registry=connect()) == digest
    assert set(kinds(shelf)) == {"HEAD", "PUT"}


def test_the_same_bytes_each_time(shelf, push, image, room, connect):
    one = push(image, force_compression=True)
    with Store(room / "other") as store:
        images = Images(store)
        images.load(imagekit.tar_of(imagekit.oci(LAYERS)))
        assert images.push(image.id, f"{shelf.host}/other:1", registry=connect(), force_compression=True) == one


def test_the_order_and_form_of_requests(shelf, push, image):
    push(image, connections=1)
    paths = shelf.paths()
    assert paths[-1] == "PUT /v2/app/manifests/1"
    layers = [imagekit.digest(shelf.blobs["app"][each["digest"]]) for each in manifest(shelf)["layers"]]
    ends = [request.field("digest") for request in shelf.asked("PUT", "/v2/app/blobs/uploads/.*")]
    assert ends == [*layers, image.id], "base first, the config behind the layers"
    patches = shelf.asked("PATCH")
    assert len(patches) == 3 and all(request.chunked for request in patches)
    assert all(request.header("Content-Length") == "0" for request in shelf.asked("POST"))
    *of_layers, of_config = shelf.asked("PUT", "/v2/app/blobs/uploads/.*")
    assert all(request.body == b"" for request in of_layers) and of_config.body == imagekit.config(LAYERS)
    assert [request.header("Content-Type") for request in shelf.asked("PUT", "/v2/app/manifests/1")] == [OCI + "manifest.v1+json"]


@pytest.mark.parametrize("location", ["absolute", "relative", "bare"])
def test_forms_of_a_location(shelf, push, image, location):
    shelf.location = location
    push(image)
    assert set(shelf.blobs["app"]) == {image.id, *[each["digest"] for each in manifest(shelf)["layers"]]}


def test_statuses_that_will_do(shelf, push, image):
    for method, pattern, statuses in (("PATCH", ".*", (201, 204)), ("PUT", ".*/uploads/.*", (200, 204)), ("PUT", ".*/manifests/.*", (200,))):
        for status in statuses:
            def other(request, status=status):
                answer = shelf.respond(request)
                answer.status = status
                return answer

            shelf.on(method, pattern, other)
    push(image)


def test_a_layer_that_is_there_twice_is_sent_once(shelf, images, push):
    [twice] = images.load(imagekit.tar_of(imagekit.docker([([BASE, TOP, BASE], [])])))
    push(twice)
    assert len(shelf.asked("PATCH")) == 2
    assert [each["digest"] for each in manifest(shelf)["layers"]].count(manifest(shelf)["layers"][0]["digest"]) == 2


def test_no_layers(shelf, images, push):
    [empty] = images.load(imagekit.tar_of(imagekit.docker([([], [])])))
    push(empty)
    assert manifest(shelf)["layers"] == []


def test_a_config_that_is_there_is_not_sent(shelf, push, image):
    shelf.add_blob(imagekit.config(LAYERS))
    push(image)
    assert image.id not in [request.field("digest") for request in shelf.asked("PUT")]
    assert shelf.asked("HEAD", f"/v2/app/blobs/{image.id}")


@pytest.mark.parametrize("answer", [Answer(405), Answer(400), Answer(200, {}, b"xx")], ids=lambda answer: str(answer.status))
def test_a_head_that_says_something_else_is_as_404(shelf, push, image, answer):
    shelf.always("HEAD", ".*/blobs/.*", answer)
    push(image)
    assert len(shelf.asked("PATCH")) == 3
    assert manifest(shelf)


def test_connections_bound_what_is_sent_at_once(shelf, images, push):
    [many] = images.load(imagekit.tar_of(imagekit.docker([([tarkit.file(f"f{n}", b"%d" % n) + tarkit.end() for n in range(12)], [])])))
    shelf.always("PATCH", ".*", lambda request: (request.server.closing.wait(0.03), None)[1])
    push(many, connections=3)
    assert shelf.connections <= 4 and shelf.most_bodies <= 3


@pytest.mark.parametrize("connections", [2, 3])
def test_so_many_layers_go_side_by_side(shelf, push, image, connections):
    gate = Gate(connections)
    shelf.on("PATCH", ".*", *[gate] * connections)
    push(image, connections=connections)
    assert gate.passed


# ---- mounts ----
def test_what_another_repository_has_is_mounted(shelf, push, image):
    digest = push(image)
    shelf.requests.clear()
    assert push(image, "other/name:2") == digest
    mounts = [(request.field("mount"), request.field("from")) for request in shelf.asked("POST")]
    assert {each[0] for each in mounts if each[0]} >= {each["digest"] for each in manifest(shelf)["layers"]}
    assert {each[1] for each in mounts if each[1]} == {"app"}
    assert shelf.asked("PATCH") == []


def test_a_mount_that_is_answered_202_is_a_session(shelf, push, image):
    push(image)
    shelf.mounts = False
    shelf.requests.clear()
    push(image, "other:1")
    assert manifest(shelf, "other")
    assert shelf.uploads == {}, "a session is left open"


@pytest.mark.parametrize("status", [400, 404, 405, 500, 403])
def test_a_mount_that_is_answered_otherwise_is_as_if_not_tried(shelf, push, image, status):
    push(image)
    shelf.always("POST", ".*", lambda request: Answer(status) if request.field("mount") else None)
    push(image, "other:1", retries=0)
    assert manifest(shelf, "other") and len(shelf.asked("PATCH", "/v2/other/.*")) == 3


# ---- the same manifest again ----
def pulled(shelf, images, connect, **more):
    put = shelf.put(LAYERS, **more)
    return put, images.pull(put.reference, registry=connect())


@pytest.mark.parametrize("packed", ["gzip", "zstd", "plain"])
def test_an_image_that_was_pulled_keeps_its_digest(shelf, images, connect, push, packed):
    put, image = pulled(shelf, images, connect, packed=packed, docker_types=True, edit=lambda document: document.update(annotations={"a": "b"}))
    assert push(image, "app:new") == put.digest
    assert shelf.manifests["app"]["new"] == (DOCKER + "distribution.manifest.v2+json", put.manifest)
    assert push(image, "elsewhere:1", compression="zstd") == put.digest
    assert shelf.manifests["elsewhere"]["1"][1] == put.manifest


def test_where_the_config_is_missing_it_is_sent(shelf, images, connect, push):
    put, image = pulled(shelf, images, connect)
    shelf.blobs["new"] = {digest: shelf.blobs["app"][digest] for digest in put.digests}
    assert push(image, "new:1") == put.digest
    assert shelf.blobs["new"][image.id] == put.config


def test_a_mount_that_is_no_201_makes_a_manifest_of_ours(shelf, images, connect, push):
    put, image = pulled(shelf, images, connect, packed="zstd", docker_types=True)
    shelf.mounts = False
    assert push(image, "new:1") != put.digest
    assert manifest(shelf, "new")["mediaType"] == OCI + "manifest.v1+json"
    assert {each["mediaType"] for each in manifest(shelf, "new")["layers"]} == {OCI + "layer.v1.tar+gzip"}


def test_forced_it_is_compressed_anew(shelf, images, connect, push):
    put, image = pulled(shelf, images, connect, packed="zstd")
    digest = push(image, "app:new", force_compression=True)
    assert digest != put.digest
    assert {each["mediaType"] for each in manifest(shelf, tag="new")["layers"]} == {OCI + "layer.v1.tar+gzip"}


def test_known_blobs_are_used_whatever_compressed_them(shelf, images, connect, push):
    """Layers of a zstd image that was pulled, in an image of ours with one layer more."""
    put = shelf.put([BASE, MIDDLE], packed="zstd", docker_types=True)
    images.pull(put.reference, registry=connect())
    [image] = images.load(imagekit.tar_of(imagekit.docker([(LAYERS, [])])))
    push(image, "app:mixed")
    entries = manifest(shelf, tag="mixed")["layers"]
    assert [each["mediaType"] for each in entries] == [OCI + "layer.v1.tar+zstd"] * 2 + [OCI + "layer.v1.tar+gzip"]
    assert [each["digest"] for each in entries[:2]] == put.digests
    assert len(shelf.asked("PATCH")) == 1


def test_subjects(shelf, images, connect, push):
    for number, tells in enumerate((True, False)):
        base = shelf.put([BASE], name=f"s{number}", tag="base")
        subject = {"mediaType": OCI + "manifest.v1+json", "digest": base.digest, "size": len(base.manifest)}
        put = shelf.put([BASE, TOP], name=f"s{number}", edit=lambda document, subject=subject: document.update(subject=subject))
        image = images.pull(put.reference, registry=connect())
        shelf.tells_subject = tells
        shelf.requests.clear()
        tag = base.digest.replace(":", "-")
        assert push(image, f"s{number}:2") == put.digest
        found = shelf.manifests[f"s{number}"].get(tag)
        assert (found is None) == tells
        if found:
            [entry] = json.loads(found[1])["manifests"]
            assert (entry["digest"], entry["size"], entry["mediaType"]) == (put.digest, len(put.manifest), OCI + "manifest.v1+json")
            assert found[0] == OCI + "index.v1+json"
            push(image, f"s{number}:3")
            assert len(json.loads(shelf.manifests[f"s{number}"][tag][1])["manifests"]) == 1, "it is there already"


# ---- arguments ----
def test_without_a_reference_the_name_counts(shelf, images, connect, image):
    name = f"{shelf.host}/app:named"
    with pytest.raises(ImageError):
        images.push(image.id, registry=connect())
    images.tag(image.id, name)
    images.push(name, registry=connect())
    images.push(images.get(image.id), registry=connect())
    assert "named" in shelf.manifests["app"]
    images.tag(image.id, f"{shelf.host}/app:second")
    shelf.requests.clear()
    with pytest.raises(ImageError):
        images.push(images.get(image.id), registry=connect())
    images.push(f"{shelf.host}/app:second", registry=connect())
    assert "second" in shelf.manifests["app"]


@pytest.mark.parametrize("compression", ["xz", "", "GZIP", 5, b"gzip", "plain"], ids=repr)
def test_another_compression(shelf, push, image, compression):
    with pytest.raises((ImageError, TypeError)):
        push(image, compression=compression)
    assert shelf.requests == []


def test_a_damaged_layer_ends_it(shelf, push, image, store, diff_of):
    (diff_of(store.map()[image.layers[-1]]) / "app/main").write_bytes(b"y" * 3000)
    with pytest.raises(CorruptLayerError):
        push(image, retries=2)
    assert shelf.manifests == {} and shelf.uploads == {}


def test_a_layer_that_is_held_cannot_go_meanwhile(shelf, push, image, images):
    def remove(request):
        images.remove(image.id, force=True)

    shelf.on("PATCH", ".*", remove)
    try:
        push(image)
    except layerstore.LayerStoreError as error:
        assert not isinstance(error, CorruptLayerError)
    else:
        assert len(manifest(shelf)["layers"]) == 3


# ---- what is known afterwards ----
def test_the_digest_is_a_name_and_no_tag_is_made(shelf, push, image, images, root):
    digest = push(image)
    found = images.get(image.id)
    assert (found.references, found.digests) == ((), (f"{shelf.host}/app@{digest}",))
    document = json.loads((root / "image/overlay2/repositories.json").read_text())
    assert document["Repositories"] == {f"{shelf.host}/app": {f"{shelf.host}/app@{digest}": image.id}}


def test_dockers_notes(shelf, push, image, root):
    push(image)
    notes = root / "image/overlay2/distribution"
    for tar, entry in zip(LAYERS, manifest(shelf)["layers"], strict=True):
        diff_id = tarkit.diff_id(tar)
        assert (notes / "diffid-by-digest/sha256" / entry["digest"].partition(":")[2]).read_text() == diff_id
        [noted] = json.loads((notes / "v2metadata-by-diffid/sha256" / diff_id.partition(":")[2]).read_text())
        assert noted == {"Digest": entry["digest"], "SourceRepository": f"{shelf.host}/app", "HMAC": "", "MediaType": entry["mediaType"], "Size": entry["size"]}


def test_concurrent_pushes_of_one_layer_wait(shelf, push, image, connect):
    registry = connect()
    found = at_once(*[lambda: push(image, registry=registry)] * 4)
    assert len(set(found)) == 1
    assert len(shelf.asked("PATCH")) == 3


def test_progress(shelf, push, images):
    noise = tarkit.file("noise", random.Random(3).randbytes(3_000_000)) + tarkit.end()
    [image] = images.load(imagekit.tar_of(imagekit.docker([([BASE, noise], [])])))
    done = []
    push(image, progress=done.append)
    assert done == sorted(done) and {each.total for each in done} == {len(BASE) + len(noise)} and done[-1] == done[-1].total
    done.clear()
    push(image, progress=done.append)
    assert [(int(each), each.total) for each in done] == [(0, 0)]


def test_to_two_registries(shelf, serve, push, image, images, connect):
    """What one has is nothing that the other could mount."""
    push(image)
    other = serve(Shelf())
    with layerstore.Registry(other.url, retries=0, timeout=5) as registry:
        images.push(image, f"{other.host}/app:1", registry=registry)
    assert other.manifests["app"]["1"] == shelf.manifests["app"]["1"]
    assert not [request for request in other.asked("POST") if request.field("mount")]
