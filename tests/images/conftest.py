"""What tests of images share: a store's images, and the proof that a failure left nothing."""

import contextlib

import imagekit
import pytest

import layerstore


@pytest.fixture
def images(store):
    return layerstore.Images(store)


@pytest.fixture
def nothing_left(store, root):
    """`with nothing_left():` the store has afterwards the paths it had before, and nobody holds anything new."""

    @contextlib.contextmanager
    def watched():
        before = imagekit.inventory(root)
        held = dict(store._holds._counts)
        yield
        assert imagekit.inventory(root) - {"image/overlay2/layerdb/tmp", "image/overlay2/layerdb/sha256"} == before - {
            "image/overlay2/layerdb/tmp", "image/overlay2/layerdb/sha256"
        }  # fmt: skip
        assert store._holds._counts == held

    return watched
