"""A layer's one pass: its bytes are counted, hashed and unpacked, and what lies is found, whatever came first."""

import gzip
import hashlib
import random

import imagekit
import pytest
import tarkit
from imagekit import BASE, TOP
from scripted import Answer

from layerstore import (
    BreakoutError,
    ImageError,
    Images,
    LayerStoreError,
    LimitExceededError,
    RegistryError,
    Store,
    TarFormatError,
)

NOISE = tarkit.file("noise", random.Random(5).randbytes(300_000)) + tarkit.end()
WRONG = (ImageError, TarFormatError)


@pytest.fixture
def noisy(shelf):
    return shelf.put([BASE, NOISE])


def answers(shelf, put, number, *given):
    shelf.on("GET", put.blob_path(number), *given)


# ---- lengths and digests ----
@pytest.mark.parametrize("told", [-1, 1, -1000, 5000])
def test_a_content_length_that_is_not_the_descriptors(shelf, pull, unstored, noisy, told):
    blob = noisy.blobs[1]
    body = blob + b"x" * 5000
    answers(shelf, noisy, 1, Answer(200, {}, body[: len(blob) + told]))
    with unstored(ImageError) as caught:
        pull(noisy.reference, retries=2)
    assert noisy.digests[1] in str(caught.value)
    assert len(shelf.asked("GET", noisy.blob_path(1))) == 1


def test_bytes_beyond_the_size_without_a_length(shelf, pull, unstored, noisy):
    for more in ({"chunked": True}, {}):
        answers(shelf, noisy, 1, Answer(200, {}, noisy.blobs[1] + b"x", None, **more))
        with unstored(ImageError) as caught:
            pull(noisy.reference, retries=2)
        assert noisy.digests[1] in str(caught.value)
    assert len(shelf.asked("GET", noisy.blob_path(1))) == 2


def test_a_body_without_end_stops_at_its_size(shelf, pull, unstored, noisy, within):
    sent = []

    def endless():
        yield noisy.blobs[1]
        while True:
            sent.append(1)
            yield bytes(1 << 16)

    answers(shelf, noisy, 1, lambda _: Answer(200, {}, endless(), None))
    with within(3), unstored(ImageError):
        pull(noisy.reference)
    assert len(sent) < 1000


@pytest.mark.parametrize("at", [0, 1, 9, 10, 500, 150_000, -9, -1])
def test_one_bit_that_differs(shelf, pull, unstored, noisy, at):
    wrong = bytearray(noisy.blobs[1])
    wrong[at] ^= 4
    answers(shelf, noisy, 1, Answer(200, {}, bytes(wrong)))
    with unstored(*WRONG):
        pull(noisy.reference, retries=2)
    assert len(shelf.asked("GET", noisy.blob_path(1))) == 1


def test_the_same_layer_packed_otherwise_is_not_that_blob(shelf, pull, unstored):
    put = shelf.put([TOP])
    other = gzip.compress(TOP, 9, mtime=7)
    other += bytes(len(put.blobs[0]) - len(other)) if len(other) < len(put.blobs[0]) else b""
    answers(shelf, put, 0, Answer(200, {}, other))
    with unstored(ImageError):
        pull(put.reference)


def test_bytes_behind_the_compressed_stream_are_hashed_too(shelf, pull, check, unstored):
    packed = gzip.compress(BASE, mtime=0)
    good = shelf.put([BASE], blobs=[packed + bytes(700)])
    check(pull(good.reference), good)
    bad = shelf.put([TOP], tag="2", blobs=[gzip.compress(TOP, mtime=0) + bytes(700)])
    answers(shelf, bad, 0, Answer(200, {}, bad.blobs[0][:-1] + b"\1"))
    with unstored(*WRONG):
        pull(bad.reference)


def test_two_gzip_members_are_one_layer(shelf, pull, check):
    put = shelf.put([TOP], blobs=[gzip.compress(TOP[:1000], mtime=0) + gzip.compress(TOP[1000:], mtime=0)])
    check(pull(put.reference), put)


def test_content_encoding_is_passed_over(shelf, pull, check, noisy):
    answers(shelf, noisy, 1, Answer(200, {"Content-Encoding": "gzip", "Content-Type": "application/gzip"}, noisy.blobs[1]))
    shelf.on("GET", "/v2/app/manifests/1", Answer(200, {"Content-Encoding": "br", "Content-Type": "application/vnd.oci.image.manifest.v1+json"}, noisy.manifest))
    check(pull(noisy.reference), noisy)


