"""A docker-registry that lost or spoilt what it stores, may not be written to, or lives below a path."""

import traceback

import programs
import pytest
from stored import tar_of

from layerstore import ImageError, NotInRegistryError, Registry, RegistryError, TarFormatError

LAYERS = programs.layers()


@pytest.fixture
def server(start, skopeo, archive):
    """A registry that nothing else uses, with app:1."""
    server = start()
    skopeo.copy(f"docker-archive:{archive}", f"docker://{server.host}/app:1")
    return server


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_a_layer_that_is_gone_is_named(server, images, nothing_left, number):
    digest = server.manifest("app", "1")["layers"][number]["digest"]
    server.path(digest).unlink()
    with nothing_left(), pytest.raises(NotInRegistryError, match=digest) as caught:
        images.pull(f"{server.host}/app:1")
    assert (caught.value.status, caught.value.code) == (404, "BLOB_UNKNOWN")


@pytest.mark.parametrize("how", ["another byte", "cut", "longer"])
@pytest.mark.parametrize("what", ["a layer", "the config"])
def test_what_is_spoilt_is_refused_and_named(server, images, nothing_left, what, how):
    manifest = server.manifest("app", "1")
    digest = (manifest["layers"][2] if what == "a layer" else manifest["config"])["digest"]
    data = bytearray(server.blob(digest))
    if how == "another byte":
        data[-5] ^= 1
    server.path(digest).write_bytes(data[:-3] if how == "cut" else data + b"more" if how == "longer" else data)
    with nothing_left(), pytest.raises((ImageError, TarFormatError)) as caught:
        images.pull(f"{server.host}/app:1")
    assert digest in "".join(traceback.format_exception_only(caught.value))


def test_a_manifest_that_is_spoilt_is_refused(server, images, nothing_left):
    digest = server.tag("app", "1")
    data = server.blob(digest)
    spoilt = data.replace(b'"layers"', b'"Layers"')
    assert spoilt != data
    server.path(digest).write_bytes(spoilt)
    for reference in (f"{server.host}/app:1", f"{server.host}/app@{digest}"):
        with nothing_left(), pytest.raises(ImageError, match="digest"):
            images.pull(reference)


def test_a_registry_that_is_only_read_says_so_and_is_pulled_from(server, images):
    server.stop()
    server.config["storage"]["maintenance"] = {"readonly": {"enabled": True}}
    server.start()
    image = images.pull(f"{server.host}/app:1")
    with pytest.raises(RegistryError) as caught:
        images.push(image, f"{server.host}/other:1")
    assert caught.value.status == 405
    assert [digest.partition("@")[0] for digest in images.get(image.id).digests] == [f"{server.host}/app"]


def test_uploads_go_on_at_relative_locations(start, images, archive):
    server = start(http={"relativeurls": True})
    images.load(archive)
    with Registry(server.host, chunk=100_000) as registry:
        digest = images.push("app:1", f"{server.host}/app:1", registry=registry)
    assert server.tag("app", "1") == digest
    assert sum(one.method == "PATCH" for one in server.requests()) > len(LAYERS)


def test_a_mirror_may_live_below_a_path(start, server, images, store):
    """No client pushes below a path, so it stands on the storage of the registry, which is down."""
    mirror = start(http={"prefix": "/cache/of/it/"})
    mirror.stop()
    mirror.config["storage"]["filesystem"]["rootdirectory"] = str(server.data)
    mirror.start()
    server.stop()
    with Registry(server.host, mirrors=[f"http://{mirror.host}/cache/of/it"], retries=0) as registry:
        image = images.pull(f"{server.host}/app:1", registry=registry)
    assert [tar_of(store.map()[chain]) for chain in image.layers] == LAYERS
    assert {one.uri[:14] for one in mirror.requests()} == {"/cache/of/it/v"}
