"""split_text.c: base64 as Python's, JSON text written as Go writes it and read as any JSON may be."""

import base64
import json
import re
import weakref
from typing import Any

import door
import pytest
from hypothesis import given
from hypothesis import strategies as st

NAMES = {"type", "size", "name", "name_raw", "payload"}
LONE = re.compile("[\ud800-\udfff]")


# ---- base64 -------------------------------------------------------------------------------------
def encode(data: bytes) -> bytes:
    room = door.lib.lay_base64_room(len(data))
    out = door.ffi.new("char[]", room or 1)
    door.lib.lay_base64_encode(door.ffi.new("uint8_t[]", data or b"\0"), len(data), out)
    return door.ffi.buffer(out, room)[:]


def decode(text: bytes) -> bytes | None:
    out, n = door.ffi.new("uint8_t[]", len(text) // 4 * 3 or 1), door.ffi.new("size_t *")
    good = door.lib.lay_base64_decode(door.ffi.new("char[]", text), len(text), out, n)
    return door.ffi.buffer(out, n[0])[:] if good else None


@given(st.binary(max_size=200))
def test_base64_is_pythons_and_comes_back(data: bytes) -> None:
    assert encode(data) == base64.b64encode(data)
    assert decode(encode(data)) == data


@pytest.mark.parametrize(
    "text",
    [
        b"A", b"AA", b"AAA", b"=AAA", b"A===", b"====", b"AA=A", b"AAA=AAAA", b"AAAAA===", b"AA-_", b"A A=", b"AAA\n",
        b"\xc3\xa4AA", b"AAA\0", b"\x80AAA", b"AAAA\xff==="]
)
def test_what_is_not_base64_is_refused(text: bytes) -> None:
    assert decode(text) is None


@given(st.text("AQgw/+=-_\n", max_size=12))
def test_base64_takes_whole_groups_and_nothing_else(text: str) -> None:
    good = re.fullmatch("(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", text)
    assert decode(text.encode()) == (base64.b64decode(text) if good else None)


# ---- writing ------------------------------------------------------------------------------------
def escape(text: str) -> str:
    raw = text.encode()
    out = door.ffi.new("char[]", 6 * len(raw) or 1)
    n = door.lib.lay_json_escape(door.ffi.new("char[]", raw), len(raw), out)
    assert n <= 6 * len(raw)
    return door.ffi.buffer(out, n)[:].decode()


def gos(text: str) -> str:
    """What Go's encoding/json writes between the quotes: json.dumps, and HTML's and JavaScript's characters."""
    plain = json.dumps(text, ensure_ascii=False)[1:-1]
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", plain)


def test_escapes_of_the_checklist() -> None:
    assert (
        escape('a<b>&c\u2028"\\\t\x01\x7f\x08\x0cé') == r"a\u003cb\u003e\u0026c\u2028\"\\\t\u0001" + "\x7f" + r"\b\fé"
    )


@given(st.text(st.characters(codec="utf-8")))
def test_every_text_is_escaped_as_go_does_and_comes_back(text: str) -> None:
    assert escape(text) == gos(text)
    assert unescape(escape(text)) == text


def test_every_ascii_character_is_escaped_as_go_does() -> None:
    for code in range(128):
        assert escape(chr(code)) == gos(chr(code))


# ---- reading ------------------------------------------------------------------------------------
def unescape(text: str) -> str:
    undone = unescaped(text)
    assert undone is not None, text
    return undone


def unescaped(text: str) -> str | None:
    """None: refused. Both memories end where the contract says, for the address sanitizer to see."""
    raw = text.encode()
    source, out, n = door.ffi.new("char[]", len(raw) or 1), door.ffi.new("char[]", len(raw) or 1), door.ffi.new("size_t *")
    door.ffi.memmove(source, raw, len(raw))
    if not door.lib.lay_json_unescape(source, len(raw), out, n):
        return None
    assert n[0] <= len(raw)
    return door.ffi.buffer(out, n[0])[:].decode()


@given(
    st.lists(
        st.sampled_from(
            [
                "a", "é", "\U0001f600", r"\n", r"\/", r"\ud83d", r"\uDE00", r"\ud83d\ude00", r"\u0041", r"\uFFFD",
                r"\\", r"\u0000"]))
)
def test_escapes_are_undone_as_json_has_them_and_lone_surrogates_become_no_character(parts: list[str]) -> None:
    text = "".join(parts)
    assert unescape(text) == LONE.sub("\ufffd", json.loads(f'"{text}"'))


@pytest.mark.parametrize("text", [r"\u", r"\u12", r"\ud83d\u12", r"\uzzzz", r"\u00g0", r"\u" * 1000, "a\\"])
def test_a_bad_hexadecimal_escape_is_refused(text: str) -> None:
    assert unescaped(text) is None


pieces = st.sampled_from(["a", "é", "\U0001f600", "u", "0", "f", "00", "d8", "12", "\\\\", r"\u", r"\n", r"\x", r"\U", r"\ud83d", r"\u0041", '"', "\n"])


@given(st.lists(pieces, max_size=12))
def test_a_string_is_taken_when_json_takes_it_and_fits_the_room_of_its_text(parts: list[str]) -> None:
    text = "".join(parts)
    try:
        wanted = json.loads(f'{{"name":"{text}"}}')
    except ValueError:
        assert parse(f'{{"name":"{text}"}}'.encode())[0] != door.lib.LAY_JSON_OK
    else:
        assert parsed(f'{{"name":"{text}"}}')["name"] == LONE.sub("\ufffd", wanted["name"])


@given(st.binary(max_size=8))
def test_utf8_is_valid_when_python_decodes_it(data: bytes) -> None:
    try:
        data.decode()
        wanted = True
    except UnicodeDecodeError:
        wanted = False
    assert door.lib.lay_utf8_valid(door.ffi.new("char[]", data), len(data)) == wanted


@pytest.mark.parametrize(
    "data",
    [
        b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf",
        b"\xf0\x80\x80\x80", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\x80", b"\xc2",
        b"\xe2\x82", b"\xf0\x9f\x98"]
)
def test_overlong_surrogate_cut_and_too_large_sequences_are_no_utf8(data: bytes) -> None:
    assert not door.lib.lay_utf8_valid(door.ffi.new("char[]", data), len(data))
    assert not door.lib.lay_utf8_valid(door.ffi.new("char[]", b"a" + data + b"a"), len(data) + 2)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x00\x7f", b"\xc2\x80", b"\xe0\xa0\x80", b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xf0\x90\x80\x80",
        b"\xf4\x8f\xbf\xbf"]
)
def test_the_ends_of_each_range_are_utf8(data: bytes) -> None:
    assert door.lib.lay_utf8_valid(door.ffi.new("char[]", data), len(data))


