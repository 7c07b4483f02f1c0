"""Mirrors: asked first and in order, trusted for nothing, and never for what is not a pull."""

import base64
import random

import imagekit
import pytest
import tarkit
from guards import BasicGuard, basic
from imagekit import BASE, TOP, encode
from scripted import CUT, HANG_UP, STALL, Answer, Server, cut
from shelf import KINDS, Shelf, ranged

from layerstore import Images, Registry, RegistryError, Store

NOISE = tarkit.file("noise", random.Random(6).randbytes(100_000)) + tarkit.end()
LAYERS = [BASE, NOISE]


@pytest.fixture
def mirror(serve):
    return serve(Shelf())


@pytest.fixture
def both(shelf, mirror):
    """The same image here and there."""
    mirror.put(LAYERS)
    return shelf.put(LAYERS)


def test_a_mirror_serves_all(shelf, mirror, both, pull, check):
    image = pull(both.reference, mirrors=[mirror.url])
    check(image, both, [both.reference])
    assert image.digests == (both.by_digest,)
    assert len(mirror.requests) == 4 and shelf.requests == []


def test_a_mirror_without_a_scheme(shelf, mirror, both, pull, check):
    check(pull(both.reference, mirrors=[mirror.host]), both)
    assert shelf.requests == []


@pytest.mark.parametrize("path", ["cache", "cache/docker-hub", "a/b/"])
def test_a_path_in_front_of_v2(shelf, serve, both, pull, check, path):
    class Below(Shelf):
        def respond(self, request):
            front, _, rest = request.path.partition("/v2/")
            if front != "/" + path.strip("/"):
                return Answer(404)
            request.path = "/v2/" + rest
            return super().respond(request)

    mirror = serve(Below())
    mirror.put(LAYERS)
    check(pull(both.reference, mirrors=[f"{mirror.url}/{path}"]), both)
    assert shelf.requests == [] and len(mirror.requests) == 4


def test_mirrors_are_asked_in_order(shelf, mirror, serve, both, pull, check):
    second = serve(Shelf())
    second.put(LAYERS)
    mirror.manifests.clear()
    mirror.blobs.clear()
    check(pull(both.reference, mirrors=[mirror.url, second.url]), both)
    assert mirror.requests and shelf.requests == [] and len(second.requests) == 4


FAILS = {"401": Answer(401), "403": Answer(403), "404": Answer(404), "500": Answer(500), "503": Answer(503), "hangs up": HANG_UP, "stalls": Answer(raw=[STALL]),
         "another manifest": Answer(200, {"Content-Type": KINDS[1]}, b"{}"), "a long one": Answer(200, {"Content-Type": KINDS[1]}, [b"x"], 5 << 20)}  # fmt: skip


def test_a_mirror_that_fails_is_passed_over(serve, each, room):
    def one(name):
        shelf, mirror = pairs[name]
        put = shelf.put(LAYERS)
        mirror.always("GET|HEAD", ".*", FAILS[name])
        with Store(room / name.replace(" ", ""), options={"durability": "none"}) as store, Registry(shelf.url, mirrors=[mirror.url], retries=0, timeout=0.4) as registry:
            image = Images(store).pull(put.by_digest, registry=registry)
            assert image.id == put.id and image.digests == (put.by_digest,)
            assert [path for path in shelf.paths() if "manifests" in path]

    pairs = {name: (serve(Shelf()), serve(Server())) for name in FAILS}
    each({name: name for name in FAILS}, one)


def test_it_is_tried_once_again(shelf, mirror, both, pull, check):
    """One retry, whatever `retries` says."""
    mirror.always("GET", "/v2/app/manifests/.*", Answer(503))
    check(pull(both.reference, mirrors=[mirror.url], retries=5), both)
    assert len(mirror.asked("GET", "/v2/app/manifests/.*")) == 2


def test_one_that_is_not_there(shelf, both, pull, check, caplog):
    gone = Server()
    gone.close()
    check(pull(both.reference, mirrors=[f"http://{gone.host}"]), both)
    assert gone.host in caplog.text


def test_all_fail(shelf, mirror, both, pull, unstored):
    mirror.always("GET", ".*", Answer(404))
    shelf.always("GET", ".*", Answer(503))
    with unstored(RegistryError) as caught:
        pull(both.reference, mirrors=[mirror.url])
    assert caught.value.host == shelf.host


# ---- blobs ----
def test_a_mirror_that_serves_something_else(shelf, mirror, both, pull, check, caplog):
    """The wrong digest: the layer is begun anew from the registry."""
    wrong = bytearray(both.blobs[1])
    wrong[50_000] ^= 1
    mirror.always("GET", both.blob_path(1), Answer(200, {}, bytes(wrong)))
    check(pull(both.reference, mirrors=[mirror.url]), both)
    assert [request.header("Range") for request in shelf.asked("GET", both.blob_path(1))] == [""]
    assert mirror.host in caplog.text


@pytest.mark.parametrize("change", [lambda blob: blob[:-1], lambda blob: blob + b"x", lambda blob: b"", lambda blob: b"<html>portal</html>" * 40], ids=["short", "long", "empty", "html"])
def test_a_mirror_with_another_size(shelf, mirror, both, pull, check, change):
    mirror.always("GET", both.blob_path(1), Answer(200, {}, change(both.blobs[1])))
    check(pull(both.reference, mirrors=[mirror.url]), both)
    assert len(shelf.asked("GET", both.blob_path(1))) == 1


def test_a_mirror_whose_layer_is_no_tar(shelf, mirror, both, pull, check):
    """What it sends cannot be unpacked: that is the mirror's fault too, as its digest would say."""
    mirror.always("GET", both.blob_path(1), Answer(200, {}, b"\x1f\x8b\x08" + both.blobs[1][3:1000] + bytes(len(both.blobs[1]) - 1000)))
    check(pull(both.reference, mirrors=[mirror.url]), both)


