"""What is known of blobs: docker's notes, ours and dockerd's, right, wrong and hostile; and what a pull may note."""

import json

import imagekit
import pytest
import tarkit
from imagekit import BASE, MIDDLE, OCI, TOP
from scripted import Answer

LAYERS = [BASE, MIDDLE, TOP]


@pytest.fixture
def image(images):
    [loaded] = images.load(imagekit.tar_of(imagekit.docker([(LAYERS, [])])))
    return loaded


@pytest.fixture
def notes(root):
    return root / "image/overlay2/distribution"


@pytest.fixture
def note(notes, shelf):
    """Write notes of a layer's blobs as dockerd has them: (blob, repository) each, or entries."""

    def written(tar, *entries):
        path = notes / "v2metadata-by-diffid/sha256" / tarkit.diff_id(tar).partition(":")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        documents = [{"Digest": imagekit.digest(entry[0]), "SourceRepository": f"{shelf.host}/{entry[1]}", "HMAC": "x" * 64} if isinstance(entry, tuple) else entry for entry in entries]
        path.write_bytes(imagekit.encode(documents))
        return path

    return written


@pytest.fixture
def push(images, connect, shelf):
    return lambda image, name="app:1", *, registry=None, **more: images.push(image, f"{shelf.host}/{name}", registry=registry or connect(), **more)


def kinds(shelf, name="app", tag="1"):
    return [each["mediaType"].removeprefix(OCI + "layer.v1.") for each in json.loads(shelf.manifests[name][tag][1])["layers"]]


# ---- dockerd's entries, without type and size ----
def test_the_first_four_bytes_tell_what_a_blob_is(shelf, push, image, note):
    for tar, packed in zip(LAYERS, ("gzip", "zstd", "plain"), strict=True):
        blob = imagekit.PACKERS[packed][0](tar)
        shelf.add_blob(blob)
        note(tar, (blob, "app"))
    push(image)
    assert kinds(shelf) == ["tar+gzip", "tar+zstd", "tar"]
    assert shelf.asked("PATCH") == []
    asked = [request.header("Range") for request in shelf.asked("GET", ".*/blobs/sha256:.*")]
    assert set(asked) == {"bytes=0-3"}
    sizes = [each["size"] for each in json.loads(shelf.manifests["app"]["1"][1])["layers"]]
    assert sizes == [len(imagekit.PACKERS[packed][0](tar)) for tar, packed in zip(LAYERS, ("gzip", "zstd", "plain"), strict=True)]


def test_they_are_mounted_and_then_looked_at(shelf, push, image, note):
    for tar in LAYERS:
        blob = imagekit.PACKERS["zstd"][0](tar)
        shelf.add_blob(blob, "elsewhere")
        note(tar, (blob, "elsewhere"))
    push(image)
    assert kinds(shelf) == ["tar+zstd"] * 3 and shelf.asked("PATCH") == []


def test_a_registry_that_knows_no_ranges(shelf, push, image, note):
    for tar in LAYERS:
        blob = imagekit.PACKERS["gzip"][0](tar)
        shelf.add_blob(blob)
        note(tar, (blob, "app"))
        shelf.always("GET", f"/v2/app/blobs/{imagekit.digest(blob)}", Answer(200, {}, blob))
    push(image)
    assert kinds(shelf) == ["tar+gzip"] * 3


def test_a_range_that_cannot_be_had_is_no_guess(shelf, push, image, note):
    """What a blob is cannot be told: the layer is sent."""
    for tar in LAYERS:
        blob = imagekit.PACKERS["zstd"][0](tar)
        shelf.add_blob(blob)
        note(tar, (blob, "app"))
        shelf.always("GET", f"/v2/app/blobs/{imagekit.digest(blob)}", Answer(404))
    push(image)
    assert kinds(shelf) == ["tar+gzip"] * 3


def test_the_newest_counts(shelf, push, image, note):
    for tar in LAYERS:
        blobs = [imagekit.PACKERS[packed][0](tar) for packed in ("gzip", "plain", "zstd")]
        for blob in blobs:
            shelf.add_blob(blob)
        note(tar, *[(blob, "app") for blob in blobs])
    push(image)
    assert kinds(shelf) == ["tar+zstd"] * 3


