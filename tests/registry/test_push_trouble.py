"""Uploads that are cut, refused, forgotten and lied about: begun anew or gone on with, and the manifest only when all is there."""

import contextlib
import json
import random
import threading

import imagekit
import pytest
import tarkit
from guards import BasicGuard
from imagekit import BASE, TOP
from scripted import CUT, HANG_UP, RESET, Answer
from shelf import Shelf, error

from layerstore import AuthenticationError, ImageError, Registry, RegistryError

NOISE = tarkit.file("noise", random.Random(3).randbytes(1_000_000)) + tarkit.end()
UPLOAD = "/v2/app/blobs/uploads/.+"


@pytest.fixture
def image(images):
    [loaded] = images.load(imagekit.tar_of(imagekit.docker([([NOISE], [])])))
    return loaded


@pytest.fixture
def push(images, connect, shelf):
    return lambda image, name="app:1", **options: images.push(image, f"{shelf.host}/{name}", registry=connect(**options))


@pytest.fixture
def unpushed(shelf, images):
    """`with unpushed(Error):` it raises, no manifest is there, no session is left open, nothing is recorded."""
    @contextlib.contextmanager
    def watched(kind=RegistryError, match=None):
        names, sessions = json.dumps([[*image.references, *image.digests] for image in images.list()]), set(shelf.uploads)
        with pytest.raises(kind, match=match) as caught:
            yield caught
        assert shelf.manifests.get("app", {}) == {}
        assert set(shelf.uploads) == sessions
        assert json.dumps([[*image.references, *image.digests] for image in images.list()]) == names

    return watched


def there(shelf, image):
    document = json.loads(shelf.manifests["app"]["1"][1])
    assert {image.id, *[each["digest"] for each in document["layers"]]} <= set(shelf.blobs["app"])
    return document["layers"]


# ---- whole layers ----
def cuts(at, end=CUT):
    def action(request):
        request.take(at)
        return Answer(raw=[end])

    return action


BEGUN_ANEW = {f"{status}": lambda request, status=status: (request.body, Answer(status))[1] for status in (408, 429, 500, 502, 503, 504, 404, 416)}
BEGUN_ANEW |= {f"{end} at {at}": cuts(at, end) for end in (CUT, RESET) for at in (1, 60_000, 700_000)}
BEGUN_ANEW |= {"the PUT is lost": lambda request: HANG_UP, "the PUT's answer is lost": lambda request: (request.server.respond(request), HANG_UP)[1]}


def test_a_layer_is_made_again(serve, images, image, each):
    """Behind a PATCH that was cut or refused, a PUT that was lost; side by side, as each waits half a second."""
    shelves = {name: serve(Shelf()) for name in BEGUN_ANEW}

    def one(name):
        shelf = shelves[name]
        shelf.on("PUT" if "PUT" in name else "PATCH", UPLOAD, BEGUN_ANEW[name])
        with Registry(shelf.url, retries=1, timeout=10) as registry:
            images.push(image, f"{shelf.host}/app:1", registry=registry, force_compression=True)
        [entry] = there(shelf, image)
        assert imagekit.digest(shelf.blobs["app"][entry["digest"]]) == entry["digest"]
        assert shelf.uploads == {}, "a session is left open"

    each({name: name for name in BEGUN_ANEW}, one)


def test_refused_before_the_body_is_read(shelf, push, image, within):
    """An answer while the body is still on its way: 413, and the connection closed."""
    shelf.on("PATCH", UPLOAD, Answer(503))
    with within(8):
        push(image, retries=1)
    there(shelf, image)


@pytest.mark.parametrize("status", [400, 405, 409, 418, 501])
def test_other_statuses_are_final(shelf, push, image, unpushed, status):
    shelf.always("PATCH", UPLOAD, lambda request: (request.body, error(status, "UNSUPPORTED", "no"))[1])
    with unpushed() as caught:
        push(image, retries=3)
    assert (caught.value.status, caught.value.code) == (status, "UNSUPPORTED")
    assert len(shelf.asked("PATCH")) == 1