def test_a_blob_goes_on_from_the_registry_by_range(shelf, mirror, both, pull, check):
    blob = both.blobs[1]
    mirror.on("GET", both.blob_path(1), cut(Answer(200, {"ETag": '"mirror"'}, blob), 40_000))
    mirror.always("GET", both.blob_path(1), Answer(404))
    check(pull(both.reference, mirrors=[mirror.url]), both)
    [asked] = shelf.asked("GET", both.blob_path(1))
    assert asked.header("Range") == "bytes=40000-"
    assert asked.header("If-Range") == "", "an ETag of another host"


def test_a_blob_goes_on_from_the_next_mirror(shelf, mirror, serve, both, pull, check):
    second = serve(Shelf())
    second.put(LAYERS)
    mirror.on("GET", both.blob_path(1), Answer(200, {}, [both.blobs[1][:40_000], CUT], len(both.blobs[1])))
    mirror.always("GET", both.blob_path(1), HANG_UP)
    check(pull(both.reference, mirrors=[mirror.url, second.url]), both)
    assert shelf.requests == []
    assert [request.header("Range") for request in second.asked("GET", both.blob_path(1))] == ["bytes=40000-"]


def test_what_a_mirror_lied_in_its_first_half_is_found(shelf, mirror, both, pull, check):
    """The whole digest is wrong although the registry's half was right: begun anew, from the registry alone."""
    wrong = bytearray(both.blobs[1])
    wrong[20_000] ^= 1
    mirror.on("GET", both.blob_path(1), cut(Answer(200, {}, bytes(wrong)), 40_000))
    mirror.always("GET", both.blob_path(1), lambda request: ranged(request, bytes(wrong), {}) if request.header("Range") == "x" else Answer(404))
    check(pull(both.reference, mirrors=[mirror.url]), both)


def test_a_config_of_a_mirror(shelf, mirror, both, pull, check):
    path = "/v2/app/blobs/" + imagekit.digest(both.config)
    mirror.always("GET", path, Answer(200, {}, both.config.replace(b"amd64", b"arm64")))
    check(pull(both.reference, mirrors=[mirror.url]), both)
    assert len(shelf.asked("GET", path)) == 1


def test_a_slow_mirror_is_left(shelf, mirror, both, pull, check, within):
    def drip(request):
        blob = both.blobs[1]
        return Answer(200, {}, [step for n in range(100) for step in (blob[n : n + 1], 0.1)], len(blob))

    mirror.always("GET", both.blob_path(1), drip)
    with within(8, 0.7):
        check(pull(both.reference, mirrors=[mirror.url], timeout=0.8), both)


# ---- what it is not asked for ----
def test_tags_and_referrers_and_pushes_never(shelf, mirror, both, pull, images, connect):
    registry = connect(mirrors=[mirror.url])
    registry.tags("app")
    registry.referrers(f"app@{both.digest}")
    image = pull(both.reference, registry=registry)
    seen = len(mirror.requests)
    images.push(image, f"{shelf.host}/new:1", registry=registry)
    assert len(mirror.requests) == seen
    assert {request.method for request in mirror.requests} <= {"GET", "HEAD"}
    assert not [path for path in mirror.paths() if "tags" in path or "referrers" in path or "new" in path]


def test_auth_is_not_for_mirrors(shelf, mirror, both, pull, check, home):
    shelf.guard = BasicGuard("user", "pw")
    mirror.guard = BasicGuard("m", "irror")
    mirror.blobs["app"].pop(both.digests[1])
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_bytes(encode({"auths": {mirror.host: {"auth": base64.b64encode(b"m:irror").decode()}}}))
    check(pull(both.reference, mirrors=[mirror.url], auth=("user", "pw")), both)
    assert {request.header("Authorization") for request in mirror.requests} == {"", basic("m", "irror")}
    assert {request.header("Authorization") for request in shelf.requests} == {"", basic("user", "pw")}


def test_a_given_token_is_not_for_mirrors(shelf, mirror, both, pull, check):
    check(pull(both.reference, mirrors=[mirror.url], auth="t0ken"), both)
    assert {request.header("Authorization") for request in mirror.requests} == {""}


@pytest.mark.parametrize("mirrors", [["a b"], ["ftp://a"], ["http://u:p@a"], ["a?x"], ["a#x"], ["a:99999"], [""], ["http://"]], ids=repr)
def test_mirrors_that_are_none(mirrors):
    with pytest.raises(ValueError):
        Registry("localhost:1", mirrors=mirrors)


@pytest.mark.parametrize("mirrors", [[5], [None], 5, [b"a"]], ids=repr)
def test_mirrors_of_other_types(mirrors):
    with pytest.raises(TypeError):
        Registry("localhost:1", mirrors=mirrors)


def test_one_text_is_no_list_of_mirrors():
    with pytest.raises((TypeError, ValueError)):
        Registry("localhost:1", mirrors="localhost:2")


def test_manifest_asks_mirrors_too(shelf, mirror, both, connect):
    assert connect(mirrors=[mirror.url]).manifest("app:1")[1] == both.manifest
    assert shelf.requests == [] and len(mirror.requests) == 1


def test_a_mirror_whose_tag_is_another_image(shelf, mirror, pull, check):
    """By tag the mirror is believed, as docker does; by digest it is not."""
    old = mirror.put([TOP])
    new = shelf.put(LAYERS)
    image = pull(new.reference, mirrors=[mirror.url])
    assert image.id == old.id
    assert pull(new.by_digest, mirrors=[mirror.url]).id == new.id