def test_one_that_is_gone_is_followed_by_the_next(shelf, push, image, note):
    for tar in LAYERS:
        old, new = (imagekit.PACKERS[packed][0](tar) for packed in ("zstd", "plain"))
        shelf.add_blob(old)
        note(tar, (old, "app"), (new, "app"))
    push(image)
    assert kinds(shelf) == ["tar+zstd"] * 3 and shelf.asked("PATCH") == []


def test_at_most_five_are_asked_for(shelf, push, images, note):
    [image] = images.load(imagekit.tar_of(imagekit.docker([([TOP], [])])))
    note(TOP, *[(b"here %d" % n, "app") for n in range(25)], *[(b"there %d" % n, f"other{n}") for n in range(25)])
    push(image)
    heads = [request for request in shelf.asked("HEAD", ".*/blobs/.*") if not request.path.endswith(image.id)]
    assert len(heads) <= 10
    assert len([request for request in shelf.asked("POST") if request.field("mount")]) <= 5


def test_other_registries_entries_are_never_mounted(shelf, push, image, note):
    for tar in LAYERS:
        note(tar, {"Digest": imagekit.digest(tar), "SourceRepository": "registry.example.com/app", "HMAC": ""}, {"Digest": imagekit.digest(tar), "SourceRepository": "docker.io/library/app", "HMAC": ""})
    push(image)
    assert not [request for request in shelf.asked("POST") if request.field("mount")]


def test_forced_only_those_of_the_asked_type(shelf, push, image, note):
    blobs = {}
    for tar in LAYERS:
        blobs[tar] = [imagekit.PACKERS[packed][0](tar) for packed in ("gzip", "zstd")]
        for blob in blobs[tar]:
            shelf.add_blob(blob)
        note(tar, *[{"Digest": imagekit.digest(blob), "SourceRepository": f"{shelf.host}/app", "HMAC": "", "MediaType": OCI + "layer.v1.tar+" + packed, "Size": len(blob)} for blob, packed in zip(blobs[tar], ("gzip", "zstd"), strict=True)])
    push(image, compression="gzip", force_compression=True)
    assert kinds(shelf) == ["tar+gzip"] * 3 and shelf.asked("PATCH") == []
    assert [each["digest"] for each in json.loads(shelf.manifests["app"]["1"][1])["layers"]] == [imagekit.digest(blobs[tar][0]) for tar in LAYERS]


HOSTILE = [
    b"", b"{", b"null", b"5", b"[5]", b"[null]", b"[[]]", b"[{}]", b'{"Digest":5}', b'[{"Digest":5,"SourceRepository":"HOST/app"}]', b'[{"Digest":"sha256:x","SourceRepository":"HOST/app"}]',
    b'[{"Digest":"sha256:AAAA/../../x","SourceRepository":"HOST/app"}]', b'[{"Digest":"DIGEST","SourceRepository":5}]', b'[{"Digest":"DIGEST","SourceRepository":"HOST/../x"}]', b'[{"Digest":"DIGEST","SourceRepository":"HOST/a b"}]',
    b'[{"Digest":"DIGEST","SourceRepository":"HOST/app\\r\\nX: y"}]', b'[{"Digest":"DIGEST","SourceRepository":""}]', b'[{"Digest":"DIGEST","SourceRepository":"HOST/UPPER"}]', b"[" * 60_000, b"\xff\xfe",
    b'[{"Digest":"DIGEST","SourceRepository":"HOST/app","Size":-5,"MediaType":"x"}]', b'[{"Digest":"DIGEST","SourceRepository":"HOST/app","Size":"5","MediaType":7}]', b'[{"Digest":"\\ud800","SourceRepository":"\\ud800"}]',
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:40]))
def test_notes_that_are_malformed_are_passed_over(shelf, push, images, note, text):
    [image] = images.load(imagekit.tar_of(imagekit.docker([([TOP], [])])))
    path = note(TOP)
    path.write_bytes(text.replace(b"HOST", shelf.host.encode()).replace(b"DIGEST", imagekit.digest(b"elsewhere").encode()))
    push(image)
    assert kinds(shelf) == ["tar+gzip"]
    [entry] = [each for each in json.loads(path.read_bytes()) if isinstance(each, dict) and each.get("MediaType") == OCI + "layer.v1.tar+gzip"]
    assert entry["SourceRepository"] == f"{shelf.host}/app"


