"""What the other tests stand on: the registry starts, asks for passwords and certificates, and tells what it was asked and sent."""

import base64
import ssl
import urllib.error
import urllib.request

import pytest
from realregistry import split


def ask(url: str, context: ssl.SSLContext | None = None, **headers: str) -> int:
    request = urllib.request.Request(url, headers=headers)
    handlers = [urllib.request.ProxyHandler({})] + [urllib.request.HTTPSHandler(context=context)] * (context is not None)
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_it_tells_what_it_was_asked_and_sent(registry, named, skopeo, archive):
    reference = named("app")
    repository, tag = split(reference)
    before = len(registry.requests())
    assert ask(f"http://{registry.host}/v2/{repository}/manifests/{tag}") == 404
    skopeo.copy(f"docker-archive:{archive}", f"docker://{reference}")
    asked = registry.requests(before)
    assert (asked[0].method, asked[0].status) == ("GET", 404)
    assert [(one.method, one.uri, one.status) for one in asked[-1:]] == [("PUT", f"/v2/{repository}/manifests/{tag}", 201)]
    assert {one.agent.partition("/")[0] for one in asked} == {"Python-urllib", "skopeo"}
    sent = registry.manifest(repository, tag)
    assert registry.blobs_of(repository) == {entry["digest"] for entry in (sent["config"], *sent["layers"])}
    assert len(registry.blob(sent["config"]["digest"])) == sent["config"]["size"]


def test_it_asks_for_a_password_and_for_certificates(start):
    server = start(users={"ann": "se:cret"}, client_tls=True)
    url = f"https://localhost:{server.port}/v2/"
    known = ssl.create_default_context(cafile=server.ca)
    known.load_cert_chain(*server.client)
    assert ask(url, known) == 401
    assert ask(url, known, Authorization="Basic " + base64.b64encode(b"ann:se:cret").decode()) == 200
    assert ask(url, known, Authorization="Basic " + base64.b64encode(b"ann:other").decode()) == 401
    with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
        ask(url, ssl.create_default_context(cafile=server.ca))
    with pytest.raises(urllib.error.URLError, match=r"(?i)certificate"):
        ask(url, ssl.create_default_context())


def test_it_comes_back_on_its_port_with_what_it_had(start, skopeo, archive):
    server = start()
    skopeo.copy(f"docker-archive:{archive}", f"docker://{server.host}/app:1")
    port, digest = server.port, server.tag("app", "1")
    server.stop()
    server.start()
    assert (server.port, server.tag("app", "1")) == (port, digest)
    assert ask(f"http://{server.host}/v2/app/manifests/{digest}") == 200