# ---- tars ----
BAD_TARS = {
    "a layer of no bytes": (b"", TarFormatError),
    "a gzip stream that is cut": (gzip.compress(NOISE, 1)[:-2000], TarFormatError),
    "a gzip stream without its trailer": (gzip.compress(BASE)[:-8], TarFormatError),
    "a zstd stream that is cut": (imagekit.zstd(NOISE)[:-2000], TarFormatError),
    "no tar": (b"hello " * 500, TarFormatError),
    "no tar in gzip": (gzip.compress(b"hello " * 500), TarFormatError),
    "a tar that is cut": (NOISE[:100_000], TarFormatError),
    "leaves the root": (tarkit.file("../../evil", b"x") + tarkit.end(), BreakoutError),
    "leaves by a link": (tarkit.symlink("a", "/etc") + tarkit.file("a/passwd", b"x") + tarkit.hardlink("h", "../../etc/passwd") + tarkit.end(), BreakoutError),
}


@pytest.mark.parametrize("name", BAD_TARS)
def test_a_layer_whose_digests_hold_and_whose_tar_is_bad(shelf, pull, unstored, name):
    blob, kind = BAD_TARS[name]
    put = shelf.put([BASE, b"never seen"], blobs=[gzip.compress(BASE), blob])
    with unstored(kind, ImageError):
        pull(put.reference)


def test_a_bad_tar_is_named_by_its_kind(shelf, pull, unstored):
    """Where the DiffID could not have been seen before: these are the tar's own errors."""
    for number, (tar, kind) in enumerate([(tarkit.file("../../evil", b"x") + tarkit.end(), BreakoutError), (BASE[:700], TarFormatError)]):
        put = shelf.put([tar], tag=f"{number}", packed="plain")
        with unstored(kind):
            pull(put.reference)


# ---- bombs ----
@pytest.mark.parametrize("packed", ["gzip", "zstd"])
@pytest.mark.parametrize("option", ["max_size", "max_tar_size"])
def test_decompression_bombs_meet_the_stores_limits(shelf, connect, room, packed, option):
    tar = tarkit.file("zeros", bytes(40 << 20)) + tarkit.end()
    put = shelf.put([tar], packed=packed)
    with Store(room / option, options={option: "4m"}) as store:
        with pytest.raises(LimitExceededError):
            Images(store).pull(put.reference, registry=connect())
        assert store.map() == {} and store.orphans() == [] and Images(store).list() == []


# ---- other answers ----
@pytest.mark.parametrize("status", [201, 202, 204, 205, 206, 300, 304, 305, 400, 405, 406, 410, 416, 418, 451, 501, 505, 599])
def test_other_statuses_are_errors_at_once(shelf, pull, unstored, noisy, status):
    shelf.always("GET", noisy.blob_path(1), Answer(status, {}, b"" if status in (204, 304) else noisy.blobs[1]))
    with unstored(RegistryError, ImageError) as caught:
        pull(noisy.reference, retries=1)
    assert noisy.digests[1] in str(caught.value)
    if status not in (206, 416):
        assert caught.value.status == status and str(status) in str(caught.value)
        assert len(shelf.asked("GET", noisy.blob_path(1))) == 1


def test_a_206_that_nobody_asked_for(shelf, pull, unstored, noisy):
    blob = noisy.blobs[1]
    shelf.always("GET", noisy.blob_path(1), Answer(206, {"Content-Range": f"bytes 0-{len(blob) - 1}/{len(blob)}"}, blob))
    try:
        pull(noisy.reference)
    except LayerStoreError as error:
        assert noisy.digests[1] in str(error)


def test_what_comes_is_what_the_digest_says_whatever_lies_beside(shelf, pull, check, noisy):
    """An ETag, a type, a length in the manifest's answer: none of them counts for the bytes."""
    shelf.on("GET", noisy.blob_path(1), Answer(200, {"ETag": "W/\"weak\"", "Content-Type": "text/html", "Content-MD5": "x", "Digest": "sha-256=x"}, noisy.blobs[1]))
    check(pull(noisy.reference), noisy)
    assert hashlib.sha256(noisy.blobs[1]).hexdigest() in noisy.digests[1]
