"""Bodies that are read whole have bounds; what is in them is taken for what it is, and told in one printable line."""

import copy
import json
import logging
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagekit import BASE, encode
from scripted import Answer
from shelf import KINDS

from layerstore import ImageError, NotInRegistryError, RegistryError

MIB = 1 << 20


def endless(count):
    """Blanks; how many blocks of them were taken is in `count`."""
    while True:
        count.append(1)
        yield b" " * 65536


# ---- without end ----
BOUNDS = {"manifest": (4 * MIB, ImageError), "tags": (4 * MIB, RegistryError), "referrers": (4 * MIB, RegistryError)}
CALLS = {
    "manifest": lambda registry: registry.manifest("app:1"),
    "tags": lambda registry: registry.tags("app"),
    "referrers": lambda registry: registry.referrers("app@sha256:" + "a" * 64),
}


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("what", BOUNDS)
def test_a_body_without_end_is_read_to_its_bound(shelf, connect, what, chunked, within):
    bound, kind = BOUNDS[what]
    count = []
    shelf.always("GET", ".*", lambda _: Answer(200, {"Content-Type": KINDS[0]}, endless(count), None, chunked=chunked))
    with within(10), connect(retries=2) as registry, pytest.raises(kind):
        CALLS[what](registry)
    assert len(shelf.requests) == 1
    assert len(count) * 65536 < bound + 16 * MIB


@pytest.mark.parametrize("what", BOUNDS)
def test_a_content_length_beyond_the_bound_is_refused_unread(shelf, connect, what, within):
    bound, kind = BOUNDS[what]
    shelf.always("GET", ".*", Answer(200, {"Content-Type": KINDS[0]}, [0.1, b" ", 30.0], bound + 1))
    with within(2), connect(retries=2) as registry, pytest.raises(kind):
        CALLS[what](registry)
    assert len(shelf.requests) == 1


def test_a_manifest_of_just_four_mebibytes_is_taken(shelf, connect, pull, check, unstored):
    put = shelf.put([BASE], edit=lambda document: document.update(annotations={"x": "y"}))
    size = 4 * MIB
    padded = put.manifest[:-1] + b" " * (size - len(put.manifest)) + b"}"
    digest = shelf.add_manifest(padded, tag="big")
    image = pull(f"{shelf.host}/app:big")
    check(image, put)
    assert connect().manifest("app:big")[0].digest == digest
    shelf.add_manifest(padded[:-1] + b" }", tag="bigger")
    with unstored(ImageError):
        pull(f"{shelf.host}/app:bigger", retries=2)


def test_a_config_beyond_its_bound_is_not_asked_for(shelf, pull, unstored):
    put = shelf.put([BASE], edit=lambda document: document["config"].update(size=8 * MIB + 1))
    with unstored(ImageError):
        pull(put.reference)
    assert shelf.paths() == ["GET /v2/app/manifests/1"]


def test_a_config_without_end(shelf, pull, unstored):
    put = shelf.put([BASE])
    count = []
    shelf.always("GET", "/v2/app/blobs/" + json.loads(put.manifest)["config"]["digest"], lambda _: Answer(200, {}, endless(count), None))
    with unstored(ImageError):
        pull(put.reference, retries=2)
    assert len(count) < 200


def test_an_error_without_end(shelf, connect, within):
    for status in (400, 403, 404, 500):
        count = []
        shelf.on("GET", ".*", lambda _, count=count, status=status: Answer(status, {}, endless(count), None))
        with within(5), connect() as registry, pytest.raises(RegistryError) as caught:
            registry.tags("app")
        assert caught.value.status == status
        assert len(count) * 65536 < 16 * MIB


def test_headers_without_end(shelf, connect, within):
    def lines():
        yield b"HTTP/1.1 200 OK\r\n"
        for number in range(200_000):
            yield b"X-%d: %s\r\n" % (number, b"y" * 400)

    shelf.always("GET", ".*", lambda _: Answer(raw=lines()))
    with within(5), connect() as registry, pytest.raises(RegistryError):
        registry.tags("app")
    shelf.forget()
    shelf.always("GET", ".*", lambda _: Answer(raw=[b"HTTP/1.1 200 OK\r\nX: ", *[b"y" * 65536] * 100]))
    with within(5), connect() as registry, pytest.raises(RegistryError):
        registry.tags("app")


