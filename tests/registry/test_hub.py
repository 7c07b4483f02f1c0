"""Docker's hub: its names, where it is asked, and its credentials; a registry behind a proxy plays it."""

import base64
import json

import pytest
from guards import BearerGuard, Proxy, Tokens, basic
from imagekit import BASE, TOP, encode
from shelf import Shelf

from layerstore import Registry


@pytest.fixture
def hub(serve, authority, monkeypatch):
    shelf = serve(Shelf(authority.server("hub", "DNS:registry-1.docker.io")))
    proxy = serve(Proxy())
    shelf.places = {"registry-1.docker.io": shelf.port}
    proxy.where = lambda host, port: ("127.0.0.1", shelf.places[host])
    monkeypatch.setenv("https_proxy", f"http://{proxy.host}")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    return shelf


@pytest.mark.parametrize("name", ["busybox:1", "docker.io/busybox:1", "docker.io/library/busybox:1", "index.docker.io/library/busybox:1", "library/busybox:1"])
def test_names(hub, images, check, name, root):
    put = hub.put([BASE, TOP], name="library/busybox")
    image = images.pull(name)
    check(image, put, ["busybox:1"])
    assert image.digests == (f"busybox@{put.digest}",)
    assert images.get("busybox:1").id == put.id
    notes = root / "image/overlay2/distribution/v2metadata-by-diffid/sha256"
    assert {json.loads(path.read_bytes())[0]["SourceRepository"] for path in notes.iterdir()} == {"docker.io/library/busybox"}
    assert {request.header("Host") for request in hub.requests} == {"registry-1.docker.io"}


def test_a_users_name(hub, images):
    put = hub.put([BASE], name="user/app")
    image = images.pull("user/app:1")
    assert (image.references, image.digests) == (("user/app:1",), (f"user/app@{put.digest}",))


@pytest.mark.parametrize("host", ["docker.io", "index.docker.io", "registry-1.docker.io"])
def test_registry_of_the_hub(hub, images, host):
    hub.put([BASE], name="library/busybox")
    with Registry(host, retries=0, timeout=5) as registry:
        assert registry.tags("library/busybox") == ["1"]
        if host == "docker.io":
            assert registry.tags("busybox") == ["1"]
            assert images.pull("busybox:1", registry=registry).references == ("busybox:1",)


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io"])
def test_keys_of_its_credentials(hub, serve, authority, images, home, key):
    tokens = serve(Tokens(authority.server("auth", "DNS:auth.docker.io"), users={"u": "p"}, name="auth.docker.io"))
    hub.places["auth.docker.io"] = tokens.port
    hub.guard = BearerGuard(tokens)
    hub.put([BASE], name="library/busybox")
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_bytes(encode({"auths": {key: {"auth": base64.b64encode(b"u:p").decode()}}}))
    images.pull("busybox:1")
    assert {request.header("Authorization") for request in tokens.requests} == {basic("u", "p")}
    assert [value for name, value in tokens.requests[0].fields if name == "scope"] == ["repository:library/busybox:pull"]
