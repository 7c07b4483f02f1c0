"""Mirrors that do whatever is drawn: cut, lie, stall no longer than they may. The image comes all the same, from the registry at last."""

import random
import re
from dataclasses import dataclass

import pytest
import tarkit
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from imagekit import PACKERS
from scripted import CUT, RESET, Answer, Request
from shelf import Shelf, error, ranged
from stored import tar_of

from layerstore import Images, Registry, Store
from layerstore.registry import attempts

LAYER = tarkit.file("noise", random.Random(8).randbytes(30_000)) + tarkit.end()


@dataclass(frozen=True)
class Step:
    """What a mirror answers once; `at` is where it cuts, or which byte is another."""

    kind: str
    at: int = 0

    def answer(self, request: Request, data: bytes) -> Answer:
        wrong = bytearray(data)
        wrong[self.at % len(data)] ^= 1
        honest, lie = ranged(request, data, {"Etag": '"a"'}), ranged(request, bytes(wrong), {"Etag": '"b"'})
        size = len(honest.body)
        return {
            "whole": honest, "lie": lie, "404": error(404, "BLOB_UNKNOWN", "no"), "401": Answer(401), "403": Answer(403), "500": Answer(500),
            "cut": Answer(honest.status, honest.headers, [honest.body[: self.at % size], CUT], size),
            "lie and cut": Answer(lie.status, lie.headers, [lie.body[: self.at % size], RESET], size),
            "longer": Answer(honest.status, honest.headers, honest.body + b"x", None, True), "shorter": Answer(200, {}, data[:-1]),
            "other range": Answer(206, {"Content-Range": f"bytes 0-{size - 1}/{size}"}, honest.body), "416": Answer(416),
        }[self.kind]  # fmt: skip


KINDS = ["whole", "lie", "404", "401", "403", "500", "cut", "cut", "lie and cut", "lie and cut", "longer", "shorter", "other range", "416"]
scripts = st.lists(st.builds(Step, st.sampled_from(KINDS), st.integers(0, 30_000)), max_size=5)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(attempts, "_FIRST_PAUSE", 0.001)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@example([Step("lie and cut", 5000)], [Step("cut", 9000)], "gzip")
@example([Step("cut", 20_000), Step("shorter")], [Step("longer")], "plain")
@example([Step("longer")], [Step("lie", 3)], "zstd")
@given(scripts, scripts, st.sampled_from(sorted(PACKERS)))
def test_the_image_comes(tmp_path_factory, impatient, one, other, packed):
    with (
        Shelf() as shelf, Shelf() as first, Shelf() as second,
        Store(tmp_path_factory.mktemp("store"), driver="overlay2", options={"durability": "none"}) as store,
        Registry(shelf.url, mirrors=[first.url, second.url], timeout=5) as registry,
    ):  # fmt: skip
        put = shelf.put([LAYER], packed=packed)
        for mirror, script in ((first, one), (second, other)):
            left = iter(script)

            def answer(request, left=left):
                step = next(left, Step("404"))
                return step.answer(request, put.blobs[0])

            mirror.always("GET", put.blob_path(0), answer)
        told = []
        image = Images(store).pull(put.reference, registry=registry, progress=lambda done: told.append(int(done)))
        assert tar_of(store.map()[image.top]) == LAYER
        assert store.verify() == store.orphans() == []
        assert told == sorted(told)
        assert told[-1] == len(put.blobs[0])
        # Of the honest registry nothing is asked twice, and a range only where a mirror brought what stands before it.
        asked = [each.header("Range") for each in shelf.asked("GET", put.blob_path(0))]
        assert len(asked) <= 3
        assert all(re.fullmatch(r"(bytes=\d+-)?", text) for text in asked)
        assert first.complaints + second.complaints + shelf.complaints == []
