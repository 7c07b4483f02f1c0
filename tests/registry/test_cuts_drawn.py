"""A blob whose connections are cut, refused and answered wrongly at drawn places, held to a model of what is asked for next.

The model is plain: how far the blob is, how many attempts in a row brought nothing, and whether ranges are any use.
"""

import random
import re
from dataclasses import dataclass

import pytest
import tarkit
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scripted import CUT, RESET, Answer, Request
from shelf import Shelf, ranged
from stored import tar_of

import layerstore
from layerstore import Images, RegistryError, Store
from layerstore.registry import attempts

RETRIES = 2
SOMETHING = 1024
LAYER = tarkit.file("noise", random.Random(7).randbytes(20_000)) + tarkit.end()


@dataclass(frozen=True)
class Step:
    """What one connection does. kind: "whole"; "cut" or "reset" behind so many bytes of the body; "ignores": the same, of an
    answer without the range; "wrong" and 416: an answer that is no use; 500."""

    kind: str
    after: int = 0

    def answer(self, request: Request, data: bytes) -> Answer:
        honest = ranged(request, data, {"Etag": '"strong"'})
        if self.kind == "whole":
            return honest
        if self.kind == "500":
            return Answer(500)
        if self.kind == "ignores":
            honest = Answer(200, {}, data)
        if self.kind in ("wrong", "416"):
            if honest.status != 206:
                return honest
            first = int(re.findall(r"\d+", request.header("Range"))[0])
            wrong = [(first + 1, len(data)), (0, len(data)), (first, len(data) + 1), (first, "*")][self.after % 4]
            headers = {"Content-Range": f"bytes {wrong[0]}-{len(data) - 1}/{wrong[1]}"}
            return Answer(206, headers, data[first:]) if self.kind == "wrong" else Answer(416, {"Content-Range": f"bytes */{len(data)}"})
        body = honest.body
        assert isinstance(body, bytes)
        if self.after >= len(body):
            return honest
        return Answer(honest.status, honest.headers, [body[: self.after], RESET if self.kind == "reset" else CUT], len(body))


@dataclass
class Model:
    """What must be asked for: the first byte of each request, 0 for a request without a range; and whether the blob comes."""

    size: int
    asked: list[int]
    comes: bool = True

    @classmethod
    def of(cls, size: int, steps: list[Step]) -> "Model":
        model, at, in_vain, ranges = cls(size, []), 0, 0, True
        for step in [*steps, Step("whole")]:
            first = at if ranges else 0
            model.asked.append(first)
            if step.kind in ("wrong", "416") and first:
                ranges = False
                continue
            sent = size - first
            if step.kind == "500":
                brought, whole = 0, False
            elif step.kind in ("cut", "reset", "ignores"):
                begins = 0 if step.kind == "ignores" else first
                sent = min(step.after, size - begins)
                whole = sent == size - begins
                brought = max(begins + sent - at, 0)
            else:
                brought, whole = size - at, True
            at += brought
            if whole or at == size:
                return model
            in_vain = 0 if brought >= SOMETHING else in_vain + 1
            if in_vain > RETRIES:
                model.comes = False
                return model
        raise AssertionError("the last step is whole")


steps = st.lists(
    st.builds(Step, st.sampled_from(["cut", "cut", "reset", "ignores", "wrong", "416", "500"]), st.integers(0, 21_500) | st.integers(0, 1100)), max_size=12
)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(attempts, "_FIRST_PAUSE", 0.001)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example([Step("cut", 1023), Step("cut", 1023), Step("cut", 1023)])
@example([Step("cut", 1024), Step("500"), Step("cut", 5), Step("cut", 1024), Step("500"), Step("500"), Step("500")])
@example([Step("cut", 3000), Step("wrong"), Step("ignores", 2000), Step("cut", 9000)])
@example([Step("cut", 3000), Step("416"), Step("reset", 5000)])
@given(steps)
def test_what_is_asked_for_next(tmp_path_factory, impatient, steps):
    with Shelf() as shelf, Store(tmp_path_factory.mktemp("store"), driver="overlay2", options={"durability": "none"}) as store:
        put = shelf.put([LAYER])
        data = put.blobs[0]
        model = Model.of(len(data), steps)
        left = iter([*steps, Step("whole")])
        shelf.always("GET", put.blob_path(0), lambda request: next(left).answer(request, data))
        told: list[int] = []
        with layerstore.Registry(shelf.url, retries=RETRIES, timeout=5) as registry:
            try:
                image = Images(store).pull(put.reference, registry=registry, progress=lambda done: told.append(int(done)))
            except RegistryError as err:
                assert not model.comes, err
                assert put.digests[0] in str(err)
                assert store.map() == {} and store.orphans() == []
            else:
                assert model.comes
                assert tar_of(store.map()[image.top]) == LAYER
                assert store.verify() == []
                assert told[-1] == len(data)
        asked = shelf.asked("GET", put.blob_path(0))
        assert [int((re.findall(r"bytes=(\d+)-$", each.header("Range")) or ["0"])[0]) for each in asked] == model.asked
        assert told == sorted(told)
        assert shelf.complaints == []
