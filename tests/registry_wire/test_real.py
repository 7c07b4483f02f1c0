"""The session with a real docker-registry."""

import hashlib
import os

import pytest
import realregistry

from layerstore import NotInRegistryError
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
