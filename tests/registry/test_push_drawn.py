"""Pushes with drawn trouble: what a registry keeps of a request, what it answers, where it breaks. What comes is whole, or an error."""

import itertools
import random
import shutil

import imagekit
import pytest
import tarkit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import HANG_UP, Answer
from shelf import error

from layerstore import Registry, RegistryError
from layerstore.registry import attempts

NOISE = tarkit.file("noise", random.Random(5).randbytes(20_000)) + tarkit.end()
RETRIES = 2
_number = itertools.count()

# What a registry does with a request of an upload: keeps so many bytes of it, and answers so.
kept = st.integers(0, 25_000)
troubles = st.one_of(
    st.tuples(st.just("hang up"), kept),
    st.tuples(st.sampled_from([408, 429, 500, 502, 503, 504]), kept),
    st.tuples(st.just("forget"), kept),
    st.tuples(st.just("wrong range"), kept),
)
steps = st.lists(st.none() | troubles, max_size=12)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(attempts, "_FIRST_PAUSE", 0.0001)


def script(shelf, trouble):
    """A registry that meets this trouble."""
    what, count = trouble

    def act(request):
        id = request.path.rpartition("/")[2]
        if id not in shelf.uploads:
            return None
        data = shelf.uploads[id][1]
        if request.method == "PATCH":
            begins = request.header("Content-Range").partition("-")[0]
            if begins and int(begins) != len(data):
                return None
            before = len(data)
            data += request.body
            del data[before + count :]
        if what == "forget":
            del shelf.uploads[id]
            return error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown")
        if what == "wrong range" and request.method == "PATCH":
            answer = Answer(202, shelf._place(request.path.split("/")[2], id))
            answer.headers["Range"] = f"0-{len(data) + 7}"
            return answer
        return HANG_UP if what == "hang up" else Answer(what if isinstance(what, int) else 500)

    return act


def pushed(shelf, images, root, patches, **options) -> str:
    """Push an image of one layer to a repository that nothing is known of; its name. Raises RegistryError."""
    shelf.forget()
    shutil.rmtree(root / "image/overlay2/distribution", ignore_errors=True)       # else what came before is mounted
    name = f"drawn{next(_number)}"
    [image] = images.load(imagekit.tar_of(imagekit.docker([([NOISE], [])])))
    upload = f"/v2/{name}/blobs/uploads/.+"
    for method, troubles in {"PATCH": patches, "PUT": options.pop("puts", ()), "GET": options.pop("gets", ())}.items():
        shelf.on(method, upload, *[(lambda request: None) if each is None else script(shelf, each) for each in troubles])
    before = set(shelf.uploads)
    try:
        with Registry(shelf.url, timeout=5, **options) as target:
            digest = images.push(image, f"{shelf.host}/{name}:1", registry=target, compression=None, force_compression=True)
    except RegistryError:
        assert name not in shelf.manifests
        raise
    finally:
        assert set(shelf.uploads) == before, "a session is left"
    assert digest in shelf.manifests[name]
    assert shelf.blobs[name][imagekit.digest(NOISE)] == NOISE
    return name


drawn = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.time_limit(180)
@drawn
@given(patches=steps, puts=st.lists(troubles, max_size=2), gets=st.lists(troubles, max_size=2), chunk=st.none() | st.integers(1_500, 30_000))
def test_what_comes_is_whole(shelf, images, root, patches, puts, gets, chunk):
    try:
        pushed(shelf, images, root, patches, puts=puts, gets=gets, chunk=chunk, retries=RETRIES)
    except RegistryError:
        in_vain = sum(each is not None for each in patches) + len(puts) + len(gets)
        assert in_vain > RETRIES


@pytest.mark.time_limit(180)
@drawn
@given(
    patches=st.lists(st.none() | st.tuples(st.sampled_from(["hang up", 500, 503]), st.integers(2, 25_000)), max_size=12),
    chunk=st.integers(1_500, 30_000),
)
def test_what_the_registry_kept_is_not_sent_again(shelf, images, root, patches, chunk):
    """Each trouble brings some bytes: one session and retries=1 are enough, however many there are."""
    name = pushed(shelf, images, root, patches, chunk=chunk, retries=1)
    assert len(shelf.asked("POST")) == 2
    at = 0
    for request in shelf.asked("PATCH", f"/v2/{name}/.+"):
        first, _, last = request.header("Content-Range").partition("-")
        assert at <= int(first) <= int(last) < len(NOISE)
        at = int(first)