def test_403_is_an_authentication_error(shelf, push, image, unpushed):
    for method, pattern in (("POST", ".*/uploads/"), ("PATCH", UPLOAD), ("PUT", UPLOAD)):
        shelf.forget()
        shelf.always(method, pattern, lambda request: (request.body, error(403, "DENIED", "no"))[1])
        with unpushed(AuthenticationError):
            push(image, retries=2)
        assert len(shelf.asked(method, pattern)) == 1


def test_a_post_is_tried_again_afresh(shelf, push, image):
    shelf.on("POST", ".*", Answer(503), HANG_UP)
    push(image, retries=2)
    there(shelf, image)


@pytest.mark.parametrize("status", [404, 400, 500])
def test_a_post_that_is_refused(shelf, push, image, unpushed, status):
    shelf.always("POST", ".*", error(status, "NAME_UNKNOWN", "no such repository"))
    with unpushed() as caught:
        push(image, retries=0)
    assert type(caught.value) is RegistryError and caught.value.status == status


def test_it_ends_after_retries(shelf, push, image, unpushed, within):
    shelf.always("PATCH", UPLOAD, cuts(50_000))
    with within(8), unpushed():
        push(image, retries=2)
    assert len(shelf.asked("PATCH")) == 3


def test_a_patch_that_nobody_reads_is_a_timeout(shelf, push, image, unpushed, within):
    over = threading.Event()
    shelf.always("PATCH", UPLOAD, lambda request: (over.wait(20), request.body, HANG_UP)[2])
    with within(10), unpushed():
        push(image, retries=1, timeout=0.8)
    over.set()


def test_digest_invalid_is_final(shelf, push, image, unpushed):
    shelf.always("PUT", UPLOAD, error(400, "DIGEST_INVALID", "provided digest did not match uploaded content"))
    with unpushed() as caught:
        push(image, retries=3)
    assert caught.value.code == "DIGEST_INVALID" and len(shelf.asked("PUT", UPLOAD)) == 1


def test_a_content_digest_that_is_another(shelf, push, image, unpushed):
    def lies(request):
        answer = shelf.respond(request)
        answer.headers = dict(answer.headers) | {"Docker-Content-Digest": imagekit.digest(b"other")}
        return answer

    shelf.on("PUT", UPLOAD, lies)
    with pytest.raises((RegistryError, ImageError)):
        push(image)
    assert shelf.manifests == {}
    shelf.forget()
    shelf.blobs.clear()
    shelf.on("PUT", ".*/manifests/.*", lies)
    with pytest.raises((RegistryError, ImageError)):
        push(image)


@pytest.mark.parametrize("told", [imagekit.digest(b"other", "sha512"), "nonsense", ""])
def test_another_algorithms_content_digest_is_passed_over(shelf, push, image, told):
    def says(request):
        answer = shelf.respond(request)
        answer.headers = dict(answer.headers) | {"Docker-Content-Digest": told}
        return answer

    shelf.always("PUT", ".*", says)
    push(image)
    there(shelf, image)


# ---- locations ----
BAD = ["", "file:///x", "ftp://127.0.0.1/x", "http://169.254.169.254/x", "http://u:p@127.0.0.1/x", "http:///x", "http://[fe80::1]/x", "http://a b/", "http://127.0.0.1:99999/", "\x01", "https://"]


@pytest.mark.parametrize("place", BAD, ids=repr)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_locations_that_are_none(shelf, push, image, method, place):
    def lies(request):
        answer = shelf.respond(request)
        answer.headers = {"Location": place} if place else {}
        return answer

    shelf.always(method, ".*/uploads/.*", lies)
    with pytest.raises(RegistryError):
        push(image, retries=0)
    assert shelf.manifests == {}


def test_a_location_elsewhere_gets_no_authorization(shelf, serve, push, image, images, connect):
    elsewhere = serve(Shelf())
    shelf.guard = BasicGuard("u", "p")

    def away(request):
        if shelf.guard(request):
            return None
        elsewhere.blobs = shelf.blobs
        return elsewhere.respond(request)

    shelf.always("POST", ".*", away)
    images.push(image, f"{shelf.host}/app:1", registry=connect(auth=("u", "p")))
    there(shelf, image)
    assert elsewhere.requests and {request.header("Authorization") for request in elsewhere.requests} == {""}