alive: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # the text that a line points into


def parse(text: bytes) -> tuple[int, Any, int]:
    """(result, line, bytes used). The text ends where its memory does, for the address sanitizer to see."""
    ffi = door.ffi
    memory = ffi.new("char[]", len(text) or 1)
    ffi.memmove(memory, text, len(text))
    line, used = ffi.new("lay_json_line *"), ffi.new("size_t *")
    alive[line] = memory
    return door.lib.lay_json_object(memory, len(text), line, used), line, used[0]


def parsed(text: str) -> dict[str, Any]:
    """The five fields of an object; strings unescaped, None where there is none."""
    result, line, used = parse(text.encode())
    assert (result, used) == (door.lib.LAY_JSON_OK, len(text.encode()))

    def string(at: Any, n: int) -> str | None:
        return None if at == door.ffi.NULL else unescape(door.ffi.buffer(at, n)[:].decode())

    return {
        "type": line.type, "size": line.size, "name": string(line.name, line.name_len),
        "name_raw": string(line.name_raw, line.name_raw_len),
        "payload": string(line.payload, line.payload_len),
    }


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(
        st.characters(codec="utf-8"), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8
)
strings = st.none() | st.text(st.characters(codec="utf-8"), max_size=8)
numbers = st.integers(-(2**63) + 1, 2**63 - 1)
known = st.fixed_dictionaries(
    {}, optional={"type": numbers, "size": numbers, "name": strings, "name_raw": strings, "payload": strings}
)
unknown = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=5).filter(lambda key: key.lower() not in NAMES), values, max_size=3
)


@given(known, unknown, st.randoms(use_true_random=False), st.booleans(), st.sampled_from([None, 0, 1, "\t"]))
def test_any_json_object_is_read_whatever_its_order_its_blanks_and_its_other_keys(
    fields: dict[str, Any], others: dict[str, Any], random: Any, ascii_only: bool, indent: Any
) -> None:
    pairs = [*fields.items(), *others.items()]
    random.shuffle(pairs)
    text = json.dumps(dict(pairs), ensure_ascii=ascii_only, indent=indent)
    wanted = {"type": 0, "size": 0, "name": None, "name_raw": None, "payload": None} | fields
    assert parsed(text) == wanted
    assert parse(f" \n{text}{{".encode())[2] == len(text.encode()) + 2


def test_an_object_cut_anywhere_asks_for_more() -> None:
    text = json.dumps(
        {"type": 2, "x": [1, {"a": 'b\\"'}, None], "payload": "QQ==", "size": 7, "y": True, "name": None}
    ).encode()
    for cut in range(len(text)):
        assert parse(text[:cut])[0] == door.lib.LAY_JSON_MORE, text[:cut]


@pytest.mark.parametrize(
    "text",
    [
        '{"TYPE":1,"Size":5,"NAME":"a","Name_Raw":"b","pAYLOAD":"c"}',
        '{"type":9,"size":5,"type":1,"name":"x","name":"a","name_raw":"b","payload":"c"}',
        '{"type":1,"size":5,"name":"a","name_raw":"b","payload":"c","name":null,"size":null}']
)
def test_keys_have_no_case_the_last_of_two_wins_and_null_changes_nothing(text: str) -> None:
    assert parsed(text) == {"type": 1, "size": 5, "name": "a", "name_raw": "b", "payload": "c"}


@pytest.mark.parametrize(
    "text",
    [
        "x", "[", "]", "}", "1", "null", '"a"', "{,}", "{1:2}", "{'a':1}", '{"a"}', '{"a" 1}', '{"a":}', '{"a":,}',
        '{"a":1,}', '{"a":1 "b":2}', '{"a":1}}', '{"type":"1"}', '{"type":1.5}', '{"type":1e3}', '{"size":x}',
        '{"size":-}', '{"size":9223372036854775808}', '{"size":true}', '{"payload":5}', '{"payload":[]}', '{"name":{}}',
        '{"name":nul!}', '{"a":"\\x"}', '{"a":"\x01"}', '{"a":"\n"}', '{"a\\q":1}', '{"a":]}', "{{"]
)
def test_what_is_no_json_object_of_ours_is_bad(text: str) -> None:
    result, _, used = parse(text.encode())
    assert result == door.lib.LAY_JSON_BAD or (result == door.lib.LAY_JSON_OK and text[used:] == "}")


@given(st.binary(max_size=40))
def test_no_bytes_make_the_parser_fall_over(data: bytes) -> None:
    for text in (data, b"{" + data, b'{"name":"' + data, b'{"x":' + data):
        result, _, used = parse(text)
        assert result != door.lib.LAY_JSON_OK or 0 < used <= len(text)
