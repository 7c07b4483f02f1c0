"""Documents, numbers and headers that mean harm: each ends as an error of ours, and the store is as it was."""

import json
import os
import random
import subprocess
import sys

import imagekit
import pytest
import tarkit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagekit import BASE, OCI, TOP, encode
from scripted import Answer, cut
from shelf import KINDS

from layerstore import ImageError, LayerStoreError, RegistryError

HUGE = b"9" * 6000          # more digits than int() takes
SURROGATE = b'"\\ud800"'
NOISE = tarkit.file("noise", random.Random(6).randbytes(100_000)) + tarkit.end()


# ---- manifests ----
def raw_manifest(put, **changes):
    """The manifest with a value written raw."""
    document = json.loads(put.manifest)
    for path, value in changes.items():
        here = document
        *way, last = path.split("_")
        for step in way:
            here = here[int(step) if step.isdigit() else step]
        here[last] = f"@{len(value)}@{path}@"
        data = json.dumps(document)
    for path, value in changes.items():
        data = data.replace(f'"@{len(value)}@{path}@"', value.decode("latin-1"))
    return data.encode("latin-1")


@pytest.mark.parametrize("value", [HUGE, b"-" + HUGE, b"1e999999", b"NaN", b"Infinity", SURROGATE, b"1E3", b"1.0e2", b"0x10", b"01", b"[[[[]]]]", b"{}"], ids=lambda value: repr(value[:12]))
@pytest.mark.parametrize("path", ["config_size", "layers_0_size", "schemaVersion"])
def test_numbers_in_a_manifest(shelf, pull, unstored, path, value):
    put = shelf.put([BASE])
    shelf.on("GET", ".*/manifests/.*", Answer(200, {"Content-Type": KINDS[1]}, raw_manifest(put, **{path: value})))
    with unstored(ImageError):
        pull(put.reference)


@pytest.mark.parametrize("path", ["config_digest", "config_mediaType", "layers_0_digest", "layers_0_mediaType", "mediaType"])
@pytest.mark.parametrize("value", [SURROGATE, b'"\\u0000"', b"5", b"null", b"[]", b'"' + b"x" * 100_000 + b'"', b'"a\\u001b[31mred"', b'"\\r\\nX: y"'], ids=lambda value: repr(value[:12]))
def test_texts_in_a_manifest(shelf, pull, unstored, path, value):
    put = shelf.put([BASE])
    data = raw_manifest(put, **{path: value})
    shelf.on("GET", ".*/manifests/.*", Answer(200, {"Content-Type": KINDS[1]}, data))
    if value == b"null" and path.endswith("mediaType"):
        pull(put.reference)         # as if it were not there
        return
    with unstored(LayerStoreError) as caught:
        pull(put.reference)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 2000
    text.encode()


@pytest.mark.parametrize("value", [SURROGATE, b'{"\\ud800":"\\udfff"}', b"5", b'{"a":5}', b'{"a":null}', b'{"a":"\\u0000\\u001b"}', b'{"":""}', b'{"a":null}'], ids=repr)
def test_annotations(shelf, pull, check, unstored, value):
    """Stored or refused, never half."""
    put = shelf.put([BASE])
    shelf.add_manifest(raw_manifest(put, layers_0_annotations=value), tag="a", kind=KINDS[1])
    try:
        image = pull(f"{shelf.host}/app:a")
    except LayerStoreError as error:
        str(error).encode()
        with unstored(LayerStoreError):
            pull(f"{shelf.host}/app:a")
    else:
        check(image, put)


def test_keys_that_are_there_twice(shelf, pull, unstored, check):
    put = shelf.put([BASE])
    data = put.manifest[:-1] + b',"layers":[]}'
    shelf.add_manifest(data, tag="twice", kind=KINDS[1])
    with unstored(ImageError):
        pull(f"{shelf.host}/app:twice")