# ---- chunks ----
def sizes(shelf):
    return [int(request.header("Content-Length")) for request in shelf.asked("PATCH")]


@pytest.mark.parametrize("chunk", [1, 4096, 100_000, 10**9])
def test_chunks(shelf, images, connect, chunk):
    layers = [NOISE] if chunk > 1 else [BASE]
    [image] = images.load(imagekit.tar_of(imagekit.docker([(layers, [])])))
    images.push(image, f"{shelf.host}/app:1", registry=connect(chunk=chunk), compression="zstd")
    [entry] = there(shelf, image)
    assert sum(sizes(shelf)) == entry["size"]
    assert all(size == chunk for size in sizes(shelf)[:-1]) and 0 < sizes(shelf)[-1] <= chunk
    at = 0
    for request, size in zip(shelf.asked("PATCH"), sizes(shelf), strict=True):
        assert request.header("Content-Range") == f"{at}-{at + size - 1}" and not request.chunked
        at += size


def test_the_least_chunk_of_the_registry(shelf, push, image):
    shelf.chunk_min = "200000"
    push(image, chunk=1000)
    assert set(sizes(shelf)[:-1]) == {200_000}


@pytest.mark.parametrize("text", ["x", "-5", "0", "9" * 30, ""])
def test_a_least_chunk_that_is_none(shelf, push, image, text):
    shelf.chunk_min = text
    try:
        push(image, chunk=400_000)
    except RegistryError:
        assert text == "9" * 30


def test_a_chunk_that_is_lost_is_sent_again(shelf, push, image):
    shelf.on("PATCH", UPLOAD, lambda request: None, cuts(50_000))
    push(image, chunk=200_000, retries=1)
    [entry] = there(shelf, image)
    assert len(shelf.asked("GET", UPLOAD)) == 1
    assert sum(sizes(shelf)) == entry["size"] + 200_000 and len(shelf.asked("POST", ".*")) == 2


def test_a_chunk_of_which_a_part_is_kept_goes_on_behind_it(shelf, push, image):
    def keeps_some(request):
        id = request.path.rpartition("/")[2]
        shelf.uploads[id][1].extend(request.take(70_000))
        return HANG_UP

    shelf.on("PATCH", UPLOAD, lambda request: None, keeps_some)
    push(image, chunk=200_000, retries=1)
    [entry] = there(shelf, image)
    assert shelf.asked("PATCH")[2].header("Content-Range").startswith("270000-")
    assert imagekit.digest(shelf.blobs["app"][entry["digest"]]) == entry["digest"]


@pytest.mark.parametrize("told", ["0-5", "0-999999999", "x", "5-10", "0-"])
def test_a_range_that_is_wrong_begins_anew(shelf, push, image, told):
    def lies(request):
        answer = shelf.respond(request)
        answer.headers = dict(answer.headers) | {"Range": told}
        return answer

    shelf.strict = True
    shelf.on("PATCH", UPLOAD, lambda request: None, lies)
    push(image, chunk=200_000, retries=1)
    [entry] = there(shelf, image)
    assert imagekit.digest(shelf.blobs["app"][entry["digest"]]) == entry["digest"]
    assert shelf.uploads == {}


@pytest.mark.parametrize("answer", [Answer(404), Answer(204), Answer(204, {"Range": "0-9999999"}), Answer(204, {"Range": "x"}), Answer(400)], ids=lambda answer: f"{answer.status} {answer.headers}")
def test_a_status_that_helps_nothing_begins_anew(shelf, push, image, answer):
    shelf.on("PATCH", UPLOAD, lambda request: None, cuts(50_000))
    shelf.on("GET", UPLOAD, answer)
    push(image, chunk=200_000, retries=1)
    there(shelf, image)


def test_413_on_a_whole_layer_goes_in_chunks(shelf, push, image):
    shelf.always("PATCH", UPLOAD, lambda request: Answer(413) if request.chunked else None)
    push(image)
    there(shelf, image)
    assert [request.chunked for request in shelf.asked("PATCH")] == [True, False]