def test_a_note_of_another_layers_blob(shelf, push, images, note):
    """Its writer lied: what it names is another layer. It is believed, as docker does, only where nothing tells otherwise."""
    [image] = images.load(imagekit.tar_of(imagekit.docker([([TOP], [])])))
    blob = imagekit.PACKERS["gzip"][0](TOP)
    shelf.add_blob(blob)
    note(TOP, (blob, "app"), {"Digest": imagekit.digest(b"gone"), "SourceRepository": f"{shelf.host}/app", "HMAC": "", "MediaType": OCI + "layer.v1.tar+gzip", "Size": 4})
    push(image)
    assert json.loads(shelf.manifests["app"]["1"][1])["layers"][0]["digest"] == imagekit.digest(blob)


def test_at_most_fifty_are_kept(shelf, push, images, note):
    [image] = images.load(imagekit.tar_of(imagekit.docker([([TOP], [])])))
    path = note(TOP, *[(b"old %d" % n, "app") for n in range(60)])
    push(image)
    found = json.loads(path.read_bytes())
    assert len(found) <= 50 and found[-1]["SourceRepository"] == f"{shelf.host}/app" and found[-1]["Size"]


def test_diffid_by_digest_that_lies_is_found_by_the_digest(shelf, pull, check, notes):
    """A pull takes what a note says is here only if that layer is what the config says."""
    put = shelf.put([BASE, TOP])
    other = shelf.put([MIDDLE], tag="other")
    pull(other.reference)
    for digest in put.digests:
        path = notes / "diffid-by-digest/sha256" / digest.partition(":")[2]
        path.write_text(tarkit.diff_id(MIDDLE))
    check(pull(put.reference), put)


# ---- what a pull notes ----
def test_a_pair_that_was_not_checked_is_not_noted(shelf, pull, store, check, notes, root):
    with store.register(BASE):
        put = shelf.put([BASE, TOP])
        check(pull(put.reference), put)
    noted = {path.name for path in (notes / "diffid-by-digest/sha256").iterdir()}
    assert noted == {put.digests[1].partition(":")[2]}
    assert not (root / "image/overlay2/imagedb/metadata/sha256" / put.id.partition(":")[2] / "manifest").exists()


def test_a_pair_that_was_checked_before_is_noted(shelf, pull, check, root):
    one = shelf.put([BASE], name="one")
    pull(one.reference)
    two = shelf.put([BASE, TOP], name="two")
    check(pull(two.reference), two)
    assert (root / "image/overlay2/imagedb/metadata/sha256" / two.id.partition(":")[2] / "manifest").read_bytes() == two.manifest


def test_a_kept_manifest_that_was_changed_is_not_sent(shelf, pull, push, root):
    put = shelf.put([BASE, TOP])
    image = pull(put.reference)
    path = root / "image/overlay2/imagedb/metadata/sha256" / put.id.partition(":")[2] / "manifest"
    for text in (b"{}", b"", put.manifest.replace(b'"size":', b'"size":1'), shelf.put([MIDDLE], tag="x").manifest, b"[" * 50_000, b"\xff"):
        path.write_bytes(text)
        digest = push(image, "app:again")
        document = json.loads(shelf.manifests["app"]["again"][1])
        assert document["config"]["digest"] == put.id and len(document["layers"]) == 2
        assert imagekit.digest(shelf.manifests["app"]["again"][1]) == digest
        for entry in document["layers"]:
            assert entry["size"] == len(shelf.blobs["app"][entry["digest"]])


def test_a_blob_that_is_gone_from_the_registry_is_sent(shelf, pull, push):
    put = shelf.put([BASE, TOP])
    image = pull(put.reference)
    del shelf.blobs["app"][put.digests[1]]
    push(image, "app:again")
    entries = json.loads(shelf.manifests["app"]["again"][1])["layers"]
    assert entries[0]["digest"] == put.digests[0] and all(entry["digest"] in shelf.blobs["app"] for entry in entries)
