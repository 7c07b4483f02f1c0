"""JSON as Go reads it: what a document of an archive says to dockerd, or an ImageError.

Python's json takes more than JSON (NaN, half of a surrogate pair), and takes the last of two equal keys in silence.
Go matches the keys of a struct in any case: "config" is "Config" to it. Tables say which fields a document has and of
which kind each is; what no table names is not looked at, as in Go. Memory follows the bytes: a document whose values
would take much more than its text is refused before it is parsed.
"""

from __future__ import annotations

import datetime
import itertools
import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, ParamSpec, TypeVar

from layerstore.errors import ImageError

# Values in one document. Each takes some hundred bytes of memory; the largest document seen has some thousands.
VALUES_LIMIT = 100_000
_FEW = 2000
# Bytes of a document's text in memory. One character beyond U+FFFF makes four bytes of each.
_TEXT_LIMIT = 16 << 20
# A string, or what stands before a value: possessive, so that it keeps no way back in memory.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[,\[{]', re.S)
_SURROGATE = re.compile("[\ud800-\udfff]")
_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.\d+)?(?:Z|[+-](\d\d):(\d\d))", re.A)

P = ParamSpec("P")
T = TypeVar("T")

# Looks at a value, and gives it with the keys of structs as the tables spell them.
Kind = Callable[[Any, str], Any]
Table = Mapping[str, Kind]


def count_values(data: bytes) -> int:
    """Return about how many values a document has; the count ends behind VALUES_LIMIT."""
    found = sum(map(data.count, (b",", b"[", b"{")))
    if found < _FEW:
        return found
    tokens = (1 for found in _TOKEN.finditer(data) if len(found[0]) == 1)
    return sum(itertools.islice(tokens, VALUES_LIMIT + 1))