def test_what_is_no_http(shelf, connect):
    for raw in ([b"\x00\x01\x02\x03\r\n\r\n"], [b"SSH-2.0-OpenSSH_9.2\r\n"], [b"HTTP/1.1 abc\r\n\r\n"], [b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello"],
                [b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nhello"], [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n"],
                [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n"], [b"HTTP/1.1 99999 OK\r\n\r\n"], [b"HTTP/9.9 200 OK\r\n\r\n"]):  # fmt: skip
        shelf.on("GET", ".*", Answer(raw=raw))
        with connect() as registry, pytest.raises(RegistryError):
            registry.tags("app")


# ---- errors ----
BODIES = {
    "one": ({"errors": [{"code": "DENIED", "message": "no"}]}, "DENIED", "no"),
    "several": ({"errors": [{"code": "ONE", "message": "first"}, {"code": "TWO", "message": "second"}]}, "ONE", "second"),
    "the first that is a code": ({"errors": [{"code": 5}, {"code": "lower"}, {"code": "X" * 65}, {"code": ""}, {"code": "GOOD_ONE", "message": "m"}]}, "GOOD_ONE", "m"),
    "no message": ({"errors": [{"code": "UNKNOWN"}]}, "UNKNOWN", ""),
    "null message": ({"errors": [{"code": "UNKNOWN", "message": None}]}, "UNKNOWN", ""),
    "no code": ({"errors": [{"message": "words"}]}, "", ""),
    "a number": ({"errors": 5}, "", ""),
    "a map": ({"errors": {"code": "X"}}, "", ""),
    "numbers": ({"errors": [1, None, "x", [[]]]}, "", ""),
    "not errors": ({"details": "no"}, "", ""),
    "a text": ("hello", "", ""),
    "a list": ([{"code": "X"}], "", ""),
}


@pytest.mark.parametrize("name", BODIES)
def test_error_bodies(shelf, connect, name):
    body, code, words = BODIES[name]
    shelf.always("GET", ".*", Answer(400, {}, encode(body)))
    with connect() as registry, pytest.raises(RegistryError) as caught:
        registry.tags("app")
    assert (caught.value.status, caught.value.code) == (400, code)
    assert words in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>secret page</html>", b"plain secret words", b"\xff\xfe secret", b"[" * 60_000 + b"secret", b'{"errors": [{"code": "DENIED", "message": "secret', b'"secret"', b'{"secret": 1}'], ids=lambda body: repr(body[:12]))
def test_other_bodies_are_not_quoted(shelf, connect, body):
    shelf.always("GET", ".*", Answer(418, {}, body))
    with connect() as registry, pytest.raises(RegistryError) as caught:
        registry.tags("app")
    assert "secret" not in str(caught.value) and caught.value.code == ""


def test_messages_are_one_printable_line_of_at_most_500(shelf, connect):
    nasty = "\x1b[31mred\x1b[0m\r\nTwo\tthree\x00\x9b\u202eevil\u2028line " + "x" * 5000
    shelf.always("GET", ".*", Answer(404, {}, encode({"errors": [{"code": "NAME_UNKNOWN", "message": nasty}] * 3})))
    with connect() as registry, pytest.raises(NotInRegistryError) as caught:
        registry.tags("app")
    text = str(caught.value)
    assert text.isprintable() and "\u202e" not in text
    assert "red" in text
    assert len(text) < 500 + 200
    assert caught.value.code == "NAME_UNKNOWN"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(document=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["errors", "code", "message", "tags", "manifests", "mediaType", "config", "layers", "schemaVersion", "digest", "size", "token"]), inner, max_size=4), max_leaves=12), status=st.sampled_from([200, 400, 404]))  # fmt: skip
def test_drawn_documents_end_as_errors_of_ours_or_lists(shelf, connect, document, status):
    shelf.forget()
    shelf.always("GET", ".*", Answer(status, {"Content-Type": "application/json"}, json.dumps(document).encode()))
    registry = shelf.__dict__.setdefault("drawn", connect())
    for kind, call in ((RegistryError, CALLS["tags"]), (RegistryError, CALLS["referrers"]), ((RegistryError, ImageError), CALLS["manifest"])):
        try:
            assert isinstance(call(registry), (list, tuple))
        except kind as error:
            assert str(error).isprintable() and len(str(error)) < 1500


def test_errors_pickle_and_copy(shelf, connect):
    shelf.always("GET", ".*", Answer(404, {}, encode({"errors": [{"code": "NAME_UNKNOWN", "message": "no"}]})))
    with connect() as registry, pytest.raises(NotInRegistryError) as caught:
        registry.tags("app")
    for again in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value), copy.deepcopy(caught.value)):
        assert type(again) is NotInRegistryError
        assert (str(again), again.status, again.code, again.host) == (str(caught.value), 404, "NAME_UNKNOWN", shelf.host)


def test_the_text_of_an_error(shelf, connect):
    with connect() as registry, pytest.raises(NotInRegistryError) as caught:
        registry.manifest("app:1")
    assert str(caught.value) == f"GET http://{shelf.host}/v2/app/manifests/1: 404 MANIFEST_UNKNOWN: manifest unknown"
    assert isinstance(caught.value, LookupError)


# ---- warnings ----
def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_warning_is_logged_once(shelf, connect, caplog):
    shelf.put([BASE])
    shelf.always("GET", ".*", Answer(200, {"Warning": r'299 - "this \"registry\" goes \\ away"'}, b'{"tags":[]}'))
    with caplog.at_level(logging.DEBUG), connect() as registry:
        for _ in range(3):
            registry.tags("app")
        assert len([text for text in warned(caplog) if r'this "registry" goes \ away' in text]) == 1
        with connect() as other:
            other.tags("app")
    assert len([text for text in warned(caplog) if r'this "registry" goes \ away' in text]) == 2


def test_warnings_are_printable_and_bounded(shelf, connect, caplog):
    nasty = '299 - "\x1b]0;title\x07' + "w" * 9000 + '"'
    others = [("Warning", '199 - "other"'), ("Warning", "299 nonsense"), ("Warning", '299 - "open'), ("Warning", "")]
    shelf.always("GET", ".*", Answer(200, [("Warning", nasty), *others, ("Warning", '299 host "good one"')], b'{"tags":[]}'))
    with caplog.at_level(logging.DEBUG), connect() as registry:
        registry.tags("app")
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "\x1b" not in text and "\x07" not in text
    assert all(len(record.getMessage()) < 4096 + 300 for record in caplog.records)