@pytest.mark.parametrize("size", [2**63 - 1, 2**62, 2**53 + 1])
def test_sizes_that_no_blob_has(shelf, pull, unstored, size):
    put = shelf.put([BASE, NOISE], edit=lambda document: document["layers"][1].update(size=size))
    done = []
    with unstored(ImageError, RegistryError):
        pull(put.reference, progress=done.append)
    with unstored(ImageError, RegistryError):
        shelf.on("GET", put.blob_path(1), Answer(200, {}, put.blobs[1], None, chunked=True))
        pull(put.reference, progress=done.append)


def test_one_blob_of_two_sizes(shelf, pull, unstored):
    def edit(document):
        document["layers"][1]["size"] += 1

    put = shelf.put([TOP, TOP], edit=edit)
    with unstored(ImageError):
        pull(put.reference)


def test_one_blob_of_two_media_types(shelf, pull, check):
    put = shelf.put([TOP, TOP], edit=lambda document: document["layers"][1].update(mediaType=OCI + "layer.v1.tar"))
    check(pull(put.reference), put)


def test_the_config_as_a_layer(shelf, pull, unstored):
    put = shelf.put([TOP], edit=lambda document: document["layers"].__setitem__(0, document["config"] | {"mediaType": OCI + "layer.v1.tar"}))
    with unstored(LayerStoreError):
        pull(put.reference)


def test_one_blob_by_two_algorithms(shelf, pull, check):
    put = shelf.put([BASE, TOP], edit=lambda document: document["layers"][1].update(digest=imagekit.digest(document_blob, "sha512")))
    check(pull(put.reference), put)


document_blob = imagekit.PACKERS["gzip"][0](TOP)


@pytest.fixture(autouse=True)
def second_name(shelf):
    shelf.add_blob(document_blob, algorithm="sha512")


# ---- configs ----
CONFIGS = {
    "a list": b"[]", "null": b"null", "empty": b"", "deep": b"[" * 50_000, "no rootfs": b"{}", "rootfs null": b'{"rootfs":null}', "a type": b'{"rootfs":{"type":5,"diff_ids":5}}', "a number": b'{"rootfs":{"type":"layers","diff_ids":[5]}}',
    "a huge number": b'{"created":%s,"rootfs":{"type":"layers","diff_ids":["DIFF"]}}' % HUGE, "a path": b'{"rootfs":{"type":"layers","diff_ids":["../../../etc"]}}', "upper": b'{"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' % (b"A" * 64),
    "many": b'{"rootfs":{"type":"layers","diff_ids":[%s]}}' % b",".join([b'"DIFF"'] * 200), "a surrogate": b'{"rootfs":{"type":"layers","diff_ids":["\\ud800"]}}',
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(shelf, pull, unstored, name):
    data = CONFIGS[name].replace(b"DIFF", tarkit.diff_id(BASE).encode())
    put = shelf.put([BASE])
    document = json.loads(put.manifest) | {"config": imagekit.descriptor(data, OCI + "config.v1+json")}
    shelf.add_blob(data)
    shelf.add_manifest(document, tag="c")
    try:
        pull(f"{shelf.host}/app:c")
        assert name == "a huge number"
    except LayerStoreError as error:
        assert isinstance(error, ImageError)
        with unstored(ImageError):
            pull(f"{shelf.host}/app:c")


# ---- indexes ----
ANY = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("linux") | st.just("amd64"), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["os", "architecture", "variant", "os.version", "os.features"]), inner, max_size=3), max_leaves=6)  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(platforms=st.lists(ANY, min_size=1, max_size=3), annotations=ANY)
def test_drawn_platforms(shelf, images, connect, platforms, annotations):
    put = shelf.put([BASE], tag="")
    registry = shelf.__dict__.setdefault("drawn", connect())
    shelf.put_index([(put, {"platform": platform, "annotations": annotations}) for platform in platforms])
    try:
        assert images.pull(f"{shelf.host}/app:all", platform="linux/amd64", registry=registry).id == put.id
    except ImageError as error:
        str(error).encode()


