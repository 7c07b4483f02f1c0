"""Each fuzzer of the parsers, briefly: what `make fuzz` runs for minutes holds for some thousand inputs on any machine."""

import random
import sys
from pathlib import Path

import pytest

from layerstore.registry import headers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))
import parsers

INPUTS = 700


@pytest.mark.parametrize("name", parsers.TARGETS)
def test_parsers_keep_every_promise(name: str) -> None:
    target = parsers.TARGETS[name]
    kept = list(parsers.fuzz(target, [*target.seeds], random.Random(name), lambda number: number < INPUTS))
    assert name == "content_range" or kept, "no input reached a line that the seeds do not"


@pytest.mark.parametrize("name", parsers.TARGETS)
def test_odd_inputs_keep_every_promise(name: str) -> None:
    target = parsers.TARGETS[name]
    for word in (b"", b"\0", b"\xff", *target.words):
        for times in (1, 3, 4000 // max(1, len(word))):
            parsers.judge(target, word * times)
            parsers.judge(target, target.seeds[0] + word * times)


def test_a_broken_promise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = headers.content_range
    monkeypatch.setattr(headers, "content_range", lambda text: (7, 3, None) if "5-" in text and "/7" in text else sound(text))
    target = parsers.TARGETS["content_range"]
    with pytest.raises(parsers.BrokenPromise) as raised:
        list(parsers.fuzz(target, [*target.seeds], random.Random(1), lambda number: number < 100_000))
    assert b"5-" in raised.value.data and b"/7" in raised.value.data
    monkeypatch.undo()
    parsers.judge(target, raised.value.data)


def test_a_crash_is_kept_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(headers, "strong_etag", lambda text: "W/")
    assert parsers.main(str(tmp_path), "5", "headers") == 1
    kept = [*(tmp_path / "crashes" / "parsers_headers").iterdir()]
    assert len(kept) == 1 and str(kept[0]) in capsys.readouterr().err
