"""Pull: what comes is what the registry has, asked for once, and named as docker names it."""

import json

import imagekit
import pytest
import tarkit
from guards import Gate
from imagekit import BASE, MIDDLE, TOP
from scripted import Answer
from shelf import KINDS
from stored import at_once, tar_of

import layerstore
from layerstore import ImageError, Images, NotInRegistryError, Registry, Store

LAYERS = [BASE, MIDDLE, TOP]


# ---- what comes ----
@pytest.mark.parametrize("docker_types", [False, True], ids=["oci", "docker"])
@pytest.mark.parametrize("packed", ["gzip", "zstd", "plain"])
def test_every_compression_gives_the_image(shelf, pull, check, packed, docker_types):
    put = shelf.put(LAYERS, packed=packed, docker_types=docker_types)
    image = pull(put.reference)
    check(image, put, [put.reference])
    assert set(image.digests) == {put.by_digest}


@pytest.mark.parametrize("told", ["gzip", "zstd", "plain"])
@pytest.mark.parametrize("packed", ["gzip", "zstd", "plain"])
def test_the_bytes_tell_the_compression_and_not_the_media_type(shelf, pull, check, packed, told):
    blobs = [imagekit.PACKERS[packed][0](layer) for layer in LAYERS]
    put = shelf.put(LAYERS, packed=told, blobs=blobs)
    check(pull(put.reference), put)


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_blobs_named_by_other_algorithms(shelf, pull, check, algorithm):
    put = shelf.put(LAYERS, algorithm=algorithm)
    check(pull(put.reference), put)
    image = pull(put.by_digest)
    assert put.by_digest in image.digests


def test_no_layers(shelf, pull, check):
    put = shelf.put([])
    check(pull(put.reference), put, [put.reference])


def test_a_layer_that_is_there_twice_is_fetched_once(shelf, pull, check):
    put = shelf.put([BASE, TOP, BASE, TOP])
    check(pull(put.reference), put)
    assert len(shelf.asked("GET", put.blob_path(0))) == len(shelf.asked("GET", put.blob_path(1))) == 1


def test_what_is_asked_and_nothing_else(shelf, pull):
    put = shelf.put(LAYERS)
    pull(put.reference)
    first, *rest = shelf.paths()
    assert first == "GET /v2/app/manifests/1"
    assert sorted(rest) == sorted(f"GET /v2/app/blobs/{digest}" for digest in [imagekit.digest(put.config), *put.digests])
    accepted = [kind.strip() for name, value in shelf.requests[0].headers if name.lower() == "accept" for kind in value.split(",")]
    assert set(accepted) >= set(KINDS)
    assert all(not request.header("Authorization") and not request.header("Range") and not request.query for request in shelf.requests)


def test_the_manifest_comes_in_chunks_or_without_a_length(shelf, pull, check):
    put = shelf.put(LAYERS)
    for more in ({"chunked": True, "length": None}, {"length": None}):
        shelf.on("GET", "/v2/app/manifests/1", Answer(200, {"Content-Type": KINDS[1]}, put.manifest, **more))
        for blob, digest in zip(put.blobs, put.digests, strict=True):
            shelf.on("GET", f"/v2/app/blobs/{digest}", Answer(200, {}, blob, **more))
        check(pull(put.reference), put)


def test_connections_are_used_again_and_bounded(shelf, pull, check):
    put = shelf.put([tarkit.file(f"f{n}", b"%d" % n) + tarkit.end() for n in range(40)])
    check(pull(put.reference, connections=3), put)
    assert shelf.connections <= 4
    assert shelf.most_bodies <= 4          # the config is a blob beside them


@pytest.mark.parametrize("connections", [1, 2, 4])
def test_so_many_layers_come_side_by_side(shelf, pull, check, connections):
    put = shelf.put([tarkit.file(f"f{n}", b"%d" % n) + tarkit.end() for n in range(connections)])
    gate = Gate(connections)
    for digest in put.digests:
        shelf.on("GET", f"/v2/app/blobs/{digest}", gate)
    check(pull(put.reference, connections=connections), put)
    assert gate.passed


def test_layers_begin_base_first(shelf, pull, check):
    put = shelf.put([tarkit.file(f"f{n}", b"%d" % n) + tarkit.end() for n in range(9)])
    check(pull(put.reference, connections=1), put)
    asked = [request.path for request in shelf.asked("GET", "/v2/app/blobs/.*")]
    assert [path for path in asked if path.rpartition("/")[2] in put.digests] == [put.blob_path(n) for n in range(9)]


