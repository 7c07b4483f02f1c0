"""Headers that servers write, and headers that they should not: each parser gives a checked value, or says that there is none."""

import calendar
import time

import pytest

from layerstore.registry import headers
from layerstore.registry.headers import Challenge

BEARER = 'Bearer realm="https://auth.example.com/token",service="registry.example.com",scope="repository:a/b:pull,push"'
AS_READ = Challenge("bearer", {
    "realm": "https://auth.example.com/token", "service": "registry.example.com", "scope": "repository:a/b:pull,push",
})  # fmt: skip


@pytest.mark.parametrize(("written", "read"), [
    ([BEARER], [AS_READ]),
    ([], []),
    ([""], []),
    (["Basic"], [Challenge("basic", {})]),
    (['Basic realm="a"', BEARER], [Challenge("basic", {"realm": "a"}), AS_READ]),
    (['Basic realm="a", ' + BEARER], [Challenge("basic", {"realm": "a"}), AS_READ]),
    ([BEARER + ', Basic realm="a"'], [AS_READ, Challenge("basic", {"realm": "a"})]),
    (["NEGOTIATE YWJj==, Basic Realm=x"], [Challenge("negotiate", {}), Challenge("basic", {"realm": "x"})]),
    (["Negotiate, bAsIc REALM = x ,, charset=UTF-8"], [Challenge("negotiate", {}), Challenge("basic", {"realm": "x", "charset": "UTF-8"})]),
    (['Bearer realm="a, Basic realm=b"'], [Challenge("bearer", {"realm": "a, Basic realm=b"})]),
    ([r'Bearer realm="say \"x\" \\ \,"'], [Challenge("bearer", {"realm": r'say "x" \ ,'})]),
    (['Bearer realm=""'], [Challenge("bearer", {"realm": ""})]),
    (['Bearer\trealm="a"'], [Challenge("bearer", {"realm": "a"})]),
    (['Bearer realm="a" service="b"'], [Challenge("bearer", {"realm": "a", "service": "b"})]),
    (["Bearer realm=https://auth.example.com/token,service=x"], [Challenge("bearer", {"realm": "https://auth.example.com/token", "service": "x"})]),
    # malformed: what stands before the fault counts
    (['Bearer realm="a'], [Challenge("bearer", {})]),
    (['Bearer realm="a",scope="b'], [Challenge("bearer", {"realm": "a"})]),
    (['Bearer realm="a\\'], [Challenge("bearer", {})]),
    (["realm=a"], []),
    (['"Basic"'], []),
    (["Basic/ realm=a"], []),
    ([", ,\t, "], []),
    (["\0"], []),
])  # fmt: skip
def test_challenges(written: list[str], read: list[Challenge]) -> None:
    assert headers.challenges(written) == read


def test_challenges_of_more_than_16_kib_are_none() -> None:
    fitting = 'Basic realm="' + "a" * (headers.CHALLENGE_LIMIT - 14) + '"'
    assert len(fitting) == headers.CHALLENGE_LIMIT and len(headers.challenges([fitting])) == 1
    assert headers.challenges([fitting, "B"]) == []


@pytest.mark.parametrize("hostile", [
    "Bearer " + "a" * 16_000, "Bearer " + " " * 16_000 + "!", "a " * 8_000, 'a="' * 4_000, "Bearer a=" + "\\" * 16_000,
    'Bearer a="' + "\\" * 16_000, "a," * 8_000, "Bearer " + "=" * 16_000, "Bearer a" + " " * 16_000 + "=", "Bearer a=b " * 1_400,
])  # fmt: skip
def test_challenges_take_no_long_time(hostile: str) -> None:
    began = time.process_time()
    headers.challenges([hostile])
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(("text", "found"), [
    ("bytes 0-0/1", (0, 0, 1)),
    ("bytes 5-9/10", (5, 9, 10)),
    (" Bytes  5-9/* ", (5, 9, None)),
    ("bytes 0-9223372036854775806/9223372036854775807", (0, (1 << 63) - 2, (1 << 63) - 1)),
    ("bytes 0-9223372036854775808/*", None),
    ("bytes 0-1/9223372036854775808", None),
    ("bytes 5-4/10", None),
    ("bytes 5-10/10", None),
    ("bytes */10", None),
    ("bytes 5-/10", None),
    ("bytes -5/10", None),
    ("bytes=5-9/10", None),
    ("items 5-9/10", None),
    ("bytes 5-9", None),
    ("bytes 0-4,5-9/10", None),
    ("bytes ٥-9/10", None),
    ("bytes 0-1/10\n", None),
    ("", None),
])  # fmt: skip
def test_content_range(text: str, found: tuple[int, int, int | None] | None) -> None:
    assert headers.content_range(text) == found


@pytest.mark.parametrize(("text", "end"), [
    ("0-0", 0), ("0-1048575", 1048575), ("bytes=0-9", 9), (" 0-9 ", 9), ("1-9", None), ("0-", None), ("", None), ("-1", None),
    ("0-9/10", None), ("0-99999999999999999999", None), ("0-9223372036854775808", None), ("0-٩", None), ("00-9", None),
])  # fmt: skip
def test_upload_range(text: str, end: int | None) -> None:
    assert headers.upload_range(text) == end