# ---- headers ----
NUMBERS = ["\xb2", "1\xb2", "+5", "-5", "5 5", "5,5", "0x5", "5.0", "1_0", "", " ", "9" * 6000, "٥".encode().decode("latin-1"), "\xbd"]


@pytest.mark.parametrize("text", NUMBERS, ids=lambda text: repr(text[:8]))
def test_numbers_in_headers(shelf, pull, check, unstored, text):
    """The header is refused or passed over; no other error, and never another layer."""
    put = shelf.put([BASE, NOISE])
    blob = put.blobs[1]
    shelf.on("GET", ".*/manifests/.*", Answer(200, {"Content-Type": KINDS[1], "Retry-After": text}, put.manifest))
    shelf.on("GET", put.blob_path(1), cut(Answer(200, {}, blob), 50_000))
    shelf.on("GET", put.blob_path(1), Answer(206, {"Content-Range": f"bytes {text}-{len(blob) - 1}/{len(blob)}"}, blob[50_000:]))
    check(pull(put.reference), put)
    again = shelf.put([TOP, NOISE], tag="2")
    shelf.on("GET", put.blob_path(1), cut(Answer(200, {}, blob), 50_000))
    shelf.on("GET", put.blob_path(1), Answer(206, {"Content-Range": f"bytes 50000-{len(blob) - 1}/{text}"}, blob[50_000:]))
    check(pull(again.reference), again)


@pytest.mark.parametrize("text", NUMBERS, ids=lambda text: repr(text[:8]))
def test_content_lengths(shelf, connect, text):
    shelf.always("GET", ".*", Answer(raw=[b"HTTP/1.1 200 OK\r\nContent-Length: " + text.encode("latin-1") + b'\r\n\r\n{"tags":["a"]}']))
    with connect() as registry:
        try:
            assert registry.tags("app") == ["a"]
        except RegistryError as error:
            assert str(error).isprintable()


@pytest.mark.parametrize("text", NUMBERS, ids=lambda text: repr(text[:8]))
def test_retry_after(shelf, connect, text):
    shelf.on("GET", ".*", Answer(503, {"Retry-After": text}))
    shelf.always("GET", ".*", Answer(200, {}, b'{"tags":["a"]}'))
    with connect(retries=1) as registry:
        try:
            assert registry.tags("app") == ["a"]
        except RegistryError as error:
            assert str(error).isprintable() and len(str(error)) < 1000


SMUGGLED = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\nContent-Length: 5\r\n\r\n{\"tags\":[\"a\"]}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\ne\r\n{\"tags\":[\"a\"]}\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\ne\r\n{\"tags\":[\"a\"]}\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\nContent-Length: 14\r\n\r\n{\"tags\":[\"a\"]}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 6000 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\ne;" + b"x" * 70_000 + b"\r\n{\"tags\":[\"a\"]}\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-e\r\n{\"tags\":[\"a\"]}\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n folded: x\r\n\r\n{\"tags\":[\"a\"]}",
    b"HTTP/1.1 200\r\nContent-Length: 14\r\n\r\n{\"tags\":[\"a\"]}",
    b"HTTP/1.0 200 OK\r\n\r\n{\"tags\":[\"a\"]}",
    b"HTTP/1.1 200 \xff\xfe\r\nX-\xff: \xfe\r\nContent-Length: 14\r\n\r\n{\"tags\":[\"a\"]}",
    b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"tags\":[\"a\"]}",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"tags\":[\"a\"]}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\nbad line without colon\r\n\r\n{\"tags\":[\"a\"]}",
]


@pytest.mark.parametrize("number", range(len(SMUGGLED)))
def test_odd_http(shelf, connect, number, within):
    shelf.always("GET", ".*", Answer(raw=[SMUGGLED[number]]))
    with within(3), connect(timeout=1) as registry:
        try:
            assert registry.tags("app") == ["a"]
        except RegistryError as error:
            assert str(error).isprintable() and len(str(error)) < 1500