# ---- names ----
def test_by_digest_there_is_no_tag(shelf, pull, check):
    put = shelf.put(LAYERS)
    image = pull(put.by_digest)
    check(image, put, [])
    assert set(image.digests) == {put.by_digest}
    assert shelf.paths()[0] == f"GET /v2/app/manifests/{put.digest}"


def test_tag_and_digest_is_by_digest(shelf, pull, check):
    put = shelf.put(LAYERS)
    image = pull(f"{put.reference}@{put.digest}")
    check(image, put, [])
    assert not shelf.asked("", "/v2/app/manifests/1")


def test_without_a_tag_it_is_latest(shelf, pull):
    put = shelf.put(LAYERS, tag="latest")
    image = pull(f"{shelf.host}/app")
    assert image.references == (f"{shelf.host}/app:latest",)
    assert image.id == put.id


def test_the_tag_moves_and_digests_are_added(shelf, pull, images):
    one = shelf.put([BASE])
    pull(one.reference)
    two = shelf.put(LAYERS)
    image = pull(two.reference)
    assert (image.references, image.digests) == ((two.reference,), (two.by_digest,))
    before = images.get(one.id)
    assert (before.references, before.digests) == ((), (one.by_digest,))


def test_an_index_is_named_by_the_index(shelf, pull, check):
    put = shelf.put(LAYERS, tag="")
    digest = shelf.put_index([(put, {"platform": {"os": "linux", "architecture": "amd64"}})])
    image = pull(f"{shelf.host}/app:all", platform="linux/amd64")
    check(image, put, [f"{shelf.host}/app:all"])
    assert image.digests == (f"{shelf.host}/app@{digest}",)
    assert f"GET /v2/app/manifests/{put.digest}" in shelf.paths()


# ---- what is there already ----
def test_all_there_is_one_request(shelf, pull, check):
    put = shelf.put(LAYERS)
    pull(put.reference)
    shelf.requests.clear()
    check(pull(put.reference), put, [put.reference])
    assert shelf.paths() == ["GET /v2/app/manifests/1"]


def test_all_there_and_another_name_is_recorded(shelf, pull, check):
    put = shelf.put(LAYERS)
    pull(put.reference)
    again = shelf.put(LAYERS, tag="2")
    shelf.requests.clear()
    check(pull(again.reference), put, [put.reference, again.reference])
    assert shelf.paths() == ["GET /v2/app/manifests/2"]


def test_a_layer_that_is_stored_is_not_fetched(shelf, store, pull, check):
    with store.register(BASE):
        put = shelf.put(LAYERS)
        check(pull(put.reference), put)
    assert shelf.asked("GET", put.blob_path(0)) == []
    assert len(shelf.asked("GET", put.blob_path(1))) == 1


def test_what_the_first_image_has_the_second_does_not_fetch(shelf, pull, check):
    one = shelf.put([BASE, MIDDLE], name="one")
    pull(one.reference)
    two = shelf.put(LAYERS, name="two")
    shelf.requests.clear()
    check(pull(two.reference), two)
    assert sorted(shelf.paths()) == sorted(["GET /v2/two/manifests/1", f"GET /v2/two/blobs/{imagekit.digest(two.config)}", f"GET {two.blob_path(2, 'two')}"])


def test_a_layer_on_another_parent_is_copied_from_there(shelf, pull, check):
    one = shelf.put([BASE, TOP], name="one")
    pull(one.reference)
    two = shelf.put([MIDDLE, TOP], name="two")
    shelf.requests.clear()
    check(pull(two.reference), two)
    assert two.blob_path(1, "two") not in [request.path for request in shelf.requests]


def test_what_is_damaged_on_another_parent_is_fetched(shelf, store, pull, images, diff_of):
    one = shelf.put([BASE, TOP], name="one")
    pull(one.reference)
    (diff_of(store.map()[one.chains[1]]) / "app/main").write_bytes(b"y" * 3000)
    two = shelf.put([MIDDLE, TOP], name="two")
    image = pull(two.reference)
    assert tar_of(store.map()[image.layers[1]]) == TOP
    assert two.blob_path(1, "two") in [request.path for request in shelf.requests]


# ---- what is kept of it ----
def test_each_layer_has_its_descriptor(shelf, store, pull):
    def edit(document):
        document["layers"][1] |= {"annotations": {"a": "b"}, "urls": ["http://other.example.com/x"]}

    put = shelf.put(LAYERS, edit=edit)
    image = pull(put.reference)
    for number, chain in enumerate(image.layers):
        found = store.map()[chain].descriptor
        entry = json.loads(put.manifest)["layers"][number]
        assert (found.media_type, found.digest, found.size, tuple(found.urls)) == (entry["mediaType"], entry["digest"], entry["size"], ())
    assert dict(store.map()[image.layers[1]].descriptor.annotations) == {"a": "b"}


