"""A pull that fails, at drawn places and in drawn ways: nothing is left of it, or, with keep=True, whole layers that need no fetching."""

import os
import signal
from dataclasses import dataclass

import pytest
import tarkit
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from imagekit import PACKERS
from scripted import CUT, Answer
from shelf import Shelf, error
from stored import tar_of

from layerstore import (
    AuthenticationError,
    ImageError,
    Images,
    NotInRegistryError,
    Registry,
    RegistryError,
    Store,
    TarFormatError,
)

LAYERS = [tarkit.file(f"layer-{n}", b"%d" % n * (30_000 * n + 1)) + tarkit.end() for n in range(4)]
OTHER = PACKERS["gzip"][0](tarkit.file("other", b"other") + tarkit.end())


class BoomError(Exception):
    """What progress raises."""


def state(root):
    """All files of a store, and the directories of layers."""
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file() and not path.is_symlink()}
    return files, sorted(os.listdir(root / "overlay2"))


@dataclass(frozen=True)
class Fault:
    """How a layer does not come, or how progress ends the call."""

    kind: str
    layer: int

    def errors(self) -> tuple[type[BaseException], ...]:
        return {
            "404": (NotInRegistryError,), "403": (AuthenticationError,), "cut": (RegistryError,), "short": (ImageError,), "longer": (ImageError, TarFormatError),
            "other": (ImageError,), "no tar": (ImageError, TarFormatError), "progress": (BoomError,), "interrupt": (KeyboardInterrupt,),
        }[self.kind]  # fmt: skip

    def answer(self, data: bytes) -> Answer | None:
        return {
            "404": error(404, "BLOB_UNKNOWN", "unknown"), "403": error(403, "DENIED", "no"), "cut": Answer(200, {}, [data[: len(data) // 2], CUT], len(data)),
            "short": Answer(200, {}, data[:-1]), "longer": Answer(200, {}, data + b"x", None), "other": Answer(200, {}, OTHER[: len(data)].ljust(len(data), b"\0")),
            "no tar": Answer(200, {}, b"x" * len(data)),
        }.get(self.kind)  # fmt: skip


KINDS = ["404", "403", "cut", "short", "longer", "other", "no tar", "progress", "interrupt"]
faults = st.builds(Fault, st.sampled_from(KINDS), st.integers(0, len(LAYERS) - 1))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@example(Fault("cut", 3), 1, True)
@example(Fault("other", 2), 3, True)
@example(Fault("404", 0), 3, False)
@example(Fault("interrupt", 1), 2, True)
@given(faults, st.integers(1, 3), st.booleans())
def test_all_or_nothing(tmp_path_factory, fault, connections, keep):
    root = tmp_path_factory.mktemp("store")
    with Shelf() as shelf, Store(root, driver="overlay2", options={"durability": "none"}) as store:
        put, images = shelf.put(LAYERS), Images(store)
        before, held, told = state(root), dict(store._engine.holds._counts), []
        if (answer := fault.answer(put.blobs[fault.layer])) is not None:
            shelf.on("GET", put.blob_path(fault.layer), answer)

        def progress(done):
            told.append(int(done))
            if len(told) > fault.layer or done == done.total:
                if fault.kind == "progress":
                    raise BoomError
                if fault.kind == "interrupt":
                    os.kill(os.getpid(), signal.SIGINT)

        with Registry(shelf.url, retries=0, connections=connections) as registry:
            with pytest.raises(fault.errors()) as caught:
                images.pull(put.reference, registry=registry, keep=keep, progress=progress)
            if answer is not None and caught.type is not TarFormatError:
                assert put.digests[fault.layer] in str(caught.value)
            assert images.list() == []
            assert store._engine.holds._counts == held
            assert store.orphans() == []
            there = set(store.map())
            stayed = len(there)
            assert there == set(put.chains[:stayed])
            if not keep:
                assert state(root) == before
            elif answer is not None:
                assert stayed == fault.layer if connections == 1 else stayed <= fault.layer

            shelf.forget()
            image = images.pull(put.reference, registry=registry)
        fetched = {path for path in shelf.paths() if "/blobs/" in path}
        assert fetched == {f"GET /v2/app/blobs/{digest}" for digest in [put.id, *put.digests[stayed:]]}
        assert [tar_of(store.map()[chain]) for chain in image.layers] == LAYERS
        assert (root / "image/overlay2/imagedb/metadata" / put.id.replace(":", "/") / "manifest").read_bytes() == put.manifest
        images.remove(image)
        assert store.map() == {}