def test_a_trailer_without_end(shelf, connect, within):
    def steps():
        yield b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\ne\r\n{"tags":["a"]}\r\n0\r\n'
        while True:
            yield b"X: y\r\n" * 1000

    shelf.always("GET", ".*", lambda _: Answer(raw=steps()))
    with within(8), connect(timeout=1) as registry:
        try:
            assert registry.tags("app") == ["a"]
        except RegistryError:
            pass


# ---- texts that are shown ----
@pytest.mark.parametrize("text", ["\ud800", "\x1b]0;t\x07", "a\u2028b", "\u202eabc", "\x00", "x" * 10_000, "é" * 600])
def test_texts_that_are_told(shelf, connect, text):
    body = encode({"errors": [{"code": "DENIED", "message": text, "detail": text}]})
    for status in (400, 401, 403, 404):
        shelf.on("GET", ".*", Answer(status, {"WWW-Authenticate": "Basic realm=x"} if status == 401 else {}, body))
        with connect() as registry, pytest.raises(RegistryError) as caught:
            registry.tags("app")
        assert str(caught.value).isprintable() and len(str(caught.value)) < 800
        str(caught.value).encode()


@pytest.mark.parametrize("place", ["http://127.0.0.1:1/\x1b[31m", "http://exa\u202emple.com/x", "http://ex\ud800.com/x", "//\x1b.example.com/", "http://" + "a" * 5000 + "/", "http://\xad.com/x", "http://xn--/x", "http://a" + ".b" * 200 + "/"], ids=lambda text: repr(text[:20]))
def test_places_that_are_told(shelf, connect, place):
    shelf.always("GET", ".*", Answer(raw=[b"HTTP/1.1 307 x\r\nContent-Length: 0\r\nLocation: " + place.encode("utf-8", "surrogatepass") + b"\r\n\r\n"]))
    with connect(timeout=1) as registry, pytest.raises(RegistryError) as caught:
        registry.tags("app")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1500
    str(caught.value).encode()


# ---- memory ----
MEMORY = """
import sys, layerstore
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) >> 10
registry = layerstore.Registry(sys.argv[1], retries=0, timeout=20, auth=("u", "p"))
import urllib3
before = peak()
with layerstore.Store(sys.argv[2], options={"max_tar_size": "64m"}) as store:
    for call in (lambda: registry.tags("app"), lambda: registry.manifest("app:1"), lambda: layerstore.Images(store).pull(sys.argv[3], registry=registry)):
        try: call()
        except layerstore.LayerStoreError as error: print(type(error).__name__)
print(peak() - before)
"""


def peak(shelf, room, reference):
    done = subprocess.run([sys.executable, "-c", MEMORY, shelf.url, str(room / "store"), reference], capture_output=True, text=True, timeout=50, env=os.environ)
    *errors, grown = done.stdout.split()
    return errors, int(grown), done.stderr


@pytest.mark.parametrize("what", ["bodies", "errors", "headers", "zstd windows", "bombs"])
def test_memory_against_what_has_no_end(shelf, room, what):
    def endless():
        while True:
            yield b" " * 65536

    put = shelf.put([BASE])
    if what == "bodies":
        shelf.always("GET", ".*", lambda _: Answer(200, {"Content-Type": KINDS[1]}, endless(), None))
    elif what == "errors":
        shelf.always("GET", ".*", lambda _: Answer(500, {}, endless(), None))
    elif what == "headers":
        shelf.always("GET", ".*", lambda _: Answer(raw=(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 60_000 + b"\r\n" if not n else b"X: " + b"y" * 60_000 + b"\r\n" for n in range(3000))))
    else:
        tar = tarkit.file("zeros", bytes(150 << 20)) + tarkit.end()
        level = ["--long=31", "-1"] if what == "zstd windows" else ["-1"]
        blob = subprocess.run(["zstd", "-qc", *level], input=tar, capture_output=True, check=True).stdout
        put = shelf.put([tar], tag="2", packed="zstd", blobs=[blob])
    errors, grown, told = peak(shelf, room, put.reference)
    assert grown < 100, told
    assert errors, told
