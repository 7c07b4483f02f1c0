"""A blob whose connection breaks goes on where it broke, by range, and its digest is over the bytes that were unpacked."""

import random
import threading
import time

import pytest
import tarkit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagekit import BASE
from scripted import CUT, RESET, STALL, Answer, Server, cut
from shelf import Shelf, ranged

from layerstore import ImageError, Images, Registry, RegistryError, Store, TarFormatError

NOISE = tarkit.file("noise", random.Random(6).randbytes(200_000)) + tarkit.end()
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def put(shelf):
    return shelf.put([BASE, NOISE])


def whole(put, etag='"e"'):
    return Answer(200, {"ETag": etag} if etag else {}, put.blobs[1])


def ranges(shelf, put):
    return [(request.header("Range"), request.header("If-Range")) for request in shelf.asked("GET", put.blob_path(1))]


def told(error) -> str:
    """Its text with its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


# ---- cuts ----
@pytest.mark.parametrize("end", [CUT, RESET])
@pytest.mark.parametrize("etag", ['"strong"', 'W/"weak"', ""], ids=["strong", "weak", "none"])
def test_a_cut_body_goes_on_by_range(shelf, pull, check, put, etag, end):
    shelf.on("GET", put.blob_path(1), cut(whole(put, etag), 70_000, CUT if end == CUT else 0.05) if end == CUT else Answer(200, {"ETag": etag} if etag else {}, [put.blobs[1][:70_000], 0.1, RESET], len(put.blobs[1])))
    shelf.on("GET", put.blob_path(1), lambda request: Answer(206, {"Content-Range": f"bytes {offset(request)}-{len(put.blobs[1]) - 1}/{len(put.blobs[1])}"}, put.blobs[1][offset(request) :]))
    check(pull(put.reference), put)
    first, (asked, condition) = ranges(shelf, put)
    assert first == ("", "")
    assert asked.startswith("bytes=") and asked.endswith("-")
    if end == CUT:
        assert asked == "bytes=70000-"
    assert condition == (etag if etag.startswith('"') else "")


def offset(request):
    return int(request.header("Range").removeprefix("bytes=").removesuffix("-") or 0)


def test_a_cut_is_no_attempt_where_something_came(shelf, pull, check, put):
    """40 connections, each of which brings 5,000 bytes; retries=0 and no wait between them."""
    def piece(request):
        at = offset(request)
        blob = put.blobs[1]
        if at == 0:
            return cut(whole(put), 5000)
        part = blob[at : at + 5000]
        return Answer(206, {"Content-Range": f"bytes {at}-{len(blob) - 1}/{len(blob)}"}, [part, CUT] if at + 5000 < len(blob) else part, len(blob) - at)

    shelf.always("GET", put.blob_path(1), piece)
    began = time.monotonic()
    check(pull(put.reference, retries=0), put)
    assert len(ranges(shelf, put)) >= 40
    assert time.monotonic() - began < 5


def test_fewer_than_1024_bytes_are_nothing(shelf, pull, unstored, put):
    """They stay, but each counts as an attempt."""
    def drops(request):
        at, blob = offset(request), put.blobs[1]
        body = [blob[at : at + 500], CUT]
        if at == 0:
            return Answer(200, {}, body, len(blob))
        return Answer(206, {"Content-Range": f"bytes {at}-{len(blob) - 1}/{len(blob)}"}, body, len(blob) - at)

    shelf.always("GET", put.blob_path(1), drops)
    with unstored(RegistryError) as caught:
        pull(put.reference, retries=1)
    assert ranges(shelf, put) == [("", ""), ("bytes=500-", "")]
    assert put.digests[1] in str(caught.value)
    assert caught.value.status == 0


def test_nothing_came_no_range(shelf, pull, check, put):
    shelf.on("GET", put.blob_path(1), cut(whole(put), 0))
    check(pull(put.reference, retries=1), put)
    assert ranges(shelf, put) == [("", ""), ("", "")]


def test_a_stall_goes_on(shelf, pull, check, put, within):
    shelf.on("GET", put.blob_path(1), cut(whole(put), 50_000, STALL))
    with within(3, 0.5):
        check(pull(put.reference, retries=1, timeout=0.6), put)
    assert ranges(shelf, put)[1] == ("bytes=50000-", '"e"')


def test_a_byte_now_and_then_is_a_stall(shelf, pull, unstored, put, within):
    def drip(request):
        at, blob = offset(request), put.blobs[1]
        steps = [step for n in range(200) for step in (blob[at + n : at + n + 1], 0.1)]
        if at == 0:
            return Answer(200, {}, steps, len(blob))
        return Answer(206, {"Content-Range": f"bytes {at}-{len(blob) - 1}/{len(blob)}"}, steps, len(blob) - at)

    shelf.always("GET", put.blob_path(1), drip)
    with within(6, 1), unstored(RegistryError):
        pull(put.reference, retries=1, timeout=0.8)
    assert len(ranges(shelf, put)) == 2


def test_a_slow_body_that_brings_enough_is_no_stall(shelf, pull, check, put):
    blob = put.blobs[1]
    pieces = [step for at in range(0, len(blob), 20_000) for step in (blob[at : at + 20_000], 0.15)]
    shelf.on("GET", put.blob_path(1), Answer(200, {}, pieces, len(blob)))
    check(pull(put.reference, timeout=0.7), put)
    assert len(ranges(shelf, put)) == 1


def test_at_most_a_thousand_connections(shelf, pull, unstored):
    tar = tarkit.file("noise", random.Random(8).randbytes(1_300_000)) + tarkit.end()
    put = shelf.put([tar], packed="plain")
    blob = put.blobs[0]

    def piece(request):
        at = offset(request)
        headers = {"Content-Range": f"bytes {at}-{len(blob) - 1}/{len(blob)}"} if at else {}
        return Answer(206 if at else 200, headers, [blob[at : at + 1100], CUT], len(blob) - at)

    shelf.always("GET", put.blob_path(0), piece)
    with unstored(RegistryError):
        pull(put.reference, retries=2)
    assert len(shelf.asked("GET", put.blob_path(0))) == 1000


def test_a_chunked_body_that_is_cut_goes_on(shelf, pull, check, put):
    shelf.on("GET", put.blob_path(1), Answer(200, {}, [put.blobs[1][:40_000], CUT], None, chunked=True))
    check(pull(put.reference), put)
    assert ranges(shelf, put)[1][0] == "bytes=40000-"


def test_a_body_without_length_that_ends_early_goes_on(shelf, pull, check, put):
    shelf.on("GET", put.blob_path(1), Answer(200, {}, put.blobs[1][:40_000], None))
    check(pull(put.reference, retries=1), put)
    assert ranges(shelf, put)[1][0] == "bytes=40000-"


# ---- what answers the range ----
def test_a_200_is_read_over(shelf, pull, check, put):
    done = []
    shelf.on("GET", put.blob_path(1), cut(whole(put), 70_000), whole(put))
    check(pull(put.reference, progress=done.append), put)
    assert len(ranges(shelf, put)) == 2
    assert done == sorted(done) and done[-1] == done[-1].total == sum(map(len, put.blobs))


LIES = {
    "another start": lambda at, blob: ({"Content-Range": f"bytes {at + 1}-{len(blob) - 1}/{len(blob)}"}, blob[at + 1 :]),
    "an earlier start": lambda at, blob: ({"Content-Range": f"bytes {at - 5}-{len(blob) - 1}/{len(blob)}"}, blob[at - 5 :]),
    "another total": lambda at, blob: ({"Content-Range": f"bytes {at}-{len(blob) - 1}/{len(blob) + 1}"}, blob[at:]),
    "an earlier end": lambda at, blob: ({"Content-Range": f"bytes {at}-{len(blob) - 9}/{len(blob)}"}, blob[at:-8]),
    "no Content-Range": lambda at, blob: ({}, blob[at:]),
    "nonsense": lambda at, blob: ({"Content-Range": "bytes x-y/z"}, blob[at:]),
    "another unit": lambda at, blob: ({"Content-Range": f"items {at}-{len(blob) - 1}/{len(blob)}"}, blob[at:]),
    "parts": lambda at, blob: ({"Content-Type": "multipart/byteranges; boundary=b"}, b"--b\r\nContent-Range: bytes %d-%d/%d\r\n\r\n%s\r\n--b--\r\n" % (at, len(blob) - 1, len(blob), blob[at:])),
    "a huge number": lambda at, blob: ({"Content-Range": f"bytes {at}-{'9' * 5000}/{len(blob)}"}, blob[at:]),
    "a longer body": lambda at, blob: ({"Content-Range": f"bytes {at}-{len(blob) - 1}/{len(blob)}"}, blob[at:] + b"x"),
}


@pytest.mark.parametrize("name", LIES)
def test_another_206_is_asked_once_more_without_range(shelf, pull, check, put, name):
    shelf.on("GET", put.blob_path(1), cut(whole(put), 70_000), lambda request: Answer(206, *LIES[name](offset(request), put.blobs[1])), whole(put))
    check(pull(put.reference), put)
    assert [asked for asked, _ in ranges(shelf, put)] == ["", "bytes=70000-", ""]


def test_416_is_asked_once_more_without_range(shelf, pull, check, put):
    shelf.on("GET", put.blob_path(1), cut(whole(put), 70_000), Answer(416, {"Content-Range": f"bytes */{len(put.blobs[1])}"}), whole(put))
    check(pull(put.reference), put)
    assert [asked for asked, _ in ranges(shelf, put)] == ["", "bytes=70000-", ""]


def test_a_206_without_a_total_that_is_right_otherwise(shelf, pull, check, put):
    """`/*` is no total: asked again, or taken; the digest decides."""
    shelf.on("GET", put.blob_path(1), cut(whole(put), 70_000), lambda request: Answer(206, {"Content-Range": f"bytes {offset(request)}-{len(put.blobs[1]) - 1}/*"}, put.blobs[1][offset(request) :]))
    check(pull(put.reference), put)


def test_another_blob_behind_the_same_name_is_found(shelf, pull, unstored, put):
    other = bytearray(put.blobs[1])
    other[-20_000] ^= 1
    shelf.on("GET", put.blob_path(1), cut(whole(put, '"one"'), 70_000), lambda request: ranged(request, bytes(other), {}))
    with unstored(ImageError, TarFormatError) as caught:
        pull(put.reference)
    assert put.digests[1] in told(caught.value)


def test_a_404_behind_a_cut_is_an_error(shelf, pull, unstored, put):
    shelf.on("GET", put.blob_path(1), cut(whole(put), 70_000), Answer(404))
    with unstored(RegistryError) as caught:
        pull(put.reference)
    assert caught.value.status == 404


def test_a_503_behind_a_cut_is_tried_again(shelf, pull, check, put):
    shelf.on("GET", put.blob_path(1), cut(whole(put), 70_000), Answer(503))
    check(pull(put.reference, retries=1), put)
    assert [asked for asked, _ in ranges(shelf, put)] == ["", "bytes=70000-", "bytes=70000-"]


def test_the_registry_is_asked_again_and_not_the_redirects_target(shelf, serve, pull, check, put):
    store = serve(Server())
    blob = put.blobs[1]
    store.on("GET", "/signed", cut(Answer(200, {}, blob), 70_000))
    store.always("GET", "/second", lambda request: ranged(request, blob, {}))
    shelf.on("GET", put.blob_path(1), Answer(307, {"Location": f"{store.url}/signed?key=1"}), Answer(307, {"Location": f"{store.url}/second?key=2"}))
    check(pull(put.reference), put)
    assert [request.target for request in store.requests] == ["/signed?key=1", "/second?key=2"]
    assert store.requests[1].header("Range") == "bytes=70000-"
    assert len(shelf.asked("GET", put.blob_path(1))) == 2


# ---- drawn ----
BLOB_TAR = tarkit.file("noise", random.Random(9).randbytes(20_000)) + tarkit.end()


@pytest.fixture(scope="module")
def always_cutting():
    """A shelf with one layer of each kind whose body is cut where `cuts` says, then as ever."""
    with Shelf() as shelf:
        puts = {packed: shelf.put([BLOB_TAR], name=packed, packed=packed) for packed in ("gzip", "zstd", "plain")}
        shelf.cuts, lock = [], threading.Lock()

        def answer(request):
            with lock:
                at = shelf.cuts.pop(0) if shelf.cuts else None
            name = request.path.split("/")[2]
            full = ranged(request, puts[name].blobs[0], {"Etag": '"x"'})
            return full if at is None else cut(full, min(at, len(full.body)))

        for name, put in puts.items():
            shelf.always("GET", put.blob_path(0, name), answer)
        yield shelf, puts


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(packed=st.sampled_from(["gzip", "zstd", "plain"]), cuts=st.lists(st.integers(1024, 22_000), max_size=6))
def test_cuts_anywhere_give_the_same_layer(always_cutting, room, packed, cuts):
    shelf, puts = always_cutting
    shelf.cuts = list(cuts)
    with Store(room / "drawn", options={"durability": "none"}) as store, Registry(shelf.url, retries=0, timeout=5) as registry:
        image = Images(store).pull(puts[packed].reference, registry=registry)
        assert list(image.layers) == puts[packed].chains
        assert store.verify() == []
        Images(store).remove(image.id, force=True)
        assert store.map() == {}
