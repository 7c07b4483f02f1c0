"""The session with a real docker-registry."""

import hashlib
import os

import pytest
import realregistry

from layerstore import AuthenticationError, NotInRegistryError, RegistryError
from layerstore.registry.calls import started
from layerstore.registry.registry import Registry


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with realregistry.Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


def test_a_blob_goes_there_and_comes_back(server):
    data = os.urandom(1 << 20) * 8
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with Registry(server.host) as registry, started() as call:
        session = registry.session
        answer = session.ask(call, "POST", "/v2/app/blobs/uploads/", body=b"", expect=(202,), upload=True)
        answer = session.ask(
            call, "PATCH", answer.headers.get("location"), body=lambda: [data[:100], b"", data[100:]], expect=(202,), upload=True,
            headers={"Content-Type": "application/octet-stream"},
        )
        session.ask(call, "PUT", f"{answer.headers.get('Location')}&digest={digest}", body=b"", expect=(201,), upload=True)
        with session.open(call, f"/v2/app/blobs/{digest}", headers={"Range": "bytes=5-"}) as reply:
            assert reply.status == 206
            came = b""
            while block := reply.read():
                came += block
        assert came == data[5:]
        with pytest.raises(NotInRegistryError, match=r"404 MANIFEST_UNKNOWN: manifest unknown$") as caught:
            session.ask(call, "GET", "/v2/app/manifests/none")
    assert (caught.value.status, caught.value.code, caught.value.host) == (404, "MANIFEST_UNKNOWN", server.host)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    with realregistry.Registry(tmp_path_factory.mktemp("guarded"), users={"ann": "secret"}, tls=True) as running:
        yield running


def ask(host, path="/v2/", **arguments):
    with Registry(host, **arguments) as registry, started() as call:
        return registry.session.ask(call, "GET", path)


def test_its_certificate_must_be_trusted(guarded):
    with pytest.raises(RegistryError, match="its certificate is not trusted: self-signed certificate") as caught:
        ask(guarded.host)
    assert (type(caught.value), caught.value.status) == (RegistryError, 0)


@pytest.mark.parametrize("trusting", ["ca", "insecure"])
def test_it_knows_who_asks(guarded, trusting):
    trusting = {"ca": guarded.ca} if trusting == "ca" else {"insecure": True}
    assert ask(guarded.host, auth=("ann", "secret"), **trusting).body == b"{}"
    with pytest.raises(AuthenticationError, match=r"401 UNAUTHORIZED: authentication required"):
        ask(guarded.host, auth=("ann", "wrong"), **trusting)