def or_none(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Return what a reader of this module returns; None in the place of its ImageError, which may quote a secret."""
    try:
        return read(*args, **kwargs)
    except ImageError:
        return None


def parse(data: bytes, what: str) -> Any:
    """Read one JSON document. Raises ImageError: it is none, other readers see another, or it takes too much memory."""
    if count_values(data) > VALUES_LIMIT:
        raise ImageError(f"{what} is not valid JSON, or has more than {VALUES_LIMIT} values")

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) != len(found):
            seen: set[str] = set()
            twice = next(key for key, _ in found if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ImageError(f"{what} has the key {twice[:100]!r} twice")
        return made

    try:
        text = data.decode("utf-8")
        if sys.getsizeof(text) > _TEXT_LIMIT:
            raise ImageError(f"{what} takes more than {_TEXT_LIMIT} bytes of memory")
        found = json.loads(text, object_pairs_hook=pairs, parse_constant=_refuse, parse_float=_number)
    except (ValueError, RecursionError) as err:
        raise ImageError(f"{what} is not valid JSON: {err}") from None
    if b"\\u" in data or b"\\U" in data:
        _check_texts(found, what)
    return found


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _number(text: str) -> float:
    found = float(text)
    if found in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is out of range")
    return found


def _check_texts(found: Any, what: str) -> None:
    """Refuse half of a surrogate pair, in keys and values."""
    left = [found]
    while left:
        at = left.pop()
        if isinstance(at, dict):
            left += at.keys()
            left += at.values()
        elif isinstance(at, list):
            left += at
        elif isinstance(at, str) and _SURROGATE.search(at):
            raise ImageError(f"{what} is not valid JSON: it has half of a character in {at[:40]!a}")


def encode(document: Any, what: str) -> bytes:
    """Write JSON that all can read. Raises ImageError: a value has no place in JSON."""
    try:
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")
    except (ValueError, TypeError, RecursionError) as err:
        raise ImageError(f"{what} cannot be written as JSON: {err}") from None


# ---- kinds of values ---------------------------------------------------------------------------
# null is of every kind, and says nothing: Go leaves the field as it is.


class WrongTypeError(ImageError):
    """A value of another kind than its field has."""

    def __init__(self, what: str, why: str) -> None:
        """what   the document, and the field in it"""
        super().__init__(f"{what} has the wrong type: {why}")
        self.what = what


def _wrong(what: str, wanted: str) -> ImageError:
    return WrongTypeError(what, f"it must be {wanted}")


def _only(kind: type, wanted: str) -> Kind:
    """Make the kind of the values of one type."""

    def check(found: Any, what: str) -> Any:
        if found is not None and not isinstance(found, kind):
            raise _wrong(what, wanted)
        return found

    return check


text, flag = _only(str, "a text"), _only(bool, "true or false")
_list, _object = _only(list, "a list"), _only(dict, "an object")


def int64(found: Any, what: str) -> Any:
    """Take a whole number of 64 bits, written without fraction and exponent."""
    if found is not None and (not isinstance(found, int) or isinstance(found, bool)):
        raise _wrong(what, "a whole number")
    if found is not None and not -(1 << 63) <= found < 1 << 63:
        raise ImageError(f"{what} is out of range: {found}")
    return found


def time(found: Any, what: str) -> Any:
    """Take a time of RFC 3339, one that there is."""
    if text(found, what) is None:
        return None
    parts = _TIME.fullmatch(found)
    sound = bool(parts)
    if parts:
        year, month, day, hour, minute, second, *offset = (int(part or 0) for part in parts.groups())
        try:
            datetime.datetime(year or 4, month, day, hour, minute, second)      # the year 0 is a leap year
        except ValueError:
            sound = False
        sound = sound and offset[0] < 24 and offset[1] < 60
    if not sound:
        raise ImageError(f"{what}: {found[:40]!r} is not a time")
    return found


def anything(found: Any, what: str) -> Any:
    """Take what comes."""
    return found


def list_of(kind: Kind, of: str = "") -> Kind:
    """Make the kind of lists.

    of   what its items are called in an error
    """
    called = of or ("texts" if kind is text else "such")

    def check(found: Any, what: str) -> Any:
        if _list(found, what) is None:
            return None
        made = []
        for number, item in enumerate(found):
            try:
                made.append(kind(item, f"{what}[{number}]"))
            except WrongTypeError as err:
                if err.what != f"{what}[{number}]":
                    raise
                raise WrongTypeError(what, f"it is not a list of {called}") from None
        return made

    return check


def map_of(kind: Kind) -> Kind:
    """Make the kind of objects with any keys."""

    def check(found: Any, what: str) -> Any:
        if _object(found, what) is None:
            return None
        return {key: kind(value, f"{what}[{key[:40]!a}]") for key, value in found.items()}

    return check


def words(found: Any, what: str) -> Any:
    """Take a list of texts, or one text."""
    return [found] if isinstance(found, str) else list_of(text)(found, what)


def _fold(key: str) -> str:
    """Fold a key as Go does: in any case; the Kelvin sign and the long s are letters, too."""
    return key.lower().replace("\u017f", "s")


def struct(table: Table, *, exact: bool = False) -> Kind:
    """Make the kind of objects with these fields. What else is in them is left out; null is left out, too.

    exact   refuse keys in another case, as the document is kept as it is, for readers that do not know them
    """
    names = {_fold(name): name for name in table}

    def check(found: Any, what: str) -> Any:
        if _object(found, what) is None:
            return None
        made: dict[str, Any] = {}
        spelled: dict[str, str] = {}
        for key, value in found.items():
            name = key if key in table else names.get(_fold(key))
            if name is None:
                continue
            if name in spelled:
                raise ImageError(f"{what} has {name} twice, as {spelled[name]!r} and as {key!r}")
            spelled[name] = key
            if exact and key != name:
                raise ImageError(f"{what}: {key[:40]!a} is not spelled as docker spells it: {name}")
            taken = table[name](value, f"{what}: {name}" if ": " not in what else f"{what}.{name}")
            if taken is not None:
                made[name] = taken
        return made

    return check


def parse_struct(data: bytes, table: Table, what: str, *, exact: bool = False) -> dict[str, Any]:
    """Read a document that is an object with these fields. Raises ImageError."""
    made: dict[str, Any] = struct(table, exact=exact)(parse_object(data, what), what)
    return made


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """Read a document that is an object. Raises ImageError."""
    found = parse(data, what)
    if not isinstance(found, dict):
        raise ImageError(f"{what} is not a JSON object")
    return found


def top_keys(data: bytes, what: str) -> set[str]:
    """Return the keys of a document, folded; none if it is no object. Raises ImageError."""
    found = parse(data, what)
    return {_fold(key) for key in found} if isinstance(found, dict) else set()