def test_413_on_chunks_is_an_error(shelf, push, image, unpushed):
    shelf.always("PATCH", UPLOAD, lambda request: (request.body if not request.chunked else None, Answer(413))[1])
    with unpushed() as caught:
        push(image, retries=2)
    assert caught.value.status == 413


def test_chunks_that_get_on_are_not_counted(shelf, push, image):
    """Each second one is lost, retries=1: one more byte kept, and the count begins anew."""
    seen = []

    def every_second(request):
        seen.append(1)
        return cuts(10_000)(request) if len(seen) % 2 == 0 else None

    shelf.always("PATCH", UPLOAD, every_second)
    push(image, chunk=250_000, retries=1)
    there(shelf, image)


# ---- 401 in the middle ----
def test_401_on_a_patch_sends_to_the_same_session_from_its_first_byte(shelf, push, image, images, connect):
    shelf.on("PATCH", UPLOAD, lambda request: (request.body, BasicGuard("u", "p")(request))[1])
    good = BasicGuard("u", "p")
    shelf.always("PUT|HEAD", ".*", lambda request: good(request))
    images.push(image, f"{shelf.host}/app:1", registry=connect(auth=("u", "p")))
    there(shelf, image)
    assert len(shelf.asked("PATCH")) == 2 and len(shelf.asked("POST", ".*")) == 2


# ---- the manifest ----
def test_manifest_blob_unknown_trusts_no_head(shelf, push, image):
    push(image)
    lost = shelf.blobs.pop("app")
    shelf.manifests.clear()
    shelf.requests.clear()
    shelf.always("HEAD", ".*/blobs/.*", lambda request: Answer(200, {}, [], len(lost[request.path.rpartition("/")[2]])))
    push(image)
    there(shelf, image)
    assert len(shelf.asked("PUT", ".*/manifests/.*")) == 2


def test_manifest_blob_unknown_twice_is_an_error(shelf, push, image, unpushed):
    shelf.always("PUT", ".*/manifests/.*", error(400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry"))
    with unpushed() as caught:
        push(image, retries=3)
    assert caught.value.code == "MANIFEST_BLOB_UNKNOWN" and len(shelf.asked("PUT", ".*/manifests/.*")) == 2


def test_a_manifest_that_is_refused(shelf, push, image, unpushed):
    shelf.always("PUT", ".*/manifests/.*", error(400, "MANIFEST_INVALID", "no"))
    with unpushed() as caught:
        push(image, retries=3)
    assert caught.value.code == "MANIFEST_INVALID" and len(shelf.asked("PUT", ".*/manifests/.*")) == 1


def test_a_manifest_is_tried_again(shelf, push, image):
    shelf.on("PUT", ".*/manifests/.*", Answer(503), HANG_UP)
    push(image, retries=2)
    there(shelf, image)


def test_what_failed_sends_less_the_next_time(shelf, push, images):
    [image] = images.load(imagekit.tar_of(imagekit.docker([([BASE, NOISE, TOP], [])])))
    shelf.always("PUT", ".*/manifests/.*", error(400, "MANIFEST_INVALID", "no"))
    with pytest.raises(RegistryError):
        push(image)
    shelf.forget()
    push(image)
    assert len(there(shelf, image)) == 3 and shelf.asked("PATCH") == []


def test_redirected_uploads(shelf, push, image):
    """307 and 308 are followed by POST, PATCH and PUT; others are not."""
    def moved(request):
        place = request.target
        return Answer(307, {"Location": f"{place}{'&' if '?' in place else '?'}again=1"}) if "again=1" not in request.query else None

    shelf.on("POST", ".*", moved)
    push(image)
    there(shelf, image)
    shelf.forget()
    shelf.blobs.clear()
    shelf.manifests.clear()
    shelf.always("POST", ".*", Answer(302, {"Location": "/v2/app/blobs/uploads/?x=1"}))
    with pytest.raises(RegistryError):
        push(image, retries=0)
    assert len(shelf.asked("POST")) == 1
