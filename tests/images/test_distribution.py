"""docker's notes of which blob holds which layer: read with suspicion, written as dockerd writes them."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore.ids import DiffID, Digest
from layerstore.layerdb.distribution import ENTRIES_LIMIT, Distribution, Entry

LAYER = DiffID("sha256:" + "1" * 64)
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def blob(n: int) -> Digest:
    return Digest(f"sha256:{n:064x}")


@pytest.fixture
def notes(tmp_path: Path) -> Distribution:
    return Distribution(str(tmp_path), "full")


def entries_path(tmp_path: Path) -> Path:
    return tmp_path / "distribution/v2metadata-by-diffid/sha256" / LAYER.encoded


def write_entries(tmp_path: Path, data: bytes) -> None:
    path = entries_path(tmp_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_nothing_is_known_and_nothing_made(notes: Distribution, tmp_path: Path) -> None:
    assert notes.known(LAYER) == []
    assert notes.diff_id_of(blob(1)) is None
    notes.sweep()
    assert list(tmp_path.iterdir()) == []


def test_a_note_is_dockers_file_with_two_keys_more(notes: Distribution, tmp_path: Path) -> None:
    notes.note(LAYER, blob(1), "docker.io/library/app", GZIP, 7)
    assert json.loads(entries_path(tmp_path).read_bytes()) == [
        {"Digest": blob(1), "SourceRepository": "docker.io/library/app", "HMAC": "", "MediaType": GZIP, "Size": 7}
    ]
    assert (tmp_path / "distribution/diffid-by-digest/sha256" / blob(1).encoded).read_bytes() == LAYER.encode()
    assert notes.known(LAYER) == [Entry(blob(1), "docker.io/library/app", GZIP, 7)]
    assert notes.diff_id_of(blob(1)) == LAYER


def test_newest_first_each_once_and_fifty_at_most(notes: Distribution) -> None:
    for n in range(ENTRIES_LIMIT + 5):
        notes.note(LAYER, blob(n), "a.b/c", GZIP, n)
    notes.note(LAYER, blob(20), "a.b/c", GZIP, 20)
    found = [entry.size for entry in notes.known(LAYER)]
    assert found == [20, *(n for n in range(ENTRIES_LIMIT + 4, 4, -1) if n != 20)]
    assert len(found) == ENTRIES_LIMIT
    notes.note(LAYER, blob(20), "a.b/other", GZIP, 20)
    assert [entry.repository for entry in notes.known(LAYER)][:2] == ["a.b/other", "a.b/c"]


def test_what_dockerd_noted_stays_as_it_is(notes: Distribution, tmp_path: Path) -> None:
    theirs = {"Digest": blob(1), "SourceRepository": "a.b/c", "HMAC": "f00", "New": [1]}
    write_entries(tmp_path, json.dumps([theirs]).encode())
    assert notes.known(LAYER) == [Entry(blob(1), "a.b/c", "", None)]
    notes.note(LAYER, blob(1), "a.b/c", GZIP, 7)
    assert json.loads(entries_path(tmp_path).read_bytes())[0] == theirs
    assert notes.known(LAYER) == [Entry(blob(1), "a.b/c", GZIP, 7), Entry(blob(1), "a.b/c", "", None)]


def test_what_dockerd_rewrote_gets_our_keys_again(notes: Distribution, tmp_path: Path) -> None:
    write_entries(tmp_path, json.dumps([{"Digest": blob(1), "SourceRepository": "a.b/c", "HMAC": ""}]).encode())
    notes.note(LAYER, blob(1), "a.b/c", GZIP, 7)
    assert notes.known(LAYER) == [Entry(blob(1), "a.b/c", GZIP, 7)]


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"null", b"7", b'"x"', b"[" * 100_000, b"\0" * 64, b"[" + b" " * (2 << 20) + b"]"])
def test_a_malformed_file_is_passed_over_and_replaced(notes: Distribution, tmp_path: Path, data: bytes) -> None:
    write_entries(tmp_path, data)
    assert notes.known(LAYER) == []
    notes.note(LAYER, blob(1), "a.b/c", GZIP, 7)
    assert [entry.digest for entry in notes.known(LAYER)] == [blob(1)]


GOOD = {"Digest": blob(9), "SourceRepository": "a.b/c", "HMAC": ""}


@pytest.mark.parametrize(
    "entry",
    [None, 1, "x", [], {}, GOOD | {"Digest": "sha256:12"}, GOOD | {"Digest": 7}, GOOD | {"Digest": None}, GOOD | {"SourceRepository": 7},
     GOOD | {"MediaType": []}, GOOD | {"Size": "7"}, GOOD | {"Size": -1}, GOOD | {"Size": True}, GOOD | {"Size": 1.5}, GOOD | {"Size": 1 << 63},
     GOOD | {"Digest": "../../etc/passwd"}, GOOD | {"Digest": str(blob(9)).upper()}],
)  # fmt: skip
def test_a_malformed_entry_is_passed_over(notes: Distribution, tmp_path: Path, entry: object) -> None:
    write_entries(tmp_path, json.dumps([GOOD, entry]).encode())
    assert notes.known(LAYER) == [Entry(blob(9), "a.b/c", "", None)]
    notes.note(LAYER, blob(1), "a.b/c", GZIP, 7)
    assert [found.digest for found in notes.known(LAYER)] == [blob(1), blob(9)]


@pytest.mark.parametrize("data", [b"", b"sha256:12", b"\0" * 71, b"x" * (2 << 20)])
def test_a_malformed_diff_id_is_unknown_and_replaced(notes: Distribution, tmp_path: Path, data: bytes) -> None:
    notes.note(LAYER, blob(1), "a.b/c", GZIP, 7)
    path = tmp_path / "distribution/diffid-by-digest/sha256" / blob(1).encoded
    path.write_bytes(data)
    assert notes.diff_id_of(blob(1)) is None
    notes.note(LAYER, blob(1), "a.b/c", GZIP, 7)
    assert notes.diff_id_of(blob(1)) == LAYER


def test_a_note_that_is_there_is_not_written_again(notes: Distribution, tmp_path: Path) -> None:
    notes.note(LAYER, blob(1), "a.b/c", GZIP, 7)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    notes.note(LAYER, blob(1), "a.b/c", GZIP, 7)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before


def test_other_algorithms_have_their_own_directory(notes: Distribution, tmp_path: Path) -> None:
    digest = Digest("sha512:" + "a" * 128)
    notes.note(LAYER, digest, "a.b/c", GZIP, 7)
    assert (tmp_path / "distribution/diffid-by-digest/sha512" / digest.encoded).is_file()
    assert notes.diff_id_of(digest) == LAYER


def test_sweep_removes_what_a_killed_process_left(notes: Distribution, tmp_path: Path) -> None:
    notes.note(LAYER, blob(1), "a.b/c", GZIP, 7)
    left = entries_path(tmp_path).with_name(f".tmp-{LAYER.encoded}7")
    left.write_bytes(b"half")
    notes.sweep()
    assert not left.exists()
    assert notes.known(LAYER)


def test_a_link_or_a_fifo_in_the_way_is_not_followed(notes: Distribution, tmp_path: Path) -> None:
    path = entries_path(tmp_path)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert notes.known(LAYER) == []


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3))
drawn_entries = st.fixed_dictionaries({}, optional={key: json_values | st.just(str(blob(3))) for key in ("Digest", "SourceRepository", "HMAC", "MediaType", "Size")})


@given(found=st.lists(drawn_entries | json_values, max_size=8))
def test_whatever_stands_there_a_note_can_be_made_and_is_first(tmp_path_factory: pytest.TempPathFactory, found: list[object]) -> None:
    top = tmp_path_factory.mktemp("drawn")
    write_entries(top, json.dumps(found).encode())
    notes = Distribution(str(top), "none")
    before = notes.known(LAYER)
    notes.note(LAYER, blob(1), "a.b/c", GZIP, 7)
    after = notes.known(LAYER)
    assert after[0] == Entry(blob(1), "a.b/c", GZIP, 7)
    assert after[1:] == before


def test_what_was_noted_is_taken_back(notes: Distribution, tmp_path: Path) -> None:
    notes.note(LAYER, blob(1), "a.b/c", GZIP, 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = Distribution(str(tmp_path), "none")
    again.note(LAYER, blob(1), "d.e/f", GZIP, 1)
    again.note(LAYER, blob(2), "a.b/c", GZIP, 2)
    again.take_back()
    again.take_back()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