def test_the_manifest_is_kept_byte_for_byte(shelf, pull, root):
    put = shelf.put(LAYERS, tag="")
    shelf.put_index([(put, {"platform": {"os": "linux", "architecture": "amd64"}})])
    pull(f"{shelf.host}/app:all", platform="linux/amd64")
    kept = root / "image/overlay2/imagedb/metadata/sha256" / put.id.partition(":")[2] / "manifest"
    assert kept.read_bytes() == put.manifest


def test_dockers_notes_of_where_blobs_are(shelf, pull, root):
    put = shelf.put(LAYERS)
    pull(put.reference)
    notes = root / "image/overlay2/distribution"
    for tar, digest in zip(LAYERS, put.digests, strict=True):
        diff_id = tarkit.diff_id(tar)
        assert (notes / "diffid-by-digest/sha256" / digest.partition(":")[2]).read_text() == diff_id
        [entry] = json.loads((notes / "v2metadata-by-diffid/sha256" / diff_id.partition(":")[2]).read_text())
        assert (entry["Digest"], entry["SourceRepository"], entry["HMAC"]) == (digest, f"{shelf.host}/app", "")


def test_repositories_has_what_docker_has(shelf, pull, root):
    put = shelf.put(LAYERS)
    pull(put.reference)
    document = json.loads((root / "image/overlay2/repositories.json").read_text())
    assert document["Repositories"] == {f"{shelf.host}/app": {put.reference: put.id, put.by_digest: put.id}}


def test_no_blob_and_no_tar_lies_in_any_file(shelf, pull, root):
    big = tarkit.file("big", bytes(range(256)) * 4000) + tarkit.end()
    put = shelf.put([big], packed="plain")
    seen = []

    def look(request):
        seen.append([path for path in root.rglob("*") if path.is_file() and path.stat().st_size in (len(put.blobs[0]), len(big))])

    half = len(put.blobs[0]) // 2
    shelf.on("GET", put.blob_path(0), lambda request: Answer(200, {}, [put.blobs[0][:half], 0.1, put.blobs[0][half:]], len(put.blobs[0])))
    shelf.on("GET", f"/v2/app/blobs/{imagekit.digest(put.config)}", look)
    pull(put.reference)
    look(None)
    assert seen and not any(seen)


# ---- who pulls ----
def test_without_a_registry_one_is_made(shelf, images, check):
    put = shelf.put(LAYERS)
    check(images.pull(put.reference), put, [put.reference])
    assert shelf.is_quiet()


def test_threads_pull_one_image(shelf, images, connect, check):
    put = shelf.put(LAYERS)
    registry = connect()
    found = at_once(*[lambda: images.pull(put.reference, registry=registry)] * 6)
    for image in found:
        check(image, put, [put.reference])


def test_threads_with_stores_of_their_own_on_one_root(shelf, root, connect, store, check):
    put = shelf.put(LAYERS)
    registry = connect()

    def one():
        with Store(root) as mine:
            return Images(mine).pull(put.reference, registry=registry)

    for image in at_once(*[one] * 4):
        check(image, put, [put.reference])


def test_durability_is_taken_and_checked(shelf, images, connect, check):
    put = shelf.put(LAYERS)
    with pytest.raises((ValueError, layerstore.LayerStoreError)):
        images.pull(put.reference, registry=connect(), durability="sometimes")
    check(images.pull(put.reference, registry=connect(), durability="none"), put)


def test_a_registry_of_another_host_is_refused(shelf, images):
    put = shelf.put(LAYERS)
    with Registry("localhost:1") as other, pytest.raises(ImageError):
        images.pull(put.reference, registry=other)
    assert shelf.requests == []


def test_what_is_not_there(shelf, pull, unstored):
    shelf.put(LAYERS)
    for name in ("app:2", "none:1", "app@" + imagekit.digest(b"none")):
        with unstored(NotInRegistryError) as caught:
            pull(f"{shelf.host}/{name}")
        assert (caught.value.status, caught.value.code, caught.value.host) == (404, "MANIFEST_UNKNOWN", shelf.host)
        assert "manifest unknown" in str(caught.value)
        if "@" in name:
            assert name.partition("@")[2] in str(caught.value)


def test_a_blob_that_is_not_there(shelf, pull, unstored):
    put = shelf.put(LAYERS)
    del shelf.blobs["app"][put.digests[1]]
    with unstored(NotInRegistryError) as caught:
        pull(put.reference)
    assert (caught.value.status, caught.value.code) == (404, "BLOB_UNKNOWN")
    assert put.digests[1] in str(caught.value)