@pytest.mark.parametrize(("text", "target"), [
    ('</v2/a/tags/list?n=2&last=b>; rel="next"', "/v2/a/tags/list?n=2&last=b"),
    ("</v2/a>;rel=next", "/v2/a"),
    ("</v2/a> ; Rel = NEXT", "/v2/a"),
    ('</v2/a>; rel="prev next"', "/v2/a"),
    ('<https://x/>; title="a, b; rel=next"; rel="next"', "https://x/"),
    ('</one>; rel="prev", </two>; rel="next"', "/two"),
    ('</one>; rel=prev; rel=next, </two>; rel="first"', ""),
    ('</one>, </two>; rel="next"', "/two"),
    ('</a,b>; rel="next"', "/a,b"),
    ('</one>; rel="nextish"', ""),
    ('/v2/a; rel="next"', ""),
    ('</v2/a; rel="next"', ""),
    ('</one>; rel="next', ""),
    ("", ""),
    ('</v2/a>; rel="next"' + " " * 17_000, ""),
])  # fmt: skip
def test_next_link(text: str, target: str) -> None:
    assert headers.next_link(text) == target


NOW = float(calendar.timegm((1994, 11, 6, 8, 49, 37)))


@pytest.mark.parametrize(("text", "seconds"), [
    ("0", 0.0), ("120", 120.0), (" 7 ", 7.0), ("0" * 50 + "7", 7.0), ("9" * 5_000, 1e12), ("-1", None), ("1.5", None), ("", None), ("soon", None), ("٣", None),
    ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0), ("Sunday, 06-Nov-94 08:49:47 GMT", 10.0), ("Sun Nov  6 08:49:47 1994", 10.0),
    ("Sun, 06 Nov 1994 08:49:27 GMT", 0.0), ("Sun, 06 Nov 1994 10:49:47 +0200", 10.0), ("Sun, 99 Nov 1994 08:49:47 GMT", None), ("Sun, 06 Foo 1994 08:49:47 GMT", None),
    ("Sun, 06 Nov 99999999999999999999 08:49:47 GMT", None), ("Sun, 06 Nov 1994 08:49:47 +99999999999999999999", None),
])  # fmt: skip
def test_retry_after(text: str, seconds: float | None) -> None:
    assert headers.retry_after(text, NOW) == seconds


@pytest.mark.parametrize(("written", "read"), [
    (['299 - "this image is old"'], ["this image is old"]),
    ([r'299 - "say \"no\" to \\"'], ['say "no" to \\']),
    (['299 - "one"', '299 - "two", 299 - "three"'], ["one", "two", "three"]),
    (['299 registry.example.com "one" "Sun, 06 Nov 1994 08:49:37 GMT"'], ["one"]),
    (['110 - "stale"', '299 - "two"'], ["two"]),
    (['299 - "\x1b[31mred\x07\r\n two"'], ["[31mred two"]),
    (['299 - "' + "bäh".encode().decode("latin-1") + '"'], ["bäh"]),
    (['299 - "ä"'], ["ä"]),
    (['299 - "cut'], []),
    (["299 - unquoted"], []),
    (['299 - ""'], []),
    ([""], []),
])  # fmt: skip
def test_warnings(written: list[str], read: list[str]) -> None:
    assert headers.warnings(written) == read


def test_warnings_of_one_answer_have_4096_bytes_at_most() -> None:
    found = headers.warnings([f'299 - "{"ä" * 1500}"'] * 3)
    assert [len(text.encode()) for text in found] == [3000, 1096]


@pytest.mark.parametrize(("text", "etag"), [
    ('"abc"', '"abc"'), (' "a b"', ""), ('""', '""'), ('W/"abc"', ""), ("abc", ""), ("", ""), ('"a"b"', ""), ('"a\n"', ""), ('"' + "a" * 2000 + '"', ""),
])  # fmt: skip
def test_strong_etag(text: str, etag: str) -> None:
    assert headers.strong_etag(text) == etag


@pytest.mark.parametrize(("text", "kind"), [
    ("application/json", "application/json"), (" Application/JSON ; charset=utf-8", "application/json"), ("text", ""), ("", ""), ("a/b/c", ""), ("a/b\r\nX: y", ""),
    ("application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.index.v1+json"),
])  # fmt: skip
def test_media_type(text: str, kind: str) -> None:
    assert headers.media_type(text) == kind


@pytest.mark.parametrize(("body", "found"), [
    (b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}', ("MANIFEST_UNKNOWN", "manifest unknown")),
    (b'{"errors":[{"code":"DENIED"}]}', ("DENIED", "")),
    (b'{"errors":[{"message":"one"},{"code":"bad code"},{"code":"B","message":"two"},{"code":"C","message":"one"}]}', ("B", "one; two")),
    (b'{"errors":[{"code":7,"message":8},null,"x",{"code":"UNKNOWN","message":"\\u001b[31m a\\r\\n b\\u202e"}]}', ("UNKNOWN", "[31m a b")),
    (b'{"errors":[{"code":"' + b"A" * 64 + b'"}]}', ("A" * 64, "")),
    (b'{"errors":[{"code":"' + b"A" * 65 + b'"}]}', ("", "")),
    (b'{"errors":{"code":"A"}}', ("", "")),
    (b'[{"code":"A"}]', ("", "")),
    (b'{"message":"not so"}', ("", "")),
    (b"<html>not found</html>", ("", "")),
    (b"[" * 60_000, ("", "")),
    (b'{"errors":[' + b"{}," * 20_000 + b"{}]}", ("", "")),
    (b"\xff\xfe", ("", "")),
    (b"", ("", "")),
])  # fmt: skip
def test_errors(body: bytes, found: tuple[str, str]) -> None:
    assert headers.errors(body) == found


def test_a_message_is_cut_at_500_characters() -> None:
    code, message = headers.errors(b'{"errors":[{"message":"' + b"x" * 400 + b'"},{"message":"' + b"y" * 400 + b'"}]}')
    assert code == "" and message == "x" * 400 + "; " + "y" * 98
